//! All experiments: puts the panes of all partitions in order and hands them to the judges.
//!
//! A pane is judged when every live partition has passed it, so verdicts do not depend on how partitions interleave. A partition that
//! is assigned but has not said anything yet holds the others back; one known to be empty does not.

mod waiting;

use super::brakes::Brakes;
use super::decision::{Decision, Output};
use super::judge::{Judge, Operation, Operator};
use super::kept::{self, Change, Changes, Kept};
use super::pane::{CellId, Emission, Observation, PaneBatch, Pool};
use super::plan::{BlastRadius, Catalog, SharedCause};
use super::shape::{Plans, Renumber, Shape};
use super::shared_cause::Breaches;
use super::state::{BinsState, CloseLook, ExperimentState};
use super::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use waiting::{Panes, Waiting, Whole};

/// See the module.
pub struct Fleet {
    judges: Vec<Judge>,
    /// Of each judge's plan.
    shapes: Vec<Arc<Shape>>,
    /// First cell of each judge's plan, and where those of the last one end.
    cells: Vec<CellId>,
    partitions: BTreeMap<i32, Progress>,
    /// What partitions have seen in panes that have not been judged.
    waiting: Waiting,
    /// The panes that are being judged.
    pools: Vec<Pool>,
    /// Room to sort them in.
    room: Vec<Observation>,
    /// Last pane judged, and the last one that any partition has closed.
    judged: Option<Pane>,
    furthest: Option<Pane>,
    pane_ms: Millis,
    shared_cause: SharedCause,
    breaches: Breaches,
    blast_radius: BlastRadius,
    brakes: Brakes,
    /// What this program makes of the numbers in checkpoints is written down.
    plans_kept: bool,
    /// Parts of experiments that are not there any more.
    gone: Vec<String>,
}

/// Panes judged together at most, where so many are ready: their observations are all in memory once more.
const TOGETHER: usize = 8;

/// So many experiments do not stay in the caches from one pane to the next.
const MANY: usize = 100;

/// How far a partition has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Assigned, nothing heard yet.
    Waiting,
    /// All panes up to this one are closed.
    Closed(Pane),
    /// Known to hold nothing: does not count.
    Empty,
}

const PLANS: &str = "plans";
const STATE: &str = "state";
/// Before the name of an experiment: its judge's state.
const EXPERIMENT: &str = "experiment/";

/// What belongs to no experiment alone.
#[derive(Serialize)]
struct StateRef<'a> {
    judged: Option<Pane>,
    furthest: Option<Pane>,
    breaches: &'a Breaches,
    brakes: &'a Brakes,
}

/// What [`StateRef`] writes.
#[derive(Deserialize)]
struct State {
    /// Earlier versions kept the panes that wait here.
    #[serde(default)]
    pending: Whole,
    judged: Option<Pane>,
    #[serde(default)]
    furthest: Option<Pane>,
    breaches: Breaches,
    #[serde(default)]
    brakes: Brakes,
}

/// A Fleet from a checkpoint.
pub struct Restored {
    pub fleet: Fleet,
    /// Experiments of the same rules whose state could not be read, and why: they begin anew.
    pub lost: Vec<(String, String)>,
}

impl Fleet {
    pub fn new(catalog: &Catalog, pane_ms: Millis) -> Fleet {
        let judges = catalog.plans.iter().map(|plan| Judge::new(Arc::clone(plan), pane_ms)).collect();
        let shapes = catalog.shapes.clone();
        let cells = catalog.cells.clone();
        Fleet {
            judges,
            shapes,
            cells,
            partitions: BTreeMap::new(),
            waiting: Waiting::default(),
            pools: Vec::new(),
            room: Vec::new(),
            judged: None,
            furthest: None,
            pane_ms,
            shared_cause: SharedCause::default(),
            breaches: Breaches::default(),
            blast_radius: BlastRadius::default(),
            brakes: Brakes::default(),
            plans_kept: false,
            gone: Vec::new(),
        }
    }

    /// With another bound of what is rolled back without a person than the default one.
    #[must_use]
    pub fn braking(mut self, bound: &BlastRadius) -> Fleet {
        self.blast_radius = bound.clone();
        self
    }

    /// With another rule of when breaches share a cause than the default one.
    #[must_use]
    pub fn sharing(mut self, rule: &SharedCause) -> Fleet {
        self.shared_cause = rule.clone();
        self
    }

    /// For runs whose decisions alone matter: see [`Judge::unseen`].
    #[must_use]
    pub fn unseen(mut self) -> Fleet {
        self.judges.iter_mut().for_each(Judge::unseen);
        self
    }

