//! Spans of time and sizes as people write them.

use std::time::Duration;

const SPANS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 7] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("B", 1)];

/// A span such as `500ms`, `30s`, `1.5h`, `1d`; at most 100 years.
pub fn span(text: &str) -> Option<Duration> {
    if text.trim() == "0" {
        return Some(Duration::ZERO);
    }
    let ms = scaled(text, &SPANS)?;
    (ms <= 100 * 365 * 86_400_000).then(|| Duration::from_millis(ms))
}

/// A size in bytes such as `512B`, `64KiB`, `1MiB`.
pub fn size(text: &str) -> Option<u64> {
    scaled(text, &SIZES)
}

/// The span as people would write it: the largest unit that divides it.
pub fn write_span(span: Duration) -> String {
    let ms = span.as_millis() as u64;
    let (unit, scale) = SPANS.iter().rev().find(|(_, scale)| ms >= *scale && ms.is_multiple_of(*scale)).copied().unwrap_or(("ms", 1));
    format!("{}{unit}", ms / scale)
}

/// Number and unit, rounded to whole ones of the smallest unit; `None` where either is missing, or the number negative or not finite.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    let value = number.parse::<f64>().ok()? * scale as f64;
    (value.is_finite() && value < 9e15).then(|| value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_read() {
        for text in ["1ms", "500ms", "30s", "90s", "10m", "2h", "1d"] {
            assert_eq!(write_span(span(text).unwrap()), text);
        }
        assert_eq!(["3B", "64KiB", "1MiB", "2MB"].map(size), [Some(3), Some(65_536), Some(1_048_576), Some(2_000_000)]);
        assert_eq!(span("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(span("0"), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_not_a_span_is_refused() {
        for text in ["", "10", "s", "-1s", "1e3s", "1 fortnight", "1..5s", "inf", "99999999999999999999d", "1m30s"] {
            assert_eq!(span(text), None, "{text}");
        }
        assert_eq!(size("1mib"), None);
    }
}
