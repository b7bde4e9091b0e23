use super::*;
use crate::clock::Moment;
use crate::engine::decision::{Action, Decision, Evidence, LogEntry, LogKind, LogQuery, Mode, Notice, NoticeKind, Verdict};
use crate::engine::kept::Change::{self, Append, Set};
use tempfile::TempDir;

fn open() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("guardraild.db")).unwrap();
    (dir, store)
}

fn decision(id: &str) -> Decision {
    Decision {
        decision: id.to_owned(),
        decided_at: 1_000,
        experiment: "new-checkout".to_owned(),
        revision: 3,
        phase: 0,
        bucket: "treatment".to_owned(),
        guardrail: "latency_p95".to_owned(),
        criterion: "max_increase".to_owned(),
        verdict: Verdict::Breach,
        action: Action::Rollback,
        mode: Mode::Enforce,
        baseline_value: Some(420.0),
        bucket_value: Some(518.0),
        unit: "ms".to_owned(),
        change: Some(0.233),
        interval: Some([0.141, 0.33]),
        margin: Some(0.1),
        alpha: Some(0.0025),
        log_e_value: Some(7.9),
        test: "count".to_owned(),
        since: 500,
        exposed_units: 18_402,
        evidence: Evidence::Count { count: 1, allowed: 0 },
        reason: "latency p95 of treatment is 23.3% above control".to_owned(),
        epoch: 2,
        segment: None,
        covered_by: None,
        held_by: None,
        author: None,
        shared_cause: None,
    }
}

fn delivery(id: &str, priority: Priority) -> NewDelivery {
    NewDelivery {
        id: id.to_owned(),
        endpoint: "flag-service".to_owned(),
        event_type: "guardrail.rollback",
        priority,
        payload: "{}".to_owned(),
        escalate_to: None,
        traceparent: Some("00-1".to_owned()),
    }
}

fn one(id: &str) -> Commit {
    let row = delivery(&format!("{id}-rollback"), Priority::Rollback);
    Commit { at: 2_000, decisions: vec![(decision(id), vec![row])], ..Commit::default() }
}

fn due(store: &Store, now: i64) -> Option<Delivery> {
    match store.poll("flag-service", Lane::Intervene, now, &[]).unwrap() {
        Poll::Due(d) => Some(*d),
        _ => None,
    }
}

/// Both clocks agree.
fn at(ms: i64) -> Moment {
    Moment { wall: ms, steady: ms }
}

fn end(status: u16) -> AttemptEnd {
    AttemptEnd { at: at(2_100), duration_ms: 100, status: Some(status), error: None, receipt: None }
}

#[test]
fn a_decision_comes_with_its_delivery_and_its_log_entry() {
    let (_dir, mut store) = open();
    let done = store.commit(&one("d-1")).unwrap();
    assert_eq!((done.new, done.known, done.deliveries), (vec!["d-1".to_owned()], vec![], 1));

    let stored = store.decision("d-1").unwrap().unwrap();
    assert_eq!((stored.epoch, stored.action, stored.revision), (2, Action::Rollback, 3));
    assert_eq!(stored.body.get(), serde_json::to_string(&decision("d-1")).unwrap());
    let log = store.log("new-checkout", &LogQuery::first(10)).unwrap();
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].entry.kind, log[0].entry.decision.as_deref()), (LogKind::Decision, Some("d-1")));
    let rows = store.deliveries("d-1").unwrap();
    assert_eq!(rows[0].delivery.state, DeliveryState::Pending);
    assert_eq!(rows[0].delivery.traceparent.as_deref(), Some("00-1"));
    assert_eq!(rows[0].delivery.next_attempt_ms, 2_000);
}

