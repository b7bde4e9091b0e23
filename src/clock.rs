//! The wall clock, and one that goes on when that is set: the only place that reads them for times that are kept.

use crate::engine::time::Millis;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Now, in milliseconds since the Unix epoch.
pub fn now() -> Millis {
    #[allow(clippy::disallowed_methods)]
    let now = jiff::Timestamp::now();
    now.as_millisecond()
}

/// An instant by both clocks, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// For people, and for receivers: what the clock on the wall shows.
    pub wall: Millis,
    /// For schedules: it follows the wall clock, but for jumps. After one it goes on as before, until the process starts anew.
    pub steady: Millis,
}

/// The present by both clocks.
pub fn moment() -> Moment {
    static STEADY: Mutex<Option<(Steady, Instant)>> = Mutex::new(None);
    let mut slot = STEADY.lock().unwrap_or_else(|e| e.into_inner());
    let (wall, instant) = (now(), Instant::now());
    let (steady, read) = slot.get_or_insert((Steady { at: wall }, instant));
    let elapsed = instant.saturating_duration_since(*read).as_millis();
    *read = instant;
    Moment { wall, steady: steady.advance(wall, Millis::try_from(elapsed).unwrap_or(Millis::MAX)) }
}

struct Steady {
    at: Millis,
}

impl Steady {
    /// Off the wall clock by less than this, or by a thousandth of the time since it was last read, it is set by it: so much is slewing.
    const SLEWED: Millis = 1_000;

    /// `elapsed` ms have gone by since the last call.
    fn advance(&mut self, wall: Millis, elapsed: Millis) -> Millis {
        let own = self.at.saturating_add(elapsed);
        let slewed = (wall - own).abs() <= Steady::SLEWED.max(elapsed / 1_000);
        // Never back, not even by a little.
        self.at = if slewed { wall.max(self.at) } else { own };
        self.at
    }
}

/// Time for threads that read and judge: the machine's, or that of a simulation.
pub trait Time: Send + Sync {
    /// The wall clock, ms since the Unix epoch. It may be set.
    fn now(&self) -> Millis;
    fn moment(&self) -> Moment;
    /// Time since some instant: it does not go back.
    fn steady(&self) -> Duration;
    fn sleep(&self, span: Duration);
}

pub type Clock = Arc<dyn Time>;

/// The machine's clocks.
pub fn machine() -> Clock {
    with_wall(now)
}

/// The machine's clocks, but for [`Time::now`].
pub fn with_wall(now: fn() -> Millis) -> Clock {
    Arc::new(Machine { now, started: Instant::now() })
}

struct Machine {
    now: fn() -> Millis,
    started: Instant,
}

impl Time for Machine {
    fn now(&self) -> Millis {
        (self.now)()
    }

    fn moment(&self) -> Moment {
        moment()
    }

    fn steady(&self) -> Duration {
        self.started.elapsed()
    }

    fn sleep(&self, span: Duration) {
        std::thread::sleep(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_go_on_when_the_wall_clock_is_set_and_follow_it_when_it_is_slewed() {
        let hour = 3_600_000;
        let mut steady = Steady { at: 1_000_000 };
        assert_eq!(steady.advance(1_000_600, 500), 1_000_600, "slewed");
        assert_eq!(steady.advance(1_000_550, 0), 1_000_600, "never back");
        assert_eq!(steady.advance(1_000_000 - 3 * hour, 1_000), 1_001_600, "set back");
        assert_eq!(steady.advance(1_000_000 + 9 * hour, 10_000), 1_011_600, "set forth");
        assert_eq!(steady.advance(1_021_600, 10_000), 1_021_600, "set right again");
        assert_eq!(steady.advance(1_021_600 + hour + 3_000, hour), 1_021_600 + hour + 3_000, "drifted for an hour");
    }
}
