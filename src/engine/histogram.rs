//! Log-linear bins in the layout of HdrHistogram at 3 significant digits: sparse at rest, and subtractable, so that a window can
//! slide. (`hdrhistogram` itself cannot take a pane out again without a dense copy of it; it is the oracle of the tests below.)
//!
//! Values are whole thousandths of the metric's unit: microseconds for a latency in milliseconds.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Smallest value kept apart: 1 us for latencies.
pub const LOWEST: u64 = 1;
/// Largest value kept apart: 1 h for latencies, in us.
pub const HIGHEST: u64 = 3_600_000_000;
/// log2 of half the sub-bins of an octave: 2,048 sub-bins give 3 significant digits.
const HALF_BITS: u32 = 10;
const PAGE: usize = 64;
/// With more samples than this, to walk over all bins is cheaper than to sort.
const COUNTED: usize = 8_192;

/// The bin of a value, below 23,552. Values above [`HIGHEST`] must have been clamped.
pub fn bin_of(value: u64) -> u16 {
    let shift = (63 - (value | 1).leading_zeros()).saturating_sub(HALF_BITS);
    (((shift as u64) << HALF_BITS) + (value >> shift)) as u16
}

/// Largest value of a bin.
pub fn upper_edge(bin: u16) -> u64 {
    let bin = u64::from(bin);
    let shift = (bin >> HALF_BITS).saturating_sub(1);
    let sub = bin - (shift << HALF_BITS);
    ((sub + 1) << shift) - 1
}

/// A value in the metric's unit, in thousandths; the second part tells whether it was clamped to the range.
pub fn thousandths(value: f64) -> (u64, bool) {
    let scaled = value * 1_000.0;
    // Rounded half away from zero, without the call that `round` is where the processor's instruction for it cannot be counted on.
    if scaled < LOWEST as f64 - 0.5 {
        (LOWEST, scaled <= -0.5)
    } else if scaled >= HIGHEST as f64 + 0.5 {
        (HIGHEST, true)
    } else {
        ((scaled + 0.5) as u64, false)
    }
}

/// Bins of one pane: index and count, by index. A count over 65,535 takes several entries. With many experiments most panes of a
/// partition hold a value or two: four take no memory of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SparseBins(SmallVec<[(u16, u16); 4]>);

impl SparseBins {
    /// From the bins of single values, which it sorts.
    pub fn from_samples(samples: &mut [u16]) -> SparseBins {
        if samples.len() > COUNTED { SparseBins::counted(samples) } else { SparseBins::sorted(samples) }
    }

    fn sorted(samples: &mut [u16]) -> SparseBins {
        samples.sort_unstable();
        let mut out: SmallVec<[(u16, u16); 4]> = SmallVec::with_capacity(samples.chunk_by(u16::eq).count());
        for &bin in samples.iter() {
            match out.last_mut() {
                Some((last, count)) if *last == bin && *count < u16::MAX => *count += 1,
                _ => out.push((bin, 1)),
            }
        }
        SparseBins(out)
    }

    /// As [`SparseBins::from_samples`], without sorting.
    fn counted(samples: &[u16]) -> SparseBins {
        let mut counts = vec![0_u64; 1 + samples.iter().copied().max().map_or(0, usize::from)];
        samples.iter().for_each(|&bin| counts[usize::from(bin)] += 1);
        let filled = counts.iter().enumerate().filter(|(_, n)| **n > 0);
        SparseBins(filled.flat_map(|(bin, n)| SparseBins::single(bin as u16, *n).0).collect())
    }

