//! `generate`: a case's traffic as NDJSON or on a broker.

use crate::case::LoadCase;
use anyhow::Context;
use guardraild::tools::broker::Writer;
use guardraild::tools::traffic::{Record, Traffic};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// Load case
    #[arg(long)]
    case: PathBuf,
    /// Records, instead of the case's
    #[arg(long)]
    records: Option<u64>,
    /// Event time of the first record, ms since the epoch; without it the traffic ends now
    #[arg(long)]
    start: Option<i64>,
    /// File to write, compressed if it ends in .zst; `-` is standard output
    #[arg(long, default_value = "-", conflicts_with = "brokers")]
    out: PathBuf,
    /// Write to these brokers instead, whose topics must exist
    #[arg(long)]
    brokers: Option<String>,
    /// Before the names of the topics
    #[arg(long, default_value = "", requires = "brokers")]
    prefix: String,
    /// Directory to write the experiments' rule files to
    #[arg(long)]
    rules: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut case = LoadCase::read(&args.case)?;
    case.records = args.records.unwrap_or(case.records);
    if let Some(dir) = &args.rules {
        rules(&case, dir)?;
    }
    let mut traffic = Traffic::new(case.traffic.clone(), args.start.map_or_else(|| start_to_end_now(&case), Ok)?)?;
    let started = Instant::now();
    match &args.brokers {
        Some(brokers) => produce(&mut traffic, case.records, &Writer::new(brokers, &args.prefix, &[])?)?,
        None => write(&mut traffic, case.records, &args.out)?,
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{} records in {seconds:.1} s, {:.0} a second", case.records, case.records as f64 / seconds);
    Ok(())
}

fn rules(case: &LoadCase, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, text) in case.rules() {
        std::fs::write(dir.join(format!("{name}.yaml")), text)?;
    }
    Ok(())
}

/// The case's traffic in a file, and its rules in a directory.
pub fn files(case: &LoadCase, events: &Path, dir: &Path) -> anyhow::Result<()> {
    rules(case, dir)?;
    write(&mut Traffic::new(case.traffic.clone(), 1_764_666_000_000)?, case.records, events)
}

/// Event time at which the case's traffic must begin for its last record to be of about now.
pub fn start_to_end_now(case: &LoadCase) -> anyhow::Result<i64> {
    let mut traffic = Traffic::new(case.traffic.clone(), 0)?;
    let mut record = Record::default();
    let sample = case.records.min(100_000);
    (0..sample).for_each(|_| traffic.next(&mut record));
    let span = record.ts as f64 * case.records as f64 / sample as f64;
    Ok(guardraild::clock::now() - span as i64)
}

/// Sends so many records and waits until the broker has them.
pub fn produce(traffic: &mut Traffic, records: u64, writer: &Writer) -> anyhow::Result<()> {
    let mut record = Record::default();
    for n in 0..records {
        traffic.next(&mut record);
        writer.send(&record)?;
        if n % 1_000 == 0 {
            writer.serve();
        }
    }
    writer.flush(Duration::from_secs(60)).context("the broker did not take all records within 60 s")
}

fn write(traffic: &mut Traffic, records: u64, path: &Path) -> anyhow::Result<()> {
    if path == Path::new("-") {
        return lines(traffic, records, BufWriter::new(std::io::stdout().lock()));
    }
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    if path.extension().is_some_and(|e| e == "zst") {
        lines(traffic, records, zstd::Encoder::new(file, 3)?.auto_finish())
    } else {
        lines(traffic, records, BufWriter::with_capacity(1 << 20, file))
    }
}

fn lines(traffic: &mut Traffic, records: u64, mut out: impl Write) -> anyhow::Result<()> {
    let mut record = Record::default();
    for _ in 0..records {
        traffic.next(&mut record);
        record.payload.push(b'\n');
        out.write_all(&record.payload)?;
    }
    Ok(out.flush()?)
}
