//! Events that must not happen, or hardly ever.

use super::lift::{LIFT_GRID, LIFTS};
use super::numeric::{HALF_LN_TAU, count, crossing, log_inverse, log_sum_exp, poisson_divergence, stirling_remainder};

/// Evidence that events come faster than allowed. Exact for independent arrivals of any intensity up to the allowed one.
///
/// `x` events were seen while `mu0` were allowed: the allowed rate times the exposure so far. Mixture of Poisson likelihood
/// ratios over the lift grid (Howard et al., Annals of Statistics 49(2), 2021, with the Poisson psi function).
/// Events must be deduplicated. A `mu0` of 0 leaves finite evidence; for a count that must not be
/// reached see [`kth_event_threshold`].
pub fn poisson_log_e(x: u64, mu0: f64) -> f64 {
    let Some(mu0) = count(mu0) else { return 0.0 };
    let (x, grid) = (x as f64, &*LIFT_GRID);
    let terms: [f64; LIFTS] = std::array::from_fn(|j| grid.log_weight[j] + grid.lift[j] * x - mu0 * grid.expm1[j]);
    log_sum_exp(&terms)
}

/// Evidence that events come more slowly than `mu0`: the mirror image of [`poisson_log_e`].
pub fn poisson_drop_log_e(x: u64, mu0: f64) -> f64 {
    let Some(mu0) = count(mu0) else { return 0.0 };
    let (x, grid) = (x as f64, &*LIFT_GRID);
    let terms: [f64; LIFTS] = std::array::from_fn(|j| grid.log_weight[j] - grid.lift[j] * x - mu0 * grid.expm1_neg[j]);
    log_sum_exp(&terms)
}

/// Lower end of the confidence sequence for an event rate, per unit of `exposure` (positive). Exact; 0 when nothing can be said.
pub fn poisson_lower_bound(x: u64, exposure: f64, alpha: f64) -> f64 {
    let needed = log_inverse(alpha);
    let middle = (x as f64).ln();
    let gap = |log_mu: f64| poisson_log_e(x, log_mu.exp()) - needed;
    if x == 0 || exposure.is_nan() || exposure <= 0.0 || gap(middle - 80.0) < 0.0 {
        return 0.0;
    }
    crossing(middle - 80.0, middle + 10.0, gap).exp() / exposure
}

/// Upper end of the confidence sequence for an event rate, per unit of `exposure`; infinite when nothing can be said.
pub fn poisson_upper_bound(x: u64, exposure: f64, alpha: f64) -> f64 {
    let needed = log_inverse(alpha);
    if needed.is_infinite() || exposure.is_nan() || exposure <= 0.0 {
        return f64::INFINITY;
    }
    // Evidence against a mean grows with the mean, so the crossing is sought in its negative logarithm.
    let gap = |negative_log_mu: f64| poisson_drop_log_e(x, (-negative_log_mu).exp()) - needed;
    let middle = -(x.max(1) as f64).ln();
    crossing(middle - 40.0, middle + 80.0, gap).exp().recip() / exposure
}

/// Largest `mu` that the k-th event rule handles; beyond it nothing is claimed.
const MAX_MU: f64 = 1e9;

/// `ln P(N >= k)` for N ~ Poisson(`mu`): the false-alarm probability of acting on the k-th event when at most `mu` events are
/// tolerated in expectation over the **whole** monitored life. Valid at any time, since counts only grow. 0 (no claim) for a `mu` that is
/// not a number or beyond 1e9; -inf for `mu` = 0 and `k` > 0, where acting on the first event spends no alpha.
pub fn kth_event_log_p(k: u64, mu: f64) -> f64 {
    let Some(mu) = count(mu).filter(|mu| *mu <= MAX_MU) else { return 0.0 };
    if k == 0 {
        return 0.0;
    }
    if mu == 0.0 {
        return f64::NEG_INFINITY;
    }
    let k = k as f64;
    // ln P(N = k) by the saddle-point form, which has no cancellation between k ln mu, mu and ln k!.
    let distance = if k > 2.0 * mu { k * (k.ln() - mu.ln()) + mu - k } else { mu * poisson_divergence((k - mu) / mu) };
    let log_mass = -distance - HALF_LN_TAU - 0.5 * k.ln() - stirling_remainder(k);
    if k > mu {
        log_mass + tail_over_head(|i| mu / (k + i)).ln_1p()
    } else {
        (-(log_mass.exp() * tail_over_head(|i| (k - i + 1.0) / mu))).ln_1p()
    }
}

