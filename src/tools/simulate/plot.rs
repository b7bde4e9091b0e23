//! A picture of a [`Report`]: time to detect against the size of the effect, and false alarms. Plain SVG; colours follow the reader's
//! light or dark scheme.

use super::report::{Report, duration};
use super::study::Detection;
use super::traffic::Phase;
use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
/// Of one metric's panel.
const PANEL: f64 = 230.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 24.0;
/// Where a line across a panel may lie, ms.
const TICKS: [f64; 11] = [1.0, 10.0, 100.0, 1e3, 10e3, 60e3, 600e3, 3_600e3, 21_600e3, 86_400e3, 604_800e3];
/// Colours stand as they are, and not in variables, for the sake of viewers that know no variables.
const STYLE: &str = "\
svg{color-scheme:light dark;background:#fff;font:13px system-ui,sans-serif}text{fill:#1f2328}.soft{fill:#656d76}\
.grid{stroke:#d0d7de}.rim{stroke:#b42318;stroke-dasharray:4 3}.phase{stroke:#656d76;stroke-dasharray:1 3}.band{fill:#9ec5fe;opacity:.6}.median{stroke:#0a58ca;stroke-width:2;fill:none}\
.dot{fill:#0a58ca}.missed{fill:#b42318}.bar{stroke:#0a58ca;stroke-width:3}\
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.soft{fill:#9198a1}.grid{stroke:#3d444d}.rim{stroke:#ff7b72}\
.band{fill:#1f4b8e}.median,.bar{stroke:#79b8ff}.dot{fill:#79b8ff}.missed{fill:#ff7b72}}";

/// The whole picture.
pub fn svg(report: &Report) -> String {
    let mut metrics: Vec<&str> = Vec::new();
    for detection in &report.detections {
        if !metrics.contains(&detection.effect.metric.as_str()) {
            metrics.push(&detection.effect.metric);
        }
    }
    let alarms = report.healthy.as_ref().map_or(0, |h| h.guardrails.len() + 1);
    let bars = if alarms > 0 { 70.0 + 24.0 * alarms as f64 } else { 0.0 };
    let height = 50.0 + bars + PANEL * metrics.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>{name}: false alarms and time to detect</title>\n<style>{STYLE}</style>\n\
         <text x=\"16\" y=\"28\" font-size=\"17\">{name}: false alarms and time to detect</text>\n",
        name = escaped(&report.experiment)
    );
    // Writing to a string cannot fail.
    let _ = false_alarms(report, 50.0, &mut out);
    for (i, metric) in metrics.iter().enumerate() {
        let points: Vec<&Detection> = report.detections.iter().filter(|d| d.effect.metric == *metric).collect();
        let _ = panel(report, &points, 50.0 + bars + PANEL * i as f64, &mut out);
    }
    out.push_str("</svg>\n");
    out
}

/// A bar for each guardrail: the exact interval, a dot at what was seen, a line at what alpha allows.
fn false_alarms(report: &Report, top: f64, out: &mut String) -> std::fmt::Result {
    let Some(healthy) = &report.healthy else { return Ok(()) };
    let rows: Vec<(&str, &super::study::Share)> =
        healthy.guardrails.iter().map(|n| (n.name.as_str(), &n.share)).chain([("any guardrail", &healthy.family)]).collect();
    let most = rows.iter().map(|(_, s)| s.interval[1]).fold(report.alpha * 1.5, f64::max).min(1.0);
    let left = 190.0;
    let x = |share: f64| left + share / most * (WIDTH - left - RIGHT);
    writeln!(out, "<text class=\"soft\" x=\"16\" y=\"{}\">False alarms per 1,000 healthy runs ({} runs)</text>", top + 16.0, healthy.runs)?;
    let bottom = top + 28.0 + 24.0 * rows.len() as f64;
    writeln!(out, "<line class=\"rim\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{bottom}\"/>", x(report.alpha), top + 24.0)?;
    writeln!(
        out,
        "<text class=\"soft\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">allowed in all: {:.1}</text>",
        x(report.alpha).clamp(left, WIDTH - 80.0),
        bottom + 14.0,
        report.alpha * 1e3
    )?;
    for (i, (name, share)) in rows.iter().enumerate() {
        let y = top + 40.0 + 24.0 * i as f64;
        let [low, high] = share.interval;
        writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", left - 10.0, y + 4.0, escaped(name))?;
        writeln!(out, "<line class=\"bar\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\"/>", x(low), x(high))?;
        writeln!(
            out,
            "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{y}\" r=\"5\"><title>{:.1} per 1,000, {:.1} to {:.1}</title></circle>",
            x(share.share),
            share.share * 1e3,
            low * 1e3,
            high * 1e3
        )?;
    }
    Ok(())
}

