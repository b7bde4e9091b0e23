//! The Aggregator's state as parts of a checkpoint. Experiments and buckets are kept by name, and what their rules ask by its digest
//! ([`Shape`](crate::engine::shape::Shape)), so that a restart or a reload with other rule files finds its own again.
//!
//! What grows with users is written in chunks, and only what has changed; now and then all of it, so that chunks do not pile up.

use super::feeds::Feeds;
use super::funnels::Funnels;
use super::ids::{Age, Ids};
use super::keys::Key;
use super::profiles::{self, UNKNOWN};
use super::tallies::Changes as Tallied;
use super::units::Assignment;
use super::waiting;
use super::workflows::Workflows;
use super::{Aggregator, Catalog, Counts, Millis, Outcome, Seen, Settings};
use crate::engine::event::{Event, FieldId};
use crate::engine::kept::{self, Bytes, Change, Changes, Kept};
use crate::engine::plan::FieldTable;
use crate::engine::shape::{Plans, Renumber, Shape};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Rows of a chunk, at most: about 800 KB.
pub const CHUNK: usize = 50_000;
/// Checkpoints that append, before one writes everything; partitions take turns.
const APPENDS: u32 = 256;

/// Name of the part with what units have seen and done, in chunks.
pub const UNITS: &str = "units";
const PLANS: &str = "plans";
const STATE: &str = "state";

/// What the chunks of earlier snapshots hold.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Chunks {
    rows: u64,
    appends: u32,
}

/// Everything that is neither in chunks nor a list of ids: rewritten whole.
#[derive(Serialize)]
struct StateRef<'a> {
    watermark: Option<Millis>,
    open: &'a Seen,
    workflows: &'a Workflows,
    funnels: &'a Funnels,
    ids: &'a Age,
    waiting: Vec<&'a [u8]>,
    /// Names of the fields that waiting events number.
    fields: &'a [(String, String)],
    counts: &'a Counts,
    span: Option<(Millis, Millis)>,
    dropped: Dropped,
    kept: Chunks,
}

/// What [`StateRef`] writes.
#[derive(Deserialize)]
struct State {
    watermark: Option<Millis>,
    open: Seen,
    workflows: Workflows,
    funnels: Funnels,
    ids: Age,
    waiting: Vec<Vec<u8>>,
    #[serde(default)]
    fields: Vec<(String, String)>,
    counts: Counts,
    span: Option<(Millis, Millis)>,
    dropped: Dropped,
    kept: Chunks,
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
    rows: Rows,
    tallies: Vec<(u16, Tallied)>,
    profiles: Vec<profiles::Named>,
}

#[derive(Serialize, Deserialize)]
struct About {
    name: String,
    /// See [`Shape`].
    whole: u64,
    exposures: u64,
    buckets: Vec<String>,
}

/// Assignments, by column.
#[derive(Default, Serialize, Deserialize)]
struct Rows {
    /// Eight bytes each.
    unit: Bytes,
    since: Vec<Millis>,
    experiment: Vec<u16>,
    bucket: Bytes,
    /// See [`Assignment::marks`].
    marks: Bytes,
    lag: Vec<u16>,
    profile: Vec<u16>,
    /// An earlier chunk has an older one for the same unit and experiment.
    again: Bytes,
}

struct Row {
    unit: Key,
    /// `experiment` and `since` are as in the chunk.
    assignment: Assignment,
    again: bool,
}

impl Rows {
    fn push(&mut self, unit: Key, a: &Assignment, again: bool) {
        self.unit.0.extend(unit.to_le_bytes());
        self.since.push(a.since);
        self.experiment.push(a.experiment as u16);
        self.bucket.0.push(a.bucket);
        self.marks.0.push(a.marks());
        self.lag.push(a.lag);
        self.profile.push(a.profile);
        self.again.0.push(again.into());
    }

