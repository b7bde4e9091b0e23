//! OTLP logs in JSON: the log records of a request, each flat: `attributes` and `resource` become objects from names to values.

use super::write::{begin, elements, is_number, push};
use crate::ingest::decode::fields::members;
use crate::ingest::decode::json::{Raw, Value};

/// Gives `each` the log records of a valid request as JSON objects.
pub fn records(request: &str, mut each: impl FnMut(&str)) {
    let mut out = String::new();
    list(request, "resourceLogs", |resource_logs| {
        let resource = member(resource_logs, "resource");
        list(resource_logs, "scopeLogs", |scope_logs| {
            list(scope_logs, "logRecords", |record| {
                out.clear();
                flatten(record, resource, &mut out);
                each(&out);
            });
        });
    });
}

/// The objects of a list that is a member of an object.
fn list<'a>(object: &'a str, name: &str, mut each: impl FnMut(&'a str)) {
    if let Value::Array(text) = member(object, name) {
        elements(text, |element| {
            if let Value::Object(text) = element {
                each(text);
            }
        });
    }
}

/// A member of an object; of duplicates the last.
fn member<'a>(object: &'a str, name: &str) -> Value<'a> {
    let mut found = Value::Absent;
    members(object, |key, value| {
        if key.decode() == name {
            found = value;
        }
    });
    found
}

fn flatten(record: &str, resource: Value<'_>, out: &mut String) {
    out.push('{');
    let mut named = false;
    members(record, |key, value| {
        let name = key.decode();
        match (&*name, value) {
            // Zero is how OTLP says that a time is unknown.
            ("timeUnixNano" | "observedTimeUnixNano", Value::Number("0") | Value::String(Raw { text: "0" | "", .. })) => {}
            ("attributes", _) => {}
            (_, Value::Absent) => {}
            ("body", Value::Object(text)) => {
                out.push_str("\"body\":");
                any(text, out);
                out.push(',');
            }
            _ => {
                named |= name == "eventName" && !matches!(value, Value::String(Raw { text: "", .. }));
                if name != "eventName" || named {
                    begin(key, "", out);
                    push(value, out);
                    out.push(',');
                }
            }
        }
    });
    // Before records had a name of their own it was an attribute.
    if !named {
        pairs(record, "attributes", |key, value| {
            if key.decode() == "event.name" && !named {
                named = true;
                out.push_str("\"eventName\":");
                any(value, out);
                out.push(',');
            }
        });
    }
    out.push_str("\"attributes\":");
    flat(record, out);
    out.push_str(",\"resource\":");
    match resource {
        Value::Object(resource) => flat(resource, out),
        _ => out.push_str("{}"),
    }
    out.push('}');
}

/// The pairs of key and value of a list that is a member of an object.
fn pairs<'a>(object: &'a str, name: &str, mut each: impl FnMut(Raw<'a>, &'a str)) {
    list(object, name, |pair| {
        if let (Value::String(key), Value::Object(value)) = (member(pair, "key"), member(pair, "value")) {
            each(key, value);
        }
    });
}

fn flat(object: &str, out: &mut String) {
    let mut separator = "{";
    pairs(object, "attributes", |key, value| {
        separator = begin(key, separator, out);
        any(value, out);
    });
    out.push_str(if separator == "{" { "{}" } else { "}" });
}

/// An `AnyValue` as plain JSON.
fn any(value: &str, out: &mut String) {
    let mut written = false;
    members(value, |key, inner| {
        if std::mem::replace(&mut written, true) {
            return;
        }
        match (&*key.decode(), inner) {
            // 64 bits are written as text in OTLP's JSON.
            ("intValue", Value::String(raw)) if is_number(raw.text) => out.push_str(raw.text),
            ("arrayValue", Value::Object(text)) => {
                let mut separator = '[';
                list(text, "values", |element| {
                    out.push(separator);
                    any(element, out);
                    separator = ',';
                });
                out.push_str(if separator == '[' { "[]" } else { "]" });
            }
            ("kvlistValue", Value::Object(text)) => {
                let mut separator = "{";
                pairs(text, "values", |key, value| {
                    separator = begin(key, separator, out);
                    any(value, out);
                });
                out.push_str(if separator == "{" { "{}" } else { "}" });
            }
            (_, inner) => push(inner, out),
        }
    });
    if !written {
        out.push_str("null");
    }
}
