//! Reading the chunks of units that the newest checkpoint refers to, without loading it.

use super::{Store, StoreError};
use rusqlite::{OptionalExtension, Transaction, params};
use std::path::PathBuf;

/// The chunks of one checkpoint, as they are at one instant, whatever is written meanwhile.
pub struct StoredUnits<'s> {
    /// Of the blobs' format; see [`super::Checkpoint::version`].
    pub version: u32,
    tx: Transaction<'s>,
    path: PathBuf,
    /// By partition: the half-open range of its chunks.
    partitions: Vec<(i32, i64, i64)>,
}

impl Store {
    /// The chunks of the newest checkpoint; `None` before the first.
    pub fn units(&self) -> Result<Option<StoredUnits<'_>>, StoreError> {
        let failed = |e| StoreError::of(&self.path, e);
        let tx = self.connection.unchecked_transaction().map_err(failed)?;
        let newest = "SELECT id, version FROM checkpoints ORDER BY id DESC LIMIT 1";
        let found = tx.query_row(newest, [], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?))).optional().map_err(failed)?;
        let Some((id, version)) = found else { return Ok(None) };
        let partitions = {
            let sql = "SELECT partition, first_chunk, end_chunk FROM checkpoint_partitions WHERE checkpoint = ? ORDER BY partition";
            let mut statement = tx.prepare(sql).map_err(failed)?;
            let rows = statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).map_err(failed)?;
            rows.collect::<Result<_, _>>().map_err(failed)?
        };
        Ok(Some(StoredUnits { version, tx, path: self.path.clone(), partitions }))
    }
}

impl StoredUnits<'_> {
    /// Places of the partitions, for [`StoredUnits::each`].
    pub fn partitions(&self) -> std::ops::Range<usize> {
        0..self.partitions.len()
    }

    /// Visits the chunks of a partition, oldest first, one in memory at a time.
    pub fn each<E: From<StoreError>>(&self, partition: usize, mut visit: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let failed = |e| E::from(StoreError::of(&self.path, e));
        let Some((partition, first, end)) = self.partitions.get(partition) else { return Ok(()) };
        let sql = "SELECT data FROM unit_chunks WHERE partition = ? AND seq >= ? AND seq < ? ORDER BY seq";
        let mut statement = self.tx.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query(params![partition, first, end]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            visit(row.get_ref(0).and_then(|value| Ok(value.as_blob()?)).map_err(failed)?)?;
        }
        Ok(())
    }
}
