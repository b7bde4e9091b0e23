//! A world in a process: the daemon's real parts (aggregators, judges, store, recovery, router, what delivery decides), with time, broker,
//! network, receivers and the order of threads made up from a seed. See ARCHITECTURE.md, "Invariants", for what must hold in each.

mod alerts;
mod clock;
pub mod network;
pub mod oracle;
pub mod plan;
mod process;
mod vigil;

use clock::{Clock, Crash};
use guardraild::clock::Time as _;
use guardraild::engine::time::Millis;
use guardraild::fail::{self, POINTS};
use guardraild::store::Store;
use network::Receivers;
use plan::{Fault, Plan, START};
use process::{File, Process};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// Event time beyond the last record up to which decisions are compared.
const AFTERMATH: Millis = 40_000;
/// Everything is quiet again after this long at the latest, ms.
const PATIENCE: Millis = 900_000;

/// What became of a world.
#[derive(Default)]
pub struct Outcome {
    pub violations: Vec<String>,
    /// What was injected, and how often.
    pub faults: BTreeMap<&'static str, u64>,
    pub records: u64,
    pub decisions: u64,
    pub deliveries: u64,
    pub requests: u64,
    /// Requests that told an Alertmanager again what stands.
    pub reminders: u64,
}

/// What happens at fail points.
#[derive(Default)]
struct Steps {
    /// At which, and how many times it is passed before.
    crash: Option<(usize, u32)>,
    slow: (Millis, Millis),
    slowed: u64,
}

struct World {
    seed: u64,
    plan: Plan,
    rng: ChaCha8Rng,
    clock: Arc<Clock>,
    directory: tempfile::TempDir,
    /// Rule files, by number of the experiment.
    files: Vec<File>,
    process: Option<Process>,
    /// When the daemon is started again.
    down_until: Millis,
    /// One that stands still, and when it wakes up, to find that another has taken over.
    asleep: Option<(Process, Millis)>,
    /// Faults that have happened.
    done: usize,
    receivers: Receivers,
    /// When what the Alertmanager holds was last looked at.
    looked: Millis,
    steps: Rc<RefCell<Steps>>,
    /// Decisions that operators were told of.
    accepted: Vec<String>,
    outcome: Outcome,
}

/// The schedule of a seed's world, for people.
pub fn schedule(seed: u64) -> String {
    let plan = Plan::of(seed);
    let (ends, promise, partitions, workers) = (plan.end, if plan.exact { "all" } else { "little" }, plan.partitions, plan.workers);
    let head = format!("{partitions} partitions, {workers} workers, ends at {ends} ms, promises {promise}\n");
    let list = |faults: &[(Millis, Fault)]| faults.iter().map(|(at, fault)| format!("{at:>9} ms  {fault:?}\n")).collect::<String>();
    let vigil = plan.vigil.as_deref().map(|faults| format!("then, watching over alerts:\n{}", list(faults)));
    head + &list(&plan.faults) + &vigil.unwrap_or_default()
}

/// Lives through a seed's world.
pub fn run(seed: u64) -> Outcome {
    let world = catch_unwind(|| World::new(seed).live());
    fail::drive(None);
    world.unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Outcome { violations: vec![format!("panic: {}", why.unwrap_or_default())], ..Outcome::default() }
    })
}

