//! The open pane of one experiment: accumulators that become a [`PanePartial`] when the pane closes.

use super::feeds::{Feeds, hit, passes, value};
use super::keys::Key;
use super::tallies::{self, Tallies};
use crate::engine::event::Event;
use crate::engine::histogram::{SparseBins, bin_of, thousandths};
use crate::engine::pane::{BucketPartial, Cell, Control, Observation, PanePartial, Sums};
use crate::engine::plan::{Plan, Signal, Unit};
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};

/// Values kept singly before they are binned: bounds a pane that never closes.
const SAMPLES_MAX: usize = 65_536;
/// Observations of a signal and bucket that one pane hands to the tests against the baseline; the windows count all.
const SEEN_MAX: usize = 1 << 20;

/// Where an event belongs in the tests against the baseline.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Panes since the unit was exposed for the first time; 0 for a record that names its bucket itself.
    pub age: u32,
    pub batch: u8,
    /// The unit, and the age of its cohort, where it is known to be exposed to this bucket.
    pub member: Option<(Key, u32)>,
}

impl Mark {
    fn observation(self, value: u16) -> Observation {
        Observation { age: self.age, batch: self.batch, value }
    }
}

/// What units have done before, and how many are remembered.
pub struct Memory<'m> {
    pub tallies: &'m mut Tallies,
    pub max: usize,
}

#[derive(Default, Serialize, Deserialize)]
pub struct Open {
    records: u64,
    rejected: u64,
    buckets: Vec<OpenBucket>,
    controls: Vec<Control>,
    /// Something was booked since the last [`Open::close`].
    touched: bool,
}

#[derive(Default, Serialize, Deserialize)]
pub struct OpenBucket {
    pub exposures: u64,
    pub new_units: u64,
    pub mixed_units: u64,
    pub events: u64,
    enrolled_before: Vec<(u32, u64)>,
    cells: Vec<OpenCell>,
}

#[derive(Serialize, Deserialize)]
enum OpenCell {
    Distribution { samples: Vec<u16>, binned: SparseBins, clamped: u64, seen: Vec<Observation> },
    Rate { n: u64, x: u64, seen: Vec<Observation> },
    Count { n: u64, seen: Vec<Observation> },
    Moments { n: u64, sum: f64, parts: Vec<(u32, u64, Sums)> },
    Workflows { started: u64, abandoned: Vec<(Pane, u64)>, seen: Vec<Observation>, lost: Vec<(Pane, Observation)> },
}

impl Open {
    /// Counts an accepted record. Returns whether this is the first touch since the pane opened.
    pub fn record(&mut self) -> bool {
        self.records += 1;
        !std::mem::replace(&mut self.touched, true)
    }

    /// Counts a refused record; returns as [`Open::record`].
    pub fn reject(&mut self) -> bool {
        self.rejected += 1;
        !std::mem::replace(&mut self.touched, true)
    }

    /// Marks the pane as one to emit; returns as [`Open::record`].
    pub fn touch(&mut self) -> bool {
        !std::mem::replace(&mut self.touched, true)
    }

    pub fn control(&mut self, control: Control) {
        self.controls.push(control);
    }

    pub fn bucket(&mut self, plan: &Plan, bucket: usize) -> &mut OpenBucket {
        if self.buckets.len() < plan.buckets.len() {
            self.buckets.resize_with(plan.buckets.len(), OpenBucket::default);
        }
        &mut self.buckets[bucket]
    }

    /// What the pane held; memory is kept for the next one.
    pub fn close(&mut self, experiment: u32) -> PanePartial {
        self.touched = false;
        PanePartial {
            experiment,
            records: std::mem::take(&mut self.records),
            rejected: std::mem::take(&mut self.rejected),
            buckets: self.buckets.iter_mut().map(OpenBucket::close).collect(),
            controls: std::mem::take(&mut self.controls),
        }
    }
}

impl OpenBucket {
    fn cell(&mut self, plan: &Plan, signal: usize) -> &mut OpenCell {
        if self.cells.len() < plan.signals.len() {
            self.cells = plan.signals.iter().map(OpenCell::new).collect();
        }
        &mut self.cells[signal]
    }

    /// A unit was exposed for the first time; `age` is that of its cohort.
    pub fn enrol(&mut self, age: u32) {
        self.new_units += 1;
        if age > 0 {
            match self.enrolled_before.iter_mut().find(|(a, _)| *a == age) {
                Some((_, n)) => *n += 1,
                None => self.enrolled_before.push((age, 1)),
            }
        }
    }

