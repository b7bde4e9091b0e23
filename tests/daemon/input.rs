//! Invariants 2, 9 and 10 of ARCHITECTURE.md: every record is counted under one outcome whatever it holds, what it holds bounds no
//! memory and no label set, and a bad one harms itself alone.

use super::harness::{Hook, Kafka, READER, Record, Site, holds, one_topic, total};
use super::stream::{EXPERIMENT, Service, rule};
use serde_json::Value;

/// A private value that nobody but the producer may see.
const PRIVATE: &str = "u-private-4711";
const BOUND_MIB: u64 = 400;

/// What each batch of good records carries along, and the reason for which it is refused.
fn poison(ts: i64) -> Vec<(&'static str, String)> {
    let unit = format!(r#""tenant_id":"t","user_id":"{PRIVATE}""#);
    let request = |more: &str| format!(r#"{{"event":"request","ts":{ts},{unit},{more}}}"#);
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    let attributes: Vec<String> = (0..100).map(|n| format!(r#""a{n}":"v""#)).collect();
    vec![
        ("not_json", format!("{{\"event\":\"exposure\",\"user_id\":\"{PRIVATE}\"")),
        ("not_json", format!("\u{0}\u{1f}{PRIVATE}")),
        ("not_object", format!("[\"{PRIVATE}\"]")),
        ("too_large", request(&format!(r#""route":"{}""#, "x".repeat(900_000)))),
        ("too_large", request(&format!(r#""route":{deep}"#))),
        ("wrong_type", request(r#""latency_ms":"fast""#)),
        ("wrong_type", request(r#""error":1"#)),
        ("not_finite", request(r#""latency_ms":1e999"#)),
        ("negative_value", request(r#""latency_ms":-1"#)),
        ("not_json", request(r#""latency_ms":NaN"#)),
        ("bad_timestamp", format!(r#"{{"event":"request","ts":"yesterday",{unit}}}"#)),
        ("future_timestamp", format!(r#"{{"event":"request","ts":{},{unit}}}"#, ts + 3_600_000)),
        ("missing_field", format!(r#"{{"event":"exposure","ts":{ts},{unit},"experiment":"{EXPERIMENT}"}}"#)),
        ("unknown_bucket", format!(r#"{{"event":"exposure","ts":{ts},{unit},"experiment":"{EXPERIMENT}","bucket":"b"}}"#)),
        ("too_many_attributes", request(&format!(r#""attributes":{{{}}}"#, attributes.join(",")))),
    ]
}

/// Names that no rule knows, and attribute values that nobody has seen.
fn strangers(round: usize, ts: i64) -> Vec<String> {
    let one = |n: usize| {
        let n = round * 1_000 + n;
        format!(
            r#"{{"event":"exposure","ts":{ts},"experiment":"e-{n}","bucket":"b-{n}","tenant_id":"t-{n}","user_id":"{PRIVATE}","attributes":{{"k-{n}":"v-{n}"}}}}"#
        )
    };
    let known = |n: usize| {
        let n = round * 1_000 + n;
        format!(r#"{{"event":"metric-{n}","ts":{ts},"tenant_id":"t","user_id":"u-0","route":"r-{n}","attributes":{{"region":"g-{n}"}}}}"#)
    };
    (0..1_000).map(one).chain((0..1_000).map(known)).collect()
}

#[test]
fn poison_in_every_batch_is_counted_sampled_and_bounded() {
    let kafka = Kafka::start(&["all"], 1);
    let site = Site::new(&one_topic(&kafka, "all"), &Hook::ok(), &[("rule", rule(EXPERIMENT, "observe"))]);
    let mut daemon = site.start(&["engine.max_record=256KiB"]);
    let service = Service::healthy(guardraild::clock::now() - 60_000);
    let (rounds, mut sent, mut good) = (20, 0, 0);
    for round in 0..rounds {
        let records = service.records(round as i64 * 1_000, (round as i64 + 1) * 1_000);
        let ts = records[0].ts;
        let bad = poison(ts).into_iter().map(|(_, text)| text).chain(strangers(round, ts));
        let bad: Vec<Record> = bad.map(|text| Record { ts, payload: text.into_bytes() }).collect();
        // Some of the bad ones after each of the good ones.
        let per_good = bad.len().div_ceil(records.len());
        let mut bad = bad.chunks(per_good);
        for record in &records {
            kafka.pour("all", std::slice::from_ref(record));
            bad.next().into_iter().flatten().for_each(|r| kafka.send("all", 0, r.ts, &r.payload));
        }
        kafka.flush();
        good += records.len();
        sent += records.len() + poison(ts).len() + 2_000;
        // The broker keeps 5 MiB: no more is sent than has been read.
        daemon.until_records(sent);
    }
    // The last pane is judged once time goes on.
    let end = service.records(rounds as i64 * 1_000 + 1_000, rounds as i64 * 1_000 + 1_010);
    kafka.write("all", &end);
    (sent, good) = (sent + end.len(), good + end.len());
    daemon.until_records(sent);
    let view = daemon.json("/api/v1/experiments");
    let counts = &view["counts"];
    assert_eq!(total(counts), sent as u64);
    for (reason, _) in poison(0) {
        let n = poison(0).iter().filter(|(r, _)| *r == reason).count() * rounds;
        assert_eq!(counts["rejected"][reason], n, "{reason}: {counts}");
    }
    assert_eq!(counts["unknown_experiment"], 1_000 * rounds, "{counts}");
    assert_eq!(counts["accepted"], good + 1_000 * rounds, "{counts}");
    let of_experiment = &view["experiments"][0];
    assert_eq!(of_experiment["buckets"][0]["exposed_units"].as_u64().unwrap() * 4, (good - end.len()) as u64, "{of_experiment}");

    assert!(daemon.memory() < BOUND_MIB, "{} MiB", daemon.memory());
    let (status, metrics) = daemon.get("/metrics");
    assert_eq!(status, 200);
    let series = metrics.lines().filter(|l| !l.starts_with('#')).count();
    assert!(series < 500 && !metrics.contains("e-1"), "{series} series");

    assert_eq!(daemon.post("/api/v1/experiments/x/hold", Some(READER), "{}").0, 403);
    let rejects = daemon.json("/api/v1/rejects");
    let samples = rejects["rejects"].as_array().unwrap();
    assert!(!samples.is_empty() && samples.len() <= 100, "{} samples", samples.len());
    assert!(!rejects.to_string().contains(PRIVATE), "{rejects}");
    let seen = |reason: &str| samples.iter().any(|s: &Value| s["reason"] == reason);
    assert!(poison(0).iter().filter(|(reason, _)| seen(reason)).count() >= 10, "{rejects}");
    holds("it is still ready", || daemon.get("/readyz").0 == 200);
}
