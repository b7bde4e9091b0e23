//! What librdkafka calls back: rebalances with our own start offsets, errors and statistics. Everything runs inside
//! `BaseConsumer::poll`, on the consumer's thread.

use super::oauth::Oauth;
use crate::telemetry::{Metrics, names};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The consumer of this module.
pub type Consumer = BaseConsumer<Context>;

/// A line about the same thing is logged this often at most.
const QUIET: Duration = Duration::from_secs(30);
/// Things about which lines were logged lately, remembered at most.
const REMEMBERED: usize = 64;

/// Topic and partition.
pub type Place = (String, i32);

/// See the module.
pub struct Context {
    brokers: String,
    oauth: Option<Oauth>,
    /// Where a partition without an offset of ours starts.
    reset: Offset,
    state: Mutex<State>,
    metrics: Metrics,
}

/// What the callbacks and the consumer's loop share; only one of them runs at a time.
#[derive(Default)]
pub struct State {
    /// The next offset of every partition that was ever read here.
    pub next: BTreeMap<Place, i64>,
    /// What became of partitions, in order, until the loop takes it.
    pub changes: Vec<Change>,
    /// End offsets of partitions, from the statistics.
    pub ends: BTreeMap<Place, i64>,
    /// Partitions of which, as of the newest statistics, everything had been fetched and handed over.
    pub drained: BTreeSet<Place>,
    /// The last error of the client, with its reason.
    pub last: Option<(Option<RDKafkaErrorCode>, String)>,
    /// Why the consumer cannot go on.
    pub fatal: Option<String>,
    down: bool,
    logged: BTreeMap<String, (Instant, u64)>,
}

/// An assignment, or the end of one.
pub enum Change {
    Assigned(Vec<Place>),
    Revoked(Vec<Place>),
}

impl Context {
    pub fn new(brokers: String, reset: Offset, next: BTreeMap<Place, i64>, oauth: Option<Oauth>, metrics: Metrics) -> Context {
        Context { brokers, oauth, reset, metrics, state: Mutex::new(State { next, ..State::default() }) }
    }

    /// Where a partition without an offset of ours starts.
    pub fn reset(&self) -> Offset {
        self.reset
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// So many partition numbers are paused because they are ahead.
    pub fn paused(&self, partitions: usize) {
        self.metrics.set(&names::PAUSED, &[], partitions as f64);
    }

    /// Kafka answers: said once after it did not.
    pub fn reached(&self) {
        let mut state = self.state();
        if state.down {
            state.down = false;
            state.logged.clear();
            tracing::info!(brokers = %self.brokers, "Kafka is reachable again");
        }
    }

    /// An error that librdkafka itself will retry.
    pub fn trouble(&self, code: Option<RDKafkaErrorCode>, reason: &str) {
        let name = code.map_or_else(|| "other".to_owned(), |code| format!("{code:?}"));
        self.metrics.add(&names::KAFKA_ERRORS, &[&name], 1.0);
        let mut state = self.state();
        // That all brokers are down says less than what was said of one of them.
        if code != Some(RDKafkaErrorCode::AllBrokersDown) || state.last.is_none() {
            state.last = Some((code, reason.to_owned()));
        }
        let topic = if code == Some(RDKafkaErrorCode::UnknownTopicOrPartition) { reason } else { "" };
        let Some(times) = state.due(format!("{code:?}{topic}")) else { return };
        match code {
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve) => {
                tracing::warn!(brokers = %self.brokers, %reason, times, "cannot reach Kafka; retrying");
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => {
                tracing::warn!(%reason, times, "a configured topic does not exist; it will be read once it does");
            }
            _ => tracing::warn!(%reason, times, "Kafka reports an error; retrying"),
        }
    }
}

impl State {
    /// Whether a line about `what` is due, and then how often it would have been since the last.
    fn due(&mut self, what: String) -> Option<u64> {
        let now = Instant::now();
        if self.logged.len() >= REMEMBERED && !self.logged.contains_key(&what) {
            self.logged.clear();
        }
        let entry = self.logged.entry(what).or_insert((now, 0));
        entry.1 += 1;
        if entry.1 > 1 && now.duration_since(entry.0) < QUIET {
            return None;
        }
        Some(std::mem::replace(entry, (now, 1)).1)
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Errors come by `error` too; the rest is one line for each attempt.
        if matches!(level, RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical) {
            tracing::error!(facility, "{message}");
        } else {
            tracing::debug!(facility, "{message}");
        }
    }

    fn stats(&self, statistics: Statistics) {
        if statistics.brokers.values().any(|b| b.state == "UP") {
            self.reached();
        }
        let mut state = self.state();
        for (topic, t) in &statistics.topics {
            for (partition, p) in &t.partitions {
                if p.hi_offset < 0 {
                    continue;
                }
                let place = (topic.clone(), *partition);
                if p.fetch_state == "active" && p.next_offset >= p.hi_offset && p.fetchq_cnt == 0 {
                    state.drained.insert(place.clone());
                }
                state.ends.insert(place, p.hi_offset);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.state().down = true;
        }
        if code == Some(RDKafkaErrorCode::Fatal) {
            self.state().fatal = Some(reason.to_owned());
        } else {
            self.trouble(code, reason);
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let oauth = self.oauth.as_ref().ok_or("OAUTHBEARER is asked for, but no source of tokens is configured")?;
        Ok(oauth.token()?)
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, tpl: &mut TopicPartitionList) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let places: Vec<Place> = tpl.elements().iter().map(|e| (e.topic().to_owned(), e.partition())).collect();
        let mut state = self.state();
        let result = if err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            for place in &places {
                let offset = state.next.get(place).map_or(self.reset, |next| Offset::Offset(*next));
                if let Err(e) = tpl.set_partition_offset(&place.0, place.1, offset) {
                    tracing::error!(topic = %place.0, partition = place.1, "no start offset could be set: {e}");
                }
            }
            state.changes.push(Change::Assigned(places));
            if cooperative { consumer.incremental_assign(tpl) } else { consumer.assign(tpl) }
        } else {
            state.changes.push(Change::Revoked(places));
            if cooperative { consumer.incremental_unassign(tpl) } else { consumer.unassign() }
        };
        if let Err(e) = result {
            tracing::error!("an assignment of partitions failed: {e}");
        }
    }
}
