//! Synthetic traffic of a service under experiment, in virtual time: one case gives the same records on every run.
//!
//! Users visit in turn. A visit exposes the user to the experiments that it is in; a moment later it makes requests, and may begin a
//! workflow, open a ticket or raise a compliance flag. [`Traffic::stop`] is the flag service: users of a stopped bucket get the first bucket's
//! behaviour and are no longer exposed.

mod case;
mod write;

pub use case::{Bucket, Case, CaseError, Effect, Experiment, Fault};

use crate::engine::time::Millis;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;

/// Which topic a record belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    Exposures,
    #[default]
    Events,
}

impl Topic {
    /// The default name.
    pub fn name(self) -> &'static str {
        match self {
            Topic::Exposures => "experiment.exposures",
            Topic::Events => "experiment.events",
        }
    }
}

/// One record; its buffers are reused from call to call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    pub topic: Topic,
    /// `tenant_id|user_id`.
    pub key: Vec<u8>,
    /// One JSON object, without a line end.
    pub payload: Vec<u8>,
    /// Event time.
    pub ts: Millis,
    /// Position in the traffic, from 0.
    pub number: u64,
    /// Number of the user, below [`Case::users`].
    pub user: u64,
    /// Of an exposure: index into [`Traffic::experiments`] and of the bucket.
    pub exposed: Option<(u32, u32)>,
}

/// The generator. It never ends.
pub struct Traffic {
    case: Case,
    start: Millis,
    rng: ChaCha8Rng,
    sigma: f64,
    experiments: Vec<Live>,
    /// Faults of all experiments that have not begun or not ended yet.
    faults: Vec<Scheduled>,
    /// Event time of the next change by a fault.
    next_change: Millis,
    writer: write::Writer,
    records: u64,
    visits: u64,
    /// Visits between an exposure and its requests.
    lag: u64,
    visit: Visit,
    /// The user whose requests are due next, at the time of the visit.
    acting: Option<u64>,
    /// What is still to be written of the visit, last first.
    steps: Vec<Step>,
    /// Workflows begun and not over, by due time (all take the same time).
    workflows: VecDeque<Workflow>,
    workflow_ids: u64,
}

/// One experiment as it is now.
struct Live {
    name: String,
    buckets: Vec<LiveBucket>,
    salt: u64,
}

struct LiveBucket {
    name: String,
    /// Upper end of its share of 0..=1.
    upto: f64,
    base: Effect,
    now: Effect,
    stopped: bool,
}

struct Scheduled {
    from: Millis,
    until: Millis,
    experiment: usize,
    bucket: usize,
    /// Part of the attributes of those who are struck, as they are written.
    attribute: Option<String>,
    effect: Effect,
}

/// The user who is being served.
#[derive(Default)]
struct Visit {
    user: u64,
    ts: Millis,
    effect: Effect,
    /// Experiments that the user is in: index, and the bucket that it belongs to.
    buckets: Vec<(u32, u32)>,
}

#[derive(Clone, Copy)]
enum Step {
    Exposure(u32, u32),
    Request,
    Started,
    Ticket,
    Flag,
}

struct Workflow {
    due: Millis,
    user: u64,
    id: u64,
    completed: bool,
}

impl Traffic {
    /// Traffic that begins at event time `start`.
    pub fn new(case: Case, start: Millis) -> Result<Traffic, CaseError> {
        case.check()?;
        let experiments = expand(&case.experiments);
        let mut traffic = Traffic {
            start,
            rng: ChaCha8Rng::seed_from_u64(case.seed),
            // 1.6449 is the 95th percentile of the standard normal distribution.
            sigma: (case.latency_p95_ms / case.latency_p50_ms).ln() / 1.644_853_626_951_472_7,
            experiments,
            faults: Vec::new(),
            next_change: Millis::MAX,
            writer: write::Writer::new(case.tenants, case.ids),
            records: 0,
            visits: 0,
            lag: case.delay_visits(),
            visit: Visit::default(),
            acting: None,
            steps: Vec::new(),
            workflows: VecDeque::new(),
            workflow_ids: 0,
            case,
        };
        for fault in traffic.case.faults.clone() {
            traffic.schedule(&fault, start);
        }
        Ok(traffic)
    }

    /// Names of the experiments; [`Record::exposed`] refers to them.
    pub fn experiments(&self) -> impl Iterator<Item = &str> {
        self.experiments.iter().map(|e| e.name.as_str())
    }

    /// Names of the experiment and bucket that [`Record::exposed`] means.
    pub fn names(&self, exposed: (u32, u32)) -> Option<(&str, &str)> {
        let experiment = self.experiments.get(exposed.0 as usize)?;
        Some((&experiment.name, &experiment.buckets.get(exposed.1 as usize)?.name))
    }

