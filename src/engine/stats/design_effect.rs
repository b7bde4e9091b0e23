//! What clustered users cost: many requests of one user are worth fewer independent ones.
//!
//! Randomisation units are hashed into batches; how much more the batches' counts vary than independent requests would is the design
//! effect, and all counts are divided by it (Rao and Scott, Biometrics 48, 1992). **Asymptotic**: many users per arm, none of which
//! dominates.

use serde::{Deserialize, Serialize};

/// One hash batch of randomisation units of one arm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Observations.
    pub n: f64,
    /// Those that exceed the threshold of interest, or have the event.
    pub s: f64,
}

/// The design effect of one arm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DesignEffect {
    /// Ratio of the variances; 1 when it cannot be estimated.
    pub raw: f64,
    /// Non-empty batches less one; 0 when it cannot be estimated.
    pub dof: u64,
}

/// Variance of a count over batches, and the one it would have if observations were independent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Variances {
    clustered: f64,
    independent: f64,
    dof: u64,
}

/// Residuals from the common share (ratio estimator) over the non-empty batches; `None` below two of them, or when all or no
/// observations are hits.
fn variances(batches: &[Batch]) -> Option<Variances> {
    let used = || batches.iter().filter(|b| b.n > 0.0);
    let count = used().count();
    let (n, s) = used().fold((0.0, 0.0), |(n, s), b| (n + b.n, s + b.s));
    if count < 2 || !(s > 0.0 && s < n) {
        return None;
    }
    let share = s / n;
    let squares: f64 = used().map(|b| (-share).mul_add(b.n, b.s).powi(2)).sum();
    let clustered = count as f64 / (count - 1) as f64 * squares;
    let independent = n * share * (1.0 - share);
    let usable = clustered.is_finite() && independent > 0.0 && (clustered / independent).is_finite();
    usable.then_some(Variances { clustered, independent, dof: count as u64 - 1 })
}

/// The design effect of one arm's batches.
pub fn of_batches(batches: &[Batch]) -> DesignEffect {
    variances(batches).map_or(DesignEffect { raw: 1.0, dof: 0 }, |v| DesignEffect { raw: v.clustered / v.independent, dof: v.dof })
}

/// By what the counts of a metric are divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deflation {
    /// For the quantiles of each arm; at least 1.
    pub control: f64,
    pub treatment: f64,
    /// For rates: the larger of the two.
    pub rate: f64,
    /// Half of each arm's batches hold something and each arm has 10 effective hits; until then there is no verdict.
    pub ready: bool,
}

/// Deflation of two arms whose evidence will be compared with `log_threshold`.
///
/// Each arm takes the larger of its own and the pooled design effect, since a small arm's own estimate is often far too low, raised by
/// `1 + (log_threshold + 1/2) / dof` for the uncertainty of a variance from few batches.
pub fn deflation(control: &[Batch], treatment: &[Batch], log_threshold: f64) -> Deflation {
    let (c, t) = (of_batches(control), of_batches(treatment));
    let (dof_c, dof_t) = (c.dof as f64, t.dof as f64);
    let pooled = if c.dof + t.dof > 0 { (dof_c * c.raw + dof_t * t.raw) / (dof_c + dof_t) } else { 1.0 };
    let caution = 1.0 + (log_threshold.max(0.0) + 0.5) / dof_c.min(dof_t).max(1.0);
    let of_arm = |own: f64| (caution * own.max(pooled)).max(1.0);
    let (deff_c, deff_t) = (of_arm(c.raw), of_arm(t.raw));
    let filled = |batches: &[Batch], dof: u64| 2 * (dof + 1) >= batches.len() as u64;
    let hits = |batches: &[Batch]| batches.iter().map(|b| b.s).sum::<f64>();
    Deflation {
        control: deff_c,
        treatment: deff_t,
        rate: deff_c.max(deff_t),
        ready: filled(control, c.dof) && filled(treatment, t.dof) && hits(control) / deff_c >= 10.0 && hits(treatment) / deff_t >= 10.0,
    }
}

/// Variances of blocks of `2^level` panes, for suffixes too short to hold many requests of one user: the cumulative design
/// effect would over-correct them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LadderLevel {
    /// Completed blocks.
    pub blocks: u64,
    /// Clustered and independent variance of control and of treatment, sums that fade with every block.
    pub clustered_c: f64,
    pub independent_c: f64,
    pub clustered_t: f64,
    pub independent_t: f64,
}

/// What is left of a level's sums when a further block is added.
const FADE: f64 = 0.995;

/// Blocks that a level needs before it is used.
const MIN_BLOCKS: u64 = 4;

