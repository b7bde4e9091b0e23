//! One cause behind many breaches: experiments that breach the same kind of guardrail within a short span share one alert.
//!
//! Each decision stands and acts. What is merged is who is told: from the moment on when enough experiments are in breach, pages and
//! notifications of that kind belong to one decision of its own, and delivery tells each receiver once.

use super::decision::{Action, Decision, Evidence, LogEntry, LogKind, Mode, Output, Verdict, decision_id};
use super::plan::SharedCause;
use super::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The criterion of a decision about several experiments.
pub const CRITERION: &str = "shared_cause";
/// Experiments that a reason names; the evidence has all.
const NAMED: usize = 10;

/// Breaches of the last while. There is an entry for each kind of guardrail that has been breached, and in it one for each experiment
/// and moment inside the span.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Breaches {
    kinds: BTreeMap<Kind, Recent>,
}

/// What has the same cause: a guardrail's metric or a check, and whether people are woken for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Kind {
    name: String,
    wakes: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Recent {
    /// When, and in which experiment.
    breaches: BTreeSet<(Millis, String)>,
    shared: Option<Shared>,
}

/// A shared cause, which lasts until nothing has joined it for the span.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shared {
    decision: String,
    joined: Millis,
}

impl Breaches {
    /// Finds shared causes among the decisions from index `from` on, which are in the order of event time, and puts their own beside
    /// them. `live` tells how many experiments run at a time.
    pub fn find(&mut self, rule: &SharedCause, live: impl Fn(Millis) -> usize, from: usize, out: &mut Output) {
        let mut groups: BTreeMap<(Millis, Kind), Vec<usize>> = BTreeMap::new();
        for (index, decision) in out.decisions.iter().enumerate().skip(from) {
            if let Some(kind) = kind(decision) {
                groups.entry((decision.decided_at, kind)).or_default().push(index);
            }
        }
        let mut found = Vec::new();
        for ((at, kind), members) in groups {
            let recent = self.kinds.entry(kind.clone()).or_default();
            recent.breaches.extend(members.iter().map(|m| (at, out.decisions[*m].experiment.clone())));
            if recent.shared.as_ref().is_none_or(|shared| at - shared.joined > rule.within) {
                recent.shared = None;
                // A replay knows breaches from after this one.
                let since = (at - rule.within + 1, String::new());
                let experiments: BTreeSet<&str> = recent.breaches.range(since.clone()..).map(|(_, name)| name.as_str()).collect();
                let live = live(at);
                let needed = rule.experiments.max((rule.share * live as f64).ceil() as usize);
                if experiments.len() >= needed {
                    let begin = recent.breaches.range(since..).next().map_or(at, |(first, _)| *first);
                    let decision = shared(&kind, at, begin, &experiments, (needed, live));
                    recent.shared = Some(Shared { decision: decision.decision.clone(), joined: at });
                    note(&decision, &experiments, out);
                    found.push(decision);
                }
            }
            if let Some(shared) = &mut recent.shared {
                shared.joined = at;
                members.iter().for_each(|m| out.decisions[*m].shared_cause = Some(shared.decision.clone()));
            }
        }
        out.decisions.extend(found);
    }

    /// Forgets what is older than the span before `at`: nothing that is decided from now on can share its cause.
    pub fn forget(&mut self, rule: &SharedCause, at: Millis) {
        let old = at - rule.within;
        for recent in self.kinds.values_mut() {
            recent.breaches = recent.breaches.split_off(&(old, String::new()));
            recent.shared.take_if(|shared| shared.joined < old);
        }
        self.kinds.retain(|_, recent| !recent.breaches.is_empty() || recent.shared.is_some());
    }

