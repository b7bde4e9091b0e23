//! Decisions that run ahead of their pane: those of a single event that must not happen at all, which waits for no partition; and after a
//! restart stored ones, until the replay has come to them.
//!
//! They are said, sent and shown at once. What they change (the guardrail has tripped, its bucket has been stopped, others share the
//! budget) waits until the pane that counts the event is judged, and decides again. So what is decided afterwards depends on records
//! alone, and not on which partition was heard first.

use super::limit::Reading;
use super::{Hypothesis, Judge};
use crate::engine::decision::{Action, Decision, Evidence, Output};
use crate::engine::pane::{Cause, Urgent};
use crate::engine::time::{Millis, Pane};
use std::fmt::Write;

/// What a decision is about: as long as it stands, nothing else is decided there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Guard(Hypothesis),
    Check(usize),
}

impl Judge {
    /// A single event of which none is allowed.
    pub fn urgent(&mut self, urgent: &Urgent, out: &mut Output) {
        if self.is_over(urgent.pane) {
            return;
        }
        // Inside the pane that counts it, however late it comes: a restart finds it there.
        let now = urgent.at.max(urgent.pane.start(self.pane_ms) + 1);
        match urgent.cause {
            Cause::Signal(signal) => self.forbidden(signal as usize, urgent, now, out),
            Cause::Ineligible => self.ineligible(urgent, now, out),
        }
    }

    fn forbidden(&mut self, signal: usize, urgent: &Urgent, now: Millis, out: &mut Output) {
        let bucket = urgent.bucket as usize;
        for index in 0..self.plan.guardrails.len() {
            let (of, guardrail) = (Hypothesis::overall(index, bucket), &self.plan.guardrails[index]);
            let known = self.state.guards[index].get(bucket).is_none_or(|guard| guard.tripped.is_some());
            if guardrail.signal != signal || !guardrail.is_zero_tolerance() || known || self.tripped_by(of).is_some() {
                continue;
            }
            let evidence = Evidence::Count { count: 1, allowed: 0 };
            let reading = Reading { n: 1, over: f64::INFINITY, under: 0.0, beyond: true, test: "count", evidence };
            let mut alarm = self.limit_alarm(of, now, &reading);
            // Whatever the decision says of its own event follows from that event alone.
            (alarm.values[0], alarm.since) = (None, urgent.at);
            let _ = write!(alarm.reason, ": {}", urgent.label);
            let decision = self.breach(of, now, alarm);
            self.announce(decision, &[bucket], out);
        }
    }

    /// An exposure of a unit that must not take part, by the rule's own word.
    fn ineligible(&mut self, urgent: &Urgent, now: Millis, out: &mut Output) {
        for index in 0..self.plan.quality.len() {
            let check = &self.plan.quality[index];
            if !check.is_zero_tolerance() || self.check_tripped_by(index).is_some() {
                continue;
            }
            let mut decision = self.decision("", check.kind.name(), check.kind.name(), check.action, now);
            decision.since = urgent.at;
            decision.evidence = Evidence::Count { count: 1, allowed: 0 };
            decision.reason = format!("exposure of a unit that must not take part: {}", urgent.label);
            self.announce(decision, &self.treated(), out);
        }
    }

    /// Says a decision before its pane is judged. Where a person holds, the pane tells of it.
    fn announce(&mut self, mut decision: Decision, buckets: &[usize], out: &mut Output) {
        if self.held(decision.action) || self.in_force.contains_key(&decision.decision) {
            return;
        }
        if decision.action >= Action::Rollback {
            decision.covered_by = self.covering(&decision, buckets);
        }
        self.ahead.insert(decision.decision.clone(), decision.clone());
        out.decisions.push(decision);
    }

    /// Every bucket but the baseline.
    pub(super) fn treated(&self) -> Vec<usize> {
        (0..self.plan.buckets.len()).filter(|b| *b != self.plan.baseline()).collect()
    }

    /// Takes up the arming epoch of a stored decision, where this judge's own has been lost with its checkpoint or its rule's old text.
    pub fn catch_up(&mut self, decision: &Decision) {
        self.changed = true;
        if decision.revision == self.plan.revision {
            self.state.epoch = self.state.epoch.max(decision.epoch);
        }
    }