#[test]
fn what_several_panes_said_is_in_the_log_in_its_order() {
    let (_dir, mut store) = open();
    let decided_at = decision("d-1").decided_at;
    let entry = |at, kind| LogEntry {
        at,
        experiment: "new-checkout".to_owned(),
        kind,
        author: None,
        text: "t".to_owned(),
        decision: None,
        links: Vec::new(),
    };
    let log = vec![entry(decided_at - 9, LogKind::Launch), entry(decided_at, LogKind::Phase), entry(decided_at + 9, LogKind::Annotation)];
    store.commit(&Commit { log, ..one("d-1") }).unwrap();
    let kinds: Vec<LogKind> = store.log("new-checkout", &LogQuery::first(9)).unwrap().iter().map(|logged| logged.entry.kind).collect();
    assert_eq!(kinds, [LogKind::Launch, LogKind::Decision, LogKind::Phase, LogKind::Annotation]);
}

#[test]
fn replay_changes_nothing() {
    let (_dir, mut store) = open();
    let notice = Notice { kind: NoticeKind::Confirmed, at: 1_500, decision: decision("d-1"), text: "exposures stopped".to_owned() };
    let entry = LogEntry {
        at: 900,
        experiment: "new-checkout".to_owned(),
        kind: LogKind::Annotation,
        author: None,
        text: "deploy".to_owned(),
        decision: None,
        links: Vec::new(),
    };
    let mut commit = one("d-1");
    commit.notices.push((notice, vec![delivery("d-1-confirmed", Priority::Inform)]));
    commit.log.push(entry);
    assert_eq!(store.commit(&commit).unwrap().deliveries, 2);
    let before = store.log("new-checkout", &LogQuery::first(10)).unwrap();
    assert_eq!(before.len(), 3);

    let again = store.commit(&commit).unwrap();
    assert_eq!((again.new, again.known, again.deliveries), (vec![], vec!["d-1".to_owned()], 0));
    assert_eq!(store.log("new-checkout", &LogQuery::first(10)).unwrap(), before);
    assert_eq!(store.deliveries("d-1").unwrap().len(), 2);
    assert_eq!(store.decisions_after(0).unwrap().len(), 1);
}

#[test]
fn a_commit_that_fails_in_its_middle_leaves_nothing() {
    let (_dir, mut store) = open();
    store.connection.execute_batch("CREATE TRIGGER fail BEFORE INSERT ON outbox BEGIN SELECT raise(ABORT, 'no'); END").unwrap();
    let mut commit = one("d-1");
    commit.operation = Some(NewOperation { at: 1, experiment: "new-checkout".to_owned(), body: "{}".to_owned() });
    assert!(store.commit(&commit).is_err());
    assert!(store.decision("d-1").unwrap().is_none());
    assert!(store.log("new-checkout", &LogQuery::first(10)).unwrap().is_empty());
    assert!(store.operations_after(0).unwrap().is_empty());

    store.connection.execute_batch("DROP TRIGGER fail").unwrap();
    assert_eq!(store.commit(&commit).unwrap().new, ["d-1"]);
}

#[test]
fn a_full_disk_is_told_apart_and_passes() {
    let (_dir, mut store) = open();
    let pages: i64 = store.connection.query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
    store.connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |r| r.get::<_, i64>(0)).unwrap();
    let mut commit = one("d-1");
    commit.decisions[0].1[0].payload = "x".repeat(100_000);
    let error = store.commit(&commit).unwrap_err();
    assert!(error.is_disk_full() && !error.is_locked(), "{error}");
    assert!(error.to_string().contains("guardraild.db"), "{error}");
    assert!(store.decision("d-1").unwrap().is_none());

    store.connection.query_row("PRAGMA max_page_count = 100000", [], |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!(store.commit(&commit).unwrap().new, ["d-1"]);
}

