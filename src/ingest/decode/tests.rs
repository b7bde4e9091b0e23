use super::json::Scanner;
use super::*;
use crate::engine::event::Scalar;
use proptest::prelude::*;
use serde_json::Value as Json;
use smallvec::SmallVec;

const REQUEST: &str =
    r#"{"event":"request","ts":1764666000431,"tenant_id":"t-17","user_id":"u-90210","latency_ms":183.4,"error":false,"route":"/checkout"}"#;
const EXPOSURE: &str = r#"{"event":"exposure","ts":"2026-12-02T09:00:00.125Z","id":"e-1","experiment":"new-checkout","bucket":"treatment","tenant_id":"t-17","user_id":"u-90210","attributes":{"role":"buyer","region":"eu","tenant_size":"m","device":"ios"}}"#;

fn decoder() -> Decoder {
    Decoder::new(&FieldTable { attributes: true, ..FieldTable::default() }, Limits::default())
}

fn reason(text: &str) -> Reject {
    decoder().decode(text.as_bytes()).expect_err(text).reason
}

fn edit(record: &str, change: impl FnOnce(&mut serde_json::Map<String, Json>)) -> String {
    let mut map = serde_json::from_str(record).unwrap();
    change(&mut map);
    serde_json::to_string(&map).unwrap()
}

#[test]
fn the_examples_of_the_contract_decode() {
    let mut d = decoder();
    let exposure = d.decode(EXPOSURE.as_bytes()).unwrap();
    assert_eq!(exposure.ts, 1_796_202_000_125);
    assert_eq!(exposure.kind, Kind::Exposure);
    assert_eq!(exposure.bucket.as_deref(), Some("treatment"));
    assert_eq!(exposure.attributes.len(), 4);
    assert!(exposure.attributes.iter().all(|(k, v)| matches!((k, v), (Cow::Borrowed(_), Cow::Borrowed(_)))));
    let request = d.decode(REQUEST.as_bytes()).unwrap();
    assert_eq!(request.kind, Kind::Request { latency_ms: Some(183.4), error: false });
    let phase = r#"{"event":"phase","ts":1764666002000,"experiment":"x","phase":1,"weights":{"control":0.75,"treatment":0.25}}"#;
    let phase = d.decode(phase.as_bytes()).unwrap();
    let weights = vec![("control".into(), 0.75), ("treatment".into(), 0.25)];
    assert_eq!(phase.kind, Kind::Phase { phase: PhaseRef::Index(1), weights });
    let bare = r#"{"event":"phase","ts":1764666002000,"experiment":"x","phase":"canary"}"#;
    assert_eq!(
        d.decode(bare.as_bytes()).unwrap().kind,
        Kind::Phase { phase: PhaseRef::Name("canary".into()), weights: Default::default() }
    );
    let flag = r#"{"event":"compliance_flag","ts":1764666001000,"experiment":"x","bucket":"b","flag":"missing_consent"}"#;
    assert_eq!(d.decode(flag.as_bytes()).unwrap().kind, Kind::ComplianceFlag { flag: "missing_consent".into() });
}

#[test]
fn what_is_not_exactly_json_is_refused() {
    for text in [
        "",
        " ",
        "nul",
        "{",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{,}"#,
        r#"{"a":1}x"#,
        r#"{"a":1}{"#,
        r#"{"a":01}"#,
        r#"{"a":NaN}"#,
        r#"{"a":Infinity}"#,
        r#"{"a":1.}"#,
        r#"{"a":.5}"#,
        r#"{"a":+1}"#,
        r#"{"a":1e}"#,
        r#"{"a":-}"#,
        "{\"a\":\"\n\"}",
        r#"{"a":"\x"}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":"\ud800A"}"#,
        r#"{"a":"\udc00"}"#,
        r#"{'a':1}"#,
        r#"{"a":"\u00g0"}"#,
        r#"{"a":tru}"#,
        r#"{"a":[1,]}"#,
        r#"{"a":[1 2]}"#,
        r#"{"a":{"b":1]}"#,
        "\u{feff}{}",
        "[1",
        "1 1",
    ] {
        assert_eq!(reason(text), Reject::NotJson, "{text}");
    }
    for cut in 0..EXPOSURE.len() {
        assert_eq!(reason(&EXPOSURE[..cut]), Reject::NotJson);
    }
    assert_eq!(decoder().decode(b"{\"event\":\"\xff\"}").unwrap_err().reason, Reject::NotJson);
    for text in ["[]", "1", "\"x\"", "null", " [ {} ] "] {
        assert_eq!(reason(text), Reject::NotObject, "{text}");
    }
}

