//! The thread that owns the consumer: it takes batches, deals them out to the workers, and follows rebalances.
//!
//! It never blocks on a worker. When one is behind, no more batches are taken, but events are still polled, so that the group does
//! not think the process dead.

use super::batch::{Batch, BatchQueue};
use super::context::{Change, Consumer, Place};
use super::kafka::{FromIngest, Rules, STOPPED, way};
use super::worker::{Mark, Shared, ToWorker};
use crate::engine::time::Millis;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A batch waits this long to become full: the delay of a record when there are few.
const FILL: Duration = Duration::from_millis(20);
/// Commits to the group, and reports of lag.
const COMMIT: Duration = Duration::from_secs(5);
/// Looks at how far the partitions are apart.
const SKEW: Duration = Duration::from_millis(100);
/// Topics are read this much later than the first that is assigned with them. librdkafka goes round its partitions in the order in which it could
/// begin with them, and exposures, which are few, wait in less memory for events than events for exposures.
const HEAD_START: Duration = Duration::from_millis(100);
/// What librdkafka knows of a partition's end is trusted this long after its assignment, or after it went back to what it had fetched before.
const SETTLE: Duration = Duration::from_secs(1);
/// A partition that has not moved for this long, though it could, no longer makes those ahead of it wait.
const LAME: Duration = Duration::from_secs(30);
/// A turn of the loop that takes longer was not the loop's own doing: the process was stopped, or had no processor.
const TURN: Duration = Duration::from_millis(200);

/// What the owner asks for.
pub enum Command {
    Barrier(u64),
    Reload(u64, Rules),
    Stop,
}

/// See the module.
pub struct Reader {
    consumer: Arc<Consumer>,
    queue: BatchQueue,
    shared: Shared,
    workers: Vec<Outbox>,
    commands: Receiver<Command>,
    /// And since when, or when its position was last set: see [`SETTLE`].
    assigned: BTreeMap<Place, Instant>,
    paused: BTreeSet<Place>,
    /// Those that are paused since the first topic has a head start, until then.
    behind: BTreeMap<Place, Instant>,
    /// Assigned, and no record taken from them since: see [`skips`].
    unproven: BTreeSet<Place>,
    /// At their end, as their worker knows.
    ended: BTreeSet<Place>,
    /// More waits for the slowest partition than may.
    full: bool,
    /// Watermark of each partition number, and when it last moved.
    moved: BTreeMap<i32, (Mark, Instant)>,
    /// Offsets are told to the group.
    commits: bool,
    commit_at: Instant,
    skew_at: Instant,
}

/// What a worker has not taken yet: one batch and a few rare messages at most, since no batch is taken before this is empty.
struct Outbox {
    sender: Sender<ToWorker>,
    waiting: VecDeque<ToWorker>,
}

/// Records of one partition that follow each other in a batch.
struct Run {
    /// Topic key and partition.
    key: (usize, i32),
    place: Place,
    next: Option<i64>,
    /// They will be read again: see [`skips`].
    again: bool,
}

impl Outbox {
    /// Sends what the worker takes now; `false` when it is behind.
    fn flush(&mut self) -> bool {
        while let Some(message) = self.waiting.pop_front() {
            match self.sender.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    self.waiting.push_front(message);
                    return false;
                }
                // The worker has ended because nobody receives: nothing is left to do.
                Err(TrySendError::Disconnected(_)) => self.waiting.clear(),
            }
        }
        true
    }
}

