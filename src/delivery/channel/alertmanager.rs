//! Alertmanager's v2 API. An alert holds for a few minutes and is said again until it is over: a receiver that has forgotten it learns it anew.

use super::Message;
use crate::engine::decision::Timestamp;
use crate::engine::time::Millis;
use crate::store::Delivery;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often what stands is said again.
pub const AGAIN: Duration = Duration::from_secs(60);
/// How long an alert holds without being said again, in ms.
const HOLDS: Millis = 4 * 60_000;
/// How long it is said that an alert is over, in ms.
const OVER: Millis = 5 * 60_000;
/// How long after its message an alert is said, in ms; one that nobody ends then ends by itself.
pub(super) const LONGEST: Millis = 7 * 86_400_000;
/// Likewise of one that nothing ends: a shared cause.
const MOMENT: Millis = 86_400_000;
/// Alerts in one request.
pub(super) const BATCH: usize = 64;

/// Labels tell an alert from others and never change while it lasts.
type Labels = BTreeMap<&'static str, String>;

/// An alert, as of its last message.
#[derive(Clone, Debug, PartialEq)]
struct Alert {
    annotations: BTreeMap<&'static str, String>,
    generator: Option<String>,
    starts: String,
    /// When it was over; ms since the epoch.
    ended: Option<Millis>,
}

/// The alerts of one message, as the body of a request.
pub(super) fn post(message: &Message, now: Millis) -> String {
    let said: Vec<Value> = alerts(message, now).iter().map(|(labels, alert)| written(labels, alert, now)).collect();
    json!(said).to_string()
}

/// What stands after these messages, in the order in which they were decided, in batches; and what has been over for less than five minutes. One that
/// has not been received, as far as is known, may have been: it ends an alert all the same, and what it says anew is not said to be over.
pub(in crate::delivery) fn standing(told: &[Delivery], now: Millis) -> Vec<String> {
    let mut all: BTreeMap<Labels, Alert> = BTreeMap::new();
    for delivery in told {
        // A clock that was set back has seen later times.
        let at = delivery.delivered_ms.unwrap_or(delivery.created_ms).min(now);
        for (labels, alert) in alerts(&Message::read(&delivery.payload), at) {
            let known = all.get(&labels);
            if alert.ended.is_none() && delivery.delivered_ms.is_none() {
                if known.is_some_and(|known| known.ended.is_some()) {
                    all.remove(&labels);
                }
                continue;
            }
            // What was never said need not be taken back.
            if alert.ended.is_none() || known.is_some() {
                let lasts = if labels["alertname"] == SHARED { MOMENT } else { LONGEST };
                let ended = alert.ended.or((at + lasts <= now).then_some(at + lasts));
                all.insert(labels, Alert { ended, ..alert });
            }
        }
    }
    let said: Vec<Value> = all
        .iter()
        .filter(|(_, alert)| alert.ended.is_none_or(|ended| now - ended <= OVER))
        .map(|(labels, alert)| written(labels, alert, now))
        .collect();
    said.chunks(BATCH).map(|batch| json!(batch).to_string()).collect()
}

const BREACH: &str = "GuardrailBreach";
const STOPPED: &str = "GuardrailStopped";
const UNCONFIRMED: &str = "GuardrailUnconfirmed";
const UNDELIVERED: &str = "GuardrailUndelivered";
const SHARED: &str = "GuardrailSharedCause";
const TEST: &str = "GuardrailTest";

/// What a message says of its alerts: that one stands, and which are over.
fn alerts(message: &Message, at: Millis) -> Vec<(Labels, Alert)> {
    let d = &message.data;
    let (stands, over): (Option<&str>, &[&str]) = match message.r#type.as_str() {
        "guardrail.test" => (Some(TEST), &[]),
        "guardrail.resolved" => (None, &[BREACH, STOPPED, UNCONFIRMED, UNDELIVERED]),
        _ if d.undelivered.is_some() => (Some(UNDELIVERED), &[]),
        "guardrail.unconfirmed" => (Some(UNCONFIRMED), &[STOPPED]),
        // A word on one of those.
        "guardrail.alert" if matches!(d.criterion.as_str(), "confirm_within" | "undone") => (Some(UNCONFIRMED), &[]),
        "guardrail.confirmed" => (Some(STOPPED), &[UNCONFIRMED, UNDELIVERED]),
        _ if d.experiment.is_empty() => (Some(SHARED), &[]),
        "guardrail.alert" => (Some(BREACH), &[]),
        _ => (Some(STOPPED), &[]),
    };
    let ended = std::iter::repeat(Some(at)).zip(over);
    let named = stands.iter().map(|name| (None, name)).chain(ended);
    named.map(|(ended, name)| (labels(message, name), alert(message, ended))).collect()
}

fn labels(message: &Message, name: &str) -> Labels {
    let d = &message.data;
    let severity = match (name, d.action.as_str()) {
        (UNCONFIRMED | UNDELIVERED, _) => "critical",
        (STOPPED | TEST, _) => "info",
        (_, "page" | "rollback" | "kill") => "critical",
        _ => "warning",
    };
    let about = [("experiment", &d.experiment), ("bucket", &d.bucket), ("guardrail", &d.guardrail)];
    let mut labels: Labels = about.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key, value.clone())).collect();
    labels.extend([("alertname", name.to_owned()), ("severity", severity.to_owned()), ("service", "guardraild".to_owned())]);
    if let Some(segment) = &d.segment {
        labels.insert("segment", segment.clone());
    }
    labels
}

fn alert(message: &Message, ended: Option<Millis>) -> Alert {
    let d = &message.data;
    let mut annotations =
        BTreeMap::from([("summary", message.headline()), ("description", message.table()), ("decision", d.decision.clone())]);
    for (label, command) in message.commands() {
        let key = match label {
            "Undo" | "Re-arm" => "resume",
            "Hold" => "hold",
            _ => "stop",
        };
        annotations.insert(key, command);
    }
    for (name, key) in [("runbook", "runbook_url"), ("experiment", "dashboard_url")] {
        if let Some(url) = d.links.get(name) {
            annotations.insert(key, url.clone());
        }
    }
    Alert { annotations, generator: d.links.get("decision").cloned(), starts: d.decided_at.clone(), ended }
}

fn written(labels: &Labels, alert: &Alert, now: Millis) -> Value {
    let ends = Timestamp(alert.ended.unwrap_or(now + HOLDS)).to_string();
    // An alert may not end before it began; the clocks of records and of this machine are two.
    let starts = match (alert.starts.parse::<jiff::Timestamp>(), ends.parse::<jiff::Timestamp>()) {
        (Ok(starts), Ok(end)) if starts <= end => alert.starts.clone(),
        _ => ends.clone(),
    };
    let mut written = json!({ "labels": labels, "annotations": alert.annotations, "startsAt": starts, "endsAt": ends });
    if let Some(url) = &alert.generator {
        written["generatorURL"] = json!(url);
    }
    written
}
