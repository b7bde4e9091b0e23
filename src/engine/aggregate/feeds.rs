//! Which signals of which experiments an event feeds: plans turned round, so that a record costs a look-up and no search.

use crate::engine::eligible::Eligible;
use crate::engine::event::{Event, Kind, Scalar};
use crate::engine::pane::{CellId, Seen};
use crate::engine::plan::{Hit, Match, MissingField, Plan, QualityCheck, Signal, Source, Unit, Value};
use crate::engine::quality::BucketQuality;
use crate::engine::shape::Shape;
use crate::engine::time::Millis;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// One experiment as the Aggregator sees it. What all of its records are asked comes first, so that it is a few lines of memory: there may
/// be thousands of experiments, and each record is of another one.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Feeds {
    /// When records count.
    runs: Range<Millis>,
    /// [`Shape::whole`].
    pub whole: u64,
    /// The plan's first cell, and how many each bucket has.
    first: CellId,
    width: CellId,
    /// Some signal's observation is the unit.
    pub per_user: bool,
    /// Units have profiles.
    pub sliced: bool,
    /// There are fields that should not be missing, metrics of retention, funnels.
    pub looks: bool,
    pub returns: bool,
    pub follows: bool,
    /// Where in `fed` the signals of each kind of event end.
    until: [u16; FIXED],
    /// Signals fed by requests, tickets, flags and outcomes.
    fed: SmallVec<[Fed; 6]>,
    /// And by other events, each with its name.
    other: Vec<(String, Fed)>,
    /// Abandonment signals.
    pub workflow: Vec<u16>,
    /// By signal: some guardrail compares it with the baseline.
    pub compared: Vec<bool>,
    /// Of the `missing` check: fields, and the events that should carry them.
    missing: Vec<MissingField>,
    /// Not one ineligible exposure is allowed.
    pub none_ineligible: bool,
    pub plan: Arc<Plan>,
    pub shape: Arc<Shape>,
}

/// Kinds of events whose signals are found without a look at their name.
const FIXED: usize = 4;

/// A signal that an event may feed.
#[derive(Clone, Copy, Debug)]
pub struct Fed {
    /// Index into [`Plan::signals`].
    pub signal: u16,
    pub what: What,
    /// It decides by a single event.
    pub urgent: bool,
    /// Its observation is the unit.
    pub per_user: bool,
}

/// What of an event a signal takes, where the plan need not be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The latency of every request, as a distribution.
    Latency,
    /// Whether a request is an error, of every request.
    Error,
    /// What the plan says.
    Planned,
}

impl What {
    fn of(signal: &Signal) -> What {
        match signal {
            Signal::Distribution { source, value: Value::Latency } if source.filter.is_empty() => What::Latency,
            Signal::Rate { source, hit: Hit::Error, unit: Unit::Event } if source.filter.is_empty() => What::Error,
            _ => What::Planned,
        }
    }
}

impl Feeds {
    /// `first` is the plan's first cell.
    pub fn new(plan: &Arc<Plan>, shape: Arc<Shape>, first: CellId) -> Feeds {
        let (mut of, mut other, mut workflow): ([Vec<Fed>; FIXED], _, _) = (Default::default(), Vec::new(), Vec::new());
        for (index, signal) in plan.signals.iter().enumerate() {
            let urgent = plan.guardrails.iter().any(|g| g.signal == index && g.is_zero_tolerance());
            let fed = Fed { signal: index as u16, what: What::of(signal), urgent, per_user: signal.is_per_user() };
            match signal.source().map(|s| s.event.as_str()) {
                None if matches!(signal, Signal::Abandonment { .. }) => workflow.push(index as u16),
                None => {}
                Some("request") => of[0].push(fed),
                Some("ticket") => of[1].push(fed),
                Some("compliance_flag") => of[2].push(fed),
                Some("outcome") => of[3].push(fed),
                Some(name) => other.push((name.to_owned(), fed)),
            }
        }
        let mut until = [0; FIXED];
        let mut fed = SmallVec::new();
        for (until, own) in until.iter_mut().zip(of) {
            fed.extend(own);
            *until = fed.len() as u16;
        }
        let compared = |signal| plan.questions().any(|g| g.signal == signal && g.max_increase.is_some());
        let missing = plan.missing().map(|(fields, _)| fields.to_vec());
        Feeds {
            runs: plan.starts.unwrap_or(Millis::MIN)..plan.ends.unwrap_or(Millis::MAX),
            whole: shape.whole,
            first,
            width: plan.traffic_cell(1) as CellId,
            per_user: plan.signals.iter().any(Signal::is_per_user),
            sliced: plan.segments.is_some(),
            looks: missing.is_some(),
            returns: !plan.retention.is_empty(),
            follows: !plan.funnels.is_empty(),
            until,
            fed,
            other,
            workflow,
            compared: (0..plan.signals.len()).map(compared).collect(),
            missing: missing.unwrap_or_default(),
            none_ineligible: plan.quality.iter().any(QualityCheck::is_zero_tolerance),
            plan: Arc::clone(plan),
            shape,
        }
    }