impl Reader {
    pub fn new(
        consumer: Arc<Consumer>,
        queue: BatchQueue,
        shared: Shared,
        workers: Vec<Sender<ToWorker>>,
        commands: Receiver<Command>,
        commits: bool,
    ) -> Reader {
        let now = Instant::now();
        let workers = workers.into_iter().map(|sender| Outbox { sender, waiting: VecDeque::new() }).collect();
        let (assigned, paused, behind, unproven, ended, moved) =
            (BTreeMap::new(), BTreeSet::new(), BTreeMap::new(), BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        let (commit_at, skew_at) = (now + COMMIT, now);
        let full = false;
        Reader {
            consumer,
            queue,
            shared,
            workers,
            commands,
            assigned,
            paused,
            behind,
            unproven,
            ended,
            full,
            moved,
            commits,
            commit_at,
            skew_at,
        }
    }

    /// Reads until it is told to stop, or cannot go on; then ends the workers.
    pub fn run(mut self, threads: Vec<JoinHandle<()>>) {
        let mut turned = Instant::now();
        let mut held = Duration::ZERO;
        loop {
            self.events();
            if self.context_fatal() || self.commanded() {
                break;
            }
            let free = self.flush();
            if free {
                let batch = self.queue.take(FILL);
                if !batch.is_empty() {
                    self.deal(batch);
                }
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
            let now = Instant::now();
            if !free || now.duration_since(turned) > TURN {
                held += now.duration_since(turned);
                self.shared.board.held.store(held.as_millis() as u64, Ordering::Relaxed);
            }
            turned = now;
            if now >= self.skew_at || self.shared.board.changed.swap(false, Ordering::Acquire) {
                self.skew_at = now + SKEW;
                self.pace(now - held, now);
                self.ends(now);
            }
            if now >= self.commit_at {
                self.commit_at = now + COMMIT;
                self.commit();
                self.lag();
            }
        }
        self.end(threads);
    }

    /// Sends every worker what it takes now; `false` when one is behind.
    fn flush(&mut self) -> bool {
        let behind = self.workers.iter_mut().filter_map(|w| (!w.flush()).then_some(())).count();
        behind == 0
    }

    /// Serves rebalances, errors and statistics.
    fn events(&mut self) {
        let consumer = Arc::clone(&self.consumer);
        match consumer.poll(Duration::ZERO) {
            None => {}
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                consumer.context().state().fatal.get_or_insert_with(|| code.to_string());
            }
            // Reported by the context, with its reason.
            Some(Err(_)) => {}
            Some(Ok(message)) => {
                // It came before its partition was forwarded. Read it again, the right way.
                let (topic, partition) = (message.topic(), message.partition());
                self.queue.forward(topic, partition);
                let offset = consumer.context().state().next.get(&(topic.to_owned(), partition)).copied().unwrap_or(message.offset());
                if let Err(e) = consumer.seek(topic, partition, Offset::Offset(offset.min(message.offset())), Duration::ZERO) {
                    tracing::error!(topic, partition, "could not go back to a record: {e}");
                }
            }
        }
        let changes = std::mem::take(&mut consumer.context().state().changes);
        for change in changes {
            consumer.context().reached();
            match change {
                Change::Assigned(places) => {
                    tracing::info!(partitions = places.len(), "partitions assigned");
                    for (topic, partition) in &places {
                        self.queue.forward(topic, *partition);
                    }
                    // All at once, before any worker says a word: else the first to speak could be judged without the others. Where
                    // there is no room for it now, the workers' own messages do.
                    for partition in places.iter().map(|place| place.1).collect::<BTreeSet<_>>() {
                        let _ = self.shared.sender.try_send(FromIngest::Assigned(partition));
                    }
                    self.tell(&places, ToWorker::Assigned);
                    self.unproven.extend(places.iter().cloned());
                    let now = Instant::now();
                    self.assigned.extend(places.iter().map(|place| (place.clone(), now)));
                    self.give_head_start(places, now);
                }
                Change::Revoked(places) => {
                    tracing::info!(partitions = places.len(), "partitions revoked");
                    self.tell(&places, ToWorker::Revoked);
                    for place in &places {
                        self.assigned.remove(place);
                        self.paused.remove(place);
                        self.behind.remove(place);
                        self.unproven.remove(place);
                        self.ended.remove(place);
                        self.moved.remove(&place.1);
                    }
                }
            }
        }
    }

    /// Holds back, of partitions that have just been assigned, those of all topics but the first.
    fn give_head_start(&mut self, places: Vec<Place>, now: Instant) {
        self.behind.extend(behind_first(places, &self.shared.topics).map(|place| (place, now + HEAD_START)));
        self.pause_and_resume(self.paused.iter().chain(self.behind.keys()).cloned().collect());
    }

    fn tell(&mut self, places: &[Place], message: fn(Vec<(usize, i32)>) -> ToWorker) {
        let n = self.workers.len();
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let known = |(topic, partition): &Place| self.shared.topics.iter().position(|t| t == topic).map(|t| (t, *partition));
            let share: Vec<_> = places.iter().filter(|p| way(p.1, n) == index).filter_map(known).collect();
            if !share.is_empty() {
                worker.waiting.push_back(message(share));
            }
        }
    }

