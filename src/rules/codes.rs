//! The closed list of fault codes of rule files. Each is a section of `docs/diagnostics.md`, which `check --explain` prints.

const WIDTH: usize = 100;
const TEXT: &str = include_str!("../../docs/diagnostics.md");

/// What there is to say about a code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Page {
    pub code: &'static str,
    /// One line, without a full stop.
    pub title: &'static str,
    /// Markdown: what it is about, and examples.
    pub text: &'static str,
}

/// All codes, in their order.
pub fn pages() -> impl Iterator<Item = Page> {
    let sections = TEXT.split("\n## ").skip(1);
    sections.filter_map(|section| {
        let (head, text) = section.split_once('\n')?;
        let (code, title) = head.split_once(": ")?;
        Some(Page { code, title, text: text.trim() })
    })
}

/// The page of a code, however it is capitalised.
pub fn page(code: &str) -> Option<Page> {
    pages().find(|page| page.code.eq_ignore_ascii_case(code))
}

impl Page {
    /// As text for a terminal: paragraphs are filled, examples set in.
    pub fn plain(&self) -> String {
        let mut out = format!("{}: {}\n", self.code, self.title);
        for (i, part) in self.text.split("```").enumerate() {
            if i % 2 == 1 {
                // The first line of an example is the name of its language.
                let lines = part.trim_end().lines().skip(1).map(|line| format!("    {line}").trim_end().to_owned() + "\n");
                out.extend(std::iter::once("\n".to_owned()).chain(lines));
                continue;
            }
            for paragraph in part.split("\n\n").map(str::trim).filter(|p| !p.is_empty()) {
                out.push('\n');
                out.push_str(&filled(&paragraph.replace("**", "")));
            }
        }
        out
    }

    /// The examples of what is wrong, and of what would be right, where the page has them.
    pub fn examples(&self) -> Option<(&'static str, &'static str)> {
        let example = |word: &str| self.text.split_once(word)?.1.split_once("```yaml\n")?.1.split_once("\n```").map(|(text, _)| text);
        Some((example("Wrong:")?, example("Right:")?))
    }
}

/// Words in lines of up to [`WIDTH`] characters.
fn filled(text: &str) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > 0 {
            let breaks = column + 1 + width > WIDTH;
            out.push(if breaks { '\n' } else { ' ' });
            column = if breaks { 0 } else { column + 1 };
        }
        out.push_str(word);
        column += width;
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::Settings;
    use crate::rules::{checked, diagnostic::Diagnostic};
    use std::collections::{BTreeMap, BTreeSet};

    const WHOLE: &str = "guardrail: v1
overview: {experiment: example, owner: checkout}
buckets: {control: {baseline: true}, treatment: {}}
guardrails: [{metric: error_rate, limit: 5%}]
actions: {mode: enforce, rollback: {webhook: flag-service}, notify: {slack: checkout-exp}}
";

    /// The sections of a text by their key.
    fn sections(text: &str) -> BTreeMap<&str, String> {
        let mut out: BTreeMap<&str, String> = BTreeMap::new();
        let mut key = "";
        for line in text.lines() {
            if !line.starts_with(' ') {
                key = line.split(':').next().unwrap();
            }
            *out.entry(key).or_default() += &format!("{line}\n");
        }
        out
    }

    /// What is said of a whole file with the sections of an excerpt.
    fn faults(excerpt: &str) -> Vec<Diagnostic> {
        let mut whole = sections(WHOLE);
        whole.extend(sections(excerpt));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("example.yaml");
        std::fs::write(&file, whole.into_values().collect::<String>()).unwrap();
        let endpoints = BTreeSet::from(["flag-service".to_owned(), "checkout-exp".to_owned()]);
        checked(&[file], Some(&endpoints), &Settings::default()).diagnostics
    }

    #[test]
    fn examples_are_as_wrong_and_as_right_as_their_pages_say() {
        for page in pages() {
            let Some((wrong, right)) = page.examples() else { continue };
            let found = faults(wrong);
            assert!(!found.is_empty() && found.iter().all(|d| d.code == page.code), "{}: {found:#?}", page.code);
            assert_eq!(faults(right), [], "{}", page.code);
        }
    }

    #[test]
    fn pages_are_whole_and_in_order() {
        let codes: Vec<&str> = pages().map(|page| page.code).collect();
        assert!(codes.len() > 50 && codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        for page in pages() {
            assert!(
                ["**Error**", "**Error.**", "**Warning.**", "**Note.**"].iter().any(|word| page.text.starts_with(word)),
                "{}",
                page.code
            );
            assert!(page.examples().is_some() || page.text.contains("```text\n"), "{} has no example", page.code);
            assert!(!page.plain().contains("```") && !page.plain().contains("**"));
        }
    }
}
