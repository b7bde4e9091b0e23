//! Recordings: NDJSON files, plain, gzip or zstd, and standard input.
//!
//! Lines end in LF or CRLF, empty ones are skipped, and one longer than a record may be is refused without being held. Several
//! files are merged by the time of each one's next record; within a file the order stays.
//!
//! A recording has no wall clock to tell the future by. A record more than an hour ahead of all before it is held back until the
//! recording itself decides (see [`Gate`]).

use super::decode::{Decoder, Limits, Refused};
use super::mapped::Mapper;
use crate::engine::aggregate::Aggregator;
use crate::engine::outcome::{Counts, Reject};
use crate::engine::pane::Emission;
use crate::engine::time::Millis;
use crate::mapping::Source;
use crossbeam_channel::{Receiver, bounded};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes read at once.
const BLOCK: usize = 256 * 1024;
/// Refused records that wait for held ones at most; more are counted at once.
const REFUSED_MAX: usize = 1_024;
/// Records between two looks at emissions and progress.
const STRIDE: u64 = 512;

/// Open recordings, read as one.
pub struct FileSource {
    files: Vec<Lines>,
    read: Arc<AtomicU64>,
    total: Option<u64>,
}

/// The lines of one recording.
struct Lines {
    path: PathBuf,
    reader: BufReader<Box<dyn Read + Send>>,
    max: usize,
    line: Vec<u8>,
    mapped: Option<Mapped>,
}

/// What makes canonical lines of those of a source.
struct Mapped {
    source: Arc<Source>,
    mapper: Mapper,
    /// Of the last line's events, those given already.
    given: usize,
    /// Lines that stand for no event.
    unmapped: u64,
}

impl FileSource {
    /// Opens recordings; `-` is standard input. Compression is told by the first bytes, not by the name. Lines are canonical events, or
    /// records in JSON as `source` reads them.
    pub fn open(paths: &[PathBuf], source: Option<&Arc<Source>>, limits: Limits) -> io::Result<FileSource> {
        let read = Arc::new(AtomicU64::new(0));
        let mut total = Some(0);
        let mut files = Vec::new();
        for path in paths {
            let name = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
            let (raw, length): (Box<dyn Read + Send>, _) = if path == Path::new("-") {
                (Box::new(io::stdin()), None)
            } else {
                let file = File::open(path).map_err(name)?;
                let meta = file.metadata().map_err(name)?;
                if meta.is_dir() {
                    return Err(name(io::ErrorKind::IsADirectory.into()));
                }
                (Box::new(file), meta.is_file().then_some(meta.len()))
            };
            total = total.zip(length).map(|(a, b)| a + b);
            let raw = BufReader::with_capacity(BLOCK, Counted { inner: raw, read: Arc::clone(&read) });
            let reader = BufReader::with_capacity(BLOCK, decompressed(raw).map_err(name)?);
            let mapper = || Mapper::new(limits.max_depth);
            let mapped = source.map(|source| Mapped { source: Arc::clone(source), mapper: mapper(), given: 0, unmapped: 0 });
            files.push(Lines { path: path.clone(), reader, max: limits.max_record_bytes, line: Vec::new(), mapped });
        }
        Ok(FileSource { files, read, total })
    }

    /// Gives `each` the canonical events, file by file; what is no record comes as it is. Returns how many records stand for none.
    ///
    /// # Errors
    /// Where a file cannot be read, or `each` says so.
    pub fn each(mut self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
        for file in &mut self.files {
            while file.advance()? {
                each(&file.line)?;
            }
        }
        Ok(self.unmapped())
    }

    fn unmapped(&self) -> u64 {
        self.files.iter().filter_map(|file| file.mapped.as_ref()).map(|mapped| mapped.unmapped).sum()
    }
}

