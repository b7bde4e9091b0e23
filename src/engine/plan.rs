//! What the engine must know of a rule file: the checked, compiled form that `rules` makes and the Judge follows.

use super::aggregate::feeds::Feeds;
use super::assign::Assignment;
use super::decision::{Action, Mode};
use super::eligible::Eligibility;
use super::event::FieldId;
use super::pane::CellId;
use super::shape::Shape;
use super::time::Millis;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// All live experiments, in the order of their names, and the fields that their metrics read.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    pub plans: Vec<Arc<Plan>>,
    /// Of each plan.
    pub(super) shapes: Vec<Arc<Shape>>,
    /// First cell of each plan, and where those of the last one end.
    pub cells: Vec<CellId>,
    /// The plans turned round. All partitions share them: copies would not fit into the caches.
    pub(super) feeds: Vec<Feeds>,
    /// Index of each plan by its experiment.
    pub(super) names: HashMap<String, u32, foldhash::fast::FixedState>,
    pub fields: FieldTable,
}

impl Catalog {
    pub fn new(plans: Vec<Arc<Plan>>, mut fields: FieldTable) -> Catalog {
        fields.attributes = plans.iter().any(|plan| plan.segments.is_some() || plan.eligibility.asks_for_attributes());
        let ends = plans.iter().scan(0, |end, plan| {
            *end += plan.cells();
            Some(*end)
        });
        let cells: Vec<CellId> = std::iter::once(0).chain(ends).collect();
        let shapes: Vec<Arc<Shape>> = plans.iter().map(|plan| Arc::new(Shape::of(plan, &fields))).collect();
        let feeds = plans.iter().zip(&shapes).zip(&cells).map(|((plan, shape), first)| Feeds::new(plan, Arc::clone(shape), *first));
        let names = plans.iter().enumerate().map(|(i, p)| (p.experiment.clone(), i as u32)).collect();
        Catalog { feeds: feeds.collect(), names, shapes, cells, plans, fields }
    }
}

/// What rules read of records beyond the canonical fields. A [`FieldId`] is an index into `entries`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldTable {
    /// Name of the event and the JSON Pointer (RFC 6901) into its record.
    pub entries: Vec<(String, String)>,
    /// Whether one of them asks for attributes.
    pub attributes: bool,
}

impl FieldTable {
    /// The id of a field that is there.
    pub fn find(&self, event: &str, pointer: &str) -> Option<FieldId> {
        self.entries.iter().position(|(e, p)| e == event && p == pointer).and_then(|index| FieldId::try_from(index).ok())
    }

    /// The id of a field, added on first use. `None` when the table is full (65,536 fields).
    pub fn intern(&mut self, event: &str, pointer: &str) -> Option<FieldId> {
        self.find(event, pointer).or_else(|| {
            let id = FieldId::try_from(self.entries.len()).ok()?;
            self.entries.push((event.to_owned(), pointer.to_owned()));
            Some(id)
        })
    }
}

/// One experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub experiment: String,
    pub revision: u32,
    /// At least two; exactly one is the baseline. At most [`MAX_BUCKETS`].
    pub buckets: Vec<Bucket>,
    /// Records outside `starts..ends` are counted `inactive`.
    pub starts: Option<Millis>,
    pub ends: Option<Millis>,
    /// The rollout's phases, in order; empty when the rule names none.
    pub phases: Vec<Phase>,
    /// Share of eligible traffic that stays in the baseline bucket when the rollout is full, 0..1.
    pub holdback: f64,
    /// How long the full rollout is watched; `None`: until the experiment ends.
    pub watch_after_full: Option<Millis>,
    /// What is observed so soon after the start, or after a phase has begun, counts for no limit on a share or quantile, and for no comparison.
    pub warm_up: Millis,
    /// What partials carry for each bucket.
    pub signals: Vec<Signal>,
    pub guardrails: Vec<Guardrail>,
    /// Success metrics that are compared and never decide: each with a margin of 0.
    pub secondary: Vec<Guardrail>,
    pub quality: Vec<QualityCheck>,
    /// Metrics of retention by name, and the index of their signals.
    pub retention: Vec<(String, usize)>,
    pub funnels: Vec<Funnel>,
    pub eligibility: Eligibility,
    /// How the flag service assigns, where the rule says so.
    pub assignment: Option<Assignment>,
    /// False-alarm budget of the whole experiment, in (0, 1).
    pub alpha: f64,
    /// How guardrails and buckets share it.
    pub correction: Correction,
    /// Slices of the units in which guardrails are compared with the baseline, too.
    pub segments: Option<Segmentation>,
    pub method: Method,
    /// Whether means use the covariates of their metrics.
    pub cuped: bool,
    /// Exposed units per bucket before a relative test may act.
    pub min_units: u64,
    pub mode: Mode,
    /// Exposures to a rolled-back bucket must stop within this span.
    pub confirm_within: Millis,
    /// What happens when they do not.
    pub unconfirmed: Vec<Action>,
    /// What happens when they have stopped, and come back.
    pub undone: Vec<Action>,
    pub rate_limit: Option<RateLimit>,
}

