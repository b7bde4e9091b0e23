//! Parts of an experiment's state as lines for people.

use crate::engine::decision::Timestamp;
use serde_json::Value;

/// Where the rollout stands.
pub fn stage(rollout: &Value) -> Option<String> {
    let since = rollout["phase_since"].as_i64()?;
    let mut out = format!("{}, in this phase since {}", text(&rollout["stage"]), Timestamp(since));
    let moment = |key: &str| rollout[key].as_i64().map(Timestamp);
    if let Some(due) = moment("phase_due") {
        out += &format!(", {} {due}", if rollout["phase_ready"] == true { "ready for the next since" } else { "planned until" });
    }
    if let Some(until) = moment("warming_until") {
        out += &format!(", warming up until {until}");
    }
    if let Some(full) = moment("full_since") {
        out += &format!("; full since {full}");
    }
    if let Some(until) = moment("watched_until") {
        out += &format!(", watched until {until}");
    }
    Some(out)
}

/// What a bucket has seen in a phase.
fn figures(bucket: &Value) -> String {
    let weight = bucket["weight"].as_f64().map(|w| format!(" ({:.1}%)", 100.0 * w)).unwrap_or_default();
    let value = |metric: &Value| match (metric["value"].as_f64(), metric["unit"].as_str()) {
        (None, _) => "no value".to_owned(),
        (Some(value), Some("%")) => format!("{:.2}%", 100.0 * value),
        (Some(value), unit) => format!("{value:.3} {}", unit.unwrap_or_default()).trim_end().to_owned(),
    };
    let metrics = rows(bucket, "metrics").map(|m| format!(", {} {}", text(&m["metric"]), value(m)));
    format!(
        "{}{weight}: {} units, {} exposures, {} events{}",
        text(&bucket["bucket"]),
        bucket["exposed_units"],
        bucket["exposures"],
        bucket["events"],
        metrics.collect::<String>()
    )
}

/// What each phase has seen, by bucket; the only phase that there has been is the whole life.
pub fn phases(state: &Value) -> Vec<String> {
    let visits = rows(state, "phases").filter(|_| rows(state, "phases").count() > 1);
    let of_visit = |seen: &Value| {
        let name = match (seen["phase"].as_u64(), seen["name"].as_str()) {
            (None, _) => "whole life".to_owned(),
            (Some(_), Some(_)) => text(&seen["name"]),
            (Some(phase), None) => format!("phase {phase}"),
        };
        rows(seen, "buckets").map(|bucket| format!("{name}, {}", figures(bucket))).collect::<Vec<_>>()
    };
    visits.chain([&state["whole_life"]]).filter(|seen| !seen.is_null()).flat_map(of_visit).collect()
}

/// How far the workflows of each bucket have come.
pub fn funnels(state: &Value) -> Vec<String> {
    let of_bucket = |funnel: &Value, bucket: &Value| {
        let all = &bucket["all"];
        let n = |key: &str| all[key].as_i64().unwrap_or(0);
        let share =
            |n: i64| if n_started(all) > 0 { format!(" ({:.1}%)", 100.0 * n as f64 / n_started(all) as f64) } else { String::new() };
        let names = rows(funnel, "steps").map(text);
        let steps = names.zip(rows(all, "reached")).map(|(name, n)| format!("{name} {n}{}, ", share(n.as_i64().unwrap_or(0))));
        format!(
            "funnel {}, {}: {} started, {}{} completed{}, {} late, {} abandoned, {} timed out, {} open; {} restarts",
            text(&funnel["funnel"]),
            text(&bucket["bucket"]),
            n("started"),
            steps.collect::<String>(),
            n("completed"),
            share(n("completed")),
            n("completed_late"),
            n("abandoned"),
            n("timed_out"),
            n("open"),
            n("restarted")
        )
    };
    rows(state, "funnels").flat_map(|funnel| rows(funnel, "buckets").map(move |bucket| of_bucket(funnel, bucket))).collect()
}

fn n_started(counts: &Value) -> i64 {
    counts["started"].as_i64().unwrap_or(0)
}

/// Who has come back, by bucket.
pub fn retention(state: &Value) -> Vec<String> {
    let of_bucket = |metric: &Value, bucket: &Value| {
        let rate = bucket["rate"].as_f64().map_or("no unit is old enough yet".to_owned(), |rate| format!("{:.2}%", 100.0 * rate));
        format!(
            "retention {}, {}: {} of {} units active on day {}, {rate}",
            text(&metric["metric"]),
            text(&bucket["bucket"]),
            bucket["active"],
            bucket["eligible"],
            metric["day"]
        )
    };
    rows(state, "retention").flat_map(|metric| rows(metric, "buckets").map(move |bucket| of_bucket(metric, bucket))).collect()
}

pub fn rows<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Text without what commands a terminal: it may come from a record.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// A JSON string without its quotes and without control characters; other values as JSON, null as nothing.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        other => other.to_string(),
    }
}
