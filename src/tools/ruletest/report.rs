//! Results for people, for machines, and for the pages of a CI server.

use super::expect::show;
use super::suite::CaseResult;
use serde_json::json;
use std::fmt::Write as _;

/// A line of a case, and under it what failed and how it looked.
pub fn human(result: &CaseResult, width: usize, color: bool) -> String {
    let paint = |code: &str, word: &str| if color { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
    let word = if result.passed() { paint("32", "ok  ") } else { paint("1;31", "FAIL") };
    let runs = if result.seeds > 1 { format!("{} x {}", show(result.length), result.seeds) } else { show(result.length) };
    let mut out = format!("{word}  {:width$}  {runs:>10}  {:>7.2} s  {}\n", result.name, result.spent.as_secs_f64(), result.said);
    for shortfall in &result.shortfalls {
        out.push_str(&shortfall.fault.human(color));
        out.push_str(shortfall.picture.as_deref().unwrap_or_default());
        out.push('\n');
    }
    out.push_str(result.picture.as_deref().unwrap_or_default());
    out
}

/// The last line.
pub fn summary(results: &[CaseResult]) -> String {
    let failed = results.iter().filter(|r| !r.passed()).count();
    format!("{} passed, {failed} failed", results.len() - failed)
}

/// One line of JSON.
pub fn json(result: &CaseResult) -> String {
    let failures: Vec<_> = result
        .shortfalls
        .iter()
        .map(|s| {
            let f = &s.fault;
            json!({"line": f.line, "column": f.column, "expected": f.message, "instead": f.label, "help": f.help})
        })
        .collect();
    let line = json!({
        "file": result.file, "rules": result.rule, "case": result.name, "passed": result.passed(), "seeds": result.seeds,
        "simulated_ms": result.length, "seconds": result.spent.as_secs_f64(), "said": result.said, "failures": failures,
    });
    format!("{line}\n")
}

/// JUnit's XML: a suite for each test file.
pub fn junit(results: &[CaseResult]) -> String {
    let failed = |of: &[&CaseResult]| of.iter().filter(|r| !r.passed()).count();
    let mut files: Vec<&str> = results.iter().map(|r| r.file.as_str()).collect();
    files.dedup();
    let all: Vec<&CaseResult> = results.iter().collect();
    let mut out =
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites tests=\"{}\" failures=\"{}\">\n", all.len(), failed(&all));
    for file in files {
        let cases: Vec<&CaseResult> = results.iter().filter(|r| r.file == file).collect();
        let time: f64 = cases.iter().map(|r| r.spent.as_secs_f64()).sum();
        let (tests, failures, name) = (cases.len(), failed(&cases), escape(file));
        let _ = writeln!(out, "  <testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\" time=\"{time:.3}\">");
        for case in cases {
            let head = format!(
                "    <testcase name=\"{}\" classname=\"{}\" time=\"{:.3}\"",
                escape(&case.name),
                escape(&case.rule),
                case.spent.as_secs_f64()
            );
            if case.passed() {
                let _ = writeln!(out, "{head}/>");
                continue;
            }
            let _ = writeln!(out, "{head}>");
            for shortfall in &case.shortfalls {
                let text = shortfall.fault.human(false) + shortfall.picture.as_deref().unwrap_or_default();
                let _ = writeln!(out, "      <failure message=\"{}\">{}</failure>", escape(&shortfall.fault.message), escape(&text));
            }
            out.push_str("    </testcase>\n");
        }
        out.push_str("  </testsuite>\n");
    }
    out + "</testsuites>\n"
}

/// Text inside XML; what XML cannot hold is left out.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Diagnostic;
    use crate::tools::ruletest::Shortfall;
    use std::time::Duration;

    fn result(name: &str, failed: bool) -> CaseResult {
        let fault = Diagnostic::at("a_test.yaml", "expect: [x]\n", 9..10, "GR3101", "rollback & <more>");
        let shortfall = Shortfall { fault, picture: None };
        CaseResult {
            file: "a_test.yaml".into(),
            rule: "a.yaml".into(),
            name: name.into(),
            seeds: 1,
            length: 60_000,
            spent: Duration::from_millis(20),
            said: "nothing is done".into(),
            shortfalls: failed.then_some(shortfall).into_iter().collect(),
            picture: None,
        }
    }

    #[test]
    fn junit_is_escaped_and_counts() {
        let text = junit(&[result("a \"b\"", false), result("c", true)]);
        assert!(text.contains("<testsuites tests=\"2\" failures=\"1\">") && text.contains("name=\"a &quot;b&quot;\""), "{text}");
        assert!(text.contains("<failure message=\"rollback &amp; &lt;more&gt;\">error[GR3101]"), "{text}");
    }

    #[test]
    fn results_are_one_line_of_json_each() {
        let value: serde_json::Value = serde_json::from_str(&json(&result("c", true))).unwrap();
        assert_eq!(
            (&value["passed"], &value["failures"][0]["line"], &value["failures"][0]["column"]),
            (&json!(false), &json!(1), &json!(10))
        );
        assert_eq!(summary(&[result("a", false), result("c", true)]), "1 passed, 1 failed");
    }
}
