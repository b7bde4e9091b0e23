//! A rule test, checked: what is played, and what is expected.

use super::expect::Expectation;
use crate::engine::plan::{FieldTable, Settings};
use crate::engine::time::Millis;
use crate::mapping::Source;
use crate::rules::RuleSet;
use crate::tools::simulate::{Harm, Spec, Traffic};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// A test file.
#[derive(Debug)]
pub struct TestFile {
    /// As it was named.
    pub name: String,
    pub text: Arc<str>,
    /// One for each rule file under test.
    pub suites: Vec<Suite>,
    /// Files that the test reads, itself included.
    pub reads: Vec<PathBuf>,
}

/// The cases of a test file, for one rule file.
#[derive(Debug)]
pub struct Suite {
    pub rule: Arc<RuleSet>,
    pub fields: FieldTable,
    pub cases: Vec<Case>,
}

/// Times are ms after the start.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    /// Where the name stands.
    pub span: Range<usize>,
    /// `None`: recorded events are played alone, to their end.
    pub synthetic: Option<Synthetic>,
    pub events: Vec<PathBuf>,
    pub source: Option<Arc<Source>>,
    pub settings: Settings,
    /// Event time of the beginning, ms since the epoch.
    pub start: Millis,
    /// At least 1.
    pub partitions: usize,
    /// At least 1.
    pub seeds: u64,
    pub faults: Vec<Fault>,
    pub records: Vec<Written>,
    pub operations: Vec<Operate>,
    pub endpoints: BTreeMap<String, Receiver>,
    pub expect: Vec<Expectation>,
}

/// Traffic that is made up.
pub struct Synthetic {
    pub spec: Spec,
    /// Changes of metrics.
    pub harms: Vec<Harm>,
}

impl std::fmt::Debug for Synthetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let traffic: &Traffic = &self.spec.traffic;
        f.debug_struct("Synthetic").field("traffic", traffic).finish_non_exhaustive()
    }
}

/// What goes wrong with records and assignments; shares lie in 0..=1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    pub from: Millis,
    pub until: Millis,
    /// `None`: of all buckets.
    pub bucket: Option<usize>,
    pub partition: Option<usize>,
    /// What it does to metrics, as it is written.
    pub changes: Vec<String>,
    pub weights: Option<Vec<f64>>,
    pub exposures_go_on: bool,
    pub silence: bool,
    pub other_bucket: f64,
    /// By how much, and of which share.
    pub late: Option<(Millis, f64)>,
    pub duplicates: f64,
    /// JSON Pointer, and share.
    pub missing: Option<(String, f64)>,
    pub invalid: f64,
}

impl Fault {
    pub fn is_active(&self, at: Millis) -> bool {
        (self.from..self.until).contains(&at)
    }

    /// Whether it changes records, and not only what they tell.
    pub fn is_of_records(&self) -> bool {
        let shares = self.other_bucket + self.duplicates + self.invalid;
        shares > 0.0 || self.silence || self.late.is_some() || self.missing.is_some()
    }

    /// What it is, in few words.
    pub fn text(&self) -> String {
        let mut parts = self.changes.clone();
        let mut say = |said: bool, what: String| parts.extend(said.then_some(what));
        say(self.weights.is_some(), "other shares".into());
        say(self.exposures_go_on, GO_ON.into());
        say(self.silence, "silence".into());
        say(self.other_bucket > 0.0, "units in two buckets".into());
        say(self.late.is_some(), "late records".into());
        say(self.duplicates > 0.0, "duplicates".into());
        say(self.missing.is_some(), "missing fields".into());
        say(self.invalid > 0.0, "invalid records".into());
        parts.join(", ")
    }
}

/// When the first fault begins that does something by itself; `None` without one.
pub fn first_fault(faults: &[Fault]) -> Option<Millis> {
    faults.iter().filter(|f| f.text() != GO_ON).map(|f| f.from).min()
}

/// What a flag service does that was told to stop.
const GO_ON: &str = "exposures go on";

/// A record of the test file.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub at: Millis,
    pub record: Content,
    pub times: u32,
    pub partition: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Canonical but for its `ts`, which follows from the start.
    Event(serde_json::Map<String, serde_json::Value>),
    Bytes(String),
}

/// What an operator does.
#[derive(Clone, Debug, PartialEq)]
pub struct Operate {
    pub at: Millis,
    pub does: Does,
    pub bucket: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Does {
    /// For so long; `None`: until resumed.
    Hold(Option<Millis>),
    Resume,
    Rollback,
    Kill,
    /// Number of the phase, and the shares of the buckets from then on.
    Phase(String, Vec<f64>),
}

/// How an endpoint answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Receiver {
    /// Never empty; the last goes on.
    pub answers: Vec<Reply>,
    pub escalate_to: Option<String>,
    /// ms.
    pub timeout: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reply {
    pub answer: Answer,
    /// To all attempts of so long a time; else to one.
    pub span: Option<Millis>,
    pub retry_after: Option<Millis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Status(u16),
    /// None.
    Timeout,
    /// There is no connection.
    Refused,
}

impl Default for Receiver {
    fn default() -> Receiver {
        let answers = vec![Reply { answer: Answer::Status(200), span: None, retry_after: None }];
        Receiver { answers, escalate_to: None, timeout: 15_000 }
    }
}

impl Case {
    /// Whether records need not be written and read again to be what they are.
    pub fn is_plain(&self) -> bool {
        self.events.is_empty() && self.records.is_empty() && !self.faults.iter().any(Fault::is_of_records)
    }
}
