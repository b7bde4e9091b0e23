//! Checkpoints: the state of fleet and partitions with the offsets that it reflects.
//!
//! The newest and the one before are kept. What grows with users is kept in chunks that are appended; a checkpoint refers to a
//! range of them, so an older one still finds its own.

use super::{Failure, Store, StoreError};
use crate::engine::time::Millis;
use crate::fail::{self, Point};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use sha2::{Digest, Sha256};

/// Checkpoints kept.
const KEPT: i64 = 2;

/// A checkpoint to write. It is whole: a partition that it leaves out is forgotten.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Of the blobs' own format; the store hands it back unread.
    pub version: u32,
    /// ms since the epoch.
    pub made_at: Millis,
    /// Newest operation whose effects it holds; 0 for none. Older ones are deleted once no kept checkpoint needs them.
    pub operations_seq: i64,
    pub fleet: Vec<u8>,
    pub partitions: Vec<PartitionCheckpoint>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PartitionCheckpoint {
    pub partition: i32,
    pub state: Vec<u8>,
    /// Topic and offset of the next record to read.
    pub offsets: Vec<(String, i64)>,
    pub units: Units,
}

/// What has changed about a partition's units.
#[derive(Clone, Debug, PartialEq)]
pub enum Units {
    /// Chunks added since the checkpoint before.
    Append(Vec<Vec<u8>>),
    /// Everything: to compact.
    Replace(Vec<Vec<u8>>),
}

