//! Two distributions over one another, from their bins.

use super::html::{Escaped, Html};
use super::scale::{Scale, Unit, WIDTH, ticks};
use std::fmt::Write as _;

const LEFT: f64 = 20.0;
const RIGHT: f64 = WIDTH - 12.0;
const TOP: f64 = 34.0;
const HEIGHT: f64 = 140.0;
/// Columns that are drawn: finer bins are added up.
const COLUMNS: usize = 60;
/// From this ratio of largest to smallest value on, the axis is logarithmic.
const WIDE: f64 = 30.0;

/// Histograms of the baseline and of a bucket on one axis. Each is scaled to its own total.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// One sentence for whoever cannot see the chart.
    pub alt: String,
    pub unit: Unit,
    /// Names of baseline and bucket.
    pub names: [String; 2],
    pub bins: Vec<Bin>,
    /// Values worth a line, as quantiles are, with their names.
    pub lines: Vec<(f64, String)>,
}

/// Values above `from` and up to `to`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    pub from: f64,
    pub to: f64,
    /// Of the baseline and of the bucket.
    pub counts: [u64; 2],
}

impl Histogram {
    pub fn svg(&self) -> Html {
        let filled = self.bins.iter().filter(|bin| bin.counts != [0, 0]);
        let (low, high) = filled.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), bin| (low.min(bin.from), high.max(bin.to)));
        let mut out = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH:.0} {:.0}\" role=\"img\" aria-label=\"{}\">\n",
            TOP + HEIGHT + 22.0,
            Escaped(&self.alt)
        );
        if low >= high {
            let _ = writeln!(out, "<text class=\"soft\" x=\"{LEFT}\" y=\"{:.1}\">no value yet</text>", TOP + HEIGHT / 2.0);
            return Html::markup(out + "</svg>\n");
        }
        // Of a logarithmic axis the values are logarithms; the first bin may begin at nought.
        let least = self.bins.iter().map(|bin| bin.to).filter(|to| *to > 0.0).fold(f64::INFINITY, f64::min);
        let wide = low >= 0.0 && least.is_finite() && high / low.max(least) > WIDE;
        let place = |v: f64| if wide { v.max(least / 2.0).ln() } else { v };
        let x = Scale::new((place(low), place(high)), (LEFT, RIGHT));
        let bottom = TOP + HEIGHT;
        let marks = if wide { decades(low.max(least), high) } else { ticks(low, high, 8) };
        for tick in marks {
            let at = x.at(place(tick));
            let _ = writeln!(out, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>");
            let _ = writeln!(
                out,
                "<text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{}\">{}</text>",
                bottom + 15.0,
                if at > RIGHT - 30.0 { "end" } else { "middle" },
                Escaped(&self.unit.show(tick))
            );
        }
        let columns = [0, 1].map(|which| self.columns(which, &x, place));
        let tallest = columns.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
        for (which, columns) in columns.iter().enumerate() {
            // The bucket has the first of the colours, the baseline the second, as in charts of lines.
            let class = 1 - which;
            let width = (RIGHT - LEFT) / COLUMNS as f64;
            let tops = columns.iter().enumerate().map(|(i, share)| {
                let (from, to, y) = (LEFT + width * i as f64, LEFT + width * (i + 1) as f64, bottom - HEIGHT * share / tallest);
                format!("L{from:.1} {y:.1}L{to:.1} {y:.1}")
            });
            let edge: String = tops.collect();
            let _ = writeln!(out, "<path class=\"band f{class}\" d=\"M{LEFT} {bottom}{edge}L{RIGHT} {bottom}z\"/>");
            let _ = writeln!(out, "<path class=\"line s{class}\" d=\"M{LEFT} {bottom}{edge}L{RIGHT} {bottom}\"/>");
        }
        for (i, (value, name)) in self.lines.iter().filter(|(value, _)| value.is_finite()).enumerate() {
            let at = x.clamped(place(*value));
            let anchor = if at > (LEFT + RIGHT) / 2.0 { "end" } else { "start" };
            let y = TOP + 10.0 + 13.0 * i as f64;
            let _ = writeln!(out, "<line class=\"marked\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>");
            let _ = writeln!(
                out,
                "<text class=\"over\" x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
                if anchor == "end" { at - 4.0 } else { at + 4.0 },
                Escaped(&format!("{name} {}", self.unit.show(*value)))
            );
        }
        let mut at = LEFT;
        for (class, name) in [(1, &self.names[0]), (0, &self.names[1])] {
            let (to, text) = (at + 22.0, at + 27.0);
            let _ = writeln!(
                out,
                "<line class=\"line s{class}\" x1=\"{at:.1}\" x2=\"{to:.1}\" y1=\"12\" y2=\"12\"/><text x=\"{text:.1}\" y=\"16\">{}</text>",
                Escaped(name)
            );
            at += 46.0 + 6.0 * name.chars().count() as f64;
        }
        Html::markup(out + "</svg>\n")
    }

    /// The share of all values in each column. A bin's values lie evenly in it, as far as the drawing goes.
    fn columns(&self, which: usize, x: &Scale, place: impl Fn(f64) -> f64) -> [f64; COLUMNS] {
        let mut columns = [0.0; COLUMNS];
        let all: u64 = self.bins.iter().map(|bin| bin.counts[which]).sum();
        let column = |v: f64| (x.clamped(place(v)) - LEFT) / (RIGHT - LEFT) * COLUMNS as f64;
        for bin in self.bins.iter().filter(|bin| bin.counts[which] > 0) {
            let (from, to) = (column(bin.from), column(bin.to).max(column(bin.from) + 1e-9));
            let share = bin.counts[which] as f64 / all as f64;
            for (i, held) in columns.iter_mut().enumerate().skip(from as usize) {
                let inside = to.min(i as f64 + 1.0) - from.max(i as f64);
                if inside <= 0.0 {
                    break;
                }
                *held += share * inside / (to - from);
            }
        }
        columns
    }
}

/// 1, 2 and 5 of every power of ten inside the span.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let steps: &[f64] = if powers.clone().count() > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    powers.flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power))).filter(|tick| (low..=high).contains(tick)).collect()
}
