//! Recordings: NDJSON files, plain, gzip or zstd, and standard input.
//!
//! Lines end in LF or CRLF, empty ones are skipped, and one longer than a record may be is refused without being held. Several
//! files are merged by the time of each one's next record; within a file the order stays.
//!
//! A thread for each file reads it in blocks of whole lines, further ones decode the blocks, and whoever consumes a [`Feed`] takes them in
//! the order of the file: so the same records come in the same order, however many threads there are.

mod blocks;
mod decoded;
mod gate;
#[cfg(test)]
mod tests;

use super::decode::{Limits, Refused};
use crate::engine::aggregate::Aggregator;
use crate::engine::outcome::Reject;
use crate::engine::pane::Emission;
use crate::engine::plan::FieldTable;
use crate::engine::time::Millis;
use crate::mapping::Source;
use blocks::{Blocks, lines};
use crossbeam_channel::{Receiver, bounded};
use decoded::{Block, Item, Layout, Mapped, Promise};
use gate::{Fate, Gate, Passed};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes read at once, of all files together where there are many, and of each at least.
const BLOCK: usize = 256 * 1024;
const BLOCKS: usize = 64 * BLOCK;
const BLOCK_MIN: usize = 16 * 1024;
/// Blocks that are read ahead of a consumer, of all files together; of each one at least.
const AHEAD: usize = 8;
/// Refused records that wait for held ones at most; more are counted at once.
const REFUSED_MAX: usize = 1_024;
/// Records between two looks at emissions.
const STRIDE: usize = 512;

/// A recording to read.
pub struct Recording<'a> {
    /// Merged by time; `-` is standard input.
    pub files: &'a [PathBuf],
    /// Lines are records in JSON as this source describes them, instead of canonical events.
    pub source: Option<&'a Arc<Source>>,
    pub limits: Limits,
}

/// How far a recording has been read, in bytes as they are stored.
#[derive(Clone)]
pub struct Progress {
    read: Arc<AtomicU64>,
    /// `None` where it cannot be known: of a pipe.
    pub total: Option<u64>,
}

impl Progress {
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// Where a consumer of a recording stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    places: Vec<Place>,
    passed: Passed,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// Where a block began, in the file as it is without compression; and the items before it.
    at: u64,
    before: u64,
    /// Items taken.
    taken: u64,
}

impl Recording<'_> {
    /// Opens it for some consumers, each with the fields that its rules ask for and the position that it goes on from. Where consumers ask for the
    /// same fields, lines are decoded once for all of them.
    ///
    /// # Errors
    /// A file cannot be opened; the error names it.
    pub fn open(&self, consumers: &[(&FieldTable, Option<&Position>)]) -> io::Result<(Vec<Feed>, Progress)> {
        let count = self.files.len();
        let read = Arc::new(AtomicU64::new(0));
        let mut total = Some(0);
        let (mut files, mut begins) = (Vec::new(), Vec::new());
        for (index, path) in self.files.iter().enumerate() {
            let places = consumers.iter().map(|(_, position)| position.map_or_else(Place::default, |p| p.places[index]));
            let begin = places.min_by_key(|place| place.at).unwrap_or_default();
            let size = (BLOCKS / count.max(1)).clamp(BLOCK_MIN, BLOCK);
            let (blocks, length) = Blocks::open(path, begin.at, (size, self.limits.max_record_bytes), &read)?;
            total = total.zip(length).map(|(a, b)| a + b);
            files.push(blocks);
            begins.push(begin);
        }
        let mut tables: Vec<FieldTable> = Vec::new();
        let (mut feeds, mut promised) = (Vec::new(), Vec::new());
        for (fields, position) in consumers {
            let table = tables.iter().position(|table| table == *fields).unwrap_or_else(|| {
                tables.push((*fields).clone());
                tables.len() - 1
            });
            let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| bounded((AHEAD / count.max(1)).max(1))).unzip();
            promised.push(senders);
            feeds.push(Feed::new(receivers, &begins, table, *position));
        }
        let decoders = std::thread::available_parallelism().map_or(1, usize::from);
        let layout = Layout { limits: self.limits, source: self.source.cloned(), tables };
        decoded::start(files, &layout, decoders, &promised)?;
        Ok((feeds, Progress { read, total }))
    }

    /// Gives `each` the canonical events, file by file; what is no record comes as it is. Returns how many records stand for none.
    ///
    /// # Errors
    /// Where a file cannot be read, or `each` says so.
    pub fn each(&self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
        let (mut unmapped, max) = (0, self.limits.max_record_bytes);
        let mut mapped = self.source.map(|source| Mapped::new(source, self.limits));
        for path in self.files {
            let mut blocks = Blocks::open(path, 0, (BLOCK, max), &Arc::default())?.0;
            while let Some(raw) = blocks.next()? {
                let Some(mapped) = &mut mapped else {
                    lines(&raw.text, max).try_for_each(&mut each)?;
                    continue;
                };
                for event in mapped.canonical(&raw.text).split(|b| *b == b'\n').skip(1) {
                    match event {
                        [] => unmapped += 1,
                        event => each(event)?,
                    }
                }
            }
        }
        Ok(unmapped)
    }
}

