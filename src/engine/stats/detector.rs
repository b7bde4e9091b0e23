//! Detectors of change: the same evidence, begun again at many starts over a ring of panes.
//!
//! A test that has run clean for an hour needs long to believe in a regression. An e-detector adds up (Shiryaev-Roberts) or takes the
//! largest of (CUSUM) the e-values begun at each start. Under the null its mean is at most the number of starts so far, so alarming
//! at [`run_length_threshold`] keeps the mean time between false alarms above the target (Shin, Ramdas and Rinaldo, New England Journal of
//! Statistics in Data Science, 2024). Dropping or thinning starts only lowers it, and looking between panes is free.
//!
//! A start is named by the length of its suffix in panes, the running pane included: 1 is the youngest.

use super::numeric::log_sum_exp;
use super::quantiles::{Arms, Relative, Tail, add_up};
use super::rates::label_log_e;

/// Log of the Shiryaev-Roberts sum over starts; -inf without any.
pub fn log_sr(log_e: &[f64]) -> f64 {
    log_sum_exp(log_e)
}

/// Log of the CUSUM maximum over starts; -inf without any.
pub fn log_cusum(log_e: &[f64]) -> f64 {
    log_e.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Log of the mean of several e-values or e-detectors, however they depend on each other; -inf for none.
pub fn log_average(log_e: &[f64]) -> f64 {
    if log_e.is_empty() { f64::NEG_INFINITY } else { log_sum_exp(log_e) - (log_e.len() as f64).ln() }
}

/// Log threshold for a mean time between false alarms of `target`, when a start begins every `pane` (same unit, both positive) in each
/// of `detectors`. 30 days at 5 s: 13.16. For a probability over a planned duration, `target` is the duration divided by it.
pub fn run_length_threshold(target: f64, pane: f64, detectors: u32) -> f64 {
    if target > 0.0 && pane > 0.0 { target.ln() - pane.ln() + f64::from(detectors.max(1)).ln() } else { f64::INFINITY }
}

/// Starts over which [`start_share`] is nearly even.
const EVEN_STARTS: f64 = 256.0;

/// Share of the level that the `k`-th start (from 1) has when starts go on for ever: `ln c / ((k + c) ln^2(k + c))` with c = 256.
///
/// It decreases, so its sum stays below its integral from 0 on, which is 1. With `E_k` the e-process begun at start k, 1 before that, the
/// mixture of all by these shares is one e-process, and no less than any of its parts: the chance that any `E_k` ever reaches
/// `1 / (alpha share_k)` is at most alpha (Ville). No length of life enters. A late start pays little more than the logarithm of its
/// number: after an hour of starts every 5 s, 9.0; after a day 12.6, after 30 days 16.6.
pub fn start_share(k: u64) -> f64 {
    let log = (k.max(1) as f64 + EVEN_STARTS).ln();
    EVEN_STARTS.ln() / ((k.max(1) as f64 + EVEN_STARTS) * log * log)
}

/// Suffix lengths 1, 2, 3, 4, 6, 8, 12, 16 … up to and including `longest`, ascending: 12 starts cover 60 panes.
pub fn geometric_lengths(longest: usize) -> Vec<usize> {
    let mut lengths: Vec<usize> = std::iter::successors(Some(1usize), |l| l.checked_mul(2))
        .flat_map(|l| [Some(l), (l > 1).then(|| l.saturating_add(l / 2))])
        .flatten()
        .take_while(|l| *l < longest)
        .collect();
    if longest > 0 {
        lengths.push(longest);
    }
    lengths
}

/// Suffix lengths of two tiers of starts after `done` completed panes, ascending and without doubles: the `recent` youngest panes, then
/// boundaries that are multiples of `every` panes, at most `old` of them looked at. Rare events need the second tier.
pub fn two_tier_lengths(done: usize, recent: usize, every: usize, old: usize) -> Vec<usize> {
    let mut lengths: Vec<usize> = (1..=recent.min(done.saturating_add(1))).collect();
    let every = every.max(1);
    let newest = done / every * every;
    let starts = (0..old).map_while(|i| newest.checked_sub(i.checked_mul(every)?));
    lengths.extend(starts.map(|start| done - start + 1).filter(|length| *length > recent));
    lengths
}

/// Events and exposed observations of both arms in one pane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RatePane {
    pub k_t: f64,
    pub n_t: f64,
    pub k_c: f64,
    pub n_c: f64,
}

