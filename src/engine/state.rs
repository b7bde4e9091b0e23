//! What people and controllers see of an experiment: the serialised form behind the API, the CLI and the dashboard.

use super::decision::{Action, Evidence, Mode, Verdict};
use super::time::Millis;
use serde::{Deserialize, Serialize};

/// Live state of one experiment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExperimentState {
    pub experiment: String,
    pub revision: u32,
    pub mode: Mode,
    pub phase: u32,
    /// Name of the phase, where the rule names phases.
    pub phase_name: Option<String>,
    /// The worst verdict of all guardrails: breach, then no_data, then watching, then safe.
    pub verdict: Verdict,
    /// A controller may go on: every guardrail safe or watching with fresh data, nothing held.
    pub go: bool,
    /// A controller must stop: some guardrail is breached with rollback or kill.
    pub stop: bool,
    /// One sentence for people: why not go, or why stop.
    pub reason: String,
    /// Data-quality or operator holds in force.
    pub holds: Vec<HoldState>,
    pub buckets: Vec<BucketState>,
    pub guardrails: Vec<GuardrailState>,
    /// Secondary metrics; empty in lists of all experiments.
    pub secondary: Vec<SecondaryState>,
    pub quality: Vec<QualityState>,
    pub data: DataState,
    /// Event time up to which the experiment has been judged, ms since the epoch; `null` before the first record.
    pub judged_to: Option<Millis>,
    /// Event time of the last record, ms since the epoch.
    pub last_record: Option<Millis>,
    /// Records accepted for, and refused in the name of, the experiment.
    pub records: u64,
    pub rejected: u64,
    /// Ids of decisions in force, newest last.
    pub decisions: Vec<String>,
    pub rollout: RolloutState,
    /// What each phase has seen, oldest first; empty in lists of all experiments.
    pub phases: Vec<PhaseState>,
    /// All phases together; `null` in lists of all experiments.
    pub whole_life: Option<PhaseState>,
    pub funnels: Vec<FunnelState>,
    pub retention: Vec<RetentionState>,
}

impl ExperimentState {
    /// What it says was true long ago: nothing is safe any more, and nobody may go on. A breach stays one.
    pub fn outdate(&mut self, reason: String) {
        self.go = false;
        for guardrail in self.guardrails.iter_mut().filter(|g| g.verdict == Verdict::Safe) {
            guardrail.verdict = Verdict::NoData;
        }
        if !self.stop && matches!(self.verdict, Verdict::Safe | Verdict::Watching) {
            self.verdict = Verdict::NoData;
            self.reason = reason;
        }
    }
}

/// How far the workflows of each bucket have come.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FunnelState {
    pub funnel: String,
    pub workflow: String,
    /// The limit, ms.
    pub within_ms: Millis,
    /// Names, in the order of the rule file.
    pub steps: Vec<String>,
    pub buckets: Vec<FunnelBucket>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FunnelBucket {
    pub bucket: String,
    /// All workflows so far.
    pub all: FunnelCounts,
    /// Those whose limit has passed: shares of them compare buckets fairly.
    pub matured: FunnelCounts,
}

/// Workflows, distinct by their id: each started counts under one of completed, completed late, abandoned, timed out and open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FunnelCounts {
    pub started: i64,
    /// Further starts under ids that had been started.
    pub restarted: i64,
    /// By step: workflows that reached it in time, in whatever order.
    pub reached: Vec<i64>,
    pub completed: i64,
    /// After the limit.
    pub completed_late: i64,
    /// Explicitly, and not completed afterwards.
    pub abandoned: i64,
    /// Neither, when the limit had passed.
    pub timed_out: i64,
    pub open: i64,
}

/// Units that came back on one day after their first exposure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RetentionState {
    pub metric: String,
    /// The 24 h that begin so many days after the first exposure.
    pub day: u32,
    pub buckets: Vec<RetentionBucket>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RetentionBucket {
    pub bucket: String,
    /// Units whose day is over.
    pub eligible: u64,
    /// Those of them that were active on it.
    pub active: u64,
    pub rate: Option<f64>,
}

