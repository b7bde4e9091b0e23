//! The habits of this code base, held by an ordinary test. Each failure names file and line, and what to do.
#![allow(clippy::unwrap_used)] // a test that fails should say where

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Crates that the pure half may use. `jiff` formats times there, in one file.
const ENGINE_CRATES: [&str; 12] =
    ["std", "core", "serde", "hdrhistogram", "jiff", "sha2", "smallvec", "foldhash", "hashbrown", "postcard", "libm", "xxhash_rust"];
/// What the pure half may not touch, even in std.
const IMPURE: [&str; 9] = ["SystemTime", "Instant", "thread", "rand", "fs", "net", "env", "process", "RandomState"];
/// What an edge may know beside itself. Settings are plain values, and every part counts; deliveries are rows of the store, and go
/// where checked rules say.
const KNOWN: [(&str, &[&str]); 7] = [
    ("config", &[]),
    ("telemetry", &["config"]),
    ("rules", &[]),
    ("store", &[]),
    ("ingest", &["config", "telemetry"]),
    ("http", &["config", "telemetry"]),
    ("delivery", &["config", "telemetry", "store", "rules"]),
];
const MAX_LINES: usize = 600;

struct Source {
    path: PathBuf,
    /// Line number and text without comments, strings and test code.
    code: Vec<(usize, String)>,
    /// Lines outside of test code.
    lines: usize,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files under a folder, by name, without build products and hidden folders.
fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != "node_modules" && (!name.starts_with('.') || name == ".ci") {
                files(&path, into);
            }
        } else {
            into.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn is_test_file(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n == "tests.rs") || path.iter().any(|part| part == "tests")
}

/// All of `src`, test files left out.
fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files(&root().join("src"), &mut paths);
    paths.retain(|p| p.extension().is_some_and(|e| e == "rs"));
    let sources: Vec<Source> = paths
        .iter()
        .map(|p| (p.strip_prefix(root()).unwrap().to_path_buf(), read(p)))
        .filter(|(path, _)| !is_test_file(path.strip_prefix("src").unwrap()))
        .map(|(path, text)| Source { lines: outside_tests(&text).count(), code: code(&text), path })
        .collect();
    assert!(sources.len() > 10, "found {} files in src", sources.len());
    sources
}

/// Numbered lines that are not inside an item marked `#[cfg(test)]`.
fn outside_tests(text: &str) -> impl Iterator<Item = (usize, &str)> {
    /// The item under a `#[cfg(test)]`: it ends at its closing brace, or in its first line at a semicolon.
    enum At {
        Code,
        Head(usize),
        Body(usize),
    }
    let mut at = At::Code;
    text.lines().enumerate().filter_map(move |(i, line)| {
        let indent = line.len() - line.trim_start().len();
        match at {
            At::Code if line.trim() == "#[cfg(test)]" => at = At::Head(indent),
            At::Code => return Some((i + 1, line)),
            At::Head(_) if line.trim().ends_with([';', '}']) => at = At::Code,
            At::Head(depth) if line.trim().ends_with('{') => at = At::Body(depth),
            At::Body(depth) if indent == depth && line.trim() == "}" => at = At::Code,
            At::Head(_) | At::Body(_) => {}
        }
        None
    })
}

/// Numbered lines of code alone: without comments, contents of strings and test code.
fn code(text: &str) -> Vec<(usize, String)> {
    outside_tests(text).map(|(n, line)| (n, strip(line))).filter(|(_, line)| !line.trim().is_empty()).collect()
}

/// A line without its `//` comment and the contents of its strings.
fn strip(line: &str) -> String {
    let (mut out, mut in_string, mut chars) = (String::new(), false, line.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            '\'' if !in_string && chars.peek() == Some(&'"') => {
                chars.next(); // the character '"'
            }
            '"' => in_string = !in_string,
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            c if !in_string => out.push(c),
            _ => {}
        }
    }
    out
}

fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !is_ident(c)).filter(|w| !w.is_empty())
}

/// Each path of a file as its segments, with its line; a `use` with braces yields one path for each name in it.
fn paths(source: &Source) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut open: Vec<Vec<String>> = Vec::new(); // prefixes of the `{` groups of a `use`
    let mut in_use = false;
    for (number, line) in &source.code {
        let mut segments: Vec<String> = Vec::new();
        let mut rest = line.as_str();
        while let Some(c) = rest.chars().next() {
            let word: &str = rest.split(|c: char| !is_ident(c)).next().unwrap_or_default();
            if !word.is_empty() {
                in_use |= word == "use";
                segments.push(word.to_owned());
                rest = &rest[word.len()..];
                if rest.starts_with("::") {
                    rest = &rest[2..];
                    if in_use && rest.starts_with('{') {
                        let prefix = open.last().cloned().unwrap_or_default();
                        open.push([prefix, std::mem::take(&mut segments)].concat());
                        rest = &rest[1..];
                    }
                    continue;
                }
                let path = [open.last().cloned().unwrap_or_default(), std::mem::take(&mut segments)].concat();
                if path.len() > 1 {
                    found.push((*number, path));
                }
                continue;
            }
            if segments.len() > 1 {
                found.push((*number, std::mem::take(&mut segments))); // `a::b::<T>`, `a::*`
            }
            match c {
                '}' if in_use => drop(open.pop()),
                ';' => {
                    in_use = false;
                    open.clear();
                }
                _ => {}
            }
            segments.clear();
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

/// Crates that Cargo.toml names, as they are written in paths.
fn dependencies() -> Vec<String> {
    let manifest = read(&root().join("Cargo.toml"));
    let section = |line: &str| line.starts_with('[') && line.trim_end().ends_with("dependencies]");
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = section(line);
        } else if let Some((name, _)) = line.split_once('=').filter(|_| inside) {
            names.push(name.trim().replace('-', "_"));
        }
    }
    assert!(names.iter().any(|n| n == "rdkafka"), "dependencies were not read: {names:?}");
    names
}

