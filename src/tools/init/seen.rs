//! What a sample holds, for people.

use super::tally::{Experiment, Figures, Tally, VALUES, Values};
use super::{Found, Layout};
use crate::engine::decision::Timestamp;
use crate::report::thousands;
use std::fmt::Write as _;

/// A page about the sample.
pub fn told(found: &Found) -> String {
    let mut out = String::new();
    for topic in &found.topics {
        let refused: Vec<String> = topic.refused.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        let refused = if refused.is_empty() { String::new() } else { format!(", refused: {}", refused.join(", ")) };
        let schema = topic.schema.map(|format| format!("{}: ", format.name())).unwrap_or_default();
        let layout = match &topic.layout {
            Layout::Empty => "nothing in it".to_owned(),
            Layout::Canonical => format!("canonical events{refused}"),
            Layout::Preset(preset, ..) => format!("as {preset} writes them: {} events{refused}", topic.events),
            Layout::Schema(why) => format!("they begin with the id of a schema, and cannot be read: {why}"),
            Layout::Unknown(fields) if fields.is_empty() => "no JSON".to_owned(),
            Layout::Unknown(fields) => {
                let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                format!("a layout of its own, which needs a source; fields {}", names.join(" "))
            }
        };
        let _ = writeln!(out, "{:<24} {:>9} records  {schema}{layout}", topic.name, thousands(topic.records));
    }
    let tally = &found.tally;
    if let (Some(first), Some(last)) = (tally.first, tally.last) {
        let _ = writeln!(out, "{:<24} {:>9} events   {} .. {}", "", thousands(tally.records), Timestamp(first), Timestamp(last));
    }
    for (name, experiment) in &tally.experiments {
        told_experiment(name, experiment, tally, &mut out);
    }
    if !tally.kinds.is_empty() {
        let _ = writeln!(out, "\nevents");
    }
    for (name, kind) in &tally.kinds {
        let missing = 100.0 * (kind.n - kind.users) as f64 / kind.n as f64;
        let own = |pointer: &&String| !["/event", "/ts", "/id", "/tenant_id", "/user_id"].contains(&pointer.as_str());
        let fields: Vec<&str> = kind.fields.keys().filter(own).map(|pointer| pointer.trim_start_matches('/')).collect();
        let _ = writeln!(out, "  {name:<22} {:>9}   without user {missing:.1}%   {}", thousands(kind.n), fields.join(" "));
    }
    joined(tally, &mut out);
    out
}

fn told_experiment(name: &str, experiment: &Experiment, tally: &Tally, out: &mut String) {
    let units = experiment.units();
    let rate = units as f64 / tally.seconds();
    let _ = writeln!(out, "\nexperiment {name}: {} units, {rate:.1}/s", thousands(units));
    for (bucket, n) in &experiment.buckets {
        let _ = writeln!(out, "  {bucket:<22} {:>9}   {:.1}%", thousands(*n), 100.0 * *n as f64 / units.max(1) as f64);
    }
    for (attribute, values) in &experiment.attributes {
        let names: Vec<&str> = values.keys().take(8).map(String::as_str).collect();
        let more = if values.len() > VALUES {
            ", … too many for segments"
        } else if values.len() > 8 {
            ", …"
        } else {
            ""
        };
        let _ = writeln!(out, "  by {attribute}: {}{more}", names.join(", "));
    }
    figures(&experiment.figures, units, out);
}

fn figures(of: &Figures, units: u64, out: &mut String) {
    if let Some(latency) = of.latency.as_ref().filter(|latency| latency.n > 0) {
        let _ = writeln!(out, "  latency                p50 {}, p95 {}, p99 {} ms", ms(latency, 0.5), ms(latency, 0.95), ms(latency, 0.99));
    }
    let share = |n: u64, of: u64| 100.0 * n as f64 / of.max(1) as f64;
    if of.requests > 0 {
        let _ = writeln!(out, "  errors                 {:.2}% of {} requests", share(of.errors, of.requests), thousands(of.requests));
    }
    if of.started > 0 {
        let _ = writeln!(
            out,
            "  workflows              {} started, {:.1}% completed so far",
            thousands(of.started),
            share(of.completed, of.started)
        );
    }
    for (what, n) in [("tickets", of.tickets), ("compliance flags", of.flags)] {
        if n > 0 {
            let _ = writeln!(out, "  {what:<22} {}, {:.3} per unit", thousands(n), n as f64 / units.max(1) as f64);
        }
    }
    for (metric, (values, hits)) in &of.outcomes {
        let text = if values.is_flag {
            format!("{} of {} units ({:.1}%)", thousands(hits.len() as u64), thousands(units), share(hits.len() as u64, units))
        } else {
            format!(
                "mean {:.2}, p50 {:.2}, p95 {:.2} of {}",
                values.mean(),
                values.quantile(0.5),
                values.quantile(0.95),
                thousands(values.n)
            )
        };
        let _ = writeln!(out, "  outcome {metric:<14} {text}");
    }
}

fn joined(tally: &Tally, out: &mut String) {
    let all = tally.together + tally.apart + tally.unexposed;
    if all == 0 {
        return;
    }
    let share = |n: u64| 100.0 * n as f64 / all as f64;
    let exposed = tally.together + tally.apart;
    let _ = writeln!(out, "\nevents of users: {:.1}% exposed before, in this sample", share(exposed));
    if tally.several && exposed > 0 {
        let together = 100.0 * tally.together as f64 / exposed as f64;
        let _ = writeln!(out, "  of these {together:.1}% in the partition number of their exposure");
    }
    if 20 * tally.apart > all {
        out.push_str("  a user's exposures and events must meet in one partition number: give producers one key and one partitioner\n");
    }
}

pub fn ms(latency: &Values, q: f64) -> String {
    format!("{:.0}", latency.quantile(q))
}
