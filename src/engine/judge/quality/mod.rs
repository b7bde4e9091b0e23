//! Checks of the data itself: silence, schema violations, sample ratio, volume parity, and in `found` those of units, fields and users.

mod found;

use super::Judge;
use crate::engine::decision::{Evidence, LogKind, Output, SrmStratum, Verdict};
use crate::engine::evidence::SignalEvidence;
use crate::engine::plan::{Plan, QualityCheck, QualityKind};
use crate::engine::shape::{Shape, places};
use crate::engine::stats::{counts, rates, srm};
use crate::engine::time::{Millis, Pane};
use found::{Missing, Units};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

pub use found::Found;

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
    units: Units,
    missing: Option<Missing>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CheckState {
    /// The check fails now: its hold is in force.
    pub failing: bool,
    /// Decision in force.
    pub tripped: Option<String>,
}

/// What volume parity found in one bucket.
pub struct Parity {
    pub bucket: usize,
    /// Index of dispersion of events per unit.
    pub phi: f64,
    pub log_e: f64,
}

impl Quality {
    pub fn new(plan: &Plan, pane_ms: Millis) -> Quality {
        Quality {
            checks: vec![CheckState::default(); plan.quality.len()],
            ring: VecDeque::new(),
            accepted: 0,
            refused: 0,
            units: Units::default(),
            missing: Missing::new(plan, pane_ms),
        }
    }

    /// With what `old` knew of what is asked as before.
    pub fn carried(self, old: &Quality, was: &Shape, is: &Shape) -> Quality {
        let before = places(&is.checks, &was.checks);
        let check = |(fresh, before): (CheckState, &Option<usize>)| before.and_then(|b| old.checks.get(b).cloned()).unwrap_or(fresh);
        Quality {
            checks: self.checks.into_iter().zip(&before).map(check).collect(),
            units: if was.exposures == is.exposures { old.units.clone() } else { self.units },
            missing: if was.missing == is.missing { old.missing.clone() } else { self.missing },
            ..old.clone()
        }
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
        self.slide_missing(Pane(first));
    }

    /// Something changes as time passes.
    pub fn is_live(&self) -> bool {
        self.refused > 0 || self.lacks()
    }
}

impl Judge {
    pub(super) fn judge_quality(&mut self, pane: Pane, out: &mut Output) {
        self.state.quality.slide(pane, self.pane_ms);
        self.close_missing(pane);
        let slot_closes = (pane.0 + 1) % self.budget.slot == 0;
        let (plan, news) = (Arc::clone(&self.plan), self.state.enrolled.take_news());
        for (index, check) in plan.quality.iter().enumerate() {
            let failing = match check.kind {
                QualityKind::Silence { after } => self.silent_for(pane).is_some_and(|silent| silent >= after),
                QualityKind::SchemaViolations { max } => self.refuses_more_than(max) && self.violations(max) >= self.limit_threshold(),
                // Evidence of these is not taken back: they fail until an operator re-arms.
                QualityKind::Srm { alpha } => self.state.quality.checks[index].failing || news && self.srm() >= -alpha.ln(),
                QualityKind::VolumeParity { max_gap } => {
                    let needed = -self.parity_alpha().ln();
                    self.state.quality.checks[index].failing
                        || slot_closes && self.parity(max_gap).is_some_and(|worst| worst.log_e >= needed)
                }
                QualityKind::MixedAssignment { .. } | QualityKind::Ineligible { .. } => {
                    self.state.quality.checks[index].failing || self.found(&check.kind, false).last().is_some_and(Found::fails)
                }
                QualityKind::Missing { .. } => {
                    let found = self.found(&check.kind, slot_closes);
                    self.prove_missing(&found);
                    found.last().is_some_and(Found::fails)
                }
            };
            let before = std::mem::replace(&mut self.state.quality.checks[index].failing, failing);
            if failing && self.state.quality.checks[index].tripped.is_none() {
                self.trip_quality(index, check, pane.end(self.pane_ms), out);
            } else if before && !failing {
                let text = format!("{} is over: its hold is lifted", check.kind.name());
                self.log(pane.end(self.pane_ms), LogKind::Resolved, None, text, out);
            }
        }
    }

