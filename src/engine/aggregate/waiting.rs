//! Events that overtook their unit's exposure: they wait for it until it would come too late, or until room is short.
//!
//! An exposure of time t settles the waiting events of its unit from t on. It counts itself only if t is within the allowed lateness, and so
//! no event that is older than that can be settled any more: it goes.

use super::keys::{Key, KeyMap};
use super::{Aggregator, Outcome, Target, unit};
use crate::engine::event::{Event, Kind};
use crate::engine::time::Millis;
use std::collections::BTreeMap;

/// An event that takes more than this does not wait. Bytes.
const EVENT_MAX: usize = 4_096;

/// See the module.
#[derive(Default)]
pub struct Waiting {
    /// In the order of arrival.
    held: BTreeMap<u64, Held>,
    /// The last to arrive of each unit.
    newest: KeyMap<u64>,
    next: u64,
    /// Written here first, so that only what it takes is allocated.
    scratch: Vec<u8>,
    /// Events that went, or did not wait at all, because there was no room.
    pub dropped: u64,
}

struct Held {
    unit: Key,
    ts: Millis,
    /// The experiment that the event names, if it names one.
    only: Option<u32>,
    /// The event of its unit that came before it, if that still waits.
    before: Option<u64>,
    event: Box<[u8]>,
}

impl Waiting {
    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Lets an event wait; false if it is too large. The caller makes room.
    pub fn push(&mut self, unit: Key, only: Option<u32>, event: &Event<'_>) -> bool {
        self.scratch.clear();
        let Ok(bytes) = postcard::to_extend(event, std::mem::take(&mut self.scratch)) else { return false };
        self.scratch = bytes;
        if self.scratch.len() > EVENT_MAX {
            self.scratch = Vec::new();
            return false;
        }
        let before = self.newest.insert(unit, self.next);
        self.held.insert(self.next, Held { unit, ts: event.ts, only, before, event: self.scratch.as_slice().into() });
        self.next += 1;
        true
    }

    /// Lets the oldest go, if it came to be older than `horizon`; `None` for whatever it is.
    pub fn pop(&mut self, horizon: Option<Millis>) -> bool {
        let Some(oldest) = self.held.first_entry().filter(|e| horizon.is_none_or(|horizon| e.get().ts < horizon)) else { return false };
        let number = *oldest.key();
        let unit = oldest.remove().unit;
        if self.newest.get(&unit) == Some(&number) {
            self.newest.remove(&unit);
        }
        true
    }

    /// Takes the events of a unit that is exposed to `experiment` since `since`, in the order of their arrival.
    pub fn take(&mut self, unit: Key, experiment: u32, since: Millis) -> Vec<Box<[u8]>> {
        let mut taken = Vec::new();
        let mut at = self.newest.remove(&unit);
        let mut stays: Option<u64> = None;
        // From the newest on; those that stay are linked anew. Where one is gone, so are all before it.
        while let Some((number, held)) = at.and_then(|number| Some((number, self.held.get(&number)?))) {
            at = held.before;
            if held.ts >= since && held.only.is_none_or(|only| only == experiment) {
                taken.extend(self.held.remove(&number).map(|held| held.event));
                continue;
            }
            match stays.replace(number) {
                None => drop(self.newest.insert(unit, number)),
                Some(after) => self.link(after, Some(number)),
            }
        }
        if let Some(last) = stays {
            self.link(last, None);
        }
        taken.reverse();
        taken
    }

    fn link(&mut self, number: u64, before: Option<u64>) {
        if let Some(held) = self.held.get_mut(&number) {
            held.before = before;
        }
    }

    /// What waits, in the order of arrival: [`read`] reads it.
    pub fn events(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.held.values().map(|held| &*held.event)
    }
}

/// An event that waited.
pub fn read(event: &[u8]) -> Option<Event<'static>> {
    postcard::from_bytes(event).ok()
}

impl Aggregator {
    /// Takes an event whose unit is not known to be exposed; what has to go to make room is settled.
    pub(super) fn wait(&mut self, event: &Event<'_>) -> Outcome {
        let Some(unit) = unit(event).filter(|_| self.settings.waiting_max > 0) else { return Outcome::Unattributed };
        let only = event.experiment.as_deref().and_then(|name| self.catalog.names.get(name).copied());
        let waits = self.waiting.push(unit, only, event);
        self.waiting.dropped += u64::from(!waits);
        while self.waiting.len() > self.settings.waiting_max && self.waiting.pop(None) {
            self.waiting.dropped += 1;
            self.counts.settle(Outcome::Unattributed);
        }
        if waits { Outcome::Waiting } else { Outcome::Unattributed }
    }

