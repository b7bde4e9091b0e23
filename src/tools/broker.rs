//! A broker inside the process (librdkafka's mock cluster) and a thread that feeds it traffic.
//!
//! The broker keeps 5 MiB or 100,000 batches per partition and drops older ones silently; nothing is written to disk. It listens on
//! loopback, where other processes can use it too.

use super::traffic::{CaseError, Fault, Record, Topic, Traffic};
use crate::clock;
use crate::engine::time::Millis;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use hashbrown::HashSet;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The broker; it ends when dropped.
pub struct Broker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Broker {
    /// One broker on a free loopback port, with the two default topics.
    pub fn start(partitions: i32) -> Result<Broker, KafkaError> {
        let broker = Broker { cluster: MockCluster::new(1)? };
        for topic in [Topic::Exposures, Topic::Events] {
            broker.cluster.create_topic(topic.name(), partitions, 1)?;
        }
        Ok(broker)
    }

    /// `HOST:PORT`.
    pub fn servers(&self) -> String {
        self.cluster.bootstrap_servers()
    }
}

/// A producer that waits for room instead of failing when its queue is full.
pub struct Writer {
    producer: BaseProducer,
    exposures: String,
    events: String,
}

impl Writer {
    /// Writes to the default topics with `prefix` before their names. `settings` are librdkafka's, beyond the defaults for many small
    /// records.
    pub fn new(servers: &str, prefix: &str, settings: &[(&str, &str)]) -> Result<Writer, KafkaError> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers).set("linger.ms", "5").set("compression.type", "lz4");
        // A batch that is sent again, as the first one to a new topic often is, must not come behind later ones: events would overtake
        // the exposures that explain them.
        // One request at a time, because the embedded broker does not check sequence numbers.
        config.set("enable.idempotence", "true").set("max.in.flight", "1");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let name = |topic: Topic| format!("{prefix}{}", topic.name());
        Ok(Writer { producer: config.create()?, exposures: name(Topic::Exposures), events: name(Topic::Events) })
    }

    /// Writes all to the topic of exposures: the order of the records is then the same for every reader, also at the head.
    pub fn in_one_topic(mut self) -> Writer {
        self.events.clone_from(&self.exposures);
        self
    }

    /// Queues a record, keyed by its unit and stamped with its event time.
    pub fn send(&self, record: &Record) -> Result<(), KafkaError> {
        let topic = if record.topic == Topic::Exposures { &self.exposures } else { &self.events };
        let mut message = BaseRecord::to(topic).key(&record.key).payload(&record.payload).timestamp(record.ts);
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    message = back;
                    self.producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Serves delivery reports; call it now and then.
    pub fn serve(&self) {
        self.producer.poll(Duration::ZERO);
    }

    /// Waits until all records are with the broker.
    pub fn flush(&self, within: Duration) -> Result<(), KafkaError> {
        self.producer.flush(within)
    }
}

/// What a feed has sent so far.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    pub records: u64,
    /// Since [`Feed::inject`], of the bucket that it struck.
    pub struck: Option<Struck>,
}

#[derive(Clone, Debug)]
pub struct Struck {
    /// Wall clock, and event time, of the fault.
    pub at: Millis,
    pub exposures: u64,
    /// Different users among them.
    pub users: u64,
    /// Event time of the newest of them.
    pub last: Option<Millis>,
}

/// Why a feed ended early.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("the broker took a record no longer: {0}")]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Case(#[from] CaseError),
    #[error("the traffic thread failed")]
    Thread,
}

enum Order {
    Inject(Fault),
    Stop(String, String),
    Pace(f64),
    End,
}

/// A handle on the feed's flags.
#[derive(Clone)]
pub struct Switch(Sender<Order>);

impl Switch {
    /// Turns the bucket off: see [`Traffic::stop`].
    pub fn stop(&self, experiment: &str, bucket: &str) {
        // Without a feed there is nothing left to stop.
        let _ = self.0.send(Order::Stop(experiment.to_owned(), bucket.to_owned()));
    }
}

