//! What is proposed: a rule file in `observe` mode, its test, and sources of foreign layouts.

use super::layout::definition;
use super::seen::ms;
use super::tally::{Experiment, Figures, Tally, VALUES};
use super::{Found, Layout};
use crate::engine::decision::Timestamp;
use crate::report::thousands;
use std::fmt::Write as _;

/// Names of endpoints that the configuration has, for each kind of receiver.
#[derive(Clone, Debug, Default)]
pub struct Receivers {
    pub webhook: Option<String>,
    pub pagerduty: Option<String>,
    pub slack: Option<String>,
}

/// Fewer requests say nothing about a quantile in a tail.
const ENOUGH: u64 = 100;
/// Seconds of a sample from which units of a day are extrapolated.
const LONG: f64 = 60.0;

/// The first lines of a file of this kind, as editors read them. `schemas` is the folder with the schemas, from where the file is.
fn modeline(schemas: &str, kind: &str) -> String {
    format!("# yaml-language-server: $schema={schemas}/{kind}.v1.schema.json\n")
}

/// A rule file for an experiment; without one that was seen, a starter to fill in.
pub fn rule(name: &str, found: &Found, schemas: &str, receivers: &Receivers) -> String {
    let nothing = Experiment::default();
    let tally = &found.tally;
    let seen = tally.experiments.get(name);
    let experiment = seen.unwrap_or(&nothing);
    let figures = if experiment.figures.requests >= ENOUGH { &experiment.figures } else { &tally.all };
    let mut out = modeline(schemas, "rule");
    out.push_str("#\n");
    match (seen, tally.first, tally.last) {
        (Some(_), Some(first), Some(last)) => {
            let _ = writeln!(
                out,
                "# Proposed by `guardraild init` from {} events, {} .. {}.",
                tally.records,
                Timestamp(first),
                Timestamp(last)
            );
            out.push_str("# The figures in comments are what it saw; limits and margins are guesses from them, for you to correct.\n");
        }
        _ => out.push_str("# A rule file to begin with: no events were looked at, so limits and margins are examples.\n"),
    }
    out.push_str("# Every key: docs/rule-reference.md. Is it right? `guardraild check`. Would it alarm? `guardraild test`, `backtest`, `simulate`.\n");
    out.push_str("guardrail: v1\n\n");
    let _ = writeln!(out, "overview: {{experiment: {}, owner: change-me}}", quoted(name));
    out.push_str("  # starts: 2026-12-01T09:00:00Z, ends: 2026-12-15T09:00:00Z, hypothesis: {change: …, impact: …, mde: 2%}\n");
    buckets(experiment, &mut out);
    metrics(figures, experiment.units(), tally, &mut out);
    guardrails(figures, experiment.units(), &mut out);
    analysis(experiment, &mut out);
    actions(name, &baseline(experiment), receivers, &mut out);
    out
}

/// Sources of the topics whose records a preset reads, or have a schema, as a file of its own.
pub fn sources(found: &Found, schemas: &str) -> Option<String> {
    let mut out = modeline(schemas, "sources");
    out.push_str("guardrail: v1\nsources:\n");
    let head = out.len();
    for topic in &found.topics {
        let definition = match (&topic.layout, topic.schema) {
            (Layout::Preset(preset, format, _), _) => definition(&topic.name, Some(preset), format),
            (Layout::Canonical, Some(format)) => definition(&topic.name, None, format.name()),
            _ => continue,
        };
        let _ = writeln!(out, "  {}: {definition}", quoted(&topic.name));
    }
    (out.len() > head).then_some(out)
}

/// A test of the rule file.
pub fn test(found: &Found, name: &str, schemas: &str) -> String {
    let figures = found.tally.experiments.get(name).map(|e| &e.figures).filter(|f| f.requests >= ENOUGH).unwrap_or(&found.tally.all);
    let latency = figures.latency.as_ref().filter(|latency| latency.n >= ENOUGH);
    let (p50, p95) = latency.map_or((180.0, 420.0), |l| (l.quantile(0.5).max(1.0), l.quantile(0.95)));
    let errors = if figures.requests >= ENOUGH { figures.errors as f64 / figures.requests as f64 } else { 0.01 };
    let mut out = modeline(schemas, "test");
    let _ = writeln!(out, "guardrail_test: v1");
    let _ = writeln!(
        out,
        "traffic: {{units: 20/s, requests: {{per_unit: 3, gap: 10s}}, latency: {{p50: {p50:.0}ms, p95: {:.0}ms}}, errors: {{rate: {:.2}%}}}}",
        p95.max(p50.round() + 1.0),
        100.0 * errors
    );
    out.push_str(
        "cases:
  - name: identical buckets stay quiet
    for: 1h
    expect: [{never: any}]
  - name: failing requests are noticed
    for: 40m
    faults: [{from: 15m, change: {error_rate: +10pp}}]
    expect:
      - {never: any, until: 15m}
      - {acts: rollback, guardrail: error_rate, within: 10m}
",
    );
    out
}

