//! The layers of a configuration (defaults, file, variables, flags) and where each value came from.

use super::error::{ConfigError, ConfigErrors, Origin};
use figment::providers::{Data, Format};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const DEFAULTS: &str = include_str!("../../config/default.yaml");
const PREFIX: &str = "GUARDRAILD_";
/// Variables that are not settings: those of the command line, and what Kubernetes sets for a service named `guardraild`.
const FOREIGN: [&str; 8] = ["CONFIG", "URL", "TOKEN", "TOKEN_FILE", "CA_FILE", "PORT", "SERVICE_*", "PORT_*"];
/// A configuration file is no larger than this, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The defaults as they are written.
pub fn defaults() -> serde_json::Value {
    serde_saphyr::from_str(DEFAULTS).unwrap_or_default()
}

/// The merged values and the positions of those that the file gave.
pub struct Layers {
    pub root: Dict,
    figment: Figment,
    file: Option<PathBuf>,
    text: String,
    positions: Positions,
}

/// Key path to where its key and its value stand: line and column, from 1.
type Positions = BTreeMap<String, [(u64, u64); 2]>;

impl Layers {
    pub fn merge(path: Option<&Path>, overrides: &[(String, String)], env: &BTreeMap<String, String>) -> Result<Layers, ConfigErrors> {
        let mut figment = Figment::from(Data::<serde_saphyr::figment::Yaml>::string(DEFAULTS));
        let mut text = String::new();
        let mut positions = BTreeMap::new();
        if let Some(path) = path {
            text = read(path).map_err(|message| whole_file(path, "GC0001", message))?;
            positions = locate(path, &text)?;
            if !positions.is_empty() {
                figment = figment.merge(Layer::File(&text));
            }
        }
        for (name, value) in env {
            if let Some(rest) = name.strip_prefix(PREFIX).filter(|rest| !foreign(rest)) {
                let key = rest.to_ascii_lowercase().replace("__", ".");
                figment = figment.merge(Layer::Pair { kind: "variable", name, key, value });
            }
        }
        for (key, value) in overrides {
            figment = figment.merge(Layer::Pair { kind: "flag", name: key, key: key.clone(), value });
        }
        let root = figment.extract::<Dict>().map_err(|error| {
            let message = error.to_string();
            ConfigErrors(vec![ConfigError { origin: Origin::Default, code: "GC0002", message, help: None, source: None }])
        })?;
        Ok(Layers { root, figment, file: path.map(Path::to_owned), text, positions })
    }

    /// Where the value at `path` was given (its key, where `key` says so), or where it should have been.
    pub fn origin(&self, path: &str, value: Option<&Value>, key: bool) -> Origin {
        let metadata = value.and_then(|value| self.figment.get_metadata(value.tag()));
        let source = metadata.and_then(|m| m.source.as_ref()).and_then(|s| s.custom());
        match (metadata.map(|m| m.name.as_ref()), source) {
            (Some("variable"), Some(name)) => Origin::Variable(name.to_owned()),
            (Some("flag"), Some(key)) => Origin::Flag(key.to_owned()),
            _ => match (&self.file, self.positions.get(path)) {
                (Some(file), Some(&[at_key, at_value])) => {
                    let (line, column) = if key { at_key } else { at_value };
                    Origin::File { path: file.clone(), line, column }
                }
                (Some(file), None) => Origin::File { path: file.clone(), line: 0, column: 0 },
                (None, _) => Origin::Default,
            },
        }
    }

    /// The directory that relative paths from this origin start at.
    pub fn directory(&self, path: &str, value: &Value) -> Option<&Path> {
        let from_file = matches!(self.origin(path, Some(value), false), Origin::File { line, .. } if line > 0);
        self.file.as_deref().filter(|_| from_file).and_then(Path::parent)
    }

    /// A line of the file, counted from 1.
    pub fn line(&self, line: u64) -> Option<String> {
        self.text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?).map(str::to_owned)
    }
}

