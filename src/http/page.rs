//! The status page: one table, rendered here, refreshed by the browser when something changes.

use super::App;
use super::error::Failure;
use crate::clock;
use crate::engine::decision::{Mode, Timestamp, Verdict};
use crate::engine::state::{ExperimentState, FunnelBucket, FunnelState, GuardrailState, Stage};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Nothing from outside, nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Experiments shown, worst first; the API has all.
const ROWS: usize = 200;

pub async fn status(State(app): State<App>, headers: HeaderMap) -> Result<Response, Failure> {
    app.api.access.browse(&headers)?;
    let (view, fresh) = app.view();
    let mut states: Vec<&ExperimentState> = view.experiments.iter().collect();
    states.sort_by_key(|state| (rank(state.verdict), &state.experiment));
    let rows: String = states.iter().take(ROWS).map(|state| row(state)).collect();
    let funnels: String = states.iter().take(ROWS).flat_map(|state| state.funnels.iter().map(|f| funnel(&state.experiment, f))).collect();
    let hidden = states.len().saturating_sub(ROWS);
    let more = if hidden > 0 { format!("<p>{hidden} more: <a href=\"/api/v1/experiments\">all as JSON</a></p>") } else { String::new() };
    let age = if view.at == 0 { "no data yet".to_owned() } else { format!("{} s old", (clock::now() - view.at).max(0) / 1000) };
    let failing: Vec<_> = view.checks.iter().filter(|c| !c.ok).map(|c| format!("{}: {}", escape(c.name), escape(&c.detail))).collect();
    let banner = match (fresh, failing.is_empty()) {
        (false, _) => format!("<p class=\"banner\">Stale: what is shown is {age}.</p>"),
        (true, false) => format!("<p class=\"banner\">Not ready. {}</p>", failing.join("; ")),
        (true, true) => String::new(),
    };
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>guardraild</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"stylesheet\" href=\"/assets/status.css\">\
         <script src=\"/assets/status.js\" defer></script></head><body><h1>guardraild</h1><main id=\"state\">{banner}\
         <p>{} experiments, {} records, at {} ({age})</p>\
         <table><thead><tr><th>Experiment<th>Phase<th>Verdict<th>Why<th>Worst guardrail<th>Exposed<th>Holds<th>Data</thead><tbody>{rows}</tbody></table>{more}{funnels}\
         </main></body></html>",
        view.experiments.len(),
        view.counts.records(),
        Timestamp(view.at),
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    Ok((headers, html).into_response())
}

pub async fn asset(Path(file): Path<String>) -> Response {
    let (kind, text) = match file.as_str() {
        "status.css" => ("text/css; charset=utf-8", include_str!("assets/status.css")),
        "status.js" => ("text/javascript; charset=utf-8", include_str!("assets/status.js")),
        _ => return Failure::new(StatusCode::NOT_FOUND, "no such file", "").into_response(),
    };
    ([(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], text).into_response()
}

fn row(state: &ExperimentState) -> String {
    let (class, icon, word) = look(state.verdict);
    let worst = state.guardrails.iter().min_by_key(|guardrail| rank(guardrail.verdict));
    let mode = if state.mode == Mode::Observe { " (observe)" } else { "" };
    let exposed: Vec<_> = state.buckets.iter().map(|b| format!("{}: {}", escape(&b.bucket), b.exposed_units)).collect();
    let holds: Vec<_> = state.holds.iter().map(|hold| format!("{}: {}", escape(&hold.by), escape(&hold.reason))).collect();
    format!(
        "<tr class=\"{class}\"><td>{}{mode}<td>{}<td>{icon} {word}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
        escape(&state.experiment),
        phase(state),
        escape(&state.reason),
        worst.map(guardrail).unwrap_or_default(),
        exposed.join("<br>"),
        holds.join("<br>"),
        data(state).join("<br>"),
    )
}

fn phase(state: &ExperimentState) -> String {
    let name = state.phase_name.as_deref().map_or_else(|| state.phase.to_string(), escape);
    match state.rollout.stage {
        Stage::Planned => "not begun".to_owned(),
        Stage::Running if state.rollout.phase_ready => format!("{name}, ready for the next"),
        Stage::Running => name,
        Stage::Full => format!("{name}: full"),
        Stage::Done => format!("{name}: done"),
        Stage::Ended => format!("{name}: ended"),
    }
}

/// How far workflows come: a row for each bucket, a column for each step.
fn funnel(experiment: &str, state: &FunnelState) -> String {
    let steps: String = state.steps.iter().map(|step| format!("<th>{}", escape(step))).collect();
    let row = |bucket: &FunnelBucket| {
        let all = &bucket.all;
        let share = |n: i64| if all.started > 0 { format!(" ({:.1}%)", 100.0 * n as f64 / all.started as f64) } else { String::new() };
        let reached: String = all.reached.iter().map(|n| format!("<td>{n}{}", share(*n))).collect();
        format!(
            "<tr><td>{}<td>{}{reached}<td>{}{}<td>{}<td>{}<td>{}<td>{}</tr>",
            escape(&bucket.bucket),
            all.started,
            all.completed,
            share(all.completed),
            all.completed_late,
            all.abandoned,
            all.timed_out,
            all.open,
        )
    };
    format!(
        "<h2>{}: funnel {}</h2><table><thead><tr><th>Bucket<th>Started{steps}<th>Completed<th>Late<th>Abandoned<th>Timed out<th>Open</thead>\
         <tbody>{}</tbody></table>",
        escape(experiment),
        escape(&state.funnel),
        state.buckets.iter().map(row).collect::<String>(),
    )
}

/// Checks of the data that fail, and what is wrong with records and units.
fn data(state: &ExperimentState) -> Vec<String> {
    let failing = state.quality.iter().filter(|check| check.verdict == Verdict::Breach);
    let failing = failing.map(|check| format!("{}: {}", escape(&check.check), escape(&check.reason)));
    let flaws = state.data.flaws().into_iter().filter(|(_, n)| *n > 0);
    failing.chain(flaws.map(|(flaw, n)| format!("{flaw}: {n}"))).collect()
}

fn guardrail(state: &GuardrailState) -> String {
    let value = |value: Option<f64>| value.map_or("no value".to_owned(), |value| format!("{value:.4} {}", escape(&state.unit)));
    let (_, _, word) = look(state.verdict);
    format!(
        "{} of {}: {word}, {} against {}",
        escape(&state.guardrail),
        escape(&state.bucket),
        value(state.bucket_value),
        value(state.baseline_value)
    )
}

/// Class, icon and word of a verdict: colour is never alone.
fn look(verdict: Verdict) -> (&'static str, &'static str, &'static str) {
    match verdict {
        Verdict::Safe => ("safe", "✓", "safe"),
        Verdict::Watching => ("watching", "◌", "watching"),
        Verdict::Breach => ("breach", "✕", "breach"),
        Verdict::NoData => ("no-data", "?", "no data"),
    }
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Breach => 0,
        Verdict::NoData => 1,
        Verdict::Watching => 2,
        Verdict::Safe => 3,
    }
}

/// Text for HTML content and quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
