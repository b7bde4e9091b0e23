//! Many experiments that breach at once: all act, and people hear of it once.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::cli::audit::{Finding, audit};
use guardraild::delivery::Router;
use guardraild::engine::decision::{Action, Evidence, HeldBy, LogQuery, Output};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::Kept;
use guardraild::engine::plan::{BlastRadius, FieldTable, Settings};
use guardraild::rules::{RuleSet, parse_str};
use guardraild::store::{Commit, Store};
use std::collections::BTreeMap;
use std::sync::Arc;
use support::*;

const EXPERIMENTS: u32 = 100;

/// Experiments of ten teams, each with a pager of its own; all tell one chat.
fn rule(experiment: u32) -> String {
    format!(
        "guardrail: v1\noverview: {{experiment: exp-{experiment:03}, owner: team}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n\
         guardrails:\n  - {{metric: error_rate, limit: 20%}}\n  - {{metric: latency_p95, limit: 1s, on_breach: page}}\n  - {{metric: tickets, limit: 10%, on_breach: notify}}\n\
         actions: {{mode: enforce, rollback: {{webhook: flags}}, page: {{webhook: pager-{}}}, notify: {{webhook: chat}}, confirm_within: 30s}}\n",
        experiment % 10
    )
}

/// Everything fails from the same second on, in all experiments but the last; stamped, and each experiment in a partition of its own choice.
fn outage(partition: u32) -> Vec<String> {
    let mut lines = Vec::new();
    for second in 0..110i64 {
        for experiment in (0..EXPERIMENTS).filter(|e| e % 3 == partition) {
            for i in 0..4u32 {
                let (ms, bad) = (second * 1_000 + i64::from(i) * 200, second >= 30 && experiment != EXPERIMENTS - 1);
                let (ts, user, bucket) = (START + ms, second as u32 * 4 + i, bucket_of(i));
                let latency = if bad { 5_000 } else { 100 };
                let name = format!("exp-{experiment:03}");
                lines.push(exposure(ms, user + experiment * 1_000, &name, bucket));
                lines.push(format!(
                    r#"{{"event":"request","ts":{ts},"experiment":"{name}","bucket":"{bucket}","latency_ms":{latency},"error":{bad}}}"#
                ));
            }
        }
    }
    lines
}

/// What is said when partitions are read in the order of `turns`, a hundred records at a time; nothing is held back.
fn said(rules: &[String], turns: &[usize]) -> Said {
    braked(rules, turns, 0)
}

/// The same, where at most so many experiments are rolled back without a person.
fn braked(rules: &[String], turns: &[usize], most: usize) -> Said {
    let texts: Vec<&str> = rules.iter().map(String::as_str).collect();
    let (catalog, settings) = (catalog(&texts), Settings::default());
    let mut fleet = Fleet::new(&catalog, settings.pane).braking(&BlastRadius { experiments: most, within: 600_000 });
    let mut partitions: Vec<Partition> = (0..3).map(|p| Partition::new(p, &catalog, &settings)).collect();
    (0..3).for_each(|p| fleet.assigned(p));
    let records: Vec<Vec<String>> = (0..3).map(outage).collect();
    let mut next = [0; 3];
    let mut said = Said::default();
    let rest = (0..3).flat_map(|p| std::iter::repeat_n(p, records[p].len() / 100 + 1));
    for p in turns.iter().copied().chain(rest) {
        for line in records[p].iter().skip(next[p]).take(100) {
            partitions[p].read(line);
        }
        next[p] += 100;
        let done = next[p] >= records[p].len();
        done.then(|| partitions[p].aggregator.finish());
        let mut out = Output::default();
        for emission in partitions[p].aggregator.drain() {
            fleet.hear(emission, &mut out);
            // With turns, several panes are judged at once.
            if turns.is_empty() {
                fleet.settle(&mut out);
            }
        }
        fleet.settle(&mut out);
        said.take(out);
    }
    said
}