#[test]
fn a_locked_file_is_told_apart_and_readers_go_on() {
    let (_dir, mut store) = open();
    store.commit(&one("d-1")).unwrap();
    store.connection.busy_timeout(Duration::ZERO).unwrap();
    let mut other = Store::open(store.path()).unwrap();
    let lock = other.connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let error = store.commit(&one("d-2")).unwrap_err();
    assert!(error.is_locked(), "{error}");
    assert!(store.decision("d-1").unwrap().is_some());
    drop(lock);
    assert_eq!(store.commit(&one("d-2")).unwrap().new, ["d-2"]);
}

#[test]
fn files_that_are_not_ours_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage.db");
    std::fs::write(&garbage, "not a database, by any means".repeat(100)).unwrap();
    assert!(matches!(Store::open(&garbage), Err(StoreError::Corrupt { .. })));

    let foreign = dir.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(Store::open(&foreign), Err(StoreError::Foreign { .. })));

    let newer = dir.path().join("newer.db");
    Store::open(&newer).unwrap().connection.pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&newer).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { found: 99, .. }), "{error}");

    let error = Store::open(dir.path().join("absent/x.db")).unwrap_err();
    assert!(matches!(error, StoreError::Unwritable { .. }), "{error}");
}

fn checkpoint(made_at: i64, units: Change) -> Commit {
    let changes = vec![("state".to_owned(), Change::Set(vec![vec![made_at as u8]])), ("units".to_owned(), units)];
    Commit { checkpoint: Some(Checkpoint { made_at, operations_seq: made_at, whole: false, changes }), ..Commit::default() }
}

fn units(store: &mut Store) -> (i64, Vec<Vec<u8>>) {
    let checkpoint = store.load_checkpoint().unwrap().checkpoint.unwrap();
    assert_eq!(checkpoint.parts.blobs("state"), [vec![checkpoint.made_at as u8]]);
    (checkpoint.made_at, checkpoint.parts.blobs("units").to_vec())
}

fn rows(store: &Store) -> i64 {
    store.connection.query_row("SELECT count(*) FROM parts", [], |r| r.get(0)).unwrap()
}

#[test]
fn checkpoints_append_to_parts_and_replace_them() {
    let (_dir, mut store) = open();
    assert_eq!(store.load_checkpoint().unwrap(), Loaded::default());
    store.commit(&one("d-1")).unwrap();
    store.commit(&checkpoint(1, Set(vec![vec![1]]))).unwrap();
    store.commit(&checkpoint(2, Append(vec![vec![2]]))).unwrap();
    store.commit(&checkpoint(3, Append(vec![]))).unwrap();
    let loaded = store.load_checkpoint().unwrap();
    assert_eq!(loaded.damaged, [""; 0]);
    let c = loaded.checkpoint.unwrap();
    assert_eq!((c.made_at, c.operations_seq, c.decisions_seq), (3, 3, 1));
    assert_eq!(units(&mut store), (3, vec![vec![1], vec![2]]));
    assert_eq!(rows(&store), 4, "two of the units, and the state of this checkpoint and of the one before");

    store.commit(&checkpoint(4, Set(vec![vec![7]]))).unwrap();
    assert_eq!(units(&mut store), (4, vec![vec![7]]));
    store.commit(&checkpoint(5, Append(vec![vec![8]]))).unwrap();
    assert_eq!(units(&mut store), (5, vec![vec![7], vec![8]]));
    assert_eq!(rows(&store), 4, "rows that no checkpoint needs are deleted");
    let mut seen = Vec::new();
    let stored = store.parts("u*").unwrap();
    assert_eq!(stored.names, ["units"]);
    let note = |blob: &[u8]| {
        seen.push(blob.to_vec());
        Ok::<_, StoreError>(())
    };
    stored.each("units", note).unwrap();
    assert_eq!(seen, [vec![7], vec![8]]);
    drop(stored);

    store.commit(&checkpoint(6, Set(vec![]))).unwrap();
    assert_eq!(units(&mut store), (6, vec![]));
    let anew = Checkpoint { whole: true, changes: vec![("other".to_owned(), Append(vec![vec![1]]))], ..Checkpoint::default() };
    store.commit(&Commit { checkpoint: Some(anew), ..Commit::default() }).unwrap();
    let parts = store.load_checkpoint().unwrap().checkpoint.unwrap().parts;
    assert_eq!(parts.names().collect::<Vec<_>>(), ["other"], "a whole one takes over nothing");
}

