//! `guardraild audit`: decisions recomputed from the evidence that they carry.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::stats;
use clap::Args;
use serde_json::Value;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  guardraild backtest --rules rules --events monday.ndjson.zst --output json | guardraild audit
  guardraild explain d-3f2a9c01b7d4e5f60718 --output json | guardraild audit

A decision names its test and carries what the test was given. Audit runs the test again, as
`guardraild stats` does, and compares the logarithm of the e-value (1e-9 of it may differ) and
whether it reaches ln(1/alpha). A posterior must reach 1 - alpha, a p-value must not exceed alpha.

An abandonment limit takes the worse of two looks and pays ln 2 for it. The evidence is that of the
look that won. Half of either look's e-value is a valid e-value by itself, so the other look
is not needed to check the decision.

What a person asked for, silence and unconfirmed rollbacks have no evidence that a test could weigh:
they are shown with the reason and do not count as different.";

/// Recompute logged decisions from their evidence
///
/// Exit status: 0 nothing differs, 1 a decision differs or the input is not JSON, 2 usage.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct AuditArgs {
    /// Decisions as JSON objects, as `backtest --output json` and the API give them; `-` is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
}

/// What recomputing a decision showed.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// The evidence gives what the decision says; how so.
    Ok(String),
    Differs(String),
    /// There is nothing that a test could weigh; why.
    NotRecomputable(&'static str),
}

/// Prints a line per decision to standard output and a summary to standard error; returns the exit status.
pub fn run(args: &AuditArgs) -> i32 {
    let input: Box<dyn Read> = if args.file.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        match File::open(&args.file) {
            Ok(file) => Box::new(file),
            Err(error) => {
                eprintln!("error: {}: {error}", args.file.display());
                return 2;
            }
        }
    };
    let (mut ok, mut differ, mut other) = (0u64, 0u64, 0u64);
    let mut bad_input = false;
    for value in serde_json::Deserializer::from_reader(BufReader::new(input)).into_iter::<Value>() {
        let value = match value {
            Ok(value) => value,
            Err(error) => {
                eprintln!("error: not JSON: {error}; what follows was not read");
                bad_input = true;
                break;
            }
        };
        let Some(decision) = decision(&value) else { continue };
        let finding = audit(decision);
        match finding {
            Finding::Ok(_) => ok += 1,
            Finding::Differs(_) => differ += 1,
            Finding::NotRecomputable(_) => other += 1,
        }
        // A closed pipe is no reason to stop counting.
        let _ = writeln!(io::stdout(), "{}", line(decision, &finding));
    }
    eprintln!("{} audited: {ok} ok, {differ} differ, {other} not recomputable", plural(ok + differ + other));
    i32::from(differ > 0 || bad_input)
}

fn plural(n: u64) -> String {
    format!("{n} decision{}", if n == 1 { "" } else { "s" })
}

fn line(decision: &Value, finding: &Finding) -> String {
    let (word, text) = match finding {
        Finding::Ok(text) => ("ok", text.as_str()),
        Finding::Differs(text) => ("differs", text.as_str()),
        Finding::NotRecomputable(text) => ("-", *text),
    };
    let field = |key: &str| clean(decision[key].as_str().filter(|s| !s.is_empty()).unwrap_or("-"));
    format!("{word:<8} {} {} {} {}: {text}", field("decision"), field("experiment"), field("bucket"), field("guardrail"))
}

/// Names from a log, fit for a terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The decision in a JSON value; `None` for anything else, such as the summary of a backtest.
pub fn decision(value: &Value) -> Option<&Value> {
    let is_decision = |v: &Value| v["test"].is_string() && v.get("evidence").is_some();
    [value, &value["decision"]].into_iter().find(|v| is_decision(v))
}

/// Recomputes one decision.
pub fn audit(decision: &Value) -> Finding {
    let (test, evidence) = (decision["test"].as_str().unwrap_or_default(), &decision["evidence"]);
    if test == "count" {
        return policy(decision, evidence);
    }
    match stats::recompute(test, evidence) {
        Ok(out) => weigh(decision, test, &out),
        Err(error) => Finding::Differs(format!("`{}` cannot be computed: {}", clean(test), clean(&error))),
    }
}