/// Decodes a whole recording into an aggregator.
///
/// `on_emissions` takes what the aggregator emits, in order; `progress` the bytes read so far, as stored, and in all where
/// that is known. Returns the aggregator's counts.
///
/// # Errors
/// Where a file cannot be read or decompressed, with its name. Bad records are counted, not errors.
pub fn pump(
    mut source: FileSource,
    decoder: &mut Decoder,
    aggregator: &mut Aggregator,
    mut on_emissions: impl FnMut(Vec<Emission>),
    mut progress: impl FnMut(u64, Option<u64>),
) -> io::Result<Counts> {
    let mut gate = Gate::default();
    // Refused while the gate holds records that came before: they wait with them.
    let mut refused_meanwhile: Vec<Refused> = Vec::new();
    let mut line = Vec::new();
    let mut merge = Merge::start(&mut source.files, decoder)?;
    for n in 1u64.. {
        let more = merge.next(&mut source.files, decoder, &mut line)?;
        if !more {
            break;
        }
        match decoder.decode(&line) {
            Ok(event) if gate.passes(event.ts) => {
                aggregator.observe(&event);
            }
            Ok(event) => gate.offer(event.ts, &line, &mut |bytes, fate| settle(decoder, aggregator, bytes, fate)),
            Err(refused) if gate.waits() && refused_meanwhile.len() < REFUSED_MAX => refused_meanwhile.push(refused),
            Err(refused) => refuse(aggregator, refused),
        }
        if !refused_meanwhile.is_empty() && !gate.waits() {
            refused_meanwhile.drain(..).for_each(|refused| refuse(aggregator, refused));
        }
        if n.is_multiple_of(STRIDE) {
            hand_on(aggregator, &mut on_emissions);
            progress(source.read.load(Ordering::Relaxed), source.total);
        }
    }
    gate.finish(&mut |bytes, fate| settle(decoder, aggregator, bytes, fate));
    refused_meanwhile.into_iter().for_each(|refused| refuse(aggregator, refused));
    aggregator.pass_over(source.unmapped());
    aggregator.finish();
    hand_on(aggregator, &mut on_emissions);
    progress(source.read.load(Ordering::Relaxed), source.total);
    Ok(aggregator.counts().clone())
}

fn refuse(aggregator: &mut Aggregator, refused: Refused) {
    aggregator.refuse(refused.reason, refused.experiment.as_deref());
}

fn hand_on(aggregator: &mut Aggregator, on_emissions: &mut impl FnMut(Vec<Emission>)) {
    let emissions = aggregator.drain();
    if !emissions.is_empty() {
        on_emissions(emissions);
    }
}

/// Books a record that the gate has let go.
fn settle(decoder: &mut Decoder, aggregator: &mut Aggregator, bytes: &[u8], fate: Fate) {
    // Only what has been decoded once comes to the gate.
    let Ok(event) = decoder.decode(bytes) else { return };
    match fate {
        Fate::Accepted => aggregator.observe(&event),
        Fate::Future => aggregator.refuse(Reject::FutureTimestamp, event.experiment.as_deref()),
    };
}

impl Lines {
    /// Reads the next canonical event into `self.line`; `false` at the end of the file.
    fn advance(&mut self) -> io::Result<bool> {
        loop {
            if let Some(mapped) = &mut self.mapped
                && let Some(event) = mapped.mapper.event(mapped.given)
            {
                mapped.given += 1;
                self.line.clear();
                self.line.extend_from_slice(event.as_bytes());
                return Ok(true);
            }
            if !self.raw()? {
                return Ok(false);
            }
            // What is no record at all is left as it is: the decoder refuses it for the same reason.
            match self.mapped.as_mut().map(|mapped| mapped.take(&self.line, self.max)) {
                Some(true) => {}
                Some(false) | None => return Ok(true),
            }
        }
    }

