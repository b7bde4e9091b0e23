//! `guardraild backtest`: what would have been decided, and when.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod meter;
mod print;

use super::{check, map, run};
use crate::config::Config;
use crate::engine::decision::Timestamp;
use crate::engine::plan::Settings;
use crate::engine::time::Millis;
use crate::ingest::decode::Limits;
use crate::ingest::file::Recording;
use crate::ingest::range::RangeConfig;
use crate::rules::{self, Loaded};
use crate::telemetry::Metrics;
use crate::tools::backtest::{self, Asked, BacktestError, Heard, Outcome, Ranged, Side, Terms};
use crate::{app, clock};
use clap::{Args, ValueEnum};
use meter::Meter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  guardraild backtest --rules rules/new-checkout.yaml --events monday.ndjson.zst
  guardraild backtest --rules rules --compare tighter --events monday.ndjson.zst
      what would have fired under each, when, and how much earlier
  guardraild backtest --rules rules --events monday.ndjson.zst --report monday.html
  guardraild backtest --rules rules --events 2026-1*.ndjson.gz --state half-a-year
      Ctrl-C interrupts it, and the same command goes on
  guardraild backtest --rules rules --brokers kafka-1:9092 --since 2h
  guardraild backtest --rules rules --brokers kafka-1:9092 --since 30d --state a-month
  guardraild backtest --rules rules --config guardraild.yaml --since 2026-12-02T09:00:00Z --output json
  kcat -C -e -q -b kafka-1:9092 -t experiment.events | guardraild backtest --rules rules --events -";

const USAGE: &str = "\
guardraild backtest [OPTIONS] --rules <PATH>... --events <FILE>...
       guardraild backtest [OPTIONS] --rules <PATH>... --brokers <HOST:PORT> [--since <TIME>] [--until <TIME>]";

/// Without a word from the brokers for this long, a backtest ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// Run recorded events through the rules, at full speed and with nothing sent.
///
/// Events come from files, or from a range of the experiment's topics in Kafka, which is read without a consumer group: nothing is
/// joined or committed, and a running daemon does not notice.
///
/// Several rule sets, or several versions of one, are run side by side by `--compare`.
///
/// Decisions and the summary go to standard output, everything else to standard error.
/// Exit status: 0 done (whatever was decided), 1 a rule file, a recording, Kafka or the state cannot be used, 2 usage, 130 interrupted.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub struct BacktestArgs {
    /// Rule file, or directory with rule files; may be repeated.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    pub rules: Vec<PathBuf>,
    /// Another rule set, a file or a directory, to be compared with that of `--rules`; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub compare: Vec<PathBuf>,
    /// What to call a rule set: the first is that of `--rules`, then come those of `--compare` [default: their paths]
    #[arg(long, value_name = "NAME", requires = "compare")]
    pub label: Vec<String>,
    /// Recordings: NDJSON, plain, .gz or .zst; `-` is standard input. Several are merged by time.
    #[arg(long, value_name = "FILE", num_args = 1..,
          required_unless_present_any = ["brokers", "since", "until", "config", "overrides"],
          conflicts_with_all = ["brokers", "since", "until", "config", "overrides"])]
    pub events: Vec<PathBuf>,
    /// Read the recordings by this source of the rules: lines are records as it describes them, those with a schema as plain JSON.
    #[arg(long, value_name = "NAME", requires = "events")]
    pub source: Option<String>,
    /// Directory in which the state is kept, about every ten seconds: after an interruption the same command goes on from there, and prints what an
    /// uninterrupted one would have. It is removed at the end.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Write a page, too: the intervals of every guardrail against its margin, the decisions, the data. One file that needs nothing else.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// How decisions are shown.
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
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
    pub since: Option<Moment>,
    /// Moment to end before [default: the newest record at the start].
    #[arg(long, value_name = "TIME", value_parser = moment, help_heading = "Kafka")]
    pub until: Option<Moment>,
    /// Configuration file of the daemon, for its `kafka` and `engine` sections (topics, TLS, SASL) [env: GUARDRAILD_CONFIG].
    #[arg(long, value_name = "FILE", help_heading = "Kafka")]
    pub config: Option<PathBuf>,
    /// Override one setting: `--set kafka.topics.events='[shop.events]'`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = run::key_value, help_heading = "Kafka")]
    pub overrides: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A line per decision and a table of verdicts; of several rule sets, what each decided about the same.
    #[value(alias = "human")]
    Text,
    /// One JSON object per decision, then one with the summary. Of several rule sets each names its own, and the comparison comes last.
    Json,
}