    /// A partition will be read: nothing is judged beyond it from now on.
    pub fn assigned(&mut self, partition: i32) {
        self.partitions.entry(partition).or_insert(Progress::Waiting);
    }

    /// A partition is not read any more.
    pub fn revoked(&mut self, partition: i32, out: &mut Output) {
        self.partitions.remove(&partition);
        self.settle(out);
    }

    /// A partition holds no record, and so has no time of its own.
    pub fn empty(&mut self, partition: i32, out: &mut Output) {
        if let Some(progress @ Progress::Waiting) = self.partitions.get_mut(&partition) {
            *progress = Progress::Empty;
            self.settle(out);
        }
    }

    /// Takes in what an Aggregator emitted, and judges what is ready.
    pub fn take(&mut self, emission: Emission, out: &mut Output) {
        self.hear(emission, out);
        self.settle(out);
    }

    /// Takes in what an Aggregator emitted. What decides at once does; panes wait for [`Fleet::settle`].
    pub fn hear(&mut self, emission: Emission, out: &mut Output) {
        match emission {
            Emission::Urgent(urgent) => {
                let from = out.decisions.len();
                if let Some(judge) = self.judges.get_mut(urgent.experiment as usize) {
                    judge.urgent(&urgent, out);
                }
                self.weigh_together(from, out);
            }
            Emission::Pane(batch) => self.hear_pane(batch),
        }
    }

    fn hear_pane(&mut self, batch: PaneBatch) {
        // A partition that joins late may close panes that have been judged: what it saw counts in the next one.
        let pane = self.judged.map_or(batch.pane, |judged| batch.pane.max(Pane(judged.0 + 1)));
        if !batch.seen.is_empty() {
            self.waiting.hear(pane, batch.partition, batch.seen);
        }
        self.furthest = self.furthest.max(Some(batch.pane));
        let progress = self.partitions.entry(batch.partition).or_insert(Progress::Waiting);
        *progress = match *progress {
            Progress::Closed(before) => Progress::Closed(before.max(batch.pane)),
            Progress::Waiting | Progress::Empty => Progress::Closed(batch.pane),
        };
    }

    /// The last pane that all live partitions have passed, unless it has been judged.
    fn passed(&self) -> Option<Pane> {
        let mut passed: Option<Pane> = None;
        for progress in self.partitions.values() {
            match progress {
                Progress::Waiting => return None,
                Progress::Empty => {}
                Progress::Closed(pane) => passed = Some(passed.map_or(*pane, |p| p.min(*pane))),
            }
        }
        passed.filter(|p| self.judged.is_none_or(|judged| *p > judged))
    }

    /// Whether panes can be judged, but had better wait for more, with which they cost less: while they are few, and all of before `fresh`. The
    /// state of few experiments is in the caches anyway, and new panes are.
    pub fn gathers(&self, fresh: Millis) -> bool {
        let few = |passed: &Pane| self.judges.len() >= MANY && self.waiting.count(*passed) < TOGETHER;
        self.passed().filter(few).is_some_and(|passed| passed.end(self.pane_ms) < fresh)
    }

    /// Judges every pane that all live partitions have passed.
    pub fn settle(&mut self, out: &mut Output) {
        let Some(passed) = self.passed() else { return };
        let start = (out.decisions.len(), out.notices.len(), out.log.len());
        let mut ready = self.waiting.up_to(passed);
        while !ready.is_empty() {
            let later = ready.keys().nth(TOGETHER).copied().map_or_else(Panes::new, |pane| ready.split_off(&pane));
            self.judge(std::mem::replace(&mut ready, later), out);
        }
        for judge in &mut self.judges {
            judge.advance(passed, out);
        }
        self.judged = Some(passed);
        self.weigh_together(start.0, out);
        self.brakes.forget(passed.end(self.pane_ms));
        self.breaches.forget(&self.shared_cause, passed.end(self.pane_ms));
        // Judges run one after the other; what they said is put back in the order of event time.
        out.decisions[start.0..].sort_by(|a, b| (a.decided_at, &a.experiment).cmp(&(b.decided_at, &b.experiment)));
        out.notices[start.1..].sort_by(|a, b| (a.at, &a.decision.experiment).cmp(&(b.at, &b.decision.experiment)));
        out.log[start.2..].sort_by(|a, b| (a.at, &a.experiment).cmp(&(b.at, &b.experiment)));
    }

