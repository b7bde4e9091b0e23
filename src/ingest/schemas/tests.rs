use super::*;
use crate::telemetry::Metrics;
use apache_avro::types::Value as AvroValue;
use proptest::prelude::*;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

const EVENT: &str = r#"{"type":"record","name":"Event","namespace":"shop","fields":[
  {"name":"event","type":{"type":"enum","name":"Kind","symbols":["exposure","request"]}},
  {"name":"ts","type":{"type":"long","logicalType":"timestamp-millis"}},
  {"name":"user","type":["null","string"]},
  {"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}},
  {"name":"code","type":{"type":"fixed","name":"Code","size":2}},
  {"name":"tags","type":{"type":"map","values":"string"}},
  {"name":"parts","type":{"type":"array","items":["null","shop.Kind","float"]}},
  {"name":"next","type":["null","Event"]}]}"#;

fn avro(schema: &str, bytes: &[u8]) -> Result<String, Broken> {
    let mut out = Vec::new();
    Avro::parse(schema, &[]).unwrap().decode(bytes, &mut out, 1 << 16)?;
    Ok(String::from_utf8(out).unwrap())
}

fn encode(schema: &str, value: AvroValue) -> Vec<u8> {
    let schema = apache_avro::Schema::parse_str(schema).unwrap();
    apache_avro::writer::datum::GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(value).unwrap()
}

fn event(next: AvroValue) -> AvroValue {
    let text = |text: &str| AvroValue::String(text.into());
    AvroValue::Record(vec![
        ("event".into(), AvroValue::Enum(1, "request".into())),
        ("ts".into(), AvroValue::TimestampMillis(1_764_666_000_431)),
        ("user".into(), AvroValue::Union(1, Box::new(text("ü\"\n")))),
        ("price".into(), AvroValue::Decimal(vec![0xFF, 0x38].into())),
        ("code".into(), AvroValue::Fixed(2, vec![0x41, 0xFC])),
        ("tags".into(), AvroValue::Map([("k".to_owned(), text("v"))].into())),
        (
            "parts".into(),
            AvroValue::Array(vec![AvroValue::Union(0, Box::new(AvroValue::Null)), AvroValue::Union(2, Box::new(AvroValue::Float(0.1)))]),
        ),
        ("next".into(), next),
    ])
}

#[test]
fn avro_becomes_what_events_are_written_as() {
    let inner = event(AvroValue::Union(0, Box::new(AvroValue::Null)));
    let bytes = encode(EVENT, event(AvroValue::Union(1, Box::new(inner))));
    let one =
        r#"{"event":"request","ts":1764666000431,"user":"ü\"\n","price":-2.00,"code":"Aü","tags":{"k":"v"},"parts":[null,0.1],"next":"#;
    assert_eq!(avro(EVENT, &bytes).unwrap(), format!("{one}{one}null}}}}"));
    assert_eq!(avro(EVENT, &bytes[..bytes.len() - 1]), Err(Broken("cut off")));
    assert_eq!(avro(EVENT, &[&bytes[..], &[0]].concat()), Err(Broken("bytes behind its end")));
}

#[test]
fn numbers_that_json_lacks_are_too_large_for_it() {
    assert_eq!(avro("\"double\"", &f64::NAN.to_le_bytes()).unwrap(), "1e999");
    assert_eq!(avro("\"long\"", &[0xFF; 10]), Err(Broken("a number of more than 64 bits")));
}

