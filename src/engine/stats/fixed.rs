//! Tests for one look at a planned end (`method: fixed_horizon`): one-sided p-values and intervals.
//!
//! **Asymptotic**, and valid only if the end was fixed beforehand and nobody acts on earlier looks: whoever looks again and again and stops
//! at the first small p-value raises false alarms far more often than `alpha`. Both ends of an interval are at level `alpha` each, so that a
//! lower end above the margin is the same as a p-value of at most `alpha`.

use super::beta::{Beta, student_tail};
use super::exceedance::Exceedance;
use super::means::{self, Contrast, Moments};
use super::numeric::{count, crossing, normal_tail};
use super::quantiles::{Arms, Relative, Resolution, difference_bounds, relative_bounds};
use super::rates::{Null, Stratum};

/// Which side of the null a test looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Above,
    Below,
}

/// Strata of the same allocation taken together: only allocation, not the tuning baseline, matters to tests of one look.
pub(super) fn by_allocation(strata: &[Stratum]) -> Vec<Stratum> {
    let mut out: Vec<Stratum> = Vec::new();
    for stratum in strata {
        let counts = [stratum.n_t, stratum.x_t, stratum.n_c, stratum.x_c].map(count);
        let [Some(n_t), Some(x_t), Some(n_c), Some(x_c)] = counts else { continue };
        let (x_t, x_c) = (x_t.min(n_t), x_c.min(n_c));
        match out.iter_mut().find(|s| s.w.total_cmp(&stratum.w).is_eq()) {
            Some(s) => *s = Stratum { n_t: s.n_t + n_t, x_t: s.x_t + x_t, n_c: s.n_c + n_c, x_c: s.x_c + x_c, ..*s },
            None => out.push(Stratum { n_t, x_t, n_c, x_c, ..*stratum }),
        }
    }
    out.retain(|s| s.n_t > 0.0 && s.n_c > 0.0);
    out
}

/// Weight of each stratum: its share of the harmonic sample size.
pub(super) fn weights(strata: &[Stratum]) -> Vec<f64> {
    let harmonic: Vec<f64> = strata.iter().map(|s| s.n_t * (s.n_c / (s.n_t + s.n_c))).collect();
    let total: f64 = harmonic.iter().sum();
    harmonic.into_iter().map(|h| h / total).collect()
}

/// p-value of H0 `p_T <= ratio p_C + margin` (side above) or of its opposite (below); 1 without data in both arms.
///
/// Score test of the linear null (Farrington and Manning, Statistics in Medicine 9, 1990): the variance is that of the likeliest
/// rates on the boundary. Its skewness is taken into account (Gart and Nam, Biometrics 46, 1990) through the gamma distribution of the same
/// skewness, by the cube-root transformation of Wilson and Hilferty, and half an event is taken off. By enumeration (see
/// the tests) the size stays below 1.2 alpha from two expected events per arm on, at alpha 5%, 1% and 0.1%, for canaries of 5% as for
/// halves, where a plain score test reaches 2.1 alpha at 1%.
/// Strata of different allocation are compared within themselves and weighted by their harmonic sizes.
pub fn rate_p(strata: &[Stratum], null: Null, side: Side) -> f64 {
    let strata = by_allocation(strata);
    let usable = null.ratio >= 0.0 && null.ratio <= 1e15 && (-null.ratio..=1.0).contains(&null.margin);
    if strata.is_empty() || !usable {
        return 1.0;
    }
    let (mut psi, mut variance, mut third, mut step) = (0.0, 0.0, 0.0, 0.0f64);
    for (stratum, weight) in strata.iter().zip(weights(&strata)) {
        let p_c = likeliest_control(stratum, null);
        let p_t = (null.ratio * p_c + null.margin).clamp(0.0, 1.0);
        let bernoulli = |p: f64| p * (1.0 - p);
        let (v_t, v_c) = (bernoulli(p_t) / stratum.n_t, null.ratio * null.ratio * bernoulli(p_c) / stratum.n_c);
        psi += weight * (stratum.x_t / stratum.n_t - null.ratio * stratum.x_c / stratum.n_c - null.margin);
        variance += weight * weight * (v_t + v_c);
        let cubed = v_t * (1.0 - 2.0 * p_t) / stratum.n_t - null.ratio * v_c * (1.0 - 2.0 * p_c) / stratum.n_c;
        third += weight.powi(3) * cubed;
        step = step.max(weight * (1.0 / stratum.n_t).max(null.ratio / stratum.n_c));
    }
    let sign = if side == Side::Above { 1.0 } else { -1.0 };
    let excess = sign * psi - 0.5 * step;
    if variance <= 0.0 {
        return if excess > 0.0 { 0.0 } else { 1.0 };
    }
    skewed_tail(excess / variance.sqrt(), sign * third / variance.powf(1.5))
}

