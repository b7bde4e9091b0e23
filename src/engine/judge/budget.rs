//! The false-alarm budget: how `alpha` of the whole experiment is shared by hypotheses, tests and the moments at which tests start.

use crate::engine::plan::{Correction, Plan, Statistic};
use crate::engine::stats::detector::start_share;
use crate::engine::stats::multiplicity::arrival_share;
use crate::engine::time::Millis;

/// Planned life of an experiment that does not say when it ends: 30 days.
const DEFAULT_LIFE: Millis = 30 * 86_400_000;
/// Length of a slot: how often the detector of late changes starts a new test.
const SLOT_MS: Millis = 5_000;
/// Share of a hypothesis that the starts of the detector have together; the test from the beginning has the rest.
const LATE: f64 = 0.1;
/// Share of that of a quantile for all periods of allocation but the first.
const LATER_PERIODS: f64 = 0.1;

/// Share of a comparison that its test in all units has, where segments act; they have the rest in equal parts.
const OVERALL: f64 = 0.8;

/// Shares of one plan. A hypothesis is a criterion of a guardrail in a bucket; or a comparison in one of its segments.
pub struct Budget {
    alpha: f64,
    /// Criteria of guardrails in buckets, and comparisons among them.
    hypotheses: u32,
    comparisons: u32,
    /// Sides of secondary metrics in buckets.
    shown: u32,
    /// Segments that a comparison may be tested in, and whether they act.
    places: u32,
    act: bool,
    correction: Correction,
    /// Panes in the planned life: positions of a limit's window.
    pane_starts: f64,
    /// Panes in a slot.
    pub slot: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Limit,
    /// With the baseline, of all units.
    Comparison,
    /// The same in a segment.
    Segment,
    /// Of a secondary metric.
    Shown,
}

/// Hypotheses that have tripped, and which of them belong to the comparison whose share is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tripped {
    limits: u32,
    comparisons: u32,
    segments: u32,
    own_comparison: bool,
    own_segments: u32,
}

impl Tripped {
    pub fn add(&mut self, kind: Kind, own: bool) {
        match kind {
            Kind::Limit => self.limits += 1,
            Kind::Comparison => {
                self.comparisons += 1;
                self.own_comparison |= own;
            }
            Kind::Segment => {
                self.segments += 1;
                self.own_segments += u32::from(own);
            }
            Kind::Shown => {}
        }
    }
}

impl Budget {
    pub fn new(plan: &Plan, pane_ms: Millis) -> Budget {
        let tested = (plan.buckets.len() - 1) as u32;
        let limits = plan.guardrails.iter().filter(|g| g.limit.is_some()).count() as u32;
        let comparisons = plan.guardrails.iter().filter(|g| g.max_increase.is_some()).count() as u32;
        let life = match (plan.starts, plan.ends) {
            (Some(starts), Some(ends)) if ends > starts => ends - starts,
            _ => DEFAULT_LIFE,
        };
        Budget {
            alpha: plan.alpha,
            hypotheses: ((limits + comparisons) * tested).max(1),
            comparisons: (comparisons * tested).max(1),
            shown: (2 * plan.secondary.len() as u32 * tested).max(1),
            places: plan.segments.as_ref().map_or(0, |s| s.places() as u32),
            act: plan.segments.as_ref().is_some_and(|s| s.act),
            correction: plan.correction,
            pane_starts: (life / pane_ms).max(1) as f64,
            slot: (SLOT_MS / pane_ms).max(1),
        }
    }

