//! Invariants 1, 4 and 5 of ARCHITECTURE.md: the same records give the same decisions byte for byte, offsets move only with the state
//! that reflects them, and replay never acts twice; and 2, that every record is counted once. Shown by `kill -9`.

use super::harness::{BIN, Daemon, Hit, Hook, Kafka, Pen, Record, Site, holds, one_topic, total, until};
use super::stream::{EXPERIMENT, Service, rule};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SPAN_MS: i64 = 120_000;

/// Breach, rollback and recovery, with records of every outcome among them.
fn recording() -> Vec<Record> {
    let start = guardraild::clock::now() - 200_000;
    let service = Service { visits_per_s: 50, slow_from: 55_000, stopped_from: 66_000, ..Service::healthy(start) };
    let mut records = Vec::new();
    for (n, record) in service.records(0, SPAN_MS).into_iter().enumerate() {
        let ts = record.ts;
        let text = String::from_utf8(record.payload.clone()).unwrap();
        records.push(record);
        let mut add = |payload: String| records.push(Record { ts, payload: payload.into_bytes() });
        match n % 40 {
            1 if text.contains("\"id\"") => add(text),
            7 => add("{\"event\":".into()),
            13 => add(format!(r#"{{"event":"ticket","ts":{ts},"tenant_id":"t","user_id":"nobody"}}"#)),
            19 => add(text.replace(&ts.to_string(), &(ts - 60_000).to_string())),
            27 => add(format!(r#"{{"event":"exposure","ts":{ts},"experiment":"x{n}","bucket":"b","tenant_id":"t","user_id":"v"}}"#)),
            31 => add(text.replace(&ts.to_string(), &(ts - 9_000).to_string()).replace("\"r-", "\"old-")),
            _ => {}
        }
    }
    records
}

/// Counts, states of the experiments and their logs, once everything has been judged.
pub fn outcome(daemon: &mut Daemon, records: usize) -> (Value, Value, Vec<String>) {
    daemon.until_records(records);
    let log = daemon.log_of(EXPERIMENT).into_iter().filter(|entry| entry["kind"] != "delivery").map(|mut entry| {
        entry.as_object_mut().unwrap().remove("seq");
        entry.to_string()
    });
    let mut log: Vec<String> = log.collect();
    log.sort();
    let view = daemon.json("/api/v1/experiments");
    assert_eq!(total(&view["counts"]), records as u64);
    (view["counts"].clone(), view["experiments"].clone(), log)
}

/// Feeds the records at about four times their own speed; returns how many have been sent so far.
fn feed(pen: Pen, records: Arc<Vec<Record>>, halt: Arc<AtomicBool>) -> Arc<AtomicUsize> {
    let sent = Arc::new(AtomicUsize::new(0));
    let at = Arc::clone(&sent);
    std::thread::spawn(move || {
        let begun = Instant::now();
        let first = records[0].ts;
        while at.load(Ordering::Relaxed) < records.len() && !halt.load(Ordering::Relaxed) {
            let upto = first + begun.elapsed().as_millis() as i64 * 4;
            let from = at.load(Ordering::Relaxed);
            let to = from + records[from..].partition_point(|r| r.ts <= upto || r.ts < first);
            pen.pour("all", &records[from..to]);
            at.store(to, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        }
        pen.flush();
    });
    sent
}

#[test]
fn a_daemon_that_is_killed_again_and_again_decides_as_one_that_never_was() {
    let cycles: usize = std::env::var("GUARDRAILD_CRASH_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(7);
    let seed: u64 = std::env::var("GUARDRAILD_CRASH_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let kafka = Kafka::start(&["all"], 1);
    let records = Arc::new(recording());
    // The first rollback request is not answered before the daemon is dead, the next is refused.
    let asked = Arc::new(AtomicUsize::new(0));
    let dead = Arc::new(Mutex::new(()));
    let (number, gate) = (Arc::clone(&asked), Arc::clone(&dead));
    let hook = Hook::start(Box::new(move |_, kind| {
        if kind != "guardrail.rollback" {
            return 200;
        }
        let n = number.fetch_add(1, Ordering::SeqCst);
        drop(gate.lock().unwrap());
        if n < 2 { 503 } else { 200 }
    }));
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    // Nobody writes to a quiet partition here but the feed: its time must not move by itself.
    let settings = ["engine.idle_after=1h"];
    let halt = Arc::new(AtomicBool::new(false));
    let sent = feed(kafka.pen.clone(), Arc::clone(&records), Arc::clone(&halt));

    for cycle in 0..cycles {
        let alive = dead.lock().unwrap();
        let mut daemon = site.start(&settings);
        let begun = Instant::now();
        // Every third dies at any time from its start on, the others once they read.
        if cycle % 3 != 2 {
            daemon.ready();
        }
        let life = Duration::from_millis(rng.random_range(0..3_500));
        let (since, seen) = (if cycle % 3 == 2 { begun } else { Instant::now() }, asked.load(Ordering::SeqCst));
        until("its time has come", || (since.elapsed() >= life || asked.load(Ordering::SeqCst) > seen).then_some(()));
        eprintln!("cycle {cycle}: killed after {} of {} records, {} requests", sent.load(Ordering::Relaxed), records.len(), seen);
        daemon.kill();
        drop(alive);
    }
    let mut daemon = site.start(&settings);
    holds("all records are sent", || sent.load(Ordering::Relaxed) == records.len());
    let crashed = outcome(&mut daemon, records.len());
    holds("the rollback is received", || hook.of("guardrail.rollback").iter().any(|hit| hit.status == 200));
    holds("its confirmation is received", || hook.of("guardrail.confirmed").iter().any(|hit| hit.status == 200));
    assert!(hook.of("guardrail.rollback").len() >= 3, "the first was cut off, the second refused");
    assert_eq!(hook.ids("guardrail.rollback").len(), 1, "{:?}", hook.hits());
    assert_eq!(hook.ids("guardrail.confirmed").len(), 1, "{:?}", hook.hits());
    told_as_stored(&site, &hook.hits());

    let calm_hook = Hook::ok();
    let calm = Site::new(&one_topic(&kafka, "all"), &calm_hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    let mut daemon = calm.start(&settings);
    let uninterrupted = outcome(&mut daemon, records.len());
    assert_eq!(crashed.0, uninterrupted.0, "counts by outcome");
    assert_eq!(site.decisions(), calm.decisions(), "decisions");
    assert_eq!(crashed.2, uninterrupted.2, "execution logs");
    assert_eq!(crashed.1, uninterrupted.1, "states");
    assert_eq!(site.decisions(), backtest(&site, &records), "backtest");
    for outcome in ["accepted", "late", "duplicate", "unattributed", "unknown_experiment"] {
        assert!(crashed.0[outcome].as_u64().unwrap() > 10, "{outcome} was not tried: {}", crashed.0);
    }
    halt.store(true, Ordering::Relaxed);
}

/// Holds the receiver's log against the outbox: nothing was sent that is not stored, attempts are numbered without a gap and each was
/// stored before it was made, nothing was refused and then forgotten.
pub fn told_as_stored(site: &Site, hits: &[Hit]) {
    let database = site.database();
    let ask = |sql: &str, id: &str| -> i64 { database.query_row(sql, [id], |row| row.get(0)).unwrap() };
    let ids: BTreeSet<&str> = hits.iter().map(|hit| hit.id.as_str()).collect();
    for id in &ids {
        assert_eq!(ask("SELECT count(*) FROM outbox WHERE id = ?", id), 1, "{id} was sent, and is not in the outbox");
        let (requests, accepted) = hits.iter().filter(|h| h.id == *id).fold((0, 0), |(n, ok), h| (n + 1, ok + i64::from(h.status == 200)));
        let (attempts, last) =
            (ask("SELECT count(*) FROM attempts WHERE delivery = ?", id), ask("SELECT max(n) FROM attempts WHERE delivery = ?", id));
        assert!(requests <= attempts && attempts == last, "{id}: {requests} requests, {attempts} attempts, the last has number {last}");
        assert_eq!(ask("SELECT state = 'delivered' FROM outbox WHERE id = ?", id), i64::from(accepted > 0), "{id}");
    }
    let waiting = ask("SELECT count(*) FROM outbox WHERE state = 'pending' AND ? = ''", "");
    assert_eq!(waiting, 0, "deliveries wait for nothing");
}

/// Decisions of `guardraild backtest` over the same records, byte for byte.
pub fn backtest(site: &Site, records: &[Record]) -> Vec<String> {
    let file = site.path("events.ndjson");
    let mut text = Vec::new();
    records.iter().for_each(|r| {
        text.extend_from_slice(&r.payload);
        text.push(b'\n');
    });
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(BIN);
    command.arg("backtest").arg("--rules").arg(site.path("rules")).arg("--events").arg(&file).args(["--output", "json"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().filter(|line| !line.starts_with("{\"summary\"")).map(str::to_owned).collect()
}
