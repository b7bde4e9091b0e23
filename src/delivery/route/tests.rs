use super::*;
use crate::engine::decision::{Evidence, Verdict};
use crate::engine::plan::{Correction, Method, Plan};
use crate::rules::{Channel, Flag};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

fn rule(routes: &[(Action, &str)]) -> RuleSet {
    let plan = Plan {
        experiment: "new-checkout".to_owned(),
        revision: 3,
        buckets: Vec::new(),
        starts: None,
        ends: None,
        phases: Vec::new(),
        holdback: 0.0,
        watch_after_full: None,
        warm_up: 0,
        signals: Vec::new(),
        guardrails: Vec::new(),
        quality: Vec::new(),
        secondary: Vec::new(),
        retention: Vec::new(),
        funnels: Vec::new(),
        eligibility: Default::default(),
        assignment: None,
        alpha: 0.01,
        correction: Correction::Holm,
        segments: None,
        method: Method::Sequential,
        cuped: true,
        min_units: 100,
        mode: Mode::Enforce,
        confirm_within: 120_000,
        unconfirmed: Vec::new(),
        undone: Vec::new(),
        rate_limit: None,
    };
    let route =
        |endpoint: &str| Route { channel: Channel::Webhook, endpoint: endpoint.to_owned(), body: Some(json!({ "flag": endpoint })) };
    RuleSet {
        plan: Arc::new(plan),
        routes: routes.iter().map(|(a, e)| (*a, route(e))).collect::<BTreeMap<_, _>>(),
        runbook: Some("https://wiki.example/rb".to_owned()),
        flag: Some(Flag { name: Some("new-checkout".to_owned()), default: None }),
        file: "new-checkout.yaml".into(),
    }
}

fn whole() -> RuleSet {
    rule(&[
        (Action::Kill, "switch"),
        (Action::Rollback, "flags"),
        (Action::Pause, "ramp"),
        (Action::Page, "pager"),
        (Action::Notify, "chat"),
    ])
}

fn decision(action: Action, mode: Mode, criterion: &str) -> Decision {
    Decision {
        decision: "d-1".to_owned(),
        decided_at: 1_764_667_217_000,
        experiment: "new checkout".to_owned(),
        revision: 3,
        phase: 0,
        bucket: "treatment".to_owned(),
        guardrail: "latency_p95".to_owned(),
        criterion: criterion.to_owned(),
        verdict: Verdict::Breach,
        action,
        mode,
        baseline_value: Some(420.0),
        bucket_value: Some(518.0),
        unit: "ms".to_owned(),
        change: Some(0.233),
        interval: Some([0.141, 0.33]),
        margin: Some(0.1),
        alpha: Some(0.0025),
        log_e_value: Some(7.9),
        test: "count".to_owned(),
        since: 1_764_666_845_000,
        exposed_units: 18_402,
        evidence: Evidence::Exceedance { side: "over".into(), n: 10, s: 3, q0_ppm: 50_000, deff: 1.0 },
        reason: "slower".to_owned(),
        epoch: 0,
        segment: None,
        covered_by: None,
        held_by: None,
        author: None,
        shared_cause: None,
    }
}

fn sent(action: Action, mode: Mode, criterion: &str) -> Vec<(String, String, &'static str, Priority)> {
    let rows = Router::default().decision(&whole(), &decision(action, mode, criterion), None);
    rows.into_iter().map(|d| (d.id, d.endpoint, d.event_type, d.priority)).collect()
}

fn one(id: &str, endpoint: &str, event_type: &'static str, priority: Priority) -> Vec<(String, String, &'static str, Priority)> {
    vec![(id.to_owned(), endpoint.to_owned(), event_type, priority)]
}

