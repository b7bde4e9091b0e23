//! Faults around the dispatcher: answers that come late, a network that cuts, delays and truncates, clocks that are set, endpoints that fail
//! for good, and ten thousand deliveries at once.

use super::*;
use guardraild::engine::time::Millis;
use std::sync::atomic::AtomicI64;
use tokio::net::TcpStream;
use tokio::sync::Notify;

const HOUR: Millis = 3_600_000;

/// The real clock, and what a test adds to either side of it.
#[derive(Clone, Default)]
struct Hands {
    wall: Arc<AtomicI64>,
    steady: Arc<AtomicI64>,
}

impl Hands {
    fn clock(&self) -> Clock {
        let hands = self.clone();
        Arc::new(move || {
            let now = guardraild::clock::moment();
            let of = |hand: &AtomicI64| hand.load(Ordering::SeqCst);
            Moment { wall: now.wall + of(&hands.wall), steady: now.steady + of(&hands.steady) }
        })
    }

    /// Lets time pass until the next attempt is due.
    fn pass(&self, bench: &Bench, dispatcher: &Dispatcher, id: &str) {
        let wait = bench.delivery(id).delivery.next_attempt_ms - (bench.clock)().steady;
        for hand in [&self.wall, &self.steady] {
            hand.fetch_add(wait.max(0), Ordering::SeqCst);
        }
        dispatcher.waker().wake();
    }
}

#[tokio::test]
async fn a_late_answer_is_not_lost_sight_of() {
    let mut bench = Bench::new();
    let late = Arc::new(Notify::new());
    let gate = Arc::clone(&late);
    let mut receiver = Receiver::start(move |hit| {
        let gate = Arc::clone(&gate);
        async move {
            match hit.number {
                1 => gate.notified().await,
                _ => std::future::pending().await,
            }
            (200, None)
        }
    })
    .await;
    bench.send("d-1", "flags", Priority::Rollback);
    let flags = Endpoint { timeout: Duration::from_millis(300), ..endpoint("flags", &receiver.url) };
    let _dispatcher = bench.dispatcher(vec![flags]);
    let first = receiver.hit().await;
    let event = bench.event().await;
    assert_eq!((event.result, event.attempt), (DeliveryResult::Failed, 1));
    assert_eq!(bench.delivery("d-1-x").delivery.last_error.as_deref(), Some("no answer in time"));
    assert_eq!(receiver.hit().await.id(), first.id(), "tried again under the same id");
    late.notify_one();
    let delivered = loop {
        let event = bench.event().await;
        if event.result == DeliveryResult::Delivered {
            break event;
        }
    };
    assert_eq!((delivered.attempt, delivered.status), (1, Some(200)));
    let record = bench.delivery("d-1-x");
    assert_eq!((record.delivery.state, record.delivery.last_error), (DeliveryState::Delivered, None));
    assert_eq!(record.history[0].status, Some(200));
}

/// What a proxy does to a connection.
#[derive(Clone, Copy)]
enum Wire {
    /// Passes on so many bytes of the request, then cuts both sides.
    CutRequest(usize),
    /// Passes on the request, and so many bytes of the answer.
    CutAnswer(usize),
    /// Passes all on, a few bytes at a time.
    Trickle,
}

/// Treats the n-th connection by the n-th of `wires`, and those after them by the last.
async fn proxy(to: &str, wires: &'static [Wire]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let target = to.trim_start_matches("http://").trim_end_matches("/hook").to_owned();
    tokio::spawn(async move {
        for n in 0.. {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(&target).await.unwrap();
            tokio::spawn(treat(client, server, wires[n.min(wires.len() - 1)]));
        }
    });
    url
}

async fn treat(mut client: TcpStream, mut server: TcpStream, wire: Wire) {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    match wire {
        Wire::CutRequest(bytes) => pass(from_client, to_server, bytes, 64).await,
        Wire::CutAnswer(bytes) => tokio::select! {
            () = pass(from_client, to_server, usize::MAX, 4_096) => {}
            () = pass(from_server, to_client, bytes, 16) => {}
        },
        Wire::Trickle => {
            tokio::join!(pass(from_client, to_server, usize::MAX, 100), pass(from_server, to_client, usize::MAX, 3));
        }
    }
}

/// Passes on `bytes`, at most `step` at a time.
async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, mut bytes: usize, step: usize) {
    let mut buffer = vec![0; step];
    while bytes > 0 {
        let Ok(n @ 1..) = from.read(&mut buffer[..step.min(bytes)]).await else { return };
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
        bytes -= n;
    }
}

#[tokio::test]
async fn a_network_that_cuts_and_truncates_loses_and_doubles_nothing() {
    const WIRES: &[Wire] =
        &[Wire::CutRequest(0), Wire::CutRequest(100), Wire::CutAnswer(1), Wire::CutAnswer(9), Wire::CutAnswer(40), Wire::Trickle];
    let hands = Hands::default();
    let mut bench = Bench::with_clock(hands.clock());
    let mut receiver = Receiver::always(200).await;
    let url = proxy(&receiver.url, WIRES).await;
    bench.send("d-1", "flags", Priority::Rollback);
    let dispatcher = bench.dispatcher(vec![endpoint("flags", &url)]);
    for attempt in 1..=5 {
        let event = bench.event().await;
        assert_eq!((event.result, event.status, event.attempt), (DeliveryResult::Failed, None, attempt));
        hands.pass(&bench, &dispatcher, "d-1-x");
    }
    // The pager, which hears of it after five attempts, is not configured here.
    let event = loop {
        let event = bench.event().await;
        if event.endpoint == "flags" {
            break event;
        }
    };
    assert_eq!((event.result, event.status, event.attempt), (DeliveryResult::Delivered, Some(200), 6));
    dispatcher.stop(Duration::from_secs(5)).await;
    // Three answers were cut off on their way; the receiver tells the repeats by the id.
    let mut ids = Vec::new();
    while let Ok(hit) = receiver.hits.try_recv() {
        assert!(verified(SECRET, &hit));
        ids.push(hit.id().to_owned());
    }
    assert_eq!(ids, ["d-1-x"; 4]);
}

