//! Kafka out: one topic, and a record at a time, each of which the brokers have before the next step.

use super::kafka::KafkaConfig;
use super::oauth::Oauth;
use crate::engine::time::Millis;
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use std::sync::mpsc::{SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

/// librdkafka gives a record up after this long, and says so.
const PATIENCE: &str = "10000";
/// How long one look for an answer may take.
const LOOK: Duration = Duration::from_millis(100);

/// A producer of its own, by the same settings as the consumer's.
pub struct Producer {
    producer: BaseProducer<Receipts>,
    topic: String,
}

impl Producer {
    /// # Errors
    /// librdkafka refuses the settings. Brokers need not be there.
    pub fn new(config: &KafkaConfig, topic: &str, clock: fn() -> Millis) -> Result<Producer, KafkaError> {
        let mut client = ClientConfig::new();
        client.set("client.id", "guardraild").set("reconnect.backoff.max.ms", "5000");
        for (name, value) in &config.properties {
            client.set(name, value);
        }
        // Every in-sync replica has it, and librdkafka's own repeats do not double it.
        for (name, value) in [
            ("bootstrap.servers", config.brokers.as_str()),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("message.timeout.ms", PATIENCE),
        ] {
            client.set(name, value);
        }
        let receipts = Receipts { oauth: config.oauth.clone().map(|oauth| Oauth::new(oauth, clock)) };
        Ok(Producer { producer: BaseProducer::from_config_and_context(&client, receipts)?, topic: topic.to_owned() })
    }

    /// Sends a record and waits until the brokers have it, for a few seconds more than ten at most. `id` becomes its header `webhook-id`.
    ///
    /// # Errors
    /// In librdkafka's words; then it may have been received all the same.
    pub fn send(&self, key: &str, id: &str, payload: &str) -> Result<(), String> {
        let (receipt, answer) = sync_channel(1);
        let headers = OwnedHeaders::new().insert(Header { key: "webhook-id", value: Some(id) });
        let record = BaseRecord::with_opaque_to(&self.topic, Box::new(receipt)).key(key).payload(payload).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error.to_string())?;
        loop {
            self.producer.poll(LOOK);
            match answer.try_recv() {
                Ok(result) => return result,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err("the producer has ended".to_owned()),
            }
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // Nothing is in flight between two sends.
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
    }
}

struct Receipts {
    oauth: Option<Oauth>,
}

impl ClientContext for Receipts {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        // Each attempt that fails is told with the delivery.
        tracing::debug!(facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "{reason}");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let oauth = self.oauth.as_ref().ok_or("OAUTHBEARER is asked for, but no source of tokens is configured")?;
        Ok(oauth.token()?)
    }
}

impl ProducerContext for Receipts {
    type DeliveryOpaque = Box<SyncSender<Result<(), String>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, receipt: Self::DeliveryOpaque) {
        // Whoever waited may have gone.
        let _ = receipt.send(result.as_ref().map(|_| ()).map_err(|(error, _)| error.to_string()));
    }
}
