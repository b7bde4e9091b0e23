//! Random draws, the same for a seed on every machine.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Level of the standard normal distribution's 95th percentile.
pub const Z95: f64 = 1.644_853_626_951_472_7;

/// A stream of random numbers.
pub struct Draw {
    rng: ChaCha8Rng,
    /// The polar method makes two normal values at once.
    spare: Option<f64>,
}

impl Draw {
    /// Streams of different `(seed, scenario, run)` are independent.
    pub fn new(seed: u64, scenario: u64, run: u64) -> Draw {
        let mut key = [0; 32];
        for (part, bytes) in [seed, scenario, run].into_iter().zip(key.chunks_mut(8)) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        Draw { rng: ChaCha8Rng::from_seed(key), spare: None }
    }

    /// Uniform in `0..1`.
    pub fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    pub fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.uniform() < p
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    /// Standard normal (Marsaglia's polar method).
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let s = x * x + y * y;
            if s > 0.0 && s < 1.0 {
                let factor = (-2.0 * s.ln() / s).sqrt();
                self.spare = Some(y * factor);
                return x * factor;
            }
        }
    }

    /// Poisson (Knuth's product, for large means in parts).
    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean <= 0.0 {
            return 0;
        }
        let mut count = 0;
        let mut rest = mean;
        while rest > 0.0 {
            let part = rest.min(20.0);
            rest -= part;
            let floor = (-part).exp();
            let mut product = self.uniform();
            while product > floor {
                count += 1;
                product *= self.uniform();
            }
        }
        count
    }
}

/// The standard normal distribution function.
pub fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::numeric::normal_quantile;

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut draw = Draw::new(1, 0, 0);
        let n = 200_000;
        let of = |values: Vec<f64>| {
            let mean = values.iter().sum::<f64>() / f64::from(n);
            (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(n))
        };
        let near = |(mean, variance): (f64, f64), m: f64, v: f64| {
            // Five standard errors of a mean; variances of these distributions have at most three times that.
            let slack = 5.0 * (v / f64::from(n)).sqrt();
            assert!((mean - m).abs() < slack, "mean {mean}, not {m}");
            assert!((variance - v).abs() < 0.03 * v, "variance {variance}, not {v}");
        };
        near(of((0..n).map(|_| draw.uniform()).collect()), 0.5, 1.0 / 12.0);
        near(of((0..n).map(|_| draw.normal()).collect()), 0.0, 1.0);
        near(of((0..n).map(|_| draw.exponential()).collect()), 1.0, 1.0);
        near(of((0..n).map(|_| draw.poisson(0.3) as f64).collect()), 0.3, 0.3);
        near(of((0..n).map(|_| draw.poisson(47.0) as f64).collect()), 47.0, 47.0);
    }

    #[test]
    fn streams_repeat_and_differ() {
        let take = |seed, scenario, run| {
            let mut draw = Draw::new(seed, scenario, run);
            (draw.uniform(), draw.normal())
        };
        assert_eq!(take(1, 2, 3), take(1, 2, 3));
        let all = [take(1, 2, 3), take(2, 2, 3), take(1, 3, 3), take(1, 2, 4)];
        assert!((1..4).all(|i| all[i] != all[0]));
    }

    #[test]
    fn quantiles_invert_the_distribution_function() {
        assert!((normal_quantile(0.95) - Z95).abs() < 1e-12);
        assert!((normal_quantile(0.5)).abs() < 1e-12);
        assert!((normal_cdf(normal_quantile(1e-6)) - 1e-6).abs() < 1e-18);
    }
}
