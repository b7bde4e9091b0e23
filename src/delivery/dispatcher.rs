//! Takes what is due from the outbox and sends it, until it is received or given up.
//!
//! Each endpoint has two lanes, one for interventions and one for everything that only informs, and each lane is a task: no
//! endpoint waits for another, and no intervention waits for an alert. All state is in the store; a restart goes on from there.

use super::attempt::{AGAIN, DeliveryEvent, INTERVENTIONS, Made, Step, claim, give_up_strays, reminders};
use super::client::{Answer, Sender};
use super::endpoint::{Endpoint, EndpointError, Kind};
use super::schedule::LONGEST_WAIT;
use crate::clock::Moment;
use crate::engine::time::Millis;
use crate::store::{Delivery, Lane, Store, StoreError};
use crate::telemetry;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument;

/// Pause after the store has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Overdue answers of a lane that are listened for at once; of more, the next attempts tell.
const OVERDUE: usize = 16;

/// Schedules go by its steady side, signatures by the wall.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// Told of every attempt, on the dispatcher's threads: must not block.
pub type Observer = Arc<dyn Fn(&DeliveryEvent) + Send + Sync>;

/// Tells the dispatcher of new rows; cheap, and callable from any thread.
#[derive(Clone, Debug, Default)]
pub struct Waker(watch::Sender<()>);

impl Waker {
    pub fn wake(&self) {
        self.0.send_replace(());
    }

    /// Changes whenever there may be new rows.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

/// The running lanes. Dropping it cuts off attempts in flight; they are made again, under the same id, at the next start.
pub struct Dispatcher {
    waker: Waker,
    stop: watch::Sender<bool>,
    lanes: JoinSet<()>,
    renewer: Renewer,
}

/// Lets running lanes go on with another definition of their endpoint.
#[derive(Clone)]
pub struct Renewer(Arc<BTreeMap<String, watch::Sender<Arc<Sender>>>>, Waker);

impl Renewer {
    /// The next attempt is made by this definition; `false` where it is the same as before, or no lane has such an endpoint.
    ///
    /// # Errors
    /// What is wrong with it: then the one before stays.
    pub fn renew(&self, endpoint: Endpoint) -> Result<bool, EndpointError> {
        let Some(lane) = self.0.get(&endpoint.name).filter(|lane| !lane.borrow().endpoint.is_same(&endpoint)) else { return Ok(false) };
        lane.send_replace(Arc::new(Sender::new(endpoint)?));
        self.1.wake();
        Ok(true)
    }

    /// An endpoint as it is reached now.
    pub fn sender(&self, name: &str) -> Option<Arc<Sender>> {
        self.0.get(name).map(|lane| Arc::clone(&lane.borrow()))
    }
}

impl Dispatcher {
    /// Starts at once on what is pending. Must be called on a Tokio runtime, with a process-wide rustls provider installed.
    pub fn start(store: Store, endpoints: Vec<Endpoint>, clock: Clock, observer: Observer) -> Result<Dispatcher, EndpointError> {
        Dispatcher::start_beside(store, endpoints, Vec::new(), clock, observer)
    }

    /// [`Dispatcher::start`] beside others that look after what is addressed to the endpoints `others`.
    pub fn start_beside(
        mut store: Store,
        endpoints: Vec<Endpoint>,
        others: Vec<String>,
        clock: Clock,
        observer: Observer,
    ) -> Result<Dispatcher, EndpointError> {
        let senders = endpoints.into_iter().map(Sender::new).collect::<Result<Vec<_>, _>>()?;
        if let Err(e) = store.reschedule(clock().steady, LONGEST_WAIT) {
            tracing::warn!(error = %e, "schedules from before a change of the clock stay as they are");
        }
        let (waker, stop) = (Waker::default(), watch::Sender::new(false));
        let shared = Shared {
            store: Arc::new(Mutex::new(store)),
            clock,
            observer,
            wake: waker.subscribe(),
            waker: waker.clone(),
            stop: stop.subscribe(),
        };
        let mut lanes = JoinSet::new();
        let names = senders.iter().map(|s| s.endpoint.name.clone()).chain(others).collect();
        lanes.spawn(shared.clone().strays(names));
        let mut by_name = BTreeMap::new();
        for sender in senders.into_iter().map(Arc::new) {
            let newest = watch::Sender::new(Arc::clone(&sender));
            if sender.endpoint.kind == Kind::Alertmanager {
                lanes.spawn(shared.clone().say_again(newest.subscribe()));
            }
            lanes.spawn(shared.clone().lane(newest.subscribe(), Lane::Intervene, INTERVENTIONS));
            lanes.spawn(shared.clone().lane(newest.subscribe(), Lane::Inform, 1));
            by_name.insert(sender.endpoint.name.clone(), newest);
        }
        let renewer = Renewer(Arc::new(by_name), waker.clone());
        Ok(Dispatcher { waker, stop, lanes, renewer })
    }

