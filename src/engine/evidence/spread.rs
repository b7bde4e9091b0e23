//! Distributions of a value by bucket: histograms of a period, batches of units, and slots.

use super::Booking;
use super::clusters::{Clustering, CoarseBatches, Counted, coarse, first_above};
use super::ladder::Ladder;
use super::periods::Periods;
use super::slots::{Content, Slots};
use crate::engine::histogram::{Bins, SparseBins, bin_of, upper_edge};
use crate::engine::pane::{AGAIN, Cell, NO_UNIT, Observation};
use crate::engine::plan::{Guardrail, Margin, Statistic};
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
    /// By what is compared. A state of an earlier version has none: it goes on with the design effects of all time.
    #[serde(default)]
    spans: Vec<Compared>,
    periods: Periods<Period>,
}

/// A quantile that is compared with the baseline's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    pub ppm: u32,
    /// What is tolerated: `(1 + r_ppm / 1e6)` of the baseline's quantile and `d` thousandths.
    pub r_ppm: i64,
    pub d: i64,
}

impl Watched {
    /// `None` for a guardrail that compares no quantile.
    pub fn of(guardrail: &Guardrail) -> Option<Watched> {
        let Statistic::Quantile { ppm } = guardrail.statistic else { return None };
        let (r_ppm, d) = match guardrail.max_increase? {
            Margin::Relative(r) => ((r * 1e6).round() as i64, 0),
            Margin::Absolute(d) => (0, (d * 1_000.0).round() as i64),
        };
        Some(if guardrail.higher_is_worse { Watched { ppm, r_ppm, d } } else { Watched { ppm, r_ppm: -r_ppm.min(1_000_000), d: -d } })
    }
}

/// See [`Watched`]; and the design effects of short spans, whose hits are values above the baseline's quantile, or above what it tolerates.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Compared {
    watched: Watched,
    ladder: Ladder,
    /// The first coarse bins that are hits, of the baseline and of the others: as the quantile was when the slot opened.
    first: Option<[u8; 2]>,
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

/// Few slots, since histograms are large: fewer than 40, about three hours at five seconds.
impl Content for SlotArms {
    const PER_LENGTH: usize = 4;
    const TOP: u8 = 8;

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

impl Compared {
    fn add(&mut self, buckets: usize, bucket: usize, role: usize, own: &[Observation]) {
        let Some(first) = self.first else { return };
        for o in own.iter().filter(|o| o.batch != NO_UNIT) {
            let hit = coarse(upper_edge(o.bin())) >= first[role];
            self.ladder.add(buckets, bucket, usize::from(o.batch & !AGAIN), 1, u64::from(hit));
        }
    }
}

impl Spread {
    pub fn new(buckets: usize, compared: Vec<Watched>) -> Spread {
        let spans = |watched| Compared { watched, ladder: Ladder::default(), first: None };
        Spread {
            buckets,
            compared: !compared.is_empty(),
            spans: compared.into_iter().map(spans).collect(),
            periods: Periods::new(MAX_PERIODS),
        }
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
            self.spans.iter_mut().for_each(|c| c.add(buckets, bucket, usize::from(bucket != book.baseline), own));
            own.iter().for_each(|o| arm.bins.push(o.bin()));
            if let Some(slot) = period.slots.at(pane, book.slot, || SlotArms(vec![SlotBins::default(); buckets])) {
                own.iter().for_each(|o| slot.0[bucket].push(slot_bin(o.bin())));
            }
        }
    }

    /// All of `pane` has been added.
    pub(super) fn close(&mut self, pane: Pane, book: &Booking<'_>) {
        if (pane.0 + 1) % book.slot != 0 {
            return;
        }
        let newest = self.periods.iter().next_back().map(|(_, period)| &period.arms[book.baseline].bins);
        for compared in &mut self.spans {
            let Watched { ppm, r_ppm, d } = compared.watched;
            compared.ladder.close(pane.0.div_euclid(book.slot), book.baseline);
            let quantile = newest.and_then(|bins| bins.quantile(ppm));
            compared.first = quantile.map(|q| [q, margin_value(q, r_ppm, d)].map(first_above));
        }
    }

