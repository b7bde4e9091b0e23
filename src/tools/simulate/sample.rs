//! Values of single events and units, and what is known of them without drawing.

use super::draw::{Draw, normal_cdf};
use super::traffic::{Latency, LogNormal, MetricTraffic, Model, Shape, Spread};
use crate::engine::plan::Statistic;
use crate::engine::stats::numeric::crossing;
use crate::engine::stats::numeric::normal_quantile;

/// A normal variable made of one of the unit and one of the event.
pub fn mixed(icc: f64, of_unit: f64, draw: &mut Draw) -> f64 {
    if icc > 0.0 { icc.sqrt() * of_unit + (1.0 - icc).sqrt() * draw.normal() } else { draw.normal() }
}

/// One latency in ms; `of_unit` is the unit's normal variable.
pub fn latency(latency: &Latency, of_unit: f64, draw: &mut Draw) -> f64 {
    match latency.shape {
        Shape::LogNormal(shape) => log_normal(shape, mixed(latency.icc, of_unit, draw)),
        Shape::Bimodal { fast, slow, slow_share } => {
            let shape = if draw.chance(slow_share) { slow } else { fast };
            log_normal(shape, mixed(latency.icc, of_unit, draw))
        }
        Shape::Pareto { min, tail } => {
            let above = if latency.icc > 0.0 { normal_cdf(-mixed(latency.icc, of_unit, draw)) } else { 1.0 - draw.uniform() };
            min * above.max(1e-300).powf(-1.0 / tail)
        }
        Shape::Normal { mean, sd } => (mean + sd * mixed(latency.icc, of_unit, draw)).max(0.0),
        Shape::Exponential { mean } => -mean * normal_cdf(-mixed(latency.icc, of_unit, draw)).max(1e-300).ln(),
        Shape::Constant { value } => value,
    }
}

fn log_normal(shape: LogNormal, z: f64) -> f64 {
    shape.p50 * (shape.sigma() * z).exp()
}

/// The `q`-quantile of healthy latencies in ms.
pub fn latency_quantile(latency: &Latency, q: f64) -> f64 {
    match latency.shape {
        Shape::LogNormal(shape) => log_normal(shape, normal_quantile(q)),
        Shape::Pareto { min, tail } => min * (1.0 - q).powf(-1.0 / tail),
        Shape::Normal { mean, sd } => (mean + sd * normal_quantile(q)).max(0.0),
        Shape::Exponential { mean } => -mean * (1.0 - q).ln(),
        Shape::Constant { value } => value,
        Shape::Bimodal { fast, slow, slow_share } => {
            let below = |x: f64, s: LogNormal| normal_cdf((x / s.p50).ln() / s.sigma());
            let top = log_normal(slow, 8.0).max(log_normal(fast, 8.0));
            crossing(0.0, top, |x| q - (1.0 - slow_share) * below(x, fast) - slow_share * below(x, slow))
        }
    }
}

/// The metric's value in healthy traffic; `None` for bare counts.
pub fn metric_value(metric: &MetricTraffic, statistic: Statistic) -> Option<f64> {
    match (metric.model, statistic) {
        (Model::Rate { rate }, _) => Some(rate),
        (Model::Mean { mean, .. }, _) => Some(mean),
        (Model::Quantile(shape), Statistic::Quantile { ppm }) => Some(log_normal(shape, normal_quantile(f64::from(ppm) / 1e6))),
        (Model::Count, Statistic::PerUnit) => Some(metric.per_unit),
        _ => None,
    }
}

/// Variance of one observation of a rate or a mean.
pub fn variance(model: Model) -> Option<f64> {
    match model {
        Model::Rate { rate } => Some(rate * (1.0 - rate)),
        Model::Mean { mean, cv, zero, .. } => Some(mean * mean * ((1.0 + cv * cv) / (1.0 - zero) - 1.0)),
        Model::Quantile(_) | Model::Count => None,
    }
}

/// A value of a mean and its covariate, or of a quantile.
pub fn value(model: Model, draw: &mut Draw) -> (f64, Option<f64>) {
    match model {
        Model::Mean { mean, cv, zero, correlation, normal } => {
            let (z, own) = (draw.normal(), draw.normal());
            let (level, is_zero) = (mean / (1.0 - zero), draw.chance(zero));
            let of = |z: f64| {
                if normal {
                    level * (1.0 + cv * z)
                } else {
                    let s2 = (cv * cv).ln_1p();
                    level * (s2.sqrt() * z - 0.5 * s2).exp()
                }
            };
            let covariate = of(correlation * z + (1.0 - correlation * correlation).sqrt() * own);
            (if is_zero { 0.0 } else { of(z) }, (correlation != 0.0).then_some(covariate))
        }
        Model::Quantile(shape) => (log_normal(shape, draw.normal()), None),
        Model::Rate { .. } | Model::Count => (1.0, None),
    }
}

/// How many requests a unit makes.
#[derive(Clone, Copy, Debug)]
pub enum Requests {
    Fixed(f64),
    /// Logarithm of the chance that there is one more.
    Geometric(f64),
    Pareto {
        scale: f64,
        tail: f64,
        max: f64,
    },
}

