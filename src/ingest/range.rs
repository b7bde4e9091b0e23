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
use serde::{Deserialize, Serialize};
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
    #[error("{topic}[{partition}] has not all of the range any more: it needs offsets {next} to {end}, and holds {low} to {high}")]
    Gone { topic: String, partition: i32, next: i64, end: i64, low: i64, high: i64 },
    #[error("{topic}[{partition}] came outside of its queue at offset {offset}")]
    Astray { topic: String, partition: i32, offset: i64 },
}

fn known(there: &[String]) -> String {
    match there {
        [] => "are none".into(),
        _ => format!("are {}{}", there[..there.len().min(8)].join(", "), if there.len() > 8 { ", …" } else { "" }),
    }
}

/// What a range consists of, and how much of it has been handed out: from here it can be taken up again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extent {
    topics: Vec<String>,
    since: Option<Millis>,
    until: Option<Millis>,
    stretches: Vec<Stretch>,
}

/// Of one partition of one topic: offsets from `start` to `end`, of which `next` is the first that has not been handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stretch {
    /// Index into the topics.
    topic: usize,
    partition: i32,
    start: i64,
    next: i64,
    end: i64,
}

impl Extent {
    /// Offsets handed out, and all.
    pub fn passed(&self) -> (u64, u64) {
        let sum = |of: fn(&Stretch) -> i64| self.stretches.iter().map(|s| of(s).unsigned_abs()).sum();
        (sum(|s| s.next - s.start), sum(|s| s.end - s.start))
    }

    /// Whether a record has been handed out.
    pub fn has(&self, record: &Record<'_>) -> bool {
        self.stretches.get(record.stretch).is_some_and(|stretch| record.offset < stretch.next)
    }

    /// Whether both are of the same records.
    pub fn is_of(&self, other: &Extent) -> bool {
        self.begun() == other.begun()
    }

    /// The same, with nothing handed out.
    pub fn begun(&self) -> Extent {
        let mut begun = self.clone();
        begun.stretches.iter_mut().for_each(|stretch| stretch.next = stretch.start);
        begun
    }
}

/// A record of a range.
pub struct Record<'a> {
    /// Index into the range's topics.
    pub topic: usize,
    pub partition: i32,
    /// Kafka's time of it, ms; negative without one.
    pub at: Millis,
    pub payload: &'a [u8],
    stretch: usize,
    offset: i64,
}

/// A range that is open for reading.
pub struct Range {
    consumer: Arc<Consumer>,
    lanes: Vec<Lane>,
    config: RangeConfig,
    extent: Extent,
    left_out: Vec<String>,
}

