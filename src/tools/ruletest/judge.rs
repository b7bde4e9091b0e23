//! Whether an expectation holds of a run, and if not, what happened instead.

use super::expect::{Expectation, Got, Is, Like, show, verdict_name};
use super::play::Seen;
use super::receivers::Attempt;
use crate::engine::decision::Decision;
use crate::engine::outcome::{Counts, Reject};
use crate::engine::state::ExperimentState;
use crate::engine::time::Millis;
use std::collections::BTreeSet;

/// An expectation that does not hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// What was expected, in words.
    pub wanted: String,
    pub instead: String,
}

impl Is {
    /// Whether decisions alone tell if it holds, and what happened instead.
    pub fn hears_decisions_alone(&self) -> bool {
        matches!(self, Is::Never { .. } | Is::Acts { share: Some(_), .. })
    }

    /// The time whose state it asks for.
    pub fn look(&self) -> Option<Millis> {
        match self {
            Is::Verdict { at, .. } | Is::Stopped { at, .. } | Is::Go { at, .. } | Is::Stop { at, .. } => Some(*at),
            Is::Acts { .. } | Is::Never { .. } | Is::Endpoint { .. } | Is::Outcome { .. } => None,
        }
    }
}

impl Like {
    /// Whether a decision is meant; `span` is ms after `start`.
    pub fn fits(&self, decision: &Decision, start: Millis, span: (Millis, Millis)) -> bool {
        let same = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is);
        let at = decision.decided_at - start;
        self.actions.contains(&decision.action)
            && (span.0..=span.1).contains(&at)
            && same(&self.guardrail, &decision.guardrail)
            && same(&self.criterion, &decision.criterion)
            && same(&self.bucket, &decision.bucket)
            && same(&self.segment, decision.segment.as_deref().unwrap_or(""))
            && same(&self.held_by, decision.held_by.map_or("", |by| by.name()))
    }

    /// What it means, in words: `rollback or kill of treatment by latency_p95`.
    pub fn text(&self) -> String {
        let mut text = self.actions.iter().map(|a| a.name()).collect::<Vec<_>>().join(" or ");
        let parts = [
            (" of ", &self.bucket),
            (" by ", &self.guardrail),
            (" for ", &self.criterion),
            (" in ", &self.segment),
            (" held by ", &self.held_by),
        ];
        for (word, part) in parts {
            text.extend(part.iter().map(|part| format!("{word}{part}")));
        }
        text
    }
}