    /// Design effects of the last `slots` for a test of these sides, where those of all time are `cumulative`.
    fn short(&self, test: &SpreadTest, [t, c]: [usize; 2], slots: u64, cumulative: Clustering, log_threshold: f64) -> Clustering {
        // Independent observations are so at any length.
        if cumulative.rate <= 1.0 {
            return cumulative;
        }
        let compared = self.spans.iter().find(|c| c.watched == test.watched);
        let found = compared.and_then(|compared| compared.ladder.effects(if test.turned { c } else { t }, slots, log_threshold));
        found.map_or(cumulative, |[of_baseline, of_bucket]| match test.turned {
            true => Clustering { baseline: of_bucket, bucket: of_baseline, ..cumulative },
            false => Clustering { baseline: of_baseline, bucket: of_bucket, ..cumulative },
        })
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
        let Some(quantile) = c.bins.quantile(test.watched.ppm) else { return Clustering::NONE };
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
        let quantile = c.quantile(test.watched.ppm)?;
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
    /// start, and the clustering, in which `log_threshold` counts. `length` is that of a slot in panes.
    pub fn best_suffix(
        &self,
        period: usize,
        [bucket, baseline]: [usize; 2],
        test: &SpreadTest,
        length: i64,
        log_threshold: f64,
        needed: impl Fn(Pane) -> f64,
    ) -> Option<(Pane, Pair, Clustering)> {
        let own = self.periods.get(period)?;
        let quantile = own.arms[baseline].bins.quantile(test.watched.ppm)?;
        let tolerated = margin_value(quantile, test.relative.r_ppm, test.relative.d);
        let resolution = Resolution::digits(SLOT_DIGITS);
        let (from, above) =
            (slot_bin(bin_of(quantile)), bin_of(resolution.upper(tolerated).min(upper_edge(u16::MAX - 1))).saturating_add(1));
        // Dear, and hardly ever asked for.
        let by = LazyCell::new(|| self.clustering(period, bucket, baseline, test, log_threshold));
        let least_of_all = needed(own.slots.oldest()?);
        let (mut a, mut n_c, mut s, mut n_t) = (0, 0, 0, 0);
        let mut best: Option<(Pane, f64, Clustering)> = None;
        let newest = own.slots.newest_first().next()?.start.0;
        for slot in own.slots.newest_first() {
            let (c, t) = (&slot.content.0[baseline], &slot.content.0[bucket]);
            a += c.from(from);
            n_c += c.count;
            s += t.from(above);
            n_t += t.count;
            if test.at_most(a, n_c, s, n_t) < least_of_all {
                continue;
            }
            let by = self.short(test, [bucket, baseline], ((newest - slot.start.0) / length) as u64 + 1, *by, log_threshold);
            let excess = test.product(a, n_c, s, n_t, by) - needed(slot.start);
            if excess >= 0.0 && best.as_ref().is_none_or(|b| excess > b.1) {
                best = Some((slot.start, excess, by));
            }
        }
        // The bound is that of one candidate: the least of all decides, at the start that looked best.
        let (since, _, by) = best?;
        let inside = || own.slots.newest_first().take_while(|slot| slot.start >= since);
        let tail = |arm: usize| Tail::new(inside().flat_map(move |slot| slot.content.0[arm].edges()));
        let pair = Pair { baseline: tail(baseline), bucket: tail(bucket) };
        test.at(SLOT_DIGITS).reaches(pair.arms(by), needed(since)).then_some((since, pair, by))
    }
}

/// Evidence that a quantile got worse by more than is tolerated.
#[derive(Clone, Debug)]
pub struct SpreadTest {
    pub watched: Watched,
    /// `q_T <= (1 + r) q_C + d`; for a quantile that should be high, the margin is negative and the sides are exchanged.
    pub relative: Relative,
    /// They are.
    pub turned: bool,
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
        SpreadTest { watched: Watched { ppm: 950_000, r_ppm, d: 0 }, relative, turned: false }
    }

