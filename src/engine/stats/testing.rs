//! Exact expectations by enumeration, for tests.

/// `ln(n!)`.
pub fn log_factorial(n: u64) -> f64 {
    (1..=n).map(|k| (k as f64).ln()).sum()
}

/// Mean of `exp(log_e(counts))` over multinomial counts of `n` draws.
pub fn multinomial_expectation(n: u64, cells: &[f64], log_e: impl Fn(&[u64]) -> f64) -> f64 {
    fn visit(left: u64, cells: &[f64], counts: &mut Vec<u64>, log_p: f64, log_e: &impl Fn(&[u64]) -> f64) -> f64 {
        let Some((p, rest)) = cells.split_first() else { return if left == 0 { (log_p + log_e(counts)).exp() } else { 0.0 } };
        let lowest = if rest.is_empty() { left } else { 0 };
        (lowest..=left)
            .map(|x| {
                counts.push(x);
                let sum = visit(left - x, rest, counts, log_p + x as f64 * p.ln() - log_factorial(x), log_e);
                counts.pop();
                sum
            })
            .sum()
    }
    visit(n, cells, &mut Vec::new(), log_factorial(n), &log_e)
}

/// Mean of `exp(log_e(x))` for x ~ Binomial(n, p).
pub fn binomial_expectation(n: u64, p: f64, log_e: impl Fn(u64) -> f64) -> f64 {
    (0..=n)
        .map(|x| {
            let ways = log_factorial(n) - log_factorial(x) - log_factorial(n - x);
            (ways + x as f64 * p.ln() + (n - x) as f64 * (-p).ln_1p() + log_e(x)).exp()
        })
        .sum()
}
