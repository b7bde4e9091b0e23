//! Delivery in virtual time: the real outbox and the real decisions about each attempt, against receivers that answer as the case says.

use super::case::{Answer as Word, Receiver, Reply};
use crate::clock::Moment;
use crate::delivery::attempt::{INTERVENTIONS, Made, Step, claim};
use crate::delivery::{Answer, Endpoint, EndpointError, Kind, Sender};
use crate::engine::time::Millis;
use crate::store::{Commit, Delivery, Lane, Store, StoreError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What an answer takes.
const USUAL: Millis = 20;

/// One request, and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// ms since the epoch.
    pub at: Millis,
    pub endpoint: String,
    pub event_type: String,
    pub delivery: String,
    pub decision: String,
    /// From 1.
    pub n: u32,
    /// Answered with 2xx.
    pub delivered: bool,
    /// As people read it: `200`, `HTTP 503`, `no answer in time`.
    pub answer: String,
}

/// Clients of a case's endpoints: dear to make, and without a state that matters.
pub struct Senders(Vec<(Arc<Sender>, Receiver)>);

impl Senders {
    /// One for each of `names`.
    ///
    /// # Errors
    /// A name that no endpoint can have.
    pub fn new(names: &[String], receivers: &BTreeMap<String, Receiver>) -> Result<Senders, EndpointError> {
        // Another part of the process may have installed one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let sender = |name: &String| {
            let receiver = receivers.get(name).cloned().unwrap_or_default();
            let endpoint = Endpoint {
                secrets: vec!["a secret of thirty-two characters".into()],
                timeout: Duration::from_millis(receiver.timeout.unsigned_abs()),
                escalate_to: receiver.escalate_to.clone(),
                ..Endpoint::new(name, Kind::Webhook, "http://receiver.example/")
            };
            Ok((Arc::new(Sender::new(endpoint)?), receiver))
        };
        names.iter().map(sender).collect::<Result<_, _>>().map(Senders)
    }
}

/// An attempt on its way.
struct Flight {
    delivery: Delivery,
    n: u32,
    begun: Millis,
    lands: Millis,
    answer: Answer,
}

/// One lane of an endpoint.
struct Line {
    sender: Arc<Sender>,
    /// Its place among the receivers.
    receiver: usize,
    lane: Lane,
    width: usize,
    flights: Vec<Flight>,
    /// Nothing is to be claimed before; `MAX`: until something is written.
    wakes: Millis,
}

/// How far a receiver has come with its answers.
struct Progress {
    receiver: Receiver,
    next: usize,
    /// When the first attempt got the answer that goes on for a while.
    since: Option<Millis>,
}

/// The outbox of one run.
pub struct Outbox {
    store: Store,
    lines: Vec<Line>,
    receivers: Vec<Progress>,
    attempts: Vec<Attempt>,
}

impl Outbox {
    /// An empty one, in memory.
    ///
    /// # Errors
    /// SQLite has none to give.
    pub fn new(senders: &Senders) -> Result<Outbox, StoreError> {
        let lanes = |(receiver, (sender, _)): (usize, &(Arc<Sender>, Receiver))| {
            [(Lane::Intervene, INTERVENTIONS), (Lane::Inform, 1)].map(|(lane, width)| Line {
                sender: Arc::clone(sender),
                receiver,
                lane,
                width,
                flights: Vec::new(),
                wakes: Millis::MAX,
            })
        };
        let progress = |(_, receiver): &(Arc<Sender>, Receiver)| Progress { receiver: receiver.clone(), next: 0, since: None };
        Ok(Outbox {
            store: Store::open(":memory:")?,
            lines: senders.0.iter().enumerate().flat_map(lanes).collect(),
            receivers: senders.0.iter().map(progress).collect(),
            attempts: Vec::new(),
        })
    }

