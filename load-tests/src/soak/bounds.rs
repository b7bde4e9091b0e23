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
/// librdkafka's queue (`queued.max.messages.kbytes`, `queued.min.messages`): the bytes, and what it keeps of each message beside them; and as
/// much again of answers that are unpacked and not looked at.
const QUEUE: f64 = 2.0 * 32.0 * 1_048_576.0 + 100_000.0 * 400.0;
/// Panes on their way from the workers to the judge, and those that it judges together, with room to sort one (ARCHITECTURE.md).
const INBOX: f64 = 256.0;
const TOGETHER: f64 = 9.0;
/// Records of a topic that wait for another topic, and what holding one takes beside its bytes.
const CROWD: f64 = 10_000.0;
const HELD: f64 = 64.0;

/// Bytes, by what takes them.
pub struct Bounds(Vec<(&'static str, String, f64)>);

impl Bounds {
    /// `rate`: records for each second of event time at most; `record`: bytes of one.
    pub fn of(case: &LoadCase, config: &Path, rate: f64, record: f64) -> anyhow::Result<Bounds> {
        let settings = Config::load_with(Some(config), &[], &Default::default()).context("the run's configuration")?.engine.settings;
        let partitions = case.partitions.unsigned_abs() as usize;
        // Two generations of half as many each, in tables of a power of two of which an eighth is empty.
        let places = |keys: usize| (keys * 8 / 7 + 1).next_power_of_two();
        let ids = (2 * partitions * places(settings.dedupe_max.div_ceil(2)) * (size_of::<u64>() + CONTROL)) as f64;
        // Of all partitions. A list has room for twice as much as it holds.
        let pane = 2.0 * settings.pane as f64 / 1e3 * rate * OBSERVATIONS * size_of::<Observation>() as f64;
        let assignments = case.traffic.users as f64 * case.traffic.experiments_per_user as f64;
        Ok(Bounds(vec![
            ("ids", format!("{} in each of {partitions} partitions", settings.dedupe_max), ids),
            (
                "panes that wait for the slowest partition, and in a checkpoint",
                "2 x engine.ahead_max".to_owned(),
                2.0 * settings.ahead_max as f64,
            ),
            (
                "panes that are open, or on their way to the judge",
                format!("of {rate:.0} records a second"),
                pane * (1.0 + INBOX / partitions as f64),
            ),
            ("panes that are judged together", String::new(), pane * TOGETHER),
            (
                "records that wait for another topic",
                format!("{CROWD:.0} of {record:.0} bytes in each partition"),
                CROWD * partitions as f64 * (record + HELD),
            ),
            ("units", format!("{assignments:.0}"), UNIT * assignments),
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
