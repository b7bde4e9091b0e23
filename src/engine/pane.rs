//! What an Aggregator says of one closed pane, and what a Judge reads.
//!
//! A pane is a flat list of [`Observation`]s, one for each record and signal: what a pane costs follows from its records, not from the
//! number of experiments. The [`crate::engine::fleet`] sorts the lists of all partitions by [`CellId`] into a [`Pool`].

mod columns;
mod packed;
mod seen;

use super::histogram::SparseBins;
use super::quality::QualityPartial;
use super::radix::sort_by_cell;
use super::segment::{Listed, NO_PROFILE};
use super::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::BTreeMap;

pub use seen::{Closed, SEEN_MAX, Seen};

/// Everything that one partition saw in one pane.
#[derive(Clone, Debug, PartialEq)]
pub struct PaneBatch {
    pub partition: i32,
    pub pane: Pane,
    /// Largest event time seen in the partition when the pane closed.
    pub watermark: Millis,
    pub seen: Closed,
}

/// A bucket's traffic ([`super::plan::Plan::traffic_cell`]), or one of its signals ([`super::plan::Plan::signal_cell`]), counted over all
/// plans of the [`super::plan::Catalog`]: those of one experiment follow each other.
pub type CellId = u32;

/// One thing that happened: a record to a bucket's traffic, or an event to a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    pub cell: CellId,
    /// How many panes before this one the unit was exposed for the first time; 0 for a record that names its bucket itself.
    pub age: u32,
    /// Of traffic, one of [`traffic`]; of a distribution, its bin and perhaps [`CLAMPED`]; of a rate or count, [`HIT`] and [`FIRST_HIT`];
    /// 0 otherwise.
    pub value: u16,
    /// Which of the [`BATCHES`] batches its unit hashes to, with [`AGAIN`] or not; or [`NO_UNIT`].
    pub batch: u16,
    /// Index into [`Seen::profiles`] (or those of a [`Pool`]), or [`NO_PROFILE`].
    pub profile: u32,
}

/// What a record is to the traffic of a bucket.
pub mod traffic {
    /// Not an exposure.
    pub const EVENT: u16 = 0;
    /// An exposure of a unit that has been exposed to the bucket before, or cannot be remembered.
    pub const EXPOSURE: u16 = 1;
    /// The first exposure of a unit to the experiment; the age is that of its cohort.
    pub const FIRST_EXPOSURE: u16 = 2;
    /// The first exposure to this bucket of a unit that belongs to another one.
    pub const MIXED_EXPOSURE: u16 = 3;
    /// A control record: of the experiment, of no bucket.
    pub const CONTROL: u16 = 4;
    /// A refused record that names the experiment.
    pub const REFUSED: u16 = 5;
    /// Not an exposure, of a unit that does not count.
    pub const ASIDE: u16 = 6;
}

/// In the value of a distribution, beside the bin: it was moved to the nearest bound of the histogram.
pub const CLAMPED: u16 = 1 << 15;
/// In the value of a rate: the event is a hit. Every event of a count is one.
pub const HIT: u16 = 1;
/// In the value of a rate or count whose observation is the unit: the unit's first hit.
pub const FIRST_HIT: u16 = 2;

/// Batches of units in which clustering is measured (Rao and Scott 1992: variance between batches against that of independent trials).
pub const BATCHES: usize = 256;
/// [`Observation::batch`] of a record without a unit.
pub const NO_UNIT: u16 = u16::MAX;
/// Set in [`Observation::batch`] unless this is known to be the unit's first event of its kind.
pub const AGAIN: u16 = 1 << 15;

impl Observation {
    /// Bin of a distribution.
    pub fn bin(self) -> u16 {
        self.value & !CLAMPED
    }

    pub fn is_clamped(self) -> bool {
        self.value & CLAMPED != 0
    }

    pub fn is_hit(self) -> bool {
        self.value & HIT != 0
    }

    pub fn is_first_hit(self) -> bool {
        self.value & FIRST_HIT != 0
    }
}

/// A workflow that turned out abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandoned {
    pub cell: CellId,
    /// Pane in which its start was counted.
    pub begun: Pane,
    /// Age of its unit's cohort at the start, and the unit's batch.
    pub age: u32,
    pub batch: u16,
    /// As of the [`Observation`].
    pub profile: u32,
}

