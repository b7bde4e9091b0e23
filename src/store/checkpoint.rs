//! Checkpoints: named parts of the state, as one instant saw them.
//!
//! A checkpoint writes only the parts that have changed. Each row knows the checkpoint that brought it and the first one without it, so a
//! checkpoint is the rows that were alive then, and what no kept checkpoint needs is found without looking at the rest. Each row has a
//! checksum, and each checkpoint that of its rows together: a bit that has turned, a row that is missing or one too many is noticed.

use super::{Failure, Store, StoreError};
use crate::engine::decision::LogEntry;
use crate::engine::kept::{Change, Changes, Kept};
use crate::engine::time::Millis;
use crate::fail::{self, Point};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use xxhash_rust::xxh3::Xxh3;

/// Checkpoints kept.
const KEPT: i64 = 2;
/// Of zstd: the fastest.
const LEVEL: i32 = 1;
/// A blob takes no more than this in memory, whatever its row says.
const BLOB_MAX: usize = 1 << 30;

/// A checkpoint to write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// ms since the epoch.
    pub made_at: Millis,
    /// Newest operation whose effects it holds; 0 for none. Older ones are deleted once no kept checkpoint needs them.
    pub operations_seq: i64,
    /// Parts that it does not name are gone, instead of what they were in the checkpoint before.
    pub whole: bool,
    pub changes: Changes,
}

/// What [`Store::load_checkpoint`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    pub checkpoint: Option<LoadedCheckpoint>,
    /// What is wrong with newer ones, which have been deleted; newest first.
    pub damaged: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LoadedCheckpoint {
    pub made_at: Millis,
    pub operations_seq: i64,
    /// Sequence number of the newest decision when it was made.
    pub decisions_seq: i64,
    pub parts: Kept,
}

/// The row of a checkpoint.
struct Head {
    id: i64,
    made_at: Millis,
    operations_seq: i64,
    decisions_seq: i64,
    /// Its rows: how many, and the sum of their checksums.
    rows: i64,
    sum: i64,
}

impl Store {
    /// The newest checkpoint that is whole. Damaged newer ones are deleted, so that the next one follows the one that is used.
    pub fn load_checkpoint(&mut self) -> Result<Loaded, StoreError> {
        self.write(|tx| {
            let mut damaged = Vec::new();
            fail::at(Point::Load)?;
            let heads = tx.prepare("SELECT * FROM checkpoints ORDER BY id DESC")?.query_map([], head)?.collect::<Result<Vec<_>, _>>()?;
            for (head, checksum) in heads {
                match load(tx, &head, checksum)? {
                    Ok(checkpoint) => {
                        if !damaged.is_empty() {
                            forget_from(tx, head.id + 1)?;
                        }
                        return Ok(Loaded { checkpoint: Some(checkpoint), damaged });
                    }
                    Err(fault) => damaged.push(format!("checkpoint {}: {fault}", head.id)),
                }
            }
            forget_from(tx, 0)?;
            Ok(Loaded { checkpoint: None, damaged })
        })
    }

    /// Writes entries of the execution log.
    pub fn note(&mut self, entries: &[LogEntry]) -> Result<(), StoreError> {
        self.write(|tx| entries.iter().try_for_each(|entry| super::commit::insert_log(tx, entry)))
    }
}

fn head(row: &rusqlite::Row<'_>) -> rusqlite::Result<(Head, i64)> {
    let head = Head {
        id: row.get("id")?,
        made_at: row.get("made_at")?,
        operations_seq: row.get("operations_seq")?,
        decisions_seq: row.get("decisions_seq")?,
        rows: row.get("rows")?,
        sum: row.get("sum")?,
    };
    Ok((head, row.get("checksum")?))
}

impl Head {
    fn checksum(&self) -> i64 {
        let mut hash = Xxh3::new();
        for n in [self.id, self.made_at, self.operations_seq, self.decisions_seq, self.rows, self.sum] {
            hash.update(&n.to_le_bytes());
        }
        hash.digest() as i64
    }
}

/// Of a row: of its name, of where it came from, and of its bytes as they are stored.
fn checksum(name: &str, born: i64, data: &[u8]) -> i64 {
    let mut hash = Xxh3::new();
    hash.update(&(name.len() as u64).to_le_bytes());
    hash.update(name.as_bytes());
    hash.update(&born.to_le_bytes());
    hash.update(data);
    hash.digest() as i64
}

