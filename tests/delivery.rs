//! The dispatcher against real receivers on loopback.

#![allow(clippy::unwrap_used)]

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, Response, Uri};
use guardraild::clock::Moment;
use guardraild::delivery::{Clock, DeliveryEvent, DeliveryResult, Dispatcher, Endpoint, Kind};
use guardraild::engine::decision::{Action, Decision, Evidence, LogKind, LogQuery, Mode, Notice, Verdict};
use guardraild::store::{Commit, DeliveryRecord, DeliveryState, LIFETIME, NewDelivery, Priority, RuleText, Store};
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

#[path = "delivery/faults.rs"]
mod faults;
#[path = "delivery/messages.rs"]
mod messages;
#[path = "delivery/products.rs"]
mod products;
#[path = "delivery/real.rs"]
mod real;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=";

/// One request, as a receiver saw it.
#[derive(Clone, Debug)]
struct Hit {
    /// From 1, over all requests to the receiver.
    number: usize,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Hit {
    fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }
}

type Header = Option<(&'static str, &'static str)>;

/// A local HTTP server: every request is reported, then answered as told.
struct Receiver {
    url: String,
    hits: UnboundedReceiver<Hit>,
}

impl Receiver {
    async fn start<A>(answer: impl Fn(Hit) -> A + Clone + Send + Sync + 'static) -> Receiver
    where
        A: Future<Output = (u16, Header)> + Send,
    {
        Receiver::with_body("answered", answer).await
    }

    async fn with_body<A>(says: &'static str, answer: impl Fn(Hit) -> A + Clone + Send + Sync + 'static) -> Receiver
    where
        A: Future<Output = (u16, Header)> + Send,
    {
        let (report, hits) = unbounded_channel();
        let count = Arc::new(AtomicUsize::new(0));
        let handler = move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let hit = Hit { number, path: uri.path().to_owned(), headers, body };
            let _ = report.send(hit.clone());
            let answer = answer.clone();
            async move {
                let (status, header) = answer(hit).await;
                let mut response = Response::builder().status(status);
                if let Some((name, value)) = header {
                    response = response.header(HeaderName::from_static(name), value);
                }
                response.body(Body::from(says)).unwrap()
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handler)).await.unwrap() });
        Receiver { url, hits }
    }

    async fn saying(status: u16, body: &'static str) -> Receiver {
        Receiver::with_body(body, move |_| async move { (status, None) }).await
    }

    async fn always(status: u16) -> Receiver {
        Receiver::start(move |_| async move { (status, None) }).await
    }

    async fn silent() -> Receiver {
        Receiver::start(|_| std::future::pending()).await
    }

    async fn hit(&mut self) -> Hit {
        soon(self.hits.recv()).await.unwrap()
    }
}

/// The file says `text`; or, when asked to, it does from now on.
fn holds(path: &str, text: &str) {
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
        std::fs::write(path, text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(kept == text, "{path} differs, first {differs:?}; now it would be\n{text}");
}

/// Fails the test rather than hanging it.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("nothing happened for 30 s")
}

struct Bench {
    _dir: TempDir,
    path: PathBuf,
    store: Store,
    clock: Clock,
    report: UnboundedSender<DeliveryEvent>,
    events: UnboundedReceiver<DeliveryEvent>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with_clock(Arc::new(guardraild::clock::moment))
    }

    fn with_clock(clock: Clock) -> Bench {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| rustls::crypto::ring::default_provider().install_default().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guardraild.db");
        let mut store = Store::open(&path).unwrap();
        let rule = RuleText { file: "rule.yaml".to_owned(), experiment: Some(decision("d").experiment), text: String::new() };
        store.commit(&Commit { rules: Some(vec![rule]), ..Commit::default() }).unwrap();
        let (report, events) = unbounded_channel();
        Bench { _dir: dir, path, store, clock, report, events }
    }

    fn dispatcher(&self, endpoints: Vec<Endpoint>) -> Dispatcher {
        let report = self.report.clone();
        let observer = Arc::new(move |e: &DeliveryEvent| {
            let _ = report.send(e.clone());
        });
        Dispatcher::start(Store::open(&self.path).unwrap(), endpoints, Arc::clone(&self.clock), observer).unwrap()
    }

    fn commit(&mut self, rows: Vec<(String, Vec<NewDelivery>)>) {
        let decisions = rows.into_iter().map(|(id, deliveries)| (decision(&id), deliveries)).collect();
        self.commit_all(decisions, Vec::new());
    }

    fn commit_all(&mut self, decisions: Vec<(Decision, Vec<NewDelivery>)>, notices: Vec<(Notice, Vec<NewDelivery>)>) {
        self.store.commit(&Commit { at: (self.clock)().steady, decisions, notices, ..Commit::default() }).unwrap();
    }

    /// A decision with one delivery, `{id}-x`.
    fn send(&mut self, id: &str, endpoint: &str, priority: Priority) {
        self.commit(vec![row(id, endpoint, priority)]);
    }

    async fn event(&mut self) -> DeliveryEvent {
        soon(self.events.recv()).await.unwrap()
    }

    fn delivery(&self, id: &str) -> DeliveryRecord {
        self.store.delivery(id).unwrap().unwrap()
    }
}

