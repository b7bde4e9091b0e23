//! Periods of constant allocation, by the cohorts that were assigned in them.

use crate::engine::pane::Observation;
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};

/// Changes that are followed; after that many the shares count as unknown.
const MAX_PERIODS: usize = 1_000;

/// The designed shares of the buckets over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// By the first cohort of each; the first period has no beginning.
    periods: Vec<Period>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Period {
    from: Pane,
    /// Shares of the buckets, which add up to 1; `None` while a change spreads, when nobody knows them.
    weights: Option<Vec<f64>>,
}

impl Allocation {
    pub fn new(weights: Vec<f64>) -> Allocation {
        Allocation { periods: vec![Period { from: Pane(i64::MIN), weights: normalised(&weights) }] }
    }

    /// The shares change at `at`; cohorts of the `spreading` panes from there on belong to neither side. Returns whether that is a change.
    pub fn change(&mut self, at: Pane, weights: &[f64], spreading: i64) -> bool {
        let weights = normalised(weights);
        let last = self.periods.last();
        let full = self.periods.len() >= MAX_PERIODS;
        if last.is_some_and(|last| last.weights == weights || full && last.weights.is_none()) {
            return false;
        }
        let at = last.map_or(at, |last| at.max(Pane(last.from.0.saturating_add(1))));
        if last.is_some_and(|last| last.weights.is_some()) {
            self.periods.push(Period { from: at, weights: None });
        }
        if !full {
            self.periods.push(Period { from: Pane(at.0 + spreading.max(1)), weights });
        }
        true
    }

    /// Nobody knows the shares of cohorts from `at` on, until the next change: a bucket has been told to stop.
    pub fn suspend(&mut self, at: Pane) {
        if self.periods.last().is_some_and(|last| last.weights.is_some() && last.from < at) && self.periods.len() <= MAX_PERIODS {
            self.periods.push(Period { from: at, weights: None });
        }
    }

    /// Index of the period of a cohort.
    pub fn period(&self, cohort: Pane) -> usize {
        self.periods.partition_point(|p| p.from <= cohort).saturating_sub(1)
    }

    /// Observations of `pane` in a row that belong to one period, with its index: nearly always all of them.
    pub fn runs<'o>(&self, pane: Pane, mut rest: &'o [Observation]) -> impl Iterator<Item = (usize, &'o [Observation])> {
        let cohort = move |o: &Observation| Pane(pane.0 - i64::from(o.age));
        std::iter::from_fn(move || {
            let period = self.period(cohort(rest.first()?));
            let until = self.periods.get(period + 1).map_or(Pane(i64::MAX), |next| next.from);
            let span = self.periods[period].from..until;
            let (run, others) = rest.split_at(rest.iter().take_while(|o| span.contains(&cohort(o))).count());
            rest = others;
            Some((period, run))
        })
    }

    /// Shares of the buckets; `None` while they are not known.
    pub fn weights(&self, period: usize) -> Option<&[f64]> {
        self.periods.get(period)?.weights.as_deref()
    }

    /// Share of `bucket` in the traffic of the two; 0, with which a test gains nothing, while it is not known.
    pub fn share(&self, period: usize, bucket: usize, baseline: usize) -> f64 {
        let Some(weights) = self.weights(period) else { return 0.0 };
        let (t, c) = (weights[bucket], weights[baseline]);
        if t + c > 0.0 { t / (t + c) } else { 0.0 }
    }
}

fn normalised(weights: &[f64]) -> Option<Vec<f64>> {
    let sum: f64 = weights.iter().sum();
    (sum > 0.0 && sum.is_finite()).then(|| weights.iter().map(|w| w / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cohorts_belong_to_the_period_of_their_assignment() {
        let mut a = Allocation::new(vec![0.9, 0.1]);
        assert!(!a.change(Pane(5), &[9.0, 1.0], 3), "the same shares");
        assert!(a.change(Pane(10), &[0.5, 0.5], 3));
        let shares: Vec<f64> = [9, 10, 12, 13, 99].iter().map(|p| a.share(a.period(Pane(*p)), 1, 0)).collect();
        assert_eq!(shares, [0.1, 0.0, 0.0, 0.5, 0.5]);
        assert!(a.change(Pane(11), &[0.2, 0.8], 3), "out of order: it begins after the one before");
        assert_eq!(a.share(a.period(Pane(99)), 1, 0), 0.8);
    }

    #[test]
    fn observations_in_a_row_are_told_apart_by_period() {
        let mut a = Allocation::new(vec![0.5, 0.5]);
        a.change(Pane(10), &[0.2, 0.8], 2);
        let of = |age: u32| Observation { cell: 0, age, value: 0, batch: 0, profile: 0 };
        let seen = [0, 8, 9, 10, 11, 0, 50].map(of);
        let found: Vec<(usize, usize)> = a.runs(Pane(20), &seen).map(|(period, run)| (period, run.len())).collect();
        assert_eq!(found, [(2, 2), (1, 2), (0, 1), (2, 1), (0, 1)]);
        assert_eq!(a.runs(Pane(20), &[]).count(), 0);
    }

    #[test]
    fn a_suspended_allocation_is_unknown_until_it_is_set_again() {
        let mut a = Allocation::new(vec![0.5, 0.5]);
        a.suspend(Pane(10));
        a.suspend(Pane(12));
        assert_eq!((a.share(a.period(Pane(9)), 1, 0), a.share(a.period(Pane(20)), 1, 0)), (0.5, 0.0));
        assert!(a.change(Pane(30), &[0.5, 0.5], 5));
        assert_eq!((a.share(a.period(Pane(34)), 1, 0), a.share(a.period(Pane(35)), 1, 0)), (0.0, 0.5));
    }

    #[test]
    fn endless_changes_end_in_ignorance() {
        let mut a = Allocation::new(vec![0.5, 0.5]);
        for i in 0..5_000 {
            a.change(Pane(i * 10), &[1.0 + i as f64, 1.0], 1);
        }
        assert!(a.periods.len() <= MAX_PERIODS + 2 && a.share(a.period(Pane(1 << 40)), 1, 0) == 0.0);
    }
}
