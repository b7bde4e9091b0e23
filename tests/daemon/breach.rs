//! Invariants 3, 7 and 8 of ARCHITECTURE.md: no webhook without its stored decision and its log entry, a guardrail acts once, and
//! `observe` differs from `enforce` at the last step only.

use super::harness::{Hook, Kafka, Site, holds, one_topic, until};
use super::stream::{EXPERIMENT, Service, rule};
use serde_json::Value;

const OBSERVED: &str = "observed-checkout";

fn without(mut value: Value, keys: &[&str]) -> Value {
    keys.iter().for_each(|key| drop(value.as_object_mut().unwrap().remove(*key)));
    value
}

#[test]
fn a_breach_ends_in_one_webhook_and_is_confirmed_and_observing_sends_nothing() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let rules = [("a", rule(EXPERIMENT, "enforce")), ("b", rule(OBSERVED, "observe"))];
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &rules);
    let mut daemon = site.start(&[]);
    let experiments = vec![EXPERIMENT.to_owned(), OBSERVED.to_owned()];
    let start = guardraild::clock::now() - 120_000;
    let service = Service { slow_from: 20_000, stopped_from: 30_000, experiments, ..Service::healthy(start) };
    kafka.write("all", &service.records(0, 29_000));
    let hit = until("the rollback is received", || hook.of("guardrail.rollback").pop());
    let state = daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}"));
    assert_eq!((&state["verdict"], &state["stop"], &state["go"]), (&"breach".into(), &true.into(), &false.into()));
    let stopped = |state: &Value| state["buckets"][1]["stopped"]["confirmation"].as_str().unwrap_or_default().to_owned();
    assert_eq!(stopped(&state), "waiting", "exposures go on");
    assert!(hook.of("guardrail.confirmed").is_empty());

    kafka.write("all", &service.records(29_000, 60_000));
    let confirmed = until("the confirmation is received", || hook.of("guardrail.confirmed").pop());
    let id = hit.data["decision"].as_str().unwrap();
    assert_eq!(confirmed.data["decision"], id);
    assert_eq!((hook.of("guardrail.rollback").len(), hook.of("guardrail.confirmed").len(), hook.hits().len()), (1, 1, 2));
    let stored = daemon.json(&format!("/api/v1/decisions/{id}"));
    assert_eq!(without(hit.data.clone(), &["body", "links"]), without(stored.clone(), &["deliveries"]));
    assert_eq!(hit.data["body"]["flag"], EXPERIMENT);
    let deliveries = stored["deliveries"].as_array().unwrap();
    assert!(deliveries.iter().any(|d| d["id"] == hit.id.as_str()), "{deliveries:?}");
    let log = daemon.log_of(EXPERIMENT);
    let kinds: Vec<&str> = log.iter().map(|entry| entry["kind"].as_str().unwrap()).filter(|kind| *kind != "delivery").collect();
    assert_eq!(kinds, ["launch", "decision", "confirmed"]);
    assert!(log.iter().filter(|e| e["kind"] == "decision" || e["kind"] == "confirmed").all(|e| e["decision"] == id));
    holds("the API says so too", || stopped(&daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}"))) == "confirmed");

    let state = daemon.json(&format!("/api/v1/experiments/{OBSERVED}"));
    assert_eq!(stopped(&state), "observed");
    let observed = daemon.json(&format!("/api/v1/decisions/{}", state["decisions"][0].as_str().unwrap()));
    assert_eq!(observed["deliveries"], Value::Array(Vec::new()));
    // What differs is the name, what follows from it, and the mode.
    let named = ["decision", "experiment", "mode", "deliveries"];
    assert_eq!(without(observed.clone(), &named), without(stored.clone(), &named));
    assert_eq!((&observed["mode"], &stored["mode"]), (&"observe".into(), &"enforce".into()));
    holds("the log tells of it", || daemon.log_of(OBSERVED).iter().any(|e| e["kind"] == "decision"));
}
