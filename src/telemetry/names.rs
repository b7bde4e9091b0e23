//! The closed list of metrics: what is not here cannot be counted. The registry and the documentation are made from it.

/// One metric family.
#[derive(Debug, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    /// Of seconds, in [`BOUNDS`].
    Histogram,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// Upper bounds of every histogram, in seconds.
pub const BOUNDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub static $id: Metric = Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        /// Every metric, in the order of the documentation.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    RECORDS Counter "guardraild_records_total" ["outcome", "reason"] "Records read, by what became of them; reason is empty unless the outcome is rejected.";
    WAITING Gauge "guardraild_waiting_records" [] "Records read that wait for their unit's exposure, and have no outcome yet.";
    OVERTAKEN Counter "guardraild_records_overtaken_total" [] "Records that came after records of another topic that belong behind them had been counted (kafka.merge_wait): a backtest has them in order.";
    WATERMARK Gauge "guardraild_partition_watermark_seconds" ["partition"] "Largest event time seen in the partition, in seconds since the epoch.";
    LAG Gauge "guardraild_consumer_lag_records" ["topic", "partition"] "Records between the last one read and the end of the partition.";
    JUDGED_TO Gauge "guardraild_judged_to_seconds" [] "Event time up to which panes have been judged, in seconds since the epoch.";
    EXPERIMENTS Gauge "guardraild_experiments" ["verdict"] "Experiments by their worst verdict.";
    EXPERIMENT_VERDICT Gauge "guardraild_experiment_verdict" ["experiment", "verdict"] "1 for the worst verdict that the experiment has now; the other verdicts have no series.";
    EXPERIMENT_GO Gauge "guardraild_experiment_go" ["experiment"] "1 if rollout controllers are told to go on with the experiment, else 0.";
    EXPERIMENT_HOLDS Gauge "guardraild_experiment_holds" ["experiment", "by"] "1 while the experiment is held: by operator, or by the check of the data that fails.";
    EXPERIMENT_STOPPED Gauge "guardraild_experiment_stopped_buckets" ["experiment", "action", "confirmation"] "Buckets that are stopped, by action and what came of it: waiting, confirmed, unconfirmed, undone, observed (nothing was sent) or held (a limit keeps it back).";
    EXPERIMENT_UNITS Gauge "guardraild_experiment_units" ["experiment", "bucket"] "Units exposed so far.";
    EXPERIMENT_LAST Gauge "guardraild_experiment_last_record_timestamp_seconds" ["experiment"] "Event time of the experiment's last record, in seconds since the epoch.";
    GUARDRAIL_VALUE Gauge "guardraild_guardrail_value" ["experiment", "guardrail", "bucket"] "Value of a guarded metric in its own unit (ms, a share of 1, a number), of the baseline bucket too.";
    GUARDRAIL_EVIDENCE Gauge "guardraild_guardrail_evidence" ["experiment", "guardrail", "bucket"] "Evidence that the limit or margin does not hold, as a share of what the guardrail acts at: log e-value by its threshold, 1 acts.";
    CHECKS_FAILING Gauge "guardraild_quality_checks_failing" ["check"] "Experiments whose check of the data fails, by check.";
    FLAWS Gauge "guardraild_experiment_flaws" ["experiment", "flaw"] "Records or units of an experiment that something is wrong with, since it began; a series for what there is.";
    SKEW Gauge "guardraild_partition_skew_seconds" [] "Event time between the partition that is furthest ahead and the one furthest behind.";
    AHEAD Gauge "guardraild_ahead_bytes" [] "Memory of panes that wait for the slowest partition (engine.ahead_max).";
    PAUSED Gauge "guardraild_partitions_paused" [] "Partitions that are not read on because they are too far ahead of the slowest, in time (engine.max_skew) or in memory (engine.ahead_max).";
    DECISIONS Counter "guardraild_decisions_total" ["action"] "Decisions made, by action.";
    DECISION_DELAY Histogram "guardraild_decision_delay_seconds" [] "From the commit of a decision to the first attempt to deliver it.";
    DELIVERY_ATTEMPTS Counter "guardraild_delivery_attempts_total" ["endpoint", "result"] "Attempts to deliver, by result: delivered, failed (tried again) or dead (given up).";
    DELIVERIES_PENDING Gauge "guardraild_deliveries_pending" ["endpoint"] "Deliveries in the outbox that have not been received yet.";
    DELIVERY_SECONDS Histogram "guardraild_delivery_attempt_seconds" ["endpoint"] "Duration of one delivery attempt.";
    ENDPOINT_DISABLED Gauge "guardraild_endpoint_disabled" ["endpoint"] "1 if the endpoint answered 410 and gets no more deliveries.";
    STORE_COMMIT Histogram "guardraild_store_commit_seconds" [] "Duration of one transaction of the store.";
    HELD_BACK Counter "guardraild_held_back_total" ["by"] "Decisions that wait for a person, by what holds them back: rate_limit, blast_radius, or rollback (what would follow one that is held back).";
    STORE_ERRORS Counter "guardraild_store_errors_total" [] "Transactions of the store that failed.";
    CHECKPOINT_AT Gauge "guardraild_checkpoint_timestamp_seconds" [] "Wall clock of the last checkpoint, in seconds since the epoch.";
    CHECKPOINT_SECONDS Histogram "guardraild_checkpoint_seconds" [] "Duration of one checkpoint.";
    CHECKPOINTS_DAMAGED Counter "guardraild_checkpoints_damaged_total" [] "Checkpoints that could not be used at the start because a checksum did not hold.";
    STANDBY Gauge "guardraild_standby" [] "1 while another daemon on the same state directory is the active one.";
    EPOCH Gauge "guardraild_epoch" [] "Number of daemons that have been active on this state directory so far; only the newest may write and send.";
    RULE_FILES Gauge "guardraild_rule_files" ["state"] "Rule files by state: loaded (in force as it is), stale (an earlier text is in force), refused (nothing of it is), or leaving (gone, watched until what it stopped has stopped).";
    RELOADS Counter "guardraild_reloads_total" ["result"] "Changes of rule files that were seen, by result: applied, partly (an earlier text of a file stays, or none) or failed (nothing was changed).";
    RELOADED_AT Gauge "guardraild_rules_loaded_timestamp_seconds" [] "Wall clock since which the present rules are in force, in seconds since the epoch.";
    READY Gauge "guardraild_ready" [] "1 if every readiness check holds.";
    JUDGE_HEARTBEAT Gauge "guardraild_judge_heartbeat_timestamp_seconds" [] "Wall clock of the judge's last round, in seconds since the epoch.";
    DROPPED Counter "guardraild_dropped_total" ["reason"] "What a bound made the daemon drop, by which bound.";
    SCHEMA_REQUESTS Counter "guardraild_schema_registry_requests_total" ["result"] "Schemas asked for, by result: known, unknown (its records are refused) or failed (asked again, partitions wait).";
    KAFKA_ERRORS Counter "guardraild_kafka_errors_total" ["code"] "Errors that the Kafka client reported, by librdkafka's code.";
    GATE_ANSWERS Counter "guardraild_gate_answers_total" ["gate", "answer"] "Answers to rollout controllers, by gate (argo, flagger_rollback, flagger_confirm) and answer: go, stop, wait, or unknown (no such experiment).";
    HTTP_REQUESTS Counter "guardraild_http_requests_total" ["path", "status"] "Requests answered, by route and status.";
    BUILD_INFO Gauge "guardraild_build_info" ["version"] "1, labelled with the version that runs.";
}

