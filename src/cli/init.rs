//! `guardraild init`: from what is there to a rule file in one command.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::schema::Kind as SchemaOf;
use super::{check, run, show};
use crate::app;
use crate::clock;
use crate::config::{Config, EndpointKind};
use crate::engine::plan::Settings;
use crate::engine::time::Millis;
use crate::ingest::decode::Limits;
use crate::ingest::file::Recording;
use crate::ingest::kafka::KafkaConfig;
use crate::ingest::range::{Range, RangeConfig, RangeError};
use crate::ingest::schemas::{Registry, Schemas};
use crate::mapping::Sources;
use crate::rules;
use crate::telemetry::Metrics;
use crate::tools::init::files::{self, File, Kind};
use crate::tools::init::{Found, Layout, Receivers, Sample, rule, sources, test, told};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  guardraild init --brokers kafka-1:9092               look at the default topics for ten seconds
  guardraild init --config guardraild.yaml --for 1m    with TLS, SASL and topics as the daemon has them
  guardraild init --brokers kafka-1:9092 --topic shop.events --topic flags.evaluations
  guardraild init --brokers kafka-1:9092 --topic shop.events --schema-registry https://registry.example:8081
  guardraild init --events monday.ndjson.zst           from a recording
  guardraild init first-look --experiment new-checkout nothing to look at: a commented starter";

/// Records from this long ago on are looked at, where there are any; else all that are kept.
const RECENT: Millis = 3_600_000;
/// Without an answer for this long, Kafka is taken for unreachable.
const PATIENCE: Duration = Duration::from_secs(10);
/// Experiments that rule files are written for at most, where none are named.
const EXPERIMENTS: usize = 8;
/// How the end of the sample is told apart from a failure.
const ENOUGH: &str = "enough";

/// Write a first rule file, its test and a configuration, from what topics or recordings hold.
///
/// Looks at records, says what they are, and proposes metrics, limits and margins from them, in `observe` mode. Nothing is joined,
/// committed or sent, and nothing that is there is written over without --force.
/// Exit status: 0 done, 1 nothing could be read or written, 2 usage.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct InitArgs {
    /// Where to write: `rules`, `schemas`, `secrets` and guardraild.yaml.
    #[arg(value_name = "DIR", default_value = ".")]
    pub directory: PathBuf,
    /// The experiment, of several that are seen; may be repeated [default: all, up to 8].
    #[arg(long = "experiment", value_name = "NAME")]
    pub experiments: Vec<String>,
    /// Recordings to look at: NDJSON, plain, .gz or .zst; `-` is standard input.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["brokers", "config", "topics", "schema_registry"])]
    pub events: Vec<PathBuf>,
    /// Brokers to look at, separated by commas.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub brokers: Vec<String>,
    /// A topic to look at, whatever its layout; may be repeated [default: those of the configuration].
    #[arg(long = "topic", value_name = "NAME")]
    pub topics: Vec<String>,
    /// Where the schemas of Avro, Protobuf and JSON Schema records are (Confluent's API).
    #[arg(long, value_name = "URL")]
    pub schema_registry: Option<String>,
    /// Configuration file of the daemon: its brokers, topics, TLS, SASL and endpoints are used, and none is written.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override one setting: `--set kafka.properties.security.protocol=ssl`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = run::key_value)]
    pub overrides: Vec<(String, String)>,
    /// Look at no more records than this.
    #[arg(long, value_name = "N", default_value = "100000")]
    pub records: NonZeroUsize,
    /// Look for no longer than this.
    #[arg(long = "for", value_name = "SPAN", value_parser = super::span, default_value = "10s")]
    pub span: Millis,
    /// Replace rule files and tests that are there.
    #[arg(long)]
    pub force: bool,
}

/// Returns the exit status.
pub fn run(args: &InitArgs) -> i32 {
    match init(args) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error}");
            1
        }
    }
}

fn init(args: &InitArgs) -> Result<i32, String> {
    let config = args.config.as_deref().map(|path| Config::load(Some(path), &args.overrides)).transpose().map_err(|e| e.to_string())?;
    let found = look(args)?;
    if let Some(found) = &found {
        told(found).lines().for_each(|line| println!("{}", show::printable(line)));
    }
    let found = found.unwrap_or_default();
    let root = &args.directory;
    let folder =
        config.as_ref().and_then(|c| c.rules.first().cloned()).filter(|path| !path.is_file()).unwrap_or_else(|| root.join("rules"));
    let mut out = proposals(args, &found, &folder, &receivers(config.as_ref()));
    if config.is_none() {
        let topics = topics(args, &found);
        let topics = topics.as_ref().map(|(a, b)| (&a[..], &b[..]));
        out.extend(files::daemon(root, &args.brokers, topics, args.schema_registry.as_deref()));
    }
    let written = files::write(&out, args.force).map_err(|e| e.to_string())?;
    println!("\nwrote");
    written.iter().for_each(|path| println!("  {}", shown(path)));
    let config_path = args.config.clone().unwrap_or_else(|| root.join("guardraild.yaml"));
    let status = verify(&folder, &config_path);
    next(&out, &folder, &config_path);
    Ok(status)
}

