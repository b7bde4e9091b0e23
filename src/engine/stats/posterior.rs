//! Posterior probabilities of harm (`method: bayesian`), under priors so weak that a handful of observations outweighs them.
//!
//! They say how likely harm is, given the data and the prior. They say nothing about how often a clean experiment alarms when one acts
//! as soon as the probability is high: with enough looks, it will. Nothing here keeps an alpha budget.

use super::beta::Beta;
use super::exceedance::Exceedance;
use super::fixed::{self, by_allocation, weights};
use super::means::{self, Contrast};
use super::quantiles::{Arms, Relative, Resolution, Tail, difference_bounds, relative_bounds};
use super::rates::{Null, Stratum};

/// Mass outside each end of the intervals: they hold 95%.
const OUTSIDE: f64 = 0.025;

/// Probability that `p_T > ratio p_C + margin`.
///
/// Independent Jeffreys priors, Beta(1/2, 1/2), of both arms: half an event and half a miss each. Within one allocation exact to 1e-6
/// (see [`Beta::exceeds`]). Over several allocations the rates are standardised to one mix of them (each weighing its harmonic size,
/// and carrying that share of the prior), and the posterior of such a mixed rate is taken for the Beta of the same mean and
/// variance. Without data the priors alone speak: 1/2 for equal rates.
pub fn rate(strata: &[Stratum], null: Null) -> f64 {
    let (treatment, control) = arms(strata);
    treatment.exceeds(&control, null.ratio, null.margin)
}

/// 95% interval of `p_T / p_C - 1`; an end beyond a million times is `None`.
pub fn rate_relative_interval(strata: &[Stratum]) -> [Option<f64>; 2] {
    let (treatment, control) = arms(strata);
    let edge = 1e6f64.ln();
    ends(-edge, edge, |log_ratio| treatment.exceeds(&control, log_ratio.exp(), 0.0)).map(|end| end.map(f64::exp_m1))
}

/// 95% interval of `p_T - p_C`.
pub fn rate_difference_interval(strata: &[Stratum]) -> [Option<f64>; 2] {
    let (treatment, control) = arms(strata);
    ends(-1.0, 1.0, |margin| treatment.exceeds(&control, 1.0, margin))
}

/// Posteriors of both arms' rates, treatment first.
fn arms(strata: &[Stratum]) -> (Beta, Beta) {
    let strata = by_allocation(strata);
    let weights = weights(&strata);
    let mixed = |counts: fn(&Stratum) -> (f64, f64)| match &strata[..] {
        [] => Beta::new(0.5, 0.5),
        [one] => Beta::posterior(counts(one).0, counts(one).1, 0.5),
        _ => {
            let parts = strata.iter().zip(&weights).map(|(s, weight)| (Beta::posterior(counts(s).0, counts(s).1, 0.5 * weight), weight));
            let (mean, variance) = parts.fold((0.0, 0.0), |(m, v), (part, w)| (m + w * part.mean(), v + w * w * part.variance()));
            let size = mean * (1.0 - mean) / variance - 1.0;
            Beta::new(mean * size, (1.0 - mean) * size)
        }
    };
    (mixed(|s| (s.x_t, s.n_t)), mixed(|s| (s.x_c, s.n_c)))
}

/// Where a falling probability leaves 97.5% and reaches 2.5%.
fn ends(low: f64, high: f64, above: impl Fn(f64) -> f64) -> [Option<f64>; 2] {
    let end = |level: f64| (above(low) > level && above(high) < level).then(|| settle(low, high, |at| above(at) - level));
    [end(1.0 - OUTSIDE), end(OUTSIDE)]
}

