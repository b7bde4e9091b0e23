//! Tests of means, with or without a pre-exposure covariate (CUPED).
//!
//! **Asymptotic**: they need a normal limit of the arm means, so no stratum counts before both arms have [`MIN_UNITS`] units, and
//! heavy tails must be capped at a fixed value. The variance is that of the arm with the larger one: with skewed data a small arm's low
//! mean goes with a low variance, and a plug-in of both variances then alarms far too often.

use super::numeric::{crossing, ln_scaled_normal_cdf, log_inverse, log_sum_exp};
use serde::{Deserialize, Serialize};

/// Units per arm and stratum before a stratum gives evidence.
pub const MIN_UNITS: u64 = 100;

/// Half-normal prior scales of the effect, in standard deviations of a unit.
const SCALES: [f64; 4] = [0.002, 0.01, 0.05, 0.25];

/// Moments of one arm: `n` units with outcome y and covariate x.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    pub n: u64,
    /// Subtracted from every y before summing; a fixed value near the mean keeps variances precise. 0 for raw sums.
    pub shift: f64,
    /// Sums of y - shift and of its square.
    pub sy: f64,
    pub syy: f64,
    /// Sums of the covariate; both arms have it or neither.
    pub covariate: Option<Covariate>,
}

/// Sums with a covariate x that was fixed before the exposure: x, x^2, and x (y - shift).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Covariate {
    pub sx: f64,
    pub sxx: f64,
    pub sxy: f64,
}

/// One period of constant allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stratum {
    pub t: Arm,
    pub c: Arm,
}

/// The linear contrast under test, `sign (mean_T - ratio mean_C) - margin`; H0: it is at most 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrast {
    /// 1 when a higher mean is worse, -1 when a lower one is.
    pub sign: f64,
    /// 1 plus (or, for sign -1, minus) the tolerated relative change.
    pub ratio: f64,
    /// Tolerated absolute change, in units of y.
    pub margin: f64,
}

impl Contrast {
    /// `increase` is relative and not negative: 0.05 tolerates 5% above control.
    pub fn higher_is_worse(increase: f64) -> Contrast {
        Contrast { sign: 1.0, ratio: 1.0 + increase, margin: 0.0 }
    }

    /// `decrease` is relative and not negative: 0.05 tolerates 5% below control.
    pub fn lower_is_worse(decrease: f64) -> Contrast {
        Contrast { sign: -1.0, ratio: 1.0 - decrease, margin: 0.0 }
    }

    /// The same contrast with its sign turned: evidence for it is evidence that the margin holds.
    pub fn reversed(self) -> Contrast {
        Contrast { sign: -self.sign, ratio: self.ratio, margin: -self.margin }
    }
}

/// The contrast as estimated over all strata, each weighted by its precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// In units of y; positive is worse than tolerated.
    pub psi: f64,
    /// Precision of `psi`: the inverse of its variance.
    pub precision: f64,
    /// Harmonic sample size `n_T n_C / (n_T + n_C)`, summed over strata.
    pub n_h: f64,
}

impl Estimate {
    /// Standardised evidence.
    pub fn z(&self) -> f64 {
        self.psi * self.precision.sqrt()
    }

    /// See [`log_e`].
    pub fn log_e(&self) -> f64 {
        mixture(self.z(), self.n_h)
    }

    /// See [`lower_bound`].
    pub fn lower_bound(&self, alpha: f64) -> f64 {
        self.psi - critical_z(self.n_h, alpha) / self.precision.sqrt()
    }
}

/// Evidence that the contrast is positive. Asymptotic; 0 without a usable stratum.
///
/// Half-normal mixture over four scales (one-sided normal mixture: Howard et al., Annals of Statistics 49(2), 2021, proposition 6;
/// as an asymptotic confidence sequence: Waudby-Smith et al., Annals of Statistics 2024; started late as in Bibaut, Kallus and
/// Lindon, arXiv 2212.14411).
pub fn log_e(strata: &[Stratum], contrast: Contrast, min_units: u64) -> f64 {
    estimate(strata, contrast, min_units).map_or(0.0, |e| e.log_e())
}

