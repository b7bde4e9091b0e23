//! A webhook body in words, for people.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What channels for people need of a stored body; whatever is missing stays empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Message {
    pub r#type: String,
    pub timestamp: String,
    pub data: Data,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Data {
    pub decision: String,
    pub decided_at: String,
    pub experiment: String,
    pub revision: u32,
    pub phase: u32,
    pub bucket: String,
    pub guardrail: String,
    pub action: String,
    pub mode: String,
    pub baseline_value: Option<f64>,
    pub bucket_value: Option<f64>,
    pub unit: String,
    pub change: Option<f64>,
    pub since: String,
    pub exposed_units: u64,
    pub reason: String,
    pub author: Option<String>,
    pub notice: Option<Notice>,
    pub undelivered: Option<Undelivered>,
    pub links: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Notice {
    pub at: String,
    pub text: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Undelivered {
    pub endpoint: String,
    pub r#type: String,
    pub reason: String,
    pub given_up: bool,
}

impl Message {
    pub(super) fn read(payload: &str) -> Message {
        serde_json::from_str(payload).unwrap_or_default()
    }

    /// One line: what happened, where, to which metric, by how much.
    pub(super) fn headline(&self) -> String {
        let d = &self.data;
        let whom = if d.experiment.is_empty() { "several experiments" } else { &d.experiment };
        let mut line = format!("[{}] {whom}", self.word());
        if !d.bucket.is_empty() {
            let _ = write!(line, " / {}", d.bucket);
        }
        let _ = write!(line, ": {}", d.guardrail);
        if let Some(change) = d.change {
            let _ = write!(line, " {:+.1}%", change * 100.0);
        }
        line
    }

    fn word(&self) -> &'static str {
        if self.data.undelivered.is_some() {
            return "NOT DELIVERED";
        }
        match (self.r#type.as_str(), self.data.action.as_str()) {
            ("guardrail.unconfirmed", _) => "NOT CONFIRMED",
            ("guardrail.resolved", _) => "RESOLVED",
            (_, "kill") => "KILLED",
            (_, "rollback") => "ROLLED BACK",
            (_, "pause") => "PAUSED",
            (_, "hold") => "ON HOLD",
            _ => "ALERT",
        }
    }

    /// What, since when, what was done, and how to undo it: label and text.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let d = &self.data;
        let mut lines = vec![("What", d.reason.clone())];
        if let (Some(bucket), Some(baseline)) = (d.bucket_value, d.baseline_value) {
            lines.push(("", format!("{} against {} of the baseline", value(bucket, &d.unit), value(baseline, &d.unit))));
        }
        match d.experiment.is_empty() {
            true => lines.push(("Since", d.since.clone())),
            false => lines.push(("Since", format!("{}, phase {}; {} units exposed", d.since, d.phase, d.exposed_units))),
        }
        let by = d.author.as_ref().map_or_else(String::new, |a| format!(" by {a}"));
        let mode = if d.mode == "observe" { " (observe: nothing is changed)" } else { "" };
        lines.push(("Done", format!("{} {}{by}{mode}", d.decided_at, d.action)));
        if let Some(n) = &d.notice {
            lines.push(("", format!("{} {}", n.at, n.text)));
        }
        if let Some(u) = &d.undelivered {
            let what = if u.given_up { "never reached" } else { "is tried again, and has not reached" };
            lines.push(("", format!("{} {} {what} {}: {}", self.timestamp, u.r#type, u.endpoint, u.reason)));
        }
        if self.r#type != "guardrail.resolved" && !d.experiment.is_empty() {
            lines.push(("Undo", format!("guardraild resume {} --reason \"...\"", d.experiment)));
            lines.push(("Hold", format!("guardraild hold {} --for 2h --reason \"...\"", d.experiment)));
        }
        lines
    }

    pub(super) fn severity(&self) -> &'static str {
        let d = &self.data;
        let grave = d.undelivered.is_some() || self.r#type == "guardrail.unconfirmed";
        match d.action.as_str() {
            _ if grave => "critical",
            "kill" | "rollback" | "page" => "critical",
            "pause" => "error",
            _ => "warning",
        }
    }
}

/// Shares are kept as 0..1 and read as percentages.
fn value(v: f64, unit: &str) -> String {
    match unit {
        "%" => format!("{}%", digits(v * 100.0)),
        "" => digits(v),
        _ => format!("{} {unit}", digits(v)),
    }
}

/// Three significant digits where there are decimals.
fn digits(v: f64) -> String {
    let decimals = if v.abs() >= 100.0 || v == v.trunc() { 0 } else { (2 - v.abs().log10().floor() as i32).clamp(0, 6) };
    format!("{v:.*}", decimals as usize)
}
