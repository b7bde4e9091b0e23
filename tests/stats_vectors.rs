//! `guardraild stats` against test vectors that were computed apart from this code.
//!
//! Tolerances: log values 1e-9 of the larger of 1 and the value; p 1e-9, relative, times the larger of 1 and |log_e|; bounds 1e-8
//! relative (those of differences and means 1e-9 absolute at least); sets, integers, booleans and nulls exactly.

use serde_json::Value;

const VECTORS: &str = include_str!("data/stats-vectors.jsonl");

const BOUNDS: [&str; 5] = ["ratio_lower", "ratio_upper", "lower", "upper", "difference_lower"];

fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("inf") => Some(f64::INFINITY),
        Some("-inf") => Some(f64::NEG_INFINITY),
        _ => value.as_f64(),
    }
}

fn tolerance(test: &str, field: &str, want: f64, log_e: f64) -> f64 {
    if field.starts_with("log") {
        return 1e-9 * want.abs().max(1.0);
    }
    if field == "p" {
        return 1e-9 * want * log_e.abs().max(1.0);
    }
    let relative = 1e-8 * want.abs();
    let on_a_scale_of_its_own = ["rate_bounds", "mean", "relative_lift"].contains(&test);
    match field {
        "difference_lower" | "lower" | "upper" if on_a_scale_of_its_own => relative.max(1e-9),
        _ if BOUNDS.contains(&field) => relative,
        _ => 1e-9 * want.abs().max(1.0),
    }
}

fn agrees(test: &str, field: &str, got: &Value, want: &Value, log_e: f64) -> bool {
    if let (Some(got), Some(want)) = (got.as_array(), want.as_array()) {
        return got.len() == want.len() && got.iter().zip(want).all(|(g, w)| agrees(test, field, g, w, log_e));
    }
    if want.is_u64() && got.is_u64() {
        return got == want;
    }
    match (number(got), number(want)) {
        (Some(got), Some(want)) if want.is_finite() => (got - want).abs() <= tolerance(test, field, want, log_e),
        _ => got == want,
    }
}

fn run(input: &str) -> Vec<Value> {
    let mut output = Vec::new();
    guardraild::cli::stats::run(input.as_bytes(), &mut output).unwrap();
    std::str::from_utf8(&output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_vector_is_met() {
    let wanted: Vec<Value> = VECTORS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found = run(VECTORS);
    assert_eq!(found.len(), wanted.len());
    let mut failures = Vec::new();
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found["id"], wanted["id"]);
        let test = wanted["test"].as_str().unwrap();
        let log_e = wanted["out"]["log_e"].as_f64().unwrap_or(1.0);
        for (field, want) in wanted["out"].as_object().unwrap() {
            let got = &found["out"][field];
            if !agrees(test, field, got, want, log_e) {
                failures.push(format!("{} {test} {field}: got {got}, want {want} {}", wanted["id"], found["error"]));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {} vectors:\n{}", failures.len(), wanted.len(), failures.join("\n"));
}

/// The comparison itself must be able to fail.
#[test]
fn a_wrong_value_is_noticed() {
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert!(agrees("rate", "log_e", &value("5.0000000001"), &value("5.0"), 5.0));
    assert!(!agrees("rate", "log_e", &value("5.0000001"), &value("5.0"), 5.0));
    assert!(!agrees("quantile_cs", "lower", &value("4095"), &value("null"), 1.0));
    assert!(!agrees("multiple", "holm", &value("[1]"), &value("[1,2]"), 1.0));
    assert!(!agrees("design_effect", "ready", &value("true"), &value("false"), 1.0));
    assert!(!agrees("rate", "log_e", &Value::Null, &value("5.0"), 5.0));
    assert!(!agrees("mean", "lower", &value("-7.0"), &value("\"-inf\""), 1.0));
}
