//! Who has been exposed to what: the observed assignments of one partition.

use super::keys::{Key, KeyMap};
use super::profiles::UNKNOWN;
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// A unit's first exposure to one experiment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Event time of the first exposure.
    pub since: Millis,
    pub experiment: u32,
    /// The bucket of the first exposure; it stays.
    pub bucket: u8,
    /// The unit has been seen in another bucket, too.
    pub mixed: bool,
    /// It has been exposed although it must not take part.
    pub ineligible: bool,
    /// It has had an event; kept where the rule asks for missing users.
    heard: bool,
    /// Panes from that of `since` to the unit's cohort.
    lag: u16,
    /// Number of the unit's profile, or [`UNKNOWN`].
    pub profile: u16,
}

impl Assignment {
    /// The unit does not count (any more).
    pub fn is_aside(&self) -> bool {
        self.mixed || self.ineligible
    }

    /// Forgets what other rules found.
    pub fn renew(&mut self) {
        (self.ineligible, self.heard) = (false, false);
    }

    /// The pane whose cohort the unit belongs to: that of the exposure that was read first. It stays, even when an earlier exposure
    /// is read later.
    pub fn cohort(&self, pane_ms: Millis) -> Pane {
        Pane(Pane::of(self.since, pane_ms).0 + i64::from(self.lag))
    }
}

/// What an exposure meant for its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposed {
    First,
    Again,
    /// First time in a bucket other than its own.
    Mixed,
    /// There is no room to remember it.
    Full,
}

/// See the module. At about 60 bytes for each unit of one experiment.
#[derive(Default)]
pub struct Units {
    map: KeyMap<SmallVec<[Assignment; 1]>>,
    assignments: usize,
    /// Changes since the last snapshot, in order.
    changed: Vec<(Key, Assignment)>,
}

impl Units {
    pub fn expose(&mut self, unit: Key, experiment: u32, bucket: u8, ts: Millis, pane_ms: Millis, max: usize) -> Exposed {
        let full = self.assignments >= max;
        if full && !self.map.contains_key(&unit) {
            return Exposed::Full;
        }
        let known = self.map.entry(unit).or_default();
        let Some(seen) = known.iter_mut().find(|a| a.experiment == experiment) else {
            if full {
                return Exposed::Full;
            }
            let assignment =
                Assignment { since: ts, experiment, bucket, mixed: false, ineligible: false, heard: false, lag: 0, profile: UNKNOWN };
            known.push(assignment);
            self.assignments += 1;
            self.changed.push((unit, assignment));
            return Exposed::First;
        };
        let mixed = seen.bucket != bucket && !seen.mixed;
        if mixed || ts < seen.since {
            seen.mixed |= mixed;
            if ts < seen.since {
                let moved = Pane::of(seen.since, pane_ms).0 - Pane::of(ts, pane_ms).0;
                seen.lag = seen.lag.saturating_add(u16::try_from(moved).unwrap_or(u16::MAX));
                seen.since = ts;
            }
            self.changed.push((unit, *seen));
        }
        if mixed { Exposed::Mixed } else { Exposed::Again }
    }

    /// Remembers that a known unit must not take part.
    pub fn disqualify(&mut self, unit: Key, experiment: u32) {
        self.change(unit, experiment, |seen| !std::mem::replace(&mut seen.ineligible, true));
    }

    /// Notes the profile of a unit that had none.
    pub fn learn(&mut self, unit: Key, experiment: u32, profile: u16) {
        self.change(unit, experiment, |seen| std::mem::replace(&mut seen.profile, profile) != profile);
    }

    /// Remembers that a unit of `bucket` has had an event; returns its assignment if that was the first one.
    pub fn hear(&mut self, unit: Key, experiment: u32, bucket: u8) -> Option<Assignment> {
        self.change(unit, experiment, |seen| seen.bucket == bucket && !std::mem::replace(&mut seen.heard, true))
    }

    /// Changes an assignment; returns it if `change` says that it has.
    fn change(&mut self, unit: Key, experiment: u32, change: impl FnOnce(&mut Assignment) -> bool) -> Option<Assignment> {
        let seen = self.map.get_mut(&unit)?.iter_mut().find(|a| a.experiment == experiment)?;
        let changed = change(seen).then_some(*seen);
        self.changed.extend(changed.map(|seen| (unit, seen)));
        changed
    }

    /// Assignments of a unit as of `ts`.
    pub fn of(&self, unit: Key, ts: Millis) -> impl Iterator<Item = Assignment> + '_ {
        self.map.get(&unit).into_iter().flatten().copied().filter(move |a| a.since <= ts)
    }

    /// The unit's assignment in one experiment, whatever the time.
    pub fn in_experiment(&self, unit: Key, experiment: u32) -> Option<Assignment> {
        self.map.get(&unit)?.iter().find(|a| a.experiment == experiment).copied()
    }

    /// Assignments remembered: units times experiments.
    pub fn len(&self) -> usize {
        self.assignments
    }

    /// Changes since the last call, in order.
    pub fn take_changes(&mut self) -> Vec<(Key, Assignment)> {
        std::mem::take(&mut self.changed)
    }

    /// Replays changes from a checkpoint.
    pub fn apply(&mut self, unit: Key, assignment: Assignment) {
        let known = self.map.entry(unit).or_default();
        match known.iter_mut().find(|a| a.experiment == assignment.experiment) {
            Some(seen) => *seen = assignment,
            None => {
                known.push(assignment);
                self.assignments += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bucket_stays_and_a_second_one_is_noticed_once() {
        let mut units = Units::default();
        assert_eq!(units.expose(7, 0, 1, 2_100, 1_000, 10), Exposed::First);
        assert_eq!(units.expose(7, 0, 1, 90, 1_000, 10), Exposed::Again, "an earlier exposure that came late");
        assert_eq!(units.expose(7, 0, 0, 110, 1_000, 10), Exposed::Mixed);
        assert_eq!(units.expose(7, 0, 0, 120, 1_000, 10), Exposed::Again);
        let found: Vec<_> = units.of(7, 95).collect();
        assert_eq!(
            found,
            [Assignment { since: 90, experiment: 0, bucket: 1, mixed: true, ineligible: false, heard: false, lag: 2, profile: UNKNOWN }]
        );
        assert_eq!(found[0].cohort(1_000), Pane(2), "the cohort of the exposure that was read first");
        assert_eq!(units.of(7, 89).count(), 0, "not exposed yet");
    }

    #[test]
    fn changes_rebuild_the_same_units() {
        let mut units = Units::default();
        for i in 0..50u64 {
            units.expose(i % 20, (i % 3) as u32, (i % 2) as u8, i as i64, 1_000, 1_000);
        }
        let mut again = Units::default();
        for (unit, assignment) in units.take_changes() {
            again.apply(unit, assignment);
        }
        assert_eq!(again.len(), units.len());
        for unit in 0..20 {
            assert_eq!(again.of(unit, 1_000).collect::<Vec<_>>(), units.of(unit, 1_000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_full_table_takes_no_more_units_and_says_so() {
        let mut units = Units::default();
        assert_eq!(units.expose(1, 0, 0, 0, 1_000, 1), Exposed::First);
        assert_eq!(units.expose(2, 0, 0, 0, 1_000, 1), Exposed::Full);
        assert_eq!(units.expose(1, 1, 0, 0, 1_000, 1), Exposed::Full);
        assert_eq!(units.expose(1, 0, 0, 5, 1_000, 1), Exposed::Again);
        assert_eq!(units.len(), 1);
    }
}
