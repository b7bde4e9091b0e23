//! `guardraild check`: every fault of rule files in one run.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::rules::{self, Loaded, Severity};
use clap::{Args, ValueEnum};
use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  guardraild check rules --config guardraild.yaml     endpoint names are checked, too
  guardraild check --format json --deny-warnings      for CI";

/// Check rule files and show every fault at once.
///
/// Errors keep a file out of force. Warnings say what is written well and will mislead; notes advise, and never fail a build.
/// Exit status: 0 good, 1 errors, 2 usage or a path that does not exist, 3 warnings under --deny-warnings.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CheckArgs {
    /// Rule files, or directories with rule files.
    #[arg(value_name = "PATH", default_value = "rules")]
    pub paths: Vec<PathBuf>,
    /// How faults are shown.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// Exit with 3 when there are warnings.
    #[arg(long)]
    pub deny_warnings: bool,
    /// The daemon's configuration file: endpoint names are checked against it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Source line, caret and help.
    Human,
    /// One JSON object per line.
    Json,
}

/// Prints the faults to standard output and one line of summary to standard error; returns the exit status.
/// `endpoints` are the names that `--config` defines.
pub fn run(args: &CheckArgs, endpoints: Option<&BTreeSet<String>>) -> i32 {
    if let Some(missing) = args.paths.iter().find(|p| !p.exists()) {
        eprintln!("error: no such file or directory: {}", missing.display());
        return 2;
    }
    let loaded = rules::load(&args.paths, endpoints);
    // A closed pipe (`check | head`) is no reason to fail; the exit status tells what was found.
    let _ = show(&loaded, args.format, io::stdout().lock());
    let (errors, warnings) = count(&loaded);
    eprintln!("checked {}: {}, {}", plural(loaded.files, "file"), plural(errors, "error"), plural(warnings, "warning"));
    match (errors, warnings) {
        (1.., _) => 1,
        (0, 1..) if args.deny_warnings => 3,
        _ => 0,
    }
}

fn show(loaded: &Loaded, format: Format, mut out: impl Write) -> io::Result<()> {
    let color = color(io::stdout().is_terminal());
    for diagnostic in &loaded.diagnostics {
        match format {
            Format::Human => writeln!(out, "{}", diagnostic.human(color))?,
            Format::Json => write!(out, "{}", diagnostic.json())?,
        }
    }
    out.flush()
}

fn count(loaded: &Loaded) -> (usize, usize) {
    let of = |severity| loaded.diagnostics.iter().filter(|d| d.severity == severity).count();
    (of(Severity::Error), of(Severity::Warning))
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn color(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Whether diagnostics on standard error are coloured.
pub(super) fn color_stderr() -> bool {
    color(io::stderr().is_terminal())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str, deny_warnings: bool) -> i32 {
        run(&CheckArgs { paths: vec![path.into()], format: Format::Json, deny_warnings, config: None }, None)
    }

    #[test]
    fn the_exit_status_tells_what_was_found() {
        assert_eq!(status("rules", true), 0);
        assert_eq!(status("tests/bad_rules/unknown_key.yaml", false), 1);
        assert_eq!(status("tests/bad_rules/rare_event.yaml", false), 0);
        assert_eq!(status("tests/bad_rules/rare_event.yaml", true), 3);
        assert_eq!(status("no/such/rules", false), 2);
    }
}
