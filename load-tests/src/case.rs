//! A load case: data, in `cases/`.

use anyhow::Context;
use guardraild::engine::plan::{Catalog, FieldTable};
use guardraild::rules;
use guardraild::tools::traffic::Case;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadCase {
    /// Records of one run.
    pub records: u64,
    /// Partitions of each topic. The embedded broker keeps 5 MiB (compressed) per partition.
    pub partitions: i32,
    /// Runs of each side; medians are shown.
    pub repeats: usize,
    /// Numbers of experiments to compare: each sets `copies` of the first experiment of the traffic.
    #[serde(default)]
    pub experiments: Vec<u32>,
    /// How long the traffic of `latency` runs, s.
    #[serde(default)]
    pub seconds: u64,
    /// What the daemon's sections say that is not said by the command.
    #[serde(default)]
    pub engine: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    pub kafka: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    pub checkpoint: BTreeMap<String, serde_json::Value>,
    pub traffic: Case,
    /// What the rule file of every experiment says after its `overview` and `buckets`. `sink` is an endpoint.
    pub rule: String,
}

impl LoadCase {
    pub fn read(path: &Path) -> anyhow::Result<LoadCase> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let case: LoadCase = serde_saphyr::from_str(&text).with_context(|| format!("{} is not a load case", path.display()))?;
        case.traffic.check().with_context(|| path.display().to_string())?;
        anyhow::ensure!(case.records > 0 && case.repeats > 0, "{}: `records` and `repeats` must be at least 1", path.display());
        anyhow::ensure!((1..=1_000).contains(&case.partitions), "{}: `partitions` must lie in 1..=1000", path.display());
        Ok(case)
    }

    /// The same with so many copies of the first experiment.
    pub fn with_experiments(&self, copies: u32) -> LoadCase {
        let mut case = self.clone();
        if let Some(first) = case.traffic.experiments.first_mut() {
            first.copies = copies;
        }
        case
    }

    /// The rules as the engine has them, by name.
    pub fn catalog(&self) -> anyhow::Result<Catalog> {
        let (mut fields, endpoints) = (FieldTable::default(), ["sink".to_owned()].into());
        let mut plans = Vec::new();
        for (name, text) in self.rules() {
            let parsed = rules::parse_str(&name, &text, &mut fields, Some(&endpoints));
            plans.push(Arc::clone(&parsed.rule.with_context(|| format!("the case's rule is refused: {:?}", parsed.diagnostics))?.plan));
        }
        plans.sort_by(|a, b| a.experiment.cmp(&b.experiment));
        Ok(Catalog::new(plans, fields))
    }

    /// Name and text of each experiment's rule file.
    pub fn rules(&self) -> Vec<(String, String)> {
        let mut files = Vec::new();
        for experiment in &self.traffic.experiments {
            let total: f64 = experiment.buckets.iter().map(|b| b.weight).sum();
            let mut buckets = String::new();
            for (index, bucket) in experiment.buckets.iter().enumerate() {
                let baseline = if index == 0 { ", baseline: true" } else { "" };
                // Writing to a string cannot fail.
                let _ = writeln!(buckets, "  {}: {{weight: {}%{baseline}}}", bucket.name, bucket.weight * 100.0 / total);
            }
            for name in experiment.names() {
                let text = format!("guardrail: v1\noverview: {{experiment: {name}, owner: load-tests}}\nbuckets:\n{buckets}{}", self.rule);
                files.push((name, text));
            }
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_can_be_played_and_its_rules_are_sound() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        let mut cases = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("calibration.yaml") || path.to_string_lossy().ends_with("_test.yaml") {
                continue; // cases of calibrate.rs, and of `guardraild test`
            }
            let case = LoadCase::read(&path).unwrap();
            cases += 1;
            for (name, text) in case.with_experiments(2).rules() {
                let endpoints = ["sink".to_owned()].into();
                let parsed = rules::parse_str(&name, &text, &mut Default::default(), Some(&endpoints));
                assert!(parsed.rule.is_some_and(|r| r.plan.experiment == name), "{:?}", parsed.diagnostics);
                assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
            }
        }
        assert!(cases > 0);
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("case.yaml");
        std::fs::write(&path, "records: 1\npartitions: 1\nrepeats: 1\nrule: ''\ntraffic: {sede: 1}\n").unwrap();
        assert!(format!("{:#}", LoadCase::read(&path).unwrap_err()).contains("sede"));
    }
}
