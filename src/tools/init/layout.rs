//! In which layout a topic's records come: canonical events, that of a preset, or one that nobody here knows.

use super::tally::fields;
use crate::engine::outcome::Reject;
use crate::engine::plan::FieldTable;
use crate::ingest::decode::{Decoder, Limits};
use crate::ingest::mapped::Mapper;
use crate::mapping::{Source, presets};
use crate::rules::{Candidate, assemble_plain};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Records by which a layout is told.
const LOOK: usize = 500;
/// Fields told of a layout that is not known.
const FIELDS: usize = 24;

/// One topic, or one file.
pub struct Topic {
    pub name: String,
    pub records: u64,
    pub events: u64,
    /// Of them, how many are exposures.
    pub exposures: u64,
    /// Why records were refused, by the name of the reason.
    pub refused: BTreeMap<&'static str, u64>,
    pub layout: Layout,
}

pub enum Layout {
    /// There was no record.
    Empty,
    Canonical,
    /// That of a preset, in this format, and the source that reads it.
    Preset(&'static str, &'static str, Arc<Source>),
    /// Records that begin with the id of a schema.
    Schema,
    /// JSON with these fields, and in how many of the records that were looked at; or no JSON at all.
    Unknown(BTreeMap<String, u64>),
}

/// Event time in ms, and the record as a canonical event.
pub type Event = (i64, Map<String, Value>);

/// What reads records. One for all topics.
pub struct Tools {
    decoder: Decoder,
    mapper: Mapper,
}

impl Default for Tools {
    fn default() -> Tools {
        let limits = Limits::default();
        Tools { decoder: Decoder::new(&FieldTable::default(), limits), mapper: Mapper::new(limits.max_depth) }
    }
}

impl Tools {
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
        let layout = if first.is_empty() { Layout::Empty } else { layout(name, &first, tools) };
        Topic { name: name.to_owned(), records: 0, events: 0, exposures: 0, refused: BTreeMap::new(), layout }
    }

    /// The events of a record: event time in ms, and fields.
    pub fn read(&mut self, bytes: &[u8], tools: &mut Tools) -> Vec<Event> {
        self.records += 1;
        let found = match &self.layout {
            Layout::Canonical => tools.canonical(bytes).map(|event| vec![event]),
            Layout::Preset(.., source) => tools.mapped(source, bytes),
            Layout::Empty | Layout::Schema | Layout::Unknown(_) => return Vec::new(),
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

/// The layout that reads most of the records, if it is half of them.
fn layout(topic: &str, records: &[&[u8]], tools: &mut Tools) -> Layout {
    let canonical = records.iter().filter(|bytes| tools.canonical(bytes).is_ok()).count();
    if 2 * canonical >= records.len() {
        return Layout::Canonical;
    }
    let mut best: Option<(usize, &'static str, &'static str, Arc<Source>)> = None;
    for (preset, format) in presets::NAMES.iter().flat_map(|preset| [(*preset, "json"), (*preset, "otlp_json")]) {
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
    // Confluent's wire format: a zero, and four bytes of the schema's id.
    if records.iter().filter(|bytes| bytes.first() == Some(&0)).count() * 2 > records.len() {
        return Layout::Schema;
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
    let text = format!("guardrail: v1\nsources: {{{preset}: {}}}\n", definition(topic, preset, format));
    let loaded = assemble_plain(vec![Candidate { file: String::new(), text: Ok(text) }]);
    loaded.sources.iter().next().cloned()
}

/// A source as rule files write it.
pub fn definition(topic: &str, preset: &str, format: &str) -> String {
    let format = if format == "json" { String::new() } else { format!(", format: {format}") };
    format!("{{topics: ['{topic}'], preset: {preset}{format}}}")
}
