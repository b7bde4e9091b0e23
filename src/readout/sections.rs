//! Sections 7, 8 and 9 of the runbook.

use super::Dossier;
use super::charts::{self, Chart};
use super::document::{Block, Document, Inline, Span};
use super::outcome::{self, Advice, State, number, rows, text};
use super::plan::Plan;
use crate::engine::decision::Timestamp;
use crate::report::Unit;
use serde_json::Value;

/// Kinds of log entries that are milestones: the rest have tables of their own.
const MILESTONES: [&str; 12] = [
    "launch",
    "phase",
    "full_rollout",
    "watch_over",
    "ended",
    "operator",
    "resolved",
    "rules",
    "recovery",
    "annotation",
    "withheld",
    "exploratory",
];

pub fn of(dossier: &Dossier) -> Document {
    let plan = Plan::of(&dossier.rule);
    let name = Some(&plan.name).filter(|name| !name.is_empty()).unwrap_or(&dossier.experiment);
    let mut doc = Document { title: format!("Readout: {name}"), under: under(dossier), blocks: Vec::new() };
    headline(&mut doc, dossier);
    overview(&mut doc, dossier, &plan);
    log(&mut doc, dossier);
    readout(&mut doc, dossier, &plan);
    artifacts(&mut doc, dossier, &plan);
    doc
}

fn under(dossier: &Dossier) -> String {
    let state = dossier.state.as_ref();
    let revision = state.map(|s| format!(", revision {}", s["revision"])).unwrap_or_default();
    let what = match (state, dossier.last) {
        (None, _) => "no figures are kept".to_owned(),
        (Some(_), true) => format!("final figures of {}", minute(dossier.at)),
        (Some(state), false) => format!("figures of {}, stage {}", minute(dossier.at), text(&state["rollout"], "stage")),
    };
    format!("{}{revision}: {what}", dossier.experiment)
}

/// To the second: nobody reads milliseconds.
fn minute(at: i64) -> Timestamp {
    Timestamp(at / 1_000 * 1_000)
}

/// The suggestion of the bucket that fares best.
fn headline(doc: &mut Document, dossier: &Dossier) {
    let suggestions = outcome::suggestions(dossier);
    let Some(best) = suggestions.iter().max_by_key(|s| s.advice) else { return };
    let whom = if best.advice == Advice::Ship || suggestions.len() > 1 { format!(" {}", best.bucket) } else { String::new() };
    let text =
        Inline::from("Suggested: ").then(Span::Verdict(best.advice.name().to_owned())).then(format!("{whom}: {}.", ended(&best.reason)));
    doc.blocks.push(Block::Callout(text));
}

/// Without its full stop.
fn ended(text: &str) -> &str {
    text.trim_end_matches('.')
}

fn overview(doc: &mut Document, dossier: &Dossier, plan: &Plan) {
    let mut items = Vec::new();
    let mut say = |name: &str, told: &str| {
        if !told.is_empty() {
            items.push(Inline::from(Span::Strong(name.to_owned())).then(format!(": {told}")));
        }
    };
    say("Owner", &plan.owner);
    say("Hypothesis", &plan.hypothesis);
    say("Mode", dossier.state.as_ref().map_or("", |s| text(s, "mode")));
    if !items.is_empty() {
        doc.list(items);
    }
}

fn log(doc: &mut Document, dossier: &Dossier) {
    doc.heading("7. Execution log");
    doc.subheading("Milestones");
    let kept = |entry: &&Value| MILESTONES.contains(&text(entry, "kind"));
    let row = |entry: &Value| vec![time(entry), word(text(entry, "kind")).into(), with_links(entry), author(entry)];
    let milestones = dossier.log.iter().filter(kept).map(row).collect();
    doc.table(&["time (UTC)", "what", "details", "author"], milestones, "None is recorded.");
    if dossier.cut {
        doc.paragraph(format!("The log is longer than the {} entries that are shown.", dossier.log.len()));
    }
    doc.subheading("Decisions and rationale");
    doc.table(
        &["time (UTC)", "action", "decision and rationale", "deliveries", "author"],
        dossier.decisions.iter().map(|d| decision(dossier, d)).collect(),
        "None was taken.",
    );
    doc.subheading("Issues and mitigations");
    let mut issues: Vec<Inline> = dossier.log.iter().filter(|e| ["incident", "mitigation"].contains(&text(e, "kind"))).map(note).collect();
    issues.extend(failed_deliveries(dossier));
    issues.push(Span::Blank("further issues, and what was done about them".to_owned()).into());
    doc.list(issues);
}

