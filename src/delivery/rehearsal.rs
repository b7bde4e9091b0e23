//! What an endpoint would be sent: for tests of one, and to find rules that ask for what an endpoint cannot do.

use super::client::Sender;
use super::payload::{self, Links, Own};
use super::template::Unfit;
use crate::engine::decision::{Action, Decision, Evidence, Mode, Verdict};
use crate::engine::time::Millis;
use crate::rules::{Flag, RuleSet};
use crate::store::Delivery;
use serde_json::Value;
use std::ops::Deref;

/// A delivery that no decision has asked for, of one of the message types, with a rule's body and flag. `now` is the wall clock.
pub fn rehearsal(endpoint: &str, event_type: &str, body: Option<&Value>, flag: Option<&Flag>, now: Millis) -> Delivery {
    let decision = decision(endpoint, event_type, now);
    let payload = payload::body(event_type, &decision, None, &Own { body, flag }, &Links::default());
    Delivery {
        decision: decision.decision,
        experiment: decision.experiment,
        ..Delivery::pending(&format!("test-{now}"), endpoint, event_type, payload, now)
    }
}

/// A decision that nothing has led to, and what its endpoint would be sent. `now` is the wall clock.
pub fn sample(endpoint: &str, event_type: &str, now: Millis) -> (Decision, String) {
    let decision = decision(endpoint, event_type, now);
    let payload = payload::body(event_type, &decision, None, &Own::default(), &Links::default());
    (decision, payload)
}

fn decision(endpoint: &str, event_type: &str, now: Millis) -> Decision {
    let action = match event_type {
        "guardrail.kill" => Action::Kill,
        "guardrail.rollback" => Action::Rollback,
        "guardrail.pause" => Action::Pause,
        _ => Action::Notify,
    };
    Decision {
        decision: "d-test".to_owned(),
        decided_at: now,
        experiment: "test".to_owned(),
        revision: 1,
        phase: 0,
        bucket: "treatment".to_owned(),
        guardrail: "error_rate".to_owned(),
        criterion: "limit".to_owned(),
        verdict: Verdict::Breach,
        action,
        mode: Mode::Enforce,
        baseline_value: Some(0.01),
        bucket_value: Some(0.12),
        unit: "%".to_owned(),
        change: None,
        interval: Some([0.06, 0.2]),
        margin: Some(0.05),
        alpha: None,
        log_e_value: None,
        test: "threshold".to_owned(),
        since: now - 60_000,
        exposed_units: 1_000,
        evidence: Evidence::Threshold { n: 200, x: 24, p0: 0.05, deff: 1.0 },
        reason: format!("a test of the endpoint {endpoint}: no experiment is in breach"),
        segment: None,
        epoch: 0,
        covered_by: None,
        held_by: None,
        author: None,
        shared_cause: None,
    }
}

/// The actions of a rule whose endpoint could never carry them out, and why: no flag is known, or it cannot pause. Of endpoints that are not
/// among `senders` nothing is said.
pub fn unfit<'a, S: Deref<Target = Sender>>(
    rule: &'a RuleSet,
    senders: impl Fn(&str) -> Option<S> + 'a,
    now: Millis,
) -> impl Iterator<Item = (Action, &'a str, Unfit)> {
    rule.routes.iter().filter_map(move |(action, route)| {
        let event_type = match action {
            Action::Pause => "guardrail.pause",
            Action::Rollback => "guardrail.rollback",
            Action::Kill => "guardrail.kill",
            Action::Notify | Action::Page | Action::Hold => "guardrail.alert",
        };
        let delivery = rehearsal(&route.endpoint, event_type, route.body.as_ref(), rule.flag.as_ref(), now);
        Some((*action, route.endpoint.as_str(), senders(&route.endpoint)?.fits(&delivery, now).err()?))
    })
}
