//! Webhook bodies.

use super::schedule::rfc3339;
use crate::engine::decision::{Decision, Notice};
use crate::engine::time::Millis;
use crate::rules::Flag;
use serde::Serialize;
use serde_json::{Value, json};

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    timestamp: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    #[serde(flatten)]
    decision: &'a Decision,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<Word<'a>>,
    body: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flag: Option<&'a Flag>,
    links: &'a Links,
}

/// A later word on the decision.
#[derive(Serialize)]
struct Word<'a> {
    kind: &'a str,
    at: String,
    text: &'a str,
}

/// Where people can read on.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Links {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runbook: Option<String>,
}

/// What the rule of an experiment adds to a message.
#[derive(Clone, Debug, Default)]
pub(super) struct Own<'a> {
    /// Of the action's receiver.
    pub body: Option<&'a Value>,
    pub flag: Option<&'a Flag>,
}

/// The body for a decision, or for a notice about it. A few KB: evidence is sufficient statistics, and a rule's own body is bounded.
pub(super) fn body(event_type: &str, decision: &Decision, notice: Option<&Notice>, own: &Own<'_>, links: &Links) -> String {
    let timestamp = rfc3339(notice.map_or(decision.decided_at, |n| n.at));
    let notice = notice.map(|n| Word { kind: n.kind.name(), at: rfc3339(n.at), text: &n.text });
    let body = Body { r#type: event_type, timestamp, data: Data { decision, notice, body: own.body, flag: own.flag, links } };
    // Serialising these types cannot fail: no maps with other keys than strings, and floats that are not finite become null.
    serde_json::to_string(&body).unwrap_or_default()
}

/// The types of messages, a closed list.
const TYPES: [&str; 8] = [
    "guardrail.rollback",
    "guardrail.kill",
    "guardrail.pause",
    "guardrail.alert",
    "guardrail.resolved",
    "guardrail.confirmed",
    "guardrail.unconfirmed",
    "guardrail.test",
];

/// One of [`TYPES`], as stored.
pub(super) fn event_type(stored: &str) -> &'static str {
    TYPES.into_iter().find(|known| *known == stored).unwrap_or("guardrail.alert")
}

/// A delivery that is not received.
pub(super) struct Failure<'a> {
    pub delivery: &'a str,
    pub endpoint: &'a str,
    pub reason: &'a str,
    /// It is not tried again.
    pub given_up: bool,
}

/// The body that is sent on behalf of another one.
pub(super) fn of_failed(payload: &str, event_type: &str, failure: &Failure<'_>, at: Millis) -> String {
    let stored: Value = serde_json::from_str(payload).unwrap_or_default();
    let mut body = if stored["data"].is_object() { stored } else { json!({ "data": {} }) };
    let failed = body["type"].take();
    body["type"] = json!(event_type);
    body["timestamp"] = json!(rfc3339(at));
    let Failure { delivery, endpoint, reason, given_up } = failure;
    let undelivered = json!({ "delivery": delivery, "endpoint": endpoint, "type": failed, "reason": reason, "given_up": given_up });
    body["data"]["undelivered"] = undelivered;
    body.to_string()
}
