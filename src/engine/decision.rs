//! What the Judge says: decisions, notices about earlier decisions, and entries of the execution log.

use super::stats::{counts, means, rates, starts};
use super::time::Millis;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The four verdicts, the same words everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Evidence that the margin holds.
    Safe,
    /// Not enough evidence either way.
    Watching,
    /// Evidence that it does not hold.
    Breach,
    /// Nothing, or stale.
    NoData,
}

impl Verdict {
    pub const ALL: [Verdict; 4] = [Verdict::Safe, Verdict::Watching, Verdict::Breach, Verdict::NoData];

    /// As it is serialised.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Safe => "safe",
            Verdict::Watching => "watching",
            Verdict::Breach => "breach",
            Verdict::NoData => "no_data",
        }
    }

    /// Worst last: safe, watching, no_data, breach.
    pub fn badness(self) -> u8 {
        match self {
            Verdict::Safe => 0,
            Verdict::Watching => 1,
            Verdict::NoData => 2,
            Verdict::Breach => 3,
        }
    }
}

/// What is done about a breach, mildest first: the derived order is the rank (`kill` outranks `rollback` …).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Gates stop saying "go"; nothing is undone.
    Hold,
    Notify,
    Page,
    Pause,
    Rollback,
    Kill,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Hold => "hold",
            Action::Notify => "notify",
            Action::Page => "page",
            Action::Pause => "pause",
            Action::Rollback => "rollback",
            Action::Kill => "kill",
        }
    }

    /// Whether it changes what users get, and is therefore withheld in [`Mode::Observe`].
    pub fn intervenes(self) -> bool {
        self >= Action::Pause
    }
}

/// Whether interventions are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Observe,
    Enforce,
}

/// Which limit keeps a decision from being carried out until a person acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// `actions.rate_limit` of the rule.
    RateLimit,
    /// `engine.blast_radius` of the configuration.
    BlastRadius,
    /// The rollback that it would follow was held back.
    Rollback,
}

impl HeldBy {
    pub fn name(self) -> &'static str {
        match self {
            HeldBy::RateLimit => "rate_limit",
            HeldBy::BlastRadius => "blast_radius",
            HeldBy::Rollback => "rollback",
        }
    }
}

/// One decision, as printed by `backtest`, kept in the execution log and sent inside webhooks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// `d-` and 20 hex digits: see [`decision_id`].
    pub decision: String,
    /// Event time: the end of the pane that tripped. Where a single event trips, its own time, or, if it came late, the beginning of the
    /// pane that counts it.
    #[serde(with = "rfc3339")]
    pub decided_at: Millis,
    /// Empty for a shared cause, which is about several.
    pub experiment: String,
    pub revision: u32,
    pub phase: u32,
    /// Empty for decisions about the whole experiment (checks of the data).
    pub bucket: String,
    /// Name of the guardrail, or key of the quality check, or `operator`.
    pub guardrail: String,
    /// `limit`, `max_increase`, `stop_on_negative`, a quality key, `operator`, `confirm_within`, `undone` or `shared_cause`.
    pub criterion: String,
    pub verdict: Verdict,
    pub action: Action,
    pub mode: Mode,
    pub baseline_value: Option<f64>,
    pub bucket_value: Option<f64>,
    pub unit: String,
    /// Relative change of the bucket against the baseline: 0.233 is +23.3%.
    pub change: Option<f64>,
    /// Anytime-valid interval of what the margin bounds.
    pub interval: Option<[f64; 2]>,
    /// The limit or margin that was breached, in the metric's own unit (or relative, for a relative margin).
    pub margin: Option<f64>,
    pub alpha: Option<f64>,
    /// Natural logarithm of the e-value.
    pub log_e_value: Option<f64>,
    /// Name of the test, as `guardraild stats` knows it; `count` where a bare count decides.
    pub test: String,
    /// When the breach began. Of a limit, the start of the first pane since which the value has been beyond it without a break; against the
    /// baseline, the start of the test that is most convincing.
    #[serde(with = "rfc3339")]
    pub since: Millis,
    /// Units exposed to the bucket so far.
    pub exposed_units: u64,
    pub evidence: Evidence,
    /// One sentence for people.
    pub reason: String,
    /// The segment whose units show it; absent where all units of the bucket do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// Arming epoch: how often an operator has re-armed the experiment.
    pub epoch: u32,
    /// A decision that has already done as much for this bucket, in force or ahead of its pane: this one is logged and not delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covered_by: Option<String>,
    /// What kept it from being carried out: see [`HeldBy`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<HeldBy>,
    /// Who asked, when a person did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The decision about the cause that this one shares with other experiments: whoever hears of that does not hear of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_cause: Option<String>,
}

impl Decision {
    /// It follows from what exposures did after an earlier one.
    pub fn is_follow_up(&self) -> bool {
        matches!(self.criterion.as_str(), "confirm_within" | "undone")
    }
}

