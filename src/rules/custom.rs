//! The `metrics` section: metrics over the organisation's own events and fields.

use super::diagnostic::{Faults, quote};
use super::metric::{BUILT_IN, Measure, Metric};
use super::quantity::{Quantity, number};
use super::shape::is_pointer;
use super::yaml::{Entry, Node};
use crate::engine::event::FieldId;
use crate::engine::plan::{FieldTable, Hit, Match, Signal, Source, Statistic, Unit, Value};
use std::collections::BTreeMap;

/// Events that only steer the engine, or are counted by a built-in metric.
const RESERVED_EVENTS: &[&str] = &["exposure", "phase", "annotation"];

/// Every metric that the section defines well; the faults of the others are reported.
pub fn read(section: Option<&Node>, fields: &mut FieldTable, faults: &mut Faults) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::new();
    for entry in section.map_or(&[][..], Node::entries) {
        if BUILT_IN.contains(&entry.key.as_str()) {
            faults.error(&entry.key_span, "GR2505", format!("{} is built in", quote(&entry.key)), "choose another name");
            continue;
        }
        if let Some(metric) = (Reader { entry, fields: &mut *fields, faults: &mut *faults }).metric() {
            metrics.insert(entry.key.clone(), metric);
        }
    }
    metrics
}

struct Reader<'n, 'c> {
    entry: &'n Entry,
    fields: &'c mut FieldTable,
    faults: &'c mut Faults,
}

