//! Invariant 7 of ARCHITECTURE.md, that a guardrail acts once until an operator re-arms it; and operators' own actions, which outlive
//! the process that they were told to.

use super::harness::{Daemon, Hook, Kafka, OPERATOR, READER, Site, holds, one_topic, until};
use super::stream::{EXPERIMENT, Service, rule};
use serde_json::Value;

const REASON: &str = r#"{"author": "ann", "reason": "a test", "bucket": "treatment"}"#;

fn act(daemon: &mut Daemon, verb: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    daemon.post(&format!("/api/v1/experiments/{EXPERIMENT}/{verb}"), token, body)
}

fn done(daemon: &mut Daemon, verb: &str, body: &str) -> Vec<String> {
    let (status, answer) = act(daemon, verb, Some(OPERATOR), body);
    assert_eq!(status, 200, "{verb}: {answer}");
    answer["decisions"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().to_owned()).collect()
}

fn state(daemon: &mut Daemon) -> Value {
    daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}"))
}

fn logged(daemon: &mut Daemon, kind: &str, text: &str) {
    let found = |e: &Value| e["kind"] == kind && e["text"].as_str().unwrap().contains(text);
    holds(&format!("{kind} `{text}` in the log"), || daemon.log_of(EXPERIMENT).iter().any(found));
}

#[test]
fn operators_hold_resume_roll_back_and_kill_and_a_restart_forgets_nothing() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    let start = guardraild::clock::now() - 300_000;
    let service = Service { slow_from: 10_000, ..Service::healthy(start) };
    let settings = ["engine.idle_after=1h"];
    let mut daemon = site.start(&settings);
    daemon.ready();

    assert_eq!(act(&mut daemon, "hold", None, REASON).0, 401);
    assert_eq!(act(&mut daemon, "hold", Some("no-such-token-0123456789"), REASON).0, 401);
    assert_eq!(act(&mut daemon, "rollback", Some(READER), REASON).0, 403);
    assert_eq!(act(&mut daemon, "hold", Some(OPERATOR), r#"{"reason": "x", "for": "1h"}"#).0, 200);
    assert_eq!(daemon.post("/api/v1/experiments/other/hold", Some(OPERATOR), r#"{"reason": "x"}"#).0, 404);
    kafka.write("all", &service.records(0, 20_000));
    logged(&mut daemon, "withheld", "latency_p95 of treatment");
    daemon.kill();

    let mut daemon = site.start(&settings);
    daemon.ready();
    let holds_now = state(&mut daemon)["holds"].clone();
    assert_eq!((&holds_now[0]["by"], &holds_now[0]["author"]), (&"operator".into(), &"sre".into()), "{holds_now}");
    kafka.write("all", &service.records(20_000, 25_000));
    daemon.until_records(5_000);
    assert_eq!((state(&mut daemon)["go"].clone(), site.decisions().len(), hook.hits().len()), (false.into(), 0, 0));

    assert!(done(&mut daemon, "resume", r#"{"reason": "look again"}"#).is_empty());
    kafka.write("all", &service.records(25_000, 40_000));
    let first = until("the rollback after resume", || hook.of("guardrail.rollback").pop()).data;
    assert_eq!(first["epoch"], 1);
    let own = done(&mut daemon, "rollback", REASON);
    assert_eq!(own.len(), 1, "a person's word is sent even where a machine has said the same");
    assert!(done(&mut daemon, "rollback", REASON).is_empty());
    assert_eq!(done(&mut daemon, "kill", REASON).len(), 1);
    holds("both are received", || hook.of("guardrail.rollback").len() == 2 && hook.of("guardrail.kill").len() == 1);
    let told = hook.of("guardrail.rollback").pop().unwrap().data;
    assert_eq!((&told["decision"], &told["author"]), (&own[0].as_str().into(), &"ann (token sre)".into()));
    let (status, _) = daemon.terminate();
    assert_eq!(status.code(), Some(0));

    let mut daemon = site.start(&settings);
    daemon.ready();
    assert!(done(&mut daemon, "rollback", REASON).is_empty() && done(&mut daemon, "kill", REASON).is_empty());
    done(&mut daemon, "resume", r#"{"reason": "once more"}"#);
    daemon.kill();
    let mut daemon = site.start(&settings);
    kafka.write("all", &service.records(40_000, 55_000));
    holds("a third rollback", || hook.ids("guardrail.rollback").len() == 3);
    let again = hook.of("guardrail.rollback").pop().unwrap().data;
    assert_eq!(again["epoch"], 2, "the resume outlived the kill");
    assert_ne!(again["decision"], first["decision"]);
    assert_eq!((hook.of("guardrail.rollback").len(), hook.of("guardrail.kill").len()), (3, 1));

    // A hold with an end is over when event time has passed it.
    done(&mut daemon, "hold", r#"{"reason": "a moment", "for": "1s"}"#);
    assert_eq!(state(&mut daemon)["holds"][0]["by"], "operator");
    let later = Service::healthy(guardraild::clock::now() + 10_000);
    kafka.write("all", &later.records(0, 3_000));
    logged(&mut daemon, "operator", "hold expired");
}
