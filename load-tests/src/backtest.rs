//! `backtest`: a recording in a file through the engine, beside a bare scan of the same file.

use crate::case::LoadCase;
use crate::generate;
use crate::side::{self, Meter, Used};
use crate::table::{self, median, mib};
use anyhow::ensure;
use guardraild::engine::plan::Settings;
use guardraild::ingest::decode::Limits;
use guardraild::ingest::file::Recording;
use guardraild::tools::backtest::{self, Side, Terms};
use serde::de::IgnoredAny;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

#[derive(clap::Args)]
pub struct Args {
    /// Load case
    #[arg(long)]
    case: PathBuf,
    /// Numbers of experiments, instead of the case's
    #[arg(long, value_delimiter = ',')]
    experiments: Vec<u32>,
    /// Records, instead of the case's
    #[arg(long)]
    records: Option<u64>,
    /// Runs of each side, instead of the case's
    #[arg(long)]
    repeats: Option<usize>,
    /// Rule sets side by side (copies of the case's rules)
    #[arg(long, default_value_t = 1)]
    rule_sets: usize,
}

/// As a side: through the engine, or without rules a scan.
#[derive(clap::Args)]
pub struct SideArgs {
    #[arg(long)]
    events: PathBuf,
    #[arg(long)]
    rules: Option<PathBuf>,
    #[arg(long, default_value_t = 1)]
    rule_sets: usize,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut case = LoadCase::read(&args.case)?;
    case.records = args.records.unwrap_or(case.records);
    let repeats = args.repeats.unwrap_or(case.repeats).max(1);
    let counts = if args.experiments.is_empty() { case.experiments.clone() } else { args.experiments.clone() };
    let mut rows = Vec::new();
    for count in counts {
        let dir = tempfile::tempdir()?;
        let (events, rules) = (dir.path().join("events.ndjson"), dir.path().join("rules"));
        generate::files(&case.with_experiments(count), &events, &rules)?;
        let (events, rules, sets) = (events.to_string_lossy(), rules.to_string_lossy(), args.rule_sets.to_string());
        let (mut scans, mut runs) = (Vec::new(), Vec::new());
        for _ in 0..repeats {
            scans.push(side::measure(&["replay", "--events", &events])?);
            runs.push(side::measure(&["replay", "--events", &events, "--rules", &rules, "--rule-sets", &sets])?);
        }
        rows.push(row(count, &scans, &runs));
    }
    let name = args.case.file_stem().unwrap_or_default().to_string_lossy();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let title = format!(
        "{name}: {} records from a file, {} rule sets, {cores} cores, medians of {repeats} interleaved runs",
        case.records, args.rule_sets
    );
    let head =
        ["experiments", "scan CPU-s/M", "backtest CPU-s/M", "ratio", "scan rate", "backtest rate", "rate for 2 CPU-s", "backtest peak"];
    table::print(&title, &head, &rows);
    Ok(())
}

fn row(count: u32, scans: &[Used], runs: &[Used]) -> Vec<String> {
    let over = |of: &[Used], f: fn(&Used) -> f64| median(&of.iter().map(f).collect::<Vec<_>>());
    let cpu = |u: &Used| u.cpu_s * 1e6 / u.records as f64;
    let rate = |u: &Used| u.records as f64 / u.wall_s;
    let (scan, run) = (over(scans, cpu), over(runs, cpu));
    vec![
        count.to_string(),
        format!("{scan:.3}"),
        format!("{run:.3}"),
        format!("{:.2}", run / scan),
        format!("{:.0} k/s", over(scans, rate) / 1e3),
        format!("{:.0} k/s", over(runs, rate) / 1e3),
        format!("{:.0} k/s", 2e3 / run),
        mib(over(runs, |u| u.peak as f64)),
    ]
}

pub fn measured(args: &SideArgs) -> anyhow::Result<()> {
    match &args.rules {
        Some(rules) => replay(&args.events, rules, args.rule_sets),
        None => scan(&args.events),
    }
}

/// Splits lines and looks whether each is JSON, on one thread.
fn scan(events: &Path) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 18, std::fs::File::open(events)?);
    let meter = Meter::start();
    let (mut line, mut read) = (Vec::new(), 0);
    while reader.read_until(b'\n', &mut line)? > 0 {
        serde_json::from_slice::<IgnoredAny>(&line)?;
        line.clear();
        read += 1;
    }
    meter.report(read, 0)
}

fn replay(events: &Path, rules: &Path, sets: usize) -> anyhow::Result<()> {
    let files = [events.to_owned()];
    let loaded = guardraild::rules::load(&[rules.to_owned()], None);
    ensure!(loaded.refused == 0, "the case's rules are refused: {:?}", loaded.diagnostics);
    let sides = (0..sets).map(|n| Side { label: n.to_string(), catalog: loaded.catalog.clone(), text: String::new() }).collect();
    let (settings, stop) = (Settings::default(), AtomicBool::new(false));
    let terms = Terms { settings: &settings, drawn: false, state: None, stop: &stop };
    let recording = Recording { files: &files, source: None, limits: Limits::default() };
    let meter = Meter::start();
    let outcomes = backtest::run(sides, &recording, &terms, |_| ())?;
    let counts = &outcomes[0].summary.counts;
    meter.report(counts.records(), counts.accepted)
}
