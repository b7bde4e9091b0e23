//! Which files are meant by paths: rule files, and the tests of rules beside them.

use super::diagnostic::Diagnostic;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Directories inside directories at most.
const MAX_DEPTH: usize = 16;

/// Rule files in the order of their paths, each once; of directories all `*.yaml` and `*.yml` below them. Hidden files are left out, and
/// [tests](is_test) even if they are named: `rules/*.yaml` of a shell names them, too.
pub(super) fn rule_files(paths: &[PathBuf], diagnostics: &mut Vec<Diagnostic>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = found.len();
            walk(path, 0, false, &mut found, diagnostics);
            if found.len() == before {
                diagnostics.push(Diagnostic::file(&path.display().to_string(), "GR1012", "no rule files in this directory").as_warning());
            }
        } else if !is_test(path) {
            found.push(path.clone());
        }
    }
    each_once(found)
}

/// Tests of rules (`*_test.yaml`, `*_test.yml`) in the order of their paths, each once; of directories all below them.
pub fn test_files(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            // What is wrong with a directory is told by whoever looks for rule files there.
            walk(path, 0, true, &mut found, &mut Vec::new());
        } else if is_test(path) {
            found.push(path.clone());
        }
    }
    each_once(found)
}

/// Whether the name of a file is that of a test of rules.
pub fn is_test(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).and_then(stem).is_some_and(|stem| stem.ends_with("_test"))
}

fn stem(name: &str) -> Option<&str> {
    name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml"))
}

fn each_once(mut found: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    found.retain(|file| seen.insert(fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
    found
}

fn walk(directory: &Path, depth: usize, tests: bool, found: &mut Vec<PathBuf>, diagnostics: &mut Vec<Diagnostic>) {
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
                walk(&path, depth + 1, tests, found, diagnostics);
            }
        } else if stem(name).is_some() && is_test(&path) == tests {
            found.push(path);
        }
    }
}
