//! The daemon's HTTP side: health, metrics, the read API, operator actions, gates for rollout controllers, the dashboard.
//!
//! Everything shown comes from [`crate::live`] or, where it is kept in the store, from a [`Backend`]; everything asked for goes to
//! the judge as a [`Command`].

mod access;
mod assets;
mod assignments;
mod audit;
mod error;
mod events;
mod fleet;
mod gates;
mod health;
mod looks;
mod operate;
mod packed;
mod patience;
mod read;
mod readout;
mod series;
mod server;
mod tls;

pub use access::Access;
pub use server::{BindError, Limits, bind, serve};
pub use tls::{Tls, TlsError};

use crate::clock;
use crate::engine::decision::LogQuery;
use crate::engine::state::CloseLook;
use crate::engine::time::Millis;
use crate::live::{Command, Live, ReloadRequest, View};
use crate::readout::Dossier;
use crate::telemetry::{Metrics, names};
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, http::StatusCode};
use error::Failure;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};

/// A request body has at most this many bytes.
pub const MAX_BODY: usize = 64 << 10;
/// Characters of a request's address at most.
const MAX_URL: usize = 4 << 10;
/// A request is answered within this time, reading its body included; a stream only has to begin.
const ANSWER: Duration = Duration::from_secs(15);
/// Streams of events open at once.
const STREAMS: usize = 128;
/// A view older than this is stale: not ready, and never "go".
const STALE: Millis = 10_000;

/// What the API needs of the rest of the daemon.
pub struct Api {
    pub live: Live,
    /// To the judge.
    pub commands: mpsc::Sender<Command>,
    /// To whoever reads the rule files.
    pub reloads: mpsc::Sender<ReloadRequest>,
    pub backend: Arc<dyn Backend>,
    pub metrics: Metrics,
    pub access: Access,
}

/// What the store keeps. Its methods may block; they are called off the async threads.
pub trait Backend: Send + Sync {
    /// A decision with its deliveries.
    fn decision(&self, id: &str) -> Result<Option<serde_json::Value>, BackendError>;
    /// The newest decisions of an experiment, or of all, newest first.
    fn decisions(&self, experiment: Option<&str>, limit: usize) -> Result<Vec<serde_json::Value>, BackendError>;
    /// The newest deliveries with their attempts, newest first.
    fn deliveries(&self, limit: usize) -> Result<Vec<serde_json::Value>, BackendError>;
    /// Entries of an experiment's execution log, oldest first.
    fn log(&self, experiment: &str, asked: &LogQuery) -> Result<LogPage, BackendError>;
    /// All that is known of an experiment, for its readout; `live` is how it stands now, where it runs. `None` of one that never was.
    fn dossier(&self, experiment: &str, live: Option<&CloseLook>) -> Result<Option<Dossier>, BackendError>;
    /// Puts a delivery back into the queue; false if there is none with this id.
    fn redeliver(&self, id: &str, author: &str) -> Result<bool, BackendError>;
    /// Writes the observed assignments of an experiment as CSV.
    fn assignments(&self, experiment: &str, out: &mut dyn Write) -> Result<(), BackendError>;
    /// Samples of refused records, newest first.
    fn rejects(&self) -> Result<Vec<serde_json::Value>, BackendError>;
}

/// A page of the execution log.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct LogPage {
    pub entries: Vec<serde_json::Value>,
    /// `after` of the next page; `None` at the end.
    pub next: Option<i64>,
}

/// The store cannot answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// What handlers share.
struct Shared {
    api: Api,
    started: Millis,
    /// True once the daemon drains: streams end.
    closing: watch::Receiver<bool>,
    streams: Arc<Semaphore>,
    exports: Arc<Semaphore>,
    readouts: Semaphore,
    /// Attempts that were refused lately.
    refused: audit::Refused,
    looks: looks::Looks,
    answers: packed::OfView,
    news: events::Listener,
    assets: assets::Assets,
}

type App = Arc<Shared>;

impl Shared {
    /// The newest view, and whether it is recent enough to act on.
    fn view(&self) -> (Arc<View>, bool) {
        let view = self.api.live.get();
        let fresh = clock::now() - view.at <= STALE;
        (view, fresh)
    }
}

fn shared(api: Api, closing: watch::Receiver<bool>, news: events::Listener) -> App {
    Arc::new(Shared {
        api,
        started: clock::now(),
        closing,
        streams: Arc::new(Semaphore::new(STREAMS)),
        exports: Arc::new(Semaphore::new(assignments::EXPORTS)),
        readouts: Semaphore::new(readout::READOUTS),
        refused: audit::Refused::default(),
        looks: looks::Looks::default(),
        answers: packed::OfView::default(),
        news,
        assets: assets::Assets::new(),
    })
}

