//! Records that begin with the id of a schema (Confluent's wire format), and the registry's schemas.
//!
//! A worker never asks the registry itself: it looks into a cache that all share. What is not there is asked for by a thread of its own, and
//! the partition waits meanwhile, for as long as the registry is down. An id that the registry does not know, or a schema that cannot be
//! used, is remembered as such for [`FORGET`]; its records are refused.

mod avro;
mod protobuf;
mod registry;
#[cfg(test)]
mod tests;

pub use registry::{Login, Registry, RegistryConfig};

use crate::mapping::Format;
use crate::telemetry::Metrics;
use avro::Avro;
use crossbeam_channel::{Sender, bounded};
use hashbrown::HashMap;
use protobuf::Protobuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

/// Schemas remembered at most.
const KEPT: usize = 10_000;
/// Questions on their way at most: each partition waits for one.
const ASKS: usize = 1_024;
/// After this long an id that was unknown is asked for again.
const FORGET: Duration = Duration::from_secs(60);

/// Why bytes are no record of their schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub &'static str);

/// A schema that records are read by.
#[derive(Debug)]
pub enum Schema {
    Avro(Avro),
    Protobuf(Protobuf),
    /// The record is JSON already; that it fits its schema is its producer's affair.
    Json,
}

impl Schema {
    /// Reads a schema of this format; `references` are name and text of what it refers to, each after what it refers to itself.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn parse(format: Format, schema: &str, references: Vec<(String, String)>) -> Result<Schema, String> {
        match format {
            Format::Avro => {
                let references: Vec<String> = references.into_iter().map(|(_, schema)| schema).collect();
                Avro::parse(schema, &references).map(Schema::Avro)
            }
            Format::Protobuf => Protobuf::compile(schema, references).map(Schema::Protobuf),
            Format::Json | Format::OtlpJson | Format::JsonSchema => Ok(Schema::Json),
        }
    }

    fn format(&self) -> Format {
        match self {
            Schema::Avro(_) => Format::Avro,
            Schema::Protobuf(_) => Format::Protobuf,
            Schema::Json => Format::JsonSchema,
        }
    }
}

/// What became of a question.
#[derive(Clone, Debug)]
enum Answer {
    Ready(Arc<Schema>),
    Unknown(Arc<str>),
}

/// Why a record with a schema is not there as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoJson {
    /// The schema has been asked for: try again.
    Waits,
    Refused(String),
}

enum State {
    Asked,
    Ready(Arc<Schema>),
    Unknown { why: Arc<str>, since: Instant },
}

/// What the asking thread and those who ask have in common.
#[derive(Default)]
struct Shared {
    known: RwLock<HashMap<u32, State>>,
    /// Why the registry could not be asked last time.
    trouble: Mutex<Option<String>>,
}

/// The schemas of a registry; clones share them.
#[derive(Clone)]
pub struct Schemas {
    shared: Arc<Shared>,
    asks: Sender<u32>,
}

