//! Quantile guardrails on histograms: latencies as non-negative integers in one unit, binned log-linearly.
//!
//! Assumes requests that are independent given the arm; for clustered users all counts are divided by a design effect
//! ([`super::design_effect`]), which makes every test here asymptotic. Histograms are cumulative since the allocation last changed:
//! both arms restart with every change, or a baseline that moves along would look like a regression.

use super::exceedance::Exceedance;
use super::numeric::{last_holding, log_add_exp, log_inverse};

/// Layout of log-linear bins (HdrHistogram's, unit 1): values below `2^bits` have bins of their own, larger ones share bins of
/// `2^e` such that the leading digits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    half_bits: u32,
}

impl Resolution {
    /// Bins that keep this many significant decimal digits; from 0 to 5.
    pub fn digits(significant: u8) -> Resolution {
        let steps = 2 * 10u64.pow(u32::from(significant.min(5)));
        Resolution { half_bits: steps.next_power_of_two().ilog2() - 1 }
    }

    fn exponent(self, value: u64) -> u32 {
        value.checked_ilog2().unwrap_or(0).saturating_sub(self.half_bits)
    }

    /// Smallest value in the bin of `value`.
    pub fn lower(self, value: u64) -> u64 {
        let e = self.exponent(value);
        value >> e << e
    }

    /// Largest value in the bin of `value`: the bin's edge.
    pub fn upper(self, value: u64) -> u64 {
        self.lower(value) | ((1 << self.exponent(value)) - 1)
    }
}

/// `floor((1 + r) u + d)` with `r` in parts per million (at least -1,000,000), exact; moved to the nearest `u64`.
pub fn margin_value(u: u64, r_ppm: i64, d: i64) -> u64 {
    let factor = (i128::from(r_ppm) + MILLION).max(0) as u128;
    // Below 2^64 times (2^63 + 1e6) over 1e6, so that neither the product nor the sum can overflow.
    let scaled = (u128::from(u) * factor / MILLION as u128) as i128;
    u64::try_from((scaled + i128::from(d)).max(0)).unwrap_or(u64::MAX)
}

const MILLION: i128 = 1_000_000;

/// A histogram as counts above its edges.
#[derive(Clone, Debug, PartialEq)]
pub struct Tail {
    /// Edges of the bins that hold something, ascending.
    edges: Vec<u64>,
    /// `from[j]`: observations in bin j and above; one more entry than edges, the last is 0.
    from: Vec<u64>,
}

/// Sorts bins by edge and adds up those of the same edge. Fast on bins that are a few sorted runs.
pub fn add_up(bins: &mut Vec<(u64, u64)>) {
    bins.sort_by_key(|bin| bin.0);
    bins.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 = kept.1.saturating_add(next.1);
        }
        same
    });
}

impl Default for Tail {
    fn default() -> Self {
        Tail::new([])
    }
}

impl Tail {
    /// From pairs of a bin's edge (its largest value, see [`Resolution::upper`]) and its count, in any order; equal edges add up.
    pub fn new(bins: impl IntoIterator<Item = (u64, u64)>) -> Tail {
        let mut bins: Vec<(u64, u64)> = bins.into_iter().filter(|bin| bin.1 > 0).collect();
        add_up(&mut bins);
        let mut from = vec![0; bins.len() + 1];
        for j in (0..bins.len()).rev() {
            from[j] = bins[j].1.saturating_add(from[j + 1]);
        }
        Tail { edges: bins.into_iter().map(|bin| bin.0).collect(), from }
    }

    /// As [`Tail::new`], from bins that hold something, one for each edge, in ascending order.
    pub fn ascending(bins: impl Iterator<Item = (u64, u64)>) -> Tail {
        let (edges, mut from): (Vec<u64>, Vec<u64>) = bins.unzip();
        from.push(0);
        for j in (0..edges.len()).rev() {
            from[j] = from[j].saturating_add(from[j + 1]);
        }
        Tail { edges, from }
    }

    /// Observations in all.
    pub fn total(&self) -> u64 {
        self.from[0]
    }

    /// Observations in bins above the one with this edge.
    pub fn above(&self, edge: u64) -> u64 {
        self.from[self.edges.partition_point(|e| *e <= edge)]
    }

