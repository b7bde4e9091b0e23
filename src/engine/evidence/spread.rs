//! Distributions of a value by bucket: histograms of a period, batches of units, and slots.

use super::Booking;
use super::clusters::{Clustering, CoarseBatches, Counted};
use super::periods::Periods;
use super::slots::{Content, Slots};
use crate::engine::histogram::{Bins, SparseBins, bin_of, upper_edge};
use crate::engine::pane::Cell;
use crate::engine::stats::quantiles::{Arms, Relative, Resolution, Tail, margin_value};
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};
use std::cell::LazyCell;

/// See the module. Only cohorts of one period are compared with each other: each period has statistics of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spread {
    buckets: usize,
    /// Some guardrail compares it with the baseline. A limit asks for batches alone.
    compared: bool,
    periods: Periods<Period>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Period {
    /// By bucket.
    arms: Vec<SpreadArm>,
    slots: Slots<SlotArms>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SpreadArm {
    bins: Bins,
    batches: CoarseBatches,
}

/// By bucket; the bins are those of 2 digits, which is enough for a change and takes a tenth of the memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SlotArms(Vec<SlotBins>);

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SlotBins {
    sorted: SparseBins,
    fresh: Vec<u16>,
    /// Values in both.
    count: u64,
}

impl Content for SlotArms {
    fn absorb(&mut self, newer: SlotArms) {
        for (arm, mut more) in self.0.iter_mut().zip(newer.0) {
            arm.settle();
            more.settle();
            arm.sorted.merge(more.sorted);
            arm.count += more.count;
        }
    }
}

/// Single values of a slot before they are sorted and counted.
const FRESH_MAX: usize = 8_192;

impl SlotBins {
    fn push(&mut self, bin: u16) {
        self.fresh.push(bin);
        self.count += 1;
        if self.fresh.len() >= FRESH_MAX {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.sorted.merge(SparseBins::from_samples(&mut self.fresh));
        self.fresh.clear();
    }

    /// Values in bins from this one on.
    fn from(&self, bin: u16) -> u64 {
        self.sorted.from(bin) + self.fresh.iter().filter(|b| **b >= bin).count() as u64
    }

    fn edges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let single = self.fresh.iter().map(|b| (upper_edge(*b), 1));
        self.sorted.iter().map(|(bin, count)| (upper_edge(bin), count)).chain(single)
    }
}

/// Resolution of the bins in slots.
const SLOT_DIGITS: u8 = 2;
/// Periods whose histograms are kept; the oldest go first.
const MAX_PERIODS: usize = 8;

/// The bin whose upper edge is that of the value's bin at [`SLOT_DIGITS`].
fn slot_bin(bin: u16) -> u16 {
    bin_of(Resolution::digits(SLOT_DIGITS).upper(upper_edge(bin)))
}

/// Evidence about both arms, enough to evaluate the test again.
#[derive(Clone, Debug)]
pub struct Pair {
    pub baseline: Tail,
    pub bucket: Tail,
}

impl Pair {
    pub fn arms(&self, clustering: Clustering) -> Arms<'_> {
        Arms { control: &self.baseline, treatment: &self.bucket, deff_c: clustering.baseline, deff_t: clustering.bucket }
    }
}

impl Spread {
    pub fn new(buckets: usize, compared: bool) -> Spread {
        Spread { buckets, compared, periods: Periods::new(MAX_PERIODS) }
    }

    pub(super) fn add(&mut self, pane: Pane, bucket: usize, cell: Cell<'_>, book: &Booking<'_>) {
        let buckets = self.buckets;
        for (period, own) in book.allocation.runs(pane, cell.observations) {
            // While shares are not known, neither is what the cohorts have in common.
            if book.allocation.weights(period).is_none() {
                continue;
            }
            let fresh = || Period { arms: vec![SpreadArm::default(); buckets], slots: Slots::default() };
            let Some(period) = self.periods.at(period, fresh) else { continue };
            let arm = &mut period.arms[bucket];
            own.iter().for_each(|o| arm.batches.add(o.batch, upper_edge(o.bin())));
            if !self.compared {
                continue;
            }
            own.iter().for_each(|o| arm.bins.push(o.bin()));
            if let Some(slot) = period.slots.at(pane, book.slot, || SlotArms(vec![SlotBins::default(); buckets])) {
                own.iter().for_each(|o| slot.0[bucket].push(slot_bin(o.bin())));
            }
        }
    }

