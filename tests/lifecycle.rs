//! The life of an experiment: launch, phases, warm-up, full rollout and its watch, end; and of its units: funnels and retention.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::engine::decision::{LogKind, Output, Verdict};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::judge::{Operation, Operator};
use guardraild::engine::kept::Kept;
use guardraild::engine::plan::Settings;
use guardraild::engine::state::{ExperimentState, FunnelCounts, PhaseState, Stage};
use support::*;

fn rule(overview: &str, guardrails: &str, more: &str) -> String {
    format!(
        "guardrail: v1\noverview: {{experiment: exp, owner: team{overview}}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n\
         guardrails:\n{guardrails}\nactions: {{mode: enforce, rollback: {{webhook: flags}}, kill: {{webhook: flags}}, notify: {{webhook: chat}}}}\n\
         analysis: {{min_units: 5}}\n{more}\n"
    )
}

const RAMP: &str = ", type: phased_rollout";
const WATCHED: &str = "rollout: {phases: [{traffic: 20%, for: 1m, name: canary}, {traffic: 100%, name: all}], watch_after_full: 2m}";

/// Ten new users in each second of `seconds`, of whom the first `treated` are in treatment; each makes a request every 3 s for 30 s.
fn ramp(seconds: std::ops::Range<i64>, treated: i64, latency: impl Fn(i64, bool) -> f64) -> Vec<String> {
    let mut lines = Vec::new();
    for born in seconds {
        for i in 0..10 {
            let user = (born * 10 + i) as u32;
            let bucket = if i < treated { "treatment" } else { "control" };
            lines.push(exposure(born * 1_000 + i * 40, user, "exp", bucket));
            for at in (born..born + 30).step_by(3) {
                lines.push(request(at * 1_000 + i * 40 + 1, user, latency(at, i < treated), false));
            }
        }
    }
    lines
}

