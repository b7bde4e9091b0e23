//! One input partition: remembers units, workflows and ids, and turns records into partials of panes.

use super::event::Event;
use super::outcome::{Counts, Outcome, Reject};
use super::pane::Emission;
use super::plan::{Catalog, Settings};
use super::time::Millis;
use std::sync::Arc;

/// See the module.
pub struct Aggregator {
    counts: Counts,
}

/// State of an Aggregator, for a checkpoint.
pub struct Snapshot {
    /// Everything but the units: rewritten whole.
    pub state: Vec<u8>,
    /// Units exposed since the last snapshot: appended.
    pub units: Vec<u8>,
}

impl Aggregator {
    pub fn new(partition: i32, catalog: Arc<Catalog>, settings: Settings) -> Aggregator {
        let _ = (partition, catalog, settings);
        Aggregator { counts: Counts::default() }
    }

    /// Counts one decoded record and books it.
    pub fn observe(&mut self, event: &Event<'_>) -> Outcome {
        let _ = event;
        self.counts.add(Outcome::Accepted);
        Outcome::Accepted
    }

    /// Counts a record that could not be decoded; `experiment` is the one that it names, if that much could be read.
    pub fn refuse(&mut self, reason: Reject, experiment: Option<&str>) -> Outcome {
        let _ = experiment;
        self.counts.add(Outcome::Rejected(reason));
        Outcome::Rejected(reason)
    }

    /// Moves the partition's time to `to` without a record, so that panes close and timers fire while it is quiet.
    pub fn advance(&mut self, to: Millis) {
        let _ = to;
    }

    /// Largest event time seen, or advanced to; `None` before the first.
    pub fn watermark(&self) -> Option<Millis> {
        None
    }

    /// Takes what has been emitted since the last call, in order.
    pub fn drain(&mut self) -> Vec<Emission> {
        Vec::new()
    }

    /// Closes the open pane: the end of a recording.
    pub fn finish(&mut self) {}

    /// Records by outcome, since the start (checkpoints keep it).
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    pub fn snapshot(&mut self) -> Snapshot {
        Snapshot { state: Vec::new(), units: Vec::new() }
    }

    /// Rebuilds an Aggregator from its newest `state` and all `units` chunks, oldest first.
    pub fn restore(
        partition: i32,
        catalog: Arc<Catalog>,
        settings: Settings,
        state: &[u8],
        units: &[Vec<u8>],
    ) -> Result<Aggregator, String> {
        let _ = (state, units);
        Ok(Aggregator::new(partition, catalog, settings))
    }
}
