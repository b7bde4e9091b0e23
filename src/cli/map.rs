//! `guardraild map`: which canonical events the records of a source stand for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::check;
use crate::engine::plan::FieldTable;
use crate::ingest::decode::{Decoder, Limits};
use crate::ingest::file::Recording;
use crate::mapping::{Source, Sources};
use crate::rules;
use crate::rules::diagnostic::nearest;
use clap::Args;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  guardraild map --rules rules --source gateway gateway.ndjson
  kcat -C -e -q -c 10 -b kafka-1:9092 -t gateway.requests | guardraild map --rules rules --source gateway";

/// Show which events the records of a source stand for.
///
/// Events go to standard output, one a line; what would be refused, and why, to standard error.
/// Exit status: 0 every record stands for events or for none, 1 some would be refused, or a file cannot be used, 2 usage.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct MapArgs {
    /// Rule files, files of sources, or directories of them.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub rules: Vec<PathBuf>,
    /// The source.
    #[arg(long, value_name = "NAME")]
    pub source: String,
    /// Records, one a line: plain, .gz or .zst; those with a schema as plain JSON; `-` is standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    pub files: Vec<PathBuf>,
}

/// Returns the exit status.
pub fn run(args: &MapArgs) -> i32 {
    let loaded = rules::load(&args.rules, None);
    for diagnostic in loaded.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()) {
        eprint!("{}", diagnostic.human(check::color_stderr()));
    }
    let source = match source(&args.source, &loaded.sources) {
        Ok(source) => source,
        Err(error) => {
            eprintln!("{error}");
            return 2;
        }
    };
    match map(source, &args.files, BufWriter::new(io::stdout().lock())) {
        Ok(refused) => i32::from(refused > 0),
        // A closed pipe (`map | head`) is no reason to fail.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    }
}

/// The source of a name.
///
/// # Errors
/// Which there are, where there is none.
pub fn source<'a>(name: &str, sources: &'a Sources) -> Result<&'a Arc<Source>, String> {
    sources.named(name).ok_or_else(|| {
        let known: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        let near = nearest(name, known.iter().copied()).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("error: the rules have no source `{name}`{near} (there are: {there})")
    })
}

/// Writes the events; returns how many were refused.
fn map(source: &Arc<Source>, files: &[PathBuf], mut out: impl Write) -> io::Result<u64> {
    let limits = Limits::default();
    let mut decoder = Decoder::new(&FieldTable::default(), limits);
    let (mut events, mut refused) = (0u64, 0u64);
    let recording = Recording { files, source: Some(source), limits };
    let unmapped = recording.each(|event| match decoder.decode(event) {
        Ok(_) => {
            events += 1;
            out.write_all(event)?;
            out.write_all(b"\n")
        }
        Err(why) => {
            refused += 1;
            eprintln!("refused, {}: {}", why.reason.name(), String::from_utf8_lossy(event));
            Ok(())
        }
    })?;
    out.flush()?;
    eprintln!("events: {events}; refused: {refused}; records that stand for none: {unmapped}");
    Ok(refused)
}
