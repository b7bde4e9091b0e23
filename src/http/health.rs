//! Liveness, readiness and metrics.

use super::App;
use super::error::Failure;
use crate::clock;
use crate::engine::time::Millis;
use crate::live::View;
use crate::telemetry::{Format, names};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// A judge that has not shown itself for this long hangs, in ms.
const DEAD: Millis = 60_000;

/// 200 while the judge makes its rounds.
pub async fn live(State(app): State<App>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let check = heartbeat(clock::now(), app.api.live.get().at, app.started);
    answer(&app, &headers, query, vec![check])
}

/// A judge that has not begun yet has its minute from the start on.
fn heartbeat(now: Millis, last: Millis, started: Millis) -> (&'static str, bool, String) {
    let silent = now - last.max(started);
    ("judge", silent <= DEAD, format!("last round {} s ago", silent / 1000))
}

/// 200 while everything holds that the daemon needs to do its work.
pub async fn ready(State(app): State<App>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let (view, fresh) = app.view();
    answer(&app, &headers, query, checks(&view, fresh))
}

fn checks(view: &View, fresh: bool) -> Vec<(&'static str, bool, String)> {
    let detail = match view.at {
        0 => "has not begun".to_owned(),
        at => format!("last round {} s ago", (clock::now() - at) / 1000),
    };
    let judge = ("judge", fresh && !view.checks.is_empty(), detail);
    std::iter::once(judge).chain(view.checks.iter().map(|check| (check.name, check.ok, check.detail.clone()))).collect()
}

/// Details are for those who may read.
fn answer(app: &App, headers: &HeaderMap, query: Option<String>, checks: Vec<(&str, bool, String)>) -> Response {
    let verbose = query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part.starts_with("verbose=")));
    if verbose && let Err(failure) = app.api.access.read(headers) {
        return failure.into_response();
    }
    let ok = checks.iter().all(|(_, ok, _)| *ok);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = if ok { "ok\n" } else { "not ok\n" }.to_owned();
    if verbose {
        for (name, ok, detail) in &checks {
            text.push_str(&format!("[{}] {name}: {detail}\n", if *ok { '+' } else { '-' }));
        }
    }
    (status, [(header::CACHE_CONTROL, "no-store")], text).into_response()
}

/// OpenMetrics for those who ask for it, else Prometheus text.
pub async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response, Failure> {
    app.api.access.read(&headers)?;
    let (view, fresh) = app.view();
    app.api.metrics.view(Arc::clone(&view));
    app.api.metrics.refresh();
    let ready = checks(&view, fresh).iter().all(|(_, ok, _)| *ok);
    app.api.metrics.set(&names::READY, &[], f64::from(u8::from(ready)));
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("");
    let open = accept.split(',').any(|part| part.trim_start().starts_with("application/openmetrics-text"));
    let format = if open { Format::OpenMetrics } else { Format::Prometheus };
    Ok(([(header::CONTENT_TYPE, format.content_type())], app.api.metrics.text(format)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_judge_that_hangs_is_dead_after_a_minute() {
        assert!(heartbeat(160_000, 100_000, 1).1);
        assert!(!heartbeat(160_001, 100_000, 1).1);
        assert!(heartbeat(160_001, 0, 101_000).1, "it may take its time to start");
        assert!(!heartbeat(161_002, 0, 101_000).1);
    }
}