/// `r(1) + r(1) r(2) + …` for ratios below 1 that fall, until a term no longer counts.
fn tail_over_head(ratio: impl Fn(f64) -> f64) -> f64 {
    let (mut sum, mut term, mut i) = (0.0, 1.0, 1.0);
    while term > 1e-18 * sum {
        term *= ratio(i).max(0.0);
        sum += term;
        i += 1.0;
        if term == 0.0 {
            break;
        }
    }
    sum
}

/// The smallest k whose k-th event may trip at `alpha`: 1 when `mu` is 0. `None` when no count would do (`alpha` not positive, or `mu`
/// outside [0, 1e9]).
pub fn kth_event_threshold(mu: f64, alpha: f64) -> Option<u64> {
    if !(alpha > 0.0 && (0.0..=MAX_MU).contains(&mu)) {
        return None;
    }
    let enough = |k: u64| kth_event_log_p(k, mu) <= alpha.ln();
    let (mut low, mut high) = (0, 1);
    while !enough(high) {
        (low, high) = (high, high.checked_mul(2)?);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if enough(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sum of `exp(log_e)` weighted by the Poisson(mu) probabilities.
    fn poisson_expectation(mu: f64, log_e: impl Fn(u64) -> f64) -> f64 {
        let mut log_p = -mu;
        let mut sum = 0.0;
        for x in 0..2_000u64 {
            sum += (log_p + log_e(x)).exp();
            log_p += mu.ln() - ((x + 1) as f64).ln();
        }
        sum
    }

    #[test]
    fn expectation_at_the_allowed_rate_is_one() {
        for mu in [0.01, 0.5, 7.0] {
            let above = poisson_expectation(mu, |x| poisson_log_e(x, mu));
            let below = poisson_expectation(mu, |x| poisson_drop_log_e(x, mu));
            assert!((above - 1.0).abs() < 1e-11, "{mu}: {above}");
            assert!((below - 1.0).abs() < 1e-11, "{mu}: {below}");
        }
    }

    #[test]
    fn bounds_enclose_the_rate() {
        let (low, high) = (poisson_lower_bound(100, 50.0, 0.05), poisson_upper_bound(100, 50.0, 0.05));
        assert!(1.2 < low && low < 2.0 && 2.0 < high && high < 3.2, "{low} {high}");
        assert!((poisson_log_e(100, low * 50.0) - 20f64.ln()).abs() < 1e-9);
        assert!((poisson_drop_log_e(100, high * 50.0) - 20f64.ln()).abs() < 1e-9);
        let none = poisson_upper_bound(0, 1.0, 0.05);
        assert!(3.0 < none && none < 8.0, "{none}");
    }

    #[test]
    fn kth_event_probability_is_the_poisson_tail() {
        for mu in [0.01, 0.2, 3.0, 40.0] {
            let mut below = 0.0;
            let mut mass = f64::exp(-mu);
            for k in 0..80u64 {
                let tail: f64 = 1.0 - below;
                if tail > 1e-6 {
                    assert!((kth_event_log_p(k, mu).exp() - tail).abs() < 1e-12, "k={k} mu={mu}");
                }
                below += mass;
                mass *= mu / (k + 1) as f64;
            }
        }
    }

    #[test]
    fn kth_event_threshold_is_the_smallest_that_holds() {
        assert_eq!(kth_event_threshold(0.0, 0.05), Some(1));
        assert_eq!(kth_event_threshold(1.0, 0.0), None);
        assert_eq!(kth_event_threshold(1e12, 0.05), None);
        for (mu, alpha) in [(0.2, 0.01), (40.0, 0.01), (1e6, 1e-9), (1e9, 0.05)] {
            let k = kth_event_threshold(mu, alpha).expect("a threshold");
            assert!(kth_event_log_p(k, mu) <= alpha.ln() && kth_event_log_p(k - 1, mu) > alpha.ln(), "{mu} {alpha} {k}");
        }
    }

    proptest! {
        #[test]
        fn never_nan(x: u64, mu0: f64, exposure: f64, alpha: f64) {
            prop_assert!(!poisson_log_e(x, mu0).is_nan());
            prop_assert!(!poisson_drop_log_e(x, mu0).is_nan());
            prop_assert!(kth_event_log_p(x, mu0) <= 0.0);
            prop_assert!(poisson_lower_bound(x, exposure, alpha) >= 0.0);
            prop_assert!(poisson_upper_bound(x, exposure, alpha) >= 0.0);
        }
    }
}
