//! The `rollout` section: the ramp, its shares of traffic, and how long it is watched.

use super::diagnostic::{Faults, quote};
use super::lower::{Context, share, span};
use super::yaml::Node;
use crate::engine::plan::{Bucket, Phase};
use crate::engine::time::Millis;

#[derive(Default)]
pub(super) struct Rollout {
    pub phases: Vec<Phase>,
    pub holdback: f64,
    pub watch_after_full: Option<Millis>,
    pub warm_up: Millis,
}

pub(super) fn read(context: &Context<'_>, faults: &mut Faults) -> Rollout {
    let section = context.root.get("rollout");
    let key = |key: &str| section.and_then(|r| r.get(key));
    let holdback = context.root.get("eligibility").and_then(|e| e.get("holdback")).and_then(share).unwrap_or(0.0);
    let kind = context.root.get("overview").and_then(|o| o.get("type")).and_then(Node::text);
    let ramp = (kind == Some("phased_rollout")).then_some(holdback);
    Rollout {
        phases: phases(key("phases").map_or(&[][..], Node::list), ramp, &context.buckets, faults),
        holdback,
        watch_after_full: key("watch_after_full").and_then(span),
        warm_up: key("warm_up").and_then(span).unwrap_or(0),
    }
}

/// `ramp` is the holdback of an experiment whose phases say the shares of the buckets.
fn phases(list: &[Node], ramp: Option<f64>, buckets: &[Bucket], faults: &mut Faults) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    for (i, phase) in list.iter().enumerate() {
        let given = phase.get("name").and_then(|n| Some((n, n.text()?)));
        let name = given.map_or_else(|| format!("phase {}", i + 1), |(_, text)| text.to_owned());
        if phases.iter().any(|p| p.name == name) {
            let at = given.map_or(&phase.span, |(node, _)| &node.span);
            faults.error(at, "GR2105", format!("two phases are called {}", quote(&name)), "choose another name");
        }
        let traffic = phase.get("traffic").and_then(share).unwrap_or(0.0);
        let weights = ramp.map(|holdback| shares(traffic * (1.0 - holdback), buckets));
        phases.push(Phase { name, traffic, span: phase.get("for").and_then(span), weights });
    }
    phases
}

/// Shares of the buckets when those beside the baseline get `traffic` together, in the proportion of their weights.
fn shares(traffic: f64, buckets: &[Bucket]) -> Vec<f64> {
    let others: f64 = buckets.iter().filter(|b| !b.baseline).map(|b| b.weight).sum();
    buckets.iter().map(|b| if b.baseline { 1.0 - traffic } else { traffic * b.weight / others }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn treatments_share_the_traffic_and_the_baseline_keeps_the_rest() {
        let bucket = |weight: f64, baseline: bool| Bucket { name: String::new(), weight, baseline };
        let buckets = [bucket(0.5, true), bucket(0.3, false), bucket(0.2, false)];
        assert_eq!(shares(0.5, &buckets), [0.5, 0.3, 0.2]);
        assert_eq!(shares(1.0, &buckets), [0.0, 0.6, 0.4]);
    }
}
