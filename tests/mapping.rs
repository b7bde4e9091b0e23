//! Sources: what records of foreign layouts stand for. The presets' records, as the products document them, and the events that come
//! of them are under `tests/presets`.
//!
//! `GUARDRAILD_UPDATE=1 cargo test --test mapping` writes the events anew.

#![allow(clippy::unwrap_used)]

use guardraild::engine::aggregate::Aggregator;
use guardraild::engine::event::Event;
use guardraild::engine::outcome::Reject;
use guardraild::engine::plan::{Catalog, FieldTable, Settings};
use guardraild::ingest::decode::{Decoder, Limits};
use guardraild::ingest::mapped::{Booked, Layouts, Mapper, Reader};
use guardraild::mapping::{Source, Sources, presets};
use guardraild::rules::load;
use proptest::prelude::*;
use std::fs;
use std::sync::Arc;

/// The source of a text that says `topics` and the like.
fn source(text: &str) -> Arc<Source> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sources.yaml");
    let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
    fs::write(&path, format!("guardrail: v1\nsources:\n  x:\n    topics: [t]\n{indented}")).unwrap();
    let loaded = load(&[path], None);
    let faults: String = loaded.diagnostics.iter().map(|d| d.human(false)).collect();
    loaded.sources.named("x").unwrap_or_else(|| panic!("{faults}")).clone()
}

/// The events that a record stands for, a line each; or why it was refused.
fn map(source: &Source, record: &str) -> Result<String, String> {
    let mut mapper = Mapper::new(32);
    mapper.map(source, record).map_err(|reason| reason.name().to_owned())?;
    Ok((0..).map_while(|i| mapper.event(i)).map(|event| format!("{event}\n")).collect())
}

fn decode(text: &str) -> Result<Event<'_>, String> {
    let fields = FieldTable { attributes: true, ..FieldTable::default() };
    Decoder::new(&fields, Limits::default()).decode(text.as_bytes()).map_err(|refused| refused.reason.name().to_owned())
}

#[test]
fn presets_make_canonical_events_of_what_products_write() {
    let mut stale = Vec::new();
    for (name, _) in presets::PRESETS {
        let source = source(&format!("preset: {name}"));
        let records = fs::read_to_string(format!("tests/presets/{name}.json")).unwrap();
        let events: String = records.lines().map(|record| map(&source, record).unwrap()).collect();
        assert!(!events.is_empty(), "{name}");
        for event in events.lines() {
            assert!(decode(event).is_ok(), "{name}: {event}: {:?}", decode(event));
        }
        let path = format!("tests/presets/{name}.events.ndjson");
        if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
            fs::write(&path, &events).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != events {
            stale.push(format!("{name}\n{events}"));
        }
    }
    assert!(stale.is_empty(), "these changed:\n{}", stale.join("\n"));
}

#[test]
fn the_names_of_presets_are_those_that_rules_know() {
    assert_eq!(presets::PRESETS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), presets::NAMES);
}

