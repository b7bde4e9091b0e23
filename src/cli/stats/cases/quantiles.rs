//! Quantiles, detectors and design effects.

use super::super::fields::*;
use super::{Out, number};
use crate::engine::stats::{design_effect, detector, exceedance, quantiles};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExceedanceCase {
    s: Count,
    n: Count,
    q0_ppm: Ppm,
    side: Side,
    #[serde(default)]
    deff: AtLeastOne,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Over,
    Under,
}

pub fn exceedance(case: ExceedanceCase) -> Out {
    hits(case.s.0, case.n.0, "s of n")?;
    let (q0, s, n) = (f64::from(case.q0_ppm.0) / 1e6, case.s.0 / case.deff.0, case.n.0 / case.deff.0);
    let log_e = match case.side {
        Side::Over => exceedance::log_e_over(s, n, q0),
        Side::Under => exceedance::log_e_under(s, n, q0),
    };
    Ok(json!({"log_e": number(log_e)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bin {
    v: u64,
    sig_digits: Digits,
}

pub fn bin(case: Bin) -> Out {
    Ok(json!({"lower": case.sig_digits.0.lower(case.v), "upper": case.sig_digits.0.upper(case.v)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Margin {
    u: u64,
    r_ppm: MarginPpm,
    d: i64,
}

pub fn margin(case: Margin) -> Out {
    Ok(json!({"value": quantiles::margin_value(case.u, case.r_ppm.0, case.d)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantileAbsolute {
    hist_t: Bins,
    p_ppm: Ppm,
    limit: u64,
    sig_digits: Digits,
    deff_t: AtLeastOne,
}

pub fn quantile_absolute(case: QuantileAbsolute) -> Out {
    let level = exceedance::Exceedance::of_quantile(case.p_ppm.0);
    let tail = quantiles::Tail::new(case.hist_t);
    Ok(json!({"log_e": number(quantiles::absolute_log_e(&tail, &level, case.limit, case.sig_digits.0, case.deff_t.0))}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantileRelative {
    hist_c: Bins,
    hist_t: Bins,
    p_ppm: Ppm,
    r_ppm: MarginPpm,
    d: i64,
    sig_digits: Digits,
    deff_c: AtLeastOne,
    deff_t: AtLeastOne,
}

fn relative_test(p_ppm: Ppm, r_ppm: MarginPpm, d: i64, digits: Digits) -> quantiles::Relative {
    quantiles::Relative { level: exceedance::Exceedance::of_quantile(p_ppm.0), r_ppm: r_ppm.0, d, bins: digits.0 }
}

pub fn quantile_relative(case: QuantileRelative) -> Out {
    let test = relative_test(case.p_ppm, case.r_ppm, case.d, case.sig_digits);
    let (control, treatment) = (quantiles::Tail::new(case.hist_c), quantiles::Tail::new(case.hist_t));
    let arms = quantiles::Arms { control: &control, treatment: &treatment, deff_c: case.deff_c.0, deff_t: case.deff_t.0 };
    Ok(json!({"log_e": number(test.log_e(arms))}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantileCs {
    hist: Bins,
    p_ppm: Ppm,
    alpha: Alpha,
    deff: AtLeastOne,
}

pub fn quantile_cs(case: QuantileCs) -> Out {
    let tail = quantiles::Tail::new(case.hist);
    let level = exceedance::Exceedance::of_quantile(case.p_ppm.0);
    let (lower, upper) = quantiles::confidence(&tail, &level, case.alpha.0, case.deff.0);
    Ok(json!({"lower": lower, "upper": upper, "point": tail.quantile(case.p_ppm.0)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectorLabelRate {
    slots: List<RateQuad>,
    rho0: Count,
    deff: AtLeastOne,
    lengths: List<usize>,
}

pub fn detector_label_rate(case: DetectorLabelRate) -> Out {
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
pub struct DetectorQuantileRelative {
    slots_c: List<Bins>,
    slots_t: List<Bins>,
    p_ppm: Ppm,
    r_ppm: MarginPpm,
    d: i64,
    sig_digits: Digits,
    deff_c: AtLeastOne,
    deff_t: AtLeastOne,
    lengths: List<usize>,
}

/// Every start keeps a histogram of all that came after it.
const MAX_DETECTOR_CELLS: usize = 10_000_000;

pub fn detector_quantile_relative(case: DetectorQuantileRelative) -> Out {
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
pub struct Batches {
    batches_c: List<BatchPair>,
    batches_t: List<BatchPair>,
    log_thr: Count,
}

pub fn batches(case: Batches) -> Out {
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
pub struct Ladder {
    levels: List<LevelTuple>,
    length: u64,
    deff_cumulative: AtLeastOne,
}

pub fn ladder(case: Ladder) -> Out {
    let levels: Vec<design_effect::LadderLevel> = case.levels.0.iter().map(LevelTuple::level).collect();
    Ok(json!({
        "level": design_effect::ladder_level(case.length),
        "deff": number(design_effect::of_suffix(&levels, case.length, case.deff_cumulative.0)),
    }))
}
