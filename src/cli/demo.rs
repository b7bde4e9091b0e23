//! `guardraild demo`.
#![allow(clippy::print_stderr)]

use crate::tools::demo::{self, Daemon, Options};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  guardraild demo
  guardraild demo --ci --dir /tmp/first-look     and keep rule, configuration and database

Exit status: 0 shown, 1 it could not run, or --ci missed something, 2 usage.";

/// See a fault detected, rolled back and confirmed: broker, service, flag service and daemon in one process
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// End after N seconds at the latest [default: 48, or on a terminal at Ctrl-C]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Plain lines; exit 0 only if everything was observed, within 60 seconds
    #[arg(long)]
    ci: bool,
    /// Seed of the synthetic traffic
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the daemon's API listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    http: SocketAddr,
    /// Keep the rule, the configuration and the database in DIR, which must be new or empty
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Exit 0; 1 where `--ci` missed something, or the demo could not run.
pub fn run(args: &Args, start: impl FnOnce(&Path) -> anyhow::Result<Daemon>) -> ExitCode {
    let options =
        Options { limit: args.seconds.map(Duration::from_secs), ci: args.ci, seed: args.seed, http: args.http, dir: args.dir.clone() };
    match demo::run(&options, start) {
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
        Ok(report) if args.ci && !report.missing.is_empty() => {
            eprintln!("demo: not observed:");
            report.missing.iter().for_each(|what| eprintln!("  - {what}"));
            ExitCode::FAILURE
        }
        Ok(_) => ExitCode::SUCCESS,
    }
}
