//! What a synthetic service does, as data.

use serde::{Deserialize, Serialize};

/// A service under experiment and the faults that befall it. Shares lie in 0..=1; spans are in the unit of their name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Case {
    pub seed: u64,
    /// Visits per second, 0.001..=10,000,000. Users visit in turn, so that the first `users` visits are all of different users.
    pub visits_per_s: f64,
    /// Requests of one visit.
    pub requests_per_visit: u32,
    /// Time from an exposure to its requests, ms: records of two topics can overtake each other, and a request without a known exposure
    /// counts nowhere.
    pub request_delay_ms: i64,
    /// Distinct users, at least 1.
    pub users: u64,
    /// Tenants that the users belong to, at least 1.
    pub tenants: u64,
    /// Log-normal latency: median and 95th percentile, ms; 0 < p50 < p95.
    pub latency_p50_ms: f64,
    pub latency_p95_ms: f64,
    pub error_rate: f64,
    /// Share of visits that begin a workflow.
    pub workflow_share: f64,
    /// Time from the start of a workflow to its completion, ms.
    pub workflow_ms: i64,
    /// Share of workflows that are begun and abandoned; half of those say so, the others just end.
    pub abandon_share: f64,
    /// Share of visits that open a ticket.
    pub ticket_share: f64,
    /// Whether events other than exposures name their experiment and bucket (the first that the user is in), or are left to be joined.
    pub stamped: bool,
    /// Whether every record carries a unique id.
    pub ids: bool,
    /// Experiments that one user is in, at most 64.
    pub experiments_per_user: usize,
    pub experiments: Vec<Experiment>,
    pub faults: Vec<Fault>,
}

/// One experiment, or `copies` of it named `NAME-0000`, `NAME-0001` … where there are several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    pub name: String,
    #[serde(default = "one")]
    pub copies: u32,
    /// The first is what users are served when another bucket has been stopped.
    pub buckets: Vec<Bucket>,
}

impl Experiment {
    /// The name of every copy.
    pub fn names(&self) -> impl Iterator<Item = String> {
        (0..self.copies).map(|n| if self.copies == 1 { self.name.clone() } else { format!("{}-{n:04}", self.name) })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    pub name: String,
    /// Relative to the other buckets of the experiment.
    #[serde(default = "unit")]
    pub weight: f64,
    #[serde(default)]
    pub effect: Effect,
}

/// From `at_s` on, a bucket behaves worse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Seconds after the start.
    #[serde(default)]
    pub at_s: f64,
    /// Seconds after the start at which it is over; without it, never.
    #[serde(default)]
    pub until_s: Option<f64>,
    /// Name as in `experiments`.
    pub experiment: String,
    /// The n-th copy of the experiment (from 0) is struck n times this much later, s.
    #[serde(default)]
    pub stagger_s: f64,
    pub bucket: String,
    /// Only users with this value of an attribute: `region=uk`.
    #[serde(default)]
    pub segment: Option<String>,
    pub effect: Effect,
}

/// What a bucket or a fault does to those in it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Effect {
    /// Factor on the latency.
    pub latency: f64,
    /// Added to the error rate: 0.05 is 5 percentage points.
    pub errors: f64,
    /// Added to the share of abandoned workflows.
    pub abandon: f64,
    /// Added to the share of visits with a ticket.
    pub tickets: f64,
    /// Share of visits with a compliance flag.
    pub compliance: f64,
}

impl Default for Effect {
    fn default() -> Self {
        Effect { latency: 1.0, errors: 0.0, abandon: 0.0, tickets: 0.0, compliance: 0.0 }
    }
}

impl Effect {
    pub(super) fn and(self, other: Effect) -> Effect {
        Effect {
            latency: self.latency * other.latency,
            errors: self.errors + other.errors,
            abandon: self.abandon + other.abandon,
            tickets: self.tickets + other.tickets,
            compliance: self.compliance + other.compliance,
        }
    }
}

fn one() -> u32 {
    1
}

fn unit() -> f64 {
    1.0
}

impl Default for Case {
    fn default() -> Self {
        let bucket = |name: &str| Bucket { name: name.to_owned(), weight: 1.0, effect: Effect::default() };
        Case {
            seed: 1,
            visits_per_s: 400.0,
            requests_per_visit: 1,
            request_delay_ms: 300,
            users: 100_000,
            tenants: 100,
            latency_p50_ms: 180.0,
            latency_p95_ms: 420.0,
            error_rate: 0.01,
            workflow_share: 0.0,
            workflow_ms: 5_000,
            abandon_share: 0.2,
            ticket_share: 0.0,
            stamped: false,
            ids: false,
            experiments_per_user: 1,
            experiments: vec![Experiment {
                name: "new-checkout".to_owned(),
                copies: 1,
                buckets: vec![bucket("control"), bucket("treatment")],
            }],
            faults: Vec::new(),
        }
    }
}

