//! The engine end to end, without I/O: the invariants of ARCHITECTURE.md that concern it, and the guardrails one by one.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::engine::decision::{Action, Decision, NoticeKind, Output, Verdict};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::judge::{Operation, Operator};
use guardraild::engine::kept::Kept;
use guardraild::engine::outcome::Outcome;
use guardraild::engine::pane::Emission;
use guardraild::engine::plan::Settings;
use guardraild::engine::state::{ExperimentState, GuardrailState};
use support::*;

fn rule(guardrails: &str, more: &str) -> String {
    format!(
        "guardrail: v1\noverview: {{experiment: exp, owner: team}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n\
         guardrails:\n{guardrails}\nactions: {{mode: enforce, rollback: {{webhook: flags}}, kill: {{webhook: flags}}, page: {{webhook: pager}}, notify: {{webhook: chat}}, confirm_within: 30s, unconfirmed: [kill, page]}}\n{more}\n"
    )
}

/// `seconds` of traffic, ten users a second in both buckets; `latency` and `error` say how treatment fares at each second.
fn traffic(seconds: i64, latency: impl Fn(i64) -> f64, error: impl Fn(i64, u32) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    for second in 0..seconds {
        for i in 0..20u32 {
            let user = (second as u32 * 20 + i) % 400;
            let ms = second * 1_000 + i64::from(i) * 50;
            let treated = bucket_of(user) == "treatment";
            lines.push(exposure(ms, user, "exp", bucket_of(user)));
            lines.push(request(ms + 1, user, if treated { latency(second) } else { 100.0 }, treated && error(second, i)));
        }
    }
    lines
}

fn state(fleet: &Fleet) -> ExperimentState {
    fleet.views().remove(0)
}

fn guardrail(fleet: &Fleet) -> GuardrailState {
    state(fleet).guardrails.remove(0)
}

#[test]
fn a_latency_limit_rolls_back_once_and_says_why() {
    let rule = rule("  - {metric: latency_p95, window: 1m, limit: 300ms}", "");
    let (said, fleet) = run(&[&rule], &traffic(120, |s| if s < 60 { 100.0 } else { 900.0 }, |_, _| false));
    let d = &said.decisions[0];
    assert_eq!(said.decisions.iter().filter(|d| d.criterion == "limit").count(), 1);
    assert_eq!((d.action, d.bucket.as_str(), d.guardrail.as_str()), (Action::Rollback, "treatment", "latency_p95"));
    let delay = d.decided_at - (START + 60_000);
    assert!((0..15_000).contains(&delay), "decided {delay} ms after the fault");
    assert_eq!((d.baseline_value, d.unit.as_str(), d.margin), (Some(100.031), "ms", Some(300.0)));
    assert!(d.reason.contains("above the limit of 300 ms"), "{}", d.reason);
    assert_eq!(guardrail(&fleet).verdict, Verdict::Breach);
    assert!(state(&fleet).stop && !state(&fleet).go);
}

#[test]
fn a_healthy_limit_becomes_safe() {
    let rule = rule("  - {metric: latency_p95, window: 5m, limit: 300ms}\n  - {metric: error_rate, window: 5m, limit: 10%}", "");
    let (said, fleet) = run(&[&rule], &traffic(300, |_| 120.0, |_, _| false));
    assert_eq!(said.decisions, []);
    let verdicts: Vec<Verdict> = state(&fleet).guardrails.iter().map(|g| g.verdict).collect();
    assert_eq!(verdicts, [Verdict::Safe, Verdict::Safe]);
    assert!(state(&fleet).go, "{}", state(&fleet).reason);
}

#[test]
fn a_hold_time_must_pass_without_a_break() {
    let rule = |hold: &str| rule(&format!("  - {{metric: error_rate, window: 20s, limit: 20%, for: {hold}}}"), "");
    let spike = |s: i64, _: u32| (60..75).contains(&s);
    let lines = traffic(150, |_| 100.0, spike);
    let limits = |said: Said| said.decisions.iter().filter(|d| d.criterion == "limit").count();
    assert_eq!(limits(run(&[&rule("5s")], &lines).0), 1);
    assert_eq!(limits(run(&[&rule("20s")], &lines).0), 0, "the spike has left the window before 20 s are over");
}