/// A thread that sends traffic as the wall clock reaches each record's time; it stops when dropped.
pub struct Feed {
    orders: Sender<Order>,
    sent: Arc<Mutex<Sent>>,
    thread: Option<std::thread::JoinHandle<Result<(), FeedError>>>,
}

impl Feed {
    pub fn start(traffic: Traffic, writer: Writer) -> std::io::Result<Feed> {
        let (orders, inbox) = crossbeam_channel::unbounded();
        let sent = Arc::new(Mutex::new(Sent::default()));
        let mut pump = Pump { traffic, writer, sent: Arc::clone(&sent), local: Sent::default(), watched: None, users: HashSet::default() };
        let thread = std::thread::Builder::new().name("traffic".into()).spawn(move || pump.run(&inbox))?;
        Ok(Feed { orders, sent, thread: Some(thread) })
    }

    /// Strikes a bucket; the fault's times count from now. [`Sent::struck`] follows the newest fault.
    pub fn inject(&self, fault: Fault) {
        // A feed that has ended says why in `finish`.
        let _ = self.orders.send(Order::Inject(fault));
    }

    /// From now on, so many visits a second.
    pub fn pace(&self, visits_per_s: f64) {
        // As above.
        let _ = self.orders.send(Order::Pace(visits_per_s));
    }

    pub fn switch(&self) -> Switch {
        Switch(self.orders.clone())
    }

