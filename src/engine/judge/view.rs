//! The Judge's state as people and controllers see it.

use super::act::show;
use super::stop::Confirmation;
use super::{Hypothesis, Judge, interval, limit};
use crate::engine::decision::{Mode, Verdict};
use crate::engine::evidence::{Arm, SignalEvidence};
use crate::engine::plan::{Guardrail, Margin, QualityKind, Signal, Statistic};
use crate::engine::state::{
    BucketState, ExperimentState, GuardrailState, HoldState, QualityState, RetentionBucket, RetentionState, RolloutState, StopState,
};
use crate::engine::time::Pane;

impl Judge {
    /// The state as of the last pane. What is dear (exact evidence of quantiles, all intervals) is left out.
    pub fn view(&self) -> ExperimentState {
        self.shown(false)
    }

    /// [`Judge::view`] with the exact evidence and the interval of every guardrail.
    pub fn close_view(&self) -> ExperimentState {
        self.shown(true)
    }

    fn shown(&self, closely: bool) -> ExperimentState {
        let pane = self.state.at.unwrap_or(Pane(0));
        let baseline = self.plan.baseline();
        let tested = || (0..self.plan.buckets.len()).filter(move |b| *b != baseline);
        let each = (0..self.plan.guardrails.len()).flat_map(|g| tested().map(move |b| (g, b)));
        let guardrails: Vec<GuardrailState> = each.map(|(g, b)| self.guardrail(Hypothesis::overall(g, b), pane, closely)).collect();
        let in_segments =
            guardrails.iter().flat_map(|g| &g.segments).map(|s| s.verdict).filter(|v| *v == Verdict::Breach && self.segments_act());
        let verdict = guardrails.iter().map(|g| g.verdict).chain(in_segments).max_by_key(|v| v.badness()).unwrap_or(Verdict::NoData);
        let holds = self.holds();
        let stop = (0..self.plan.buckets.len()).any(|bucket| self.stopped(bucket).is_some());
        let small = self.state.traffic.iter().position(|t| t.size() < self.plan.min_units);
        let rollout = self.rollout();
        let (go, reason) = self.go(verdict, &holds, small, &guardrails, &rollout);
        ExperimentState {
            experiment: self.plan.experiment.clone(),
            revision: self.plan.revision,
            mode: self.plan.mode,
            phase: self.state.phase,
            phase_name: self.plan.phases.get(self.state.phase as usize).map(|p| p.name.clone()),
            verdict,
            go,
            stop,
            reason,
            holds,
            buckets: (0..self.plan.buckets.len()).map(|b| self.bucket(b, pane)).collect(),
            guardrails,
            secondary: if closely { self.secondary() } else { Vec::new() },
            quality: (0..self.plan.quality.len()).map(|q| self.quality(q, pane, closely)).collect(),
            data: self.state.figures.shown(self.state.records, self.checked()),
            judged_to: self.state.at.map(|p| p.end(self.pane_ms)),
            last_record: self.state.last_record.map(|p| p.end(self.pane_ms)),
            records: self.state.records,
            rejected: self.state.rejected,
            decisions: self.in_force.keys().chain(self.ahead.keys()).cloned().collect(),
            rollout,
            phases: if closely { self.state.rollout.phases.view(&self.plan) } else { Vec::new() },
            funnels: self.state.funnels.view(&self.plan, pane),
            retention: self.plan.retention.iter().map(|(name, signal)| self.retention(name, *signal)).collect(),
            whole_life: closely.then(|| self.state.rollout.phases.whole_life(&self.plan)),
        }
    }

    fn go(
        &self,
        verdict: Verdict,
        holds: &[HoldState],
        small: Option<usize>,
        guardrails: &[GuardrailState],
        rollout: &RolloutState,
    ) -> (bool, String) {
        if let Some((bucket, stop)) = (0..self.plan.buckets.len()).find_map(|b| Some((b, self.stopped(b)?))) {
            return (false, format!("{} of {} ({})", stop.action.name(), self.plan.buckets[bucket].name, stop.confirmation));
        }
        if let Some(why) = self.not_now(rollout).filter(|_| verdict != Verdict::Breach) {
            return (false, why);
        }
        if let Some(bad) = guardrails.iter().find(|g| g.verdict == verdict && matches!(verdict, Verdict::Breach | Verdict::NoData)) {
            return (false, format!("{} of {}: {}", bad.guardrail, bad.bucket, bad.reason));
        }
        let acting = guardrails.iter().filter(|_| self.segments_act()).flat_map(|g| g.segments.iter().map(move |s| (g, s)));
        if let Some((g, s)) = acting.into_iter().find(|(_, s)| s.verdict == Verdict::Breach) {
            return (false, format!("{} of {} in {}: {}", g.guardrail, g.bucket, s.segment, s.reason));
        }
        if let Some(hold) = holds.first() {
            return (false, format!("held by {}: {}", hold.by, hold.reason));
        }
        if let Some(bucket) = small {
            let (name, size) = (&self.plan.buckets[bucket].name, self.state.traffic[bucket].size());
            return (false, format!("{name} has {size} units of the {} that a judgement needs", self.plan.min_units));
        }
        match guardrails.is_empty() {
            true => (false, "the rule has no guardrails".into()),
            false => (true, format!("no guardrail is in breach and data is fresh{}", self.outlook(rollout))),
        }
    }

