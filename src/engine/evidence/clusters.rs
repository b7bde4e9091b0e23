//! How far the requests of one unit resemble each other: hits by batch of units, from which the design effect is estimated.

use crate::engine::pane::{AGAIN, BATCHES, NO_UNIT};
use crate::engine::stats::design_effect::{self, Batch};
use serde::{Deserialize, Serialize};

/// Batches that distributions and blocks of slots are satisfied with, and all where the many would hold too little.
pub(super) const COARSE: usize = 64;

/// Observations and hits of one bucket by batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Batches {
    /// By batch; empty until a unit is seen.
    named: Vec<(u64, u64)>,
    anonymous: u64,
    /// A unit may have come more than once.
    repeated: bool,
}

impl Batches {
    pub fn add(&mut self, batch: u16, n: u64, x: u64) {
        if batch == NO_UNIT {
            self.anonymous += n;
            return;
        }
        self.repeated |= batch & AGAIN != 0;
        if self.named.is_empty() {
            self.named.resize(BATCHES, (0, 0));
        }
        let (count, hits) = &mut self.named[usize::from(batch) % BATCHES];
        *count += n;
        *hits += x;
    }

    pub fn counts(&self) -> Counted {
        Counted { named: fold(self.named.iter().copied()), anonymous: self.anonymous, repeated: self.repeated }
    }
}

/// All batches while half of them hold something, or else [`COARSE`] of them: a batch of one observation tells nothing of clustering.
pub(super) fn fold(sums: impl ExactSizeIterator<Item = (u64, u64)> + Clone) -> Vec<Batch> {
    let filled = sums.clone().filter(|sum| sum.0 > 0).count();
    let kept = if 2 * filled < sums.len() { COARSE.min(sums.len()) } else { sums.len() };
    let mut batches = vec![Batch::default(); kept];
    for (i, (n, s)) in sums.enumerate() {
        let batch = &mut batches[i % kept];
        (batch.n, batch.s) = (batch.n + n as f64, batch.s + s as f64);
    }
    batches
}

/// Batches of a distribution: how many values lie in each of its coarse bins, four in each octave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CoarseBatches {
    /// By coarse bin; each holds counts by batch, or nothing.
    rows: Vec<Vec<u32>>,
    /// Batch and coarse bin of the latest values: counted many at a time, since rows are hardly ever asked for and far apart in memory.
    fresh: Vec<(u8, u8)>,
    /// Of all rows, by batch; empty until a unit is seen.
    all: Vec<u64>,
    anonymous: u64,
    /// A unit may have come more than once.
    repeated: bool,
}

/// Values in `fresh` at most.
const FRESH_MAX: usize = 2_048;

/// The coarse bin of a value in thousandths.
pub(super) fn coarse(value: u64) -> u8 {
    let value = value.max(16);
    let octave = value.ilog2();
    ((octave - 4) * 4 + ((value >> (octave - 2)) & 3) as u32) as u8
}

/// The first coarse bin above the coarse edge nearest to `threshold`.
pub(super) fn first_above(threshold: u64) -> u8 {
    let own = coarse(threshold);
    // Of the two edges of its bin, the nearer one: the next quarter of an octave begins at `upper`.
    let (octave, quarter) = (u32::from(own / 4 + 4), u64::from(own % 4));
    let (lower, upper) = ((4 + quarter) << (octave - 2), (5 + quarter) << (octave - 2));
    if threshold.saturating_sub(lower) < upper.saturating_sub(threshold) { own } else { own + 1 }
}