/// A stretch that has not come to its end, and its next record.
struct Lane {
    queue: PartitionQueue<Context>,
    /// Index into the stretches.
    stretch: usize,
    /// The next offset to fetch.
    next: i64,
    /// Of the record that is held.
    offset: i64,
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
        let (consumer, metadata) = connect(&mut config, clock)?;
        let (topics, left_out) = topics(&metadata, &config)?;
        let (extent, kept) = extent(&consumer, &metadata, topics, &config)?;
        if extent.stretches.is_empty() {
            return Err(RangeError::NoRecords { topics: extent.topics, kept });
        }
        Range::begin(consumer, config, extent, left_out)
    }

    /// Goes on with a range: its moments and topics are those of `extent`, and not of `config`.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn resume(mut config: RangeConfig, extent: Extent, clock: fn() -> Millis) -> Result<Range, RangeError> {
        (config.since, config.until) = (extent.since, extent.until);
        (config.kafka.topics, config.optional) = (extent.topics.clone(), Vec::new());
        let (consumer, metadata) = connect(&mut config, clock)?;
        topics(&metadata, &config)?;
        for &Stretch { topic, partition, next, end, .. } in extent.stretches.iter().filter(|stretch| stretch.next < stretch.end) {
            let topic = &extent.topics[topic];
            let (low, high) = consumer.fetch_watermarks(topic, partition, config.patience)?;
            if next < low || end > high {
                return Err(RangeError::Gone { topic: topic.clone(), partition, next, end, low, high });
            }
        }
        Range::begin(consumer, config, extent, Vec::new())
    }

    /// Begins to fetch. The lanes' queues are split off before partitions are assigned, so that no record can come by another way.
    fn begin(consumer: Arc<Consumer>, config: RangeConfig, extent: Extent, left_out: Vec<String>) -> Result<Range, RangeError> {
        let (mut lanes, mut places) = (Vec::new(), TopicPartitionList::new());
        for (index, stretch) in extent.stretches.iter().enumerate().filter(|(_, stretch)| stretch.next < stretch.end) {
            let topic = &extent.topics[stretch.topic];
            if let Some(queue) = consumer.split_partition_queue(topic, stretch.partition) {
                lanes.push(Lane { queue, stretch: index, next: stretch.next, offset: stretch.next, at: 0, payload: Vec::new() });
                places.add_partition_offset(topic, stretch.partition, Offset::Offset(stretch.next))?;
            }
        }
        consumer.assign(&places)?;
        Ok(Range { consumer, lanes, config, extent, left_out })
    }

    /// Partition numbers that have records in the range.
    pub fn partitions(&self) -> BTreeSet<i32> {
        self.extent.stretches.iter().map(|stretch| stretch.partition).collect()
    }

    /// The topics that are read, which records name by index.
    pub fn topics(&self) -> &[String] {
        &self.extent.topics
    }

    /// Optional topics that are not there.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// What the range consists of, and how far it has been read.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// Reads the range: `each` takes every record, with what has been handed out, this one included, and says whether to go on. Returns whether it
    /// came to its end.
    ///
    /// # Errors
    /// See [`RangeError`]; and what `each` says.
    pub fn read<E: From<RangeError>>(mut self, mut each: impl FnMut(Record<'_>, &Extent) -> Result<bool, E>) -> Result<bool, E> {
        let mut heads = BinaryHeap::new();
        let mut taken: u64 = 0;
        let (passed, kept) = self.extent.passed();
        for index in 0..self.lanes.len() {
            if self.advance(index)? {
                heads.push(self.head(index));
            }
        }
        while let Some(Reverse((at, partition, topic, index))) = heads.pop() {
            let lane = &mut self.lanes[index];
            let (stretch, offset) = (lane.stretch, lane.offset);
            self.extent.stretches[stretch].next = offset + 1;
            if !each(Record { topic, partition, at, payload: &lane.payload, stretch, offset }, &self.extent)? {
                return Ok(false);
            }
            if self.advance(index)? {
                heads.push(self.head(index));
            }
            taken += 1;
            if taken.is_multiple_of(STRIDE) {
                self.events()?;
            }
        }
        // Only what has been taken up may have nothing left.
        match (taken, passed) {
            (0, 0) => Err(RangeError::NoRecords { topics: self.extent.topics, kept }.into()),
            _ => Ok(true),
        }
    }

    /// What lanes are ordered by.
    fn head(&self, index: usize) -> Reverse<(Millis, i32, usize, usize)> {
        let lane = &self.lanes[index];
        let stretch = &self.extent.stretches[lane.stretch];
        Reverse((lane.at, stretch.partition, stretch.topic, index))
    }

    /// Takes the lane's next record of the range; `false` at its end.
    fn advance(&mut self, index: usize) -> Result<bool, RangeError> {
        let since = Instant::now();
        loop {
            let lane = &mut self.lanes[index];
            let stretch = &mut self.extent.stretches[lane.stretch];
            match lane.queue.poll(LOOK) {
                Some(Ok(message)) if message.offset() < lane.next => continue,
                Some(Ok(message)) if message.offset() < stretch.end => {
                    lane.next = message.offset() + 1;
                    let at = message.timestamp().to_millis().unwrap_or(-1);
                    if at >= 0 && (self.config.since.is_some_and(|s| at < s) || self.config.until.is_some_and(|u| at >= u)) {
                        continue;
                    }
                    (lane.at, lane.offset) = (at, message.offset());
                    lane.payload.clear();
                    lane.payload.extend_from_slice(message.payload().unwrap_or_default());
                    return Ok(true);
                }
                // The end as it is now is not before that of the range.
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => {
                    stretch.next = stretch.end;
                    let mut done = TopicPartitionList::new();
                    done.add_partition(&self.extent.topics[stretch.topic], stretch.partition);
                    self.consumer.pause(&done)?;
                    return Ok(false);
                }
                Some(Err(error)) => self.consumer.context().trouble(error.rdkafka_error_code(), &error.to_string()),
                None => {}
            }
            self.events()?;
            if since.elapsed() >= self.config.patience {
                let (lane, reason) = (&self.lanes[index], silence(&self.consumer, self.config.patience));
                let &Stretch { topic, partition, end, .. } = &self.extent.stretches[lane.stretch];
                return Err(RangeError::Stuck { topic: self.extent.topics[topic].clone(), partition, offset: lane.next, end, reason });
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

/// A consumer with an answer from the brokers.
fn connect(config: &mut RangeConfig, clock: fn() -> Millis) -> Result<(Arc<Consumer>, Metadata), RangeError> {
    config.kafka.auto_offset_reset = AutoOffsetReset::Earliest;
    for (name, value) in AHEAD {
        config.kafka.properties.entry(name.into()).or_insert_with(|| value.into());
    }
    let mut client = client_config(&config.kafka)?;
    client.set("enable.partition.eof", "true");
    let consumer = consumer(&client, &config.kafka, clock)?;
    let metadata = metadata(&consumer, config)?;
    Ok((consumer, metadata))
}

/// A stretch of each partition that has records in the range; and the number of all records.
fn extent(consumer: &Arc<Consumer>, metadata: &Metadata, topics: Vec<String>, config: &RangeConfig) -> Result<(Extent, u64), RangeError> {
    let mut places = TopicPartitionList::new();
    for topic in metadata.topics().iter().filter(|t| topics.iter().any(|name| name == t.name())) {
        for partition in topic.partitions() {
            places.add_partition(topic.name(), partition.id());
        }
    }
    let from = offsets(consumer, &places, config.since, config.patience)?;
    let to = offsets(consumer, &places, config.until, config.patience)?;
    let (mut stretches, mut kept) = (Vec::new(), 0);
    for element in places.elements() {
        let (name, partition) = (element.topic(), element.partition());
        let (low, high) = consumer.fetch_watermarks(name, partition, config.patience)?;
        kept += (high - low).max(0).unsigned_abs();
        let place = (name.to_owned(), partition);
        let start = if config.since.is_some() { from.get(&place).copied().unwrap_or(high) } else { low }.max(low);
        let end = to.get(&place).copied().unwrap_or(high).min(high);
        if let Some(topic) = topics.iter().position(|t| t == name).filter(|_| start < end) {
            stretches.push(Stretch { topic, partition, start, next: start, end });
        }
    }
    Ok((Extent { topics, since: config.since, until: config.until, stretches }, kept))
}

/// Of each place with a record from `at` on, the first such offset.
fn offsets(
    consumer: &Arc<Consumer>,
    places: &TopicPartitionList,
    at: Option<Millis>,
    patience: Duration,
) -> Result<BTreeMap<(String, i32), i64>, RangeError> {
    let Some(at) = at else { return Ok(BTreeMap::new()) };
    let mut times = places.clone();
    times.set_all_offsets(Offset::Offset(at.max(0)))?;
    let found = consumer.offsets_for_times(times, patience)?;
    let mut offsets = BTreeMap::new();
    for element in found.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert((element.topic().to_owned(), element.partition()), offset);
        }
    }
    Ok(offsets)
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