    /// Whether records of that time count.
    pub fn runs_at(&self, at: Millis) -> bool {
        self.runs.contains(&at)
    }

    /// As [`Plan::traffic_cell`], among the cells of all plans.
    pub fn traffic_cell(&self, bucket: u8) -> CellId {
        self.first + CellId::from(bucket) * self.width
    }

    /// As [`Plan::signal_cell`], among the cells of all plans.
    pub fn signal_cell(&self, bucket: u8, signal: u16) -> CellId {
        self.traffic_cell(bucket) + 1 + CellId::from(signal)
    }

    /// What a unit's first exposure says of its assignment and eligibility; `target` is experiment and
    /// bucket, `age` that of its cohort.
    pub fn enrol(&self, open: &mut Seen, target: (u32, u8), event: &Event<'_>, age: u32, eligible: Eligible<'_>) {
        let place = self.plan.assignment.as_ref().and_then(|assignment| assignment.place(event));
        if place.is_some() || eligible == Eligible::Unknown {
            let quality = open.quality(target.0).bucket(usize::from(target.1));
            quality.placed.extend(place.map(|place| (age, place)));
            quality.unknown_units += u64::from(eligible == Eligible::Unknown);
        }
    }

    /// Counts the fields that an event should carry, and its unit's first event; `heard` is the age of the unit's cohort.
    pub fn look(&self, quality: &mut BucketQuality, event: &Event<'_>, heard: Option<u32>) {
        quality.heard.extend(heard);
        for (index, wanted) in self.missing.iter().enumerate() {
            if wanted.source.event == event.kind.name() && passes(&wanted.source, event) {
                let lacking = quality.field(index);
                lacking.n += 1;
                lacking.x += u64::from(event_field(event, wanted.field).is_none());
            }
        }
    }

    /// Signals that an event of this kind may feed.
    pub fn signals<'s>(&'s self, kind: &'s Kind<'_>) -> impl Iterator<Item = Fed> + 's {
        let fixed = |of: usize| {
            (&self.fed[of.checked_sub(1).map_or(0, |before| usize::from(self.until[before]))..usize::from(self.until[of])], [].as_slice())
        };
        let (fixed, other) = match kind {
            Kind::Request { .. } => fixed(0),
            Kind::Ticket => fixed(1),
            Kind::ComplianceFlag { .. } => fixed(2),
            Kind::Outcome { .. } => fixed(3),
            Kind::Phase { .. } | Kind::Annotation { .. } => ([].as_slice(), [].as_slice()),
            Kind::Exposure | Kind::Workflow { .. } | Kind::Other { .. } => ([].as_slice(), self.other.as_slice()),
        };
        fixed.iter().copied().chain(other.iter().filter(|(name, _)| *name == kind.name()).map(|(_, fed)| *fed))
    }
}

/// Whether the event passes the signal's `where`.
pub fn passes(source: &Source, event: &Event<'_>) -> bool {
    source.filter.iter().all(|(field, wanted)| match (event_field(event, *field), wanted) {
        (Some(Scalar::Bool(a)), Match::Bool(b)) => a == b,
        (Some(Scalar::Number(a)), Match::Number(b)) => a == b,
        (Some(Scalar::Text(a)), Match::Text(b)) => a == b,
        _ => false,
    })
}

pub fn event_field<'e, 'a>(event: &'e Event<'a>, field: u16) -> Option<&'e Scalar<'a>> {
    event.fields.iter().find(|(id, _)| *id == field).map(|(_, value)| value)
}

/// The value that a distribution or moments signal takes from the event.
pub fn value(from: &Value, event: &Event<'_>) -> Option<f64> {
    match (from, &event.kind) {
        (Value::Latency, Kind::Request { latency_ms, .. }) => *latency_ms,
        (Value::Outcome, Kind::Outcome { value, .. }) => Some(*value),
        (Value::Covariate, Kind::Outcome { covariate, .. }) => *covariate,
        (Value::Field(field), _) => match event_field(event, *field)? {
            Scalar::Number(x) => Some(*x),
            Scalar::Bool(b) => Some(f64::from(u8::from(*b))),
            Scalar::Text(_) => None,
        },
        _ => None,
    }
}

/// Whether the event is a hit of a rate.
pub fn hit(what: &Hit, event: &Event<'_>) -> bool {
    match (what, &event.kind) {
        (Hit::Error, Kind::Request { error, .. }) => *error,
        (Hit::Outcome, Kind::Outcome { value, .. }) => *value != 0.0,
        (Hit::Field(field), _) => match event_field(event, *field) {
            Some(Scalar::Bool(b)) => *b,
            Some(Scalar::Number(x)) => *x != 0.0,
            _ => false,
        },
        _ => false,
    }
}
