//! Kafka in: one thread owns the consumer, workers own the aggregators, and a bounded channel takes what they emit.
//!
//! A partition number over all topics is one aggregator; the topics are co-partitioned. Partition `p` belongs to worker `p % workers`.
//! Where a partition starts is our own affair: at the offset that its aggregator's state reflects, else at `auto_offset_reset`.
//! Commits to the group are for lag dashboards, and never read.

use super::batch::BatchQueue;
use super::consumer::{Command, Reader};
use super::context::{Consumer, Context, Place};
use super::decode::Limits;
use super::mapped::Layouts;
use super::oauth::{Oauth, OauthConfig};
use super::rejects::{Rejects, Sample};
use super::schemas::Schemas;
use super::worker::{Board, Shared, Worker};
use crate::clock;
use crate::engine::aggregate::Dropped;
use crate::engine::kept::{Changes, Kept};
use crate::engine::outcome::Counts;
use crate::engine::pane::Emission;
use crate::engine::plan::{Catalog, Settings};
use crate::engine::time::Millis;
use crate::telemetry::Metrics;
use crossbeam_channel::{Sender, bounded};
use rdkafka::Offset;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// Topics at most; a set of them fits a word.
pub const MAX_TOPICS: usize = 64;
/// Batches on their way to one worker at most.
const INBOX: usize = 4;
/// Commands not yet taken by the consumer's thread at most.
const COMMANDS: usize = 64;

/// What to read.
#[derive(Clone)]
pub struct KafkaConfig {
    /// `host:port`, separated by commas.
    pub brokers: String,
    pub group: String,
    /// Co-partitioned topics, 1 to 64. Of records with the same Kafka timestamp, those of the first topic come first: exposures.
    pub topics: Vec<String>,
    pub auto_offset_reset: AutoOffsetReset,
    /// librdkafka's own properties; they win over the defaults here, except for [`RESERVED`].
    pub properties: BTreeMap<String, String>,
    /// Threads that decode and aggregate; 0 means one for each core.
    pub workers: usize,
    /// Records whose event time is further ahead of the clock are `future_timestamp`. Milliseconds, usually 300,000.
    pub max_future: Millis,
    /// How long a record waits at the end of another topic for one that belongs before it. Milliseconds, usually 250.
    pub merge_wait: Millis,
    /// Needed with `sasl.mechanism` OAUTHBEARER.
    pub oauth: Option<OauthConfig>,
}

/// Without the values of properties: passwords are among them.
impl std::fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let KafkaConfig { brokers, group, topics, properties, .. } = self;
        let properties: Vec<&String> = properties.keys().collect();
        f.debug_struct("KafkaConfig")
            .field("brokers", brokers)
            .field("group", group)
            .field("topics", topics)
            .field("properties", &properties)
            .finish_non_exhaustive()
    }
}

/// Where a partition starts that has never been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AutoOffsetReset {
    #[default]
    Earliest,
    Latest,
}

/// Properties that cannot be passed through: exactness rests on them, or they have a setting of their own.
pub const RESERVED: [&str; 6] =
    ["bootstrap.servers", "group.id", "auto.offset.reset", "enable.auto.commit", "enable.auto.offset.store", "enable.partition.eof"];

/// The engine's side of a worker.
#[derive(Clone)]
pub struct Engine {
    pub catalog: Arc<Catalog>,
    pub settings: Settings,
    pub limits: Limits,
    pub layouts: Layouts,
    pub metrics: Metrics,
}

/// What workers go on by after a reload.
#[derive(Clone)]
pub struct Rules {
    pub catalog: Arc<Catalog>,
    pub layouts: Layouts,
}

/// State of one partition number in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionSnapshot {
    pub partition: i32,
    /// The next offset of each topic: the state reflects everything before it, and nothing after.
    pub offsets: BTreeMap<String, i64>,
    /// See [`crate::engine::aggregate::Aggregator::snapshot`].
    pub changes: Changes,
}

/// What to go on from: the newest checkpoint of one partition number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resume {
    pub offsets: BTreeMap<String, i64>,
    /// What all snapshots have left.
    pub kept: Kept,
}

