//! `guardraild man`: manual pages of all commands, from what `--help` says.
#![allow(clippy::print_stderr)]

use clap::{Args, Command};
use std::fs;
use std::path::{Path, PathBuf};

/// Write manual pages of all commands
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  guardraild man --out /usr/local/share/man/man1 && man guardraild-readout")]
pub struct ManArgs {
    /// The directory; it is made if need be
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: &ManArgs, program: Command) -> i32 {
    match write(&args.out, program) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {}: {error}", args.out.display());
            1
        }
    }
}

fn write(dir: &Path, program: Command) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut program = program.disable_help_subcommand(true);
    program.build();
    clap_mangen::generate_to(program, dir)
}