    /// Each edge, ascending, with the number of observations in bins above it.
    pub(super) fn steps(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.edges.iter().copied().zip(self.from[1..].iter().copied())
    }

    /// Edge of the bin that holds the empirical quantile of this level in parts per million; `None` without data.
    pub fn quantile(&self, ppm: u32) -> Option<u64> {
        let wanted = u128::from(self.total()) * u128::from(ppm.min(1_000_000));
        let reached = |from_next: u64| u128::from(self.total() - from_next) * 1_000_000 >= wanted;
        let j = self.from[1..].partition_point(|above| !reached(*above));
        self.edges.get(j).copied()
    }
}

/// Evidence that the quantile exceeds a fixed limit, H0: `q_T <= limit`. Exact.
///
/// The exceedance test ([`Exceedance`], of the quantile's level) on the observations above the bin of the limit. With an exact
/// counter of values above the limit, [`Exceedance::over`] loses nothing to the bins. `deff` is the design effect, at least 1.
pub fn absolute_log_e(treatment: &Tail, level: &Exceedance, limit: u64, bins: Resolution, deff: f64) -> f64 {
    let deff = deff.max(1.0);
    level.over(treatment.above(bins.upper(limit)) as f64 / deff, treatment.total() as f64 / deff)
}

/// The relative quantile test: H0 `q_T <= (1 + r) q_C + d`. Exact.
///
/// For each value that `q_C` may have, the product of the evidence that it is larger than that (half of it held as cash) and
/// of the evidence that treatment exceeds the value with its margin; the least product over all values bounds the one of the true
/// `q_C`, so it is an e-process itself. One-sided form, with margin and bins, of the two-sample test of Howard and Ramdas,
/// Bernoulli 28(3), 2022, theorem 6. Bins only cost power: use 3 digits for margins below 20%.
#[derive(Clone, Debug)]
pub struct Relative {
    /// Of the quantile's level: [`Exceedance::of_quantile`].
    pub level: Exceedance,
    /// Relative margin in parts per million, at least -1,000,000; negative when treatment must be faster.
    pub r_ppm: i64,
    /// Absolute margin in the unit of the values; tolerated values below 0 count as 0.
    pub d: i64,
    pub bins: Resolution,
}

/// Both arms as the relative test reads them.
#[derive(Clone, Copy, Debug)]
pub struct Arms<'a> {
    pub control: &'a Tail,
    pub treatment: &'a Tail,
    /// Design effects, at least 1.
    pub deff_c: f64,
    pub deff_t: f64,
}

impl<'a> Arms<'a> {
    /// Treatment and control exchanged.
    pub fn swapped(self) -> Arms<'a> {
        Arms { control: self.treatment, treatment: self.control, deff_c: self.deff_t, deff_t: self.deff_c }
    }
}

/// Share of the control's bet that stays cash: it caps the price of not knowing `q_C` at a factor of 2.
const LOG_CASH: f64 = -std::f64::consts::LN_2;

impl Relative {
    /// The evidence. Looks at a few dozen of the candidates around the control's quantile: with growing candidate the first factor
    /// rises and the second falls, so a walk ends where even the other factor's least value cannot lower the minimum.
    pub fn log_e(&self, arms: Arms<'_>) -> f64 {
        let scan = Scan { test: self, arms, edges: &arms.control.edges };
        let least_t = scan.treatment_above(0);
        let mut best = scan.control_from(0) + least_t;
        let start = scan.start();
        for j in start..scan.edges.len() {
            let first = scan.first(j);
            best = best.min(first + scan.second(j));
            if first + least_t >= best {
                break;
            }
        }
        for j in (0..start).rev() {
            let second = scan.second(j);
            best = best.min(scan.first(j) + second);
            if LOG_CASH + second >= best {
                break;
            }
        }
        best
    }

    /// An upper bound of [`Relative::log_e`] at the price of two mixtures: the product at the control's empirical quantile.
    pub fn log_e_at_most(&self, arms: Arms<'_>) -> f64 {
        let scan = Scan { test: self, arms, edges: &arms.control.edges };
        let start = scan.start();
        if start < scan.edges.len() { scan.first(start) + scan.second(start) } else { scan.control_from(0) + scan.treatment_above(0) }
    }

