//! Reads typed settings out of the merged layers. A fault is noted and reading goes on, so that all faults are reported at once.

use super::error::{ConfigError, ConfigErrors, Origin};
use super::layers::{Layers, join};
use super::secret;
use super::units;
use figment::value::{Dict, Value};
use secrecy::SecretString;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Codes of faults, stable over releases.
pub mod code {
    pub const UNKNOWN: &str = "GC1001";
    pub const MISSING: &str = "GC1002";
    pub const WRONG_TYPE: &str = "GC1003";
    pub const OUT_OF_RANGE: &str = "GC1004";
    pub const LITERAL_SECRET: &str = "GC2001";
    pub const UNUSABLE_SECRET: &str = "GC2002";
    pub const INCONSISTENT: &str = "GC3001";
}

/// What is wrong with a value.
pub struct Fault {
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
}

impl Fault {
    pub fn new(code: &'static str, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into(), help: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Fault {
        self.help = Some(help.into());
        self
    }
}

/// What every section shares.
pub struct Reader<'a> {
    layers: &'a Layers,
    env: &'a BTreeMap<String, String>,
    errors: RefCell<Vec<ConfigError>>,
    /// Lines that hold a literal secret and are never shown.
    hidden: RefCell<BTreeSet<u64>>,
}

impl<'a> Reader<'a> {
    pub fn new(layers: &'a Layers, env: &'a BTreeMap<String, String>) -> Reader<'a> {
        Reader { layers, env, errors: RefCell::default(), hidden: RefCell::default() }
    }

    pub fn root(&self) -> Section<'_> {
        Section {
            reader: self,
            path: String::new(),
            dict: self.layers.root.clone(),
            taken: Dict::new(),
            known: Vec::new(),
            unsound: Vec::new(),
            broken: false,
        }
    }

    /// All faults; each with its line of the file, unless that line holds a secret.
    pub fn errors(self) -> ConfigErrors {
        let hidden = self.hidden.into_inner();
        let mut errors = self.errors.into_inner();
        for error in &mut errors {
            if let Origin::File { line, .. } = error.origin {
                error.source = self.layers.line(line).filter(|_| !hidden.contains(&line));
            }
        }
        errors.sort_by(|a, b| a.origin.cmp(&b.origin));
        ConfigErrors(errors)
    }

    fn note(&self, origin: Origin, fault: Fault) {
        if let (code::LITERAL_SECRET, Origin::File { line, .. }) = (fault.code, &origin) {
            self.hidden.borrow_mut().insert(*line);
        }
        let Fault { code, message, help } = fault;
        self.errors.borrow_mut().push(ConfigError { origin, code, message, help, source: None });
    }
}

/// A value on its way to its type.
pub struct Item<'a> {
    reader: &'a Reader<'a>,
    path: String,
    pub value: Value,
}

impl Item<'_> {
    /// Text as it is; numbers and booleans as they are written.
    fn scalar(&self) -> Option<String> {
        match &self.value {
            Value::String(_, text) => Some(text.clone()),
            Value::Bool(_, b) => Some(b.to_string()),
            Value::Num(_, n) => n
                .to_i128()
                .map(|n| n.to_string())
                .or_else(|| n.to_u128().map(|n| n.to_string()))
                .or_else(|| n.to_f64().map(|n| n.to_string())),
            _ => None,
        }
    }

    fn resolve(&self, path: &str) -> PathBuf {
        match self.reader.layers.directory(&self.path, &self.value) {
            Some(directory) => directory.join(path),
            None => PathBuf::from(path),
        }
    }
}

fn wrong(expected: &str) -> Fault {
    Fault::new(code::WRONG_TYPE, format!("expected {expected}"))
}

pub fn text(item: &Item<'_>) -> Result<String, Fault> {
    match item.scalar() {
        Some(text) if !text.trim().is_empty() => Ok(text),
        Some(_) => Err(Fault::new(code::OUT_OF_RANGE, "may not be empty")),
        None => Err(wrong("text")),
    }
}

pub fn path(item: &Item<'_>) -> Result<PathBuf, Fault> {
    text(item).map(|text| item.resolve(&text))
}

pub fn flag(item: &Item<'_>) -> Result<bool, Fault> {
    match item.scalar().as_deref() {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(wrong("true or false")),
    }
}

/// A list of values; a bare text is a list split at its commas.
pub fn list<T>(each: impl Fn(&Item<'_>) -> Result<T, Fault>) -> impl Fn(&Item<'_>) -> Result<Vec<T>, Fault> {
    move |item| {
        let values: Vec<Value> = match &item.value {
            Value::Array(_, values) => values.clone(),
            Value::String(tag, text) => {
                text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| Value::String(*tag, s.to_owned())).collect()
            }
            _ => return Err(wrong("a list")),
        };
        let item = |(i, value): (usize, Value)| Item { reader: item.reader, path: format!("{}[{i}]", item.path), value };
        values.into_iter().enumerate().map(|v| each(&item(v))).collect()
    }
}