/// What [`Store::load_checkpoint`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    pub checkpoint: Option<LoadedCheckpoint>,
    /// Says which checkpoints were damaged and what was used instead.
    pub warning: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LoadedCheckpoint {
    pub version: u32,
    pub made_at: Millis,
    pub operations_seq: i64,
    /// Sequence number of the newest decision when it was made.
    pub decisions_seq: i64,
    pub fleet: Vec<u8>,
    /// By partition.
    pub partitions: Vec<LoadedPartition>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LoadedPartition {
    pub partition: i32,
    pub state: Vec<u8>,
    pub offsets: Vec<(String, i64)>,
    /// Chunks in the order in which they were appended.
    pub units: Vec<Vec<u8>>,
}

impl Store {
    /// The newest checkpoint whose checksum holds. A damaged newer one is deleted, and the warning says so.
    pub fn load_checkpoint(&mut self) -> Result<Loaded, StoreError> {
        self.write(|tx| {
            let ids = kept(tx)?;
            fail::at(Point::Load)?;
            let mut warning = None;
            for &id in &ids {
                match load(tx, id)? {
                    Some(checkpoint) => {
                        tx.execute("DELETE FROM checkpoints WHERE id > ?", [id])?;
                        sweep(tx)?;
                        return Ok(Loaded { checkpoint: Some(checkpoint), warning });
                    }
                    None => warning = Some(format!("checkpoint {id} is damaged; going on from the one before")),
                }
            }
            if !ids.is_empty() {
                warning = Some("every checkpoint is damaged; starting without one".to_owned());
            }
            Ok(Loaded { checkpoint: None, warning })
        })
    }
}

fn kept(tx: &Connection) -> Result<Vec<i64>, Failure> {
    let mut statement = tx.prepare_cached("SELECT id FROM checkpoints ORDER BY id DESC LIMIT ?")?;
    let ids = statement.query_map([KEPT], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(ids)
}

pub(super) fn insert(tx: &Transaction<'_>, c: &Checkpoint) -> Result<(), Failure> {
    let before = kept(tx)?.first().copied();
    let decisions_seq: i64 = tx.query_row("SELECT coalesce(max(seq), 0) FROM decisions", [], |row| row.get(0))?;
    tx.prepare_cached(
        "INSERT INTO checkpoints (version, made_at, operations_seq, decisions_seq, fleet, checksum) VALUES (?, ?, ?, ?, ?, x'')",
    )?
    .execute(params![c.version, c.made_at, c.operations_seq, decisions_seq, c.fleet])?;
    let id = tx.last_insert_rowid();

    let mut partitions: Vec<&PartitionCheckpoint> = c.partitions.iter().collect();
    partitions.sort_by_key(|p| p.partition);
    let mut sum = Checksum::of_head(c.version, c.made_at, c.operations_seq, decisions_seq, &c.fleet);
    for p in partitions {
        let (first, end) = insert_units(tx, before, p)?;
        let offsets = serde_json::to_string(&p.offsets)?;
        sum.partition(p.partition, &p.state, &offsets, first, end);
        tx.prepare_cached(
            "INSERT INTO checkpoint_partitions (checkpoint, partition, state, offsets, first_chunk, end_chunk) VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![id, p.partition, p.state, offsets, first, end])?;
    }
    tx.execute("UPDATE checkpoints SET checksum = ? WHERE id = ?", params![sum.finish(), id])?;
    tx.execute("DELETE FROM checkpoints WHERE id NOT IN (SELECT id FROM checkpoints ORDER BY id DESC LIMIT ?)", [KEPT])?;
    tx.execute("DELETE FROM operations WHERE seq <= (SELECT min(operations_seq) FROM checkpoints)", [])?;
    sweep(tx)
}

/// Writes the new chunks, and returns the half-open range of chunks that the partition now has.
fn insert_units(tx: &Transaction<'_>, before: Option<i64>, p: &PartitionCheckpoint) -> Result<(i64, i64), Failure> {
    let range: Option<(i64, i64)> = tx
        .prepare_cached("SELECT first_chunk, end_chunk FROM checkpoint_partitions WHERE checkpoint = ? AND partition = ?")?
        .query_row(params![before, p.partition], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let free: i64 = tx
        .prepare_cached("SELECT coalesce(max(seq) + 1, 0) FROM unit_chunks WHERE partition = ?")?
        .query_row([p.partition], |row| row.get(0))?;
    let (first, mut end, chunks) = match (&p.units, range) {
        (Units::Append(chunks), Some((first, end))) => (first, end, chunks),
        (Units::Append(chunks), None) | (Units::Replace(chunks), _) => (free, free, chunks),
    };
    let mut insert = tx.prepare_cached("INSERT INTO unit_chunks (partition, seq, data, checksum) VALUES (?, ?, ?, ?)")?;
    for data in chunks {
        insert.execute(params![p.partition, end, data, Sha256::digest(data).as_slice()])?;
        end += 1;
    }
    Ok((first, end))
}

/// Deletes chunks that no kept checkpoint refers to.
fn sweep(tx: &Transaction<'_>) -> Result<(), Failure> {
    tx.prepare_cached(
        "DELETE FROM unit_chunks WHERE NOT EXISTS (SELECT 1 FROM checkpoint_partitions p
             WHERE p.partition = unit_chunks.partition AND unit_chunks.seq >= p.first_chunk AND unit_chunks.seq < p.end_chunk)",
    )?
    .execute([])?;
    Ok(())
}

/// `None` when a checksum does not hold or a chunk is missing.
fn load(tx: &Connection, id: i64) -> Result<Option<LoadedCheckpoint>, Failure> {
    let (mut checkpoint, checksum) = tx.query_row("SELECT * FROM checkpoints WHERE id = ?", [id], |row| {
        let checkpoint = LoadedCheckpoint {
            version: row.get("version")?,
            made_at: row.get("made_at")?,
            operations_seq: row.get("operations_seq")?,
            decisions_seq: row.get("decisions_seq")?,
            fleet: row.get("fleet")?,
            partitions: Vec::new(),
        };
        Ok((checkpoint, row.get::<_, Vec<u8>>("checksum")?))
    })?;
    let c = &checkpoint;
    let mut sum = Checksum::of_head(c.version, c.made_at, c.operations_seq, c.decisions_seq, &c.fleet);
    let mut statement = tx.prepare_cached("SELECT * FROM checkpoint_partitions WHERE checkpoint = ? ORDER BY partition")?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        let (partition, state): (i32, Vec<u8>) = (row.get("partition")?, row.get("state")?);
        let (offsets, first, end): (String, i64, i64) = (row.get("offsets")?, row.get("first_chunk")?, row.get("end_chunk")?);
        sum.partition(partition, &state, &offsets, first, end);
        let (Ok(offsets), Some(units)) = (serde_json::from_str(&offsets), load_units(tx, partition, first, end)?) else {
            return Ok(None);
        };
        checkpoint.partitions.push(LoadedPartition { partition, state, offsets, units });
    }
    Ok((sum.finish() == checksum).then_some(checkpoint))
}

fn load_units(tx: &Connection, partition: i32, first: i64, end: i64) -> Result<Option<Vec<Vec<u8>>>, Failure> {
    let mut statement =
        tx.prepare_cached("SELECT data, checksum FROM unit_chunks WHERE partition = ? AND seq >= ? AND seq < ? ORDER BY seq")?;
    let mut rows = statement.query(params![partition, first, end])?;
    let mut units = Vec::new();
    while let Some(row) = rows.next()? {
        let (data, checksum): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
        if Sha256::digest(&data).as_slice() != checksum {
            return Ok(None);
        }
        units.push(data);
    }
    Ok((units.len() as i64 == end - first).then_some(units))
}

/// SHA-256 over everything that a checkpoint holds; chunks have their own.
struct Checksum(Sha256);

impl Checksum {
    fn of_head(version: u32, made_at: Millis, operations_seq: i64, decisions_seq: i64, fleet: &[u8]) -> Checksum {
        let mut sum = Checksum(Sha256::new());
        sum.numbers(&[i64::from(version), made_at, operations_seq, decisions_seq]);
        sum.bytes(fleet);
        sum
    }

    fn partition(&mut self, partition: i32, state: &[u8], offsets: &str, first: i64, end: i64) {
        self.numbers(&[i64::from(partition), first, end]);
        self.bytes(state);
        self.bytes(offsets.as_bytes());
    }

    fn numbers(&mut self, numbers: &[i64]) {
        for n in numbers {
            self.0.update(n.to_le_bytes());
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> Vec<u8> {
        self.0.finalize().to_vec()
    }
}
