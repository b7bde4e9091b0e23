//! Output that people look at: columns that line up, fit the terminal, and say the verdict in colour where that is wanted.

use super::show::printable;
use std::io::{self, IsTerminal};

/// Of very narrow terminals.
const LEAST: usize = 60;

#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub colour: bool,
    /// Columns; where there is no terminal, no line is broken.
    pub width: usize,
    pub terminal: bool,
}

impl Screen {
    pub fn of_stdout() -> Screen {
        let terminal = io::stdout().is_terminal();
        let width = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)).filter(|_| terminal);
        Screen { colour: super::check::color(terminal), width: width.unwrap_or(usize::MAX).max(LEAST), terminal }
    }

    /// A word that says how good something is.
    pub fn verdict(&self, word: &str) -> Cell {
        let colour = match word {
            "safe" | "delivered" | "confirmed" | "on" => "32",
            "breach" | "rollback" | "kill" | "dead" | "unconfirmed" | "undone" => "31",
            "watching" | "pending" | "pause" | "page" => "33",
            _ => "2",
        };
        Cell { text: printable(word), colour: self.colour.then_some(colour) }
    }

    /// Columns; the last one is broken between words, and goes on below itself.
    pub fn table(&self, head: &[&str], rows: &[Vec<Cell>]) -> String {
        let columns = head.len();
        let longest = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(Cell::len).chain([head[i].len()]).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(longest).collect();
        let before: usize = widths[..columns - 1].iter().map(|w| w + 2).sum();
        let room = self.width.saturating_sub(before).max(LEAST / 2);
        let named: Vec<Cell> = head.iter().map(|name| Cell::from(*name)).collect();
        let heads = head.iter().any(|name| !name.is_empty()).then_some(&named);
        let mut out = String::new();
        for row in heads.into_iter().chain(rows) {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate().take(columns - 1) {
                line += &cell.shown();
                line += &" ".repeat(widths[i] + 2 - cell.len().min(widths[i]));
            }
            if let Some(last) = row.get(columns - 1) {
                line += &wrapped(last, room, before);
            }
            out += line.trim_end();
            out.push('\n');
        }
        out.truncate(out.trim_end().len());
        out
    }
}

/// Text that may have a colour.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    text: String,
    colour: Option<&'static str>,
}

impl Cell {
    fn len(&self) -> usize {
        self.text.chars().count()
    }

    fn shown(&self) -> String {
        match self.colour {
            Some(colour) => format!("\u{1b}[{colour}m{}\u{1b}[0m", self.text),
            None => self.text.clone(),
        }
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell { text: printable(text), colour: None }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::from(text.as_str())
    }
}

/// Lines of at most `room` columns, but for words that are longer; all but the first begin with `indent` blanks.
fn wrapped(cell: &Cell, room: usize, indent: usize) -> String {
    if cell.len() <= room {
        return cell.shown();
    }
    let mut lines = vec![String::new()];
    for word in cell.text.split(' ') {
        let last = lines.len() - 1;
        let used = lines[last].chars().count();
        if used > 0 && used + 1 + word.chars().count() > room {
            lines.push(word.to_owned());
        } else {
            if used > 0 {
                lines[last].push(' ');
            }
            lines[last] += word;
        }
    }
    lines.join(&format!("\n{}", " ".repeat(indent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_the_last_one_wraps() {
        let screen = Screen { colour: false, width: 60, terminal: false };
        let rows = [
            vec![
                screen.verdict("breach"),
                "checkout".into(),
                "latency p95 of treatment is 23.3% above control and that is too much".into(),
            ],
            vec![screen.verdict("safe"), "a".into(), "fine\u{1b}[2J".into()],
        ];
        let shown = screen.table(&["VERDICT", "EXPERIMENT", "WHY"], &rows);
        assert_eq!(
            shown,
            "VERDICT  EXPERIMENT  WHY\n\
             breach   checkout    latency p95 of treatment is 23.3% above\n                     control and that is too much\n\
             safe     a           fine[2J"
        );
        let colourful = Screen { colour: true, ..screen };
        assert!(colourful.table(&["", ""], &[vec![colourful.verdict("safe"), "x".into()]]).starts_with("\u{1b}[32msafe\u{1b}[0m  x"));
    }
}