/// Any bit of any row of a checkpoint that turns, and any row that goes.
#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let mut damages = vec![
        "UPDATE checkpoints SET operations_seq = 9 WHERE id = 2".to_owned(),
        "UPDATE checkpoints SET sum = sum + 1 WHERE id = 2".to_owned(),
        "UPDATE parts SET name = 'stave' WHERE name = 'state' AND born = 2".to_owned(),
        "UPDATE parts SET died = 2 WHERE name = 'units' AND born = 2".to_owned(),
        "UPDATE parts SET died = NULL WHERE name = 'state' AND born = 1".to_owned(),
        "UPDATE parts SET size = 0 WHERE name = 'units' AND born = 2".to_owned(),
        "DELETE FROM parts WHERE name = 'units' AND born = 2".to_owned(),
    ];
    for byte in 0..10 {
        damages.push(format!(
            "UPDATE parts SET data = CAST(substr(data, 1, {byte}) || x'AA' || substr(data, {byte} + 2) AS BLOB) WHERE name = 'units' AND born = 2"
        ));
    }
    for damage in damages {
        let (_dir, mut store) = open();
        store.commit(&checkpoint(1, Set(vec![vec![1]]))).unwrap();
        store.commit(&checkpoint(2, Append(vec![vec![2]]))).unwrap();
        assert_eq!(store.connection.execute(&damage, []).unwrap(), 1, "{damage}");
        let loaded = store.load_checkpoint().unwrap();
        assert!(loaded.damaged.len() == 1 && loaded.damaged[0].starts_with("checkpoint 2: "), "{damage}: {:?}", loaded.damaged);
        assert_eq!(units(&mut store), (1, vec![vec![1]]), "{damage}");
        store.commit(&checkpoint(3, Append(vec![vec![3]]))).unwrap();
        assert_eq!(units(&mut store), (3, vec![vec![1], vec![3]]), "{damage}");
    }
}

#[test]
fn without_a_whole_checkpoint_there_is_none() {
    let (_dir, mut store) = open();
    store.commit(&checkpoint(1, Set(vec![vec![1]]))).unwrap();
    store.commit(&checkpoint(2, Append(vec![vec![2]]))).unwrap();
    store.connection.execute("UPDATE parts SET data = x'00' WHERE born = 1 AND name = 'units'", []).unwrap();
    let loaded = store.load_checkpoint().unwrap();
    assert_eq!((loaded.checkpoint, loaded.damaged.len(), rows(&store)), (None, 2, 0), "both need the oldest chunk");
    store.commit(&checkpoint(3, Set(vec![vec![3]]))).unwrap();
    assert_eq!(units(&mut store), (3, vec![vec![3]]));
}

#[test]
fn a_file_with_a_turned_bit_is_noticed() {
    let (dir, mut store) = open();
    for i in 0..200 {
        store.commit(&one(&format!("d-{i}"))).unwrap();
    }
    store.check().unwrap();
    let path = store.path().to_owned();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    // The type of a page in the middle of the file.
    let page = bytes.len() / 4_096 / 2 * 4_096;
    bytes[page] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();
    let error = Store::open(&path).and_then(|store| store.check()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }) && error.to_string().contains(".recover"), "{error}");
    drop(dir);
}

