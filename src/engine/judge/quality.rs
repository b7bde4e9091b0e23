//! Checks of the data itself that act: silence and schema violations.

use super::Judge;
use crate::engine::decision::{Evidence, LogKind, Output, Verdict};
use crate::engine::plan::{Plan, QualityCheck, QualityKind};
use crate::engine::stats::rates;
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Span over which the share of refused records is taken.
const WINDOW_MS: Millis = 600_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quality {
    /// By check, in the order of the plan.
    pub checks: Vec<CheckState>,
    /// Records accepted and refused, by pane.
    ring: VecDeque<(Pane, u64, u64)>,
    pub accepted: u64,
    pub refused: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CheckState {
    /// The check fails now: its hold is in force.
    pub failing: bool,
    /// Decision in force.
    pub tripped: Option<String>,
}

impl Quality {
    pub fn new(plan: &Plan) -> Quality {
        Quality { checks: vec![CheckState::default(); plan.quality.len()], ring: VecDeque::new(), accepted: 0, refused: 0 }
    }

    pub fn add(&mut self, pane: Pane, accepted: u64, refused: u64) {
        self.accepted += accepted;
        self.refused += refused;
        self.ring.push_back((pane, accepted, refused));
    }

    fn slide(&mut self, pane: Pane, pane_ms: Millis) {
        let first = pane.0 - (WINDOW_MS / pane_ms).max(1) + 1;
        while self.ring.front().is_some_and(|(p, ..)| p.0 < first) {
            let (_, accepted, refused) = self.ring.pop_front().unwrap_or((pane, 0, 0));
            self.accepted -= accepted;
            self.refused -= refused;
        }
    }

    /// Something changes as time passes.
    pub fn is_live(&self) -> bool {
        self.refused > 0
    }
}

impl Judge {
    pub(super) fn judge_quality(&mut self, pane: Pane, out: &mut Output) {
        self.state.quality.slide(pane, self.pane_ms);
        for index in 0..self.plan.quality.len() {
            let check = self.plan.quality[index].clone();
            let failing = match check.kind {
                QualityKind::Silence { after } => self.silent_for(pane).is_some_and(|silent| silent >= after),
                QualityKind::SchemaViolations { max } => self.refuses_more_than(max) && self.violations(max) >= self.log_threshold,
                // The statistical checks get their tests with the relative guardrails.
                _ => continue,
            };
            let before = std::mem::replace(&mut self.state.quality.checks[index].failing, failing);
            if failing && self.state.quality.checks[index].tripped.is_none() {
                self.trip_quality(index, &check, pane, out);
            } else if before && !failing {
                let text = format!("{} is over: its hold is lifted", check.kind.name());
                self.log(pane.end(self.pane_ms), LogKind::Resolved, None, text, out);
            }
        }
    }

    fn trip_quality(&mut self, index: usize, check: &QualityCheck, pane: Pane, out: &mut Output) {
        if self.held(check.action) {
            return;
        }
        let now = pane.end(self.pane_ms);
        let (accepted, refused) = (self.state.quality.accepted, self.state.quality.refused);
        let mut decision = self.decision("", check.kind.name(), check.kind.name(), check.action, now);
        match check.kind {
            QualityKind::Silence { after } => {
                let silent_ms = self.silent_for(pane).unwrap_or(0);
                decision.verdict = Verdict::NoData;
                decision.margin = Some(after as f64);
                decision.bucket_value = Some(silent_ms as f64);
                decision.unit = "ms".into();
                decision.since = now - silent_ms;
                decision.evidence = Evidence::Silence { silent_ms };
                decision.reason = format!("no record for {} s: verdicts are no_data, nothing is safe", silent_ms / 1_000);
            }
            QualityKind::SchemaViolations { max } => {
                let n = accepted + refused;
                decision.margin = Some(max);
                decision.bucket_value = Some(refused as f64 / n.max(1) as f64);
                decision.test = "threshold".into();
                decision.log_e_value = Some(self.violations(max));
                decision.evidence = Evidence::Threshold { n, x: refused, p0: max };
                let share = 100.0 * refused as f64 / n.max(1) as f64;
                decision.reason = format!("{share:.1}% of {n} records in the last 10 min were refused, at most {}% may be", 100.0 * max);
            }
            _ => {}
        }
        self.state.quality.checks[index].tripped = Some(decision.decision.clone());
        let everyone: Vec<usize> = (0..self.plan.buckets.len()).filter(|b| *b != self.plan.baseline()).collect();
        self.enforce(&mut decision, &everyone, pane);
        self.put_in_force(decision, out);
    }

    /// Milliseconds without a record at the end of `pane`; `None` before there is anything to miss, and after the experiment's end.
    pub(super) fn silent_for(&self, pane: Pane) -> Option<Millis> {
        let now = pane.end(self.pane_ms);
        if self.plan.ends.is_some_and(|ends| now > ends) {
            return None;
        }
        Some(now - self.heard_last()?)
    }

    /// End of the last pane with a record; before the first, the experiment's start, or when it began to be watched if that was later.
    fn heard_last(&self) -> Option<Millis> {
        let watched = self.state.began.map(|p| p.start(self.pane_ms));
        let expected = self.plan.starts.zip(watched).map(|(starts, watched)| starts.max(watched));
        self.state.last_record.map(|p| p.end(self.pane_ms)).or(expected)
    }

    /// The pane at whose end silence will have lasted too long.
    pub(super) fn silence_deadline(&self) -> Option<Pane> {
        let silence = self.plan.quality.iter().zip(&self.state.quality.checks).find_map(|(check, state)| match check.kind {
            QualityKind::Silence { after } if !state.failing => Some(after),
            _ => None,
        });
        let deadline = self.heard_last()? + silence?;
        Some(Pane((deadline + self.pane_ms - 1).div_euclid(self.pane_ms) - 1))
    }

    /// Whether the silence check fails.
    pub(super) fn is_silent(&self) -> bool {
        let mut checks = self.plan.quality.iter().zip(&self.state.quality.checks);
        checks.any(|(check, state)| matches!(check.kind, QualityKind::Silence { .. }) && state.failing)
    }

    /// Only then can there be evidence of it.
    fn refuses_more_than(&self, max: f64) -> bool {
        let (accepted, refused) = (self.state.quality.accepted, self.state.quality.refused);
        refused as f64 > max * (accepted + refused) as f64
    }

    /// Log e-value against "at most `max` of the records are refused".
    fn violations(&self, max: f64) -> f64 {
        let (accepted, refused) = (self.state.quality.accepted, self.state.quality.refused);
        rates::threshold_log_e(accepted + refused, refused, max)
    }
}
