use super::outcome::{self, Advice};
use super::*;
use crate::engine::decision::Verdict;
use crate::live::{KeptBucket, KeptSample, Sample};
use serde_json::json;

const START: Millis = 1_764_666_000_000;

fn guardrail(name: &str, verdict: &str, primary: bool, interval: [f64; 2]) -> Value {
    json!({"guardrail": name, "bucket": "treatment", "verdict": verdict, "reason": "as it is", "unit": "%", "baseline_value": 0.3,
        "bucket_value": 0.309, "interval": interval, "limit": null, "max_increase": {"relative": 0.0}, "primary": primary,
        "higher_is_worse": !primary, "on_breach": "rollback", "decision": null,
        "segments": [{"segment": "region=eu", "verdict": "watching", "units": 400, "baseline_value": 0.3, "bucket_value": 0.33,
                      "interval": [-0.1, 0.3]}]})
}

fn latency() -> Value {
    json!({"guardrail": "latency_p95", "bucket": "treatment", "verdict": "safe", "reason": "as it is", "unit": "ms", "statistic": "p95",
        "baseline_value": 812.0, "bucket_value": 857.0, "interval": [0.01, 0.09], "limit": null, "max_increase": {"relative": 0.1},
        "primary": false, "higher_is_worse": true, "on_breach": "rollback", "decision": null, "segments": []})
}

fn loading() -> Value {
    json!({"guardrail": "loading_p50", "bucket": "treatment", "verdict": "safe", "reason": "as it is", "unit": "ms", "statistic": "p50",
        "baseline_value": 225.0, "bucket_value": 237.0, "interval": null, "limit": 400.0, "max_increase": null, "primary": false,
        "higher_is_worse": true, "on_breach": "notify", "decision": null, "segments": []})
}

fn state() -> Value {
    let bucket = |name: &str, baseline: bool| {
        json!({"bucket": name, "baseline": baseline, "weight": 0.5, "exposed_units": 12_345, "exposures": 20_000, "events": 40_000,
            "mixed_units": 0, "exposure_rate": 21.5, "stopped": null})
    };
    let seen = |name: &str| {
        json!({"bucket": name, "weight": 0.5, "exposed_units": 12_345, "exposures": 20_000, "events": 40_000,
            "metrics": [{"metric": "orders", "unit": "%", "n": 12_345, "value": if name == "control" { 0.3 } else { 0.312 }}]})
    };
    let counts = |completed: i64| json!({"started": 1_000, "reached": [800], "completed": completed});
    let phase = |n: Value, name: Value| json!({"phase": n, "name": name, "since": START, "until": null, "buckets": [seen("control"), seen("treatment")]});
    json!({"experiment": "new-checkout", "revision": 3, "mode": "enforce", "verdict": "safe", "holds": [],
        "rollout": {"stage": "ended"}, "buckets": [bucket("control", true), bucket("treatment", false)],
        "guardrails": [guardrail("orders", "safe", true, [0.01, 0.07]), guardrail("error_rate", "safe", false, [-0.2, -0.1]), latency(), loading()],
        "quality": [{"check": "srm", "verdict": "safe", "reason": "as designed"}],
        "phases": [phase(json!(0), json!("canary"))], "whole_life": phase(Value::Null, Value::Null),
        "funnels": [{"funnel": "buying", "workflow": "purchase", "steps": ["cart"],
            "buckets": [{"bucket": "control", "matured": counts(300)}, {"bucket": "treatment", "matured": counts(320)}]}],
        "retention": [{"metric": "d7", "day": 7, "buckets": [{"bucket": "control", "eligible": 900, "active": 300, "rate": 0.333},
                                                           {"bucket": "treatment", "eligible": 0, "active": 0, "rate": null}]}]})
}

/// Of a guardrail that compares, and of one that only has a limit.
fn histograms() -> Vec<Value> {
    let bin = |i: u64| json!({"from": 100 * i, "to": 100 * (i + 1), "baseline": 40 / (i + 1), "bucket": 30 / (i + 1) + 2 * i});
    let level = |q: f64| json!({"q": q, "baseline": 900.0 * q * q, "bucket": 950.0 * q * q});
    let of = |guardrail: &str, of: &str| {
        let (bins, quantiles): (Vec<Value>, _) = ((0..9).map(bin).collect(), [0.1, 0.25, 0.5, 0.75, 0.95, 0.99].map(level));
        json!({"guardrail": guardrail, "bucket": "treatment", "of": of, "baseline_n": 113, "n": 1_134, "bins": bins, "quantiles": quantiles})
    };
    vec![of("latency_p95", "allocation"), of("loading_p50", "window")]
}

