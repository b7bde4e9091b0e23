use super::*;
use crate::delivery::payload::{Failure, of_failed};

const NOW: Millis = 1_764_667_249_000;

const PAYLOAD: &str = r#"{"type":"guardrail.confirmed","timestamp":"2026-12-02T09:20:49Z","data":{"decision":"d-1",
"decided_at":"2026-12-02T09:20:17Z","experiment":"new-checkout","revision":3,"phase":1,"bucket":"treatment","guardrail":"latency_p95",
"criterion":"max_increase","verdict":"breach","action":"rollback","mode":"enforce","baseline_value":420.0,"bucket_value":518.25,
"unit":"ms","change":0.233,"since":"2026-12-02T09:14:05Z","exposed_units":18402,"reason":"p95 <b> & worse",
"notice":{"kind":"confirmed","at":"2026-12-02T09:20:49Z","text":"exposures stopped"},"links":{"runbook":"https://wiki.example/rb"}}}"#;

fn delivery(event_type: &str, payload: String) -> Delivery {
    Delivery {
        decision: "d-1".to_owned(),
        experiment: "new-checkout".to_owned(),
        ..Delivery::pending("d-1-confirmed", "e", event_type, payload, 0)
    }
}

fn posted(kind: Kind, delivery: &Delivery) -> Value {
    let mut endpoint = Endpoint::new("e", kind, "https://e.example/");
    endpoint.routing_key = Some("routing".into());
    serde_json::from_str(&content(&endpoint, delivery, NOW).body).unwrap()
}

#[test]
fn slack_says_what_since_done_and_undo() {
    let post = posted(Kind::Slack, &delivery("guardrail.confirmed", PAYLOAD.to_owned()));
    let want = "[ROLLED BACK] new-checkout / treatment: latency_p95 +23.3%
What   p95 &lt;b&gt; &amp; worse
Since  2026-12-02 09:14:05Z (6 min before); revision 3, phase 1; 18,402 units exposed
Done   2026-12-02 09:20:17Z rollback
       2026-12-02 09:20:49Z exposures stopped
Undo   guardraild resume new-checkout --reason \"...\"
Hold   guardraild hold new-checkout --for 2h --reason \"...\"";
    assert_eq!(post["text"], want);
    let kinds: Vec<&str> = post["blocks"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["header", "section", "section", "context"]);
    assert_eq!(post["blocks"][3]["elements"][0]["text"], "<https://wiki.example/rb|runbook>  ·  d-1");
    assert_eq!(post.get("channel"), None, "an incoming webhook knows its channel");
}

#[test]
fn texts_stay_within_what_products_take() {
    let long = PAYLOAD.replace("\"treatment\"", &format!("\"{}\"", "t".repeat(300))).replace("p95 <b>", &"long ".repeat(4_000));
    let event = posted(Kind::PagerDuty, &delivery("guardrail.alert", long.clone()));
    assert!(event["dedup_key"].as_str().unwrap().len() <= 255);
    assert_eq!(event["payload"]["summary"].as_str().unwrap().chars().count(), 1_024);
    assert!(event.to_string().len() < 20_000);
    let post = posted(Kind::Slack, &delivery("guardrail.alert", long));
    for block in post["blocks"].as_array().unwrap() {
        let most = if block["type"] == "header" { 150 } else { 3_000 };
        assert!(block["text"]["text"].as_str().unwrap_or_default().chars().count() <= most);
    }
}

