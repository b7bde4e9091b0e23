//! Exact expectations by enumeration, for tests.

/// `ln(n!)`.
pub fn log_factorial(n: u64) -> f64 {
    (1..=n).map(|k| (k as f64).ln()).sum()
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
