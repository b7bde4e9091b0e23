//! What the daemon says of itself, and what the system says of it.

use crate::side::Running;
use crate::usage;
use anyhow::{Context, ensure};
use guardraild::clock;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One look.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Since the begin of the run.
    pub at: Duration,
    /// Records produced, and those that have an outcome or wait for one.
    pub sent: u64,
    pub counted: u64,
    /// Records between what was read and the end of the topics, as the metric has it.
    pub lag: u64,
    /// Event time between what has been judged and now, s.
    pub behind: f64,
    pub dropped: u64,
    /// Event time between the partition that is furthest ahead and the one furthest behind, s; and what waits for that one, bytes.
    pub skew: f64,
    pub ahead: f64,
    /// Checkpoints so far, and what they took together, s.
    pub checkpoints: u64,
    pub checkpointing: f64,
    /// Whether `/readyz?verbose` says that it is behind.
    pub warned: bool,
    /// Whether a gate lets a rollout go on.
    pub go: bool,
    /// Bytes.
    pub memory: u64,
    pub disk: u64,
    /// What `/metrics` took.
    pub answer: Duration,
}

pub struct Probe {
    http: String,
    pid: u32,
    /// Whose gate is asked.
    experiment: String,
    state: PathBuf,
}

impl Probe {
    pub fn new(daemon: &Running, experiment: String, state: PathBuf) -> Probe {
        Probe { http: daemon.http.clone(), pid: daemon.pid(), experiment, state }
    }

    pub fn sample(&self, at: Duration, sent: u64) -> anyhow::Result<Sample> {
        let begun = Instant::now();
        let metrics = get(&self.http, "/metrics")?;
        let answer = begun.elapsed();
        let judged_to = sum(&metrics, "guardraild_judged_to_seconds");
        let behind = if judged_to > 0.0 { clock::now() as f64 / 1e3 - judged_to } else { 0.0 };
        Ok(Sample {
            at,
            sent,
            counted: (sum(&metrics, "guardraild_records_total") + sum(&metrics, "guardraild_waiting_records")) as u64,
            lag: sum(&metrics, "guardraild_consumer_lag_records") as u64,
            behind,
            dropped: sum(&metrics, "guardraild_dropped_total") as u64,
            skew: sum(&metrics, "guardraild_partition_skew_seconds"),
            ahead: sum(&metrics, "guardraild_ahead_bytes"),
            checkpoints: sum(&metrics, "guardraild_checkpoint_seconds_count") as u64,
            checkpointing: sum(&metrics, "guardraild_checkpoint_seconds_sum"),
            warned: get(&self.http, "/readyz?verbose")?.lines().any(|line| line.contains("lag: ") && line.contains("behind")),
            go: get(&self.http, &format!("/api/v1/experiments/{}/verdict", self.experiment))?.contains("\"go\":true"),
            memory: usage::memory_of(self.pid),
            disk: size(&self.state),
            answer,
        })
    }
}

/// The body of an answer, whatever its status.
fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("nobody listens at {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.starts_with("HTTP/1.1 "), "{path}: no answer");
    Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// All series of a metric together.
fn sum(text: &str, metric: &str) -> f64 {
    let series = text.lines().filter_map(|line| line.strip_prefix(metric)).filter(|rest| rest.starts_with([' ', '{']));
    series.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_added_up() {
        let text = "# HELP a x\na{b=\"1\"} 2\na{b=\"2\"} 3.5\na_total 7\nb 1\n";
        assert_eq!((sum(text, "a"), sum(text, "a_total"), sum(text, "c")), (5.5, 7.0, 0.0));
    }
}
