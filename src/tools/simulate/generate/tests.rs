use super::*;
use crate::engine::plan::{FieldTable, Settings};
use crate::rules::{Planning, parse_str};
use crate::tools::simulate::traffic::{Phase, Spread, Traffic};
use crate::tools::simulate::{Effect, read};
use std::sync::Arc;

const RULE: &str = "\
guardrail: v1
overview: {experiment: e, owner: o}
buckets: {control: {baseline: true, weight: 80%}, treatment: {weight: 20%}}
metrics:
  orders: {kind: rate, event: outcome, where: {metric: order}, unit: user, better: up, baseline: 30%}
  basket: {kind: mean, event: outcome, where: {metric: basket}, unit: user, better: up, covariate: /covariate}
  search_p99: {kind: quantile, q: 0.99, event: request, where: {route: /search}, value: /latency_ms}
guardrails:
  - {metric: latency_p95, max_increase: 10%}
  - {metric: error_rate, max_increase: 0.5pp}
  - {metric: abandonment, max_increase: 1pp}
  - {metric: tickets, max_increase: 20%}
  - {metric: search_p99, max_increase: 10%}
  - {metric: orders, max_increase: 1%}
  - {metric: basket, max_increase: 1%}
actions: {mode: observe}
";

pub fn spec(rule: &str, traffic: &str, seconds: i64) -> Spec {
    let mut fields = FieldTable::default();
    let parsed = parse_str("rule.yaml", rule, &mut fields, None);
    let rule_set = parsed.rule.unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
    let base = Traffic::of(&rule_set.plan, &Planning::of(rule));
    let traffic = read("traffic.yaml", traffic, &rule_set.plan, &base).unwrap_or_else(|f| panic!("{f:?}"));
    Spec::new(Arc::unwrap_or_clone(rule_set.plan), fields, Settings::default(), traffic, seconds * 1_000).unwrap()
}

/// Events as text, in order.
fn events(spec: &Spec, harm: Option<&Harm>, seed: u64) -> Vec<String> {
    let mut generator = Generator::new(spec, harm.map_or(&[][..], std::slice::from_ref), Draw::new(seed, 0, 0));
    let mut all = Vec::new();
    let mut last = 0;
    while let Some(end) = generator.pane(|event, _| {
        assert!(event.ts >= last && event.ts >= spec.start, "time goes back");
        last = event.ts;
        all.push(format!("{event:?}"));
    }) {
        assert!(last < spec.start + end);
    }
    assert_eq!(generator.events(), all.len() as u64);
    all
}

const BUSY: &str = "traffic: v1\nunits: 50/s\nrequests: {per_unit: 3, gap: 1s}\nerrors: {rate: 10%}\ntickets: 10%\nworkflows: {share: 50%, completes: 1s}\nmetrics: {orders: {delay: 1s}, basket: {delay: 1s}}\n";

#[test]
fn a_seed_gives_the_same_events_and_another_seed_others() {
    let spec = spec(RULE, BUSY, 20);
    let first = events(&spec, None, 1);
    assert_eq!(first, events(&spec, None, 1));
    assert_ne!(first, events(&spec, None, 2));
}

#[test]
fn shares_rates_and_numbers_are_as_described() {
    let spec = spec(RULE, BUSY, 400);
    let mut generator = Generator::new(&spec, &[], Draw::new(3, 0, 0));
    let [mut exposures, mut treated, mut requests, mut errors, mut searches, mut slow, mut tickets, mut orders] = [0f64; 8];
    let [mut started, mut completed] = [0f64; 2];
    let p95 = spec.value("latency_p95", crate::engine::plan::Statistic::Quantile { ppm: 950_000 }).unwrap();
    while generator
        .pane(|event, _| match &event.kind {
            Kind::Exposure => {
                exposures += 1.0;
                treated += f64::from(u8::from(event.bucket.as_deref() == Some("treatment")));
            }
            Kind::Request { latency_ms, error } => {
                requests += 1.0;
                errors += f64::from(u8::from(*error));
                searches += f64::from(u8::from(!event.fields.is_empty()));
                slow += f64::from(u8::from(latency_ms.unwrap() > p95));
            }
            Kind::Ticket => tickets += 1.0,
            Kind::Outcome { metric, value, .. } if metric == "orders" => orders += value,
            Kind::Workflow { step: Step::Started, .. } => started += 1.0,
            Kind::Workflow { step: Step::Completed, .. } => completed += 1.0,
            _ => {}
        })
        .is_some()
    {}
    // 20,000 units: within five standard errors.
    let near = |got: f64, n: f64, p: f64, what: &str| {
        let slack = 5.0 * (p * (1.0 - p) / n).sqrt() + 0.005;
        assert!((got / n - p).abs() < slack, "{what}: {} of {n}, not {p}", got / n);
    };
    assert!((exposures - 20_000.0).abs() < 5.0 * 20_000f64.sqrt(), "{exposures}");
    near(treated, exposures, 0.2, "treated");
    near(requests / 10.0, exposures, 0.3, "requests");
    near(errors, requests, 0.1, "errors");
    near(searches, requests, 0.2, "searches");
    near(slow, requests, 0.05, "slow");
    near(orders, exposures, 0.3, "orders");
    near(started, exposures, 0.5, "started");
    near(completed, started, 0.8, "completed");
    // Those of the last minute have not come yet.
    assert!((0.07..0.11).contains(&(tickets / exposures)), "{}", tickets / exposures);
}

