//! One experiment: merges the partials of each pane, slides the windows, sets verdicts and returns decisions.
//!
//! The Judge knows no clock: [`Judge::pane`] and [`Judge::advance`] tell it how far event time has come.

mod act;
mod ahead;
mod bins;
mod books;
mod budget;
mod carry;
mod comeback;
mod funnels;
mod interval;
mod limit;
mod phases;
mod quality;
mod reason;
mod relative;
mod rollout;
mod secondary;
mod segmented;
mod segments;
mod stop;
mod traffic;
mod view;
mod window;

use super::decision::{Action, Decision, Evidence, LogEntry, LogKind, Output};
use super::evidence::allocation::Allocation;
use super::evidence::{Arm, Booking, Clustering, Enrolled, SignalEvidence, Volume};
use super::histogram::thousandths;
use super::kept;
use super::pane::{BucketPartial, Control, PanePartial, PhaseName};
use super::plan::{Plan, Signal, Statistic, Unit};
use super::stats::exceedance::Exceedance;
use super::time::{Millis, Pane};
use books::{Book, Books};
use budget::{Kind, Tripped};
use funnels::Funnels;
use limit::Reading;
use quality::Quality;
use rollout::Rollout;
use segments::Segments;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::Arc;

pub use budget::Budget;
use stop::Stop;
use traffic::{BucketTraffic, Figures};
use window::Window;

pub use act::{Operation, Operator};

/// See the module.
pub struct Judge {
    plan: Arc<Plan>,
    pane_ms: Millis,
    budget: Budget,
    /// For each question about a quantile, its test.
    tests: Vec<Option<Exceedance>>,
    state: State,
    /// Decisions in force, by id; after a restart they come from the store.
    in_force: BTreeMap<String, Decision>,
    /// Those that have been said and change nothing yet: see the module.
    ahead: BTreeMap<String, Decision>,
    /// More than `State::at` may have changed since the last snapshot.
    changed: bool,
    /// Somebody may look: see [`Judge::unseen`].
    seen: bool,
}

/// Everything that a checkpoint keeps.
#[derive(Serialize, Deserialize)]
struct State {
    /// Last pane judged.
    at: Option<Pane>,
    /// By window, then by bucket.
    windows: Vec<Vec<Window>>,
    /// For each guardrail, its window among these.
    window_of: Vec<usize>,
    traffic: Vec<BucketTraffic>,
    /// By guardrail, then by bucket (the baseline's entry is unused).
    guards: Vec<Vec<Guard>>,
    quality: Quality,
    figures: Figures,
    /// By bucket.
    stops: Vec<Option<Stop>>,
    phase: u32,
    weights: Vec<f64>,
    rollout: Rollout,
    funnels: Funnels,
    epoch: u32,
    hold: Option<OperatorHold>,
    records: u64,
    rejected: u64,
    /// Last pane that held a record.
    last_record: Option<Pane>,
    /// First pane that was judged: nothing can have been missed before.
    began: Option<Pane>,
    /// Panes up to this one may hold records from before the last `resume`; windows and evidence leave them out.
    stale_to: Option<Pane>,
    allocation: Allocation,
    evidence: Vec<Book>,
    /// By question: its evidence among these; `None` where it asks for none.
    book_of: Vec<Option<usize>>,
    enrolled: Enrolled,
    volume: Volume,
    /// The first pane that counts as evidence: units of earlier cohorts were not counted.
    first_cohort: Option<Pane>,
    segments: Segments,
}

/// How long after a change of allocation the exposures may follow the old shares or the new ones.
const SPREADING_MS: Millis = 30_000;

/// What is tested: a guardrail's criterion in a bucket, of all its units or of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hypothesis {
    /// Or, beyond their number, a secondary metric: see [`Plan::question`].
    guardrail: usize,
    bucket: usize,
    /// Index among [`Segments::list`].
    segment: Option<usize>,
}

