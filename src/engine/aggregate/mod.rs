//! One input partition: remembers units, workflows and ids, and turns records into partials of panes.
//!
//! The open pane is the one that holds the partition's watermark, its largest event time. A record behind the watermark, but inside
//! the allowed lateness, is booked into the open pane, never into one already emitted: so what a partition emits depends on its own
//! records alone, and lateness costs no waiting. An event that overtook its unit's exposure is booked when that comes, as if it came then.
//! The order of the questions that each record is asked is that of [`Aggregator::observe`].

mod checkpoint;
mod ended;
mod exposures;
pub(super) mod feeds;
mod funnels;
mod ids;
pub mod keys;
mod open;
mod profiles;
mod progress;
mod tallies;
mod units;
mod waiting;
mod workflows;

pub use checkpoint::{Observed, assignments};

use super::event::{Event, Kind, PhaseRef, Step};
use super::outcome::{Counts, Outcome, Reject};
use super::pane::{
    AGAIN, Abandoned, BATCHES, Cause, Control, Emission, NO_UNIT, Observation, PaneBatch, PhaseName, Seen, Urgent, panes_between, traffic,
};
use super::plan::{Catalog, Settings, Signal};
use super::segment::NO_PROFILE;
use super::time::{Millis, Pane};
use checkpoint::Chunks;
use feeds::Feeds;
use funnels::Funnels;
use ids::Ids;
use keys::Key;
use open::{Mark, Memory};
use profiles::{Profiles, UNKNOWN};
use smallvec::SmallVec;
use std::sync::Arc;
use tallies::Tallies;
use units::Units;
use waiting::Waiting;
use workflows::{Started, Watcher, Workflows};