fn foreign(name: &str) -> bool {
    FOREIGN.iter().any(|foreign| match foreign.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *foreign,
    })
}

/// One layer over the defaults.
enum Layer<'a> {
    File(&'a str),
    /// A scalar stays text (its reader knows the type); `[…]` and `{…}` are lists and maps.
    Pair {
        kind: &'static str,
        name: &'a str,
        key: String,
        value: &'a str,
    },
}

impl Provider for Layer<'_> {
    fn metadata(&self) -> Metadata {
        match self {
            Layer::File(_) => Metadata::named("file"),
            Layer::Pair { kind, name, .. } => Metadata::named(*kind).source(figment::Source::Custom((*name).to_owned())),
        }
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let dict = match self {
            Layer::File(text) => serde_saphyr::figment::Yaml::from_str::<Dict>(text).map_err(|e| e.to_string())?,
            Layer::Pair { key, value, .. } => {
                let structured = value.trim_start().starts_with(['[', '{']);
                let value = if structured { value.parse().unwrap_or_else(|never| match never {}) } else { Value::from(*value) };
                figment::util::nest(key, value).into_dict().unwrap_or_default()
            }
        };
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|e| format!("cannot read the configuration: {e}"))?.len();
    if size > MAX_FILE {
        return Err(format!("the configuration has {size} bytes; {MAX_FILE} are allowed"));
    }
    std::fs::read_to_string(path).map_err(|e| format!("cannot read the configuration: {e}"))
}

fn whole_file(path: &Path, code: &'static str, message: String) -> ConfigErrors {
    let origin = Origin::File { path: path.to_owned(), line: 0, column: 0 };
    ConfigErrors(vec![ConfigError { origin, code, message, help: None, source: None }])
}

/// Position of every key and list item; empty for a file without content.
fn locate(path: &Path, text: &str) -> Result<Positions, ConfigErrors> {
    let tree: Option<Spanned<Tree>> = serde_saphyr::from_str(text).map_err(|error| {
        let mut errors = whole_file(path, "GC0002", error.without_snippet().to_string());
        if let (Some(at), Some(first)) = (error.location(), errors.0.first_mut()) {
            first.origin = Origin::File { path: path.to_owned(), line: at.line(), column: at.column() };
        }
        errors
    })?;
    let mut positions = BTreeMap::new();
    match tree.map(|tree| tree.value) {
        None => {}
        Some(tree @ Tree::Map(_)) => index(&tree, "", &mut positions),
        Some(_) => return Err(whole_file(path, "GC0002", "a configuration is a map of settings, such as `kafka: {…}`".to_owned())),
    }
    Ok(positions)
}

fn index(tree: &Tree, path: &str, positions: &mut Positions) {
    let mut add = |path: String, key: Location, child: &Spanned<Tree>| {
        let value = child.referenced;
        positions.insert(path.clone(), [(key.line(), key.column()), (value.line(), value.column())]);
        index(&child.value, &path, positions);
    };
    match tree {
        Tree::Leaf => {}
        Tree::List(items) => items.iter().enumerate().for_each(|(i, item)| add(format!("{path}[{i}]"), item.referenced, item)),
        Tree::Map(entries) => entries.iter().for_each(|(key, value)| add(join(path, &key.value), key.referenced, value)),
    }
}

/// `section.key`, or `list[0]`.
pub fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        path if key.starts_with('[') => format!("{path}{key}"),
        path => format!("{path}.{key}"),
    }
}

/// The shape of a YAML document: where its keys stand, without its scalars.
enum Tree {
    Leaf,
    List(Vec<Spanned<Tree>>),
    Map(Vec<(Spanned<String>, Spanned<Tree>)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Tree;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_none<E: de::Error>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Tree::Map(entries))
            }
        }
        deserializer.deserialize_any(Shape)
    }
}