#[test]
fn a_few_bytes_claim_neither_depth_nor_length() {
    let circle = r#"{"type":"record","name":"R","fields":[{"name":"r","type":["null","R"]}]}"#;
    assert_eq!(avro(circle, &[2; 100_000]), Err(Broken("nested too deep")));
    let count = [0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01];
    assert_eq!(avro(r#"{"type":"array","items":"null"}"#, &count), Err(Broken("too long")));
    assert!(Avro::parse(&format!("{}\"int\"{}", "[".repeat(100), "]".repeat(100)), &[]).is_err());
    for bad in ["7", "{}", "\"Missing\"", r#"{"type":"record","name":"R"}"#, r#"{"type":"fixed","name":"F"}"#, "{"] {
        assert!(Avro::parse(bad, &[]).is_err(), "{bad}");
    }
}

#[test]
fn names_of_other_schemas_are_known() {
    let unit = r#"{"type":"record","name":"a.Unit","fields":[{"name":"id","type":"int"}]}"#;
    let main = r#"{"type":"record","name":"Main","namespace":"a","fields":[{"name":"unit","type":"Unit"}]}"#;
    let mut out = Vec::new();
    Avro::parse(main, &[unit.to_owned()]).unwrap().decode(&[14], &mut out, 100).unwrap();
    assert_eq!(out, br#"{"unit":{"id":7}}"#);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The Avro project's own crate is the oracle, where it can be: what it writes is read as it was.
    #[test]
    fn avro_is_read_as_it_was_written(ints in prop::collection::vec(any::<i64>(), 0..5), x in -1e300f64..1e300, text in any::<String>(), flag in any::<bool>()) {
        let schema = r#"{"type":"record","name":"R","fields":[{"name":"ints","type":{"type":"array","items":"long"}},
          {"name":"x","type":"double"},{"name":"text","type":"string"},{"name":"flag","type":"boolean"}]}"#;
        let bytes = encode(schema, AvroValue::Record(vec![
            ("ints".into(), AvroValue::Array(ints.iter().map(|n| AvroValue::Long(*n)).collect())),
            ("x".into(), AvroValue::Double(x)),
            ("text".into(), AvroValue::String(text.clone())),
            ("flag".into(), AvroValue::Boolean(flag)),
        ]));
        let json: serde_json::Value = serde_json::from_str(&avro(schema, &bytes).unwrap()).unwrap();
        prop_assert_eq!(json, serde_json::json!({"ints": ints, "x": x, "text": text, "flag": flag}));
    }

    /// Any bytes are JSON of their schema, or broken.
    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(json) = avro(EVENT, &bytes) {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
        }
        let mut out = Vec::new();
        if protobuf().decode(&bytes, &mut out, 1_000).is_ok() {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
        }
    }
}

const PROTO: &str = r#"syntax = "proto3"; package shop; import "google/protobuf/timestamp.proto"; import "unit.proto";
message Other {}
message Event {
  message Inner { string event = 1; int64 ts = 2; optional double latency_ms = 3; bool error = 4; Unit unit = 5;
    google.protobuf.Timestamp at = 6; Arm arm = 7; enum Arm { control = 0; treatment = 1; } }
}"#;

fn protobuf() -> Protobuf {
    let unit = r#"syntax = "proto3"; package shop; message Unit { string user_id = 1; }"#;
    Protobuf::compile(PROTO, vec![("unit.proto".into(), unit.into())]).unwrap()
}

#[test]
fn protobuf_becomes_what_events_are_written_as() {
    // Index [1, 0], then event "e", ts 300, unit {user_id "u"}, at 1 s, arm 1.
    let index = [4u8, 2, 0];
    let message = [0x0A, 1, b'e', 0x10, 0xAC, 0x02, 0x2A, 3, 0x0A, 1, b'u', 0x32, 2, 0x08, 1, 0x38, 1];
    let mut out = Vec::new();
    protobuf().decode(&[&index[..], &message].concat(), &mut out, 1_000).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    let wanted = serde_json::json!({"event": "e", "ts": 300, "error": false, "unit": {"user_id": "u"}, "at": "1970-01-01T00:00:01Z", "arm": "treatment"});
    assert_eq!(json, wanted, "latency_ms is optional and unset");
    let decode = |bytes: &[u8], room| protobuf().decode(bytes, &mut Vec::new(), room);
    assert_eq!(decode(&[0], 1_000), Ok(()), "a lone 0 is the first message");
    assert!(decode(&[&index[..], &message].concat(), 20).is_err(), "too little room");
    for bytes in [&[][..], &[2], &[2, 8], &[4, 2, 9], &[1], &[4, 2, 0, 0xFF]] {
        assert!(decode(bytes, 1_000).is_err(), "{bytes:?}");
    }
    assert!(Protobuf::compile(PROTO, Vec::new()).unwrap_err().contains("unit.proto"));
}

#[test]
fn a_descriptor_is_as_good_as_its_text() {
    // message Exposure { string user = 1; int64 at_us = 2; } of a Python client.
    let descriptor = "Cg5leHBvc3VyZS5wcm90bxIEc2hvcCInCghFeHBvc3VyZRIMCgR1c2VyGAEgASgJEg0KBWF0X3VzGAIgASgDYgZwcm90bzM=";
    let mut out = Vec::new();
    Protobuf::compile(descriptor, Vec::new()).unwrap().decode(b"\x00\x0a\x01u\x10\x07", &mut out, 1_000).unwrap();
    assert_eq!(out, br#"{"user":"u","at_us":7}"#);
}

/// A registry that answers each path with the next of its answers, and then with the last; returns its address and the number of questions.
fn registry(answers: Vec<(u16, String)>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, asked) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            let n = counter.fetch_add(1, Ordering::SeqCst);
            let (status, body) = &answers[n.min(answers.len() - 1)];
            let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    (url, asked)
}