#[test]
fn who_has_been_taken_over_writes_nothing() {
    let (_dir, mut old) = open();
    assert_eq!(old.fence().unwrap(), 1);
    let mut of_old = Store::open(old.path()).unwrap().in_epoch(1);
    old.commit(&one("d-1")).unwrap();
    let d = due(&of_old, 2_000).unwrap();
    assert_eq!(of_old.start_attempt(&d.id, 2_000).unwrap(), Some(1));

    let mut new = Store::open(old.path()).unwrap();
    assert_eq!(new.fence().unwrap(), 2);
    let error = old.commit(&one("d-2")).unwrap_err();
    assert!(error.is_fenced() && error.to_string().contains("epoch 2, this one has 1"), "{error}");
    assert!(of_old.start_attempt(&d.id, 2_001).unwrap_err().is_fenced());
    assert!(of_old.finish_attempt(&d, 1, &end(200), &Next::Delivered, &[]).unwrap_err().is_fenced());
    assert!(old.commit(&checkpoint(1, Set(vec![]))).unwrap_err().is_fenced());
    assert!(old.redeliver(&d.id, at(1), "sre").unwrap_err().is_fenced());
    assert!(new.decision("d-2").unwrap().is_none());
    assert_eq!(new.commit(&one("d-2")).unwrap().new, ["d-2"]);
    assert_eq!(due(&new, 2_000).unwrap().id, d.id, "the attempt that was begun is made again, under its id");
}

#[test]
fn operations_are_kept_until_both_checkpoints_hold_them() {
    let (_dir, mut store) = open();
    for at in 1..=3 {
        let operation = Some(NewOperation { at, experiment: "new-checkout".to_owned(), body: "{}".to_owned() });
        assert_eq!(store.commit(&Commit { operation, ..Commit::default() }).unwrap().operation, Some(at));
    }
    let seqs = |store: &Store| store.operations_after(0).unwrap().iter().map(|o| o.seq).collect::<Vec<_>>();
    store.commit(&checkpoint(1, Set(vec![]))).unwrap();
    store.commit(&checkpoint(2, Append(vec![]))).unwrap();
    assert_eq!(seqs(&store), [2, 3]);
    store.commit(&checkpoint(3, Append(vec![]))).unwrap();
    assert_eq!(seqs(&store), [3]);
}

#[test]
fn attempts_are_recorded_and_a_crash_in_one_leaves_it_due() {
    let (_dir, mut store) = open();
    store.commit(&one("d-1")).unwrap();
    assert_eq!(store.poll("flag-service", Lane::Intervene, 1_999, &[]).unwrap(), Poll::At(2_000));
    assert_eq!(store.poll("flag-service", Lane::Inform, 9_999, &[]).unwrap(), Poll::Idle);
    let d = due(&store, 2_000).unwrap();
    assert_eq!(store.start_attempt(&d.id, 2_000).unwrap(), Some(1));
    assert_eq!(store.poll("flag-service", Lane::Intervene, 2_000, std::slice::from_ref(&d.id)).unwrap(), Poll::Idle);

    let mut store = Store::open(store.path()).unwrap();
    assert_eq!(due(&store, 2_000).unwrap().id, d.id, "still due after a restart");
    assert_eq!(store.start_attempt(&d.id, 2_050).unwrap(), Some(2));
    store.finish_attempt(&d, 2, &end(503), &Next::Retry { at: 3_000 }, &[]).unwrap();
    assert_eq!(due(&store, 2_999), None);
    assert_eq!(store.start_attempt(&d.id, 3_000).unwrap(), Some(3));
    store.finish_attempt(&d, 3, &end(204), &Next::Delivered, &[]).unwrap();
    assert_eq!(due(&store, 9_000), None);
    let record = store.delivery(&d.id).unwrap().unwrap();
    assert_eq!(record.delivery.state, DeliveryState::Delivered);
    assert_eq!(record.history.iter().map(|a| (a.n, a.status)).collect::<Vec<_>>(), [(1, None), (2, Some(503)), (3, Some(204))]);
    assert!(store.log("new-checkout", &LogQuery::first(10)).unwrap().iter().any(|l| l.entry.text.ends_with("204 on attempt 3")));

    assert!(!store.redeliver("d-none", at(5_000), "sre").unwrap());
    assert!(store.redeliver(&d.id, at(5_000), "sre").unwrap());
    let again = due(&store, 5_000).unwrap();
    assert_eq!((again.id, again.attempts, again.attempts_before, again.expires_ms), (d.id, 3, 3, 5_000 + LIFETIME));
}