impl CoarseBatches {
    pub fn add(&mut self, batch: u16, value: u64) {
        if batch == NO_UNIT {
            self.anonymous += 1;
            return;
        }
        self.repeated |= batch & AGAIN != 0;
        self.fresh.push(((usize::from(batch) % COARSE) as u8, coarse(value)));
        if self.fresh.len() >= FRESH_MAX {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.all.resize(COARSE, 0);
        for (batch, row) in self.fresh.drain(..) {
            let (batch, row) = (usize::from(batch), usize::from(row));
            self.all[batch] += 1;
            if row >= self.rows.len() {
                self.rows.resize_with(row + 1, Vec::new);
            }
            let row = &mut self.rows[row];
            row.resize(COARSE, 0);
            row[batch] = row[batch].saturating_add(1);
        }
    }

    /// Hits are the values above the coarse edge nearest to `threshold`.
    pub fn counts(&self, threshold: u64) -> Counted {
        let first = usize::from(first_above(threshold));
        let mut named: Vec<Batch> = self.all.iter().map(|&n| Batch { n: n as f64, s: 0.0 }).collect();
        for row in self.rows.iter().skip(first) {
            named.iter_mut().zip(row).for_each(|(batch, &count)| batch.s += f64::from(count));
        }
        if !self.fresh.is_empty() {
            named.resize(COARSE, Batch::default());
        }
        for &(batch, row) in &self.fresh {
            let batch = &mut named[usize::from(batch)];
            batch.n += 1.0;
            batch.s += if usize::from(row) >= first { 1.0 } else { 0.0 };
        }
        Counted { named, anonymous: self.anonymous, repeated: self.repeated }
    }
}

/// Batches of one bucket for one threshold.
pub struct Counted {
    named: Vec<Batch>,
    anonymous: u64,
    repeated: bool,
}

impl Counted {
    /// Batches that hold something.
    fn filled(&self) -> usize {
        self.named.iter().filter(|b| b.n > 0.0).count()
    }

    /// Half of them do.
    fn is_filled(&self) -> bool {
        2 * self.filled() >= self.named.len()
    }

    /// Observations that name their unit.
    pub fn named(&self) -> f64 {
        self.named.iter().map(|b| b.n).sum()
    }

    /// Index of dispersion of events per unit: the variance between batches of units over their mean, 1 or more; `None` where records do
    /// not name their units.
    pub fn dispersion(&self) -> Option<f64> {
        if self.is_anonymous() {
            return None;
        }
        let (count, mean) = (self.named.len() as f64, self.named() / self.named.len() as f64);
        let variance = self.named.iter().map(|b| (b.n - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Some((variance / mean).max(1.0))
    }

    /// [`Counted::dispersion`], raised for its uncertainty as design effects are.
    pub fn cautious_dispersion(&self, log_threshold: f64) -> Option<f64> {
        Some(caution(self.named.len(), log_threshold) * self.dispersion()?)
    }

    /// Most records do not name their unit: they are taken as independent.
    fn is_anonymous(&self) -> bool {
        self.named() <= self.anonymous as f64
    }

    /// No unit has come twice, so that observations are independent as units are; or nobody can tell.
    fn is_independent(&self) -> bool {
        !self.repeated || self.is_anonymous()
    }
}

/// By what the counts of each arm are divided, and whether that is known well enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clustering {
    /// Each at least 1.
    pub baseline: f64,
    pub bucket: f64,
    /// Of both arms together, for rates.
    pub rate: f64,
    /// Half of the batches of each arm hold something: enough to say that a margin holds.
    pub filled: bool,
    /// And the bucket has hits enough to say that it does not.
    pub ready: bool,
}

/// Effective hits without which a bucket's design effect is not trusted.
const MIN_HITS: f64 = 10.0;

impl Clustering {
    /// Observations that are independent of each other.
    pub const NONE: Clustering = Clustering { baseline: 1.0, bucket: 1.0, rate: 1.0, filled: true, ready: true };

    /// Of two arms whose evidence is to be compared with `log_threshold`: as [`design_effect::deflation`], but where an arm has no hit (or
    /// nothing else) and so no estimate of its own, it takes that of the other. Readiness asks for half of each arm's batches, and
    /// for hits in the bucket, not in the baseline: where the baseline has next to none, the alarm must not wait for them.
    pub fn of(baseline: &Counted, bucket: &Counted, log_threshold: f64) -> Clustering {
        if baseline.is_anonymous() || bucket.is_anonymous() || !(baseline.repeated || bucket.repeated) {
            return Clustering::NONE;
        }
        let (c, t) = (design_effect::of_batches(&baseline.named), design_effect::of_batches(&bucket.named));
        let (dof_c, dof_t) = (c.dof as f64, t.dof as f64);
        let pooled = if c.dof + t.dof > 0 { (dof_c * c.raw + dof_t * t.raw) / (dof_c + dof_t) } else { 1.0 };
        let caution = caution(baseline.filled().min(bucket.filled()), log_threshold);
        let of_arm = |raw: f64| (caution * raw.max(pooled)).max(1.0);
        let (of_c, of_t) = (of_arm(c.raw), of_arm(t.raw));
        let filled = baseline.is_filled() && bucket.is_filled();
        let hits: f64 = bucket.named.iter().map(|b| b.s).sum();
        Clustering { baseline: of_c, bucket: of_t, rate: of_c.max(of_t), filled, ready: filled && hits / of_t >= MIN_HITS }
    }