    /// Reads the next line that is not blank into `self.line`, without its end; `false` at the end of the file. Of a line longer
    /// than a record may be, just enough is kept to see that.
    fn raw(&mut self) -> io::Result<bool> {
        loop {
            self.line.clear();
            let taken = (&mut self.reader).take(self.max as u64 + 2).read_until(b'\n', &mut self.line).map_err(|e| self.named(e))?;
            if taken == 0 {
                return Ok(false);
            }
            if self.line.pop_if(|b| *b == b'\n').is_none() && taken == self.max + 2 {
                self.reader.skip_until(b'\n').map_err(|e| self.named(e))?;
            }
            self.line.pop_if(|b| *b == b'\r');
            if !self.line.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    fn named(&self, e: io::Error) -> io::Error {
        io::Error::new(e.kind(), format!("{}: {e}", self.path.display()))
    }
}

impl Mapped {
    /// Maps a line; `false` if it is no record.
    fn take(&mut self, line: &[u8], max: usize) -> bool {
        let text = std::str::from_utf8(line).ok().filter(|text| text.len() <= max);
        let sound = text.is_some_and(|text| self.mapper.map(&self.source, text).is_ok());
        self.given = 0;
        if sound && self.mapper.event(0).is_none() {
            self.unmapped += 1;
        }
        sound
    }
}

/// The merge of several files: which of them comes next. A single file needs none.
struct Merge {
    /// Time of each file's waiting line; `None` at its end. A line without a time comes at once.
    heads: Vec<Option<Millis>>,
}

impl Merge {
    fn start(files: &mut [Lines], decoder: &mut Decoder) -> io::Result<Merge> {
        let mut heads = Vec::new();
        if files.len() > 1 {
            for file in files {
                heads.push(head(file, decoder)?);
            }
        }
        Ok(Merge { heads })
    }

    /// Moves the next line into `line`; `false` when all files are at their end.
    fn next(&mut self, files: &mut [Lines], decoder: &mut Decoder, line: &mut Vec<u8>) -> io::Result<bool> {
        if let [file] = files {
            let more = file.advance()?;
            std::mem::swap(&mut file.line, line);
            return Ok(more);
        }
        let next = (0..files.len()).filter_map(|i| self.heads[i].map(|at| (at, i))).min();
        let Some((_, i)) = next else { return Ok(false) };
        std::mem::swap(&mut files[i].line, line);
        self.heads[i] = head(&mut files[i], decoder)?;
        Ok(true)
    }
}

fn head(file: &mut Lines, decoder: &mut Decoder) -> io::Result<Option<Millis>> {
    Ok(if file.advance()? { Some(decoder.decode(&file.line).map_or(Millis::MIN, |e| e.ts)) } else { None })
}

/// What became of a record that was held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Accepted,
    Future,
}

/// Tells records of the future from a recording that goes on later.
///
/// A record within an hour of the recording's time (the largest accepted event time), or behind it, passes. Any other is held.
/// - A later record more than an hour behind a held one, and not more than an hour behind the recording's time, refutes it: it is
///   `future_timestamp`.
/// - A held record that the next 63 do not refute is accepted, and moves the recording's time; so are those behind it that it reaches.
/// - At the end those still held are accepted, save a single one that ends a recording of more than 64 records.
///
/// The first record has no time to be measured by, and is held like the rest. At most 63 records are held.
#[derive(Default)]
struct Gate {
    time: Option<Millis>,
    accepted: u64,
    held: VecDeque<(Millis, Vec<u8>)>,
}

const JUMP: Millis = 3_600_000;
const CONFIRMED_BY: usize = 63;

impl Gate {
    /// It holds records, or has no time yet.
    fn waits(&self) -> bool {
        self.time.is_none() || !self.held.is_empty()
    }

    /// Whether a record passes with nothing held: then it counts as accepted.
    fn passes(&mut self, ts: Millis) -> bool {
        match self.time {
            Some(time) if self.held.is_empty() && ts <= time + JUMP => {
                self.time = Some(time.max(ts));
                self.accepted += 1;
                true
            }
            _ => false,
        }
    }

