//! `guardraild get`: how experiments stand, once or as they change.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::client::{Daemon, Shown, encoded};
use super::screen::{Cell, Screen};
use super::show::{self, rows, text};
use crate::clock;
use crate::engine::decision::Timestamp;
use crate::readout::outcome;
use crate::report::Unit;
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

/// Pause between two looks of `-w`.
const AGAIN: Duration = Duration::from_secs(1);

/// Show the live state of all experiments, worst first, or of one
///
/// With `-w` again every second: in place on a terminal, elsewhere a line for each change of an experiment's verdict. `--output json` then prints an object a line.
///
/// Exit status: 0 shown, 1 no answer, or no such experiment.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  guardraild get\n  guardraild get new-checkout -w\n  guardraild get new-checkout --output json")]
pub struct GetArgs {
    experiment: Option<String>,
    /// Go on, until interrupted
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    daemon: Daemon,
}

pub fn run(args: &GetArgs) -> i32 {
    let path = match &args.experiment {
        Some(name) => format!("experiments/{}", encoded(name)),
        None => "experiments".to_owned(),
    };
    match args.watch {
        true => watch(args, &path),
        false => args.daemon.show(args.daemon.ask(&path, None), |answer| shown(answer, &Screen::of_stdout())),
    }
}

/// Shows it again and again, until nobody reads any more.
fn watch(args: &GetArgs, path: &str) -> i32 {
    let mut told = BTreeMap::new();
    loop {
        let answer = args.daemon.ask(path, None);
        let screen = Screen::of_stdout();
        let written = match (args.daemon.output, &answer) {
            (Shown::Human, _) if screen.terminal => redraw(&answer, &screen),
            (output, Ok(answer)) => changes(output, answer, &mut told),
            (_, Err(error)) => {
                eprintln!("error: {error}");
                Ok(())
            }
        };
        if written.is_err() {
            return 0;
        }
        std::thread::sleep(AGAIN);
    }
}

/// Clears the terminal and shows what there is; without an answer, why.
fn redraw(answer: &Result<Value, String>, screen: &Screen) -> io::Result<()> {
    let now = Timestamp(clock::now() / 1_000 * 1_000);
    let shown = match answer {
        Ok(answer) => shown(answer, screen),
        Err(error) => format!("error: {error}"),
    };
    let mut out = io::stdout().lock();
    // Line by line, so that nothing flickers: each is cleared to its end, and what was below it at the end.
    let lines: String = format!("{now}  (interrupt to end)\n\n{shown}\n").lines().map(|line| format!("{line}\u{1b}[K\n")).collect();
    write!(out, "\u{1b}[H{lines}\u{1b}[J")?;
    out.flush()
}

/// A line, or an object, for each experiment that has changed since it was told last.
fn changes(output: Shown, answer: &Value, told: &mut BTreeMap<String, Value>) -> io::Result<()> {
    let states: Vec<&Value> = match answer["experiments"].as_array() {
        Some(all) => all.iter().collect(),
        None => vec![answer],
    };
    let mut out = io::stdout().lock();
    for state in states {
        let standing = json!([state["verdict"], state["phase"], state["holds"], state["decisions"], state["rollout"]["stage"]]);
        if told.insert(text(&state["experiment"]), standing.clone()).as_ref() == Some(&standing) {
            continue;
        }
        match output {
            Shown::Json => writeln!(out, "{state}")?,
            Shown::Human => writeln!(
                out,
                "{}  {:<8}  {}  {}",
                Timestamp(clock::now() / 1_000 * 1_000),
                text(&state["verdict"]),
                text(&state["experiment"]),
                text(&state["reason"])
            )?,
        }
    }
    out.flush()
}

/// All experiments, or one.
fn shown(answer: &Value, screen: &Screen) -> String {
    match answer["experiments"].as_array() {
        Some(all) if all.is_empty() => "no experiments".to_owned(),
        Some(all) => fleet(all, screen),
        None => experiment(answer, screen),
    }
}