impl<'n> Reader<'n, '_> {
    fn metric(mut self) -> Option<Metric> {
        let (kind, event) = (self.text("kind")?, self.text("event")?);
        if RESERVED_EVENTS.contains(&event) {
            self.fault("event", "GR2503", &format!("metrics cannot be made of {} events", quote(event)), "`exposures` is built in");
            return None;
        }
        self.check_keys(kind);
        let source = Source { event: event.to_owned(), filter: self.filter(event) };
        let unit = if self.text("unit") == Some("user") { Unit::User } else { Unit::Event };
        let (signal, statistic, measure) = match kind {
            "rate" => (Signal::Rate { source, hit: self.hit(event)?, unit }, Statistic::Share, Measure::Share),
            "mean" => {
                let covariate = self.covariate(event);
                (Signal::Moments { source, value: self.value(event)?, covariate, unit }, Statistic::Mean, Measure::Mean)
            }
            "count" if unit == Unit::User => (Signal::Count { source, unit }, Statistic::PerUnit, Measure::PerUnit),
            "count" => (Signal::Count { source, unit }, Statistic::Count, Measure::Count),
            "quantile" => {
                let in_ms = self.pointer(event).is_some_and(|p| p.ends_with("_ms"));
                let measure = if in_ms { Measure::Time } else { Measure::Plain };
                let statistic = Statistic::Quantile { ppm: self.level()? };
                (Signal::Distribution { source, value: self.value(event)? }, statistic, measure)
            }
            _ => return None,
        };
        let expected = self.expected(measure);
        Some(Metric { signal, statistic, measure, higher_is_worse: self.text("better") != Some("up"), expected })
    }

    /// The `baseline` of the metric in its own unit; one whose unit does not fit is reported.
    fn expected(&mut self, measure: Measure) -> Option<f64> {
        let given = self.entry.value.get("baseline")?;
        let quantity = given.text().and_then(Quantity::parse)?;
        let plain = match (measure, quantity) {
            (Measure::Mean, Quantity::Number(n)) => Ok(n),
            _ => measure.limit(quantity),
        };
        match plain {
            Ok(value) => Some(value),
            Err(misfit) => {
                self.faults.error(&given.span, misfit.code, misfit.message, misfit.label);
                None
            }
        }
    }

    fn covariate(&mut self, event: &str) -> Option<Value> {
        let pointer = self.text("covariate").filter(|p| is_pointer(p))?;
        match (event, pointer) {
            ("outcome", "/covariate") => Some(Value::Covariate),
            _ => self.intern(event, pointer).map(Value::Field),
        }
    }

    fn text(&self, key: &str) -> Option<&'n str> {
        self.entry.value.get(key).and_then(Node::text)
    }

    /// Keys that say nothing about this kind of metric.
    fn check_keys(&mut self, kind: &str) {
        let useless: &[&str] = match kind {
            "quantile" => &["covariate"],
            "count" => &["q", "value", "covariate"],
            "rate" | "mean" => &["q"],
            _ => &[],
        };
        for key in useless.iter().filter(|k| self.entry.value.get(k).is_some()) {
            self.fault(key, "GR2503", &format!("a {kind} has no `{key}`"), "remove it");
        }
    }

    /// The `where` of the metric; values that are no scalars have been reported.
    fn filter(&mut self, event: &str) -> Vec<(FieldId, Match)> {
        let mut filter = Vec::new();
        for condition in self.entry.value.get("where").map_or(&[][..], Node::entries) {
            let pointer = field_pointer(&condition.key);
            if !is_pointer(&pointer) {
                self.faults.error(&condition.key_span, "GR2502", "not a JSON Pointer", "`~` is written `~0`");
                continue;
            }
            let Some(text) = condition.value.text() else { continue };
            let wanted = match (condition.value.boolean(), number(text)) {
                (Some(flag), _) => Match::Bool(flag),
                (None, Some(n)) if condition.value.is_plain() => Match::Number(n),
                _ => Match::Text(text.to_owned()),
            };
            filter.extend(self.intern(event, &pointer).map(|id| (id, wanted)));
        }
        filter
    }

    /// The field that holds the value: as given, or an outcome's `/value`.
    fn pointer(&self, event: &str) -> Option<&'n str> {
        self.text("value").or((event == "outcome").then_some("/value")).filter(|p| is_pointer(p))
    }

    fn value(&mut self, event: &str) -> Option<Value> {
        match (event, self.needed_pointer(event)?) {
            ("outcome", "/value") => Some(Value::Outcome),
            ("request", "/latency_ms") => Some(Value::Latency),
            (_, pointer) => self.intern(event, pointer).map(Value::Field),
        }
    }

    fn hit(&mut self, event: &str) -> Option<Hit> {
        match (event, self.needed_pointer(event)?) {
            ("outcome", "/value") => Some(Hit::Outcome),
            ("request", "/error") => Some(Hit::Error),
            (_, pointer) => self.intern(event, pointer).map(Hit::Field),
        }
    }

    fn needed_pointer(&mut self, event: &str) -> Option<&'n str> {
        let pointer = self.pointer(event);
        if pointer.is_none() && self.text("value").is_none() {
            let fault = self.faults.at(&self.entry.key_span, "GR1003", format!("metric {} needs `value`", quote(&self.entry.key)));
            self.faults.push(fault.with_label("add the field to read, for example `value: /amount`"));
        }
        pointer
    }

    /// The level of a quantile in parts per million.
    fn level(&mut self) -> Option<u32> {
        let Some(text) = self.text("q") else {
            let fault = self.faults.at(&self.entry.key_span, "GR1003", format!("quantile {} needs `q`", quote(&self.entry.key)));
            self.faults.push(fault.with_label("add its level, for example `q: 0.99`"));
            return None;
        };
        let ppm = (number(text).filter(|q| *q > 0.0 && *q < 1.0)? * 1e6).round() as u32;
        if ppm == 0 || ppm == 1_000_000 {
            self.fault("q", "GR2203", "too extreme a quantile", "between 0.000001 and 0.999999");
            return None;
        }
        Some(ppm)
    }

    fn intern(&mut self, event: &str, pointer: &str) -> Option<FieldId> {
        let id = self.fields.intern(event, pointer);
        if id.is_none() {
            self.faults.error(&self.entry.key_span, "GR1008", "too many fields in all rule files", "65,536 are read at most");
        }
        id
    }

    fn fault(&mut self, key: &str, code: &'static str, message: &str, label: &str) {
        let span = self.entry.value.get(key).map_or(&self.entry.key_span, |n| &n.span);
        self.faults.error(span, code, message, label);
    }
}

/// A field's plain name as a pointer to it; what begins with `/` is one already.
fn field_pointer(name: &str) -> String {
    if name.starts_with('/') { name.to_owned() } else { format!("/{}", name.replace('~', "~0").replace('/', "~1")) }
}
