//! Bytes of a record in, an [`Event`] or a reason out.
//!
//! A record is read in one pass that checks it to be exactly JSON and notes where the canonical fields stand, borrowing; the
//! fields are checked afterwards, so that the reason of a refusal does not depend on the order of keys. Rules of reading:
//! of duplicate keys the last counts; `null` is absent; an empty string is absent too, save in `tenant_id`, which producers of a
//! single tenant leave empty; unknown fields are passed over unless a rule asks for them.

pub(super) mod fields;
mod guess;
pub(super) mod json;
mod known;
#[cfg(test)]
mod tests;
mod timestamp;

pub use guess::Stats;
pub use timestamp::{EARLIEST, LATEST};

use crate::engine::event::{Event, Kind, PhaseRef, Step, Text};
use crate::engine::outcome::Reject;
use crate::engine::plan::{FieldTable, MAX_BUCKETS};
use fields::{Pointers, members};
use guess::{Guesses, SLOTS, START, Slot};
use json::{Fault, Scanner, Value, named_experiment, number};
use known::KnownObjects;
use std::borrow::Cow;

/// Bounds on one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longer records are `too_large`, unread. Bytes.
    pub max_record_bytes: usize,
    /// Nesting beyond this is `too_large`; the record itself is level 1. 128 at most.
    pub max_depth: usize,
    /// Attributes beyond this are `too_many_attributes`.
    pub max_attributes: usize,
    /// A longer id, name or attribute is `too_large`; the text of an annotation may be eight times as long. Bytes.
    pub max_text: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_record_bytes: 1 << 20, max_depth: 32, max_attributes: 32, max_text: 1024 }
    }
}

/// A record that was not decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub reason: Reject,
    /// The experiment that it names, if that much could be read.
    pub experiment: Option<String>,
}

/// Decodes records, and learns the key order of their producers. One for each thread.
pub struct Decoder {
    limits: Limits,
    pointers: Pointers,
    guesses: Guesses,
    /// Plain ones.
    attributes: KnownObjects,
    /// Attributes are given with the event, and not only checked.
    told: bool,
}

/// What the pass over a record noted.
struct Noted<'a> {
    values: [Value<'a>; SLOTS],
    attributes: Attributes<'a>,
}

