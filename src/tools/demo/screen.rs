//! Where the tale is told: lines on standard output, and on a terminal a live line below them.
#![allow(clippy::print_stdout)]

use super::story::Line;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

pub struct Screen {
    started: Instant,
    live: Option<ProgressBar>,
}

impl Screen {
    pub fn new(plain: bool) -> Screen {
        let live = (!plain && is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Screen { started: Instant::now(), live }
    }

    /// A line with the time since the start: `00:12  fault      …`.
    pub fn tell(&self, line: &Line) {
        let seconds = self.started.elapsed().as_secs();
        self.say(&format!("{:02}:{:02}  {:<10} {}", seconds / 60, seconds % 60, line.word, line.text));
    }

    /// A line as it is.
    pub fn say(&self, text: &str) {
        match &self.live {
            Some(bar) => bar.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }

    /// What the live line shows, where there is one.
    pub fn glance(&self, text: impl FnOnce() -> String) {
        if let Some(bar) = &self.live {
            bar.set_message(text());
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
    }
}

pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
