//! Writes down how experiments fare, for charts and readouts after a restart and after their end; and forgets in time.
//!
//! What is written are the close looks that are taken in turn (`http/looks`), so it costs the judge nothing of its own.

use crate::clock;
use crate::engine::state::{CloseLook, ExperimentState, Stage};
use crate::engine::time::Millis;
use crate::live::{Kept, Live, most};
use crate::store::{Look, NewSummary, Store, StoreError, StoredPoint};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Interval, MissedTickBehavior};

/// Event time between two points of an experiment, ms.
const STEP: Millis = 10_000;
/// Between two summaries of an experiment in which nothing has happened, ms.
const PAUSE: Millis = 15_000;
/// Looks that are written at once.
const BATCH: usize = 64;
/// How often it is looked what is too old.
const TIDY: Duration = Duration::from_secs(3_600);

pub struct Chronicle {
    store: Store,
    live: Live,
    /// How long the history of an experiment is kept after the last that was heard of it.
    retention: Duration,
    written: BTreeMap<String, Written>,
    /// People have been told that nothing can be written.
    failing: bool,
}

/// What has been written of an experiment.
#[derive(Default)]
struct Written {
    point: Option<Millis>,
    /// When, up to which event time, and of what.
    summary: Option<(Millis, Option<Millis>, Standing)>,
}

/// What makes a new summary due at once.
#[derive(Clone, PartialEq)]
struct Standing {
    revision: u32,
    stage: Stage,
    decisions: Vec<String>,
    stops: Vec<Option<String>>,
    holds: usize,
}

impl Standing {
    fn of(state: &ExperimentState) -> Standing {
        Standing {
            revision: state.revision,
            stage: state.rollout.stage,
            decisions: state.decisions.clone(),
            stops: state.buckets.iter().map(|b| b.stopped.as_ref().map(|stop| stop.confirmation.clone())).collect(),
            holds: state.holds.len(),
        }
    }

    fn is_last(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Ended)
    }
}

/// Gives the charts what was written before the start.
///
/// # Errors
/// The store cannot be read.
pub fn restore(store: &Store, live: &Live, experiments: &[ExperimentState]) -> Result<(), StoreError> {
    for state in experiments {
        let points = store.points(&state.experiment)?;
        // A point that another version wrote in another way is left out.
        let kept = points.into_iter().filter_map(|point| Some((point.at, serde_json::from_str::<Kept>(&point.body).ok()?)));
        live.history().restore(&state.experiment, kept.collect());
    }
    Ok(())
}

enum Task<T> {
    Forget,
    Write(Vec<T>),
}

/// What is to be done next; `None` once nobody tells of looks any more.
async fn next<T: Clone>(looks: &mut Receiver<T>, tidy: &mut Interval) -> Option<Task<T>> {
    let first = loop {
        tokio::select! {
            // Looks come all the time: what is due once an hour must not wait for a moment without any.
            biased;
            _ = tidy.tick() => return Some(Task::Forget),
            look = looks.recv() => match look {
                Ok(look) => break look,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            },
        }
    };
    let waiting = std::iter::from_fn(|| looks.try_recv().ok());
    Some(Task::Write(std::iter::once(first).chain(waiting).take(BATCH).collect()))
}

impl Chronicle {
    pub fn new(store: Store, live: Live, retention: Duration) -> Chronicle {
        Chronicle { store, live, retention, written: BTreeMap::new(), failing: false }
    }

    /// Goes on until the runtime ends, or another daemon has taken over.
    pub async fn keep(mut self) {
        let mut looks = self.live.looks();
        let mut tidy = tokio::time::interval(TIDY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(task) = next(&mut looks, &mut tidy).await {
            let done = tokio::task::spawn_blocking(move || {
                let written = match task {
                    Task::Forget => self.forget(),
                    Task::Write(seen) => self.write(&seen),
                };
                let fenced = written.is_err_and(|error| self.tell(&error));
                (self, fenced)
            });
            match done.await {
                Ok((chronicle, false)) => self = chronicle,
                _ => return,
            }
        }
    }

    /// Logs the first of several failures; whether none of them will pass.
    fn tell(&mut self, error: &StoreError) -> bool {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!("the history of experiments cannot be written: {error}");
        }
        error.is_fenced()
    }

