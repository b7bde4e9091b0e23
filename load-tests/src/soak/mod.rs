//! `soak`: more traffic than the daemon can take, then less. Its memory must stay flat, nothing may be lost, and it must recover by itself.

mod bounds;
mod picture;
mod sample;
mod throttle;

use crate::case::LoadCase;
use crate::rig::Rig;
use crate::side;
use crate::table::{self, median, mib};
use anyhow::{Context, bail, ensure};
use bounds::Bounds;
use guardraild::clock;
use guardraild::tools::broker::Feed;
use guardraild::tools::traffic::{Record, Traffic};
use sample::{Probe, Sample};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use throttle::Throttle;

/// Nothing listens there, and the case only observes.
const NO_SINK: (&str, &str) = ("http://127.0.0.1:9/hook", "whsec_bG9hZC10ZXN0cy1sb2FkLXRlc3RzLWxvYWQtdGVzdHM=");
/// Of the whole run: the overload, and what memory may take to become level.
const OVERLOADED: f64 = 0.25;
const WARM: f64 = 0.15;
/// Load after the overload, in shares of the capacity.
const CALM: f64 = 0.2;
/// Rates of so many last samples say what the daemon can take.
const RECENT: usize = 6;
/// Progress is told after so many samples: 60 times in a run.
const TOLD: usize = 6;
/// Seconds of event time behind the wall clock that are no backlog.
const ABREAST: f64 = 30.0;
/// A minute, the lateness, and what passes between two looks.
const STALE: f64 = 100.0;
/// What memory may grow by from the warm-up to the end: share, and bytes that the allocator may keep one way or the other.
const GROWTH: f64 = 0.10;
const SLACK: f64 = 16e6;

