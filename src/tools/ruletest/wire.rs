//! Records on their way to the engine: written as JSON, spoilt as the faults say, and read as the daemon reads them.

use super::case::{Case, Content, Fault, Written};
use crate::engine::aggregate::Aggregator;
use crate::engine::event::{Event, Kind, PhaseRef, Scalar};
use crate::engine::outcome::Reject;
use crate::engine::plan::{FieldTable, Plan};
use crate::engine::time::Millis;
use crate::ingest::decode::Decoder;
use crate::tools::simulate::{Draw, Origin};
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Records further ahead of the clock are refused, as by the daemon's defaults.
const MAX_FUTURE: Millis = 300_000;
/// Draws of the wire are another stream than those of the traffic.
pub const SCENARIO: u64 = 1;

/// A record that is on its way: when it comes, in which order among equals, where, and what it is.
type Due = (Millis, u64, usize, Vec<u8>);

pub struct Wire<'c> {
    case: &'c Case,
    plan: &'c Plan,
    fields: &'c FieldTable,
    decoder: Decoder,
    draw: Draw,
    /// ms since the epoch.
    start: Millis,
    due: BinaryHeap<Reverse<Due>>,
    sent: u64,
    /// Whether records have ids: where some come twice.
    ids: bool,
    /// When the last record came to each partition, and what time it was there.
    last: Vec<Option<(Millis, Millis)>>,
}

