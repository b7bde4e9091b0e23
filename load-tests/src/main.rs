//! Traffic generator and benchmarks of guardraild. See README.md beside this crate.

mod assignments;
mod backtest;
mod bare;
mod bench;
mod calibrate;
mod case;
mod check;
mod crash;
mod generate;
mod judge;
mod latency;
mod pending;
mod ratio;
mod rig;
mod side;
mod soak;
mod stage;
mod table;
mod usage;
mod viewers;

use clap::{Parser, Subcommand};

/// As in the daemon's own program.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(about = "Traffic generator and benchmarks of guardraild")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a case's traffic to a file, to standard output or to a broker
    Generate(generate::Args),
    /// Compare a bare poll loop with the whole daemon on the same topics: CPU and memory
    Bench(bench::Args),
    /// A recording in a file through the engine, beside a bare scan of the same file: CPU and rate
    Backtest(backtest::Args),
    /// Memory of the daemon per exposed unit
    Units(bench::UnitsArgs),
    /// Memory and CPU of remembering who saw what: tens of millions of users, a thousand experiments
    Assignments(assignments::Args),
    /// Time from a breach to the first webhook attempt under load
    Latency(latency::Args),
    /// False alarms and detection delays of the tests, through the whole engine
    Calibrate(calibrate::Args),
    /// Kill a daemon again and again, by SIGKILL and by power cuts: nothing may be lost, nothing doubled
    Crash(crash::Args),
    /// Start with thousands of deliveries pending: CPU, memory, and how long a kill waits
    Pending(pending::Args),
    /// Check a thousand rule files: CPU and time
    Check(check::Args),
    /// CPU of the engine alone, in virtual time: per event, per experiment and pane, per view and checkpoint
    Judge(judge::Args),
    /// CPU of the daemon with and without people who watch its dashboard, and how long they wait
    Viewers(viewers::Args),
    /// Broker, traffic, receivers and files of a daemon whose dashboard is to be seen
    Stage(stage::Args),
    /// Overload a daemon for a while, and see that it keeps its memory, loses nothing and recovers
    Soak(soak::Args),
    /// Serve an embedded broker until standard input closes
    Broker(rig::BrokerArgs),
    /// One measured side, in a process of its own; prints one JSON line
    #[command(hide = true)]
    Side(side::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Backtest(args) => backtest::run(&args),
        Command::Units(args) => bench::units(&args),
        Command::Assignments(args) => assignments::run(&args),
        Command::Latency(args) => latency::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Crash(args) => crash::run(&args),
        Command::Pending(args) => pending::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Judge(args) => judge::run(&args),
        Command::Viewers(args) => viewers::run(&args),
        Command::Stage(args) => stage::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Broker(args) => rig::serve(&args),
        Command::Side(args) => side::run(&args),
    }
}
