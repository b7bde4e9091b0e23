//! Rule files: YAML in, checked plans out, or located diagnostics.

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

/// What an action's entry names its receiver as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Webhook,
    Pagerduty,
    Slack,
}