/// Lower end of the confidence sequence for the contrast, in units of y: positive exactly when [`log_e`] reaches `ln(1/alpha)`. -inf
/// when nothing can be said.
pub fn lower_bound(strata: &[Stratum], contrast: Contrast, alpha: f64, min_units: u64) -> f64 {
    estimate(strata, contrast, min_units).map_or(f64::NEG_INFINITY, |e| e.lower_bound(alpha))
}

/// Upper end of the confidence sequence for the contrast: negative exactly when [`log_e`] of the reversed contrast reaches
/// `ln(1/alpha)`. Infinite when nothing can be said.
pub fn upper_bound(strata: &[Stratum], contrast: Contrast, alpha: f64, min_units: u64) -> f64 {
    -lower_bound(strata, contrast.reversed(), alpha, min_units)
}

/// Combines the strata in which both arms have `min_units` (at least 2) and a variance; `None` when there is none.
pub fn estimate(strata: &[Stratum], contrast: Contrast, min_units: u64) -> Option<Estimate> {
    let (mut weighted, mut precision, mut n_h) = (0.0, 0.0, 0.0);
    for stratum in strata {
        if stratum.t.n.min(stratum.c.n) < min_units.max(2) {
            continue;
        }
        let (psi, variances) = contrast_of(&Moments::of(&stratum.t), &Moments::of(&stratum.c), contrast);
        let variance = variances[0].max(variances[1]);
        let harmonic = harmonic_size(stratum.t.n, stratum.c.n);
        let weight = harmonic / variance;
        if variance > 0.0 && psi.is_finite() && weight.is_finite() && (psi * weight).is_finite() {
            weighted += psi * weight;
            precision += weight;
            n_h += harmonic;
        }
    }
    let found = Estimate { psi: weighted / precision, precision, n_h };
    (precision > 0.0 && precision.is_finite() && found.psi.is_finite()).then_some(found)
}

/// Confidence sequence for the relative lift `mean_T / mean_C - 1`, by the delta method: for display, not for decisions. Infinite
/// ends when an arm has fewer than two units or the control mean is 0.
pub fn relative_lift(t: &Arm, c: &Arm, alpha: f64) -> (f64, f64) {
    let unknown = (f64::NEG_INFINITY, f64::INFINITY);
    if t.n.min(c.n) < 2 {
        return unknown;
    }
    let (n_h, t, c) = (harmonic_size(t.n, c.n), Moments::of(t), Moments::of(c));
    let ratio = t.mean_y / c.mean_y;
    let half = critical_z(n_h, alpha / 2.0) * (t.var_y.max(ratio * ratio * c.var_y) / n_h).sqrt() / c.mean_y.abs();
    if half.is_finite() && ratio.is_finite() { (ratio - 1.0 - half, ratio - 1.0 + half) } else { unknown }
}

fn harmonic_size(n_t: u64, n_c: u64) -> f64 {
    let (n_t, n_c) = (n_t as f64, n_c as f64);
    n_t * (n_c / (n_t + n_c))
}

/// Means, variances and covariance of an arm of at least two units.
pub(super) struct Moments {
    n: f64,
    mean_y: f64,
    var_y: f64,
    mean_x: f64,
    var_x: f64,
    cov: f64,
}

impl Moments {
    pub(super) fn of(arm: &Arm) -> Moments {
        let n = arm.n as f64;
        let x = arm.covariate.unwrap_or_default();
        let (mean_y, mean_x) = (arm.sy / n, x.sx / n);
        let spread = |sum: f64, total: f64, mean: f64| (sum - total * mean) / (n - 1.0);
        Moments {
            n,
            mean_y: arm.shift + mean_y,
            var_y: spread(arm.syy, arm.sy, mean_y).max(0.0),
            mean_x,
            var_x: spread(x.sxx, x.sx, mean_x).max(0.0),
            cov: spread(x.sxy, x.sx, mean_y),
        }
    }
}