    /// Judges a few panes: experiment by experiment, so that the state of each is fetched from memory once for all of them.
    fn judge(&mut self, panes: Panes, out: &mut Output) {
        self.pools.resize_with(self.pools.len().max(panes.len()), Pool::default);
        let mut filled = Vec::new();
        for (pool, (pane, seen)) in self.pools.iter_mut().zip(panes) {
            // In the order of partitions, not that of arrival: sums of floats depend on it.
            pool.fill(seen.into_values().flatten().collect(), &mut self.room);
            filled.push((pane, pool.partials(&self.cells).peekable()));
        }
        for (experiment, judge) in self.judges.iter_mut().enumerate() {
            for (pane, partials) in &mut filled {
                if let Some((_, partial)) = partials.next_if(|(of, _)| *of == experiment) {
                    judge.pane(*pane, &partial, out);
                }
            }
        }
    }

    /// Looks at what several experiments have said since `from`: holds back what is too much, and merges the alerts of what has one cause.
    fn weigh_together(&mut self, from: usize, out: &mut Output) {
        if out.decisions.len() == from {
            return;
        }
        out.decisions[from..].sort_by(|a, b| (a.decided_at, &a.experiment).cmp(&(b.decided_at, &b.experiment)));
        for decision in &mut out.decisions[from..] {
            let own = self.index(&decision.experiment).and_then(|index| self.judges[index].plan().rate_limit);
            self.brakes.weigh(decision, own, &self.blast_radius);
        }
        let judges = &self.judges;
        self.breaches.find(&self.shared_cause, |at| judges.iter().filter(|judge| judge.plan().runs_at(at)).count(), from, out);
        for decision in out.decisions[from..].iter().filter(|d| d.shared_cause.is_some() || d.held_by.is_some()) {
            if let Some(judge) = self.judge_mut(&decision.experiment) {
                judge.amend(decision);
            }
        }
    }

    /// Event time up to which everything has been judged.
    pub fn judged_to(&self) -> Option<Millis> {
        self.judged.map(|pane| pane.end(self.pane_ms))
    }

    /// Bytes of the panes that wait for slower partitions.
    pub fn waiting_size(&self) -> usize {
        self.waiting.size()
    }

    /// One experiment with the exact evidence and interval of every guardrail.
    pub fn close_view(&self, experiment: &str) -> Option<ExperimentState> {
        Some(self.judges[self.index(experiment)?].close_view())
    }

    /// The same with histograms.
    pub fn close_look(&self, experiment: &str) -> Option<CloseLook> {
        Some(self.judges[self.index(experiment)?].close_look())
    }

    /// Histograms of one guardrail, where its values have a distribution.
    pub fn bins(&self, experiment: &str, guardrail: &str, bucket: &str) -> Option<BinsState> {
        self.judges[self.index(experiment)?].bins(guardrail, bucket)
    }

    pub fn views(&self) -> Vec<ExperimentState> {
        self.judges.iter().map(Judge::view).collect()
    }

    /// Carries out an operator's request; `None` when no such experiment is loaded.
    pub fn operate(&mut self, experiment: &str, operator: &Operator, out: &mut Output) -> Option<Result<String, String>> {
        let done = self.judge_mut(experiment)?.operate(operator, out);
        if matches!(operator.operation, Operation::Act(_) | Operation::Resume) {
            self.brakes.release(experiment);
        }
        Some(done)
    }

    /// Takes up the arming epoch of a stored decision after a restart.
    pub fn catch_up(&mut self, decision: &Decision) {
        if let Some(judge) = self.judge_mut(&decision.experiment) {
            judge.catch_up(decision);
        }
    }

    /// Takes up a stored decision after a restart.
    pub fn adopt(&mut self, decision: &Decision) {
        // What is older can share its cause with nothing that the replay decides.
        let since = self.judged_to().map_or(i64::MIN, |judged| judged - self.shared_cause.within);
        if decision.decided_at >= since {
            self.breaches.adopt(decision);
        }
        self.brakes.adopt(decision);
        if let Some(judge) = self.judge_mut(&decision.experiment) {
            judge.adopt(decision);
        }
    }

    fn index(&self, experiment: &str) -> Option<usize> {
        self.judges.binary_search_by(|j| j.plan().experiment.as_str().cmp(experiment)).ok()
    }

    fn judge_mut(&mut self, experiment: &str) -> Option<&mut Judge> {
        let index = self.index(experiment)?;
        self.judges.get_mut(index)
    }

