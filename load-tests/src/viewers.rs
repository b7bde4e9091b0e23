//! `viewers`: what people who watch the dashboard cost the daemon while it reads as fast as it can, how long they wait, and what a first visit weighs.

use crate::case::LoadCase;
use crate::rig::Rig;
use crate::side::{self, Used};
use crate::table::{self, median, quantile};
use anyhow::ensure;
use guardraild::tools::traffic::Experiment;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// As the page asks: the fleet every five seconds, an experiment and its series every two; and a controller asks whether it may go on.
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
    /// Number of experiments, instead of the case's
    #[arg(long)]
    experiments: Option<u32>,
    /// Records, instead of the case's: at a million a second a few of them are over before anybody has looked
    #[arg(long)]
    records: Option<u64>,
    /// Pairs of runs, without and with viewers
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// Seconds that answers took, by what was asked for.
type Waited = BTreeMap<&'static str, Vec<f64>>;

/// What is seen of one run.
#[derive(Default)]
struct Seen {
    waited: Waited,
    /// Bytes of a first visit, by what they are of.
    visit: Option<BTreeMap<&'static str, usize>>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut case = LoadCase::read(&args.case)?;
    case = args.experiments.map_or(case.clone(), |n| case.with_experiments(n));
    case.records = args.records.unwrap_or(case.records);
    let rig = Rig::start(args.brokers.as_deref(), case.partitions)?;
    rig.fill(&case)?;
    let names: Vec<String> = case.traffic.experiments.iter().flat_map(Experiment::names).collect();
    let (mut without, mut with, mut seen) = (Vec::new(), Vec::new(), Seen::default());
    for _ in 0..args.runs {
        without.push(read_all(&rig, &case, &names, 0, &mut seen)?);
        with.push(read_all(&rig, &case, &names, args.viewers, &mut seen)?);
    }
    print(args.viewers, names.len(), (&without, &with), &seen)
}

/// The daemon reads all records while viewers look on; what they have seen is added to `seen`.
fn read_all(rig: &Rig, case: &LoadCase, names: &[String], viewers: u16, seen: &mut Seen) -> anyhow::Result<Used> {
    let dir = tempfile::tempdir()?;
    let config = rig.files(dir.path(), case, SINK)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let text = std::fs::read_to_string(&config)?.replace("127.0.0.1:0", &address.to_string());
    std::fs::write(&config, text)?;
    let over = Arc::new(AtomicBool::new(false));
    let waited: Arc<Mutex<Waited>> = Arc::default();
    let mut threads: Vec<JoinHandle<()>> = (0..viewers)
        .flat_map(|n| {
            let name = names[usize::from(n) % names.len()].clone();
            let (streaming, asking) = (Arc::clone(&over), (Arc::clone(&over), Arc::clone(&waited)));
            [
                std::thread::spawn(move || stream(address, &streaming)),
                std::thread::spawn(move || ask(address, usize::from(n), &name, &asking.0, &asking.1)),
            ]
        })
        .collect();
    let visited: Arc<Mutex<Option<BTreeMap<_, _>>>> = Arc::default();
    if viewers > 0 && seen.visit.is_none() {
        let (visiting, all, visited) = (Arc::clone(&over), names.len(), Arc::clone(&visited));
        threads.push(std::thread::spawn(move || visit_once(address, all, &visiting, &visited)));
    }
    let used = side::measure(&["daemon", "--config", &config.to_string_lossy(), "--records", &case.records.to_string()]);
    over.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| drop(thread.join()));
    for (what, took) in std::mem::take(&mut *waited.lock().unwrap_or_else(|e| e.into_inner())) {
        seen.waited.entry(what).or_default().extend(took);
    }
    seen.visit = seen.visit.take().or(visited.lock().unwrap_or_else(|e| e.into_inner()).take());
    used
}

