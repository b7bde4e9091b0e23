//! Tests of event volumes per exposed unit, from the arm that each event falls in.
//!
//! Exact when events are independent given the exposure, whatever their intensity does over time. Units that cause bursts of events
//! break that: prefer the rate of units with an event ([`super::rates`]), and use a dispersion `phi` for true volumes only.

use super::lift::{LIFT_GRID, Wealth};
use super::numeric::{count, crossing, log_add_exp, log_inverse};
use serde::{Deserialize, Serialize};

/// Events of one period of constant allocation, booked by the first exposure of their unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stratum {
    /// Designed share of treatment in the traffic of the two arms; outside (0, 1) the stratum gives no evidence.
    pub w: f64,
    /// Events of treatment and of control.
    pub x_t: f64,
    pub x_c: f64,
}

impl Stratum {
    fn swapped(self) -> Stratum {
        Stratum { w: 1.0 - self.w, x_t: self.x_c, x_c: self.x_t }
    }
}

/// Evidence that treatment has more events per unit than tolerated, H0: `rate_T <= (1 + r) rate_C`.
///
/// Given an event, it is treatment's with probability at most `theta = w (1 + r) / (w (1 + r) + 1 - w)`; a mixture of tilts of that
/// label over the lift grid (Lindon and Malek, NeurIPS 2022, inhomogeneous Poisson case). `r` at least -1. `phi` is the index of
/// dispersion of events per unit, E(y^2)/E(y): exact at 1, a heuristic tempering above.
pub fn log_e(strata: &[Stratum], r: f64, phi: f64) -> f64 {
    let mut wealth = Wealth::default();
    for stratum in strata {
        bet(&mut wealth, stratum, 1.0 + r, phi);
    }
    wealth.log_e()
}

fn bet(wealth: &mut Wealth, stratum: &Stratum, ratio: f64, phi: f64) {
    let (Some(x_t), Some(x_c), Some(ratio)) = (count(stratum.x_t), count(stratum.x_c), count(ratio)) else { return };
    let w = stratum.w;
    if w > 0.0 && w < 1.0 && ratio <= 1e15 {
        wealth.tilt_up(x_t, x_t + x_c, w * ratio / (w * ratio + (1.0 - w)), phi.max(1.0));
    }
}

/// Evidence that treatment has fewer events per unit than tolerated, H0: `rate_T >= (1 - r) rate_C`: [`log_e`] with the arms
/// exchanged. From `r` = 1 on nothing can be too few.
pub fn drop_log_e(strata: &[Stratum], r: f64, phi: f64) -> f64 {
    if r >= 1.0 || r.is_nan() {
        return 0.0;
    }
    let mut wealth = Wealth::default();
    for stratum in strata {
        bet(&mut wealth, &stratum.swapped(), 1.0 / (1.0 - r), phi);
    }
    wealth.log_e()
}

/// Evidence that the volumes differ either way, H0: `1 - r_down <= rate_T / rate_C <= 1 + r_up`: the mean of both e-values.
pub fn parity_log_e(strata: &[Stratum], r_up: f64, r_down: f64, phi: f64) -> f64 {
    log_add_exp(log_e(strata, r_up, phi), drop_log_e(strata, r_down, phi)) - std::f64::consts::LN_2
}

/// Lower end of the confidence sequence for `rate_T / rate_C`; 0 when nothing can be said. Sought between 1e-9 and 1e9.
pub fn ratio_lower_bound(strata: &[Stratum], alpha: f64, phi: f64) -> f64 {
    let needed = log_inverse(alpha);
    let gap = |log_ratio: f64| log_e(strata, log_ratio.exp_m1(), phi) - needed;
    let edge = 1e9f64.ln();
    let events: f64 = strata.iter().map(|s| s.x_t.max(0.0)).sum();
    if events == 0.0 || gap(-edge) < 0.0 { 0.0 } else { crossing(-edge, edge, gap).exp() }
}

/// Upper end of the confidence sequence for `rate_T / rate_C`; infinite when nothing can be said.
pub fn ratio_upper_bound(strata: &[Stratum], alpha: f64, phi: f64) -> f64 {
    let swapped: Vec<Stratum> = strata.iter().map(|s| s.swapped()).collect();
    ratio_lower_bound(&swapped, alpha, phi).recip()
}

