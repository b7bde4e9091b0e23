//! Answers for rollout controllers. Without fresh data nothing is ever "go".

use super::App;
use super::error::Failure;
use super::operate;
use crate::engine::decision::Verdict;
use crate::telemetry::names;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a controller may do with an experiment.
#[derive(Serialize)]
struct Gate {
    verdict: Verdict,
    go: bool,
    stop: bool,
    reason: String,
}

/// What `name` is told; `None` for an experiment that nobody has heard of.
fn gate(app: &App, name: &str, experiment: &str) -> Option<Gate> {
    let gate = look(app, experiment);
    let answer = match &gate {
        None => "unknown",
        Some(Gate { stop: true, .. }) => "stop",
        Some(Gate { go: true, .. }) => "go",
        Some(_) => "wait",
    };
    app.api.metrics.add(&names::GATE_ANSWERS, &[name, answer], 1.0);
    gate
}

fn look(app: &App, experiment: &str) -> Option<Gate> {
    let (view, fresh) = app.view();
    let state = view.experiment(experiment)?;
    let gate = Gate { verdict: state.verdict, go: state.go, stop: state.stop, reason: state.reason.clone() };
    if fresh || gate.stop {
        return Some(Gate { go: gate.go && fresh && !gate.stop, ..gate });
    }
    Some(Gate { verdict: Verdict::NoData, go: false, reason: "the judge has not reported for more than 10 s".to_owned(), ..gate })
}

/// For Argo Rollouts' `web` metric.
pub async fn verdict(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Failure> {
    app.api.access.read(&headers)?;
    let Some(gate) = gate(&app, "argo", &id) else {
        let reason = format!("no experiment `{id}` in the loaded rules");
        let gate = Gate { verdict: Verdict::NoData, go: false, stop: false, reason };
        return Ok((StatusCode::NOT_FOUND, Json(gate)).into_response());
    };
    Ok(Json(gate).into_response())
}

/// What Flagger sends; the experiment is `metadata.experiment`, or else the canary's name.
#[derive(Deserialize)]
struct Canary {
    #[serde(default)]
    name: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

/// 200 rolls back.
pub async fn flagger_rollback(
    State(app): State<App>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    flagger(&app, "flagger_rollback", &headers, body, |gate| gate.stop)
}

/// 200 lets the rollout go on.
pub async fn flagger_confirm(State(app): State<App>, headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Response, Failure> {
    flagger(&app, "flagger_confirm", &headers, body, |gate| gate.go)
}

fn flagger(
    app: &App,
    name: &str,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    open: impl Fn(&Gate) -> bool,
) -> Result<Response, Failure> {
    app.api.access.read(headers)?;
    let canary: Canary = operate::parse(headers, body)?;
    let experiment = canary.metadata.get("experiment").unwrap_or(&canary.name);
    let (status, reason) = match gate(app, name, experiment) {
        Some(gate) if open(&gate) => (StatusCode::OK, gate.reason),
        Some(gate) => (StatusCode::FORBIDDEN, gate.reason),
        None => (StatusCode::FORBIDDEN, format!("no experiment `{experiment}` in the loaded rules")),
    };
    Ok((status, format!("{reason}\n")).into_response())
}
