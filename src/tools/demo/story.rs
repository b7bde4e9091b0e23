//! What the demo has observed so far, told line by line; nothing is told that was not seen.

use crate::engine::decision::Verdict;
use crate::engine::state::{ExperimentState, GuardrailState};
use crate::engine::time::Millis;
use crate::live::View;
use crate::tools::broker::{Sent, Struck};
use crate::tools::receiver::Delivery;

pub const EXPERIMENT: &str = "new-checkout";
pub const BUCKET: &str = "treatment";
pub const GUARDRAIL: &str = "latency_p95";
const ROLLBACK: &str = "guardrail.rollback";
/// Exposures count as stopped when there was none for this long.
const QUIET: Millis = 1_500;

/// One line of the tale: a word and what happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub word: &'static str,
    pub text: String,
}

fn line(word: &'static str, text: String) -> Option<Line> {
    Some(Line { word, text })
}

/// The observations.
#[derive(Default)]
pub struct Story {
    /// The faulty bucket was measured, exposed and not breached, and nothing had been sent, when the fault began.
    pub healthy: bool,
    pub fault_at: Option<Millis>,
    /// Every valid rollback request, in order.
    attempts: Vec<Delivery>,
    /// Any other request.
    others: u64,
    breached: bool,
    stopped_at: Option<Millis>,
    confirmed: bool,
    struck: Option<Struck>,
    sent: u64,
    read: u64,
}

impl Story {
    /// Before the fault: whether the bucket has been measured and is well.
    pub fn judge_health(&mut self, view: &View) -> Option<Line> {
        if self.healthy || self.fault_at.is_some() {
            return None;
        }
        let guardrail = guardrail(view)?;
        let (treatment, control) = (guardrail.bucket_value?, guardrail.baseline_value?);
        let well = matches!(guardrail.verdict, Verdict::Safe | Verdict::Watching) && guardrail.n > 0;
        self.healthy = well && self.attempts.is_empty() && self.others == 0;
        if !self.healthy {
            return None;
        }
        let verdict = guardrail.verdict.name();
        line("healthy", format!("latency p95 {treatment:.0} ms, control {control:.0} ms: {verdict}, limit {}", limit(guardrail)))
    }

    pub fn fault(&mut self, at: Millis, percent: f64) -> Option<Line> {
        self.fault_at = Some(at);
        line("fault", format!("the demo slows {BUCKET} by {percent:.0}%"))
    }

    pub fn see_view(&mut self, view: &View) -> Vec<Line> {
        self.read = view.counts.records();
        let mut lines = Vec::new();
        let tripped = guardrail(view).filter(|g| g.verdict == Verdict::Breach || g.decision.is_some());
        if let Some(guardrail) = tripped.filter(|_| !self.breached && self.fault_at.is_some()) {
            self.breached = true;
            let value = guardrail.bucket_value.map_or_else(|| "over".to_owned(), |v| format!("{v:.0} ms"));
            lines.extend(line("breach", format!("latency p95 {value} in {BUCKET}, limit {}", limit(guardrail))));
        }
        let confirmation = bucket(view).and_then(|b| b.stopped.as_ref()).map(|s| s.confirmation.as_str());
        if !self.confirmed && confirmation == Some("confirmed") {
            self.confirmed = true;
            lines.extend(line("confirmed", format!("the daemon saw the exposures of {BUCKET} stop")));
        }
        lines
    }

    pub fn see_delivery(&mut self, delivery: &Delivery) -> Option<Line> {
        if !(delivery.verified && delivery.kind == ROLLBACK && delivery.data["bucket"] == BUCKET) {
            self.others += 1;
            let kind = if delivery.verified { delivery.kind.as_str() } else { "a request that could not be verified" };
            return line("webhook", format!("{kind}: {}", delivery.status));
        }
        let same = self.attempts.first().map(|first| first.id == delivery.id);
        self.attempts.push(delivery.clone());
        let id = match same {
            None => "signature verified",
            Some(true) => "signature verified, same webhook-id",
            Some(false) => "signature verified, ANOTHER webhook-id",
        };
        let note = if delivery.status == 503 { " (the demo refuses once)" } else { "" };
        line("rollback", format!("flag-service attempt {}: {}{note}, {id}", self.attempts.len(), delivery.status))
    }

    pub fn see_sent(&mut self, sent: &Sent, now: Millis) -> Option<Line> {
        self.sent = sent.records;
        self.struck.clone_from(&sent.struck);
        let accepted = self.attempts.iter().any(|a| a.status == 200);
        let last = sent.struck.as_ref()?.last?;
        if self.stopped_at.is_some() || !accepted || now - last < QUIET {
            return None;
        }
        self.stopped_at = Some(last);
        line("stopped", format!("exposures of {BUCKET} fell to 0/s"))
    }

    /// Whether there is nothing more to wait for.
    pub fn is_complete(&self) -> bool {
        self.missing_before_the_count().is_empty()
    }