/// Sufficient statistics of a decision, enough to recompute it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Evidence {
    /// `s` of `n` values exceed the limit, where the quantile allows the share `q0_ppm` (parts per million); `side` is the side tested.
    /// Both counts are divided by the design effect `deff`.
    Exceedance {
        side: String,
        s: u64,
        n: u64,
        q0_ppm: u32,
        #[serde(default = "one", skip_serializing_if = "is_one")]
        deff: f64,
    },
    /// `x` hits among `n` observations, tested against `p0`; both are divided by the design effect `deff`.
    Threshold {
        n: u64,
        x: u64,
        p0: f64,
        #[serde(default = "one", skip_serializing_if = "is_one")]
        deff: f64,
    },
    /// Hits by stratum (already divided by the design effect), where `rho` times the baseline's rate plus `d` is tolerated. `sign` is
    /// there for posteriors and single looks: -1 when the rate should be high.
    Rates {
        strata: Vec<rates::Stratum>,
        rho: f64,
        d: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sign: Option<f64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alpha: Option<f64>,
    },
    /// A rate's test begun anew at several starts: the hits from each on, and its share of the stake.
    Starts { starts: Vec<starts::Start>, rho: f64, d: f64 },
    /// Histograms, pairs of a bin's upper edge in thousandths and its count: `hist_t`'s quantile may be `1 + r` times that of `hist_c`
    /// plus `d` thousandths. Where a higher quantile is better, `hist_c` is the bucket. Bins that do not matter are added up.
    Quantiles {
        hist_c: Vec<(u64, u64)>,
        hist_t: Vec<(u64, u64)>,
        p_ppm: u32,
        r_ppm: i64,
        d: i64,
        sig_digits: u8,
        deff_c: f64,
        deff_t: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alpha: Option<f64>,
    },
    /// Sums of the bucket `t` and the baseline `c` by period of allocation.
    Means {
        strata: Vec<MeanStratum>,
        sign: f64,
        rho: f64,
        d: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alpha: Option<f64>,
        min_n: u64,
    },
    /// Units exposed for the first time, and designed shares, by period of allocation.
    Srm { strata: Vec<SrmStratum> },
    /// Events of the bucket and of the baseline by stratum, and the index of dispersion `phi`.
    Counts { strata: Vec<counts::Stratum>, r: f64, phi: f64, alpha: f64 },
    /// `x` events where `mu0` were allowed.
    Poisson { x: u64, mu0: f64 },
    /// `count` experiments in breach, of `live` that run, where `allowed` are no sign of a shared cause.
    SharedCause { count: u64, allowed: u64, live: u64, experiments: Vec<String> },
    /// `count` events where at most `allowed` are tolerated.
    Count { count: u64, allowed: u64 },
    /// Refused records among those that name the experiment.
    Share { n: u64, x: u64, max: f64 },
    /// Milliseconds without a record.
    Silence { silent_ms: Millis },
    /// Exposures of the bucket per second, before the action and at the end of the wait.
    Exposures { before_per_s: f64, now_per_s: f64 },
    /// An operator's request.
    Operator { reason: String },
}

fn one() -> f64 {
    1.0
}

fn is_one(deff: &f64) -> bool {
    *deff == 1.0
}

/// Sums of both arms of one period of allocation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanStratum {
    pub t: MeanSums,
    pub c: MeanSums,
}

/// Sums over `n` units of y, and of a covariate x where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanSums {
    pub n: u64,
    pub sy: f64,
    pub syy: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sx: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sxx: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sxy: Option<f64>,
}

impl From<MeanSums> for means::Arm {
    fn from(s: MeanSums) -> Self {
        let covariate = s.sx.zip(s.sxx).zip(s.sxy).map(|((sx, sxx), sxy)| means::Covariate { sx, sxx, sxy });
        means::Arm { n: s.n, shift: 0.0, sy: s.sy, syy: s.syy, covariate }
    }
}

impl From<means::Arm> for MeanSums {
    /// Of raw sums: without a shift.
    fn from(arm: means::Arm) -> Self {
        let of = |f: fn(means::Covariate) -> f64| arm.covariate.map(f);
        MeanSums { n: arm.n, sy: arm.sy, syy: arm.syy, sx: of(|c| c.sx), sxx: of(|c| c.sxx), sxy: of(|c| c.sxy) }
    }
}

/// First exposures of one period of allocation, by bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SrmStratum {
    pub counts: Vec<u64>,
    pub weights: Vec<f64>,
}

/// A later word on an earlier decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    pub kind: NoticeKind,
    pub at: Millis,
    pub decision: Decision,
    /// One sentence for people.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// Exposures to the bucket have stopped.
    Confirmed,
    /// An operator re-armed the guardrail.
    Resolved,
    /// An operator holds the experiment: whoever was paged need not be paged again.
    Held,
}

impl NoticeKind {
    pub fn name(self) -> &'static str {
        match self {
            NoticeKind::Confirmed => "confirmed",
            NoticeKind::Resolved => "resolved",
            NoticeKind::Held => "held",
        }
    }
}

