//! Invariant 3 of ARCHITECTURE.md: no webhook without its committed row. While the database cannot be written nothing is acted on;
//! afterwards it is, once.

use super::harness::{BIN, Daemon, Hook, Kafka, Site, holds, one_topic};
use super::stream::{EXPERIMENT, Service, rule};
use std::process::Command;

fn breach() -> Service {
    Service { slow_from: 10_000, ..Service::healthy(guardraild::clock::now() - 120_000) }
}

fn unwritable(daemon: &mut Daemon) -> String {
    let mut text = String::new();
    holds("not ready for the database", || {
        let (status, checks) = daemon.get("/readyz?verbose");
        text = checks;
        status == 503 && text.lines().any(|l| l.starts_with("[-] store:"))
    });
    text
}

#[test]
fn a_locked_database_delays_the_webhook_until_the_decision_is_stored() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    let mut daemon = site.start(&[]);
    let service = breach();
    kafka.write("all", &service.records(0, 9_000));
    daemon.until_records(1_800);
    let database = site.database();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    kafka.write("all", &service.records(9_000, 25_000));
    let text = unwritable(&mut daemon);
    assert!(text.contains("locked"), "{text}");
    assert_eq!(daemon.get("/livez").0, 200);
    assert!(daemon.logged("nothing is decided while the database cannot be written"));
    assert!(hook.hits().is_empty());
    database.execute_batch("ROLLBACK").unwrap();
    daemon.ready();
    holds("the rollback is received", || !hook.of("guardrail.rollback").is_empty());
    assert_eq!(site.decisions().len(), 1);
    daemon.until_records(service.records(0, 25_000).len());
    assert_eq!(hook.of("guardrail.rollback").len(), 1);
}

/// What could not be stored before the end is not in the last checkpoint either: the next start hears it again.
#[test]
fn a_database_that_is_locked_until_the_end_costs_no_decision() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    // No checkpoint but the last: nothing else may wait for the lock before the decision does.
    let mut daemon = site.start(&["checkpoint.every=10m"]);
    let service = breach();
    kafka.write("all", &service.records(0, 9_000));
    daemon.until_records(1_800);
    let database = site.database();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    kafka.write("all", &service.records(9_000, 25_000));
    unwritable(&mut daemon);
    holds("the decision is made", || daemon.logged("above the limit"));
    daemon.ask_to_stop();
    holds("it drains", || daemon.logged("SIGTERM: draining"));
    // The decision's last attempt; the last checkpoint comes next.
    let failures = |daemon: &mut Daemon| {
        let metrics = daemon.get("/metrics").1;
        let line = metrics.lines().find(|l| l.starts_with("guardraild_store_errors_total ")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let before = failures(&mut daemon);
    holds("it gives up", || failures(&mut daemon) > before);
    database.execute_batch("ROLLBACK").unwrap();
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(hook.hits().is_empty());

    let mut daemon = site.start(&[]);
    daemon.until_records(service.records(0, 25_000).len());
    holds("the rollback is received", || !hook.of("guardrail.rollback").is_empty());
    assert_eq!((site.decisions().len(), hook.of("guardrail.rollback").len()), (1, 1));
}

/// A breach while the disk is full, and a restart once there is room.
#[test]
fn a_full_disk_loses_no_decision_even_across_a_restart() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    // Files that may not grow: to SQLite, a full disk.
    let mut shell = Command::new("bash");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$0\" \"$@\"", BIN]);
    let mut daemon = Daemon::spawn(site.equip(shell));
    daemon.ready();
    let service = breach();
    kafka.write("all", &service.records(0, 9_000));
    daemon.until_records(1_800);
    let mut filler = 0;
    // The log takes annotations until it is full.
    holds("the disk is full", || {
        filler += 1;
        let text = format!("{{\"reason\": \"{filler} {}\"}}", "x".repeat(1_900));
        daemon.get("/readyz").0 == 503 || {
            daemon.post(&format!("/api/v1/experiments/{EXPERIMENT}/annotations"), Some(super::harness::OPERATOR), &text);
            false
        }
    });
    let text = unwritable(&mut daemon);
    kafka.write("all", &service.records(9_000, 25_000));
    assert!(hook.hits().is_empty(), "{text}");
    let (status, log) = daemon.terminate();
    assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
    assert!(hook.hits().is_empty() && site.decisions().is_empty());

    let mut daemon = site.start(&[]);
    daemon.until_records(service.records(0, 25_000).len());
    holds("the rollback is received", || !hook.of("guardrail.rollback").is_empty());
    assert_eq!((site.decisions().len(), hook.of("guardrail.rollback").len()), (1, 1));
}