impl Requests {
    pub fn new(per_unit: f64, spread: Spread) -> Requests {
        match spread {
            Spread::Fixed => Requests::Fixed(per_unit),
            Spread::Geometric => Requests::Geometric((1.0 - 1.0 / per_unit.max(1.0)).ln()),
            Spread::Pareto { tail, max } => {
                // The smallest values are 1 and the largest `max`, so the mean as a function of the scale is found by quadrature.
                let mean = |scale: f64| {
                    let n = 4_000;
                    (0..n).map(|i| pareto(scale, tail, max, (f64::from(i) + 0.5) / f64::from(n))).sum::<f64>() / f64::from(n)
                };
                let scale = crossing(1e-3, max, |scale| per_unit - mean(scale));
                Requests::Pareto { scale, tail, max }
            }
        }
    }

    pub fn draw(self, draw: &mut Draw) -> u64 {
        match self {
            Requests::Fixed(mean) => mean.floor() as u64 + u64::from(draw.chance(mean.fract())),
            Requests::Geometric(ln) if ln.is_finite() => 1 + (-draw.exponential() / ln) as u64,
            Requests::Geometric(_) => 1,
            Requests::Pareto { scale, tail, max } => pareto(scale, tail, max, draw.uniform()) as u64,
        }
    }
}

fn pareto(scale: f64, tail: f64, max: f64, u: f64) -> f64 {
    (scale * (1.0 - u).powf(-1.0 / tail)).clamp(1.0, max).floor()
}

/// Of a log-normal distribution with this spread of the logarithm.
#[cfg(test)]
pub fn with_sigma(p50: f64, sigma: f64) -> LogNormal {
    LogNormal { p50, p95: p50 * (sigma * super::draw::Z95).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(n: u32, mut next: impl FnMut() -> f64) -> f64 {
        (0..n).map(|_| next()).sum::<f64>() / f64::from(n)
    }

    #[test]
    fn latencies_have_their_quantiles_and_their_correlation() {
        let fast = with_sigma(10.0, 0.3);
        let slow = with_sigma(120.0, 0.35);
        let shapes = [
            Shape::LogNormal(with_sigma(20.0, 0.6)),
            Shape::Bimodal { fast, slow, slow_share: 0.1 },
            Shape::Pareto { min: 5.0, tail: 1.5 },
            Shape::Normal { mean: 200.0, sd: 30.0 },
            Shape::Exponential { mean: 80.0 },
        ];
        for shape in shapes {
            for icc in [0.0, 0.3] {
                let mut draw = Draw::new(7, 0, 0);
                let dist = Latency { shape, icc };
                let limit = latency_quantile(&dist, 0.95);
                let above = mean(100_000, || {
                    let of_unit = draw.normal();
                    f64::from(u8::from(latency(&dist, of_unit, &mut draw) > limit))
                });
                assert!((above - 0.05).abs() < 0.0035, "{shape:?}: {above} above {limit}");
            }
        }
        let mut draw = Draw::new(8, 0, 0);
        let dist = Latency { shape: Shape::LogNormal(with_sigma(1.0, 1.0)), icc: 0.3 };
        let covariance = mean(100_000, || {
            let of_unit = draw.normal();
            latency(&dist, of_unit, &mut draw).ln() * latency(&dist, of_unit, &mut draw).ln()
        });
        assert!((covariance - 0.3).abs() < 0.02, "{covariance}");
    }

    #[test]
    fn numbers_of_requests_have_their_mean() {
        let spreads = [Spread::Fixed, Spread::Geometric, Spread::Pareto { tail: 1.5, max: 300.0 }];
        for spread in spreads {
            for per_unit in [1.0, 2.5, 6.0] {
                if per_unit == 1.0 && matches!(spread, Spread::Pareto { .. }) {
                    continue;
                }
                let requests = Requests::new(per_unit, spread);
                let mut draw = Draw::new(9, 0, 0);
                let got = mean(300_000, || requests.draw(&mut draw) as f64);
                assert!((got / per_unit - 1.0).abs() < 0.04, "{spread:?} {per_unit}: {got}");
            }
        }
    }

    #[test]
    fn means_have_their_moments() {
        for normal in [false, true] {
            let model = Model::Mean { mean: 40.0, cv: 0.8, zero: 0.25, correlation: 0.6, normal };
            let mut draw = Draw::new(10, 0, 0);
            let values: Vec<(f64, Option<f64>)> = (0..200_000).map(|_| value(model, &mut draw)).collect();
            let n = values.len() as f64;
            let m = values.iter().map(|v| v.0).sum::<f64>() / n;
            let v = values.iter().map(|v| (v.0 - m).powi(2)).sum::<f64>() / n;
            let want = variance(model).unwrap();
            assert!((m - 40.0).abs() < 5.0 * (want / n).sqrt(), "{m}");
            assert!((v / want - 1.0).abs() < 0.06, "{v} {want}");
            assert!(values.iter().all(|v| v.1.is_some()));
        }
    }
}