/// Where the rollout stands, and what is planned.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RolloutState {
    pub stage: Stage,
    /// When the present phase began, and when its planned length is over, ms since the epoch.
    pub phase_since: Option<Millis>,
    pub phase_due: Option<Millis>,
    /// Its planned length is over: for information, nothing ramps by itself.
    pub phase_ready: bool,
    /// What is observed before is not judged.
    pub warming_until: Option<Millis>,
    /// Since when the baseline has had no traffic beyond the holdback.
    pub full_since: Option<Millis>,
    /// When the watch of the full rollout ends, where the rule says so.
    pub watched_until: Option<Millis>,
    pub holdback: f64,
    /// As the rule plans them.
    pub phases: Vec<PlannedPhase>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// No record yet.
    #[default]
    Planned,
    Running,
    /// The baseline has no traffic beyond the holdback.
    Full,
    /// The full rollout has been watched to its end.
    Done,
    /// The end date has come.
    Ended,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedPhase {
    pub name: String,
    /// Share of eligible traffic.
    pub traffic: f64,
    /// Planned length, ms.
    pub for_ms: Option<Millis>,
}

/// What one visit of a phase has seen, or all of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhaseState {
    /// `null` for the whole life.
    pub phase: Option<u32>,
    pub name: Option<String>,
    /// ms since the epoch; `null` before the first record, and until the phase ends.
    pub since: Option<Millis>,
    pub until: Option<Millis>,
    pub buckets: Vec<PhaseBucket>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhaseBucket {
    pub bucket: String,
    /// Designed share; `null` for the whole life.
    pub weight: Option<f64>,
    /// Units exposed for the first time.
    pub exposed_units: u64,
    pub exposures: u64,
    pub events: u64,
    pub metrics: Vec<PhaseMetric>,
}

/// A metric over a whole phase, whatever the windows of its guardrails.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhaseMetric {
    pub metric: String,
    pub unit: String,
    /// Observations.
    pub n: u64,
    pub value: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HoldState {
    /// `operator` or the key of a quality check.
    pub by: String,
    pub reason: String,
    pub author: Option<String>,
    /// ms since the epoch; `null` means until resumed.
    pub until: Option<Millis>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BucketState {
    pub bucket: String,
    pub baseline: bool,
    pub weight: f64,
    pub exposed_units: u64,
    pub mixed_units: u64,
    pub exposures: u64,
    pub events: u64,
    /// Exposures per second over the last ten seconds.
    pub exposure_rate: f64,
    /// Rolled back or killed, and what came of it.
    pub stopped: Option<StopState>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StopState {
    pub decision: String,
    pub action: Action,
    pub at: Millis,
    /// `waiting`, `confirmed`, `unconfirmed` or `undone`; `observed` where nothing was sent, `held` where a limit kept it back.
    pub confirmation: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GuardrailState {
    pub guardrail: String,
    pub bucket: String,
    pub verdict: Verdict,
    /// One sentence for people: why this verdict.
    pub reason: String,
    pub statistic: String,
    pub unit: String,
    pub window_ms: Millis,
    pub baseline_value: Option<f64>,
    pub bucket_value: Option<f64>,
    pub change: Option<f64>,
    /// Anytime-valid interval of the change against the baseline (relative for a relative margin, else in the metric's unit), or of
    /// the value itself where there is only a limit. `null` until both ends are known, and in lists of all experiments.
    pub interval: Option<[f64; 2]>,
    /// What the test saw.
    pub evidence: Option<Evidence>,
    pub limit: Option<f64>,
    pub max_increase: Option<super::plan::Margin>,
    /// The rule's primary metric, whose comparison is the lift.
    pub primary: bool,
    /// A rise is harm.
    pub higher_is_worse: bool,
    /// Observations in the window, bucket and baseline.
    pub n: u64,
    pub baseline_n: u64,
    pub log_e_value: Option<f64>,
    /// What [`Self::log_e_value`] must reach.
    pub log_threshold: Option<f64>,
    /// By what the counts of clustered observations are divided before they are compared with the baseline.
    pub design_effect: Option<f64>,
    /// What is counted: `event`, `workflow` or `unit`. Tests of units are exact, those of events asymptotic.
    pub observation: &'static str,
    pub on_breach: Action,
    /// Decision in force, if tripped.
    pub decision: Option<String>,
    /// Values moved to the nearest bound of the histogram, so far.
    pub clamped: u64,
    /// The comparison in each segment, over the whole life; in lists of all experiments, those in breach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<SegmentState>,
}

/// A secondary metric of a bucket against the baseline, over the whole life. It decides nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SecondaryState {
    pub metric: String,
    pub bucket: String,
    pub finding: Finding,
    pub reason: String,
    pub unit: String,
    /// A rise is bad.
    pub higher_is_worse: bool,
    pub baseline_value: Option<f64>,
    pub bucket_value: Option<f64>,
    /// Relative, as the interval.
    pub change: Option<f64>,
    /// Of the change, each end at the level `alpha`; `null` until both ends are known.
    pub interval: Option<[f64; 2]>,
    pub alpha: Option<f64>,
    /// Observations, bucket and baseline; of quantiles, since the last change of the allocation.
    pub n: u64,
    pub baseline_n: u64,
}

/// On which side of the baseline a secondary metric is proved to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    Better,
    Worse,
    Unknown,
}

/// A comparison with the baseline among the units of a segment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentState {
    /// `region=eu`; `region=other` is the rest.
    pub segment: String,
    pub verdict: Verdict,
    pub reason: String,
    /// Units exposed for the first time since the segment is told apart, in the bucket and in the baseline.
    pub units: u64,
    pub baseline_units: u64,
    pub baseline_value: Option<f64>,
    pub bucket_value: Option<f64>,
    pub change: Option<f64>,
    /// As of [`GuardrailState`].
    pub interval: Option<[f64; 2]>,
    /// Observations, bucket and baseline; of quantiles, since the last change of the allocation.
    pub n: u64,
    pub baseline_n: u64,
    pub log_e_value: f64,
    pub log_threshold: f64,
    pub decision: Option<String>,
}

