//! What is sent on behalf of a delivery that fails. Pure.

use super::payload::{self, Failure};
use crate::engine::time::Millis;
use crate::store::{Delivery, NewDelivery, Priority};

/// After so many attempts others are asked, while this endpoint is still tried: ten seconds after the decision, where each fails at once.
pub(super) const PATIENCE: u32 = 5;

/// How a delivery fails.
pub(super) struct Trouble<'a> {
    pub reason: &'a str,
    /// Wall clock, ms since the epoch.
    pub at: Millis,
    /// It is not tried again.
    pub given_up: bool,
}

/// To the endpoint's `escalate_to` the same message, under an id of its own; and an alert to whom the rule pages, of an intervention at once,
/// of what only informs when it is given up. Ids follow from the delivery, so that each is sent once.
pub(super) fn escalations(delivery: &Delivery, fallback: Option<&str>, trouble: &Trouble<'_>) -> Vec<NewDelivery> {
    let failure = Failure { delivery: &delivery.id, endpoint: &delivery.endpoint, reason: trouble.reason, given_up: trouble.given_up };
    let event_type = payload::event_type(&delivery.event_type);
    let row = |id: String, endpoint: &str, event_type: &'static str, priority, escalate_to| NewDelivery {
        id,
        endpoint: endpoint.to_owned(),
        event_type,
        priority,
        payload: payload::of_failed(&delivery.payload, event_type, &failure, trouble.at),
        escalate_to,
        traceparent: delivery.traceparent.clone(),
    };
    let root = delivery.escalates.as_deref().unwrap_or(&delivery.id);
    let instead = fallback.map(|to| row(format!("{root}-at-{to}"), to, event_type, delivery.priority, delivery.escalate_to.clone()));
    let told = delivery.escalate_to.as_deref().filter(|_| trouble.given_up || delivery.priority != Priority::Inform);
    let word = if trouble.given_up { "undelivered" } else { "failing" };
    let alert = told.map(|to| row(format!("{}-{word}", delivery.id), to, "guardrail.alert", Priority::Inform, None));
    instead.into_iter().chain(alert).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(event_type: &str, priority: Priority, escalates: Option<&str>) -> Delivery {
        let payload = format!(r#"{{"type":"{event_type}","timestamp":"","data":{{"decision":"d-1"}}}}"#);
        Delivery {
            decision: "d-1".into(),
            experiment: "new-checkout".into(),
            priority,
            attempts: 5,
            escalates: escalates.map(str::to_owned),
            escalate_to: Some("pager".into()),
            ..Delivery::pending("d-1-x", "flags", event_type, payload, 0)
        }
    }

    fn sent(delivery: &Delivery, fallback: Option<&str>, given_up: bool) -> Vec<(String, String, &'static str)> {
        let rows = escalations(delivery, fallback, &Trouble { reason: "HTTP 500", at: 0, given_up });
        rows.into_iter().map(|row| (row.id, row.endpoint, row.event_type)).collect()
    }

    #[test]
    fn an_intervention_goes_to_another_endpoint_and_people_hear_of_it() {
        let rollback = failed("guardrail.rollback", Priority::Rollback, None);
        let row = |id: &str, endpoint: &str, event_type| (id.to_owned(), endpoint.to_owned(), event_type);
        let instead = row("d-1-x-at-backup", "backup", "guardrail.rollback");
        assert_eq!(sent(&rollback, Some("backup"), false), [instead.clone(), row("d-1-x-failing", "pager", "guardrail.alert")]);
        assert_eq!(sent(&rollback, Some("backup"), true), [instead, row("d-1-x-undelivered", "pager", "guardrail.alert")]);
        // The second in a chain stands for the first.
        let second = failed("guardrail.rollback", Priority::Rollback, Some("d-1-root"));
        assert_eq!(sent(&second, Some("last"), false)[0].0, "d-1-root-at-last");
        // A notification that is tried on is nobody's business.
        let notification = failed("guardrail.confirmed", Priority::Inform, None);
        assert_eq!(sent(&notification, None, false), []);
        assert_eq!(sent(&notification, None, true), [row("d-1-x-undelivered", "pager", "guardrail.alert")]);
    }

    #[test]
    fn the_message_says_on_whose_behalf_it_comes() {
        let rollback = failed("guardrail.rollback", Priority::Rollback, None);
        let rows = escalations(&rollback, Some("backup"), &Trouble { reason: "HTTP 500", at: 0, given_up: false });
        let bodies: Vec<serde_json::Value> = rows.iter().map(|row| serde_json::from_str(&row.payload).unwrap()).collect();
        assert_eq!((&bodies[0]["type"], &bodies[1]["type"]), (&"guardrail.rollback".into(), &"guardrail.alert".into()));
        for body in bodies {
            assert_eq!(body["data"]["decision"], "d-1");
            let undelivered = serde_json::json!({
                "delivery": "d-1-x", "endpoint": "flags", "type": "guardrail.rollback", "reason": "HTTP 500", "given_up": false
            });
            assert_eq!(body["data"]["undelivered"], undelivered);
        }
    }
}