    /// The unit and experiment of an exposure that says more than was known, where an event may wait for it.
    pub(super) fn news(&self, event: &Event<'_>, unit: Option<Key>, targets: &[Target]) -> Option<(Key, u32)> {
        if event.kind != Kind::Exposure || self.waiting.is_empty() {
            return None;
        }
        let (unit, experiment) = (unit?, targets.first()?.experiment);
        let known = self.units.in_experiment(unit, experiment);
        known.is_none_or(|known| event.ts < known.since).then_some((unit, experiment))
    }

    /// Books the events that waited for an exposure of their unit to `experiment` since `since`.
    pub(super) fn settle(&mut self, unit: Key, experiment: u32, since: Millis) {
        for event in self.waiting.take(unit, experiment, since) {
            let outcome = match read(&event) {
                Some(event) => {
                    self.targets(&event, Some(unit)).map_or_else(|outcome| outcome, |targets| self.accept(&event, Some(unit), targets))
                }
                None => Outcome::Unattributed,
            };
            self.counts.settle(outcome);
        }
    }

    /// Lets go what nothing can settle any more, or everything.
    pub(super) fn give_up(&mut self, horizon: Option<Millis>) {
        while self.waiting.pop(horizon) {
            self.counts.settle(Outcome::Unattributed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::{Scalar, Text};
    use smallvec::smallvec;

    fn event(ts: Millis, name: &str) -> Event<'_> {
        Event {
            ts,
            id: Some(Text::Borrowed("id")),
            tenant_id: Some(Text::Borrowed("t")),
            user_id: Some(Text::Borrowed(name)),
            experiment: None,
            bucket: None,
            attributes: Vec::new(),
            kind: Kind::Other { name: Text::Borrowed(name) },
            fields: smallvec![(3, Scalar::Text(Text::Borrowed(name))), (4, Scalar::Number(0.1)), (5, Scalar::Bool(true))],
        }
    }

    fn names(taken: Vec<Box<[u8]>>) -> Vec<String> {
        taken.iter().map(|bytes| read(bytes).unwrap().kind.name().to_owned()).collect()
    }

    #[test]
    fn an_exposure_settles_what_came_after_it_in_the_order_of_arrival() {
        let mut waiting = Waiting::default();
        for (unit, only, ts, name) in
            [(1, None, 50, "a"), (2, None, 50, "b"), (1, None, 40, "c"), (1, Some(7), 60, "d"), (1, None, 70, "e")]
        {
            assert!(waiting.push(unit, only, &event(ts, name)));
        }
        assert_eq!(names(waiting.take(1, 5, 50)), ["a", "e"], "c was before the exposure, d names another experiment");
        assert_eq!(names(waiting.take(1, 5, 50)), [""; 0]);
        assert!(waiting.push(1, None, &event(45, "f")));
        assert_eq!(names(waiting.take(1, 7, 40)), ["c", "d", "f"]);
        assert_eq!(names(waiting.take(2, 7, 0)), ["b"]);
        assert!(waiting.is_empty() && waiting.newest.is_empty());
    }

    #[test]
    fn the_oldest_go_and_leave_nothing_behind() {
        let mut waiting = Waiting::default();
        (0..10).for_each(|i| assert!(waiting.push(i % 3, None, &event(i as i64, "x"))));
        assert!(!waiting.pop(Some(0)), "of the time itself it still may be settled");
        assert!(waiting.pop(Some(1)) && !waiting.pop(Some(1)) && waiting.pop(None));
        assert_eq!((waiting.len(), waiting.take(0, 0, 0).len()), (8, 3));
        while waiting.pop(None) {}
        assert!(waiting.newest.is_empty());
    }

    #[test]
    fn an_event_is_read_as_it_was_written() {
        let mut waiting = Waiting::default();
        let written = event(5, "x");
        waiting.push(1, None, &written);
        assert_eq!(waiting.events().map(|e| read(e).unwrap()).collect::<Vec<_>>(), [written]);
        assert!(!waiting.push(1, None, &event(5, &"x".repeat(EVENT_MAX))), "too large to wait");
        assert_eq!(waiting.len(), 1);
    }
}
