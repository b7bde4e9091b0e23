//! Templates of requests, in the syntax of Jinja. Pure.

use super::endpoint::Endpoint;
use crate::config::ENDPOINT_TEXTS;
use crate::store::Delivery;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, escape_formatter};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, json};

/// Steps of a template: loops end.
const FUEL: u64 = 100_000;
/// Bytes of what a template makes.
const LONGEST: usize = 256 << 10;
/// Characters of a comment; GrowthBook takes no longer one.
const COMMENT: usize = 200;

const KEPT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why a message can never be sent to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

impl Unfit {
    /// A value that neither rule nor endpoint gives.
    pub(super) fn unknown(key: &str) -> Unfit {
        Unfit(format!("no `{key}` is known: it belongs into the endpoint, or the body of the rule's action"))
    }
}

/// What values become in a template's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// Percent-encoded: a value stays within its segment.
    Address,
    /// Each value is JSON, a text with its quotation marks.
    Json,
    Form,
    Plain,
}

impl Text {
    /// As a body's content type asks for.
    pub(super) fn of(content_type: &str) -> Text {
        match content_type.split(';').next().unwrap_or_default().trim() {
            form if form.eq_ignore_ascii_case("application/x-www-form-urlencoded") => Text::Form,
            json if json.ends_with("json") => Text::Json,
            _ => Text::Plain,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Text::Address => "url",
            Text::Json => "json",
            Text::Form => "form",
            Text::Plain => "text",
        }
    }
}

/// What templates know: the message, and which flag, environment … it is about.
pub(super) fn values(endpoint: &Endpoint, delivery: &Delivery) -> Map<String, serde_json::Value> {
    let message: serde_json::Value = serde_json::from_str(&delivery.payload).unwrap_or_default();
    let mut values = Map::new();
    for key in ENDPOINT_TEXTS {
        if let Some(text) = value(endpoint, &message["data"], key) {
            values.insert(key.to_owned(), text.into());
        }
    }
    let data = &message["data"];
    let word = |key: &str| data[key].as_str().unwrap_or_default();
    let comment = format!("guardraild {}: {}", word("decision"), word("reason"));
    values.insert("comment".into(), comment.chars().take(COMMENT).collect::<String>().into());
    for (name, value) in [("id", json!(delivery.id)), ("type", json!(delivery.event_type)), ("data", data.clone())] {
        values.insert(name.into(), value);
    }
    values.insert("message".into(), message);
    values
}

/// The rule's own body decides, then the endpoint, then the rule's `instrumentation.flag`.
fn value(endpoint: &Endpoint, data: &serde_json::Value, key: &str) -> Option<String> {
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let of_rule = match key {
        "flag" => &data["flag"]["name"],
        "serve" => &data["flag"]["default"],
        _ => &serde_json::Value::Null,
    };
    text(&data["body"][key]).or_else(|| endpoint.texts.get(key).cloned()).or_else(|| text(of_rule))
}

/// The text that a template makes of values. A value that is not there is an error.
pub(super) fn render(source: &str, kind: Text, values: &Map<String, serde_json::Value>) -> Result<String, Unfit> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|name| match name {
        "url" | "form" => AutoEscape::Custom(name.to_owned().into()),
        "json" => AutoEscape::Json,
        _ => AutoEscape::None,
    });
    environment.set_formatter(|out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value| match state.auto_escape() {
        AutoEscape::Custom(name) => percent(out, name == "url", value),
        _ => escape_formatter(out, state, value),
    });
    let made = environment.render_named_str(kind.name(), source, Serde(values));
    let text = made.map_err(|e| Unfit(format!("the template of its {} does not fit: {}", kind.name(), detail(&e))))?;
    if text.len() > LONGEST {
        return Err(Unfit(format!("its {} would have more than {LONGEST} bytes", kind.name())));
    }
    if kind == Text::Json && !text.is_empty() && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_err() {
        return Err(Unfit("its template does not make JSON; a value brings its own quotation marks".into()));
    }
    Ok(text)
}

/// Dots and nothing would lead to another address than the template's.
fn percent(out: &mut Output<'_>, address: bool, value: &Value) -> Result<(), Error> {
    let text = value.to_string();
    if address && (value.is_none() || matches!(text.as_str(), "" | "." | "..")) {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("{text:?} cannot be part of an address")));
    }
    write!(out, "{}", utf8_percent_encode(&text, &KEPT)).map_err(Error::from)
}

/// Whether an answer means success: an expression of its `status`, its `answer` (JSON, else text), and the values of the request.
pub(super) fn holds(expression: &str, status: u16, answer: &[u8], values: &Map<String, serde_json::Value>) -> Result<bool, Unfit> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_fuel(Some(FUEL));
    let mut values = values.clone();
    let text = || json!(String::from_utf8_lossy(answer).trim());
    values.insert("answer".into(), serde_json::from_slice(answer).unwrap_or_else(|_| text()));
    values.insert("status".into(), status.into());
    let told = environment.compile_expression(expression).and_then(|e| e.eval(Serde(values)));
    told.map(|value| value.is_true()).map_err(|e| Unfit(format!("`success` does not fit: {}", detail(&e))))
}

fn detail(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: serde_json::Value) -> Map<String, serde_json::Value> {
        json.as_object().cloned().unwrap()
    }

    #[test]
    fn values_stay_in_their_place() {
        let values = of(json!({"flag": "a/b?c d", "text": "say \"no\"\n", "list": [1, null]}));
        assert_eq!(render("https://x/{{ flag }}/off", Text::Address, &values).unwrap(), "https://x/a%2Fb%3Fc%20d/off");
        assert_eq!(
            render(r#"{"t": {{ text }}, "l": {{ list }}}"#, Text::Json, &values).unwrap(),
            r#"{"t": "say \"no\"\n", "l": [1,null]}"#
        );
        assert_eq!(render("a={{ text }}", Text::Form, &values).unwrap(), "a=say%20%22no%22%0A");
        assert_eq!(render("{{ text }}", Text::Plain, &values).unwrap(), "say \"no\"\n");
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let fault = |source: &str, kind| render(source, kind, &of(json!({"up": "..", "empty": "", "null": null}))).unwrap_err().0;
        assert!(fault("/{{ up }}/x", Text::Address).contains("cannot be part of an address"));
        assert!(fault("/{{ empty }}/x", Text::Address).contains("cannot be part of an address"));
        assert!(fault("/{{ null }}/x", Text::Address).contains("cannot be part of an address"));
        assert!(fault("{{ data.body.flag }}", Text::Plain).contains("undefined"), "{}", fault("{{ data.body.flag }}", Text::Plain));
        assert!(fault("{\"a\": \"{{ up }}\"}", Text::Json).contains("does not make JSON"));
        assert!(fault("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", Text::Plain).contains("fuel"));
    }

    #[test]
    fn success_is_an_expression_of_the_answer() {
        let holds =
            |expression: &str, answer: &str| holds(expression, 200, answer.as_bytes(), &of(json!({"environment": "prod"}))).unwrap();
        assert!(holds("status == 200", ""));
        assert!(holds("answer == 'ok'", "ok\n") && !holds("answer == 'ok'", "no"));
        let on = "not answer.environments[environment].on";
        assert!(holds(on, r#"{"environments":{"prod":{"on":false}}}"#) && !holds(on, r#"{"environments":{"prod":{"on":true}}}"#));
        assert!(holds(on, "<html>"), "what is not told is not held against it");
        assert!(!holds("answer.ok", "<html>"));
    }
}
