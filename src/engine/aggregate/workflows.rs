//! Workflows in progress: begun, and neither completed nor abandoned yet. A timer abandons what exceeds its limit.

use super::keys::{Key, KeyMap};
use crate::engine::shape::Renumber;
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// The signal of a bucket that a workflow counts for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watcher {
    pub experiment: u32,
    pub bucket: u8,
    pub signal: u16,
    /// Pane in which the start was counted.
    pub pane: Pane,
    /// Last instant at which a completion counts.
    pub deadline: Millis,
    /// Age of the unit's cohort, and its batch, as they were counted at the start.
    pub age: u32,
    pub batch: u16,
    /// Number of the unit's profile.
    pub profile: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Flow {
    Open(SmallVec<[Watcher; 1]>),
    /// Its end overtook its start.
    Ended {
        abandoned: bool,
        at: Millis,
    },
}

/// See the module. All times are event time.
#[derive(Default, Serialize, Deserialize)]
pub struct Workflows {
    flows: KeyMap<Flow>,
    /// Panes at whose end a flow is looked at again.
    timers: BTreeMap<Pane, Vec<Key>>,
    /// Starts that were not watched because too many were open.
    pub dropped: u64,
}

/// What a start meant for one watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    Watched,
    /// Counted; it had ended well before its start was read.
    Completed,
    /// Counted; it had been abandoned before its start was read.
    Abandoned,
    /// This start was counted before.
    Again,
    Dropped,
}

impl Workflows {
    /// Begins to watch a workflow.
    pub fn start(&mut self, key: Key, watcher: Watcher, pane_ms: Millis, max: usize) -> Started {
        let full = self.flows.len() >= max;
        match self.flows.get_mut(&key) {
            Some(Flow::Open(watchers)) => {
                if watchers.iter().any(|w| (w.experiment, w.signal) == (watcher.experiment, watcher.signal)) {
                    return Started::Again;
                }
                watchers.push(watcher);
            }
            Some(Flow::Ended { abandoned, at }) => {
                return if *abandoned || *at > watcher.deadline { Started::Abandoned } else { Started::Completed };
            }
            None if full => {
                self.dropped += 1;
                return Started::Dropped;
            }
            None => {
                self.flows.insert(key, Flow::Open(SmallVec::from_elem(watcher, 1)));
            }
        }
        self.timers.entry(Pane::of(watcher.deadline, pane_ms)).or_default().push(key);
        Started::Watched
    }

    /// Ends a workflow at `at`; returns the watchers for which it counts as abandoned. An end without a start is remembered until
    /// the end of pane `keep`, in case the start comes late.
    pub fn end(&mut self, key: Key, abandoned: bool, at: Millis, keep: Pane, max: usize) -> SmallVec<[Watcher; 1]> {
        match self.flows.get(&key) {
            Some(Flow::Open(_)) => match self.flows.remove(&key) {
                Some(Flow::Open(mut watchers)) => {
                    watchers.retain(|w| abandoned || at > w.deadline);
                    watchers
                }
                _ => SmallVec::new(),
            },
            Some(Flow::Ended { .. }) => SmallVec::new(),
            None => {
                if self.flows.len() < max {
                    self.flows.insert(key, Flow::Ended { abandoned, at });
                    self.timers.entry(keep).or_default().push(key);
                }
                SmallVec::new()
            }
        }
    }

    /// Gives experiments and signals the numbers of another catalog; what has none there is dropped.
    pub fn renumber(&mut self, by: &Renumber) {
        let now = |w: &mut Watcher| {
            w.signal = by.signal(w.experiment, w.signal)?;
            w.experiment = by.experiment(w.experiment)?;
            Some(())
        };
        self.flows.retain(|_, flow| match flow {
            Flow::Ended { .. } => true,
            Flow::Open(watchers) => {
                watchers.retain(|w| now(w).is_some());
                !watchers.is_empty()
            }
        });
    }

    /// The next pane at whose end a timer fires.
    pub fn next_timer(&self) -> Option<Pane> {
        self.timers.keys().next().copied()
    }

    /// Fires the timers of all panes up to `pane`, which closes now: the watchers whose workflow is thereby abandoned.
    pub fn expire(&mut self, pane: Pane, pane_ms: Millis, mut abandoned: impl FnMut(Watcher)) {
        while let Some(entry) = self.timers.first_entry().filter(|e| *e.key() <= pane) {
            for key in entry.remove() {
                let hashbrown::hash_map::Entry::Occupied(mut flow) = self.flows.entry(key) else { continue };
                let gone = match flow.get_mut() {
                    Flow::Open(watchers) => {
                        watchers.retain(|w| {
                            let due = w.deadline < pane.end(pane_ms);
                            if due {
                                abandoned(*w);
                            }
                            !due
                        });
                        watchers.is_empty()
                    }
                    Flow::Ended { .. } => true,
                };
                if gone {
                    flow.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher(pane: i64, deadline: Millis) -> Watcher {
        Watcher { experiment: 0, bucket: 1, signal: 0, pane: Pane(pane), deadline, age: 0, batch: 0, profile: 0 }
    }

    fn expired(flows: &mut Workflows, pane: i64) -> usize {
        let mut n = 0;
        flows.expire(Pane(pane), 1_000, |_| n += 1);
        n
    }

    #[test]
    fn a_workflow_that_is_not_completed_is_abandoned_when_its_pane_closes() {
        let mut flows = Workflows::default();
        assert_eq!(flows.start(1, watcher(0, 5_500), 1_000, 10), Started::Watched);
        assert_eq!(flows.start(1, watcher(0, 5_500), 1_000, 10), Started::Again);
        assert_eq!(flows.next_timer(), Some(Pane(5)));
        assert_eq!(expired(&mut flows, 4), 0);
        assert_eq!(expired(&mut flows, 5), 1);
        assert_eq!(expired(&mut flows, 9), 0);
    }

    #[test]
    fn a_completion_counts_until_the_deadline() {
        let mut flows = Workflows::default();
        flows.start(1, watcher(0, 5_500), 1_000, 10);
        flows.start(2, watcher(0, 5_500), 1_000, 10);
        assert!(flows.end(1, false, 5_500, Pane(40), 10).is_empty());
        assert_eq!(flows.end(2, false, 5_501, Pane(40), 10).len(), 1, "completed too late");
        assert_eq!(expired(&mut flows, 9), 0);
    }

    #[test]
    fn an_end_that_overtakes_its_start_is_remembered() {
        let mut flows = Workflows::default();
        assert!(flows.end(1, false, 400, Pane(30), 10).is_empty());
        assert!(flows.end(2, true, 400, Pane(30), 10).is_empty());
        assert_eq!(flows.start(1, watcher(0, 5_500), 1_000, 10), Started::Completed);
        assert_eq!(flows.start(2, watcher(0, 5_500), 1_000, 10), Started::Abandoned);
        assert_eq!(expired(&mut flows, 30), 0);
        assert_eq!(flows.start(1, watcher(31, 40_000), 1_000, 10), Started::Watched, "forgotten");
    }

    #[test]
    fn open_workflows_are_bounded() {
        let mut flows = Workflows::default();
        assert_eq!(flows.start(1, watcher(0, 10), 1_000, 1), Started::Watched);
        assert_eq!(flows.start(2, watcher(0, 10), 1_000, 1), Started::Dropped);
        assert_eq!(flows.dropped, 1);
    }
}
