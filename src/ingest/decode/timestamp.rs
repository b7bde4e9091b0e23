//! Event times: RFC 3339 text or integer milliseconds.

use crate::engine::time::Millis;

/// 2000-01-01T00:00:00Z. Earlier times are refused: what seems one is nearly always a count of seconds, not milliseconds.
pub const EARLIEST: Millis = 946_684_800_000;
/// 9999-12-31T23:59:59.999Z.
pub const LATEST: Millis = 253_402_300_799_999;

/// A time within [`EARLIEST`]`..=`[`LATEST`].
pub fn in_range(ts: Millis) -> Option<Millis> {
    (EARLIEST..=LATEST).contains(&ts).then_some(ts)
}

/// Milliseconds written as a JSON number: a whole one, in range.
pub fn from_number(text: &str) -> Option<Millis> {
    if let Ok(ts) = text.parse::<i64>() {
        return in_range(ts);
    }
    let value = super::json::number(text);
    // Every whole number up to LATEST is exact in f64.
    (value.fract() == 0.0 && value.abs() <= LATEST as f64).then_some(value as i64).and_then(in_range)
}

/// RFC 3339, digits of the second beyond the third cut off; a leap second counts as the last millisecond before it.
pub fn from_text(text: &str) -> Option<Millis> {
    let b = text.as_bytes();
    if b.len() < 20 || b[4] != b'-' || b[7] != b'-' || !matches!(b[10], b'T' | b't' | b' ') || b[13] != b':' || b[16] != b':' {
        return None;
    }
    let year = pair(b, 0)? * 100 + pair(b, 2)?;
    let (month, day) = (pair(b, 5)?, pair(b, 8)?);
    let (hour, minute, second) = (pair(b, 11)?, pair(b, 14)?, pair(b, 17)?);
    if day < 1 || day > days_in(year, month)? || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut millis = 0;
    if b[at] == b'.' {
        let from = at + 1;
        at = from;
        while at < b.len() && b[at].is_ascii_digit() {
            if at < from + 3 {
                millis += i64::from(b[at] - b'0') * [100, 10, 1][at - from];
            }
            at += 1;
        }
        if at == from {
            return None;
        }
    }
    let (second, millis) = if second == 60 { (59, 999) } else { (second, millis) };
    let local = ((days_from_epoch(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    in_range((local - offset(&b[at..])?) * 1000 + millis)
}

/// `Z` or `+HH:MM`, in seconds.
fn offset(b: &[u8]) -> Option<i64> {
    match b {
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (pair(b, 1)?, pair(b, 4)?);
            let seconds = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
            Some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

/// Two digits.
#[inline]
fn pair(b: &[u8], at: usize) -> Option<i64> {
    let (tens, ones) = (b[at].wrapping_sub(b'0'), b[at + 1].wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then(|| i64::from(tens) * 10 + i64::from(ones))
}

fn days_in(year: i64, month: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        4 | 6 | 9 | 11 => Some(30),
        2 => Some(if leap { 29 } else { 28 }),
        _ => None,
    }
}

/// Days between 1970-01-01 and a date of the Gregorian calendar, counted in years that begin in March so that the leap day is last.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let months_since_march = (month + 9) % 12;
    y * 365 + y / 4 - y / 100 + y / 400 + (153 * months_since_march + 2) / 5 + day - 1 - 719_468
}