    /// Indices of the periods that hold something, in the order of time.
    pub fn periods(&self) -> impl Iterator<Item = usize> + '_ {
        self.periods.iter().map(|(index, _)| index)
    }

    /// Values of the newest period.
    pub fn newest(&self, bucket: usize) -> Option<&Bins> {
        Some(&self.periods.iter().next_back()?.1.arms[bucket].bins)
    }

    /// Values above `threshold` by batch of units, in the newest period.
    pub fn batches(&self, bucket: usize, threshold: u64) -> Option<Counted> {
        Some(self.periods.iter().next_back()?.1.arms[bucket].batches.counts(threshold))
    }

    /// Design effects at the baseline's quantile and at what it tolerates.
    pub fn clustering(&self, period: usize, bucket: usize, baseline: usize, test: &SpreadTest, log_threshold: f64) -> Clustering {
        let Some(period) = self.periods.get(period) else { return Clustering::NONE };
        let (c, t) = (&period.arms[baseline], &period.arms[bucket]);
        let Some(quantile) = c.bins.quantile(test.ppm) else { return Clustering::NONE };
        let tolerated = margin_value(quantile, test.relative.r_ppm, test.relative.d);
        Clustering::of(&c.batches.counts(quantile), &t.batches.counts(tolerated), log_threshold)
    }

    /// The clustering by which the period's test may have reached `needed`, if it may: an upper bound of it says so, at the price of a few
    /// sums as long as all is well.
    pub fn may_reach(
        &self,
        period: usize,
        bucket: usize,
        baseline: usize,
        test: &SpreadTest,
        log_threshold: f64,
        needed: f64,
    ) -> Option<Clustering> {
        let arms = &self.periods.get(period)?.arms;
        let (c, t) = (&arms[baseline].bins, &arms[bucket].bins);
        let quantile = c.quantile(test.ppm)?;
        let tolerated = margin_value(quantile, test.relative.r_ppm, test.relative.d);
        let (a, s) = (c.count() - c.below(bin_of(quantile)), t.above(tolerated));
        if test.at_most(a, c.count(), s, t.count()) < needed {
            return None;
        }
        let by = self.clustering(period, bucket, baseline, test, log_threshold);
        (test.product(a, c.count(), s, t.count(), by) >= needed).then_some(by)
    }

    /// Histograms of a period.
    pub fn pair(&self, period: usize, bucket: usize, baseline: usize) -> Option<Pair> {
        let period = self.periods.get(period)?;
        let tail = |arm: usize| Tail::ascending(period.arms[arm].bins.edges());
        Some(Pair { baseline: tail(baseline), bucket: tail(bucket) })
    }

    /// The most convincing of the tests of a period that were started anew, if it reaches what its start `needed`, which must rise with the
    /// start, and the clustering, in which `log_threshold` counts.
    pub fn best_suffix(
        &self,
        period: usize,
        bucket: usize,
        baseline: usize,
        test: &SpreadTest,
        log_threshold: f64,
        needed: impl Fn(Pane) -> f64,
    ) -> Option<(Pane, Pair, Clustering)> {
        let own = self.periods.get(period)?;
        let quantile = own.arms[baseline].bins.quantile(test.ppm)?;
        let tolerated = margin_value(quantile, test.relative.r_ppm, test.relative.d);
        let resolution = Resolution::digits(SLOT_DIGITS);
        let (from, above) =
            (slot_bin(bin_of(quantile)), bin_of(resolution.upper(tolerated).min(upper_edge(u16::MAX - 1))).saturating_add(1));
        // Dear, and hardly ever asked for.
        let by = LazyCell::new(|| self.clustering(period, bucket, baseline, test, log_threshold));
        let least_of_all = needed(own.slots.oldest()?);
        let (mut a, mut n_c, mut s, mut n_t) = (0, 0, 0, 0);
        let mut best: Option<(Pane, f64)> = None;
        for slot in own.slots.newest_first() {
            let (c, t) = (&slot.content.0[baseline], &slot.content.0[bucket]);
            a += c.from(from);
            n_c += c.count;
            s += t.from(above);
            n_t += t.count;
            if test.at_most(a, n_c, s, n_t) < least_of_all {
                continue;
            }
            let excess = test.product(a, n_c, s, n_t, *by) - needed(slot.start);
            if excess >= 0.0 && best.is_none_or(|(_, b)| excess > b) {
                best = Some((slot.start, excess));
            }
        }
        // The bound is that of one candidate: the least of all decides, at the start that looked best.
        let (since, _) = best?;
        let inside = || own.slots.newest_first().take_while(|slot| slot.start >= since);
        let tail = |arm: usize| Tail::new(inside().flat_map(move |slot| slot.content.0[arm].edges()));
        let pair = Pair { baseline: tail(baseline), bucket: tail(bucket) };
        test.at(SLOT_DIGITS).reaches(pair.arms(*by), needed(since)).then_some((since, pair, *by))
    }
}

