//! The only place where the parts are wired together: start, run, drain.

pub mod assignments;
mod backend;
mod chronicle;
pub mod dossier;
pub mod judging;
pub mod recovery;
mod reload;
mod renew;
mod topic;
mod turn;
mod unable;

pub use renew::Reread;

use crate::clock;
use crate::config::{self, Config, OAuth, OffsetReset, Property};
use crate::delivery::{self, DeliveryEvent, DeliveryResult, Dispatcher};
use crate::engine::decision::Output;
use crate::fail;
use crate::http::{self, Access, Api};
use crate::ingest::decode::Limits;
use crate::ingest::kafka::{AutoOffsetReset, Engine, Ingest, KafkaConfig};
use crate::ingest::mapped::Layouts;
use crate::ingest::oauth::OauthConfig;
use crate::ingest::produce::Producer;
use crate::ingest::schemas::{Login, Registry, RegistryConfig, Schemas};
use crate::live::{Check, Live, Refusal, ReloadReport, ReloadRequest, View};
use crate::mapping::Sources;
use crate::rules::{self, Loaded};
use crate::store::Store;
use crate::telemetry::{Metrics, Telemetry, names};
use crate::tools::demo::Daemon;
use anyhow::Context;
use crossbeam_channel::RecvTimeoutError;
use judging::{Court, Stop};
use reload::{Keeper, Place};
use renew::Renewal;
use secrecy::ExposeSecret;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use turn::{Holder, Turn};

/// Rules that cannot be used: the same exit status as a bad configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadConfig(String);

/// Messages between ingest and judge at most; beyond it, reading waits. Most are panes: what waits here is memory, and a checkpoint waits behind it.
const INBOX: usize = 256;
/// What a state may take to be restored, as far as the service manager is told.
const RESTORING: Duration = Duration::from_secs(600);
/// What deliveries in flight may take at the end; the rest is attempted at the next start.
const GRACE: Duration = Duration::from_secs(10);

/// A running daemon.
pub struct App {
    pub live: Live,
    /// Where the API listens.
    pub http: SocketAddr,
    pub metrics: Metrics,
    runtime: Runtime,
    dispatcher: Dispatcher,
    close_http: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
    stop: Stop,
    reloads: mpsc::Sender<ReloadRequest>,
    judging: JoinHandle<()>,
    /// SIGHUPs since the start began.
    hangups: Option<Signal>,
    /// One active daemon per state directory, for as long as it runs.
    _turn: Arc<Turn>,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, or what ended it.
pub fn run(config: Config, reread: Reread) -> anyhow::Result<()> {
    let telemetry = Telemetry::init(&config.telemetry)?;
    let mut app = start(config, telemetry.metrics.clone(), Some(reread))?;
    tracing::info!(address = %app.http, "listening");
    let hangups = app.hangups.take();
    let outcome = app.runtime.block_on(until_stopped(&app.stop, &app.reloads, hangups));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    app.shutdown();
    telemetry.shutdown();
    outcome
}

/// Waits for a signal to stop, or for the judging thread to give up. SIGHUP reads the rules again.
async fn until_stopped(stop: &Stop, reloads: &mpsc::Sender<ReloadRequest>, hangups: Option<Signal>) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = hangups.map_or_else(|| signal(SignalKind::hangup()), Ok)?;
    loop {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("interrupted: draining"),
            reason = stop.failed() => anyhow::bail!("{reason}"),
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: reading the rules again");
                let (reply, answer) = oneshot::channel();
                // With a full queue they are read in a moment anyway.
                if reloads.try_send(ReloadRequest { author: None, dry_run: false, reply }).is_ok() {
                    tokio::spawn(reloading(answer));
                }
                continue;
            }
        }
        return Ok(());
    }
}

