//! What a sample of events holds: experiments, their buckets, and the values of whatever could be a metric.
//!
//! Everything here is bounded, whatever the records say; what does not fit is left out of the proposal.

use hashbrown::{HashMap, HashSet};
use hdrhistogram::Histogram;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::hash::BuildHasher;

/// Experiments, buckets of one, attributes of one and values of one, kinds of events, fields of one, metrics of one kind.
const EXPERIMENTS: usize = 32;
const BUCKETS: usize = 64;
const ATTRIBUTES: usize = 16;
pub const VALUES: usize = 32;
const KINDS: usize = 64;
const FIELDS: usize = 32;
const METRICS: usize = 32;
/// Units remembered.
const UNITS: usize = 500_000;
/// Objects inside objects that fields are looked for in.
const DEPTH: usize = 4;

/// Values of one field.
pub struct Values {
    pub n: u64,
    /// Numbers that are not 0, and `true`.
    pub hits: u64,
    /// Whether all were 0, 1, true or false.
    pub is_flag: bool,
    sum: f64,
    /// In thousandths.
    histogram: Histogram<u32>,
    pub covariates: u64,
}

impl Values {
    fn new() -> Option<Values> {
        let histogram = Histogram::new_with_bounds(1, 3_600_000_000, 2).ok()?;
        Some(Values { n: 0, hits: 0, is_flag: true, sum: 0.0, histogram, covariates: 0 })
    }

    fn add(&mut self, value: &Value) -> bool {
        let (number, flag) = match (value.as_bool(), value.as_f64()) {
            (Some(flag), _) => (f64::from(u8::from(flag)), true),
            (None, Some(number)) if number.is_finite() => (number, number == 0.0 || number == 1.0),
            _ => return false,
        };
        self.n += 1;
        self.hits += u64::from(number != 0.0);
        self.is_flag &= flag;
        self.sum += number;
        self.histogram.saturating_record((number.max(0.0) * 1_000.0) as u64);
        true
    }

    pub fn mean(&self) -> f64 {
        self.sum / self.n.max(1) as f64
    }

    pub fn quantile(&self, q: f64) -> f64 {
        self.histogram.value_at_quantile(q) as f64 / 1_000.0
    }
}

/// What events came to, of an experiment or of all.
#[derive(Default)]
pub struct Figures {
    pub requests: u64,
    pub errors: u64,
    pub latency: Option<Values>,
    pub started: u64,
    pub completed: u64,
    pub workflows: BTreeMap<String, u64>,
    pub tickets: u64,
    pub flags: u64,
    /// By `metric` of outcomes; and the units that had a hit.
    pub outcomes: BTreeMap<String, (Values, HashSet<u64>)>,
}

impl Figures {
    fn add(&mut self, kind: &str, record: &Map<String, Value>, unit: Option<u64>) {
        let text = |key: &str| record.get(key).and_then(Value::as_str);
        match kind {
            "request" => {
                self.requests += 1;
                self.errors += u64::from(record.get("error").is_some_and(truthy));
                if let Some(latency) = record.get("latency_ms") {
                    let values = self.latency.take().or_else(Values::new);
                    self.latency = values.map(|mut values| {
                        values.add(latency);
                        values
                    });
                }
            }
            "workflow_started" => {
                self.started += 1;
                if let Some(name) = text("workflow").filter(|name| self.workflows.len() < VALUES || self.workflows.contains_key(*name)) {
                    *self.workflows.entry(name.to_owned()).or_default() += 1;
                }
            }
            "workflow_completed" => self.completed += 1,
            "ticket" => self.tickets += 1,
            "compliance_flag" => self.flags += 1,
            "outcome" => {
                let (Some(metric), Some(value)) = (text("metric"), record.get("value")) else { return };
                if self.outcomes.len() >= METRICS && !self.outcomes.contains_key(metric) {
                    return;
                }
                let Some(new) = Values::new() else { return };
                let (values, units) = self.outcomes.entry(metric.to_owned()).or_insert_with(|| (new, HashSet::new()));
                values.add(value);
                values.covariates += u64::from(record.get("covariate").is_some_and(Value::is_number));
                units.extend(unit.filter(|_| truthy(value) && units.len() < UNITS));
            }
            _ => {}
        }
    }
}

fn truthy(value: &Value) -> bool {
    value.as_bool().unwrap_or(false) || value.as_f64().is_some_and(|n| n != 0.0)
}

/// One experiment.
#[derive(Default)]
pub struct Experiment {
    /// Exposed units by bucket.
    pub buckets: BTreeMap<String, u64>,
    /// Attributes of exposures: values and how often; more than [`VALUES`] of one are no segments.
    pub attributes: BTreeMap<String, BTreeMap<String, u64>>,
    pub figures: Figures,
}

impl Experiment {
    pub fn units(&self) -> u64 {
        self.buckets.values().sum()
    }
}

/// Events of one name.
#[derive(Default)]
pub struct Kind {
    pub n: u64,
    /// How many name their user.
    pub users: u64,
    /// JSON Pointers of scalars, and in how many they are.
    pub fields: BTreeMap<String, u64>,
}

/// A unit: the experiments that it was exposed to, and the partition number where.
struct Unit {
    experiments: Vec<u16>,
    partition: i32,
}

