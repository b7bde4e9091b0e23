//! What an Alertmanager holds, looked at from time to time, and for a while after the last record: longer than an alert holds by itself.

use super::World;
use super::alerts::ALERTS;
use super::network::sender;
use super::plan::{Fault, answer};
use guardraild::engine::time::Millis;
use guardraild::store::Store;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// How long alerts are watched when all records have been told of, ms; when the last fault begins; how long one takes at most.
const VIGIL: Millis = 1_400_000;
const LAST: Millis = 700_000;
const LONGEST: Millis = 300_000;
/// Between two looks, ms.
const LOOK: Millis = 20_000;

/// What happens, and when since the beginning. At first a restart in good order, so that what is replayed later is of the vigil alone; perhaps an experiment
/// leaves at the end.
pub fn faults(rng: &mut ChaCha8Rng, experiments: usize) -> Vec<(Millis, Fault)> {
    let mut faults = vec![(0, Fault::Restart { down: 1_000 })];
    for _ in 0..rng.random_range(2..12) {
        let span = rng.random_range(1_000..LONGEST);
        let fault = match rng.random_range(0..16) {
            0 => Fault::Crash { down: span, at_step: None },
            1 => Fault::Crash { down: span / 10, at_step: Some((rng.random_range(0..12), rng.random_range(0..4))) },
            2 => Fault::Restart { down: span / 2 },
            3 => Fault::TakeOver { down: rng.random_range(0..6_000), span },
            4 => Fault::DiskFails { table: None, span: span / 10, killed: false },
            5 => Fault::ClockSet { by: rng.random_range(-60_000..60_000) },
            6 => Fault::Forget,
            7 => Fault::Redeliver,
            8..11 => Fault::Webhook { endpoint: ALERTS, answer: answer(rng), span },
            _ => {
                let verb = ["resume", "resume", "rollback", "kill"].choose(rng).unwrap();
                Fault::Operator { experiment: rng.random_range(0..experiments), verb }
            }
        };
        faults.push((rng.random_range(1_000..LAST), fault));
    }
    faults.sort_by_key(|(at, _)| *at);
    if experiments > 1 && rng.random_bool(0.5) {
        faults.push((LAST, Fault::Removed { experiment: rng.random_range(0..experiments) }));
    }
    faults
}

impl World {
    /// Lives on with the alerts that stand, through what happens then.
    pub fn watch(&mut self) {
        let Some(faults) = self.plan.vigil.take().filter(|_| self.outcome.violations.is_empty()) else { return };
        let (begun, standing) = (self.clock.at(), self.standing());
        self.count("vigil over alerts");
        *self.outcome.faults.entry("alert that stands at its beginning").or_default() += standing as u64;
        self.plan.faults.extend(faults.into_iter().map(|(at, fault)| (begun + at, fault)));
        while self.clock.at() < begun + VIGIL {
            self.faults();
            self.step();
            self.with(|process, world| process.deliver(&mut world.receivers, &world.clock, &mut world.rng));
            self.pass(5_000);
        }
        self.receivers.heal();
        self.steps.borrow_mut().crash = None;
        self.conclude();
    }

    fn standing(&mut self) -> usize {
        let store = Store::open(self.database()).unwrap();
        self.receivers.alertmanager.standing(&store, &sender(ALERTS), &self.clock)
    }

    /// Notes whether the Alertmanager can be told; now and then looks at what it holds.
    pub fn look_at_alerts(&mut self) {
        let at = self.clock.at();
        let slow = at < self.steps.borrow().slow.1;
        let reached = self.process.is_some() && self.receivers.is_well(ALERTS, &self.clock) && !self.clock.disk_fails() && !slow;
        if !reached {
            self.receivers.alertmanager.trouble(at);
        }
        if at - self.looked >= LOOK && self.database().exists() {
            self.looked = at;
            let store = Store::open(self.database()).unwrap();
            let faults = self.receivers.alertmanager.look(&store, &sender(ALERTS), &self.clock, reached);
            faults.into_iter().for_each(|fault| self.violated(fault));
        }
    }
}