/// Rollbacks of an experiment that the machine makes by itself, at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// At least 1.
    pub rollbacks: u32,
    pub within: Millis,
}

/// Which units are compared apart from the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Segmentation {
    /// Attributes of exposures, at most [`MAX_ATTRIBUTES`]. Each slices all units anew: `region=eu`, `device=ios`, not their product.
    pub by: Vec<String>,
    /// Segments at most, of all attributes together, beside the rest of each; at most [`MAX_SEGMENTS`].
    pub top: usize,
    /// Whether a breach in a segment is a decision.
    pub act: bool,
}

impl Segmentation {
    /// Segments that can be tested: those of their own and the rest of each attribute.
    pub fn places(&self) -> usize {
        self.top + self.by.len()
    }
}

/// Attributes that one experiment is sliced by at most.
pub const MAX_ATTRIBUTES: usize = 4;
/// Segments of one experiment at most.
pub const MAX_SEGMENTS: usize = 32;
/// Buckets of one experiment at most.
pub const MAX_BUCKETS: usize = 64;

impl Plan {
    /// Whether records of that time count.
    pub fn runs_at(&self, at: Millis) -> bool {
        self.starts.is_none_or(|starts| at >= starts) && self.ends.is_none_or(|ends| at < ends)
    }

    /// Everything that asks for a signal, in the order of its numbers: guardrails, then secondary metrics.
    pub fn questions(&self) -> impl Iterator<Item = &Guardrail> {
        self.guardrails.iter().chain(&self.secondary)
    }

    /// The question of this number, which there must be.
    pub fn question(&self, index: usize) -> &Guardrail {
        match index.checked_sub(self.guardrails.len()) {
            Some(beyond) => &self.secondary[beyond],
            None => &self.guardrails[index],
        }
    }

    /// Index of the baseline bucket.
    pub fn baseline(&self) -> usize {
        self.buckets.iter().position(|b| b.baseline).unwrap_or(0)
    }

    /// Designed shares at the start, by bucket.
    pub fn first_weights(&self) -> Vec<f64> {
        let of_phase = self.phases.first().and_then(|phase| phase.weights.clone());
        of_phase.unwrap_or_else(|| self.buckets.iter().map(|b| b.weight).collect())
    }

    pub fn bucket(&self, name: &str) -> Option<usize> {
        self.buckets.iter().position(|b| b.name == name)
    }

    /// Cells of a pane: for each bucket its traffic, then its signals.
    pub fn cells(&self) -> CellId {
        (self.buckets.len() * (1 + self.signals.len())) as CellId
    }

    /// Index of a bucket's traffic among the plan's cells.
    pub fn traffic_cell(&self, bucket: usize) -> usize {
        bucket * (1 + self.signals.len())
    }

    /// Index of a bucket's signal among the plan's cells.
    pub fn signal_cell(&self, bucket: usize, signal: usize) -> usize {
        self.traffic_cell(bucket) + 1 + signal
    }