/// Sums over the units of one cohort (or over events): of a value y, and of a covariate x.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    pub y: f64,
    pub yy: f64,
    pub x: f64,
    pub xx: f64,
    pub xy: f64,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, more: Sums) {
        self.y += more.y;
        self.yy += more.yy;
        self.x += more.x;
        self.xx += more.xx;
        self.xy += more.xy;
    }
}

/// What observations for which there was no room have in common: windows count them, tests against the baseline do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Surplus {
    pub cell: CellId,
    /// As of the [`Observation`]; of a workflow, whether it was abandoned.
    pub value: u16,
    /// Of traffic, as of the [`Observation`]; of an abandoned workflow, how many panes ago it began; 0 otherwise.
    pub age: u32,
}

/// A count of a funnel: workflows of a bucket that began in one pane, and what they have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stride {
    /// Index into [`super::plan::Catalog::plans`].
    pub experiment: u32,
    /// Index into [`super::plan::Plan::funnels`].
    pub funnel: u8,
    pub bucket: u8,
    pub begun: Pane,
    pub progress: Progress,
}

/// How far a workflow has come. Each counts once as started, and under at most one of the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Progress {
    Started,
    /// Begun once more under its id.
    Restarted,
    /// Reached a step in time, by its index; in whatever order.
    Step(u8),
    Completed,
    /// After its limit.
    CompletedLate,
    /// Explicitly, and not completed afterwards.
    Abandoned,
    /// Its limit has passed.
    TimedOut,
}

/// From an earlier pane to a later one.
pub fn panes_between(earlier: Pane, later: Pane) -> u32 {
    u32::try_from(later.0 - earlier.0).unwrap_or(0)
}

/// One pane of all partitions: by cell, then by partition, then in the order of arrival.
#[derive(Default)]
pub struct Pool {
    observations: Vec<Observation>,
    abandoned: Vec<Abandoned>,
    sums: Vec<(CellId, Part)>,
    surplus: Vec<(Surplus, u64)>,
    controls: Vec<(u32, Control)>,
    strides: Vec<(Stride, i64)>,
    quality: BTreeMap<u32, QualityPartial>,
    profiles: Vec<Listed>,
}

/// Sums of values that one partition has seen of a cohort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Of the cohort.
    pub age: u32,
    /// As of the [`Observation`].
    pub profile: u32,
    /// Observations begun.
    pub n: u64,
    pub sums: Sums,
}

/// One experiment in one pane.
pub struct PanePartial<'p> {
    cells: Vec<Cell<'p>>,
    controls: &'p [(u32, Control)],
    strides: &'p [(Stride, i64)],
    /// What it says of the data itself, if anything.
    pub quality: Option<&'p QualityPartial>,
    /// Of the whole pool.
    pub profiles: &'p [Listed],
}

/// What a cell holds of one pane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cell<'p> {
    pub observations: &'p [Observation],
    pub abandoned: &'p [Abandoned],
    pub sums: &'p [(CellId, Part)],
    pub surplus: &'p [(Surplus, u64)],
}

/// The traffic of a bucket in one pane.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BucketPartial {
    pub exposures: u64,
    /// Units exposed to the experiment for the first time, here to this bucket.
    pub new_units: u64,
    /// Units exposed to this bucket that belong to another one.
    pub mixed_units: u64,
    /// Records other than exposures.
    pub events: u64,
    /// Of the units exposed for the first time, those that do not belong to this pane's cohort: age of theirs, and how many.
    pub enrolled_before: Vec<(u32, u64)>,
    /// Control records, and refused ones that name the experiment: of the first bucket, on behalf of all.
    pub controls: u64,
    pub refused: u64,
    /// Records other than exposures, of units that do not count.
    pub aside: u64,
}

