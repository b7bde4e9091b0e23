//! What an interrupted backtest goes on from: a database for each rule set, in the format of the daemon's.

use super::course::Courses;
use super::{Side, Terms};
use crate::clock;
use crate::engine::aggregate::Aggregator;
use crate::engine::decision::Decision;
use crate::engine::fleet::Fleet;
use crate::engine::kept::{self, Change, Changes, Kept};
use crate::engine::plan::{Catalog, Settings};
use crate::ingest::file::{Position, Recording};
use crate::store::{Checkpoint, Commit, Store, StoreError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FLEET: &str = "fleet/";
const PARTITION: &str = "partition/";
const IDENTITY: &str = "backtest/identity";
const POSITION: &str = "backtest/position";
const COURSES: &str = "backtest/courses";
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
    pub fn of(text: &str, terms: &Terms<'_>, recording: &Recording<'_>) -> Result<Identity, StateError> {
        let mut hash = Sha256::new();
        for path in recording.files {
            let told = told(path).map_err(|source| StateError::Io { path: path.clone(), source })?;
            hash.update(told.finalize());
        }
        let read = (recording.limits, recording.source.map(|source| &source.name));
        Ok(Identity {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rules: hex(Sha256::new().chain_update(text)),
            settings: hex(Sha256::new().chain_update(format!("{:?} {} {read:?}", terms.settings, terms.drawn))),
            recordings: hex(hash),
        })
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

/// Where a rule set goes on.
pub struct Start {
    pub fleet: Fleet,
    pub aggregator: Aggregator,
    pub position: Option<Position>,
    /// Decided before.
    pub decisions: Vec<Decision>,
    pub courses: Option<Courses>,
    pub keeper: Option<Keeper>,
}

impl Start {
    /// At the beginning of the recording.
    pub fn new(catalog: &Arc<Catalog>, terms: &Terms<'_>) -> Start {
        let settings = terms.settings;
        let fleet = Fleet::new(catalog, settings.pane).sharing(&settings.shared_cause).braking(&settings.blast_radius);
        let aggregator = Aggregator::new(0, Arc::clone(catalog), settings.clone());
        let courses = terms.drawn.then(|| Courses::new(catalog, settings.pane));
        Start { fleet, aggregator, position: None, decisions: Vec::new(), courses, keeper: None }
    }

    /// Where the state in `dir` says, if it says anything. `index`: which of the rule sets this is.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn resume(
        (dir, index): (&Path, usize),
        (side, catalog): (&Side, &Arc<Catalog>),
        terms: &Terms<'_>,
        recording: &Recording<'_>,
    ) -> Result<Start, StateError> {
        let failed = |source| StateError::Io { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let path = dir.join(format!("backtest-{}.db", index + 1));
        let identity = Identity::of(&side.text, terms, recording)?;
        let mut store = Store::open(&path)?;
        let loaded = store.load_checkpoint()?.checkpoint;
        let mut start = Start::new(catalog, terms);
        let unusable = |reason| StateError::Unusable { path: path.clone(), reason };
        if let Some(checkpoint) = &loaded {
            let mut parts = checkpoint.parts.clone();
            let kept: Identity = parts.read(IDENTITY).map_err(unusable)?.unwrap_or_default();
            if let Some(what) = kept.differs_from(&identity) {
                return Err(StateError::Other { path, what });
            }
            start.restore(catalog, terms.settings, &mut parts).map_err(unusable)?;
            let known = store.decisions_after(0)?.into_iter().filter(|d| d.seq <= checkpoint.decisions_seq);
            let read = known.map(|d| serde_json::from_str(d.body.get())).collect::<Result<_, _>>();
            start.decisions = read.map_err(|e| unusable(format!("a decision cannot be read: {e}")))?;
            // Whether a bucket has stopped, and what follows if not, is taken up from the decisions, as by a daemon that starts again.
            start.decisions.iter().for_each(|decision| start.fleet.adopt(decision));
        }
        start.keeper = Some(Keeper { store, identity, whole: loaded.is_none() });
        Ok(start)
    }

    fn restore(&mut self, catalog: &Arc<Catalog>, settings: &Settings, parts: &mut Kept) -> Result<(), String> {
        let restored = Fleet::restore(catalog, settings.pane, &parts.split_off(FLEET))?;
        if let Some((experiment, reason)) = restored.lost.first() {
            return Err(format!("`{experiment}`: {reason}"));
        }
        self.fleet = restored.fleet.sharing(&settings.shared_cause).braking(&settings.blast_radius);
        self.aggregator = Aggregator::restore(0, Arc::clone(catalog), settings.clone(), &parts.split_off(PARTITION))?;
        self.position = parts.read(POSITION)?;
        self.courses = parts.read(COURSES)?;
        Ok(())
    }
}

/// What the reading half of a checkpoint says; the judging half adds its own.
pub struct Snapshot {
    pub changes: Changes,
    pub position: Position,
}

/// Keeps the state of one rule set.
pub struct Keeper {
    store: Store,
    identity: Identity,
    /// Nothing has been kept yet.
    whole: bool,
}

impl Keeper {
    /// Writes a checkpoint, with what has been decided since the last one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(
        &mut self,
        fleet: &mut Fleet,
        snapshot: Snapshot,
        decisions: &[Decision],
        courses: Option<&Courses>,
    ) -> Result<(), StateError> {
        let unusable = |reason| StateError::Unusable { path: self.store.path().to_owned(), reason };
        let mut changes = kept::prefixed(FLEET, fleet.snapshot(self.whole).map_err(unusable)?);
        changes.extend(kept::prefixed(PARTITION, snapshot.changes));
        let mut set = |name: &str, blob: Result<Vec<u8>, String>| {
            changes.push((name.to_owned(), Change::Set(vec![blob.map_err(unusable)?])));
            Ok::<(), StateError>(())
        };
        set(POSITION, kept::encode(&snapshot.position))?;
        set(IDENTITY, kept::encode(&self.identity))?;
        courses.map_or(Ok(()), |courses| set(COURSES, kept::encode(courses)))?;
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
