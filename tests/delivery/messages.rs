//! What people read: real decisions, as the router and each kind of endpoint for people make messages of them.

use super::*;
use guardraild::delivery::{Router, Sender};
use guardraild::engine::decision::{HeldBy, NoticeKind};
use guardraild::rules::{self, RuleSet};
use guardraild::store::{Delivery, NewDelivery};
use serde_json::Value;
use std::fmt::Write as _;

const NOW: i64 = 1_764_666_660_000;

fn rule() -> Arc<RuleSet> {
    let loaded = rules::load(&["tests/delivery/rules.yaml".into()], None);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics.iter().map(|d| d.human(false)).collect::<Vec<_>>());
    Arc::clone(&loaded.rules[0])
}

/// The decision of a golden log that has this action.
fn golden(name: &str, action: Action) -> Decision {
    let text = std::fs::read_to_string(format!("tests/golden/{name}.decisions.jsonl")).unwrap();
    let mut decisions = text.lines().filter_map(|line| serde_json::from_str::<Decision>(line).ok());
    Decision { experiment: "new-checkout".to_owned(), ..decisions.find(|d| d.action == action).unwrap() }
}

fn stored(new: NewDelivery) -> Delivery {
    Delivery {
        decision: "d-1".to_owned(),
        experiment: "new-checkout".to_owned(),
        priority: new.priority,
        ..Delivery::pending(&new.id, &new.endpoint, new.event_type, new.payload, 0)
    }
}

/// The first delivery that informs people.
fn told(rows: Vec<NewDelivery>) -> Delivery {
    stored(rows.into_iter().find(|row| row.priority == Priority::Inform).unwrap())
}

fn body(kind: Kind, delivery: &Delivery) -> Value {
    let mut endpoint = Endpoint::new("e", kind, "https://e.example/");
    endpoint.routing_key = Some("routing-key".into());
    let request = Sender::new(endpoint).unwrap().request(delivery, NOW).unwrap().build().unwrap();
    serde_json::from_slice(request.body().unwrap().as_bytes().unwrap()).unwrap()
}

/// Slack's blocks as they are read, one after the other.
fn slack(post: &Value) -> String {
    let mut text = String::new();
    for block in post["blocks"].as_array().unwrap() {
        let words = block["text"]["text"].as_str().or(block["elements"][0]["text"].as_str()).unwrap();
        let _ = writeln!(text, "({})\n{words}", block["type"].as_str().unwrap());
    }
    let _ = writeln!(text, "(notification)\n{}", post["text"].as_str().unwrap());
    text
}

/// JSON with one line for each text.
fn plain(value: &Value, indent: usize, text: &mut String) {
    let Value::Object(map) = value else { return };
    for (key, value) in map {
        match value {
            Value::Object(_) => {
                let _ = writeln!(text, "{:indent$}{key}:", "");
                plain(value, indent + 2, text);
            }
            Value::String(words) => {
                let words = words.replace('\n', &format!("\n{:width$}", "", width = indent + 4));
                let _ = writeln!(text, "{:indent$}{key}: {words}", "");
            }
            value => {
                let _ = writeln!(text, "{:indent$}{key}: {value}", "");
            }
        }
    }
}

#[test]
fn people_read_this() {
    Bench::new();
    let rule = rule();
    let router = Router { base_url: "https://guardraild.example".parse().ok(), topic: None };
    let decided = |decision: &Decision| told(router.decision(&rule, decision, None));
    let noticed = |kind, decision: &Decision, after_ms, words: &str| {
        let notice = Notice { kind, at: decision.decided_at + after_ms, decision: decision.clone(), text: words.to_owned() };
        told(router.notice(&rule, &notice, None))
    };
    let rollback = golden("relative_latency", Action::Rollback);
    let page = golden("relative_rates", Action::Page);
    let held = Decision { held_by: Some(HeldBy::RateLimit), ..rollback.clone() };
    let by_hand = Decision {
        criterion: "operator".to_owned(),
        guardrail: "operator".to_owned(),
        author: Some("ann".to_owned()),
        reason: "rollback asked for by ann: support is flooded".to_owned(),
        ..decision("d-operator")
    };
    let shared = Decision {
        experiment: String::new(),
        bucket: String::new(),
        guardrail: "error_rate".to_owned(),
        criterion: "shared_cause".to_owned(),
        action: Action::Page,
        reason: "14 of 40 experiments breach guardrails on error_rate within 1 min: one fault behind them is likelier than 14".to_owned(),
        evidence: Evidence::SharedCause { count: 14, allowed: 2, live: 40, experiments: (1..=14).map(|i| format!("exp-{i:02}")).collect() },
        ..decision("d-shared")
    };
    let confirmed = "rollback of treatment confirmed: exposures fell from 212.0/s to 0/s within 32 s";
    let resumed = "latency_p95 of new-checkout re-armed by ann: fixed in build 4711";
    let failing = {
        let rows = router.decision(&rule, &rollback, None);
        let rollback = stored(rows.into_iter().next().unwrap());
        let mut payload: Value = serde_json::from_str(&rollback.payload).unwrap();
        payload["type"] = "guardrail.alert".into();
        payload["timestamp"] = "2025-12-02T09:10:37Z".into();
        payload["data"]["undelivered"] = serde_json::json!({"delivery": rollback.id, "endpoint": "flag-service", "type": "guardrail.rollback",
            "reason": "attempt 5: HTTP 503: upstream is away", "given_up": false});
        Delivery { event_type: "guardrail.alert".to_owned(), payload: payload.to_string(), ..rollback }
    };
    let shared_rows = {
        let names: Vec<String> = (1..=14).map(|i| format!("exp-{i:02}")).collect();
        let rules = names.into_iter().map(|name| (name, Arc::clone(&rule))).collect();
        told(router.shared(&rules, &shared, None))
    };
    let cases = [
        ("page", decided(&page)),
        ("notify-limit", decided(&golden("ramp_to_full", Action::Notify))),
        ("check-holds", decided(&golden("schema_violations", Action::Hold))),
        ("rollback-confirmed", noticed(NoticeKind::Confirmed, &rollback, 32_000, confirmed)),
        ("rollback-unconfirmed", decided(&golden("unconfirmed", Action::Page))),
        ("rollback-resolved", noticed(NoticeKind::Resolved, &rollback, 3_600_000, resumed)),
        ("rollback-held-back", decided(&held)),
        ("rollback-by-hand", noticed(NoticeKind::Confirmed, &by_hand, 20_000, confirmed)),
        ("segment", noticed(NoticeKind::Confirmed, &golden("segment_act", Action::Rollback), 32_000, confirmed)),
        ("undelivered", failing),
        ("shared-cause", shared_rows),
    ];
    for (name, delivery) in cases {
        let mut text = format!("{} to {}\n\n== slack\n{}", delivery.event_type, delivery.endpoint, slack(&body(Kind::Slack, &delivery)));
        for kind in [Kind::PagerDuty, Kind::Alertmanager] {
            let _ = writeln!(text, "\n== {}", kind.name());
            let body = body(kind, &delivery);
            match body.as_array() {
                None => plain(&body, 0, &mut text),
                Some(alerts) => {
                    for alert in alerts {
                        let _ = writeln!(text, "-");
                        plain(alert, 2, &mut text);
                    }
                }
            }
        }
        super::holds(&format!("tests/delivery/messages/{name}.txt"), &text);
    }
}