/// What stands at `attributes`.
#[derive(Clone, Copy)]
enum Attributes<'a> {
    Absent,
    /// An object of strings, few and short enough.
    Plain(&'a str),
    /// One that must be looked at more closely.
    Odd(&'a str),
    /// No object.
    Wrong,
}

/// Attributes by name, in the order of their first mention.
type Pairs<'a> = Vec<(Text<'a>, Text<'a>)>;

impl Decoder {
    /// A decoder that gives what live rules ask for, the `fields`, with each event.
    pub fn new(fields: &FieldTable, limits: Limits) -> Decoder {
        let limits = Limits { max_depth: limits.max_depth.min(128), ..limits };
        let (pointers, guesses, attributes) = (Pointers::new(fields), Guesses::new(), KnownObjects::new());
        Decoder { limits, pointers, guesses, attributes, told: fields.attributes }
    }

    /// Keys recognised by guessing and by scanning.
    pub fn stats(&self) -> Stats {
        self.guesses.stats
    }

    /// Decodes one record. Any bytes are fit input.
    pub fn decode<'a>(&mut self, bytes: &'a [u8]) -> Result<Event<'a>, Refused> {
        if bytes.len() > self.limits.max_record_bytes {
            return Err(self.broken(bytes, Reject::TooLarge));
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return Err(self.broken(bytes, Reject::NotJson)) };
        let mut noted = Noted { values: [Value::Absent; SLOTS], attributes: Attributes::Absent };
        if let Err(reason) = self.note(text, &mut noted) {
            return Err(self.broken(bytes, reason));
        }
        let experiment = noted.values[Slot::Experiment as usize];
        // Not taken apart: an event is large, and stays where it was made.
        let mut event = self.event(text, noted);
        if let Err(refused) = &mut event {
            refused.experiment = self.text(experiment).ok().flatten().map(Cow::into_owned);
        }
        event
    }

    #[cold]
    fn broken(&self, bytes: &[u8], reason: Reject) -> Refused {
        Refused { reason, experiment: named_experiment(bytes).filter(|name| name.len() <= self.limits.max_text) }
    }

    /// The pass over the whole text.
    fn note<'a>(&mut self, text: &'a str, noted: &mut Noted<'a>) -> Result<(), Reject> {
        let mut scan = Scanner::new(text, self.limits.max_depth);
        scan.space();
        if scan.peek() != b'{' {
            let whole = scan.value(0).map(|_| scan.space());
            return Err(match whole {
                Ok(()) if scan.at_end() => Reject::NotObject,
                Ok(()) => Reject::NotJson,
                Err(fault) => fault.into(),
            });
        }
        self.members(&mut scan, noted)?;
        scan.space();
        if scan.at_end() { Ok(()) } else { Err(Reject::NotJson) }
    }

    /// The members of the record, each key guessed first.
    #[inline]
    fn members<'a>(&mut self, scan: &mut Scanner<'a>, noted: &mut Noted<'a>) -> Result<(), Fault> {
        let mut place = START;
        loop {
            let from = scan.pos();
            let slot = if let Some((slot, len)) = self.guesses.find(place, &scan.bytes()[from..]) {
                scan.skip(len);
                slot
            } else {
                let Some(slot) = key(scan, place == START)? else { return Ok(()) };
                self.guesses.learn(place, &scan.bytes()[from..scan.pos()], slot);
                slot
            };
            if slot == Slot::Attributes {
                noted.attributes = self.attributes(scan)?;
            } else {
                scan.value_into(1, &mut noted.values[slot as usize])?;
            }
            place = slot as usize;
            if scan.peek() == b'}' {
                scan.skip(1);
                return Ok(());
            }
        }
    }

    /// Passes over the value of `attributes`.
    #[inline]
    fn attributes<'a>(&mut self, scan: &mut Scanner<'a>) -> Result<Attributes<'a>, Fault> {
        scan.space();
        if scan.peek() != b'{' {
            return Ok(if scan.value(1)? == Value::Absent { Attributes::Absent } else { Attributes::Wrong });
        }
        let (from, longest) = (scan.pos(), self.limits.max_text);
        let rest = &scan.bytes()[from..];
        if let Some(len) = self.attributes.find(rest) {
            scan.skip(len);
            return Ok(Attributes::Plain(scan.text(from)));
        }
        let (mut members, mut plain) = (0, true);
        scan.object(1, |key, value| {
            members += 1;
            plain &= matches!(value, Value::String(raw) if raw.text.len() <= longest) && key.text.len() <= longest;
        })?;
        let text = scan.text(from);
        if !plain || members > self.limits.max_attributes {
            return Ok(Attributes::Odd(text));
        }
        self.attributes.learn(rest, text.len());
        Ok(Attributes::Plain(text))
    }

    /// The attributes of an object that has been passed over, or why they cannot be accepted.
    fn pairs<'a>(&self, text: &'a str) -> Result<Pairs<'a>, Reject> {
        let (limits, mut pairs, mut fault) = (self.limits, Pairs::new(), None);
        members(text, |key, value| {
            let name = key.decode();
            let at = pairs.iter().position(|(k, _)| *k == name);
            match value {
                Value::String(raw) if name.len() <= limits.max_text && raw.text.len() <= limits.max_text => match at {
                    Some(at) => pairs[at].1 = raw.decode(),
                    None if pairs.len() < limits.max_attributes => pairs.push((name, raw.decode())),
                    None => fault = fault.or(Some(Reject::TooManyAttributes)),
                },
                Value::String(_) => fault = fault.or(Some(Reject::TooLarge)),
                Value::Absent => {
                    if let Some(at) = at {
                        pairs.remove(at);
                    }
                }
                _ => fault = fault.or(Some(Reject::WrongType)),
            }
        });
        fault.map_or(Ok(pairs), Err)
    }

    /// Checks the noted fields and makes the event of them.
    #[inline(always)]
    fn event<'a>(&self, text: &'a str, noted: Noted<'a>) -> Result<Event<'a>, Refused> {
        let odd = match noted.attributes {
            Attributes::Wrong => return Err(Reject::WrongType.into()),
            Attributes::Odd(text) => Some(self.pairs(text)?),
            Attributes::Plain(_) | Attributes::Absent => None,
        };
        let v = &noted.values;
        let name = self.required(v, Slot::Event)?;
        let ts = timestamp(v[Slot::Ts as usize])?;
        let id = self.optional(v, Slot::Id)?;
        let tenant_id = match v[Slot::TenantId as usize] {
            Value::String(raw) if raw.text.is_empty() => Some(Cow::Borrowed("")),
            value => self.text(value)?,
        };
        let user_id = self.optional(v, Slot::UserId)?;
        let experiment = self.optional(v, Slot::Experiment)?;
        let bucket = self.optional(v, Slot::Bucket)?;
        let fields = self.pointers.read(&name, text)?;
        let kind = self.kind(name, v)?;
        let unit = tenant_id.is_some() && user_id.is_some();
        let stamp = experiment.is_some() && bucket.is_some();
        let complete = match kind {
            Kind::Exposure => unit && stamp,
            Kind::Phase { .. } | Kind::Annotation { .. } => experiment.is_some(),
            _ => unit || stamp,
        };
        if !complete {
            return Err(Reject::MissingField.into());
        }
        let attributes = match (noted.attributes, odd) {
            _ if !stamp || !self.told => Pairs::new(),
            (Attributes::Plain(text), _) => self.pairs(text)?,
            (_, odd) => odd.unwrap_or_default(),
        };
        Ok(Event { ts, id, tenant_id, user_id, experiment, bucket, attributes, kind, fields })
    }

    /// What the event's name makes of the further fields.
    #[inline(always)]
    fn kind<'a>(&self, name: Text<'a>, v: &[Value<'a>; SLOTS]) -> Result<Kind<'a>, Reject> {
        Ok(match &*name {
            "exposure" => Kind::Exposure,
            "request" => Kind::Request {
                latency_ms: match finite(v[Slot::LatencyMs as usize])? {
                    Some(ms) if ms < 0.0 => return Err(Reject::NegativeValue),
                    latency => latency,
                },
                error: match v[Slot::Error as usize] {
                    Value::Absent => false,
                    Value::Bool(error) => error,
                    _ => return Err(Reject::WrongType),
                },
            },
            "workflow_started" => self.workflow(Step::Started, v)?,
            "workflow_completed" => self.workflow(Step::Completed, v)?,
            "workflow_abandoned" => self.workflow(Step::Abandoned, v)?,
            "ticket" => Kind::Ticket,
            "compliance_flag" => Kind::ComplianceFlag { flag: self.required(v, Slot::Flag)? },
            "outcome" => Kind::Outcome {
                metric: self.required(v, Slot::Metric)?,
                value: match v[Slot::Value as usize] {
                    Value::Bool(hit) => f64::from(u8::from(hit)),
                    value => finite(value)?.ok_or(Reject::MissingField)?,
                },
                covariate: finite(v[Slot::Covariate as usize])?,
            },
            "phase" => Kind::Phase { phase: self.phase(v)?, weights: self.weights(v[Slot::Weights as usize])? },
            "annotation" => Kind::Annotation {
                text: match v[Slot::Text as usize] {
                    Value::String(raw) if raw.text.len() > 8 * self.limits.max_text => return Err(Reject::TooLarge),
                    Value::String(raw) if !raw.text.is_empty() => raw.decode(),
                    Value::String(_) | Value::Absent => return Err(Reject::MissingField),
                    _ => return Err(Reject::WrongType),
                },
                author: self.optional(v, Slot::Author)?,
            },
            _ => Kind::Other { name },
        })
    }

    fn workflow<'a>(&self, step: Step, v: &[Value<'a>; SLOTS]) -> Result<Kind<'a>, Reject> {
        Ok(Kind::Workflow { step, workflow: self.required(v, Slot::Workflow)?, workflow_id: self.required(v, Slot::WorkflowId)? })
    }

    fn phase<'a>(&self, v: &[Value<'a>; SLOTS]) -> Result<PhaseRef<'a>, Reject> {
        let value = v[Slot::Phase as usize];
        let Value::Number(_) = value else { return self.required(v, Slot::Phase).map(PhaseRef::Name) };
        match finite(value)? {
            Some(n) if n < 0.0 => Err(Reject::NegativeValue),
            Some(n) if n.fract() == 0.0 && n <= f64::from(u32::MAX) => Ok(PhaseRef::Index(n as u32)),
            _ => Err(Reject::WrongType),
        }
    }

    /// The shares of a phase: finite, not negative, of no more buckets than an experiment may have. None are given where the rule says them, or
    /// they stay.
    fn weights<'a>(&self, value: Value<'a>) -> Result<Vec<(Text<'a>, f64)>, Reject> {
        let text = match value {
            Value::Object(text) => text,
            Value::Absent => return Ok(Vec::new()),
            _ => return Err(Reject::WrongType),
        };
        let mut weights = Vec::new();
        let mut fault = None;
        members(text, |key, value| {
            let share = match finite(value) {
                Ok(Some(share)) if share < 0.0 => Err(Reject::NegativeValue),
                Ok(Some(share)) => Ok(share),
                Ok(None) => Err(Reject::WrongType),
                Err(reason) => Err(reason),
            };
            let name = key.decode();
            match (share, weights.iter().position(|(n, _)| *n == name)) {
                (Err(reason), _) => fault = fault.or(Some(reason)),
                (Ok(share), Some(at)) => weights[at].1 = share,
                (Ok(share), None) if weights.len() < MAX_BUCKETS && name.len() <= self.limits.max_text => weights.push((name, share)),
                (Ok(_), None) => fault = fault.or(Some(Reject::TooLarge)),
            }
        });
        fault.map_or(Ok(weights), Err)
    }

    #[inline]
    fn text<'a>(&self, value: Value<'a>) -> Result<Option<Text<'a>>, Reject> {
        match value {
            Value::String(raw) if raw.text.is_empty() => Ok(None),
            Value::String(raw) if raw.text.len() <= self.limits.max_text => Ok(Some(raw.decode())),
            Value::String(_) => Err(Reject::TooLarge),
            Value::Absent => Ok(None),
            _ => Err(Reject::WrongType),
        }
    }

    #[inline]
    fn optional<'a>(&self, v: &[Value<'a>; SLOTS], slot: Slot) -> Result<Option<Text<'a>>, Reject> {
        self.text(v[slot as usize])
    }

    #[inline]
    fn required<'a>(&self, v: &[Value<'a>; SLOTS], slot: Slot) -> Result<Text<'a>, Reject> {
        self.text(v[slot as usize])?.ok_or(Reject::MissingField)
    }
}

