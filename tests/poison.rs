//! Invariant 10 of ARCHITECTURE.md: an experiment with a flood of units, values, workflows and buckets harms itself alone, and makes nobody
//! wait.
#![allow(clippy::unwrap_used)]

mod support;

use guardraild::engine::decision::Output;
use guardraild::engine::fleet::Fleet;
use guardraild::engine::pane::Emission;
use guardraild::engine::plan::Settings;
use support::{Partition, bucket_of, catalog, exposure, request, run};

const NEIGHBOUR: &str = "guardrail: v1
overview: {experiment: neighbour, owner: o}
buckets: {control: {baseline: true}, treatment: {}}
guardrails:
  - {metric: latency_p95, window: 10s, limit: 500ms, max_increase: 20%, on_breach: rollback}
  - {metric: error_rate, max_increase: 2pp}
actions: {mode: observe, rollback: {webhook: w}, notify: {slack: s}}
";
const SECONDS: u32 = 60;

/// Ever new users of two buckets; from the middle on, one of them is slow.
fn neighbours() -> Vec<(i64, String)> {
    let visit = |n: u32| {
        let ms = i64::from(n) * 20;
        let latency = if n > SECONDS * 25 && bucket_of(n) == "treatment" { 900.0 } else { 200.0 };
        [(ms, exposure(ms, n, "neighbour", bucket_of(n))), (ms + 1, request(ms + 1, n, latency, false))]
    };
    (0..SECONDS * 50).flat_map(visit).collect()
}

fn poison_rule() -> String {
    let buckets: String =
        (0..32).map(|b| format!("  b{b}: {{weight: 3.125%{}}}\n", if b == 0 { ", baseline: true" } else { "" })).collect();
    format!(
        "guardrail: v1
overview: {{experiment: poison, owner: o}}
buckets:
{buckets}guardrails:
  - {{metric: latency_p99, limit: 500ms, max_increase: 5%, on_breach: notify}}
  - {{metric: abandonment, within: 1m, limit: 50%, on_breach: notify}}
analysis: {{segments: {{by: [cohort], top: 32, act: true}}}}
actions: {{mode: observe, notify: {{slack: s}}}}
"
    )
}