/// What comes out. All about one partition number comes in order.
#[derive(Debug)]
pub enum FromIngest {
    Emission {
        partition: i32,
        emission: Emission,
    },
    /// The first topic of the partition number has been assigned here; it may be said twice.
    Assigned(i32),
    /// The last has been taken away. Its state is kept, and is part of snapshots.
    Revoked(i32),
    /// There has never been a record, and none has come for `idle_after`: nobody need wait for it.
    Idle(i32),
    /// At most four times a second. `counts` are since the start of the state.
    Progress {
        partition: i32,
        watermark: Option<Millis>,
        counts: Counts,
        /// What bounds made the partition forget: name of the bound, and how often.
        dropped: Dropped,
        /// Records since the last time that came after others had passed that belong behind them.
        overtaken: u64,
    },
    /// One from every worker for every barrier; behind everything that it reflects. [`STOPPED`] is the barrier of the last one.
    Snapshot {
        barrier: u64,
        worker: usize,
        parts: Vec<PartitionSnapshot>,
    },
    /// Records of a topic's partition that are still to be read; every few seconds, and left out when the receiver is behind.
    Lag {
        topic: String,
        partition: i32,
        records: i64,
    },
    /// Reading cannot go on in this process; the last snapshots and `Stopped` follow.
    Fatal(String),
    /// Nothing follows.
    Stopped,
}

/// The barrier of the snapshots that end reading.
pub const STOPPED: u64 = u64::MAX;

/// Why reading could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("between 1 and {MAX_TOPICS} topics can be read, not {0}")]
    Topics(usize),
    #[error("kafka property `{0}` is reserved: it has a setting of its own, or exact counting rests on it")]
    Reserved(String),
    #[error("kafka: {0}")]
    Kafka(#[from] KafkaError),
    #[error("librdkafka has no memory for a queue")]
    Queue,
    #[error("the state of partition {partition} cannot be taken up: {reason}")]
    Resume { partition: i32, reason: String },
    #[error("no thread could be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Running ingest. Dropping it stops reading as [`Ingest::stop`] does.
pub struct Ingest {
    commands: Sender<Command>,
    rejects: Rejects,
    schemas: Option<Schemas>,
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

impl Ingest {
    /// Begins to read, each partition number from `resume` if it is there. Brokers need not be reachable yet. `sender` should be
    /// bounded: when it is full, no more is read.
    ///
    /// # Errors
    /// See [`StartError`]. What goes wrong later is logged and retried, or ends with [`FromIngest::Fatal`].
    pub fn start(
        config: &KafkaConfig,
        engine: Engine,
        resume: BTreeMap<i32, Resume>,
        clock: fn() -> Millis,
        sender: Sender<FromIngest>,
    ) -> Result<Ingest, StartError> {
        if config.topics.is_empty() || config.topics.len() > MAX_TOPICS {
            return Err(StartError::Topics(config.topics.len()));
        }
        let consumer = Arc::new(consumer(config, next_offsets(&resume), clock, engine.metrics)?);
        let queue = BatchQueue::new(Arc::clone(&consumer)).ok_or(StartError::Queue)?;
        let shared = Shared {
            topics: config.topics.clone().into(),
            layouts: engine.layouts,
            catalog: engine.catalog,
            settings: engine.settings,
            limits: engine.limits,
            max_future: config.max_future,
            merge_wait: config.merge_wait,
            clock: clock::with_wall(clock),
            sender,
            rejects: Rejects::default(),
            board: Arc::new(Board::default()),
        };
        let (rejects, schemas, board) = (shared.rejects.clone(), shared.layouts.schemas.clone(), Arc::clone(&shared.board));
        let workers = workers(config, &shared, resume)?;
        let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        let (commands, inbox) = bounded(COMMANDS);
        let mut senders = Vec::new();
        let mut threads = Vec::new();
        for (index, worker) in workers.into_iter().enumerate() {
            let (to_worker, from_reader) = bounded(INBOX);
            senders.push(to_worker);
            let name = format!("worker-{index}");
            threads.push(std::thread::Builder::new().name(name).spawn(move || worker.run(&from_reader))?);
        }
        // A commit that a broker's restart has delayed comes under the identity of before: a static member would be fenced for it, by itself.
        let commits = !config.properties.contains_key("group.instance.id");
        let reader = Reader::new(consumer, queue, shared, senders, inbox, commits);
        let thread = std::thread::Builder::new().name("kafka".into()).spawn(move || reader.run(threads))?;
        Ok(Ingest { commands, rejects, schemas, board, thread: Some(thread) })
    }

    /// Asks every worker for a snapshot under this barrier. Wait for all of them before asking again.
    pub fn barrier(&self, barrier: u64) {
        // If the thread has gone, `Stopped` says so.
        let _ = self.commands.send(Command::Barrier(barrier));
    }

    /// Asks every worker for a snapshot under this barrier, and to go on by other rules behind it. The topics read stay the same. Wait as
    /// for [`Ingest::barrier`].
    pub fn reload(&self, barrier: u64, rules: Rules) {
        let _ = self.commands.send(Command::Reload(barrier, rules));
    }

    /// Tells what panes take that wait for the slowest partition, bytes: where it is too much, those ahead are paused.
    pub fn waiting(&self, bytes: usize) {
        self.board.waiting.store(bytes, Ordering::Relaxed);
    }

    /// Ends reading: no more is taken, what has been taken is booked, the last snapshots come, then [`FromIngest::Stopped`].
    /// Returns at once; the receiver must go on receiving.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }

    /// Waits for the end after [`Ingest::stop`]. Only once the receiver has seen `Stopped`, or is gone, will it come.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own thread.
            let _ = thread.join();
        }
    }

    /// The registry's schemas, where sources need them.
    pub fn schemas(&self) -> Option<&Schemas> {
        self.schemas.as_ref()
    }

    /// A redacted sample of refused records.
    pub fn rejects(&self) -> Vec<Sample> {
        self.rejects.snapshot()
    }
}

