use super::case::Case;
use super::play::{Seen, Stage, Way};
use super::*;
use crate::engine::plan::{Catalog, Settings};
use crate::ingest::file::Recording;
use crate::tools::backtest::{self, Side, Terms};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const WAY: Way = Way { seed: 1, whole: true, watched: false, hurried: false };

/// A test of `rule` with these cases, in a folder of its own.
fn written(rule: &str, test: &str, more: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rule_test.yaml");
    std::fs::copy(rule, folder.path().join("rule.yaml")).unwrap();
    std::fs::write(&path, test).unwrap();
    for (name, text) in more {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    (folder, path)
}

fn loaded(path: &Path) -> TestFile {
    load(path).unwrap_or_else(|faults| panic!("{}", faults.iter().map(|f| f.human(false)).collect::<String>()))
}

fn played(file: &TestFile, way: Way) -> Vec<Seen> {
    let suite = &file.suites[0];
    let play = |case: &Case| Stage::new(case, &suite.rule, &suite.fields).play(way, &AtomicBool::new(false)).unwrap().unwrap();
    suite.cases.iter().map(play).collect()
}

#[test]
fn the_guide_is_right() {
    let guide = std::fs::read_to_string("docs/testing-rules.md").unwrap();
    let block = guide.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let (_folder, path) = written("rules/new-checkout.yaml", block, &[]);
    assert_eq!(loaded(&path).suites[0].cases.len(), 2);
    for key in [&keys::CASE, &keys::FAULT, &keys::EXPECT].into_iter().flat_map(|section| section.keys) {
        assert!(guide.contains(key.name), "the guide does not tell of `{}`", key.name);
    }
}

#[test]
fn shipped_tests_are_sound() {
    for file in ["rules/new-checkout_test.yaml", "rules/search-ranking_test.yaml", "load-tests/cases/quiet_test.yaml"] {
        assert!(!loaded(Path::new(file)).suites[0].cases.is_empty(), "{file}");
    }
}

/// Every kind of fault is drawn from a stream of its own, so a run repeats; and records that are written and read again say the same.
#[test]
fn a_seed_gives_the_same_run_with_and_without_json() {
    let test = "guardrail_test: v1
traffic: {units: 3/s, requests: {per_unit: 2, gap: 5s}, metrics: {basket: {mean: 40}, orders: {delay: 10s}}, phases: [{traffic: 100%}]}
cases:
  - {name: a, for: 6m, partitions: 3, faults: [{from: 1m, change: {error_rate: +30pp, orders: -20%}}], expect: [{acts: any}]}
";
    let rule = std::fs::read_to_string("rules/new-checkout.yaml").unwrap();
    let guarded = rule.replace("guardrails:\n", "guardrails:\n  - {metric: basket, max_increase: 5%, on_breach: notify}\n");
    let (folder, path) = written("rules/new-checkout.yaml", test, &[("rule.yaml", &guarded)]);
    let file = loaded(&path);
    let whole = played(&file, WAY).remove(0);
    let direct = played(&file, Way { whole: false, ..WAY }).remove(0);
    assert!(!whole.decisions.is_empty());
    assert_eq!(whole.decisions, direct.decisions);
    assert_eq!(whole.counts, direct.counts);
    assert_eq!(whole.looks, direct.looks);
    assert_ne!(whole.counts, played(&file, Way { seed: 2, ..WAY }).remove(0).counts);
    drop(folder);
}

#[test]
fn what_nobody_looks_at_decides_nothing() {
    let test = "guardrail_test: v1
traffic: {units: 20/s, requests: {per_unit: 3, gap: 5s}}
cases:
  - {name: slow, for: 12m, faults: [{from: 4m, change: {latency_p95: +80%, error_rate: +6pp}}], seeds: 2, expect: [{never: kill}]}
";
    let (_folder, path) = written("rules/new-checkout.yaml", test, &[]);
    let file = loaded(&path);
    let [seen, unseen] = [false, true].map(|hurried| played(&file, Way { whole: false, hurried, ..WAY }).remove(0));
    assert!(!seen.decisions.is_empty());
    assert_eq!(seen.decisions, unseen.decisions);
    assert_ne!(seen.looks, unseen.looks, "what is only shown was left out");
}

/// Minutes of exposures and requests, of which those of one bucket fail from the third minute on.
fn recording() -> String {
    let mut text = String::new();
    for n in 0..3_000_i64 {
        let (ts, bucket) = (1_764_666_000_000 + n * 100, if n % 2 == 0 { "control" } else { "treatment" });
        let error = n > 1_800 && n % 2 == 1 && n % 3 == 0;
        let _ = writeln!(
            text,
            r#"{{"event":"exposure","ts":{ts},"experiment":"one-page","bucket":"{bucket}","tenant_id":"t","user_id":"u{n}"}}"#
        );
        // Some come out of order.
        let at = ts + if n % 10 == 0 { -400 } else { 50 };
        let _ = writeln!(
            text,
            r#"{{"event":"request","ts":{at},"tenant_id":"t","user_id":"u{n}","latency_ms":{},"error":{error}}}"#,
            100 + n % 70
        );
    }
    text
}

#[test]
fn a_recording_gives_the_decisions_of_backtest() {
    let test = "guardrail_test: v1
cases:
  - name: alone
    events: day.ndjson
    operations: [{at: 1m, do: hold, for: 10s}]
    expect: [{acts: rollback, guardrail: error_rate, from: 3m, times: 1}, {stop: true}]
  - {name: beside others, for: 5m, traffic: {units: 1/s, errors: {rate: 0%}}, events: day.ndjson, expect: [{acts: rollback, from: 3m}]}
";
    let (folder, path) = written("tests/rule_tests/rule.yaml", test, &[("day.ndjson", &recording())]);
    let file = loaded(&path);
    let seen = played(&file, WAY);
    for (case, seen) in file.suites[0].cases.iter().zip(&seen) {
        case.expect.iter().for_each(|e| assert_eq!(judge::judge(e, seen), Ok(()), "{}", case.name));
    }
    let suite = &file.suites[0];
    let catalog = Catalog::new(vec![Arc::clone(&suite.rule.plan)], suite.fields.clone());
    let events = [folder.path().join("day.ndjson")];
    let recording = Recording { files: &events, source: None, limits: Default::default() };
    let terms = Terms { settings: &Settings::default(), drawn: false, state: None, stop: &AtomicBool::new(false) };
    let side = Side { label: "rules".into(), catalog, text: String::new() };
    let outcome = backtest::run(vec![side], &recording, &terms, |_| ()).unwrap().remove(0);
    assert_eq!((&seen[0].decisions, &seen[0].counts), (&outcome.decisions, &outcome.summary.counts));
}
