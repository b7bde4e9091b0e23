//! One SQLite file: decisions, outbox, execution log, checkpoints, operators' commands.
//!
//! A decision, its deliveries and its log entry are one transaction, and so are a checkpoint and the offsets that it reflects.
//! Everything that a replay repeats is recognised by its id and ignored. Any number of handles may be open on the file: writers
//! take turns (waiting up to five seconds), readers never wait.

mod checkpoint;
mod commit;
mod error;
mod outbox;
mod read;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod units;

pub use checkpoint::{Checkpoint, Loaded, LoadedCheckpoint, LoadedPartition, PartitionCheckpoint, Units};
pub use error::StoreError;
pub use outbox::{AttemptEnd, LIFETIME, Lane, Next, Poll};
pub use rows::{
    Attempt, Commit, Committed, Delivery, DeliveryRecord, DeliveryState, Logged, NewDelivery, NewOperation, Priority, StoredDecision,
    StoredOperation,
};
pub use units::StoredUnits;

use crate::fail;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a writer waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on the file. Blocking: call it from a thread that may wait for the disk.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens the file, creates it if need be, and brings it to the current schema.
    pub fn open(path: impl AsRef<Path>) -> Result<Store, StoreError> {
        let path = path.as_ref();
        let mut connection = Connection::open(path).map_err(|e| StoreError::of(path, e))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(|e| StoreError::of(path, e))?;
        schema::migrate(&mut connection, path)?;
        configure(&connection).map_err(|e| StoreError::of(path, e))?;
        Ok(Store { connection, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `body` in a transaction that holds the write lock from its start; an error leaves nothing behind.
    fn write<T>(&mut self, body: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>) -> Result<T, StoreError> {
        let failed = |e| StoreError::of(&self.path, e);
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let out = match body(&tx) {
            Ok(out) => out,
            Err(Failure::Sqlite(e)) => return Err(failed(e)),
            Err(Failure::Json(e)) => return Err(StoreError::Json(e)),
            Err(Failure::FailPoint(e)) => return Err(StoreError::FailPoint(e)),
        };
        tx.commit().map_err(failed)?;
        Ok(out)
    }

    fn read<T>(&self, body: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        body(&self.connection).map_err(|e| StoreError::of(&self.path, e))
    }
}

/// What can fail inside a transaction.
#[derive(Debug)]
enum Failure {
    Sqlite(rusqlite::Error),
    Json(serde_json::Error),
    FailPoint(fail::Failed),
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
