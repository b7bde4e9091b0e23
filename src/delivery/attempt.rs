//! What to attempt next, and what follows from an answer: all of delivery but the waiting. The dispatcher drives it with Tokio, and the
//! simulation with a clock and a network of its own.

use super::channel::alertmanager;
pub use super::channel::alertmanager::AGAIN;
use super::client::{Answer, Sender};
use super::escalate::{PATIENCE, Trouble, escalations};
pub use super::schedule::LONGEST_WAIT;
use super::schedule::wait;
use crate::clock::Moment;
use crate::engine::time::Millis;
use crate::store::{AttemptEnd, Delivery, LIFETIME, Lane, NewDelivery, Next, Poll, Store, StoreError};
use crate::telemetry;

/// Interventions of one endpoint in flight at once, so that one that hangs does not hold up the next.
pub const INTERVENTIONS: usize = 4;

/// Messages to an Alertmanager that are looked at for what stands: the newest.
const TOLD: u32 = 2_000;

/// What became of an attempt, or of a delivery that was given up without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryEvent {
    pub endpoint: String,
    pub delivery: String,
    pub event_type: String,
    pub result: DeliveryResult,
    pub status: Option<u16>,
    /// From 1; 0 when it was given up without an attempt.
    pub attempt: u32,
    pub duration_ms: Millis,
    /// From the commit of the delivery to its first attempt; on first attempts only.
    pub first_attempt_delay_ms: Option<Millis>,
    /// That of the decision, where it is traced.
    pub trace_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryResult {
    Delivered,
    /// Will be attempted again.
    Failed,
    /// Given up.
    Dead,
}

impl DeliveryResult {
    pub const ALL: [DeliveryResult; 3] = [DeliveryResult::Delivered, DeliveryResult::Failed, DeliveryResult::Dead];

    /// As metrics label it.
    pub fn name(self) -> &'static str {
        match self {
            DeliveryResult::Delivered => "delivered",
            DeliveryResult::Failed => "failed",
            DeliveryResult::Dead => "dead",
        }
    }
}

/// What a lane does next.
pub enum Step {
    /// The delivery, and the number of the attempt.
    Attempt(Box<Delivery>, u32),
    GaveUp(DeliveryEvent),
    /// Nothing is due before this instant of the steady clock.
    SleepUntil(Millis),
    Idle,
}

/// Takes the most urgent due delivery and records that an attempt begins; gives up what has expired or what its endpoint wants
/// no more.
///
/// # Errors
/// The store cannot be read, or what is given up cannot be written.
pub fn claim(store: &mut Store, sender: &Sender, lane: Lane, now: Moment, in_flight: &[String]) -> Result<Step, StoreError> {
    let disabled = store.disabled(sender.name(), &sender.fingerprint())?;
    // What waits for a disabled endpoint is given up at once, whenever it is due.
    let horizon = if disabled.is_some() { Millis::MAX } else { now.steady };
    let delivery = match store.poll(sender.name(), lane, horizon, in_flight)? {
        Poll::Due(delivery) => delivery,
        Poll::At(at) => return Ok(Step::SleepUntil(at)),
        Poll::Idle => return Ok(Step::Idle),
    };
    if let Some(reason) = disabled {
        return give_up(store, &delivery, sender.fallback(), now, &reason).map(Step::GaveUp);
    }
    if now.steady > delivery.expires_ms {
        return give_up(store, &delivery, sender.fallback(), now, &expired(delivery.last_error.as_deref())).map(Step::GaveUp);
    }
    let n = match store.start_attempt(&delivery.id, now.wall) {
        Ok(Some(n)) => n,
        Ok(None) => return Ok(Step::SleepUntil(now.steady)),
        Err(e) if e.is_fenced() => return Err(e),
        // The delivery itself is stored; that its attempt cannot be is no reason to leave users with a bad bucket. Unless it is another
        // daemon that keeps this one from writing.
        Err(e) => {
            store.still_current()?;
            tracing::warn!(delivery = delivery.id, error = %e, "the start of an attempt could not be recorded");
            delivery.attempts + 1
        }
    };
    let thread = match sender.follows_up() {
        // A message outside of its thread is better than none.
        true => store.thread(sender.name(), &delivery.decision).unwrap_or_default(),
        false => None,
    };
    Ok(Step::Attempt(Box::new(Delivery { thread, ..*delivery }), n))
}

fn give_up(store: &mut Store, delivery: &Delivery, fallback: Option<&str>, now: Moment, reason: &str) -> Result<DeliveryEvent, StoreError> {
    let trouble = Trouble { reason, at: now.wall, given_up: true };
    store.give_up(delivery, now, reason, &escalations(delivery, fallback, &trouble))?;
    tracing::error!(delivery = delivery.id, endpoint = delivery.endpoint, reason, "delivery given up");
    Ok(DeliveryEvent {
        endpoint: delivery.endpoint.clone(),
        delivery: delivery.id.clone(),
        event_type: delivery.event_type.clone(),
        result: DeliveryResult::Dead,
        status: None,
        attempt: 0,
        duration_ms: 0,
        first_attempt_delay_ms: None,
        trace_id: None,
    })
}