#[test]
fn a_hundred_experiments_act_and_page_each_team_once() {
    let texts: Vec<String> = (0..EXPERIMENTS).map(rule).collect();
    let said = said(&texts, &[]);
    let of = |guardrail: &str| said.decisions.iter().filter(|d| d.guardrail == guardrail && d.criterion == "limit").count();
    assert_eq!([of("error_rate"), of("latency_p95")], [99, 99], "each decides for itself");
    let shared: Vec<_> = said.decisions.iter().filter(|d| d.criterion == "shared_cause").collect();
    let kinds: Vec<&str> = shared.iter().map(|d| d.guardrail.as_str()).collect();
    assert_eq!(kinds, ["latency_p95", "error_rate", "confirm_within"], "{shared:#?}");
    for decision in &shared {
        let Evidence::SharedCause { count, live, experiments, .. } = &decision.evidence else { panic!("{decision:?}") };
        assert_eq!((*count, *live, experiments.len()), (99, 100, 99), "{}", decision.reason);
        assert!(matches!(audit(&serde_json::to_value(decision).unwrap()), Finding::Ok(_)));
    }
    assert!(
        shared[0].reason.starts_with("latency_p95 in 99 of 100 experiments within 1 s suggests a shared cause"),
        "{}",
        shared[0].reason
    );
    assert!(shared[0].reason.ends_with("exp-008, exp-009 and 89 more"), "{}", shared[0].reason);

    // As the judging thread does.
    let mut fields = FieldTable::default();
    let parse = |text: &String| parse_str("rule.yaml", text, &mut fields, None).rule.unwrap();
    let rules: BTreeMap<String, Arc<RuleSet>> = texts.iter().map(parse).map(|r| (r.plan.experiment.clone(), Arc::new(r))).collect();
    let router = Router::default();
    let deliver = |d: &guardraild::engine::decision::Decision| match rules.get(&d.experiment) {
        Some(rule) => router.decision(rule, d, None),
        None => router.shared(&rules, d, None),
    };
    let decisions = || said.decisions.iter().map(|d| (d.clone(), deliver(d))).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path().join("state.db")).unwrap();
    store.commit(&Commit { decisions: decisions(), log: said.log.clone(), ..Commit::default() }).unwrap();
    let again = store.commit(&Commit { decisions: decisions(), log: said.log.clone(), ..Commit::default() }).unwrap();
    assert_eq!((again.new.len(), again.deliveries), (0, 0), "a replay tells nobody anything");
    let outbox = store.outbox(1_000).unwrap();
    let sent = |endpoint: &str| outbox.iter().filter(|d| d.endpoint == endpoint).count();
    assert_eq!(sent("flags"), 99, "every rollback goes out");
    let paged: Vec<usize> = (0..10).map(|team| sent(&format!("pager-{team}"))).collect();
    assert_eq!(paged, [3; 10], "a page for each of the three kinds");
    assert_eq!(sent("chat"), 0);
    let alert = outbox.iter().find(|d| d.endpoint == "pager-3" && d.decision == shared[1].decision).unwrap();
    assert!(alert.event_type == "guardrail.alert" && alert.payload.contains("\"exp-098\""), "{}", alert.payload);
    assert_eq!(store.decision(&shared[0].decision).unwrap().unwrap().id, shared[0].decision);
    let log = store.log("exp-042", &LogQuery::first(100)).unwrap();
    assert!(log.iter().any(|l| l.entry.text == "error_rate in 99 experiments: one alert is for all"), "{log:?}");
}

#[test]
fn how_partitions_interleave_changes_no_shared_cause() {
    let texts: Vec<String> = (0..EXPERIMENTS).map(rule).collect();
    let lines = |turns: &[usize]| {
        let mut lines = said(&texts, turns).lines();
        lines.sort();
        lines
    };
    let turns: Vec<usize> = (0..400).map(|i| [0, 2, 1, 1, 0, 2, 2][i % 7]).collect();
    assert!(lines(&[]) == lines(&turns));
}

#[test]
fn two_experiments_are_no_shared_cause() {
    let texts: Vec<String> = [0, 1, EXPERIMENTS - 1].map(rule).to_vec();
    let said = said(&texts, &[]);
    assert!(said.decisions.iter().any(|d| d.action == Action::Page && d.criterion == "limit"));
    assert!(said.decisions.iter().all(|d| d.shared_cause.is_none() && d.criterion != "shared_cause"), "{:?}", said.decisions);
}