fn decision(dossier: &Dossier, d: &Value) -> Vec<Inline> {
    let id = text(d, "decision");
    let link = dossier.dashboard.as_deref().and_then(|url| url.split_once("#/e/")).map(|(root, _)| format!("{root}#/d/{id}"));
    let named = link.map_or_else(|| Inline::from(Span::Code(id.to_owned())), |url| Span::Link(id.to_owned(), url).into());
    let whom = if text(d, "bucket").is_empty() { String::new() } else { format!(" {}", text(d, "bucket")) };
    let notices: Vec<&str> = ["confirmed", "resolved"]
        .into_iter()
        .filter(|kind| dossier.log.iter().any(|e| text(e, "kind") == *kind && text(e, "decision") == id))
        .collect();
    let after = if notices.is_empty() { String::new() } else { format!(" ({})", notices.join(", ")) };
    let mode = if text(d, "mode") == "observe" { ", observed only" } else { "" };
    let deliveries: Vec<String> = rows(d, "deliveries").map(|row| format!("{}: {}", text(row, "endpoint"), text(row, "state"))).collect();
    let by = d["author"].as_str().unwrap_or("guardraild");
    vec![
        clock(text(d, "decided_at")).into(),
        format!("{}{whom}{mode}{after}", text(d, "action")).into(),
        named.then(format!(" {}", text(d, "reason"))),
        if deliveries.is_empty() { "none".into() } else { deliveries.join("; ").into() },
        by.into(),
    ]
}

/// What went wrong on the way out.
fn failed_deliveries(dossier: &Dossier) -> Vec<Inline> {
    let failed = |entry: &&Value| {
        text(entry, "kind") == "delivery" && [" fails: ", " given up: "].iter().any(|mark| text(entry, "text").contains(mark))
    };
    dossier.log.iter().filter(failed).map(note).collect()
}

fn readout(doc: &mut Document, dossier: &Dossier, plan: &Plan) {
    doc.heading("8. Final readout");
    doc.subheading("Outcome summary");
    match dossier.state.as_ref().map(State) {
        Some(state) => outcome(doc, dossier, state, plan),
        None => doc.paragraph("No figures are kept of this experiment: it ended before they were, or store.retention is over."),
    }
    doc.subheading("Decision");
    let mut items: Vec<Inline> = outcome::suggestions(dossier)
        .iter()
        .map(|s| {
            Inline::from(format!("Suggested for {}: ", s.bucket))
                .then(Span::Verdict(s.advice.name().to_owned()))
                .then(format!(", because {}.", ended(&s.reason)))
        })
        .collect();
    items.push(Inline::from("Decision taken (ship, iterate or roll back), by whom, when: ").then(Span::Blank("to fill in".to_owned())));
    let flag = if plan.flag.is_empty() {
        "Feature flag".to_owned()
    } else {
        format!("Feature flag {} (default {})", plan.flag, plan.flag_default)
    };
    items.extend(outcome::flag(dossier).into_iter().map(|(bucket, told)| format!("{flag}, {bucket}: {told}.").into()));
    doc.list(items);
    doc.subheading("Learnings");
    notes(doc, dossier, "learning", "behavioural insights, follow-up hypotheses");
    doc.subheading("Next actions");
    notes(doc, dossier, "next", "tickets, backlog items, follow-on experiments");
}

fn notes(doc: &mut Document, dossier: &Dossier, kind: &str, hint: &str) {
    let mut items: Vec<Inline> = dossier.log.iter().filter(|e| text(e, "kind") == kind).map(note).collect();
    items.push(Span::Blank(hint.to_owned()).into());
    doc.list(items);
}