/// Names of the engine's bounds, and what each made it drop.
pub type Dropped = [(&'static str, u64); 5];

/// What a record counts for.
type Targets = SmallVec<[Target; 2]>;

#[derive(Clone, Copy)]
struct Target {
    experiment: u32,
    bucket: u8,
    /// The cohort of the record's unit; `None` for a record that names its bucket itself.
    cohort: Option<Pane>,
    /// Its unit does not count (any more).
    aside: bool,
    /// Number of the unit's profile, as far as it is known.
    profile: u16,
}

/// How far a partition is.
#[derive(Clone, Copy)]
struct Time {
    /// Largest event time seen, or advanced to.
    watermark: Millis,
    /// The pane that holds it.
    open: Pane,
}

/// See the module.
pub struct Aggregator {
    partition: i32,
    catalog: Arc<Catalog>,
    settings: Settings,
    /// `None` before the first record.
    time: Option<Time>,
    /// What the open pane has seen.
    open: Seen,
    units: Units,
    /// By experiment: some of its units have been set aside.
    set_aside: Vec<bool>,
    tallies: Tallies,
    profiles: Profiles,
    workflows: Workflows,
    funnels: Funnels,
    ids: Ids,
    waiting: Waiting,
    counts: Counts,
    /// Smallest and largest event time accepted.
    span: Option<(Millis, Millis)>,
    /// Exposed units that there was no room to remember.
    units_dropped: u64,
    /// When the next experiment's units leave: the smallest `ends` that may still matter.
    next_end: Option<Millis>,
    /// `None` while no checkpoint holds anything of this one.
    kept: Option<Chunks>,
    /// Checkpoints say what experiments and cells the numbers in them mean.
    plans_kept: bool,
    out: Vec<Emission>,
}

impl Aggregator {
    pub fn new(partition: i32, catalog: Arc<Catalog>, settings: Settings) -> Aggregator {
        Aggregator {
            partition,
            settings,
            open: Seen::default(),
            set_aside: vec![false; catalog.plans.len()],
            next_end: catalog.plans.iter().filter_map(|plan| plan.ends).min(),
            time: None,
            units: Units::default(),
            tallies: Tallies::default(),
            profiles: Profiles::new(&catalog),
            workflows: Workflows::default(),
            funnels: Funnels::default(),
            ids: Ids::new(),
            waiting: Waiting::default(),
            counts: Counts::default(),
            span: None,
            units_dropped: 0,
            kept: None,
            plans_kept: false,
            out: Vec::new(),
            catalog,
        }
    }

    /// Counts one decoded record under one outcome, and books it if it is accepted. One that waits is counted anew when it is settled.
    pub fn observe(&mut self, event: &Event<'_>) -> Outcome {
        let late = self.time.is_some_and(|now| event.ts < now.watermark.saturating_sub(self.settings.lateness));
        self.advance(event.ts);
        let outcome = match late {
            true => {
                self.note_late(event);
                Outcome::Late
            }
            false => self.admit(event),
        };
        self.counts.add(outcome);
        outcome
    }

    /// Counts a record that could not be decoded; `experiment` is the one that it names, if that much could be read.
    pub fn refuse(&mut self, reason: Reject, experiment: Option<&str>) -> Outcome {
        if let Some(&index) = experiment.and_then(|name| self.catalog.names.get(name)) {
            self.reject(index);
            if reason == Reject::FutureTimestamp {
                self.open.quality(index).future += 1;
            }
        }
        let outcome = Outcome::Rejected(reason);
        self.counts.add(outcome);
        outcome
    }

    /// Counts records that stand for no event.
    pub fn pass_over(&mut self, records: u64) {
        self.counts.unmapped += records;
    }

    /// Moves the partition's time to `to` (never back), so that panes close and timers fire.
    pub fn advance(&mut self, to: Millis) {
        let pane_ms = self.settings.pane;
        match self.time {
            None => self.reach(to),
            Some(now) if to <= now.watermark => {}
            Some(now) if to < now.open.end(pane_ms) => {
                self.time = Some(Time { watermark: to, ..now });
                self.give_up(Some(to.saturating_sub(self.settings.lateness)));
            }
            Some(now) => {
                self.close_until(now, to);
                self.reach(to);
                self.forget_ended();
                self.give_up(Some(to.saturating_sub(self.settings.lateness)));
            }
        }
    }

    fn reach(&mut self, to: Millis) {
        self.time = Some(Time { watermark: to, open: Pane::of(to, self.settings.pane) });
    }

    /// Closes the open pane, and those after it before that of `to`.
    fn close_until(&mut self, Time { watermark: from, mut open }: Time, to: Millis) {
        let pane_ms = self.settings.pane;
        let target = Pane::of(to, pane_ms);
        while open < target {
            let end = open.end(pane_ms) - 1;
            self.close(open, from.max(end.min(to)));
            let last_idle = Pane(target.0 - 1);
            // Panes without records or timers need not be emitted, but the last of them tells how far the partition is.
            let timer = self.workflows.next_timer().into_iter().chain(self.funnels.next_timer()).min();
            open = match timer.filter(|t| *t < target) {
                Some(timer) => timer.max(Pane(open.0 + 1)),
                None if open < last_idle => last_idle,
                None => target,
            };
        }
    }

    /// Closes the open pane, and waits for nothing any more: the end of a recording.
    pub fn finish(&mut self) {
        self.give_up(None);
        if let Some(now) = self.time {
            self.close(now.open, now.watermark);
        }
    }

    /// Largest event time seen, or advanced to; `None` before the first.
    pub fn watermark(&self) -> Option<Millis> {
        Some(self.time?.watermark)
    }

    /// Takes what has been emitted since the last call, in order.
    pub fn drain(&mut self) -> Vec<Emission> {
        std::mem::take(&mut self.out)
    }

    /// Records by outcome, since the start (checkpoints keep it).
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Smallest and largest event time accepted.
    pub fn span(&self) -> Option<(Millis, Millis)> {
        self.span
    }

    /// What a bound made this partition forget: name of the bound, and how often.
    pub fn dropped(&self) -> Dropped {
        [
            ("units", self.units_dropped + self.tallies.dropped),
            ("workflows", self.workflows.dropped + self.funnels.dropped),
            ("ids", self.ids.age().evicted),
            ("segment_values", self.profiles.dropped),
            ("waiting", self.waiting.dropped),
        ]
    }

    /// Assignments remembered: units times experiments.
    pub fn assignments(&self) -> usize {
        self.units.len()
    }

    fn admit(&mut self, event: &Event<'_>) -> Outcome {
        let unit = unit(event);
        match self.targets(event, unit) {
            Ok(targets) => self.accept(event, unit, targets),
            Err(Outcome::Unattributed) => self.wait(event),
            Err(outcome) => outcome,
        }
    }

    fn accept(&mut self, event: &Event<'_>, unit: Option<Key>, targets: Targets) -> Outcome {
        let watermark = self.watermark().unwrap_or(event.ts);
        if let Some(id) = &event.id
            && !self.ids.insert(id, watermark, self.settings.dedupe_horizon, self.settings.dedupe_max)
        {
            targets.iter().for_each(|target| self.open.quality(target.experiment).duplicate += 1);
            return Outcome::Duplicate;
        }
        self.span = Some(self.span.map_or((event.ts, event.ts), |(a, b)| (a.min(event.ts), b.max(event.ts))));
        let news = self.news(event, unit, &targets);
        for &target in &targets {
            self.book(target, unit, event);
        }
        if let Kind::Workflow { step, workflow, workflow_id } = &event.kind {
            let key = match unit {
                Some(unit) => unit ^ keys::pair(workflow, workflow_id),
                None => keys::pair(workflow, workflow_id),
            };
            match step {
                Step::Started => self.workflow_started(key, workflow, event, &targets, unit),
                Step::Completed => self.workflow_ended(key, false, event.ts),
                Step::Abandoned => self.workflow_ended(key, true, event.ts),
            }
        }
        self.follow(event, &targets, unit);
        if let Some((unit, experiment)) = news {
            self.settle(unit, experiment, event.ts);
        }
        Outcome::Accepted
    }

    /// What a record counts for; or the outcome of one that counts for nothing.
    fn targets(&mut self, event: &Event<'_>, unit: Option<Key>) -> Result<Targets, Outcome> {
        let named = match event.experiment.as_deref() {
            Some(name) => Some(*self.catalog.names.get(name).ok_or(Outcome::UnknownExperiment)?),
            None => None,
        };
        match (named, event.bucket.as_deref(), &event.kind) {
            (Some(experiment), _, Kind::Phase { .. } | Kind::Annotation { .. }) => {
                Ok(SmallVec::from_elem(Target { experiment, bucket: 0, cohort: None, profile: UNKNOWN, aside: false }, 1))
            }
            (Some(experiment), Some(bucket), _) => {
                let Some(bucket) = self.catalog.feeds[experiment as usize].plan.bucket(bucket) else {
                    self.reject(experiment);
                    return Err(Outcome::Rejected(Reject::UnknownBucket));
                };
                if !self.active(experiment, event.ts) {
                    return Err(Outcome::Inactive);
                }
                let aside = self.set_aside[experiment as usize]
                    && unit.and_then(|unit| self.units.in_experiment(unit, experiment)).is_some_and(|seen| seen.is_aside());
                Ok(SmallVec::from_elem(Target { experiment, bucket: bucket as u8, cohort: None, profile: UNKNOWN, aside }, 1))
            }
            (only, _, _) => self.joined(event, unit, only),
        }
    }

    /// The buckets to which the event's unit had been exposed at event time.
    fn joined(&self, event: &Event<'_>, unit: Option<Key>, only: Option<u32>) -> Result<Targets, Outcome> {
        let mut inactive = false;
        let mut targets = Targets::new();
        for seen in unit.into_iter().flat_map(|unit| self.units.of(unit, event.ts)) {
            if only.is_some_and(|only| only != seen.experiment) {
                continue;
            }
            if self.active(seen.experiment, event.ts) {
                let cohort = Some(seen.cohort(self.settings.pane));
                targets.push(Target {
                    experiment: seen.experiment,
                    bucket: seen.bucket,
                    cohort,
                    profile: seen.profile,
                    aside: seen.is_aside(),
                });
            } else {
                inactive = true;
            }
        }
        match (targets.is_empty(), inactive) {
            (false, _) => Ok(targets),
            (true, true) => Err(Outcome::Inactive),
            (true, false) => Err(Outcome::Unattributed),
        }
    }

    fn active(&self, experiment: u32, ts: Millis) -> bool {
        self.catalog.feeds[experiment as usize].runs_at(ts)
    }

    fn reject(&mut self, experiment: u32) {
        let cell = self.catalog.feeds[experiment as usize].traffic_cell(0);
        self.open.pass(Observation { cell, age: 0, value: traffic::REFUSED, batch: NO_UNIT, profile: NO_PROFILE });
    }

    fn book(&mut self, target: Target, unit: Option<Key>, event: &Event<'_>) {
        let Target { experiment, bucket, .. } = target;
        let (value, age, aside) = match (control(event), &event.kind) {
            (Some(control), _) => {
                self.open.controls.push((experiment, control));
                (traffic::CONTROL, 0, false)
            }
            (None, Kind::Exposure) => self.expose(target, unit, event),
            (None, _) if target.aside => (traffic::ASIDE, 0, true),
            (None, _) => (traffic::EVENT, 0, false),
        };
        if !aside {
            self.look(target, unit, event);
        }
        let target = self.sliced(target, unit, event);
        let mut mark = self.mark(target, unit);
        let feeds = &self.catalog.feeds[experiment as usize];
        if !aside && feeds.signals(&event.kind).any(|fed| !fed.per_user) {
            mark.batch |= self.again(target, unit, event.kind.name());
        }
        let feeds = &self.catalog.feeds[experiment as usize];
        self.open.pass(Observation { cell: feeds.traffic_cell(bucket), age, value, batch: mark.batch, profile: mark.listed });
        for fed in feeds.signals(&event.kind) {
            // What is not allowed at all is policy and no statistic: it counts whoever did it.
            if aside && !fed.urgent {
                continue;
            }
            let memory = Memory { tallies: &mut self.tallies, experiment, max: self.settings.units_max };
            let booked = open::book(&mut self.open, feeds, (bucket, fed), event, mark, memory);
            if booked && fed.urgent && !feeds.plan.buckets[usize::from(bucket)].baseline {
                let label = match &event.kind {
                    Kind::ComplianceFlag { flag } => flag.to_string(),
                    kind => kind.name().to_owned(),
                };
                let (bucket, cause) = (u32::from(bucket), Cause::Signal(u32::from(fed.signal)));
                let (at, pane) = (event.ts, self.open_pane(event.ts));
                self.out.push(Emission::Urgent(Urgent { experiment, bucket, cause, at, pane, label }));
            }
        }
        if !aside {
            self.returns(target, event, mark);
        }
    }

    /// The target of a record that names its bucket itself, with a profile: that of its unit, which is learned from the first exposure
    /// that tells it; else that of its own attributes.
    fn sliced(&mut self, target: Target, unit: Option<Key>, event: &Event<'_>) -> Target {
        let experiment = target.experiment;
        let controls = matches!(event.kind, Kind::Phase { .. } | Kind::Annotation { .. });
        if target.cohort.is_some() || controls || !self.catalog.feeds[experiment as usize].sliced {
            return target;
        }
        let known = unit.and_then(|unit| self.units.in_experiment(unit, experiment)).map(|seen| seen.profile);
        let profile = match known.filter(|profile| *profile != UNKNOWN) {
            Some(profile) => profile,
            None => self.profiles.number(experiment, &event.attributes),
        };
        if let (Some(unit), Some(UNKNOWN), Kind::Exposure) = (unit, known, &event.kind) {
            self.units.learn(unit, experiment, profile);
        }
        Target { profile, ..target }
    }

    /// The pane that is open; that of `ts` before the first record.
    fn open_pane(&self, ts: Millis) -> Pane {
        self.time.map_or_else(|| Pane::of(ts, self.settings.pane), |now| now.open)
    }

    /// Where a record belongs in the tests against the baseline. A record that was joined belongs to its unit's cohort, one that names its
    /// bucket itself to the cohort of now; where the unit is the observation, it must be known to be exposed in any case.
    fn mark(&mut self, target: Target, unit: Option<Key>) -> Mark {
        let pane_ms = self.settings.pane;
        let open_pane = self.open_pane(0);
        let batch = unit.map_or(NO_UNIT, |unit| ((unit >> 32) % BATCHES as u64) as u16);
        let feeds = &self.catalog.feeds[target.experiment as usize];
        let cohort = match target.cohort {
            Some(cohort) => Some(cohort),
            None if feeds.per_user => unit
                .and_then(|unit| self.units.in_experiment(unit, target.experiment))
                .filter(|seen| seen.bucket == target.bucket)
                .map(|seen| seen.cohort(pane_ms)),
            None => None,
        };
        let member = unit.zip(cohort).map(|(unit, cohort)| (unit, panes_between(cohort, open_pane)));
        let age = target.cohort.map_or(0, |cohort| panes_between(cohort, open_pane));
        let listed = match feeds.sliced {
            true => self.profiles.list(target.experiment, target.profile, &mut self.open.profiles),
            false => NO_PROFILE,
        };
        Mark { age, batch, profile: target.profile, listed, member }
    }

    /// [`AGAIN`] unless this is surely the unit's first event of the kind. That is known of joined events, all of which are read here.
    fn again(&mut self, target: Target, unit: Option<Key>, kind: &str) -> u16 {
        let Some(unit) = unit.filter(|_| target.cohort.is_some()) else { return AGAIN };
        let whole = self.catalog.feeds[target.experiment as usize].whole;
        if self.tallies.again(target.experiment, (kind, whole), unit, self.settings.units_max) { AGAIN } else { 0 }
    }

    fn workflow_started(&mut self, key: Key, workflow: &str, event: &Event<'_>, targets: &Targets, unit: Option<Key>) {
        let (ts, pane) = (event.ts, self.open_pane(event.ts));
        for &target in targets.iter().filter(|target| !target.aside) {
            let Target { experiment, bucket, .. } = target;
            let target = self.sliced(target, unit, event);
            let Mark { age, batch, profile, listed, .. } = self.mark(target, unit);
            let again =
                if self.catalog.feeds[experiment as usize].workflow.is_empty() { AGAIN } else { self.again(target, unit, "workflow") };
            let batch = batch | again;
            let feeds = &self.catalog.feeds[experiment as usize];
            for &signal in &feeds.workflow {
                let Signal::Abandonment { within, workflow: only } = &feeds.plan.signals[usize::from(signal)] else { continue };
                if only.as_deref().is_some_and(|only| only != workflow) {
                    continue;
                }
                let watcher = Watcher { experiment, bucket, signal, pane, deadline: ts.saturating_add(*within), age, batch, profile };
                let started = self.workflows.start(key, watcher, self.settings.pane, self.settings.workflows_max);
                if !matches!(started, Started::Again | Started::Dropped) {
                    let cell = feeds.signal_cell(bucket, signal);
                    self.open.see(Observation { cell, age, value: 0, batch, profile: listed });
                }
                if started == Started::Abandoned {
                    book_abandoned(&self.catalog.feeds, &mut self.profiles, &mut self.open, watcher, pane);
                }
            }
        }
    }

    fn workflow_ended(&mut self, key: Key, abandoned: bool, ts: Millis) {
        let open_pane = self.open_pane(ts);
        let keep = Pane::of(self.watermark().unwrap_or(ts).saturating_add(self.settings.lateness), self.settings.pane);
        for watcher in self.workflows.end(key, abandoned, ts, keep, self.settings.workflows_max) {
            book_abandoned(&self.catalog.feeds, &mut self.profiles, &mut self.open, watcher, open_pane);
        }
    }

    /// Emits the open pane.
    fn close(&mut self, pane: Pane, watermark: Millis) {
        let (feeds, profiles, open) = (&self.catalog.feeds, &mut self.profiles, &mut self.open);
        self.workflows.expire(pane, self.settings.pane, |watcher| book_abandoned(feeds, profiles, open, watcher, pane));
        self.funnels.expire(pane, self.settings.pane, |stride, by| *open.strides.entry(stride).or_default() += by);
        let seen = self.open.close();
        self.out.push(Emission::Pane(PaneBatch { partition: self.partition, pane, watermark, seen }));
    }
}

fn book_abandoned(feeds: &[Feeds], profiles: &mut Profiles, open: &mut Seen, watcher: Watcher, pane: Pane) {
    let cell = feeds[watcher.experiment as usize].signal_cell(watcher.bucket, watcher.signal);
    let profile = profiles.list(watcher.experiment, watcher.profile, &mut open.profiles);
    open.abandon(Abandoned { cell, begun: watcher.pane, age: watcher.age, batch: watcher.batch, profile }, pane);
}

/// The key of the event's unit, if it names one.
fn unit(event: &Event<'_>) -> Option<Key> {
    Some(keys::pair(event.tenant_id.as_deref()?, event.user_id.as_deref()?))
}

fn control(event: &Event<'_>) -> Option<Control> {
    match &event.kind {
        Kind::Phase { phase, weights } => {
            let phase = match phase {
                PhaseRef::Index(index) => PhaseName::Index(*index),
                PhaseRef::Name(name) => PhaseName::Name(name.to_string()),
            };
            let weights = weights.iter().map(|(bucket, share)| (bucket.to_string(), *share)).collect();
            Some(Control::Phase { at: event.ts, phase, weights })
        }
        Kind::Annotation { text, author } => {
            let author = author.as_ref().map(ToString::to_string);
            Some(Control::Annotation { at: event.ts, text: text.to_string(), author })
        }
        _ => None,
    }
}