    /// Fields that records should carry, and the largest share that may lack one; `None` where the rule does not ask.
    pub fn missing(&self) -> Option<(&[MissingField], f64)> {
        self.quality.iter().find_map(|check| match &check.kind {
            QualityKind::Missing { fields, max } => Some((fields.as_slice(), *max)),
            _ => None,
        })
    }
}

/// A step of the ramp.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    pub name: String,
    /// Share of eligible traffic, 0..=1.
    pub traffic: f64,
    /// Planned length.
    pub span: Option<Millis>,
    /// Shares of the buckets where the phase's event gives none; `None` leaves them as they were.
    pub weights: Option<Vec<f64>>,
}

/// An arm of the experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    pub name: String,
    /// Designed share of traffic; the weights of an experiment add up to 1.
    pub weight: f64,
    pub baseline: bool,
}

/// A stream of observations that partials carry per bucket.
#[derive(Clone, Debug, PartialEq)]
pub enum Signal {
    /// Distribution of a value, binned.
    Distribution { source: Source, value: Value },
    /// Hits among observations; of [`Unit::User`], exposed units with at least one hit.
    Rate { source: Source, hit: Hit, unit: Unit },
    /// Number of events; of [`Unit::User`], also how many exposed units have at least one.
    Count { source: Source, unit: Unit },
    /// Moments of a value; of [`Unit::User`], of its sum over each exposed unit. The covariate is the unit's value before the experiment.
    Moments { source: Source, value: Value, covariate: Option<Value>, unit: Unit },
    /// Exposed units that are active again in the 24 h that begin `day` days after their first exposure; any record shows it where there is
    /// no source.
    Retention { day: u32, source: Option<Source> },
    /// Workflows started, and among them those abandoned: explicitly, or not completed within the limit.
    Abandonment { within: Millis, workflow: Option<String> },
}

impl Signal {
    /// Which events feed it; `None` of workflows and retention.
    pub fn source(&self) -> Option<&Source> {
        match self {
            Signal::Distribution { source, .. } | Signal::Rate { source, .. } => Some(source),
            Signal::Count { source, .. } | Signal::Moments { source, .. } => Some(source),
            Signal::Abandonment { .. } | Signal::Retention { .. } => None,
        }
    }

    /// The fields that it reads, in a fixed order.
    pub(super) fn fields_mut(&mut self) -> Vec<&mut FieldId> {
        match self {
            Signal::Distribution { source, value } => source.fields_mut().into_iter().chain(value.field_mut()).collect(),
            Signal::Rate { source, hit, .. } => {
                let hit = if let Hit::Field(field) = hit { Some(field) } else { None };
                source.fields_mut().into_iter().chain(hit).collect()
            }
            Signal::Count { source, .. } => source.fields_mut(),
            Signal::Moments { source, value, covariate, .. } => {
                source.fields_mut().into_iter().chain(value.field_mut()).chain(covariate.as_mut().and_then(Value::field_mut)).collect()
            }
            Signal::Retention { source, .. } => source.as_mut().map(Source::fields_mut).unwrap_or_default(),
            Signal::Abandonment { .. } => Vec::new(),
        }
    }

    /// Whether the observation is the exposed unit.
    pub fn is_per_user(&self) -> bool {
        match self {
            Signal::Rate { unit, .. } | Signal::Count { unit, .. } | Signal::Moments { unit, .. } => *unit == Unit::User,
            Signal::Retention { .. } => true,
            Signal::Distribution { .. } | Signal::Abandonment { .. } => false,
        }
    }
}

/// A workflow and the steps that it takes between its start and its completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Funnel {
    pub name: String,
    pub workflow: String,
    /// Time from the start in which steps and completion count.
    pub within: Millis,
    /// At most 16.
    pub steps: Vec<FunnelStep>,
}

/// Events that show that a workflow has come so far.
#[derive(Clone, Debug, PartialEq)]
pub struct FunnelStep {
    pub name: String,
    pub source: Source,
    /// Field with the workflow's id, and the one with its name, which may be left out.
    pub workflow_id: FieldId,
    pub workflow: FieldId,
}

impl Funnel {
    pub(super) fn fields_mut(&mut self) -> Vec<&mut FieldId> {
        self.steps.iter_mut().flat_map(FunnelStep::fields_mut).collect()
    }
}

