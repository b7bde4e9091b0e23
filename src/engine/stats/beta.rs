//! Beta distributions: shares that are known up to some counts.
//!
//! Written out here because the usual libraries reach the incomplete beta function through differences of log gammas, which leave
//! five or six digits at 1e9 observations. In log odds around the mean, the density is `exp(a v - (a + b) ln(1 + m (e^v - 1)))` over a
//! constant: log-concave, smooth, without cancellation, and gone (below 1e-17 of its peak) beyond a known range. Gauss-Legendre panels
//! over that range are exact to about 1e-10.

use super::numeric::{HALF_LN_TAU, stirling_remainder};

/// A Beta(`a`, `b`) distribution.
#[derive(Clone, Copy, Debug)]
pub struct Beta {
    a: f64,
    b: f64,
    mean: f64,
    /// `1 - mean`, exact for means near 1.
    rest: f64,
    /// Log of the density at the mean.
    log_peak: f64,
    /// Where the density ends, in log odds relative to the mean.
    low: f64,
    high: f64,
}

/// Nodes and weights of the eight-point Gauss-Legendre rule on [-1, 1]; mirrored.
const NODES: [(f64, f64); 4] = [
    (0.183_434_642_495_649_8, 0.362_683_783_378_362),
    (0.525_532_409_916_329, 0.313_706_645_877_887_3),
    (0.796_666_477_413_626_7, 0.222_381_034_453_374_5),
    (0.960_289_856_497_536_3, 0.101_228_536_290_376_3),
];

/// Nats below the peak at which the density is cut off.
const DROP: f64 = 40.0;

impl Beta {
    /// Parameters are moved into 0.1..=1e15; one that is no number becomes 1.
    pub fn new(a: f64, b: f64) -> Beta {
        let [a, b] = [a, b].map(|x| if x.is_nan() { 1.0 } else { x.clamp(0.1, 1e15) });
        let n = a + b;
        let log_peak = 0.5 * (a / n * b).ln() - HALF_LN_TAU + stirling_remainder(n) - stirling_remainder(a) - stirling_remainder(b);
        let mut beta = Beta { a, b, mean: a / n, rest: b / n, log_peak, low: 0.0, high: 0.0 };
        (beta.low, beta.high) = (-beta.reach(-1.0), beta.reach(1.0));
        beta
    }

    /// After `x` hits among `n`, with the prior Beta(`prior`, `prior`): 1/2 is Jeffreys'.
    pub fn posterior(x: f64, n: f64, prior: f64) -> Beta {
        Beta::new(x + prior, (n - x).max(0.0) + prior)
    }

    pub fn mean(&self) -> f64 {
        self.mean
    }

    pub fn variance(&self) -> f64 {
        self.mean * self.rest / (self.a + self.b + 1.0)
    }

    /// Chance of a value of at most `p`.
    pub fn cdf(&self, p: f64) -> f64 {
        let v = self.log_odds(p);
        let below = if v <= 0.0 { self.integrate(self.low, v, |_| 1.0) } else { 1.0 - self.integrate(v, self.high, |_| 1.0) };
        below.clamp(0.0, 1.0)
    }

    /// Chance that this exceeds `ratio * other + margin`, both independent and `ratio` not negative. Absolute error below 1e-6 (about
    /// 1e-10 unless an arm without a single hit meets a margin).
    ///
    /// One integral over the more concentrated of the two, of the other's distribution function, whose panels are added up beforehand.
    pub fn exceeds(&self, other: &Beta, ratio: f64, margin: f64) -> f64 {
        if ratio.is_nan() || margin.is_nan() {
            return 0.0;
        }
        if ratio <= 0.0 {
            return 1.0 - self.cdf(margin);
        }
        let chance = if self.variance() <= ratio * ratio * other.variance() {
            // The other's share must stay below (x - margin) / ratio, which is certain for x above ratio + margin.
            let table = Table::of(other);
            let inside = self.between(margin, ratio + margin, |x| table.cdf((x - margin) / ratio));
            inside + 1.0 - self.cdf(ratio + margin)
        } else {
            let table = Table::of(self);
            let (least, most) = (-margin / ratio, (1.0 - margin) / ratio);
            other.cdf(least) + other.between(least, most, |y| 1.0 - table.cdf(ratio * y + margin))
        };
        chance.clamp(0.0, 1.0)
    }

