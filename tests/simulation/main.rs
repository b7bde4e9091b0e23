//! Deterministic simulation: thousands of worlds, each made up from a seed, in each of which the invariants of ARCHITECTURE.md hold.
//!
//! `GUARDRAILD_SEEDS=10000 cargo test --test simulation -- --nocapture` is the long run, with a table of the faults; `GUARDRAILD_SEED=7`
//! repeats one world.
#![allow(clippy::unwrap_used)] // a test that fails should say where
#![allow(clippy::print_stderr)]

mod world;

use guardraild::store::{Attempt, Delivery, DeliveryRecord, DeliveryState};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use world::Outcome;
use world::network::Seen;
use world::oracle::received;

/// Worlds of an ordinary run.
const SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Faults injected, and sums, over all worlds.
fn table(outcomes: &BTreeMap<u64, Outcome>) -> String {
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    outcomes.values().flat_map(|o| &o.faults).for_each(|(fault, n)| *faults.entry(fault).or_default() += n);
    let sum = |of: fn(&Outcome) -> u64| outcomes.values().map(of).sum::<u64>();
    let mut text = format!(
        "{} worlds: {} records, {} decisions, {} deliveries in {} requests, {} reminders\n",
        outcomes.len(),
        sum(|o| o.records),
        sum(|o| o.decisions),
        sum(|o| o.deliveries),
        sum(|o| o.requests),
        sum(|o| o.reminders)
    );
    faults.iter().for_each(|(fault, n)| text += &format!("{n:>9}  {fault}\n"));
    text
}

#[test]
fn in_every_world_the_invariants_hold() {
    let (from, seeds) = match number("GUARDRAILD_SEED") {
        Some(seed) => {
            eprintln!("{}", world::schedule(seed));
            (seed, 1)
        }
        None => (number("GUARDRAILD_SEED_FROM").unwrap_or(0), number("GUARDRAILD_SEEDS").unwrap_or(SEEDS)),
    };
    let (next, outcomes) = (AtomicU64::new(from), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Relaxed)
                    && seed < from + seeds
                {
                    let outcome = world::run(seed);
                    for violation in &outcome.violations {
                        eprintln!("seed {seed}: {violation}");
                    }
                    let mut outcomes = outcomes.lock().unwrap();
                    outcomes.insert(seed, outcome);
                    if outcomes.len() % 500 == 0 {
                        eprintln!("{} worlds", outcomes.len());
                    }
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    eprintln!("{}", table(&outcomes));
    let violated: Vec<u64> = outcomes.iter().filter(|(_, o)| !o.violations.is_empty()).map(|(seed, _)| *seed).collect();
    assert!(violated.is_empty(), "violated in the worlds of these seeds; GUARDRAILD_SEED=N repeats one: {violated:?}");
}

fn row(attempts: u32) -> DeliveryRecord {
    let attempt = |n| Attempt { n, at: i64::from(n), status: Some(200), error: None, duration_ms: Some(1) };
    let delivery = Delivery {
        state: DeliveryState::Delivered,
        attempts,
        ..Delivery::pending("d-1-rollback", "flags", "guardrail.rollback", String::new(), 0)
    };
    DeliveryRecord { delivery, history: (1..=attempts).map(attempt).collect() }
}

/// The checker itself: a webhook without a row, one more than was attempted, one that nobody got.
#[test]
fn a_doubled_a_lost_and_an_unknown_webhook_are_noticed() {
    let faults = |row: Option<DeliveryRecord>, seen: Option<(u32, u32)>| {
        let id = "d-1-rollback".to_owned();
        let seen = seen.map(|(requests, acknowledged)| (id.clone(), Seen { requests, acknowledged, ..Seen::default() }));
        let mut faults = Vec::new();
        received(&row.map(|row| (id, row)).into_iter().collect(), &seen.into_iter().collect(), &mut faults);
        faults.len()
    };
    assert_eq!(faults(Some(row(2)), Some((2, 1))), 0, "an answer was lost: the second attempt is a repeat");
    assert_eq!(faults(Some(row(1)), Some((2, 2))), 1, "doubled behind the store's back");
    assert_eq!(faults(None, Some((1, 1))), 1, "sent without a row");
    assert_eq!(faults(Some(row(1)), None), 1, "delivered to nobody");
}
