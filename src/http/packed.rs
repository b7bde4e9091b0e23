//! Answers that many ask for: hashed and compressed once, handed out as they are.

use crate::live::View;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

/// One such answer; clones share it.
#[derive(Clone)]
pub struct Packed {
    kind: &'static str,
    etag: HeaderValue,
    plain: Bytes,
    gzip: Bytes,
}

/// Answers about the newest view: written by the first who asks, and handed to all others until there is a newer one.
#[derive(Default)]
pub struct OfView(Mutex<BTreeMap<String, (Arc<View>, Packed)>>);

impl OfView {
    pub fn get(&self, key: String, view: &Arc<View>, write: impl FnOnce() -> Option<Vec<u8>>) -> Option<Packed> {
        let mut kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, packed)) = kept.get(&key).filter(|(of, _)| Arc::ptr_eq(of, view)) {
            return Some(packed.clone());
        }
        // What is of an older view goes, so that there are no more than a view's.
        kept.retain(|_, (of, _)| Arc::ptr_eq(of, view));
        let packed = Packed::json(&write()?);
        kept.insert(key, (Arc::clone(view), packed.clone()));
        Some(packed)
    }
}

impl Packed {
    fn json(body: &[u8]) -> Packed {
        // The fastest level: what is live is written anew every second.
        Packed::new("application/json", Bytes::copy_from_slice(body), Compression::fast())
    }

    pub fn file(kind: &'static str, body: &'static [u8]) -> Packed {
        Packed::new(kind, Bytes::from_static(body), Compression::best())
    }

    fn new(kind: &'static str, plain: Bytes, level: Compression) -> Packed {
        let hash: String = Sha256::digest(&plain).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        let mut encoder = GzEncoder::new(Vec::new(), level);
        // Writing into memory does not fail; an empty result is never handed out.
        let gzip = encoder.write_all(&plain).and_then(|()| encoder.finish()).unwrap_or_default();
        let etag = HeaderValue::from_str(&format!("\"{hash}\"")).unwrap_or(HeaderValue::from_static("\"\""));
        Packed { kind, etag, plain, gzip: gzip.into() }
    }

    /// 304 for who has it; compressed for who can read that.
    pub fn answer(&self, asked: &HeaderMap) -> Response {
        let words = |name| asked.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").split(',').map(str::trim);
        let same = [(header::ETAG, self.etag.clone()), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
        if words(header::IF_NONE_MATCH).any(|tag| tag.trim_start_matches("W/").as_bytes() == self.etag.as_bytes()) {
            return (StatusCode::NOT_MODIFIED, same).into_response();
        }
        let gzip = !self.gzip.is_empty() && words(header::ACCEPT_ENCODING).any(|coding| coding.split(';').next() == Some("gzip"));
        let fixed = [(header::CONTENT_TYPE, self.kind), (header::VARY, "accept-encoding"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
        let body = if gzip { &self.gzip } else { &self.plain };
        let mut response = (same, fixed, Body::from(body.clone())).into_response();
        if gzip {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}
