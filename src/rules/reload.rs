//! Which texts are in force when files have changed: each file's new one, unless it is bad or loosens a live rule. Then the one before stays.

use super::change;
use super::diagnostic::Diagnostic;
use super::load::{Candidate, Loaded, Parsed, Standby, Used, assemble};
use super::sources::Found;
use super::{RuleSet, Severity};
use crate::mapping::Source;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is in force now.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    /// Texts by file.
    pub texts: Vec<Used>,
    /// By experiment.
    pub rules: BTreeMap<String, Arc<RuleSet>>,
}

/// What is known of running experiments.
pub trait Running {
    /// Records have come: its rules are loosened only by a new revision.
    fn is_live(&self, experiment: &str) -> bool;
    /// It waits for the exposures of a bucket that it stopped to cease: its rules stay until that is settled.
    fn is_waiting(&self, experiment: &str) -> bool;
    /// Why a source cannot be used before the next start.
    fn needs_restart(&self, source: &Source) -> Option<String>;
}

/// What is to be in force, and what that changes.
#[derive(Debug)]
pub struct Proposal {
    pub loaded: Loaded,
    pub changes: Vec<Change>,
    /// All files, by name.
    pub files: Vec<FileState>,
}

/// What changes with one file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub file: String,
    /// `None` of a file of sources.
    pub experiment: Option<String>,
    pub what: What,
    /// What differs, old -> new.
    pub lines: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Added,
    Changed,
    Removed,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            What::Added => "added",
            What::Changed => "changed",
            What::Removed => "removed",
        }
    }
}

/// How a file stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileState {
    pub file: String,
    pub experiment: Option<String>,
    /// Of the rule that is in force.
    pub revision: Option<u32>,
    pub state: State,
    /// Why the file's text is not in force, one line each: place, code, what, and what would be right.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// What of the rule that is in force could not be carried out as things stand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    #[serde(rename = "loaded")]
    InForce,
    /// An earlier text of it is in force.
    Stale,
    /// Nothing of it is in force.
    Refused,
    /// The file is gone; its experiment is watched until what it stopped has stopped.
    Leaving,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::InForce => "loaded",
            State::Stale => "stale",
            State::Refused => "refused",
            State::Leaving => "leaving",
        }
    }
}

/// Decides what is to be in force. `complete`: all directories could be read, so that a file which is not among the candidates is gone.
pub fn propose(
    in_force: &InForce,
    (mut candidates, complete): (Vec<Candidate>, bool),
    endpoints: Option<&BTreeSet<String>>,
    running: &dyn Running,
) -> Proposal {
    let there: BTreeSet<String> = candidates.iter().map(|candidate| candidate.file.clone()).collect();
    // Where two files claim an experiment, the one that had it keeps it.
    candidates.sort_by_key(|candidate| !in_force.texts.iter().any(|used| used.file == candidate.file));
    let loaded = assemble(candidates, endpoints, &Earlier { in_force, running, there, complete });
    Proposal { changes: changes(in_force, &loaded), files: files(&loaded), loaded }
}

/// What was in force before.
struct Earlier<'e> {
    in_force: &'e InForce,
    running: &'e dyn Running,
    /// Files that are there now.
    there: BTreeSet<String>,
    complete: bool,
}

impl Standby for Earlier<'_> {
    fn veto(&self, parsed: &Parsed, (file, text): (&str, &str)) -> Vec<Diagnostic> {
        let restart = |found: &Found| {
            let why = self.running.needs_restart(&found.source)?;
            let help = "restart the daemon with this file; until then what it had before stays";
            Some(Diagnostic::at(file, text, found.span.clone(), "GR2804", why).with_help(help))
        };
        let sources: Vec<Diagnostic> = parsed.sources.iter().flatten().filter_map(restart).collect();
        let Some(rule) = parsed.rule.as_ref().filter(|_| sources.is_empty()) else { return sources };
        let experiment = &rule.plan.experiment;
        let Some(old) = self.in_force.rules.get(experiment).filter(|_| self.running.is_live(experiment)) else { return Vec::new() };
        let was = self.in_force.texts.iter().find(|used| used.experiment.as_ref() == Some(experiment));
        was.map(|was| change::loosenings(old, &was.text, rule, text, file)).unwrap_or_default()
    }

    fn text(&self, file: &str, experiment: Option<&str>) -> Option<(String, String)> {
        let same = |used: &&Used| experiment.is_some() && used.experiment.as_deref() == experiment;
        let texts = &self.in_force.texts;
        let used = texts.iter().find(same).or_else(|| texts.iter().find(|used| used.file == file))?;
        Some((used.file.clone(), used.text.clone()))
    }

    fn leaving(&self) -> Vec<(String, String)> {
        let gone = self.in_force.texts.iter().filter(|used| !self.there.contains(&used.file));
        let waits = |used: &&Used| used.experiment.as_deref().is_some_and(|name| self.running.is_waiting(name));
        gone.filter(|used| !self.complete || waits(used)).map(|used| (used.file.clone(), used.text.clone())).collect()
    }
}

