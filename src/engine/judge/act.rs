//! Acting: how a breach or an operator's request becomes a decision, and what that changes.

use super::books::Books;
use super::stop::{Confirmation, Stop};
use super::{Alarm, Guard, Hypothesis, Judge, OperatorHold, SPREADING_MS, interval, limit::Reading};
use crate::engine::decision::{Action, Decision, Evidence, LogEntry, LogKind, Mode, Notice, NoticeKind, Output, Verdict, decision_id};
use crate::engine::plan::{Guardrail, Statistic};
use crate::engine::time::{Millis, Pane};
use std::fmt::Write;

/// How far beyond the last judged pane records from before a `resume` are looked for.
const REOPEN_MS: Millis = 10_000;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Stop acting (never measuring) until `until`, or until resumed. `kill` is not held back.
    Hold { until: Option<Millis> },
    /// Lift holds and re-arm every guardrail that has tripped; windows start anew.
    Resume,
    /// Act now.
    Act(Action),
    /// The rollout moved.
    Phase { phase: String, weights: Vec<(String, f64)> },
    /// Nothing is done but noted.
    Annotate {
        /// One of those that people write.
        kind: LogKind,
        links: Vec<String>,
    },
}

/// Who asks, when, about what, and why.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Operator {
    pub operation: Operation,
    /// `None` means every bucket but the baseline.
    pub bucket: Option<String>,
    pub author: String,
    /// The reason, or the text of an annotation.
    pub reason: String,
    pub at: Millis,
}

impl Judge {
    /// A criterion of a guardrail is met: decide once, unless an operator holds.
    pub(super) fn trip(&mut self, of: Hypothesis, now: Millis, alarm: Alarm, out: &mut Output) {
        let plan = std::sync::Arc::clone(&self.plan);
        let guardrail = &plan.guardrails[of.guardrail];
        let name = &plan.buckets[of.bucket].name;
        if of.segment.is_some() && !self.segments_act() {
            self.guard_mut(of).withheld = true;
            return self.log(now, LogKind::Exploratory, None, alarm.reason, out);
        }
        let mut decision = self.breach(of, now, alarm);
        // What is replayed was decided before the hold.
        if self.held(guardrail.on_breach) && !self.ahead.contains_key(&decision.decision) {
            if !std::mem::replace(&mut self.guard_mut(of).withheld, true) {
                let place = of.segment.map_or(String::new(), |segment| format!(" in {}", self.state.segments.list[segment].name));
                let text = format!("{} of {name}{place} is in breach; a hold withholds {}", guardrail.name, guardrail.on_breach.name());
                self.log(now, LogKind::Withheld, None, text, out);
            }
            return;
        }
        let id = decision.decision.clone();
        self.guard_mut(of).tripped = Some(id.clone());
        if !self.in_force.contains_key(&id) {
            self.enforce(&mut decision, &[of.bucket], Pane::of(now - 1, self.pane_ms));
            self.put_in_force(decision, out);
        }
    }

    /// What is decided about a criterion that is met.
    pub(super) fn breach(&self, of: Hypothesis, now: Millis, alarm: Alarm) -> Decision {
        let (guardrail, bucket) = (&self.plan.guardrails[of.guardrail], &self.plan.buckets[of.bucket].name);
        let mut decision = self.decision(bucket, &guardrail.name, alarm.criterion, guardrail.on_breach, now);
        if let Some(segment) = of.segment {
            let name = self.state.segments.list[segment].name.clone();
            let part = format!("{}/{name}", alarm.criterion);
            let (experiment, bucket) = (&decision.experiment, &decision.bucket);
            decision.decision = decision_id(experiment, decision.revision, bucket, &decision.guardrail, decision.epoch, &part);
            decision.segment = Some(name);
        }
        [decision.baseline_value, decision.bucket_value] = alarm.values;
        decision.unit = alarm.unit;
        decision.change = change(decision.baseline_value, decision.bucket_value);
        decision.interval = alarm.interval;
        decision.margin = alarm.margin;
        decision.alpha = alarm.alpha;
        decision.log_e_value = alarm.log_e;
        decision.test = alarm.test.to_owned();
        decision.since = alarm.since.min(now);
        decision.exposed_units = self.state.traffic[of.bucket].units;
        decision.evidence = alarm.evidence;
        decision.reason = alarm.reason;
        if of.segment.is_none() && !self.segments_act() {
            let breached = self.segments(of, false).into_iter().map(|s| s.segment).collect::<Vec<_>>().join(", ");
            if !breached.is_empty() {
                let _ = write!(decision.reason, "; exploratory: also in {breached}");
            }
        }
        decision
    }

