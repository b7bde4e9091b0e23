//! Tests of rates: units (or requests) that have an event, among those exposed.

use super::numeric::{LIFT_GRID, LIFTS, bernoulli_kappa, count, crossing, log_inverse, log_sum_exp};

/// Evidence that a single rate exceeds a fixed threshold. Exact, whatever the allocation; no control is needed.
///
/// H0: each of the `n` observations is a hit with probability at most `p0` (in [0, 1]), given the past; `x` of them are hits.
/// Mixture of exponentially tilted Bernoulli likelihood ratios (Howard et al., Annals of Statistics 49(2), 2021, section 3).
/// An observation and its hit must mature together: a hit never counts ahead of its observation.
pub fn threshold_log_e(n: u64, x: u64, p0: f64) -> f64 {
    tilted(n as f64, x as f64, p0, Side::Above)
}

/// Evidence that a single rate lies below a fixed threshold: the mirror image of [`threshold_log_e`], H0: rate at least `p0`.
pub fn threshold_drop_log_e(n: u64, x: u64, p0: f64) -> f64 {
    tilted(n as f64, x as f64, p0, Side::Below)
}

/// [`threshold_log_e`] for clustered observations, whose counts are divided by a design effect `deff` (at least 1). Asymptotic.
pub fn threshold_log_e_deflated(n: u64, x: u64, p0: f64, deff: f64) -> f64 {
    let deff = deff.max(1.0);
    tilted(n as f64 / deff, x as f64 / deff, p0, Side::Above)
}

/// Lower end of the confidence sequence for a single rate: with probability `1 - alpha` it is below the true rate at all times.
/// 0 when nothing can be said. Exact; the root of [`threshold_log_e`].
pub fn threshold_lower_bound(n: u64, x: u64, alpha: f64) -> f64 {
    let (n, x) = (n as f64, x.min(n) as f64);
    let needed = log_inverse(alpha);
    let gap = |log_odds: f64| tilted(n, x, logistic(log_odds), Side::Above) - needed;
    if x == 0.0 || gap(-LOG_ODDS) < 0.0 { 0.0 } else { logistic(crossing(-LOG_ODDS, LOG_ODDS, gap)) }
}

/// Upper end of the confidence sequence for a single rate; 1 when nothing can be said. The root of [`threshold_drop_log_e`].
pub fn threshold_upper_bound(n: u64, x: u64, alpha: f64) -> f64 {
    let (n, x) = (n as f64, x.min(n) as f64);
    let needed = log_inverse(alpha);
    let gap = |log_odds: f64| tilted(n, x, logistic(-log_odds), Side::Below) - needed;
    if x == n || gap(-LOG_ODDS) < 0.0 { 1.0 } else { logistic(-crossing(-LOG_ODDS, LOG_ODDS, gap)) }
}

/// Bounds are sought between rates of 1e-26 and 1 - 1e-26.
const LOG_ODDS: f64 = 60.0;

fn logistic(log_odds: f64) -> f64 {
    1.0 / (1.0 + (-log_odds).exp())
}

#[derive(Clone, Copy)]
enum Side {
    Above,
    Below,
}

fn tilted(n: f64, x: f64, p0: f64, side: Side) -> f64 {
    let (Some(n), Some(x), false) = (count(n), count(x), p0.is_nan()) else { return 0.0 };
    let p0 = p0.clamp(0.0, 1.0);
    let excess = (-n).mul_add(p0, x.min(n));
    let grid = &*LIFT_GRID;
    let terms: [f64; LIFTS] = std::array::from_fn(|j| {
        let (tilt, expm1) = match side {
            Side::Above => (grid.lift[j], grid.expm1[j]),
            Side::Below => (-grid.lift[j], grid.expm1_neg[j]),
        };
        grid.log_weight[j] + tilt * excess - n * bernoulli_kappa(p0, tilt, expm1)
    });
    log_sum_exp(&terms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::testing::binomial_expectation;
    use proptest::prelude::*;

    #[test]
    fn threshold_expectation_at_the_boundary_is_one() {
        for p0 in [0.0005, 0.01, 0.3, 0.9] {
            for n in [1u64, 5, 30] {
                let above = binomial_expectation(n, p0, |x| threshold_log_e(n, x, p0));
                let below = binomial_expectation(n, p0, |x| threshold_drop_log_e(n, x, p0));
                assert!((above - 1.0).abs() < 1e-12, "n={n} p0={p0}: {above}");
                assert!((below - 1.0).abs() < 1e-12, "n={n} p0={p0}: {below}");
            }
        }
    }

    #[test]
    fn threshold_bounds_enclose_the_rate_and_say_nothing_without_data() {
        assert_eq!((threshold_lower_bound(0, 0, 0.05), threshold_upper_bound(0, 0, 0.05)), (0.0, 1.0));
        assert_eq!(threshold_lower_bound(100, 5, 0.0), 0.0);
        let (low, high) = (threshold_lower_bound(10_000, 100, 0.05), threshold_upper_bound(10_000, 100, 0.05));
        assert!(0.005 < low && low < 0.01 && 0.01 < high && high < 0.02, "{low} {high}");
        assert!((threshold_log_e(10_000, 100, low) - 20f64.ln()).abs() < 1e-9);
        assert!((threshold_drop_log_e(10_000, 100, high) - 20f64.ln()).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn threshold_never_nan(n: u64, x: u64, p0: f64, alpha: f64) {
            prop_assert!(!threshold_log_e(n, x, p0).is_nan());
            prop_assert!(!threshold_drop_log_e(n, x, p0).is_nan());
            let (low, high) = (threshold_lower_bound(n, x, alpha), threshold_upper_bound(n, x, alpha));
            prop_assert!((0.0..=1.0).contains(&low) && (0.0..=1.0).contains(&high));
        }

        #[test]
        fn a_further_hit_raises_the_evidence_and_a_miss_lowers_it(n in 1u64..1_000_000_000, share in 0.0..1.0f64, p0 in 0.0001..0.9f64) {
            let x = (n as f64 * share) as u64;
            prop_assert!(threshold_log_e(n + 1, x + 1, p0) >= threshold_log_e(n, x, p0));
            prop_assert!(threshold_log_e(n + 1, x, p0) <= threshold_log_e(n, x, p0));
        }
    }
}