/// Why a case cannot be played.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CaseError {
    #[error("`{key}` is {value}, which must lie in {range}")]
    Range { key: &'static str, value: f64, range: &'static str },
    #[error("a case needs an experiment of at least two buckets; `{0}` has too few")]
    Buckets(String),
    #[error("a case needs at least one experiment, and at most 1,000,000")]
    Experiments,
    #[error("a fault names the unknown {what} `{name}`")]
    Unknown { what: &'static str, name: String },
}

impl Case {
    /// Checks every bound that the fields' docs give.
    pub fn check(&self) -> Result<(), CaseError> {
        let range = |key, value: f64, low: f64, high: f64, range| {
            if value >= low && value <= high { Ok(()) } else { Err(CaseError::Range { key, value, range }) }
        };
        range("visits_per_s", self.visits_per_s, 0.001, 1e7, "0.001..=10,000,000")?;
        range("users", self.users as f64, 1.0, 1e10, "1..=10^10")?;
        range("tenants", self.tenants as f64, 1.0, 1e9, "1..=10^9")?;
        range("latency_p50_ms", self.latency_p50_ms, 0.001, 1e6, "0.001..=1,000,000")?;
        range("latency_p95_ms", self.latency_p95_ms, self.latency_p50_ms * 1.000_001, 1e7, "latency_p50_ms..=10,000,000")?;
        range("request_delay_ms", self.request_delay_ms as f64, 0.0, 8.64e7, "0..=86,400,000")?;
        range("workflow_ms", self.workflow_ms as f64, 0.0, 8.64e7, "0..=86,400,000")?;
        range("experiments_per_user", self.experiments_per_user as f64, 1.0, 64.0, "1..=64")?;
        let shares = [
            ("error_rate", self.error_rate),
            ("workflow_share", self.workflow_share),
            ("abandon_share", self.abandon_share),
            ("ticket_share", self.ticket_share),
        ];
        for (key, value) in shares {
            range(key, value, 0.0, 1.0, "0..=1")?;
        }
        let copies: u64 = self.experiments.iter().map(|e| u64::from(e.copies)).sum();
        if copies == 0 || copies > 1_000_000 {
            return Err(CaseError::Experiments);
        }
        for experiment in &self.experiments {
            if experiment.buckets.len() < 2 {
                return Err(CaseError::Buckets(experiment.name.clone()));
            }
            for bucket in &experiment.buckets {
                range("weight", bucket.weight, 1e-9, 1e9, "10^-9..=10^9")?;
                bucket.effect.check()?;
            }
        }
        self.faults.iter().try_for_each(|fault| self.check_fault(fault))
    }

    /// Visits between an exposure and its requests.
    pub(super) fn delay_visits(&self) -> u64 {
        (self.request_delay_ms as f64 * self.visits_per_s / 1_000.0) as u64
    }

    pub(super) fn check_fault(&self, fault: &Fault) -> Result<(), CaseError> {
        let unknown = |what, name: &str| CaseError::Unknown { what, name: name.to_owned() };
        let found = self.experiments.iter().find(|e| e.name == fault.experiment);
        let experiment = found.ok_or_else(|| unknown("experiment", &fault.experiment))?;
        if !experiment.buckets.iter().any(|b| b.name == fault.bucket) {
            return Err(unknown("bucket", &fault.bucket));
        }
        if let Some(segment) = fault.segment.as_ref().filter(|segment| super::write::attribute(segment).is_none()) {
            return Err(unknown("segment", segment));
        }
        for (key, value) in [("at_s", fault.at_s), ("until_s", fault.until_s.unwrap_or(0.0)), ("stagger_s", fault.stagger_s)] {
            if !(0.0..=1e9).contains(&value) {
                return Err(CaseError::Range { key, value, range: "0..=10^9" });
            }
        }
        fault.effect.check()
    }
}

impl Effect {
    fn check(&self) -> Result<(), CaseError> {
        if !(self.latency > 0.0 && self.latency <= 1e6) {
            return Err(CaseError::Range { key: "latency", value: self.latency, range: "0 (exclusive)..=1,000,000" });
        }
        let shares = [("errors", self.errors), ("abandon", self.abandon), ("tickets", self.tickets), ("compliance", self.compliance)];
        for (key, value) in shares {
            if !(-1.0..=1.0).contains(&value) {
                return Err(CaseError::Range { key, value, range: "-1..=1" });
            }
        }
        Ok(())
    }
}
