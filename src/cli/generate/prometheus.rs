//! Alert rules of one experiment. What guardraild decides goes out by its own webhooks; these are the second way to people, and tell
//! what a webhook cannot: that nobody watches.

use super::document::quoted;
use crate::engine::decision::{Action, Mode};
use crate::engine::time::Millis;
use crate::rules::RuleSet;
use std::fmt::{Result, Write};

/// The line before the groups.
pub const HEAD: &str = "groups:\n";

struct Alert<'a> {
    name: &'a str,
    expr: String,
    wait: &'a str,
    severity: &'a str,
    summary: &'a str,
    description: &'a str,
    /// Section of deploy/RUNBOOK.md.
    section: &'a str,
}

pub fn write(out: &mut String, rule: &RuleSet) -> Result {
    let experiment = &rule.plan.experiment;
    write!(out, "{HEAD}  - name: {}\n    rules:\n", quoted(&format!("guardraild experiment {experiment}")))?;
    for alert in alerts(rule) {
        writeln!(out, "      - alert: {}", alert.name)?;
        writeln!(out, "        expr: |-\n          {}", alert.expr)?;
        if !alert.wait.is_empty() {
            writeln!(out, "        for: {}", alert.wait)?;
        }
        // Also where the series have it: rules of two experiments would else be duplicates. Prometheus expands labels as templates.
        let label = quoted(&experiment.replace("{{", "{{\"{{\"}}"));
        writeln!(out, "        labels: {{severity: {}, experiment: {label}}}", alert.severity)?;
        writeln!(out, "        annotations:\n          summary: {}", quoted(&format!("{{{{ $labels.experiment }}}}: {}", alert.summary)))?;
        writeln!(out, "          description: {}", quoted(alert.description))?;
        writeln!(out, "          runbook_url: deploy/RUNBOOK.md#{}", alert.section)?;
        if let Some(runbook) = &rule.runbook {
            writeln!(out, "          experiment_runbook: {}", quoted(runbook))?;
        }
    }
    Ok(())
}

fn alerts(rule: &RuleSet) -> Vec<Alert<'static>> {
    let plan = &rule.plan;
    let name = promql(&plan.experiment);
    let series = |metric: &str, more: &str| format!("max by (experiment) ({metric}{{experiment=\"{name}\"{more}}})");
    let running = running(plan.starts, plan.ends);
    let pages = plan.guardrails.iter().any(|g| g.on_breach >= Action::Page);
    let mut alerts = vec![
        Alert {
            name: "ExperimentBreach",
            expr: format!("{} == 1", series("guardraild_experiment_verdict", ", verdict=\"breach\"")),
            wait: "",
            severity: if pages { "page" } else { "ticket" },
            summary: "a guardrail is breached",
            description: "`guardraild get {{ $labels.experiment }}` says which, by how much, and what has been done about it.",
            section: "a-rollback",
        },
        Alert {
            name: "ExperimentNoData",
            expr: format!("{} == 1{running}", series("guardraild_experiment_verdict", ", verdict=\"no_data\"")),
            wait: "10m",
            severity: "ticket",
            summary: "no data to judge by",
            description: "Nothing has come for 10 minutes, or what came is stale. Gates say no, nothing is rolled back: nobody would notice harm.",
            section: "no-data",
        },
        Alert {
            name: "ExperimentUnwatched",
            expr: format!("absent(guardraild_experiment_verdict{{experiment=\"{name}\"}}){running}"),
            wait: "5m",
            severity: "page",
            summary: "nobody watches it",
            description: "No daemon has this experiment: its rule file is refused or gone, or guardraild is not there.",
            section: "guardraildrulesrefused",
        },
        Alert {
            name: "ExperimentHeld",
            expr: format!("{} == 1", series("guardraild_experiment_holds", ", by=\"operator\"")),
            wait: "1h",
            severity: "ticket",
            summary: "held for an hour",
            description: "An operator's hold keeps guardraild from acting on {{ $labels.experiment }}. Is it still meant?",
            section: "hold",
        },
        Alert {
            name: "ExperimentDataUntrusted",
            expr: format!("max by (experiment, by) (guardraild_experiment_holds{{experiment=\"{name}\", by!=\"operator\"}}) == 1"),
            wait: "5m",
            severity: "ticket",
            summary: "its data cannot be trusted",
            description: "The check {{ $labels.by }} fails: gates say no, and comparisons may be held.",
            section: "hold",
        },
    ];
    if plan.mode == Mode::Enforce {
        let stopped = |confirmation: &str| {
            format!(
                "max by (experiment, action) (guardraild_experiment_stopped_buckets{{experiment=\"{name}\", confirmation=~\"{confirmation}\"}}) > 0"
            )
        };
        alerts.push(Alert {
            name: "ExperimentUnconfirmed",
            expr: stopped("unconfirmed|undone"),
            wait: "",
            severity: "page",
            summary: "what was stopped is still exposed",
            description: "The {{ $labels.action }} was decided, and users still get the bucket, or get it again. Turn the flag off by hand.",
            section: "unconfirmed",
        });
        alerts.push(Alert {
            name: "ExperimentWaitsForPerson",
            expr: stopped("held"),
            wait: "",
            severity: "page",
            summary: "a rollback waits for a person",
            description: "A limit keeps the {{ $labels.action }} back: `guardraild rollback {{ $labels.experiment }}` sends it.",
            section: "a-rollback-that-waits-for-you",
        });
    }
    alerts
}

/// Keeps an alert quiet outside of the experiment's dates.
fn running(starts: Option<Millis>, ends: Option<Millis>) -> String {
    let bound = |op: &str, at: Option<Millis>| at.map_or(String::new(), |at| format!(" {op} {}", at.div_euclid(1_000)));
    match (starts, ends) {
        (None, None) => String::new(),
        _ => format!(" and on () (vector(time()){}{})", bound(">=", starts), bound("<", ends)),
    }
}

/// The inside of a string in PromQL.
fn promql(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
