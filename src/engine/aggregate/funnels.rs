//! Funnels: how far each workflow has come, by the pane in which it began. Distinct by workflow: what is said twice counts once.
//!
//! A workflow is open until it is completed, abandoned explicitly, or its limit passes; so each counts under one of these. It is remembered
//! for as long again, to tell a late completion and a restart from a new workflow.

use super::keys::{Key, KeyMap};
use crate::engine::pane::{Progress, Stride};
use crate::engine::shape::Renumber;
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A workflow in one funnel of one experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flow {
    experiment: u32,
    funnel: u8,
    bucket: u8,
    stage: Stage,
    /// Bit for each step that it has reached.
    steps: u16,
    /// Pane in which its start was counted.
    begun: Pane,
    /// Last instant at which anything counts as in time.
    deadline: Millis,
    /// Until when it is remembered.
    forget: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Stage {
    /// Steps or an end have overtaken the start: whether it was completed, and when.
    Early(Option<(bool, Millis)>),
    Open,
    Completed,
    Late,
    Abandoned,
    TimedOut,
}

/// What happens to a workflow, at an instant of event time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    Start { begun: Pane, within: Millis },
    Step(u8),
    Completed,
    Abandoned,
}

/// Where it happens.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub experiment: u32,
    pub funnel: u8,
    pub bucket: u8,
}

/// What holds for all workflows of a partition at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub pane_ms: Millis,
    /// Until when what overtakes its start waits for it.
    pub patience: Millis,
    pub max: usize,
}

/// See the module. All times are event time.
#[derive(Default, Serialize, Deserialize)]
pub struct Funnels {
    flows: KeyMap<Flow>,
    /// Panes at whose end a workflow is looked at again.
    timers: BTreeMap<Pane, Vec<Key>>,
    /// Workflows that there was no room for.
    pub dropped: u64,
}

impl Funnels {
    /// Takes in what happens to the workflow `key` at `at`; `say` is told what that changes.
    pub fn take(&mut self, key: Key, place: Place, what: What, at: Millis, bounds: Bounds, mut say: impl FnMut(Stride, i64)) {
        let Some(flow) = self.flows.get_mut(&key) else { return self.meet(key, place, what, at, bounds, say) };
        if let (Stage::Early(end), What::Start { begun, within }) = (flow.stage, what) {
            let steps = flow.steps;
            *flow = Flow { begun, ..Flow::open(place, at, within) };
            let (deadline, open) = (Pane::of(flow.deadline, bounds.pane_ms), flow);
            open.say(Progress::Started, 1, &mut say);
            (0..16).filter(|i| steps & (1 << i) != 0).for_each(|i| open.reach(i, &mut say));
            if let Some((completed, at)) = end {
                open.end(completed, at, &mut say);
            }
            self.timers.entry(deadline).or_default().push(key);
            return;
        }
        match what {
            What::Start { .. } => flow.restart(at, &mut say),
            What::Step(step) if matches!(flow.stage, Stage::Early(_)) => flow.steps |= 1 << step,
            What::Step(step) if at <= flow.deadline => flow.reach(step, &mut say),
            What::Step(_) => {}
            What::Completed => flow.end(true, at, &mut say),
            What::Abandoned => flow.end(false, at, &mut say),
        }
    }

    /// The first that is heard of a workflow.
    fn meet(&mut self, key: Key, place: Place, what: What, at: Millis, bounds: Bounds, mut say: impl FnMut(Stride, i64)) {
        if self.flows.len() >= bounds.max {
            self.dropped += 1;
            return;
        }
        let waiting =
            |steps: u16, end: Option<(bool, Millis)>| Flow { stage: Stage::Early(end), steps, ..Flow::open(place, bounds.patience, 0) };
        let flow = match what {
            What::Start { begun, within } => Flow { begun, ..Flow::open(place, at, within) },
            What::Step(step) => waiting(1 << step, None),
            What::Completed => waiting(0, Some((true, at))),
            What::Abandoned => waiting(0, Some((false, at))),
        };
        if matches!(what, What::Start { .. }) {
            flow.say(Progress::Started, 1, &mut say);
        }
        self.timers.entry(Pane::of(flow.deadline, bounds.pane_ms)).or_default().push(key);
        self.flows.insert(key, flow);
    }

