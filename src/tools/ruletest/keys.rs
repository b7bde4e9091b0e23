//! Every key of a rule test, once: the checker, the JSON Schema and the editor's hints all read these tables.

use crate::rules::keys::{ACTIONS, Section, Shape, key, required};
use crate::rules::schema;
use crate::tools::simulate::TRAFFIC;
use Shape::{Any, Bool, Const, Duration, Int, List, MapOf, Name, NameOr, OneOrList, Percent, Text, Word};

pub static ROOT: Section = Section {
    name: "a rule test",
    keys: &[
        required("guardrail_test", Const("v1"), "v1", "Version of this format."),
        key(
            "rules",
            OneOrList(&Text),
            "new-checkout.yaml",
            "The rule file under test, from this file's folder; of several, each is tested by all cases. Default: this file's name without `_test`.",
        ),
        key("traffic", Shape::Section(&TRAFFIC), "", "Traffic of all cases, over what the rule file says: the keys of docs/simulate.md."),
        required("cases", List(&Shape::Section(&CASE)), "", "What is played, and what is expected."),
    ],
};

pub static CASE: Section = Section {
    name: "a case",
    keys: &[
        required("name", Text, "a slow treatment is rolled back", "What it shows; unique in the file."),
        key("for", Duration, "40m", "How long it is played, from 0; at most 30d. Needed unless `events` are played alone."),
        key(
            "traffic",
            Shape::Section(&TRAFFIC),
            "",
            "Over the file's own `traffic`. Beside `events` it has synthetic traffic played, too.",
        ),
        key(
            "events",
            OneOrList(&Text),
            "fixtures/incident-118.ndjson.zst",
            "Recorded events, from this file's folder: NDJSON, .gz or .zst.",
        ),
        key("source", Name, "checkout-flags", "The source of the rule file that reads `events`, where they are no canonical events."),
        key("partitions", Int(1), "1", "Partitions that units are spread over; at most 16. Default 1."),
        key("pane", Duration, "1s", "How often the engine looks, `pane` of the daemon's configuration. Default 1s."),
        key("seeds", Int(1), "500", "How often it is played, each time with other random numbers. Default 1."),
        key("faults", List(&Shape::Section(&FAULT)), "", "What goes wrong, from when until when."),
        key("records", List(&Shape::Section(&RECORD)), "", "Single records, written out."),
        key("operations", List(&Shape::Section(&OPERATION)), "", "What operators do, and when."),
        key(
            "endpoints",
            MapOf(&Shape::Section(&ENDPOINT)),
            "",
            "How receivers answer, by the names of the rule file. Default: 200 after 20 ms.",
        ),
        required("expect", List(&Shape::Section(&EXPECT)), "", "What must hold."),
    ],
};

pub static FAULT: Section = Section {
    name: "a fault",
    keys: &[
        required("from", Duration, "15m", "When it begins, counted from the start."),
        key("until", Duration, "25m", "When it is over. Default: never."),
        key("bucket", Name, "treatment", "The bucket it is about. Default: of `change`, the only one that is not the baseline; else all."),
        key("segment", Text, "region=eu", "Of `change`: only units with this value of an attribute."),
        key("partition", Int(0), "1", "Of faults of records: only those of this partition, counted from 0."),
        key(
            "change",
            MapOf(&Text),
            "{latency_p95: +30%, error_rate: +2pp}",
            "Guarded metrics (and `timeouts`) and by how much they change: `+30%`, `x1.3`, `+50ms`, `+2pp`, `-5%`.",
        ),
        key("weights", MapOf(&Percent), "{control: 60%, treatment: 40%}", "The flag service assigns by these shares, and nobody was told."),
        key("exposures_go_on", Bool, "true", "The flag service accepts rollbacks and kills of the bucket, and does not stop exposures."),
        key("silence", Bool, "true", "No records come."),
        key("other_bucket", Percent, "5%", "Share of new units that are exposed to another bucket, too."),
        key("late", Shape::Section(&LATE), "", "Records come later than they happened."),
        key("duplicates", Percent, "10%", "Share of records that come twice, with the same id."),
        key("missing", Shape::Section(&MISSING), "", "Records lack a field."),
        key("invalid", Percent, "5%", "Share of records that name the experiment and have no readable time."),
    ],
};

pub static LATE: Section = Section {
    name: "`late`",
    keys: &[
        required("by", Duration, "45s", "How much later, at most 1d."),
        key("share", Percent, "10%", "Share of records; the others come in time. Default 100%: the whole stream is behind."),
    ],
};

