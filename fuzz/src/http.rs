//! Bytes from the network: requests to the API, and answers to webhooks.

use super::{NOW, folder, split, world};
use axum::http::Response;
use guardraild::clock::Moment;
use guardraild::config::Config;
use guardraild::delivery::attempt::Made;
use guardraild::delivery::{DeliveryResult, Endpoint, Kind, Sender};
use guardraild::engine::decision::LogQuery;
use guardraild::engine::fleet::Fleet;
use guardraild::engine::state::CloseLook;
use guardraild::engine::time::Millis;
use guardraild::http::{Access, Api, Backend, BackendError, LogPage, site};
use guardraild::live::{Accepted, Command, Live, View};
use guardraild::readout::Dossier;
use guardraild::store::{Delivery, Priority};
use guardraild::telemetry::Metrics;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

const TOKEN: &str = "operate-token-0123456789";
const SECRET: &str = "a secret of thirty-two characters";

/// Plays the store.
struct Kept;

impl Backend for Kept {
    fn decision(&self, id: &str) -> Result<Option<Value>, BackendError> {
        Ok((id == "d-1").then(|| json!({"decision": "d-1", "deliveries": []})))
    }

    fn decisions(&self, _: Option<&str>, limit: usize) -> Result<Vec<Value>, BackendError> {
        Ok(vec![json!({"decision": "d-1"}); limit.min(3)])
    }

    fn deliveries(&self, _: usize) -> Result<Vec<Value>, BackendError> {
        Ok(vec![json!({"id": "d-1"})])
    }

    fn log(&self, _: &str, asked: &LogQuery) -> Result<LogPage, BackendError> {
        let entries = vec![json!({"text": asked.after}); asked.limit.min(3) as usize];
        Ok(LogPage { entries, next: asked.after.checked_add(1) })
    }

    fn dossier(&self, _: &str, _: Option<&CloseLook>) -> Result<Option<Dossier>, BackendError> {
        Ok(None)
    }

    fn redeliver(&self, id: &str, _: &str) -> Result<bool, BackendError> {
        Ok(id == "d-1")
    }

    fn assignments(&self, experiment: &str, out: &mut dyn Write) -> Result<(), BackendError> {
        writeln!(out, "{experiment}").map_err(|e| BackendError(e.to_string()))
    }

    fn rejects(&self) -> Result<Vec<Value>, BackendError> {
        Err(BackendError("disk I/O error".to_owned()))
    }
}

/// The API, and what serves it.
struct Site {
    runtime: Runtime,
    service: TowerToHyperService<axum::Router>,
}

impl Site {
    fn new() -> Site {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let env = [("TOKEN".to_owned(), TOKEN.to_owned())].into();
        let config = Config::load_with(Some(&folder().join("api.yaml")), &[], &env).unwrap_or_else(|e| panic!("{e}"));
        let experiments = Fleet::new(&world().catalog, 1_000).views();
        let live = Live::default();
        // Always fresh.
        live.set(View { at: Millis::MAX / 2, experiments: experiments.clone(), ..View::default() });
        let (commands, mut asked) = mpsc::channel(8);
        runtime.spawn(async move {
            while let Some(command) = asked.recv().await {
                match command {
                    Command::Operate(request) => {
                        let accepted = Accepted { experiment: request.experiment, message: "done".to_owned(), decisions: Vec::new() };
                        drop(request.reply.send(Ok(accepted)));
                    }
                    Command::Reload(reload) => drop(reload.reply.send(Ok(()))),
                    Command::Look { experiment, reply } => {
                        drop(reply.send(experiments.iter().find(|e| e.experiment == experiment).cloned().map(CloseLook::from)));
                    }
                    Command::Bins { reply, .. } => drop(reply.send(None)),
                }
            }
        });
        let access = Access::new(&config.http);
        let service = TowerToHyperService::new(site(Api {
            live,
            commands,
            reloads: mpsc::channel(1).0,
            backend: Arc::new(Kept),
            metrics: Metrics::default(),
            access,
        }));
        Site { runtime, service }
    }

    /// Sends a connection's bytes, and returns what comes back.
    fn talk(&self, sent: &[u8]) -> Vec<u8> {
        self.runtime.block_on(async {
            // Takes all that is answered: in builds with debug assertions hyper 1.12 panics over a bad request that comes while the answer to one before it
            // is stuck. Release builds answer and close.
            let (mut client, server) = tokio::io::duplex(256 << 20);
            let service = self.service.clone();
            let served = tokio::spawn(async move { http1::Builder::new().serve_connection(TokioIo::new(server), service).await });
            let mut heard = Vec::new();
            // Whoever is refused may find the connection closed before all is said.
            let _ = client.write_all(sent).await;
            let _ = client.shutdown().await;
            let _ = client.read_to_end(&mut heard).await;
            drop(client);
            // How it ended is the client's affair, but for a panic, which the task would keep to itself.
            let _ = served.await.unwrap();
            heard
        })
    }
}

thread_local! {
    static SITE: Site = Site::new();
    static SENDER: (Runtime, Sender) = sender();
}

/// A connection to the API. It is answered in HTTP or not at all, never by a failure of the server, but where the store plays broken.
pub fn http(data: &[u8]) {
    let heard = SITE.with(|site| site.talk(data));
    assert!(heard.is_empty() || heard.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&heard));
    assert!(!heard.starts_with(b"HTTP/1.1 500"), "{:?}", String::from_utf8_lossy(&heard));
    let says = |text: &str| heard.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(says("disk I/O error") || !heard.starts_with(b"HTTP/1.1 503"), "{:?}", String::from_utf8_lossy(&heard));
}

fn sender() -> (Runtime, Sender) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let endpoint = Endpoint { secrets: vec![SECRET.into()], ..Endpoint::new("flags", Kind::Webhook, "http://flags.example/s3cret") };
    (runtime, Sender::new(endpoint).unwrap())
}

fn delivery() -> Delivery {
    Delivery {
        decision: "d-1".to_owned(),
        experiment: "exp".to_owned(),
        priority: Priority::Rollback,
        attempts: 1,
        ..Delivery::pending("d-1-rollback", "flags", "guardrail.rollback", r#"{"data":{}}"#.to_owned(), NOW)
    }
}

/// An answer to a webhook: two bytes of status, `Retry-After` up to a NUL, and the body. Only a 2xx is a success, nothing of ours is
/// repeated in an error, and an answer puts the next attempt off by the longest pause at most.
pub fn answer(data: &[u8]) {
    let [high, low, rest @ ..] = data else { return };
    let (retry_after, body) = split(rest);
    let status = u16::from_be_bytes([*high, *low]) % 900 + 100;
    let response = Response::builder().status(status).header("retry-after", retry_after).body(body.to_vec());
    let Ok(response) = response else { return };
    SENDER.with(|(runtime, sender)| {
        let answer = runtime.block_on(sender.judge(response.into(), &delivery(), NOW));
        assert_eq!(answer.error.is_none(), (200..300).contains(&status));
        let error = answer.error.as_deref().unwrap_or_default();
        assert!(error.len() < 4_096 && !error.contains(SECRET) && !error.contains("http://flags.example/s3cret"), "{error}");
        let at = |ms| Moment { wall: ms, steady: ms };
        let event = Made::new(sender, delivery(), 1, (at(NOW), at(NOW + 10)), &answer, 0.0).event;
        assert_eq!(event.result == DeliveryResult::Delivered, answer.error.is_none());
        assert_eq!(event.result == DeliveryResult::Dead, status == 410, "{event:?}");
    });
}
