//! Two daemons on one state directory: the standby takes over from one that was killed or stopped, and whoever was stopped and wakes up
//! writes and sends nothing. And checkpoints that were damaged meanwhile.

use super::harness::{Daemon, Hook, Kafka, OPERATOR, Site, holds, one_topic, until};
use super::stream::{EXPERIMENT, Service, rule};
use serde_json::Value;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn breach() -> Service {
    Service { slow_from: 10_000, ..Service::healthy(guardraild::clock::now() - 120_000) }
}

fn signal(daemon: &Daemon, name: &str) {
    assert!(Command::new("kill").args([name, &daemon.child.id().to_string()]).status().unwrap().success());
}

/// Stops a daemon between two of its transactions: one that is stopped in the middle of a write keeps SQLite's lock.
fn freeze(daemon: &Daemon, site: &Site) {
    let database = site.database();
    database.execute_batch("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE").unwrap();
    signal(daemon, "-STOP");
    let stat = format!("/proc/{}/stat", daemon.child.id());
    holds("it is stopped", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
    database.execute_batch("ROLLBACK").unwrap();
}

fn standby(site: &Site) -> Daemon {
    let daemon = site.start(&["standby=true"]);
    holds("it stands by", || daemon.logged("\"standing by\""));
    daemon
}

#[test]
fn a_standby_takes_over_from_a_killed_one_and_nothing_is_lost_or_doubled() {
    let kafka = Kafka::start(&["all"], 2);
    let hook = Hook::ok();
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    let service = breach();
    let mut active = site.start(&["standby=true"]);
    active.ready();
    let mut second = standby(&site);
    assert_eq!(second.get("/livez").0, 200);
    let (status, checks) = second.get("/readyz?verbose");
    assert!(status == 503 && checks.contains("[-] turn: standing by"), "{status} {checks}");
    let (status, body) = second.get("/api/v1/experiments");
    assert!(status == 503 && body.contains("standing by") && body.contains("http://"), "{status} {body}");
    assert!(second.get("/metrics").1.contains("guardraild_standby 1"));
    let (status, body) = second.post("/-/reload", Some(OPERATOR), "");
    assert!(status == 503 && body.to_string().contains("standing by"), "{status} {body}");
    signal(&second, "-HUP");

    kafka.write("all", &service.records(0, 13_000));
    holds("the breach is decided", || !hook.of("guardrail.rollback").is_empty());
    active.kill();
    second.ready();
    assert!(second.get("/metrics").1.contains("guardraild_standby 0") && second.get("/metrics").1.contains("guardraild_epoch 2"));
    kafka.write("all", &service.records(13_000, 25_000));
    second.until_records(service.records(0, 25_000).len());
    assert_eq!((site.decisions().len(), hook.ids("guardrail.rollback").len()), (1, 1));
    let counts = second.json("/api/v1/experiments")["counts"].clone();
    assert_eq!(counts["accepted"], service.records(0, 25_000).len() as u64, "{counts}");
}

#[test]
fn a_stopped_daemon_that_wakes_up_writes_and_sends_nothing() {
    let kafka = Kafka::start(&["all"], 1);
    // The receiver refuses until the old daemon is stopped, so that a delivery of its own is due when it wakes up.
    let accepts = Arc::new(AtomicBool::new(false));
    let may = Arc::clone(&accepts);
    let hook = Hook::start(Box::new(move |_, _| if may.load(Ordering::SeqCst) { 200 } else { 503 }));
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    let service = breach();
    let mut old = site.start(&["standby=true"]);
    old.ready();
    let mut new = standby(&site);
    kafka.write("all", &service.records(0, 13_000));
    holds("the rollback was attempted", || !hook.of("guardrail.rollback").is_empty());
    freeze(&old, &site);
    accepts.store(true, Ordering::SeqCst);
    new.ready();
    assert!(new.logged("taking over"), "{:?}", new.log());
    kafka.write("all", &service.records(13_000, 25_000));
    new.until_records(service.records(0, 25_000).len());
    let delivered = || hook.of("guardrail.rollback").iter().any(|hit| hit.status == 200);
    holds("the new one delivers what the old one could not", delivered);

    let (hits, decisions, written) = (hook.hits().len(), site.decisions(), writes(&site));
    signal(&old, "-CONT");
    assert_eq!(old.wait().code(), Some(1));
    assert!(old.logged("another daemon has taken over"), "{:?}", old.log());
    assert_eq!((hook.hits().len(), site.decisions(), hook.ids("guardrail.rollback").len()), (hits, decisions, 1));
    assert_eq!(writes(&site).0, written.0, "attempts");
    assert_eq!(writes(&site).1, 2, "the epoch is the new one's");
    new.ready();
}

/// Two that know nothing of each other: either is enough, and receivers tell repeats by their ids.
#[test]
fn two_daemons_on_two_state_directories_decide_the_same_under_the_same_ids() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let topics = one_topic(&kafka, "all");
    let sites = [0, 1].map(|_| Site::new(&topics, &hook, &[("rule", rule(EXPERIMENT, "enforce"))]));
    let service = breach();
    let mut one = sites[0].start(&["kafka.group=one", "engine.idle_after=1h"]);
    let mut other = sites[1].start(&["kafka.group=other", "engine.idle_after=1h"]);
    one.ready();
    other.ready();
    kafka.write("all", &service.records(0, 13_000));
    holds("both roll back", || hook.of("guardrail.rollback").len() == 2);
    assert_eq!(hook.ids("guardrail.rollback").len(), 1, "under one id");
    one.until_records(service.records(0, 13_000).len());
    one.kill();
    kafka.write("all", &service.records(13_000, 25_000));
    other.until_records(service.records(0, 25_000).len());
    let mut one = sites[0].start(&["kafka.group=one", "engine.idle_after=1h"]);
    one.until_records(service.records(0, 25_000).len());
    assert_eq!((one.terminate().0.code(), other.terminate().0.code()), (Some(0), Some(0)));
    let [decisions, others] = sites.map(|site| site.decisions());
    assert!(!decisions.is_empty() && decisions == others, "{decisions:?}\n{others:?}");
    assert_eq!(hook.ids("guardrail.rollback").len(), 1);
}