    fn holds(&self) -> Vec<HoldState> {
        let operator = self.state.hold.iter().map(|h| HoldState {
            by: "operator".into(),
            reason: h.reason.clone(),
            author: Some(h.author.clone()),
            until: h.until,
        });
        let failing = self.plan.quality.iter().enumerate().filter(|(index, _)| self.fails(*index));
        let quality = failing.map(|(_, check)| HoldState {
            by: check.kind.name().into(),
            reason: "the data cannot be trusted now".into(),
            author: None,
            until: None,
        });
        operator.chain(quality).collect()
    }

    fn bucket(&self, bucket: usize, pane: Pane) -> BucketState {
        let (plan, traffic) = (&self.plan.buckets[bucket], &self.state.traffic[bucket]);
        BucketState {
            bucket: plan.name.clone(),
            baseline: plan.baseline,
            weight: self.state.weights[bucket],
            exposed_units: traffic.units,
            mixed_units: traffic.mixed_units,
            exposures: traffic.exposures,
            events: traffic.events,
            exposure_rate: traffic.rate(pane, (10_000 / self.pane_ms).max(1), self.pane_ms),
            stopped: self.stopped(bucket),
        }
    }

    fn guardrail(&self, of: Hypothesis, pane: Pane, closely: bool) -> GuardrailState {
        let Hypothesis { guardrail: index, bucket, .. } = of;
        let (plan, baseline) = (&self.plan.guardrails[index], self.plan.baseline());
        let (windows, guard) = (&self.state.windows[self.state.window_of[index]], self.guard(of));
        let reading = self.read(index, bucket, pane);
        let look = plan.max_increase.filter(|_| closely).and_then(|_| self.whole_life(of, f64::NEG_INFINITY));
        let [mut baseline_value, mut bucket_value] = [baseline, bucket].map(|b| self.value(index, b, pane));
        if plan.primary {
            [baseline_value, bucket_value] = look.as_ref().map_or([baseline_value, bucket_value], |l| l.values);
        }
        let (verdict, reason) = self.verdict(of, pane, reading.as_ref());
        let evidence = match (&look, &reading) {
            (Some(look), _) => Some(look.evidence()),
            (None, Some(reading)) if plan.max_increase.is_none() => Some(reading.evidence.clone()),
            _ => None,
        };
        let (log_e_value, log_threshold) = match plan.max_increase {
            Some(_) => (Some(guard.max_log_e), Some(self.whole_life_threshold(of))),
            None => {
                (reading.as_ref().map(|r| r.over).filter(|l| l.is_finite()), plan.limit.map(|_| self.threshold_of_limit(index, bucket)))
            }
        };
        let interval = match (&look, &reading) {
            (Some(look), _) => look.interval(plan),
            (None, Some(r)) if closely && plan.max_increase.is_none() => {
                interval::of_value(&r.evidence, (-self.threshold_of_limit(index, bucket)).exp(), plan)
            }
            _ => None,
        };
        GuardrailState {
            guardrail: plan.name.clone(),
            bucket: self.plan.buckets[bucket].name.clone(),
            verdict,
            reason,
            statistic: statistic(plan.statistic),
            unit: plan.unit.clone(),
            window_ms: plan.window,
            baseline_value,
            bucket_value,
            change: baseline_value.zip(bucket_value).filter(|(b, _)| *b != 0.0).map(|(b, t)| t / b - 1.0),
            interval,
            evidence,
            limit: plan.limit,
            max_increase: plan.max_increase,
            primary: plan.primary,
            higher_is_worse: plan.higher_is_worse,
            n: self.observations(of, pane),
            baseline_n: self.observations(Hypothesis { bucket: baseline, ..of }, pane),
            log_e_value,
            log_threshold,
            design_effect: plan.max_increase.and_then(|_| self.design_effect(of)),
            observation: match (plan.statistic, self.plan.signals[plan.signal].is_per_user()) {
                (_, true) => "unit",
                (Statistic::Share, false) if matches!(self.plan.signals[plan.signal], Signal::Abandonment { .. }) => "workflow",
                _ => "event",
            },
            on_breach: plan.on_breach,
            decision: self.tripped_by(of).cloned(),
            clamped: windows.iter().map(|w| w.clamped()).sum(),
            segments: self.segments(of, closely),
        }
    }

