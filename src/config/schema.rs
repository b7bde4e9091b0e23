//! The table of settings as a JSON Schema (draft-07, which editors understand best), with the defaults of `config/default.yaml`.

use super::keys::{ENDPOINT, Key, ROOT, Shape};
use super::kinds::{FORMS, OF_HTTP, OF_SOME};
use super::layers;
use serde_json::{Map, Value, json};

/// The schema of configuration files, as indented text with a final newline.
pub fn text() -> String {
    let mut schema = section(ROOT, &layers::defaults());
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("guardraild configuration, v1");
    schema["description"] = json!("The daemon's settings: only what differs from the defaults, which config/default.yaml describes.");
    schema["definitions"] = json!({"endpoint": endpoint(), "secret": secret()});
    format!("{schema:#}\n")
}

fn section(keys: &[Key], defaults: &Value) -> Value {
    let property = |key: &Key| {
        let default = &defaults[key.name];
        let mut out = shape(&key.shape, default);
        out["title"] = json!(key.name);
        let range = match key.shape {
            Shape::Span(low, high) | Shape::Size(low, high) => format!(" {low} to {high}."),
            _ => String::new(),
        };
        out["description"] = json!(format!("{}{range}", key.doc));
        // Those of sections stand at their settings.
        if !default.is_null() && !matches!(key.shape, Shape::Section(_)) {
            out["default"] = default.clone();
        }
        (key.name.to_owned(), out)
    };
    let required: Vec<&str> = keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    let properties: Map<String, Value> = keys.iter().map(property).collect();
    let mut out = json!({"type": "object", "additionalProperties": false, "properties": properties});
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    out
}

fn shape(shape_: &Shape, defaults: &Value) -> Value {
    let number = r"([0-9]+(\.[0-9]*)?|\.[0-9]+) *";
    match shape_ {
        Shape::Text => json!({"type": ["string", "number", "boolean"]}),
        Shape::Flag => json!({"type": "boolean"}),
        Shape::Whole(low, high) => json!({"type": "integer", "minimum": low, "maximum": high}),
        Shape::Span(..) => json!({"anyOf": [{"type": "string", "pattern": format!("^{number}(ms|s|m|h|d)$")}, {"const": 0}]}),
        Shape::Size(..) => json!({"type": "string", "pattern": format!("^{number}(KiB|MiB|GiB|kB|MB|GB|B)$")}),
        Shape::Word(words) => json!({"enum": words}),
        Shape::Broker => json!({"type": "string", "pattern": "^.+:[0-9]{1,5}$"}),
        Shape::Url => json!({"type": "string", "pattern": "^https?://"}),
        Shape::Secret => json!({"$ref": "#/definitions/secret"}),
        Shape::SecretOrText => json!({"anyOf": [{"type": ["string", "number", "boolean"]}, {"$ref": "#/definitions/secret"}]}),
        Shape::Properties => json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "object"]}}),
        // A bare text is a list, split at its commas.
        Shape::List(item) => match **item {
            Shape::Section(_) => json!({"type": "array", "items": shape(item, &Value::Null)}),
            _ => json!({"anyOf": [{"type": "array", "items": shape(item, &Value::Null)}, {"type": "string"}]}),
        },
        Shape::MapOf(value) => json!({"type": "object", "additionalProperties": shape(value, &Value::Null)}),
        Shape::Section(keys) => section(keys, defaults),
        Shape::OrNone(inner) => json!({"anyOf": [shape(inner, &Value::Null), {"type": "null"}]}),
        Shape::Endpoint => json!({"$ref": "#/definitions/endpoint"}),
    }
}

fn secret() -> Value {
    let of =
        |kind: &str| json!({"type": "object", "additionalProperties": false, "required": [kind], "properties": {kind: {"type": "string"}}});
    let description =
        "Where the secret is kept: a file, an environment variable, or a systemd credential. A secret itself is never written here.";
    json!({"description": description, "anyOf": [of("file"), of("env"), of("credential")]})
}

/// All settings of endpoints, and for each kind which it needs, and which mean nothing to it.
fn endpoint() -> Value {
    let mut out = section(ENDPOINT, &Value::Null);
    let properties = out["properties"].as_object_mut().into_iter().flatten();
    for (key, property) in properties.filter(|(key, _)| OF_SOME.contains(&key.as_str())) {
        let has = |form: &&super::kinds::Form| form.needs.contains(&key.as_str()) || form.takes.contains(&key.as_str());
        let kinds: Vec<&str> = FORMS.iter().filter(has).map(|form| form.name).collect();
        let doc = property["description"].as_str().unwrap_or_default();
        property["description"] = json!(format!("{doc} Of {}.", kinds.join(", ")));
    }
    let rule = |form: &super::kinds::Form| {
        let strange = OF_SOME.iter().filter(|key| !form.needs.contains(key) && !form.takes.contains(key));
        let strange = strange.chain(OF_HTTP.iter().filter(|_| !form.kind.speaks_http()));
        let without: Map<String, Value> = strange.map(|key| ((*key).to_owned(), json!(false))).collect();
        json!({"if": {"properties": {"kind": {"const": form.name}}, "required": ["kind"]}, "then": {"required": form.needs, "properties": without}})
    };
    out["allOf"] = FORMS.iter().map(rule).collect();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `GUARDRAILD_UPDATE=1 cargo test --lib config::schema` writes the file anew.
    #[test]
    fn the_committed_schema_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/schemas/config.v1.schema.json");
        if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
            std::fs::write(path, text()).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap_or_default() == text(), "run this test with GUARDRAILD_UPDATE=1");
    }

    #[test]
    fn defaults_are_those_of_the_file() {
        let schema: Value = serde_json::from_str(&text()).unwrap();
        let at = |pointer: &str| schema.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/properties/engine/properties/pane/default"), json!("1s"));
        assert_eq!(at("/properties/engine/properties/shared_cause/properties/experiments/default"), json!(3));
        assert_eq!(at("/properties/kafka/properties/topics/properties/events/default"), json!(["experiment.events"]));
        assert_eq!(at("/properties/state_dir/default"), json!("guardraild-state"));
    }
}