    /// What a limit that is exceeded says.
    pub(super) fn limit_alarm(&self, of: Hypothesis, now: Millis, reading: &Reading) -> Alarm {
        let Hypothesis { guardrail: index, bucket, .. } = of;
        let (guardrail, pane) = (&self.plan.guardrails[index], Pane::of(now - 1, self.pane_ms));
        let alpha = (-self.threshold_of_limit(index, bucket)).exp();
        let value = match reading.evidence {
            // A single event decides before its pane, and so its window, has counted it.
            Evidence::Count { count, .. } => Some(count as f64),
            _ => self.value(index, bucket, pane).or(Some(reading.n as f64)),
        };
        let values = [self.value(index, self.plan.baseline(), pane), value];
        let reason = reason(guardrail, &self.plan.buckets[bucket].name, values, &reading.evidence);
        Alarm {
            criterion: "limit",
            test: reading.test,
            interval: interval::of_value(&reading.evidence, alpha, guardrail),
            evidence: reading.evidence.clone(),
            // A count over its limit is policy: there is no chance to account for.
            log_e: reading.over.is_finite().then_some(reading.over),
            alpha: reading.over.is_finite().then_some(alpha),
            margin: guardrail.limit,
            unit: guardrail.unit.clone(),
            values,
            since: self.guard(of).beyond_since.map_or(now, |p| p.start(self.pane_ms)),
            reason,
        }
    }

    /// A decision with the facts that all have in common.
    pub(super) fn decision(&self, bucket: &str, guardrail: &str, criterion: &str, action: Action, now: Millis) -> Decision {
        let (experiment, revision, epoch) = (self.plan.experiment.clone(), self.plan.revision, self.state.epoch);
        let part = if criterion == "operator" { format!("operator/{}", action.name()) } else { criterion.to_owned() };
        Decision {
            decision: decision_id(&experiment, revision, bucket, guardrail, epoch, &part),
            decided_at: now,
            experiment,
            revision,
            phase: self.state.phase,
            bucket: bucket.to_owned(),
            guardrail: guardrail.to_owned(),
            criterion: criterion.to_owned(),
            verdict: Verdict::Breach,
            action,
            mode: self.plan.mode,
            baseline_value: None,
            bucket_value: None,
            unit: String::new(),
            change: None,
            interval: None,
            margin: None,
            alpha: None,
            log_e_value: None,
            test: "count".into(),
            since: now,
            exposed_units: 0,
            evidence: Evidence::Count { count: 0, allowed: 0 },
            reason: String::new(),
            epoch,
            segment: None,
            covered_by: None,
            held_by: None,
            author: None,
            shared_cause: None,
        }
    }

    /// Rollback and kill stop buckets: begin to watch their exposures, which follow the designed shares no longer, unless an earlier decision has done as much for all of them.
    pub(super) fn enforce(&mut self, decision: &mut Decision, buckets: &[usize], pane: Pane) {
        if decision.action < Action::Rollback {
            return;
        }
        decision.covered_by = self.covering(decision, buckets);
        if buckets.iter().all(|b| self.state.stops[*b].as_ref().is_some_and(|stop| stop.action >= decision.action)) {
            return;
        }
        self.state.allocation.suspend(Pane(pane.0 + 1));
        for &bucket in buckets {
            let confirmation = if decision.mode == Mode::Enforce { Confirmation::Waiting } else { Confirmation::Observed };
            let before_per_s = self.state.traffic[bucket].settled_rate(pane, self.pane_ms);
            let (id, action) = (decision.decision.clone(), decision.action);
            let at = decision.decided_at;
            self.state.stops[bucket] = Some(Stop { decision: id, action, at, before_per_s, confirmation, comeback: None });
        }
    }

    /// A decision that does as much for all of the buckets, in force or said ahead of its pane: then this one is not delivered.
    pub(super) fn covering(&self, decision: &Decision, buckets: &[usize]) -> Option<String> {
        let of = |bucket: &usize| {
            let stop = self.state.stops[*bucket].as_ref().filter(|stop| stop.action >= decision.action).map(|stop| &stop.decision);
            stop.or_else(|| {
                self.ahead_about(*bucket).find(|d| d.action >= decision.action && d.decision != decision.decision).map(|d| &d.decision)
            })
        };
        let covering: Option<Vec<&String>> = buckets.iter().map(of).collect();
        covering?.first().map(|id| (*id).clone())
    }