impl Hypothesis {
    fn overall(guardrail: usize, bucket: usize) -> Hypothesis {
        Hypothesis { guardrail, bucket, segment: None }
    }
}

/// One guardrail of one bucket.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Guard {
    /// First pane since which the plain value has lain beyond the limit without a break.
    beyond_since: Option<Pane>,
    /// First pane since which the test has said so without a break.
    tripping_since: Option<Pane>,
    /// Decision in force.
    tripped: Option<String>,
    /// A hold has kept it from acting; said once.
    withheld: bool,
    /// Highest log e-value against the margin in this arming epoch, as of the last slot that closed.
    max_log_e: f64,
    /// The confidence sequence lay inside the margin when the last slot closed.
    safe: bool,
}

/// A criterion that is met, and what shows it.
struct Alarm {
    criterion: &'static str,
    test: &'static str,
    evidence: Evidence,
    log_e: Option<f64>,
    alpha: Option<f64>,
    margin: Option<f64>,
    /// Unit of the values.
    unit: String,
    /// The baseline's and the bucket's value.
    values: [Option<f64>; 2],
    interval: Option<[f64; 2]>,
    since: Millis,
    reason: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OperatorHold {
    until: Option<Millis>,
    author: String,
    reason: String,
}

impl Judge {
    pub fn new(plan: Arc<Plan>, pane_ms: Millis) -> Judge {
        let mut kinds: Vec<(usize, i64)> = Vec::new();
        let mut window_of = Vec::new();
        for guardrail in &plan.guardrails {
            let kind = (guardrail.signal, (guardrail.window / pane_ms).max(1));
            let known = kinds.iter().position(|k| *k == kind);
            window_of.push(known.unwrap_or(kinds.len()));
            if known.is_none() {
                kinds.push(kind);
            }
        }
        let buckets = plan.buckets.len();
        let of_signal = |&(signal, panes): &(usize, i64)| vec![Window::new(&plan.signals[signal], panes, pane_ms); buckets];
        let (evidence, book_of) = books::begin(&plan, pane_ms);
        let state = State {
            at: None,
            windows: kinds.iter().map(of_signal).collect(),
            window_of,
            traffic: vec![BucketTraffic::default(); buckets],
            guards: vec![vec![Guard::default(); buckets]; plan.guardrails.len()],
            quality: Quality::new(&plan, pane_ms),
            figures: Figures::default(),
            stops: vec![None; buckets],
            phase: 0,
            weights: plan.first_weights(),
            rollout: Rollout::new(&plan),
            funnels: Funnels::new(&plan, pane_ms),
            epoch: 0,
            hold: None,
            records: 0,
            rejected: 0,
            last_record: None,
            began: None,
            stale_to: None,
            allocation: Allocation::new(plan.first_weights()),
            segments: Segments::new(&plan, pane_ms, Books { list: &evidence, of: &book_of }),
            evidence,
            book_of,
            enrolled: Enrolled::new(buckets),
            volume: Volume::new(buckets),
            first_cohort: None,
        };
        let budget = Budget::new(&plan, pane_ms);
        let tests = plan.questions().map(|g| match g.statistic {
            Statistic::Quantile { ppm } => Some(Exceedance::of_quantile(ppm)),
            _ => None,
        });
        let tests = tests.collect();
        Judge { plan, pane_ms, budget, tests, state, in_force: BTreeMap::new(), ahead: BTreeMap::new(), changed: true, seen: true }
    }

