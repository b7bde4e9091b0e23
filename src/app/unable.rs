//! Actions of rules in force that would come to nothing as things stand: people are told before it matters, and what to do.

use crate::delivery::{self, Sender};
use crate::engine::decision::Mode;
use crate::engine::time::Millis;
use crate::rules::reload::FileState;
use crate::rules::{self, Loaded, RuleSet, Used};
use std::collections::BTreeMap;
use std::ops::Deref;

/// Notes in each file's state what of its rule could not be carried out. `now` is the wall clock.
pub fn note<S: Deref<Target = Sender>>(files: &mut [FileState], loaded: &Loaded, endpoints: impl Fn(&str) -> Option<S>, now: Millis) {
    let texts = loaded.texts();
    let mut files: BTreeMap<String, &mut FileState> = files.iter_mut().map(|file| (file.file.clone(), file)).collect();
    for rule in &loaded.rules {
        let Some(used) = texts.get(rule.plan.experiment.as_str()) else { continue };
        let Some(file) = files.get_mut(&used.file) else { continue };
        file.warnings = warnings(rule, used, &endpoints, now);
    }
}

/// Logs what was not said of `before`, so that each is told once while it lasts.
pub fn tell(files: &[FileState], before: &[FileState]) {
    for file in files {
        let known = before.iter().find(|known| known.file == file.file).map_or(&[][..], |known| &known.warnings);
        for warning in file.warnings.iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!(experiment = file.experiment, "{warning}");
        }
    }
}

fn warnings<S: Deref<Target = Sender>>(rule: &RuleSet, used: &Used, endpoints: &impl Fn(&str) -> Option<S>, now: Millis) -> Vec<String> {
    let mut warnings: Vec<String> = observed(rule, &used.file).into_iter().collect();
    for (action, route) in &rule.routes {
        let (name, action) = (&route.endpoint, action.name());
        match endpoints(name).map(|sender| sender.lacks()) {
            None => warnings.push(format!(
                "{}: {action} goes to `{name}`, which the configuration does not have: add it under `endpoints` and restart, or name another",
                used.file
            )),
            Some(Some(lack)) => warnings.push(format!("{}: {action} goes to `{name}`, which cannot act now: {lack}", used.file)),
            Some(None) => {}
        }
    }
    let unfit = delivery::unfit(rule, endpoints, now);
    warnings.extend(unfit.map(|(action, endpoint, why)| rules::unfit(used, action, endpoint, &why.to_string()).as_warning().short()));
    warnings
}

/// Interventions that are decided and kept back.
fn observed(rule: &RuleSet, file: &str) -> Option<String> {
    let kept = rule.routes.iter().filter(|(action, _)| action.intervenes());
    let kept: Vec<String> = kept.map(|(action, route)| format!("{} by `{}`", action.name(), route.endpoint)).collect();
    (rule.plan.mode == Mode::Observe && !kept.is_empty()).then(|| {
        format!(
            "{file}: mode is `observe`, so that {} would be decided and shown, and not sent: `mode: enforce` sends them",
            kept.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::delivery::Endpoint;
    use crate::rules::reload::State;

    const RULE: &str = "\
guardrail: v1
overview: {experiment: exp, owner: team}
buckets: {control: {baseline: true}, treatment: {}}
guardrails:
  - {metric: error_rate, limit: 5%, window: 1m}
instrumentation: {flag: {name: exp}}
actions:
  mode: observe
  notify: {webhook: unleash}
  pause: {webhook: gone}
  rollback: {webhook: unleash, body: {environment: production}}
  kill: {webhook: flagd}
";
    const ENDPOINTS: &str = "\
kafka: {brokers: ['k:9092']}
endpoints:
  unleash: {kind: unleash, url: 'https://u.example', token: {env: T}, project: default}
  flagd: {kind: flagd, file: /nowhere/flags.json}
";

    /// What is said of the rule, where a line of it is another one.
    fn said(from: &str, to: &str) -> Vec<String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let (path, rule) = (directory.path().join("guardraild.yaml"), directory.path().join("exp.yaml"));
        std::fs::write(&rule, RULE.replace(from, to)).unwrap();
        std::fs::write(&path, ENDPOINTS).unwrap();
        let config = Config::load_with(Some(&path), &[], &[("T".to_owned(), "secret".to_owned())].into()).unwrap();
        let all = config.endpoints.iter().map(|(name, endpoint)| Endpoint::configured(name, endpoint, &config.delivery));
        let senders: Vec<Sender> = all.map(|endpoint| Sender::new(endpoint).unwrap()).collect();
        let loaded = rules::load(std::slice::from_ref(&rule), None);
        let file = FileState {
            file: rule.display().to_string(),
            experiment: Some("exp".to_owned()),
            revision: Some(1),
            state: State::InForce,
            faults: Vec::new(),
            warnings: Vec::new(),
        };
        let mut files = [file];
        note(&mut files, &loaded, |name| senders.iter().find(|sender| sender.name() == name), 0);
        let [file] = files;
        let folder = format!("{}/", directory.path().display());
        file.warnings.into_iter().map(|warning| warning.replace(&folder, "")).collect()
    }

    #[test]
    fn each_action_that_would_come_to_nothing_is_told_with_what_to_do() {
        assert_eq!(
            said("", ""),
            [
                "exp.yaml: mode is `observe`, so that pause by `gone`, rollback by `unleash`, kill by `flagd` would be decided and shown, and not sent: `mode: enforce` sends them",
                "exp.yaml: pause goes to `gone`, which the configuration does not have: add it under `endpoints` and restart, or name another",
                "exp.yaml: kill goes to `flagd`, which cannot act now: the file /nowhere/flags.json cannot be read: No such file or directory (os error 2)",
                "exp.yaml:9:21: warning[GR2305]: endpoint `unleash` could not carry out a notification; guardrail.alert means nothing to kind `unleash`, which acts on rollback and kill",
            ]
        );
        let enforced = said("mode: observe", "mode: enforce");
        assert!(enforced.len() == 3 && !enforced[0].contains("observe"), "{enforced:#?}");
    }
}
