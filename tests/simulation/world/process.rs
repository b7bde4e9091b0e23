//! One run of the daemon: its real parts, without its threads. What the threads would do in some order, [`Process::step`] does in one that
//! the world draws.

use super::clock::Clock;
use super::network::{Lines, Receivers};
use super::plan::{MAX_FUTURE, MERGE_WAIT, Plan, Record, START, TOPICS};
use crossbeam_channel::{Receiver, unbounded};
use guardraild::app::judging::{self, Court, Reading, Session, Stop};
use guardraild::app::recovery::recover;
use guardraild::clock::Time as _;
use guardraild::delivery::{Router, Waker};
use guardraild::engine::decision::{Action, LogKind, Output};
use guardraild::engine::plan::{BlastRadius, Settings};
use guardraild::engine::time::Millis;
use guardraild::ingest::decode::Limits;
use guardraild::ingest::kafka::{self, FromIngest, Resume, STOPPED, way};
use guardraild::ingest::mapped::Layouts;
use guardraild::ingest::rejects::Rejects;
use guardraild::ingest::schemas::Schemas;
use guardraild::ingest::worker::{self, Board, Shared, Worker};
use guardraild::live::{Accepted, Command, Live, Operation, Refusal, Reload, Request};
use guardraild::mapping::{Source, Sources};
use guardraild::rules::reload::{InForce, Proposal, Running, propose};
use guardraild::rules::{self, Candidate, Loaded};
use guardraild::store::{RuleText, Store};
use guardraild::telemetry::Metrics;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// Records of a fetch at most.
const FETCH: usize = 40;
/// How often a worker moves quiet partitions on.
const TICK: Millis = 250;

/// A barrier, and the rules behind it where they are others.
type Order = (u64, Option<kafka::Rules>);

/// What the judge asks of the consumer.
#[derive(Default)]
struct Orders(Mutex<VecDeque<Order>>);

impl Reading for Orders {
    fn barrier(&self, number: u64) {
        self.0.lock().unwrap().push_back((number, None));
    }

    fn reload(&self, number: u64, rules: kafka::Rules) {
        self.0.lock().unwrap().push_back((number, Some(rules)));
    }

    /// [`Process::drain`] does what follows.
    fn stop(&self) {}

    /// Nothing is paused.
    fn waiting(&self, _: usize) {}

    fn schemas(&self) -> Option<&Schemas> {
        None
    }
}

/// A worker and its way to the judge.
struct Line {
    worker: Worker,
    /// Barriers that it has not come to.
    barriers: VecDeque<Order>,
    out: Receiver<FromIngest>,
    ticked: Millis,
    /// Its messages come no sooner.
    slow_until: Millis,
}

impl Line {
    fn pass_barrier(&mut self) {
        if let Some((number, rules)) = self.barriers.pop_front() {
            self.worker.snapshot(number).unwrap();
            rules.into_iter().for_each(|rules| self.worker.reload(rules).unwrap());
        }
    }
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
    pub live: Live,
    stop: Stop,
    pub in_force: InForce,
    /// Rules on their way, and where it is heard that they have come.
    reload: Option<(InForce, oneshot::Receiver<Result<(), Refusal>>)>,
}

/// A rule file: its name, and its text.
pub type File = (String, String);

/// Nothing may be loosened but by a new revision.
struct AllLive;

impl Running for AllLive {
    fn is_live(&self, _: &str) -> bool {
        true
    }

    fn is_waiting(&self, _: &str) -> bool {
        false
    }

    fn needs_restart(&self, _: &Source) -> Option<String> {
        None
    }
}

fn in_force(loaded: &Loaded) -> InForce {
    let rules = loaded.rules.iter().map(|rule| (rule.plan.experiment.clone(), Arc::clone(rule)));
    InForce { texts: loaded.used.clone(), rules: rules.collect() }
}

/// What the files make of what is in force.
fn look(in_force: &InForce, files: &[File]) -> Proposal {
    let candidates = files.iter().map(|(file, text)| Candidate { file: file.clone(), text: Ok(text.clone()) });
    let proposal = propose(in_force, (candidates.collect(), true), None, &AllLive);
    assert!(proposal.loaded.unused.is_empty(), "{:?}", proposal.loaded.diagnostics);
    proposal
}

