//! Brokers, topics and files that a run needs.

use crate::case::LoadCase;
use crate::generate;
use anyhow::{Context, bail, ensure};
use guardraild::tools::broker::{Broker, Writer};
use guardraild::tools::traffic::{Topic, Traffic};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct BrokerArgs {
    #[arg(long, default_value_t = 4)]
    partitions: i32,
}

/// `broker`: prints its address, and lives as long as whoever holds its standard input.
pub fn serve(args: &BrokerArgs) -> anyhow::Result<()> {
    let broker = Broker::start(args.partitions)?;
    println!("{}", broker.servers());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A cluster with two empty topics of its own; both go away when it is dropped.
pub struct Rig {
    pub servers: String,
    pub prefix: String,
    partitions: i32,
    embedded: Option<Child>,
}

impl Rig {
    /// Topics on `brokers`, or on an embedded broker in a process of its own.
    pub fn start(brokers: Option<&str>, partitions: i32) -> anyhow::Result<Rig> {
        let Some(brokers) = brokers else {
            let mut child = Command::new(std::env::current_exe()?)
                .args(["broker", "--partitions", &partitions.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let mut line = String::new();
            BufReader::new(child.stdout.take().context("the broker has no output")?).read_line(&mut line)?;
            ensure!(!line.is_empty(), "the embedded broker did not start");
            return Ok(Rig { servers: line.trim().to_owned(), prefix: String::new(), partitions, embedded: Some(child) });
        };
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("load-{}-{}.", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        let rig = Rig { servers: brokers.to_owned(), prefix, partitions, embedded: None };
        let topics = rig.topics();
        let new: Vec<NewTopic<'_>> = topics.iter().map(|t| NewTopic::new(t, partitions, TopicReplication::Fixed(1))).collect();
        let results = block_on(rig.admin()?.create_topics(&new, &AdminOptions::new().operation_timeout(Some(TIMEOUT))))??;
        for result in results {
            result.map_err(|(topic, code)| anyhow::anyhow!("topic {topic} could not be created: {code}"))?;
        }
        Ok(rig)
    }

    pub fn topics(&self) -> [String; 2] {
        [Topic::Exposures, Topic::Events].map(|topic| format!("{}{}", self.prefix, topic.name()))
    }

    /// Produces the case's records, the last of about now, and makes sure that the broker still has all of them.
    pub fn fill(&self, case: &LoadCase) -> anyhow::Result<()> {
        let mut traffic = Traffic::new(case.traffic.clone(), generate::start_to_end_now(case)?)?;
        generate::produce(&mut traffic, case.records, &self.writer()?)?;
        let kept = self.kept()?;
        if kept != case.records {
            bail!("the broker keeps {kept} of {} records: use more partitions, fewer records, or a real cluster", case.records);
        }
        Ok(())
    }

    /// Large batches: the embedded broker finds a fetch's batch by walking over them.
    pub fn writer(&self) -> anyhow::Result<Writer> {
        let settings = [("linger.ms", "50"), ("batch.size", "1000000"), ("queue.buffering.max.messages", "1000000")];
        Ok(Writer::new(&self.servers, &self.prefix, &settings)?)
    }

    /// Small batches, sent soon.
    pub fn writer_now(&self) -> anyhow::Result<Writer> {
        Ok(Writer::new(&self.servers, &self.prefix, &[("linger.ms", "5")])?)
    }

    pub fn kept(&self) -> anyhow::Result<u64> {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &self.servers).create()?;
        let mut kept = 0;
        for topic in self.topics() {
            for partition in 0..self.partitions {
                let (low, high) = consumer.fetch_watermarks(&topic, partition, TIMEOUT)?;
                kept += high.saturating_sub(low).unsigned_abs();
            }
        }
        Ok(kept)
    }

    fn admin(&self) -> anyhow::Result<AdminClient<DefaultClientContext>> {
        Ok(ClientConfig::new().set("bootstrap.servers", &self.servers).create()?)
    }

    /// Writes the daemon's files for `case` into `dir`; returns its configuration. `sink` is an endpoint's address and secret.
    pub fn files(&self, dir: &Path, case: &LoadCase, sink: (&str, &str)) -> anyhow::Result<PathBuf> {
        let rules = dir.join("rules");
        std::fs::create_dir_all(&rules)?;
        for (name, text) in case.rules() {
            std::fs::write(rules.join(format!("{name}.yaml")), text)?;
        }
        std::fs::write(dir.join("sink.secret"), sink.1)?;
        let [exposures, events] = self.topics();
        // JSON is YAML.
        let (engine, checkpoint) = (serde_json::to_string(&case.engine)?, serde_json::to_string(&case.checkpoint)?);
        let more: String = case.kafka.iter().map(|(key, value)| format!("  {key}: {value}\n")).collect();
        let text = format!(
            "state_dir: state\nrules: [rules]\nkafka:\n  brokers: [\"{}\"]\n  group: {}\n  auto_offset_reset: earliest\n  \
             topics: {{exposures: [{exposures}], events: [{events}]}}\n{more}http: {{listen: \"127.0.0.1:0\", connections_per_address: 512}}\nengine: {engine}\ncheckpoint: {checkpoint}\n\
             endpoints:\n  sink: {{kind: webhook, url: \"{}\", secrets: [{{file: sink.secret}}]}}\n",
            self.servers,
            group(),
            sink.0,
        );
        let config = dir.join("guardraild.yaml");
        std::fs::write(&config, text)?;
        Ok(config)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(child) = &mut self.embedded {
            drop(child.stdin.take());
            let _ = child.wait();
        } else if let Ok(admin) = self.admin() {
            let topics = self.topics();
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            if !matches!(block_on(admin.delete_topics(&names, &AdminOptions::new())), Ok(Ok(_))) {
                eprintln!("the topics {names:?} could not be deleted");
            }
        }
    }
}

/// A consumer group that nobody has used.
pub fn group() -> String {
    static GROUPS: AtomicU32 = AtomicU32::new(0);
    format!("load-{}-{}", std::process::id(), GROUPS.fetch_add(1, Ordering::Relaxed))
}

fn block_on<F: Future>(future: F) -> std::io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?.block_on(future))
}
