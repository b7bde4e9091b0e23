//! The values behind charts: what the live view showed every ten seconds, for up to an hour.

use super::App;
use super::error::Failure;
use crate::engine::decision::Verdict;
use crate::engine::state::ExperimentState;
use crate::engine::time::Millis;
use crate::live::View;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Span between two points.
pub const STEP: Duration = Duration::from_secs(10);
/// Points of one experiment at most: an hour.
const POINTS: usize = 360;
/// Points of all experiments together at most; many experiments look back less far.
const ALL_POINTS: usize = 100_000;

/// What has been seen since the daemon started.
#[derive(Default)]
pub struct History(BTreeMap<String, VecDeque<Point>>);

/// One experiment at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Event time up to which it had been judged, ms since the epoch.
    at: Option<Millis>,
    guardrails: Vec<Value>,
    buckets: Vec<Value>,
}

impl History {
    /// Adds a point for each experiment of the view, and forgets experiments that it lacks.
    pub fn sample(&mut self, view: &View) {
        self.0.retain(|name, _| view.experiment(name).is_some());
        let most = (ALL_POINTS / view.experiments.len().max(1)).clamp(1, POINTS);
        for state in &view.experiments {
            let points = self.0.entry(state.experiment.clone()).or_default();
            while points.len() >= most {
                points.pop_front();
            }
            points.push_back(Point::of(state));
        }
    }

    fn of(&self, experiment: &str) -> Option<&VecDeque<Point>> {
        self.0.get(experiment)
    }
}

impl Point {
    fn of(state: &ExperimentState) -> Point {
        let guardrail = |g: &crate::engine::state::GuardrailState| {
            let verdict: Verdict = g.verdict;
            json!({"guardrail": g.guardrail, "bucket": g.bucket, "verdict": verdict, "baseline_value": g.baseline_value,
                   "bucket_value": g.bucket_value, "n": g.n, "log_e_value": g.log_e_value})
        };
        let bucket = |b: &crate::engine::state::BucketState| json!({"bucket": b.bucket, "exposed_units": b.exposed_units, "exposure_rate": b.exposure_rate});
        Point {
            at: state.judged_to,
            guardrails: state.guardrails.iter().map(guardrail).collect(),
            buckets: state.buckets.iter().map(bucket).collect(),
        }
    }
}

/// `GET /api/v1/experiments/{id}/series`
pub async fn series(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    app.api.access.read(&headers)?;
    let history = app.history.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let points = history.of(&id).ok_or_else(|| Failure::no_experiment(&id))?;
    Ok(Json(json!({"experiment": id, "step_s": STEP.as_secs(), "points": points})))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fleet::Fleet;
    use crate::engine::plan::{Catalog, FieldTable};
    use crate::rules::parse_str;

    fn view(n: usize) -> View {
        let rule = |i: usize| {
            let text = format!(
                "guardrail: v1\noverview: {{experiment: e{i:04}, owner: o}}\nbuckets: {{a: {{baseline: true}}, b: {{}}}}\n\
                 guardrails: [{{metric: error_rate, limit: 5%}}]\nactions: {{mode: observe, notify: {{slack: s}}}}\n"
            );
            parse_str("r.yaml", &text, &mut FieldTable::default(), None).rule.unwrap().plan
        };
        let catalog = Catalog::new((0..n).map(rule).collect(), FieldTable::default());
        View { experiments: Fleet::new(&catalog, 1_000).views(), ..View::default() }
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let (mut history, view) = (History::default(), view(1));
        (0..500).for_each(|_| history.sample(&view));
        assert_eq!(history.of("e0000").unwrap().len(), POINTS);
    }

    #[test]
    fn many_experiments_share_the_bound_and_those_that_are_gone_are_forgotten() {
        let (mut history, many) = (History::default(), view(1_000));
        (0..150).for_each(|_| history.sample(&many));
        assert_eq!(history.0.values().map(VecDeque::len).sum::<usize>(), ALL_POINTS);
        history.sample(&view(2));
        assert_eq!(history.0.len(), 2);
    }
}
