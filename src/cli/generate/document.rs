//! The texts for other systems. The same rule files give the same texts, byte for byte.

use super::{Kind, argo, flagger, prometheus};
use crate::rules::RuleSet;
use std::collections::BTreeSet;
use std::fmt::{self, Write};

/// What is made for one experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// For files and Kubernetes: lower case, digits, `-` and `.`.
    pub name: String,
    pub text: String,
}

/// One document for each rule, in their order. `url` is where controllers reach the daemon.
pub fn generate<'r>(kind: Kind, rules: impl IntoIterator<Item = &'r RuleSet>, url: &str) -> Vec<Document> {
    let mut taken = BTreeSet::new();
    rules
        .into_iter()
        .map(|rule| {
            let name = object_name(&rule.plan.experiment, &mut taken);
            let mut text = String::new();
            // Writing to a string cannot fail.
            let _ = write(&mut text, kind, rule, &name, url.trim_end_matches('/'));
            Document { name, text }
        })
        .collect()
}

/// Documents as one text: a file of alert rules has all groups in one list, Kubernetes takes documents one after the other.
pub fn joined(kind: Kind, documents: &[Document]) -> String {
    let between = if kind == Kind::Prometheus { "" } else { "---\n" };
    let mut texts = documents.iter().map(|document| document.text.as_str());
    let first = texts.next().unwrap_or_default().to_owned();
    texts.fold(first, |text, next| match kind {
        Kind::Prometheus => text + next.split_once(prometheus::HEAD).map_or(next, |(_, groups)| groups),
        Kind::Argo | Kind::Flagger => text + between + next,
    })
}

fn write(out: &mut String, kind: Kind, rule: &RuleSet, name: &str, url: &str) -> fmt::Result {
    let file = rule.file.display();
    match kind {
        Kind::Prometheus => {
            writeln!(out, "# guardraild generate prometheus --rules {file}")?;
            prometheus::write(out, rule)
        }
        Kind::Argo => {
            writeln!(out, "# guardraild generate argo --rules {file}")?;
            argo::write(out, rule, name, url)
        }
        Kind::Flagger => {
            writeln!(out, "# guardraild generate flagger --rules {file}")?;
            flagger::write(out, rule, name, url)
        }
    }
}

/// An experiment's name as Kubernetes takes it; a number is added to one that is taken.
fn object_name(experiment: &str, taken: &mut BTreeSet<String>) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let fitted: String = experiment.chars().map(fit).collect();
    let fitted = match fitted.trim_matches('-') {
        "" => "experiment".to_owned(),
        fitted => fitted.to_owned(),
    };
    let numbered = (2..).map(|n| format!("{fitted}-{n}"));
    let name = std::iter::once(fitted.clone()).chain(numbered).find(|name| !taken.contains(name)).unwrap_or_default();
    taken.insert(name.clone());
    name
}

/// A YAML string in double quotes, whatever it holds.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::FieldTable;
    use crate::rules;
    use std::path::Path;

    fn rule(file: &str, text: &str) -> RuleSet {
        rules::parse_str(file, text, &mut FieldTable::default(), None).rule.unwrap()
    }

    /// `GUARDRAILD_UPDATE=1` writes the samples anew.
    #[test]
    fn the_samples_are_what_is_made_of_the_shipped_rule() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = "rules/new-checkout.yaml";
        let rule = rule(file, &std::fs::read_to_string(root.join(file)).unwrap());
        let samples = [
            (Kind::Prometheus, "deploy/prometheus/new-checkout.yaml"),
            (Kind::Argo, "deploy/argo-rollouts/new-checkout.yaml"),
            (Kind::Flagger, "deploy/flagger/new-checkout.yaml"),
        ];
        for (kind, sample) in samples {
            let [document] = &generate(kind, [&rule], super::super::URL)[..] else { panic!("one rule, one document") };
            assert_eq!(document.name, "new-checkout");
            if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
                std::fs::write(root.join(sample), &document.text).unwrap();
            }
            assert_eq!(std::fs::read_to_string(root.join(sample)).unwrap(), document.text, "{sample}");
        }
    }

    #[test]
    fn any_name_gives_documents_that_can_be_read() {
        let name = "Søk: \"A/B\" {{ x }} \\ #1";
        let text = format!(
            "guardrail: v1\noverview: {{experiment: {}, owner: x}}\nbuckets: {{a: {{baseline: true}}, b: {{}}}}\n\
             guardrails: [{{metric: error_rate, limit: 5%}}]\nactions: {{mode: enforce, notify: {{slack: s}}}}\n",
            quoted(name)
        );
        let rules = [rule("x.yaml", &text), rule("y.yaml", &text)];
        for kind in [Kind::Prometheus, Kind::Argo, Kind::Flagger] {
            let documents = generate(kind, &rules, "http://g:8080/");
            assert_eq!(
                documents.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(),
                ["s-k---a-b-----x-------1", "s-k---a-b-----x-------1-2"]
            );
            for part in joined(kind, &documents).split("---\n").filter(|part| part.contains(':')) {
                let value: serde_json::Value = serde_saphyr::from_str(part).unwrap_or_else(|e| panic!("{e}\n{part}"));
                assert!(value.is_object() || part.lines().all(|line| line.starts_with('#')), "{part}");
            }
        }
        let groups: serde_json::Value =
            serde_saphyr::from_str(&joined(Kind::Prometheus, &generate(Kind::Prometheus, &rules, "http://g"))).unwrap();
        assert_eq!(groups["groups"].as_array().map(Vec::len), Some(2), "one list of groups");
        assert!(generate(Kind::Argo, &rules, "http://g")[0].text.contains("S%C3%B8k%3A%20%22A%2FB%22%20%7B%7B%20x%20%7D%7D%20%5C%20%231"));
    }

    #[test]
    fn alerts_keep_to_the_dates_and_to_what_the_mode_can_do() {
        let head = "guardrail: v1\noverview: {experiment: x, owner: me, ends: 2026-12-15T09:00:00Z}\nbuckets: {a: {baseline: true}, b: {}}\n\
                    guardrails: [{metric: error_rate, limit: 5%}]\n";
        let alerts = |mode: &str| {
            let rule = rule("x.yaml", &format!("{head}actions: {{mode: {mode}, notify: {{slack: s}}}}\n"));
            generate(Kind::Prometheus, [&rule], "http://g").remove(0).text
        };
        let enforced = alerts("enforce");
        assert_eq!(enforced.matches(" and on () (vector(time()) < 1797325200)").count(), 2, "{enforced}");
        assert!(enforced.contains("ExperimentUnconfirmed") && !alerts("observe").contains("ExperimentUnconfirmed"));
    }
}