    fn context_fatal(&self) -> bool {
        self.consumer.context().state().fatal.is_some()
    }

    /// Passes commands on; `true` when it is time to end.
    fn commanded(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Barrier(n)) => self.workers.iter_mut().for_each(|w| w.waiting.push_back(ToWorker::Barrier(n))),
                Ok(Command::Reload(n, rules)) => {
                    self.workers.iter_mut().for_each(|w| w.waiting.push_back(ToWorker::Reload(n, rules.clone())));
                }
                Ok(Command::Stop) => return true,
                Err(e) => return e.is_disconnected(),
            }
        }
    }

    /// Deals a batch out, without the records that were read before.
    fn deal(&mut self, batch: Batch) {
        let n = self.workers.len();
        let context = Arc::clone(self.consumer.context());
        context.reached();
        let mut state = context.state();
        let mut troubles = Vec::new();
        let mut touched = BTreeSet::new();
        // Records come in runs of one partition: its next offset is looked up once for each run.
        let mut run: Option<Run> = None;
        let mut skipped: BTreeMap<Place, Offset> = BTreeMap::new();
        let (unproven, reset) = (&mut self.unproven, context.reset());
        let batches = batch.split(n, |message| {
            let key = (message.topic_key(), message.partition());
            if run.as_ref().is_none_or(|r| r.key != key) {
                if let Some(Run { place, next: Some(next), .. }) = run.take() {
                    state.next.insert(place, next);
                }
                let place = (message.topic().to_owned(), message.partition());
                let next = state.next.get(&place).copied();
                if message.err().is_none() && unproven.remove(&place) {
                    skipped.extend(skips(message.offset(), next, reset).map(|back| (place.clone(), back)));
                }
                let again = skipped.contains_key(&place);
                if !again {
                    touched.insert(place.clone());
                }
                run = Some(Run { key, place, next, again });
            }
            let Run { place, next, again, .. } = run.as_mut()?;
            match message.err() {
                None if *again => return None,
                None if next.is_some_and(|next| message.offset() < next) => {
                    // Delivered again; or the log is shorter than what was read of it, and so is another log.
                    let known = *next;
                    if self.queue.end(&place.0, place.1).is_none_or(|end| Some(end) >= known) {
                        return None;
                    }
                    tracing::error!(topic = %place.0, partition = place.1, known, "the topic was made anew; reading it from its beginning");
                    *next = Some(message.offset() + 1);
                }
                None => *next = Some(message.offset() + 1),
                Some(code) => {
                    troubles.push((code, place.clone()));
                    return None;
                }
            }
            Some(way(message.partition(), n))
        });
        if let Some(Run { place, next: Some(next), .. }) = run {
            state.next.insert(place, next);
        }
        let ended = |place: &Place| state.next.get(place).zip(self.queue.end(&place.0, place.1)).is_some_and(|(next, end)| *next >= end);
        let (now_ended, going): (BTreeSet<Place>, _) = touched.into_iter().partition(ended);
        drop(state);
        for (place, back) in skipped {
            // Everything fetched before is void from here on, in either queue.
            self.assigned.entry(place.clone()).and_modify(|since| *since = Instant::now());
            if let Err(e) = self.consumer.seek(&place.0, place.1, back, Duration::ZERO) {
                tracing::warn!(topic = %place.0, partition = place.1, "could not go back to the first record; trying again: {e}");
                self.unproven.insert(place);
            }
        }
        for (code, (topic, partition)) in troubles {
            context.trouble(Some(code), &format!("{topic}[{partition}]: {code}"));
        }
        for (worker, batch) in self.workers.iter_mut().zip(batches) {
            if !batch.is_empty() {
                worker.waiting.push_back(ToWorker::Batch(batch));
            }
        }
        self.ended.retain(|place| !going.contains(place));
        self.end_reached(now_ended);
    }

    /// Looks for partitions that are at their end though no record of them came: empty ones, those read from their end, and those
    /// whose log ends in marks of transactions. Where the position does not tell, the next statistics do.
    fn ends(&mut self, now: Instant) {
        let Ok(positions) = self.consumer.position() else { return };
        let mut state = self.consumer.context().state();
        let drained = std::mem::take(&mut state.drained);
        let mut found = BTreeSet::new();
        for element in positions.elements() {
            let place = (element.topic().to_owned(), element.partition());
            // What is known of the end is as old as the last fetch, perhaps from before the assignment; and how far had been fetched is still
            // told for a moment when a pause or a seek has thrown that away.
            let settled = self.assigned.get(&place).is_some_and(|since| now.saturating_duration_since(*since) >= SETTLE);
            if !settled || self.paused.contains(&place) || self.ended.contains(&place) {
                continue;
            }
            let Some(end) = self.queue.end(&place.0, place.1) else { continue };
            let position = if let Offset::Offset(at) = element.offset() { at } else { 0 };
            if position.max(state.next.get(&place).copied().unwrap_or(0)) >= end || drained.contains(&place) {
                found.insert(place);
            }
        }
        drop(state);
        self.end_reached(found);
    }

    fn end_reached(&mut self, places: BTreeSet<Place>) {
        let places: Vec<Place> = places.into_iter().collect();
        self.tell(&places, ToWorker::Ended);
        self.ended.extend(places);
    }

    /// Pauses topics that crowd their aligner, and partitions that run too far ahead of the slowest, in time or in what waits for it; resumes
    /// the others. `now` without the time in which nothing could be taken; `turned` with it.
    fn pace(&mut self, now: Instant, turned: Instant) {
        let marks = self.shared.board.marks.lock().unwrap_or_else(|e| e.into_inner()).clone();
        for (partition, mark) in &marks {
            match self.moved.get_mut(partition) {
                Some((known, _)) if known.watermark == mark.watermark => *known = *mark,
                _ => drop(self.moved.insert(*partition, (*mark, now))),
            }
        }
        let settings = &self.shared.settings;
        // Until half has gone, lest partitions be paused and resumed all the time.
        let most = if self.full { settings.ahead_max / 2 } else { settings.ahead_max };
        self.full = self.shared.board.waiting.load(Ordering::Relaxed) > most;
        let (span, full) = (if self.full { 1 } else { settings.max_skew_panes }.saturating_mul(settings.pane), self.full);
        let paused = |p: i32| self.paused.iter().any(|place| place.1 == p);
        let slowest = marks
            .iter()
            .filter(|(p, m)| {
                !m.caught_up && (full || self.moved.get(p).is_some_and(|(_, at)| now.duration_since(*at) < LAME || paused(**p)))
            })
            // One that has brought no record yet has no time, but what the others bring waits for it like for any other.
            .filter_map(|(_, m)| m.watermark.or(full.then_some(Millis::MIN)))
            .min();
        let bound = slowest.map(|s| s.saturating_add(span));
        let ahead = marks.iter().filter(|(_, m)| m.watermark.zip(bound).is_some_and(|(w, b)| w > b)).map(|(p, _)| *p);
        let ahead: BTreeSet<i32> = ahead.collect();
        self.behind.retain(|_, until| *until > turned);
        let wanted = |place: &Place| {
            if self.behind.contains_key(place) {
                return true;
            }
            let Some(mark) = marks.get(&place.1) else { return false };
            let topic = self.shared.topics.iter().position(|t| *t == place.0);
            topic.is_some_and(|t| mark.crowded & (1 << t) != 0) || ahead.contains(&place.1)
        };
        let wanted: BTreeSet<Place> = self.assigned.keys().filter(|p| wanted(p)).cloned().collect();
        self.pause_and_resume(wanted);
        self.consumer.context().paused(ahead.len());
        *self.shared.board.ahead.lock().unwrap_or_else(|e| e.into_inner()) = ahead;
    }

    /// Has these partitions paused, and no others.
    fn pause_and_resume(&mut self, wanted: BTreeSet<Place>) {
        let list = |places: &mut dyn Iterator<Item = &Place>| {
            let mut tpl = TopicPartitionList::new();
            for (topic, partition) in places {
                tpl.add_partition(topic, *partition);
            }
            tpl
        };
        let pause = list(&mut wanted.difference(&self.paused));
        let resume = list(&mut self.paused.difference(&wanted));
        for (tpl, result) in [(&pause, self.consumer.pause(&pause)), (&resume, self.consumer.resume(&resume))] {
            if let Err(e) = result
                && tpl.count() > 0
            {
                tracing::warn!("pausing or resuming partitions failed: {e}");
            }
        }
        for place in self.paused.difference(&wanted) {
            self.assigned.entry(place.clone()).and_modify(|since| *since = Instant::now());
        }
        self.paused = wanted;
    }

    /// Tells the group how far we are; nothing waits for the answer.
    fn commit(&self) {
        if !self.commits {
            return;
        }
        let mut tpl = TopicPartitionList::new();
        let state = self.consumer.context().state();
        for place in self.assigned.keys() {
            if let Some(next) = state.next.get(place) {
                // An offset out of range is the only fault, and ours are not.
                let _ = tpl.add_partition_offset(&place.0, place.1, Offset::Offset(*next));
            }
        }
        drop(state);
        if tpl.count() > 0
            && let Err(e) = self.consumer.commit(&tpl, CommitMode::Async)
        {
            tracing::debug!("commit for lag dashboards failed: {e}");
        }
    }

    fn lag(&self) {
        let state = self.consumer.context().state();
        let lags = self.assigned.keys().filter_map(|place| {
            let end = state.ends.get(place)?;
            let (topic, partition) = place.clone();
            Some(FromIngest::Lag { topic, partition, records: state.next.get(place).map_or(*end, |next| end - next).max(0) })
        });
        for lag in lags.collect::<Vec<_>>() {
            if self.shared.sender.try_send(lag).is_err() {
                break;
            }
        }
    }

    /// Ends the workers, behind all that they were given; then the consumer, while its events are still served.
    fn end(mut self, threads: Vec<JoinHandle<()>>) {
        let fatal = self.consumer.context().state().fatal.take();
        for worker in &mut self.workers {
            worker.waiting.push_back(ToWorker::Stop(STOPPED));
        }
        while !self.flush() {
            self.events();
            std::thread::sleep(Duration::from_millis(1));
        }
        for thread in threads {
            while !thread.is_finished() {
                self.events();
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.join().is_err() {
                tracing::error!("a worker has panicked");
            }
        }
        self.commit();
        if let Some(reason) = fatal {
            let _ = self.shared.sender.send(FromIngest::Fatal(reason));
        }
        let sender = self.shared.sender.clone();
        // Leaves the group.
        drop(self);
        let _ = sender.send(FromIngest::Stopped);
    }
}

