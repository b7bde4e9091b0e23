use super::*;
use crate::rules::{Planning, parse_str};

fn described(text: &str) -> Result<Traffic, Vec<String>> {
    let rule = std::fs::read_to_string("rules/new-checkout.yaml").unwrap();
    let plan = parse_str("r", &rule, &mut Default::default(), None).rule.unwrap().plan;
    let base = Traffic::of(&plan, &Planning::of(&rule));
    read("t", text, &plan, &base).map_err(|faults| faults.iter().map(|f| format!("{}:{} {}", f.line, f.column, f.code)).collect())
}

#[test]
fn what_is_left_out_is_as_the_rule_says_or_assumed() {
    let traffic = described("traffic: v1\n").unwrap();
    assert_eq!((traffic.units_per_day, traffic.phases.len(), traffic.segments.len()), (120_000.0, 4, 2));
    assert!(matches!(traffic.metrics["orders"].model, Model::Rate { rate } if rate == 0.3));
    assert!(traffic.assumed.iter().any(|key| key == "metrics.search_p99") && !traffic.assumed.iter().any(|key| key == "units"));
}

#[test]
fn every_key_of_the_guide_is_read() {
    let guide = std::fs::read_to_string("docs/simulate.md").unwrap();
    let block = guide.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    // The one metric that the shipped rule file does not guard.
    let block: String = block.lines().filter(|line| !line.contains("basket:")).map(|line| format!("{line}\n")).collect();
    let traffic = described(&block).unwrap();
    assert_eq!(traffic.requests.distribution, Spread::Pareto { tail: 1.5, max: 300.0 });
    assert_eq!((traffic.timeouts, traffic.errors_icc, traffic.tickets, traffic.drift), (0.001, 0.1, 0.005, 0.2));
    assert_eq!(traffic.phases[0].weights.as_deref(), Some(&[0.95, 0.05][..]));
    assert_eq!(traffic.segments[1].1[1], ("uk".to_owned(), 0.4));
    assert_eq!(traffic.assumed, ["segments.device"], "{:?}", traffic.assumed);
}

#[test]
fn faults_are_told_with_their_places() {
    for (text, fault) in [
        ("traffic: v2\n", "1:10 GR1010"),
        ("traffic: v1\nlatencies: {}\n", "2:1 GR1001"),
        ("traffic: v1\nunits: 0/day\n", "2:8 GR2203"),
        ("traffic: v1\nrequests: {per_unit: 0.5}\n", "2:11 GR2203"),
        ("traffic: v1\nrequests: {distribution: pareto, per_unit: 400}\n", "2:11 GR2203"),
        ("traffic: v1\nlatency: {icc: 1}\n", "2:16 GR2203"),
        ("traffic: v1\nlatency: {p50: 0ms}\n", "2:16 GR2404"),
        ("traffic: v1\ntickets: 5ms\n", "2:10 GR2003"),
        ("traffic: v1\nmetrics: {orders: {mean: 3}}\n", "2:20 GR2503"),
        ("traffic: v1\nphases: []\n", "2:9 GR1003"),
        ("traffic: v1\nphases: [{traffic: 0%}]\n", "2:10 GR2203"),
        ("traffic: v1\nphases: [{weights: {control: 100%, treatmnt: 0%}}]\n", "2:36 GR2507"),
        ("traffic: v1\nsegments: {region: {}}\n", "2:20 GR2101"),
        ("{", "1:1 GR1007"),
    ] {
        assert_eq!(described(text).unwrap_err(), [fault], "{text}");
    }
}
