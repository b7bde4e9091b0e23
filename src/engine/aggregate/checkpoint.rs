//! The Aggregator's state as bytes. Experiments and buckets are kept by name, so that a restart with other rule files finds its own again.
//!
//! What grows with users is written in chunks, and only what has changed; now and then all of it, so that chunks do not pile up.

use super::funnels::Funnels;
use super::ids::Ids;
use super::keys::Key;
use super::profiles;
use super::tallies::Changes;
use super::units::Assignment;
use super::waiting;
use super::workflows::Workflows;
use super::{Aggregator, Catalog, Counts, Millis, Outcome, Seen, Settings};
use crate::engine::pane::CellId;
use crate::engine::plan::Plan;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Rows of a chunk, at most: about 800 KB.
const CHUNK: usize = 50_000;
/// Checkpoints that append, before one writes everything; partitions take turns.
const APPENDS: u32 = 256;

/// State of an Aggregator, for a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Everything but the units: rewritten whole.
    pub state: Vec<u8>,
    /// Chunks of what units have seen and done since the last snapshot.
    pub units: Vec<Vec<u8>>,
    /// The chunks hold everything: those of earlier snapshots are not needed any more.
    pub whole: bool,
}

/// What the chunks of earlier snapshots hold.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    rows: u64,
    appends: u32,
}

#[derive(Serialize)]
struct StateRef<'a> {
    /// Name of each experiment, and a digest of what its open pane depends on.
    experiments: Vec<(&'a str, u64)>,
    /// First cell of each, and where those of the last one end.
    cells: &'a [CellId],
    watermark: Option<Millis>,
    open: &'a Seen,
    workflows: &'a Workflows,
    funnels: &'a Funnels,
    ids: &'a Ids,
    waiting: Vec<&'a [u8]>,
    counts: &'a Counts,
    span: Option<(Millis, Millis)>,
    dropped: Dropped,
    kept: Kept,
}

#[derive(Deserialize)]
struct State {
    experiments: Vec<(String, u64)>,
    cells: Vec<CellId>,
    watermark: Option<Millis>,
    open: Seen,
    workflows: Workflows,
    funnels: Funnels,
    ids: Ids,
    waiting: Vec<Vec<u8>>,
    counts: Counts,
    span: Option<(Millis, Millis)>,
    dropped: Dropped,
    kept: Kept,
}

/// Counters of bounds that what is kept elsewhere does not count itself.
#[derive(Serialize, Deserialize)]
struct Dropped {
    units: u64,
    tallies: u64,
    waiting: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Chunk {
    /// The experiments that the rest is about; it has their numbers in this list.
    experiments: Vec<About>,
    /// Times are counted from here.
    from: Millis,
    rows: Vec<Row>,
    tallies: Vec<(u16, Changes)>,
    profiles: Vec<profiles::Named>,
}

#[derive(Serialize, Deserialize)]
struct About {
    name: String,
    signature: u64,
    buckets: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    unit: [u8; 8],
    since: Millis,
    experiment: u16,
    bucket: u8,
    /// See [`Assignment::marks`].
    marks: u8,
    lag: u16,
    profile: u16,
    /// An earlier chunk has an older one for the same unit and experiment.
    again: bool,
}

impl Row {
    fn assignment(&self, experiment: u32, bucket: u8, from: Millis) -> Assignment {
        let since = from.saturating_add(self.since);
        let mut a = Assignment { since, experiment, bucket, lag: self.lag, profile: self.profile, ..Assignment::default() };
        a.mark(self.marks);
        a
    }
}

/// An assignment in a chunk, as the world outside sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed<'c> {
    /// See [`super::keys::pair`].
    pub unit: Key,
    pub bucket: &'c str,
    /// Event time of the first exposure.
    pub since: Millis,
    /// The unit has been seen in another bucket, too.
    pub mixed: bool,
    /// It replaces one that an earlier chunk has.
    pub again: bool,
}

