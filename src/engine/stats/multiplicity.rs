//! One false-alarm budget for many hypotheses (guardrail by arm by segment).
//!
//! Everything rests on the anytime p-value `exp(-M)` of the running maximum M of a test's `log_e`, and needs only that it is below u
//! with probability at most u: any dependence, shared controls and different filtrations are fine. Rejections are never taken back,
//! since M only grows. Weights are shares of `alpha`, not negative, and add up to at most 1; where a list is shorter than another the
//! rest is ignored.

use super::numeric::log_inverse;

/// Anytime p-value of a running maximum of `log_e`, in [0, 1].
pub fn anytime_p(max_log_e: f64) -> f64 {
    (-max_log_e).exp().min(1.0)
}

/// What the running maximum must reach for a hypothesis of this weight: `ln(1/(alpha weight))`, infinite for no weight.
pub fn log_threshold(alpha: f64, weight: f64) -> f64 {
    if alpha > 0.0 { log_inverse(alpha) + log_inverse(weight) } else { f64::INFINITY }
}

/// Weighted Bonferroni, the rule that acts: indices whose maximum has reached [`log_threshold`]. The chance that any true null is ever
/// among them is at most `alpha`.
pub fn bonferroni(max_log_e: &[f64], weights: &[f64], alpha: f64) -> Vec<usize> {
    let pairs = max_log_e.iter().zip(weights).enumerate();
    pairs.filter(|(_, (m, w))| **w > 0.0 && **m >= log_threshold(alpha, **w)).map(|(i, _)| i).collect()
}

/// Weighted Holm (Scandinavian Journal of Statistics 6, 1979), stepping down by p-value over weight: strong control of the chance of
/// any false rejection, at any time. Ascending indices.
pub fn holm(max_log_e: &[f64], weights: &[f64], alpha: f64) -> Vec<usize> {
    let score = |i: usize| max_log_e[i] + weights[i].ln();
    let mut order: Vec<usize> = (0..max_log_e.len().min(weights.len())).filter(|&i| weights[i] > 0.0).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    let mut remaining: f64 = order.iter().map(|&i| weights[i]).sum();
    let mut rejected = Vec::new();
    for i in order {
        let reached = max_log_e[i] >= log_threshold(alpha, (weights[i] / remaining).min(1.0));
        if !reached {
            break;
        }
        rejected.push(i);
        remaining = (remaining - weights[i]).max(weights[i] * 1e-300);
    }
    rejected.sort_unstable();
    rejected
}

/// Turns a running maximum into the logarithm of an e-value: `(M - 1 - ln M) / (ln M)^2` at `ln M = max_log_e`.
///
/// An adjuster (Dawid et al., Statistics and Probability Letters 81, 2011; that suprema need one: Tavyrikov, Goeman and de Heide,
/// arXiv 2501.19360, eq. 5): a running maximum itself is no e-value. At least `ln(1/2)`.
pub fn log_adjusted(max_log_e: f64) -> f64 {
    let x = max_log_e.max(0.0);
    if x == f64::INFINITY {
        return x;
    }
    if x < 0.5 {
        // (e^x - 1 - x) / x^2 = 1/2 + x/6 + x^2/24 + ...
        let series = (3..=20).rev().fold(1.0, |sum, k| 1.0 + x / f64::from(k) * sum);
        return (0.5 * series).ln();
    }
    x + (-(1.0 + x) * (-x).exp()).ln_1p() - 2.0 * x.ln()
}

/// e-BH (Wang and Ramdas, arXiv 2009.02824) on log e-values: the expected share of false rejections is at most `alpha`. For
/// dashboards of segments; when watched continuously, feed it [`log_adjusted`] running maxima. Ascending indices.
pub fn e_bh(log_e: &[f64], alpha: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..log_e.len()).filter(|&i| !log_e[i].is_nan()).collect();
    order.sort_by(|&a, &b| log_e[b].total_cmp(&log_e[a]));
    let hypotheses = log_e.len() as f64;
    let enough = |rank: usize| log_e[order[rank]] >= hypotheses.ln() - (rank as f64 + 1.0).ln() + log_inverse(alpha);
    let rejected = (0..order.len()).rev().find(|&rank| enough(rank)).map_or(0, |rank| rank + 1);
    order.truncate(rejected);
    order.sort_unstable();
    order
}

