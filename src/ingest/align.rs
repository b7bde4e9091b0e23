//! Merges the records of one partition number over several topics by Kafka's timestamps, so that an exposure is seen before the
//! events that were produced after it, during catch-up too.

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
}

struct Lane<T> {
    /// Assigned to this process.
    live: bool,
    /// Everything produced so far has been seen.
    ended: bool,
    /// Has kept the others waiting for too long.
    stuck: bool,
    queue: VecDeque<(Millis, T)>,
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
    /// A record of this lane may still be on its way that belongs before those held.
    fn awaited(&self) -> bool {
        self.live && self.queue.is_empty() && !self.ended && !self.stuck
    }
}

impl<T> Aligner<T> {
    pub fn new(topics: usize) -> Aligner<T> {
        let lane = || Lane { live: false, ended: false, stuck: false, queue: VecDeque::new() };
        Aligner { lanes: (0..topics).map(|_| lane()).collect(), held: 0, blocked_since: None, stalls: 0 }
    }

    /// The topic's partition has been assigned or revoked. Records held stay, and come out in their turn.
    pub fn set_live(&mut self, topic: usize, live: bool) {
        let lane = &mut self.lanes[topic];
        (lane.live, lane.ended, lane.stuck) = (live, false, false);
    }

    pub fn any_live(&self) -> bool {
        self.lanes.iter().any(|l| l.live)
    }

    /// The topic has no more records for now.
    pub fn end(&mut self, topic: usize) {
        self.lanes[topic].ended = true;
    }

    /// All topics are at their end, and nothing is held.
    pub fn caught_up(&self) -> bool {
        self.held == 0 && self.any_live() && self.lanes.iter().all(|l| l.ended || !l.live)
    }

    /// What is to be done about a record of the topic that comes now.
    pub fn turn(&mut self, topic: usize, timestamp: Millis) -> Turn<T> {
        let lane = &mut self.lanes[topic];
        (lane.ended, lane.stuck) = (false, false);
        let waits = !lane.queue.is_empty() || self.lanes.iter().enumerate().any(|(i, l)| i != topic && l.awaited());
        if waits {
            return Turn::Wait;
        }
        self.blocked_since = None;
        let first = if self.held > 0 { self.first().filter(|first| *first < (timestamp, topic)) } else { None };
        match first.and_then(|(_, topic)| self.take(topic)) {
            Some((topic, record)) => Turn::After(topic, record),
            None => Turn::Pass,
        }
    }

    /// Time and topic of the first of the records held.
    fn first(&self) -> Option<(Millis, usize)> {
        self.lanes.iter().enumerate().filter_map(|(i, l)| l.queue.front().map(|(at, _)| (*at, i))).min()
    }

    fn take(&mut self, topic: usize) -> Option<(usize, T)> {
        let (_, record) = self.lanes[topic].queue.pop_front()?;
        self.held -= 1;
        Some((topic, record))
    }

    pub fn push(&mut self, topic: usize, timestamp: Millis, record: T) {
        let lane = &mut self.lanes[topic];
        (lane.ended, lane.stuck) = (false, false);
        lane.queue.push_back((timestamp, record));
        self.held += 1;
    }

    /// The next record with its topic, if none that belongs before it may still come. `now` in milliseconds of any clock that
    /// does not go back; it should stand still while no topic can bring anything.
    pub fn pop(&mut self, now: u64) -> Option<(usize, T)> {
        if self.held == 0 {
            self.blocked_since = None;
            return None;
        }
        if self.lanes.iter().any(Lane::awaited) {
            let since = *self.blocked_since.get_or_insert(now);
            if now.saturating_sub(since) < PATIENCE {
                return None;
            }
            self.stalls += 1;
            for lane in self.lanes.iter_mut().filter(|l| l.awaited()) {
                lane.stuck = true;
            }
        }
        self.blocked_since = None;
        let (_, topic) = self.first()?;
        self.take(topic)
    }

