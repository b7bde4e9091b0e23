//! What a round has to add up to: decisions against a backtest, the receiver's log against the outbox.

use super::heard;
use anyhow::{Context, ensure};
use guardraild::tools::receiver::Delivery;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// What was found.
#[derive(Default)]
pub struct Found {
    pub decisions: u64,
    pub deliveries: u64,
    pub requests: u64,
    /// Requests under an id that had been accepted: their acknowledgement was cut off.
    pub repeated: u64,
    pub lost: u64,
    pub doubled: u64,
    pub faults: Vec<String>,
}

impl Found {
    fn lose(&mut self, what: String) {
        self.lost += 1;
        self.faults.push(what);
    }

    fn double(&mut self, what: String) {
        self.doubled += 1;
        self.faults.push(what);
    }
}

/// The receiver's log.
#[derive(Default)]
pub struct Ledger {
    /// By id: requests, and those accepted.
    heard: BTreeMap<String, (u64, u64)>,
    /// Ids whose receipt was on the disk of a dead daemon: nobody may send them again.
    settled: BTreeSet<String>,
    again: BTreeSet<String>,
}

impl Ledger {
    pub fn hear(&mut self, deliveries: impl Iterator<Item = Delivery>) {
        for (id, accepted) in deliveries.filter_map(|d| heard(&d)) {
            if self.settled.contains(&id) {
                self.again.insert(id.clone());
            }
            let (requests, accepts) = self.heard.entry(id).or_default();
            *requests += 1;
            *accepts += u64::from(accepted);
        }
    }

    pub fn requests(&self) -> u64 {
        self.heard.values().map(|(requests, _)| requests).sum()
    }

    /// What was sent must be on the disk of the daemon that sent it. A copy is read, so that the next one finds what it left.
    pub fn look_at_the_dead(&mut self, state: &Path, found: &mut Found) -> anyhow::Result<()> {
        let copy = tempfile::tempdir()?;
        if !state.join("guardraild.db").exists() {
            ensure!(self.heard.is_empty(), "there were requests before there was a database");
            return Ok(());
        }
        for name in ["guardraild.db", "guardraild.db-wal", "guardraild.db-journal"] {
            if state.join(name).exists() {
                std::fs::copy(state.join(name), copy.path().join(name))?;
            }
        }
        let Some(stored) = deliveries(copy.path())? else {
            ensure!(self.heard.is_empty(), "there were requests before there was an outbox");
            return Ok(());
        };
        for id in self.heard.keys().filter(|id| !stored.contains_key(*id)) {
            found.lose(format!("{id} was sent, and is not on the disk"));
        }
        self.settled.extend(stored.into_iter().filter(|(_, row)| row.delivered).map(|(id, _)| id));
        Ok(())
    }

    /// The whole log against the outbox at the end.
    pub fn against_the_outbox(&self, state: &Path, found: &mut Found) -> anyhow::Result<()> {
        let stored = deliveries(state)?.context("no outbox")?;
        found.deliveries = stored.len() as u64;
        found.requests = self.requests();
        found.repeated = self.heard.values().map(|(_, accepted)| accepted.saturating_sub(1)).sum();
        let mut by_decision: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (id, row) in &stored {
            let (requests, accepted) = self.heard.get(id).copied().unwrap_or_default();
            if !row.delivered || accepted == 0 {
                found.lose(format!("{id}: {accepted} of {requests} requests were accepted, and it is {}", row.state));
            }
            if requests > row.attempts || row.attempts != row.last {
                found.double(format!("{id}: {requests} requests, {} attempts, the last has number {}", row.attempts, row.last));
            }
            if matches!(row.kind.as_str(), "guardrail.rollback" | "guardrail.kill" | "guardrail.pause") {
                by_decision.entry((&row.decision, &row.kind)).or_default().push(id);
            }
        }
        for id in self.heard.keys().filter(|id| !stored.contains_key(*id)) {
            found.double(format!("{id} was sent, and is not in the outbox"));
        }
        for ((decision, kind), ids) in by_decision.into_iter().filter(|(_, ids)| ids.len() > 1) {
            found.double(format!("{decision} has several deliveries of {kind}: {ids:?}"));
        }
        for id in &self.again {
            found.double(format!("{id} was sent again after its receipt was stored"));
        }
        Ok(())
    }
}

/// A row of the outbox.
struct Row {
    decision: String,
    kind: String,
    state: String,
    delivered: bool,
    attempts: u64,
    /// Number of the last attempt.
    last: u64,
}

/// The outbox by id; `None` where there is no such table yet.
fn deliveries(state: &Path) -> anyhow::Result<Option<BTreeMap<String, Row>>> {
    let database = Connection::open(state.join("guardraild.db"))?;
    let tables: i64 =
        database.query_row("SELECT count(*) FROM sqlite_master WHERE name IN ('outbox', 'attempts')", [], |row| row.get(0))?;
    if tables < 2 {
        return Ok(None);
    }
    let mut statement = database.prepare(
        "SELECT id, decision, type, state, (SELECT count(*) FROM attempts WHERE delivery = id),
             (SELECT coalesce(max(n), 0) FROM attempts WHERE delivery = id) FROM outbox",
    )?;
    let rows = statement.query_map([], |row| {
        let state: String = row.get(3)?;
        let delivered = state == "delivered";
        let count = |index| row.get::<_, i64>(index).map(i64::unsigned_abs);
        let delivery = Row { decision: row.get(1)?, kind: row.get(2)?, state, delivered, attempts: count(4)?, last: count(5)? };
        Ok((row.get(0)?, delivery))
    })?;
    Ok(Some(rows.collect::<Result<_, _>>()?))
}

pub fn pending(state: &Path) -> anyhow::Result<u64> {
    let database = Connection::open(state.join("guardraild.db"))?;
    let n: i64 = database.query_row("SELECT count(*) FROM outbox WHERE state = 'pending'", [], |row| row.get(0))?;
    Ok(n.unsigned_abs())
}

/// The decision log, byte for byte, against that of `backtest` over the same records.
pub fn against_a_backtest(
    program: &Path,
    config: &Path,
    rules: &Path,
    brokers: &str,
    state: &Path,
    found: &mut Found,
) -> anyhow::Result<()> {
    let database = Connection::open(state.join("guardraild.db"))?;
    let mut statement = database.prepare("SELECT body FROM decisions ORDER BY seq")?;
    let stored: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut command = Command::new(program);
    command.arg("backtest").arg("--rules").arg(rules).arg("--config").arg(config);
    command.args(["--brokers", brokers, "--output", "json"]);
    let output = command.output()?;
    ensure!(output.status.success(), "the backtest failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let expected: Vec<&str> = text.lines().filter(|line| !line.starts_with("{\"summary\"")).collect();
    found.decisions = stored.len() as u64;
    for decision in expected.iter().filter(|e| !stored.iter().any(|s| s == *e)) {
        found.lose(format!("not decided: {decision}"));
    }
    for decision in stored.iter().filter(|s| !expected.contains(&s.as_str())) {
        found.double(format!("decided, and not by a backtest: {decision}"));
    }
    ensure!(stored.len() > 10, "only {} decisions: nothing was tried", stored.len());
    Ok(())
}
