//! `guardraild stats`: recomputes evidence from sufficient statistics, one JSON object a line, so that anyone can check a decision.
//!
//! In: `{"id", "test", "in"}`; other fields are ignored. Out, in the same order: `{"id", "test", "out"}`, or `{"id", "error"}` for a line
//! that is no such object, an unknown test or a field out of range. Infinite numbers are the strings `"inf"` and `"-inf"`.

mod cases;
mod fields;

use serde::Serialize;
use serde_json::Value;
use std::io::{self, BufRead, Read, Write};

/// Shown under the command's help.
pub const EXAMPLES: &str = r#"Example: 20 of 21 requests failed where 5% may.
  echo '{"id":1,"test":"threshold","in":{"n":21,"x":20,"p0":0.05}}' | guardraild stats

A decision names its test and carries that test's `in` as `evidence`. `log_e` is the natural
logarithm of the e-value: the decision's `log_e_value` (abandonment takes the worse of two looks
and pays ln 2 for it). A line that cannot be evaluated is answered with `error`."#;

/// Longest line that is read, in bytes.
const MAX_LINE: usize = 4 << 20;

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    test: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Answers every line of `input` that is not blank, and goes on after bad ones. Errors are those of reading and writing.
pub fn run(mut input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut line = Vec::new();
    while next_line(&mut input, &mut line)? {
        if line.len() <= MAX_LINE && line.trim_ascii().is_empty() {
            continue;
        }
        answer(&line, &mut output)?;
    }
    output.flush()
}

fn answer(line: &[u8], output: &mut impl Write) -> io::Result<()> {
    let request = parse(line);
    let id = request.as_ref().ok().and_then(|r| r.get("id")).unwrap_or(&Value::Null);
    let answer = match request.as_ref().map_err(Clone::clone).and_then(evaluate) {
        Ok((test, out)) => Answer { id, test: Some(test), out: Some(out), error: None },
        Err(error) => Answer { id, test: None, out: None, error: Some(error) },
    };
    serde_json::to_writer(&mut *output, &answer)?;
    output.write_all(b"\n")
}

fn parse(line: &[u8]) -> Result<Value, String> {
    if line.len() > MAX_LINE {
        return Err(format!("the line is longer than {MAX_LINE} bytes"));
    }
    match serde_json::from_slice(line) {
        Ok(request @ Value::Object(_)) => Ok(request),
        Ok(_) => Err("the line is not a JSON object".to_owned()),
        Err(error) => Err(format!("the line is not JSON: {error}")),
    }
}

/// Runs a test by its name on its `in`; returns its `out`. Errors say what is wrong with the test or a field.
pub fn recompute(test: &str, input: &Value) -> Result<Value, String> {
    cases::evaluate(test, input)
}

fn evaluate(request: &Value) -> Result<(&str, Value), String> {
    let test = request.get("test").and_then(Value::as_str).ok_or("`test` must name a test")?;
    let input = request.get("in").ok_or("`in` is missing")?;
    Ok((test, recompute(test, input)?))
}

/// Reads a line without its end into `line`; false at the end of the input. Of a line that is too long only the first `MAX_LINE + 1`
/// bytes are kept.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    input.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', line)?;
    if line.is_empty() {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > MAX_LINE {
        input.skip_until(b'\n')?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answers(input: &[u8]) -> Vec<Value> {
        let mut output = Vec::new();
        run(input, &mut output).unwrap();
        output.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect()
    }

    fn error(line: &str) -> String {
        let answers = answers(line.as_bytes());
        assert_eq!(answers.len(), 1, "{line}");
        answers[0]["error"].as_str().unwrap_or_else(|| panic!("no error for {line}: {}", answers[0])).to_owned()
    }

    #[test]
    fn goes_on_after_bad_lines() {
        let mut input = b"{\n[1]\n\xff\xfe\n\n".to_vec();
        input.extend_from_slice(br#"{"id":7,"test":"nope","in":{}}"#);
        input.extend_from_slice(b"\n");
        input.extend_from_slice(br#"{"id":"a","test":"threshold","in":{"n":0,"x":0,"p0":0.01},"out":1}"#);
        let answers = answers(&input);
        assert_eq!(answers.len(), 5);
        assert!(answers[..4].iter().all(|a| a["error"].is_string() && a.get("out").is_none()));
        assert_eq!((&answers[0]["id"], &answers[3]["id"]), (&Value::Null, &Value::from(7)));
        assert!(answers[3]["error"].as_str().unwrap().contains("nope"));
        assert_eq!(answers[4].to_string(), r#"{"id":"a","out":{"log_e":0.0,"p":1.0},"test":"threshold"}"#);
    }

    #[test]
    fn bad_fields_are_named_or_described() {
        let case = |test: &str, input: &str| error(&format!(r#"{{"id":1,"test":"{test}","in":{input}}}"#));
        assert!(case("threshold", r#"{"n":1,"x":0}"#).contains("p0"));
        assert!(case("threshold", r#"{"n":1,"x":0,"p0":0.1,"q":1}"#).contains("q"));
        assert!(case("threshold", r#"{"n":-1,"x":0,"p0":0.1}"#).contains("-1"));
        assert!(case("threshold", r#"{"n":1,"x":2,"p0":0.1}"#).contains("more than"));
        assert!(case("threshold", r#"{"n":1,"x":0,"p0":1.5}"#).contains("1.5"));
        assert!(case("poisson", r#"{"x":1,"mu0":NaN}"#).contains("not JSON"));
        assert!(case("poisson", r#"{"x":1,"mu0":1e999}"#).contains("not JSON"));
        assert!(case("exceedance", r#"{"s":1,"n":2,"q0_ppm":5,"side":"both"}"#).contains("both"));
        assert!(
            case("gatekeeping", r#"{"families":[[1.0,4000000000]],"overall_share":0.8,"max_log_e":[],"alpha":0.05}"#)
                .contains("hypotheses")
        );
        assert!(case("relative_lift", r#"{"t":{"n":1,"sy":1,"syy":1,"sx":1},"c":{"n":1,"sy":1,"syy":1},"alpha":0.05}"#).contains("sxy"));
    }

    #[test]
    fn lines_without_end_are_cut_off() {
        let mut input = vec![b'7'; MAX_LINE + 5_000];
        input.extend_from_slice(b"\n{\"id\":2,\"test\":\"margin\",\"in\":{\"u\":30,\"r_ppm\":100000,\"d\":0}}\n");
        let answers = answers(&input);
        assert!(answers[0]["error"].as_str().unwrap().contains("longer"));
        assert_eq!(answers[1]["out"]["value"], 33);
    }

    #[test]
    fn infinite_values_are_strings() {
        let found = answers(br#"{"id":1,"test":"srm","in":{"strata":[{"counts":[1,1],"weights":[1,0]}]}}"#);
        assert_eq!(found[0]["out"].to_string(), r#"{"log_e":"inf","p":0.0}"#);
    }

    proptest! {
        #[test]
        fn one_answer_for_any_line(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.trim_ascii().is_empty()).count();
            prop_assert_eq!(answers(&bytes).len(), lines);
        }
    }
}