    /// The product for one candidate: `control` counts the values in its bin and above, and all; `treatment` those above what it
    /// tolerates, and all; both divided by their design effects. An upper bound of [`Relative::log_e`], whatever the candidate.
    pub fn product(&self, control: [f64; 2], treatment: [f64; 2]) -> f64 {
        LOG_CASH + log_add_exp(0.0, self.level.under(control[0], control[1])) + self.level.over(treatment[0], treatment[1])
    }

    /// An upper bound of [`Relative::product`] without its exponentials, at least 0; of counts that are divided by any design effects too.
    pub fn product_at_most(&self, control: [f64; 2], treatment: [f64; 2]) -> f64 {
        // What is not cash, and the cash, are half of the control's bet each: together worth no more than the better half.
        self.level.under_at_most(control[0], control[1]) + self.level.over_at_most(treatment[0], treatment[1])
    }

    /// Whether [`Relative::log_e`] is at least `needed`, most often at the price of two mixtures.
    pub fn reaches(&self, arms: Arms<'_>, needed: f64) -> bool {
        self.log_e_at_most(arms) >= needed && self.log_e(arms) >= needed
    }

    /// Observations of `treatment` that exceed the control value `u` with its margin.
    pub(super) fn exceeding(&self, treatment: &Tail, u: u64) -> u64 {
        treatment.above(self.bins.upper(margin_value(u, self.r_ppm, self.d)))
    }

    /// The test of the opposite null, H0 `q_T >= (1 + r) q_C + d`, to be read with the arms exchanged ([`Arms::swapped`]):
    /// `q_C <= (q_T - d) / (1 + r)`. Both parts of its margin are rounded up, which costs at most 1 part per million and 1 unit, and
    /// never makes evidence. A margin `r` of -100% or less has no opposite: nothing is ever evidence against it.
    pub fn reversed(&self) -> Relative {
        let factor = i128::from(self.r_ppm) + MILLION;
        let (r_ppm, d) = if factor > 0 {
            let (inverse, shift) = (ceil_div(MILLION * MILLION, factor), ceil_div(-i128::from(self.d) * MILLION, factor));
            (saturated(inverse - MILLION), saturated(shift))
        } else {
            (i64::MAX, i64::MAX)
        };
        Relative { level: self.level.clone(), r_ppm, d, bins: self.bins }
    }
}

impl Tail {
    /// Edge and count of each bin.
    pub fn bins(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.edges.iter().enumerate().map(|(j, edge)| (*edge, self.from[j] - self.from[j + 1]))
    }

    /// Neighbouring bins added up where `cut` has no edge between them: counts above each of its (ascending) values stay.
    fn merged_between(&self, cuts: &[u64]) -> Tail {
        let group = |edge: u64| cuts.partition_point(|cut| *cut < edge);
        let mut bins: Vec<(u64, u64)> = Vec::new();
        let mut last = None;
        for (edge, count) in self.bins() {
            match bins.last_mut() {
                Some(bin) if last == Some(group(edge)) => *bin = (edge, bin.1 + count),
                _ => bins.push((edge, count)),
            }
            last = Some(group(edge));
        }
        Tail::new(bins)
    }
}

impl Relative {
    /// Control and treatment with bins added up wherever that does not change [`Relative::log_e`]: mostly a hundred bins instead of
    /// thousands, to be kept as evidence.
    pub fn condensed(&self, arms: Arms<'_>) -> (Tail, Tail) {
        let (edges, exact) = (&arms.control.edges, self.log_e(arms));
        let start = Scan { test: self, arms, edges }.start();
        let mut reach = 16;
        loop {
            let (low, high) = (start.saturating_sub(reach), (start + reach).min(edges.len().saturating_sub(1)));
            if low == 0 && high + 1 >= edges.len() {
                return (arms.control.clone(), arms.treatment.clone());
            }
            let control = arms.control.merged_between(&edges[low..=high]);
            let mut cuts: Vec<u64> = control.edges.iter().map(|u| self.bins.upper(margin_value(*u, self.r_ppm, self.d))).collect();
            cuts.dedup();
            let treatment = arms.treatment.merged_between(&cuts);
            let found = self.log_e(Arms { control: &control, treatment: &treatment, ..arms });
            if found == exact {
                return (control, treatment);
            }
            reach *= 4;
        }
    }
}

