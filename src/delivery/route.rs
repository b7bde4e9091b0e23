//! Who is told of a decision, and with which body. Pure: the same decision gives the same deliveries.

use super::payload::{self, Links, Own};
use crate::engine::decision::{Action, Decision, Evidence, HeldBy, Mode, Notice, NoticeKind};
use crate::rules::{Route, RuleSet};
use crate::store::{NewDelivery, Priority};
use reqwest::Url;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The criteria of decisions that follow when exposures did not stop in time, or have come back.
const UNCONFIRMED: [&str; 2] = ["confirm_within", "undone"];

/// Makes deliveries from decisions.
#[derive(Clone, Debug, Default)]
pub struct Router {
    /// Address of the API, for links.
    pub base_url: Option<Url>,
    /// Where every decision goes beside its receivers: see [`topic_endpoint`].
    pub topic: Option<String>,
}

/// How the outbox names a Kafka topic. No endpoint of the configuration has such a name.
pub fn topic_endpoint(topic: &str) -> String {
    format!("kafka:{topic}")
}

impl Router {
    /// Deliveries of a decision: to its action's own route, and to nobody else. Interventions are withheld in
    /// [`Mode::Observe`], and where an earlier decision has done as much.
    pub fn decision(&self, rule: &RuleSet, decision: &Decision, traceparent: Option<&str>) -> Vec<NewDelivery> {
        let action = decision.action;
        if action.intervenes() && (decision.mode == Mode::Observe || decision.covered_by.is_some()) {
            return Vec::new();
        }
        if decision.held_by.is_some() {
            return self.held_back(rule, decision, traceparent).into_iter().collect();
        }
        let unconfirmed = UNCONFIRMED.contains(&decision.criterion.as_str());
        let (to, event_type, priority) = match action {
            Action::Kill => (Action::Kill, "guardrail.kill", Priority::Kill),
            Action::Rollback => (Action::Rollback, "guardrail.rollback", Priority::Rollback),
            Action::Pause => (Action::Pause, "guardrail.pause", Priority::Pause),
            Action::Page if unconfirmed => (Action::Page, "guardrail.unconfirmed", Priority::Inform),
            Action::Page => (Action::Page, "guardrail.alert", Priority::Inform),
            Action::Notify if unconfirmed => (Action::Notify, "guardrail.unconfirmed", Priority::Inform),
            Action::Notify | Action::Hold => (Action::Notify, "guardrail.alert", Priority::Inform),
        };
        let Some(route) = rule.routes.get(&to) else { return Vec::new() };
        let id = match &decision.shared_cause {
            // Whoever has been told of the shared cause has a delivery of this id already; the outbox takes no second one.
            Some(shared) if !action.intervenes() => format!("{shared}-{}", route.endpoint),
            _ => format!("{}-{}", decision.decision, action.name()),
        };
        let payload = payload::body(event_type, decision, None, &own(rule, route), &self.links(rule.runbook.as_ref(), decision));
        vec![NewDelivery {
            id,
            endpoint: route.endpoint.clone(),
            event_type,
            priority,
            payload,
            escalate_to: escalation(rule, &route.endpoint),
            traceparent: traceparent.map(str::to_owned),
        }]
    }

    /// The record of a decision, or of a notice about it, for the topic of decisions: whatever its mode, and whether or not anybody else hears of it.
    pub fn record(
        &self,
        rule: Option<&RuleSet>,
        decision: &Decision,
        notice: Option<&Notice>,
        traceparent: Option<&str>,
    ) -> Option<NewDelivery> {
        let endpoint = self.topic.clone()?;
        let unconfirmed = UNCONFIRMED.contains(&decision.criterion.as_str());
        let (part, event_type) = match (notice.map(|notice| notice.kind), decision.action) {
            (Some(NoticeKind::Confirmed), _) => ("confirmed", "guardrail.confirmed"),
            (Some(NoticeKind::Resolved), _) => ("resolved", "guardrail.resolved"),
            // Who holds the experiment says it in its log; the decision itself has its record.
            (Some(NoticeKind::Held), _) => return None,
            (None, Action::Kill) => ("decision", "guardrail.kill"),
            (None, Action::Rollback) => ("decision", "guardrail.rollback"),
            (None, Action::Pause) => ("decision", "guardrail.pause"),
            (None, _) if unconfirmed => ("decision", "guardrail.unconfirmed"),
            (None, _) => ("decision", "guardrail.alert"),
        };
        let links = self.links(rule.and_then(|rule| rule.runbook.as_ref()), decision);
        let route = rule.and_then(|rule| rule.routes.get(&decision.action));
        let own = Own { body: route.and_then(|route| route.body.as_ref()), flag: rule.and_then(|rule| rule.flag.as_ref()) };
        Some(NewDelivery {
            id: format!("{}-{part}-record", decision.decision),
            endpoint,
            event_type,
            priority: Priority::Inform,
            payload: payload::body(event_type, decision, notice, &own, &links),
            escalate_to: None,
            traceparent: traceparent.map(str::to_owned),
        })
    }

    /// What a limit holds back is for people: whoever is paged, else notified. What would follow from it says nothing new.
    fn held_back(&self, rule: &RuleSet, decision: &Decision, traceparent: Option<&str>) -> Option<NewDelivery> {
        let route = rule.routes.get(&Action::Page).or(rule.routes.get(&Action::Notify))?;
        let id = match &decision.shared_cause {
            // As of any alert: who has been told of the shared cause knows.
            Some(shared) => format!("{shared}-{}", route.endpoint),
            None => format!("{}-held", decision.decision),
        };
        (decision.held_by != Some(HeldBy::Rollback)).then(|| NewDelivery {
            id,
            endpoint: route.endpoint.clone(),
            event_type: "guardrail.alert",
            priority: Priority::Inform,
            payload: payload::body("guardrail.alert", decision, None, &own(rule, route), &self.links(rule.runbook.as_ref(), decision)),
            escalate_to: escalation(rule, &route.endpoint),
            traceparent: traceparent.map(str::to_owned),
        })
    }

