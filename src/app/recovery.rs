//! Start where the last checkpoint ends: state, offsets, and what has been decided and asked for since.

use crate::engine::decision::{Decision, Output};
use crate::engine::fleet::Fleet;
use crate::engine::judge::Operator;
use crate::engine::plan::{Catalog, Settings};
use crate::ingest::kafka::Resume;
use crate::store::{Store, StoreError};
use std::collections::BTreeMap;

/// Format of the blobs in a checkpoint; another one is not read.
pub const VERSION: u32 = 11;

pub struct Recovered {
    pub fleet: Fleet,
    /// By partition.
    pub resume: BTreeMap<i32, Resume>,
    pub operations_seq: i64,
}

/// Reads the newest usable checkpoint and brings it up to what the store has seen since.
///
/// A checkpoint that cannot be read is a warning, not an end: partitions are then read from the start that the configuration gives,
/// and decisions that the replay repeats are known by their ids.
pub fn recover(store: &mut Store, catalog: &Catalog, settings: &Settings) -> Result<Recovered, StoreError> {
    let loaded = store.load_checkpoint()?;
    if let Some(warning) = loaded.warning {
        tracing::warn!("{warning}");
    }
    let mut recovered =
        Recovered { fleet: Fleet::new(catalog, settings.pane).sharing(&settings.shared_cause), resume: BTreeMap::new(), operations_seq: 0 };
    if let Some(checkpoint) = loaded.checkpoint {
        match Fleet::restore(catalog, settings.pane, &checkpoint.fleet).and_then(|fleet| usable(checkpoint.version).map(|()| fleet)) {
            Ok(fleet) => {
                tracing::info!(partitions = checkpoint.partitions.len(), made_at = checkpoint.made_at, "going on from the checkpoint");
                recovered.fleet = fleet.sharing(&settings.shared_cause);
                recovered.operations_seq = checkpoint.operations_seq;
                let resume = checkpoint.partitions.into_iter().map(|p| {
                    let offsets = p.offsets.into_iter().collect();
                    (p.partition, Resume { offsets, state: p.state, units: p.units })
                });
                recovered.resume = resume.collect();
            }
            Err(error) => tracing::warn!("the checkpoint is not used: {error}"),
        }
    }
    replay(store, &mut recovered)?;
    Ok(recovered)
}

fn usable(version: u32) -> Result<(), String> {
    if version == VERSION { Ok(()) } else { Err(format!("it has format {version}, this program writes format {VERSION}")) }
}

/// Operations are applied again; decisions are taken up in their arming epoch, so that reading on does not make them twice.
fn replay(store: &Store, recovered: &mut Recovered) -> Result<(), StoreError> {
    let decisions: Vec<Decision> = store.decisions_after(0)?.iter().filter_map(|d| serde_json::from_str(d.body.get()).ok()).collect();
    let adopt = |fleet: &mut Fleet| decisions.iter().for_each(|decision| fleet.adopt(decision));
    adopt(&mut recovered.fleet);
    for operation in store.operations_after(recovered.operations_seq)? {
        if let Ok(operator) = serde_json::from_str::<Operator>(&operation.body) {
            // What it said is in the store already.
            let _ = recovered.fleet.operate(&operation.experiment, &operator, &mut Output::default());
        }
        recovered.operations_seq = operation.seq;
        adopt(&mut recovered.fleet);
    }
    // A judge that starts anew, because its rule was edited, must not give old ids to new decisions.
    decisions.iter().for_each(|decision| recovered.fleet.catch_up(decision));
    adopt(&mut recovered.fleet);
    Ok(())
}