/// The rate of control on the boundary of the null under which the counts are likeliest: the root of the score, which falls.
fn likeliest_control(s: &Stratum, null: Null) -> f64 {
    let Null { ratio, margin } = null;
    if ratio <= 0.0 {
        return s.x_c / s.n_c;
    }
    let (least, most) = ((-margin / ratio).max(0.0), ((1.0 - margin) / ratio).min(1.0));
    let share = |x: f64, p: f64| if x > 0.0 { x / p } else { 0.0 };
    let score = |p: f64| {
        let p_t = ratio * p + margin;
        ratio * (share(s.x_t, p_t) - share(s.n_t - s.x_t, 1.0 - p_t)) + share(s.x_c, p) - share(s.n_c - s.x_c, 1.0 - p)
    };
    if least < most { crossing(least, most, score) } else { least }
}

/// Chance that a standardised variable with this skewness exceeds `z`, were it a shifted gamma variable.
fn skewed_tail(z: f64, skewness: f64) -> f64 {
    if !(z.is_finite() && skewness.is_finite()) {
        return 1.0;
    }
    if skewness.abs() < 1e-6 {
        return normal_tail(z);
    }
    let inside = 1.0 + 0.5 * z * skewness;
    if inside <= 0.0 {
        // Beyond the end of the gamma variable's range.
        return if skewness > 0.0 { 1.0 } else { 0.0 };
    }
    normal_tail((inside.cbrt() - 1.0 + skewness * skewness / 36.0) * 6.0 / skewness)
}

/// Interval of `p_T / p_C - 1`, each end at level `alpha`; `None` where there is no end between a millionth and a million. [`rate_p`] inverted.
pub fn rate_relative_interval(strata: &[Stratum], alpha: f64) -> [Option<f64>; 2] {
    let p = |log_ratio: f64, side| rate_p(strata, Null { ratio: log_ratio.exp(), margin: 0.0 }, side);
    let edge = 1e6f64.ln();
    ends(-edge, edge, alpha, p).map(|end| end.map(f64::exp_m1))
}

/// Interval of `p_T - p_C`, each end at level `alpha`. [`rate_p`] inverted.
pub fn rate_difference_interval(strata: &[Stratum], alpha: f64) -> [Option<f64>; 2] {
    let edge = 1.0 - 1e-9;
    ends(-edge, edge, alpha, |margin, side| rate_p(strata, Null::absolute(margin), side))
}

/// The null values between `low` and `high` beyond which a test of either side rejects at `alpha`.
fn ends(low: f64, high: f64, alpha: f64, p: impl Fn(f64, Side) -> f64) -> [Option<f64>; 2] {
    let end = |side, open: f64, shut: f64| {
        // From the value that is rejected, if any is, towards the one that is not.
        let at = |share: f64| open + share * (shut - open);
        let gap = |share: f64| alpha - p(at(share), side);
        (gap(0.0) >= 0.0 && gap(1.0) < 0.0).then(|| at(crossing(0.0, 1.0, gap)))
    };
    [end(Side::Above, low, high), end(Side::Below, high, low)]
}

/// A contrast of means as one look sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Welch {
    /// Estimate of the contrast and its standard error, in units of y.
    pub psi: f64,
    pub error: f64,
    /// Degrees of freedom.
    pub dof: f64,
}

