//! A study: many runs of healthy traffic, many of each effect, and what they say together.

use super::draw::Draw;
use super::effect::Effect;
use super::exact;
use super::generate::Generator;
use super::run::{Harm, Run, Trip, run, spread};
use super::spec::Spec;
use super::traffic::metric_name;
use crate::engine::plan::Plan;
use crate::engine::time::Millis;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Halvings of the search for the smallest effect.
pub const STEPS: usize = 5;
/// Of all intervals.
pub const CONFIDENCE: f64 = 0.95;

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub threads: usize,
    /// The affected bucket.
    pub bucket: usize,
    /// As of [`Harm`].
    pub segment: Option<(usize, usize)>,
    /// When effects begin, ms after the start.
    pub onset: Millis,
}

/// A share of runs, with its exact interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    pub hits: u64,
    pub runs: u64,
    pub share: f64,
    pub interval: [f64; 2],
}

impl Share {
    pub fn of(hits: u64, runs: u64) -> Share {
        let share = if runs == 0 { 0.0 } else { hits as f64 / runs as f64 };
        Share { hits, runs, share, interval: exact::interval(hits, runs, CONFIDENCE) }
    }
}

/// Quantiles of a delay over all runs; `None` is later than the end of the runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delay {
    pub median: Option<f64>,
    /// Where the true median lies.
    pub median_interval: [Option<f64>; 2],
    pub p90: Option<f64>,
}

impl Delay {
    /// `values` of the runs that detected, of `runs` in all.
    pub fn of(mut values: Vec<f64>, runs: u64) -> Delay {
        values.sort_by(f64::total_cmp);
        let rank = |rank: u64| if rank == 0 { Some(0.0) } else { values.get(rank as usize - 1).copied() };
        let quantile = |q: f64| rank(((q * runs as f64).ceil() as u64).max(1));
        let (low, high) = exact::ranks(runs, 0.5, CONFIDENCE);
        Delay { median: quantile(0.5), median_interval: [rank(low), rank(high)], p90: quantile(0.9) }
    }
}

/// Runs without an effect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Healthy {
    pub runs: u64,
    /// Any guardrail of any bucket.
    pub family: Share,
    pub guardrails: Vec<Named>,
    /// Checks of the data; they have budgets of their own.
    pub quality: Vec<Named>,
    pub events_per_run: f64,
    pub units_per_run: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Named {
    pub name: String,
    #[serde(flatten)]
    pub share: Share,
}

/// Runs with an effect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detection {
    pub effect: Effect,
    /// As people write it.
    pub text: String,
    pub detected: Share,
    /// From the onset, in ms.
    pub delay_ms: Delay,
    /// Units exposed from the onset on, in all buckets.
    pub units: Delay,
    /// Tests that said so, and how often.
    pub tests: Vec<(String, u64)>,
    /// Runs that had alarmed before the onset and were left out.
    pub alarmed_before: u64,
}

/// Plays `runs` runs of healthy traffic, which all rules see. `done` hears of each.
pub fn healthy(specs: &[&Spec], options: &Options, runs: u64, cancelled: &AtomicBool, mut done: impl FnMut(&Run)) -> Vec<Healthy> {
    let Some(plan) = specs.first().map(|spec| &spec.plan) else { return Vec::new() };
    let all = plan.guardrails.len() * (plan.buckets.len() - 1);
    let is_guardrail = |t: &Trip| plan.guardrails.iter().any(|g| g.name == t.guardrail);
    let enough = |trips: &[Trip]| trips.iter().filter(|t| t.segment.is_none() && is_guardrail(t)).count() >= all;
    let work = |i: usize| run(specs, None, Draw::new(options.seed, 0, i as u64), enough, cancelled);
    let mut tallies: Vec<Tally> = specs.iter().map(|spec| Tally::of(&spec.plan)).collect();
    spread(runs as usize, options.threads, work, |_, runs: Vec<Run>| {
        tallies.iter_mut().zip(&runs).for_each(|(tally, run)| tally.add(plan, run));
        runs.first().into_iter().for_each(&mut done);
    });
    tallies.into_iter().map(|tally| tally.healthy(plan)).collect()
}