impl<'c> Wire<'c> {
    pub fn new(case: &'c Case, (plan, fields): (&'c Plan, &'c FieldTable), draw: Draw, start: Millis) -> Wire<'c> {
        let mut wire = Wire {
            case,
            plan,
            fields,
            decoder: Decoder::new(fields, Default::default()),
            draw,
            start,
            due: BinaryHeap::new(),
            sent: 0,
            ids: case.faults.iter().any(|f| f.duplicates > 0.0),
            last: vec![None; case.partitions],
        };
        for written in &case.records {
            wire.written(written);
        }
        wire
    }

    fn written(&mut self, written: &Written) {
        let at = self.start + written.at;
        let bytes = match &written.record {
            Content::Bytes(text) => text.clone().into_bytes(),
            Content::Event(fields) => {
                let mut fields = fields.clone();
                fields.entry("ts").or_insert_with(|| json!(at));
                Value::Object(fields).to_string().into_bytes()
            }
        };
        for _ in 0..written.times {
            self.push(at, written.partition, bytes.clone());
        }
    }

    /// A recorded line, which comes when it happened, and not before those that stand before it.
    pub fn recorded(&mut self, line: &[u8], not_before: &mut Millis) {
        let at = self.decoder.decode(line).map_or(*not_before, |event| event.ts);
        *not_before = at.max(*not_before);
        self.push(*not_before, 0, line.to_vec());
    }

    fn push(&mut self, at: Millis, partition: usize, bytes: Vec<u8>) {
        self.sent += 1;
        self.due.push(Reverse((at, self.sent, partition, bytes)));
    }

    /// Sends an event of the traffic.
    pub fn send(&mut self, event: &Event<'_>, origin: Option<Origin>) {
        let partition = partition_of(origin, self.case.partitions);
        let at = event.ts - self.start;
        let mine = |f: &&Fault| {
            let bucket = f.bucket.is_none() || f.bucket == origin.map(|o| o.bucket);
            f.is_active(at) && bucket && f.partition.is_none_or(|p| p == partition)
        };
        let faults: Vec<&Fault> = self.case.faults.iter().filter(mine).collect();
        if faults.iter().any(|f| f.silence) {
            return;
        }
        let mut record = record(event, self.fields);
        if self.ids {
            record.insert("id".into(), format!("r-{}", self.sent).into());
        }
        let (mut delay, mut copies, mut elsewhere) = (0, 1, false);
        for fault in faults {
            if let Some((by, _)) = fault.late.filter(|(_, share)| self.draw.chance(*share)) {
                delay = delay.max(by);
            }
            if let Some((pointer, share)) = &fault.missing
                && self.draw.chance(*share)
            {
                remove(&mut record, pointer);
            }
            if self.draw.chance(fault.invalid) {
                record.insert("experiment".into(), self.plan.experiment.clone().into());
                record.insert("ts".into(), "no time".into());
            }
            copies += u32::from(self.draw.chance(fault.duplicates));
            elsewhere |= event.kind == Kind::Exposure && self.draw.chance(fault.other_bucket);
        }
        let other = origin.filter(|_| elsewhere).map(|o| (o.bucket + 1) % self.plan.buckets.len());
        let bytes = Value::Object(record.clone()).to_string().into_bytes();
        for _ in 0..copies {
            self.push(event.ts + delay, partition, bytes.clone());
        }
        if let Some(other) = other {
            record.insert("bucket".into(), self.plan.buckets[other].name.clone().into());
            record.remove("id");
            self.push(event.ts + delay, partition, Value::Object(record).to_string().into_bytes());
        }
    }

    /// Hands on what has come before `end`, ms since the epoch, and lets the time of quiet partitions pass.
    pub fn deliver(&mut self, end: Millis, aggregators: &mut [Aggregator]) {
        while self.due.peek().is_some_and(|Reverse((at, ..))| *at < end) {
            let Some(Reverse((at, _, partition, bytes))) = self.due.pop() else { break };
            let aggregator = &mut aggregators[partition];
            match self.decoder.decode(&bytes) {
                Ok(event) if event.ts > at + MAX_FUTURE => {
                    aggregator.refuse(Reject::FutureTimestamp, event.experiment.as_deref());
                }
                Ok(event) => {
                    aggregator.observe(&event);
                }
                Err(refused) => {
                    aggregator.refuse(refused.reason, refused.experiment.as_deref());
                }
            }
            self.last[partition] = aggregator.watermark().map(|time| (at, time));
        }
        for (partition, aggregator) in aggregators.iter_mut().enumerate() {
            let behind = |f: &Fault| {
                let whole = f.bucket.is_none() && f.partition.is_none_or(|p| p == partition);
                whole && f.is_active(end - 1 - self.start) && (f.silence || f.late.is_some_and(|(_, share)| share >= 1.0))
            };
            if !self.case.faults.iter().any(behind) {
                aggregator.advance(end);
            } else if let Some((last, time)) = self.last[partition] {
                // As the daemon does: its time moves on with the clock once it has been quiet for a while.
                let quiet = end - last - self.case.settings.idle_after;
                if quiet > 0 {
                    aggregator.advance(time + quiet);
                }
            }
        }
    }
}

/// Where a unit's events go.
pub fn partition_of(origin: Option<Origin>, partitions: usize) -> usize {
    origin.map_or(0, |origin| origin.unit as usize % partitions)
}

/// The canonical record of an event.
fn record(event: &Event<'_>, fields: &FieldTable) -> Map<String, Value> {
    let mut record = Map::new();
    let mut put = |key: &str, value: Value| {
        record.insert(key.to_owned(), value);
    };
    put("event", event.kind.name().into());
    put("ts", event.ts.into());
    let names = [("id", &event.id), ("tenant_id", &event.tenant_id), ("user_id", &event.user_id)];
    for (key, value) in names.into_iter().chain([("experiment", &event.experiment), ("bucket", &event.bucket)]) {
        if let Some(value) = value {
            put(key, value.as_ref().into());
        }
    }
    if !event.attributes.is_empty() {
        let pairs = event.attributes.iter().map(|(name, value)| (name.to_string(), Value::from(value.as_ref())));
        put("attributes", Value::Object(pairs.collect()));
    }
    match &event.kind {
        Kind::Request { latency_ms, error } => {
            if let Some(latency) = latency_ms {
                put("latency_ms", (*latency).into());
            }
            put("error", (*error).into());
        }
        Kind::Workflow { workflow, workflow_id, .. } => {
            put("workflow", workflow.as_ref().into());
            put("workflow_id", workflow_id.as_ref().into());
        }
        Kind::ComplianceFlag { flag } => put("flag", flag.as_ref().into()),
        Kind::Outcome { metric, value, covariate } => {
            put("metric", metric.as_ref().into());
            put("value", (*value).into());
            if let Some(covariate) = covariate {
                put("covariate", (*covariate).into());
            }
        }
        Kind::Phase { phase, weights } => {
            put("phase", if let PhaseRef::Index(index) = phase { (*index).into() } else { Value::Null });
            put("weights", Value::Object(weights.iter().map(|(name, share)| (name.to_string(), Value::from(*share))).collect()));
        }
        Kind::Exposure | Kind::Ticket | Kind::Annotation { .. } | Kind::Other { .. } => {}
    }
    for (field, scalar) in &event.fields {
        let value = match scalar {
            Scalar::Bool(flag) => (*flag).into(),
            Scalar::Number(n) => (*n).into(),
            Scalar::Text(text) => text.as_ref().into(),
        };
        if let Some((_, pointer)) = fields.entries.get(usize::from(*field)) {
            insert(&mut record, pointer, value);
        }
    }
    record
}

/// The keys of a JSON Pointer.
fn tokens(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~")).collect()
}

/// Puts a value where a pointer points, in objects that are made on the way.
fn insert(record: &mut Map<String, Value>, pointer: &str, value: Value) {
    let path = tokens(pointer);
    let Some((last, path)) = path.split_last() else { return };
    let mut at = record;
    for key in path {
        let inner = at.entry(key.clone()).or_insert_with(|| json!({}));
        let Value::Object(inner) = inner else { return };
        at = inner;
    }
    at.insert(last.clone(), value);
}

fn remove(record: &mut Map<String, Value>, pointer: &str) {
    let path = tokens(pointer);
    let Some((last, path)) = path.split_last() else { return };
    let mut at = record;
    for key in path {
        let Some(Value::Object(inner)) = at.get_mut(key) else { return };
        at = inner;
    }
    at.remove(last);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_lead_into_objects() {
        let mut record = Map::new();
        insert(&mut record, "/a/b~1c", json!(1));
        insert(&mut record, "/a/d", json!(true));
        assert_eq!(Value::Object(record.clone()), json!({"a": {"b/c": 1, "d": true}}));
        remove(&mut record, "/a/b~1c");
        remove(&mut record, "/x/y");
        assert_eq!(Value::Object(record), json!({"a": {"d": true}}));
    }
}
