//! The first minute: a broker, a service's traffic, a flag service and the daemon, all in one process; a fault, and what comes of it.

mod files;
mod screen;
mod story;

use crate::clock;
use crate::live::{Live, View};
use crate::tools::broker::{Broker, Feed, FeedError, Writer};
use crate::tools::receiver::{Options as ReceiverOptions, Receiver, StartError};
use crate::tools::traffic::{Case, Effect, Fault, Traffic};
use base64::Engine;
use files::Files;
use screen::Screen;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use story::{BUCKET, EXPERIMENT, Story};

#[derive(Clone, Debug)]
pub struct Options {
    /// The longest that the demo runs. Without it: 48 s, or on a terminal until Ctrl-C.
    pub limit: Option<Duration>,
    /// No terminal, and the whole story or failure.
    pub ci: bool,
    /// Of the traffic.
    pub seed: u64,
    /// Where the daemon's API listens; port 0 takes a free one.
    pub http: SocketAddr,
    /// Where the files go; without it, a temporary directory.
    pub dir: Option<PathBuf>,
}

/// The daemon as the demo sees it.
pub struct Daemon {
    pub live: Live,
    /// Where its API listens.
    pub http: SocketAddr,
    /// Drains and stops it.
    pub stop: Box<dyn FnOnce()>,
}

/// How it ended.
#[derive(Debug)]
pub struct Report {
    /// What was not observed; empty when the whole story was.
    pub missing: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("the embedded broker failed: {0}")]
    Broker(#[from] rdkafka::error::KafkaError),
    #[error("the traffic ended: {0}")]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Receiver(#[from] StartError),
    #[error("the demo's files could not be written: {0}")]
    Files(#[from] std::io::Error),
    #[error("the daemon did not start: {0:#}")]
    Daemon(anyhow::Error),
}

/// Traffic is healthy for this long before the fault.
const HEALTHY: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(48);
/// Wait for the last records to be counted: longer than the daemon waits for a partition that has fallen silent (5 s).
const SETTLE: Duration = Duration::from_secs(9);
const TICK: Duration = Duration::from_millis(50);
const PARTITIONS: i32 = 4;
/// Everyone comes back every ten seconds.
const USERS: u64 = 4_000;
const USERS_PER_S: f64 = 400.0;
const SLOWER: f64 = 1.5;

/// Runs the whole of it. `start` starts the daemon from a configuration file.
pub fn run(options: &Options, start: impl FnOnce(&Path) -> anyhow::Result<Daemon>) -> Result<Report, DemoError> {
    let interrupted = on_interrupt();
    let screen = Screen::new(options.ci);
    let broker = Broker::start(PARTITIONS)?;
    let feed = Feed::start(traffic(options.seed)?, Writer::new(&broker.servers(), "", &[])?)?;
    let secret = format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 24]>()));
    let switch = feed.switch();
    let on_stop = Box::new(move |experiment: &str, bucket: &str| switch.stop(experiment, bucket));
    let receiver = Receiver::start(ReceiverOptions { secrets: vec![secret.clone()], refuse: |n| n == 0, on_stop })?;
    let files = Files::create(options.dir.as_deref())?;
    files.write(&broker.servers(), &receiver.url(), &secret, options.http)?;
    let daemon = start(&files.config()).map_err(DemoError::Daemon)?;
    introduce(&screen, &broker, &receiver, &files, daemon.http);

    let mut stage = Stage { screen: &screen, feed: &feed, receiver: &receiver, live: &daemon.live, story: Story::default() };
    let lingers = !options.ci && options.limit.is_none() && screen::is_terminal();
    stage.play(options.limit.unwrap_or(LIMIT), lingers, &interrupted);
    let mut story = stage.story;
    if lingers && story.is_complete() {
        sum_up(&screen, &story, &daemon.live.get(), &files);
        screen.say("Ctrl-C ends the demo.");
        while !interrupted.load(Ordering::Relaxed) && !feed.is_over() {
            screen.glance(|| story::glance(&daemon.live.get()));
            std::thread::sleep(TICK);
        }
        (daemon.stop)();
        return Ok(Report { missing: Vec::new() });
    }
    let sent = feed.finish()?;
    let settled = Instant::now() + SETTLE;
    while daemon.live.get().counts.records() < sent.records && Instant::now() < settled && !interrupted.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
    }
    story.see_sent(&sent, clock::now());
    story.see_view(&daemon.live.get());
    sum_up(&screen, &story, &daemon.live.get(), &files);
    (daemon.stop)();
    Ok(Report { missing: story.missing() })
}

