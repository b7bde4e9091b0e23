//! Tables, and how an older file becomes a current one.

use super::StoreError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// `GRLD`: marks the file as ours.
const APPLICATION_ID: i64 = 0x4752_4c44;

/// Entry `i` takes a file from `user_version` `i` to `i + 1`. Entries are appended, never changed.
const MIGRATIONS: &[&str] = &[FIRST, "ALTER TABLE outbox ADD COLUMN escalates TEXT;", NAMED_PARTS, RULES, RECEIPTS, HISTORY, TOLD];

const FIRST: &str = "
CREATE TABLE decisions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    experiment TEXT NOT NULL,
    revision INTEGER NOT NULL,
    bucket TEXT NOT NULL,
    guardrail TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    action TEXT NOT NULL,
    decided_at INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX decisions_by_experiment ON decisions (experiment, seq);

CREATE TABLE notices (
    decision TEXT NOT NULL REFERENCES decisions (id),
    kind TEXT NOT NULL,
    at INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (decision, kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    decision TEXT NOT NULL REFERENCES decisions (id),
    experiment TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    type TEXT NOT NULL,
    priority INTEGER NOT NULL,
    payload TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead', 'cancelled')),
    attempts INTEGER NOT NULL DEFAULT 0,
    attempts_before INTEGER NOT NULL DEFAULT 0,
    next_attempt_ms INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    finished_ms INTEGER,
    delivered_ms INTEGER,
    last_status INTEGER,
    last_error TEXT,
    escalate_to TEXT,
    traceparent TEXT
) STRICT;
CREATE INDEX outbox_pending ON outbox (endpoint, priority, next_attempt_ms) WHERE state = 'pending';
CREATE INDEX outbox_by_decision ON outbox (decision);
CREATE INDEX outbox_finished ON outbox (finished_ms) WHERE state <> 'pending';

CREATE TABLE attempts (
    delivery TEXT NOT NULL REFERENCES outbox (id) ON DELETE CASCADE,
    n INTEGER NOT NULL,
    at INTEGER NOT NULL,
    status INTEGER,
    error TEXT,
    duration_ms INTEGER,
    PRIMARY KEY (delivery, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    experiment TEXT NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    author TEXT,
    text TEXT NOT NULL,
    decision TEXT NOT NULL DEFAULT '',
    UNIQUE (experiment, at, kind, text, decision)
) STRICT;
CREATE INDEX log_by_experiment ON log (experiment, seq);
CREATE INDEX log_by_time ON log (at);

CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    version INTEGER NOT NULL,
    made_at INTEGER NOT NULL,
    operations_seq INTEGER NOT NULL,
    decisions_seq INTEGER NOT NULL,
    fleet BLOB NOT NULL,
    checksum BLOB NOT NULL
) STRICT;

CREATE TABLE checkpoint_partitions (
    checkpoint INTEGER NOT NULL REFERENCES checkpoints (id) ON DELETE CASCADE,
    partition INTEGER NOT NULL,
    state BLOB NOT NULL,
    offsets TEXT NOT NULL,
    first_chunk INTEGER NOT NULL,
    end_chunk INTEGER NOT NULL,
    PRIMARY KEY (checkpoint, partition)
) STRICT;

CREATE TABLE unit_chunks (
    partition INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    data BLOB NOT NULL,
    checksum BLOB NOT NULL,
    PRIMARY KEY (partition, seq)
) STRICT;

CREATE TABLE operations (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    experiment TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;

CREATE TABLE endpoints (
    name TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    disabled_at INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Checkpoints of named parts, and which daemon may write.
const NAMED_PARTS: &str = "
DROP TABLE unit_chunks;
DROP TABLE checkpoint_partitions;
DROP TABLE checkpoints;

CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY,
    made_at INTEGER NOT NULL,
    operations_seq INTEGER NOT NULL,
    decisions_seq INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;

CREATE TABLE parts (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    born INTEGER NOT NULL,
    died INTEGER,
    checksum INTEGER NOT NULL,
    size INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
CREATE INDEX parts_alive ON parts (name) WHERE died IS NULL;
CREATE INDEX parts_dead ON parts (died) WHERE died IS NOT NULL;

CREATE TABLE holder (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL
) STRICT;
INSERT INTO holder VALUES (1, 0);
";

/// The texts of the rules in force.
const RULES: &str = "
CREATE TABLE rules (
    file TEXT PRIMARY KEY,
    experiment TEXT,
    text TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// What receivers know messages by, and what each has been told.
const RECEIPTS: &str = "
ALTER TABLE outbox ADD COLUMN receipt TEXT;
CREATE INDEX outbox_delivered ON outbox (endpoint, delivered_ms) WHERE delivered_ms IS NOT NULL;
";

/// What a readout needs after the fact.
const HISTORY: &str = "
ALTER TABLE log ADD COLUMN links TEXT NOT NULL DEFAULT '[]';

CREATE TABLE points (
    experiment TEXT NOT NULL,
    at INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (experiment, at)
) STRICT, WITHOUT ROWID;

CREATE TABLE summaries (
    experiment TEXT NOT NULL,
    revision INTEGER NOT NULL,
    at INTEGER NOT NULL,
    last INTEGER NOT NULL,
    rule TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (experiment, revision)
) STRICT;
";

/// Messages to an endpoint in their order, received or not.
const TOLD: &str = "
DROP INDEX outbox_delivered;
CREATE INDEX outbox_told ON outbox (endpoint, seq);
";

/// Brings the file to the current schema; refuses files of other programs and of newer versions.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::of(path, e);
    if version(connection).map_err(failed)? == MIGRATIONS.len() as i64 && is_ours(connection).map_err(failed)? {
        return Ok(());
    }
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Read again under the lock: another handle may have migrated meanwhile.
    let found = version(&tx).map_err(failed)?;
    let known = MIGRATIONS.len() as i64;
    let tables: i64 = tx.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).map_err(failed)?;
    if tables > 0 && !is_ours(&tx).map_err(failed)? {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    if found > known {
        return Err(StoreError::TooNew { path: path.to_owned(), found, known });
    }
    for step in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        tx.execute_batch(step).map_err(failed)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    tx.pragma_update(None, "user_version", known).map_err(failed)?;
    tx.commit().map_err(failed)
}

/// An error if the file is not of the current schema.
pub(super) fn is_current(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::of(path, e);
    let (found, known) = (version(connection).map_err(failed)?, MIGRATIONS.len() as i64);
    match is_ours(connection).map_err(failed)? {
        false => Err(StoreError::Foreign { path: path.to_owned() }),
        true if found > known => Err(StoreError::TooNew { path: path.to_owned(), found, known }),
        true if found < known => Err(StoreError::TooOld { path: path.to_owned(), found, known }),
        true => Ok(()),
    }
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(connection.query_row("PRAGMA application_id", [], |row| row.get::<_, i64>(0))? == APPLICATION_ID)
}
