//! Plans an experiment by playing it: how often a rule file alarms without cause, and how soon it finds what it should.
//!
//! A [`Traffic`] description becomes decoded events in virtual time (`generate`), which go through the daemon's own Aggregator and
//! Fleet (`run`); many runs on all cores make a [`study`]. What is printed depends on the seed and never on the number of threads.

mod draw;
mod effect;
pub mod exact;
mod generate;
mod plot;
mod read;
mod report;
mod run;
mod sample;
mod size;
mod spec;
pub mod study;
pub mod sweep;
mod traffic;

pub use draw::Draw;
pub use effect::{Effect, Size};
pub use generate::{Generator, Origin};
pub use plot::svg;
pub use read::{TRAFFIC, read, read_node};
pub use report::{Report, count, duration};
pub use run::{Harm, Run, Trip, pace, spread};
pub use size::SampleSize;
pub use spec::{Spec, SpecError, World};
pub use traffic::{Latency, LogNormal, MetricTraffic, Model, Phase, Requests, Shape, Spread, Traffic, Workflows, metric_name};

use crate::rules::Planning;
use report::significant;
use std::sync::atomic::{AtomicBool, Ordering};
use study::{CONFIDENCE, Detection, Options, detectable, detection, healthy};

/// What to find out.
#[derive(Clone, Debug)]
pub struct Questions {
    /// Healthy runs; 0 for none.
    pub runs: u64,
    /// Runs of each effect.
    pub effect_runs: u64,
    pub effects: Vec<Effect>,
    /// Whether the smallest detectable effect of each metric is searched for.
    pub smallest: bool,
    /// Share of runs that must detect it.
    pub power: f64,
    /// Share of the described units that `spec` has.
    pub scale: f64,
}

impl Questions {
    /// How often so many runs of an effect are played at most.
    pub fn rounds(&self) -> u64 {
        let metrics = self.effects.iter().enumerate().filter(|(i, e)| self.effects[..*i].iter().all(|f| f.metric != e.metric)).count();
        (self.effects.len() + if self.smallest { metrics * study::STEPS } else { 0 }) as u64
    }
}

/// What is going on: `done` runs of `total` of this stage.
pub struct Progress<'p> {
    pub stage: &'p str,
    pub done: u64,
    pub total: u64,
    /// Events of the run that has just ended.
    pub events: u64,
}

/// Plays everything that is asked; once `cancelled` is set it ends with what there is.
pub fn simulate(
    spec: &Spec,
    planning: &Planning,
    questions: &Questions,
    options: &Options,
    cancelled: &AtomicBool,
    mut progress: impl FnMut(&Progress<'_>),
) -> Report {
    let stopped = || cancelled.load(Ordering::Relaxed);
    let runs = questions.effect_runs;
    let healthy = (questions.runs > 0).then(|| {
        let done = counter("healthy runs", questions.runs, &mut progress);
        healthy(&[spec], options, questions.runs, cancelled, done)
    });
    let healthy = healthy.and_then(|mut of_rules| of_rules.pop());
    let mut detections: Vec<Detection> = Vec::new();
    for effect in &questions.effects {
        if runs == 0 || stopped() {
            break;
        }
        let text = effect.to_string();
        detections.extend(detection(&[spec], options, effect, runs, cancelled, counter(&text, runs, &mut progress)));
    }
    detections.retain(|d| d.detected.runs > 0);
    let mut found = Vec::new();
    for effect in questions.effects.iter().filter(|_| questions.smallest) {
        let first = questions.effects.iter().find(|e| e.metric == effect.metric);
        if stopped() || first != Some(effect) {
            continue;
        }
        let known: Vec<Detection> = detections.iter().filter(|d| d.effect.metric == effect.metric).cloned().collect();
        let stage = format!("smallest {}", effect.metric);
        let done = counter(&stage, study::STEPS as u64 * runs, &mut progress);
        found.extend(detectable(spec, options, &known, questions.power, runs, cancelled, done));
    }
    let sample_size = sample_size(spec, planning, questions).map(|mut size| {
        match harm_of(spec, &size) {
            Err(why) => size.sequential_missing = Some(why),
            Ok(effect) => {
                let known = detections.iter().find(|d| d.effect == effect).cloned();
                let text = effect.to_string();
                let mut play = || detection(&[spec], options, &effect, runs, cancelled, counter(&text, runs, &mut progress)).pop();
                let found = known.or_else(|| if runs > 0 && !stopped() { play() } else { None });
                size.sequential = found.filter(|d| d.detected.runs > 0);
            }
        }
        size
    });
    Report {
        experiment: spec.plan.experiment.clone(),
        revision: spec.plan.revision,
        seed: options.seed,
        alpha: spec.plan.alpha,
        days: spec.length as f64 / 86_400_000.0,
        pane_ms: spec.settings.pane,
        scale: questions.scale,
        bucket: spec.plan.buckets[options.bucket].name.clone(),
        onset_ms: options.onset,
        traffic: spec.traffic.clone(),
        confidence: CONFIDENCE,
        healthy,
        detections,
        detectable: found,
        sample_size,
        interrupted: stopped(),
        notes: notes(spec, questions),
    }
}

fn counter<'a>(stage: &'a str, total: u64, progress: &'a mut impl FnMut(&Progress<'_>)) -> impl FnMut(&Run) + 'a {
    let mut done = 0;
    move |run| {
        done += 1;
        progress(&Progress { stage, done, total, events: run.events });
    }
}

fn sample_size(spec: &Spec, planning: &Planning, questions: &Questions) -> Option<SampleSize> {
    let (metric, mde) = (planning.primary.as_deref()?, planning.mde.filter(|mde| *mde > 0.0)?);
    let power = planning.power.filter(|p| *p > 0.0 && *p < 1.0).unwrap_or(questions.power);
    SampleSize::of(spec, metric, mde, power, questions.scale)
}

/// The effect that the sequential figure is about: the primary metric worse by its MDE. Or why there is none.
fn harm_of(spec: &Spec, size: &SampleSize) -> Result<Effect, String> {
    let found = spec.plan.guardrails.iter().find(|g| traffic::metric_name(&g.name) == size.metric && g.max_increase.is_some());
    let guardrail = found.ok_or("not tested; `success.primary.stop_on_negative` would have it tested")?;
    if matches!(guardrail.max_increase, Some(crate::engine::plan::Margin::Relative(margin)) if margin >= size.mde) {
        return Err(format!("not simulated: {} tolerates as much as the MDE", guardrail.name));
    }
    if !size::is_of_units(spec, &size.metric) {
        return Err(format!("not simulated: observations of {} are events, not units", size.metric));
    }
    let sign = if guardrail.higher_is_worse { 1.0 } else { -1.0 };
    Ok(Effect { metric: size.metric.clone(), size: Size::Relative(sign * size.mde) })
}

fn notes(spec: &Spec, questions: &Questions) -> Vec<String> {
    let mut notes = Vec::new();
    if questions.scale < 1.0 {
        notes.push(format!(
            "one unit of {} was simulated: false alarms hold for the thinned traffic, and detection takes longer than with all of it",
            significant(1.0 / questions.scale)
        ));
    }
    if spec.settings.pane != crate::engine::plan::Settings::default().pane {
        notes.push(format!("panes of {}: the daemon looks more often if its panes are shorter", duration(spec.settings.pane as f64)));
    }
    let silent = spec.plan.guardrails.iter().filter(|g| {
        let event = traffic::event(&spec.plan.signals[g.signal]);
        event.starts_with("workflow_")
    });
    notes.extend(silent.map(|g| format!("{}: fields of workflow events are not simulated", g.name)));
    notes
}
