//! `guardraild backtest`: what would have been decided, and when.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::{check, map, run, show};
use crate::config::Config;
use crate::engine::decision::{Decision, Timestamp};
use crate::engine::plan::Settings;
use crate::engine::time::Millis;
use crate::ingest::decode::Limits;
use crate::ingest::range::{Range, RangeConfig};
use crate::rules::{self, Loaded};
use crate::telemetry::Metrics;
use crate::tools::backtest::{self, Summary};
use crate::{app, clock};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  guardraild backtest --rules rules/new-checkout.yaml --events monday.ndjson.zst
  guardraild backtest --rules rules --brokers kafka-1:9092 --since 2h
  guardraild backtest --rules rules --config guardraild.yaml --since 2026-12-02T09:00:00Z --output json
  kcat -C -e -q -b kafka-1:9092 -t experiment.events | guardraild backtest --rules rules --events -";

const USAGE: &str = "\
guardraild backtest [OPTIONS] --rules <PATH>... --events <FILE>...
       guardraild backtest [OPTIONS] --rules <PATH>... --brokers <HOST:PORT> [--since <TIME>] [--until <TIME>]";

/// Without a word from the brokers for this long, a backtest ends.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where there is no terminal, a line of progress this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Run recorded events through the rules, at full speed and with nothing sent.
///
/// Events come from files, or from a range of the experiment's topics in Kafka, which is read without a consumer group: nothing is
/// joined or committed, and a running daemon does not notice.
///
/// Decisions and the summary go to standard output, everything else to standard error.
/// Exit status: 0 done (whatever was decided), 1 a rule file, a recording or Kafka cannot be used, 2 usage.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub struct BacktestArgs {
    /// Rule file, or directory with rule files; may be repeated.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub rules: Vec<PathBuf>,
    /// Recordings: NDJSON, plain, .gz or .zst; `-` is standard input. Several are merged by time.
    #[arg(long, value_name = "FILE", num_args = 1..,
          required_unless_present_any = ["brokers", "since", "until", "config", "overrides"],
          conflicts_with_all = ["brokers", "since", "until", "config", "overrides"])]
    pub events: Vec<PathBuf>,
    /// Read the recordings by this source of the rules: lines are records as it describes them, those with a schema as plain JSON.
    #[arg(long, value_name = "NAME", requires = "events")]
    pub source: Option<String>,
    /// How decisions are shown.
    #[arg(long, value_enum, default_value_t = OutputFormat::Human)]
    pub output: OutputFormat,
    /// Length of a pane [default: 1s, or the configuration's].
    #[arg(long, value_name = "SPAN", value_parser = super::span)]
    pub pane: Option<i64>,
    /// How far behind the newest record an older one still counts [default: 30s, or the configuration's].
    #[arg(long, value_name = "SPAN", value_parser = super::span)]
    pub lateness: Option<i64>,
    /// Brokers to read from, separated by commas, instead of the configuration's.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', help_heading = "Kafka")]
    pub brokers: Vec<String>,
    /// First moment, by Kafka's timestamps: RFC 3339, or a span before now such as 2h [default: the oldest record].
    #[arg(long, value_name = "TIME", value_parser = moment, help_heading = "Kafka")]
    pub since: Option<Millis>,
    /// Moment to end before [default: the newest record at the start].
    #[arg(long, value_name = "TIME", value_parser = moment, help_heading = "Kafka")]
    pub until: Option<Millis>,
    /// Configuration file of the daemon, for its `kafka` and `engine` sections (topics, TLS, SASL) [env: GUARDRAILD_CONFIG].
    #[arg(long, value_name = "FILE", help_heading = "Kafka")]
    pub config: Option<PathBuf>,
    /// Override one setting: `--set kafka.topics.events='[shop.events]'`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = run::key_value, help_heading = "Kafka")]
    pub overrides: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A line per decision and a table of verdicts.
    Human,
    /// One JSON object per decision, then one with the summary.
    Json,
}

