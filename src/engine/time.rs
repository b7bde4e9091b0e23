//! Event time: milliseconds since the Unix epoch, and the panes that slice it.

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch (event time), or a span of milliseconds.
pub type Millis = i64;

/// Index of a pane: the half-open slice `[index * length, (index + 1) * length)` of event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pane(pub i64);

impl Pane {
    /// The pane of length `length` ms (> 0) that holds `ts`.
    pub fn of(ts: Millis, length: Millis) -> Pane {
        Pane(ts.div_euclid(length))
    }

    /// First instant of the pane.
    pub fn start(self, length: Millis) -> Millis {
        self.0 * length
    }

    /// First instant after the pane.
    pub fn end(self, length: Millis) -> Millis {
        (self.0 + 1) * length
    }
}
