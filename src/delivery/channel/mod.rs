//! Each kind of receiver's own form of a webhook body.

pub(super) mod alertmanager;
mod message;
mod pagerduty;
mod slack;

use super::endpoint::{Endpoint, Kind};
use crate::engine::time::Millis;
use crate::store::Delivery;
use message::Message;
use serde_json::{Value, json};
pub(super) use slack::took as slack_took;
use std::time::Duration;

/// What is posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub content_type: &'static str,
    pub body: String,
}

/// Translates the stored body for an endpoint, at this instant (ms since the epoch). A stored body that cannot be read is handed on as it is.
pub(super) fn content(endpoint: &Endpoint, delivery: &Delivery, now: Millis) -> Content {
    let json = |body: String| Content { content_type: "application/json", body };
    let message = || Message::read(&delivery.payload);
    match endpoint.kind {
        Kind::CloudEvents => Content { content_type: "application/cloudevents+json", body: cloudevent(delivery) },
        Kind::PagerDuty => json(pagerduty::event(endpoint, &message())),
        // Slack wants the charset named, or warns.
        Kind::Slack => Content { content_type: "application/json; charset=utf-8", body: slack::post(endpoint, delivery, &message()) },
        Kind::Alertmanager => json(alertmanager::post(&message(), now)),
        _ => json(delivery.payload.clone()),
    }
}

/// Between two messages: Slack takes about one a second.
pub(super) fn pause(kind: Kind) -> Duration {
    if kind == Kind::Slack { Duration::from_secs(1) } else { Duration::ZERO }
}

/// Whether an answer means that this message will never be taken.
pub(super) fn never_takes(kind: Kind, status: u16) -> bool {
    // PagerDuty says so of its 400; Slack and Alertmanager say what is wrong with a message likewise.
    status == 400 && matches!(kind, Kind::PagerDuty | Kind::Slack | Kind::Alertmanager)
}

/// CloudEvents 1.0 in structured mode; its id is the delivery's.
fn cloudevent(delivery: &Delivery) -> String {
    let body: Value = serde_json::from_str(&delivery.payload).unwrap_or_default();
    let event = json!({
        "specversion": "1.0",
        "id": delivery.id,
        "source": format!("/guardraild/experiments/{}", delivery.experiment),
        "subject": delivery.decision,
        "type": delivery.event_type,
        "time": body["timestamp"],
        "datacontenttype": "application/json",
        "data": body["data"],
    });
    event.to_string()
}

/// At most so many characters.
fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        None => text.to_owned(),
        Some(_) => text.chars().take(longest.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests;
