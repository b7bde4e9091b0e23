//! Values over time with their intervals, against a margin, with what happened meanwhile.

use super::html::{Escaped, Html};
use super::scale::{Scale, Unit, WIDTH, span, ticks, times};
use std::fmt::Write as _;

const LEFT: f64 = 62.0;
const RIGHT: f64 = WIDTH - 12.0;
const HEIGHT: f64 = 190.0;
/// Labels of marks have this many lines above the drawing; further ones share the last.
const MARK_LINES: usize = 3;
const MARK_LINE: f64 = 13.0;
/// About the width of a letter of a label.
const LETTER: f64 = 5.8;
/// Letters of a mark's label; the whole of it is its title.
const LABEL: usize = 30;

/// One chart of lines. A band is drawn around the lines that have one.
#[derive(Clone, Debug)]
pub struct Lines {
    /// One sentence for whoever cannot see the chart.
    pub alt: String,
    pub axis: Axis,
    pub unit: Unit,
    /// At most four are told apart.
    pub lines: Vec<Line>,
    /// What must not be passed, with its name.
    pub margin: Option<(f64, String)>,
    /// Draws a line at nought, where there is no difference.
    pub zero: bool,
    pub marks: Vec<Mark>,
}

/// What runs from left to right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    /// ms since the epoch, written in UTC.
    Time,
    Number(Unit),
}

#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    /// In the order of `x`. A point without a value breaks the line, one without an interval breaks the band.
    pub points: Vec<Point>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: Option<f64>,
    pub band: Option<[f64; 2]>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Mark {
    pub x: f64,
    pub kind: MarkKind,
    pub label: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkKind {
    Decision,
    Phase,
    /// Something broke, or was made to.
    Fault,
    Note,
}

impl MarkKind {
    fn sign(self) -> &'static str {
        match self {
            MarkKind::Decision => "\u{25bc}",
            MarkKind::Phase => "\u{25c6}",
            MarkKind::Fault => "\u{2716}",
            MarkKind::Note => "\u{25cf}",
        }
    }
}

