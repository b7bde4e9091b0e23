//! Finds rule files, reads them, and keeps the good ones.

use super::diagnostic::{Diagnostic, Faults, quote, sort};
use super::sources::{self, Found};
use super::yaml::{self, MAX_BYTES, Node};
use super::{RuleSet, find, keys, lower, shape};
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
    /// Files left out because of an error, and without an earlier text that stands in for them.
    pub refused: usize,
    /// The texts in use, in the order in which they were taken; and the files whose text is not.
    pub used: Vec<Used>,
    pub unused: Vec<Unused>,
    /// Files that are gone and whose texts stay: see [`Standby::leaving`].
    pub leaving: BTreeSet<String>,
}

impl Loaded {
    /// The text of each experiment's rule.
    pub fn texts(&self) -> BTreeMap<&str, &Used> {
        self.used.iter().filter_map(|used| Some((used.experiment.as_deref()?, used))).collect()
    }
}

/// A text that is in use.
#[derive(Clone, Debug, PartialEq)]
pub struct Used {
    pub file: String,
    pub text: String,
    /// `None` of a file of sources.
    pub experiment: Option<String>,
}

/// A file whose text is not in use.
#[derive(Clone, Debug)]
pub struct Unused {
    pub file: String,
    pub experiment: Option<String>,
    /// An earlier text of it is.
    pub stands_in: bool,
    pub faults: Vec<Diagnostic>,
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
    pub(super) sources: Option<Vec<Found>>,
}

/// Topics that all sources together read, at most: half of what one daemon can.
const MAX_SOURCE_TOPICS: usize = 32;

/// A file that is there: its text, or what keeps it from being read.
pub struct Candidate {
    pub file: String,
    pub text: Result<String, Diagnostic>,
}

/// What is used where a candidate cannot be: see [`super::reload`].
pub trait Standby {
    /// Why a text that is good by itself is not used all the same.
    fn veto(&self, parsed: &Parsed, candidate: (&str, &str)) -> Vec<Diagnostic>;
    /// The file and text that stand in for a file whose text is not used; `experiment` is the one that it is about, if that much is known.
    fn text(&self, file: &str, experiment: Option<&str>) -> Option<(String, String)>;
    /// Files and texts that stay though no candidate is there for them, unless another file is about the same experiment.
    fn leaving(&self) -> Vec<(String, String)>;
}

/// Where there is nothing else to use.
struct Nothing;

impl Standby for Nothing {
    fn veto(&self, _: &Parsed, _: (&str, &str)) -> Vec<Diagnostic> {
        Vec::new()
    }

    fn text(&self, _: &str, _: Option<&str>) -> Option<(String, String)> {
        None
    }

