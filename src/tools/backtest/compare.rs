//! Rule sets side by side: what each decided first about the same guardrail of the same bucket, and how much earlier or later than the first rule set.

use super::Outcome;
use crate::engine::decision::{Action, Decision, Verdict, rfc3339};
use crate::engine::time::Millis;
use crate::tools::simulate::duration;
use serde::Serialize;
use std::collections::BTreeMap;

/// A guardrail (or check of the data) of a bucket, and what became of it by each rule set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub experiment: String,
    /// Empty for what concerns the whole experiment.
    pub bucket: String,
    pub guardrail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// In the order of the rule sets.
    pub rules: Vec<Cell>,
}

/// What one rule set made of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub rules: String,
    /// Its first decision; follow-ups and operators' do not count.
    #[serde(flatten)]
    pub first: Option<First>,
    /// At the end of the recording; `None` where this rule set has no such guardrail, and of checks and segments.
    pub verdict: Option<Verdict>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct First {
    pub decision: String,
    #[serde(with = "rfc3339")]
    pub decided_at: Millis,
    pub action: Action,
    /// How much earlier (positive) or later than the first rule set, where that decided, too. Milliseconds.
    pub lead_ms: Option<Millis>,
}

/// First decision and last verdict of one rule set.
type Found<'a> = (Option<&'a Decision>, Option<Verdict>);

/// Experiment, bucket, guardrail, segment.
type Key = (String, String, String, Option<String>);

fn key(d: &Decision) -> Key {
    (d.experiment.clone(), d.bucket.clone(), d.guardrail.clone(), d.segment.clone())
}

/// Compares what rule sets came to. By experiment, bucket and guardrail; guardrails of which no rule set decided anything are there, too.
pub fn compare(sides: &[(&str, &Outcome)]) -> Vec<Row> {
    let mut found: BTreeMap<Key, Vec<Found<'_>>> = BTreeMap::new();
    let empty = || vec![(None, None); sides.len()];
    for (index, (_, outcome)) in sides.iter().enumerate() {
        for d in outcome.decisions.iter().filter(|d| !d.is_follow_up() && d.author.is_none() && !d.experiment.is_empty()) {
            let first = &mut found.entry(key(d)).or_insert_with(empty)[index].0;
            *first = first.filter(|first| first.decided_at <= d.decided_at).or(Some(d));
        }
        for v in &outcome.summary.verdicts {
            let key = (v.experiment.clone(), v.bucket.clone(), v.guardrail.clone(), None);
            found.entry(key).or_insert_with(empty)[index].1 = Some(v.verdict);
        }
    }
    let row = |((experiment, bucket, guardrail, segment), of): (Key, Vec<Found<'_>>)| {
        let reference = of.first().and_then(|(first, _)| *first).map(|d| d.decided_at);
        let cells = sides.iter().zip(&of).enumerate().map(|(index, ((label, _), (first, verdict)))| {
            let lead = |d: &Decision| reference.filter(|_| index > 0).map(|at| at - d.decided_at);
            let first = first.map(|d| First { decision: d.decision.clone(), decided_at: d.decided_at, action: d.action, lead_ms: lead(d) });
            Cell { rules: (*label).to_owned(), first, verdict: *verdict }
        });
        Row { rules: cells.collect(), experiment, bucket, guardrail, segment }
    };
    found.into_iter().map(row).collect()
}

/// How much earlier or later, for people.
pub fn lead(ms: Millis) -> String {
    match ms {
        0 => "same".to_owned(),
        ms if ms > 0 => format!("{} earlier", duration(ms as f64)),
        ms => format!("{} later", duration(-ms as f64)),
    }
}
