//! Every setting, once, for editors and their JSON Schema. Tests hold it against what is read: the same keys, words and ranges. Defaults come from
//! `config/default.yaml`.

use super::kinds::NAMES;

/// What a value must look like.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Text,
    Flag,
    /// A whole number, both ends included.
    Whole(u64, u64),
    /// A span of time, both ends included.
    Span(&'static str, &'static str),
    /// Bytes, both ends included.
    Size(&'static str, &'static str),
    Word(&'static [&'static str]),
    /// `host:port`.
    Broker,
    /// http or https.
    Url,
    /// A reference to where a secret is kept.
    Secret,
    SecretOrText,
    /// Settings of librdkafka by name, nested or with dots.
    Properties,
    List(&'static Shape),
    /// Names chosen by the author, each with such a value.
    MapOf(&'static Shape),
    Section(&'static [Key]),
    /// A section that need not be there.
    OrNone(&'static Shape),
    /// A receiver: which settings it has depends on its kind.
    Endpoint,
}

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub shape: Shape,
    /// Where its section is given.
    pub required: bool,
    pub doc: &'static str,
}

const fn key(name: &'static str, shape: Shape, doc: &'static str) -> Key {
    Key { name, shape, required: false, doc }
}

const fn required(name: &'static str, shape: Shape, doc: &'static str) -> Key {
    Key { name, shape, required: true, doc }
}

use Shape::{Broker, Flag, List, MapOf, OrNone, Properties, Secret, SecretOrText, Size, Span, Text, Url, Whole, Word};

pub static ROOT: &[Key] = &[
    key("state_dir", Text, "Directory of the daemon's database. One daemon per directory is active."),
    key("standby", Flag, "Stand by until the active daemon of the directory is gone or silent, and take over: docs/two-daemons.md."),
    key("rules", List(&Text), "Rule files, or directories whose *.yaml files are read."),
    key("kafka", Shape::Section(KAFKA), "Where records come from."),
    key("engine", Shape::Section(ENGINE), "How event time is cut, and the bounds of what is kept."),
    key("http", Shape::Section(HTTP), "API, metrics and pages."),
    key("delivery", Shape::Section(DELIVERY), "Where endpoints may lead."),
    key("endpoints", MapOf(&Shape::Endpoint), "Receivers of actions, by the names that rule files use: docs/endpoints.md."),
    key("checkpoint", Shape::Section(CHECKPOINT), "How state is saved."),
    key("store", Shape::Section(STORE), "What is kept, and for how long."),
    key("reload", Shape::Section(RELOAD), "How changes of rule files are found."),
    key("telemetry", Shape::Section(TELEMETRY), "Logs, traces and metrics."),
];

static KAFKA: &[Key] = &[
    key("brokers", List(&Broker), "Where to find the cluster: at least one."),
    key("group", Text, "Consumer group. Offsets are committed to it for lag dashboards only."),
    key("topics", Shape::Section(TOPICS), "Topics by what they carry: equal partition counts, and one partitioner."),
    key("decisions_topic", OrNone(&Text), "Where each decision, confirmation and resolution goes as a record, too."),
    key("auto_offset_reset", Word(&["earliest", "latest"]), "Where to start a partition that no checkpoint knows."),
    key("workers", Whole(0, 1_024), "Threads that decode and aggregate; 0 means one per core."),
    key("max_future", Span("0", "365d"), "A record whose time is further ahead of the wall clock is refused."),
    key("merge_wait", Span("0", "30s"), "How long a record waits at the end of another topic for one that belongs before it."),
    key("properties", Properties, "Any librdkafka setting, as it is named there; passwords as references."),
    key("oauth", OrNone(&Shape::Section(OAUTH)), "Tokens for OAUTHBEARER: `token_file` alone, or the client credentials grant."),
    key(
        "schema_registry",
        OrNone(&Shape::Section(SCHEMA_REGISTRY)),
        "For sources of Avro, Protobuf and JSON Schema records: docs/events.md.",
    ),
];

static TOPICS: &[Key] = &[
    key("exposures", List(&Text), "Who was exposed to which bucket."),
    key("events", List(&Text), "What happened to units."),
    key("control", List(&Text), "Rollout phases and annotations; need not exist."),
];

static OAUTH: &[Key] = &[
    key("token_file", Text, "A token that something else keeps fresh; read at every refresh."),
    key("token_url", Url, "Where client credentials are exchanged for a token."),
    key("client_id", Text, "Of the client credentials grant."),
    key("client_secret", Secret, "Of the client credentials grant."),
    key("scope", Text, "Of the client credentials grant."),
];

static SCHEMA_REGISTRY: &[Key] = &[
    required("url", Url, "Its address."),
    key("user", Text, "For basic authentication, with `password`."),
    key("password", Secret, "For basic authentication, with `user`."),
    key("token", Secret, "A bearer token, instead of `user`."),
    key("timeout", Span("1s", "1m"), "Of one request. Default 10s."),
];

static ENGINE: &[Key] = &[
    key("pane", Span("100ms", "1m"), "The smallest slice of event time; every window is a whole number of panes."),
    key("lateness", Span("0", "1d"), "How far behind the newest record of its partition one still counts. Whole panes."),
    key("idle_after", Span("1s", "1h"), "A partition without records for this long stops holding the others back."),
    key("dedupe_horizon", Span("0", "7d"), "Event time span in which record ids are remembered."),
    key("dedupe_max", Whole(0, 1_000_000_000), "Ids remembered for each partition; the oldest give way."),
    key("workflows_max", Whole(1, 1_000_000_000), "Workflows open in each partition."),
    key("units_max", Whole(1, 10_000_000_000), "Units of each partition, once for each experiment that they are exposed to."),
    key("waiting_max", Whole(0, 100_000_000), "Events of each partition that wait for their unit's exposure; 0: none waits."),
    key("max_skew", Span("1s", "1d"), "How far one partition may run ahead of the slowest live one. Whole panes."),
    key("ahead_max", Size("16MiB", "64GiB"), "Memory of the panes that wait for the slowest partition; beyond it none runs ahead."),
    key("shared_cause", Shape::Section(SHARED_CAUSE), "When breaches of several experiments are taken for one fault, and told once."),
    key("blast_radius", Shape::Section(BLAST_RADIUS), "How many experiments are rolled back without a person."),
    key("max_record", Size("1KiB", "64MiB"), "A larger record is refused."),
];

static SHARED_CAUSE: &[Key] = &[
    key("experiments", Whole(2, 1_000_000), "So many experiments."),
    key("percent", Whole(0, 100), "And so many percent of those that run."),
    key("within", Span("1s", "1h"), "Within this span of event time."),
];

static BLAST_RADIUS: &[Key] = &[
    key("experiments", Whole(0, 1_000_000), "At most; further rollbacks wait for a person. 0: as many as there are."),
    key("within", Span("1s", "7d"), "In this span of event time."),
];

static HTTP: &[Key] = &[
    key("listen", Text, "Address of API, metrics and pages: IP:port."),
    key("base_url", OrNone(&Url), "How people reach it, for links inside webhooks. Default: the address above."),
    key("tls", OrNone(&Shape::Section(TLS)), "PEM files, read again when they change; without them plain HTTP."),
    key("connections", Whole(8, 100_000), "Connections open at once; others are closed."),
    key("connections_per_address", Whole(1, 100_000), "Connections open at once from one address."),
    key("tokens", List(&Shape::Section(TOKEN)), "Who may call. While a token rotates, its name may be there twice."),
    key("open_reads", Word(&["loopback", "never", "always"]), "Reads without a token. Writes always need one."),
];

static TLS: &[Key] = &[
    required("certificate", Text, "The server's own first, then those in between."),
    required("key", Text, "The server's key."),
    key("client_ca", Text, "Clients must show a certificate of this authority."),
];

static TOKEN: &[Key] = &[
    required("name", Text, "Who it is, for the log."),
    required("role", Word(&["read", "operate"]), "What may be asked for; `operate` includes `read`."),
    required("token", Secret, "At least 16 characters."),
];

static DELIVERY: &[Key] = &[
    key("hosts", List(&Text), "Hosts that endpoints may name: names, addresses, or `*.example.com`; []: all."),
    key("loopback", Word(&["named", "never", "always"]), "Whether 127.0.0.0/8 and ::1 may be called."),
    key("private", Flag, "Whether private addresses may be called."),
];

/// Of endpoints of all kinds or some; which kind has which, `kinds` knows.
pub static ENDPOINT: &[Key] = &[
    required("kind", Word(&KINDS), "What is spoken to the receiver."),
    key("timeout", Span("1s", "1m"), "Of one attempt. Default 10s."),
    key("escalate_to", Text, "Another endpoint, which gets what this one has not received after 5 attempts, or refuses for good."),
    key("url", SecretOrText, "Its address."),
    key("urls", List(&SecretOrText), "Of all members of a cluster, at most 16."),
    key("secrets", List(&Secret), "Each signs, so that receivers can rotate: `whsec_` and base64, or at least 24 bytes."),
    key("routing_key", Secret, "The integration's key."),
    key("token", Secret, "What the product's API knows the caller by."),
    key("token_file", Text, "Read for each attempt. Default: a pod's own, where `url` is left out."),
    key("channel", Text, "Where a bot writes."),
    key("file", Text, "Flag definitions that flagd reads."),
    key("method", Word(&["POST", "PUT", "PATCH", "DELETE"]), "Default POST."),
    key("content_type", Text, "Says how values are escaped. Default application/json."),
    key("body", Text, "A template."),
    key("success", Text, "An expression that must hold of an answer with 2xx, such as `answer.ok`."),
    key("flag", Text, "Which flag; the body of a rule's action may say it, too, and then decides."),
    key("project", Text, "Of the flag."),
    key("environment", Text, "Of the flag."),
    key("serve", Text, "The variant for everybody, instead of turning the flag off."),
    key("signal", Text, "Name of the signal."),
    key("ramp", Text, "Id of the ramp schedule."),
    key("namespace", Text, "Of the rollout."),
    key("rollout", Text, "Its name."),
    key("headers", MapOf(&SecretOrText), "Sent with each request; what tells of a secret is a reference."),
    key("ca_file", Text, "PEM file of further authorities that may have signed its certificate."),
    key("allow_link_local", Flag, "Permits 169.254.0.0/16, fe80::/10 and other places where clouds keep their metadata. Default false."),
];

static KINDS: [&str; NAMES.len()] = {
    let mut kinds = [""; NAMES.len()];
    let mut i = 0;
    while i < kinds.len() {
        kinds[i] = NAMES[i].0;
        i += 1;
    }
    kinds
};

static CHECKPOINT: &[Key] = &[key("every", Span("1s", "10m"), "How often state and offsets are saved. A restart replays about this much.")];
static STORE: &[Key] = &[key(
    "retention",
    Span("1d", "3650d"),
    "How long what is known of an experiment is kept once its rule file has gone. Decisions stay.",
)];
static RELOAD: &[Key] = &[key("every", Span("1s", "1h"), "How often the rule files are looked at.")];

static TELEMETRY: &[Key] = &[
    key("log", Shape::Section(LOG), "Lines on standard error."),
    key("otlp", Shape::Section(OTLP), "Traces and metrics for an OpenTelemetry collector."),
];

static LOG: &[Key] = &[
    key("format", Word(&["auto", "human", "json"]), "auto: human on a terminal, else json."),
    key("level", Text, "error, warn, info, debug or trace, or per module: `info,guardraild::delivery=debug`."),
];

static OTLP: &[Key] = &[
    key("endpoint", OrNone(&Url), "Base address of the collector (OTLP over HTTP), such as http://127.0.0.1:4318; null: off."),
    key("headers", MapOf(&SecretOrText), "Sent with each request."),
    key("traces", Flag, "Whether traces are sent."),
    key("metrics", Flag, "Whether metrics are sent."),
    key("interval", Span("1s", "1h"), "How often metrics are sent."),
];

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigErrors};
    use super::*;
    use serde_json::{Map, Value, json};
    use std::collections::{BTreeMap, BTreeSet};

    /// An unknown setting, and every section that a section may hold with one in it.
    fn strange(keys: &[Key]) -> Value {
        let mut map = Map::from_iter([("0".to_owned(), json!(1))]);
        map.extend(keys.iter().filter_map(|key| Some((key.name.to_owned(), inside(&key.shape)?))));
        Value::Object(map)
    }

    fn inside(shape: &Shape) -> Option<Value> {
        match shape {
            Shape::Section(keys) => Some(strange(keys)),
            Shape::Endpoint => Some(strange(ENDPOINT)),
            OrNone(inner) => inside(inner),
            List(inner) => Some(json!([inside(inner)?])),
            MapOf(inner) => Some(json!({"x": inside(inner)?})),
            _ => None,
        }
    }

    fn faults(yaml: &Value, flags: &[(String, String)]) -> ConfigErrors {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guardraild.yaml");
        std::fs::write(&path, yaml.to_string()).unwrap();
        Config::load_with(Some(&path), flags, &BTreeMap::new()).err().unwrap_or(ConfigErrors(Vec::new()))
    }

    /// Each section by its path, as faults name it.
    fn sections(keys: &'static [Key], path: &str, found: &mut BTreeMap<String, &'static [Key]>) {
        found.insert(path.to_owned(), keys);
        for key in keys {
            let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            let mut shape = &key.shape;
            if let OrNone(inner) = shape {
                shape = inner;
            }
            match shape {
                Shape::Section(inner) => sections(inner, &path, found),
                List(Shape::Section(inner)) => sections(inner, &format!("{path}[0]"), found),
                MapOf(Shape::Endpoint) => sections(ENDPOINT, &format!("{path}.x"), found),
                _ => {}
            }
        }
    }

    #[test]
    fn what_is_read_is_in_the_table_and_nothing_else_is() {
        let mut all = BTreeMap::new();
        sections(ROOT, "", &mut all);
        let mut seen = BTreeSet::new();
        for error in faults(&strange(ROOT), &[]).0 {
            let Some(path) = error.message.strip_prefix("unknown setting `").and_then(|rest| rest.strip_suffix("0`")) else { continue };
            let path = path.trim_end_matches('.').to_owned();
            let help = error.help.unwrap();
            let known: BTreeSet<&str> = help.strip_prefix("known here: ").unwrap().split(", ").collect();
            assert_eq!(known, all[&path].iter().map(|key| key.name).collect::<BTreeSet<_>>(), "`{path}`");
            seen.insert(path);
        }
        assert_eq!(seen, all.into_keys().collect::<BTreeSet<_>>());
    }

    #[test]
    fn words_and_ranges_are_those_that_are_read() {
        let mut all = BTreeMap::new();
        sections(ROOT, "", &mut all);
        for (path, keys) in all.into_iter().filter(|(path, _)| !path.contains("[0]") && !path.contains(".x")) {
            for key in keys {
                let name = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
                let refused = |value: &str| {
                    let flags = [(name.clone(), value.to_owned())];
                    let errors = faults(&json!({"kafka": {"brokers": ["k:9092"]}}), &flags).0;
                    errors.iter().any(|e| {
                        e.message.starts_with(&format!("`{name}`: ")) && (e.message.contains("between") || e.message.contains("one of"))
                    })
                };
                let (good, bad): (Vec<String>, Vec<String>) = match key.shape {
                    Whole(low, high) => (
                        vec![low.to_string(), high.to_string()],
                        low.checked_sub(1).into_iter().chain([high + 1]).map(|n| n.to_string()).collect(),
                    ),
                    Span(low, high) => (vec![low.into(), high.into()], vec!["36500d".into()]),
                    Size(low, high) => (vec![low.into(), high.into()], vec!["1B".into(), "1000GiB".into()]),
                    Word(words) => (words.iter().map(|w| (*w).to_owned()).collect(), vec!["nonsense".into()]),
                    _ => continue,
                };
                assert!(!good.iter().any(|value| refused(value)), "`{name}` takes less than {:?}", key.shape);
                assert!(bad.iter().all(|value| refused(value)), "`{name}` takes more than {:?}", key.shape);
            }
        }
    }
}
