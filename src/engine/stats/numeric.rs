//! Numerical helpers and the grid of alternatives that the tests of rates and counts share.

use std::sync::LazyLock;

/// Points of the lift grid.
pub const LIFTS: usize = 17;

/// Alternatives that a mixture bets on, as log odds (or log rate) ratios over what is tolerated, with their prior weights.
///
/// Geometric from 0.005 (a lift of 0.5%) to 3.3 (26 times), each weighing 1.1 times its predecessor. A mixture of e-values is an
/// e-value; the grid costs a factor of about 1.4 against an oracle that knows the lift.
pub struct LiftGrid {
    pub lift: [f64; LIFTS],
    /// `exp(lift) - 1`.
    pub expm1: [f64; LIFTS],
    /// `exp(-lift) - 1`.
    pub expm1_neg: [f64; LIFTS],
    /// Logarithms of the weights, which add up to 1.
    pub log_weight: [f64; LIFTS],
}

/// The grid of [`LiftGrid`].
pub static LIFT_GRID: LazyLock<LiftGrid> = LazyLock::new(|| {
    let lift: [f64; LIFTS] = std::array::from_fn(|j| 0.005 * 1.5f64.powi(j as i32));
    let weight: [f64; LIFTS] = std::array::from_fn(|j| 1.1f64.powi(j as i32));
    let total: f64 = weight.iter().sum();
    LiftGrid { lift, expm1: lift.map(f64::exp_m1), expm1_neg: lift.map(|l| (-l).exp_m1()), log_weight: weight.map(|w| (w / total).ln()) }
});

/// `ln(sum(exp(terms)))` without overflow; `-inf` for no terms.
pub fn log_sum_exp(terms: &[f64]) -> f64 {
    let top = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top.is_infinite() {
        return top;
    }
    top + terms.iter().map(|t| (t - top).exp()).sum::<f64>().ln()
}

/// `ln(exp(a) + exp(b))`.
pub fn log_add_exp(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if high.is_infinite() { high } else { high + (low - high).exp().ln_1p() }
}

/// `ln(1/alpha)` for an `alpha` in (0, 1]; infinite for one that is not positive, so that nothing is ever proved with it.
pub fn log_inverse(alpha: f64) -> f64 {
    if alpha > 0.0 { (-alpha.ln()).max(0.0) } else { f64::INFINITY }
}

/// Centred log moment generating function of a Bernoulli(`q`) at a tilt, `ln(1 + q (e^t - 1)) - q t`, given `t` and `e^t - 1`.
///
/// Centring keeps the exponent of a test exact to about 1e-11 at 1e9 observations.
pub fn bernoulli_kappa(q: f64, tilt: f64, expm1_tilt: f64) -> f64 {
    (q * expm1_tilt).ln_1p() - q * tilt
}

/// The argument where the decreasing `f` crosses zero between `low` (where it is positive) and `high`, to the last bit.
pub fn crossing(mut low: f64, mut high: f64, f: impl Fn(f64) -> f64) -> f64 {
    loop {
        let middle = 0.5 * (low + high);
        if !(low < middle && middle < high) {
            return middle;
        }
        if f(middle) > 0.0 { low = middle } else { high = middle }
    }
}

/// A count or size as the tests use it: not negative, finite; `None` when it is not a number.
pub fn count(value: f64) -> Option<f64> {
    if value.is_nan() { None } else { Some(value.clamp(0.0, 1e300)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_exponentials_neither_overflow_nor_vanish() {
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f64::NEG_INFINITY, f64::NEG_INFINITY]), f64::NEG_INFINITY);
        assert!((log_sum_exp(&[1e4, 1e4]) - 1e4 - 2f64.ln()).abs() < 1e-11);
        assert!((log_add_exp(-1e4, -1e4) + 1e4 - 2f64.ln()).abs() < 1e-11);
        assert_eq!(log_add_exp(f64::NEG_INFINITY, 3.0), 3.0);
    }

    #[test]
    fn grid_weights_add_up_to_one() {
        assert!(log_sum_exp(&LIFT_GRID.log_weight).abs() < 1e-14);
    }

    #[test]
    fn crossing_finds_the_root() {
        assert!((crossing(0.0, 2.0, |x| 2.0 - x * x) - 2f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn alpha_outside_its_range_proves_nothing_or_needs_nothing() {
        assert_eq!(log_inverse(0.0), f64::INFINITY);
        assert_eq!(log_inverse(f64::NAN), f64::INFINITY);
        assert_eq!(log_inverse(2.0), 0.0);
    }
}