#[test]
fn each_action_goes_to_its_own_route() {
    use Mode::Enforce;
    assert_eq!(sent(Action::Kill, Enforce, "limit"), one("d-1-kill", "switch", "guardrail.kill", Priority::Kill));
    assert_eq!(sent(Action::Rollback, Enforce, "limit"), one("d-1-rollback", "flags", "guardrail.rollback", Priority::Rollback));
    assert_eq!(sent(Action::Pause, Enforce, "srm"), one("d-1-pause", "ramp", "guardrail.pause", Priority::Pause));
    assert_eq!(sent(Action::Page, Enforce, "limit"), one("d-1-page", "pager", "guardrail.alert", Priority::Inform));
    assert_eq!(sent(Action::Notify, Enforce, "limit"), one("d-1-notify", "chat", "guardrail.alert", Priority::Inform));
    assert_eq!(sent(Action::Hold, Enforce, "silence"), one("d-1-hold", "chat", "guardrail.alert", Priority::Inform));
    assert_eq!(sent(Action::Kill, Enforce, UNCONFIRMED[0]), one("d-1-kill", "switch", "guardrail.kill", Priority::Kill));
    assert_eq!(sent(Action::Page, Enforce, UNCONFIRMED[0]), one("d-1-page", "pager", "guardrail.unconfirmed", Priority::Inform));
}

#[test]
fn observe_withholds_interventions_and_nothing_else() {
    for action in [Action::Kill, Action::Rollback, Action::Pause] {
        assert_eq!(sent(action, Mode::Observe, "limit"), []);
    }
    for action in [Action::Page, Action::Notify, Action::Hold] {
        assert_eq!(sent(action, Mode::Observe, "limit"), sent(action, Mode::Enforce, "limit"));
    }
}

#[test]
fn without_a_route_nobody_is_told() {
    let rule = rule(&[(Action::Page, "pager")]);
    for action in [Action::Hold, Action::Notify, Action::Pause, Action::Rollback, Action::Kill] {
        assert_eq!(Router::default().decision(&rule, &decision(action, Mode::Enforce, "limit"), None), []);
    }
}

fn noticed(rule: &RuleSet, kind: NoticeKind, action: Action) -> Vec<(String, String)> {
    let notice = Notice { kind, at: 1_764_667_249_000, decision: decision(action, Mode::Enforce, "limit"), text: "a word".to_owned() };
    Router::default().notice(rule, &notice, None).into_iter().map(|d| (d.id, d.endpoint)).collect()
}

#[test]
fn notices_go_to_those_who_care() {
    let pair = |id: &str, endpoint: &str| (id.to_owned(), endpoint.to_owned());
    let all = whole();
    assert_eq!(noticed(&all, NoticeKind::Confirmed, Action::Rollback), [pair("d-1-confirmed", "chat")]);
    assert_eq!(noticed(&all, NoticeKind::Resolved, Action::Rollback), [pair("d-1-resolved", "pager"), pair("d-1-resolved-2", "chat")]);
    assert_eq!(noticed(&all, NoticeKind::Resolved, Action::Page), [pair("d-1-resolved", "pager")]);
    assert_eq!(noticed(&all, NoticeKind::Resolved, Action::Notify), [pair("d-1-resolved", "chat")]);

    let same = rule(&[(Action::Notify, "chat"), (Action::Page, "chat")]);
    assert_eq!(noticed(&same, NoticeKind::Resolved, Action::Rollback), [pair("d-1-resolved", "chat")]);
}

#[test]
fn who_was_paged_hears_that_it_is_over_or_held_and_nobody_hears_it_twice() {
    let paging = RuleSet { plan: Arc::new(Plan { unconfirmed: vec![Action::Page], ..(*whole().plan).clone() }), ..whole() };
    let at = |after: i64| 1_764_667_217_000 + after;
    let told = |kind, after, decision: Decision| {
        let notice = Notice { kind, at: at(after), decision, text: "a word".to_owned() };
        Router::default().notice(&paging, &notice, None).into_iter().map(|d| d.endpoint).collect::<Vec<_>>()
    };
    let rollback = || decision(Action::Rollback, Mode::Enforce, "limit");
    assert_eq!(told(NoticeKind::Confirmed, 60_000, rollback()), ["chat"]);
    assert_eq!(told(NoticeKind::Confirmed, 121_000, rollback()), ["pager", "chat"], "it had been paged after two minutes");
    assert_eq!(told(NoticeKind::Held, 60_000, decision(Action::Page, Mode::Enforce, "limit")), ["pager"]);
    let follow_up = decision(Action::Page, Mode::Enforce, UNCONFIRMED[0]);
    assert_eq!(told(NoticeKind::Resolved, 60_000, follow_up), Vec::<String>::new(), "the rollback's own word says it");
}