    /// Event time of the next record.
    pub fn next_ts(&self) -> Millis {
        if !self.steps.is_empty() || self.acting.is_some() {
            return self.visit.ts;
        }
        let visit = self.visit_ts();
        self.workflows.front().map_or(visit, |w| visit.min(w.due))
    }

    /// Writes the next record over `out`.
    pub fn next(&mut self, out: &mut Record) {
        while self.steps.is_empty() {
            if let Some(user) = self.acting.take() {
                self.act(user);
                continue;
            }
            let due = self.workflows.front().is_some_and(|w| w.due <= self.visit_ts());
            if due && let Some(workflow) = self.workflows.pop_front() {
                return self.end(&workflow, out);
            }
            self.begin_visit();
        }
        let step = self.steps.pop().unwrap_or(Step::Request);
        self.take(step, out);
    }

    /// From the next visit on, so many visits a second (see [`Case::visits_per_s`]).
    pub fn pace(&mut self, visits_per_s: f64) -> Result<(), CaseError> {
        let ts = self.visit_ts();
        self.case.visits_per_s = visits_per_s;
        self.case.check()?;
        self.start = ts - (self.visits as f64 * 1_000.0 / visits_per_s) as Millis;
        self.lag = self.case.delay_visits();
        Ok(())
    }

    /// Strikes a bucket with a further fault, whose times count from event time `now`.
    pub fn inject(&mut self, fault: &Fault, now: Millis) -> Result<(), CaseError> {
        self.case.check_fault(fault)?;
        self.schedule(fault, now);
        Ok(())
    }

    /// Turns a bucket off; false where there is no such bucket. The first bucket of an experiment stays on.
    pub fn stop(&mut self, experiment: &str, bucket: &str) -> bool {
        let found = self
            .experiments
            .iter_mut()
            .filter(|e| e.name == experiment)
            .flat_map(|e| e.buckets.iter_mut().skip(1))
            .find(|b| b.name == bucket);
        found.map(|b| b.stopped = true).is_some()
    }

    fn visit_ts(&self) -> Millis {
        self.start + (self.visits as f64 * 1_000.0 / self.case.visits_per_s) as Millis
    }

    fn schedule(&mut self, fault: &Fault, origin: Millis) {
        let ms = |s: f64| (s * 1_000.0) as Millis;
        let mut copy = 0.0;
        for (index, experiment) in self.experiments.iter().enumerate() {
            let name = experiment.name.strip_prefix(&fault.experiment);
            let is_copy = name.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
            let Some(bucket) = experiment.buckets.iter().position(|b| b.name == fault.bucket).filter(|_| is_copy) else { continue };
            let later = origin + ms(copy * fault.stagger_s);
            let until = fault.until_s.map_or(Millis::MAX, |s| later + ms(s));
            let attribute = fault.segment.as_deref().and_then(write::attribute);
            self.faults.push(Scheduled { from: later + ms(fault.at_s), until, experiment: index, bucket, attribute, effect: fault.effect });
            copy += 1.0;
        }
        // Effects are made anew at the next visit.
        self.next_change = Millis::MIN;
    }

    /// Sets the effects in force at `ts`.
    fn apply_faults(&mut self, ts: Millis) {
        self.experiments.iter_mut().flat_map(|e| &mut e.buckets).for_each(|b| b.now = b.base);
        self.faults.retain(|f| f.until > ts);
        self.next_change = Millis::MAX;
        for fault in &self.faults {
            if fault.from <= ts {
                if fault.attribute.is_none() {
                    let bucket = &mut self.experiments[fault.experiment].buckets[fault.bucket];
                    bucket.now = bucket.now.and(fault.effect);
                }
                self.next_change = self.next_change.min(fault.until);
            } else {
                self.next_change = self.next_change.min(fault.from);
            }
        }
    }

    fn begin_visit(&mut self) {
        let ts = self.visit_ts();
        if ts >= self.next_change {
            self.apply_faults(ts);
        }
        self.visit.ts = ts;
        self.acting = self.visits.checked_sub(self.lag).map(|visit| visit % self.case.users);
        self.enrol(self.visits % self.case.users);
        self.visits += 1;
        for &(experiment, bucket) in &self.visit.buckets {
            if !self.experiments[experiment as usize].buckets[bucket as usize].stopped {
                self.steps.push(Step::Exposure(experiment, bucket));
            }
        }
    }

    /// What a user does once it has been exposed.
    fn act(&mut self, user: u64) {
        self.enrol(user);
        let effect = self.visit.effect;
        if self.rng.random_bool(effect.compliance.clamp(0.0, 1.0)) {
            self.steps.push(Step::Flag);
        }
        if self.rng.random_bool((self.case.ticket_share + effect.tickets).clamp(0.0, 1.0)) {
            self.steps.push(Step::Ticket);
        }
        if self.rng.random_bool(self.case.workflow_share) {
            self.steps.push(Step::Started);
        }
        for _ in 0..self.case.requests_per_visit {
            self.steps.push(Step::Request);
        }
    }

