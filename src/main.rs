//! The program: see `guardraild --help`.

use clap::{CommandFactory, Parser, Subcommand};
use guardraild::app;
use guardraild::cli::{
    assignments, audit, backtest, check, client, demo, explain, generate, get, init, log, man, map, readout, run, schema, simulate, stats,
    status, test, test_endpoint,
};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Watches running experiments and stops the bad ones: guardrails over Kafka events, and rollback webhooks that are signed, durable
/// and never doubled.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = FIRST_STEPS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const FIRST_STEPS: &str = "\
First steps:
  guardraild demo                                            the whole story in a minute
  guardraild init --brokers kafka-1:9092                     a rule file from what your topics hold
  guardraild check rules                                     is my rule file right?
  guardraild backtest --rules rules --events day.ndjson.zst  what would it have decided?
  guardraild run --config guardraild.yaml                    the daemon";

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(run::RunArgs),
    Init(init::InitArgs),
    Check(check::CheckArgs),
    Test(test::TestArgs),
    Backtest(backtest::BacktestArgs),
    Map(map::MapArgs),
    Simulate(simulate::SimulateArgs),
    Audit(audit::AuditArgs),
    Get(get::GetArgs),
    Status(status::StatusArgs),
    Explain(explain::ExplainArgs),
    Log(log::LogArgs),
    Annotate(log::AnnotateArgs),
    Readout(readout::ReadoutArgs),
    Assignments(assignments::AssignmentsArgs),
    /// Stop acting on an experiment, never measuring; `kill` is not held back
    Hold(client::HoldArgs),
    /// Lift holds and re-arm every guardrail that has tripped
    Resume(client::OperateArgs),
    /// Roll back now: with outbox, log and confirmation, as the daemon's own decisions
    Rollback(client::ActArgs),
    /// Pull the kill switch now
    Kill(client::ActArgs),
    Schema(schema::SchemaArgs),
    Generate(generate::GenerateArgs),
    TestEndpoint(test_endpoint::TestEndpointArgs),
    /// Recompute evidence: a test and its sufficient statistics per JSON line on standard input
    #[command(after_help = stats::EXAMPLES)]
    Stats,
    /// Print shell completions
    #[command(after_help = "Example:\n  guardraild completions bash > /etc/bash_completion.d/guardraild")]
    Completions {
        shell: clap_complete::Shell,
    },
    Man(man::ManArgs),
}

fn main() -> ExitCode {
    let status = match Cli::parse().command {
        Command::Demo(args) => return demo::run(&args, app::start_for_demo),
        Command::Run(args) => run::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Backtest(args) => backtest::run(&args),
        Command::Map(args) => map::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Get(args) => get::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Log(args) => log::log(&args),
        Command::Annotate(args) => log::annotate(&args),
        Command::Readout(args) => readout::run(&args),
        Command::Assignments(args) => assignments::run(&args),
        Command::Hold(args) => client::hold(&args),
        Command::Resume(args) => client::resume(&args),
        Command::Rollback(args) => client::rollback(&args),
        Command::Kill(args) => client::kill(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::TestEndpoint(args) => test_endpoint::run(&args),
        Command::Stats => match stats::run(std::io::stdin().lock(), std::io::stdout().lock()) {
            Ok(()) => 0,
            Err(_) => 1,
        },
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "guardraild", &mut std::io::stdout());
            0
        }
        Command::Man(args) => man::run(&args, Cli::command()),
    };
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
