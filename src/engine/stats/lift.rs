//! The grid of alternatives that the tests of rates and counts share, and the wealth that they bet with.

use super::numeric::{bernoulli_kappa, log_sum_exp};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// Points of the lift grid.
pub const LIFTS: usize = 17;

/// Alternatives that a mixture bets on, as log odds (or log rate) ratios over what is tolerated, with their prior weights.
///
/// Geometric from 0.005 (a lift of 0.5%) to 3.3 (26 times), each weighing 1.1 times its predecessor. A mixture of e-values is an
/// e-value; the grid costs a factor of about 1.4 against an oracle that knows the lift.
pub struct LiftGrid {
    pub lift: [f64; LIFTS],
    /// `exp(lift) - 1`.
    pub expm1: [f64; LIFTS],
    /// `exp(-lift) - 1`.
    pub expm1_neg: [f64; LIFTS],
    /// Logarithms of the weights, which add up to 1.
    pub log_weight: [f64; LIFTS],
}

/// The grid of [`LiftGrid`].
pub static LIFT_GRID: LazyLock<LiftGrid> = LazyLock::new(|| {
    let lift: [f64; LIFTS] = std::array::from_fn(|j| 0.005 * 1.5f64.powi(j as i32));
    let weight: [f64; LIFTS] = std::array::from_fn(|j| 1.1f64.powi(j as i32));
    let total: f64 = weight.iter().sum();
    LiftGrid { lift, expm1: lift.map(f64::exp_m1), expm1_neg: lift.map(|l| (-l).exp_m1()), log_weight: weight.map(|w| (w / total).ln()) }
});

/// Log wealth of one bettor per grid point; all that is kept of closed strata. A new one holds the prior weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wealth([f64; LIFTS]);

impl Default for Wealth {
    fn default() -> Self {
        Wealth(LIFT_GRID.log_weight)
    }
}

impl Wealth {
    /// Adds to the log wealth of each grid point.
    pub fn gain(&mut self, log_gain: impl Fn(usize) -> f64) {
        for (j, wealth) in self.0.iter_mut().enumerate() {
            *wealth += log_gain(j);
        }
    }

    /// `x` bad labels among `n`, when each is bad with probability at most `q0` under the null: the log likelihood ratio of the
    /// label's odds raised by each lift, divided by the dispersion `phi`.
    pub fn tilt_up(&mut self, x: f64, n: f64, q0: f64, phi: f64) {
        let (grid, excess) = (&*LIFT_GRID, (-n).mul_add(q0, x));
        self.gain(|j| (grid.lift[j] * excess - n * bernoulli_kappa(q0, grid.lift[j], grid.expm1[j])) / phi);
    }

    /// The mirror image of [`Wealth::tilt_up`]: labels are bad with probability at least `q0` under the null.
    pub fn tilt_down(&mut self, x: f64, n: f64, q0: f64) {
        let (grid, excess) = (&*LIFT_GRID, (-n).mul_add(q0, x));
        self.gain(|j| -grid.lift[j] * excess - n * bernoulli_kappa(q0, -grid.lift[j], grid.expm1_neg[j]));
    }

    /// The evidence: the logarithm of the mean wealth.
    pub fn log_e(&self) -> f64 {
        log_sum_exp(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prior_weights_add_up_to_one() {
        assert!(Wealth::default().log_e().abs() < 1e-14);
    }
}
