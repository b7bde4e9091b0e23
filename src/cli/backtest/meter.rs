//! How far a backtest is: a bar on a terminal, else a line now and then.

use crate::tools::simulate::duration;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// Where there is no terminal, a line of progress this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub struct Meter {
    bar: ProgressBar,
    plain: bool,
    begun: Instant,
    said: Instant,
    unit: Unit,
}

#[derive(Clone, Copy)]
enum Unit {
    Bytes,
    Records,
}

impl Unit {
    fn count(self, n: u64) -> String {
        match self {
            Unit::Bytes => HumanBytes(n).to_string(),
            Unit::Records => format!("{} records", HumanCount(n)),
        }
    }
}

impl Meter {
    pub fn bytes() -> Meter {
        Meter::new(Unit::Bytes, "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
    }

    pub fn records() -> Meter {
        Meter::new(Unit::Records, "{bar:30} {human_pos}/{human_len} records {per_sec}, {eta} left")
    }

    fn new(unit: Unit, template: &str) -> Meter {
        let style = ProgressStyle::with_template(template);
        // Hidden unless standard error is a terminal.
        let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let now = Instant::now();
        Meter { bar, plain: !io::stderr().is_terminal(), begun: now, said: now, unit }
    }

    /// So much of it has been read.
    pub fn tell(&mut self, read: u64, total: Option<u64>) {
        self.bar.set_length(total.unwrap_or(read));
        self.bar.set_position(read);
        if self.plain && self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            eprintln!("{}", line(self.unit, (read, total), self.begun.elapsed()));
        }
    }

    /// Prints something else meanwhile.
    pub fn aside(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn line(unit: Unit, (read, total): (u64, Option<u64>), elapsed: Duration) -> String {
    let rate = read as f64 / elapsed.as_secs_f64().max(0.001);
    let share = total.filter(|total| *total > 0).map(|total| {
        let left = duration(1e3 * total.saturating_sub(read) as f64 / rate.max(1.0));
        (format!(" of {} ({}%)", unit.count(total), read.min(total) * 100 / total), format!(", about {left} left"))
    });
    let (of, left) = share.unwrap_or_default();
    format!("{}{of}, {}/s{left}", unit.count(read), unit.count(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_share_rate_and_rest() {
        let second = Duration::from_secs(1);
        assert_eq!(line(Unit::Bytes, (1 << 20, Some(4 << 20)), second), "1.00 MiB of 4.00 MiB (25%), 1.00 MiB/s, about 3 s left");
        assert_eq!(line(Unit::Bytes, (1 << 20, None), second), "1.00 MiB, 1.00 MiB/s");
        assert_eq!(
            line(Unit::Records, (5_000, Some(20_000)), second),
            "5,000 records of 20,000 records (25%), 5,000 records/s, about 3 s left"
        );
    }
}