/// Everything that the sample came to.
#[derive(Default)]
pub struct Tally {
    pub records: u64,
    pub first: Option<i64>,
    pub last: Option<i64>,
    pub experiments: BTreeMap<String, Experiment>,
    pub kinds: BTreeMap<String, Kind>,
    /// Of all events, whosever they are.
    pub all: Figures,
    /// Events of users that were exposed before them: in the same partition number, and in another one; and of users that were not.
    pub together: u64,
    pub apart: u64,
    pub unexposed: u64,
    /// Whether records came from more than one partition number.
    pub several: bool,
    partition: Option<i32>,
    names: Vec<String>,
    units: HashMap<u64, Unit>,
}

impl Tally {
    /// Counts a canonical event of this partition number, at this event time in ms.
    pub fn add(&mut self, record: &Map<String, Value>, partition: i32, ts: i64) {
        let text = |key: &str| record.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let Some(name) = text("event") else { return };
        self.records += 1;
        self.several |= *self.partition.get_or_insert(partition) != partition;
        self.first = Some(self.first.map_or(ts, |first| first.min(ts)));
        self.last = Some(self.last.map_or(ts, |last| last.max(ts)));
        let unit = text("user_id").map(|user| foldhash::fast::FixedState::default().hash_one((text("tenant_id"), user)));
        self.note(name, record, unit.is_some());
        let stamp = text("experiment").zip(text("bucket"));
        if name == "exposure" {
            if let (Some((experiment, bucket)), Some(unit)) = (stamp, unit) {
                self.exposed((experiment, bucket), unit, partition, record);
            }
            return;
        }
        self.all.add(name, record, unit);
        let mut of: Vec<u16> = stamp.and_then(|(experiment, _)| self.index(experiment)).into_iter().collect();
        if of.is_empty()
            && let Some(unit) = unit
        {
            match self.units.get(&unit) {
                None => self.unexposed += 1,
                Some(known) => {
                    *(if known.partition == partition { &mut self.together } else { &mut self.apart }) += 1;
                    of.clone_from(&known.experiments);
                }
            }
        }
        for index in of {
            if let Some(experiment) = self.experiments.get_mut(&self.names[usize::from(index)]) {
                experiment.figures.add(name, record, unit);
            }
        }
    }

    fn note(&mut self, name: &str, record: &Map<String, Value>, user: bool) {
        if self.kinds.len() >= KINDS && !self.kinds.contains_key(name) {
            return;
        }
        let kind = self.kinds.entry(name.to_owned()).or_default();
        kind.n += 1;
        kind.users += u64::from(user);
        fields(record, "", DEPTH, &mut |pointer| {
            if kind.fields.len() < FIELDS || kind.fields.contains_key(pointer) {
                *kind.fields.entry(pointer.to_owned()).or_default() += 1;
            }
        });
    }

    /// The index of an experiment, where there is room for it.
    fn index(&mut self, experiment: &str) -> Option<u16> {
        if let Some(index) = self.names.iter().position(|name| name == experiment) {
            return Some(index as u16);
        }
        (self.names.len() < EXPERIMENTS).then(|| {
            self.names.push(experiment.to_owned());
            self.experiments.insert(experiment.to_owned(), Experiment::default());
            (self.names.len() - 1) as u16
        })
    }

    fn exposed(&mut self, (experiment, bucket): (&str, &str), unit: u64, partition: i32, record: &Map<String, Value>) {
        let Some(index) = self.index(experiment) else { return };
        if self.units.len() >= UNITS && !self.units.contains_key(&unit) {
            return;
        }
        let known = self.units.entry(unit).or_insert_with(|| Unit { experiments: Vec::new(), partition });
        if known.experiments.contains(&index) {
            return;
        }
        known.experiments.push(index);
        let Some(of) = self.experiments.get_mut(experiment) else { return };
        if of.buckets.len() < BUCKETS || of.buckets.contains_key(bucket) {
            *of.buckets.entry(bucket.to_owned()).or_default() += 1;
        }
        for (name, value) in record.get("attributes").and_then(Value::as_object).into_iter().flatten() {
            let Some(value) = value.as_str() else { continue };
            if of.attributes.len() < ATTRIBUTES || of.attributes.contains_key(name) {
                let values = of.attributes.entry(name.clone()).or_default();
                if values.len() <= VALUES || values.contains_key(value) {
                    *values.entry(value.to_owned()).or_default() += 1;
                }
            }
        }
    }

    /// From the first to the last event, in seconds; at least one.
    pub fn seconds(&self) -> f64 {
        self.first.zip(self.last).map_or(1.0, |(first, last)| ((last - first) as f64 / 1_000.0).max(1.0))
    }
}

/// JSON Pointers of a record's scalars.
pub fn fields(record: &Map<String, Value>, path: &str, depth: usize, each: &mut impl FnMut(&str)) {
    for (key, value) in record {
        let pointer = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
        match value {
            Value::Object(inner) if depth > 1 => fields(inner, &pointer, depth - 1, each),
            Value::Object(_) | Value::Array(_) | Value::Null => {}
            _ => each(&pointer),
        }
    }
}
