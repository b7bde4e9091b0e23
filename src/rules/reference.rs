//! The key tables as pages for people: `docs/rule-reference.md`, which the test below holds up to date, and that of rule tests.

use super::keys::{Effect, Key, ROOT, SOURCES, Section, Shape};
use std::fmt::Write as _;

const HEAD: &str = "# Rule reference

Every key of a rule file. This page is written from the table by which `guardraild check` reads rule files, and from which the JSON Schema of editors comes. What the keys do together: [rules.md](rules.md); sources:
[events.md](events.md).

| effect | |
|---|---|
| **acts** | decides whether something is done, what, and who receives it |
| shapes | says how the data is read, counted or judged |
| shown | people and figures alone see it |

A path such as `guardrails[].limit` stands for the key `limit` of each item of `guardrails`; `metrics.*` for each name under `metrics`. A key in **bold** is required.
";

/// A section, and everywhere it stands.
struct Place {
    section: &'static Section,
    paths: Vec<String>,
}

fn page() -> String {
    let effect = |key: &Key| match key.effect {
        Effect::Acts => "**acts**",
        Effect::Shapes => "shapes",
        Effect::Shown => "shown",
    };
    let sources = table(&SOURCES, Some(effect));
    sections(HEAD, &ROOT, Some(effect)) + "\n## A file of sources\n\nHolds no experiment, but sources for all of them.\n\n" + &sources
}

/// A page about all keys below `root`; with `effect`, what each is good for.
pub(crate) fn sections(head: &str, root: &'static Section, effect: Option<fn(&Key) -> &'static str>) -> String {
    let mut places = vec![Place { section: root, paths: vec![String::new()] }];
    let mut next = 0;
    while next < places.len() {
        let (section, path) = (places[next].section, places[next].paths[0].clone());
        for key in section.keys {
            let at = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            inside(&key.shape, at, &mut places);
        }
        next += 1;
    }
    let mut out = head.to_owned();
    for place in &places {
        let paths: Vec<String> = place.paths.iter().map(|p| format!("`{p}`")).collect();
        let title = if place.paths[0].is_empty() { "The file".to_owned() } else { paths.join(", ") };
        let _ = write!(out, "\n## {title}\n\n{}", table(place.section, effect));
    }
    out
}

/// The sections that a value may hold, each once.
fn inside(shape: &Shape, path: String, places: &mut Vec<Place>) {
    match shape {
        Shape::List(item) | Shape::OneOrList(item) => inside(item, format!("{path}[]"), places),
        Shape::MapOf(value) | Shape::PointerOrMapOf(value) => inside(value, format!("{path}.*"), places),
        Shape::Section(section) | Shape::NameOr(section) | Shape::OffOr(section) | Shape::PointersOr(section) => {
            match places.iter_mut().find(|p| std::ptr::eq(p.section, *section)) {
                // Fields of events are everywhere: one place is named.
                Some(known) if !path.contains("event") => known.paths.push(path),
                Some(_) => {}
                None => places.push(Place { section, paths: vec![path] }),
            }
        }
        _ => {}
    }
}

fn table(section: &Section, effect: Option<fn(&Key) -> &'static str>) -> String {
    let (name, rule) = if effect.is_some() { (" effect |", "---|") } else { ("", "") };
    let mut out = format!("| key | value | default | example |{name} |\n|---|---|---|---|{rule}---|\n");
    for key in section.keys {
        let name = if key.required { format!("**`{}`**", key.name) } else { format!("`{}`", key.name) };
        let (default, doc) = default(key);
        let example = if key.example.is_empty() { String::new() } else { format!("`{}`", key.example) };
        let effect = effect.map(|of| of(key).to_owned());
        let cells = [name, value(&key.shape), default, example].into_iter().chain(effect).chain([doc]);
        let _ = writeln!(out, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>().join(" | "));
    }
    out
}

/// The default that the description ends with, and the rest of it.
fn default(key: &Key) -> (String, String) {
    let Some(at) = key.doc.find("Default") else { return (String::new(), key.doc.to_owned()) };
    let (before, sentence) = key.doc.split_at(at);
    let (sentence, after) = sentence.split_once(". ").unwrap_or((sentence.trim_end_matches('.'), ""));
    let text = sentence.trim_start_matches("Default").trim_start_matches(':').trim();
    (text.to_owned(), format!("{before}{after}").trim().to_owned())
}

/// What a value looks like, with its units.
fn value(shape: &Shape) -> String {
    let words = |words: &[&str]| words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
    match shape {
        Shape::Any => "anything".to_owned(),
        Shape::Scalar => "text, number, true or false".to_owned(),
        Shape::Text => "text".to_owned(),
        Shape::Name => "name".to_owned(),
        Shape::Bool => "`true`, `false`".to_owned(),
        Shape::Int(least) => format!("whole number, at least {least}"),
        Shape::Probability => "number above 0 and below 1".to_owned(),
        Shape::Percent => "share, `0%` to `100%`".to_owned(),
        Shape::Duration => "time in us, ms, s, m, h, d or w".to_owned(),
        Shape::Quantity => "number with the metric's unit: `%`, `pp`, a time, or none".to_owned(),
        Shape::Frequency => "number per s, m, h, day or week".to_owned(),
        Shape::Timestamp => "time, RFC 3339".to_owned(),
        Shape::Pointer => "JSON Pointer".to_owned(),
        Shape::Pointers => "JSON Pointer, or a list of them".to_owned(),
        Shape::Const(word) => format!("`{word}`"),
        Shape::Word(list) => words(list),
        Shape::List(item) => format!("list: {}", value(item)),
        Shape::OneOrList(item) => format!("{}, or a list of them", value(item)),
        Shape::MapOf(item) => format!("by name: {}", value(item)),
        Shape::Section(_) => "section".to_owned(),
        Shape::NameOr(_) => "name, or section".to_owned(),
        Shape::OffOr(_) => "`off`, or section".to_owned(),
        Shape::PointersOr(_) => "JSON Pointer, a list of them, or section".to_owned(),
        Shape::PointerOrMapOf(item) => format!("JSON Pointer, or by name: {}", value(item)),
    }
}

/// `GUARDRAILD_UPDATE=1 cargo test --lib rules::reference` writes the page anew.
#[test]
fn the_committed_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rule-reference.md");
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    assert!(std::fs::read_to_string(path).unwrap_or_default() == page(), "run this test with GUARDRAILD_UPDATE=1");
}