fn row(id: &str, endpoint: &str, priority: Priority) -> (String, Vec<NewDelivery>) {
    let delivery = NewDelivery {
        id: format!("{id}-x"),
        endpoint: endpoint.to_owned(),
        event_type: "guardrail.rollback",
        priority,
        payload: format!(r#"{{"type":"guardrail.rollback","timestamp":"2026-12-02T09:20:17Z","data":{{"decision":"{id}"}}}}"#),
        escalate_to: (endpoint != "pager").then(|| "pager".to_owned()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    };
    (id.to_owned(), vec![delivery])
}

fn endpoint(name: &str, url: &str) -> Endpoint {
    Endpoint { secrets: vec![SECRET.into()], ..Endpoint::new(name, Kind::Webhook, url) }
}

fn decision(id: &str) -> Decision {
    Decision {
        decision: id.to_owned(),
        decided_at: 1_000,
        experiment: "new-checkout".to_owned(),
        revision: 1,
        phase: 0,
        bucket: "treatment".to_owned(),
        guardrail: "compliance_flags".to_owned(),
        criterion: "limit".to_owned(),
        verdict: Verdict::Breach,
        action: Action::Rollback,
        mode: Mode::Enforce,
        baseline_value: None,
        bucket_value: Some(1.0),
        unit: String::new(),
        change: None,
        interval: None,
        margin: Some(0.0),
        alpha: None,
        log_e_value: None,
        test: "count".to_owned(),
        since: 1_000,
        exposed_units: 7,
        evidence: Evidence::Count { count: 1, allowed: 0 },
        reason: "one flag".to_owned(),
        epoch: 0,
        segment: None,
        covered_by: None,
        held_by: None,
        author: None,
        shared_cause: None,
    }
}

fn verified(secret: &str, hit: &Hit) -> bool {
    standardwebhooks::Webhook::new(secret).unwrap().verify(&hit.body, &hit.headers).is_ok()
}

#[tokio::test]
async fn a_delivery_is_signed_with_every_secret_and_received_once() {
    let mut bench = Bench::new();
    let mut receiver = Receiver::always(204).await;
    let mut flags = endpoint("flags", &receiver.url);
    flags.secrets.push(OLD_SECRET.into());
    flags.headers.push(("authorization".to_owned(), "Bearer token".into()));
    let dispatcher = bench.dispatcher(vec![flags]);
    bench.send("d-1", "flags", Priority::Rollback);
    dispatcher.waker().wake();

    let hit = receiver.hit().await;
    assert!(verified(SECRET, &hit) && verified(OLD_SECRET, &hit));
    assert!(!verified("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", &hit));
    let row = bench.delivery("d-1-x").delivery;
    assert_eq!((hit.id(), hit.body.as_ref(), hit.path.as_str()), ("d-1-x", row.payload.as_bytes(), "/hook"));
    assert_eq!(hit.headers["authorization"], "Bearer token");
    assert_eq!(hit.headers["content-type"], "application/json");
    assert_eq!(Some(hit.headers["traceparent"].to_str().unwrap()), row.traceparent.as_deref());

    let event = bench.event().await;
    assert_eq!((event.result, event.status, event.attempt), (DeliveryResult::Delivered, Some(204), 1));
    assert!(event.first_attempt_delay_ms.is_some());
    dispatcher.stop(Duration::from_secs(5)).await;
    let record = bench.delivery("d-1-x");
    assert_eq!((record.delivery.state, record.history.len()), (DeliveryState::Delivered, 1));
    assert!(receiver.hits.try_recv().is_err());
    let log = bench.store.log("new-checkout", &LogQuery::first(10)).unwrap();
    assert_eq!(log.iter().map(|l| l.entry.kind).collect::<Vec<_>>(), [LogKind::Decision, LogKind::Delivery]);
}

#[tokio::test]
async fn a_rotated_secret_signs_the_next_attempt() {
    let mut bench = Bench::new();
    let mut receiver = Receiver::always(500).await;
    bench.send("d-1", "flags", Priority::Rollback);
    let flags = |secret: &str| Endpoint { secrets: vec![secret.into()], ..Endpoint::new("flags", Kind::Webhook, receiver.url.clone()) };
    let (old, new) = (flags(OLD_SECRET), flags(SECRET));
    let dispatcher = bench.dispatcher(vec![old.clone()]);
    let renewer = dispatcher.renewer();
    assert!(verified(OLD_SECRET, &receiver.hit().await));
    assert!(!renewer.renew(old).unwrap(), "nothing has changed");
    let faulty = Endpoint { secrets: vec!["whsec_short".into()], ..new.clone() };
    assert!(renewer.renew(faulty).is_err() && !renewer.renew(Endpoint { name: "other".to_owned(), ..new.clone() }).unwrap());
    assert!(renewer.renew(new).unwrap());
    let hit = receiver.hit().await;
    assert!(verified(SECRET, &hit) && !verified(OLD_SECRET, &hit));
    assert_eq!(hit.id(), "d-1-x");
}

#[tokio::test]
async fn a_failure_is_tried_again_under_the_same_id() {
    let mut bench = Bench::new();
    let mut receiver = Receiver::start(|hit| async move { (if hit.number == 1 { 500 } else { 200 }, None) }).await;
    bench.send("d-1", "flags", Priority::Rollback);
    let _dispatcher = bench.dispatcher(vec![endpoint("flags", &receiver.url)]);
    let (first, second) = (receiver.hit().await, receiver.hit().await);
    assert_eq!((first.id(), first.body.clone()), (second.id(), second.body.clone()));
    assert!(verified(SECRET, &second));
    assert_eq!(bench.event().await.result, DeliveryResult::Failed);
    let event = bench.event().await;
    assert_eq!((event.result, event.attempt, event.first_attempt_delay_ms), (DeliveryResult::Delivered, 2, None));
    let record = bench.delivery("d-1-x");
    assert_eq!(record.history[0].error.as_deref(), Some("HTTP 500: answered"));
    assert_eq!((record.history[1].status, record.delivery.last_error), (Some(200), None));
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_is_not_followed() {
    let mut bench = Bench::new();
    let mut receiver = Receiver::start(|_| async move { (307, Some(("location", "/elsewhere"))) }).await;
    bench.send("d-1", "flags", Priority::Rollback);
    let _dispatcher = bench.dispatcher(vec![endpoint("flags", &receiver.url)]);
    let event = bench.event().await;
    assert_eq!((event.result, event.status), (DeliveryResult::Failed, Some(307)));
    assert_eq!(receiver.hit().await.path, "/hook");
    assert!(receiver.hits.try_recv().is_err());
    assert!(bench.delivery("d-1-x").delivery.last_error.unwrap().contains("redirects are not followed"));
}

#[tokio::test]
async fn gone_disables_the_endpoint_and_pages() {
    let mut bench = Bench::new();
    let answers = |hit: Hit| async move { if hit.number == 1 { (503, Some(("retry-after", "600"))) } else { (410, None) } };
    let mut gone = Receiver::start(answers).await;
    let mut pager = Receiver::always(202).await;
    let pager_url = pager.url.clone();
    let endpoints = |url: &str| vec![endpoint("flags", url), endpoint("pager", &pager_url)];
    bench.send("d-0", "flags", Priority::Rollback);
    let dispatcher = bench.dispatcher(endpoints(&gone.url));
    assert_eq!(bench.event().await.status, Some(503));
    bench.send("d-1", "flags", Priority::Inform);
    dispatcher.waker().wake();
    let event = bench.event().await;
    assert_eq!((event.result, event.status), (DeliveryResult::Dead, Some(410)));
    let page = pager.hit().await;
    assert_eq!(page.id(), "d-1-x-undelivered");
    let body: serde_json::Value = serde_json::from_slice(&page.body).unwrap();
    assert_eq!((&body["type"], &body["data"]["undelivered"]["endpoint"]), (&"guardrail.alert".into(), &"flags".into()));
    // What waits for its next attempt is given up with it.
    assert_eq!(pager.hit().await.id(), "d-0-x-undelivered");
    dispatcher.stop(Duration::from_secs(5)).await;
    assert_eq!(bench.delivery("d-0-x").delivery.state, DeliveryState::Dead);
    assert_eq!((gone.hit().await.id(), gone.hit().await.id()), ("d-0-x", "d-1-x"));
    while bench.events.try_recv().is_ok() {}

    // Still disabled after a restart: what comes later is given up at once, and pages as well.
    let dispatcher = bench.dispatcher(endpoints(&gone.url));
    bench.send("d-2", "flags", Priority::Inform);
    dispatcher.waker().wake();
    let event = bench.event().await;
    assert_eq!((event.delivery.as_str(), event.result, event.attempt), ("d-2-x", DeliveryResult::Dead, 0));
    assert_eq!(pager.hit().await.id(), "d-2-x-undelivered");
    dispatcher.stop(Duration::from_secs(5)).await;
    assert!(gone.hits.try_recv().is_err());

    // A new address is tried.
    let mut moved = Receiver::always(200).await;
    bench.send("d-3", "flags", Priority::Rollback);
    let _dispatcher = bench.dispatcher(endpoints(&moved.url));
    assert_eq!(moved.hit().await.id(), "d-3-x");
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let mut bench = Bench::new();
    let receiver = Receiver::start(|_| async move { (429, Some(("retry-after", "120"))) }).await;
    bench.send("d-1", "flags", Priority::Rollback);
    let _dispatcher = bench.dispatcher(vec![endpoint("flags", &receiver.url)]);
    assert_eq!(bench.event().await.status, Some(429));
    let record = bench.delivery("d-1-x");
    assert!(record.delivery.next_attempt_ms - record.history[0].at >= 120_000);
}

#[tokio::test]
async fn an_endpoint_that_hangs_delays_no_other() {
    let mut bench = Bench::new();
    let (mut slow, mut fast) = (Receiver::silent().await, Receiver::always(200).await);
    let dispatcher = bench.dispatcher(vec![endpoint("slow", &slow.url), endpoint("fast", &fast.url)]);
    bench.send("d-1", "slow", Priority::Rollback);
    dispatcher.waker().wake();
    slow.hit().await;
    bench.send("d-2", "fast", Priority::Inform);
    dispatcher.waker().wake();
    assert_eq!(fast.hit().await.id(), "d-2-x");
    assert_eq!(bench.event().await.delivery, "d-2-x");
    assert_eq!(bench.delivery("d-1-x").history[0].duration_ms, None, "still in flight");
}

#[tokio::test]
async fn an_answer_that_never_comes_is_a_failure() {
    let mut bench = Bench::new();
    let silent = Receiver::silent().await;
    bench.send("d-1", "flags", Priority::Rollback);
    let flags = Endpoint { timeout: Duration::from_millis(200), ..endpoint("flags", &silent.url) };
    let _dispatcher = bench.dispatcher(vec![flags]);
    let event = bench.event().await;
    assert_eq!((event.result, event.status), (DeliveryResult::Failed, None));
    assert_eq!(bench.delivery("d-1-x").delivery.last_error.as_deref(), Some("no answer in time"));
}

#[tokio::test]
async fn a_body_that_never_ends_holds_nothing_up() {
    for (status, result) in [("200 OK", DeliveryResult::Delivered), ("500 Oh", DeliveryResult::Failed)] {
        let mut bench = Bench::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4_096]).await;
            stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 100\r\n\r\nno more").as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
        });
        bench.send("d-1", "flags", Priority::Rollback);
        let _dispatcher = bench.dispatcher(vec![Endpoint { timeout: Duration::from_secs(1), ..endpoint("flags", &url) }]);
        assert_eq!(bench.event().await.result, result, "{status}");
    }
}