fn fleet(all: &[Value], screen: &Screen) -> String {
    let rank = |state: &Value| ["breach", "no_data", "watching", "safe"].iter().position(|verdict| state["verdict"] == *verdict);
    let mut all: Vec<&Value> = all.iter().collect();
    all.sort_by_key(|state| (rank(state), text(&state["experiment"])));
    let row = |state: &&Value| {
        let units: u64 = rows(state, "buckets").filter_map(|b| b["exposed_units"].as_u64()).sum();
        vec![
            screen.verdict(&text(&state["verdict"])),
            text(&state["experiment"]).into(),
            phase(state).into(),
            number(units).into(),
            text(&state["reason"]).into(),
        ]
    };
    screen.table(&["VERDICT", "EXPERIMENT", "PHASE", "UNITS", "WHY"], &all.iter().map(row).collect::<Vec<_>>())
}

fn phase(state: &Value) -> String {
    match state["phase_name"].as_str() {
        Some(_) => text(&state["phase_name"]),
        None => state["phase"].to_string(),
    }
}

fn number(n: u64) -> String {
    Unit::Of(String::new()).show(n as f64)
}

fn experiment(state: &Value, screen: &Screen) -> String {
    let head = vec![screen.verdict(&text(&state["verdict"])), text(&state["experiment"]).into(), text(&state["reason"]).into()];
    let mut about = vec![screen.table(&["", "", ""], &[head])];
    about.push(format!(
        "{} mode, revision {}, phase {}, {} records",
        text(&state["mode"]),
        state["revision"],
        phase(state),
        number(state["records"].as_u64().unwrap_or(0))
    ));
    about.extend(show::stage(&state["rollout"]));
    for hold in rows(state, "holds") {
        about.push(format!("held by {}: {}", text(&hold["by"]), text(&hold["reason"])));
    }
    let flaws = state["data"].as_object().into_iter().flatten().filter(|(_, n)| n.as_u64().is_some_and(|n| n > 0));
    let flaws: Vec<String> = flaws.map(|(flaw, n)| format!("{flaw} {n}")).collect();
    if !flaws.is_empty() {
        about.push(format!("data: {}", flaws.join(", ")));
    }
    let bucket = |bucket: &Value| {
        let (standing, why) = match &bucket["stopped"] {
            Value::Null => (if bucket["baseline"] == true { "baseline" } else { "on" }, String::new()),
            stop => (stop["action"].as_str().unwrap_or_default(), format!("{}: {}", text(&stop["decision"]), text(&stop["confirmation"]))),
        };
        let rate = bucket["exposure_rate"].as_f64().unwrap_or(0.0);
        vec![
            Cell::from(text(&bucket["bucket"])),
            bucket["weight"].as_f64().map_or(String::new(), |w| Unit::Share.show(w)).into(),
            number(bucket["exposed_units"].as_u64().unwrap_or(0)).into(),
            format!("{rate:.1}").into(),
            screen.verdict(standing),
            why.into(),
        ]
    };
    let buckets: Vec<Vec<Cell>> = rows(state, "buckets").map(bucket).collect();
    let guardrail = |row: &Value| {
        let own =
            vec![screen.verdict(&text(&row["verdict"])), text(&row["bucket"]).into(), text(&row["guardrail"]).into(), why(row).into()];
        std::iter::once(own).chain(segments(row, screen)).collect::<Vec<_>>()
    };
    let guardrails: Vec<Vec<Cell>> = rows(state, "guardrails").flat_map(guardrail).collect();
    let secondary: Vec<Vec<Cell>> = rows(state, "secondary").map(compared).collect();
    let check = |row: &Value| {
        let own = vec![screen.verdict(&text(&row["verdict"])), text(&row["check"]).into(), text(&row["reason"]).into()];
        let failing = rows(row, "parts").filter(|part| part["verdict"] == "breach");
        let parts = failing.map(|part| {
            vec![screen.verdict(&text(&part["verdict"])), format!("  {}", text(&part["part"])).into(), text(&part["reason"]).into()]
        });
        std::iter::once(own).chain(parts).collect::<Vec<_>>()
    };
    let checks: Vec<Vec<Cell>> = rows(state, "quality").flat_map(check).collect();
    let figures: Vec<String> = [show::funnels(state), show::retention(state), show::phases(state)].concat();
    let tables = [
        (!buckets.is_empty()).then(|| screen.table(&["BUCKET", "SHARE", "UNITS", "EXPOSURES/S", "STATE", ""], &buckets)),
        (!guardrails.is_empty()).then(|| screen.table(&["VERDICT", "BUCKET", "GUARDRAIL", "WHY"], &guardrails)),
        (!secondary.is_empty()).then(|| screen.table(&["BUCKET", "SECONDARY", "CHANGE", "BETWEEN", "WHY"], &secondary)),
        (!checks.is_empty()).then(|| screen.table(&["VERDICT", "DATA", "WHY"], &checks)),
        (!figures.is_empty()).then(|| figures.join("\n")),
    ];
    std::iter::once(about.join("\n")).chain(tables.into_iter().flatten()).collect::<Vec<_>>().join("\n\n")
}

