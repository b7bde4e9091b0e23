//! Faults as SARIF 2.1.0, which code scanning and editors read.

use crate::rules::codes::{Page, page};
use crate::rules::{Diagnostic, Severity};
use serde_json::{Value, json};

const SCHEMA: &str = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// One log with one run.
pub fn log(diagnostics: &[Diagnostic]) -> Value {
    let mut rules: Vec<&str> = diagnostics.iter().map(|d| d.code).collect();
    rules.sort_unstable();
    rules.dedup();
    let results: Vec<Value> = diagnostics.iter().map(|d| result(d, rules.binary_search(&d.code).unwrap_or(0))).collect();
    let driver = json!({
        "name": "guardraild",
        "version": env!("CARGO_PKG_VERSION"),
        "rules": rules.iter().map(|code| rule(code)).collect::<Vec<_>>(),
    });
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    })
}

fn rule(code: &str) -> Value {
    let Some(Page { title, text, .. }) = page(code) else { return json!({"id": code}) };
    json!({"id": code, "shortDescription": {"text": title}, "help": {"text": page(code).map(|p| p.plain()), "markdown": text}})
}

fn result(fault: &Diagnostic, rule: usize) -> Value {
    let level = match fault.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    let mut place = json!({"artifactLocation": {"uri": uri(&fault.file)}});
    if fault.line > 0 {
        place["region"] = json!({
            "startLine": fault.line,
            "startColumn": fault.column,
            "endLine": fault.end_line,
            "endColumn": fault.end_column,
        });
    }
    json!({
        "ruleId": fault.code,
        "ruleIndex": rule,
        "level": level,
        "message": {"text": fault.told()},
        "locations": [{"physicalLocation": place}],
    })
}

/// A path as a reference: relative to where `check` ran, or of a file.
fn uri(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'.' | b'_' | b'~');
    let quoted: String = path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect();
    if path.starts_with('/') { format!("file://{quoted}") } else { quoted.trim_start_matches("./").to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_rules_are_those_of_the_fault() {
        let fault = Diagnostic::at("rules/ä b.yaml", "a: é x\n", 6..7, "GR1001", "no key").with_label("try `y`").with_help("it has: y");
        let log = log(&[Diagnostic::file("/etc/x.yaml", "GR1011", "gone"), fault.as_warning()]);
        let run = &log["runs"][0];
        let rules: Vec<&str> = run["tool"]["driver"]["rules"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
        assert_eq!(rules, ["GR1001", "GR1011"]);
        let (whole, placed) = (&run["results"][0], &run["results"][1]);
        assert_eq!((whole["ruleIndex"].as_u64(), &whole["level"]), (Some(1), &json!("error")));
        let place = &whole["locations"][0]["physicalLocation"];
        assert_eq!((place["artifactLocation"]["uri"].as_str(), place.get("region")), (Some("file:///etc/x.yaml"), None));
        let place = &placed["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "rules/%C3%A4%20b.yaml");
        assert_eq!(place["region"], json!({"startLine": 1, "startColumn": 6, "endLine": 1, "endColumn": 7}));
        assert_eq!(placed["message"]["text"], "no key: try `y`; it has: y");
    }
}
