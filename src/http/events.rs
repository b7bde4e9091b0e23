//! Server-sent events: which experiments have changed, at most once a second.

use super::error::Failure;
use super::{App, Shared};
use crate::engine::decision::{Mode, Verdict};
use crate::engine::state::ExperimentState;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Interval, MissedTickBehavior};

const EVERY: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(15);

/// What makes a change; the reason alone does not.
#[derive(Clone, PartialEq, Serialize)]
struct Standing {
    revision: u32,
    mode: Mode,
    phase: u32,
    verdict: Verdict,
    go: bool,
    stop: bool,
    holds: usize,
    decisions: Vec<String>,
}

impl From<&ExperimentState> for Standing {
    fn from(state: &ExperimentState) -> Standing {
        Standing {
            revision: state.revision,
            mode: state.mode,
            phase: state.phase,
            verdict: state.verdict,
            go: state.go,
            stop: state.stop,
            holds: state.holds.len(),
            decisions: state.decisions.clone(),
        }
    }
}

#[derive(Serialize)]
struct Change<'a> {
    experiment: &'a str,
    #[serde(flatten)]
    standing: &'a Standing,
    reason: &'a str,
}

/// One client's stream.
struct Stream {
    app: Arc<Shared>,
    closing: watch::Receiver<bool>,
    ticks: Interval,
    told: Option<BTreeMap<String, Standing>>,
    _permit: OwnedSemaphorePermit,
}

/// All experiments first, then each `state` event tells those that changed and those that are gone.
pub async fn stream(State(app): State<App>, headers: HeaderMap) -> Result<Response, Failure> {
    app.api.access.read(&headers)?;
    let permit = Arc::clone(&app.streams).try_acquire_owned();
    let permit =
        permit.map_err(|_| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open", "poll /api/v1/experiments"))?;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream = Stream { closing: app.closing.clone(), app, ticks, told: None, _permit: permit };
    let events = futures_util::stream::unfold(stream, async |mut stream| {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    let sse = Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT));
    // Proxies that buffer would hold events back.
    Ok(([("x-accel-buffering", "no")], sse).into_response())
}

impl Stream {
    /// The next event; `None` when the daemon drains.
    async fn next(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                _ = self.closing.wait_for(|closing| *closing) => return None,
                _ = self.ticks.tick() => {}
            }
            if let Some(event) = self.look() {
                return Some(event);
            }
        }
    }

    fn look(&mut self) -> Option<Event> {
        let view = self.app.api.live.get();
        let now: BTreeMap<String, Standing> = view.experiments.iter().map(|state| (state.experiment.clone(), state.into())).collect();
        let first = self.told.is_none();
        let before = self.told.take().unwrap_or_default();
        let changed = now.iter().filter(|(name, standing)| before.get(*name) != Some(standing));
        let reason = |name: &str| view.experiment(name).map_or("", |state| state.reason.as_str());
        let changed: Vec<_> = changed.map(|(experiment, standing)| Change { experiment, standing, reason: reason(experiment) }).collect();
        let gone: Vec<_> = before.keys().filter(|name| !now.contains_key(*name)).collect();
        let event = (first || !changed.is_empty() || !gone.is_empty())
            .then(|| serde_json::json!({"at": view.at, "experiments": changed, "gone": gone}))
            .map(|data| Event::default().event("state").id(view.at.to_string()).data(data.to_string()));
        self.told = Some(now);
        event
    }
}
