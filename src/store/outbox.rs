//! The dispatcher's side of the outbox: what is due, what became of an attempt, which endpoints are disabled.

use super::commit::{insert_delivery, insert_log};
use super::rows::delivery;
use super::{Delivery, Failure, NewDelivery, Store, StoreError};
use crate::engine::decision::{LogEntry, LogKind};
use crate::engine::time::Millis;
use crate::fail::{self, Point};
use rusqlite::{OptionalExtension, Transaction, params};

/// How long a delivery is attempted: 24 hours.
pub const LIFETIME: Millis = 24 * 3_600_000;

/// Deliveries that change what users get never queue behind those that only inform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Intervene,
    Inform,
}

impl Lane {
    /// Lowest and highest priority.
    fn range(self) -> (i64, i64) {
        match self {
            Lane::Intervene => (0, 2),
            Lane::Inform => (3, 3),
        }
    }
}

/// What a lane has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Poll {
    /// Most urgent first, then oldest.
    Due(Box<Delivery>),
    /// Nothing before this instant (ms since the epoch).
    At(Millis),
    Idle,
}

/// The outcome of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptEnd {
    /// Wall clock, ms since the epoch.
    pub at: Millis,
    pub duration_ms: Millis,
    pub status: Option<u16>,
    pub error: Option<String>,
}

/// What follows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    Delivered,
    Retry {
        at: Millis,
    },
    /// Given up, and told to whom the rule pages.
    Dead {
        reason: String,
        escalation: Option<NewDelivery>,
    },
}

impl Store {
    /// The next delivery of a lane, leaving out those `in_flight`.
    pub fn poll(&self, endpoint: &str, lane: Lane, now: Millis, in_flight: &[String]) -> Result<Poll, StoreError> {
        let (low, high) = lane.range();
        let rows = in_flight.len() as i64 + 1;
        self.read(|c| {
            let mut due = c.prepare_cached(
                "SELECT * FROM outbox WHERE state = 'pending' AND endpoint = ? AND priority BETWEEN ? AND ? AND next_attempt_ms <= ?
                 ORDER BY priority, seq LIMIT ?",
            )?;
            for row in due.query_map(params![endpoint, low, high, now, rows], delivery)? {
                let row = row?;
                if !in_flight.contains(&row.id) {
                    return Ok(Poll::Due(Box::new(row)));
                }
            }
            let mut later = c.prepare_cached(
                "SELECT next_attempt_ms FROM outbox WHERE state = 'pending' AND endpoint = ? AND priority BETWEEN ? AND ?
                 AND next_attempt_ms > ? ORDER BY next_attempt_ms LIMIT 1",
            )?;
            let at = later.query_row(params![endpoint, low, high, now], |row| row.get(0)).optional()?;
            Ok(at.map_or(Poll::Idle, Poll::At))
        })
    }

    /// Pending deliveries to endpoints other than these, oldest first, at most 100.
    pub fn pending_elsewhere(&self, endpoints: &[String]) -> Result<Vec<Delivery>, StoreError> {
        let known = serde_json::to_string(endpoints)?;
        self.read(|c| {
            c.prepare_cached(
                "SELECT * FROM outbox WHERE state = 'pending' AND endpoint NOT IN (SELECT value FROM json_each(?)) ORDER BY seq LIMIT 100",
            )?
            .query_map([known], delivery)?
            .collect()
        })
    }

    /// Pending deliveries by endpoint.
    pub fn pending(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(|c| {
            c.prepare_cached("SELECT endpoint, count(*) FROM outbox WHERE state = 'pending' GROUP BY endpoint ORDER BY endpoint")?
                .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?
                .collect()
        })
    }

    /// Records that an attempt begins and returns its number, from 1; `None` when the delivery is no longer pending.
    pub fn start_attempt(&mut self, id: &str, at: Millis) -> Result<Option<u32>, StoreError> {
        let n = self.write(|tx| {
            let n: Option<u32> = tx
                .prepare_cached("UPDATE outbox SET attempts = attempts + 1 WHERE id = ? AND state = 'pending' RETURNING attempts")?
                .query_row([id], |row| row.get(0))
                .optional()?;
            if let Some(n) = n {
                tx.prepare_cached("INSERT INTO attempts (delivery, n, at) VALUES (?, ?, ?)")?.execute(params![id, n, at])?;
            }
            fail::at(Point::Claim)?;
            Ok(n)
        })?;
        fail::at(Point::Claimed)?;
        Ok(n)
    }

