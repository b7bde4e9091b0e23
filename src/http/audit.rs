//! An entry in the daemon's log for every request that changes something, or that hands out what users sent: who, from where, what, and
//! what came of it. Refused attempts too, in a bounded number.

use super::App;
use super::access::Access;
use crate::clock;
use crate::engine::time::Millis;
use crate::telemetry::names;
use axum::http::{HeaderMap, Method, StatusCode};
use std::net::SocketAddr;
use std::sync::Mutex;

/// Refused attempts that are told within [`SPAN`] of ms; the number of others follows.
const TOLD: u32 = 30;
const SPAN: Millis = 60_000;
/// Characters of a path that are told.
const PATH: usize = 200;

/// The client's address, as the connection has it.
#[derive(Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// A request that is to be told of.
pub struct Entry {
    holder: String,
    peer: String,
    method: Method,
    path: String,
}

impl Entry {
    /// `None` for what only reads.
    pub fn of(access: &Access, peer: Option<Peer>, method: &Method, path: &str, headers: &HeaderMap) -> Option<Entry> {
        let asks = path.starts_with("/hooks/flagger/");
        let writes = !asks && ![Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
        if !writes && !path.ends_with("/assignments") && path != "/api/v1/rejects" {
            return None;
        }
        Some(Entry {
            holder: access.holder(headers).unwrap_or("nobody known").to_owned(),
            peer: peer.map_or("unknown".to_owned(), |Peer(address)| address.ip().to_canonical().to_string()),
            method: method.clone(),
            path: path.chars().take(PATH).collect(),
        })
    }

    pub fn tell(self, app: &App, status: StatusCode) {
        let Entry { holder, peer, method, path } = self;
        let status = status.as_u16();
        if status < 400 {
            tracing::info!(target: "guardraild::audit", holder, peer, %method, path, status, "done");
            return;
        }
        let (told, untold) = app.refused.count(clock::now());
        if untold > 0 {
            tracing::warn!(target: "guardraild::audit", untold, "further attempts were refused");
        }
        match told {
            true => tracing::warn!(target: "guardraild::audit", holder, peer, %method, path, status, "refused"),
            false => app.api.metrics.add(&names::DROPPED, &["audit_entries"], 1.0),
        }
    }
}

/// Refused attempts of the current span.
#[derive(Default)]
pub struct Refused(Mutex<Span>);

#[derive(Default)]
struct Span {
    begun: Millis,
    told: u32,
    untold: u64,
}

impl Refused {
    /// Whether this attempt is to be told, and how many of the span before were not.
    fn count(&self, now: Millis) -> (bool, u64) {
        let mut span = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before =
            if now - span.begun >= SPAN { std::mem::replace(&mut *span, Span { begun: now, ..Span::default() }).untold } else { 0 };
        let told = span.told < TOLD;
        if told {
            span.told += 1;
        } else {
            span.untold += 1;
        }
        (told, before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_attempts_is_told_in_part_and_counted() {
        let refused = Refused::default();
        let told = (0..1_000).filter(|i| refused.count(100_000 + i).0).count();
        assert_eq!(told, 30);
        assert_eq!(refused.count(100_000 + SPAN), (true, 970));
        assert_eq!(refused.count(100_001 + SPAN), (true, 0));
    }
}