    /// What is decided counts from now on. It is said, unless it has been.
    pub(super) fn put_in_force(&mut self, decision: Decision, out: &mut Output) {
        let said = self.ahead.remove(&decision.decision);
        if said.is_none() {
            out.decisions.push(decision.clone());
        }
        self.in_force.insert(decision.decision.clone(), said.unwrap_or(decision));
    }

    /// Notes what a decision turned out to be beside those of others: it shares its cause with some, or is held back.
    pub fn amend(&mut self, decision: &Decision) {
        let id = &decision.decision;
        if let Some(mine) = self.in_force.get_mut(id).or_else(|| self.ahead.get_mut(id)) {
            *mine = decision.clone();
        }
    }

    /// Whether the decision that stopped a bucket has been held back.
    pub(super) fn is_held_back(&self, stop: &Stop) -> bool {
        self.in_force.get(&stop.decision).is_some_and(|decision| decision.held_by.is_some())
    }

    /// Carries out an operator's request; the message says what came of it. Refusals explain themselves.
    pub fn operate(&mut self, operator: &Operator, out: &mut Output) -> Result<String, String> {
        self.changed = true;
        let by = Some(operator.author.clone());
        match &operator.operation {
            Operation::Hold { until } => {
                let hold = OperatorHold { until: *until, author: operator.author.clone(), reason: operator.reason.clone() };
                self.state.hold = Some(hold);
                for decision in self.in_force.values().filter(|d| d.action == Action::Page) {
                    let text = format!("{} is held by {}: {}", decision.experiment, operator.author, operator.reason);
                    out.notices.push(Notice { kind: NoticeKind::Held, at: operator.at, decision: decision.clone(), text });
                }
                self.log(operator.at, LogKind::Operator, by, format!("hold: {}", operator.reason), out);
                Ok("held: it measures and decides no action but kill until resumed".into())
            }
            Operation::Resume => Ok(self.resume(operator, out)),
            Operation::Act(action) => self.act(*action, operator, out),
            Operation::Phase { phase, weights } => {
                let names: Vec<&str> = self.plan.phases.iter().map(|p| p.name.as_str()).collect();
                let named = names.iter().position(|name| name == phase).map(|i| i as u32);
                let numbered = || phase.parse().ok().filter(|i| names.is_empty() || (*i as usize) < names.len());
                let Some(index) = named.or_else(numbered) else {
                    return Err(format!("no phase `{phase}`: give its index, counted from 0, or one of {names:?}"));
                };
                if let Some((unknown, _)) = weights.iter().find(|(name, _)| self.plan.bucket(name).is_none()) {
                    return Err(format!("no bucket `{unknown}`"));
                }
                self.move_to(operator.at, Some(index), weights, by, out);
                Ok(format!("phase is now {phase}"))
            }
            Operation::Annotate { kind, links } => {
                let (experiment, text) = (self.plan.experiment.clone(), operator.reason.clone());
                out.log.push(LogEntry { at: operator.at, experiment, kind: *kind, author: by, text, decision: None, links: links.clone() });
                Ok("noted".into())
            }
        }
    }

    fn resume(&mut self, operator: &Operator, out: &mut Output) -> String {
        let ahead = std::mem::take(&mut self.ahead);
        for decision in std::mem::take(&mut self.in_force).into_values().chain(ahead.into_values()) {
            let text = format!("{} of {} re-armed by {}: {}", decision.guardrail, decision.experiment, operator.author, operator.reason);
            out.notices.push(Notice { kind: NoticeKind::Resolved, at: operator.at, decision, text });
        }
        let in_segments = self.state.segments.list.iter().flat_map(|segment| &segment.guards);
        let tripped = self.state.guards.iter().chain(in_segments).flatten().filter(|g| g.tripped.is_some()).count();
        let fresh = Judge::new(std::sync::Arc::clone(&self.plan), self.pane_ms).state;
        self.state.windows = fresh.windows;
        self.state.guards.iter_mut().flatten().for_each(|g| *g = Guard::default());
        self.state.quality = fresh.quality;
        (self.state.evidence, self.state.book_of) = (fresh.evidence, fresh.book_of);
        let books = Books { list: &self.state.evidence, of: &self.state.book_of };
        self.state.segments.rearm(&self.plan, self.pane_ms, books);
        self.state.enrolled = fresh.enrolled;
        self.state.volume = fresh.volume;
        self.state.first_cohort = None;
        self.state.stops.fill(None);
        self.state.hold = None;
        self.state.epoch += 1;
        // The panes that are open now were seen, in part, by whoever resumed.
        let soon = self.state.at.map(|at| Pane(at.0 + (REOPEN_MS / self.pane_ms).max(1)));
        self.state.stale_to = soon.map(|soon| soon.min(Pane::of(operator.at, self.pane_ms)));
        let (from, spreading) = (Pane::of(operator.at, self.pane_ms), (SPREADING_MS / self.pane_ms).max(1));
        self.state.allocation.change(from, &self.state.weights, spreading);
        self.log(operator.at, LogKind::Operator, Some(operator.author.clone()), format!("resume: {}", operator.reason), out);
        format!("resumed: {tripped} guardrails re-armed, windows start anew")
    }