/// Ends the test with all faults at once.
fn none(faults: String) {
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn engine_stands_on_std_and_arithmetic_alone() {
    let dependencies = dependencies();
    let mut faults = String::new();
    for source in sources().iter().filter(|s| s.path.starts_with("src/engine")) {
        let file = source.path.display();
        // The module's depth below the crate: `engine` is 1, and as many `super` lead out of the engine.
        let is_mod = source.path.ends_with("mod.rs");
        let depth = source.path.iter().count() - 1 - usize::from(is_mod);
        for (line, path) in paths(source) {
            let (first, whole) = (path[0].as_str(), path.join("::"));
            let escapes = first == "crate" && path[1] != "engine" || path.iter().take_while(|s| *s == "super").count() >= depth;
            let foreign = dependencies.iter().any(|d| d == first) && !ENGINE_CRATES.contains(&first);
            let impure = ["std", "core"].contains(&first) && path.iter().any(|s| IMPURE.contains(&s.as_str()));
            if escapes || foreign || impure {
                let _ = writeln!(faults, "{file}:{line}: `{whole}` in the engine: pass what it needs as an argument, or do it in an edge");
            }
            if first == "jiff" && !source.path.ends_with("decision.rs") {
                let _ = writeln!(faults, "{file}:{line}: `{whole}`: time is `Millis` in the engine; decision.rs alone writes it out");
            }
        }
        for (line, text) in &source.code {
            if let Some(word) = words(text).find(|w| ["SystemTime", "Instant"].contains(w)) {
                let _ = writeln!(faults, "{file}:{line}: `{word}` in the engine: time comes in as an argument");
            }
        }
    }
    none(faults);
}

#[test]
fn edges_do_not_know_each_other() {
    let mut faults = String::new();
    for source in sources() {
        let module = source.path.iter().nth(1).unwrap().to_string_lossy().into_owned();
        let edge = module.trim_end_matches(".rs");
        let Some((_, known)) = KNOWN.iter().find(|(name, _)| *name == edge) else { continue };
        for (line, path) in paths(&source) {
            let other = path[1].as_str();
            let above = ["app", "cli", "tools"].contains(&other);
            let beside = KNOWN.iter().any(|(name, _)| *name == other) && other != edge && !known.contains(&other);
            if path[0] == "crate" && (above || beside) {
                let file = source.path.display();
                let _ = writeln!(
                    faults,
                    "{file}:{line}: `{edge}` uses `{other}`: hand the value over in src/app.rs, or move the type down to engine"
                );
            }
        }
    }
    none(faults);
}

#[test]
fn files_are_short() {
    let mut faults = String::new();
    for source in sources().iter().filter(|s| s.lines > MAX_LINES) {
        let (file, lines) = (source.path.display(), source.lines);
        let _ = writeln!(faults, "{file}:{MAX_LINES}: {lines} lines without its tests: split it where a reader would look for the parts");
    }
    none(faults);
}

#[test]
fn unsafe_code_lives_in_one_module() {
    let mut faults = String::new();
    for source in sources().iter().filter(|s| s.path != Path::new("src/ingest/batch.rs")) {
        for (line, _) in source.code.iter().filter(|(_, text)| words(text).any(|w| w == "unsafe")) {
            let _ = writeln!(faults, "{}:{line}: unsafe code: find a safe way, or move it to src/ingest/batch.rs", source.path.display());
        }
    }
    none(faults);
}

#[test]
fn nothing_is_left_unfinished_or_untidy() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("unimplemented", "!(")];
    let mut all = Vec::new();
    files(root(), &mut all);
    let mut faults = String::new();
    for path in all {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let file = path.strip_prefix(root()).unwrap();
        let ours = ["rs", "py", "xml", "service", "yaml", "yml", "toml", "md", "sh", "sql", "js", "css", "html"]
            .iter()
            .any(|e| file.extension().is_some_and(|x| x == *e));
        if !ours && file.extension().is_some() || file.ends_with("LICENSE") {
            continue;
        }
        for (i, line) in text.lines().enumerate() {
            let (file, line_number) = (file.display(), i + 1);
            if line.ends_with([' ', '\t']) {
                let _ = writeln!(faults, "{file}:{line_number}: trailing white space: remove it");
            }
            if let Some(mark) = marks.iter().find(|m| line.contains(*m)) {
                let _ = writeln!(faults, "{file}:{line_number}: `{mark}`: finish it, or file it as an issue");
            }
        }
    }
    none(faults);
}

#[test]
fn documents_are_there() {
    let missing: Vec<&str> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "deploy/RUNBOOK.md"]
        .into_iter()
        .filter(|f| !root().join(f).is_file())
        .collect();
    assert!(missing.is_empty(), "write {missing:?}");
}

#[test]
fn every_alert_has_a_test_and_a_section_of_the_runbook() {
    let alerts = read(&root().join("deploy/prometheus/alerts.yaml"));
    let tests = read(&root().join("deploy/prometheus/alerts_test.yaml"));
    let runbook = read(&root().join("deploy/RUNBOOK.md"));
    let mut names = Vec::new();
    let mut faults = String::new();
    for (i, line) in alerts.lines().enumerate() {
        let at = format!("deploy/prometheus/alerts.yaml:{}", i + 1);
        if let Some(name) = line.trim().strip_prefix("- alert: ") {
            if !tests.contains(&format!("alertname=\"{name}\"")) {
                let _ = writeln!(faults, "{at}: {name} has no test: add one to alerts_test.yaml");
            }
            if !runbook.lines().any(|l| l == format!("## {name}")) {
                let _ = writeln!(faults, "{at}: write a section `## {name}` in deploy/RUNBOOK.md");
            }
            names.push(name);
        }
        if let Some(url) = line.trim().strip_prefix("runbook_url: ") {
            let wanted = names.last().map(|n| format!("deploy/RUNBOOK.md#{}", n.to_lowercase()));
            if Some(url) != wanted.as_deref() {
                let _ = writeln!(faults, "{at}: runbook_url is {url}, wanted {wanted:?}");
            }
        }
    }
    assert!(names.len() > 10, "found {} alerts", names.len());
    for (i, line) in runbook.lines().enumerate() {
        if let Some(name) = line.strip_prefix("## ").filter(|n| n.starts_with("Guardraild") && !names.contains(n)) {
            let _ = writeln!(faults, "deploy/RUNBOOK.md:{}: no alert is called {name}: remove the section", i + 1);
        }
    }
    none(faults);
}

