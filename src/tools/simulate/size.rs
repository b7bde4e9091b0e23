//! Sample sizes by formula: what a test of fixed horizon needs, for the runbook.

use super::draw::normal_quantile;
use super::sample::{metric_value, variance};
use super::spec::Spec;
use super::study::Detection;
use super::traffic::{Model, Phase, Traffic, metric_name};
use crate::engine::plan::{Signal, Statistic, Unit};
use serde::Serialize;

/// The runbook's section 2.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleSize {
    pub metric: String,
    /// Expected in the baseline bucket.
    pub baseline: f64,
    /// Standard deviation of one observation.
    pub deviation: f64,
    /// Relative.
    pub mde: f64,
    pub power: f64,
    /// Two-sided.
    pub alpha: f64,
    pub all: Stratum,
    /// Of each segment that the rule slices by: each needs as many units as the whole.
    pub strata: Vec<Stratum>,
    /// Units at which so many (`power`) of the simulated runs had detected the effect against the metric's good direction.
    pub sequential: Option<Detection>,
    /// Why there is no simulated figure.
    pub sequential_missing: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stratum {
    /// Empty, or `region=eu`.
    pub segment: String,
    /// Of all units.
    pub share: f64,
    /// Units by bucket, in the order of the rule file.
    pub buckets: Vec<(String, f64)>,
    pub total: f64,
    /// At the traffic described, with its ramp.
    pub days: f64,
}

/// Units that a two-sided test of fixed horizon needs in all buckets together, so that each pair of the baseline and another bucket
/// has its share; `difference` is absolute.
pub fn fixed_horizon(weights: &[f64], baseline: usize, variances: (f64, f64), difference: f64, alpha: f64, power: f64) -> f64 {
    let z = normal_quantile(1.0 - alpha / 2.0) + normal_quantile(power);
    let pair = |w: f64| (variances.0 / weights[baseline] + variances.1 / w) * (z / difference).powi(2);
    let others = weights.iter().enumerate().filter(|(i, w)| *i != baseline && **w > 0.0);
    others.map(|(_, w)| pair(*w)).fold(0.0, f64::max)
}

impl SampleSize {
    /// Of the primary metric; `None` where the rule file does not say enough, or the metric is neither a rate nor a mean.
    /// `scale` is the share of the described units that `spec` has.
    pub fn of(spec: &Spec, metric: &str, mde: f64, power: f64, scale: f64) -> Option<SampleSize> {
        let plan = &spec.plan;
        let guardrail = plan.guardrails.iter().find(|g| metric_name(&g.name) == metric);
        let (baseline, own, other) = match spec.traffic.metrics.get(metric) {
            Some(traffic) => {
                let value = metric_value(traffic, guardrail.map_or(Statistic::Mean, |g| g.statistic))?;
                let changed = match traffic.model {
                    Model::Rate { rate } => Model::Rate { rate: (rate * (1.0 + mde)).min(1.0) },
                    model => model,
                };
                (value, variance(traffic.model)?, variance(changed)?)
            }
            None => {
                let rate = spec.value(metric, Statistic::Share).filter(|p| *p > 0.0 && *p < 1.0)?;
                (rate, rate * (1.0 - rate), (rate * (1.0 + mde)).min(1.0) * (1.0 - (rate * (1.0 + mde)).min(1.0)))
            }
        };
        // A phase that leaves a bucket without traffic compares nothing.
        let compares = |p: &&Phase| p.weights.as_ref().is_none_or(|w| w.iter().all(|share| *share > 0.0));
        let weights = spec.traffic.phases.iter().rfind(compares).and_then(|p| p.weights.clone());
        let weights = weights.unwrap_or_else(|| plan.buckets.iter().map(|b| b.weight).collect());
        let total = fixed_horizon(&weights, plan.baseline(), (own, other), baseline * mde, plan.alpha, power);
        let stratum = |segment: String, share: f64| Stratum {
            segment,
            share,
            buckets: plan.buckets.iter().zip(&weights).map(|(b, w)| (b.name.clone(), (total * w).ceil())).collect(),
            total: total.ceil(),
            days: days(&spec.traffic, total / share * scale),
        };
        let strata = spec.traffic.segments.iter().flat_map(|(name, values)| {
            values.iter().filter(|(_, share)| *share > 0.0).map(move |(value, share)| (format!("{name}={value}"), *share))
        });
        Some(SampleSize {
            metric: metric.to_owned(),
            baseline,
            deviation: own.sqrt(),
            mde,
            power,
            alpha: plan.alpha,
            all: stratum(String::new(), 1.0),
            strata: strata.map(|(segment, share)| stratum(segment, share)).collect(),
            sequential: None,
            sequential_missing: None,
        })
    }
}

/// Days until so many units have come, through the phases of the ramp.
fn days(traffic: &Traffic, units: f64) -> f64 {
    let (mut days, mut rest) = (0.0, units);
    for (i, phase) in traffic.phases.iter().enumerate() {
        let rate = traffic.units_per_day * phase.traffic;
        let span = phase.span.filter(|_| i + 1 < traffic.phases.len()).map_or(f64::INFINITY, |span| span as f64 / 86_400_000.0);
        if rest <= rate * span {
            return days + rest / rate;
        }
        (days, rest) = (days + span, rest - rate * span);
    }
    days
}

/// Whether the metric's tests work on units, so that its sample size is a number of units.
pub fn is_of_units(spec: &Spec, metric: &str) -> bool {
    let guardrail = spec.plan.guardrails.iter().find(|g| metric_name(&g.name) == metric);
    guardrail.is_some_and(|g| {
        matches!(
            spec.plan.signals[g.signal],
            Signal::Rate { unit: Unit::User, .. } | Signal::Moments { unit: Unit::User, .. } | Signal::Count { unit: Unit::User, .. }
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_takes_its_time() {
        let text = std::fs::read_to_string("rules/search-ranking.yaml").unwrap();
        let plan = crate::rules::parse_str("r", &text, &mut Default::default(), None).rule.unwrap().plan;
        let mut traffic = Traffic::of(&plan, &Default::default());
        traffic.units_per_day = 1_000.0;
        assert_eq!(days(&traffic, 2_500.0), 2.5);
        let phase = |traffic, span| Phase { traffic, span, weights: None };
        traffic.phases = vec![phase(0.1, Some(86_400_000)), phase(1.0, Some(86_400_000))];
        assert_eq!((days(&traffic, 50.0), days(&traffic, 600.0)), (0.5, 1.5));
    }

    #[test]
    fn the_formula_gives_the_textbook_number() {
        // 10% against 12%, alpha 5% two-sided, power 80%: (1.959964 + 0.841621)^2 (0.09 + 0.1056) / 0.02^2 = 3,838 in each bucket.
        let total = fixed_horizon(&[0.5, 0.5], 0, (0.09, 0.1056), 0.02, 0.05, 0.8);
        assert!((total / 2.0 - 3_838.0).abs() < 1.0, "{total}");
        // Unequal shares need more in all.
        assert!(fixed_horizon(&[0.9, 0.1], 0, (0.09, 0.1056), 0.02, 0.05, 0.8) > 2.0 * total);
    }
}
