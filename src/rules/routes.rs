//! The receivers of actions.

use super::diagnostic::{Faults, nearest, quote};
use super::keys::CHANNELS;
use super::yaml::{Kind, Node};
use super::{Channel, Route};
use crate::engine::decision::Action;
use std::collections::{BTreeMap, BTreeSet};

/// Where each action goes.
pub type Routes = BTreeMap<Action, Route>;

const ROUTED: [Action; 5] = [Action::Notify, Action::Page, Action::Pause, Action::Rollback, Action::Kill];

/// The routes of the `actions` section. `endpoints` are the names that the configuration defines, if it is at hand.
pub fn read(actions: Option<&Node>, endpoints: Option<&BTreeSet<String>>, faults: &mut Faults) -> Routes {
    let mut routes = Routes::new();
    for action in ROUTED {
        let Some(node) = actions.and_then(|a| a.get(action.name())) else { continue };
        if let Some(route) = route(node, endpoints, faults) {
            routes.insert(action, route);
        }
    }
    routes
}

fn route(node: &Node, endpoints: Option<&BTreeSet<String>>, faults: &mut Faults) -> Option<Route> {
    if !matches!(node.kind, Kind::Map(_)) {
        return None;
    }
    let mut named = node.entries().iter().filter(|e| CHANNELS.contains(&e.key.as_str()));
    let Some(first) = named.next() else {
        faults.error(&node.span, "GR2304", "names no receiver", "add `webhook`, `pagerduty` or `slack` with an endpoint's name");
        return None;
    };
    for second in named {
        let message = format!("a second receiver beside `{}`", first.key);
        faults.error(&second.key_span, "GR2304", message, "one action has one receiver");
    }
    if let Some(body) = node.get("body") {
        refuse_secrets(body, faults);
    }
    let channel = match first.key.as_str() {
        "webhook" => Channel::Webhook,
        "pagerduty" => Channel::Pagerduty,
        _ => Channel::Slack,
    };
    let endpoint = first.value.text()?.to_owned();
    check_endpoint(&first.value, &endpoint, endpoints, faults);
    Some(Route { channel, endpoint, body: node.get("body").map(Node::to_json) })
}

fn check_endpoint(node: &Node, name: &str, endpoints: Option<&BTreeSet<String>>, faults: &mut Faults) {
    if is_secret(name) || is_address(name) {
        let what = if is_secret(name) { "a secret" } else { "an address" };
        let fault = faults.at(&node.span, "GR2303", format!("{what} in a rule file"));
        let fault = fault
            .with_label("name an endpoint instead")
            .with_help("addresses and secrets live in the daemon's configuration, under `endpoints`");
        faults.push(fault);
        return;
    }
    let Some(known) = endpoints.filter(|e| !e.contains(name)) else { return };
    let near = nearest(name, known.iter().map(String::as_str));
    let label = near.map_or("the configuration has no endpoint of this name".to_owned(), |k| format!("did you mean `{k}`?"));
    faults.error(&node.span, "GR2301", format!("no such endpoint: {}", quote(name)), label);
}

/// Secrets of the receivers that rule files name, by their published prefixes.
fn is_secret(text: &str) -> bool {
    const PREFIXES: [&str; 5] = ["whsec_", "xoxb-", "xoxp-", "xapp-", "Bearer "];
    PREFIXES.iter().any(|p| text.starts_with(p))
}

fn is_address(text: &str) -> bool {
    let port = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    port || text.contains("://") || text.contains(['/', '@'])
}

fn refuse_secrets(node: &Node, faults: &mut Faults) {
    match &node.kind {
        Kind::Scalar { text, .. } if is_secret(text) => faults.error(&node.span, "GR2303", "a secret in a rule file", "remove it"),
        Kind::Scalar { .. } => {}
        Kind::List(items) => items.iter().for_each(|n| refuse_secrets(n, faults)),
        Kind::Map(entries) => entries.iter().for_each(|e| refuse_secrets(&e.value, faults)),
    }
}
