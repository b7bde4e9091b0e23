//! Tells records of the future from a recording that goes on later: a recording has no wall clock to tell them by.

use crate::engine::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What became of a record that was held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Accepted,
    Future,
}

/// Holds back a record more than an hour ahead of all before it, until the recording itself decides.
///
/// A record within an hour of the recording's time (the largest accepted event time), or behind it, passes. Any other is held.
/// - A later record more than an hour behind a held one, and not more than an hour behind the recording's time, refutes it: it is
///   `future_timestamp`.
/// - A held record that the next 63 do not refute is accepted, and moves the recording's time; so are those behind it that it reaches.
/// - At the end those still held are accepted, save a single one that ends a recording of more than 64 records.
///
/// The first record has no time to be measured by, and is held like the rest. At most 63 records are held.
pub struct Gate<T> {
    passed: Passed,
    pub(super) held: VecDeque<(Millis, T)>,
}

/// What a gate that holds nothing knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// The recording's time.
    time: Option<Millis>,
    accepted: u64,
}

const JUMP: Millis = 3_600_000;
pub(super) const CONFIRMED_BY: usize = 63;

impl<T> Gate<T> {
    pub fn new(passed: Passed) -> Gate<T> {
        Gate { passed, held: VecDeque::new() }
    }

    /// What a new gate goes on from; `None` while records are held.
    pub fn passed(&self) -> Option<Passed> {
        self.held.is_empty().then_some(self.passed)
    }

    /// It holds records, or has no time yet.
    pub fn waits(&self) -> bool {
        self.passed.time.is_none() || !self.held.is_empty()
    }

    /// Whether a record passes with nothing held: then it counts as accepted.
    #[inline]
    pub fn passes(&mut self, ts: Millis) -> bool {
        match self.passed.time {
            Some(time) if self.held.is_empty() && ts <= time + JUMP => {
                self.accept(ts);
                true
            }
            _ => false,
        }
    }

    fn accept(&mut self, ts: Millis) {
        self.passed.time = Some(self.passed.time.map_or(ts, |time| time.max(ts)));
        self.passed.accepted += 1;
    }

    /// Takes a record that did not pass, and hands out those whose fate it decides, in the order of their arrival.
    pub fn offer(&mut self, ts: Millis, record: T, out: &mut impl FnMut(T, Fate)) {
        match self.passed.time {
            // Too old to say anything about the held.
            Some(time) if ts <= time - JUMP => {
                self.passed.accepted += 1;
                out(record, Fate::Accepted);
            }
            Some(time) if ts <= time + JUMP => {
                self.passed.time = Some(time.max(ts));
                while let Some((at, held)) = self.held.pop_front() {
                    self.release(at, held, out);
                }
                self.release(ts, record, out);
            }
            _ => {
                let (refuted, kept): (VecDeque<_>, VecDeque<_>) = self.held.drain(..).partition(|(at, _)| *at > ts + JUMP);
                self.held = kept;
                refuted.into_iter().for_each(|(_, held)| out(held, Fate::Future));
                self.held.push_back((ts, record));
                if self.held.len() > CONFIRMED_BY {
                    self.confirm(out);
                }
            }
        }
    }

    /// Accepts a record that the recording's time reaches, and refuses any other.
    fn release(&mut self, at: Millis, record: T, out: &mut impl FnMut(T, Fate)) {
        if self.passed.time.is_none_or(|time| at > time + JUMP) {
            return out(record, Fate::Future);
        }
        self.accept(at);
        out(record, Fate::Accepted);
    }

    /// Accepts the oldest held record, and those that follow within reach.
    fn confirm(&mut self, out: &mut impl FnMut(T, Fate)) {
        let Some((at, record)) = self.held.pop_front() else { return };
        self.accept(at);
        out(record, Fate::Accepted);
        while let Some((at, record)) = self.held.pop_front_if(|(at, _)| self.passed.time.is_some_and(|time| *at <= time + JUMP)) {
            self.release(at, record, out);
        }
    }

    /// The recording is at its end.
    pub fn finish(&mut self, out: &mut impl FnMut(T, Fate)) {
        if self.held.len() == 1 && self.passed.accepted > CONFIRMED_BY as u64 {
            self.held.drain(..).for_each(|(_, record)| out(record, Fate::Future));
        }
        while !self.held.is_empty() {
            self.confirm(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: Millis = 1_764_666_000_000;

    /// Runs event times through the gate: accepted ones, and those of the future.
    fn gated(times: &[Millis]) -> (Vec<Millis>, Vec<Millis>) {
        let (mut gate, mut accepted, mut future) = (Gate::new(Passed::default()), Vec::new(), Vec::new());
        let mut out = |ts, fate| if fate == Fate::Accepted { accepted.push(ts) } else { future.push(ts) };
        for ts in times {
            if gate.passes(*ts) {
                out(*ts, Fate::Accepted);
            } else {
                gate.offer(*ts, *ts, &mut out);
            }
            assert!(gate.held.len() <= CONFIRMED_BY);
        }
        gate.finish(&mut out);
        (accepted, future)
    }

    #[test]
    fn records_of_the_future_are_told_from_a_gap() {
        let day = 24 * JUMP;
        let dense = |from: Millis, n: Millis| (0..n).map(move |i| from + i * 1000);
        let year = T0 + 365 * day;
        let check = |times: Vec<Millis>, future: &[Millis]| {
            let kept: Vec<Millis> = times.iter().copied().filter(|t| !future.contains(t)).collect();
            assert_eq!(gated(&times), (kept, future.to_vec()));
        };
        check(dense(T0, 300).collect(), &[]);
        check(dense(T0, 100).chain(dense(T0 + day, 100)).collect(), &[]);
        check(dense(T0, 3).chain(dense(T0 + day, 3)).collect(), &[]);
        check((0..200).map(|i| T0 + i * 2 * JUMP).collect(), &[]);
        for place in [0, 1, 62, 63, 64, 65, 150, 199] {
            let mut times: Vec<Millis> = dense(T0, 199).collect();
            times.insert(place, year);
            check(times, &[year]);
        }
        // In the very moment of a gap.
        check(dense(T0, 100).chain([year, year + 1]).chain(dense(T0 + day, 100)).collect(), &[year, year + 1]);
        // A straggler from before the gap costs the few records held just then, and no more.
        let (accepted, future) =
            gated(&dense(T0, 100).chain(dense(T0 + day, 10)).chain([T0]).chain(dense(T0 + day, 100)).collect::<Vec<_>>());
        assert_eq!((accepted.len(), future.len()), (201, 10));
        // A record from long ago says nothing about what is held.
        let (accepted, future) =
            gated(&dense(T0, 100).chain(dense(T0 + day, 10)).chain([T0 - day]).chain(dense(T0 + day, 100)).collect::<Vec<_>>());
        assert_eq!((accepted.len(), future.len()), (211, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Nothing is lost or doubled, and without jumps nothing is refused or moved.
        #[test]
        fn the_gate_lets_each_record_out_once(times in prop::collection::vec((0i64..6, 0i64..60_000), 0..300)) {
            let times: Vec<Millis> = times.iter().map(|(jump, t)| T0 + jump / 5 * 50 * JUMP + t).collect();
            let (accepted, future) = gated(&times);
            let mut all = [accepted, future].concat();
            let mut expected = times.clone();
            all.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
            let calm: Vec<Millis> = times.iter().map(|t| T0 + t % 3_000_000).collect();
            prop_assert_eq!(gated(&calm), (calm.clone(), vec![]));
        }
    }
}
