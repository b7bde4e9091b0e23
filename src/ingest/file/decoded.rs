//! Decoding blocks on threads of their own. A block is decoded by itself, so what comes out does not depend on how many threads there are.

use super::blocks::{Blocks, Raw, lines};
use crate::engine::event::Event;
use crate::engine::plan::FieldTable;
use crate::ingest::decode::{Decoder, Limits, Refused};
use crate::ingest::mapped::Mapper;
use crate::mapping::Source;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::sync::Arc;

/// What a line holds, or one of the events that it stands for.
#[allow(clippy::large_enum_variant)] // nearly all are events
pub enum Item<'a> {
    Event(Event<'a>),
    Refused(Refused),
    /// A line that stands for no event.
    Nothing,
}

type Items<'a> = Vec<Item<'a>>;

self_cell::self_cell!(
    /// Items, and the text that they borrow from.
    struct Decoded {
        owner: Arc<Vec<u8>>,
        #[not_covariant]
        dependent: Items,
    }
);

/// A block of lines, decoded.
pub struct Block {
    /// Where its first line begins in the file, as it is without compression.
    pub at: u64,
    /// By table of fields.
    tables: Vec<Decoded>,
}

impl Block {
    /// Looks at its items as read by one of the tables of fields; there are as many by each of them.
    #[inline]
    pub fn look<T>(&self, table: usize, look: impl FnOnce(&[Item<'_>]) -> T) -> T {
        self.tables[table].with_dependent(|_, items| look(items))
    }
}

/// A block that is being decoded; or why there is none.
pub type Promise = Receiver<Result<Arc<Block>, Broken>>;

/// A file that cannot be read: why. Every consumer is told.
#[derive(Clone)]
pub struct Broken(io::ErrorKind, String);

impl From<Broken> for io::Error {
    fn from(Broken(kind, text): Broken) -> io::Error {
        io::Error::new(kind, text)
    }
}

/// A block to decode, and who waits for it.
struct Job {
    raw: Raw,
    to: Vec<Sender<Result<Arc<Block>, Broken>>>,
}

/// How lines are read.
#[derive(Clone)]
pub struct Layout {
    pub limits: Limits,
    /// Lines are records of this source instead of canonical events.
    pub source: Option<Arc<Source>>,
    /// Fields that rules ask for; each line is decoded by every table.
    pub tables: Vec<FieldTable>,
}

/// Reads files on a thread for each and decodes them on `decoders` others. Each list of `promised` belongs to a consumer, and takes a promise of
/// every block of every file, in order. Threads end with the files, or when no consumer is left.
///
/// # Errors
/// A thread cannot be started.
pub fn start(files: Vec<Blocks>, layout: &Layout, decoders: usize, promised: &[Vec<Sender<Promise>>]) -> io::Result<()> {
    let (work, jobs) = bounded::<Job>(decoders);
    for _ in 0..decoders {
        let (jobs, mut worker) = (jobs.clone(), Worker::new(layout));
        std::thread::Builder::new().name("decode".into()).spawn(move || {
            for Job { raw, to } in jobs {
                let block = Arc::new(worker.decode(raw));
                // A consumer may have gone.
                to.iter().for_each(|to| drop(to.send(Ok(Arc::clone(&block)))));
            }
        })?;
    }
    for (index, mut blocks) in files.into_iter().enumerate() {
        let (work, promised) = (work.clone(), promised.iter().map(|files| files[index].clone()).collect::<Vec<_>>());
        std::thread::Builder::new().name("read".into()).spawn(move || {
            loop {
                let raw = match blocks.next() {
                    Ok(Some(raw)) => Ok(raw),
                    Ok(None) => return,
                    Err(e) => Err(Broken(e.kind(), e.to_string())),
                };
                let (to, promises): (Vec<_>, Vec<_>) = promised.iter().map(|_| bounded(1)).unzip();
                let taken = promised.iter().zip(promises).filter(|(to, promise)| to.send(promise.clone()).is_ok()).count();
                let going = match raw {
                    Ok(raw) => taken > 0 && work.send(Job { raw, to }).is_ok(),
                    Err(broken) => {
                        to.iter().for_each(|to| drop(to.send(Err(broken.clone()))));
                        false
                    }
                };
                if !going {
                    return;
                }
            }
        })?;
    }
    Ok(())
}

/// What one thread decodes with.
struct Worker {
    decoders: Vec<Decoder>,
    mapped: Option<Mapped>,
    max: usize,
}

impl Worker {
    fn new(layout: &Layout) -> Worker {
        let Layout { limits, source, tables } = layout;
        let decoders = tables.iter().map(|fields| Decoder::new(fields, *limits)).collect();
        Worker { decoders, mapped: source.as_ref().map(|source| Mapped::new(source, *limits)), max: limits.max_record_bytes }
    }

    fn decode(&mut self, raw: Raw) -> Block {
        let Raw { at, text } = raw;
        let mapped = self.mapped.is_some();
        let text = Arc::new(match &mut self.mapped {
            Some(mapped) => mapped.canonical(&text),
            None => text,
        });
        let max = self.max;
        let tables = self.decoders.iter_mut().map(|decoder| {
            Decoded::new(Arc::clone(&text), |text| match mapped {
                true => text
                    .split(|b| *b == b'\n')
                    .skip(1)
                    .map(|line| if line.is_empty() { Item::Nothing } else { item(decoder, line) })
                    .collect(),
                false => lines(text, max).map(|line| item(decoder, line)).collect(),
            })
        });
        Block { at, tables: tables.collect() }
    }
}

fn item<'a>(decoder: &mut Decoder, line: &'a [u8]) -> Item<'a> {
    decoder.decode(line).map_or_else(Item::Refused, Item::Event)
}

/// What makes canonical lines of those of a source.
pub struct Mapped {
    source: Arc<Source>,
    mapper: Mapper,
    max: usize,
}

impl Mapped {
    pub fn new(source: &Arc<Source>, limits: Limits) -> Mapped {
        Mapped { source: Arc::clone(source), mapper: Mapper::new(limits.max_depth), max: limits.max_record_bytes }
    }

    /// The events that the lines stand for, each behind an end of line. A line that stands for none leaves an empty one; what is no record is
    /// left as it is, and the decoder refuses it for the same reason.
    pub fn canonical(&mut self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut push = |line: &[u8]| {
            out.push(b'\n');
            out.extend_from_slice(line);
        };
        for line in lines(text, self.max) {
            let record = std::str::from_utf8(line).ok().filter(|line| line.len() <= self.max);
            if record.is_none_or(|record| self.mapper.map(&self.source, record).is_err()) {
                push(line);
                continue;
            }
            let events = std::iter::successors(Some(0), |n| Some(n + 1)).map_while(|n| self.mapper.event(n));
            let n = events.map(|event| push(event.as_bytes())).count();
            if n == 0 {
                push(b"");
            }
        }
        out
    }
}
