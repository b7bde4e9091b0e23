//! The building block of the quantile tests: how often observations exceed a fixed threshold, against a fixed share.
//!
//! A Bernoulli likelihood ratio tilted by lambda, averaged over lambda = 2^(3 - k/2), k = 0..24 (8 down to 0.002). For every
//! exceedance probability of the one-sided null each ratio has mean at most 1, so the mixture is an exact e-process. The grid
//! costs a flat factor of 1.5 in observations against an oracle, from ten observations to ten million.
//!
//! Source: discrete mixtures of exponential supermartingales after Howard, Ramdas, McAuliffe and Sekhon, Annals of Statistics 49(2),
//! 2021, with the Bernoulli psi function.

use super::numeric::{bernoulli_kappa, count, log_sum_exp};
use std::sync::LazyLock;

const TILTS: usize = 25;

struct TiltGrid {
    tilt: [f64; TILTS],
    expm1: [f64; TILTS],
    expm1_neg: [f64; TILTS],
}

static GRID: LazyLock<TiltGrid> = LazyLock::new(|| {
    let tilt: [f64; TILTS] = std::array::from_fn(|k| (3.0 - 0.5 * k as f64).exp2());
    TiltGrid { tilt, expm1: tilt.map(f64::exp_m1), expm1_neg: tilt.map(|t| (-t).exp_m1()) }
});

/// The two one-sided mixtures for one null share, with their constants at hand: an evaluation takes 25 multiply-adds and
/// exponentials.
#[derive(Clone, Debug)]
pub struct Exceedance {
    q0: f64,
    kappa_over: [f64; TILTS],
    kappa_under: [f64; TILTS],
}

impl Exceedance {
    /// `q0`: the exceedance probability at the boundary of the null, in [0, 1].
    pub fn new(q0: f64) -> Exceedance {
        let q0 = if q0.is_nan() { 1.0 } else { q0.clamp(0.0, 1.0) };
        let g = &*GRID;
        Exceedance {
            q0,
            kappa_over: std::array::from_fn(|k| bernoulli_kappa(q0, g.tilt[k], g.expm1[k])),
            kappa_under: std::array::from_fn(|k| bernoulli_kappa(q0, -g.tilt[k], g.expm1_neg[k])),
        }
    }

    /// For a quantile level in parts per million (p95 is 950,000): the null share above the quantile is the rest.
    pub fn of_quantile(ppm: u32) -> Exceedance {
        Exceedance::new(f64::from(1_000_000 - ppm.min(1_000_000)) / 1e6)
    }

    pub fn q0(&self) -> f64 {
        self.q0
    }

    /// See [`log_e_over`].
    pub fn over(&self, s: f64, n: f64) -> f64 {
        self.mixture(s, n, 1.0, &self.kappa_over)
    }

    /// See [`log_e_under`].
    pub fn under(&self, s: f64, n: f64) -> f64 {
        self.mixture(s, n, -1.0, &self.kappa_under)
    }

    /// An upper bound of [`Exceedance::over`] without its exponentials, at least 0: no mixture is worth more than its best bet. It holds
    /// for counts that are divided by a design effect too.
    pub fn over_at_most(&self, s: f64, n: f64) -> f64 {
        self.best(s, n, 1.0, &self.kappa_over)
    }

    /// The same of [`Exceedance::under`].
    pub fn under_at_most(&self, s: f64, n: f64) -> f64 {
        self.best(s, n, -1.0, &self.kappa_under)
    }

    fn mixture(&self, s: f64, n: f64, sign: f64, kappa: &[f64; TILTS]) -> f64 {
        let Some(terms) = self.terms(s, n, sign, kappa) else { return 0.0 };
        log_sum_exp(&terms) - (TILTS as f64).ln()
    }

    fn best(&self, s: f64, n: f64, sign: f64, kappa: &[f64; TILTS]) -> f64 {
        // On the null's own side every bet has lost.
        if sign * (s.min(n) - n * self.q0) <= 0.0 {
            return 0.0;
        }
        self.terms(s, n, sign, kappa).map_or(0.0, |terms| terms.into_iter().fold(0.0, f64::max))
    }

    /// Log wealth of each bettor.
    fn terms(&self, s: f64, n: f64, sign: f64, kappa: &[f64; TILTS]) -> Option<[f64; TILTS]> {
        let (s, n) = (count(s)?, count(n)?);
        let excess = sign * (-n).mul_add(self.q0, s.min(n));
        let tilt = &GRID.tilt;
        Some(std::array::from_fn(|k| tilt[k] * excess - n * kappa[k]))
    }
}

