//! What is known of an experiment outlives the process, and its end: log, figures, readout.

use super::harness::{BIN, Hook, Kafka, OPERATOR, Site, holds, one_topic, until};
use super::stream::{EXPERIMENT, Service, rule};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Headers as _;
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use serde_json::Value;
use std::process::{Command, Output};
use std::time::Duration;

fn run(args: &[&str], url: &str) -> Output {
    Command::new(BIN).args(args).env("GUARDRAILD_URL", url).env("GUARDRAILD_TOKEN", OPERATOR).output().unwrap()
}

fn printed(args: &[&str], url: &str) -> String {
    let output = run(args, url);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Key, header `webhook-id` and value of a topic's first record.
fn first_record(kafka: &Kafka, topic: &str) -> (String, String, Value) {
    let brokers = kafka.cluster.bootstrap_servers();
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "reader").create().unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&from).unwrap();
    let record = until("a record of the decision", || consumer.poll(Duration::from_millis(100)).and_then(Result::ok).map(|r| r.detach()));
    let id = record.headers().and_then(|headers| headers.iter().find(|h| h.key == "webhook-id")?.value).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(record.key().unwrap()), text(id), serde_json::from_slice(record.payload().unwrap()).unwrap())
}

#[test]
fn a_readout_tells_the_same_from_the_daemon_and_from_its_files_and_charts_survive_a_restart() {
    let kafka = Kafka::start(&["all", "decided"], 1);
    let hook = Hook::ok();
    let rule = format!(
        "{}instrumentation: {{flag: {{name: one-page, default: control}}}}\ncomms: {{runbook: https://wiki.example/rb}}\n",
        rule(EXPERIMENT, "enforce")
    );
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule)]);
    let service = Service { slow_from: 10_000, ..Service::healthy(guardraild::clock::now() - 300_000) };
    let settings = ["engine.idle_after=1h", "kafka.decisions_topic=decided"];
    let mut daemon = site.start(&settings);
    daemon.ready();
    let url = format!("http://{}", daemon.address());
    let state_dir = site.path("state").display().to_string();

    kafka.write("all", &service.records(0, 40_000));
    let decided = until("the rollback", || hook.of("guardrail.rollback").pop()).data["decision"].as_str().unwrap().to_owned();
    let (key, id, record) = first_record(&kafka, "decided");
    assert_eq!((key.as_str(), id, &record["type"]), (EXPERIMENT, format!("{decided}-decision-record"), &"guardrail.rollback".into()));
    assert_eq!((&record["data"]["decision"], record["data"]["body"].is_object()), (&decided.as_str().into(), true), "{record}");

    let note = ["annotate", EXPERIMENT, "--kind", "learning", "--text", "pages | <slow> on phones", "--link", "https://wiki.example/l"];
    assert_eq!(printed(&note, &url), format!("{EXPERIMENT}: noted as learning\n"));
    let kinds = |args: &[&str]| {
        let lines = printed(&[&["log", EXPERIMENT, "--output", "json"], args].concat(), &url);
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    holds("the delivery is in the log", || kinds(&[]).iter().any(|entry| entry["kind"] == "delivery"));
    let learned = kinds(&["--kind", "learning,next"]);
    assert_eq!((learned.len(), &learned[0]["author"], &learned[0]["links"][0]), (1, &"sre".into(), &"https://wiki.example/l".into()));
    let linked = kinds(&["--kind", "decision"]);
    assert!(linked[0]["links"][0].as_str().unwrap().ends_with(&format!("#/d/{decided}")), "{linked:?}");
    assert_eq!(run(&["status", EXPERIMENT], &url).status.code(), Some(1));
    assert_eq!(run(&["status", EXPERIMENT, "--wait", "--timeout", "1m"], &url).status.code(), Some(1));
    assert_eq!(run(&["status", "nobody"], &url).status.code(), Some(4));

    let offline = || run(&["readout", EXPERIMENT, "--state-dir", &state_dir], &url);
    let told = |text: &str| {
        ["**roll back**", decided.as_str(), "pages \\| \\<slow\\> on phones", "one-page", "rolled back at"]
            .iter()
            .all(|part| text.contains(part))
    };
    holds("figures are written down", || told(&String::from_utf8_lossy(&offline().stdout)));
    let online = printed(&["readout", EXPERIMENT], &url);
    assert!(told(&online) && online.contains("https://wiki.example/rb"), "{online}");
    let export = site.path("export");
    printed(&["readout", EXPERIMENT, "--export", &export.display().to_string()], &url);
    let csv = std::fs::read_to_string(export.join("guardrails_over_time.csv")).unwrap();
    assert!(csv.lines().count() > 1 && csv.contains("latency_p95,treatment,"), "{csv}");
    let histogram = |page: &str| page.contains("latency_p95: histograms of control and treatment");
    assert!(histogram(&std::fs::read_to_string(export.join("readout.html")).unwrap()));
    assert!(std::fs::read_to_string(export.join("histograms.csv")).unwrap().contains("latency_p95,treatment,"));
    let audit = Command::new(BIN).arg("audit").arg(export.join("decisions.ndjson")).output().unwrap();
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));

    let seen = daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}/readout"))["points"].as_array().unwrap().len();
    daemon.kill();
    assert!(told(&String::from_utf8_lossy(&offline().stdout)), "without a daemon, too");
    let page = site.path("kept.html");
    run(&["readout", EXPERIMENT, "--state-dir", &state_dir, "--html", &page.display().to_string()], &url);
    assert!(histogram(&std::fs::read_to_string(page).unwrap()), "the bins of the last look are kept");
    let gone = run(&["readout", "nobody", "--state-dir", &state_dir], &url);
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains(EXPERIMENT));
    let mut daemon = site.start(&settings);
    daemon.ready();
    let series = daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}/series"));
    assert!(series["at"].as_array().unwrap().len() >= seen && seen > 0, "{seen}: {series}");
}
