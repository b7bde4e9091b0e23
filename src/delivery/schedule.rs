//! When the next attempt is made.

use crate::engine::decision::Timestamp;
use crate::engine::time::Millis;

/// Spans between attempts, in ms: an endpoint that fails at once is tried at 0, 1, 2, 5, 10, 30 s, 1, 2, 5, 10 min, and then
/// every ten minutes.
const GAPS: [Millis; 9] = [1_000, 1_000, 3_000, 5_000, 20_000, 30_000, 60_000, 180_000, 300_000];
const LAST_GAP: Millis = 600_000;

/// Longest `Retry-After` that is honoured: a receiver cannot put a rollback off for a day.
pub const LONGEST_WAIT: Millis = 600_000;

/// How long to wait after attempt `n` (from 1) has failed. `jitter` in -1..=1 moves the gap by up to a tenth; what the receiver
/// asked for is a lower bound.
pub(super) fn wait(n: u32, jitter: f64, retry_after: Option<Millis>) -> Millis {
    let gap = GAPS.get(n.saturating_sub(1) as usize).copied().unwrap_or(LAST_GAP);
    let moved = gap + (gap as f64 * 0.1 * jitter.clamp(-1.0, 1.0)) as Millis;
    moved.max(retry_after.unwrap_or(0).min(LONGEST_WAIT))
}

/// The span that a `Retry-After` header asks for: seconds, or an HTTP date.
pub(super) fn retry_after(header: &str, now: Millis) -> Option<Millis> {
    let header = header.trim();
    if let Ok(seconds) = header.parse::<u32>() {
        return Some(Millis::from(seconds) * 1_000);
    }
    let date = jiff::fmt::rfc2822::parse(header).ok()?;
    Some((date.timestamp().as_millisecond() - now).max(0))
}

/// RFC 3339, for bodies.
pub(super) fn rfc3339(at: Millis) -> String {
    Timestamp(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_the_contracts() {
        let mut at = 0;
        let mut seconds = vec![0];
        for n in 1..=11 {
            at += wait(n, 0.0, None);
            seconds.push(at / 1_000);
        }
        assert_eq!(seconds, [0, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1_200, 1_800]);
        assert_eq!((wait(1, -1.0, None), wait(1, 1.0, None), wait(99, 7.0, None)), (900, 1_100, 660_000));
    }

    #[test]
    fn a_receiver_may_ask_for_patience_within_reason() {
        let now = 784_111_777_000 - 30_000;
        assert_eq!(retry_after(" 120 ", now), Some(120_000));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(30_000));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now + 60_000), Some(0));
        for bad in ["", "-1", "soon", "99999999999999999999", "1.5"] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
        assert_eq!(wait(1, 0.0, Some(120_000)), 120_000);
        assert_eq!(wait(1, 0.0, Some(0)), 1_000);
        assert_eq!(wait(1, 0.0, Some(86_400_000)), LONGEST_WAIT);
    }
}
