//! The page itself: headings, paragraphs, lists, tables, figures.

use super::html::{Escaped, Html};
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");

/// A page in the making. Sections come in the order in which they are added.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// `under` is the line under the title: what the page is of, and from when.
    pub fn new(title: &str, under: impl Into<Html>) -> Page {
        Page { title: title.to_owned(), body: format!("<header>\n<h1>{}</h1>\n<p>{}</p>\n</header>\n", Escaped(title), under.into()) }
    }

    pub fn heading(&mut self, text: &str) -> &mut Page {
        self.add(format_args!("<h2>{}</h2>", Escaped(text)))
    }

    pub fn subheading(&mut self, text: &str) -> &mut Page {
        self.add(format_args!("<h3>{}</h3>", Escaped(text)))
    }

    pub fn paragraph(&mut self, text: impl Into<Html>) -> &mut Page {
        self.add(format_args!("<p>{}</p>", text.into()))
    }

    /// What a reader must see first.
    pub fn callout(&mut self, text: impl Into<Html>) -> &mut Page {
        self.add(format_args!("<p class=\"callout\">{}</p>", text.into()))
    }

    pub fn list(&mut self, items: impl IntoIterator<Item = Html>) -> &mut Page {
        let items: String = items.into_iter().map(|item| format!("<li>{item}</li>\n")).collect();
        self.add(format_args!("<ul>\n{items}</ul>"))
    }

    /// Columns whose head begins with `#` hold numbers, and are aligned to the right.
    pub fn table(&mut self, head: &[&str], rows: impl IntoIterator<Item = Vec<Html>>) -> &mut Page {
        let class = |i: usize| if head.get(i).is_some_and(|name| name.starts_with('#')) { " class=\"number\"" } else { "" };
        let mut out = "<div class=\"wide\"><table>\n<thead><tr>".to_owned();
        for (i, name) in head.iter().enumerate() {
            let _ = write!(out, "<th{}>{}</th>", class(i), Escaped(name.trim_start_matches('#')));
        }
        out += "</tr></thead>\n<tbody>\n";
        for row in rows {
            let cells: String = row.iter().enumerate().map(|(i, cell)| format!("<td{}>{cell}</td>", class(i))).collect();
            let _ = writeln!(out, "<tr>{cells}</tr>");
        }
        self.add(format_args!("{out}</tbody></table></div>"))
    }

    /// A chart (`.svg()` of one of them) with its caption.
    pub fn figure(&mut self, caption: impl Into<Html>, chart: &Html) -> &mut Page {
        self.add(format_args!("<figure><figcaption>{}</figcaption>\n<div class=\"wide\">{chart}</div></figure>", caption.into()))
    }

    fn add(&mut self, markup: std::fmt::Arguments<'_>) -> &mut Page {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "{markup}");
        self
    }

    /// The whole file.
    pub fn finish(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}</main>\n</body>\n</html>\n",
            Escaped(&self.title),
            self.body
        )
    }
}
