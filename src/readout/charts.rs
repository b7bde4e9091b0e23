//! The figures as charts.

use super::Dossier;
use super::outcome::{self, State, number, rows, text};
use crate::engine::time::Millis;
use crate::report::{Axis, Bar, Bars, Bin, Forest, Histogram, Html, Line, Lines, Mark, MarkKind, Point, Row, Unit};
use serde_json::Value;

/// A chart with what stands above it.
pub struct Chart {
    pub caption: String,
    pub drawn: Html,
}

/// Labels of marks; more would hide the lines.
const MARKS: usize = 24;

/// Phases, decisions and incidents of the log.
fn marks(dossier: &Dossier) -> Vec<Mark> {
    let of = |entry: &Value| {
        let label = text(entry, "text").to_owned();
        let kind = match text(entry, "kind") {
            "decision" => MarkKind::Decision,
            "phase" | "full_rollout" | "launch" | "ended" => MarkKind::Phase,
            "incident" => MarkKind::Fault,
            "mitigation" | "operator" => MarkKind::Note,
            _ => return None,
        };
        Some(Mark { x: instant(text(entry, "at"))? as f64, kind, label })
    };
    let seen = dossier.points.first().map_or(f64::INFINITY, |(at, _)| *at as f64)
        ..=dossier.points.last().map_or(0.0, |(at, _)| *at as f64 + 60_000.0);
    dossier.log.iter().filter_map(of).filter(|mark| seen.contains(&mark.x)).take(MARKS).collect()
}

pub fn instant(text: &str) -> Option<Millis> {
    Some(text.parse::<jiff::Timestamp>().ok()?.as_millisecond())
}

/// Each guardrail over time, all buckets in one chart.
pub fn guardrails(dossier: &Dossier, state: State<'_>, primary: bool) -> Vec<Chart> {
    let mut charts: Vec<(&str, Chart)> = Vec::new();
    for guardrail in rows(state.0, "guardrails").filter(|g| (g["primary"] == true) == primary) {
        let name = text(guardrail, "guardrail");
        if !dossier.points.is_empty() && charts.iter().all(|(drawn, _)| *drawn != name) {
            charts.push((name, trend(dossier, state, guardrail)));
        }
    }
    charts.into_iter().map(|(_, chart)| chart).collect()
}

fn trend(dossier: &Dossier, state: State<'_>, guardrail: &Value) -> Chart {
    let name = text(guardrail, "guardrail");
    let buckets = rows(state.0, "guardrails").filter(|g| text(g, "guardrail") == name && g["primary"] == guardrail["primary"]);
    let line = |of: &Value| Line {
        name: text(of, "bucket").to_owned(),
        points: dossier
            .points
            .iter()
            .filter_map(|(at, kept)| {
                let at_that_time = kept.guardrails.iter().find(|g| g.guardrail == name && g.bucket == text(of, "bucket"))?;
                let sample = &at_that_time.sample;
                let y = outcome::change_of(of, [sample.baseline_value, sample.bucket_value]);
                Some(Point { x: *at as f64, y, band: sample.interval })
            })
            .collect(),
    };
    let unit = outcome::unit_of_change(guardrail);
    let against = if guardrail["max_increase"].is_null() { "value" } else { "change against the baseline" };
    let margin = outcome::margin(guardrail).map(|at| {
        let kind = if guardrail["max_increase"].is_null() { "limit" } else { "margin" };
        (at, format!("{kind} {}", unit.show(at)))
    });
    let chart = Lines {
        alt: format!("{name}: {against} over time, with its interval"),
        axis: Axis::Time,
        zero: !guardrail["max_increase"].is_null(),
        unit,
        lines: buckets.map(line).collect(),
        margin,
        marks: marks(dossier),
    };
    Chart { caption: format!("{name}: {against}; the line is the window's, the band the interval over the whole life"), drawn: chart.svg() }
}

/// The values behind each guardrail that has a distribution; of a comparison also by how much each quantile differs.
pub fn distributions(dossier: &Dossier, state: State<'_>) -> Vec<Chart> {
    let of = |histogram: &Value| {
        let [name, bucket] = ["guardrail", "bucket"].map(|key| text(histogram, key));
        let guardrail = state.guardrails(bucket).find(|g| text(g, "guardrail") == name)?;
        let compared = (!guardrail["max_increase"].is_null()).then(|| quantiles(state, guardrail, histogram));
        Some(std::iter::once(distribution(state, guardrail, histogram)).chain(compared))
    };
    dossier.histograms.iter().filter_map(of).flatten().collect()
}