#[test]
fn each_fault_has_its_reason() {
    let set = |record: &str, key: &str, value: Json| reason(&edit(record, |m| drop(m.insert(key.into(), value))));
    let without = |record: &str, key: &str| decoder().decode(edit(record, |m| drop(m.remove(key))).as_bytes()).err().map(|r| r.reason);
    for key in ["event", "ts", "experiment", "bucket", "tenant_id", "user_id"] {
        assert_eq!(without(EXPOSURE, key), Some(Reject::MissingField), "{key}");
        assert_eq!(set(EXPOSURE, key, Json::Null), Reject::MissingField, "{key}");
        assert_eq!(set(EXPOSURE, key, Json::Bool(true)), Reject::WrongType, "{key}");
    }
    for key in ["id", "attributes"] {
        assert_eq!(without(EXPOSURE, key), None);
        assert_eq!(set(EXPOSURE, key, 7.into()), Reject::WrongType);
    }
    for key in ["tenant_id", "user_id"] {
        assert_eq!(without(REQUEST, key), Some(Reject::MissingField));
    }
    assert_eq!(set(REQUEST, "latency_ms", (-0.1).into()), Reject::NegativeValue);
    assert_eq!(set(REQUEST, "latency_ms", "12".into()), Reject::WrongType);
    assert_eq!(set(REQUEST, "error", 1.into()), Reject::WrongType);
    assert_eq!(reason(&REQUEST.replace("183.4", "1e999")), Reject::NotFinite);
    assert_eq!(set(EXPOSURE, "user_id", "u".repeat(1025).into()), Reject::TooLarge);
    assert_eq!(set(EXPOSURE, "attributes", serde_json::json!({"a": 1})), Reject::WrongType);
    let many: serde_json::Map<String, Json> = (0..33).map(|i| (i.to_string(), "v".into())).collect();
    assert_eq!(set(EXPOSURE, "attributes", many.into()), Reject::TooManyAttributes);
    assert_eq!(set(EXPOSURE, "deep", serde_json::from_str(&("[".repeat(40) + &"]".repeat(40))).unwrap()), Reject::TooLarge);
    assert_eq!(reason(&REQUEST.replace("/checkout", &"x".repeat(1 << 20))), Reject::TooLarge);
    let named = |name: &str| set(REQUEST, "event", name.into());
    for name in ["workflow_started", "compliance_flag", "outcome"] {
        assert_eq!(named(name), Reject::MissingField, "{name}");
    }
}

#[test]
fn times_follow_rfc_3339() {
    let at = |ts: &str| decoder().decode(REQUEST.replace("1764666000431", ts).as_bytes()).map(|e| e.ts).map_err(|e| e.reason);
    for (text, ts) in [
        ("2025-12-02T09:00:00Z", 1_764_666_000_000),
        ("2025-12-02T10:30:00.5+01:30", 1_764_666_000_500),
        ("2025-12-02t08:59:59.9999-00:00", 1_764_665_999_999),
        ("2024-02-29 00:00:00z", 1_709_164_800_000),
        ("2016-12-31T23:59:60Z", 1_483_228_799_999),
    ] {
        assert_eq!(at(&format!("\"{text}\"")), Ok(ts), "{text}");
    }
    for text in [
        "2025-02-29T00:00:00Z",
        "2025-13-01T00:00:00Z",
        "2025-12-02T24:00:00Z",
        "2025-12-02T09:00:00",
        "2025-12-02",
        "now",
        "",
        "2025-12-02T09:00:00.Z",
        "2025-12-02T09:00:00+0100",
        "1969-12-31T23:59:59Z",
        "2025-12-02T09:00:61Z",
        "+025-12-02T09:00:00Z",
        "2025-12-02T09:00:00é",
        "9999-12-31T23:59:59-01:00",
    ] {
        assert_eq!(at(&format!("\"{text}\"")), Err(Reject::BadTimestamp), "{text}");
    }
    assert_eq!(at("1764666000431.0"), Ok(1_764_666_000_431));
    assert_eq!(at("1.764666e12"), Ok(1_764_666_000_000));
    for number in ["1764666000431.5", "1764666000", "-1", "0", "1764666000431000", "1e999", "99999999999999999999"] {
        assert_eq!(at(number), Err(Reject::BadTimestamp), "{number}");
    }
}

