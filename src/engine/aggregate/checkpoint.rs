//! The Aggregator's state as bytes. Experiments are kept by name, so that a restart with other rule files finds its own again.

use super::funnels::Funnels;
use super::ids::Ids;
use super::keys::Key;
use super::profiles::Named;
use super::tallies::Changes;
use super::units::Assignment;
use super::workflows::Workflows;
use super::{Aggregator, Catalog, Counts, Millis, Seen, Settings};
use crate::engine::pane::CellId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// State of an Aggregator, for a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Everything but the units: rewritten whole.
    pub state: Vec<u8>,
    /// Units exposed since the last snapshot: appended. Empty when there were none.
    pub units: Vec<u8>,
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
    counts: &'a Counts,
    span: Option<(Millis, Millis)>,
    units_dropped: u64,
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
    counts: Counts,
    span: Option<(Millis, Millis)>,
    units_dropped: u64,
}

#[derive(Serialize, Deserialize)]
struct UnitsChunk {
    /// Name and signature of each experiment.
    experiments: Vec<(String, u64)>,
    changes: Vec<(Key, Assignment)>,
    tallies: Changes,
    profiles: Vec<Named>,
}

impl Aggregator {
    /// State so far; the units part holds what changed since the last call.
    ///
    /// # Errors
    /// The state cannot be written down: a fault of the program, after which nothing should be committed.
    pub fn snapshot(&mut self) -> Result<Snapshot, String> {
        let (changes, tallies, profiles) = (self.units.take_changes(), self.tallies.take_changes(), self.profiles.take_changes());
        let units = match changes.is_empty() && tallies.is_empty() && profiles.is_empty() {
            true => Vec::new(),
            false => {
                let experiments = self.catalog.feeds.iter().map(|f| (f.plan.experiment.clone(), f.signature)).collect();
                encode(&UnitsChunk { experiments, changes, tallies, profiles })?
            }
        };
        let state = encode(&StateRef {
            experiments: self.catalog.feeds.iter().map(|f| (f.plan.experiment.as_str(), f.signature)).collect(),
            cells: &self.catalog.cells,
            watermark: self.watermark,
            open: &self.open,
            workflows: &self.workflows,
            funnels: &self.funnels,
            ids: &self.ids,
            counts: &self.counts,
            span: self.span,
            units_dropped: self.units_dropped,
        })?;
        Ok(Snapshot { state, units })
    }

    /// Rebuilds an Aggregator from its newest `state` and all `units` chunks, oldest first. What belongs to experiments that are gone
    /// is dropped; an experiment whose signals or buckets changed keeps its units, but not its open pane and workflows.
    pub fn restore(
        partition: i32,
        catalog: Arc<Catalog>,
        settings: Settings,
        state: &[u8],
        units: &[Vec<u8>],
    ) -> Result<Aggregator, String> {
        let mut new = Aggregator::new(partition, catalog, settings);
        let old: State = decode(state)?;
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
        new.units_dropped = old.units_dropped;
        for chunk in units.iter().filter(|chunk| !chunk.is_empty()) {
            new.restore_units(chunk)?;
        }
        new.profiles.relist(&new.open.profiles);
        Ok(new)
    }

    fn same(&self, name: &str, signature: u64) -> Option<u32> {
        let index = *self.catalog.names.get(name)?;
        (self.catalog.feeds[index as usize].signature == signature).then_some(index)
    }

    fn restore_units(&mut self, chunk: &[u8]) -> Result<(), String> {
        let chunk: UnitsChunk = decode(chunk)?;
        self.tallies.apply(chunk.tallies);
        let index =
            |(name, signature): &(String, u64)| Some((*self.catalog.names.get(name.as_str())?, self.same(name, *signature).is_some()));
        let known: Vec<Option<(u32, bool)>> = chunk.experiments.iter().map(index).collect();
        for mut named in chunk.profiles {
            if let Some(Some((experiment, _))) = known.get(named.experiment as usize).copied() {
                named.experiment = experiment;
                self.profiles.apply(named);
            }
        }
        for (unit, mut assignment) in chunk.changes {
            let Some(Some((experiment, same))) = known.get(assignment.experiment as usize).copied() else { continue };
            if usize::from(assignment.bucket) < self.catalog.feeds[experiment as usize].plan.buckets.len() {
                assignment.experiment = experiment;
                if !same {
                    assignment.renew();
                }
                self.set_aside[experiment as usize] |= assignment.is_aside();
                self.units.apply(unit, assignment);
            }
        }
        Ok(())
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    postcard::to_stdvec(value).map_err(|e| format!("the aggregator's state cannot be written down: {e}"))
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    postcard::from_bytes(bytes).map_err(|e| format!("the aggregator's state cannot be read: {e}"))
}
