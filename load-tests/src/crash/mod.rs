//! `crash`: a daemon that is killed again and again, by SIGKILL and by power cuts, decides and delivers as one that never was.

mod daemon;
mod source;
mod verify;
pub mod volatile;

use crate::case::LoadCase;
use crate::rig::Rig;
use crate::table;
use anyhow::{Context, ensure};
use daemon::{Daemon, PATIENCE};
use guardraild::tools::receiver::{Delivery, Options, Receiver};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use source::Source;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use verify::{Found, Ledger};

const SECRET: &str = "whsec_bG9hZC10ZXN0cy1sb2FkLXRlc3RzLWxvYWQtdGVzdHM=";
/// Cycles on the same state and topics; then the next round begins anew.
const ROUND: u32 = 20;
/// How long a daemon lives at most, from its first record or from its start, ms; and one of the half that should die while they read a stage.
const LIFE_MS: u64 = 2_500;
const SHORT_MS: u64 = 300;

#[derive(clap::Args)]
pub struct Args {
    /// How often the daemon is killed, in rounds of 20
    #[arg(long, default_value_t = 20)]
    cycles: u32,
    /// Of the first round; each further one has the next. It draws the moments, and how each death comes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Topics of every round; otherwise one where the seed is odd, two where it is even
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    topics: Option<u8>,
    /// A cluster; otherwise an embedded broker for each round
    #[arg(long)]
    brokers: Option<String>,
    #[arg(long, default_value = "load-tests/cases/crash.yaml")]
    case: PathBuf,
    /// The program; by default `guardraild` beside this one
    #[arg(long)]
    daemon: Option<PathBuf>,
}

/// What a round came to.
#[derive(Default)]
struct Tally {
    kills: u32,
    cuts: u32,
    records: u64,
    found: Found,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let case = LoadCase::read(&args.case)?;
    let beside = std::env::current_exe()?.with_file_name("guardraild");
    let program = args.daemon.clone().unwrap_or(beside);
    ensure!(program.exists(), "no program at {}: build it (`cargo build --release`), or name it by --daemon", program.display());
    let (mut rows, mut faults) = (Vec::new(), 0);
    for round in 0..args.cycles.div_ceil(ROUND) {
        let (seed, cycles) = (args.seed + u64::from(round), ROUND.min(args.cycles - round * ROUND));
        let staged = args.topics.map_or(seed % 2 == 0, |topics| topics == 2);
        let again = again(seed, cycles, staged);
        let tally = play(args.brokers.as_deref(), &case, &program, (seed, cycles, staged)).with_context(|| again.clone())?;
        for fault in &tally.found.faults {
            eprintln!("seed {seed}: {fault}");
        }
        if !tally.found.faults.is_empty() {
            eprintln!("{again}");
        }
        faults += tally.found.faults.len();
        rows.push(row(seed, staged, &tally));
    }
    let head = ["seed", "topics", "kills", "power cuts", "records", "decisions", "deliveries", "requests", "repeated", "lost", "doubled"];
    let title = format!("{} cycles on {}", args.cycles, if args.brokers.is_some() { "Apache Kafka" } else { "the embedded broker" });
    table::print(&title, &head, &rows);
    ensure!(faults == 0, "{faults} faults");
    Ok(())
}

fn again(seed: u64, cycles: u32, staged: bool) -> String {
    format!("again: load-tests crash --cycles {cycles} --seed {seed} --topics {}", 1 + u8::from(staged))
}

fn row(seed: u64, staged: bool, tally: &Tally) -> Vec<String> {
    let Tally { kills, cuts, records, found } = tally;
    let Found { decisions, deliveries, requests, repeated, lost, doubled, .. } = found;
    let (kills, cuts) = (u64::from(*kills), u64::from(*cuts));
    [seed, 1 + u64::from(staged), kills, cuts, *records, *decisions, *deliveries, *requests, *repeated, *lost, *doubled]
        .map(|n| n.to_string())
        .to_vec()
}