fn entry(second: i64, kind: &str, text: &str, author: Option<&str>, links: &[&str]) -> Value {
    let at = crate::engine::decision::Timestamp(START + 1_000 * second).to_string();
    json!({"seq": second, "at": at, "experiment": "new-checkout", "kind": kind, "author": author, "text": text, "links": links})
}

fn point(i: i64) -> (Millis, Kept) {
    let sample = |name: &str| KeptSample {
        guardrail: name.into(),
        bucket: "treatment".into(),
        sample: Sample {
            verdict: Verdict::Watching,
            baseline_value: Some(0.3),
            bucket_value: Some(0.3 + 0.001 * i as f64),
            interval: (i > 2).then_some([-0.3 / i as f64, 0.1 + 0.3 / i as f64]),
            n: 10,
            log_e_value: Some(0.5),
            log_threshold: Some(4.6),
        },
    };
    let bucket = |name: &str| KeptBucket { bucket: name.into(), exposed_units: 100 * i as u64, exposure_rate: 10.0 };
    let kept = Kept {
        revision: 3,
        guardrails: vec![sample("orders"), sample("error_rate")],
        buckets: vec![bucket("control"), bucket("treatment")],
    };
    (START + 10_000 * i, kept)
}

fn dossier() -> Dossier {
    let rollback = json!({"decision": "d-1", "decided_at": "2025-12-02T09:02:30Z", "bucket": "treatment", "guardrail": "error_rate",
        "criterion": "limit", "action": "rollback", "mode": "enforce", "reason": "error_rate of treatment is 7.00%, above the limit",
        "deliveries": [{"endpoint": "flag-service", "state": "delivered"}]});
    Dossier {
        experiment: "new-checkout".into(),
        at: START + 400_000,
        last: true,
        state: Some(state()),
        histograms: histograms(),
        rule: std::fs::read_to_string("rules/new-checkout.yaml").unwrap(),
        points: (0..20).map(point).collect(),
        log: vec![
            entry(0, "launch", "first record: the experiment is being watched", None, &[]),
            entry(60, "phase", "phase is canary", Some("ramp-controller"), &["https://ci.example/7"]),
            entry(100, "incident", "payments were slow | in all buckets", Some("ann"), &["https://status.example/118"]),
            entry(110, "mitigation", "held for an hour", Some("ann"), &[]),
            json!({"at": "2025-12-02T09:02:40Z", "kind": "resolved", "decision": "d-1", "text": "re-armed", "author": "ann", "links": []}),
            entry(170, "delivery", "guardrail.rollback via flag-service: 200 on attempt 2", None, &[]),
            entry(300, "learning", "buyers on *phones* gain most", Some("bob"), &[]),
            entry(310, "next", "ship to the rest", Some("bob"), &["https://tickets.example/9"]),
            entry(320, "artifact", "notebook", Some("bob"), &["https://notebooks.example/n"]),
            entry(330, "ended", "the end date has come: 24690 units were exposed", None, &[]),
        ],
        decisions: vec![rollback],
        cut: false,
        dashboard: Some("https://guardraild.example/#/e/new-checkout".into()),
    }
}

/// The file says `text`; or, when asked to, it does from now on.
fn holds(path: &str, text: &str) {
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
        std::fs::write(path, text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(kept == text, "{path} differs, first in {differs:?}; GUARDRAILD_UPDATE=1 writes it anew");
}

#[test]
fn a_readout_is_as_it_was() {
    holds("tests/report/readout.md", &markdown(&dossier()));
    holds("tests/report/readout.html", &html(&dossier()));
    let files: Vec<_> = export::files(&dossier()).into_iter().filter(|(name, _)| name.ends_with(".csv")).collect();
    holds("tests/report/export.csv", &files.iter().map(|(name, text)| format!("{name}\n{text}\n")).collect::<String>());
}

#[test]
fn an_archive_holds_the_exported_files_and_is_the_same_each_time() {
    let (of, archive) = (dossier(), export::archive(&dossier()).unwrap());
    assert_eq!(archive, export::archive(&of).unwrap());
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
    let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let (mut entry, mut text) = (entry.unwrap(), String::new());
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        (entry.path().unwrap().display().to_string(), text)
    };
    let found: Vec<_> = tar.entries().unwrap().map(read).collect();
    let wanted: Vec<_> = export::files(&of).into_iter().map(|(name, text)| (format!("new-checkout-readout/{name}"), text)).collect();
    assert_eq!(found, wanted);
    assert_eq!(export::folder("../a b\"\n.x"), "___a_b___x-readout");
}

