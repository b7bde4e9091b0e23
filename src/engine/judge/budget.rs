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

/// Shares of one plan. A hypothesis is a criterion of a guardrail in a bucket.
pub struct Budget {
    alpha: f64,
    hypotheses: u32,
    correction: Correction,
    /// Panes in the planned life: positions of a limit's window.
    pane_starts: f64,
    /// Panes in a slot.
    pub slot: i64,
}

impl Budget {
    pub fn new(plan: &Plan, pane_ms: Millis) -> Budget {
        let per_bucket: usize =
            plan.guardrails.iter().map(|g| usize::from(g.limit.is_some()) + usize::from(g.max_increase.is_some())).sum();
        let life = match (plan.starts, plan.ends) {
            (Some(starts), Some(ends)) if ends > starts => ends - starts,
            _ => DEFAULT_LIFE,
        };
        Budget {
            alpha: plan.alpha,
            hypotheses: (per_bucket * (plan.buckets.len() - 1)).max(1) as u32,
            correction: plan.correction,
            pane_starts: (life / pane_ms).max(1) as f64,
            slot: (SLOT_MS / pane_ms).max(1),
        }
    }

    /// Share of one hypothesis when `rejected` of them have tripped: by Holm, these leave theirs to the others.
    pub fn each(&self, rejected: u32) -> f64 {
        let sharing = match self.correction {
            Correction::None => 1,
            Correction::Bonferroni => self.hypotheses,
            Correction::Holm | Correction::Hierarchical => self.hypotheses.saturating_sub(rejected),
        };
        self.alpha / f64::from(sharing.max(1))
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

    /// Level of the detector's `k`-th start, from 1, which as many tests share as there are `periods` by then.
    pub fn late(&self, each: f64, k: u64, periods: u32) -> f64 {
        each * LATE * start_share(k) / f64::from(periods.max(1))
    }
}

/// Rates and quantiles are also tested from many starts, to find what begins late.
pub fn has_detector(statistic: Statistic) -> bool {
    matches!(statistic, Statistic::Quantile { .. } | Statistic::Share | Statistic::PerUnit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tests_of_a_hypothesis_have_adds_up_to_no_more_than_its_share() {
        let budget = Budget { alpha: 0.05, hypotheses: 1, correction: Correction::Holm, pane_starts: 1.0, slot: 5 };
        for statistic in [Statistic::Quantile { ppm: 950_000 }, Statistic::Share, Statistic::PerUnit] {
            let periods = if matches!(statistic, Statistic::Quantile { .. }) { 1_000 } else { 1 };
            let whole: f64 = (0..periods).map(|period| budget.whole_life(1.0, statistic, period)).sum();
            // A new period every thousand starts.
            let late: f64 = (1..1_000_000).map(|k| f64::from(1 + k as u32 / 1_000) * budget.late(1.0, k, 1 + k as u32 / 1_000)).sum();
            assert!((0.89..0.9 + 1e-9).contains(&whole) && whole + late < 1.0, "{statistic:?} {whole} {late}");
        }
    }
}