/// Everything that the story is read from.
struct Stage<'a> {
    screen: &'a Screen,
    feed: &'a Feed,
    receiver: &'a Receiver,
    live: &'a Live,
    story: Story,
}

impl Stage<'_> {
    /// Until the story is complete, the time is over (unless the demo lingers), or someone interrupts.
    fn play(&mut self, limit: Duration, lingers: bool, interrupted: &AtomicBool) {
        let started = Instant::now();
        let mut healthy_since = None;
        while !self.story.is_complete() && !interrupted.load(Ordering::Relaxed) && !self.feed.is_over() {
            if !lingers && started.elapsed() >= limit {
                return;
            }
            self.observe();
            if self.story.healthy && self.story.fault_at.is_none() {
                let since = *healthy_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= HEALTHY {
                    self.strike();
                }
            }
            std::thread::sleep(TICK);
        }
    }

    fn observe(&mut self) {
        for delivery in self.receiver.inbox().try_iter() {
            self.story.see_delivery(&delivery).iter().for_each(|line| self.screen.tell(line));
        }
        let view = self.live.get();
        self.story.judge_health(&view).iter().for_each(|line| self.screen.tell(line));
        self.story.see_view(&view).iter().for_each(|line| self.screen.tell(line));
        self.story.see_sent(&self.feed.sent(), clock::now()).iter().for_each(|line| self.screen.tell(line));
        self.screen.glance(|| story::glance(&view));
    }

    fn strike(&mut self) {
        let effect = Effect { latency: SLOWER, ..Effect::default() };
        let fault = Fault {
            at_s: 0.0,
            until_s: None,
            experiment: EXPERIMENT.to_owned(),
            stagger_s: 0.0,
            bucket: BUCKET.to_owned(),
            segment: None,
            effect,
        };
        self.feed.inject(fault);
        self.story.fault(clock::now(), (SLOWER - 1.0) * 100.0).iter().for_each(|line| self.screen.tell(line));
    }
}

fn traffic(seed: u64) -> Result<Traffic, FeedError> {
    let case = Case { seed, visits_per_s: USERS_PER_S, requests_per_visit: 2, users: USERS, ids: true, ..Case::default() };
    Ok(Traffic::new(case, clock::now())?)
}

fn introduce(screen: &Screen, broker: &Broker, receiver: &Receiver, files: &Files, http: SocketAddr) {
    screen.say(&format!("guardraild {} demo: everything runs here, nothing leaves this machine", env!("CARGO_PKG_VERSION")));
    screen.say("");
    screen.say(&format!("  broker     {}  in this process", broker.servers()));
    screen.say(&format!("  daemon     http://{http}/api/v1/experiments/{EXPERIMENT}"));
    screen.say(&format!("  receiver   {}  plays your flag service", receiver.url()));
    screen.say(&format!("  rule       {}", files.rule().display()));
    screen.say("");
    screen.tell(&story::Line { word: "traffic", text: format!("{USERS_PER_S} users/s, control and {BUCKET}") });
}

fn sum_up(screen: &Screen, story: &Story, view: &View, files: &Files) {
    screen.say("");
    story.summary(view).iter().for_each(|line| screen.say(line));
    screen.say("");
    if let Some(decision) = story.decision() {
        screen.say(&format!("  decision   {decision}"));
    }
    if files.are_temporary() {
        screen.say("  files      guardraild demo --dir DIR keeps the rule, the configuration and the database");
    } else {
        screen.say(&format!(
            "  again      guardraild run --config {}, once `kafka.brokers` names a cluster of yours",
            files.config().display()
        ));
    }
    screen.say("  your data  guardraild check FILE, then guardraild run --config FILE");
}

/// Set once the user presses Ctrl-C.
fn on_interrupt() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    // Where no signal can be waited for, Ctrl-C ends the process at once, as it does by default.
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        std::thread::spawn(move || {
            if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
                set.store(true, Ordering::Relaxed);
            }
        });
    }
    flag
}
