//! The fuzz targets on their kept corpora and on mutations of them; CONTRIBUTING.md says how to fuzz them for longer.
//!
//! `GUARDRAILD_UPDATE=1 cargo test --test fuzz` writes the corpora's seeds anew: checkpoints of another format are of no use.
#![allow(clippy::unwrap_used)] // a test that fails should say where

#[path = "../fuzz/src/lib.rs"]
mod targets;

mod support;

use guardraild::engine::aggregate::Aggregator;
use guardraild::engine::decision::Output;
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::Kept;
use guardraild::engine::plan::Settings;
use guardraild::ingest::decode::{Decoder, Limits};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Mutations of each target's corpus, unless `GUARDRAILD_MUTATIONS` says how many.
const MUTATIONS: u32 = 2_000;

/// Changes, drops, doubles and mixes bytes.
fn mutate(rng: &mut ChaCha8Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus.choose(rng).unwrap().clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        let end = rng.random_range(at..=bytes.len().min(at + 16));
        match rng.random_range(0..5) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes[at..end].fill_with(|| rng.random()),
            2 => bytes.insert(at, *[0, 0x7F, 0x80, 0xFF, b'"', b'{', b'9', b'\n'].choose(rng).unwrap()),
            3 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ => {
                let other = corpus.choose(rng).unwrap();
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

/// Records that leave something of everything in a checkpoint.
fn records() -> Vec<String> {
    let mut records = Vec::new();
    for n in 0..120 {
        let (ms, user) = (i64::from(n) * 250, n % 40);
        let exposed = support::exposure(ms, user, "exp", support::bucket_of(user));
        records.push(exposed.replace('}', r#","attributes":{"region":"eu"}}"#));
        records.push(support::request(ms + 20, user, f64::from(50 + n), n % 9 == 0));
        records.push(support::workflow(ms + 30, user, "started", n));
        records.push(support::unit_event("outcome", ms + 40, user, r#","metric":"basket","value":3.5"#));
        records.push(support::unit_event("ticket", ms + 50, user + 30, ""));
    }
    records
}

/// The parts of a checkpoint after those records.
fn checkpoints() -> Vec<Vec<u8>> {
    let (catalog, settings) = (std::sync::Arc::new(targets::world().catalog), Settings::default());
    let mut decoder = Decoder::new(&catalog.fields, Limits::default());
    let mut partition = Aggregator::new(0, catalog.clone(), settings.clone());
    let mut fleet = Fleet::new(&catalog, settings.pane);
    let records = records();
    let (judged, waiting) = records.split_at(records.len() - 50);
    for (part, more) in [(judged, None), (waiting, Some(1))] {
        // Another partition has not said anything yet.
        more.into_iter().for_each(|partition| fleet.assigned(partition));
        for record in part {
            partition.observe(&decoder.decode(record.as_bytes()).unwrap());
            partition.drain().into_iter().for_each(|emission| fleet.take(emission, &mut Output::default()));
        }
    }
    let kept = [Kept::of(fleet.snapshot(true).unwrap()), Kept::of(partition.snapshot().unwrap())];
    let pane = kept[0].names().find(|name| name.starts_with("pane/")).unwrap();
    let parts = [(0, 0, "state"), (1, 0, "experiment/exp"), (2, 1, "state"), (3, 1, "units"), (4, 1, "ids/0"), (5, 0, pane)];
    let seeds = parts.into_iter().flat_map(|(kind, of, name)| kept[of].blobs(name).iter().map(move |blob| [&[kind], &blob[..]].concat()));
    seeds.collect()
}

/// Where each target begins.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let read = |path: &str| std::fs::read(path).unwrap();
    let lines = |path: &str| read(path).split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    let presets = ["cloudevents", "growthbook", "launchdarkly", "opentelemetry", "segment"];
    match target {
        "decoder" => {
            let mut seeds: Vec<Vec<u8>> = records().into_iter().take(5).map(String::into_bytes).collect();
            presets.iter().for_each(|name| seeds.extend::<Vec<_>>(lines(&format!("tests/presets/{name}.events.ndjson"))));
            seeds.extend(texts(&[
                r#"{"event":"phase","ts":1764666000000,"experiment":"exp","phase":1,"weights":{"control":0.8,"treatment":0.2}}"#,
                r#"{"event":"compliance_flag","ts":"2026-12-02T09:00:00.5+01:00","id":"e\u00fc\n","tenant_id":"t","user_id":"u","flag":"x"}"#,
            ]));
            seeds
        }
        "mapping" => {
            let topics = targets::world().sources;
            let number = |name: &str| topics.topics().position(|topic| topic == name).unwrap() as u8 + 1;
            let mut seeds = vec![[&[number("own")], &br#"{"kind":"evaluation","at":1764666000000000,"user":"u","flag":"exp","variant":1,"geo":"eu","took":3,"status":500,"path":"/x"}"#[..]].concat()];
            for name in presets {
                seeds.extend::<Vec<Vec<u8>>>(lines(&format!("tests/presets/{name}.json")));
                let of = seeds.iter_mut().filter(|seed| seed[0] == b'{');
                of.for_each(|seed| seed.insert(0, number(name)));
            }
            seeds
        }
        "payload" => {
            let avro = [0, 2, 0x80, 0x88, 0xD4, 0xB2, 0xB5, 0x66, 2, 2, b'u', 4, 0xFF, 0x38, 0x41, 0xFC, 0, 0, 0];
            let protobuf = [1, 0, 10, 1, b'x', 16, 5, 26, 1, b'u', 34, 12, 10, 1, b'k', 17, 0, 0, 0, 0, 0, 0, 0, 0, 64, 1];
            let schema = [&[3], &br#"{"type":"record","name":"E","fields":[{"name":"a","type":["null","E"]}]}"#[..], &[0, 2, 0]].concat();
            let proto = [&[4], &br#"syntax = "proto3"; message E { map<string, E> a = 1; oneof o { sint64 b = 2; } }"#[..], &[0, 0, 16, 7]]
                .concat();
            vec![avro.to_vec(), protobuf.to_vec(), schema, proto, b"\x02{\"event\":\"request\",\"ts\":1764666000000}".to_vec()]
        }
        "condition" => texts(&[
            "record.kind == \"evaluation\" && !has(record.took)\0{\"kind\":\"evaluation\"}",
            "record.a[0].b in [1, 2.5, \"x\"] || size(record.list) > 3u\0{\"a\":[{\"b\":1}],\"list\":[1,2,3]}",
            "record.name.startsWith(\"a\") ? int(record.n) / 0 : -9223372036854775808\0{\"name\":\"abc\",\"n\":\"7\"}",
        ]),
        "rules" => {
            let bad = std::fs::read_dir("tests/bad_rules").unwrap().map(|entry| entry.unwrap().path());
            let mut bad: Vec<_> = bad.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
            bad.sort();
            let bad = bad.into_iter().step_by(4).map(|path| read(path.to_str().unwrap()));
            bad.chain(["rules/new-checkout.yaml", "rules/search-ranking.yaml", "fuzz/world.yaml"].map(read)).collect()
        }
        "checkpoint" => checkpoints(),
        "http" => texts(&[
            "GET /api/v1/experiments/exp/log?after=3&limit=2 HTTP/1.1\r\nhost: localhost\r\n\r\nGET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
            "GET /api/v1/experiments/exp/verdict?format=argo HTTP/1.1\r\nhost: [::1]:80\r\nauthorization: Basic eDpvcGVyYXRlLXRva2VuLTAxMjM0NTY3ODk=\r\n\r\n",
            "POST /api/v1/experiments/exp/hold HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer operate-token-0123456789\r\ncontent-type: application/json\r\ncontent-length: 26\r\n\r\n{\"reason\":\"x\",\"for\":\"2h\"}",
            "POST /api/v1/experiments/exp/phase HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer operate-token-0123456789\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n2f\r\n{\"reason\":\"x\",\"phase\":\"1\",\"weights\":{\"control\":1}}\r\n0\r\n\r\n",
            "POST /hooks/flagger/confirm HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 22\r\n\r\n{\"name\":\"a\",\"phase\":1}",
            "GET /api/v1/events HTTP/1.0\r\nhost: localhost\r\nlast-event-id: 7\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n\r\nGET /api/v1/rejects HTTP/1.1\r\nhost: localhost\r\n\r\n",
        ]),
        _ => {
            let answer = |status: u16, text: &str| [&(status - 100).to_be_bytes()[..], text.as_bytes()].concat();
            let date = "Sun, 06 Nov 1994 08:49:37 GMT\0no: http://flags.example/s3cret";
            vec![answer(200, "\0ok"), answer(429, "120\0slow down"), answer(503, date), answer(410, "\0gone"), answer(302, "\0")]
        }
    }
}

/// The target survives its corpus and mutations of it.
fn survives(name: &str) {
    let (_, target) = targets::TARGETS.into_iter().find(|target| target.0 == name).unwrap();
    let folder = targets::folder().join("corpus").join(name);
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        for (n, seed) in seeds(name).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n:02}")), seed).unwrap();
        }
    }
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mutations = std::env::var("GUARDRAILD_MUTATIONS").map_or(MUTATIONS, |n| n.parse().unwrap());
    for input in corpus.iter().cloned().chain((0..mutations).map(|_| mutate(&mut rng, &corpus))) {
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let path = std::env::temp_dir().join(format!("fuzz-{name}"));
            std::fs::write(&path, &input).unwrap();
            panic!("{name} failed on {} bytes, which are in {}", input.len(), path.display());
        }
    }
}

macro_rules! survive {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            survives(stringify!($name));
        })*

        #[test]
        fn every_target_is_tried() {
            assert_eq!(targets::TARGETS.map(|(name, _)| name), [$(stringify!($name)),*]);
        }
    };
}

survive! { decoder mapping payload condition rules checkpoint http answer }