    /// Nobody will look: what is shown and decides nothing (highest evidence so far, whether a margin is proved) is not brought up to date.
    pub fn unseen(&mut self) {
        self.seen = false;
    }

    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Takes in a pane that all partitions have passed. Panes come in ascending order.
    pub fn pane(&mut self, pane: Pane, partial: &PanePartial<'_>, out: &mut Output) {
        self.advance(Pane(pane.0 - 1), out);
        self.changed = true;
        let traffic: SmallVec<[BucketPartial; 4]> =
            (0..self.plan.buckets.len()).map(|bucket| partial.cell(self.plan.traffic_cell(bucket)).traffic()).collect();
        let records: u64 = traffic.iter().map(|t| t.exposures + t.events + t.controls + t.aside).sum();
        let refused: u64 = traffic.iter().map(|t| t.refused).sum();
        let first = self.state.records == 0 && records > 0;
        if first {
            self.launch(pane, out);
        }
        // A phase begins with the pane that tells of it.
        for control in partial.controls() {
            self.control(control, out);
        }
        self.state.records += records;
        self.state.rejected += refused;
        self.state.quality.add(pane, records, refused);
        self.state.figures.add(partial.quality, &traffic);
        if records > 0 {
            self.state.last_record = Some(pane);
        }
        for (bucket, part) in traffic.iter().enumerate() {
            self.state.traffic[bucket].add(pane, part);
            self.watch_comeback(pane, bucket, part, &partial.cell(self.plan.traffic_cell(bucket)));
            self.state.rollout.phases.add(pane, bucket, part, partial, &self.plan);
        }
        self.state.funnels.add(pane, partial.strides());
        let warming = self.state.rollout.is_warming(pane);
        if self.state.stale_to.is_none_or(|to| pane > to) {
            self.state.quality.bar(partial.quality);
            self.slide_in(pane, partial, warming);
            // Nothing of the warm-up of the start counts against the baseline.
            if !warming || self.state.first_cohort.is_some() {
                self.weigh(pane, partial, &traffic, warming);
            }
        }
        self.tick(pane, true, out);
    }

    /// Adds a pane to the windows; while a phase is warming up, to those of counts alone.
    fn slide_in(&mut self, pane: Pane, partial: &PanePartial<'_>, warming: bool) {
        let State { windows, window_of, .. } = &mut self.state;
        for (index, &window) in window_of.iter().enumerate() {
            // Guardrails may share a window: the first of them fills it.
            if window_of[..index].contains(&window) {
                continue;
            }
            let signal = self.plan.guardrails[index].signal;
            if warming && !matches!(self.plan.signals[signal], Signal::Count { .. }) {
                continue;
            }
            for (bucket, window) in windows[window].iter_mut().enumerate() {
                let cell = partial.cell(self.plan.signal_cell(bucket, signal));
                if !cell.is_empty() {
                    window.add(pane, cell);
                }
            }
        }
    }

    /// Adds a pane to what the tests against the baseline are given. While a phase is warming up, what is counted by unit goes on: its
    /// cohorts know when they were exposed.
    fn weigh(&mut self, pane: Pane, partial: &PanePartial<'_>, traffic: &[BucketPartial], warming: bool) {
        let first_cohort = *self.state.first_cohort.get_or_insert(pane);
        let (slot, baseline, frozen) = (self.budget.slot, self.plan.baseline(), self.is_frozen());
        let State { allocation, evidence, book_of, enrolled, volume, quality, segments, .. } = &mut self.state;
        let book = Booking { allocation, first_cohort, slot, baseline };
        quality.weigh(pane, partial.quality, traffic, &self.plan, &book);
        for (bucket, part) in traffic.iter().enumerate() {
            enrolled.add(pane, bucket, part, &book);
            let counts = |own: &&mut Book| pane >= own.from && (!warming || self.plan.signals[own.signal].is_per_user());
            for own in evidence.iter_mut().filter(counts) {
                let (cell, book) = (partial.cell(self.plan.signal_cell(bucket, own.signal)), own.book(&book));
                own.statistics.add(pane, bucket, part, cell, &book);
            }
        }
        volume.add(traffic, baseline, !frozen);
        segments.weigh(&self.plan, Books { list: evidence, of: book_of }, pane, partial, &book, (self.pane_ms, warming));
    }

