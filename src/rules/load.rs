//! Finds rule files, reads them, and keeps the good ones.

use super::diagnostic::{Diagnostic, Faults, quote, sort};
use super::sources::{self, Found};
use super::yaml::{self, MAX_BYTES, Node};
use super::{RuleSet, keys, lower, shape};
use crate::engine::plan::{Catalog, FieldTable};
use crate::mapping::{Source, Sources};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Sources by name, each with its file.
type Known = BTreeMap<String, (Found, String)>;

/// All rule files of some paths.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Plans of the good files, by experiment.
    pub catalog: Catalog,
    /// In the same order as the plans.
    pub rules: Vec<Arc<RuleSet>>,
    /// Of the good files, and of files that hold sources alone; by name.
    pub sources: Sources,
    /// Of all files, by file and position.
    pub diagnostics: Vec<Diagnostic>,
    /// Files read.
    pub files: usize,
    /// Files left out because of an error.
    pub refused: usize,
}

/// One file.
#[derive(Debug)]
pub struct Parsed {
    /// `None` when there is an error.
    pub rule: Option<RuleSet>,
    pub diagnostics: Vec<Diagnostic>,
    /// Where the experiment's id stands, for faults that only several files show.
    experiment: Option<std::ops::Range<usize>>,
    /// `None` when there is an error.
    sources: Option<Vec<Found>>,
}

/// Directories inside directories at most.
const MAX_DEPTH: usize = 16;
/// Topics that all sources together read, at most: half of what one daemon can.
const MAX_SOURCE_TOPICS: usize = 32;

/// Reads files, and directories with all `*.yaml` and `*.yml` below them; hidden files and `*_test.yaml` are skipped.
/// A bad file is left out and the others stay. `endpoints` are the names that the configuration defines, if it is at hand.
pub fn load(paths: &[PathBuf], endpoints: Option<&BTreeSet<String>>) -> Loaded {
    let mut out = Loaded::default();
    let mut fields = FieldTable::default();
    let mut rules: BTreeMap<String, Arc<RuleSet>> = BTreeMap::new();
    let mut known = Known::new();
    for file in find(paths, &mut out.diagnostics) {
        out.files += 1;
        let name = file.display().to_string();
        let text = match read(&file) {
            Ok(text) => text,
            Err((code, message)) => {
                out.refused += 1;
                out.diagnostics.push(Diagnostic::file(&name, code, message));
                continue;
            }
        };
        let kept = fields.entries.len();
        let mut parsed = parse_str(&name, &text, &mut fields, endpoints);
        if let Some(fault) = duplicate(&parsed, &rules, &name, &text) {
            parsed.diagnostics.push(fault);
            (parsed.rule, parsed.sources) = (None, None);
        }
        match parsed.sources.take().map(|found| join(&known, found, &name, &text)) {
            Some(Ok(joined)) => known = joined,
            Some(Err(fault)) => {
                parsed.diagnostics.push(*fault);
                parsed.rule = None;
                refused(&mut out, &mut fields, kept);
            }
            None => refused(&mut out, &mut fields, kept),
        }
        out.diagnostics.append(&mut parsed.diagnostics);
        rules.extend(parsed.rule.map(|rule| (rule.plan.experiment.clone(), Arc::new(rule))));
    }
    sort(&mut out.diagnostics);
    out.sources = Sources::new(known.into_values().map(|(found, _)| found.source).collect());
    out.rules = rules.into_values().collect();
    out.catalog = Catalog::new(out.rules.iter().map(|r| Arc::clone(&r.plan)).collect(), fields);
    out
}

/// Checks the text of one rule file; `name` is how messages call the file. Fields that its metrics read are added to `fields`.
pub fn parse_str(name: &str, text: &str, fields: &mut FieldTable, endpoints: Option<&BTreeSet<String>>) -> Parsed {
    let mut faults = Faults::new(name, text);
    let root = match yaml::parse(text) {
        Ok(root) => root,
        Err(fault) => {
            faults.error(&fault.span, fault.code, fault.message, fault.label);
            return Parsed { rule: None, diagnostics: faults.into_vec(), experiment: None, sources: None };
        }
    };
    if sources::is_sources(&root) {
        let found = sources::file(&root, &mut faults);
        let sources = (!faults.has_errors()).then_some(found);
        return Parsed { rule: None, diagnostics: faults.into_vec(), experiment: None, sources };
    }
    shape::check_section(&root, &keys::ROOT, &mut faults);
    let found = sources::read(root.get("instrumentation").and_then(|i| i.get("sources")), &mut faults);
    let rule = lower::lower(&root, Path::new(name), fields, endpoints, &mut faults);
    let sources = rule.is_some().then_some(found);
    let experiment = root.get("overview").and_then(|o| o.get("experiment")).map(|n: &Node| n.span.clone());
    Parsed { rule, diagnostics: faults.into_vec(), experiment, sources }
}