pub fn whole(range: RangeInclusive<u64>) -> impl Fn(&Item<'_>) -> Result<u64, Fault> {
    move |item| {
        let number = item.scalar().and_then(|s| s.parse::<u64>().ok()).ok_or_else(|| wrong("a whole number"))?;
        let (low, high) = range.clone().into_inner();
        if range.contains(&number) { Ok(number) } else { Err(Fault::new(code::OUT_OF_RANGE, format!("must lie between {low} and {high}"))) }
    }
}

/// A span between `low` and `high`, both written as in the file.
pub fn span(low: &'static str, high: &'static str) -> impl Fn(&Item<'_>) -> Result<Duration, Fault> {
    move |item| {
        let span = item.scalar().and_then(|s| units::span(&s)).ok_or_else(|| wrong("a span of time such as 500ms, 30s or 10m"))?;
        let inside = units::span(low) <= Some(span) && Some(span) <= units::span(high);
        if inside { Ok(span) } else { Err(Fault::new(code::OUT_OF_RANGE, format!("must lie between {low} and {high}"))) }
    }
}

/// A size in bytes between `low` and `high`.
pub fn size(low: &'static str, high: &'static str) -> impl Fn(&Item<'_>) -> Result<u64, Fault> {
    move |item| {
        let size = item.scalar().and_then(|s| units::size(&s)).ok_or_else(|| wrong("a size such as 64KiB or 1MiB"))?;
        let inside = units::size(low) <= Some(size) && Some(size) <= units::size(high);
        if inside { Ok(size) } else { Err(Fault::new(code::OUT_OF_RANGE, format!("must lie between {low} and {high}"))) }
    }
}

/// One of a few words.
pub fn choice<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&Item<'_>) -> Result<T, Fault> {
    move |item| {
        let all = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>();
        let text = item.scalar().ok_or_else(|| wrong(&format!("one of {}", all().join(", "))))?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let fault = Fault::new(code::OUT_OF_RANGE, format!("expected one of {}", all().join(", ")));
            match nearest(&text, all().into_iter()) {
                Some(near) => fault.help(format!("did you mean `{near}`?")),
                None => fault,
            }
        })
    }
}

/// A secret, by reference only.
pub fn secret(item: &Item<'_>) -> Result<SecretString, Fault> {
    secret::resolve(&item.value, item.reader.env, &|path| item.resolve(path))
}

/// A secret by reference, or plain text.
pub fn secret_or_text(item: &Item<'_>) -> Result<SecretString, Fault> {
    if matches!(item.value, Value::Dict(..)) { secret(item) } else { text(item).map(SecretString::from) }
}

/// A map of settings. Every key that is there must be asked for before [`Section::finish`].
pub struct Section<'a> {
    reader: &'a Reader<'a>,
    path: String,
    dict: Dict,
    /// Values that were asked for, for faults found later.
    taken: Dict,
    known: Vec<String>,
    unsound: Vec<String>,
    /// It was no map at all: what is missing inside is not worth a word.
    broken: bool,
}

