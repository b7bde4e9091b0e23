//! A worker: owns the aggregators of its partition numbers, and books records into them.

use super::align::{Aligner, Turn};
use super::batch::{Batch, Message};
use super::decode::Limits;
use super::kafka::{FromIngest, PartitionSnapshot, Resume, Rules};
use super::mapped::{Booked, Layouts, Reader};
use super::rejects::Rejects;
use crate::clock::Clock;
use crate::engine::aggregate::Aggregator;
use crate::engine::plan::{Catalog, Settings};
use crate::engine::time::Millis;
use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, Sender};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often quiet partitions are moved on, and progress is reported.
const TICK: Duration = Duration::from_millis(250);
/// A record of this long ago, ms, is of a backlog, unless clocks may differ by more.
const FRESH: u64 = 60_000;
/// Records that wait are not looked at more often.
const SHORTEST: Duration = Duration::from_millis(5);
/// Refused records sampled by one worker in one tick at most: a flood must not cost more than it tells.
const SAMPLES_PER_TICK: u32 = 20;

/// What the consumer's thread hands to a worker. Topics are indices into the configured ones.
pub enum ToWorker {
    Batch(Batch),
    /// These topics' partitions are at their end.
    Ended(Vec<(usize, i32)>),
    Assigned(Vec<(usize, i32)>),
    Revoked(Vec<(usize, i32)>),
    Barrier(u64),
    /// Goes on by these rules behind the barrier.
    Reload(u64, Rules),
    /// Sends a last snapshot under this barrier, and ends.
    Stop(u64),
}

/// What a worker lets the consumer's thread know of a partition number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    pub watermark: Option<Millis>,
    /// At the end of all its topics.
    pub caught_up: bool,
    /// And that for so long that it moves on with the clock.
    pub quiet: bool,
    /// Topics to pause, one bit each.
    pub crowded: u64,
}

/// What the consumer's thread and its workers let each other know.
#[derive(Default)]
pub struct Board {
    /// Of all partition numbers that are assigned.
    pub marks: Mutex<BTreeMap<i32, Mark>>,
    pub changed: AtomicBool,
    /// Milliseconds in which nothing could be taken from Kafka, since a worker was behind or the process did not run.
    pub held: AtomicU64,
    /// Bytes of panes that wait for the slowest partition.
    pub waiting: AtomicUsize,
    /// Partition numbers that are paused because they are too far ahead of the slowest.
    pub ahead: Mutex<BTreeSet<i32>>,
}

/// What all workers have in common.
#[derive(Clone)]
pub struct Shared {
    pub topics: Arc<[String]>,
    pub layouts: Layouts,
    pub catalog: Arc<Catalog>,
    pub settings: Settings,
    pub limits: Limits,
    pub max_future: Millis,
    /// ms that a record may be in coming when its topic was at its end: see [`super::align`].
    pub merge_wait: Millis,
    pub clock: Clock,
    pub sender: Sender<FromIngest>,
    pub rejects: Rejects,
    pub board: Arc<Board>,
}

pub struct Worker {
    index: usize,
    shared: Shared,
    reader: Reader,
    parts: BTreeMap<i32, Part>,
    samples: u32,
}

/// The receiver is gone: nobody wants to know.
#[derive(Debug)]
pub struct Gone;

pub type Sent = Result<(), Gone>;

/// A record as it is taken, without its topic.
pub trait Record {
    fn partition(&self) -> i32;
    fn offset(&self) -> i64;
    /// Kafka's time of it.
    fn timestamp(&self) -> Millis;
    fn payload(&self) -> &[u8];
}

impl Record for Message<'_> {
    fn partition(&self) -> i32 {
        Message::partition(self)
    }

    fn offset(&self) -> i64 {
        Message::offset(self)
    }

    fn timestamp(&self) -> Millis {
        Message::timestamp(self)
    }

    fn payload(&self) -> &[u8] {
        Message::payload(self)
    }
}

impl From<SendError<FromIngest>> for Gone {
    fn from(_: SendError<FromIngest>) -> Gone {
        Gone
    }
}

