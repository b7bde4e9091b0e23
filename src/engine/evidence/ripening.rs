//! Units that wait until the day that is asked of them is over: numerator and denominator come together, in both arms alike.

use super::shares::Arm;
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const DAY: Millis = 86_400_000;
const HOUR: Millis = 3_600_000;

/// See the module. Cohorts wait in groups of an hour, until the last of them is due.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ripening {
    /// Panes from the end of a group until it counts.
    wait: i64,
    /// Panes in a group.
    group: i64,
    /// The last group that has been handed out.
    handed: i64,
    /// By group.
    waiting: BTreeMap<i64, Vec<Waiting>>,
}

/// Units of one bucket and period of allocation, and those of them with a hit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    pub bucket: u32,
    pub period: u32,
    pub arm: Arm,
}

impl Ripening {
    /// For hits on the given day after the first exposure, counted from 0.
    pub fn new(day: u32, pane_ms: Millis) -> Ripening {
        let panes = |ms: Millis| (ms + pane_ms - 1).div_euclid(pane_ms);
        let wait = panes((Millis::from(day) + 1) * DAY);
        Ripening { wait, group: panes(HOUR), handed: i64::MIN, waiting: BTreeMap::new() }
    }

    /// Units of a cohort, or hits of them. What comes when the cohort has been handed out is left out, in both arms alike.
    pub fn hold(&mut self, cohort: Pane, bucket: usize, period: usize, more: Arm) {
        let group = cohort.0.div_euclid(self.group);
        if group <= self.handed {
            return;
        }
        let (bucket, period) = (bucket as u32, period as u32);
        let waiting = self.waiting.entry(group).or_default();
        match waiting.iter_mut().find(|w| (w.bucket, w.period) == (bucket, period)) {
            Some(w) => w.arm.add(more),
            None => waiting.push(Waiting { bucket, period, arm: more }),
        }
    }

    /// Hands out those whose day is over by the end of `pane`.
    pub fn due(&mut self, pane: Pane) -> Vec<Waiting> {
        self.handed = self.handed.max((pane.0 + 1 - self.wait).div_euclid(self.group) - 1);
        let mut due = Vec::new();
        while let Some(entry) = self.waiting.first_entry().filter(|e| *e.key() <= self.handed) {
            due.extend(entry.remove());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_count_when_the_day_of_the_last_of_their_hour_is_over() {
        let mut ripening = Ripening::new(1, 1_000);
        ripening.hold(Pane(10), 1, 0, Arm { n: 4, x: 0 });
        ripening.hold(Pane(3_599), 1, 0, Arm { n: 2, x: 1 });
        ripening.hold(Pane(3_600), 1, 0, Arm { n: 1, x: 0 });
        let end = 3_600 + 2 * 86_400;
        assert!(ripening.due(Pane(end - 2)).is_empty());
        assert_eq!(ripening.due(Pane(end - 1)), [Waiting { bucket: 1, period: 0, arm: Arm { n: 6, x: 1 } }]);
        ripening.hold(Pane(10), 1, 0, Arm { n: 0, x: 1 });
        assert!(ripening.due(Pane(end)).is_empty(), "too late");
        assert_eq!(ripening.due(Pane(end + 3_599)).len(), 1);
        assert!(ripening.waiting.is_empty());
    }
}