/// A moment, and how it was written.
#[derive(Clone, Debug)]
pub struct Moment {
    at: Millis,
    text: String,
}

/// A moment as RFC 3339, or as a span before now.
fn moment(text: &str) -> Result<Moment, String> {
    let at = match super::span(text) {
        Ok(span) => clock::now().saturating_sub(span),
        Err(_) => text
            .parse::<jiff::Timestamp>()
            .map(|t| t.as_millisecond())
            .map_err(|_| "write a time such as 2026-12-02T09:00:00Z, or a span before now such as 2h")?,
    };
    Ok(Moment { at, text: text.to_owned() })
}

/// Why there is no outcome.
enum Failure {
    /// What is to be said of it, as it is.
    Told(String),
    Backtest(BacktestError),
}

impl From<BacktestError> for Failure {
    fn from(error: BacktestError) -> Failure {
        Failure::Backtest(error)
    }
}

/// Returns the exit status.
pub fn run(args: &BacktestArgs) -> i32 {
    if let Err(message) = sound(args) {
        eprintln!("error: {message}");
        return 2;
    }
    let labels = labels(args);
    let mut sets = Vec::new();
    for (label, paths) in labels.iter().zip(std::iter::once(args.rules.as_slice()).chain(args.compare.chunks(1))) {
        let loaded = rules::load(paths, None);
        for diagnostic in &loaded.diagnostics {
            eprint!("{}", diagnostic.human(check::color_stderr()));
        }
        if loaded.refused > 0 || loaded.rules.is_empty() {
            let whose = if labels.len() > 1 { format!(" of {label}") } else { String::new() };
            eprintln!("error: {} of {} rule files{whose} can be used; nothing was read", loaded.rules.len(), loaded.files);
            return 1;
        }
        sets.push((label.clone(), loaded));
    }
    let json = args.output == OutputFormat::Json;
    let result = if args.events.is_empty() { kafka(args, sets) } else { files(args, sets) };
    match (result, args.state.as_deref()) {
        (Ok(outcomes), _) => {
            let sides: Vec<(&str, &Outcome)> = labels.iter().map(String::as_str).zip(&outcomes).collect();
            match sides[..] {
                [(_, outcome)] => print::summary(&outcome.summary, json),
                _ => print::comparison(&sides, json),
            }
            args.report.as_deref().map_or(0, |path| report(path, args, &sides))
        }
        (Err(Failure::Backtest(BacktestError::Interrupted)), Some(state)) => {
            eprintln!("interrupted; the same command goes on from {}", state.display());
            130
        }
        (Err(Failure::Backtest(error)), _) => {
            eprintln!("error: {error}");
            1
        }
        (Err(Failure::Told(message)), _) => {
            eprintln!("{message}");
            1
        }
    }
}

