use super::*;
use crate::engine::assign::{Algorithm, UnitField};
use crate::engine::decision::Mode;
use crate::engine::eligible::Trait;
use crate::engine::plan::{FieldTable, Hit, Margin, Match, MissingField, QualityKind, Signal, Source, Statistic, Unit, Value};
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
    assert_eq!(plan.phases.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["canary", "phase 2", "phase 3", "phase 4"]);
    assert_eq!((plan.phases[1].traffic, plan.phases[1].span, &plan.phases[1].weights), (0.25, Some(6 * 3_600_000), &None));
    assert_eq!((plan.holdback, plan.watch_after_full, plan.warm_up), (0.05, Some(86_400_000), 300_000));
    let names: Vec<_> = plan.guardrails.iter().map(|g| (g.name.as_str(), g.on_breach)).collect();
    assert_eq!(
        names,
        [
            ("latency_p95", Action::Rollback),
            ("search_p99", Action::Notify),
            ("error_rate", Action::Rollback),
            ("abandonment", Action::Pause),
            ("tickets", Action::Notify),
            ("compliance_flags", Action::Kill),
            ("orders", Action::Rollback)
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

/// The shortest file with other guardrails, and with further sections.
fn with(guardrails: &str, sections: &str) -> String {
    let at = SHORTEST.find("  - {").unwrap();
    let end = SHORTEST.find("actions:").unwrap();
    format!("{}{guardrails}{}{sections}", &SHORTEST[..at], &SHORTEST[end..])
}

#[test]
fn a_signal_is_carried_once() {
    let text = with(
        "  - {metric: latency_p95, max_increase: 20ms}\n  - {metric: latency_p99, limit: 1.5s}\n  - {metric: latency_p95, limit: 2s, window: 1m}\n  - {metric: tickets, limit: 2%}\n",
        "",
    );
    let (rule, _) = good(&text);
    let guardrails: Vec<_> = rule.plan.guardrails.iter().map(|g| (g.name.as_str(), g.signal, g.limit)).collect();
    assert_eq!(
        guardrails,
        [("latency_p95", 0, None), ("latency_p99", 0, Some(1500.0)), ("latency_p95#2", 0, Some(2000.0)), ("tickets", 1, Some(0.02))]
    );
    assert_eq!(rule.plan.signals.len(), 2);
    assert_eq!(rule.plan.guardrails[0].max_increase, Some(Margin::Absolute(20.0)));
}

#[test]
fn metrics_of_ones_own_read_fields() {
    let guardrails = "  - {metric: cached, max_increase: 1pp}\n  - {metric: retries, limit: 0.5}\n  - {metric: size, limit: 4000, max_increase: 5%}\n  - {metric: failed, max_increase: 0%}\n  - {metric: spent, max_increase: 3%}\n";
    let metrics = "metrics:
  cached: {kind: rate, event: fetch, value: /cache/hit, better: up}
  retries: {kind: count, event: retry, unit: user, where: {attempt: 3, final: true, code: \"3\", a/b: x}}
  size: {kind: quantile, q: 0.5, event: fetch, value: /bytes}
  failed: {kind: rate, event: request, value: /error}
  spent: {kind: mean, event: outcome, unit: event, where: {metric: spend}}
";
    let (rule, fields) = good(&with(guardrails, metrics));
    let plan = &rule.plan;
    let id = |event: &str, pointer: &str| fields.entries.iter().position(|(e, p)| e == event && p == pointer).unwrap() as u16;
    let plain = |event: &str| Source { event: event.into(), filter: vec![] };
    assert_eq!(plan.signals[0], Signal::Rate { source: plain("fetch"), hit: Hit::Field(id("fetch", "/cache/hit")), unit: Unit::Event });
    assert!(!plan.guardrails[0].higher_is_worse && plan.guardrails[1].higher_is_worse);
    let filter = vec![
        (id("retry", "/attempt"), Match::Number(3.0)),
        (id("retry", "/final"), Match::Bool(true)),
        (id("retry", "/code"), Match::Text("3".into())),
        (id("retry", "/a~1b"), Match::Text("x".into())),
    ];
    assert_eq!(plan.signals[1], Signal::Count { source: Source { event: "retry".into(), filter }, unit: Unit::User });
    assert_eq!((plan.guardrails[1].statistic, plan.guardrails[1].unit.as_str()), (Statistic::PerUnit, "per unit"));
    assert_eq!((plan.guardrails[2].limit, plan.guardrails[2].statistic), (Some(4000.0), Statistic::Quantile { ppm: 500_000 }));
    assert_eq!(plan.signals[3], Signal::Rate { source: plain("request"), hit: Hit::Error, unit: Unit::Event });
    assert_eq!(plan.guardrails[3].max_increase, Some(Margin::Relative(0.0)));
    assert!(
        matches!(&plan.signals[4], Signal::Moments { value: Value::Outcome, source, unit: Unit::Event, .. } if source.filter.len() == 1)
    );
}

#[test]
fn quality_checks_are_turned_off_by_name() {
    let (rule, fields) = good(&with(
        "  - {metric: latency_p99, max_increase: 10%}\n",
        "quality: {srm: off, silence: {after: 1m}, missing: {fields: [/latency_ms]}}\n",
    ));
    let kinds: Vec<_> = rule.plan.quality.iter().map(|q| q.kind.clone()).collect();
    let source = Source { event: "request".into(), filter: Vec::new() };
    let field = MissingField { source, pointer: "/latency_ms".into(), field: 0 };
    assert_eq!(
        kinds,
        [
            QualityKind::MixedAssignment { max: 0.01 },
            QualityKind::Missing { fields: vec![field], max: 0.01 },
            QualityKind::SchemaViolations { max: 0.01 },
            QualityKind::Silence { after: 60_000 }
        ]
    );
    assert_eq!(fields.entries, [("request".to_owned(), "/latency_ms".to_owned())]);
}

#[test]
fn eligibility_and_assignment_are_read() {
    let (rule, _) = good(&with(
        "  - {metric: latency_p99, max_increase: 10%}\n",
        "eligibility: {unit: [user_id], population: {region: [eu, 7]}, exclude: {tenant_id: [t-9]}, holdback: 5%,\n  assignment: {algorithm: sha256, overrides: {u-1: treatment}}}\nquality: {ineligible: {}}\n",
    ));
    let set = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
    assert_eq!(rule.plan.eligibility.population, [(Trait::Attribute("region".into()), set(&["eu", "7"]))]);
    assert_eq!(rule.plan.eligibility.exclude, [(Trait::Tenant, set(&["t-9"]))]);
    let assignment = rule.plan.assignment.as_ref().unwrap();
    assert_eq!((assignment.algorithm, assignment.namespace.as_str()), (Algorithm::Sha256, rule.plan.experiment.as_str()));
    assert_eq!((&assignment.unit[..], assignment.holdback), (&[UnitField::User][..], 0.05));
    assert_eq!(assignment.overrides.iter().collect::<Vec<_>>(), [(&"u-1".to_owned(), &1)]);
}

#[test]
fn thirds_are_forgiven_and_spread() {
    let text = SHORTEST.replace(
        "{control: {baseline: true}, treatment: {}}",
        "{control: {baseline: true, weight: 33.3%}, a: {weight: 33.3%}, b: {weight: 33.3%}}",
    );
    let (rule, _) = good(&text);
    assert!(rule.plan.buckets.iter().all(|b| (b.weight - 1.0 / 3.0).abs() < 1e-12));
}

#[test]
fn an_observed_experiment_needs_no_receivers() {
    let text = SHORTEST.replace("enforce", "observe").replace("  rollback: {webhook: flag-service}\n", "");
    let (rule, _) = good(&text);
    assert!(rule.plan.guardrails.iter().all(|g| g.on_breach == Action::Notify));
    let asked = text.replace("10%", "10%, on_breach: kill");
    let parsed = parse_str("test.yaml", &asked, &mut FieldTable::default(), None);
    assert_eq!(parsed.diagnostics.iter().map(|d| (d.code, d.severity)).collect::<Vec<_>>(), [("GR2302", Severity::Warning)]);
    assert!(parsed.rule.is_some());
}

#[test]
fn anchors_are_followed() {
    let text = with("  - {metric: latency_p99, max_increase: 10%}\n", "").replace("treatment: {}", "treatment: &none {}, third: *none");
    assert_eq!(good(&text).0.plan.buckets.len(), 3);
}