fn refused(out: &mut Loaded, fields: &mut FieldTable, kept: usize) {
    out.refused += 1;
    fields.entries.truncate(kept);
}

/// The sources that are known with those of one file more, unless one of them does not go with another.
fn join(known: &Known, found: Vec<Found>, name: &str, text: &str) -> Result<Known, Box<Diagnostic>> {
    let mut joined = known.clone();
    for found in found {
        if let Some((message, label)) = conflict(&found.source, &joined) {
            return Err(Box::new(Diagnostic::at(name, text, found.span, "GR2802", message).with_label(label)));
        }
        joined.entry(found.source.name.clone()).or_insert((found, name.to_owned()));
    }
    Ok(joined)
}

/// What is wrong with a source beside others. The same definition may be given in several files.
fn conflict(source: &Source, known: &Known) -> Option<(String, String)> {
    if let Some((other, file)) = known.get(&source.name) {
        let alike = other.source.definition == source.definition;
        return (!alike).then(|| (format!("source {} is defined otherwise before", quote(&source.name)), format!("in {file}")));
    }
    for (other, file) in known.values() {
        if let Some(topic) = source.topics.iter().find(|topic| other.source.topics.contains(topic)) {
            let label = format!("it is read by {} of {file}", quote(&other.source.name));
            return Some((format!("topic {} has a source already", quote(topic)), label));
        }
    }
    let topics = known.values().map(|(other, _)| other.source.topics.len()).sum::<usize>() + source.topics.len();
    (topics > MAX_SOURCE_TOPICS)
        .then(|| (format!("{topics} topics of sources"), format!("all files together may have {MAX_SOURCE_TOPICS}")))
}

/// The fault of a file whose experiment another file has already.
fn duplicate(parsed: &Parsed, rules: &BTreeMap<String, Arc<RuleSet>>, name: &str, text: &str) -> Option<Diagnostic> {
    let experiment = &parsed.rule.as_ref()?.plan.experiment;
    let first = rules.get(experiment)?;
    let span = parsed.experiment.clone().unwrap_or(0..0);
    let message = format!("experiment {} has two rule files", quote(experiment));
    let label = format!("{} is kept in force", first.file.display());
    Some(
        Diagnostic::at(name, text, span, "GR2801", message)
            .with_label(label)
            .with_help("one file per experiment: remove this one, or rename its experiment"),
    )
}

/// Rule files in the order of their paths, each once.
fn find(paths: &[PathBuf], diagnostics: &mut Vec<Diagnostic>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = found.len();
            walk(path, 0, &mut found, diagnostics);
            if found.len() == before {
                diagnostics.push(Diagnostic::file(&path.display().to_string(), "GR1012", "no rule files in this directory").as_warning());
            }
        } else {
            found.push(path.clone());
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|file| seen.insert(fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
    found
}

fn walk(directory: &Path, depth: usize, found: &mut Vec<PathBuf>, diagnostics: &mut Vec<Diagnostic>) {
    let mut entries: Vec<PathBuf> = match fs::read_dir(directory) {
        Ok(entries) => entries.filter_map(|e| e.ok().map(|e| e.path())).collect(),
        Err(error) => {
            diagnostics.push(Diagnostic::file(&directory.display().to_string(), "GR1011", format!("cannot be read: {error}")));
            return;
        }
    };
    entries.sort();
    for path in entries {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        // A mounted ConfigMap keeps its versions in `..data`, and links to them under the plain names.
        if name.is_empty() || name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if !path.is_symlink() && depth < MAX_DEPTH {
                walk(&path, depth + 1, found, diagnostics);
            }
        } else if is_rule_file(name) {
            found.push(path);
        }
    }
}

fn is_rule_file(name: &str) -> bool {
    let stem = name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml"));
    stem.is_some_and(|s| !s.ends_with("_test"))
}

/// The text of a file; on failure a code and what is wrong.
fn read(path: &Path) -> Result<String, (&'static str, String)> {
    let unreadable = |error: io::Error| ("GR1011", format!("cannot be read: {error}"));
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(("GR1011", "not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|f| f.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() > MAX_BYTES {
        return Err(("GR1008", format!("the file has {} bytes; a rule file may have {MAX_BYTES}", metadata.len())));
    }
    String::from_utf8(bytes).map_err(|e| ("GR1011", format!("not UTF-8 from byte {} on", e.utf8_error().valid_up_to())))
}
