//! What is written, whatever it is written as.

use crate::report::{Html, Page};
use std::fmt::Write as _;

/// A document: a title, the line under it, and blocks.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pub title: String,
    pub under: String,
    pub blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
pub enum Block {
    Heading(String),
    Subheading(String),
    Paragraph(Inline),
    /// What a reader must see first.
    Callout(Inline),
    List(Vec<Inline>),
    /// A head that begins with `#` is of numbers.
    Table(Vec<&'static str>, Vec<Vec<Inline>>),
    /// In pages alone.
    Chart(String, Html),
}

/// A piece of running text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inline(pub Vec<Span>);

#[derive(Clone, Debug, PartialEq)]
pub enum Span {
    Text(String),
    /// Text and address.
    Link(String, String),
    Strong(String),
    Code(String),
    Verdict(String),
    /// A person is to fill it in.
    Blank(String),
}

impl Inline {
    #[must_use]
    pub fn then(mut self, more: impl Into<Inline>) -> Inline {
        self.0.extend(more.into().0);
        self
    }
}

impl From<&str> for Inline {
    fn from(text: &str) -> Inline {
        Inline(vec![Span::Text(text.to_owned())])
    }
}

impl From<String> for Inline {
    fn from(text: String) -> Inline {
        Inline(vec![Span::Text(text)])
    }
}

impl From<Span> for Inline {
    fn from(span: Span) -> Inline {
        Inline(vec![span])
    }
}

impl Document {
    pub fn heading(&mut self, text: &str) {
        self.blocks.push(Block::Heading(text.to_owned()));
    }

    pub fn subheading(&mut self, text: &str) {
        self.blocks.push(Block::Subheading(text.to_owned()));
    }

    pub fn paragraph(&mut self, text: impl Into<Inline>) {
        self.blocks.push(Block::Paragraph(text.into()));
    }

    pub fn list(&mut self, items: Vec<Inline>) {
        self.blocks.push(Block::List(items));
    }

    /// A table, or a word where it would be empty.
    pub fn table(&mut self, head: &[&'static str], rows: Vec<Vec<Inline>>, none: &str) {
        match rows.is_empty() {
            true => self.paragraph(none),
            false => self.blocks.push(Block::Table(head.to_vec(), rows)),
        }
    }

    pub fn chart(&mut self, caption: &str, chart: Html) {
        self.blocks.push(Block::Chart(caption.to_owned(), chart));
    }

    pub fn html(&self) -> String {
        let mut page = Page::new(&self.title, self.under.as_str());
        for block in &self.blocks {
            match block {
                Block::Heading(text) => page.heading(text),
                Block::Subheading(text) => page.subheading(text),
                Block::Paragraph(text) => page.paragraph(text.html()),
                Block::Callout(text) => page.callout(text.html()),
                Block::List(items) => page.list(items.iter().map(Inline::html)),
                Block::Table(head, rows) => page.table(head, rows.iter().map(|row| row.iter().map(Inline::html).collect())),
                Block::Chart(caption, chart) => page.figure(caption.as_str(), chart),
            };
        }
        page.finish()
    }

    pub fn markdown(&self) -> String {
        let mut out = format!("# {}\n\n{}\n", plain(&self.title), plain(&self.under));
        for block in &self.blocks {
            let text = match block {
                Block::Heading(text) => format!("## {}", plain(text)),
                Block::Subheading(text) => format!("### {}", plain(text)),
                Block::Paragraph(text) => text.markdown(),
                Block::Callout(text) => format!("> {}", text.markdown()),
                Block::List(items) => items.iter().map(|item| format!("- {}", item.markdown())).collect::<Vec<_>>().join("\n"),
                Block::Table(head, rows) => table(head, rows),
                Block::Chart(..) => continue,
            };
            let _ = write!(out, "\n{text}\n");
        }
        out
    }
}

fn table(head: &[&str], rows: &[Vec<Inline>]) -> String {
    let heads: Vec<String> = head.iter().map(|name| plain(name.trim_start_matches('#'))).collect();
    let lines: Vec<&str> = head.iter().map(|name| if name.starts_with('#') { "---:" } else { "---" }).collect();
    let mut out = format!("| {} |\n| {} |", heads.join(" | "), lines.join(" | "));
    for row in rows {
        let cells: Vec<String> = row.iter().map(Inline::markdown).collect();
        let _ = write!(out, "\n| {} |", cells.join(" | "));
    }
    out
}

impl Inline {
    fn html(&self) -> Html {
        self.0.iter().fold(Html::default(), |out, span| {
            out.then(match span {
                Span::Text(text) => Html::linked(text),
                Span::Link(text, url) => Html::link(text, url),
                Span::Strong(text) => Html::strong(text),
                Span::Code(text) => Html::code(text),
                Span::Verdict(word) => Html::verdict(word),
                Span::Blank(hint) => Html::blank(hint),
            })
        })
    }

    fn markdown(&self) -> String {
        let span = |span: &Span| match span {
            Span::Text(text) => plain(text),
            Span::Link(text, url) => format!("[{}](<{}>)", plain(text), url.replace(['<', '>', '\n', '|', ' '], "")),
            Span::Strong(text) | Span::Verdict(text) => format!("**{}**", plain(text)),
            Span::Code(text) => format!("`{}`", one_line(text).replace(['`', '|'], "'")),
            Span::Blank(hint) => format!("_{}_", plain(hint)),
        };
        self.0.iter().map(span).collect()
    }
}

/// Text in which nothing means anything to Markdown, on one line.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in one_line(text).chars() {
        if matches!(c, '\\' | '*' | '`' | '[' | ']' | '<' | '>' | '|') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