    fn act(&mut self, action: Action, operator: &Operator, out: &mut Output) -> Result<String, String> {
        let baseline = self.plan.baseline();
        let buckets = match &operator.bucket {
            None => (0..self.plan.buckets.len()).filter(|b| *b != baseline).collect(),
            Some(name) => match self.plan.bucket(name) {
                Some(bucket) if bucket != baseline => vec![bucket],
                Some(_) => return Err(format!("`{name}` is the baseline: there is nothing to take back from it")),
                None => return Err(format!("no bucket `{name}`")),
            },
        };
        let pane = Pane::of(operator.at, self.pane_ms).min(self.state.at.unwrap_or(Pane::of(operator.at, self.pane_ms)));
        let before = out.decisions.len();
        for bucket in buckets {
            let name = self.plan.buckets[bucket].name.clone();
            let mut decision = self.decision(&name, "operator", "operator", action, operator.at);
            if self.in_force.contains_key(&decision.decision) {
                continue;
            }
            decision.exposed_units = self.state.traffic[bucket].units;
            decision.evidence = Evidence::Operator { reason: operator.reason.clone() };
            decision.reason = format!("{} of {name} by {}: {}", action.name(), operator.author, operator.reason);
            decision.author = Some(operator.author.clone());
            if self.state.stops[bucket].as_ref().is_some_and(|stop| self.is_held_back(stop)) {
                self.state.stops[bucket] = None;
            }
            self.enforce(&mut decision, &[bucket], pane);
            // A person's word is delivered even where a machine has said the same.
            decision.covered_by = None;
            self.put_in_force(decision, out);
        }
        match out.decisions.len() - before {
            0 => Ok(format!("nothing to do: {} has been decided already; `resume` re-arms it", action.name())),
            n => Ok(format!("{} decided for {n} bucket{}", action.name(), if n == 1 { "" } else { "s" })),
        }
    }
}

fn change(baseline: Option<f64>, bucket: Option<f64>) -> Option<f64> {
    let (baseline, bucket) = (baseline?, bucket?);
    (baseline != 0.0).then_some(bucket / baseline - 1.0)
}

/// A share: `5%`, `23.75%`.
pub(super) fn percent(share: f64) -> String {
    format!("{}%", (share * 1e4).round() / 100.0)
}

/// A value in its unit: `518 ms`, `12.5%`, `3`.
pub(super) fn show(value: f64, unit: &str) -> String {
    match unit {
        "%" => format!("{:.2}%", 100.0 * value),
        "" if value.fract() == 0.0 => format!("{value}"),
        "" => format!("{value:.3}"),
        _ if value.abs() >= 100.0 => format!("{value:.0} {unit}"),
        _ => format!("{value:.3} {unit}"),
    }
}

fn reason(guardrail: &Guardrail, bucket: &str, values: [Option<f64>; 2], evidence: &Evidence) -> String {
    let unit = &guardrail.unit;
    let shown = |value: Option<f64>| value.map_or("unknown".to_owned(), |v| show(v, unit));
    let side = if guardrail.higher_is_worse { "above" } else { "below" };
    let mut text = format!("{} of {bucket} is {}, {side} the limit of {}", guardrail.name, shown(values[1]), shown(guardrail.limit));
    let seen = match evidence {
        Evidence::Exceedance { s, n, q0_ppm, .. } => {
            let (share, allowed) = (100.0 * *s as f64 / (*n).max(1) as f64, f64::from(*q0_ppm) / 10_000.0);
            Some(format!("{share:.1}% of {n} values in the window lie above it, {allowed}% may"))
        }
        Evidence::Threshold { n, x, .. } => Some(format!("{x} of {n} in the window")),
        Evidence::Poisson { x, mu0 } => Some(format!("{x} events where {mu0:.1} are allowed")),
        _ => None,
    };
    if let Some(seen) = seen {
        let _ = write!(text, ": {seen}");
    }
    if let Some(baseline) = values[0].filter(|_| guardrail.statistic != Statistic::Count) {
        let _ = write!(text, " (baseline {})", show(baseline, unit));
    }
    text
}
