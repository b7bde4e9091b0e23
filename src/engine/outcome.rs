//! Every record is counted under exactly one outcome, which for a record that waits is not known yet; the counts add up to the records read.

use serde::{Deserialize, Serialize, Serializer};

/// Why a record was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reject {
    NotJson,
    NotObject,
    MissingField,
    WrongType,
    BadTimestamp,
    FutureTimestamp,
    NegativeValue,
    NotFinite,
    TooLarge,
    TooManyAttributes,
    UnknownBucket,
}

impl Reject {
    pub const ALL: [Reject; 11] = [
        Reject::NotJson,
        Reject::NotObject,
        Reject::MissingField,
        Reject::WrongType,
        Reject::BadTimestamp,
        Reject::FutureTimestamp,
        Reject::NegativeValue,
        Reject::NotFinite,
        Reject::TooLarge,
        Reject::TooManyAttributes,
        Reject::UnknownBucket,
    ];

    /// The name used in counters and logs.
    pub fn name(self) -> &'static str {
        match self {
            Reject::NotJson => "not_json",
            Reject::NotObject => "not_object",
            Reject::MissingField => "missing_field",
            Reject::WrongType => "wrong_type",
            Reject::BadTimestamp => "bad_timestamp",
            Reject::FutureTimestamp => "future_timestamp",
            Reject::NegativeValue => "negative_value",
            Reject::NotFinite => "not_finite",
            Reject::TooLarge => "too_large",
            Reject::TooManyAttributes => "too_many_attributes",
            Reject::UnknownBucket => "unknown_bucket",
        }
    }
}

/// What became of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Accepted,
    /// Older than the allowed lateness behind its partition's watermark.
    Late,
    /// Its id was seen inside the dedupe horizon.
    Duplicate,
    /// Its unit has not been exposed to any live experiment, but still may turn out to have been.
    Waiting,
    /// Its unit has not been exposed to any live experiment.
    Unattributed,
    /// It names an experiment that no rule file describes.
    UnknownExperiment,
    /// Its experiment has not started yet or has ended.
    Inactive,
    /// Its topic's source makes no event of it.
    Unmapped,
    Rejected(Reject),
}

/// Records by outcome. All but `waiting` only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub accepted: u64,
    pub late: u64,
    pub duplicate: u64,
    /// Not settled yet; none at the end of a recording.
    pub waiting: u64,
    pub unattributed: u64,
    pub unknown_experiment: u64,
    pub inactive: u64,
    pub unmapped: u64,
    pub rejected: Rejected,
}

/// Refused records by reason; serialised as an object that holds the reasons that occurred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejected([u64; Reject::ALL.len()]);

impl Counts {
    pub fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Accepted => self.accepted += 1,
            Outcome::Late => self.late += 1,
            Outcome::Duplicate => self.duplicate += 1,
            Outcome::Waiting => self.waiting += 1,
            Outcome::Unattributed => self.unattributed += 1,
            Outcome::UnknownExperiment => self.unknown_experiment += 1,
            Outcome::Inactive => self.inactive += 1,
            Outcome::Unmapped => self.unmapped += 1,
            Outcome::Rejected(reason) => self.rejected.0[reason as usize] += 1,
        }
    }

    pub fn merge(&mut self, other: &Counts) {
        self.accepted += other.accepted;
        self.late += other.late;
        self.duplicate += other.duplicate;
        self.waiting += other.waiting;
        self.unattributed += other.unattributed;
        self.unknown_experiment += other.unknown_experiment;
        self.inactive += other.inactive;
        self.unmapped += other.unmapped;
        for (a, b) in self.rejected.0.iter_mut().zip(other.rejected.0) {
            *a += b;
        }
    }

    /// Gives a record that waited its outcome.
    pub fn settle(&mut self, outcome: Outcome) {
        self.waiting -= 1;
        self.add(outcome);
    }

    /// Records read: the sum of all outcomes.
    pub fn records(&self) -> u64 {
        let known = self.accepted + self.late + self.duplicate + self.waiting + self.unattributed;
        known + self.unknown_experiment + self.inactive + self.unmapped + self.rejected.total()
    }
}

impl Rejected {
    pub fn get(&self, reason: Reject) -> u64 {
        self.0[reason as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Serialize for Rejected {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Reject::ALL.into_iter().map(|reason| (reason, self.get(reason))).filter(|(_, n)| *n > 0).collect::<Vec<_>>())
    }
}

impl<'de> Deserialize<'de> for Rejected {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = std::collections::BTreeMap::<Reject, u64>::deserialize(deserializer)?;
        let mut out = Rejected::default();
        for (reason, n) in map {
            out.0[reason as usize] = n;
        }
        Ok(out)
    }
}
