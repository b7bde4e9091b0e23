//! Operator actions: checked here, carried out by the judge.

use super::error::Failure;
use super::{App, blocking};
use crate::clock;
use crate::config;
use crate::engine::decision::{Action, LogKind};
use crate::live::{Accepted, Command, Operation, Refusal, ReloadRequest, Request};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the judge may take to answer.
const JUDGE: Duration = Duration::from_secs(10);
/// A hold without an end is asked for by leaving `for` out; a longer one is a mistake.
const MAX_HOLD: Duration = Duration::from_secs(90 * 86_400);
/// Characters of a name and of a reason.
const MAX_NAME: usize = 200;
const MAX_REASON: usize = 2_000;
/// Links of an annotation, and bytes of each.
const MAX_LINKS: usize = 10;
const MAX_LINK: usize = 2_000;

/// What a request may hold; which verb takes what is checked by [`operation`].
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    author: Option<String>,
    reason: Option<String>,
    bucket: Option<String>,
    r#for: Option<String>,
    phase: Option<String>,
    weights: Option<BTreeMap<String, f64>>,
    kind: Option<String>,
    links: Option<Vec<String>>,
}

pub async fn experiment(
    State(app): State<App>,
    headers: HeaderMap,
    Path((id, verb)): Path<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Accepted>, Failure> {
    let token = app.api.access.operate(&headers)?;
    let asked: Asked = parse(&headers, body)?;
    let operation = operation(&verb, &asked)?;
    let author = match asked.author.as_deref().map(str::trim) {
        None | Some("") => token.to_owned(),
        Some(author) if author == token => token.to_owned(),
        Some(author) => format!("{} (token {token})", bounded("author", author, MAX_NAME)?),
    };
    let reason = match asked.reason.as_deref().map(str::trim) {
        None | Some("") => return Err(Failure::bad_request("`reason` is missing", "say why, for the execution log: {\"reason\": \"…\"}")),
        Some(reason) => bounded("reason", reason, MAX_REASON)?.to_owned(),
    };
    if app.api.live.get().experiment(&id).is_none() {
        return Err(Failure::no_experiment(&id));
    }
    let (reply, answer) = oneshot::channel();
    let command = Command::Operate(Request { experiment: id, operation, bucket: asked.bucket, author, reason, reply });
    let busy = |hint| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the judge does not answer", hint);
    match tokio::time::timeout(JUDGE, app.api.commands.send(command)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return Err(busy("nothing was done; see /readyz?verbose")),
    }
    match tokio::time::timeout(JUDGE, answer).await {
        Ok(Ok(result)) => result.map(Json).map_err(refused),
        Ok(Err(_)) | Err(_) => Err(busy("it may still be carried out; look at the experiment's log")),
    }
}

fn refused(refusal: Refusal) -> Failure {
    let status = match refusal {
        Refusal::UnknownExperiment(_) => StatusCode::NOT_FOUND,
        Refusal::NotPossible(_) => StatusCode::CONFLICT,
        Refusal::NotStored(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Failure::new(status, refusal.to_string(), "")
}

fn operation(verb: &str, asked: &Asked) -> Result<Operation, Failure> {
    let (operation, takes): (_, &[&str]) = match verb {
        "hold" => (Operation::Hold { until: until(asked.r#for.as_deref())? }, &["for"]),
        "resume" => (Operation::Resume, &[]),
        "rollback" => (Operation::Act(Action::Rollback), &["bucket"]),
        "kill" => (Operation::Act(Action::Kill), &["bucket"]),
        "annotations" => (note(asked)?, &["kind", "links"]),
        "phase" => {
            let phase =
                asked.phase.as_deref().ok_or_else(|| Failure::bad_request("`phase` is missing", "the name of the phase that begins"))?;
            let weights: Vec<_> = asked.weights.clone().unwrap_or_default().into_iter().collect();
            if weights.iter().any(|(_, weight)| !(0.0..=1.0).contains(weight)) {
                return Err(Failure::bad_request("a weight lies between 0 and 1", "{\"control\": 0.75, \"treatment\": 0.25}"));
            }
            (Operation::Phase { phase: bounded("phase", phase, MAX_NAME)?.to_owned(), weights }, &["phase", "weights"])
        }
        verb => {
            return Err(Failure::new(
                StatusCode::NOT_FOUND,
                format!("no action `{verb}`"),
                "hold, resume, rollback, kill, phase or annotations",
            ));
        }
    };
    let given = [
        ("bucket", asked.bucket.is_some()),
        ("for", asked.r#for.is_some()),
        ("phase", asked.phase.is_some()),
        ("weights", asked.weights.is_some()),
        ("kind", asked.kind.is_some()),
        ("links", asked.links.is_some()),
    ];
    match given.iter().find(|(field, given)| *given && !takes.contains(field)) {
        Some((field, _)) => Err(Failure::bad_request(format!("`{field}` means nothing to `{verb}`"), "leave it out")),
        None => Ok(operation),
    }
}

/// An entry of people's own.
fn note(asked: &Asked) -> Result<Operation, Failure> {
    let named = asked.kind.as_deref().unwrap_or("annotation");
    let kind = LogKind::named(named).filter(|kind| kind.is_note()).ok_or_else(|| {
        let kinds: Vec<_> = LogKind::ALL.into_iter().filter(|kind| kind.is_note()).map(LogKind::name).collect();
        Failure::bad_request(format!("people write no entries of the kind `{named}`"), kinds.join(", "))
    })?;
    let links = asked.links.clone().unwrap_or_default();
    let fit = |link: &String| link.len() <= MAX_LINK && (link.starts_with("https://") || link.starts_with("http://"));
    if links.len() > MAX_LINKS || !links.iter().all(fit) {
        let hint = format!("links are at most {MAX_LINKS} addresses of http or https, of {MAX_LINK} characters each");
        return Err(Failure::bad_request("a link is none", hint));
    }
    Ok(Operation::Annotate { kind, links })
}

/// The instant at which a hold ends.
fn until(text: Option<&str>) -> Result<Option<i64>, Failure> {
    let Some(text) = text else { return Ok(None) };
    match config::span(text) {
        Some(span) if !span.is_zero() && span <= MAX_HOLD => Ok(Some(clock::now() + span.as_millis() as i64)),
        _ => Err(Failure::bad_request(
            format!("`for` is {text:?}"),
            "a span such as 30m, 2h or 3d, at most 90d; leave it out to hold until `resume`",
        )),
    }
}

fn bounded<'t>(field: &str, text: &'t str, max: usize) -> Result<&'t str, Failure> {
    if text.chars().count() <= max { Ok(text) } else { Err(Failure::bad_request(format!("`{field}` has more than {max} characters"), "")) }
}

/// A JSON body of a bounded size.
pub fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<T, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Err(Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body is not declared as JSON",
            "send `Content-Type: application/json`",
        ));
    }
    let body = body.map_err(|rejection| Failure::new(rejection.status(), rejection.body_text(), "a body has at most 64 KiB"))?;
    serde_json::from_slice(&body).map_err(|error| Failure::bad_request(format!("the body is not what is expected: {error}"), ""))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadQuery {
    #[serde(default)]
    dry_run: bool,
}

/// Reads the rule files again: 200 when all are in force as they are, 409 when an earlier text of one stays, or none.
pub async fn reload(
    State(app): State<App>,
    headers: HeaderMap,
    query: Result<Query<ReloadQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let author = Some(app.api.access.operate(&headers)?.to_owned());
    let Query(ReloadQuery { dry_run }) = query.map_err(|e| Failure::bad_request(e.body_text(), "?dry_run=true"))?;
    let (reply, answer) = oneshot::channel();
    let busy = || Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the rules cannot be read now", "it may still be done; see /api/v1/rules");
    app.api.reloads.try_send(ReloadRequest { author, dry_run, reply }).map_err(|_| busy())?;
    match tokio::time::timeout(JUDGE, answer).await {
        Ok(Ok(Ok(report))) => {
            let status = if report.is_clean() { StatusCode::OK } else { StatusCode::CONFLICT };
            Ok((status, Json(report)).into_response())
        }
        Ok(Ok(Err(refusal))) => Err(refused(refusal)),
        Ok(Err(_)) | Err(_) => Err(busy()),
    }
}

/// Sends a delivery again.
pub async fn redeliver(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Failure> {
    let author = app.api.access.operate(&headers)?.to_owned();
    let key = id.clone();
    if blocking(&app, move |backend| backend.redeliver(&key, &author)).await? {
        Ok((StatusCode::ACCEPTED, Json(serde_json::json!({"delivery": id, "message": "queued"}))).into_response())
    } else {
        Err(Failure::new(StatusCode::NOT_FOUND, format!("no delivery `{id}`"), "GET /api/v1/decisions/{id} lists a decision's deliveries"))
    }
}
