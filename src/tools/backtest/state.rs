//! What an interrupted backtest goes on from: a database for each rule set, in the format of the daemon's.

use super::Terms;
use super::course::Courses;
use super::court::Court;
use crate::clock;
use crate::engine::aggregate::Aggregator;
use crate::engine::decision::Decision;
use crate::engine::fleet::Fleet;
use crate::engine::kept::{self, Change, Changes, Kept};
use crate::engine::plan::Catalog;
use crate::ingest::file::{Position, Recording};
use crate::store::{Checkpoint, Commit, Store, StoreError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub const FLEET: &str = "fleet/";
const PARTITION: &str = "partition/";
const IDENTITY: &str = "backtest/identity";
/// How far the recording has been read.
pub const POSITION: &str = "backtest/position";
pub const COURSES: &str = "backtest/courses";
/// Of a recording's beginning and end, so much tells it from others. Bytes.
const TOLD_BY: u64 = 1 << 20;

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path} is the state of another backtest: its {what} differ. Name another directory, or remove it")]
    Other { path: PathBuf, what: &'static str },
    #[error("{path}: {reason}. Remove it to begin anew")]
    Unusable { path: PathBuf, reason: String },
}

/// Digests of what a state belongs to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    version: String,
    rules: String,
    settings: String,
    recordings: String,
}

impl Identity {
    /// `text`: of the rules. Recordings are told by their length, their beginning and their end.
    ///
    /// # Errors
    /// A recording cannot be read.
    pub fn of_files(text: &str, terms: &Terms<'_>, recording: &Recording<'_>) -> Result<Identity, StateError> {
        let mut hash = Sha256::new();
        for path in recording.files {
            let told = told(path).map_err(|source| StateError::Io { path: path.clone(), source })?;
            hash.update(told.finalize());
        }
        let read = format!("{:?}", (recording.limits, recording.source.map(|source| &source.name)));
        Ok(Identity::new(text, terms, &read, hash))
    }

    /// `read`: how records are read; `told`: what range is asked for.
    pub fn of_range(text: &str, terms: &Terms<'_>, read: &str, told: &str) -> Identity {
        Identity::new(text, terms, read, Sha256::new().chain_update(told))
    }

    fn new(text: &str, terms: &Terms<'_>, read: &str, recordings: Sha256) -> Identity {
        Identity {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rules: hex(Sha256::new().chain_update(text)),
            settings: hex(Sha256::new().chain_update(format!("{:?} {} {read}", terms.settings, terms.drawn))),
            recordings: hex(recordings),
        }
    }

    fn differs_from(&self, other: &Identity) -> Option<&'static str> {
        let parts = [
            (&self.version, &other.version, "version of guardraild"),
            (&self.rules, &other.rules, "rules"),
            (&self.settings, &other.settings, "settings"),
            (&self.recordings, &other.recordings, "recordings"),
        ];
        parts.into_iter().find(|(a, b, _)| a != b).map(|(_, _, what)| what)
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn told(path: &Path) -> io::Result<Sha256> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new().chain_update(length.to_le_bytes());
    io::copy(&mut (&mut file).take(TOLD_BY), &mut hash)?;
    file.seek(SeekFrom::Start(length.saturating_sub(TOLD_BY)))?;
    io::copy(&mut file.take(TOLD_BY), &mut hash)?;
    Ok(hash)
}

/// What has been left of a rule set's backtest.
pub struct Left {
    pub kept: Kept,
    /// Decided before.
    pub decisions: Vec<Decision>,
}

/// Where a rule set goes on in files.
pub struct Start {
    pub court: Court,
    pub aggregator: Aggregator,
    pub position: Option<Position>,
    pub keeper: Option<Keeper>,
}

impl Start {
    /// At the beginning of the recording.
    pub fn new(catalog: &Arc<Catalog>, terms: &Terms<'_>) -> Start {
        let aggregator = Aggregator::new(0, Arc::clone(catalog), terms.settings.clone());
        Start { court: Court::new(catalog, terms), aggregator, position: None, keeper: None }
    }

