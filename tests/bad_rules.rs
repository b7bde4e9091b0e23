//! Rule files with one fault each under `tests/bad_rules/`; beside each, what `check` says of it. Each code has a page and an example.
//!
//! `GUARDRAILD_UPDATE=1 cargo test --test bad_rules` writes the texts anew.

#![allow(clippy::unwrap_used)]

use guardraild::engine::plan::{FieldTable, Settings};
use guardraild::rules::{checked, codes, load, parse_str, test_files};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Codes that need no fixture here: a test below or beside the code makes them.
const ELSEWHERE: &[&str] = &["GR1008", "GR1011", "GR1012", "GR2305", "GR2801", "GR2803", "GR2804", "GR2805"];
/// Begin of the codes of rule tests, whose fixtures are in `tests/rule_tests`.
const OF_TESTS: &str = "GR3";

const GOOD: &str = "guardrail: v1
overview: {experiment: NAME, owner: checkout}
buckets: {control: {baseline: true}, treatment: {}}
guardrails: [{metric: latency_p95, max_increase: 10%}, {metric: error_rate, max_increase: 0.5pp}]
actions: {mode: enforce, rollback: {webhook: flag-service}}
";

fn fixtures() -> Vec<PathBuf> {
    let listed = fs::read_dir("tests/bad_rules").unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = listed.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
}

/// Codes of a text's faults.
fn said(text: &str) -> Vec<&'static str> {
    parse_str("x.yaml", text, &mut FieldTable::default(), None).diagnostics.iter().map(|d| d.code).collect()
}

#[test]
fn every_fixture_is_told_its_fault() {
    let endpoints = BTreeSet::from(["flag-service".to_owned(), "kill-switch".to_owned()]);
    let mut seen = BTreeSet::new();
    let mut stale = Vec::new();
    for path in fixtures() {
        let loaded = checked(std::slice::from_ref(&path), Some(&endpoints), &Settings::default());
        let several = path.ends_with("several.yaml");
        assert!(several || loaded.diagnostics.len() == 1, "one fault per file: {}: {:#?}", path.display(), loaded.diagnostics);
        let errors = loaded.diagnostics.iter().any(|d| d.is_error());
        assert_eq!((loaded.refused, loaded.rules.len()), if errors { (1, 0) } else { (0, 1) }, "{}", path.display());
        seen.extend(loaded.diagnostics.iter().map(|d| d.code));
        let text: String = loaded.diagnostics.iter().map(|d| d.human(false) + "\n").collect();
        let snapshot = path.with_extension("txt");
        if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
            fs::write(&snapshot, &text).unwrap();
        } else if fs::read_to_string(&snapshot).unwrap_or_default() != text {
            stale.push(format!("{}\n{text}", path.display()));
        }
    }
    assert!(stale.is_empty(), "these changed:\n{}", stale.join("\n"));
    let known: BTreeSet<&str> =
        codes::pages().map(|page| page.code).filter(|code| code.starts_with("GR") && !code.starts_with(OF_TESTS)).collect();
    seen.extend(ELSEWHERE);
    assert_eq!(seen, known, "every code has a fixture and a page of docs/diagnostics.md");
}

#[test]
fn every_code_of_the_program_has_a_page() {
    fn walk(folder: &std::path::Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                walk(&entry, found);
            } else {
                let text = fs::read_to_string(&entry).unwrap_or_default();
                // The second half of a quoted code is four digits and a quote; what tests make up has fewer.
                let codes = text.split('"').filter(|word| word.len() == 6 && (word.starts_with("GR") || word.starts_with("GC")));
                found.extend(codes.filter(|code| code[2..].bytes().all(|b| b.is_ascii_digit())).map(str::to_owned));
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(std::path::Path::new("src"), &mut found);
    let pages: BTreeSet<String> = codes::pages().map(|page| page.code.to_owned()).collect();
    assert_eq!(found, pages);
}

#[test]
fn a_bad_file_leaves_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("a.yaml", &GOOD.replace("NAME", "zebra"));
    write("b.yml", "guardrail: v1\nbuckets: 7\n");
    fs::create_dir(directory.path().join("team")).unwrap();
    write("team/c.yaml", &GOOD.replace("NAME", "ant"));
    write("team/c_test.yaml", "not a rule file");
    write(".hidden.yaml", "not a rule file");
    write("notes.txt", "not a rule file");
    let loaded = load(&[directory.path().to_owned()], None);
    assert_eq!((loaded.files, loaded.refused), (3, 1));
    let plans: Vec<_> = loaded.catalog.plans.iter().map(|p| p.experiment.as_str()).collect();
    assert_eq!(plans, ["ant", "zebra"]);
    assert_eq!(loaded.rules.iter().map(|r| r.plan.experiment.as_str()).collect::<Vec<_>>(), plans);
    assert!(loaded.diagnostics.iter().all(|d| d.file.ends_with("b.yml")));
}