    /// Records what became of attempt `n` and what follows. What was received is delivered even if it was cancelled meanwhile.
    pub fn finish_attempt(&mut self, delivery: &Delivery, n: u32, end: &AttemptEnd, next: &Next) -> Result<(), StoreError> {
        self.write(|tx| {
            // The start may have gone unrecorded (a full disk does not hold back what is already decided): then it is added here.
            tx.prepare_cached(
                "INSERT INTO attempts (delivery, n, at, status, error, duration_ms) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (delivery, n)
                 DO UPDATE SET status = excluded.status, error = excluded.error, duration_ms = excluded.duration_ms",
            )?
            .execute(params![delivery.id, n, end.at - end.duration_ms, end.status, end.error, end.duration_ms])?;
            tx.prepare_cached(
                "UPDATE outbox SET attempts = max(attempts, ?2), last_status = coalesce(?3, last_status), last_error = ?4 WHERE id = ?1",
            )?
            .execute(params![delivery.id, n, end.status, end.error])?;
            match next {
                Next::Delivered => {
                    tx.execute(
                        "UPDATE outbox SET state = 'delivered', delivered_ms = ?2, finished_ms = ?2 WHERE id = ?1",
                        params![delivery.id, end.at],
                    )?;
                    let status = end.status.map_or_else(String::new, |s| format!("{s} "));
                    log(tx, delivery, end.at, None, format!("{} via {}: {status}on attempt {n}", delivery.event_type, delivery.endpoint))?;
                }
                Next::Retry { at } => {
                    tx.execute("UPDATE outbox SET next_attempt_ms = ? WHERE id = ? AND state = 'pending'", params![at, delivery.id])?;
                }
                Next::Dead { reason, escalation } => bury(tx, delivery, end.at, reason, escalation.as_ref())?,
            }
            fail::at(Point::Record)?;
            Ok(())
        })?;
        fail::at(Point::Recorded)?;
        Ok(())
    }

    /// Gives a delivery up without an attempt.
    pub fn give_up(&mut self, delivery: &Delivery, at: Millis, reason: &str, escalation: Option<&NewDelivery>) -> Result<(), StoreError> {
        self.write(|tx| bury(tx, delivery, at, reason, escalation))
    }

    /// Makes a delivery pending again, due now, under the same id, for another [`LIFETIME`]; its endpoint is enabled if it was
    /// disabled. `false` when there is no such delivery.
    pub fn redeliver(&mut self, id: &str, now: Millis, author: &str) -> Result<bool, StoreError> {
        self.write(|tx| {
            let found: Option<Delivery> = tx
                .prepare_cached(
                    "UPDATE outbox SET state = 'pending', attempts_before = attempts, next_attempt_ms = ?2, expires_ms = ?3,
                         finished_ms = NULL, delivered_ms = NULL WHERE id = ?1 RETURNING *",
                )?
                .query_row(params![id, now, now.saturating_add(LIFETIME)], delivery)
                .optional()?;
            let Some(d) = found else { return Ok(false) };
            tx.execute("DELETE FROM endpoints WHERE name = ?", [&d.endpoint])?;
            let text = format!("{} via {}: delivery asked for again", d.event_type, d.endpoint);
            log(tx, &d, now, Some(author.to_owned()), text)?;
            Ok(true)
        })
    }

    /// Remembers that an endpoint wants no more. `fingerprint` stands for its configuration: see [`Store::disabled`].
    pub fn disable_endpoint(&mut self, name: &str, fingerprint: &str, at: Millis, reason: &str) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute(
                "INSERT INTO endpoints (name, fingerprint, disabled_at, reason) VALUES (?, ?, ?, ?)
                 ON CONFLICT (name) DO UPDATE SET fingerprint = excluded.fingerprint, disabled_at = excluded.disabled_at, reason = excluded.reason",
                params![name, fingerprint, at, reason],
            )?;
            Ok(())
        })
    }

    /// Names of the endpoints that answered 410 and are left alone.
    pub fn disabled_endpoints(&self) -> Result<Vec<String>, StoreError> {
        self.read(|c| c.prepare_cached("SELECT name FROM endpoints ORDER BY name")?.query_map([], |row| row.get(0))?.collect())
    }

    /// Why an endpoint is disabled, if it is. It stays so until its configuration changes or an operator redelivers.
    pub fn disabled(&self, name: &str, fingerprint: &str) -> Result<Option<String>, StoreError> {
        self.read(|c| {
            c.prepare_cached("SELECT reason FROM endpoints WHERE name = ? AND fingerprint = ?")?
                .query_row([name, fingerprint], |row| row.get(0))
                .optional()
        })
    }
}

fn bury(tx: &Transaction<'_>, d: &Delivery, at: Millis, reason: &str, escalation: Option<&NewDelivery>) -> Result<(), Failure> {
    let buried = tx.execute(
        "UPDATE outbox SET state = 'dead', finished_ms = ?2, last_error = ?3 WHERE id = ?1 AND state = 'pending'",
        params![d.id, at, reason],
    )?;
    if buried == 0 {
        return Ok(());
    }
    if let Some(escalation) = escalation {
        insert_delivery(tx, at, &d.decision, &d.experiment, escalation)?;
    }
    log(tx, d, at, None, format!("{} via {} given up: {reason}", d.event_type, d.endpoint))?;
    fail::at(Point::GiveUp)?;
    Ok(())
}

fn log(tx: &Transaction<'_>, d: &Delivery, at: Millis, author: Option<String>, text: String) -> Result<(), Failure> {
    let (experiment, decision) = (d.experiment.clone(), Some(d.decision.clone()));
    insert_log(tx, &LogEntry { at, experiment, kind: LogKind::Delivery, author, text, decision })
}
