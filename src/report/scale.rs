//! From values to places in a drawing, and back to the numbers on its axes.

use std::fmt;

/// Width of every chart, in the units of its drawing.
pub(super) const WIDTH: f64 = 760.0;

/// What a value is measured in, and so how it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 0.12 is written 12%.
    Share,
    /// 0.12 is written +12%.
    Change,
    /// 0.12 is written +12pp.
    Points,
    /// 420 is written 420 ms, or whatever the unit's name is.
    Of(String),
    /// The same of a difference: +20 ms.
    By(String),
}

impl Unit {
    /// Written with about three digits.
    pub fn show(&self, value: f64) -> String {
        let (scaled, signed, unit) = match self {
            Unit::Share => (100.0 * value, false, "%"),
            Unit::Change => (100.0 * value, true, "%"),
            Unit::Points => (100.0 * value, true, "pp"),
            Unit::Of(unit) => (value, false, unit.as_str()),
            Unit::By(unit) => (value, true, unit.as_str()),
        };
        let sign = if signed && scaled > 0.0 { "+" } else { "" };
        let space = if unit.is_empty() || unit == "%" || unit == "pp" { "" } else { " " };
        format!("{sign}{}{space}{unit}", Digits(scaled))
    }
}

/// A number with about three digits, and no needless noughts.
struct Digits(f64);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        let places = match size {
            s if s >= 99.95 || s == 0.0 => 0,
            s if s >= 9.995 => 1,
            s if s >= 0.0995 => 2,
            s if s >= 0.00095 => 4,
            _ => return write!(f, "{:.1e}", self.0),
        };
        let text = format!("{:.places$}", self.0);
        let text = if places > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        let (whole, rest) = text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
        let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
        write!(f, "{sign}{}", grouped(digits))?;
        rest.map_or(Ok(()), |rest| write!(f, ".{rest}"))
    }
}

/// A count as people read it: a thousand is told more easily with its commas.
pub fn thousands(n: u64) -> String {
    grouped(&n.to_string())
}

fn grouped(digits: &str) -> String {
    let comma = |i: usize| i > 0 && (digits.len() - i).is_multiple_of(3);
    digits.char_indices().flat_map(|(i, digit)| comma(i).then_some(',').into_iter().chain([digit])).collect()
}

/// A straight way from values to places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub low: f64,
    pub high: f64,
    at_low: f64,
    at_high: f64,
}

impl Scale {
    /// Where all values are one, there is room around it.
    pub fn new((low, high): (f64, f64), (at_low, at_high): (f64, f64)) -> Scale {
        let spread = if high > low { 0.0 } else { (low.abs() * 0.1).max(1e-9) };
        Scale { low: low - spread, high: high + spread, at_low, at_high }
    }

    pub fn at(&self, value: f64) -> f64 {
        self.at_low + (value - self.low) / (self.high - self.low) * (self.at_high - self.at_low)
    }

    /// The same for a value that may lie outside: at the edge.
    pub fn clamped(&self, value: f64) -> f64 {
        self.at(value.clamp(self.low, self.high))
    }
}

/// The span of finite values with some room at both ends; (0, 1) of none.
pub(super) fn span(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.into_iter().filter(|v| v.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let room = (high - low) * 0.08;
    (low - room, high + room)
}

/// Round values inside a span: at most `most` of them, about evenly many whatever the span.
pub(super) fn ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let raw = (high - low) / most.max(1) as f64;
    if !(raw.is_finite() && raw > 0.0) {
        return Vec::new();
    }
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= raw).unwrap_or(10.0 * power);
    let first = (low / step).ceil();
    (0..=most)
        .map(|i| (first + i as f64) * step)
        .take_while(|tick| *tick <= high)
        .map(|tick| if tick == 0.0 { 0.0 } else { tick })
        .collect()
}

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Round instants (ms since the epoch) inside a span, with how they are written.
pub(super) fn times(low: f64, high: f64, most: usize) -> Vec<(f64, String)> {
    const STEPS: [i64; 19] = [
        SECOND,
        2 * SECOND,
        5 * SECOND,
        10 * SECOND,
        15 * SECOND,
        30 * SECOND,
        MINUTE,
        2 * MINUTE,
        5 * MINUTE,
        10 * MINUTE,
        15 * MINUTE,
        30 * MINUTE,
        HOUR,
        3 * HOUR,
        6 * HOUR,
        12 * HOUR,
        DAY,
        2 * DAY,
        7 * DAY,
    ];
    let most = most.max(1) as i64;
    // Beyond these there are no dates.
    let (low, high) = (low.ceil().clamp(-1e14, 1e14) as i64, high.floor().clamp(-1e14, 1e14) as i64);
    let raw = (high - low) / most;
    let step = STEPS.into_iter().find(|step| *step >= raw).unwrap_or_else(|| (raw / DAY + 1) * DAY);
    let format = match step {
        s if s < MINUTE => "%H:%M:%S",
        s if s < DAY && high - low < DAY => "%H:%M",
        s if s < DAY => "%b %-d %H:%M",
        _ => "%b %-d",
    };
    let first = low.div_euclid(step) + i64::from(low.rem_euclid(step) > 0);
    (first..=first + most)
        .map(|n| n * step)
        .take_while(|at| *at <= high)
        .filter_map(|at| Some((at as f64, jiff::Timestamp::from_millisecond(at).ok()?.strftime(format).to_string())))
        .collect()
}
