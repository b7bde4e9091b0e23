//! One run of the daemon: its real parts, without its threads. What the threads would do in some order, [`Process::step`] does in one that
//! the world draws.

use super::clock::Clock;
use super::network::{Lines, Receivers};
use super::plan::{MAX_FUTURE, Plan, Record, START, TOPICS};
use crossbeam_channel::{Receiver, unbounded};
use guardraild::app::judging::{Court, Reading, Session, Stop};
use guardraild::app::recovery::recover;
use guardraild::delivery::{Router, Waker};
use guardraild::engine::decision::Action;
use guardraild::engine::plan::{Catalog, Settings};
use guardraild::engine::time::Millis;
use guardraild::ingest::decode::Limits;
use guardraild::ingest::kafka::{self, FromIngest, Resume, STOPPED, way};
use guardraild::ingest::mapped::Layouts;
use guardraild::ingest::rejects::Rejects;
use guardraild::ingest::schemas::Schemas;
use guardraild::ingest::worker::{self, Board, Shared, Worker};
use guardraild::live::{Accepted, Command, Live, Operation, Refusal, Request};
use guardraild::mapping::Sources;
use guardraild::rules::RuleSet;
use guardraild::store::Store;
use guardraild::telemetry::Metrics;
use rand::Rng;
use rand::seq::IndexedMutRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::oneshot;

/// Records of a fetch at most.
const FETCH: usize = 40;
/// How often a worker moves quiet partitions on.
const TICK: Millis = 250;

/// What the judge asks of the consumer.
#[derive(Default)]
struct Orders {
    barrier: AtomicU64,
    stop: AtomicBool,
}

impl Reading for Orders {
    fn barrier(&self, number: u64) {
        self.barrier.store(number, Relaxed);
    }

    fn reload(&self, number: u64, _: kafka::Rules) {
        unreachable!("a world keeps its rules, and nobody asks for others at {number}");
    }

    fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    fn schemas(&self) -> Option<&Schemas> {
        None
    }
}

/// A worker and its way to the judge.
struct Line {
    worker: Worker,
    /// Barriers that it has not come to.
    barriers: VecDeque<u64>,
    out: Receiver<FromIngest>,
    ticked: Millis,
    /// Its messages come no sooner.
    slow_until: Millis,
}

/// A topic's partition, as the consumer reads it.
#[derive(Default)]
struct Cursor {
    next: usize,
    /// The worker knows that it is at its end.
    ended: bool,
    /// Nothing comes before.
    lost_until: Millis,
}

/// See the module.
pub struct Process {
    session: Session,
    lines: Vec<Line>,
    deliveries: Lines,
    orders: Arc<Orders>,
    /// By partition, then by topic.
    cursors: Vec<[Cursor; TOPICS.len()]>,
    /// Partitions that are taken away, and when they come back.
    away: BTreeMap<i32, Millis>,
    asked: u64,
    pub live: Live,
    stop: Stop,
}

/// Rules of one world.
#[derive(Clone)]
pub struct Rules {
    pub catalog: Arc<Catalog>,
    pub rules: BTreeMap<String, Arc<RuleSet>>,
}

pub fn settings(plan: &Plan) -> Settings {
    let settings = Settings { idle_after: plan.idle_after, ..Settings::default() };
    match plan.cramped {
        true => Settings { dedupe_max: 50, workflows_max: 20, units_max: 60, waiting_max: 3, ..settings },
        false => settings,
    }
}

pub struct Taken<'a>(i32, usize, &'a Record);

impl worker::Record for Taken<'_> {
    fn partition(&self) -> i32 {
        self.0
    }

    fn offset(&self) -> i64 {
        self.1 as i64
    }

    fn timestamp(&self) -> Millis {
        START + self.2.at
    }

    fn payload(&self) -> &[u8] {
        &self.2.payload
    }
}

