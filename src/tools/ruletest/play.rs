//! One run of a case: its traffic through the daemon's own Aggregator, Fleet, router and delivery, in virtual time.

use super::case::{Case, Does, Fault, Operate, Synthetic};
use super::expect::Is;
use super::receivers::{Attempt, Outbox, Senders};
use super::wire::{SCENARIO, Wire, partition_of};
use crate::delivery::Router;
use crate::engine::aggregate::Aggregator;
use crate::engine::decision::{Action, Decision, LogEntry, LogKind, Notice, Output};
use crate::engine::fleet::Fleet;
use crate::engine::judge::{Operation, Operator};
use crate::engine::outcome::Counts;
use crate::engine::pane::Emission;
use crate::engine::plan::{Catalog, FieldTable};
use crate::engine::state::ExperimentState;
use crate::engine::time::Millis;
use crate::ingest::file::Recording;
use crate::rules::RuleSet;
use crate::store::Commit;
use crate::tools::simulate::{Draw, Generator};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Points of the picture.
pub const POINTS: i64 = 64;
/// Panes between two looks at whether the run is over.
const STRIDE: i64 = 16;

/// What was seen of a run. Times of decisions and attempts are ms since the epoch.
#[derive(Debug, Default)]
pub struct Seen {
    pub start: Millis,
    /// How long was played, ms.
    pub length: Millis,
    pub decisions: Vec<Decision>,
    pub notices: Vec<Notice>,
    /// Of the execution log: how the rollout went, and what a hold kept back.
    pub log: Vec<LogEntry>,
    pub attempts: Vec<Attempt>,
    /// States that expectations ask for, by the time asked for; that of the end under [`Millis::MAX`].
    pub looks: BTreeMap<Millis, ExperimentState>,
    /// States at even intervals, where the run was watched: ms after the start.
    pub strip: Vec<(Millis, ExperimentState)>,
    pub counts: Counts,
}

/// How a run is played.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub seed: u64,
    /// Records are written and read again, also where that changes nothing.
    pub whole: bool,
    /// Keeps states for a picture.
    pub watched: bool,
    /// Ends the run when no expectation of it is open any more.
    pub hurried: bool,
}

/// Everything that the runs of a case share.
pub struct Stage<'c> {
    pub case: &'c Case,
    pub rule: &'c Arc<RuleSet>,
    pub fields: &'c FieldTable,
    catalog: Arc<Catalog>,
    /// Made with the first delivery.
    senders: OnceLock<Result<Senders, String>>,
}