/// Holds `expectation` against what was seen; of a share of seeds, whether this one is among them.
///
/// # Errors
/// What was expected, and what happened instead.
pub fn judge(expectation: &Expectation, seen: &Seen) -> Result<(), Failure> {
    match &expectation.is {
        Is::Verdict { at, guardrail, bucket, segment, one_of } => {
            let wanted: Vec<&str> = one_of.iter().map(|v| verdict_name(*v)).collect();
            let found =
                seen.looks.get(at).map(|state| verdicts(state, guardrail, bucket.as_deref(), segment.as_deref())).unwrap_or_default();
            let wrong = found.iter().find(|(_, verdict, _)| !one_of.iter().any(|v| verdict_name(*v) == *verdict));
            let instead = match (wrong, found.is_empty()) {
                (Some((whose, verdict, reason)), _) => format!("{whose} is `{verdict}` {}: {reason}", moment(*at)),
                (None, true) => format!("nothing is known of it {}", moment(*at)),
                (None, false) => return Ok(()),
            };
            Err(Failure { wanted: format!("{guardrail} is {} {}", wanted.join(" or "), moment(*at)), instead })
        }
        Is::Acts { like, span, times, .. } => {
            let (mine, others): (Vec<&Decision>, Vec<&Decision>) = seen.decisions.iter().partition(|d| like.fits(d, seen.start, *span));
            let done = mine.iter().filter(|d| d.covered_by.is_none()).count() as u64;
            let (holds, often) = match times {
                Some(count) => (count.holds(done), format!(", {count} times")),
                None => (!mine.is_empty(), String::new()),
            };
            if holds {
                return Ok(());
            }
            let instead = if mine.is_empty() { instead(&others, seen) } else { format!("it is done {done} times: {}", list(&mine, seen)) };
            Err(Failure { wanted: format!("{}{often} {}", like.text(), between(*span)), instead })
        }
        Is::Never { like, span } => match seen.decisions.iter().find(|d| like.fits(d, seen.start, *span)) {
            None => Ok(()),
            Some(decision) => Err(Failure { wanted: format!("no {} {}", like.text(), between(*span)), instead: told(decision, seen) }),
        },
        Is::Stopped { at, bucket, state } => {
            let found = seen.looks.get(at).and_then(|view| view.buckets.iter().find(|b| b.bucket == *bucket));
            let is = found.map_or("unknown", |b| b.stopped.as_ref().map_or("no", |s| s.confirmation.as_str()));
            let failure =
                || Failure { wanted: format!("the stop of {bucket} is `{state}` {}", moment(*at)), instead: format!("it is `{is}`") };
            if is == state { Ok(()) } else { Err(failure()) }
        }
        Is::Go { at, wanted } => gate(seen, *at, "go", *wanted, |state| state.go),
        Is::Stop { at, wanted } => gate(seen, *at, "stop", *wanted, |state| state.stop),
        Is::Endpoint { endpoint, span, event_type, got } => {
            let meant = |a: &&Attempt| a.endpoint == *endpoint && event_type.as_ref().is_none_or(|t| *t == a.event_type);
            let inside = |a: &&Attempt| (span.0..=span.1).contains(&(a.at - seen.start));
            received(endpoint, got, &seen.attempts.iter().filter(meant).filter(inside).collect::<Vec<_>>(), seen)
        }
        Is::Outcome { outcome, count } => {
            let n = counted(&seen.counts, outcome);
            let failure =
                || Failure { wanted: format!("{count} records are `{outcome}`"), instead: format!("{n} of {} are", seen.counts.records()) };
            if count.holds(n) { Ok(()) } else { Err(failure()) }
        }
    }
}

fn gate(seen: &Seen, at: Millis, name: &str, wanted: bool, of: impl Fn(&ExperimentState) -> bool) -> Result<(), Failure> {
    let state = seen.looks.get(&at);
    if state.is_some_and(|state| of(state) == wanted) {
        return Ok(());
    }
    let why = state.map_or("no record has come", |state| state.reason.as_str());
    Err(Failure { wanted: format!("gates say `{name}: {wanted}` {}", moment(at)), instead: format!("`{name}` is {}: {why}", !wanted) })
}

/// Whose verdicts are asked for, what they are, and why.
fn verdicts(state: &ExperimentState, guardrail: &str, bucket: Option<&str>, segment: Option<&str>) -> Vec<(String, &'static str, String)> {
    let mut found = Vec::new();
    for g in state.guardrails.iter().filter(|g| g.guardrail == guardrail && bucket.is_none_or(|b| b == g.bucket)) {
        match segment {
            None => found.push((format!("{guardrail} of {}", g.bucket), verdict_name(g.verdict), g.reason.clone())),
            Some(name) => {
                let of = g.segments.iter().filter(|s| s.segment == name);
                found.extend(of.map(|s| (format!("{guardrail} of {} in {name}", g.bucket), verdict_name(s.verdict), s.reason.clone())));
            }
        }
    }
    let checks = state.quality.iter().filter(|q| q.check == guardrail);
    found.extend(checks.map(|q| (q.check.clone(), verdict_name(q.verdict), q.reason.clone())));
    found
}

