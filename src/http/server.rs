//! Connections: accepted, bounded in number and patience, and drained at the end.

use super::audit::Peer;
use super::patience::Patient;
use super::tls::Tls;
use super::{Api, events, looks, router, series, shared};
use crate::config;
use crate::telemetry::names;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// A request's head must be there within this time; also how long an idle connection is kept.
const HEAD: Duration = Duration::from_secs(30);
/// Bytes of a request's head, and its headers, at most.
const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;
/// What the client may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client that takes nothing of its answer for this long is given up.
const SLOW: Duration = Duration::from_secs(30);
/// How long requests under way may take once the daemon stops.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after a failure to accept, such as too many open files.
const RETRY: Duration = Duration::from_millis(200);
/// Certificate and key are looked at this often.
const REFRESH: Duration = Duration::from_secs(10);

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source} (http.listen; is another guardraild running?)")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Connections open at once, each with one request at a time; those beyond are closed at once, and counted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    pub per_address: usize,
}

impl From<&config::Http> for Limits {
    fn from(http: &config::Http) -> Limits {
        Limits { connections: http.connections, per_address: http.connections_per_address }
    }
}

/// Binds the address of `http.listen`.
///
/// # Errors
/// When it is taken, or not ours to take.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Serves until `shutdown` resolves; then finishes what is under way, for a few seconds at most.
pub async fn serve(listener: TcpListener, api: Api, limits: Limits, mut tls: Option<Tls>, shutdown: impl Future<Output = ()>) {
    let (close, closing) = watch::channel(false);
    let metrics = api.metrics.clone();
    let mut news = events::Newsroom::new(api.live.get(), false);
    let app = shared(api, closing.clone(), news.listen());
    let service = TowerToHyperService::new(router(Arc::clone(&app)));
    let looking = tokio::spawn(looks::by_turns(Arc::clone(&app)));
    let mut second = tokio::time::interval(series::STEP);
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refreshing = interval_at(Instant::now() + REFRESH, REFRESH);
    let doors = Doors { limits, open: Arc::default() };
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            _ = second.tick() => {
                let (view, fresh) = app.view();
                app.api.live.history().sample(&view);
                news.tell(view, fresh);
                continue;
            }
            _ = refreshing.tick() => {
                tls.iter_mut().for_each(Tls::refresh);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let place = match doors.enter(peer.ip()) {
            Ok(place) => place,
            Err(bound) => {
                metrics.add(&names::DROPPED, &[bound], 1.0);
                continue;
            }
        };
        let connection = connection(stream, tls.as_ref().map(Tls::acceptor), Peer(peer), service.clone(), closing.clone());
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    drop(listener);
    looking.abort();
    let _ = close.send(true);
    let _ = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(
    stream: TcpStream,
    tls: Option<tokio_rustls::TlsAcceptor>,
    peer: Peer,
    service: TowerToHyperService<axum::Router>,
    closing: watch::Receiver<bool>,
) {
    let stream = Patient::new(stream, SLOW);
    match tls {
        None => requests(stream, peer, service, closing).await,
        Some(acceptor) => match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => requests(stream, peer, service, closing).await,
            Ok(Err(error)) => tracing::debug!(peer = %peer.0, "no TLS: {error}"),
            Err(_) => tracing::debug!(peer = %peer.0, "no TLS in time"),
        },
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    service: TowerToHyperService<axum::Router>,
    mut closing: watch::Receiver<bool>,
) {
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        service.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES).max_headers(HEADERS);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // A connection that ends badly is the client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Who is inside, by address.
type Inside = Arc<Mutex<(usize, BTreeMap<IpAddr, usize>)>>;

struct Doors {
    limits: Limits,
    open: Inside,
}

/// One connection's place; free again when it is dropped.
struct Place {
    address: IpAddr,
    open: Inside,
}

impl Doors {
    /// A place, or the name of the bound that denies it.
    fn enter(&self, address: IpAddr) -> Result<Place, &'static str> {
        let address = block(address);
        let mut open = self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if open.0 >= self.limits.connections {
            return Err("http_connections");
        }
        let of_address = open.1.entry(address).or_default();
        if *of_address >= self.limits.per_address {
            return Err("http_connections_per_address");
        }
        *of_address += 1;
        open.0 += 1;
        Ok(Place { address, open: Arc::clone(&self.open) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        open.0 -= 1;
        if let Entry::Occupied(mut entry) = open.1.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// Who counts as one: an address of IPv4, or a /64 of IPv6, which is what one machine is given.
fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all_places_and_gives_them_back() {
        let doors = Doors { limits: Limits { connections: 5, per_address: 2 }, open: Arc::default() };
        let enter = |address: &str| doors.enter(address.parse().unwrap());
        let mut inside = vec![enter("10.0.0.1").unwrap(), enter("::ffff:10.0.0.1").unwrap()];
        assert_eq!(enter("10.0.0.1").err(), Some("http_connections_per_address"));
        inside.extend([enter("2001:db8::1").unwrap(), enter("2001:db8::2").unwrap()]);
        assert_eq!(enter("2001:db8::3").err(), Some("http_connections_per_address"), "one /64 is one");
        inside.push(enter("10.0.0.2").unwrap());
        assert_eq!(enter("10.0.0.3").err(), Some("http_connections"));
        inside.clear();
        assert_eq!(*doors.open.lock().unwrap(), (0, BTreeMap::new()));
    }
}
