//! PagerDuty Events v2.

use super::Message;
use crate::delivery::endpoint::Endpoint;
use crate::store::Delivery;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Triggers an incident for a bucket of an experiment's revision, or resolves it.
pub(super) fn event(endpoint: &Endpoint, delivery: &Delivery, message: &Message) -> String {
    let settled = matches!(delivery.event_type.as_str(), "guardrail.resolved" | "guardrail.confirmed");
    let d = &message.data;
    let details: Value = serde_json::from_str(&delivery.payload).unwrap_or_default();
    let links: Vec<Value> = d.links.iter().map(|(name, url)| json!({ "text": name, "href": url })).collect();
    let summary: String = format!("{}. {}", message.headline(), d.reason).chars().take(1_024).collect();
    let event = json!({
        "routing_key": endpoint.routing_key.as_ref().map(|k| k.expose_secret()),
        "event_action": if settled { "resolve" } else { "trigger" },
        "dedup_key": dedup_key(message),
        "payload": {
            "summary": summary,
            "source": if d.experiment.is_empty() { "guardraild" } else { &d.experiment },
            "severity": message.severity(),
            "timestamp": message.timestamp,
            "component": d.bucket,
            "group": d.experiment,
            "class": d.guardrail,
            "custom_details": details["data"],
        },
        "links": links,
        "client": "guardraild",
    });
    event.to_string()
}

/// At most 255 characters are allowed.
fn dedup_key(message: &Message) -> String {
    let d = &message.data;
    let key = match d.experiment.is_empty() {
        true => format!("guardraild/{}", d.decision),
        false => format!("guardraild/{}/{}/{}", d.experiment, d.revision, d.bucket),
    };
    if key.len() <= 255 {
        return key;
    }
    let hex: String = Sha256::digest(&key).iter().map(|b| format!("{b:02x}")).collect();
    format!("guardraild/{hex}")
}
