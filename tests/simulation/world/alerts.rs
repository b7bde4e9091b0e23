//! An Alertmanager: what messages tell it, what it is told again, and whether that is true.

use super::clock::Clock;
use super::network::USUAL;
use super::plan::START;
use guardraild::clock::Time as _;
use guardraild::delivery::Sender;
use guardraild::delivery::attempt::{AGAIN, reminders};
use guardraild::engine::time::Millis;
use guardraild::store::{DeliveryRecord, Store};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Its endpoint, as the rules name it.
pub const ALERTS: &str = "alerts";
/// After its last trouble all is well again by then: a minute until what stands is said again, and time for the turns of threads and answers.
const RECOVERY: Millis = 120_000;
/// A message or a reminder holds for so long, and what is over is said for so long.
const HOLDS: Millis = 240_000;
const OVER: Millis = 300_000;
/// Wall clocks that are off by less agree on what has ended.
const CLOCKS: Millis = 100_000;

/// What tells an alert from others.
type Labels = BTreeMap<String, String>;

/// What a request says of an alert.
struct Said {
    labels: Labels,
    /// When it ends, by the daemon's wall clock.
    ends: Millis,
    decision: String,
}

/// What is so of an alert, by the outbox.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Truth {
    Stands,
    /// And when the message was received that says so, if it was; it may be sent again.
    Over(Option<Millis>),
}

/// See the module. Its times are ms since the beginning: nobody sets its clock.
#[derive(Default)]
pub struct Alertmanager {
    /// When each alert ends, as far as it knows.
    holds: BTreeMap<Labels, Millis>,
    /// When a message, rather than a reminder, last spoke of it, and whether it said that it stands. One that is sent again may be of long ago.
    told: BTreeMap<Labels, (Millis, bool)>,
    /// Since when it is over, as far as has been noticed, and by which message.
    over: BTreeMap<Labels, (Truth, Millis)>,
    /// Since when its experiment has no rules, as far as has been noticed.
    left: BTreeMap<Labels, Millis>,
    /// What the messages of the outbox say, by their ids: alerts, and whether each stands.
    messages: BTreeMap<String, Vec<(Labels, bool)>>,
    /// When it, or the daemon's way to it, was last not as it should be.
    troubled: Millis,
    /// Requests that said again what stands.
    pub reminders: u64,
}

