//! What the daemon may hold at most, by the bounds that the case sets: to tell growth towards them from growth without end.

use crate::case::LoadCase;
use crate::table::{self, mib};
use anyhow::Context;
use guardraild::config::Config;
use guardraild::engine::pane::Observation;
use std::path::Path;

/// A hash table's control byte for each place.
const CONTROL: usize = 1;
/// A unit in one experiment, with its share of checkpoints (`load-tests assignments` measures it).
const UNIT: f64 = 47.0;
/// What an event is to its bucket's traffic, and to a signal or two.
const OBSERVATIONS: f64 = 3.0;
/// librdkafka's queue (`queued.max.messages.kbytes`), and as much again that is unpacked and on its way.
const QUEUE: f64 = 2.0 * 32.0 * 1_048_576.0;

/// Bytes, by what takes them.
pub struct Bounds(Vec<(&'static str, String, f64)>);

impl Bounds {
    /// `rate`: records for each second of event time at most.
    pub fn of(case: &LoadCase, config: &Path, rate: f64) -> anyhow::Result<Bounds> {
        let settings = Config::load_with(Some(config), &[], &Default::default()).context("the run's configuration")?.engine.settings;
        let partitions = case.partitions.unsigned_abs() as usize;
        // Two generations of half as many each, in tables of a power of two of which an eighth is empty.
        let places = |keys: usize| (keys * 8 / 7 + 1).next_power_of_two();
        let ids = (2 * partitions * places(settings.dedupe_max.div_ceil(2)) * (size_of::<u64>() + CONTROL)) as f64;
        let ahead = (settings.max_skew_panes * settings.pane) as f64 / 1e3;
        let panes = ahead * rate * OBSERVATIONS * size_of::<Observation>() as f64;
        Ok(Bounds(vec![
            ("ids", format!("{} in each of {partitions} partitions", settings.dedupe_max), ids),
            ("panes of partitions that are ahead", format!("{ahead:.0} s at {rate:.0} records a second"), panes),
            ("units", case.traffic.users.to_string(), UNIT * case.traffic.users as f64),
            ("records fetched", String::new(), QUEUE),
        ]))
    }

    /// `before`: resident memory before the overload, with the evidence of all experiments; `most`: the largest since.
    pub fn print(&self, before: f64, most: f64) {
        let mut rows: Vec<Vec<String>> = self.0.iter().map(|(what, of, bytes)| vec![(*what).to_owned(), of.clone(), mib(*bytes)]).collect();
        let sum: f64 = self.0.iter().map(|(.., bytes)| bytes).sum();
        rows.push(vec!["all bounds".to_owned(), String::new(), mib(sum)]);
        rows.push(vec!["measured".to_owned(), format!("{} at first, {} at most", mib(before), mib(most)), mib(most - before)]);
        table::print("What may be held, by bounds, and what was", &["what", "of", "at most"], &rows);
        println!();
    }
}