/// Attempts begun, and the epoch.
fn writes(site: &Site) -> (i64, i64) {
    site.database().query_row("SELECT (SELECT count(*) FROM attempts), epoch FROM holder", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap()
}

/// Falling back reads records again, and decides nothing again.
#[test]
fn a_damaged_checkpoint_costs_a_longer_replay_and_no_decision() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    let service = breach();
    let mut daemon = site.start(&["checkpoint.every=10m"]);
    kafka.write("all", &service.records(0, 8_000));
    daemon.until_records(service.records(0, 8_000).len());
    assert_eq!(daemon.terminate().0.code(), Some(0));
    let mut daemon = site.start(&["checkpoint.every=10m"]);
    kafka.write("all", &service.records(8_000, 20_000));
    daemon.until_records(service.records(0, 20_000).len());
    holds("it rolls back", || !hook.of("guardrail.rollback").is_empty());
    assert_eq!(daemon.terminate().0.code(), Some(0));
    let before = site.decisions();

    let damage = "UPDATE parts SET data = x'00' WHERE name = 'partition/0/state' AND died IS NULL";
    assert_eq!(site.database().execute(damage, []).unwrap(), 1);
    let mut daemon = site.start(&[]);
    daemon.ready();
    assert!(daemon.logged("going on from the checkpoint of"), "{:?}", daemon.log());
    assert!(daemon.get("/metrics").1.contains("guardraild_checkpoints_damaged_total 1"));
    daemon.until_records(service.records(0, 20_000).len());
    let told: Vec<Value> = daemon.log_of(EXPERIMENT).into_iter().filter(|entry| entry["kind"] == "recovery").collect();
    assert!(told.len() == 1 && told[0]["text"].as_str().unwrap().contains("records since then are read again"), "{told:?}");
    assert_eq!((site.decisions(), hook.ids("guardrail.rollback").len()), (before, 1));
    assert_eq!(daemon.terminate().0.code(), Some(0));

    // Without any: from the beginning.
    site.database().execute("UPDATE checkpoints SET checksum = 0", []).unwrap();
    let mut daemon = site.start(&["kafka.auto_offset_reset=earliest"]);
    daemon.until_records(service.records(0, 20_000).len());
    assert!(daemon.logged("no checkpoint is left"), "{:?}", daemon.log());
    assert_eq!(hook.ids("guardrail.rollback").len(), 1);
    let found = until("a checkpoint", || {
        let found: i64 = site.database().query_row("SELECT count(*) FROM checkpoints", [], |r| r.get(0)).unwrap();
        (found > 0).then_some(found)
    });
    assert!(found <= 2);
}

/// What this program cannot understand is not overwritten.
#[test]
fn the_state_of_a_newer_program_is_left_alone() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    let mut daemon = site.start(&[]);
    daemon.ready();
    assert_eq!(daemon.terminate().0.code(), Some(0));
    let mut store = guardraild::store::Store::open(site.path("state").join("guardraild.db")).unwrap();
    let changes = vec![("fleet/state".to_owned(), guardraild::engine::kept::Change::Set(vec![vec![99]]))];
    let checkpoint = guardraild::store::Checkpoint { changes, ..Default::default() };
    store.commit(&guardraild::store::Commit { checkpoint: Some(checkpoint), ..Default::default() }).unwrap();
    let mut daemon = site.start(&[]);
    assert_eq!(daemon.wait().code(), Some(1));
    holds("it says why, and the way out", || daemon.logged("is of format 99") && daemon.logged("Run the version that wrote it"));
    assert_eq!(store.load_checkpoint().unwrap().checkpoint.unwrap().parts.blobs("fleet/state"), [vec![99]]);
}
