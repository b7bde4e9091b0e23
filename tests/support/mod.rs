//! Drives the engine as the daemon does, with partitions and interleavings of the test's choice.
#![allow(clippy::unwrap_used)] // a test that fails should say where
#![allow(dead_code)]

use guardraild::engine::aggregate::Aggregator;
use guardraild::engine::decision::{Decision, LogEntry, Notice, Output};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::Kept;
use guardraild::engine::outcome::Outcome;
use guardraild::engine::pane::Emission;
use guardraild::engine::plan::{Catalog, FieldTable, Settings};
use guardraild::ingest::decode::{Decoder, Limits};
use guardraild::ingest::file::Recording;
use guardraild::rules::parse_str;
use guardraild::tools::backtest::{self, Side, Terms};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A catalog from rule texts. Panics with their diagnostics if they are bad.
pub fn catalog(rules: &[&str]) -> Catalog {
    let mut fields = FieldTable::default();
    let mut plans = Vec::new();
    for (i, text) in rules.iter().enumerate() {
        let parsed = parse_str(&format!("rule-{i}.yaml"), text, &mut fields, None);
        let shown: Vec<String> = parsed.diagnostics.iter().map(|d| d.human(false)).collect();
        plans.push(parsed.rule.unwrap_or_else(|| panic!("{}", shown.join("\n"))).plan);
    }
    plans.sort_by(|a, b| a.experiment.cmp(&b.experiment));
    Catalog::new(plans, fields)
}

/// Runs files through one rule set.
pub fn backtest(side: Side, files: &[PathBuf]) -> backtest::Outcome {
    let (settings, stop) = (Settings::default(), AtomicBool::new(false));
    let terms = Terms { settings: &settings, drawn: false, state: None, stop: &stop };
    let recording = Recording { files, source: None, limits: Limits::default() };
    backtest::run(vec![side], &recording, &terms, |_| ()).unwrap().remove(0)
}

/// One partition: a decoder and an aggregator.
pub struct Partition {
    pub aggregator: Aggregator,
    decoder: Decoder,
}

impl Partition {
    pub fn new(number: i32, catalog: &Catalog, settings: &Settings) -> Partition {
        let decoder = Decoder::new(&catalog.fields, Limits::default());
        Partition { aggregator: Aggregator::new(number, Arc::new(catalog.clone()), settings.clone()), decoder }
    }

    pub fn read(&mut self, line: &str) -> Outcome {
        match self.decoder.decode(line.as_bytes()) {
            Ok(event) => self.aggregator.observe(&event),
            Err(refused) => self.aggregator.refuse(refused.reason, refused.experiment.as_deref()),
        }
    }

    /// Emissions of a whole recording.
    pub fn all(mut self, lines: &[String]) -> Vec<Emission> {
        lines.iter().for_each(|line| {
            self.read(line);
        });
        self.aggregator.finish();
        self.aggregator.drain()
    }
}

/// What a fleet said, in order.
#[derive(Default)]
pub struct Said {
    pub decisions: Vec<Decision>,
    pub notices: Vec<Notice>,
    pub log: Vec<LogEntry>,
}

impl Said {
    pub fn take(&mut self, out: Output) {
        self.decisions.extend(out.decisions);
        self.notices.extend(out.notices);
        self.log.extend(out.log);
    }

    /// Decisions, notices and log entries as lines, byte for byte.
    pub fn lines(&self) -> Vec<String> {
        let decisions = self.decisions.iter().map(|d| serde_json::to_string(d).unwrap());
        let notices = self.notices.iter().map(|n| format!("{} {} {}", n.kind.name(), n.at, n.text));
        decisions.chain(notices).chain(self.log.iter().map(|l| serde_json::to_string(l).unwrap())).collect()
    }
}

/// A decision without what depends on which partition was heard first: what one that ran ahead of its pane says of its event and of the
/// moment, and which of two that were close to each other is sent.
pub fn without_haste(decision: &Decision) -> Decision {
    let mut decision = Decision { covered_by: None, ..decision.clone() };
    if decision.decided_at % 1_000 != 0 {
        (decision.decided_at, decision.since) = (0, 0);
        (decision.phase, decision.exposed_units, decision.reason) = (0, 0, String::new());
    }
    decision
}

/// Runs one partition's records through a fleet.
pub fn run(rules: &[&str], lines: &[String]) -> (Said, Fleet) {
    let (catalog, settings) = (catalog(rules), Settings::default());
    let mut fleet = Fleet::new(&catalog, settings.pane);
    let mut said = Said::default();
    for emission in Partition::new(0, &catalog, &settings).all(lines) {
        let mut out = Output::default();
        fleet.take(emission, &mut out);
        said.take(out);
    }
    (said, fleet)
}

pub const START: i64 = 1_764_666_000_000;

pub fn exposure(ms: i64, user: u32, experiment: &str, bucket: &str) -> String {
    let ts = START + ms;
    format!(r#"{{"event":"exposure","ts":{ts},"tenant_id":"t","user_id":"u{user}","experiment":"{experiment}","bucket":"{bucket}"}}"#)
}

pub fn request(ms: i64, user: u32, latency_ms: f64, error: bool) -> String {
    let ts = START + ms;
    format!(r#"{{"event":"request","ts":{ts},"tenant_id":"t","user_id":"u{user}","latency_ms":{latency_ms},"error":{error}}}"#)
}

pub fn workflow(ms: i64, user: u32, step: &str, id: u32) -> String {
    let ts = START + ms;
    format!(r#"{{"event":"workflow_{step}","ts":{ts},"tenant_id":"t","user_id":"u{user}","workflow":"purchase","workflow_id":"w{id}"}}"#)
}

pub fn unit_event(event: &str, ms: i64, user: u32, more: &str) -> String {
    let ts = START + ms;
    format!(r#"{{"event":"{event}","ts":{ts},"tenant_id":"t","user_id":"u{user}"{more}}}"#)
}

/// A control event of the experiment `exp`.
pub fn control(event: &str, ms: i64, more: &str) -> String {
    format!(r#"{{"event":"{event}","ts":{},"experiment":"exp"{more}}}"#, START + ms)
}

/// Even users are in control, odd ones in treatment.
pub fn bucket_of(user: u32) -> &'static str {
    if user.is_multiple_of(2) { "control" } else { "treatment" }
}

/// The fleet after a restart from what its snapshots have left.
pub fn restarted(fleet: &mut Fleet, kept: &mut Kept, catalog: &Catalog, settings: &Settings) -> Fleet {
    kept.apply(fleet.snapshot(false).unwrap());
    let restored = Fleet::restore(catalog, settings.pane, kept).unwrap();
    assert_eq!(restored.lost, []);
    restored.fleet
}

/// The partition's aggregator after a restart from what its snapshots have left.
pub fn rebuilt(aggregator: &mut Aggregator, partition: i32, kept: &mut Kept, catalog: &Catalog, settings: &Settings) -> Aggregator {
    kept.apply(aggregator.snapshot().unwrap());
    Aggregator::restore(partition, Arc::new(catalog.clone()), settings.clone(), kept).unwrap()
}
