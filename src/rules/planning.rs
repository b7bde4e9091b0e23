//! What a rule file says for planning alone: figures that the engine does not need, and `simulate` does.

use super::lower::{instant, share};
use super::quantity::{Quantity, per_day};
use super::yaml::{self, Node};
use crate::engine::time::Millis;

/// Assumptions of a rule file about traffic and effects; what it leaves out is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Planning {
    /// Name of the primary metric.
    pub primary: Option<String>,
    /// Its `kind` and `baseline`, where the file defines it.
    pub primary_kind: Option<String>,
    pub primary_baseline: Option<f64>,
    /// Smallest relative change of the primary metric worth detecting, as a share.
    pub mde: Option<f64>,
    /// Chance to detect it, 0..=1.
    pub power: Option<f64>,
    /// `success.primary.expected_units`, a day.
    pub units_per_day: Option<f64>,
    /// `overview.ends` less `overview.starts`.
    pub length: Option<Millis>,
    /// Attributes of `analysis.segments.by`.
    pub segments: Vec<String>,
}

impl Planning {
    /// Of the text of a rule file that has been checked; of one that is no YAML, nothing.
    pub fn of(text: &str) -> Planning {
        yaml::parse(text).map_or_else(|_| Planning::default(), |root| Planning::read(&root))
    }

    pub(super) fn read(root: &Node) -> Planning {
        let overview = root.get("overview");
        let primary = root.get("success").and_then(|s| s.get("primary"));
        let of_primary = |key: &str| primary.and_then(|p| p.get(key));
        let end = |key: &str| overview.and_then(|o| o.get(key)).and_then(instant);
        let name = of_primary("metric").and_then(Node::text);
        let metric = name.and_then(|name| root.get("metrics")?.get(name));
        let of_metric = |key: &str| metric.and_then(|m| m.get(key)).and_then(Node::text);
        let by = root.get("analysis").and_then(|a| a.get("segments")).and_then(|s| s.get("by")).map_or(&[][..], Node::list);
        Planning {
            primary: name.map(str::to_owned),
            primary_kind: of_metric("kind").map(str::to_owned),
            primary_baseline: of_metric("baseline").and_then(Quantity::parse).and_then(|q| match q {
                Quantity::Percent(value) | Quantity::Number(value) | Quantity::Span(value) => Some(value),
                Quantity::Points(_) => None,
            }),
            mde: of_primary("mde").or(overview.and_then(|o| o.get("hypothesis")).and_then(|h| h.get("mde"))).and_then(share),
            power: of_primary("power").and_then(share),
            units_per_day: of_primary("expected_units").and_then(Node::text).and_then(per_day),
            length: end("starts").zip(end("ends")).map(|(starts, ends)| ends - starts),
            segments: by.iter().filter_map(|n| n.text().map(str::to_owned)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_rule_says_what_it_expects() {
        let text = std::fs::read_to_string("rules/new-checkout.yaml").unwrap();
        let planning = Planning::of(&text);
        assert_eq!((planning.primary.as_deref(), planning.primary_kind.as_deref()), (Some("orders"), Some("rate")));
        assert_eq!(planning.primary_baseline, Some(0.3));
        assert_eq!((planning.mde, planning.power, planning.units_per_day), (Some(0.01), Some(0.9), Some(120_000.0)));
        assert_eq!(planning.length, Some(14 * 86_400_000));
        assert_eq!(planning.segments, ["region", "device"]);
        assert_eq!(Planning::of("guardrail: v1"), Planning::default());
    }
}
