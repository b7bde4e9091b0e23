//! `assignments`: what it costs to remember who saw what, for many users and for many experiments: memory, a look-up, checkpoints, a restart.
//!
//! No Kafka: exposures of every user in turn go straight to the aggregators, what these emit to the judges, and checkpoints to a database, as often for as many records as a
//! busy daemon would make them. Each row is measured in a process of its own.

use crate::case::LoadCase;
use crate::side;
use crate::table::{self, mib};
use crate::usage;
use anyhow::Context;
use guardraild::engine::aggregate::Aggregator;
use guardraild::engine::decision::Output;
use guardraild::engine::event::{Event, Kind, Text};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::{Changes, prefixed};
use guardraild::engine::plan::{Catalog, Settings};
use guardraild::store::{Checkpoint, Commit, Store};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const START: i64 = 1_800_000_000_000;
/// Exposures between two checkpoints.
const CHECKPOINT: u64 = 2_000_000;
/// Exposures in a millisecond of event time.
const PACE: u64 = 200;
const LOOKUPS: u64 = 1_000_000;

#[derive(clap::Args)]
pub struct Args {
    /// Load case: its rule and its first experiment
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/units.yaml"))]
    case: PathBuf,
    /// Users, experiments, and experiments that each user is in
    #[arg(long, value_delimiter = ',', default_values = ["10000000x1x1", "10000000x1000x1", "1000000x1000x20"], value_parser = scale)]
    scale: Vec<Scale>,
    #[arg(long, default_value_t = 12)]
    partitions: i32,
}

#[derive(Clone, Copy, Debug)]
struct Scale {
    users: u64,
    experiments: u32,
    each: u64,
}

fn scale(text: &str) -> Result<Scale, String> {
    let numbers: Vec<u64> = text.split('x').map_while(|n| n.parse().ok()).collect();
    match numbers[..] {
        [users, experiments @ 1..=65_536, each] if users > 0 && (1..=experiments).contains(&each) => {
            Ok(Scale { users, experiments: experiments as u32, each })
        }
        _ => Err("write USERSxEXPERIMENTSxEACH, such as 1000000x1000x20".into()),
    }
}

#[derive(clap::Args)]
pub struct SideArgs {
    #[arg(long)]
    case: PathBuf,
    #[arg(long, value_parser = scale)]
    scale: Scale,
    #[arg(long)]
    partitions: i32,
}

/// What one scale took.
#[derive(Serialize, Deserialize)]
struct Cost {
    assignments: u64,
    /// Bytes of memory: the most while exposures came and checkpoints were made; at the end of that; and beyond what there was before.
    peak: u64,
    after: u64,
    /// Bytes of the database.
    stored: u64,
    /// CPU: of an exposure with its part of the checkpoints, and the share of these; of joining an event of a user chosen at random, ns; of a restart, s.
    exposure: f64,
    checkpoints: f64,
    event: f64,
    restart: f64,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for Scale { users, experiments, each } in &args.scale {
        let scale = format!("{users}x{experiments}x{each}");
        let (case, partitions) = (args.case.to_string_lossy(), args.partitions.to_string());
        let cost: Cost = side::measure(&["assignments", "--case", &case, "--scale", &scale, "--partitions", &partitions])?;
        let per = |bytes: u64| format!("{:.1}", bytes as f64 / cost.assignments as f64);
        rows.push(vec![
            users.to_string(),
            experiments.to_string(),
            cost.assignments.to_string(),
            mib(cost.peak as f64),
            per(cost.peak),
            per(cost.after),
            per(cost.stored),
            format!("{:.2} us", cost.exposure / 1e3),
            format!("{:.1}%", 100.0 * cost.checkpoints),
            format!("{:.2} us", cost.event / 1e3),
            format!("{:.1} s", cost.restart),
        ]);
    }
    let title = format!("Assignments in {} partitions: memory and CPU", args.partitions);
    let head = [
        "users",
        "experiments",
        "assignments",
        "peak",
        "bytes each at the peak",
        "at the end",
        "in the database",
        "exposure",
        "of that checkpoints",
        "event of a random user",
        "restart",
    ];
    table::print(&title, &head, &rows);
    Ok(())
}

