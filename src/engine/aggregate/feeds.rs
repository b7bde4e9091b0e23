//! Which signals of which experiments an event feeds: plans turned round, so that a record costs a look-up and no search.

use crate::engine::eligible::Eligible;
use crate::engine::event::{Event, Kind, Scalar};
use crate::engine::pane::{CellId, Seen};
use crate::engine::plan::{Hit, Match, MissingField, Plan, QualityCheck, Signal, Source, Value};
use crate::engine::quality::BucketQuality;
use crate::engine::shape::Shape;
use std::sync::Arc;

/// One experiment as the Aggregator sees it.
#[derive(Clone, Debug)]
pub struct Feeds {
    pub plan: Arc<Plan>,
    pub shape: Arc<Shape>,
    /// The plan's first cell.
    first: CellId,
    /// Signals fed by requests, tickets, flags, outcomes and other events; indices into `plan.signals`.
    request: Vec<u16>,
    ticket: Vec<u16>,
    flag: Vec<u16>,
    outcome: Vec<u16>,
    other: Vec<(String, u16)>,
    /// Abandonment signals.
    pub workflow: Vec<u16>,
    /// Signals that decide by a single event.
    pub urgent: Vec<u16>,
    /// By signal: some guardrail compares it with the baseline.
    pub compared: Vec<bool>,
    /// Some signal's observation is the unit.
    pub per_user: bool,
    /// Of the `missing` check: fields, and the events that should carry them.
    pub missing: Option<Vec<MissingField>>,
    /// Not one ineligible exposure is allowed.
    pub none_ineligible: bool,
}

impl Feeds {
    /// `first` is the plan's first cell.
    pub fn new(plan: &Arc<Plan>, shape: Arc<Shape>, first: CellId) -> Feeds {
        let mut feeds = Feeds {
            plan: Arc::clone(plan),
            shape,
            first,
            request: Vec::new(),
            ticket: Vec::new(),
            flag: Vec::new(),
            outcome: Vec::new(),
            other: Vec::new(),
            workflow: Vec::new(),
            urgent: Vec::new(),
            compared: vec![false; plan.signals.len()],
            per_user: plan.signals.iter().any(Signal::is_per_user),
            missing: plan.missing().map(|(fields, _)| fields.to_vec()),
            none_ineligible: plan.quality.iter().any(QualityCheck::is_zero_tolerance),
        };
        for guardrail in plan.guardrails.iter().filter(|g| g.max_increase.is_some()) {
            feeds.compared[guardrail.signal] = true;
        }
        for (index, signal) in plan.signals.iter().enumerate() {
            let index = index as u16;
            match signal.source().map(|s| s.event.as_str()) {
                None if matches!(signal, Signal::Abandonment { .. }) => feeds.workflow.push(index),
                None => {}
                Some("request") => feeds.request.push(index),
                Some("ticket") => feeds.ticket.push(index),
                Some("compliance_flag") => feeds.flag.push(index),
                Some("outcome") => feeds.outcome.push(index),
                Some(name) => feeds.other.push((name.to_owned(), index)),
            }
        }
        feeds.urgent = plan.guardrails.iter().filter(|g| g.is_zero_tolerance()).map(|g| g.signal as u16).collect();
        feeds
    }

    pub fn traffic_cell(&self, bucket: usize) -> CellId {
        self.first + self.plan.traffic_cell(bucket) as CellId
    }

    pub fn signal_cell(&self, bucket: usize, signal: usize) -> CellId {
        self.first + self.plan.signal_cell(bucket, signal) as CellId
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
        for (index, wanted) in self.missing.iter().flatten().enumerate() {
            if wanted.source.event == event.kind.name() && passes(&wanted.source, event) {
                let lacking = quality.field(index);
                lacking.n += 1;
                lacking.x += u64::from(event_field(event, wanted.field).is_none());
            }
        }
    }

    /// Signals that an event of this kind may feed.
    pub fn signals<'s>(&'s self, kind: &'s Kind<'_>) -> impl Iterator<Item = u16> + 's {
        let (fixed, named) = match kind {
            Kind::Request { .. } => (self.request.as_slice(), None),
            Kind::Ticket => (self.ticket.as_slice(), None),
            Kind::ComplianceFlag { .. } => (self.flag.as_slice(), None),
            Kind::Outcome { .. } => (self.outcome.as_slice(), None),
            Kind::Phase { .. } | Kind::Annotation { .. } => ([].as_slice(), None),
            Kind::Exposure | Kind::Workflow { .. } | Kind::Other { .. } => ([].as_slice(), Some(kind.name())),
        };
        let other = self.other.iter().filter(move |(name, _)| named == Some(name.as_str()));
        fixed.iter().copied().chain(other.map(|(_, index)| *index))
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
