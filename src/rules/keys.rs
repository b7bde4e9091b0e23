//! Every key of a rule file, once: the checker, the JSON Schema and the editor's hints all read these tables.

use crate::mapping::{Format, presets};

/// What a value must look like.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Any text, number or bool.
    Scalar,
    Text,
    /// Text that names something: 1 to 128 bytes, no control characters.
    Name,
    Bool,
    /// A whole number of at least this.
    Int(u32),
    /// A bare number in (0, 1).
    Probability,
    /// `0%` to `100%`; a bare `0` too.
    Percent,
    /// `500ms`, `30s`, `10m`, `6h`, `1d`.
    Duration,
    /// A number with or without a unit; what fits depends on the metric.
    Quantity,
    /// `3/h`, `120k/day`.
    Frequency,
    /// RFC 3339.
    Timestamp,
    /// JSON Pointer (RFC 6901).
    Pointer,
    /// Anything at all.
    Any,
    /// Exactly this word.
    Const(&'static str),
    /// One of these words.
    Word(&'static [&'static str]),
    List(&'static Shape),
    /// One value, or a list of them.
    OneOrList(&'static Shape),
    /// Names chosen by the author, each with such a value.
    MapOf(&'static Shape),
    Section(&'static Section),
    /// A bare name, or the whole section.
    NameOr(&'static Section),
    /// The word `off`, or the section.
    OffOr(&'static Section),
    /// One pointer, or a list of them: the first that holds something.
    Pointers,
    /// Pointers, or the whole section.
    PointersOr(&'static Section),
    /// A pointer to an object, or names chosen by the author, each with such a value.
    PointerOrMapOf(&'static Shape),
}

#[derive(Debug)]
pub struct Section {
    /// As messages call it.
    pub name: &'static str,
    pub keys: &'static [Key],
}

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub shape: Shape,
    pub required: bool,
    pub doc: &'static str,
    /// As YAML text; empty for sections.
    pub example: &'static str,
    pub effect: Effect,
}

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It decides whether something is done, what, or by whom it is received.
    Acts,
    /// It says how the data is read, counted or judged.
    Shapes,
    /// People and figures alone see it.
    Shown,
}

impl Key {
    const fn with(self, effect: Effect) -> Key {
        Key { effect, ..self }
    }
}

pub(crate) const fn key(name: &'static str, shape: Shape, example: &'static str, doc: &'static str) -> Key {
    Key { name, shape, required: false, doc, example, effect: Effect::Shapes }
}

pub(crate) const fn required(name: &'static str, shape: Shape, example: &'static str, doc: &'static str) -> Key {
    Key { name, shape, required: true, doc, example, effect: Effect::Shapes }
}

use Effect::{Acts, Shown};
use Shape::{
    Any, Bool, Const, Duration, Frequency, Int, List, MapOf, Name, NameOr, OffOr, Percent, Pointer, PointerOrMapOf, Pointers, PointersOr,
    Probability, Quantity, Scalar, Text, Timestamp, Word,
};

/// Actions from the mildest to the strongest.
pub const ACTIONS: &[&str] = &["hold", "notify", "page", "pause", "rollback", "kill"];
/// Kinds of receivers that a route may name.
pub const CHANNELS: &[&str] = &["webhook", "pagerduty", "slack"];

pub static ROOT: Section = Section {
    name: "a rule file",
    keys: &[
        required("guardrail", Const("v1"), "v1", "Version of this format."),
        key("revision", Int(1), "3", "Bump it to loosen a live experiment; its evidence restarts. Default 1."),
        required("overview", Shape::Section(&OVERVIEW), "", "What is tried, by whom, and when (runbook 1)."),
        required("buckets", MapOf(&Shape::Section(&BUCKET)), "", "The arms by name; exactly one is the baseline (runbook 3)."),
        key("metrics", MapOf(&Shape::Section(&METRIC)), "", "Metrics of your own, by name; the built-in ones need no entry (runbook 2)."),
        key("success", Shape::Section(&SUCCESS), "", "What the experiment hopes to improve."),
        required("guardrails", List(&Shape::Section(&GUARDRAIL)), "", "What must not get worse, and what happens if it does.").with(Acts),
        key("eligibility", Shape::Section(&ELIGIBILITY), "", "Who takes part and how they are assigned (runbook 3)."),
        key("instrumentation", Shape::Section(&INSTRUMENTATION), "", "Flag, schemas and sources (runbook 4)."),
        key("rollout", Shape::Section(&ROLLOUT), "", "The plan of the ramp (runbook 5)."),
        key("analysis", Shape::Section(&ANALYSIS), "", "How evidence is weighed (runbook 6)."),
        key("quality", Shape::Section(&QUALITY), "", "Checks of the data itself; `off` turns one off.").with(Acts),
        required("actions", Shape::Section(&ACTIONS_SECTION), "", "Whether to act, and who receives each action.").with(Acts),
        key("comms", Shape::Section(&COMMS), "", "Links and people (runbook 5).").with(Shown),
    ],
};

static OVERVIEW: Section = Section {
    name: "`overview`",
    keys: &[
        required("experiment", Name, "new-checkout", "The id that events carry."),
        key("name", Text, "One-page checkout", "Title for people.").with(Shown),
        key("owner", NameOr(&OWNER), "checkout", "The team, or team and people.").with(Shown),
        key("feature_area", Text, "payments", "Part of the product.").with(Shown),
        key("workflow", Name, "purchase", "The workflow that is changed."),
        key("hypothesis", Shape::Section(&HYPOTHESIS), "", "If we change this, that improves by so much.").with(Shown),
        key(
            "type",
            Word(&["ab", "multivariate", "phased_rollout", "interleaving"]),
            "ab",
            "Kind of experiment. Of a `phased_rollout`, `rollout.phases` say the shares of the buckets. Default `ab`.",
        ),
        key("starts", Timestamp, "2026-12-01T09:00:00Z", "Records before it are counted `inactive`."),
        key("ends", Timestamp, "2026-12-15T09:00:00Z", "Records from it on are counted `inactive`."),
    ],
};

static OWNER: Section = Section {
    name: "`owner`",
    keys: &[
        key("team", Name, "checkout", "Who owns the experiment.").with(Shown),
        key("dri", Name, "checkout-lead", "Directly responsible.").with(Shown),
        key("reviewer", Name, "payments-lead", "Who reviewed the plan.").with(Shown),
        key("oncall", Name, "checkout-primary", "Who is called at night.").with(Shown),
    ],
};

static HYPOTHESIS: Section = Section {
    name: "`hypothesis`",
    keys: &[
        key("change", Text, "one page instead of three", "What we change.").with(Shown),
        key("impact", Text, "completed orders", "What it should improve.").with(Shown),
        key("metric", Name, "orders", "The metric that shows it.").with(Shown),
        key("mde", Percent, "1%", "Smallest change worth detecting, relative to the baseline bucket."),
    ],
};

static BUCKET: Section = Section {
    name: "a bucket",
    keys: &[
        key("weight", Percent, "50%", "Designed share of traffic; all buckets add up to 100%. Default: equal shares."),
        key("baseline", Bool, "true", "Others are compared with this one. Default false."),
    ],
};

static METRIC: Section = Section {
    name: "a metric",
    keys: &[
        required(
            "kind",
            Word(&["rate", "mean", "quantile", "count", "retention", "funnel"]),
            "rate",
            "How observations become one number; a funnel is shown, and is none.",
        ),
        key("event", Name, "outcome", "Name of the events that feed it. Of retention, those that show activity; default: all."),
        key("where", MapOf(&Scalar), "", "Fields that must have these values: a field's name, or a JSON Pointer. Default: all events."),
        key("value", Pointer, "/value", "Field that holds the value. Default for outcomes: `/value`."),
        key("q", Probability, "0.99", "Level of a quantile."),
        key("unit", Word(&["event", "user"]), "user", "What an observation belongs to. Default `event`."),
        key("better", Word(&["up", "down"]), "up", "Which direction is good. Default `down`."),
        key("baseline", Quantity, "30%", "Expected value in the baseline bucket: sharpens a rate's test."),
        key("covariate", Pointer, "/covariate", "Field with the value before the experiment, for CUPED."),
        key(
            "day",
            Int(1),
            "7",
            "Retention: the share of units that are active again in the 24 h that begin so many days after their first exposure.",
        ),
        key("workflow", Name, "purchase", "Funnel: the workflow. Default: `overview.workflow`."),
        key("steps", List(&NameOr(&STEP)), "[cart, payment]", "Funnel: events that name an open workflow by their `workflow_id`.")
            .with(Shown),
        key("within", Duration, "30m", "Funnel: the limit; what comes later is late. Default 30m."),
    ],
};

static STEP: Section = Section {
    name: "a step",
    keys: &[
        required("event", Name, "page_view", "Name of the events that show that it was reached.").with(Shown),
        key("where", MapOf(&Scalar), "", "Fields that must have these values: a field's name, or a JSON Pointer.").with(Shown),
        key("name", Name, "cart", "As it is shown. Default: the event's name.").with(Shown),
    ],
};

static SUCCESS: Section = Section {
    name: "`success`",
    keys: &[
        key("primary", Shape::Section(&PRIMARY), "", "The metric that decides."),
        key(
            "secondary",
            List(&Name),
            "[basket]",
            "Metrics that help to understand: compared with the baseline and shown, never acted on. 16 at most.",
        )
        .with(Shown),
    ],
};

static PRIMARY: Section = Section {
    name: "`primary`",
    keys: &[
        required("metric", Name, "orders", "A metric of this file, or a built-in one."),
        key("mde", Percent, "1%", "Smallest relative change worth detecting."),
        key("power", Percent, "90%", "Chance to detect it. Default 80%."),
        key("expected_units", Frequency, "120k/day", "Units that will be exposed."),
        key("stop_on_negative", Percent, "0%", "Stop when the change is proven worse than minus this.").with(Acts),
    ],
};

static GUARDRAIL: Section = Section {
    name: "a guardrail",
    keys: &[
        required(
            "metric",
            Name,
            "latency_p95",
            "`latency_p50`, `latency_p90`, `latency_p95`, `latency_p99`, `error_rate`, `abandonment`, `tickets`, `compliance_flags`, `exposures`, or a metric of this file.",
        ).with(Acts),
        key("window", Duration, "10m", "Span of time that a limit looks at. Default 10m."),
        key("max_increase", Quantity, "10%", "Against the baseline bucket: `10%` is relative; `0.5pp` and `20ms` are differences.").with(Acts),
        key("limit", Quantity, "1500ms", "Absolute bound, whatever the baseline bucket does.").with(Acts),
        key("for", Duration, "30s", "How long the limit must be exceeded before it counts. Default: at once.").with(Acts),
        key("within", Duration, "30m", "Abandonment: a workflow not completed in this time is abandoned. Default 30m."),
        key("workflow", Name, "purchase", "Abandonment: only this workflow. Default: all."),
        key("on_breach", Word(ACTIONS), "rollback", "What is done. Default `rollback` where one is configured, else `notify`.").with(Acts),
    ],
};

static ELIGIBILITY: Section = Section {
    name: "`eligibility`",
    keys: &[
        key("unit", List(&Name), "[tenant_id, user_id]", "What the flag service hashes: `tenant_id`, `user_id` or both. Default both."),
        key(
            "population",
            MapOf(&List(&Scalar)),
            "{region: [eu, uk]}",
            "Attributes (or `tenant_id`, `user_id`) and their values, of which a unit must have one each.",
        )
        .with(Acts),
        key(
            "exclude",
            MapOf(&List(&Scalar)),
            "{tenant_id: [t-restricted]}",
            "Attributes (or `tenant_id`, `user_id`) and their values, with any of which a unit must not take part.",
        )
        .with(Acts),
        key("assignment", Shape::Section(&ASSIGNMENT), "", "How the flag service assigns."),
        key(
            "holdback",
            Percent,
            "5%",
            "Share of traffic that stays in the baseline bucket, whatever the phase: for long-term comparison. Default 0%.",
        ),
    ],
};

static ASSIGNMENT: Section = Section {
    name: "`assignment`",
    keys: &[
        key("namespace", Name, "checkout", "Seed of the hash. Default: the experiment's id."),
        key(
            "algorithm",
            Word(&["growthbook_v2", "murmur3", "xxh3", "sha256"]),
            "growthbook_v2",
            "Hash of the flag service. Default `growthbook_v2`.",
        ),
        key("overrides", MapOf(&Name), "{t-qa|u-1: treatment}", "Units, as they are hashed, that always get one bucket."),
    ],
};

static INSTRUMENTATION: Section = Section {
    name: "`instrumentation`",
    keys: &[
        key("flag", Shape::Section(&FLAG), "", "The feature flag.").with(Shown),
        key("schemas", List(&Text), "[https://wiki.example/schemas/exposure]", "Links to event schemas.").with(Shown),
        key("sources", MapOf(&Shape::Section(&SOURCE)), "", "Only where topics or layouts differ from the canonical events."),
    ],
};

/// A file that holds no experiment, but sources for all of them.
pub static SOURCES: Section = Section {
    name: "a file of sources",
    keys: &[
        required("guardrail", Const("v1"), "v1", "Version of this format."),
        required("sources", MapOf(&Shape::Section(&SOURCE)), "", "How topics of foreign layouts are read, by the source's name."),
    ],
};

pub static SOURCE: Section = Section {
    name: "a source",
    keys: &[
        required("topics", List(&Text), "[otel.logs]", "Topics that are read this way; each has one source at most."),
        key(
            "format",
            Word(Format::NAMES),
            "json",
            "What the bytes are. Default `json`; `avro`, `protobuf` and `json_schema` begin with a schema id.",
        ),
        key("preset", Word(presets::NAMES), "segment", "The layout of a product, instead of `events`."),
        key("when", Text, "record.type == 'track'", "Condition in CEL on `record`; other records are `unmapped`."),
        key("every_event", Shape::Section(&EVENT), "", "Fields of every event: over those of the preset, under those of `events`."),
        key("events", List(&Shape::Section(&EVENT)), "", "What one record stands for. Default: it is a canonical event."),
    ],
};

pub static EVENT: Section = Section {
    name: "an event",
    keys: &[
        key("when", Text, "has(record.experiment)", "Condition in CEL on `record`; elsewhere the record does not stand for this event."),
        key("event", NameOr(&FIELD), "exposure", "Name of the event, or where it stands."),
        key("ts", PointersOr(&FIELD), "{from: /time, unit: s}", "Event time: RFC 3339, or a number since 1970 in `unit` (default ms)."),
        key("id", PointersOr(&FIELD), "/messageId", "Unique id."),
        key("tenant_id", PointersOr(&FIELD), "/context/groupId", "Tenant; `{const: \"\"}` where there is only one."),
        key("user_id", PointersOr(&FIELD), "[/userId, /anonymousId]", "User."),
        key("experiment", PointersOr(&FIELD), "{from: /flag, values: {co-2: new-checkout}}", "Experiment."),
        key("bucket", PointersOr(&FIELD), "{from: /variation, values: {0: control, 1: treatment}}", "Bucket."),
        key("attributes", PointerOrMapOf(&PointersOr(&FIELD)), "{region: /geo/country}", "Attributes by name, or an object of them."),
        key("latency_ms", PointersOr(&FIELD), "{from: /seconds, unit: s}", "Of a request; `unit` is ns, us, ms (default) or s."),
        key("error", PointersOr(&FIELD), "{cel: record.status >= 500}", "Of a request."),
        key("workflow", PointersOr(&FIELD), "/flow", "Of a workflow's step."),
        key("workflow_id", PointersOr(&FIELD), "/session", "Of a workflow's step."),
        key("flag", PointersOr(&FIELD), "/violation", "Of a compliance flag."),
        key("metric", PointersOr(&FIELD), "{const: basket}", "Of an outcome."),
        key("value", PointersOr(&FIELD), "/amount", "Of an outcome."),
        key("covariate", PointersOr(&FIELD), "/amount_before", "Of an outcome."),
        key("phase", PointersOr(&FIELD), "/step", "Of a phase."),
        key("weights", PointersOr(&FIELD), "/shares", "Of a phase: an object."),
        key("text", PointersOr(&FIELD), "/message", "Of an annotation."),
        key("author", PointersOr(&FIELD), "/by", "Of an annotation."),
        key("fields", PointerOrMapOf(&PointersOr(&FIELD)), "{route: /path}", "Further fields by name, or an object that holds them."),
    ],
};

pub static FIELD: Section = Section {
    name: "a field",
    keys: &[
        key("from", Pointers, "/properties/plan", "Where it stands; of several the first that holds something."),
        key("values", MapOf(&Scalar), "{0: control, 1: treatment}", "Renames values; others stay, unless there is an `else`."),
        key("else", Scalar, "unknown", "Where nothing is found, or `values` does not name it."),
        key("unit", Word(UNITS), "us", "Of a time or a number; it is made milliseconds."),
        key("const", Scalar, "checkout", "Always this."),
        key("cel", Text, "record.status >= 500", "Computed from `record`, in CEL."),
    ],
};

/// Units of times in records.
pub const UNITS: &[&str] = &["ns", "us", "ms", "s"];

static FLAG: Section = Section {
    name: "`flag`",
    keys: &[
        key("name", Name, "new-checkout", "Name in the flag service.").with(Shown),
        key("default", Name, "control", "Bucket served when in doubt.").with(Shown),
    ],
};

static ROLLOUT: Section = Section {
    name: "`rollout`",
    keys: &[
        key("phases", List(&Shape::Section(&PHASE)), "", "Steps of the ramp, in order."),
        key(
            "watch_after_full",
            Duration,
            "24h",
            "How long the rollout is watched once the baseline has no traffic but the holdback. Default: until the end.",
        ),
        key(
            "warm_up",
            Duration,
            "5m",
            "What is observed so soon after the start, and after a phase begins, is not judged (counts are). Default: none.",
        ),
    ],
};

static PHASE: Section = Section {
    name: "a phase",
    keys: &[
        required(
            "traffic",
            Percent,
            "25%",
            "Share of eligible traffic: of a `phased_rollout`, what the other buckets get and the baseline does not; else what takes part.",
        ),
        key("for", Duration, "6h", "Planned length: then it is shown as ready for the next. Nothing ramps by itself."),
        key("name", Name, "canary", "Default: `phase` and its number."),
    ],
};

static ANALYSIS: Section = Section {
    name: "`analysis`",
    keys: &[
        key(
            "method",
            Word(&["sequential", "bayesian", "fixed_horizon"]),
            "sequential",
            "How comparisons with the baseline are tested. Default `sequential`.",
        ),
        key("alpha", Probability, "0.01", "False-rollback budget of the whole experiment. Default 0.01."),
        key(
            "correction",
            Word(&["bonferroni", "holm", "hierarchical", "none"]),
            "holm",
            "How guardrails, buckets and segments share it. Default `holm`.",
        ),
        key("min_units", Int(1), "100", "Exposed units per bucket before a relative test may act. Default 100."),
        key("segments", Shape::Section(&SEGMENTS), "", "Slices in which comparisons are tested, too. Default: none."),
        key("cuped", Bool, "true", "Use covariates to reduce variance. Default true."),
    ],
};

static SEGMENTS: Section = Section {
    name: "`segments`",
    keys: &[
        required("by", List(&Name), "[region, device]", "Attributes of exposures to slice by, each for itself; at most 4."),
        key(
            "top",
            Int(1),
            "8",
            "Segments at most, of all attributes together; the rest of each is one more, `other`. Default 8, at most 32.",
        ),
        key("act", Bool, "false", "Whether a breach in one segment acts on its bucket; otherwise it is shown. Default false.").with(Acts),
    ],
};

static QUALITY: Section = Section {
    name: "`quality`",
    keys: &[
        key("srm", OffOr(&SRM), "", "Exposures split as designed. Default: alpha 0.001, pause.").with(Acts),
        key("volume_parity", OffOr(&VOLUME_PARITY), "", "Events per exposed unit alike in all buckets. Default: off.").with(Acts),
        key(
            "mixed_assignment",
            OffOr(&MIXED),
            "",
            "Units seen in two buckets, or in another one than `assignment` gives. Default: 1%, pause.",
        )
        .with(Acts),
        key("ineligible", OffOr(&INELIGIBLE), "", "Exposed units that are excluded or outside the population. Default: off.").with(Acts),
        key(
            "missing",
            OffOr(&MISSING),
            "",
            "Records that lack a field, and exposed users without events in one bucket more than in another. Default: off.",
        )
        .with(Acts),
        key("schema_violations", OffOr(&SCHEMA_VIOLATIONS), "", "Records that were refused. Default: 1%, hold.").with(Acts),
        key("silence", OffOr(&SILENCE), "", "No records at all. Default: 3m, hold.").with(Acts),
    ],
};

const DO: Key = key(
    "do",
    Word(ACTIONS),
    "pause",
    "What is done. Default: `page` of `ineligible`, `hold` of `missing`, `schema_violations` and `silence`, else `pause`.",
)
.with(Acts);

static SRM: Section =
    Section { name: "`srm`", keys: &[key("alpha", Probability, "0.001", "Level of the test. Default 0.001.").with(Acts), DO] };
static VOLUME_PARITY: Section = Section {
    name: "`volume_parity`",
    keys: &[key("max_gap", Percent, "10%", "Largest relative gap between buckets. Default 10%.").with(Acts), DO],
};
static MIXED: Section = Section {
    name: "`mixed_assignment`",
    keys: &[key("max", Percent, "1%", "Largest share of units in two buckets, and of those in the wrong one. Default 1%.").with(Acts), DO],
};
static INELIGIBLE: Section = Section {
    name: "`ineligible`",
    keys: &[key("max", Percent, "0", "Largest share of ineligible units. Default 0: the first exposure acts at once.").with(Acts), DO],
};
static MISSING: Section = Section {
    name: "`missing`",
    keys: &[
        required("fields", List(&Pointer), "[/latency_ms]", "Fields that records should have.").with(Acts),
        key("max", Percent, "2%", "Largest share of records without one, and points by which silent users may differ. Default 1%.")
            .with(Acts),
        DO,
    ],
};
static SCHEMA_VIOLATIONS: Section = Section {
    name: "`schema_violations`",
    keys: &[key("max", Percent, "1%", "Largest share of refused records. Default 1%.").with(Acts), DO],
};
static SILENCE: Section =
    Section { name: "`silence`", keys: &[key("after", Duration, "3m", "Longest span without records. Default 3m.").with(Acts), DO] };

static ACTIONS_SECTION: Section = Section {
    name: "`actions`",
    keys: &[
        required(
            "mode",
            Word(&["observe", "enforce"]),
            "observe",
            "`observe` decides and shows; `enforce` also delivers rollback, kill and pause.",
        )
        .with(Acts),
        key("rollback", Shape::Section(&ROUTE), "", "Receiver that serves the baseline again.").with(Acts),
        key("kill", Shape::Section(&ROUTE), "", "Receiver that turns the feature off.").with(Acts),
        key("pause", Shape::Section(&ROUTE), "", "Receiver that stops the ramp.").with(Acts),
        key("page", Shape::Section(&ROUTE), "", "Receiver that wakes somebody.").with(Acts),
        key("notify", Shape::Section(&ROUTE), "", "Receiver that tells people.").with(Acts),
        key("confirm_within", Duration, "2m", "Exposures to the bucket must stop in this time after a rollback. Default 2m.").with(Acts),
        key(
            "unconfirmed",
            List(&Word(ACTIONS)),
            "[kill, page]",
            "What is done if they do not. Default: page where configured, else notify.",
        )
        .with(Acts),
        key(
            "undone",
            List(&Word(ACTIONS)),
            "[rollback, page]",
            "What is done if they have stopped, and come back though nobody resumed. Default: page where configured, else notify.",
        )
        .with(Acts),
        key(
            "rate_limit",
            Shape::Section(&RATE_LIMIT),
            "",
            "Beyond it an action is decided, paged, and waits for a person. Default: no bound.",
        )
        .with(Acts),
    ],
};

static ROUTE: Section = Section {
    name: "a receiver",
    keys: &[
        key("webhook", Name, "flag-service", "Name of a webhook endpoint of the daemon's configuration.").with(Acts),
        key("pagerduty", Name, "checkout-primary", "Name of a PagerDuty endpoint of the daemon's configuration.").with(Acts),
        key("slack", Name, "checkout-exp", "Name of a Slack endpoint of the daemon's configuration.").with(Acts),
        key("body", Any, "{flag: new-checkout, serve: control}", "Handed to the receiver as it is.").with(Acts),
    ],
};

static RATE_LIMIT: Section = Section {
    name: "`rate_limit`",
    keys: &[key("rollbacks", Frequency, "3/h", "Rollbacks of this experiment that the machine makes at most.").with(Acts)],
};

static COMMS: Section = Section {
    name: "`comms`",
    keys: &[
        key("runbook", Text, "https://wiki.example/new-checkout", "Link in pages and alerts.").with(Shown),
        key("release_notes", Text, "https://wiki.example/rn", "Link for users.").with(Shown),
        key("stakeholders", List(&Name), "[payments-leads]", "Who is kept informed.").with(Shown),
    ],
};
