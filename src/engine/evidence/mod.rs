//! What the tests against the baseline need to know: sufficient statistics of each signal, kept apart by period of allocation.
//!
//! The Judge adds the partial of every pane and asks; nothing here decides. A unit, and all that it does, belongs to the period of its
//! first exposure ([`allocation`]), so that a ramp cannot mix populations (Simpson's paradox). Beside the sums of the whole life, a
//! ring of [`slots`] lets the same tests be started anew at many moments: that finds a regression that begins late.

pub mod allocation;
mod clusters;
mod ladder;
mod means;
mod periods;
mod ripening;
mod shares;
mod silent;
mod slots;
mod spread;
mod units;

pub use clusters::{Clustering, Counted};
pub use means::Means;
pub use shares::{Arm, LateStart, ShareTest, Shares};
pub use silent::Silent;
pub use spread::{Pair, Spread, SpreadTest, Watched};
pub use units::{Enrolled, Volume};

use super::pane::{BucketPartial, Cell};
use super::plan::Signal;
use super::time::{Millis, Pane};
use allocation::Allocation;
use ripening::Ripening;
use serde::{Deserialize, Serialize};

/// Statistics of one signal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SignalEvidence {
    Share(Shares),
    Spread(Spread),
    Mean(Means),
}

impl SignalEvidence {
    /// `compared`: quantiles that guardrails compare with the baseline; `expected`: the configured rate of the baseline.
    pub fn new(signal: &Signal, buckets: usize, compared: Vec<Watched>, expected: Option<f64>, pane_ms: Millis) -> SignalEvidence {
        match signal {
            Signal::Distribution { .. } => SignalEvidence::Spread(Spread::new(buckets, compared)),
            Signal::Moments { .. } => SignalEvidence::Mean(Means::new(buckets, signal.is_per_user())),
            Signal::Rate { .. } | Signal::Count { .. } => SignalEvidence::Share(Shares::new(buckets, signal.is_per_user(), None, expected)),
            Signal::Retention { day, .. } => {
                SignalEvidence::Share(Shares::new(buckets, true, None, expected).ripening(Ripening::new(*day, pane_ms)))
            }
            Signal::Abandonment { within, .. } => {
                let panes = (within + pane_ms - 1).div_euclid(pane_ms);
                SignalEvidence::Share(Shares::new(buckets, false, Some(panes), expected))
            }
        }
    }

    /// Where limits alone ask: without what only comparisons need.
    pub fn of_limit(self) -> SignalEvidence {
        match self {
            SignalEvidence::Share(shares) => SignalEvidence::Share(shares.of_limit()),
            other => other,
        }
    }

    /// Adds a bucket's traffic and its cell of `pane`. `book` says where each cohort belongs.
    pub fn add(&mut self, pane: Pane, bucket: usize, part: &BucketPartial, cell: Cell<'_>, book: &Booking<'_>) {
        match self {
            SignalEvidence::Share(shares) => shares.add(pane, bucket, part, cell, book),
            SignalEvidence::Spread(spread) => spread.add(pane, bucket, cell, book),
            SignalEvidence::Mean(means) => means.add(pane, bucket, part, cell, book),
        }
    }

    /// All of `pane` has been added.
    pub fn close(&mut self, pane: Pane, book: &Booking<'_>) {
        match self {
            SignalEvidence::Share(shares) => shares.close(pane, book),
            SignalEvidence::Spread(spread) => spread.close(pane, book),
            SignalEvidence::Mean(_) => {}
        }
    }
}

/// How observations are booked.
pub struct Booking<'a> {
    pub allocation: &'a Allocation,
    /// Cohorts before this pane are not counted where the unit is the observation: their units were not.
    pub first_cohort: Pane,
    /// Panes in a slot.
    pub slot: i64,
    /// The baseline bucket.
    pub baseline: usize,
}

impl Booking<'_> {
    /// The number of the slot that begins at `start`, from 1, among the slots since the first cohort; and the periods of known shares that
    /// began by its end. Both rise with `start`.
    pub fn place(&self, start: Pane) -> (u64, u32) {
        let before = start.0.saturating_sub(self.first_cohort.0).max(0).unsigned_abs() / self.slot.max(1).unsigned_abs();
        let period = self.allocation.period(Pane(start.0.saturating_add(self.slot - 1)));
        (before + 1, ordinal(period) + 1)
    }
}

/// The place of a period among those whose shares are known, from 0: every other one.
pub fn ordinal(period: usize) -> u32 {
    period as u32 / 2
}

/// Units of `part` by cohort: pane of the cohort, and how many.
pub fn enrolled(pane: Pane, part: &BucketPartial) -> impl Iterator<Item = (Pane, u64)> + '_ {
    let before: u64 = part.enrolled_before.iter().map(|(_, n)| n).sum();
    let now = part.new_units.saturating_sub(before);
    std::iter::once((pane, now))
        .chain(part.enrolled_before.iter().map(move |&(age, n)| (Pane(pane.0 - i64::from(age)), n)))
        .filter(|(_, n)| *n > 0)
}
