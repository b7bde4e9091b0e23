//! Text that is safe to put into a page.

use std::fmt::{self, Display, Write as _};

/// Markup that was made of escaped text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Html(String);

impl Html {
    /// Markup as it is: from this module's charts alone.
    pub(super) fn markup(markup: String) -> Html {
        Html(markup)
    }

    pub fn link(text: &str, url: &str) -> Html {
        match is_address(url) {
            true => Html(format!("<a href=\"{}\" rel=\"noopener noreferrer\">{}</a>", Escaped(url), Escaped(text))),
            false => Html::from(text),
        }
    }

    /// Text with the `http` and `https` addresses in it as links.
    pub fn linked(text: &str) -> Html {
        let mut out = Html::default();
        for (i, word) in text.split(' ').enumerate() {
            let bare = word.trim_end_matches(['.', ',', ';', ')', ':']);
            let space = if i > 0 { " " } else { "" };
            out = match is_address(bare) {
                true => out.then(space).then(Html::link(bare, bare)).then(&word[bare.len()..]),
                false => out.then(format!("{space}{word}")),
            };
        }
        out
    }

    pub fn code(text: &str) -> Html {
        Html(format!("<code>{}</code>", Escaped(text)))
    }

    pub fn strong(text: &str) -> Html {
        Html(format!("<strong>{}</strong>", Escaped(text)))
    }

    /// A verdict, or another word of its kind, with the icon that goes with it.
    pub fn verdict(word: &str) -> Html {
        let (class, icon) = match word {
            "safe" | "ship" => ("good", "\u{2713}"),
            "breach" | "roll back" => ("bad", "\u{2716}"),
            "watching" | "iterate" => ("open", "\u{25cb}"),
            _ => ("none", "\u{2013}"),
        };
        Html(format!("<span class=\"verdict {class}\"><span aria-hidden=\"true\">{icon}</span> {}</span>", Escaped(word)))
    }

    /// A place that a person is to fill in.
    pub fn blank(hint: &str) -> Html {
        Html(format!("<span class=\"blank\">{}</span>", Escaped(hint)))
    }

    #[must_use]
    pub fn then(mut self, more: impl Into<Html>) -> Html {
        self.0.push_str(&more.into().0);
        self
    }

    pub fn join(parts: impl IntoIterator<Item = Html>, between: &str) -> Html {
        let parts: Vec<String> = parts.into_iter().map(|part| part.0).collect();
        Html(parts.join(&Escaped(between).to_string()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Html {
    fn from(text: &str) -> Html {
        Html(Escaped(text).to_string())
    }
}

impl From<String> for Html {
    fn from(text: String) -> Html {
        Html::from(text.as_str())
    }
}

impl Display for Html {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Only these are followed: others could be code.
fn is_address(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

/// Text without what means something to HTML, in content or in a quoted attribute.
pub(super) struct Escaped<'a>(pub &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' => f.write_char(c)?,
                c if c.is_control() => {}
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}
