//! `check --online`: whether everything that a configuration names is there. Nothing is sent, joined or committed.

use crate::app;
use crate::clock;
use crate::config::Config;
use crate::delivery::Endpoint;
use crate::ingest::range::{self, Cluster};
use crate::ingest::schemas::Registry;
use crate::mapping::Sources;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// How long Kafka is asked.
const PATIENCE: Duration = Duration::from_secs(8);

/// What became of one question.
#[derive(Debug, PartialEq)]
pub struct Finding {
    what: &'static str,
    name: String,
    pub result: Found,
}

#[derive(Debug, PartialEq)]
pub enum Found {
    Good(String),
    /// Sound, if it is meant so.
    Unsure(String),
    /// What is wrong, and what may help.
    Bad(String, &'static str),
}

/// Asks brokers, schema registry and endpoints. `sources` are those of the rules.
pub fn all(config: &Config, sources: &Sources) -> Vec<Finding> {
    // Another part of the process may have installed it before; either is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut found = kafka(config, sources);
    found.extend(registry(config, sources));
    found.extend(endpoints(config));
    found
}

fn kafka(config: &Config, sources: &Sources) -> Vec<Finding> {
    let kafka = app::kafka_config(&config.kafka, sources);
    let (brokers, topics) = (kafka.brokers.clone(), kafka.topics.clone());
    let optional: BTreeSet<&String> = config.kafka.topics.control.iter().collect();
    let read = |of: Result<Cluster, range::RangeError>| match of {
        Ok(cluster) => {
            let mut found = vec![Finding { what: "kafka", name: brokers.clone(), result: Found::Good(count(cluster.brokers, "broker")) }];
            found.extend(topics.iter().map(|topic| topic_there(topic, optional.contains(topic), &cluster)));
            found.push(partitions(&topics, &cluster));
            found
        }
        Err(error) => {
            let help = "kafka.brokers, and kafka.properties for TLS and SASL; does a firewall lie between?";
            vec![Finding { what: "kafka", name: brokers.clone(), result: Found::Bad(error.to_string(), help) }]
        }
    };
    read(range::look(kafka, PATIENCE, clock::now))
}

fn topic_there(topic: &str, optional: bool, cluster: &Cluster) -> Finding {
    let result = match cluster.topics.get(topic) {
        Some(Ok(partitions)) => Found::Good(count(*partitions, "partition")),
        Some(Err(why)) => Found::Bad(why.clone(), "may the daemon's user describe and read it?"),
        None if optional => Found::Unsure("not there; topics of `control` may be missing".to_owned()),
        None => Found::Bad(
            "not there".to_owned(),
            "create it, or correct kafka.topics; without the right to describe it, it is not seen either",
        ),
    };
    Finding { what: "topic", name: topic.to_owned(), result }
}

/// An exposure and the events that it explains must meet in one partition number.
fn partitions(topics: &[String], cluster: &Cluster) -> Finding {
    let counts: BTreeSet<usize> = topics.iter().filter_map(|topic| cluster.topics.get(topic)?.as_ref().ok()).copied().collect();
    let listed = counts.iter().map(usize::to_string).collect::<Vec<_>>().join(" and ");
    let result = match counts.len() {
        0 | 1 => Found::Good("equal".to_owned()),
        _ => Found::Bad(
            format!("{listed} partitions"),
            "topics are joined by partition number: give them equal numbers, and producers one partitioner",
        ),
    };
    Finding { what: "topics", name: "partitions".to_owned(), result }
}

fn registry(config: &Config, sources: &Sources) -> Vec<Finding> {
    let topics: Vec<&String> = sources.iter().filter(|s| s.format.has_schema()).flat_map(|s| &s.topics).collect();
    let Some(settings) = &config.kafka.schema_registry else {
        let missing = |topic: &String| {
            let help = "set kafka.schema_registry: without it these records are refused";
            Finding {
                what: "registry",
                name: topic.clone(),
                result: Found::Bad("a schema is needed, and no registry is configured".to_owned(), help),
            }
        };
        return topics.first().map(|topic| missing(topic)).into_iter().collect();
    };
    let answer = Registry::new(app::registry_config(settings)).map_err(|e| e.to_string()).and_then(|registry| registry.subjects());
    match answer {
        Err(why) => {
            let help = "kafka.schema_registry: its url, and user and password or token";
            vec![Finding { what: "registry", name: settings.url.clone(), result: Found::Bad(why, help) }]
        }
        Ok(subjects) => {
            let mut found =
                vec![Finding { what: "registry", name: settings.url.clone(), result: Found::Good(count(subjects.len(), "subject")) }];
            found.extend(topics.into_iter().map(|topic| {
                let subject = format!("{topic}-value");
                let result = if subjects.contains(&subject) {
                    Found::Good("there".to_owned())
                } else {
                    Found::Unsure("not there; sound where subjects are named by records, or nothing has been written yet".to_owned())
                };
                Finding { what: "subject", name: subject, result }
            }));
            found
        }
    }
}

fn endpoints(config: &Config) -> Vec<Finding> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let endpoints: Vec<_> =
        config.endpoints.iter().map(|(name, endpoint)| Endpoint::configured(name, endpoint, &config.delivery)).collect();
    let probes = endpoints.iter().map(|endpoint| async move {
        let result = match endpoint.probe().await {
            Ok(place) => Found::Good(place),
            Err(why) => {
                Found::Bad(why.to_string(), "endpoints: its url; delivery: hosts, loopback, private; certificates; a proxy is not used")
            }
        };
        Finding { what: "endpoint", name: endpoint.name.clone(), result }
    });
    runtime.block_on(futures_util::future::join_all(probes))
}

