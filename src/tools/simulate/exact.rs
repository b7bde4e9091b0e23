//! What so many runs say of a probability, exactly: nothing is normal about three alarms in a thousand.

/// `P(X <= k)` for X binomial(`n`, `p`).
pub fn at_most(k: u64, n: u64, p: f64) -> f64 {
    if k >= n || p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    let (n, odds) = (n as f64, (p / (1.0 - p)).ln());
    // The shorter tail is summed; terms go from ln(pmf) by their ratios.
    let upper = k as f64 > n * p;
    let range: Box<dyn Iterator<Item = u64>> = if upper { Box::new(k + 1..=n as u64) } else { Box::new((0..=k).rev()) };
    let mut sum = 0.0;
    for i in range {
        let i = i as f64;
        let ln = libm::lgamma(n + 1.0) - libm::lgamma(i + 1.0) - libm::lgamma(n - i + 1.0) + i * odds + n * (-p).ln_1p();
        let term = ln.exp();
        sum += term;
        if term < 1e-17 * sum {
            break;
        }
    }
    if upper { (1.0 - sum).max(0.0) } else { sum.min(1.0) }
}

/// Exact (Clopper and Pearson) interval of a probability of which `k` of `n` runs are a sample; `confidence` such as 0.95.
pub fn interval(k: u64, n: u64, confidence: f64) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let tail = (1.0 - confidence) / 2.0;
    let low = if k == 0 { 0.0 } else { bisect(|p| 1.0 - at_most(k - 1, n, p) < tail) };
    let high = if k >= n { 1.0 } else { bisect(|p| at_most(k, n, p) > tail) };
    [low, high]
}

/// The largest number of hits among `n` runs that a probability of at most `p` exceeds with a chance of less than `chance`.
pub fn limit(n: u64, p: f64, chance: f64) -> u64 {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low + (high - low) / 2;
        if 1.0 - at_most(middle, n, p) < chance { high = middle } else { low = middle + 1 }
    }
    low
}

/// Ranks (from 1) of the order statistics of `n` values between which their distribution's `q`-quantile lies with at least that
/// confidence; 0 and `n + 1` stand for "below all" and "beyond all".
pub fn ranks(n: u64, q: f64, confidence: f64) -> (u64, u64) {
    let tail = (1.0 - confidence) / 2.0;
    // The quantile lies below the r-th value if fewer than r values lie below it.
    let low = (0..=n).rev().find(|&r| r == 0 || at_most(r - 1, n, q) <= tail).unwrap_or(0);
    let high = (1..=n + 1).find(|&r| r == n + 1 || 1.0 - at_most(r - 1, n, q) <= tail).unwrap_or(n + 1);
    (low, high)
}

/// Where `below` stops to hold in `0..=1`.
fn bisect(below: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if below(middle) { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_agree_with_direct_sums() {
        // n = 4, p = 1/2: 1, 4, 6, 4, 1 of 16.
        for (k, want) in [(0, 1.0), (1, 5.0), (2, 11.0), (3, 15.0), (4, 16.0)] {
            assert!((at_most(k, 4, 0.5) - want / 16.0).abs() < 1e-14, "{k}");
        }
        assert!((at_most(0, 1_000, 0.01) - 0.99f64.powi(1_000)).abs() < 1e-15);
    }

    #[test]
    fn intervals_are_the_textbook_ones() {
        // No hit in n: the upper end solves (1 - p)^n = 2.5%.
        let [low, high] = interval(0, 100, 0.95);
        assert!(low == 0.0 && (high - (1.0 - 0.025f64.powf(0.01))).abs() < 1e-12);
        let [low, high] = interval(5, 50, 0.95);
        assert!((low - 0.033_275).abs() < 1e-5 && (high - 0.218_135).abs() < 1e-5, "{low} {high}");
        assert_eq!(interval(7, 7, 0.95)[1], 1.0);
        assert_eq!(interval(0, 0, 0.95), [0.0, 1.0]);
    }

    #[test]
    fn a_limit_is_the_first_number_that_is_rarely_exceeded() {
        let k = limit(1_000, 0.05, 1e-4);
        assert!(1.0 - at_most(k, 1_000, 0.05) < 1e-4 && 1.0 - at_most(k - 1, 1_000, 0.05) >= 1e-4);
        assert!((70..90).contains(&k), "{k}");
    }

    #[test]
    fn order_statistics_cover_the_median() {
        // Nine values: the median lies outside (2nd, 8th) with a chance of 2 * 10/512.
        assert_eq!(ranks(9, 0.5, 0.95), (2, 8));
        assert_eq!(ranks(3, 0.5, 0.95), (0, 4), "three values say too little");
        assert_eq!(ranks(50, 0.9, 0.95).1, 50);
    }
}
