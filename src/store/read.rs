//! Questions about what is stored.

use super::rows::{delivery, logged, stored_decision};
use super::{Attempt, Delivery, DeliveryRecord, Logged, RuleText, Store, StoreError, StoredDecision, StoredOperation};
use crate::engine::decision::LogQuery;
use rusqlite::{Connection, OptionalExtension, Params, Row, params};

impl Store {
    pub fn decision(&self, id: &str) -> Result<Option<StoredDecision>, StoreError> {
        self.read(|c| c.prepare_cached("SELECT * FROM decisions WHERE id = ?")?.query_row([id], stored_decision).optional())
    }

    /// The newest decisions of an experiment, or of all, newest first.
    pub fn decisions(&self, experiment: Option<&str>, limit: u32) -> Result<Vec<StoredDecision>, StoreError> {
        let sql = "SELECT * FROM decisions WHERE ?1 IS NULL OR experiment = ?1 ORDER BY seq DESC LIMIT ?2";
        self.read(|c| all(c, sql, params![experiment, limit], stored_decision))
    }

    /// Decisions after a sequence number ([`super::LoadedCheckpoint::decisions_seq`]), in order.
    pub fn decisions_after(&self, seq: i64) -> Result<Vec<StoredDecision>, StoreError> {
        self.read(|c| all(c, "SELECT * FROM decisions WHERE seq > ? ORDER BY seq", [seq], stored_decision))
    }

    /// Operators' commands after a sequence number ([`super::LoadedCheckpoint::operations_seq`]), in order.
    pub fn operations_after(&self, seq: i64) -> Result<Vec<StoredOperation>, StoreError> {
        self.read(|c| {
            all(c, "SELECT * FROM operations WHERE seq > ? ORDER BY seq", [seq], |row| {
                Ok(StoredOperation { seq: row.get("seq")?, at: row.get("at")?, experiment: row.get("experiment")?, body: row.get("body")? })
            })
        })
    }

    /// The texts of the rules in force, by file.
    pub fn rules(&self) -> Result<Vec<RuleText>, StoreError> {
        self.read(|c| {
            let rule = |row: &Row<'_>| Ok(RuleText { file: row.get("file")?, experiment: row.get("experiment")?, text: row.get("text")? });
            all(c, "SELECT * FROM rules ORDER BY file", [], rule)
        })
    }

    /// A page of the execution log, oldest first.
    pub fn log(&self, experiment: &str, asked: &LogQuery) -> Result<Vec<Logged>, StoreError> {
        let kinds: Vec<&str> = asked.kinds.iter().map(|kind| kind.name()).collect();
        let kinds = serde_json::to_string(&kinds)?;
        let sql = "SELECT *, (SELECT traceparent FROM outbox WHERE outbox.decision = log.decision ORDER BY seq LIMIT 1) AS traceparent
             FROM log WHERE experiment = ?1 AND seq > ?2 AND at >= ?3
             AND (?4 = '[]' OR kind IN (SELECT value FROM json_each(?4))) ORDER BY seq LIMIT ?5";
        self.read(|c| all(c, sql, params![experiment, asked.after, asked.since, kinds, asked.limit], logged))
    }

    /// The deliveries of a decision and of the notices about it, with every attempt.
    pub fn deliveries(&self, decision: &str) -> Result<Vec<DeliveryRecord>, StoreError> {
        self.read(|c| {
            let rows = all(c, "SELECT * FROM outbox WHERE decision = ? ORDER BY seq", [decision], delivery)?;
            rows.into_iter().map(|d| record(c, d)).collect()
        })
    }

    /// The newest rows of the outbox with every attempt, newest first.
    pub fn newest_deliveries(&self, limit: u32) -> Result<Vec<DeliveryRecord>, StoreError> {
        self.outbox(limit)?.into_iter().map(|d| self.read(|c| record(c, d))).collect()
    }

    pub fn delivery(&self, id: &str) -> Result<Option<DeliveryRecord>, StoreError> {
        self.read(|c| {
            let found = c.prepare_cached("SELECT * FROM outbox WHERE id = ?")?.query_row([id], delivery).optional()?;
            found.map(|d| record(c, d)).transpose()
        })
    }

    /// The newest rows of the outbox, newest first.
    pub fn outbox(&self, limit: u32) -> Result<Vec<Delivery>, StoreError> {
        self.read(|c| all(c, "SELECT * FROM outbox ORDER BY seq DESC LIMIT ?", [limit], delivery))
    }
}

fn all<T>(c: &Connection, sql: &str, params: impl Params, map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<Vec<T>> {
    c.prepare_cached(sql)?.query_map(params, map)?.collect()
}

fn record(c: &Connection, delivery: Delivery) -> rusqlite::Result<DeliveryRecord> {
    let history = all(c, "SELECT * FROM attempts WHERE delivery = ? ORDER BY n", [&delivery.id], |row| {
        Ok(Attempt {
            n: row.get("n")?,
            at: row.get("at")?,
            status: row.get("status")?,
            error: row.get("error")?,
            duration_ms: row.get("duration_ms")?,
        })
    })?;
    Ok(DeliveryRecord { delivery, history })
}