impl From<Reject> for Refused {
    fn from(reason: Reject) -> Refused {
        Refused { reason, experiment: None }
    }
}

impl From<Fault> for Reject {
    fn from(fault: Fault) -> Reject {
        match fault {
            Fault::Syntax => Reject::NotJson,
            Fault::Depth => Reject::TooLarge,
        }
    }
}

/// Scans to the next value of the record: `None` at the end of the record, else the slot of its key.
#[inline]
fn key(scan: &mut Scanner<'_>, first: bool) -> Result<Option<Slot>, Fault> {
    scan.space();
    if !first && scan.peek() == b'}' {
        scan.skip(1);
        return Ok(None);
    }
    scan.expect(if first { b'{' } else { b',' })?;
    scan.space();
    if first && scan.peek() == b'}' {
        scan.skip(1);
        return Ok(None);
    }
    let key = scan.string()?;
    scan.space();
    scan.expect(b':')?;
    scan.space();
    Ok(Some(Slot::of(&key.decode())))
}

#[inline]
fn timestamp(value: Value<'_>) -> Result<i64, Reject> {
    match value {
        Value::Number(text) => timestamp::from_number(text).ok_or(Reject::BadTimestamp),
        Value::String(raw) => timestamp::from_text(&raw.decode()).ok_or(Reject::BadTimestamp),
        Value::Absent => Err(Reject::MissingField),
        _ => Err(Reject::WrongType),
    }
}

/// A number that is finite.
#[inline]
fn finite(value: Value<'_>) -> Result<Option<f64>, Reject> {
    match value {
        Value::Number(text) => match number(text) {
            n if n.is_finite() => Ok(Some(n)),
            _ => Err(Reject::NotFinite),
        },
        Value::Absent => Ok(None),
        _ => Err(Reject::WrongType),
    }
}
