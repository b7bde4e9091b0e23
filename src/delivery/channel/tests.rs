use super::*;
use crate::delivery::payload::{Failure, of_failed};
use crate::store::{DeliveryState, LIFETIME, Priority};

const PAYLOAD: &str = r#"{"type":"guardrail.confirmed","timestamp":"2026-12-02T09:20:49Z","data":{"decision":"d-1",
"decided_at":"2026-12-02T09:20:17Z","experiment":"new-checkout","revision":3,"phase":1,"bucket":"treatment","guardrail":"latency_p95",
"criterion":"max_increase","verdict":"breach","action":"rollback","mode":"enforce","baseline_value":420.0,"bucket_value":518.25,
"unit":"ms","change":0.233,"since":"2026-12-02T09:14:05Z","exposed_units":18402,"reason":"p95 <b> & worse",
"notice":{"kind":"confirmed","at":"2026-12-02T09:20:49Z","text":"exposures stopped"},"links":{"runbook":"https://wiki.example/rb"}}}"#;

fn delivery(event_type: &str, payload: String) -> Delivery {
    Delivery {
        id: "d-1-confirmed".to_owned(),
        decision: "d-1".to_owned(),
        experiment: "new-checkout".to_owned(),
        endpoint: "e".to_owned(),
        event_type: event_type.to_owned(),
        priority: Priority::Inform,
        payload,
        state: DeliveryState::Pending,
        attempts: 0,
        attempts_before: 0,
        next_attempt_ms: 0,
        created_ms: 0,
        expires_ms: LIFETIME,
        delivered_ms: None,
        last_status: None,
        last_error: None,
        escalates: None,
        escalate_to: None,
        traceparent: None,
    }
}

fn posted(kind: Kind, delivery: &Delivery) -> Value {
    let mut endpoint = Endpoint::new("e", kind, "https://e.example/");
    endpoint.routing_key = Some("routing".into());
    serde_json::from_str(&content(&endpoint, delivery).body).unwrap()
}

#[test]
fn slack_says_what_since_done_and_undo() {
    let post = posted(Kind::Slack, &delivery("guardrail.confirmed", PAYLOAD.to_owned()));
    let want = "[ROLLED BACK] new-checkout / treatment: latency_p95 +23.3%
What   p95 &lt;b&gt; &amp; worse
       518 ms against 420 ms of the baseline
Since  2026-12-02T09:14:05Z, phase 1; 18402 units exposed
Done   2026-12-02T09:20:17Z rollback
       2026-12-02T09:20:49Z exposures stopped
Undo   guardraild resume new-checkout --reason \"...\"
Hold   guardraild hold new-checkout --for 2h --reason \"...\"";
    assert_eq!(post["text"], want);
    assert_eq!(post["blocks"].as_array().unwrap().len(), 3);
    assert_eq!(post["blocks"][2]["text"]["text"], "<https://wiki.example/rb|runbook>");
}

#[test]
fn pagerduty_triggers_and_resolves_under_one_key() {
    let trigger =
        posted(Kind::PagerDuty, &delivery("guardrail.unconfirmed", PAYLOAD.replace("guardrail.confirmed", "guardrail.unconfirmed")));
    assert_eq!(trigger["event_action"], "trigger");
    assert_eq!(trigger["routing_key"], "routing");
    assert_eq!(trigger["dedup_key"], "guardraild/new-checkout/3/treatment");
    assert_eq!(trigger["payload"]["severity"], "critical");
    assert_eq!(trigger["payload"]["custom_details"]["decision"], "d-1");
    assert!(trigger["payload"]["summary"].as_str().unwrap().starts_with("[NOT CONFIRMED] new-checkout / treatment"));
    let resolve = posted(Kind::PagerDuty, &delivery("guardrail.confirmed", PAYLOAD.to_owned()));
    assert_eq!((&resolve["event_action"], &resolve["dedup_key"]), (&json!("resolve"), &trigger["dedup_key"]));

    let long = PAYLOAD.replace("\"treatment\"", &format!("\"{}\"", "t".repeat(300))).replace("p95 <b>", &"long ".repeat(400));
    let event = posted(Kind::PagerDuty, &delivery("guardrail.alert", long));
    assert!(event["dedup_key"].as_str().unwrap().len() <= 255);
    assert_eq!(event["payload"]["summary"].as_str().unwrap().chars().count(), 1_024);
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
    assert!(text.contains("1970-01-01T00:00:00Z guardrail.rollback never reached flags: HTTP 410"), "{text}");
    assert_eq!(posted(Kind::PagerDuty, &delivery("guardrail.alert", payload))["payload"]["severity"], "critical");
}

#[test]
fn a_body_that_cannot_be_read_harms_nothing() {
    for payload in ["", "not json", "[]", "{\"data\":7}"] {
        for kind in [Kind::CloudEvents, Kind::PagerDuty, Kind::Slack] {
            posted(kind, &delivery("guardrail.alert", payload.to_owned()));
        }
    }
}
