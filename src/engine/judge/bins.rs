//! Histograms of a guardrail's values as people see them: from the bins that its test reads, with neighbours added up.

use super::{Hypothesis, Judge};
use crate::engine::evidence::SignalEvidence;
use crate::engine::histogram::{Bins, bin_of, upper_edge};
use crate::engine::state::{BinState, BinsOf, BinsState, CloseLook, GuardrailState, HistogramState, QuantileState};
use std::collections::BTreeMap;

/// Histograms of a close look at most: those of a rule's first guardrails.
const HISTOGRAMS: usize = 32;
/// Bars of a histogram at most.
const BARS: usize = 96;
/// Quantiles that are compared, in parts per million.
const LEVELS: [u32; 24] = [
    10_000, 50_000, 100_000, 150_000, 200_000, 250_000, 300_000, 350_000, 400_000, 450_000, 500_000, 550_000, 600_000, 650_000, 700_000,
    750_000, 800_000, 850_000, 900_000, 925_000, 950_000, 975_000, 990_000, 999_000,
];

impl Judge {
    /// [`Judge::close_view`] with the histograms of what has a distribution, as far as there are values.
    pub fn close_look(&self) -> CloseLook {
        let state = self.close_view();
        let histogram = |of: &GuardrailState| {
            let bins = self.bins(&of.guardrail, &of.bucket).filter(|bins| !bins.bins.is_empty())?;
            Some(HistogramState { guardrail: of.guardrail.clone(), bucket: of.bucket.clone(), bins })
        };
        let histograms = state.guardrails.iter().filter_map(histogram).take(HISTOGRAMS).collect();
        CloseLook { state, histograms }
    }

    /// Values of a bucket beside those of the baseline: of a comparison, those since the shares last changed; of a limit, those in the
    /// window. `None` for what is no distribution, or not in the plan.
    pub fn bins(&self, guardrail: &str, bucket: &str) -> Option<BinsState> {
        let index = self.plan.guardrails.iter().position(|g| g.name == guardrail)?;
        let bucket = self.plan.buckets.iter().position(|b| b.name == bucket)?;
        let baseline = self.plan.baseline();
        let (of, [c, t]) = match self.evidence_of(Hypothesis::overall(index, bucket)) {
            Some(SignalEvidence::Spread(spread)) if self.plan.guardrails[index].max_increase.is_some() => {
                (BinsOf::Allocation, [spread.newest(baseline)?, spread.newest(bucket)?])
            }
            _ => {
                let windows = &self.state.windows[self.state.window_of[index]];
                (BinsOf::Window, [windows[baseline].bins()?, windows[bucket].bins()?])
            }
        };
        let value = |bins: &Bins, ppm: u32| bins.quantile(ppm).map(in_units);
        let level = |ppm: &u32| QuantileState { q: f64::from(*ppm) / 1e6, baseline: value(c, *ppm), bucket: value(t, *ppm) };
        Some(BinsState { of, baseline_n: c.count(), n: t.count(), bins: bars(c, t), quantiles: LEVELS.iter().map(level).collect() })
    }
}

/// Bins of both, added up until few enough are left. Neighbouring bins have neighbouring numbers, in every octave as many.
fn bars(baseline: &Bins, bucket: &Bins) -> Vec<BinState> {
    let mut counts: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    baseline.edges().for_each(|(edge, n)| counts.entry(bin_of(edge)).or_default().0 += n);
    bucket.edges().for_each(|(edge, n)| counts.entry(bin_of(edge)).or_default().1 += n);
    let span =
        |shift: u32| counts.keys().next_back().zip(counts.keys().next()).map_or(0, |(last, first)| (last >> shift) - (first >> shift));
    let shift = (0..15).find(|shift| usize::from(span(*shift)) < BARS).unwrap_or(15);
    let mut bars: Vec<(u16, BinState)> = Vec::new();
    for (bin, (c, t)) in counts {
        let group = bin >> shift;
        match bars.last_mut() {
            Some((last, bar)) if *last == group => {
                bar.baseline += c;
                bar.bucket += t;
            }
            _ => {
                let (first, last) = (group << shift, (group << shift) | ((1 << shift) - 1));
                let from = if first == 0 { 0.0 } else { in_units(upper_edge(first - 1)) };
                bars.push((group, BinState { from, to: in_units(upper_edge(last)), baseline: c, bucket: t }));
            }
        }
    }
    bars.into_iter().map(|(_, bar)| bar).collect()
}

/// Thousandths as the metric's own unit.
fn in_units(edge: u64) -> f64 {
    edge as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::histogram::SparseBins;

    fn of(values: impl Iterator<Item = u64>) -> Bins {
        let mut bins = Bins::default();
        bins.add(&SparseBins::from_samples(&mut values.map(bin_of).collect::<Vec<u16>>()));
        bins
    }

    #[test]
    fn few_bars_hold_every_value_once_and_do_not_overlap() {
        let (c, t) = (of((1..5_000).map(|i| i * 137)), of((1..900).map(|i| i * 2_011)));
        let bars = bars(&c, &t);
        assert!(bars.len() <= BARS && bars.len() > BARS / 4, "{}", bars.len());
        assert_eq!(bars.iter().map(|b| b.baseline).sum::<u64>(), c.count());
        assert_eq!(bars.iter().map(|b| b.bucket).sum::<u64>(), t.count());
        assert!(bars.iter().all(|b| b.from < b.to) && bars.windows(2).all(|w| w[0].to <= w[1].from));
        let below: u64 = bars.iter().filter(|b| b.to <= 300.0).map(|b| b.baseline).sum();
        let exact = (1..5_000_u64).filter(|i| i * 137 <= 300_000).count() as u64;
        assert!(below <= exact && exact - below < 300, "{below} of {exact}");
        assert!(super::bars(&Bins::default(), &Bins::default()).is_empty());
    }
}
