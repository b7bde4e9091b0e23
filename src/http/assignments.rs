//! `GET /api/v1/experiments/{id}/assignments`: a CSV stream from the store, which is never held in memory as a whole.

use super::App;
use super::error::Failure;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Exports at once: each keeps a thread, and the database from tidying up.
pub const EXPORTS: usize = 2;
/// Bytes handed over at once, and how many such pieces wait for the client.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;
/// A client that takes no piece for this long is given up.
const SLOW: Duration = Duration::from_secs(30);
/// The last piece of a whole export.
const END: Bytes = Bytes::new();

/// Who has seen what is for operators.
pub async fn csv(State(app): State<App>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Failure> {
    app.api.access.operate(&headers)?;
    if app.api.live.get().experiment(&id).is_none() {
        return Err(Failure::no_experiment(&id));
    }
    let busy = |_| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "other exports are under way", "try again when they have ended");
    let permit = Arc::clone(&app.exports).try_acquire_owned().map_err(busy)?;
    let (sender, mut pieces) = channel(PIECES);
    let (backend, runtime) = (Arc::clone(&app.api.backend), Handle::current());
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut pipe = Pipe { sender, runtime, piece: Vec::new() };
        let end = match backend.assignments(&id, &mut pipe) {
            Ok(()) => Ok(END),
            Err(error) => {
                tracing::warn!(experiment = id, "an export of assignments ended early: {error}");
                Err(io::Error::other(error.to_string()))
            }
        };
        // Nobody hears it where the client has gone.
        let _ = pipe.send(end);
    });
    let first = pieces.recv().await.unwrap_or_else(|| Err(cut()));
    let first = first.map_err(|error| Failure::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), ""))?;
    // A stream that ends without its end must not look like a whole one.
    let body = stream::unfold((Some(Ok(first)), Some(pieces)), async |(ready, pieces)| {
        let mut pieces: Receiver<io::Result<Bytes>> = pieces?;
        let piece = match ready {
            Some(piece) => piece,
            None => pieces.recv().await.unwrap_or_else(|| Err(cut())),
        };
        match piece {
            Ok(piece) if piece == END => None,
            Ok(piece) => Some((Ok(piece), (None, Some(pieces)))),
            Err(error) => Some((Err(error), (None, None))),
        }
    });
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present")], Body::from_stream(body)).into_response())
}

fn cut() -> io::Error {
    io::Error::other("the export was cut off")
}

/// From a thread that blocks to the client, piece by piece.
struct Pipe {
    sender: Sender<io::Result<Bytes>>,
    runtime: Handle,
    piece: Vec<u8>,
}

impl Pipe {
    fn send(&self, piece: io::Result<Bytes>) -> io::Result<()> {
        match self.runtime.block_on(tokio::time::timeout(SLOW, self.sender.send(piece))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.send(Ok(piece))
    }
}
