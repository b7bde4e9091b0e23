//! All experiments at a glance: a row for each, small enough for a thousand of them on a phone.

use super::App;
use super::error::Failure;
use crate::engine::decision::{Mode, Verdict};
use crate::engine::plan::Margin;
use crate::engine::state::{ExperimentState, GuardrailState, Stage, StopState};
use crate::engine::time::Millis;
use crate::live::View;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;

#[derive(Serialize)]
struct Row<'a> {
    experiment: &'a str,
    mode: Mode,
    verdict: Verdict,
    go: bool,
    stop: bool,
    reason: &'a str,
    stage: Stage,
    phase: &'a Option<String>,
    /// Who holds it: `operator`, or the checks of the data that fail.
    holds: Vec<&'a str>,
    exposed_units: u64,
    /// Buckets rolled back or killed.
    stopped: Vec<Stopped<'a>>,
    decisions: usize,
    judged_to: Option<Millis>,
    last_record: Option<Millis>,
    worst: Option<Worst<'a>>,
}

#[derive(Serialize)]
struct Stopped<'a> {
    bucket: &'a str,
    #[serde(flatten)]
    stop: &'a StopState,
}

/// The guardrail that is closest to acting.
#[derive(Serialize)]
struct Worst<'a> {
    guardrail: &'a str,
    bucket: &'a str,
    verdict: Verdict,
    statistic: &'a str,
    unit: &'a str,
    baseline_value: Option<f64>,
    bucket_value: Option<f64>,
    change: Option<f64>,
    limit: Option<f64>,
    max_increase: Option<Margin>,
    /// Evidence as a share of what it must reach to act.
    evidence: Option<f64>,
}

/// `GET /api/v1/fleet`
pub async fn fleet(State(app): State<App>, headers: HeaderMap) -> Result<Response, Failure> {
    app.api.access.read(&headers)?;
    let view = app.api.live.get();
    let packed = app.answers.get("fleet".to_owned(), &view, || serde_json::to_vec(&written(&view)).ok());
    let packed = packed.ok_or_else(|| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the fleet cannot be written down", ""))?;
    Ok(packed.answer(&headers))
}

fn written(view: &View) -> serde_json::Value {
    let rows: Vec<Row<'_>> = view.experiments.iter().map(Row::of).collect();
    serde_json::json!({"at": view.at, "experiments": rows})
}

impl Row<'_> {
    fn of(state: &ExperimentState) -> Row<'_> {
        let stopped = state.buckets.iter().filter_map(|b| Some(Stopped { bucket: &b.bucket, stop: b.stopped.as_ref()? }));
        Row {
            experiment: &state.experiment,
            mode: state.mode,
            verdict: state.verdict,
            go: state.go,
            stop: state.stop,
            reason: &state.reason,
            stage: state.rollout.stage,
            phase: &state.phase_name,
            holds: state.holds.iter().map(|hold| hold.by.as_str()).collect(),
            exposed_units: state.buckets.iter().map(|b| b.exposed_units).sum(),
            stopped: stopped.collect(),
            decisions: state.decisions.len(),
            judged_to: state.judged_to,
            last_record: state.last_record,
            worst: worst(&state.guardrails),
        }
    }
}

fn worst(guardrails: &[GuardrailState]) -> Option<Worst<'_>> {
    let evidence = |g: &GuardrailState| g.log_e_value.zip(g.log_threshold).map(|(e, needed)| e / needed);
    let order = |g: &&GuardrailState| (g.verdict.badness(), evidence(g).unwrap_or(f64::NEG_INFINITY));
    let later = |a: &&GuardrailState, b: &&GuardrailState| {
        let ((a, x), (b, y)) = (order(a), order(b));
        a.cmp(&b).then(x.total_cmp(&y))
    };
    guardrails.iter().max_by(later).map(|g| Worst {
        guardrail: &g.guardrail,
        bucket: &g.bucket,
        verdict: g.verdict,
        statistic: &g.statistic,
        unit: &g.unit,
        baseline_value: g.baseline_value,
        bucket_value: g.bucket_value,
        change: g.change,
        limit: g.limit,
        max_increase: g.max_increase,
        evidence: evidence(g),
    })
}