/// Weights of hypotheses, and the shares of a rejected hypothesis's weight that the others inherit.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    pub weights: Vec<f64>,
    /// `transitions[i][j]`: share of i's weight passed to j, in [0, 1]; each row adds up to at most 1.
    pub transitions: Vec<Vec<f64>>,
}

/// A guardrail's overall hypothesis and its segments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Family {
    pub weight: f64,
    pub segments: usize,
}

impl Graph {
    /// "Overall and segments": each family gives `overall_share` of its weight to its overall hypothesis and the rest in equal parts to
    /// its segments. A rejected overall hypothesis passes all to its segments, a rejected segment to its overall. Hypotheses in
    /// order: overall of the first family, its segments, overall of the second …
    pub fn gatekeeping(families: &[Family], overall_share: f64) -> Graph {
        let size = families.iter().map(|f| 1 + f.segments).sum();
        let mut graph = Graph { weights: Vec::with_capacity(size), transitions: vec![vec![0.0; size]; size] };
        for family in families {
            let overall = graph.weights.len();
            let segments = family.segments as f64;
            graph.weights.push(if family.segments == 0 { family.weight } else { family.weight * overall_share });
            for _ in 0..family.segments {
                let segment = graph.weights.len();
                graph.weights.push(family.weight * (1.0 - overall_share) / segments);
                graph.transitions[overall][segment] = 1.0 / segments;
                graph.transitions[segment][overall] = 1.0;
            }
        }
        graph
    }

    /// The sequentially rejective procedure of Bretz, Maurer, Brannath and Posch, Statistics in Medicine 28, 2009, algorithm 1, on anytime
    /// p-values: strong control of the chance of any false rejection, at any time. It says which hypotheses a trip is due to.
    /// Ascending indices. Time grows with the cube of the hypotheses.
    pub fn rejections(&self, max_log_e: &[f64], alpha: f64) -> Vec<usize> {
        let size = self.weights.len().min(max_log_e.len()).min(self.transitions.len());
        let mut weights = self.weights[..size].to_vec();
        let mut shares: Vec<Vec<f64>> =
            self.transitions[..size].iter().map(|row| (0..size).map(|j| row.get(j).copied().unwrap_or(0.0)).collect()).collect();
        let mut active: Vec<usize> = (0..size).collect();
        let mut rejected = Vec::new();
        while let Some(at) = active.iter().position(|&i| weights[i] > 0.0 && max_log_e[i] >= log_threshold(alpha, weights[i])) {
            let gone = active.remove(at);
            rejected.push(gone);
            for &j in &active {
                weights[j] += weights[gone] * shares[gone][j];
            }
            shares = bypass(&shares, &active, gone);
        }
        rejected.sort_unstable();
        rejected
    }
}

/// Shares among the active hypotheses after one is gone: what led over it goes on directly, and loops back to the start are cut.
fn bypass(shares: &[Vec<f64>], active: &[usize], gone: usize) -> Vec<Vec<f64>> {
    let mut next = shares.to_vec();
    for &j in active {
        for &k in active.iter().filter(|&&k| k != j) {
            let kept = 1.0 - shares[j][gone] * shares[gone][j];
            next[j][k] = if kept > 0.0 { (shares[j][k] + shares[j][gone] * shares[gone][k]) / kept } else { 0.0 };
        }
    }
    next
}

