//! A sweep: the same traffic seen under every combination of some settings, and which of them to take.
//!
//! All combinations with the same share of the traffic see the very same units and events, run by run (common random numbers), so what differs between
//! them is what the settings make of it, and traffic is generated once.

mod axis;
mod show;
#[cfg(test)]
mod tests;

pub use axis::Axis;

use super::report::duration;
use super::study::{Detection, Healthy, Options, detection, healthy};
use super::{Effect, Progress, Questions, Spec, SpecError};
use crate::engine::plan::{FieldTable, Plan, Settings};
use crate::engine::time::Millis;
use crate::tools::simulate::Traffic;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};

/// Combinations at most.
pub const POINTS_MAX: usize = 64;
/// A setting is quick enough if it takes no more than this many times the quickest.
const SLACK: f64 = 1.5;

/// One combination of settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Values in the order of [`Swept::axes`].
    pub settings: Vec<String>,
    /// By what the described traffic is multiplied.
    pub traffic: f64,
    pub healthy: Option<Healthy>,
    /// In the order of the effects.
    pub detections: Vec<Detection>,
}

/// Serialises as `simulate --sweep … --output json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Swept {
    pub experiment: String,
    pub revision: u32,
    pub seed: u64,
    /// Budget of the rule file: that of a point is its own where `alpha` is swept.
    pub alpha: f64,
    pub days: f64,
    pub scale: f64,
    pub bucket: String,
    pub onset_ms: Millis,
    pub axes: Vec<String>,
    pub effects: Vec<String>,
    /// Share of runs that must detect an effect.
    pub power: f64,
    pub points: Vec<Point>,
    /// Index of the combination to take.
    pub recommended: Option<usize>,
    /// Why, for people.
    pub reasons: Vec<String>,
    pub interrupted: bool,
}

/// What is swept over.
pub struct Grid {
    axes: Vec<Axis>,
    /// By combination: its settings and its simulation.
    specs: Vec<(Vec<String>, f64, Spec)>,
}

impl Grid {
    /// Every combination of the axes' settings, of a plan and its traffic.
    ///
    /// # Errors
    /// There are too many, or one cannot be simulated.
    pub fn new(
        axes: Vec<Axis>,
        plan: &Plan,
        (fields, settings): (&FieldTable, &Settings),
        traffic: &Traffic,
        length: Millis,
    ) -> Result<Grid, String> {
        let count: usize = axes.iter().map(|axis| axis.settings.len()).product();
        if count > POINTS_MAX {
            return Err(format!("{count} combinations are too many: {POINTS_MAX} at most"));
        }
        let mut specs = Vec::new();
        for index in 0..count {
            let (mut plan, mut own, mut rest, mut names) = (plan.clone(), traffic.clone(), index, Vec::new());
            let mut share = 1.0;
            // The last axis changes first.
            for axis in axes.iter().rev() {
                let setting = &axis.settings[rest % axis.settings.len()];
                rest /= axis.settings.len();
                share *= setting.apply(&mut plan);
                names.insert(0, setting.text.clone());
            }
            own.units_per_day *= share;
            let spec = Spec::new(plan, fields.clone(), settings.clone(), own, length).map_err(|e: SpecError| e.to_string())?;
            specs.push((names, share, spec));
        }
        Ok(Grid { axes, specs })
    }

    /// What a sweep is worth asking where nobody says: twice the margin (or as much beyond the limit) of each metric that it is about.
    pub fn effects(&self, plan: &Plan, defaults: &[Effect]) -> Vec<Effect> {
        let about: Vec<&str> = self.axes.iter().flat_map(|axis| axis.metrics(plan)).collect();
        let mut metrics: Vec<&str> = Vec::new();
        for effect in defaults {
            if !metrics.contains(&effect.metric.as_str()) && (about.is_empty() || about.contains(&effect.metric.as_str())) {
                metrics.push(&effect.metric);
            }
        }
        let middle = |metric: &&str| {
            let sizes: Vec<&Effect> = defaults.iter().filter(|effect| effect.metric == **metric).collect();
            sizes.get(sizes.len() / 2).map(|effect| (*effect).clone())
        };
        metrics.iter().filter_map(middle).collect()
    }

    /// Runs of traffic that are generated: combinations share them.
    pub fn runs(&self, questions: &Questions) -> u64 {
        self.groups().len() as u64 * (questions.runs + questions.effects.len() as u64 * questions.effect_runs)
    }