/// What one consumer takes of a recording.
pub struct Feed {
    files: Vec<Stream>,
    table: usize,
    gate: Gate<Held>,
    /// Refused while the gate holds records that came before: they wait with them.
    refused: Vec<Refused>,
}

/// An event in its block.
type Held = (Arc<Block>, usize);

/// One file.
struct Stream {
    promises: Receiver<Promise>,
    /// The block whose items are taken, and the next of them; none at the end of the file.
    block: Option<Arc<Block>>,
    next: usize,
    place: Place,
    /// Items to pass over: others begin before this consumer does.
    skip: u64,
}

impl Feed {
    fn new(receivers: Vec<Receiver<Promise>>, begins: &[Place], table: usize, position: Option<&Position>) -> Feed {
        let files = receivers.into_iter().zip(begins).enumerate().map(|(index, (promises, begin))| {
            let taken = position.map_or(0, |position| position.places[index].taken);
            let place = Place { taken: begin.before, ..*begin };
            Stream { promises, block: None, next: 0, place, skip: taken.saturating_sub(begin.before) }
        });
        let passed = position.map(|position| position.passed).unwrap_or_default();
        Feed { files: files.collect(), table, gate: Gate::new(passed), refused: Vec::new() }
    }

    /// Where it stands; `None` while it holds records back, which are 63 at most.
    pub fn position(&self) -> Option<Position> {
        let places = self.files.iter().map(|stream| stream.place).collect();
        self.gate.passed().filter(|_| self.refused.is_empty()).map(|passed| Position { places, passed })
    }

    /// Books all of it into an aggregator. `on_emissions` takes what that emits, in order; `pause` is called now and then, at a moment when the feed and
    /// the aggregator agree, and says whether to go on. Returns whether it came to its end.
    ///
    /// # Errors
    /// Where a file cannot be read or decompressed, with its name. Bad records are counted, not errors.
    pub fn pump<E: From<io::Error>>(
        mut self,
        aggregator: &mut Aggregator,
        mut on_emissions: impl FnMut(Vec<Emission>),
        mut pause: impl FnMut(&Feed, &mut Aggregator) -> Result<bool, E>,
    ) -> Result<bool, E> {
        for stream in &mut self.files {
            stream.fill(self.table)?;
        }
        while let Some(file) = self.first() {
            self.run(file, aggregator)?;
            hand_on(aggregator, &mut on_emissions);
            if !pause(&self, aggregator)? {
                return Ok(false);
            }
        }
        self.gate.finish(&mut |held, fate| settle(aggregator, self.table, &held, fate));
        self.refused.drain(..).for_each(|refused| refuse(aggregator, &refused));
        aggregator.finish();
        hand_on(aggregator, &mut on_emissions);
        Ok(true)
    }

    /// The file whose next item comes first.
    fn first(&self) -> Option<usize> {
        let heads = self.files.iter().enumerate().filter_map(|(i, stream)| Some((stream.head(self.table)?, i)));
        heads.min().map(|(_, i)| i)
    }