/// Of `places`, those of all topics but the first that is among them.
fn behind_first(places: Vec<Place>, topics: &[String]) -> impl Iterator<Item = Place> {
    let rank = |place: &Place| topics.iter().position(|t| *t == place.0);
    let first = places.iter().filter_map(rank).min();
    places.into_iter().filter(move |place| rank(place) > first)
}

/// Where to go back to when `first`, the first record taken from a partition since its assignment, is not the one that is due.
///
/// librdkafka may fetch before the partition's queue is forwarded: then the first records wait in the client's queue, and later ones
/// come before them.
fn skips(first: i64, next: Option<i64>, reset: Offset) -> Option<Offset> {
    match next {
        Some(next) => (first > next).then_some(Offset::Offset(next)),
        None => (first > 0 && reset == Offset::Beginning).then_some(Offset::Beginning),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_topics_but_the_first_of_those_assigned_stay_behind() {
        let topics = ["exposures", "events", "tickets"].map(str::to_owned);
        let behind = |places: &[(&str, i32)]| {
            let places = places.iter().map(|(topic, partition)| ((*topic).to_owned(), *partition)).collect();
            behind_first(places, &topics).map(|(topic, partition)| format!("{topic}/{partition}")).collect::<Vec<_>>()
        };
        assert_eq!(behind(&[("events", 0), ("exposures", 0), ("tickets", 1), ("exposures", 1)]), ["events/0", "tickets/1"]);
        assert_eq!(behind(&[("tickets", 0), ("events", 0)]), ["tickets/0"]);
        assert!(behind(&[("events", 0), ("events", 7)]).is_empty() && behind(&[]).is_empty());
    }

    #[test]
    fn a_first_record_that_is_not_the_one_due_sends_the_reader_back() {
        assert_eq!(skips(80, Some(0), Offset::Beginning), Some(Offset::Offset(0)));
        assert_eq!(skips(80, Some(80), Offset::Beginning), None);
        assert_eq!(skips(79, Some(80), Offset::End), None, "delivered again");
        assert_eq!(skips(80, None, Offset::Beginning), Some(Offset::Beginning));
        assert_eq!((skips(0, None, Offset::Beginning), skips(80, None, Offset::End)), (None, None));
    }
}
