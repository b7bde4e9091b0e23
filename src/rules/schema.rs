//! The key tables as a JSON Schema (draft-07, which editors understand best).

use super::keys::{EVENT, FIELD, Key, ROOT, SOURCES, Section, Shape};
use super::shape::MAX_NAME;
use serde_json::{Map, Value, json};

/// What a file may hold.
#[derive(Clone, Copy, Debug)]
pub enum File {
    /// An experiment.
    Rule,
    /// Sources alone.
    Sources,
}

/// The schema of files.
pub fn json_schema(file: File) -> Value {
    match file {
        File::Rule => of(&ROOT, "rule file", "One experiment: its buckets, what must not get worse, and what happens if it does."),
        File::Sources => of(&SOURCES, "file of sources", "How topics are read whose records are not canonical events."),
    }
}

/// The schema of files whose root is this section.
pub(crate) fn of(root: &'static Section, title: &str, description: &str) -> Value {
    let mut schema = section(root);
    let head = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": format!("guardraild {title}, v1"),
        "description": description,
    });
    if let (Value::Object(schema), Value::Object(head)) = (&mut schema, head) {
        schema.extend(head);
    }
    // They refer to each other: all, or none.
    if schema.to_string().contains("#/definitions/") {
        schema["definitions"] = SHARED.iter().map(|(name, shared)| ((*name).to_owned(), section(shared))).collect();
    }
    schema
}

/// Sections that stand in so many places that they are written once.
const SHARED: &[(&str, &Section)] = &[("event", &EVENT), ("field", &FIELD)];

/// [`json_schema`] as indented text with a final newline: what `guardraild schema` prints.
pub fn text(file: File) -> String {
    let mut text = format!("{:#}", json_schema(file));
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
        Shape::OneOrList(item) => json!({"anyOf": [shape(item), {"type": "array", "items": shape(item), "minItems": 1}]}),
        Shape::MapOf(value) => {
            json!({"type": "object", "propertyNames": {"minLength": 1, "maxLength": MAX_NAME}, "additionalProperties": shape(value)})
        }
        Shape::Section(inner) => inside(inner),
        Shape::NameOr(inner) => json!({"anyOf": [name(), inside(inner)]}),
        Shape::OffOr(inner) => json!({"anyOf": [{"const": "off"}, section(inner)]}),
        Shape::Pointers => pointers(),
        Shape::PointersOr(inner) => json!({"anyOf": [pointers(), inside(inner)]}),
        Shape::PointerOrMapOf(value) => json!({"anyOf": [shape(&Shape::Pointer), shape(&Shape::MapOf(value))]}),
    }
}

/// A section, or where it is written.
fn inside(inner: &'static Section) -> Value {
    match SHARED.iter().find(|(_, shared)| std::ptr::eq(*shared, inner)) {
        Some((name, _)) => json!({"$ref": format!("#/definitions/{name}")}),
        None => section(inner),
    }
}

fn pointers() -> Value {
    json!({"anyOf": [shape(&Shape::Pointer), {"type": "array", "items": shape(&Shape::Pointer), "minItems": 1}]})
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
    fn the_committed_schemas_are_up_to_date() {
        for (file, name) in [(File::Rule, "rule"), (File::Sources, "sources")] {
            let path = format!("{}/config/schemas/{name}.v1.schema.json", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
                std::fs::write(&path, text(file)).unwrap();
            }
            assert!(std::fs::read_to_string(&path).unwrap_or_default() == text(file), "run this test with GUARDRAILD_UPDATE=1");
        }
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
        walk(&json_schema(File::Rule));
        walk(&json_schema(File::Sources));
    }
}