/// One round: traffic runs, or comes in stages; the daemon dies `cycles` times, lives on, and is held against what it was told.
fn play(brokers: Option<&str>, case: &LoadCase, program: &Path, (seed, cycles, staged): (u64, u32, bool)) -> anyhow::Result<Tally> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rig = Rig::start(brokers, case.partitions)?;
    let begun = Instant::now();
    let mut source = if staged { Source::staged(&case.traffic, &rig)? } else { Source::live(&case.traffic, &rig)? };
    // Every third request is refused, so that retries are killed, too.
    let options = Options { secrets: vec![SECRET.to_owned()], refuse: |n| n % 3 == 0, on_stop: source.on_stop() };
    let receiver = Receiver::start(options)?;
    let dir = tempfile::tempdir()?;
    let mut site = Site { rig: &rig, case, dir: dir.path(), url: receiver.url(), program };
    let mut ledger = Ledger::default();
    let mut tally = Tally::default();
    for cycle in 1..=cycles {
        let cut = rng.next_u32() % 2 == 0;
        let early = rng.next_u32() % 3 == 0;
        let most = if staged && rng.next_u32() % 2 == 0 { SHORT_MS } else { LIFE_MS };
        let life = Duration::from_millis(rng.next_u64() % most);
        source.stage(stage(case, cycle, cycles))?;
        let daemon = site.start(cut.then(|| rng.next_u64()))?;
        if !early {
            reads(&daemon)?;
        }
        std::thread::sleep(life);
        daemon.kill()?;
        *(if cut { &mut tally.cuts } else { &mut tally.kills }) += 1;
        ledger.hear(receiver.inbox().try_iter());
        ledger.look_at_the_dead(&site.state(), &mut tally.found)?;
        let how = if cut { "power cut" } else { "killed" };
        eprintln!("seed {seed}, cycle {cycle} of {cycles}: {how} after {} records, {} requests", source.records(), ledger.requests());
    }
    // The last one has time for everything, and a quiet end.
    while !staged && begun.elapsed() < Duration::from_secs(case.seconds) {
        std::thread::sleep(Duration::from_millis(50));
    }
    source.stage(stage(case, cycles + 1, cycles))?;
    let mut daemon = site.start(None)?;
    reads(&daemon)?;
    std::thread::sleep(Duration::from_secs(5));
    let sent = source.finish()?;
    ensure!(rig.kept()? == sent, "the broker dropped some of {sent} records: use more partitions, or a real cluster");
    daemon.until(sent)?;
    site.settle(&mut ledger, &receiver)?;
    daemon.terminate()?;
    ledger.hear(receiver.inbox().try_iter());
    tally.records = sent;
    verify::against_a_backtest(program, &site.config(), &site.rules(), &rig.servers, &site.state(), &mut tally.found)?;
    ledger.against_the_outbox(&site.state(), &mut tally.found)?;
    Ok(tally)
}

/// Event time since the beginning up to which records are there for a cycle, ms.
fn stage(case: &LoadCase, cycle: u32, cycles: u32) -> i64 {
    1_000 * case.seconds as i64 * i64::from(cycle) / i64::from(cycles + 1)
}

/// Waits until it has taken up reading.
fn reads(daemon: &Daemon) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while daemon.records().is_none_or(|n| n == 0) {
        ensure!(Instant::now() < deadline, "it does not read");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The files of a round.
struct Site<'a> {
    rig: &'a Rig,
    case: &'a LoadCase,
    dir: &'a Path,
    url: String,
    program: &'a Path,
}

impl Site<'_> {
    /// A daemon in a group of its own, so that it need not wait until the broker has given up a member that was killed.
    fn start(&mut self, cut: Option<u64>) -> anyhow::Result<Daemon> {
        self.rig.files(self.dir, self.case, (&self.url, SECRET))?;
        match cut {
            Some(seed) => Daemon::start_volatile(&self.config(), seed),
            None => Daemon::start(self.program, &self.config()),
        }
    }

    fn config(&self) -> PathBuf {
        self.dir.join("guardraild.yaml")
    }

    fn rules(&self) -> PathBuf {
        self.dir.join("rules")
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Waits until nothing is left to deliver.
    fn settle(&self, ledger: &mut Ledger, receiver: &Receiver) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while verify::pending(&self.state())? > 0 {
            ensure!(Instant::now() < deadline, "deliveries are still pending");
            ledger.hear(receiver.inbox().try_iter());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// A request, as far as the books need it.
fn heard(delivery: &Delivery) -> Option<(String, bool)> {
    delivery.verified.then(|| (delivery.id.clone(), delivery.status == 200))
}