#[tokio::test]
async fn a_kill_overtakes_a_thousand_alerts() {
    let mut bench = Bench::new();
    let mut receiver = Receiver::start(|hit| async move {
        if hit.id() != "d-kill-x" {
            std::future::pending::<()>().await;
        }
        (200, None)
    })
    .await;
    bench.commit((0..1_000).map(|i| row(&format!("d-{i}"), "flags", Priority::Inform)).collect());
    let dispatcher = bench.dispatcher(vec![endpoint("flags", &receiver.url)]);
    assert_eq!(receiver.hit().await.id(), "d-0-x", "alerts go in order");
    bench.send("d-kill", "flags", Priority::Kill);
    dispatcher.waker().wake();
    assert_eq!(receiver.hit().await.id(), "d-kill-x");
    let event = bench.event().await;
    assert_eq!((event.delivery.as_str(), event.result), ("d-kill-x", DeliveryResult::Delivered));
}

#[tokio::test]
async fn a_restart_in_the_middle_of_an_attempt_keeps_the_id() {
    let mut bench = Bench::new();
    let mut receiver = Receiver::start(|hit| async move {
        if hit.number == 1 {
            std::future::pending::<()>().await;
        }
        (200, None)
    })
    .await;
    bench.send("d-1", "flags", Priority::Rollback);
    let dispatcher = bench.dispatcher(vec![endpoint("flags", &receiver.url)]);
    let first = receiver.hit().await;
    drop(dispatcher);

    let _dispatcher = bench.dispatcher(vec![endpoint("flags", &receiver.url)]);
    let second = receiver.hit().await;
    assert_eq!((first.id(), first.body.clone()), (second.id(), second.body.clone()));
    let event = bench.event().await;
    assert_eq!((event.result, event.attempt), (DeliveryResult::Delivered, 2));
    assert_eq!(bench.delivery("d-1-x").history.iter().map(|a| a.status).collect::<Vec<_>>(), [None, Some(200)]);
}