impl FunnelStep {
    fn fields_mut(&mut self) -> Vec<&mut FieldId> {
        self.source.fields_mut().into_iter().chain([&mut self.workflow_id, &mut self.workflow]).collect()
    }
}

/// What an observation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Event,
    /// The exposed unit: observations are independent, so that tests of them are exact.
    User,
}

/// Which events feed a signal.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The `event` field of the record.
    pub event: String,
    /// Fields that must have these values (the rule's `where`).
    pub filter: Vec<(FieldId, Match)>,
}

impl Source {
    pub(super) fn fields_mut(&mut self) -> Vec<&mut FieldId> {
        self.filter.iter_mut().map(|(field, _)| field).collect()
    }
}

/// A value that a `where` asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Match {
    Bool(bool),
    Number(f64),
    Text(String),
}

/// Where a signal's value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `latency_ms` of a request, in ms.
    Latency,
    /// `value` of an outcome.
    Outcome,
    /// `covariate` of an outcome.
    Covariate,
    /// Any numeric field.
    Field(FieldId),
}

impl Value {
    fn field_mut(&mut self) -> Option<&mut FieldId> {
        if let Value::Field(field) = self { Some(field) } else { None }
    }
}

/// What makes an observation a hit.
#[derive(Clone, Debug, PartialEq)]
pub enum Hit {
    /// `error` of a request.
    Error,
    /// `value` of an outcome is true, or not 0.
    Outcome,
    /// The field is true, or not 0; absent is no hit.
    Field(FieldId),
}

/// One guardrail of the rule file, for every bucket but the baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Guardrail {
    /// Unique in the experiment: the metric's name, with `#2`, `#3` … when a metric has several guardrails.
    pub name: String,
    /// Index into [`Plan::signals`].
    pub signal: usize,
    pub statistic: Statistic,
    /// Unit of the value as people read it: `ms`, `%`, `per unit`, or empty.
    pub unit: String,
    pub window: Millis,
    /// Absolute bound in the metric's own unit (ms; a share 0..1; tickets per unit; a count).
    pub limit: Option<f64>,
    /// Bound against the baseline bucket: how much worse the metric may get.
    pub max_increase: Option<Margin>,
    /// The margin is `success.primary`'s `stop_on_negative`, not a guardrail's `max_increase`.
    pub primary: bool,
    /// Expected value in the baseline bucket (`metrics.….baseline`): helps a rate's test before 256 control units have been seen.
    pub expected: Option<f64>,
    /// Whether more of the metric is worse (`better: down`, the default) or better.
    pub higher_is_worse: bool,
    /// How long a limit must be exceeded before it counts (`for`).
    pub hold: Millis,
    pub on_breach: Action,
}

impl Guardrail {
    /// One event is a breach, and no later one acquits: that is decided at once.
    pub fn is_zero_tolerance(&self) -> bool {
        self.statistic == Statistic::Count && self.limit == Some(0.0)
    }
}

/// How a guardrail's value is read off its signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// Quantile level in parts per million (p95 is 950,000) of a distribution.
    Quantile { ppm: u32 },
    /// Hits per observation, of a rate or of abandonment.
    Share,
    /// Events per exposed unit.
    PerUnit,
    /// Events.
    Count,
    /// Mean of a value.
    Mean,
    /// Exposures.
    Exposures,
}

/// How far a bucket may exceed the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Margin {
    /// 0.1 is 10% of the baseline's value.
    Relative(f64),
    /// In the metric's own unit (ms, or a share: 0.005 is 0.5pp).
    Absolute(f64),
}

/// How the false-alarm budget is shared by all hypotheses (guardrail, bucket).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correction {
    /// Equal shares, for good.
    Bonferroni,
    /// Equal shares; what has tripped leaves its share to the others.
    Holm,
    /// As Holm; and what has tripped in all units leaves its share to its segments, and these theirs to it.
    Hierarchical,
    /// Each hypothesis has the whole budget.
    None,
}

