//! After a confirmed stop: do exposures to the bucket come back?
//!
//! A CUSUM (Page 1954) of the likelihood ratio of Poisson counts, at a fifth of the rate that the bucket had before against a tenth of it. While
//! exposures are independent and come at no more than a tenth, the ratio from any start is a supermartingale of mean 1 at most, so over n
//! panes the chance of an alarm is below n e^-[`LOG_E`] (the sum over starts bounds the largest): 1 in 380 over thirty days of seconds.
//! Clients that cache a flag, and units that come in bursts, are not independent: therefore units of [`ENOUGH`] of 64 batches must be seen, too.

use super::stop::Confirmation;
use super::{BucketPartial, Judge};
use crate::engine::decision::{Action, Evidence, Output};
use crate::engine::pane::{Cell, NO_UNIT, traffic};
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};

/// Share of the rate before that stragglers may have, and the one that is looked for.
const TOLERATED: f64 = 0.1;
const SOUGHT: f64 = 0.2;
/// Natural logarithm of the evidence that is needed.
const LOG_E: f64 = 20.7;
/// Of 64 batches of units: those of about 18 units.
const ENOUGH: u32 = 16;
/// A bucket that had less traffic is measured against this, per second.
const LEAST_RATE: f64 = 0.1;

/// What has been seen of a bucket since its stop was confirmed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comeback {
    log_e: f64,
    /// The first and the last pane with an exposure of the run that the evidence is about.
    run: Option<(Pane, Pane)>,
    exposures: u64,
    /// A bit for each batch of units seen in the run.
    batches: u64,
}

impl Comeback {
    /// Takes in a pane with `exposures`, of units of `batches`, of a bucket that had `before` exposures a second.
    fn add(&mut self, pane: Pane, (exposures, batches): (u64, u64), before: f64, pane_ms: Millis) {
        let drift = (SOUGHT - TOLERATED) * before.max(LEAST_RATE) * pane_ms as f64 / 1_000.0;
        let quiet = self.run.map_or(0, |(_, last)| pane.0 - last.0 - 1) as f64;
        self.log_e -= drift * quiet;
        if self.log_e <= 0.0 {
            *self = Comeback::default();
        }
        self.log_e += exposures as f64 * (SOUGHT / TOLERATED).ln() - drift;
        self.run = Some((self.run.map_or(pane, |(first, _)| first), pane));
        self.exposures += exposures;
        self.batches |= batches;
    }

    fn is_certain(&self) -> bool {
        self.log_e >= LOG_E && self.batches.count_ones() >= ENOUGH
    }
}

/// The batches of the exposed units of a pane, a bit each; of what was counted, where there are no exposures. A record without a unit stands
/// for one.
fn batches(cell: &Cell<'_>, exposures: bool) -> u64 {
    let counted = cell.observations().iter().filter(|o| match o.value {
        traffic::EXPOSURE | traffic::FIRST_EXPOSURE | traffic::MIXED_EXPOSURE => true,
        traffic::EVENT => !exposures,
        _ => false,
    });
    counted.enumerate().fold(0, |bits, (n, o)| bits | 1 << (if o.batch == NO_UNIT { n % 64 } else { usize::from(o.batch % 64) }))
}

impl Judge {
    /// Notes what a pane shows of a bucket that was confirmed to be without exposures.
    pub(super) fn watch_comeback(&mut self, pane: Pane, bucket: usize, part: &BucketPartial, cell: &Cell<'_>) {
        let exposures = self.state.traffic[bucket].exposures > 0;
        let Some(stop) = self.state.stops[bucket].as_mut() else { return };
        let Some(comeback) = stop.comeback.as_mut() else { return };
        let counted = if exposures { part.exposures } else { part.events };
        if counted > 0 {
            comeback.add(pane, (counted, batches(cell, exposures)), stop.before_per_s, self.pane_ms);
        }
    }

    /// A confirmed stop that was undone is decided upon once; a second time, after it was done again, people hear of it and nothing else is done.
    pub(super) fn judge_comeback(&mut self, bucket: usize, pane: Pane, out: &mut Output) {
        let Some(stop) = self.state.stops[bucket].as_mut() else { return };
        let Some(comeback) = stop.comeback.take_if(|comeback| comeback.is_certain()) else { return };
        stop.confirmation = Confirmation::Undone;
        let stop = stop.clone();
        let Some(original) = self.in_force.get(&stop.decision).cloned() else { return };
        let now = pane.end(self.pane_ms);
        let since = comeback.run.map_or(now, |(first, _)| first.start(self.pane_ms));
        let now_per_s = comeback.exposures as f64 * 1_000.0 / (now - since).max(self.pane_ms) as f64;
        let evidence = Evidence::Exposures { before_per_s: stop.before_per_s, now_per_s };
        let name = &self.plan.buckets[bucket].name;
        let reason = format!(
            "{} of {name} ({}) was undone: exposures are back at {now_per_s:.1}/s, after {:.1}/s before it and none since",
            stop.action.name(),
            stop.decision,
            stop.before_per_s
        );
        let again = original.criterion == super::stop::UNDONE;
        let told = |action: &Action| !again || *action < Action::Pause;
        let actions: Vec<Action> = self.plan.undone.iter().copied().filter(told).collect();
        let decided = self.follow_up(&stop, &original, (super::stop::UNDONE, &actions), (since, now), (evidence, reason), out);
        if let Some((decision, action)) =
            decided.into_iter().filter(|(_, action)| *action >= Action::Rollback).max_by_key(|(_, action)| *action)
        {
            let confirmation = Confirmation::Waiting;
            self.state.stops[bucket] = Some(super::Stop { decision, action, at: now, confirmation, comeback: None, ..stop });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until it is certain, where `exposures` of that second come from units of the given batches.
    fn certain(before: f64, seconds: i64, of: impl Fn(i64) -> (u64, u64)) -> Option<i64> {
        let mut comeback = Comeback::default();
        (0..seconds).find(|second| {
            let seen = of(*second);
            if seen.0 > 0 {
                comeback.add(Pane(*second), seen, before, 1_000);
            }
            comeback.is_certain()
        })
    }

    fn bit(n: i64) -> u64 {
        1 << (n.rem_euclid(64))
    }

    #[test]
    fn all_of_the_traffic_is_noticed_in_seconds_and_a_fifth_of_it_in_a_minute() {
        let back = |rate: i64| move |s: i64| (rate as u64, (0..rate).fold(0, |bits, i| bits | bit(7 * s + 5 * i)));
        assert!(certain(10.0, 100, back(10)).is_some_and(|s| s < 6));
        assert!(certain(10.0, 100, back(2)).is_some_and(|s| (10..90).contains(&s)));
        assert_eq!(certain(10.0, 100_000, back(1)), None, "a tenth is tolerated");
        assert!(certain(0.0, 100, back(1)).is_some());
    }

    #[test]
    fn stragglers_and_a_few_units_are_no_comeback() {
        // A handful of clients that hold on to the flag, at half of the rate before; then nobody, then one of many units a minute.
        assert_eq!(certain(10.0, 100_000, |s| (5, bit(s % 15))), None);
        assert_eq!(certain(10.0, 100_000, |s| if s % 60 == 0 { (1, bit(s / 60)) } else { (0, 0) }), None);
        // A burst that ends is forgotten.
        assert_eq!(certain(10.0, 100_000, |s| if s % 600 < 2 { (12, 0xfff << (s % 40)) } else { (0, 0) }), None);
    }
}