    /// Gives back what has been given last: it is the first again.
    pub fn put_back(&mut self, topic: usize, timestamp: Millis, record: T) {
        self.lanes[topic].queue.push_front((timestamp, record));
        self.held += 1;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn live(topics: usize) -> Aligner<Millis> {
        let mut a = Aligner::new(topics);
        (0..topics).for_each(|t| a.set_live(t, true));
        a
    }

    fn drain(a: &mut Aligner<Millis>, now: u64) -> Vec<Millis> {
        std::iter::from_fn(|| a.pop(now).map(|(_, r)| r)).collect()
    }

    #[test]
    fn a_topic_that_may_still_bring_earlier_records_holds_the_others() {
        let mut a = live(2);
        assert_eq!(a.turn(1, 3), Turn::Wait);
        [3, 5].into_iter().for_each(|t| a.push(1, t, t));
        assert_eq!(drain(&mut a, 0), [0; 0]);
        [1, 4].into_iter().for_each(|t| a.push(0, t, t));
        assert_eq!(drain(&mut a, 0), [1, 3, 4], "5 waits for the first topic");
        a.end(0);
        assert_eq!(drain(&mut a, 0), [5]);
        assert!(a.turn(1, 6) == Turn::Pass && !a.caught_up());
        a.end(1);
        assert!(a.caught_up());
    }

    #[test]
    fn a_record_passes_behind_those_that_belong_before_it() {
        let mut a = live(2);
        [2, 5].into_iter().for_each(|t| a.push(0, t, t));
        assert_eq!(a.turn(1, 5), Turn::After(0, 2));
        assert_eq!(a.turn(1, 5), Turn::After(0, 5), "of one instant the first topic comes first");
        assert_eq!(a.turn(1, 5), Turn::Wait, "the first topic may bring more of that instant");
        a.push(1, 5, 5);
        assert_eq!(a.turn(0, 5), Turn::Pass);
        assert_eq!(a.turn(1, 5), Turn::Wait, "behind those of its own topic");
        assert_eq!(a.turn(0, 6), Turn::After(1, 5));
        assert_eq!(a.turn(0, 6), Turn::Wait);
    }

    #[test]
    fn of_one_instant_the_first_topic_comes_first() {
        let mut a = live(2);
        a.push(1, 7, 71);
        a.push(0, 7, 70);
        a.end(0);
        assert_eq!(drain(&mut a, 0), [70, 71]);
    }

    #[test]
    fn a_topic_is_waited_for_with_patience_that_ends() {
        let mut a = live(2);
        a.push(0, 1, 1);
        assert_eq!(drain(&mut a, 100), [0; 0]);
        assert_eq!(drain(&mut a, 99 + PATIENCE), [0; 0]);
        assert_eq!(drain(&mut a, 100 + PATIENCE), [1]);
        assert_eq!(a.stalls(), 1);
        assert_eq!(a.turn(0, 2), Turn::Pass, "until it brings something");
        a.end(0);
        assert!(!a.caught_up(), "a stuck topic is not at its end");
        a.push(1, 2, 2);
        assert_eq!(drain(&mut a, 200 + PATIENCE), [2]);
        assert_eq!(a.turn(0, 3), Turn::Wait);
    }

    #[test]
    fn what_is_put_back_is_the_first_again() {
        let mut a = live(2);
        [1, 2].into_iter().for_each(|t| a.push(0, t, t));
        a.end(1);
        let (topic, record) = a.pop(0).unwrap();
        a.put_back(topic, record, record);
        assert!(a.turn(1, 9) == Turn::After(0, 1) && !a.caught_up(), "it holds what comes behind it");
        a.put_back(0, 1, 1);
        a.end(1);
        assert_eq!(drain(&mut a, 0), [1, 2]);
    }

    #[test]
    fn a_crowded_topic_is_paused_until_half_has_gone() {
        let mut a = live(2);
        (0..=CROWD as i64).for_each(|t| a.push(1, t, t));
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
        a.push(0, 1, 1);
        a.set_live(1, false);
        a.set_live(0, false);
        assert_eq!(drain(&mut a, 0), [1]);
        assert!(!a.caught_up());
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
                        match a.turn(topic, at) {
                            Turn::Pass => break out.push(at),
                            Turn::Wait => break a.push(topic, at, at),
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
    }
}