impl Welch {
    /// p-value of the null that the contrast is at most 0.
    pub fn p(&self) -> f64 {
        student_tail(self.psi / self.error, self.dof)
    }
}

/// Welch's test of each stratum with at least `min_units` (and 2) units in both arms, weighted by precision; degrees of freedom after
/// Satterthwaite. With the covariate's pooled slope taken out where there is one. `None` without a stratum that has a variance.
///
/// Needs nearly normal arm means; with skewed values and few units in one arm the p-value is too small (see [`means`]).
pub fn welch(strata: &[means::Stratum], contrast: Contrast, min_units: u64) -> Option<Welch> {
    let (mut weighted, mut precision, mut spread) = (0.0, 0.0, 0.0);
    for stratum in strata {
        if stratum.t.n.min(stratum.c.n) < min_units.max(2) {
            continue;
        }
        let (psi, [of_t, of_c]) = means::contrast_of(&Moments::of(&stratum.t), &Moments::of(&stratum.c), contrast);
        let (n_t, n_c) = (stratum.t.n as f64, stratum.c.n as f64);
        let (of_t, of_c) = (of_t / n_t, of_c / n_c);
        let variance = of_t + of_c;
        let (share_t, share_c) = (of_t / variance, of_c / variance);
        let per_dof = share_t * share_t / (n_t - 1.0) + share_c * share_c / (n_c - 1.0);
        let weight = 1.0 / variance;
        if variance > 0.0 && psi.is_finite() && weight.is_finite() && (psi * weight).is_finite() {
            weighted += weight * psi;
            precision += weight;
            spread += weight * weight * per_dof;
        }
    }
    let found = Welch { psi: weighted / precision, error: precision.sqrt().recip(), dof: precision * precision / spread };
    (precision > 0.0 && found.psi.is_finite() && found.error > 0.0 && found.error.is_finite() && found.dof > 0.0).then_some(found)
}

/// p-value of the null that the contrast is at most 0; 1 when nothing can be said.
pub fn mean_p(strata: &[means::Stratum], contrast: Contrast, min_units: u64) -> f64 {
    welch(strata, contrast, min_units).map_or(1.0, |w| w.p())
}

/// Interval of `mean_T / mean_C - 1`, each end at level `alpha`; `None` where it has no end (a control mean that may be 0, or negative).
pub fn mean_relative_interval(strata: &[means::Stratum], alpha: f64, min_units: u64) -> [Option<f64>; 2] {
    mean_ends(strata, alpha, min_units, 1e6, |change| Contrast { sign: 1.0, ratio: 1.0 + change, margin: 0.0 })
}

/// Interval of `mean_T - mean_C`, each end at level `alpha`, in units of y.
pub fn mean_difference_interval(strata: &[means::Stratum], alpha: f64, min_units: u64) -> [Option<f64>; 2] {
    let plain = Contrast { sign: 1.0, ratio: 1.0, margin: 0.0 };
    let Some(at) = welch(strata, plain, min_units) else { return [None, None] };
    let far = at.psi.abs() + 1e9 * at.error;
    mean_ends(strata, alpha, min_units, far, |margin| Contrast { margin, ..plain })
}

fn mean_ends(strata: &[means::Stratum], alpha: f64, min_units: u64, far: f64, contrast: impl Fn(f64) -> Contrast) -> [Option<f64>; 2] {
    ends(-far, far, alpha, |at, side| {
        let tested = if side == Side::Above { contrast(at) } else { contrast(at).reversed() };
        mean_p(strata, tested, min_units)
    })
}