    /// Deliveries of a decision about a shared cause: one to each receiver that its experiments page, or else notify.
    pub fn shared(&self, rules: &BTreeMap<String, Arc<RuleSet>>, decision: &Decision, traceparent: Option<&str>) -> Vec<NewDelivery> {
        let Evidence::SharedCause { experiments, .. } = &decision.evidence else { return Vec::new() };
        let mut told = BTreeSet::new();
        let mut deliveries = Vec::new();
        for rule in experiments.iter().filter_map(|name| rules.get(name)) {
            let page = rule.routes.get(&Action::Page).filter(|_| decision.action == Action::Page);
            let Some(route) = page.or(rule.routes.get(&Action::Notify)) else { continue };
            if told.insert(&route.endpoint) {
                deliveries.push(NewDelivery {
                    id: format!("{}-{}", decision.decision, route.endpoint),
                    endpoint: route.endpoint.clone(),
                    event_type: "guardrail.alert",
                    priority: Priority::Inform,
                    payload: payload::body(
                        "guardrail.alert",
                        decision,
                        None,
                        &Own::default(),
                        &self.links(rule.runbook.as_ref(), decision),
                    ),
                    escalate_to: escalation(rule, &route.endpoint),
                    traceparent: traceparent.map(str::to_owned),
                });
            }
        }
        deliveries
    }

    /// Deliveries of a notice: confirmation notifies, and tells whoever was paged because it was late; a resolved decision goes to all who
    /// may have been alerted.
    pub fn notice(&self, rule: &RuleSet, notice: &Notice, traceparent: Option<&str>) -> Vec<NewDelivery> {
        let (page, notify) = (rule.routes.get(&Action::Page), rule.routes.get(&Action::Notify));
        let (routes, event_type): (Vec<&Route>, _) = match notice.kind {
            // Of a shared cause only what is not confirmed is news.
            NoticeKind::Confirmed if notice.decision.shared_cause.is_some() => return Vec::new(),
            NoticeKind::Confirmed => {
                let late = notice.at - notice.decision.decided_at > rule.plan.confirm_within;
                let paged = page.filter(|_| late && rule.plan.unconfirmed.contains(&Action::Page));
                let told = notify.filter(|n| paged.is_none_or(|p| p.endpoint != n.endpoint));
                (paged.into_iter().chain(told).collect(), "guardrail.confirmed")
            }
            NoticeKind::Held if notice.decision.shared_cause.is_some() => return Vec::new(),
            NoticeKind::Held => (page.into_iter().collect(), "guardrail.alert"),
            // Whoever heard of a follow-up hears of the decision that it follows.
            NoticeKind::Resolved if notice.decision.is_follow_up() => return Vec::new(),
            NoticeKind::Resolved => {
                let paged = page.filter(|_| notice.decision.action >= Action::Page);
                let told = notify.filter(|_| notice.decision.action != Action::Page);
                let told = told.filter(|n| paged.is_none_or(|p| p.endpoint != n.endpoint));
                (paged.into_iter().chain(told).collect(), "guardrail.resolved")
            }
        };
        let links = self.links(rule.runbook.as_ref(), &notice.decision);
        let id = format!("{}-{}", notice.decision.decision, notice.kind.name());
        let deliveries = routes.into_iter().enumerate().map(|(i, route)| NewDelivery {
            // A second receiver needs an id of its own.
            id: if i == 0 { id.clone() } else { format!("{id}-{}", i + 1) },
            endpoint: route.endpoint.clone(),
            event_type,
            priority: Priority::Inform,
            payload: payload::body(event_type, &notice.decision, Some(notice), &own(rule, route), &links),
            escalate_to: escalation(rule, &route.endpoint),
            traceparent: traceparent.map(str::to_owned),
        });
        deliveries.collect()
    }

    fn links(&self, runbook: Option<&String>, decision: &Decision) -> Links {
        Links {
            experiment: Some(&decision.experiment).filter(|name| !name.is_empty()).and_then(|name| self.link("e", name)),
            decision: self.link("d", &decision.decision),
            runbook: runbook.cloned(),
        }
    }

    /// A view of the dashboard: its name and what it shows are the fragment, written as a path is.
    pub fn link(&self, view: &str, name: &str) -> Option<String> {
        let mut url = self.base_url.clone()?;
        let mut path = url.clone();
        path.path_segments_mut().ok()?.clear().extend([view, name]);
        url.path_segments_mut().ok()?.pop_if_empty().push("");
        url.set_fragment(Some(path.path()));
        Some(url.into())
    }
}

fn own<'a>(rule: &'a RuleSet, route: &'a Route) -> Own<'a> {
    Own { body: route.body.as_ref(), flag: rule.flag.as_ref() }
}

/// Who is told when `endpoint` does not receive: who is paged, else who is notified, unless that is the endpoint itself.
fn escalation(rule: &RuleSet, endpoint: &str) -> Option<String> {
    let told = [Action::Page, Action::Notify].iter().filter_map(|a| rule.routes.get(a)).map(|r| &r.endpoint);
    told.into_iter().find(|e| *e != endpoint).cloned()
}

#[cfg(test)]
mod tests;