/// `ceil(a / b)` for a positive `b`.
fn ceil_div(a: i128, b: i128) -> i128 {
    -(-a).div_euclid(b)
}

fn saturated(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value > 0 { i64::MAX } else { i64::MIN })
}

/// Candidates of the relative test: the edges of the control's bins.
struct Scan<'a> {
    test: &'a Relative,
    arms: Arms<'a>,
    edges: &'a [u64],
}

impl Scan<'_> {
    /// The last candidate that the control's empirical quantile reaches.
    fn start(&self) -> usize {
        let control = self.arms.control;
        let share = self.test.level.q0() * control.total() as f64;
        control.from.partition_point(|above| *above as f64 > share).saturating_sub(1)
    }

    /// First factor: evidence that the control's quantile lies above bin j.
    fn first(&self, j: usize) -> f64 {
        self.control_from(self.arms.control.from[j])
    }

    /// Second factor: evidence that treatment's quantile exceeds the edge of bin j with its margin.
    fn second(&self, j: usize) -> f64 {
        self.treatment_above(self.test.exceeding(self.arms.treatment, self.edges[j]))
    }

    fn control_from(&self, count: u64) -> f64 {
        let deff = self.arms.deff_c.max(1.0);
        let under = self.test.level.under(count as f64 / deff, self.arms.control.total() as f64 / deff);
        LOG_CASH + log_add_exp(0.0, under)
    }

    fn treatment_above(&self, count: u64) -> f64 {
        let deff = self.arms.deff_t.max(1.0);
        self.test.level.over(count as f64 / deff, self.arms.treatment.total() as f64 / deff)
    }
}

/// Confidence sequence of one arm's quantile, for plots: with probability `1 - alpha`, `lower < quantile <= upper` at all times; both are
/// edges of bins, `None` where there is no bound yet. Exact. Do not intersect over time: drift would empty it.
///
/// Inverts the exceedance test on both sides, each at `alpha / 2`.
pub fn confidence(tail: &Tail, level: &Exceedance, alpha: f64, deff: f64) -> (Option<u64>, Option<u64>) {
    let (deff, needed) = (deff.max(1.0), log_inverse(alpha / 2.0));
    let n = tail.total() as f64 / deff;
    let above = &tail.from[1..];
    let below = above.partition_point(|s| level.over(*s as f64 / deff, n) >= needed);
    let reached = above.partition_point(|s| level.under(*s as f64 / deff, n) < needed);
    (below.checked_sub(1).map(|j| tail.edges[j]), tail.edges.get(reached).copied())
}

/// Confidence sequence for `q_T / q_C - 1`, each end at level `alpha`: at all times at or above the lower end, and at or below the upper
/// one. `None` where there is no bound yet. Exact: inverts [`Relative`] over its margin, in steps of one part per million (of
/// `q_C / q_T` for the upper end). Changes beyond 1,000-fold are not told apart. About 50 evaluations of the test.
pub fn relative_interval(arms: Arms<'_>, level: &Exceedance, alpha: f64, bins: Resolution) -> [Option<f64>; 2] {
    let needed = log_inverse(alpha);
    let proved = |arms, r_ppm| Relative { level: level.clone(), r_ppm, d: 0, bins }.reaches(arms, needed);
    relative_bounds(|r_ppm| proved(arms, r_ppm), |r_ppm| proved(arms.swapped(), r_ppm))
}

/// Confidence sequence for `q_T - q_C` in the unit of the values, each end at level `alpha`; like [`relative_interval`].
pub fn difference_interval(arms: Arms<'_>, level: &Exceedance, alpha: f64, bins: Resolution) -> [Option<f64>; 2] {
    let needed = log_inverse(alpha);
    let proved = |arms, d| Relative { level: level.clone(), r_ppm: 0, d, bins }.reaches(arms, needed);
    difference_bounds(arms, |d| proved(arms, d), |d| proved(arms.swapped(), d))
}

