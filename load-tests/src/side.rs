//! One side of a comparison, in a process of its own, so that its CPU and memory are its own.

use crate::{assignments, backtest, crash, rig, usage};
use anyhow::{Context, ensure};
use guardraild::ingest::kafka::{AutoOffsetReset, KafkaConfig, client_config};
use guardraild::tools::demo::Daemon;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    side: Side,
}

#[derive(clap::Subcommand)]
enum Side {
    /// A bare poll loop that touches every payload
    Poll {
        #[arg(long)]
        brokers: String,
        #[arg(long, value_delimiter = ',')]
        topics: Vec<String>,
        #[arg(long)]
        records: u64,
    },
    /// The whole daemon, until it has counted so many records; without a number, until standard input closes
    Daemon {
        #[arg(long)]
        config: PathBuf,
        #[arg(long)]
        records: Option<u64>,
        /// Its disk forgets what was not synced when the process dies: the seed of what survives all the same
        #[arg(long, value_name = "SEED")]
        volatile: Option<u64>,
    },
    /// Aggregators and checkpoints alone
    Assignments(assignments::SideArgs),
    /// A file through the engine, or without rules a bare scan
    Replay(backtest::SideArgs),
}

/// What a side used from the moment it was ready to read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Used {
    pub records: u64,
    /// Of them, those that the daemon counted for an experiment.
    pub accepted: u64,
    pub cpu_s: f64,
    pub wall_s: f64,
    /// Bytes: the largest so far, at the start of reading, and at its end.
    pub peak: u64,
    pub before: u64,
    pub after: u64,
}

/// Without progress for this long, a side gives up.
const STALLED: Duration = Duration::from_secs(60);

pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.side {
        Side::Poll { brokers, topics, records } => poll(brokers, topics, *records),
        Side::Daemon { config, records, volatile } => {
            volatile.iter().for_each(|seed| crash::volatile::install(*seed));
            daemon(config, *records)
        }
        Side::Assignments(args) => assignments::measured(args),
        Side::Replay(args) => backtest::measured(args),
    }
}

/// The daemon's own settings of librdkafka, so that only the work differs.
fn poll(brokers: &str, topics: &[String], records: u64) -> anyhow::Result<()> {
    let config = KafkaConfig {
        brokers: brokers.to_owned(),
        group: rig::group(),
        topics: topics.to_vec(),
        auto_offset_reset: AutoOffsetReset::Earliest,
        properties: BTreeMap::new(),
        workers: 1,
        max_future: 0,
        merge_wait: 0,
        oauth: None,
    };
    let consumer: BaseConsumer = client_config(&config)?.create()?;
    consumer.subscribe(&topics.iter().map(String::as_str).collect::<Vec<_>>())?;
    let meter = Meter::start();
    let (mut read, mut touched, mut last) = (0, 0_u64, Instant::now());
    while read < records {
        match consumer.poll(Duration::from_millis(100)) {
            None => ensure!(last.elapsed() < STALLED, "only {read} of {records} records came"),
            Some(message) => {
                let message = message?;
                let payload = message.payload().unwrap_or_default();
                touched = payload.iter().step_by(64).fold(touched, |sum, byte| sum.wrapping_add(u64::from(*byte)));
                read += 1;
                if read % 1_024 == 0 {
                    last = Instant::now();
                }
            }
        }
    }
    std::hint::black_box(touched);
    meter.report(read, 0)
}

fn daemon(config: &Path, records: Option<u64>) -> anyhow::Result<()> {
    let daemon: Daemon = guardraild::app::start_for_demo(config)?;
    let Some(records) = records else {
        println!("{}", daemon.http);
        std::io::stdin().read_to_end(&mut Vec::new())?;
        (daemon.stop)();
        return Ok(());
    };
    let meter = Meter::start();
    let (mut read, mut last) = (0, Instant::now());
    while read < records {
        std::thread::sleep(Duration::from_millis(10));
        let now = daemon.live.get().counts.records();
        if now > read {
            last = Instant::now();
        }
        read = now;
        ensure!(last.elapsed() < STALLED, "only {read} of {records} records were counted");
    }
    meter.report(read, daemon.live.get().counts.accepted)?;
    (daemon.stop)();
    Ok(())
}

pub struct Meter {
    cpu: Duration,
    wall: Instant,
    before: u64,
}

impl Meter {
    pub fn start() -> Meter {
        Meter { cpu: usage::cpu(), wall: Instant::now(), before: usage::memory() }
    }

    pub fn report(&self, records: u64, accepted: u64) -> anyhow::Result<()> {
        let used = Used {
            records,
            accepted,
            cpu_s: (usage::cpu() - self.cpu).as_secs_f64(),
            wall_s: self.wall.elapsed().as_secs_f64(),
            peak: usage::peak_memory(),
            before: self.before,
            after: usage::memory(),
        };
        println!("{}", serde_json::to_string(&used)?);
        Ok(())
    }
}

/// Runs a side and returns what it reported.
pub fn measure<T: DeserializeOwned>(args: &[&str]) -> anyhow::Result<T> {
    let output = command(args)?.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the side {args:?} failed: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find(|line| line.starts_with('{')).with_context(|| format!("the side {args:?} reported nothing"))?;
    Ok(serde_json::from_str(line)?)
}

/// A daemon that runs until it is dropped.
pub struct Running {
    child: Child,
    /// Where its API listens.
    pub http: String,
}

pub fn start_daemon(config: &Path) -> anyhow::Result<Running> {
    let mut child = command(&["daemon", "--config", &config.to_string_lossy()])?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut http = String::new();
    BufReader::new(child.stdout.take().context("the daemon has no output")?).read_line(&mut http)?;
    ensure!(!http.is_empty(), "the daemon did not start");
    Ok(Running { child, http: http.trim().to_owned() })
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn command(args: &[&str]) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("side").args(args);
    Ok(command)
}