/// The verdict's reason with the numbers that it lacks: of a breach the values, where there is one the interval.
fn why(guardrail: &Value) -> String {
    let (value, change) = (outcome::unit_of_value(guardrail), outcome::unit_of_change(guardrail));
    let known = |key: &str| guardrail[key].as_f64().map(|v| value.show(v));
    let values = match (known("bucket_value"), known("baseline_value")) {
        (Some(bucket), Some(baseline)) => format!("{bucket}, baseline {baseline}; "),
        (Some(bucket), None) => format!("{bucket}; "),
        (None, _) => String::new(),
    };
    let values = if guardrail["verdict"] == "breach" { values } else { String::new() };
    let interval = outcome::interval(guardrail).map(|[low, high]| format!("; interval {} to {}", change.show(low), change.show(high)));
    format!("{values}{}{}", text(&guardrail["reason"]), interval.unwrap_or_default())
}

/// A secondary metric, which has no verdict.
fn compared(row: &Value) -> Vec<Cell> {
    let change = |v: Option<f64>| v.map(|v| Unit::Change.show(v)).unwrap_or_default();
    let ends = [0, 1].map(|end| row["interval"][end].as_f64());
    let between = if ends.contains(&None) { String::new() } else { ends.map(change).join(" and ") };
    vec![
        text(&row["bucket"]).into(),
        text(&row["metric"]).into(),
        change(row["change"].as_f64()).into(),
        between.into(),
        text(&row["reason"]).into(),
    ]
}

