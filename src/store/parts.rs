//! Reading parts of the newest checkpoint, without loading it.

use super::{Store, StoreError, checkpoint};
use rusqlite::Transaction;
use std::path::PathBuf;

/// Some parts of one checkpoint, as they are at one instant, whatever is written meanwhile.
pub struct StoredParts<'s> {
    tx: Transaction<'s>,
    path: PathBuf,
    pub names: Vec<String>,
}

impl Store {
    /// The parts of the newest checkpoint whose names match `pattern`, in which `*` stands for anything.
    pub fn parts(&self, pattern: &str) -> Result<StoredParts<'_>, StoreError> {
        let failed = |e| StoreError::of(&self.path, e);
        let tx = self.connection.unchecked_transaction().map_err(failed)?;
        let names = {
            let sql = "SELECT DISTINCT name FROM parts WHERE died IS NULL AND name GLOB ? ORDER BY name";
            let mut statement = tx.prepare(sql).map_err(failed)?;
            let rows = statement.query_map([pattern], |row| row.get(0)).map_err(failed)?;
            rows.collect::<Result<_, _>>().map_err(failed)?
        };
        Ok(StoredParts { tx, path: self.path.clone(), names })
    }
}

impl StoredParts<'_> {
    /// Visits the blobs of a part, oldest first, one in memory at a time.
    ///
    /// # Errors
    /// One is damaged, or `visit` fails.
    pub fn each<E: From<StoreError>>(&self, name: &str, mut visit: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let failed = |e| E::from(StoreError::of(&self.path, e));
        let sql = "SELECT * FROM parts WHERE died IS NULL AND name = ? ORDER BY id";
        let mut statement = self.tx.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query([name]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let damaged = |detail| E::from(StoreError::Part { path: self.path.clone(), detail });
            let (_, blob) = checkpoint::part(row).map_err(failed)?.map_err(damaged)?;
            visit(&blob)?;
        }
        Ok(())
    }
}
