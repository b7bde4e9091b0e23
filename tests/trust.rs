//! Can the data be trusted: who counts, who must not take part, what is missing; and that no data fault hides a breach or looks safe.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::cli::audit::{Finding, audit};
use guardraild::engine::assign::{Algorithm, Assignment, UnitField};
use guardraild::engine::decision::{Action, Decision, Output, Verdict};
use guardraild::engine::event::{Event, Kind};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::plan::Settings;
use guardraild::engine::state::{ExperimentState, QualityState};
use std::collections::BTreeMap;
use support::*;

fn rule(more: &str) -> String {
    format!(
        "guardrail: v1\noverview: {{experiment: exp, owner: team}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n\
         guardrails:\n  - {{metric: error_rate, limit: 20%}}\n  - {{metric: compliance_flags, limit: 0, on_breach: kill}}\n\
         actions: {{mode: enforce, rollback: {{webhook: flags}}, kill: {{webhook: flags}}, pause: {{webhook: ramp}}, page: {{webhook: pager}}, notify: {{webhook: chat}}}}\n{more}\n"
    )
}

fn state(fleet: &Fleet) -> ExperimentState {
    fleet.views().remove(0)
}

fn check(fleet: &Fleet, name: &str) -> QualityState {
    state(fleet).quality.into_iter().find(|q| q.check == name).unwrap()
}

fn verdict(fleet: &Fleet, guardrail: &str) -> Verdict {
    state(fleet).guardrails.into_iter().find(|g| g.guardrail == guardrail).unwrap().verdict
}

/// The decisions' guardrails; what a test decided, its evidence gives again.
fn decided(said: &Said) -> Vec<&str> {
    let followed = |d: &&Decision| d.criterion == "confirm_within";
    for decision in said.decisions.iter().filter(|d| !followed(d)) {
        let finding = audit(&serde_json::to_value(decision).unwrap());
        assert!(matches!(finding, Finding::Ok(_)), "{finding:?}: {decision:?}");
    }
    said.decisions.iter().filter(|d| !followed(d)).map(|d| d.guardrail.as_str()).collect()
}

fn exposed_with(ms: i64, tenant: &str, user: u32, attributes: &str) -> String {
    exposure(ms, user, "exp", bucket_of(user)).replace("\"t\"", &format!("\"{tenant}\"")).replace('}', &format!("{attributes}}}"))
}

/// Ten users a second, each exposed and with a request 400 ms later; `change` may say something else in its place.
fn traffic(seconds: i64, change: impl Fn(i64, u32) -> Option<Vec<String>>) -> Vec<String> {
    let mut lines = Vec::new();
    for second in 0..seconds {
        for i in 0..10u32 {
            let (user, ms) = (second as u32 * 10 + i, second * 1_000 + i64::from(i) * 50);
            let usual = || vec![exposure(ms, user, "exp", bucket_of(user)), request(ms + 400, user, 100.0, false)];
            lines.extend(change(ms, user).unwrap_or_else(usual));
        }
    }
    lines
}

