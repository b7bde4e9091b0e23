//! Bounds that nothing can exceed: they look like protection, and are none.

use super::diagnostic::Faults;
use super::guardrails::Guardrails;
use super::lower::{Context, share};
use super::yaml::Node;
use crate::engine::histogram::HIGHEST;
use crate::engine::plan::{Guardrail, Margin, Statistic};

/// Reports them in a file without errors.
pub(super) fn check(context: &Context<'_>, found: &Guardrails, faults: &mut Faults) {
    if faults.has_errors() {
        return;
    }
    let section = |name: &str| context.root.get(name);
    let primary = section("success").and_then(|s| s.get("primary"));
    let nodes = section("guardrails").map_or(&[][..], Node::list).iter().chain(primary);
    for (guardrail, node) in found.guardrails.iter().zip(nodes) {
        let margin = if guardrail.primary { "stop_on_negative" } else { "max_increase" };
        for (key, why) in [("limit", above_limit(guardrail)), (margin, above_margin(guardrail))] {
            report(node.get(key), why, faults);
        }
    }
    for name in ["mixed_assignment", "ineligible", "missing", "schema_violations"] {
        let max = section("quality").and_then(|q| q.get(name)).and_then(|check| check.get("max"));
        report(max.filter(|node| share(node) == Some(1.0)), Some("more than all of them there cannot be".to_owned()), faults);
    }
}

fn report(node: Option<&Node>, why: Option<String>, faults: &mut Faults) {
    if let (Some(node), Some(why)) = (node, why) {
        let fault = faults.at(&node.span, "GR2613", "a bound that can never be exceeded").with_label(why);
        faults.push(fault.as_warning());
    }
}

/// Why a value cannot be worse than the limit.
fn above_limit(guardrail: &Guardrail) -> Option<String> {
    let limit = guardrail.limit?;
    let most = HIGHEST as f64 / 1_000.0;
    match guardrail.statistic {
        _ if !guardrail.higher_is_worse => (limit <= 0.0).then(|| "nothing lies below 0".to_owned()),
        Statistic::Share => (limit >= 1.0).then(|| "a rate is at most 100%".to_owned()),
        Statistic::Quantile { .. } if guardrail.unit == "ms" => {
            (limit >= most).then(|| "what took longer than 1h is counted as 1h".to_owned())
        }
        Statistic::Quantile { .. } => (limit >= most).then(|| format!("values above {most} are counted as {most}")),
        _ => None,
    }
}

/// Why a bucket cannot be worse than the baseline by more than the margin.
fn above_margin(guardrail: &Guardrail) -> Option<String> {
    let margin = guardrail.max_increase?;
    let is_share = guardrail.statistic == Statistic::Share;
    match (margin, guardrail.expected.filter(|_| is_share)) {
        (Margin::Relative(m), _) if !guardrail.higher_is_worse && m >= 1.0 => Some("nothing falls by more than all of it".to_owned()),
        (Margin::Absolute(m), _) if is_share && m >= 1.0 => Some("between 0% and 100% there are 100 points".to_owned()),
        (Margin::Relative(m), Some(p)) if guardrail.higher_is_worse && p * (1.0 + m) >= 1.0 => {
            Some(format!("from the expected {} it would have to pass 100%", percent(p)))
        }
        (Margin::Absolute(m), Some(p)) if guardrail.higher_is_worse && p + m >= 1.0 => {
            Some(format!("from the expected {} it would have to pass 100%", percent(p)))
        }
        (Margin::Absolute(m), Some(p)) if !guardrail.higher_is_worse && p - m <= 0.0 => {
            Some(format!("from the expected {} it would have to fall below 0%", percent(p)))
        }
        _ => None,
    }
}

/// A share as people write it, without the noise of its last digits.
pub(super) fn percent(share: f64) -> String {
    format!("{}%", (share * 1e6).round() / 1e4)
}
