//! All that is known of an experiment, for its readout: from a running daemon, or from its files.

use crate::clock;
use crate::engine::decision::LogQuery;
use crate::engine::state::CloseLook;
use crate::readout::Dossier;
use crate::store::{Store, StoreError};
use serde_json::{Value, json};

/// Entries of the log and decisions that a readout shows, at most.
const ENTRIES: u32 = 10_000;
const DECISIONS: u32 = 500;

/// Reads it; `live` is how the experiment stands now, where it runs. `None` of an experiment of which nothing is known.
///
/// # Errors
/// The store cannot be read.
pub fn read(store: &Store, experiment: &str, live: Option<&CloseLook>) -> Result<Option<Dossier>, StoreError> {
    let log = store.log(experiment, &LogQuery::first(ENTRIES))?;
    let summary = store.summary(experiment, None)?;
    // The figures of the end are those to report, though the experiment is still shown.
    let ended = summary.as_ref().filter(|s| s.last && live.is_none_or(|look| look.state.revision == s.revision));
    let rule = match &summary {
        Some(summary) if !summary.rule.is_empty() => Some(summary.rule.clone()),
        _ => store.rules()?.into_iter().find(|rule| rule.experiment.as_deref() == Some(experiment)).map(|rule| rule.text),
    };
    if live.is_none() && summary.is_none() && log.is_empty() {
        return Ok(None);
    }
    let stored = |body: &str| serde_json::from_str::<Value>(body).ok();
    let (at, look) = match (ended, live, &summary) {
        (Some(summary), ..) | (None, None, Some(summary)) => (summary.at, stored(&summary.body)),
        (None, Some(look), _) => (clock::now(), serde_json::to_value(look).ok()),
        (None, None, None) => (clock::now(), None),
    };
    let (state, histograms) = parted(look);
    let mut decisions = Vec::new();
    for decision in store.decisions(Some(experiment), DECISIONS)?.iter().rev() {
        let mut body = stored(decision.body.get()).unwrap_or_default();
        body["deliveries"] = json!(store.deliveries(&decision.id)?);
        decisions.push(body);
    }
    let points = store.points(experiment)?.into_iter().filter_map(|point| Some((point.at, serde_json::from_str(&point.body).ok()?)));
    Ok(Some(Dossier {
        experiment: experiment.to_owned(),
        at,
        last: ended.is_some(),
        state,
        histograms,
        rule: rule.unwrap_or_default(),
        points: points.collect(),
        log: log.iter().map(|entry| json!(entry)).collect(),
        decisions,
        cut: log.len() >= ENTRIES as usize,
        dashboard: None,
    }))
}

/// The state of a look, and its histograms: there are none in what an earlier version wrote.
fn parted(look: Option<Value>) -> (Option<Value>, Vec<Value>) {
    let Some(Value::Object(mut state)) = look else { return (look, Vec::new()) };
    let histograms = match state.remove("histograms") {
        Some(Value::Array(histograms)) => histograms,
        _ => Vec::new(),
    };
    (Some(Value::Object(state)), histograms)
}