/// Inverts a test that tells whether `q_T > (1 + r) q_C` is proved, for `r` in parts per million, and the same with the arms exchanged.
pub(super) fn relative_bounds(proved: impl Fn(i64) -> bool, swapped: impl Fn(i64) -> bool) -> [Option<f64>; 2] {
    const LARGEST: i64 = 1_000_000_000;
    let ratio = |r_ppm: i64| 1.0 + r_ppm as f64 / 1e6;
    let least = last_holding(-(MILLION as i64), LARGEST, proved).map(ratio);
    let inverse = last_holding(-(MILLION as i64), LARGEST, swapped).map(ratio);
    [least.map(|ratio| ratio - 1.0), inverse.filter(|ratio| *ratio > 0.0).map(|ratio| 1.0 / ratio - 1.0)]
}

/// Inverts a test that tells whether `q_T > q_C + d` is proved, and the same with the arms exchanged.
pub(super) fn difference_bounds(arms: Arms<'_>, proved: impl Fn(i64) -> bool, swapped: impl Fn(i64) -> bool) -> [Option<f64>; 2] {
    let edge = |tail: &Tail| tail.edges.last().map_or(0, |e| i64::try_from(*e).unwrap_or(i64::MAX));
    let most = edge(arms.control).max(edge(arms.treatment)).saturating_add(1);
    [last_holding(-most, most, proved).map(|d| d as f64), last_holding(-most, most, swapped).map(|d| -d as f64)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::testing::multinomial_expectation;
    use proptest::prelude::*;

    fn relative(ppm: u32, r_ppm: i64) -> Relative {
        Relative { level: Exceedance::of_quantile(ppm), r_ppm, d: 0, bins: Resolution::digits(2) }
    }

    /// The definition: the minimum over all candidates.
    fn plain(test: &Relative, arms: Arms<'_>) -> f64 {
        let scan = Scan { test, arms, edges: &arms.control.edges };
        let beyond = scan.control_from(0) + scan.treatment_above(0);
        (0..scan.edges.len()).map(|j| scan.first(j) + scan.second(j)).fold(beyond, f64::min)
    }

    #[test]
    fn bins_tile_the_integers() {
        for digits in [2, 3] {
            let bins = Resolution::digits(digits);
            let mut next = 0u64;
            while next < 1 << 20 {
                let upper = bins.upper(next);
                assert_eq!((bins.lower(upper), bins.lower(next)), (next, next));
                assert!(upper - next <= next / 10u64.pow(u32::from(digits)), "{next}..{upper}");
                next = upper + 1;
            }
            assert_eq!(bins.upper(u64::MAX), u64::MAX);
        }
    }

    #[test]
    fn margins_are_exact_and_saturate() {
        assert_eq!(margin_value(30, 100_000, 0), 33);
        assert_eq!(margin_value(u64::MAX, 100_000, 5), u64::MAX);
        assert_eq!(margin_value(9, 111_111, 0), 9);
        assert_eq!((margin_value(7, -500_000, 0), margin_value(7, -500_000, -3), margin_value(7, -500_000, -4)), (3, 0, 0));
        assert_eq!(
            (margin_value(9, -1_000_000, 5), margin_value(9, i64::MIN, 5), margin_value(u64::MAX, i64::MAX, i64::MAX)),
            (5, 5, u64::MAX)
        );
    }

    /// Mean of the e-value over all outcomes of five requests in each arm, on the bins 0, 1, 2 … (which are exact).
    fn mean_of(test: &Relative, p_c: &[f64], p_t: &[f64]) -> f64 {
        let bins = |c: &[u64]| Tail::new(c.iter().enumerate().map(|(v, n)| (v as u64, *n)));
        multinomial_expectation(5, p_c, |c| {
            let control = bins(c);
            let of = |treatment: &Tail| test.log_e(Arms { control: &control, treatment, deff_c: 1.0, deff_t: 1.0 });
            multinomial_expectation(5, p_t, |t| of(&bins(t))).ln()
        })
    }

    #[test]
    fn reversed_margins_are_the_inverse_rounded_up() {
        let turned = |r_ppm, d| Some(Relative { d, ..relative(500_000, r_ppm) }.reversed()).map(|t| (t.r_ppm, t.d));
        assert_eq!((turned(0, 7), turned(0, -7)), (Some((0, -7)), Some((0, 7))));
        assert_eq!((turned(250_000, 5), turned(100_000, 0)), (Some((-200_000, -4)), Some((-90_909, 0))));
        assert_eq!((turned(-500_000, 3), turned(-1_000_000, 3)), (Some((1_000_000, -6)), Some((i64::MAX, i64::MAX))));
    }

    #[test]
    fn intervals_enclose_the_change_on_both_sides_of_zero() {
        let of = |from: u64, to: u64| Tail::new((from..to).map(|v| (Resolution::digits(3).upper(v * 1_000), 10)));
        let (slow, fast, level) = (of(200, 2_200), of(100, 1_100), Exceedance::of_quantile(950_000));
        let arms = Arms { control: &fast, treatment: &slow, deff_c: 1.0, deff_t: 1.0 };
        for (arms, ratio, difference) in [(arms, 2.0, 1_050e3), (arms.swapped(), 0.5, -1_050e3)] {
            let [low, high] = relative_interval(arms, &level, 0.05, Resolution::digits(3)).map(|b| b.unwrap() + 1.0);
            assert!(low < ratio && ratio < high && high / low < 1.1, "{low} {high}");
            let [low, high] = difference_interval(arms, &level, 0.05, Resolution::digits(3)).map(Option::unwrap);
            assert!(low < difference && difference < high && high - low < 80e3, "{low} {high}");
        }
        let none = Tail::default();
        let empty = Arms { control: &none, ..arms };
        assert_eq!(relative_interval(empty, &level, 0.05, Resolution::digits(3)), [None, None]);
        assert_eq!(difference_interval(empty, &level, 0.05, Resolution::digits(3)), [None, None]);
        assert_eq!(relative_interval(arms, &level, 0.0, Resolution::digits(3)), [None, None]);
    }

    #[test]
    fn tails_count_and_find_quantiles() {
        let tail = Tail::new([(7, 2), (3, 1), (7, 1), (9, 0)]);
        assert_eq!((tail.total(), tail.above(3), tail.above(6), tail.above(7)), (4, 3, 3, 0));
        assert_eq!((tail.quantile(250_000), tail.quantile(250_001), tail.quantile(1_000_000)), (Some(3), Some(7), Some(7)));
        assert_eq!(Tail::default().quantile(500_000), None);
    }

    #[test]
    fn relative_mean_under_the_null_is_at_most_one() {
        // The median of both arms is the first bin; six control and six treatment requests, all outcomes.
        let test = relative(500_000, 0);
        let cells = [0.5, 0.3, 0.2];
        let bins = |c: &[u64]| Tail::new([(10, c[0]), (20, c[1]), (30, c[2])]);
        let mean = multinomial_expectation(6, &cells, |c| {
            let control = bins(c);
            multinomial_expectation(6, &cells, |t| test.log_e(Arms { control: &control, treatment: &bins(t), deff_c: 1.0, deff_t: 1.0 }))
                .ln()
        });
        assert!(mean <= 1.0, "{mean}");
    }

    #[test]
    fn confidence_encloses_the_quantile() {
        let tail = Tail::new((1..=1_000).map(|v| (v, 10)));
        let (low, high) = confidence(&tail, &Exceedance::of_quantile(950_000), 0.05, 1.0);
        let (low, high) = (low.unwrap(), high.unwrap());
        assert!((931..950).contains(&low) && (950..970).contains(&high), "{low} {high}");
        assert_eq!(confidence(&Tail::default(), &Exceedance::of_quantile(950_000), 0.05, 1.0), (None, None));
    }

    fn histogram() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0u64..5_000, 0u64..400), 0..40)
    }

    proptest! {
        #[test]
        fn the_walk_finds_the_least_product(
            c in histogram(), t in histogram(), ppm in prop::sample::select(vec![500_000u32, 950_000, 990_000]),
            r_ppm in -900_000i64..500_000, deff_c in 1.0..5.0f64, deff_t in 1.0..5.0f64,
        ) {
            let test = relative(ppm, r_ppm);
            let edge = |bins: Vec<(u64, u64)>| Tail::new(bins.into_iter().map(|(v, n)| (test.bins.upper(v), n)));
            let (control, treatment) = (edge(c), edge(t));
            let arms = Arms { control: &control, treatment: &treatment, deff_c, deff_t };
            let (fast, slow) = (test.log_e(arms), plain(&test, arms));
            prop_assert!((fast - slow).abs() <= 1e-9 * slow.abs().max(1.0), "{} {}", fast, slow);
            prop_assert!(test.log_e_at_most(arms) >= fast - 1e-9);
        }

        #[test]
        fn the_reversed_test_is_an_e_value_under_the_opposite_null(
            weights in prop::collection::vec(1u32..20, 4), other in prop::collection::vec(1u32..20, 4),
            ppm in prop::sample::select(vec![500_000u32, 700_000]), r_ppm in -900_000i64..2_000_000, d in -3i64..4,
        ) {
            let shares = |w: &[u32]| w.iter().map(|x| f64::from(*x) / f64::from(w.iter().sum::<u32>())).collect::<Vec<f64>>();
            let quantile = |p: &[f64]| p.iter().scan(0.0, |sum, x| { *sum += x; Some(*sum) }).position(|sum| sum >= f64::from(ppm) / 1e6).unwrap_or(3);
            let (p_c, p_t) = (shares(&weights), shares(&other));
            let test = Relative { d, ..relative(ppm, r_ppm) };
            // The true quantiles decide which of the two nulls holds; both tests must keep to theirs.
            let tolerated = (1.0 + r_ppm as f64 / 1e6) * quantile(&p_c) as f64 + d as f64;
            if quantile(&p_t) as f64 >= tolerated {
                let mean = mean_of(&test.reversed(), &p_t, &p_c);
                prop_assert!(mean <= 1.0 + 1e-12, "{}", mean);
            }
            if quantile(&p_t) as f64 <= tolerated {
                let mean = mean_of(&test, &p_c, &p_t);
                prop_assert!(mean <= 1.0 + 1e-12, "{}", mean);
            }
        }

        #[test]
        fn reversed_margins_never_tolerate_less_than_the_inverse(u in 0u64..1 << 40, r_ppm in -999_999i64..100_000_000, d in -1_000_000_000i64..1_000_000_000) {
            let turned = relative(500_000, r_ppm);
            let turned = Relative { d, ..turned }.reversed();
            // floor((u - d) / (1 + r)), exactly.
            let exact = ((i128::from(u) - i128::from(d)) * MILLION).div_euclid(i128::from(r_ppm) + MILLION).max(0) as u64;
            let found = margin_value(u, turned.r_ppm, turned.d);
            prop_assert!(found >= exact && found - exact <= 2 + u / 1_000_000, "{} {}", found, exact);
        }

        #[test]
        fn slower_treatment_is_more_evidence(c in histogram(), t in histogram(), shift in 0u64..2_000) {
            let test = relative(950_000, 100_000);
            let (control, treatment) = (Tail::new(c), Tail::new(t.clone()));
            let slower = Tail::new(t.into_iter().map(|(v, n)| (v + shift, n)));
            let evidence = |treatment: &Tail| test.log_e(Arms { control: &control, treatment, deff_c: 1.0, deff_t: 1.0 });
            prop_assert!(evidence(&slower) >= evidence(&treatment) - 1e-9);
        }

        #[test]
        fn never_nan(
            c in prop::collection::vec(any::<(u64, u64)>(), 0..9), t in prop::collection::vec(any::<(u64, u64)>(), 0..9),
            ppm: u32, limit: u64, x: [f64; 3],
        ) {
            let test = relative(ppm, limit as i64);
            let (control, treatment) = (Tail::new(c), Tail::new(t));
            let arms = Arms { control: &control, treatment: &treatment, deff_c: x[0], deff_t: x[1] };
            prop_assert!(!test.log_e(arms).is_nan() && !test.log_e_at_most(arms).is_nan());
            prop_assert!(!absolute_log_e(&control, &test.level, limit, test.bins, x[0]).is_nan());
            confidence(&control, &test.level, x[2], x[0]);
            control.quantile(ppm);
        }
    }
}
