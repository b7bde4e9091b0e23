//! Exposed units that were never heard of: who has had no event when a while has passed, by period of allocation.

use super::periods::Periods;
use super::{Booking, enrolled};
use crate::engine::pane::BucketPartial;
use crate::engine::quality::{BucketQuality, Lacking};
use crate::engine::stats::rates::{self, Stratum};
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// See the module. All buckets are given the same time: a unit counts when it is over, so whoever answers later does not look silent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Silent {
    buckets: usize,
    /// Panes that a unit is given.
    patience: i64,
    /// Cohorts whose time is not over: units, and those without an event so far, by bucket.
    waiting: BTreeMap<Pane, Vec<Lacking>>,
    periods: Periods<Vec<Fixed>>,
    /// Of the baseline: expected share from now on, and the units at which it is fixed anew.
    expected: f64,
    refresh_at: u64,
}

/// Units between two moments at which the expected share of the baseline was fixed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fixed {
    expected: f64,
    /// By bucket.
    arms: Vec<Lacking>,
}

/// Periods that are kept; the oldest go first.
const MAX_PERIODS: usize = 64;

impl Silent {
    pub fn new(buckets: usize, patience: i64) -> Silent {
        Silent {
            buckets,
            patience,
            waiting: BTreeMap::new(),
            periods: Periods::new(MAX_PERIODS),
            expected: rates::next_baseline(0, 0, None),
            refresh_at: rates::next_refresh(0),
        }
    }

    /// Adds one bucket of a pane.
    pub fn add(&mut self, pane: Pane, bucket: usize, part: &BucketPartial, quality: &BucketQuality, book: &Booking<'_>) {
        let buckets = self.buckets;
        let patient = Pane(pane.0 - self.patience);
        for (cohort, n) in enrolled(pane, part).filter(|(cohort, _)| *cohort >= book.first_cohort.max(patient)) {
            let arm = &mut self.waiting.entry(cohort).or_insert_with(|| vec![Lacking::default(); buckets])[bucket];
            arm.n += n;
            arm.x += n;
        }
        for age in &quality.heard {
            // A unit that was exposed before anything was counted, or whose time is over, is not among them.
            if let Some(arms) = self.waiting.get_mut(&Pane(pane.0 - i64::from(*age))) {
                arms[bucket].x = arms[bucket].x.saturating_sub(1);
            }
        }
    }

    /// All of `pane` has been added: cohorts whose time is over count.
    pub fn close(&mut self, pane: Pane, book: &Booking<'_>) {
        let later = self.waiting.split_off(&Pane(pane.0 - self.patience + 1));
        for (cohort, arms) in std::mem::replace(&mut self.waiting, later) {
            let (expected, buckets) = (self.expected, self.buckets);
            let Some(period) = self.periods.at(book.allocation.period(cohort), Vec::new) else { continue };
            if period.last().is_none_or(|last| last.expected != expected) {
                period.push(Fixed { expected, arms: vec![Lacking::default(); buckets] });
            }
            if let Some(last) = period.last_mut() {
                for (arm, more) in last.arms.iter_mut().zip(arms) {
                    arm.n += more.n;
                    arm.x += more.x;
                }
            }
            let baseline = self.total(book.baseline);
            if baseline.n >= self.refresh_at {
                self.expected = rates::next_baseline(baseline.n, baseline.x, None);
                self.refresh_at = rates::next_refresh(baseline.n);
            }
        }
    }

    /// Units of a bucket whose time is over, and the silent ones among them.
    pub fn total(&self, bucket: usize) -> Lacking {
        let arms = self.periods.iter().flat_map(|(_, period)| period).map(|fixed| fixed.arms[bucket]);
        arms.fold(Lacking::default(), |sum, arm| Lacking { n: sum.n + arm.n, x: sum.x + arm.x })
    }

    /// The bucket against the baseline, for the tests of rates.
    pub fn strata(&self, bucket: usize, book: &Booking<'_>) -> Vec<Stratum> {
        let of = |(period, fixed): (usize, &Fixed)| {
            let [t, c] = [bucket, book.baseline].map(|b| fixed.arms[b]);
            let w = book.allocation.share(period, bucket, book.baseline);
            Stratum { w, m: fixed.expected, n_t: t.n as f64, x_t: t.x as f64, n_c: c.n as f64, x_c: c.x as f64 }
        };
        self.periods.iter().flat_map(|(period, strata)| strata.iter().map(move |fixed| (period, fixed))).map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::allocation::Allocation;
    use super::*;

    #[test]
    fn a_unit_counts_when_its_time_is_over_and_not_before() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let book = Booking { allocation: &allocation, first_cohort: Pane(1), slot: 5, baseline: 0 };
        let mut silent = Silent::new(2, 10);
        let mut add = |pane: i64, bucket: usize, new_units: u64, heard: &[u32]| {
            let part = BucketPartial { new_units, ..BucketPartial::default() };
            silent.add(Pane(pane), bucket, &part, &BucketQuality { heard: heard.to_vec(), ..BucketQuality::default() }, &book);
            silent.close(Pane(pane), &book);
            [silent.total(0), silent.total(1)].map(|arm| (arm.n, arm.x))
        };
        add(0, 0, 9, &[]);
        add(1, 0, 4, &[]);
        add(1, 1, 3, &[]);
        add(5, 0, 0, &[4, 4]);
        assert_eq!(add(10, 1, 2, &[9, 2]), [(0, 0), (0, 0)], "nobody's time is over, and who is not known is not heard");
        assert_eq!(add(11, 1, 0, &[]), [(4, 2), (3, 2)], "whoever was exposed before the first pane that counts is not there");
        assert_eq!(add(12, 1, 0, &[11]), [(4, 2), (3, 2)], "too late");
        let strata = silent.strata(1, &book);
        assert_eq!(strata, [Stratum { w: 0.5, m: 0.0, n_t: 3.0, x_t: 2.0, n_c: 4.0, x_c: 2.0 }]);
    }
}