/// The bucket that others are compared with, by its name, else the first.
fn baseline(experiment: &Experiment) -> String {
    const USUAL: [&str; 8] = ["control", "baseline", "default", "off", "false", "original", "a", "0"];
    let named = USUAL.iter().find_map(|usual| experiment.buckets.keys().find(|name| name.eq_ignore_ascii_case(usual)));
    named.or_else(|| experiment.buckets.keys().next()).cloned().unwrap_or_else(|| "control".to_owned())
}

fn buckets(experiment: &Experiment, out: &mut String) {
    let baseline = baseline(experiment);
    let mut seen: Vec<(String, u64)> = experiment.buckets.iter().map(|(name, n)| (name.clone(), *n)).collect();
    // Two are needed: one that has not been seen is called by its usual name.
    for usual in ["control", "treatment"] {
        if seen.len() < 2 && seen.iter().all(|(name, _)| name != usual) {
            seen.push((usual.to_owned(), 0));
        }
    }
    let units = experiment.units();
    let equal = 1.0 / seen.len() as f64;
    // Six standard deviations: what is more is meant.
    let slack = 6.0 * (equal * (1.0 - equal) / units.max(1) as f64).sqrt();
    let is_equal = units == 0 || seen.iter().all(|(_, n)| (*n as f64 / units as f64 - equal).abs() <= slack);
    let weights = whole_percents(&seen.iter().map(|(_, n)| *n).collect::<Vec<_>>());
    out.push_str("\nbuckets:\n");
    for ((name, n), weight) in seen.iter().zip(weights) {
        let mut keys = Vec::new();
        if !is_equal {
            keys.push(format!("weight: {weight}%"));
        }
        if *name == baseline {
            keys.push("baseline: true".to_owned());
        }
        let share = if units > 0 {
            format!("   # seen: {:.1}% of {} units", 100.0 * *n as f64 / units as f64, thousands(units))
        } else {
            String::new()
        };
        let _ = writeln!(out, "  {}: {{{}}}{share}", quoted(name), keys.join(", "));
    }
}

/// Shares in whole percents, at least one each, that add up to 100.
fn whole_percents(counts: &[u64]) -> Vec<u64> {
    let all = counts.iter().sum::<u64>().max(1) as f64;
    let mut percents: Vec<u64> = counts.iter().map(|n| ((100.0 * *n as f64 / all).round() as u64).max(1)).collect();
    let rest = percents.iter().sum::<u64>() as i64 - 100;
    if let Some(largest) = percents.iter_mut().max() {
        *largest = (*largest as i64 - rest).max(1).unsigned_abs();
    }
    percents
}

/// Outcomes as metrics, and the first rate of units as the primary one.
fn metrics(figures: &Figures, units: u64, tally: &Tally, out: &mut String) {
    if figures.outcomes.is_empty() {
        return;
    }
    out.push_str("\nmetrics:\n");
    let mut primary = None;
    for (name, (values, hits)) in &figures.outcomes {
        let filter = format!("where: {{metric: {}}}, unit: user, better: up", quoted(name));
        if values.is_flag {
            let rate = hits.len() as f64 / units.max(1) as f64;
            let known = units >= ENOUGH && rate > 0.0 && rate < 1.0;
            let baseline = if known { format!(", baseline: {:.1}%", (100.0 * rate).max(0.1)) } else { String::new() };
            let _ = writeln!(out, "  {}: {{kind: rate, event: outcome, {filter}{baseline}}}", metric_name(name));
            primary = primary.or(known.then(|| metric_name(name)));
        } else {
            let covariate = if values.covariates * 2 > values.n { ", covariate: /covariate" } else { "" };
            let _ = writeln!(out, "  {}: {{kind: mean, event: outcome, {filter}, value: /value{covariate}}}", metric_name(name));
        }
    }
    if let Some(primary) = primary {
        let day = 86_400.0 * units as f64 / tally.seconds();
        let expected = if tally.seconds() >= LONG { format!(", expected_units: {}/day", short(day)) } else { String::new() };
        out.push_str("\nsuccess:\n");
        let _ = writeln!(
            out,
            "  primary: {{metric: {primary}, mde: 2%, power: 80%{expected}}}   # stop_on_negative: 0% stops when it is proved worse"
        );
    }
}

/// A metric's name in the rule file: not that of a built-in one.
fn metric_name(name: &str) -> String {
    let taken = crate::rules::BUILT_IN.contains(&name);
    quoted(&if taken { format!("{name}_outcome") } else { name.to_owned() })
}