    fn iter(&self) -> impl Iterator<Item = Row> + '_ {
        let units = self.unit.0.as_chunks().0.iter().map(|unit| Key::from_le_bytes(*unit));
        let columns = units.zip(&self.since).zip(&self.experiment).zip(&self.bucket.0).zip(&self.marks.0).zip(&self.lag);
        columns.zip(&self.profile).zip(&self.again.0).map(|(((((((unit, since), experiment), bucket), marks), lag), profile), again)| {
            let (since, experiment) = (*since, u32::from(*experiment));
            let mut assignment = Assignment { since, experiment, bucket: *bucket, lag: *lag, profile: *profile, ..Assignment::default() };
            assignment.mark(*marks);
            Row { unit, assignment, again: *again != 0 }
        })
    }

    /// Empties the columns, and keeps their memory.
    fn clear(&mut self) {
        [&mut self.unit, &mut self.bucket, &mut self.marks, &mut self.again].into_iter().for_each(|column| column.0.clear());
        [&mut self.experiment, &mut self.lag, &mut self.profile].into_iter().for_each(|column| column.clear());
        self.since.clear();
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

/// Visits the assignments of one experiment in a chunk of the part [`UNITS`].
///
/// # Errors
/// The bytes are no chunk.
pub fn assignments(chunk: &[u8], experiment: &str, mut each: impl FnMut(Observed<'_>)) -> Result<(), String> {
    let chunk: Chunk = decode(chunk)?;
    let Some(at) = chunk.experiments.iter().position(|named| named.name == experiment) else { return Ok(()) };
    let buckets = &chunk.experiments[at].buckets;
    for Row { unit, assignment, again } in chunk.rows.iter().filter(|row| row.assignment.experiment as usize == at) {
        let bucket = buckets.get(usize::from(assignment.bucket)).map_or("", String::as_str);
        each(Observed { unit, bucket, since: chunk.from.saturating_add(assignment.since), mixed: assignment.mixed, again });
    }
    Ok(())
}

impl Aggregator {
    /// What has changed since the last call; at first everything.
    ///
    /// # Errors
    /// The state cannot be written down: a fault of the program, after which nothing should be committed.
    pub fn snapshot(&mut self) -> Result<Changes, String> {
        let live = (self.units.len() + self.tallies.len()) as u64;
        let appends_max = APPENDS + self.partition.unsigned_abs() % APPENDS;
        let before = self.kept.filter(|kept| kept.rows <= 3 * live && kept.appends < appends_max);
        let whole = before.is_none();
        let (units, rows) = self.chunks(whole)?;
        let before = before.unwrap_or_default();
        let kept = Chunks { rows: before.rows + rows, appends: before.appends + u32::from(!units.is_empty()) };
        self.kept = Some(kept);
        let mut changes = self.ids.take_changes()?;
        if !std::mem::replace(&mut self.plans_kept, true) {
            changes.push((PLANS.to_owned(), Change::Set(vec![encode(&self.plans())?])));
        }
        let state = encode(&StateRef {
            watermark: self.watermark(),
            open: &self.open,
            workflows: &self.workflows,
            funnels: &self.funnels,
            ids: self.ids.age(),
            waiting: self.waiting.events().collect(),
            fields: if self.waiting.is_empty() { &[] } else { &self.catalog.fields.entries },
            counts: &self.counts,
            span: self.span,
            dropped: Dropped { units: self.units_dropped, tallies: self.tallies.dropped, waiting: self.waiting.dropped },
            kept,
        })?;
        changes.push((STATE.to_owned(), Change::Set(vec![state])));
        match whole {
            true => changes.push((UNITS.to_owned(), Change::Set(units))),
            false if units.is_empty() => {}
            false => changes.push((UNITS.to_owned(), Change::Append(units))),
        }
        Ok(changes)
    }

    /// What the numbers of experiments, cells, signals and funnels in a checkpoint mean.
    fn plans(&self) -> Plans {
        Plans(self.catalog.feeds.iter().map(|f| (f.plan.experiment.clone(), Shape::clone(&f.shape))).collect())
    }

    /// Goes on by other rules, as a restart would. What has been emitted must have been drained: its numbers are those of the old rules.
    ///
    /// # Errors
    /// The state cannot be written down or read: a fault of the program.
    pub fn reload(&mut self, catalog: Arc<Catalog>) -> Result<(), String> {
        let units = |catalog: &Catalog| {
            let of = |feeds: &Feeds| (feeds.plan.experiment.clone(), feeds.shape.whole, feeds.shape.exposures, feeds.shape.segments);
            catalog.feeds.iter().map(of).collect::<Vec<_>>()
        };
        // Most reloads change a limit: then nothing of what grows with users need move.
        let same_units = units(&self.catalog) == units(&catalog);
        let chunks = if same_units { Vec::new() } else { self.chunks(true)?.0 };
        let plans = self.plans();
        let mut old = std::mem::replace(self, Aggregator::new(self.partition, catalog, self.settings.clone()));
        let (watermark, flows) = (old.watermark(), (old.open, old.workflows, old.funnels));
        self.take_up(&plans, flows, (watermark, old.span, old.counts));
        self.ids = old.ids;
        self.kept = self.kept_chunks(&plans, old.kept);
        self.wait_for(old.waiting.events(), &old.catalog.fields);
        (self.units_dropped, self.tallies.dropped, self.waiting.dropped) = (old.units_dropped, old.tallies.dropped, old.waiting.dropped);
        if same_units {
            self.units = std::mem::take(&mut old.units);
            self.tallies = std::mem::take(&mut old.tallies);
            self.set_aside = std::mem::take(&mut old.set_aside);
            std::mem::swap(&mut self.profiles, &mut old.profiles);
        }
        self.forget_ended();
        chunks.iter().try_for_each(|chunk| self.restore_chunk(chunk))?;
        self.profiles.relist(&self.open.profiles);
        Ok(())
    }

    /// Takes up what is numbered as `plans` says.
    fn take_up(
        &mut self,
        plans: &Plans,
        (open, workflows, funnels): (Seen, Workflows, Funnels),
        (watermark, span, counts): (Option<Millis>, Option<(Millis, Millis)>, Counts),
    ) {
        let by = Renumber::new(plans, &self.catalog);
        self.open = open.renumbered(&by);
        self.plans_kept = *plans == self.plans();
        self.workflows = workflows;
        self.workflows.renumber(&by);
        self.funnels = funnels;
        self.funnels.renumber(&by);
        (self.span, self.counts) = (span, counts);
        watermark.into_iter().for_each(|watermark| self.reach(watermark));
    }

    /// What is known of chunks that were written by other rules: those of an experiment that has gone must be forgotten before it comes back.
    fn kept_chunks(&self, plans: &Plans, chunks: Option<Chunks>) -> Option<Chunks> {
        chunks.filter(|_| plans.0.iter().all(|(name, _)| self.catalog.names.contains_key(name)))
    }

    /// Lets events wait again, whose fields have the numbers of another table.
    fn wait_for<'e>(&mut self, events: impl Iterator<Item = &'e [u8]>, fields: &FieldTable) {
        let now: Vec<Option<FieldId>> = fields.entries.iter().map(|(event, pointer)| self.catalog.fields.find(event, pointer)).collect();
        events.for_each(|event| self.wait_again(event, &now));
    }

    /// What has changed about units, or all of it; and how many rows that is.
    fn chunks(&mut self, all: bool) -> Result<(Vec<Vec<u8>>, u64), String> {
        let mut writer = Writer::new(self.catalog.feeds.iter().collect());
        self.units.take_changes(all, |unit, assignment, again| writer.row(unit, assignment, again && !all));
        self.profiles.take_changes(all).into_iter().for_each(|named| writer.profile(named));
        for (experiment, changes) in self.tallies.take_changes(all) {
            changes.split(CHUNK).for_each(|part| writer.tallies(experiment, part));
        }
        writer.finish()
    }

    /// Rebuilds an Aggregator from the parts that snapshots have left. What belongs to experiments and signals that are gone is dropped; an
    /// experiment of another revision keeps its units, but not its open pane, workflows and tallies.
    ///
    /// # Errors
    /// A part is missing, or cannot be read.
    pub fn restore(partition: i32, catalog: Arc<Catalog>, settings: Settings, kept: &Kept) -> Result<Aggregator, String> {
        let lacks = |name: &str| format!("the checkpoint lacks `{name}`");
        let mut new = Aggregator::new(partition, catalog, settings);
        let plans: Plans = kept.read(PLANS)?.ok_or_else(|| lacks(PLANS))?;
        let old: State = kept.read(STATE)?.ok_or_else(|| lacks(STATE))?;
        if old.counts.waiting != old.waiting.len() as u64 {
            return Err(format!("the aggregator's state holds {} waiting events and counts {}", old.waiting.len(), old.counts.waiting));
        }
        new.take_up(&plans, (old.open, old.workflows, old.funnels), (old.watermark, old.span, old.counts));
        new.ids = Ids::restore(old.ids, kept)?;
        new.kept = new.kept_chunks(&plans, Some(old.kept));
        new.wait_for(old.waiting.iter().map(Vec::as_slice), &FieldTable { entries: old.fields, ..FieldTable::default() });
        (new.units_dropped, new.tallies.dropped, new.waiting.dropped) = (old.dropped.units, old.dropped.tallies, old.dropped.waiting);
        new.forget_ended();
        kept.blobs(UNITS).iter().try_for_each(|chunk| new.restore_chunk(chunk))?;
        new.profiles.relist(&new.open.profiles);
        Ok(new)
    }

    /// An event that waited when the snapshot was made; its fields have other numbers now.
    fn wait_again(&mut self, event: &[u8], fields: &[Option<FieldId>]) {
        let now = |mut event: Event<'static>| {
            event.fields.retain(|(id, _)| fields.get(usize::from(*id)).copied().flatten().map(|now| *id = now).is_some());
            event
        };
        let outcome = match waiting::read(event).map(now) {
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
        for Row { unit, mut assignment, .. } in chunk.rows.iter() {
            let Some(Known { experiment, same_rules, buckets, .. }) = known.get(assignment.experiment as usize).and_then(Option::as_ref)
            else {
                continue;
            };
            let Some(bucket) = buckets.get(usize::from(assignment.bucket)).copied().flatten() else { continue };
            (assignment.experiment, assignment.bucket) = (*experiment, bucket);
            assignment.since = assignment.since.saturating_add(chunk.from);
            if !same_rules {
                assignment.renew();
            }
            if !self.profiles.is_sliced(*experiment) {
                assignment.profile = UNKNOWN;
            }
            self.set_aside[*experiment as usize] |= assignment.is_aside();
            self.units.apply(unit, &assignment);
        }
        for mut named in chunk.profiles {
            if let Some(Some(Known { experiment, .. })) = known.get(named.experiment as usize) {
                named.experiment = *experiment;
                self.profiles.apply(named);
            }
        }
        for (experiment, changes) in chunk.tallies {
            if let Some(Some(Known { experiment, same_whole: true, .. })) = known.get(usize::from(experiment)) {
                self.tallies.apply(*experiment, changes);
            }
        }
        Ok(())
    }

    fn known(&self, named: &About) -> Option<Known> {
        let experiment = self.catalog.names.get(&named.name).copied().filter(|e| !self.has_ended(*e))?;
        let Feeds { plan, shape, .. } = &self.catalog.feeds[experiment as usize];
        let same_whole = shape.whole == named.whole;
        let same_rules = same_whole && shape.exposures == named.exposures;
        Some(Known {
            experiment,
            same_whole,
            same_rules,
            buckets: named.buckets.iter().map(|name| plan.bucket(name).map(|b| b as u8)).collect(),
        })
    }
}

/// An experiment of a chunk that still is one, and its buckets: their numbers now.
struct Known {
    experiment: u32,
    /// The same revision and buckets; and who counts is the same, too.
    same_whole: bool,
    same_rules: bool,
    buckets: Vec<Option<u8>>,
}

/// Writes chunks.
struct Writer<'p> {
    feeds: Vec<&'p Feeds>,
    /// Number of each experiment in the open chunk.
    numbers: Vec<Option<u16>>,
    open: Chunk,
    /// Rows of the open chunk, and of all.
    rows: (usize, u64),
    written: Result<Vec<Vec<u8>>, String>,
}

impl<'p> Writer<'p> {
    fn new(feeds: Vec<&'p Feeds>) -> Writer<'p> {
        Writer { numbers: vec![None; feeds.len()], feeds, open: Chunk::default(), rows: (0, 0), written: Ok(Vec::new()) }
    }

    fn row(&mut self, unit: Key, mut a: Assignment, again: bool) {
        if self.rows.0 == 0 {
            self.open.from = a.since;
        }
        (a.since, a.experiment) = (a.since - self.open.from, self.number(a.experiment).into());
        self.open.rows.push(unit, &a, again);
        self.count(1);
    }

    fn tallies(&mut self, experiment: u32, changes: Tallied) {
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
        let Feeds { plan, shape, .. } = self.feeds[experiment as usize];
        *self.numbers[experiment as usize].get_or_insert_with(|| {
            let buckets = plan.buckets.iter().map(|bucket| bucket.name.clone()).collect();
            let (whole, exposures) = (shape.whole, shape.exposures);
            self.open.experiments.push(About { name: plan.experiment.clone(), whole, exposures, buckets });
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
    kept::encode(value).map_err(|e| format!("the aggregator's state {e}"))
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    kept::decode(bytes).map_err(|e| format!("a chunk of units {e}"))
}
