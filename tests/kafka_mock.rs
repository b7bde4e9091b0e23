//! Ingest against librdkafka's in-process mock cluster: real sockets and groups, injected faults, no broker to install.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "kafka_mock/ahead.rs"]
mod ahead;

use crossbeam_channel::{Receiver, bounded};
use guardraild::engine::aggregate::Aggregator;
use guardraild::engine::decision::{Decision, Output};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::outcome::{Counts, Reject};
use guardraild::engine::plan::{Catalog, Settings};
use guardraild::ingest::decode::Limits;
use guardraild::ingest::kafka::{AutoOffsetReset, Engine, FromIngest, Ingest, KafkaConfig, PartitionSnapshot, Resume, STOPPED, StartError};
use guardraild::ingest::mapped::Layouts;
use guardraild::ingest::range::{Range, RangeConfig, RangeError};
use guardraild::ingest::schemas::{Registry, RegistryConfig, Schemas};
use guardraild::rules;
use guardraild::telemetry::Metrics;
use guardraild::tools::backtest::{Asked, BacktestError, Heard, Outcome, Ranged, Side, Summary, Terms};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PARTITIONS: i32 = 4;
const NOW: i64 = 1_764_666_000_000;
/// Far more than anything here takes, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(90);

struct Bench {
    cluster: MockCluster<'static, DefaultProducerContext>,
    producer: BaseProducer,
}

impl Bench {
    fn new() -> Bench {
        let cluster = MockCluster::new(1).unwrap();
        for topic in ["exposures", "events"] {
            cluster.create_topic(topic, PARTITIONS, 1).unwrap();
        }
        let producer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("reconnect.backoff.max.ms", "200")
            .create()
            .unwrap();
        Bench { cluster, producer }
    }

    fn send(&self, topic: &str, partition: i32, timestamp: i64, payload: &[u8]) {
        let record = BaseRecord::<(), _>::to(topic).partition(partition).timestamp(timestamp).payload(payload);
        self.producer.send(record).map_err(|(e, _)| e).unwrap();
    }

    /// Spreads `n` records over topics and partitions; every tenth is poison. Returns when all are stored.
    fn produce(&self, n: usize) {
        for i in 0..n {
            let topic = if i % 3 == 0 { "exposures" } else { "events" };
            let good = format!(r#"{{"event":"ticket","ts":{},"tenant_id":"t","user_id":"u{i}"}}"#, NOW + i as i64);
            let payload: &[u8] = if i % 10 == 9 { b"{\"poison\":" } else { good.as_bytes() };
            self.send(topic, (i / 3) as i32 % PARTITIONS, NOW + i as i64, payload);
        }
        self.producer.flush(DEADLINE).unwrap();
    }

    fn config(&self, strategy: &str) -> KafkaConfig {
        let properties = [
            ("partition.assignment.strategy", strategy),
            ("heartbeat.interval.ms", "200"),
            ("session.timeout.ms", "6000"),
            ("statistics.interval.ms", "500"),
            ("reconnect.backoff.max.ms", "200"),
            ("topic.metadata.refresh.interval.ms", "500"),
        ];
        KafkaConfig {
            brokers: self.cluster.bootstrap_servers(),
            group: "guardraild".into(),
            topics: vec!["exposures".into(), "events".into()],
            auto_offset_reset: AutoOffsetReset::Earliest,
            properties: properties.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            workers: 2,
            max_future: 300_000,
            merge_wait: 250,
            oauth: None,
        }
    }
}

fn engine() -> Engine {
    Engine {
        catalog: Arc::new(Catalog::default()),
        settings: Settings::default(),
        limits: Limits::default(),
        layouts: Layouts::default(),
        metrics: Metrics::default(),
    }
}

/// A running ingest, what has come out of it, and what judges say of that.
struct Run {
    ingest: Ingest,
    receiver: Receiver<FromIngest>,
    fleet: Fleet,
    out: Output,
    assigned: BTreeSet<i32>,
    /// Partition numbers that have closed a pane.
    heard: BTreeSet<i32>,
    counts: BTreeMap<i32, Counts>,
    overtaken: u64,
    snapshots: Vec<(u64, Vec<PartitionSnapshot>)>,
    lag: BTreeMap<(String, i32), i64>,
    stopped: bool,
}

impl Run {
    fn start(config: &KafkaConfig, resume: BTreeMap<i32, Resume>) -> Run {
        Run::with(config, engine(), resume)
    }