    /// `n` values in one bin.
    pub fn single(bin: u16, n: u64) -> SparseBins {
        let full = std::iter::repeat_n((bin, u16::MAX), (n / u64::from(u16::MAX)) as usize);
        let rest = (n % u64::from(u16::MAX)) as u16;
        SparseBins(full.chain((rest > 0).then_some((bin, rest))).collect())
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: SparseBins) {
        if self.0.is_empty() {
            *self = other;
            return;
        }
        let mut merged: SmallVec<[(u16, u16); 4]> = SmallVec::with_capacity(self.0.len() + other.0.len());
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if y.0 < x.0 => b.next(),
                (Some(_), _) => a.next(),
                (None, _) => b.next(),
            };
            let Some(&(bin, count)) = next else { break };
            match merged.last_mut() {
                Some((last, sum)) if *last == bin && u32::from(*sum) + u32::from(count) <= u32::from(u16::MAX) => *sum += count,
                _ => merged.push((bin, count)),
            }
        }
        self.0 = merged;
    }

    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.0.iter().map(|&(bin, count)| (bin, u64::from(count)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|&(_, count)| u64::from(count)).sum()
    }

    /// Number of values in this bin and above.
    pub fn from(&self, bin: u16) -> u64 {
        let first = self.0.partition_point(|&(b, _)| b < bin);
        self.0[first..].iter().map(|&(_, count)| u64::from(count)).sum()
    }
}

/// Counts of bins, a page after the other. Most are small, and there may be thousands of histograms: a count is a byte until one does not fit.
#[derive(Clone, Debug)]
enum Pages {
    Narrow(Vec<[u8; PAGE]>),
    Wide(Vec<[u32; PAGE]>),
}

impl Default for Pages {
    fn default() -> Pages {
        Pages::Narrow(Vec::new())
    }
}

impl Pages {
    /// Opens a page, and returns how many there are now.
    fn open(&mut self) -> usize {
        match self {
            Pages::Narrow(pages) => {
                pages.push([0; PAGE]);
                pages.len()
            }
            Pages::Wide(pages) => {
                pages.push([0; PAGE]);
                pages.len()
            }
        }
    }

    fn page(&self, place: usize) -> [u32; PAGE] {
        match self {
            Pages::Narrow(pages) => pages[place].map(u32::from),
            Pages::Wide(pages) => pages[place],
        }
    }

    fn add(&mut self, place: usize, slot: usize, count: u64) {
        if let Pages::Narrow(pages) = self {
            let narrow = &mut pages[place][slot];
            match u8::try_from(u64::from(*narrow) + count) {
                Ok(sum) => return *narrow = sum,
                Err(_) => *self = Pages::Wide(pages.iter().map(|page| page.map(u32::from)).collect()),
            }
        }
        if let Pages::Wide(pages) = self {
            let wide = &mut pages[place][slot];
            *wide = wide.saturating_add(count as u32);
        }
    }

    /// Takes off what was added before.
    fn subtract(&mut self, place: usize, slot: usize, count: u64) {
        match self {
            Pages::Narrow(pages) => pages[place][slot] = pages[place][slot].saturating_sub(count as u8),
            Pages::Wide(pages) => pages[place][slot] = pages[place][slot].saturating_sub(count as u32),
        }
    }
}

/// Running total of a window: dense inside pages of 64 bins that have seen a value.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(into = "Vec<(u16, u32)>", from = "Vec<(u16, u32)>")]
pub struct Bins {
    /// By number of the page: its place from 1, or 0. Small, since it is read with every value.
    places: Vec<u16>,
    /// By place, which is that of the page's first value in time.
    pages: Pages,
    /// Of each page: they are read far more often than the pages, and lie together.
    sums: Vec<u64>,
    count: u64,
}

impl PartialEq for Bins {
    fn eq(&self, other: &Bins) -> bool {
        self.filled().eq(other.filled())
    }
}

impl From<Bins> for Vec<(u16, u32)> {
    fn from(bins: Bins) -> Self {
        bins.filled().collect()
    }
}

impl From<Vec<(u16, u32)>> for Bins {
    fn from(filled: Vec<(u16, u32)>) -> Self {
        let mut bins = Bins::default();
        filled.into_iter().for_each(|(bin, count)| bins.count_in(bin, u64::from(count)));
        bins
    }
}

impl Bins {
    pub fn add(&mut self, bins: &SparseBins) {
        bins.iter().for_each(|(bin, count)| self.count_in(bin, count));
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Bins) {
        other.filled().for_each(|(bin, count)| self.count_in(bin, u64::from(count)));
    }

    /// Adds one value.
    pub fn push(&mut self, bin: u16) {
        self.count_in(bin, 1);
    }

