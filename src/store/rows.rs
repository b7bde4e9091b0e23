//! What goes into the store and what comes out of it.

use super::LIFETIME;
use crate::engine::decision::{Action, Decision, LogEntry, LogKind, Notice};
use crate::engine::time::Millis;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Everything that one step of the daemon writes, in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// By the steady clock: when deliveries are created and first due.
    pub at: Millis,
    pub decisions: Vec<(Decision, Vec<NewDelivery>)>,
    pub notices: Vec<(Notice, Vec<NewDelivery>)>,
    pub log: Vec<LogEntry>,
    pub operation: Option<NewOperation>,
    pub checkpoint: Option<super::Checkpoint>,
    /// The rules that are in force from here on, all of them.
    pub rules: Option<Vec<RuleText>>,
}

/// The text of a rule file that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleText {
    pub file: String,
    /// `None` of a file of sources.
    pub experiment: Option<String>,
    pub text: String,
}

/// What a commit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Ids of the decisions that were not there before.
    pub new: Vec<String>,
    /// Ids of those that were: repeated by a replay, and ignored with their deliveries.
    pub known: Vec<String>,
    /// Outbox rows added; wake the dispatcher when there are any.
    pub deliveries: usize,
    /// Sequence number of [`Commit::operation`].
    pub operation: Option<i64>,
}

/// A message on its way to an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDelivery {
    /// The `webhook-id`: the same on every attempt.
    pub id: String,
    /// Name of the endpoint, as `config/` defines it.
    pub endpoint: String,
    /// `guardrail.rollback` …
    pub event_type: &'static str,
    pub priority: Priority,
    /// The webhook body, byte for byte.
    pub payload: String,
    /// Endpoint that is told when this one does not receive it.
    pub escalate_to: Option<String>,
    /// W3C trace context of the decision.
    pub traceparent: Option<String>,
}

/// Order within an endpoint; the first three travel in a lane of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Kill = 0,
    Rollback = 1,
    Pause = 2,
    Inform = 3,
}

impl Priority {
    pub(super) fn from_rank(rank: i64) -> Priority {
        match rank {
            0 => Priority::Kill,
            1 => Priority::Rollback,
            2 => Priority::Pause,
            _ => Priority::Inform,
        }
    }
}

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delivery {
    pub id: String,
    pub decision: String,
    pub experiment: String,
    pub endpoint: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub priority: Priority,
    #[serde(skip)]
    pub payload: String,
    pub state: DeliveryState,
    /// Attempts begun.
    pub attempts: u32,
    /// Attempts begun before the last redelivery: the schedule starts again from there.
    #[serde(skip)]
    pub attempts_before: u32,
    /// Times of the schedule are of the steady clock ([`crate::clock::Moment`]).
    pub next_attempt_ms: Millis,
    pub created_ms: Millis,
    /// No attempt is begun after this.
    pub expires_ms: Millis,
    /// Wall clock, ms since the epoch.
    pub delivered_ms: Option<Millis>,
    /// HTTP status of the last attempt that had one.
    pub last_status: Option<u16>,
    pub last_error: Option<String>,
    /// The delivery on whose behalf this one is made, because that one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escalates: Option<String>,
    #[serde(skip)]
    pub escalate_to: Option<String>,
    #[serde(skip)]
    pub traceparent: Option<String>,
    /// What the endpoint knows its first message about the same matter by: see [`Store::thread`](super::Store::thread).
    #[serde(skip)]
    pub thread: Option<String>,
}

impl Delivery {
    /// One of no decision that is due `now` and has not been attempted, behind all others: for rehearsals and tests.
    pub fn pending(id: &str, endpoint: &str, event_type: &str, payload: String, now: Millis) -> Delivery {
        Delivery {
            id: id.to_owned(),
            decision: String::new(),
            experiment: String::new(),
            endpoint: endpoint.to_owned(),
            event_type: event_type.to_owned(),
            priority: Priority::Inform,
            payload,
            state: DeliveryState::Pending,
            attempts: 0,
            attempts_before: 0,
            next_attempt_ms: now,
            created_ms: now,
            expires_ms: now.saturating_add(LIFETIME),
            delivered_ms: None,
            last_status: None,
            last_error: None,
            escalates: None,
            escalate_to: None,
            traceparent: None,
            thread: None,
        }
    }
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Pending,
    Delivered,
    /// Given up: expired, or its endpoint is disabled or gone.
    Dead,
    /// An operator resumed the experiment before it was received.
    Cancelled,
}

