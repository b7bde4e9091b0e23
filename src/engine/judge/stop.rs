//! After a rollback: do exposures to the bucket really stop?

use super::Judge;
use super::comeback::Comeback;
use crate::engine::decision::{Action, Decision, Evidence, LogKind, Notice, NoticeKind, Output, decision_id};
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};

/// A bucket that has been told to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    pub decision: String,
    pub action: Action,
    pub at: Millis,
    /// Exposures per second when it was decided.
    pub before_per_s: f64,
    pub confirmation: Confirmation,
    /// What has been seen since it was confirmed, while nothing else explains exposures.
    pub comeback: Option<Comeback>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Confirmation {
    Waiting,
    Confirmed,
    /// Overdue; a late confirmation is still noticed.
    Unconfirmed,
    /// Nothing was sent: the rule only observes.
    Observed,
    /// Exposures had stopped, and have come back.
    Undone,
}

impl Confirmation {
    pub fn name(self) -> &'static str {
        match self {
            Confirmation::Waiting => "waiting",
            Confirmation::Confirmed => "confirmed",
            Confirmation::Unconfirmed => "unconfirmed",
            Confirmation::Observed => "observed",
            Confirmation::Undone => "undone",
        }
    }
}

impl Stop {
    pub fn is_waiting(&self) -> bool {
        matches!(self.confirmation, Confirmation::Waiting)
    }
}

/// The criteria of what follows a stop that does not hold.
pub(super) const CONFIRM_WITHIN: &str = "confirm_within";
pub(super) const UNDONE: &str = "undone";

/// Exposures that would have been expected in a quiet span before it counts as stopped: by chance alone, none are seen once in
/// e^10 = 22,000 times.
const EXPECTED: f64 = 10.0;

impl Judge {
    pub(super) fn watch_stops(&mut self, pane: Pane, out: &mut Output) {
        for bucket in 0..self.plan.buckets.len() {
            let Some(stop) = self.state.stops[bucket].clone() else { continue };
            match stop.confirmation {
                Confirmation::Confirmed => {
                    self.judge_comeback(bucket, pane, out);
                    continue;
                }
                Confirmation::Observed | Confirmation::Undone => continue,
                Confirmation::Waiting | Confirmation::Unconfirmed => {}
            }
            let now = pane.end(self.pane_ms);
            if self.has_stopped(bucket, &stop, pane) {
                self.confirm(bucket, &stop, now, out);
            } else if stop.is_waiting() && now - stop.at >= self.plan.confirm_within {
                self.give_up(bucket, &stop, pane, out);
            }
        }
    }

    /// No exposure for long enough to mean something, while other data went on: silence everywhere confirms nothing.
    fn has_stopped(&self, bucket: usize, stop: &Stop, pane: Pane) -> bool {
        let quiet_since = self.quiet_since(bucket, stop);
        let wanted = match stop.before_per_s > 0.0 {
            true => (EXPECTED / stop.before_per_s * 1_000.0) as Millis,
            false => self.plan.confirm_within / 2,
        };
        let longest = (self.plan.confirm_within / 2).max(self.pane_ms);
        let wanted = wanted.clamp((3 * self.pane_ms).min(longest), longest);
        pane.end(self.pane_ms) - quiet_since >= wanted && self.heard_since(quiet_since)
    }

    /// End of the bucket's last exposure after the action; the action itself, when there was none.
    fn quiet_since(&self, bucket: usize, stop: &Stop) -> Millis {
        self.state.traffic[bucket].last_pane().map_or(stop.at, |p| p.end(self.pane_ms)).max(stop.at)
    }

    fn heard_since(&self, since: Millis) -> bool {
        self.state.last_record.is_some_and(|p| p.end(self.pane_ms) > since)
    }

    fn confirm(&mut self, bucket: usize, stop: &Stop, now: Millis, out: &mut Output) {
        if let Some(stop) = &mut self.state.stops[bucket] {
            stop.confirmation = Confirmation::Confirmed;
            stop.comeback = Some(Comeback::default());
        }
        let name = &self.plan.buckets[bucket].name;
        let (before, seconds) = (stop.before_per_s, (now - stop.at) as f64 / 1_000.0);
        let text = format!("{} of {name} confirmed: exposures fell from {before:.1}/s to 0/s within {seconds:.0} s", stop.action.name());
        match self.in_force.get(&stop.decision) {
            Some(decision) => out.notices.push(Notice { kind: NoticeKind::Confirmed, at: now, decision: decision.clone(), text }),
            None => self.log(now, LogKind::Confirmed, None, text, out),
        }
    }

    fn give_up(&mut self, bucket: usize, stop: &Stop, pane: Pane, out: &mut Output) {
        if let Some(stop) = &mut self.state.stops[bucket] {
            stop.confirmation = Confirmation::Unconfirmed;
        }
        let Some(original) = self.in_force.get(&stop.decision).cloned() else { return };
        let now = pane.end(self.pane_ms);
        let span = (self.plan.confirm_within / self.pane_ms).clamp(1, 10);
        let now_per_s = self.state.traffic[bucket].rate(pane, span, self.pane_ms);
        let silent = now_per_s == 0.0 && !self.heard_since(self.quiet_since(bucket, stop));
        let why = match silent {
            true => "no data has arrived since, so nothing shows that it took effect".to_owned(),
            false => format!("exposures went from {:.1}/s to {now_per_s:.1}/s instead of 0/s", stop.before_per_s),
        };
        let name = &self.plan.buckets[bucket].name;
        let waited = self.plan.confirm_within as f64 / 1_000.0;
        let reason = format!("{} of {name} ({}) is not confirmed after {waited:.0} s: {why}", stop.action.name(), stop.decision);
        let evidence = Evidence::Exposures { before_per_s: stop.before_per_s, now_per_s };
        let actions = self.plan.unconfirmed.clone();
        self.follow_up(stop, &original, (CONFIRM_WITHIN, &actions), (stop.at, now), (evidence, reason), out);
    }

    /// Decides what follows when a stop does not hold; returns the ids.
    pub(super) fn follow_up(
        &mut self,
        stop: &Stop,
        original: &Decision,
        (criterion, actions): (&str, &[Action]),
        (since, now): (Millis, Millis),
        (evidence, reason): (Evidence, String),
        out: &mut Output,
    ) -> Vec<(String, Action)> {
        let (prefix, mut ids) = (if criterion == CONFIRM_WITHIN { "unconfirmed" } else { criterion }, Vec::new());
        for &action in actions {
            let part = format!("{prefix}/{}/{}", stop.decision, action.name());
            let (plan, epoch) = (&self.plan, self.state.epoch);
            let decision = Decision {
                decision: decision_id(&plan.experiment, plan.revision, &original.bucket, &original.guardrail, epoch, &part),
                decided_at: now,
                phase: self.state.phase,
                exposed_units: plan.bucket(&original.bucket).map_or(0, |bucket| self.state.traffic[bucket].units),
                criterion: criterion.into(),
                action,
                since,
                test: "count".into(),
                interval: None,
                alpha: None,
                log_e_value: None,
                evidence: evidence.clone(),
                reason: reason.clone(),
                epoch,
                covered_by: None,
                held_by: None,
                author: None,
                shared_cause: None,
                ..original.clone()
            };
            ids.push((decision.decision.clone(), action));
            self.put_in_force(decision, out);
        }
        ids
    }
}
