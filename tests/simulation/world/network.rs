//! Delivery without a network: the real lanes' decisions, requests and judgement of answers, against receivers that act, forget and break.

use super::alerts::{ALERTS, Alertmanager, Reminding};
use super::clock::Clock;
use super::plan::{Answer, ENDPOINTS};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guardraild::clock::Moment;
use guardraild::clock::Time as _;
use guardraild::delivery::attempt::{INTERVENTIONS, LONGEST_WAIT, Made, Step, claim, give_up_strays};
use guardraild::delivery::{self, Endpoint, Kind, Sender, Waker};
use guardraild::engine::time::Millis;
use guardraild::store::{Delivery, DeliveryState, Lane, Priority, Store, StoreError};
use hmac::{Hmac, Mac};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use sha2::Sha256;
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::runtime::Runtime;
use tokio::sync::watch;

const SECRET: &str = "a secret of thirty-two characters";
/// An endpoint's patience, and what an answer usually takes.
const TIMEOUT: Millis = 15_000;
pub const USUAL: Millis = 20;

thread_local! {
    /// Clients are costly to make, and have no state that matters.
    static SENDERS: (Runtime, Vec<Rc<Sender>>) = senders();
}

fn senders() -> (Runtime, Vec<Rc<Sender>>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let sender = |name: &str| {
        let (kind, secrets) = match name {
            ALERTS => (Kind::Alertmanager, Vec::new()),
            "chat" => (Kind::CloudEvents, vec![SECRET.into()]),
            _ => (Kind::Webhook, vec![SECRET.into()]),
        };
        Sender::new(Endpoint { secrets, ..Endpoint::new(name, kind, "http://receiver.example/") }).unwrap().into()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    (runtime, ENDPOINTS.map(sender).into())
}

/// The sender of an endpoint.
pub fn sender(name: &str) -> Rc<Sender> {
    SENDERS.with(|(_, senders)| senders.iter().find(|sender| sender.name() == name).unwrap().clone())
}

/// What receivers remember, whatever happens to the daemon.
#[derive(Default)]
pub struct Receivers {
    /// By endpoint: how it answers until when.
    answers: BTreeMap<&'static str, (Answer, Millis)>,
    /// By id.
    pub seen: BTreeMap<String, Seen>,
    pub alertmanager: Alertmanager,
    pub violations: Vec<String>,
}

#[derive(Default)]
pub struct Seen {
    pub body: String,
    pub requests: u32,
    /// Answered with 2xx.
    pub acknowledged: u32,
    /// Those of attempts whose begin the disk did not take: what is decided does not wait for it.
    pub unrecorded: u32,
}

impl Receivers {
    pub fn answer(&mut self, endpoint: &'static str, answer: Answer, until: Millis) {
        self.answers.insert(endpoint, (answer, until));
    }

    pub fn heal(&mut self) {
        self.answers.clear();
    }

    /// Takes a request: when the answer comes, and which; `None` is none.
    fn take(
        &mut self,
        endpoint: &str,
        delivery: &Delivery,
        request: &reqwest::Request,
        clock: &Clock,
    ) -> (Millis, Option<(u16, Option<u32>)>) {
        let (takes, reply, acts) = self.reply(endpoint, clock);
        if acts || reply.is_some() {
            let body = String::from_utf8(request.body().unwrap().as_bytes().unwrap().to_vec()).unwrap();
            if endpoint != ALERTS {
                self.check(delivery, request, &body, clock.now());
            } else if acts {
                self.alertmanager.take(&body, clock);
            }
            let seen = self.seen.entry(delivery.id.clone()).or_default();
            seen.requests += 1;
            seen.body = body;
            seen.acknowledged += u32::from(reply == Some((200, None)));
        }
        (takes, reply)
    }

    /// Takes a request that says again what stands.
    fn remind(&mut self, reminding: &mut Reminding, body: &str, store: &Store, clock: &Clock) {
        let (takes, reply, acts) = self.reply(ALERTS, clock);
        let answer = (takes.min(TIMEOUT), reply == Some((200, None)) && takes <= TIMEOUT);
        let faults = reminding.sent(body, acts.then_some(&mut self.alertmanager), answer, store, clock);
        self.violations.extend(faults);
    }

    /// How an endpoint answers otherwise than with 200, now.
    fn fault(&self, endpoint: &str, clock: &Clock) -> Option<Answer> {
        self.answers.get(endpoint).filter(|(_, until)| clock.at() < *until).map(|(answer, _)| *answer)
    }

    pub fn is_well(&self, endpoint: &str, clock: &Clock) -> bool {
        self.fault(endpoint, clock).is_none()
    }

    /// When an answer comes, and which, where one does; and whether the receiver acts.
    fn reply(&self, endpoint: &str, clock: &Clock) -> (Millis, Option<(u16, Option<u32>)>, bool) {
        match self.fault(endpoint, clock) {
            None => (USUAL, Some((200, None)), true),
            Some(Answer::Late) => (TIMEOUT - 1_000, Some((200, None)), true),
            Some(Answer::Overdue) => (TIMEOUT + 4_000, Some((200, None)), true),
            Some(Answer::Status(status)) => (USUAL, Some((status, None)), false),
            Some(Answer::RetryAfter(status, seconds)) => (USUAL, Some((status, Some(seconds))), false),
            Some(Answer::TimeOut { acted }) => (TIMEOUT, None, acted),
            Some(Answer::Lost { acted }) => (USUAL, None, acted),
        }
    }

    /// Checks what came as a receiver does, and that it is what came before under this id.
    fn check(&mut self, delivery: &Delivery, request: &reqwest::Request, body: &str, now: Millis) {
        let header = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap());
        let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        if header("webhook-signature") != format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())) || id != delivery.id {
            self.violations.push(format!("{id} is signed wrongly"));
        }
        if timestamp.parse() != Ok(now.div_euclid(1_000)) {
            self.violations.push(format!("{id} is of {timestamp}, and it is {now}"));
        }
        if self.seen.get(id).is_some_and(|seen| seen.requests > 0 && seen.body != body) {
            self.violations.push(format!("{id} has two bodies"));
        }
    }
}