#[test]
fn a_refusal_names_its_experiment() {
    let named = |text: &str| decoder().decode(text.as_bytes()).unwrap_err().experiment;
    let some = Some("new-checkout".to_owned());
    assert_eq!(named(&EXPOSURE.replace("\"bucket\"", "\"b\"")), some);
    assert_eq!(named(&EXPOSURE[..EXPOSURE.len() - 1]), some, "cut off");
    assert_eq!(named(&EXPOSURE.replace("\"2026-12-02T09:00:00.125Z\"", "NaN")), some, "broken before it");
    assert_eq!(named(&EXPOSURE.replace("\"experiment\"", "\"x\":{\"experiment\":\"inner\"},\"y\"").replace('1', "NaN")), None);
    assert_eq!(named(&(EXPOSURE.replace("\"ios\"", &format!("\"{}\"", "x".repeat(1 << 20))))), some, "too large");
    assert_eq!(named("{\"note\":\"\\\"experiment\\\":\\\"x\\\"\""), None);
}

#[test]
fn attributes_that_no_rule_asks_for_are_checked_and_left_out() {
    let mut d = Decoder::new(&FieldTable::default(), Limits::default());
    assert_eq!(d.decode(EXPOSURE.as_bytes()).unwrap().attributes, []);
    let wrong = EXPOSURE.replace("\"eu\"", "7");
    assert_eq!(d.decode(wrong.as_bytes()).unwrap_err().reason, Reject::WrongType);
}

#[test]
fn fields_are_read_by_pointer() {
    let mut table = FieldTable::default();
    for pointer in ["/route", "/cart/total", "/cart/items/1/sku", "/a~1b/m~0n", "/missing", "/cart", "/error"] {
        table.intern("request", pointer).unwrap();
    }
    table.intern("ticket", "/route").unwrap();
    let mut d = Decoder::new(&table, Limits::default());
    let text = REQUEST.replace(
        "\"/checkout\"",
        r#""/x","route":"\u002fcheckout","cart":{"total":12.5,"items":[{"sku":"s0"},{"sku":"s1"}]},"a/b":{"m~n":true}"#,
    );
    let fields = d.decode(text.as_bytes()).unwrap().fields;
    let expected = [
        (0, Scalar::Text("/checkout".into())),
        (1, Scalar::Number(12.5)),
        (2, Scalar::Text("s1".into())),
        (3, Scalar::Bool(true)),
        (6, Scalar::Bool(false)),
    ];
    assert_eq!(fields.as_slice(), expected);
    assert_eq!(d.decode(REQUEST.replace("request", "other").as_bytes()).unwrap().fields.len(), 0);
}

#[test]
fn learned_keys_are_hit_whatever_the_spacing() {
    let spaced = REQUEST.replace(',', ", ").replace("\":", "\": ");
    for text in [REQUEST, spaced.as_str()] {
        let mut d = decoder();
        d.decode(text.as_bytes()).unwrap();
        let first = d.stats();
        for _ in 0..10 {
            d.decode(text.as_bytes()).unwrap();
        }
        assert_eq!(d.stats().misses, first.misses, "{text}");
    }
}