#[test]
fn kill_comes_before_rollback_and_resolved_takes_back_what_waits() {
    let (_dir, mut store) = open();
    store.commit(&one("d-1")).unwrap();
    let kill = Commit { at: 2_500, decisions: vec![(decision("d-2"), vec![delivery("d-2-kill", Priority::Kill)])], ..Commit::default() };
    store.commit(&kill).unwrap();
    assert_eq!(due(&store, 3_000).unwrap().id, "d-2-kill");

    let notice = Notice { kind: NoticeKind::Resolved, at: 2_600, decision: decision("d-2"), text: "resumed".to_owned() };
    let alert = delivery("d-2-resolved", Priority::Inform);
    store.commit(&Commit { at: 2_600, notices: vec![(notice, vec![alert])], ..Commit::default() }).unwrap();
    assert_eq!(store.start_attempt("d-2-kill", 2_700).unwrap(), None);
    assert_eq!(due(&store, 3_000).unwrap().id, "d-1-rollback");
    assert!(matches!(store.poll("flag-service", Lane::Inform, 3_000, &[]).unwrap(), Poll::Due(d) if d.id == "d-2-resolved"));
}

#[test]
fn what_was_told_of_an_experiment_counts_as_long_as_it_has_rules() {
    let (_dir, mut store) = open();
    store.commit(&one("d-1")).unwrap();
    let shared = Decision { experiment: String::new(), ..decision("d-2") };
    let several = Commit { at: 2_500, decisions: vec![(shared, vec![delivery("d-2-alert", Priority::Inform)])], ..Commit::default() };
    store.commit(&several).unwrap();
    let mut told = |experiments: &[&str]| {
        let rule = |name: &&str| RuleText { file: format!("{name}.yaml"), experiment: Some((*name).to_owned()), text: String::new() };
        store.commit(&Commit { at: 3_000, rules: Some(experiments.iter().map(rule).collect()), ..Commit::default() }).unwrap();
        store.told("flag-service", 10).unwrap().into_iter().map(|d| d.id).collect::<Vec<_>>()
    };
    assert_eq!(told(&["new-checkout", "other"]), ["d-1-rollback", "d-2-alert"]);
    assert_eq!(told(&["other"]), ["d-2-alert"]);
}

#[test]
fn a_dead_delivery_escalates_once_and_a_disabled_endpoint_stays_so_until_its_configuration_changes() {
    let (_dir, mut store) = open();
    store.commit(&one("d-1")).unwrap();
    let d = due(&store, 2_000).unwrap();
    let escalation = NewDelivery { endpoint: "pager".to_owned(), ..delivery("d-1-rollback-undelivered", Priority::Inform) };
    store.give_up(&d, at(2_100), "expired", std::slice::from_ref(&escalation)).unwrap();
    store.give_up(&d, at(2_200), "expired", &[escalation]).unwrap();
    let rows = store.deliveries("d-1").unwrap();
    assert_eq!(rows.iter().map(|r| r.delivery.state).collect::<Vec<_>>(), [DeliveryState::Dead, DeliveryState::Pending]);
    assert_eq!(store.pending().unwrap(), [("pager".to_owned(), 1)]);

    store.disable_endpoint("flag-service", "a", 2_100, "410 Gone").unwrap();
    assert_eq!(store.disabled("flag-service", "a").unwrap().as_deref(), Some("410 Gone"));
    assert_eq!(store.disabled("flag-service", "b").unwrap(), None);
    assert!(store.redeliver(&d.id, at(3_000), "sre").unwrap());
    assert_eq!(store.disabled("flag-service", "a").unwrap(), None);
}

