//! The sample ratio's test by itself: how often it alarms when units fall as designed, and how soon it sees that they do not.

use crate::table;
use guardraild::engine::stats::srm::{Stratum, log_e};
use guardraild::tools::simulate::{count, exact};

/// Units of a run.
const UNITS: u64 = 1_000_000;
/// It looks whenever so many more units have been exposed, of two buckets designed as halves.
const LOOK: u64 = 1_000;
/// The check's default.
const ALPHA: f64 = 0.001;

/// Runs of one table row.
#[derive(Clone, Copy)]
pub struct Runs {
    pub clean: u64,
    pub skewed: u64,
}

/// Prints the table; returns what is wrong with it, if anything.
pub fn run(runs: Runs, seed: u64, unlucky: f64) -> Vec<String> {
    let mut faults = Vec::new();
    let mut rows = Vec::new();
    for (name, share, runs) in [("50/50", 0.5, runs.clean), ("49/51", 0.49, runs.skewed)] {
        let found: Vec<f64> = (0..runs).filter_map(|run| units_to_alarm(share, seed ^ (run << 20))).map(|units| units as f64).collect();
        let hits = found.len() as u64;
        let [low, high] = exact::interval(hits, runs, 0.95);
        let at = |q: f64| if found.is_empty() { "-".to_owned() } else { count(table::quantile(&found, q)) };
        rows.push(vec![
            name.to_owned(),
            runs.to_string(),
            hits.to_string(),
            format!("{:.2} .. {:.2}", 100.0 * low, 100.0 * high),
            at(0.5),
            at(0.9),
        ]);
        if share == 0.5 && hits > exact::limit(runs, ALPHA, unlucky) {
            faults.push(format!("sample ratio: {hits} of {runs} runs as designed alarmed"));
        }
        if share != 0.5 && hits < runs {
            faults.push(format!("sample ratio: {name} was missed in {} of {runs} runs", runs - hits));
        }
    }
    let head = ["split", "runs", "alarmed", "95% interval, %", "median units", "p90 units"];
    let title =
        format!("Sample ratio of {} units, alpha {ALPHA}, looked at every {}, seed {seed}", count(UNITS as f64), count(LOOK as f64));
    table::print(&title, &head, &rows);
    faults
}

/// Units exposed when the test alarms; `None` if it never does.
fn units_to_alarm(share: f64, seed: u64) -> Option<u64> {
    let (mut state, mut first) = (seed, 0);
    let below = (share * 2f64.powi(32)) as u32;
    (1..=UNITS / LOOK).map(|look| look * LOOK).find(|n| {
        first += (0..LOOK / 2)
            .map(|_| draw(&mut state))
            .map(|bits| u64::from((bits as u32) < below) + u64::from(((bits >> 32) as u32) < below))
            .sum::<u64>();
        log_e(&[Stratum { counts: &[first, n - first], weights: &[0.5, 0.5] }]) >= -ALPHA.ln()
    })
}

/// SplitMix64.
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_of_49_to_51_is_seen_and_halves_are_left_alone() {
        let seen: Vec<u64> = (0..20).filter_map(|seed| units_to_alarm(0.49, seed << 20)).collect();
        assert!(seen.len() == 20 && seen.iter().all(|units| *units < UNITS), "{seen:?}");
        assert_eq!((0..20).filter_map(|seed| units_to_alarm(0.5, seed << 20)).count(), 0);
    }
}
