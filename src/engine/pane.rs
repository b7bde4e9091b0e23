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
    /// One for each of [`super::plan::Plan::signals`]; empty when none has seen anything.
    pub cells: Vec<Cell>,
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
    },
    Rate {
        n: u64,
        x: u64,
    },
    Count(u64),
    Moments {
        n: u64,
        sum: f64,
        sum_sq: f64,
    },
    Workflows {
        started: u64,
        /// Pane of the start, and how many of the workflows begun there turned out abandoned.
        abandoned: Vec<(Pane, u64)>,
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
