//! Design effects of short spans, in which units have had time for few requests: variances of blocks of 1, 2, 4 … slots.
//!
//! The estimate for a span is that of all blocks of about its length that have ended, fading slowly, and not that of its own few
//! observations: see [`of_level`].

use super::clusters::{COARSE, caution, fold};
use crate::engine::stats::design_effect::{Batch, LadderLevel, ladder_level, of_level};
use serde::{Deserialize, Serialize};

/// Logarithm of the longest block, in slots: about twenty minutes.
const TOP: u8 = 8;

/// Observations and hits by batch.
type Sums = Vec<(u32, u32)>;

/// See the module; of one signal. Empty until a unit is seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ladder {
    /// By bucket, of the slot that is open.
    slot: Vec<Sums>,
    /// By level, then by bucket, of the block that is open: what the level below has ended of it.
    blocks: Vec<Vec<Sums>>,
    /// By bucket, then by level: blocks that have ended, against those of the baseline.
    ended: Vec<Vec<LadderLevel>>,
}

impl Ladder {
    /// `n` observations of a batch, `x` of them hits.
    pub fn add(&mut self, buckets: usize, bucket: usize, batch: usize, n: u64, x: u64) {
        if self.slot.is_empty() {
            let levels = usize::from(TOP) + 1;
            self.slot = vec![vec![(0, 0); COARSE]; buckets];
            self.blocks = vec![self.slot.clone(); levels];
            self.ended = vec![vec![LadderLevel::default(); levels]; buckets];
        }
        add(&mut self.slot[bucket][batch % COARSE], (n.min(1 << 30) as u32, x.min(1 << 30) as u32));
    }

    /// The slot of this number ends.
    pub fn close(&mut self, slot: i64, baseline: usize) {
        // Whatever ends a block ends the shorter ones in it: each takes up the one below it, and most slots touch the lowest two.
        let mut below = &mut self.slot;
        for (level, block) in self.blocks.iter_mut().enumerate() {
            block.iter_mut().flatten().zip(below.iter_mut().flatten()).for_each(|(sum, more)| add(sum, std::mem::take(more)));
            if (slot + 1).rem_euclid(1 << level) != 0 {
                return;
            }
            let batches: Vec<Vec<Batch>> = block.iter().map(|sums| fold(sums.iter().map(|s| (s.0.into(), s.1.into())))).collect();
            for (own, ended) in batches.iter().zip(&mut self.ended) {
                ended[level].add_block(&batches[baseline], own);
            }
            below = block;
        }
        below.iter_mut().flatten().for_each(|sum| *sum = (0, 0));
    }

    /// Design effect of the last `slots`, for evidence that is compared with `log_threshold`; `None` while too few blocks have ended.
    pub fn effect(&self, bucket: usize, slots: u64, log_threshold: f64) -> Option<f64> {
        Some(self.effects(bucket, slots, log_threshold)?[1])
    }

    /// The same of the baseline and of the bucket, each the larger of its own and the mean of both.
    pub fn effects(&self, bucket: usize, slots: u64, log_threshold: f64) -> Option<[f64; 2]> {
        let level = *self.ended.get(bucket)?.get(ladder_level(slots))?;
        let caution = caution(level.blocks.saturating_mul(COARSE as u64) as usize, log_threshold);
        let found = [level.swapped(), level].map(|level| of_level(&level).map(|effect| effect * caution));
        let [Some(baseline), Some(bucket)] = found else { return None };
        Some([baseline, bucket])
    }
}

fn add(sum: &mut (u32, u32), more: (u32, u32)) {
    *sum = (sum.0.saturating_add(more.0), sum.1.saturating_add(more.1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_spans_hold_few_requests_of_one_unit() {
        // A unit comes with a batch of its own, once in each slot for eight slots: all hits or none.
        let mut ladder = Ladder::default();
        for slot in 0..640_i64 {
            for bucket in 0..2 {
                for batch in 0..COARSE {
                    let unit = (slot / 8).wrapping_mul(64).wrapping_add(batch as i64).wrapping_add(bucket as i64 * 9_999);
                    let hit = (unit as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 == 0;
                    ladder.add(2, bucket, batch, 1, u64::from(hit));
                }
            }
            assert!(slot > 2 || ladder.effect(1, 1, 5.0).is_none());
            ladder.close(slot, 0);
        }
        let effects: Vec<f64> = [1, 2, 4, 8].iter().map(|slots| ladder.effect(1, *slots, 5.0).unwrap()).collect();
        assert!(effects.iter().zip([1.0, 2.0, 4.0, 8.0]).all(|(found, want)| (0.8 * want..1.4 * want).contains(found)), "{effects:?}");
        assert!(ladder.effect(1, 1_000, 5.0).is_none());
    }
}