/// [`label_log_e`] on the suffixes of `panes` (oldest first): entry i belongs to length i + 1.
pub fn label_rate_by_start(panes: &[RatePane], ratio: f64, deff: f64) -> Vec<f64> {
    let mut sum = RatePane::default();
    let add = |p: &RatePane| {
        sum = RatePane { k_t: sum.k_t + p.k_t, n_t: sum.n_t + p.n_t, k_c: sum.k_c + p.k_c, n_c: sum.n_c + p.n_c };
        label_log_e(sum.k_t, sum.n_t, sum.k_c, sum.n_c, ratio, deff)
    };
    panes.iter().rev().map(add).collect()
}

/// Both arms' histograms over the suffixes of a ring, for the starts in use.
#[derive(Clone, Debug, Default)]
pub struct QuantileSuffixes {
    /// Length, control, treatment; ascending by length.
    starts: Vec<(usize, Tail, Tail)>,
}

/// The bins of one arm in one pane: edge and count; fastest in ascending order.
pub type PaneBins<'a> = &'a [(u64, u64)];

impl QuantileSuffixes {
    /// `panes`: control and treatment of each pane, oldest first. `lengths`: ascending; those beyond the panes are left out.
    pub fn new<'a>(panes: impl DoubleEndedIterator<Item = (PaneBins<'a>, PaneBins<'a>)>, lengths: &[usize]) -> QuantileSuffixes {
        let (mut control, mut treatment) = (Vec::new(), Vec::new());
        let mut wanted = lengths.iter().copied().peekable();
        let mut starts = Vec::with_capacity(lengths.len());
        for (i, (c, t)) in panes.rev().enumerate() {
            if wanted.peek().is_none() {
                break;
            }
            control.extend_from_slice(c);
            treatment.extend_from_slice(t);
            while wanted.next_if(|length| *length <= i + 1).is_some_and(|length| length == i + 1) {
                add_up(&mut control);
                add_up(&mut treatment);
                starts.push((i + 1, Tail::new(control.iter().copied()), Tail::new(treatment.iter().copied())));
            }
        }
        QuantileSuffixes { starts }
    }

    /// Length and [`Relative::log_e`] of each start, ascending by length.
    pub fn log_e(&self, test: &Relative, deff_c: f64, deff_t: f64) -> Vec<(usize, f64)> {
        self.map(deff_c, deff_t, |arms| test.log_e(arms))
    }

    /// The Shiryaev-Roberts reading against an alarm threshold. When even the cheap upper bounds of all starts stay below `needed`
    /// their sum is returned, else the exact value: `reading >= needed` holds in both cases exactly when the detector alarms.
    pub fn log_sr(&self, test: &Relative, deff_c: f64, deff_t: f64, needed: f64) -> f64 {
        let values = |pairs: Vec<(usize, f64)>| pairs.into_iter().map(|p| p.1).collect::<Vec<f64>>();
        let bound = log_sr(&values(self.map(deff_c, deff_t, |arms| test.log_e_at_most(arms))));
        if bound < needed { bound } else { log_sr(&values(self.log_e(test, deff_c, deff_t))) }
    }

    fn map(&self, deff_c: f64, deff_t: f64, f: impl Fn(Arms<'_>) -> f64) -> Vec<(usize, f64)> {
        self.starts.iter().map(|(length, control, treatment)| (*length, f(Arms { control, treatment, deff_c, deff_t }))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::exceedance::Exceedance;
    use crate::engine::stats::quantiles::Resolution;
    use proptest::prelude::*;

    #[test]
    fn lengths_are_as_documented() {
        assert_eq!(geometric_lengths(60), [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 60]);
        assert_eq!((geometric_lengths(0), geometric_lengths(1), geometric_lengths(2)), (vec![], vec![1], vec![1, 2]));
        // 65 panes done: starts at panes 60, 48, 36 and 24; the first three are in the recent tier only when it reaches them.
        assert_eq!(two_tier_lengths(65, 3, 12, 4), [1, 2, 3, 6, 18, 30, 42]);
        assert_eq!(two_tier_lengths(65, 20, 12, 4)[20..], [30, 42]);
        assert_eq!(two_tier_lengths(2, 60, 12, 60), [1, 2, 3]);
        assert_eq!(two_tier_lengths(0, 0, 0, 9), [1]);
    }

    #[test]
    fn shares_of_starts_decrease_and_add_up_to_less_than_one() {
        let sum: f64 = (1..2_000_000).map(start_share).sum();
        // What is left: the integral from there on.
        let rest = EVEN_STARTS.ln() / (2e6 - 1.0 + EVEN_STARTS).ln();
        assert!(0.99 < sum + rest && sum + rest < 1.0, "{sum} {rest}");
        assert!((1..100_000).all(|k| start_share(k + 1) < start_share(k)));
        let price = |k: u64| (-start_share(k).ln() * 10.0).round() / 10.0;
        assert_eq!([720, 17_280, 518_400].map(price), [9.0, 12.6, 16.6]);
    }

    #[test]
    fn thresholds_and_combinations() {
        assert!((run_length_threshold(30.0 * 86_400.0, 5.0, 1) - 13.16).abs() < 0.01);
        assert_eq!(run_length_threshold(0.0, 5.0, 1), f64::INFINITY);
        assert!(log_average(&[1.0, 1.0, 1.0]) - 1.0 < 1e-15);
        assert_eq!((log_average(&[]), log_sr(&[]), log_cusum(&[])), (f64::NEG_INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY));
    }

    #[test]
    fn a_change_is_seen_from_its_start() {
        let clean = RatePane { k_t: 1.0, n_t: 100.0, k_c: 19.0, n_c: 1_900.0 };
        let bad = RatePane { k_t: 6.0, ..clean };
        let panes: Vec<RatePane> = std::iter::repeat_n(clean, 50).chain(std::iter::repeat_n(bad, 5)).collect();
        let evidence = label_rate_by_start(&panes, 1.2, 1.0);
        assert_eq!(evidence.len(), 55);
        assert_eq!(evidence.iter().position(|e| *e == log_cusum(&evidence)), Some(4));
        assert!(log_sr(&evidence) > log_cusum(&evidence) && evidence[4] > 2.0 * evidence[54]);
    }

    fn pane() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0u64..300, 0u64..50), 0..8)
    }

    proptest! {
        #[test]
        fn suffixes_are_sums_of_their_panes(
            panes in prop::collection::vec((pane(), pane()), 0..12),
            needed in -5.0..20.0f64,
        ) {
            let test = Relative { level: Exceedance::of_quantile(900_000), r_ppm: 50_000, d: 0, bins: Resolution::digits(2) };
            let all: Vec<usize> = (1..=panes.len() + 2).collect();
            let suffixes = QuantileSuffixes::new(panes.iter().map(|(c, t)| (&c[..], &t[..])), &all);
            let evidence = suffixes.log_e(&test, 1.0, 2.0);
            prop_assert_eq!(evidence.len(), panes.len());
            for (length, found) in &evidence {
                let suffix = &panes[panes.len() - length..];
                let control = Tail::new(suffix.iter().flat_map(|p| p.0.clone()));
                let treatment = Tail::new(suffix.iter().flat_map(|p| p.1.clone()));
                prop_assert_eq!(*found, test.log_e(Arms { control: &control, treatment: &treatment, deff_c: 1.0, deff_t: 2.0 }));
            }
            let exact = log_sr(&evidence.iter().map(|p| p.1).collect::<Vec<_>>());
            let reading = suffixes.log_sr(&test, 1.0, 2.0, needed);
            prop_assert_eq!(reading >= needed, exact >= needed);
            let some = QuantileSuffixes::new(panes.iter().map(|(c, t)| (&c[..], &t[..])), &[2, 5]).log_e(&test, 1.0, 2.0);
            prop_assert!(some.iter().all(|pair| evidence.contains(pair)));
        }
    }
}
