//! Decisions byte for byte: each case of `tests/golden` is a rule file, a recording, and what `backtest --output json` says of them.
//!
//! `GUARDRAILD_UPDATE=1 cargo test --test golden` writes recordings and decisions anew.

#![allow(clippy::unwrap_used)]

mod support;

use guardraild::engine::decision::{Action, Decision, Verdict};
use guardraild::engine::state::Stage;
use guardraild::rules;
use guardraild::tools::backtest::{Outcome, Side, Summary};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::{bucket_of, control, exposure, request, unit_event, workflow};

/// Users of a case; even ones are in control.
const USERS: u32 = 12;

fn file(name: &str, kind: &str) -> PathBuf {
    Path::new("tests/golden").join(format!("{name}.{kind}"))
}

/// The file says `text`; or, when asked to, it does from now on.
fn holds(path: &Path, text: &str) {
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
        std::fs::write(path, text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(kept == text, "{} differs, first in line {differs:?} (counted from 0); now it would be\n{text}", path.display());
}

/// Runs the case and compares; returns its decisions and summary.
fn golden(name: &str, recording: &[String]) -> (Vec<Decision>, Summary) {
    holds(&file(name, "ndjson"), &(recording.join("\n") + "\n"));
    let loaded = rules::load(&[file(name, "rules.yaml")], None);
    let shown: Vec<String> = loaded.diagnostics.iter().map(|d| d.human(false)).collect();
    assert!(shown.is_empty(), "{}", shown.join("\n"));
    let side = Side { label: name.to_owned(), catalog: loaded.catalog, text: String::new() };
    let Outcome { decisions, summary, .. } = support::backtest(side, &[file(name, "ndjson")]);
    let mut text: String = decisions.iter().map(|d| serde_json::to_string(d).unwrap() + "\n").collect();
    text += &(json!({ "summary": summary }).to_string() + "\n");
    holds(&file(name, "decisions.jsonl"), &text);
    decisions.iter().for_each(recompute);
    (decisions, summary)
}

/// A decision's evidence gives its log e-value again, by way of `guardraild stats`.
fn recompute(decision: &Decision) {
    if decision.test == "count" {
        assert_eq!(decision.log_e_value, None);
        return;
    }
    let line = json!({ "id": decision.decision, "test": decision.test, "in": decision.evidence }).to_string();
    let mut out = Vec::new();
    guardraild::cli::stats::run(line.as_bytes(), &mut out).unwrap();
    let answer: Value = serde_json::from_slice(&out).unwrap();
    // Abandonment takes the worse of two looks, and pays for it.
    let looks = if decision.guardrail == "abandonment" { 2.0f64 } else { 1.0 };
    let again = answer["out"]["log_e"].as_f64().unwrap_or_else(|| panic!("{answer}")) - looks.ln();
    let said = decision.log_e_value.unwrap();
    assert!((again - said).abs() <= 1e-9 * said.abs(), "{}: {again} instead of {said}", decision.guardrail);
}

/// A request of every user in every second, after the exposure of those that `exposed` lets in; `fare` gives latency and error.
fn traffic(seconds: i64, exposed: impl Fn(i64, u32) -> bool, fare: impl Fn(i64, u32) -> (f64, bool)) -> Vec<String> {
    let mut lines = Vec::new();
    for second in 0..seconds {
        for user in (0..USERS).filter(|user| (i64::from(*user) + second) % 3 == 0) {
            let ms = second * 1_000 + i64::from(user) * 80;
            if exposed(second, user) {
                lines.push(exposure(ms, user, "exp", bucket_of(user)));
            }
            let (latency, error) = fare(second, user);
            lines.push(request(ms + 5, user, latency, error));
        }
    }
    lines
}

fn treated(user: u32) -> bool {
    bucket_of(user) == "treatment"
}

fn merged(mut lines: Vec<String>, more: impl IntoIterator<Item = String>) -> Vec<String> {
    lines.extend(more);
    lines.sort_by_key(|line| serde_json::from_str::<Value>(line).unwrap()["ts"].as_i64());
    lines
}

fn confirmation(summary: &Summary) -> Option<String> {
    summary.experiments[0].buckets.iter().find_map(|b| b.stopped.as_ref()).map(|s| s.confirmation.clone())
}

/// Latency of treatment rises after 20 s.
fn slow(second: i64, user: u32) -> (f64, bool) {
    let base = 100.0 + f64::from(user) + (second % 7) as f64;
    (if treated(user) && second >= 20 { 4.0 * base } else { base }, false)
}

#[test]
fn latency_limit_rolls_back_and_is_confirmed() {
    let lines = traffic(50, |second, user| !treated(user) || second < 30, slow);
    let (decisions, summary) = golden("latency_limit", &lines);
    assert_eq!((decisions.len(), decisions[0].action), (1, Action::Rollback));
    assert_eq!(confirmation(&summary).as_deref(), Some("confirmed"));
}

#[test]
fn unconfirmed_rollback_kills_and_pages() {
    let lines = traffic(50, |_, _| true, slow);
    let (decisions, summary) = golden("unconfirmed", &lines);
    let actions: Vec<Action> = decisions.iter().map(|d| d.action).collect();
    assert_eq!(actions, [Action::Rollback, Action::Kill, Action::Page]);
    assert_eq!(confirmation(&summary).as_deref(), Some("unconfirmed"));
}

#[test]
fn error_rate_must_last() {
    // A spell of errors that ends in time, then one that does not.
    let fare = |second, user| (100.0, treated(user) && ((10..16).contains(&second) || second >= 35));
    let (decisions, _) = golden("error_rate_for", &traffic(60, |_, _| true, fare));
    assert_eq!((decisions.len(), decisions[0].action), (1, Action::Rollback));
    assert!(decisions[0].decided_at >= support::START + 45_000, "{:?}", decisions[0]);
}

#[test]
fn abandonment_needs_no_event_to_be_seen() {
    let users: Vec<String> = (0..USERS).map(|user| exposure(0, user, "exp", bucket_of(user))).collect();
    let flows = (0..40u32).flat_map(|i| {
        let (user, ms) = (i % USERS, 1_000 + i64::from(i) * 100);
        let started = std::iter::once(workflow(ms, user, "started", i));
        started.chain((!treated(user)).then(|| workflow(ms + 3_000, user, "completed", i)))
    });
    // Time goes on by the traffic of control alone.
    let clock = (1..40).map(|second| request(second * 1_000 + 900, 0, 100.0, false));
    let (decisions, _) = golden("abandonment_timer", &merged(users, flows.chain(clock)));
    assert_eq!((decisions.len(), decisions[0].action), (1, Action::Pause));
}

/// Treatment loses users at the payment. The decision is that of the guardrail; the summary tells where.
#[test]
fn a_funnel_shows_where_workflows_end() {
    let users: Vec<String> = (0..USERS).map(|user| exposure(0, user, "exp", bucket_of(user))).collect();
    let flows = (0..60u32).flat_map(|i| {
        let (user, ms, id) = (i % USERS, 1_000 + i64::from(i) * 100, format!(r#","workflow_id":"w{i}""#));
        let fails = treated(user) && i % 4 != 3;
        let mut lines = vec![workflow(ms, user, "started", i), unit_event("cart", ms + 500, user, &id)];
        lines.extend((!fails).then(|| unit_event("page", ms + 1_000, user, &format!(r#","page":"pay"{id}"#))));
        lines.extend((!fails).then(|| workflow(ms + if i % 10 == 0 { 22_000 } else { 3_000 }, user, "completed", i)));
        lines.extend((fails && i % 3 == 0).then(|| workflow(ms + 2_000, user, "abandoned", i)));
        lines
    });
    let clock = (1..60).map(|second| request(second * 1_000 + 900, 0, 100.0, false));
    let back = (0..4).map(|user| request(90_000_000 + i64::from(user) * 1_000, user, 100.0, false));
    let end = request(200_000_000, 0, 100.0, false);
    let (decisions, summary) = golden("funnel", &merged(users, flows.chain(clock).chain(back).chain([end])));
    assert_eq!((decisions.len(), decisions[0].guardrail.as_str()), (1, "abandonment"));
    let [control, treatment] = [0, 1].map(|b| summary.journeys[0].funnels[0].buckets[b].matured.clone());
    assert_eq!((control.started, control.reached.as_slice(), control.abandoned + control.timed_out), (30, &[30, 30][..], 0));
    assert_eq!((treatment.started, treatment.reached[0], treatment.open), (30, 30, 0));
    assert!(
        treatment.reached[1] < 20 && control.completed > treatment.completed && control.completed_late > 0,
        "{control:?} {treatment:?}"
    );
    let back = &summary.journeys[0].retention[0].buckets;
    assert_eq!((back[0].eligible, back[0].active, back[1].active), (6, 2, 2));
}

#[test]
fn one_compliance_flag_kills() {
    let flag = unit_event("compliance_flag", 8_250, 3, r#","flag":"missing_consent""#);
    let lines = merged(traffic(12, |_, _| true, |_, _| (100.0, false)), [flag]);
    let (decisions, _) = golden("compliance_flag", &lines);
    assert_eq!((decisions.len(), decisions[0].action), (1, Action::Kill));
    assert_eq!(decisions[0].decided_at, support::START + 8_250, "at once, not at the end of its pane");
}

#[test]
fn tickets_per_exposed_unit() {
    let tickets = (0..30).map(|i| unit_event("ticket", 2_000 + i * 300, (i as u32 % 6) * 2 + 1, r#","category":"checkout""#));
    let lines = merged(traffic(15, |_, _| true, |_, _| (100.0, false)), tickets);
    let (decisions, _) = golden("tickets", &lines);
    assert_eq!((decisions.len(), decisions[0].test.as_str()), (1, "poisson"));
}

/// A canary of every tenth user, then everybody: the baseline is empty, limits are watched for two minutes more, and then nothing acts.
#[test]
fn a_ramp_to_full_is_watched_and_done() {
    let phase = control("phase", 60_000, r#","phase":"all""#);
    let users = (0..240i64).flat_map(|second| (0..10u32).map(move |i| (second, second as u32 * 10 + i)));
    let traffic = users.flat_map(|(second, user)| {
        let (ms, treated) = (second * 1_000 + i64::from(user % 10) * 50, second >= 60 || user.is_multiple_of(10));
        // Errors in the watch, and slow requests after it.
        let latency = if second >= 190 { 5_000.0 } else { 100.0 };
        let errs = treated && (100..130).contains(&second) && user.is_multiple_of(3);
        [exposure(ms, user, "exp", if treated { "treatment" } else { "control" }), request(ms + 5, user, latency, errs)]
    });
    let (decisions, summary) = golden("ramp_to_full", &merged(vec![phase], traffic));
    assert_eq!((decisions.len(), decisions[0].guardrail.as_str(), decisions[0].phase), (1, "error_rate", 1));
    assert_eq!(summary.experiments[0].rollout.stage, Stage::Done);
}

#[test]
fn schema_violations_hold_and_the_end_is_not_silence() {
    let bad = (0..30).map(|i| unit_event("request", 20_100 + i * 200, 1, r#","experiment":"exp","bucket":"treatment","latency_ms":-1"#));
    let lines = merged(traffic(30, |_, _| true, |_, _| (100.0, false)), bad);
    let (decisions, summary) = golden("schema_violations", &lines);
    assert_eq!(decisions.len(), 1, "the end of a recording is not silence");
    assert_eq!((decisions[0].guardrail.as_str(), decisions[0].action), ("schema_violations", Action::Hold));
    assert_ne!(summary.experiments[0].verdict, Verdict::Safe);
    assert!(!summary.experiments[0].go);
}