    /// Share of one hypothesis when others have tripped: by Holm these leave theirs to all others, by `hierarchical` those of a comparison
    /// to the rest of its own (the graph of [`crate::engine::stats::multiplicity::Graph::gatekeeping`]; a limit's share goes to all).
    /// Segments that only show something have a budget of their own, in equal parts, and so have secondary metrics.
    pub fn each(&self, kind: Kind, tripped: &Tripped) -> f64 {
        let (all, places) = (f64::from(self.hypotheses), f64::from(self.places.max(1)));
        let (overall, segment) = if self.act { (OVERALL, (1.0 - OVERALL) / places) } else { (1.0, 0.0) };
        let (limits, comparisons, segments) = (f64::from(tripped.limits), f64::from(tripped.comparisons), f64::from(tripped.segments));
        let weight = match kind {
            Kind::Limit => 1.0,
            Kind::Comparison => overall,
            Kind::Segment => segment,
            Kind::Shown => 0.0,
        };
        match (self.correction, kind) {
            (Correction::None, _) => self.alpha,
            (_, Kind::Shown) => self.alpha / f64::from(self.shown),
            (_, Kind::Segment) if !self.act => self.alpha / (f64::from(self.comparisons) * places),
            (Correction::Bonferroni, _) => self.alpha * weight / all,
            (Correction::Holm, _) => self.alpha * weight / (all - limits - comparisons * overall - segments * segment).max(weight),
            (Correction::Hierarchical, _) => {
                let gone = limits + if self.act { 0.0 } else { comparisons };
                let (family, own) = (self.alpha / (all - gone).max(1.0), f64::from(tripped.own_segments));
                match kind {
                    Kind::Comparison if self.act => family * (overall + own * segment),
                    Kind::Segment if tripped.own_comparison => family / (places - own).max(1.0),
                    _ => family * weight,
                }
            }
        }
    }

    /// Level of a limit's test at each position of its window, by the union bound over all of them.
    pub fn limit(&self, each: f64) -> f64 {
        each / self.pane_starts
    }

    /// Level of the test from the beginning. Of a quantile there is one for each period of allocation; `period` counts those whose shares
    /// are known, from 0.
    pub fn whole_life(&self, each: f64, statistic: Statistic, period: u32) -> f64 {
        match statistic {
            Statistic::Quantile { .. } if period == 0 => each * (1.0 - LATE - LATER_PERIODS),
            Statistic::Quantile { .. } => each * LATER_PERIODS * arrival_share(period),
            Statistic::Share | Statistic::PerUnit => each * (1.0 - LATE),
            Statistic::Count | Statistic::Exposures | Statistic::Mean => each,
        }
    }

    /// Level of all starts of the detector together.
    pub fn late(&self, each: f64) -> f64 {
        each * LATE
    }

    /// Share of that of the detector's `k`-th start, from 1, which as many tests have in equal parts as there are `periods` by then.
    pub fn start(k: u64, periods: u32) -> f64 {
        start_share(k) / f64::from(periods.max(1))
    }
}

