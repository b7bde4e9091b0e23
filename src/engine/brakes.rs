//! How many rollbacks the machine may make by itself: of one experiment (`rate_limit`), and how many experiments in a span (the blast
//! radius). What goes beyond is decided and logged as ever, and told to people instead of being carried out.
//!
//! Time is that of decisions, so that a replay holds back the same ones. A kill is not held back: it answers what must not happen at all.

use super::decision::{Action, Decision, HeldBy, Mode};
use super::plan::{BlastRadius, RateLimit};
use super::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// What has been rolled back lately, and what has been held back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Brakes {
    /// When, and which experiment and decision.
    rollbacks: BTreeSet<(Millis, String, String)>,
    /// When.
    held: BTreeMap<Held, Millis>,
}

/// Experiment, revision, arming epoch and bucket.
type Held = (String, u32, u32, String);

/// No rule looks further back than this: a week.
const MAX_SPAN: Millis = 7 * 86_400_000;

impl Brakes {
    /// Holds a decision back where it would be one too many, and with it what follows when exposures do not stop. Decisions come in the order
    /// of event time.
    pub fn weigh(&mut self, decision: &mut Decision, own: Option<RateLimit>, radius: &BlastRadius) {
        if decision.is_follow_up() && decision.action.intervenes() {
            // Nothing has been sent that could be confirmed.
            decision.held_by = self.held.contains_key(&place(decision)).then_some(HeldBy::Rollback);
        } else if is_counted(decision) {
            let (at, name) = (decision.decided_at, &decision.experiment);
            // One that ran ahead of its pane may be of a moment after this one.
            let since = |span: Millis| self.rollbacks.iter().filter(move |(when, ..)| *when > at - span);
            let mine = own.filter(|own| since(own.within).filter(|(_, of, _)| of == name).count() >= own.rollbacks as usize);
            let others: BTreeSet<&String> = since(radius.within).map(|(_, of, _)| of).collect();
            let wide = radius.experiments > 0 && !others.contains(name) && others.len() >= radius.experiments;
            let (by, why) = match mine {
                Some(own) => {
                    (HeldBy::RateLimit, format!("{} rollbacks in {} s are this experiment's limit", own.rollbacks, own.within / 1_000))
                }
                None if wide => {
                    let (n, seconds) = (radius.experiments, radius.within / 1_000);
                    (HeldBy::BlastRadius, format!("{n} experiments in {seconds} s is the most that are rolled back without a person"))
                }
                None => return self.adopt(decision),
            };
            let _ = write!(decision.reason, "; held back: {why}");
            decision.held_by = Some(by);
            self.adopt(decision);
        }
    }

    /// Takes up what has been decided.
    pub fn adopt(&mut self, decision: &Decision) {
        if is_counted(decision) && decision.held_by.is_none() {
            self.rollbacks.insert((decision.decided_at, decision.experiment.clone(), decision.decision.clone()));
        } else if is_counted(decision) {
            self.held.insert(place(decision), decision.decided_at);
        }
    }

    /// A person has acted: what follows from what was held back is not held back any more.
    pub fn release(&mut self, experiment: &str) {
        self.held.retain(|(of, ..), _| of != experiment);
    }

    /// Forgets what no rule looks back to.
    pub fn forget(&mut self, now: Millis) {
        let since = now - MAX_SPAN;
        while self.rollbacks.first().is_some_and(|(at, ..)| *at < since) {
            self.rollbacks.pop_first();
        }
        self.held.retain(|_, at| *at >= since);
    }
}

fn place(decision: &Decision) -> Held {
    (decision.experiment.clone(), decision.revision, decision.epoch, decision.bucket.clone())
}

/// A rollback that the machine would carry out.
fn is_counted(decision: &Decision) -> bool {
    let acts = decision.action == Action::Rollback && decision.mode == Mode::Enforce && decision.covered_by.is_none();
    acts && decision.author.is_none() && !decision.is_follow_up()
}