fn distribution(state: State<'_>, guardrail: &Value, histogram: &Value) -> Chart {
    let [name, bucket, statistic] = ["guardrail", "bucket", "statistic"].map(|key| text(guardrail, key));
    let (baseline, unit) = (state.baseline(), outcome::unit_of_value(guardrail));
    let tested = statistic.strip_prefix('p').and_then(|level| level.parse::<f64>().ok()).map(|level| level / 100.0);
    let level = rows(histogram, "quantiles").find(|level| level["q"].as_f64().zip(tested).is_some_and(|(q, t)| (q - t).abs() < 1e-9));
    let line = |who: &str, key: &str| Some((level?[key].as_f64()?, format!("{who} {statistic}")));
    let bin = |bin: &Value| {
        let counts = ["baseline", "bucket"].map(|key| bin[key].as_u64().unwrap_or(0));
        Some(Bin { from: bin["from"].as_f64()?, to: bin["to"].as_f64()?, counts })
    };
    let of = match text(histogram, "of") {
        "window" => "the window",
        _ => "units exposed since the shares last changed",
    };
    let drawn = Histogram {
        alt: format!("{name}: histograms of {baseline} and {bucket}"),
        unit,
        names: [baseline.to_owned(), bucket.to_owned()],
        bins: rows(histogram, "bins").filter_map(bin).collect(),
        lines: line(baseline, "baseline").into_iter().chain(line(bucket, "bucket")).collect(),
    };
    let caption = format!(
        "{name}: {} values of {baseline} and {} of {bucket}, of {of}; each histogram is drawn to its own total",
        number(&histogram["baseline_n"]),
        number(&histogram["n"])
    );
    Chart { caption, drawn: drawn.svg() }
}

/// By how much the bucket's quantiles differ from those of the baseline.
fn quantiles(state: State<'_>, guardrail: &Value, histogram: &Value) -> Chart {
    let [name, bucket] = ["guardrail", "bucket"].map(|key| text(guardrail, key));
    let point = |level: &Value| {
        let y = outcome::change_of(guardrail, [level["baseline"].as_f64(), level["bucket"].as_f64()])?;
        Some(Point { x: level["q"].as_f64()?, y: Some(y), band: None })
    };
    let unit = outcome::unit_of_change(guardrail);
    let chart = Lines {
        alt: format!("{name}: change of each quantile of {bucket}"),
        axis: Axis::Number(Unit::Share),
        zero: true,
        margin: outcome::margin(guardrail).map(|at| (at, format!("margin {}", unit.show(at)))),
        unit,
        lines: vec![Line { name: bucket.to_owned(), points: rows(histogram, "quantiles").filter_map(point).collect() }],
        marks: Vec::new(),
    };
    let caption = format!("{name}: change of each quantile of {bucket} against {}; 95% is the p95", state.baseline());
    Chart { caption, drawn: chart.svg() }
}

/// Exposed units of each bucket over time.
pub fn split(dossier: &Dossier, state: State<'_>) -> Option<Chart> {
    let line = |bucket: &Value| Line {
        name: text(bucket, "bucket").to_owned(),
        points: dossier
            .points
            .iter()
            .filter_map(|(at, kept)| {
                let at_that_time = kept.buckets.iter().find(|b| b.bucket == text(bucket, "bucket"))?;
                Some(Point { x: *at as f64, y: Some(at_that_time.exposed_units as f64), band: None })
            })
            .collect(),
    };
    // Buckets other than the baseline come first, and so have the colour that they have elsewhere.
    let (baseline, others): (Vec<&Value>, Vec<&Value>) = state.buckets().partition(|b| b["baseline"] == true);
    let lines: Vec<Line> = others.into_iter().chain(baseline).map(line).collect();
    let chart = Lines {
        alt: "exposed units of each bucket over time".to_owned(),
        axis: Axis::Time,
        unit: Unit::Of(String::new()),
        lines,
        margin: None,
        zero: true,
        marks: marks(dossier),
    };
    (!dossier.points.is_empty()).then(|| Chart { caption: "Exposed units by bucket".to_owned(), drawn: chart.svg() })
}