    /// The next pane at whose end a timer fires.
    pub fn next_timer(&self) -> Option<Pane> {
        self.timers.keys().next().copied()
    }

    /// Fires the timers of all panes up to `pane`, which closes now.
    pub fn expire(&mut self, pane: Pane, pane_ms: Millis, mut say: impl FnMut(Stride, i64)) {
        let now = pane.end(pane_ms);
        while let Some(entry) = self.timers.first_entry().filter(|e| *e.key() <= pane) {
            for key in entry.remove() {
                let Some(flow) = self.flows.get_mut(&key) else { continue };
                if flow.forget < now {
                    flow.pass(&mut say);
                    self.flows.remove(&key);
                } else if flow.deadline < now {
                    flow.pass(&mut say);
                    let forget = Pane::of(flow.forget, pane_ms);
                    self.timers.entry(forget).or_default().push(key);
                }
            }
        }
    }

    /// Gives experiments and funnels the numbers of another catalog; what has none there is dropped.
    pub fn renumber(&mut self, by: &Renumber) {
        let now = |flow: &mut Flow| {
            flow.funnel = by.funnel(flow.experiment, flow.funnel)?;
            flow.experiment = by.experiment(flow.experiment)?;
            Some(())
        };
        self.flows.retain(|_, flow| now(flow).is_some());
    }
}

impl Flow {
    fn open(place: Place, at: Millis, within: Millis) -> Flow {
        let Place { experiment, funnel, bucket } = place;
        let deadline = at.saturating_add(within);
        let forget = deadline.saturating_add(within);
        Flow { experiment, funnel, bucket, stage: Stage::Open, steps: 0, begun: Pane(0), deadline, forget }
    }

    fn say(&self, progress: Progress, by: i64, say: &mut impl FnMut(Stride, i64)) {
        let &Flow { experiment, funnel, bucket, begun, .. } = self;
        say(Stride { experiment, funnel, bucket, begun, progress }, by);
    }

    fn reach(&mut self, step: u8, say: &mut impl FnMut(Stride, i64)) {
        if self.steps & (1 << step) == 0 {
            self.steps |= 1 << step;
            self.say(Progress::Step(step), 1, say);
        }
    }

    fn turn(&mut self, stage: Stage, say: &mut impl FnMut(Stride, i64)) {
        if let Some(before) = self.stage.counted() {
            self.say(before, -1, say);
        }
        if let Some(now) = stage.counted() {
            self.say(now, 1, say);
        }
        self.stage = stage;
    }

    /// Begun once more under its id: what was abandoned is open again, until its first limit.
    fn restart(&mut self, at: Millis, say: &mut impl FnMut(Stride, i64)) {
        self.say(Progress::Restarted, 1, say);
        if self.stage == Stage::Abandoned && at <= self.deadline {
            self.turn(Stage::Open, say);
        }
    }

    /// A completion outweighs everything else that was said of the workflow.
    fn end(&mut self, completed: bool, at: Millis, say: &mut impl FnMut(Stride, i64)) {
        let in_time = at <= self.deadline;
        match (self.stage, completed) {
            (Stage::Early(None | Some((false, _))), _) => self.stage = Stage::Early(Some((completed, at))),
            (Stage::Early(_) | Stage::Completed, _) => {}
            (Stage::Late, true) if in_time => self.turn(Stage::Completed, say),
            (Stage::Late, _) => {}
            (_, true) => self.turn(if in_time { Stage::Completed } else { Stage::Late }, say),
            (Stage::Open | Stage::TimedOut, false) if in_time => self.turn(Stage::Abandoned, say),
            (_, false) => {}
        }
    }

    /// The limit has passed.
    fn pass(&mut self, say: &mut impl FnMut(Stride, i64)) {
        if self.stage == Stage::Open {
            self.turn(Stage::TimedOut, say);
        }
    }
}