    #[test]
    fn a_late_regression_is_found_from_its_start() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let book = Booking { allocation: &allocation, first_cohort: Pane(0), slot: 5, baseline: 0 };
        let mut spread = Spread::new(2, vec![test(100_000).watched]);
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
        let (since, pair, own) = spread.best_suffix(0, [1, 0], &test, 5, 15.0, |_| 15.0).unwrap();
        assert_eq!((since, own), (Pane(990), by));
        assert!(pair.bucket.total() == 2_000 && pair.baseline.total() == 2_000);
        assert!(spread.best_suffix(0, [0, 1], &test, 5, 15.0, |_| 3.0).is_none());
    }

    #[test]
    fn short_spans_are_divided_by_their_own_design_effect() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let book = Booking { allocation: &allocation, first_cohort: Pane(0), slot: 5, baseline: 0 };
        let mut spread = Spread::new(2, vec![test(100_000).watched]);
        // Units of 64 batches live for 40 panes and come in each: one of eight is slow throughout.
        for pane in 0..4_000_i64 {
            for bucket in 0..2 {
                let value = |unit: u64| {
                    let mixed = (unit + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let draw = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32;
                    let time = (draw / 8 + pane as u64 * 5) % 7;
                    if draw.is_multiple_of(8) { 300.0 + 40.0 * time as f64 } else { 20.0 + (draw % 80) as f64 }
                };
                let unit = |batch: u64| (pane / 40) as u64 * 128 + bucket as u64 * 64 + batch;
                let all =
                    (0..64).map(|batch| Observation { batch: batch as u16 | AGAIN, ..of(0, bin_of(thousandths(value(unit(batch))).0)) });
                spread.add(Pane(pane), bucket, cell(&all.collect::<Vec<_>>()), &book);
            }
            spread.close(Pane(pane), &book);
        }
        let (mut test, log_threshold) = (test(100_000), 5.0);
        let by = spread.clustering(0, 1, 0, &test, log_threshold);
        let short = |test: &SpreadTest, sides, slots| spread.short(test, sides, slots, by, log_threshold);
        let effects = [1, 2, 4].map(|slots| short(&test, [1, 0], slots).baseline);
        assert!(by.baseline > 12.0 && effects.windows(2).all(|w| w[0] < w[1]) && effects[2] < 0.7 * by.baseline, "{by:?} {effects:?}");
        let plain = short(&test, [1, 0], 2);
        test.turned = true;
        let turned = short(&test, [0, 1], 2);
        assert_eq!((plain.baseline, plain.bucket), (turned.bucket, turned.baseline));
        test.watched.d = 1;
        assert_eq!(short(&test, [1, 0], 1), by, "nobody asked for that quantile");
    }

    #[test]
    fn cohorts_of_different_periods_are_kept_apart() {
        let mut allocation = Allocation::new(vec![0.5, 0.5]);
        allocation.change(Pane(10), &[0.2, 0.8], 1);
        let book = Booking { allocation: &allocation, first_cohort: Pane(0), slot: 5, baseline: 0 };
        let mut spread = Spread::new(2, vec![test(100_000).watched]);
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
        let mut spread = Spread::new(2, vec![test(100_000).watched]);
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
            let mut spread = Spread::new(2, vec![test(100_000).watched]);
            spread.add(Pane(0), 0, cell(&seen((0..900).map(|i| 5.0 + f64::from(i)), 0)), &book);
            spread.add(Pane(0), 1, cell(&seen((0..900).map(|i| scale * (5.0 + f64::from(i))), 0)), &book);
            let test = test(r_ppm);
            let by = spread.clustering(0, 1, 0, &test, 15.0);
            let exact = test.relative.log_e(spread.pair(0, 1, 0).unwrap().arms(by));
            assert_eq!(spread.may_reach(0, 1, 0, &test, 15.0, exact), Some(by), "{scale} {exact}");
        }
    }
}