#[test]
fn the_unit_hands_over_the_credentials_of_the_example() {
    let (unit, example) = (read(&root().join("deploy/guardraild.service")), read(&root().join("config/example.yaml")));
    let named: Vec<&str> = example.split("{credential: ").skip(1).filter_map(|rest| rest.split('}').next()).filter(|n| *n != "…").collect();
    assert!(!named.is_empty(), "config/example.yaml names no credential");
    let mut faults = String::new();
    for name in named.iter().filter(|n| !unit.contains(&format!("LoadCredential={n}:"))) {
        let _ = writeln!(faults, "deploy/guardraild.service:1: no LoadCredential={name}, which config/example.yaml names: add it");
    }
    none(faults);
}

#[test]
fn alerts_and_the_dashboard_ask_for_metrics_that_exist() {
    let telemetry: String = sources().iter().filter(|s| s.path.starts_with("src/telemetry")).map(|s| read(&root().join(&s.path))).collect();
    let mut faults = String::new();
    let asking = ["deploy/prometheus/alerts.yaml", "deploy/prometheus/new-checkout.yaml", "deploy/grafana/guardraild.json"];
    let lines: Vec<(String, String)> = asking
        .iter()
        .flat_map(|file| {
            let text = read(&root().join(file));
            text.lines().enumerate().map(|(i, line)| (format!("{file}:{}", i + 1), line.to_owned())).collect::<Vec<_>>()
        })
        .collect();
    for (at, line) in &lines {
        for metric in words(line).filter_map(|w| w.strip_prefix("guardraild_")) {
            let name = ["_bucket", "_count", "_sum", "_total"].iter().find_map(|s| metric.strip_suffix(s)).unwrap_or(metric);
            let known = [metric, name]
                .iter()
                .any(|n| telemetry.contains(&format!("\"{n}\"")) || telemetry.contains(&format!("\"guardraild_{n}\"")));
            if !known {
                let _ = writeln!(faults, "{at}: no metric guardraild_{metric} in src/telemetry");
            }
        }
    }
    none(faults);
}

#[test]
fn the_checks_see_what_they_look_for() {
    let text = "use std::{fs, io::{self, Read}};\nuse crate::engine::x; // crate::http\nlet s = \"crate::store\"; rand::f::<u8>(); let c = '\"';\n\
                crate::http::f();\n#[cfg(test)]\nmod tests {\n    use crate::store;\n}\nsuper::super::g();\n#[cfg(test)]\nmod more;\nend::here()\n";
    let source = Source { path: PathBuf::from("src/x.rs"), code: code(text), lines: 0 };
    let found: Vec<(usize, String)> = paths(&source).into_iter().map(|(n, p)| (n, p.join("::"))).collect();
    let wanted = [
        (1, "std::fs"),
        (1, "std::io::self"),
        (1, "std::io::Read"),
        (2, "crate::engine::x"),
        (3, "rand::f"),
        (4, "crate::http::f"),
        (9, "super::super::g"),
        (12, "end::here"),
    ];
    assert_eq!(found, wanted.map(|(n, p)| (n, p.to_owned())));
}
