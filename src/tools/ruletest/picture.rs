//! What happened, drawn in text: intervals against their margin, and a list of events.

use super::case::{Case, Does};
use super::expect::{Is, show};
use super::judge::brief;
use super::play::Seen;
use crate::engine::plan::Margin;
use crate::engine::state::GuardrailState;
use crate::engine::time::Millis;
use crate::tools::simulate::metric_name;
use std::fmt::Write as _;

const ROWS: usize = 9;
/// Guardrails drawn at most, and events listed.
const CHARTS: usize = 2;
const EVENTS: usize = 14;
/// Characters of an event's line at most.
const WIDTH: usize = 150;

/// The run of a case around what `about` expects, or as a whole.
pub fn draw(case: &Case, seen: &Seen, about: Option<&Is>) -> String {
    let mut out = String::new();
    for (guardrail, bucket) in drawn(case, seen, about) {
        let of = |g: &&GuardrailState| g.guardrail == guardrail && g.bucket == bucket;
        let series: Vec<(Millis, &GuardrailState)> =
            seen.strip.iter().filter_map(|(at, state)| Some((*at, state.guardrails.iter().find(of)?))).collect();
        chart(&series, case, seen, &mut out);
    }
    events(case, seen, &mut out);
    out
}

/// Guardrails and buckets that are worth a picture: those that the expectation names, or that faults change, or that decided.
fn drawn(case: &Case, seen: &Seen, about: Option<&Is>) -> Vec<(String, String)> {
    let Some((_, last)) = seen.strip.last() else { return Vec::new() };
    let (named, bucket) = match about {
        Some(Is::Verdict { guardrail, bucket, .. }) => (Some(guardrail), bucket.as_ref()),
        Some(Is::Acts { like, .. } | Is::Never { like, .. }) => (like.guardrail.as_ref(), like.bucket.as_ref()),
        _ => (None, None),
    };
    let changed =
        |g: &GuardrailState| case.faults.iter().flat_map(|f| &f.changes).any(|c| c.split(' ').next() == Some(metric_name(&g.guardrail)));
    let decided = |g: &GuardrailState| seen.decisions.iter().any(|d| d.guardrail == g.guardrail && d.bucket == g.bucket);
    let rank = |g: &GuardrailState| match named {
        Some(name) => u8::from(g.guardrail != *name),
        None if changed(g) => 0,
        None => 1 - u8::from(decided(g)),
    };
    let mut all: Vec<&GuardrailState> = last.guardrails.iter().filter(|g| bucket.is_none_or(|b| *b == g.bucket)).collect();
    all.sort_by_key(|g| rank(g));
    let interesting = all.iter().filter(|g| rank(g) == 0 || decided(g)).take(CHARTS);
    interesting.map(|g| (g.guardrail.clone(), g.bucket.clone())).collect()
}

/// What is drawn of a guardrail at one time: its value, and the interval around it.
fn point(g: &GuardrailState) -> (Option<f64>, Option<[f64; 2]>) {
    let value = match g.max_increase {
        Some(Margin::Relative(_)) => g.change,
        Some(Margin::Absolute(_)) => g.bucket_value.zip(g.baseline_value).map(|(b, c)| b - c),
        None => g.bucket_value,
    };
    (value.filter(|v| v.is_finite()), g.interval)
}

/// The margin or limit, on the side that harms.
fn bound(g: &GuardrailState) -> Option<f64> {
    let sign = if g.higher_is_worse { 1.0 } else { -1.0 };
    match g.max_increase {
        Some(Margin::Relative(m) | Margin::Absolute(m)) => Some(sign * m),
        None => g.limit,
    }
}

fn unit(g: &GuardrailState, value: f64) -> String {
    let trim = |v: f64| format!("{}", (v * 100.0).round() / 100.0);
    match (g.max_increase, g.unit.as_str()) {
        (Some(Margin::Relative(_)), _) => format!("{}%", trim(value * 100.0)),
        (Some(_), "%") => format!("{}pp", trim(value * 100.0)),
        (None, "%") => format!("{}%", trim(value * 100.0)),
        (_, unit) => format!("{} {unit}", trim(value)).trim_end().to_owned(),
    }
}