impl<'c> Stage<'c> {
    pub fn new(case: &'c Case, rule: &'c Arc<RuleSet>, fields: &'c FieldTable) -> Stage<'c> {
        let catalog = match &case.synthetic {
            Some(synthetic) => Arc::clone(&synthetic.spec.catalog),
            None => Arc::new(Catalog::new(vec![Arc::clone(&rule.plan)], fields.clone())),
        };
        Stage { case, rule, fields, catalog, senders: OnceLock::new() }
    }

    fn outbox(&self) -> Result<Outbox, String> {
        let make = || {
            let of_rule = self.rule.routes.values().map(|r| r.endpoint.clone());
            let of_case = self.case.endpoints.iter().flat_map(|(name, r)| [Some(name.clone()), r.escalate_to.clone()]).flatten();
            let names: BTreeSet<String> = of_rule.chain(of_case).collect();
            Senders::new(&names.into_iter().collect::<Vec<_>>(), &self.case.endpoints).map_err(|e| e.to_string())
        };
        let senders = self.senders.get_or_init(make).as_ref().map_err(Clone::clone)?;
        Outbox::new(senders).map_err(|e| e.to_string())
    }

    /// Plays it; `None` when `cancelled` is set meanwhile.
    ///
    /// # Errors
    /// A recording cannot be read, an operation was refused, or there is no memory for an outbox.
    pub fn play(&self, way: Way, cancelled: &AtomicBool) -> Result<Option<Seen>, String> {
        match &self.case.synthetic {
            Some(synthetic) => self.synthetic(synthetic, way, cancelled),
            None => self.recorded(way).map(Some),
        }
    }

    fn synthetic(&self, synthetic: &Synthetic, way: Way, cancelled: &AtomicBool) -> Result<Option<Seen>, String> {
        let Synthetic { spec, harms } = synthetic;
        let (case, plan) = (self.case, &self.rule.plan);
        let mut generator = Generator::new(spec, harms, Draw::new(way.seed, 0, 0));
        let mut run = Run::new(self, way, spec.start);
        run.seen.length = spec.length;
        (0..case.partitions as i32).for_each(|p| run.fleet.assigned(p));
        let new = |p: usize| Aggregator::new(p as i32, Arc::clone(&self.catalog), spec.settings.clone());
        let mut aggregators: Vec<Aggregator> = (0..case.partitions).map(new).collect();
        let written = way.whole || !case.is_plain();
        let mut wire = written.then(|| Wire::new(case, (plan, self.fields), Draw::new(way.seed, SCENARIO, 0), spec.start));
        if let Some(wire) = wire.as_mut().filter(|_| !case.events.is_empty()) {
            let mut at = Millis::MIN;
            let read = self.recording().each(|line| {
                wire.recorded(line, &mut at);
                Ok(())
            });
            read.map_err(|e| e.to_string())?;
        }
        let mut from = 0;
        loop {
            run.operate(from)?;
            run.steer(&mut generator, from);
            let end = generator.pane(|event, origin| match &mut wire {
                Some(wire) => wire.send(event, origin),
                None => {
                    aggregators[partition_of(origin, case.partitions)].observe(event);
                }
            });
            match (end, &mut wire) {
                (Some(end), Some(wire)) => wire.deliver(spec.start + end, &mut aggregators),
                // Time passes, whether or not there were events.
                (Some(end), None) => aggregators.iter_mut().for_each(|a| a.advance(spec.start + end)),
                (None, _) => aggregators.iter_mut().for_each(Aggregator::finish),
            }
            for aggregator in &mut aggregators {
                aggregator.drain().into_iter().for_each(|emission| run.fleet.take(emission, &mut run.out));
            }
            let Some(end) = end else { break };
            run.said(spec.start + end)?;
            run.look(end);
            if end / spec.settings.pane % STRIDE == 0 {
                if cancelled.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                if way.hurried && run.is_settled(end) {
                    run.seen.length = end;
                    break;
                }
            }
            from = end;
        }
        aggregators.iter().for_each(|a| run.seen.counts.merge(a.counts()));
        run.end().map(Some)
    }

    /// Recorded events alone, exactly as `backtest` reads them.
    fn recorded(&self, way: Way) -> Result<Seen, String> {
        let settings = &self.case.settings;
        let (mut feeds, _) = self.recording().open(&[(self.fields, None)]).map_err(|e| e.to_string())?;
        let Some(feed) = feeds.pop() else { return Err("the recording has no reader".to_owned()) };
        let mut aggregator = Aggregator::new(0, Arc::clone(&self.catalog), settings.clone());
        let mut run = Run::new(self, way, self.case.start);
        let mut trouble = Ok(());
        let hear = |emissions: Vec<Emission>| {
            for emission in emissions {
                let Emission::Pane(pane) = &emission else {
                    run.fleet.take(emission, &mut run.out);
                    continue;
                };
                let end = pane.pane.end(settings.pane);
                let heard = run.operate(end - settings.pane - run.seen.start).and_then(|()| {
                    run.fleet.take(emission, &mut run.out);
                    run.said(end)
                });
                if heard.is_err() {
                    trouble = heard;
                    return;
                }
                run.seen.length = end - run.seen.start;
                run.look(run.seen.length);
            }
        };
        feed.pump(&mut aggregator, hear, |_, _| Ok::<bool, io::Error>(true)).map_err(|e| e.to_string())?;
        trouble?;
        run.seen.counts = aggregator.counts().clone();
        run.end()
    }

    fn recording(&self) -> Recording<'_> {
        Recording { files: &self.case.events, source: self.case.source.as_ref(), limits: Default::default() }
    }
}

