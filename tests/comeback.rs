//! A rollback that was confirmed and then undone: exposures of the bucket come back.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::engine::decision::{Action, Decision, NoticeKind, Output};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::judge::{Operation, Operator};
use guardraild::engine::kept::Kept;
use guardraild::engine::plan::Settings;
use support::*;

/// Spans of seconds in which the treatment has exposures.
type Shown<'a> = &'a dyn Fn(i64, u32) -> bool;

fn rule(undone: &str) -> String {
    format!(
        "guardrail: v1\noverview: {{experiment: exp, owner: team}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n\
         guardrails:\n  - {{metric: latency_p95, window: 30s, limit: 300ms}}\nactions: {{mode: enforce, rollback: {{webhook: flags}}, \
         page: {{webhook: pager}}, confirm_within: 30s, {undone}}}\n"
    )
}

/// Ten users a second in each bucket, of 400; the treatment is slow from 30 s on.
fn traffic(seconds: i64, shown: Shown<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for second in 0..seconds {
        for i in 0..20u32 {
            let (user, ms) = ((second as u32 * 20 + i) % 400, second * 1_000 + i64::from(i) * 50);
            let treated = bucket_of(user) == "treatment";
            if !treated || shown(second, user) {
                lines.push(exposure(ms, user, "exp", bucket_of(user)));
            }
            lines.push(request(ms + 1, user, if treated && second >= 30 { 900.0 } else { 100.0 }, false));
        }
    }
    lines
}

fn summary(decisions: &[Decision]) -> Vec<(&str, Action)> {
    decisions.iter().map(|d| (d.criterion.as_str(), d.action)).collect()
}

fn confirmation(fleet: &Fleet) -> String {
    fleet.views().remove(0).buckets[1].stopped.as_ref().unwrap().confirmation.clone()
}

#[test]
fn a_rollback_that_is_undone_is_noticed_once_and_done_again_where_the_rule_says_so() {
    let once = |s: i64, _: u32| !(45..100).contains(&s);
    let (said, fleet) = run(&[&rule("")], &traffic(300, &once));
    assert_eq!(summary(&said.decisions), [("limit", Action::Rollback), ("undone", Action::Page)], "by default people are told");
    let undone = &said.decisions[1];
    let delay = undone.decided_at - (START + 100_000);
    assert!((0..8_000).contains(&delay), "decided {delay} ms after they came back");
    assert!(undone.reason.contains("was undone: exposures are back at 1"), "{}", undone.reason);
    assert_eq!((undone.since, confirmation(&fleet).as_str()), (START + 100_000, "undone"));

    // Done again, and obeyed; then undone for good: that is told, and not fought.
    let twice = |s: i64, _: u32| !(45..100).contains(&s) && !(110..160).contains(&s);
    let (said, fleet) = run(&[&rule("undone: [rollback, page]")], &traffic(400, &twice));
    let expected = [("limit", Action::Rollback), ("undone", Action::Rollback), ("undone", Action::Page), ("undone", Action::Page)];
    assert_eq!(summary(&said.decisions), expected);
    let confirmed: Vec<&str> =
        said.notices.iter().filter(|n| n.kind == NoticeKind::Confirmed).map(|n| n.decision.criterion.as_str()).collect();
    assert_eq!((confirmed, confirmation(&fleet).as_str()), (vec!["limit", "undone"], "undone"));
    let mut ids: Vec<&String> = said.decisions.iter().map(|d| &d.decision).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
}

#[test]
fn stragglers_raise_no_alarm() {
    // Six clients of two hundred cached the flag and go on; and a few exposures are an hour late, so to speak.
    let (said, fleet) = run(&[&rule("")], &traffic(400, &|s, user| s < 45 || s > 100 && user % 67 == 0));
    assert_eq!(summary(&said.decisions), [("limit", Action::Rollback)]);
    assert_eq!(confirmation(&fleet), "confirmed");
}

#[test]
fn whoever_moves_the_rollout_or_resumes_expects_exposures() {
    let shown = |s: i64, _: u32| !(45..100).contains(&s);
    let moved = control("phase", 95_000, r#","phase":"next","weights":{"control":0.9,"treatment":0.1}"#);
    let with = |line: String| {
        let mut lines = traffic(200, &shown);
        let at = lines.iter().position(|l| l.contains(&(START + 95_000).to_string())).unwrap();
        lines.insert(at, line);
        lines
    };
    let (said, fleet) = run(&[&rule("")], &with(moved));
    assert_eq!((summary(&said.decisions), confirmation(&fleet).as_str()), (vec![("limit", Action::Rollback)], "confirmed"));

    let (catalog, settings) = (catalog(&[&rule("")]), Settings::default());
    let (mut fleet, mut said) = (Fleet::new(&catalog, settings.pane), Said::default());
    for emission in Partition::new(0, &catalog, &settings).all(&traffic(200, &shown)) {
        let mut out = Output::default();
        fleet.take(emission, &mut out);
        if confirmed(&out) {
            let at = fleet.judged_to().unwrap();
            let resume = Operator { operation: Operation::Resume, bucket: None, author: "sre".into(), reason: "fixed".into(), at };
            fleet.operate("exp", &resume, &mut out).unwrap().unwrap();
        }
        said.take(out);
    }
    assert!(said.decisions.iter().all(|d| d.criterion != "undone"), "{:?}", summary(&said.decisions));
}

fn confirmed(out: &Output) -> bool {
    out.notices.iter().any(|n| n.kind == NoticeKind::Confirmed)
}

#[test]
fn a_restart_in_the_middle_of_a_comeback_changes_nothing() {
    let text = rule("undone: [rollback, page]");
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let emissions = Partition::new(0, &catalog, &settings).all(&traffic(300, &|s, _| !(45..100).contains(&s)));
    let said = |restarts: bool| {
        let (mut fleet, mut said) = (Fleet::new(&catalog, settings.pane), Said::default());
        for emission in &emissions {
            if restarts {
                fleet = restarted(&mut fleet, &mut Kept::default(), &catalog, &settings);
                said.decisions.iter().for_each(|d| fleet.adopt(d));
            }
            let mut out = Output::default();
            fleet.take(emission.clone(), &mut out);
            said.take(out);
        }
        (said.decisions, said.notices, fleet.views())
    };
    assert_eq!(said(true), said(false));
}
