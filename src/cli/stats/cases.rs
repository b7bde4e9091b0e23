//! One function per test: its fields in, its results out.

use super::fields::*;
use crate::engine::stats::{
    counts, design_effect, detector, exceedance, lift, means, multiplicity, quantiles, rates, srm, zero_tolerance,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

type Out = Result<Value, String>;

pub fn evaluate(test: &str, input: &Value) -> Out {
    match test {
        "rate" => with(input, rate),
        "rate_drop" => with(input, rate_drop),
        "rate_bounds" => with(input, rate_bounds),
        "threshold" => with(input, threshold),
        "threshold_lower" => with(input, threshold_lower),
        "label_rate" => with(input, label_rate),
        "schedule" => with(input, schedule),
        "counts" => with(input, counts),
        "counts_incremental" => with(input, counts_incremental),
        "mean" => with(input, mean),
        "relative_lift" => with(input, relative_lift),
        "srm" => with(input, srm),
        "poisson" => with(input, poisson),
        "poisson_lower" => with(input, poisson_lower),
        "kth_event" => with(input, kth_event),
        "multiple" => with(input, multiple),
        "gatekeeping" => with(input, gatekeeping),
        "exceedance" => with(input, exceedance),
        "bucket" => with(input, bin),
        "margin" => with(input, margin),
        "quantile_absolute" => with(input, quantile_absolute),
        "quantile_relative" => with(input, quantile_relative),
        "quantile_cs" => with(input, quantile_cs),
        "detector_label_rate" => with(input, detector_label_rate),
        "detector_quantile_relative" => with(input, detector_quantile_relative),
        "design_effect" => with(input, batches),
        "ladder" => with(input, ladder),
        _ => Err(format!("unknown test `{test}`")),
    }
}

fn with<T: DeserializeOwned>(input: &Value, case: fn(T) -> Out) -> Out {
    case(T::deserialize(input).map_err(|e| format!("bad `in`: {e}"))?)
}

fn number(value: f64) -> Value {
    if value == f64::INFINITY {
        json!("inf")
    } else if value == f64::NEG_INFINITY {
        json!("-inf")
    } else {
        json!(value)
    }
}

fn evidence(log_e: f64) -> Out {
    Ok(json!({"log_e": number(log_e), "p": multiplicity::anytime_p(log_e)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rate {
    strata: List<RateStratum>,
    rho: Count,
    d: Real,
}

impl Rate {
    fn parts(self) -> (Vec<rates::Stratum>, rates::Null) {
        (self.strata.0.into_iter().map(|s| s.0).collect(), rates::Null { ratio: self.rho.0, margin: self.d.0 })
    }
}

fn rate(case: Rate) -> Out {
    let (strata, null) = case.parts();
    evidence(rates::log_e(&strata, null))
}

fn rate_drop(case: Rate) -> Out {
    let (strata, null) = case.parts();
    evidence(rates::drop_log_e(&strata, null))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateBounds {
    strata: List<RateStratum>,
    alpha: Alpha,
}

fn rate_bounds(case: RateBounds) -> Out {
    let (strata, alpha): (Vec<rates::Stratum>, f64) = (case.strata.0.into_iter().map(|s| s.0).collect(), case.alpha.0);
    Ok(json!({
        "ratio_lower": number(rates::ratio_lower_bound(&strata, alpha)),
        "ratio_upper": number(rates::ratio_upper_bound(&strata, alpha)),
        "difference_lower": number(rates::difference_lower_bound(&strata, alpha)),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Threshold {
    n: u64,
    x: u64,
    p0: Share,
}

fn threshold(case: Threshold) -> Out {
    hits(case.x as f64, case.n as f64, "x of n")?;
    evidence(rates::threshold_log_e(case.n, case.x, case.p0.0))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ThresholdLower {
    n: u64,
    x: u64,
    alpha: Alpha,
}

fn threshold_lower(case: ThresholdLower) -> Out {
    hits(case.x as f64, case.n as f64, "x of n")?;
    Ok(json!({"lower": rates::threshold_lower_bound(case.n, case.x, case.alpha.0)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelRate {
    k_t: Count,
    n_t: Count,
    k_c: Count,
    n_c: Count,
    rho0: Count,
    deff: AtLeastOne,
}

fn label_rate(case: LabelRate) -> Out {
    let log_e = rates::label_log_e(case.k_t.0, case.n_t.0, case.k_c.0, case.n_c.0, case.rho0.0, case.deff.0);
    Ok(json!({"log_e": number(log_e)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Schedule {
    n_c_total: u64,
    x_c_total: u64,
    configured: Option<Share>,
}

fn schedule(case: Schedule) -> Out {
    let m = rates::next_baseline(case.n_c_total, case.x_c_total, case.configured.map(|c| c.0));
    Ok(json!({"next_refresh": rates::next_refresh(case.n_c_total), "m": m}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    strata: List<CountStratum>,
    r: Change,
    phi: AtLeastOne,
    alpha: Alpha,
}

fn counts(case: Counts) -> Out {
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
struct CountsIncremental {
    /// Events of treatment and control, units exposed to treatment and control.
    steps: List<(Count, Count, Count, Count)>,
    r: Change,
}

fn counts_incremental(case: CountsIncremental) -> Out {
    let mut wealth = lift::Wealth::default();
    for (x_t, x_c, n_t, n_c) in case.steps.0 {
        counts::step(&mut wealth, x_t.0, x_c.0, n_t.0, n_c.0, case.r.0);
    }
    Ok(json!({"log_e": number(wealth.log_e())}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mean {
    strata: List<MeanStratum>,
    sign: Sign,
    rho: Count,
    d: Real,
    alpha: Alpha,
    min_n: u64,
}

fn mean(case: Mean) -> Out {
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
struct RelativeLift {
    t: MeanArm,
    c: MeanArm,
    alpha: Alpha,
}

fn relative_lift(case: RelativeLift) -> Out {
    let (lower, upper) = means::relative_lift(&case.t.0, &case.c.0, case.alpha.0);
    Ok(json!({"lower": number(lower), "upper": number(upper)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Srm {
    strata: List<SrmStratum>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SrmStratum {
    counts: List<u64>,
    weights: List<Count>,
}

fn srm(case: Srm) -> Out {
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
struct Poisson {
    x: u64,
    mu0: Count,
}

fn poisson(case: Poisson) -> Out {
    evidence(zero_tolerance::poisson_log_e(case.x, case.mu0.0))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PoissonLower {
    x: u64,
    exposure: Positive,
    alpha: Alpha,
}

fn poisson_lower(case: PoissonLower) -> Out {
    Ok(json!({"lower": number(zero_tolerance::poisson_lower_bound(case.x, case.exposure.0, case.alpha.0))}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KthEvent {
    k: u64,
    mu: PoissonMean,
    alpha: Alpha,
}

fn kth_event(case: KthEvent) -> Out {
    Ok(json!({
        "log_p": number(zero_tolerance::kth_event_log_p(case.k, case.mu.0)),
        "k_min": zero_tolerance::kth_event_threshold(case.mu.0, case.alpha.0),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Multiple {
    max_log_e: List<Evidence>,
    weights: List<Share>,
    alpha: Alpha,
}

fn multiple(case: Multiple) -> Out {
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
struct Gatekeeping {
    /// Weight and number of segments.
    families: List<(Share, usize)>,
    overall_share: Share,
    max_log_e: List<Evidence>,
    alpha: Alpha,
}

fn gatekeeping(case: Gatekeeping) -> Out {
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExceedanceCase {
    s: Count,
    n: Count,
    q0_ppm: Ppm,
    side: Side,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Side {
    Over,
    Under,
}

fn exceedance(case: ExceedanceCase) -> Out {
    hits(case.s.0, case.n.0, "s of n")?;
    let q0 = f64::from(case.q0_ppm.0) / 1e6;
    let log_e = match case.side {
        Side::Over => exceedance::log_e_over(case.s.0, case.n.0, q0),
        Side::Under => exceedance::log_e_under(case.s.0, case.n.0, q0),
    };
    Ok(json!({"log_e": number(log_e)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bin {
    v: u64,
    sig_digits: Digits,
}

fn bin(case: Bin) -> Out {
    Ok(json!({"lower": case.sig_digits.0.lower(case.v), "upper": case.sig_digits.0.upper(case.v)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Margin {
    u: u64,
    r_ppm: u64,
    d: u64,
}

fn margin(case: Margin) -> Out {
    Ok(json!({"value": quantiles::margin_value(case.u, case.r_ppm, case.d)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantileAbsolute {
    hist_t: Bins,
    p_ppm: Ppm,
    limit: u64,
    sig_digits: Digits,
    deff_t: AtLeastOne,
}

fn quantile_absolute(case: QuantileAbsolute) -> Out {
    let level = exceedance::Exceedance::of_quantile(case.p_ppm.0);
    let tail = quantiles::Tail::new(case.hist_t);
    Ok(json!({"log_e": number(quantiles::absolute_log_e(&tail, &level, case.limit, case.sig_digits.0, case.deff_t.0))}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantileRelative {
    hist_c: Bins,
    hist_t: Bins,
    p_ppm: Ppm,
    r_ppm: u64,
    d: u64,
    sig_digits: Digits,
    deff_c: AtLeastOne,
    deff_t: AtLeastOne,
}

fn relative_test(p_ppm: Ppm, r_ppm: u64, d: u64, digits: Digits) -> quantiles::Relative {
    quantiles::Relative { level: exceedance::Exceedance::of_quantile(p_ppm.0), r_ppm, d, bins: digits.0 }
}

fn quantile_relative(case: QuantileRelative) -> Out {
    let test = relative_test(case.p_ppm, case.r_ppm, case.d, case.sig_digits);
    let (control, treatment) = (quantiles::Tail::new(case.hist_c), quantiles::Tail::new(case.hist_t));
    let arms = quantiles::Arms { control: &control, treatment: &treatment, deff_c: case.deff_c.0, deff_t: case.deff_t.0 };
    Ok(json!({"log_e": number(test.log_e(arms))}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantileCs {
    hist: Bins,
    p_ppm: Ppm,
    alpha: Alpha,
    deff: AtLeastOne,
}

fn quantile_cs(case: QuantileCs) -> Out {
    let tail = quantiles::Tail::new(case.hist);
    let level = exceedance::Exceedance::of_quantile(case.p_ppm.0);
    let (lower, upper) = quantiles::confidence(&tail, &level, case.alpha.0, case.deff.0);
    Ok(json!({"lower": lower, "upper": upper, "point": tail.quantile(case.p_ppm.0)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DetectorLabelRate {
    slots: List<RateQuad>,
    rho0: Count,
    deff: AtLeastOne,
    lengths: List<usize>,
}

fn detector_label_rate(case: DetectorLabelRate) -> Out {
    let panes: Vec<detector::RatePane> = case.slots.0.iter().map(RateQuad::pane).collect();
    let by_start = detector::label_rate_by_start(&panes, case.rho0.0, case.deff.0);
    let starts: Vec<(usize, f64)> = case.lengths.0.iter().filter_map(|l| Some((*l, *by_start.get(l.checked_sub(1)?)?))).collect();
    let log_e: Vec<f64> = starts.iter().map(|s| s.1).collect();
    let top = detector::log_cusum(&log_e);
    let argmax = starts.iter().filter(|s| s.1 == top).map(|s| s.0).min();
    Ok(json!({"log_sr": number(detector::log_sr(&log_e)), "log_cusum": number(top), "argmax_length": argmax}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DetectorQuantileRelative {
    slots_c: List<Bins>,
    slots_t: List<Bins>,
    p_ppm: Ppm,
    r_ppm: u64,
    d: u64,
    sig_digits: Digits,
    deff_c: AtLeastOne,
    deff_t: AtLeastOne,
    lengths: List<usize>,
}

/// Every start keeps a histogram of all that came after it.
const MAX_DETECTOR_CELLS: usize = 10_000_000;

fn detector_quantile_relative(case: DetectorQuantileRelative) -> Out {
    let (control, treatment) = (&case.slots_c.0, &case.slots_t.0);
    if control.len() != treatment.len() {
        return Err("`slots_c` and `slots_t` differ in length".to_owned());
    }
    let mut lengths = case.lengths.0.clone();
    lengths.sort_unstable();
    lengths.dedup();
    let bins: usize = control.iter().chain(treatment).map(Vec::len).sum();
    if bins.saturating_mul(lengths.len()) > MAX_DETECTOR_CELLS {
        return Err(format!("{bins} bins times {} starts, more than {MAX_DETECTOR_CELLS}", lengths.len()));
    }
    let test = relative_test(case.p_ppm, case.r_ppm, case.d, case.sig_digits);
    let panes = control.iter().zip(treatment).map(|(c, t)| (&c[..], &t[..]));
    let starts = detector::QuantileSuffixes::new(panes, &lengths).log_e(&test, case.deff_c.0, case.deff_t.0);
    let of_length = |l: &usize| starts.binary_search_by_key(l, |s| s.0).ok().map(|i| starts[i].1);
    let log_e: Vec<f64> = case.lengths.0.iter().filter_map(of_length).collect();
    Ok(json!({
        "log_sr": number(detector::log_sr(&log_e)),
        "log_cusum": number(detector::log_cusum(&log_e)),
        "log_e": log_e.iter().copied().map(number).collect::<Vec<Value>>(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batches {
    batches_c: List<BatchPair>,
    batches_t: List<BatchPair>,
    log_thr: Count,
}

fn batches(case: Batches) -> Out {
    let batches = |pairs: &List<BatchPair>| pairs.0.iter().map(BatchPair::batch).collect::<Vec<_>>();
    let (control, treatment) = (batches(&case.batches_c), batches(&case.batches_t));
    let (c, t) = (design_effect::of_batches(&control), design_effect::of_batches(&treatment));
    let found = design_effect::deflation(&control, &treatment, case.log_thr.0);
    Ok(json!({
        "raw_c": number(c.raw), "dof_c": c.dof, "raw_t": number(t.raw), "dof_t": t.dof,
        "deff_c": number(found.control), "deff_t": number(found.treatment), "deff_rate": number(found.rate), "ready": found.ready,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ladder {
    levels: List<LevelTuple>,
    length: u64,
    deff_cumulative: AtLeastOne,
}

fn ladder(case: Ladder) -> Out {
    let levels: Vec<design_effect::LadderLevel> = case.levels.0.iter().map(LevelTuple::level).collect();
    Ok(json!({
        "level": design_effect::ladder_level(case.length),
        "deff": number(design_effect::of_suffix(&levels, case.length, case.deff_cumulative.0)),
    }))
}
