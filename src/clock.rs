//! The wall clock: the only place that reads it for event time.

use crate::engine::time::Millis;

/// Now, in milliseconds since the Unix epoch.
pub fn now() -> Millis {
    #[allow(clippy::disallowed_methods)]
    let now = jiff::Timestamp::now();
    now.as_millisecond()
}