#[test]
fn a_relative_margin_is_held_against_the_baseline() {
    let text = rule("  - {metric: latency_p95, max_increase: 10%}\n  - {metric: error_rate, max_increase: 1pp}", "");
    let calm = |_: i64| 100.0;
    let (said, fleet) = run(&[&text], &traffic(300, calm, |_, _| false));
    assert_eq!(said.decisions, []);
    assert!(state(&fleet).guardrails.iter().all(|g| g.verdict == Verdict::Safe), "{:?}", state(&fleet).guardrails);
    let (said, _) = run(&[&text], &traffic(300, |s| if s < 200 { 100.0 } else { 160.0 }, |_, _| false));
    let d = &said.decisions[0];
    assert_eq!((d.guardrail.as_str(), d.criterion.as_str(), d.test.as_str()), ("latency_p95", "max_increase", "quantile_relative"));
    assert!((START + 200_000..START + 220_000).contains(&d.decided_at), "{} ms after the fault: {d:?}", d.decided_at - START - 200_000);
    assert_eq!(d.since, START + 200_000, "the detector knows when it began");
    assert!(d.change.unwrap() > 0.5 && d.interval.unwrap()[0] > 0.1 && d.margin == Some(0.1), "{}", d.reason);
    let (said, _) = run(&[&text], &traffic(300, calm, |s, i| s >= 200 && i % 6 == 1));
    let d = &said.decisions[0];
    assert_eq!((d.guardrail.as_str(), d.test.as_str(), d.margin), ("error_rate", "detector_rate", Some(0.01)));
    assert!(d.interval.unwrap()[0] > 0.01 && d.reason.contains("proved above the margin of +1.00pp"), "{}", d.reason);
}

#[test]
fn a_wrong_sample_ratio_pauses_and_holds_comparisons() {
    let text = rule("  - {metric: latency_p95, max_increase: 10%}", "quality: {srm: {alpha: 0.001, do: notify}}");
    let lines: Vec<String> = traffic(300, |s| if s < 150 { 100.0 } else { 900.0 }, |_, _| false);
    // Every second user of the treatment is lost.
    let kept = |line: &&String| !line.contains("treatment") || !(0..400).any(|u| u % 4 == 1 && line.contains(&format!("\"u{u}\"")));
    let kept: Vec<String> = lines.iter().filter(kept).cloned().collect();
    let (said, fleet) = run(&[&text], &kept);
    assert_eq!(said.decisions.iter().map(|d| d.guardrail.as_str()).collect::<Vec<_>>(), ["srm"], "{:?}", said.decisions);
    assert!(said.decisions[0].reason.contains("exposed units, designed are 50.00%"), "{}", said.decisions[0].reason);
    let g = guardrail(&fleet);
    assert_eq!(g.verdict, Verdict::Watching, "{}", g.reason);
    assert!(g.reason.contains("sample ratio"), "{}", g.reason);
}

#[test]
fn absence_of_data_is_never_safe() {
    let text = rule("  - {metric: latency_p95, window: 10s, limit: 300ms}", "quality: {silence: {after: 1h, do: hold}}");
    let mut lines = traffic(60, |_| 100.0, |_, _| false);
    let (_, fleet) = run(&[&text], &[]);
    assert_eq!(guardrail(&fleet).verdict, Verdict::NoData, "nothing yet");
    assert!(!state(&fleet).go);
    // Control goes on, treatment does not.
    lines.extend((60..120).map(|s| request(s * 1_000, 0, 100.0, false)));
    let (_, fleet) = run(&[&text], &lines);
    assert_eq!(guardrail(&fleet).verdict, Verdict::NoData, "stale");
    assert!(!state(&fleet).go);
}