impl Lines {
    pub fn svg(&self) -> Html {
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let (x_low, x_high) = self.across();
        let (y_low, y_high) = self.upward();
        let mark_lines = self.marks.len().min(MARK_LINES);
        let top = 18.0 + MARK_LINE * mark_lines as f64;
        let bottom = top + HEIGHT;
        let (x, y) = (Scale::new((x_low, x_high), (LEFT, RIGHT)), Scale::new((y_low, y_high), (bottom, top)));
        let mut out = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH:.0} {:.0}\" role=\"img\" aria-label=\"{}\">\n",
            bottom + 22.0,
            Escaped(&self.alt)
        );
        self.grid(&mut out, &x, &y);
        // A drawing within the drawing: nothing of it is seen outside.
        let width = RIGHT - LEFT;
        let _ =
            writeln!(out, "<svg x=\"{LEFT}\" y=\"{top}\" width=\"{width}\" height=\"{HEIGHT}\" viewBox=\"{LEFT} {top} {width} {HEIGHT}\">");
        for (i, line) in self.lines.iter().enumerate() {
            band(&mut out, i % 4, line, &x, &y);
        }
        if self.zero {
            let _ = writeln!(out, "<line class=\"zero\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>", y.at(0.0));
        }
        for (i, line) in self.lines.iter().enumerate() {
            for run in runs(&line.points, |p| p.y.map(|v| (x.at(p.x), y.at(v)))) {
                let _ = writeln!(out, "<polyline class=\"line s{}\" points=\"{}\"/>", i % 4, path(&run));
            }
        }
        out += "</svg>\n";
        if let Some((at, name)) = &self.margin {
            let at = y.at(*at);
            let _ = writeln!(out, "<line class=\"margin\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
            let _ = writeln!(out, "<text class=\"over\" x=\"{RIGHT}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", at - 4.0, Escaped(name));
        }
        self.marks(&mut out, &x, top, bottom);
        if all().all(|p| p.y.is_none()) {
            let _ = writeln!(out, "<text class=\"soft\" x=\"{LEFT}\" y=\"{:.1}\" dx=\"8\">no value yet</text>", top + HEIGHT / 2.0);
        }
        self.legend(&mut out);
        Html::markup(out + "</svg>\n")
    }

    fn across(&self) -> (f64, f64) {
        let xs = self.lines.iter().flat_map(|line| line.points.iter().map(|p| p.x)).chain(self.marks.iter().map(|mark| mark.x));
        let (low, high) = xs.filter(|x| x.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        match (low > high, self.axis == Axis::Time && high - low < 1_000.0) {
            (true, _) => (0.0, 1.0),
            (_, true) => (low - 500.0, low + 500.0),
            _ => (low, high),
        }
    }

    /// What must be seen: lines, margin, and the intervals as they are at the end. Earlier ones are wider, and would leave no room to see
    /// anything else.
    fn upward(&self) -> (f64, f64) {
        let values = self.lines.iter().flat_map(|line| line.points.iter().filter_map(|p| p.y));
        let ends = self.lines.iter().filter_map(|line| line.points.iter().rev().find_map(|p| p.band)).flatten();
        let zero = self.zero.then_some(0.0);
        span(values.chain(ends).chain(self.margin.iter().map(|(at, _)| *at)).chain(zero))
    }

    fn grid(&self, out: &mut String, x: &Scale, y: &Scale) {
        let (top, bottom) = (y.at(y.high), y.at(y.low));
        for tick in ticks(y.low, y.high, 7) {
            let at = y.at(tick);
            let _ = writeln!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
            let label = self.unit.show(tick);
            let _ = writeln!(
                out,
                "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                Escaped(&label)
            );
        }
        let along = match &self.axis {
            Axis::Time => times(x.low, x.high, 6),
            Axis::Number(unit) => ticks(x.low, x.high, 7).into_iter().map(|tick| (tick, unit.show(tick))).collect(),
        };
        for (at, label) in along {
            let at = x.at(at);
            let _ = writeln!(out, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>");
            let anchor = if at > RIGHT - 30.0 { "end" } else { "middle" };
            let _ = writeln!(
                out,
                "<text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                bottom + 15.0,
                Escaped(&label)
            );
        }
    }

    fn marks(&self, out: &mut String, x: &Scale, top: f64, bottom: f64) {
        // Up to where each line of labels is taken.
        let mut taken = [f64::NEG_INFINITY; MARK_LINES];
        let mut marks: Vec<&Mark> = self.marks.iter().collect();
        marks.sort_by(|a, b| a.x.total_cmp(&b.x));
        for mark in marks {
            let at = x.clamped(mark.x);
            let class = if mark.kind == MarkKind::Decision { "marked decision" } else { "marked" };
            let label = shortened(&mark.label);
            let width = LETTER * (label.chars().count() + 2) as f64;
            // A label that does not fit to the right of its line stands to the left.
            let (from, anchor) = if at + width > RIGHT { (at - width, "end") } else { (at, "start") };
            let lines = self.marks.len().min(MARK_LINES);
            let free = (0..lines).find(|line| taken[*line] <= from);
            let line = free.unwrap_or(lines - 1);
            taken[line] = from + width;
            let height = top - 5.0 - MARK_LINE * (lines - 1 - line) as f64;
            let _ = writeln!(
                out,
                "<g><title>{}</title><line class=\"{class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{height:.1}\" text-anchor=\"{anchor}\">{} {}</text></g>",
                Escaped(&mark.label),
                height + 2.0,
                mark.kind.sign(),
                // Where there is no room the sign alone tells that there is something.
                Escaped(if free.is_some() { &label } else { "" })
            );
        }
    }

    fn legend(&self, out: &mut String) {
        let mut at = LEFT;
        for (i, line) in self.lines.iter().enumerate() {
            let _ = writeln!(
                out,
                "<line class=\"line s{}\" x1=\"{at:.1}\" x2=\"{:.1}\" y1=\"8\" y2=\"8\"/><text x=\"{:.1}\" y=\"12\">{}</text>",
                i % 4,
                at + 22.0,
                at + 27.0,
                Escaped(&line.name)
            );
            at += 40.0 + LETTER * line.name.chars().count() as f64;
        }
    }
}

/// The area between the ends of each interval, and the ends themselves.
fn band(out: &mut String, class: usize, line: &Line, x: &Scale, y: &Scale) {
    let known = |p: &Point| p.band.filter(|band| band.iter().all(|v| !v.is_nan()));
    let ends = |end: usize| runs(&line.points, |p| known(p).map(|band| (x.at(p.x), y.at(band[end]))));
    for (low, high) in ends(0).into_iter().zip(ends(1)) {
        let around: Vec<(f64, f64)> = high.iter().copied().chain(low.iter().rev().copied()).collect();
        let _ = writeln!(out, "<polygon class=\"band f{class}\" points=\"{}\"/>", path(&around));
        for end in [low, high] {
            let _ = writeln!(out, "<polyline class=\"end s{class}\" points=\"{}\"/>", path(&end));
        }
    }
}

/// Stretches of points that have a place; a stretch of one is drawn as a short dash.
fn runs(points: &[Point], place: impl Fn(&Point) -> Option<(f64, f64)>) -> Vec<Vec<(f64, f64)>> {
    let mut runs: Vec<Vec<(f64, f64)>> = vec![Vec::new()];
    for point in points {
        match place(point).filter(|(x, y)| !x.is_nan() && !y.is_nan()) {
            Some(at) => runs.last_mut().into_iter().for_each(|run| run.push(at)),
            None if runs.last().is_some_and(|run| !run.is_empty()) => runs.push(Vec::new()),
            None => {}
        }
    }
    runs.retain(|run| !run.is_empty());
    for run in runs.iter_mut().filter(|run| run.len() == 1) {
        let (x, y) = run[0];
        *run = vec![(x - 1.0, y), (x + 1.0, y)];
    }
    runs
}

fn path(points: &[(f64, f64)]) -> String {
    // Far outside is as good as a little outside, and shorter.
    let bound = |v: f64| v.clamp(-2_000.0, 2_000.0);
    points.iter().map(|(x, y)| format!("{:.1},{:.1}", bound(*x), bound(*y))).collect::<Vec<_>>().join(" ")
}

fn shortened(label: &str) -> String {
    match label.chars().count() > LABEL {
        true => label.chars().take(LABEL - 1).chain(['\u{2026}']).collect(),
        false => label.to_owned(),
    }
}
