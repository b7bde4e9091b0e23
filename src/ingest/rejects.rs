//! A bounded, redacted sample of refused records, for operators.

use crate::engine::outcome::Reject;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Samples kept in all, and of one reason: one flood does not wash the others away.
const KEPT: usize = 100;
const KEPT_PER_REASON: usize = 20;
/// Bytes of a record that a sample shows at most.
const SHOWN: usize = 200;

/// One refused record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    pub reason: Reject,
    /// More about it, where there is more to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Length of the record in bytes.
    pub length: usize,
    /// Its beginning, at most 200 bytes. Names of fields, events, experiments and buckets are kept; of every other string only its
    /// length is (`<7>`), of numbers and times only the shape (`##.#`).
    pub text: String,
}

/// The newest samples; clones share them.
#[derive(Clone, Default)]
pub struct Rejects(Arc<Mutex<VecDeque<Sample>>>);

impl Rejects {
    /// Keeps a sample; the oldest of the same reason goes when there are too many.
    pub fn add(&self, reason: Reject, detail: Option<String>, (topic, partition, offset): (&str, i32, i64), record: &[u8]) {
        let sample = Sample {
            reason,
            detail,
            topic: topic.to_owned(),
            partition,
            offset,
            length: record.len(),
            text: redact(&record[..record.len().min(SHOWN)]),
        };
        let mut samples = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if samples.iter().filter(|s| s.reason == reason).count() >= KEPT_PER_REASON
            && let Some(oldest) = samples.iter().position(|s| s.reason == reason)
        {
            samples.remove(oldest);
        }
        if samples.len() >= KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// The samples, oldest first.
    pub fn snapshot(&self) -> Vec<Sample> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).iter().cloned().collect()
    }
}

/// What may be shown of a text that need not be JSON.
fn redact(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut rest = &*text;
    // The key that the next string is the value of.
    let mut key = "";
    while let Some(c) = rest.chars().next() {
        if c == '"' {
            let (inner, after) = take_string(&rest[1..]);
            let is_key = after.trim_start().starts_with(':');
            out.push('"');
            let shown = is_key || matches!(key, "event" | "experiment" | "bucket");
            if shown && is_name(inner) {
                out.push_str(inner);
            } else if key == "ts" {
                out.extend(inner.chars().map(|c| if "-+:.TZtz ".contains(c) { c } else { mask(c) }));
            } else {
                out.push_str(&format!("<{}>", inner.len()));
            }
            out.push('"');
            key = if is_key { inner } else { "" };
            rest = after;
        } else if c.is_alphabetic() {
            let word = &rest[..rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len())];
            let known = matches!(word, "true" | "false" | "null" | "True" | "False" | "None" | "NaN" | "nan" | "Infinity" | "undefined");
            if known {
                out.push_str(word)
            } else {
                out.extend(word.chars().map(|_| '?'))
            }
            rest = &rest[word.len()..];
        } else {
            out.push(if c.is_ascii_punctuation() || c == ' ' { c } else { mask(c) });
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn mask(c: char) -> char {
    if c.is_ascii_digit() { '#' } else { '?' }
}

/// What could be the name of a field or an experiment, and hardly anything private.
fn is_name(text: &str) -> bool {
    text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// Splits behind the closing quote, or at the end.
fn take_string(text: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' if !escaped => return (&text[..at], &text[at + 1..]),
            _ => escaped = c == '\\' && !escaped,
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_values_are_not_shown() {
        let text = r#"{"event":"exposure","ts":"2026-12-02X09","experiment":"new-checkout","user_id":"u-90210 \"x","n":12.5,"attributes":{"mail":"a@b.c"}} bob"#;
        let shown = r######"{"event":"exposure","ts":"####-##-##?##","experiment":"new-checkout","user_id":"<11>","n":##.#,"attributes":{"mail":"<5>"}} ???"######;
        assert_eq!(redact(text.as_bytes()), shown);
        assert_eq!(redact(br#"{"user_id":"ali"#), r#"{"user_id":"<3>""#);
        assert_eq!(redact("alice,é\u{1}\n\u{ff}7 NaN".as_bytes()), "?????,????? NaN");
        redact(b"\xff\xfe\"\\");
    }

    #[test]
    fn a_flood_of_one_reason_leaves_the_others() {
        let rejects = Rejects::default();
        rejects.add(Reject::WrongType, None, ("t", 0, 1), b"{}");
        for offset in 0..1000 {
            rejects.add(Reject::NotJson, None, ("t", 0, offset), &[b'x'; 1000]);
        }
        let samples = rejects.snapshot();
        assert_eq!(samples.len(), 1 + KEPT_PER_REASON);
        assert_eq!(samples[0].reason, Reject::WrongType);
        assert_eq!((samples[20].offset, samples[20].length, samples[20].text.len()), (999, 1000, 200));
    }
}
