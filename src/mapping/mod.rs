//! Sources: how records of a foreign layout stand for canonical events, checked and compiled once.
//!
//! `rules` makes a [`Source`] of YAML; `ingest::mapped` applies it to records. What is here holds no state and does no I/O.

pub mod condition;
pub mod presets;

use condition::Expression;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How the records of some topics are read.
#[derive(Debug)]
pub struct Source {
    pub name: String,
    pub topics: Vec<String>,
    pub format: Format,
    /// Records for which one is not true stand for nothing.
    pub when: Vec<Expression>,
    /// What `events` read of a record: JSON Pointers (RFC 6901) as tokens, each once.
    pub pointers: Vec<Vec<String>>,
    /// What one record stands for, in this order. None: a record is a canonical event.
    pub events: Vec<Layout>,
    /// The definition as it was written: two of one name must be alike.
    pub definition: serde_json::Value,
}

impl Source {
    /// Whether any of its expressions looks at the record.
    pub fn computes(&self) -> bool {
        let computed = |member: &Member| matches!(member.from, From::Computed(_));
        let computes = |layout: &Layout| {
            let attributes = if let Attributes::Each(members) = &layout.attributes { &members[..] } else { &[] };
            layout.when.is_some() || layout.members.iter().chain(attributes).any(computed)
        };
        !self.when.is_empty() || self.events.iter().any(computes)
    }
}

/// What the bytes of a record are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Json,
    /// OTLP logs in JSON: each log record of the request is a record of its own.
    OtlpJson,
    /// Confluent's wire format: a schema id, then Avro, Protobuf, or JSON.
    Avro,
    Protobuf,
    JsonSchema,
}

impl Format {
    pub const NAMES: &[&str] = &["json", "otlp_json", "avro", "protobuf", "json_schema"];

    pub fn named(name: &str) -> Option<Format> {
        let all = [Format::Json, Format::OtlpJson, Format::Avro, Format::Protobuf, Format::JsonSchema];
        all.into_iter().find(|format| format.name() == name)
    }

    pub fn name(self) -> &'static str {
        Format::NAMES[self as usize]
    }

    /// Whether its records begin with the id of a schema.
    pub fn has_schema(self) -> bool {
        matches!(self, Format::Avro | Format::Protobuf | Format::JsonSchema)
    }
}

/// One canonical event that a record stands for.
#[derive(Debug)]
pub struct Layout {
    pub when: Option<Expression>,
    pub members: Vec<Member>,
    pub attributes: Attributes,
    /// The object at this pointer gives whatever else it has.
    pub rest: Option<usize>,
}

#[derive(Debug)]
pub struct Member {
    pub name: String,
    /// The name as JSON text, with its colon.
    pub key: String,
    pub kind: Kind,
    pub from: From,
}

impl Member {
    pub fn new(name: &str, kind: Kind, from: From) -> Member {
        Member { name: name.to_owned(), key: format!("{}:", serde_json::Value::from(name)), kind, from }
    }
}

/// The attributes of the event.
#[derive(Debug)]
pub enum Attributes {
    Each(Vec<Member>),
    /// The scalars of the object at this pointer.
    Of(usize),
}

/// What a canonical field holds, and so what is made of a foreign value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Numbers and booleans are written as text.
    Text,
    /// Event time: numbers count so many nanoseconds each since the epoch; any other text is left as it is (RFC 3339).
    Time { nanos: i64 },
    /// Multiplied by this; a text that is a number is one.
    Number { factor: f64 },
    /// As it is.
    Any,
}

/// Where a value comes from.
#[derive(Debug)]
pub enum From {
    Constant(Constant),
    /// The first of these pointers that holds something; `values` renames, and what they do not name is `otherwise`, or as it is.
    Record {
        pointers: Vec<usize>,
        values: BTreeMap<String, Constant>,
        otherwise: Option<Constant>,
    },
    Computed(Expression),
}

/// A scalar as JSON text.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant(pub String);

/// The sources of all topics; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sources(Arc<[Arc<Source>]>);

impl Sources {
    pub fn new(sources: Vec<Arc<Source>>) -> Sources {
        Sources(sources.into())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.0.iter()
    }

    pub fn named(&self, name: &str) -> Option<&Arc<Source>> {
        self.iter().find(|source| source.name == name)
    }

    /// The source of a topic, if it has one.
    pub fn of(&self, topic: &str) -> Option<&Arc<Source>> {
        self.iter().find(|source| source.topics.iter().any(|t| t == topic))
    }

    /// All topics that sources read, in the order of the sources' names.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.iter().flat_map(|source| source.topics.iter().map(String::as_str))
    }
}