/// A line for each finding, with a way out under what is wrong.
pub fn table(findings: &[Finding]) -> String {
    let width = |of: fn(&Finding) -> usize| findings.iter().map(of).max().unwrap_or(0);
    let (what, name) = (width(|f| f.what.len()), width(|f| f.name.chars().count()));
    let mut out = String::new();
    for finding in findings {
        let (word, text, help) = match &finding.result {
            Found::Good(text) => ("ok    ", text, None),
            Found::Unsure(text) => ("?     ", text, None),
            Found::Bad(text, help) => ("FAILED", text, Some(help)),
        };
        let _ = writeln!(out, "{:what$}  {:name$}  {word}  {text}", finding.what, finding.name);
        if let Some(help) = help {
            let _ = writeln!(out, "{:1$}help: {help}", "", what + name + 12);
        }
    }
    out
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::assemble_plain;
    use crate::tools::broker::Broker;

    fn config(brokers: &str, rest: &str) -> Config {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guardraild.yaml");
        std::fs::write(directory.path().join("secret"), "a secret of more than 24 bytes").unwrap();
        std::fs::write(&path, format!("kafka:\n  brokers: ['{brokers}']\n{rest}")).unwrap();
        Config::load_with(Some(&path), &[], &Default::default()).unwrap()
    }

    #[test]
    fn what_is_there_is_told_from_what_is_not() {
        let broker = Broker::start(3).unwrap();
        let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // Whoever connects is let go again: an endpoint that speaks no TLS.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = open.local_addr().unwrap();
        let endpoints = format!(
            "  topics: {{exposures: [experiment.exposures], events: [experiment.events, other.events]}}
endpoints:
  good: {{kind: webhook, secrets: [{{file: secret}}], url: 'http://{at}/hook'}}
  gone: {{kind: webhook, secrets: [{{file: secret}}], url: 'http://{closed}/hook'}}
  metadata: {{kind: webhook, secrets: [{{file: secret}}], url: 'http://169.254.169.254/hook'}}
"
        );
        let config = config(&broker.servers(), &endpoints);
        let found = all(&config, &assemble_plain(Vec::new()).sources);
        let told: Vec<(&str, &str, &str)> = found
            .iter()
            .map(|f| {
                let word = match f.result {
                    Found::Good(_) => "good",
                    Found::Unsure(_) => "unsure",
                    Found::Bad(..) => "bad",
                };
                (f.what, if f.what == "kafka" { "" } else { f.name.as_str() }, word)
            })
            .collect();
        let expected = [
            ("kafka", "", "good"),
            ("topic", "experiment.exposures", "good"),
            ("topic", "experiment.events", "good"),
            ("topic", "other.events", "bad"),
            ("topic", "experiment.control", "unsure"),
            ("topics", "partitions", "good"),
            ("endpoint", "gone", "bad"),
            ("endpoint", "good", "good"),
            ("endpoint", "metadata", "bad"),
        ];
        assert_eq!(told, expected, "{}", table(&found));
        open.set_nonblocking(true).unwrap();
        let (mut stream, _) = open.accept().unwrap();
        let mut sent = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut sent).unwrap();
        assert_eq!(sent, b"", "nothing is sent");
    }

    #[test]
    fn unequal_partitions_are_told() {
        let cluster = |counts: [usize; 2]| Cluster {
            brokers: 1,
            topics: ["a", "b"].into_iter().zip(counts).map(|(name, n)| (name.to_owned(), Ok(n))).collect(),
        };
        let topics = ["a".to_owned(), "b".to_owned()];
        assert!(matches!(partitions(&topics, &cluster([3, 3])).result, Found::Good(_)));
        let Found::Bad(why, help) = partitions(&topics, &cluster([3, 12])).result else { panic!("they are not equal") };
        assert_eq!((why.as_str(), help.contains("equal numbers")), ("3 and 12 partitions", true));
    }

    #[test]
    fn a_table_stands_in_columns_and_offers_a_way_out() {
        let finding = |what, name: &str, result| Finding { what, name: name.to_owned(), result };
        let found =
            [finding("kafka", "k:9092", Found::Good("1 broker".into())), finding("endpoint", "hook", Found::Bad("gone".into(), "look"))];
        assert_eq!(
            table(&found),
            "kafka     k:9092  ok      1 broker\nendpoint  hook    FAILED  gone\n                          help: look\n"
        );
    }
}