    fn first(&self) -> &Spec {
        &self.specs[0].2
    }

    /// The most combinations that see one run.
    pub fn widest(&self) -> Vec<&Spec> {
        let groups = self.groups();
        let widest = groups.iter().max_by_key(|group| group.len());
        widest.into_iter().flatten().map(|index| &self.specs[*index].2).collect()
    }

    /// Combinations with the same traffic.
    fn groups(&self) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (index, (_, share, _)) in self.specs.iter().enumerate() {
            match groups.iter_mut().find(|group| self.specs[group[0]].1 == *share) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        groups
    }

    /// Plays all of it; once `cancelled` is set it ends with what there is.
    pub fn play(&self, questions: &Questions, options: &Options, cancelled: &AtomicBool, mut progress: impl FnMut(&Progress<'_>)) -> Swept {
        let point = |(settings, traffic, _): &(Vec<String>, f64, Spec)| Point {
            settings: settings.clone(),
            traffic: *traffic,
            healthy: None,
            detections: Vec::new(),
        };
        let mut points: Vec<Point> = self.specs.iter().map(point).collect();
        for group in self.groups() {
            let specs: Vec<&Spec> = group.iter().map(|index| &self.specs[*index].2).collect();
            if questions.runs > 0 {
                let done = super::counter("healthy runs", questions.runs, &mut progress);
                let of_rules = healthy(&specs, options, questions.runs, cancelled, done);
                group.iter().zip(of_rules).for_each(|(index, healthy)| points[*index].healthy = Some(healthy).filter(|h| h.runs > 0));
            }
            for effect in &questions.effects {
                if questions.effect_runs == 0 || cancelled.load(Ordering::Relaxed) {
                    break;
                }
                let text = effect.to_string();
                let done = super::counter(&text, questions.effect_runs, &mut progress);
                let of_rules = detection(&specs, options, effect, questions.effect_runs, cancelled, done);
                group.iter().zip(of_rules).for_each(|(index, detection)| points[*index].detections.push(detection));
            }
        }
        let plan = &self.first().plan;
        let (recommended, mut reasons) = recommend(self, &points, questions.power);
        reasons.extend(self.idle(&points));
        Swept {
            experiment: plan.experiment.clone(),
            revision: plan.revision,
            seed: options.seed,
            alpha: plan.alpha,
            days: self.first().length as f64 / 86_400_000.0,
            scale: questions.scale,
            bucket: plan.buckets[options.bucket].name.clone(),
            onset_ms: options.onset,
            axes: self.axes.iter().map(|axis| axis.name.clone()).collect(),
            effects: questions.effects.iter().map(Effect::to_string).collect(),
            power: questions.power,
            points,
            recommended,
            reasons,
            interrupted: cancelled.load(Ordering::Relaxed),
        }
    }

    /// Axes whose values make no difference to what was measured.
    fn idle(&self, points: &[Point]) -> Vec<String> {
        let measured =
            |p: &Point| (p.healthy.as_ref().map(|h| h.family.hits), p.detections.iter().map(|d| d.delay_ms.clone()).collect::<Vec<_>>());
        let others =
            |p: &Point, axis: usize| p.settings.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, s)| s.clone()).collect::<Vec<_>>();
        let is_idle = |axis: usize| {
            points.iter().all(|p| points.iter().filter(|q| others(q, axis) == others(p, axis)).all(|q| measured(q) == measured(p)))
        };
        let several = self.axes.iter().enumerate().filter(|(_, axis)| axis.settings.len() > 1);
        several
            .filter(|(index, _)| is_idle(*index))
            .map(|(_, axis)| format!("{} makes no difference here{}", axis.name, why_idle(axis, &self.first().plan)))
            .collect()
    }

    fn alpha(&self, index: usize) -> f64 {
        self.specs[index].2.plan.alpha
    }
}

fn why_idle(axis: &Axis, plan: &Plan) -> &'static str {
    let of_window = axis.name == "window" || axis.name.ends_with(".window");
    match of_window && plan.guardrails.iter().all(|g| g.limit.is_none()) {
        true => ": it is of limits, and comparisons with the baseline look at the whole life",
        false => "",
    }
}