/// Listens to the events until the daemon is gone.
fn stream(address: SocketAddr, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let _ = exchange(address, "/api/v1/events");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn ask(address: SocketAddr, n: usize, name: &str, over: &AtomicBool, waited: &Mutex<Waited>) {
    let one = format!("/api/v1/experiments/{name}");
    let (paths, every) = match n % 2 {
        0 => (vec![("fleet", "/api/v1/fleet".to_owned())], FLEET_EVERY),
        _ => {
            let more = [("series", format!("{one}/series")), ("verdict", format!("{one}/verdict"))];
            ([("experiment", one)].into_iter().chain(more).collect(), EXPERIMENT_EVERY)
        }
    };
    // Viewers do not come all at once.
    let mut next = Instant::now() + every * (n % 50) as u32 / 50;
    while !over.load(Ordering::Relaxed) {
        if Instant::now() < next {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        next += every;
        for (what, path) in &paths {
            let begun = Instant::now();
            if exchange(address, path).is_ok() {
                waited.lock().unwrap_or_else(|e| e.into_inner()).entry(what).or_default().push(begun.elapsed().as_secs_f64());
            }
        }
    }
}

/// Bytes of an answer, its head included.
fn exchange(address: SocketAddr, path: &str) -> anyhow::Result<usize> {
    answer(address, path, "gzip", &mut std::io::sink())
}

/// Writes an answer to `out`, head and all; how many bytes it had.
fn answer(address: SocketAddr, path: &str, coding: &str, out: &mut impl Write) -> anyhow::Result<usize> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    write!(connection, "GET {path} HTTP/1.1\r\nhost: {address}\r\naccept-encoding: {coding}\r\nconnection: close\r\n\r\n")?;
    let mut answer = BufReader::new(connection);
    let mut head = [0; 12];
    answer.read_exact(&mut head)?;
    ensure!(head.ends_with(b"200"), "{path}: {}", String::from_utf8_lossy(&head));
    Ok(head.len() + std::io::copy(&mut answer, out)? as usize)
}

/// Once all experiments are judged: what a browser fetches that has nothing yet.
fn visit_once(address: SocketAddr, experiments: usize, over: &AtomicBool, visited: &Mutex<Option<BTreeMap<&'static str, usize>>>) {
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(500));
        let judged = text(address, "/api/v1/fleet").map_or(0, |fleet| fleet.matches("\"judged_to\":1").count());
        if judged == experiments
            && let Ok(bytes) = visit(address)
        {
            *visited.lock().unwrap_or_else(|e| e.into_inner()) = Some(bytes);
            return;
        }
    }
}

fn visit(address: SocketAddr) -> anyhow::Result<BTreeMap<&'static str, usize>> {
    let (mut files, mut found) = (BTreeSet::new(), vec!["/".to_owned()]);
    while let Some(path) = found.pop() {
        if files.insert(path.clone()) {
            found.extend(named(&text(address, &path)?));
        }
    }
    let sizes = files.iter().map(|path| exchange(address, path)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok([("page, styles and scripts", sizes.iter().sum()), ("rows of the fleet", exchange(address, "/api/v1/fleet")?)].into())
}

fn text(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    answer(address, path, "identity", &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Files that a page or a module names.
fn named(text: &str) -> Vec<String> {
    let file = |rest: &str| rest.split(['"', '\'']).next().map(|name| format!("/assets/{name}"));
    let after = |mark: &'static str| text.split(mark).skip(1).filter_map(file);
    after("\"assets/").chain(after("from \"./")).collect()
}

fn print(viewers: u16, experiments: usize, (without, with): (&[Used], &[Used]), seen: &Seen) -> anyhow::Result<()> {
    let cpu = |runs: &[Used]| median(&runs.iter().map(|used| used.cpu_s * 1e6 / used.records as f64).collect::<Vec<_>>());
    let rate = |runs: &[Used]| median(&runs.iter().map(|used| used.records as f64 / used.wall_s / 1e3).collect::<Vec<_>>());
    let alone = cpu(without);
    let row = |name: String, runs: &[Used]| {
        let cells = [format!("{:.3}", cpu(runs)), format!("{:+.1}%", (cpu(runs) / alone - 1.0) * 100.0), format!("{:.0} k/s", rate(runs))];
        std::iter::once(name).chain(cells).collect()
    };
    let title = format!("CPU of the daemon that reads as fast as it can, {experiments} experiments, medians of {} runs", with.len());
    let head = ["viewers", "CPU s per million records", "more", "rate"];
    table::print(&title, &head, &[row("0".into(), without), row(viewers.to_string(), with)]);
    let all: Vec<f64> = seen.waited.values().flatten().copied().collect();
    ensure!(!all.is_empty(), "no viewer had an answer: the case has too few records");
    let row = |what: &str, took: &[f64]| {
        let ms = |q: f64| format!("{:.1} ms", quantile(took, q) * 1e3);
        vec![what.to_owned(), took.len().to_string(), ms(0.5), ms(0.99), ms(1.0)]
    };
    let rows: Vec<_> = seen.waited.iter().map(|(what, took)| row(what, took)).chain([row("all", &all)]).collect();
    table::print("Answers of the API meanwhile", &["answer", "answers", "p50", "p99", "slowest"], &rows);
    let Some(visit) = &seen.visit else {
        println!("\nNo first visit: the daemon had read all records before every experiment was judged. Give it more `--records`.");
        return Ok(());
    };
    let kib = |bytes: usize| format!("{:.0} KiB", bytes as f64 / 1024.0);
    let rows: Vec<_> = visit.iter().map(|(what, bytes)| vec![(*what).to_owned(), kib(*bytes)]).collect();
    let whole = vec!["in all".to_owned(), kib(visit.values().sum())];
    table::print("First visit to the dashboard, compressed as it is sent", &["what", "size"], &[rows, vec![whole]].concat());
    Ok(())
}