#[tokio::test]
async fn a_redelivery_goes_out_again_under_the_same_id() {
    let mut bench = Bench::new();
    let mut receiver = Receiver::always(200).await;
    bench.send("d-1", "flags", Priority::Rollback);
    let dispatcher = bench.dispatcher(vec![endpoint("flags", &receiver.url)]);
    assert_eq!(bench.event().await.attempt, 1);
    assert!(bench.store.redeliver("d-1-x", (bench.clock)(), "sre").unwrap());
    dispatcher.waker().wake();
    assert_eq!(bench.event().await.attempt, 2);
    assert_eq!((receiver.hit().await.id(), receiver.hit().await.id()), ("d-1-x", "d-1-x"));
}

#[tokio::test]
async fn an_endpoint_that_nobody_configured_pages() {
    let mut bench = Bench::new();
    let mut pager = Receiver::always(202).await;
    let dispatcher = bench.dispatcher(vec![endpoint("pager", &pager.url)]);
    bench.send("d-1", "flags", Priority::Rollback);
    dispatcher.waker().wake();
    assert_eq!(pager.hit().await.id(), "d-1-x-undelivered");
    assert_eq!(bench.delivery("d-1-x").delivery.state, DeliveryState::Dead);
}

#[tokio::test]
async fn a_delivery_goes_out_while_the_database_is_locked() {
    let mut bench = Bench::new();
    let mut receiver = Receiver::always(200).await;
    bench.send("d-1", "flags", Priority::Rollback);
    let lock = rusqlite::Connection::open(&bench.path).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let _dispatcher = bench.dispatcher(vec![endpoint("flags", &receiver.url)]);
    assert_eq!(receiver.hit().await.id(), "d-1-x");
    assert!(bench.delivery("d-1-x").history.is_empty());
    lock.execute_batch("ROLLBACK").unwrap();
    assert_eq!(bench.event().await.result, DeliveryResult::Delivered);
    assert_eq!(bench.delivery("d-1-x").history.iter().map(|a| (a.n, a.status)).collect::<Vec<_>>(), [(1, Some(200))]);
    assert!(receiver.hits.try_recv().is_err(), "sent once");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_is_given_up_after_a_day() {
    let begin = tokio::time::Instant::now();
    let clock = move || {
        let now = 1_700_000_000_000 + i64::try_from(begin.elapsed().as_millis()).unwrap();
        Moment { wall: now, steady: now }
    };
    let mut bench = Bench::with_clock(Arc::new(clock));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    bench.send("d-1", "flags", Priority::Rollback);
    let dispatcher = bench.dispatcher(vec![endpoint("flags", &url), endpoint("pager", &url)]);
    let last = loop {
        let event = bench.events.recv().await.unwrap();
        if event.endpoint == "flags" && event.result == DeliveryResult::Dead {
            break event;
        }
    };
    dispatcher.stop(Duration::from_secs(5)).await;

    let record = bench.delivery("d-1-x");
    assert_eq!((record.delivery.state, record.delivery.attempts), (DeliveryState::Dead, last.attempt));
    assert!(record.delivery.last_error.unwrap().starts_with("not received within 24 h"));
    let span = record.history.last().unwrap().at - record.history[0].at;
    assert!((LIFETIME - 700_000..=LIFETIME).contains(&span), "{span}");
    assert!((130..=170).contains(&record.history.len()), "{}", record.history.len());
    assert_eq!(bench.delivery("d-1-x-undelivered").delivery.endpoint, "pager");
    assert!(bench.store.log("new-checkout", &LogQuery::first(10)).unwrap().iter().any(|l| l.entry.text.contains("given up: not received")));
}
