//! Applies a source to a record: canonical JSON out.

use super::otlp;
use crate::engine::outcome::Reject;
use crate::ingest::decode::fields::{find, members};
use crate::ingest::decode::json::{Raw, Scanner, Value, number};
use crate::mapping::condition::{Expression, Functions, Scope};
use crate::mapping::{Attributes, Constant, Format, From, Kind, Layout, Member, Source};
use cel::objects::{Key, Map};
use smallvec::SmallVec;
use std::sync::Arc;

/// Writes the canonical events that records stand for. One for each thread.
pub struct Mapper {
    functions: Functions,
    max_depth: usize,
    /// The events of the last record, one after the other, and where each ends.
    out: String,
    ends: Vec<usize>,
}

/// What a source's pointers found in a record.
type Found<'a> = SmallVec<[Value<'a>; 16]>;

impl Mapper {
    /// `max_depth`: deeper records are `too_large`.
    pub fn new(max_depth: usize) -> Mapper {
        Mapper { functions: Functions::default(), max_depth: max_depth.min(128), out: String::new(), ends: Vec::new() }
    }

    /// An event of the last record, by its index; none after a record that was refused.
    pub fn event(&self, index: usize) -> Option<&str> {
        let start = if index == 0 { 0 } else { *self.ends.get(index - 1)? };
        self.out.get(start..*self.ends.get(index)?)
    }

    /// Writes the events that a record stands for; there may be none. An array stands for its elements.
    ///
    /// # Errors
    /// Why it is no record: not JSON, too deep, or no object.
    pub fn map(&mut self, source: &Source, text: &str) -> Result<(), Reject> {
        self.out.clear();
        self.ends.clear();
        let mut scan = Scanner::new(text, self.max_depth);
        scan.space();
        let value = scan.value(0)?;
        scan.space();
        if !scan.at_end() {
            return Err(Reject::NotJson);
        }
        match value {
            Value::Object(text) if source.format == Format::OtlpJson => otlp::records(text, |record| self.one(source, record)),
            Value::Object(text) => self.one(source, text),
            Value::Array(text) => elements(text, |element| {
                if let Value::Object(text) = element {
                    self.one(source, text);
                }
            }),
            _ => return Err(Reject::NotObject),
        }
        Ok(())
    }

    /// Writes the events of one record, a valid JSON object.
    fn one(&mut self, source: &Source, text: &str) {
        let Mapper { functions, out, ends, .. } = self;
        let scope = source.computes().then(|| functions.scope(cel(Value::Object(text))));
        let holds = |condition: &Expression| scope.as_ref().is_some_and(|scope| condition.holds(scope));
        if !source.when.iter().all(holds) {
            return;
        }
        if source.events.is_empty() {
            out.push_str(text);
            return ends.push(out.len());
        }
        let found: Found<'_> = find(text, source.pointers.iter().map(Vec::as_slice));
        for layout in source.events.iter().filter(|layout| layout.when.iter().all(holds)) {
            event(layout, &found, scope.as_ref(), out);
            ends.push(out.len());
        }
    }
}

fn event(layout: &Layout, found: &Found<'_>, scope: Option<&Scope<'_>>, out: &mut String) {
    out.push('{');
    let mut separator = "";
    for member in &layout.members {
        separator = write(member, found, scope, separator, out);
    }
    match &layout.attributes {
        Attributes::Each(attributes) if attributes.is_empty() => {}
        Attributes::Each(attributes) => {
            out.push_str(separator);
            out.push_str("\"attributes\":{");
            let mut inner = "";
            for attribute in attributes {
                inner = write(attribute, found, scope, inner, out);
            }
            out.push('}');
            separator = ",";
        }
        Attributes::Of(at) => {
            if let Value::Object(text) = found[*at] {
                out.push_str(separator);
                scalars(text, out);
                separator = ",";
            }
        }
    }
    if let Some(Value::Object(text)) = layout.rest.map(|at| found[at]) {
        let has_attributes = !matches!(&layout.attributes, Attributes::Each(attributes) if attributes.is_empty());
        members(text, |key, value| {
            let name = key.decode();
            let taken = layout.members.iter().any(|m| m.name == name) || has_attributes && name == "attributes";
            if !taken {
                separator = begin(key, separator, out);
                push(value, out);
            }
        });
    }
    out.push('}');
}

/// The scalars of an object as attributes: texts.
fn scalars(text: &str, out: &mut String) {
    out.push_str("\"attributes\":{");
    let mut separator = "";
    members(text, |key, value| {
        if matches!(value, Value::Bool(_) | Value::Number(_) | Value::String(_)) {
            separator = begin(key, separator, out);
            convert(value, Kind::Text, out);
        }
    });
    out.push('}');
}

