//! Recorded events through the daemon's own engine, at full speed.

use crate::engine::aggregate::Aggregator;
use crate::engine::decision::{Decision, Output, Verdict, rfc3339};
use crate::engine::fleet::Fleet;
use crate::engine::outcome::Counts;
use crate::engine::plan::{Catalog, Settings};
use crate::engine::state::ExperimentState;
use crate::engine::time::Millis;
use crate::ingest::decode::{Decoder, Limits};
use crate::ingest::file::{FileSource, pump};
use serde::{Serialize, Serializer};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// What a recording came to. Serialises as the last line of `backtest --output json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub records: u64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Smallest and largest event time accepted.
    #[serde(serialize_with = "optional_time")]
    pub first: Option<Millis>,
    #[serde(serialize_with = "optional_time")]
    pub last: Option<Millis>,
    pub decisions: u64,
    /// At the end of the recording.
    pub verdicts: Vec<FinalVerdict>,
    /// What a bound made the engine forget, where it did: name of the bound and how often.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<(&'static str, u64)>,
    /// The experiments at the end of the recording.
    #[serde(skip)]
    pub experiments: Vec<ExperimentState>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct FinalVerdict {
    pub experiment: String,
    pub bucket: String,
    pub guardrail: String,
    pub verdict: Verdict,
}

/// Reads `events` through the engine. `decided` gets each decision as it is made; `progress` the bytes read, and the total where it is
/// known.
///
/// # Errors
/// A file cannot be opened or read; the message names it.
pub fn run(
    catalog: Catalog,
    settings: &Settings,
    limits: Limits,
    events: &[PathBuf],
    mut decided: impl FnMut(&Decision),
    progress: impl FnMut(u64, Option<u64>),
) -> io::Result<Summary> {
    let source = FileSource::open(events, limits)?;
    let mut decoder = Decoder::new(&catalog.fields, limits);
    let mut fleet = Fleet::new(&catalog, settings.pane);
    let mut aggregator = Aggregator::new(0, Arc::new(catalog), settings.clone());
    let mut out = Output::default();
    let mut decisions = 0;
    let counts = pump(
        source,
        &mut decoder,
        &mut aggregator,
        |emissions| {
            emissions.into_iter().for_each(|emission| fleet.take(emission, &mut out));
            decisions += out.decisions.len() as u64;
            out.decisions.iter().for_each(&mut decided);
            out = Output::default();
        },
        progress,
    )?;
    let experiments = fleet.views();
    Ok(Summary {
        records: counts.records(),
        counts,
        first: aggregator.span().map(|(first, _)| first),
        last: aggregator.span().map(|(_, last)| last),
        decisions,
        verdicts: experiments.iter().flat_map(verdicts).collect(),
        dropped: aggregator.dropped().into_iter().filter(|(_, n)| *n > 0).collect(),
        experiments,
    })
}

fn verdicts(state: &ExperimentState) -> impl Iterator<Item = FinalVerdict> + '_ {
    state.guardrails.iter().map(|g| FinalVerdict {
        experiment: state.experiment.clone(),
        bucket: g.bucket.clone(),
        guardrail: g.guardrail.clone(),
        verdict: g.verdict,
    })
}

fn optional_time<S: Serializer>(ts: &Option<Millis>, serializer: S) -> Result<S::Ok, S::Error> {
    match ts {
        Some(ts) => rfc3339::serialize(ts, serializer),
        None => serializer.serialize_none(),
    }
}