    /// The mean of `f` over values between two shares, times the chance of such a value.
    fn between(&self, least: f64, most: f64, f: impl Fn(f64) -> f64) -> f64 {
        self.integrate(self.log_odds(least), self.log_odds(most), |v| f(self.share(v)))
    }

    /// The share at log odds `v` above the mean's.
    fn share(&self, v: f64) -> f64 {
        self.mean / (self.mean + self.rest * (-v).exp())
    }

    /// The inverse of [`Beta::share`], within the range of the density.
    fn log_odds(&self, p: f64) -> f64 {
        if p.is_nan() || p <= 0.0 {
            self.low
        } else if p >= 1.0 {
            self.high
        } else {
            (p * self.rest / ((1.0 - p) * self.mean)).ln().clamp(self.low, self.high)
        }
    }

    /// Log density in log odds relative to its peak, which is at 0. Taken from the rarer side, where nothing cancels.
    fn log_relative(&self, v: f64) -> f64 {
        let n = self.a + self.b;
        if self.a <= self.b {
            self.a * v - n * (self.mean * v.exp_m1()).ln_1p()
        } else {
            -self.b * v - n * (self.rest * (-v).exp_m1()).ln_1p()
        }
    }

    fn reach(&self, direction: f64) -> f64 {
        let gap = |v: f64| self.log_relative(direction * v) + DROP;
        let mut far = self.width();
        while gap(far) > 0.0 && far < 500.0 {
            far *= 1.25;
        }
        far
    }

    /// Width of a panel: a standard deviation, and small against the distance of the density's complex poles.
    fn width(&self) -> f64 {
        (1.0 / self.a + 1.0 / self.b).sqrt().min(2.0)
    }

    fn integrate(&self, from: f64, to: f64, f: impl Fn(f64) -> f64) -> f64 {
        if from >= to {
            return 0.0;
        }
        let panels = ((to - from) / self.width()).ceil().max(1.0);
        let half = 0.5 * (to - from) / panels;
        let panel = |i: u32| {
            let centre = from + (2.0 * f64::from(i) + 1.0) * half;
            let at = |v: f64| (self.log_peak + self.log_relative(v)).exp() * f(v);
            half * NODES.iter().map(|(x, weight)| weight * (at(centre - half * x) + at(centre + half * x))).sum::<f64>()
        };
        (0..panels as u32).map(panel).sum()
    }
}

/// A distribution function that is asked often: whole panels are added up once.
struct Table<'a> {
    beta: &'a Beta,
    width: f64,
    /// Chance below each panel's start.
    below: Vec<f64>,
}

impl Table<'_> {
    fn of(beta: &Beta) -> Table<'_> {
        let panels = ((beta.high - beta.low) / beta.width()).ceil().max(1.0);
        let width = (beta.high - beta.low) / panels;
        let mut sum = 0.0;
        let mut below = vec![0.0];
        for i in 0..panels as u32 {
            let start = beta.low + f64::from(i) * width;
            sum += beta.integrate(start, start + width, |_| 1.0);
            below.push(sum);
        }
        Table { beta, width, below }
    }

    fn cdf(&self, p: f64) -> f64 {
        let v = self.beta.log_odds(p);
        let panel = ((v - self.beta.low) / self.width).floor().clamp(0.0, (self.below.len() - 1) as f64) as usize;
        let start = self.beta.low + panel as f64 * self.width;
        self.below[panel] + self.beta.integrate(start, v, |_| 1.0)
    }
}

