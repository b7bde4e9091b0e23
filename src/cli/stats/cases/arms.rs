//! Rates, counts, means, allocation and multiplicity.

use super::super::fields::*;
use super::{Out, number};
use crate::engine::stats::{counts, lift, means, multiplicity, rates, srm, starts, zero_tolerance};
use serde::Deserialize;
use serde_json::{Value, json};

fn evidence(log_e: f64) -> Out {
    Ok(json!({"log_e": number(log_e), "p": multiplicity::anytime_p(log_e)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    strata: List<RateStratum>,
    rho: Count,
    d: Real,
}

impl Rate {
    fn parts(self) -> (Vec<rates::Stratum>, rates::Null) {
        (self.strata.0.into_iter().map(|s| s.0).collect(), rates::Null { ratio: self.rho.0, margin: self.d.0 })
    }
}

pub fn rate(case: Rate) -> Out {
    let (strata, null) = case.parts();
    evidence(rates::log_e(&strata, null))
}

pub fn rate_drop(case: Rate) -> Out {
    let (strata, null) = case.parts();
    evidence(rates::drop_log_e(&strata, null))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateStarts {
    starts: List<RateStart>,
    rho: Count,
    d: Real,
}

impl RateStarts {
    fn parts(self) -> (Vec<starts::Start>, rates::Null) {
        (self.starts.0.into_iter().map(|s| s.0).collect(), rates::Null { ratio: self.rho.0, margin: self.d.0 })
    }
}

pub fn detector_rate(case: RateStarts) -> Out {
    let (starts, null) = case.parts();
    evidence(starts::log_e(&starts, null))
}

pub fn detector_rate_drop(case: RateStarts) -> Out {
    let (starts, null) = case.parts();
    evidence(starts::drop_log_e(&starts, null))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateBounds {
    strata: List<RateStratum>,
    alpha: Alpha,
}

pub fn rate_bounds(case: RateBounds) -> Out {
    let (strata, alpha): (Vec<rates::Stratum>, f64) = (case.strata.0.into_iter().map(|s| s.0).collect(), case.alpha.0);
    Ok(json!({
        "ratio_lower": number(rates::ratio_lower_bound(&strata, alpha)),
        "ratio_upper": number(rates::ratio_upper_bound(&strata, alpha)),
        "difference_lower": number(rates::difference_lower_bound(&strata, alpha)),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    n: u64,
    x: u64,
    p0: Share,
    #[serde(default)]
    deff: AtLeastOne,
}

pub fn threshold(case: Threshold) -> Out {
    hits(case.x as f64, case.n as f64, "x of n")?;
    evidence(rates::threshold_log_e_deflated(case.n, case.x, case.p0.0, case.deff.0))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThresholdLower {
    n: u64,
    x: u64,
    alpha: Alpha,
}

pub fn threshold_lower(case: ThresholdLower) -> Out {
    hits(case.x as f64, case.n as f64, "x of n")?;
    Ok(json!({"lower": rates::threshold_lower_bound(case.n, case.x, case.alpha.0, 1.0)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelRate {
    k_t: Count,
    n_t: Count,
    k_c: Count,
    n_c: Count,
    rho0: Count,
    deff: AtLeastOne,
}

pub fn label_rate(case: LabelRate) -> Out {
    let log_e = rates::label_log_e(case.k_t.0, case.n_t.0, case.k_c.0, case.n_c.0, case.rho0.0, case.deff.0);
    Ok(json!({"log_e": number(log_e)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    n_c_total: u64,
    x_c_total: u64,
    configured: Option<Share>,
}

pub fn schedule(case: Schedule) -> Out {
    let m = rates::next_baseline(case.n_c_total, case.x_c_total, case.configured.map(|c| c.0));
    Ok(json!({"next_refresh": rates::next_refresh(case.n_c_total), "m": m}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    strata: List<CountStratum>,
    r: Change,
    phi: AtLeastOne,
    alpha: Alpha,
}

pub fn counts(case: Counts) -> Out {
    let strata: Vec<counts::Stratum> = case.strata.0.iter().map(CountStratum::stratum).collect();
    let (r, phi) = (case.r.0, case.phi.0);
    Ok(json!({
        "log_e_up": number(counts::log_e(&strata, r, phi)),
        "log_e_down": number(counts::drop_log_e(&strata, r, phi)),
        "log_e_parity": number(counts::parity_log_e(&strata, r, r, phi)),
        "ratio_lower": number(counts::ratio_lower_bound(&strata, case.alpha.0, phi)),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountsIncremental {
    /// Events of treatment and control, units exposed to treatment and control.
    steps: List<(Count, Count, Count, Count)>,
    r: Change,
}

pub fn counts_incremental(case: CountsIncremental) -> Out {
    let mut wealth = lift::Wealth::default();
    for (x_t, x_c, n_t, n_c) in case.steps.0 {
        counts::step(&mut wealth, x_t.0, x_c.0, n_t.0, n_c.0, case.r.0);
    }
    Ok(json!({"log_e": number(wealth.log_e())}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mean {
    strata: List<MeanStratum>,
    sign: Sign,
    rho: Count,
    d: Real,
    alpha: Alpha,
    min_n: u64,
}

pub fn mean(case: Mean) -> Out {
    let strata: Vec<means::Stratum> = case.strata.0.iter().map(|s| means::Stratum { t: s.t.0, c: s.c.0 }).collect();
    let contrast = means::Contrast { sign: case.sign.0, ratio: case.rho.0, margin: case.d.0 };
    let Some(found) = means::estimate(&strata, contrast, case.min_n) else {
        return Ok(json!({"log_e": 0.0, "p": 1.0, "lower": "-inf"}));
    };
    Ok(json!({
        "log_e": number(found.log_e()),
        "p": multiplicity::anytime_p(found.log_e()),
        "lower": number(found.lower_bound(case.alpha.0)),
        "psi": number(found.psi),
        "z": number(found.z()),
        "n_h": number(found.n_h),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativeLift {
    t: MeanArm,
    c: MeanArm,
    alpha: Alpha,
}

pub fn relative_lift(case: RelativeLift) -> Out {
    let (lower, upper) = means::relative_lift(&case.t.0, &case.c.0, case.alpha.0);
    Ok(json!({"lower": number(lower), "upper": number(upper)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Srm {
    strata: List<SrmStratum>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SrmStratum {
    counts: List<u64>,
    weights: List<Count>,
}

pub fn srm(case: Srm) -> Out {
    if case.strata.0.iter().any(|s| s.counts.0.len() != s.weights.0.len()) {
        return Err("`counts` and `weights` differ in length".to_owned());
    }
    let weights: Vec<Vec<f64>> = case.strata.0.iter().map(|s| s.weights.0.iter().map(|w| w.0).collect()).collect();
    let pairs = case.strata.0.iter().zip(&weights);
    let strata: Vec<srm::Stratum<'_>> = pairs.map(|(s, weights)| srm::Stratum { counts: &s.counts.0, weights }).collect();
    evidence(srm::log_e(&strata))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Poisson {
    x: u64,
    mu0: Count,
}

pub fn poisson(case: Poisson) -> Out {
    evidence(zero_tolerance::poisson_log_e(case.x, case.mu0.0))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoissonLower {
    x: u64,
    exposure: Positive,
    alpha: Alpha,
}

pub fn poisson_lower(case: PoissonLower) -> Out {
    Ok(json!({"lower": number(zero_tolerance::poisson_lower_bound(case.x, case.exposure.0, case.alpha.0))}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KthEvent {
    k: u64,
    mu: PoissonMean,
    alpha: Alpha,
}

pub fn kth_event(case: KthEvent) -> Out {
    Ok(json!({
        "log_p": number(zero_tolerance::kth_event_log_p(case.k, case.mu.0)),
        "k_min": zero_tolerance::kth_event_threshold(case.mu.0, case.alpha.0),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Multiple {
    max_log_e: List<Evidence>,
    weights: List<Share>,
    alpha: Alpha,
}

pub fn multiple(case: Multiple) -> Out {
    let max_log_e: Vec<f64> = case.max_log_e.0.iter().map(|e| e.0).collect();
    let weights: Vec<f64> = case.weights.0.iter().map(|w| w.0).collect();
    if max_log_e.len() != weights.len() {
        return Err("`max_log_e` and `weights` differ in length".to_owned());
    }
    let adjusted: Vec<f64> = max_log_e.iter().map(|m| multiplicity::log_adjusted(*m)).collect();
    Ok(json!({
        "bonferroni": multiplicity::bonferroni(&max_log_e, &weights, case.alpha.0),
        "holm": multiplicity::holm(&max_log_e, &weights, case.alpha.0),
        "log_adjusted": adjusted.iter().copied().map(number).collect::<Vec<Value>>(),
        "e_bh": multiplicity::e_bh(&adjusted, case.alpha.0),
    }))
}

/// The graph's work grows with the cube of the hypotheses.
const MAX_HYPOTHESES: usize = 300;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gatekeeping {
    /// Weight and number of segments.
    families: List<(Share, usize)>,
    overall_share: Share,
    max_log_e: List<Evidence>,
    alpha: Alpha,
}

pub fn gatekeeping(case: Gatekeeping) -> Out {
    let hypotheses = case.families.0.iter().fold(0usize, |sum, f| sum.saturating_add(f.1).saturating_add(1));
    if hypotheses > MAX_HYPOTHESES {
        return Err(format!("{hypotheses} hypotheses, more than {MAX_HYPOTHESES}"));
    }
    if case.max_log_e.0.len() != hypotheses {
        return Err(format!("`max_log_e` has {} items for {hypotheses} hypotheses", case.max_log_e.0.len()));
    }
    let families: Vec<multiplicity::Family> =
        case.families.0.iter().map(|(weight, segments)| multiplicity::Family { weight: weight.0, segments: *segments }).collect();
    let max_log_e: Vec<f64> = case.max_log_e.0.iter().map(|e| e.0).collect();
    let graph = multiplicity::Graph::gatekeeping(&families, case.overall_share.0);
    Ok(json!({"weights": graph.weights, "rejected": graph.rejections(&max_log_e, case.alpha.0)}))
}
