use super::*;
use crate::rules::{Planning, parse_str};
use crate::tools::simulate::read;
use std::sync::Arc;

const RULE: &str = "guardrail: v1\noverview: {experiment: e, owner: o}\nbuckets: {control: {baseline: true}, treatment: {}}\n\
                    guardrails: [{metric: latency_p50, limit: 250ms}, {metric: error_rate, limit: 5%}]\nactions: {mode: observe}\n";

/// Latency twice as high in the treatment, 40 users a second.
fn swept(axes: &[&str], threads: usize) -> (Grid, Swept) {
    let mut fields = FieldTable::default();
    let plan = Arc::unwrap_or_clone(parse_str("rule.yaml", RULE, &mut fields, None).rule.unwrap().plan);
    let base = Traffic::of(&plan, &Planning::of(RULE));
    let traffic = read("t", "traffic: v1\nunits: 20/s\nrequests: {per_unit: 2, gap: 1s}\n", &plan, &base).unwrap();
    let axes = axes.iter().map(|text| Axis::parse(text, &plan).unwrap()).collect();
    let grid = Grid::new(axes, &plan, (&fields, &Settings::default()), &traffic, 60_000).unwrap();
    let effects = vec![Effect::parse("latency_p50=+100%", &plan).unwrap()];
    let questions = Questions { runs: 12, effect_runs: 12, effects, smallest: false, power: 0.8, scale: 1.0 };
    let options = Options { seed: 5, threads, bucket: 1, segment: None, onset: 0 };
    let swept = grid.play(&questions, &options, &AtomicBool::new(false), |_| ());
    (grid, swept)
}

#[test]
fn looser_limits_find_it_later_and_every_combination_is_there() {
    let (grid, swept) = swept(&["latency_p50.limit=250ms,270ms,600ms", "traffic=50%,100%"], 2);
    let named: Vec<String> = swept.points.iter().map(|p| p.settings.join(" ")).collect();
    assert_eq!(named, ["250ms 50%", "250ms 100%", "270ms 50%", "270ms 100%", "600ms 50%", "600ms 100%"]);
    assert_eq!(grid.groups(), [[0, 2, 4], [1, 3, 5]]);
    let units = |i: usize| swept.points[i].healthy.as_ref().unwrap().units_per_run;
    assert_eq!((units(1), units(0)), (units(3), units(2)), "the same units");
    assert!((units(1) / units(0) - 2.0).abs() < 0.2);
    let times: Vec<Option<f64>> = swept.points.iter().map(|p| time(p, 0.8)).collect();
    assert!(times[1] <= times[3] && times[1] < times[0] && times[3].is_some() && times[5].is_none(), "{times:?}");
    let text = swept.human();
    assert_eq!(swept.recommended, Some(1), "{text}");
    assert!(text.contains("\nTake latency_p50.limit 250ms, traffic 100%: half of the runs find it within"), "{text}");
    assert!(text.contains("* 250ms") && text.contains("too often missed by 2 combinations"), "{text}");
    let page = swept.page();
    assert!(page.contains("<svg") && !page.contains("<script"));
}

#[test]
fn a_combination_is_judged_as_if_it_were_simulated_alone_on_any_number_of_threads() {
    let (_, one) = swept(&["limit=5%,8%"], 1);
    let (_, three) = swept(&["limit=5%,8%"], 3);
    assert_eq!(one, three);
    let (_, alone) = swept(&["limit=8%"], 2);
    assert_eq!(alone.points[0], one.points[1]);
    assert!(one.reasons.iter().any(|reason| reason == "limit makes no difference here"), "{:?}", one.reasons);
}

#[test]
fn too_many_combinations_are_refused() {
    let plan = Arc::unwrap_or_clone(parse_str("rule.yaml", RULE, &mut FieldTable::default(), None).rule.unwrap().plan);
    let axis = Axis::parse("alpha=0.01,0.02,0.03,0.04,0.05,0.06,0.07,0.08,0.09", &plan).unwrap();
    let axes = vec![axis.clone(), axis];
    let traffic = Traffic::of(&plan, &Planning::of(RULE));
    let refused = Grid::new(axes, &plan, (&FieldTable::default(), &Settings::default()), &traffic, 60_000).err();
    assert_eq!(refused.as_deref(), Some("81 combinations are too many: 64 at most"));
}