/// Decodes by way of `serde_json::Value`: slow, obvious, and only for records within the limits.
fn oracle<'x>(bytes: &[u8]) -> Result<Event<'x>, Reject> {
    let json: Json = serde_json::from_slice(bytes).map_err(|_| Reject::NotJson)?;
    let map = json.as_object().ok_or(Reject::NotObject)?;
    let text = |key: &str| match map.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(s)) if s.is_empty() && key != "tenant_id" => Ok(None),
        Some(Json::String(s)) => Ok(Some(Cow::Owned(s.clone()))),
        Some(_) => Err(Reject::WrongType),
    };
    let need = |key: &str| text(key)?.ok_or(Reject::MissingField);
    let real = |key: &str| match map.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Number(n)) => Ok(n.as_f64()),
        Some(_) => Err(Reject::WrongType),
    };
    let name = need("event")?;
    let ts = match map.get("ts") {
        None | Some(Json::Null) => return Err(Reject::MissingField),
        Some(Json::Number(n)) => n.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15).map(|n| n as i64),
        Some(Json::String(s)) => s.parse::<jiff::Timestamp>().ok().map(|t| t.as_millisecond()),
        Some(_) => return Err(Reject::WrongType),
    };
    let ts = ts.filter(|ts| (EARLIEST..=LATEST).contains(ts)).ok_or(Reject::BadTimestamp)?;
    let (id, tenant_id, user_id) = (text("id")?, text("tenant_id")?, text("user_id")?);
    let (experiment, bucket) = (text("experiment")?, text("bucket")?);
    let kind = match &*name {
        "exposure" => Kind::Exposure,
        "request" => {
            let latency_ms = real("latency_ms")?;
            if latency_ms.is_some_and(|ms| ms < 0.0) {
                return Err(Reject::NegativeValue);
            }
            let error = match map.get("error") {
                None | Some(Json::Null) => false,
                Some(Json::Bool(b)) => *b,
                Some(_) => return Err(Reject::WrongType),
            };
            Kind::Request { latency_ms, error }
        }
        "workflow_started" => Kind::Workflow { step: Step::Started, workflow: need("workflow")?, workflow_id: need("workflow_id")? },
        "outcome" => Kind::Outcome {
            metric: need("metric")?,
            value: match map.get("value") {
                Some(Json::Bool(b)) => f64::from(u8::from(*b)),
                _ => real("value")?.ok_or(Reject::MissingField)?,
            },
            covariate: real("covariate")?,
        },
        _ => Kind::Other { name: name.clone() },
    };
    let (unit, stamp) = (tenant_id.is_some() && user_id.is_some(), experiment.is_some() && bucket.is_some());
    if !(unit && stamp || kind != Kind::Exposure && (unit || stamp)) {
        return Err(Reject::MissingField);
    }
    let attributes = match map.get("attributes") {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Object(map)) => map
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| Some((Cow::Owned(k.clone()), Cow::Owned(v.as_str()?.to_owned()))))
            .collect::<Option<_>>()
            .ok_or(Reject::WrongType)?,
        Some(_) => return Err(Reject::WrongType),
    };
    let attributes = if stamp { attributes } else { Vec::new() };
    Ok(Event { ts, id, tenant_id, user_id, experiment, bucket, attributes, kind, fields: SmallVec::new() })
}

/// A JSON string for `s`: each character plain or as an escape, as `style` has it.
fn quoted(s: &str, style: u8) -> String {
    let mut out = String::from("\"");
    for (i, c) in s.chars().enumerate() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            _ if c < ' ' || (style != 0 && (i + usize::from(style)).is_multiple_of(3)) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            _ => out.push(c),
        }
    }
    out + "\""
}

fn any_string() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-z0-9/_-]{0,12}", 1 => "\\PC{0,6}", 1 => any::<String>().prop_map(|s| s.chars().take(9).collect())]
        .prop_flat_map(|s| (Just(s), prop_oneof![4 => Just(0u8), 1 => 1u8..4]))
        .prop_map(|(s, style)| quoted(&s, style))
}

fn any_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any_string(),
        prop_oneof!["0|-0|[1-9][0-9]{0,12}", "-?(0|[1-9][0-9]{0,5})\\.[0-9]{1,6}", "-?[1-9]([eE][+-]?[0-9])?"],
        prop_oneof!["true", "false", "null"],
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[ {} ]", v.join(" ,"))),
            prop::collection::vec((any_string(), inner), 0..4)
                .prop_map(|v| format!("{{{}}}", v.iter().map(|(k, v)| format!("{k}:{v}")).collect::<Vec<_>>().join(","))),
        ]
    })
}

fn any_field() -> impl Strategy<Value = (String, String)> {
    let fit = prop_oneof![
        ("(id|tenant_id|user_id|experiment|bucket|workflow|workflow_id|metric|route)", any_string()),
        (Just("event".to_owned()), "\"(exposure|request|workflow_started|outcome|ticketed)\""),
        (
            Just("ts".to_owned()),
            prop_oneof![
                "17[0-9]{11}",
                "\"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T[01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]0[0-9]:[0-5][0-9])\""
            ]
        ),
        ("(latency_ms|value|covariate)", "[1-9][0-9]{0,3}(\\.[0-9]{1,3})?"),
        ("(error|value)", "(true|false)"),
        (
            Just("attributes".to_owned()),
            prop::collection::vec((any_string(), prop_oneof![8 => any_string(), 1 => Just("null".to_owned())]), 0..5)
                .prop_map(|v| format!("{{{}}}", v.iter().map(|(k, v)| format!("{k} : {v}")).collect::<Vec<_>>().join(", "))),
        ),
    ];
    let any_key = "(event|ts|id|tenant_id|user_id|experiment|bucket|attributes|latency_ms|error|value|extra|other)";
    prop_oneof![
        8 => fit.prop_flat_map(|(k, v)| (prop_oneof![9 => Just(quoted(&k, 0)), 1 => Just(quoted(&k, 2))], Just(v))),
        1 => (any_key, any_value()).prop_map(|(k, v)| (quoted(&k, 0), v)),
        1 => (any_string(), any_value()),
    ]
}