    /// Books an event for one signal; returns whether it passed the signal's filter and was counted.
    pub fn book(&mut self, feeds: &Feeds, signal: usize, event: &Event<'_>, mark: Mark, memory: Memory<'_>) -> bool {
        let cell = self.cell(&feeds.plan, signal);
        let own = mark.member.map(|(unit, age)| (tallies::of(unit, feeds.signature, signal as u16), age));
        match (&feeds.plan.signals[signal], cell) {
            (Signal::Distribution { source, value: from }, OpenCell::Distribution { samples, binned, clamped, seen })
                if passes(source, event) =>
            {
                let Some(x) = value(from, event) else { return false };
                let (x, out_of_range) = thousandths(x);
                *clamped += u64::from(out_of_range);
                samples.push(bin_of(x));
                see(seen, mark.observation(bin_of(x)));
                if samples.len() >= SAMPLES_MAX {
                    binned.merge(SparseBins::from_samples(samples));
                }
            }
            (Signal::Rate { source, hit: what, unit }, OpenCell::Rate { n, x, seen }) if passes(source, event) => {
                let hit = hit(what, event);
                *n += 1;
                *x += u64::from(hit);
                match (unit, own) {
                    (Unit::Event, _) => see(seen, mark.observation(u16::from(hit))),
                    (Unit::User, Some((key, age))) if hit && memory.tallies.hit(key, memory.max) => {
                        seen.push(Observation { age, batch: mark.batch, value: 1 });
                    }
                    (Unit::User, _) => {}
                }
            }
            (Signal::Count { source, unit }, OpenCell::Count { n, seen }) if passes(source, event) => {
                *n += 1;
                match (unit, own) {
                    _ if !feeds.compared[signal] => {}
                    (Unit::Event, _) => see(seen, mark.observation(1)),
                    (Unit::User, Some((key, age))) if memory.tallies.hit(key, memory.max) => {
                        seen.push(Observation { age, batch: mark.batch, value: 1 });
                    }
                    (Unit::User, _) => {}
                }
            }
            (Signal::Moments { source, value: from, covariate, unit }, OpenCell::Moments { n, sum, parts }) if passes(source, event) => {
                let Some(y) = value(from, event) else { return false };
                let x = covariate.as_ref().filter(|_| feeds.plan.cuped).and_then(|c| value(c, event));
                *n += 1;
                *sum += y;
                match (unit, own) {
                    (Unit::Event, _) => {
                        let known = x.unwrap_or(0.0);
                        add_part(parts, mark.age, 1, Sums { y, yy: y * y, x: known, xx: known * known, xy: known * y });
                    }
                    (Unit::User, Some((key, age))) => {
                        if let Some(sums) = memory.tallies.add(key, y, x, memory.max) {
                            add_part(parts, age, 0, sums);
                        }
                    }
                    (Unit::User, None) => {}
                }
            }
            _ => return false,
        }
        true
    }

    pub fn workflow_started(&mut self, plan: &Plan, signal: usize, observation: Observation) {
        if let OpenCell::Workflows { started, seen, .. } = self.cell(plan, signal) {
            *started += 1;
            see(seen, observation);
        }
    }

    /// A workflow that was counted as started in pane `begun` turned out abandoned.
    pub fn workflow_abandoned(&mut self, plan: &Plan, signal: usize, begun: Pane, observation: Observation) {
        if let OpenCell::Workflows { abandoned, lost, .. } = self.cell(plan, signal) {
            if lost.len() < SEEN_MAX {
                lost.push((begun, observation));
            }
            match abandoned.iter_mut().find(|(pane, _)| *pane == begun) {
                Some((_, n)) => *n += 1,
                None => abandoned.push((begun, 1)),
            }
        }
    }

    fn close(&mut self) -> BucketPartial {
        BucketPartial {
            exposures: std::mem::take(&mut self.exposures),
            new_units: std::mem::take(&mut self.new_units),
            mixed_units: std::mem::take(&mut self.mixed_units),
            events: std::mem::take(&mut self.events),
            enrolled_before: std::mem::take(&mut self.enrolled_before),
            cells: match self.cells.iter().all(OpenCell::is_empty) {
                true => Vec::new(),
                false => self.cells.iter_mut().map(OpenCell::close).collect(),
            },
        }
    }
}

impl OpenCell {
    fn new(signal: &Signal) -> OpenCell {
        match signal {
            Signal::Distribution { .. } => {
                OpenCell::Distribution { samples: Vec::new(), binned: SparseBins::default(), clamped: 0, seen: Vec::new() }
            }
            Signal::Rate { .. } => OpenCell::Rate { n: 0, x: 0, seen: Vec::new() },
            Signal::Count { .. } => OpenCell::Count { n: 0, seen: Vec::new() },
            Signal::Moments { .. } => OpenCell::Moments { n: 0, sum: 0.0, parts: Vec::new() },
            Signal::Abandonment { .. } => OpenCell::Workflows { started: 0, abandoned: Vec::new(), seen: Vec::new(), lost: Vec::new() },
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            OpenCell::Distribution { samples, binned, .. } => samples.is_empty() && binned.is_empty(),
            OpenCell::Rate { n, .. } | OpenCell::Count { n, .. } | OpenCell::Moments { n, .. } => *n == 0,
            OpenCell::Workflows { started, abandoned, .. } => *started == 0 && abandoned.is_empty(),
        }
    }

    fn close(&mut self) -> Cell {
        use std::mem::take;
        match self {
            cell if cell.is_empty() => Cell::Empty,
            OpenCell::Distribution { samples, binned, clamped, seen } => {
                let mut bins = take(binned);
                bins.merge(SparseBins::from_samples(samples));
                Cell::Distribution { bins, clamped: take(clamped), seen: take(seen) }
            }
            OpenCell::Rate { n, x, seen } => Cell::Rate { n: take(n), x: take(x), seen: take(seen) },
            OpenCell::Count { n, seen } => Cell::Count { n: take(n), seen: take(seen) },
            OpenCell::Moments { n, sum, parts } => Cell::Moments { n: take(n), sum: take(sum), parts: take(parts) },
            OpenCell::Workflows { started, abandoned, seen, lost } => {
                abandoned.sort_unstable();
                Cell::Workflows { started: take(started), abandoned: take(abandoned), seen: take(seen), lost: take(lost) }
            }
        }
    }
}

fn see(seen: &mut Vec<Observation>, observation: Observation) {
    if seen.len() < SEEN_MAX {
        seen.push(observation);
    }
}

fn add_part(parts: &mut Vec<(u32, u64, Sums)>, age: u32, n: u64, sums: Sums) {
    match parts.iter_mut().rev().take(8).find(|(a, ..)| *a == age) {
        Some((_, count, total)) => {
            *count += n;
            *total += sums;
        }
        None => parts.push((age, n, sums)),
    }
}