/// Chance that a Student variable with `dof` degrees of freedom (positive) exceeds `t`.
pub fn student_tail(t: f64, dof: f64) -> f64 {
    if t.is_nan() || dof.is_nan() {
        return 1.0;
    }
    let dof = dof.max(0.2);
    let tail = 0.5 * (1.0 - Beta::new(0.5, 0.5 * dof).cdf(1.0 / (1.0 + dof / (t * t))));
    if t > 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::numeric::normal_tail;
    use proptest::prelude::*;

    #[test]
    fn distribution_functions_have_known_values() {
        // Closed forms: uniform, arcsine, and powers.
        for p in [1e-9, 0.01, 0.3, 0.5, 0.999] {
            assert!((Beta::new(1.0, 1.0).cdf(p) - p).abs() < 1e-11, "{p}");
            let arcsine = 2.0 / std::f64::consts::PI * p.sqrt().asin();
            assert!((Beta::new(0.5, 0.5).cdf(p) - arcsine).abs() < 1e-11, "{p}: {}", Beta::new(0.5, 0.5).cdf(p));
            assert!((Beta::new(7.0, 1.0).cdf(p) - p.powi(7)).abs() < 1e-11, "{p}");
            assert!((Beta::new(1.0, 1e6).cdf(p * 1e-5) - -(1e6 * (-p * 1e-5).ln_1p()).exp_m1()).abs() < 1e-10, "{p}");
        }
        // Symmetric at a billion, and nearly normal.
        let large = Beta::new(1e9, 1e9);
        assert!((large.cdf(0.5) - 0.5).abs() < 1e-10, "{}", large.cdf(0.5));
        let sd = large.variance().sqrt();
        assert!((large.cdf(0.5 + 2.0 * sd) - (1.0 - normal_tail(2.0))).abs() < 1e-8);
    }

    #[test]
    fn student_tails_have_known_values() {
        assert!((student_tail(1.0, 1.0) - 0.25).abs() < 1e-11);
        assert!((student_tail(-1.0, 1.0) - 0.75).abs() < 1e-11);
        // Two degrees: 1/2 - t / (2 sqrt(2 + t^2)).
        assert!((student_tail(3.0, 2.0) - (0.5 - 3.0 / (2.0 * 11f64.sqrt()))).abs() < 1e-11);
        assert!((student_tail(2.5, 1e12) - normal_tail(2.5)).abs() < 1e-9);
        assert_eq!((student_tail(f64::NAN, 5.0), student_tail(0.0, 5.0)), (1.0, 0.5));
    }

    /// P(T > ratio C + margin) for whole parameters, by summing over a fine grid of the unit square's margins.
    fn by_brute_force(t: (f64, f64), c: (f64, f64), ratio: f64, margin: f64) -> f64 {
        let cells = 40_000;
        let density = |(a, b): (f64, f64)| {
            let weights: Vec<f64> = (0..cells)
                .map(|i| (f64::from(i) + 0.5) / f64::from(cells))
                .map(|p| ((a - 1.0) * p.ln() + (b - 1.0) * (-p).ln_1p()).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            weights.into_iter().map(|w| w / total).collect::<Vec<f64>>()
        };
        let (t, c) = (density(t), density(c));
        let mut above = vec![0.0; cells as usize + 1];
        for i in (0..cells as usize).rev() {
            above[i] = above[i + 1] + t[i];
        }
        let exceeds = |p: f64| {
            let cell = p * f64::from(cells);
            let whole = cell.clamp(0.0, f64::from(cells)).floor();
            let next = (whole as usize + 1).min(cells as usize);
            above[next] + (above[whole as usize] - above[next]) * (1.0 - (cell - whole).clamp(0.0, 1.0))
        };
        c.iter().enumerate().map(|(i, w)| w * exceeds(ratio * (i as f64 + 0.5) / f64::from(cells) + margin)).sum()
    }

    #[test]
    fn exceedance_agrees_with_brute_force() {
        for (t, c) in [((3.0, 40.0), (9.0, 300.0)), ((30.0, 9.0), (2.0, 2.0)), ((2.0, 900.0), (1.0, 80.0)), ((50.0, 50.0), (48.0, 51.0))] {
            for (ratio, margin) in [(1.0, 0.0), (1.3, 0.0), (1.0, 0.02), (0.5, 0.3), (1.0, -0.05), (4.0, -0.2)] {
                let (fast, slow) = (Beta::new(t.0, t.1).exceeds(&Beta::new(c.0, c.1), ratio, margin), by_brute_force(t, c, ratio, margin));
                assert!((fast - slow).abs() < 2e-5, "{t:?} {c:?} {ratio} {margin}: {fast} {slow}");
            }
        }
    }

    #[test]
    fn exceedance_of_whole_counts_agrees_with_the_finite_sum() {
        // For whole a: P(T > C) = sum over i below a_t of B(a_c + i, b_t + b_c) / ((b_t + i) B(1 + i, b_t) B(a_c, b_c)).
        let ln_beta = |a: f64, b: f64| libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
        for (a_t, b_t, a_c, b_c) in [(12.0, 988.0, 20.0, 1_980.0), (3.0, 4.0, 2.0, 9.0), (40.0, 999_960.0, 25.0, 999_975.0)] {
            let term = |i: f64| (ln_beta(a_c + i, b_t + b_c) - (b_t + i).ln() - ln_beta(1.0 + i, b_t) - ln_beta(a_c, b_c)).exp();
            let sum: f64 = (0..a_t as u32).map(|i| term(f64::from(i))).sum();
            let found = Beta::new(a_t, b_t).exceeds(&Beta::new(a_c, b_c), 1.0, 0.0);
            assert!((found - sum).abs() < 1e-8, "{a_t} {b_t} {a_c} {b_c}: {found} {sum}");
        }
    }

    #[test]
    fn stays_precise_at_a_billion() {
        let (t, c) = (Beta::new(5_000_000.0, 995_000_000.0), Beta::new(4_990_000.0, 995_010_000.0));
        let z = (t.mean() - c.mean()) / (t.variance() + c.variance()).sqrt();
        assert!((t.exceeds(&c, 1.0, 0.0) - (1.0 - normal_tail(z))).abs() < 1e-6);
        let (wide, narrow) = (Beta::new(0.5, 20.5), Beta::new(1e9, 1e9));
        assert!((wide.exceeds(&narrow, 0.2, 0.0) - (1.0 - wide.cdf(0.1))).abs() < 1e-7);
        assert!((narrow.exceeds(&wide, 1.0, 0.0) - wide.cdf(0.5)).abs() < 1e-7);
    }

    proptest! {
        #[test]
        fn a_share_exceeds_or_not(
            a in 0.5..1e6f64, b in 0.5..1e6f64, c in 0.5..1e3f64, d in 0.5..1e9f64, ratio in 0.2..5.0f64, margin in -0.2..0.2f64,
        ) {
            let (t, c) = (Beta::new(a, b), Beta::new(c, d));
            let above = t.exceeds(&c, ratio, margin);
            // T > ratio C + margin unless C > T / ratio - margin / ratio.
            let below = c.exceeds(&t, 1.0 / ratio, -margin / ratio);
            prop_assert!((above + below - 1.0).abs() < 2e-6, "{} {}", above, below);
        }

        #[test]
        fn never_nan(a: f64, b: f64, c: f64, d: f64, ratio: f64, margin: f64) {
            let chance = Beta::new(a, b).exceeds(&Beta::new(c, d), ratio, margin);
            prop_assert!((0.0..=1.0).contains(&chance));
            prop_assert!((0.0..=1.0).contains(&Beta::new(a, b).cdf(margin)) && (0.0..=1.0).contains(&student_tail(c, d)));
        }
    }
}
