//! `GET /api/v1/experiments/{id}/readout`: all that is known of an experiment, as data, as Markdown or as a page.

use super::error::Failure;
use super::looks::closely;
use super::{App, blocking};
use crate::readout;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

/// Readouts made at once: each reads all that is known of an experiment. Further ones wait.
pub const READOUTS: usize = 2;

/// The page has its style inside, and nothing else.
const PAGE: [(HeaderName, &str); 3] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    #[serde(default)]
    format: Format,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Markdown,
    Html,
}

pub async fn readout(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, Failure> {
    app.api.access.browse(&headers)?;
    let Query(Asked { format }) = asked.map_err(|e| Failure::bad_request(e.body_text(), "?format=json|markdown|html"))?;
    // It is never closed.
    let _turn = app.readouts.acquire().await.ok();
    let view = app.api.live.get();
    let close = closely(&app, &id).await;
    let name = id.clone();
    let dossier = blocking(&app, move |backend| backend.dossier(&name, close.as_deref().or(view.experiment(&name)))).await?;
    let dossier = dossier.ok_or_else(|| Failure::no_experiment(&id))?;
    Ok(match format {
        Format::Json => Json(dossier).into_response(),
        Format::Markdown => ([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], readout::markdown(&dossier)).into_response(),
        Format::Html => (PAGE, readout::html(&dossier)).into_response(),
    })
}
