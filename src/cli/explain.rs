//! `guardraild explain`: one decision, and what became of it.
#![allow(clippy::print_stdout)]

use super::client::{Daemon, encoded};
use super::show::{rows, text};
use crate::report::Unit;
use clap::Args;
use serde_json::Value;
use std::f64::consts::LN_10;

/// Characters of evidence that are shown; more of it is for programs.
const EVIDENCE: usize = 160;

/// Show one decision: numbers, test, margin, rule, deliveries, and what became of it
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  guardraild explain d-3f2a9c01b7d4e5f60718\n  guardraild explain d-3f2a9c01b7d4e5f60718 --output json | guardraild audit"
)]
pub struct ExplainArgs {
    /// Id of the decision: it is in every webhook, alert and log entry
    decision: String,
    #[command(flatten)]
    daemon: Daemon,
}

pub fn run(args: &ExplainArgs) -> i32 {
    args.daemon.show(args.daemon.ask(&format!("decisions/{}", encoded(&args.decision)), None), |decision| {
        let path = format!("experiments/{}/log?kind=confirmed,resolved&limit=1000", encoded(&text(&decision["experiment"])));
        // Where the log cannot be read, the decision is shown without it.
        let log = args.daemon.ask(&path, None).unwrap_or_default();
        shown(decision, &log)
    })
}

fn shown(d: &Value, log: &Value) -> String {
    let mut out = vec![format!("{}  {} {} {}", text(&d["decision"]), text(&d["action"]), text(&d["experiment"]), text(&d["bucket"]))];
    let mut say = |name: &str, told: String| out.push(format!("{name:<11}{told}"));
    if let Some(segment) = d["segment"].as_str() {
        say("segment", segment.to_owned());
    }
    say("why", text(&d["reason"]));
    say(
        "since",
        format!("{}, decided {}, when {} units were exposed", text(&d["since"]), text(&d["decided_at"]), number(&d["exposed_units"])),
    );
    let mode = if d["mode"] == "observe" { "observe: shown, and not sent" } else { "enforce" };
    say("rule", format!("{} ({}), revision {}, mode {mode}", text(&d["guardrail"]), text(&d["criterion"]), d["revision"]));
    say("test", format!("{}{}", text(&d["test"]), strength(d)));
    let evidence = d["evidence"].to_string();
    match evidence.len() <= EVIDENCE {
        true => say("evidence", evidence),
        false => say("evidence", format!("`guardraild explain {} --output json | guardraild audit` recomputes it", text(&d["decision"]))),
    }
    if let Some(earlier) = d["covered_by"].as_str() {
        say("not sent", format!("{earlier} had done as much already"));
    }
    if let Some(by) = d["held_by"].as_str() {
        say("held back", format!("by {by}: `guardraild rollback` carries it out"));
    }
    if let Some(shared) = d["shared_cause"].as_str() {
        say("shared", format!("{shared} tells people of this one, too"));
    }
    rows(d, "deliveries").for_each(|row| say("delivery", delivery(row)));
    let of_this = rows(log, "entries").filter(|entry| entry["decision"] == d["decision"]);
    of_this.for_each(|entry| say("after", format!("{} {}", text(&entry["at"]), text(&entry["text"]))));
    out.join("\n")
}

/// How strong the evidence was, beside what the rule asks for.
fn strength(d: &Value) -> String {
    let power = |log: f64| if log.abs() < 9.0 { Unit::Of(String::new()).show(log.exp()) } else { format!("10^{:.1}", log / LN_10) };
    match (d["log_e_value"].as_f64(), d["alpha"].as_f64()) {
        (Some(log), Some(alpha)) if alpha > 0.0 => format!(": e-value {}, acts from {} (1 / alpha)", power(log), power(-alpha.ln())),
        (Some(log), _) => format!(": e-value {}", power(log)),
        (None, Some(alpha)) => format!(": alpha {alpha:.2e}"),
        (None, None) => String::new(),
    }
}

fn delivery(row: &Value) -> String {
    let last = match &row["last_status"] {
        Value::Null => text(&row["last_error"]),
        status => status.to_string(),
    };
    let last = if last.is_empty() { String::new() } else { format!(", last {last}") };
    let because = row["escalates"].as_str().map_or_else(String::new, |of| format!("; because {of} failed"));
    let n = row["attempts"].as_u64().unwrap_or(0);
    let attempts = if n == 1 { "1 attempt".to_owned() } else { format!("{n} attempts") };
    format!("{} to {}: {}, {attempts}{last}{because}", text(&row["type"]), text(&row["endpoint"]), text(&row["state"]))
}

fn number(value: &Value) -> String {
    Unit::Of(String::new()).show(value.as_f64().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_decision_is_told_in_lines_that_people_read() {
        let d = json!({"decision": "d-1", "action": "rollback", "experiment": "exp", "bucket": "b", "reason": "p95 of b is 565 ms",
            "since": "2026-11-27T00:33:05Z", "decided_at": "2026-11-27T00:33:18Z", "exposed_units": 5428, "guardrail": "latency_p95",
            "criterion": "max_increase", "revision": 1, "mode": "enforce", "test": "quantile_relative", "log_e_value": 16.698868575777002,
            "alpha": 9.802151751099417e-8, "evidence": {"hist_c": (0..200).collect::<Vec<_>>()},
            "deliveries": [{"type": "guardrail.rollback", "endpoint": "flags", "state": "delivered", "attempts": 2, "last_status": 200},
                           {"type": "guardrail.confirmed", "endpoint": "chat", "state": "pending", "attempts": 0}]});
        let log = json!({"entries": [{"at": "2026-11-27T00:33:23Z", "decision": "d-1", "text": "confirmed: exposures fell"},
                                     {"at": "2026-11-27T00:34:00Z", "decision": "d-0", "text": "another"}]});
        assert_eq!(
            shown(&d, &log),
            "d-1  rollback exp b\n\
             why        p95 of b is 565 ms\n\
             since      2026-11-27T00:33:05Z, decided 2026-11-27T00:33:18Z, when 5,428 units were exposed\n\
             rule       latency_p95 (max_increase), revision 1, mode enforce\n\
             test       quantile_relative: e-value 10^7.3, acts from 10^7.0 (1 / alpha)\n\
             evidence   `guardraild explain d-1 --output json | guardraild audit` recomputes it\n\
             delivery   guardrail.rollback to flags: delivered, 2 attempts, last 200\n\
             delivery   guardrail.confirmed to chat: pending, 0 attempts\n\
             after      2026-11-27T00:33:23Z confirmed: exposures fell"
        );
        let by_hand =
            json!({"decision": "d-2", "mode": "observe", "test": "operator", "evidence": {"n": 21}, "alpha": 0.01, "log_e_value": 1.5});
        let shown = shown(&by_hand, &Value::Null);
        assert!(
            shown.contains("mode observe: shown, and not sent\ntest       operator: e-value 4.48, acts from 100 (1 / alpha)"),
            "{shown}"
        );
        assert!(shown.contains("evidence   {\"n\":21}"), "{shown}");
    }
}
