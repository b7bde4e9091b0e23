//! Configuration: `config/default.yaml`, then a file, then `GUARDRAILD_` variables, then flags; checked as a whole.

mod endpoint;
mod error;
mod http;
mod kafka;
mod keys;
mod kinds;
mod layers;
mod reader;
mod schema;
mod secret;
mod units;

pub use endpoint::{Delivery, Endpoint, Loopback, Template};
pub use error::{ConfigError, ConfigErrors, Origin};
pub use http::{Http, OpenReads, Role, Tls, Token};
pub use kafka::{Kafka, OAuth, OffsetReset, Property, SchemaRegistry, Topics};
pub use kinds::{EndpointKind, TEXTS as ENDPOINT_TEXTS};
pub use schema::text as schema;
pub use units::span;

use crate::engine::plan::{BlastRadius, Settings, SharedCause};
use reader::{Fault, Reader, Section, code};
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole configuration. `config/default.yaml` describes every field.
#[derive(Clone, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    /// Wait for the state directory while another daemon has it.
    pub standby: bool,
    /// Files or directories; at least one.
    pub rules: Vec<PathBuf>,
    pub kafka: Kafka,
    pub engine: Engine,
    pub http: Http,
    pub delivery: Delivery,
    pub endpoints: BTreeMap<String, Endpoint>,
    pub checkpoint: Checkpoint,
    pub store: Store,
    pub reload: Reload,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug)]
pub struct Engine {
    pub settings: Settings,
    /// Bytes of a record's value, at most.
    pub max_record: usize,
}

#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub every: Duration,
}

#[derive(Clone, Debug)]
pub struct Store {
    /// How long the history of an experiment is kept when nothing is heard of it any more.
    pub retention: Duration,
}

#[derive(Clone, Debug)]
pub struct Reload {
    /// Time between two looks at the rule files.
    pub every: Duration,
}

#[derive(Clone, Debug)]
pub struct Telemetry {
    pub log: Log,
    pub otlp: Otlp,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    /// In the syntax of `tracing_subscriber::EnvFilter`.
    pub level: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Auto,
    Human,
    Json,
}

#[derive(Clone, Debug)]
pub struct Otlp {
    /// Base address, without `/v1/traces`; `None` is off.
    pub endpoint: Option<String>,
    pub headers: BTreeMap<String, SecretString>,
    pub traces: bool,
    pub metrics: bool,
    pub interval: Duration,
}

impl Config {
    /// Reads the defaults, the file at `path`, the process's `GUARDRAILD_` variables and `overrides` (`kafka.brokers`, `k:9092`), in
    /// this order, and every secret that they refer to.
    ///
    /// # Errors
    /// All faults that could be found at once.
    pub fn load(path: Option<&Path>, overrides: &[(String, String)]) -> Result<Config, ConfigErrors> {
        Config::load_with(path, overrides, &environment())
    }

    /// The sections that say how Kafka is read, from the same layers as [`Config::load`]. The others are not looked at, so that their
    /// secrets need not be at hand.
    ///
    /// # Errors
    /// All faults of these sections that could be found at once.
    pub fn load_input(path: Option<&Path>, overrides: &[(String, String)]) -> Result<(Kafka, Engine), ConfigErrors> {
        let env = environment();
        let layers = layers::Layers::merge(path, overrides, &env)?;
        let reader = Reader::new(&layers, &env);
        let mut root = reader.root();
        let input = (kafka::read(root.section("kafka")), engine(root.section("engine")));
        drop(root);
        let errors = reader.errors();
        if errors.0.is_empty() { Ok(input) } else { Err(errors) }
    }

    /// [`Config::load`] with the given environment instead of the process's.
    ///
    /// # Errors
    /// All faults that could be found at once.
    pub fn load_with(path: Option<&Path>, overrides: &[(String, String)], env: &BTreeMap<String, String>) -> Result<Config, ConfigErrors> {
        let layers = layers::Layers::merge(path, overrides, env)?;
        let reader = Reader::new(&layers, env);
        let config = read(reader.root());
        let errors = reader.errors();
        if errors.0.is_empty() { Ok(config) } else { Err(errors) }
    }
}

/// The process's variables that are text.
fn environment() -> BTreeMap<String, String> {
    let text = |s: std::ffi::OsString| s.into_string().ok();
    std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect()
}

fn read(mut root: Section<'_>) -> Config {
    let config = Config {
        state_dir: root.need("state_dir", reader::path),
        standby: root.need("standby", reader::flag),
        rules: root.need("rules", reader::list(reader::path)),
        kafka: kafka::read(root.section("kafka")),
        engine: engine(root.section("engine")),
        http: http::read(root.section("http")),
        delivery: endpoint::delivery(root.section("delivery")),
        endpoints: endpoint::read(root.map("endpoints")),
        checkpoint: checkpoint(root.section("checkpoint")),
        store: store(root.section("store")),
        reload: reload(root.section("reload")),
        telemetry: telemetry(root.section("telemetry")),
    };
    if root.has_taken("rules") && config.rules.is_empty() {
        root.fault("rules", Fault::new(code::MISSING, "needs at least one file or directory"));
    }
    root.finish();
    config
}