    fn write(&mut self, seen: &[Arc<CloseLook>]) -> Result<(), StoreError> {
        let now = clock::now();
        let looks: Vec<Look> = seen.iter().filter_map(|seen| self.due(seen, now).transpose()).collect::<Result<_, _>>()?;
        if looks.is_empty() {
            return Ok(());
        }
        let most = most(self.live.get().experiments.len());
        self.store.remember(&looks, u32::try_from(most).unwrap_or(u32::MAX))?;
        self.failing = false;
        let written = seen.iter().map(|seen| &seen.state);
        for (state, look) in written.filter_map(|state| Some((state, looks.iter().find(|look| look.experiment == state.experiment)?))) {
            let written = self.written.entry(state.experiment.clone()).or_default();
            if let Some(point) = &look.point {
                written.point = Some(point.at);
            }
            if look.summary.is_some() {
                written.summary = Some((now, state.judged_to, Standing::of(state)));
            }
        }
        Ok(())
    }

    /// What is to be written of a look, if anything.
    fn due(&mut self, seen: &CloseLook, now: Millis) -> Result<Option<Look>, StoreError> {
        let state = &seen.state;
        let written = self.written.entry(state.experiment.clone()).or_default();
        let last = written.point;
        let at = state.judged_to.filter(|at| last.is_none_or(|last| at - last >= STEP));
        let point = at.map(|at| Ok::<_, StoreError>(StoredPoint { at, body: serde_json::to_string(&Kept::from(state))? })).transpose()?;
        let standing = Standing::of(state);
        let due = match &written.summary {
            // Once it has ended, windows run empty: its figures are those of the end.
            None if standing.is_last() => {
                let stored = self.store.summary(&state.experiment, Some(state.revision))?;
                !stored.is_some_and(|summary| summary.last)
            }
            None => state.judged_to.is_some(),
            Some((_, _, before)) if *before != standing => true,
            Some((at, to, _)) => !standing.is_last() && now - at >= PAUSE && state.judged_to > *to,
        };
        let summary = due.then(|| {
            // Evidence is large, and that of decisions is with them.
            let mut seen = seen.clone();
            seen.state.guardrails.iter_mut().for_each(|guardrail| guardrail.evidence = None);
            Ok::<_, StoreError>(NewSummary { at: now, last: standing.is_last(), body: serde_json::to_string(&seen)? })
        });
        let look = Look { experiment: state.experiment.clone(), revision: state.revision, point, summary: summary.transpose()? };
        Ok((look.point.is_some() || look.summary.is_some()).then_some(look))
    }

    fn forget(&mut self) -> Result<(), StoreError> {
        let view = self.live.get();
        if view.experiments.is_empty() {
            return Ok(()); // the daemon is starting: who lives is not known yet
        }
        let live: Vec<String> = view.experiments.iter().map(|state| state.experiment.clone()).collect();
        self.written.retain(|name, _| live.contains(name));
        let before = clock::now() - self.retention.as_millis() as Millis;
        for name in self.store.forget(before, &live)? {
            tracing::info!(experiment = name, "history and execution log deleted: store.retention is over");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::broadcast;
    use tokio::time::Instant;

    #[test]
    fn what_is_too_old_is_looked_for_however_many_looks_come() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (teller, mut looks) = broadcast::channel(2 * BATCH);
            // Due already: timers are told in whole milliseconds, and one that is due now may not be seen at once.
            let mut tidy = tokio::time::interval_at(Instant::now() - Duration::from_secs(1), TIDY);
            (0..=BATCH).for_each(|n| drop(teller.send(n)));
            assert!(matches!(next(&mut looks, &mut tidy).await, Some(Task::Forget)));
            assert!(matches!(next(&mut looks, &mut tidy).await, Some(Task::Write(seen)) if seen.len() == BATCH));
            assert!(matches!(next(&mut looks, &mut tidy).await, Some(Task::Write(seen)) if seen == [BATCH]));
            drop(teller);
            assert!(next(&mut looks, &mut tidy).await.is_none());
        });
    }
}