#[test]
fn an_effect_changes_one_bucket_from_its_onset_on() {
    let spec = spec(RULE, BUSY, 60);
    let effect = Effect::parse("error_rate=+80pp", &spec.plan).unwrap();
    let harm = Harm { bucket: 1, world: spec.world(&effect), segment: None, onset: 30_000, until: Millis::MAX };
    let mut generator = Generator::new(&spec, std::slice::from_ref(&harm), Draw::new(4, 0, 0));
    let mut treated = std::collections::BTreeSet::new();
    let mut errors = [[0.0; 2]; 4];
    while generator
        .pane(|event, _| match &event.kind {
            Kind::Exposure if event.bucket.as_deref() == Some("treatment") => {
                treated.insert(event.user_id.clone().unwrap().into_owned());
            }
            Kind::Request { error, .. } => {
                let late = usize::from(event.ts >= spec.start + 30_000);
                let cell = &mut errors[2 * late + usize::from(treated.contains(event.user_id.as_deref().unwrap()))];
                cell[0] += f64::from(u8::from(*error));
                cell[1] += 1.0;
            }
            _ => {}
        })
        .is_some()
    {}
    let rates: Vec<f64> = errors.iter().map(|[x, n]| x / n).collect();
    assert!(rates[..3].iter().all(|r| (0.05..0.16).contains(r)) && rates[3] > 0.8, "{rates:?}");
}

#[test]
fn an_effect_in_a_segment_leaves_the_others_alone() {
    let spec = spec(RULE, &format!("{BUSY}segments: {{device: {{ios: 30%, web: 70%}}, region: {{eu: 50%, uk: 50%}}}}\n"), 60);
    let effect = Effect::parse("error_rate=+80pp", &spec.plan).unwrap();
    let segment = spec.segment("region=uk");
    assert_eq!((segment, spec.segment("region=us"), spec.segment("uk")), (Some((1, 1)), None, None));
    let harm = Harm { bucket: 1, world: spec.world(&effect), segment, onset: 0, until: Millis::MAX };
    let mut generator = Generator::new(&spec, std::slice::from_ref(&harm), Draw::new(4, 0, 0));
    let mut units = std::collections::BTreeMap::new();
    let mut errors = [[0.0; 2]; 4];
    while generator
        .pane(|event, _| match &event.kind {
            Kind::Exposure => {
                let treated = event.bucket.as_deref() == Some("treatment");
                units.insert(
                    event.user_id.clone().unwrap().into_owned(),
                    2 * usize::from(treated) + usize::from(event.attributes[1].1 == "uk"),
                );
            }
            Kind::Request { error, .. } => {
                let cell = &mut errors[units[event.user_id.as_deref().unwrap()]];
                cell[0] += f64::from(u8::from(*error));
                cell[1] += 1.0;
            }
            _ => {}
        })
        .is_some()
    {}
    let rates: Vec<f64> = errors.iter().map(|[x, n]| x / n).collect();
    assert!(rates[..3].iter().all(|r| (0.05..0.16).contains(r)) && rates[3] > 0.8, "{rates:?}");
}

#[test]
fn phases_change_traffic_and_shares_and_say_so() {
    let mut spec = spec(RULE, BUSY, 90);
    spec.traffic.requests.distribution = Spread::Fixed;
    let phase = |traffic, weights: Option<Vec<f64>>| Phase { traffic, span: Some(30_000), weights };
    spec.traffic.phases = vec![phase(1.0, None), phase(0.2, None), phase(1.0, Some(vec![0.5, 0.5]))];
    let mut generator = Generator::new(&spec, &[], Draw::new(5, 0, 0));
    let mut said = Vec::new();
    let mut exposed = [[0.0; 2]; 3];
    while generator
        .pane(|event, _| match &event.kind {
            Kind::Phase { phase, weights } => {
                assert_eq!(*phase, PhaseRef::Index(said.len() as u32 + 1));
                said.push((event.ts - spec.start, weights[1].1));
            }
            Kind::Exposure => {
                let third = ((event.ts - spec.start) / 30_000) as usize;
                exposed[third][0] += 1.0;
                exposed[third][1] += f64::from(u8::from(event.bucket.as_deref() == Some("treatment")));
            }
            _ => {}
        })
        .is_some()
    {}
    assert_eq!(said, [(30_000, 0.2), (60_000, 0.5)]);
    let [first, second, third] = exposed;
    assert!((0.1..0.3).contains(&(second[0] / first[0])), "{exposed:?}");
    assert!(first[1] / first[0] < 0.27 && third[1] / third[0] > 0.43, "{exposed:?}");
}
