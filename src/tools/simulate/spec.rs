//! A simulation, compiled: the rule's plan and the traffic as tables that a generator can follow without searching.

use super::effect::{Effect, Size, TIMEOUTS};
use super::sample::{Requests, latency_quantile, metric_value};
use super::traffic::{Model, Traffic, built_in, event, metric_name};
use crate::engine::event::{FieldId, Scalar};
use crate::engine::plan::{Catalog, FieldTable, Hit, Match, Plan, Settings, Signal, Source, Statistic, Unit, Value};
use crate::engine::time::Millis;
use std::borrow::Cow;
use std::sync::Arc;

/// Everything that all runs share.
pub struct Spec {
    pub catalog: Arc<Catalog>,
    pub plan: Arc<Plan>,
    pub settings: Settings,
    pub traffic: Traffic,
    /// Event time of the beginning, a whole pane.
    pub start: Millis,
    /// How long a run is, in ms; a whole number of panes.
    pub length: Millis,
    pub(super) requests: Requests,
    pub(super) variants: Vec<Variant>,
    pub(super) streams: Vec<Stream>,
    pub(super) workflow: String,
    /// For each attribute, upper ends of the values' shares.
    pub(super) segments: Vec<Vec<f64>>,
}

/// Requests that a metric's `where` asks for.
pub(super) struct Variant {
    pub share: f64,
    pub fields: Vec<(FieldId, Scalar<'static>)>,
    /// Fields that carry the metric's own value.
    pub values: Vec<FieldId>,
    pub metric: usize,
    pub is: VariantOf,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum VariantOf {
    Latency,
    Errors,
    Values,
}

/// Events of one metric.
pub(super) struct Stream {
    pub event: StreamEvent,
    pub name: String,
    pub fields: Vec<(FieldId, Scalar<'static>)>,
    pub values: Vec<FieldId>,
    pub covariates: Vec<FieldId>,
    pub model: Model,
    pub metric: usize,
    /// Of each unit one observation, whose absence is a zero; else a Poisson number of events.
    pub of_units: bool,
    pub per_unit: f64,
    pub delay_ms: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum StreamEvent {
    Outcome,
    Ticket,
    Flag,
    Other(String),
}

/// Parameters that an effect changes, for one bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    pub latency_factor: f64,
    pub latency_shift: f64,
    pub timeouts: f64,
    pub errors: f64,
    pub abandoned: f64,
    pub tickets: f64,
    pub flags: f64,
    /// By metric, in the order of [`Traffic::metrics`]: a rate; a factor on values; a number per unit.
    pub levels: Vec<f64>,
}

impl World {
    /// Two changes of the `healthy` world at once: factors multiply, and differences add up.
    #[must_use]
    pub fn and(&self, other: &World, healthy: &World) -> World {
        let sum = |of: fn(&World) -> f64| of(self) + of(other) - of(healthy);
        let share = |of: fn(&World) -> f64| sum(of).clamp(0.0, 1.0);
        let level = |((a, b), healthy): ((&f64, &f64), &f64)| (a + b - healthy).max(0.0);
        World {
            latency_factor: self.latency_factor * other.latency_factor,
            latency_shift: self.latency_shift + other.latency_shift,
            timeouts: share(|w| w.timeouts),
            errors: share(|w| w.errors),
            abandoned: share(|w| w.abandoned),
            tickets: sum(|w| w.tickets).max(0.0),
            flags: sum(|w| w.flags).max(0.0),
            levels: self.levels.iter().zip(&other.levels).zip(&healthy.levels).map(level).collect(),
        }
    }
}

/// Why a rule file cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("a run must last at least one pane, and at most 400 days")]
    Length,
    #[error("{0} metrics are too many to simulate")]
    Metrics(usize),
    #[error("there are {0} segments; at most 8 attributes of at most 256 values can be simulated")]
    Segments(usize),
}

/// A Monday, for experiments that do not say when they start.
const DEFAULT_START: Millis = 1_767_571_200_000;

impl Spec {
    /// `fields` are those that the plan was compiled with.
    ///
    /// # Errors
    /// What keeps it from being simulated.
    pub fn new(plan: Plan, fields: FieldTable, settings: Settings, traffic: Traffic, length: Millis) -> Result<Spec, SpecError> {
        let plan = Arc::new(plan);
        let pane = settings.pane;
        let length = length / pane * pane;
        if !(pane..=400 * 86_400_000).contains(&length) {
            return Err(SpecError::Length);
        }
        if traffic.metrics.len() > 250 {
            return Err(SpecError::Metrics(traffic.metrics.len()));
        }
        if traffic.segments.len() > 8 || traffic.segments.iter().any(|(_, values)| values.len() > 256) {
            return Err(SpecError::Segments(traffic.segments.len()));
        }
        let start = plan.starts.unwrap_or(DEFAULT_START);
        let workflow = plan.signals.iter().find_map(|s| match s {
            Signal::Abandonment { workflow, .. } => workflow.clone(),
            _ => None,
        });
        let mut spec = Spec {
            requests: Requests::new(traffic.requests.per_unit, traffic.requests.distribution),
            start: (start + pane - 1).div_euclid(pane) * pane,
            segments: traffic.segments.iter().map(|(_, values)| cumulated(values.iter().map(|(_, share)| *share))).collect(),
            workflow: workflow.unwrap_or_else(|| "workflow".to_owned()),
            variants: Vec::new(),
            streams: Vec::new(),
            catalog: Arc::new(Catalog::new(vec![Arc::clone(&plan)], fields)),
            plan,
            settings,
            traffic,
            length,
        };
        spec.compile();
        Ok(spec)
    }

    fn compile(&mut self) {
        let plan = Arc::clone(&self.plan);
        for guardrail in &plan.guardrails {
            let name = metric_name(&guardrail.name);
            let signal = &plan.signals[guardrail.signal];
            let Some(metric) = self.traffic.metrics.keys().position(|k| k == name).filter(|_| !built_in(name)) else { continue };
            match event(signal) {
                "request" => self.add_variant(name, metric, signal),
                "" => {}
                event if event.starts_with("workflow_") => {}
                _ => self.add_stream(name, metric, signal),
            }
        }
    }

    fn add_variant(&mut self, name: &str, metric: usize, signal: &Signal) {
        let (Some(source), Some(traffic)) = (source(signal), self.traffic.metrics.get(name)) else { return };
        let (fields, values) = (constants(source), fields_of(signal));
        if let Some(known) = self.variants.iter_mut().find(|v| v.fields == fields) {
            return known.values.extend(values);
        }
        let taken: f64 = self.variants.iter().map(|v| v.share).sum();
        let share = if fields.is_empty() { 1.0 } else { traffic.share }.min(1.0 - taken);
        let is = match signal {
            Signal::Distribution { value: Value::Latency, .. } | Signal::Moments { value: Value::Latency, .. } => VariantOf::Latency,
            Signal::Rate { hit: Hit::Error, .. } => VariantOf::Errors,
            _ => VariantOf::Values,
        };
        self.variants.push(Variant { share, fields, values, metric, is });
    }

    fn add_stream(&mut self, name: &str, metric: usize, signal: &Signal) {
        let (Some(source), Some(traffic)) = (source(signal), self.traffic.metrics.get(name)) else { return };
        let event = match source.event.as_str() {
            "outcome" => StreamEvent::Outcome,
            "ticket" => StreamEvent::Ticket,
            "compliance_flag" => StreamEvent::Flag,
            other => StreamEvent::Other(other.to_owned()),
        };
        let (fields, values) = (constants(source), fields_of(signal));
        // Two metrics of the same events: the first one's traffic feeds both.
        if let Some(known) = self.streams.iter_mut().find(|s| s.event == event && s.fields == fields) {
            return known.values.extend(values);
        }
        let covariates = match signal {
            Signal::Moments { covariate: Some(Value::Field(field)), .. } => vec![*field],
            _ => Vec::new(),
        };
        let of_units = matches!(signal, Signal::Rate { unit: Unit::User, .. } | Signal::Moments { unit: Unit::User, .. });
        let (model, per_unit, delay_ms) = (traffic.model, traffic.per_unit, traffic.delay_ms);
        let name = name.to_owned();
        self.streams.push(Stream { event, name, fields, values, covariates, model, metric, of_units, per_unit, delay_ms });
    }

    /// Places of the attribute and of the value of `region=eu` in [`Traffic::segments`].
    pub fn segment(&self, text: &str) -> Option<(usize, usize)> {
        let (name, value) = text.split_once('=')?;
        let (attribute, (_, values)) = self.traffic.segments.iter().enumerate().find(|(_, (n, _))| n == name)?;
        Some((attribute, values.iter().position(|(v, _)| v == value)?))
    }

    /// Healthy traffic.
    pub fn healthy(&self) -> World {
        let t = &self.traffic;
        let level = |m: &super::traffic::MetricTraffic| match m.model {
            Model::Rate { rate } => rate,
            Model::Mean { .. } | Model::Quantile(_) => 1.0,
            Model::Count => m.per_unit,
        };
        World {
            latency_factor: 1.0,
            latency_shift: 0.0,
            timeouts: t.timeouts,
            errors: t.errors,
            abandoned: t.workflows.abandoned,
            tickets: t.tickets,
            flags: t.compliance_flags,
            levels: t.metrics.values().map(level).collect(),
        }
    }

    /// Healthy traffic but for an effect.
    pub fn world(&self, effect: &Effect) -> World {
        let mut world = self.healthy();
        let size = effect.size;
        match effect.metric.as_str() {
            TIMEOUTS => world.timeouts = size.apply(world.timeouts).clamp(0.0, 1.0),
            "error_rate" => world.errors = size.apply(world.errors).clamp(0.0, 1.0),
            "abandonment" => world.abandoned = size.apply(world.abandoned).clamp(0.0, 1.0),
            "tickets" => world.tickets = size.apply(world.tickets).max(0.0),
            "compliance_flags" => world.flags = size.apply(world.flags).max(0.0),
            name if name.starts_with("latency_p") && built_in(name) => match size {
                Size::Relative(change) => world.latency_factor = 1.0 + change,
                Size::Absolute(ms) => world.latency_shift = ms,
            },
            name => self.change_metric(name, size, &mut world),
        }
        world
    }

    fn change_metric(&self, name: &str, size: Size, world: &mut World) {
        let Some((index, metric)) =
            self.traffic.metrics.values().enumerate().nth(self.traffic.metrics.keys().position(|k| k == name).unwrap_or(usize::MAX))
        else {
            return;
        };
        let level = &mut world.levels[index];
        match metric.model {
            Model::Rate { .. } => *level = size.apply(*level).clamp(0.0, 1.0),
            Model::Count => *level = size.apply(*level).max(0.0),
            Model::Mean { .. } | Model::Quantile(_) => {
                let statistic = self.plan.guardrails.iter().find(|g| metric_name(&g.name) == name).map_or(Statistic::Mean, |g| g.statistic);
                let base = metric_value(metric, statistic).unwrap_or(1.0);
                *level = if base == 0.0 { 1.0 } else { size.apply(base) / base };
            }
        }
    }

    /// Value of a guarded metric in healthy traffic, where it is known beforehand.
    pub fn value(&self, metric: &str, statistic: Statistic) -> Option<f64> {
        match (metric, statistic) {
            ("error_rate", _) => Some(self.traffic.errors),
            ("abandonment", _) => Some(self.traffic.workflows.abandoned),
            ("tickets", _) => Some(self.traffic.tickets),
            (name, Statistic::Quantile { ppm }) if built_in(name) => Some(latency_quantile(&self.traffic.latency, f64::from(ppm) / 1e6)),
            (name, statistic) => metric_value(self.traffic.metrics.get(name)?, statistic),
        }
    }
}

/// Upper ends of shares.
fn cumulated(shares: impl Iterator<Item = f64>) -> Vec<f64> {
    shares
        .scan(0.0, |sum, share| {
            *sum += share;
            Some(*sum)
        })
        .collect()
}

fn source(signal: &Signal) -> Option<&Source> {
    match signal {
        Signal::Distribution { source, .. } | Signal::Rate { source, .. } => Some(source),
        Signal::Count { source, .. } | Signal::Moments { source, .. } => Some(source),
        Signal::Retention { .. } | Signal::Abandonment { .. } => None,
    }
}

/// What a `where` asks for.
fn constants(source: &Source) -> Vec<(FieldId, Scalar<'static>)> {
    let scalar = |wanted: &Match| match wanted {
        Match::Bool(flag) => Scalar::Bool(*flag),
        Match::Number(n) => Scalar::Number(*n),
        Match::Text(text) => Scalar::Text(Cow::Owned(text.clone())),
    };
    source.filter.iter().map(|(field, wanted)| (*field, scalar(wanted))).collect()
}

/// Fields of the organisation's own that carry the value.
fn fields_of(signal: &Signal) -> Vec<FieldId> {
    match signal {
        Signal::Distribution { value: Value::Field(field), .. } | Signal::Moments { value: Value::Field(field), .. } => vec![*field],
        Signal::Rate { hit: Hit::Field(field), .. } => vec![*field],
        _ => Vec::new(),
    }
}
