//! The `metrics` section: metrics over the organisation's own events and fields.

use super::diagnostic::{Faults, quote};
use super::lower::span;
use super::metric::{BUILT_IN, Measure, Metric};
use super::quantity::{Quantity, number};
use super::shape::is_pointer;
use super::yaml::{Entry, Node};
use crate::engine::event::FieldId;
use crate::engine::plan::{FieldTable, Funnel, FunnelStep, Hit, Match, Signal, Source, Statistic, Unit, Value};
use crate::engine::time::Millis;
use std::collections::BTreeMap;

/// Events that only steer the engine, or are counted by a built-in metric.
const RESERVED_EVENTS: &[&str] = &["exposure", "phase", "annotation"];

/// The names by which producers tell of workflows themselves.
const WORKFLOW_EVENTS: &[&str] = &["workflow_started", "workflow_completed", "workflow_abandoned"];
/// Last day of retention, and what a funnel and an experiment have at most.
const MAX_DAY: u32 = 90;
const MAX_STEPS: usize = 16;
const MAX_FUNNELS: usize = 8;
const DEFAULT_WITHIN: Millis = 1_800_000;
const MAX_WITHIN: Millis = 86_400_000;

/// What the section defines.
#[derive(Default)]
pub struct Custom {
    pub metrics: BTreeMap<String, Metric>,
    pub funnels: Vec<Funnel>,
}

/// Everything that the section defines well; the faults of the rest are reported. `workflow` is that of funnels that name none.
pub fn read(section: Option<&Node>, workflow: Option<&str>, fields: &mut FieldTable, faults: &mut Faults) -> Custom {
    let mut out = Custom::default();
    for entry in section.map_or(&[][..], Node::entries) {
        if BUILT_IN.contains(&entry.key.as_str()) {
            faults.error(&entry.key_span, "GR2505", format!("{} is built in", quote(&entry.key)), "choose another name");
            continue;
        }
        let reader = Reader { entry, fields: &mut *fields, faults: &mut *faults };
        if reader.text("kind") == Some("funnel") {
            if out.funnels.len() == MAX_FUNNELS {
                reader.faults.error(&entry.key_span, "GR2103", "too many funnels", format!("{MAX_FUNNELS} at most"));
            }
            out.funnels.extend(reader.funnel(workflow));
        } else if let Some(metric) = reader.metric() {
            out.metrics.insert(entry.key.clone(), metric);
        }
    }
    out
}

struct Reader<'n, 'c> {
    entry: &'n Entry,
    fields: &'c mut FieldTable,
    faults: &'c mut Faults,
}