#[tokio::test]
async fn clocks_that_are_set_move_no_schedule_and_signatures_carry_the_wall() {
    let hands = Hands::default();
    let mut bench = Bench::with_clock(hands.clock());
    let asked = Arc::clone(&hands.wall);
    let mut receiver = Receiver::start(move |hit| {
        // The receiver's clock is right by the daemon's wall.
        let wall = guardraild::clock::now() + asked.load(Ordering::SeqCst);
        async move {
            let date = jiff::Timestamp::from_millisecond(wall + 120_000).unwrap().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            let header: Header = (hit.number == 3).then(|| ("retry-after", &*Box::leak(date.into_boxed_str())));
            (503, header)
        }
    })
    .await;
    bench.send("d-1", "flags", Priority::Rollback);
    let dispatcher = bench.dispatcher(vec![endpoint("flags", &receiver.url)]);
    let due_in = |bench: &Bench| bench.delivery("d-1-x").delivery.next_attempt_ms - (bench.clock)().steady;
    for (jump, longest) in [(-3 * HOUR, 1_100), (8 * HOUR, 1_100), (-HOUR, 120_000), (0, 5_500)] {
        let hit = receiver.hit().await;
        let stamp: Millis = hit.headers["webhook-timestamp"].to_str().unwrap().parse().unwrap();
        assert!(((bench.clock)().wall / 1_000 - stamp).abs() <= 30, "signed with the wall clock");
        bench.event().await;
        hands.wall.fetch_add(jump, Ordering::SeqCst);
        let wait = due_in(&bench);
        assert!(wait <= longest, "due in {wait} ms");
        if longest == 120_000 {
            assert!(wait > 60_000, "asked for patience until a date: {wait} ms");
        }
        hands.pass(&bench, &dispatcher, "d-1-x");
    }
    // What is decided after a jump is due at once.
    hands.wall.fetch_add(24 * HOUR, Ordering::SeqCst);
    bench.send("d-2", "flags", Priority::Kill);
    dispatcher.waker().wake();
    while receiver.hit().await.id() != "d-2-x" {}
}

#[tokio::test]
async fn an_intervention_that_fails_goes_to_another_endpoint_once_and_pages() {
    let hands = Hands::default();
    let mut bench = Bench::with_clock(hands.clock());
    let answers = |hit: Hit| async move { (if hit.number < 7 { 503 } else { 410 }, None) };
    let flags = Receiver::start(answers).await;
    let (mut backup, mut pager) = (Receiver::always(200).await, Receiver::always(200).await);
    bench.send("d-1", "flags", Priority::Rollback);
    let first = Endpoint { escalate_to: Some("backup".into()), ..endpoint("flags", &flags.url) };
    let dispatcher = bench.dispatcher(vec![first, endpoint("backup", &backup.url), endpoint("pager", &pager.url)]);
    let mut attempts = 0;
    while attempts < 7 {
        let event = bench.event().await;
        if event.endpoint != "flags" {
            continue;
        }
        attempts += 1;
        assert_eq!(bench.store.delivery("d-1-x-at-backup").unwrap().is_some(), attempts >= 5, "after {attempts} attempts");
        if attempts < 7 {
            hands.pass(&bench, &dispatcher, "d-1-x");
        }
    }
    let instead = backup.hit().await;
    assert!(verified(SECRET, &instead));
    let body: serde_json::Value = serde_json::from_slice(&instead.body).unwrap();
    assert_eq!((instead.id(), &body["type"]), ("d-1-x-at-backup", &"guardrail.rollback".into()));
    assert_eq!(body["data"]["undelivered"]["endpoint"], "flags");
    assert_eq!((pager.hit().await.id(), pager.hit().await.id()), ("d-1-x-failing", "d-1-x-undelivered"));
    let rows = bench.store.deliveries("d-1").unwrap();
    let escalated = rows.iter().filter(|r| r.delivery.escalates.as_deref() == Some("d-1-x"));
    assert_eq!((rows.len(), escalated.count()), (4, 3));
    dispatcher.stop(Duration::from_secs(5)).await;
    assert!(backup.hits.try_recv().is_err() && pager.hits.try_recv().is_err(), "once each");
}

#[tokio::test]
async fn ten_thousand_pending_deliveries_hold_up_no_kill_and_no_other_endpoint() {
    let mut bench = Bench::new();
    let (mut crowded, mut quiet) = (Receiver::always(200).await, Receiver::always(200).await);
    bench.commit((0..10_000).map(|i| row(&format!("d-{i}"), "crowded", Priority::Inform)).collect());
    bench.send("d-other", "quiet", Priority::Inform);
    bench.send("d-kill", "crowded", Priority::Kill);
    let _dispatcher = bench.dispatcher(vec![endpoint("crowded", &crowded.url), endpoint("quiet", &quiet.url)]);
    assert_eq!(quiet.hit().await.id(), "d-other-x");
    let (mut alerts, mut killed) = (0, None);
    while alerts < 100 || killed.is_none() {
        let hit = crowded.hit().await;
        match hit.id() {
            "d-kill-x" => killed = Some(alerts),
            id => {
                assert_eq!(id, format!("d-{alerts}-x"), "alerts go in order");
                alerts += 1;
            }
        }
    }
    assert!(killed.unwrap() < 100, "the kill waited for {killed:?} alerts");
}