#[test]
fn beyond_the_blast_radius_rollbacks_wait_for_a_person_and_so_does_what_would_follow() {
    let texts: Vec<String> = (0..EXPERIMENTS)
        .map(|i| rule(i).replace("confirm_within: 30s", "kill: {webhook: flags}, confirm_within: 30s, unconfirmed: [kill, page]"))
        .collect();
    let said = braked(&texts, &[], 20);
    let rollbacks: Vec<_> = said.decisions.iter().filter(|d| d.action == Action::Rollback).collect();
    let held: Vec<_> = rollbacks.iter().filter(|d| d.held_by == Some(HeldBy::BlastRadius)).collect();
    assert_eq!((rollbacks.len(), held.len()), (99, 79), "all are decided");
    assert!(
        held[0].reason.ends_with("; held back: 20 experiments in 600 s is the most that are rolled back without a person"),
        "{}",
        held[0].reason
    );
    let kills = |by: Option<HeldBy>| said.decisions.iter().filter(|d| d.action == Action::Kill && d.held_by == by).count();
    assert_eq!((kills(None), kills(Some(HeldBy::Rollback))), (20, 79), "nothing was sent that could be confirmed");

    let mut fields = FieldTable::default();
    let parse = |text: &String| parse_str("rule.yaml", text, &mut fields, None).rule.unwrap();
    let rules: BTreeMap<String, RuleSet> = texts.iter().map(parse).map(|r| (r.plan.experiment.clone(), r)).collect();
    let router = Router::default();
    let sent: Vec<_> = said.decisions.iter().filter_map(|d| Some(router.decision(rules.get(&d.experiment)?, d, None))).flatten().collect();
    let flags = sent.iter().filter(|d| d.endpoint == "flags");
    assert_eq!(flags.filter(|d| d.event_type == "guardrail.rollback").count(), 20);

    // Whichever partition speaks first, and with an order of its own in each run.
    let turns: Vec<usize> = (0..600).map(|i| [2, 0, 2, 1, 0][i % 5]).collect();
    let mut other = braked(&texts, &turns, 20).lines();
    let mut lines = said.lines();
    other.sort();
    lines.sort();
    assert_eq!(other, lines);
}

#[test]
fn an_experiment_beyond_its_rate_limit_is_released_by_a_person() {
    use guardraild::engine::judge::{Operation, Operator};
    let text = "guardrail: v1\noverview: {experiment: exp, owner: team}\nbuckets: {control: {baseline: true}, a: {}, b: {}}\nguardrails: [{metric: error_rate, limit: 20%}]\n\
                actions: {mode: enforce, rollback: {webhook: flags}, page: {webhook: pager}, confirm_within: 30s, rate_limit: {rollbacks: 1/h}}\n";
    let (catalog, settings) = (catalog(&[text]), Settings::default());
    let mut fleet = Fleet::new(&catalog, settings.pane);
    let mut partition = Partition::new(0, &catalog, &settings);
    let mut said = Said::default();
    for i in 0..4_000 {
        let (ts, bucket) = (START + i * 10, ["control", "a", "b"][i as usize % 3]);
        let bad = bucket != "control" && i > 1_000 + 500 * i64::from(bucket == "b");
        partition.read(&format!(r#"{{"event":"request","ts":{ts},"experiment":"exp","bucket":"{bucket}","latency_ms":9,"error":{bad}}}"#));
        for emission in partition.aggregator.drain() {
            let mut out = Output::default();
            fleet.take(emission, &mut out);
            said.take(out);
        }
    }
    let by_machine: Vec<_> = said.decisions.iter().map(|d| (d.bucket.as_str(), d.action, d.held_by)).collect();
    assert_eq!(by_machine[..2], [("a", Action::Rollback, None), ("b", Action::Rollback, Some(HeldBy::RateLimit))]);
    let stopped = |fleet: &Fleet| fleet.close_view("exp").unwrap().buckets[2].stopped.clone().unwrap();
    assert_eq!(stopped(&fleet).confirmation, "held");
    let operation = Operation::Act(Action::Rollback);
    let operator = Operator { operation, bucket: Some("b".into()), author: "ann".into(), reason: "seen it".into(), at: START + 40_000 };
    let mut out = Output::default();
    fleet.operate("exp", &operator, &mut out).unwrap().unwrap();
    assert_eq!((out.decisions.len(), out.decisions[0].held_by), (1, None));
    assert_eq!((stopped(&fleet).decision, stopped(&fleet).confirmation), (out.decisions[0].decision.clone(), "waiting".to_owned()));
    // As after a restart.
    let kept = fleet.snapshot(true).unwrap();
    let mut again = Fleet::restore(&catalog, settings.pane, &Kept::of(kept.clone())).unwrap().fleet;
    assert_eq!(again.snapshot(true).unwrap(), kept);
}