impl<'n> Reader<'n, '_> {
    fn metric(mut self) -> Option<Metric> {
        let kind = self.text("kind")?;
        self.check_keys(kind);
        if kind == "retention" {
            return self.retention();
        }
        let Some(event) = self.text("event") else {
            let fault = self.faults.at(&self.entry.key_span, "GR1003", format!("metric {} needs `event`", quote(&self.entry.key)));
            self.faults.push(fault.with_label("add the events that feed it, for example `event: outcome`"));
            return None;
        };
        if RESERVED_EVENTS.contains(&event) {
            self.fault("event", "GR2503", &format!("metrics cannot be made of {} events", quote(event)), "`exposures` is built in");
            return None;
        }
        let source = self.source(&self.entry.value, event);
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

    /// The share of units that are active again on a day.
    fn retention(mut self) -> Option<Metric> {
        let source = match (self.text("event"), self.entry.value.get("where")) {
            (Some(event), _) if RESERVED_EVENTS.contains(&event) => {
                self.fault(
                    "event",
                    "GR2503",
                    &format!("activity is not shown by {} events", quote(event)),
                    "leave it out: every record of a unit counts",
                );
                return None;
            }
            (Some(event), _) => Some(self.source(&self.entry.value, event)),
            (None, Some(_)) => {
                self.fault("where", "GR1003", "`where` without `event`", "name the events that show activity");
                return None;
            }
            (None, None) => None,
        };
        if self.text("unit") == Some("event") {
            self.fault("unit", "GR2503", "retention is a share of users", "remove it");
        }
        let Some(day) = self.entry.value.get("day") else {
            let fault = self.faults.at(&self.entry.key_span, "GR1003", format!("retention {} needs `day`", quote(&self.entry.key)));
            self.faults.push(fault.with_label("add the day, for example `day: 7`"));
            return None;
        };
        let day = day.text()?.parse().ok()?;
        if day > MAX_DAY {
            self.fault("day", "GR2203", "too long after the exposure", &format!("{MAX_DAY} days at most"));
        }
        let (measure, higher_is_worse) = (Measure::Share, self.text("better") == Some("down"));
        let expected = self.expected(measure);
        Some(Metric { signal: Signal::Retention { day, source }, statistic: Statistic::Share, measure, higher_is_worse, expected })
    }

    fn funnel(mut self, workflow: Option<&str>) -> Option<Funnel> {
        self.check_keys("funnel");
        let Some(workflow) = self.text("workflow").or(workflow) else {
            let fault = self.faults.at(&self.entry.key_span, "GR1003", format!("funnel {} needs `workflow`", quote(&self.entry.key)));
            self.faults.push(fault.with_label("add it here, or as `overview.workflow`"));
            return None;
        };
        let within = self.entry.value.get("within").and_then(span).unwrap_or(DEFAULT_WITHIN);
        if !(1_000..=MAX_WITHIN).contains(&within) {
            self.fault("within", "GR2404", "a time out of range", "between `1s` and `1d`");
        }
        let mut steps: Vec<FunnelStep> = Vec::new();
        for node in self.entry.value.get("steps").map_or(&[][..], Node::list) {
            if steps.len() == MAX_STEPS {
                self.faults.error(&node.span, "GR2103", "too many steps", format!("{MAX_STEPS} at most"));
                break;
            }
            let Some(step) = self.step(node) else { continue };
            if steps.iter().any(|s| s.name == step.name) {
                self.faults.error(&node.span, "GR1004", format!("the step {} is given twice", quote(&step.name)), "give it a `name`");
            }
            steps.push(step);
        }
        Some(Funnel { name: self.entry.key.clone(), workflow: workflow.to_owned(), within, steps })
    }

    fn step(&mut self, node: &'n Node) -> Option<FunnelStep> {
        let event = node.text().or_else(|| node.get("event")?.text())?;
        if RESERVED_EVENTS.contains(&event) || WORKFLOW_EVENTS.contains(&event) {
            let label = "steps lie between start and end, which every funnel has";
            self.faults.error(&node.span, "GR2503", format!("{} is no step", quote(event)), label);
            return None;
        }
        let name = node.get("name").and_then(Node::text).unwrap_or(event);
        let source = self.source(node, event);
        let workflow_id = self.intern(event, "/workflow_id")?;
        Some(FunnelStep { name: name.to_owned(), source, workflow_id, workflow: self.intern(event, "/workflow")? })
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
            "quantile" => &["covariate", "day", "workflow", "steps", "within"],
            "count" => &["q", "value", "covariate", "day", "workflow", "steps", "within"],
            "rate" | "mean" => &["q", "day", "workflow", "steps", "within"],
            "retention" => &["q", "value", "covariate", "workflow", "steps", "within"],
            "funnel" => &["event", "where", "value", "q", "unit", "better", "baseline", "covariate", "day"],
            _ => &[],
        };
        for key in useless.iter().filter(|k| self.entry.value.get(k).is_some()) {
            self.fault(key, "GR2503", &format!("a {kind} has no `{key}`"), "remove it");
        }
    }

    fn source(&mut self, section: &Node, event: &str) -> Source {
        Source { event: event.to_owned(), filter: self.filter(section, event) }
    }

    /// The `where` of a metric or step; values that are no scalars have been reported.
    fn filter(&mut self, section: &Node, event: &str) -> Vec<(FieldId, Match)> {
        let mut filter = Vec::new();
        for condition in section.get("where").map_or(&[][..], Node::entries) {
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