    pub fn renewer(&self) -> Renewer {
        self.renewer.clone()
    }

    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Begins no further attempt, and waits up to `grace` for those in flight.
    pub async fn stop(mut self, grace: Duration) {
        self.stop.send_replace(true);
        let drained = async { while self.lanes.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, drained).await.is_err() {
            tracing::info!("deliveries in flight were cut off; they are attempted again at the next start");
        }
    }
}

/// What every lane has.
#[derive(Clone)]
struct Shared {
    store: Arc<Mutex<Store>>,
    clock: Clock,
    observer: Observer,
    wake: watch::Receiver<()>,
    waker: Waker,
    stop: watch::Receiver<bool>,
}

type Exchange = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// An attempt whose time is up, while its answer may still come.
struct Overdue {
    exchange: Exchange,
    delivery: Delivery,
    n: u32,
    begun: Moment,
}

/// An attempt that was recorded.
struct Landed {
    id: String,
    overdue: Option<Overdue>,
}

impl Shared {
    async fn lane(mut self, newest: watch::Receiver<Arc<Sender>>, lane: Lane, width: usize) {
        let mut flying: JoinSet<Landed> = JoinSet::new();
        let mut overdue: JoinSet<()> = JoinSet::new();
        let mut ids: Vec<String> = Vec::new();
        while !*self.stop.borrow_and_update() {
            self.wake.mark_unchanged();
            let sender = Arc::clone(&newest.borrow());
            let mut sleep = None;
            if flying.len() < width {
                let (to, in_flight) = (Arc::clone(&sender), ids.clone());
                match self.with_store(move |store, now| claim(store, &to, lane, now, &in_flight)).await {
                    Ok(Step::Attempt(delivery, n)) => {
                        ids.push(delivery.id.clone());
                        flying.spawn(self.clone().fly(Arc::clone(&sender), *delivery, n));
                        continue;
                    }
                    Ok(Step::GaveUp(event)) => {
                        self.tell(&event);
                        continue;
                    }
                    Ok(Step::SleepUntil(at)) => sleep = Some(self.until(at)),
                    Ok(Step::Idle) => {}
                    Err(e) => {
                        tracing::warn!(endpoint = sender.endpoint.name, error = %e, "the outbox could not be read");
                        sleep = Some(AFTER_FAILURE);
                    }
                }
            }
            tokio::select! {
                Some(done) = flying.join_next() => {
                    let late = landed(&mut ids, &flying, done).filter(|_| overdue.len() < OVERDUE);
                    late.map(|late| overdue.spawn(self.clone().listen(Arc::clone(&sender), late)));
                }
                Some(_) = overdue.join_next() => {}
                () = tokio::time::sleep(sleep.unwrap_or(AFTER_FAILURE)), if sleep.is_some() => {}
                changed = self.wake.changed() => if changed.is_err() { return },
                changed = self.stop.changed() => if changed.is_err() { return },
            }
        }
        while flying.join_next().await.is_some() {}
    }