    /// Event time has come to the end of `pane` without further records of the experiment.
    pub fn advance(&mut self, pane: Pane, out: &mut Output) {
        while let Some(at) = self.state.at.filter(|at| *at < pane) {
            match self.next_wake(at).filter(|wake| *wake <= pane) {
                Some(wake) => self.tick(wake, false, out),
                None => self.state.at = Some(pane),
            }
        }
        // Before the first record there is nothing to slide, but a start without data is silence.
        if self.state.at.is_none() && self.plan.starts.is_some_and(|starts| starts <= pane.start(self.pane_ms)) {
            self.tick(pane, false, out);
        }
    }

    /// The next pane at whose end something may change without a record.
    fn next_wake(&self, at: Pane) -> Option<Pane> {
        let next = Pane(at.0 + 1);
        let live = self.state.windows.iter().flatten().any(Window::is_live);
        let waiting = self.state.stops.iter().flatten().any(Stop::is_waiting);
        let held = self.state.hold.as_ref().is_some_and(|h| h.until.is_some());
        if live || waiting || held || self.state.quality.is_live() {
            return Some(next);
        }
        let horizon = self.horizon().filter(|horizon| *horizon >= next);
        let deadlines =
            self.silence_deadline().into_iter().chain(self.next_milestone()).chain(self.next_ahead()).map(|deadline| deadline.max(next));
        deadlines.chain(horizon).min()
    }

    /// Closes `pane`: windows, tests, quality, confirmations.
    fn tick(&mut self, pane: Pane, mut changed: bool, out: &mut Output) {
        self.changed = true;
        self.state.at = Some(pane);
        self.state.began.get_or_insert(pane);
        for window in self.state.windows.iter_mut().flatten() {
            changed |= window.slide(pane);
        }
        let first_cohort = self.state.first_cohort.unwrap_or(pane);
        let State { allocation, evidence, book_of, segments, .. } = &mut self.state;
        let book = Booking { allocation, first_cohort, slot: self.budget.slot, baseline: self.plan.baseline() };
        for own in evidence.iter_mut() {
            let book = own.book(&book);
            own.statistics.close(pane, &book);
        }
        let books = Books { list: evidence, of: book_of };
        segments.list.iter_mut().for_each(|segment| segment.close(pane, books, &book));
        let now = pane.end(self.pane_ms);
        if self.state.hold.as_ref().is_some_and(|h| h.until.is_some_and(|until| until <= now)) {
            self.state.hold = None;
            self.log(now, LogKind::Operator, None, "hold expired: actions are live again".into(), out);
            changed = true;
        }
        if !self.state.rollout.is_done() {
            self.judge(pane, changed, out);
        }
        self.catch_up_with_ahead();
        self.watch_stops(pane, out);
        self.milestones(pane, out);
    }

    fn judge(&mut self, pane: Pane, changed: bool, out: &mut Output) {
        let pending = self.state.guards.iter().flatten().any(|g| g.tripping_since.is_some() && g.tripped.is_none());
        if changed || pending {
            self.judge_limits(pane, out);
        }
        self.judge_quality(pane, out);
        if changed || self.horizon() == Some(pane) {
            self.judge_relative(pane, out);
        }
    }

