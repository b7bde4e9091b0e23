//! The daemon as a child: the real program, or the library on a disk that forgets at a power cut.

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Without an answer or progress for this long, something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of its log that are kept.
const KEPT: usize = 30;

/// Killed when dropped.
pub struct Daemon {
    child: Child,
    lines: Arc<Mutex<Lines>>,
}

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    address: Option<SocketAddr>,
}

impl Daemon {
    /// The program at `path`.
    pub fn start(path: &Path, config: &Path) -> anyhow::Result<Daemon> {
        let mut command = Command::new(path);
        command.arg("run").arg("--config").arg(config);
        Daemon::spawn(command).with_context(|| format!("{} could not be started: build it, or name another by --daemon", path.display()))
    }

    /// The library, in a process whose disk forgets.
    pub fn start_volatile(config: &Path, seed: u64) -> anyhow::Result<Daemon> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["side", "daemon", "--volatile", &seed.to_string(), "--config"]).arg(config).stdin(Stdio::piped());
        Ok(Daemon::spawn(command)?)
    }

    fn spawn(mut command: Command) -> std::io::Result<Daemon> {
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GUARDRAILD_")) {
            command.env_remove(name);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = Arc::new(Mutex::new(Lines::default()));
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            read(stdout, Arc::clone(&lines));
            read(stderr, Arc::clone(&lines));
        }
        Ok(Daemon { child, lines })
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Records counted so far; `None` while it does not answer.
    pub fn records(&self) -> Option<u64> {
        let address = self.lines().address?;
        let body = get(address, "/api/v1/experiments").ok()?;
        let body: Value = serde_json::from_str(&body).ok()?;
        let counts = body["counts"].as_object()?;
        let plain: u64 = counts.values().filter_map(Value::as_u64).sum();
        Some(plain + counts["rejected"].as_object().map_or(0, |r| r.values().filter_map(Value::as_u64).sum()))
    }

    /// Waits until it has counted so many records.
    pub fn until(&mut self, records: u64) -> anyhow::Result<()> {
        let (mut known, mut last) = (0, Instant::now());
        while known < records {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.records().unwrap_or(known);
            if now > known {
                (known, last) = (now, Instant::now());
            }
            ensure!(last.elapsed() < PATIENCE, "only {known} of {records} records were counted\n{}", self.said());
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended by itself: {status}\n{}", self.said());
            }
        }
        ensure!(known == records, "{known} records were counted, there are {records}");
        Ok(())
    }

    pub fn kill(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the daemon ended by itself: {status}\n{}", self.said());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop, and waits.
    pub fn terminate(mut self) -> anyhow::Result<()> {
        ensure!(Command::new("kill").arg(self.child.id().to_string()).status()?.success(), "it could not be asked to stop");
        let status = self.child.wait()?;
        ensure!(status.success(), "it did not stop in order: {status}\n{}", self.said());
        Ok(())
    }

    fn said(&self) -> String {
        self.lines().last.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads what it says, on a thread. The program logs where it listens, the library's side prints it.
fn read(from: impl Read + Send + 'static, into: Arc<Mutex<Lines>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut lines = into.lock().unwrap_or_else(|e| e.into_inner());
            if lines.address.is_none() && (line.contains("listening") || line.starts_with("127.0.0.1:")) {
                lines.address = address(&line);
            }
            if lines.last.len() == KEPT {
                lines.last.pop_front();
            }
            lines.last.push_back(line);
        }
    });
}

/// The loopback address that a line of the log names.
fn address(line: &str) -> Option<SocketAddr> {
    let rest = &line[line.find("127.0.0.1:")?..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// HTTP/1.0, so that the answer is its body and ends with the connection.
fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
