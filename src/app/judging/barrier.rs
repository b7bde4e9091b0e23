//! Checkpoints and reloads: what is written down when all workers have passed the same place.

use super::{CHECKPOINT_PAUSE, Session};
use crate::app::{recovery, reload};
use crate::engine::decision::{LogEntry, LogKind, Output};
use crate::engine::time::Millis;
use crate::ingest::kafka::{FromIngest, PartitionSnapshot, Rules};
use crate::ingest::mapped::Layouts;
use crate::live::{Refusal, Reload};
use crate::mapping::Sources;
use crate::rules::reload::Change;
use crate::store::{Checkpoint, Commit};
use crate::telemetry::names;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A checkpoint under way: each worker sends its snapshot in order with its emissions; what it sends afterwards waits until all have.
#[derive(Default)]
pub(super) struct Barrier {
    pub number: u64,
    pub pending: bool,
    pub reported: BTreeSet<usize>,
    pub parts: Vec<PartitionSnapshot>,
    /// Messages of workers that have reported already.
    pub held: Vec<FromIngest>,
    pub since: Option<Duration>,
    /// The rules behind it, where they are others than before it.
    pub reload: Option<Box<Reload>>,
}

impl Session {
    /// Stores what the rules have changed at the start, before a record is read by them.
    pub(super) fn open(&mut self) {
        if let Some((out, rules)) = self.court.opening.take() {
            let commit = Commit { rules: Some(rules), ..self.commit_of(out) };
            self.unsaid |= self.write(&commit).is_none();
            self.wake_for(&commit);
        }
    }

    pub(super) fn rules_of(&self, reload: &Reload) -> Rules {
        // Where a source is gone, its topic is still read until the next start, and is not to be taken for canonical events.
        let new = &reload.loaded.sources;
        let gone = self.court.sources.iter().filter(|old| old.topics.iter().all(|topic| new.of(topic).is_none()));
        let sources = Sources::new(new.iter().chain(gone).cloned().collect());
        Rules { catalog: Arc::new(reload.loaded.catalog.clone()), layouts: Layouts { sources, schemas: self.ingest.schemas().cloned() } }
    }

    /// One worker's part of a checkpoint, or of the last one at the end.
    pub(super) fn snapshot(&mut self, number: u64, worker: usize, parts: Vec<PartitionSnapshot>) {
        // The last snapshots, at the end, come without having been asked for.
        self.barrier.pending = true;
        tracing::debug!(number, worker, "snapshot");
        self.barrier.reported.insert(worker);
        self.barrier.parts.extend(parts);
        if self.barrier.reported.len() < self.court.workers {
            return;
        }
        let started = self.barrier.since.take().unwrap_or_else(|| self.court.clock.steady());
        let parts = std::mem::take(&mut self.barrier.parts);
        let writing = self.court.clock.steady();
        let reload = self.barrier.reload.take();
        let mut out = Output::default();
        if let Some(reload) = &reload {
            let at = self.court.clock.now();
            if let Err(reason) = self.court.fleet.reload(&reload.loaded.catalog, at, &mut out) {
                // What the workers say from here on has other numbers: nothing of it may be judged.
                (self.unsaid, self.stopped) = (true, true);
                return self.give_up(reason);
            }
            out.log.extend(entries(&reload.changes, reload.author.as_deref(), at));
            self.court.rules = reload.loaded.rules.iter().map(|r| (r.plan.experiment.clone(), Arc::clone(r))).collect();
            self.court.sources = self.rules_of(reload).layouts.sources;
        }
        let changes = match recovery::changes(&mut self.court.fleet, parts) {
            Ok(changes) => changes,
            Err(reason) => return self.give_up(reason),
        };
        let mut stood_still = self.since(writing);
        let (made_at, whole) = (self.court.clock.now(), self.court.anew);
        let checkpoint = Checkpoint { made_at, operations_seq: self.court.operations_seq, whole, changes };
        // Rules, what they change and the state that they find are one step: a crash is before it or after it.
        let texts = reload.as_ref().map(|reload| reload::texts(&reload.loaded.used));
        let commit = Commit { checkpoint: Some(checkpoint), rules: texts, ..self.commit_of(out) };
        let committed = if self.unsaid { None } else { self.write(&commit) };
        self.unsaid |= reload.is_some() && committed.is_none();
        if let Some(reload) = reload {
            // Who asked sees what has come of it.
            self.publish();
            let stored = committed.as_ref().map(|_| ()).ok_or_else(|| Refusal::NotStored("the daemon stops".into()));
            // The keeper of the rules may have ended.
            let _ = reload.reply.send(stored);
        }
        if committed.is_some() {
            self.court.anew = false;
            stood_still += self.court.store.held();
            self.wake_for(&commit);
            self.court.metrics.observe(&names::CHECKPOINT_SECONDS, &[], self.since(started).as_secs_f64());
            self.court.metrics.set(&names::CHECKPOINT_AT, &[], made_at as f64 / 1_000.0);
        }
        self.next_checkpoint = self.court.clock.steady() + self.court.checkpoint_every.max(stood_still * CHECKPOINT_PAUSE);
        self.barrier.pending = false;
        self.barrier.reported.clear();
        for message in std::mem::take(&mut self.barrier.held) {
            self.receive(message);
        }
    }
}

/// What the execution log of each experiment says of a change of its rules.
pub fn entries(changes: &[Change], author: Option<&str>, at: Millis) -> Vec<LogEntry> {
    let entry = |change: &Change| {
        let details = if change.lines.is_empty() { String::new() } else { format!(": {}", change.lines.join("; ")) };
        let text = format!("rules {} ({}){details}", change.what.name(), change.file);
        let experiment = change.experiment.clone()?;
        Some(LogEntry { at, experiment, kind: LogKind::Rules, author: author.map(str::to_owned), text, decision: None, links: Vec::new() })
    };
    changes.iter().filter_map(entry).collect()
}