#[derive(clap::Args)]
pub struct Args {
    /// Load case; of its traffic the rate is only where the run begins
    #[arg(long, default_value = "load-tests/cases/soak.yaml")]
    case: PathBuf,
    /// A running cluster, with room for everything that is produced; the embedded broker drops what it cannot keep after some minutes
    #[arg(long)]
    brokers: Option<String>,
    /// Length of the whole run; the first quarter is overloaded
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Records produced for each that the daemon takes
    #[arg(long, default_value_t = 3.0)]
    overload: f64,
    /// Percent of the time that the daemon is let run, so that a small machine can produce more than it takes
    #[arg(long, default_value_t = 5.0, value_parser = percent)]
    duty: f64,
    /// Where to draw the run
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn percent(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if value > 0.0 && value <= 100.0 { Ok(value) } else { Err("must lie in 0 (exclusive)..=100".to_owned()) }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let case = LoadCase::read(&args.case)?;
    ensure!(args.minutes >= 1.0 && args.overload > 1.0, "a soak takes at least a minute, and an overload is more than 1");
    let rig = Rig::start(args.brokers.as_deref(), case.partitions)?;
    let dir = tempfile::tempdir()?;
    let config = rig.files(dir.path(), &case, NO_SINK)?;
    let daemon = side::start_daemon(&config)?;
    let name = case.rules().swap_remove(0).0;
    let probe = Probe::new(&daemon, name, dir.path().join("state"));
    let feed = Feed::start(Traffic::new(case.traffic.clone(), clock::now())?, rig.writer()?)?;
    let throttle = Throttle::start(daemon.pid(), args.duty / 100.0)?;
    let (per_visit, record) = visit(&case)?;
    let mut course = Course { run: Duration::from_secs_f64(args.minutes * 60.0), overload: args.overload, samples: Vec::new() };
    let every = (course.run / 360).max(Duration::from_secs(2));

    let begun = Instant::now();
    while begun.elapsed() < course.run {
        std::thread::sleep(every);
        ensure!(!feed.is_over(), "the traffic ended early: {:?}", feed.finish().err());
        course.samples.push(probe.sample(begun.elapsed(), feed.sent().records)?);
        if course.samples.len().is_multiple_of(TOLD) {
            eprintln!("{}", course.progress());
        }
        feed.pace((course.rate() / per_visit).max(1.0));
    }
    let sent = feed.finish()?.records;
    drop(throttle);
    let counted = settled(&probe, sent)?;
    drop(daemon);

    course.print();
    let memory = |samples: &[Sample]| samples.iter().map(|s| s.memory as f64).fold(0.0, f64::max);
    let rate = course.samples.windows(2).map(|pair| slope(pair, |s| s.sent as f64)).fold(0.0, f64::max);
    Bounds::of(&case, &config, rate, record)?.print(memory(course.samples.get(..1).unwrap_or_default()), memory(&course.samples));
    if let Some(path) = &args.svg {
        std::fs::write(path, picture::svg(&course.samples)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let verdicts = course.verdicts(sent, counted);
    for (held, text) in &verdicts {
        println!("{} {text}", if *held { "held:  " } else { "BROKEN:" });
    }
    if verdicts.iter().any(|(held, _)| !held) {
        bail!("the daemon did not hold what it promises");
    }
    Ok(())
}

/// Records of a visit, and bytes of a record.
fn visit(case: &LoadCase) -> anyhow::Result<(f64, f64)> {
    let (mut traffic, mut record, mut bytes) = (Traffic::new(case.traffic.clone(), 0)?, Record::default(), 0);
    while traffic.next_ts() < 60_000 {
        traffic.next(&mut record);
        bytes += record.payload.len();
    }
    let records = record.number as f64;
    Ok((records / (60.0 * case.traffic.visits_per_s), bytes as f64 / records))
}

/// Records that the daemon has counted once it is through, or once it gets no further.
fn settled(probe: &Probe, sent: u64) -> anyhow::Result<u64> {
    let (mut counted, mut since) = (0, Instant::now());
    loop {
        let sample = probe.sample(Duration::ZERO, sent)?;
        if sample.counted > counted {
            (counted, since) = (sample.counted, Instant::now());
        }
        // A little longer, lest some be counted twice.
        if since.elapsed() > Duration::from_secs(if counted >= sent { 5 } else { 60 }) {
            return Ok(sample.counted);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The run so far, and what to do next.
struct Course {
    run: Duration,
    overload: f64,
    samples: Vec<Sample>,
}

impl Course {
    fn is_overloaded(&self, sample: &Sample) -> bool {
        sample.at <= self.run.mul_f64(OVERLOADED)
    }

    /// Records a second to produce next. What the daemon takes is what is produced until it is full, so the rate grows by the overload
    /// with each look until then, and follows its capacity afterwards.
    fn rate(&self) -> f64 {
        match self.samples.last() {
            Some(last) if self.is_overloaded(last) => {
                self.overload * self.taken(&self.samples[self.samples.len().saturating_sub(RECENT + 1)..])
            }
            _ => CALM * self.capacity(),
        }
    }

    /// Records a second that were counted over some samples.
    fn taken(&self, samples: &[Sample]) -> f64 {
        slope(samples, |s| s.counted as f64)
    }

    /// The part of the overload in which the daemon was full.
    fn full(&self) -> &[Sample] {
        let full = |s: &Sample| self.is_overloaded(s) && s.behind > ABREAST;
        let from = self.samples.iter().position(full).unwrap_or(self.samples.len());
        let to = self.samples.iter().rposition(full).map_or(from, |last| last + 1);
        &self.samples[from..to]
    }

    fn capacity(&self) -> f64 {
        match self.full() {
            // It was never full: at least the most that it took between two looks.
            [] => self.samples.windows(2).map(|pair| self.taken(pair)).fold(0.0, f64::max),
            full => self.taken(full),
        }
    }

    /// When the backlog was gone: the first sample after the overload from which on the daemon was abreast.
    fn recovered(&self) -> Option<Duration> {
        let last_behind = self.samples.iter().rposition(|s| s.behind > ABREAST)?;
        self.samples.get(last_behind + 1).map(|s| s.at)
    }

    /// Where it stands, in a line.
    fn progress(&self) -> String {
        let recent = &self.samples[self.samples.len().saturating_sub(RECENT + 1)..];
        let minutes = |time: Duration| time.as_secs_f64() / 60.0;
        let Some(last) = recent.last() else { return String::new() };
        format!(
            "{:.1} of {:.0} min: {:.1} k/s produced, {:.1} k/s taken, {} behind, {} resident",
            minutes(last.at),
            minutes(self.run),
            slope(recent, |s| s.sent as f64) / 1e3,
            self.taken(recent) / 1e3,
            last.lag,
            mib(last.memory as f64),
        )
    }

    fn print(&self) {
        let step = self.samples.len().div_ceil(30).max(1);
        let mut rows = Vec::new();
        for window in self.samples.chunks(step) {
            let (Some(first), Some(last)) = (window.first(), window.last()) else { continue };
            let before = self.samples.iter().take_while(|s| s.at < first.at).last();
            let span: Vec<Sample> = before.into_iter().chain(window).cloned().collect();
            rows.push(vec![
                format!("{:.1}", last.at.as_secs_f64() / 60.0),
                format!("{:.1} k/s", slope(&span, |s| s.sent as f64) / 1e3),
                format!("{:.1} k/s", slope(&span, |s| s.counted as f64) / 1e3),
                last.lag.to_string(),
                format!("{:.0} s", last.behind),
                format!("{:.0} s", window.iter().map(|s| s.skew).fold(0.0, f64::max)),
                mib(window.iter().map(|s| s.ahead).fold(0.0, f64::max)),
                mib(window.iter().map(|s| s.memory as f64).fold(0.0, f64::max)),
                mib(last.disk as f64),
                last.dropped.to_string(),
                checkpoints(&span),
                format!("{:.0} ms", 1e3 * window.iter().map(|s| s.answer.as_secs_f64()).fold(0.0, f64::max)),
            ]);
        }
        let head = [
            "minute",
            "produced",
            "taken",
            "lag",
            "behind",
            "skew",
            "ahead",
            "resident",
            "on disk",
            "dropped",
            "checkpoints",
            "slowest /metrics",
        ];
        table::print("A daemon that gets more than it can take", &head, &rows);
        println!();
    }

    /// What must hold, and whether it does.
    fn verdicts(&self, sent: u64, counted: u64) -> Vec<(bool, String)> {
        let full = self.full();
        let ratio = slope(full, |s| s.sent as f64) / self.capacity();
        let overload = (
            ratio >= 0.8 * self.overload,
            format!(
                "overload: {:.1} records produced for each of {:.0} a second that were taken, for {:.1} min; behind for {:.1} min",
                ratio,
                self.capacity(),
                full.len() as f64 * self.run.as_secs_f64() / 60.0 / self.samples.len().max(1) as f64,
                self.samples.iter().filter(|s| s.behind > ABREAST).count() as f64 * self.run.as_secs_f64()
                    / 60.0
                    / self.samples.len().max(1) as f64,
            ),
        );
        let loss = (counted == sent, format!("nothing lost, nothing doubled: {sent} records produced, {counted} counted under an outcome"));
        let recovery = match self.recovered() {
            Some(at) => (true, format!("recovery: abreast again after {:.1} min, without help", at.as_secs_f64() / 60.0)),
            None => (false, "recovery: still behind at the end".to_owned()),
        };
        let seen = full.iter().filter(|s| s.lag > 0 && s.warned).count();
        let visible =
            (2 * seen >= full.len(), format!("lag visible: in the metric and in /readyz?verbose of {seen} of {} samples", full.len()));
        let rash = self.samples.iter().filter(|s| s.go && s.behind > STALE).count();
        let stale = (rash == 0, format!("no gate says go on stale data: {rash} of {} samples", self.samples.len()));
        vec![overload, loss, recovery, visible, stale, self.memory()]
    }

    /// Growth over the run by the slope of a least-squares line, so that no single sample matters.
    fn memory(&self) -> (bool, String) {
        let warm: Vec<Sample> = self.samples.iter().filter(|s| s.at > self.run.mul_f64(WARM)).cloned().collect();
        let span = self.run.mul_f64(1.0 - WARM).as_secs_f64();
        let growth = trend(&warm, |s| s.memory as f64) * span;
        let level = median(&warm.iter().map(|s| s.memory as f64).collect::<Vec<_>>());
        let allowed = GROWTH * level + SLACK;
        (
            growth <= allowed,
            format!(
                "memory: {} in the middle, {} from the warm-up to the end by its trend; up to {} is allowed",
                mib(level),
                mib(growth),
                mib(allowed)
            ),
        )
    }
}

/// How many there were, and what each took.
fn checkpoints(span: &[Sample]) -> String {
    let change = |of: fn(&Sample) -> f64| span.last().map_or(0.0, of) - span.first().map_or(0.0, of);
    let n = change(|s| s.checkpoints as f64);
    if n > 0.0 { format!("{n:.0} of {:.1} s", change(|s| s.checkpointing) / n) } else { "0".to_owned() }
}

/// Change a second from the first to the last sample; 0 of fewer than two.
fn slope(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    match (samples.first(), samples.last()) {
        (Some(first), Some(last)) if last.at > first.at => (value(last) - value(first)) / (last.at - first.at).as_secs_f64(),
        _ => 0.0,
    }
}

/// Slope of the least-squares line, a second.
fn trend(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    let n = samples.len().max(1) as f64;
    let x = samples.iter().map(|s| s.at.as_secs_f64()).sum::<f64>() / n;
    let y = samples.iter().map(&value).sum::<f64>() / n;
    let across: f64 = samples.iter().map(|s| (s.at.as_secs_f64() - x) * (value(s) - y)).sum();
    let spread: f64 = samples.iter().map(|s| (s.at.as_secs_f64() - x).powi(2)).sum();
    if spread > 0.0 { across / spread } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(memory: impl Fn(f64) -> f64) -> Course {
        let sample = |i: u64| Sample { at: Duration::from_secs(i * 10), memory: memory(i as f64 / 360.0) as u64, ..Sample::default() };
        Course { run: Duration::from_secs(3_600), overload: 3.0, samples: (1..=360).map(sample).collect() }
    }

    #[test]
    fn memory_that_grows_is_told_from_memory_that_wavers() {
        assert!(course(|x| 200e6 + 10e6 * (x * 40.0).sin()).memory().0);
        assert!(!course(|x| 200e6 + 60e6 * x).memory().0, "a quarter more by the end");
        assert!(course(|x| 200e6 - 50e6 * (0.1 - x).max(0.0)).memory().0, "growth while it warms up");
    }

    #[test]
    fn the_rate_follows_what_is_taken() {
        let sample = |s: u64, counted: u64| Sample { at: Duration::from_secs(s), counted, behind: s as f64, ..Sample::default() };
        let mut course =
            Course { run: Duration::from_secs(400), overload: 3.0, samples: (0..10).map(|i| sample(10 * i, 1_000 * i)).collect() };
        assert_eq!(course.rate(), 300.0);
        course.samples.push(sample(110, 20_000));
        assert!((course.rate() / CALM - course.capacity()).abs() < 1e-9);
        assert!(course.recovered().is_none());
    }
}