/// Visits the assignments of one experiment in a chunk of [`Snapshot::units`].
///
/// # Errors
/// The bytes are no chunk.
pub fn assignments(chunk: &[u8], experiment: &str, mut each: impl FnMut(Observed<'_>)) -> Result<(), String> {
    let chunk: Chunk = decode(chunk)?;
    let Some(at) = chunk.experiments.iter().position(|named| named.name == experiment) else { return Ok(()) };
    let buckets = &chunk.experiments[at].buckets;
    for row in chunk.rows.iter().filter(|row| usize::from(row.experiment) == at) {
        let bucket = buckets.get(usize::from(row.bucket)).map_or("", String::as_str);
        let Assignment { since, mixed, .. } = row.assignment(0, row.bucket, chunk.from);
        each(Observed { unit: Key::from_le_bytes(row.unit), bucket, since, mixed, again: row.again });
    }
    Ok(())
}

impl Aggregator {
    /// State so far; the units part holds what changed since the last call, or everything.
    ///
    /// # Errors
    /// The state cannot be written down: a fault of the program, after which nothing should be committed.
    pub fn snapshot(&mut self) -> Result<Snapshot, String> {
        let live = (self.units.len() + self.tallies.len()) as u64;
        let appends_max = APPENDS + self.partition.unsigned_abs() % APPENDS;
        let before = self.kept.filter(|kept| kept.rows <= 3 * live && kept.appends < appends_max);
        let whole = before.is_none();
        let (units, rows) = self.chunks(whole)?;
        let before = before.unwrap_or_default();
        let kept = Kept { rows: before.rows + rows, appends: before.appends + u32::from(!units.is_empty()) };
        self.kept = Some(kept);
        let state = encode(&StateRef {
            experiments: self.catalog.feeds.iter().map(|f| (f.plan.experiment.as_str(), f.signature)).collect(),
            cells: &self.catalog.cells,
            watermark: self.watermark,
            open: &self.open,
            workflows: &self.workflows,
            funnels: &self.funnels,
            ids: &self.ids,
            waiting: self.waiting.events().collect(),
            counts: &self.counts,
            span: self.span,
            dropped: Dropped { units: self.units_dropped, tallies: self.tallies.dropped, waiting: self.waiting.dropped },
            kept,
        })?;
        Ok(Snapshot { state, units, whole })
    }

    /// What has changed about units, or all of it; and how many rows that is.
    fn chunks(&mut self, all: bool) -> Result<(Vec<Vec<u8>>, u64), String> {
        let mut writer = Writer::new(self.catalog.feeds.iter().map(|f| (f.plan.as_ref(), f.signature)).collect());
        self.units.take_changes(all, |unit, assignment, again| writer.row(unit, &assignment, again && !all));
        self.profiles.take_changes(all).into_iter().for_each(|named| writer.profile(named));
        for (experiment, changes) in self.tallies.take_changes(all) {
            changes.split(CHUNK).for_each(|part| writer.tallies(experiment, part));
        }
        writer.finish()
    }

    /// Rebuilds an Aggregator from its newest `state` and all `units` chunks, oldest first. What belongs to experiments that are gone
    /// is dropped; an experiment whose signals or buckets changed keeps its units, but not its open pane, workflows and tallies.
    pub fn restore(
        partition: i32,
        catalog: Arc<Catalog>,
        settings: Settings,
        state: &[u8],
        units: &[Vec<u8>],
    ) -> Result<Aggregator, String> {
        let mut new = Aggregator::new(partition, catalog, settings);
        let old: State = decode(state)?;
        if old.counts.waiting != old.waiting.len() as u64 {
            return Err(format!("the aggregator's state holds {} waiting events and counts {}", old.waiting.len(), old.counts.waiting));
        }
        let same: Vec<Option<u32>> = old.experiments.iter().map(|(name, signature)| new.same(name, *signature)).collect();
        new.open = old.open.remap(&old.cells, &new.catalog.cells, |e| *same.get(e as usize)?);
        new.workflows = old.workflows;
        new.workflows.remap(|e| *same.get(e as usize)?);
        new.funnels = old.funnels;
        new.funnels.remap(|e| *same.get(e as usize)?);
        new.watermark = old.watermark;
        new.ids = old.ids;
        new.counts = old.counts;
        new.span = old.span;
        new.kept = Some(old.kept);
        old.waiting.iter().for_each(|event| new.wait_again(event));
        (new.units_dropped, new.tallies.dropped, new.waiting.dropped) = (old.dropped.units, old.dropped.tallies, old.dropped.waiting);
        new.forget_ended();
        units.iter().try_for_each(|chunk| new.restore_chunk(chunk))?;
        new.profiles.relist(&new.open.profiles);
        Ok(new)
    }

    fn same(&self, name: &str, signature: u64) -> Option<u32> {
        let index = *self.catalog.names.get(name)?;
        (self.catalog.feeds[index as usize].signature == signature).then_some(index)
    }

    /// An event that waited when the snapshot was made.
    fn wait_again(&mut self, event: &[u8]) {
        let outcome = match waiting::read(event) {
            None => Outcome::Unattributed,
            Some(event) if event.experiment.as_deref().is_some_and(|name| !self.catalog.names.contains_key(name)) => {
                Outcome::UnknownExperiment
            }
            Some(event) => self.wait(&event),
        };
        self.counts.settle(outcome);
    }

    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), String> {
        let chunk: Chunk = decode(chunk)?;
        let known: Vec<Option<Known>> = chunk.experiments.iter().map(|named| self.known(named)).collect();
        for row in &chunk.rows {
            let Some(Known { experiment, same, buckets }) = known.get(usize::from(row.experiment)).and_then(Option::as_ref) else {
                continue;
            };
            let Some(bucket) = buckets.get(usize::from(row.bucket)).copied().flatten() else { continue };
            let mut assignment = row.assignment(*experiment, bucket, chunk.from);
            if !same {
                assignment.renew();
            }
            self.set_aside[*experiment as usize] |= assignment.is_aside();
            self.units.apply(Key::from_le_bytes(row.unit), &assignment);
        }
        for mut named in chunk.profiles {
            if let Some(Some(Known { experiment, .. })) = known.get(named.experiment as usize) {
                named.experiment = *experiment;
                self.profiles.apply(named);
            }
        }
        for (experiment, changes) in chunk.tallies {
            let Some(named) = chunk.experiments.get(usize::from(experiment)) else { continue };
            if let Some(experiment) = self.same(&named.name, named.signature).filter(|e| !self.has_ended(*e)) {
                self.tallies.apply(experiment, changes);
            }
        }
        Ok(())
    }

    fn known(&self, named: &About) -> Option<Known> {
        let experiment = self.catalog.names.get(&named.name).copied().filter(|e| !self.has_ended(*e))?;
        let plan = &self.catalog.feeds[experiment as usize].plan;
        let same = self.catalog.feeds[experiment as usize].signature == named.signature;
        Some(Known { experiment, same, buckets: named.buckets.iter().map(|name| plan.bucket(name).map(|b| b as u8)).collect() })
    }
}

