//! A receiver of webhooks that plays the flag service: it verifies Standard Webhooks signatures by itself, handles every id once,
//! and can refuse some requests, as real services do now and then.

use crate::clock;
use crate::engine::time::Millis;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crossbeam_channel::{Receiver as Inbox, Sender};
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

/// Seconds that a request's timestamp may be off.
const TOLERANCE_S: i64 = 300;
/// Ids remembered; the oldest go first.
const IDS_MAX: usize = 10_000;

/// What is done about a valid, new `guardrail.rollback` or `guardrail.kill`: experiment and bucket.
pub type OnStop = Box<dyn Fn(&str, &str) + Send + Sync>;

pub struct Options {
    /// `whsec_` and base64; a signature by any of them is accepted.
    pub secrets: Vec<String>,
    /// Which valid requests, counted from 0, are answered with 503.
    pub refuse: fn(u64) -> bool,
    pub on_stop: OnStop,
}

/// One request, as it was answered.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Wall clock of its arrival.
    pub at: Millis,
    /// `webhook-id`; empty where the request had none.
    pub id: String,
    pub status: u16,
    /// Signature and timestamp were valid.
    pub verified: bool,
    /// Its id had been answered with success before.
    pub repeated: bool,
    /// The `type` of the body, such as `guardrail.rollback`.
    pub kind: String,
    /// The body's `data`: the decision. Null where the request was refused as invalid.
    pub data: Value,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("a secret must be `whsec_` and base64")]
    Secret,
    #[error("the receiver could not listen: {0}")]
    Listen(#[from] std::io::Error),
}

impl Delivery {
    /// An instant that the decision names, such as `decided_at`.
    pub fn instant(&self, key: &str) -> Option<Millis> {
        let at: jiff::Timestamp = self.data[key].as_str()?.parse().ok()?;
        Some(at.as_millisecond())
    }
}