#[test]
fn forgetting_keeps_what_lives_what_waits_and_every_decision() {
    let (_dir, mut store) = open();
    store.commit(&one("d-1")).unwrap();
    store.commit(&one("d-2")).unwrap();
    let d = due(&store, 2_000).unwrap();
    store.start_attempt(&d.id, 2_000).unwrap();
    store.finish_attempt(&d, 1, &end(200), &Next::Delivered, &[]).unwrap();
    store.remember(&[look(700)], 10).unwrap();
    let mine = "new-checkout".to_owned();
    assert_eq!(store.forget(i64::MAX, std::slice::from_ref(&mine)).unwrap(), [] as [&str; 0]);
    assert_eq!(store.forget(1_000, &[]).unwrap(), [] as [&str; 0]);
    assert_eq!(store.remembered().unwrap(), [mine.as_str()]);
    assert_eq!(store.forget(10_000, &[]).unwrap(), [mine.as_str()]);
    assert!(store.delivery(&d.id).unwrap().is_none() && store.log(&mine, &LogQuery::first(9)).unwrap().is_empty());
    assert!(store.points(&mine).unwrap().is_empty() && store.summary(&mine, None).unwrap().is_none());
    assert_eq!(store.outbox(10).unwrap().len(), 1);
    assert_eq!(store.decisions(Some(&mine), 10).unwrap().len(), 2);
    assert_eq!(store.commit(&one("d-1")).unwrap().known, ["d-1"]);
}

fn look(at: i64) -> Look {
    Look {
        experiment: "new-checkout".to_owned(),
        revision: 3,
        point: Some(StoredPoint { at, body: "{}".to_owned() }),
        summary: Some(NewSummary { at, last: false, body: at.to_string() }),
    }
}

#[test]
fn points_get_fewer_as_they_get_older_and_a_summary_is_the_newest() {
    let (_dir, mut store) = open();
    for at in 0..1_000 {
        store.remember(&[look(at)], 40).unwrap();
    }
    let at: Vec<i64> = store.points("new-checkout").unwrap().into_iter().map(|point| point.at).collect();
    assert!(at.len() <= 40 && at.len() > 20, "{at:?}");
    assert_eq!((at[0], at[at.len() - 5..].to_vec()), (0, vec![995, 996, 997, 998, 999]));
    assert_eq!(store.summary("new-checkout", None).unwrap().unwrap().body, "999");
    assert_eq!(store.summary("new-checkout", Some(2)).unwrap(), None);
}

#[test]
fn a_reader_sees_what_is_written_and_writes_nothing() {
    let (dir, mut store) = open();
    store.commit(&one("d-1")).unwrap();
    let path = dir.path().join("guardraild.db");
    let mut reader = Store::open_to_read(&path).unwrap();
    assert_eq!(reader.decisions(None, 9).unwrap().len(), 1);
    assert!(reader.commit(&one("d-2")).is_err());
    drop((store, reader));
    assert_eq!(Store::open_to_read(&path).unwrap().decisions(None, 9).unwrap().len(), 1);
    assert!(matches!(Store::open_to_read(dir.path().join("none.db")), Err(StoreError::Unwritable { .. })));
}

