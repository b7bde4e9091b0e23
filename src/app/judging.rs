//! The thread that judges: takes what the partitions emit, writes what the judges say, answers operators, makes checkpoints.
//!
//! Nothing that a judge says is acted on before it is stored. While the store cannot be written, this thread waits and tries again;
//! the inbox fills, reading stops, and `/readyz` says why.

mod barrier;
mod told;

pub use barrier::entries;

use crate::clock::Clock;
use crate::delivery::{Router, Waker};
use crate::engine::aggregate::Dropped;
use crate::engine::decision::{Action, Decision, Output};
use crate::engine::fleet::Fleet;
use crate::engine::judge::Operator;
use crate::engine::outcome::Counts;
use crate::engine::pane::Emission;
use crate::engine::time::Millis;
use crate::ingest::kafka::{FromIngest, Ingest, Rules, way};
use crate::ingest::schemas::Schemas;
use crate::live::{Accepted, Command, Live, PartitionView, Refusal, Reload, Request};
use crate::mapping::Sources;
use crate::rules::RuleSet;
use crate::store::{Commit, NewOperation, RuleText, Store};
use crate::telemetry::{self, Metrics, names};
use barrier::Barrier;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::Span;

/// How long the thread waits for a message before it looks after its other duties.
const TICK: Duration = Duration::from_millis(50);
/// Messages taken at once at most, before panes are judged.
const TOGETHER: usize = 256;
/// Panes of this long ago, ms, are of a backlog.
const BACKLOG: Millis = 10_000;
/// A new view is made this often, and at once after a decision.
const VIEW_EVERY: Duration = Duration::from_secs(1);
/// Outbox and bounds are counted this often.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Pause between attempts to write while the store fails.
const RETRY: Duration = Duration::from_millis(500);
/// Pause between checkpoints at least, in times of what it took to write the last one: judging waits meanwhile, and that must stay a
/// small part. Waiting for a database that is locked does not count: afterwards the next checkpoint is all the more due.
const CHECKPOINT_PAUSE: u32 = 20;
/// What the last records may take at the end.
const DRAIN: Duration = Duration::from_secs(20);

/// Asks the judging thread to stop, and tells when it gave up by itself.
#[derive(Clone, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    failed: watch::Sender<Option<String>>,
}

impl Stop {
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    /// Tells that the daemon cannot go on, and why.
    pub fn fail(&self, reason: String) {
        self.failed.send_replace(Some(reason));
    }