    /// What has changed since the last call, at first everything; with `all`, the state of every experiment.
    ///
    /// # Errors
    /// The state cannot be written down: a fault of the program, after which nothing should be committed.
    pub fn snapshot(&mut self, all: bool) -> Result<Changes, String> {
        let mut changes: Changes = self.gone.drain(..).map(|name| (name, Change::Set(Vec::new()))).collect();
        let mut set = |name: String, blob| changes.push((name, Change::Set(vec![blob])));
        for judge in &mut self.judges {
            if let Some(state) = judge.snapshot(all)? {
                set(format!("{EXPERIMENT}{}", judge.plan().experiment), state);
            }
        }
        let written = |blob: Result<Vec<u8>, String>| blob.map_err(|e| format!("the state of all experiments {e}"));
        let state = StateRef { judged: self.judged, furthest: self.furthest, breaches: &self.breaches, brakes: &self.brakes };
        set(STATE.to_owned(), written(kept::encode(&state))?);
        let whole = all || !std::mem::replace(&mut self.plans_kept, true);
        if whole {
            set(PLANS.to_owned(), written(kept::encode(&self.plans()))?);
        }
        changes.extend(self.waiting.take_changes(whole)?);
        Ok(changes)
    }

    fn plans(&self) -> Plans {
        let names = self.judges.iter().map(|judge| judge.plan().experiment.clone());
        Plans(names.zip(self.shapes.iter().map(|shape| Shape::clone(shape))).collect())
    }

    /// Rebuilds a Fleet from the parts that snapshots have left. What is gone, or asked anew, begins anew; partitions count once they are
    /// assigned.
    ///
    /// # Errors
    /// What is common to all experiments is missing, or cannot be read.
    pub fn restore(catalog: &Catalog, pane_ms: Millis, kept: &Kept) -> Result<Restored, String> {
        Fleet::carried(catalog, pane_ms, kept, &mut Output::default())
    }

    fn carried(catalog: &Catalog, pane_ms: Millis, kept: &Kept, out: &mut Output) -> Result<Restored, String> {
        let lacks = |name: &str| format!("the checkpoint lacks `{name}`");
        let plans: Plans = kept.read(PLANS)?.ok_or_else(|| lacks(PLANS))?;
        let state: State = kept.read(STATE)?.ok_or_else(|| lacks(STATE))?;
        let (mut fleet, mut lost) = (Fleet::new(catalog, pane_ms), Vec::new());
        (fleet.judged, fleet.furthest) = (state.judged, state.furthest);
        (fleet.breaches, fleet.brakes) = (state.breaches, state.brakes);
        // Partitions have begun the pane after the last that they closed: what is new there is half.
        let next = |pane: Option<Pane>, after: i64| pane.map_or(i64::MIN, |pane| pane.0 + after);
        let begin = Pane(next(fleet.furthest, 2).max(next(fleet.judged, 1)));
        for (name, was) in &plans.0 {
            let Some(index) = fleet.index(name) else { continue };
            let state_of = kept.blobs(&format!("{EXPERIMENT}{name}")).last().ok_or_else(|| lacks(name));
            let shapes = (was, &*fleet.shapes[index]);
            let taken = state_of.and_then(|blob| fleet.judges[index].restore(blob, shapes, (state.judged, begin), out));
            if let Err(reason) = taken {
                lost.push((name.clone(), reason));
            }
        }
        let by = Renumber::new(&plans, catalog);
        fleet.waiting = Waiting::restore(kept, state.pending, &by)?;
        let is_gone = |name: &&str| name.strip_prefix(EXPERIMENT).is_some_and(|name| fleet.index(name).is_none());
        fleet.gone = kept.names().filter(is_gone).map(str::to_owned).collect();
        Ok(Restored { fleet, lost })
    }

    /// Goes on by other rules from here, as a restart would: see [`Judge::restore`]. `at` is the wall clock.
    ///
    /// # Errors
    /// The state cannot be written down or read: a fault of the program.
    pub fn reload(&mut self, catalog: &Catalog, at: Millis, out: &mut Output) -> Result<(), String> {
        let (gone, panes) = (self.gone.clone(), self.waiting.kept().clone());
        let kept = Kept::of(self.snapshot(true)?);
        let Restored { fleet: mut new, lost } = Fleet::carried(catalog, self.pane_ms, &kept, out)?;
        if let Some((name, reason)) = lost.first() {
            return Err(format!("`{name}`: {reason}"));
        }
        new.gone.extend(gone);
        new.waiting.are_kept(panes);
        new.partitions = std::mem::take(&mut self.partitions);
        (new.shared_cause, new.blast_radius) = (self.shared_cause.clone(), self.blast_radius.clone());
        for judge in std::mem::take(&mut self.judges) {
            if let Some(index) = new.index(&judge.plan().experiment) {
                new.judges[index].inherit(judge, at, out);
            }
        }
        *self = new;
        Ok(())
    }
}
