//! Numbers with units, as people write them: `10%`, `0.5pp`, `1500ms`, `10m`, `120k/day`.

use crate::engine::time::Millis;

/// A number and what it measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantity {
    /// No unit.
    Number(f64),
    /// `10%` is 0.1.
    Percent(f64),
    /// Percentage points: `0.5pp` is 0.005.
    Points(f64),
    /// A time in milliseconds.
    Span(f64),
}

/// Greatest number that a rule may name: a count beyond it would not be exact.
const MAX_NUMBER: f64 = 1e15;
/// Longest span that a rule may name: ten years, in ms.
const MAX_SPAN: f64 = 10.0 * 365.0 * 86_400_000.0;

impl Quantity {
    /// `None` when the text is no finite number with a known unit.
    pub fn parse(text: &str) -> Option<Quantity> {
        if let Some(number) = number(text) {
            return Some(number).filter(|n| n.abs() <= MAX_NUMBER).map(Quantity::Number);
        }
        let at = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))?;
        let (value, unit) = (number(&text[..at])?, text[at..].trim_start());
        match unit {
            "%" => Some(value / 100.0).filter(|v| v.abs() <= MAX_NUMBER).map(Quantity::Percent),
            "pp" => Some(value / 100.0).filter(|v| v.abs() <= MAX_NUMBER).map(Quantity::Points),
            _ => Some(value * unit_ms(unit)?).filter(|ms| ms.abs() <= MAX_SPAN).map(Quantity::Span),
        }
    }

    pub fn is_negative(self) -> bool {
        let (Quantity::Number(v) | Quantity::Percent(v) | Quantity::Points(v) | Quantity::Span(v)) = self;
        v < 0.0
    }
}

/// A finite decimal number, `1e-3` included; not `inf`, `nan` or hexadecimal.
pub fn number(text: &str) -> Option<f64> {
    let plausible = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'));
    if plausible { text.parse().ok().filter(|v: &f64| v.is_finite()) } else { None }
}

/// A span of whole milliseconds (`30s`, `10m`, `6h`, `1d`, `500ms`); `None` when it is not one, or below 0.
pub fn duration(text: &str) -> Option<Millis> {
    match Quantity::parse(text)? {
        Quantity::Span(ms) if ms >= 0.0 => Some(ms.round() as Millis),
        _ => None,
    }
}

/// A share 0..=1 written as a percentage; `0` needs no unit.
pub fn percent(text: &str) -> Option<f64> {
    match Quantity::parse(text)? {
        Quantity::Percent(share) if (0.0..=1.0).contains(&share) => Some(share),
        Quantity::Number(0.0) => Some(0.0),
        _ => None,
    }
}

/// Whether the text is a frequency: `3/h`, `120k/day`.
pub fn is_rate(text: &str) -> bool {
    per_day(text).is_some()
}

/// A frequency such as `3/h` or `120k/day`, as a number a day.
pub fn per_day(text: &str) -> Option<f64> {
    rate(text).map(|(count, span)| count * 86_400_000.0 / span as f64)
}

/// A frequency such as `3/h`: how many, in how many milliseconds.
pub fn rate(text: &str) -> Option<(f64, i64)> {
    let (count, per) = text.split_once('/')?;
    let span = match per.trim() {
        "s" | "second" => 1_000,
        "m" | "min" | "minute" => 60_000,
        "h" | "hour" => 3_600_000,
        "d" | "day" => 86_400_000,
        "w" | "week" => 604_800_000,
        _ => return None,
    };
    let count = count.trim_end();
    let (digits, factor) = match count.strip_suffix('k') {
        Some(digits) => (digits, 1e3),
        None => count.strip_suffix('M').map_or((count, 1.0), |digits| (digits, 1e6)),
    };
    number(digits).filter(|n| *n >= 0.0).map(|n| (n * factor, span))
}

fn unit_ms(unit: &str) -> Option<f64> {
    Some(match unit {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1e3,
        "m" | "min" => 60e3,
        "h" => 3_600e3,
        "d" => 86_400e3,
        "w" => 604_800e3,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_told_apart() {
        assert_eq!(Quantity::parse("10%"), Some(Quantity::Percent(0.1)));
        assert_eq!(Quantity::parse("0.5pp"), Some(Quantity::Points(0.005)));
        assert_eq!(Quantity::parse("20 ms"), Some(Quantity::Span(20.0)));
        assert_eq!(Quantity::parse("1.5s"), Some(Quantity::Span(1500.0)));
        assert_eq!(Quantity::parse("1e-3"), Some(Quantity::Number(0.001)));
        assert_eq!(duration("10m"), Some(600_000));
        assert_eq!(duration("1d"), Some(86_400_000));
    }

    #[test]
    fn what_is_no_quantity_is_none() {
        for text in [
            "",
            "ten",
            "%",
            "10 percent",
            "1e999",
            "1e16",
            "99999999999999999999%",
            "inf",
            "nan",
            "0x10",
            "1..2s",
            "99999999w",
            "10mm",
            "é",
            "5é",
        ] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
        assert_eq!(duration("-1s"), None);
        assert_eq!(duration("5"), None);
        assert_eq!(percent("101%"), None);
        assert_eq!(percent("0.5"), None);
    }

    #[test]
    fn frequencies() {
        assert!(is_rate("3/h") && is_rate("120k/day") && is_rate("1.5M/week"));
        assert_eq!((per_day("3/h"), per_day("1.4M/week"), per_day("2 k/day")), (Some(72.0), Some(200_000.0), None));
        assert!(!is_rate("3") && !is_rate("k/h") && !is_rate("3kk/h") && !is_rate("-3/h") && !is_rate("3/fortnight"));
    }
}
