//! `pending`: what a start takes when the outbox is full, and how long a kill waits behind what only informs.

use crate::case::LoadCase;
use crate::rig::Rig;
use crate::table::{self, mib};
use crate::{side, usage};
use anyhow::{Context, ensure};
use guardraild::clock;
use guardraild::delivery::sample;
use guardraild::store::{Commit, NewDelivery, Priority, Store};
use guardraild::tools::receiver::{Options, Receiver};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SECRET: &str = "whsec_bG9hZC10ZXN0cy1sb2FkLXRlc3RzLWxvYWQtdGVzdHM=";
/// Decisions in one transaction.
const TOGETHER: u32 = 1_000;
/// Without a request for this long, something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a delivery that waits may add to the memory of a daemon that has just started, bytes; and what the allocator may keep either way.
const EACH: f64 = 2_048.0;
const SLACK: f64 = 16e6;

#[derive(clap::Args)]
pub struct Args {
    /// Alerts that wait in the outbox, and behind them one kill: a row each
    #[arg(long, value_delimiter = ',', default_value = "0,1000,10000")]
    deliveries: Vec<u32>,
    /// Load case whose experiments the daemon has
    #[arg(long, default_value = "load-tests/cases/crash.yaml")]
    case: PathBuf,
}

/// Seconds of CPU, and bytes.
struct Measured {
    start_cpu: f64,
    memory: f64,
    /// Alerts received before the kill.
    before: usize,
    all_cpu: f64,
    peak: f64,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let case = LoadCase::read(&args.case)?;
    let (mut rows, mut measured) = (Vec::new(), Vec::new());
    for &n in &args.deliveries {
        let m = measure(&case, n)?;
        rows.push(vec![
            n.to_string(),
            format!("{:.2} s", m.start_cpu),
            mib(m.memory),
            m.before.to_string(),
            format!("{:.2} s", m.all_cpu),
            mib(m.peak),
        ]);
        measured.push((f64::from(n), m));
    }
    let head =
        ["alerts pending", "CPU until it listens", "memory then", "alerts before the kill", "CPU until all are received", "peak memory"];
    table::print("A start with deliveries pending", &head, &rows);
    println!();
    let (Some((_, least)), Some((n, most))) = (measured.first(), measured.last()) else { return Ok(()) };
    let allowed = n * EACH + SLACK;
    ensure!(most.peak - least.peak <= allowed, "{} more than without, where {} are allowed", mib(most.peak - least.peak), mib(allowed));
    ensure!(measured.iter().all(|(_, m)| m.before < 100), "the kill waited for alerts");
    println!("held: at most {} more than without, where {} are allowed", mib(most.peak - least.peak), mib(allowed));
    Ok(())
}

fn measure(case: &LoadCase, n: u32) -> anyhow::Result<Measured> {
    let rig = Rig::start(None, case.partitions)?;
    let dir = tempfile::tempdir()?;
    let receiver = Receiver::start(Options { secrets: vec![SECRET.to_owned()], refuse: |_| false, on_stop: Box::new(|_, _| {}) })?;
    let config = rig.files(dir.path(), case, (&receiver.url(), SECRET))?;
    let experiment = case.rules().swap_remove(0).0;
    fill(&dir.path().join("state"), &experiment, n)?;
    let daemon = side::start_daemon(&config)?;
    let pid = daemon.pid();
    let (start_cpu, memory) = (usage::cpu_of(pid).as_secs_f64(), usage::memory_of(pid) as f64);
    let mut kinds = Vec::new();
    while kinds.len() <= n as usize {
        let request = receiver.inbox().recv_timeout(PATIENCE).with_context(|| format!("{} of {} requests came", kinds.len(), n + 1))?;
        ensure!(request.verified && !request.repeated, "{} came twice or is not signed", request.id);
        kinds.push(request.kind);
    }
    let before = kinds.iter().position(|kind| kind == "guardrail.kill").context("no kill came")?;
    Ok(Measured { start_cpu, memory, before, all_cpu: usage::cpu_of(pid).as_secs_f64(), peak: usage::peak_memory_of(pid) as f64 })
}

/// An outbox as a daemon leaves it that could not reach its endpoint.
fn fill(state: &Path, experiment: &str, n: u32) -> anyhow::Result<()> {
    std::fs::create_dir(state)?;
    let mut store = Store::open(state.join("guardraild.db"))?;
    let at = clock::moment();
    let row = |i: u32| {
        let (event_type, priority) = if i == n { ("guardrail.kill", Priority::Kill) } else { ("guardrail.alert", Priority::Inform) };
        let (mut decision, payload) = sample("sink", event_type, at.wall);
        (decision.decision, decision.experiment) = (format!("d-{i}"), experiment.to_owned());
        let delivery = NewDelivery {
            id: format!("d-{i}-x"),
            endpoint: "sink".to_owned(),
            event_type,
            priority,
            payload,
            escalate_to: None,
            traceparent: None,
        };
        (decision, vec![delivery])
    };
    let all: Vec<u32> = (0..=n).collect();
    for part in all.chunks(TOGETHER as usize) {
        store.commit(&Commit { at: at.steady, decisions: part.iter().map(|i| row(*i)).collect(), ..Commit::default() })?;
    }
    Ok(())
}
