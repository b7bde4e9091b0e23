//! Sources: how records of foreign layouts are read. Of a rule file's `instrumentation.sources`, or of a file that holds nothing else.

use super::diagnostic::{Faults, quote};
use super::keys;
use super::shape::check_section;
use super::yaml::{self, Entry, Kind, Node};
use crate::mapping::condition::Expression;
use crate::mapping::{self, Attributes, Constant, Format, From, Layout, Member, Source, presets};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Events that one record may stand for, and topics of a source, at most.
const MAX_EVENTS: usize = 16;
const MAX_TOPICS: usize = 16;

/// A source, and where its name stands.
#[derive(Clone, Debug)]
pub struct Found {
    pub source: Arc<Source>,
    pub span: Range<usize>,
}

/// Every source of the section that is well defined; the faults of the others are reported.
pub fn read(section: Option<&Node>, faults: &mut Faults) -> Vec<Found> {
    let entries = section.map_or(&[][..], Node::entries);
    entries.iter().filter_map(|entry| Some(Found { source: Arc::new(source(entry, faults)?), span: entry.key_span.clone() })).collect()
}

fn source(entry: &Entry, faults: &mut Faults) -> Option<Source> {
    let node = &entry.value;
    let mut reader = Reader { faults, pointers: Vec::new() };
    let before = reader.faults.errors();
    let topics = reader.topics(node.get("topics")?);
    let preset = node.get("preset").and_then(|n| Some((n, preset(n.text()?)?)));
    let given = node.get("events");
    if let (Some((at, _)), Some(_)) = (&preset, given) {
        let fault = reader.faults.at(&at.span, "GR2701", "a preset and events of its own").with_label("one of the two");
        reader.faults.push(fault.with_help("fields that differ from the preset go under `every_event`"));
    }
    let every = node.get("every_event");
    if let Some(at) = every.and_then(|e| e.get("when")) {
        reader.faults.error(&at.span, "GR2701", "`every_event` has no condition", "move it to the source's own `when`");
    }
    let format = |n: &Node| n.get("format").and_then(Node::text).and_then(Format::named);
    let preset = preset.map(|(_, preset)| preset);
    let when = [preset.as_ref(), Some(node)].into_iter().flatten().filter_map(|n| n.get("when"));
    let when = when.filter_map(|n| reader.expression(n)).collect();
    let events = match (&preset, given) {
        (Some(preset), _) => preset.get("events").map_or(&[][..], Node::list).iter().map(|event| [every, Some(event)]).collect(),
        (None, Some(given)) => given.list().iter().map(|event| [Some(event), every]).collect(),
        (None, None) => every.map(|every| [Some(every), None]).into_iter().collect::<Vec<_>>(),
    };
    if events.len() > MAX_EVENTS || given.is_some_and(Node::is_empty_list) {
        let span = given.map_or(&entry.key_span, |n| &n.span);
        reader.faults.error(span, "GR1008", format!("{} events", events.len()), format!("1 to {MAX_EVENTS} of one record"));
    }
    let events = events.into_iter().map(|layers| reader.layout(layers, entry)).collect();
    let format = format(node).or(preset.as_ref().and_then(format)).unwrap_or_default();
    let pointers = reader.pointers.iter().map(|p| tokens(p)).collect();
    let sound = faults.errors() == before;
    sound.then(|| Source { name: entry.key.clone(), topics, format, when, pointers, events, definition: node.to_json() })
}

/// The definition of a preset.
fn preset(name: &str) -> Option<Node> {
    let (_, text) = presets::PRESETS.iter().find(|(known, _)| *known == name)?;
    yaml::parse(text).ok()
}

/// The path of a JSON Pointer.
fn tokens(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~")).collect()
}

/// What each canonical field holds.
fn kind(name: &str) -> mapping::Kind {
    match name {
        "ts" => mapping::Kind::Time { nanos: 1_000_000 },
        "latency_ms" | "value" | "covariate" => mapping::Kind::Number { factor: 1.0 },
        "error" | "phase" | "weights" => mapping::Kind::Any,
        _ => mapping::Kind::Text,
    }
}

struct Reader<'f> {
    faults: &'f mut Faults,
    pointers: Vec<String>,
}