/// Evidence that a quantile got worse by more than is tolerated.
#[derive(Clone, Debug)]
pub struct SpreadTest {
    pub ppm: u32,
    /// `q_T <= (1 + r) q_C + d`; for a quantile that should be high, the margin is negative and the sides are exchanged.
    pub relative: Relative,
}

impl SpreadTest {
    /// The test on bins of another resolution.
    pub fn at(&self, digits: u8) -> Relative {
        Relative { bins: Resolution::digits(digits), ..self.relative.clone() }
    }

    /// An upper bound of [`SpreadTest::product`], whatever the clustering.
    fn at_most(&self, a: u64, n_c: u64, s: u64, n_t: u64) -> f64 {
        self.relative.product_at_most([a as f64, n_c as f64], [s as f64, n_t as f64])
    }

    /// The product of both factors for one candidate: `a` of the baseline's `n_c` values lie in its bin or above, `s` of the bucket's `n_t`
    /// above what it tolerates.
    fn product(&self, a: u64, n_c: u64, s: u64, n_t: u64, by: Clustering) -> f64 {
        self.relative.product([a as f64 / by.baseline, n_c as f64 / by.baseline], [s as f64 / by.bucket, n_t as f64 / by.bucket])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::evidence::allocation::Allocation;
    use crate::engine::histogram::thousandths;
    use crate::engine::pane::{AGAIN, Observation};
    use crate::engine::stats::exceedance::Exceedance;

    /// `salt` deals the values to the batches.
    fn seen(values: impl Iterator<Item = f64>, salt: usize) -> Vec<Observation> {
        let batch = |i: usize| (((i + salt).wrapping_mul(0x9e37_79b9) >> 13) as u16 % 64) | AGAIN;
        values.enumerate().map(|(i, v)| Observation { batch: batch(i), ..of(0, bin_of(thousandths(v).0)) }).collect()
    }

    fn of(age: u32, value: u16) -> Observation {
        Observation { cell: 0, age, value, batch: 0, profile: 0 }
    }

    fn cell(observations: &[Observation]) -> Cell<'_> {
        Cell { observations, ..Cell::default() }
    }

    fn test(r_ppm: i64) -> SpreadTest {
        let relative = Relative { level: Exceedance::of_quantile(950_000), r_ppm, d: 0, bins: Resolution::digits(3) };
        SpreadTest { ppm: 950_000, relative }
    }