impl LadderLevel {
    /// Adds a completed block, given the batch sums of its panes. An arm whose variance cannot be estimated only fades.
    pub fn add_block(&mut self, control: &[Batch], treatment: &[Batch]) {
        let parts = |batches| variances(batches).map_or((0.0, 0.0), |v: Variances| (v.clustered, v.independent));
        let ((clustered_c, independent_c), (clustered_t, independent_t)) = (parts(control), parts(treatment));
        self.blocks = self.blocks.saturating_add(1);
        self.clustered_c = FADE * self.clustered_c + clustered_c;
        self.independent_c = FADE * self.independent_c + independent_c;
        self.clustered_t = FADE * self.clustered_t + clustered_t;
        self.independent_t = FADE * self.independent_t + independent_t;
    }

    /// Control and treatment exchanged.
    pub fn swapped(&self) -> LadderLevel {
        LadderLevel {
            blocks: self.blocks,
            clustered_c: self.clustered_t,
            independent_c: self.independent_t,
            clustered_t: self.clustered_c,
            independent_t: self.independent_c,
        }
    }
}

/// The level whose blocks are the shortest that hold `length` panes.
pub fn ladder_level(length: u64) -> usize {
    length.max(1).checked_next_power_of_two().map_or(64, |blocks| blocks.ilog2() as usize)
}

/// Design effect of a suffix of `length` panes: the larger of treatment's and of the mean of both arms', at least 1. The `cumulative`
/// value while its level is missing or has fewer than 4 blocks.
pub fn of_suffix(levels: &[LadderLevel], length: u64, cumulative: f64) -> f64 {
    levels.get(ladder_level(length)).and_then(of_level).unwrap_or(cumulative)
}

/// Design effect of the level's blocks; `None` while they are too few.
pub fn of_level(level: &LadderLevel) -> Option<f64> {
    let ratio = |clustered: f64, independent: f64| if independent > 0.0 { clustered / independent } else { 1.0 };
    let (c, t) = (ratio(level.clustered_c, level.independent_c), ratio(level.clustered_t, level.independent_t));
    (level.blocks >= MIN_BLOCKS).then(|| (0.5 * (c + t)).max(t).max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn identical_users_multiply_the_design_effect() {
        let batches: Vec<Batch> = (0..64).map(|i| Batch { n: 10.0, s: f64::from(i % 3) }).collect();
        let tripled: Vec<Batch> = batches.iter().map(|b| Batch { n: 3.0 * b.n, s: 3.0 * b.s }).collect();
        let (one, three) = (of_batches(&batches), of_batches(&tripled));
        assert_eq!(one.dof, 63);
        assert!((three.raw - 3.0 * one.raw).abs() < 1e-12);
    }

    #[test]
    fn too_little_data_is_no_estimate_and_not_ready() {
        let none = DesignEffect { raw: 1.0, dof: 0 };
        assert_eq!(of_batches(&[]), none);
        assert_eq!(of_batches(&[Batch { n: 5.0, s: 1.0 }]), none);
        assert_eq!(of_batches(&[Batch { n: 5.0, s: 5.0 }, Batch { n: 5.0, s: 5.0 }]), none);
        assert!(!deflation(&[], &[], 4.6).ready);
    }

    #[test]
    fn an_arm_that_looks_independent_takes_the_pooled_effect() {
        let clustered: Vec<Batch> = (0..64).map(|i| Batch { n: 100.0, s: if i % 2 == 0 { 40.0 } else { 0.0 } }).collect();
        let even = vec![Batch { n: 100.0, s: 20.0 }; 64];
        let d = deflation(&clustered, &even, 4.6);
        assert!(d.ready && d.treatment > 5.0 && d.control > d.treatment && d.rate == d.control, "{d:?}");
    }

    #[test]
    fn ladder_uses_the_shortest_blocks_that_hold_the_suffix() {
        let found: Vec<usize> = [0, 1, 2, 3, 4, 5, 64, 65, u64::MAX].into_iter().map(ladder_level).collect();
        assert_eq!(found, [0, 0, 1, 2, 2, 3, 6, 7, 64]);
        let mut level = LadderLevel::default();
        let batches: Vec<Batch> = (0..8).map(|i| Batch { n: 10.0, s: f64::from(i % 4) * 2.0 }).collect();
        for _ in 0..3 {
            level.add_block(&batches, &batches);
        }
        assert_eq!(of_suffix(&[level], 1, 9.0), 9.0);
        level.add_block(&batches, &batches);
        assert!((of_suffix(&[level], 1, 9.0) - of_batches(&batches).raw.max(1.0)).abs() < 1e-12);
        assert_eq!(of_suffix(&[level], 2, 9.0), 9.0);
    }

    proptest! {
        #[test]
        fn never_nan(pairs in prop::collection::vec((any::<f64>(), any::<f64>()), 0..9), log_threshold: f64) {
            let batches: Vec<Batch> = pairs.into_iter().map(|(n, s)| Batch { n, s }).collect();
            let d = deflation(&batches, &batches, log_threshold);
            prop_assert!(d.control >= 1.0 && d.treatment >= 1.0 && d.rate >= 1.0);
            let mut level = LadderLevel::default();
            for _ in 0..5 {
                level.add_block(&batches, &batches);
            }
            prop_assert!(of_suffix(&[level], 1, 1.0) >= 1.0);
        }
    }
}