    fn judge_limits(&mut self, pane: Pane, out: &mut Output) {
        let baseline = self.plan.baseline();
        for index in 0..self.plan.guardrails.len() {
            if self.plan.guardrails[index].limit.is_none() {
                continue;
            }
            for bucket in (0..self.plan.buckets.len()).filter(|b| *b != baseline) {
                let of = Hypothesis::overall(index, bucket);
                if self.guard(of).tripped.is_some() {
                    continue;
                }
                // Most of the time all is well, and then evidence need not be weighed.
                if self.beyond(index, bucket, pane) == Some(false) {
                    let guard = self.guard_mut(of);
                    (guard.beyond_since, guard.tripping_since, guard.withheld) = (None, None, false);
                    continue;
                }
                let Some(reading) = self.read(index, bucket, pane) else { continue };
                let trips = reading.over >= self.threshold_of_limit(index, bucket);
                let guard = self.guard_mut(of);
                guard.beyond_since = reading.beyond.then(|| guard.beyond_since.unwrap_or(pane));
                guard.tripping_since = trips.then(|| guard.tripping_since.unwrap_or(pane));
                let Some(since) = guard.tripping_since else {
                    guard.withheld = false;
                    continue;
                };
                let guardrail = &self.plan.guardrails[index];
                if guardrail.is_zero_tolerance() || (pane.0 - since.0) * self.pane_ms >= guardrail.hold {
                    let alarm = self.limit_alarm(of, pane.end(self.pane_ms), &reading);
                    self.trip(of, pane.end(self.pane_ms), alarm, out);
                }
            }
        }
    }

    fn guard(&self, of: Hypothesis) -> &Guard {
        let guards = of.segment.map_or(&self.state.guards, |segment| &self.state.segments.list[segment].guards);
        &guards[of.guardrail][of.bucket]
    }

    fn guard_mut(&mut self, of: Hypothesis) -> &mut Guard {
        let State { guards, segments, .. } = &mut self.state;
        let guards = of.segment.map_or(guards, |segment| &mut segments.list[segment].guards);
        &mut guards[of.guardrail][of.bucket]
    }

    fn read(&self, guardrail: usize, bucket: usize, pane: Pane) -> Option<Reading> {
        let plan = &self.plan.guardrails[guardrail];
        if let Some(units) = self.of_units(guardrail, bucket) {
            return Some(limit::share(window::Share { n: units.n, x: units.x }, plan.limit?, plan.higher_is_worse, 1.0));
        }
        let window = &self.state.windows[self.state.window_of[guardrail]][bucket];
        limit::read(plan, self.tests[guardrail].as_ref(), window, self.seen(bucket), pane, self.clustering_of_limit(guardrail, bucket))
    }

    /// What a question's evidence of all units is.
    fn statistics(&self, guardrail: usize) -> Option<&SignalEvidence> {
        self.state.book_of[guardrail].map(|book| &self.state.evidence[book].statistics)
    }

    /// Hits among exposed units, over the whole life, of a rate whose observation is the unit: a window cannot tell which units are in it.
    fn of_units(&self, guardrail: usize, bucket: usize) -> Option<Arm> {
        let signal = self.plan.guardrails[guardrail].signal;
        match (&self.plan.signals[signal], self.statistics(guardrail)) {
            (Signal::Rate { unit: Unit::User, .. } | Signal::Retention { .. }, Some(SignalEvidence::Share(shares))) => {
                Some(shares.total(bucket))
            }
            _ => None,
        }
    }

    /// Design effect of a bucket's observations at its limit, at least 1.
    fn clustering_of_limit(&self, guardrail: usize, bucket: usize) -> f64 {
        let plan = &self.plan.guardrails[guardrail];
        let counted = match (self.statistics(guardrail), plan.statistic) {
            (Some(SignalEvidence::Share(shares)), Statistic::Share) => shares.batches(bucket),
            (Some(SignalEvidence::Spread(spread)), _) => plan.limit.and_then(|limit| spread.batches(bucket, thousandths(limit).0)),
            _ => None,
        };
        counted.map_or(1.0, |counted| Clustering::of_one(&counted, self.limit_threshold()))
    }

    /// What the log e-value of a guardrail's limit must reach: of units, the test of the whole life has all of the share.
    fn threshold_of_limit(&self, guardrail: usize, bucket: usize) -> f64 {
        match self.of_units(guardrail, bucket) {
            Some(_) => -self.budget.each(Kind::Limit, &self.tripped(None)).ln(),
            None => self.limit_threshold(),
        }
    }

    /// What a log e-value must reach at each position of a window.
    fn limit_threshold(&self) -> f64 {
        -self.budget.limit(self.budget.each(Kind::Limit, &self.tripped(None))).ln()
    }