fn outcome(doc: &mut Document, dossier: &Dossier, state: State<'_>, plan: &Plan) {
    let others: Vec<&Value> = state.buckets().filter(|b| b["baseline"] != true).collect();
    let lifts: Vec<&Value> = others.iter().filter_map(|b| state.lift(text(b, "bucket"))).collect();
    if lifts.is_empty() {
        let which = if plan.primary.is_empty() {
            "The rule names no primary metric."
        } else {
            "The primary metric is not compared: its rule has no stop_on_negative."
        };
        doc.paragraph(which);
    } else {
        let mde = if plan.mde.is_empty() { String::new() } else { format!(" The smallest change worth detecting was {}.", plan.mde) };
        doc.paragraph(format!(
            "Lift of the primary metric, with an interval that holds however often it was looked at; false alarms of all tests together stay within {} over the experiment's life.{mde}",
            plan.alpha
        ));
        doc.table(
            &["metric", "bucket", "#baseline", "#bucket", "#lift", "interval", "verdict"],
            lifts.iter().map(|g| compared(state, g)).collect(),
            "",
        );
        draw(doc, charts::guardrails(dossier, state, true));
    }
    if rows(state.0, "secondary").next().is_some() {
        doc.subheading("Secondary metrics");
        doc.paragraph(
            "Shown, never acted on; with their own budget, so that the chance to show any difference that is none stays within alpha, too.",
        );
        let head = ["metric", "bucket", "#baseline", "#bucket", "#change", "interval", "what is known"];
        doc.table(&head, rows(state.0, "secondary").map(secondary_row).collect(), "None.");
    }
    doc.subheading("Guardrails");
    let guarded: Vec<&Value> = rows(state.0, "guardrails").filter(|g| g["primary"] != true).collect();
    let head = ["guardrail", "bucket", "verdict", "#baseline", "#value", "#change", "interval", "#margin or limit", "decision"];
    doc.table(&head, guarded.iter().map(|g| guarded_row(state, g)).collect(), "None.");
    draw(doc, charts::guardrails(dossier, state, false));
    draw(doc, charts::distributions(dossier, state));
    doc.subheading("Split and phases");
    let units = state.buckets().map(|b| {
        vec![
            text(b, "bucket").into(),
            share(&b["weight"]).into(),
            number(&b["exposed_units"]).into(),
            number(&b["exposures"]).into(),
            number(&b["events"]).into(),
            number(&b["mixed_units"]).into(),
        ]
    });
    doc.table(&["bucket", "#designed", "#units", "#exposures", "#events", "#in two buckets"], units.collect(), "None.");
    draw(doc, charts::split(dossier, state));
    phases(doc, state);
    doc.subheading("Data quality");
    let checks = rows(state.0, "quality")
        .map(|q| vec![text(q, "check").into(), Span::Verdict(text(q, "verdict").to_owned()).into(), text(q, "reason").into()]);
    doc.table(&["check", "verdict", "why"], checks.collect(), "No check is on.");
    usage(doc, state);
    draw(doc, charts::segments(state));
}

/// Funnels and retention: as charts, and as tables where there are none.
fn usage(doc: &mut Document, state: State<'_>) {
    let funnels: Vec<&Value> = rows(state.0, "funnels").collect();
    let retention: Vec<&Value> = rows(state.0, "retention").collect();
    if funnels.is_empty() && retention.is_empty() {
        return;
    }
    doc.subheading("Funnels and retention");
    let reached = |funnel: &Value, bucket: &Value| {
        let matured = &bucket["matured"];
        let started = matured["started"].as_i64().unwrap_or(0);
        let part = |n: Option<i64>| match n {
            Some(n) if started > 0 => format!("{n} ({})", Unit::Share.show(n as f64 / started as f64)),
            n => n.unwrap_or(0).to_string(),
        };
        let steps: Vec<String> = rows(funnel, "steps")
            .enumerate()
            .map(|(i, step)| format!("{} {}", step.as_str().unwrap_or_default(), part(matured["reached"][i].as_i64())))
            .collect();
        vec![
            text(funnel, "funnel").into(),
            text(bucket, "bucket").into(),
            started.to_string().into(),
            steps.join(", ").into(),
            part(matured["completed"].as_i64()).into(),
        ]
    };
    let table: Vec<Vec<Inline>> = funnels.iter().flat_map(|f| rows(f, "buckets").map(move |b| reached(f, b))).collect();
    if !table.is_empty() {
        doc.table(&["funnel", "bucket", "#started", "steps reached", "#completed"], table, "");
    }
    draw(doc, charts::funnels(state));
    let came_back = |m: &Value, b: &Value| {
        let rate = b["rate"].as_f64().map_or("no unit is old enough yet".to_owned(), |rate| Unit::Share.show(rate));
        vec![
            text(m, "metric").into(),
            m["day"].to_string().into(),
            text(b, "bucket").into(),
            number(&b["eligible"]).into(),
            number(&b["active"]).into(),
            rate.into(),
        ]
    };
    let table: Vec<Vec<Inline>> = retention.iter().flat_map(|m| rows(m, "buckets").map(move |b| came_back(m, b))).collect();
    if !table.is_empty() {
        doc.table(&["retention", "#day", "bucket", "#units of age", "#active", "#rate"], table, "");
    }
    draw(doc, charts::retention(state));
}