#[test]
fn a_log_is_asked_by_time_and_kind() {
    let (_dir, mut store) = open();
    let entry = |at, kind, links: &[&str]| LogEntry {
        at,
        experiment: "e".to_owned(),
        kind,
        author: Some("ann".to_owned()),
        text: "t".to_owned(),
        decision: None,
        links: links.iter().map(|link| (*link).to_owned()).collect(),
    };
    let links = ["https://wiki.example/1", "https://wiki.example/2"];
    store.note(&[entry(1, LogKind::Launch, &[]), entry(2, LogKind::Learning, &links), entry(3, LogKind::Learning, &[])]).unwrap();
    let asked = |since, kinds: &[LogKind]| {
        let query = LogQuery { since, kinds: kinds.to_vec(), ..LogQuery::first(9) };
        store.log("e", &query).unwrap().into_iter().map(|logged| logged.entry.at).collect::<Vec<_>>()
    };
    assert_eq!(asked(2, &[]), [2, 3]);
    assert_eq!(asked(0, &[LogKind::Learning, LogKind::Next]), [2, 3]);
    assert_eq!(asked(0, &[LogKind::Next]), [] as [i64; 0]);
    assert_eq!(store.log("e", &LogQuery::first(9)).unwrap()[1].entry.links, links);
}

#[test]
fn what_is_next_is_found_by_an_index_however_much_is_pending() {
    let (_dir, store) = open();
    for sql in [super::outbox::FIRST_PENDING, super::outbox::PENDING_ELSEWHERE, super::outbox::TOLD] {
        let explain = format!("EXPLAIN QUERY PLAN {}", sql.replace('?', "'[]'"));
        let plan: Vec<String> = store.read(|c| c.prepare(&explain)?.query_map([], |row| row.get("detail"))?.collect()).unwrap();
        let scans = |step: &&String| step.contains("B-TREE") || step.contains("SCAN outbox") && !step.contains("INDEX");
        assert_eq!(plan.iter().find(scans), None, "{plan:#?}");
    }
}

#[test]
fn a_message_goes_to_no_endpoint_that_has_had_it() {
    let (_dir, mut store) = open();
    store.commit(&one("d-1")).unwrap();
    let first = due(&store, 2_000).unwrap();
    let to = |endpoint: &str| {
        [NewDelivery { endpoint: endpoint.to_owned(), ..delivery(&format!("d-1-rollback-at-{endpoint}"), Priority::Rollback) }]
    };
    let retry = Next::Retry { at: 9_000 };
    store.finish_attempt(&first, 1, &end(503), &retry, &to("backup")).unwrap();
    store.finish_attempt(&first, 2, &end(503), &retry, &to("backup")).unwrap();
    let second = store.delivery("d-1-rollback-at-backup").unwrap().unwrap().delivery;
    assert_eq!((second.escalates.as_deref(), second.next_attempt_ms), (Some("d-1-rollback"), 2_100));
    // The configuration was turned round meanwhile.
    store.finish_attempt(&second, 1, &end(503), &retry, &to("flag-service")).unwrap();
    store.finish_attempt(&second, 2, &end(503), &retry, &to("last")).unwrap();
    let ids: Vec<String> = store.deliveries("d-1").unwrap().into_iter().map(|r| r.delivery.id).collect();
    assert_eq!(ids, ["d-1-rollback", "d-1-rollback-at-backup", "d-1-rollback-at-last"]);
    let told = store.log("new-checkout", &LogQuery::first(10)).unwrap().into_iter().filter(|l| l.entry.text.contains(" fails: "));
    assert_eq!(told.count(), 2);
    // What has been received needs nobody else.
    store.finish_attempt(&first, 3, &end(200), &Next::Delivered, &[]).unwrap();
    store.finish_attempt(&first, 4, &end(503), &retry, &to("late")).unwrap();
    assert_eq!(store.deliveries("d-1").unwrap().len(), 3);
    assert_eq!(store.delivery("d-1-rollback").unwrap().unwrap().delivery.last_error, None);
}

#[test]
fn schedules_of_a_clock_that_was_ahead_are_brought_back() {
    let (_dir, mut store) = open();
    store.commit(&Commit { at: 90_000_000_000, ..one("d-1") }).unwrap();
    store.reschedule(5_000, 600_000).unwrap();
    let row = due(&store, 605_000).unwrap();
    assert_eq!((row.next_attempt_ms, row.expires_ms), (605_000, 5_000 + LIFETIME));
}