/// An attempt on its way.
struct Flight {
    delivery: Delivery,
    n: u32,
    begun: Moment,
    lands: Millis,
    answer: Option<(u16, Option<u32>)>,
    /// Known, and not written down yet.
    made: Option<Made>,
}

/// One lane of an endpoint: what `delivery::Dispatcher` does between two sleeps.
struct Line {
    sender: Rc<Sender>,
    lane: Lane,
    width: usize,
    flights: Vec<Flight>,
    /// Attempts that have failed for want of an answer, which is on its way.
    overdue: Vec<Flight>,
    /// Nothing is to be done before, ms since the beginning.
    wakes: Millis,
}

/// All lanes of a running daemon.
pub struct Lines {
    lines: Vec<Line>,
    reminding: Reminding,
    store: Store,
    woken: watch::Receiver<()>,
    waker: Waker,
    strays: bool,
}

impl Lines {
    pub fn new(mut store: Store, waker: &Waker, clock: &Clock) -> Lines {
        // Where it cannot be done, schedules stay as they are.
        let _ = store.reschedule(clock.moment().steady, LONGEST_WAIT);
        let lanes = |sender: &Rc<Sender>| {
            [(Lane::Intervene, INTERVENTIONS), (Lane::Inform, 1)].map(|(lane, width)| Line {
                sender: sender.clone(),
                lane,
                width,
                flights: Vec::new(),
                overdue: Vec::new(),
                wakes: 0,
            })
        };
        let lines = SENDERS.with(|(_, senders)| senders.iter().flat_map(lanes).collect());
        Lines { lines, reminding: Reminding::new(sender(ALERTS)), store, woken: waker.subscribe(), waker: waker.clone(), strays: true }
    }

    /// Does what is due now, in an order of the world's choice.
    pub fn step(&mut self, receivers: &mut Receivers, clock: &Clock, rng: &mut ChaCha8Rng) {
        if self.woken.has_changed().unwrap() {
            self.woken.mark_unchanged();
            self.lines.iter_mut().for_each(|line| line.wakes = 0);
            self.strays = true;
        }
        if std::mem::take(&mut self.strays) {
            let names = ENDPOINTS.map(str::to_owned);
            self.strays = give_up_strays(&mut self.store, &names, clock.moment()).map_or(true, |events| !events.is_empty());
        }
        let first = rng.random_range(0..self.lines.len());
        for i in 0..self.lines.len() {
            let line = (first + i) % self.lines.len();
            if self.lines[line].step(&mut self.store, receivers, clock, rng) {
                self.waker.wake();
            }
        }
        if let Some(body) = self.reminding.step(&self.store, clock) {
            receivers.remind(&mut self.reminding, &body, &self.store, clock);
        }
    }

    pub fn wake(&self) {
        self.waker.wake();
    }

    /// When there is something to do next, ms since the beginning.
    pub fn next(&self) -> Millis {
        if self.woken.has_changed().unwrap() {
            return 0;
        }
        let of = |line: &Line| line.flights.iter().chain(&line.overdue).map(|f| f.lands).chain([line.wakes]).min();
        self.lines.iter().filter_map(of).chain([self.reminding.next()]).min().unwrap_or(Millis::MAX)
    }
}

impl Line {
    /// Whether something was given up: then the others look again.
    fn step(&mut self, store: &mut Store, receivers: &mut Receivers, clock: &Clock, rng: &mut ChaCha8Rng) -> bool {
        let mut dead = self.land(store, clock, rng);
        while clock.at() >= self.wakes && self.flights.len() < self.width {
            let in_flight: Vec<String> = self.flights.iter().map(|f| f.delivery.id.clone()).collect();
            let chosen = clock.moment(); // a slow disk takes long to record the attempt
            match claim(store, &self.sender, self.lane, chosen, &in_flight) {
                Ok(Step::Attempt(delivery, n)) => self.begin(*delivery, (n, chosen.steady), store, receivers, clock),
                Ok(Step::GaveUp(_)) => dead = true,
                Ok(Step::SleepUntil(at)) => self.wakes = clock.at() + (at - clock.moment().steady).clamp(1, 60_000),
                Ok(Step::Idle) => self.wakes = Millis::MAX,
                Err(_) => self.wakes = clock.at() + 1_000,
            }
        }
        dead
    }