/// Rates and quantiles are also tested from many starts, to find what begins late.
pub fn has_detector(statistic: Statistic) -> bool {
    matches!(statistic, Statistic::Quantile { .. } | Statistic::Share | Statistic::PerUnit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::multiplicity::{Family, Graph, log_threshold};

    fn budget(correction: Correction, act: bool) -> Budget {
        let rule = format!(
            "guardrail: v1\noverview: {{experiment: e, owner: o}}\nbuckets: {{a: {{baseline: true}}, b: {{}}}}\n\
             success: {{secondary: [latency_p50, tickets]}}\n\
             guardrails: [{{metric: error_rate, max_increase: 1pp, limit: 5%}}, {{metric: latency_p95, max_increase: 10%}}]\n\
             analysis: {{alpha: 0.05, segments: {{by: [region], top: 3, act: {act}}}}}\nactions: {{mode: observe}}\n"
        );
        let plan = crate::rules::parse_str("r", &rule, &mut Default::default(), None).rule.unwrap().plan;
        Budget::new(&Plan { correction, ..Plan::clone(&plan) }, 1_000)
    }

    /// `own` of the comparison asked for, and the others.
    fn tripped(limits: u32, own: (bool, u32), others: (u32, u32)) -> Tripped {
        let (comparisons, segments) = (others.0 + u32::from(own.0), others.1 + own.1);
        Tripped { limits, comparisons, segments, own_comparison: own.0, own_segments: own.1 }
    }

    #[test]
    fn shares_add_up_to_alpha_whatever_has_tripped() {
        // One limit; two comparisons with four segments each.
        for correction in [Correction::Bonferroni, Correction::Holm, Correction::Hierarchical] {
            let b = budget(correction, true);
            for (limit, first, second) in
                [(0, (false, 0), (false, 0)), (1, (true, 1), (false, 3)), (0, (true, 0), (true, 2)), (1, (false, 4), (false, 0))]
            {
                let of = |own: (bool, u32), other: (bool, u32)| {
                    let tripped = tripped(limit, own, (u32::from(other.0), other.1));
                    let comparison = if own.0 { 0.0 } else { b.each(Kind::Comparison, &tripped) };
                    comparison + f64::from(4 - own.1) * b.each(Kind::Segment, &tripped)
                };
                let limits = if limit == 1 { 0.0 } else { b.each(Kind::Limit, &tripped(0, first, (u32::from(second.0), second.1))) };
                let sum = limits + of(first, second) + of(second, first);
                assert!(sum <= 0.05 + 1e-12, "{correction:?} {limit} {first:?} {second:?}: {sum}");
                assert!(correction == Correction::Bonferroni || sum > 0.05 - 1e-12, "{correction:?} {limit} {first:?} {second:?}: {sum}");
            }
        }
    }

    #[test]
    fn hierarchical_shares_are_those_of_the_graph() {
        let b = budget(Correction::Hierarchical, true);
        let graph = Graph::gatekeeping(&[Family { weight: 1.0 / 3.0, segments: 4 }], OVERALL);
        let trips = |kind, own, log_e: f64| log_e >= -b.each(kind, &tripped(0, own, (0, 0))).ln();
        // Just enough for the segment once the overall hypothesis has tripped; and the other way round.
        let late = log_threshold(0.05, 1.0 / 3.0 / 4.0) + 1e-9;
        let sure = log_threshold(0.05, 1e-9);
        assert_eq!(graph.rejections(&[sure, late, 0.0, 0.0, 0.0], 0.05), [0, 1]);
        assert!(trips(Kind::Segment, (true, 0), late) && !trips(Kind::Segment, (false, 0), late));
        let late = log_threshold(0.05, (0.8 + 0.2 / 4.0) / 3.0) + 1e-9;
        assert_eq!(graph.rejections(&[late, sure, 0.0, 0.0, 0.0], 0.05), [0, 1]);
        assert!(trips(Kind::Comparison, (false, 1), late) && !trips(Kind::Comparison, (false, 0), late));
    }

    #[test]
    fn what_is_only_shown_costs_nothing() {
        let b = budget(Correction::Holm, false);
        assert_eq!(4.0 * b.each(Kind::Shown, &tripped(1, (true, 0), (1, 3))), 0.05);
        assert_eq!(b.each(Kind::Comparison, &Tripped::default()), 0.05 / 3.0);
        assert_eq!(8.0 * b.each(Kind::Segment, &Tripped::default()), 0.05);
    }

    #[test]
    fn what_the_tests_of_a_hypothesis_have_adds_up_to_no_more_than_its_share() {
        let budget = budget(Correction::Holm, false);
        for statistic in [Statistic::Quantile { ppm: 950_000 }, Statistic::Share, Statistic::PerUnit] {
            let periods = if matches!(statistic, Statistic::Quantile { .. }) { 1_000 } else { 1 };
            let whole: f64 = (0..periods).map(|period| budget.whole_life(1.0, statistic, period)).sum();
            // A new period every thousand starts.
            let late: f64 = (1..1_000_000).map(|k| f64::from(1 + k as u32 / 1_000) * Budget::start(k, 1 + k as u32 / 1_000)).sum();
            let late = late * budget.late(1.0);
            assert!((0.89..0.9 + 1e-9).contains(&whole) && whole + late < 1.0, "{statistic:?} {whole} {late}");
        }
    }
}