/// Tells the service manager that a reload goes on, and when it has ended.
async fn reloading(answer: oneshot::Receiver<Result<ReloadReport, Refusal>>) {
    let now = sd_notify::NotifyState::monotonic_usec_now();
    let begun = now.ok().map(|now| sd_notify::notify(&[sd_notify::NotifyState::Reloading, now]));
    // What came of it is in the log.
    let _ = answer.await;
    if begun.is_some() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }
}

/// Starts everything; the caller owns the process's telemetry.
///
/// # Errors
/// What keeps it from starting; [`BadConfig`] where the rules are at fault.
pub fn start(config: Config, metrics: Metrics, reread: Option<Reread>) -> anyhow::Result<App> {
    // TLS needs one process-wide provider; an error only says that somebody has installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    fail::arm_from_environment().map_err(BadConfig)?;
    let (database, mut place) = (config.state_dir.join("guardraild.db"), place(&config));
    if !database.exists() {
        let (proposal, _) = reload::at_start(&place, &Loaded::default(), &[]);
        if proposal.loaded.rules.is_empty() {
            reload::tell(&proposal, &metrics);
            return Err(nothing_to_do(&config, proposal.loaded.refused).into());
        }
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state_dir)
        .with_context(|| format!("state_dir {} cannot be made", config.state_dir.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("io").enable_all().build()?;
    // From here on it does not end the process, however long there is another daemon, or a state to be restored; it is heard afterwards.
    let hangups = reread.is_some().then(|| runtime.block_on(async { signal(SignalKind::hangup()) })).transpose()?;
    let tls = config.http.tls.as_ref().map(http::Tls::load).transpose().map_err(|e| BadConfig(format!("http.tls: {e}")))?;
    let listener = runtime.block_on(http::bind(config.http.listen))?;
    let address = listener.local_addr()?;
    let (live, stop, late) = (Live::default(), Stop::default(), Arc::new(backend::Late::default()));
    let ((commands, orders), (reloads, requests)) = (mpsc::channel(64), mpsc::channel(8));
    let backend = Arc::<backend::Late>::clone(&late);
    let (to_judge, access) = (commands.clone(), Access::new(&config.http));
    let api = Api { live: live.clone(), commands, reloads: reloads.clone(), backend, metrics: metrics.clone(), access };
    let (close_http, closed) = oneshot::channel();
    live.set(not_yet("starting".to_owned()));
    let served = runtime.spawn(http::serve(listener, api, http::Limits::from(&config.http), tls, async move {
        let _ = closed.await;
    }));

    let turn = take_turn(&config, address, &live, &metrics)?.keep(stop.clone())?;
    let fed = feed_watchdog()?;
    private(&database)?;
    let open = || Store::open(&database).with_context(|| format!("the database {} cannot be used", database.display()));
    let mut store = open()?;
    store.check()?;
    let epoch = fence(&mut store)?;
    metrics.set(&names::EPOCH, &[], epoch as f64);
    let open = || open().map(|store| store.in_epoch(epoch));
    // First as it was, then by what the files say now: a restart with other rules is a reload.
    let before = reload::stored(store.rules()?);
    let mut recovered = recovery::recover(&mut store, &before.catalog, &config.engine.settings, &metrics)?;
    let (proposal, digest) = reload::at_start(&place, &before, &recovered.fleet.views());
    reload::tell(&proposal, &metrics);
    if proposal.loaded.rules.is_empty() {
        return Err(nothing_to_do(&config, proposal.loaded.refused).into());
    }
    let mut opening = Output::default();
    recovered.fleet.reload(&proposal.loaded.catalog, clock::now(), &mut opening).map_err(anyhow::Error::msg)?;
    if !before.used.is_empty() {
        opening.log.extend(judging::entries(&proposal.changes, None, clock::now()));
    }
    let rules::reload::Proposal { loaded, mut files, changes } = proposal;
    tracing::info!(experiments = loaded.rules.len(), refused = loaded.refused, "rules loaded");

    let dispatcher = start_dispatcher(&runtime, open()?, &config, &metrics)?;
    let (sender, inbox) = crossbeam_channel::bounded(INBOX);
    let limits = Limits { max_record_bytes: config.engine.max_record, ..Limits::default() };
    let mut kafka = kafka_config(&config.kafka, &loaded.sources);
    if config.standby {
        // Whoever takes over is to the broker the same member, back again: it need not wait until the old one is given up, which is shut out.
        kafka.properties.entry("group.instance.id".to_owned()).or_insert_with(|| config.kafka.group.clone());
    }
    let layouts = layouts(&config.kafka, loaded.sources.clone(), &metrics)?;
    (place.topics, place.registry) = (Some(kafka.topics.clone().into()), layouts.schemas.is_some());
    let catalog = Arc::new(loaded.catalog.clone());
    let engine = Engine { catalog, settings: config.engine.settings.clone(), limits, layouts, metrics: metrics.clone() };
    let ingest = Arc::new(Ingest::start(&kafka, engine, recovered.resume, clock::now, sender)?);

    chronicle::restore(&store, &live, &recovered.fleet.views())?;
    runtime.spawn(chronicle::Chronicle::new(open()?, live.clone(), config.store.retention).keep());
    let endpoints = dispatcher.renewer();
    unable::note(&mut files, &loaded, |name| endpoints.sender(name), clock::now());
    unable::tell(&files, &[]);
    live.set_files(files);
    let renewal = reread.map(|reread| Renewal { reread, started: config.clone() });
    let shared = (live.clone(), metrics.clone());
    let keeper = Keeper::new(place, shared, to_judge, endpoints, (&loaded, digest)).renewing(renewal);
    runtime.spawn(keeper.run(requests, config.reload.every));
    let readable = Arc::clone(&ingest);
    let published = config.kafka.decisions_topic.as_deref().map(delivery::topic_endpoint);
    let router = delivery::Router { base_url: config.http.base_url.parse().ok(), topic: published.clone() };
    if let (Some(topic), Some(endpoint)) = (&config.kafka.decisions_topic, &published) {
        let producer = Producer::new(&kafka, topic, clock::now).context("kafka.decisions_topic")?;
        let publisher = topic::Publisher { store: open()?, producer, endpoint: endpoint.clone(), metrics: metrics.clone() };
        runtime.spawn(publisher.run(dispatcher.waker()));
    }
    let court = Court {
        clock: clock::machine(),
        fleet: recovered.fleet,
        operations_seq: recovered.operations_seq,
        anew: recovered.anew,
        store,
        opening: (!changes.is_empty()).then(|| (opening, reload::texts(&loaded.used))),
        sources: loaded.sources.clone(),
        rules: loaded.rules.iter().map(|r| (r.plan.experiment.clone(), Arc::clone(r))).collect(),
        router: router.clone(),
        waker: dispatcher.waker(),
        live: live.clone(),
        metrics: metrics.clone(),
        checkpoint_every: config.checkpoint.every,
        lateness: config.engine.settings.lateness,
        workers: kafka.workers,
        endpoints: config.endpoints.keys().cloned().chain(published).collect(),
    };
    late.set(backend::StoreBackend::new(open()?, dispatcher.waker(), readable, router.clone()));
    live.set(View::default());
    let signal = stop.clone();
    let judging = std::thread::Builder::new().name("judge".into()).spawn(move || court.run(ingest, inbox, orders, &signal))?;
    // The judging thread feeds it from here on.
    drop(fed);
    Ok(App { live, http: address, metrics, runtime, dispatcher, close_http, served, stop, reloads, judging, hangups, _turn: turn })
}

/// Tells the service manager once a second that this process is at work, until the sender is dropped: to restore a large state may take longer
/// than its watchdog waits, and than it waits for a start.
fn feed_watchdog() -> std::io::Result<crossbeam_channel::Sender<()>> {
    let (fed, ended) = crossbeam_channel::bounded::<()>(0);
    let feed = move || {
        let begun = Instant::now();
        while begun.elapsed() < RESTORING && ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            let more = sd_notify::NotifyState::ExtendTimeoutUsec(30_000_000);
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog, more]);
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(feed)?;
    Ok(fed)
}

/// What is shown before this daemon is the active one.
fn not_yet(why: String) -> View {
    let check = Check { name: "turn", ok: false, detail: why.clone() };
    View { at: clock::now(), checks: vec![check], unavailable: Some(why), ..View::default() }
}

/// Becomes the active daemon of the state directory: at once or, as a standby, when the one before has gone.
fn take_turn(config: &Config, address: SocketAddr, live: &Live, metrics: &Metrics) -> anyhow::Result<Turn> {
    let (dir, me) = (&config.state_dir, Holder { pid: std::process::id(), url: config.http.base_url.clone() });
    metrics.set(&names::STANDBY, &[], 0.0);
    let holder = match turn::take(dir, &me)? {
        Ok(turn) => return Ok(turn),
        Err(holder) => holder.map(|h| format!(" (process {} at {})", h.pid, h.url)).unwrap_or_default(),
    };
    if !config.standby {
        let dir = dir.display();
        anyhow::bail!("another guardraild uses {dir}{holder}; give each its own state_dir, or let this one wait with `standby: true`");
    }
    metrics.set(&names::STANDBY, &[], 1.0);
    tracing::info!(%address, "standing by");
    let turn = turn::wait(dir, &me, |holder| {
        let of = holder.map(|h| format!(": the active daemon is process {} at {}", h.pid, h.url)).unwrap_or_default();
        live.set(not_yet(format!("standing by{of}")));
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Watchdog]);
    })?;
    metrics.set(&names::STANDBY, &[], 0.0);
    live.set(not_yet("taking over".to_owned()));
    tracing::info!("taking over as the active daemon");
    Ok(turn)
}

