//! Partitions that are ahead of the slowest wait for it once what they have brought takes `engine.ahead_max`.

use super::{Bench, DEADLINE, Engine, NOW, PARTITIONS, Run, Settings, catalog, engine};
use guardraild::engine::fleet::Fleet;
use guardraild::telemetry::names;
use rdkafka::producer::Producer as _;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// A backlog: its order follows from the logs, whatever the clock shows.
const BEGUN: i64 = NOW - 3_600_000;
const SECONDS: i64 = 100;
/// Events a second, of a partition; and its users, each of whom is exposed in the first second.
const RATE: i64 = 100;
const USERS: i64 = 100;
/// Bytes that may wait: what a few seconds of the story take.
const AHEAD_MAX: usize = 80_000;
/// It has no leader for a while.
const AWAY: i32 = 0;

impl Bench {
    /// Produces some seconds of traffic, whose treatment is slow from the 50th on; how many records that is.
    fn produce_seconds(&self, seconds: Range<i64>) -> u64 {
        let mut records = 0;
        let mut send = |topic: &str, partition: i32, ts: i64, user: i64, what: String| {
            let record = format!(r#"{{"ts":{ts},"tenant_id":"t","user_id":"u{partition}-{user}",{what}}}"#);
            self.send(topic, partition, ts, record.as_bytes());
            records += 1;
        };
        for (second, partition) in seconds.flat_map(|second| (0..PARTITIONS).map(move |partition| (second, partition))) {
            let start = BEGUN + 1_000 * second;
            for n in 0..if second == 0 { USERS } else { 5 } {
                let user = (5 * second + n) % USERS;
                let bucket = ["control", "treatment"][user as usize % 2];
                let exposure = format!(r#""event":"exposure","experiment":"exp","bucket":"{bucket}""#);
                send("exposures", partition, start + n, user, exposure);
            }
            for n in 0..RATE {
                let user = (7 * second + n) % USERS;
                let latency = if second >= 50 && user % 2 == 1 { 900 } else { 100 };
                send("events", partition, start + 500 + 5 * n, user, format!(r#""event":"request","latency_ms":{latency},"error":false"#));
            }
            // Small batches: one is fetched as a whole.
            if partition == PARTITIONS - 1 && second % 5 == 4 {
                self.producer.flush(DEADLINE).unwrap();
            }
        }
        self.producer.flush(DEADLINE).unwrap();
        records
    }

    fn lead(&self, leader: Option<i32>) {
        ["exposures", "events"].iter().for_each(|topic| self.cluster.partition_leader(topic, AWAY, leader).unwrap());
    }
}

/// `known`: an earlier run has read the beginning of the partition that is away.
fn those_ahead_wait(known: bool) {
    let bench = Bench::new();
    // Nothing moves by the clock, and no span of time is too far ahead.
    let settings = Settings { ahead_max: AHEAD_MAX, max_skew_panes: i64::MAX, idle_after: 3_600_000, ..Settings::default() };
    let engine = Engine { catalog: Arc::new(catalog()), settings, ..engine() };
    let paused = || engine.metrics.numbers(&names::PAUSED).iter().map(|(_, n)| *n as usize).sum::<usize>();
    let (mut config, mut resume) = (bench.config("range"), BTreeMap::new());
    // So often that some are made when a pause has thrown away what had been fetched, and say that all of it is there.
    config.properties.insert("statistics.interval.ms".into(), "60".into());
    let mut fleet = Fleet::new(&engine.catalog, engine.settings.pane);
    let mut produced = bench.produce_seconds(0..2);
    if known {
        let mut run = Run::with(&config, engine.clone(), resume);
        run.until_records(produced);
        std::mem::swap(&mut fleet, &mut run.fleet);
        resume = run.stop();
    }
    produced += bench.produce_seconds(2..SECONDS);
    bench.lead(None);

    let mut run = Run { fleet, ..Run::with(&config, engine.clone(), resume) };
    run.until("full memory", |run| {
        let full = run.fleet.waiting_size() > AHEAD_MAX;
        assert!(full || paused() == 0, "there is room");
        full && (1..PARTITIONS).all(|p| run.heard.contains(&p))
    });
    // Nothing is received meanwhile, so that no more comes than the queues on the way have room for.
    let deadline = Instant::now() + DEADLINE;
    while paused() < 3 {
        assert!(Instant::now() < deadline, "{} partitions are paused", paused());
        std::thread::yield_now();
    }
    let read = |run: &mut Run, barrier| {
        run.ingest.barrier(barrier);
        run.until("snapshots", |run| run.snapshots.iter().filter(|(of, _)| *of == barrier).count() == 2);
        let parts = run.snapshots.iter().filter(|(of, _)| *of == barrier).flat_map(|(_, parts)| parts);
        parts.map(|part| (part.partition, part.offsets.values().sum::<i64>())).collect::<BTreeMap<i32, i64>>()
    };
    let first = read(&mut run, 1);
    assert!(first.values().sum::<i64>() < produced as i64 * 3 / 5, "{first:?} of {produced}");
    run.lag.clear();
    run.until("word of what waits", |run| (1..PARTITIONS).all(|p| run.lag.get(&("events".to_owned(), p)).is_some_and(|lag| *lag > 0)));
    assert_eq!(read(&mut run, 2), first, "it is read no further");

    bench.lead(Some(1));
    run.until_records(produced);
    run.until("an end of the pause", |_| paused() == 0);
    assert_eq!(run.overtaken, 0, "no topic was given up");
    assert_eq!(run.out.decisions, bench.backtest(None).0);
    assert_eq!(run.out.decisions.iter().map(|d| d.action.name()).collect::<Vec<_>>(), ["rollback", "kill", "page"]);
    assert_eq!(run.stop().values().flat_map(|part| part.offsets.values()).sum::<i64>(), produced as i64);
}

#[test]
fn those_ahead_of_a_partition_that_is_away_wait_when_memory_is_full_and_lose_nothing() {
    those_ahead_wait(true);
}

#[test]
fn one_that_has_brought_nothing_yet_is_waited_for_likewise() {
    those_ahead_wait(false);
}