impl<'a> Section<'a> {
    /// The value of `key`, where it is given and sound; faults are noted.
    pub fn opt<T>(&mut self, key: &str, read: impl Fn(&Item<'_>) -> Result<T, Fault>) -> Option<T> {
        let item = self.take(key)?;
        match read(&item) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.unsound.push(key.to_owned());
                self.fault(key, fault);
                None
            }
        }
    }

    /// The value of `key`; its absence is a fault.
    pub fn need<T: Default>(&mut self, key: &str, read: impl Fn(&Item<'_>) -> Result<T, Fault>) -> T {
        if !self.has(key) {
            self.known.push(key.to_owned());
            self.dict.remove(key);
            self.missing(key);
            return T::default();
        }
        self.opt(key, read).unwrap_or_default()
    }

    pub fn missing(&self, key: &str) {
        self.fault("", Fault::new(code::MISSING, format!("`{}` is missing", join(&self.path, key))));
    }

    /// Whether `key` is given, and not null.
    pub fn has(&self, key: &str) -> bool {
        self.dict.get(key).is_some_and(|value| !matches!(value, Value::Empty(..)))
    }

    /// Whether `key` was given, and not null, and has been asked for.
    pub fn has_taken(&self, key: &str) -> bool {
        self.taken.contains_key(key)
    }

    /// Whether nothing wrong is known about `key`.
    pub fn sound(&self, key: &str) -> bool {
        !self.unsound.iter().any(|unsound| unsound == key)
    }

    /// Keys that nobody has asked for yet.
    pub fn keys(&self) -> Vec<String> {
        self.dict.keys().cloned().collect()
    }

    pub fn section(&mut self, key: &str) -> Section<'a> {
        let path = join(&self.path, key);
        let mut broken = false;
        let dict = match self.take(key).map(|item| item.value) {
            Some(Value::Dict(_, dict)) => dict,
            other => {
                let origin = self.reader.layers.origin(&path, other.as_ref(), false);
                self.note(origin, named(&path, wrong("a map of settings").help("leave the key out to keep the defaults")));
                broken = true;
                Dict::new()
            }
        };
        Section { reader: self.reader, path, dict, taken: Dict::new(), known: Vec::new(), unsound: Vec::new(), broken }
    }

    /// A map that may be absent or null.
    pub fn map(&mut self, key: &str) -> Section<'a> {
        if !self.has(key) {
            self.dict.insert(key.to_owned(), Value::from(Dict::new()));
        }
        self.section(key)
    }

    /// The sections of a map from names to sections.
    pub fn sections(&mut self) -> Vec<(String, Section<'a>)> {
        self.keys().into_iter().map(|name| (name.clone(), self.section(&name))).collect()
    }

    /// The sections of a list.
    pub fn list(&mut self, key: &str) -> Vec<Section<'a>> {
        let path = join(&self.path, key);
        let values = match self.take(key).map(|item| item.value) {
            None => return Vec::new(),
            Some(Value::Array(_, values)) => values,
            Some(other) => {
                self.reader.note(self.reader.layers.origin(&path, Some(&other), false), named(&path, wrong("a list")));
                return Vec::new();
            }
        };
        let section = |(i, value)| {
            let mut parent = Section {
                reader: self.reader,
                path: path.clone(),
                dict: Dict::new(),
                taken: Dict::new(),
                known: Vec::new(),
                unsound: Vec::new(),
                broken: false,
            };
            let index = format!("[{i}]");
            parent.dict.insert(index.clone(), value);
            parent.section(&index)
        };
        values.into_iter().enumerate().map(section).collect()
    }

    /// The keys that are left, with dots between those of nested maps: `{sasl: {mechanism: PLAIN}}` is `sasl.mechanism`. Variables and
    /// flags nest, so nested ones win.
    pub fn flatten(&mut self) -> Vec<String> {
        let mut flat = Dict::new();
        let (nested, dotted): (Dict, Dict) = std::mem::take(&mut self.dict).into_iter().partition(|(_, v)| v.as_dict().is_some());
        for (key, value) in dotted.into_iter().chain(nested) {
            flatten(key, value, &mut flat);
        }
        self.dict = flat;
        self.keys()
    }

    /// Notes a fault of the value at `key`, or of the whole section (`""`), found after it was read.
    pub fn fault(&self, key: &str, fault: Fault) {
        let layers = self.reader.layers;
        if key.is_empty() {
            let any = self.taken.values().chain(self.dict.values()).next();
            return self.note(layers.origin(&self.path, any, true), fault);
        }
        let path = join(&self.path, key);
        self.note(layers.origin(&path, self.taken.get(key), false), named(&path, fault));
    }

    fn note(&self, origin: Origin, fault: Fault) {
        if !self.broken {
            self.reader.note(origin, fault);
        }
    }

    /// Notes every key that nobody asked for.
    pub fn finish(self) {
        for (key, value) in &self.dict {
            let path = join(&self.path, key);
            let fault = Fault::new(code::UNKNOWN, format!("unknown setting `{path}`"));
            let fault = match nearest(key, self.known.iter().map(String::as_str)) {
                Some(near) => fault.help(format!("did you mean `{near}`?")),
                None => fault.help(format!("known here: {}", self.known.join(", "))),
            };
            self.reader.note(self.reader.layers.origin(&path, Some(value), true), fault);
        }
    }

    fn take(&mut self, key: &str) -> Option<Item<'a>> {
        self.known.push(key.to_owned());
        let value = self.dict.remove(key).filter(|value| !matches!(value, Value::Empty(..)))?;
        self.taken.insert(key.to_owned(), value.clone());
        Some(Item { reader: self.reader, path: join(&self.path, key), value })
    }
}

fn named(path: &str, fault: Fault) -> Fault {
    Fault { message: format!("`{path}`: {}", fault.message), ..fault }
}

fn flatten(key: String, value: Value, flat: &mut Dict) {
    match value {
        Value::Dict(_, dict) if !secret::is_reference(&dict) => {
            dict.into_iter().for_each(|(inner, value)| flatten(format!("{key}.{inner}"), value, flat));
        }
        value => {
            flat.insert(key, value);
        }
    }
}

/// The word most like `text`, if any is close.
pub fn nearest<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let scored = words.map(|word| (strsim::jaro_winkler(text, word), word));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, word)| word)
}
