//! What a comparison that trips says, in a sentence.

use super::act::show;
use super::relative::{Found, Look};
use super::{Hypothesis, Judge};
use crate::engine::plan::{Guardrail, Margin, Statistic};

impl Judge {
    pub(super) fn reason(&self, of: Hypothesis, look: &Look, interval: Option<[f64; 2]>) -> String {
        let (guardrail, bucket) = (&self.plan.guardrails[of.guardrail], of.bucket);
        let (name, baseline) = (&self.plan.buckets[bucket].name, &self.plan.buckets[self.plan.baseline()].name);
        let unit = compared_unit(guardrail);
        let [c, t] = look.values;
        let (change, margin) = match guardrail.max_increase {
            Some(Margin::Relative(r)) => (c.zip(t).filter(|(c, _)| *c != 0.0).map(|(c, t)| signed(t / c - 1.0, "%")), signed(r, "%")),
            Some(Margin::Absolute(d)) => (c.zip(t).map(|(c, t)| signed(t - c, points(unit))), signed(d, points(unit))),
            None => (None, String::new()),
        };
        let shown = |value: Option<f64>| value.map_or("unknown".to_owned(), |v| show(v, unit));
        let word = if guardrail.higher_is_worse { "above" } else { "below" };
        let what =
            if guardrail.statistic == Statistic::PerUnit { format!("units with {}", guardrail.name) } else { guardrail.name.clone() };
        let place = of.segment.map_or(String::new(), |segment| format!(" in {}", self.state.segments.list[segment].name));
        let mut text = format!("{what} of {name}{place} is {}, {baseline} {}", shown(t), shown(c));
        if let Some(change) = change {
            text += &format!(": {change}");
        }
        if let Some([low, high]) = interval {
            let unit = if matches!(guardrail.max_increase, Some(Margin::Relative(_))) { "%" } else { points(unit) };
            text += &format!(" (interval {} to {})", signed(low, unit), signed(high, unit));
        }
        let none = margin.trim_matches(|c: char| !c.is_ascii_digit() || c == '0').is_empty();
        let worst = if guardrail.higher_is_worse || none { margin } else { margin.replacen('+', "-", 1) };
        text += &format!(", proved {word} the margin of {worst}");
        if let Some(since) = look.since {
            let ago = (self.state.at.map_or(0, |at| at.0 - since.0 + 1) * self.pane_ms) as f64 / 1_000.0;
            text += &format!(", by the last {ago:.0} s");
        }
        match look.found {
            Found::LogE(_) => {}
            Found::Probability(harm) => text += &format!(" with a posterior probability of {harm:.4}"),
            Found::P(p) if p < 1e-300 => text += " at the end of the experiment, p < 1e-300",
            Found::P(p) => text += &format!(" at the end of the experiment, p = {p:.2e}"),
        }
        text
    }
}

/// Unit of what is compared: of events per unit, the share of units that have one.
pub(super) fn compared_unit(guardrail: &Guardrail) -> &str {
    if guardrail.statistic == Statistic::PerUnit { "%" } else { &guardrail.unit }
}

/// `+12.3%`, `+0.51pp`, `-20 ms`.
fn signed(value: f64, unit: &str) -> String {
    // No sign for what rounds to nothing.
    let value = if (value * 1e4).round() == 0.0 { 0.0 } else { value };
    match unit {
        "%" => format!("{:+.1}%", 100.0 * value),
        "pp" => format!("{:+.2}pp", 100.0 * value),
        "" => format!("{value:+.3}"),
        _ => format!("{value:+.1} {unit}"),
    }
}

/// Unit of a difference.
fn points(unit: &str) -> &str {
    if unit == "%" { "pp" } else { unit }
}