fn received(endpoint: &str, got: &Got, attempts: &[&Attempt], seen: &Seen) -> Result<(), Failure> {
    let ids: BTreeSet<&str> = attempts.iter().map(|a| a.delivery.as_str()).collect();
    let through: BTreeSet<&str> = attempts.iter().filter(|a| a.delivered).map(|a| a.delivery.as_str()).collect();
    let delivered = !ids.is_empty() && through.len() == ids.len();
    let wanted = [
        got.attempts.filter(|c| !c.holds(attempts.len() as u64)).map(|c| format!("{endpoint} gets {c} requests")),
        got.deliveries.filter(|c| !c.holds(ids.len() as u64)).map(|c| format!("{endpoint} gets {c} webhooks")),
        got.delivered
            .filter(|wanted| *wanted != delivered)
            .map(|wanted| format!("{endpoint} {} all of it", if wanted { "receives" } else { "does not receive" })),
    ];
    let Some(wanted) = wanted.into_iter().flatten().next() else { return Ok(()) };
    let one = |a: &&Attempt| format!("{} {} ({})", show(a.at - seen.start), a.event_type.trim_start_matches("guardrail."), a.answer);
    let listed: Vec<String> = attempts.iter().take(6).map(one).collect();
    let more = if attempts.len() > 6 { format!(" and {} more", attempts.len() - 6) } else { String::new() };
    let instead = match attempts.len() {
        0 => "it gets none".to_owned(),
        n => format!("{}, {}: {}{more}", plural(n, "request"), plural(ids.len(), "webhook"), listed.join(", ")),
    };
    Err(Failure { wanted, instead })
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn counted(counts: &Counts, outcome: &str) -> u64 {
    match outcome {
        "accepted" => counts.accepted,
        "late" => counts.late,
        "duplicate" => counts.duplicate,
        "unattributed" => counts.unattributed,
        "unknown_experiment" => counts.unknown_experiment,
        "inactive" => counts.inactive,
        "unmapped" => counts.unmapped,
        "rejected" => counts.rejected.total(),
        name => Reject::ALL.into_iter().filter(|r| r.name() == name).map(|r| counts.rejected.get(r)).sum(),
    }
}

/// What was decided though it is not meant; or why nothing was.
fn instead(others: &[&Decision], seen: &Seen) -> String {
    if !others.is_empty() {
        return format!("decided is: {}", list(others, seen));
    }
    let worst = seen.looks.get(&Millis::MAX).and_then(|state| state.guardrails.iter().max_by_key(|g| g.verdict.badness()));
    worst.map_or("no record has come".to_owned(), |g| {
        format!("nothing is decided; at the end {} of {} is `{}`: {}", g.guardrail, g.bucket, verdict_name(g.verdict), g.reason)
    })
}

fn list(decisions: &[&Decision], seen: &Seen) -> String {
    let short: Vec<String> = decisions.iter().take(4).map(|d| brief(d, seen)).collect();
    let more = if decisions.len() > 4 { format!(" and {} more", decisions.len() - 4) } else { String::new() };
    short.join(", ") + &more
}

/// A decision in few words: `rollback of treatment by latency_p95 at 17m02s`.
pub fn brief(decision: &Decision, seen: &Seen) -> String {
    let of = if decision.bucket.is_empty() { String::new() } else { format!(" of {}", decision.bucket) };
    let follows = if decision.is_follow_up() { format!(" ({})", decision.criterion) } else { String::new() };
    let segment = decision.segment.as_ref().map_or(String::new(), |s| format!(" in {s}"));
    format!("{}{of} by {}{segment}{follows} at {}", decision.action.name(), decision.guardrail, show(decision.decided_at - seen.start))
}

fn told(decision: &Decision, seen: &Seen) -> String {
    format!("{}: {}", brief(decision, seen), decision.reason)
}

fn moment(at: Millis) -> String {
    if at == Millis::MAX { "at the end".to_owned() } else { format!("at {}", show(at)) }
}

fn between((from, until): (Millis, Millis)) -> String {
    match (from, until) {
        (0, Millis::MAX) => "at any time".to_owned(),
        (from, Millis::MAX) => format!("from {} on", show(from)),
        (0, until) => format!("by {}", show(until)),
        (from, until) => format!("between {} and {}", show(from), show(until)),
    }
}
