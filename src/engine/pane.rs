//! What an Aggregator says of one closed pane. Partials of the same pane merge in any order.

use super::histogram::SparseBins;
use super::time::{Millis, Pane};
use serde::{Deserialize, Serialize};

/// Everything that one partition saw in one pane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PaneBatch {
    pub partition: i32,
    pub pane: Pane,
    /// Largest event time seen in the partition when the pane closed.
    pub watermark: Millis,
    /// One for each experiment that had records, by experiment.
    pub partials: Vec<PanePartial>,
}

/// One experiment in one pane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PanePartial {
    /// Index into [`super::plan::Catalog::plans`].
    pub experiment: u32,
    /// Records accepted for the experiment.
    pub records: u64,
    /// Records refused that name the experiment.
    pub rejected: u64,
    pub buckets: Vec<BucketPartial>,
    pub controls: Vec<Control>,
}

/// One bucket of an experiment in one pane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BucketPartial {
    pub exposures: u64,
    /// Units exposed to the experiment for the first time, here to this bucket.
    pub new_units: u64,
    /// Units exposed to this bucket that belong to another one.
    pub mixed_units: u64,
    /// Records other than exposures.
    pub events: u64,
    /// Of the units exposed for the first time, those that do not belong to this pane's cohort: age of theirs, and how many.
    pub enrolled_before: Vec<(u32, u64)>,
    /// One for each of [`super::plan::Plan::signals`]; empty when none has seen anything.
    pub cells: Vec<Cell>,
}

/// One observation, as the tests against the baseline need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Observation {
    /// How many panes before this one the unit was exposed for the first time; 0 for a record that names its bucket itself.
    pub age: u32,
    /// Which of the [`BATCHES`] batches its unit hashes to, or [`NO_UNIT`].
    pub batch: u8,
    /// Bin of a distribution; of a rate, 1 for a hit; 0 otherwise.
    pub value: u16,
}

/// Batches of units in which clustering is measured (Rao and Scott 1992: variance between batches against that of independent trials).
pub const BATCHES: usize = 64;
/// [`Observation::batch`] of a record without a unit.
pub const NO_UNIT: u8 = u8::MAX;

/// Sums over the units of one cohort (or over events): of a value y, and of a covariate x.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    pub y: f64,
    pub yy: f64,
    pub x: f64,
    pub xx: f64,
    pub xy: f64,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, more: Sums) {
        self.y += more.y;
        self.yy += more.yy;
        self.x += more.x;
        self.xx += more.xx;
        self.xy += more.xy;
    }
}

/// The sufficient statistics of one signal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Cell {
    #[default]
    Empty,
    Distribution {
        bins: SparseBins,
        /// Values moved to the nearest bound of the histogram.
        clamped: u64,
        seen: Vec<Observation>,
    },
    /// Of events: all of them in `seen`. Of units: those with their first hit.
    Rate { n: u64, x: u64, seen: Vec<Observation> },
    Count {
        n: u64,
        /// Units with their first event.
        seen: Vec<Observation>,
    },
    Moments {
        n: u64,
        sum: f64,
        /// By age of the cohort: number of observations begun, and what the sums grew by.
        parts: Vec<(u32, u64, Sums)>,
    },
    Workflows {
        started: u64,
        /// Pane of the start, and how many of the workflows begun there turned out abandoned.
        abandoned: Vec<(Pane, u64)>,
        /// Starts, and abandoned ones with the pane of their start; ages are those at the start.
        seen: Vec<Observation>,
        lost: Vec<(Pane, Observation)>,
    },
}

/// A control event, in the order of arrival.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Control {
    Phase { at: Millis, phase: PhaseName, weights: Vec<(String, f64)> },
    Annotation { at: Millis, text: String, author: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PhaseName {
    Index(u32),
    Name(String),
}

/// An event that may decide on its own (zero tolerance) and does not wait for its pane to close. The pane counts it too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Urgent {
    pub experiment: u32,
    pub bucket: u32,
    pub signal: u32,
    pub at: Millis,
    pub label: String,
}

/// What an Aggregator hands on, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Emission {
    Pane(PaneBatch),
    Urgent(Urgent),
}