pub fn settings(plan: &Plan) -> Settings {
    let blast_radius = BlastRadius { experiments: plan.radius, within: 60_000 };
    let settings = Settings { idle_after: plan.idle_after, blast_radius, ..Settings::default() };
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
    pub fn start(plan: &Plan, files: &[File], database: &Path, clock: &Arc<Clock>) -> Result<Process, String> {
        clock.begin();
        let settings = settings(plan);
        let mut store = Store::open(database).map_err(|e| e.to_string())?;
        let epoch = store.fence().map_err(|e| e.to_string())?;
        let open = || Store::open(database).map(|store| store.in_epoch(epoch)).map_err(|e| e.to_string());
        let texts = store.rules().map_err(|e| e.to_string())?;
        let before = rules::assemble_plain(texts.into_iter().map(|rule| Candidate { file: rule.file, text: Ok(rule.text) }).collect());
        let mut recovered = recover(&mut store, &before.catalog, &settings, &Metrics::default()).map_err(|e| e.to_string())?;
        let Proposal { loaded, changes, .. } = look(&in_force(&before), files);
        let mut opening = Output::default();
        recovered.fleet.reload(&loaded.catalog, clock.now(), &mut opening)?;
        if !before.used.is_empty() {
            opening.log.extend(judging::entries(&changes, None, clock.now()));
        }
        let catalog = Arc::new(loaded.catalog.clone());
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
                catalog: Arc::clone(&catalog),
                settings: settings.clone(),
                limits: Limits::default(),
                max_future: MAX_FUTURE,
                merge_wait: MERGE_WAIT,
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
            opening: (!changes.is_empty()).then(|| (opening, texts_of(&loaded))),
            sources: Sources::default(),
            rules: in_force(&loaded).rules,
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
        let (away, in_force) = (BTreeMap::new(), in_force(&loaded));
        let mut process = Process { session, lines, deliveries, orders, cursors, away, live, stop, in_force, reload: None };
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

    /// Of one partition or of all. What has been produced has come: that some topics of a partition are lost, and others are not, is no world's.
    pub fn lose_broker(&mut self, plan: &Plan, clock: &Clock, partition: Option<i32>, until: Millis) {
        for p in (0..plan.partitions).filter(|p| partition.is_none_or(|partition| partition == *p)) {
            self.take(plan, clock, p, None);
            self.cursors[p as usize].iter_mut().for_each(|cursor| cursor.lost_until = until);
        }
    }

    /// Goes on by what the files say now, if that is something else; as the keeper of the rules does.
    pub fn reload(&mut self, files: &[File]) -> bool {
        if let Some((next, mut answer)) = self.reload.take() {
            match answer.try_recv() {
                Ok(Ok(())) => self.in_force = next,
                Err(oneshot::error::TryRecvError::Empty) => self.reload = Some((next, answer)),
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => {}
            }
        }
        let Proposal { loaded, changes, .. } = look(&self.in_force, files);
        if self.reload.is_some() || changes.is_empty() {
            return false;
        }
        let (reply, answer) = oneshot::channel();
        self.reload = Some((in_force(&loaded), answer));
        self.session.command(Command::Reload(Box::new(Reload { loaded, changes, author: None, reply })));
        true
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
                for order in self.orders.0.lock().unwrap().drain(..) {
                    self.lines.iter_mut().for_each(|line| line.barriers.push_back(order.clone()));
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
        let index = rng.random_range(0..self.lines.len());
        self.lines[index].pass_barrier();
        // A worker whose messages find no room waits.
        if clock.at() - self.lines[index].ticked >= TICK && self.lines[index].out.len() <= plan.inbox {
            for partition in (0..plan.partitions).filter(|p| way(*p, plan.workers) == index) {
                if self.is_overdue(plan, clock, partition) && self.can_take(partition, clock) {
                    self.take(plan, clock, partition, None);
                }
            }
            let line = &mut self.lines[index];
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

    /// Takes records of a partition.
    fn fetch(&mut self, plan: &Plan, clock: &Clock, rng: &mut ChaCha8Rng) {
        let partition = rng.random_range(0..plan.partitions);
        let line = &self.lines[way(partition, plan.workers)];
        if self.away.contains_key(&partition) || line.out.len() > plan.inbox || !self.can_take(partition, clock) {
            return;
        }
        let some = (!self.is_overdue(plan, clock, partition)).then(|| (rng.random_range(0..TOPICS.len()), rng.random_range(1..=FETCH)));
        self.take(plan, clock, partition, some);
        // An end is noticed a little later. Of records that came together all are there first.
        let cursors = &mut self.cursors[partition as usize];
        let at_end = |topic: &usize| cursors[*topic].next == produced(plan, clock, partition)[*topic] && !cursors[*topic].ended;
        let ended: Vec<(usize, i32)> = (0..TOPICS.len()).filter(at_end).map(|topic| (topic, partition)).collect();
        if !ended.is_empty() && rng.random_bool(0.5) {
            ended.iter().for_each(|(topic, _)| cursors[*topic].ended = true);
            self.lines[way(partition, plan.workers)].worker.ended(&ended).unwrap();
        }
    }

    fn can_take(&self, partition: i32, clock: &Clock) -> bool {
        self.cursors[partition as usize].iter().all(|cursor| clock.at() >= cursor.lost_until)
    }

    /// When the first record of a topic that has not been taken was produced.
    fn first(&self, plan: &Plan, partition: i32, topic: usize) -> Option<Millis> {
        let next = self.cursors[partition as usize][topic].next;
        plan.logs[topic][partition as usize].get(next).map(|record| record.at)
    }

    /// A record has been on its way for as long as records may be at the head, where others have come.
    fn is_overdue(&self, plan: &Plan, clock: &Clock, partition: i32) -> bool {
        let head = self.cursors[partition as usize].iter().any(|cursor| cursor.ended);
        let late = |topic| self.first(plan, partition, topic).is_some_and(|at| clock.at() - at > MERGE_WAIT / 2);
        head && (0..TOPICS.len()).any(late)
    }

    /// Takes some records of one topic, as far as they have been produced, or all of all topics in their order. While no topic is at its end they
    /// come as they like; at the head none comes so late that one which is [`MERGE_WAIT`] younger has come: then the order of a partition's
    /// records is the same in every world.
    fn take(&mut self, plan: &Plan, clock: &Clock, partition: i32, some: Option<(usize, usize)>) {
        let produced = produced(plan, clock, partition);
        let head = self.cursors[partition as usize].iter().any(|cursor| cursor.ended);
        let firsts = [0, 1].map(|topic| self.first(plan, partition, topic));
        let cursors = &mut self.cursors[partition as usize];
        let all = |topic: usize| (cursors[topic].next..produced[topic]).map(move |offset| (topic, offset));
        let logs = [0, 1].map(|topic| &plan.logs[topic][partition as usize]);
        let mut taken: Vec<(usize, usize)> = match some {
            Some((topic, many)) => {
                let bound = firsts[1 - topic].filter(|_| head).map_or(Millis::MAX, |first| first + MERGE_WAIT);
                all(topic).filter(|(topic, offset)| logs[*topic][*offset].at < bound).take(many).collect()
            }
            None => (0..TOPICS.len()).flat_map(all).collect(),
        };
        taken.sort_by_key(|(topic, offset)| (logs[*topic][*offset].at, *topic, *offset));
        for (topic, offset) in &taken {
            (cursors[*topic].next, cursors[*topic].ended) = (offset + 1, false);
        }
        let records = taken.iter().map(|(topic, offset)| (*topic, Taken(partition, *offset, &logs[*topic][*offset])));
        self.lines[way(partition, plan.workers)].worker.records(records).unwrap();
    }

    /// Whether every record has been taken, and what came of it has been heard.
    pub fn has_read(&self, plan: &Plan) -> bool {
        let end = |(partition, topic): (usize, usize)| self.cursors[partition][topic].next == plan.logs[topic][partition].len();
        let mut places = (0..self.cursors.len()).flat_map(|partition| (0..TOPICS.len()).map(move |topic| (partition, topic)));
        places.all(end) && self.lines.iter().all(|line| line.out.is_empty())
    }

    /// Whether what the files say is in force.
    pub fn goes_by(&self, files: &[File]) -> bool {
        files.iter().all(|(file, text)| self.in_force.texts.iter().any(|used| used.file == *file && used.text == *text))
    }

    /// SIGTERM.
    pub fn drain(&mut self) {
        self.stop.request();
        for line in 0..self.lines.len() {
            while !self.lines[line].barriers.is_empty() {
                self.lines[line].pass_barrier();
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
            _ => Operation::Annotate { kind: LogKind::Annotation, links: Vec::new() },
        };
        let (reply, mut answer) = oneshot::channel();
        let (author, reason) = ("sre".to_owned(), "because".to_owned());
        let request = Request { experiment: experiment.to_owned(), operation, bucket: None, author, reason, reply };
        self.session.command(Command::Operate(request));
        answer.try_recv().unwrap()
    }
}

/// Records of each topic that there are by now.
fn produced(plan: &Plan, clock: &Clock, partition: i32) -> [usize; TOPICS.len()] {
    [0, 1].map(|topic| plan.logs[topic][partition as usize].partition_point(|record| record.at <= clock.at()))
}

fn texts_of(loaded: &Loaded) -> Vec<RuleText> {
    loaded.used.iter().map(|u| RuleText { file: u.file.clone(), experiment: u.experiment.clone(), text: u.text.clone() }).collect()
}

fn places(partition: i32) -> Vec<(usize, i32)> {
    (0..TOPICS.len()).map(|topic| (topic, partition)).collect()
}
