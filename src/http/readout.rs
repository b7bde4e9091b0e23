//! `GET /api/v1/experiments/{id}/readout`: all that is known of an experiment, as data, as Markdown, as a page, or with the data behind it as an archive.

use super::error::Failure;
use super::looks::closely;
use super::{App, blocking};
use crate::engine::state::CloseLook;
use crate::readout::{self, Dossier, export};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;

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
    #[serde(rename = "tar.gz")]
    Archive,
}

pub async fn readout(
    State(app): State<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, Failure> {
    app.api.access.browse(&headers)?;
    let Query(Asked { format }) = asked.map_err(|e| Failure::bad_request(e.body_text(), "?format=json|markdown|html|tar.gz"))?;
    // It is never closed.
    let _turn = app.readouts.acquire().await.ok();
    let known = || app.api.live.get().experiment(&id).map(|state| Arc::new(CloseLook::from(state.clone())));
    let look = closely(&app, &id).await.or_else(known);
    let name = id.clone();
    let answer =
        blocking(&app, move |backend| Ok(backend.dossier(&name, look.as_deref())?.map(|dossier| written(&dossier, format)))).await?;
    answer.ok_or_else(|| Failure::no_experiment(&id))
}

fn written(dossier: &Dossier, format: Format) -> Response {
    match format {
        Format::Json => Json(dossier).into_response(),
        Format::Markdown => ([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], readout::markdown(dossier)).into_response(),
        Format::Html => (PAGE, readout::html(dossier)).into_response(),
        Format::Archive => match export::archive(dossier) {
            Ok(archive) => (archive_headers(&dossier.experiment), archive).into_response(),
            Err(error) => {
                Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the archive cannot be made: {error}"), "").into_response()
            }
        },
    }
}

fn archive_headers(experiment: &str) -> [(HeaderName, String); 2] {
    let disposition = format!("attachment; filename=\"{}.tar.gz\"", export::folder(experiment));
    [(header::CONTENT_TYPE, "application/gzip".to_owned()), (header::CONTENT_DISPOSITION, disposition)]
}
