//! The tests of one look and the posteriors, as `guardraild stats` offers them: values that other means confirm, and answers to anything.

#![allow(clippy::unwrap_used)]

use serde_json::Value;

/// One case a line; the wanted numbers were computed by another program in multi-precision arithmetic; `source` says how.
const CASES: &str = include_str!("data/stats-classic.jsonl");

fn run(input: &str) -> Vec<Value> {
    let mut output = Vec::new();
    guardraild::cli::stats::run(input.as_bytes(), &mut output).unwrap();
    std::str::from_utf8(&output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_case_is_met() {
    for (found, line) in run(CASES).iter().zip(CASES.lines()) {
        let wanted: Value = serde_json::from_str(line).unwrap();
        for (field, want) in wanted["out"].as_object().unwrap() {
            let (got, want) = (found["out"][field].as_f64(), want.as_f64().unwrap());
            let tolerance = wanted["tolerance"].as_f64().unwrap();
            assert!(got.is_some_and(|got| (got - want).abs() <= tolerance), "{field}: want {want}, got {found}");
        }
    }
}

#[test]
fn extreme_values_in_any_field_get_an_answer_or_an_error() {
    let extremes = ["0", "-1", "1", "0.5", "1e-300", "1e15", "1e300", "9007199254740993", "18446744073709551615", "null", "\"x\"", "[]"];
    let mut lines = String::new();
    for line in CASES.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let mut paths = Vec::new();
        number_paths(&case["in"], String::new(), &mut paths);
        for path in &paths {
            for extreme in extremes {
                let mut changed = case.clone();
                *changed["in"].pointer_mut(path).unwrap() = serde_json::from_str(extreme).unwrap();
                lines.push_str(&format!("{changed}\n"));
            }
        }
    }
    for (line, answer) in lines.lines().zip(run(&lines)) {
        let chance = answer["out"].get("p").or(answer["out"].get("probability")).and_then(Value::as_f64);
        let good = chance.is_some_and(|chance| (0.0..=1.0).contains(&chance));
        assert!(answer["error"].is_string() || good, "{line}\n{answer}");
    }
}

fn number_paths(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, child)| number_paths(child, format!("{path}/{key}"), found)),
        Value::Array(items) => items.iter().enumerate().take(2).for_each(|(i, child)| number_paths(child, format!("{path}/{i}"), found)),
        Value::Number(_) => found.push(path),
        _ => {}
    }
}
