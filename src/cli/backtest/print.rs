//! What a backtest prints on standard output.

use crate::cli::show;
use crate::engine::decision::{Decision, Timestamp, Verdict};
use crate::report::thousands;
use crate::tools::backtest::compare::{Cell, Row, compare, lead};
use crate::tools::backtest::{Outcome, Summary};
use serde::Serialize;
use std::io::{self, Write};

/// Something of one of several rule sets.
#[derive(Serialize)]
struct Of<'a, T> {
    rules: &'a str,
    #[serde(flatten)]
    what: &'a T,
}

pub fn decision(decision: &Decision, json: bool) {
    let line = match json {
        // A decision holds no map and no float that JSON cannot write.
        true => serde_json::to_string(decision).unwrap_or_default(),
        false => {
            let held = match (&decision.covered_by, decision.held_by) {
                (Some(_), _) => " (done already)",
                (None, Some(_)) => " (held back)",
                (None, None) => "",
            };
            let whom = if decision.bucket.is_empty() { "-" } else { &decision.bucket };
            let (at, action) = (Timestamp(decision.decided_at), decision.action.name());
            let experiment = if decision.experiment.is_empty() { "-" } else { &decision.experiment };
            format!("{at}  {action:<8} {experiment} {whom}: {}{held}", decision.reason)
        }
    };
    say(&line);
}

/// A closed pipe is no reason to stop counting.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{}", show::printable(line));
}

pub fn summary(summary: &Summary, json: bool) {
    if json {
        return say(&serde_json::json!({ "summary": summary }).to_string());
    }
    say("");
    counts(summary);
    if let (Some(first), Some(last)) = (summary.first, summary.last) {
        say(&format!("from {} to {}; decisions: {}", Timestamp(first), Timestamp(last), summary.decisions));
    }
    for state in &summary.experiments {
        for g in &state.guardrails {
            say(&format!("{:<9} {} {} {}: {}", g.verdict.name(), state.experiment, g.bucket, g.guardrail, g.reason));
        }
    }
    for journeys in &summary.journeys {
        let shown = serde_json::to_value(journeys).unwrap_or_default();
        for line in show::funnels(&shown).into_iter().chain(show::retention(&shown)) {
            say(&format!("{}, {line}", journeys.experiment));
        }
    }
}

fn counts(summary: &Summary) {
    let counts = &summary.counts;
    let all = [
        summary.records,
        counts.accepted,
        counts.late,
        counts.duplicate,
        counts.unattributed,
        counts.unknown_experiment,
        counts.inactive,
        counts.unmapped,
        counts.rejected.total(),
    ];
    let [records, accepted, late, duplicate, unattributed, unknown, inactive, unmapped, rejected] = all.map(thousands);
    say(&format!(
        "{records} records: {accepted} accepted, {late} late, {duplicate} duplicate, {unattributed} unattributed, {unknown} of unknown experiments, \
         {inactive} inactive, {unmapped} unmapped, {rejected} rejected"
    ));
}

/// What several rule sets came to.
pub fn comparison(sides: &[(&str, &Outcome)], json: bool) {
    let rows = compare(sides);
    if json {
        for (rules, outcome) in sides {
            outcome.decisions.iter().for_each(|what| say(&serde_json::to_string(&Of { rules, what }).unwrap_or_default()));
        }
        for (rules, outcome) in sides {
            say(&serde_json::json!({ "summary": Of { rules, what: &outcome.summary } }).to_string());
        }
        return say(&serde_json::json!({ "comparison": rows }).to_string());
    }
    table(sides, &rows).iter().for_each(|line| say(line));
    say("");
    let Some((_, first)) = sides.first() else { return };
    counts(&first.summary);
    if let (Some(from), Some(to)) = (first.summary.first, first.summary.last) {
        let decided: Vec<String> = sides.iter().map(|(rules, outcome)| format!("{} by {rules}", outcome.decisions.len())).collect();
        say(&format!("from {} to {}; decisions: {}", Timestamp(from), Timestamp(to), decided.join(", ")));
    }
}

/// Columns as wide as what is in them.
fn table(sides: &[(&str, &Outcome)], rows: &[Row]) -> Vec<String> {
    let mut lines = vec![
        ["experiment", "bucket", "guardrail"]
            .map(str::to_owned)
            .into_iter()
            .chain(sides.iter().map(|(rules, _)| (*rules).to_owned()))
            .collect::<Vec<_>>(),
    ];
    for row in rows {
        let bucket = if row.bucket.is_empty() { "-" } else { &row.bucket };
        let guardrail = row.segment.as_ref().map_or(row.guardrail.clone(), |segment| format!("{} in {segment}", row.guardrail));
        let names = [row.experiment.clone(), bucket.to_owned(), guardrail];
        lines.push(names.into_iter().chain(row.rules.iter().map(cell)).collect());
    }
    let widths: Vec<usize> = (0..sides.len() + 3).map(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0)).collect();
    let padded = |line: &Vec<String>| {
        line.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}  ")).collect::<String>().trim_end().to_owned()
    };
    lines.iter().map(padded).collect()
}

fn cell(cell: &Cell) -> String {
    let Some(first) = &cell.first else {
        return cell.verdict.map_or("-", Verdict::name).to_owned();
    };
    let lead = first.lead_ms.map(|ms| format!(" ({})", lead(ms))).unwrap_or_default();
    format!("{} {}{lead}", first.action.name(), Timestamp(first.decided_at))
}
