//! Test files: YAML in, cases out, or every fault with its place.

mod parts;

use super::case::{Case, Suite, Synthetic, TestFile, first_fault};
use super::expect::{self, Names, show};
use super::keys;
use crate::engine::plan::{FieldTable, Plan, Settings};
use crate::engine::time::Millis;
use crate::ingest::decode::{Decoder, Limits};
use crate::ingest::file::Recording;
use crate::mapping::{Source, Sources};
use crate::rules::diagnostic::{Diagnostic, Faults, nearest, quote, sort};
use crate::rules::quantity::{duration, percent};
use crate::rules::shape::check_section;
use crate::rules::yaml::{self, Kind, Node};
use crate::rules::{self, Planning, RuleSet};
use crate::tools::simulate::{Spec, Traffic, read_node};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Cases of one file, faults of a case, records, operations, expectations, partitions and seeds at most.
const MAX_CASES: usize = 1_000;
const MAX_ITEMS: usize = 256;
const MAX_PARTITIONS: usize = 16;
const MAX_SEEDS: u64 = 1_000_000;
const LONGEST: Millis = 30 * 86_400_000;
const DAY: Millis = 86_400_000;

/// Reads a test file and the rule files that it is about.
///
/// # Errors
/// All faults of all of them.
pub fn load(path: &Path) -> Result<TestFile, Vec<Diagnostic>> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| vec![Diagnostic::file(&name, "GR1011", format!("cannot be read: {e}"))])?;
    let mut faults = Faults::new(&name, &text);
    let root = match yaml::parse(&text) {
        Ok(root) => root,
        Err(fault) => {
            faults.error(&fault.span, fault.code, fault.message, fault.label);
            return Err(faults.into_vec());
        }
    };
    check_section(&root, &keys::ROOT, &mut faults);
    if faults.has_errors() {
        return Err(faults.into_vec());
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut file = TestFile { name, text: text.as_str().into(), suites: Vec::new(), reads: vec![path.to_owned()] };
    let mut of_rules = Vec::new();
    for (span, rules) in under_test(&root, path) {
        file.reads.push(rules.clone());
        match under(&rules, &span, &mut faults) {
            Ok(under) => file.suites.extend(suite(&root, folder, under, &mut faults)),
            Err(found) => of_rules.extend(found),
        }
    }
    let recorded = file.suites.iter().flat_map(|s| s.cases.iter().flat_map(|c| c.events.clone()));
    file.reads.extend(recorded.collect::<Vec<_>>());
    if !faults.has_errors() && of_rules.is_empty() {
        return Ok(file);
    }
    let mut found = faults.into_vec();
    found.extend(of_rules);
    sort(&mut found);
    Err(found)
}

/// The rule files, and where they are named.
fn under_test(root: &Node, path: &Path) -> Vec<(Range<usize>, PathBuf)> {
    let folder = path.parent().unwrap_or(Path::new(""));
    match root.get("rules") {
        None => {
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            let name = format!("{}.{}", stem.trim_end_matches("_test"), path.extension().and_then(|e| e.to_str()).unwrap_or("yaml"));
            vec![(0..0, folder.join(name))]
        }
        Some(node) => one_or_more(node).into_iter().map(|(span, name)| (span, folder.join(name))).collect(),
    }
}

fn one_or_more(node: &Node) -> Vec<(Range<usize>, String)> {
    let of = |node: &Node| node.text().map(|text| (node.span.clone(), text.to_owned()));
    match &node.kind {
        Kind::List(items) => items.iter().filter_map(of).collect(),
        _ => of(node).into_iter().collect(),
    }
}

/// A rule file under test.
struct Under {
    rule: Arc<RuleSet>,
    fields: FieldTable,
    sources: Sources,
    planning: Planning,
}

