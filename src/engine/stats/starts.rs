//! A test of rates that was begun anew at several starts, as one test: what finds a regression that begins late.
//!
//! Each start bets on the observations from it on ([`rates::log_e`] of one stratum) with a share of the stake; shares add up to 1 at
//! most over all starts there will ever be ([`super::detector::start_share`]), and before a start its share is kept. So the sum is at
//! most 1 on average at every moment under the null: a Shiryaev-Roberts sum with weights, and a probability instead of a run length
//! (compare Shin, Ramdas and Rinaldo, New England Journal of Statistics in Data Science, 2024). Leaving parts of the sum out only lowers
//! it. Exact or asymptotic as its strata are.

use super::numeric::{crossing, log_inverse, log_sum_exp};
use super::rates::{self, Null, Stratum};
use serde::{Deserialize, Serialize};

/// One start: its share of the stake, and what was counted from it on, as a stratum.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// In [0, 1].
    pub share: f64,
    #[serde(flatten)]
    pub stratum: Stratum,
}

impl Start {
    fn swapped(self) -> Start {
        Start { stratum: self.stratum.swapped(), ..self }
    }
}

/// Evidence that treatment has the event more often than tolerated, by any of the starts. -inf without a start.
pub fn log_e(starts: &[Start], null: Null) -> f64 {
    sum(starts, |stratum| rates::log_e(&[*stratum], null))
}

/// Evidence that treatment has the event less often than tolerated: see [`rates::drop_log_e`].
pub fn drop_log_e(starts: &[Start], null: Null) -> f64 {
    sum(starts, |stratum| rates::drop_log_e(&[*stratum], null))
}

fn sum(starts: &[Start], log_e: impl Fn(&Stratum) -> f64) -> f64 {
    let parts: Vec<f64> = starts.iter().filter(|s| s.share > 0.0).map(|s| s.share.ln() + log_e(&s.stratum)).collect();
    log_sum_exp(&parts)
}

/// Ends of the confidence sequence for `p_T / p_C`, each at level `alpha`: 0 and infinity while nothing can be said. Roots of [`log_e`] in
/// the ratio, sought between 1e-6 and 1e6.
pub fn ratio_interval(starts: &[Start], alpha: f64) -> [f64; 2] {
    let null = |log_ratio: f64| Null { ratio: log_ratio.exp(), margin: 0.0 };
    let lower = |starts: &[Start]| root(starts, alpha, 1e6f64.ln(), null).map_or(0.0, f64::exp);
    [lower(starts), lower(&swapped(starts)).recip()]
}

/// Ends of the confidence sequence for `p_T - p_C`, each at level `alpha`: -1 and 1 while nothing can be said.
pub fn difference_interval(starts: &[Start], alpha: f64) -> [f64; 2] {
    let lower = |starts: &[Start]| root(starts, alpha, 1.0 - 1e-9, Null::absolute).unwrap_or(-1.0);
    [lower(starts), -lower(&swapped(starts))]
}

/// Where the evidence against `null(x)`, which falls with x, has come down to the level; `None` if it is lower from the beginning.
fn root(starts: &[Start], alpha: f64, edge: f64, null: impl Fn(f64) -> Null) -> Option<f64> {
    let needed = log_inverse(alpha);
    let gap = |x: f64| log_e(starts, null(x)) - needed;
    (gap(-edge) >= 0.0).then(|| crossing(-edge, edge, gap))
}

fn swapped(starts: &[Start]) -> Vec<Start> {
    starts.iter().map(|s| s.swapped()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::testing::multinomial_expectation;
    use proptest::prelude::*;

    fn start(share: f64, [n_t, x_t, n_c, x_c]: [f64; 4]) -> Start {
        Start { share, stratum: Stratum { w: 0.3, m: 0.1, n_t, x_t, n_c, x_c } }
    }

    #[test]
    fn the_mean_is_the_sum_of_the_shares() {
        // Five units, then three more: the second start sees these alone. Cells: hit or not, by arm, at the boundary of the null.
        let (w, p) = (0.3, 0.2);
        let cells = [w * p, w * (1.0 - p), (1.0 - w) * p, (1.0 - w) * (1.0 - p)];
        let counts = |k: &[u64]| [k[0] + k[1], k[0], k[2] + k[3], k[2]].map(|n| n as f64);
        let mean = multinomial_expectation(5, &cells, |early| {
            let [n_t, x_t, n_c, x_c] = counts(early);
            multinomial_expectation(3, &cells, |late| {
                let [a, b, c, d] = counts(late);
                log_e(&[start(0.5, [n_t + a, x_t + b, n_c + c, x_c + d]), start(0.25, [a, b, c, d])], Null::absolute(0.0))
            })
            .ln()
        });
        assert!((mean - 0.75).abs() < 1e-12, "{mean}");
    }

    #[test]
    fn the_interval_leaves_a_margin_outside_exactly_when_the_test_refutes_it() {
        let starts = [start(0.4, [900.0, 120.0, 2_000.0, 150.0]), start(0.1, [400.0, 80.0, 950.0, 60.0])];
        for alpha in [0.05, 1e-4, 1e-9] {
            let ([low, high], [least, most]) = (ratio_interval(&starts, alpha), difference_interval(&starts, alpha));
            for ratio in [0.8, 1.2, 1.6, 2.0] {
                assert_eq!(low > ratio, log_e(&starts, Null { ratio, margin: 0.0 }) >= -alpha.ln(), "{alpha} {ratio}");
            }
            assert!(low < 2.0 && 2.0 < high && least < 0.1 && 0.1 < most, "{low} {high} {least} {most}");
        }
        assert_eq!((ratio_interval(&[], 0.05), difference_interval(&[], 0.05)), ([0.0, f64::INFINITY], [-1.0, 1.0]));
    }

    proptest! {
        #[test]
        fn the_sum_is_no_less_than_its_best_part(shares in prop::array::uniform2(0.0..=0.5f64), counts: [[f64; 4]; 2]) {
            let both = [0, 1].map(|i| start(shares[i], counts[i]));
            for log_e in [log_e, drop_log_e] {
                let sum = log_e(&both, Null::relative(0.1));
                prop_assert!(!sum.is_nan() && both.iter().all(|one| log_e(&[*one], Null::relative(0.1)) <= sum));
            }
        }
    }
}
