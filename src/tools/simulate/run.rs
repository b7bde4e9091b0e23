//! Runs: a generator's events through the daemon's own Aggregator and Fleet, on all cores.

use super::draw::Draw;
use super::generate::Generator;
use super::spec::{Spec, World};
use crate::engine::aggregate::Aggregator;
use crate::engine::decision::Output;
use crate::engine::fleet::Fleet;
use crate::engine::time::Millis;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What one run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// First decision of each guardrail, bucket and segment, and of each check of the data, in the order of time.
    pub trips: Vec<Trip>,
    pub units: u64,
    /// Of them, those exposed before the harm began.
    pub units_before: u64,
    pub events: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Trip {
    /// As the decision names it: a guardrail, or a check of the data.
    pub guardrail: String,
    pub bucket: String,
    pub segment: Option<String>,
    /// `limit`, `max_increase` and so on.
    pub criterion: String,
    /// Name of the test that said so.
    pub test: String,
    /// ms after the start of the run.
    pub at: Millis,
    /// Units exposed by then, in all buckets.
    pub units: u64,
}

/// What is wrong with a bucket: see [`Spec::world`].
#[derive(Clone)]
pub struct Harm {
    pub bucket: usize,
    pub world: World,
    /// Only units with this value of this attribute: their places in [`super::Traffic::segments`].
    pub segment: Option<(usize, usize)>,
    /// From when until when, ms after the start.
    pub onset: Millis,
    pub until: Millis,
}

/// The engine under one rule, and what it has said.
struct Eyes<'s> {
    spec: &'s Spec,
    aggregator: Aggregator,
    fleet: Fleet,
    trips: Vec<Trip>,
    out: Output,
    /// What it came to, once it has seen enough.
    done: Option<Run>,
}

impl<'s> Eyes<'s> {
    fn new(spec: &'s Spec) -> Eyes<'s> {
        let aggregator = Aggregator::new(0, Arc::clone(&spec.catalog), spec.settings.clone());
        let fleet = Fleet::new(&spec.catalog, spec.settings.pane).unseen();
        Eyes { spec, aggregator, fleet, trips: Vec::new(), out: Output::default(), done: None }
    }

    /// A pane is over; the last one where there is no `end`.
    fn close(&mut self, end: Option<Millis>, units: u64) {
        match end {
            // Time passes, whether or not there were events.
            Some(end) => self.aggregator.advance(self.spec.start + end),
            None => self.aggregator.finish(),
        }
        let (fleet, out, trips) = (&mut self.fleet, &mut self.out, &mut self.trips);
        self.aggregator.drain().into_iter().for_each(|emission| fleet.take(emission, out));
        for decision in out.decisions.drain(..).filter(|d| !d.is_follow_up()) {
            let known = |t: &Trip| (&t.guardrail, &t.bucket, &t.segment) == (&decision.guardrail, &decision.bucket, &decision.segment);
            if !trips.iter().any(known) {
                trips.push(Trip {
                    guardrail: decision.guardrail,
                    bucket: decision.bucket,
                    segment: decision.segment,
                    criterion: decision.criterion,
                    test: decision.test,
                    at: decision.decided_at - self.spec.start,
                    units,
                });
            }
        }
        out.log.clear();
        out.notices.clear();
    }
}

/// One run of traffic, seen under each of the rules: those are the same but for what the generator does not look at. Each ends early once `enough` says so of
/// what has tripped; `None` when `cancelled` is set meanwhile.
pub fn run(specs: &[&Spec], harm: Option<&Harm>, draw: Draw, enough: impl Fn(&[Trip]) -> bool, cancelled: &AtomicBool) -> Option<Vec<Run>> {
    let mut generator = Generator::new(specs.first()?, harm.map_or(&[][..], std::slice::from_ref), draw);
    let mut eyes: Vec<Eyes<'_>> = specs.iter().map(|spec| Eyes::new(spec)).collect();
    let onset = harm.map_or(0, |h| h.onset);
    let mut units_before = 0;
    loop {
        let end = generator.pane(|event, _| {
            for eyes in eyes.iter_mut().filter(|eyes| eyes.done.is_none()) {
                eyes.aggregator.observe(event);
            }
        });
        if end.is_some_and(|end| end <= onset) {
            units_before = generator.units();
        }
        for eyes in eyes.iter_mut().filter(|eyes| eyes.done.is_none()) {
            eyes.close(end, generator.units());
            if end.is_none() || enough(&eyes.trips) {
                let trips = std::mem::take(&mut eyes.trips);
                eyes.done = Some(Run { trips, units: generator.units(), units_before, events: generator.events() });
            }
        }
        if cancelled.load(Ordering::Relaxed) {
            return None;
        }
        if eyes.iter().all(|eyes| eyes.done.is_some()) {
            return Some(eyes.into_iter().filter_map(|eyes| eyes.done).collect());
        }
    }
}

/// About how long a run takes that so many look at, judged by its first panes, at most so much of the clock. A run is dearer later, when windows are full.
pub fn pace(specs: &[&Spec], most: Duration) -> Duration {
    let Some(spec) = specs.first() else { return Duration::ZERO };
    let begun = Instant::now();
    let panes = Cell::new(0);
    let enough = |_: &[Trip]| {
        panes.set(panes.get() + 1);
        begun.elapsed() > most
    };
    run(specs, None, Draw::new(0, 0, 0), enough, &AtomicBool::new(false));
    let all = spec.length / spec.settings.pane;
    begun.elapsed().mul_f64(all as f64 / f64::from(panes.get().max(1)))
}

/// Does `jobs` pieces of work on so many threads and hands over each result with its number, as it comes. What a piece returns must
/// depend on its number alone; then nothing depends on the number of threads.
pub fn spread<T: Send>(jobs: usize, threads: usize, work: impl Fn(usize) -> Option<T> + Sync, mut done: impl FnMut(usize, T)) {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.max(1)) {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(job) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|job| *job < jobs) {
                    let Some(result) = work(job) else { return };
                    if sender.send((job, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        receiver.iter().for_each(|(job, result)| done(job, result));
    });
}