/// The contrast of one stratum and the per-unit variances that treatment and control bring to it, adjusted by the pooled slope on the
/// covariate.
pub(super) fn contrast_of(t: &Moments, c: &Moments, contrast: Contrast) -> (f64, [f64; 2]) {
    let (g_t, g_c) = (contrast.sign, -contrast.sign * contrast.ratio);
    let pooled = |of: fn(&Moments) -> f64| (t.n - 1.0) * of(t) + (c.n - 1.0) * of(c);
    let var_x = pooled(|m| m.var_x);
    let slope = if var_x > 0.0 { pooled(|m| m.cov) / var_x } else { 0.0 };
    // The covariate's coefficients add up to 0, so that its own mean drops out.
    let offset = (g_t + g_c) / (t.n + c.n);
    let (h_t, h_c) = ((g_t - offset * t.n) * slope, (g_c - offset * c.n) * slope);
    let psi = g_t * t.mean_y + g_c * c.mean_y - (h_t * t.mean_x + h_c * c.mean_x) - contrast.margin;
    let variance = |m: &Moments, g: f64, h: f64| g * g * m.var_y - 2.0 * g * h * m.cov + h * h * m.var_x;
    (psi, [variance(t, g_t, h_t), variance(c, g_c, h_c)])
}

/// Log of the half-normal mixture at the standardised evidence `z` and harmonic size `n_h`.
fn mixture(z: f64, n_h: f64) -> f64 {
    let terms = SCALES.map(|scale| {
        let gain = scale * scale * n_h;
        (2.0 / SCALES.len() as f64).ln() - 0.5 * gain.ln_1p() + ln_scaled_normal_cdf(z * (gain / (1.0 + gain)).sqrt())
    });
    log_sum_exp(&terms)
}