/// Healthy runs under one rule, added up.
struct Tally {
    count: u64,
    family: u64,
    events: f64,
    units: f64,
    guardrails: Vec<u64>,
    quality: Vec<u64>,
}

impl Tally {
    fn of(plan: &Plan) -> Tally {
        let (guardrails, quality) = (vec![0; plan.guardrails.len()], vec![0; plan.quality.len()]);
        Tally { count: 0, family: 0, events: 0.0, units: 0.0, guardrails, quality }
    }

    fn add(&mut self, plan: &Plan, run: &Run) {
        self.count += 1;
        self.events += run.events as f64;
        self.units += run.units as f64;
        let tripped = |name: &str| run.trips.iter().any(|t| t.guardrail == name);
        self.family += u64::from(plan.guardrails.iter().any(|g| tripped(&g.name)));
        plan.guardrails.iter().zip(&mut self.guardrails).for_each(|(g, n)| *n += u64::from(tripped(&g.name)));
        plan.quality.iter().zip(&mut self.quality).for_each(|(q, n)| *n += u64::from(tripped(q.kind.name())));
    }

    fn healthy(self, plan: &Plan) -> Healthy {
        let named = |(name, hits): (&str, u64)| Named { name: name.to_owned(), share: Share::of(hits, self.count) };
        Healthy {
            runs: self.count,
            family: Share::of(self.family, self.count),
            guardrails: plan.guardrails.iter().map(|g| g.name.as_str()).zip(self.guardrails).map(named).collect(),
            quality: plan.quality.iter().map(|q| q.kind.name()).zip(self.quality).map(named).collect(),
            events_per_run: self.events / self.count.max(1) as f64,
            units_per_run: self.units / self.count.max(1) as f64,
        }
    }
}

/// The traffic of an effect: the same for all who look at it, run by run.
pub struct Scenario {
    harm: Harm,
    text: String,
    number: u64,
}

impl Scenario {
    pub fn of(spec: &Spec, options: &Options, effect: &Effect) -> Scenario {
        let place = options.segment.and_then(|(attribute, value)| {
            let (name, values) = spec.traffic.segments.get(attribute)?;
            Some(format!(" in {name}={}", values.get(value)?.0))
        });
        let text = format!("{effect}{}", place.unwrap_or_default());
        // Effects that look the same are different scenarios only by their draws: all share those of the first.
        let number = 1 + xxhash_rust::xxh3::xxh3_64(text.as_bytes()) % (u64::MAX - 1);
        let harm =
            Harm { bucket: options.bucket, world: spec.world(effect), segment: options.segment, onset: options.onset, until: Millis::MAX };
        Scenario { harm, text, number }
    }

    /// The events of a run, for other eyes than the engine's.
    pub fn generator<'s>(&'s self, spec: &'s Spec, seed: u64, run: u64) -> Generator<'s> {
        Generator::new(spec, std::slice::from_ref(&self.harm), Draw::new(seed, self.number, run))
    }
}

/// Plays `runs` runs with an effect, which all rules see; it is detected by the first guardrail on its metric that acts on the affected bucket.
pub fn detection(
    specs: &[&Spec],
    options: &Options,
    effect: &Effect,
    runs: u64,
    cancelled: &AtomicBool,
    mut done: impl FnMut(&Run),
) -> Vec<Detection> {
    let Some(spec) = specs.first() else { return Vec::new() };
    let Scenario { harm, text, number } = Scenario::of(spec, options, effect);
    let bucket = &spec.plan.buckets[options.bucket].name;
    // A timeout is seen by any guardrail.
    let any = effect.metric == super::effect::TIMEOUTS;
    let sees = |t: &Trip| {
        t.bucket == *bucket
            && (metric_name(&t.guardrail) == effect.metric || any && spec.plan.guardrails.iter().any(|g| g.name == t.guardrail))
    };
    let enough = |trips: &[Trip]| trips.iter().any(sees);
    let work = |i: usize| run(specs, Some(&harm), Draw::new(options.seed, number, i as u64), enough, cancelled);
    let mut all: Vec<Finds> = specs.iter().map(|_| Finds::default()).collect();
    spread(runs as usize, options.threads, work, |_, runs: Vec<Run>| {
        runs.first().into_iter().for_each(&mut done);
        all.iter_mut().zip(&runs).for_each(|(finds, run)| finds.add(run, run.trips.iter().find(|t| sees(t)), options.onset));
    });
    all.into_iter().map(|finds| finds.detection(effect, &text)).collect()
}

