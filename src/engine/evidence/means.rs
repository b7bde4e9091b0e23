//! Moments of a value by bucket and period of allocation.

use super::periods::Periods;
use super::{Booking, enrolled};
use crate::engine::pane::{BucketPartial, Cell, Part, Sums};
use crate::engine::stats::means::{Arm, Covariate, Stratum};
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Means {
    buckets: usize,
    per_user: bool,
    /// By bucket.
    periods: Periods<Vec<MeanArm>>,
    /// A covariate has been seen.
    adjusted: bool,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct MeanArm {
    n: u64,
    sums: Sums,
}

/// Periods whose statistics are kept; the oldest go first.
const MAX_PERIODS: usize = 64;

impl Means {
    pub fn new(buckets: usize, per_user: bool) -> Means {
        Means { buckets, per_user, periods: Periods::new(MAX_PERIODS), adjusted: false }
    }

    pub(super) fn add(&mut self, pane: Pane, bucket: usize, part: &BucketPartial, cell: Cell<'_>, book: &Booking<'_>) {
        if self.per_user {
            for (cohort, n) in enrolled(pane, part).filter(|(cohort, _)| *cohort >= book.first_cohort) {
                if let Some(arm) = self.arm(book.allocation.period(cohort), bucket) {
                    arm.n += n;
                }
            }
        }
        for &(_, Part { age, n, sums, .. }) in cell.sums {
            let cohort = Pane(pane.0 - i64::from(age));
            if self.per_user && cohort < book.first_cohort {
                continue;
            }
            self.adjusted |= sums.x != 0.0;
            if let Some(arm) = self.arm(book.allocation.period(cohort), bucket) {
                arm.n += n;
                arm.sums += sums;
            }
        }
    }

    fn arm(&mut self, period: usize, bucket: usize) -> Option<&mut MeanArm> {
        let buckets = self.buckets;
        self.periods.at(period, || vec![MeanArm::default(); buckets]).map(|arms| &mut arms[bucket])
    }

    /// One for each period whose shares are known.
    pub fn strata(&self, bucket: usize, book: &Booking<'_>) -> Vec<Stratum> {
        let known = self.periods.iter().filter(|(period, _)| book.allocation.weights(*period).is_some());
        let arm = |arm: &MeanArm| {
            let Sums { y, yy, x, xx, xy } = arm.sums;
            Arm { n: arm.n, shift: 0.0, sy: y, syy: yy, covariate: self.adjusted.then_some(Covariate { sx: x, sxx: xx, sxy: xy }) }
        };
        known.map(|(_, arms)| Stratum { t: arm(&arms[bucket]), c: arm(&arms[book.baseline]) }).collect()
    }

    /// Number and mean of a bucket's observations.
    pub fn mean(&self, bucket: usize) -> Option<(u64, f64)> {
        let of = |sum: (u64, f64), arm: &MeanArm| (sum.0 + arm.n, sum.1 + arm.sums.y);
        let (n, y) = self.periods.iter().map(|(_, arms)| &arms[bucket]).fold((0, 0.0), of);
        (n > 0).then(|| (n, y / n as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::evidence::allocation::Allocation;

    #[test]
    fn units_without_a_value_count_as_zero() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let book = Booking { allocation: &allocation, first_cohort: Pane(0), slot: 5, baseline: 0 };
        let mut means = Means::new(2, true);
        let sums = [(0, Part { age: 0, profile: 0, n: 0, sums: Sums { y: 8.0, yy: 40.0, ..Sums::default() } })];
        let cell = Cell { sums: &sums, ..Cell::default() };
        means.add(Pane(3), 1, &BucketPartial { new_units: 4, ..BucketPartial::default() }, cell, &book);
        assert_eq!((means.mean(1), means.mean(0)), (Some((4, 2.0)), None));
        assert_eq!(means.strata(1, &book)[0].t.n, 4);
    }
}
