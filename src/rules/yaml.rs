//! YAML text into a tree whose every node knows its place, within fixed bounds.
//!
//! The tree is built from parser events, not by serde, so that faults of all keys can be gathered in one walk.

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, ScanError, Span};
use std::collections::BTreeMap;
use std::ops::Range;

/// A file longer than this is refused unread.
pub const MAX_BYTES: usize = 1 << 20;
/// Nodes of one file at most, aliases expanded.
const MAX_NODES: usize = 50_000;
/// Collections inside collections at most.
const MAX_DEPTH: usize = 48;

/// A value and the bytes of the file that it covers.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub span: Range<usize>,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// `plain`: written without quotes, and so perhaps a number, bool or null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    /// In file order; a duplicate key appears twice.
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_span: Range<usize>,
    pub value: Node,
}

/// Why there is no tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub span: Range<usize>,
    pub code: &'static str,
    pub message: String,
    pub label: String,
}

impl Fault {
    fn new(span: Range<usize>, message: &str, label: &str) -> Fault {
        Fault { span, code: "GR1007", message: message.to_owned(), label: label.to_owned() }
    }

    fn too_big(span: Range<usize>, message: String) -> Fault {
        Fault { span, code: "GR1008", message, label: String::new() }
    }
}

impl Node {
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Text of a scalar that is not null.
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    pub fn boolean(&self) -> Option<bool> {
        match &self.kind {
            Kind::Scalar { text, plain: true } => match text.as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether it is a scalar without quotes.
    pub fn is_plain(&self) -> bool {
        matches!(self.kind, Kind::Scalar { plain: true, .. })
    }

    pub fn is_empty_list(&self) -> bool {
        matches!(&self.kind, Kind::List(items) if items.is_empty())
    }

    pub fn list(&self) -> &[Node] {
        if let Kind::List(items) = &self.kind { items } else { &[] }
    }

    pub fn entries(&self) -> &[Entry] {
        if let Kind::Map(entries) = &self.kind { entries } else { &[] }
    }

    /// The value of a key; of duplicates the first.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|e| e.key == key).map(|e| &e.value)
    }

    /// What it is, for messages.
    pub fn noun(&self) -> &'static str {
        match &self.kind {
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
            Kind::Scalar { .. } if self.is_null() => "nothing",
            Kind::Scalar { .. } if self.boolean().is_some() => "true or false",
            Kind::Scalar { text, plain: true } if text.parse::<f64>().is_ok() => "a number",
            Kind::Scalar { .. } => "text",
        }
    }

    /// The node as JSON, for bodies that are handed on. Numbers keep integers whole.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.kind {
            Kind::List(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Kind::Map(entries) => Value::Object(entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect()),
            Kind::Scalar { text, plain } => {
                if self.is_null() {
                    return Value::Null;
                }
                if let Some(flag) = self.boolean() {
                    return Value::Bool(flag);
                }
                let number = text.parse::<i64>().map(Value::from).ok();
                let number = number.or_else(|| text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number));
                match number {
                    Some(number) if *plain => number,
                    _ => Value::String(text.clone()),
                }
            }
        }
    }

    fn count(&self) -> usize {
        match &self.kind {
            Kind::Scalar { .. } => 1,
            Kind::List(items) => 1 + items.iter().map(Node::count).sum::<usize>(),
            Kind::Map(entries) => 1 + entries.iter().map(|e| 1 + e.value.count()).sum::<usize>(),
        }
    }
}

/// The tree of a file that holds one document.
///
/// # Errors
/// The first place where the text is not YAML, or exceeds a bound.
pub fn parse(text: &str) -> Result<Node, Fault> {
    if text.len() > MAX_BYTES {
        return Err(Fault::too_big(0..0, format!("the file has {} bytes; a rule file may have {MAX_BYTES}", text.len())));
    }
    let options = granit_parser::options! { emit_comments: false };
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|e| scan_fault(&e))?;
        builder.take(event, bytes(&span))?;
    }
    let empty = || Fault::new(0..0, "the file is empty", "a rule file begins with `guardrail: v1`");
    let root = builder.root.ok_or_else(empty)?;
    if root.is_null() { Err(empty()) } else { Ok(root) }
}

fn bytes(span: &Span) -> Range<usize> {
    let start = span.start.byte_offset().unwrap_or(0);
    start..span.end.byte_offset().unwrap_or(start).max(start)
}

fn scan_fault(error: &ScanError) -> Fault {
    let at = error.marker().byte_offset().unwrap_or(0);
    Fault::new(at..at + 1, "not YAML", &error.info())
}

/// A collection whose end has not been seen.
struct Open {
    start: usize,
    anchor: usize,
    items: Vec<Node>,
    entries: Vec<Entry>,
    key: Option<(String, Range<usize>)>,
    is_map: bool,
}

#[derive(Default)]
struct Builder {
    stack: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Range<usize>) -> Result<(), Fault> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(tag.is_some(), &span)?;
                let plain = style == ScalarStyle::Plain;
                self.place(Node { span, kind: Kind::Scalar { text: text.into_owned(), plain } }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => self.open(span, anchor, tag.is_some(), false),
            Event::MappingStart(_, anchor, tag) => self.open(span, anchor, tag.is_some(), true),
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(anchor) => {
                let unknown = || Fault::new(span.clone(), "not YAML", "an alias inside its own anchor");
                let target = self.anchors.get(&anchor).ok_or_else(unknown)?;
                let copy = Node { span: span.clone(), kind: target.kind.clone() };
                self.nodes += copy.count() - 1;
                self.place(copy, 0)
            }
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(Fault::new(span, "a second document", "a rule file holds one experiment: move this to a file of its own"))
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, span: Range<usize>, anchor: usize, tagged: bool, is_map: bool) -> Result<(), Fault> {
        refuse_tag(tagged, &span)?;
        if self.stack.len() >= MAX_DEPTH {
            return Err(Fault::too_big(span, format!("nested more than {MAX_DEPTH} deep")));
        }
        let start = span.start;
        self.stack.push(Open { start, anchor, items: Vec::new(), entries: Vec::new(), key: None, is_map });
        Ok(())
    }

    fn close(&mut self, span: Range<usize>) -> Result<(), Fault> {
        let Some(open) = self.stack.pop() else { return Ok(()) };
        let kind = if open.is_map { Kind::Map(open.entries) } else { Kind::List(open.items) };
        self.place(Node { span: open.start..span.end.max(open.start), kind }, open.anchor)
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Fault::too_big(node.span, format!("more than {MAX_NODES} values, aliases expanded")));
        }
        if anchor != 0 {
            self.nodes += node.count();
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(open) if !open.is_map => open.items.push(node),
            Some(open) => match (open.key.take(), node.kind) {
                (Some((key, key_span)), kind) => {
                    open.entries.push(Entry { key, key_span, value: Node { span: node.span, kind } });
                }
                (None, Kind::Scalar { text, .. }) => open.key = Some((text, node.span)),
                (None, _) => return Err(Fault::new(node.span, "a key must be text", "not a list or a mapping")),
            },
        }
        Ok(())
    }
}

fn refuse_tag(tagged: bool, span: &Range<usize>) -> Result<(), Fault> {
    if tagged { Err(Fault::new(span.clone(), "tags are not read here", "remove the `!…` before this value")) } else { Ok(()) }
}
