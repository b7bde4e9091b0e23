//! The dispatcher's side of the outbox: what is due, what became of an attempt, which endpoints are disabled.

use super::commit::{insert_delivery, insert_log};
use super::rows::delivery;
use super::{Delivery, Failure, NewDelivery, Priority, Store, StoreError};
use crate::clock::Moment;
use crate::engine::decision::{LogEntry, LogKind};
use crate::engine::time::Millis;
use crate::fail::{self, Point};
use rusqlite::{OptionalExtension, Transaction, params};

/// How long a delivery is attempted: 24 hours.
pub const LIFETIME: Millis = 24 * 3_600_000;

/// By the index of what is pending, without a sort.
pub(super) const FIRST_PENDING: &str =
    "SELECT * FROM outbox WHERE state = 'pending' AND endpoint = ? AND priority = ? ORDER BY next_attempt_ms, seq LIMIT ?";

/// By the index of an endpoint's messages, without a sort.
pub(super) const TOLD: &str = "
    SELECT * FROM outbox WHERE endpoint = ? AND (experiment = '' OR experiment IN (SELECT experiment FROM rules)) ORDER BY seq DESC LIMIT ?";

/// Looks at one row of each endpoint, however many are pending.
pub(super) const PENDING_ELSEWHERE: &str = "
    WITH RECURSIVE names (name) AS (
        SELECT min(endpoint) FROM outbox WHERE state = 'pending'
        UNION ALL SELECT (SELECT min(endpoint) FROM outbox WHERE state = 'pending' AND endpoint > name) FROM names WHERE name IS NOT NULL)
    SELECT outbox.* FROM names CROSS JOIN outbox ON state = 'pending' AND endpoint = name
    WHERE name NOT IN (SELECT value FROM json_each(?)) LIMIT 100";

/// Deliveries that change what users get never queue behind those that only inform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Intervene,
    Inform,
}

impl Lane {
    fn priorities(self) -> &'static [Priority] {
        match self {
            Lane::Intervene => &[Priority::Kill, Priority::Rollback, Priority::Pause],
            Lane::Inform => &[Priority::Inform],
        }
    }
}

/// What a lane has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Poll {
    /// Most urgent first, then longest due.
    Due(Box<Delivery>),
    /// Nothing before this instant.
    At(Millis),
    Idle,
}

/// The outcome of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptEnd {
    pub at: Moment,
    pub duration_ms: Millis,
    pub status: Option<u16>,
    pub error: Option<String>,
    /// What the receiver knows the message by.
    pub receipt: Option<String>,
}

/// What follows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    Delivered,
    /// By the steady clock.
    Retry {
        at: Millis,
    },
    /// Given up.
    Dead {
        reason: String,
    },
}

impl Store {
    /// The next delivery of a lane, leaving out those `in_flight`. What it costs does not grow with what is pending.
    pub fn poll(&self, endpoint: &str, lane: Lane, now: Millis, in_flight: &[String]) -> Result<Poll, StoreError> {
        let rows = in_flight.len() as i64 + 1;
        self.read(|c| {
            let mut first = c.prepare_cached(FIRST_PENDING)?;
            let mut later: Option<Millis> = None;
            for &priority in lane.priorities() {
                for row in first.query_map(params![endpoint, priority as i64, rows], delivery)? {
                    let row = row?;
                    if in_flight.contains(&row.id) {
                        continue;
                    }
                    if row.next_attempt_ms <= now {
                        return Ok(Poll::Due(Box::new(row)));
                    }
                    later = Some(later.map_or(row.next_attempt_ms, |at| at.min(row.next_attempt_ms)));
                    break;
                }
            }
            Ok(later.map_or(Poll::Idle, Poll::At))
        })
    }

    /// Brings schedules that another process has left behind into the reach of this one's clock: nothing is due later than `wait` from now,
    /// nor lives longer than [`LIFETIME`].
    pub fn reschedule(&mut self, now: Millis, wait: Millis) -> Result<(), StoreError> {
        self.write(|tx| {
            let (due, expires) = (now.saturating_add(wait), now.saturating_add(LIFETIME));
            tx.execute(
                "UPDATE outbox SET next_attempt_ms = min(next_attempt_ms, ?1), expires_ms = min(expires_ms, ?2)
                 WHERE state = 'pending' AND (next_attempt_ms > ?1 OR expires_ms > ?2)",
                params![due, expires],
            )?;
            Ok(())
        })
    }

