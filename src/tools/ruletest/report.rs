//! Results for people, for machines, and for the pages of a CI server.

use super::expect::show;
use super::suite::{CaseResult, Shortfall};
use crate::rules::Diagnostic;
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

/// The last line. `bad`: files that could not be read.
pub fn summary(results: &[CaseResult], bad: usize) -> String {
    let failed = results.iter().filter(|r| !r.passed()).count();
    let bad = match bad {
        0 => String::new(),
        1 => ", 1 bad file".to_owned(),
        n => format!(", {n} bad files"),
    };
    format!("{} passed, {failed} failed{bad}", results.len() - failed)
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

/// A test file that could not be read, and why.
pub type Bad = (String, Vec<Diagnostic>);

/// JUnit's XML: a suite for each test file. One that could not be read is a suite of one case with an error.
pub fn junit(results: &[CaseResult], bad: &[Bad]) -> String {
    let mut files: Vec<&str> = results.iter().map(|r| r.file.as_str()).collect();
    files.dedup();
    let failed = results.iter().filter(|r| !r.passed()).count();
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites tests=\"{}\" failures=\"{failed}\" errors=\"{}\">\n",
        results.len() + bad.len(),
        bad.len()
    );
    for file in files {
        let cases: Vec<&CaseResult> = results.iter().filter(|r| r.file == file).collect();
        let failed = cases.iter().filter(|r| !r.passed()).count();
        suite(&mut out, file, [cases.len(), failed, 0], cases.iter().map(|r| r.spent.as_secs_f64()).sum(), |out| {
            cases.iter().for_each(|result| case(out, result));
        });
    }
    for (file, faults) in bad {
        suite(&mut out, file, [1, 0, 1], 0.0, |out| {
            let text: String = faults.iter().map(|fault| fault.human(false) + "\n").collect();
            let (code, message) = faults.first().map_or(("", "it cannot be read"), |fault| (fault.code, fault.message.as_str()));
            let (file, message, text) = (escape(file), escape(message), escape(&text));
            let _ = writeln!(
                out,
                "    <testcase name=\"it can be read\" classname=\"{file}\" file=\"{file}\" time=\"0\">\n      \
                 <error type=\"{code}\" message=\"{message}\">{text}</error>\n    </testcase>"
            );
        });
    }
    out + "</testsuites>\n"
}

fn suite(out: &mut String, file: &str, [tests, failures, errors]: [usize; 3], time: f64, cases: impl FnOnce(&mut String)) {
    let name = escape(file);
    let _ = writeln!(
        out,
        "  <testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"0\" time=\"{time:.3}\">"
    );
    cases(out);
    out.push_str("  </testsuite>\n");
}

/// Readers of the format show one failure of a case: it holds all of them.
fn case(out: &mut String, result: &CaseResult) {
    let [name, rule, file] = [&result.name, &result.rule, &result.file].map(|text| escape(text));
    let time = result.spent.as_secs_f64();
    let _ = write!(out, "    <testcase name=\"{name}\" classname=\"{rule}\" file=\"{file}\" time=\"{time:.3}\"");
    let [first, rest @ ..] = &result.shortfalls[..] else {
        out.push_str("/>\n");
        return;
    };
    let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
    let text = |shortfall: &Shortfall| shortfall.fault.human(false) + shortfall.picture.as_deref().unwrap_or_default() + "\n";
    let (message, all) = (escape(&format!("{}{more}", first.fault.message)), result.shortfalls.iter().map(text).collect::<String>());
    let _ =
        writeln!(out, ">\n      <failure type=\"{}\" message=\"{message}\">{}</failure>\n    </testcase>", first.fault.code, escape(&all));
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
        let bad = Diagnostic::at("b_test.yaml", "cases: 3\n", 7..8, "GR1002", "\"cases\" is no list");
        let mut twice = result("c", true);
        twice.shortfalls.extend(result("c", true).shortfalls);
        let text = junit(&[result("a \"b\"", false), twice], &[("b_test.yaml".into(), vec![bad])]);
        assert!(
            text.contains("<testsuites tests=\"3\" failures=\"1\" errors=\"1\">") && text.contains("name=\"a &quot;b&quot;\""),
            "{text}"
        );
        assert!(text.contains("<failure type=\"GR3101\" message=\"rollback &amp; &lt;more&gt; (and 1 more)\">error[GR3101]"), "{text}");
        assert!(text.contains("<error type=\"GR1002\" message=\"&quot;cases&quot; is no list\">error[GR1002]"), "{text}");
    }

    #[test]
    fn results_are_one_line_of_json_each() {
        let value: serde_json::Value = serde_json::from_str(&json(&result("c", true))).unwrap();
        assert_eq!(
            (&value["passed"], &value["failures"][0]["line"], &value["failures"][0]["column"]),
            (&json!(false), &json!(1), &json!(10))
        );
        assert_eq!(summary(&[result("a", false), result("c", true)], 2), "1 passed, 1 failed, 2 bad files");
    }
}