fn next_offsets(resume: &BTreeMap<i32, Resume>) -> BTreeMap<Place, i64> {
    resume.iter().flat_map(|(partition, r)| r.offsets.iter().map(|(topic, next)| ((topic.clone(), *partition), *next))).collect()
}

/// The workers, each with its share of the states.
fn workers(config: &KafkaConfig, shared: &Shared, resume: BTreeMap<i32, Resume>) -> Result<Vec<Worker>, StartError> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let n = if config.workers == 0 { cores() } else { config.workers };
    let mut shares: Vec<Vec<(i32, Resume)>> = (0..n).map(|_| Vec::new()).collect();
    for (partition, r) in resume {
        shares[way(partition, n)].push((partition, r));
    }
    let start =
        |(index, share)| Worker::new(index, shared.clone(), share).map_err(|(partition, reason)| StartError::Resume { partition, reason });
    shares.into_iter().enumerate().map(start).collect()
}

/// The worker of a partition number, of `n`.
pub fn way(partition: i32, n: usize) -> usize {
    usize::try_from(partition).unwrap_or(0) % n
}

fn consumer(config: &KafkaConfig, next: BTreeMap<Place, i64>, clock: fn() -> Millis, metrics: Metrics) -> Result<Consumer, StartError> {
    let client = client_config(config)?;
    let offset = match config.auto_offset_reset {
        AutoOffsetReset::Earliest => Offset::Beginning,
        AutoOffsetReset::Latest => Offset::End,
    };
    let oauth = config.oauth.clone().map(|oauth| Oauth::new(oauth, clock));
    let context = Context::new(config.brokers.clone(), offset, next, oauth, metrics);
    Ok(Consumer::from_config_and_context(&client, context)?)
}

/// librdkafka's settings: our defaults, what is passed through, and what is fixed.
///
/// # Errors
/// [`StartError::Reserved`].
pub fn client_config(config: &KafkaConfig) -> Result<ClientConfig, StartError> {
    if let Some(name) = config.properties.keys().find(|name| RESERVED.contains(&name.as_str())) {
        return Err(StartError::Reserved(name.clone()));
    }
    let mut client = ClientConfig::new();
    for (name, value) in [
        ("client.id", "guardraild"),
        // A full queue stops fetching for this long: the default of a second starves a busy consumer.
        ("fetch.queue.backoff.ms", "5"),
        ("queued.min.messages", "100000"),
        ("queued.max.messages.kbytes", "32768"),
        // Little of a partition at a time: what comes ahead of the others, and of the other topics, must wait for them in memory.
        ("fetch.message.max.bytes", "262144"),
        // An answer is unpacked as a whole: with the default of 50 MiB, memory that has left the caches before a record is looked at.
        // librdkafka takes no less.
        ("fetch.max.bytes", "1048576"),
        ("fetch.wait.max.ms", "100"),
        ("fetch.min.bytes", "1"),
        // A daemon that was killed keeps its partitions from the next one for this long.
        ("session.timeout.ms", "10000"),
        ("check.crcs", "true"),
        ("isolation.level", "read_committed"),
        ("statistics.interval.ms", "5000"),
        ("reconnect.backoff.max.ms", "5000"),
        ("topic.metadata.refresh.interval.ms", "30000"),
        ("partition.assignment.strategy", "range"),
    ] {
        client.set(name, value);
    }
    for (name, value) in &config.properties {
        client.set(name, value);
    }
    let reset = match config.auto_offset_reset {
        AutoOffsetReset::Earliest => "earliest",
        AutoOffsetReset::Latest => "latest",
    };
    for (name, value) in [
        ("bootstrap.servers", config.brokers.as_str()),
        ("group.id", &config.group),
        ("auto.offset.reset", reset),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("enable.partition.eof", "false"),
    ] {
        client.set(name, value);
    }
    Ok(client)
}
