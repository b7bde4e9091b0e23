//! Each kind of receiver's own form of a webhook body.

mod message;
mod pagerduty;
mod slack;

use super::endpoint::{Endpoint, Kind};
use crate::store::Delivery;
use message::Message;
use serde_json::{Value, json};

/// What is posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub content_type: &'static str,
    pub body: String,
}

/// Translates the stored body for an endpoint. A stored body that cannot be read is handed on as it is.
pub(super) fn content(endpoint: &Endpoint, delivery: &Delivery) -> Content {
    let json = |body: String| Content { content_type: "application/json", body };
    match endpoint.kind {
        Kind::Webhook => json(delivery.payload.clone()),
        Kind::CloudEvents => Content { content_type: "application/cloudevents+json", body: cloudevent(delivery) },
        Kind::PagerDuty => json(pagerduty::event(endpoint, delivery, &Message::read(&delivery.payload))),
        Kind::Slack => json(slack::post(&Message::read(&delivery.payload))),
    }
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

#[cfg(test)]
mod tests;