/// A moment as RFC 3339, or as a span before now.
fn moment(text: &str) -> Result<Millis, String> {
    if let Ok(span) = super::span(text) {
        return Ok(clock::now().saturating_sub(span));
    }
    let moment = text.parse::<jiff::Timestamp>();
    moment.map(|t| t.as_millisecond()).map_err(|_| "write a time such as 2026-12-02T09:00:00Z, or a span before now such as 2h".into())
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
    if let (Some(since), Some(until)) = (args.since, args.until)
        && since >= until
    {
        eprintln!("error: --since {} is not before --until {}", Timestamp(since), Timestamp(until));
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
    let result = if args.events.is_empty() { kafka(args, loaded) } else { files(args, loaded) };
    match result {
        Ok(summary) => {
            print_summary(&summary, args.output == OutputFormat::Json);
            0
        }
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

fn files(args: &BacktestArgs, loaded: Loaded) -> Result<Summary, String> {
    let settings = settings(args, Settings::default());
    let source = args.source.as_deref().map(|name| map::source(name, &loaded.sources)).transpose()?;
    let bar = progress_bar("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let json = args.output == OutputFormat::Json;
    let show = |decision: &Decision| bar.suspend(|| print(decision, json));
    let result = backtest::run(loaded.catalog, &settings, Limits::default(), (&args.events, source), show, |read, total| {
        bar.set_length(total.unwrap_or(read));
        bar.set_position(read);
    });
    bar.finish_and_clear();
    result.map_err(|error| format!("error: {error}"))
}

fn kafka(args: &BacktestArgs, loaded: Loaded) -> Result<Summary, String> {
    let mut overrides = args.overrides.clone();
    if !args.brokers.is_empty() {
        overrides.push(("kafka.brokers".into(), format!("[{}]", args.brokers.join(","))));
    }
    let path = args.config.clone().or_else(|| std::env::var_os("GUARDRAILD_CONFIG").map(PathBuf::from));
    let (kafka, engine) = Config::load_input(path.as_deref(), &overrides).map_err(|errors| errors.to_string())?;
    let failed = |error| format!("error: {error}");
    let optional = kafka.topics.control.iter().cloned().chain(loaded.sources.topics().map(str::to_owned)).collect();
    let config = RangeConfig {
        kafka: app::kafka_config(&kafka, &loaded.sources),
        optional,
        since: args.since,
        until: args.until,
        patience: PATIENCE,
    };
    let range = Range::open(config, clock::now).map_err(failed)?;
    for topic in range.left_out() {
        eprintln!("warning: no such topic: {topic}; going on without it");
    }
    let layouts = app::layouts(&kafka, loaded.sources, &Metrics::default()).map_err(|error| format!("error: {error}"))?;
    let settings = settings(args, engine.settings);
    let limits = Limits { max_record_bytes: engine.max_record, ..Limits::default() };
    let bar = progress_bar("{bar:30} {human_pos}/{human_len} records {per_sec} {eta}");
    let lines = !io::stderr().is_terminal();
    let mut said = Instant::now();
    let json = args.output == OutputFormat::Json;
    let show = |decision: &Decision| bar.suspend(|| print(decision, json));
    let result = backtest::run_range((loaded.catalog, &layouts), &settings, limits, (range, kafka.max_future), show, |read, total| {
        bar.set_length(total);
        bar.set_position(read);
        if lines && said.elapsed() >= LINE_EVERY {
            said = Instant::now();
            eprintln!("{read} of {total} records ({}%)", read * 100 / total.max(1));
        }
    });
    bar.finish_and_clear();
    result.map_err(failed)
}

fn settings(args: &BacktestArgs, from: Settings) -> Settings {
    Settings { pane: args.pane.unwrap_or(from.pane), lateness: args.lateness.unwrap_or(from.lateness), ..from }
}

/// Hidden unless standard error is a terminal.
fn progress_bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn print(decision: &Decision, json: bool) {
    let line = match json {
        // A decision holds no map and no float that JSON cannot write.
        true => serde_json::to_string(decision).unwrap_or_default(),
        false => {
            let held = match (&decision.covered_by, decision.held_by) {
                (Some(_), _) => " (done already)",
                (None, Some(_)) => " (held back)",
                (None, None) => "",
            };
            let whom = if decision.bucket.is_empty() { "-" } else { &decision.bucket };
            let (at, action) = (Timestamp(decision.decided_at), decision.action.name());
            let experiment = if decision.experiment.is_empty() { "-" } else { &decision.experiment };
            format!("{at}  {action:<8} {experiment} {whom}: {}{held}", decision.reason)
        }
    };
    // A closed pipe is no reason to stop counting.
    let _ = writeln!(io::stdout(), "{}", show::printable(&line));
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
        "\n{} records: {} accepted, {} late, {} duplicate, {} unattributed, {} of unknown experiments, {} inactive, {} unmapped, {} rejected",
        summary.records,
        counts.accepted,
        counts.late,
        counts.duplicate,
        counts.unattributed,
        counts.unknown_experiment,
        counts.inactive,
        counts.unmapped,
        counts.rejected.total()
    );
    if let (Some(first), Some(last)) = (summary.first, summary.last) {
        let _ = writeln!(out, "from {} to {}; decisions: {}", Timestamp(first), Timestamp(last), summary.decisions);
    }
    for state in &summary.experiments {
        for g in &state.guardrails {
            let verdict = serde_json::to_value(g.verdict).unwrap_or_default();
            let verdict = verdict.as_str().unwrap_or_default().to_owned();
            let _ = writeln!(out, "{verdict:<9} {} {} {}: {}", state.experiment, g.bucket, g.guardrail, show::printable(&g.reason));
        }
    }
    for journeys in &summary.journeys {
        let shown = serde_json::to_value(journeys).unwrap_or_default();
        for line in show::funnels(&shown).into_iter().chain(show::retention(&shown)) {
            let _ = writeln!(out, "{}, {line}", journeys.experiment);
        }
    }
}