    fn leaving(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Reads files, and directories with all `*.yaml` and `*.yml` below them; hidden files are skipped, and tests of rules wherever they stand.
/// A bad file is left out and the others stay. `endpoints` are the names that the configuration defines, if it is at hand.
pub fn load(paths: &[PathBuf], endpoints: Option<&BTreeSet<String>>) -> Loaded {
    let (candidates, diagnostics) = candidates(paths);
    let mut loaded = assemble(candidates, endpoints, &Nothing);
    loaded.diagnostics.extend(diagnostics);
    sort(&mut loaded.diagnostics);
    loaded
}

/// The files of some paths, and what is wrong with directories.
pub fn candidates(paths: &[PathBuf]) -> (Vec<Candidate>, Vec<Diagnostic>) {
    let mut diagnostics = Vec::new();
    let candidate = |path: PathBuf| {
        let file = path.display().to_string();
        let text = read(&path).map_err(|(code, message)| Diagnostic::file(&file, code, message));
        Candidate { file, text }
    };
    (find::rule_files(paths, &mut diagnostics).into_iter().map(candidate).collect(), diagnostics)
}

/// Makes one set of plans and sources of files. One that is bad, or does not go with those before it, is left out, unless `standby` has
/// an earlier text of it.
pub fn assemble(candidates: Vec<Candidate>, endpoints: Option<&BTreeSet<String>>, standby: &impl Standby) -> Loaded {
    let mut set = Assembly { endpoints, ..Assembly::default() };
    set.out.files = candidates.len();
    for Candidate { file, text } in candidates {
        let refused = match text {
            Ok(text) => set.take(&file, &text, |parsed| standby.veto(parsed, (&file, &text))),
            Err(fault) => Err((None, vec![fault])),
        };
        let Err((experiment, faults)) = refused else { continue };
        let earlier = standby.text(&file, experiment.as_deref());
        let stands_in = earlier.is_some_and(|(was, text)| set.take_again(&was, &text));
        set.out.refused += usize::from(!stands_in);
        set.out.unused.push(Unused { file, experiment, stands_in, faults: faults.clone() });
        set.out.diagnostics.extend(faults);
    }
    for (file, text) in standby.leaving() {
        if set.take_again(&file, &text) {
            set.out.leaving.insert(file);
        }
    }
    set.finish()
}

/// The same without anything to fall back on, and without a look at endpoints.
pub fn assemble_plain(candidates: Vec<Candidate>) -> Loaded {
    assemble(candidates, None, &Nothing)
}

/// A set of files in the making.
#[derive(Default)]
struct Assembly<'e> {
    out: Loaded,
    endpoints: Option<&'e BTreeSet<String>>,
    fields: FieldTable,
    rules: BTreeMap<String, Arc<RuleSet>>,
    known: Known,
}

/// Why a file is not used: the experiment that it is about, if that much could be read, and its faults.
type Refused = (Option<String>, Vec<Diagnostic>);

impl Assembly<'_> {
    fn take(&mut self, name: &str, text: &str, veto: impl FnOnce(&Parsed) -> Vec<Diagnostic>) -> Result<(), Refused> {
        let kept = self.fields.entries.len();
        let mut parsed = parse_str(name, text, &mut self.fields, self.endpoints);
        let experiment = parsed.rule.as_ref().map(|rule| rule.plan.experiment.clone());
        let duplicate = duplicate(&parsed, &self.rules, name, text);
        let vetoed = (parsed.sources.is_some() && duplicate.is_none()).then(|| veto(&parsed));
        let faults: Vec<Diagnostic> = duplicate.into_iter().chain(vetoed.into_iter().flatten()).collect();
        let joined = parsed.sources.take().filter(|_| faults.is_empty()).map(|found| join(&self.known, found, name, text));
        let refused = match joined {
            Some(Ok(joined)) => {
                self.known = joined;
                self.out.diagnostics.append(&mut parsed.diagnostics);
                self.out.used.push(Used { file: name.to_owned(), text: text.to_owned(), experiment: experiment.clone() });
                self.rules.extend(experiment.zip(parsed.rule.map(Arc::new)));
                return Ok(());
            }
            Some(Err(fault)) => vec![*fault],
            None => faults,
        };
        self.fields.entries.truncate(kept);
        parsed.diagnostics.extend(refused);
        Err((experiment, parsed.diagnostics))
    }

    /// Takes a text that was in force before. Advice about what is not the file's text any more helps nobody.
    fn take_again(&mut self, file: &str, text: &str) -> bool {
        let known = self.out.diagnostics.len();
        let taken = self.take(file, text, |_| Vec::new()).is_ok();
        self.out.diagnostics.truncate(known);
        taken
    }

    fn finish(self) -> Loaded {
        let Assembly { mut out, fields, rules, known, .. } = self;
        sort(&mut out.diagnostics);
        out.sources = Sources::new(known.into_values().map(|(found, _)| found.source).collect());
        out.rules = rules.into_values().collect();
        out.catalog = Catalog::new(out.rules.iter().map(|r| Arc::clone(&r.plan)).collect(), fields);
        out
    }
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
