//! `guardraild simulate`: what a rule file would do, before anybody is exposed.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::check;
use crate::engine::plan::{FieldTable, Plan, Settings};
use crate::engine::time::Millis;
use crate::rules::quantity::{Quantity, number, per_day};
use crate::rules::{self, Planning};
use crate::tools::simulate::study::Options;
use crate::tools::simulate::sweep::{Axis, Grid};
use crate::tools::simulate::{self, Effect, Latency, LogNormal, Progress, Questions, Shape, Spec, Spread, Traffic};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  guardraild simulate --rules rules/new-checkout.yaml --days 1 --runs 100
      one day of the traffic that the rule file expects
  guardraild simulate --rules rules/new-checkout.yaml --days 1 --effect latency_p95=+20% --effect error_rate=+1pp
      how soon are these found?
  guardraild simulate --rules rules/new-checkout.yaml --traffic checkout.traffic.yaml --plot plan.svg --output json
      traffic as measured, a picture, and figures for machines
  guardraild simulate --rules rules/new-checkout.yaml --onset 6h --runs 0 --effect latency_p95=+50%
      a regression that begins after six healthy hours
  guardraild simulate --rules rules/new-checkout.yaml --days 0.1 --sweep latency_p95.margin=5%,10%,20% --effect latency_p95=+30%
      which margin?

A traffic description overrides what the rule file says and what is assumed; every key is optional but `traffic`:
  traffic: v1
  units: 120k/day
  requests: {per_unit: 6, distribution: pareto, tail: 1.5, max: 300, gap: 20s}    # or fixed, geometric
  latency: {distribution: lognormal, p50: 180ms, p95: 420ms, icc: 0.2}            # or bimodal, pareto
  errors: {rate: 1%}
  metrics: {basket: {mean: 45, cv: 1.2, zero: 70%, correlation: 0.6}}
  phases: [{for: 1h, weights: {control: 95%, treatment: 5%}}, {weights: {control: 50%, treatment: 50%}}]
docs/simulate.md has all of them.";

/// Play an experiment before it starts: false alarms, time and units to detect, smallest detectable effect, sample size.
///
/// Synthetic traffic goes through the daemon's own engine in virtual time, many times, on all cores. Tables go to standard output,
/// progress to standard error. Ctrl-C ends it with the runs that are done; a second one at once.
/// Exit status: 0 done, 1 the rule file or the traffic description is bad, 2 usage.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SimulateArgs {
    /// The rule file.
    #[arg(long, value_name = "FILE")]
    pub rules: PathBuf,
    /// A traffic description.
    #[arg(long, value_name = "FILE")]
    pub traffic: Option<PathBuf>,
    /// Healthy (A/A) runs; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(..=10_000_000))]
    pub runs: u64,
    /// Runs of each effect; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(..=10_000_000))]
    pub effect_runs: u64,
    /// A change in the affected bucket, such as latency_p95=+20% (relative), latency_p95=+35ms, error_rate=+1pp, orders=-2%,
    /// timeouts=+1%; may be repeated. Without it: 1.5, 2 and 4 times each margin.
    #[arg(long = "effect", value_name = "METRIC=CHANGE")]
    pub effects: Vec<String>,
    /// The affected bucket [default: the first that is not the baseline]
    #[arg(long, value_name = "NAME")]
    pub bucket: Option<String>,
    /// Only units with this value of an attribute suffer the effects, such as region=eu; the traffic description says how many have it
    #[arg(long, value_name = "NAME=VALUE")]
    pub segment: Option<String>,
    /// When effects begin, counted from the start: 30m, 6h.
    #[arg(long, value_name = "SPAN", value_parser = super::span)]
    pub onset: Option<i64>,
    /// Length of a run in days [default: from the rule's start to its end, at most 14; else 7]
    #[arg(long, value_name = "DAYS")]
    pub days: Option<f64>,
    /// Another false-alarm budget than the rule's.
    #[arg(long)]
    pub alpha: Option<f64>,
    /// Try values of a key side by side: margin, limit or window (of one guardrail: latency_p95.margin), alpha, min_units, or traffic (a
    /// share of the units). Repeated, every combination; all see the same traffic, and one is recommended.
    #[arg(long = "sweep", value_name = "KEY=VALUE,…")]
    pub sweeps: Vec<String>,
    /// Write the sweep as a page, too.
    #[arg(long, value_name = "FILE.html", requires = "sweeps")]
    pub report: Option<PathBuf>,
    /// Search for the smallest effect that this share of runs detects, such as 80%; `off` saves the time (up to five times the runs
    /// of an effect for each metric) [default: the rule's power, else 80%]
    #[arg(long, value_name = "SHARE")]
    pub smallest: Option<String>,
    /// Random seed: the same one gives the same tables, on any number of cores.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Units, such as 120k/day.
    #[arg(long, value_name = "FREQUENCY")]
    pub units: Option<String>,
    /// Mean number of requests of a unit.
    #[arg(long, value_name = "N")]
    pub requests: Option<f64>,
    /// Latency as MEDIAN,P95 in ms: 180,420 (log-normal).
    #[arg(long, value_name = "P50,P95")]
    pub latency: Option<String>,
    /// Share of requests that fail, such as 1%.
    #[arg(long, value_name = "SHARE")]
    pub error_rate: Option<String>,
    /// Simulate only this share of the units, such as 0.1, to get done sooner.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub scale: f64,
    /// Length of a pane; longer ones are faster and look less often.
    #[arg(long, value_name = "SPAN", default_value = "1s", value_parser = super::span)]
    pub pane: i64,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Write a picture, too; of a sweep, --report does.
    #[arg(long, value_name = "FILE.svg", conflicts_with = "sweeps")]
    pub plot: Option<PathBuf>,
    /// No estimate and no progress on standard error.
    #[arg(short, long)]
    pub quiet: bool,
    /// How the result is shown.
    #[arg(long, value_enum, default_value_t = OutputFormat::Human)]
    pub output: OutputFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Tables.
    Human,
    /// One JSON object.
    Json,
}