/// A running receiver; it stops when dropped.
pub struct Receiver {
    address: SocketAddr,
    inbox: Inbox<Delivery>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Receiver {
    /// Listens on a free loopback port, on a thread of its own.
    pub fn start(options: Options) -> Result<Receiver, StartError> {
        let keys = options.secrets.iter().map(|s| key(s)).collect::<Option<Vec<_>>>().ok_or(StartError::Secret)?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (log, inbox) = crossbeam_channel::unbounded();
        let Options { refuse, on_stop, .. } = options;
        let service = Arc::new(Service { keys, seen: Mutex::default(), refuse, on_stop, log });
        let app = Router::new().fallback(post(receive)).with_state(service);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("receiver".into()).spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                let stopped = async move { stopped.await.unwrap_or_default() };
                // Open connections are not waited for: who stops a receiver has seen what it wanted.
                tokio::select! {
                    _ = axum::serve(listener, app) => {}
                    () = stopped => {}
                }
            });
        })?;
        Ok(Receiver { address, inbox, stop: Some(stop), thread: Some(thread) })
    }

    /// Where the daemon has to send: `http://127.0.0.1:PORT/hook`.
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Every request, in the order of their answers.
    pub fn inbox(&self) -> &Inbox<Delivery> {
        &self.inbox
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Service {
    keys: Vec<Vec<u8>>,
    seen: Mutex<Seen>,
    refuse: fn(u64) -> bool,
    on_stop: OnStop,
    log: Sender<Delivery>,
}

#[derive(Default)]
struct Seen {
    requests: u64,
    ids: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    /// Whether the id is new; it is remembered.
    fn insert(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

/// Why a request is not taken.
enum Fault {
    Malformed(&'static str),
    Unverified(&'static str),
}

async fn receive(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> (StatusCode, &'static str) {
    let at = clock::now();
    let id = header(&headers, "webhook-id").unwrap_or_default().to_owned();
    let mut delivery = Delivery { at, id, status: 0, verified: false, repeated: false, kind: String::new(), data: Value::Null };
    let (status, text) = match service.verify(&headers, &body, at / 1_000) {
        Err(Fault::Malformed(text)) => (StatusCode::BAD_REQUEST, text),
        Err(Fault::Unverified(text)) => (StatusCode::UNAUTHORIZED, text),
        Ok((kind, data)) => {
            delivery.verified = true;
            delivery.kind = kind;
            delivery.data = data;
            service.handle(&mut delivery)
        }
    };
    delivery.status = status.as_u16();
    // Nobody may be listening any more.
    let _ = service.log.send(delivery);
    (status, text)
}

impl Service {
    /// Checks timestamp and signature before it looks at the body; returns its `type` and `data`.
    fn verify(&self, headers: &HeaderMap, body: &[u8], now_s: i64) -> Result<(String, Value), Fault> {
        let required = |name| header(headers, name).ok_or(Fault::Malformed("a webhook header is missing"));
        let (id, timestamp, signatures) = (required("webhook-id")?, required("webhook-timestamp")?, required("webhook-signature")?);
        let sent_s: i64 = timestamp.parse().map_err(|_| Fault::Malformed("webhook-timestamp is not a number of seconds"))?;
        if now_s.abs_diff(sent_s) > TOLERANCE_S.unsigned_abs() {
            return Err(Fault::Unverified("webhook-timestamp is too far from now"));
        }
        if !self.keys.iter().any(|key| signed(key, id, timestamp, body, signatures)) {
            return Err(Fault::Unverified("no signature matches"));
        }
        let mut body: Value = serde_json::from_slice(body).map_err(|_| Fault::Malformed("the body is not JSON"))?;
        let kind = body["type"].as_str().ok_or(Fault::Malformed("the body has no type"))?.to_owned();
        Ok((kind, body.get_mut("data").map(Value::take).unwrap_or_default()))
    }

    fn handle(&self, delivery: &mut Delivery) -> (StatusCode, &'static str) {
        {
            let mut seen = self.seen.lock().unwrap_or_else(|e| e.into_inner());
            seen.requests += 1;
            if (self.refuse)(seen.requests - 1) {
                return (StatusCode::SERVICE_UNAVAILABLE, "not now");
            }
            delivery.repeated = !seen.insert(&delivery.id);
        }
        if delivery.repeated {
            return (StatusCode::OK, "already done");
        }
        if matches!(delivery.kind.as_str(), "guardrail.rollback" | "guardrail.kill") {
            let text = |key: &str| delivery.data[key].as_str().unwrap_or_default();
            (self.on_stop)(text("experiment"), text("bucket"));
        }
        (StatusCode::OK, "done")
    }
}

/// A header's value where it is there exactly once, is text and of a sane length.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    (values.next().is_none() && !value.is_empty() && value.len() <= 4_096).then_some(value)
}

fn key(secret: &str) -> Option<Vec<u8>> {
    BASE64.decode(secret.strip_prefix("whsec_")?).ok().filter(|key| !key.is_empty())
}

/// Whether one of the `v1` signatures is the HMAC-SHA256 of `id.timestamp.body`; compared in constant time.
fn signed(key: &[u8], id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return false };
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    let candidates = signatures.split(' ').filter_map(|s| BASE64.decode(s.strip_prefix("v1,")?).ok());
    candidates.into_iter().any(|candidate| mac.clone().verify_slice(&candidate).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &str = r#"{"type":"guardrail.rollback","timestamp":"2026-12-02T09:20:17Z","data":{"experiment":"x","bucket":"b"}}"#;

    struct Rig {
        receiver: Receiver,
        stops: Inbox<(String, String)>,
    }

    fn rig(refuse: fn(u64) -> bool) -> Rig {
        let (send, stops) = crossbeam_channel::unbounded();
        let on_stop: OnStop = Box::new(move |e, b| send.send((e.to_owned(), b.to_owned())).unwrap());
        Rig { receiver: Receiver::start(Options { secrets: vec![SECRET.into()], refuse, on_stop }).unwrap(), stops }
    }

    impl Rig {
        fn raw(&self, request: &[u8]) -> u16 {
            let mut stream = std::net::TcpStream::connect(self.receiver.address).unwrap();
            stream.write_all(request).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer.split(' ').nth(1).unwrap().parse().unwrap()
        }

        fn send(&self, id: &str, timestamp: &str, signature: &str, body: &str) -> u16 {
            let head = format!(
                "POST /hook HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\nwebhook-id: {id}\r\n\
                 webhook-timestamp: {timestamp}\r\nwebhook-signature: {signature}\r\n\r\n{body}",
                body.len()
            );
            self.raw(head.as_bytes())
        }

        /// Signs with an independent implementation.
        fn signed(&self, id: &str, body: &str) -> u16 {
            let now = clock::now() / 1_000;
            let signature = standardwebhooks::Webhook::new(SECRET).unwrap().sign(id, now, body.as_bytes()).unwrap();
            self.send(id, &now.to_string(), &format!("v1,AAAA {signature}"), body)
        }
    }

    #[test]
    fn a_rollback_stops_the_bucket_once_whatever_is_repeated() {
        let rig = rig(|_| false);
        assert_eq!((rig.signed("m-1", BODY), rig.signed("m-1", BODY)), (200, 200));
        assert_eq!(rig.stops.try_iter().collect::<Vec<_>>(), [("x".to_owned(), "b".to_owned())]);
        let log: Vec<Delivery> = rig.receiver.inbox().try_iter().collect();
        assert_eq!(log.iter().map(|d| (d.status, d.verified, d.repeated)).collect::<Vec<_>>(), [(200, true, false), (200, true, true)]);
    }

    #[test]
    fn the_first_is_refused_where_asked_for_and_its_id_still_counts_as_new() {
        let rig = rig(|n| n == 0);
        assert_eq!((rig.signed("m-1", BODY), rig.stops.len()), (503, 0));
        assert_eq!((rig.signed("m-1", BODY), rig.stops.len()), (200, 1));
    }

    #[test]
    fn other_types_stop_nothing() {
        let rig = rig(|_| false);
        assert_eq!(rig.signed("m-1", &BODY.replace("rollback", "confirmed")), 200);
        assert!(rig.stops.is_empty());
    }

    #[test]
    fn hostile_requests_are_refused_and_stop_nothing() {
        let rig = rig(|_| false);
        let now = (clock::now() / 1_000).to_string();
        let webhook = standardwebhooks::Webhook::new(SECRET).unwrap();
        let good = webhook.sign("m-1", clock::now() / 1_000, BODY.as_bytes()).unwrap();
        let old = clock::now() / 1_000 - 301;
        let old_signature = webhook.sign("m-1", old, BODY.as_bytes()).unwrap();
        assert_eq!(rig.send("m-1", &now, "v1,AAAA", BODY), 401, "wrong signature");
        assert_eq!(rig.send("m-1", &now, "nonsense", BODY), 401, "no signature at all");
        assert_eq!(rig.send("m-2", &now, &good, BODY), 401, "another id");
        assert_eq!(rig.send("m-1", &now, &good, &BODY.replace("\"b\"", "\"c\"")), 401, "another body");
        assert_eq!(rig.send("m-1", &old.to_string(), &old_signature, BODY), 401, "a replay");
        assert_eq!(rig.send("m-1", "soon", &good, BODY), 400, "no timestamp");
        assert_eq!(rig.send("m-1", "-9223372036854775808", &good, BODY), 401, "a timestamp at the end of the world");
        assert_eq!(rig.raw(b"POST /hook HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"), 400, "no headers");
        assert_eq!(rig.signed("m-1", "not json"), 400);
        assert_eq!(rig.signed("m-1", "[]"), 400);
        assert_eq!(rig.raw(b"GET /hook HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"), 405);
        assert!(rig.stops.is_empty());
        assert_eq!(rig.signed("m-1", BODY), 200, "and it still works");
    }

    #[test]
    fn memory_of_ids_is_bounded() {
        let mut seen = Seen::default();
        assert!((0..IDS_MAX + 5).all(|n| seen.insert(&n.to_string())));
        assert_eq!((seen.ids.len(), seen.order.len()), (IDS_MAX, IDS_MAX));
        assert!(!seen.insert("5") && seen.insert("4"), "the oldest are forgotten first");
    }

    #[test]
    fn a_bad_secret_is_refused() {
        let start =
            |secret: &str| Receiver::start(Options { secrets: vec![secret.into()], refuse: |_| false, on_stop: Box::new(|_, _| {}) }).err();
        assert!(matches!(start("plain"), Some(StartError::Secret)));
        assert!(matches!(start("whsec_***"), Some(StartError::Secret)));
    }
}