/// 1,500 users a second, each with a value and a workflow of its own, in 32 buckets.
fn poison() -> Vec<(i64, String)> {
    let visit = |n: u64| {
        let ms = (n * 2 / 3) as i64;
        let event = |event: &str, more: String| {
            let ts = support::START + ms;
            (ms, format!(r#"{{"event":"{event}","ts":{ts},"tenant_id":"x","user_id":"p{n}","attributes":{{"cohort":"c{n}"}}{more}}}"#))
        };
        [
            event("exposure", format!(r#","experiment":"poison","bucket":"b{}""#, n % 32)),
            event("workflow_started", format!(r#","workflow":"w","workflow_id":"{n}""#)),
            event("request", format!(r#","latency_ms":{},"error":true"#, n % 5_000)),
        ]
    };
    (0..u64::from(SECONDS) * 1_500).flat_map(visit).collect()
}

#[test]
fn a_poison_experiment_changes_no_decision_of_its_neighbours() {
    let lines = |mut records: Vec<(i64, String)>| -> Vec<String> {
        records.sort_by_key(|(ms, _)| *ms);
        records.into_iter().map(|(_, line)| line).collect()
    };
    let decisions = |said: support::Said| -> Vec<String> {
        let own = said.decisions.iter().filter(|d| d.experiment == "neighbour");
        own.map(|d| serde_json::to_string(d).unwrap()).collect()
    };
    let rule = poison_rule();
    let alone = decisions(run(&[NEIGHBOUR], &lines(neighbours())).0);
    assert!(!alone.is_empty(), "the neighbour is never found out");
    let (said, _) = run(&[NEIGHBOUR, &rule], &lines([neighbours(), poison()].concat()));
    assert_eq!(decisions(said), alone);
}

/// A million values of four attributes, some of which have many users, so that all segments are taken; and one user with all of the requests.
fn flood() -> Vec<(i64, String)> {
    let visit = |n: u64| {
        let ms = (n * 6 / 25) as i64;
        let event = |user: &str, event: &str, more: String| {
            let ts = support::START + ms;
            (ms, format!(r#"{{"event":"{event}","ts":{ts},"tenant_id":"x","user_id":"{user}"{more}}}"#))
        };
        let values: Vec<String> = (0..4).map(|a| format!(r#""a{a}":"v{}""#, if n.is_multiple_of(8) { n / 8 % 40 } else { n })).collect();
        let exposed = format!(r#","experiment":"flood","bucket":"{}","attributes":{{{}}}"#, bucket_of(n as u32), values.join(","));
        [event(&format!("p{n}"), "exposure", exposed), event("p1", "request", format!(r#","latency_ms":{},"error":true"#, n % 5_000))]
    };
    (0..250_000).flat_map(visit).collect()
}

const FLOOD: &str = "guardrail: v1
overview: {experiment: flood, owner: o}
buckets: {control: {baseline: true}, treatment: {}}
guardrails:
  - {metric: latency_p99, limit: 500ms, max_increase: 5%, on_breach: notify}
  - {metric: error_rate, max_increase: 1pp, on_breach: notify}
analysis: {segments: {by: [a0, a1, a2, a3], top: 32, act: true}}
actions: {mode: observe, notify: {slack: s}}
";

/// How long a neighbour waits in the flood is counted in its own records, and in work: what panes hand to the judges beyond the records of
/// the flood itself.
#[test]
fn a_flood_of_values_and_a_hot_user_make_no_verdict_late() {
    struct Seen {
        /// For each of the neighbour's records, up to when all had been judged once it was read.
        judged: Vec<i64>,
        /// Its decisions, and how many of its records had been read.
        decided: Vec<(String, usize)>,
        /// Observations in the largest pane.
        largest: usize,
    }
    let play = |rules: &[&str], mut records: Vec<(i64, String)>| {
        records.sort_by_key(|(ms, _)| *ms);
        let (catalog, settings) = (catalog(rules), Settings::default());
        let (mut partition, mut fleet) = (Partition::new(0, &catalog, &settings), Fleet::new(&catalog, settings.pane));
        let mut seen = Seen { judged: Vec::new(), decided: Vec::new(), largest: 0 };
        for (_, line) in &records {
            partition.read(line);
            let mut out = Output::default();
            for emission in partition.aggregator.drain() {
                if let Emission::Pane(batch) = &emission {
                    seen.largest = seen.largest.max(batch.seen.len());
                }
                fleet.take(emission, &mut out);
            }
            if line.contains("\"x\"") {
                continue;
            }
            seen.judged.push(fleet.judged_to().unwrap_or(0));
            let own = out.decisions.iter().filter(|d| d.experiment == "neighbour");
            seen.decided.extend(own.map(|d| (d.decision.clone(), seen.judged.len())));
        }
        seen
    };
    let alone = play(&[NEIGHBOUR], neighbours());
    let beside = play(&[NEIGHBOUR, FLOOD], [neighbours(), flood()].concat());
    assert!(!alone.decided.is_empty(), "the neighbour is never found out");
    let ids = |seen: &Seen| seen.decided.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&alone), ids(&beside));
    let later = |(a, b): (&(String, usize), &(String, usize))| b.1 > a.1;
    assert!(!alone.decided.iter().zip(&beside.decided).any(later), "{:?}, alone {:?}", beside.decided, alone.decided);
    assert!(alone.judged.iter().zip(&beside.judged).all(|(a, b)| b >= a), "a pane closes no later for what else is in it");
    // Two records a visit, each in its bucket's traffic and in each signal that is asked for, however many segments there are.
    let a_second = 2 * 25_000 / 6;
    assert!(beside.largest < 4 * a_second, "{} observations in a pane, of {a_second} records", beside.largest);
}
