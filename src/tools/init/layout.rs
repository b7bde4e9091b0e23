//! In which layout a topic's records come: canonical events, that of a preset, or one that nobody here knows.

use super::tally::fields;
use crate::engine::outcome::Reject;
use crate::engine::plan::FieldTable;
use crate::ingest::decode::{Decoder, Limits};
use crate::ingest::mapped::Mapper;
use crate::ingest::schemas::{NoJson, Schemas};
use crate::mapping::{Format, Source, presets};
use crate::rules::{Candidate, assemble_plain};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Records by which a layout is told.
const LOOK: usize = 500;
/// Fields told of a layout that is not known.
const FIELDS: usize = 24;
/// Schemas are waited for so long, all of them together; and the pause between two looks.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);
/// Bytes of the JSON of a record with a schema, about.
const ROOM: usize = 4 << 20;

/// One topic, or one file.
pub struct Topic {
    pub name: String,
    pub records: u64,
    pub events: u64,
    /// Of them, how many are exposures.
    pub exposures: u64,
    /// Why records were refused, by the name of the reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// That of the schemas that records name; the layout is that of their JSON.
    pub schema: Option<Format>,
    pub layout: Layout,
}

pub enum Layout {
    /// There was no record.
    Empty,
    Canonical,
    /// That of a preset, in this format, and the source that reads it.
    Preset(&'static str, &'static str, Arc<Source>),
    /// Records that begin with the id of a schema, and why they are not read.
    Schema(String),
    /// JSON with these fields, and in how many of the records that were looked at; or no JSON at all.
    Unknown(BTreeMap<String, u64>),
}

/// Event time in ms, and the record as a canonical event.
pub type Event = (i64, Map<String, Value>);

/// What reads records. One for all topics.
pub struct Tools {
    decoder: Decoder,
    mapper: Mapper,
    schemas: Option<Schemas>,
    waited: Duration,
}

impl Tools {
    pub fn new(schemas: Option<Schemas>) -> Tools {
        let limits = Limits::default();
        let (decoder, mapper) = (Decoder::new(&FieldTable::default(), limits), Mapper::new(limits.max_depth));
        Tools { decoder, mapper, schemas, waited: Duration::ZERO }
    }

    /// The JSON of a record with a schema, and the schema's format.
    fn plain(&mut self, bytes: &[u8]) -> Result<(Format, Vec<u8>), String> {
        let Some(schemas) = &self.schemas else { return Err("--schema-registry URL says where it is".to_owned()) };
        let since = Instant::now();
        let format = loop {
            match schemas.format(bytes) {
                Ok(format) => break format,
                Err(NoJson::Refused(why)) => return Err(why),
                Err(NoJson::Waits) if self.waited + since.elapsed() >= PATIENCE => {
                    self.waited = PATIENCE;
                    return Err(schemas.trouble().unwrap_or_else(|| "the registry does not answer".to_owned()));
                }
                Err(NoJson::Waits) => std::thread::sleep(PAUSE),
            }
        };
        self.waited += since.elapsed();
        let mut out = Vec::new();
        match schemas.json(format, bytes, &mut out, ROOM) {
            Ok(json) => Ok((format, json.to_vec())),
            Err(NoJson::Refused(why)) => Err(why),
            Err(NoJson::Waits) => Err("the registry does not answer".to_owned()),
        }
    }

    /// An event, or why it is none.
    fn canonical(&mut self, bytes: &[u8]) -> Result<Event, Reject> {
        let ts = self.decoder.decode(bytes).map_err(|refused| refused.reason)?.ts;
        Ok((ts, serde_json::from_slice(bytes).map_err(|_| Reject::NotJson)?))
    }

    fn mapped(&mut self, source: &Source, bytes: &[u8]) -> Result<Vec<Event>, Reject> {
        let text = std::str::from_utf8(bytes).map_err(|_| Reject::NotJson)?;
        self.mapper.map(source, text)?;
        let texts: Vec<String> = (0..).map_while(|i| self.mapper.event(i).map(str::to_owned)).collect();
        texts.iter().map(|text| self.canonical(text.as_bytes())).collect()
    }
}