/// One partition number.
struct Part {
    aggregator: Aggregator,
    aligner: Aligner<Held>,
    /// Next offset of each topic, up to which `aggregator` has booked.
    next: Vec<Option<i64>>,
    /// The same of topics that are not read any more.
    others: BTreeMap<String, i64>,
    /// When the last record was booked, by the steady clock, and the partition's time then.
    quiet_since: Duration,
    time: Option<Millis>,
    /// Reported as idle since its last record.
    idle: bool,
    /// Records have been booked since the last release.
    booked: bool,
    /// Records or time have moved since the last report.
    moved: bool,
    mark: Mark,
    chance: Chance,
}

/// The time in which topics had the chance to bring records. Only that tries an aligner's patience: what is not taken, for whatever
/// reason of ours, is not missing.
#[derive(Default)]
struct Chance {
    looked: Duration,
    held: Duration,
    had: Duration,
}

impl Chance {
    /// Milliseconds so far.
    fn had(&mut self, now: &Moment, partition: i32) -> u64 {
        if !now.ahead.contains(&partition) {
            self.had += now.steady.saturating_sub(self.looked).saturating_sub(now.held.saturating_sub(self.held));
        }
        (self.looked, self.held) = (now.steady, now.held);
        self.had.as_millis() as u64
    }
}

/// Now, as far as it matters to what is booked.
struct Moment {
    /// By the wall clock.
    wall: Millis,
    /// The latest event time that is not of the future.
    latest: Millis,
    steady: Duration,
    /// See [`Board`].
    held: Duration,
    ahead: BTreeSet<i32>,
}

impl Moment {
    fn of(shared: &Shared) -> Moment {
        let (wall, board) = (shared.clock.now(), &shared.board);
        Moment {
            wall,
            latest: wall.saturating_add(shared.max_future),
            steady: shared.clock.steady(),
            held: Duration::from_millis(board.held.load(Ordering::Relaxed)),
            ahead: board.ahead.lock().unwrap_or_else(|e| e.into_inner()).clone(),
        }
    }
}

/// A record that waits for records of other topics.
struct Held {
    offset: i64,
    /// Kafka's time of it.
    at: Millis,
    payload: Box<[u8]>,
}

impl Part {
    fn new(aggregator: Aggregator, mut offsets: BTreeMap<String, i64>, shared: &Shared) -> Part {
        let topics = &shared.topics;
        Part {
            time: aggregator.watermark(),
            aggregator,
            aligner: Aligner::new(topics.len(), shared.merge_wait),
            next: topics.iter().map(|t| offsets.remove(t)).collect(),
            others: offsets,
            quiet_since: shared.clock.steady(),
            idle: false,
            booked: false,
            moved: false,
            mark: Mark::default(),
            chance: Chance { looked: shared.clock.steady(), ..Chance::default() },
        }
    }

    /// Milliseconds for which it has moved on with the clock: at its end, and without records for longer than `idle_after`.
    fn quiet(&self, now: Duration, idle_after: Millis) -> Option<Millis> {
        let quiet = now.saturating_sub(self.quiet_since).as_millis() as Millis - idle_after;
        (quiet > 0 && self.aligner.caught_up()).then_some(quiet)
    }

    fn offsets(&self, topics: &[String]) -> BTreeMap<String, i64> {
        let read = topics.iter().zip(&self.next).filter_map(|(t, next)| next.map(|n| (t.clone(), n)));
        read.chain(self.others.clone()).collect()
    }
}

impl Worker {
    /// A worker that goes on from `resume`, its share of the partition numbers.
    ///
    /// # Errors
    /// Where a state cannot be restored, the partition number and why.
    pub fn new(index: usize, shared: Shared, resume: Vec<(i32, Resume)>) -> Result<Worker, (i32, String)> {
        let mut parts = BTreeMap::new();
        for (partition, r) in resume {
            let (catalog, settings) = (Arc::clone(&shared.catalog), shared.settings.clone());
            let aggregator = Aggregator::restore(partition, catalog, settings, &r.kept).map_err(|reason| (partition, reason))?;
            parts.insert(partition, Part::new(aggregator, r.offsets, &shared));
        }
        let reader = Reader::new(&shared.topics, &shared.layouts, &shared.catalog.fields, shared.limits);
        Ok(Worker { index, shared, reader, parts, samples: 0 })
    }

    /// Works until it is told to stop, or until nobody receives.
    pub fn run(mut self, inbox: &Receiver<ToWorker>) {
        // An error means that the receiver has gone: there is nobody left to tell.
        let _ = self.work(inbox);
    }