#[test]
fn the_body_is_the_decision_with_the_rules_body_and_links() {
    let router = Router { base_url: Url::parse("https://guardraild.example/ui/").ok(), topic: None };
    let d = decision(Action::Rollback, Mode::Enforce, "limit");
    let row = &router.decision(&whole(), &d, Some("00-a-b-01"))[0];
    let body: Value = serde_json::from_str(&row.payload).unwrap();
    let mut data = serde_json::to_value(&d).unwrap();
    data["body"] = json!({ "flag": "flags" });
    data["flag"] = json!({ "name": "new-checkout" });
    data["links"] = json!({
        "experiment": "https://guardraild.example/ui/#/e/new%20checkout",
        "decision": "https://guardraild.example/ui/#/d/d-1",
        "runbook": "https://wiki.example/rb",
    });
    assert_eq!(body, json!({ "type": "guardrail.rollback", "timestamp": "2025-12-02T09:20:17Z", "data": data }));
    assert_eq!((row.escalate_to.as_deref(), row.traceparent.as_deref()), (Some("pager"), Some("00-a-b-01")));

    let notice = Notice { kind: NoticeKind::Confirmed, at: 1_764_667_249_000, decision: d, text: "exposures stopped".to_owned() };
    let body: Value = serde_json::from_str(&router.notice(&whole(), &notice, None)[0].payload).unwrap();
    assert_eq!((&body["type"], &body["timestamp"]), (&json!("guardrail.confirmed"), &json!("2025-12-02T09:20:49Z")));
    assert_eq!(body["data"]["notice"], json!({ "kind": "confirmed", "at": "2025-12-02T09:20:49Z", "text": "exposures stopped" }));
}

#[test]
fn what_an_earlier_decision_has_done_is_not_sent_again() {
    let mut covered = decision(Action::Rollback, Mode::Enforce, "limit");
    covered.covered_by = Some("d-0".to_owned());
    assert_eq!(Router::default().decision(&whole(), &covered, None), []);
    covered.action = Action::Page;
    assert_eq!(Router::default().decision(&whole(), &covered, None).len(), 1, "people are told of each");
}

#[test]
fn a_shared_cause_is_told_once_to_each_receiver_and_interventions_go_on() {
    let rules: BTreeMap<String, Arc<RuleSet>> = [("a", "pager"), ("b", "pager"), ("c", "night-shift"), ("d", "")]
        .into_iter()
        .map(|(name, pager)| {
            let routes: &[(Action, &str)] =
                if pager.is_empty() { &[(Action::Notify, "chat")] } else { &[(Action::Page, pager), (Action::Notify, "chat")] };
            (name.to_owned(), Arc::new(rule(routes)))
        })
        .collect();
    let experiments = rules.keys().cloned().collect();
    let evidence = Evidence::SharedCause { count: 4, allowed: 2, live: 9, experiments };
    let shared =
        |action| Decision { evidence: evidence.clone(), experiment: String::new(), ..decision(action, Mode::Enforce, "shared_cause") };
    let sent = |action| Router::default().shared(&rules, &shared(action), None).into_iter().map(|d| d.id).collect::<Vec<_>>();
    assert_eq!(sent(Action::Page), ["d-1-pager", "d-1-night-shift", "d-1-chat"]);
    assert_eq!(sent(Action::Notify), ["d-1-chat"]);

    let member = |action| Decision { decision: "d-2".into(), shared_cause: Some("d-1".into()), ..decision(action, Mode::Enforce, "limit") };
    let id = |action| Router::default().decision(&whole(), &member(action), None).remove(0).id;
    assert_eq!(
        (id(Action::Page).as_str(), id(Action::Notify).as_str()),
        ("d-1-pager", "d-1-chat"),
        "the outbox has these, or takes them now"
    );
    assert_eq!(id(Action::Rollback), "d-2-rollback");
    let notice = |kind| Notice { kind, at: 0, decision: member(Action::Rollback), text: String::new() };
    assert_eq!(Router::default().notice(&whole(), &notice(NoticeKind::Confirmed), None), []);
}
