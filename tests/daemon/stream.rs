//! A recorded service: the same records on every call, with a slow bucket that is later taken back.

use super::harness::Record;

pub const EXPERIMENT: &str = "new-checkout";

/// A rule that a 95th percentile over 500 ms breaches.
pub fn rule(experiment: &str, mode: &str) -> String {
    format!(
        "guardrail: v1
overview: {{experiment: {experiment}, owner: checkout}}
buckets: {{control: {{baseline: true}}, treatment: {{}}}}
guardrails:
  - {{metric: latency_p95, window: 10s, limit: 500ms, on_breach: rollback}}
actions:
  mode: {mode}
  rollback: {{webhook: hook, body: {{flag: {experiment}}}}}
  kill: {{webhook: hook}}
  confirm_within: 20s
"
    )
}

/// Visits of ever new users, alternating between the buckets; each is exposed and makes one request.
#[derive(Clone)]
pub struct Service {
    /// Event time of the first visit, ms.
    pub start: i64,
    pub visits_per_s: i64,
    /// Requests of the treatment take 900 ms from this time on, ms after the start.
    pub slow_from: i64,
    /// No exposure of the treatment from this time on, ms after the start.
    pub stopped_from: i64,
    pub experiments: Vec<String>,
}

impl Service {
    pub fn healthy(start: i64) -> Service {
        let experiments = vec![EXPERIMENT.to_owned()];
        Service { start, visits_per_s: 100, slow_from: i64::MAX, stopped_from: i64::MAX, experiments }
    }

    /// Records of the visits between two times, ms after the start.
    pub fn records(&self, from: i64, to: i64) -> Vec<Record> {
        let step = 1_000 / self.visits_per_s;
        (from / step..to / step).flat_map(|visit| self.visit(visit, visit * step)).collect()
    }

    fn visit(&self, visit: i64, at: i64) -> Vec<Record> {
        let (ts, treated) = (self.start + at, visit % 2 == 1);
        let bucket = if treated { "treatment" } else { "control" };
        let unit = format!(r#""tenant_id":"t","user_id":"u-{visit}""#);
        let mut records = Vec::new();
        let mut add = |payload: String| records.push(Record { ts, payload: payload.into_bytes() });
        if !treated || at < self.stopped_from {
            for experiment in &self.experiments {
                add(format!(r#"{{"event":"exposure","ts":{ts},"experiment":"{experiment}","bucket":"{bucket}",{unit}}}"#));
            }
            let latency = if treated && at >= self.slow_from { 900 } else { 100 + visit % 50 };
            add(format!(r#"{{"event":"request","ts":{ts},"id":"r-{visit}","latency_ms":{latency},"error":false,{unit}}}"#));
        }
        records
    }
}
