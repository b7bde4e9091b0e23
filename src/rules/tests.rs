use super::*;
use crate::engine::decision::Mode;
use crate::engine::plan::{FieldTable, Margin, Match, QualityKind, Signal, Source, Statistic, Value};
use std::fs;

const SHORTEST: &str = "guardrail: v1
overview: {experiment: new-checkout, owner: checkout}
buckets: {control: {baseline: true}, treatment: {}}
guardrails:
  - {metric: latency_p95, max_increase: 10%}
  - {metric: error_rate, max_increase: 0.5pp}
actions:
  mode: enforce
  rollback: {webhook: flag-service}
";

fn whole() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/rules/new-checkout.yaml")).unwrap()
}

fn good(text: &str) -> (RuleSet, FieldTable) {
    let mut fields = FieldTable::default();
    let parsed = parse_str("test.yaml", text, &mut fields, None);
    assert!(parsed.diagnostics.is_empty(), "{}", parsed.diagnostics.iter().map(|d| d.human(false)).collect::<String>());
    (parsed.rule.unwrap(), fields)
}

#[test]
fn the_shortest_file_gets_the_defaults() {
    let (rule, fields) = good(SHORTEST);
    let plan = &rule.plan;
    assert_eq!((plan.experiment.as_str(), plan.revision, plan.mode), ("new-checkout", 1, Mode::Enforce));
    assert_eq!(
        plan.buckets.iter().map(|b| (b.name.as_str(), b.weight, b.baseline)).collect::<Vec<_>>(),
        [("control", 0.5, true), ("treatment", 0.5, false)]
    );
    assert_eq!((plan.alpha, plan.min_units, plan.confirm_within), (0.01, 100, 120_000));
    assert_eq!(plan.unconfirmed, [Action::Notify]);
    assert!(plan.starts.is_none() && plan.ends.is_none() && plan.phases.is_empty() && fields.entries.is_empty());
    let latency = &plan.guardrails[0];
    assert_eq!((latency.window, latency.hold, latency.on_breach, latency.unit.as_str()), (600_000, 0, Action::Rollback, "ms"));
    assert_eq!((latency.limit, latency.max_increase), (None, Some(Margin::Relative(0.1))));
    assert_eq!(latency.statistic, Statistic::Quantile { ppm: 950_000 });
    assert_eq!(plan.guardrails[1].max_increase, Some(Margin::Absolute(0.005)));
    assert_eq!(plan.guardrails[1].unit, "%");
    let quality: Vec<_> = plan.quality.iter().map(|q| (q.kind.name(), q.action)).collect();
    assert_eq!(
        quality,
        [("srm", Action::Pause), ("mixed_assignment", Action::Pause), ("schema_violations", Action::Hold), ("silence", Action::Hold)]
    );
    assert_eq!(plan.quality[3].kind, QualityKind::Silence { after: 180_000 });
    assert_eq!(rule.routes[&Action::Rollback], Route { channel: Channel::Webhook, endpoint: "flag-service".into(), body: None });
}

#[test]
fn the_whole_file_is_compiled() {
    let (rule, fields) = good(&whole());
    let plan = &rule.plan;
    assert_eq!(plan.starts, Some(1_796_115_600_000));
    assert_eq!(plan.phases, ["canary", "phase 2", "phase 3", "phase 4"]);
    let names: Vec<_> = plan.guardrails.iter().map(|g| (g.name.as_str(), g.on_breach)).collect();
    assert_eq!(
        names,
        [
            ("latency_p95", Action::Rollback),
            ("search_p99", Action::Notify),
            ("error_rate", Action::Rollback),
            ("abandonment", Action::Pause),
            ("tickets", Action::Notify),
            ("compliance_flags", Action::Kill)
        ]
    );
    assert_eq!((plan.guardrails[0].limit, plan.guardrails[2].limit, plan.guardrails[5].limit), (Some(1500.0), Some(0.05), Some(0.0)));
    assert_eq!((plan.guardrails[2].hold, plan.guardrails[4].window), (30_000, 21_600_000));
    assert_eq!(fields.entries[1], ("request".to_owned(), "/route".to_owned()));
    let search = Source { event: "request".into(), filter: vec![(1, Match::Text("/search".into()))] };
    assert_eq!(plan.signals[1], Signal::Distribution { source: search, value: Value::Latency });
    assert_eq!(plan.signals[3], Signal::Abandonment { within: 1_800_000, workflow: None });
    assert_eq!(plan.unconfirmed, [Action::Kill, Action::Page]);
    assert_eq!(plan.quality.len(), 7);
    assert_eq!(rule.runbook.as_deref(), Some("https://wiki.example/new-checkout"));
    assert_eq!(rule.routes.len(), 5);
    assert_eq!(rule.routes[&Action::Rollback].body, Some(serde_json::json!({"flag": "new-checkout", "serve": "control"})));
}