fn phase(ms: i64, index: u32) -> String {
    control("phase", ms, &format!(r#","phase":{index}"#))
}

fn in_order(parts: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let mut lines: Vec<String> = parts.into_iter().flatten().collect();
    lines.sort_by_key(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["ts"].as_i64());
    lines
}

fn state(fleet: &Fleet) -> ExperimentState {
    fleet.close_view("exp").unwrap()
}

/// Milestones, with the seconds since the start.
fn milestones(said: &Said) -> Vec<(LogKind, i64)> {
    said.log.iter().map(|l| (l.kind, (l.at - START) / 1_000)).collect()
}

fn steady(_: i64, _: bool) -> f64 {
    100.0
}

/// Canary for a minute, then everybody; `until` the records go on.
fn full_after_a_minute(until: i64, latency: impl Fn(i64, bool) -> f64 + Copy) -> Vec<String> {
    in_order([ramp(0..60, 2, latency), vec![phase(60_000, 1)], ramp(60..until, 10, latency)])
}

#[test]
fn a_full_rollout_is_watched_for_a_while_and_then_done() {
    let text = rule(RAMP, "  - {metric: latency_p95, max_increase: 10%}\n  - {metric: error_rate, window: 30s, limit: 5%}", WATCHED);
    let (said, fleet) = run(&[&text], &full_after_a_minute(120, steady));
    assert_eq!(said.decisions, [], "new users follow the shares of each phase");
    assert_eq!(milestones(&said), [(LogKind::Launch, 1), (LogKind::Phase, 60), (LogKind::FullRollout, 60)]);
    assert!(said.log[2].text.contains("comparisons are frozen"), "{}", said.log[2].text);
    let now = state(&fleet);
    assert_eq!((now.rollout.stage, now.rollout.watched_until), (Stage::Full, Some(START + 180_000)));
    assert_eq!(now.guardrails[0].verdict, Verdict::Watching);
    assert!(
        now.guardrails[0].reason.contains("control has no traffic in this phase: comparisons are frozen"),
        "{}",
        now.guardrails[0].reason
    );
    assert!(now.go && now.reason.contains("the full rollout is watched until 2025-12-02T09:03:00Z"), "{}", now.reason);

    // Long after the watch, nothing is missed and nothing acts.
    let broken = |at, _| if at < 190 { 100.0 } else { 9_000.0 };
    let late = request(3_600_000, 1, 100.0, false);
    let text = text.replace("error_rate, window: 30s, limit: 5%", "latency_p95, window: 30s, limit: 300ms");
    let (said, fleet) = run(&[&text], &in_order([full_after_a_minute(300, broken), vec![late]]));
    assert_eq!(said.decisions, []);
    assert_eq!(milestones(&said).last(), Some(&(LogKind::WatchOver, 180)));
    let now = state(&fleet);
    assert!(now.rollout.stage == Stage::Done && !now.go && now.reason.starts_with("done:"), "{}", now.reason);
    assert_eq!(now.holds, [], "no silence alarm");
    let (_, fleet) = run(&[&text], &full_after_a_minute(300, broken));
    assert!(state(&fleet).guardrails[1].reason.ends_with("not judged any more"), "{}", state(&fleet).guardrails[1].reason);
}

#[test]
fn a_limit_acts_while_the_full_rollout_is_watched_and_ends_the_watch() {
    let text = rule(RAMP, "  - {metric: latency_p95, window: 30s, limit: 300ms}", WATCHED);
    let (said, fleet) = run(&[&text], &full_after_a_minute(240, |at, treated| if treated && at >= 150 { 900.0 } else { 100.0 }));
    assert_eq!(said.decisions[0].guardrail, "latency_p95", "{:?}", said.decisions);
    assert!((START + 150_000..START + 180_000).contains(&said.decisions[0].decided_at));
    assert_eq!(state(&fleet).rollout.stage, Stage::Full, "a rollout that was rolled back is not done");
}

#[test]
fn what_is_held_back_is_compared_after_the_full_rollout() {
    let text = rule(RAMP, "  - {metric: latency_p95, max_increase: 10%}", &format!("{WATCHED}\neligibility: {{holdback: 20%}}"));
    let slow = |at, treated| if treated && at >= 100 { 150.0 } else { 100.0 };
    // 20% of the canary's 80% that are not held back, then 80%.
    let lines = in_order([ramp(0..60, 2, slow), vec![phase(60_000, 1)], ramp(60..175, 8, slow)]);
    let (said, _) = run(&[&text], &lines);
    assert_eq!(milestones(&said)[2], (LogKind::FullRollout, 60));
    assert!(said.log[2].text.contains("control keeps 20% as the holdback"), "{}", said.log[2].text);
    assert!(said.log[1].text.contains("treatment 80%"), "{}", said.log[1].text);
    assert_eq!(said.decisions.len(), 1, "{:?}", said.decisions);
    assert_eq!((said.decisions[0].criterion.as_str(), said.decisions[0].phase), ("max_increase", 1));
}

#[test]
fn phases_keep_figures_of_their_own() {
    let text = rule("", "  - {metric: latency_p95, window: 30s, limit: 1s}\n  - {metric: error_rate, limit: 5%}", "");
    let lines = in_order([
        ramp(0..30, 5, |_, _| 100.0),
        vec![control("phase", 60_000, r#","phase":3"#)],
        ramp(60..90, 5, |_, treated| if treated { 300.0 } else { 200.0 }),
    ]);
    let (_, fleet) = run(&[&text], &lines);
    let now = state(&fleet);
    let seen = |p: &PhaseState, bucket: usize| {
        let b = &p.buckets[bucket];
        // Quantiles are read off within 1%.
        (b.exposed_units, b.exposures, b.events, b.metrics[0].n, (b.metrics[0].value.unwrap() / 10.0).round() * 10.0)
    };
    assert_eq!((now.phases[0].phase, now.phases[1].phase, now.phases.len()), (Some(0), Some(3), 2));
    assert_eq!(seen(&now.phases[0], 1), (150, 150, 1_500, 1_500, 100.0));
    assert_eq!(seen(&now.phases[1], 0), (150, 150, 1_500, 1_500, 200.0));
    assert_eq!(seen(&now.phases[1], 1), (150, 150, 1_500, 1_500, 300.0));
    let whole = now.whole_life.unwrap();
    assert_eq!((seen(&whole, 1), whole.since), ((300, 300, 3_000, 3_000, 300.0), Some(START)));
    assert_eq!((now.phases[0].until, now.phases[1].since), (Some(START + 60_000), Some(START + 60_000)));
    assert_eq!(
        whole.buckets[0].metrics.iter().map(|m| (m.metric.as_str(), m.value.is_some())).collect::<Vec<_>>(),
        [("latency_p95", true), ("error_rate", true)]
    );
}

#[test]
fn a_warm_up_is_not_judged_and_counts_are() {
    let limits = "  - {metric: latency_p95, window: 20s, limit: 300ms}\n  - {metric: latency_p95, max_increase: 10%}\n  - {metric: compliance_flags, limit: 0, on_breach: kill}";
    let cold = |at, treated| if treated && (at < 40 || (100..130).contains(&at)) { 2_000.0 } else { 100.0 };
    let lines = in_order([ramp(0..100, 5, cold), vec![control("phase", 100_000, r#","phase":1"#)], ramp(100..160, 5, cold)]);
    let acted = |more: &str, lines: &[String]| -> Vec<String> {
        run(&[&rule("", limits, more)], lines).0.decisions.into_iter().map(|d| d.guardrail).collect()
    };
    assert!(acted("", &lines).contains(&"latency_p95".to_owned()), "without a warm-up it acts");
    let warm = "rollout: {warm_up: 40s}";
    assert_eq!(acted(warm, &lines), [""; 0]);
    let flag = unit_event("compliance_flag", 10_500, 1, r#","flag":"missing_consent""#);
    assert_eq!(acted(warm, &in_order([lines[..2_000].to_vec(), vec![flag]])), ["compliance_flags"]);
    let (_, fleet) = run(&[&rule("", limits, warm)], &lines[..400]);
    let now = state(&fleet);
    assert!(!now.go && now.reason.starts_with("warming up until 2025-12-02T09:00:40Z"), "{}", now.reason);
}

#[test]
fn the_plan_is_told_and_the_end_is_noticed() {
    let overview = ", ends: 2025-12-02T09:02:00Z";
    let plan = "rollout: {phases: [{traffic: 20%, for: 1m, name: canary}, {traffic: 50%, name: half}]}";
    let text = rule(overview, "  - {metric: latency_p95, limit: 1s}", plan);
    let reason = |seconds| state(&run(&[&text], &ramp(0..seconds, 5, steady)).1).reason;
    assert!(reason(20).ends_with("canary is planned to last 1m, until 2025-12-02T09:01:00Z"), "{}", reason(20));
    assert!(reason(80).contains("canary has lasted its 1m and "), "{}", reason(80));
    assert!(reason(80).ends_with("ready for half"), "{}", reason(80));
    let (said, fleet) = run(&[&text], &ramp(0..200, 5, steady));
    assert_eq!(milestones(&said), [(LogKind::Launch, 1), (LogKind::Ended, 120)]);
    assert!(said.decisions.is_empty() && state(&fleet).rollout.stage == Stage::Ended, "{}", state(&fleet).reason);
}

#[test]
fn a_phase_that_the_rule_does_not_have_is_refused_and_an_event_keeps_its_weights() {
    let text = rule(RAMP, "  - {metric: latency_p95, limit: 1s}", WATCHED);
    let unknown = control("phase", 30_000, r#","phase":"halves","weights":{"control":0.5,"treatment":0.5}"#);
    let (said, mut fleet) = run(&[&text], &in_order([ramp(0..60, 2, steady), vec![unknown]]));
    assert!(said.log[1].text.contains("a phase that the rule does not name: phase 0 goes on, control 50%"), "{}", said.log[1].text);
    assert_eq!(state(&fleet).buckets[1].weight, 0.5);
    let mut ask = |phase: &str, bucket: &str| {
        let operation = Operation::Phase { phase: phase.into(), weights: vec![(bucket.into(), 0.5)] };
        let operator = Operator { operation, bucket: None, author: "a".into(), reason: "r".into(), at: START + 90_000 };
        fleet.operate("exp", &operator, &mut Output::default()).unwrap()
    };
    assert!(ask("2", "control").unwrap_err().contains("no phase `2`"));
    assert!(ask("all", "contrl").unwrap_err().contains("no bucket `contrl`"));
    assert_eq!(ask("all", "control"), Ok("phase is now all".into()));
}

#[test]
fn a_restart_in_the_middle_of_the_watch_changes_nothing() {
    let text = rule(RAMP, "  - {metric: latency_p95, window: 30s, limit: 300ms, on_breach: notify}", WATCHED);
    let lines = full_after_a_minute(200, |at, treated| if treated && at >= 120 { 900.0 } else { 100.0 });
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let (whole, _) = run(&[&text], &lines);
    for cut in [1, 90, 130, 178] {
        let (mut said, mut fleet) = (Said::default(), Fleet::new(&catalog, settings.pane));
        for (i, emission) in Partition::new(0, &catalog, &settings).all(&lines).into_iter().enumerate() {
            if i == cut {
                fleet = restarted(&mut fleet, &mut Kept::default(), &catalog, &settings);
                fleet.assigned(0);
                said.decisions.iter().for_each(|d| fleet.adopt(d));
            }
            let mut out = Output::default();
            fleet.take(emission, &mut out);
            said.take(out);
        }
        assert_eq!(said.lines(), whole.lines(), "restarted at {cut}");
        assert_eq!(state(&fleet).rollout.stage, Stage::Done);
    }
}

const FUNNEL: &str = "metrics:
  checkout: {kind: funnel, workflow: purchase, within: 10s, steps: [cart, {name: payment, event: page, where: {page: pay}}]}
";

fn cart(ms: i64, user: u32, id: u32) -> String {
    unit_event("cart", ms, user, &format!(r#","workflow_id":"w{id}""#))
}

fn payment(ms: i64, user: u32, id: u32) -> String {
    unit_event("page", ms, user, &format!(r#","page":"pay","workflow":"purchase","workflow_id":"w{id}""#))
}

/// Users 1, 3, 5 … are in treatment; each begins the workflow of its number.
fn shopping() -> Vec<String> {
    let mut lines: Vec<String> = (1..8).map(|user| exposure(0, user, "exp", bucket_of(user))).collect();
    lines.extend((1..8).map(|user| workflow(1_000, user, "started", user)));
    lines.extend([
        // 1: all the way, with repetitions, and the payment before the cart.
        payment(2_000, 1, 1),
        cart(3_000, 1, 1),
        cart(3_100, 1, 1),
        workflow(3_200, 1, "started", 1),
        workflow(4_000, 1, "completed", 1),
        workflow(4_100, 1, "completed", 1),
        // 2: completed after its limit. 3: gives up, and comes back. 4: gives up. 5: nothing more comes.
        cart(2_000, 2, 2),
        workflow(14_000, 2, "completed", 2),
        workflow(5_000, 3, "abandoned", 3),
        workflow(6_000, 3, "started", 3),
        workflow(7_000, 3, "completed", 3),
        cart(2_000, 4, 4),
        workflow(5_000, 4, "abandoned", 4),
        // Another workflow, another page, nobody's: no steps.
        unit_event("page", 2_000, 5, r#","page":"pay","workflow":"returns","workflow_id":"w5""#),
        unit_event("page", 2_000, 5, r#","page":"home","workflow":"purchase","workflow_id":"w5""#),
        cart(2_000, 99, 6),
        // 7 begins once more, after all of this, under another id.
        workflow(14_500, 7, "started", 70),
        request(16_000, 1, 100.0, false),
    ]);
    in_order([lines])
}

fn counts(started: i64, restarted: i64, reached: [i64; 2], ends: [i64; 5]) -> FunnelCounts {
    let [completed, completed_late, abandoned, timed_out, open] = ends;
    FunnelCounts { started, restarted, reached: reached.to_vec(), completed, completed_late, abandoned, timed_out, open }
}

#[test]
fn a_funnel_counts_each_workflow_once_and_under_one_end() {
    let text = rule("", "  - {metric: error_rate, limit: 50%}", FUNNEL);
    let (_, fleet) = run(&[&text], &shopping());
    let funnel = state(&fleet).funnels.remove(0);
    assert_eq!((funnel.funnel.as_str(), funnel.workflow.as_str(), funnel.within_ms), ("checkout", "purchase", 10_000));
    assert_eq!(funnel.steps, ["cart", "payment"]);
    // Control: 2, 4 and 6. Treatment: 1, 3, 5, 7 and the second of 7.
    assert_eq!(funnel.buckets[0].all, counts(3, 0, [2, 0], [0, 1, 1, 1, 0]));
    assert_eq!(funnel.buckets[1].all, counts(5, 2, [1, 1], [2, 0, 0, 2, 1]));
    assert_eq!(funnel.buckets[1].matured, counts(4, 2, [1, 1], [2, 0, 0, 2, 0]));
}

#[test]
fn a_restart_in_the_middle_of_workflows_changes_nothing() {
    let text = rule("", "  - {metric: error_rate, limit: 50%}", &format!("{FUNNEL}  d1: {{kind: retention, day: 1}}\n"));
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let (_, whole) = run(&[&text], &shopping());
    for cut in 1..shopping().len() {
        let (mut partition, mut fleet) = (Partition::new(0, &catalog, &settings), Fleet::new(&catalog, settings.pane));
        let take = |partition: &mut Partition, fleet: &mut Fleet| {
            partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut Output::default()));
        };
        for (i, line) in shopping().iter().enumerate() {
            partition.read(line);
            take(&mut partition, &mut fleet);
            if i == cut {
                fleet = restarted(&mut fleet, &mut Kept::default(), &catalog, &settings);
                fleet.assigned(0);
                partition.aggregator = rebuilt(&mut partition.aggregator, 0, &mut Kept::default(), &catalog, &settings);
            }
        }
        partition.aggregator.finish();
        take(&mut partition, &mut fleet);
        assert_eq!(state(&fleet).funnels, state(&whole).funnels, "restarted at {cut}");
    }
}

const DAY: i64 = 86_400_000;

/// `users` exposed in the first minutes, of whom those that `comes_back` picks make a request on day `day`.
fn cohort(users: u32, day: i64, comes_back: impl Fn(u32) -> bool) -> Vec<String> {
    let exposed = (0..users).map(|user| exposure(i64::from(user) * 200, user, "exp", bucket_of(user)));
    let back =
        (0..users).filter(|user| comes_back(*user)).map(|user| request(day * DAY + 3_600_000 + i64::from(user) * 200, user, 100.0, false));
    exposed.chain(back).collect()
}

#[test]
fn retention_counts_units_when_their_day_is_over() {
    let text = rule(
        "",
        "  - {metric: d1, max_increase: 10%, on_breach: notify}",
        "metrics:\n  d1: {kind: retention, day: 1, baseline: 50%}\n  d2: {kind: retention, day: 2, event: request}\nquality: {silence: off}\n",
    );
    // Every second user of control comes back on the next day, and a tenth of those in treatment.
    let lines = cohort(2_000, 1, |user| if user.is_multiple_of(2) { user.is_multiple_of(4) } else { user % 20 == 1 });
    let (said, fleet) = run(&[&text], &in_order([lines.clone(), vec![exposure(DAY + 7_200_000, 5_001, "exp", "treatment")]]));
    let now = state(&fleet);
    assert_eq!((said.decisions.len(), now.retention[0].buckets[0].eligible), (0, 0), "their day is not over");
    assert_eq!(now.guardrails[0].verdict, Verdict::Watching);
    assert!(now.guardrails[0].reason.contains("the first units are judged 2 days after their exposure"), "{}", now.guardrails[0].reason);
    let end = exposure(2 * DAY + 7_200_000, 5_001, "exp", "treatment");
    let (said, fleet) = run(&[&text], &in_order([lines, vec![end]]));
    let now = state(&fleet);
    let shown = |metric: usize, bucket: usize| {
        let b = &now.retention[metric].buckets[bucket];
        (now.retention[metric].day, b.eligible, b.active)
    };
    assert_eq!((shown(0, 0), shown(0, 1), shown(1, 0)), ((1, 1_000, 500), (1, 1_000, 100), (2, 0, 0)));
    assert_eq!(said.decisions.iter().map(|d| (d.guardrail.as_str(), d.test.as_str())).collect::<Vec<_>>(), [("d1", "rate_drop")]);
}
