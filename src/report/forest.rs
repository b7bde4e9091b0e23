//! Estimates with their intervals, one under the other: segments, guardrails.

use super::html::{Escaped, Html};
use super::scale::{Scale, Unit, WIDTH, span, ticks};
use std::fmt::Write as _;

const ROW: f64 = 22.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = WIDTH - 210.0;
const TOP: f64 = 20.0;

/// A forest plot.
#[derive(Clone, Debug)]
pub struct Forest {
    /// One sentence for whoever cannot see the chart.
    pub alt: String,
    pub unit: Unit,
    /// What must not be passed, with its name.
    pub margin: Option<(f64, String)>,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug)]
pub struct Row {
    pub label: String,
    pub estimate: Option<f64>,
    /// Ends that lie far outside of the rest are drawn as arrows.
    pub interval: Option<[f64; 2]>,
    /// Shown at the right.
    pub note: String,
}

impl Forest {
    pub fn svg(&self) -> Html {
        let bottom = TOP + ROW * self.rows.len() as f64;
        let (low, high) = self.across();
        let x = Scale::new((low, high), (LEFT, RIGHT));
        let mut out = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH:.0} {:.0}\" role=\"img\" aria-label=\"{}\">\n",
            bottom + 20.0,
            Escaped(&self.alt)
        );
        for tick in ticks(x.low, x.high, 5) {
            let (at, class) = (x.at(tick), if tick == 0.0 { "zero" } else { "grid" });
            let _ = writeln!(out, "<line class=\"{class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>");
            let _ = writeln!(
                out,
                "<text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 15.0,
                Escaped(&self.unit.show(tick))
            );
        }
        if let Some((margin, name)) = &self.margin {
            let at = x.clamped(*margin);
            let _ = writeln!(out, "<line class=\"margin\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>");
            let _ = writeln!(out, "<text class=\"soft\" x=\"{at:.1}\" y=\"13\" text-anchor=\"middle\">{}</text>", Escaped(name));
        }
        for (i, row) in self.rows.iter().enumerate() {
            row.draw(&mut out, &x, &self.unit, TOP + ROW * (i as f64 + 0.5));
        }
        Html::markup(out + "</svg>\n")
    }

    /// Room for all estimates, and for intervals up to a few times as wide as the narrower half of them.
    fn across(&self) -> (f64, f64) {
        let mut widths: Vec<f64> =
            self.rows.iter().filter_map(|row| row.interval.map(|[low, high]| high - low)).filter(|w| w.is_finite()).collect();
        widths.sort_by(f64::total_cmp);
        let most = widths.get(widths.len() / 2).map_or(f64::INFINITY, |median| 4.0 * median);
        let ends = self.rows.iter().flat_map(|row| {
            let kept = row.interval.filter(|[low, high]| high - low <= most);
            kept.into_iter().flatten().chain(row.estimate)
        });
        span(ends.chain([0.0]).chain(self.margin.iter().map(|(at, _)| *at)))
    }
}

impl Row {
    fn draw(&self, out: &mut String, x: &Scale, unit: &Unit, y: f64) {
        let base = y + 4.0;
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>", LEFT - 10.0, Escaped(&self.label));
        let shown = self.interval.map(|[low, high]| format!(" [{}, {}]", unit.show(low), unit.show(high))).unwrap_or_default();
        let told = self.estimate.map(|v| unit.show(v)).unwrap_or_else(|| "no value".to_owned());
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{base:.1}\">{}<tspan class=\"soft\">{}</tspan></text>",
            RIGHT + 10.0,
            Escaped(&format!("{told}{shown}")),
            Escaped(&if self.note.is_empty() { String::new() } else { format!(" {}", self.note) })
        );
        if let Some([low, high]) = self.interval.filter(|ends| ends.iter().all(|v| !v.is_nan())) {
            let (from, to) = (x.clamped(low), x.clamped(high));
            let _ = writeln!(out, "<line class=\"line s0\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
            let beyond = [(low < x.low, from, -1.0), (high > x.high, to, 1.0)];
            for (at, side) in beyond.into_iter().filter(|(beyond, ..)| *beyond).map(|(_, at, side)| (at, side)) {
                let (tip, back) = (at + 3.0 * side, at - 4.0 * side);
                let _ = writeln!(out, "<path class=\"f0\" d=\"M{tip:.1} {y:.1}L{back:.1} {:.1}L{back:.1} {:.1}z\"/>", y - 4.0, y + 4.0);
            }
        }
        if let Some(estimate) = self.estimate.filter(|v| !v.is_nan()) {
            let _ = writeln!(out, "<circle class=\"dot f0\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\"/>", x.clamped(estimate));
        }
    }
}
