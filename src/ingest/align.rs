//! Merges the records of one partition number over several topics by Kafka's timestamps, so that an exposure is seen before the
//! events that were produced after it, during catch-up too.
//!
//! Which record is next follows from the logs alone: of the first ones of all topics, the one with the smallest timestamp. At the end of a
//! topic its next record is not known; a record of another topic waits there until one that is `kafka.merge_wait` younger has come, or for as
//! long. So the order is that of a backtest, as long as records come in the order of their times but for that much: those that do not are counted.

use crate::engine::time::Millis;
use std::collections::VecDeque;

/// Records of one topic held at most before the topic is to be paused; what is on its way already still comes on top.
const CROWD: usize = 10_000;
/// A topic that keeps the others waiting this long, with the chance to bring records, no longer does. Milliseconds. While a backlog is read, its records may well be seconds
/// behind those of the others in the queue; to go on without them would lose exposures, and make late what is not.
const PATIENCE: u64 = 30_000;

/// See the module. Topics are known by their index, and of records with one timestamp those of the first topic come first.
pub struct Aligner<T> {
    lanes: Vec<Lane<T>>,
    held: usize,
    blocked_since: Option<u64>,
    stalls: u64,
    overtaken: u64,
    /// How long a record waits at the end of a topic, ms; and the largest timestamp of a fresh record.
    wait: Millis,
    newest: Millis,
}

/// When a record was produced, and its topic: by this records are merged.
type Key = (Millis, usize);

struct Lane<T> {
    /// Assigned to this process.
    live: bool,
    /// Everything produced so far has been seen.
    ended: bool,
    /// Has kept the others waiting for too long.
    stuck: bool,
    queue: VecDeque<Held<T>>,
    /// The last, by their keys, of the others' records that have passed while this topic had none.
    passed: Option<Key>,
}

struct Held<T> {
    at: Millis,
    /// From when on it waits for no topic that is at its end; by the clock of [`Aligner::pop`].
    due: u64,
    record: T,
}

/// See [`Aligner::turn`].
#[derive(Debug, PartialEq)]
pub enum Turn<T> {
    /// It is the next: it need not be held.
    Pass,
    /// This one of those held, with its topic, belongs before it. Then ask again.
    After(usize, T),
    /// It must be pushed.
    Wait,
}

impl<T> Lane<T> {
    /// A record of this lane may still be on its way that belongs before those held. `fresh`: even if all that was known of has come.
    fn awaited(&self, fresh: bool) -> bool {
        self.live && self.queue.is_empty() && !self.stuck && (fresh || !self.ended)
    }
}

impl<T> Aligner<T> {
    /// `wait` in ms: see the module.
    pub fn new(topics: usize, wait: Millis) -> Aligner<T> {
        let lane = || Lane { live: false, ended: false, stuck: false, queue: VecDeque::new(), passed: None };
        let lanes = (0..topics).map(|_| lane()).collect();
        Aligner { lanes, held: 0, blocked_since: None, stalls: 0, overtaken: 0, wait, newest: Millis::MIN }
    }

    /// The topic's partition has been assigned or revoked. Records held stay, and come out in their turn.
    pub fn set_live(&mut self, topic: usize, live: bool) {
        let lane = &mut self.lanes[topic];
        (lane.live, lane.ended, lane.stuck) = (live, false, false);
    }

    pub fn any_live(&self) -> bool {
        self.lanes.iter().any(|l| l.live)
    }

    /// All that has been produced to the topic so far has come.
    pub fn end(&mut self, topic: usize) {
        self.lanes[topic].ended = true;
    }

    /// All topics are at their end, and nothing is held.
    pub fn caught_up(&self) -> bool {
        self.held == 0 && self.any_live() && self.lanes.iter().all(|l| l.ended || !l.live)
    }

    /// What is to be done about a record of the topic that comes now. `fresh`: it is of about now, and not of a backlog or by a wrong clock, so
    /// that a topic at its end may still bring one that belongs before it.
    pub fn turn(&mut self, topic: usize, timestamp: Millis, fresh: bool) -> Turn<T> {
        let fresh = fresh && self.wait > 0;
        if fresh {
            self.newest = self.newest.max(timestamp);
        }
        let lane = &mut self.lanes[topic];
        (lane.ended, lane.stuck) = (false, false);
        let waits = !lane.queue.is_empty() || self.lanes.iter().enumerate().any(|(i, l)| i != topic && l.awaited(fresh));
        if waits {
            return Turn::Wait;
        }
        self.blocked_since = None;
        let first = if self.held > 0 { self.first().filter(|first| *first < (timestamp, topic)) } else { None };
        match first.and_then(|(_, topic)| self.take(topic)) {
            Some((topic, record)) => Turn::After(topic, record),
            None => {
                self.arrives((timestamp, topic));
                self.passes((timestamp, topic));
                Turn::Pass
            }
        }
    }