    /// Finds the user's experiments and buckets, and what they do to it.
    fn enrol(&mut self, user: u64) {
        let all = self.experiments.len();
        let first = (write::mix(user ^ 0x5bd1_e995) % all as u64) as usize;
        self.visit.user = user;
        self.visit.buckets.clear();
        self.visit.effect = Effect::default();
        for offset in 0..self.case.experiments_per_user.min(all) {
            let index = (first + offset) % all;
            let experiment = &self.experiments[index];
            let share = (write::mix(user ^ experiment.salt) >> 11) as f64 / (1_u64 << 53) as f64;
            let own = experiment.buckets.iter().position(|b| share < b.upto).unwrap_or(experiment.buckets.len() - 1);
            let served = if experiment.buckets[own].stopped { 0 } else { own };
            self.visit.effect = self.visit.effect.and(experiment.buckets[served].now);
            let here = |f: &&Scheduled| f.from <= self.visit.ts && (f.experiment, f.bucket) == (index, served);
            for fault in self.faults.iter().filter(here) {
                if fault.attribute.as_ref().is_some_and(|attribute| self.writer.attributes(user).contains(attribute)) {
                    self.visit.effect = self.visit.effect.and(fault.effect);
                }
            }
            self.visit.buckets.push((index as u32, own as u32));
        }
    }

    fn take(&mut self, step: Step, out: &mut Record) {
        let (user, ts, effect) = (self.visit.user, self.visit.ts, self.visit.effect);
        self.open(user, ts, out);
        match step {
            Step::Exposure(experiment, bucket) => {
                let live = &self.experiments[experiment as usize];
                out.topic = Topic::Exposures;
                out.exposed = Some((experiment, bucket));
                self.writer.exposure(out, &live.name, &live.buckets[bucket as usize].name);
            }
            Step::Request => {
                let latency = self.case.latency_p50_ms * effect.latency * (self.sigma * self.normal()).exp();
                let error = self.rng.random_bool((self.case.error_rate + effect.errors).clamp(0.0, 1.0));
                let route = self.rng.random_range(0..write::ROUTES.len());
                let stamp = self.stamp();
                self.writer.request(out, stamp, latency, error, write::ROUTES[route]);
            }
            Step::Started => self.begin_workflow(out),
            Step::Ticket => self.writer.ticket(out, self.stamp()),
            Step::Flag => self.writer.flag(out, self.stamp()),
        }
    }

    fn begin_workflow(&mut self, out: &mut Record) {
        let id = self.workflow_ids;
        self.workflow_ids += 1;
        let abandoned = self.rng.random_bool((self.case.abandon_share + self.visit.effect.abandon).clamp(0.0, 1.0));
        if !abandoned || self.rng.random_bool(0.5) {
            let due = self.visit.ts + self.case.workflow_ms;
            self.workflows.push_back(Workflow { due, user: self.visit.user, id, completed: !abandoned });
        }
        self.writer.workflow(out, self.stamp(), "workflow_started", id);
    }

    fn end(&mut self, workflow: &Workflow, out: &mut Record) {
        self.enrol(workflow.user);
        self.open(workflow.user, workflow.due, out);
        let name = if workflow.completed { "workflow_completed" } else { "workflow_abandoned" };
        self.writer.workflow(out, self.stamp(), name, workflow.id);
    }

    fn open(&mut self, user: u64, ts: Millis, out: &mut Record) {
        out.number = self.records;
        self.records += 1;
        out.topic = Topic::Events;
        out.exposed = None;
        out.user = user;
        out.ts = ts;
        self.writer.key(out);
    }

    /// Experiment and bucket that a stamped event names.
    fn stamp(&self) -> Option<(&str, &str)> {
        let &(experiment, bucket) = self.visit.buckets.first().filter(|_| self.case.stamped)?;
        let live = &self.experiments[experiment as usize];
        Some((&live.name, &live.buckets[bucket as usize].name))
    }

    /// A standard normal value (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.rng.random::<f64>()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.rng.random::<f64>()).cos()
    }
}

fn expand(experiments: &[Experiment]) -> Vec<Live> {
    let mut live = Vec::new();
    for experiment in experiments {
        for name in experiment.names() {
            let total: f64 = experiment.buckets.iter().map(|b| b.weight).sum();
            let mut upto = 0.0;
            let mut buckets = Vec::new();
            for bucket in &experiment.buckets {
                upto += bucket.weight / total;
                buckets.push(LiveBucket { name: bucket.name.clone(), upto, base: bucket.effect, now: bucket.effect, stopped: false });
            }
            let salt = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| write::mix(hash ^ u64::from(byte)));
            live.push(Live { name, buckets, salt });
        }
    }
    live
}

#[cfg(test)]
mod tests;
