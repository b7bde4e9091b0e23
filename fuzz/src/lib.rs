//! What is fuzzed: one function for each target, which panics where a promise is broken. `cargo fuzz` feeds them with what it makes up,
//! and `cargo test --test fuzz` with the kept corpora and a few thousand mutations of each.
#![allow(clippy::unwrap_used)] // that is how a target fails

mod http;

pub use http::{answer, http};

use guardraild::engine::aggregate::{Aggregator, assignments};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::{Change, Changes, Kept};
use guardraild::engine::plan::{Catalog, FieldTable, Settings};
use guardraild::engine::time::Millis;
use guardraild::ingest::decode::{Decoder, Limits};
use guardraild::ingest::mapped::{Booked, Layouts, Mapper, Reader};
use guardraild::ingest::schemas::{Schema, Schemas};
use guardraild::mapping::condition::Expression;
use guardraild::mapping::{Format, Source};
use guardraild::rules::{self, Loaded, load, parse_str};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A target's name, and the target.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 8] = [
    ("decoder", decoder),
    ("mapping", mapping),
    ("payload", payload),
    ("condition", condition),
    ("rules", rules),
    ("checkpoint", checkpoint),
    ("http", http),
    ("answer", answer),
];

/// Event times around which the corpora's records lie.
pub const NOW: Millis = 1_764_666_100_000;
/// A partition is begun anew after so many records, so that a long run does not remember all of them.
const RECORDS: u32 = 1_000;

const AVRO: &str = r#"{"type":"record","name":"E","fields":[
  {"name":"event","type":{"type":"enum","name":"Kind","symbols":["exposure","request"]}},
  {"name":"ts","type":{"type":"long","logicalType":"timestamp-millis"}},
  {"name":"user","type":["null","string"]},
  {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},
  {"name":"code","type":{"type":"fixed","name":"Code","size":2}},
  {"name":"tags","type":{"type":"map","values":"double"}},
  {"name":"parts","type":{"type":"array","items":["null","Kind","float","boolean"]}},
  {"name":"next","type":["null","E"]}]}"#;
const PROTOBUF: &str = r#"syntax = "proto3"; import "google/protobuf/timestamp.proto"; import "google/protobuf/struct.proto";
  message E { string event = 1; int64 ts = 2; string user = 3; map<string, double> tags = 4; repeated E next = 5; oneof o { bytes b = 6; float f = 7; }
    enum K { A = 0; B = 1; } K kind = 8; google.protobuf.Timestamp at = 9; google.protobuf.Value any = 10; message In { fixed64 x = 1; sint32 y = 2; } In in = 11; }"#;

/// The folder of the fuzz targets, from here and from the workspace's own tests.
pub fn folder() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    if here.join("fuzz").is_dir() { here.join("fuzz") } else { here.to_owned() }
}

/// The rules and sources that records meet.
pub fn world() -> Loaded {
    let loaded = load(&[folder().join("world.yaml")], None);
    assert!(loaded.refused == 0, "{}", loaded.diagnostics.iter().map(|d| d.human(false)).collect::<String>());
    loaded
}

/// One partition that reads all topics.
struct Partition {
    reader: Reader,
    catalog: Arc<Catalog>,
    aggregator: Aggregator,
    records: u32,
    topics: Vec<String>,
}

impl Partition {
    fn new() -> Partition {
        let loaded = world();
        let catalog = Arc::new(loaded.catalog);
        let mut topics = vec!["canonical".to_owned()];
        topics.extend(loaded.sources.topics().map(str::to_owned));
        let schema = |format, text| Schema::parse(format, text, Vec::new()).unwrap();
        let known = [(0, schema(Format::Avro, AVRO)), (1, schema(Format::Protobuf, PROTOBUF)), (2, schema(Format::JsonSchema, ""))];
        let layouts = Layouts { sources: loaded.sources, schemas: Some(Schemas::fixed(known)) };
        let reader = Reader::new(&topics, &layouts, &catalog.fields, Limits::default());
        Partition { reader, aggregator: Aggregator::new(0, Arc::clone(&catalog), Settings::default()), catalog, records: 0, topics }
    }

    fn topic(&self, name: &str) -> usize {
        self.topics.iter().position(|topic| topic == name).unwrap()
    }

    /// Every record is booked under at least one outcome, or waits for its schema.
    fn book(&mut self, topic: usize, record: &[u8]) {
        self.records += 1;
        if self.records.is_multiple_of(RECORDS) {
            self.aggregator = Aggregator::new(0, Arc::clone(&self.catalog), Settings::default());
        }
        let before = self.aggregator.counts().records();
        let booked = self.reader.book(topic, record, NOW, &mut self.aggregator);
        let events = self.aggregator.counts().records() - before;
        assert_eq!(events == 0, booked == Booked::Waits, "{booked:?} is counted {events} times");
        self.aggregator.drain();
    }
}

thread_local! {
    static PARTITION: RefCell<Partition> = RefCell::new(Partition::new());
    static FIELDS: FieldTable = world().catalog.fields.clone();
    static DECODER: RefCell<Decoder> = RefCell::new(FIELDS.with(|fields| Decoder::new(fields, Limits::default())));
    static CATALOG: Arc<Catalog> = Arc::new(world().catalog);
    /// What a fleet and a partition that have read nothing leave in a checkpoint.
    static EMPTY: [Changes; 2] = CATALOG.with(|catalog| {
        let settings = Settings::default();
        let fleet = Fleet::new(catalog, settings.pane).snapshot(true).unwrap();
        [fleet, Aggregator::new(0, Arc::clone(catalog), settings).snapshot().unwrap()]
    });
}