    fn with(config: &KafkaConfig, engine: Engine, resume: BTreeMap<i32, Resume>) -> Run {
        Run::within(16, config, engine, resume)
    }

    /// With room for so many messages that have not been received.
    fn within(room: usize, config: &KafkaConfig, engine: Engine, resume: BTreeMap<i32, Resume>) -> Run {
        let (sender, receiver) = bounded(room);
        let (fleet, out) = (Fleet::new(&engine.catalog, engine.settings.pane), Output::default());
        let ingest = Ingest::start(config, engine, resume, || NOW, sender).unwrap();
        let (assigned, heard, counts, lag) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        Run { ingest, receiver, fleet, out, assigned, heard, counts, overtaken: 0, snapshots: Vec::new(), lag, stopped: false }
    }

    fn records(&self) -> u64 {
        self.counts.values().map(Counts::records).sum()
    }

    /// Receives what there is.
    fn take(&mut self, timeout: Duration) {
        let Ok(message) = self.receiver.recv_timeout(timeout) else { return };
        match message {
            FromIngest::Assigned(p) => {
                self.assigned.insert(p);
                self.fleet.assigned(p);
            }
            FromIngest::Revoked(p) => {
                assert!(self.assigned.remove(&p));
                self.fleet.revoked(p, &mut self.out);
            }
            FromIngest::Emission { partition, emission } => {
                self.heard.insert(partition);
                self.fleet.take(emission, &mut self.out);
                self.ingest.waiting(self.fleet.waiting_size());
            }
            FromIngest::Idle(p) => self.fleet.empty(p, &mut self.out),
            FromIngest::Progress { partition, counts, overtaken, .. } => {
                self.counts.insert(partition, counts);
                self.overtaken += overtaken;
            }
            FromIngest::Snapshot { barrier, parts, .. } => self.snapshots.push((barrier, parts)),
            FromIngest::Lag { topic, partition, records } => drop(self.lag.insert((topic, partition), records)),
            FromIngest::Fatal(reason) => panic!("{reason}"),
            FromIngest::Stopped => self.stopped = true,
        }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Run) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < deadline, "no {what}: {} records, assigned {:?}", self.records(), self.assigned);
            self.take(Duration::from_millis(20));
        }
    }

    fn until_records(&mut self, n: u64) {
        self.until(&format!("{n} records"), |run| run.records() >= n);
        assert_eq!(self.records(), n);
    }

    /// Stops, and returns what its snapshots have left.
    fn stop(mut self) -> BTreeMap<i32, Resume> {
        self.ingest.stop();
        self.until("end", |run| run.stopped);
        self.ingest.join();
        assert!(self.snapshots.iter().any(|(barrier, _)| *barrier == STOPPED));
        let mut left: BTreeMap<i32, Resume> = BTreeMap::new();
        for part in self.snapshots.into_iter().flat_map(|(_, parts)| parts) {
            let resume = left.entry(part.partition).or_default();
            resume.offsets = part.offsets;
            resume.kept.apply(part.changes);
        }
        left
    }
}

