//! A range of Kafka's topics, by time: what lies between two moments, up to what is there at the start.
//!
//! Partitions are assigned, not subscribed to: no group is joined, nothing is committed, and a running daemon does not notice. All
//! partitions of all topics are merged by Kafka's timestamps. Inside a partition number that is the order in which a daemon takes
//! its topics (see [`super::align`]), and between partition numbers it makes the result the same on every run. A partition's queue is
//! only polled when its next record is needed, so librdkafka's own bound on each queue is what is held.

use super::context::{Consumer, Context};
use super::kafka::{AutoOffsetReset, KafkaConfig, StartError, client_config};
use super::oauth::Oauth;
use crate::engine::time::Millis;
use crate::telemetry::Metrics;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::consumer::Consumer as _;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::{Offset, TopicPartitionList};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One question to the brokers, and one look at a queue.
const ASK: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(100);
/// Records between two looks at events.
const STRIDE: u64 = 1_000;
/// Less is fetched ahead for each partition than a daemon does: here all of them are open at once.
const AHEAD: [(&str, &str); 3] =
    [("queued.min.messages", "5000"), ("queued.max.messages.kbytes", "2048"), ("fetch.message.max.bytes", "262144")];

/// What to read.
pub struct RangeConfig {
    pub kafka: KafkaConfig,
    /// Topics that need not exist.
    pub optional: Vec<String>,
    /// Kafka's time of the records, ms: from `since` on, before `until`. Without them all that is there.
    pub since: Option<Millis>,
    pub until: Option<Millis>,
    /// Without an answer for this long, reading ends with an error.
    pub patience: Duration,
}

/// Why a range could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("kafka: {0}")]
    Kafka(#[from] KafkaError),
    #[error("cannot reach Kafka at {brokers}: {reason}")]
    Unreachable { brokers: String, reason: String },
    #[error("no such topic at {brokers}: {} (`kafka.topics` names those to read); there {}", missing.join(", "), known(there))]
    UnknownTopics { brokers: String, missing: Vec<String>, there: Vec<String> },
    #[error("topic {topic} cannot be read: {reason}")]
    Topic { topic: String, reason: String },
    #[error("no record of {} lies in the range; they hold {}", topics.join(", "), if *kept == 0 { "none at all".to_owned() } else { format!("{kept} others") })]
    NoRecords { topics: Vec<String>, kept: u64 },
    #[error("{topic}[{partition}] brings nothing any more at offset {offset}, before the end of the range at {end}: {reason}")]
    Stuck { topic: String, partition: i32, offset: i64, end: i64, reason: String },
    #[error("a record cannot be read: {0}")]
    Record(String),
    #[error("{topic}[{partition}] came outside of its queue at offset {offset}")]
    Astray { topic: String, partition: i32, offset: i64 },
}

fn known(there: &[String]) -> String {
    match there {
        [] => "are none".into(),
        _ => format!("are {}{}", there[..there.len().min(8)].join(", "), if there.len() > 8 { ", …" } else { "" }),
    }
}

/// A range that is open for reading.
pub struct Range {
    consumer: Arc<Consumer>,
    lanes: Vec<Lane>,
    config: RangeConfig,
    topics: Vec<String>,
    left_out: Vec<String>,
    /// Offsets passed, and from start to end.
    passed: u64,
    total: u64,
}

/// One partition of one topic, and its next record.
struct Lane {
    queue: PartitionQueue<Context>,
    /// Index into the topics that are there.
    topic: usize,
    partition: i32,
    next: i64,
    end: i64,
    at: Millis,
    payload: Vec<u8>,
}

/// What a cluster has.
#[derive(Debug)]
pub struct Cluster {
    pub brokers: usize,
    /// Number of partitions of each topic that may be seen, or why it cannot be read.
    pub topics: BTreeMap<String, Result<usize, String>>,
}

/// Asks what there is. No group is joined, and nothing is read.
///
/// # Errors
/// Where there is no answer for so long.
pub fn look(kafka: KafkaConfig, patience: Duration, clock: fn() -> Millis) -> Result<Cluster, RangeError> {
    let consumer = consumer(&client_config(&kafka)?, &kafka, clock)?;
    let config = RangeConfig { kafka, optional: Vec::new(), since: None, until: None, patience };
    let metadata = metadata(&consumer, &config)?;
    let topic = |topic: &MetadataTopic| match topic.error() {
        Some(error) => Err(KafkaError::MetadataFetch(error.into()).to_string()),
        None => Ok(topic.partitions().len()),
    };
    let topics = metadata.topics().iter().map(|t| (t.name().to_owned(), topic(t))).collect();
    Ok(Cluster { brokers: metadata.brokers().len(), topics })
}