/// Writes the page; returns the exit status.
fn report(path: &Path, args: &BacktestArgs, sides: &[(&str, &Outcome)]) -> i32 {
    let of = match args.events.is_empty() {
        true => "Kafka".to_owned(),
        false => args.events.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    match std::fs::write(path, backtest::report::page(&of, sides)) {
        Ok(()) => {
            eprintln!("report: {}", path.display());
            0
        }
        Err(error) => {
            eprintln!("error: cannot write {}: {error}", path.display());
            1
        }
    }
}

/// What is wrong with the arguments taken together.
fn sound(args: &BacktestArgs) -> Result<(), String> {
    let named = args.rules.iter().chain(&args.compare).chain(args.events.iter().filter(|p| p.as_os_str() != "-"));
    if let Some(missing) = named.into_iter().find(|p| !p.exists()) {
        return Err(format!("no such file or directory: {}", missing.display()));
    }
    match args.events.iter().filter(|p| p.as_os_str() == "-").count() {
        0 => {}
        1 if args.state.is_none() => {}
        1 => return Err("standard input cannot be read again from where it was interrupted: leave out --state".into()),
        _ => return Err("standard input can be read once only".into()),
    }
    if let (Some(since), Some(until)) = (&args.since, &args.until)
        && since.at >= until.at
    {
        return Err(format!("--since {} is not before --until {}", Timestamp(since.at), Timestamp(until.at)));
    }
    if args.label.len() > args.compare.len() + 1 {
        return Err(format!("{} labels for {} rule sets", args.label.len(), args.compare.len() + 1));
    }
    let labels = labels(args);
    match labels.iter().enumerate().find(|(i, label)| labels[..*i].contains(label)) {
        Some((_, twice)) => Err(format!("two rule sets are called {twice}: give each its --label")),
        None => Ok(()),
    }
}

/// Of the rule sets, in their order.
fn labels(args: &BacktestArgs) -> Vec<String> {
    let rules = args.rules.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ");
    let paths = std::iter::once(rules).chain(args.compare.iter().map(|p| p.display().to_string()));
    paths.enumerate().map(|(i, path)| args.label.get(i).cloned().unwrap_or(path)).collect()
}

fn side(label: String, loaded: Loaded) -> Side {
    let text = loaded.used.iter().fold(String::new(), |text, used| text + &used.text + "\0");
    Side { label, catalog: loaded.catalog, text }
}

fn files(args: &BacktestArgs, sets: Vec<(String, Loaded)>) -> Result<Vec<Outcome>, Failure> {
    let settings = settings(args, Settings::default());
    let source = args.source.as_deref().map(|name| map::source(name, &sets[0].1.sources).cloned()).transpose().map_err(Failure::Told)?;
    let stop = stop(args);
    let recording = Recording { files: &args.events, source: source.as_ref(), limits: Limits::default() };
    let terms = Terms { settings: &settings, drawn: args.report.is_some(), state: args.state.as_deref(), stop: &stop };
    let mut meter = Meter::bytes();
    let alone = sets.len() == 1;
    let sides = sets.into_iter().map(|(label, loaded)| side(label, loaded)).collect();
    Ok(backtest::run(sides, &recording, &terms, |heard| show(&mut meter, heard, args, alone))?)
}

fn kafka(args: &BacktestArgs, sets: Vec<(String, Loaded)>) -> Result<Vec<Outcome>, Failure> {
    let mut overrides = args.overrides.clone();
    if !args.brokers.is_empty() {
        overrides.push(("kafka.brokers".into(), format!("[{}]", args.brokers.join(","))));
    }
    let path = args.config.clone().or_else(|| std::env::var_os("GUARDRAILD_CONFIG").map(PathBuf::from));
    let (kafka, engine) = Config::load_input(path.as_deref(), &overrides).map_err(|errors| Failure::Told(errors.to_string()))?;
    let sources = sets[0].1.sources.clone();
    let range = RangeConfig {
        kafka: app::kafka_config(&kafka, &sources),
        optional: kafka.topics.control.iter().cloned().chain(sources.topics().map(str::to_owned)).collect(),
        since: args.since.as_ref().map(|moment| moment.at),
        until: args.until.as_ref().map(|moment| moment.at),
        patience: PATIENCE,
    };
    let asked = [&args.since, &args.until].map(|moment| moment.as_ref().map(|moment| moment.text.as_str()));
    let told = format!("{} {:?} {asked:?}", range.kafka.brokers, range.kafka.topics);
    let layouts = app::layouts(&kafka, sources, &Metrics::default()).map_err(|error| Failure::Told(format!("error: {error}")))?;
    let settings = settings(args, engine.settings);
    let limits = Limits { max_record_bytes: engine.max_record, ..Limits::default() };
    let stop = stop(args);
    let terms = Terms { settings: &settings, drawn: args.report.is_some(), state: args.state.as_deref(), stop: &stop };
    let mut meter = Meter::records();
    let alone = sets.len() == 1;
    let sides = sets.into_iter().map(|(label, loaded)| side(label, loaded)).collect();
    let asked = Asked { range, told, layouts: &layouts, max_future: kafka.max_future, limits, clock: clock::now };
    let ranged = Ranged::open(sides, asked, &terms)?;
    for topic in ranged.left_out() {
        eprintln!("warning: no such topic: {topic}; going on without it");
    }
    Ok(ranged.run(|heard| show(&mut meter, heard, args, alone))?)
}

/// Set by Ctrl-C where there is a state to go on from; elsewhere it ends the process.
fn stop(args: &BacktestArgs) -> Arc<AtomicBool> {
    if args.state.is_some() { super::interrupted() } else { Arc::default() }
}

fn settings(args: &BacktestArgs, from: Settings) -> Settings {
    Settings { pane: args.pane.unwrap_or(from.pane), lateness: args.lateness.unwrap_or(from.lateness), ..from }
}

/// Decisions of a rule set that is alone are shown as they are made.
fn show(meter: &mut Meter, heard: Heard<'_>, args: &BacktestArgs, alone: bool) {
    match heard {
        Heard::Decided(_, decision) if alone => meter.aside(|| print::decision(decision, args.output == OutputFormat::Json)),
        Heard::Decided(..) => {}
        Heard::Progress(read, total) => meter.tell(read, total),
    }
}
