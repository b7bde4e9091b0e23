//! The tests of `analysis.method` bayesian and fixed_horizon.
//!
//! `relative` and `difference` are intervals of the change, an end that does not exist being null. A fixed-horizon interval has each end at
//! `alpha`; a posterior's holds 95%.

use super::super::fields::*;
use super::Out;
use crate::engine::stats::{exceedance::Exceedance, fixed, means, posterior, quantiles, rates};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosteriorRate {
    strata: List<RateStratum>,
    rho: Count,
    d: Real,
    /// Probability that `p_T > rho p_C + d` when 1, of the opposite when -1.
    sign: Sign,
}

pub fn posterior_rate(case: PosteriorRate) -> Out {
    let strata: Vec<rates::Stratum> = case.strata.0.into_iter().map(|s| s.0).collect();
    let above = posterior::rate(&strata, rates::Null { ratio: case.rho.0, margin: case.d.0 });
    Ok(json!({
        "probability": if case.sign.0 > 0.0 { above } else { 1.0 - above },
        "relative": posterior::rate_relative_interval(&strata),
        "difference": posterior::rate_difference_interval(&strata),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedRate {
    strata: List<RateStratum>,
    rho: Count,
    d: Real,
    /// Evidence against `p_T <= rho p_C + d` when 1, against the opposite when -1.
    sign: Sign,
    alpha: Alpha,
}

pub fn fixed_rate(case: FixedRate) -> Out {
    let strata: Vec<rates::Stratum> = case.strata.0.into_iter().map(|s| s.0).collect();
    let side = if case.sign.0 > 0.0 { fixed::Side::Above } else { fixed::Side::Below };
    Ok(json!({
        "p": fixed::rate_p(&strata, rates::Null { ratio: case.rho.0, margin: case.d.0 }, side),
        "relative": fixed::rate_relative_interval(&strata, case.alpha.0),
        "difference": fixed::rate_difference_interval(&strata, case.alpha.0),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosteriorMean {
    strata: List<MeanStratum>,
    sign: Sign,
    rho: Count,
    d: Real,
    min_n: u64,
}

pub fn posterior_mean(case: PosteriorMean) -> Out {
    let strata: Vec<means::Stratum> = case.strata.0.iter().map(|s| means::Stratum { t: s.t.0, c: s.c.0 }).collect();
    let contrast = means::Contrast { sign: case.sign.0, ratio: case.rho.0, margin: case.d.0 };
    Ok(json!({
        "probability": posterior::mean(&strata, contrast, case.min_n),
        "relative": posterior::mean_relative_interval(&strata, case.min_n),
        "difference": posterior::mean_difference_interval(&strata, case.min_n),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedMean {
    strata: List<MeanStratum>,
    sign: Sign,
    rho: Count,
    d: Real,
    alpha: Alpha,
    min_n: u64,
}

pub fn fixed_mean(case: FixedMean) -> Out {
    let strata: Vec<means::Stratum> = case.strata.0.iter().map(|s| means::Stratum { t: s.t.0, c: s.c.0 }).collect();
    let contrast = means::Contrast { sign: case.sign.0, ratio: case.rho.0, margin: case.d.0 };
    Ok(json!({
        "p": fixed::mean_p(&strata, contrast, case.min_n),
        "relative": fixed::mean_relative_interval(&strata, case.alpha.0, case.min_n),
        "difference": fixed::mean_difference_interval(&strata, case.alpha.0, case.min_n),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosteriorQuantile {
    hist_c: Bins,
    hist_t: Bins,
    p_ppm: Ppm,
    r_ppm: MarginPpm,
    d: i64,
    sig_digits: Digits,
    deff_c: AtLeastOne,
    deff_t: AtLeastOne,
}

pub fn posterior_quantile(case: PosteriorQuantile) -> Out {
    let (level, bins) = (Exceedance::of_quantile(case.p_ppm.0), case.sig_digits.0);
    let (control, treatment) = (quantiles::Tail::new(case.hist_c), quantiles::Tail::new(case.hist_t));
    let arms = quantiles::Arms { control: &control, treatment: &treatment, deff_c: case.deff_c.0, deff_t: case.deff_t.0 };
    let test = quantiles::Relative { level: level.clone(), r_ppm: case.r_ppm.0, d: case.d, bins };
    Ok(json!({
        "probability": posterior::quantile(&test, arms),
        "relative": posterior::quantile_relative_interval(arms, &level, bins),
        "difference": posterior::quantile_difference_interval(arms, &level, bins),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedQuantile {
    hist_c: Bins,
    hist_t: Bins,
    p_ppm: Ppm,
    r_ppm: MarginPpm,
    d: i64,
    sig_digits: Digits,
    deff_c: AtLeastOne,
    deff_t: AtLeastOne,
    alpha: Alpha,
}

pub fn fixed_quantile(case: FixedQuantile) -> Out {
    let (level, bins) = (Exceedance::of_quantile(case.p_ppm.0), case.sig_digits.0);
    let (control, treatment) = (quantiles::Tail::new(case.hist_c), quantiles::Tail::new(case.hist_t));
    let arms = quantiles::Arms { control: &control, treatment: &treatment, deff_c: case.deff_c.0, deff_t: case.deff_t.0 };
    let test = quantiles::Relative { level: level.clone(), r_ppm: case.r_ppm.0, d: case.d, bins };
    Ok(json!({
        "p": fixed::quantile_p(&test, arms),
        "relative": fixed::quantile_relative_interval(arms, &level, case.alpha.0, bins),
        "difference": fixed::quantile_difference_interval(arms, &level, case.alpha.0, bins),
    }))
}