/// The label test without a designed allocation: bets tick by tick on the exposure that was realised.
///
/// Exact for Bernoulli outcomes of any probability under any allocation that does not look ahead: `exposed_*` are the units exposed
/// as of the tick before, whose outcomes are prompt. Start with `Wealth::default()`; the evidence is [`Wealth::log_e`].
pub fn step(wealth: &mut Wealth, events_t: f64, events_c: f64, exposed_t: f64, exposed_c: f64, r: f64) {
    let numbers = [events_t, events_c, exposed_t, exposed_c, 1.0 + r].map(count);
    let [Some(x_t), Some(x_c), Some(n_t), Some(n_c), Some(ratio)] = numbers else { return };
    if n_t + n_c <= 0.0 || ratio > 1e15 {
        return;
    }
    let scale = n_t.max(n_c);
    let (n_t, n_c) = (ratio * (n_t / scale), n_c / scale);
    let share = if n_t + n_c > 0.0 { n_t / (n_t + n_c) } else { 0.0 };
    let grid = &*LIFT_GRID;
    wealth.gain(|j| grid.lift[j] * x_t - (x_t + x_c) * (share * grid.expm1[j]).ln_1p());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::testing::binomial_expectation;
    use proptest::prelude::*;

    #[test]
    fn expectation_given_the_events_is_one() {
        for (w, r) in [(0.05, 0.0), (0.5, 0.1), (0.3, -0.5)] {
            let share = |ratio: f64| w * ratio / (w * ratio + 1.0 - w);
            let one = |x: u64| [Stratum { w, x_t: x as f64, x_c: (25 - x) as f64 }];
            let up = binomial_expectation(25, share(1.0 + r), |x| log_e(&one(x), r, 1.0));
            let down = binomial_expectation(25, share(1.0 - r), |x| drop_log_e(&one(x), r, 1.0));
            let parity = binomial_expectation(25, share(1.0), |x| parity_log_e(&one(x), 0.0, 0.0, 1.0));
            assert!([up, down, parity].iter().all(|mean| (mean - 1.0).abs() < 1e-12), "w={w} r={r}: {up} {down} {parity}");
        }
    }

    #[test]
    fn strata_add_up_and_steps_of_the_designed_shares_agree() {
        let parts = [Stratum { w: 0.2, x_t: 30.0, x_c: 90.0 }, Stratum { w: 0.2, x_t: 10.0, x_c: 70.0 }];
        let whole = [Stratum { w: 0.2, x_t: 40.0, x_c: 160.0 }];
        assert!((log_e(&parts, 0.1, 1.0) - log_e(&whole, 0.1, 1.0)).abs() < 1e-12);
        let mut wealth = Wealth::default();
        step(&mut wealth, 30.0, 90.0, 20.0, 80.0, 0.1);
        step(&mut wealth, 10.0, 70.0, 200.0, 800.0, 0.1);
        assert!((wealth.log_e() - log_e(&whole, 0.1, 1.0)).abs() < 1e-12);
    }

    #[test]
    fn bounds_enclose_the_ratio() {
        let data = [Stratum { w: 0.2, x_t: 300.0, x_c: 800.0 }];
        let (low, high) = (ratio_lower_bound(&data, 0.05, 1.0), ratio_upper_bound(&data, 0.05, 1.0));
        assert!(1.0 < low && low < 1.5 && 1.5 < high && high < 2.1, "{low} {high}");
        assert!(ratio_lower_bound(&data, 0.05, 5.0) < low);
        let none = [Stratum { w: 0.2, x_t: 0.0, x_c: 0.0 }];
        assert_eq!((ratio_lower_bound(&none, 0.05, 1.0), ratio_upper_bound(&none, 0.05, 1.0)), (0.0, f64::INFINITY));
    }

    proptest! {
        #[test]
        fn never_nan(w: f64, x: [f64; 2], r: f64, phi: f64, e: [f64; 2]) {
            for w in [w, w.abs() % 1.0] {
                let s = [Stratum { w, x_t: x[0], x_c: x[1] }];
                prop_assert!(!log_e(&s, r, phi).is_nan() && !drop_log_e(&s, r, phi).is_nan() && !parity_log_e(&s, r, r, phi).is_nan());
            }
            let mut wealth = Wealth::default();
            step(&mut wealth, x[0], x[1], e[0], e[1], r);
            prop_assert!(!wealth.log_e().is_nan());
        }
    }
}