impl World {
    fn new(seed: u64) -> World {
        let plan = Plan::of(seed);
        // In memory, where there is such a place: a crash of the process is none of the machine.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        World {
            rng: ChaCha8Rng::seed_from_u64(seed ^ 0x5EED),
            clock: Arc::new(Clock::new(START)),
            directory: directory.unwrap(),
            files: plan.rules.iter().map(|rule| (format!("{}.yaml", rule.name), rule.text.clone())).collect(),
            process: None,
            down_until: 0,
            asleep: None,
            done: 0,
            receivers: Receivers::default(),
            looked: 0,
            steps: Rc::default(),
            accepted: Vec::new(),
            outcome: Outcome::default(),
            plan,
            seed,
        }
    }

    fn live(mut self) -> Outcome {
        let (steps, clock) = (Rc::clone(&self.steps), Arc::clone(&self.clock));
        fail::drive(Some(Box::new(move |point| {
            at_point(&mut steps.borrow_mut(), &clock, POINTS.iter().position(|(_, p)| *p == point).unwrap());
            false
        })));
        while self.clock.at() < self.plan.end {
            self.faults();
            self.step();
            self.pass(30);
        }
        self.settle();
        self.watch();
        fail::drive(None);
        self.outcome.reminders = self.receivers.alertmanager.reminders;
        self.outcome.faults.extend([("slow write", self.steps.borrow().slowed)].into_iter().filter(|(_, n)| *n > 0));
        self.outcome.violations.append(&mut self.receivers.violations);
        if self.outcome.violations.is_empty() {
            let store = Store::open(self.database()).unwrap();
            let process = self.process.as_ref().unwrap();
            let evidence = oracle::Evidence {
                plan: &self.plan,
                rules: &process.in_force.rules,
                store: &store,
                view: &process.live.get(),
                seen: &self.receivers.seen,
                accepted: &self.accepted,
            };
            oracle::check(&evidence, &mut self.outcome);
        }
        self.outcome
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join("guardraild.db")
    }

    fn pass(&mut self, at_most: Millis) {
        if self.rng.random_bool(0.5) {
            self.clock.pass(self.rng.random_range(1..=at_most));
        }
    }

    fn count(&mut self, fault: &'static str) {
        *self.outcome.faults.entry(fault).or_default() += 1;
    }

    fn violated(&mut self, what: String) {
        if self.outcome.violations.len() < 10 {
            self.outcome.violations.push(what);
        }
    }

    /// Runs `body` with the process, which may crash on the way.
    fn with<T>(&mut self, body: impl FnOnce(&mut Process, &mut World) -> T) -> Option<T> {
        let mut process = self.process.take()?;
        match catch_unwind(AssertUnwindSafe(|| body(&mut process, self))) {
            Ok(value) => {
                self.process = Some(process);
                Some(value)
            }
            Err(panic) if panic.is::<Crash>() => {
                self.count("crash at a step");
                None
            }
            Err(panic) => resume_unwind(panic),
        }
    }

    /// What happens next in the daemon; or it is started.
    fn step(&mut self) {
        if self.process.is_none() && self.clock.at() >= self.down_until {
            self.start();
        }
        self.with(|process, world| process.step(&world.plan, &world.clock, &mut world.receivers, &mut world.rng));
        self.wake_up();
        self.look_at_alerts();
        if self.rng.random_bool(0.02) {
            // As often as anybody looks at the files.
            if let Some(true) = self.with(|process, world| process.reload(&world.files)) {
                self.count("rules changed while it runs");
            }
            if let Some(process) = &self.process {
                let fault = oracle::looks_safe_without_data(&process.live.get(), &process.in_force.rules);
                fault.into_iter().for_each(|fault| self.violated(fault));
            }
        }
    }

    /// Lets the daemon that stood still do a few steps beside the one that has taken over, if it is time: nothing of that may be seen.
    fn wake_up(&mut self) {
        let Some((mut woken, until)) = self.asleep.take() else { return };
        if self.clock.at() < until || self.process.is_none() {
            return self.asleep = Some((woken, until));
        }
        self.count("woken after another took over");
        for _ in 0..self.rng.random_range(1..200) {
            let said = self.receivers.alertmanager.reminders;
            let step = AssertUnwindSafe(|| woken.step(&self.plan, &self.clock, &mut self.receivers, &mut self.rng));
            match catch_unwind(step) {
                Ok(()) if self.receivers.alertmanager.reminders > said => {
                    return self.violated("what stands is said again by one that was taken over".to_owned());
                }
                Ok(()) => {}
                Err(panic) if panic.is::<Crash>() => return,
                Err(panic) => resume_unwind(panic),
            }
            self.with(|process, world| process.step(&world.plan, &world.clock, &mut world.receivers, &mut world.rng));
        }
    }

    fn start(&mut self) {
        let database = self.database();
        let started = catch_unwind(AssertUnwindSafe(|| Process::start(&self.plan, &self.files, &database, &self.clock)));
        match started {
            Ok(Ok(process)) => self.process = Some(process),
            // As a supervisor does: it tries again.
            Ok(Err(_)) => self.down_until = self.clock.at() + 1_000,
            Err(panic) if panic.is::<Crash>() => self.count("crash at a step"),
            Err(panic) => resume_unwind(panic),
        }
        self.steps.borrow_mut().crash = None;
        self.clock.crash_at(Millis::MAX);
    }

    fn stop(&mut self, gracefully: bool, down: Millis) {
        if gracefully {
            self.with(|process, _| process.drain());
        }
        self.process = None;
        self.down_until = self.clock.at() + down;
    }

    fn faults(&mut self) {
        while let Some((_, fault)) = self.plan.faults.get(self.done).filter(|(at, _)| *at <= self.clock.at()).cloned() {
            self.done += 1;
            let until = |span: Millis| self.clock.at() + span;
            match fault {
                Fault::Crash { down, at_step: Some(step) } => {
                    self.steps.borrow_mut().crash = Some(step);
                    self.down_until = until(down);
                }
                Fault::Crash { down, at_step: None } => {
                    self.count("crash");
                    self.stop(false, down);
                }
                Fault::Restart { down } => {
                    self.count("restart");
                    self.stop(true, down);
                }
                Fault::NewRule { experiment, down } => {
                    self.count("restart with a new rule");
                    self.stop(self.rng.clone().random_bool(0.5), down);
                    self.files[experiment].1 = self.plan.new_rule(self.seed, experiment);
                }
                Fault::Reload { experiment, renewed: true } => self.files[experiment].1 = self.plan.new_rule(self.seed, experiment),
                Fault::Reload { experiment, renewed: false } => self.files[experiment].1 += "# looked at once more\n",
                Fault::Removed { experiment } => {
                    self.count("rule removed");
                    self.files.remove(experiment);
                }
                Fault::TakeOver { down, span } => {
                    if let Some(process) = self.process.take() {
                        self.asleep = Some((process, until(down + span)));
                        self.down_until = until(down);
                    }
                }
                Fault::BrokerLost { partition, span } => {
                    let until = until(span);
                    self.count("broker lost");
                    self.with(|process, world| process.lose_broker(&world.plan, &world.clock, partition, until));
                }
                Fault::Rebalance { partition, span } => {
                    let until = until(span);
                    self.count("partition taken away");
                    self.with(|process, _| process.revoke(partition, until));
                }
                Fault::SlowWorker { worker, span } => {
                    let until = until(span);
                    self.count("slow worker");
                    self.with(|process, _| process.slow_worker(worker, until));
                }
                Fault::SlowDisk { each, span } => self.steps.borrow_mut().slow = (each, until(span)),
                Fault::DiskFails { table, span, killed } => {
                    let (until, database) = (until(span), self.database());
                    if database.exists() && self.process.is_some() {
                        self.count(if table.is_some() { "writes of a table fail" } else { "writes fail" });
                        self.clock.fail_disk(&database, table, until);
                        if killed {
                            self.clock.crash_at(until - span / 2);
                        }
                    }
                }
                Fault::Webhook { endpoint, answer, span } => {
                    let until = until(span);
                    self.count(oracle::webhook_fault(answer));
                    self.receivers.answer(endpoint, answer, until);
                }
                Fault::ClockSet { by } => {
                    self.count("clock set");
                    self.clock.set(by);
                }
                Fault::Operator { experiment, verb } => self.operate(experiment, verb),
                Fault::Redeliver => self.redeliver(),
                Fault::Forget => {
                    self.count("an Alertmanager forgets");
                    self.receivers.alertmanager.forget(self.clock.at());
                }
            }
        }
    }

    fn operate(&mut self, experiment: usize, verb: &'static str) {
        if self.plan.exact && self.clock.now() <= START + self.plan.end + AFTERMATH {
            // A clock that was set back: what nobody has asked for is still compared.
            return;
        }
        let name = self.plan.rules[experiment].name.clone();
        if let Some(Ok(accepted)) = self.with(|process, _| process.operate(&name, verb)) {
            self.count("operator");
            self.accepted.extend(accepted.decisions);
        }
    }

    fn redeliver(&mut self) {
        let Some(process) = &self.process else { return };
        let mut store = Store::open(self.database()).unwrap();
        let rows = store.outbox(100).unwrap();
        let Some(row) = rows.choose(&mut self.rng) else { return };
        if let Ok(true) = store.redeliver(&row.id, self.clock.moment(), "sre") {
            process.wake();
            self.count("redelivery");
        }
    }

    /// Whether as many records are told of as there are.
    fn has_told(&self) -> bool {
        let told = |process: &Process| process.live.get().partitions.iter().map(|p| p.counts.records()).sum::<u64>();
        self.process.as_ref().is_some_and(|process| told(process) >= self.plan.records())
    }

    /// No more faults: everything is read, judged and delivered, or it is a violation.
    fn settle(&mut self) {
        self.receivers.heal();
        self.steps.borrow_mut().crash = None;
        let wanted = START + self.plan.end + AFTERMATH;
        // One whose rule is new, and that has had no record since, is judged to no time at all.
        let renewed: Vec<bool> = self.plan.rules.iter().map(|rule| !self.plan.unchanged(&rule.name)).collect();
        let judged = |process: &Process, plan: &Plan, files: &[File]| {
            let view = process.live.get();
            let mut experiments = view.experiments.iter().zip(&renewed);
            let settled = process.has_read(plan) && process.goes_by(files);
            settled && experiments.all(|(e, renewed)| e.judged_to.map_or(*renewed, |to| to >= wanted))
        };
        while !self.process.as_ref().is_some_and(|process| judged(process, &self.plan, &self.files)) {
            if self.clock.at() > self.plan.end + PATIENCE {
                let to = self.process.as_ref().map(|process| process.live.get().experiments.iter().filter_map(|e| e.judged_to).min());
                return self.violated(format!("stuck: judged to {to:?}, wanted {wanted}"));
            }
            self.step();
            self.pass(if self.clock.at() < self.plan.end + 20_000 { 50 } else { 400 });
        }
        self.conclude();
    }

    /// Lets everything be told and delivered that waits.
    fn conclude(&mut self) {
        // What is heard is told a little later, and what waits for another topic is heard later still.
        let mut steps = 0..2_000;
        while steps.next().is_some_and(|step| step < 200 || !self.has_told()) {
            self.step();
            self.pass(50);
        }
        let store = Store::open(self.database()).unwrap();
        for _ in 0..10_000 {
            if store.pending().unwrap().is_empty() {
                return;
            }
            let next = self.process.as_ref().map_or(0, Process::next_delivery);
            self.clock.pass((next - self.clock.at()).clamp(1, 3_600_000));
            self.with(|process, world| process.deliver(&mut world.receivers, &world.clock, &mut world.rng));
        }
        self.violated(format!("never delivered: {:?}", store.pending().unwrap()));
    }
}

fn at_point(steps: &mut Steps, clock: &Clock, point: usize) {
    if clock.at() < steps.slow.1 {
        steps.slowed += 1;
        clock.pass(steps.slow.0);
    }
    match &mut steps.crash {
        Some((at, 0)) if *at == point => {
            steps.crash = None;
            resume_unwind(Box::new(Crash));
        }
        Some((at, passes)) if *at == point => *passes -= 1,
        _ => {}
    }
}
