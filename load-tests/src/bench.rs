//! `bench` and `units`: the whole daemon beside a bare poll loop, and its memory per user.

use crate::case::LoadCase;
use crate::rig::Rig;
use crate::side::{self, Used};
use crate::table::{self, median, mib};
use std::path::{Path, PathBuf};

/// Where webhooks would go: nothing listens there, and the cases of `bench` and `units` only observe.
const NO_SINK: (&str, &str) = ("http://127.0.0.1:9/hook", "whsec_bG9hZC10ZXN0cy1sb2FkLXRlc3RzLWxvYWQtdGVzdHM=");

#[derive(clap::Args)]
pub struct Args {
    /// Load case; with several, each further one is compared with the first
    #[arg(long, required = true)]
    case: Vec<PathBuf>,
    /// A running cluster; without it an embedded broker is served by another process
    #[arg(long)]
    brokers: Option<String>,
    /// Numbers of experiments, instead of the case's
    #[arg(long, value_delimiter = ',')]
    experiments: Vec<u32>,
    /// Records, instead of the case's
    #[arg(long)]
    records: Option<u64>,
    /// Runs of each side, instead of the case's
    #[arg(long)]
    repeats: Option<usize>,
    /// Also runs the daemon without checkpoints, in turn with the others: give it records for a minute, since one is made every 10 s or less often
    #[arg(long)]
    checkpoints: bool,
}

/// Medians of one side.
struct Side {
    cpu: f64,
    rate: f64,
    peak: f64,
    /// Share of the records.
    accepted: f64,
}