fn chart(series: &[(Millis, &GuardrailState)], case: &Case, seen: &Seen, out: &mut String) {
    let Some((_, last)) = series.last() else { return };
    let bound = bound(last);
    let values = || series.iter().filter_map(|(_, g)| point(g).0);
    let zero = last.max_increase.map(|_| 0.0);
    let known: Vec<f64> = values().chain(bound).chain(zero).collect();
    let (low, high) = known.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
    if known.is_empty() || low.is_nan() || high - low <= 0.0 {
        return;
    }
    // What is wider than this is drawn up to the edge: early intervals know nothing.
    let room = 0.5 * (high - low);
    let (low, high) = (low - room, high + room);
    let height = (high - low) / ROWS as f64;
    let row_of = |v: f64| (((high - v) / height) as usize).min(ROWS - 1);
    let what = match last.max_increase {
        Some(_) => format!("{} of {} against the baseline; margin {}", last.guardrail, last.bucket, unit(last, bound.unwrap_or(0.0))),
        None => format!("{} of {}; limit {}", last.guardrail, last.bucket, bound.map_or("none".into(), |b| unit(last, b))),
    };
    let _ = writeln!(out, "  {what}");
    for row in 0..ROWS {
        let (top, bottom) = (high - row as f64 * height, high - (row as f64 + 1.0) * height);
        let label = match row {
            _ if bound.is_some_and(|b| row_of(b) == row) => unit(last, bound.unwrap_or(0.0)),
            _ if zero.is_some() && row_of(0.0) == row => unit(last, 0.0),
            0 => unit(last, top),
            _ if row == ROWS - 1 => unit(last, bottom),
            _ => String::new(),
        };
        let cells: String = series.iter().map(|(_, g)| cell(g, (top, bottom), bound, bound.is_some_and(|b| row_of(b) == row))).collect();
        let _ = writeln!(out, "  {label:>10} │{}", cells.trim_end());
    }
    let marks = marks(series, case, seen);
    let _ = writeln!(out, "  {:>10} └{}", "", marks.trim_end_matches(' '));
    let left = show(series[0].0);
    let right = show(last_time(series));
    let gap = series.len().saturating_sub(left.chars().count() + right.chars().count());
    let _ = writeln!(out, "  {:>10}  {left}{}{right}", "", " ".repeat(gap.max(1)));
}

fn last_time(series: &[(Millis, &GuardrailState)]) -> Millis {
    series.last().map_or(0, |(at, _)| *at)
}

fn cell(g: &GuardrailState, (top, bottom): (f64, f64), bound: Option<f64>, at_bound: bool) -> char {
    let (value, interval) = point(g);
    if value.is_some_and(|v| v <= top && v > bottom) {
        return '•';
    }
    let beyond = |[low, high]: [f64; 2]| bound.is_some_and(|b| if g.higher_is_worse { low > b } else { high < b });
    match interval {
        Some(interval) if interval[0] <= top && interval[1] >= bottom => {
            if beyond(interval) {
                '█'
            } else {
                '░'
            }
        }
        _ if at_bound => '─',
        _ => ' ',
    }
}

/// Under the chart: where faults begin and end, what was decided, and where it was received.
fn marks(series: &[(Millis, &GuardrailState)], case: &Case, seen: &Seen) -> String {
    let mut line: Vec<char> = vec!['─'; series.len()];
    let mut mark = |at: Millis, c: char| {
        if let Some(i) = series.iter().position(|(t, _)| *t >= at) {
            line[i] = c;
        }
    };
    for fault in &case.faults {
        mark(fault.until, 'f');
        mark(fault.from, 'F');
    }
    case.operations.iter().for_each(|o| mark(o.at, 'O'));
    seen.decisions.iter().rev().for_each(|d| mark(d.decided_at - seen.start, 'D'));
    line.into_iter().collect()
}

fn events(case: &Case, seen: &Seen, out: &mut String) {
    let mut all: Vec<(Millis, String)> = Vec::new();
    for fault in &case.faults {
        all.push((fault.from, format!("F fault: {}", fault.text())));
        if fault.until <= seen.length {
            all.push((fault.until, format!("f fault is over: {}", fault.text())));
        }
    }
    for operation in &case.operations {
        let what = match &operation.does {
            Does::Hold(None) => "hold".to_owned(),
            Does::Hold(Some(span)) => format!("hold for {}", show(*span)),
            Does::Resume => "resume".to_owned(),
            Does::Rollback => "rollback".to_owned(),
            Does::Kill => "kill".to_owned(),
            Does::Phase(phase, _) => format!("phase {phase}"),
        };
        all.push((operation.at, format!("O operator: {what}")));
    }
    for decision in &seen.decisions {
        let beside = match (&decision.covered_by, decision.held_by) {
            (Some(_), _) => ", covered by an earlier one".to_owned(),
            (None, Some(by)) => format!(", held back ({})", by.name()),
            (None, None) => String::new(),
        };
        let brief = brief(decision, seen);
        let brief = brief.rsplit_once(" at ").map_or(brief.as_str(), |(what, _)| what);
        all.push((decision.decided_at - seen.start, format!("D {brief}{beside}: {}", decision.reason)));
    }
    for attempt in &seen.attempts {
        let what = attempt.event_type.trim_start_matches("guardrail.");
        all.push((
            attempt.at - seen.start,
            format!("  webhook to {}: {what}, attempt {}: {}", attempt.endpoint, attempt.n, attempt.answer),
        ));
    }
    all.extend(seen.log.iter().map(|entry| (entry.at - seen.start, format!("  {}", entry.text))));
    all.extend(seen.notices.iter().map(|n| (n.at - seen.start, format!("  {}: {}", n.kind.name(), n.text))));
    all.sort_by_key(|(at, _)| *at);
    for (at, text) in all.iter().take(EVENTS) {
        let cut = text.char_indices().nth(WIDTH);
        let text = cut.map_or(text.clone(), |(end, _)| format!("{}…", &text[..end]));
        let _ = writeln!(out, "  {:>10} {text}", show(*at));
    }
    if all.len() > EVENTS {
        let _ = writeln!(out, "  {:>10} and {} more", "", all.len() - EVENTS);
    }
    if all.is_empty() {
        let _ = writeln!(out, "  nothing was decided in {}", show(seen.length));
    }
}