    /// Takes up a stored decision after a restart: its judge does not repeat it.
    pub fn adopt(&mut self, decision: &Decision) {
        let (kind, id) = match kind(decision) {
            Some(kind) => (kind, decision.shared_cause.as_ref()),
            None if decision.criterion == CRITERION => {
                let wakes = decision.action == Action::Page;
                (Kind { name: decision.guardrail.clone(), wakes }, Some(&decision.decision))
            }
            None => return,
        };
        let recent = self.kinds.entry(kind).or_default();
        if decision.criterion != CRITERION {
            recent.breaches.insert((decision.decided_at, decision.experiment.clone()));
        }
        if let Some(id) = id
            && recent.shared.as_ref().is_none_or(|shared| shared.joined <= decision.decided_at)
        {
            recent.shared = Some(Shared { decision: id.clone(), joined: decision.decided_at });
        }
    }
}

/// What the decision may have in common with others; `None` for what a person asked for.
fn kind(decision: &Decision) -> Option<Kind> {
    let name = match decision.criterion.as_str() {
        "operator" | CRITERION => return None,
        "confirm_within" => "confirm_within",
        "undone" => "undone",
        _ => decision.guardrail.split('#').next().unwrap_or_default(),
    };
    let acts = decision.action.intervenes() && decision.mode == Mode::Enforce;
    Some(Kind { name: name.to_owned(), wakes: acts || decision.action == Action::Page })
}

fn shared(kind: &Kind, at: Millis, since: Millis, experiments: &BTreeSet<&str>, (needed, live): (usize, usize)) -> Decision {
    let action = if kind.wakes { Action::Page } else { Action::Notify };
    let part = format!("{CRITERION}/{}/{at}", action.name());
    let n = experiments.len();
    let named: Vec<&str> = experiments.iter().take(NAMED).copied().collect();
    let more = if n > NAMED { format!(" and {} more", n - NAMED) } else { String::new() };
    let seconds = (at - since) / 1_000 + 1;
    Decision {
        decision: decision_id("", 0, "", &kind.name, 0, &part),
        decided_at: at,
        experiment: String::new(),
        revision: 0,
        phase: 0,
        bucket: String::new(),
        guardrail: kind.name.clone(),
        criterion: CRITERION.into(),
        verdict: Verdict::Breach,
        action,
        mode: Mode::Enforce,
        baseline_value: None,
        bucket_value: Some(n as f64),
        unit: String::new(),
        change: None,
        interval: None,
        margin: Some(needed as f64 - 1.0),
        alpha: None,
        log_e_value: None,
        test: "count".into(),
        since,
        exposed_units: 0,
        evidence: Evidence::SharedCause {
            count: n as u64,
            allowed: needed as u64 - 1,
            live: live as u64,
            experiments: experiments.iter().map(|name| (*name).to_owned()).collect(),
        },
        reason: format!(
            "{} in {n} of {live} experiments within {seconds} s suggests a shared cause; its alerts are one from now on. In {}{more}",
            kind.name,
            named.join(", ")
        ),
        epoch: 0,
        segment: None,
        covered_by: None,
        held_by: None,
        author: None,
        shared_cause: None,
    }
}

