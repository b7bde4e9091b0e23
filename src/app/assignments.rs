//! The runbook's `experiment_assignments`: who has been seen in which bucket, as CSV, from the newest checkpoint.

use super::recovery::UNITS;
use crate::engine::aggregate::{Observed, assignments};
use crate::engine::time::Millis;
use crate::store::{Store, StoreError};
use std::collections::BTreeMap;
use std::io::{self, Write};

const HEAD: &str = "experiment,unit,bucket,first_exposure,mixed";

/// Why an export ended.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no checkpoint yet")]
    NoCheckpoint,
    #[error("{0}")]
    Damaged(String),
    #[error("the export cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Writes the assignments of an experiment, a line for each unit, in no particular order; returns how many there are.
///
/// Of what the daemon remembers only one chunk is in memory at a time, and the rows that have changed since they were first written.
///
/// # Errors
/// See [`ExportError`]. What has been written by then is not the whole.
pub fn write(store: &Store, experiment: &str, out: &mut dyn Write) -> Result<u64, ExportError> {
    let units = store.parts(UNITS)?;
    if units.names.is_empty() {
        return Err(ExportError::NoCheckpoint);
    }
    let name = quoted(experiment);
    writeln!(out, "{HEAD}")?;
    let mut lines = 0;
    for partition in &units.names {
        // A later row replaces an earlier one of its unit, whose place it takes.
        let mut changed: BTreeMap<u64, String> = BTreeMap::new();
        units.each(partition, |chunk| {
            let note = |row: Observed<'_>| drop(row.again.then(|| changed.insert(row.unit, line(&name, &row))));
            assignments(chunk, experiment, note).map_err(ExportError::Damaged)
        })?;
        units.each(partition, |chunk| {
            let mut written = Ok(());
            let tell = |row: Observed<'_>| {
                if !row.again && written.is_ok() {
                    lines += 1;
                    written = match changed.get(&row.unit) {
                        Some(line) => writeln!(out, "{line}"),
                        None => writeln!(out, "{}", line(&name, &row)),
                    };
                }
            };
            assignments(chunk, experiment, tell).map_err(ExportError::Damaged)?;
            written.map_err(ExportError::Write)
        })?;
    }
    out.flush()?;
    Ok(lines)
}

fn line(experiment: &str, row: &Observed<'_>) -> String {
    format!("{experiment},{:016x},{},{},{}", row.unit, quoted(row.bucket), time(row.since), row.mixed)
}

/// RFC 3339, always with milliseconds, so that texts sort as times do.
fn time(ts: Millis) -> String {
    jiff::Timestamp::from_millisecond(ts).map_or_else(|_| ts.to_string(), |t| format!("{t:.3}"))
}

/// A field of CSV (RFC 4180).
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
