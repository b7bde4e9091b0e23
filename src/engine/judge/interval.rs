//! Intervals of what a criterion bounds.

use super::relative::{Found, Sample};
use crate::engine::decision::Evidence;
use crate::engine::plan::{Guardrail, Margin};
use crate::engine::stats::exceedance::Exceedance;
use crate::engine::stats::means::{self, Contrast};
use crate::engine::stats::numeric::crossing;
use crate::engine::stats::quantiles::{self, Arms, Resolution};
use crate::engine::stats::{counts, fixed, posterior, rates, starts};

/// Anytime-valid interval of the value that a limit bounds, each end at level `alpha`, in its own unit; of rates only.
pub fn of_value(evidence: &Evidence, alpha: f64, guardrail: &Guardrail) -> Option<[f64; 2]> {
    let Evidence::Threshold { n, x, deff, .. } = *evidence else { return None };
    let [low, high] = [rates::threshold_lower_bound(n, x, alpha, deff), rates::threshold_upper_bound(n, x, alpha, deff)];
    // Where a limit is a floor, the test counts misses.
    let ends = if guardrail.higher_is_worse { [low, high] } else { [1.0 - high, 1.0 - low] };
    (n > 0).then_some(ends)
}

/// Interval of the change against the baseline: relative for a relative margin, else in the metric's own unit. Each end is
/// anytime-valid at level `alpha`; of a single look, it holds at that look; of a posterior, it holds 95%. `None` until both ends are known.
pub fn of_change(sample: &Sample, found: Found, alpha: f64, guardrail: &Guardrail) -> Option<[f64; 2]> {
    let relative = matches!(guardrail.max_increase, Some(Margin::Relative(_)));
    let ends = match sample {
        Sample::Share { strata, .. } => rate(found, strata, alpha, relative),
        Sample::Starts { starts, .. } if relative => starts::ratio_interval(starts, alpha).map(|ratio| Some(ratio - 1.0)),
        Sample::Starts { starts, .. } => starts::difference_interval(starts, alpha).map(Some),
        Sample::Count { strata, phi, .. } => {
            [counts::ratio_lower_bound(strata, alpha, *phi), counts::ratio_upper_bound(strata, alpha, *phi)].map(|ratio| Some(ratio - 1.0))
        }
        Sample::Quantile { pair, ppm, digits, by, .. } => {
            let arms = pair.arms(*by);
            // Where a high quantile is good, the bucket stands in the control's place.
            let arms = if guardrail.higher_is_worse { arms } else { arms.swapped() };
            quantile(found, arms, &Exceedance::of_quantile(*ppm), Resolution::digits(*digits), alpha, relative)
        }
        Sample::Mean { strata, .. } => mean(found, strata, alpha, relative),
    };
    let [Some(low), Some(high)] = ends else { return None };
    (low.is_finite() && high.is_finite()).then_some([low, high])
}

fn rate(found: Found, strata: &[rates::Stratum], alpha: f64, relative: bool) -> [Option<f64>; 2] {
    match (found, relative) {
        (Found::LogE(_), true) => {
            [rates::ratio_lower_bound(strata, alpha), rates::ratio_upper_bound(strata, alpha)].map(|ratio| Some(ratio - 1.0))
        }
        (Found::LogE(_), false) => [rates::difference_lower_bound(strata, alpha), rates::difference_upper_bound(strata, alpha)].map(Some),
        (Found::Probability(_), true) => posterior::rate_relative_interval(strata),
        (Found::Probability(_), false) => posterior::rate_difference_interval(strata),
        (Found::P(_), true) => fixed::rate_relative_interval(strata, alpha),
        (Found::P(_), false) => fixed::rate_difference_interval(strata, alpha),
    }
}

fn quantile(found: Found, arms: Arms<'_>, level: &Exceedance, bins: Resolution, alpha: f64, relative: bool) -> [Option<f64>; 2] {
    let ends = match (found, relative) {
        (Found::LogE(_), true) => quantiles::relative_interval(arms, level, alpha, bins),
        (Found::LogE(_), false) => quantiles::difference_interval(arms, level, alpha, bins),
        (Found::Probability(_), true) => posterior::quantile_relative_interval(arms, level, bins),
        (Found::Probability(_), false) => posterior::quantile_difference_interval(arms, level, bins),
        (Found::P(_), true) => fixed::quantile_relative_interval(arms, level, alpha, bins),
        (Found::P(_), false) => fixed::quantile_difference_interval(arms, level, alpha, bins),
    };
    ends.map(|end| end.map(|value| if relative { value } else { value / 1_000.0 }))
}

fn mean(found: Found, strata: &[means::Stratum], alpha: f64, relative: bool) -> [Option<f64>; 2] {
    const N: u64 = means::MIN_UNITS;
    match (found, relative) {
        (Found::LogE(_), true) => {
            let needed = -alpha.ln();
            let gap = |sign: f64, ratio: f64| means::log_e(strata, Contrast { sign, ratio, margin: 0.0 }, N) - needed;
            let lower = (gap(1.0, 0.0) >= 0.0).then(|| crossing(0.0, 1e6, |ratio| gap(1.0, ratio)));
            let upper = (gap(-1.0, 1e6) >= 0.0).then(|| crossing(0.0, 1e6, |ratio| -gap(-1.0, ratio)));
            [lower, upper].map(|ratio| ratio.map(|r| r - 1.0))
        }
        (Found::LogE(_), false) => {
            let plain = Contrast { sign: 1.0, ratio: 1.0, margin: 0.0 };
            [means::lower_bound(strata, plain, alpha, N), means::upper_bound(strata, plain, alpha, N)].map(Some)
        }
        (Found::Probability(_), true) => posterior::mean_relative_interval(strata, N),
        (Found::Probability(_), false) => posterior::mean_difference_interval(strata, N),
        (Found::P(_), true) => fixed::mean_relative_interval(strata, alpha, N),
        (Found::P(_), false) => fixed::mean_difference_interval(strata, alpha, N),
    }
}