    /// Observations behind a guardrail's value.
    fn observations(&self, of: Hypothesis, pane: Pane) -> u64 {
        let Hypothesis { guardrail: index, bucket, .. } = of;
        if let Some(units) = self.of_units(index, bucket) {
            return units.n;
        }
        if let Some(SignalEvidence::Mean(means)) = self.evidence_of(of) {
            return means.mean(bucket).map_or(0, |(n, _)| n);
        }
        limit::observations(&self.plan.guardrails[index], &self.state.windows[self.state.window_of[index]][bucket], self.seen(bucket), pane)
    }

    /// The verdict of one guardrail of one bucket, and why. What data says that cannot be trusted is no proof that all is well.
    fn verdict(&self, of: Hypothesis, pane: Pane, reading: Option<&limit::Reading>) -> (Verdict, String) {
        let (verdict, reason) = self.weighed(of, pane, reading);
        let mut checks = self.plan.quality.iter().enumerate();
        match checks.find(|(index, _)| verdict == Verdict::Safe && self.fails(*index)) {
            Some((_, check)) => (Verdict::Watching, format!("{reason}, by data that cannot be trusted: {} fails", check.kind.name())),
            None => (verdict, reason),
        }
    }

    fn weighed(&self, of: Hypothesis, pane: Pane, reading: Option<&limit::Reading>) -> (Verdict, String) {
        let Hypothesis { guardrail: index, bucket, .. } = of;
        let (plan, guard) = (&self.plan.guardrails[index], self.guard(of));
        if let Some(id) = self.tripped_by(of) {
            return (Verdict::Breach, format!("breached: see {id}"));
        }
        if guard.withheld {
            return (Verdict::Breach, "in breach; an operator's hold withholds the action".into());
        }
        if self.is_silent() {
            return (Verdict::NoData, "no record arrives: what was known is stale".into());
        }
        let seen = self.state.traffic[bucket].last_pane().is_some_and(|last| pane.0 - last.0 < (plan.window / self.pane_ms).max(1));
        let n = self.observations(of, pane);
        if let (true, 0, Signal::Retention { day, .. }) = (seen, n, &self.plan.signals[plan.signal]) {
            return (Verdict::Watching, format!("the first units are judged {} days after their exposure", day + 1));
        }
        let counts = matches!(plan.statistic, Statistic::Count | Statistic::Exposures);
        if !seen || (n == 0 && !counts) {
            return (Verdict::NoData, format!("nothing in the last {} s", plan.window / 1_000));
        }
        let shown = self.value(index, bucket, pane).map_or("no value yet".into(), |v| show(v, &plan.unit));
        if self.state.rollout.is_done() {
            return (Verdict::Watching, format!("{shown}: not judged any more"));
        }
        let limit_holds = reading.is_none_or(|r| r.under >= self.threshold_of_limit(index, bucket));
        if let Some(r) = reading.filter(|r| r.beyond) {
            let why = if r.n > 0 { "beyond the limit, not enough evidence yet" } else { "not enough evidence either way" };
            return (Verdict::Watching, format!("{shown}: {why}"));
        }
        if plan.max_increase.is_none() {
            return match limit_holds && reading.is_some() {
                true => (Verdict::Safe, format!("{shown}: evidence that the limit holds")),
                false => (Verdict::Watching, format!("{shown}: not enough evidence either way")),
            };
        };
        let against = against(plan);
        match self.untold(of) {
            Some(why) => (Verdict::Watching, format!("{shown}: {why}")),
            None if guard.safe && limit_holds => (Verdict::Safe, format!("{shown}: proved to be less than {against}")),
            None => (Verdict::Watching, format!("{shown}; at most {against} is allowed, no evidence either way")),
        }
    }

    /// What has told a bucket to stop: what outranks the rest, in force or ahead.
    fn stopped(&self, bucket: usize) -> Option<StopState> {
        let stop = self.state.stops[bucket].as_ref().map(|stop| StopState {
            decision: stop.decision.clone(),
            action: stop.action,
            at: stop.at,
            confirmation: if self.is_held_back(stop) { "held" } else { stop.confirmation.name() }.into(),
        });
        let ahead = self.ahead_about(bucket).map(|decision| StopState {
            decision: decision.decision.clone(),
            action: decision.action,
            at: decision.decided_at,
            confirmation: match (decision.held_by, decision.mode) {
                (Some(_), _) => "held",
                (None, Mode::Enforce) => Confirmation::Waiting.name(),
                (None, Mode::Observe) => Confirmation::Observed.name(),
            }
            .into(),
        });
        // Of equals the one in force.
        ahead.chain(stop).max_by_key(|stop| stop.action)
    }