    fn begin(&mut self, delivery: Delivery, (n, chosen): (u32, Millis), store: &Store, receivers: &mut Receivers, clock: &Clock) {
        let request = self.sender.request(&delivery, clock.now()).unwrap().build().unwrap();
        let recorded = self.allowed(&delivery, store, chosen).unwrap_or_else(|fault| {
            receivers.violations.push(fault);
            n
        });
        if recorded < n {
            receivers.seen.entry(delivery.id.clone()).or_default().unrecorded += 1;
            if !clock.disk_fails() {
                receivers.violations.push(format!("{} is sent, and its attempt {n} is not recorded", delivery.id));
            }
        }
        let (takes, answer) = receivers.take(self.sender.name(), &delivery, &request, clock);
        self.flights.push(Flight { delivery, n, begun: clock.moment(), lands: clock.at() + takes, answer, made: None });
    }

    /// What is sent has been stored before, with its decision and its log entry; and nothing that waits was due and more urgent when
    /// it was chosen. The attempts recorded.
    fn allowed(&self, delivery: &Delivery, store: &Store, chosen: Millis) -> Result<u32, String> {
        let id = &delivery.id;
        let stored = |e: StoreError| format!("{id} is sent and the store cannot say why: {e}");
        let row = store.delivery(id).map_err(stored)?.ok_or_else(|| format!("{id} is sent without a row"))?;
        let decision = store.decision(&delivery.decision).map_err(stored)?.ok_or_else(|| format!("{id} is sent without a decision"))?;
        let decision: serde_json::Value = serde_json::from_str(decision.body.get()).unwrap();
        if row.delivery.state != DeliveryState::Pending {
            return Err(format!("{id} is sent though it is {:?}", row.delivery.state));
        }
        if decision["mode"] == "observe" && delivery.priority != Priority::Inform {
            return Err(format!("{id} intervenes though the rule observes"));
        }
        if self.lane == Lane::Intervene && delivery.priority != Priority::Kill {
            let flying = |id: &str| self.flights.iter().any(|flight| flight.delivery.id == id);
            let waits = store.outbox(1_000).map_err(stored)?.into_iter().find(|other| {
                let due = other.state == DeliveryState::Pending && other.next_attempt_ms <= chosen && other.endpoint == delivery.endpoint;
                due && other.priority < delivery.priority && !flying(&other.id)
            });
            if let Some(other) = waits {
                return Err(format!("{id} is sent while {} waits", other.id));
            }
        }
        Ok(row.history.last().map_or(0, |attempt| attempt.n))
    }

    /// Takes answers that have come, or whose time is up, and writes them down; whether others may have something to do now.
    fn land(&mut self, store: &mut Store, clock: &Clock, rng: &mut ChaCha8Rng) -> bool {
        let mut wakes = false;
        for (overdue, mut flight) in self.flying() {
            let up = flight.begun.steady + TIMEOUT <= clock.moment().steady && !overdue;
            if clock.at() < flight.lands && !up {
                if overdue {
                    self.overdue.push(flight)
                } else {
                    self.flights.push(flight)
                }
                continue;
            }
            let late = clock.at() < flight.lands;
            let made = flight.made.take().unwrap_or_else(|| {
                let answer = heard(&self.sender, &flight.delivery, flight.answer.filter(|_| !late), flight.begun.wall);
                let jitter = rng.random_range(-1.0..=1.0);
                Made::new(&self.sender, flight.delivery.clone(), flight.n, (flight.begun, clock.moment()), &answer, jitter)
            });
            if made.record(store, clock.moment()).is_err() {
                (flight.lands, flight.made) = (clock.at() + 1_000, Some(made));
                if overdue {
                    self.overdue.push(flight)
                } else {
                    self.flights.push(flight)
                }
                continue;
            }
            wakes |= made.wakes();
            self.wakes = 0;
            if late {
                self.overdue.push(flight);
            }
        }
        wakes
    }

    /// Takes all attempts on their way, and whether their time is up.
    fn flying(&mut self) -> Vec<(bool, Flight)> {
        let (flights, overdue) = (std::mem::take(&mut self.flights), std::mem::take(&mut self.overdue));
        flights.into_iter().map(|flight| (false, flight)).chain(overdue.into_iter().map(|flight| (true, flight))).collect()
    }
}

/// What the client makes of an answer.
fn heard(sender: &Sender, delivery: &Delivery, answer: Option<(u16, Option<u32>)>, begun: Millis) -> delivery::Answer {
    let Some((status, retry_after)) = answer else {
        return delivery::Answer { error: Some("no answer in time".to_owned()), ..delivery::Answer::default() };
    };
    let mut response = axum::http::Response::builder().status(status);
    if let Some(seconds) = retry_after {
        response = response.header("retry-after", seconds);
    }
    SENDERS.with(|(runtime, _)| runtime.block_on(sender.judge(response.body("").unwrap().into(), delivery, begun)))
}
