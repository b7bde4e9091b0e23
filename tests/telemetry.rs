//! Telemetry to a real collector's socket: one process, one subscriber, one test.

#![allow(clippy::unwrap_used)]

use guardraild::config::Config;
use guardraild::telemetry::{self, Telemetry, names};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;

/// Answers every request with 200 and hands on its head and body.
fn collector() -> (String, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                loop {
                    let mut head = String::new();
                    while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
                    if head.is_empty() {
                        return;
                    }
                    let length =
                        head.to_ascii_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
                    let mut body = vec![0; length];
                    reader.read_exact(&mut body).unwrap();
                    let _ = sender.send((head, body));
                    reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            });
        }
    });
    (address, receiver)
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn spans_and_metrics_reach_the_collector_before_the_end() {
    let (address, received) = collector();
    let env = [
        ("GUARDRAILD_KAFKA__BROKERS", "k:1"),
        ("GUARDRAILD_TELEMETRY__OTLP__ENDPOINT", address.as_str()),
        ("GUARDRAILD_TELEMETRY__OTLP__HEADERS__X-API-KEY", "{env = \"KEY\"}"),
        ("KEY", "0123456789"),
    ];
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let config = Config::load_with(None, &[], &env).unwrap_or_else(|e| panic!("{e}"));
    let guard = Telemetry::init(&config.telemetry).unwrap();
    assert!(Telemetry::init(&config.telemetry).is_err(), "a second subscriber");

    guard.metrics.add(&names::DECISIONS, &["rollback"], 1.0);
    guard.metrics.observe(&names::STORE_COMMIT, &[], 0.01);
    let parent = tracing::info_span!(target: "guardraild::test", "the decision");
    let traceparent = parent.in_scope(|| telemetry::traceparent(&parent)).unwrap();
    drop(parent);
    let child = tracing::info_span!(target: "guardraild::test", "the delivery");
    telemetry::set_parent(&child, &traceparent);
    let of_child = child.in_scope(|| telemetry::traceparent(&child)).unwrap();
    drop(child);
    assert_eq!(of_child[..35], traceparent[..35], "one trace");
    assert_ne!(of_child, traceparent);
    tracing::info_span!(target: "reqwest::connect", "not ours").in_scope(|| ());
    guard.shutdown();

    let requests: Vec<_> = received.try_iter().collect();
    let to = |path: &str| requests.iter().filter(|(head, _)| head.starts_with(&format!("POST {path} "))).collect::<Vec<_>>();
    let (traces, metrics) = (to("/v1/traces"), to("/v1/metrics"));
    assert!(requests.iter().all(|(head, _)| head.contains("x-api-key: 0123456789")));
    for name in ["the decision", "the delivery", "service.name"] {
        assert!(traces.iter().any(|(_, body)| contains(body, name)), "{name}");
    }
    assert!(!traces.iter().any(|(_, body)| contains(body, "not ours")));
    for name in ["guardraild_decisions_total", "guardraild_store_commit_seconds", "guardraild_build_info"] {
        assert!(metrics.iter().any(|(_, body)| contains(body, name)), "{name}");
    }
}
