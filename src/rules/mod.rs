//! Rule files: YAML in, checked plans out, or located diagnostics.
//!
//! The way of a file: [`load`] finds and reads it; `yaml` makes a tree that knows its places; `shape` holds the tree against the
//! tables of `keys`; `lower` and its parts (`custom` metrics, `routes`, `guardrails`, `eligibility`, `quality`) make the [`RuleSet`];
//! `sources` makes what foreign layouts are read by; `sense`, `life` and `reach` advise, and `together` looks at all files.
//! Every stage reports all it finds. [`schema`] prints the same tables as a JSON Schema for editors.

mod change;
pub mod codes;
mod custom;
pub mod diagnostic;
mod eligibility;
mod find;
mod guardrails;
pub(crate) mod keys;
mod life;
mod load;
mod lower;
mod metric;
mod planning;
mod quality;
pub(crate) mod quantity;
mod reach;
#[cfg(test)]
pub(crate) mod reference;
pub mod reload;
mod rollout;
mod routes;
mod segments;
mod sense;
mod sources;
mod together;

pub mod schema;
pub(crate) mod shape;
pub(crate) mod yaml;

pub use diagnostic::{Diagnostic, Severity};
pub use find::{is_test, test_files};
pub use load::{Candidate, Loaded, Parsed, Used, assemble_plain, candidates, load, parse_str};
pub(crate) use metric::BUILT_IN;
pub use planning::Planning;
pub use together::{checked, unfit};

use crate::engine::decision::Action;
use crate::engine::plan::Plan;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// One checked rule file.
#[derive(Clone, Debug)]
pub struct RuleSet {
    pub plan: Arc<Plan>,
    /// Where each action goes.
    pub routes: BTreeMap<Action, Route>,
    /// The rule's `comms.runbook`, if any.
    pub runbook: Option<String>,
    /// The rule's `instrumentation.flag`, if any.
    pub flag: Option<Flag>,
    pub file: PathBuf,
}

/// The receiver of an action, by the name that `config/` defines.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub channel: Channel,
    pub endpoint: String,
    /// The rule's own body, handed on as it is.
    pub body: Option<serde_json::Value>,
}

/// The flag that an experiment runs by.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Flag {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The bucket that is served when in doubt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
}

/// What an action's entry names its receiver as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Webhook,
    Pagerduty,
    Slack,
}

#[cfg(test)]
mod tests;