#[test]
fn tests_of_rules_are_no_rule_files_wherever_they_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("a.yaml", GOOD);
    write("a_test.yaml", "test: v1\n");
    write("b_test.yml", "test: v1\n");
    let globbed: Vec<PathBuf> = ["a.yaml", "a_test.yaml", "b_test.yml"].map(|name| directory.path().join(name)).into();
    for paths in [&globbed[..], &[directory.path().to_owned()]] {
        let loaded = load(paths, None);
        assert_eq!((loaded.files, loaded.rules.len(), loaded.diagnostics.len()), (1, 1, 0));
        assert_eq!(test_files(paths), globbed[1..]);
    }
}

#[test]
fn fields_of_refused_files_are_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let metric = |field: &str| format!("metrics: {{m: {{kind: mean, event: e, value: /{field}}}}}\n");
    fs::write(directory.path().join("a.yaml"), GOOD.replace("NAME", "a") + &metric("gone") + "oops: 1\n").unwrap();
    fs::write(directory.path().join("b.yaml"), GOOD.replace("NAME", "b") + &metric("kept")).unwrap();
    let loaded = load(&[directory.path().to_owned()], None);
    assert_eq!(loaded.catalog.fields.entries, [("e".to_owned(), "/kept".to_owned())]);
}

#[test]
fn the_second_file_of_an_experiment_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), GOOD).unwrap();
    fs::write(directory.path().join("b.yaml"), GOOD).unwrap();
    let loaded = load(&[directory.path().to_owned()], None);
    assert_eq!((loaded.files, loaded.refused, loaded.rules.len()), (2, 1, 1));
    let fault = &loaded.diagnostics[0];
    assert_eq!((fault.code, fault.line, fault.column, loaded.diagnostics.len()), ("GR2801", 2, 24, 1));
    assert!(fault.file.ends_with("b.yaml") && fault.label.contains("a.yaml"));
}

#[test]
fn experiments_of_one_namespace_do_not_share_users() {
    let said = |files: &[(&str, &str, &str)]| {
        let directory = tempfile::tempdir().unwrap();
        for (name, times, rest) in files {
            let text = GOOD.replace("NAME", &format!("{name}{times}"));
            let text =
                format!("{text}eligibility: {{assignment: {{namespace: checkout}}{rest}\nquality: {{ineligible: {{max: 0, do: hold}}}}\n");
            fs::write(directory.path().join(format!("{name}.yaml")), text).unwrap();
        }
        let loaded = checked(&[directory.path().to_owned()], None, &Settings::default());
        let place = |d: &guardraild::rules::Diagnostic| (d.code, d.file.rsplit('/').next().unwrap().to_owned(), d.message.clone());
        loaded.diagnostics.iter().map(place).collect::<Vec<_>>()
    };
    let phases = |share: &str| format!("}}\nrollout: {{phases: [{{traffic: {share}}}]}}");
    let (half, more) = (phases("50%"), phases("51%"));
    assert_eq!(said(&[("a", "", &half), ("b", "", &half)]), []);
    let found = said(&[("a", "", &half), ("b", "", &more), ("c", "", &half)]);
    let of = |file: &str, message: &str| ("GR2805", file.to_owned(), message.to_owned());
    assert_eq!(found, [of("b.yaml", "users of `b` are users of `a`, too"), of("c.yaml", "users of `c` are users of `a`, `b`, too")]);
    // Who runs at other times, or among other users, shares nobody.
    assert_eq!(said(&[("a", ", ends: 2026-12-01T00:00:00Z", "}"), ("b", ", starts: 2026-12-01T00:00:00Z", "}")]), []);
    assert_eq!(said(&[("a", "", ", population: {region: [eu]}}"), ("b", "", ", population: {region: [us]}}")]), []);
    assert_eq!(said(&[("a", "", ", population: {region: [eu]}}"), ("b", "", ", exclude: {region: [eu]}}")]), []);
    assert_eq!(said(&[("a", "", ", population: {region: [eu, uk]}}"), ("b", "", ", population: {region: [uk]}}")]).len(), 1);
}

#[test]
fn windows_are_checked_against_the_settings_of_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, GOOD.replace("max_increase: 0.5pp", "limit: 5%, window: 90s")).unwrap();
    let said = |pane: i64, lateness: i64| {
        let settings = Settings { pane, lateness, ..Settings::default() };
        checked(std::slice::from_ref(&file), None, &settings).diagnostics.iter().map(|d| (d.code, d.line)).collect::<Vec<_>>()
    };
    assert_eq!(said(1_000, 90_000), []);
    assert_eq!(said(60_000, 120_000), [("GR2401", 4), ("GR2612", 4)]);
}

#[test]
fn the_same_file_named_twice_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, GOOD).unwrap();
    let loaded = load(&[directory.path().to_owned(), file], None);
    assert_eq!((loaded.files, loaded.diagnostics.len()), (1, 0));
}

