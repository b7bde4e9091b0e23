//! `guardraild init`: looks at what is there, and writes a rule file to begin with.

pub mod files;
mod layout;
mod rule;
mod seen;
mod tally;

pub use layout::{Layout, Topic};
pub use rule::{Receivers, rule, sources, test};
pub use seen::told;
pub use tally::Tally;

use crate::ingest::schemas::Schemas;
use layout::Tools;

/// Bytes of records that are kept while they are looked at.
const MAX_BYTES: usize = 64 << 20;

/// Records to look at: of topics, which they name by index.
#[derive(Default)]
pub struct Sample {
    records: Vec<(usize, i32, Vec<u8>)>,
    bytes: usize,
}

/// What was found in them.
#[derive(Default)]
pub struct Found {
    pub topics: Vec<Topic>,
    pub tally: Tally,
}

impl Sample {
    /// Takes a record of a topic and partition; `false` once there is no room.
    pub fn take(&mut self, topic: usize, partition: i32, bytes: &[u8]) -> bool {
        self.bytes += bytes.len();
        self.records.push((topic, partition, bytes.to_vec()));
        self.bytes < MAX_BYTES
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Tells the layout of each topic, and counts what its records stand for. `schemas`: where there is a registry.
    pub fn found(&self, names: &[String], schemas: Option<Schemas>) -> Found {
        let mut tools = Tools::new(schemas);
        let of = |index: usize| self.records.iter().filter(move |(topic, ..)| *topic == index).map(|(.., bytes)| bytes.as_slice());
        let mut topics: Vec<Topic> = names.iter().enumerate().map(|(i, name)| Topic::new(name, of(i), &mut tools)).collect();
        let mut tally = Tally::default();
        for (topic, partition, bytes) in &self.records {
            for (ts, record) in topics[*topic].read(bytes, &mut tools) {
                tally.add(&record, *partition, ts);
            }
        }
        Found { topics, tally }
    }
}

#[cfg(test)]
mod tests;