fn consumer(client: &ClientConfig, kafka: &KafkaConfig, clock: fn() -> Millis) -> Result<Arc<Consumer>, KafkaError> {
    let oauth = kafka.oauth.clone().map(|oauth| Oauth::new(oauth, clock));
    let context = Context::new(kafka.brokers.clone(), Offset::Beginning, BTreeMap::new(), oauth, Metrics::default());
    Ok(Arc::new(Consumer::from_config_and_context(client, context)?))
}

impl Range {
    /// Finds out what lies in the range, and begins to fetch it.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn open(mut config: RangeConfig, clock: fn() -> Millis) -> Result<Range, RangeError> {
        config.kafka.auto_offset_reset = AutoOffsetReset::Earliest;
        for (name, value) in AHEAD {
            config.kafka.properties.entry(name.into()).or_insert_with(|| value.into());
        }
        let mut client = client_config(&config.kafka)?;
        client.set("enable.partition.eof", "true");
        let consumer = consumer(&client, &config.kafka, clock)?;
        let metadata = metadata(&consumer, &config)?;
        let (topics, left_out) = topics(&metadata, &config)?;
        let mut range = Range { consumer, lanes: Vec::new(), config, topics, left_out, passed: 0, total: 0 };
        let kept = range.find(&metadata)?;
        if range.lanes.is_empty() {
            return Err(RangeError::NoRecords { topics: range.topics, kept });
        }
        range.assign()?;
        Ok(range)
    }

    /// Partition numbers that have records in the range.
    pub fn partitions(&self) -> BTreeSet<i32> {
        self.lanes.iter().map(|lane| lane.partition).collect()
    }

    /// The topics that are read, which records name by index.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// Optional topics that are not there.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Makes a lane of each partition that has records in the range; returns the number of all records.
    fn find(&mut self, metadata: &Metadata) -> Result<u64, RangeError> {
        let mut places = TopicPartitionList::new();
        for topic in metadata.topics().iter().filter(|t| self.topics.iter().any(|name| name == t.name())) {
            for partition in topic.partitions() {
                places.add_partition(topic.name(), partition.id());
            }
        }
        let (from, to) = (self.offsets(&places, self.config.since)?, self.offsets(&places, self.config.until)?);
        let mut kept = 0;
        for element in places.elements() {
            let (name, partition) = (element.topic(), element.partition());
            let (low, high) = self.consumer.fetch_watermarks(name, partition, self.config.patience)?;
            kept += (high - low).max(0).unsigned_abs();
            let place = (name.to_owned(), partition);
            let next = if self.config.since.is_some() { from.get(&place).copied().unwrap_or(high) } else { low }.max(low);
            let end = to.get(&place).copied().unwrap_or(high).min(high);
            let topic = self.topics.iter().position(|t| t == name);
            if next < end
                && let Some(topic) = topic
                && let Some(queue) = self.consumer.split_partition_queue(name, partition)
            {
                self.lanes.push(Lane { queue, topic, partition, next, end, at: 0, payload: Vec::new() });
                self.total += (end - next).unsigned_abs();
            }
        }
        Ok(kept)
    }

    /// Of each place with a record from `at` on, the first such offset.
    fn offsets(&self, places: &TopicPartitionList, at: Option<Millis>) -> Result<BTreeMap<(String, i32), i64>, RangeError> {
        let Some(at) = at else { return Ok(BTreeMap::new()) };
        let mut times = places.clone();
        times.set_all_offsets(Offset::Offset(at.max(0)))?;
        let found = self.consumer.offsets_for_times(times, self.config.patience)?;
        let mut offsets = BTreeMap::new();
        for element in found.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                offsets.insert((element.topic().to_owned(), element.partition()), offset);
            }
        }
        Ok(offsets)
    }

    /// Begins to fetch. The lanes' queues are split off already, so that no record can come by another way.
    fn assign(&self) -> Result<(), RangeError> {
        let mut places = TopicPartitionList::new();
        for lane in &self.lanes {
            places.add_partition_offset(&self.topics[lane.topic], lane.partition, Offset::Offset(lane.next))?;
        }
        Ok(self.consumer.assign(&places)?)
    }

    /// Reads the range: `each` takes topic and partition number, Kafka's time and value of every record, and offsets passed and in all.
    ///
    /// # Errors
    /// See [`RangeError`]; [`RangeError::Record`] where `each` says so.
    pub fn read(mut self, mut each: impl FnMut((usize, i32), Millis, &[u8], (u64, u64)) -> Result<(), String>) -> Result<(), RangeError> {
        let mut heads = BinaryHeap::new();
        let mut taken: u64 = 0;
        let key = |lane: &Lane, index| Reverse((lane.at, lane.partition, lane.topic, index));
        for index in 0..self.lanes.len() {
            if self.advance(index)? {
                heads.push(key(&self.lanes[index], index));
            }
        }
        while let Some(Reverse((at, partition, topic, index))) = heads.pop() {
            each((topic, partition), at, &self.lanes[index].payload, (self.passed, self.total)).map_err(RangeError::Record)?;
            if self.advance(index)? {
                heads.push(key(&self.lanes[index], index));
            }
            taken += 1;
            if taken.is_multiple_of(STRIDE) {
                self.events()?;
            }
        }
        match taken {
            0 => Err(RangeError::NoRecords { topics: self.topics, kept: self.total }),
            _ => Ok(()),
        }
    }

    /// Takes the lane's next record of the range; `false` at its end.
    fn advance(&mut self, index: usize) -> Result<bool, RangeError> {
        let since = Instant::now();
        loop {
            let lane = &mut self.lanes[index];
            match lane.queue.poll(LOOK) {
                Some(Ok(message)) if message.offset() < lane.next => continue,
                Some(Ok(message)) if message.offset() < lane.end => {
                    self.passed += (message.offset() + 1 - lane.next).unsigned_abs();
                    lane.next = message.offset() + 1;
                    let at = message.timestamp().to_millis().unwrap_or(-1);
                    if at >= 0 && (self.config.since.is_some_and(|s| at < s) || self.config.until.is_some_and(|u| at >= u)) {
                        continue;
                    }
                    lane.at = at;
                    lane.payload.clear();
                    lane.payload.extend_from_slice(message.payload().unwrap_or_default());
                    return Ok(true);
                }
                // The end as it is now is not before that of the range.
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => {
                    self.passed += (lane.end - lane.next).unsigned_abs();
                    lane.next = lane.end;
                    let mut done = TopicPartitionList::new();
                    done.add_partition(&self.topics[lane.topic], lane.partition);
                    self.consumer.pause(&done)?;
                    return Ok(false);
                }
                Some(Err(error)) => self.consumer.context().trouble(error.rdkafka_error_code(), &error.to_string()),
                None => {}
            }
            self.events()?;
            let lane = &self.lanes[index];
            if since.elapsed() >= self.config.patience {
                let (topic, reason) = (self.topics[lane.topic].clone(), silence(&self.consumer, self.config.patience));
                return Err(RangeError::Stuck { topic, partition: lane.partition, offset: lane.next, end: lane.end, reason });
            }
        }
    }

    /// Serves errors, tokens and statistics.
    fn events(&self) -> Result<(), RangeError> {
        match self.consumer.poll(Duration::ZERO) {
            Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => Err(error.into()),
            Some(Ok(message)) => {
                let (topic, partition, offset) = (message.topic().to_owned(), message.partition(), message.offset());
                Err(RangeError::Astray { topic, partition, offset })
            }
            // What else goes wrong, librdkafka retries; the context keeps the reason.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

/// What the cluster has. All of its topics are asked for: to ask for one by name can make it.
fn metadata(consumer: &Arc<Consumer>, config: &RangeConfig) -> Result<Metadata, RangeError> {
    let since = Instant::now();
    loop {
        let error = match consumer.fetch_metadata(None, ASK.min(config.patience)) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error,
        };
        // Tokens and the reasons of errors come by polling. While nothing can be reached, there is always another error.
        (0..16).take_while(|_| consumer.poll(LOOK).is_some()).for_each(drop);
        let code = consumer.context().state().last.as_ref().and_then(|(code, _)| *code);
        let hopeless = matches!(code, Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL));
        if hopeless || since.elapsed() >= config.patience {
            let brokers = config.kafka.brokers.clone();
            let reason = if hopeless { String::new() } else { format!("{error}; ") } + &silence(consumer, since.elapsed());
            return Err(RangeError::Unreachable { brokers, reason });
        }
    }
}