#[cfg(unix)]
#[test]
fn a_mounted_config_map_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("..2026_11_22")).unwrap();
    fs::write(at("..2026_11_22/a.yaml"), GOOD).unwrap();
    std::os::unix::fs::symlink("..2026_11_22", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let loaded = load(&[directory.path().to_owned()], None);
    assert_eq!((loaded.files, loaded.rules.len(), loaded.diagnostics.len()), (1, 1, 0));
}

#[test]
fn what_cannot_be_read_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let one = |name: &str| {
        let loaded = load(&[directory.path().join(name)], None);
        assert!(loaded.rules.is_empty());
        loaded.diagnostics[0].code
    };
    fs::write(directory.path().join("latin1.yaml"), b"guardrail: \xe9\n").unwrap();
    fs::write(directory.path().join("huge.yaml"), vec![b'#'; 10 << 20]).unwrap();
    fs::create_dir(directory.path().join("empty")).unwrap();
    assert_eq!(one("absent.yaml"), "GR1011");
    assert_eq!(one("latin1.yaml"), "GR1011");
    assert_eq!(one("huge.yaml"), "GR1008");
    assert_eq!(one("empty"), "GR1012");
}

#[test]
fn bombs_are_refused() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        laughs.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
    }
    assert_eq!(said(&laughs), ["GR1008"]);
    let chain: String = (1..2_000).map(|i| format!("c{i}: &c{i} [*c{}]\n", i - 1)).collect();
    assert_eq!(said(&format!("c0: &c0 [x]\n{chain}")), ["GR1008"]);
    let deep = |open: &str, close: &str| format!("guardrail: {}{}", open.repeat(5_000), close.repeat(5_000));
    for text in [deep("[", "]"), deep("{a: ", "}"), "- ".repeat(5_000), (0..300).map(|i| " ".repeat(i) + "a:\n").collect()] {
        let found = said(&text);
        assert!(matches!(found[..], ["GR1007" | "GR1008"]), "{found:?}");
    }
    let wide = format!("guardrail: [{}]", "x,".repeat(100_000));
    assert_eq!(said(&wide), ["GR1008"]);
}

#[test]
fn a_fault_that_aliases_repeat_is_told_once() {
    let text = GOOD.replace("treatment: {}", "treatment: &b {wieght: 50%}, third: *b");
    assert_eq!(said(&text), ["GR1001"]);
}

#[test]
fn a_flood_of_faults_is_cut_off() {
    let text: String = (0..5_000).map(|i| format!("key{i}: {i}\n")).collect();
    let faults = parse_str("x.yaml", &text, &mut FieldTable::default(), None).diagnostics;
    assert_eq!(faults.len(), 201);
    assert!(faults[200].message.contains("more faults"));
}

/// What anyone may rely on, whatever the text.
fn holds(text: &str) {
    let parsed = parse_str("x.yaml", text, &mut FieldTable::default(), None);
    assert_eq!(parsed.rule.is_none(), parsed.diagnostics.iter().any(|d| d.is_error()), "{text}");
    for fault in &parsed.diagnostics {
        assert!(fault.human(false).contains(fault.code) && fault.json().ends_with("}\n"));
    }
    let Some(rule) = parsed.rule else { return };
    let plan = rule.plan;
    let weights: f64 = plan.buckets.iter().map(|b| b.weight).sum();
    assert!(plan.buckets.len() >= 2 && (weights - 1.0).abs() < 1e-9);
    assert_eq!(plan.buckets.iter().filter(|b| b.baseline).count(), 1);
    assert!(plan.alpha > 0.0 && plan.alpha < 1.0 && plan.revision >= 1);
    for guardrail in &plan.guardrails {
        assert!(guardrail.signal < plan.signals.len() && guardrail.window >= 1_000 && guardrail.hold <= guardrail.window);
        assert!(guardrail.limit.is_some() || guardrail.max_increase.is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gets_an_answer(text in "\\PC*|[-:{}\\[\\],&*!|>'\"%@ \n\ta-c0-9#~é]{0,200}") {
        holds(&text);
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.yaml");
        fs::write(&file, &bytes).unwrap();
        let loaded = load(&[file], None);
        prop_assert_eq!((loaded.files, loaded.refused), (1, 1));
    }

    #[test]
    fn a_mutated_rule_file_gets_an_answer(edits in proptest::collection::vec((0..10_000_usize, 0..12_usize, "[-:{}\\[\\],%0-9a-z. \n]{0,4}"), 1..6)) {
        let mut text = fs::read_to_string("rules/new-checkout.yaml").unwrap();
        for (at, length, new) in edits {
            let start = text.floor_char_boundary(at % (text.len() + 1));
            let end = text.floor_char_boundary((start + length).min(text.len())).max(start);
            text.replace_range(start..end, &new);
        }
        holds(&text);
    }
}
