//! Recorded events, in files or in Kafka, through the daemon's own engine, at full speed, for one rule set or several side by side.

pub mod compare;
mod course;
mod court;
mod ranged;
pub mod report;
mod state;

pub use ranged::{Asked, Ranged};
pub use state::StateError;

use crate::engine::aggregate::Aggregator;
use crate::engine::decision::{Decision, Verdict, rfc3339};
use crate::engine::outcome::Counts;
use crate::engine::plan::{Catalog, Settings};
use crate::engine::state::{ExperimentState, FunnelState, RetentionState};
use crate::engine::time::Millis;
use crate::ingest::file::{Feed, Recording};
use crate::ingest::range::RangeError;
use crate::ingest::replay::Replayed;
use course::Courses;
use court::Said;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use serde::{Serialize, Serializer};
use state::{Start, read_so_far};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// Time between two reports of progress.
const LOOK: Duration = Duration::from_millis(100);
/// Lists of emissions on their way to a court at most.
const INBOX: usize = 64;
/// Decisions of all rule sets that nobody has heard yet, at most.
const UNHEARD: usize = 1_024;
/// Time between two checkpoints.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// A rule set to be tried.
pub struct Side {
    /// What people call it.
    pub label: String,
    pub catalog: Catalog,
    /// Its texts, by which a kept state knows it again.
    pub text: String,
}

/// How a backtest is run.
pub struct Terms<'a> {
    pub settings: &'a Settings,
    /// The intervals of guardrails are followed, for a report.
    pub drawn: bool,
    /// Where its state is kept, so that it may be interrupted.
    pub state: Option<&'a Path>,
    /// Set when it is to stop at the next place where it can be taken up again.
    pub stop: &'a AtomicBool,
}

/// What a backtest says while it runs.
pub enum Heard<'a> {
    /// A rule set, by its index, decides.
    Decided(usize, &'a Decision),
    /// How much has been read, in bytes as stored or in records, and of how much, where that is known.
    Progress(u64, Option<u64>),
}

/// What a rule set came to.
pub struct Outcome {
    pub decisions: Vec<Decision>,
    pub summary: Summary,
    pub courses: Option<Courses>,
}

/// Why a backtest did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BacktestError {
    /// A file cannot be opened or read; the message names it.
    #[error(transparent)]
    Recording(#[from] io::Error),
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(transparent)]
    State(#[from] StateError),
    /// It was asked to stop, and has left its state where it can be taken up.
    #[error("interrupted")]
    Interrupted,
}

/// What a recording came to. Serialises as the last line of `backtest --output json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub records: u64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Smallest and largest event time accepted.
    #[serde(serialize_with = "optional_time")]
    pub first: Option<Millis>,
    #[serde(serialize_with = "optional_time")]
    pub last: Option<Millis>,
    pub decisions: u64,
    /// At the end of the recording.
    pub verdicts: Vec<FinalVerdict>,
    /// Where rules ask for them: funnels and retention of each experiment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub journeys: Vec<Journeys>,
    /// What a bound made the engine forget, where it did: name of the bound and how often.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<(&'static str, u64)>,
    /// The experiments at the end of the recording.
    #[serde(skip)]
    pub experiments: Vec<ExperimentState>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Journeys {
    pub experiment: String,
    pub funnels: Vec<FunnelState>,
    pub retention: Vec<RetentionState>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct FinalVerdict {
    pub experiment: String,
    pub bucket: String,
    pub guardrail: String,
    pub verdict: Verdict,
}

/// Reads a recording through the engine, for each of the rule sets. `hear` takes decisions as they are made, those of one rule set in order, and progress.
///
/// # Errors
/// See [`BacktestError`].
pub fn run(
    sides: Vec<Side>,
    recording: &Recording<'_>,
    terms: &Terms<'_>,
    mut hear: impl FnMut(Heard<'_>),
) -> Result<Vec<Outcome>, BacktestError> {
    let mut starts = Vec::new();
    for (index, side) in sides.into_iter().enumerate() {
        let catalog = Arc::new(side.catalog.clone());
        let start = match terms.state {
            Some(dir) => Start::resume((dir, index), (&side.text, &catalog), terms, recording)?,
            None => Start::new(&catalog, terms),
        };
        start.court.decisions().iter().for_each(|decision| hear(Heard::Decided(index, decision)));
        starts.push((catalog, start));
    }
    let consumers: Vec<_> = starts.iter().map(|(catalog, start)| (&catalog.fields, start.position.as_ref())).collect();
    let (feeds, progress) = recording.open(&consumers)?;
    let (said, heard) = bounded(UNHEARD);
    std::thread::scope(|scope| {
        let threads: Vec<_> = starts
            .into_iter()
            .zip(feeds)
            .enumerate()
            .map(|(index, ((_, start), feed))| {
                let (to_court, inbox) = bounded(INBOX);
                let (mut court, mut aggregator) = (start.court, start.aggregator);
                let (said, keeper) = (said.clone(), start.keeper);
                let judging =
                    scope.spawn(move || court.preside(keeper, &inbox, |decision| drop(said.send((index, decision)))).map(|k| (court, k)));
                let reading = scope.spawn(move || read(feed, &mut aggregator, &to_court, terms).map(|whole| (whole, aggregator)));
                (reading, judging)
            })
            .collect();
        drop(said);
        loop {
            match heard.recv_timeout(LOOK) {
                Ok((index, decision)) => hear(Heard::Decided(index, &decision)),
                Err(RecvTimeoutError::Timeout) => hear(Heard::Progress(progress.read(), progress.total)),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        hear(Heard::Progress(progress.read(), progress.total));
        let ended: Vec<_> = threads.into_iter().map(|(reading, judging)| (join(judging), join(reading))).collect();
        let (mut outcomes, mut keepers) = (Vec::new(), Vec::new());
        for (judged, read) in ended {
            // A court that has failed is why reading ended, and not the other way round.
            let ((court, keeper), (whole, aggregator)) = (judged?, read?);
            if !whole {
                return Err(BacktestError::Interrupted);
            }
            let mut replayed = Replayed::default();
            replayed.add(&aggregator);
            outcomes.push(court.outcome(replayed));
            keepers.extend(keeper);
        }
        keepers.into_iter().try_for_each(|keeper| keeper.forget())?;
        Ok(outcomes)
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Reads for one court; returns whether it came to the end of the recording.
fn read(feed: Feed, aggregator: &mut Aggregator, court: &Sender<Said>, terms: &Terms<'_>) -> Result<bool, BacktestError> {
    let mut kept = Instant::now();
    feed.pump(
        aggregator,
        // A court ends early if it fails, and says why itself.
        |emissions| drop(court.send(Said::Emissions(emissions))),
        |feed, aggregator| {
            let stop = terms.stop.load(Ordering::Relaxed);
            if terms.state.is_none() || !stop && kept.elapsed() < KEEP_EVERY {
                return Ok(!stop);
            }
            let Some(position) = feed.position() else { return Ok(true) };
            let changes = read_so_far(aggregator, &position).map_err(BacktestError::unwritten)?;
            kept = Instant::now();
            Ok(court.send(Said::Keep(changes)).is_ok() && !stop)
        },
    )
}

impl BacktestError {
    fn unwritten(reason: String) -> BacktestError {
        BacktestError::Recording(io::Error::other(format!("the state {reason}")))
    }
}

fn optional_time<S: Serializer>(ts: &Option<Millis>, serializer: S) -> Result<S::Ok, S::Error> {
    match ts {
        Some(ts) => rfc3339::serialize(ts, serializer),
        None => serializer.serialize_none(),
    }
}
