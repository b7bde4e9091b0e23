//! Decisions to a Kafka topic (`kafka.decisions_topic`): a lane of the outbox like that of an endpoint, with a producer at its end.
//!
//! At least once, in the order of decisions: the next is sent when the brokers have the one before.

use crate::clock;
use crate::delivery::Waker;
use crate::engine::time::Millis;
use crate::ingest::produce::Producer;
use crate::store::{AttemptEnd, Lane, Next, Poll, Store, StoreError};
use crate::telemetry::{Metrics, names};
use std::time::Duration;

/// Between two attempts, ms. Within each librdkafka has tried for ten seconds.
const AGAIN: Millis = 5_000;
/// Pause after the store has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

pub struct Publisher {
    pub store: Store,
    pub producer: Producer,
    /// As the outbox names the topic.
    pub endpoint: String,
    pub metrics: Metrics,
}

impl Publisher {
    /// Goes on until the runtime ends. What is in flight then is sent again at the next start.
    pub async fn run(mut self, waker: Waker) {
        let mut wake = waker.subscribe();
        loop {
            wake.mark_unchanged();
            let Ok((publisher, next)) = tokio::task::spawn_blocking(move || {
                let next = self.step();
                (self, next)
            })
            .await
            else {
                return;
            };
            self = publisher;
            let sleep = match next {
                Ok(pause) => pause,
                Err(error) if error.is_fenced() => return,
                Err(error) => {
                    tracing::warn!(endpoint = self.endpoint, %error, "the outbox could not be read or written");
                    Some(AFTER_FAILURE)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => {}
                changed = wake.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Sends what is due; how long there is nothing to do then, if that is known.
    fn step(&mut self) -> Result<Option<Duration>, StoreError> {
        let now = clock::moment();
        let delivery = match self.store.poll(&self.endpoint, Lane::Inform, now.steady, &[])? {
            Poll::Idle => return Ok(None),
            Poll::At(at) => return Ok(Some(Duration::from_millis((at - now.steady).max(1).unsigned_abs()))),
            Poll::Due(delivery) => delivery,
        };
        if now.steady > delivery.expires_ms {
            let reason = format!("not received in time; last: {}", delivery.last_error.as_deref().unwrap_or("no attempt was made"));
            self.store.give_up(&delivery, now, &reason, &[])?;
            self.count("dead");
            return Ok(Some(Duration::ZERO));
        }
        let Some(n) = self.store.start_attempt(&delivery.id, now.wall)? else { return Ok(Some(Duration::ZERO)) };
        let error = self.producer.send(&delivery.experiment, &delivery.id, &delivery.payload).err();
        let at = clock::moment();
        let next = match &error {
            None => Next::Delivered,
            Some(error) => {
                tracing::warn!(endpoint = self.endpoint, delivery = delivery.id, error, "not delivered");
                Next::Retry { at: at.steady + AGAIN }
            }
        };
        self.count(if error.is_none() { "delivered" } else { "failed" });
        let end = AttemptEnd { at, duration_ms: at.steady - now.steady, status: None, error, receipt: None };
        self.store.finish_attempt(&delivery, n, &end, &next, &[])?;
        Ok(Some(Duration::ZERO))
    }

    fn count(&self, result: &str) {
        self.metrics.add(&names::DELIVERY_ATTEMPTS, &[&self.endpoint, result], 1.0);
    }
}
