//! Exposed units by period of allocation, and events against them: what the sample ratio and volume parity are read from.

use super::periods::Periods;
use super::{Booking, enrolled};
use crate::engine::pane::BucketPartial;
use crate::engine::stats::counts;
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};

/// Units exposed for the first time, by period and bucket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enrolled {
    buckets: usize,
    periods: Periods<Vec<u64>>,
    /// Units have come since somebody asked: see [`Enrolled::take_news`].
    #[serde(skip, default = "news")]
    news: bool,
}

fn news() -> bool {
    true
}

/// Periods whose counts are kept; the oldest go first.
const MAX_PERIODS: usize = 64;

impl Enrolled {
    pub fn new(buckets: usize) -> Enrolled {
        Enrolled { buckets, periods: Periods::new(MAX_PERIODS), news: true }
    }

    pub fn add(&mut self, pane: Pane, bucket: usize, part: &BucketPartial, book: &Booking<'_>) {
        for (cohort, n) in enrolled(pane, part).filter(|(cohort, _)| *cohort >= book.first_cohort) {
            self.news = true;
            let period = book.allocation.period(cohort);
            let buckets = self.buckets;
            if let Some(counts) = self.periods.at(period, || vec![0; buckets]) {
                counts[bucket] += n;
            }
        }
    }

    /// Whether [`Enrolled::strata`] may give something else than at the last call.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Counts and designed shares of each period whose shares are known.
    pub fn strata<'a>(&'a self, book: &Booking<'a>) -> Vec<(&'a [u64], &'a [f64])> {
        let allocation = book.allocation;
        self.periods.iter().filter_map(|(period, counts)| Some((counts.as_slice(), allocation.weights(period)?))).collect()
    }
}

/// Events of a bucket against those of the baseline, seen against the units exposed to each at the time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// By bucket: units so far.
    units: Vec<u64>,
    /// By bucket: periods in which its share of the units hardly moved; empty for the baseline.
    strata: Vec<Vec<counts::Stratum>>,
}

/// A stratum ends when the share of units has moved by this part of itself, far less than any tolerated gap.
const DRIFT: f64 = 0.005;
/// Units in each of two buckets before their events are compared: with fewer, shares jump.
const MIN_UNITS: f64 = 100.0;
/// Strata of a bucket; the last one stays open after that.
const MAX_STRATA: usize = 256;

impl Volume {
    pub fn new(buckets: usize) -> Volume {
        Volume { units: vec![0; buckets], strata: vec![Vec::new(); buckets] }
    }

    /// Adds one pane. The share is that of the units exposed before it; where events are not `compared`, units count alone.
    pub fn add(&mut self, parts: &[BucketPartial], baseline: usize, compared: bool) {
        let events_c = parts.get(baseline).map_or(0, |p| p.events) as f64;
        for (bucket, part) in parts.iter().enumerate().take(self.strata.len()) {
            let (t, c) = (self.units[bucket] as f64, self.units[baseline] as f64);
            if bucket == baseline || t.min(c) < MIN_UNITS || !compared {
                continue;
            }
            let (w, strata) = (t / (t + c), &mut self.strata[bucket]);
            if strata.last().is_none_or(|last| (last.w - w).abs() > DRIFT * last.w) && strata.len() < MAX_STRATA {
                strata.push(counts::Stratum { w, x_t: 0.0, x_c: 0.0 });
            }
            if let Some(last) = strata.last_mut() {
                last.x_t += part.events as f64;
                last.x_c += events_c;
            }
        }
        for (units, part) in self.units.iter_mut().zip(parts) {
            *units += part.new_units;
        }
    }

    pub fn strata(&self, bucket: usize) -> &[counts::Stratum] {
        &self.strata[bucket]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_seen_against_the_units_of_their_time() {
        let mut volume = Volume::new(2);
        let part = |new_units, events| BucketPartial { new_units, events, ..BucketPartial::default() };
        for (units, events) in [(99, 9), (1, 5), (0, 7), (0, 3), (300, 2), (0, 1)] {
            volume.add(&[part(99.min(units).max(u64::from(units == 1)), events), part(units, 2 * events)], 0, true);
        }
        let strata: Vec<_> = volume.strata(1).iter().map(|s| (s.w, s.x_t, s.x_c)).collect();
        assert_eq!(strata, [(0.5, 24.0, 12.0), (400.0 / 599.0, 2.0, 1.0)]);
        assert!(volume.strata(0).is_empty());
    }
}