    pub fn sent(&self) -> Sent {
        self.sent.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Whether the thread has ended, which it does by itself only for an error.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Stops, and says what was sent or why it ended before.
    pub fn finish(mut self) -> Result<Sent, FeedError> {
        self.end().map(|()| self.sent())
    }

    fn end(&mut self) -> Result<(), FeedError> {
        let _ = self.orders.send(Order::End);
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap_or(Err(FeedError::Thread)))
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// What the feed's thread owns.
struct Pump {
    traffic: Traffic,
    writer: Writer,
    sent: Arc<Mutex<Sent>>,
    local: Sent,
    /// Experiment and bucket of the injected fault, and the users exposed to it since.
    watched: Option<(String, String)>,
    users: HashSet<u64>,
}

impl Pump {
    fn run(&mut self, orders: &Receiver<Order>) -> Result<(), FeedError> {
        let mut record = Record::default();
        loop {
            let now = clock::now();
            while self.traffic.next_ts() <= now {
                self.traffic.next(&mut record);
                self.writer.send(&record)?;
                self.count(&record);
            }
            self.writer.serve();
            *self.sent.lock().unwrap_or_else(|e| e.into_inner()) = self.local.clone();
            match orders.recv_timeout(Duration::from_millis(5)) {
                Ok(Order::Inject(fault)) => self.strike(&fault)?,
                Ok(Order::Stop(experiment, bucket)) => {
                    self.traffic.stop(&experiment, &bucket);
                }
                Ok(Order::Pace(visits_per_s)) => self.traffic.pace(visits_per_s)?,
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return Ok(self.writer.flush(Duration::from_secs(2))?),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn strike(&mut self, fault: &Fault) -> Result<(), FeedError> {
        let at = self.traffic.next_ts();
        self.traffic.inject(fault, at)?;
        self.watched = Some((fault.experiment.clone(), fault.bucket.clone()));
        self.users.clear();
        self.local.struck = Some(Struck { at, exposures: 0, users: 0, last: None });
        Ok(())
    }

    fn count(&mut self, record: &Record) {
        self.local.records += 1;
        let (Some(exposed), Some((experiment, bucket)), Some(struck)) = (record.exposed, &self.watched, &mut self.local.struck) else {
            return;
        };
        if self.traffic.names(exposed) == Some((experiment, bucket)) {
            self.users.insert(record.user);
            struck.exposures += 1;
            struck.users = self.users.len() as u64;
            struck.last = Some(record.ts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::traffic::{Case, Effect};
    use rdkafka::Message;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        for _ in 0..2_000 {
            if done() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("not within 20 s: {what}");
    }

    #[test]
    fn a_feed_reaches_the_broker_and_obeys() {
        let broker = Broker::start(4).unwrap();
        let traffic = Traffic::new(Case::default(), clock::now()).unwrap();
        let feed = Feed::start(traffic, Writer::new(&broker.servers(), "", &[]).unwrap()).unwrap();
        let effect = Effect { latency: 2.0, ..Effect::default() };
        let fault = Fault {
            at_s: 0.0,
            until_s: None,
            experiment: "new-checkout".into(),
            stagger_s: 0.0,
            bucket: "treatment".into(),
            segment: None,
            effect,
        };
        feed.inject(fault);
        until("treatment is exposed", || feed.sent().struck.is_some_and(|s| s.exposures > 20 && s.users == s.exposures));
        feed.switch().stop("new-checkout", "treatment");
        until("exposures stop", || {
            let last = feed.sent().struck.and_then(|s| s.last);
            last.is_some_and(|ts| ts < clock::now() - 500)
        });
        let sent = feed.finish().unwrap();

        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", broker.servers()).set("group.id", "test").create().unwrap();
        let mut assignment = rdkafka::TopicPartitionList::new();
        for partition in 0..4 {
            for topic in [Topic::Exposures, Topic::Events] {
                assignment.add_partition_offset(topic.name(), partition, rdkafka::Offset::Beginning).unwrap();
            }
        }
        consumer.assign(&assignment).unwrap();
        let (mut read, mut exposed) = (0, 0);
        until("all records are read", || {
            while let Some(message) = consumer.poll(Duration::from_millis(10)) {
                let message = message.unwrap();
                read += 1;
                exposed += u64::from(message.topic() == Topic::Exposures.name());
                let value: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
                assert_eq!(message.timestamp().to_millis(), value["ts"].as_i64());
            }
            read == sent.records
        });
        assert!(exposed > 20);
    }

    #[test]
    fn a_batch_that_is_sent_again_is_overtaken_by_none() {
        let broker = Broker::start(1).unwrap();
        // As a new topic does whose leader has not heard of it yet.
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION];
        broker.cluster.request_errors(RDKafkaApiKey::Produce, &refused);
        let writer = Writer::new(&broker.servers(), "", &[("linger.ms", "0"), ("batch.num.messages", "10")]).unwrap();
        for ts in 1..=1_000 {
            writer.send(&Record { key: b"t|u".to_vec(), payload: b"{}".to_vec(), ts, ..Record::default() }).unwrap();
        }
        writer.flush(Duration::from_secs(60)).unwrap();

        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", broker.servers()).set("group.id", "test").create().unwrap();
        let mut assignment = rdkafka::TopicPartitionList::new();
        assignment.add_partition_offset(Topic::Events.name(), 0, rdkafka::Offset::Beginning).unwrap();
        consumer.assign(&assignment).unwrap();
        let mut times = Vec::new();
        until("all records are back", || {
            times.extend(consumer.poll(Duration::from_millis(50)).and_then(|m| m.unwrap().timestamp().to_millis()));
            times.len() == 1_000
        });
        assert!(times.is_sorted(), "{times:?}");
    }

    #[test]
    fn a_fault_without_its_bucket_ends_the_feed_with_an_error() {
        let broker = Broker::start(1).unwrap();
        let traffic = Traffic::new(Case::default(), clock::now()).unwrap();
        let feed = Feed::start(traffic, Writer::new(&broker.servers(), "", &[]).unwrap()).unwrap();
        let effect = Effect::default();
        feed.inject(Fault {
            at_s: 0.0,
            until_s: None,
            experiment: "nobody".into(),
            stagger_s: 0.0,
            bucket: "treatment".into(),
            segment: None,
            effect,
        });
        until("the feed ends", || feed.is_over());
        assert!(feed.finish().unwrap_err().to_string().contains("`nobody`"));
    }
}