/// Reads a rule file; its own faults are errors.
fn under(path: &Path, span: &Range<usize>, faults: &mut Faults) -> Result<Under, Vec<Diagnostic>> {
    let loaded = rules::load(&[path.to_owned()], None);
    let errors: Vec<Diagnostic> = loaded.diagnostics.into_iter().filter(Diagnostic::is_error).collect();
    let Some(rule) = loaded.rules.into_iter().next().filter(|_| errors.is_empty()) else {
        let fault = faults.at(span, "GR3007", format!("the rule file {} cannot be tested", quote(&path.display().to_string())));
        let label = if errors.is_empty() { "it holds no experiment" } else { "see its own faults" };
        faults.push(fault.with_label(label).with_help("`rules:` names it, from the folder of this file"));
        return Err(errors);
    };
    let text = std::fs::read_to_string(path).unwrap_or_default();
    Ok(Under { rule, fields: loaded.catalog.fields, sources: loaded.sources, planning: Planning::of(&text) })
}

fn suite(root: &Node, folder: &Path, under: Under, faults: &mut Faults) -> Option<Suite> {
    let cases = root.get("cases")?;
    if !(1..=MAX_CASES).contains(&cases.list().len()) {
        faults.error(&cases.span, "GR1008", format!("{} cases", cases.list().len()), format!("1 to {MAX_CASES} of a file"));
    }
    let plan = &under.rule.plan;
    let mut base = Traffic::of(plan, &under.planning);
    if let Some(node) = root.get("traffic") {
        base = read_node(node, plan, &base, faults);
    }
    let names: Vec<&str> = cases.list().iter().filter_map(|c| c.get("name")?.text()).collect();
    for (i, case) in cases.list().iter().enumerate() {
        if let Some(node) = case.get("name").filter(|n| n.text().is_some_and(|name| names[..i.min(names.len())].contains(&name))) {
            faults.error(
                &node.span,
                "GR1004",
                format!("{} is given twice", quote(node.text().unwrap_or_default())),
                "cases are told by their names",
            );
        }
    }
    let read = |case: &Node| Reader { node: case, under: &under, folder, faults: &mut *faults }.case(&base);
    let cases = cases.list().iter().filter_map(read).collect();
    Some(Suite { rule: Arc::clone(&under.rule), fields: under.fields.clone(), cases })
}

/// Of a case.
struct Reader<'a> {
    node: &'a Node,
    under: &'a Under,
    folder: &'a Path,
    faults: &'a mut Faults,
}