/// The topics to read that are there, and the optional ones that are not.
fn topics(metadata: &Metadata, config: &RangeConfig) -> Result<(Vec<String>, Vec<String>), RangeError> {
    for topic in metadata.topics() {
        if let Some(error) = topic.error().filter(|_| config.kafka.topics.iter().any(|name| name == topic.name())) {
            let reason = KafkaError::MetadataFetch(error.into()).to_string();
            return Err(RangeError::Topic { topic: topic.name().into(), reason });
        }
    }
    let there = |name: &String| metadata.topics().iter().any(|t| t.name() == name);
    let (found, missing): (Vec<String>, Vec<String>) = config.kafka.topics.iter().cloned().partition(there);
    let (left_out, missing): (Vec<String>, Vec<String>) = missing.into_iter().partition(|name| config.optional.contains(name));
    if missing.is_empty() {
        return Ok((found, left_out));
    }
    let mut there: Vec<String> = metadata.topics().iter().map(|t| t.name().to_owned()).filter(|name| !name.starts_with("__")).collect();
    there.sort();
    Err(RangeError::UnknownTopics { brokers: config.kafka.brokers.clone(), missing, there })
}

/// Why nothing comes, as far as librdkafka has told.
fn silence(consumer: &Consumer, waited: Duration) -> String {
    let told = consumer.context().state().last.as_ref().map(|(_, reason)| reason.clone());
    told.unwrap_or_else(|| format!("no answer within {} s", waited.as_secs()))
}