/// How many segments fare how, and those in breach one by one.
fn segments(guardrail: &Value, screen: &Screen) -> Vec<Vec<Cell>> {
    let verdicts = ["breach", "safe", "watching", "no_data"];
    let of = |verdict: &str| rows(guardrail, "segments").filter(|s| s["verdict"] == verdict).count();
    let counted: Vec<String> = verdicts.iter().map(|v| (of(v), v)).filter(|(n, _)| *n > 0).map(|(n, v)| format!("{n} {v}")).collect();
    if counted.is_empty() {
        return Vec::new();
    }
    let head = vec!["".into(), "".into(), "  segments".into(), counted.join(", ").into()];
    let breached = rows(guardrail, "segments").filter(|s| s["verdict"] == "breach").map(|s| {
        let told = format!("{} units: {}", s["units"], text(&s["reason"]));
        vec![screen.verdict(&text(&s["verdict"])), "".into(), format!("  {}", text(&s["segment"])).into(), told.into()]
    });
    std::iter::once(head).chain(breached).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCREEN: Screen = Screen { colour: false, width: 80, terminal: false };

    #[test]
    fn an_experiment_is_shown_with_what_matters() {
        let state = json!({"experiment": "exp", "verdict": "breach", "reason": "rollback of b (confirmed)", "mode": "enforce", "revision": 1,
            "phase": 0, "records": 9, "holds": [], "quality": [{"check": "srm", "verdict": "safe", "reason": "as designed"}],
            "buckets": [{"bucket": "b", "weight": 0.5, "exposed_units": 3, "exposure_rate": 0.0,
                         "stopped": {"action": "rollback", "decision": "d-1", "confirmation": "confirmed"}}],
            "guardrails": [{"guardrail": "error_rate", "bucket": "b", "verdict": "breach", "reason": "breached: see d-1",
                            "unit": "%", "bucket_value": 0.12, "baseline_value": 0.04, "interval": [0.06, 0.2],
                            "max_increase": {"absolute": 0.01},
                            "segments": [{"segment": "region=uk", "units": 7, "verdict": "breach", "reason": "breached: see d-2"},
                                         {"segment": "region=eu", "units": 9, "verdict": "safe", "reason": "fine"}]}],
            "secondary": [{"metric": "basket", "bucket": "b", "change": 0.042, "interval": [0.013, 0.071],
                           "reason": "no evidence of a difference"}]});
        let shown = experiment(&state, &SCREEN);
        assert_eq!(
            shown,
            "breach  exp  rollback of b (confirmed)\n\
             enforce mode, revision 1, phase 0, 9 records\n\n\
             BUCKET  SHARE  UNITS  EXPOSURES/S  STATE\n\
             b       50%    3      0.0          rollback  d-1: confirmed\n\n\
             VERDICT  BUCKET  GUARDRAIL    WHY\n\
             breach   b       error_rate   12%, baseline 4%; breached: see d-1; interval +6pp\n                              \
             to +20pp\n                   \
                             segments   1 breach, 1 safe\n\
             breach             region=uk  7 units: breached: see d-2\n\n\
             BUCKET  SECONDARY  CHANGE  BETWEEN          WHY\n\
             b       basket     +4.2%   +1.3% and +7.1%  no evidence of a difference\n\n\
             VERDICT  DATA  WHY\n\
             safe     srm   as designed"
        );
    }

    #[test]
    fn the_fleet_is_shown_worst_first() {
        let state = |name: &str, verdict: &str| {
            json!({"experiment": name, "verdict": verdict, "reason": "r", "phase": 0, "phase_name": "canary",
            "buckets": [{"exposed_units": 1_200}, {"exposed_units": 34}]})
        };
        let shown = shown(&json!({"experiments": [state("a", "safe"), state("b", "breach")]}), &SCREEN);
        assert_eq!(
            shown,
            "VERDICT  EXPERIMENT  PHASE   UNITS  WHY\nbreach   b           canary  1,234  r\nsafe     a           canary  1,234  r"
        );
    }

    #[test]
    fn the_phases_are_shown_with_their_figures() {
        let bucket = json!({"bucket": "b", "weight": 0.2, "exposed_units": 3, "exposures": 4, "events": 5,
            "metrics": [{"metric": "error_rate", "unit": "%", "value": 0.25}, {"metric": "latency_p95", "unit": "ms", "value": null}]});
        let rollout = json!({"stage": "full", "phase_since": 0, "phase_due": 60_000, "phase_ready": true, "full_since": 1_000, "watched_until": 2_000});
        let state = json!({"rollout": rollout, "phases": [{"phase": 0, "name": "canary", "buckets": [bucket]}, {"phase": 4, "name": null, "buckets": [bucket]}],
            "whole_life": {"phase": null, "name": null, "buckets": [bucket]}});
        let shown = experiment(&state, &SCREEN);
        assert!(
            shown.contains("full, in this phase since 1970-01-01T00:00:00Z, ready for the next since 1970-01-01T00:01:00Z; full since"),
            "{shown}"
        );
        assert!(shown.contains("canary, b (20.0%): 3 units, 4 exposures, 5 events, error_rate 25.00%, latency_p95 no value"), "{shown}");
        assert!(shown.contains("\nphase 4, b") && shown.contains("\nwhole life, b"), "{shown}");
    }
}