pub fn measured(args: &SideArgs) -> anyhow::Result<()> {
    let case = LoadCase::read(&args.case)?.with_experiments(args.scale.experiments);
    let catalog = Arc::new(case.catalog()?);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("guardraild.db");
    let mut store = Store::open(&path)?;
    let mut part = Partitions::new(&catalog, args.partitions);
    let before = usage::memory();
    let cpu = usage::thread_cpu();
    part.expose(args.scale, &mut store)?;
    let assignments = part.assignments();
    let exposure = nanos(cpu, args.scale.users * args.scale.each);
    let checkpoints = part.saving.as_secs_f64() / (usage::thread_cpu() - cpu).as_secs_f64();
    let (peak, after) = (usage::peak_memory() - before, usage::memory().saturating_sub(before));
    let cpu = usage::thread_cpu();
    part.look_up(args.scale.users);
    let event = nanos(cpu, LOOKUPS);
    drop((part, store));

    // As the daemon starts: the file is checked, the checkpoint read, every partition and every judge rebuilt.
    let cpu = usage::thread_cpu();
    let mut store = Store::open(&path)?;
    store.check()?;
    let loaded = store.load_checkpoint()?.checkpoint.context("no checkpoint")?;
    let mut parts = loaded.parts;
    let restored = Fleet::restore(&catalog, Settings::default().pane, &parts.split_off("fleet/")).map_err(anyhow::Error::msg)?;
    anyhow::ensure!(restored.lost.is_empty() && restored.fleet.judged_to().is_some(), "{:?} did not come back", restored.lost);
    let mut found = 0;
    for partition in 0..args.partitions {
        let kept = parts.split_off(&format!("{partition}/"));
        let again = Aggregator::restore(partition, Arc::clone(&catalog), Settings::default(), &kept);
        found += again.map_err(anyhow::Error::msg)?.assignments() as u64;
    }
    let restart = (usage::thread_cpu() - cpu).as_secs_f64();
    let stored = std::fs::metadata(&path)?.len();
    anyhow::ensure!(found == assignments, "{found} of {assignments} assignments came back");
    println!("{}", serde_json::to_string(&Cost { assignments, peak, after, stored, exposure, checkpoints, event, restart })?);
    Ok(())
}

fn nanos(since: std::time::Duration, n: u64) -> f64 {
    (usage::thread_cpu() - since).as_nanos() as f64 / n as f64
}

struct Partitions {
    aggregators: Vec<Aggregator>,
    fleet: Fleet,
    /// CPU of all checkpoints.
    saving: Duration,
    names: Vec<String>,
    buckets: Vec<String>,
    now: i64,
}

impl Partitions {
    fn new(catalog: &Arc<Catalog>, partitions: i32) -> Partitions {
        Partitions {
            aggregators: (0..partitions).map(|p| Aggregator::new(p, Arc::clone(catalog), Settings::default())).collect(),
            fleet: Fleet::new(catalog, Settings::default().pane),
            saving: Duration::ZERO,
            names: catalog.plans.iter().map(|plan| plan.experiment.clone()).collect(),
            buckets: catalog.plans[0].buckets.iter().map(|bucket| bucket.name.clone()).collect(),
            now: START,
        }
    }

    /// Exposes every user to its experiments, with checkpoints on the way and at the end.
    fn expose(&mut self, scale: Scale, store: &mut Store) -> anyhow::Result<()> {
        let mut n = 0;
        for user in 0..scale.users {
            for k in 0..scale.each {
                let experiment = (user.wrapping_mul(7_919) + k * 37) % u64::from(scale.experiments);
                self.observe(user, Some(experiment as usize));
                n += 1;
                self.now += i64::from(n % PACE == 0);
                if n % CHECKPOINT == 0 {
                    self.checkpoint(store)?;
                }
            }
        }
        self.checkpoint(store)
    }

    fn observe(&mut self, user: u64, exposure: Option<usize>) {
        let (tenant, name) = (format!("t-{}", user % 5_000), format!("u-{user}"));
        let bucket = &self.buckets[user as usize % self.buckets.len()];
        let event = Event {
            ts: self.now,
            id: None,
            tenant_id: Some(Text::Owned(tenant)),
            user_id: Some(Text::Owned(name)),
            experiment: exposure.map(|e| Text::Borrowed(self.names[e].as_str())),
            bucket: exposure.map(|_| Text::Borrowed(bucket.as_str())),
            attributes: Default::default(),
            kind: if exposure.is_some() { Kind::Exposure } else { Kind::Other { name: Text::Borrowed("load") } },
            fields: Default::default(),
        };
        let at = user as usize % self.aggregators.len();
        self.aggregators[at].observe(&event);
        for emission in self.aggregators[at].drain() {
            // Nothing but exposures: there is nothing to decide.
            self.fleet.take(emission, &mut Output::default());
        }
    }

    fn look_up(&mut self, users: u64) {
        // Steps of a prime that shares no factor with the number of users reach all of them in no order that a cache would like.
        (0..LOOKUPS).for_each(|i| self.observe(i.wrapping_mul(6_700_417) % users, None));
    }

    fn assignments(&self) -> u64 {
        self.aggregators.iter().map(|a| a.assignments() as u64).sum()
    }

    /// As the daemon makes them: the snapshots of all partitions, then one transaction.
    fn checkpoint(&mut self, store: &mut Store) -> anyhow::Result<()> {
        let cpu = usage::thread_cpu();
        let mut changes: Changes = prefixed("fleet/", self.fleet.snapshot(false).map_err(anyhow::Error::msg)?);
        for (partition, aggregator) in self.aggregators.iter_mut().enumerate() {
            changes.extend(prefixed(&format!("{partition}/"), aggregator.snapshot().map_err(anyhow::Error::msg)?));
        }
        let checkpoint = Checkpoint { changes, ..Checkpoint::default() };
        store.commit(&Commit { at: self.now, checkpoint: Some(checkpoint), ..Commit::default() })?;
        self.saving += usage::thread_cpu() - cpu;
        Ok(())
    }
}
