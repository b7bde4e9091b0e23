//! What a bad treatment does.

use super::traffic::{Traffic, built_in, metric_name};
use crate::engine::plan::{Guardrail, Margin, Plan, Statistic};
use crate::rules::Planning;
use crate::rules::diagnostic::{nearest, quote};
use crate::rules::quantity::Quantity;
use serde::Serialize;
use std::fmt;

/// A change of one metric in the affected bucket.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Effect {
    /// A guarded metric's name, or `timeouts`.
    pub metric: String,
    pub size: Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// 0.2 is a fifth more.
    Relative(f64),
    /// In the metric's own unit: ms, or a share (0.01 is a percentage point).
    Absolute(f64),
}

impl Size {
    pub fn apply(self, value: f64) -> f64 {
        match self {
            Size::Relative(change) => value * (1.0 + change),
            Size::Absolute(change) => value + change,
        }
    }

    pub fn value(self) -> f64 {
        let (Size::Relative(value) | Size::Absolute(value)) = self;
        value
    }

    /// The same kind of change of another size.
    pub fn resized(self, value: f64) -> Size {
        match self {
            Size::Relative(_) => Size::Relative(value),
            Size::Absolute(_) => Size::Absolute(value),
        }
    }
}

/// Share of requests that time out: an effect beside the metrics.
pub const TIMEOUTS: &str = "timeouts";

impl Effect {
    /// Parses `METRIC=CHANGE`, such as `latency_p95=+20%` or `error_rate=+1pp`.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn parse(text: &str, plan: &Plan) -> Result<Effect, String> {
        let (metric, change) =
            text.split_once('=').ok_or_else(|| format!("{}: write METRIC=CHANGE, such as latency_p95=+20%", quote(text)))?;
        let guarded = || plan.guardrails.iter().map(|g| metric_name(&g.name)).chain([TIMEOUTS]);
        if !guarded().any(|name| name == metric) {
            let hint = nearest(metric, guarded()).map_or_else(
                || format!("this rule file guards {}", guarded().collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean {}?", quote(near)),
            );
            return Err(format!("no guardrail watches {}; {hint}", quote(metric)));
        }
        let found = plan.guardrails.iter().find(|g| metric_name(&g.name) == metric);
        let unit = found.map_or("%", |g| g.unit.as_str());
        let size = match (Quantity::parse(change), unit) {
            (Some(Quantity::Percent(share)), _) if metric != TIMEOUTS => Size::Relative(share),
            (Some(Quantity::Points(points) | Quantity::Percent(points)), "%") => Size::Absolute(points),
            (Some(Quantity::Span(ms)), "ms") => Size::Absolute(ms),
            (Some(Quantity::Number(n)), "per unit" | "") => Size::Absolute(n),
            (Some(_), "%") => return Err(format!("{metric} changes by `%` (relative) or `pp` (points), not by {}", quote(change))),
            (Some(_), "ms") => {
                return Err(format!("{metric} changes by `%` (relative) or by a time such as `20ms`, not by {}", quote(change)));
            }
            (Some(_), _) => return Err(format!("{metric} changes by `%` or by a plain number, not by {}", quote(change))),
            (None, _) => return Err(format!("{} is no change: write `+20%`, `+1pp` or `+20ms`", quote(change))),
        };
        if size.value() == 0.0 || matches!(size, Size::Relative(r) if r <= -1.0) {
            return Err(format!("{} is no change that can be made", quote(change)));
        }
        Ok(Effect { metric: metric.to_owned(), size })
    }

    /// What is worth knowing of a rule file: 1.5, 2 and 4 times each margin, beyond limits likewise, and for a margin of zero the
    /// smallest effect worth detecting.
    pub fn defaults(plan: &Plan, planning: &Planning, traffic: &Traffic) -> Vec<Effect> {
        let mut all: Vec<Effect> = Vec::new();
        for guardrail in &plan.guardrails {
            let metric = metric_name(&guardrail.name);
            let sizes = sizes(guardrail, metric, planning, traffic);
            let new = sizes.into_iter().map(|size| Effect { metric: metric.to_owned(), size });
            all.extend(new.filter(|e| e.possible(traffic)).filter(|e| !all.contains(e)).collect::<Vec<_>>());
        }
        all
    }

    /// Whether the change leaves a share a share.
    pub fn possible(&self, traffic: &Traffic) -> bool {
        let share = match self.metric.as_str() {
            "error_rate" => traffic.errors,
            "abandonment" => traffic.workflows.abandoned,
            TIMEOUTS => traffic.timeouts,
            name => match traffic.metrics.get(name).map(|m| m.model) {
                Some(super::traffic::Model::Rate { rate }) => rate,
                _ => return true,
            },
        };
        (0.0..1.0).contains(&self.size.apply(share))
    }
}