    /// A topic brings a record: perhaps one that belonged before what has passed.
    fn arrives(&mut self, key: Key) {
        let lane = &mut self.lanes[key.1];
        match lane.passed {
            Some(passed) if passed > key => self.overtaken += 1,
            // What comes after this one belongs after it.
            _ => lane.passed = None,
        }
    }

    fn passes(&mut self, key: Key) {
        for (topic, lane) in self.lanes.iter_mut().enumerate() {
            if topic != key.1 && lane.queue.is_empty() {
                lane.passed = lane.passed.max(Some(key));
            }
        }
    }

    /// Key of the first of the records held.
    fn first(&self) -> Option<Key> {
        self.lanes.iter().enumerate().filter_map(|(i, l)| l.queue.front().map(|held| (held.at, i))).min()
    }

    fn take(&mut self, topic: usize) -> Option<(usize, T)> {
        let held = self.lanes[topic].queue.pop_front()?;
        self.held -= 1;
        self.passes((held.at, topic));
        Some((topic, held.record))
    }

    /// Holds a record that comes `now`, by the clock of [`Aligner::pop`]; `None` where it is not fresh.
    pub fn push(&mut self, topic: usize, timestamp: Millis, now: Option<u64>, record: T) {
        let due = now.map_or(0, |now| now.saturating_add(self.wait.unsigned_abs()));
        self.arrives((timestamp, topic));
        let lane = &mut self.lanes[topic];
        (lane.ended, lane.stuck) = (false, false);
        lane.queue.push_back(Held { at: timestamp, due, record });
        self.held += 1;
        self.stays((timestamp, topic));
    }

    /// A record has not passed after all: it waits for something else.
    fn stays(&mut self, key: Key) {
        self.lanes.iter_mut().for_each(|lane| lane.passed = lane.passed.filter(|passed| *passed != key));
    }

    /// When [`Aligner::pop`] will have something without any topic's bringing it.
    pub fn due(&self) -> Option<u64> {
        let (_, topic) = self.first().filter(|_| !self.lanes.iter().any(|lane| lane.awaited(false)))?;
        self.lanes[topic].queue.front().map(|held| held.due)
    }

    /// The next record with its topic, if none that belongs before it may still come. `now` in milliseconds of any clock that
    /// does not go back; it should stand still while no topic can bring anything.
    pub fn pop(&mut self, now: u64) -> Option<(usize, T)> {
        if self.held == 0 {
            self.blocked_since = None;
            return None;
        }
        if self.lanes.iter().any(|lane| lane.awaited(false)) {
            let since = *self.blocked_since.get_or_insert(now);
            if now.saturating_sub(since) < PATIENCE {
                return None;
            }
            self.stalls += 1;
            for lane in self.lanes.iter_mut().filter(|l| l.awaited(false)) {
                lane.stuck = true;
            }
        }
        self.blocked_since = None;
        let (_, topic) = self.first()?;
        let waits = |held: &Held<T>| now < held.due && held.at > self.newest.saturating_sub(self.wait);
        if self.lanes[topic].queue.front().is_some_and(waits) && self.lanes.iter().any(|lane| lane.awaited(true)) {
            return None;
        }
        self.take(topic)
    }

    /// Gives back what has been given last: it is the first again.
    pub fn put_back(&mut self, topic: usize, timestamp: Millis, record: T) {
        self.lanes[topic].queue.push_front(Held { at: timestamp, due: 0, record });
        self.held += 1;
        self.stays((timestamp, topic));
    }

    /// Topics to pause, one bit each: crowded ones, until half has gone (`paused`: those that are now).
    pub fn crowded(&self, paused: u64) -> u64 {
        let bound = |i: usize| if paused & (1 << i) == 0 { CROWD } else { CROWD / 2 };
        self.lanes.iter().enumerate().filter(|(i, l)| l.queue.len() > bound(*i)).fold(0, |bits, (i, _)| bits | 1 << i)
    }

