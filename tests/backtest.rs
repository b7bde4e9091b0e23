//! Backtests of several rule sets, and ones that are interrupted.

#![allow(clippy::unwrap_used)]

mod support;

use guardraild::engine::plan::Settings;
use guardraild::ingest::decode::Limits;
use guardraild::ingest::file::Recording;
use guardraild::tools::backtest::compare::compare;
use guardraild::tools::backtest::{self, BacktestError, Heard, Outcome, Side, Terms};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use support::{bucket_of, exposure, request};

const RULE: &str = "\
guardrail: v1
overview: {experiment: exp, owner: me}
buckets: {control: {baseline: true}, treatment: {}}
guardrails:
  - {metric: latency_p95, window: 30s, limit: LIMIT}
  - {metric: error_rate, window: 30s, limit: 60%}
analysis: {alpha: 0.05}
actions: {mode: enforce, rollback: {webhook: flags}}
";

fn side(limit: &str) -> Side {
    let text = RULE.replace("LIMIT", limit);
    Side { label: limit.to_owned(), catalog: support::catalog(&[&text]), text }
}

/// Latency of treatment rises by steps; 40 users, in two files that are merged.
fn recordings(dir: &Path) -> Vec<PathBuf> {
    let mut files = [String::new(), String::new()];
    for second in 0..600i64 {
        for user in (0..40u32).filter(|user| (i64::from(*user) + second) % 4 == 0) {
            let ms = second * 1_000 + i64::from(user) * 7;
            let latency = if bucket_of(user) == "treatment" { 100.0 + second as f64 } else { 100.0 + (second % 9) as f64 };
            let file = &mut files[user as usize % 2];
            *file += &(exposure(ms, user, "exp", bucket_of(user)) + "\n" + &request(ms + 5, user, latency, false) + "\n");
        }
        files[0] += "not a record\n";
    }
    let named = ["a.ndjson", "b.ndjson.zst"].map(|name| dir.join(name));
    std::fs::write(&named[0], &files[0]).unwrap();
    std::fs::write(&named[1], zstd::encode_all(files[1].as_bytes(), 1).unwrap()).unwrap();
    named.to_vec()
}

fn run(limits: &[&str], files: &[PathBuf], state: Option<&Path>, stop_at: Option<u64>) -> Result<Vec<Outcome>, BacktestError> {
    let (settings, stop, mut decided) = (Settings::default(), AtomicBool::new(stop_at == Some(0)), 0);
    let terms = Terms { settings: &settings, drawn: true, state, stop: &stop };
    let recording = Recording { files, source: None, limits: Limits::default() };
    backtest::run(limits.iter().map(|limit| side(limit)).collect(), &recording, &terms, |heard| {
        if let Heard::Decided(..) = heard {
            decided += 1;
            stop.store(stop_at.is_some_and(|at| decided >= at), Ordering::Relaxed);
        }
    })
}

fn said(outcomes: &[Outcome]) -> Vec<String> {
    outcomes.iter().map(|o| serde_json::to_string(&o.decisions).unwrap() + &serde_json::to_string(&o.summary).unwrap()).collect()
}

#[test]
fn rule_sets_side_by_side_decide_as_each_alone() {
    let dir = tempfile::tempdir().unwrap();
    let files = recordings(dir.path());
    let limits = ["400ms", "250ms", "2s"];
    let together = run(&limits, &files, None, None).unwrap();
    let alone: Vec<String> = limits.iter().flat_map(|limit| said(&run(&[limit], &files, None, None).unwrap())).collect();
    assert_eq!(said(&together), alone);

    let named: Vec<_> = limits.iter().copied().zip(&together).collect();
    let rows = compare(&named);
    assert_eq!(rows.iter().map(|row| row.guardrail.as_str()).collect::<Vec<_>>(), ["error_rate", "latency_p95"]);
    assert!(rows[0].rules.iter().all(|cell| cell.first.is_none() && cell.verdict.is_some()));
    let [late, early, never] = &rows[1].rules[..] else { panic!("{rows:?}") };
    let (late, early) = (late.first.as_ref().unwrap(), early.first.as_ref().unwrap());
    assert_eq!((late.lead_ms, early.lead_ms), (None, Some(late.decided_at - early.decided_at)));
    assert!(early.lead_ms.unwrap() > 60_000 && never.first.is_none(), "{rows:?}");
}

#[test]
fn a_report_shows_every_guardrail_by_each_rule_set_and_asks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let files = recordings(dir.path());
    let outcomes = run(&["400ms", "250ms"], &files, None, None).unwrap();
    let page = backtest::report::page("<all> of it", &[("today", &outcomes[0]), ("<tighter>", &outcomes[1])]);
    assert_eq!(page.matches("<figure>").count(), 4, "two guardrails by two rule sets");
    assert_eq!(page.matches("class=\"marked decision\"").count(), outcomes.iter().map(|o| o.decisions.len()).sum::<usize>());
    for said in ["limit 400 ms", "limit 250 ms", " earlier)", "rejected because", "not_json"] {
        assert!(page.contains(said), "{said} is not there");
    }
    assert!(page.contains("&lt;tighter&gt;") && page.contains("&lt;all&gt;") && !page.contains("<tighter>"));
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<script"), "it needs nothing from anywhere");
    // The same whether or not it was interrupted.
    let state = dir.path().join("state");
    for _ in 0..3 {
        assert!(run(&["400ms"], &files, Some(&state), Some(0)).is_err());
    }
    let resumed = run(&["400ms"], &files, Some(&state), None).unwrap();
    assert_eq!(resumed[0].courses, outcomes[0].courses);
}

#[test]
fn an_interrupted_backtest_goes_on_and_says_what_an_uninterrupted_one_would() {
    let dir = tempfile::tempdir().unwrap();
    let (files, state, limits) = (recordings(dir.path()), dir.path().join("state"), ["400ms", "250ms"]);
    let whole = said(&run(&limits, &files, None, None).unwrap());
    // At the very beginning, after the first decision, and once more where it goes on.
    for stop_at in [0, 1, 0, 2] {
        match run(&limits, &files, Some(&state), Some(stop_at)) {
            Err(BacktestError::Interrupted) => {}
            Err(error) => panic!("{error}"),
            Ok(outcomes) => assert_eq!(said(&outcomes), whole, "it had ended before it could stop"),
        }
    }
    assert_eq!(said(&run(&limits, &files, Some(&state), None).unwrap()), whole);
    assert!(!state.exists(), "what has ended leaves nothing behind");
}

#[test]
fn a_state_of_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (files, state) = (recordings(dir.path()), dir.path().join("state"));
    let stopped = || run(&["400ms"], &files, Some(&state), Some(0)).err().map(|e| e.to_string());
    assert_eq!(stopped().as_deref(), Some("interrupted"));
    let other = run(&["300ms"], &files, Some(&state), None).err().unwrap().to_string();
    assert!(other.contains("state of another backtest: its rules differ"), "{other}");
    let mut text = std::fs::read(&files[0]).unwrap();
    text.extend(b"one more\n");
    std::fs::write(&files[0], text).unwrap();
    let other = stopped().unwrap();
    assert!(other.contains("its recordings differ. Name another directory, or remove it"), "{other}");
}