impl Reader<'_> {
    fn topics(&mut self, node: &Node) -> Vec<String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if node.is_empty_list() || node.list().len() > MAX_TOPICS {
            self.faults.error(&node.span, "GR1008", format!("{} topics", node.list().len()), format!("1 to {MAX_TOPICS} of a source"));
        }
        for topic in node.list() {
            let sound = |text: &str| (1..=249).contains(&text.len()) && text.chars().all(legal) && text != "." && text != "..";
            if topic.text().is_some_and(|text| !sound(text)) {
                self.faults.error(&topic.span, "GR1009", "not the name of a topic", "letters, digits, `.`, `_`, `-`; at most 249");
            }
        }
        node.list().iter().filter_map(|n| n.text().map(str::to_owned)).collect()
    }

    fn expression(&mut self, node: &Node) -> Option<Expression> {
        let text = node.text()?;
        match Expression::compile(text) {
            Ok(expression) => Some(expression),
            Err(fault) => {
                // Quotes stand before the text; of a text over several lines only the whole place is known.
                let quotes = (node.span.len().saturating_sub(text.len())) / 2;
                let exact = node.span.len() == text.len() + 2 * quotes && quotes <= 1;
                let start = node.span.start + quotes + fault.at.min(text.len().saturating_sub(1));
                let span = if exact { start..start + 1 } else { node.span.clone() };
                let help = "https://cel.dev; the record is `record`, for example `record.type == 'track' && has(record.userId)`";
                let found = self.faults.at(&span, "GR2702", "not an expression in CEL").with_label(fault.message).with_help(help);
                self.faults.push(found);
                None
            }
        }
    }

    /// An event whose fields come from the first layer that has them.
    fn layout(&mut self, layers: [Option<&Node>; 2], source: &Entry) -> Layout {
        let get = |name: &str| layers.iter().flatten().find_map(|layer| layer.get(name));
        let mut members = Vec::new();
        for key in keys::EVENT.keys.iter().map(|key| key.name).filter(|k| !matches!(*k, "when" | "attributes" | "fields")) {
            members.extend(get(key).and_then(|node| self.member(key, node, kind(key))));
        }
        let further = get("fields");
        let rest = further.and_then(|node| self.pointer(node));
        for entry in further.map_or(&[][..], Node::entries) {
            if keys::EVENT.keys.iter().any(|key| key.name == entry.key) {
                let label = format!("write `{}` beside `fields`", entry.key);
                self.faults.error(&entry.key_span, "GR2701", format!("{} is a field of its own", quote(&entry.key)), label);
            }
            members.extend(self.member(&entry.key, &entry.value, mapping::Kind::Any));
        }
        if rest.is_none() {
            self.needed(layers, source);
        }
        let attributes = match get("attributes") {
            Some(node) if node.text().is_some() => self.pointer(node).map_or(Attributes::Each(Vec::new()), Attributes::Of),
            node => {
                let entries = node.map_or(&[][..], Node::entries);
                Attributes::Each(entries.iter().filter_map(|e| self.member(&e.key, &e.value, mapping::Kind::Text)).collect())
            }
        };
        let when = layers.into_iter().flatten().filter_map(|layer| layer.get("when")).next().and_then(|node| self.expression(node));
        Layout { when, members, attributes, rest }
    }

    /// What every record would be refused for is said here instead.
    fn needed(&mut self, layers: [Option<&Node>; 2], source: &Entry) {
        let get = |name: &str| layers.iter().flatten().find_map(|layer| layer.get(name));
        let name = get("event").and_then(Node::text);
        let needed: &[&str] = match name {
            Some("exposure") => &["event", "ts", "tenant_id", "user_id", "experiment", "bucket"],
            Some("phase") => &["event", "ts", "experiment", "phase", "weights"],
            Some("annotation") => &["event", "ts", "experiment", "text"],
            Some("outcome") => &["event", "ts", "metric", "value"],
            Some("compliance_flag") => &["event", "ts", "flag"],
            Some("workflow_started" | "workflow_completed" | "workflow_abandoned") => &["event", "ts", "workflow", "workflow_id"],
            _ => &["event", "ts"],
        };
        let missing: Vec<String> = needed.iter().filter(|key| get(key).is_none()).map(|key| format!("`{key}`")).collect();
        if !missing.is_empty() {
            let span = layers[0].map_or(&source.key_span, |n| &n.span);
            let what = name.map_or("an event".to_owned(), |name| format!("the event {}", quote(name)));
            let fault = self.faults.at(span, "GR1003", format!("{what} needs {}", missing.join(", ")));
            self.faults.push(fault.with_label("each record would be refused: missing_field"));
        }
    }

    /// The index of the pointer that is the whole text of a node.
    fn pointer(&mut self, node: &Node) -> Option<usize> {
        let text = node.text().filter(|text| super::shape::is_pointer(text))?;
        let at = self.pointers.iter().position(|known| known == text);
        Some(at.unwrap_or_else(|| {
            self.pointers.push(text.to_owned());
            self.pointers.len() - 1
        }))
    }

    fn member(&mut self, name: &str, node: &Node, kind: mapping::Kind) -> Option<Member> {
        let from = match &node.kind {
            Kind::Map(_) => return self.described(name, node, kind),
            Kind::List(nodes) => self.record(nodes),
            // The name of an event may be given as it is.
            Kind::Scalar { .. } if name == "event" && !node.text()?.starts_with('/') => From::Constant(constant(node, kind)?),
            Kind::Scalar { .. } => self.record(std::slice::from_ref(node)),
        };
        Some(Member::new(name, kind, from))
    }

    fn record(&mut self, nodes: &[Node]) -> From {
        let pointers = nodes.iter().filter_map(|node| self.pointer(node)).collect();
        From::Record { pointers, values: BTreeMap::new(), otherwise: None }
    }

    /// A field that is described by a section.
    fn described(&mut self, name: &str, node: &Node, kind: mapping::Kind) -> Option<Member> {
        let given: Vec<&str> = ["from", "const", "cel"].into_iter().filter(|key| node.get(key).is_some()).collect();
        if given.len() != 1 {
            let label = "one of `from`, `const` and `cel`";
            self.faults.error(
                &node.span,
                "GR2701",
                format!("{} has {}", quote(name), if given.is_empty() { "no origin" } else { "several origins" }),
                label,
            );
            return None;
        }
        for key in ["values", "else", "unit"] {
            if let Some(at) = node.get(key).filter(|_| given[0] != "from") {
                self.faults.error(&at.span, "GR2701", format!("`{key}` means nothing beside `{}`", given[0]), "it goes with `from`");
            }
        }
        let kind = match node.get("unit") {
            Some(unit) => self.unit(name, unit, kind),
            None => kind,
        };
        let from = match given[0] {
            "const" => From::Constant(constant(node.get("const")?, kind)?),
            "cel" => From::Computed(self.expression(node.get("cel")?)?),
            _ => {
                let origin = node.get("from")?;
                let nodes = if let Kind::List(nodes) = &origin.kind { nodes } else { std::slice::from_ref(origin) };
                let From::Record { pointers, .. } = self.record(nodes) else { return None };
                let values = node.get("values").map_or(&[][..], Node::entries);
                let values = values.iter().filter_map(|e| Some((e.key.clone(), constant(&e.value, kind)?))).collect();
                From::Record { pointers, values, otherwise: node.get("else").and_then(|n| constant(n, kind)) }
            }
        };
        Some(Member::new(name, kind, from))
    }

    /// The kind of a field that has a unit.
    fn unit(&mut self, name: &str, unit: &Node, kind: mapping::Kind) -> mapping::Kind {
        let nanos = match unit.text() {
            Some("ns") => 1,
            Some("us") => 1_000,
            Some("s") => 1_000_000_000,
            _ => 1_000_000,
        };
        match kind {
            mapping::Kind::Time { .. } => mapping::Kind::Time { nanos },
            mapping::Kind::Number { .. } => mapping::Kind::Number { factor: nanos as f64 / 1e6 },
            // Fields of an event's own are what the rules make of them.
            mapping::Kind::Any if !keys::EVENT.keys.iter().any(|key| key.name == name) => {
                mapping::Kind::Number { factor: nanos as f64 / 1e6 }
            }
            _ => {
                let fault = self.faults.at(&unit.span, "GR2003", format!("{} is no time", quote(name))).with_label("remove the unit");
                self.faults.push(fault.with_help("units fit `ts`, `latency_ms`, `value`, `covariate` and further `fields`"));
                kind
            }
        }
    }
}

/// A scalar as JSON.
fn constant(node: &Node, kind: mapping::Kind) -> Option<Constant> {
    let value = if kind == mapping::Kind::Text { node.text()?.into() } else { node.to_json() };
    (!value.is_object() && !value.is_array() && !value.is_null()).then(|| Constant(value.to_string()))
}

/// Whether the text of a file is one of sources alone.
pub fn is_sources(root: &Node) -> bool {
    root.get("sources").is_some() && root.get("overview").is_none()
}

/// Checks a file of sources.
pub fn file(root: &Node, faults: &mut Faults) -> Vec<Found> {
    check_section(root, &keys::SOURCES, faults);
    read(root.get("sources"), faults)
}