impl Reader<'_> {
    fn case(&mut self, base: &Traffic) -> Option<Case> {
        let name = self.node.get("name")?;
        let plan = Arc::clone(&self.under.rule.plan);
        for key in ["faults", "records", "operations", "expect"] {
            if let Some(list) = self.node.get(key).filter(|list| list.list().len() > MAX_ITEMS) {
                self.faults.error(&list.span, "GR1008", format!("{} {key}", list.list().len()), format!("at most {MAX_ITEMS}"));
            }
        }
        let events: Vec<PathBuf> =
            self.node.get("events").map_or(Vec::new(), one_or_more).into_iter().map(|(_, f)| self.folder.join(f)).collect();
        let settings = Settings { pane: self.span("pane", 1, 3_600_000).unwrap_or(Settings::default().pane), ..Settings::default() };
        let length = self.length(&events, settings.pane);
        let traffic = match self.node.get("traffic") {
            Some(node) => Some(read_node(node, &plan, base, self.faults)),
            None => events.is_empty().then(|| base.clone()),
        };
        let partitions = self.whole("partitions", 1, MAX_PARTITIONS as u64) as usize;
        let seeds = self.whole("seeds", 1, MAX_SEEDS);
        let source = self.source();
        let recorded = (!events.is_empty()).then(|| self.begin(&events, source.as_ref(), settings.pane)).flatten();
        let mut synthetic = traffic.zip(length).and_then(|(traffic, length)| self.synthetic(&plan, &settings, traffic, length));
        if let (Some(synthetic), Some(start)) = (&mut synthetic, recorded) {
            synthetic.spec.start = start;
        }
        if synthetic.is_none() {
            self.alone();
        }
        let wrongs = self.list("faults", |reader| reader.fault(length, partitions));
        let harms = synthetic.as_ref().map(|s| self.harms(&s.spec)).unwrap_or_default();
        let records = self.list("records", |reader| reader.record(length, partitions));
        let operations = self.list("operations", |reader| reader.operation(length));
        let endpoints = self.endpoints();
        let mut known: Vec<String> = self.under.rule.routes.values().map(|r| r.endpoint.clone()).collect();
        known.extend(endpoints.iter().flat_map(|(name, r)| [Some(name.clone()), r.escalate_to.clone()]).flatten());
        known.sort();
        known.dedup();
        let first_fault = first_fault(&wrongs);
        let names = Names { plan: &plan, endpoints: &known, length, first_fault, seeds };
        let expect = self.node.get("expect")?.list();
        if expect.is_empty() {
            self.faults.error(&name.span, "GR3001", "a case that expects nothing", "add to `expect`, for example `{never: any}`");
        }
        let expect = expect.iter().filter_map(|node| expect::read(node, &names, self.faults)).collect();
        let start = recorded.or(synthetic.as_ref().map(|s| s.spec.start)).unwrap_or(0);
        Some(Case {
            name: name.text()?.to_owned(),
            span: name.span.clone(),
            synthetic: synthetic.map(|s| Synthetic { harms, ..s }),
            events,
            source,
            settings,
            start,
            partitions,
            seeds,
            faults: wrongs,
            records,
            operations,
            endpoints,
            expect,
        })
    }

    /// How long the case is played; `None` where a recording says it.
    fn length(&mut self, events: &[PathBuf], pane: Millis) -> Option<Millis> {
        let Some(node) = self.node.get("for") else {
            if events.is_empty() || self.node.get("traffic").is_some() {
                self.faults.error(&self.node.span, "GR1003", "how long is the case played?", "add `for`, for example `for: 40m`");
            }
            return None;
        };
        let length = node.text().and_then(duration)? / pane * pane;
        if !(pane..=LONGEST).contains(&length) {
            self.faults.error(&node.span, "GR2404", "a time out of range", "from one pane to 30d");
        }
        if !events.is_empty() && self.node.get("traffic").is_none() {
            self.faults.error(&node.span, "GR3004", "recorded events are played to their end", "leave `for` out, or add `traffic`");
        }
        Some(length)
    }

    /// What needs synthetic traffic.
    fn alone(&mut self) {
        for key in ["faults", "records", "partitions", "seeds"] {
            let of = self.node.entries().iter().find(|e| e.key == key);
            let goes_on = |n: &Node| n.list().iter().all(|f| f.entries().iter().all(|e| ["from", "until"].contains(&e.key.as_str())));
            if let Some(entry) = of.filter(|e| key != "faults" || !goes_on(&e.value)) {
                let label = "recorded events are what they are; beside `traffic` they may have it";
                self.faults.error(&entry.key_span, "GR3004", format!("{} without synthetic traffic", quote(key)), label);
            }
        }
    }

    fn synthetic(&mut self, plan: &Arc<Plan>, settings: &Settings, traffic: Traffic, length: Millis) -> Option<Synthetic> {
        let plan = Plan::clone(plan);
        match Spec::new(plan, self.under.fields.clone(), settings.clone(), traffic, length) {
            Ok(spec) => Some(Synthetic { spec, harms: Vec::new() }),
            Err(error) => {
                self.faults.error(&self.node.span, "GR3004", "the case cannot be played", error.to_string());
                None
            }
        }
    }

    /// The pane of the first recorded event.
    fn begin(&mut self, events: &[PathBuf], source: Option<&Arc<Source>>, pane: Millis) -> Option<Millis> {
        let mut decoder = Decoder::new(&self.under.fields, Limits::default());
        let mut first = None;
        let recording = Recording { files: events, source, limits: Limits::default() };
        let found = recording.each(|line| {
            first = decoder.decode(line).ok().map(|event| event.ts);
            // It is enough to have seen one.
            if first.is_some() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        });
        let why = match found {
            _ if first.is_some() => return first.map(|ts| ts.div_euclid(pane) * pane),
            Ok(_) => "no event in it can be read".to_owned(),
            Err(error) => error.to_string(),
        };
        let span = self.node.get("events").map_or(self.node.span.clone(), |n| n.span.clone());
        self.faults.error(&span, "GR1011", "recorded events cannot be read", why);
        None
    }

    fn source(&mut self) -> Option<Arc<Source>> {
        let node = self.node.get("source")?;
        let name = node.text()?;
        let found = self.under.sources.named(name).cloned();
        if found.is_none() {
            let known = self.under.sources.iter().map(|s| s.name.as_str());
            let label = nearest(name, known)
                .map_or_else(|| "see `instrumentation.sources`".to_owned(), |near| format!("did you mean {}?", quote(near)));
            self.faults.error(&node.span, "GR3006", format!("the rule has no source {}", quote(name)), label);
        }
        found
    }

    /// Reads each item of a list as a node of its own.
    fn list<T>(&mut self, key: &str, mut read: impl FnMut(&mut Reader<'_>) -> Option<T>) -> Vec<T> {
        let items = self.node.get(key).map_or(&[][..], Node::list);
        let (under, folder) = (self.under, self.folder);
        items.iter().filter_map(|node| read(&mut Reader { node, under, folder, faults: &mut *self.faults })).collect()
    }

    /// A whole number whose key has the shape of one; its least where it is left out.
    fn whole(&mut self, key: &str, least: u64, most: u64) -> u64 {
        let Some(node) = self.node.get(key) else { return least };
        let n = node.text().and_then(|text| text.parse().ok()).unwrap_or(least);
        if n > most {
            self.faults.error(&node.span, "GR2203", "number out of range", format!("from {least} to {most}"));
        }
        n.clamp(least, most)
    }

    fn span(&mut self, key: &str, least: Millis, most: Millis) -> Option<Millis> {
        let node = self.node.get(key)?;
        let span = node.text().and_then(duration)?;
        if !(least..=most).contains(&span) {
            self.faults.error(&node.span, "GR2404", "a time out of range", format!("from {} to {}", show(least), show(most)));
        }
        Some(span)
    }

    /// A time within the case.
    fn time(&mut self, key: &str, length: Option<Millis>) -> Option<Millis> {
        let node = self.node.get(key)?;
        let at = node.text().and_then(duration)?;
        inside(node, at, length, self.faults);
        Some(at)
    }

    fn share(&self, key: &str) -> f64 {
        self.node.get(key).and_then(Node::text).and_then(percent).unwrap_or(0.0)
    }

    fn flag(&self, key: &str) -> bool {
        self.node.get(key).and_then(Node::boolean).unwrap_or(false)
    }

    fn partition(&mut self, partitions: usize) -> Option<usize> {
        let node = self.node.get("partition")?;
        let n = node.text()?.parse().ok()?;
        if n >= partitions {
            let label = format!("the case has {partitions}: 0 to {}; `partitions` says how many", partitions - 1);
            self.faults.error(&node.span, "GR2203", "no such partition", label);
        }
        Some(n)
    }
}

/// The index of the bucket that a node names.
pub fn bucket(node: &Node, plan: &Plan, faults: &mut Faults) -> Option<usize> {
    let name = node.text()?;
    let found = plan.bucket(name);
    if found.is_none() {
        let names = || plan.buckets.iter().map(|b| b.name.as_str());
        let label = nearest(name, names()).map_or_else(
            || format!("there are {}", names().collect::<Vec<_>>().join(", ")),
            |near| format!("did you mean {}?", quote(near)),
        );
        faults.error(&node.span, "GR2507", format!("no such bucket: {}", quote(name)), label);
    }
    found
}

/// Whether a time lies within the case.
pub fn inside(node: &Node, at: Millis, length: Option<Millis>, faults: &mut Faults) {
    if let Some(length) = length.filter(|length| at > *length) {
        faults.error(&node.span, "GR3002", "a time beyond the end of the case", format!("it is played for {}", show(length)));
    }
}
