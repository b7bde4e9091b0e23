//! A decoded record: what the canonical event format (or a mapping onto it) says, borrowed from the record's bytes.

use super::time::Millis;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::borrow::Cow;

/// Text of a record: borrowed unless the JSON string held an escape.
pub type Text<'a> = Cow<'a, str>;

/// One decoded record. Written down only while it waits for its unit's exposure; its attributes are not, as those of the exposure count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event<'a> {
    /// Event time.
    pub ts: Millis,
    /// Unique id inside the dedupe horizon.
    pub id: Option<Text<'a>>,
    pub tenant_id: Option<Text<'a>>,
    pub user_id: Option<Text<'a>>,
    /// Present on exposures, control events and stamped events.
    pub experiment: Option<Text<'a>>,
    /// Present on exposures and stamped events.
    pub bucket: Option<Text<'a>>,
    /// Of records that name their bucket, if a live rule asks for any.
    #[serde(skip)]
    pub attributes: Vec<(Text<'a>, Text<'a>)>,
    pub kind: Kind<'a>,
    /// Values of the fields that live rules ask for by JSON Pointer, in the order of [`super::plan::FieldTable`] ids;
    /// a field that the record lacks, or that is an object, array or null, is absent.
    pub fields: SmallVec<[(FieldId, Scalar<'a>); 2]>,
}

/// Index into the [`super::plan::FieldTable`] shared by decoder and plans.
pub type FieldId = u16;

/// A JSON scalar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Scalar<'a> {
    Bool(bool),
    Number(f64),
    Text(Text<'a>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Kind<'a> {
    Exposure,
    Request {
        /// Milliseconds, finite and >= 0; absent where the producer left it out (missingness is watched, not refused).
        latency_ms: Option<f64>,
        /// `false` where the producer left it out.
        error: bool,
    },
    Workflow {
        step: Step,
        workflow: Text<'a>,
        workflow_id: Text<'a>,
    },
    Ticket,
    ComplianceFlag {
        flag: Text<'a>,
    },
    Outcome {
        metric: Text<'a>,
        /// `true` is 1, `false` is 0.
        value: f64,
        covariate: Option<f64>,
    },
    Phase {
        phase: PhaseRef<'a>,
        weights: Vec<(Text<'a>, f64)>,
    },
    Annotation {
        text: Text<'a>,
        author: Option<Text<'a>>,
    },
    /// An event of the organisation's own.
    Other {
        name: Text<'a>,
    },
}

impl Kind<'_> {
    /// The `event` field that this kind is written as.
    pub fn name(&self) -> &str {
        match self {
            Kind::Exposure => "exposure",
            Kind::Request { .. } => "request",
            Kind::Workflow { step: Step::Started, .. } => "workflow_started",
            Kind::Workflow { step: Step::Completed, .. } => "workflow_completed",
            Kind::Workflow { step: Step::Abandoned, .. } => "workflow_abandoned",
            Kind::Ticket => "ticket",
            Kind::ComplianceFlag { .. } => "compliance_flag",
            Kind::Outcome { .. } => "outcome",
            Kind::Phase { .. } => "phase",
            Kind::Annotation { .. } => "annotation",
            Kind::Other { name } => name,
        }
    }
}

/// A step of a workflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Started,
    Completed,
    Abandoned,
}

/// A phase, by its index in the rule's `rollout.phases` or by its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PhaseRef<'a> {
    Index(u32),
    Name(Text<'a>),
}