    /// Decides, unless an operator holds.
    fn trip_quality(&mut self, index: usize, check: &QualityCheck, now: Millis, out: &mut Output) {
        let pane = Pane::of(now - 1, self.pane_ms);
        let (accepted, refused) = (self.state.quality.accepted, self.state.quality.refused);
        let mut decision = self.decision("", check.kind.name(), check.kind.name(), check.action, now);
        // What is replayed was decided before the hold.
        if self.held(check.action) && !self.ahead.contains_key(&decision.decision) {
            return;
        }
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
                decision.evidence = Evidence::Threshold { n, x: refused, p0: max, deff: 1.0 };
                let share = 100.0 * refused as f64 / n.max(1) as f64;
                decision.reason = format!("{share:.1}% of {n} records in the last 10 min were refused, at most {}% may be", 100.0 * max);
            }
            QualityKind::Srm { alpha } => {
                let strata = self.state.enrolled.strata(&self.booking());
                decision.test = "srm".into();
                decision.alpha = Some(alpha);
                decision.log_e_value = Some(self.srm()).filter(|log_e| log_e.is_finite());
                decision.reason = self.split(&strata);
                let stratum = |(counts, weights): &(&[u64], &[f64])| SrmStratum { counts: counts.to_vec(), weights: weights.to_vec() };
                decision.evidence = Evidence::Srm { strata: strata.iter().map(stratum).collect() };
            }
            QualityKind::VolumeParity { max_gap } => {
                let Some(worst) = self.parity(max_gap) else { return };
                let (alpha, strata) = (self.parity_alpha(), self.state.volume.strata(worst.bucket).to_vec());
                let expected: f64 = strata.iter().map(|s| (s.x_t + s.x_c) * s.w).sum();
                let gap = strata.iter().map(|s| s.x_t).sum::<f64>() / expected - 1.0;
                decision.margin = Some(max_gap);
                decision.unit = "%".into();
                decision.change = Some(gap);
                decision.test = "counts".into();
                decision.alpha = Some(alpha);
                decision.log_e_value = Some(worst.log_e);
                decision.evidence = Evidence::Counts { strata, r: max_gap, phi: worst.phi, alpha };
                let name = &self.plan.buckets[worst.bucket].name;
                decision.reason = format!(
                    "{name} has {:+.1}% of the events that its units should have beside the baseline's, {:.0}% either way are allowed",
                    100.0 * gap,
                    100.0 * max_gap
                );
            }
            QualityKind::MixedAssignment { .. } | QualityKind::Ineligible { .. } | QualityKind::Missing { .. } => {
                let Some(worst) = self.found(&check.kind, true).pop() else { return };
                self.write_found(&worst, &mut decision);
            }
        }
        self.state.quality.checks[index].tripped = Some(decision.decision.clone());
        self.enforce(&mut decision, &self.treated(), pane);
        self.put_in_force(decision, out);
    }

    /// Log e-value against "first exposures fall on the buckets as designed".
    pub(super) fn srm(&self) -> f64 {
        let strata: Vec<srm::Stratum<'_>> =
            self.state.enrolled.strata(&self.booking()).into_iter().map(|(counts, weights)| srm::Stratum { counts, weights }).collect();
        srm::log_e(&strata)
    }

    /// Whether the sample ratio is known to be wrong.
    pub(super) fn srm_fails(&self) -> bool {
        let mut checks = self.plan.quality.iter().zip(&self.state.quality.checks);
        checks.any(|(check, state)| matches!(check.kind, QualityKind::Srm { .. }) && state.failing)
    }

    /// The bucket whose share of the units is farthest from the design, in words.
    pub(super) fn split(&self, strata: &[(&[u64], &[f64])]) -> String {
        let units: u64 = strata.iter().flat_map(|(counts, _)| counts.iter()).sum();
        let of = |bucket: usize| {
            let seen: u64 = strata.iter().map(|(counts, _)| counts[bucket]).sum();
            let expected: f64 = strata.iter().map(|(counts, weights)| counts.iter().sum::<u64>() as f64 * weights[bucket]).sum();
            (bucket, seen as f64 / units.max(1) as f64, expected / units.max(1) as f64)
        };
        let distance = |(_, seen, expected): &(usize, f64, f64)| (seen - expected).abs() / expected.max(1e-9).sqrt();
        let worst = (0..self.plan.buckets.len()).map(of).max_by(|a, b| distance(a).total_cmp(&distance(b)));
        worst.map_or(String::new(), |(bucket, seen, expected)| {
            let name = &self.plan.buckets[bucket].name;
            format!("{name} has {:.2}% of {units} exposed units, designed are {:.2}%", 100.0 * seen, 100.0 * expected)
        })
    }

    /// Level of volume parity in each bucket.
    fn parity_alpha(&self) -> f64 {
        self.plan.alpha / (self.plan.buckets.len() - 1).max(1) as f64
    }

    /// The bucket with the strongest evidence of a gap; `None` while the dispersion of events per unit is unknown.
    pub(super) fn parity(&self, max_gap: f64) -> Option<Parity> {
        let baseline = self.plan.baseline();
        let of = |bucket: usize| {
            let phi = self.dispersion(bucket)?.max(self.dispersion(baseline)?);
            let log_e = counts::parity_log_e(self.state.volume.strata(bucket), max_gap, max_gap, phi);
            Some(Parity { bucket, phi, log_e })
        };
        (0..self.plan.buckets.len()).filter(|b| *b != baseline).filter_map(of).max_by(|a, b| a.log_e.total_cmp(&b.log_e))
    }

    /// Dispersion of events per unit of a bucket, from the signal with the most events that name their unit.
    fn dispersion(&self, bucket: usize) -> Option<f64> {
        let counted = |evidence: &SignalEvidence| match evidence {
            SignalEvidence::Share(shares) => shares.batches(bucket),
            SignalEvidence::Spread(spread) => spread.batches(bucket, 0),
            SignalEvidence::Mean(_) => None,
        };
        let most =
            self.state.evidence.iter().map(|book| &book.statistics).filter_map(counted).max_by(|a, b| a.named().total_cmp(&b.named()))?;
        most.cautious_dispersion(-self.parity_alpha().ln())
    }

    /// Milliseconds without a record at the end of `pane`; `None` before there is anything to miss, and after the experiment's end.
    pub(super) fn silent_for(&self, pane: Pane) -> Option<Millis> {
        let now = pane.end(self.pane_ms);
        if self.state.rollout.is_done() || self.plan.ends.is_some_and(|ends| now > ends) {
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
        if self.state.rollout.is_done() {
            return None;
        }
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
