//! A webhook body in words, for people.

use crate::report::thousands;
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
    pub epoch: u32,
    pub bucket: String,
    pub segment: Option<String>,
    pub guardrail: String,
    pub criterion: String,
    pub action: String,
    pub mode: String,
    pub baseline_value: Option<f64>,
    pub bucket_value: Option<f64>,
    pub unit: String,
    pub change: Option<f64>,
    pub interval: Option<[f64; 2]>,
    pub margin: Option<f64>,
    pub since: String,
    pub exposed_units: u64,
    pub evidence: Evidence,
    pub reason: String,
    pub held_by: Option<String>,
    pub author: Option<String>,
    pub notice: Option<Notice>,
    pub undelivered: Option<Undelivered>,
    pub links: BTreeMap<String, String>,
}

/// Of a shared cause.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Evidence {
    pub experiments: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Notice {
    pub kind: String,
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

/// Names of experiments that a message about several shows.
const NAMED: usize = 10;

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
        if let Some(segment) = &d.segment {
            let _ = write!(line, " ({segment})");
        }
        if d.criterion == "operator" {
            let _ = write!(line, ": by {}", d.author.as_deref().unwrap_or("an operator"));
            return line;
        }
        let _ = write!(line, ": {}{}", d.guardrail, self.measure());
        line
    }

    /// How much: against a limit the value, against the baseline the change. Shares that are small change a lot without saying much.
    fn measure(&self) -> String {
        let d = &self.data;
        match (d.criterion.as_str(), d.bucket_value, d.margin) {
            ("limit", Some(value), Some(limit)) => format!(" {} (limit {})", amount(value, &d.unit), amount(limit, &d.unit)),
            _ => match (d.bucket_value, d.baseline_value, d.change) {
                (Some(bucket), Some(baseline), _) if d.unit == "%" => {
                    format!(" {} (baseline {})", amount(bucket, "%"), amount(baseline, "%"))
                }
                (_, _, Some(change)) => format!(" {:+.1}%", change * 100.0),
                _ => String::new(),
            },
        }
    }

    fn word(&self) -> &'static str {
        let d = &self.data;
        if d.undelivered.is_some() {
            return "NOT DELIVERED";
        }
        if d.notice.as_ref().is_some_and(|n| n.kind == "held") {
            return "BEING HANDLED";
        }
        match (self.r#type.as_str(), d.action.as_str()) {
            ("guardrail.test", _) => "TEST",
            ("guardrail.unconfirmed", _) if d.criterion == "undone" => "UNDONE",
            ("guardrail.unconfirmed", _) => "NOT CONFIRMED",
            ("guardrail.resolved", _) => "RESOLVED",
            _ if d.held_by.is_some() => "HELD BACK",
            (_, "kill") => "KILLED",
            (_, "rollback") => "ROLLED BACK",
            (_, "pause") => "PAUSED",
            (_, "hold") => "ON HOLD",
            _ => "ALERT",
        }
    }

    /// What, since when, what was done, whether it worked: label and text.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let d = &self.data;
        let mut lines = vec![("What", d.reason.clone())];
        if d.criterion == "limit"
            && let Some([low, high]) = d.interval
        {
            lines.push(("", format!("its interval is {} to {}", amount(low, &d.unit), amount(high, &d.unit))));
        }
        if !d.evidence.experiments.is_empty() {
            let names = &d.evidence.experiments;
            let more = names.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            lines.push(("Who", format!("{}{more}", names[..names.len().min(NAMED)].join(", "))));
        }
        let before = span(&d.since, &d.decided_at).map_or_else(String::new, |span| format!(" ({span} before)"));
        let mut since = format!("{}{before}", moment(&d.since));
        if !d.experiment.is_empty() {
            let _ = write!(since, "; revision {}, phase {}; {} units exposed", d.revision, d.phase, thousands(d.exposed_units));
        }
        lines.push(("Since", since));
        lines.push(("Done", self.done()));
        if let Some(n) = &d.notice {
            lines.push(("", format!("{} {}", moment(&n.at), n.text)));
        }
        if let Some(u) = &d.undelivered {
            let what = if u.given_up { "never reached" } else { "is tried again, and has not reached" };
            lines.push(("", format!("{} {} {what} {}: {}", moment(&self.timestamp), u.r#type, u.endpoint, u.reason)));
        }
        lines
    }

    fn done(&self) -> String {
        let d = &self.data;
        let by = d.author.as_ref().map_or_else(String::new, |a| format!(" by {a}"));
        let acts = matches!(d.action.as_str(), "pause" | "rollback" | "kill");
        let how = match (&d.held_by, d.mode.as_str()) {
            (Some(limit), _) => format!(", held back by {limit}: a person has to do it"),
            (None, "observe") if acts => ", not sent: the rule only observes".to_owned(),
            _ => String::new(),
        };
        let what = match d.action.as_str() {
            "page" | "notify" => "nothing but this message",
            "hold" => "gates hold the rollout",
            action => action,
        };
        format!("{} {what}{by}{how}", moment(&d.decided_at))
    }

    /// What a person may do now: label and command line.
    pub(super) fn commands(&self) -> Vec<(&'static str, String)> {
        let d = &self.data;
        if d.experiment.is_empty() || matches!(self.r#type.as_str(), "guardrail.resolved" | "guardrail.test") {
            return Vec::new();
        }
        let command = |verb: &str, options: &str| format!("guardraild {verb} {}{options} --reason \"...\"", d.experiment);
        let bucket = if d.bucket.is_empty() { String::new() } else { format!(" --bucket {}", d.bucket) };
        let acted = matches!(d.action.as_str(), "pause" | "rollback" | "kill") && d.held_by.is_none();
        let unsafe_still = self.r#type == "guardrail.unconfirmed" || d.undelivered.is_some();
        let mut commands = Vec::new();
        if unsafe_still {
            commands.push(("Kill", command("kill", &bucket)));
        } else if !acted {
            commands.push(("Stop", command("rollback", &bucket)));
        }
        commands.push((if acted || unsafe_still { "Undo" } else { "Re-arm" }, command("resume", "")));
        commands.push(("Hold", command("hold", " --for 2h")));
        commands
    }

    /// Lines and commands as a table of plain text.
    pub(super) fn table(&self) -> String {
        let rows = self.lines().into_iter().chain(self.commands());
        rows.map(|(label, text)| format!("{label:<6} {text}")).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn severity(&self) -> &'static str {
        let d = &self.data;
        let grave = d.undelivered.is_some() || self.r#type == "guardrail.unconfirmed";
        match d.action.as_str() {
            _ if grave => "critical",
            _ if matches!(self.r#type.as_str(), "guardrail.confirmed" | "guardrail.test") => "info",
            "kill" | "rollback" | "page" => "critical",
            "pause" => "error",
            _ => "warning",
        }
    }

    /// What it is about, for as long as nobody re-arms it.
    pub(super) fn topic(&self) -> String {
        let d = &self.data;
        match d.experiment.is_empty() {
            true => d.decision.clone(),
            false => format!("{}/{}/{}/{}/{}", d.experiment, d.revision, d.bucket, d.guardrail, d.epoch),
        }
    }
}

/// Shares are kept as 0..1 and read as percentages.
fn amount(v: f64, unit: &str) -> String {
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

/// To the second; what is no instant stays as it is.
fn moment(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => text.to_owned(),
    }
}

fn span(from: &str, to: &str) -> Option<String> {
    let instant = |text: &str| text.parse::<jiff::Timestamp>().ok().map(|t| t.as_second());
    let seconds = instant(to)? - instant(from)?;
    match seconds {
        ..1 => None,
        1..120 => Some(format!("{seconds} s")),
        120..7_200 => Some(format!("{} min", seconds / 60)),
        _ => Some(format!("{} h", seconds / 3_600)),
    }
}
