//! `guardraild stats` against test vectors that were computed apart from this code.
//!
//! Tolerances: log values 1e-9 of the larger of 1 and the value; p 1e-9, relative, times the larger of 1 and |log_e|; bounds 1e-8
//! relative (those of differences and means 1e-9 absolute at least); sets, integers, booleans and nulls exactly.

#![allow(clippy::unwrap_used)]

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

/// Paths of the first numbers below `value`.
fn number_paths(value: &Value, path: String, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), v)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        Value::Number(_) => return found.push(path),
        _ => return,
    };
    for (key, child) in children.into_iter().take(12) {
        number_paths(child, format!("{path}/{key}"), found);
    }
}

/// Whether a number became null, which is how JSON writes what is not a number. A bound may be unknown.
fn has_nan(out: &Value) -> bool {
    match out {
        Value::Object(map) => map.iter().any(|(k, v)| if v.is_null() { !["lower", "upper", "point"].contains(&&**k) } else { has_nan(v) }),
        Value::Array(items) => items.iter().any(|v| v.is_null() || has_nan(v)),
        _ => false,
    }
}

#[test]
fn extreme_values_in_any_field_get_an_answer_or_an_error() {
    let extremes = ["0", "-1", "1", "0.5", "1e-300", "1e15", "1e300", "9007199254740993", "18446744073709551615", "null", "\"x\"", "[]"];
    let mut lines = String::new();
    for line in VECTORS.lines() {
        let mut case: Value = serde_json::from_str(line).unwrap();
        let mut paths = Vec::new();
        number_paths(&case["in"], String::new(), &mut paths);
        for path in paths.iter().take(12) {
            let original = case["in"].pointer(path).unwrap().clone();
            for extreme in extremes {
                *case["in"].pointer_mut(path).unwrap() = serde_json::from_str(extreme).unwrap();
                lines.push_str(&format!("{case}\n"));
            }
            *case["in"].pointer_mut(path).unwrap() = original;
        }
    }
    for (line, answer) in lines.lines().zip(run(&lines)) {
        assert!(answer["error"].is_string() || answer["out"].is_object() && !has_nan(&answer["out"]), "{line}\n{answer}");
    }
}