impl Process {
    /// Starts as `app::start` does.
    pub fn start(plan: &Plan, rules: &Rules, database: &Path, clock: &Arc<Clock>) -> Result<Process, String> {
        clock.begin();
        let settings = settings(plan);
        let open = || Store::open(database).map_err(|e| e.to_string());
        let mut store = open()?;
        let recovered = recover(&mut store, &rules.catalog, &settings, &Metrics::default()).map_err(|e| e.to_string())?;
        let mut cursors: Vec<[Cursor; 2]> = (0..plan.partitions).map(|_| Default::default()).collect();
        for (partition, resume) in &recovered.resume {
            for (topic, name) in TOPICS.iter().enumerate() {
                cursors[*partition as usize][topic].next = resume.offsets.get(*name).map_or(0, |next| *next as usize);
            }
        }
        let mut resume: Vec<Vec<(i32, Resume)>> = (0..plan.workers).map(|_| Vec::new()).collect();
        recovered.resume.into_iter().for_each(|(partition, r)| resume[way(partition, plan.workers)].push((partition, r)));
        let mut lines = Vec::new();
        for (index, share) in resume.into_iter().enumerate() {
            let (sender, out) = unbounded();
            let shared = Shared {
                topics: TOPICS.map(str::to_owned).to_vec().into(),
                layouts: Layouts::default(),
                catalog: Arc::clone(&rules.catalog),
                settings: settings.clone(),
                limits: Limits::default(),
                max_future: MAX_FUTURE,
                clock: Arc::clone(clock) as guardraild::clock::Clock,
                sender,
                rejects: Rejects::default(),
                board: Arc::new(Board::default()),
            };
            let worker = Worker::new(index, shared, share).map_err(|(partition, why)| format!("partition {partition}: {why}"))?;
            lines.push(Line { worker, barriers: VecDeque::new(), out, ticked: clock.at(), slow_until: 0 });
        }
        let (waker, live, stop) = (Waker::default(), Live::default(), Stop::default());
        let deliveries = Lines::new(open()?, &waker, clock);
        let court = Court {
            clock: Arc::clone(clock) as guardraild::clock::Clock,
            fleet: recovered.fleet,
            operations_seq: recovered.operations_seq,
            anew: recovered.anew,
            store,
            opening: None,
            sources: Sources::default(),
            rules: rules.rules.clone(),
            router: Router::default(),
            waker,
            live: live.clone(),
            metrics: Metrics::default(),
            lateness: settings.lateness,
            checkpoint_every: Duration::from_millis(plan.checkpoint_every.unsigned_abs()),
            workers: plan.workers,
            endpoints: Vec::new(),
        };
        let orders = Arc::new(Orders::default());
        let session = Session::new(court, Arc::clone(&orders) as Arc<dyn Reading>, stop.clone());
        let mut process = Process { session, lines, deliveries, orders, cursors, away: BTreeMap::new(), asked: 0, live, stop };
        // All at once, as the consumer's thread does, before any worker says a word.
        (0..plan.partitions).for_each(|partition| process.session.receive(FromIngest::Assigned(partition)));
        (0..plan.partitions).for_each(|partition| process.assign(partition));
        Ok(process)
    }

    fn assign(&mut self, partition: i32) {
        let worker = way(partition, self.lines.len());
        self.lines[worker].worker.assigned(&places(partition)).unwrap();
    }

    /// Takes a partition away for a while.
    pub fn revoke(&mut self, partition: i32, until: Millis) {
        if self.away.insert(partition, until).is_none() {
            let worker = way(partition, self.lines.len());
            self.lines[worker].worker.revoked(&places(partition)).unwrap();
            self.cursors[partition as usize].iter_mut().for_each(|cursor| cursor.ended = false);
        }
    }

    pub fn lose_broker(&mut self, partition: Option<i32>, until: Millis) {
        let meant = |p: usize| partition.is_none_or(|partition| partition as usize == p);
        let cursors = self.cursors.iter_mut().enumerate().filter(|(p, _)| meant(*p));
        cursors.flat_map(|(_, topics)| topics).for_each(|cursor| cursor.lost_until = until);
    }

    pub fn slow_worker(&mut self, worker: usize, until: Millis) {
        self.lines[worker].slow_until = until;
    }

    /// One thing that one of the threads does next; each has its turn, in an order that is drawn.
    pub fn step(&mut self, plan: &Plan, clock: &Clock, receivers: &mut Receivers, rng: &mut ChaCha8Rng) {
        match rng.random_range(0..10) {
            0..4 => self.fetch(plan, clock, rng),
            4..7 => self.hear(plan, clock, rng),
            7 => {
                self.session.duties();
                let number = self.orders.barrier.load(Relaxed);
                if number > self.asked {
                    self.asked = number;
                    self.lines.iter_mut().for_each(|line| line.barriers.push_back(number));
                }
            }
            8 => self.deliveries.step(receivers, clock, rng),
            _ => self.tick(plan, clock, rng),
        }
    }

    /// When deliveries have something to do next.
    pub fn next_delivery(&self) -> Millis {
        self.deliveries.next()
    }

    pub fn deliver(&mut self, receivers: &mut Receivers, clock: &Clock, rng: &mut ChaCha8Rng) {
        self.deliveries.step(receivers, clock, rng);
    }

    fn tick(&mut self, plan: &Plan, clock: &Clock, rng: &mut ChaCha8Rng) {
        let back: Vec<i32> = self.away.iter().filter(|(_, until)| clock.at() >= **until).map(|(partition, _)| *partition).collect();
        for partition in back {
            self.away.remove(&partition);
            self.session.receive(FromIngest::Assigned(partition));
            self.assign(partition);
        }
        let line = self.lines.choose_mut(rng).unwrap();
        if let Some(barrier) = line.barriers.pop_front() {
            line.worker.snapshot(barrier).unwrap();
        }
        // A worker whose messages find no room waits.
        if clock.at() - line.ticked >= TICK && line.out.len() <= plan.inbox {
            line.ticked = clock.at();
            line.worker.tick().unwrap();
        }
    }