pub(super) fn insert(tx: &Transaction<'_>, c: &Checkpoint) -> Result<(), Failure> {
    let before = tx.prepare_cached("SELECT * FROM checkpoints ORDER BY id DESC LIMIT 1")?.query_row([], head).optional()?;
    let (before, rows, sum) = before.map_or((0, 0, 0), |(head, _)| (head.id, head.rows, head.sum));
    let decisions_seq: i64 = tx.query_row("SELECT coalesce(max(seq), 0) FROM decisions", [], |row| row.get(0))?;
    let Checkpoint { made_at, operations_seq, .. } = *c;
    let mut head = Head { id: before + 1, made_at, operations_seq, decisions_seq, rows, sum };
    if c.whole {
        tx.execute("UPDATE parts SET died = ? WHERE died IS NULL", [head.id])?;
        (head.rows, head.sum) = (0, 0);
    }
    for (name, change) in &c.changes {
        let blobs = match change {
            Change::Set(blobs) => {
                bury(tx, &mut head, name)?;
                blobs
            }
            Change::Append(blobs) => blobs,
        };
        for blob in blobs {
            add(tx, &mut head, name, blob)?;
        }
    }
    tx.prepare_cached(
        "INSERT INTO checkpoints (id, made_at, operations_seq, decisions_seq, rows, sum, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![head.id, made_at, operations_seq, decisions_seq, head.rows, head.sum, head.checksum()])?;
    tx.execute("DELETE FROM checkpoints WHERE id <= ?", [head.id - KEPT])?;
    tx.execute("DELETE FROM parts WHERE died <= (SELECT min(id) FROM checkpoints)", [])?;
    tx.execute("DELETE FROM operations WHERE seq <= (SELECT min(operations_seq) FROM checkpoints)", [])?;
    Ok(())
}

/// The rows of a part are alive no more.
fn bury(tx: &Transaction<'_>, head: &mut Head, name: &str) -> Result<(), Failure> {
    let mut statement = tx.prepare_cached("UPDATE parts SET died = ? WHERE name = ? AND died IS NULL RETURNING checksum")?;
    let mut dead = statement.query(params![head.id, name])?;
    while let Some(row) = dead.next()? {
        head.rows -= 1;
        head.sum = head.sum.wrapping_sub(row.get(0)?);
    }
    Ok(())
}

fn add(tx: &Transaction<'_>, head: &mut Head, name: &str, blob: &[u8]) -> Result<(), Failure> {
    let data = zstd::bulk::compress(blob, LEVEL)?;
    let sum = checksum(name, head.id, &data);
    tx.prepare_cached("INSERT INTO parts (name, born, checksum, size, data) VALUES (?, ?, ?, ?, ?)")?.execute(params![
        name,
        head.id,
        sum,
        blob.len() as i64,
        data
    ])?;
    head.rows += 1;
    head.sum = head.sum.wrapping_add(sum);
    Ok(())
}

/// Undoes the checkpoints from this one on.
fn forget_from(tx: &Transaction<'_>, id: i64) -> Result<(), Failure> {
    tx.execute("DELETE FROM checkpoints WHERE id >= ?", [id])?;
    tx.execute("DELETE FROM parts WHERE born >= ?", [id])?;
    tx.execute("UPDATE parts SET died = NULL WHERE died >= ?", [id])?;
    Ok(())
}

/// The checkpoint, or what is wrong with it.
fn load(tx: &Connection, head: &Head, sum: i64) -> Result<Result<LoadedCheckpoint, String>, Failure> {
    if head.checksum() != sum {
        return Ok(Err("its checksum does not hold".to_owned()));
    }
    let mut statement = tx.prepare_cached("SELECT * FROM parts WHERE born <= ?1 AND (died IS NULL OR died > ?1) ORDER BY id")?;
    let mut rows = statement.query([head.id])?;
    let (mut parts, mut found) = (Kept::default(), (0, 0_i64));
    while let Some(row) = rows.next()? {
        let (name, blob) = match part(row)? {
            Ok(part) => part,
            Err(fault) => return Ok(Err(fault)),
        };
        found = (found.0 + 1, found.1.wrapping_add(row.get("checksum")?));
        parts.push(name, blob);
    }
    if found != (head.rows, head.sum) {
        return Ok(Err(format!("{} parts were written, {} others are there", head.rows, found.0)));
    }
    let Head { made_at, operations_seq, decisions_seq, .. } = *head;
    Ok(Ok(LoadedCheckpoint { made_at, operations_seq, decisions_seq, parts }))
}

/// Name and blob of a row, or what is wrong with it.
pub(super) fn part(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<(String, Vec<u8>), String>> {
    let (name, born, sum): (String, i64, i64) = (row.get("name")?, row.get("born")?, row.get("checksum")?);
    let (size, data) = (row.get::<_, i64>("size")?, row.get_ref("data")?.as_blob()?);
    if checksum(&name, born, data) != sum {
        return Ok(Err(format!("the checksum of `{name}` does not hold")));
    }
    let size = usize::try_from(size).unwrap_or(BLOB_MAX).min(BLOB_MAX);
    Ok(zstd::bulk::decompress(data, size).map(|blob| (name.clone(), blob)).map_err(|e| format!("`{name}` cannot be unpacked: {e}")))
}