/// One attempt at a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// From 1.
    pub n: u32,
    /// Wall clock of its start, ms since the epoch.
    pub at: Millis,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    pub error: Option<String>,
    /// Absent while in flight, or when the daemon stopped in the middle of it.
    pub duration_ms: Option<Millis>,
}

/// A delivery and all attempts at it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeliveryRecord {
    #[serde(flatten)]
    pub delivery: Delivery,
    pub history: Vec<Attempt>,
}

/// A decision as it was written.
#[derive(Clone, Debug)]
pub struct StoredDecision {
    pub seq: i64,
    pub id: String,
    pub experiment: String,
    pub revision: u32,
    pub bucket: String,
    pub guardrail: String,
    pub epoch: u32,
    pub action: Action,
    pub decided_at: Millis,
    /// The decision object of the command line, the log and the webhooks.
    pub body: Box<RawValue>,
}

/// An entry of the execution log, with its place in it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Logged {
    pub seq: i64,
    #[serde(flatten)]
    pub entry: LogEntry,
    /// W3C trace context in which the entry's decision was made, where something was sent for it and traces are on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// An operator's command, to be applied again after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOperation {
    /// ms since the epoch.
    pub at: Millis,
    pub experiment: String,
    /// JSON text; its form is the writer's own.
    pub body: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredOperation {
    pub seq: i64,
    pub at: Millis,
    pub experiment: String,
    pub body: String,
}

/// A plain enum value by its serde name, as columns hold it.
pub(super) fn from_word<T: DeserializeOwned>(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_value(serde_json::Value::String(text)).map_err(|e| conversion(row, column, e))
}

pub(super) fn conversion(row: &rusqlite::Row<'_>, column: &str, e: serde_json::Error) -> rusqlite::Error {
    let index = row.as_ref().column_index(column).unwrap_or(0);
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(e))
}

pub(super) fn logged(row: &rusqlite::Row<'_>) -> rusqlite::Result<Logged> {
    let (decision, links): (String, String) = (row.get("decision")?, row.get("links")?);
    let kind: LogKind = from_word(row, "kind")?;
    let entry = LogEntry {
        at: row.get("at")?,
        experiment: row.get("experiment")?,
        kind,
        author: row.get("author")?,
        text: row.get("text")?,
        decision: Some(decision).filter(|d| !d.is_empty()),
        links: serde_json::from_str(&links).map_err(|e| conversion(row, "links", e))?,
    };
    Ok(Logged { seq: row.get("seq")?, entry, traceparent: row.get("traceparent")? })
}

pub(super) fn stored_decision(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredDecision> {
    let body: String = row.get("body")?;
    Ok(StoredDecision {
        seq: row.get("seq")?,
        id: row.get("id")?,
        experiment: row.get("experiment")?,
        revision: row.get("revision")?,
        bucket: row.get("bucket")?,
        guardrail: row.get("guardrail")?,
        epoch: row.get("epoch")?,
        action: from_word(row, "action")?,
        decided_at: row.get("decided_at")?,
        body: RawValue::from_string(body).map_err(|e| conversion(row, "body", e))?,
    })
}

pub(super) fn delivery(row: &rusqlite::Row<'_>) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        id: row.get("id")?,
        decision: row.get("decision")?,
        experiment: row.get("experiment")?,
        endpoint: row.get("endpoint")?,
        event_type: row.get("type")?,
        priority: Priority::from_rank(row.get("priority")?),
        payload: row.get("payload")?,
        state: from_word(row, "state")?,
        attempts: row.get("attempts")?,
        attempts_before: row.get("attempts_before")?,
        next_attempt_ms: row.get("next_attempt_ms")?,
        created_ms: row.get("created_ms")?,
        expires_ms: row.get("expires_ms")?,
        delivered_ms: row.get("delivered_ms")?,
        last_status: row.get("last_status")?,
        last_error: row.get("last_error")?,
        escalates: row.get("escalates")?,
        escalate_to: row.get("escalate_to")?,
        traceparent: row.get("traceparent")?,
        thread: None,
    })
}