/// What there is to look at; `None` where nothing is named.
fn look(args: &InitArgs) -> Result<Option<Found>, String> {
    let until = Instant::now() + Duration::from_millis(args.span.unsigned_abs());
    let (mut sample, mut schemas) = (Sample::default(), None);
    let bar = ProgressBar::new(args.records.get() as u64).with_style(
        ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} records {per_sec}").unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let mut take = |topic: usize, partition: i32, bytes: &[u8]| {
        bar.inc(1);
        let room = sample.take(topic, partition, bytes);
        room && sample.len() < args.records.get() && Instant::now() < until
    };
    let names: Vec<String> = if !args.events.is_empty() {
        for (i, path) in args.events.iter().enumerate() {
            let source = Recording { files: std::slice::from_ref(path), source: None, limits: Limits::default() };
            let each = |line: &[u8]| if take(i, 0, line) { Ok(()) } else { Err(io::Error::other(ENOUGH)) };
            if let Err(error) = source.each(each).map(drop)
                && error.to_string() != ENOUGH
            {
                return Err(error.to_string());
            }
        }
        let stem = |path: &PathBuf| path.file_name().map_or_else(|| "-".into(), |n| n.to_string_lossy().into_owned());
        args.events.iter().map(stem).collect()
    } else if args.config.is_some() || !args.brokers.is_empty() {
        let (kafka, registry) = kafka(args)?;
        schemas = registry;
        read_topics(kafka, &mut take).map_err(|e| e.to_string())?
    } else {
        return Ok(None);
    };
    bar.finish_and_clear();
    if sample.is_empty() {
        return Err("there is no record to look at".to_owned());
    }
    Ok(Some(sample.found(&names, schemas)))
}

/// The cluster, and the schemas of its registry.
fn kafka(args: &InitArgs) -> Result<(KafkaConfig, Option<Schemas>), String> {
    let mut overrides = args.overrides.clone();
    if !args.brokers.is_empty() {
        overrides.push(("kafka.brokers".into(), format!("[{}]", args.brokers.join(","))));
    }
    overrides.extend(args.schema_registry.clone().map(|url| ("kafka.schema_registry.url".into(), url)));
    let (kafka, _) = Config::load_input(args.config.as_deref(), &overrides).map_err(|errors| errors.to_string())?;
    let registry = kafka.schema_registry.as_ref().map(|settings| {
        let registry = Registry::new(app::registry_config(settings)).map_err(|error| error.to_string())?;
        Schemas::start(registry, Metrics::default()).map_err(|error| error.to_string())
    });
    let schemas = registry.transpose()?;
    let mut kafka = app::kafka_config(&kafka, &Sources::default());
    if !args.topics.is_empty() {
        kafka.topics.clone_from(&args.topics);
    }
    Ok((kafka, schemas))
}

/// Reads what came lately, else what there is; gives the names of the topics that are there.
fn read_topics(kafka: KafkaConfig, take: &mut impl FnMut(usize, i32, &[u8]) -> bool) -> Result<Vec<String>, RangeError> {
    let open = |since| {
        // A missing topic is told with those that are there, unless others can be looked at.
        let optional = kafka.topics.get(1..).unwrap_or_default().to_vec();
        let config = RangeConfig { kafka: kafka.clone(), optional, since, until: None, patience: PATIENCE };
        Range::open(config, clock::now)
    };
    let range = match open(Some(clock::now() - RECENT)) {
        Err(RangeError::NoRecords { .. }) => open(None)?,
        opened => opened?,
    };
    let names = range.topics().to_vec();
    for topic in range.left_out() {
        eprintln!("no such topic: {topic}; going on without it");
    }
    range.read(|record, _| Ok::<bool, RangeError>(take(record.topic, record.partition, record.payload)))?;
    Ok(names)
}

/// Rule files and their tests, sources, and the schemas that editors read them by.
fn proposals(args: &InitArgs, found: &Found, folder: &Path, receivers: &Receivers) -> Vec<File> {
    let mut names: Vec<String> = match &args.experiments[..] {
        [] => found.tally.experiments.keys().take(EXPERIMENTS).cloned().collect(),
        named => named.to_vec(),
    };
    if names.is_empty() {
        names.push("my-experiment".to_owned());
    }
    let schemas = "../schemas";
    let mut taken = BTreeSet::new();
    let mut out = Vec::new();
    let mut add = |name: String, text: String, kind| out.push(File { path: folder.join(name), text, kind });
    for name in &names {
        let stem = files::stem(name, &mut taken);
        add(format!("{stem}.yaml"), rule(name, found, schemas, receivers), Kind::Proposal);
        add(format!("{stem}_test.yaml"), test(found, name, schemas), Kind::Proposal);
    }
    if let Some(text) = sources(found, schemas) {
        add("sources.yaml".to_owned(), text, Kind::Proposal);
    }
    for schema in SchemaOf::value_variants() {
        add(format!("{schemas}/{}", schema.file_name()), schema.text(), Kind::Schema);
    }
    out
}

