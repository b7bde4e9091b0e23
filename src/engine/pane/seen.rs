//! What one partition saw in one pane.

use super::packed::Packed;
use super::{Abandoned, CellId, Control, HIT, Observation, Part, Stride, Surplus, columns, panes_between};
use crate::engine::quality::QualityPartial;
use crate::engine::segment::Listed;
use crate::engine::shape::Renumber;
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What happened in a pane, in the order of arrival.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    #[serde(with = "columns")]
    pub observations: Vec<Observation>,
    pub abandoned: Vec<Abandoned>,
    /// By cell.
    pub sums: BTreeMap<CellId, Vec<Part>>,
    /// What came after [`SEEN_MAX`].
    pub surplus: BTreeMap<Surplus, u64>,
    /// By index of the experiment.
    pub controls: Vec<(u32, Control)>,
    /// Of the units seen.
    pub profiles: Vec<Listed>,
    /// Workflows of funnels, and by how much each count changes.
    pub strides: BTreeMap<Stride, i64>,
    /// Of an experiment's data itself, by its index.
    pub quality: BTreeMap<u32, QualityPartial>,
}

/// Observations, and abandoned workflows, of one partition and pane that are kept singly: a pane may never close.
pub const SEEN_MAX: usize = 1 << 21;

impl Seen {
    /// Takes in an observation of a signal.
    pub fn see(&mut self, o: Observation) {
        self.keep(o, 0);
    }

    /// Takes in a record to the traffic of a bucket.
    pub fn pass(&mut self, o: Observation) {
        self.keep(o, o.age);
    }

    fn keep(&mut self, o: Observation, age: u32) {
        if self.observations.len() < SEEN_MAX {
            self.observations.push(o);
        } else {
            *self.surplus.entry(Surplus { cell: o.cell, value: o.value, age }).or_default() += 1;
        }
    }

    /// A workflow that was counted as started before turned out abandoned; `open` is this pane.
    pub fn abandon(&mut self, lost: Abandoned, open: Pane) {
        if self.abandoned.len() < SEEN_MAX {
            self.abandoned.push(lost);
        } else {
            let age = panes_between(lost.begun, open);
            *self.surplus.entry(Surplus { cell: lost.cell, value: HIT, age }).or_default() += 1;
        }
    }

    /// Takes in a value of a mean: observations begun by it, and what the sums grew by.
    pub fn add(&mut self, cell: CellId, part: Part) {
        let parts = self.sums.entry(cell).or_default();
        match parts.iter_mut().rev().take(8).find(|p| (p.age, p.profile) == (part.age, part.profile)) {
            Some(own) => {
                own.n += part.n;
                own.sums += part.sums;
            }
            None => parts.push(part),
        }
    }

    /// What the pane says of an experiment's data itself.
    pub fn quality(&mut self, experiment: u32) -> &mut QualityPartial {
        self.quality.entry(experiment).or_default()
    }

    pub fn is_empty(&self) -> bool {
        let Seen { observations, abandoned, sums, surplus, controls, strides, quality, .. } = self;
        let nothing_counted = observations.is_empty() && abandoned.is_empty() && sums.is_empty() && surplus.is_empty();
        nothing_counted && controls.is_empty() && strides.is_empty() && quality.is_empty()
    }

    /// Closes the pane. The room of its observations is kept for the next one, which is likely to hold about as much.
    pub fn close(&mut self) -> Closed {
        let mut observations = std::mem::take(&mut self.observations);
        let closed = Closed { observations: Packed::of(&observations), rest: std::mem::take(self) };
        observations.clear();
        observations.shrink_to(2 * closed.observations.len());
        self.observations = observations;
        closed
    }

    /// What it says with the numbers of another catalog; what has no number there is dropped.
    pub(in crate::engine) fn renumbered(self, by: &Renumber) -> Seen {
        let stride = |stride: Stride| {
            let funnel = by.funnel(stride.experiment, stride.funnel)?;
            Some(Stride { experiment: by.experiment(stride.experiment)?, funnel, ..stride })
        };
        let quality = |(e, mut quality): (u32, QualityPartial)| {
            let [same_exposures, same_missing] = by.quality(e);
            quality.buckets.iter_mut().for_each(|bucket| bucket.forget(!same_exposures, !same_missing));
            Some((by.experiment(e)?, quality))
        };
        Seen {
            observations: self.observations.into_iter().filter_map(|o| Some(Observation { cell: by.cell(o.cell)?, ..o })).collect(),
            abandoned: self.abandoned.into_iter().filter_map(|a| Some(Abandoned { cell: by.cell(a.cell)?, ..a })).collect(),
            sums: self.sums.into_iter().filter_map(|(id, parts)| Some((by.cell(id)?, parts))).collect(),
            surplus: self.surplus.into_iter().filter_map(|(s, n)| Some((Surplus { cell: by.cell(s.cell)?, ..s }, n))).collect(),
            controls: self.controls.into_iter().filter_map(|(e, control)| Some((by.experiment(e)?, control))).collect(),
            strides: self.strides.into_iter().filter_map(|(s, n)| Some((stride(s)?, n))).collect(),
            quality: self.quality.into_iter().filter_map(quality).collect(),
            // Their places are kept.
            profiles: self
                .profiles
                .into_iter()
                .map(|l| Listed { experiment: by.experiment(l.experiment).unwrap_or(u32::MAX), ..l })
                .collect(),
        }
    }
}

/// What happened in a pane that is closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Closed {
    pub(super) observations: Packed,
    /// Without observations.
    pub(super) rest: Seen,
}

impl Closed {
    /// As it was before it was closed.
    pub fn opened(&self) -> Seen {
        let mut seen = self.rest.clone();
        self.observations.unpack(&mut seen.observations);
        seen
    }

    pub fn is_empty(&self) -> bool {
        self.observations.is_empty() && self.rest.is_empty()
    }

    /// Observations that are kept singly.
    pub fn len(&self) -> usize {
        self.observations.len()
    }

    /// Bytes that it takes, but for what follows from the rules and not from the records.
    pub fn size(&self) -> usize {
        let Seen { abandoned, sums, profiles, .. } = &self.rest;
        let sums: usize = sums.values().map(Vec::capacity).sum();
        self.observations.size()
            + abandoned.capacity() * size_of::<Abandoned>()
            + sums * size_of::<Part>()
            + profiles.capacity() * size_of::<Listed>()
    }
}
