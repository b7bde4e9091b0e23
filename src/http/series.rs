//! The values behind charts.

use super::App;
use super::error::Failure;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use std::time::Duration;

/// Span between two points that are new.
pub const STEP: Duration = Duration::from_secs(1);

/// `GET /api/v1/experiments/{id}/series`
pub async fn series(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Failure> {
    app.api.access.read(&headers)?;
    let view = app.api.live.get();
    view.experiment(&id).ok_or_else(|| Failure::no_experiment(&id))?;
    let shown = || serde_json::to_vec(&app.api.live.history().shown(&id)).ok();
    let packed = app.answers.get(format!("series {id}"), &view, shown).ok_or_else(|| Failure::no_experiment(&id))?;
    Ok(packed.answer(&headers))
}