#[test]
fn one_compliance_flag_kills_at_once() {
    let text = rule("  - {metric: compliance_flags, limit: 0, on_breach: kill}", "");
    let mut lines = traffic(10, |_| 100.0, |_, _| false);
    lines.push(unit_event("compliance_flag", 10_200, 1, r#","flag":"missing_consent""#));
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let mut partition = Partition::new(0, &catalog, &settings);
    lines.iter().for_each(|line| assert_eq!(partition.read(line), Outcome::Accepted));
    // The pane of the flag is still open.
    let (mut fleet, mut out) = (Fleet::new(&catalog, settings.pane), Output::default());
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!(out.decisions.len(), 1);
    assert_eq!((out.decisions[0].action, out.decisions[0].decided_at), (Action::Kill, START + 10_200));
    assert_eq!(out.decisions[0].reason, "compliance_flags of treatment is 1, above the limit of 0: missing_consent");
    partition.aggregator.finish();
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!(out.decisions.len(), 1, "the pane counts it, too, and decides nothing twice");
}

/// Every order of two lists that keeps each in its own.
fn merges(a: usize, b: usize) -> Vec<Vec<usize>> {
    match (a, b) {
        (0, _) => vec![vec![1; b]],
        (_, 0) => vec![vec![0; a]],
        _ => {
            let first = |p: usize, rest: Vec<Vec<usize>>| rest.into_iter().map(move |rest| [vec![p], rest].concat());
            first(0, merges(a - 1, b)).chain(first(1, merges(a, b - 1))).collect()
        }
    }
}

#[test]
fn what_follows_a_flag_does_not_depend_on_who_was_heard_first() {
    // A rollback, two flags and what a comparison says come within the same two seconds; exposures do not stop.
    let text = rule(
        "  - {metric: latency_p95, window: 10s, limit: 300ms}\n  - {metric: compliance_flags, limit: 0, on_breach: kill}\n  \
         - {metric: error_rate, max_increase: 1pp, on_breach: notify}",
        "analysis: {min_units: 20}",
    );
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let emissions: Vec<Vec<Emission>> = (0..2)
        .map(|p| {
            let mut lines = traffic(60, |s| if s < 17 { 100.0 } else { 900.0 }, |s, user| s >= 16 && user % 2 == 1);
            let flag = unit_event("compliance_flag", 19_950 - 900 * p, 1, r#","flag":"missing_consent""#);
            let at = lines.iter().position(|line| line.contains(&format!("\"ts\":{}", START + 20_000 - 1_000 * p))).unwrap();
            lines.insert(at, flag);
            let mine: Vec<String> = lines.iter().map(|line| line.replace("\"user_id\":\"u", &format!("\"user_id\":\"p{p}-"))).collect();
            Partition::new(p as i32, &catalog, &settings).all(&mine)
        })
        .collect();
    let near = |emission: &Emission| matches!(emission, Emission::Pane(batch) if batch.pane.end(1_000) >= START + 17_000);
    let from = emissions.iter().map(|list| list.iter().position(near).unwrap()).collect::<Vec<_>>();
    let said_in = |order: &[usize]| {
        let mut fleet = Fleet::new(&catalog, settings.pane);
        (0..2).for_each(|p| fleet.assigned(p));
        let (mut out, mut next) = (Output::default(), [0; 2]);
        let before = (0..2).flat_map(|p| std::iter::repeat_n(p, from[p]));
        let after = (0..2).flat_map(|p| std::iter::repeat_n(p, emissions[p].len() - from[p] - order.iter().filter(|q| **q == p).count()));
        for p in before.chain(order.iter().copied()).chain(after) {
            fleet.take(emissions[p][next[p]].clone(), &mut out);
            next[p] += 1;
        }
        let decisions = out.decisions.iter().map(|d| serde_json::to_string(&without_haste(d)).unwrap());
        let notices = out.notices.iter().map(|n| format!("{} {} {}", n.kind.name(), n.at, n.text));
        let mut lines: Vec<String> = decisions.chain(notices).chain(out.log.iter().map(|l| serde_json::to_string(l).unwrap())).collect();
        lines.push(format!("{:?}", fleet.close_view("exp").unwrap()));
        lines.sort();
        lines
    };
    let orders = merges(5, 5);
    let first = said_in(&orders[0]);
    let acted = |action: &str| first.iter().filter(|line| line.contains(&format!("\"action\":\"{action}\""))).count();
    assert_eq!([acted("kill"), acted("rollback"), acted("notify"), acted("page")], [2, 1, 1, 1], "{first:#?}");
    for order in &orders[1..] {
        let said = said_in(order);
        let differ = said.iter().filter(|line| !first.contains(line)).collect::<Vec<_>>();
        assert!(said == first, "{order:?}: {differ:#?}");
    }
}

#[test]
fn a_flag_in_control_is_not_the_treatments_fault() {
    let text = rule("  - {metric: compliance_flags, limit: 0, on_breach: kill}", "");
    let mut lines = traffic(10, |_| 100.0, |_, _| false);
    lines.push(unit_event("compliance_flag", 10_200, 2, r#","flag":"missing_consent""#));
    assert_eq!(run(&[&text], &lines).0.decisions, []);
}

#[test]
fn workflows_are_abandoned_by_a_timer_that_needs_no_event() {
    let text = rule("  - {metric: abandonment, within: 20s, window: 30s, limit: 30%}", "");
    let mut lines = traffic(5, |_| 100.0, |_, _| false);
    for i in 0..100 {
        lines.push(workflow(4_900 + i64::from(i), i * 2 + 1, "started", i));
        lines.push(workflow(4_900 + i64::from(i), i * 2, "started", 1_000 + i));
        lines.push(workflow(4_950 + i64::from(i), i * 2, "completed", 1_000 + i));
    }
    // Users 1, 3, … have been exposed only in the first seconds: expose all of them.
    let mut all: Vec<String> = (0..200).map(|u| exposure(0, u, "exp", bucket_of(u))).collect();
    all.extend(lines);
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let mut partition = Partition::new(0, &catalog, &settings);
    all.iter().for_each(|line| {
        partition.read(line);
    });
    let (mut fleet, mut out) = (Fleet::new(&catalog, settings.pane), Output::default());
    partition.aggregator.advance(START + 24_000);
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!(out.decisions, [], "not yet");
    partition.aggregator.advance(START + 27_000);
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!(out.decisions.len(), 1);
    assert_eq!(out.decisions[0].bucket_value, Some(1.0));
    assert_eq!(out.decisions[0].baseline_value, Some(0.0));
}

#[test]
fn explicit_abandonment_does_not_wait_for_the_limit() {
    let text = rule("  - {metric: abandonment, within: 30m, window: 1m, limit: 30%}", "");
    let mut lines: Vec<String> = (0..200).map(|u| exposure(0, u, "exp", bucket_of(u))).collect();
    for i in 0..100 {
        lines.push(workflow(1_000 + i64::from(i) * 100, i * 2 + 1, "started", i));
        lines.push(workflow(1_050 + i64::from(i) * 100, i * 2 + 1, "abandoned", i));
    }
    assert_eq!(run(&[&text], &lines).0.decisions.len(), 1);
}

#[test]
fn tickets_count_per_exposed_unit() {
    let text = rule("  - {metric: tickets, window: 10m, limit: 5%, on_breach: notify}", "");
    let mut lines: Vec<String> = (0..400).map(|u| exposure(i64::from(u), u, "exp", bucket_of(u))).collect();
    lines.extend((0..80).map(|i| unit_event("ticket", 1_000 + i64::from(i) * 10, i * 2 + 1, "")));
    let (said, _) = run(&[&text], &lines);
    assert_eq!((said.decisions.len(), said.decisions[0].action), (1, Action::Notify));
    assert_eq!(said.decisions[0].bucket_value, Some(0.4));
}

#[test]
fn silence_holds_and_makes_everything_no_data() {
    let text = rule("  - {metric: error_rate, window: 1h, limit: 10%}", "quality: {silence: {after: 1m, do: hold}}");
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let mut partition = Partition::new(0, &catalog, &settings);
    traffic(300, |_| 100.0, |_, _| false).iter().for_each(|line| {
        partition.read(line);
    });
    let (mut fleet, mut out) = (Fleet::new(&catalog, settings.pane), Output::default());
    partition.aggregator.advance(START + 310_000);
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!(guardrail(&fleet).verdict, Verdict::Safe);
    partition.aggregator.advance(START + 370_000);
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!(out.decisions.len(), 1);
    let d = &out.decisions[0];
    assert_eq!((d.guardrail.as_str(), d.action, d.verdict), ("silence", Action::Hold, Verdict::NoData));
    assert_eq!(d.decided_at, START + 360_000);
    assert_eq!(guardrail(&fleet).verdict, Verdict::NoData);
    assert_eq!(state(&fleet).holds.len(), 1);
    // Data comes back: the hold is lifted, the decision is not repeated.
    partition.read(&request(371_000, 1, 100.0, false));
    partition.aggregator.advance(START + 373_000);
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!((out.decisions.len(), state(&fleet).holds.len()), (1, 0));
}

#[test]
fn schema_violations_hold() {
    let text = rule("  - {metric: error_rate, limit: 10%}", "quality: {schema_violations: {max: 1%, do: hold}}");
    let mut lines = traffic(30, |_| 100.0, |_, _| false);
    lines.extend((0..100).map(|i| {
        format!(r#"{{"event":"request","ts":{},"experiment":"exp","bucket":"treatment","latency_ms":"slow"}}"#, START + 30_000 + i)
    }));
    lines.extend(traffic(40, |_| 100.0, |_, _| false).split_off(1_300));
    let (said, fleet) = run(&[&text], &lines);
    assert_eq!(said.decisions.len(), 1);
    assert_eq!((said.decisions[0].guardrail.as_str(), said.decisions[0].action), ("schema_violations", Action::Hold));
    assert!(!state(&fleet).go);
}

#[test]
fn a_rollback_is_confirmed_by_the_exposures() {
    let text = rule("  - {metric: latency_p95, window: 30s, limit: 300ms}", "");
    let all = traffic(120, |s| if s < 30 { 100.0 } else { 900.0 }, |_, _| false);
    let decided = run(&[&text], &all).0.decisions[0].decided_at;
    let stops = |line: &&String| !(line.contains("\"treatment\"") && ts(line) > decided + 2_000);
    let obeyed: Vec<String> = all.iter().filter(stops).cloned().collect();
    let (said, fleet) = run(&[&text], &obeyed);
    assert_eq!((said.decisions.len(), said.notices.len()), (1, 1));
    assert_eq!(state(&fleet).buckets[1].stopped.as_ref().unwrap().confirmation, "confirmed");
    assert!(said.notices[0].text.contains("exposures fell from 10.0/s to 0/s"), "{}", said.notices[0].text);

    let (said, fleet) = run(&[&text], &all);
    let actions: Vec<(Action, &str)> = said.decisions.iter().map(|d| (d.action, d.criterion.as_str())).collect();
    assert_eq!(actions, [(Action::Rollback, "limit"), (Action::Kill, "confirm_within"), (Action::Page, "confirm_within")]);
    assert_eq!(said.decisions[1].decided_at - said.decisions[0].decided_at, 30_000);
    assert_eq!(state(&fleet).buckets[1].stopped.as_ref().unwrap().confirmation, "unconfirmed");
}

/// Found by the simulation, seed 26: three panes are more than half of it.
#[test]
fn a_rollback_may_be_confirmed_within_a_few_seconds() {
    let text = rule("  - {metric: latency_p95, window: 30s, limit: 300ms}", "").replace("confirm_within: 30s", "confirm_within: 5s");
    let mut all = traffic(60, |s| if s < 30 { 100.0 } else { 900.0 }, |_, _| false);
    let rolled_back = run(&[&text], &all).0.decisions[0].decided_at;
    all.retain(|line| !(line.contains("exposure") && line.contains("treatment")) || time_of(line) < rolled_back);
    let (said, fleet) = run(&[&text], &all);
    assert_eq!(said.decisions.iter().map(|d| d.action).collect::<Vec<_>>(), [Action::Rollback]);
    assert_eq!(state(&fleet).buckets[1].stopped.as_ref().unwrap().confirmation, "confirmed");
}

fn time_of(line: &str) -> i64 {
    serde_json::from_str::<serde_json::Value>(line).unwrap()["ts"].as_i64().unwrap()
}

/// Invariant 5: what a crash behind a decision forgets of the traffic before it does not change what follows from it.
#[test]
fn a_replay_of_an_adopted_decision_watches_its_bucket_as_before() {
    let text = rule("  - {metric: latency_p95, window: 30s, limit: 300ms}", "");
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let all = traffic(120, |s| if s < 30 { 100.0 } else { 900.0 }, |_, _| false);
    let emissions = Partition::new(0, &catalog, &settings).all(&all);
    let (mut fleet, mut said) = (Fleet::new(&catalog, settings.pane), Said::default());
    let mut checkpoint = None;
    for (n, emission) in emissions.iter().enumerate() {
        if n == 5 {
            checkpoint = Some(Kept::of(fleet.snapshot(false).unwrap()));
        }
        let mut out = Output::default();
        fleet.take(emission.clone(), &mut out);
        said.take(out);
    }
    assert_eq!(said.decisions.len(), 3, "a rollback, and what follows when it is not obeyed");

    let mut again = Fleet::restore(&catalog, settings.pane, &checkpoint.unwrap()).unwrap().fleet;
    again.adopt(&said.decisions[0]);
    let mut replayed = Said::default();
    for emission in &emissions[5..] {
        let mut out = Output::default();
        again.take(emission.clone(), &mut out);
        replayed.take(out);
    }
    assert_eq!(replayed.decisions, said.decisions[1..]);
    assert_eq!(state(&again), state(&fleet));
}

#[test]
fn silence_everywhere_confirms_nothing() {
    let text = rule("  - {metric: latency_p95, window: 30s, limit: 300ms}", "");
    let all = traffic(120, |s| if s < 30 { 100.0 } else { 900.0 }, |_, _| false);
    let decided = run(&[&text], &all).0.decisions[0].decided_at;
    let cut: Vec<String> = all.iter().filter(|line| ts(line) < decided + 500).cloned().collect();
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let mut partition = Partition::new(0, &catalog, &settings);
    cut.iter().for_each(|line| {
        partition.read(line);
    });
    partition.aggregator.advance(decided + 40_000);
    let (mut fleet, mut out) = (Fleet::new(&catalog, settings.pane), Output::default());
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!(out.notices, []);
    assert!(out.decisions[1].reason.contains("no data has arrived since"), "{}", out.decisions[1].reason);
}

#[test]
fn observe_differs_from_enforce_in_the_mode_alone() {
    let enforce = rule("  - {metric: latency_p95, window: 30s, limit: 300ms}\n  - {metric: error_rate, limit: 10%, on_breach: page}", "");
    let observe = enforce.replace("mode: enforce", "mode: observe");
    let lines = traffic(60, |s| if s < 30 { 100.0 } else { 900.0 }, |s, _| s > 40);
    let (a, b) = (run(&[&enforce], &lines).0, run(&[&observe], &lines).0);
    assert_eq!(a.decisions.len(), 2);
    let same: Vec<String> = b.lines().iter().map(|l| l.replace("\"observe\"", "\"enforce\"")).collect();
    assert_eq!(a.lines(), same);
}

#[test]
fn a_guardrail_acts_once_until_it_is_rearmed() {
    let text = rule("  - {metric: latency_p95, window: 30s, limit: 300ms}", "");
    let lines = traffic(200, |s| if s < 30 { 100.0 } else { 900.0 }, |_, _| false);
    let (said, mut fleet) = run(&[&text], &lines);
    assert_eq!(said.decisions.iter().filter(|d| d.criterion == "limit").count(), 1);
    let operator = |operation, at| Operator { operation, bucket: None, author: "ann".into(), reason: "fixed".into(), at };
    let mut out = Output::default();
    fleet.operate("exp", &operator(Operation::Resume, START + 200_000), &mut out).unwrap().unwrap();
    assert!(out.notices.iter().any(|n| n.decision.criterion == "limit"), "resolved");
    assert_eq!(guardrail(&fleet).decision, None);
    let first = said.decisions[0].decision.clone();
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let mut partition = Partition::new(0, &catalog, &settings);
    let mut out = Output::default();
    traffic(260, |_| 900.0, |_, _| false).iter().for_each(|line| {
        partition.read(line);
    });
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    let again: Vec<_> = out.decisions.iter().filter(|d| d.criterion == "limit").collect();
    assert_eq!(again.len(), 1);
    assert_ne!(again[0].decision, first, "a new arming epoch, a new id");
}

#[test]
fn what_was_seen_before_a_resume_does_not_decide_after_it() {
    let text = rule("  - {metric: compliance_flags, limit: 0, on_breach: kill}", "");
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let mut partition = Partition::new(0, &catalog, &settings);
    let (mut fleet, mut out) = (Fleet::new(&catalog, settings.pane), Output::default());
    traffic(10, |_| 100.0, |_, _| false).iter().for_each(|line| {
        partition.read(line);
    });
    partition.read(&unit_event("compliance_flag", 10_200, 1, r#","flag":"missing_consent""#));
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert!(out.decisions[0].reason.ends_with(": missing_consent"), "{}", out.decisions[0].reason);
    let resume = Operator { operation: Operation::Resume, bucket: None, author: "ann".into(), reason: "fixed".into(), at: START + 10_500 };
    fleet.operate("exp", &resume, &mut out).unwrap().unwrap();
    partition.aggregator.advance(START + 20_000);
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!(out.decisions.len(), 1, "the flag's own pane closed after the resume");
    partition.read(&unit_event("compliance_flag", 20_100, 1, r#","flag":"missing_consent""#));
    partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
    assert_eq!(out.decisions.len(), 2, "a new one decides again");
}

#[test]
fn nothing_can_have_been_missed_before_the_watch_began() {
    let text = rule("  - {metric: error_rate, limit: 10%}", "quality: {silence: {after: 1m, do: hold}}")
        .replace("owner: team", "owner: team, starts: 2025-12-01T00:00:00Z");
    let mut lines = vec![exposure(0, 1, "other", "treatment")];
    lines.extend((0..50).map(|s| exposure(s * 1_000, 1, "other", "treatment")));
    lines.extend(traffic(60, |_| 100.0, |_, _| false).split_off(2_000));
    assert_eq!(run(&[&text], &lines).0.decisions, [], "a day has passed since its start, but it is watched for 50 s");
    let quiet: Vec<String> = (0..90).map(|s| exposure(s * 1_000, 1, "other", "treatment")).collect();
    assert_eq!(run(&[&text], &quiet).0.decisions.len(), 1, "not one record in a minute");
}

#[test]
fn a_hold_withholds_everything_but_kill_and_never_measuring() {
    let text = rule(
        "  - {metric: latency_p95, window: 30s, limit: 300ms}\n  - {metric: error_rate, window: 30s, limit: 20%, on_breach: kill}",
        "",
    );
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let mut partition = Partition::new(0, &catalog, &settings);
    let (mut fleet, mut out) = (Fleet::new(&catalog, settings.pane), Output::default());
    let hold = Operation::Hold { until: Some(START + 80_000) };
    let operator = Operator { operation: hold, bucket: None, author: "ann".into(), reason: "looking".into(), at: START };
    fleet.operate("exp", &operator, &mut out).unwrap().unwrap();
    let mut decided = Vec::new();
    for line in traffic(100, |_| 900.0, |s, _| s > 50) {
        partition.read(&line);
        partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
        decided.append(&mut out.decisions);
        if ts(&line) == START + 30_000 {
            assert_eq!(guardrail(&fleet).verdict, Verdict::Breach, "still measured");
            assert_eq!(decided, []);
        }
    }
    let actions: Vec<Action> = decided.iter().map(|d| d.action).collect();
    assert_eq!(actions[..2], [Action::Kill, Action::Rollback]);
    assert!(decided[0].decided_at < START + 80_000);
    assert_eq!(decided[1].decided_at, START + 80_000, "when the hold expires");
    assert_eq!(decided[1].covered_by.as_ref(), Some(&decided[0].decision), "the kill has done as much already");
}

#[test]
fn a_hold_tells_those_who_were_paged_and_nobody_else() {
    let text = rule("  - {metric: latency_p95, window: 30s, limit: 300ms}\n  - {metric: error_rate, limit: 10%, on_breach: page}", "");
    let (out, mut fleet) = run(&[&text], &traffic(60, |_| 900.0, |_, _| true));
    let paged: Vec<&Decision> = out.decisions.iter().filter(|d| d.action == Action::Page).collect();
    assert!(out.decisions.len() > paged.len() && !paged.is_empty(), "{:?}", out.decisions);
    let operator = Operator {
        operation: Operation::Hold { until: None },
        bucket: None,
        author: "ann".into(),
        reason: "looking".into(),
        at: START + 61_000,
    };
    let mut out = Output::default();
    fleet.operate("exp", &operator, &mut out).unwrap().unwrap();
    let held: Vec<(NoticeKind, &str)> = out.notices.iter().map(|n| (n.kind, n.decision.decision.as_str())).collect();
    assert_eq!(held.len(), paged.len());
    assert!(paged.iter().all(|d| held.contains(&(NoticeKind::Held, d.decision.as_str()))), "{held:?}");
}

#[test]
fn operators_act_and_are_refused_with_reasons() {
    let text = rule("  - {metric: latency_p95, limit: 300ms}", "");
    let (_, mut fleet) = run(&[&text], &traffic(10, |_| 100.0, |_, _| false));
    let ask = |fleet: &mut Fleet, bucket: Option<&str>, operation: Operation| {
        let operator =
            Operator { operation, bucket: bucket.map(Into::into), author: "ann".into(), reason: "because".into(), at: START + 11_000 };
        let mut out = Output::default();
        (fleet.operate("exp", &operator, &mut out).unwrap(), out)
    };
    assert!(ask(&mut fleet, Some("control"), Operation::Act(Action::Rollback)).0.is_err());
    assert!(ask(&mut fleet, Some("nope"), Operation::Act(Action::Rollback)).0.is_err());
    assert!(ask(&mut fleet, None, Operation::Phase { phase: "nope".into(), weights: vec![] }).0.is_err());
    let (_, out) = ask(&mut fleet, None, Operation::Act(Action::Rollback));
    assert_eq!((out.decisions.len(), out.decisions[0].author.as_deref()), (1, Some("ann")));
    let (answer, out) = ask(&mut fleet, None, Operation::Act(Action::Rollback));
    assert!(out.decisions.is_empty() && answer.unwrap().starts_with("nothing to do"));
    assert!(
        fleet
            .operate(
                "other",
                &Operator { operation: Operation::Resume, bucket: None, author: "a".into(), reason: "r".into(), at: 0 },
                &mut Output::default()
            )
            .is_none()
    );
}

#[test]
fn every_record_has_one_outcome_and_they_add_up() {
    let text = rule("  - {metric: error_rate, limit: 10%}", "")
        .replace("owner: team", "owner: team, starts: 2025-12-02T00:00:00Z, ends: 2025-12-02T09:10:00Z");
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let mut p = Partition::new(0, &catalog, &settings);
    let with_id = |line: String| line.replace("{\"event\"", "{\"id\":\"x1\",\"event\"");
    assert_eq!(p.read(&exposure(0, 1, "exp", "treatment")), Outcome::Accepted);
    assert_eq!(p.read(&with_id(request(1, 1, 5.0, false))), Outcome::Accepted);
    assert_eq!(p.read(&with_id(request(2, 1, 5.0, false))), Outcome::Duplicate);
    assert_eq!(p.read(&request(3, 2, 5.0, false)), Outcome::Waiting);
    assert_eq!(p.read(&exposure(4, 1, "nope", "treatment")), Outcome::UnknownExperiment);
    assert!(matches!(p.read(&exposure(5, 1, "exp", "nope")), Outcome::Rejected(_)));
    assert!(matches!(p.read("{"), Outcome::Rejected(_)));
    assert_eq!(p.read(&request(40_000, 1, 5.0, false)), Outcome::Accepted);
    assert_eq!(p.read(&request(10_000, 1, 5.0, false)), Outcome::Accepted, "late, but inside the allowed lateness");
    assert_eq!(p.read(&request(9_999, 1, 5.0, false)), Outcome::Late);
    let end = 1_764_666_600_000 - START;
    assert_eq!(p.read(&request(end, 1, 5.0, false)), Outcome::Inactive);
    let counts = p.aggregator.counts();
    assert_eq!((counts.records(), counts.waiting, counts.unattributed), (11, 0, 1), "nobody came for the one that waited");
}

fn ts(line: &str) -> i64 {
    let at = line.find("\"ts\":").unwrap() + 5;
    line[at..].split(',').next().unwrap().parse().unwrap()
}