/// Median and 90th percentile of one metric's delays, on a logarithmic axis; effects that half of the runs miss lie on the
/// dashed line at the end of the runs, and a dotted line is where a phase of the ramp begins. Below each effect stands the share of runs that found it.
fn panel(report: &Report, points: &[&Detection], top: f64, out: &mut String) -> std::fmt::Result {
    let (high, low) = (top + 40.0, top + PANEL - 46.0);
    let end = report.days * 86_400_000.0 - report.onset_ms as f64;
    let medians = points.iter().filter_map(|d| d.delay_ms.median);
    let moves = starts(report).map(|(_, begins)| begins).filter(|begins| *begins > 0.0);
    let soonest = medians.chain(moves).fold(end, f64::min).max(report.pane_ms as f64);
    let first = TICKS.into_iter().rev().find(|t| *t <= soonest / 1.2).unwrap_or(1.0);
    let y = |ms: f64| low - (ms.clamp(first, end) / first).ln() / (end / first).ln().max(1e-9) * (low - high);
    let sizes: Vec<f64> = points.iter().map(|d| d.effect.size.value().abs()).collect();
    let (least, most) = sizes.iter().fold((f64::INFINITY, 0f64), |(a, b), s| (a.min(*s), b.max(*s)));
    let spread = (most / least).ln();
    let x = |size: f64| {
        let inner = WIDTH - LEFT - RIGHT - 80.0;
        LEFT + 40.0 + if spread > 0.0 { (size / least).ln() / spread * inner } else { inner / 2.0 }
    };
    let metric = points.first().map_or("", |d| d.effect.metric.as_str());
    writeln!(out, "<text x=\"16\" y=\"{}\">{}: time to detect, median and up to the 90th percentile</text>", top + 20.0, escaped(metric))?;
    for (tick, class) in TICKS.into_iter().filter(|t| *t >= first && *t < end / 1.5).map(|t| (t, "grid")).chain([(end, "rim")]) {
        let at = y(tick);
        writeln!(out, "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", WIDTH - RIGHT)?;
        let label = duration(tick);
        writeln!(out, "<text class=\"soft\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, at + 4.0)?;
    }
    for (phase, begins) in starts(report).filter(|(_, begins)| *begins > first && *begins < end) {
        let at = y(begins);
        writeln!(out, "<line class=\"phase\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", WIDTH - RIGHT)?;
        let label = match &phase.weights {
            Some(weights) => weights.iter().map(|share| format!("{:.0}%", share * 100.0)).collect::<Vec<_>>().join(" / "),
            None => format!("{:.0}% of the units", phase.traffic * 100.0),
        };
        writeln!(
            out,
            "<text class=\"soft\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">the ramp moves to {label}</text>",
            WIDTH - RIGHT,
            at - 4.0
        )?;
    }
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|a, b| sizes[*a].total_cmp(&sizes[*b]));
    let at = |i: usize, ms: Option<f64>| format!("{:.1},{:.1}", x(sizes[i]), y(ms.unwrap_or(end)));
    let upper = order.iter().map(|&i| at(i, points[i].delay_ms.p90));
    let lower = order.iter().rev().map(|&i| at(i, points[i].delay_ms.median));
    writeln!(out, "<polygon class=\"band\" points=\"{}\"/>", upper.chain(lower).collect::<Vec<_>>().join(" "))?;
    let line: Vec<String> = order.iter().map(|&i| at(i, points[i].delay_ms.median)).collect();
    writeln!(out, "<polyline class=\"median\" points=\"{}\"/>", line.join(" "))?;
    for &i in &order {
        let (d, x) = (points[i], x(sizes[i]));
        let class = if d.delay_ms.median.is_some() { "dot" } else { "missed" };
        let said = d.delay_ms.median.map_or_else(|| "missed by half of the runs".to_owned(), |ms| format!("median {}", duration(ms)));
        let percent = d.detected.share * 100.0;
        writeln!(
            out,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"5\"><title>{}: {percent:.0}% detected, {said}</title></circle>",
            y(d.delay_ms.median.unwrap_or(end)),
            escaped(&d.text)
        )?;
        let change = d.text.strip_prefix(metric).unwrap_or(&d.text).trim();
        writeln!(out, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>", low + 20.0, escaped(change))?;
        writeln!(out, "<text class=\"soft\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{percent:.0}%</text>", low + 36.0)?;
    }
    Ok(())
}

/// Each phase after the first, and when it begins: ms after the onset of the effects.
fn starts(report: &Report) -> impl Iterator<Item = (&Phase, f64)> {
    let spans = report.traffic.phases.iter().map_while(|phase| phase.span);
    let ends = spans.scan(-(report.onset_ms as f64), |at, span| {
        *at += span as f64;
        Some(*at)
    });
    report.traffic.phases.iter().skip(1).zip(ends)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
