//! What the Judge says of segments: whether one can be compared, and how people see it.

use super::act::show;
use super::reason::compared_unit;
use super::view::against;
use super::{Hypothesis, Judge};
use crate::engine::decision::Verdict;
use crate::engine::evidence::SignalEvidence;
use crate::engine::plan::{QualityKind, Statistic};
use crate::engine::state::{QualityPart, SegmentState};
use crate::engine::stats::srm;

impl Judge {
    /// Whether a breach in a segment is a decision.
    pub(super) fn segments_act(&self) -> bool {
        self.plan.segments.as_ref().is_some_and(|s| s.act)
    }

    /// A breach in a segment that only shows has been shown.
    pub(super) fn is_shown(&self, of: Hypothesis) -> bool {
        of.segment.is_some() && !self.segments_act() && self.guard(of).withheld
    }

    /// Units of a bucket that were exposed for the first time.
    pub(super) fn units(&self, of: Hypothesis, bucket: usize) -> u64 {
        of.segment.map_or(self.state.traffic[bucket].units, |segment| self.state.segments.list[segment].units[bucket])
    }

    /// Units of a bucket; or what it has seen, of a stream that carries no exposures.
    pub(super) fn size(&self, of: Hypothesis, bucket: usize) -> u64 {
        let traffic = &self.state.traffic[bucket];
        match of.segment.map(|segment| &self.state.segments.list[segment]) {
            None => traffic.size(),
            Some(segment) if traffic.exposures > 0 => segment.units[bucket],
            Some(segment) => segment.observations[bucket],
        }
    }

    /// Looks at the sample ratio of a segment. Its level is its part of that of the check; it holds the segment's comparisons and decides
    /// nothing.
    pub(super) fn weigh_sample_ratio(&mut self, segment: usize) {
        let Some(needed) = self.sample_ratio_bound() else { return };
        if self.sample_ratio(segment) >= needed {
            self.state.segments.list[segment].lopsided = true;
        }
    }

    /// Log e-value against "first exposures in the segment fall on the buckets as designed".
    fn sample_ratio(&self, segment: usize) -> f64 {
        let segment = &self.state.segments.list[segment];
        let strata = segment.enrolled.strata(&segment.book(&self.booking()));
        srm::log_e(&strata.into_iter().map(|(counts, weights)| srm::Stratum { counts, weights }).collect::<Vec<_>>())
    }

    /// What it must reach; `None` where the sample ratio is not checked.
    fn sample_ratio_bound(&self) -> Option<f64> {
        let places = self.plan.segments.as_ref()?.places() as f64;
        self.plan.quality.iter().find_map(|check| match check.kind {
            QualityKind::Srm { alpha } => Some(-(alpha / places).ln()),
            _ => None,
        })
    }

    /// The sample ratio in each segment, and in each period of allocation where there are several.
    pub(super) fn sample_ratios(&self) -> Vec<QualityPart> {
        let book = self.booking();
        let part = |part: String, counts: &[(&[u64], &[f64])], log_e: f64, bound: Option<f64>, fails: bool| QualityPart {
            part,
            verdict: if fails { Verdict::Breach } else { Verdict::Watching },
            reason: self.split(counts),
            value: Some(log_e).filter(|log_e| log_e.is_finite()),
            bound,
        };
        let periods = self.state.enrolled.strata(&book);
        let period = |(i, stratum): (usize, &(&[u64], &[f64]))| {
            let log_e = srm::log_e(&[srm::Stratum { counts: stratum.0, weights: stratum.1 }]);
            part(format!("period {}", i + 1), &[*stratum], log_e, None, false)
        };
        let segment = |(i, segment): (usize, &super::segments::Segment)| {
            let strata = segment.enrolled.strata(&segment.book(&book));
            (!strata.is_empty())
                .then(|| part(segment.name.clone(), &strata, self.sample_ratio(i), self.sample_ratio_bound(), segment.lopsided))
        };
        let periods = periods.iter().enumerate().filter(|_| periods.len() > 1).map(period);
        periods.chain(self.state.segments.list.iter().enumerate().filter_map(segment)).collect()
    }

