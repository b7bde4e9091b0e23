//! What the traffic of an experiment is assumed to be.

use super::draw::Z95;
use crate::engine::eligible::Trait;
use crate::engine::plan::{self, Plan, Signal, Statistic, Unit};
use crate::engine::time::Millis;
use crate::rules::Planning;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Traffic of one experiment. Shares lie in 0..=1, times are in ms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Traffic {
    /// Units exposed for the first time in a day, at full traffic.
    pub units_per_day: f64,
    pub requests: Requests,
    pub latency: Latency,
    /// Share of requests that end in a timeout instead, and how long that takes.
    pub timeouts: f64,
    pub timeout_ms: f64,
    pub errors: f64,
    /// How alike the errors of one unit are: the correlation of the normal variables behind them.
    pub errors_icc: f64,
    pub workflows: Workflows,
    /// Per unit, Poisson.
    pub tickets: f64,
    pub compliance_flags: f64,
    /// Metrics of the rule file, by name.
    pub metrics: BTreeMap<String, MetricTraffic>,
    /// In order; the last goes on. Never empty.
    pub phases: Vec<Phase>,
    /// Attributes of units, with the share of each value.
    pub segments: Vec<(String, Vec<(String, f64)>)>,
    /// By how much rates and times of all buckets have grown at the end, in a straight line: 0.2 is by a fifth.
    pub drift: f64,
    /// What was not given: keys whose value is an assumption of this program.
    pub assumed: Vec<String>,
}

/// Requests of one unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Requests {
    /// Mean.
    pub per_unit: f64,
    pub distribution: Spread,
    /// Mean time between two requests of a unit, exponential.
    pub gap_ms: f64,
}

/// How a number of requests varies from unit to unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// The same for all (a fraction by chance).
    Fixed,
    Geometric,
    /// A few units make most of the requests: tail index, and the largest number.
    Pareto {
        tail: f64,
        max: f64,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    pub shape: Shape,
    /// How alike the latencies of one unit are: share of the variance (of the normal variable behind it) that is the unit's.
    pub icc: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    LogNormal(LogNormal),
    Bimodal {
        fast: LogNormal,
        slow: LogNormal,
        slow_share: f64,
    },
    Pareto {
        min: f64,
        tail: f64,
    },
    /// Values below 0 are 0.
    Normal {
        mean: f64,
        sd: f64,
    },
    Exponential {
        mean: f64,
    },
    Constant {
        value: f64,
    },
}

/// By its 50th and 95th percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LogNormal {
    pub p50: f64,
    pub p95: f64,
}

impl LogNormal {
    pub fn sigma(self) -> f64 {
        (self.p95 / self.p50).ln() / Z95
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workflows {
    /// Share of units that begin one.
    pub share: f64,
    /// Share of those that do not complete it.
    pub abandoned: f64,
    /// Share of the abandoned ones that say so.
    pub explicit: f64,
    /// Mean time to completion, exponential.
    pub completes_ms: f64,
}

/// A metric of the rule file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetricTraffic {
    pub model: Model,
    /// Events of one unit (mean; Poisson), where the metric's observations are events.
    pub per_unit: f64,
    /// Share of requests that the metric is about, where it is made of requests.
    pub share: f64,
    /// Mean time from the exposure, exponential.
    pub delay_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    Rate {
        rate: f64,
    },
    /// `cv` is the coefficient of variation of values that are not 0, of which there is the share `1 - zero`; the covariate's
    /// `correlation` is that of the normal variables behind both.
    Mean {
        mean: f64,
        cv: f64,
        zero: f64,
        correlation: f64,
        normal: bool,
    },
    Quantile(LogNormal),
    Count,
}

/// A step of the ramp.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Of the units of a day.
    pub traffic: f64,
    pub span: Option<Millis>,
    /// By bucket; the rule's own where absent.
    pub weights: Option<Vec<f64>>,
}