/// Decisions by a bare count or share need no test; others, none that exists.
fn policy(decision: &Value, evidence: &Value) -> Finding {
    let number = |key: &str| evidence[key].as_f64();
    if let (Some(count), Some(allowed)) = (number("count"), number("allowed")) {
        let text = format!("{count} where {allowed} are allowed");
        return if count > allowed { Finding::Ok(text) } else { Finding::Differs(text) };
    }
    if let (Some(n), Some(x), Some(max)) = (number("n"), number("x"), number("max")) {
        let text = format!("{x} of {n}, where a share of {max} is allowed");
        return if x > max * n { Finding::Ok(text) } else { Finding::Differs(text) };
    }
    match decision["criterion"].as_str().unwrap_or_default() {
        "operator" => Finding::NotRecomputable("a person asked for it"),
        "confirm_within" => Finding::NotRecomputable("follows a rollback whose exposures did not stop in time"),
        "undone" => Finding::NotRecomputable("follows a rollback whose exposures came back"),
        "silence" => Finding::NotRecomputable("no records: there is nothing to compute from"),
        _ => Finding::NotRecomputable("its evidence is that of no test"),
    }
}

/// Compares what the test gives now with what the decision says.
fn weigh(decision: &Value, test: &str, out: &Value) -> Finding {
    let alpha = decision["alpha"].as_f64();
    if let Some(p) = out["p"].as_f64().filter(|_| test.starts_with("fixed_")) {
        return bound(alpha, p, |alpha| p <= alpha, format!("{test} gives the p-value {p:.6}"));
    }
    if let Some(chance) = out["probability"].as_f64() {
        return bound(alpha, chance, |alpha| chance >= 1.0 - alpha, format!("{test} gives the probability {chance:.6}"));
    }
    // Tests of counts and detectors give several values: the one that alarms comes from these.
    let of_counts = match decision["change"].as_f64() {
        _ if decision["criterion"] == "volume_parity" => "log_e_parity",
        Some(change) if change < 0.0 => "log_e_down",
        _ => "log_e_up",
    };
    let Some(found) = ["log_e", of_counts, "log_sr"].iter().find_map(|key| evidence(&out[*key])) else {
        return Finding::Differs(format!("`{test}` gives no e-value"));
    };
    let (now, price) = if pays_for_two_looks(decision) { (found - std::f64::consts::LN_2, " less ln 2") } else { (found, "") };
    let text = format!("{test} gives {found:.4}{price}");
    // JSON has no infinity: evidence without end is logged as null.
    match decision["log_e_value"].as_f64() {
        Some(said) if (now - said).abs() <= 1e-9 * said.abs().max(1.0) => {}
        Some(said) => return Finding::Differs(format!("{text}, the decision says {said:.4}")),
        None if now == f64::INFINITY => {}
        None => return Finding::Differs(format!("{text}, the decision says nothing")),
    }
    let needed = alpha.map(|alpha| -alpha.ln());
    match needed {
        Some(needed) if now < needed => Finding::Differs(format!("{text}, and ln(1/alpha) is {needed:.4}")),
        Some(needed) => Finding::Ok(format!("{text}; ln(1/alpha) is {needed:.4}")),
        None => Finding::Ok(text),
    }
}

/// A method without e-values: what it gives against its level.
fn bound(alpha: Option<f64>, value: f64, holds: impl Fn(f64) -> bool, text: String) -> Finding {
    match alpha {
        Some(alpha) if value.is_finite() && holds(alpha) => Finding::Ok(format!("{text}; alpha is {alpha}")),
        Some(alpha) => Finding::Differs(format!("{text}, and alpha is {alpha}")),
        None => Finding::Differs(format!("{text}, and the decision has no alpha")),
    }
}

fn evidence(value: &Value) -> Option<f64> {
    value.as_f64().or((value == "inf").then_some(f64::INFINITY))
}

/// The limit of abandonment is read twice; the name is reserved, and further guardrails of the metric are numbered.
fn pays_for_two_looks(decision: &Value) -> bool {
    let name = decision["guardrail"].as_str().unwrap_or_default();
    decision["criterion"] == "limit" && (name == "abandonment" || name.starts_with("abandonment#"))
}
