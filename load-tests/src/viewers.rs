//! `viewers`: what people who watch the dashboard cost the daemon while it reads as fast as it can, and how long they wait.

use crate::case::LoadCase;
use crate::rig::Rig;
use crate::side::{self, Used};
use crate::table::{self, quantile};
use anyhow::{Context, ensure};
use guardraild::tools::traffic::Experiment;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// As the page asks: the fleet every five seconds, an experiment and its series every two.
const FLEET_EVERY: Duration = Duration::from_secs(5);
const EXPERIMENT_EVERY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);
/// Nobody listens here: no decision of these cases is waited for.
const SINK: (&str, &str) = ("http://127.0.0.1:9/", "whsec_bG9hZC10ZXN0cy1sb2FkLXRlc3RzLWxvYWQtdGVzdHM=");

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    case: PathBuf,
    #[arg(long)]
    brokers: Option<String>,
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=120))]
    viewers: u16,
    /// Pairs of runs, without and with viewers
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let case = LoadCase::read(&args.case)?;
    let rig = Rig::start(args.brokers.as_deref(), case.partitions)?;
    rig.fill(&case)?;
    let names: Vec<String> = case.traffic.experiments.iter().flat_map(Experiment::names).collect();
    let (mut without, mut with, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.runs {
        without.push(read_all(&rig, &case, &names, 0, &mut answers)?);
        with.push(read_all(&rig, &case, &names, args.viewers, &mut answers)?);
    }
    print(args.viewers, &without, &with, &answers)
}

/// The daemon reads all records while viewers look on; what they waited for each answer goes into `answers`, in seconds.
fn read_all(rig: &Rig, case: &LoadCase, names: &[String], viewers: u16, answers: &mut Vec<f64>) -> anyhow::Result<Used> {
    let dir = tempfile::tempdir()?;
    let config = rig.files(dir.path(), case, SINK)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let text = std::fs::read_to_string(&config)?.replace("127.0.0.1:0", &address.to_string());
    std::fs::write(&config, text)?;
    let over = Arc::new(AtomicBool::new(false));
    let waited: Arc<Mutex<Vec<f64>>> = Arc::default();
    let threads: Vec<JoinHandle<()>> = (0..viewers)
        .flat_map(|n| {
            let name = names[usize::from(n) % names.len()].clone();
            let (streaming, asking) = (Arc::clone(&over), (Arc::clone(&over), Arc::clone(&waited)));
            [
                std::thread::spawn(move || stream(address, &streaming)),
                std::thread::spawn(move || ask(address, usize::from(n), &name, &asking.0, &asking.1)),
            ]
        })
        .collect();
    let used = side::measure(&["daemon", "--config", &config.to_string_lossy(), "--records", &case.records.to_string()]);
    over.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| drop(thread.join()));
    answers.extend(waited.lock().unwrap_or_else(|e| e.into_inner()).iter());
    used
}

/// Listens to the events until the daemon is gone.
fn stream(address: SocketAddr, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let _ = exchange(address, "/api/v1/events");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn ask(address: SocketAddr, n: usize, name: &str, over: &AtomicBool, waited: &Mutex<Vec<f64>>) {
    let one = format!("/api/v1/experiments/{name}");
    let (paths, every) = match n % 2 {
        0 => (vec!["/api/v1/fleet".to_owned()], FLEET_EVERY),
        _ => (vec![one.clone(), format!("{one}/series")], EXPERIMENT_EVERY),
    };
    // Viewers do not come all at once.
    let mut next = Instant::now() + every * (n % 50) as u32 / 50;
    while !over.load(Ordering::Relaxed) {
        if Instant::now() < next {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        next += every;
        for path in &paths {
            let begun = Instant::now();
            if exchange(address, path).is_ok() {
                waited.lock().unwrap_or_else(|e| e.into_inner()).push(begun.elapsed().as_secs_f64());
            }
        }
    }
}

fn exchange(address: SocketAddr, path: &str) -> anyhow::Result<()> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    write!(connection, "GET {path} HTTP/1.1\r\nhost: {address}\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n")?;
    let mut answer = BufReader::new(connection);
    let mut head = [0; 12];
    answer.read_exact(&mut head)?;
    ensure!(head.ends_with(b"200"), "{path}: {}", String::from_utf8_lossy(&head));
    std::io::copy(&mut answer, &mut std::io::sink())?;
    Ok(())
}

fn print(viewers: u16, without: &[Used], with: &[Used], answers: &[f64]) -> anyhow::Result<()> {
    let cpu = |runs: &[Used]| quantile(&runs.iter().map(|used| used.cpu_s * 1e6 / used.records as f64).collect::<Vec<_>>(), 0.5);
    let (alone, watched) = (cpu(without), cpu(with));
    let row = |name: String, cpu: f64| vec![name, format!("{cpu:.3}"), format!("{:+.1}%", (cpu / alone - 1.0) * 100.0)];
    let title = "CPU of the daemon that reads as fast as it can, medians";
    table::print(title, &["viewers", "CPU s per million records", "more"], &[row("0".into(), alone), row(viewers.to_string(), watched)]);
    let slowest = answers.iter().copied().reduce(f64::max).context("no viewer had an answer: the case has too few records")?;
    let ms = |q: f64| format!("{:.1} ms", quantile(answers, q) * 1e3);
    let cells = vec![answers.len().to_string(), ms(0.5), ms(0.99), format!("{:.1} ms", slowest * 1e3)];
    table::print("Answers of the API meanwhile", &["answers", "p50", "p99", "slowest"], &[cells]);
    Ok(())
}