impl Schemas {
    /// Begins to answer. The thread ends with the last clone.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn start(registry: Registry, metrics: Metrics) -> std::io::Result<Schemas> {
        let (asks, questions) = bounded(ASKS);
        let shared = Arc::new(Shared::default());
        let schemas = Schemas { shared: Arc::clone(&shared), asks };
        std::thread::Builder::new().name("schemas".into()).spawn(move || registry.serve(&questions, &shared, &metrics))?;
        Ok(schemas)
    }

    /// Schemas that are known by their ids from the start. Nobody is asked for others: their records wait for ever.
    pub fn fixed(schemas: impl IntoIterator<Item = (u32, Schema)>) -> Schemas {
        let known = schemas.into_iter().map(|(id, schema)| (id, State::Ready(Arc::new(schema)))).collect();
        Schemas { shared: Arc::new(Shared { known: RwLock::new(known), ..Shared::default() }), asks: bounded(0).0 }
    }

    /// Why the registry cannot be asked, while it cannot.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The format of a record's schema.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn format(&self, bytes: &[u8]) -> Result<Format, NoJson> {
        self.schema(bytes).map(|(_, schema, _)| schema.format())
    }

    /// The JSON of a record: its own, or what is made of Avro or Protobuf in `out`, about `room` bytes at most. Any bytes are fit input.
    ///
    /// # Errors
    /// Why there is none.
    pub fn json<'a>(&self, format: Format, bytes: &'a [u8], out: &'a mut Vec<u8>, room: usize) -> Result<&'a [u8], NoJson> {
        let (id, schema, rest) = self.schema(bytes)?;
        let refused = |why: &dyn std::fmt::Display| NoJson::Refused(format!("schema {id}: {why}"));
        if schema.format() != format {
            return Err(refused(&format_args!("it is {}, the source says {}", schema.format().name(), format.name())));
        }
        out.clear();
        match &*schema {
            Schema::Json => return Ok(rest),
            Schema::Avro(avro) => avro.decode(rest, out, room),
            Schema::Protobuf(protobuf) => protobuf.decode(rest, out, room),
        }
        .map_err(|broken| refused(&broken))?;
        Ok(out)
    }

    /// The schema that a record names, its id, and what comes behind that.
    fn schema<'a>(&self, bytes: &'a [u8]) -> Result<(u32, Arc<Schema>, &'a [u8]), NoJson> {
        let [0, a, b, c, d, rest @ ..] = bytes else {
            return Err(NoJson::Refused("it does not begin with 0 and the id of a schema".to_owned()));
        };
        let id = u32::from_be_bytes([*a, *b, *c, *d]);
        match self.look(id) {
            None => Err(NoJson::Waits),
            Some(Answer::Unknown(why)) => Err(NoJson::Refused(format!("schema {id}: {why}"))),
            Some(Answer::Ready(schema)) => Ok((id, schema, rest)),
        }
    }

    /// What is known of an id. What is not is asked for.
    fn look(&self, id: u32) -> Option<Answer> {
        match self.shared.known.read().unwrap_or_else(|e| e.into_inner()).get(&id) {
            Some(State::Ready(schema)) => return Some(Answer::Ready(Arc::clone(schema))),
            Some(State::Unknown { why, since }) if since.elapsed() < FORGET => return Some(Answer::Unknown(Arc::clone(why))),
            Some(State::Asked) => return None,
            Some(State::Unknown { .. }) | None => {}
        }
        let mut known = self.shared.known.write().unwrap_or_else(|e| e.into_inner());
        if known.len() >= KEPT {
            known.retain(|_, state| !matches!(state, State::Unknown { .. }));
            if known.len() >= KEPT {
                return Some(Answer::Unknown(format!("more than {KEPT} schemas").into()));
            }
        }
        // Where there is no room for the question, it is asked at the next look.
        if !matches!(known.get(&id), Some(State::Asked)) && self.asks.try_send(id).is_ok() {
            known.insert(id, State::Asked);
        }
        None
    }
}

impl Shared {
    fn answer(&self, id: u32, answer: Answer) {
        let state = match answer {
            Answer::Ready(schema) => State::Ready(schema),
            Answer::Unknown(why) => {
                tracing::warn!(id, "records of a schema are refused: {why}");
                State::Unknown { why, since: Instant::now() }
            }
        };
        self.known.write().unwrap_or_else(|e| e.into_inner()).insert(id, state);
        if self.trouble.lock().unwrap_or_else(|e| e.into_inner()).take().is_some() {
            tracing::info!("the schema registry answers again");
        }
    }

    fn failed(&self, why: String) {
        let mut trouble = self.trouble.lock().unwrap_or_else(|e| e.into_inner());
        if trouble.is_none() {
            tracing::error!("partitions wait for a schema: {why}");
        }
        *trouble = Some(why);
    }
}

/// A whole number as Avro writes it, and the index of a Protobuf message: a zigzag varint.
fn zigzag(bytes: &mut &[u8]) -> Result<i64, Broken> {
    let mut n: u64 = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Broken("cut off"))?;
        *bytes = rest;
        n |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok((n >> 1) as i64 ^ -((n & 1) as i64));
        }
    }
    Err(Broken("a number of more than 64 bits"))
}