impl Topic {
    /// A topic of these records, of which the first tell the layout.
    pub fn new<'r>(name: &str, records: impl Iterator<Item = &'r [u8]>, tools: &mut Tools) -> Topic {
        let first: Vec<&[u8]> = records.take(LOOK).collect();
        let (schema, layout) = match first[..] {
            [] => (None, Layout::Empty),
            // Confluent's wire format: a zero, and four bytes of the schema's id.
            _ if 2 * first.iter().filter(|bytes| bytes.first() == Some(&0)).count() > first.len() => with_schema(name, &first, tools),
            _ => (None, layout(name, &first, None, tools)),
        };
        Topic { name: name.to_owned(), records: 0, events: 0, exposures: 0, refused: BTreeMap::new(), schema, layout }
    }

    /// The events of a record: event time in ms, and fields.
    pub fn read(&mut self, bytes: &[u8], tools: &mut Tools) -> Vec<Event> {
        self.records += 1;
        let plain = match self.schema {
            None => Ok(Cow::Borrowed(bytes)),
            // Of the closed list of reasons this is the one that the daemon gives, too.
            Some(format) => tools.plain(bytes).ok().filter(|(of, _)| *of == format).map(|(_, json)| json.into()).ok_or(Reject::NotJson),
        };
        let found = match &self.layout {
            Layout::Canonical => plain.and_then(|bytes| tools.canonical(&bytes)).map(|event| vec![event]),
            Layout::Preset(.., source) => plain.and_then(|bytes| tools.mapped(source, &bytes)),
            Layout::Empty | Layout::Schema(_) | Layout::Unknown(_) => return Vec::new(),
        };
        match found {
            Ok(events) => {
                self.events += events.len() as u64;
                self.exposures += events.iter().filter(|(_, e)| e.get("event").and_then(Value::as_str) == Some("exposure")).count() as u64;
                events
            }
            Err(reason) => {
                *self.refused.entry(reason.name()).or_default() += 1;
                Vec::new()
            }
        }
    }
}

/// The format that most of the records have by their schemas, and the layout of what they hold.
fn with_schema(topic: &str, records: &[&[u8]], tools: &mut Tools) -> (Option<Format>, Layout) {
    let read: Vec<Result<(Format, Vec<u8>), String>> = records.iter().map(|bytes| tools.plain(bytes)).collect();
    let of = |wanted: Format| read.iter().flatten().filter(|(format, _)| *format == wanted).map(|(_, json)| json.as_slice()).collect();
    let all: [(Format, Vec<&[u8]>); 3] = [Format::Avro, Format::Protobuf, Format::JsonSchema].map(|format| (format, of(format)));
    match all.into_iter().max_by_key(|(_, read)| read.len()).filter(|(_, read)| !read.is_empty()) {
        Some((format, read)) => (Some(format), layout(topic, &read, Some(format), tools)),
        None => (None, Layout::Schema(read.into_iter().find_map(Result::err).unwrap_or_default())),
    }
}

/// The layout that reads most of the records, if it is half of them. `schema`: what they were before they were JSON.
fn layout(topic: &str, records: &[&[u8]], schema: Option<Format>, tools: &mut Tools) -> Layout {
    let canonical = records.iter().filter(|bytes| tools.canonical(bytes).is_ok()).count();
    if 2 * canonical >= records.len() {
        return Layout::Canonical;
    }
    let mut best: Option<(usize, &'static str, &'static str, Arc<Source>)> = None;
    let formats = match schema {
        Some(format) => vec![format.name()],
        None => vec!["json", "otlp_json"],
    };
    for (preset, format) in presets::NAMES.iter().flat_map(|preset| formats.iter().map(move |format| (*preset, *format))) {
        let Some(source) = source(topic, preset, format) else { continue };
        // Records that stand for nothing say nothing for a preset.
        let reads = |bytes: &[u8], tools: &mut Tools| tools.mapped(&source, bytes).is_ok_and(|events| !events.is_empty());
        let n = records.iter().filter(|bytes| reads(bytes, tools)).count();
        if n > canonical && best.as_ref().is_none_or(|(most, ..)| n > *most) {
            best = Some((n, preset, format, source));
        }
    }
    if let Some((_, preset, format, source)) = best.filter(|(n, ..)| 2 * n >= records.len()) {
        return Layout::Preset(preset, format, source);
    }
    let mut found = BTreeMap::new();
    for bytes in records {
        let Ok(record) = serde_json::from_slice::<Map<String, Value>>(bytes) else { continue };
        fields(&record, "", 4, &mut |pointer| {
            if found.len() < FIELDS || found.contains_key(pointer) {
                *found.entry(pointer.to_owned()).or_default() += 1;
            }
        });
    }
    Layout::Unknown(found)
}

/// The source that reads a topic by a preset; its name is that of the preset.
fn source(topic: &str, preset: &str, format: &str) -> Option<Arc<Source>> {
    let text = format!("guardrail: v1\nsources: {{{preset}: {}}}\n", definition(topic, Some(preset), format));
    let loaded = assemble_plain(vec![Candidate { file: String::new(), text: Ok(text) }]);
    loaded.sources.iter().next().cloned()
}

/// A source as rule files write it; without a preset records are canonical events.
pub fn definition(topic: &str, preset: Option<&str>, format: &str) -> String {
    let preset = preset.map_or_else(String::new, |preset| format!(", preset: {preset}"));
    let format = if format == "json" { String::new() } else { format!(", format: {format}") };
    format!("{{topics: ['{topic}']{preset}{format}}}")
}