/// Topics of exposures and of events, where they are not the default ones; those of presets and schemas are named by their sources.
fn topics(args: &InitArgs, found: &Found) -> Option<(Vec<String>, Vec<String>)> {
    if args.topics.is_empty() {
        return None;
    }
    let canonical = found.topics.iter().filter(|topic| matches!(topic.layout, Layout::Canonical) && topic.schema.is_none());
    let (exposures, events): (Vec<_>, Vec<_>) = canonical.partition(|topic| topic.exposures > 0);
    let names = |topics: Vec<&crate::tools::init::Topic>| topics.iter().map(|topic| topic.name.clone()).collect::<Vec<_>>();
    Some((names(exposures), names(events))).filter(|(a, b)| !a.is_empty() || !b.is_empty())
}

/// The configuration's endpoints: the first of each kind.
fn receivers(config: Option<&Config>) -> Receivers {
    let first = |kinds: &[EndpointKind]| Some(config?.endpoints.iter().find(|(_, e)| kinds.contains(&e.kind))?.0.clone());
    Receivers {
        webhook: first(&[EndpointKind::Webhook, EndpointKind::CloudEvents]),
        pagerduty: first(&[EndpointKind::PagerDuty]),
        slack: first(&[EndpointKind::Slack]),
    }
}

/// Checks what was written, as `guardraild check` does.
fn verify(folder: &Path, config: &Path) -> i32 {
    let config = Config::load(Some(config), &[]);
    if let Err(errors) = &config {
        eprintln!("\n{errors}");
    }
    let endpoints = config.as_ref().ok().map(|config| config.endpoints.keys().cloned().collect());
    let settings = config.as_ref().map_or_else(|_| Settings::default(), |config| config.engine.settings.clone());
    let loaded = rules::checked(&[folder.to_owned()], endpoints.as_ref(), &settings);
    for diagnostic in &loaded.diagnostics {
        eprintln!("\n{}", diagnostic.human(check::color_stderr()).trim_end());
    }
    i32::from(config.is_err() || loaded.refused > 0)
}

/// What to do next.
fn next(out: &[File], folder: &Path, config: &Path) {
    let (folder_shown, config) = (shown(folder), shown(config));
    let first = out.first().map(|file| shown(&file.path)).unwrap_or_default();
    let commands = [
        (format!("$EDITOR {first}"), ""),
        (format!("guardraild check --config {config} --online"), "is it right, and is everything there?"),
        (format!("guardraild test {folder_shown}"), "does it act when it should?"),
        (format!("guardraild simulate --rules {first} --days 1"), "how often does it alarm without cause?"),
        (format!("guardraild run --config {config}"), "watches, and acts on nothing while the mode is `observe`"),
    ];
    let width = commands.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    println!("\nnext");
    commands.iter().for_each(|(command, why)| println!("{}", format!("  {command:width$}  {why}").trim_end()));
}

fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    text.strip_prefix("./").map_or(text.clone(), str::to_owned).replace("/rules/../", "/").replace("rules/../", "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::broker::{Broker, Writer};
    use crate::tools::traffic::{Record, Topic};
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: InitArgs,
    }

    #[test]
    fn topics_become_files_that_the_daemon_takes() {
        // A variable of this name is taken for a setting.
        if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
            return;
        }
        let broker = Broker::start(2).unwrap();
        let writer = Writer::new(&broker.servers(), "", &[]).unwrap();
        let now = clock::now();
        let ts = crate::engine::decision::Timestamp(now);
        for i in 0..300 {
            let head = format!(r#""ts":"{ts}","tenant_id":"t","user_id":"u{i}""#);
            let bucket = ["control", "treatment"][i % 2];
            let exposure = format!(r#"{{"event":"exposure",{head},"experiment":"search","bucket":"{bucket}"}}"#);
            let request = format!(r#"{{"event":"request",{head},"latency_ms":{},"error":false}}"#, 100 + i);
            for (topic, payload) in [(Topic::Exposures, exposure), (Topic::Events, request)] {
                let record = Record {
                    topic,
                    key: format!("t|u{i}").into_bytes(),
                    payload: payload.into_bytes(),
                    ts: now,
                    number: 0,
                    user: 0,
                    exposed: None,
                };
                writer.send(&record).unwrap();
            }
        }
        writer.flush(Duration::from_secs(10)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().display().to_string();
        let status = |more: &[&str]| {
            let all = ["init", &root, "--brokers"].into_iter().map(str::to_owned).chain([broker.servers()]);
            super::run(&Only::parse_from(all.chain(more.iter().map(|text| (*text).to_owned()))).args)
        };
        assert_eq!(status(&[]), 0);
        let rule = std::fs::read_to_string(directory.path().join("rules/search.yaml")).unwrap();
        assert!(rule.contains("of 300 units") && rule.contains("mode: observe"), "{rule}");
        let config = Config::load_with(Some(&directory.path().join("guardraild.yaml")), &[], &Default::default()).unwrap();
        assert_eq!(config.kafka.brokers, [broker.servers()]);
        assert_eq!((status(&[]), status(&["--force"])), (1, 0), "what is there stays, unless it is to be replaced");
        assert_eq!(status(&["--force", "--topic", "no.such.topic"]), 1);
    }
}