    /// Where the state in `dir` says, if it says anything. `index`: which of the rule sets this is.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn resume(
        (dir, index): (&Path, usize),
        (text, catalog): (&str, &Arc<Catalog>),
        terms: &Terms<'_>,
        recording: &Recording<'_>,
    ) -> Result<Start, StateError> {
        let (keeper, left) = Keeper::open((dir, index), Identity::of_files(text, terms, recording)?)?;
        let start = match left {
            Some(left) => Start::taken_up(catalog, terms, left).map_err(|reason| keeper.unusable(reason))?,
            None => Start::new(catalog, terms),
        };
        Ok(Start { keeper: Some(keeper), ..start })
    }

    fn taken_up(catalog: &Arc<Catalog>, terms: &Terms<'_>, mut left: Left) -> Result<Start, String> {
        let aggregator = Aggregator::restore(0, Arc::clone(catalog), terms.settings.clone(), &left.kept.split_off(PARTITION))?;
        let position = left.kept.read(POSITION)?;
        Ok(Start { court: Court::taken_up(catalog, terms, left)?, aggregator, position, keeper: None })
    }
}

/// What the reading half of a checkpoint of files says; the judging half adds its own.
pub fn read_so_far(aggregator: &mut Aggregator, position: &Position) -> Result<Changes, String> {
    let mut changes = kept::prefixed(PARTITION, aggregator.snapshot()?);
    changes.push((POSITION.to_owned(), Change::Set(vec![kept::encode(position)?])));
    Ok(changes)
}

/// Keeps the state of one rule set.
pub struct Keeper {
    store: Store,
    identity: Identity,
    /// Nothing has been kept yet.
    whole: bool,
}

impl Keeper {
    /// Opens the state in `dir` of the rule set with this index; what it holds, if it holds anything.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn open((dir, index): (&Path, usize), identity: Identity) -> Result<(Keeper, Option<Left>), StateError> {
        std::fs::create_dir_all(dir).map_err(|source| StateError::Io { path: dir.to_owned(), source })?;
        let path = dir.join(format!("backtest-{}.db", index + 1));
        let mut store = Store::open(&path)?;
        let checkpoint = store.load_checkpoint()?.checkpoint;
        let keeper = Keeper { store, identity, whole: checkpoint.is_none() };
        let Some(checkpoint) = checkpoint else { return Ok((keeper, None)) };
        let kept: Identity = checkpoint.parts.read(IDENTITY).map_err(|reason| keeper.unusable(reason))?.unwrap_or_default();
        if let Some(what) = kept.differs_from(&keeper.identity) {
            return Err(StateError::Other { path, what });
        }
        let known = keeper.store.decisions_after(0)?.into_iter().filter(|d| d.seq <= checkpoint.decisions_seq);
        let read = known.map(|d| serde_json::from_str(d.body.get())).collect::<Result<_, _>>();
        let decisions = read.map_err(|e| keeper.unusable(format!("a decision cannot be read: {e}")))?;
        Ok((keeper, Some(Left { kept: checkpoint.parts, decisions })))
    }

    /// The state is there, and cannot be used.
    pub fn unusable(&self, reason: String) -> StateError {
        StateError::Unusable { path: self.store.path().to_owned(), reason }
    }

    /// The state belongs to another backtest.
    pub fn of_another(&self, what: &'static str) -> StateError {
        StateError::Other { path: self.store.path().to_owned(), what }
    }

    /// Writes a checkpoint: what the reading half says, and what the court has come to since the last one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&mut self, read: Changes, fleet: &mut Fleet, decisions: &[Decision], courses: Option<&Courses>) -> Result<(), StateError> {
        let written = |result: Result<Vec<u8>, String>| result.map_err(|reason| self.unusable(reason));
        let mut changes = read;
        let mut set = |name: &str, blob| changes.push((name.to_owned(), Change::Set(vec![blob])));
        set(IDENTITY, written(kept::encode(&self.identity))?);
        if let Some(courses) = courses {
            set(COURSES, written(kept::encode(courses))?);
        }
        changes.extend(kept::prefixed(FLEET, fleet.snapshot(self.whole).map_err(|reason| self.unusable(reason))?));
        let at = clock::now();
        let checkpoint = Checkpoint { made_at: at, operations_seq: 0, whole: self.whole, changes };
        let decisions = decisions.iter().map(|decision| (decision.clone(), Vec::new())).collect();
        self.store.commit(&Commit { at, decisions, checkpoint: Some(checkpoint), ..Commit::default() })?;
        self.whole = false;
        Ok(())
    }

    /// Removes the state: the backtest has come to its end.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(self) -> Result<(), StateError> {
        let path = self.store.path().to_owned();
        drop(self.store);
        std::fs::remove_file(&path).map_err(|source| StateError::Io { path: path.clone(), source })?;
        // Others may have their states, or anything, beside it.
        let _ = path.parent().map(std::fs::remove_dir);
        Ok(())
    }
}