    fn retention(&self, name: &str, signal: usize) -> RetentionState {
        let day = match self.plan.signals[signal] {
            Signal::Retention { day, .. } => day,
            _ => 0,
        };
        let bucket = |b: usize| {
            let arm = match self.state.evidence.iter().find(|book| book.signal == signal).map(|book| &book.statistics) {
                Some(SignalEvidence::Share(shares)) => shares.total(b),
                _ => Arm::default(),
            };
            RetentionBucket { bucket: self.plan.buckets[b].name.clone(), eligible: arm.n, active: arm.x, rate: arm.rate() }
        };
        RetentionState { metric: name.to_owned(), day, buckets: (0..self.plan.buckets.len()).map(bucket).collect() }
    }

    fn quality(&self, index: usize, pane: Pane, closely: bool) -> QualityState {
        let (check, state) = (&self.plan.quality[index], &self.state.quality.checks[index]);
        let total = self.state.quality.accepted + self.state.quality.refused;
        let within = |value: Option<f64>, bound: f64| (value, Some(bound), Verdict::Safe, "within its bound".to_owned());
        let (value, bound, verdict, reason) = match check.kind {
            QualityKind::Silence { after } => within(self.silent_for(pane).map(|ms| ms as f64), after as f64),
            QualityKind::SchemaViolations { max } => within((total > 0).then(|| self.state.quality.refused as f64 / total as f64), max),
            QualityKind::Srm { alpha } => {
                let strata = self.state.enrolled.strata(&self.booking());
                let reason = if strata.is_empty() { "no exposed unit yet".to_owned() } else { self.split(&strata) };
                (Some(self.srm()).filter(|log_e| log_e.is_finite()), Some(-alpha.ln()), Verdict::Watching, reason)
            }
            QualityKind::VolumeParity { max_gap } => match self.parity(max_gap) {
                Some(worst) => {
                    let strata = self.state.volume.strata(worst.bucket);
                    let expected: f64 = strata.iter().map(|s| (s.x_t + s.x_c) * s.w).sum();
                    let gap = (expected > 0.0).then(|| strata.iter().map(|s| s.x_t).sum::<f64>() / expected - 1.0);
                    (gap, Some(max_gap), Verdict::Watching, "no evidence of a gap beyond its bound".to_owned())
                }
                None => (None, Some(max_gap), Verdict::Watching, "needs exposures, and events that name their unit".to_owned()),
            },
            QualityKind::MixedAssignment { max } | QualityKind::Ineligible { max } | QualityKind::Missing { max, .. } => {
                let found = self.found(&check.kind, true);
                let verdict = if found.iter().all(|f| self.stays_within(f)) { Verdict::Safe } else { Verdict::Watching };
                match (found.last(), &check.kind, self.unknown_units()) {
                    (None, ..) => (None, Some(max), Verdict::NoData, "nothing to look at yet".to_owned()),
                    (Some(worst), QualityKind::Ineligible { .. }, unknown @ 1..) if worst.value() == Some(0.0) => {
                        let reason = format!("{unknown} exposed units do not tell whether they may take part");
                        (worst.value(), Some(max), Verdict::Watching, reason)
                    }
                    (Some(worst), ..) => (worst.value(), Some(max), verdict, self.tell(worst)),
                }
            }
        };
        let (verdict, reason) = match (self.fails(index), &state.tripped, self.state.records) {
            (true, ..) if verdict == Verdict::Safe => (Verdict::Breach, "the check fails".to_owned()),
            (true, ..) => (Verdict::Breach, format!("the check fails: {reason}")),
            (false, Some(id), _) => (Verdict::Breach, format!("the check has failed, and is over: see {id}")),
            (false, None, 0) => (Verdict::NoData, "no record yet".to_owned()),
            (false, None, _) => (verdict, reason),
        };
        QualityState {
            check: check.kind.name().into(),
            verdict,
            reason,
            value,
            bound,
            action: check.action,
            decision: self.check_tripped_by(index).cloned(),
            parts: match check.kind {
                QualityKind::Srm { .. } if closely => self.sample_ratios(),
                _ => Vec::new(),
            },
        }
    }
}

/// What a comparison tolerates.
pub(super) fn against(plan: &Guardrail) -> String {
    let word = if plan.higher_is_worse { "over" } else { "under" };
    match plan.max_increase {
        Some(Margin::Relative(r)) => format!("{}% {word} the baseline", 100.0 * r),
        Some(Margin::Absolute(d)) => format!("{} {word} the baseline", show(d, &plan.unit)),
        None => String::new(),
    }
}

fn statistic(statistic: Statistic) -> String {
    match statistic {
        Statistic::Quantile { ppm } => format!("p{}", f64::from(ppm) / 10_000.0),
        Statistic::Share => "rate".into(),
        Statistic::PerUnit => "per exposed unit".into(),
        Statistic::Count => "count".into(),
        Statistic::Mean => "mean".into(),
        Statistic::Exposures => "exposures".into(),
    }
}
