//! Pages that need nothing else: one HTML file with its style and its charts (SVG) inside, no script, no request to anywhere.
//!
//! What goes in is text and is escaped; [`Html`] is what has been. A page follows the reader's light or dark theme, prints in light, and
//! never says a thing by colour alone.

mod bars;
mod forest;
mod histogram;
mod html;
mod lines;
mod page;
mod scale;
#[cfg(test)]
mod tests;

pub use bars::{Bar, Bars};
pub use forest::{Forest, Row};
pub use histogram::{Bin, Histogram};
pub use html::Html;
pub use lines::{Axis, Line, Lines, Mark, MarkKind, Point};
pub use page::Page;
pub use scale::{Unit, thousands};
