//! Invariant 10 of ARCHITECTURE.md: an experiment with a flood of units, values, workflows and buckets harms itself alone.
#![allow(clippy::unwrap_used)]

mod support;

use support::{bucket_of, exposure, request, run};

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
