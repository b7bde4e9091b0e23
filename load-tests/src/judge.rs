//! `judge`: what an experiment costs inside the engine: joining and counting, judging a pane, showing it, and saving it.
//!
//! No Kafka, in virtual time: a case's records are decoded beforehand, and go through one Aggregator for each partition to one Fleet.

use crate::case::LoadCase;
use crate::table::{self, quantile};
use crate::usage;
use anyhow::ensure;
use guardraild::engine::aggregate::Aggregator;
use guardraild::engine::decision::Output;
use guardraild::engine::event::Event;
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::Kept;
use guardraild::engine::pane::Emission;
use guardraild::engine::plan::Settings;
use guardraild::engine::time::Pane;
use guardraild::ingest::decode::{Decoder, Limits};
use guardraild::tools::traffic::{Record, Traffic};
use std::path::PathBuf;
use std::sync::Arc;

/// Virtual time begins here, at the beginning of a minute.
const START: i64 = 1_800_000_000_000;
/// Panes that close a slot of the tests for late changes: every fifth at a pane of 1 s.
const SLOT: i64 = 5;
/// Views and checkpoints are timed every so many panes.
const EVERY: i64 = 20;

#[derive(clap::Args)]
pub struct Args {
    /// Load case
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/judge.yaml"))]
    case: PathBuf,
    #[arg(long, default_value_t = 20)]
    experiments: u32,
    /// Length of each measurement in virtual time
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(20..))]
    seconds: u64,
    /// Virtual time that has passed before each measurement, s
    #[arg(long, value_delimiter = ',', default_values_t = [60, 3_600])]
    after: Vec<u64>,
}

/// CPU times of one measurement, in microseconds: each an average over all experiments (or events) of a pane.
#[derive(Default)]
struct Costs {
    event: Vec<f64>,
    pane: Vec<f64>,
    slot: Vec<f64>,
    view: Vec<f64>,
    close_view: Vec<f64>,
    checkpoint: Vec<f64>,
    /// Bytes for each experiment.
    size: f64,
}

/// One engine in virtual time.
struct Bench {
    traffic: Traffic,
    decoder: Decoder,
    /// By partition.
    aggregators: Vec<Aggregator>,
    fleet: Fleet,
    names: Vec<String>,
    /// The records of a pane, reused; of the last, which is of the next pane, only the place is counted.
    records: Vec<Record>,
    held: usize,
    pane: i64,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.experiments > 0, "`--experiments` must be at least 1");
    let mut case = LoadCase::read(&args.case)?.with_experiments(args.experiments);
    case.traffic.visits_per_s *= f64::from(args.experiments);
    let mut bench = Bench::new(&case)?;
    let mut after = args.after.clone();
    after.sort_unstable();
    let mut rows = Vec::new();
    for after in after {
        while bench.pane < after as i64 {
            bench.step(None)?;
        }
        let mut costs = Costs::default();
        for _ in 0..args.seconds {
            bench.step(Some(&mut costs))?;
        }
        rows.extend(costs.rows(after));
    }
    let title = format!("{} experiments, CPU of the engine", args.experiments);
    table::print(&title, &["after", "what", "for each", "p50", "p99", "max"], &rows);
    Ok(())
}

impl Bench {
    fn new(case: &LoadCase) -> anyhow::Result<Bench> {
        let (catalog, settings) = (Arc::new(case.catalog()?), Settings::default());
        let names = catalog.plans.iter().map(|plan| plan.experiment.clone()).collect();
        let mut fleet = Fleet::new(&catalog, settings.pane);
        (0..case.partitions).for_each(|partition| fleet.assigned(partition));
        Ok(Bench {
            traffic: Traffic::new(case.traffic.clone(), START)?,
            decoder: Decoder::new(&catalog.fields, Limits::default()),
            aggregators: (0..case.partitions).map(|p| Aggregator::new(p, Arc::clone(&catalog), settings.clone())).collect(),
            fleet,
            names,
            records: Vec::new(),
            held: 0,
            pane: 0,
        })
    }

    /// Plays one pane; `costs` hears what it took.
    fn step(&mut self, costs: Option<&mut Costs>) -> anyhow::Result<()> {
        let pane_ms = Settings::default().pane;
        let end = START + (self.pane + 1) * pane_ms;
        let closes_slot = (Pane::of(START, pane_ms).0 + self.pane + 1) % SLOT == 0;
        self.pane += 1;
        self.held = 0;
        while self.traffic.next_ts() < end {
            if self.held == self.records.len() {
                self.records.push(Record::default());
            }
            self.traffic.next(&mut self.records[self.held]);
            self.held += 1;
        }
        let mut events: Vec<(usize, Event<'_>)> = Vec::with_capacity(self.held);
        for record in &self.records[..self.held] {
            let event =
                self.decoder.decode(&record.payload).map_err(|refused| anyhow::anyhow!("a record was refused: {:?}", refused.reason))?;
            events.push((record.user as usize % self.aggregators.len(), event));
        }
        let aggregators = &mut self.aggregators;
        let (emissions, aggregating) = timed(|| {
            for (partition, event) in &events {
                aggregators[*partition].observe(event);
            }
            aggregators.iter_mut().for_each(|a| a.advance(end));
            aggregators.iter_mut().flat_map(Aggregator::drain).collect::<Vec<Emission>>()
        });
        let mut out = Output::default();
        let ((), judging) = timed(|| emissions.into_iter().for_each(|emission| self.fleet.take(emission, &mut out)));
        ensure!(out.decisions.is_empty(), "the traffic is not healthy: {}", out.decisions[0].reason);
        let Some(costs) = costs else { return Ok(()) };
        let experiments = self.names.len() as f64;
        costs.event.push(aggregating / events.len().max(1) as f64);
        if closes_slot { &mut costs.slot } else { &mut costs.pane }.push(judging / experiments);
        if self.pane % EVERY == 0 {
            let (views, viewing) = timed(|| self.fleet.views());
            costs.view.push(viewing / views.len() as f64);
            let (_, looking) = timed(|| self.fleet.close_view(&self.names[self.pane as usize % self.names.len()]));
            costs.close_view.push(looking);
            let (state, saving) = timed(|| self.fleet.snapshot(true));
            costs.checkpoint.push(saving / experiments);
            costs.size = Kept::of(state.map_err(anyhow::Error::msg)?).size() as f64 / experiments;
        }
        Ok(())
    }
}

/// What `work` returns, and its CPU time in microseconds.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let before = usage::thread_cpu();
    let result = work();
    (result, (usage::thread_cpu() - before).as_secs_f64() * 1e6)
}

impl Costs {
    fn rows(&self, after: u64) -> Vec<Vec<String>> {
        let all = [
            ("join and count", "event", &self.event),
            ("judge", "experiment and pane", &self.pane),
            ("judge, a slot closes (1 pane in 5)", "experiment and pane", &self.slot),
            ("view", "experiment", &self.view),
            ("close view", "experiment", &self.close_view),
            ("checkpoint", "experiment", &self.checkpoint),
        ];
        let row = |(what, each, values): (&str, &str, &Vec<f64>)| {
            let us = |q: f64| format!("{:.1} us", quantile(values, q));
            vec![format!("{after} s"), what.to_owned(), each.to_owned(), us(0.5), us(0.99), us(1.0)]
        };
        let mut rows: Vec<Vec<String>> = all.into_iter().map(row).collect();
        let size = format!("{:.0} KiB", self.size / 1_024.0);
        rows.push(vec![format!("{after} s"), "size of the checkpoint".into(), "experiment".into(), size.clone(), size.clone(), size]);
        rows
    }
}