/// Writes a key; returns what must stand before the next one.
pub fn begin(key: Raw<'_>, separator: &str, out: &mut String) -> &'static str {
    for part in [separator, "\"", key.text, "\":"] {
        out.push_str(part);
    }
    ","
}

/// Writes a value as it was.
pub fn push(value: Value<'_>, out: &mut String) {
    match value {
        Value::Absent => out.push_str("null"),
        Value::Bool(b) => out.push_str(if b { "true" } else { "false" }),
        Value::Number(text) | Value::Object(text) | Value::Array(text) => out.push_str(text),
        Value::String(raw) => {
            for part in ["\"", raw.text, "\""] {
                out.push_str(part);
            }
        }
    }
}

/// Writes a field, if it has a value; returns what must stand before the next one.
fn write<'s>(member: &Member, found: &Found<'_>, scope: Option<&Scope<'_>>, separator: &'s str, out: &mut String) -> &'s str {
    let key = |out: &mut String| {
        out.push_str(separator);
        out.push_str(&member.key);
    };
    let constant = |constant: &Constant, out: &mut String| {
        key(out);
        out.push_str(&constant.0);
    };
    match &member.from {
        From::Constant(value) => constant(value, out),
        From::Computed(expression) => {
            let Some(text) = scope.and_then(|scope| expression.value(scope)) else { return separator };
            let Ok(value) = Scanner::new(&text, 1).value(0) else { return separator };
            key(out);
            convert(value, member.kind, out);
        }
        From::Record { pointers, values, otherwise } => {
            let there = |at: &&usize| !matches!(found[**at], Value::Absent | Value::String(Raw { text: "", .. }));
            let value = pointers.iter().find(there).map(|at| found[*at]);
            match (value, value.and_then(|value| values.get(&*plain(value)?)), otherwise) {
                (_, Some(renamed), _) => constant(renamed, out),
                (Some(_), None, Some(otherwise)) if !values.is_empty() => constant(otherwise, out),
                (Some(value), None, _) => {
                    key(out);
                    convert(value, member.kind, out);
                }
                (None, None, Some(otherwise)) => constant(otherwise, out),
                (None, None, None) => return separator,
            }
        }
    }
    ","
}

/// A scalar as text.
fn plain(value: Value<'_>) -> Option<std::borrow::Cow<'_, str>> {
    match value {
        Value::Bool(b) => Some(if b { "true".into() } else { "false".into() }),
        Value::Number(text) => Some(text.into()),
        Value::String(raw) => Some(raw.decode()),
        Value::Absent | Value::Object(_) | Value::Array(_) => None,
    }
}

/// Writes a value as what the field holds; what cannot be that is written as it is, and refused by the decoder.
fn convert(value: Value<'_>, kind: Kind, out: &mut String) {
    use std::fmt::Write as _;
    let numeric = match value {
        Value::Number(text) => Some(text),
        Value::String(Raw { text, escaped: false }) if is_number(text) => Some(text),
        _ => None,
    };
    let written = match (kind, value, numeric) {
        (Kind::Text, Value::Number(text), _) => write!(out, "\"{text}\""),
        (Kind::Text, Value::Bool(b), _) => write!(out, "\"{b}\""),
        (Kind::Time { nanos }, _, Some(text)) => write!(out, "{}", millis(text, nanos)),
        (Kind::Number { factor }, _, Some(text)) if factor != 1.0 && number(text).is_finite() => write!(out, "{}", number(text) * factor),
        (Kind::Number { .. }, _, Some(text)) => write!(out, "{text}"),
        _ => return push(value, out),
    };
    // Writing to a text cannot fail.
    debug_assert!(written.is_ok());
}

/// A number of units of `nanos` each, in whole milliseconds.
fn millis(text: &str, nanos: i64) -> i128 {
    match text.parse::<i64>() {
        Ok(n) => (i128::from(n) * i128::from(nanos)).div_euclid(1_000_000),
        Err(_) => (number(text) * (nanos as f64 / 1e6)).round() as i128,
    }
}

pub fn is_number(text: &str) -> bool {
    matches!(Scanner::new(text, 1).value(0), Ok(Value::Number(whole)) if whole.len() == text.len())
}

/// The elements of a valid array.
pub fn elements<'a>(text: &'a str, mut each: impl FnMut(Value<'a>)) {
    // It has been read once, within its bounds: it cannot fail.
    let _ = Scanner::new(text, usize::MAX).array(0, |_, value| each(value));
}

/// A value as expressions see it.
fn cel(value: Value<'_>) -> cel::Value {
    match value {
        Value::Absent => cel::Value::Null,
        Value::Bool(b) => cel::Value::Bool(b),
        Value::Number(text) => text.parse().map_or_else(|_| cel::Value::Float(number(text)), cel::Value::Int),
        Value::String(raw) => cel::Value::String(Arc::new(raw.decode().into_owned())),
        Value::Array(text) => {
            let mut list = Vec::new();
            elements(text, |element| list.push(cel(element)));
            cel::Value::List(Arc::new(list))
        }
        Value::Object(text) => {
            // Its order is never seen: expressions have no loops.
            let mut pairs = Vec::new();
            members(text, |key, value| pairs.push((Key::String(Arc::new(key.decode().into_owned())), cel(value))));
            cel::Value::Map(Map { map: Arc::new(pairs.into_iter().collect()) })
        }
    }
}