fn phases(doc: &mut Document, state: State<'_>) {
    let row = |phase: &Value, bucket: &Value| {
        let name = match (phase["name"].as_str(), phase["phase"].as_u64()) {
            (Some(name), _) => name.to_owned(),
            (None, Some(number)) => format!("phase {number}"),
            (None, None) => "whole life".to_owned(),
        };
        let value = |m: &Value| m["value"].as_f64().map_or("no value".to_owned(), |v| outcome::unit_of_value(m).show(v));
        let metrics: Vec<String> = rows(bucket, "metrics").map(|m| format!("{} {}", text(m, "metric"), value(m))).collect();
        vec![
            name.into(),
            phase["since"].as_i64().map_or(String::new(), |at| clock(&Timestamp(at).to_string())).into(),
            text(bucket, "bucket").into(),
            share(&bucket["weight"]).into(),
            number(&bucket["exposed_units"]).into(),
            metrics.join(", ").into(),
        ]
    };
    let visits = rows(state.0, "phases").chain([&state.0["whole_life"]].into_iter().filter(|whole| !whole.is_null()));
    let table: Vec<Vec<Inline>> = visits.flat_map(|phase| rows(phase, "buckets").map(move |bucket| row(phase, bucket))).collect();
    doc.table(&["phase", "since (UTC)", "bucket", "#share", "#units", "metrics"], table, "No phase has been seen.");
}

fn draw(doc: &mut Document, charts: impl IntoIterator<Item = Chart>) {
    for chart in charts {
        doc.chart(&chart.caption, chart.drawn);
    }
}

fn compared(state: State<'_>, g: &Value) -> Vec<Inline> {
    let (unit, [baseline, bucket]) = (outcome::unit_of_change(g), outcome::values(state, g));
    let value = |v: Option<f64>| v.map_or("no value".to_owned(), |v| outcome::unit_of_value(g).show(v));
    let change = outcome::change_of(g, [baseline, bucket]).map_or(String::new(), |v| unit.show(v));
    let verdict = Span::Verdict(text(g, "verdict").to_owned());
    vec![
        text(g, "guardrail").into(),
        text(g, "bucket").into(),
        value(baseline).into(),
        value(bucket).into(),
        change.into(),
        between(g, &unit),
        verdict.into(),
    ]
}

fn secondary_row(m: &Value) -> Vec<Inline> {
    let value = |key: &str| m[key].as_f64().map_or("no value".to_owned(), |v| outcome::unit_of_value(m).show(v));
    vec![
        text(m, "metric").into(),
        text(m, "bucket").into(),
        value("baseline_value").into(),
        value("bucket_value").into(),
        m["change"].as_f64().map_or(String::new(), |v| Unit::Change.show(v)).into(),
        between(m, &Unit::Change),
        text(m, "reason").into(),
    ]
}

