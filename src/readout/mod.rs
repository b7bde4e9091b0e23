//! The readout of an experiment: sections 7, 8 and 9 of its runbook, filled in from what was recorded, as Markdown or as one HTML page.
//!
//! Pure: a [`Dossier`] goes in, text comes out. What only people know (what was learned, what comes next) has a place, and notes of these kinds
//! in the execution log are put there.

mod charts;
mod document;
pub mod export;
pub(crate) mod outcome;
mod plan;
mod sections;
#[cfg(test)]
mod tests;

use crate::engine::time::Millis;
use crate::live::Kept;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// All that is known of an experiment: the answer of `GET /api/v1/experiments/{id}/readout`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dossier {
    pub experiment: String,
    /// When `state` was looked at: wall clock, ms since the epoch.
    pub at: Millis,
    /// The experiment has ended, and the state is that of its end.
    pub last: bool,
    /// As `GET /api/v1/experiments/{id}` gives it; `null` where no figures have been kept.
    pub state: Option<Value>,
    /// Of guardrails with a distribution, as `GET /api/v1/experiments/{id}/bins` gives them, each with its `guardrail` and `bucket`.
    #[serde(default)]
    pub histograms: Vec<Value>,
    /// Text of the rule file; empty where it is not known any more.
    pub rule: String,
    /// How the figures went: event time, and what they were.
    pub points: Vec<(Millis, Kept)>,
    /// The execution log, oldest first, as `GET /api/v1/experiments/{id}/log` gives it.
    pub log: Vec<Value>,
    /// Oldest first, each with its deliveries, as `GET /api/v1/decisions/{id}` gives it.
    pub decisions: Vec<Value>,
    /// The log is longer: the end is not there.
    pub cut: bool,
    /// Where people look at the experiment.
    pub dashboard: Option<String>,
}

/// Sections 7 to 9 as Markdown.
pub fn markdown(dossier: &Dossier) -> String {
    sections::of(dossier).markdown()
}

/// The same as a page with charts, in one file.
pub fn html(dossier: &Dossier) -> String {
    sections::of(dossier).html()
}