/// Evidence that more than a share `q0` of observations exceed a threshold. Exact.
///
/// H0: each observation exceeds it with probability at most `q0`, given the past. `s` exceedances among `n` observations; both
/// may be fractional after division by a design effect (then asymptotic).
pub fn log_e_over(s: f64, n: f64, q0: f64) -> f64 {
    if q0.is_nan() { 0.0 } else { Exceedance::new(q0).over(s, n) }
}

/// Evidence that fewer than a share `q0` of observations exceed a threshold. Exact. The mirror image of [`log_e_over`].
pub fn log_e_under(s: f64, n: f64, q0: f64) -> f64 {
    if q0.is_nan() { 0.0 } else { Exceedance::new(q0).under(s, n) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::testing::binomial_expectation;
    use proptest::prelude::*;

    #[test]
    fn expectation_at_the_boundary_is_one() {
        for q0 in [0.01, 0.05, 0.5, 0.99] {
            for n in [1u64, 3, 10, 40] {
                let over = binomial_expectation(n, q0, |s| log_e_over(s as f64, n as f64, q0));
                let under = binomial_expectation(n, q0, |s| log_e_under(s as f64, n as f64, q0));
                assert!((over - 1.0).abs() < 1e-11, "over n={n} q0={q0}: {over}");
                assert!((under - 1.0).abs() < 1e-11, "under n={n} q0={q0}: {under}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_cheap_bounds_are_bounds(s in 0.0..1e6f64, n in 0.0..1e6f64, q0 in 0.001..0.999f64, deff in 1.0..50.0f64) {
            let test = Exceedance::new(q0);
            for (exact, bound) in [
                (test.over(s / deff, n / deff), test.over_at_most(s, n)),
                (test.under(s / deff, n / deff), test.under_at_most(s, n)),
            ] {
                prop_assert!(bound >= exact - 1e-9 * (1.0 + exact.abs()), "{bound} {exact}");
            }
        }
    }

    #[test]
    fn no_data_is_no_evidence() {
        assert!(log_e_over(0.0, 0.0, 0.05).abs() < 1e-14);
        assert_eq!(log_e_over(f64::NAN, 10.0, 0.05), 0.0);
        assert_eq!(log_e_over(1.0, 10.0, f64::NAN), 0.0);
    }

    #[test]
    fn more_exceedances_than_observations_count_as_all() {
        assert_eq!(log_e_over(50.0, 10.0, 0.05), log_e_over(10.0, 10.0, 0.05));
    }

    #[test]
    fn stays_precise_at_a_billion_observations() {
        // At the boundary itself every exponent is -n kappa, and the mildest tilt leaves -n q0 (1 - q0) lambda^2 / 2.
        let (n, q0) = (1e9, 0.05);
        let mildest: f64 = 2f64.powi(-9);
        let want = -n
            * (q0 * (1.0 - q0) * mildest.powi(2) / 2.0
                + q0 * (1.0 - q0) * (1.0 - 2.0 * q0) * mildest.powi(3) / 6.0
                + q0 * (1.0 - q0) * (1.0 - 6.0 * q0 * (1.0 - q0)) * mildest.powi(4) / 24.0)
            - 25f64.ln();
        assert!((log_e_over(n * q0, n, q0) - want).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn finite_for_any_numbers(s in -1e12..1e12f64, n in -1e12..1e12f64, q0 in -0.5..1.5f64) {
            prop_assert!(log_e_over(s, n, q0).is_finite());
            prop_assert!(log_e_under(s, n, q0).is_finite());
        }

        #[test]
        fn never_nan(s: f64, n: f64, q0: f64) {
            prop_assert!(!log_e_over(s, n, q0).is_nan());
            prop_assert!(!log_e_under(s, n, q0).is_nan());
        }

        #[test]
        fn more_exceedances_are_more_evidence_over_and_less_under(n in 1u32..1_000_000, a: f64, b: f64, q0 in 0.001..0.999f64) {
            let n = f64::from(n);
            let (a, b) = ((a.abs() % 1.0) * n, (b.abs() % 1.0) * n);
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(log_e_over(low, n, q0) <= log_e_over(high, n, q0));
            prop_assert!(log_e_under(low, n, q0) >= log_e_under(high, n, q0));
        }
    }
}
