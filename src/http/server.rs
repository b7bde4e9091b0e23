//! Connections: accepted, bounded in number and patience, and drained at the end.

use super::{Api, events, looks, router, series, shared};
use crate::telemetry::names;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Connections open at once, each with one request at a time; those that exceed it are closed at once, and counted.
const CONNECTIONS: usize = 512;
/// A request's head must be there within this time; also how long an idle connection is kept.
const HEAD: Duration = Duration::from_secs(30);
/// How long requests under way may take once the daemon stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after a failure to accept, such as too many open files.
const RETRY: Duration = Duration::from_millis(200);

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source} (http.listen; is another guardraild running?)")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Binds the address of `http.listen`.
///
/// # Errors
/// When it is taken, or not ours to take.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Serves until `shutdown` resolves; then finishes what is under way, for a few seconds at most.
pub async fn serve(listener: TcpListener, api: Api, shutdown: impl Future<Output = ()>) {
    let (close, closing) = watch::channel(false);
    let metrics = api.metrics.clone();
    let mut news = events::Newsroom::new(api.live.get(), false);
    let app = shared(api, closing.clone(), news.listen());
    let service = TowerToHyperService::new(router(Arc::clone(&app)));
    let looking = tokio::spawn(looks::by_turns(Arc::clone(&app)));
    let mut second = tokio::time::interval(series::STEP);
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            _ = second.tick() => {
                let (view, fresh) = app.view();
                app.history().sample(&view);
                news.tell(view, fresh);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            metrics.add(&names::DROPPED, &["http_connections"], 1.0);
            continue;
        };
        let connection = connection(stream, service.clone(), closing.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    drop(listener);
    looking.abort();
    let _ = close.send(true);
    let _ = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(stream: TcpStream, service: TowerToHyperService<axum::Router>, mut closing: watch::Receiver<bool>) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 << 10);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // A connection that ends badly is the client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