/// A run while it is played.
struct Run<'s> {
    stage: &'s Stage<'s>,
    way: Way,
    fleet: Fleet,
    out: Output,
    router: Router,
    /// Opened with the first delivery.
    outbox: Option<Outbox>,
    /// Operations in the order of time, and how many are done.
    operations: Vec<&'s Operate>,
    operated: usize,
    /// Times that expectations ask for, latest first.
    asked: Vec<Millis>,
    /// By bucket: a rollback or kill of it has been accepted.
    stopped: Vec<bool>,
    /// Shares that an operation moved the ramp to.
    ramp: Option<(f64, Vec<f64>)>,
    seen: Seen,
}

impl<'s> Run<'s> {
    fn new(stage: &'s Stage<'s>, way: Way, start: Millis) -> Run<'s> {
        let Stage { case, rule, catalog, .. } = stage;
        let settings = &case.settings;
        let fleet = Fleet::new(catalog, settings.pane).sharing(&settings.shared_cause).braking(&settings.blast_radius);
        // The run that is played the long way shows that this changes no decision.
        let looked_at = !way.hurried || way.whole || !case.expect.iter().all(|e| e.is.hears_decisions_alone());
        let fleet = if looked_at { fleet } else { fleet.unseen() };
        let mut operations: Vec<&Operate> = case.operations.iter().collect();
        operations.sort_by_key(|o| o.at);
        let asked: BTreeSet<Millis> = case.expect.iter().filter_map(|e| e.is.look()).filter(|at| *at != Millis::MAX).collect();
        Run {
            stage,
            way,
            fleet,
            out: Output::default(),
            router: Router::default(),
            outbox: None,
            operations,
            operated: 0,
            asked: asked.into_iter().rev().collect(),
            stopped: vec![false; rule.plan.buckets.len()],
            ramp: None,
            seen: Seen { start, ..Seen::default() },
        }
    }

    /// Has the flag service do what faults, receivers and operators ask for in the pane that begins at `from`.
    fn steer(&mut self, generator: &mut Generator<'_>, from: Millis) {
        let faults = || self.stage.case.faults.iter().filter(|f| f.is_active(from));
        generator.bias(faults().find_map(|f| f.weights.as_deref()));
        for (bucket, stopped) in self.stopped.iter().enumerate() {
            let goes_on = |f: &Fault| f.exposures_go_on && f.bucket.is_none_or(|b| b == bucket);
            generator.stop(bucket, *stopped && !faults().any(goes_on));
        }
        if let Some((traffic, weights)) = self.ramp.take() {
            generator.ramp(traffic, weights);
        }
    }

    /// Carries out what operators ask for until then, ms after the start.
    fn operate(&mut self, until: Millis) -> Result<(), String> {
        while let Some(operate) = self.operations.get(self.operated).filter(|o| o.at <= until) {
            self.operated += 1;
            let at = self.seen.start + operate.at;
            let operation = match &operate.does {
                Does::Hold(span) => Operation::Hold { until: span.map(|span| at + span) },
                Does::Resume => {
                    self.stopped.fill(false);
                    Operation::Resume
                }
                Does::Rollback => Operation::Act(Action::Rollback),
                Does::Kill => Operation::Act(Action::Kill),
                Does::Phase(phase, weights) => {
                    let plan = &self.stage.rule.plan;
                    let planned = plan.phases.iter().find(|p| p.name == *phase).or_else(|| plan.phases.get(phase.parse::<usize>().ok()?));
                    let traffic = planned.filter(|p| p.weights.is_none()).map_or(1.0, |p| p.traffic);
                    self.ramp = Some((traffic, weights.clone()));
                    let named = plan.buckets.iter().zip(weights).map(|(b, w)| (b.name.clone(), *w)).collect();
                    Operation::Phase { phase: phase.clone(), weights: named }
                }
            };
            let operator = Operator { operation, bucket: operate.bucket.clone(), author: "test".into(), reason: "rule test".into(), at };
            if let Some(Err(why)) = self.fleet.operate(&self.stage.rule.plan.experiment, &operator, &mut self.out) {
                return Err(format!("an operation was refused: {why}"));
            }
            self.said(at)?;
        }
        Ok(())
    }

    /// Takes down what the judges have said by `now`, and delivers until then.
    fn said(&mut self, now: Millis) -> Result<(), String> {
        if !self.out.is_empty() {
            self.write(now)?;
        }
        let Some(outbox) = &mut self.outbox else { return Ok(()) };
        while let Some(attempt) = outbox.step(now).map_err(|e| e.to_string())? {
            let stops = ["guardrail.rollback", "guardrail.kill"].contains(&attempt.event_type.as_str()) && attempt.delivered;
            if !stops {
                continue;
            }
            let plan = &self.stage.rule.plan;
            let decided = self.seen.decisions.iter().find(|d| d.decision == attempt.decision);
            for (bucket, stopped) in self.stopped.iter_mut().enumerate().filter(|(b, _)| *b != plan.baseline()) {
                *stopped |= decided.is_some_and(|d| d.bucket.is_empty() || d.bucket == plan.buckets[bucket].name);
            }
        }
        Ok(())
    }

    fn write(&mut self, now: Millis) -> Result<(), String> {
        let Output { decisions, notices, log } = std::mem::take(&mut self.out);
        let (rule, router) = (self.stage.rule, &self.router);
        let mut commit = Commit { at: now, ..Commit::default() };
        for decision in decisions {
            // What several experiments share has no rule of its own, and there is only one here.
            let mine = decision.experiment == rule.plan.experiment;
            let deliveries = if mine { router.decision(rule, &decision, None) } else { Vec::new() };
            self.seen.decisions.push(decision.clone());
            commit.decisions.push((decision, deliveries));
        }
        for notice in notices {
            let deliveries = router.notice(rule, &notice, None);
            self.seen.notices.push(notice.clone());
            commit.notices.push((notice, deliveries));
        }
        let told = [LogKind::Phase, LogKind::FullRollout, LogKind::WatchOver, LogKind::Ended, LogKind::Withheld];
        self.seen.log.extend(log.into_iter().filter(|entry| told.contains(&entry.kind)));
        let rows = commit.decisions.iter().map(|(_, rows)| rows).chain(commit.notices.iter().map(|(_, rows)| rows));
        let some = rows.flatten().next().is_some();
        if some && self.outbox.is_none() {
            self.outbox = Some(self.stage.outbox()?);
        }
        match &mut self.outbox {
            Some(outbox) => outbox.commit(&commit).map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }

    fn view(&self) -> Option<ExperimentState> {
        self.fleet.views().into_iter().find(|v| v.experiment == self.stage.rule.plan.experiment)
    }

    /// Keeps the states that are asked for by `end`, ms after the start.
    fn look(&mut self, end: Millis) {
        while let Some(at) = self.asked.pop_if(|at| *at <= end) {
            let view = self.view();
            self.seen.looks.extend(view.map(|view| (at, view)));
        }
        if !self.way.watched {
            return;
        }
        // The length of a recording is not known beforehand: then once a minute.
        let every = self.stage.case.synthetic.as_ref().map_or(60_000, |s| (s.spec.length / POINTS).max(s.spec.settings.pane));
        if self.seen.strip.last().is_none_or(|(at, _)| end - at >= every) {
            let view = self.fleet.close_view(&self.stage.rule.plan.experiment);
            self.seen.strip.extend(view.map(|view| (end, view)));
        }
    }

    /// Whether nothing that may still come changes whether the expectations hold.
    fn is_settled(&self, end: Millis) -> bool {
        let start = self.seen.start;
        self.stage.case.expect.iter().all(|e| match &e.is {
            Is::Acts { like, span, times: None, .. } => end > span.1 || self.seen.decisions.iter().any(|d| like.fits(d, start, *span)),
            Is::Never { like, span } => end > span.1 || self.seen.decisions.iter().any(|d| like.fits(d, start, *span)),
            _ => false,
        })
    }

    fn end(mut self) -> Result<Seen, String> {
        let end = self.seen.start + self.seen.length;
        self.said(end)?;
        let view = self.view();
        let last = self.seen.length;
        while let Some(at) = self.asked.pop() {
            self.seen.looks.extend(view.clone().map(|view| (at, view)));
        }
        if self.way.watched && self.seen.strip.last().is_none_or(|(at, _)| *at < last) {
            let close = self.fleet.close_view(&self.stage.rule.plan.experiment);
            self.seen.strip.extend(close.map(|view| (last, view)));
        }
        self.seen.looks.extend(view.map(|view| (Millis::MAX, view)));
        self.seen.attempts = self.outbox.map(Outbox::into_attempts).unwrap_or_default();
        Ok(self.seen)
    }
}
