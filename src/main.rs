//! The program: see `guardraild --help`.

use clap::{CommandFactory, Parser, Subcommand};
use guardraild::cli::{backtest, check, demo, run, schema};
use guardraild::{app, config};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Watches running experiments and stops the bad ones: guardrails over Kafka events, and rollback webhooks that are signed, durable
/// and never doubled.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = "First time here? `guardraild demo` shows the whole story in a minute.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Backtest(backtest::BacktestArgs),
    Schema(schema::SchemaArgs),
    /// Print shell completions
    Completions {
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let status = match Cli::parse().command {
        Command::Demo(args) => return demo::run(&args, app::start_for_demo),
        Command::Run(args) => run::run(&args),
        Command::Check(args) => match config::endpoint_names(args.config.as_deref()) {
            Ok(endpoints) => check::run(&args, endpoints.as_ref()),
            Err(errors) => run::refuse(&errors, 1),
        },
        Command::Backtest(args) => backtest::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "guardraild", &mut std::io::stdout());
            0
        }
    };
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