impl Pool {
    /// Takes in what partitions have seen, in the stead of what it held; the memory of its observations is kept. So is the order of
    /// partitions: sums of floats depend on it. `room` is for sorting.
    pub fn fill(&mut self, partitions: Vec<Closed>, room: &mut Vec<Observation>) {
        let mut observations = std::mem::take(&mut self.observations);
        observations.clear();
        observations.reserve(partitions.iter().map(Closed::len).sum());
        *self = Pool { observations, ..Pool::default() };
        for Closed { observations, rest: mut seen } in partitions {
            let new = observations.unpack(&mut self.observations);
            take_profiles(&mut self.profiles, new, &mut seen);
            self.abandoned.extend(seen.abandoned);
            self.sums.extend(seen.sums.into_iter().flat_map(|(cell, parts)| parts.into_iter().map(move |part| (cell, part))));
            self.surplus.extend(seen.surplus);
            self.controls.extend(seen.controls);
            self.strides.extend(seen.strides);
            seen.quality.into_iter().for_each(|(experiment, more)| self.quality.entry(experiment).or_default().merge(more));
        }
        sort_by_cell(&mut self.observations, room);
        self.abandoned.sort_by_key(|a| a.cell);
        self.sums.sort_by_key(|(cell, _)| *cell);
        self.surplus.sort_by_key(|(s, _)| s.cell);
        self.controls.sort_by_key(|(experiment, _)| *experiment);
        self.strides.sort_by_key(|(stride, _)| stride.experiment);
    }

    /// Splits into experiments, whose first cells are `firsts` (and one more, where the last one ends); those that saw nothing are left
    /// out.
    pub fn partials<'p>(&'p self, firsts: &'p [CellId]) -> impl Iterator<Item = (usize, PanePartial<'p>)> + 'p {
        let mut rest = Cell { observations: &self.observations, abandoned: &self.abandoned, sums: &self.sums, surplus: &self.surplus };
        let (mut controls, mut strides) = (self.controls.as_slice(), self.strides.as_slice());
        firsts.windows(2).enumerate().filter_map(move |(experiment, span)| {
            let mut own = rest.split_before(span[1]);
            let (mine, others) = controls.split_at(controls.partition_point(|(e, _)| *e as usize <= experiment));
            controls = others;
            let (taken, others) = strides.split_at(strides.partition_point(|(s, _)| s.experiment as usize <= experiment));
            strides = others;
            let quality = self.quality.get(&(experiment as u32));
            (!own.is_empty() || !taken.is_empty() || quality.is_some()).then(|| {
                let cells = (span[0]..span[1]).map(|cell| own.split_before(cell + 1)).collect();
                (experiment, PanePartial { cells, controls: mine, strides: taken, profiles: &self.profiles, quality })
            })
        })
    }
}

/// Numbers profiles through all partitions: those of one more, which `new` and `seen` mean.
fn take_profiles(all: &mut Vec<Listed>, new: &mut [Observation], seen: &mut Seen) {
    let before = all.len() as u32;
    let later = |profile: &mut u32| *profile += if *profile == NO_PROFILE { 0 } else { before };
    if before > 0 && !seen.profiles.is_empty() {
        new.iter_mut().for_each(|o| later(&mut o.profile));
        seen.abandoned.iter_mut().for_each(|a| later(&mut a.profile));
        seen.sums.values_mut().flatten().for_each(|part| later(&mut part.profile));
    }
    all.append(&mut seen.profiles);
}

impl<'p> PanePartial<'p> {
    /// What the cell of this index among those of its plan holds.
    pub fn cell(&self, index: usize) -> Cell<'p> {
        self.cells.get(index).copied().unwrap_or_default()
    }

    /// What workflows of funnels have come to.
    pub fn strides(&self) -> &'p [(Stride, i64)] {
        self.strides
    }

    /// Control events, in the order of partitions.
    pub fn controls(&self) -> impl Iterator<Item = &'p Control> {
        self.controls.iter().map(|(_, control)| control)
    }
}

/// What a cell, or an experiment, holds of a pane is looked through one by one as far as this.
const NEAR: usize = 256;

