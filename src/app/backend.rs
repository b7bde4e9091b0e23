//! What the API reads from the store.

use super::{assignments, dossier};
use crate::clock;
use crate::delivery::{Router, Waker};
use crate::engine::decision::LogQuery;
use crate::engine::state::CloseLook;
use crate::http::{Backend, BackendError, LogPage};
use crate::ingest::kafka::Ingest;
use crate::readout::Dossier;
use crate::store::{Store, StoreError};
use serde_json::{Value, json};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

pub struct StoreBackend {
    store: Mutex<Store>,
    waker: Waker,
    ingest: Arc<Ingest>,
    /// For links to the dashboard.
    router: Router,
}

impl StoreBackend {
    pub fn new(store: Store, waker: Waker, ingest: Arc<Ingest>, router: Router) -> StoreBackend {
        StoreBackend { store: Mutex::new(store), waker, ingest, router }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // A panic of another reader leaves the connection as it was.
        self.store.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The backend once there is one: the API answers before the daemon has its turn.
#[derive(Default)]
pub struct Late(OnceLock<StoreBackend>);

impl Late {
    pub fn set(&self, backend: StoreBackend) {
        // Set once, by whoever starts the daemon.
        let _ = self.0.set(backend);
    }

    fn there(&self) -> Result<&StoreBackend, BackendError> {
        self.0.get().ok_or_else(|| BackendError("the daemon is starting".to_owned()))
    }
}

impl Backend for Late {
    fn decision(&self, id: &str) -> Result<Option<Value>, BackendError> {
        self.there()?.decision(id)
    }

    fn log(&self, experiment: &str, asked: &LogQuery) -> Result<LogPage, BackendError> {
        self.there()?.log(experiment, asked)
    }

    fn dossier(&self, experiment: &str, live: Option<&CloseLook>) -> Result<Option<Dossier>, BackendError> {
        self.there()?.dossier(experiment, live)
    }

    fn redeliver(&self, id: &str, author: &str) -> Result<bool, BackendError> {
        self.there()?.redeliver(id, author)
    }

    fn decisions(&self, experiment: Option<&str>, limit: usize) -> Result<Vec<Value>, BackendError> {
        self.there()?.decisions(experiment, limit)
    }

    fn deliveries(&self, limit: usize) -> Result<Vec<Value>, BackendError> {
        self.there()?.deliveries(limit)
    }

    fn assignments(&self, experiment: &str, out: &mut dyn Write) -> Result<(), BackendError> {
        self.there()?.assignments(experiment, out)
    }

    fn rejects(&self) -> Result<Vec<Value>, BackendError> {
        self.there()?.rejects()
    }
}

impl Backend for StoreBackend {
    fn decision(&self, id: &str) -> Result<Option<Value>, BackendError> {
        let store = self.store();
        let Some(stored) = store.decision(id).map_err(failed)? else { return Ok(None) };
        let deliveries = store.deliveries(id).map_err(failed)?;
        let mut body: Value = serde_json::from_str(stored.body.get()).map_err(|e| BackendError(e.to_string()))?;
        body["deliveries"] = json!(deliveries);
        Ok(Some(body))
    }

    fn decisions(&self, experiment: Option<&str>, limit: usize) -> Result<Vec<Value>, BackendError> {
        let stored = self.store().decisions(experiment, u32::try_from(limit).unwrap_or(u32::MAX)).map_err(failed)?;
        Ok(stored.iter().map(|decision| json!(decision.body)).collect())
    }

    fn deliveries(&self, limit: usize) -> Result<Vec<Value>, BackendError> {
        let records = self.store().newest_deliveries(u32::try_from(limit).unwrap_or(u32::MAX)).map_err(failed)?;
        Ok(records.iter().map(|record| json!(record)).collect())
    }

    fn log(&self, experiment: &str, asked: &LogQuery) -> Result<LogPage, BackendError> {
        let mut entries = self.store().log(experiment, asked).map_err(failed)?;
        for logged in &mut entries {
            let decision = logged.entry.decision.as_deref();
            logged.entry.links.extend(decision.and_then(|decision| self.router.link("d", decision)));
        }
        let full = entries.len() >= asked.limit as usize;
        let next = entries.last().filter(|_| full).map(|entry| entry.seq);
        Ok(LogPage { entries: entries.iter().map(|entry| json!(entry)).collect(), next })
    }

    fn dossier(&self, experiment: &str, live: Option<&CloseLook>) -> Result<Option<Dossier>, BackendError> {
        // A handle of its own: reading all of this takes a while, and the others go on answering.
        let path = self.store().path().to_owned();
        let store = Store::open_to_read(path).map_err(failed)?;
        let dossier = dossier::read(&store, experiment, live).map_err(failed)?;
        Ok(dossier.map(|dossier| Dossier { dashboard: self.router.link("e", experiment), ..dossier }))
    }

    fn redeliver(&self, id: &str, author: &str) -> Result<bool, BackendError> {
        let found = self.store().redeliver(id, clock::moment(), author).map_err(failed)?;
        self.waker.wake();
        Ok(found)
    }

    fn assignments(&self, experiment: &str, out: &mut dyn Write) -> Result<(), BackendError> {
        // A handle of its own: an export may take minutes, and the others go on answering.
        let path = self.store().path().to_owned();
        let store = Store::open(path).map_err(failed)?;
        assignments::write(&store, experiment, out).map(drop).map_err(|error| BackendError(error.to_string()))
    }

    fn rejects(&self) -> Result<Vec<Value>, BackendError> {
        Ok(self.ingest.rejects().iter().map(|sample| json!(sample)).collect())
    }
}

fn failed(error: StoreError) -> BackendError {
    BackendError(error.to_string())
}
