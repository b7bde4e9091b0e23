//! The run as a picture: rates, backlog and memory over time. Plain SVG; colours follow the reader's light or dark scheme.

use super::sample::Sample;
use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const PANEL: f64 = 170.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 24.0;
const STYLE: &str = "\
svg{color-scheme:light dark;background:#fff;font:13px system-ui,sans-serif}text{fill:#1f2328}.soft{fill:#656d76}.grid{stroke:#d0d7de}\
polyline{fill:none;stroke-width:2}.first{stroke:#b35900}.second{stroke:#0a58ca}.first-text{fill:#b35900}.second-text{fill:#0a58ca}\
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.soft{fill:#9198a1}.grid{stroke:#3d444d}.first{stroke:#f0883e}\
.second{stroke:#79b8ff}.first-text{fill:#f0883e}.second-text{fill:#79b8ff}}";

/// Minute and value.
type Line = Vec<(f64, f64)>;

pub fn svg(samples: &[Sample]) -> String {
    let over = |value: &dyn Fn(&Sample) -> f64| -> Line { samples.iter().map(|s| (s.at.as_secs_f64() / 60.0, value(s))).collect() };
    let rate = |value: &dyn Fn(&Sample) -> u64| -> Line {
        let change = |w: &[Sample]| (value(&w[w.len() - 1]) - value(&w[0])) as f64 / (w[w.len() - 1].at - w[0].at).as_secs_f64() / 1e3;
        samples.windows(6).map(|w| (w[w.len() - 1].at.as_secs_f64() / 60.0, change(w))).collect()
    };
    let panels: [(&str, Vec<(&str, Line)>); 3] = [
        ("thousand records a second", vec![("produced", rate(&|s| s.sent)), ("taken", rate(&|s| s.counted))]),
        ("million records behind", vec![("lag", over(&|s| s.lag as f64 / 1e6))]),
        (
            "MiB",
            vec![("state on disk", over(&|s| s.disk as f64 / 1_048_576.0)), ("resident memory", over(&|s| s.memory as f64 / 1_048_576.0))],
        ),
    ];
    let height = PANEL * panels.len() as f64 + 40.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>A daemon that gets more than it can take: rates, backlog, memory</title>\n<style>{STYLE}</style>\n"
    );
    let minutes = samples.last().map_or(1.0, |s| s.at.as_secs_f64() / 60.0);
    for (i, (unit, lines)) in panels.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = panel(PANEL * i as f64, unit, lines, minutes, &mut out);
    }
    let _ = writeln!(out, "<text class=\"soft\" x=\"{}\" y=\"{}\" text-anchor=\"end\">minutes</text>\n</svg>", WIDTH - RIGHT, height - 8.0);
    out
}

fn panel(top: f64, unit: &str, lines: &[(&str, Line)], minutes: f64, out: &mut String) -> std::fmt::Result {
    let (high, low) = (top + 34.0, top + PANEL - 10.0);
    let most = lines.iter().flat_map(|(_, line)| line.iter().map(|(_, v)| *v)).fold(1e-9, f64::max) * 1.05;
    let x = |minute: f64| LEFT + minute / minutes * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| low - value / most * (low - high);
    writeln!(out, "<text class=\"soft\" x=\"16\" y=\"{}\">{unit}</text>", top + 20.0)?;
    for part in [0.0, 0.5, 1.0] {
        let at = y(most / 1.05 * part);
        writeln!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", WIDTH - RIGHT)?;
        let label = most / 1.05 * part;
        let label = if most < 10.0 { format!("{label:.1}") } else { format!("{label:.0}") };
        writeln!(out, "<text class=\"soft\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, at + 4.0)?;
    }
    for part in 0..=6 {
        let minute = minutes * f64::from(part) / 6.0;
        writeln!(out, "<text class=\"soft\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{minute:.0}</text>", x(minute), low + 16.0)?;
    }
    for (i, (name, line)) in lines.iter().enumerate() {
        let class = if i + 1 == lines.len() { "second" } else { "first" };
        let points: Vec<String> = line.iter().map(|(minute, value)| format!("{:.1},{:.1}", x(*minute), y(*value))).collect();
        writeln!(out, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "))?;
        writeln!(out, "<text class=\"{class}-text\" x=\"{:.1}\" y=\"{}\">{name}</text>", 260.0 + 160.0 * i as f64, top + 20.0)?;
    }
    Ok(())
}