/// Why nothing was simulated: what to print, and the exit status.
struct Refusal(String, i32);

/// Returns the exit status.
pub fn run(args: &SimulateArgs) -> i32 {
    match prepare(args).and_then(|prepared| play(args, &prepared)) {
        Ok(()) => 0,
        Err(Refusal(message, status)) => {
            eprintln!("{}", message.trim_end());
            status
        }
    }
}

struct Prepared {
    spec: Spec,
    grid: Option<Grid>,
    planning: Planning,
    questions: Questions,
    options: Options,
}

impl Prepared {
    /// What looks at a run at once.
    fn specs(&self) -> Vec<&Spec> {
        self.grid.as_ref().map_or_else(|| vec![&self.spec], Grid::widest)
    }
}

fn prepare(args: &SimulateArgs) -> Result<Prepared, Refusal> {
    let text = std::fs::read_to_string(&args.rules).map_err(|e| usage(format!("cannot read {}: {e}", args.rules.display())))?;
    let mut fields = FieldTable::default();
    let parsed = rules::parse_str(&args.rules.display().to_string(), &text, &mut fields, None);
    let shown: String = parsed.diagnostics.iter().map(|d| d.human(check::color_stderr())).collect();
    let Some(rule) = parsed.rule else { return Err(Refusal(shown, 1)) };
    eprint!("{shown}");
    let mut plan = Arc::unwrap_or_clone(rule.plan);
    if let Some(alpha) = args.alpha {
        plan.alpha = Some(alpha).filter(|a| *a > 0.0 && *a < 1.0).ok_or_else(|| usage("--alpha must lie between 0 and 1".into()))?;
    }
    let planning = Planning::of(&text);
    let mut traffic = Traffic::of(&plan, &planning);
    if let Some(path) = &args.traffic {
        let text = std::fs::read_to_string(path).map_err(|e| usage(format!("cannot read {}: {e}", path.display())))?;
        traffic = simulate::read(&path.display().to_string(), &text, &plan, &traffic)
            .map_err(|faults| Refusal(faults.iter().map(|d| d.human(check::color_stderr())).collect(), 1))?;
    }
    overlay(args, &mut traffic)?;
    let mut questions = questions(args, &plan, &planning, &traffic)?;
    traffic.units_per_day *= args.scale;
    let bucket = match &args.bucket {
        None => (0..plan.buckets.len()).find(|b| *b != plan.baseline()),
        Some(name) => plan.bucket(name).filter(|b| *b != plan.baseline()),
    };
    let bucket = bucket.ok_or_else(|| usage("--bucket names no bucket that is compared with the baseline".into()))?;
    let length = length(args, &plan, &planning)?;
    let onset = args.onset.unwrap_or(0);
    if onset >= length {
        return Err(usage("--onset lies beyond the end of the runs".into()));
    }
    let threads = args.threads.or(std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let settings = Settings { pane: args.pane, ..Settings::default() };
    let axes: Result<Vec<Axis>, String> = args.sweeps.iter().map(|text| Axis::parse(text, &plan)).collect();
    let axes = axes.map_err(|message| usage(format!("--sweep: {message}")))?;
    let grid = (!axes.is_empty()).then(|| Grid::new(axes, &plan, (&fields, &settings), &traffic, length)).transpose();
    let grid = grid.map_err(|message| usage(format!("--sweep: {message}")))?;
    if let Some(grid) = grid.as_ref().filter(|_| args.effects.is_empty()) {
        questions.effects = grid.effects(&plan, &questions.effects);
    }
    let spec = Spec::new(plan, fields, settings, traffic, length).map_err(|e| usage(e.to_string()))?;
    let segment = args.segment.as_deref().map(|text| spec.segment(text).ok_or_else(|| no_segment(&spec, text))).transpose()?;
    Ok(Prepared { spec, grid, planning, questions, options: Options { seed: args.seed, threads, bucket, segment, onset } })
}

fn no_segment(spec: &Spec, text: &str) -> Refusal {
    let known =
        |(name, values): &(String, Vec<(String, f64)>)| values.iter().map(|(value, _)| format!("{name}={value}")).collect::<Vec<_>>();
    let known: Vec<String> = spec.traffic.segments.iter().flat_map(known).collect();
    let have = if known.is_empty() { "the traffic description has none".to_owned() } else { format!("there are {}", known.join(", ")) };
    usage(format!("--segment: no {text}; {have}"))
}

fn usage(message: String) -> Refusal {
    Refusal(format!("error: {message}"), 2)
}

/// Flags win over the description.
fn overlay(args: &SimulateArgs, traffic: &mut Traffic) -> Result<(), Refusal> {
    let mut given = Vec::new();
    if let Some(text) = &args.units {
        let units = per_day(text).filter(|u| (1.0..=1e11).contains(u));
        traffic.units_per_day = units.ok_or_else(|| usage("--units: write a frequency such as 120k/day".into()))?;
        given.push("units");
    }
    if let Some(requests) = args.requests {
        if !(0.0..=1e5).contains(&requests) || requests.is_nan() {
            return Err(usage("--requests must lie between 0 and 100,000".into()));
        }
        traffic.requests.per_unit = requests;
        if requests < 1.0 {
            traffic.requests.distribution = Spread::Fixed;
        }
        given.push("requests");
    }
    if let Some(text) = &args.latency {
        let ms = |text: &str| match Quantity::parse(text.trim()) {
            Some(Quantity::Span(ms) | Quantity::Number(ms)) if ms > 0.0 => Some(ms),
            _ => None,
        };
        let pair = text.split_once(',').and_then(|(a, b)| Some((ms(a)?, ms(b)?))).filter(|(p50, p95)| p50 < p95);
        let (p50, p95) = pair.ok_or_else(|| usage("--latency: write median and 95th percentile in ms, such as 180,420".into()))?;
        traffic.latency = Latency { shape: Shape::LogNormal(LogNormal { p50, p95 }), icc: traffic.latency.icc };
        given.push("latency");
    }
    if let Some(text) = &args.error_rate {
        traffic.errors = rules::quantity::percent(text).ok_or_else(|| usage("--error-rate: write a share such as 1%".into()))?;
        given.push("errors");
    }
    traffic.assumed.retain(|key| !given.contains(&key.as_str()));
    Ok(())
}

fn questions(args: &SimulateArgs, plan: &Plan, planning: &Planning, traffic: &Traffic) -> Result<Questions, Refusal> {
    let asked: Result<Vec<Effect>, String> = args.effects.iter().map(|text| Effect::parse(text, plan)).collect();
    let asked = asked.map_err(|message| usage(format!("--effect: {message}")))?;
    if let Some(impossible) = asked.iter().find(|e| !e.possible(traffic)) {
        return Err(usage(format!("--effect: {impossible} would leave the range of a share")));
    }
    let effects = if asked.is_empty() { Effect::defaults(plan, planning, traffic) } else { asked };
    let scale = Some(args.scale).filter(|s| *s > 0.0 && *s <= 1.0).ok_or_else(|| usage("--scale must lie in 0 (exclusive) to 1".into()))?;
    let share = |text: &String| rules::quantity::percent(text).or_else(|| number(text)).filter(|p| *p > 0.0 && *p < 1.0);
    let power = match &args.smallest {
        Some(text) if text != "off" => share(text).ok_or_else(|| usage("--smallest: write a share of runs such as 80%, or off".into()))?,
        _ => planning.power.filter(|p| *p > 0.0 && *p < 1.0).unwrap_or(0.8),
    };
    let smallest = args.smallest.as_deref() != Some("off");
    Ok(Questions { runs: args.runs, effect_runs: args.effect_runs, effects, smallest, power, scale })
}

/// Length of a run: within the experiment's life, where it has an end.
fn length(args: &SimulateArgs, plan: &Plan, planning: &Planning) -> Result<Millis, Refusal> {
    const DAY: f64 = 86_400_000.0;
    let life = planning.length.filter(|l| *l > 0);
    let length = match args.days {
        Some(days) if days > 0.0 && days <= 400.0 => (days * DAY) as Millis,
        Some(_) => return Err(usage("--days must lie between 0 and 400".into())),
        None => life.unwrap_or(7 * DAY as Millis).min(14 * DAY as Millis),
    };
    match life.filter(|life| plan.ends.is_some() && length > *life) {
        Some(life) => Err(usage(format!("--days: the rule file ends the experiment after {}", simulate::duration(life as f64)))),
        None => Ok(length),
    }
}

fn play(args: &SimulateArgs, prepared: &Prepared) -> Result<(), Refusal> {
    let cancelled = super::interrupted();
    let Prepared { spec, grid, planning, questions, options } = prepared;
    let runs = grid.as_ref().map_or_else(|| questions.runs + questions.rounds() * questions.effect_runs, |grid| grid.runs(questions));
    let mut bar = Meter::new(runs, args.quiet);
    if !args.quiet {
        bar.estimate(prepared);
    }
    let tell = |progress: &Progress<'_>| bar.tell(progress);
    let json = args.output == OutputFormat::Json;
    // A report holds no map with other keys than texts; numbers that JSON cannot write become null.
    let (text, picture) = match grid {
        Some(grid) => {
            let swept = grid.play(questions, options, &cancelled, tell);
            let text = if json { serde_json::to_string(&swept).unwrap_or_default() + "\n" } else { swept.human() };
            (text, args.report.as_ref().map(|path| (path, swept.page())))
        }
        None => {
            let report = simulate::simulate(spec, planning, questions, options, &cancelled, tell);
            let text = if json { serde_json::to_string(&report).unwrap_or_default() + "\n" } else { report.human() };
            (text, args.plot.as_ref().map(|path| (path, simulate::svg(&report))))
        }
    };
    bar.end();
    if let Some((path, picture)) = picture {
        std::fs::write(path, picture).map_err(|e| Refusal(format!("error: cannot write {}: {e}", path.display()), 1))?;
        eprintln!("picture: {}", path.display());
    }
    // A closed pipe is no reason to fail.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    Ok(())
}

/// What is done so far: a bar on a terminal, else a line every ten seconds.
struct Meter {
    bar: ProgressBar,
    plain: bool,
    begun: Instant,
    said: Instant,
    /// Runs done, and all that are planned.
    done: u64,
    total: u64,
}

impl Meter {
    fn new(total: u64, quiet: bool) -> Meter {
        // Hidden unless standard error is a terminal.
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(total) };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} runs, {eta} left: {msg}");
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let now = Instant::now();
        Meter { bar, plain: !quiet && !io::stderr().is_terminal(), begun: now, said: now, done: 0, total }
    }

    /// Says how long it will take, if that is long.
    fn estimate(&self, prepared: &Prepared) {
        let threads = prepared.options.threads as u32;
        let each = simulate::pace(&prepared.specs(), Duration::from_millis(500));
        let whole = each.mul_f64(self.total as f64) / threads;
        if whole > Duration::from_secs(60) {
            let (whole, each) = (simulate::duration(whole.as_millis() as f64), simulate::duration(each.as_millis() as f64));
            eprintln!("{} runs of about {each}, up to {whole} on {threads} threads; Ctrl-C shows what is done by then.", self.total);
            eprintln!("Fewer --runs, --days, --scale 0.1 (a tenth of the units) or --pane 10s (fewer looks) make it shorter.");
        }
    }

    fn tell(&mut self, progress: &Progress<'_>) {
        self.done += 1;
        self.total = self.total.max(self.done);
        self.bar.set_length(self.total);
        self.bar.set_position(self.done);
        if progress.done == 1 {
            self.bar.set_message(progress.stage.to_owned());
        }
        let elapsed = self.begun.elapsed();
        let left = elapsed.mul_f64((self.total - self.done) as f64 / self.done as f64);
        if self.plain && self.said.elapsed() > Duration::from_secs(10) {
            self.said = Instant::now();
            let left = simulate::duration(left.as_millis() as f64);
            eprintln!(
                "{}: {} of {} runs, {} of {} in all, about {left} left",
                progress.stage, progress.done, progress.total, self.done, self.total
            );
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
