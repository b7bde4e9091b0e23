//! Events that must not happen, or hardly ever.

use super::numeric::{LIFT_GRID, LIFTS, count, crossing, log_inverse, log_sum_exp};

/// Evidence that events come faster than allowed. Exact for independent arrivals of any intensity up to the allowed one.
///
/// `x` events were seen while `mu0` were allowed: the allowed rate times the exposure so far. Mixture of Poisson likelihood
/// ratios over the lift grid (Howard et al., Annals of Statistics 49(2), 2021, section 3, with the Poisson psi function).
/// Events must be deduplicated. A `mu0` of 0 leaves finite evidence; a rule of "never" needs no test.
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
    if x == 0 || !(exposure > 0.0) || gap(middle - 80.0) < 0.0 {
        return 0.0;
    }
    crossing(middle - 80.0, middle + 10.0, gap).exp() / exposure
}

/// Upper end of the confidence sequence for an event rate, per unit of `exposure`; infinite when nothing can be said.
pub fn poisson_upper_bound(x: u64, exposure: f64, alpha: f64) -> f64 {
    let needed = log_inverse(alpha);
    if needed.is_infinite() || !(exposure > 0.0) {
        return f64::INFINITY;
    }
    // Evidence against a mean grows with the mean, so the crossing is sought in its negative logarithm.
    let gap = |negative_log_mu: f64| poisson_drop_log_e(x, (-negative_log_mu).exp()) - needed;
    let middle = -(x.max(1) as f64).ln();
    crossing(middle - 40.0, middle + 80.0, gap).exp().recip() / exposure
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

    proptest! {
        #[test]
        fn never_nan(x: u64, mu0: f64, exposure: f64, alpha: f64) {
            prop_assert!(!poisson_log_e(x, mu0).is_nan());
            prop_assert!(!poisson_drop_log_e(x, mu0).is_nan());
            prop_assert!(poisson_lower_bound(x, exposure, alpha) >= 0.0);
            prop_assert!(poisson_upper_bound(x, exposure, alpha) >= 0.0);
        }
    }
}