/// A registry that answers every question with the schema `"string"`, once it may.
fn registry(may: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let (status, body) = if may.load(Ordering::SeqCst) { (200, r#"{"schema":"\"string\""}"#) } else { (503, "busy") };
            let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    url
}

#[test]
fn a_partition_waits_for_its_schema_and_the_others_go_on() {
    let bench = Bench::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sources.yaml");
    std::fs::write(&path, "guardrail: v1\nsources: {e: {topics: [exposures], format: avro}}\n").unwrap();
    let may = Arc::new(AtomicBool::new(false));
    let config = RegistryConfig { url: registry(Arc::clone(&may)), login: None, timeout: Duration::from_secs(5) };
    let schemas = Schemas::start(Registry::new(config).unwrap(), Metrics::default()).unwrap();
    let layouts = Layouts { sources: rules::load(&[path], None).sources, schemas: Some(schemas.clone()) };
    // The datum is a text, and so no event: refused once its schema is there.
    for i in 0..10 {
        bench.send("exposures", 0, NOW + i, b"\x00\x00\x00\x00\x07\x02x");
        bench.send("events", 0, NOW + i, format!(r#"{{"event":"ticket","ts":{NOW},"tenant_id":"t","user_id":"a{i}"}}"#).as_bytes());
        bench.send("events", 1, NOW + i, format!(r#"{{"event":"ticket","ts":{NOW},"tenant_id":"t","user_id":"b{i}"}}"#).as_bytes());
    }
    bench.producer.flush(DEADLINE).unwrap();
    let mut run = Run::with(&bench.config("range"), Engine { layouts, ..engine() }, BTreeMap::new());
    run.until("records of the other partition, and trouble", |run| {
        run.counts.get(&1).is_some_and(|c| c.records() == 10) && run.ingest.schemas().unwrap().trouble().is_some()
    });
    run.ingest.barrier(1);
    run.until("snapshots while one waits", |run| run.snapshots.len() == 2);
    assert_eq!(run.counts.get(&0).map_or(0, Counts::records), 0, "behind the record that waits");
    may.store(true, Ordering::SeqCst);
    run.until_records(30);
    assert_eq!(run.counts[&0].rejected.get(Reject::NotObject), 10);
    assert_eq!(schemas.trouble(), None);
    let offsets = run.stop().values().flat_map(|p| p.offsets.values().copied()).sum::<i64>();
    assert_eq!(offsets, 30);
}

/// Records that the states of a checkpoint hold.
fn remembered(resume: &BTreeMap<i32, Resume>) -> u64 {
    let restore =
        |(p, r): (&i32, &Resume)| Aggregator::restore(*p, engine().catalog, engine().settings, &r.kept).unwrap().counts().records();
    resume.iter().map(restore).sum()
}

#[test]
fn every_record_is_counted_once_across_a_restart() {
    let bench = Bench::new();
    bench.produce(3000);
    let mut run = Run::start(&bench.config("range"), BTreeMap::new());
    run.until_records(3000);
    assert_eq!(run.counts.values().map(|c| c.rejected.get(Reject::NotJson)).sum::<u64>(), 300);
    assert!(run.ingest.rejects().iter().all(|s| s.reason == Reject::NotJson && s.text == "{\"poison\":" && s.length == 10));
    assert!(!run.ingest.rejects().is_empty());
    run.until("lag", |run| run.lag.len() == 2 * PARTITIONS as usize && run.lag.values().all(|l| *l == 0));

    run.ingest.barrier(7);
    run.until("snapshots", |run| run.snapshots.len() == 2);
    let offsets = |parts: &[PartitionSnapshot]| parts.iter().flat_map(|p| p.offsets.values()).sum::<i64>();
    assert!(run.snapshots.iter().all(|(barrier, _)| *barrier == 7));
    assert_eq!(run.snapshots.iter().map(|(_, parts)| offsets(parts)).sum::<i64>(), 3000);
    let resume = run.stop();
    assert_eq!(resume.keys().copied().collect::<BTreeSet<_>>(), (0..PARTITIONS).collect());

    bench.produce(100);
    let before = remembered(&resume);
    let mut run = Run::start(&bench.config("range"), resume);
    // Every partition gets some of them, and so reports all that it knows.
    run.until_records(before + 100);
    assert_eq!(run.stop().values().flat_map(|p| p.offsets.values()).sum::<i64>(), 3100);
}

fn survives_a_rebalance(strategy: &str) {
    let bench = Bench::new();
    bench.produce(600);
    let config = bench.config(strategy);
    let mut first = Run::start(&config, BTreeMap::new());
    first.until_records(600);
    let mut second = Run::start(&config, BTreeMap::new());
    let deadline = Instant::now() + DEADLINE;
    let mut produced = 600;
    while second.assigned.is_empty() || second.records() == 0 {
        assert!(Instant::now() < deadline, "the second member got nothing");
        bench.produce(24);
        produced += 24;
        first.take(Duration::from_millis(50));
        second.take(Duration::from_millis(50));
    }
    bench.produce(240);
    produced += 240;
    second.stop();
    bench.produce(24);
    // What the second has read meanwhile, the first reads too: it goes on at its own offsets.
    first.until("partitions back", |run| run.assigned.len() == PARTITIONS as usize);
    first.until_records(produced + 24);
    let next: i64 = first.stop().values().flat_map(|p| p.offsets.values()).sum();
    assert_eq!(next as u64, produced + 24);
}

#[test]
fn a_rebalance_by_range_loses_and_doubles_nothing() {
    survives_a_rebalance("range");
}

#[test]
fn a_cooperative_rebalance_loses_and_doubles_nothing() {
    survives_a_rebalance("cooperative-sticky");
}

#[test]
fn topics_are_merged_by_kafkas_time() {
    let bench = Bench::new();
    // The later records first, so that nothing but their timestamps tells the order. Refused records keep it in their sample.
    for i in 0..8 {
        bench.send("events", 0, NOW + 10 * i + 5, b"1");
    }
    bench.producer.flush(DEADLINE).unwrap();
    for i in 0..8 {
        bench.send("exposures", 0, NOW + 10 * i, b"1");
    }
    bench.producer.flush(DEADLINE).unwrap();
    let mut run = Run::start(&bench.config("range"), BTreeMap::new());
    run.until_records(16);
    let order: Vec<(String, i64)> = run.ingest.rejects().into_iter().map(|s| (s.topic, s.offset)).collect();
    let expected: Vec<(String, i64)> = (0..8).flat_map(|i| [("exposures".to_owned(), i), ("events".to_owned(), i)]).collect();
    assert_eq!(order, expected);
    run.stop();
}

#[test]
fn records_of_the_future_are_refused() {
    let bench = Bench::new();
    for ts in [NOW + 300_000, NOW + 300_001] {
        bench.send("events", 0, NOW, format!(r#"{{"event":"ticket","ts":{ts},"tenant_id":"t","user_id":"u"}}"#).as_bytes());
    }
    bench.producer.flush(DEADLINE).unwrap();
    let mut run = Run::start(&bench.config("range"), BTreeMap::new());
    run.until_records(2);
    assert_eq!(run.counts[&0].rejected.get(Reject::FutureTimestamp), 1);
    run.stop();
}

#[test]
fn brokers_may_be_down_at_start_in_between_and_at_the_end() {
    let bench = Bench::new();
    bench.produce(120);
    bench.cluster.broker_down(-1).unwrap();
    let mut config = bench.config("range");
    config.topics.push("not-there-yet".into());
    let mut run = Run::start(&config, BTreeMap::new());
    run.take(Duration::from_millis(500));
    assert!(run.assigned.is_empty());
    bench.cluster.broker_up(-1).unwrap();
    run.until_records(120);
    bench.cluster.broker_down(-1).unwrap();
    run.take(Duration::from_millis(500));
    bench.cluster.broker_up(-1).unwrap();
    bench.produce(120);
    run.until_records(240);
    bench.cluster.broker_down(-1).unwrap();
    let parts = run.stop();
    assert_eq!(parts.values().flat_map(|p| p.offsets.values()).sum::<i64>(), 240);
}

#[test]
fn a_full_receiver_stops_reading_and_loses_nothing() {
    let bench = Bench::new();
    bench.produce(3000);
    let mut run = Run::within(1, &bench.config("range"), engine(), BTreeMap::new());
    // Nobody receives for longer than a session lasts.
    std::thread::sleep(Duration::from_secs(7));
    run.until_records(3000);
    run.stop();
}

#[test]
fn a_bad_configuration_is_an_error_at_start() {
    let bench = Bench::new();
    let start = |change: &dyn Fn(&mut KafkaConfig)| {
        let mut config = bench.config("range");
        change(&mut config);
        Ingest::start(&config, engine(), BTreeMap::new(), || NOW, bounded(1).0).err().unwrap()
    };
    let reserved = start(&|c| drop(c.properties.insert("enable.auto.commit".into(), "true".into())));
    assert!(matches!(reserved, StartError::Reserved(name) if name == "enable.auto.commit"));
    assert!(matches!(start(&|c| c.topics.clear()), StartError::Topics(0)));
    let unknown = start(&|c| drop(c.properties.insert("no.such.property".into(), "1".into())));
    assert!(unknown.to_string().contains("no.such.property"), "{unknown}");
}

/// A recorded breach, in `tests/golden`.
const STORY: &str = "latency_limit";

fn golden(ending: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{STORY}.{ending}"))
}

fn catalog() -> Catalog {
    rules::load(&[golden("rules.yaml")], None).catalog
}

fn side() -> Side {
    Side { label: "rules".to_owned(), catalog: catalog(), text: String::new() }
}

impl Bench {
    /// Produces a recording, each record of the time that it names, its unit's records to one partition; `turn` of two says which topic
    /// comes first as a whole.
    fn produce_story(&self, turn: usize) {
        let text = std::fs::read_to_string(golden("ndjson")).unwrap();
        for topic in [["exposures", "events"], ["events", "exposures"]][turn] {
            for line in text.lines() {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                let unit: i32 = record["user_id"].as_str().unwrap()[1..].parse().unwrap();
                if (record["event"] == "exposure") == (topic == "exposures") {
                    self.send(topic, unit / 3 % PARTITIONS, record["ts"].as_i64().unwrap(), line.as_bytes());
                }
            }
            self.producer.flush(DEADLINE).unwrap();
        }
    }

    fn range(&self, until: Option<i64>) -> RangeConfig {
        let optional = vec!["not-there".to_owned()];
        let mut kafka = self.config("range");
        kafka.topics.extend(optional.clone());
        RangeConfig { kafka, optional, since: None, until, patience: DEADLINE }
    }

    fn backtest(&self, until: Option<i64>) -> (Vec<Decision>, Summary) {
        let (mut decisions, mut passed) = (Vec::new(), 0);
        let hear = |heard: Heard<'_>, _: &AtomicBool| match heard {
            Heard::Decided(_, decision) => decisions.push(decision.clone()),
            Heard::Progress(now, total) => {
                assert!(passed <= now && now <= total.unwrap());
                passed = now;
            }
        };
        let outcome = self.ranged(vec![side()], until, None, hear).unwrap().remove(0);
        assert_eq!(outcome.decisions, decisions);
        (decisions, outcome.summary)
    }

    fn ranged(
        &self,
        sides: Vec<Side>,
        until: Option<i64>,
        state: Option<&Path>,
        mut hear: impl FnMut(Heard<'_>, &AtomicBool),
    ) -> Result<Vec<Outcome>, BacktestError> {
        let (settings, stop) = (Settings::default(), AtomicBool::new(false));
        let terms = Terms { settings: &settings, drawn: true, state, stop: &stop };
        let (range, layouts, told) = (self.range(until), Layouts::default(), "2h".to_owned());
        let asked = Asked { range, told, layouts: &layouts, max_future: 300_000, limits: Limits::default(), clock: || NOW };
        let ranged = Ranged::open(sides, asked, &terms)?;
        ranged.run(|heard| hear(heard, &stop))
    }

    /// What a daemon's ingest and judges decide of `records` records; the last pane stays open.
    fn live(&self, records: u64) -> Vec<Decision> {
        let mut run = Run::with(&self.config("range"), Engine { catalog: Arc::new(catalog()), ..engine() }, BTreeMap::new());
        run.until_records(records);
        let decisions = std::mem::take(&mut run.out.decisions);
        run.stop();
        decisions
    }
}

#[test]
fn a_backtest_of_a_range_decides_as_one_of_a_file_and_as_the_daemon() {
    let Outcome { decisions, summary: file, .. } = support::backtest(side(), &[golden("ndjson")]);
    assert_eq!(decisions.len(), 1);
    // A recording of each topic, as a consumer of each would make it.
    let (dir, text) = (tempfile::tempdir().unwrap(), std::fs::read_to_string(golden("ndjson")).unwrap());
    let (exposures, events): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains(r#""event":"exposure""#));
    let recorded = |name: &str, lines: &[&str]| {
        let path = dir.path().join(name);
        std::fs::write(&path, lines.join("\n")).unwrap();
        path
    };
    let topics = [recorded("exposures.ndjson", &exposures), recorded("events.ndjson", &events)];
    assert_eq!(support::backtest(side(), &topics).decisions, decisions);
    for turn in 0..2 {
        let bench = Bench::new();
        bench.produce_story(turn);
        let (found, summary) = bench.backtest(None);
        assert_eq!(found, decisions);
        assert_eq!(serde_json::to_value(&summary).unwrap(), serde_json::to_value(&file).unwrap());
        assert_eq!(bench.live(file.records), decisions);
        // No group has been told how far it came.
        let (again, _) = bench.backtest(None);
        assert_eq!(again, decisions);
    }
}

#[test]
fn an_interrupted_backtest_of_a_range_goes_on_and_says_what_an_uninterrupted_one_would() {
    let bench = Bench::new();
    bench.produce_story(0);
    let tighter = || {
        let text = std::fs::read_to_string(golden("rules.yaml")).unwrap().replace("500ms", "450ms");
        Side { label: "tighter".to_owned(), catalog: support::catalog(&[&text]), text }
    };
    let sides = || vec![side(), tighter()];
    let said = |outcomes: &[Outcome]| -> Vec<String> {
        let of = |o: &Outcome| {
            format!("{}{}{:?}", serde_json::to_string(&o.decisions).unwrap(), serde_json::to_string(&o.summary).unwrap(), o.courses)
        };
        outcomes.iter().map(of).collect()
    };
    let whole = said(&bench.ranged(sides(), None, None, |_, _| ()).unwrap());

    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    // Interrupted by the n-th thing that is heard: progress, a decision, a decision of before.
    let interrupted = |n: usize| {
        let mut left = n;
        let stopped = bench.ranged(sides(), None, Some(&state), |_, stop| {
            left -= usize::from(left > 0);
            stop.store(left == 0, Ordering::Relaxed);
        });
        assert!(matches!(stopped, Err(BacktestError::Interrupted)), "{:?}", stopped.err());
    };
    interrupted(1);
    // What comes meanwhile is not of this range.
    bench.produce_story(1);
    // One rule set has been kept, the other not: as when a machine goes down between the two.
    std::fs::remove_file(state.join("backtest-2.db")).unwrap();
    interrupted(1);
    interrupted(2);
    std::fs::remove_file(state.join("backtest-1.db")).unwrap();
    assert_eq!(said(&bench.ranged(sides(), None, Some(&state), |_, _| ()).unwrap()), whole);
    assert!(!state.exists(), "what has ended leaves nothing behind");

    interrupted(1);
    let other = bench.ranged(vec![tighter()], None, Some(&state), |_, _| ()).err().unwrap().to_string();
    assert!(other.contains("state of another backtest: its rules differ"), "{other}");
}

#[test]
fn a_range_ends_before_its_end() {
    let bench = Bench::new();
    bench.produce_story(0);
    let text = std::fs::read_to_string(golden("ndjson")).unwrap();
    let times: Vec<i64> = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["ts"].as_i64().unwrap()).collect();
    let middle = times[times.len() / 2];
    let (found, summary) = bench.backtest(Some(middle));
    assert_eq!(summary.records as usize, times.iter().filter(|t| **t < middle).count());
    assert!(summary.last.unwrap() < middle);
    let whole = bench.backtest(None).0;
    assert_eq!(found, whole.into_iter().filter(|d| d.decided_at <= middle).collect::<Vec<_>>());
}

#[test]
fn a_range_that_cannot_be_read_says_why() {
    let bench = Bench::new();
    let open = |config| Range::open(config, || NOW).err().unwrap().to_string();
    assert_eq!(open(bench.range(None)), "no record of exposures, events lies in the range; they hold none at all");
    bench.produce_story(0);
    let mut config = bench.range(None);
    config.optional.clear();
    let unknown = open(config);
    assert!(unknown.contains("not-there") && unknown.ends_with("there are events, exposures"), "{unknown}");
    let range = Range::open(bench.range(Some(NOW - 1_000)), || NOW).unwrap();
    assert_eq!(range.left_out(), ["not-there"]);
    let early = range.read::<RangeError>(|_, _| panic!("a record"));
    assert!(matches!(early, Err(RangeError::NoRecords { kept: 360, .. })), "{early:?}");

    let patience = Duration::from_millis(500);
    let range = Range::open(RangeConfig { patience, ..bench.range(None) }, || NOW).unwrap();
    let mut read = 0;
    bench.cluster.broker_down(-1).unwrap();
    match range.read::<RangeError>(|_, _| {
        read += 1;
        Ok(true)
    }) {
        // All had been fetched before.
        Ok(whole) => assert_eq!((read, whole), (360, true)),
        Err(error) => assert!(error.to_string().contains("brings nothing any more at offset"), "{error}"),
    }
    let down = open(RangeConfig { patience, ..bench.range(None) });
    assert!(down.starts_with("cannot reach Kafka at 127.0.0.1:"), "{down}");
}