    /// Books items of a file: as long as they come before those of all others, and to the end of the block and [`STRIDE`] at most.
    fn run(&mut self, file: usize, aggregator: &mut Aggregator) -> io::Result<()> {
        let others = (0..self.files.len()).filter(|i| *i != file).filter_map(|i| Some((self.files[i].head(self.table)?, i))).min();
        let Some(block) = self.files[file].block.clone() else { return Ok(()) };
        let from = self.files[file].next;
        let booked = block.look(self.table, |items| {
            let run = items[from..].iter().take(STRIDE).enumerate();
            let run = run.take_while(|(n, item)| *n == 0 || others.is_none_or(|other| (head(item), file) < other));
            run.map(|(n, item)| self.book(item, (&block, from + n), aggregator)).count()
        });
        self.files[file].take(booked);
        self.files[file].fill(self.table)
    }

    #[inline]
    fn book(&mut self, item: &Item<'_>, (block, index): (&Arc<Block>, usize), aggregator: &mut Aggregator) {
        match item {
            Item::Event(event) if self.gate.passes(event.ts) => {
                aggregator.observe(event);
            }
            Item::Event(event) => {
                let table = self.table;
                self.gate.offer(event.ts, (Arc::clone(block), index), &mut |held, fate| settle(aggregator, table, &held, fate));
            }
            Item::Refused(refused) if self.gate.waits() && self.refused.len() < REFUSED_MAX => self.refused.push(refused.clone()),
            Item::Refused(refused) => refuse(aggregator, refused),
            Item::Nothing => aggregator.pass_over(1),
        }
        if !self.refused.is_empty() && !self.gate.waits() {
            self.refused.drain(..).for_each(|refused| refuse(aggregator, &refused));
        }
    }
}

impl Stream {
    /// Sees to it that there is a next item, unless the file is at its end.
    fn fill(&mut self, table: usize) -> io::Result<()> {
        loop {
            let left = self.block.as_ref().map_or(0, |block| block.look(table, |items| items.len())) - self.next;
            if left > 0 && self.skip == 0 {
                return Ok(());
            }
            if left > 0 {
                let skipped = left.min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                self.skip -= skipped as u64;
                self.take(skipped);
                continue;
            }
            (self.block, self.next) = (None, 0);
            // The sender goes at the end of the file.
            let Ok(promise) = self.promises.recv() else { return Ok(()) };
            let block = promise.recv().map_err(|_| io::Error::other("a thread that decodes has ended"))??;
            self.place = Place { at: block.at, before: self.place.taken, taken: self.place.taken };
            self.block = Some(block);
        }
    }

    fn take(&mut self, items: usize) {
        self.next += items;
        self.place.taken += items as u64;
    }

    fn head(&self, table: usize) -> Option<Millis> {
        self.block.as_ref().map(|block| block.look(table, |items| head(&items[self.next])))
    }
}

/// The time by which an item is merged; what has none comes at once.
fn head(item: &Item<'_>) -> Millis {
    match item {
        Item::Event(event) => event.ts,
        Item::Refused(_) | Item::Nothing => Millis::MIN,
    }
}

fn hand_on(aggregator: &mut Aggregator, on_emissions: &mut impl FnMut(Vec<Emission>)) {
    let emissions = aggregator.drain();
    if !emissions.is_empty() {
        on_emissions(emissions);
    }
}

fn refuse(aggregator: &mut Aggregator, refused: &Refused) {
    aggregator.refuse(refused.reason, refused.experiment.as_deref());
}

/// Books a record that the gate has let go.
fn settle(aggregator: &mut Aggregator, table: usize, (block, index): &Held, fate: Fate) {
    block.look(table, |items| match (&items[*index], fate) {
        (Item::Event(event), Fate::Accepted) => drop(aggregator.observe(event)),
        (Item::Event(event), Fate::Future) => drop(aggregator.refuse(Reject::FutureTimestamp, event.experiment.as_deref())),
        // Only events come to the gate.
        _ => {}
    });
}
