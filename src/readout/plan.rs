//! What the rule file says for people.

use crate::rules::yaml::{self, Node};

/// Texts of a rule file; what it leaves out is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub name: String,
    pub owner: String,
    pub hypothesis: String,
    pub primary: String,
    pub mde: String,
    pub secondary: Vec<String>,
    /// Name and default of the feature flag.
    pub flag: String,
    pub flag_default: String,
    /// What it is, and where.
    pub links: Vec<(String, String)>,
    pub stakeholders: Vec<String>,
    /// Chance of a false alarm over the whole life, as it is written.
    pub alpha: String,
}

impl Plan {
    /// Of a rule file that has been checked; of one that is no YAML, nothing.
    pub fn of(text: &str) -> Plan {
        let Ok(root) = yaml::parse(text) else { return Plan::default() };
        let at = |path: &[&str]| path.iter().try_fold(&root, |node, key| node.get(key));
        let text = |path: &[&str]| at(path).and_then(Node::text).unwrap_or_default().to_owned();
        let texts = |path: &[&str]| at(path).map_or(&[][..], Node::list).iter().filter_map(|n| n.text().map(str::to_owned)).collect();
        let people = ["dri", "reviewer"].map(|key| (key, text(&["overview", "owner", key]))).into_iter();
        let people: Vec<String> = people.filter(|(_, name)| !name.is_empty()).map(|(key, name)| format!("{key} {name}")).collect();
        let team =
            Some(text(&["overview", "owner"])).filter(|team| !team.is_empty()).unwrap_or_else(|| text(&["overview", "owner", "team"]));
        let owner = [vec![team], people].concat().into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
        let [change, impact, metric, mde] = ["change", "impact", "metric", "mde"].map(|key| text(&["overview", "hypothesis", key]));
        let hypothesis = match change.is_empty() {
            true => String::new(),
            false => {
                let by = if mde.is_empty() { String::new() } else { format!(" by {mde}") };
                let measured = if metric.is_empty() { String::new() } else { format!(", as measured by {metric},") };
                format!("If {change}, then {impact}{measured} will improve{by}.")
            }
        };
        let schemas: Vec<String> = texts(&["instrumentation", "schemas"]);
        let comms = [("Runbook", "runbook"), ("Release notes", "release_notes")];
        let links = comms.into_iter().map(|(name, key)| (name.to_owned(), text(&["comms", key])));
        let links = links.chain(schemas.into_iter().map(|url| ("Event schema".to_owned(), url)));
        Plan {
            name: text(&["overview", "name"]),
            owner,
            hypothesis,
            primary: text(&["success", "primary", "metric"]),
            mde: Some(text(&["success", "primary", "mde"])).filter(|mde| !mde.is_empty()).unwrap_or(mde),
            secondary: texts(&["success", "secondary"]),
            flag: text(&["instrumentation", "flag", "name"]),
            flag_default: text(&["instrumentation", "flag", "default"]),
            links: links.filter(|(_, url)| !url.is_empty()).collect(),
            stakeholders: texts(&["comms", "stakeholders"]),
            alpha: Some(text(&["analysis", "alpha"])).filter(|alpha| !alpha.is_empty()).unwrap_or_else(|| "0.01".to_owned()),
        }
    }
}