    /// What was not observed, in words; empty when everything was.
    pub fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.missing_before_the_count().into_iter().map(str::to_owned).collect();
        if self.sent == 0 || self.read != self.sent {
            missing.push(format!("every record counted: {} sent, {} counted", self.sent, self.read));
        }
        missing
    }

    fn missing_before_the_count(&self) -> Vec<&'static str> {
        let fault_at = self.fault_at.unwrap_or(Millis::MAX);
        let first = self.attempts.first();
        let (once, accepted) = (first.map(|a| &a.id), self.attempts.iter().skip(1).find(|a| a.status == 200));
        let decided = first.is_some_and(|a| a.data["guardrail"] == GUARDRAIL && a.instant("decided_at").is_some_and(|at| at > fault_at));
        let seen = [
            (self.healthy, "both buckets healthy before the fault"),
            (self.fault_at.is_some(), "the fault injected"),
            (self.breached, "the breach shown in the live state"),
            (decided, "a rollback decided on the latency of the slow bucket, after the fault"),
            (first.is_some_and(|a| a.status == 503), "attempt 1 refused with 503"),
            (accepted.is_some(), "a later attempt accepted with 200 and a valid signature"),
            (first.is_some() && self.attempts.iter().all(|a| Some(&a.id) == once), "exactly one webhook-id for the rollback"),
            (self.stopped_at.is_some(), "exposures of the slow bucket fall to 0"),
            (self.confirmed, "the rollback confirmed by the daemon"),
        ];
        seen.into_iter().filter(|(seen, _)| !seen).map(|(_, what)| what).collect()
    }

    /// The decision's id, as the webhook carried it.
    pub fn decision(&self) -> Option<&str> {
        self.attempts.first()?.data["decision"].as_str()
    }

    /// What was measured.
    pub fn summary(&self, view: &View) -> Vec<String> {
        let mut lines = Vec::new();
        let seconds = |from: Millis, to: Millis| format!("{:.1} s", (to - from) as f64 / 1_000.0);
        let first = self.attempts.first();
        if let (Some(fault), Some(first)) = (self.fault_at, first)
            && let Some(decided) = first.instant("decided_at")
        {
            lines.push(format!("Fault to decision {}; decision to first attempt {} ms.", seconds(fault, decided), first.at - decided));
            if let Some(done) = self.attempts.iter().find(|a| a.status == 200) {
                lines.push(format!("Fault to rollback accepted {}.", seconds(fault, done.at)));
            }
        }
        if let Some(struck) = &self.struck {
            lines.push(format!("{} users saw the slow {BUCKET} ({} exposures).", struck.users, struck.exposures));
        }
        if !self.attempts.is_empty() {
            let ids: std::collections::BTreeSet<&str> = self.attempts.iter().map(|a| a.id.as_str()).collect();
            lines.push(format!("{} attempts under {} webhook-id.", self.attempts.len(), ids.len()));
        }
        let counts = &view.counts;
        lines.push(format!(
            "{} records sent, {} counted: {} accepted, {} late, {} duplicate, {} waiting, {} unattributed, {} of unknown experiments, {} inactive, {} rejected.",
            self.sent,
            counts.records(),
            counts.accepted,
            counts.late,
            counts.duplicate,
            counts.waiting,
            counts.unattributed,
            counts.unknown_experiment,
            counts.inactive,
            counts.rejected.total()
        ));
        lines
    }
}

/// What the progress line shows.
pub fn glance(view: &View) -> String {
    let latency = guardrail(view).map(|g| {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.0}"));
        format!("p95 {BUCKET} {} ms, control {} ms, {}", ms(g.bucket_value), ms(g.baseline_value), g.verdict.name())
    });
    let rate = bucket(view).map_or(0.0, |b| b.exposure_rate);
    format!("{}; {BUCKET} {rate:.0} exposures/s; {} records", latency.unwrap_or_else(|| "waiting for data".into()), view.counts.records())
}

fn experiment(view: &View) -> Option<&ExperimentState> {
    view.experiment(EXPERIMENT)
}

fn bucket(view: &View) -> Option<&crate::engine::state::BucketState> {
    experiment(view)?.buckets.iter().find(|b| b.bucket == BUCKET)
}

fn guardrail(view: &View) -> Option<&GuardrailState> {
    experiment(view)?.guardrails.iter().find(|g| g.guardrail == GUARDRAIL && g.bucket == BUCKET)
}