/// The API without a listener: see [`serve`] for what bounds connections.
pub fn site(api: Api) -> Router {
    let news = events::Newsroom::new(api.live.get(), false).listen();
    router(shared(api, watch::channel(false).1, news))
}

fn router(app: App) -> Router {
    Router::new()
        .route("/", get(assets::page))
        .route("/assets/{file}", get(assets::asset))
        .route("/livez", get(health::live))
        .route("/-/healthy", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/-/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/api/v1/experiments", get(read::experiments))
        .route("/api/v1/experiments/{id}", get(read::experiment))
        .route("/api/v1/experiments/{id}/assignments", get(assignments::csv))
        .route("/api/v1/experiments/{id}/bins", get(read::bins))
        .route("/api/v1/experiments/{id}/log", get(read::log))
        .route("/api/v1/experiments/{id}/readout", get(readout::readout))
        .route("/api/v1/experiments/{id}/series", get(series::series))
        .route("/api/v1/experiments/{id}/verdict", get(gates::verdict))
        .route("/api/v1/experiments/{id}/{verb}", post(operate::experiment))
        .route("/api/v1/data", get(read::data))
        .route("/api/v1/decisions", get(read::decisions))
        .route("/api/v1/decisions/{id}", get(read::decision))
        .route("/api/v1/deliveries", get(read::deliveries))
        .route("/api/v1/deliveries/{id}/redeliver", post(operate::redeliver))
        .route("/api/v1/fleet", get(fleet::fleet))
        .route("/api/v1/rejects", get(read::rejects))
        .route("/api/v1/rules", get(read::rules))
        .route("/-/reload", post(operate::reload))
        .route("/api/v1/events", get(events::stream))
        .route("/hooks/flagger/rollback", post(gates::flagger_rollback))
        .route("/hooks/flagger/confirm", post(gates::flagger_confirm))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "no such path", "see /api/v1/experiments"))
        .method_not_allowed_fallback(async || Failure::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method", ""))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

/// What is answered whether or not this daemon is the active one.
const ALWAYS: [&str; 5] = ["/livez", "/readyz", "/-/healthy", "/-/ready", "/metrics"];

/// Bounds every request in length and time, counts it, and tells of those that write.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    if request.uri().path_and_query().is_some_and(|asked| asked.as_str().len() > MAX_URL) {
        return Failure::new(StatusCode::URI_TOO_LONG, format!("an address has at most {MAX_URL} characters"), "").into_response();
    }
    let peer = request.extensions().get::<audit::Peer>().copied();
    let entry = audit::Entry::of(&app.api.access, peer, request.method(), request.uri().path(), request.headers());
    let path = request.extensions().get::<MatchedPath>().map_or("other".to_owned(), |path| path.as_str().to_owned());
    let unavailable = app.api.live.get().unavailable.clone().filter(|_| !ALWAYS.contains(&path.as_str()));
    let answer = async {
        match unavailable {
            Some(why) => Failure::new(StatusCode::SERVICE_UNAVAILABLE, why, "/readyz tells when this daemon serves").into_response(),
            None => next.run(request).await,
        }
    };
    let response = match tokio::time::timeout(ANSWER, answer).await {
        Ok(response) => response,
        Err(_) => Failure::new(StatusCode::REQUEST_TIMEOUT, "the request took too long", "").into_response(),
    };
    app.api.metrics.add(&names::HTTP_REQUESTS, &[&path, response.status().as_str()], 1.0);
    if let Some(entry) = entry {
        entry.tell(&app, response.status());
    }
    response
}

/// Runs a call to the store on a thread that may block.
async fn blocking<T: Send + 'static>(
    app: &App,
    call: impl FnOnce(&dyn Backend) -> Result<T, BackendError> + Send + 'static,
) -> Result<T, Failure> {
    let backend = Arc::clone(&app.api.backend);
    let result = tokio::task::spawn_blocking(move || call(backend.as_ref())).await;
    let unavailable = |error: String| Failure::new(StatusCode::SERVICE_UNAVAILABLE, error, "see the daemon's log");
    match result {
        Ok(result) => result.map_err(|error| unavailable(format!("the store cannot answer: {error}"))),
        Err(_) => Err(unavailable("the store's thread failed".to_owned())),
    }
}