#[test]
fn one_record_may_stand_for_several_events() {
    let source = source(
        "every_event: {ts: {from: /time, unit: s}, tenant_id: /org, user_id: /user}
events:
  - {when: has(record.arm), event: exposure, experiment: {const: new-checkout}, bucket: {from: /arm, values: {0: control, 1: treatment}}}
  - {event: request, latency_ms: {from: /took, unit: us}, error: {cel: record.status >= 500}, fields: {route: /path}}",
    );
    let record = r#"{"time":1764666000.125,"org":7,"user":"ü\n","arm":1,"took":"1500","status":503,"path":"/pay"}"#;
    assert_eq!(
        map(&source, record).unwrap(),
        "{\"event\":\"exposure\",\"ts\":1764666000125,\"tenant_id\":\"7\",\"user_id\":\"ü\\n\",\"experiment\":\"new-checkout\",\"bucket\":\"treatment\"}\n\
         {\"event\":\"request\",\"ts\":1764666000125,\"tenant_id\":\"7\",\"user_id\":\"ü\\n\",\"latency_ms\":1.5,\"error\":true,\"route\":\"/pay\"}\n"
    );
    assert_eq!(map(&source, r#"{"time":1764666000,"org":"","user":"u","took":2,"status":200}"#).unwrap().lines().count(), 1);
}

#[test]
fn times_become_milliseconds_without_loss() {
    let of = |unit: &str, time: &str| {
        let source = source(&format!("events: [{{event: ticket, ts: {{from: /t, unit: {unit}}}}}]"));
        map(&source, &format!("{{\"t\":{time}}}")).unwrap()
    };
    for (unit, time) in [
        ("ns", "1764666000431999999"),
        ("ns", "\"1764666000431999999\""),
        ("us", "1764666000431999"),
        ("ms", "1764666000431"),
        ("s", "1764666000.431"),
    ] {
        assert_eq!(of(unit, time), "{\"event\":\"ticket\",\"ts\":1764666000431}\n", "{unit} {time}");
    }
    assert_eq!(of("s", "\"2025-12-02T09:00:00Z\""), "{\"event\":\"ticket\",\"ts\":\"2025-12-02T09:00:00Z\"}\n");
    assert_eq!(of("s", "true"), "{\"event\":\"ticket\",\"ts\":true}\n", "the decoder says what is wrong with it");
    assert_eq!(decode(&of("ns", "1e300")), Err("bad_timestamp".into()));
}

#[test]
fn values_are_renamed_and_defaults_filled_in() {
    let source = source(
        "events:
  - event: {from: /type, values: {buy: outcome}, else: other}
    ts: /ts
    metric: {from: [/a, /b], values: {true: yes}, else: none}
    value: /n
    attributes: /tags",
    );
    let mapped = |record: &str| map(&source, record).unwrap();
    assert_eq!(
        mapped(r#"{"type":"buy","ts":1,"a":"","b":true,"n":"12.50","tags":{"k":5,"deep":{},"nil":null,"x":"y"}}"#),
        "{\"event\":\"outcome\",\"ts\":1,\"metric\":\"yes\",\"value\":12.50,\"attributes\":{\"k\":\"5\",\"x\":\"y\"}}\n"
    );
    assert_eq!(mapped(r#"{"type":"sell","ts":1,"a":null}"#), "{\"event\":\"other\",\"ts\":1,\"metric\":\"none\"}\n");
}

#[test]
fn an_expression_that_cannot_be_computed_is_not_true_and_has_no_value() {
    let source = source(
        "when: record.a.b > 1\nevents: [{event: ticket, ts: {cel: record.t}, fields: {x: {cel: record.none}, y: {cel: '\"q\\\"\"'}}}]",
    );
    assert_eq!(map(&source, r#"{"a":{"b":2},"t":5}"#).unwrap(), "{\"event\":\"ticket\",\"ts\":5,\"y\":\"q\\\"\"}\n");
    for record in [r#"{"a":{"b":1}}"#, r#"{"a":{}}"#, r#"{"a":{"b":"2"}}"#, "{}"] {
        assert_eq!(map(&source, record).unwrap(), "", "{record}");
    }
}

#[test]
fn a_source_without_events_reads_canonical_ones() {
    let record = r#"{"event":"ticket","ts":1764666000431,"tenant_id":"","user_id":"u"}"#;
    assert_eq!(map(&source("format: json"), record).unwrap(), format!("{record}\n"));
    assert_eq!(map(&source("when: record.user_id == 'v'"), record).unwrap(), "");
}

#[test]
fn each_event_of_a_record_is_counted() {
    let source = source(
        "when: '!has(record.skip)'\nevents: [{event: ticket, ts: /t, user_id: /u, tenant_id: {const: a}}, {event: buy, ts: /t, user_id: /u, tenant_id: {const: a}}]",
    );
    let catalog = Arc::new(Catalog::default());
    let mut aggregator = Aggregator::new(0, Arc::clone(&catalog), Settings::default());
    let layouts = Layouts { sources: Sources::new(vec![source]), schemas: None };
    let mut reader = Reader::new(&["other".into(), "t".into()], &layouts, &catalog.fields, Limits::default());
    let mut book = |topic, record: &str| reader.book(topic, record.as_bytes(), i64::MAX, &mut aggregator);
    assert_eq!(book(1, r#"{"t":1764666000431,"u":"u"}"#), Booked::Taken);
    assert_eq!(book(1, r#"{"skip":1}"#), Booked::Taken);
    assert_eq!(book(1, r#"{"t":1764666000431}"#), Booked::Refused(Reject::MissingField, Some("as event 2 of source x".into())));
    assert_eq!(book(1, "[7"), Booked::Refused(Reject::NotJson, None));
    assert_eq!(book(0, r#"{"t":1}"#), Booked::Refused(Reject::MissingField, None), "a topic without a source");
    let counts = aggregator.counts();
    assert_eq!((counts.waiting, counts.unmapped, counts.rejected.total(), counts.records()), (2, 1, 4, 7), "the unit may yet be exposed");
}

#[test]
fn what_is_no_record_is_refused() {
    let source = source("preset: segment");
    for (record, reason) in
        [("", "not_json"), ("{", "not_json"), ("{} {}", "not_json"), ("7", "not_object"), (&"[".repeat(40), "too_large")]
    {
        assert_eq!(map(&source, record), Err(reason.to_owned()), "{record}");
    }
    assert_eq!(map(&source, "[1,[],{}]").unwrap(), "");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a text is, nothing panics, and what comes out is JSON that the decoder takes or refuses.
    #[test]
    fn no_text_does_harm(name in prop::sample::select(presets::NAMES), at in any::<prop::sample::Index>(), with in "\\PC{0,3}") {
        let source = source(&format!("preset: {name}"));
        let mut record = fs::read_to_string(format!("tests/presets/{name}.json")).unwrap();
        record.truncate(record.find('\n').unwrap());
        let mut at = at.index(record.len());
        while !record.is_char_boundary(at) {
            at -= 1;
        }
        record.replace_range(at..at, &with);
        for event in map(&source, &record).unwrap_or_default().lines() {
            prop_assert!(serde_json::from_str::<serde_json::Value>(event).is_ok(), "{event}");
            prop_assert_ne!(decode(event).err(), Some("not_json".to_owned()));
        }
    }
}

/// Prints what mapping costs, in times of decoding a canonical event: `cargo test --release --test mapping cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost() {
    let record = r#"{"kind":"evaluation","at":1764666000431000,"org":"t-17","user":"u-90210","flag":"new-checkout","variant":"1","geo":"eu","sdk":{"name":"js","version":"1.4.0"},"reason":"split"}"#;
    let events = "every_event: {ts: {from: /at, unit: us}, tenant_id: /org, user_id: /user}
events: [{event: exposure, experiment: /flag, bucket: {from: /variant, values: {0: control, 1: treatment}}, attributes: {region: /geo}}]";
    let (plain, conditional) = (source(events), source(&format!("when: record.kind == 'evaluation'\n{events}")));
    let canonical = map(&plain, record).unwrap();
    let mut decoder = Decoder::new(&FieldTable::default(), Limits::default());
    let mut mapper = Mapper::new(32);
    let n = 20_000;
    let mut nanos = |source: Option<&Source>| {
        let begun = std::time::Instant::now();
        for _ in 0..n {
            match source {
                None => assert!(decoder.decode(canonical.as_bytes()).is_ok()),
                Some(source) => {
                    mapper.map(source, record).unwrap();
                    assert!(decoder.decode(mapper.event(0).unwrap().as_bytes()).is_ok());
                }
            }
        }
        begun.elapsed().as_nanos() as f64 / f64::from(n)
    };
    let mut best = [f64::INFINITY; 3];
    for _ in 0..20 {
        for (best, source) in best.iter_mut().zip([None, Some(&*plain), Some(&*conditional)]) {
            *best = best.min(nanos(source));
        }
    }
    let [decoded, mapped, computed] = best;
    println!("canonical 1 ({decoded:.0} ns), mapped {:.1}, with a condition {:.1}", mapped / decoded, computed / decoded);
}
