//! The life of an experiment: launch, phases, warm-up, full rollout and its watch, end.

use super::act::percent;
use super::phases::Phases;
use super::{Judge, SPREADING_MS};
use crate::engine::decision::{LogKind, Output, Timestamp};
use crate::engine::plan::{Plan, QualityKind};
use crate::engine::state::{PlannedPhase, RolloutState, Stage};
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rollout {
    pub phases: Phases,
    launched: bool,
    /// First pane that is judged again.
    warm_to: Option<Pane>,
    /// The baseline has had no traffic beyond the holdback from then on.
    full_since: Option<Millis>,
    /// The full rollout has been watched to its end.
    done: bool,
    ended: bool,
}

impl Rollout {
    pub fn new(plan: &Plan) -> Rollout {
        Rollout { phases: Phases::new(plan), launched: false, warm_to: None, full_since: None, done: false, ended: false }
    }

    /// What `pane` holds is not judged.
    pub fn is_warming(&self, pane: Pane) -> bool {
        self.warm_to.is_some_and(|to| pane < to)
    }

    /// Nothing is judged any more.
    pub fn is_done(&self) -> bool {
        self.done
    }

    fn stage(&self) -> Stage {
        if self.done {
            Stage::Done
        } else if self.ended {
            Stage::Ended
        } else if self.full_since.is_some() {
            Stage::Full
        } else if self.launched {
            Stage::Running
        } else {
            Stage::Planned
        }
    }
}

impl Judge {
    /// The first record has come, in `pane`.
    pub(super) fn launch(&mut self, pane: Pane, out: &mut Output) {
        let text = "first record: the experiment is being watched".to_owned();
        self.log(pane.end(self.pane_ms), LogKind::Launch, None, text, out);
        self.state.rollout.launched = true;
        self.state.rollout.phases.launch(pane.start(self.pane_ms));
        self.warm_up(pane);
    }

    fn warm_up(&mut self, from: Pane) {
        let panes = (self.plan.warm_up + self.pane_ms - 1).div_euclid(self.pane_ms);
        self.state.rollout.warm_to = (panes > 0).then_some(Pane(from.0 + panes));
    }

    /// The rollout moved to phase `index`, with new weights if given, else those that the phase has by its plan.
    pub(super) fn move_to(&mut self, at: Millis, index: Option<u32>, weights: &[(String, f64)], by: Option<String>, out: &mut Output) {
        let mut text = match index.map(|index| (index, self.plan.phases.get(index as usize))) {
            None => format!("a phase that the rule does not name: phase {} goes on", self.state.phase),
            Some((index, None)) => format!("phase {index}"),
            Some((index, Some(phase))) => format!("phase {index} ({})", phase.name),
        };
        let planned = self.plan.phases.get(index.unwrap_or(self.state.phase) as usize).and_then(|phase| phase.weights.as_ref());
        let given = |(name, share): &(String, f64)| self.plan.bucket(name).filter(|_| (0.0..=1.0).contains(share)).map(|b| (b, *share));
        let shares: Vec<(usize, f64)> = match (weights, planned) {
            ([], Some(planned)) if index.is_some() => planned.iter().copied().enumerate().collect(),
            (weights, _) => weights.iter().filter_map(given).collect(),
        };
        for (bucket, share) in shares {
            self.state.weights[bucket] = share;
            let _ = write!(text, ", {} {}", self.plan.buckets[bucket].name, percent(share));
        }
        let pane = Pane::of(at, self.pane_ms);
        let spreading = (SPREADING_MS.max(self.plan.warm_up) / self.pane_ms).max(1);
        let changed = self.state.allocation.change(pane, &self.state.weights, spreading);
        if changed {
            text.push_str(": the allocation changes, units exposed from now on are compared among themselves");
        }
        let moved = index.filter(|index| *index != self.state.phase);
        self.state.phase = index.unwrap_or(self.state.phase);
        if changed || moved.is_some() {
            let (phase, weights) = (self.state.phase, self.state.weights.clone());
            // What has been judged stays where it was counted.
            let from = self.state.at.map_or(pane, |judged| pane.max(Pane(judged.0 + 1)));
            self.state.rollout.phases.begin(phase, at, from, weights);
            self.warm_up(from);
            // Whoever moves the rollout may mean a bucket to have traffic again.
            for (stop, weight) in self.state.stops.iter_mut().zip(&self.state.weights) {
                stop.iter_mut().filter(|_| *weight > 0.0).for_each(|stop| stop.comeback = None);
            }
        }
        self.log(at, LogKind::Phase, by, text, out);
        self.fill(at, out);
    }

    /// Notices whether the rollout is full now.
    fn fill(&mut self, at: Millis, out: &mut Output) {
        let (baseline, all) = (self.state.weights[self.plan.baseline()], self.state.weights.iter().sum::<f64>());
        let full = all > 0.0 && baseline / all <= self.plan.holdback + 1e-9;
        if !full {
            (self.state.rollout.full_since, self.state.rollout.done) = (None, false);
            return;
        }
        if self.state.rollout.full_since.is_some() {
            return;
        }
        self.state.rollout.full_since = Some(at);
        let name = &self.plan.buckets[self.plan.baseline()].name;
        let mut text = match baseline > 0.0 {
            true => format!("full rollout: {name} keeps {} as the holdback, which comparisons go on with", percent(baseline / all)),
            false => format!("full rollout: {name} has no traffic, so comparisons are frozen; limits and checks go on"),
        };
        if let Some(until) = self.watched_until() {
            let _ = write!(text, "; watched until {}", Timestamp(until));
        }
        self.log(at, LogKind::FullRollout, None, text, out);
    }

