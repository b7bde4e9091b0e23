//! What can go wrong with the file, in words that name a way out.

use crate::fail;
use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};

/// A failed operation on the store. The transaction that it was part of has left nothing behind.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: no space left for the database; free some, nothing is decided until a write succeeds", path.display())]
    DiskFull { path: PathBuf },
    #[error("{}: the database is locked by another process; is a second daemon or a database shell open on it?", path.display())]
    Locked { path: PathBuf },
    #[error("{}: the database is damaged ({detail}); restore a copy, save what can be read with `sqlite3 FILE .recover`, or move it away: without \
         it, what was decided before may be decided and sent again, under the same ids", path.display())]
    Corrupt { path: PathBuf, detail: String },
    #[error("{}: this is a database of something else; name another file as the store", path.display())]
    Foreign { path: PathBuf },
    #[error(
        "{}: written by a newer guardraild (schema {found}, this one knows {known}); run that version, or name another file", path.display()
    )]
    TooNew { path: PathBuf, found: i64, known: i64 },
    #[error("{}: written by an older guardraild (schema {found}, this one knows {known}); start the daemon once, or ask it", path.display())]
    TooOld { path: PathBuf, found: i64, known: i64 },
    #[error("{}: cannot be opened for writing ({detail}); check that the directory exists and who owns it", path.display())]
    Unwritable { path: PathBuf, detail: String },
    #[error("{}: a part of the checkpoint is damaged ({detail})", path.display())]
    Part { path: PathBuf, detail: String },
    #[error("{}: another daemon has taken over (epoch {found}, this one has {own}): this one writes and sends nothing any more", path.display())]
    Fenced { path: PathBuf, own: i64, found: i64 },
    #[error("{}: a part of a checkpoint cannot be packed: {source}", path.display())]
    Pack { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Sqlite { path: PathBuf, source: rusqlite::Error },
    #[error("a value could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    FailPoint(#[from] fail::Failed),
}

impl StoreError {
    /// Whether space ran out; the same commit may succeed later.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, StoreError::DiskFull { .. })
    }

    /// Whether another connection held the file for longer than the busy timeout; the same commit may succeed later.
    pub fn is_locked(&self) -> bool {
        matches!(self, StoreError::Locked { .. })
    }

    /// Whether another daemon has taken over: nothing will succeed any more.
    pub fn is_fenced(&self) -> bool {
        matches!(self, StoreError::Fenced { .. })
    }

    pub(super) fn of(path: &Path, source: rusqlite::Error) -> StoreError {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::DiskFull { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked { path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { path, detail: source.to_string() },
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                StoreError::Unwritable { path, detail: source.to_string() }
            }
            _ => StoreError::Sqlite { path, source },
        }
    }
}