    /// Of a single arm, at least 1: for tests against a limit. So few units that they leave half of the batches empty tell nothing about
    /// clustering, and a limit must not wait for more of them: their observations are taken as independent.
    pub fn of_one(bucket: &Counted, log_threshold: f64) -> f64 {
        if bucket.is_independent() || !bucket.is_filled() {
            return 1.0;
        }
        (caution(bucket.filled(), log_threshold) * design_effect::of_batches(&bucket.named).raw).max(1.0)
    }
}

/// By how much a variance from that many batches is raised for its uncertainty.
pub(super) fn caution(batches: usize, log_threshold: f64) -> f64 {
    1.0 + (log_threshold.max(0.0) + 0.5) / (batches.saturating_sub(1).max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_bins_are_quarters_of_an_octave() {
        assert_eq!((coarse(0), coarse(16), coarse(20), coarse(31), coarse(32)), (0, 0, 1, 3, 4));
        let mut batches = CoarseBatches::default();
        for value in [16_000, 19_000, 21_000, 26_000, 40_000] {
            batches.add(3, value);
        }
        // Edges at 16,384, 20,480, 24,576 and 28,672.
        let above = |threshold| batches.counts(threshold).named[3].s;
        assert_eq!((above(20_000), above(23_000), above(16_500), above(1 << 40)), (3.0, 2.0, 4.0, 0.0));
        assert_eq!(batches.counts(0).named[3].n, 5.0);
        let fresh = batches.clone();
        batches.settle();
        for threshold in [0, 16_500, 20_000, 23_000, 1 << 40] {
            let read = |b: &CoarseBatches| b.counts(threshold).named.iter().map(|b| (b.n, b.s)).collect::<Vec<_>>();
            assert_eq!(read(&fresh), read(&batches), "settling changes nothing");
        }
    }

    #[test]
    fn records_without_a_unit_are_independent() {
        let mut batches = Batches::default();
        batches.add(NO_UNIT, 50, 5);
        batches.add(1, 10, 9);
        assert_eq!(Clustering::of_one(&batches.counts(), 20.0), 1.0, "no unit has come twice");
        batches.add(1 | AGAIN, 10, 9);
        assert_eq!(Clustering::of_one(&batches.counts(), 20.0), 1.0);
        assert_eq!(Clustering::of(&batches.counts(), &batches.counts(), 20.0), Clustering::NONE);
        batches.add(2, 100, 3);
        assert_eq!(Clustering::of_one(&batches.counts(), 20.0), 1.0, "too few units to tell");
        (3..140).for_each(|batch| batches.add(batch, 10, if batch % 8 == 0 { 9 } else { 0 }));
        assert!(Clustering::of_one(&batches.counts(), 20.0) > 5.0);
    }

    #[test]
    fn few_observations_are_folded_into_fewer_batches() {
        let mut batches = Batches::default();
        (0..100).for_each(|batch| batches.add(batch | AGAIN, 1, 0));
        assert_eq!((batches.counts().named.len(), batches.counts().named[3].n), (COARSE, 2.0));
        (100..128).for_each(|batch| batches.add(batch | AGAIN, 1, 0));
        assert_eq!((batches.counts().named.len(), batches.counts().named()), (BATCHES, 128.0));
    }

    #[test]
    fn units_that_came_once_are_independent() {
        let mut once = Batches::default();
        (0..40).for_each(|batch| once.add(batch, 3, u64::from(batch % 8 == 0) * 3));
        let mut twice = once.clone();
        twice.add(7 | AGAIN, 1, 0);
        assert_eq!(Clustering::of(&once.counts(), &once.counts(), 5.0), Clustering::NONE);
        assert!(Clustering::of(&once.counts(), &twice.counts(), 5.0).rate > 1.5);
    }
}