fn sizes(guardrail: &Guardrail, metric: &str, planning: &Planning, traffic: &Traffic) -> Vec<Size> {
    let sign = if guardrail.higher_is_worse { 1.0 } else { -1.0 };
    let times = |factors: [f64; 3], of: f64, kind: fn(f64) -> Size| factors.map(|f| kind(sign * f * of)).to_vec();
    match (guardrail.max_increase, guardrail.limit) {
        (Some(Margin::Relative(0.0)), _) if guardrail.primary => times([1.0, 2.0, 4.0], planning.mde.unwrap_or(0.05), Size::Relative),
        (Some(Margin::Relative(0.0)), _) => times([1.0, 2.0, 4.0], 0.05, Size::Relative),
        (Some(Margin::Absolute(0.0)), _) => times([1.0, 2.0, 4.0], 0.005, Size::Absolute),
        (Some(Margin::Relative(margin)), _) => times([1.5, 2.0, 4.0], margin, Size::Relative),
        (Some(Margin::Absolute(margin)), _) => times([1.5, 2.0, 4.0], margin, Size::Absolute),
        (None, Some(limit)) => match base(guardrail, metric, traffic) {
            // Counts have no base: the number of events depends on the window.
            None if metric == "compliance_flags" => vec![Size::Absolute(1e-4), Size::Absolute(1e-3)],
            None => Vec::new(),
            Some(base) => [1.1, 1.5, 2.0]
                .iter()
                .map(|f| Size::Relative(((f * limit / base - 1.0) * 100.0).ceil() / 100.0))
                .filter(|s| s.value() > 0.0)
                .collect(),
        },
        (None, None) => Vec::new(),
    }
}

/// The metric's value in healthy traffic, where a formula gives it.
fn base(guardrail: &Guardrail, metric: &str, traffic: &Traffic) -> Option<f64> {
    let value = match (metric, guardrail.statistic) {
        ("error_rate", _) => traffic.errors,
        ("abandonment", _) => traffic.workflows.abandoned,
        ("tickets", _) => traffic.tickets,
        (name, Statistic::Quantile { ppm }) if built_in(name) => super::sample::latency_quantile(&traffic.latency, f64::from(ppm) / 1e6),
        (name, statistic) => super::sample::metric_value(traffic.metrics.get(name)?, statistic)?,
    };
    Some(value).filter(|v| *v > 0.0)
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let points = matches!(self.metric.as_str(), "error_rate" | "abandonment" | TIMEOUTS);
        let round = |v: f64| (v * 1e6).round() / 1e6;
        match self.size {
            Size::Relative(change) => write!(f, "{} {:+}%", self.metric, round(change * 100.0)),
            Size::Absolute(change) if points => write!(f, "{} {:+}pp", self.metric, round(change * 100.0)),
            Size::Absolute(change) if self.metric.starts_with("latency") => write!(f, "{} {:+}ms", self.metric, round(change)),
            Size::Absolute(change) => write!(f, "{} {:+}", self.metric, round(change)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::parse_str;

    #[test]
    fn effects_are_parsed_in_the_unit_of_their_metric() {
        let text = std::fs::read_to_string("rules/new-checkout.yaml").unwrap();
        let plan = parse_str("r", &text, &mut Default::default(), None).rule.unwrap().plan;
        let of = |text: &str| Effect::parse(text, &plan).map(|e| (e.size, e.to_string()));
        assert_eq!(of("latency_p95=+20%"), Ok((Size::Relative(0.2), "latency_p95 +20%".into())));
        assert_eq!(of("latency_p95=35ms"), Ok((Size::Absolute(35.0), "latency_p95 +35ms".into())));
        assert_eq!(of("error_rate=+1pp"), Ok((Size::Absolute(0.01), "error_rate +1pp".into())));
        assert_eq!(of("orders=-2%"), Ok((Size::Relative(-0.02), "orders -2%".into())));
        assert_eq!(of("timeouts=1%"), Ok((Size::Absolute(0.01), "timeouts +1pp".into())));
        for (bad, why) in [
            ("latency_p95", "METRIC=CHANGE"),
            ("latency_p59=+20%", "did you mean `latency_p95`?"),
            ("error_rate=20ms", "`pp` (points)"),
            ("latency_p95=1pp", "such as `20ms`"),
            ("error_rate=lots", "no change"),
            ("latency_p95=0%", "can be made"),
            ("orders=-100%", "can be made"),
        ] {
            assert!(Effect::parse(bad, &plan).unwrap_err().contains(why), "{bad}: {:?}", Effect::parse(bad, &plan));
        }
    }

    #[test]
    fn defaults_lie_beyond_the_margins_on_the_bad_side() {
        let text = std::fs::read_to_string("rules/new-checkout.yaml").unwrap();
        let plan = parse_str("r", &text, &mut Default::default(), None).rule.unwrap().plan;
        let planning = Planning::of(&text);
        let all = Effect::defaults(&plan, &planning, &Traffic::of(&plan, &planning));
        let text: Vec<String> = all.iter().map(Effect::to_string).collect();
        for wanted in ["latency_p95 +15%", "error_rate +2pp", "abandonment +4pp", "tickets +80%", "orders -1%", "compliance_flags +0.001"] {
            assert!(text.iter().any(|t| t == wanted), "no {wanted} in {text:?}");
        }
    }
}