    /// Pending deliveries to endpoints other than these, at most 100.
    pub fn pending_elsewhere(&self, endpoints: &[String]) -> Result<Vec<Delivery>, StoreError> {
        let known = serde_json::to_string(endpoints)?;
        self.read(|c| c.prepare_cached(PENDING_ELSEWHERE)?.query_map([known], delivery)?.collect())
    }

    /// What an endpoint knows the first message by that it received about a matter: a guardrail of a bucket until it is re-armed.
    pub fn thread(&self, endpoint: &str, decision: &str) -> Result<Option<String>, StoreError> {
        self.read(|c| {
            c.prepare_cached(
                "SELECT outbox.receipt FROM decisions AS about
                 JOIN decisions AS told ON told.experiment = about.experiment AND told.revision = about.revision
                     AND told.bucket = about.bucket AND told.guardrail = about.guardrail AND told.epoch = about.epoch
                     AND (about.experiment <> '' OR told.id = about.id)
                 JOIN outbox ON outbox.decision = told.id
                 WHERE about.id = ?2 AND outbox.endpoint = ?1 AND outbox.receipt IS NOT NULL ORDER BY outbox.seq LIMIT 1",
            )?
            .query_row([endpoint, decision], |row| row.get(0))
            .optional()
        })
    }

    /// Messages to an endpoint in the order in which they were decided, received or not; of more than `limit`, the newest. None about an
    /// experiment without rules: nobody watches it, and nobody can resume it.
    pub fn told(&self, endpoint: &str, limit: u32) -> Result<Vec<Delivery>, StoreError> {
        let mut rows: Vec<Delivery> = self.read(|c| c.prepare_cached(TOLD)?.query_map(params![endpoint, limit], delivery)?.collect())?;
        rows.reverse();
        Ok(rows)
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
    ///
    /// `escalations` are sent on behalf of a delivery that fails.
    pub fn finish_attempt(
        &mut self,
        delivery: &Delivery,
        n: u32,
        end: &AttemptEnd,
        next: &Next,
        escalations: &[NewDelivery],
    ) -> Result<(), StoreError> {
        self.write(|tx| {
            // The start may have gone unrecorded (a full disk does not hold back what is already decided): then it is added here.
            tx.prepare_cached(
                "INSERT INTO attempts (delivery, n, at, status, error, duration_ms) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (delivery, n)
                 DO UPDATE SET status = excluded.status, error = excluded.error, duration_ms = excluded.duration_ms",
            )?
            .execute(params![delivery.id, n, end.at.wall - end.duration_ms, end.status, end.error, end.duration_ms])?;
            tx.prepare_cached(
                "UPDATE outbox SET attempts = max(attempts, ?2), last_status = coalesce(?3, last_status), last_error = ?4
                 WHERE id = ?1 AND (state = 'pending' OR ?4 IS NULL)",
            )?
            .execute(params![delivery.id, n, end.status, end.error])?;
            match next {
                Next::Delivered => {
                    tx.execute(
                        "UPDATE outbox SET state = 'delivered', delivered_ms = ?2, finished_ms = ?2, receipt = ?3 WHERE id = ?1",
                        params![delivery.id, end.at.wall, end.receipt],
                    )?;
                    let status = end.status.map_or_else(String::new, |s| format!("{s} "));
                    log(
                        tx,
                        delivery,
                        end.at.wall,
                        None,
                        format!("{} via {}: {status}on attempt {n}", delivery.event_type, delivery.endpoint),
                    )?;
                }
                Next::Retry { at } => {
                    tx.execute("UPDATE outbox SET next_attempt_ms = ? WHERE id = ? AND state = 'pending'", params![at, delivery.id])?;
                }
                Next::Dead { reason } => bury(tx, delivery, end.at.wall, reason)?,
            }
            escalate(tx, delivery, end.at, escalations)?;
            fail::at(Point::Record)?;
            Ok(())
        })?;
        fail::at(Point::Recorded)?;
        Ok(())
    }

    /// Gives a delivery up without an attempt.
    pub fn give_up(&mut self, delivery: &Delivery, at: Moment, reason: &str, escalations: &[NewDelivery]) -> Result<(), StoreError> {
        self.write(|tx| {
            bury(tx, delivery, at.wall, reason)?;
            escalate(tx, delivery, at, escalations)
        })
    }

    /// Makes a delivery pending again, due now, under the same id, for another [`LIFETIME`]; its endpoint is enabled if it was
    /// disabled. `false` when there is no such delivery.
    pub fn redeliver(&mut self, id: &str, at: Moment, author: &str) -> Result<bool, StoreError> {
        self.write(|tx| {
            let found: Option<Delivery> = tx
                .prepare_cached(
                    "UPDATE outbox SET state = 'pending', attempts_before = attempts, next_attempt_ms = ?2, expires_ms = ?3,
                         finished_ms = NULL, delivered_ms = NULL WHERE id = ?1 RETURNING *",
                )?
                .query_row(params![id, at.steady, at.steady.saturating_add(LIFETIME)], delivery)
                .optional()?;
            let Some(d) = found else { return Ok(false) };
            tx.execute("DELETE FROM endpoints WHERE name = ?", [&d.endpoint])?;
            let text = format!("{} via {}: delivery asked for again", d.event_type, d.endpoint);
            log(tx, &d, at.wall, Some(author.to_owned()), text)?;
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

fn bury(tx: &Transaction<'_>, d: &Delivery, at: Millis, reason: &str) -> Result<(), Failure> {
    let buried = tx.execute(
        "UPDATE outbox SET state = 'dead', finished_ms = ?2, last_error = ?3 WHERE id = ?1 AND state = 'pending'",
        params![d.id, at, reason],
    )?;
    if buried > 0 {
        log(tx, d, at, None, format!("{} via {} given up: {reason}", d.event_type, d.endpoint))?;
        fail::at(Point::GiveUp)?;
    }
    Ok(())
}

/// Sends on behalf of a delivery that fails, unless it has been received or taken back meanwhile. What is there already is not sent again;
/// nor does a message go to an endpoint that has had it, however the configuration has changed.
fn escalate(tx: &Transaction<'_>, d: &Delivery, at: Moment, rows: &[NewDelivery]) -> Result<(), Failure> {
    let root = d.escalates.as_ref().unwrap_or(&d.id);
    let wanted = "SELECT state IN ('pending', 'dead') FROM outbox WHERE id = ?";
    if rows.is_empty() || tx.prepare_cached(wanted)?.query_row([&d.id], |row| row.get(0)).optional()? != Some(true) {
        return Ok(());
    }
    for row in rows {
        let had: i64 = tx
            .prepare_cached(
                "SELECT count(*) FROM outbox WHERE decision = ?1 AND endpoint = ?2 AND type = ?3 AND ?3 = ?4 AND (id = ?5 OR escalates = ?5)",
            )?
            .query_row(params![d.decision, row.endpoint, row.event_type, d.event_type, root], |row| row.get(0))?;
        if had == 0 && insert_delivery(tx, at.steady, &d.decision, &d.experiment, row)? > 0 {
            tx.prepare_cached("UPDATE outbox SET escalates = ? WHERE id = ?")?.execute(params![root, row.id])?;
            log(tx, d, at.wall, None, format!("{} via {} fails: {} to {}", d.event_type, d.endpoint, row.event_type, row.endpoint))?;
        }
    }
    Ok(())
}

fn log(tx: &Transaction<'_>, d: &Delivery, at: Millis, author: Option<String>, text: String) -> Result<(), Failure> {
    let (experiment, decision) = (d.experiment.clone(), Some(d.decision.clone()));
    insert_log(tx, &LogEntry { at, experiment, kind: LogKind::Delivery, author, text, decision, links: Vec::new() })
}
