//! Server-sent events: which experiments have changed, and that all is alive, once a second. What is sent is written once, whoever
//! listens.

use super::App;
use super::error::Failure;
use crate::engine::decision::{Mode, Verdict};
use crate::engine::state::ExperimentState;
use crate::live::View;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use tokio::sync::{OwnedSemaphorePermit, watch};

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

/// What is sent in one second.
#[derive(Clone)]
struct Frame {
    number: u64,
    /// To who has heard the frame before: `state` if something changed, and `tick`.
    news: Bytes,
    view: Arc<View>,
    fresh: bool,
    /// To all others; written when the first of them comes.
    all: Arc<OnceLock<Bytes>>,
}

impl Frame {
    fn all(&self) -> Bytes {
        let write = || {
            let standings = standings(&self.view);
            let all: Vec<_> = standings.iter().map(|(name, standing)| change(&self.view, name, standing)).collect();
            Bytes::from(format!("{}{}", state(&self.view, &all, &[]), tick(&self.view, self.fresh)))
        };
        self.all.get_or_init(write).clone()
    }
}

/// Writes the frames that all streams send.
pub struct Newsroom {
    told: BTreeMap<String, Standing>,
    frames: watch::Sender<Frame>,
}

impl Newsroom {
    pub fn new(view: Arc<View>, fresh: bool) -> Newsroom {
        let told = standings(&view);
        let frame = Frame { number: 0, news: Bytes::new(), view, fresh, all: Arc::default() };
        Newsroom { told, frames: watch::Sender::new(frame) }
    }

    pub fn listen(&self) -> Listener {
        Listener(self.frames.subscribe())
    }

    /// Tells what has changed since the last time.
    pub fn tell(&mut self, view: Arc<View>, fresh: bool) {
        let now = standings(&view);
        let before = std::mem::replace(&mut self.told, now);
        let news = {
            let changed = self.told.iter().filter(|(name, standing)| before.get(*name) != Some(standing));
            let changed: Vec<_> = changed.map(|(name, standing)| change(&view, name, standing)).collect();
            let gone: Vec<_> = before.keys().filter(|name| !self.told.contains_key(*name)).collect();
            let state = if changed.is_empty() && gone.is_empty() { String::new() } else { state(&view, &changed, &gone) };
            Bytes::from(format!("{state}{}", tick(&view, fresh)))
        };
        self.frames.send_modify(|frame| *frame = Frame { number: frame.number + 1, news, view, fresh, all: Arc::default() });
    }
}

/// Hears frames.
#[derive(Clone)]
pub struct Listener(watch::Receiver<Frame>);

fn standings(view: &View) -> BTreeMap<String, Standing> {
    view.experiments.iter().map(|state| (state.experiment.clone(), state.into())).collect()
}

fn change<'a>(view: &'a View, experiment: &'a str, standing: &'a Standing) -> Change<'a> {
    Change { experiment, standing, reason: view.experiment(experiment).map_or("", |state| state.reason.as_str()) }
}

fn state(view: &View, experiments: &[Change<'_>], gone: &[&String]) -> String {
    let data = json!({"at": view.at, "experiments": experiments, "gone": gone});
    format!("event: state\nid: {}\ndata: {data}\n\n", view.at)
}

/// The pulse: a page that misses it shows itself as stale.
fn tick(view: &View, fresh: bool) -> String {
    let failing: Vec<_> =
        view.checks.iter().filter(|check| !check.ok).map(|check| json!({"name": check.name, "detail": check.detail})).collect();
    let count = |verdict| view.experiments.iter().filter(|state| state.verdict == verdict).count();
    let data = json!({
        "at": view.at,
        "fresh": fresh,
        "records": view.counts.records(),
        "failing": failing,
        "verdicts": {"breach": count(Verdict::Breach), "no_data": count(Verdict::NoData), "watching": count(Verdict::Watching),
                     "safe": count(Verdict::Safe)},
    });
    format!("event: tick\ndata: {data}\n\n")
}

/// One client's stream.
struct Stream {
    closing: watch::Receiver<bool>,
    frames: watch::Receiver<Frame>,
    /// Number of the last frame that was sent.
    sent: Option<u64>,
    _permit: OwnedSemaphorePermit,
}

/// All experiments first, then those that changed and those that are gone. Who falls behind is told all again.
pub async fn stream(State(app): State<App>, headers: HeaderMap) -> Result<Response, Failure> {
    app.api.access.read(&headers)?;
    let permit = Arc::clone(&app.streams).try_acquire_owned();
    let permit =
        permit.map_err(|_| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open", "poll /api/v1/experiments"))?;
    let stream = Stream { closing: app.closing.clone(), frames: app.news.0.clone(), sent: None, _permit: permit };
    let frames = futures_util::stream::unfold(stream, async |mut stream| {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(bytes), stream))
    });
    let fixed = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // Proxies that buffer would hold events back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((fixed, Body::from_stream(frames)).into_response())
}

impl Stream {
    /// What is to be sent next; `None` when the daemon drains.
    async fn next(&mut self) -> Option<Bytes> {
        let frame = match self.sent {
            None => self.frames.borrow_and_update().clone(),
            Some(_) => tokio::select! {
                _ = self.closing.wait_for(|closing| *closing) => return None,
                changed = self.frames.changed() => {
                    changed.ok()?;
                    self.frames.borrow_and_update().clone()
                }
            },
        };
        let missed = self.sent.is_none_or(|sent| sent + 1 < frame.number);
        self.sent = Some(frame.number);
        Some(if missed { frame.all() } else { frame.news })
    }
}
