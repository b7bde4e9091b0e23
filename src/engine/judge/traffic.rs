//! How much of the experiment's traffic a bucket gets, since the beginning and lately.

use crate::engine::pane::BucketPartial;
use crate::engine::quality::QualityPartial;
use crate::engine::state::DataState;
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

/// What was wrong with the data since the beginning, whatever has been re-armed.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    late: u64,
    duplicate: u64,
    future: u64,
    set_aside: u64,
    mixed_units: u64,
    ineligible: u64,
    ineligible_units: u64,
    unknown_units: u64,
}

impl Figures {
    pub fn add(&mut self, quality: Option<&QualityPartial>, traffic: &[BucketPartial]) {
        self.set_aside += traffic.iter().map(|part| part.aside).sum::<u64>();
        let Some(quality) = quality else { return };
        self.late += quality.late;
        self.duplicate += quality.duplicate;
        self.future += quality.future;
        for bucket in &quality.buckets {
            self.mixed_units += bucket.mixed.len() as u64;
            self.ineligible += bucket.ineligible;
            self.ineligible_units += bucket.ineligible_units;
            self.unknown_units += bucket.unknown_units;
        }
    }

    /// As people see it, among `records` that were accepted; of assignments, `placed` were checked and `misplaced` are wrong.
    pub fn shown(&self, records: u64, checked: Option<(u64, u64)>) -> DataState {
        let arrived = records + self.late + self.duplicate;
        let share = |n: u64| (arrived > 0).then(|| n as f64 / arrived as f64);
        DataState {
            late: self.late,
            late_share: share(self.late),
            duplicate: self.duplicate,
            duplicate_share: share(self.duplicate),
            future: self.future,
            set_aside: self.set_aside,
            mixed_units: self.mixed_units,
            ineligible_exposures: self.ineligible,
            ineligible_units: self.ineligible_units,
            unknown_units: self.unknown_units,
            placed_units: checked.map(|(placed, _)| placed),
            misplaced_units: checked.map(|(_, misplaced)| misplaced),
        }
    }
}