    /// Takes a record that did not pass, and hands out those whose fate it decides, in the order of their arrival.
    fn offer(&mut self, ts: Millis, bytes: &[u8], out: &mut impl FnMut(&[u8], Fate)) {
        match self.time {
            // Too old to say anything about the held.
            Some(time) if ts <= time - JUMP => {
                self.accepted += 1;
                out(bytes, Fate::Accepted);
            }
            Some(time) if ts <= time + JUMP => {
                self.time = Some(time.max(ts));
                while let Some((at, bytes)) = self.held.pop_front() {
                    self.release(at, &bytes, out);
                }
                self.release(ts, bytes, out);
            }
            _ => {
                self.held.retain(|(at, bytes)| {
                    let refuted = *at > ts + JUMP;
                    if refuted {
                        out(bytes, Fate::Future);
                    }
                    !refuted
                });
                self.held.push_back((ts, bytes.to_vec()));
                if self.held.len() > CONFIRMED_BY {
                    self.confirm(out);
                }
            }
        }
    }

    /// Accepts a record that the recording's time reaches, and refuses any other.
    fn release(&mut self, at: Millis, bytes: &[u8], out: &mut impl FnMut(&[u8], Fate)) {
        let Some(time) = self.time.filter(|time| at <= time + JUMP) else { return out(bytes, Fate::Future) };
        self.time = Some(time.max(at));
        self.accepted += 1;
        out(bytes, Fate::Accepted);
    }

    /// Accepts the oldest held record, and those that follow within reach.
    fn confirm(&mut self, out: &mut impl FnMut(&[u8], Fate)) {
        let Some((at, bytes)) = self.held.pop_front() else { return };
        self.time = Some(self.time.map_or(at, |time| time.max(at)));
        self.release(at, &bytes, out);
        while let Some((at, bytes)) = self.held.pop_front_if(|(at, _)| self.time.is_some_and(|time| *at <= time + JUMP)) {
            self.release(at, &bytes, out);
        }
    }

    fn finish(&mut self, out: &mut impl FnMut(&[u8], Fate)) {
        if self.held.len() == 1 && self.accepted > CONFIRMED_BY as u64 {
            self.held.retain(|(_, bytes)| {
                out(bytes, Fate::Future);
                false
            });
        }
        while !self.held.is_empty() {
            self.confirm(out);
        }
    }
}

/// Counts what is read of a file as stored.
struct Counted {
    inner: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

fn decompressed(mut raw: BufReader<Counted>) -> io::Result<Box<dyn Read + Send>> {
    let head = raw.fill_buf()?;
    let (gzip, zstd) = (head.starts_with(&[0x1F, 0x8B]), head.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]));
    Ok(if gzip {
        Box::new(ReadAhead::start(flate2::bufread::MultiGzDecoder::new(raw))?)
    } else if zstd {
        Box::new(ReadAhead::start(zstd::stream::read::Decoder::with_buffer(raw)?)?)
    } else {
        Box::new(raw)
    })
}

/// Decompresses on a thread of its own, a few blocks ahead.
struct ReadAhead {
    blocks: Receiver<io::Result<Vec<u8>>>,
    block: Vec<u8>,
    pos: usize,
}

impl ReadAhead {
    fn start(mut reader: impl Read + Send + 'static) -> io::Result<ReadAhead> {
        let (sender, blocks) = bounded(4);
        std::thread::Builder::new().name("decompress".into()).spawn(move || {
            loop {
                let mut block = Vec::with_capacity(BLOCK);
                let result = (&mut reader).take(BLOCK as u64).read_to_end(&mut block);
                // Whatever came before a fault is still handed on.
                if !block.is_empty() && sender.send(Ok(block)).is_err() {
                    return;
                }
                match result {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(e) => return drop(sender.send(Err(e))),
                }
            }
        })?;
        Ok(ReadAhead { blocks, block: Vec::new(), pos: 0 })
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.pos == self.block.len() {
            match self.blocks.recv() {
                Ok(block) => (self.block, self.pos) = (block?, 0),
                Err(_) => return Ok(0),
            }
        }
        let n = (&self.block[self.pos..]).read(buf)?;
        self.pos += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
