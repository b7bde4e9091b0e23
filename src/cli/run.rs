//! `guardraild run`: the daemon.
#![allow(clippy::print_stderr)]

use crate::app;
use crate::config::{Config, ConfigErrors};
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  guardraild run --config guardraild.yaml
  GUARDRAILD_KAFKA__BROKERS='[kafka-1:9092]' guardraild run --set telemetry.log.format=human";

/// Configuration that cannot be used: `EX_CONFIG` of sysexits.
pub const BAD_CONFIG: i32 = 78;

/// Run the daemon.
///
/// Settings come from the built-in defaults, then FILE, then GUARDRAILD_ variables, then --set; secrets only by reference.
/// Exit status: 0 stopped by a signal, 1 failed, 2 usage, 78 the configuration cannot be used.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// Configuration file (YAML); `config/default.yaml` describes every field.
    #[arg(long, value_name = "FILE", env = "GUARDRAILD_CONFIG")]
    pub config: Option<PathBuf>,
    /// Override one setting: `--set kafka.brokers='[kafka-1:9092]'`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub overrides: Vec<(String, String)>,
}

/// Returns the exit status.
pub fn run(args: &RunArgs) -> i32 {
    let config = match Config::load(args.config.as_deref(), &args.overrides) {
        Ok(config) => config,
        Err(errors) => return refuse(&errors, BAD_CONFIG),
    };
    let (path, overrides) = (args.config.clone(), args.overrides.clone());
    match app::run(config, Box::new(move || Config::load(path.as_deref(), &overrides))) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("guardraild: {error:#}");
            if error.is::<app::BadConfig>() { BAD_CONFIG } else { 1 }
        }
    }
}

/// Shows what is wrong with a configuration; returns `status`.
pub fn refuse(errors: &ConfigErrors, status: i32) -> i32 {
    eprintln!("{errors}");
    status
}

/// `KEY=VALUE` of `--set`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in http.listen=127.0.0.1:9000")?;
    Ok((key.to_owned(), value.to_owned()))
}
