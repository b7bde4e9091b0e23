//! Located faults of rule and configuration files, and how they are shown.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

/// An error keeps a file out of force; a warning does not, and a note is mere advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Note,
    Warning,
    Error,
}

/// One fault of one file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnostic {
    pub file: String,
    /// 1-based; 0 when the fault is the whole file's.
    pub line: usize,
    /// 1-based, in characters; 0 when the fault is the whole file's.
    pub column: usize,
    pub end_line: usize,
    /// Column of the first character after the fault.
    pub end_column: usize,
    pub severity: Severity,
    /// Stable: what people look up and silence.
    pub code: &'static str,
    /// What is wrong, without the position.
    pub message: String,
    /// Said at the caret; may be empty.
    pub label: String,
    /// How to mend it.
    pub help: Option<String>,
    /// The lines of the file that the fault lies on, and the fault's bytes within them.
    #[serde(skip)]
    excerpt: Option<(String, Range<usize>)>,
}

impl Diagnostic {
    /// A fault of the file as a whole.
    pub fn file(file: &str, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            file: clean(file),
            line: 0,
            column: 0,
            end_line: 0,
            end_column: 0,
            severity: Severity::Error,
            code,
            message: clean(&message.into()),
            label: String::new(),
            help: None,
            excerpt: None,
        }
    }

    /// A fault at the bytes `span` of `source`; only the first line of a longer span is marked.
    pub fn at(file: &str, source: &str, span: Range<usize>, code: &'static str, message: impl Into<String>) -> Diagnostic {
        let start = floor_boundary(source, span.start);
        let line_start = source[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = source[start..].find('\n').map_or(source.len(), |i| start + i);
        let line_text = source[line_start..line_end].trim_end_matches('\r');
        let end = floor_boundary(source, span.end).clamp(start, (line_start + line_text.len()).max(start));
        let line = source[..line_start].matches('\n').count() + 1;
        let column = source[line_start..start].chars().count() + 1;
        let width = source[start..end].chars().count();
        // The fault may lie in what ends the line, which is not shown.
        let shown = |at: usize| (at - line_start).min(line_text.len());
        Diagnostic {
            line,
            column,
            end_line: line,
            end_column: column + width,
            excerpt: Some((line_text.to_owned(), shown(start)..shown(end))),
            ..Diagnostic::file(file, code, message)
        }
    }

    /// A fault of the text from 1-based line and column on, of which only that line is known.
    pub fn on_line(file: &str, text: &str, (line, column): (usize, usize), code: &'static str, message: impl Into<String>) -> Diagnostic {
        let start = text.char_indices().nth(column.saturating_sub(1)).map_or(text.len(), |(at, _)| at);
        Diagnostic { line, end_line: line, ..Diagnostic::at(file, text, start..start + 1, code, message) }
    }

    pub fn with_label(mut self, label: impl Into<String>) -> Diagnostic {
        self.label = clean(&label.into());
        self
    }

    pub fn with_help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(clean(&help.into()));
        self
    }

    pub fn as_warning(mut self) -> Diagnostic {
        self.severity = Severity::Warning;
        self
    }

    pub fn as_note(mut self) -> Diagnostic {
        self.severity = Severity::Note;
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Several lines for people, with the source line and a caret.
    pub fn human(&self, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let title = level.primary_title(&self.message).id(self.code);
        let mut group: Group<'_> = match &self.excerpt {
            None => title.element(Origin::path(&self.file)),
            Some((text, span)) => {
                let mark = AnnotationKind::Primary.span(span.clone());
                let mark = if self.label.is_empty() { mark } else { mark.label(&self.label) };
                title.element(Snippet::source(text.as_str()).line_start(self.line).path(&self.file).annotation(mark))
            }
        };
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = renderer.render(&[group]);
        out.push('\n');
        out
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        let mut out = serde_json::to_string(self).unwrap_or_default();
        out.push('\n');
        out
    }

    /// Message, label and help in one line.
    pub fn told(&self) -> String {
        let label = if self.label.is_empty() { String::new() } else { format!(": {}", self.label) };
        let help = self.help.as_ref().map_or_else(String::new, |help| format!("; {help}"));
        format!("{}{label}{help}", self.message)
    }

    /// `file:line:column: error[CODE]: message; label`, for logs.
    pub fn short(&self) -> String {
        let mut out = self.file.clone();
        if self.line > 0 {
            let _ = write!(out, ":{}:{}", self.line, self.column);
        }
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let _ = write!(out, ": {word}[{}]: {}", self.code, self.message);
        if !self.label.is_empty() {
            let _ = write!(out, "; {}", self.label);
        }
        out
    }
}

/// All faults of a run, in the order in which they are read: by file, then by position.
pub fn sort(diagnostics: &mut [Diagnostic]) {
    diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
}

