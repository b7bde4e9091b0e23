//! How the intervals of guardrails went, for pictures: samples of event time, of which there are never many.

use crate::engine::decision::{LogEntry, LogKind, Verdict};
use crate::engine::fleet::Fleet;
use crate::engine::plan::{Catalog, Margin};
use crate::engine::state::GuardrailState;
use crate::engine::time::Millis;
use serde::{Deserialize, Serialize};

/// Samples kept of a recording at most. When there are as many, every second one goes, and from then on half as many are taken.
const MOST: usize = 320;
/// Experiments that are followed, the first by name.
const EXPERIMENTS: usize = 32;
/// Steps of the ramp that are remembered, of all of them: the first.
const STEPS: usize = 1_024;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Courses {
    /// Followed experiments, and how many are not.
    experiments: Vec<String>,
    pub left_out: usize,
    stride: Millis,
    next: Option<Millis>,
    samples: usize,
    pub courses: Vec<Course>,
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// The ramp moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub experiment: String,
    pub at: Millis,
    pub text: String,
}

/// One guardrail of one bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Course {
    pub experiment: String,
    pub bucket: String,
    pub guardrail: String,
    pub scale: Scale,
    /// What must not be passed.
    pub bound: Option<f64>,
    /// In the order of time; of the same times for all guardrails of an experiment.
    pub points: Vec<Point>,
}

/// What values of a course are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Scale {
    /// Relative changes against the baseline.
    Change,
    /// Differences from the baseline, in this unit.
    Difference(String),
    /// Values of the bucket, in this unit.
    Value(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub at: Millis,
    pub value: Option<f64>,
    pub interval: Option<[f64; 2]>,
    pub verdict: Verdict,
}

impl Courses {
    pub fn new(catalog: &Catalog, pane: Millis) -> Courses {
        let experiments: Vec<String> = catalog.plans.iter().take(EXPERIMENTS).map(|plan| plan.experiment.clone()).collect();
        let left_out = catalog.plans.len() - experiments.len();
        Courses { experiments, left_out, stride: pane, ..Courses::default() }
    }

    /// Takes down what was said about the ramp.
    pub fn hear(&mut self, log: &[LogEntry]) {
        let told = [LogKind::Phase, LogKind::FullRollout, LogKind::WatchOver, LogKind::Ended];
        let mine = |entry: &&LogEntry| told.contains(&entry.kind) && self.experiments.contains(&entry.experiment);
        let steps = log.iter().filter(mine).take(STEPS.saturating_sub(self.steps.len()));
        self.steps.extend(steps.map(|e| Step { experiment: e.experiment.clone(), at: e.at, text: e.text.clone() }));
    }

    /// Takes a sample, if one is due.
    pub fn look(&mut self, fleet: &Fleet) {
        let Some(at) = fleet.judged_to().filter(|at| self.next.is_none_or(|next| *at >= next)) else { return };
        self.next = Some(at + self.stride);
        self.sample(at, fleet);
    }

    /// The last sample: of the end.
    pub fn finish(&mut self, fleet: &Fleet) {
        let last = self.courses.first().and_then(|course| course.points.last()).map(|point| point.at);
        if let Some(at) = fleet.judged_to().filter(|at| Some(*at) != last) {
            self.sample(at, fleet);
        }
    }

    fn sample(&mut self, at: Millis, fleet: &Fleet) {
        for experiment in &self.experiments {
            for g in fleet.close_view(experiment).into_iter().flat_map(|state| state.guardrails) {
                let known =
                    self.courses.iter().position(|c| (&c.experiment, &c.bucket, &c.guardrail) == (experiment, &g.bucket, &g.guardrail));
                let index = known.unwrap_or_else(|| {
                    self.courses.push(Course::of(experiment, &g));
                    self.courses.len() - 1
                });
                let course = &mut self.courses[index];
                course.points.push(Point { at, value: course.scale.value(&g), interval: g.interval, verdict: g.verdict });
            }
        }
        self.samples += 1;
        if self.samples >= MOST {
            self.samples = self.samples.div_ceil(2);
            self.stride *= 2;
            for course in &mut self.courses {
                let mut index = 0;
                course.points.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
            }
        }
    }
}

impl Course {
    pub fn is_of(&self, other: &Course) -> bool {
        (&self.experiment, &self.bucket, &self.guardrail) == (&other.experiment, &other.bucket, &other.guardrail)
    }

    fn of(experiment: &str, g: &GuardrailState) -> Course {
        let harm = if g.higher_is_worse { 1.0 } else { -1.0 };
        let (scale, bound) = match (g.max_increase, g.limit) {
            (Some(Margin::Relative(margin)), _) => (Scale::Change, Some(harm * margin)),
            (Some(Margin::Absolute(margin)), _) => (Scale::Difference(g.unit.clone()), Some(harm * margin)),
            (None, limit) => (Scale::Value(g.unit.clone()), limit),
        };
        Course {
            experiment: experiment.to_owned(),
            bucket: g.bucket.clone(),
            guardrail: g.guardrail.clone(),
            scale,
            bound,
            points: Vec::new(),
        }
    }
}

impl Scale {
    fn value(&self, g: &GuardrailState) -> Option<f64> {
        match self {
            Scale::Change => g.change,
            Scale::Difference(_) => g.bucket_value.zip(g.baseline_value).map(|(bucket, baseline)| bucket - baseline),
            Scale::Value(_) => g.bucket_value,
        }
    }
}
