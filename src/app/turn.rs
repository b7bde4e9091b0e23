//! Which of the daemons on one state directory is the active one.
//!
//! The active one holds a lock of the kernel, which a process that dies gives back at once, and touches the file every second. A standby
//! takes over when the lock is free, or when the file has not been touched for [`SILENT`]: its holder is stopped, or its machine hangs.
//! Such a one may wake up again. What keeps it from writing and sending is the epoch in the database ([`crate::store::Store::fence`]).

use super::judging::Stop;
use crate::clock;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A holder that has not touched its file for this long is taken to be stopped.
const SILENT: Duration = Duration::from_secs(5);
const TOUCH: Duration = Duration::from_secs(1);
/// How often a standby looks.
const LOOK: Duration = Duration::from_millis(100);

/// What the file says of its holder, for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    /// Where its API listens, as `http.base_url` says.
    pub url: String,
}

/// The turn of this process: it is the active one as long as the file is its own.
pub struct Turn {
    file: File,
    path: PathBuf,
}

/// Takes the turn if it is free; else says who has it.
///
/// # Errors
/// The file cannot be made or locked.
pub fn take(dir: &Path, me: &Holder) -> anyhow::Result<Result<Turn, Option<Holder>>> {
    let path = dir.join("lock");
    let file = open(&path).with_context(|| format!("{} cannot be made: is state_dir writable?", path.display()))?;
    match file.try_lock() {
        // Whoever took over from a silent holder has put another file in this one's place.
        Ok(()) if is_at(&file, &path) => Ok(Ok(Turn::announced(file, path, me)?)),
        Ok(()) => Ok(Err(None)),
        Err(TryLockError::WouldBlock) => Ok(Err(holder(&path))),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

/// Waits for the turn. `tell` hears, about once a second, who has it.
///
/// # Errors
/// As [`take`].
pub fn wait(dir: &Path, me: &Holder, mut tell: impl FnMut(Option<&Holder>)) -> anyhow::Result<Turn> {
    let path = dir.join("lock");
    let (mut touched, mut told): ((Option<SystemTime>, Instant), Option<Instant>) = ((None, Instant::now()), None);
    loop {
        let holder = match take(dir, me)? {
            Ok(turn) => return Ok(turn),
            Err(holder) => holder,
        };
        let at = std::fs::metadata(&path).and_then(|m| m.modified()).ok();
        if at != touched.0 {
            touched = (at, Instant::now());
        } else if touched.1.elapsed() >= SILENT {
            tracing::warn!(?holder, "the active daemon has been silent for {} s: taking over", SILENT.as_secs());
            return replace(path, me);
        }
        if told.is_none_or(|told| told.elapsed() >= TOUCH) {
            told = Some(Instant::now());
            tell(holder.as_ref());
        }
        std::thread::sleep(LOOK);
    }
}

/// Puts a file of our own in the place of the one whose holder is silent. Should two standbys do so at once, the epoch decides.
fn replace(path: PathBuf, me: &Holder) -> anyhow::Result<Turn> {
    let own = path.with_extension(std::process::id().to_string());
    let failed = || format!("{} cannot be put in place", own.display());
    let file = open(&own).with_context(failed)?;
    file.try_lock().with_context(failed)?;
    std::fs::rename(&own, &path).with_context(failed)?;
    Turn::announced(file, path, me)
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    file.metadata().map(id).ok().zip(std::fs::metadata(path).map(id).ok()).is_some_and(|(own, there)| own == there)
}

fn holder(path: &Path) -> Option<Holder> {
    let mut text = String::new();
    File::open(path).ok()?.take(4_096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

impl Turn {
    fn announced(file: File, path: PathBuf, me: &Holder) -> anyhow::Result<Turn> {
        std::fs::write(&path, serde_json::to_string(me)?).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Turn { file, path })
    }

    /// Touches the file from a thread of its own, until the turn is given back or somebody else has taken over.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn keep(self, stop: Stop) -> std::io::Result<Arc<Turn>> {
        let turn = Arc::new(self);
        let held = Arc::downgrade(&turn);
        let beat = move || {
            while let Some(turn) = held.upgrade() {
                if !is_at(&turn.file, &turn.path) {
                    stop.fail(format!("{}: another daemon has taken over while this one was silent: it stops", turn.path.display()));
                    return;
                }
                // On a disk that cannot be written the epoch says who may.
                let _ = turn.file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_millis(clock::now().unsigned_abs()));
                drop(turn);
                std::thread::sleep(TOUCH);
            }
        };
        std::thread::Builder::new().name("turn".into()).spawn(beat)?;
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(pid: u32) -> Holder {
        Holder { pid, url: format!("http://{pid}") }
    }

    #[test]
    fn the_turn_is_free_once_its_holder_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let turn = take(dir.path(), &me(1)).unwrap().unwrap_or_else(|_| panic!("it is free"));
        let held = take(dir.path(), &me(2)).unwrap();
        assert_eq!(held.err().flatten().map(|h| h.pid), Some(1));
        drop(turn);
        assert!(take(dir.path(), &me(2)).unwrap().is_ok());
    }

    #[test]
    fn whose_file_was_replaced_has_no_turn_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(old) = take(dir.path(), &me(1)).unwrap() else { panic!("it is free") };
        let new = replace(dir.path().join("lock"), &me(2)).unwrap();
        assert!(!is_at(&old.file, &old.path) && is_at(&new.file, &new.path));
        assert_eq!(take(dir.path(), &me(3)).unwrap().err().flatten().map(|h| h.pid), Some(2));
        let stop = Stop::default();
        let _old = old.keep(stop.clone()).unwrap();
        let reason = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(stop.failed());
        assert!(reason.contains("another daemon has taken over"), "{reason}");
    }
}
