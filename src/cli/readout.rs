//! `guardraild readout`: sections 7, 8 and 9 of the runbook, filled in, and the data behind them.
#![allow(clippy::print_stderr)]

use super::client::{Address, encoded};
use crate::app::dossier;
use crate::readout::{self, Dossier, export};
use crate::store::Store;
use clap::{Args, ValueEnum};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  guardraild readout new-checkout > readout.md
  guardraild readout new-checkout --html readout.html
  guardraild readout new-checkout --state-dir /var/lib/guardraild --export new-checkout-data";

/// Fill in the runbook's execution log, final readout and artifacts (sections 7, 8 and 9)
///
/// As Markdown, as one HTML file with charts that needs nothing else, or with the data behind it as CSV and NDJSON. Of a running experiment and of one
/// that has ended, from a running daemon, or from its files whether it runs or not. What people have noted (`guardraild annotate`) stands in its place.
///
/// Exit status: 0 written, 1 not.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ReadoutArgs {
    experiment: String,
    /// What is printed: Markdown, or the data as one JSON object
    #[arg(long, value_enum, default_value_t = Printed::Markdown)]
    output: Printed,
    /// Write what would be printed to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write a page with charts to this file; then nothing is printed unless `--out` says where
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write readout, log, decisions and figures into this directory; then nothing is printed unless `--out` says where
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Read this state directory, whether its daemon runs or not, instead of asking a daemon
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    daemon: Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Printed {
    Markdown,
    Json,
}

pub fn run(args: &ReadoutArgs) -> i32 {
    match write(args) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    }
}

fn write(args: &ReadoutArgs) -> Result<(), String> {
    let dossier = match &args.state_dir {
        Some(dir) => from_files(dir, &args.experiment)?,
        None => {
            let answer = args.daemon.ask(&format!("experiments/{}/readout", encoded(&args.experiment)), None)?;
            serde_json::from_value(answer).map_err(|e| format!("the daemon is of another version: {e}"))?
        }
    };
    if let Some(path) = &args.html {
        save(path, &readout::html(&dossier))?;
    }
    if let Some(dir) = &args.export {
        fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        for (name, content) in export::files(&dossier) {
            save(&dir.join(name), &content)?;
        }
    }
    let printed = || match args.output {
        Printed::Markdown => readout::markdown(&dossier),
        Printed::Json => format!("{}\n", serde_json::to_string(&dossier).unwrap_or_default()),
    };
    match &args.out {
        Some(path) => save(path, &printed())?,
        // A closed pipe is no failure.
        None if args.html.is_none() && args.export.is_none() => drop(io::stdout().write_all(printed().as_bytes())),
        None => {}
    }
    Ok(())
}

fn save(path: &Path, content: &str) -> Result<(), String> {
    fs::write(path, content).map_err(|e| format!("{}: {e}", path.display()))?;
    eprintln!("{}", path.display());
    Ok(())
}

fn from_files(dir: &Path, experiment: &str) -> Result<Dossier, String> {
    let database = dir.join("guardraild.db");
    if !database.exists() {
        return Err(format!("no database in {}: it is the `state_dir` of the configuration", dir.display()));
    }
    let store = Store::open_to_read(&database).map_err(|e| e.to_string())?;
    let found = dossier::read(&store, experiment, None).map_err(|e| e.to_string())?;
    found.ok_or_else(|| {
        let known = store.remembered().unwrap_or_default().join(", ");
        format!("nothing is kept of `{experiment}`; there is something of: {}", if known.is_empty() { "none" } else { &known })
    })
}
