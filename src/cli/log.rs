//! `guardraild log` and `annotate`: the execution log of an experiment, and what people add to it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::client::{Daemon, Shown, encoded};
use super::screen::Screen;
use super::show::{rows, text};
use crate::clock;
use crate::config;
use crate::engine::decision::{LogKind, Timestamp};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::time::Duration;

/// Entries asked for at once.
const PAGE: usize = 1_000;
/// Pause between two questions of `-f`.
const FOLLOW: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  guardraild log new-checkout
  guardraild log new-checkout --since 2h --kind decision,delivery -f
  guardraild log new-checkout --output json | jq .text";

/// Show the execution log of an experiment: launch, phases, decisions, operators' actions, notes, deliveries
///
/// Of an experiment that has gone, too, for as long as store.retention says. `--output json` prints one entry a line.
///
/// Exit status: 0 shown, 1 no answer, or no such experiment.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct LogArgs {
    experiment: String,
    /// Only entries of this span (2h, 3d), or since this instant (RFC 3339)
    #[arg(long, value_name = "SPAN|TIME")]
    since: Option<String>,
    /// Only entries of these kinds
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = kinds(false))]
    kind: Vec<String>,
    /// Go on showing entries as they come
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    daemon: Daemon,
}

/// Add a note to an experiment's execution log; the readout has a place for each kind
///
/// Exit status: 0 noted, 1 refused, or no answer.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  guardraild annotate new-checkout --text 'deploy 4711 began' --link https://ci.example/4711\n  \
                        guardraild annotate new-checkout --kind learning --text 'buyers on phones gain most'")]
pub struct AnnotateArgs {
    experiment: String,
    /// What is to be remembered
    #[arg(long)]
    text: String,
    /// What kind of note it is
    #[arg(long, default_value = "annotation", value_parser = kinds(true))]
    kind: String,
    /// An address that belongs to it; may be given ten times
    #[arg(long = "link", value_name = "URL")]
    links: Vec<String>,
    /// Who says so, where that is not the owner of the token
    #[arg(long)]
    author: Option<String>,
    #[command(flatten)]
    daemon: Daemon,
}

/// All kinds, or those that people write.
fn kinds(of_people: bool) -> PossibleValuesParser {
    PossibleValuesParser::new(LogKind::ALL.into_iter().filter(|kind| !of_people || kind.is_note()).map(LogKind::name))
}

pub fn log(args: &LogArgs) -> i32 {
    match show(args) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    }
}

fn show(args: &LogArgs) -> Result<(), String> {
    let since = args.since.as_deref().map(instant).transpose()?;
    let filter = [since.map(|at| format!("&since={}", encoded(&at))), Some(format!("&kind={}", encoded(&args.kind.join(","))))];
    let filter: String = filter.into_iter().flatten().collect();
    let mut after = 0;
    loop {
        let path = format!("experiments/{}/log?after={after}&limit={PAGE}{filter}", encoded(&args.experiment));
        let page = args.daemon.ask(&path, None)?;
        let entries: Vec<&Value> = rows(&page, "entries").collect();
        after = entries.last().and_then(|entry| entry["seq"].as_i64()).unwrap_or(after);
        if !entries.is_empty() && print(args, &entries).is_err() {
            return Ok(()); // nobody reads any more
        }
        match page["next"].is_null() {
            true if args.follow => std::thread::sleep(FOLLOW),
            true => return Ok(()),
            false => {}
        }
    }
}

fn print(args: &LogArgs, entries: &[&Value]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.daemon.output == Shown::Json {
        return entries.iter().try_for_each(|entry| writeln!(out, "{entry}"));
    }
    let screen = Screen::of_stdout();
    let row = |entry: &&Value| {
        let links: String = rows(entry, "links").map(|link| format!(" {}", text(link))).collect();
        let who = entry["author"].as_str().unwrap_or("guardraild");
        vec![moment(&text(&entry["at"])).into(), text(&entry["kind"]).into(), who.into(), format!("{}{links}", text(&entry["text"])).into()]
    };
    writeln!(out, "{}", screen.table(&["", "", "", ""], &entries.iter().map(row).collect::<Vec<_>>()))?;
    out.flush()
}

/// To the second.
fn moment(rfc3339: &str) -> String {
    match rfc3339.parse::<jiff::Timestamp>() {
        Ok(at) => format!("{at:.0}"),
        Err(_) => rfc3339.to_owned(),
    }
}

/// The instant that `--since` means.
fn instant(text: &str) -> Result<String, String> {
    if let Some(span) = config::span(text) {
        let ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        return Ok(Timestamp(clock::now().saturating_sub(ms)).to_string());
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(at) => Ok(at.to_string()),
        Err(_) => Err(format!("--since {text:?}: a span such as 2h or 3d, or an instant such as 2026-12-01T09:00:00Z")),
    }
}

pub fn annotate(args: &AnnotateArgs) -> i32 {
    let mut body = json!({ "reason": args.text, "kind": args.kind, "links": args.links });
    if let Some(author) = &args.author {
        body["author"] = json!(author);
    }
    let path = format!("experiments/{}/annotations", encoded(&args.experiment));
    args.daemon.show(args.daemon.ask(&path, Some(&body)), |_| format!("{}: noted as {}", args.experiment, args.kind))
}
