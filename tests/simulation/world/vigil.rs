//! What an Alertmanager holds, looked at from time to time, and for a while after the last record: longer than an alert holds by itself.

use super::World;
use super::alerts::ALERTS;
use super::network::sender;
use super::plan::VIGIL;
use guardraild::engine::time::Millis;
use guardraild::store::Store;

/// Between two looks, ms.
const LOOK: Millis = 20_000;

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
