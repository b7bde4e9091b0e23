//! Metrics that guardrails can name, and the units that fit each.

use super::quantity::Quantity;
use crate::engine::plan::{Hit, Margin, Signal, Source, Statistic, Unit, Value};
use crate::engine::time::Millis;

/// Metrics that need no entry under `metrics`.
pub const BUILT_IN: &[&str] =
    &["latency_p50", "latency_p90", "latency_p95", "latency_p99", "error_rate", "abandonment", "tickets", "compliance_flags", "exposures"];

/// How a metric is measured: what a guardrail takes from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    pub signal: Signal,
    pub statistic: Statistic,
    pub measure: Measure,
    pub higher_is_worse: bool,
    /// Expected value in the baseline bucket.
    pub expected: Option<f64>,
}

/// The dimension of a metric, which decides the units of its limit and margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Milliseconds.
    Time,
    /// A share of observations.
    Share,
    /// Events per exposed unit.
    PerUnit,
    Count,
    /// A quantile of a field whose unit is not known.
    Plain,
    Mean,
}

impl Measure {
    /// As people read it.
    pub fn unit(self) -> &'static str {
        match self {
            Measure::Time => "ms",
            Measure::Share => "%",
            Measure::PerUnit => "per unit",
            Measure::Count | Measure::Plain | Measure::Mean => "",
        }
    }

    /// The absolute bound that a `limit` asks for: ms, a share, a number per unit, or a count.
    ///
    /// # Errors
    /// The code and what fits instead.
    pub fn limit(self, quantity: Quantity) -> Result<f64, Misfit> {
        match (self, quantity) {
            (Measure::Mean, _) => Err(Misfit::unit("a mean has no limit: bound it with `max_increase: 10%`")),
            (Measure::Time, Quantity::Span(ms)) => Ok(ms),
            (Measure::Share, Quantity::Percent(share)) if share > 1.0 => Err(Misfit::range("a share lies between 0% and 100%")),
            (Measure::Share | Measure::PerUnit, Quantity::Percent(share)) => Ok(share),
            (Measure::PerUnit | Measure::Count | Measure::Plain, Quantity::Number(n)) => Ok(n),
            (Measure::Time, Quantity::Number(n)) => Err(Misfit::missing(format!("`{n}ms` is milliseconds, `{n}s` seconds"))),
            (Measure::Share, Quantity::Number(n)) => Err(Misfit::missing(format!("write a share of the observations: `{n}%`"))),
            (Measure::Time, _) => Err(Misfit::unit("the limit of a time is a time: `1500ms`, `2s`")),
            (Measure::Share, _) => Err(Misfit::unit("the limit of a rate is a share: `5%`")),
            (Measure::PerUnit, _) => Err(Misfit::unit("per exposed unit: `0.02` or `2%`")),
            (Measure::Count, _) => Err(Misfit::unit("the limit of a count is a bare number: `0`")),
            (Measure::Plain, _) => Err(Misfit::unit("a bare number, in the field's own unit")),
        }
    }

    /// The bound against the baseline bucket that a `max_increase` asks for.
    ///
    /// # Errors
    /// The code and what fits instead.
    pub fn margin(self, quantity: Quantity) -> Result<Margin, Misfit> {
        match (self, quantity) {
            (_, Quantity::Percent(share)) => Ok(Margin::Relative(share)),
            (Measure::Time, Quantity::Span(ms)) => Ok(Margin::Absolute(ms)),
            (Measure::Share, Quantity::Points(share)) if share > 1.0 => Err(Misfit::range("a share lies between 0% and 100%")),
            (Measure::Share, Quantity::Points(share)) => Ok(Margin::Absolute(share)),
            (Measure::Time, Quantity::Number(n)) => {
                Err(Misfit::missing(format!("`{n}%` is against the baseline bucket, `{n}ms` is added milliseconds")))
            }
            (Measure::Share, Quantity::Number(n)) => {
                Err(Misfit::missing(format!("`{n}pp` is percentage points, `{n}%` is relative to the baseline bucket")))
            }
            (_, Quantity::Number(n)) => Err(Misfit::missing(format!("`{n}%` is against the baseline bucket"))),
            (Measure::Time, _) => Err(Misfit::unit("a time grows by `%` or by a time such as `20ms`")),
            (Measure::Share, _) => Err(Misfit::unit("a rate grows by `%` or by points such as `0.5pp`")),
            _ => Err(Misfit::unit("this metric grows by `%`")),
        }
    }
}

/// A quantity that does not fit its metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Misfit {
    pub code: &'static str,
    pub message: &'static str,
    pub label: String,
}

impl Misfit {
    fn missing(label: String) -> Misfit {
        Misfit { code: "GR2001", message: "no unit", label }
    }

    fn unit(label: &str) -> Misfit {
        Misfit { code: "GR2003", message: "a unit that does not fit the metric", label: label.to_owned() }
    }

    fn range(label: &str) -> Misfit {
        Misfit { code: "GR2203", message: "more than the whole", label: label.to_owned() }
    }
}

/// A built-in metric by its name; `within` and `workflow` shape `abandonment` alone.
pub fn built_in(name: &str, within: Millis, workflow: Option<String>) -> Option<Metric> {
    let source = |event: &str| Source { event: event.to_owned(), filter: Vec::new() };
    let (signal, statistic, measure) = match name {
        "latency_p50" => latency(500_000),
        "latency_p90" => latency(900_000),
        "latency_p95" => latency(950_000),
        "latency_p99" => latency(990_000),
        "error_rate" => (Signal::Rate { source: source("request"), hit: Hit::Error, unit: Unit::Event }, Statistic::Share, Measure::Share),
        "abandonment" => (Signal::Abandonment { within, workflow }, Statistic::Share, Measure::Share),
        "tickets" => (Signal::Count { source: source("ticket"), unit: Unit::User }, Statistic::PerUnit, Measure::PerUnit),
        "compliance_flags" => (Signal::Count { source: source("compliance_flag"), unit: Unit::Event }, Statistic::Count, Measure::Count),
        "exposures" => (Signal::Count { source: source("exposure"), unit: Unit::Event }, Statistic::Exposures, Measure::Count),
        _ => return None,
    };
    Some(Metric { signal, statistic, measure, higher_is_worse: true, expected: None })
}

fn latency(ppm: u32) -> (Signal, Statistic, Measure) {
    let source = Source { event: "request".to_owned(), filter: Vec::new() };
    (Signal::Distribution { source, value: Value::Latency }, Statistic::Quantile { ppm }, Measure::Time)
}
