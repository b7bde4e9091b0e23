//! Reading a recording in blocks of whole lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The lines of one recording, block by block.
pub struct Blocks {
    path: PathBuf,
    reader: Box<dyn Read + Send>,
    chunk: Vec<u8>,
    /// The beginning of a line whose end has not been read, of a record that is too long no more than that takes to see.
    rest: Vec<u8>,
    /// Where `rest` begins, and how far has been read; in the file as it is without compression.
    at: u64,
    passed: u64,
    /// What comes up to the next end of a line belongs to a record that is too long.
    skipping: bool,
    max: usize,
}

/// Whole lines, but for the ends of those that are too long.
pub struct Raw {
    /// Where they begin in the file, as it is without compression.
    pub at: u64,
    pub text: Vec<u8>,
}

impl Blocks {
    /// Opens a recording at a place where a line begins; `-` is standard input, which has no place but its beginning. Compression is told by the first bytes, not by the
    /// name. `max`: bytes of a record. Also returns the bytes stored, where that is known.
    ///
    /// # Errors
    /// It cannot be opened or read; the error names it.
    pub fn open(path: &Path, from: u64, (block, max): (usize, usize), read: &Arc<AtomicU64>) -> io::Result<(Blocks, Option<u64>)> {
        let (reader, length) = reader(path, from, block, read).map_err(|e| named(path, &e))?;
        let path = path.to_owned();
        Ok((Blocks { path, reader, chunk: vec![0; block], rest: Vec::new(), at: from, passed: from, skipping: false, max }, length))
    }

    /// The next lines; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read or decompressed; the error names it.
    pub fn next(&mut self) -> io::Result<Option<Raw>> {
        loop {
            let n = match self.reader.read(&mut self.chunk) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(named(&self.path, &e)),
            };
            let (new, at) = (&self.chunk[..n], self.at);
            self.passed += n as u64;
            if n == 0 {
                self.at = self.passed;
                let text = std::mem::take(&mut self.rest);
                return Ok((!text.is_empty()).then_some(Raw { at, text }));
            }
            let Some(last) = memchr::memrchr(b'\n', new) else {
                if !self.skipping {
                    self.rest.extend_from_slice(new);
                    self.skipping = self.rest.len() > self.max + 1;
                    self.rest.truncate(self.max + 2);
                }
                continue;
            };
            let from = if std::mem::take(&mut self.skipping) { memchr::memchr(b'\n', new).unwrap_or(last) } else { 0 };
            let mut text = std::mem::take(&mut self.rest);
            text.extend_from_slice(&new[from..=last]);
            self.rest.extend_from_slice(&new[last + 1..]);
            self.at = self.passed - self.rest.len() as u64;
            return Ok(Some(Raw { at, text }));
        }
    }
}

/// The lines of a text that are not blank, without their ends (LF or CRLF). Of one that is longer than a record may be, just enough to see that.
pub fn lines(text: &[u8], max: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let end = memchr::memchr(b'\n', rest).or((!rest.is_empty()).then_some(rest.len()))?;
            let line = &rest[..end.min(max + 2)];
            rest = rest.get(end + 1..).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    })
}

fn named(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

/// The recording without compression, from a place on, and its length as stored.
fn reader(path: &Path, from: u64, block: usize, read: &Arc<AtomicU64>) -> io::Result<(Box<dyn Read + Send>, Option<u64>)> {
    let counted = |inner| Counted { inner, read: Arc::clone(read) };
    if path == Path::new("-") {
        return Ok((decompressed(BufReader::with_capacity(block, counted(Box::new(io::stdin()))))?, None));
    }
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let length = meta.is_file().then_some(meta.len());
    if from > 0 {
        let mut head = Vec::new();
        (&mut file).take(4).read_to_end(&mut head)?;
        if compression(&head).is_none() {
            file.seek(SeekFrom::Start(from))?;
            read.fetch_add(from.min(meta.len()), Ordering::Relaxed);
            return Ok((Box::new(counted(Box::new(file))), length));
        }
        file.rewind()?;
    }
    let mut reader = decompressed(BufReader::with_capacity(block, counted(Box::new(file))))?;
    io::copy(&mut (&mut reader).take(from), &mut io::sink())?;
    Ok((reader, length))
}

enum Compression {
    Gzip,
    Zstd,
}

/// By a file's first bytes.
fn compression(head: &[u8]) -> Option<Compression> {
    match head {
        [0x1F, 0x8B, ..] => Some(Compression::Gzip),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some(Compression::Zstd),
        _ => None,
    }
}

fn decompressed(mut raw: BufReader<Counted>) -> io::Result<Box<dyn Read + Send>> {
    Ok(match compression(raw.fill_buf()?) {
        Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
        Some(Compression::Zstd) => Box::new(zstd::stream::read::Decoder::with_buffer(raw)?),
        None => Box::new(raw),
    })
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