    /// Gives up what is addressed to endpoints that the configuration does not have.
    async fn strays(mut self, names: Vec<String>) {
        while !*self.stop.borrow_and_update() {
            self.wake.mark_unchanged();
            let names = names.clone();
            let mut sleep = None;
            match self.with_store(move |store, now| give_up_strays(store, &names, now)).await {
                Ok(events) if events.is_empty() => {}
                Ok(events) => {
                    events.iter().for_each(|e| self.tell(e));
                    continue;
                }
                Err(e) => {
                    tracing::warn!(error = %e, "the outbox could not be read");
                    sleep = Some(AFTER_FAILURE);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(sleep.unwrap_or(AFTER_FAILURE)), if sleep.is_some() => {}
                changed = self.wake.changed() => if changed.is_err() { return },
                changed = self.stop.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Says to an Alertmanager, once a minute, what stands; it forgets what it does not hear of.
    async fn say_again(mut self, newest: watch::Receiver<Arc<Sender>>) {
        while !*self.stop.borrow_and_update() {
            let sender = Arc::clone(&newest.borrow());
            let to = Arc::clone(&sender);
            let said = match self.with_store(move |store, now| reminders(store, &to, now)).await {
                Ok(batches) => said(&sender, batches).await,
                Err(e) => Err(e.to_string()),
            };
            if let Err(error) = said {
                tracing::warn!(
                    endpoint = sender.endpoint.name,
                    error,
                    "what stands could not be said again: after four minutes it is forgotten"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                changed = self.stop.changed() => if changed.is_err() { return },
            }
        }
    }

    /// One attempt, from its first byte to its record.
    async fn fly(self, sender: Arc<Sender>, delivery: Delivery, n: u32) -> Landed {
        let span = tracing::info_span!(
            "delivery",
            endpoint = sender.endpoint.name,
            delivery = delivery.id,
            r#type = delivery.event_type,
            attempt = n,
            status = tracing::field::Empty,
            trace_id = tracing::field::Empty,
        );
        if let Some(decided) = &delivery.traceparent {
            telemetry::set_parent(&span, decided);
        }
        telemetry::name_trace(&span);
        let begun = (self.clock)();
        let (to, sent) = (Arc::clone(&sender), delivery.clone());
        let mut exchange: Exchange = Box::pin(async move { to.attempt(&sent, begun.wall).await }.instrument(span.clone()));
        let in_time = tokio::time::timeout(sender.endpoint.timeout, &mut exchange).await.ok();
        let overdue = in_time.is_none().then(|| Overdue { exchange, delivery: delivery.clone(), n, begun });
        let answer = in_time.unwrap_or_else(Answer::overdue);
        span.record("status", answer.status);
        match &answer.error {
            None => tracing::info!(parent: &span, "delivered"),
            Some(error) => tracing::warn!(parent: &span, error, "not delivered"),
        }
        let id = delivery.id.clone();
        let made = Made::new(&sender, delivery, n, (begun, (self.clock)()), &answer, rand::random_range(-1.0..=1.0));
        self.conclude(made).await;
        Landed { id, overdue }
    }

    /// Waits for an answer after its attempt has failed: late is better than again.
    async fn listen(self, sender: Arc<Sender>, late: Overdue) {
        let Overdue { exchange, delivery, n, begun } = late;
        let answer = exchange.await;
        if answer.error.is_none() {
            tracing::info!(endpoint = delivery.endpoint, delivery = delivery.id, attempt = n, "delivered: the answer was late");
            let mut made = Made::new(&sender, delivery, n, (begun, (self.clock)()), &answer, 0.0);
            // It was told when the attempt failed.
            made.event.first_attempt_delay_ms = None;
            self.conclude(made).await;
        }
    }

    async fn conclude(&self, made: Made) {
        let (event, wakes) = (made.event.clone(), made.wakes());
        self.record(made).await;
        (self.observer)(&event);
        if wakes {
            self.waker.wake();
        }
    }

    /// Writes down what became of an attempt. Until that succeeds the delivery stays in flight: what was received must not be
    /// sent again only because the disk was full for a while.
    async fn record(&self, made: Made) {
        let mut stop = self.stop.clone();
        let made = Arc::new(made);
        loop {
            let made = Arc::clone(&made);
            let written = self.with_store(move |store, now| made.record(store, now));
            match written.await {
                Ok(()) => return,
                Err(e) => tracing::error!(error = %e, "an attempt could not be recorded"),
            }
            tokio::select! {
                () = tokio::time::sleep(AFTER_FAILURE) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Runs `body` with the store on a thread that may wait for the disk.
    async fn with_store<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Store, Moment) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Trouble> {
        let (store, clock) = (Arc::clone(&self.store), Arc::clone(&self.clock));
        let run = move || body(&mut store.lock().unwrap_or_else(|e| e.into_inner()), clock());
        Ok(tokio::task::spawn_blocking(run).await??)
    }

    /// Tells of what was given up, which may have been escalated.
    fn tell(&self, event: &DeliveryEvent) {
        (self.observer)(event);
        self.waker.wake();
    }

    /// How long to sleep until `at`.
    fn until(&self, at: Millis) -> Duration {
        Duration::from_millis((at - (self.clock)().steady).max(1).unsigned_abs()).min(LONGEST_SLEEP)
    }
}

async fn said(sender: &Sender, batches: Vec<String>) -> Result<(), String> {
    for batch in batches {
        sender.say_again(batch).await?;
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Thread(#[from] JoinError),
}

/// Forgets an attempt that has landed. One that panicked left no id: when nothing else is in flight, nothing is.
fn landed(ids: &mut Vec<String>, flying: &JoinSet<Landed>, done: Result<Landed, JoinError>) -> Option<Overdue> {
    match done {
        Ok(Landed { id, overdue }) => {
            ids.retain(|i| *i != id);
            overdue
        }
        Err(e) => {
            tracing::error!(error = %e, "an attempt was lost");
            if flying.is_empty() {
                ids.clear();
            }
            None
        }
    }
}