fn limit(guardrail: &GuardrailState) -> String {
    guardrail.limit.map_or_else(|| "none".to_owned(), |limit| format!("{limit:.0} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::decision::{Action, Mode};
    use crate::engine::outcome::Outcome;
    use crate::engine::state::{BucketState, RolloutState, StopState};
    use serde_json::json;

    const FAULT: Millis = 1_764_666_010_000;

    fn view(verdict: Verdict, confirmation: Option<&str>, records: u64) -> View {
        let guardrail = GuardrailState {
            guardrail: GUARDRAIL.into(),
            bucket: BUCKET.into(),
            verdict,
            reason: String::new(),
            statistic: "p95".into(),
            unit: "ms".into(),
            window_ms: 10_000,
            baseline_value: Some(420.0),
            bucket_value: Some(431.0),
            change: None,
            interval: None,
            evidence: None,
            limit: Some(550.0),
            max_increase: None,
            primary: false,
            higher_is_worse: true,
            n: 900,
            baseline_n: 900,
            log_e_value: None,
            log_threshold: None,
            design_effect: None,
            observation: "event",
            on_breach: Action::Rollback,
            decision: None,
            clamped: 0,
            segments: Vec::new(),
        };
        let stop = |c: &str| StopState { decision: "d-1".into(), action: Action::Rollback, at: FAULT, confirmation: c.into() };
        let bucket = BucketState {
            bucket: BUCKET.into(),
            baseline: false,
            weight: 0.5,
            exposed_units: 9,
            mixed_units: 0,
            exposures: 9,
            events: 9,
            exposure_rate: 200.0,
            stopped: confirmation.map(stop),
        };
        let experiment = ExperimentState {
            experiment: EXPERIMENT.into(),
            revision: 1,
            mode: Mode::Enforce,
            phase: 0,
            phase_name: None,
            verdict,
            go: true,
            stop: false,
            reason: String::new(),
            holds: Vec::new(),
            buckets: vec![bucket],
            guardrails: vec![guardrail],
            secondary: Vec::new(),
            quality: Vec::new(),
            data: Default::default(),
            judged_to: None,
            last_record: None,
            records,
            rejected: 0,
            decisions: Vec::new(),
            rollout: RolloutState::default(),
            phases: Vec::new(),
            whole_life: None,
            funnels: Vec::new(),
            retention: Vec::new(),
        };
        let mut view = View { experiments: vec![experiment], ..View::default() };
        (0..records).for_each(|_| view.counts.add(Outcome::Accepted));
        view
    }

    fn delivery(id: &str, status: u16, at: Millis) -> Delivery {
        let data = json!({"bucket": BUCKET, "guardrail": GUARDRAIL, "decision": "d-1", "decided_at": "2025-12-02T09:00:14Z"});
        Delivery { at, id: id.into(), status, verified: true, repeated: false, kind: ROLLBACK.into(), data }
    }

    fn sent(records: u64, last: Millis) -> Sent {
        Sent { records, struck: Some(Struck { at: FAULT, exposures: 12, users: 11, last: Some(last) }) }
    }

    /// Everything as it should be, but for what `spoil` leaves out.
    fn told(spoil: &str) -> Story {
        let mut story = Story::default();
        if spoil != "health" {
            story.judge_health(&view(Verdict::Watching, None, 5));
        }
        story.fault(FAULT, 50.0);
        if spoil != "breach" {
            story.see_view(&view(Verdict::Breach, None, 50));
        }
        story.see_delivery(&delivery("m-1", if spoil == "refusal" { 200 } else { 503 }, FAULT + 4_100));
        if spoil != "acceptance" {
            story.see_delivery(&delivery(if spoil == "id" { "m-2" } else { "m-1" }, 200, FAULT + 5_100));
        }
        story.see_sent(&sent(100, FAULT + 5_100), FAULT + if spoil == "silence" { 5_200 } else { 8_000 });
        let verdict = if spoil == "breach" { Verdict::Watching } else { Verdict::Breach };
        story.see_view(&view(verdict, Some(if spoil == "confirmation" { "waiting" } else { "confirmed" }), 100));
        story
    }

    #[test]
    fn the_whole_story_misses_nothing_and_sums_up_what_was_measured() {
        let story = told("nothing");
        assert_eq!(story.missing(), Vec::<String>::new());
        let summary = story.summary(&view(Verdict::Breach, None, 100)).join("\n");
        for part in [
            "Fault to decision 4.0 s",
            "first attempt 100 ms",
            "accepted 5.1 s",
            "11 users",
            "2 attempts under 1 webhook-id",
            "100 records sent, 100 counted",
        ] {
            assert!(summary.contains(part), "{part} not in\n{summary}");
        }
    }

    #[test]
    fn each_part_that_was_not_observed_is_named() {
        let cases = [
            ("health", "healthy"),
            ("breach", "live state"),
            ("refusal", "503"),
            ("acceptance", "200"),
            ("id", "one webhook-id"),
            ("silence", "fall to 0"),
            ("confirmation", "confirmed"),
        ];
        for (spoil, word) in cases {
            let missing = told(spoil).missing();
            assert!(missing.iter().any(|m| m.contains(word)), "{spoil}: {missing:?}");
        }
    }

    #[test]
    fn a_lost_record_is_named() {
        let mut story = told("nothing");
        story.see_view(&view(Verdict::Breach, Some("confirmed"), 99));
        assert_eq!(story.missing(), ["every record counted: 100 sent, 99 counted"]);
    }

    #[test]
    fn a_request_before_the_fault_is_not_healthy() {
        let mut story = Story::default();
        story.see_delivery(&delivery("m-1", 200, FAULT - 5_000));
        assert_eq!(story.judge_health(&view(Verdict::Watching, None, 5)), None);
        assert!(!story.healthy);
    }
}
