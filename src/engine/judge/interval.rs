//! Intervals of what a criterion bounds, from the evidence of a test.

use crate::engine::decision::Evidence;
use crate::engine::plan::{Guardrail, Margin};
use crate::engine::stats::exceedance::Exceedance;
use crate::engine::stats::means::{self, Contrast};
use crate::engine::stats::numeric::crossing;
use crate::engine::stats::quantiles::{self, Arms, Resolution, Tail};
use crate::engine::stats::{counts, fixed, posterior, rates};

/// The interval of the bucket's value (for a limit), or of its change against the baseline: relative for a relative margin, otherwise in
/// the metric's own unit. Each end is anytime-valid at level `alpha`; a posterior's interval holds 95%. `None` until both ends are known.
pub fn interval(test: &str, evidence: &Evidence, alpha: f64, guardrail: &Guardrail) -> Option<[f64; 2]> {
    let relative = matches!(guardrail.max_increase, Some(Margin::Relative(_)));
    let ends = match evidence {
        Evidence::Threshold { n, x, deff, p0 } if *n > 0 && (*p0 - guardrail.limit.unwrap_or(*p0)).abs() < 1e-12 => {
            [rates::threshold_lower_bound(*n, *x, alpha, *deff), rates::threshold_upper_bound(*n, *x, alpha, *deff)].map(Some)
        }
        Evidence::Rates { strata, .. } => rate(test, strata, alpha, relative),
        Evidence::Quantiles { hist_c, hist_t, p_ppm, sig_digits, deff_c, deff_t, .. } => {
            let (control, treatment) = (Tail::new(hist_c.iter().copied()), Tail::new(hist_t.iter().copied()));
            let arms = Arms { control: &control, treatment: &treatment, deff_c: *deff_c, deff_t: *deff_t };
            // Where a high quantile is good, the bucket stands in the control's place.
            let arms = if guardrail.higher_is_worse { arms } else { arms.swapped() };
            quantile(test, arms, &Exceedance::of_quantile(*p_ppm), Resolution::digits(*sig_digits), alpha, relative)
        }
        Evidence::Means { strata, min_n, .. } => {
            let strata: Vec<means::Stratum> = strata.iter().map(|s| means::Stratum { t: s.t.into(), c: s.c.into() }).collect();
            mean(test, &strata, alpha, *min_n, relative)
        }
        Evidence::Counts { strata, phi, .. } => {
            [counts::ratio_lower_bound(strata, alpha, *phi), counts::ratio_upper_bound(strata, alpha, *phi)].map(|ratio| Some(ratio - 1.0))
        }
        _ => return None,
    };
    let [Some(low), Some(high)] = ends else { return None };
    (low.is_finite() && high.is_finite()).then_some([low, high])
}

fn rate(test: &str, strata: &[rates::Stratum], alpha: f64, relative: bool) -> [Option<f64>; 2] {
    match (test, relative) {
        ("posterior_rate", true) => posterior::rate_relative_interval(strata),
        ("posterior_rate", false) => posterior::rate_difference_interval(strata),
        ("fixed_rate", true) => fixed::rate_relative_interval(strata, alpha),
        ("fixed_rate", false) => fixed::rate_difference_interval(strata, alpha),
        (_, true) => [rates::ratio_lower_bound(strata, alpha), rates::ratio_upper_bound(strata, alpha)].map(|ratio| Some(ratio - 1.0)),
        (_, false) => [rates::difference_lower_bound(strata, alpha), rates::difference_upper_bound(strata, alpha)].map(Some),
    }
}

fn quantile(test: &str, arms: Arms<'_>, level: &Exceedance, bins: Resolution, alpha: f64, relative: bool) -> [Option<f64>; 2] {
    let ends = match (test, relative) {
        ("posterior_quantile", true) => posterior::quantile_relative_interval(arms, level, bins),
        ("posterior_quantile", false) => posterior::quantile_difference_interval(arms, level, bins),
        ("fixed_quantile", true) => fixed::quantile_relative_interval(arms, level, alpha, bins),
        ("fixed_quantile", false) => fixed::quantile_difference_interval(arms, level, alpha, bins),
        (_, true) => quantiles::relative_interval(arms, level, alpha, bins),
        (_, false) => quantiles::difference_interval(arms, level, alpha, bins),
    };
    ends.map(|end| end.map(|value| if relative { value } else { value / 1_000.0 }))
}

fn mean(test: &str, strata: &[means::Stratum], alpha: f64, min_n: u64, relative: bool) -> [Option<f64>; 2] {
    match (test, relative) {
        ("posterior_mean", true) => posterior::mean_relative_interval(strata, min_n),
        ("posterior_mean", false) => posterior::mean_difference_interval(strata, min_n),
        ("fixed_mean", true) => fixed::mean_relative_interval(strata, alpha, min_n),
        ("fixed_mean", false) => fixed::mean_difference_interval(strata, alpha, min_n),
        (_, true) => {
            let needed = -alpha.ln();
            let gap = |sign: f64, ratio: f64| means::log_e(strata, Contrast { sign, ratio, margin: 0.0 }, min_n) - needed;
            let lower = (gap(1.0, 0.0) >= 0.0).then(|| crossing(0.0, 1e6, |ratio| gap(1.0, ratio)));
            let upper = (gap(-1.0, 1e6) >= 0.0).then(|| crossing(0.0, 1e6, |ratio| -gap(-1.0, ratio)));
            [lower, upper].map(|ratio| ratio.map(|r| r - 1.0))
        }
        (_, false) => {
            let plain = Contrast { sign: 1.0, ratio: 1.0, margin: 0.0 };
            [means::lower_bound(strata, plain, alpha, min_n), means::upper_bound(strata, plain, alpha, min_n)].map(Some)
        }
    }
}