    /// A comparison in each segment that has seen anything; or, unless `closely`, in those in breach alone.
    pub(super) fn segments(&self, of: Hypothesis, closely: bool) -> Vec<SegmentState> {
        if self.plan.guardrails[of.guardrail].max_increase.is_none() {
            return Vec::new();
        }
        let each = (0..self.state.segments.list.len()).map(|segment| Hypothesis { segment: Some(segment), ..of });
        let wanted = each.filter(|of| match closely {
            true => self.seen_in(*of, of.bucket).0 + self.seen_in(*of, self.plan.baseline()).0 > 0,
            false => self.tripped_by(*of).is_some() || self.guard(*of).withheld,
        });
        wanted.map(|of| self.segment(of, closely)).collect()
    }

    fn segment(&self, of: Hypothesis, closely: bool) -> SegmentState {
        let (plan, guard, baseline) = (&self.plan.guardrails[of.guardrail], self.guard(of), self.plan.baseline());
        let (verdict, reason) = self.verdict_in(of);
        let [(baseline_n, baseline_value), (n, bucket_value)] = [baseline, of.bucket].map(|bucket| self.seen_in(of, bucket));
        let look = if closely { self.whole_life(of, f64::NEG_INFINITY) } else { None };
        SegmentState {
            segment: of.segment.map_or(String::new(), |segment| self.state.segments.list[segment].name.clone()),
            verdict,
            reason,
            units: self.units(of, of.bucket),
            baseline_units: self.units(of, baseline),
            baseline_value,
            bucket_value,
            change: baseline_value.zip(bucket_value).filter(|(b, _)| *b != 0.0).map(|(b, t)| t / b - 1.0),
            interval: look.and_then(|look| look.interval(plan)),
            n,
            baseline_n,
            log_e_value: guard.max_log_e,
            log_threshold: self.whole_life_threshold(of),
            decision: self.tripped_by(of).cloned(),
        }
    }

    fn verdict_in(&self, of: Hypothesis) -> (Verdict, String) {
        let (plan, guard) = (&self.plan.guardrails[of.guardrail], self.guard(of));
        if let Some(id) = self.tripped_by(of) {
            return (Verdict::Breach, format!("breached: see {id}"));
        }
        if guard.withheld {
            let why = if self.segments_act() { "an operator's hold withholds the action" } else { "shown only: segments do not act" };
            return (Verdict::Breach, format!("in breach; {why}"));
        }
        if self.is_silent() {
            return (Verdict::NoData, "no record arrives: what was known is stale".into());
        }
        let (n, value) = self.seen_in(of, of.bucket);
        if n == 0 {
            return (Verdict::NoData, "nothing yet".into());
        }
        let shown = value.map_or("no value yet".into(), |v| show(v, compared_unit(plan)));
        match self.untold(of) {
            Some(why) => (Verdict::Watching, format!("{shown}: {why}")),
            None if guard.safe => (Verdict::Safe, format!("{shown}: proved to be less than {}", against(plan))),
            None => (Verdict::Watching, format!("{shown}; at most {} is allowed, no evidence either way", against(plan))),
        }
    }

    /// Observations of a bucket, in a segment or in all, and what they come to.
    pub(super) fn seen_in(&self, of: Hypothesis, bucket: usize) -> (u64, Option<f64>) {
        match (self.evidence_of(of), self.plan.question(of.guardrail).statistic) {
            (Some(SignalEvidence::Share(shares)), Statistic::Count | Statistic::Exposures) => {
                let n = shares.total(bucket).n;
                (n, Some(n as f64))
            }
            (Some(SignalEvidence::Share(shares)), _) => (shares.total(bucket).n, shares.total(bucket).rate()),
            (Some(SignalEvidence::Mean(means)), _) => means.mean(bucket).map_or((0, None), |(n, mean)| (n, Some(mean))),
            (Some(SignalEvidence::Spread(spread)), Statistic::Quantile { ppm }) => {
                spread.newest(bucket).map_or((0, None), |bins| (bins.count(), bins.quantile(ppm).map(|edge| edge as f64 / 1_000.0)))
            }
            _ => (0, None),
        }
    }
}
