//! The command line: parses arguments and calls the app or a tool.

pub mod assignments;
pub mod audit;
pub mod backtest;
pub mod check;
pub mod client;
pub mod demo;
pub mod explain;
pub mod generate;
pub mod get;
pub mod init;
pub mod log;
pub mod man;
pub mod map;
pub mod readout;
pub mod run;
pub mod schema;
mod screen;
mod show;
pub mod simulate;
pub mod stats;
pub mod status;
pub mod test;
pub mod test_endpoint;

use crate::engine::time::Millis;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Parses a span of time such as `500ms`, `1s`, `10m`, `2h` or `1d`, at least one millisecond.
fn span(text: &str) -> Result<Millis, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let parsed = units.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?.parse::<Millis>().ok()?, ms)));
    match parsed.and_then(|(n, ms)| n.checked_mul(*ms)).filter(|ms| *ms > 0) {
        Some(ms) => Ok(ms),
        None => Err("write a span of time such as 500ms, 1s, 10m, 2h or 1d".into()),
    }
}

/// Set at the first Ctrl-C; the second ends the process.
fn interrupted() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    // Where no signal can be waited for, Ctrl-C ends the process at once, as it does by default.
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        std::thread::spawn(move || {
            runtime.block_on(async {
                if tokio::signal::ctrl_c().await.is_ok() {
                    set.store(true, Ordering::Relaxed);
                }
                if tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(130);
                }
            });
        });
    }
    flag
}
