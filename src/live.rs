//! The daemon's live view, shared by the thread that judges and those who look: an immutable snapshot, replaced about once a
//! second, and the commands that operators send back.

pub use crate::engine::judge::Operation;

mod history;

pub use history::{History, Kept, KeptBucket, KeptSample, Sample, most};

use crate::engine::outcome::Counts;
use crate::engine::state::{BinsState, CloseLook, ExperimentState};
use crate::engine::time::Millis;
use crate::rules::Loaded;
use crate::rules::reload::{Change, FileState, State};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use tokio::sync::{broadcast, oneshot};

/// The newest view, cheap to read and to replace, and how its figures went.
#[derive(Clone, Default)]
pub struct Live(Arc<Shared>);

struct Shared {
    newest: RwLock<Newest>,
    history: Mutex<History>,
    looks: broadcast::Sender<Arc<CloseLook>>,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared { newest: RwLock::default(), history: Mutex::default(), looks: broadcast::Sender::new(LOOKS) }
    }
}

#[derive(Default)]
struct Newest {
    view: Arc<View>,
    files: Arc<Vec<FileState>>,
}

/// Close looks that wait for whoever listens; the oldest go, since newer ones come.
const LOOKS: usize = 64;

impl Live {
    pub fn get(&self) -> Arc<View> {
        Arc::clone(&self.0.newest.read().unwrap_or_else(|e| e.into_inner()).view)
    }

    pub fn set(&self, view: impl Into<Arc<View>>) {
        self.0.newest.write().unwrap_or_else(|e| e.into_inner()).view = view.into();
    }

    /// How the rule files stand, by name.
    pub fn files(&self) -> Arc<Vec<FileState>> {
        Arc::clone(&self.0.newest.read().unwrap_or_else(|e| e.into_inner()).files)
    }

    pub fn set_files(&self, files: Vec<FileState>) {
        self.0.newest.write().unwrap_or_else(|e| e.into_inner()).files = Arc::new(files);
    }

    /// How the figures went.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Tells of a close look at an experiment.
    pub fn tell_look(&self, look: &Arc<CloseLook>) {
        // Nobody may listen.
        let _ = self.0.looks.send(Arc::clone(look));
    }

    /// Close looks from now on.
    pub fn looks(&self) -> broadcast::Receiver<Arc<CloseLook>> {
        self.0.looks.subscribe()
    }
}

/// Everything that the API shows, at one instant.
#[derive(Clone, Debug, Default, Serialize)]
pub struct View {
    /// Wall clock of this view, ms since the epoch.
    pub at: Millis,
    /// By name.
    pub experiments: Vec<ExperimentState>,
    pub counts: Counts,
    pub partitions: Vec<PartitionView>,
    /// What must hold before the daemon is ready.
    pub checks: Vec<Check>,
    /// Why there is nothing to show or to command: another daemon is the active one, or this one is starting.
    #[serde(skip)]
    pub unavailable: Option<String>,
}

impl View {
    pub fn experiment(&self, name: &str) -> Option<&ExperimentState> {
        self.experiments.iter().find(|e| e.experiment == name)
    }
}

/// One input partition number (over all co-partitioned topics).
#[derive(Clone, Debug, Default, Serialize)]
pub struct PartitionView {
    pub partition: i32,
    /// Largest event time seen, ms since the epoch.
    pub watermark: Option<Millis>,
    pub idle: bool,
    pub counts: Counts,
    /// Records that the topics hold beyond what has been read, by topic.
    pub lag: BTreeMap<String, i64>,
}

/// A readiness check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    pub detail: String,
}

/// What is asked of the thread that judges.
#[derive(Debug)]
pub enum Command {
    Operate(Request),
    /// Goes on by these rules.
    Reload(Box<Reload>),
    /// One experiment with all its intervals and histograms, which are too dear to be in every view.
    Look {
        experiment: String,
        reply: oneshot::Sender<Option<CloseLook>>,
    },
    /// Histograms of one guardrail and bucket.
    Bins {
        experiment: String,
        guardrail: String,
        bucket: String,
        reply: oneshot::Sender<Option<BinsState>>,
    },
}

/// Rules on their way to the judge and the workers.
#[derive(Debug)]
pub struct Reload {
    pub loaded: Loaded,
    pub changes: Vec<Change>,
    /// Who asked, when a person did.
    pub author: Option<String>,
    pub reply: oneshot::Sender<Result<(), Refusal>>,
}

/// Asks for the rule files to be read again.
#[derive(Debug)]
pub struct ReloadRequest {
    /// Who asks; `None` for a signal.
    pub author: Option<String>,
    /// Says what would change, and changes nothing.
    pub dry_run: bool,
    pub reply: oneshot::Sender<Result<ReloadReport, Refusal>>,
}

/// What came of reading the rule files again.
#[derive(Clone, Debug, Serialize)]
pub struct ReloadReport {
    /// What has changed, or would.
    pub changes: Vec<Change>,
    pub files: Vec<FileState>,
}

impl ReloadReport {
    /// Whether all files are in force as they are.
    pub fn is_clean(&self) -> bool {
        self.files.iter().all(|file| !matches!(file.state, State::Stale | State::Refused))
    }
}

/// An operator's request on its way to the judge.
#[derive(Debug)]
pub struct Request {
    pub experiment: String,
    pub operation: Operation,
    /// `None` means every bucket but the baseline.
    pub bucket: Option<String>,
    pub author: String,
    /// The reason, or the text of an annotation.
    pub reason: String,
    pub reply: oneshot::Sender<Result<Accepted, Refusal>>,
}

/// What came of a command.
#[derive(Clone, Debug, Serialize)]
pub struct Accepted {
    pub experiment: String,
    /// One sentence for people.
    pub message: String,
    /// Decisions that it made.
    pub decisions: Vec<String>,
}

/// Why a command was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("no experiment `{0}` in the loaded rules")]
    UnknownExperiment(String),
    #[error("{0}")]
    NotPossible(String),
    #[error("the decision could not be stored: {0}")]
    NotStored(String),
}
