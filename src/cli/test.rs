//! `guardraild test`: rules against traffic that is made up, before anybody is exposed to them.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::check;
use crate::rules;
use crate::tools::ruletest::{self, Bad, CaseResult, Options, TestFile};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

const EXAMPLES: &str = "\
Examples:
  guardraild test                                             all *_test.yaml below rules
  guardraild test rules/new-checkout_test.yaml -v             one file, with pictures of what happened
  guardraild test --filter 'stay quiet' --seeds 20            some cases, with fewer seeds, for a quick look
  guardraild test --watch                                     again whenever a rule or a test changes
  guardraild test --junit report.xml                          for CI

A test stands beside its rule file: rules/new-checkout_test.yaml tests rules/new-checkout.yaml.
  guardrail_test: v1
  traffic: {units: 20/s}
  cases:
    - name: a slow treatment is rolled back
      for: 40m
      faults: [{from: 15m, change: {latency_p95: +30%}}]
      expect:
        - {at: 15m, guardrail: latency_p95, verdict: [safe, watching]}
        - {acts: rollback, within: 5m, times: 1}
        - {endpoint: flag-service, attempts: 1, delivered: true}
    - name: identical buckets stay quiet
      for: 6h
      seeds: 500
      expect: [{acts: any, in_at_most: 1%}]
docs/testing-rules.md has all of it; `guardraild schema --kind test` is for editors.";

/// Test rule files: traffic in virtual time, what goes wrong, and what must come of it.
///
/// The daemon's own code plays each case, deliveries included; nothing is sent. Results go to standard output, progress to standard error.
/// Exit status: 0 all pass, 1 one fails or a file is bad, 2 usage.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct TestArgs {
    /// Test files, or directories with files named *_test.yaml.
    #[arg(value_name = "PATH", default_value = "rules")]
    pub paths: Vec<PathBuf>,
    /// Only cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Pictures of cases that pass, too.
    #[arg(short, long)]
    pub verbose: bool,
    /// Random seed of each case's first run; the same one gives the same results, on any number of cores.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// So many seeds instead of those that cases ask for.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub seeds: Option<u64>,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,
    /// Write the results as JUnit's XML, too.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// How results are shown.
    #[arg(long, value_enum, default_value_t = OutputFormat::Human)]
    pub output: OutputFormat,
    /// Run again whenever a test or what it reads changes; Ctrl-C ends it.
    #[arg(long)]
    pub watch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A line for each case, and pictures of what failed.
    Human,
    /// One JSON object per line.
    Json,
}

/// Between two looks at the files, while watching.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Returns the exit status.
pub fn run(args: &TestArgs) -> i32 {
    if let Some(missing) = args.paths.iter().find(|p| !p.exists()) {
        eprintln!("error: no such file or directory: {}", missing.display());
        return 2;
    }
    if !args.watch {
        return once(args).0;
    }
    loop {
        if io::stdout().is_terminal() {
            // Clears the screen, and goes to its top.
            print!("\x1b[2J\x1b[H");
        }
        let (_, reads) = once(args);
        eprintln!("waiting for a change; Ctrl-C ends it");
        let before = state(args, &reads);
        while state(args, &reads) == before {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// What would show that a file has changed, come or gone: one that was read, or stands beside a test, which may be read next time.
fn state(args: &TestArgs, reads: &[PathBuf]) -> Vec<(PathBuf, Option<(u64, SystemTime)>)> {
    let tests = rules::test_files(&args.paths);
    let folders: BTreeSet<&Path> = tests.iter().filter_map(|path| path.parent()).collect();
    let beside = folders.into_iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()));
    let yaml = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    let all: BTreeSet<PathBuf> = beside.filter(yaml).chain(reads.iter().cloned()).chain(tests.iter().cloned()).collect();
    let of = |path: PathBuf| {
        let meta = std::fs::metadata(&path).ok();
        let seen = meta.and_then(|m| Some((m.len(), m.modified().ok()?)));
        (path, seen)
    };
    all.into_iter().map(of).collect()
}

/// Runs all tests; returns the exit status and the files that were read.
fn once(args: &TestArgs) -> (i32, Vec<PathBuf>) {
    let paths = rules::test_files(&args.paths);
    if paths.is_empty() {
        eprintln!("error: no tests: files named *_test.yaml hold them");
        return (2, Vec::new());
    }
    let (mut files, mut bad, mut reads): (Vec<TestFile>, Vec<Bad>, Vec<PathBuf>) = (Vec::new(), Vec::new(), paths.clone());
    for path in &paths {
        match ruletest::load(path) {
            Ok(file) => {
                reads.extend(file.reads.iter().cloned());
                files.push(file);
            }
            Err(faults) => {
                faults.iter().for_each(|fault| eprintln!("{}", fault.human(check::color_stderr())));
                bad.push((path.display().to_string(), faults));
            }
        }
    }
    let results = play(args, &files);
    let Some(results) = results else { return (2, reads) };
    let failed = results.iter().any(|r| !r.passed());
    if args.output == OutputFormat::Human {
        println!("{}", ruletest::summary(&results, bad.len()));
    }
    if let Some(path) = &args.junit
        && let Err(e) = std::fs::write(path, ruletest::junit(&results, &bad))
    {
        eprintln!("error: cannot write {}: {e}", path.display());
        return (1, reads);
    }
    (i32::from(failed || !bad.is_empty()), reads)
}

fn play(args: &TestArgs, files: &[TestFile]) -> Option<Vec<CaseResult>> {
    let threads = args.jobs.or(std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let options = Options { threads, seed: args.seed, seeds: args.seeds, filter: args.filter.clone(), verbose: args.verbose };
    let jobs = ruletest::jobs(files, &options);
    if jobs == 0 && !files.is_empty() {
        eprintln!("error: no case is named so: {}", args.filter.as_deref().unwrap_or_default());
        return None;
    }
    // Hidden unless standard error is a terminal.
    let bar = ProgressBar::new(jobs);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} runs, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let names = files.iter().flat_map(|f| f.suites.iter().flat_map(|s| s.cases.iter().map(|c| c.name.chars().count())));
    let width = names.max().unwrap_or(0).min(60);
    let mut results: Vec<CaseResult> = Vec::new();
    let finished = |result: CaseResult| {
        bar.suspend(|| show(args, results.last(), &result, width));
        results.push(result);
    };
    ruletest::run(files, &options, &AtomicBool::new(false), || bar.inc(1), finished);
    bar.finish_and_clear();
    Some(results)
}

fn show(args: &TestArgs, before: Option<&CaseResult>, result: &CaseResult, width: usize) {
    let text = match args.output {
        OutputFormat::Json => ruletest::json(result),
        OutputFormat::Human => {
            let new = before.is_none_or(|b| (&b.file, &b.rule) != (&result.file, &result.rule));
            let head = if new { format!("{}: {}\n", result.file, result.rule) } else { String::new() };
            head + &ruletest::human(result, width, check::color(io::stdout().is_terminal()))
        }
    };
    // A closed pipe is no reason to fail.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}