/// Runs with an effect under one rule, added up.
#[derive(Default)]
struct Finds {
    count: u64,
    before: u64,
    hits: Vec<(Millis, u64)>,
    tests: BTreeMap<String, u64>,
}

impl Finds {
    fn add(&mut self, run: &Run, first: Option<&Trip>, onset: Millis) {
        if first.is_some_and(|t| t.at <= onset && onset > 0) {
            self.before += 1;
            return;
        }
        self.count += 1;
        if let Some(trip) = first {
            self.hits.push((trip.at - onset, trip.units.saturating_sub(run.units_before)));
            *self.tests.entry(trip.test.clone()).or_default() += 1;
        }
    }

    fn detection(self, effect: &Effect, text: &str) -> Detection {
        Detection {
            effect: effect.clone(),
            text: text.to_owned(),
            detected: Share::of(self.hits.len() as u64, self.count),
            delay_ms: Delay::of(self.hits.iter().map(|h| h.0 as f64).collect(), self.count),
            units: Delay::of(self.hits.iter().map(|h| h.1 as f64).collect(), self.count),
            tests: self.tests.into_iter().collect(),
            alarmed_before: self.before,
        }
    }
}

/// Smallest effect that the given share of runs detects, as far as so many runs can tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detectable {
    pub metric: String,
    pub power: f64,
    /// Largest effect tried that too few runs detected, and the smallest that enough did; `None` where none did.
    pub missed: Option<Effect>,
    pub found: Option<Detection>,
    pub text: String,
}

/// Searches between the margin and a large effect by halving: `known` are detections that have been simulated already.
pub fn detectable(
    spec: &Spec,
    options: &Options,
    known: &[Detection],
    power: f64,
    runs: u64,
    cancelled: &AtomicBool,
    mut done: impl FnMut(&Run),
) -> Option<Detectable> {
    let first = known.first()?;
    let metric = first.effect.metric.clone();
    let size = |d: &Detection| d.effect.size.value().abs();
    let alike = |d: &&Detection| std::mem::discriminant(&d.effect.size) == std::mem::discriminant(&first.effect.size);
    let enough = |d: &Detection| d.detected.share >= power;
    let mut found = known.iter().filter(alike).filter(|d| enough(d)).min_by(|a, b| size(a).total_cmp(&size(b))).cloned();
    let below = found.as_ref().map_or(f64::INFINITY, size);
    let missed = known.iter().filter(alike).filter(|d| !enough(d) && size(d) < below).max_by(|a, b| size(a).total_cmp(&size(b)));
    let mut missed: Option<Effect> = missed.map(|d| d.effect.clone());
    for _ in 0..STEPS {
        let low = missed.as_ref().map_or(0.0, |e| e.size.value().abs());
        let next = match &found {
            Some(found) if low > 0.0 => (low * size(found)).sqrt(),
            Some(found) => size(found) / 2.0,
            None => low * 2.0,
        };
        // Three digits: more would claim what so few runs do not know.
        let digits = 10f64.powi(2 - next.abs().max(1e-12).log10().floor() as i32);
        let next = (next * digits).round() / digits;
        let sign = first.effect.size.value().signum();
        let effect = Effect { metric: metric.clone(), size: first.effect.size.resized(sign * next) };
        if cancelled.load(Ordering::Relaxed) || !effect.possible(&spec.traffic) || next == 0.0 {
            break;
        }
        let tried = detection(&[spec], options, &effect, runs, cancelled, &mut done).pop();
        let Some(tried) = tried.filter(|_| !cancelled.load(Ordering::Relaxed)) else { break };
        if enough(&tried) { found = Some(tried) } else { missed = Some(effect) }
    }
    let text = match (&found, &missed) {
        (Some(found), Some(missed)) => format!("{}, not yet {missed}", found.text),
        (Some(found), None) => format!("{} or less", found.text),
        (None, Some(missed)) => format!("more than {missed}"),
        (None, None) => "not searched".to_owned(),
    };
    Some(Detectable { metric, power, missed, found, text })
}

#[cfg(test)]
mod tests;