    /// Hands some of a worker's messages to the judge.
    fn hear(&mut self, plan: &Plan, clock: &Clock, rng: &mut ChaCha8Rng) {
        let line = rng.random_range(0..self.lines.len());
        if clock.at() < self.lines[line].slow_until {
            return;
        }
        for _ in 0..rng.random_range(1..=plan.inbox.min(20)) {
            let Ok(message) = self.lines[line].out.try_recv() else { return };
            self.session.receive(message);
        }
    }

    /// Takes records of a partition, as far as they have been produced. While its worker waits for a topic, topics come on their own; at the
    /// end of the log they come as they are produced, so that the order of a partition's records is the same in every world.
    fn fetch(&mut self, plan: &Plan, clock: &Clock, rng: &mut ChaCha8Rng) {
        let partition = rng.random_range(0..plan.partitions);
        let line = &mut self.lines[way(partition, plan.workers)];
        if self.away.contains_key(&partition) || line.out.len() > plan.inbox {
            return;
        }
        let cursors = &mut self.cursors[partition as usize];
        if cursors.iter().any(|cursor| clock.at() < cursor.lost_until) {
            return;
        }
        let logs = [0, 1].map(|topic| &plan.logs[topic][partition as usize]);
        let produced = [0, 1].map(|topic| logs[topic].partition_point(|record| record.at <= clock.at()));
        let many = rng.random_range(1..=FETCH);
        let lone = !cursors.iter().any(|cursor| cursor.ended);
        let mut taken: Vec<(usize, usize)> = match lone {
            true => {
                let topic = rng.random_range(0..TOPICS.len());
                (cursors[topic].next..produced[topic]).take(many).map(|offset| (topic, offset)).collect()
            }
            false => {
                (0..TOPICS.len()).flat_map(|topic| (cursors[topic].next..produced[topic]).map(move |offset| (topic, offset))).collect()
            }
        };
        taken.sort_by_key(|(topic, offset)| (logs[*topic][*offset].at, *topic, *offset));
        taken.truncate(many);
        for (topic, offset) in &taken {
            (cursors[*topic].next, cursors[*topic].ended) = (offset + 1, false);
        }
        let records = taken.iter().map(|(topic, offset)| (*topic, Taken(partition, *offset, &logs[*topic][*offset])));
        line.worker.records(records).unwrap();
        let at_end = |topic: &usize| cursors[*topic].next == produced[*topic] && !cursors[*topic].ended;
        let ended: Vec<(usize, i32)> = (0..TOPICS.len()).filter(at_end).map(|topic| (topic, partition)).collect();
        // It is noticed a little later. Of records that came together all are there first.
        if !ended.is_empty() && rng.random_bool(0.5) {
            ended.iter().for_each(|(topic, _)| cursors[*topic].ended = true);
            line.worker.ended(&ended).unwrap();
        }
    }

    /// Whether every record has been taken, and what came of it has been heard.
    pub fn has_read(&self, plan: &Plan) -> bool {
        let end = |(partition, topic): (usize, usize)| self.cursors[partition][topic].next == plan.logs[topic][partition].len();
        let mut places = (0..self.cursors.len()).flat_map(|partition| (0..TOPICS.len()).map(move |topic| (partition, topic)));
        places.all(end) && self.lines.iter().all(|line| line.out.is_empty())
    }

    /// SIGTERM.
    pub fn drain(&mut self) {
        self.stop.request();
        self.orders.stop();
        for line in 0..self.lines.len() {
            while let Some(barrier) = self.lines[line].barriers.pop_front() {
                self.lines[line].worker.snapshot(barrier).unwrap();
            }
            self.lines[line].worker.snapshot(STOPPED).unwrap();
            while let Ok(message) = self.lines[line].out.try_recv() {
                self.session.receive(message);
            }
        }
    }

    /// Somebody has changed the outbox.
    pub fn wake(&self) {
        self.deliveries.wake();
    }

    /// An operator's request, and what came of it.
    pub fn operate(&mut self, experiment: &str, verb: &str) -> Result<Accepted, Refusal> {
        let operation = match verb {
            "hold" => Operation::Hold { until: None },
            "resume" => Operation::Resume,
            "rollback" => Operation::Act(Action::Rollback),
            "kill" => Operation::Act(Action::Kill),
            "phase" => Operation::Phase { phase: "1".to_owned(), weights: Vec::new() },
            _ => Operation::Annotate,
        };
        let (reply, mut answer) = oneshot::channel();
        let (author, reason) = ("sre".to_owned(), "because".to_owned());
        let request = Request { experiment: experiment.to_owned(), operation, bucket: None, author, reason, reply };
        self.session.command(Command::Operate(request));
        answer.try_recv().unwrap()
    }
}

fn places(partition: i32) -> Vec<(usize, i32)> {
    (0..TOPICS.len()).map(|topic| (topic, partition)).collect()
}