#[test]
fn users_in_two_buckets_pause_the_ramp_and_are_left_out_from_then_on() {
    // Every tenth user is seen in both; before that it has a request, after it one that fails.
    let wander = |ms: i64, user: u32| {
        let other = if bucket_of(user) == "control" { "treatment" } else { "control" };
        (user % 10 == 3).then(|| {
            vec![
                exposure(ms, user, "exp", bucket_of(user)),
                request(ms + 1, user, 100.0, false),
                exposure(ms + 2, user, "exp", other),
                request(ms + 3, user, 100.0, true),
                unit_event("request", ms + 4, user, r#","experiment":"exp","bucket":"treatment","error":true"#),
            ]
        })
    };
    let (said, fleet) = run(&[&rule("")], &traffic(60, wander));
    assert_eq!(decided(&said), ["mixed_assignment"]);
    let d = &said.decisions[0];
    assert_eq!((d.action, d.test.as_str(), d.margin, d.alpha), (Action::Pause, "threshold", Some(0.01), Some(0.01)));
    assert!(d.reason.contains("exposed units (10.00%) were seen in two buckets, at most 1% may be"), "{}", d.reason);
    let (state, check) = (state(&fleet), check(&fleet, "mixed_assignment"));
    assert_eq!((state.data.mixed_units, state.data.set_aside), (60, 120));
    assert_eq!((check.value, check.verdict), (Some(0.1), Verdict::Breach), "{}", check.reason);
    let errors = &state.guardrails[0];
    assert_eq!((errors.n, errors.bucket_value), (300, Some(0.0)), "what came before the second bucket counts, what came after it does not");
    assert_eq!(state.buckets.iter().map(|b| b.exposed_units).collect::<Vec<_>>(), [300, 300], "nothing is undone");
    assert!(!state.go && state.reason.contains("mixed_assignment"), "{}", state.reason);
}

#[test]
fn users_whom_a_ramp_moves_are_left_out_and_are_no_fault() {
    // After 30 s everybody of before comes again, in the other bucket.
    let mut lines = traffic(30, |_, _| None);
    lines.push(control("phase", 30_000, r#","phase":1,"weights":{"control":0.1,"treatment":0.9}"#));
    for user in 0..300u32 {
        let other = if bucket_of(user) == "control" { "treatment" } else { "control" };
        lines.push(exposure(31_000 + 100 * i64::from(user), user, "exp", other));
    }
    let (said, fleet) = run(&[&rule("")], &lines);
    assert_eq!(decided(&said), Vec::<&str>::new());
    let (data, check) = (state(&fleet).data, check(&fleet, "mixed_assignment"));
    assert_eq!((data.mixed_units, check.value, check.verdict), (300, Some(0.0), Verdict::Watching), "{}", check.reason);
}

#[test]
fn few_users_in_two_buckets_are_within_the_bound() {
    let wander = |ms: i64, user: u32| {
        (user % 500 == 3).then(|| vec![exposure(ms, user, "exp", "treatment"), exposure(ms + 1, user, "exp", "control")])
    };
    let (said, fleet) = run(&[&rule("")], &traffic(400, wander));
    assert_eq!(said.decisions, []);
    let check = check(&fleet, "mixed_assignment");
    assert_eq!((check.verdict, check.value), (Verdict::Safe, Some(0.002)), "{}", check.reason);
}

#[test]
fn one_user_in_every_bucket_and_one_with_very_many_events_move_nothing() {
    let mut lines = traffic(30, |_, _| None);
    for i in 0..2_000 {
        lines.push(exposure(30_000 + i, 1, "exp", if i % 2 == 0 { "control" } else { "treatment" }));
        lines.push(request(30_000 + i, 1, 100.0, true));
    }
    let (said, fleet) = run(&[&rule("")], &lines);
    assert_eq!(said.decisions, []);
    assert_eq!((state(&fleet).data.mixed_units, state(&fleet).data.set_aside), (1, 2_000));
}

const ASSIGNED: &str = "eligibility: {assignment: {namespace: checkout, algorithm: growthbook_v2, overrides: {t|u7: treatment}}}";

/// The bucket that the flag service gives a user.
fn assigned(namespace: &str, user: u32, treated: f64) -> &'static str {
    let overrides = BTreeMap::from([("t|u7".to_owned(), 1)]);
    let unit = vec![UnitField::Tenant, UnitField::User];
    let rule = Assignment { algorithm: Algorithm::GrowthbookV2, namespace: namespace.into(), unit, overrides, holdback: 0.0, baseline: 0 };
    let event = Event {
        ts: 0,
        id: None,
        tenant_id: Some("t".into()),
        user_id: Some(format!("u{user}").into()),
        experiment: None,
        bucket: None,
        attributes: Default::default(),
        kind: Kind::Exposure,
        fields: Default::default(),
    };
    if rule.fits(rule.place(&event).unwrap(), 1, &[1.0 - treated, treated]) { "treatment" } else { "control" }
}

fn ramp(namespace: &str, settle_ms: i64) -> Vec<String> {
    let phase =
        format!(r#"{{"event":"phase","ts":{},"experiment":"exp","phase":1,"weights":{{"control":0.8,"treatment":0.2}}}}"#, START + 60_000);
    let expose = |ms: i64, user: u32| {
        let treated = if ms < 60_000 + settle_ms { 0.5 } else { 0.2 };
        let mut lines = vec![exposure(ms, user, "exp", assigned(namespace, user, treated))];
        // Whoever was exposed before stays where it is.
        let early = user % 600;
        lines.push(exposure(ms + 1, early, "exp", assigned(namespace, early, 0.5)));
        Some(lines)
    };
    let mut lines = traffic(200, expose);
    lines.insert(1_200, phase);
    lines
}

#[test]
fn a_bucket_that_the_hash_does_not_give_is_noticed_and_a_ramp_is_not() {
    let (said, fleet) = run(&[&rule(ASSIGNED)], &ramp("checkout", 20_000));
    assert_eq!(said.decisions, [], "the old shares may be seen for half a minute, and by those exposed before");
    assert_eq!((state(&fleet).data.placed_units, state(&fleet).data.misplaced_units), (Some(1_700), Some(0)));
    let check = check(&fleet, "mixed_assignment");
    assert_eq!(check.verdict, Verdict::Safe, "{}", check.reason);
    let (said, fleet) = run(&[&rule(ASSIGNED)], &ramp("another", 0));
    assert!(decided(&said).contains(&"mixed_assignment"));
    let d = said.decisions.iter().find(|d| d.guardrail == "mixed_assignment").unwrap();
    assert!(d.reason.contains("are in another bucket than their assignment gives, at most 1% may be"), "{}", d.reason);
    assert!(d.alpha == Some(0.005) && state(&fleet).data.misplaced_units > Some(300));
}

const ELIGIBLE: &str = "eligibility: {population: {region: [eu, uk]}, exclude: {tenant_id: [t-restricted]}}";

#[test]
fn an_ineligible_exposure_pages_at_once_and_its_unit_does_not_count() {
    let text = rule(&format!("{ELIGIBLE}\nquality: {{ineligible: {{max: 0, do: page}}}}"));
    let mut lines: Vec<String> = (0..20).map(|u| exposed_with(i64::from(u), "t", u, r#","attributes":{"region":"eu"}"#)).collect();
    lines.push(exposed_with(10_100, "t-restricted", 1, r#","attributes":{"region":"eu"}"#));
    let (catalog, settings) = (catalog(&[&text]), Settings::default());
    let mut partition = Partition::new(0, &catalog, &settings);
    let (mut fleet, mut out) = (Fleet::new(&catalog, settings.pane), Output::default());
    let mut take = |partition: &mut Partition, fleet: &mut Fleet, lines: &[String]| {
        lines.iter().for_each(|line| {
            partition.read(line);
        });
        partition.aggregator.drain().into_iter().for_each(|e| fleet.take(e, &mut out));
        out.decisions.clone()
    };
    let said = take(&mut partition, &mut fleet, &lines);
    assert_eq!(said.len(), 1, "its pane is still open: {said:?}");
    let Decision { action, decided_at, guardrail, reason, .. } = &said[0];
    assert_eq!((*action, *decided_at, guardrail.as_str()), (Action::Page, START + 10_100, "ineligible"));
    assert_eq!(reason, "exposure of a unit that must not take part: its tenant_id t-restricted is excluded");
    // It fails all the time, and is exposed again; but a flag is nobody's statistic.
    let mut more: Vec<String> = (0..200).map(|i| request(11_000 + i, 1, 100.0, true).replace("\"t\"", "\"t-restricted\"")).collect();
    more.push(exposed_with(11_500, "t-restricted", 1, r#","attributes":{"region":"eu"}"#));
    more.push(exposed_with(11_600, "t", 3, r#","attributes":{"region":"mars"}"#));
    more.push(request(12_000, 3, 100.0, true));
    more.push(unit_event("compliance_flag", 12_100, 1, r#","flag":"missing_consent""#).replace("\"t\"", "\"t-restricted\""));
    let said = take(&mut partition, &mut fleet, &more);
    assert_eq!(said[1..].iter().map(|d| d.action).collect::<Vec<_>>(), [Action::Kill], "{said:?}");
    partition.aggregator.finish();
    take(&mut partition, &mut fleet, &[]);
    let state = state(&fleet);
    assert_eq!((state.data.ineligible_exposures, state.data.ineligible_units, state.data.set_aside), (3, 2, 202));
    assert_eq!(state.buckets[1].exposed_units, 10, "the restricted unit is no unit of the experiment");
    assert_eq!(state.buckets[1].exposures, 13, "but it is exposed, and whoever waits for exposures to stop should know");
    assert_eq!(state.guardrails[0].n, 0, "{:?}", state.guardrails[0]);
}

#[test]
fn some_ineligible_units_may_be_allowed() {
    let text = rule(&format!("{ELIGIBLE}\nquality: {{ineligible: {{max: 5%, do: kill}}}}"));
    let region = |every: u32| {
        move |ms: i64, user: u32| {
            let region = if user % every == 3 { "mars" } else { "uk" };
            Some(vec![exposed_with(ms, "t", user, &format!(r#","attributes":{{"region":"{region}"}}"#))])
        }
    };
    let (said, fleet) = run(&[&text], &traffic(200, region(100)));
    assert_eq!((said.decisions.len(), check(&fleet, "ineligible").verdict), (0, Verdict::Safe));
    let (said, fleet) = run(&[&text], &traffic(200, region(5)));
    assert_eq!(decided(&said), ["ineligible"]);
    assert!(said.decisions[0].action == Action::Kill && state(&fleet).stop);
    assert!(said.decisions[0].reason.ends_with("must not take part, at most 5% may be"), "{}", said.decisions[0].reason);
}

#[test]
fn who_cannot_be_told_is_not_ineligible_and_not_safe() {
    let text = rule(&format!("{ELIGIBLE}\nquality: {{ineligible: {{max: 0, do: page}}}}"));
    let (said, fleet) = run(&[&text], &traffic(60, |_, _| None));
    assert_eq!(said.decisions, []);
    let check = check(&fleet, "ineligible");
    assert_eq!((check.verdict, state(&fleet).data.unknown_units), (Verdict::Watching, 600));
    assert_eq!(check.reason, "600 exposed units do not tell whether they may take part");
}

#[test]
fn a_field_that_one_bucket_lacks_holds_hides_no_breach_and_is_never_safe() {
    let text = rule("quality: {missing: {fields: [/latency_ms], max: 2%, do: hold}}");
    let lacking = |to: i64, failing: bool| {
        move |ms: i64, user: u32| {
            let treated = bucket_of(user) == "treatment";
            let lacks = treated && ms < to && user % 4 == 1;
            let error = treated && failing && !user.is_multiple_of(3);
            let request = match lacks {
                true => unit_event("request", ms + 400, user, &format!(r#","error":{error}"#)),
                false => request(ms + 400, user, 100.0, error),
            };
            Some(vec![exposure(ms, user, "exp", bucket_of(user)), request])
        }
    };
    let (said, fleet) = run(&[&text], &traffic(120, lacking(i64::MAX, false)));
    assert_eq!(decided(&said), ["missing"]);
    let reason = &said.decisions[0].reason;
    assert!(
        reason.starts_with("/latency_ms is missing in ") && reason.contains("request events of treatment in the last 10 min"),
        "{reason}"
    );
    assert!(reason.ends_with("at most 2% may be; of control in 0.0%: comparisons of what reads it are biased"), "{reason}");
    let errors = state(&fleet).guardrails.remove(0);
    assert_eq!((errors.verdict, state(&fleet).go), (Verdict::Watching, false), "{}", errors.reason);
    assert!(errors.reason.ends_with("by data that cannot be trusted: missing fails"), "{}", errors.reason);
    // The same, while the bucket fails.
    let (said, fleet) = run(&[&text], &traffic(120, lacking(i64::MAX, true)));
    assert!(decided(&said).contains(&"missing") && decided(&said).contains(&"error_rate"), "{:?}", said.decisions);
    assert_eq!(verdict(&fleet, "error_rate"), Verdict::Breach);
    // When it is over, so is the hold.
    let (said, fleet) = run(&[&text], &traffic(800, lacking(60_000, false)));
    assert_eq!(decided(&said), ["missing"]);
    assert!(said.log.iter().any(|l| l.text == "missing is over: its hold is lifted"), "{:?}", said.log);
    assert_eq!((verdict(&fleet, "error_rate"), state(&fleet).holds), (Verdict::Safe, Vec::new()));
    let check = check(&fleet, "missing");
    assert!(check.reason.starts_with("the check has failed, and is over: see d-"), "{}", check.reason);
}

#[test]
fn a_field_that_all_lack_biases_no_comparison() {
    let text = rule("quality: {missing: {fields: [/latency_ms], max: 2%, do: notify}}");
    let lacking = |ms: i64, user: u32| Some(vec![exposure(ms, user, "exp", bucket_of(user)), unit_event("request", ms + 400, user, "")]);
    let (said, _) = run(&[&text], &traffic(60, lacking));
    assert_eq!(decided(&said), ["missing"]);
    assert!(said.decisions[0].reason.ends_with("at most 2% may be; in all buckets alike"), "{}", said.decisions[0].reason);
}

#[test]
fn users_that_fall_silent_in_one_bucket_are_missed_after_a_while() {
    let text = rule("quality: {missing: {fields: [/latency_ms], max: 2%, do: page}}");
    let silent = |share: u32| {
        move |ms: i64, user: u32| {
            let lost = bucket_of(user) == "treatment" && user / 2 % 10 < share || bucket_of(user) == "control" && user / 2 % 10 < 1;
            lost.then(|| vec![exposure(ms, user, "exp", bucket_of(user))])
        }
    };
    let (said, fleet) = run(&[&text], &traffic(900, silent(3)));
    assert_eq!(decided(&said), ["missing"]);
    let d = &said.decisions[0];
    assert!(d.decided_at > START + 600_000 && d.test == "rate" && d.action == Action::Page, "{d:?}");
    assert!(d.reason.contains("exposed users of treatment had no event within 10 min, "), "{}", d.reason);
    assert!(
        d.reason.ends_with("% of control: they differ by more than the 2 points that are allowed, so comparisons are biased"),
        "{}",
        d.reason
    );
    assert_eq!(check(&fleet, "missing").verdict, Verdict::Breach);
    let (said, fleet) = run(&[&text], &traffic(2_000, silent(1)));
    assert_eq!(said.decisions, [], "as many in both");
    assert_eq!(check(&fleet, "missing").verdict, Verdict::Safe, "{}", check(&fleet, "missing").reason);
}

#[test]
fn late_and_repeated_records_and_those_of_the_future_are_figures_and_clocks_a_day_off_prove_nothing() {
    let mut lines = traffic(60, |_, _| None);
    for user in 0..50u32 {
        lines.push(unit_event("ticket", 59_000, user, r#","id":"same""#));
        lines.push(request(-86_400_000, user, 5_000.0, true));
        lines.push(exposure(-86_400_000, user, "exp", "treatment"));
    }
    let (said, fleet) = run(&[&rule("")], &lines);
    assert_eq!(said.decisions, []);
    let data = state(&fleet).data;
    assert_eq!((data.late, data.duplicate), (50, 49), "an event a day before its exposure joins nothing");
    assert!((data.late_share.unwrap() - 50.0 / 1_300.0).abs() < 1e-3 && data.mixed_units == 0);
}