/// A record of canonical events. What the decoder has learned of other records changes nothing, and every record is counted once.
pub fn decoder(data: &[u8]) {
    let learned = DECODER.with_borrow_mut(|decoder| format!("{:?}", decoder.decode(data)));
    let fresh = FIELDS.with(|fields| format!("{:?}", Decoder::new(fields, Limits::default()).decode(data)));
    assert_eq!(learned, fresh);
    PARTITION.with_borrow_mut(|partition| partition.book(0, data));
}

/// A record of a topic that has a source: its first byte says which.
pub fn mapping(data: &[u8]) {
    let [topic, record @ ..] = data else { return };
    PARTITION.with_borrow_mut(|partition| partition.book(usize::from(*topic) % partition.topics.len(), record));
}

/// Records with a schema, and schemas: the first byte says which.
pub fn payload(data: &[u8]) {
    let [kind, rest @ ..] = data else { return };
    match kind % 5 {
        kind @ 0..3 => PARTITION.with_borrow_mut(|partition| {
            let topic = partition.topic(["avro", "protobuf", "json-schema"][usize::from(kind)]);
            partition.book(topic, &[&[0, 0, 0, 0, kind], rest].concat());
        }),
        kind => {
            let format = if kind == 3 { Format::Avro } else { Format::Protobuf };
            let (schema, record) = split(rest);
            let Ok(schema) = Schema::parse(format, &String::from_utf8_lossy(schema), Vec::new()) else { return };
            let mut out = Vec::new();
            let _ = Schemas::fixed([(7, schema)]).json(format, &[&[0, 0, 0, 0, 7], record].concat(), &mut out, 1 << 16);
            assert!(out.len() <= 1 << 17, "{} bytes of JSON", out.len());
        }
    }
}

/// A CEL expression, and after a NUL the record that it looks at.
pub fn condition(data: &[u8]) {
    let (text, record) = split(data);
    let (text, record) = (String::from_utf8_lossy(text), String::from_utf8_lossy(record));
    match Expression::compile(&text) {
        Err(fault) => assert!(fault.at <= text.len(), "a fault at byte {} of {}", fault.at, text.len()),
        Ok(expression) => {
            let (when, definition) = (vec![expression], serde_json::Value::Null);
            let source = Source {
                name: "x".to_owned(),
                topics: Vec::new(),
                format: Format::Json,
                when,
                pointers: Vec::new(),
                events: Vec::new(),
                definition,
            };
            let _ = Mapper::new(32).map(&source, &record);
        }
    }
}

/// A rule file: it has faults, which can be shown, or it is a plan that can be judged by.
pub fn rules(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut fields = FieldTable::default();
    let parsed = parse_str("rule.yaml", &text, &mut fields, None);
    for diagnostic in &parsed.diagnostics {
        assert!(!diagnostic.human(false).is_empty() && !diagnostic.json().is_empty() && !diagnostic.short().is_empty());
    }
    if let Some(rules::RuleSet { plan, .. }) = parsed.rule {
        assert!(!parsed.diagnostics.iter().any(rules::Diagnostic::is_error));
        let catalog = Catalog::new(vec![plan], fields);
        assert_eq!(Fleet::new(&catalog, Settings::default().pane).views().len(), 1);
    }
}

/// One part of a checkpoint, the others as of a daemon that has read nothing: what is common to the fleet, an experiment, a partition, a chunk of
/// its units, a list of its ids, a pane that waits, by the first byte. It is an error, or a state that can be written down again.
pub fn checkpoint(data: &[u8]) {
    let [kind, bytes @ ..] = data else { return };
    CATALOG.with(|catalog| {
        let settings = Settings::default();
        let with = |empty: usize, name: &str| {
            let mut changes = EMPTY.with(|parts| parts[empty].clone());
            changes.push((name.to_owned(), Change::Set(vec![bytes.to_vec()])));
            Kept::of(changes)
        };
        let names = [
            ("fleet", "state"),
            ("fleet", "experiment/exp"),
            ("partition", "state"),
            ("partition", "units"),
            ("partition", "ids/0"),
            ("fleet", "pane/1764666100"),
        ];
        match names[usize::from(*kind) % names.len()] {
            ("fleet", name) => {
                if let Ok(mut restored) = Fleet::restore(catalog, settings.pane, &with(0, name)) {
                    restored.fleet.snapshot(true).unwrap();
                }
            }
            (_, name) => {
                if let Ok(mut partition) = Aggregator::restore(0, Arc::clone(catalog), settings, &with(1, name)) {
                    partition.snapshot().unwrap();
                }
                let _ = assignments(bytes, "exp", |_| {});
            }
        }
    });
}

/// What is before the first NUL, and what is after it.
fn split(data: &[u8]) -> (&[u8], &[u8]) {
    let at = data.iter().position(|byte| *byte == 0);
    at.map_or((data, &[]), |at| (&data[..at], &data[at + 1..]))
}
