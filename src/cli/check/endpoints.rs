//! Whether endpoints can do what rules ask of them. Nothing is sent.

use crate::clock;
use crate::config::Config;
use crate::delivery::{self, Endpoint, Sender};
use crate::rules::{self, Diagnostic, Loaded};
use std::path::Path;

/// Endpoints that cannot be used, and actions that their endpoint could never carry out.
pub fn faults(path: &Path, config: &Config, loaded: &Loaded) -> Vec<Diagnostic> {
    // An error only says that somebody has installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (mut found, mut senders) = (Vec::new(), Vec::new());
    for (name, endpoint) in &config.endpoints {
        match Sender::new(Endpoint::configured(name, endpoint, &config.delivery)) {
            Ok(sender) => senders.push(sender),
            Err(error) => found.push(Diagnostic::file(&path.display().to_string(), "GC3001", error.to_string())),
        }
    }
    let texts = loaded.texts();
    for rule in &loaded.rules {
        let Some(used) = texts.get(rule.plan.experiment.as_str()) else { continue };
        let unfit = delivery::unfit(rule, |name| senders.iter().find(|sender| sender.name() == name), clock::now());
        found.extend(unfit.map(|(action, endpoint, why)| rules::unfit(used, action, endpoint, &why.to_string())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::Settings;
    use crate::rules::Severity;

    const RULE: &str = "\
guardrail: v1
overview: {experiment: exp, owner: team}
buckets: {control: {baseline: true}, treatment: {}}
guardrails:
  - {metric: error_rate, limit: 5%, window: 1m}
instrumentation: {flag: {name: exp}}
actions:
  mode: enforce
  rollback: {webhook: unleash}
  pause: {webhook: unleash, body: {environment: production}}
  kill: {webhook: flagd}
";

    /// `LINE:COLUMN CODE message: label` of each fault.
    fn found(endpoints: &str) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let (path, rule) = (directory.path().join("guardraild.yaml"), directory.path().join("exp.yaml"));
        std::fs::write(&rule, RULE).unwrap();
        std::fs::write(&path, format!("kafka: {{brokers: ['k:9092']}}\n{endpoints}\n")).unwrap();
        let config = Config::load_with(Some(&path), &[], &[("T".to_owned(), "secret".to_owned())].into()).unwrap();
        let names = config.endpoints.keys().cloned().collect();
        let loaded = rules::checked(&[rule], Some(&names), &Settings::default());
        assert!(loaded.diagnostics.iter().all(|d| d.severity != Severity::Error), "{:#?}", loaded.diagnostics);
        let faults = faults(&path, &config, &loaded);
        faults.iter().map(|d| format!("{}:{} {} {}: {}", d.line, d.column, d.code, d.message, d.label)).collect()
    }

    #[test]
    fn actions_that_an_endpoint_could_never_carry_out_are_found_where_rules_name_it() {
        let unleash = "unleash: {kind: unleash, url: 'https://u.example', token: {env: T}, project: default";
        let with = |more: &str| format!("endpoints:\n  {unleash}{more}}}\n  flagd: {{kind: flagd, file: flags.json}}");
        let faults = found(&with(""));
        assert_eq!(faults.len(), 2, "{faults:#?}");
        assert!(
            faults[0].starts_with(
                "10:20 GR2305 endpoint `unleash` could not carry out a pause: guardrail.pause means nothing to kind `unleash`"
            )
        );
        assert!(
            faults[1].starts_with("9:23 GR2305 endpoint `unleash` could not carry out a rollback: no `environment` is known"),
            "{faults:#?}"
        );
        assert_eq!(found(&with(", environment: production")).len(), 1);
    }

    #[test]
    fn an_endpoint_that_no_address_is_allowed_for_is_found() {
        let faults = found(
            "delivery: {hosts: [other.example]}\nendpoints:\n  unleash: {kind: unleash, url: 'https://u.example', token: {env: T}}\n  flagd: {kind: flagd, file: f}",
        );
        assert!(
            faults.len() == 1 && faults[0].contains("GC3001 endpoint `unleash`: the url's host is not among delivery.hosts"),
            "{faults:#?}"
        );
    }
}