/// Share of the segments' weight for the `i`-th segment to appear (from 1) when their number is not known: `6 / (pi^2 i^2)`, which adds
/// up to 1 over all.
pub fn arrival_share(i: u32) -> f64 {
    let i = f64::from(i.max(1));
    6.0 / (std::f64::consts::PI * i).powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn threshold_splits_the_budget() {
        assert!((log_threshold(0.05, 0.5) - 40f64.ln()).abs() < 1e-14);
        assert_eq!(log_threshold(0.05, 0.0), f64::INFINITY);
        assert_eq!(anytime_p(-3.0), 1.0);
    }

    #[test]
    fn adjuster_is_continuous_and_matches_its_formula() {
        assert!((log_adjusted(-1.0) + 2f64.ln()).abs() < 1e-15);
        assert!((log_adjusted(0.5 - 1e-12) - log_adjusted(0.5)).abs() < 1e-11);
        let m: f64 = 20.0;
        assert!((log_adjusted(m.ln()) - ((m - 1.0 - m.ln()) / m.ln().powi(2)).ln()).abs() < 1e-13);
        assert_eq!(log_adjusted(f64::INFINITY), f64::INFINITY);
        // An adjuster integrates to 1 against the density 1/m^2 of the largest possible maximum.
        let step = 1e-3;
        let integral: f64 = (0..200_000).map(|i| (f64::from(i) + 0.5) * step).map(|x| (log_adjusted(x) - x).exp() * step).sum();
        assert!((integral - 1.0).abs() < 0.01, "{integral}");
    }

    #[test]
    fn arrival_shares_add_up_to_one() {
        let sum: f64 = (1..100_000).map(arrival_share).sum();
        assert!((sum - 1.0).abs() < 1e-4);
    }

    #[test]
    fn gatekeeping_passes_weight_between_overall_and_segments() {
        let graph = Graph::gatekeeping(&[Family { weight: 1.0, segments: 2 }], 0.8);
        assert_eq!(graph.weights.len(), 3);
        // The first segment needs 1/(0.05 0.1) = 200 alone, but 1/(0.05 0.5) = 40 once overall is rejected.
        assert_eq!(graph.rejections(&[0.0, 100f64.ln(), 0.0], 0.05), Vec::<usize>::new());
        assert_eq!(graph.rejections(&[30f64.ln(), 100f64.ln(), 0.0], 0.05), [0, 1]);
    }

    fn hypotheses() -> impl Strategy<Value = Vec<(f64, f64)>> {
        prop::collection::vec((-3.0..15.0f64, 0.01..1.0f64), 1..7)
    }

    fn split(pairs: &[(f64, f64)]) -> (Vec<f64>, Vec<f64>) {
        let total: f64 = pairs.iter().map(|p| p.1).sum();
        pairs.iter().map(|&(m, w)| (m, w / total)).unzip()
    }

    proptest! {
        /// Holm rejects what every Bonferroni test of an intersection containing it rejects.
        #[test]
        fn holm_is_closed_bonferroni(pairs in hypotheses()) {
            let (m, w) = split(&pairs);
            let n = m.len();
            let intersection = |set: usize| {
                let total: f64 = (0..n).filter(|i| set >> i & 1 == 1).map(|i| w[i]).sum();
                (0..n).any(|i| set >> i & 1 == 1 && m[i] >= log_threshold(0.05, w[i] / total))
            };
            let closed: Vec<usize> = (0..n).filter(|i| (1..1 << n).filter(|set| set >> i & 1 == 1).all(intersection)).collect();
            prop_assert_eq!(holm(&m, &w, 0.05), closed);
        }

        #[test]
        fn holm_is_the_graph_of_proportional_shares_and_contains_bonferroni(pairs in hypotheses()) {
            let (m, w) = split(&pairs);
            let row = |i: usize| (0..w.len()).map(|j| if i == j { 0.0 } else { w[j] / (1.0 - w[i]) }).collect();
            let graph = Graph { weights: w.clone(), transitions: (0..w.len()).map(row).collect() };
            let holm = holm(&m, &w, 0.05);
            prop_assert_eq!(&graph.rejections(&m, 0.05), &holm);
            prop_assert!(bonferroni(&m, &w, 0.05).iter().all(|i| holm.contains(i)));
        }

        #[test]
        fn nothing_panics(m in prop::collection::vec(any::<f64>(), 0..6), w in prop::collection::vec(any::<f64>(), 0..6), alpha: f64) {
            bonferroni(&m, &w, alpha);
            holm(&m, &w, alpha);
            e_bh(&m, alpha);
            for x in &m {
                prop_assert!(!log_adjusted(*x).is_nan());
            }
            Graph { weights: w.clone(), transitions: vec![w.clone(); 3] }.rejections(&m, alpha);
        }
    }
}