    #[test]
    fn a_late_regression_is_found_from_its_start() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let book = Booking { allocation: &allocation, first_cohort: Pane(0), slot: 5, baseline: 0 };
        let mut spread = Spread::new(2, true);
        let values = |slow: f64| (0..200).map(move |i| slow * (20.0 + f64::from(i)));
        for pane in 0..1_000 {
            spread.add(Pane(pane), 0, cell(&seen(values(1.0), pane as usize * 77)), &book);
            spread.add(Pane(pane), 1, cell(&seen(values(if pane < 990 { 1.0 } else { 1.5 }), pane as usize * 77)), &book);
        }
        let test = test(100_000);
        let by = spread.clustering(0, 1, 0, &test, 15.0);
        assert!(by.ready && by.bucket < 1.6, "{by:?}");
        let whole = spread.pair(0, 1, 0).unwrap();
        assert!(test.relative.log_e(whole.arms(by)) < 5.0 && spread.may_reach(0, 1, 0, &test, 15.0, 5.0).is_none());
        let (since, pair, own) = spread.best_suffix(0, 1, 0, &test, 15.0, |_| 15.0).unwrap();
        assert_eq!((since, own), (Pane(990), by));
        assert!(pair.bucket.total() == 2_000 && pair.baseline.total() == 2_000);
        assert!(spread.best_suffix(0, 0, 1, &test, 15.0, |_| 3.0).is_none());
    }

    #[test]
    fn cohorts_of_different_periods_are_kept_apart() {
        let mut allocation = Allocation::new(vec![0.5, 0.5]);
        allocation.change(Pane(10), &[0.2, 0.8], 1);
        let book = Booking { allocation: &allocation, first_cohort: Pane(0), slot: 5, baseline: 0 };
        let mut spread = Spread::new(2, true);
        spread.add(Pane(20), 0, cell(&[0, 0, 15, 15, 15, 0].map(|age| of(age, 900))), &book);
        assert_eq!(spread.periods().collect::<Vec<_>>(), [0, 2]);
        let held: Vec<u64> = [0, 2].iter().map(|p| spread.pair(*p, 1, 0).unwrap().baseline.total()).collect();
        assert_eq!(held, [3, 3]);
    }

    #[test]
    fn users_of_a_forgotten_period_are_not_compared_with_others() {
        let mut allocation = Allocation::new(vec![0.5, 0.5]);
        (1..=MAX_PERIODS as i64 + 1).for_each(|i| assert!(allocation.change(Pane(i * 10), &[i as f64, 9.5], 1)));
        let book = Booking { allocation: &allocation, first_cohort: Pane(0), slot: 5, baseline: 0 };
        let mut spread = Spread::new(2, true);
        let mut read = |cohort: i64| {
            spread.add(Pane(200), 1, cell(&[of((200 - cohort) as u32, 900)]), &book);
            let held = |period| spread.pair(period, 1, 0).map_or(0, |pair| pair.bucket.total());
            spread.periods().map(held).sum::<u64>()
        };
        let counted: Vec<u64> = (0..=MAX_PERIODS as i64 + 1).map(|i| read(i * 10 + 5)).collect();
        assert_eq!(counted.last(), Some(&(MAX_PERIODS as u64)));
        assert_eq!(read(5), MAX_PERIODS as u64, "a user of the first period goes on sending requests");
    }

    #[test]
    fn the_bound_of_a_period_is_one() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let book = Booking { allocation: &allocation, first_cohort: Pane(0), slot: 5, baseline: 0 };
        for (scale, r_ppm) in [(1.0, 0), (1.2, 100_000), (1.3, 0), (2.0, 200_000)] {
            let mut spread = Spread::new(2, true);
            spread.add(Pane(0), 0, cell(&seen((0..900).map(|i| 5.0 + f64::from(i)), 0)), &book);
            spread.add(Pane(0), 1, cell(&seen((0..900).map(|i| scale * (5.0 + f64::from(i))), 0)), &book);
            let test = test(r_ppm);
            let by = spread.clustering(0, 1, 0, &test, 15.0);
            let exact = test.relative.log_e(spread.pair(0, 1, 0).unwrap().arms(by));
            assert_eq!(spread.may_reach(0, 1, 0, &test, 15.0, exact), Some(by), "{scale} {exact}");
        }
    }
}