    /// Takes up a stored decision after a restart, so that a replay of its records does not say it again.
    pub fn adopt(&mut self, decision: &Decision) {
        self.changed = true;
        if decision.revision == self.plan.revision && decision.epoch == self.state.epoch {
            self.ahead.insert(decision.decision.clone(), decision.clone());
            self.catch_up_with_ahead();
        }
    }

    /// The next pane that has a decision which is ahead of it.
    pub(super) fn next_ahead(&self) -> Option<Pane> {
        self.ahead.values().map(|decision| self.pane_of(decision)).min()
    }

    fn pane_of(&self, decision: &Decision) -> Pane {
        Pane::of(decision.decided_at - 1, self.pane_ms)
    }

    /// Puts in force what is not ahead any more, though nothing has decided it again: what the state knows already, what the replay has
    /// passed without the records that it was about, and a person's word, which has no place in the replay.
    pub(super) fn catch_up_with_ahead(&mut self) {
        if self.ahead.is_empty() {
            return;
        }
        let at = self.state.at;
        for (id, mut decision) in std::mem::take(&mut self.ahead) {
            let pane = self.pane_of(&decision);
            let known = self.place(&decision).is_some_and(|place| self.tripped_at(place).as_ref() == Some(&id));
            if decision.criterion != "operator" && at.is_none_or(|at| at < pane) && !known {
                self.ahead.insert(id, decision);
                continue;
            }
            self.note_tripped(&decision);
            self.in_force.insert(id, decision.clone());
            if decision.covered_by.is_none() && !decision.is_follow_up() {
                let buckets = self.plan.bucket(&decision.bucket).map_or_else(|| self.treated(), |bucket| vec![bucket]);
                self.enforce(&mut decision, &buckets, at.map_or(pane, |at| pane.min(at)));
            }
        }
    }

    /// What a decision in force is about does not decide again.
    pub(super) fn note_tripped(&mut self, decision: &Decision) {
        let id = Some(decision.decision.clone());
        match self.place(decision) {
            Some(Place::Guard(of)) => self.guard_mut(of).tripped = id,
            Some(Place::Check(index)) => self.state.quality.checks[index].tripped = id,
            None => {}
        }
    }

    fn tripped_at(&self, place: Place) -> &Option<String> {
        match place {
            Place::Guard(of) => &self.guard(of).tripped,
            Place::Check(index) => &self.state.quality.checks[index].tripped,
        }
    }

    fn place(&self, decision: &Decision) -> Option<Place> {
        if decision.is_follow_up() {
            return None;
        }
        let guardrail = self.plan.guardrails.iter().position(|g| g.name == decision.guardrail);
        if let (Some(bucket), Some(guardrail)) = (self.plan.bucket(&decision.bucket), guardrail) {
            // A segment that is not there yet finds its decision when it trips again.
            let segment = match &decision.segment {
                Some(name) => Some(self.state.segments.find(name)?),
                None => None,
            };
            return Some(Place::Guard(Hypothesis { guardrail, bucket, segment }));
        }
        self.plan.quality.iter().position(|q| q.kind.name() == decision.guardrail).map(Place::Check)
    }

    fn ahead_at(&self, place: Place) -> Option<&String> {
        self.ahead.values().find(|decision| self.place(decision) == Some(place)).map(|decision| &decision.decision)
    }

    /// The decision about a hypothesis, in force or ahead.
    pub(super) fn tripped_by(&self, of: Hypothesis) -> Option<&String> {
        self.guard(of).tripped.as_ref().or_else(|| self.ahead_at(Place::Guard(of)))
    }

    /// The decision about a check of the data, in force or ahead.
    pub(super) fn check_tripped_by(&self, index: usize) -> Option<&String> {
        self.state.quality.checks[index].tripped.as_ref().or_else(|| self.ahead_at(Place::Check(index)))
    }

    /// Whether a check of the data fails now, or will once its pane is judged.
    pub(super) fn fails(&self, index: usize) -> bool {
        self.state.quality.checks[index].failing || self.ahead_at(Place::Check(index)).is_some()
    }

    /// Decisions that run ahead and stop a bucket.
    pub(super) fn ahead_about(&self, bucket: usize) -> impl Iterator<Item = &Decision> {
        let (name, baseline) = (&self.plan.buckets[bucket].name, self.plan.baseline());
        let about = move |d: &&Decision| d.bucket == *name || d.bucket.is_empty() && bucket != baseline;
        self.ahead.values().filter(about).filter(|d| d.action >= Action::Rollback && d.covered_by.is_none())
    }
}