fn any_record() -> impl Strategy<Value = String> {
    let base = [("event", "\"exposure\""), ("ts", "1764666000431"), ("experiment", "\"x\""), ("bucket", "\"b\"")]
        .into_iter()
        .chain([("tenant_id", "\"t\""), ("user_id", "\"u\""), ("metric", "\"m\""), ("value", "1"), ("workflow", "\"w\"")])
        .chain([("workflow_id", "\"1\""), ("latency_ms", "3.25")])
        .map(|(k, v)| (quoted(k, 0), v.to_owned()))
        .collect::<Vec<_>>();
    let fields = (prop::sample::subsequence(base.clone(), 6..=base.len()), prop::collection::vec(any_field(), 0..8));
    (fields, any::<bool>(), "[ \t\r\n]{0,1}")
        .prop_flat_map(|((mut base, more), shuffle, space)| {
            base.extend(more);
            let order = if shuffle { Just(base).prop_shuffle().boxed() } else { Just(base).boxed() };
            (order, Just(space))
        })
        .prop_map(|(fields, space)| {
            let members: Vec<String> = fields.iter().map(|(k, v)| format!("{k}{space}:{space}{v}")).collect();
            format!("{space}{{{space}{}{space}}}{space}", members.join(&format!("{space},{space}")))
        })
}

fn sorted(mut event: Event<'_>) -> Event<'_> {
    event.attributes.sort_by(|a, b| a.0.cmp(&b.0));
    event
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// A decoder that has learned from other records, a fresh one and the oracle agree on every record.
    #[test]
    fn guessing_scanning_and_oracle_agree(records in prop::collection::vec(any_record(), 1..6)) {
        let mut learned = decoder();
        learned.decode(EXPOSURE.as_bytes()).unwrap();
        learned.decode(REQUEST.as_bytes()).unwrap();
        for record in records.iter().chain(&records) {
            let fresh = decoder().decode(record.as_bytes()).map(sorted);
            prop_assert_eq!(&learned.decode(record.as_bytes()).map(sorted), &fresh);
            match (fresh, oracle(record.as_bytes()).map(sorted)) {
                (Ok(event), expected) => prop_assert_eq!(Ok(event), expected, "{}", record),
                // Which of several faults is named first is not part of the contract, but that there is one is.
                (Err(refused), expected) => prop_assert!(expected.is_err(), "{:?} {}", refused, record),
            }
        }
    }

    /// Any bytes are taken or refused, and JSON is told from what is not as serde_json does.
    #[test]
    fn no_bytes_do_harm(mut bytes in any_record().prop_map(String::into_bytes), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let at = at.index(bytes.len());
        bytes[at] = with;
        let ours = decoder().decode(&bytes);
        let oracle = serde_json::from_slice::<Json>(&bytes);
        // Valid JSON that serde_json cannot represent.
        prop_assume!(!matches!(&oracle, Err(e) if e.to_string().contains("out of range")));
        let is_json = oracle.is_ok();
        prop_assert_eq!(!matches!(ours, Err(Refused { reason: Reject::NotJson, .. })), is_json, "{:?}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn numbers_are_correctly_rounded(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?") {
        prop_assert_eq!(number(&text).to_bits(), text.parse::<f64>().unwrap().to_bits());
        let mut scan = Scanner::new(&text, 1);
        prop_assert_eq!(scan.value(0), Ok(Value::Number(&text)));
    }
}

/// Prints nanoseconds per record: `cargo test --release --lib decode_speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn decode_speed() {
    for records in [&[EXPOSURE][..], &[REQUEST], &[EXPOSURE, REQUEST]] {
        let mut d = decoder();
        let n = 100_000;
        let round = |d: &mut Decoder| {
            let start = std::time::Instant::now();
            for i in 0..n {
                std::hint::black_box(d.decode(std::hint::black_box(records[i % records.len()].as_bytes())).is_ok());
            }
            start.elapsed().as_nanos() as f64 / n as f64
        };
        let best = (0..30).map(|_| round(&mut d)).fold(f64::INFINITY, f64::min);
        println!("{} shapes: {best:.1} ns per record, best of 30, {:?}", records.len(), d.stats());
    }
}