#[test]
fn pagerduty_triggers_and_resolves_under_one_key() {
    let unconfirmed = PAYLOAD.replace("guardrail.confirmed", "guardrail.unconfirmed");
    let trigger = posted(Kind::PagerDuty, &delivery("guardrail.unconfirmed", unconfirmed));
    assert_eq!(trigger["event_action"], "trigger");
    assert_eq!(trigger["routing_key"], "routing");
    assert_eq!(trigger["dedup_key"], "guardraild/new-checkout/3/treatment/latency_p95/0");
    assert_eq!(trigger["payload"]["severity"], "critical");
    let details = &trigger["payload"]["custom_details"];
    assert_eq!((&details["decision"], &details["What"]), (&json!("d-1"), &json!("p95 <b> & worse")));
    assert_eq!(details["Done"], "2026-12-02 09:20:17Z rollback; 2026-12-02 09:20:49Z exposures stopped");
    assert_eq!(details["Kill"], "guardraild kill new-checkout --bucket treatment --reason \"...\"");
    assert!(trigger["payload"]["summary"].as_str().unwrap().starts_with("[NOT CONFIRMED] new-checkout / treatment"));
    let held = PAYLOAD.replace("guardrail.confirmed", "guardrail.alert").replace(r#""kind":"confirmed""#, r#""kind":"held""#);
    let acknowledge = posted(Kind::PagerDuty, &delivery("guardrail.alert", held));
    assert_eq!((&acknowledge["event_action"], &acknowledge["dedup_key"]), (&json!("acknowledge"), &trigger["dedup_key"]));
    assert!(acknowledge["payload"]["summary"].as_str().unwrap().starts_with("[BEING HANDLED] new-checkout"));
    let resolve = posted(Kind::PagerDuty, &delivery("guardrail.confirmed", PAYLOAD.to_owned()));
    assert_eq!((&resolve["event_action"], &resolve["dedup_key"]), (&json!("resolve"), &trigger["dedup_key"]));
}

/// Messages of these types, delivered so many ms before [`NOW`].
fn told(messages: &[(&str, Millis)]) -> Vec<Delivery> {
    let said = |(event_type, ago): &(&str, Millis)| Delivery {
        delivered_ms: Some(NOW - ago),
        ..delivery(event_type, PAYLOAD.replace("guardrail.confirmed", event_type))
    };
    messages.iter().map(said).collect()
}

/// Names of the alerts that are said, and whether each stands.
fn stands(messages: &[(&str, Millis)]) -> Vec<(String, bool)> {
    said(&told(messages))
}

fn said(messages: &[Delivery]) -> Vec<(String, bool)> {
    let batches = alertmanager::standing(messages, NOW);
    let alerts = batches.iter().flat_map(|batch| serde_json::from_str::<Vec<Value>>(batch).unwrap());
    let now: jiff::Timestamp = jiff::Timestamp::from_millisecond(NOW).unwrap();
    let ends = |alert: &Value| alert["endsAt"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    alerts.map(|alert| (alert["labels"]["alertname"].as_str().unwrap().to_owned(), ends(&alert) > now)).collect()
}

#[test]
fn an_alert_stands_until_it_is_over_and_is_said_to_be_over_for_a_while() {
    const MINUTE: Millis = 60_000;
    let alert = |name: &str, stands| (name.to_owned(), stands);
    assert_eq!(stands(&[]), []);
    assert_eq!(stands(&[("guardrail.alert", 3 * 86_400_000)]), [alert("GuardrailBreach", true)]);
    let confirmed = [("guardrail.unconfirmed", 9 * MINUTE), ("guardrail.confirmed", MINUTE)];
    assert_eq!(stands(&confirmed), [alert("GuardrailStopped", true), alert("GuardrailUnconfirmed", false)]);
    let resolved = [("guardrail.alert", 9 * MINUTE), ("guardrail.resolved", 4 * MINUTE)];
    assert_eq!(stands(&resolved), [alert("GuardrailBreach", false)], "what was never said is not taken back");
    assert_eq!(stands(&[("guardrail.alert", 9 * MINUTE), ("guardrail.resolved", 6 * MINUTE)]), []);
    let again = [("guardrail.alert", 9 * MINUTE), ("guardrail.resolved", 8 * MINUTE), ("guardrail.alert", MINUTE)];
    assert_eq!(stands(&again), [alert("GuardrailBreach", true)]);
    assert_eq!(stands(&[("guardrail.alert", alertmanager::LONGEST + 6 * MINUTE)]), [], "what nobody ends does, in time");
}

/// What is known of the last of these messages is not that it was received.
#[test]
fn what_may_not_have_been_received_ends_an_alert_and_is_not_taken_back() {
    let says = |types: &[&str]| {
        let mut messages = told(&types.iter().map(|event_type| (*event_type, 60_000)).collect::<Vec<_>>());
        let last = messages.last_mut().unwrap();
        (last.created_ms, last.delivered_ms) = (NOW - 1_000, None);
        said(&messages)
    };
    let alert = |stands| vec![("GuardrailBreach".to_owned(), stands)];
    assert_eq!(says(&["guardrail.alert"]), [], "its own message will say it");
    assert_eq!(says(&["guardrail.alert", "guardrail.resolved"]), alert(false));
    assert_eq!(says(&["guardrail.alert", "guardrail.resolved", "guardrail.alert"]), []);
    assert_eq!(says(&["guardrail.alert", "guardrail.alert"]), alert(true), "what it repeats stands");
}

#[test]
fn alerts_go_in_batches_and_labels_do_not_change() {
    let many: Vec<Delivery> = (0..200)
        .map(|i| Delivery {
            delivered_ms: Some(NOW),
            ..delivery(
                "guardrail.alert",
                PAYLOAD.replace("guardrail.confirmed", "guardrail.alert").replace("new-checkout", &format!("e-{i}")),
            )
        })
        .collect();
    let batches = alertmanager::standing(&many, NOW);
    assert_eq!(batches.len(), 200usize.div_ceil(alertmanager::BATCH));
    let other = PAYLOAD
        .replace("518.25", "999.0")
        .replace("0.233", "0.9")
        .replace("18402", "18500")
        .replace("guardrail.confirmed", "guardrail.alert");
    let labels = |payload: String| posted(Kind::Alertmanager, &delivery("guardrail.alert", payload))[0]["labels"].clone();
    assert_eq!(labels(other), labels(PAYLOAD.replace("guardrail.confirmed", "guardrail.alert")));
}

#[test]
fn cloudevents_carry_the_deliverys_id() {
    let event = posted(Kind::CloudEvents, &delivery("guardrail.confirmed", PAYLOAD.to_owned()));
    assert_eq!((&event["specversion"], &event["id"]), (&json!("1.0"), &json!("d-1-confirmed")));
    assert_eq!((&event["type"], &event["time"]), (&json!("guardrail.confirmed"), &json!("2026-12-02T09:20:49Z")));
    assert_eq!(event["data"]["bucket"], "treatment");
}

#[test]
fn what_was_never_received_is_told_in_words() {
    let rollback = PAYLOAD.replace("guardrail.confirmed", "guardrail.rollback");
    let failed = |given_up| {
        let failure = Failure { delivery: "d-1-rollback", endpoint: "flags", reason: "HTTP 410", given_up };
        of_failed(&rollback, "guardrail.alert", &failure, 0)
    };
    let tried = posted(Kind::Slack, &delivery("guardrail.alert", failed(false)));
    assert!(tried["text"].as_str().unwrap().contains("guardrail.rollback is tried again, and has not reached flags"), "{tried}");
    let payload = failed(true);
    let post = posted(Kind::Slack, &delivery("guardrail.alert", payload.clone()));
    let text = post["text"].as_str().unwrap();
    assert!(text.starts_with("[NOT DELIVERED] new-checkout"), "{text}");
    assert!(text.contains("1970-01-01 00:00:00Z guardrail.rollback never reached flags: HTTP 410"), "{text}");
    assert_eq!(posted(Kind::PagerDuty, &delivery("guardrail.alert", payload))["payload"]["severity"], "critical");
}

#[test]
fn a_body_that_cannot_be_read_harms_nothing() {
    for payload in ["", "not json", "[]", "{\"data\":7}"] {
        for kind in [Kind::CloudEvents, Kind::PagerDuty, Kind::Slack, Kind::Alertmanager] {
            posted(kind, &delivery("guardrail.alert", payload.to_owned()));
        }
    }
}
