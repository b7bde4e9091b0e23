//! PagerDuty Events v2.

use super::{Message, cut};
use crate::delivery::endpoint::Endpoint;
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Characters of a summary and of a key that PagerDuty takes; of a detail, so that an event stays far below 512 KB.
const SUMMARY: usize = 1_024;
const KEY: usize = 255;
const DETAIL: usize = 2_000;

/// Triggers an incident for what a guardrail found in a bucket until it is re-armed; acknowledges or resolves it.
pub(super) fn event(endpoint: &Endpoint, message: &Message) -> String {
    let d = &message.data;
    let links: Vec<Value> = d.links.iter().map(|(name, url)| json!({ "text": name, "href": url })).collect();
    let mut event = json!({
        "routing_key": endpoint.routing_key.as_ref().map(|k| k.expose_secret()),
        "event_action": action(message),
        "dedup_key": dedup_key(message),
        "payload": {
            "summary": cut(&format!("{}. {}", message.headline(), d.reason), SUMMARY),
            "source": if d.experiment.is_empty() { "guardraild" } else { &d.experiment },
            "severity": message.severity(),
            "timestamp": message.timestamp,
            "component": d.bucket,
            "group": d.experiment,
            "class": d.guardrail,
            "custom_details": details(message),
        },
        "links": links,
        "client": "guardraild",
    });
    if let Some(url) = d.links.get("decision") {
        event["client_url"] = json!(url);
    }
    event.to_string()
}

fn action(message: &Message) -> &'static str {
    let notice = message.data.notice.as_ref().map(|n| n.kind.as_str());
    match (message.r#type.as_str(), notice) {
        ("guardrail.resolved" | "guardrail.confirmed", _) => "resolve",
        (_, Some("held")) => "acknowledge",
        _ => "trigger",
    }
}

/// What is worth reading on a phone, in order of its labels.
fn details(message: &Message) -> Map<String, Value> {
    let mut details = Map::new();
    let mut last = "";
    for (label, text) in message.lines().into_iter().chain(message.commands()) {
        let known = details.get(last).and_then(Value::as_str).map(str::to_owned);
        match known.filter(|_| label.is_empty()) {
            Some(before) => details.insert(last.to_owned(), json!(cut(&format!("{before}; {text}"), DETAIL))),
            None => details.insert(label.to_owned(), json!(cut(&text, DETAIL))),
        };
        if !label.is_empty() {
            last = label;
        }
    }
    details.insert("decision".to_owned(), json!(message.data.decision));
    details
}

fn dedup_key(message: &Message) -> String {
    let key = match message.r#type.as_str() {
        "guardrail.test" => "guardraild/test".to_owned(),
        _ => format!("guardraild/{}", message.topic()),
    };
    if key.len() <= KEY {
        return key;
    }
    let hex: String = Sha256::digest(&key).iter().map(|b| format!("{b:02x}")).collect();
    format!("guardraild/{hex}")
}
