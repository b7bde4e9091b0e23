//! A made-up shop, and what is made of it. `GUARDRAILD_UPDATE=1 cargo test --lib tools::init` writes `tests/init` anew.

use super::*;
use crate::engine::plan::Settings;
use crate::ingest::schemas::Schema;
use crate::mapping::Format;
use crate::rules::checked;
use std::path::Path;

const START: i64 = 1_796_115_600_000;

fn at(ms: i64) -> String {
    crate::engine::decision::Timestamp(START + ms).to_string()
}

/// Ten minutes of two experiments, one of them without exposures that say much; some records are broken.
fn shop() -> Vec<(usize, i32, String)> {
    let mut out = Vec::new();
    for user in 0..1_200_i64 {
        let (ms, partition) = (user * 500, (user % 4) as i32);
        let bucket = if user % 2 == 0 { "control" } else { "treatment" };
        let region = ["eu", "uk", "us"][(user % 3) as usize];
        let head = |ms: i64| format!(r#""ts":"{}","tenant_id":"t","user_id":"u{user}""#, at(ms));
        out.push((0, partition, format!(
            r#"{{"event":"exposure",{},"experiment":"new-checkout","bucket":"{bucket}","attributes":{{"region":"{region}","session":"s{user}"}}}}"#,
            head(ms)
        )));
        for n in 0..4 {
            // From 100 to 499 ms; one in a hundred fails.
            let (latency, error) = (100 + (user * 7 + n * 131) % 400, (user * 4 + n) % 100 == 0);
            let record =
                format!(r#"{{"event":"request",{},"latency_ms":{latency},"error":{error},"route":"/pay"}}"#, head(ms + 10 * n + 1));
            out.push((1, partition, record));
        }
        if user % 4 < 2 {
            out.push((1, partition, format!(r#"{{"event":"outcome",{},"metric":"orders","value":1}}"#, head(ms + 100))));
            out.push((
                1,
                partition,
                format!(r#"{{"event":"outcome",{},"metric":"basket","value":{},"covariate":3}}"#, head(ms + 101), 20 + user % 50),
            ));
        }
        if user % 10 == 0 {
            out.push((
                1,
                partition,
                format!(r#"{{"event":"workflow_started",{},"workflow":"purchase","workflow_id":"w{user}"}}"#, head(ms + 5)),
            ));
        }
        if user % 100 == 0 {
            out.push((1, partition, format!(r#"{{"event":"ticket",{}}}"#, head(ms + 7))));
            out.push((1, partition, "{\"event\":\"request\"}".to_owned()));
        }
    }
    out
}

fn found(records: &[(usize, i32, String)], names: &[&str]) -> Found {
    let mut sample = Sample::default();
    assert!(records.iter().all(|(topic, partition, text)| sample.take(*topic, *partition, text.as_bytes())));
    sample.found(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), None)
}

/// Holds a text against the one that is committed.
fn expect(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/init").join(name);
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap_or_default() == text, "{name} is another one; GUARDRAILD_UPDATE=1 writes it:\n{text}");
}

/// What `check` says of a text.
fn faults(text: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.yaml");
    std::fs::write(&file, text).unwrap();
    let endpoints = std::collections::BTreeSet::from(["flag-service", "ops", "pager"].map(str::to_owned));
    checked(&[file], Some(&endpoints), &Settings::default()).diagnostics.iter().map(|d| d.human(false)).collect()
}

#[test]
fn a_sample_becomes_a_page_and_a_rule_that_check_has_nothing_against() {
    let found = found(&shop(), &["experiment.exposures", "experiment.events"]);
    expect("seen.txt", &told(&found));
    let text = rule("new-checkout", &found, "../schemas", &Receivers::default());
    expect("rule.txt", &text);
    assert_eq!(faults(&text), Vec::<String>::new());
    expect("test.txt", &test(&found, "new-checkout", "../schemas"));
    assert_eq!(sources(&found, "../schemas"), None);
}

#[test]
fn without_a_record_there_is_a_starter() {
    let text = rule("my-experiment", &Found::default(), "../schemas", &Receivers::default());
    expect("starter.txt", &text);
    assert_eq!(faults(&text), Vec::<String>::new());
}

#[test]
fn receivers_are_those_of_the_configuration() {
    let receivers = Receivers { webhook: Some("flag-service".into()), slack: Some("ops".into()), pagerduty: Some("pager".into()) };
    let text = rule("a", &Found::default(), "../schemas", &receivers);
    assert!(text.contains("notify: {slack: ops}") && text.contains("page: {pagerduty: pager}"), "{text}");
    assert_eq!(faults(&text), Vec::<String>::new());
}

#[test]
fn foreign_layouts_are_told_by_their_presets() {
    for preset in crate::mapping::presets::NAMES {
        let text = std::fs::read_to_string(format!("tests/presets/{preset}.json")).unwrap();
        let records = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>().map(|r| r.unwrap());
        let records: Vec<_> = records.map(|record| (0, 0, record.to_string())).collect();
        let found = found(&records, &["shop.topic"]);
        let Layout::Preset(named, ..) = &found.topics[0].layout else { panic!("{preset}: {}", told(&found)) };
        assert_eq!(named, preset);
        assert_eq!(faults(&sources(&found, "../schemas").unwrap()), Vec::<String>::new(), "{preset}");
    }
}

#[test]
fn records_with_schemas_are_read_by_the_registry() {
    let schema = r#"{"type":"record","name":"exposure","fields":[{"name":"event","type":"string"},{"name":"ts","type":"long"},
        {"name":"tenant_id","type":"string"},{"name":"user_id","type":"string"},{"name":"experiment","type":"string"},{"name":"bucket","type":"string"}]}"#;
    let schemas = Schemas::fixed([
        (7, Schema::parse(Format::Avro, schema, Vec::new()).unwrap()),
        (8, Schema::parse(Format::JsonSchema, "{}", Vec::new()).unwrap()),
    ]);
    let zigzag = |n: i64| {
        let (mut n, mut out) = (((n << 1) ^ (n >> 63)) as u64, Vec::new());
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out
    };
    let text = |text: &str| [zigzag(text.len() as i64), text.as_bytes().to_vec()].concat();
    let mut sample = Sample::default();
    for user in 0..200_i64 {
        let (name, bucket) = (format!("u{user}"), ["control", "treatment"][(user % 2) as usize]);
        let texts = [name.as_str(), "search", bucket].map(text).concat();
        sample.take(0, 0, &[b"\0\0\0\0\x07".to_vec(), text("exposure"), zigzag(START + user), text("t"), texts].concat());
        let request = format!(
            r#"{{"event":"request","ts":{},"tenant_id":"t","user_id":"{name}","latency_ms":{},"error":false}}"#,
            START + user + 1,
            100 + user
        );
        sample.take(1, 0, &[b"\0\0\0\0\x08", request.as_bytes()].concat());
        sample.take(2, 0, b"\0\0\0\0\x08{\"own\":1}");
    }
    sample.take(0, 0, b"\0\0\0\0\x07\x02");
    let found = sample.found(&["shop.exposures", "shop.requests", "shop.own"].map(str::to_owned), Some(schemas));
    let page = told(&found);
    for part in [
        "201 records  avro: canonical events, refused: 1 not_json",
        "200 records  json_schema: canonical events",
        "json_schema: a layout of its own",
    ] {
        assert!(page.contains(part), "{page}");
    }
    let search = &found.tally.experiments["search"];
    assert_eq!((search.units(), search.figures.requests), (200, 200));
    let sources = sources(&found, "../schemas").unwrap();
    assert!(
        sources.contains(
            "shop.exposures: {topics: ['shop.exposures'], format: avro}\n  shop.requests: {topics: ['shop.requests'], format: json_schema}"
        ),
        "{sources}"
    );
    assert_eq!(faults(&sources), Vec::<String>::new());
}

#[test]
fn what_nobody_knows_is_described() {
    let records = vec![
        (0, 0, r#"{"kind":"view","at":{"ms":5},"tags":[1]}"#.to_owned()),
        (0, 0, r#"{"kind":"click"}"#.to_owned()),
        (1, 0, "\0\0\0\0\x07x".to_owned()),
        (2, 0, "<xml/>".to_owned()),
    ];
    let text = told(&found(&records, &["own", "avro", "text", "empty"]));
    for part in [
        "which needs a source; fields /at/ms /kind",
        "begin with the id of a schema, and cannot be read: --schema-registry URL says where it is",
        "no JSON",
        "nothing in it",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn whatever_the_names_are_the_rule_is_sound() {
    for name in ["true", "a: b", "\"q\"", "0", "ü ñ", "{x}", "a#b", "it's"] {
        let head = format!(r#""ts":"{}","tenant_id":"","user_id":"u""#, at(0));
        let quoted = serde_json::to_string(name).unwrap();
        let records = vec![
            (0, 0, format!(r#"{{"event":"exposure",{head},"experiment":{quoted},"bucket":{quoted},"attributes":{{{quoted}:"x"}}}}"#)),
            (0, 0, format!(r#"{{"event":"outcome",{head},"metric":{quoted},"value":3}}"#)),
        ];
        let text = rule(name, &found(&records, &["t"]), "../schemas", &Receivers::default());
        assert_eq!(faults(&text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_topic_full_of_names_takes_no_room() {
    let mut tally = Tally::default();
    for i in 0..5_000 {
        let text = format!(
            r#"{{"event":"e{i}","ts":"{}","user_id":"u{i}","experiment":"x{i}","bucket":"b{i}","f{i}":1,"attributes":{{"a{i}":"v"}}}}"#,
            at(0)
        );
        let record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        tally.add(&record, 0, START);
        let exposure: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&text.replace(&format!("\"e{i}\""), "\"exposure\"").replace(&format!("x{i}"), "x")).unwrap();
        tally.add(&exposure, 0, START);
    }
    let x = &tally.experiments["x"];
    assert!(tally.kinds.len() <= 64 && tally.experiments.len() <= 32 && x.buckets.len() <= 64 && x.attributes.len() <= 16);
}