/// The `z` at which [`mixture`] reaches `ln(1/alpha)`.
fn critical_z(n_h: f64, alpha: f64) -> f64 {
    let needed = log_inverse(alpha);
    let gap = |z: f64| needed - mixture(z, n_h);
    if n_h.is_nan() || n_h <= 0.0 || needed.is_infinite() {
        return f64::INFINITY;
    }
    let mut high = 4.0;
    while gap(high) > 0.0 && high < 1e150 {
        high *= 2.0;
    }
    crossing(0.0, high, gap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arm(values: &[f64], shift: f64) -> Arm {
        let y = values.iter().map(|v| v - shift);
        Arm { n: values.len() as u64, shift, sy: y.clone().sum(), syy: y.map(|v| v * v).sum(), covariate: None }
    }

    fn values(n: usize, mean: f64) -> Vec<f64> {
        (0..n).map(|i| mean + ((i * 7919) % 101) as f64 / 50.0 - 1.0).collect()
    }

    #[test]
    fn mixture_integrates_to_one_over_the_null() {
        // z is standard normal at the boundary of the null.
        for n_h in [1.0, 100.0, 1e4] {
            let step = 1e-2;
            let mean: f64 = (-4_000..30_000)
                .map(|i| f64::from(i) * step)
                .map(|z| (mixture(z, n_h) - 0.5 * z * z - crate::engine::stats::numeric::HALF_LN_TAU).exp() * step)
                .sum();
            assert!((mean - 1.0).abs() < 1e-6, "{n_h}: {mean}");
        }
    }

    #[test]
    fn lower_bound_is_positive_exactly_when_the_test_rejects() {
        for lift in [0.0, 0.1, 0.2, 0.3, 1.0] {
            let strata = [Stratum { t: arm(&values(500, 5.0 + lift), 0.0), c: arm(&values(700, 5.0), 0.0) }];
            let contrast = Contrast::higher_is_worse(0.0);
            let rejects = log_e(&strata, contrast, MIN_UNITS) >= 20f64.ln();
            assert_eq!(lower_bound(&strata, contrast, 0.05, MIN_UNITS) > 0.0, rejects, "lift {lift}");
            let margin = Contrast { margin: 0.2, ..contrast };
            let holds = log_e(&strata, margin.reversed(), MIN_UNITS) >= 20f64.ln();
            assert_eq!(upper_bound(&strata, margin, 0.05, MIN_UNITS) < 0.0, holds, "lift {lift}");
        }
    }

    #[test]
    fn a_shift_changes_nothing_but_rounding() {
        let (t, c) = (values(500, 5.2), values(900, 5.0));
        let of = |shift: f64| log_e(&[Stratum { t: arm(&t, shift), c: arm(&c, shift) }], Contrast::higher_is_worse(0.01), MIN_UNITS);
        assert!((of(0.0) - of(5.0)).abs() < 1e-9);
    }

    #[test]
    fn a_covariate_that_explains_the_outcome_sharpens_the_test() {
        let of = |n: usize, lift: f64, with: bool| {
            let (mut a, mut x) = (Arm { n: n as u64, ..Arm::default() }, Covariate::default());
            for i in 0..n {
                let (cause, noise) = (((i * 7919) % 101) as f64, ((i * 31) % 17) as f64 / 4.0);
                let y = cause + noise + lift;
                (a.sy, a.syy) = (a.sy + y, a.syy + y * y);
                (x.sx, x.sxx, x.sxy) = (x.sx + cause, x.sxx + cause * cause, x.sxy + cause * y);
            }
            a.covariate = with.then_some(x);
            a
        };
        let evidence =
            |with| log_e(&[Stratum { t: of(1_010, 0.7, with), c: of(1_010, 0.0, with) }], Contrast::higher_is_worse(0.0), MIN_UNITS);
        assert!(evidence(true) > 10.0 && evidence(false) < 1.0, "{} {}", evidence(true), evidence(false));
    }

    #[test]
    fn short_or_constant_strata_say_nothing() {
        let short = Stratum { t: arm(&values(99, 9.0), 0.0), c: arm(&values(900, 5.0), 0.0) };
        let constant = Stratum { t: arm(&[5.0; 200], 0.0), c: arm(&[4.0; 200], 0.0) };
        assert_eq!(log_e(&[short, constant], Contrast::higher_is_worse(0.0), MIN_UNITS), 0.0);
        assert_eq!(lower_bound(&[], Contrast::lower_is_worse(0.0), 0.05, MIN_UNITS), f64::NEG_INFINITY);
    }

    #[test]
    fn relative_lift_encloses_the_ratio() {
        let (low, high) = relative_lift(&arm(&values(5_000, 5.5), 0.0), &arm(&values(5_000, 5.0), 0.0), 0.05);
        assert!(low < 0.1 && 0.1 < high && high - low < 0.05, "{low} {high}");
        assert_eq!(relative_lift(&arm(&values(500, 1.0), 0.0), &Arm { n: 9, ..Arm::default() }, 0.05), (f64::NEG_INFINITY, f64::INFINITY));
    }

    proptest! {
        #[test]
        fn never_nan(n: [u64; 2], t: [f64; 3], c: [f64; 3], x: [f64; 3], ratio: f64, margin: f64, alpha: f64) {
            let covariate = Some(Covariate { sx: x[0], sxx: x[1], sxy: x[2] });
            let t = Arm { n: n[0], shift: t[2], sy: t[0], syy: t[1], covariate };
            let c = Arm { n: n[1], shift: c[2], sy: c[0], syy: c[1], covariate };
            for sign in [1.0, -1.0] {
                let contrast = Contrast { sign, ratio, margin };
                let strata = [Stratum { t, c }];
                prop_assert!(!log_e(&strata, contrast, 0).is_nan());
                prop_assert!(!lower_bound(&strata, contrast, alpha, 0).is_nan());
            }
            let (low, high) = relative_lift(&t, &c, alpha);
            prop_assert!(!low.is_nan() && !high.is_nan());
        }

        #[test]
        fn mixture_grows_with_z(z in -50.0..50.0f64, more in 0.0..10.0f64, n_h in 1.0..1e9f64) {
            prop_assert!(mixture(z + more, n_h) >= mixture(z, n_h) - 1e-12);
        }
    }
}
