//! One SQLite file: decisions, outbox, execution log, checkpoints, operators' commands.
//!
//! A decision, its deliveries and its log entry are one transaction, and so are a checkpoint and the offsets that it reflects.
//! Everything that a replay repeats is recognised by its id and ignored. Any number of handles may be open on the file: writers
//! take turns (waiting up to five seconds), readers never wait.

mod checkpoint;
mod commit;
mod error;
mod history;
mod outbox;
mod parts;
mod read;
mod rows;
mod schema;
#[cfg(test)]
mod tests;

pub use checkpoint::{Checkpoint, Loaded, LoadedCheckpoint};
pub use error::StoreError;
pub use history::{Look, NewSummary, StoredPoint, Summary};
pub use outbox::{AttemptEnd, LIFETIME, Lane, Next, Poll};
pub use parts::StoredParts;
pub use rows::{
    Attempt, Commit, Committed, Delivery, DeliveryRecord, DeliveryState, Logged, NewDelivery, NewOperation, Priority, RuleText,
    StoredDecision, StoredOperation,
};

use crate::fail;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a writer waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on the file. Blocking: call it from a thread that may wait for the disk.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    /// See [`Store::fence`].
    epoch: Option<i64>,
    /// How long the last transaction kept other writers out.
    held: Duration,
}

impl Store {
    /// Opens the file, creates it if need be, and brings it to the current schema.
    pub fn open(path: impl AsRef<Path>) -> Result<Store, StoreError> {
        let path = path.as_ref();
        let mut connection = Connection::open(path).map_err(|e| StoreError::of(path, e))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(|e| StoreError::of(path, e))?;
        schema::migrate(&mut connection, path)?;
        configure(&connection).map_err(|e| StoreError::of(path, e))?;
        Ok(Store { connection, path: path.to_owned(), epoch: None, held: Duration::ZERO })
    }

    /// Opens a file that a daemon has made, to read alone: whether one runs on it or not.
    pub fn open_to_read(path: impl AsRef<Path>) -> Result<Store, StoreError> {
        let path = path.as_ref();
        let failed = |e| StoreError::of(path, e);
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        schema::is_current(&connection, path)?;
        Ok(Store { connection, path: path.to_owned(), epoch: None, held: Duration::ZERO })
    }

    /// Reads the whole file, and looks whether it is one that SQLite could have written.
    pub fn check(&self) -> Result<(), StoreError> {
        let found: String = self.read(|c| c.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
        match found.as_str() {
            "ok" => Ok(()),
            _ => Err(StoreError::Corrupt { path: self.path.clone(), detail: found }),
        }
    }

    /// Begins the next epoch: from now on whatever another daemon's handles write fails with [`StoreError::Fenced`]. Returns it, for
    /// [`Store::in_epoch`].
    pub fn fence(&mut self) -> Result<i64, StoreError> {
        self.epoch = None;
        let epoch = self.write(|tx| Ok(tx.query_row("UPDATE holder SET epoch = epoch + 1 RETURNING epoch", [], |row| row.get(0))?))?;
        self.epoch = Some(epoch);
        Ok(epoch)
    }

    /// A handle that writes only as long as this epoch lasts. Others write in any.
    #[must_use]
    pub fn in_epoch(mut self, epoch: i64) -> Store {
        self.epoch = Some(epoch);
        self
    }

    /// Looks, without waiting for writers, whether another daemon has taken over.
    pub fn still_current(&self) -> Result<(), StoreError> {
        self.epoch.map_or(Ok(()), |own| holds_epoch(&self.connection, &self.path, own))
    }

    /// How long the last transaction kept other writers out; waiting for them does not count.
    pub fn held(&self) -> Duration {
        self.held
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `body` in a transaction that holds the write lock from its start; an error leaves nothing behind.
    fn write<T>(&mut self, body: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>) -> Result<T, StoreError> {
        let failed = |e| StoreError::of(&self.path, e);
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let started = Instant::now();
        if let Some(own) = self.epoch {
            holds_epoch(&tx, &self.path, own)?;
        }
        let out = match body(&tx) {
            Ok(out) => out,
            Err(Failure::Sqlite(e)) => return Err(failed(e)),
            Err(Failure::Json(e)) => return Err(StoreError::Json(e)),
            Err(Failure::FailPoint(e)) => return Err(StoreError::FailPoint(e)),
            Err(Failure::Pack(source)) => return Err(StoreError::Pack { path: self.path.clone(), source }),
        };
        tx.commit().map_err(failed)?;
        self.held = started.elapsed();
        Ok(out)
    }

    fn read<T>(&self, body: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        body(&self.connection).map_err(|e| StoreError::of(&self.path, e))
    }
}

/// An error if the epoch of this handle is over.
fn holds_epoch(connection: &Connection, path: &Path, own: i64) -> Result<(), StoreError> {
    let found = connection.prepare_cached("SELECT epoch FROM holder").and_then(|mut s| s.query_row([], |row| row.get(0)));
    match found.map_err(|e| StoreError::of(path, e))? {
        found if found == own => Ok(()),
        found => Err(StoreError::Fenced { path: path.to_owned(), own, found }),
    }
}

/// What can fail inside a transaction.
#[derive(Debug)]
enum Failure {
    Sqlite(rusqlite::Error),
    Json(serde_json::Error),
    FailPoint(fail::Failed),
    Pack(std::io::Error),
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::Pack(e)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(e: rusqlite::Error) -> Failure {
        Failure::Sqlite(e)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Failure {
        Failure::Json(e)
    }
}

impl From<fail::Failed> for Failure {
    fn from(e: fail::Failed) -> Failure {
        Failure::FailPoint(e)
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit that returned survives a power cut; a webhook never precedes its row.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)
}