/// An entry in the log of each experiment.
fn note(decision: &Decision, experiments: &BTreeSet<&str>, out: &mut Output) {
    let text = format!("{} in {} experiments: one alert is for all", decision.guardrail, experiments.len());
    out.log.extend(experiments.iter().map(|name| LogEntry {
        at: decision.decided_at,
        experiment: (*name).to_owned(),
        kind: LogKind::Decision,
        author: None,
        text: text.clone(),
        decision: Some(decision.decision.clone()),
        links: Vec::new(),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: SharedCause = SharedCause { experiments: 3, share: 0.02, within: 60_000 };

    /// A breach of an experiment at a second.
    fn breach(second: i64, experiment: &str, guardrail: &str, action: Action) -> Decision {
        let kind = Kind { name: guardrail.to_owned(), wakes: true };
        Decision {
            decision: format!("d-{experiment}-{guardrail}"),
            experiment: experiment.to_owned(),
            criterion: "limit".into(),
            action,
            ..shared(&kind, second * 1_000, 0, &BTreeSet::new(), (1, 1))
        }
    }

    /// What becomes of breaches that are said together: id of the shared cause of each, and the decisions about shared causes.
    fn find(breaches: &mut Breaches, live: usize, said: Vec<Decision>) -> (Vec<Option<String>>, Vec<Decision>) {
        let n = said.len();
        let mut out = Output { decisions: said, ..Output::default() };
        breaches.find(&RULE, |_| live, 0, &mut out);
        let found = out.decisions.split_off(n);
        assert_eq!(
            out.log.len(),
            found.iter().map(|d| d.bucket_value.unwrap_or(0.0) as usize).sum::<usize>(),
            "an entry for each experiment"
        );
        (out.decisions.into_iter().map(|d| d.shared_cause).collect(), found)
    }

    #[test]
    fn the_third_experiment_within_the_span_makes_a_cause_and_later_ones_join_it() {
        let mut breaches = Breaches::default();
        let p95 = |second, name| breach(second, name, "latency_p95#2", Action::Page);
        assert_eq!(find(&mut breaches, 9, vec![p95(1, "a"), p95(2, "a"), p95(30, "b")]), (vec![None; 3], vec![]), "two experiments");
        let (joined, found) = find(&mut breaches, 9, vec![p95(60, "c"), breach(60, "d", "error_rate", Action::Page)]);
        assert_eq!((joined, found.len()), (vec![Some(found[0].decision.clone()), None], 1));
        let Evidence::SharedCause { count, allowed, live, experiments } = &found[0].evidence else { panic!("{found:?}") };
        assert_eq!((*count, *allowed, *live, experiments.join(" ").as_str()), (3, 2, 9, "a b c"));
        assert_eq!((found[0].since, found[0].decided_at, found[0].guardrail.as_str()), (1_000, 60_000, "latency_p95"));
        assert_eq!(find(&mut breaches, 9, vec![p95(120, "e")]).0, [Some(found[0].decision.clone())], "as long as others keep coming");
        let (joined, again) = find(&mut breaches, 9, vec![p95(181, "f"), p95(182, "g"), p95(183, "h")]);
        assert_eq!((&joined[..2], again.len()), (&[None, None][..], 1), "it had ended");
        assert_ne!(found[0].decision, again[0].decision);
    }

    #[test]
    fn of_many_experiments_more_are_needed_and_whoever_only_notifies_wakes_nobody() {
        let said = |action| (0..9).map(|i| breach(5, &format!("e{i}"), "silence", action)).collect::<Vec<_>>();
        assert_eq!(find(&mut Breaches::default(), 1_000, said(Action::Rollback)).1, []);
        let loud = find(&mut Breaches::default(), 100, said(Action::Rollback)).1;
        let quiet = find(&mut Breaches::default(), 100, said(Action::Hold)).1;
        assert_eq!((loud[0].action, quiet[0].action), (Action::Page, Action::Notify));
        assert_ne!(loud[0].decision, quiet[0].decision);
    }

    #[test]
    fn a_restart_takes_up_what_was_decided_and_time_forgets_it() {
        let mut breaches = Breaches::default();
        let p95 = |second, name: &str| breach(second, name, "latency_p95", Action::Page);
        let (_, found) = find(&mut breaches, 9, vec![p95(1, "a"), p95(1, "b"), p95(1, "c")]);
        let mut again = Breaches::default();
        let stored = ["a", "b", "c"].map(|name| Decision { shared_cause: Some(found[0].decision.clone()), ..p95(1, name) });
        stored.iter().chain(&found).for_each(|decision| again.adopt(decision));
        assert_eq!(find(&mut again, 9, vec![p95(40, "d")]), find(&mut breaches, 9, vec![p95(40, "d")]));
        let mut partly = Breaches::default();
        [p95(1, "a"), p95(1, "b")].iter().for_each(|decision| partly.adopt(decision));
        assert_eq!(find(&mut partly, 9, vec![p95(1, "c")]).1[0].decision, found[0].decision, "the same cause has the same id");
        again.forget(&RULE, 200_000);
        assert!(again.kinds.is_empty());
    }
}