/// The time by which half of the runs have found every effect; `None` where some are missed by more than half, or by more than the power allows.
fn time(point: &Point, power: f64) -> Option<f64> {
    if point.detections.is_empty() || point.detections.iter().any(|d| d.detected.share < power) {
        return None;
    }
    point.detections.iter().map(|d| d.delay_ms.median).try_fold(0.0, |most: f64, median| Some(most.max(median?)))
}

/// The time by which nine of ten runs have found every effect, where they have.
fn late(point: &Point) -> Option<f64> {
    point.detections.iter().map(|d| d.delay_ms.p90).try_fold(0.0, |most: f64, p90| Some(most.max(p90?)))
}

fn alarms(point: &Point) -> f64 {
    point.healthy.as_ref().map_or(0.0, |healthy| healthy.family.share)
}

/// The fewest false alarms among the combinations that find the effects in about the least time.
fn recommend(grid: &Grid, points: &[Point], power: f64) -> (Option<usize>, Vec<String>) {
    let within = |i: usize| points[i].healthy.as_ref().is_none_or(|healthy| healthy.family.interval[0] <= grid.alpha(i));
    let sound: Vec<(usize, f64)> = (0..points.len()).filter(|i| within(*i)).filter_map(|i| Some((i, time(&points[i], power)?))).collect();
    let Some(&(quickest, least)) = sound.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else {
        return (None, vec![nothing(points, power)]);
    };
    let rank = |(i, ms): &(usize, f64)| [alarms(&points[*i]), *ms, late(&points[*i]).unwrap_or(f64::INFINITY)];
    let quick = sound.iter().filter(|(_, ms)| *ms <= least * SLACK);
    let Some(&(best, ms)) = quick.min_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal)) else {
        return (None, Vec::new());
    };
    let named = |i: usize| grid.named(&points[i]);
    let costs = |i: usize| match &points[i].healthy {
        None => String::new(),
        Some(healthy) => format!(" at {:.1} false alarms per 1,000 healthy runs", healthy.family.share * 1e3),
    };
    let late = late(&points[best]).map_or(String::new(), |p90| format!(", 90% within {}", duration(p90)));
    let budget = points[best].healthy.as_ref().map_or(String::new(), |_| format!("; alpha allows {}", grid.alpha(best) * 1e3));
    let mut reasons = vec![format!(
        "{}: half of the runs find it within {}{late},{}{budget}",
        named(best),
        duration(ms),
        costs(best).trim_start_matches(" at")
    )];
    if least < ms {
        reasons.push(format!("{} is quicker, {},{}", named(quickest), duration(least), costs(quickest)));
    }
    let slowest = sound.iter().max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(i, ms)| *i != best && *ms > least * SLACK);
    if let Some((slowest, ms)) = slowest {
        reasons.push(format!("{} would take {},{}", named(*slowest), duration(*ms), costs(*slowest)));
    }
    let missed: Vec<String> = (0..points.len()).filter(|i| time(&points[*i], power).is_none()).map(named).collect();
    if !missed.is_empty() {
        reasons.push(format!("too often missed by {} within the runs: {}", plural(missed.len()), missed.join("; ")));
    }
    let over: Vec<String> = (0..points.len()).filter(|i| !within(*i)).map(named).collect();
    if !over.is_empty() {
        reasons.push(format!("more false alarms than alpha allows: {}", over.join("; ")));
    }
    (Some(best), reasons)
}

fn plural(n: usize) -> String {
    if n == 1 { "one combination".to_owned() } else { format!("{n} combinations") }
}

/// Why no combination will do.
fn nothing(points: &[Point], power: f64) -> String {
    let best = points.iter().filter_map(|p| p.detections.iter().map(|d| d.detected.share).reduce(f64::min)).reduce(f64::max);
    match best {
        None => "no effect was simulated, so there is nothing to weigh false alarms against".to_owned(),
        Some(share) => format!(
            "none: at best {:.0}% of the runs find the effects before they end, {:.0}% should; longer runs (--days), more units or larger effects would tell more",
            share * 100.0,
            power * 100.0
        ),
    }
}

impl Grid {
    /// `margin 10%, window 10m`.
    fn named(&self, point: &Point) -> String {
        self.axes.iter().zip(&point.settings).map(|(axis, value)| format!("{} {value}", axis.name)).collect::<Vec<_>>().join(", ")
    }
}