    /// Whether the thread is asked to stop.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Resolves with the reason when the daemon cannot go on.
    pub async fn failed(&self) -> String {
        let mut watching = self.failed.subscribe();
        match watching.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// What the judge asks of those who read.
pub trait Reading {
    /// A snapshot of every worker, under this number.
    fn barrier(&self, number: u64);
    /// The same, and other rules behind it.
    fn reload(&self, number: u64, rules: Rules);
    /// The last snapshots, and an end.
    fn stop(&self);
    /// Panes that wait for the slowest partition take so many bytes.
    fn waiting(&self, bytes: usize);
    /// Whether schemas are waited for; `None` where none is needed.
    fn schemas(&self) -> Option<&Schemas>;
}

impl Reading for Ingest {
    fn barrier(&self, number: u64) {
        Ingest::barrier(self, number);
    }

    fn reload(&self, number: u64, rules: Rules) {
        Ingest::reload(self, number, rules);
    }

    fn stop(&self) {
        Ingest::stop(self);
    }

    fn waiting(&self, bytes: usize) {
        Ingest::waiting(self, bytes);
    }

    fn schemas(&self) -> Option<&Schemas> {
        Ingest::schemas(self)
    }
}

/// Everything that the judging thread owns.
pub struct Court {
    pub clock: Clock,
    pub fleet: Fleet,
    pub operations_seq: i64,
    /// No checkpoint holds anything of this state: the next one takes over nothing from those before.
    pub anew: bool,
    pub store: Store,
    /// What is to be stored before anything else: what the rules that are new at the start have changed, and their texts.
    pub opening: Option<(Output, Vec<RuleText>)>,
    /// By experiment.
    pub rules: BTreeMap<String, Arc<RuleSet>>,
    pub sources: Sources,
    pub router: Router,
    pub waker: Waker,
    pub live: Live,
    pub metrics: Metrics,
    pub checkpoint_every: Duration,
    /// How late records may be, ms.
    pub lateness: Millis,
    /// Threads that aggregate: a checkpoint needs the snapshot of each.
    pub workers: usize,
    /// Names of the configured endpoints.
    pub endpoints: Vec<String>,
}

/// The running thread. It is done in steps, so that a simulation can take them one by one.
pub struct Session {
    court: Court,
    ingest: Arc<dyn Reading>,
    stop: Stop,
    partitions: BTreeMap<i32, PartitionView>,
    assigned: BTreeSet<i32>,
    /// What bounds made each partition forget.
    dropped: BTreeMap<i32, Dropped>,
    /// Whether people have been told that judging is behind.
    behind: bool,
    /// The inbox is being emptied.
    busy: bool,
    barrier: Barrier,
    /// Rules that wait for the next barrier.
    reload: Option<Box<Reload>>,
    next_checkpoint: Duration,
    /// Why the store could not be written last time.
    store_error: Option<String>,
    viewed: Duration,
    counted: Duration,
    failed: bool,
    /// Nothing more will come.
    stopped: bool,
    /// The judges have said what could not be stored before the end: their state must not be saved, so that the next start hears it again.
    unsaid: bool,
}

impl Court {
    /// Runs until [`Stop::request`], or until ingest gives up.
    pub fn run(self, ingest: Arc<dyn Reading>, inbox: Receiver<FromIngest>, mut commands: mpsc::Receiver<Command>, stop: &Stop) {
        let mut session = Session::new(self, ingest, stop.clone());
        while !stop.is_requested() && !session.failed {
            session.step(&inbox);
            while let Ok(command) = commands.try_recv() {
                session.command(command);
            }
            session.duties();
        }
        session.drain(&inbox);
    }
}

impl Session {
    pub fn new(court: Court, ingest: Arc<dyn Reading>, stop: Stop) -> Session {
        let now = court.clock.steady();
        let next_checkpoint = now + court.checkpoint_every;
        let mut session = Session {
            court,
            ingest,
            stop,
            partitions: BTreeMap::new(),
            assigned: BTreeSet::new(),
            dropped: BTreeMap::new(),
            behind: false,
            busy: false,
            barrier: Barrier::default(),
            reload: None,
            next_checkpoint,
            store_error: None,
            viewed: now,
            counted: now,
            failed: false,
            stopped: false,
            unsaid: false,
        };
        for action in [Action::Hold, Action::Notify, Action::Page, Action::Pause, Action::Rollback, Action::Kill] {
            // A counter that begins at its first event hides that event from `increase()`.
            session.court.metrics.add(&names::DECISIONS, &[action.name()], 0.0);
        }
        session.count_kept();
        session.open();
        session.publish();
        session
    }

    fn step(&mut self, inbox: &Receiver<FromIngest>) {
        let message = inbox.recv_timeout(TICK);
        self.busy = message.is_ok();
        match message {
            Ok(message) => {
                self.receive(message);
                // What waits already is judged together with it, which costs less than one after the other.
                inbox.try_iter().take(TOGETHER).for_each(|message| self.receive(message));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                self.stopped = true;
                self.give_up("reading from Kafka has ended".into());
            }
        }
    }

    /// Reads no more, judges what has been read, and saves a last checkpoint.
    fn drain(&mut self, inbox: &Receiver<FromIngest>) {
        self.ingest.stop();
        let deadline = self.court.clock.steady() + DRAIN;
        while !self.stopped && self.court.clock.steady() < deadline {
            self.step(inbox);
        }
        self.publish();
    }

    /// Whether nothing more will come, after [`Reading::stop`].
    pub fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// Ends the daemon; what has been read is still judged and saved.
    fn give_up(&mut self, reason: String) {
        self.failed = true;
        self.stop.fail(reason);
    }

    /// Takes in what a worker sends. Panes that are ready are judged with the next duties, or before whatever else depends on them.
    pub fn receive(&mut self, message: FromIngest) {
        if self.barrier.pending && self.worker_of(&message).is_some_and(|worker| self.barrier.reported.contains(&worker)) {
            self.barrier.held.push(message);
            return;
        }
        let waits = match &message {
            FromIngest::Emission { emission, .. } => matches!(emission, Emission::Pane(_)),
            FromIngest::Progress { .. } | FromIngest::Lag { .. } => true,
            _ => false,
        };
        if !waits {
            self.settle();
        }
        let mut out = Output::default();
        match message {
            FromIngest::Emission { emission, .. } => self.court.fleet.hear(emission, &mut out),
            FromIngest::Assigned(partition) => {
                self.assigned.insert(partition);
                self.court.fleet.assigned(partition);
            }
            FromIngest::Revoked(partition) => {
                self.assigned.remove(&partition);
                if let Some(view) = self.partitions.get_mut(&partition) {
                    view.lag.clear();
                }
                self.court.fleet.revoked(partition, &mut out);
            }
            FromIngest::Idle(partition) => self.court.fleet.empty(partition, &mut out),
            FromIngest::Progress { partition, watermark, counts, dropped, overtaken } => {
                self.court.metrics.add(&names::OVERTAKEN, &[], overtaken as f64);
                self.dropped.insert(partition, dropped);
                self.progress(partition, watermark, counts);
            }
            FromIngest::Snapshot { barrier, worker, parts } => self.snapshot(barrier, worker, parts),
            FromIngest::Lag { topic, partition, records } => {
                self.court.metrics.set(&names::LAG, &[&topic, &partition.to_string()], records as f64);
                self.partition(partition).lag.insert(topic, records);
            }
            FromIngest::Fatal(reason) => self.give_up(reason),
            FromIngest::Stopped => self.stopped = true,
        }
        if !out.is_empty() {
            self.say(out, None);
        }
    }

    /// Judges the panes that are ready.
    fn settle(&mut self) {
        let mut out = Output::default();
        self.court.fleet.settle(&mut out);
        self.ingest.waiting(self.court.fleet.waiting_size());
        if !out.is_empty() {
            self.say(out, None);
        }
    }

    /// Whose message it is, where order against a snapshot matters.
    fn worker_of(&self, message: &FromIngest) -> Option<usize> {
        match message {
            FromIngest::Emission { partition, .. } | FromIngest::Idle(partition) => Some(way(*partition, self.court.workers)),
            FromIngest::Snapshot { worker, .. } => Some(*worker),
            _ => None,
        }
    }

    fn progress(&mut self, partition: i32, watermark: Option<Millis>, counts: Counts) {
        let view = self.partition(partition);
        (view.watermark, view.idle, view.counts) = (watermark, watermark.is_none(), counts);
    }

    fn partition(&mut self, partition: i32) -> &mut PartitionView {
        self.partitions.entry(partition).or_insert_with(|| PartitionView { partition, idle: true, ..PartitionView::default() })
    }

    /// Stores what the judges said, with its deliveries, and only then lets it act.
    fn say(&mut self, out: Output, operation: Option<NewOperation>) -> Option<i64> {
        // The root of the trace that ends with the receivers' answers.
        let pane = match out.decisions.is_empty() && out.notices.is_empty() {
            true => Span::none(),
            false => tracing::info_span!(
                "pane",
                judged_to = self.court.fleet.judged_to(),
                decisions = out.decisions.len(),
                trace_id = tracing::field::Empty
            ),
        };
        telemetry::name_trace(&pane);
        let storing = if pane.is_none() { Span::none() } else { tracing::info_span!(parent: &pane, "commit") };
        let _pane = pane.entered();
        let commit = Commit { operation, ..self.commit_of(out) };
        let committed = storing.in_scope(|| self.write(&commit));
        self.unsaid |= committed.is_none();
        let committed = committed?;
        for (decision, _) in commit.decisions.iter().filter(|(d, _)| committed.new.contains(&d.decision)) {
            self.court.metrics.add(&names::DECISIONS, &[decision.action.name()], 1.0);
            if let Some(by) = decision.held_by {
                self.court.metrics.add(&names::HELD_BACK, &[by.name()], 1.0);
            }
        }
        self.wake_for(&commit);
        self.publish();
        committed.operation
    }

    /// Also where the store knew them all: a commit whose success was not heard is tried again.
    fn wake_for(&self, commit: &Commit) {
        let told = commit.decisions.iter().map(|(_, rows)| rows).chain(commit.notices.iter().map(|(_, rows)| rows));
        if told.flatten().next().is_some() {
            self.court.waker.wake();
        }
    }

    /// What was said, with its deliveries.
    fn commit_of(&self, out: Output) -> Commit {
        let decisions = out.decisions.into_iter().map(|d| self.with_deliveries(d)).collect();
        let notices = out.notices.into_iter().map(|notice| {
            let rule = self.court.rules.get(&notice.decision.experiment);
            let trace = telemetry::traceparent(&Span::current());
            let mut deliveries = rule.map(|rule| self.court.router.notice(rule, &notice, trace.as_deref())).unwrap_or_default();
            deliveries.extend(self.court.router.record(rule.map(Arc::as_ref), &notice.decision, Some(&notice), trace.as_deref()));
            tracing::info!(
                experiment = notice.decision.experiment,
                decision = notice.decision.decision,
                kind = notice.kind.name(),
                "{}",
                notice.text
            );
            (notice, deliveries)
        });
        let commit =
            Commit { at: self.court.clock.moment().steady, decisions, notices: notices.collect(), log: out.log, ..Commit::default() };
        for entry in &commit.log {
            tracing::info!(experiment = entry.experiment, kind = ?entry.kind, author = entry.author, "{}", entry.text);
        }
        commit
    }

    fn with_deliveries(&self, decision: Decision) -> (Decision, Vec<crate::store::NewDelivery>) {
        let span = tracing::info_span!(
            "decide",
            experiment = decision.experiment,
            bucket = decision.bucket,
            guardrail = decision.guardrail,
            decision = decision.decision,
            action = decision.action.name(),
            trace_id = tracing::field::Empty,
        );
        telemetry::name_trace(&span);
        let entered = span.enter();
        match decision.action >= Action::Page {
            true => tracing::warn!(
                decision = decision.decision,
                experiment = decision.experiment,
                "{}: {}",
                decision.action.name(),
                decision.reason
            ),
            false => tracing::info!(
                decision = decision.decision,
                experiment = decision.experiment,
                "{}: {}",
                decision.action.name(),
                decision.reason
            ),
        }
        drop(entered);
        let trace = telemetry::traceparent(&span);
        let (rules, router) = (&self.court.rules, &self.court.router);
        let mut deliveries = match rules.get(&decision.experiment) {
            Some(rule) => router.decision(rule, &decision, trace.as_deref()),
            None => router.shared(rules, &decision, trace.as_deref()),
        };
        deliveries.extend(router.record(rules.get(&decision.experiment).map(Arc::as_ref), &decision, None, trace.as_deref()));
        (decision, deliveries)
    }

    /// Commits, trying again for as long as it takes; `None` when the daemon is asked to stop meanwhile.
    fn write(&mut self, commit: &Commit) -> Option<crate::store::Committed> {
        loop {
            let started = self.court.clock.steady();
            match self.court.store.commit(commit) {
                Ok(committed) => {
                    self.court.metrics.observe(&names::STORE_COMMIT, &[], self.since(started).as_secs_f64());
                    if self.store_error.take().is_some() {
                        tracing::info!("the database can be written again");
                    }
                    return Some(committed);
                }
                Err(error) if error.is_fenced() => {
                    self.give_up(error.to_string());
                    return None;
                }
                Err(error) => {
                    self.court.metrics.add(&names::STORE_ERRORS, &[], 1.0);
                    if self.store_error.is_none() {
                        tracing::error!("nothing is decided while the database cannot be written: {error}");
                    }
                    self.store_error = Some(error.to_string());
                }
            }
            self.publish();
            if self.stop.is_requested() {
                return None;
            }
            self.court.clock.sleep(RETRY);
        }
    }

    /// Carries out what an operator asks for.
    pub fn command(&mut self, command: Command) {
        self.settle();
        match command {
            Command::Operate(request) => self.operate(request),
            Command::Reload(reload) => self.reload = Some(reload),
            Command::Look { experiment, reply } => {
                let now = self.court.clock.now();
                let look = self.court.fleet.close_look(&experiment).map(|mut look| {
                    self.doubt(&mut look.state, now);
                    look
                });
                // Whoever asked may have gone.
                let _ = reply.send(look);
            }
            Command::Bins { experiment, guardrail, bucket, reply } => {
                let _ = reply.send(self.court.fleet.bins(&experiment, &guardrail, &bucket));
            }
        }
    }

    fn operate(&mut self, request: Request) {
        let Request { experiment, operation, bucket, author, reason, reply } = request;
        let operator = Operator { operation, bucket, author, reason, at: self.court.clock.now() };
        let mut out = Output::default();
        let answer = match self.court.fleet.operate(&experiment, &operator, &mut out) {
            None => Err(Refusal::UnknownExperiment(experiment)),
            Some(Err(why)) => Err(Refusal::NotPossible(why)),
            Some(Ok(message)) => {
                let decisions = out.decisions.iter().map(|d| d.decision.clone()).collect();
                let body = serde_json::to_string(&operator).unwrap_or_default();
                let row = NewOperation { at: operator.at, experiment: experiment.clone(), body };
                match self.say(out, Some(row)) {
                    Some(seq) => {
                        self.court.operations_seq = seq;
                        // A replay carries operations out before the records that came ahead of them: keep it short.
                        self.next_checkpoint = self.court.clock.steady();
                        Ok(Accepted { experiment, message, decisions })
                    }
                    None => Err(Refusal::NotStored(self.store_error.clone().unwrap_or_else(|| "the daemon stops".into()))),
                }
            }
        };
        // Nobody waits any more when the request timed out; what it asked for is done all the same.
        let _ = reply.send(answer);
    }

    /// Judges what is ready, and does what is due by the clock. Panes of a backlog are judged a few at a time, but not later than they are shown.
    pub fn duties(&mut self) {
        let (now, fresh) = (self.court.clock.steady(), self.court.clock.now() - BACKLOG);
        let viewing = now.saturating_sub(self.viewed) >= VIEW_EVERY;
        if viewing || !self.busy || !self.court.fleet.gathers(fresh) {
            self.settle();
        }
        if viewing {
            self.publish();
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        if now.saturating_sub(self.counted) >= COUNT_EVERY {
            self.counted = now;
            self.count_kept();
        }
        if !self.barrier.pending && (self.reload.is_some() || now >= self.next_checkpoint) {
            self.barrier.number += 1;
            self.barrier.pending = true;
            self.barrier.since = Some(now);
            self.barrier.reload = self.reload.take();
            match &self.barrier.reload {
                Some(reload) => self.ingest.reload(self.barrier.number, self.rules_of(reload)),
                None => self.ingest.barrier(self.barrier.number),
            }
        }
    }

    fn since(&self, instant: Duration) -> Duration {
        self.court.clock.steady().saturating_sub(instant)
    }
}