impl Traffic {
    /// What a rule file says about its traffic, and assumptions for the rest.
    pub fn of(plan: &Plan, planning: &Planning) -> Traffic {
        let mut assumed: Vec<String> = ["requests", "latency", "errors"].map(str::to_owned).into();
        if planning.units_per_day.is_none() {
            assumed.push("units".to_owned());
        }
        let uses = |is: fn(&Signal) -> bool| plan.signals.iter().any(is);
        let workflows = uses(|s| matches!(s, Signal::Abandonment { .. })) || plan.signals.iter().any(|s| event(s).starts_with("workflow_"));
        let tickets = plan.signals.iter().any(|s| event(s) == "ticket");
        assumed.extend(workflows.then(|| "workflows".to_owned()));
        assumed.extend(tickets.then(|| "tickets".to_owned()));
        let mut metrics = BTreeMap::new();
        for guardrail in &plan.guardrails {
            let name = metric_name(&guardrail.name);
            if let Some(metric) = metric(&plan.signals[guardrail.signal], guardrail.statistic, guardrail.expected)
                && !built_in(name)
            {
                if guardrail.expected.is_none() || !matches!(metric.model, Model::Rate { .. }) {
                    assumed.push(format!("metrics.{name}"));
                }
                metrics.insert(name.to_owned(), metric);
            }
        }
        if let Some((name, metric)) = primary(planning).filter(|(name, _)| !metrics.contains_key(name)) {
            if planning.primary_baseline.is_none() || !matches!(metric.model, Model::Rate { .. }) {
                assumed.push(format!("metrics.{name}"));
            }
            metrics.insert(name, metric);
        }
        // Where the phases say the shares of the buckets, all of the traffic takes part.
        let phase = |p: &plan::Phase| Phase {
            traffic: if p.weights.is_some() { 1.0 } else { p.traffic },
            span: p.span,
            weights: p.weights.clone(),
        };
        let phases: Vec<Phase> = plan.phases.iter().map(phase).filter(|p| p.traffic > 0.0).collect();
        let mut attributes = planning.segments.clone();
        attributes.extend(plan.eligibility.population.iter().filter_map(|(of, _)| of.attribute().map(str::to_owned)));
        let mut seen = BTreeSet::new();
        attributes.retain(|name| seen.insert(name.clone()));
        assumed.extend(attributes.iter().map(|s| format!("segments.{s}")));
        Traffic {
            units_per_day: planning.units_per_day.filter(|u| *u > 0.0).unwrap_or(50_000.0),
            requests: Requests { per_unit: 5.0, distribution: Spread::Geometric, gap_ms: 20_000.0 },
            latency: Latency { shape: Shape::LogNormal(LogNormal { p50: 180.0, p95: 420.0 }), icc: 0.1 },
            timeouts: 0.0,
            timeout_ms: 10_000.0,
            errors: 0.01,
            errors_icc: 0.0,
            workflows: Workflows { share: if workflows { 0.5 } else { 0.0 }, abandoned: 0.2, explicit: 0.5, completes_ms: 180_000.0 },
            tickets: if tickets { 0.005 } else { 0.0 },
            compliance_flags: 0.0,
            metrics,
            phases: if phases.is_empty() { vec![Phase { traffic: 1.0, span: None, weights: None }] } else { phases },
            segments: attributes.into_iter().map(|name| (name.clone(), values_of(plan, &name))).collect(),
            drift: 0.0,
            assumed,
        }
    }

    /// The length of the ramp, where every phase but the last has one.
    pub fn ramp(&self) -> Option<Millis> {
        self.phases.iter().take(self.phases.len().saturating_sub(1)).map(|p| p.span).sum()
    }
}

/// The metric that a guardrail is about: a second one on the same metric is called `NAME#2`.
pub fn metric_name(guardrail: &str) -> &str {
    match guardrail.rsplit_once('#') {
        Some((name, number)) if number.parse::<u32>().is_ok() => name,
        _ => guardrail,
    }
}

/// Metrics that need no entry under `metrics` in a rule file.
pub fn built_in(name: &str) -> bool {
    crate::rules::BUILT_IN.contains(&name)
}

/// The event that feeds a signal; of abandonment, none.
pub fn event(signal: &Signal) -> &str {
    match signal {
        Signal::Distribution { source, .. } | Signal::Rate { source, .. } => &source.event,
        Signal::Count { source, .. } | Signal::Moments { source, .. } => &source.event,
        Signal::Retention { .. } | Signal::Abandonment { .. } => "",
    }
}

/// Values of an attribute, equally frequent: those that the population asks for, of which the exclusions leave some.
fn values_of(plan: &Plan, name: &str) -> Vec<(String, f64)> {
    let named = |of: &Trait| of.attribute() == Some(name);
    let asked = plan.eligibility.population.iter().find(|(of, _)| named(of)).map(|(_, values)| values.iter().cloned().collect());
    let mut values: Vec<String> = asked.unwrap_or_else(|| vec!["a".to_owned(), "b".to_owned()]);
    values.retain(|value| !plan.eligibility.exclude.iter().any(|(of, excluded)| named(of) && excluded.contains(value)));
    let share = 1.0 / values.len().max(1) as f64;
    values.into_iter().map(|value| (value, share)).collect()
}

/// The primary metric, which no guardrail need watch: its sample size is asked for.
fn primary(planning: &Planning) -> Option<(String, MetricTraffic)> {
    let expected = planning.primary_baseline;
    let model = match planning.primary_kind.as_deref()? {
        "rate" => Model::Rate { rate: expected.unwrap_or(0.1) },
        "mean" => Model::Mean { mean: expected.unwrap_or(100.0), cv: 1.0, zero: 0.0, correlation: 0.0, normal: false },
        _ => return None,
    };
    Some((planning.primary.clone()?, MetricTraffic { model, per_unit: 1.0, share: 0.2, delay_ms: 60_000.0 }))
}

/// Traffic of a metric of which nothing is known but how it is measured.
fn metric(signal: &Signal, statistic: Statistic, expected: Option<f64>) -> Option<MetricTraffic> {
    let (model, per_unit) = match (signal, statistic) {
        (Signal::Rate { unit, .. }, _) => (Model::Rate { rate: expected.unwrap_or(0.1) }, if *unit == Unit::User { 1.0 } else { 5.0 }),
        (Signal::Moments { covariate, .. }, _) => {
            let correlation = if covariate.is_some() { 0.5 } else { 0.0 };
            (Model::Mean { mean: expected.unwrap_or(100.0), cv: 1.0, zero: 0.0, correlation, normal: false }, 1.0)
        }
        (Signal::Distribution { .. }, _) => {
            let p50 = expected.unwrap_or(180.0);
            (Model::Quantile(LogNormal { p50, p95: p50 * 2.33 }), 5.0)
        }
        (Signal::Count { .. }, _) => (Model::Count, expected.unwrap_or(0.05)),
        (Signal::Abandonment { .. } | Signal::Retention { .. }, _) => return None,
    };
    Some(MetricTraffic { model, per_unit, share: 0.2, delay_ms: 60_000.0 })
}
