//! The runbook's sample sizes: what a test of fixed horizon needs.

use super::sample::{metric_value, variance};
use super::spec::Spec;
use super::study::Detection;
use super::traffic::{Model, Phase, Traffic, metric_name};
use crate::engine::plan::{Signal, Statistic, Unit};
use crate::engine::stats::size;
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
        let total = size::fixed_horizon(&weights, plan.baseline(), (own, other), baseline * mde, plan.alpha, power);
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
    let ramp: Vec<(f64, Option<f64>)> = traffic.phases.iter().map(|p| (p.traffic, p.span.map(|span| span as f64 / 86_400_000.0))).collect();
    size::days(traffic.units_per_day, &ramp, units)
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
