//! Start where the last checkpoint ends: state, offsets, and what has been decided and asked for since.

use crate::clock;
use crate::engine::decision::{Decision, LogEntry, LogKind, Output};
use crate::engine::fleet::Fleet;
use crate::engine::judge::Operator;
use crate::engine::kept::{self, Change, Changes, Kept};
use crate::engine::plan::{Catalog, Settings};
use crate::engine::time::Millis;
use crate::ingest::kafka::{PartitionSnapshot, Resume};
use crate::store::{Store, StoreError};
use crate::telemetry::{Metrics, names};
use std::collections::BTreeMap;

/// Names of the parts with the units of all partitions.
pub const UNITS: &str = "partition/*/units";
const FLEET: &str = "fleet/";
const PARTITION: &str = "partition/";
/// Topic and offset of the next record to read, for each topic of a partition.
const OFFSETS: &str = "offsets";

pub struct Recovered {
    pub fleet: Fleet,
    /// By partition.
    pub resume: BTreeMap<i32, Resume>,
    pub operations_seq: i64,
    /// Nothing comes from a checkpoint.
    pub anew: bool,
}

/// Why the state cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{database}: the checkpoint cannot be used: {reason}. Run the version that wrote it; or give the checkpoints up with \
         `sqlite3 {database} \"DELETE FROM checkpoints\"`: records are then read from where `kafka.auto_offset_reset` says, and what was decided stays decided"
    )]
    Checkpoint { database: String, reason: String },
}

/// What a checkpoint writes: what has changed in the fleet and in the partitions.
///
/// # Errors
/// A state cannot be written down: a fault of the program.
pub fn changes(fleet: &mut Fleet, parts: Vec<PartitionSnapshot>) -> Result<Changes, String> {
    let mut all = kept::prefixed(FLEET, fleet.snapshot(false)?);
    for part in parts {
        let prefix = format!("{PARTITION}{}/", part.partition);
        let offsets = kept::encode(&part.offsets).map_err(|e| format!("the offsets {e}"))?;
        all.push((format!("{prefix}{OFFSETS}"), Change::Set(vec![offsets])));
        all.extend(kept::prefixed(&prefix, part.changes));
    }
    Ok(all)
}

/// Reads the newest usable checkpoint and brings it up to what the store has seen since.
///
/// A damaged checkpoint is a warning, not an end: the one before is used, or, without any, partitions are read from the start that the
/// configuration gives. Decisions that the replay repeats are known by their ids.
///
/// # Errors
/// The store cannot be read, or its checkpoint is whole and says what this program does not understand.
pub fn recover(store: &mut Store, catalog: &Catalog, settings: &Settings, metrics: &Metrics) -> Result<Recovered, RecoverError> {
    let loaded = store.load_checkpoint()?;
    let made_at = loaded.checkpoint.as_ref().map(|checkpoint| checkpoint.made_at);
    metrics.add(&names::CHECKPOINTS_DAMAGED, &[], loaded.damaged.len() as f64);
    let mut notes: Vec<(&str, String)> = Vec::new();
    if !loaded.damaged.is_empty() {
        let text = fallen_back(&loaded.damaged, made_at);
        tracing::error!("{text}");
        notes.extend(catalog.plans.iter().map(|plan| (plan.experiment.as_str(), text.clone())));
    }
    let mut recovered = Recovered { fleet: Fleet::new(catalog, settings.pane), resume: BTreeMap::new(), operations_seq: 0, anew: true };
    let mut lost = Vec::new();
    if let Some(checkpoint) = loaded.checkpoint {
        let unusable = |reason| RecoverError::Checkpoint { database: store.path().display().to_string(), reason };
        let mut parts = checkpoint.parts;
        let restored = Fleet::restore(catalog, settings.pane, &parts.split_off(FLEET)).map_err(unusable)?;
        (recovered.fleet, lost) = (restored.fleet, restored.lost);
        recovered.resume = resume(parts).map_err(unusable)?;
        (recovered.operations_seq, recovered.anew) = (checkpoint.operations_seq, false);
        tracing::info!(partitions = recovered.resume.len(), made_at = checkpoint.made_at, "going on from the checkpoint");
    }
    recovered.fleet = recovered.fleet.sharing(&settings.shared_cause).braking(&settings.blast_radius);
    for (experiment, reason) in &lost {
        tracing::error!(experiment, "not taken up from the checkpoint, begins anew: {reason}");
        notes.push((experiment, format!("begins anew, with what has been decided: {reason}")));
    }
    store.note(&entries(notes))?;
    replay(store, &mut recovered)?;
    Ok(recovered)
}

fn fallen_back(damaged: &[String], made_at: Option<Millis>) -> String {
    let what = damaged.join("; ");
    match made_at.map(jiff::Timestamp::from_millisecond) {
        Some(Ok(at)) => format!("{what}: going on from the checkpoint of {at:.0}, records since then are read again"),
        _ => format!("{what}: no checkpoint is left, records are read from where `kafka.auto_offset_reset` says"),
    }
}

fn entries(notes: Vec<(&str, String)>) -> Vec<LogEntry> {
    let at = clock::now();
    let entry = |(experiment, text): (&str, String)| LogEntry {
        at,
        experiment: experiment.to_owned(),
        kind: LogKind::Recovery,
        author: None,
        text,
        decision: None,
        links: Vec::new(),
    };
    notes.into_iter().map(entry).collect()
}

/// What each partition goes on from.
fn resume(mut parts: Kept) -> Result<BTreeMap<i32, Resume>, String> {
    let number = |name: &str| name.strip_prefix(PARTITION)?.strip_suffix(OFFSETS)?.strip_suffix('/')?.parse().ok();
    let numbers: Vec<i32> = parts.names().filter_map(number).collect();
    let of = |partition: i32| {
        let kept = parts.split_off(&format!("{PARTITION}{partition}/"));
        let offsets = kept.read(OFFSETS)?.unwrap_or_default();
        Ok((partition, Resume { offsets, kept }))
    };
    numbers.into_iter().map(of).collect()
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
