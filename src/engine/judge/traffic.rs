//! How much of the experiment's traffic a bucket gets, since the beginning and lately.

use crate::engine::pane::BucketPartial;
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Panes that the recent rate may look back at most.
const RECENT: usize = 60;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BucketTraffic {
    /// Units whose first exposure was to this bucket.
    pub units: u64,
    pub mixed_units: u64,
    pub exposures: u64,
    pub events: u64,
    /// Exposures and events of the last panes that had any.
    recent: VecDeque<(Pane, u64, u64)>,
}

impl BucketTraffic {
    pub fn add(&mut self, pane: Pane, part: &BucketPartial) {
        self.units += part.new_units;
        self.mixed_units += part.mixed_units;
        self.exposures += part.exposures;
        self.events += part.events;
        if part.exposures + part.events > 0 {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back((pane, part.exposures, part.events));
        }
    }

    /// Exposed units; or events, of a stream that carries no exposures.
    pub fn size(&self) -> u64 {
        if self.exposures > 0 { self.units } else { self.events }
    }

    /// Exposures per second over the `span` panes that end with `now`; of events, where there never were exposures.
    pub fn rate(&self, now: Pane, span: i64, pane_ms: Millis) -> f64 {
        let inside = self.recent.iter().filter(|(pane, ..)| pane.0 > now.0 - span && *pane <= now);
        let sum: u64 = inside.map(|&(_, exposures, events)| self.counted(exposures, events)).sum();
        sum as f64 * 1_000.0 / (span * pane_ms) as f64
    }

    /// Rate over the panes seen lately, up to 60 of them: for traffic that began a moment ago.
    pub fn settled_rate(&self, now: Pane, pane_ms: Millis) -> f64 {
        let first = self.recent.front().map_or(now.0, |(pane, ..)| pane.0);
        self.rate(now, (now.0 - first + 1).clamp(1, RECENT as i64), pane_ms)
    }

    /// Last pane with an exposure (or an event, as in [`BucketTraffic::rate`]).
    pub fn last_pane(&self) -> Option<Pane> {
        let seen = self.recent.iter().rev().find(|&&(_, exposures, events)| self.counted(exposures, events) > 0);
        seen.map(|(pane, ..)| *pane)
    }

    fn counted(&self, exposures: u64, events: u64) -> u64 {
        if self.exposures > 0 { exposures } else { events }
    }
}
