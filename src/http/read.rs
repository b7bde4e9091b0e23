//! The read API.

use super::error::Failure;
use super::{App, LogPage, blocking};
use crate::engine::state::ExperimentState;
use crate::live::Command;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the judge may take for a close look.
const LOOK: Duration = Duration::from_secs(2);
/// Entries of a page of the log: unless asked otherwise, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

pub async fn experiments(State(app): State<App>, headers: HeaderMap) -> Result<Response, Failure> {
    app.api.access.read(&headers)?;
    let view = app.api.live.get();
    let body = json!({"at": view.at, "experiments": view.experiments, "counts": view.counts, "partitions": view.partitions});
    Ok(Json(body).into_response())
}

pub async fn experiment(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Result<Json<ExperimentState>, Failure> {
    app.api.access.read(&headers)?;
    let state = app.api.live.get().experiment(&id).cloned().ok_or_else(|| Failure::no_experiment(&id))?;
    Ok(Json(closely(&app, id).await.unwrap_or(state)))
}

/// The experiment with all its intervals; `None` when the judge is too busy to tell.
async fn closely(app: &App, experiment: String) -> Option<ExperimentState> {
    let (reply, answer) = oneshot::channel();
    app.api.commands.try_send(Command::Look { experiment, reply }).ok()?;
    tokio::time::timeout(LOOK, answer).await.ok()?.ok()?
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    #[serde(default)]
    after: i64,
    limit: Option<usize>,
}

/// The log of an experiment; of one that no rule file names any more, too.
pub async fn log(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
    paging: Result<Query<Paging>, QueryRejection>,
) -> Result<Json<LogPage>, Failure> {
    app.api.access.read(&headers)?;
    let Query(Paging { after, limit }) = paging.map_err(|e| Failure::bad_request(e.body_text(), "?after=POSITION&limit=1..1000"))?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Failure::bad_request(format!("limit is {limit}"), "?after=POSITION&limit=1..1000"));
    }
    let name = id.clone();
    let page = blocking(&app, move |backend| backend.log(&name, after, limit)).await?;
    if page.entries.is_empty() && after == 0 && app.api.live.get().experiment(&id).is_none() {
        return Err(Failure::no_experiment(&id));
    }
    Ok(Json(page))
}

pub async fn decision(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    app.api.access.read(&headers)?;
    let key = id.clone();
    let found = blocking(&app, move |backend| backend.decision(&key)).await?;
    found.map(Json).ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("no decision `{id}`"), ""))
}

/// Refused records hold what users sent, so they are for operators.
pub async fn rejects(State(app): State<App>, headers: HeaderMap) -> Result<Json<Value>, Failure> {
    app.api.access.operate(&headers)?;
    let rejects = blocking(&app, |backend| backend.rejects()).await?;
    Ok(Json(json!({"rejects": rejects})))
}
