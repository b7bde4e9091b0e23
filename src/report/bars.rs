//! Shares side by side: funnels, retention, the split.

use super::html::{Escaped, Html};
use super::scale::WIDTH;
use std::fmt::Write as _;

const LEFT: f64 = 190.0;
const FULL: f64 = WIDTH - LEFT - 150.0;
const BAR: f64 = 15.0;
const GAP: f64 = 9.0;
const TOP: f64 = 22.0;

/// Horizontal bars in groups, one in each for every series.
#[derive(Clone, Debug)]
pub struct Bars {
    /// One sentence for whoever cannot see the chart.
    pub alt: String,
    /// Names of the series, at most four are told apart.
    pub series: Vec<String>,
    /// A group's label, and its bars in the order of the series.
    pub groups: Vec<(String, Vec<Bar>)>,
}

#[derive(Clone, Debug)]
pub struct Bar {
    /// Length, of 1 for the longest that is possible; `None` draws nothing.
    pub share: Option<f64>,
    /// Shown at its end.
    pub text: String,
}

impl Bars {
    pub fn svg(&self) -> Html {
        let group = BAR * self.series.len() as f64 + GAP;
        let height = TOP + group * self.groups.len() as f64;
        let mut out =
            format!("<svg class=\"chart\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">\n", Escaped(&self.alt));
        let mut at = LEFT;
        for (i, name) in self.series.iter().enumerate() {
            let _ = writeln!(
                out,
                "<rect class=\"f{0}{1}\" x=\"{at:.1}\" y=\"3\" width=\"12\" height=\"10\"/><text x=\"{2:.1}\" y=\"12\">{3}</text>",
                i % 4,
                pale(i),
                at + 17.0,
                Escaped(name)
            );
            at += 34.0 + 6.0 * name.chars().count() as f64;
        }
        for (g, (label, bars)) in self.groups.iter().enumerate() {
            let top = TOP + group * g as f64;
            let middle = top + BAR * self.series.len() as f64 / 2.0 + 4.0;
            let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, Escaped(label));
            for (i, bar) in bars.iter().enumerate() {
                let (y, width) = (top + BAR * i as f64, FULL * bar.share.unwrap_or(0.0).clamp(0.0, 1.0));
                let _ = writeln!(
                    out,
                    "<rect class=\"f{0}{1}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{2:.1}\"/>\
                     <text class=\"soft\" x=\"{3:.1}\" y=\"{4:.1}\">{5}</text>",
                    i % 4,
                    pale(i),
                    BAR - 2.0,
                    LEFT + width + 5.0,
                    y + 10.5,
                    Escaped(&bar.text)
                );
            }
        }
        Html::markup(out + "</svg>\n")
    }
}

/// Every second series is pale, so that prints without colour tell them apart, too.
fn pale(series: usize) -> &'static str {
    if series % 2 == 1 { " pale" } else { "" }
}