fn guarded_row(state: State<'_>, g: &Value) -> Vec<Inline> {
    let (unit, [baseline, bucket]) = (outcome::unit_of_change(g), outcome::values(state, g));
    let value = |v: Option<f64>| v.map_or("no value".to_owned(), |v| outcome::unit_of_value(g).show(v));
    let compares = !g["max_increase"].is_null();
    let change = outcome::change_of(g, [baseline, bucket]).filter(|_| compares).map_or(String::new(), |v| unit.show(v));
    let margin = g["max_increase"].as_object().and_then(|_| outcome::margin(g)).map(|m| unit.show(m));
    let limit = g["limit"].as_f64().map(|limit| outcome::unit_of_value(g).show(limit));
    vec![
        text(g, "guardrail").into(),
        text(g, "bucket").into(),
        Span::Verdict(text(g, "verdict").to_owned()).into(),
        value(baseline).into(),
        value(bucket).into(),
        change.into(),
        between(g, &unit),
        margin.into_iter().chain(limit).collect::<Vec<_>>().join(", ").into(),
        g["decision"].as_str().map_or_else(Inline::default, |id| Span::Code(id.to_owned()).into()),
    ]
}

fn between(row: &Value, unit: &Unit) -> Inline {
    outcome::interval(row).map_or("not known".into(), |[low, high]| format!("{} to {}", unit.show(low), unit.show(high)).into())
}

fn artifacts(doc: &mut Document, dossier: &Dossier, plan: &Plan) {
    doc.heading("9. Artifacts");
    let mut items = Vec::new();
    if let Some(url) = &dossier.dashboard {
        items.push(Span::Link("Dashboard of the experiment".to_owned(), url.clone()).into());
    }
    items.extend(plan.links.iter().map(|(name, url)| Inline::from(format!("{name}: ")).then(Span::Link(url.clone(), url.clone()))));
    items.extend(dossier.log.iter().filter(|e| text(e, "kind") == "artifact").map(note));
    let linked = |e: &&Value| text(e, "kind") != "artifact" && rows(e, "links").next().is_some() && text(e, "decision").is_empty();
    items.extend(dossier.log.iter().filter(linked).map(note));
    items.push(Span::Blank("notebooks, schema changes, rollout tickets, incident reports, recordings".to_owned()).into());
    doc.list(items);
    doc.subheading("Data exports");
    let name = &dossier.experiment;
    doc.list(vec![
        Inline::from("Figures, log, decisions and rule: ").then(Span::Code(format!("guardraild readout {name} --export DIR"))).then(
            " (CSV and NDJSON; read access to the API, or to the daemon's files). It holds no user's data.",
        ),
        Inline::from("Who was in which bucket, as hashes: ")
            .then(Span::Code(format!("guardraild assignments {name}")))
            .then(" (the role operate; only until the experiment ends)."),
        "Kept in the daemon's database for store.retention after the last that was heard of the experiment, once its rule file has gone; copies are kept by whoever made them.".into(),
    ]);
    if !plan.stakeholders.is_empty() {
        doc.paragraph(format!("Stakeholders: {}.", plan.stakeholders.join(", ")));
    }
}

/// A note of a person, with when, who and links.
fn note(entry: &Value) -> Inline {
    let by = entry["author"].as_str().map(|author| format!(", {author}")).unwrap_or_default();
    with_links(entry).then(format!(" ({}{by})", clock(text(entry, "at"))))
}

fn with_links(entry: &Value) -> Inline {
    rows(entry, "links")
        .filter_map(Value::as_str)
        .fold(Inline::from(text(entry, "text")), |out, url| out.then(" ").then(Span::Link(host(url).to_owned(), url.to_owned())))
}

/// What of an address people need to see: the rest is behind it.
fn host(url: &str) -> &str {
    url.split_once("://").and_then(|(_, rest)| rest.split('/').next()).unwrap_or(url)
}

fn author(entry: &Value) -> Inline {
    entry["author"].as_str().unwrap_or("guardraild").into()
}

fn time(entry: &Value) -> Inline {
    clock(text(entry, "at")).into()
}

/// An instant without its fractions, as people read it.
fn clock(rfc3339: &str) -> String {
    match rfc3339.parse::<jiff::Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => rfc3339.to_owned(),
    }
}

fn word(kind: &str) -> String {
    kind.replace('_', " ")
}

fn share(value: &Value) -> String {
    value.as_f64().map_or(String::new(), |v| Unit::Share.show(v))
}