    fn work(&mut self, inbox: &Receiver<ToWorker>) -> Sent {
        let mut tick = Instant::now() + TICK;
        loop {
            match inbox.recv_deadline(self.due().map_or(tick, |wait| tick.min(Instant::now() + wait))) {
                Ok(ToWorker::Batch(batch)) => self.batch(&batch)?,
                Ok(ToWorker::Ended(places)) => self.ended(&places)?,
                Ok(ToWorker::Assigned(places)) => self.assigned(&places)?,
                Ok(ToWorker::Revoked(places)) => self.revoked(&places)?,
                Ok(ToWorker::Barrier(n)) => self.snapshot(n)?,
                Ok(ToWorker::Reload(n, rules)) => {
                    self.snapshot(n)?;
                    self.reload(rules)?;
                }
                Ok(ToWorker::Stop(n)) => return self.snapshot(n),
                Err(RecvTimeoutError::Timeout) => self.release_all()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if Instant::now() >= tick {
                self.tick()?;
                tick = Instant::now() + TICK;
            }
        }
    }

    /// How long nothing of what is held will have waited for long enough.
    fn due(&self) -> Option<Duration> {
        let of = |part: &Part| Some(Duration::from_millis(part.aligner.due()?.saturating_sub(part.chance.had.as_millis() as u64)));
        self.parts.values().filter_map(of).min().map(|wait| wait.max(SHORTEST))
    }

    fn release_all(&mut self) -> Sent {
        let now = Moment::of(&self.shared);
        let partitions: BTreeSet<i32> = self.parts.iter().filter(|(_, part)| part.aligner.due().is_some()).map(|(p, _)| *p).collect();
        for partition in &partitions {
            self.release(*partition, &now)?;
        }
        self.post(partitions);
        Ok(())
    }

    /// These topics' partitions are at their end.
    pub fn ended(&mut self, places: &[(usize, i32)]) -> Sent {
        let now = Moment::of(&self.shared);
        for &(topic, partition) in places {
            let Some(part) = self.parts.get_mut(&partition) else { continue };
            part.aligner.end(topic);
            self.release(partition, &now)?;
        }
        self.post(places.iter().map(|p| p.1).collect());
        Ok(())
    }

    pub fn assigned(&mut self, places: &[(usize, i32)]) -> Sent {
        for &(topic, partition) in places {
            let shared = &self.shared;
            let part = self.parts.entry(partition).or_insert_with(|| {
                let aggregator = Aggregator::new(partition, Arc::clone(&shared.catalog), shared.settings.clone());
                Part::new(aggregator, BTreeMap::new(), shared)
            });
            let first = !part.aligner.any_live();
            part.aligner.set_live(topic, true);
            if first {
                // What a checkpoint knows of the partition is reported even if no further record comes.
                (part.quiet_since, part.idle, part.moved) = (shared.clock.steady(), false, true);
                shared.sender.send(FromIngest::Assigned(partition))?;
            }
        }
        self.post(self.parts.keys().copied().collect());
        Ok(())
    }

    /// Aggregators and offsets stay: the partition may come back, and then goes on where it stood.
    pub fn revoked(&mut self, places: &[(usize, i32)]) -> Sent {
        for &(topic, partition) in places {
            let Some(part) = self.parts.get_mut(&partition) else { continue };
            let was = part.aligner.any_live();
            part.aligner.set_live(topic, false);
            if was && !part.aligner.any_live() {
                self.shared.sender.send(FromIngest::Revoked(partition))?;
            }
        }
        self.post(self.parts.keys().copied().collect());
        Ok(())
    }

    fn batch(&mut self, batch: &Batch) -> Sent {
        let topics = Arc::clone(&self.shared.topics);
        let mut topic = (0, None);
        self.records(batch.iter().filter_map(|message| {
            if topic.0 != message.topic_key() {
                topic = (message.topic_key(), topics.iter().position(|t| t == message.topic()));
            }
            Some((topic.1?, message))
        }))
    }

    /// Books records, each with the index of its topic.
    pub fn records(&mut self, records: impl Iterator<Item = (usize, impl Record)>) -> Sent {
        let now = Moment::of(&self.shared);
        let mut touched = BTreeSet::new();
        let mut booking = Booking { shared: &self.shared, reader: &mut self.reader, samples: &mut self.samples, now: &now };
        // Records come in runs of one partition.
        let mut run: Option<(i32, &mut Part)> = None;
        for (lane, message) in records {
            let partition = message.partition();
            if run.as_ref().is_none_or(|(of, _)| *of != partition) {
                run = self.parts.get_mut(&partition).map(|part| (partition, part));
                if let Some((_, part)) = &mut run {
                    touched.insert(partition);
                    part.chance.had(&now, partition);
                }
            }
            if let Some((_, part)) = &mut run {
                booking.arrived(part, lane, message);
            }
        }
        for partition in &touched {
            self.release(*partition, &now)?;
        }
        self.post(touched);
        Ok(())
    }

    /// Books the held records whose turn has come, and hands on what the partition has emitted.
    fn release(&mut self, partition: i32, now: &Moment) -> Sent {
        let Some(part) = self.parts.get_mut(&partition) else { return Ok(()) };
        let chance = part.chance.had(now, partition);
        let stalls = part.aligner.stalls();
        let mut booking = Booking { shared: &self.shared, reader: &mut self.reader, samples: &mut self.samples, now };
        while let Some((lane, held)) = part.aligner.pop(chance) {
            if !booking.book_held(part, partition, lane, held) {
                break;
            }
        }
        if part.aligner.stalls() > stalls {
            tracing::warn!(partition, "a topic that brings no records has kept the others waiting for too long");
        }
        if std::mem::take(&mut part.booked) {
            (part.quiet_since, part.time) = (now.steady, part.aggregator.watermark());
            (part.idle, part.moved) = (false, true);
        }
        hand_on(part, partition, &self.shared.sender)
    }

    /// Quiet partitions move on with the clock; progress is reported.
    pub fn tick(&mut self) -> Sent {
        self.samples = 0;
        let now = Moment::of(&self.shared);
        let lead = self.lead(&now);
        let partitions: Vec<i32> = self.parts.keys().copied().collect();
        for partition in partitions {
            self.release(partition, &now)?;
            let Some(part) = self.parts.get_mut(&partition) else { continue };
            if let Some(quiet) = part.quiet(now.steady, self.shared.settings.idle_after) {
                match part.time {
                    Some(time) => {
                        part.aggregator.advance(time.saturating_add(quiet).max(lead));
                        part.moved = true;
                    }
                    None if !part.idle => {
                        part.idle = true;
                        self.shared.sender.send(FromIngest::Idle(partition))?;
                    }
                    None => {}
                }
            }
            hand_on(part, partition, &self.shared.sender)?;
            if std::mem::take(&mut part.moved) {
                let (watermark, counts) = (part.aggregator.watermark(), part.aggregator.counts().clone());
                let (dropped, overtaken) = (part.aggregator.dropped(), part.aligner.take_overtaken());
                self.shared.sender.send(FromIngest::Progress { partition, watermark, counts, dropped, overtaken })?;
            }
        }
        self.post(self.parts.keys().copied().collect());
        Ok(())
    }

    /// The time to which quiet partitions move at once, lest one whose last record is of long ago hold the others back: that of the slowest
    /// that is not quiet, or of the furthest where all are; of about now at most.
    fn lead(&self, now: &Moment) -> Millis {
        let marks = self.shared.board.marks.lock().unwrap_or_else(|e| e.into_inner());
        let times = |quiet: bool| marks.values().filter(move |mark| mark.quiet == quiet).filter_map(|mark| mark.watermark);
        let lead = times(false).min().or_else(|| times(true).max());
        lead.map_or(Millis::MIN, |lead| lead.min(now.wall.saturating_sub(self.shared.settings.idle_after)))
    }

    /// Sends the state of all partitions.
    pub fn snapshot(&mut self, barrier: u64) -> Sent {
        let mut parts = Vec::new();
        for (partition, part) in &mut self.parts {
            hand_on(part, *partition, &self.shared.sender)?;
            let changes = match part.aggregator.snapshot() {
                Ok(changes) => changes,
                Err(reason) => return Ok(self.shared.sender.send(FromIngest::Fatal(reason))?),
            };
            let offsets = part.offsets(&self.shared.topics);
            parts.push(PartitionSnapshot { partition: *partition, offsets, changes });
        }
        Ok(self.shared.sender.send(FromIngest::Snapshot { barrier, worker: self.index, parts })?)
    }

    /// Goes on by other rules. Records that wait for other topics are read by the new ones.
    pub fn reload(&mut self, Rules { catalog, layouts }: Rules) -> Sent {
        (self.shared.catalog, self.shared.layouts) = (catalog, layouts);
        self.reader = Reader::new(&self.shared.topics, &self.shared.layouts, &self.shared.catalog.fields, self.shared.limits);
        for part in self.parts.values_mut() {
            if let Err(reason) = part.aggregator.reload(Arc::clone(&self.shared.catalog)) {
                return Ok(self.shared.sender.send(FromIngest::Fatal(reason))?);
            }
        }
        Ok(())
    }

    /// Lets the consumer's thread know how far the partitions are.
    fn post(&mut self, partitions: BTreeSet<i32>) {
        let (steady, idle_after) = (self.shared.clock.steady(), self.shared.settings.idle_after);
        let mut marks = self.shared.board.marks.lock().unwrap_or_else(|e| e.into_inner());
        let mut urgent = false;
        for partition in partitions {
            let Some(part) = self.parts.get_mut(&partition) else { continue };
            if !part.aligner.any_live() {
                marks.remove(&partition);
                continue;
            }
            let crowded = part.aligner.crowded(part.mark.crowded);
            urgent |= crowded != part.mark.crowded;
            let (caught_up, quiet) = (part.aligner.caught_up(), part.quiet(steady, idle_after).is_some());
            part.mark = Mark { watermark: part.aggregator.watermark(), caught_up, quiet, crowded };
            marks.insert(partition, part.mark);
        }
        if urgent {
            self.shared.board.changed.store(true, Ordering::Release);
        }
    }
}

fn hand_on(part: &mut Part, partition: i32, sender: &Sender<FromIngest>) -> Sent {
    for emission in part.aggregator.drain() {
        sender.send(FromIngest::Emission { partition, emission })?;
    }
    Ok(())
}

/// What booking a record takes besides its partition.
struct Booking<'a> {
    shared: &'a Shared,
    reader: &'a mut Reader,
    samples: &'a mut u32,
    now: &'a Moment,
}

