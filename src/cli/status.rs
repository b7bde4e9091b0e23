//! `guardraild status`: one word, and an exit status for scripts and pipelines.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::client::{Daemon, Shown, encoded};
use super::screen::Screen;
use super::show::text;
use crate::config;
use clap::Args;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::time::{Duration, Instant};

const SAFE: i32 = 0;
const BREACH: i32 = 1;
const INCONCLUSIVE: i32 = 4;
/// Pause between two questions of `--wait`.
const AGAIN: Duration = Duration::from_secs(1);

/// Tell an experiment's verdict by the exit status
///
/// With `--wait` until it is safe or in breach, or its time is over. Without an answer of the daemon nothing is known: that is inconclusive, too.
///
/// Exit status: 0 safe, 1 breach, 4 inconclusive (watching, no data, or no answer).
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  guardraild status new-checkout --wait --timeout 30m && ./next-phase")]
pub struct StatusArgs {
    experiment: String,
    /// Wait until the verdict is safe or breach, or the experiment has ended
    #[arg(long)]
    wait: bool,
    /// Longest wait
    #[arg(long, value_name = "SPAN", requires = "wait", value_parser = span)]
    timeout: Option<Duration>,
    #[command(flatten)]
    daemon: Daemon,
}

fn span(text: &str) -> Result<Duration, String> {
    config::span(text).ok_or_else(|| "a span such as 30s, 10m or 2h".to_owned())
}

pub fn run(args: &StatusArgs) -> i32 {
    let begun = Instant::now();
    let mut told = String::new();
    loop {
        let answer = args.daemon.ask(&format!("experiments/{}", encoded(&args.experiment)), None);
        let over = !args.wait || args.timeout.is_some_and(|timeout| begun.elapsed() >= timeout);
        let last = over || answer.as_ref().is_ok_and(is_final);
        match &answer {
            Ok(state) if last => {
                say(args, state);
                return status(state);
            }
            Ok(_) => {}
            // It may come back, or the experiment may yet be loaded: each reason is told once.
            Err(error) if *error != told => {
                eprintln!("{}: {error}", if last { "error" } else { "waiting" });
                told.clone_from(error);
            }
            Err(_) => {}
        }
        if last {
            return INCONCLUSIVE;
        }
        std::thread::sleep(AGAIN);
    }
}

/// Nothing better will be known by waiting.
fn is_final(state: &Value) -> bool {
    let ended = matches!(state["rollout"]["stage"].as_str(), Some("ended" | "done"));
    ended || state["stop"] == true || matches!(state["verdict"].as_str(), Some("safe" | "breach"))
}

fn status(state: &Value) -> i32 {
    match state["verdict"].as_str() {
        _ if state["stop"] == true => BREACH,
        Some("breach") => BREACH,
        Some("safe") => SAFE,
        _ => INCONCLUSIVE,
    }
}

fn say(args: &StatusArgs, state: &Value) {
    let screen = Screen::of_stdout();
    let shown = match args.daemon.output {
        Shown::Json => {
            let field = |name: &str| state[name].clone();
            json!({"experiment": field("experiment"), "verdict": field("verdict"), "go": field("go"), "stop": field("stop"), "reason": field("reason")})
                .to_string()
        }
        Shown::Human => {
            let row = vec![screen.verdict(&text(&state["verdict"])), text(&state["experiment"]).into(), text(&state["reason"]).into()];
            screen.table(&["", "", ""], &[row])
        }
    };
    // A closed pipe changes nothing.
    let _ = writeln!(io::stdout(), "{shown}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_safe_is_zero() {
        let of = |verdict: &str, stop: bool, stage: &str| json!({"verdict": verdict, "stop": stop, "rollout": {"stage": stage}});
        let both = |state: Value| (status(&state), is_final(&state));
        assert_eq!(both(of("safe", false, "running")), (0, true));
        assert_eq!(both(of("breach", false, "running")), (1, true));
        assert_eq!(both(of("watching", true, "running")), (1, true));
        assert_eq!(both(of("watching", false, "running")), (4, false));
        assert_eq!(both(of("no_data", false, "ended")), (4, true));
        assert_eq!(status(&json!({})), 4);
    }
}