    fn watched_until(&self) -> Option<Millis> {
        Some(self.state.rollout.full_since? + self.plan.watch_after_full?)
    }

    /// When the next milestone comes by itself; a bucket that was stopped ends the watch.
    fn due(&self) -> [Option<Millis>; 2] {
        let rollout = &self.state.rollout;
        let stopped = self.state.stops.iter().any(Option::is_some);
        let watch = self.watched_until().filter(|_| !rollout.done && !stopped);
        [watch, self.plan.ends.filter(|_| rollout.launched && !rollout.ended)]
    }

    /// Nothing of `pane` is judged any more.
    pub(super) fn is_over(&self, pane: Pane) -> bool {
        self.state.rollout.is_done() || self.due()[0].is_some_and(|until| until <= pane.start(self.pane_ms))
    }

    /// The pane at whose end a milestone comes.
    pub(super) fn next_milestone(&self) -> Option<Pane> {
        self.due().into_iter().flatten().min().map(|at| Pane::of(at - 1, self.pane_ms))
    }

    /// Says what has come to its end with `pane`.
    pub(super) fn milestones(&mut self, pane: Pane, out: &mut Output) {
        let now = pane.end(self.pane_ms);
        let [watch, end] = self.due().map(|due| due.is_some_and(|at| at <= now));
        if watch {
            self.state.rollout.done = true;
            // Nobody is alarmed any more, so nothing is held either.
            for (check, state) in self.plan.quality.iter().zip(&mut self.state.quality.checks) {
                state.failing &= !matches!(check.kind, QualityKind::Silence { .. });
            }
            let watched = span(self.plan.watch_after_full.unwrap_or(0));
            self.log(
                now,
                LogKind::WatchOver,
                None,
                format!("the full rollout has been watched for {watched}: nothing is judged any more"),
                out,
            );
        }
        if end {
            self.state.rollout.ended = true;
            let units: u64 = self.state.traffic.iter().map(|t| t.units).sum();
            self.log(now, LogKind::Ended, None, format!("the end date has come: {units} units were exposed"), out);
        }
    }

    /// Why a bucket cannot be compared with the baseline in this phase.
    pub(super) fn without_traffic(&self, bucket: usize) -> Option<String> {
        let empty = [self.plan.baseline(), bucket].into_iter().find(|b| self.state.weights[*b] <= 0.0)?;
        Some(format!("{} has no traffic in this phase: comparisons are frozen", self.plan.buckets[empty].name))
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.state.weights[self.plan.baseline()] <= 0.0
    }

    pub(super) fn rollout(&self) -> RolloutState {
        let (rollout, now) = (&self.state.rollout, self.state.at.map(|p| p.end(self.pane_ms)));
        let planned = self.plan.phases.get(self.state.phase as usize);
        let due = rollout.phases.since().zip(planned.and_then(|p| p.span)).map(|(since, span)| since + span);
        let warming = rollout.warm_to.filter(|to| self.state.at.is_some_and(|at| at.0 + 1 < to.0));
        RolloutState {
            stage: rollout.stage(),
            phase_since: rollout.phases.since(),
            phase_due: due,
            phase_ready: due.zip(now).is_some_and(|(due, now)| now >= due),
            warming_until: warming.map(|to| to.start(self.pane_ms)),
            full_since: rollout.full_since,
            watched_until: self.watched_until(),
            holdback: self.plan.holdback,
            phases: self.plan.phases.iter().map(|p| PlannedPhase { name: p.name.clone(), traffic: p.traffic, for_ms: p.span }).collect(),
        }
    }

    /// Why the life of the experiment says "no go"; `None` while it is in full swing.
    pub(super) fn not_now(&self, rollout: &RolloutState) -> Option<String> {
        match (rollout.stage, rollout.warming_until) {
            (Stage::Done, _) => Some("done: the full rollout was watched to its end, nothing is judged any more".into()),
            (Stage::Ended, _) => Some("the end date has come: nothing is judged any more".into()),
            (_, Some(until)) => Some(format!("warming up until {}: what is seen before is not judged", Timestamp(until))),
            _ => None,
        }
    }

    /// What the plan says of going on, after a reason that says "go".
    pub(super) fn outlook(&self, rollout: &RolloutState) -> String {
        if let (Stage::Full, Some(until)) = (rollout.stage, rollout.watched_until) {
            return format!("; the full rollout is watched until {}", Timestamp(until));
        }
        let Some((due, phase)) = rollout.phase_due.zip(rollout.phases.get(self.state.phase as usize)) else { return String::new() };
        let planned = span(phase.for_ms.unwrap_or(0));
        let over = self.state.at.map_or(0, |at| at.end(self.pane_ms) - due);
        match (rollout.phase_ready, rollout.phases.get(self.state.phase as usize + 1)) {
            (false, _) => format!("; {} is planned to last {planned}, until {}", phase.name, Timestamp(due)),
            (true, Some(next)) => format!("; {} has lasted its {planned} and {} more: ready for {}", phase.name, span(over), next.name),
            (true, None) => format!("; {}, the last phase, has lasted its {planned}", phase.name),
        }
    }
}

/// `90s`, `6h`, `1d12h`: the two largest units that are not zero.
fn span(ms: Millis) -> String {
    let seconds = ms / 1_000;
    let parts = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = parts.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    parts[first..].iter().take(2).enumerate().filter(|(i, (n, _))| *i == 0 || *n > 0).map(|(_, (n, unit))| format!("{n}{unit}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_they_are_written() {
        let shown: Vec<String> = [0, 90_000, 3_600_000, 86_400_000, 90_061_000].map(span).into();
        assert_eq!(shown, ["0s", "1m30s", "1h", "1d", "1d1h"]);
    }
}