    /// Adds `count` values of one bin.
    pub fn count_in(&mut self, bin: u16, count: u64) {
        let (page, slot) = (usize::from(bin) / PAGE, usize::from(bin) % PAGE);
        let place = self.place(page).unwrap_or_else(|| self.open(page));
        self.pages.add(place, slot, count);
        self.sums[place] += count;
        self.count += count;
    }

    /// Where a page is that has seen a value.
    fn place(&self, page: usize) -> Option<usize> {
        usize::from(*self.places.get(page)?).checked_sub(1)
    }

    #[cold]
    fn open(&mut self, page: usize) -> usize {
        self.places.resize(self.places.len().max(page + 1), 0);
        self.sums.push(0);
        let pages = self.pages.open();
        self.places[page] = pages as u16;
        pages - 1
    }

    /// Numbers and places of the pages that have seen a value, by number.
    fn seen(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let places = self.places.iter().enumerate();
        places.filter_map(|(page, place)| Some((page, usize::from(*place).checked_sub(1)?)))
    }

    /// Takes out bins that were added before.
    pub fn subtract(&mut self, bins: &SparseBins) {
        for (bin, count) in bins.iter() {
            let (page, slot) = (usize::from(bin) / PAGE, usize::from(bin) % PAGE);
            if let Some(place) = self.place(page) {
                self.pages.subtract(place, slot, count);
                self.sums[place] = self.sums[place].saturating_sub(count);
                self.count = self.count.saturating_sub(count);
            }
        }
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Upper edge of the bin that holds the quantile `ppm` (parts per million), in thousandths; `None` when empty.
    pub fn quantile(&self, ppm: u32) -> Option<u64> {
        self.quantile_bin(ppm).map(upper_edge)
    }

    /// The bin that holds the quantile.
    pub fn quantile_bin(&self, ppm: u32) -> Option<u16> {
        if self.count == 0 {
            return None;
        }
        let wanted = ((u128::from(self.count) * u128::from(ppm)).div_ceil(1_000_000) as u64).max(1);
        let mut below = 0;
        for (page, place) in self.seen() {
            if below + self.sums[place] < wanted {
                below += self.sums[place];
                continue;
            }
            for (slot, count) in self.pages.page(place).into_iter().enumerate() {
                below += u64::from(count);
                if below >= wanted {
                    return Some((page * PAGE + slot) as u16);
                }
            }
        }
        None
    }

    /// Number of values in bins wholly above the bin that holds `value` (thousandths).
    pub fn above(&self, value: u64) -> u64 {
        let bin = usize::from(bin_of(value.min(HIGHEST)));
        let later = self.places.iter().skip(bin / PAGE + 1).filter_map(|place| usize::from(*place).checked_sub(1));
        let whole: u64 = later.map(|place| self.sums[place]).sum();
        whole + self.place(bin / PAGE).map_or(0, |place| self.pages.page(place)[bin % PAGE + 1..].iter().map(|&c| u64::from(c)).sum())
    }

    /// Number of values in bins below this one.
    pub fn below(&self, bin: u16) -> u64 {
        let bin = usize::from(bin);
        let whole: u64 = self.seen().take_while(|(page, _)| *page < bin / PAGE).map(|(_, place)| self.sums[place]).sum();
        whole + self.place(bin / PAGE).map_or(0, |place| self.pages.page(place)[..bin % PAGE].iter().map(|&c| u64::from(c)).sum())
    }

    /// Upper edge (thousandths) and count of each bin that is not empty, by edge.
    pub fn edges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.filled().map(|(bin, count)| (upper_edge(bin), u64::from(count)))
    }