/// An experiment of a chunk that still is one, and its buckets: their numbers now.
struct Known {
    experiment: u32,
    /// By the same rules.
    same: bool,
    buckets: Vec<Option<u8>>,
}

/// Writes chunks.
struct Writer<'p> {
    plans: Vec<(&'p Plan, u64)>,
    /// Number of each experiment in the open chunk.
    numbers: Vec<Option<u16>>,
    open: Chunk,
    /// Rows of the open chunk, and of all.
    rows: (usize, u64),
    written: Result<Vec<Vec<u8>>, String>,
}

impl<'p> Writer<'p> {
    fn new(plans: Vec<(&'p Plan, u64)>) -> Writer<'p> {
        Writer { numbers: vec![None; plans.len()], plans, open: Chunk::default(), rows: (0, 0), written: Ok(Vec::new()) }
    }

    fn row(&mut self, unit: Key, a: &Assignment, again: bool) {
        if self.rows.0 == 0 {
            self.open.from = a.since;
        }
        let (since, experiment) = (a.since - self.open.from, self.number(a.experiment));
        let Assignment { bucket, lag, profile, .. } = *a;
        self.open.rows.push(Row { unit: unit.to_le_bytes(), since, experiment, bucket, marks: a.marks(), lag, profile, again });
        self.count(1);
    }

    fn tallies(&mut self, experiment: u32, changes: Changes) {
        let (number, n) = (self.number(experiment), changes.len());
        self.open.tallies.push((number, changes));
        self.count(n);
    }

    fn profile(&mut self, mut named: profiles::Named) {
        named.experiment = u32::from(self.number(named.experiment));
        self.open.profiles.push(named);
        self.rows.0 += 1;
    }

    fn number(&mut self, experiment: u32) -> u16 {
        let (plan, signature) = self.plans[experiment as usize];
        *self.numbers[experiment as usize].get_or_insert_with(|| {
            let buckets = plan.buckets.iter().map(|bucket| bucket.name.clone()).collect();
            self.open.experiments.push(About { name: plan.experiment.clone(), signature, buckets });
            (self.open.experiments.len() - 1) as u16
        })
    }

    fn count(&mut self, rows: usize) {
        self.rows = (self.rows.0 + rows, self.rows.1 + rows as u64);
        if self.rows.0 >= CHUNK {
            self.close();
        }
    }

    fn close(&mut self) {
        match (encode(&self.open), &mut self.written) {
            (Ok(bytes), Ok(written)) => written.push(bytes),
            (Err(error), _) => self.written = Err(error),
            (Ok(_), Err(_)) => {}
        }
        self.open = Chunk { rows: std::mem::take(&mut self.open.rows), ..Chunk::default() };
        self.open.rows.clear();
        self.numbers.fill(None);
        self.rows.0 = 0;
    }

    fn finish(mut self) -> Result<(Vec<Vec<u8>>, u64), String> {
        if self.rows.0 > 0 {
            self.close();
        }
        Ok((self.written?, self.rows.1))
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    postcard::to_stdvec(value).map_err(|e| format!("the aggregator's state cannot be written down: {e}"))
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    postcard::from_bytes(bytes).map_err(|e| format!("the aggregator's state cannot be read: {e}"))
}