impl Stage {
    /// What a workflow in this stage counts under.
    fn counted(self) -> Option<Progress> {
        match self {
            Stage::Early(_) | Stage::Open => None,
            Stage::Completed => Some(Progress::Completed),
            Stage::Late => Some(Progress::CompletedLate),
            Stage::Abandoned => Some(Progress::Abandoned),
            Stage::TimedOut => Some(Progress::TimedOut),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { experiment: 0, funnel: 0, bucket: 1 };
    const START: What = What::Start { begun: Pane(0), within: 10_000 };

    /// A partition's funnels, and what they have said so far.
    #[derive(Default)]
    struct Told {
        funnels: Funnels,
        sums: BTreeMap<Progress, i64>,
    }

    impl Told {
        fn take(&mut self, key: Key, what: What, at: Millis) {
            let bounds = Bounds { pane_ms: 1_000, patience: at + 30_000, max: 10 };
            self.funnels.take(key, PLACE, what, at, bounds, |stride, by| *self.sums.entry(stride.progress).or_default() += by);
        }

        fn pass(&mut self, pane: i64) {
            self.funnels.expire(Pane(pane), 1_000, |stride, by| *self.sums.entry(stride.progress).or_default() += by);
        }

        fn sums(&self) -> Vec<(Progress, i64)> {
            self.sums.iter().filter(|(_, n)| **n != 0).map(|(p, n)| (*p, *n)).collect()
        }
    }

    #[test]
    fn what_is_said_twice_counts_once_and_restarts_as_such() {
        let mut told = Told::default();
        for (what, at) in [(START, 100), (What::Step(1), 200), (What::Step(0), 300), (What::Step(1), 400), (START, 500)] {
            told.take(7, what, at);
        }
        told.take(7, What::Completed, 600);
        told.take(7, What::Completed, 700);
        told.take(7, What::Abandoned, 800);
        told.pass(40);
        use Progress::{Completed, Restarted, Started, Step};
        assert_eq!(told.sums(), [(Started, 1), (Restarted, 1), (Step(0), 1), (Step(1), 1), (Completed, 1)]);
        assert!(told.funnels.flows.is_empty() && told.funnels.timers.is_empty());
    }

    #[test]
    fn a_workflow_counts_under_one_end_and_a_completion_outweighs_the_others() {
        let ends: [(&[(What, Millis)], Progress); 6] = [
            (&[(What::Completed, 10_000)], Progress::Completed),
            (&[(What::Completed, 10_001)], Progress::CompletedLate),
            (&[(What::Abandoned, 5_000)], Progress::Abandoned),
            (&[(What::Abandoned, 5_000), (What::Completed, 6_000)], Progress::Completed),
            (&[(What::Abandoned, 5_000), (START, 6_000)], Progress::TimedOut),
            (&[(What::Abandoned, 10_500)], Progress::TimedOut),
        ];
        for (said, end) in ends {
            let mut told = Told::default();
            told.take(1, START, 0);
            said.iter().for_each(|(what, at)| told.take(1, *what, *at));
            told.pass(10);
            let sums = told.sums();
            assert_eq!(sums.iter().filter(|(p, _)| *p > Progress::Restarted).collect::<Vec<_>>(), [&(end, 1)], "{said:?}");
        }
    }

    #[test]
    fn a_late_completion_is_seen_for_as_long_again_as_the_limit() {
        for (at, late) in [(19_500, 1), (21_500, 0)] {
            let mut told = Told::default();
            told.take(1, START, 0);
            told.pass(10);
            assert_eq!(told.sums[&Progress::TimedOut], 1);
            told.pass(at / 1_000 - 1);
            told.take(1, What::Completed, at);
            assert_eq!(told.sums.get(&Progress::CompletedLate).copied().unwrap_or(0), late, "{at}");
            assert_eq!(told.sums[&Progress::TimedOut], 1 - late);
        }
    }

    #[test]
    fn what_overtakes_its_start_waits_for_it() {
        let mut told = Told::default();
        told.take(1, What::Step(2), 50);
        told.take(1, What::Completed, 60);
        assert_eq!(told.sums(), []);
        told.take(1, START, 40);
        assert_eq!(told.sums(), [(Progress::Started, 1), (Progress::Step(2), 1), (Progress::Completed, 1)]);
        told.take(2, What::Step(2), 50);
        told.pass(31);
        told.take(2, START, 40_000);
        assert_eq!(told.sums[&Progress::Step(2)], 1, "nobody waits for ever");
    }

    #[test]
    fn workflows_are_bounded() {
        let mut told = Told::default();
        (0..12).for_each(|key| told.take(key, START, 0));
        assert_eq!((told.sums[&Progress::Started], told.funnels.dropped), (10, 2));
    }
}
