//! One trace from the pane that tripped to the answer to the webhook.

use super::harness::{Hook, Kafka, Site, holds, one_topic, read_message, until};
use super::stream::{EXPERIMENT, Service, rule};
use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

/// What is needed of a span of the protocol's protobuf form.
#[derive(Clone, Debug, Default)]
struct Span {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
}

/// Number and content of each field of a protobuf message; of those that hold bytes, the others are passed over.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let length = match tag & 7 {
            0 => {
                varint(&mut bytes);
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(&mut bytes) as usize,
        };
        let (content, rest) = bytes.split_at(length);
        if tag & 7 == 2 {
            out.push((tag >> 3, content));
        }
        bytes = rest;
    }
    out
}

fn inside(bytes: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    fields(bytes).into_iter().filter(move |(n, _)| *n == number).map(|(_, content)| content)
}

fn spans(request: &[u8]) -> Vec<Span> {
    let spans = inside(request, 1).flat_map(|resource| inside(resource, 2)).flat_map(|scope| inside(scope, 2));
    let span = |bytes: &[u8]| {
        let mut span = Span::default();
        for (number, content) in fields(bytes) {
            match number {
                1 => span.trace = content.to_vec(),
                2 => span.id = content.to_vec(),
                4 => span.parent = content.to_vec(),
                5 => span.name = String::from_utf8_lossy(content).into_owned(),
                _ => {}
            }
        }
        span
    };
    spans.map(span).collect()
}

/// A collector of traces; it forgets everything else.
fn collector() -> (String, Arc<Mutex<Vec<Span>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let collected = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&collected);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Some((head, body)) = read_message(&mut reader) {
                    if head.starts_with("POST /v1/traces ") {
                        log.lock().unwrap().extend(spans(&body));
                    }
                    let _ = reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                }
            });
        }
    });
    (address, collected)
}

#[test]
fn one_trace_leads_from_the_pane_that_tripped_to_the_webhooks_answer() {
    let (address, collected) = collector();
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::start(Box::new(|n, _| if n == 0 { 503 } else { 200 }));
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
    let mut daemon = site.start(&[&format!("telemetry.otlp.endpoint={address}")]);
    daemon.ready();
    let service = Service { slow_from: 10_000, ..Service::healthy(guardraild::clock::now() - 60_000) };
    kafka.write("all", &service.records(0, 25_000));
    holds("the rollback is received", || hook.of("guardrail.rollback").iter().any(|hit| hit.status == 200));
    let traceparent = until("the log names the trace", || {
        let entries = daemon.log_of(EXPERIMENT);
        entries.iter().find(|entry| entry["kind"] == "decision")?["traceparent"].as_str().map(str::to_owned)
    });
    let exemplars = daemon.open_metrics();
    // The end sends what is left.
    let (status, lines) = daemon.terminate();
    assert_eq!(status.code(), Some(0));

    let spans = collected.lock().unwrap().clone();
    let named = |name: &str| spans.iter().filter(|s| s.name == name).cloned().collect::<Vec<_>>();
    let [decide] = &named("decide")[..] else { panic!("{spans:#?}") };
    let attempts = named("delivery");
    assert_eq!(attempts.len(), 2, "a refused attempt and one that succeeded: {spans:#?}");
    assert!(attempts.iter().all(|a| a.trace == decide.trace && a.parent == decide.id), "{spans:#?}");
    let pane = named("pane").into_iter().find(|s| s.id == decide.parent);
    let pane = pane.unwrap_or_else(|| panic!("no pane above the decision: {spans:#?}"));
    assert!(pane.parent.is_empty() && pane.trace == decide.trace, "{spans:#?}");
    // The trace is named wherever one would look for it.
    let id: String = decide.trace.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(traceparent.contains(&id), "{traceparent}");
    for what in ["\"name\":\"decide\"", "\"name\":\"delivery\""] {
        assert!(lines.iter().any(|line| line.contains(what) && line.contains(&id)), "no line {what} names {id}");
    }
    for metric in ["guardraild_decision_delay_seconds_bucket", "guardraild_delivery_attempt_seconds_bucket"] {
        assert!(
            exemplars.lines().any(|l| l.starts_with(metric) && l.contains(&format!("# {{trace_id=\"{id}\"}} "))),
            "{metric}:\n{exemplars}"
        );
    }
    let commit = named("commit").into_iter().find(|s| s.trace == pane.trace);
    assert_eq!(commit.map(|c| c.parent), Some(pane.id), "{spans:#?}");
}