/// The nearest of `known` to `name`, when it is near enough to be a slip of the finger or an abbreviation.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 64 {
        return None;
    }
    let lower = name.to_lowercase();
    let allowed = (name.chars().count() / 3).max(1);
    let letters = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&lower, k), letters(&lower) != letters(k), k))
        .filter(|(distance, _, k)| *distance <= allowed || strsim::jaro_winkler(&lower, k) >= 0.9)
        .min()
        .map(|(_, _, k)| k)
}

/// Text of a file inside a message: quoted and short.
pub fn quote(text: &str) -> String {
    let mut out = String::from("`");
    out.extend(text.chars().take(60));
    out.push_str(if text.chars().nth(60).is_some() { "…`" } else { "`" });
    out
}

/// Without control characters: what a file says must not steer the terminal.
fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Collects the faults of one file, up to [`MAX_FAULTS`].
#[derive(Debug)]
pub struct Faults {
    file: Arc<str>,
    source: Arc<str>,
    found: Vec<Diagnostic>,
    more: usize,
}

/// Faults shown of one file at most; a file with more is cut off with a note.
pub const MAX_FAULTS: usize = 200;

impl Faults {
    pub fn new(file: &str, source: &str) -> Faults {
        Faults { file: file.into(), source: source.into(), found: Vec::new(), more: 0 }
    }

    /// A fault at `span`, for the caller to finish and [`push`](Faults::push).
    pub fn at(&self, span: &Range<usize>, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::at(&self.file, &self.source, span.clone(), code, message)
    }

    /// 1-based line of a byte, for messages that point at a second place.
    pub fn line_of(&self, byte: usize) -> usize {
        let end = floor_boundary(&self.source, byte);
        self.source[..end].matches('\n').count() + 1
    }

    pub fn push(&mut self, diagnostic: Diagnostic) {
        if self.found.len() < MAX_FAULTS {
            self.found.push(diagnostic);
        } else {
            self.more += 1;
        }
    }

    pub fn error(&mut self, span: &Range<usize>, code: &'static str, message: impl Into<String>, label: impl Into<String>) {
        let fault = self.at(span, code, message).with_label(label);
        self.push(fault);
    }

    pub fn has_errors(&self) -> bool {
        self.errors() > 0
    }

    pub fn errors(&self) -> usize {
        self.more + self.found.iter().filter(|d| d.is_error()).count()
    }

    pub fn into_vec(mut self) -> Vec<Diagnostic> {
        sort(&mut self.found);
        // What an alias repeats is told once, where it is written.
        self.found.dedup();
        if self.more > 0 {
            let message = format!("{} more faults in this file are not shown", self.more);
            self.found.push(Diagnostic::file(&self.file, "GR1008", message));
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_marks_characters_not_bytes() {
        let fault = Diagnostic::at("a.yaml", "é: 1\nüü: 2, x\n", 12..13, "GR0", "m");
        assert_eq!((fault.line, fault.column, fault.end_column), (2, 5, 6));
    }

    #[test]
    fn a_span_over_lines_marks_the_first() {
        let fault = Diagnostic::at("a.yaml", "a:\r\n  b: 1\n", 0..12, "GR0", "m");
        assert_eq!((fault.line, fault.column, fault.end_line, fault.end_column), (1, 1, 1, 3));
    }

    #[test]
    fn a_fault_in_what_ends_a_line_is_shown_behind_it() {
        let fault = Diagnostic::at("a.yaml", "a: ?\r\r\r\r", 8..8, "GR0", "m");
        assert_eq!((fault.line, fault.column, fault.end_column), (1, 9, 9));
        assert!(fault.human(false).contains("a: ?"));
    }

    #[test]
    fn a_span_outside_the_text_is_drawn_in() {
        let fault = Diagnostic::at("a.yaml", "é", 1..900, "GR0", "m");
        assert_eq!((fault.line, fault.column, fault.end_column), (1, 1, 2));
        assert!(fault.human(false).contains("a.yaml:1:1"));
    }

    #[test]
    fn a_file_cannot_steer_the_terminal() {
        let fault =
            Diagnostic::at("a\u{1b}.yaml", "x: \u{1b}[2J\n", 3..7, "GR0", quote("\u{1b}[2J")).with_label("\u{7}").with_help("\u{8}");
        let shown = fault.human(false) + &fault.json() + &fault.short();
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    }

    #[test]
    fn a_whole_file_is_named() {
        let text = Diagnostic::file("rules/a.yaml", "GR1011", "cannot be read").human(false);
        assert_eq!(text, "error[GR1011]: cannot be read\n--> rules/a.yaml\n");
    }

    #[test]
    fn the_nearest_name_is_offered_when_it_is_near() {
        let metrics = ["latency_p50", "latency_p95", "error_rate", "tickets"];
        assert_eq!(nearest("latency_p59", metrics), Some("latency_p95"));
        assert_eq!(nearest("Error_Rate", metrics), Some("error_rate"));
        assert_eq!(nearest("flag-svc", ["flag-service", "kill-switch"]), Some("flag-service"));
        assert_eq!(nearest("revenue", metrics), None);
    }
}
