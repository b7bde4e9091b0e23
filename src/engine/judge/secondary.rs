//! Secondary metrics: compared with the baseline by the tests of guardrails, and shown. They decide nothing, and have a budget of their own.

use super::{Hypothesis, Judge};
use crate::engine::plan::Guardrail;
use crate::engine::state::{Finding, SecondaryState};

impl Judge {
    /// Each metric in each bucket, over the whole life.
    pub(super) fn secondary(&self) -> Vec<SecondaryState> {
        let baseline = self.plan.baseline();
        let tested = || (0..self.plan.buckets.len()).filter(move |bucket| *bucket != baseline);
        let each = self.plan.secondary.iter().enumerate().flat_map(|(index, metric)| tested().map(move |bucket| (index, metric, bucket)));
        each.map(|(index, metric, bucket)| self.secondary_of(index, metric, bucket)).collect()
    }

    fn secondary_of(&self, index: usize, metric: &Guardrail, bucket: usize) -> SecondaryState {
        let of = Hypothesis::overall(self.plan.guardrails.len() + index, bucket);
        let look = self.whole_life(of, f64::NEG_INFINITY);
        let untold = self.untold(of);
        let ends = look.as_ref().filter(|_| untold.is_none()).and_then(|look| look.interval(metric));
        let [(baseline_n, baseline_value), (n, bucket_value)] = [self.plan.baseline(), bucket].map(|b| self.seen_in(of, b));
        // Counts are compared per unit.
        let [baseline_value, bucket_value] = look.as_ref().map_or([baseline_value, bucket_value], |look| look.values);
        let finding = ends.map_or(Finding::Unknown, |ends| finding(ends, metric.higher_is_worse));
        let reason = match (untold, finding) {
            (Some(why), _) => why,
            (None, Finding::Better) => "proved to be better than the baseline".into(),
            (None, Finding::Worse) => "proved to be worse than the baseline".into(),
            (None, Finding::Unknown) => "no evidence of a difference".into(),
        };
        SecondaryState {
            metric: metric.name.clone(),
            bucket: self.plan.buckets[bucket].name.clone(),
            finding,
            reason,
            unit: metric.unit.clone(),
            higher_is_worse: metric.higher_is_worse,
            baseline_value,
            bucket_value,
            change: baseline_value.zip(bucket_value).filter(|(b, _)| *b != 0.0).map(|(b, t)| t / b - 1.0),
            interval: ends,
            alpha: look.map(|look| look.alpha),
            n,
            baseline_n,
        }
    }
}

/// An interval that leaves 0 out is evidence of its side.
fn finding([low, high]: [f64; 2], higher_is_worse: bool) -> Finding {
    match (low > 0.0, high < 0.0) {
        (true, _) if higher_is_worse => Finding::Worse,
        (true, _) => Finding::Better,
        (_, true) if higher_is_worse => Finding::Better,
        (_, true) => Finding::Worse,
        _ => Finding::Unknown,
    }
}
