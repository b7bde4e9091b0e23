//! Criteria against the baseline, end to end: each case is a rule, synthetic traffic, and the golden log of its decisions, which
//! `guardraild audit` recomputes (`tests/audit.rs`).
//!
//! `GUARDRAILD_UPDATE=1 cargo test --test relative` writes the logs anew.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::engine::decision::{Action, Decision, Evidence, Verdict};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::state::{Finding, GuardrailState};
use std::fmt::Write;
use support::{START, run};

/// What one unit does in its time, and when.
struct Traffic {
    seconds: i64,
    /// Units exposed in each second.
    per_second: u32,
    /// Share of units in treatment, by second.
    share: fn(i64) -> f64,
    /// Events of a unit: second of exposure, whether treated, the unit's generator; lines go to the list with their second and text.
    unit: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>),
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64
    }

    /// Standard normal, near enough.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.roll()).sum::<f64>() - 6.0
    }
}

const HALF: fn(i64) -> f64 = |_| 0.5;

fn lines(traffic: &Traffic) -> Vec<String> {
    let mut dice = Dice(7);
    let mut all: Vec<(i64, String)> = Vec::new();
    for second in 0..traffic.seconds {
        for i in 0..traffic.per_second {
            let user = second * i64::from(traffic.per_second) + i64::from(i);
            let ms = second * 1_000 + i64::from(i) * 1_000 / i64::from(traffic.per_second);
            let treated = dice.roll() < (traffic.share)(second);
            let bucket = if treated { "treatment" } else { "control" };
            let mut own = Vec::new();
            own.push((0, format!(r#""event":"exposure","experiment":"exp","bucket":"{bucket}""#)));
            (traffic.unit)(second, treated, &mut dice, &mut own);
            all.extend(own.into_iter().map(|(after, text)| {
                let ts = START + ms + after;
                (ts, format!(r#"{{"ts":{ts},"tenant_id":"t","user_id":"u{user}",{text}}}"#))
            }));
        }
    }
    all.sort_by_key(|(ts, _)| *ts);
    all.into_iter().map(|(_, line)| line).collect()
}

fn rule(guardrails: &str, more: &str) -> String {
    format!(
        "guardrail: v1\noverview: {{experiment: exp, owner: team}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n\
         guardrails:\n{guardrails}\nactions: {{mode: enforce, rollback: {{webhook: flags}}, kill: {{webhook: flags}}, pause: {{webhook: ramp}}, \
         notify: {{webhook: chat}}, page: {{webhook: pager}}, confirm_within: 10m}}\n{more}\n"
    )
}

/// Runs a case; its decisions are those of the golden log.
fn golden(name: &str, rule: &str, lines: &[String]) -> (Vec<Decision>, Fleet) {
    let (said, fleet) = run(&[rule], lines);
    let mut text = String::new();
    said.decisions.iter().for_each(|d| writeln!(text, "{}", serde_json::to_string(d).unwrap()).unwrap());
    let path = format!("tests/golden/relative_{name}.decisions.jsonl");
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), text, "{path}");
    (said.decisions, fleet)
}

fn request(after: i64, latency: f64, error: bool) -> (i64, String) {
    (after, format!(r#""event":"request","latency_ms":{latency:.3},"error":{error}"#))
}

/// Ten requests of a unit, lognormal around 20 ms, `slow` times longer in treatment.
fn requests(out: &mut Vec<(i64, String)>, dice: &mut Dice, slow: f64, errors: f64) {
    for k in 0..10 {
        out.push(request(50 + k * 300, slow * 20.0 * (0.6 * dice.normal()).exp(), dice.roll() < errors));
    }
}

fn only(fleet: &Fleet) -> GuardrailState {
    fleet.views().remove(0).guardrails.remove(0)
}

#[test]
fn a_regression_that_begins_late_is_rolled_back_and_dated() {
    let text = rule("  - {metric: latency_p95, max_increase: 10%}\n  - {metric: latency_p99, max_increase: 20%, on_breach: notify}", "");
    let slow: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) =
        |second, treated, dice, out| requests(out, dice, if treated && second >= 600 { 1.6 } else { 1.0 }, 0.0);
    let (decisions, fleet) = golden("latency", &text, &lines(&Traffic { seconds: 720, per_second: 10, share: HALF, unit: slow }));
    let d = &decisions[0];
    assert_eq!((d.guardrail.as_str(), d.criterion.as_str(), d.action), ("latency_p95", "max_increase", Action::Rollback));
    assert!((START + 595_000..=START + 610_000).contains(&d.since), "since {}", d.since - START);
    assert!(d.decided_at < START + 660_000, "decided after {} ms", d.decided_at - START - 600_000);
    assert!(d.interval.unwrap()[0] > 0.1 && d.interval.unwrap()[1] > 0.6, "{:?}", d.interval);
    let Evidence::Quantiles { hist_c, .. } = &d.evidence else { panic!("{:?}", d.evidence) };
    assert!(hist_c.len() < 200, "evidence is condensed: {}", hist_c.len());
    let close = fleet.close_view("exp").unwrap().guardrails;
    assert!(close.iter().all(|g| g.interval.is_some()), "{close:?}");
}

#[test]
fn errors_that_begin_late_are_found_by_all_starts_around_the_first() {
    let text = rule("  - {metric: error_rate, max_increase: 1pp}", "");
    let fails: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) =
        |second, treated, dice, out| requests(out, dice, 1.0, if treated && second >= 600 { 0.05 } else { 0.01 });
    let (decisions, _) = golden("late_errors", &text, &lines(&Traffic { seconds: 720, per_second: 10, share: HALF, unit: fails }));
    let [d] = &decisions[..] else { panic!("{decisions:?}") };
    assert_eq!((d.test.as_str(), d.criterion.as_str(), d.action), ("detector_rate", "max_increase", Action::Rollback));
    assert!((START + 590_000..=START + 620_000).contains(&d.since) && d.decided_at < START + 690_000, "{d:?}");
    assert!(d.interval.unwrap()[0] > 0.01 && d.interval.unwrap()[1] > 0.04, "{:?}", d.interval);
    let Evidence::Starts { starts, .. } = &d.evidence else { panic!("{:?}", d.evidence) };
    assert!((2..=16).contains(&starts.len()), "{starts:?}");
}

#[test]
fn a_limit_of_units_has_no_window_to_pay_for() {
    let more = "metrics: {bad: {kind: rate, event: outcome, where: {metric: bad}, unit: user}}";
    let bad: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) = |_, treated, dice, out| {
        if dice.roll() < if treated { 0.2 } else { 0.02 } {
            out.push((100, r#""event":"outcome","metric":"bad","value":1"#.to_owned()));
        }
    };
    let lines = lines(&Traffic { seconds: 60, per_second: 10, share: HALF, unit: bad });
    let (said, _) = run(&[&rule("  - {metric: bad, limit: 5%, on_breach: notify}", more)], &lines);
    let [d] = &said.decisions[..] else { panic!("{:?}", said.decisions) };
    assert_eq!((d.test.as_str(), d.criterion.as_str()), ("threshold", "limit"));
    assert!(d.alpha.unwrap() > 1e-3 && d.interval.unwrap()[0] > 0.05, "{d:?}");
}

#[test]
fn clean_traffic_is_proved_safe_and_never_acted_on() {
    let guardrails = "  - {metric: latency_p95, max_increase: 30%}\n  - {metric: error_rate, max_increase: 2pp}\n  - {metric: tickets, max_increase: 100%}";
    let unit: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) = |_, _, dice, out| {
        requests(out, dice, 1.0, 0.01);
        if dice.roll() < 0.1 {
            out.push((900, r#""event":"ticket""#.to_owned()));
        }
    };
    let (decisions, fleet) = golden("clean", &rule(guardrails, ""), &lines(&Traffic { seconds: 600, per_second: 10, share: HALF, unit }));
    assert_eq!(decisions, []);
    let view = fleet.close_view("exp").unwrap();
    let verdicts: Vec<(&str, Verdict, &str)> = view.guardrails.iter().map(|g| (g.guardrail.as_str(), g.verdict, g.observation)).collect();
    let expected = [("latency_p95", Verdict::Safe, "event"), ("error_rate", Verdict::Safe, "event"), ("tickets", Verdict::Safe, "unit")];
    assert_eq!(verdicts, expected, "{:?}", view.guardrails);
    assert!(view.guardrails.iter().all(|g| g.interval.is_some_and(|[low, high]| low < 0.0 && high > 0.0)), "{:?}", view.guardrails);
}

#[test]
fn rates_of_events_and_of_units() {
    let guardrails =
        "  - {metric: error_rate, max_increase: 0.5pp, on_breach: pause}\n  - {metric: tickets, max_increase: 20%, on_breach: page}";
    let unit: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) = |_, treated, dice, out| {
        requests(out, dice, 1.0, if treated { 0.05 } else { 0.01 });
        let tickets = if treated { 0.2 } else { 0.05 };
        for k in 0..3 {
            if dice.roll() < tickets {
                out.push((2_000 + k, r#""event":"ticket""#.to_owned()));
            }
        }
    };
    let (decisions, _) = golden("rates", &rule(guardrails, ""), &lines(&Traffic { seconds: 300, per_second: 5, share: HALF, unit }));
    let found: Vec<(&str, &str, Action)> = decisions.iter().map(|d| (d.guardrail.as_str(), d.test.as_str(), d.action)).collect();
    assert!(found.contains(&("error_rate", "rate", Action::Pause)) && found.contains(&("tickets", "rate", Action::Page)), "{found:?}");
    assert_eq!(decisions.len(), 2);
}

#[test]
fn a_primary_metric_that_falls_stops_the_experiment() {
    let more = "metrics:
  orders: {kind: rate, event: outcome, where: {metric: order}, unit: user, better: up, baseline: 30%}
  basket: {kind: mean, event: outcome, where: {metric: basket}, unit: user, better: up, covariate: /covariate}
success: {primary: {metric: orders, stop_on_negative: 2%}}";
    let guardrails = "  - {metric: basket, max_increase: 5%, on_breach: notify}";
    let unit: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) = |_, treated, dice, out| {
        if dice.roll() < if treated { 0.2 } else { 0.3 } {
            out.push((500, r#""event":"outcome","metric":"order","value":true"#.to_owned()));
        }
        let before = 50.0 + 10.0 * dice.normal();
        let basket = 0.8 * before + 5.0 * dice.normal() - if treated { 10.0 } else { 0.0 };
        out.push((700, format!(r#""event":"outcome","metric":"basket","value":{basket:.2},"covariate":{before:.2}"#)));
    };
    let (decisions, _) = golden("primary", &rule(guardrails, more), &lines(&Traffic { seconds: 400, per_second: 10, share: HALF, unit }));
    let found: Vec<(&str, &str, &str)> = decisions.iter().map(|d| (d.guardrail.as_str(), d.criterion.as_str(), d.test.as_str())).collect();
    assert!(
        found.contains(&("orders", "stop_on_negative", "rate_drop")) && found.contains(&("basket", "max_increase", "mean")),
        "{found:?}"
    );
    let orders = decisions.iter().find(|d| d.guardrail == "orders").unwrap();
    assert!(orders.change.unwrap() < -0.1 && orders.interval.unwrap()[1] < -0.02, "{}", orders.reason);
    let basket = decisions.iter().find(|d| d.guardrail == "basket").unwrap();
    assert!(basket.interval.unwrap()[1] < -0.05, "{}", basket.reason);
}

#[test]
fn secondary_metrics_are_shown_with_intervals_and_never_act_nor_cost_anything() {
    let more = "metrics:
  orders: {kind: rate, event: outcome, where: {metric: order}, unit: user, better: up}
  basket: {kind: mean, event: outcome, where: {metric: basket}, unit: user, better: up}";
    let unit: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) = |_, treated, dice, out| {
        requests(out, dice, if treated { 1.5 } else { 1.0 }, 0.01);
        if dice.roll() < if treated { 0.4 } else { 0.3 } {
            out.push((500, r#""event":"outcome","metric":"order","value":true"#.to_owned()));
        }
        out.push((700, format!(r#""event":"outcome","metric":"basket","value":{:.2}"#, 50.0 + 10.0 * dice.normal())));
    };
    let all = lines(&Traffic { seconds: 600, per_second: 10, share: HALF, unit });
    let guarded = rule("  - {metric: error_rate, max_increase: 1pp}", more);
    let (said, fleet) = run(&[&format!("{guarded}success: {{secondary: [orders, basket, latency_p95, error_rate]}}\n")], &all);
    assert_eq!(said.decisions, [], "latency is far worse, and only shown");
    let (_, without) = run(&[&guarded], &all);
    let [view, plain] = [&fleet, &without].map(|fleet| fleet.close_view("exp").unwrap());
    assert_eq!(
        (&view.guardrails, view.verdict, view.go),
        (&plain.guardrails, plain.verdict, plain.go),
        "the guardrail's share is all alpha"
    );
    let found: Vec<(&str, Finding)> = view.secondary.iter().map(|m| (m.metric.as_str(), m.finding)).collect();
    let wanted =
        [("orders", Finding::Better), ("basket", Finding::Unknown), ("latency_p95", Finding::Worse), ("error_rate", Finding::Unknown)];
    assert_eq!(found, wanted, "{:#?}", view.secondary);
    for metric in &view.secondary {
        let ([low, high], change) = (metric.interval.unwrap(), metric.change.unwrap());
        assert!(low < change && change < high && metric.n > 2_000 && metric.baseline_n > 2_000, "{metric:#?}");
        // Two sides of four metrics; of rates and quantiles the whole life has a part of that.
        assert!(metric.alpha.unwrap() <= 0.01 / 8.0 && metric.alpha.unwrap() >= 0.8 * 0.01 / 8.0, "{metric:#?}");
    }
    assert_eq!(fleet.views()[0].secondary, [], "intervals take a close look");
}

#[test]
fn workflows_are_compared_once_their_limit_has_passed() {
    let unit: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) = |_, treated, dice, out| {
        let id = (dice.roll() * 1e12) as u64;
        out.push((100, format!(r#""event":"workflow_started","workflow":"buy","workflow_id":"w{id}""#)));
        if dice.roll() > if treated { 0.4 } else { 0.1 } {
            out.push((5_000, format!(r#""event":"workflow_completed","workflow":"buy","workflow_id":"w{id}""#)));
        }
    };
    let text = rule("  - {metric: abandonment, within: 20s, max_increase: 1pp, on_breach: pause}", "");
    let (decisions, _) = golden("abandonment", &text, &lines(&Traffic { seconds: 300, per_second: 5, share: HALF, unit }));
    assert_eq!(decisions.len(), 1);
    assert_eq!((decisions[0].action, decisions[0].test.as_str()), (Action::Pause, "rate"));
    assert!(decisions[0].decided_at > START + 20_000 && decisions[0].interval.unwrap()[0] > 0.01, "{}", decisions[0].reason);
}

#[test]
fn a_ramp_through_a_drifting_baseline_alarms_nobody() {
    // Latency and errors double while the canary grows from 10% to 50%: pooled sums would blame the treatment.
    let unit: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) = |second, _, dice, out| {
        let drift = if second < 300 { 1.0 } else { 2.0 };
        requests(out, dice, drift, 0.01 * drift);
    };
    let guardrails = "  - {metric: latency_p95, max_increase: 0%}\n  - {metric: error_rate, max_increase: 0pp}";
    let text = rule(guardrails, "")
        .replace("control: {baseline: true}, treatment: {}", "control: {baseline: true, weight: 90%}, treatment: {weight: 10%}");
    let share: fn(i64) -> f64 = |second| if second < 300 { 0.1 } else { 0.5 };
    let mut all = lines(&Traffic { seconds: 600, per_second: 10, share, unit });
    let ramp =
        format!(r#"{{"event":"phase","ts":{},"experiment":"exp","phase":1,"weights":{{"control":0.5,"treatment":0.5}}}}"#, START + 300_000);
    let at = all.iter().position(|line| line.contains(&format!("\"ts\":{}", START + 300_000))).unwrap();
    all.insert(at, ramp);
    let (decisions, _) = golden("ramp", &text, &all);
    assert_eq!(decisions, []);
    // The same without the word of the ramp: the sample ratio tells.
    all.remove(at);
    let text =
        text.replace("increase: 0%}", "increase: 0%, on_breach: notify}").replace("increase: 0pp}", "increase: 0pp, on_breach: notify}");
    let (said, _) = run(&[&text], &all);
    assert!(said.decisions.iter().any(|d| d.guardrail == "srm"));
}

#[test]
fn lost_units_and_lost_events_are_told_apart() {
    let unit: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) = |_, treated, dice, out| {
        // Two of three requests of the treatment are lost.
        let sent: Vec<(i64, String)> = (0..12).map(|k| request(50 + k * 200, 20.0 + dice.roll(), false)).collect();
        out.extend(sent.into_iter().filter(|_| !treated || dice.roll() < 0.33));
    };
    let more = "quality: {volume_parity: {max_gap: 10%, do: pause}, srm: {alpha: 0.001, do: pause}}";
    let text = rule("  - {metric: latency_p95, max_increase: 50%}", more);
    let (decisions, _) = golden("parity", &text, &lines(&Traffic { seconds: 200, per_second: 5, share: HALF, unit }));
    assert_eq!(decisions.iter().map(|d| d.guardrail.as_str()).collect::<Vec<_>>(), ["volume_parity"]);
    assert!(decisions[0].reason.contains("treatment has -"), "{}", decisions[0].reason);

    let (decisions, _) = golden(
        "srm",
        &text,
        &lines(&Traffic { seconds: 300, per_second: 10, share: |_| 0.42, unit: |_, _, dice, out| requests(out, dice, 1.0, 0.0) }),
    );
    assert_eq!(decisions.iter().map(|d| (d.guardrail.as_str(), d.action)).collect::<Vec<_>>(), [("srm", Action::Pause)]);
}

#[test]
fn other_methods_answer_from_the_same_statistics() {
    let unit: fn(i64, bool, &mut Dice, &mut Vec<(i64, String)>) =
        |_, treated, dice, out| requests(out, dice, if treated { 1.5 } else { 1.0 }, if treated { 0.06 } else { 0.01 });
    let guardrails = "  - {metric: latency_p95, max_increase: 10%}\n  - {metric: error_rate, max_increase: 1pp, on_breach: notify}";
    let all = lines(&Traffic { seconds: 200, per_second: 5, share: HALF, unit });
    let (decisions, _) = golden("bayesian", &rule(guardrails, "analysis: {method: bayesian}"), &all);
    let mut tests: Vec<&str> = decisions.iter().map(|d| d.test.as_str()).collect();
    tests.sort_unstable();
    assert_eq!(tests, ["posterior_quantile", "posterior_rate"]);
    let ends = "2025-12-02T09:02:00Z";
    let text = rule(guardrails, "analysis: {method: fixed_horizon}")
        .replace("owner: team", &format!("owner: team, starts: 2025-12-02T08:00:00Z, ends: {ends}"));
    let (decisions, _) = golden("fixed", &text, &all);
    assert_eq!(decisions.iter().map(|d| d.test.as_str()).collect::<Vec<_>>(), ["fixed_quantile", "fixed_rate"]);
    assert!(decisions.iter().all(|d| d.decided_at == START + 120_000), "one look, at the end: {:?}", decisions[0].decided_at - START);
}

#[test]
fn a_bucket_that_starves_and_an_endless_user_prove_nothing() {
    // One user sends nine of ten requests of the treatment, and all of his fail.
    let mut all = lines(&Traffic { seconds: 300, per_second: 5, share: HALF, unit: |_, _, dice, out| requests(out, dice, 1.0, 0.01) });
    let whale =
        |ms: i64| format!(r#"{{"ts":{},"tenant_id":"t","user_id":"whale","event":"request","latency_ms":900,"error":true}}"#, START + ms);
    let exposed =
        format!(r#"{{"ts":{START},"tenant_id":"t","user_id":"whale","event":"exposure","experiment":"exp","bucket":"treatment"}}"#);
    all.insert(0, exposed);
    let ts = |line: &String| line[6..19].parse::<i64>().unwrap();
    all.extend((0..3_000).map(|k| whale(k * 100 + 1)));
    all.sort_by_key(ts);
    let text = rule("  - {metric: error_rate, max_increase: 1pp}\n  - {metric: latency_p95, max_increase: 10%}", "");
    let (said, fleet) = run(&[&text], &all);
    assert_eq!(said.decisions, [], "{}", said.decisions[0].reason);
    assert!(only(&fleet).design_effect.unwrap() > 100.0);
    // Nobody in treatment: nothing to compare.
    let (said, fleet) = run(
        &[&rule("  - {metric: latency_p95, max_increase: 0%}", "quality: {srm: off}")],
        &lines(&Traffic { seconds: 60, per_second: 5, share: |_| 0.0, unit: |_, _, dice, out| requests(out, dice, 1.0, 0.0) }),
    );
    assert_eq!((said.decisions.len(), only(&fleet).verdict), (0, Verdict::NoData));
}
