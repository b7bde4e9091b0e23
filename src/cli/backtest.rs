//! `guardraild backtest`: what would have been decided, and when.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::check;
use crate::engine::decision::{Decision, Timestamp};
use crate::engine::plan::Settings;
use crate::ingest::decode::Limits;
use crate::rules;
use crate::tools::backtest::{self, Summary};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Write};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  guardraild backtest --rules rules/new-checkout.yaml --events monday.ndjson.zst
  kcat -C -e -q -b kafka-1:9092 -t experiment.exposures > exposures.ndjson
  kcat -C -e -q -b kafka-1:9092 -t experiment.events |
    guardraild backtest --rules rules --events exposures.ndjson - --output json";

/// Run recorded events through the rules, at full speed and with nothing sent.
///
/// Decisions and the summary go to standard output, everything else to standard error.
/// Exit status: 0 done (whatever was decided), 1 a rule file or a recording is bad, 2 usage.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct BacktestArgs {
    /// Rule file, or directory with rule files; may be repeated.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub rules: Vec<PathBuf>,
    /// Recordings: NDJSON, plain, .gz or .zst; `-` is standard input. Several are merged by time.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub events: Vec<PathBuf>,
    /// How decisions are shown.
    #[arg(long, value_enum, default_value_t = OutputFormat::Human)]
    pub output: OutputFormat,
    /// Length of a pane.
    #[arg(long, value_name = "SPAN", default_value = "1s", value_parser = super::span)]
    pub pane: i64,
    /// How far behind the newest record an older one still counts.
    #[arg(long, value_name = "SPAN", default_value = "30s", value_parser = super::span)]
    pub lateness: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A line per decision and a table of verdicts.
    Human,
    /// One JSON object per decision, then one with the summary.
    Json,
}

/// Returns the exit status.
pub fn run(args: &BacktestArgs) -> i32 {
    if let Some(missing) = args.rules.iter().chain(args.events.iter().filter(|p| p.as_os_str() != "-")).find(|p| !p.exists()) {
        eprintln!("error: no such file or directory: {}", missing.display());
        return 2;
    }
    if args.events.iter().filter(|p| p.as_os_str() == "-").count() > 1 {
        eprintln!("error: standard input can be read once only");
        return 2;
    }
    let loaded = rules::load(&args.rules, None);
    for diagnostic in &loaded.diagnostics {
        eprint!("{}", diagnostic.human(check::color_stderr()));
    }
    if loaded.refused > 0 || loaded.rules.is_empty() {
        eprintln!("error: {} of {} rule files can be used; nothing was read", loaded.rules.len(), loaded.files);
        return 1;
    }
    let settings = Settings { pane: args.pane, lateness: args.lateness, ..Settings::default() };
    let bar = progress_bar();
    let json = args.output == OutputFormat::Json;
    let show = |decision: &Decision| bar.suspend(|| show(decision, json));
    let result = backtest::run(loaded.catalog, &settings, Limits::default(), &args.events, show, |read, total| {
        bar.set_length(total.unwrap_or(read));
        bar.set_position(read);
    });
    bar.finish_and_clear();
    match result {
        Ok(summary) => {
            print_summary(&summary, json);
            0
        }
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    }
}

fn progress_bar() -> ProgressBar {
    // Hidden unless standard error is a terminal.
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(decision: &Decision, json: bool) {
    let line = match json {
        // A decision holds no map and no float that JSON cannot write.
        true => serde_json::to_string(decision).unwrap_or_default(),
        false => {
            let held = if decision.covered_by.is_some() { " (done already)" } else { "" };
            let whom = if decision.bucket.is_empty() { "-" } else { &decision.bucket };
            let (at, action) = (Timestamp(decision.decided_at), decision.action.name());
            format!("{at}  {action:<8} {} {whom}: {}{held}", decision.experiment, decision.reason)
        }
    };
    // A closed pipe is no reason to stop counting.
    let _ = writeln!(io::stdout(), "{line}");
}

fn print_summary(summary: &Summary, json: bool) {
    let mut out = io::stdout().lock();
    if json {
        let _ = writeln!(out, "{}", serde_json::json!({ "summary": summary }));
        return;
    }
    let counts = &summary.counts;
    let _ = writeln!(
        out,
        "\n{} records: {} accepted, {} late, {} duplicate, {} unattributed, {} of unknown experiments, {} inactive, {} rejected",
        summary.records,
        counts.accepted,
        counts.late,
        counts.duplicate,
        counts.unattributed,
        counts.unknown_experiment,
        counts.inactive,
        counts.rejected.total()
    );
    if let (Some(first), Some(last)) = (summary.first, summary.last) {
        let _ = writeln!(out, "from {} to {}; decisions: {}", Timestamp(first), Timestamp(last), summary.decisions);
    }
    for state in &summary.experiments {
        for g in &state.guardrails {
            let verdict = serde_json::to_value(g.verdict).unwrap_or_default();
            let verdict = verdict.as_str().unwrap_or_default().to_owned();
            let _ = writeln!(out, "{verdict:<9} {} {} {}: {}", state.experiment, g.bucket, g.guardrail, g.reason);
        }
    }
}