impl Booking<'_> {
    /// Books a record that comes now, behind those held that belong before it; or holds it.
    fn arrived(&mut self, part: &mut Part, lane: usize, message: impl Record) {
        let (partition, offset, at) = (message.partition(), message.offset(), message.timestamp());
        // Clocks that differ by more are wrong.
        let fresh = at.abs_diff(self.now.wall) < self.shared.max_future.unsigned_abs().max(FRESH);
        loop {
            let goes_on = match part.aligner.turn(lane, at, fresh) {
                Turn::Pass if self.book(part, partition, lane, offset, message.payload()) => return,
                Turn::Pass | Turn::Wait => false,
                Turn::After(other, held) => self.book_held(part, partition, other, held),
            };
            if !goes_on {
                let now = fresh.then_some(part.chance.had.as_millis() as u64);
                return part.aligner.push(lane, at, now, Held { offset, at, payload: message.payload().into() });
            }
        }
    }

    /// [`Booking::book`] of a record whose turn has come; it goes back if it must wait.
    fn book_held(&mut self, part: &mut Part, partition: i32, lane: usize, held: Held) -> bool {
        let booked = self.book(part, partition, lane, held.offset, &held.payload);
        if !booked {
            part.aligner.put_back(lane, held.at, held);
        }
        booked
    }

    /// Books a record; `false` if it must wait for its schema, and those behind it.
    fn book(&mut self, part: &mut Part, partition: i32, lane: usize, offset: i64, payload: &[u8]) -> bool {
        match self.reader.book(lane, payload, self.now.latest, &mut part.aggregator) {
            Booked::Taken => {}
            Booked::Waits => return false,
            Booked::Refused(reason, why) if *self.samples < SAMPLES_PER_TICK => {
                *self.samples += 1;
                self.shared.rejects.add(reason, why, (&self.shared.topics[lane], partition, offset), payload);
            }
            Booked::Refused(..) => {}
        }
        part.next[lane] = Some(offset + 1);
        part.booked = true;
        true
    }
}

#[cfg(test)]
mod tests;
