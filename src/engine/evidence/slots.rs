//! A ring of slots of event time whose older members merge: many recent moments, and fewer and fewer old ones, from which a test can be
//! started anew. To drop a start, by merging it into the slot before, only lowers an e-detector (Shin, Ramdas, Rinaldo 2024).

use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What a slot holds.
pub trait Content {
    /// Slots of each length, and the logarithm of the longest length: a ring reaches back `PER_LENGTH * 2^(TOP + 1)` slots.
    const PER_LENGTH: usize;
    const TOP: u8;

    /// Adds the slot that follows.
    fn absorb(&mut self, newer: Self);
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slots<T> {
    /// Oldest first; the last one is open.
    slots: VecDeque<Slot<T>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slot<T> {
    pub start: Pane,
    /// log2 of its length.
    level: u8,
    pub content: T,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { slots: VecDeque::new() }
    }
}

impl<T: Content> Slots<T> {
    /// The slot that holds `pane`, opened if it is new. `None` for a pane older than all slots.
    pub fn at(&mut self, pane: Pane, length: i64, fresh: impl FnOnce() -> T) -> Option<&mut T> {
        let start = Pane(pane.0 - pane.0.rem_euclid(length.max(1)));
        if self.slots.back().is_none_or(|last| last.start < start) {
            self.slots.push_back(Slot { start, level: 0, content: fresh() });
            self.compact();
        }
        let after = self.slots.partition_point(|slot| slot.start <= pane);
        after.checked_sub(1).map(|at| &mut self.slots[at].content)
    }

    /// Where the oldest begins.
    pub fn oldest(&self) -> Option<Pane> {
        self.slots.front().map(|slot| slot.start)
    }

    /// Newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Slot<T>> {
        self.slots.iter().rev()
    }

    /// Merges the two oldest slots of each length of which there are too many; the open one takes no part.
    fn compact(&mut self) {
        let mut end = self.slots.len() - 1;
        for level in 0..=T::TOP {
            let first = self.slots.iter().take(end).position(|slot| slot.level <= level).unwrap_or(end);
            if end - first <= T::PER_LENGTH {
                return;
            }
            if level == T::TOP {
                self.slots.pop_front();
                return;
            }
            if let Some(newer) = self.slots.remove(first + 1) {
                let older = &mut self.slots[first];
                older.content.absorb(newer.content);
                older.level = level + 1;
            }
            end = first + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Content for Vec<i64> {
        const PER_LENGTH: usize = 4;
        const TOP: u8 = 8;

        fn absorb(&mut self, newer: Self) {
            self.extend(newer);
        }
    }

    #[test]
    fn recent_slots_are_short_and_old_ones_merge() {
        let mut slots: Slots<Vec<i64>> = Slots::default();
        for pane in 0..5_000 {
            slots.at(Pane(pane), 5, Vec::new).unwrap().push(pane);
        }
        let held: Vec<i64> = slots.slots.iter().flat_map(|s| s.content.clone()).collect();
        assert!(held.windows(2).all(|w| w[1] == w[0] + 1) && held.last() == Some(&4_999), "nothing is lost but the oldest");
        let starts: Vec<i64> = slots.newest_first().map(|s| (5_000 - s.start.0) / 5).collect();
        assert_eq!(starts[..6], [1, 2, 3, 4, 6, 8]);
        assert!(starts.len() <= 40 && *starts.last().unwrap() >= 900, "{starts:?}");
        assert!(starts.windows(2).all(|w| w[1] as f64 <= 2.1 * w[0] as f64));
    }

    #[test]
    fn late_panes_find_their_slot() {
        let mut slots: Slots<Vec<i64>> = Slots::default();
        for pane in [12, 30, 14, 7] {
            if let Some(slot) = slots.at(Pane(pane), 5, Vec::new) {
                slot.push(pane);
            }
        }
        assert_eq!(slots.slots.iter().map(|s| s.content.clone()).collect::<Vec<_>>(), [vec![12, 14], vec![30]]);
    }
}
