//! Numerical helpers.

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

/// The largest whole number in `low..=high` for which `holds` is true, when it is true up to some number and false beyond; `None` when
/// it is false at `low`.
pub fn last_holding(mut low: i64, mut high: i64, holds: impl Fn(i64) -> bool) -> Option<i64> {
    if low > high || !holds(low) {
        return None;
    }
    while low < high {
        // Rounded up, so that each step shrinks the range.
        let middle = low.saturating_add_unsigned(high.abs_diff(low).div_ceil(2));
        if holds(middle) { low = middle } else { high = middle - 1 }
    }
    Some(low)
}

/// Chance that a standard normal variable exceeds `z`.
pub fn normal_tail(z: f64) -> f64 {
    0.5 * libm::erfc(z * std::f64::consts::FRAC_1_SQRT_2)
}

/// The value that a standard normal variable exceeds with probability `1 - p`; `p` in (0, 1).
pub fn normal_quantile(p: f64) -> f64 {
    crossing(-40.0, 40.0, |z| p - normal_tail(-z))
}

/// `ln(1 + u) - u` for `u > -1`, without cancellation near 0.
pub fn ln_1p_minus(u: f64) -> f64 {
    if u.abs() > 0.3 {
        return u.ln_1p() - u;
    }
    // ln(1 + u) = 2 atanh(r) with r = u / (2 + u), and 2 r - u = -r u. Here r^2 < 0.032, so 13 terms reach the last bit.
    let r = u / (2.0 + u);
    let r2 = r * r;
    let series = (1..=13).rev().fold(0.0, |sum, k| r2 * (1.0 / f64::from(2 * k + 1) + sum));
    r * (2.0 * series - u)
}

/// `(1 + u) ln(1 + u) - u` for `u >= -1`: the relative entropy of a Poisson mean `1 + u` to the mean 1.
pub fn poisson_divergence(u: f64) -> f64 {
    if u <= -1.0 {
        1.0
    } else if u.abs() > 0.3 {
        (1.0 + u) * u.ln_1p() - u
    } else {
        u * u + (1.0 + u) * ln_1p_minus(u)
    }
}

/// What Stirling's formula leaves of the log gamma function, `lgamma(z) - (z - 1/2) ln z + z - ln(2 pi) / 2`, for `z > 0`.
pub fn stirling_remainder(z: f64) -> f64 {
    if z < 15.0 {
        return libm::lgamma(z) - ((z - 0.5) * z.ln() - z + HALF_LN_TAU);
    }
    // Bernoulli numbers over 2k (2k - 1), highest first.
    const COEFFICIENTS: [f64; 6] = [-691.0 / 360_360.0, 1.0 / 1_188.0, -1.0 / 1_680.0, 1.0 / 1_260.0, -1.0 / 360.0, 1.0 / 12.0];
    let y = 1.0 / (z * z);
    COEFFICIENTS.iter().fold(0.0, |sum, c| sum * y + c) / z
}

/// `ln(exp(y^2 / 2) Phi(y))` with the standard normal distribution function Phi: near 0 at any evidence against the tail.
pub fn ln_scaled_normal_cdf(y: f64) -> f64 {
    if y > -20.0 {
        return 0.5 * y * y + (0.5 * libm::erfc(-y * std::f64::consts::FRAC_1_SQRT_2)).ln();
    }
    // Asymptotic series of the Mills ratio: 1 - 1/y^2 + 3/y^4 - 15/y^6 ...
    let inverse = 1.0 / (y * y);
    let series = (1..=7).rev().fold(1.0, |sum, k| 1.0 - f64::from(2 * k - 1) * inverse * sum);
    -(-y).ln() - HALF_LN_TAU + series.ln()
}

/// `ln(2 pi) / 2`.
pub const HALF_LN_TAU: f64 = 0.918_938_533_204_672_8;

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
    fn crossing_finds_the_root() {
        assert!((crossing(0.0, 2.0, |x| 2.0 - x * x) - 2f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn last_holding_finds_the_edge() {
        for edge in -5..=5 {
            assert_eq!(last_holding(-5, 5, |x| x <= edge), Some(edge));
        }
        assert_eq!(last_holding(i64::MIN, i64::MAX, |x| x <= 7), Some(7));
        assert_eq!((last_holding(-5, 5, |_| false), last_holding(3, 2, |_| true)), (None, None));
    }

    #[test]
    fn special_functions_agree_with_known_values() {
        // ln(1 + u) - u at u = 1e-8 and 0.25, 30-digit arithmetic.
        assert!((ln_1p_minus(1e-8) + 4.999_999_966_666_667e-17).abs() < 1e-31);
        assert!((ln_1p_minus(0.25) + 0.026_856_448_685_790_24).abs() < 1e-16);
        assert!((ln_1p_minus(-0.3) - ((0.7f64).ln() + 0.3)).abs() < 1e-16);
        assert!((poisson_divergence(1e-6) - 4.999_998_333_334_167e-13).abs() < 1e-26);
        assert_eq!(poisson_divergence(-1.0), 1.0);
        // 10! = 3,628,800; the two branches meet at 15.
        let (z, factorial) = (11.0f64, 3_628_800f64);
        assert!((stirling_remainder(z) - (factorial.ln() - (z - 0.5) * z.ln() + z - HALF_LN_TAU)).abs() < 1e-14);
        assert!((stirling_remainder(15.0 - 1e-12) - stirling_remainder(15.0)).abs() < 1e-13);
        assert!((ln_scaled_normal_cdf(0.0) + 2f64.ln()).abs() < 1e-16);
        assert!((ln_scaled_normal_cdf(-20.0) - ln_scaled_normal_cdf(-20.0 + 1e-12)).abs() < 1e-12);
        // Phi(-5) = 2.866515718791939e-7.
        assert!((ln_scaled_normal_cdf(-5.0) - (12.5 + 2.866_515_718_791_939e-7f64.ln())).abs() < 1e-13);
    }

    #[test]
    fn alpha_outside_its_range_proves_nothing_or_needs_nothing() {
        assert_eq!(log_inverse(0.0), f64::INFINITY);
        assert_eq!(log_inverse(f64::NAN), f64::INFINITY);
        assert_eq!(log_inverse(2.0), 0.0);
    }
}