/// How `max_increase` and `stop_on_negative` weigh evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Anytime-valid tests on every pane.
    Sequential,
    /// Posterior probability of harm on every pane. It promises nothing about false alarms.
    Bayesian,
    /// One look, when the experiment ends.
    FixedHorizon,
}

/// A check of the data itself.
#[derive(Clone, Debug, PartialEq)]
pub struct QualityCheck {
    pub kind: QualityKind,
    pub action: Action,
}

impl QualityCheck {
    /// See [`Guardrail::is_zero_tolerance`].
    pub fn is_zero_tolerance(&self) -> bool {
        matches!(self.kind, QualityKind::Ineligible { max } if max == 0.0)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum QualityKind {
    Srm { alpha: f64 },
    VolumeParity { max_gap: f64 },
    MixedAssignment { max: f64 },
    Ineligible { max: f64 },
    Missing { fields: Vec<MissingField>, max: f64 },
    SchemaViolations { max: f64 },
    Silence { after: Millis },
}

/// A field that events should carry.
#[derive(Clone, Debug, PartialEq)]
pub struct MissingField {
    pub source: Source,
    /// As the rule names it.
    pub pointer: String,
    pub field: FieldId,
}

impl QualityKind {
    /// The key of the rule file's `quality` section, and the `guardrail` of its decisions.
    pub fn name(&self) -> &'static str {
        match self {
            QualityKind::Srm { .. } => "srm",
            QualityKind::VolumeParity { .. } => "volume_parity",
            QualityKind::MixedAssignment { .. } => "mixed_assignment",
            QualityKind::Ineligible { .. } => "ineligible",
            QualityKind::Missing { .. } => "missing",
            QualityKind::SchemaViolations { .. } => "schema_violations",
            QualityKind::Silence { .. } => "silence",
        }
    }
}

/// Bounds and spans of the engine, the same for all experiments.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Length of a pane; every window is a whole number of panes.
    pub pane: Millis,
    /// A record this far behind its partition's watermark is still counted.
    pub lateness: Millis,
    /// A partition without records for this long stops holding the others back.
    pub idle_after: Millis,
    /// Event-time span in which ids are remembered.
    pub dedupe_horizon: Millis,
    /// Ids remembered per partition at most.
    pub dedupe_max: usize,
    /// Workflows open per partition at most.
    pub workflows_max: usize,
    /// Assignments (a unit in an experiment) remembered per partition at most; and, apart from them, first hits and sums of units.
    pub units_max: usize,
    /// Events per partition that wait for their unit's exposure at most, each for up to `lateness` of event time.
    pub waiting_max: usize,
    /// Panes that one partition may run ahead of the slowest live one.
    pub max_skew_panes: i64,
    /// Bytes that panes may take that wait for the slowest partition; beyond that none runs ahead by more than a pane.
    pub ahead_max: usize,
    pub shared_cause: SharedCause,
    pub blast_radius: BlastRadius,
}

/// Experiments that the machine rolls back by itself, at most.
#[derive(Clone, Debug, PartialEq)]
pub struct BlastRadius {
    /// 0: as many as there are.
    pub experiments: usize,
    /// Within this span of event time.
    pub within: Millis,
}

impl Default for BlastRadius {
    fn default() -> Self {
        BlastRadius { experiments: 20, within: 600_000 }
    }
}

/// When breaches of several experiments are taken for one fault.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedCause {
    /// In so many experiments at least, and in at least this share (0 to 1) of those that run.
    pub experiments: usize,
    pub share: f64,
    /// Within this span of event time.
    pub within: Millis,
}

impl Default for SharedCause {
    fn default() -> Self {
        SharedCause { experiments: 3, share: 0.02, within: 60_000 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            pane: 1_000,
            lateness: 30_000,
            idle_after: 5_000,
            dedupe_horizon: 600_000,
            dedupe_max: 1_000_000,
            workflows_max: 1_000_000,
            units_max: 20_000_000,
            waiting_max: 20_000,
            max_skew_panes: 600,
            ahead_max: 128 << 20,
            shared_cause: SharedCause::default(),
            blast_radius: BlastRadius::default(),
        }
    }
}
