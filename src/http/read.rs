//! The read API.

use super::error::Failure;
use super::looks::closely;
use super::{App, LogPage, blocking};
use crate::clock;
use crate::engine::decision::{LogKind, LogQuery};
use crate::engine::state::BinsState;
use crate::engine::time::Millis;
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

/// How long the judge may take to answer.
const JUDGE: Duration = Duration::from_secs(2);
/// Decisions and deliveries of a list: unless asked otherwise, and at most.
const LIST: usize = 100;
const MAX_LIST: usize = 500;
/// Entries of a page of the log: unless asked otherwise, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1_000;

pub async fn experiments(State(app): State<App>, headers: HeaderMap) -> Result<Response, Failure> {
    app.api.access.read(&headers)?;
    let view = app.api.live.get();
    let body = json!({"at": view.at, "experiments": view.experiments, "counts": view.counts, "partitions": view.partitions});
    Ok(Json(body).into_response())
}

/// How the rule files stand, and why one is not in force as it is on disk.
pub async fn rules(State(app): State<App>, headers: HeaderMap) -> Result<Json<Value>, Failure> {
    app.api.access.read(&headers)?;
    Ok(Json(json!({"files": *app.api.live.files()})))
}

pub async fn experiment(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Failure> {
    app.api.access.read(&headers)?;
    let view = app.api.live.get();
    let close = closely(&app, &id).await;
    let state = || close.as_deref().map(|seen| &seen.state).or(view.experiment(&id)).and_then(|state| serde_json::to_vec(state).ok());
    let packed = app.answers.get(format!("experiment {id}"), &view, state).ok_or_else(|| Failure::no_experiment(&id))?;
    Ok(packed.answer(&headers))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfGuardrail {
    guardrail: String,
    bucket: String,
}

/// Histograms of one guardrail and bucket, beside the baseline's.
pub async fn bins(
    State(app): State<App>,
    headers: HeaderMap,
    Path(experiment): Path<String>,
    of: Result<Query<OfGuardrail>, QueryRejection>,
) -> Result<Json<BinsState>, Failure> {
    app.api.access.read(&headers)?;
    let hint = "?guardrail=NAME&bucket=NAME";
    let Query(OfGuardrail { guardrail, bucket }) = of.map_err(|e| Failure::bad_request(e.body_text(), hint))?;
    let busy = || Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the judge does not answer", "see /readyz?verbose");
    let none = format!("`{guardrail}` of `{bucket}` in `{experiment}` has no histogram");
    let (reply, answer) = oneshot::channel();
    app.api.commands.try_send(Command::Bins { experiment, guardrail, bucket, reply }).map_err(|_| busy())?;
    let bins = tokio::time::timeout(JUDGE, answer).await.map_err(|_| busy())?.map_err(|_| busy())?;
    bins.map(Json).ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, none, "only what has a distribution has one, once there are values"))
}

/// What comes in: partitions with their watermarks and lag, records by outcome, what must hold.
pub async fn data(State(app): State<App>, headers: HeaderMap) -> Result<Json<Value>, Failure> {
    app.api.access.read(&headers)?;
    let (view, fresh) = app.view();
    Ok(Json(json!({"at": view.at, "fresh": fresh, "checks": view.checks, "counts": view.counts, "partitions": view.partitions})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    #[serde(default)]
    after: i64,
    limit: Option<u32>,
    since: Option<jiff::Timestamp>,
    /// Kinds, separated by commas.
    #[serde(default)]
    kind: String,
}

/// What the execution log holds.
fn kinds() -> String {
    LogKind::ALL.map(LogKind::name).join(", ")
}

/// The log of an experiment; of one that no rule file names any more, too.
pub async fn log(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
    paging: Result<Query<Paging>, QueryRejection>,
) -> Result<Json<LogPage>, Failure> {
    app.api.access.read(&headers)?;
    let hint = "?after=POSITION&limit=1..1000&since=RFC3339&kind=decision,operator";
    let Query(Paging { after, limit, since, kind }) = paging.map_err(|e| Failure::bad_request(e.body_text(), hint))?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Failure::bad_request(format!("limit is {limit}"), hint));
    }
    let known = |kind: &str| LogKind::named(kind).ok_or_else(|| Failure::bad_request(format!("no kind `{kind}`"), kinds()));
    let kinds = kind.split(',').filter(|kind| !kind.is_empty()).map(known).collect::<Result<Vec<_>, _>>()?;
    let all = after == 0 && since.is_none() && kinds.is_empty();
    let asked = LogQuery { after, since: since.map_or(Millis::MIN, jiff::Timestamp::as_millisecond), kinds, limit };
    let name = id.clone();
    let page = blocking(&app, move |backend| backend.log(&name, &asked)).await?;
    if page.entries.is_empty() && all && app.api.live.get().experiment(&id).is_none() {
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    experiment: Option<String>,
    limit: Option<usize>,
}

/// The newest decisions, newest first.
pub async fn decisions(
    State(app): State<App>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Json<Value>, Failure> {
    app.api.access.read(&headers)?;
    let Query(Listing { experiment, limit }) = listing.map_err(|e| Failure::bad_request(e.body_text(), "?experiment=NAME&limit=1..500"))?;
    let limit = limit.unwrap_or(LIST).clamp(1, MAX_LIST);
    let decisions = blocking(&app, move |backend| backend.decisions(experiment.as_deref(), limit)).await?;
    Ok(Json(json!({"decisions": decisions})))
}

/// The newest deliveries with their attempts, newest first.
pub async fn deliveries(State(app): State<App>, headers: HeaderMap) -> Result<Json<Value>, Failure> {
    app.api.access.read(&headers)?;
    let deliveries = blocking(&app, |backend| backend.deliveries(LIST)).await?;
    Ok(Json(json!({"now": clock::now(), "deliveries": deliveries})))
}

/// Refused records hold what users sent, so they are for operators.
pub async fn rejects(State(app): State<App>, headers: HeaderMap) -> Result<Json<Value>, Failure> {
    app.api.access.operate(&headers)?;
    let rejects = blocking(&app, |backend| backend.rejects()).await?;
    Ok(Json(json!({"rejects": rejects})))
}