/// Keeps the daemon before this one from writing, for good. If it was stopped in the middle of a write, that has to end first.
fn fence(store: &mut Store) -> anyhow::Result<i64> {
    loop {
        match store.fence() {
            Err(error) if error.is_locked() => tracing::error!("{error}. Was a daemon stopped while it wrote? Kill it (kill -9)"),
            epoch => return Ok(epoch?),
        }
    }
}

impl App {
    /// Drains: no further record is read, what has been read is judged and saved, and deliveries in flight may end.
    pub fn shutdown(self) {
        self.stop.request();
        if self.judging.join().is_err() {
            tracing::error!("the judging thread panicked; the next start goes on from the last checkpoint");
        }
        let _ = self.close_http.send(());
        self.runtime.block_on(async {
            self.dispatcher.stop(GRACE).await;
            let _ = self.served.await;
        });
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

/// Starts the daemon of the demo from a configuration file.
pub fn start_for_demo(path: &Path) -> anyhow::Result<Daemon> {
    // Settings of a real daemon in the environment are none of the demo's business.
    let config = Config::load_with(Some(path), &[], &BTreeMap::new())?;
    let app = start(config, Metrics::default(), None)?;
    Ok(Daemon { live: app.live.clone(), http: app.http, stop: Box::new(move || app.shutdown()) })
}

/// Opens a file, and makes one that only its owner may read where there is none. SQLite gives its other files the same permissions.
fn private(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    file.with_context(|| format!("{} cannot be made: is state_dir writable?", path.display()))
}

/// Where the rules are, before it is known which topics are read.
fn place(config: &Config) -> Place {
    Place { paths: config.rules.clone(), endpoints: config.endpoints.keys().cloned().collect(), topics: None, registry: false }
}

/// Without a single rule there is nothing to guard.
fn nothing_to_do(config: &Config, refused: usize) -> BadConfig {
    let paths: Vec<String> = config.rules.iter().map(|p| p.display().to_string()).collect();
    BadConfig(format!("no usable rule file in {} ({refused} refused): see `guardraild check`", paths.join(", ")))
}

fn start_dispatcher(runtime: &Runtime, store: Store, config: &Config, metrics: &Metrics) -> anyhow::Result<Dispatcher> {
    let endpoints =
        config.endpoints.iter().map(|(name, endpoint)| delivery::Endpoint::configured(name, endpoint, &config.delivery)).collect();
    let metrics = metrics.clone();
    for name in config.endpoints.keys() {
        metrics.begin(&names::DELIVERY_ATTEMPTS, &[&[name], &DeliveryResult::ALL.map(DeliveryResult::name)]);
        metrics.begin(&names::DELIVERY_SECONDS, &[&[name]]);
    }
    let observe = move |event: &DeliveryEvent| {
        metrics.add(&names::DELIVERY_ATTEMPTS, &[&event.endpoint, event.result.name()], 1.0);
        let trace = event.trace_id.as_deref();
        metrics.observe_traced(&names::DELIVERY_SECONDS, &[&event.endpoint], event.duration_ms as f64 / 1_000.0, trace);
        if let Some(delay) = event.first_attempt_delay_ms {
            metrics.observe_traced(&names::DECISION_DELAY, &[], delay as f64 / 1_000.0, trace);
        }
    };
    let _guard = runtime.enter();
    let others = config.kafka.decisions_topic.as_deref().map(delivery::topic_endpoint).into_iter().collect();
    Ok(Dispatcher::start_beside(store, endpoints, others, Arc::new(clock::moment), Arc::new(observe))?)
}

/// How topics of foreign layouts are read. The registry is asked for schemas as records come.
///
/// # Errors
/// Where there is no thread or no TLS to be had.
pub fn layouts(kafka: &config::Kafka, sources: Sources, metrics: &Metrics) -> anyhow::Result<Layouts> {
    let needs = sources.iter().find(|source| source.format.has_schema());
    let schemas = match (&kafka.schema_registry, needs) {
        (_, None) => None,
        (None, Some(source)) => {
            tracing::error!(source = source.name, "its records have a schema, and kafka.schema_registry is not set: they are refused");
            None
        }
        (Some(settings), Some(_)) => Some(Schemas::start(Registry::new(registry_config(settings))?, metrics.clone())?),
    };
    Ok(Layouts { sources, schemas })
}

/// Where the schema registry is, and who asks.
pub fn registry_config(settings: &config::SchemaRegistry) -> RegistryConfig {
    let basic = settings.basic.clone().map(|(user, password)| Login::Basic { user, password });
    let login = basic.or(settings.token.clone().map(Login::Bearer));
    RegistryConfig { url: settings.url.clone(), login, timeout: settings.timeout }
}

/// What ingest needs to know of the `kafka` section, and which topics sources add.
pub fn kafka_config(kafka: &config::Kafka, sources: &Sources) -> KafkaConfig {
    let plain = |property: &Property| match property {
        Property::Plain(text) => text.clone(),
        Property::Secret(secret) => secret.expose_secret().to_owned(),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    KafkaConfig {
        brokers: kafka.brokers.join(","),
        group: kafka.group.clone(),
        topics: kafka.topics.all(sources.topics()).into_iter().map(str::to_owned).collect(),
        auto_offset_reset: match kafka.auto_offset_reset {
            OffsetReset::Earliest => AutoOffsetReset::Earliest,
            OffsetReset::Latest => AutoOffsetReset::Latest,
        },
        properties: kafka.properties.iter().map(|(name, value)| (name.clone(), plain(value))).collect(),
        workers: if kafka.workers == 0 { cores } else { kafka.workers },
        max_future: kafka.max_future,
        merge_wait: kafka.merge_wait,
        oauth: kafka.oauth.clone().map(|oauth| match oauth {
            OAuth::TokenFile(path) => OauthConfig::TokenFile(path),
            OAuth::ClientCredentials { token_url: url, client_id, client_secret, scope } => {
                OauthConfig::Endpoint { url, client_id, client_secret, scope }
            }
        }),
    }
}