pub static MISSING: Section = Section {
    name: "`missing`",
    keys: &[
        required("field", Shape::Pointer, "/latency_ms", "The field that is left out."),
        key("share", Percent, "5%", "Share of records. Default 100%."),
    ],
};

pub static RECORD: Section = Section {
    name: "a record",
    keys: &[
        required("at", Duration, "20m", "When it comes."),
        required(
            "record",
            Any,
            "{event: compliance_flag, bucket: treatment, flag: missing_consent}",
            "Its fields; `ts` and, beside a `bucket`, `experiment` are filled in. A text is sent as it is, whether or not it is JSON.",
        ),
        key("times", Int(1), "3", "How many times it comes. Default 1."),
        key("partition", Int(0), "0", "Where. Default 0."),
    ],
};

pub static OPERATION: Section = Section {
    name: "an operation",
    keys: &[
        required("at", Duration, "20m", "When."),
        required(
            "do",
            Word(&["hold", "resume", "rollback", "kill", "phase"]),
            "hold",
            "As `guardraild hold` and so on. `resume` also has the flag service serve stopped buckets again; `phase` moves the traffic.",
        ),
        key("bucket", Name, "treatment", "Of `rollback` and `kill`. Default: all but the baseline."),
        key("for", Duration, "10m", "Of `hold`. Default: until resumed."),
        key("phase", Text, "1", "Of `phase`: number, from 0, or name."),
        key("weights", MapOf(&Percent), "{control: 75%, treatment: 25%}", "Of `phase`: shares of the buckets. Default: the rule's."),
    ],
};

pub static ENDPOINT: Section = Section {
    name: "an endpoint",
    keys: &[
        key(
            "answers",
            List(&NameOr(&ANSWER)),
            "[503, timeout, 200]",
            "To one attempt after the other: a status, `timeout` or `refused`. The last one goes on.",
        ),
        key("escalate_to", Name, "backup", "As in the daemon's configuration: who gets what this one does not receive."),
        key("timeout", Duration, "15s", "As in the daemon's configuration. Default 15s."),
    ],
};

pub static ANSWER: Section = Section {
    name: "an answer",
    keys: &[
        required("answer", Text, "503", "A status, `timeout` or `refused`."),
        key("for", Duration, "30s", "To all attempts for so long, from the first that gets it."),
        key("retry_after", Duration, "20s", "What its `Retry-After` asks for."),
    ],
};

/// What an expectation can be about: exactly one of these keys.
pub const ABOUT: [&str; 8] = ["verdict", "acts", "never", "stopped", "go", "stop", "endpoint", "outcome"];

/// Actions, and `any` of those that intervene.
const ACTS: &[&str] = &["any", ACTIONS[0], ACTIONS[1], ACTIONS[2], ACTIONS[3], ACTIONS[4], ACTIONS[5]];

pub static EXPECT: Section = Section {
    name: "an expectation",
    keys: &[
        key("verdict", OneOrList(&Word(&["safe", "watching", "breach", "no_data"])), "[safe, watching]", "Verdict of `guardrail`."),
        key("acts", OneOrList(&Word(ACTS)), "rollback", "An action is decided; `any` is a pause, rollback or kill."),
        key("never", OneOrList(&Word(ACTS)), "any", "No such action is decided."),
        key(
            "stopped",
            Word(&["no", "waiting", "confirmed", "unconfirmed", "undone", "observed", "held"]),
            "confirmed",
            "Whether `bucket` was rolled back or killed, and what came of it.",
        ),
        key("go", Bool, "true", "What the gates say: the ramp may go on."),
        key("stop", Bool, "true", "What the gates say: it must stop."),
        key("endpoint", Name, "flag-service", "What this receiver got: `attempts`, `deliveries`, `delivered`."),
        key("outcome", Word(OUTCOMES), "late", "How `count` records were counted; reasons of refusal are outcomes, too."),
        key("at", Duration, "14m", "Of `verdict`, `stopped`, `go`, `stop`: when. Default: at the end."),
        key("from", Duration, "15m", "Of `acts`, `never`, `endpoint`: not before. Default: the first fault for `within`, else 0."),
        key("until", Duration, "20m", "Of `acts`, `never`, `endpoint`: not after. Default: the end."),
        key("within", Duration, "5m", "So long after `from`, instead of `until`."),
        key("guardrail", Name, "latency_p95", "A guardrail, or a check of `quality` such as `srm`. Of `acts` and `never`, default: any."),
        key("criterion", Name, "limit", "Of `acts` and `never`: `limit`, `max_increase`, `confirm_within`, `undone`, `operator` …"),
        key("bucket", Name, "treatment", "Default: any; of `verdict`, each that is not the baseline."),
        key("segment", Text, "region=eu", "Of `verdict`, `acts` and `never`: in this segment."),
        key("held_by", Word(&["rate_limit", "blast_radius", "rollback"]), "rate_limit", "Of `acts`: it waits for a person."),
        key("times", Text, "1", "Of `acts`: how often it is done; what an earlier decision covers does not count. `2`, `>=2`, `<=2`."),
        key("type", Word(TYPES), "guardrail.rollback", "Of `endpoint`: only webhooks of this type."),
        key("attempts", Text, "3", "Of `endpoint`: requests. `3`, `>=3`, `<=3`."),
        key("deliveries", Text, "1", "Of `endpoint`: distinct ids of webhooks."),
        key("delivered", Bool, "true", "Of `endpoint`: whether all of them were answered with 2xx."),
        key("count", Text, ">=1", "Of `outcome`: records."),
        key("in_at_least", Percent, "95%", "Of `acts`: share of the seeds, proved at 95%. Default: every seed."),
        key("in_at_most", Percent, "1%", "Of `acts`: share of the seeds, proved at 95%."),
    ],
};