    /// Writes what was said at this instant, with its deliveries.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        self.store.commit(commit)?;
        self.wake(commit.at);
        Ok(())
    }

    fn wake(&mut self, at: Millis) {
        self.lines.iter_mut().for_each(|line| line.wakes = line.wakes.min(at));
    }

    /// Makes the next attempt or takes the next answer that is due by `until`, and returns the attempt that was answered. `None`: nothing
    /// is due.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn step(&mut self, until: Millis) -> Result<Option<Attempt>, StoreError> {
        loop {
            let due = |line: &Line| line.flights.iter().map(|f| f.lands).chain([line.wakes]).min().unwrap_or(Millis::MAX);
            let next = self.lines.iter().map(due).enumerate().min_by_key(|(_, at)| *at);
            let Some((line, at)) = next.filter(|(_, at)| *at <= until) else { return Ok(None) };
            if let Some(attempt) = self.act(line, at)? {
                return Ok(Some(attempt));
            }
        }
    }

    fn act(&mut self, line: usize, at: Millis) -> Result<Option<Attempt>, StoreError> {
        let now = Moment { wall: at, steady: at };
        let mine = &mut self.lines[line];
        if let Some(i) = mine.flights.iter().position(|flight| flight.lands <= at) {
            let flight = mine.flights.remove(i);
            mine.wakes = at;
            let sender = Arc::clone(&mine.sender);
            return self.land(flight, &sender, now).map(Some);
        }
        let in_flight: Vec<String> = mine.flights.iter().map(|f| f.delivery.id.clone()).collect();
        if in_flight.len() >= mine.width {
            mine.wakes = Millis::MAX;
            return Ok(None);
        }
        match claim(&mut self.store, &mine.sender, mine.lane, now, &in_flight)? {
            Step::Attempt(delivery, n) => {
                let (takes, answer) = self.receivers[mine.receiver].take(at);
                mine.flights.push(Flight { delivery: *delivery, n, begun: at, lands: at + takes, answer });
            }
            // It may have been escalated.
            Step::GaveUp(_) => self.wake(at),
            Step::SleepUntil(then) => mine.wakes = then.max(at + 1),
            Step::Idle => mine.wakes = Millis::MAX,
        }
        Ok(None)
    }

    /// Writes down what became of an attempt.
    fn land(&mut self, flight: Flight, sender: &Sender, now: Moment) -> Result<Attempt, StoreError> {
        let Flight { delivery, n, begun, answer, .. } = flight;
        let attempt = Attempt {
            at: begun,
            endpoint: delivery.endpoint.clone(),
            event_type: delivery.event_type.clone(),
            delivery: delivery.id.clone(),
            decision: delivery.decision.clone(),
            n,
            delivered: answer.error.is_none(),
            answer: answer.error.clone().or(answer.status.map(|s| s.to_string())).unwrap_or_default(),
        };
        let begun = Moment { wall: begun, steady: begun };
        // Without jitter: a test's times do not depend on luck.
        let made = Made::new(sender, delivery, n, (begun, now), &answer, 0.0);
        made.record(&mut self.store, now)?;
        if made.wakes() {
            self.wake(now.steady);
        }
        self.attempts.push(attempt.clone());
        Ok(attempt)
    }

    /// All attempts that were answered, or whose time was up.
    pub fn into_attempts(self) -> Vec<Attempt> {
        self.attempts
    }
}

impl Progress {
    /// What an attempt of this instant gets: how long it takes, and the answer.
    fn take(&mut self, now: Millis) -> (Millis, Answer) {
        let reply = self.reply(now);
        match reply.answer {
            Word::Status(status @ 200..=299) => (USUAL, Answer { status: Some(status), ..Answer::default() }),
            Word::Status(status) => (USUAL, Answer::refused(Kind::Webhook, status, reply.retry_after, "")),
            Word::Refused => (USUAL, Answer::none("connection refused".to_owned())),
            Word::Timeout => (self.receiver.timeout, Answer::overdue()),
        }
    }

    fn reply(&mut self, now: Millis) -> Reply {
        while let Some(reply) = self.receiver.answers.get(self.next).copied() {
            let Some(span) = reply.span else {
                // The last one goes on.
                self.next = (self.next + 1).min(self.receiver.answers.len() - 1);
                return reply;
            };
            if now - *self.since.get_or_insert(now) < span {
                return reply;
            }
            (self.next, self.since) = (self.next + 1, None);
        }
        Reply { answer: Word::Status(200), span: None, retry_after: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(answer: Word, span: Option<Millis>) -> Reply {
        Reply { answer, span, retry_after: None }
    }

    #[test]
    fn answers_follow_each_other_and_the_last_goes_on() {
        let answers = vec![reply(Word::Status(503), Some(10)), reply(Word::Timeout, None), reply(Word::Status(204), None)];
        let mut progress = Progress { receiver: Receiver { answers, ..Receiver::default() }, next: 0, since: None };
        let got: Vec<Word> = [100, 109, 110, 111, 500].map(|now| progress.reply(now).answer).into();
        assert_eq!(got, [Word::Status(503), Word::Status(503), Word::Timeout, Word::Status(204), Word::Status(204)]);
        // One that has its time is followed by success.
        let mut progress =
            Progress { receiver: Receiver { answers: vec![reply(Word::Refused, Some(10))], ..Receiver::default() }, next: 0, since: None };
        assert_eq!(
            (progress.reply(0).answer, progress.reply(9).answer, progress.reply(10).answer),
            (Word::Refused, Word::Refused, Word::Status(200))
        );
    }
}