    /// Share of `alpha` that a comparison has now.
    fn each(&self, of: Hypothesis) -> f64 {
        let kind = match of.segment {
            _ if of.guardrail >= self.plan.guardrails.len() => Kind::Shown,
            Some(_) => Kind::Segment,
            None => Kind::Comparison,
        };
        self.budget.each(kind, &self.tripped(Some(of)))
    }

    /// What has tripped, as far as it matters to the share of a hypothesis.
    fn tripped(&self, of: Option<Hypothesis>) -> Tripped {
        let own = |d: &Decision| {
            of.is_some_and(|of| d.guardrail == self.plan.question(of.guardrail).name && d.bucket == self.plan.buckets[of.bucket].name)
        };
        let mut tripped = Tripped::default();
        for decision in self.in_force.values() {
            let kind = match (decision.criterion.as_str(), &decision.segment) {
                ("limit", _) => Kind::Limit,
                ("max_increase" | "stop_on_negative", None) => Kind::Comparison,
                ("max_increase" | "stop_on_negative", Some(_)) => Kind::Segment,
                _ => continue,
            };
            tripped.add(kind, own(decision));
        }
        tripped
    }

    fn beyond(&self, guardrail: usize, bucket: usize, pane: Pane) -> Option<bool> {
        if self.of_units(guardrail, bucket).is_some() {
            return None;
        }
        let window = &self.state.windows[self.state.window_of[guardrail]][bucket];
        limit::beyond(&self.plan.guardrails[guardrail], window, self.seen(bucket), pane)
    }

    fn value(&self, guardrail: usize, bucket: usize, pane: Pane) -> Option<f64> {
        if let Some(units) = self.of_units(guardrail, bucket) {
            return units.rate();
        }
        if let Some(SignalEvidence::Mean(means)) = self.evidence_of(Hypothesis::overall(guardrail, bucket)) {
            return means.mean(bucket).map(|(_, mean)| mean);
        }
        let window = &self.state.windows[self.state.window_of[guardrail]][bucket];
        limit::value(&self.plan.guardrails[guardrail], window, self.seen(bucket), pane)
    }

    fn seen(&self, bucket: usize) -> limit::Traffic {
        let traffic = &self.state.traffic[bucket];
        limit::Traffic { units: traffic.units, enough: traffic.size() >= self.plan.min_units }
    }

    fn control(&mut self, control: &Control, out: &mut Output) {
        match control {
            Control::Phase { at, phase, weights } => {
                let index = match phase {
                    PhaseName::Index(index) => Some(*index),
                    PhaseName::Name(name) => self.plan.phases.iter().position(|p| p.name == *name).map(|i| i as u32),
                };
                self.move_to(*at, index, weights, None, out);
            }
            Control::Annotation { at, text, author } => self.log(*at, LogKind::Annotation, author.clone(), text.clone(), out),
        }
    }

    fn log(&self, at: Millis, kind: LogKind, author: Option<String>, text: String, out: &mut Output) {
        out.log.push(LogEntry { at, experiment: self.plan.experiment.clone(), kind, author, text, decision: None, links: Vec::new() });
    }

    /// An operator's hold is in force; it does not keep `kill` back.
    fn held(&self, action: Action) -> bool {
        action < Action::Kill && self.state.hold.is_some()
    }

    /// State as a blob for [`Judge::restore`]; `None` where the last one is still true: since then only time has passed.
    ///
    /// # Errors
    /// The state cannot be written down: a fault of the program.
    pub fn snapshot(&mut self, all: bool) -> Result<Option<Vec<u8>>, String> {
        if !std::mem::replace(&mut self.changed, false) && !all {
            return Ok(None);
        }
        kept::encode(&self.state).map(Some).map_err(|e| format!("the state of `{}` {e}", self.plan.experiment))
    }
}
