//! The open pane of one experiment: accumulators that become a [`PanePartial`] when the pane closes.

use super::feeds::{hit, passes, value};
use crate::engine::event::Event;
use crate::engine::histogram::{SparseBins, bin_of, thousandths};
use crate::engine::pane::{BucketPartial, Cell, Control, PanePartial};
use crate::engine::plan::{Plan, Signal};
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};

/// Values kept singly before they are binned: bounds a pane that never closes.
const SAMPLES_MAX: usize = 65_536;

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
    cells: Vec<OpenCell>,
}

#[derive(Serialize, Deserialize)]
enum OpenCell {
    Distribution { samples: Vec<u16>, binned: SparseBins, clamped: u64 },
    Rate { n: u64, x: u64 },
    Count(u64),
    Moments { n: u64, sum: f64, sum_sq: f64 },
    Workflows { started: u64, abandoned: Vec<(Pane, u64)> },
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

    /// Books an event for one signal; returns whether it passed the signal's filter and was counted.
    pub fn book(&mut self, plan: &Plan, signal: usize, event: &Event<'_>) -> bool {
        let cell = self.cell(plan, signal);
        match (&plan.signals[signal], cell) {
            (Signal::Distribution { source, value: from }, OpenCell::Distribution { samples, binned, clamped })
                if passes(source, event) =>
            {
                let Some(x) = value(from, event) else { return false };
                let (x, out_of_range) = thousandths(x);
                *clamped += u64::from(out_of_range);
                samples.push(bin_of(x));
                if samples.len() >= SAMPLES_MAX {
                    binned.merge(SparseBins::from_samples(samples));
                }
            }
            (Signal::Rate { source, hit: what }, OpenCell::Rate { n, x }) if passes(source, event) => {
                *n += 1;
                *x += u64::from(hit(what, event));
            }
            (Signal::Count { source }, OpenCell::Count(n)) if passes(source, event) => *n += 1,
            (Signal::Moments { source, value: from }, OpenCell::Moments { n, sum, sum_sq }) if passes(source, event) => {
                let Some(x) = value(from, event) else { return false };
                *n += 1;
                *sum += x;
                *sum_sq += x * x;
            }
            _ => return false,
        }
        true
    }

    pub fn workflow_started(&mut self, plan: &Plan, signal: usize) {
        if let OpenCell::Workflows { started, .. } = self.cell(plan, signal) {
            *started += 1;
        }
    }

    /// A workflow that was counted as started in pane `begun` turned out abandoned.
    pub fn workflow_abandoned(&mut self, plan: &Plan, signal: usize, begun: Pane) {
        if let OpenCell::Workflows { abandoned, .. } = self.cell(plan, signal) {
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
            Signal::Distribution { .. } => OpenCell::Distribution { samples: Vec::new(), binned: SparseBins::default(), clamped: 0 },
            Signal::Rate { .. } => OpenCell::Rate { n: 0, x: 0 },
            Signal::Count { .. } => OpenCell::Count(0),
            Signal::Moments { .. } => OpenCell::Moments { n: 0, sum: 0.0, sum_sq: 0.0 },
            Signal::Abandonment { .. } => OpenCell::Workflows { started: 0, abandoned: Vec::new() },
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            OpenCell::Distribution { samples, binned, .. } => samples.is_empty() && binned.is_empty(),
            OpenCell::Rate { n, .. } | OpenCell::Count(n) | OpenCell::Moments { n, .. } => *n == 0,
            OpenCell::Workflows { started, abandoned } => *started == 0 && abandoned.is_empty(),
        }
    }

    fn close(&mut self) -> Cell {
        use std::mem::take;
        match self {
            cell if cell.is_empty() => Cell::Empty,
            OpenCell::Distribution { samples, binned, clamped } => {
                let mut bins = take(binned);
                bins.merge(SparseBins::from_samples(samples));
                Cell::Distribution { bins, clamped: take(clamped) }
            }
            OpenCell::Rate { n, x } => Cell::Rate { n: take(n), x: take(x) },
            OpenCell::Count(n) => Cell::Count(take(n)),
            OpenCell::Moments { n, sum, sum_sq } => Cell::Moments { n: take(n), sum: take(sum), sum_sq: take(sum_sq) },
            OpenCell::Workflows { started, abandoned } => {
                abandoned.sort_unstable();
                Cell::Workflows { started: take(started), abandoned: take(abandoned) }
            }
        }
    }
}