fn engine(mut s: Section<'_>) -> Engine {
    let millis = |span: Duration| span.as_millis() as i64;
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let pane = millis(s.need("pane", reader::span("100ms", "1m"))).max(1);
    let max_skew = millis(s.need("max_skew", reader::span("1s", "1d")));
    let settings = Settings {
        pane,
        lateness: millis(s.need("lateness", reader::span("0", "1d"))),
        idle_after: millis(s.need("idle_after", reader::span("1s", "1h"))),
        dedupe_horizon: millis(s.need("dedupe_horizon", reader::span("0", "7d"))),
        dedupe_max: count(s.need("dedupe_max", reader::whole(0..=1_000_000_000))),
        workflows_max: count(s.need("workflows_max", reader::whole(1..=1_000_000_000))),
        units_max: count(s.need("units_max", reader::whole(1..=10_000_000_000))),
        waiting_max: count(s.need("waiting_max", reader::whole(0..=100_000_000))),
        max_skew_panes: max_skew / pane,
        ahead_max: count(s.need("ahead_max", reader::size("16MiB", "64GiB"))),
        shared_cause: shared_cause(s.section("shared_cause")),
        blast_radius: blast_radius(s.section("blast_radius")),
    };
    for (key, span) in [("lateness", settings.lateness), ("max_skew", max_skew)] {
        if span % pane != 0 {
            let pane = units::write_span(Duration::from_millis(pane.unsigned_abs()));
            s.fault(key, Fault::new(code::INCONSISTENT, format!("must be a whole number of panes ({pane})")));
        }
    }
    let max_record = count(s.need("max_record", reader::size("1KiB", "64MiB")));
    s.finish();
    Engine { settings, max_record }
}

fn shared_cause(mut s: Section<'_>) -> SharedCause {
    let rule = SharedCause {
        experiments: usize::try_from(s.need("experiments", reader::whole(2..=1_000_000))).unwrap_or(usize::MAX),
        share: s.need("percent", reader::whole(0..=100)) as f64 / 100.0,
        within: s.need("within", reader::span("1s", "1h")).as_millis() as i64,
    };
    s.finish();
    rule
}

fn blast_radius(mut s: Section<'_>) -> BlastRadius {
    let bound = BlastRadius {
        experiments: usize::try_from(s.need("experiments", reader::whole(0..=1_000_000))).unwrap_or(usize::MAX),
        within: s.need("within", reader::span("1s", "7d")).as_millis() as i64,
    };
    s.finish();
    bound
}

fn checkpoint(mut s: Section<'_>) -> Checkpoint {
    let every = s.need("every", reader::span("1s", "10m"));
    s.finish();
    Checkpoint { every }
}

fn store(mut s: Section<'_>) -> Store {
    let retention = s.need("retention", reader::span("1d", "3650d"));
    s.finish();
    Store { retention }
}

fn reload(mut s: Section<'_>) -> Reload {
    let every = s.need("every", reader::span("1s", "1h"));
    s.finish();
    Reload { every }
}

fn telemetry(mut s: Section<'_>) -> Telemetry {
    let telemetry = Telemetry { log: log(s.section("log")), otlp: otlp(s.section("otlp")) };
    s.finish();
    telemetry
}

fn log(mut s: Section<'_>) -> Log {
    let words = &[("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)];
    let format = s.need("format", reader::choice(words));
    let level = s.need("level", |item| {
        let text = reader::text(item)?;
        match text.parse::<tracing_subscriber::EnvFilter>() {
            Ok(_) => Ok(text),
            Err(error) => Err(Fault::new(code::OUT_OF_RANGE, format!("not a log level: {error}"))
                .help("error, warn, info, debug or trace; per module: info,guardraild::delivery=debug")),
        }
    });
    s.finish();
    Log { format, level }
}

fn otlp(mut s: Section<'_>) -> Otlp {
    let otlp = Otlp {
        endpoint: s.opt("endpoint", url).map(|url| url.trim_end_matches('/').to_owned()),
        headers: endpoint::headers(s.map("headers")),
        traces: s.need("traces", reader::flag),
        metrics: s.need("metrics", reader::flag),
        interval: s.need("interval", reader::span("1s", "1h")),
    };
    s.finish();
    otlp
}

/// An http or https address without a user or password in it.
fn url(item: &reader::Item<'_>) -> Result<String, Fault> {
    let text = reader::text(item)?;
    check_url(&text).map(|()| text)
}

fn check_url(text: &str) -> Result<(), Fault> {
    let url = reqwest::Url::parse(text).map_err(|error| Fault::new(code::WRONG_TYPE, format!("not an address: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Fault::new(code::OUT_OF_RANGE, "must begin with http:// or https://"));
    }
    if url.username() != "" || url.password().is_some() {
        return Err(
            Fault::new(code::LITERAL_SECRET, "an address holds no user or password").help("use a header with {file: PATH} or {env: NAME}")
        );
    }
    Ok(())
}