    /// Each bin that is not empty, and its count, by index.
    fn filled(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        let bins = self.seen().flat_map(|(page, place)| {
            self.pages.page(place).into_iter().enumerate().map(move |(slot, count)| ((page * PAGE + slot) as u16, count))
        });
        bins.filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn oracle(values: &[u64]) -> hdrhistogram::Histogram<u64> {
        let mut h = hdrhistogram::Histogram::new_with_bounds(LOWEST, HIGHEST, 3).unwrap();
        for &v in values {
            h.record(v).unwrap();
        }
        h
    }

    fn sparse(values: &[u64]) -> SparseBins {
        SparseBins::from_samples(&mut values.iter().map(|&v| bin_of(v)).collect::<Vec<_>>())
    }

    #[test]
    fn bins_span_the_range() {
        assert!(bin_of(HIGHEST) < 23_552);
        assert_eq!(thousandths(0.0), (1, false));
        assert_eq!(thousandths(1e18), (HIGHEST, true));
        assert_eq!(thousandths(420.0), (420_000, false));
    }

    proptest! {
        #[test]
        fn thousandths_are_rounded(value in prop_oneof![-2.0..2.0f64, -2.0..5e6f64, (-3i64..9_000_000).prop_map(|n| n as f64 / 2_000.0)]) {
            let rounded = (value * 1_000.0).round();
            let expected = (rounded.clamp(1.0, 3.6e9) as u64, !(0.0..=3.6e9).contains(&rounded));
            prop_assert_eq!(thousandths(value), expected);
        }

        #[test]
        fn edges_agree_with_hdrhistogram(v in LOWEST..=HIGHEST) {
            let h = oracle(&[]);
            prop_assert_eq!(upper_edge(bin_of(v)), h.highest_equivalent(v));
        }

        #[test]
        fn quantiles_agree_with_hdrhistogram(values in prop::collection::vec(1u64..50_000_000, 1..400), ppm in 1u32..1_000_000) {
            let mut bins = Bins::default();
            bins.add(&sparse(&values));
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = ((sorted.len() as u64 * u64::from(ppm)).div_ceil(1_000_000) as usize).max(1);
            prop_assert_eq!(bins.quantile(ppm), Some(oracle(&values).highest_equivalent(sorted[rank - 1])));
            prop_assert_eq!(bins.count(), values.len() as u64);
        }

        #[test]
        fn what_was_added_can_be_taken_out(a in prop::collection::vec(1u64..5_000_000, 0..200), b in prop::collection::vec(1u64..5_000_000, 0..200)) {
            let (mut both, mut only) = (Bins::default(), Bins::default());
            both.add(&sparse(&a));
            both.add(&sparse(&b));
            both.subtract(&sparse(&b));
            only.add(&sparse(&a));
            prop_assert_eq!(both.edges().collect::<Vec<_>>(), only.edges().collect::<Vec<_>>());
            prop_assert_eq!(both.above(70_000), only.above(70_000));
        }

        #[test]
        fn counts_grow_beyond_a_byte_and_back(counts in prop::collection::vec((0u16..300, 0u64..400), 1..80)) {
            let (mut bins, mut expected) = (Bins::default(), std::collections::BTreeMap::<u16, u64>::new());
            for &(bin, count) in &counts {
                bins.count_in(bin, count);
                *expected.entry(bin).or_default() += count;
            }
            for &(bin, count) in counts.iter().step_by(2) {
                bins.subtract(&SparseBins::single(bin, count));
                *expected.entry(bin).or_default() -= count;
            }
            let left: Vec<(u16, u32)> = expected.iter().filter(|(_, n)| **n > 0).map(|(bin, n)| (*bin, *n as u32)).collect();
            prop_assert_eq!(bins.count(), expected.values().sum::<u64>());
            prop_assert_eq!(Vec::<(u16, u32)>::from(bins), left);
        }

        #[test]
        fn counting_equals_sorting(values in prop::collection::vec(1u64..100_000, 0..400), most in 1usize..200) {
            let mut bins: Vec<u16> = values.iter().map(|&v| bin_of(v)).collect();
            bins.extend(std::iter::repeat_n(7, most * 1_000));
            prop_assert_eq!(SparseBins::counted(&bins), SparseBins::sorted(&mut bins));
        }

        #[test]
        fn merging_equals_binning_together(a in prop::collection::vec(1u64..3_000, 0..300), b in prop::collection::vec(1u64..3_000, 0..300)) {
            let mut merged = sparse(&a);
            merged.merge(sparse(&b));
            let together: Vec<u64> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(merged, sparse(&together));
        }
    }
}