/// Names of outcomes, and of reasons of refusal.
pub const OUTCOMES: &[&str] = &[
    "accepted",
    "late",
    "duplicate",
    "unattributed",
    "unknown_experiment",
    "inactive",
    "unmapped",
    "rejected",
    "not_json",
    "not_object",
    "missing_field",
    "wrong_type",
    "bad_timestamp",
    "future_timestamp",
    "negative_value",
    "not_finite",
    "too_large",
    "too_many_attributes",
    "unknown_bucket",
];

const TYPES: &[&str] = &[
    "guardrail.rollback",
    "guardrail.kill",
    "guardrail.pause",
    "guardrail.alert",
    "guardrail.resolved",
    "guardrail.confirmed",
    "guardrail.unconfirmed",
];

/// The JSON Schema of rule tests, as indented text with a final newline.
pub fn schema() -> String {
    format!("{:#}\n", schema::of(&ROOT, "rule test", "Traffic in virtual time, what goes wrong, and what the rules must make of it."))
}

/// The key's place among the expectation's keys that only some kinds have.
pub fn keys_of(about: &str) -> &'static [&'static str] {
    match about {
        "verdict" => &["at", "guardrail", "bucket", "segment"],
        "acts" => {
            &["from", "until", "within", "guardrail", "criterion", "bucket", "segment", "held_by", "times", "in_at_least", "in_at_most"]
        }
        "never" => &["from", "until", "within", "guardrail", "criterion", "bucket", "segment"],
        "stopped" => &["at", "bucket"],
        "endpoint" => &["from", "until", "within", "type", "attempts", "deliveries", "delivered"],
        "outcome" => &["count"],
        _ => &["at"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::outcome::Reject;
    use crate::rules::keys::Key;
    use crate::rules::reference;

    #[test]
    fn every_outcome_has_its_name_here() {
        assert!(Reject::ALL.iter().all(|reason| OUTCOMES.contains(&reason.name())));
    }

    #[test]
    fn every_key_of_an_expectation_belongs_to_some_kind() {
        let own = |k: &Key| ABOUT.contains(&k.name) || ABOUT.iter().any(|about| keys_of(about).contains(&k.name));
        assert!(EXPECT.keys.iter().all(own));
    }

    const HEAD: &str = "# Test reference

Every key of a rule test (`*_test.yaml`). This page is written from the table by which `guardraild test` reads tests, and from which the JSON Schema of editors comes. What they do, and when an expectation holds:
[testing-rules.md](testing-rules.md).

A path such as `cases[].for` stands for the key `for` of each item of `cases`; `traffic.metrics.*` for each name under `metrics`. A key in **bold** is required. Times count from the start of the case. An expectation
has exactly one of `verdict`, `acts`, `never`, `stopped`, `go`, `stop`, `endpoint` and `outcome`; of its other keys each says to which of these it belongs.
";

    /// `GUARDRAILD_UPDATE=1 cargo test --lib ruletest::keys` writes the files anew.
    #[test]
    fn the_committed_schema_and_page_are_up_to_date() {
        for (path, text) in
            [("config/schemas/test.v1.schema.json", schema()), ("docs/test-reference.md", reference::sections(HEAD, &ROOT, None))]
        {
            let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
                std::fs::write(&path, &text).unwrap();
            }
            assert!(std::fs::read_to_string(&path).unwrap_or_default() == text, "run this test with GUARDRAILD_UPDATE=1");
        }
    }
}