/// p-value of H0 `q_T <= (1 + r) q_C + d`, by the values of treatment that exceed the control's empirical quantile with its margin.
///
/// Exact (for whole counts, a design effect of 1) when treatment is distributed like control moved by the margin: the exceedances of an order
/// statistic are then beta-binomial, whatever the distribution (Mathisen, Annals of Mathematical Statistics 14, 1943). Otherwise
/// asymptotic, and dependent on densities near the quantile that are alike once the margin is applied. 1 without data in both arms.
pub fn quantile_p(test: &Relative, arms: Arms<'_>) -> f64 {
    let (n_c, n_t) = (arms.control.total(), arms.treatment.total());
    let ppm = ((1.0 - test.level.q0()) * 1e6).round() as u32;
    let (Some(quantile), 1..) = (arms.control.quantile(ppm), n_t) else { return 1.0 };
    // Rank of the control value that is the empirical quantile: at least 1.
    let rank = ((u128::from(n_c) * u128::from(ppm)).div_ceil(1_000_000) as u64).max(1);
    let above = test.exceeding(arms.treatment, quantile);
    if above == 0 {
        return 1.0;
    }
    let (deff_c, deff_t) = (arms.deff_c.max(1.0), arms.deff_t.max(1.0));
    let share_c = Beta::new((n_c - rank) as f64 / deff_c + 1.0, (rank as f64 / deff_c).max(1.0));
    let share_t = Beta::new((above as f64 / deff_t).max(1.0), (n_t - above) as f64 / deff_t + 1.0);
    share_c.exceeds(&share_t, 1.0, 0.0)
}

/// Interval of `q_T / q_C - 1`, each end at level `alpha`: [`quantile_p`] inverted, with the arms exchanged for the upper end.
pub fn quantile_relative_interval(arms: Arms<'_>, level: &Exceedance, alpha: f64, bins: Resolution) -> [Option<f64>; 2] {
    let proved = |arms, r_ppm| quantile_p(&Relative { level: level.clone(), r_ppm, d: 0, bins }, arms) <= alpha;
    relative_bounds(|r_ppm| proved(arms, r_ppm), |r_ppm| proved(arms.swapped(), r_ppm))
}