/// Gives up what is addressed to other endpoints than these.
///
/// # Errors
/// The store cannot be read or written.
pub fn give_up_strays(store: &mut Store, endpoints: &[String], now: Moment) -> Result<Vec<DeliveryEvent>, StoreError> {
    let strays = store.pending_elsewhere(endpoints)?;
    let reason = |d: &Delivery| format!("the configuration has no endpoint `{}`", d.endpoint);
    strays.iter().map(|d| give_up(store, d, None, now, &reason(d))).collect()
}

/// What an Alertmanager is told again every [`AGAIN`], since it forgets what it does not hear of: the bodies of requests. Nothing where the endpoint wants no more.
///
/// # Errors
/// The store cannot be read, or another daemon has taken over.
pub fn reminders(store: &Store, sender: &Sender, now: Moment) -> Result<Vec<String>, StoreError> {
    store.still_current()?;
    if store.disabled(sender.name(), &sender.fingerprint())?.is_some() {
        return Ok(Vec::new());
    }
    Ok(alertmanager::standing(&store.told(sender.name(), TOLD)?, now.wall))
}

/// An attempt that has been made, and what follows.
pub struct Made {
    pub event: DeliveryEvent,
    delivery: Delivery,
    end: AttemptEnd,
    next: Next,
    /// What is sent on its behalf.
    escalations: Vec<NewDelivery>,
    /// The endpoint answered that it wants no more: its name and fingerprint.
    gone: Option<(String, String)>,
}

impl Made {
    /// Attempt `n`, begun and answered at these instants. `jitter` in -1..=1 moves the next one.
    pub fn new(sender: &Sender, delivery: Delivery, n: u32, (begun, at): (Moment, Moment), answer: &Answer, jitter: f64) -> Made {
        let end = AttemptEnd {
            at,
            duration_ms: (at.steady - begun.steady).max(0),
            status: answer.status,
            error: answer.error.clone(),
            receipt: answer.receipt.clone(),
        };
        let (next, escalations) = next(&delivery, n, sender.fallback(), at, answer, jitter);
        let event = DeliveryEvent {
            endpoint: delivery.endpoint.clone(),
            delivery: delivery.id.clone(),
            event_type: delivery.event_type.clone(),
            result: match &next {
                Next::Delivered => DeliveryResult::Delivered,
                Next::Retry { .. } => DeliveryResult::Failed,
                Next::Dead { .. } => DeliveryResult::Dead,
            },
            status: answer.status,
            attempt: n,
            duration_ms: end.duration_ms,
            first_attempt_delay_ms: (n == 1).then(|| (begun.steady - delivery.created_ms).max(0)),
            trace_id: delivery.traceparent.as_deref().and_then(telemetry::trace_id),
        };
        let gone = answer.is_gone().then(|| (sender.name().to_owned(), sender.fingerprint()));
        Made { event, delivery, end, next, escalations, gone }
    }

    /// Whether other lanes may have something to do now.
    pub fn wakes(&self) -> bool {
        !self.escalations.is_empty() || self.gone.is_some()
    }

    /// Writes it down. Until that succeeds the delivery must stay in flight.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn record(&self, store: &mut Store, now: Moment) -> Result<(), StoreError> {
        if let Some((endpoint, fingerprint)) = &self.gone {
            store.disable_endpoint(endpoint, fingerprint, now.wall, "disabled: it answered 410 Gone")?;
        }
        store.finish_attempt(&self.delivery, self.event.attempt, &self.end, &self.next, &self.escalations)
    }
}

/// What follows an attempt, and what is sent on behalf of a delivery that fails.
fn next(delivery: &Delivery, n: u32, fallback: Option<&str>, at: Moment, answer: &Answer, jitter: f64) -> (Next, Vec<NewDelivery>) {
    let Some(error) = &answer.error else { return (Next::Delivered, Vec::new()) };
    let round = n.saturating_sub(delivery.attempts_before);
    let again = at.steady + wait(round, jitter, answer.retry_after);
    let dead = match answer.is_gone() || answer.hopeless {
        true => Some(error.clone()),
        false => (again > delivery.expires_ms).then(|| expired(Some(error))),
    };
    let escalated = |reason: &str, given_up| escalations(delivery, fallback, &Trouble { reason, at: at.wall, given_up });
    match dead {
        Some(reason) => {
            let rows = escalated(&reason, true);
            (Next::Dead { reason }, rows)
        }
        None if round >= PATIENCE => (Next::Retry { at: again }, escalated(&format!("attempt {round}: {error}"), false)),
        None => (Next::Retry { at: again }, Vec::new()),
    }
}

fn expired(last_error: Option<&str>) -> String {
    format!("not received within {} h; last: {}", LIFETIME / 3_600_000, last_error.unwrap_or("no attempt was made"))
}