/// Labels with few values that are known: their series are there from the start, at 0, since a rate does not see how a series began.
pub static KNOWN: [(&Metric, &[&[&str]]); 5] = [
    (&DECISIONS, &[&["hold", "notify", "page", "pause", "rollback", "kill"]]),
    (&HELD_BACK, &[&["rate_limit", "blast_radius", "rollback"]]),
    (&RELOADS, &[&["applied", "partly", "failed"]]),
    (&SCHEMA_REQUESTS, &[&["known", "unknown", "failed"]]),
    (&GATE_ANSWERS, &[&["argo", "flagger_rollback", "flagger_confirm"], &["go", "stop", "wait", "unknown"]]),
];

/// The list as a Markdown table.
#[cfg(test)]
fn markdown() -> String {
    let mut table = String::from("| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for Metric { name, kind, labels, help } in ALL {
        table.push_str(&format!("| `{name}` | {} | {} | {help} |\n", kind.name(), labels.join(", ")));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_and_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|m| m.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            assert!(metric.name.starts_with("guardraild_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\', '|']), "{}", metric.name);
        }
    }

    /// `GUARDRAILD_UPDATE=1` writes the table anew.
    #[test]
    fn the_documentation_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once("cargo test --lib telemetry -->\n").unwrap();
        let (_, after) = rest.split_once("<!-- end -->").unwrap();
        let wanted = format!("{before}cargo test --lib telemetry -->\n\n{}\n<!-- end -->{after}", markdown());
        if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
            std::fs::write(path, &wanted).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), wanted);
    }
}