/// What is suggested for treatment, once `change` has been made.
fn advice(change: impl FnOnce(&mut Dossier, &mut Value)) -> (Advice, String) {
    let (mut dossier, mut state) = (dossier(), state());
    change(&mut dossier, &mut state);
    dossier.state = Some(state);
    let [suggestion] = outcome::suggestions(&dossier).try_into().unwrap();
    (suggestion.advice, suggestion.reason)
}

#[test]
fn what_is_suggested_follows_from_the_figures() {
    let of = |change: fn(&mut Dossier, &mut Value)| advice(change).0;
    assert_eq!(of(|_, _| ()), Advice::Ship);
    assert_eq!(of(|_, state| state["guardrails"][0]["interval"] = json!([-0.01, 0.07])), Advice::Iterate);
    assert_eq!(of(|_, state| state["guardrails"][0]["interval"] = json!([-0.05, -0.01])), Advice::RollBack);
    assert_eq!(of(|_, state| state["guardrails"][1]["verdict"] = json!("watching")), Advice::Iterate);
    assert_eq!(of(|_, state| state["guardrails"][1]["verdict"] = json!("breach")), Advice::RollBack);
    assert_eq!(of(|_, state| state["quality"][0]["verdict"] = json!("breach")), Advice::Iterate);
    assert_eq!(of(|_, state| state["holds"] = json!([{"by": "operator", "reason": "r"}])), Advice::Iterate);
    let running = |_: &mut Dossier, state: &mut Value| {
        state["rollout"]["stage"] = json!("running");
        state["guardrails"][1]["verdict"] = json!("no_data");
    };
    assert_eq!(of(running), Advice::GoOn, "what is not known yet is no reason to end");
    assert_eq!(of(|_, state| state["guardrails"].as_array_mut().unwrap().truncate(1)), Advice::Ship);
    assert_eq!(of(|_, state| state["guardrails"][0]["primary"] = json!(false)), Advice::Ship, "safe, and nothing to improve");
}

#[test]
fn the_flag_stands_where_exposures_showed_it() {
    let of = |change: &dyn Fn(&mut Dossier)| {
        let mut dossier = dossier();
        dossier.log.retain(|e| e["kind"] != "resolved");
        change(&mut dossier);
        let (bucket, told) = outcome::flag(&dossier).pop().unwrap();
        assert_eq!(bucket, "treatment");
        told
    };
    assert_eq!(outcome::flag(&dossier())[1].1, "not stopped; the experiment has ended", "it was resumed");
    assert!(of(&|_| ()).contains("not known yet"));
    let confirmed = |d: &mut Dossier| d.log.push(json!({"kind": "confirmed", "decision": "d-1"}));
    assert!(of(&confirmed).starts_with("off: rolled back at 2025-12-02T09:02:30Z, and exposures stopped"));
    let later = |d: &mut Dossier, criterion: &str| {
        d.decisions.push(json!({"bucket": "treatment", "criterion": criterion, "action": "kill", "decided_at": "2025-12-02T09:05:00Z"}));
    };
    assert!(of(&|d| later(d, "undone")).starts_with("on again"));
    assert!(of(&|d| later(d, "confirm_within")).starts_with("NOT off"));
    assert!(of(&|d| d.decisions[0]["mode"] = json!("observe")).starts_with("unchanged"));
    assert!(of(&|d| d.decisions[0]["held_by"] = json!("rate_limit")).contains("waits for a person"));
}

#[test]
fn little_is_enough_for_a_readout() {
    let bare = Dossier { state: None, rule: String::new(), points: vec![], decisions: vec![], dashboard: None, log: vec![], ..dossier() };
    let text = markdown(&bare);
    assert!(text.contains("No figures are kept") && text.contains("## 9. Artifacts"), "{text}");
    let odd = Dossier { state: Some(json!({"buckets": 3, "guardrails": [null, {}], "whole_life": []})), log: vec![json!(null)], ..bare };
    assert!(html(&odd).contains("8. Final readout") && !export::files(&odd).is_empty());
}