fn guardrails(figures: &Figures, units: u64, out: &mut String) {
    out.push_str("\nguardrails:\n");
    let latency = figures.latency.as_ref().filter(|latency| latency.n >= ENOUGH);
    if let Some(latency) = latency {
        let (p50, p95, p99) = (ms(latency, 0.5), ms(latency, 0.95), ms(latency, 0.99));
        let _ = writeln!(out, "  # seen: p50 {p50} ms, p95 {p95} ms, p99 {p99} ms of {} requests", latency.n);
    }
    let limit = |q: f64| latency.map_or(String::new(), |l| format!(", limit: {:.0}ms", up(2.0 * l.quantile(q).max(1.0))));
    let _ = writeln!(out, "  - {{metric: latency_p95, window: 10m, max_increase: 10%{}}}", limit(0.95));
    let _ = writeln!(out, "  - {{metric: latency_p99, max_increase: 20%{}}}", limit(0.99));
    let rate = if figures.requests >= ENOUGH {
        let rate = 100.0 * figures.errors as f64 / figures.requests as f64;
        let _ = writeln!(out, "  # seen: {rate:.2}% of {} requests", figures.requests);
        rate
    } else {
        1.0
    };
    let (margin, limit) = (up((0.5 * rate).max(0.2)), up((4.0 * rate).clamp(2.0, 90.0)));
    let _ = writeln!(out, "  - {{metric: error_rate, max_increase: {margin}pp, limit: {limit}%}}");
    if figures.started > 0 {
        let rate = 100.0 * (1.0 - figures.completed as f64 / figures.started as f64).clamp(0.0, 1.0);
        let _ = writeln!(out, "  # seen: {} workflows, {rate:.0}% of them not completed within this sample", figures.started);
        let _ = writeln!(
            out,
            "  - {{metric: abandonment, within: 30m, max_increase: {}pp, on_breach: notify}}",
            up((0.1 * rate).clamp(1.0, 5.0))
        );
    }
    if figures.tickets > 0 {
        let per_unit = figures.tickets as f64 / units.max(1) as f64;
        let _ = writeln!(out, "  # seen: {per_unit:.4} per exposed unit");
        let _ = writeln!(out, "  - {{metric: tickets, window: 6h, limit: {}, on_breach: notify}}", up((3.0 * per_unit).max(0.001)));
    }
    if figures.flags > 0 {
        let _ = writeln!(out, "  # seen: {} compliance flags, which a limit of 0 would act on at once", figures.flags);
        out.push_str("  # - {metric: compliance_flags, limit: 0, on_breach: rollback}\n");
    } else {
        out.push_str("  - {metric: compliance_flags, limit: 0, on_breach: rollback}   # `kill`, where there is a kill switch\n");
    }
}

fn analysis(experiment: &Experiment, out: &mut String) {
    let few = experiment.attributes.iter().filter(|(_, values)| (2..=VALUES).contains(&values.len()));
    let by: Vec<String> = few.map(|(name, _)| quoted(name)).take(crate::engine::plan::MAX_ATTRIBUTES).collect();
    out.push_str("\nanalysis:\n  alpha: 0.01   # chance of a false alarm over the whole life of the experiment\n");
    if !by.is_empty() {
        let _ = writeln!(out, "  segments: {{by: [{}], act: false}}", by.join(", "));
    }
}

fn actions(name: &str, baseline: &str, receivers: &Receivers, out: &mut String) {
    out.push_str("\nactions:\n  mode: observe   # decides and shows, and delivers no rollback, kill or pause; `enforce` does\n");
    let webhook = receivers.webhook.as_deref().unwrap_or("flag-service");
    let body = format!("body: {{flag: {}, serve: {}}}", quoted(name), quoted(baseline));
    let _ = writeln!(out, "  rollback: {{webhook: {}, {body}}}", quoted(webhook));
    match (&receivers.slack, &receivers.webhook) {
        (Some(slack), _) => {
            let _ = writeln!(out, "  notify: {{slack: {}}}", quoted(slack));
        }
        _ => {
            let _ = writeln!(out, "  notify: {{webhook: {}}}", quoted(webhook));
        }
    }
    if let Some(pagerduty) = &receivers.pagerduty {
        let _ = writeln!(out, "  page: {{pagerduty: {}}}", quoted(pagerduty));
    }
    out.push_str("  # confirm_within: 2m, unconfirmed: [page], rate_limit: {rollbacks: 3/h}\n");
}

/// Two digits, rounded up: 0.2, 5.3, 840.
fn up(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    let unit = 10f64.powf(value.log10().floor() - 1.0);
    let digits = (value / unit - 1e-9).ceil();
    // The inverse of a small unit is exact where the unit is not.
    if unit < 1.0 { digits / (1.0 / unit).round() } else { digits * unit }
}

/// `173k`.
fn short(n: f64) -> String {
    if n >= 10_000.0 { format!("{:.0}k", n / 1_000.0) } else { format!("{:.0}", n.max(1.0)) }
}

/// A name as YAML writes it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(plain);
    let is_word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_plain && !is_word { text.to_owned() } else { serde_json::to_string(text).unwrap_or_default() }
}