impl<'p> Cell<'p> {
    /// Takes off what belongs to cells before this one.
    fn split_before(&mut self, cell: CellId) -> Cell<'p> {
        fn take<'p, T>(list: &mut &'p [T], before: impl Fn(&T) -> bool) -> &'p [T] {
            // Most cells hold little: the end is near. What comes before it is read next, and memory is fetched soonest in its order.
            let mut end = list.iter().take(NEAR).take_while(|one| before(one)).count();
            if end == NEAR {
                let mut reach = 2 * NEAR;
                while reach < list.len() && before(&list[reach - 1]) {
                    reach *= 2;
                }
                end = list[..reach.min(list.len())].partition_point(before);
            }
            let (own, rest) = list.split_at(end);
            *list = rest;
            own
        }
        Cell {
            observations: take(&mut self.observations, |o| o.cell < cell),
            abandoned: take(&mut self.abandoned, |a| a.cell < cell),
            sums: take(&mut self.sums, |(c, _)| *c < cell),
            surplus: take(&mut self.surplus, |(s, _)| s.cell < cell),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.observations.is_empty() && self.abandoned.is_empty() && self.surplus.is_empty()
    }

    /// What happened one by one: what had no room is not among them.
    pub fn observations(&self) -> &'p [Observation] {
        self.observations
    }

    /// The cell as the traffic of a bucket.
    pub fn traffic(&self) -> BucketPartial {
        let mut part = BucketPartial::default();
        self.observations.iter().for_each(|o| part.add(o.value, o.age, 1));
        self.surplus.iter().for_each(|(s, n)| part.add(s.value, s.age, *n));
        part
    }

    /// Observations, and hits among them.
    pub fn share(&self) -> (u64, u64) {
        let hits = self.observations.iter().filter(|o| o.is_hit()).count() as u64;
        let surplus = self.surplus.iter().fold((0, 0), |(n, x), (s, more)| (n + more, x + more * u64::from(s.value & HIT)));
        (self.observations.len() as u64 + surplus.0, hits + surplus.1)
    }

    /// Values of a distribution: bins, and how many values of each, in no order.
    pub fn values(&self) -> impl Iterator<Item = (u16, u64)> + 'p {
        let single = self.observations.iter().map(|o| (o.bin(), 1));
        single.chain(self.surplus.iter().map(|(s, n)| (s.value & !CLAMPED, *n)))
    }

    /// Values by bin, and how many of them were clamped.
    pub fn bins(&self) -> (SparseBins, u64) {
        let mut samples: SmallVec<[u16; 128]> = self.observations.iter().map(|o| o.bin()).collect();
        let mut bins = SparseBins::from_samples(&mut samples);
        let mut clamped = self.observations.iter().filter(|o| o.is_clamped()).count() as u64;
        for (s, n) in self.surplus {
            bins.merge(SparseBins::single(s.value & !CLAMPED, *n));
            clamped += if s.value & CLAMPED == 0 { 0 } else { *n };
        }
        (bins, clamped)
    }

    /// Workflows started; and those abandoned, by the pane in which they began.
    pub fn workflows(&self, pane: Pane) -> (u64, impl Iterator<Item = (Pane, u64)> + 'p) {
        let single = self.abandoned.iter().map(|a| (a.begun, 1));
        let surplus = self.surplus.iter().filter(|(s, _)| s.value == HIT);
        let started: u64 = self.surplus.iter().filter(|(s, _)| s.value != HIT).map(|(_, n)| n).sum();
        let abandoned = single.chain(surplus.map(move |(s, n)| (Pane(pane.0 - i64::from(s.age)), *n)));
        (self.observations.len() as u64 + started, abandoned)
    }
}

impl BucketPartial {
    fn add(&mut self, what: u16, age: u32, n: u64) {
        match what {
            traffic::EVENT => self.events += n,
            traffic::CONTROL => self.controls += n,
            traffic::REFUSED => self.refused += n,
            traffic::ASIDE => self.aside += n,
            exposure => {
                self.exposures += n;
                self.mixed_units += if exposure == traffic::MIXED_EXPOSURE { n } else { 0 };
                if exposure == traffic::FIRST_EXPOSURE {
                    self.enrol(age, n);
                }
            }
        }
    }

    fn enrol(&mut self, age: u32, units: u64) {
        self.new_units += units;
        if age > 0 {
            match self.enrolled_before.iter_mut().find(|(a, _)| *a == age) {
                Some((_, n)) => *n += units,
                None => self.enrolled_before.push((age, units)),
            }
        }
    }
}

/// A control event, in the order of arrival.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Control {
    Phase { at: Millis, phase: PhaseName, weights: Vec<(String, f64)> },
    Annotation { at: Millis, text: String, author: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PhaseName {
    Index(u32),
    Name(String),
}

/// A record that may decide on its own (zero tolerance) and does not wait for its pane to close. The pane counts it too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Urgent {
    pub experiment: u32,
    pub bucket: u32,
    pub cause: Cause,
    pub at: Millis,
    /// The one that counts it.
    pub pane: Pane,
    pub label: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// An event of this signal, of which none is allowed.
    Signal(u32),
    /// An exposure of a unit that must not take part.
    Ineligible,
}

/// What an Aggregator hands on, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Emission {
    Pane(PaneBatch),
    Urgent(Urgent),
}

#[cfg(test)]
mod tests;