/// Segments of each comparison.
pub fn segments(state: State<'_>) -> Vec<Chart> {
    let of = |guardrail: &Value| {
        let unit = outcome::unit_of_change(guardrail);
        let row = |s: &Value| Row {
            label: text(s, "segment").to_owned(),
            estimate: outcome::change_of(guardrail, [s["baseline_value"].as_f64(), s["bucket_value"].as_f64()]),
            interval: outcome::interval(s),
            note: format!("{}, {} units", text(s, "verdict"), s["units"]),
        };
        let found: Vec<Row> = rows(guardrail, "segments").map(row).collect();
        let (name, bucket) = (text(guardrail, "guardrail"), text(guardrail, "bucket"));
        let chart = Forest {
            alt: format!("{name} of {bucket} by segment"),
            margin: outcome::margin(guardrail).map(|at| (at, unit.show(at))),
            unit,
            rows: found,
        };
        (!chart.rows.is_empty()).then(|| Chart { caption: format!("{name} of {bucket} by segment (exploratory)"), drawn: chart.svg() })
    };
    rows(state.0, "guardrails").filter_map(of).collect()
}

/// Shares of workflows that reach each step; of those whose time is over, so that buckets compare fairly.
pub fn funnels(state: State<'_>) -> Vec<Chart> {
    let of = |funnel: &Value| {
        let counts = |bucket: &Value, of: &dyn Fn(&Value) -> Option<i64>| {
            let matured = &bucket["matured"];
            let (n, started) = (of(matured), matured["started"].as_i64().unwrap_or(0));
            let share = n.filter(|_| started > 0).map(|n| n as f64 / started as f64);
            Bar { share, text: format!("{}{}", n.unwrap_or(0), share.map(|s| format!(" ({})", Unit::Share.show(s))).unwrap_or_default()) }
        };
        let (baseline, others): (Vec<&Value>, Vec<&Value>) = rows(funnel, "buckets").partition(|b| text(b, "bucket") == state.baseline());
        let buckets: Vec<&Value> = others.into_iter().chain(baseline).collect();
        let group = |label: &str, get: &dyn Fn(&Value) -> Option<i64>| (label.to_owned(), buckets.iter().map(|b| counts(b, get)).collect());
        let mut groups = vec![group("started", &|c| c["started"].as_i64())];
        for (i, step) in rows(funnel, "steps").enumerate() {
            groups.push(group(step.as_str().unwrap_or_default(), &|c| c["reached"][i].as_i64()));
        }
        groups.push(group("completed", &|c| c["completed"].as_i64()));
        let name = text(funnel, "funnel");
        let series = buckets.iter().map(|b| text(b, "bucket").to_owned()).collect();
        let chart = Bars { alt: format!("funnel {name} by bucket"), series, groups };
        Chart { caption: format!("Funnel {name}: workflows whose time is over"), drawn: chart.svg() }
    };
    rows(state.0, "funnels").map(of).collect()
}

/// Units that came back.
pub fn retention(state: State<'_>) -> Option<Chart> {
    let series: Vec<String> = rows(state.0, "retention")
        .next()
        .map_or(&[][..], |m| m["buckets"].as_array().map_or(&[][..], Vec::as_slice))
        .iter()
        .map(|b| text(b, "bucket").to_owned())
        .collect();
    let bar = |b: &Value| {
        let share = b["rate"].as_f64();
        Bar {
            share,
            text: share.map_or("no unit is old enough yet".to_owned(), |s| format!("{} of {}", Unit::Share.show(s), b["eligible"])),
        }
    };
    let group = |m: &Value| (format!("{} (day {})", text(m, "metric"), m["day"]), rows(m, "buckets").map(bar).collect());
    let groups: Vec<_> = rows(state.0, "retention").map(group).collect();
    (!groups.is_empty()).then(|| Chart {
        caption: "Retention: units that came back on their day".to_owned(),
        drawn: Bars { alt: "retention by bucket".to_owned(), series, groups }.svg(),
    })
}
