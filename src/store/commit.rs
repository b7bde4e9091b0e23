//! The one transaction that decisions are written in.

use super::{Commit, Committed, Failure, LIFETIME, NewDelivery, NewOperation, Store, StoreError, checkpoint};
use crate::engine::decision::{Decision, LogEntry, LogKind, Notice, NoticeKind};
use crate::engine::time::Millis;
use crate::fail::{self, Point};
use rusqlite::{Transaction, params};

impl Store {
    /// Writes all of it or nothing. What the store already has (by decision id, by decision id and kind of notice, by the whole
    /// log entry) is ignored, so that a replay changes nothing. After an error the same commit may be tried again.
    pub fn commit(&mut self, commit: &Commit) -> Result<Committed, StoreError> {
        let said = !commit.decisions.is_empty() || !commit.notices.is_empty();
        let committed = self.write(|tx| {
            let (mut out, mut log) = (Committed::default(), Vec::new());
            for (decision, deliveries) in &commit.decisions {
                if insert_decision(tx, decision, &mut log)? {
                    out.deliveries += insert_deliveries(tx, commit.at, decision, deliveries)?;
                    out.new.push(decision.decision.clone());
                } else {
                    out.known.push(decision.decision.clone());
                }
            }
            for (notice, deliveries) in &commit.notices {
                if insert_notice(tx, commit.at, notice, &mut log)? {
                    out.deliveries += insert_deliveries(tx, commit.at, &notice.decision, deliveries)?;
                }
            }
            // As many commits would have written it: one may hold several panes.
            log.extend(commit.log.iter().cloned());
            log.sort_by_key(|entry| entry.at);
            log.iter().try_for_each(|entry| insert_log(tx, entry))?;
            out.operation = commit.operation.as_ref().map(|o| insert_operation(tx, o)).transpose()?;
            if let Some(rules) = &commit.rules {
                tx.execute("DELETE FROM rules", [])?;
                let mut insert = tx.prepare_cached("INSERT INTO rules (file, experiment, text) VALUES (?, ?, ?)")?;
                for rule in rules {
                    insert.execute(params![rule.file, rule.experiment, rule.text])?;
                }
            }
            if let Some(checkpoint) = &commit.checkpoint {
                checkpoint::insert(tx, checkpoint)?;
                fail::at(Point::Checkpoint)?;
            }
            if said {
                fail::at(Point::Commit)?;
            }
            Ok(out)
        })?;
        if commit.checkpoint.is_some() {
            fail::at(Point::Checkpointed)?;
        }
        if said {
            fail::at(Point::Committed)?;
        }
        Ok(committed)
    }
}

/// Whether the decision is new; then `log` tells of it.
fn insert_decision(tx: &Transaction<'_>, d: &Decision, log: &mut Vec<LogEntry>) -> Result<bool, Failure> {
    let added = tx
        .prepare_cached(
            "INSERT INTO decisions (id, experiment, revision, bucket, guardrail, epoch, action, decided_at, body)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            d.decision,
            d.experiment,
            d.revision,
            d.bucket,
            d.guardrail,
            d.epoch,
            d.action.name(),
            d.decided_at,
            serde_json::to_string(d)?
        ])?;
    if added > 0 {
        let whom = if d.bucket.is_empty() { "the experiment" } else { &d.bucket };
        log.push(entry_of(d, d.decided_at, LogKind::Decision, format!("{} {whom}: {}", d.action.name(), d.reason)));
    }
    Ok(added > 0)
}

/// Whether the notice is new. A resolved decision takes back what has not been received yet, but for its record in a topic, which tells of the past.
fn insert_notice(tx: &Transaction<'_>, now: Millis, notice: &Notice, log: &mut Vec<LogEntry>) -> Result<bool, Failure> {
    insert_decision(tx, &notice.decision, log)?;
    let added = tx
        .prepare_cached("INSERT INTO notices (decision, kind, at, text) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING")?
        .execute(params![notice.decision.decision, notice.kind.name(), notice.at, notice.text])?;
    if added == 0 {
        return Ok(false);
    }
    let kind = match notice.kind {
        NoticeKind::Confirmed => Some(LogKind::Confirmed),
        NoticeKind::Resolved => Some(LogKind::Resolved),
        // The operator's own entry says it for all decisions.
        NoticeKind::Held => None,
    };
    if let Some(kind) = kind {
        log.push(entry_of(&notice.decision, notice.at, kind, notice.text.clone()));
    }
    if notice.kind == NoticeKind::Resolved {
        tx.execute(
            "UPDATE outbox SET state = 'cancelled', finished_ms = ?2, last_error = 'resolved before it was received'
             WHERE decision = ?1 AND state = 'pending' AND endpoint NOT LIKE 'kafka:%'",
            params![notice.decision.decision, now],
        )?;
    }
    Ok(true)
}

fn entry_of(decision: &Decision, at: Millis, kind: LogKind, text: String) -> LogEntry {
    LogEntry {
        at,
        experiment: decision.experiment.clone(),
        kind,
        author: decision.author.clone(),
        text,
        decision: Some(decision.decision.clone()),
        links: Vec::new(),
    }
}

fn insert_deliveries(tx: &Transaction<'_>, now: Millis, decision: &Decision, rows: &[NewDelivery]) -> Result<usize, Failure> {
    rows.iter().map(|d| insert_delivery(tx, now, &decision.decision, &decision.experiment, d)).sum()
}

/// How many rows were added: none when its id is there already.
pub(super) fn insert_delivery(
    tx: &Transaction<'_>,
    now: Millis,
    decision: &str,
    experiment: &str,
    d: &NewDelivery,
) -> Result<usize, Failure> {
    Ok(tx
        .prepare_cached(
            "INSERT INTO outbox (id, decision, experiment, endpoint, type, priority, payload, state, next_attempt_ms, created_ms,
                 expires_ms, escalate_to, traceparent)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'pending', ?8, ?8, ?9, ?10, ?11) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            d.id,
            decision,
            experiment,
            d.endpoint,
            d.event_type,
            d.priority as i64,
            d.payload,
            now,
            now.saturating_add(LIFETIME),
            d.escalate_to,
            d.traceparent
        ])?)
}

pub(super) fn insert_log(tx: &Transaction<'_>, entry: &LogEntry) -> Result<(), Failure> {
    tx.prepare_cached(
        "INSERT INTO log (experiment, at, kind, author, text, decision, links) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )?
    .execute(params![
        entry.experiment,
        entry.at,
        entry.kind.name(),
        entry.author,
        entry.text,
        entry.decision.as_deref().unwrap_or_default(),
        serde_json::to_string(&entry.links)?
    ])?;
    Ok(())
}

fn insert_operation(tx: &Transaction<'_>, o: &NewOperation) -> Result<i64, Failure> {
    tx.execute("INSERT INTO operations (at, experiment, body) VALUES (?, ?, ?)", params![o.at, o.experiment, o.body])?;
    Ok(tx.last_insert_rowid())
}
