//! `latency`: from a breach to the first webhook attempt, while the traffic runs at its rate.

use crate::case::LoadCase;
use crate::rig::Rig;
use crate::side;
use crate::table::{self, quantile};
use anyhow::ensure;
use guardraild::clock;
use guardraild::tools::broker::Feed;
use guardraild::tools::receiver::{Delivery, Options, Receiver};
use guardraild::tools::traffic::Traffic;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SECRET: &str = "whsec_bG9hZC10ZXN0cy1sb2FkLXRlc3RzLWxvYWQtdGVzdHM=";
/// Length of a pane unless configured, ms.
const PANE: f64 = 1_000.0;

#[derive(clap::Args)]
pub struct Args {
    /// Load case; its faults strike one experiment after another
    #[arg(long)]
    case: PathBuf,
    #[arg(long)]
    brokers: Option<String>,
}

/// First attempts by experiment and bucket.
type First = BTreeMap<(String, String), Delivery>;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let case = LoadCase::read(&args.case)?;
    ensure!(case.seconds > 0 && !case.traffic.faults.is_empty(), "a latency case needs `seconds` and faults");
    let rig = Rig::start(args.brokers.as_deref(), case.partitions)?;
    let start = clock::now();
    let traffic = Traffic::new(case.traffic.clone(), start)?;
    let expected: usize = case.traffic.faults.iter().map(|f| copies(&case, &f.experiment)).sum();
    let feed = Feed::start(traffic, rig.writer_now()?)?;
    let switch = feed.switch();
    let on_stop = Box::new(move |experiment: &str, bucket: &str| switch.stop(experiment, bucket));
    let receiver = Receiver::start(Options { secrets: vec![SECRET.to_owned()], refuse: |_| false, on_stop })?;
    let dir = tempfile::tempdir()?;
    let config = rig.files(dir.path(), &case, (&receiver.url(), SECRET))?;
    let daemon = side::start_daemon(&config)?;

    let until = Instant::now() + Duration::from_secs(case.seconds);
    let mut first = First::new();
    while Instant::now() < until && !feed.is_over() {
        if let Ok(delivery) = receiver.inbox().recv_timeout(Duration::from_millis(200)) {
            let text = |key: &str| delivery.data[key].as_str().unwrap_or_default().to_owned();
            if delivery.verified && matches!(delivery.kind.as_str(), "guardrail.rollback" | "guardrail.kill") {
                first.entry((text("experiment"), text("bucket"))).or_insert(delivery);
            }
        }
    }
    let rate = feed.sent().records as f64 * 1_000.0 / (clock::now() - start) as f64;
    drop(daemon);
    feed.finish()?;
    print(&case, &first, start, rate);
    ensure!(first.len() >= expected, "only {} of {expected} faults led to a webhook", first.len());
    Ok(())
}

fn copies(case: &LoadCase, experiment: &str) -> usize {
    case.traffic.experiments.iter().filter(|e| e.name == experiment).map(|e| e.copies as usize).sum()
}

fn print(case: &LoadCase, first: &First, start: i64, rate: f64) {
    let mut rows = Vec::new();
    for fault in &case.traffic.faults {
        let names = case.traffic.experiments.iter().filter(|e| e.name == fault.experiment).flat_map(|e| e.names());
        let (mut breach, mut begin, mut struck) = (Vec::new(), Vec::new(), Vec::new());
        for (copy, name) in names.enumerate() {
            let Some(delivery) = first.get(&(name, fault.bucket.clone())) else { continue };
            let fault_at = start as f64 + (fault.at_s + copy as f64 * fault.stagger_s) * 1_000.0;
            struck.push(delivery.at as f64 - fault_at);
            breach.extend(delivery.instant("decided_at").map(|at| (delivery.at - at) as f64));
            begin.extend(delivery.instant("since").map(|at| (delivery.at - at) as f64));
        }
        for (what, values) in [("decision", breach), ("begin of the breach", begin), ("fault", struck)] {
            rows.push(row(&fault.experiment, what, &values));
        }
    }
    let title = format!("First attempt after …, at {rate:.0} records a second");
    table::print(&title, &["experiments", "after the", "webhooks", "p50", "p99", "worst", "p99 in panes"], &rows);
}

fn row(experiment: &str, what: &str, values: &[f64]) -> Vec<String> {
    let ms = |q: f64| format!("{:.0} ms", quantile(values, q));
    let panes = format!("{:.2}", quantile(values, 0.99) / PANE);
    vec![experiment.to_owned(), what.to_owned(), values.len().to_string(), ms(0.5), ms(0.99), ms(1.0), panes]
}