fn schemas(url: String) -> Schemas {
    let config = RegistryConfig { url, login: None, timeout: Duration::from_secs(5) };
    Schemas::start(Registry::new(config).unwrap(), Metrics::default()).unwrap()
}

/// What becomes of a record in the end.
fn settled(schemas: &Schemas, format: Format, bytes: &[u8]) -> Result<String, String> {
    loop {
        match schemas.json(format, bytes, &mut Vec::new(), 1_000) {
            Err(NoJson::Waits) => std::thread::yield_now(),
            Err(NoJson::Refused(why)) => return Err(why),
            Ok(json) => return Ok(String::from_utf8(json.to_vec()).unwrap()),
        }
    }
}

fn known(schema: &str) -> (u16, String) {
    (200, serde_json::json!({ "schema": schema }).to_string())
}

#[test]
fn a_schema_is_asked_for_once() {
    let (url, asked) = registry(vec![known("\"int\"")]);
    let schemas = schemas(url);
    for _ in 0..3 {
        assert_eq!(settled(&schemas, Format::Avro, &[0, 0, 0, 0, 7, 84]).unwrap(), "42");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(settled(&schemas, Format::Protobuf, &[0, 0, 0, 0, 7, 84]).unwrap_err(), "schema 7: it is avro, the source says protobuf");
    assert_eq!(settled(&schemas, Format::Avro, &[0, 0, 0, 0, 7]).unwrap_err(), "schema 7: cut off");
    for bytes in [&b""[..], &[0, 0, 0, 7], b"{\"event\":1}"] {
        assert_eq!(settled(&schemas, Format::Avro, bytes).unwrap_err(), "it does not begin with 0 and the id of a schema");
    }
}

#[test]
fn an_id_that_nobody_knows_is_refused_and_a_registry_that_is_down_is_waited_for() {
    let missing = r#"{"error_code":40403,"message":"Schema 7 not found"}"#.to_owned();
    let answers = vec![
        (503, "busy".to_owned()),
        (404, "<html>no such page".to_owned()),
        (401, r#"{"error_code":401,"message":"no"}"#.to_owned()),
        (404, missing),
    ];
    let (url, asked) = registry(answers);
    let schemas = schemas(url);
    let record = [0, 0, 0, 0, 7, 84];
    assert_eq!(schemas.json(Format::Avro, &record, &mut Vec::new(), 10), Err(NoJson::Waits));
    while schemas.trouble().is_none() {
        std::thread::yield_now();
    }
    let why = settled(&schemas, Format::Avro, &record).unwrap_err();
    assert_eq!(why, "schema 7: the registry does not know it: Schema 7 not found");
    assert_eq!((schemas.trouble(), asked.load(Ordering::SeqCst)), (None, 4));
    assert!(settled(&schemas, Format::Avro, &record).is_err());
    assert_eq!(asked.load(Ordering::SeqCst), 4, "and not asked for again at once");
}

#[test]
fn references_come_before_what_names_them() {
    let answer = |schema: &str, references: &[&str]| {
        let references: Vec<_> = references.iter().map(|name| serde_json::json!({"name": name, "subject": name, "version": 1})).collect();
        (200, serde_json::json!({"schema": schema, "references": references}).to_string())
    };
    let record = |name: &str, field: &str| format!(r#"{{"type":"record","name":"{name}","fields":[{{"name":"f","type":"{field}"}}]}}"#);
    let (url, _) = registry(vec![answer(&record("A", "B"), &["B"]), answer(&record("B", "C"), &["C"]), answer(&record("C", "int"), &[])]);
    assert_eq!(settled(&schemas(url), Format::Avro, &[0, 0, 0, 0, 1, 2]).unwrap(), r#"{"f":{"f":{"f":1}}}"#);
    let (url, _) = registry(vec![answer(&record("A", "B"), &["B"]), answer(&record("B", "A"), &["B"])]);
    let why = settled(&schemas(url), Format::Avro, &[0, 0, 0, 0, 1, 2]).unwrap_err();
    assert!(why.contains("it cannot be used"), "{why}");
}