impl Side {
    fn of(runs: &[Used]) -> Side {
        let over = |f: fn(&Used) -> f64| median(&runs.iter().map(f).collect::<Vec<_>>());
        Side {
            cpu: over(|u| u.cpu_s * 1e6 / u.records as f64),
            rate: over(|u| u.records as f64 / u.wall_s),
            peak: over(|u| u.peak as f64),
            accepted: over(|u| u.accepted as f64 / u.records as f64),
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let cost = args.case.iter().map(|path| bench(path, args)).collect::<anyhow::Result<Vec<_>>>()?;
    for (path, own) in args.case.iter().zip(&cost).skip(1) {
        let against = |(count, cpu): &(u32, f64)| {
            let first = cost[0].iter().find(|(other, _)| other == count)?;
            Some(format!("{:.0}% with {count}", 100.0 * first.1 / cpu))
        };
        let shares: Vec<String> = own.iter().filter_map(against).collect();
        let name = |path: &PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        println!("\nThroughput of {} for the CPU of {}, by experiments: {}", name(path), name(&args.case[0]), shares.join(", "));
    }
    Ok(())
}

/// One case; the daemon's CPU seconds per million records, by number of experiments.
fn bench(path: &Path, args: &Args) -> anyhow::Result<Vec<(u32, f64)>> {
    let mut case = LoadCase::read(path)?;
    case.records = args.records.unwrap_or(case.records);
    case.repeats = args.repeats.unwrap_or(case.repeats).max(1);
    let counts = if args.experiments.is_empty() { case.experiments.clone() } else { args.experiments.clone() };
    let counts = if counts.is_empty() { vec![1] } else { counts };
    let (mut rows, mut daemon_cpu) = (Vec::new(), Vec::new());
    for &count in &counts {
        let Compared { poll, daemon, without } = compare(&case.with_experiments(count), args)?;
        let mut row = vec![
            count.to_string(),
            format!("{:.3}", poll.cpu),
            format!("{:.3}", daemon.cpu),
            format!("{:.2}", daemon.cpu / poll.cpu),
            format!("{:.0} k/s", poll.rate / 1e3),
            format!("{:.0} k/s", daemon.rate / 1e3),
            mib(poll.peak),
            mib(daemon.peak),
            format!("{:.1}%", daemon.accepted * 100.0),
        ];
        row.extend(without.map(|without| format!("{:.1}%", 100.0 * (1.0 - without.cpu / daemon.cpu))));
        rows.push(row);
        daemon_cpu.push((count, daemon.cpu));
    }
    let cluster = if args.brokers.is_some() { "a cluster" } else { "the embedded broker" };
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let title = format!("{name}: {} records on {cluster}, medians of {} interleaved runs", case.records, case.repeats);
    let mut head =
        vec!["experiments", "poll CPU-s/M", "daemon CPU-s/M", "ratio", "poll rate", "daemon rate", "poll peak", "daemon peak", "accepted"];
    head.extend(args.checkpoints.then_some("of that checkpoints"));
    table::print(&title, &head, &rows);
    let cpu = || daemon_cpu.iter().map(|(_, cpu)| *cpu);
    if let (Some(least), Some(most)) = (cpu().reduce(f64::min), cpu().reduce(f64::max)) {
        println!("\nFlatness over experiments (dearest / cheapest daemon run): {:.2}", most / least);
    }
    Ok(daemon_cpu)
}

struct Compared {
    poll: Side,
    daemon: Side,
    /// Without checkpoints.
    without: Option<Side>,
}

/// All sides on the same topics, in turn, so that a drift of the machine meets each.
fn compare(case: &LoadCase, args: &Args) -> anyhow::Result<Compared> {
    let rig = Rig::start(args.brokers.as_deref(), case.partitions)?;
    rig.fill(case)?;
    let (records, topics) = (case.records.to_string(), rig.topics().join(","));
    // The longest interval there is: none falls due.
    let rare = LoadCase { checkpoint: [("every".to_owned(), "10m".into())].into(), ..case.clone() };
    let (mut polls, mut daemons, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..case.repeats {
        polls.push(side::measure(&["poll", "--brokers", &rig.servers, "--topics", &topics, "--records", &records])?);
        daemons.push(measure_daemon(&rig, case)?);
        if args.checkpoints {
            without.push(measure_daemon(&rig, &rare)?);
        }
    }
    Ok(Compared { poll: Side::of(&polls), daemon: Side::of(&daemons), without: args.checkpoints.then(|| Side::of(&without)) })
}

/// A fresh daemon with a store of its own.
fn measure_daemon(rig: &Rig, case: &LoadCase) -> anyhow::Result<Used> {
    let dir = tempfile::tempdir()?;
    let config = rig.files(dir.path(), case, NO_SINK)?;
    side::measure(&["daemon", "--config", &config.to_string_lossy(), "--records", &case.records.to_string()])
}

#[derive(clap::Args)]
pub struct UnitsArgs {
    /// Load case; its `records` should be about those of one visit of every user
    #[arg(long)]
    case: PathBuf,
    #[arg(long)]
    brokers: Option<String>,
    /// Users to compare with few
    #[arg(long, default_value_t = 1_000_000)]
    users: u64,
}

/// The same number of records of few users and of many: what the memory differs by belongs to the users.
pub fn units(args: &UnitsArgs) -> anyhow::Result<()> {
    const FEW: u64 = 1_000;
    let case = LoadCase::read(&args.case)?;
    let mut rows = Vec::new();
    let mut peaks = Vec::new();
    for users in [FEW, args.users] {
        let mut case = case.clone();
        case.traffic.users = users;
        let rig = Rig::start(args.brokers.as_deref(), case.partitions)?;
        rig.fill(&case)?;
        let used = measure_daemon(&rig, &case)?;
        let bytes = |n: u64| mib(n as f64);
        rows.push(vec![users.to_string(), used.records.to_string(), bytes(used.before), bytes(used.after), bytes(used.peak)]);
        peaks.push(used.peak as f64);
    }
    table::print("Memory by exposed users", &["users", "records", "at start", "at end", "peak"], &rows);
    if let [few, many] = peaks[..] {
        let each = (many - few) / (args.users.saturating_sub(FEW).max(1) as f64) / case.traffic.experiments_per_user as f64;
        println!("\nPeak memory per exposed unit and experiment: {each:.0} bytes");
    }
    Ok(())
}
