//! Records of topics that have a source: bytes in, the canonical events that they stand for out.
//!
//! The way of a record: [`super::schemas`] takes away a schema id and makes JSON of Avro and Protobuf; `write` applies the source and
//! writes canonical JSON; the [`Decoder`] makes events of that, so that there is one place that checks them. Records of topics without a
//! source go to the decoder at once.

mod otlp;
mod write;

pub use write::Mapper;

use super::decode::{Decoder, Limits, Refused};
use super::schemas::{NoJson, Schemas};
use crate::engine::aggregate::Aggregator;
use crate::engine::event::Event;
use crate::engine::outcome::{Outcome, Reject};
use crate::engine::plan::FieldTable;
use crate::engine::time::Millis;
use crate::mapping::{Source, Sources};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The JSON of a record with a schema is at most this many times as long as `max_record_bytes`.
const ROOM: usize = 4;
/// Pause between two looks for a schema, where nothing else is to be done meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// How topics are read that do not hold canonical events. Clones share it.
#[derive(Clone, Default)]
pub struct Layouts {
    pub sources: Sources,
    /// Needed by sources whose records have a schema.
    pub schemas: Option<Schemas>,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Booked {
    Taken,
    /// At least one of its events, or all of it; more about it where there is more to say.
    Refused(Reject, Option<String>),
    /// Nothing is booked: its schema is not there yet.
    Waits,
}

/// Reads records of any topic. One for each thread.
pub struct Reader {
    decoder: Decoder,
    mapper: Mapper,
    limits: Limits,
    /// Of each topic.
    sources: Vec<Option<Arc<Source>>>,
    schemas: Option<Schemas>,
    /// JSON of a record with a schema.
    json: Vec<u8>,
}

impl Reader {
    /// A reader of these topics, which records name by index.
    pub fn new(topics: &[String], layouts: &Layouts, fields: &FieldTable, limits: Limits) -> Reader {
        Reader {
            decoder: Decoder::new(fields, limits),
            mapper: Mapper::new(limits.max_depth),
            limits,
            sources: topics.iter().map(|topic| layouts.sources.of(topic).cloned()).collect(),
            schemas: layouts.schemas.clone(),
            json: Vec::new(),
        }
    }

    /// Books the events of a record. `latest`: later event times are of the future. Any bytes are fit input.
    #[inline]
    pub fn book(&mut self, topic: usize, bytes: &[u8], latest: Millis, aggregator: &mut Aggregator) -> Booked {
        match self.sources.get(topic) {
            Some(Some(source)) => {
                let source = Arc::clone(source);
                self.mapped(&source, bytes, latest, aggregator)
            }
            _ => event(self.decoder.decode(bytes), latest, aggregator).map_or(Booked::Taken, |reason| Booked::Refused(reason, None)),
        }
    }

    /// [`Reader::book`], waiting for a schema.
    ///
    /// # Errors
    /// Why it has not come within `patience`.
    pub fn book_patiently(
        &mut self,
        (topic, bytes): (usize, &[u8]),
        latest: Millis,
        aggregator: &mut Aggregator,
        patience: Duration,
    ) -> Result<(), String> {
        let since = Instant::now();
        while self.book(topic, bytes, latest, aggregator) == Booked::Waits {
            if since.elapsed() >= patience {
                let trouble = self.schemas.as_ref().and_then(Schemas::trouble);
                return Err(trouble.unwrap_or_else(|| format!("no answer within {} s", patience.as_secs())));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn mapped(&mut self, source: &Source, bytes: &[u8], latest: Millis, aggregator: &mut Aggregator) -> Booked {
        match self.map(source, bytes) {
            Ok(()) => {}
            Err(Unmapped::Waits) => return Booked::Waits,
            Err(Unmapped::Refused(reason, why)) => {
                aggregator.refuse(reason, None);
                return Booked::Refused(reason, why);
            }
        }
        let (mut index, mut booked) = (0, Booked::Taken);
        while let Some(text) = self.mapper.event(index) {
            if let Some(reason) = event(self.decoder.decode(text.as_bytes()), latest, aggregator) {
                booked = Booked::Refused(reason, Some(format!("as event {} of source {}", index + 1, source.name)));
            }
            index += 1;
        }
        if index == 0 {
            aggregator.pass_over(1);
        }
        booked
    }

    fn map(&mut self, source: &Source, bytes: &[u8]) -> Result<(), Unmapped> {
        if bytes.len() > self.limits.max_record_bytes {
            return Err(Unmapped::Refused(Reject::TooLarge, None));
        }
        let bytes = match &self.schemas {
            _ if !source.format.has_schema() => bytes,
            None => return Err(Unmapped::Refused(Reject::NotJson, Some("kafka.schema_registry is not set".to_owned()))),
            Some(schemas) => schemas.json(source.format, bytes, &mut self.json, ROOM * self.limits.max_record_bytes)?,
        };
        let text = std::str::from_utf8(bytes).map_err(|_| Unmapped::Refused(Reject::NotJson, None))?;
        self.mapper.map(source, text).map_err(|reason| Unmapped::Refused(reason, None))
    }
}

/// Why a record stands for no events, not even none.
enum Unmapped {
    Waits,
    Refused(Reject, Option<String>),
}

impl From<NoJson> for Unmapped {
    fn from(no: NoJson) -> Unmapped {
        match no {
            NoJson::Waits => Unmapped::Waits,
            // Of the closed list of reasons this is the one that says: not readable in the format of its topic.
            NoJson::Refused(why) => Unmapped::Refused(Reject::NotJson, Some(why)),
        }
    }
}

/// Books one event, or counts why there is none; returns the reason of a refusal.
#[inline]
fn event(decoded: Result<Event<'_>, Refused>, latest: Millis, aggregator: &mut Aggregator) -> Option<Reject> {
    let outcome = match &decoded {
        Ok(event) if event.ts > latest => aggregator.refuse(Reject::FutureTimestamp, event.experiment.as_deref()),
        Ok(event) => aggregator.observe(event),
        Err(refused) => aggregator.refuse(refused.reason, refused.experiment.as_deref()),
    };
    if let Outcome::Rejected(reason) = outcome { Some(reason) } else { None }
}