/// Interval of `q_T - q_C` in the unit of the values, each end at level `alpha`.
pub fn quantile_difference_interval(arms: Arms<'_>, level: &Exceedance, alpha: f64, bins: Resolution) -> [Option<f64>; 2] {
    let proved = |arms, d| quantile_p(&Relative { level: level.clone(), r_ppm: 0, d, bins }, arms) <= alpha;
    difference_bounds(arms, |d| proved(arms, d), |d| proved(arms.swapped(), d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::quantiles::Tail;
    use crate::engine::stats::testing::log_factorial;
    use proptest::prelude::*;

    fn stratum(w: f64, n_t: f64, x_t: f64, n_c: f64, x_c: f64) -> Stratum {
        Stratum { w, m: 0.0, n_t, x_t, n_c, x_c }
    }

    /// Binomial probabilities, cut off where they no longer matter.
    fn binomial(n: u64, p: f64) -> Vec<(f64, f64)> {
        let term = |x: u64| log_factorial(n) - log_factorial(x) - log_factorial(n - x) + x as f64 * p.ln() + (n - x) as f64 * (-p).ln_1p();
        (0..=n).map(|x| (x as f64, term(x).exp())).filter(|(_, chance)| *chance > 1e-9).collect()
    }

    /// Chance that the test rejects at `alpha`, by enumeration.
    fn size(n_t: u64, n_c: u64, p_c: f64, null: Null, side: Side, alpha: f64) -> f64 {
        let (of_t, of_c) = (binomial(n_t, null.ratio * p_c + null.margin), binomial(n_c, p_c));
        let rejects = |x_t, x_c| rate_p(&[stratum(0.5, n_t as f64, x_t, n_c as f64, x_c)], null, side) <= alpha;
        of_t.iter().map(|(x_t, a)| a * of_c.iter().filter(|(x_c, _)| rejects(*x_t, *x_c)).map(|(_, b)| b).sum::<f64>()).sum()
    }

    #[test]
    fn the_score_test_keeps_its_size() {
        let mut worst = (0.0, String::new());
        for (n_t, n_c, p_c) in [(200, 4_000, 0.01), (200, 200, 0.03), (400, 400, 0.3), (1_000, 100, 0.02), (50, 950, 0.2), (300, 300, 0.95)]
        {
            for null in [Null::relative(0.0), Null::relative(0.05), Null::absolute(0.005), Null { ratio: 1.0, margin: -0.005 }] {
                for side in [Side::Above, Side::Below] {
                    for alpha in [0.05, 0.01, 0.001] {
                        let found = size(n_t, n_c, p_c, null, side, alpha) / alpha;
                        if found > worst.0 {
                            worst = (found, format!("{found:.3} {n_t} {n_c} {p_c} {null:?} {side:?} {alpha}"));
                        }
                    }
                }
            }
        }
        assert!(worst.0 < 1.2, "{}", worst.1);
    }

    #[test]
    fn rates_with_known_p_values() {
        // Large samples: the pooled two-proportion z test.
        let data = [stratum(0.5, 1e6, 10_300.0, 1e6, 10_000.0)];
        let pooled: f64 = 0.010_15;
        let z = 0.000_3 / (pooled * (1.0 - pooled) * 2e-6).sqrt();
        assert!((rate_p(&data, Null::relative(0.0), Side::Above) / normal_tail(z) - 1.0).abs() < 0.01);
        assert!(rate_p(&data, Null::relative(0.1), Side::Below) < 1e-5);
        let [low, high] = rate_relative_interval(&data, 0.05).map(Option::unwrap);
        assert!(0.0 < low && low < 0.03 && 0.03 < high && high < 0.06, "{low} {high}");
        let [low, high] = rate_difference_interval(&data, 0.05).map(Option::unwrap);
        assert!(0.0 < low && low < 0.000_3 && 0.000_3 < high && high < 0.000_6, "{low} {high}");
        assert_eq!(rate_p(&[stratum(0.5, 0.0, 0.0, 9.0, 1.0)], Null::relative(0.0), Side::Above), 1.0);
        assert_eq!(rate_relative_interval(&[], 0.05), [None, None]);
    }

    #[test]
    fn strata_are_compared_within_themselves() {
        // Equal arms in both periods; pooled, treatment would show 1.5% against 1.05%.
        let split = [stratum(0.05, 5_000.0, 50.0, 95_000.0, 950.0), stratum(0.5, 5_000.0, 100.0, 5_000.0, 100.0)];
        assert!(rate_p(&split, Null::relative(0.0), Side::Above) > 0.4);
        assert!(rate_p(&split.map(|s| Stratum { w: 0.5, ..s }), Null::relative(0.0), Side::Above) < 1e-4);
    }

    fn arm(n: u64, mean: f64, sd: f64) -> means::Arm {
        let (k, n_f) = (n as f64 * mean, n as f64);
        means::Arm { n, shift: 0.0, sy: k, syy: sd * sd * (n_f - 1.0) + k * mean, covariate: None }
    }

    #[test]
    fn welch_with_known_values() {
        // Error sqrt(4/25 + 1/16) = 0.4717; degrees (0.16 + 0.0625)^2 / (0.16^2 / 24 + 0.0625^2 / 15) = 37.3.
        let strata = [means::Stratum { t: arm(25, 6.0, 2.0), c: arm(16, 5.0, 1.0) }];
        let found = welch(&strata, Contrast::higher_is_worse(0.0), 2).unwrap();
        assert!(
            (found.psi - 1.0).abs() < 1e-9 && (found.error - 0.2225f64.sqrt()).abs() < 1e-9 && (found.dof - 37.3).abs() < 0.05,
            "{found:?}"
        );
        assert!((found.p() - 0.0203).abs() < 2e-4, "{}", found.p());
        // t of 95% at 37.3 degrees is 1.6871.
        let [low, high] = mean_difference_interval(&strata, 0.05, 2).map(Option::unwrap);
        assert!((low - (1.0 - 1.687_1 * found.error)).abs() < 1e-3 && (high - (1.0 + 1.687_1 * found.error)).abs() < 1e-3, "{low} {high}");
        let [low, high] = mean_relative_interval(&strata, 0.05, 2).map(Option::unwrap);
        assert!(0.0 < low && low < 0.2 && 0.2 < high && high < 0.45, "{low} {high}");
        assert_eq!((mean_p(&strata, Contrast::higher_is_worse(0.0), 100), mean_relative_interval(&[], 0.05, 2)), (1.0, [None, None]));
    }

    fn spread(from: u64, to: u64) -> Tail {
        Tail::new((from..to).map(|v| (v, 1)))
    }

    fn median(r_ppm: i64) -> Relative {
        Relative { level: Exceedance::of_quantile(500_000), r_ppm, d: 0, bins: Resolution::digits(3) }
    }

    #[test]
    fn quantiles_by_the_urn() {
        // All four of treatment above the second of three control values: 10 of the 35 orders have the least two control values first.
        let (control, treatment) = (spread(10, 13), spread(20, 24));
        let arms = Arms { control: &control, treatment: &treatment, deff_c: 1.0, deff_t: 1.0 };
        let orders_with_at_least_two_controls_first = 15.0 / 105.0 * 3.0;
        let p = quantile_p(&median(0), arms);
        // P(BetaBinomial(4; 2, 2) >= 4) = B(6, 2) / B(2, 2) = (1/42) / (1/6) = 1/7.
        assert!((p - 1.0 / 7.0).abs() < 1e-8 && orders_with_at_least_two_controls_first > p, "{p}");
        assert_eq!(quantile_p(&median(0), arms.swapped()), 1.0);
        assert_eq!(quantile_p(&median(0), Arms { control: &Tail::default(), ..arms }), 1.0);
    }

    #[test]
    fn quantile_intervals_enclose_the_change() {
        let (control, treatment) = (spread(1_000, 2_000), spread(1_500, 2_500));
        let arms = Arms { control: &control, treatment: &treatment, deff_c: 1.0, deff_t: 1.0 };
        let [low, high] = quantile_relative_interval(arms, &median(0).level, 0.05, Resolution::digits(3)).map(Option::unwrap);
        assert!(0.28 < low && low < 1.0 / 3.0 && 1.0 / 3.0 < high && high < 0.38, "{low} {high}");
        let [low, high] = quantile_difference_interval(arms, &median(0).level, 0.05, Resolution::digits(3)).map(Option::unwrap);
        assert!(430.0 < low && low < 500.0 && 500.0 < high && high < 570.0, "{low} {high}");
    }

    proptest! {
        #[test]
        fn never_nan(v: [f64; 5], ratio: f64, margin: f64, n: [u64; 2], y: [f64; 4], share in 0.0..1.0f64) {
            for s in [stratum(v[0], v[1], v[2], v[3], v[4]), stratum(0.5, v[1].abs() % 1e9, v[2].abs() % 1e9, 1e6, share * 1e6)] {
                for null in [Null { ratio, margin }, Null::relative(share), Null::absolute(-share)] {
                    for side in [Side::Above, Side::Below] {
                        let p = rate_p(&[s], null, side);
                        prop_assert!((0.0..=1.0).contains(&p), "{}", p);
                    }
                }
            }
            let arm = |n, sy, syy| means::Arm { n, shift: 0.0, sy, syy, covariate: None };
            let strata = [means::Stratum { t: arm(n[0], y[0], y[1]), c: arm(n[1], y[2], y[3]) }];
            let p = mean_p(&strata, Contrast { sign: 1.0, ratio, margin }, 0);
            prop_assert!((0.0..=1.0).contains(&p));
        }

        #[test]
        fn more_events_are_less_likely(n_t in 1u32..100_000, n_c in 1u32..100_000, a in 0.0..1.0f64, b in 0.0..1.0f64, r in -0.5..1.0f64) {
            let (n_t, n_c) = (f64::from(n_t), f64::from(n_c));
            let (x_t, x_c) = ((a * (n_t - 1.0)).floor(), (b * n_c).floor());
            let p = |x_t| rate_p(&[stratum(0.5, n_t, x_t, n_c, x_c)], Null::relative(r), Side::Above);
            prop_assert!(p(x_t + 1.0) <= p(x_t) + 1e-9, "{} {}", p(x_t), p(x_t + 1.0));
        }
    }
}