fn said(body: &str) -> Vec<Said> {
    let alerts: Vec<Value> = serde_json::from_str(body).unwrap();
    let one = |alert: &Value| Said {
        labels: serde_json::from_value(alert["labels"].clone()).unwrap(),
        ends: alert["endsAt"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond(),
        decision: alert["annotations"]["decision"].as_str().unwrap().to_owned(),
    };
    alerts.iter().map(one).collect()
}

impl Alertmanager {
    pub fn trouble(&mut self, at: Millis) {
        self.troubled = at;
    }

    /// It starts anew, and knows nothing.
    pub fn forget(&mut self, at: Millis) {
        self.holds.clear();
        self.trouble(at);
    }

    /// Takes a message.
    pub fn take(&mut self, body: &str, clock: &Clock) {
        for alert in said(body) {
            self.told.insert(alert.labels.clone(), (clock.at(), alert.ends > clock.now()));
            self.holds.insert(alert.labels, alert.ends - START);
        }
    }

    /// Takes what is said again; what is wrong with that.
    fn remind(&mut self, body: &str, store: &Store, sender: &Sender, clock: &Clock) -> Vec<String> {
        let (truth, mut faults) = (self.truth(store, sender, clock), Vec::new());
        if store.disabled_endpoints().unwrap().iter().any(|name| name == ALERTS) {
            faults.push("an Alertmanager that wants no more is told again".to_owned());
        }
        for alert in said(body) {
            let (stands, labels) = (alert.ends > clock.now(), &alert.labels);
            if store.decision(&alert.decision).unwrap().is_none() {
                faults.push(format!("{labels:?} is said again, and its decision {} is not in the log", alert.decision));
            }
            match truth.get(labels) {
                Some(Truth::Stands) if stands => {}
                Some(Truth::Over(_)) if !stands => {
                    let since = self.over[labels].1;
                    if clock.at() - since > OVER + RECOVERY + 2 * CLOCKS {
                        faults.push(format!("{labels:?} is over since {since} ms, and still said to be"));
                    }
                }
                truth => {
                    faults.push(format!("{labels:?} is said again as {}, and it is {truth:?}", if stands { "active" } else { "over" }))
                }
            }
            self.holds.insert(alert.labels, alert.ends - START);
        }
        self.reminders += 1;
        faults
    }

    /// What is so of each alert that it has been told of: the messages in the order in which they were decided. Of one that it may or may not have
    /// heard nothing is certain; of one whose experiment has no rules nobody says anything.
    fn truth(&mut self, store: &Store, sender: &Sender, clock: &Clock) -> BTreeMap<Labels, Truth> {
        let mut truth = BTreeMap::new();
        for DeliveryRecord { delivery, .. } in messages(store) {
            let says = self.messages.entry(delivery.id.clone()).or_insert_with(|| {
                let request = sender.request(&delivery, START).unwrap().build().unwrap();
                let body = std::str::from_utf8(request.body().unwrap().as_bytes().unwrap()).unwrap();
                said(body).into_iter().map(|alert| (alert.labels, alert.ends > START)).collect()
            });
            for (labels, stands) in says {
                match (&*stands, delivery.delivered_ms.is_some()) {
                    (true, true) => drop(truth.insert(labels.clone(), Truth::Stands)),
                    (true, false) if matches!(truth.get(labels), Some(Truth::Over(_))) => drop(truth.remove(labels)),
                    (true, false) => {}
                    (false, _) => drop(truth.get_mut(labels).map(|known| *known = Truth::Over(delivery.delivered_ms))),
                }
            }
        }
        let watched: Vec<Option<String>> = store.rules().unwrap().into_iter().map(|rule| rule.experiment).collect();
        let has_left = |labels: &Labels| labels.get("experiment").is_some_and(|name| !watched.contains(&Some(name.clone())));
        for (labels, _) in truth.extract_if(.., |labels, _| has_left(labels)) {
            self.left.entry(labels).or_insert(clock.at());
        }
        self.over.retain(|labels, (known, _)| truth.get(labels) == Some(known));
        for (labels, over) in truth.iter().filter(|(_, truth)| matches!(truth, Truth::Over(_))) {
            self.over.entry(labels.clone()).or_insert((*over, clock.at()));
        }
        truth
    }

    /// Looks at what it holds; what is wrong with that. `reached`: the daemon runs, and nothing is between the two.
    pub fn look(&mut self, store: &Store, sender: &Sender, clock: &Clock, reached: bool) -> Vec<String> {
        let (at, mut faults) = (clock.at(), Vec::new());
        let truth = self.truth(store, sender, clock);
        let off = clock.now() - START - at;
        if !reached || off.abs() > CLOCKS || store.disabled_endpoints().unwrap().iter().any(|name| name == ALERTS) {
            self.trouble(at);
        }
        if at - self.troubled <= RECOVERY {
            return faults;
        }
        let active = |labels: &Labels| self.holds.get(labels).is_some_and(|ends| *ends > at);
        for (labels, truth) in &truth {
            let told = self.told.get(labels).map(|(told, stands)| (at - told, *stands));
            let ended = told.is_some_and(|(ago, stands)| !stands && ago <= RECOVERY);
            let raised = told.is_some_and(|(ago, stands)| stands && ago <= HOLDS + CLOCKS);
            match truth {
                Truth::Stands if !active(labels) && !ended => faults.push(format!("{labels:?} stands, and it has expired")),
                // An end that a clock ahead of its own has said is still to come.
                Truth::Over(_) if active(labels) && at - self.over[labels].1 > RECOVERY && !raised && !ended => {
                    faults.push(format!("{labels:?} is over since {} ms, and active", self.over[labels].1));
                }
                _ => {}
            }
        }
        for (labels, since) in self.left.iter().filter(|(labels, since)| active(labels) && at - **since > HOLDS + CLOCKS) {
            if self.told.get(labels).is_none_or(|(told, _)| at - told > HOLDS + CLOCKS) {
                faults.push(format!("the experiment of {labels:?} has no rules since {since} ms, and the alert is active"));
            }
        }
        for labels in self.holds.keys().filter(|labels| !self.messages.values().flatten().any(|(known, _)| known == *labels)) {
            faults.push(format!("{labels:?} is held, and no message speaks of it"));
        }
        faults
    }

    /// Alerts that stand.
    pub fn standing(&mut self, store: &Store, sender: &Sender, clock: &Clock) -> usize {
        self.truth(store, sender, clock).values().filter(|truth| **truth == Truth::Stands).count()
    }
}

/// What it is sent, in the order of the outbox.
fn messages(store: &Store) -> Vec<DeliveryRecord> {
    let database = rusqlite::Connection::open(store.path()).unwrap();
    let mut ids = database.prepare("SELECT id FROM outbox WHERE endpoint = ? ORDER BY seq").unwrap();
    let ids = ids.query_map([ALERTS], |row| row.get::<_, String>(0)).unwrap();
    ids.map(|id| store.delivery(&id.unwrap()).unwrap().unwrap()).collect()
}

/// What `delivery::Dispatcher` does between two sleeps so that an Alertmanager does not forget.
pub struct Reminding {
    sender: Rc<Sender>,
    /// ms since the beginning.
    due: Millis,
    left: VecDeque<String>,
    /// When the answer comes, and whether it is a good one.
    flight: Option<(Millis, bool)>,
}

impl Reminding {
    pub fn new(sender: Rc<Sender>) -> Reminding {
        Reminding { sender, due: 0, left: VecDeque::new(), flight: None }
    }

    /// When there is something to do next.
    pub fn next(&self) -> Millis {
        self.flight.map_or(self.due, |(lands, _)| lands)
    }

    /// The next request, where it is time for one.
    pub fn step(&mut self, store: &Store, clock: &Clock) -> Option<String> {
        if clock.at() < self.next() {
            return None;
        }
        match self.flight.take() {
            Some((_, true)) => {}
            Some((_, false)) => self.left.clear(),
            None => self.left = reminders(store, &self.sender, clock.moment()).unwrap_or_default().into(),
        }
        if self.left.is_empty() {
            self.due = clock.at() + AGAIN.as_millis() as Millis;
        }
        self.left.pop_front()
    }

    /// It is on its way: `answer` is when its answer comes, and whether it is a good one; where it acts, what is wrong with it is returned.
    pub fn sent(&mut self, body: &str, to: Option<&mut Alertmanager>, answer: (Millis, bool), store: &Store, clock: &Clock) -> Vec<String> {
        self.flight = Some((clock.at() + answer.0.max(USUAL), answer.1));
        to.map(|to| to.remind(body, store, &self.sender, clock)).unwrap_or_default()
    }
}