/// A close look at an experiment: its state with all intervals, and the histograms behind it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CloseLook {
    #[serde(flatten)]
    pub state: ExperimentState,
    pub histograms: Vec<HistogramState>,
}

impl From<ExperimentState> for CloseLook {
    fn from(state: ExperimentState) -> CloseLook {
        CloseLook { state, histograms: Vec::new() }
    }
}

/// The histogram of a guardrail in one bucket.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HistogramState {
    pub guardrail: String,
    pub bucket: String,
    #[serde(flatten)]
    pub bins: BinsState,
}

/// Histograms of a guardrail's values in a bucket and in the baseline, and quantiles read off the same bins. Values are in the metric's
/// own unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BinsState {
    pub of: BinsOf,
    /// Values, baseline and bucket.
    pub baseline_n: u64,
    pub n: u64,
    /// Ascending; those between, that hold nothing, are left out.
    pub bins: Vec<BinState>,
    pub quantiles: Vec<QuantileState>,
}

/// Which values a histogram holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BinsOf {
    /// Those of units exposed since the shares last changed.
    Allocation,
    /// Those in the guardrail's window.
    Window,
}

/// Values above `from` and up to `to`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BinState {
    pub from: f64,
    pub to: f64,
    pub baseline: u64,
    pub bucket: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantileState {
    /// 0.95 is the 95th percentile.
    pub q: f64,
    pub baseline: Option<f64>,
    pub bucket: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QualityState {
    pub check: String,
    pub verdict: Verdict,
    pub reason: String,
    pub value: Option<f64>,
    pub bound: Option<f64>,
    pub action: Action,
    pub decision: Option<String>,
    /// Of the sample ratio: segments, and periods of allocation; not in lists of all experiments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<QualityPart>,
}

/// A check in a part of the units.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QualityPart {
    /// `region=eu`, or `period 2`.
    pub part: String,
    pub verdict: Verdict,
    pub reason: String,
    pub value: Option<f64>,
    /// `null` where it is only shown.
    pub bound: Option<f64>,
}

/// What is wrong with the experiment's records and units, since the beginning.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DataState {
    /// Records that name or join the experiment and came too late, and their share of all that came.
    pub late: u64,
    pub late_share: Option<f64>,
    /// Those whose id had been seen.
    pub duplicate: u64,
    pub duplicate_share: Option<f64>,
    /// Refused ones from beyond the wall clock.
    pub future: u64,
    /// Records of units that were seen in two buckets, or must not take part: accepted, and left out.
    pub set_aside: u64,
    pub mixed_units: u64,
    pub ineligible_exposures: u64,
    pub ineligible_units: u64,
    /// Units whose exposure does not tell what the population asks for.
    pub unknown_units: u64,
    /// Units whose bucket was computed, and those found in another one, since the last `resume`; `null` where the rule does not say how
    /// units are assigned.
    pub placed_units: Option<u64>,
    pub misplaced_units: Option<u64>,
}

impl DataState {
    /// Counts by name, for metrics and pages.
    pub fn flaws(&self) -> [(&'static str, u64); 8] {
        [
            ("late", self.late),
            ("duplicate", self.duplicate),
            ("future", self.future),
            ("set_aside", self.set_aside),
            ("mixed_units", self.mixed_units),
            ("misplaced_units", self.misplaced_units.unwrap_or(0)),
            ("ineligible_units", self.ineligible_units),
            ("unknown_units", self.unknown_units),
        ]
    }
}
