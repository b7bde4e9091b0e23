//! The key tables as a JSON Schema (draft-07, which editors understand best).

use super::keys::{Key, ROOT, Section, Shape};
use super::shape::MAX_NAME;
use serde_json::{Map, Value, json};

/// The schema of rule files.
pub fn json_schema() -> Value {
    let mut schema = section(&ROOT);
    let head = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "guardraild rule file, v1",
        "description": "One experiment: its buckets, what must not get worse, and what happens if it does.",
    });
    if let (Value::Object(schema), Value::Object(head)) = (&mut schema, head) {
        schema.extend(head);
    }
    schema
}

/// [`json_schema`] as indented text with a final newline: what `guardraild schema` prints.
pub fn text() -> String {
    let mut text = format!("{:#}", json_schema());
    text.push('\n');
    text
}

fn section(section: &Section) -> Value {
    let properties: Map<String, Value> = section.keys.iter().map(|k| (k.name.to_owned(), property(k))).collect();
    let required: Vec<&str> = section.keys.iter().filter(|k| k.required).map(|k| k.name).collect();
    let mut out = json!({"type": "object", "additionalProperties": false, "properties": properties});
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    out
}

fn property(key: &Key) -> Value {
    let mut out = shape(&key.shape);
    out["title"] = json!(key.name);
    out["description"] = json!(key.doc);
    if !key.example.is_empty()
        && let Ok(example) = super::yaml::parse(key.example)
    {
        out["examples"] = json!([example.to_json()]);
    }
    out
}

fn shape(shape_: &Shape) -> Value {
    let text = |pattern: &str| json!({"type": "string", "pattern": pattern});
    match shape_ {
        Shape::Any => json!({}),
        Shape::Scalar | Shape::Text => json!({"type": ["string", "number", "boolean"]}),
        Shape::Name => name(),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int(least) => json!({"type": "integer", "minimum": least, "maximum": u32::MAX}),
        Shape::Probability => json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
        Shape::Percent => json!({"anyOf": [text(r"^(100(\.0*)?|[0-9]{1,2}(\.[0-9]*)?|\.[0-9]+) *%$"), {"const": 0}]}),
        Shape::Duration => text(r"^([0-9]+(\.[0-9]*)?|\.[0-9]+) *(us|ms|s|m|min|h|d|w)$"),
        Shape::Quantity => {
            json!({"anyOf": [text(r"^([0-9]+(\.[0-9]*)?|\.[0-9]+) *(%|pp|us|ms|s|m|min|h|d|w)$"), {"type": "number", "minimum": 0}]})
        }
        Shape::Frequency => text(r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)[kM]? */ *(s|second|m|min|minute|h|hour|d|day|w|week)$"),
        Shape::Timestamp => json!({"type": "string", "format": "date-time"}),
        Shape::Pointer => text(r"^/([^~]|~[01])+$"),
        Shape::Const(word) => json!({"const": word}),
        Shape::Word(words) => json!({"enum": words}),
        Shape::List(item) => json!({"type": "array", "items": shape(item)}),
        Shape::MapOf(value) => {
            json!({"type": "object", "propertyNames": {"minLength": 1, "maxLength": MAX_NAME}, "additionalProperties": shape(value)})
        }
        Shape::Section(inner) => section(inner),
        Shape::NameOr(inner) => json!({"anyOf": [name(), section(inner)]}),
        Shape::OffOr(inner) => json!({"anyOf": [{"const": "off"}, section(inner)]}),
    }
}

/// Names that look like numbers are read as text, as they stand.
fn name() -> Value {
    json!({"type": ["string", "number"], "minLength": 1, "maxLength": MAX_NAME})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `GUARDRAILD_UPDATE=1 cargo test --lib rules::schema` writes the file anew.
    #[test]
    fn the_committed_schema_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/schemas/rule.v1.schema.json");
        if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
            std::fs::write(path, text()).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap() == text(), "run this test with GUARDRAILD_UPDATE=1");
    }

    #[test]
    fn every_object_with_fixed_keys_is_closed() {
        fn walk(value: &Value) {
            if let Some(object) = value.as_object() {
                assert!(!object.contains_key("properties") || object["additionalProperties"] == json!(false), "{value}");
                object.values().for_each(walk);
            }
            if let Some(list) = value.as_array() {
                list.iter().for_each(walk);
            }
        }
        walk(&json_schema());
    }
}
