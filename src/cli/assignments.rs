//! `guardraild assignments`: who has been seen in which bucket, as CSV.
#![allow(clippy::print_stderr)]

use super::client::{Address, encoded};
use crate::app::assignments;
use crate::store::Store;
use clap::Args;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  guardraild assignments new-checkout --token-file operator.token > assignments.csv
  guardraild assignments new-checkout --state-dir /var/lib/guardraild | zstd > assignments.csv.zst";

/// Print the observed assignments of an experiment as CSV: unit, bucket, first exposure
///
/// They are those of the daemon's last checkpoint. A unit is the hash of tenant_id and user_id, since names are nowhere kept; docs/assignments.md
/// says how to join it. An experiment's assignments leave when it ends.
///
/// Exit status: 0 printed, 1 not, or not all.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct AssignmentsArgs {
    experiment: String,
    /// Read this state directory, whether its daemon runs or not, instead of asking a daemon
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    daemon: Address,
}

pub fn run(args: &AssignmentsArgs) -> i32 {
    let mut out = BufWriter::new(io::stdout().lock());
    let copied = match &args.state_dir {
        Some(dir) => from_files(dir, &args.experiment, &mut out),
        None => args.daemon.download(&format!("experiments/{}/assignments", encoded(&args.experiment)), &mut out),
    };
    match copied {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    }
}

fn from_files(dir: &Path, experiment: &str, out: &mut impl Write) -> Result<(), String> {
    let database = dir.join("guardraild.db");
    if !database.exists() {
        return Err(format!("no database in {}: it is the `state_dir` of the configuration", dir.display()));
    }
    let store = Store::open(&database).map_err(|e| e.to_string())?;
    match assignments::write(&store, experiment, out) {
        Ok(0) => Err(format!("no assignments of `{experiment}` in {}: it has ended, or nobody was exposed", dir.display())),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
