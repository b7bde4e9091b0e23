//! What exposed units have done so far, for metrics whose observation is the unit: who has had a hit, and how much each adds up to.

use super::keys::{Key, KeyMap, KeySet};
use crate::engine::pane::Sums;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Sums of one unit: its values, and its covariate once one has been seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    y: f64,
    x: Option<f64>,
}

/// See the module. A key is that of a unit in one signal of one plan: [`of`].
#[derive(Default)]
pub struct Tallies {
    hits: KeySet,
    sums: KeyMap<Tally>,
    /// Units that have come once with an event of a kind; `None` from when one came again.
    once: BTreeMap<Key, Option<KeySet>>,
    /// Changes since the last snapshot, in order.
    changed: Changes,
    /// Units that there was no room to remember; they do not count.
    pub dropped: u64,
}

/// What a checkpoint appends.
#[derive(Default, Serialize, Deserialize)]
pub struct Changes {
    hits: Vec<Key>,
    sums: Vec<(Key, Tally)>,
    /// Kind and unit, in order.
    once: Vec<(Key, Key)>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.hits.is_empty() && self.sums.is_empty() && self.once.is_empty()
    }
}

/// The key of a unit in a signal; `plan` is [`crate::engine::plan::Plan::signature`], so that changed rules begin anew.
pub fn of(unit: Key, plan: u64, signal: u16) -> Key {
    // Odd multipliers spread both parts over all bits (golden ratio, and that of SplitMix64).
    unit ^ plan.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(signal).wrapping_add(1).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

impl Tallies {
    /// Whether this is the unit's first hit.
    pub fn hit(&mut self, key: Key, max: usize) -> bool {
        if self.hits.len() >= max && !self.hits.contains(&key) {
            self.dropped += 1;
            return false;
        }
        let first = self.hits.insert(key);
        if first {
            self.changed.hits.push(key);
        }
        first
    }

    /// Whether a unit may have had an event of this kind before. Once one has, so may all others: that is known for nothing, and
    /// of kinds that do not repeat for a set of units.
    pub fn again(&mut self, kind: Key, unit: Key, max: usize) -> bool {
        let once = self.once.entry(kind).or_insert_with(|| Some(KeySet::default()));
        let Some(units) = once else { return true };
        self.changed.once.push((kind, unit));
        let full = units.len() >= max;
        if full {
            // As two changes of one unit are read.
            self.changed.once.push((kind, unit));
        }
        if full || !units.insert(unit) {
            *once = None;
        }
        once.is_none()
    }

    /// Adds a value to the unit's sum; returns what that adds to the sums over all units. The covariate counts once.
    pub fn add(&mut self, key: Key, value: f64, covariate: Option<f64>, max: usize) -> Option<Sums> {
        if self.sums.len() >= max && !self.sums.contains_key(&key) {
            self.dropped += 1;
            return None;
        }
        let tally = self.sums.entry(key).or_default();
        let before = *tally;
        tally.y += value;
        tally.x = tally.x.or(covariate);
        let (x0, x1) = (before.x.unwrap_or(0.0), tally.x.unwrap_or(0.0));
        self.changed.sums.push((key, *tally));
        Some(Sums {
            y: value,
            yy: tally.y * tally.y - before.y * before.y,
            x: x1 - x0,
            xx: x1 * x1 - x0 * x0,
            xy: x1 * tally.y - x0 * before.y,
        })
    }

    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changed)
    }

    /// Replays changes from a checkpoint.
    pub fn apply(&mut self, changes: Changes) {
        self.hits.extend(changes.hits);
        self.sums.extend(changes.sums);
        for (kind, unit) in changes.once {
            self.again(kind, unit, usize::MAX);
        }
        self.changed.once.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hit_counts_and_sums_follow_each_unit() {
        let mut tallies = Tallies::default();
        assert!(tallies.hit(1, 9) && !tallies.hit(1, 9) && tallies.hit(2, 9));
        let mut total = Sums::default();
        for (unit, y, x) in [(1, 3.0, Some(2.0)), (2, 1.0, None), (1, 4.0, Some(9.0)), (2, 0.5, Some(4.0))] {
            total += tallies.add(unit, y, x, 9).unwrap();
        }
        assert_eq!(total, Sums { y: 8.5, yy: 49.0 + 2.25, x: 6.0, xx: 20.0, xy: 14.0 + 6.0 });
        let mut again = Tallies::default();
        again.apply(tallies.take_changes());
        assert!(!again.hit(2, 9));
        assert_eq!(again.add(1, 1.0, None, 9), tallies.add(1, 1.0, None, 9));
    }

    #[test]
    fn a_full_table_counts_no_further_unit() {
        let mut tallies = Tallies::default();
        assert!(tallies.hit(1, 1) && !tallies.hit(2, 1));
        assert!(tallies.add(1, 1.0, None, 1).is_some() && tallies.add(2, 1.0, None, 1).is_none());
        assert_eq!(tallies.dropped, 2);
    }

    #[test]
    fn a_unit_that_comes_again_is_noticed_and_then_nobody_is_asked() {
        let mut tallies = Tallies::default();
        assert!(!tallies.again(1, 7, 9) && !tallies.again(1, 8, 9) && !tallies.again(2, 7, 9));
        let mut restored = Tallies::default();
        restored.apply(tallies.take_changes());
        for tallies in [&mut tallies, &mut restored] {
            assert!(tallies.again(1, 8, 9) && tallies.again(1, 99, 9), "no kind that repeats is kept");
            assert!(!tallies.again(2, 8, 2) && tallies.again(2, 9, 2), "no room to tell");
        }
    }
}