/// An entry of the execution log. Decisions and notices make their own entries.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogEntry {
    #[serde(with = "rfc3339")]
    pub at: Millis,
    pub experiment: String,
    pub kind: LogKind,
    pub author: Option<String>,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// Addresses that belong to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogKind {
    Launch,
    Phase,
    /// The baseline has no traffic beyond the holdback any more.
    FullRollout,
    /// The full rollout has been watched for as long as the rule says: nothing is judged any more.
    WatchOver,
    /// The end date has come.
    Ended,
    Decision,
    Confirmed,
    Resolved,
    /// A breach that an operator's hold kept from acting.
    Withheld,
    /// A breach in a segment of a rule whose segments only show.
    Exploratory,
    Operator,
    /// What people note. The next five say what a note is for: the readout has a place for each.
    Annotation,
    /// Something went wrong.
    Incident,
    /// What was done about it.
    Mitigation,
    /// What the experiment has taught.
    Learning,
    /// What is to be done.
    Next,
    /// A document, a ticket, a recording.
    Artifact,
    Delivery,
    /// What a restart could not take up from a checkpoint, and what that means.
    Recovery,
    /// The rules were changed.
    Rules,
}

impl LogKind {
    pub const ALL: [LogKind; 20] = [
        LogKind::Launch,
        LogKind::Phase,
        LogKind::FullRollout,
        LogKind::WatchOver,
        LogKind::Ended,
        LogKind::Decision,
        LogKind::Confirmed,
        LogKind::Resolved,
        LogKind::Withheld,
        LogKind::Exploratory,
        LogKind::Operator,
        LogKind::Annotation,
        LogKind::Incident,
        LogKind::Mitigation,
        LogKind::Learning,
        LogKind::Next,
        LogKind::Artifact,
        LogKind::Delivery,
        LogKind::Recovery,
        LogKind::Rules,
    ];

    pub fn name(self) -> &'static str {
        match self {
            LogKind::Launch => "launch",
            LogKind::Phase => "phase",
            LogKind::FullRollout => "full_rollout",
            LogKind::WatchOver => "watch_over",
            LogKind::Ended => "ended",
            LogKind::Decision => "decision",
            LogKind::Confirmed => "confirmed",
            LogKind::Resolved => "resolved",
            LogKind::Withheld => "withheld",
            LogKind::Exploratory => "exploratory",
            LogKind::Operator => "operator",
            LogKind::Annotation => "annotation",
            LogKind::Incident => "incident",
            LogKind::Mitigation => "mitigation",
            LogKind::Learning => "learning",
            LogKind::Next => "next",
            LogKind::Artifact => "artifact",
            LogKind::Delivery => "delivery",
            LogKind::Recovery => "recovery",
            LogKind::Rules => "rules",
        }
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<LogKind> {
        LogKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether people write entries of this kind.
    pub fn is_note(self) -> bool {
        matches!(
            self,
            LogKind::Annotation | LogKind::Incident | LogKind::Mitigation | LogKind::Learning | LogKind::Next | LogKind::Artifact
        )
    }
}

/// Which entries of an execution log are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// Only those with a higher sequence number.
    pub after: i64,
    /// Only those from this instant on, ms since the epoch.
    pub since: Millis,
    /// Only those of these kinds; of all, where there is none.
    pub kinds: Vec<LogKind>,
    pub limit: u32,
}

impl LogQuery {
    /// All entries, up to `limit`.
    pub fn first(limit: u32) -> LogQuery {
        LogQuery { after: 0, since: Millis::MIN, kinds: Vec::new(), limit }
    }
}

/// All that a step of the engine says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    pub decisions: Vec<Decision>,
    pub notices: Vec<Notice>,
    pub log: Vec<LogEntry>,
}

impl Output {
    pub fn is_empty(&self) -> bool {
        self.decisions.is_empty() && self.notices.is_empty() && self.log.is_empty()
    }
}

/// Id of a decision: the same facts give the same id, so that a replay after a crash cannot act twice.
///
/// `part` tells apart the follow-ups of one guardrail (`limit`, `unconfirmed/kill`, …).
pub fn decision_id(experiment: &str, revision: u32, bucket: &str, guardrail: &str, epoch: u32, part: &str) -> String {
    let mut hash = Sha256::new();
    for text in [experiment, bucket, guardrail, part] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(revision.to_le_bytes());
    hash.update(epoch.to_le_bytes());
    let hex: String = hash.finalize().iter().take(10).map(|b| format!("{b:02x}")).collect();
    format!("d-{hex}")
}

/// Event time as RFC 3339 in UTC, with milliseconds where there are any.
pub mod rfc3339 {
    use super::{Millis, Timestamp};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(ts: &Millis, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Timestamp(*ts))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<jiff::Timestamp>().map(|ts| ts.as_millisecond()).map_err(D::Error::custom)
    }
}

/// RFC 3339 in UTC.
pub struct Timestamp(pub Millis);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(ts) => ts.fmt(f),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}