    /// Times that a topic has kept the others waiting for too long.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// Records since the last call that came after others had passed that belong behind them: a backtest has them in the right order.
    pub fn take_overtaken(&mut self) -> u64 {
        std::mem::take(&mut self.overtaken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WAIT: Millis = 250;

    fn live(topics: usize) -> Aligner<Millis> {
        let mut a = Aligner::new(topics, WAIT);
        (0..topics).for_each(|t| a.set_live(t, true));
        a
    }

    fn drain(a: &mut Aligner<Millis>, now: u64) -> Vec<Millis> {
        std::iter::from_fn(|| a.pop(now).map(|(_, r)| r)).collect()
    }

    #[test]
    fn a_topic_that_may_still_bring_earlier_records_holds_the_others() {
        let mut a = live(2);
        assert_eq!(a.turn(1, 3, false), Turn::Wait);
        [3, 5].into_iter().for_each(|t| a.push(1, t, None, t));
        assert_eq!(drain(&mut a, 0), [0; 0]);
        [1, 4].into_iter().for_each(|t| a.push(0, t, None, t));
        assert_eq!(drain(&mut a, 0), [1, 3, 4], "5 waits for the first topic");
        a.end(0);
        assert_eq!(drain(&mut a, 0), [5]);
        assert!(a.turn(1, 6, false) == Turn::Pass && !a.caught_up());
        a.end(1);
        assert!(a.caught_up());
    }

    #[test]
    fn a_record_passes_behind_those_that_belong_before_it() {
        let mut a = live(2);
        [2, 5].into_iter().for_each(|t| a.push(0, t, None, t));
        assert_eq!(a.turn(1, 5, false), Turn::After(0, 2));
        assert_eq!(a.turn(1, 5, false), Turn::After(0, 5), "of one instant the first topic comes first");
        assert_eq!(a.turn(1, 5, false), Turn::Wait, "the first topic may bring more of that instant");
        a.push(1, 5, None, 5);
        assert_eq!(a.turn(0, 5, false), Turn::Pass);
        assert_eq!(a.turn(1, 5, false), Turn::Wait, "behind those of its own topic");
        assert_eq!(a.turn(0, 6, false), Turn::After(1, 5));
        assert_eq!(a.turn(0, 6, false), Turn::Wait);
    }

    #[test]
    fn of_one_instant_the_first_topic_comes_first() {
        let mut a = live(2);
        a.push(1, 7, None, 71);
        a.push(0, 7, None, 70);
        a.end(0);
        assert_eq!(drain(&mut a, 0), [70, 71]);
    }

    #[test]
    fn a_topic_is_waited_for_with_patience_that_ends() {
        let mut a = live(2);
        a.push(0, 1, None, 1);
        assert_eq!(drain(&mut a, 100), [0; 0]);
        assert_eq!(drain(&mut a, 99 + PATIENCE), [0; 0]);
        assert_eq!(drain(&mut a, 100 + PATIENCE), [1]);
        assert_eq!(a.stalls(), 1);
        assert_eq!(a.turn(0, 2, false), Turn::Pass, "until it brings something");
        a.end(0);
        assert!(!a.caught_up(), "a stuck topic is not at its end");
        a.push(1, 2, None, 2);
        assert_eq!(drain(&mut a, 200 + PATIENCE), [2]);
        assert_eq!(a.turn(0, 3, false), Turn::Wait);
    }

    #[test]
    fn what_is_put_back_is_the_first_again() {
        let mut a = live(2);
        [1, 2].into_iter().for_each(|t| a.push(0, t, None, t));
        a.end(1);
        let (topic, record) = a.pop(0).unwrap();
        a.put_back(topic, record, record);
        assert!(a.turn(1, 9, false) == Turn::After(0, 1) && !a.caught_up(), "it holds what comes behind it");
        a.put_back(0, 1, 1);
        a.end(1);
        assert_eq!(drain(&mut a, 0), [1, 2]);
    }

    #[test]
    fn a_crowded_topic_is_paused_until_half_has_gone() {
        let mut a = live(2);
        (0..=CROWD as i64).for_each(|t| a.push(1, t, None, t));
        assert_eq!(a.crowded(0), 0b10);
        a.end(0);
        (0..CROWD / 2).for_each(|_| assert!(a.pop(0).is_some()));
        assert_eq!((a.crowded(0), a.crowded(0b10)), (0, 0b10));
        a.pop(0);
        assert_eq!(a.crowded(0b10), 0);
    }

    #[test]
    fn a_revoked_topic_holds_nobody_and_loses_nothing() {
        let mut a = live(2);
        a.push(0, 1, None, 1);
        a.set_live(1, false);
        a.set_live(0, false);
        assert_eq!(drain(&mut a, 0), [1]);
        assert!(!a.caught_up());
    }

    #[test]
    fn at_the_end_of_a_topic_a_fresh_record_waits_for_what_may_belong_before_it() {
        let mut a = live(2);
        (0..2).for_each(|topic| a.end(topic));
        let come = |a: &mut Aligner<Millis>, at| {
            assert_eq!(a.turn(1, at, true), Turn::Wait);
            a.push(1, at, Some(1_000), at);
            a.end(1);
        };
        come(&mut a, 70);
        assert_eq!((drain(&mut a, 1_249), a.due()), (vec![], Some(1_250)));
        assert_eq!(a.turn(0, 60, true), Turn::Pass, "this is what it waited for");
        a.end(0);
        come(&mut a, 319);
        assert_eq!(drain(&mut a, 1_100), [0; 0]);
        come(&mut a, 320);
        assert_eq!(drain(&mut a, 1_100), [70], "time has gone on for long enough, though nobody knows when");
        assert_eq!((drain(&mut a, 1_250), a.due()), (vec![319, 320], None), "and so it has for who has waited");
        assert_eq!(a.turn(1, 330, false), Turn::Pass, "one of a backlog waits for nothing");
        assert_eq!(a.take_overtaken(), 0);
    }

    #[test]
    fn what_comes_too_late_for_its_place_is_counted() {
        let mut a = live(2);
        (0..2).for_each(|topic| a.end(topic));
        assert_eq!(a.turn(1, 70, false), Turn::Pass);
        a.end(1);
        assert_eq!(a.turn(0, 69, false), Turn::Pass);
        a.push(0, 70, None, 70);
        assert_eq!(a.take_overtaken(), 2, "of one instant the first topic comes first");
        assert_eq!(drain(&mut a, 0), [70]);
        assert_eq!(a.turn(0, 71, false), Turn::Pass);
        assert_eq!(a.turn(0, 69, false), Turn::Pass, "behind one of its own topic that was in time");
        assert_eq!(a.take_overtaken(), 0);
        // One that is put back has not passed.
        a.push(1, 90, None, 90);
        a.end(0);
        let (topic, record) = a.pop(0).unwrap();
        a.put_back(topic, record, record);
        assert_eq!((a.turn(0, 80, false), a.take_overtaken()), (Turn::Pass, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However the topics' records arrive, they come out in order of time, all of them.
        #[test]
        fn merged_in_order(mut topics in prop::collection::vec(prop::collection::vec(0i64..1000, 0..40), 1..4), turns in prop::collection::vec(0usize..4, 0..200)) {
            topics.iter_mut().for_each(|t| t.sort_unstable());
            let mut expected = topics.concat();
            expected.sort_unstable();
            let mut a = live(topics.len());
            let mut queues: Vec<VecDeque<_>> = topics.into_iter().map(VecDeque::from).collect();
            let mut out = Vec::new();
            for turn in turns.into_iter().chain((0..200).map(|i| i % 4)) {
                let topic = turn % queues.len();
                match queues[topic].pop_front() {
                    Some(at) => loop {
                        match a.turn(topic, at, false) {
                            Turn::Pass => break out.push(at),
                            Turn::Wait => break a.push(topic, at, None, at),
                            Turn::After(_, held) => out.push(held),
                        }
                    },
                    None => a.end(topic),
                }
                out.extend(drain(&mut a, 0));
            }
            prop_assert_eq!(out, expected);
            prop_assert!(a.caught_up());
        }

        /// At the head of all topics, where each is at its end after every record: while none comes `WAIT` later than its time.
        #[test]
        fn merged_in_order_at_the_head(mut topics in prop::collection::vec(prop::collection::vec(0i64..3_000, 0..60), 2..4), turns in prop::collection::vec(0usize..3, 0..200)) {
            topics.iter_mut().for_each(|t| t.sort_unstable());
            let mut expected: Vec<Key> = topics.iter().enumerate().flat_map(|(topic, t)| t.iter().map(move |at| (*at, topic))).collect();
            expected.sort_unstable();
            let mut a = Aligner::new(topics.len(), WAIT);
            (0..topics.len()).for_each(|t| (a.set_live(t, true), a.end(t)).0);
            let mut queues: Vec<VecDeque<_>> = topics.into_iter().map(VecDeque::from).collect();
            let mut out = Vec::new();
            for turn in turns.into_iter().chain((0..200).map(|i| i % 3)) {
                let Some((first, slowest)) = queues.iter().enumerate().filter_map(|(t, q)| q.front().map(|at| (*at, t))).min() else { break };
                let topic = Some(turn % queues.len()).filter(|t| queues[*t].front().is_some_and(|at| at - first < WAIT)).unwrap_or(slowest);
                let Some(at) = queues[topic].pop_front() else { continue };
                loop {
                    match a.turn(topic, at, true) {
                        Turn::Pass => break out.push((at, topic)),
                        Turn::Wait => break a.push(topic, at, Some(0), (at, topic)),
                        Turn::After(_, held) => out.push(held),
                    }
                }
                a.end(topic);
                out.extend(std::iter::from_fn(|| a.pop(0).map(|(_, r)| r)));
            }
            out.extend(std::iter::from_fn(|| a.pop(250).map(|(_, r)| r)));
            prop_assert_eq!(out, expected);
            prop_assert_eq!(a.take_overtaken(), 0);
        }
    }
}