fn changes(in_force: &InForce, loaded: &Loaded) -> Vec<Change> {
    // A rule is the same in another file; a file of sources is its own.
    let same = |a: &Used, b: &Used| match &a.experiment {
        Some(_) => a.experiment == b.experiment,
        None => b.experiment.is_none() && a.file == b.file,
    };
    let change = |used: &Used, what, lines| Change { file: used.file.clone(), experiment: used.experiment.clone(), what, lines };
    let now = loaded.used.iter().filter_map(|used| match in_force.texts.iter().find(|before| same(before, used)) {
        None => Some(change(used, What::Added, Vec::new())),
        Some(before) if before.text == used.text => None,
        Some(before) => Some(change(used, What::Changed, change::lines(&before.text, &used.text))),
    });
    let gone = in_force.texts.iter().filter(|before| !loaded.used.iter().any(|used| same(used, before)));
    let mut changes: Vec<Change> = now.chain(gone.map(|before| change(before, What::Removed, Vec::new()))).collect();
    changes.sort_by(|a, b| a.file.cmp(&b.file));
    changes
}

fn files(loaded: &Loaded) -> Vec<FileState> {
    let revision = |experiment: &Option<String>| {
        let rule = loaded.rules.iter().find(|rule| Some(&rule.plan.experiment) == experiment.as_ref());
        rule.map(|rule| rule.plan.revision)
    };
    let mut files: BTreeMap<&str, FileState> = BTreeMap::new();
    for used in &loaded.used {
        let state = if loaded.leaving.contains(&used.file) { State::Leaving } else { State::InForce };
        let (experiment, revision) = (used.experiment.clone(), revision(&used.experiment));
        files.insert(
            &used.file,
            FileState { file: used.file.clone(), experiment, revision, state, faults: Vec::new(), warnings: Vec::new() },
        );
    }
    for unused in &loaded.unused {
        let errors = unused.faults.iter().filter(|fault| fault.severity == Severity::Error);
        let faults = errors.map(Diagnostic::short).collect();
        let known = files.remove(unused.file.as_str()).filter(|_| unused.stands_in);
        let experiment = known.as_ref().and_then(|known| known.experiment.clone()).or_else(|| unused.experiment.clone());
        let (revision, state) = (revision(&experiment), if unused.stands_in { State::Stale } else { State::Refused });
        let revision = revision.filter(|_| unused.stands_in);
        files.insert(&unused.file, FileState { file: unused.file.clone(), experiment, revision, state, faults, warnings: Vec::new() });
    }
    files.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::assemble_plain;

    /// All is live, what its name says waits, and topics that are not read yet are called `new`.
    struct Told(bool);

    impl Running for Told {
        fn is_live(&self, _: &str) -> bool {
            self.0
        }

        fn is_waiting(&self, experiment: &str) -> bool {
            experiment == "waits"
        }

        fn needs_restart(&self, source: &Source) -> Option<String> {
            source.topics.iter().any(|topic| topic == "new").then(|| "not read yet".into())
        }
    }

    fn rule(experiment: &str, limit: &str) -> String {
        format!(
            "guardrail: v1\noverview: {{experiment: {experiment}, owner: o}}\nbuckets: {{a: {{baseline: true}}, b: {{}}}}\n\
             guardrails: [{{metric: error_rate, limit: {limit}}}]\nactions: {{mode: observe}}\n"
        )
    }

    fn candidates(files: &[(&str, String)]) -> Vec<Candidate> {
        files.iter().map(|(file, text)| Candidate { file: (*file).into(), text: Ok(text.clone()) }).collect()
    }

    fn in_force(files: &[(&str, String)]) -> InForce {
        let loaded = assemble_plain(candidates(files));
        let rules = loaded.rules.iter().map(|rule| (rule.plan.experiment.clone(), Arc::clone(rule))).collect();
        InForce { texts: loaded.used, rules }
    }

    /// File, state and experiment of each.
    fn states(proposal: &Proposal) -> Vec<(&str, State, &str)> {
        proposal.files.iter().map(|f| (f.file.as_str(), f.state, f.experiment.as_deref().unwrap_or(""))).collect()
    }

    fn changes(proposal: &Proposal) -> Vec<(&str, What)> {
        proposal.changes.iter().map(|c| (c.file.as_str(), c.what)).collect()
    }

    #[test]
    fn each_file_stands_for_itself() {
        let before = in_force(&[("a", rule("one", "5%")), ("b", rule("two", "5%")), ("c", rule("three", "5%"))]);
        let now =
            candidates(&[("a", rule("one", "5")), ("b", rule("two", "4%")), ("c", rule("three", "6%")), ("d", "guardrail: v2\n".into())]);
        let proposal = propose(&before, (now, true), None, &Told(true));
        assert_eq!(
            states(&proposal),
            [("a", State::Stale, "one"), ("b", State::InForce, "two"), ("c", State::Stale, "three"), ("d", State::Refused, "")]
        );
        assert_eq!(changes(&proposal), [("b", What::Changed)]);
        assert!(proposal.files[0].faults[0].starts_with("a:4:") && proposal.files[2].faults[0].contains("GR2803"), "{:?}", proposal.files);
        let limits: Vec<_> = proposal.loaded.catalog.plans.iter().map(|p| (p.experiment.as_str(), p.guardrails[0].limit)).collect();
        assert_eq!(limits, [("one", Some(0.05)), ("three", Some(0.05)), ("two", Some(0.04))]);
        let early = propose(&before, (candidates(&[("c", rule("three", "6%"))]), true), None, &Told(false));
        assert_eq!((states(&early), changes(&early).len()), (vec![("c", State::InForce, "three")], 3), "nothing has come yet");
    }

    #[test]
    fn who_has_an_experiment_keeps_it_and_it_may_move() {
        let before = in_force(&[("b", rule("one", "5%"))]);
        let both = propose(&before, (candidates(&[("a", rule("one", "1%")), ("b", rule("one", "5%"))]), true), None, &Told(true));
        assert_eq!((both.loaded.used.len(), changes(&both)), (1, vec![]));
        assert_eq!(both.loaded.used[0].file, "b");
        let moved = propose(&before, (candidates(&[("z", rule("one", "4%"))]), true), None, &Told(true));
        assert_eq!((states(&moved), changes(&moved)), (vec![("z", State::InForce, "one")], vec![("z", What::Changed)]));
    }

    #[test]
    fn what_waits_stays_and_so_does_everything_while_a_directory_cannot_be_read() {
        let before = in_force(&[("a", rule("one", "5%")), ("w", rule("waits", "5%"))]);
        let gone = propose(&before, (candidates(&[("c", rule("two", "5%"))]), true), None, &Told(true));
        assert_eq!(changes(&gone), [("a", What::Removed), ("c", What::Added)]);
        assert_eq!(states(&gone), [("c", State::InForce, "two"), ("w", State::Leaving, "waits")]);
        let unsure = propose(&before, (candidates(&[("c", rule("two", "5%"))]), false), None, &Told(true));
        assert_eq!(changes(&unsure), [("c", What::Added)]);
        assert_eq!(unsure.loaded.rules.len(), 3);
    }

    #[test]
    fn a_source_of_a_topic_that_is_not_read_needs_a_restart() {
        let source = |topic: &str| {
            format!("guardrail: v1\nsources:\n  s: {{topics: [{topic}], every_event: {{ts: /t}}, events: [{{event: request}}]}}\n")
        };
        let (before, now) = (in_force(&[("s", source("old"))]), candidates(&[("s", source("new"))]));
        assert_eq!(before.texts.len(), 1, "the text is good");
        let proposal = propose(&before, (now, true), None, &Told(true));
        assert_eq!((states(&proposal), changes(&proposal)), (vec![("s", State::Stale, "")], vec![]));
        assert!(proposal.files[0].faults[0].contains("GR2804"), "{:?}", proposal.files);
    }
}
