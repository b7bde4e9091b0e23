//! `guardraild audit` on the golden decisions, and on decisions that were tampered with.

#![allow(clippy::unwrap_used)]

use guardraild::cli::audit::{Finding, audit, decision};
use serde_json::{Value, json};
use std::fs;

/// Every decision of `tests/golden`.
fn golden() -> Vec<Value> {
    let files = fs::read_dir("tests/golden").unwrap().map(|e| e.unwrap().path());
    let logs = files.filter(|p| p.to_string_lossy().ends_with(".decisions.jsonl")).map(|p| fs::read_to_string(p).unwrap());
    let values: Vec<Value> = logs.flat_map(|log| log.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()).collect();
    values.iter().filter_map(decision).cloned().collect()
}

#[test]
fn every_golden_decision_is_recomputed() {
    let (mut ok, mut other) = (0, 0);
    for decision in golden() {
        match audit(&decision) {
            Finding::Ok(_) => ok += 1,
            Finding::NotRecomputable(_) => {
                assert!(["operator", "confirm_within", "silence"].contains(&decision["criterion"].as_str().unwrap()), "{decision}");
                other += 1;
            }
            Finding::Differs(how) => panic!("{how}\n{decision}"),
        }
    }
    assert!(ok >= 7 && other >= 2, "{ok} {other}");
}

/// Each number of the evidence matters: a changed one is noticed, unless there was none to recompute.
#[test]
fn a_changed_number_is_noticed() {
    let mut changed = 0;
    for decision in golden().into_iter().filter(|d| matches!(audit(d), Finding::Ok(_)) && d["log_e_value"].is_number()) {
        let mut other = decision.clone();
        other["log_e_value"] = json!(decision["log_e_value"].as_f64().unwrap() * (1.0 + 1e-6));
        assert!(matches!(audit(&other), Finding::Differs(_)), "{other}");
        // These say how an answer is given, not what was seen.
        let told = |key: &str| !["alpha", "min_n", "sig_digits"].contains(&key);
        for (key, value) in decision["evidence"].as_object().unwrap().iter().filter(|(key, v)| v.is_number() && told(key)) {
            let mut other = decision.clone();
            other["evidence"][key] = match (key.as_str(), value.as_i64()) {
                // A margin of one bin more.
                ("r_ppm" | "d", Some(whole)) => json!(whole + 50_000),
                (_, Some(whole)) => json!(whole + 1),
                (_, None) => json!(value.as_f64().unwrap() * 1.01 + 0.001),
            };
            assert!(matches!(audit(&other), Finding::Differs(_)), "{key}: {other}");
            changed += 1;
        }
    }
    assert!(changed >= 10, "{changed}");
}

#[test]
fn the_level_is_checked() {
    let of = |test: &str, evidence: &str, alpha: f64| {
        let evidence: Value = serde_json::from_str(evidence).unwrap();
        audit(
            &json!({"guardrail": "orders", "criterion": "max_increase", "test": test, "alpha": alpha, "log_e_value": null, "evidence": evidence}),
        )
    };
    let strata = r#""strata":[{"w":0.5,"m":0.0,"n_t":1000,"x_t":90,"n_c":1000,"x_c":50}],"rho":1,"d":0,"sign":1"#;
    assert!(matches!(of("posterior_rate", &format!("{{{strata}}}"), 0.01), Finding::Ok(_)));
    assert!(matches!(of("posterior_rate", &format!("{{{strata}}}"), 1e-9), Finding::Differs(_)));
    assert!(matches!(of("fixed_rate", &format!(r#"{{{strata},"alpha":0.01}}"#), 0.01), Finding::Ok(_)));
    assert!(matches!(of("fixed_rate", &format!(r#"{{{strata},"alpha":0.01}}"#), 1e-9), Finding::Differs(_)));
    let mut strict = golden().into_iter().find(|d| d["test"] == "exceedance").unwrap();
    assert!(matches!(audit(&strict), Finding::Ok(_)));
    strict["alpha"] = json!(1e-12);
    assert!(matches!(audit(&strict), Finding::Differs(_)));
    // Evidence without end has no number in JSON.
    let split = json!({"guardrail": "srm", "criterion": "srm", "test": "srm", "alpha": 0.001, "log_e_value": null,
        "evidence": {"strata": [{"counts": [1, 1], "weights": [1, 0]}]}});
    assert!(matches!(audit(&split), Finding::Ok(_)));
    assert!(matches!(audit(&json!({"test": "nope", "evidence": {}})), Finding::Differs(_)));
    assert!(matches!(audit(&json!({"test": "count", "evidence": {"count": 3, "allowed": 3}})), Finding::Differs(_)));
}

#[test]
fn only_the_limit_of_abandonment_pays_for_two_looks() {
    let found = golden().into_iter().find(|d| d["guardrail"] == "abandonment" && d["criterion"] == "limit").unwrap();
    let with = |key: &str, value: &str| {
        let mut other = found.clone();
        other[key] = json!(value);
        audit(&other)
    };
    assert!(matches!(with("guardrail", "abandonment#2"), Finding::Ok(_)));
    assert!(matches!(with("guardrail", "error_rate"), Finding::Differs(_)));
    assert!(matches!(with("criterion", "max_increase"), Finding::Differs(_)));
}