/// The argument, to 1e-9, where the decreasing `f` crosses zero.
fn settle(mut low: f64, mut high: f64, f: impl Fn(f64) -> f64) -> f64 {
    while high - low > 1e-9 {
        let middle = 0.5 * (low + high);
        if f(middle) > 0.0 { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Probability that the contrast is positive; 1/2 when nothing can be said.
///
/// Vague prior (flat in the means and the logarithms of the standard deviations): each arm's mean is Student distributed, their contrast
/// nearly so, with Welch's degrees of freedom (the Behrens-Fisher posterior, approximated). Values should have finite variance; covariate
/// and strata as in [`fixed::welch`].
pub fn mean(strata: &[means::Stratum], contrast: Contrast, min_units: u64) -> f64 {
    fixed::welch(strata, contrast, min_units).map_or(0.5, |w| 1.0 - w.p())
}

/// 95% interval of `mean_T / mean_C - 1`; `None` where it has no end.
pub fn mean_relative_interval(strata: &[means::Stratum], min_units: u64) -> [Option<f64>; 2] {
    fixed::mean_relative_interval(strata, OUTSIDE, min_units)
}

/// 95% interval of `mean_T - mean_C`, in units of y.
pub fn mean_difference_interval(strata: &[means::Stratum], min_units: u64) -> [Option<f64>; 2] {
    fixed::mean_difference_interval(strata, OUTSIDE, min_units)
}

/// Probability that `q_T > (1 + r) q_C + d`.
///
/// The share of each arm above any one threshold has the posterior of [`rate`], Beta(1/2 + above, 1/2 + not above): that of a Dirichlet
/// process with a prior of one observation. Treatment's quantile exceeds the control's with its margin when, at the threshold
/// `q_C`, more than `1 - p` of treatment lies above the tolerated value; averaged over the posterior of `q_C`, which steps from edge to edge of
/// the control's bins. Approximate in that the prior is the same 1/2 at every threshold, whatever its place, and in the width of
/// bins. What lies beyond all control values counts as no harm. With a design effect, counts are divided by it.
pub fn quantile(test: &Relative, arms: Arms<'_>) -> f64 {
    ControlQuantile::of(arms.control, &test.level, arms.deff_c).harm(test, arms)
}

/// 95% interval of `q_T / q_C - 1`; an end that is not settled is `None`.
pub fn quantile_relative_interval(arms: Arms<'_>, level: &Exceedance, bins: Resolution) -> [Option<f64>; 2] {
    let test = |r_ppm| Relative { level: level.clone(), r_ppm, d: 0, bins };
    let (forward, backward) = both_ways(arms, level);
    relative_bounds(|r_ppm| forward.proves(&test(r_ppm), arms), |r_ppm| backward.proves(&test(r_ppm), arms.swapped()))
}

/// 95% interval of `q_T - q_C` in the unit of the values; an end that is not settled is `None`.
pub fn quantile_difference_interval(arms: Arms<'_>, level: &Exceedance, bins: Resolution) -> [Option<f64>; 2] {
    let test = |d| Relative { level: level.clone(), r_ppm: 0, d, bins };
    let (forward, backward) = both_ways(arms, level);
    difference_bounds(arms, |d| forward.proves(&test(d), arms), |d| backward.proves(&test(d), arms.swapped()))
}

fn both_ways(arms: Arms<'_>, level: &Exceedance) -> (ControlQuantile, ControlQuantile) {
    (ControlQuantile::of(arms.control, level, arms.deff_c), ControlQuantile::of(arms.treatment, level, arms.deff_t))
}

/// Posterior of the control's quantile: edges of bins, and the probability that it is there.
struct ControlQuantile(Vec<(u64, f64)>);

/// Probability at both ends that is not worth its sums.
const NEGLIGIBLE: f64 = 1e-8;

impl ControlQuantile {
    fn of(control: &Tail, level: &Exceedance, deff: f64) -> ControlQuantile {
        let steps: Vec<(u64, u64)> = control.steps().collect();
        let at_most = |above: u64| 1.0 - above_share(above, control.total(), level, deff);
        let first = steps.partition_point(|(_, above)| at_most(*above) < NEGLIGIBLE);
        let (mut out, mut reached) = (Vec::new(), 0.0);
        for (edge, above) in steps.into_iter().skip(first) {
            let chance = at_most(above);
            out.push((edge, chance - reached));
            reached = chance;
            if chance > 1.0 - NEGLIGIBLE {
                break;
            }
        }
        ControlQuantile(out)
    }

    fn harm(&self, test: &Relative, arms: Arms<'_>) -> f64 {
        let n = arms.treatment.total();
        let (mut last, mut sum) = (None, 0.0);
        for (edge, chance) in &self.0 {
            let above = test.exceeding(arms.treatment, *edge);
            // Neighbouring edges often have the same answer.
            let exceeds = match last {
                Some((same, exceeds)) if same == above => exceeds,
                _ => above_share(above, n, &test.level, arms.deff_t),
            };
            last = Some((above, exceeds));
            sum += chance * exceeds;
        }
        sum.clamp(0.0, 1.0)
    }

    fn proves(&self, test: &Relative, arms: Arms<'_>) -> bool {
        self.harm(test, arms) >= 1.0 - OUTSIDE
    }
}

/// Probability that more than the level's share lies above a threshold that `above` of `n` observations exceed.
fn above_share(above: u64, n: u64, level: &Exceedance, deff: f64) -> f64 {
    let deff = deff.max(1.0);
    1.0 - Beta::posterior(above as f64 / deff, n as f64 / deff, 0.5).cdf(level.q0())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::numeric::normal_tail;
    use proptest::prelude::*;

    fn stratum(w: f64, n_t: f64, x_t: f64, n_c: f64, x_c: f64) -> Stratum {
        Stratum { w, m: 0.0, n_t, x_t, n_c, x_c }
    }

    #[test]
    fn rates_without_data_are_a_coin_and_with_much_data_normal() {
        assert!((rate(&[], Null::relative(0.0)) - 0.5).abs() < 1e-9);
        let data = [stratum(0.5, 1e9, 10_001_000.0, 1e9, 10_000_000.0)];
        let z = 1e-6 / (2.0 * 0.01 * 0.99 / 1e9f64).sqrt();
        assert!((rate(&data, Null::relative(0.0)) - (1.0 - normal_tail(z))).abs() < 1e-5);
        let [low, high] = rate_difference_interval(&data).map(Option::unwrap);
        let half = 1.959_964 * (2.0 * 0.01 * 0.99 / 1e9f64).sqrt();
        assert!((low - (1e-6 - half)).abs() < 1e-8 && (high - (1e-6 + half)).abs() < 1e-8, "{low} {high}");
        let [low, high] = rate_relative_interval(&data).map(Option::unwrap);
        assert!((low - (1e-4 - 100.0 * half)).abs() < 1e-6 && (high - (1e-4 + 100.0 * half)).abs() < 1e-6, "{low} {high}");
    }

    #[test]
    fn the_prior_is_half_an_event() {
        // Beta(1.5, 10.5) against Beta(0.5, 11.5): 825,902 of 1e6 pairs drawn by another program.
        let found = rate(&[stratum(0.5, 11.0, 1.0, 11.0, 0.0)], Null::relative(0.0));
        assert!((found - 0.825_9).abs() < 0.001_5, "{found}");
    }

    #[test]
    fn allocation_changes_do_not_look_like_harm() {
        let split = [stratum(0.05, 5_000.0, 50.0, 95_000.0, 950.0), stratum(0.5, 5_000.0, 100.0, 5_000.0, 100.0)];
        let found = rate(&split, Null::relative(0.0));
        assert!((0.3..0.7).contains(&found), "{found}");
        assert!(rate(&split.map(|s| Stratum { w: 0.5, ..s }), Null::relative(0.0)) > 0.999);
        // Halves of one allocation are one stratum.
        let halves = [stratum(0.5, 400.0, 4.0, 500.0, 3.0), stratum(0.5, 600.0, 9.0, 500.0, 2.0)];
        assert_eq!(rate(&halves, Null::absolute(0.001)), rate(&[stratum(0.5, 1_000.0, 13.0, 1_000.0, 5.0)], Null::absolute(0.001)));
    }

    #[test]
    fn means_mirror_the_one_look_test() {
        let arm = |mean: f64| means::Arm { n: 400, shift: 0.0, sy: 400.0 * mean, syy: 399.0 + 400.0 * mean * mean, covariate: None };
        let strata = [means::Stratum { t: arm(5.1), c: arm(5.0) }];
        let contrast = Contrast::higher_is_worse(0.0);
        assert!((mean(&strata, contrast, 2) + fixed::mean_p(&strata, contrast, 2) - 1.0).abs() < 1e-12);
        assert!((mean(&strata, contrast, 2) - (1.0 - normal_tail(0.1 / (2.0f64 / 400.0).sqrt()))).abs() < 1e-3);
        assert_eq!(mean(&[], contrast, 2), 0.5);
        let [low, high] = mean_relative_interval(&strata, 2).map(Option::unwrap);
        assert!(low < 0.02 && 0.02 < high && high - low < 0.07, "{low} {high}");
        assert!(mean_difference_interval(&strata, 2).iter().all(Option::is_some));
    }

    fn median(r_ppm: i64) -> Relative {
        Relative { level: Exceedance::of_quantile(500_000), r_ppm, d: 0, bins: Resolution::digits(3) }
    }

    #[test]
    fn quantiles_agree_with_their_normal_limit() {
        // Uniform densities f: the median has the standard deviation 1 / (2 f sqrt(n)).
        let of = |from: u64, to: u64| Tail::new((from..to).map(|v| (v, 2)));
        let (control, treatment) = (of(500, 1_500), of(510, 1_510));
        let arms = Arms { control: &control, treatment: &treatment, deff_c: 1.0, deff_t: 1.0 };
        let sd = 1_000.0 / (2.0 * 2_000f64.sqrt()) * 2f64.sqrt();
        let found = quantile(&median(0), arms);
        assert!((found - (1.0 - normal_tail(10.0 / sd))).abs() < 0.02, "{found}");
        let harmless = quantile(&median(0), arms.swapped());
        assert!((found + harmless - 1.0).abs() < 0.05, "{found} {harmless}");
        let [low, high] = quantile_difference_interval(arms, &median(0).level, Resolution::digits(3)).map(Option::unwrap);
        assert!((low - (10.0 - 1.96 * sd)).abs() < 4.0 && (high - (10.0 + 1.96 * sd)).abs() < 4.0, "{low} {high}");
        let [low, high] = quantile_relative_interval(arms, &median(0).level, Resolution::digits(3)).map(Option::unwrap);
        assert!(low < 0.01 && 0.01 < high && high - low < 0.1, "{low} {high}");
        let clustered = quantile(&median(0), Arms { deff_c: 4.0, deff_t: 4.0, ..arms });
        assert!(clustered > 0.5 && clustered < found, "{clustered} {found}");
        assert_eq!(quantile(&median(0), Arms { control: &Tail::default(), ..arms }), 0.0);
    }

    proptest! {
        #[test]
        fn probabilities_whatever_the_numbers(v: [f64; 10], ratio: f64, margin: f64, bins in prop::collection::vec(any::<(u64, u64)>(), 0..6)) {
            let strata = [stratum(v[0], v[1], v[2], v[3], v[4]), stratum(v[5], v[6], v[7], v[8], v[9])];
            for null in [Null { ratio, margin }, Null::relative(ratio % 1.0)] {
                let chance = rate(&strata, null);
                prop_assert!((0.0..=1.0).contains(&chance), "{}", chance);
            }
            let tail = Tail::new(bins);
            let arms = Arms { control: &tail, treatment: &tail, deff_c: v[0], deff_t: v[1] };
            prop_assert!((0.0..=1.0).contains(&quantile(&median(margin as i64), arms)));
        }
    }
}
