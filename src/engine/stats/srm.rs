//! Sample ratio mismatch: do the exposures fall on the buckets as designed?

use super::numeric::{log_sum_exp, poisson_divergence, stirling_remainder};

/// Concentrations of the Dirichlet mixture: alert to gross, moderate and slight mismatch.
const CONCENTRATIONS: [f64; 3] = [1e2, 1e4, 1e6];

/// Counts and designed weights of one period of constant allocation, bucket by bucket.
#[derive(Clone, Copy, Debug)]
pub struct Stratum<'a> {
    /// Units exposed for the first time.
    pub counts: &'a [u64],
    /// Designed shares, not negative; normalised here. A missing weight is 0.
    pub weights: &'a [f64],
}

/// Evidence that first exposures do not follow the designed weights. Exact, for any number of buckets.
///
/// H0: in every stratum labels are multinomial with its weights. Bayes factor of a Dirichlet prior around the weights (Lindon and
/// Malek, NeurIPS 2022), averaged over three concentrations. An exposure of a bucket with weight 0 is infinite evidence. A stratum
/// whose weights are all 0, or among them one that is negative or not a number, is left out.
pub fn log_e(strata: &[Stratum<'_>]) -> f64 {
    let per_concentration = CONCENTRATIONS.map(|c| strata.iter().map(|s| log_bayes_factor(s, c)).sum::<f64>());
    log_sum_exp(&per_concentration) - (CONCENTRATIONS.len() as f64).ln()
}

/// Stirling's formula takes the gamma functions of the Dirichlet-multinomial apart, so that the large terms cancel on paper: what
/// remains is a divergence of the counts from their expectation, a penalty per bucket, and small remainders.
fn log_bayes_factor(stratum: &Stratum<'_>, c: f64) -> f64 {
    let total_weight: f64 = stratum.weights.iter().sum();
    if !(total_weight > 0.0 && total_weight.is_finite()) || stratum.weights.iter().any(|w| *w < 0.0) {
        return 0.0;
    }
    let n: f64 = stratum.counts.iter().map(|x| *x as f64).sum();
    let (mut fit, mut remainders, mut live) = (0.0, 0.0, 0.0);
    for (i, &x) in stratum.counts.iter().enumerate() {
        let (x, share) = (x as f64, stratum.weights.get(i).map_or(0.0, |w| w / total_weight));
        if share <= 0.0 {
            if x > 0.0 {
                return f64::INFINITY;
            }
            continue;
        }
        let (expected, surplus) = (share * (c + n), (-n).mul_add(share, x));
        let u = surplus / expected;
        let log_ratio = if u.abs() < 0.5 { u.ln_1p() } else { c.mul_add(share, x).ln() - expected.ln() };
        // (c + n) share ((1 + u) ln(1 + u) - u), written for either size of u.
        fit += if u.abs() < 0.5 { expected * poisson_divergence(u) } else { c.mul_add(share, x) * log_ratio - surplus };
        fit -= 0.5 * log_ratio;
        remainders += stirling_remainder(c.mul_add(share, x)) - stirling_remainder(c * share);
        live += 1.0;
    }
    fit - 0.5 * (live - 1.0) * (n / c).ln_1p() + remainders - (stirling_remainder(c + n) - stirling_remainder(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::testing::multinomial_expectation;
    use proptest::prelude::*;

    fn single(counts: &[u64], weights: &[f64]) -> f64 {
        log_e(&[Stratum { counts, weights }])
    }

    #[test]
    fn expectation_under_the_design_is_one() {
        for weights in [vec![0.5, 0.5], vec![0.05, 0.95], vec![0.6, 0.3, 0.1]] {
            for n in [1, 7, 20] {
                let mean = multinomial_expectation(n, &weights, |counts| single(counts, &weights));
                assert!((mean - 1.0).abs() < 1e-11, "n={n} {weights:?}: {mean}");
            }
        }
    }

    #[test]
    fn agrees_with_plain_gamma_functions() {
        let direct = |counts: &[u64], weights: &[f64], c: f64| {
            let n: u64 = counts.iter().sum();
            let buckets: f64 =
                counts.iter().zip(weights).map(|(&x, w)| libm::lgamma(c * w + x as f64) - libm::lgamma(c * w) - x as f64 * w.ln()).sum();
            buckets - libm::lgamma(c + n as f64) + libm::lgamma(c)
        };
        for counts in [[0u64, 300], [40, 260], [150, 150], [300, 0], [2, 9]] {
            let weights = [0.1, 0.9];
            for c in CONCENTRATIONS {
                let ours = log_bayes_factor(&Stratum { counts: &counts, weights: &weights }, c);
                let plain = direct(&counts, &weights, c);
                assert!((ours - plain).abs() < 1e-7, "{counts:?} c={c}: {ours} {plain}");
            }
        }
    }

    #[test]
    fn a_bucket_of_no_weight_must_stay_empty() {
        assert_eq!(single(&[10, 10, 1], &[0.5, 0.5, 0.0]), f64::INFINITY);
        assert_eq!(single(&[10, 10, 0], &[0.5, 0.5, 0.0]), single(&[10, 10], &[0.5, 0.5]));
        assert_eq!(single(&[10, 10], &[0.0, 0.0]), 0.0);
        assert_eq!(single(&[], &[]), 0.0);
    }

    #[test]
    fn sees_a_two_percent_mismatch_of_a_billion_and_none_in_the_design() {
        assert!(single(&[510_000_000, 490_000_000], &[0.5, 0.5]) > 1e5);
        assert!(single(&[500_000_000, 500_000_000], &[0.5, 0.5]) < 0.0);
    }

    proptest! {
        #[test]
        fn never_nan(counts in prop::collection::vec(any::<u64>(), 0..5), weights in prop::collection::vec(any::<f64>(), 0..5)) {
            prop_assert!(!single(&counts, &weights).is_nan());
            let positive: Vec<f64> = weights.iter().map(|w| w.abs()).collect();
            prop_assert!(!single(&counts, &positive).is_nan());
        }

        #[test]
        fn the_order_of_buckets_does_not_matter(a in 0u64..1_000_000_000, b in 0u64..1_000_000_000, w in 0.01..0.99f64) {
            let (one, other) = (single(&[a, b], &[w, 1.0 - w]), single(&[b, a], &[1.0 - w, w]));
            prop_assert!((one - other).abs() <= 1e-9 * one.abs().max(1.0));
        }
    }
}
