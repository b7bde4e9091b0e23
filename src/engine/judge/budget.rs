//! The false-alarm budget: how `alpha` of the whole experiment is shared by hypotheses, tests and the moments at which tests start.

use crate::engine::plan::{Correction, Plan, Statistic};
use crate::engine::time::Millis;

/// Planned life of an experiment that does not say when it ends: 30 days.
const DEFAULT_LIFE: Millis = 30 * 86_400_000;
/// Length of a slot: how often the detector of late changes starts a new test.
const SLOT_MS: Millis = 5_000;

/// Shares of one plan. A hypothesis is a criterion of a guardrail in a bucket.
pub struct Budget {
    alpha: f64,
    hypotheses: u32,
    correction: Correction,
    /// Panes in the planned life: positions of a sliding window.
    pane_starts: f64,
    /// Slots in it, for each planned phase.
    slot_starts: f64,
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
        let slot = (SLOT_MS / pane_ms).max(1);
        Budget {
            alpha: plan.alpha,
            hypotheses: (per_bucket * (plan.buckets.len() - 1)).max(1) as u32,
            correction: plan.correction,
            pane_starts: (life / pane_ms).max(1) as f64,
            slot_starts: ((life / (slot * pane_ms)).max(1) * plan.phases.len().max(1) as i64) as f64,
            slot,
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

    /// Level of the test over the whole life. Where a detector of late changes stands beside it, each has half.
    pub fn whole_life(&self, each: f64, statistic: Statistic) -> f64 {
        if has_detector(statistic) { each / 2.0 } else { each }
    }

    /// Level of each start of the detector.
    pub fn change(&self, each: f64) -> f64 {
        each / 2.0 / self.slot_starts
    }
}

/// Rates and quantiles are also tested from many starts, to find what begins late.
pub fn has_detector(statistic: Statistic) -> bool {
    matches!(statistic, Statistic::Quantile { .. } | Statistic::Share | Statistic::PerUnit)
}
