//! `calibrate`: false alarms and delays of the real engine on the traffic that its tests are specified for.

use crate::{bare, ratio, table};
use anyhow::Context;
use guardraild::engine::judge::Budget;
use guardraild::engine::plan::{FieldTable, Settings};
use guardraild::rules::{Planning, parse_str};
use guardraild::tools::simulate::study::{Detection, Healthy, Options, detection, healthy};
use guardraild::tools::simulate::{Effect, Spec, Traffic, count, duration, exact, read};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// A run of `--smoke` fails where clean traffic alarms more often than a rate of alpha would with this chance.
const UNLUCKY: f64 = 1e-4;

#[derive(clap::Args)]
pub struct Args {
    /// File with the cases
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/calibration.yaml"))]
    file: PathBuf,
    /// Only cases whose name contains this; may be repeated
    #[arg(long)]
    case: Vec<String>,
    /// Clean runs of each case, instead of its own number
    #[arg(long)]
    runs: Option<u64>,
    /// Runs of each effect, instead of its own number
    #[arg(long)]
    effect_runs: Option<u64>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A small version with a verdict: exit 1 if there are more false alarms than chance allows (less than 1 in 10,000), or if a
    /// standard regression is missed in every run
    #[arg(long)]
    smoke: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    cases: Vec<Case>,
}

/// One rule file on one kind of traffic.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default = "five_percent")]
    alpha: f64,
    /// Share of the treatment, in percent; the rest is control's.
    #[serde(default)]
    treatment: f64,
    /// The rule's `buckets`, where there is not just one treatment.
    #[serde(default)]
    buckets: String,
    /// More of the rule's `analysis`, such as `segments: {by: [region], act: true}`.
    #[serde(default)]
    analysis: String,
    /// What the rule file says besides `overview`, `buckets`, `analysis` and `actions`.
    rule: String,
    /// A traffic description without its first line.
    traffic: String,
    /// Length of a clean run.
    seconds: i64,
    /// Clean runs; 0 for none.
    runs: u64,
    #[serde(default)]
    smoke: u64,
    #[serde(default)]
    detect: Vec<Detect>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Detect {
    effect: String,
    /// Only units with this value of an attribute suffer it: `region=eu`.
    segment: Option<String>,
    /// When it begins, s.
    #[serde(default)]
    onset: i64,
    /// How long the run goes on after that, s.
    seconds: i64,
    runs: u64,
    #[serde(default)]
    smoke: u64,
    /// What the specification of the test measured with its reference implementation.
    reference: Option<Reference>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    median: f64,
    p90: Option<f64>,
    of: Of,
    /// What its log e-value had to reach, where that was not ln(1/alpha).
    threshold: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Of {
    /// All units exposed, of all buckets.
    Units,
    Seconds,
}

fn five_percent() -> f64 {
    0.05
}

impl Cases {
    fn read(path: &Path) -> anyhow::Result<Cases> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("{} holds no calibration cases", path.display()))
    }
}

impl Case {
    fn rule_text(&self) -> String {
        let (treatment, control) = (self.treatment, 100.0 - self.treatment);
        let buckets = if self.buckets.is_empty() {
            format!("{{control: {{baseline: true, weight: {control}%}}, treatment: {{weight: {treatment}%}}}}")
        } else {
            self.buckets.clone()
        };
        format!(
            "guardrail: v1\noverview: {{experiment: calibration, owner: load-tests}}\nbuckets: {buckets}\nanalysis: {{alpha: {}, min_units: 1, {}}}\n\
             actions: {{mode: observe}}\n{}",
            self.alpha, self.analysis, self.rule
        )
    }

    fn spec(&self, seconds: i64) -> anyhow::Result<Spec> {
        let rule = self.rule_text();
        let mut fields = FieldTable::default();
        let parsed = parse_str(&self.name, &rule, &mut fields, None);
        let shown = |faults: &[guardraild::rules::Diagnostic]| faults.iter().map(|d| d.human(false)).collect::<String>();
        let plan = parsed.rule.with_context(|| shown(&parsed.diagnostics))?.plan;
        let base = Traffic::of(&plan, &Planning::of(&rule));
        let traffic = format!("traffic: v1\n{}", self.traffic);
        let traffic = read(&self.name, &traffic, &plan, &base).map_err(|faults| anyhow::anyhow!(shown(&faults)))?;
        Ok(Spec::new(Arc::unwrap_or_clone(plan), fields, Settings::default(), traffic, seconds * 1_000)?)
    }

    fn healthy(&self, args: &Args) -> anyhow::Result<Option<Healthy>> {
        let runs = args.runs.unwrap_or(if args.smoke { self.smoke } else { self.runs });
        if runs == 0 {
            return Ok(None);
        }
        let spec = self.spec(self.seconds)?;
        Ok(healthy(&[&spec], &options(args.seed, 0, &spec), runs, &AtomicBool::new(false), |_| ()).pop())
    }

    fn detection(&self, detect: &Detect, args: &Args) -> anyhow::Result<Option<(Detection, Option<Bare>)>> {
        let runs = args.effect_runs.unwrap_or(if args.smoke { detect.smoke } else { detect.runs });
        if runs == 0 {
            return Ok(None);
        }
        let spec = self.spec(detect.onset + detect.seconds)?;
        let effect = Effect::parse(&detect.effect, &spec.plan).map_err(anyhow::Error::msg)?;
        let mut options = options(args.seed, detect.onset, &spec);
        if let Some(segment) = &detect.segment {
            options.segment = Some(spec.segment(segment).with_context(|| format!("the traffic has no {segment}"))?);
        }
        let found = detection(&[&spec], &options, &effect, runs, &AtomicBool::new(false), |_| ()).pop();
        let bare = detect.reference.filter(|_| !args.smoke).and_then(|reference| {
            let ours = self.needed(&spec, detect.onset);
            let [reference, at_ours] = bare::detection(&spec, &options, &effect, runs, [reference.needed(self.alpha), ours])?;
            Some(Bare { reference, at_ours, ours })
        });
        Ok(found.map(|found| (found, bare)))
    }

    /// Log e-value at which the engine acts: of the test from the beginning, or of the one that starts at `onset`, s.
    fn needed(&self, spec: &Spec, onset: i64) -> f64 {
        let (budget, statistic) = (Budget::new(&spec.plan, spec.settings.pane), spec.plan.guardrails[0].statistic);
        let start = (onset * 1_000 / spec.settings.pane / budget.slot) as u64 + 1;
        let level =
            if onset == 0 { budget.whole_life(self.alpha, statistic, 0) } else { budget.late(self.alpha) * Budget::start(start, 1) };
        -level.ln()
    }
}

/// The specification's own test on the same runs.
struct Bare {
    /// At the evidence of the reference.
    reference: bare::Found,
    /// At the evidence at which the engine acts, which is `ours`.
    at_ours: bare::Found,
    ours: f64,
}

impl Reference {
    /// Log e-value at which it alarmed.
    fn needed(&self, alpha: f64) -> f64 {
        self.threshold.unwrap_or(-alpha.ln())
    }
}

fn options(seed: u64, onset_s: i64, spec: &Spec) -> Options {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bucket = (0..spec.plan.buckets.len()).find(|b| *b != spec.plan.baseline()).unwrap_or(0);
    Options { seed, threads, bucket, segment: None, onset: onset_s * 1_000 }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let all = Cases::read(&args.file)?.cases;
    let chosen: Vec<&Case> = all.iter().filter(|c| args.case.is_empty() || args.case.iter().any(|part| c.name.contains(part))).collect();
    let ratio = args.case.is_empty() || args.case.iter().any(|part| "sample ratio".contains(part.as_str()));
    anyhow::ensure!(ratio || !chosen.is_empty(), "no case is called so");
    let (mut alarms, mut delays, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for case in chosen {
        let begun = Instant::now();
        if let Some(result) = case.healthy(args).with_context(|| case.name.clone())? {
            faults.extend(too_many(&case.name, case.alpha, result.family.hits, result.runs));
            alarms.push(alarm_row(case, &result));
        }
        for detect in &case.detect {
            if let Some((result, bare)) = case.detection(detect, args).with_context(|| case.name.clone())? {
                if result.detected.hits == 0 {
                    faults.push(format!("{}: {} was not detected in any of {} runs", case.name, result.text, result.detected.runs));
                }
                delays.push(delay_row(case, detect, &result, bare.as_ref()));
            }
        }
        eprintln!("{}: {}", case.name, duration(begun.elapsed().as_millis() as f64));
    }
    let head = ["case", "alpha", "units a run", "clean runs", "alarmed", "%", "95% interval", "at most"];
    table::print(&format!("False alarms under continuous looking, seed {}", args.seed), &head, &alarms);
    println!(
        "\n`alarmed`: any guardrail, at any time. `at most`: more would happen to a rate of alpha in fewer than 1 of 10,000 such tables."
    );
    let head = [
        "case",
        "alpha",
        "effect",
        "detected",
        "median (95% interval)",
        "p90",
        "reference median / p90",
        "at log e",
        "ours / reference",
        "its test here",
        "at our log e",
        "no slower",
    ];
    table::print("Detection delay", &head, &delays);
    println!(
        "\n`reference`: the specification's own simulation of the bare test, one guardrail with the whole alpha. `at log e`: the evidence at which it \
         alarmed: ln(1/alpha), or a mean time to a false alarm of 30 days. `its test here`: the median of that test by itself on the same runs and \
         looks; `at our log e`: when it is held to the evidence that the engine asks for. `no slower`: one of the reference's median (`yes`) and that of \
         its test at our evidence (`at our log e`) is not below the interval of ours."
    );
    if ratio {
        let runs = if args.smoke { ratio::Runs { clean: 50, skewed: 5 } } else { ratio::Runs { clean: 2_000, skewed: 200 } };
        faults.extend(ratio::run(runs, args.seed, UNLUCKY));
    }
    if args.smoke && !faults.is_empty() {
        anyhow::bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// What is wrong with so many alarms, if anything.
fn too_many(name: &str, alpha: f64, hits: u64, runs: u64) -> Option<String> {
    let most = exact::limit(runs, alpha, UNLUCKY);
    (hits > most).then(|| format!("{name}: {hits} of {runs} clean runs alarmed; at most {most} may"))
}

fn alarm_row(case: &Case, result: &Healthy) -> Vec<String> {
    let percent = |share: f64| format!("{:.2}", share * 100.0);
    let [low, high] = result.family.interval;
    vec![
        case.name.clone(),
        case.alpha.to_string(),
        count(result.units_per_run),
        result.runs.to_string(),
        result.family.hits.to_string(),
        percent(result.family.share),
        format!("{} .. {}", percent(low), percent(high)),
        exact::limit(result.runs, case.alpha, UNLUCKY).to_string(),
    ]
}

fn delay_row(case: &Case, detect: &Detect, result: &Detection, bare: Option<&Bare>) -> Vec<String> {
    let of = detect.reference.map_or(Of::Seconds, |r| r.of);
    let delay = if of == Of::Units { &result.units } else { &result.delay_ms };
    let show = |value: Option<f64>| match (value, of) {
        (None, _) => "-".to_owned(),
        (Some(n), Of::Units) => count(n),
        (Some(ms), Of::Seconds) => duration(ms),
    };
    let unit = if of == Of::Units { 1.0 } else { 1_000.0 };
    let [low, high] = delay.median_interval;
    let reference =
        detect.reference.map_or_else(String::new, |r| format!("{} / {}", show(Some(r.median * unit)), show(r.p90.map(|p| p * unit))));
    let threshold = detect.reference.map_or_else(String::new, |r| format!("{:.2}", r.needed(case.alpha)));
    let of_bare = |found: &bare::Found| if of == Of::Units { found.units.median } else { found.delay_ms.median };
    let here = bare.map_or_else(String::new, |b| show(of_bare(&b.reference)));
    let at_ours = bare.map_or_else(String::new, |b| format!("{} ({:.2})", show(of_bare(&b.at_ours)), b.ours));
    let within = |median: Option<f64>| low.zip(median).is_some_and(|(low, median)| low <= median);
    let no_slower = detect.reference.map_or("", |r| match () {
        () if within(Some(r.median * unit)) => "yes",
        () if within(bare.and_then(|b| of_bare(&b.at_ours))) => "at our log e",
        () => "no",
    });
    let ratio = detect.reference.zip(delay.median).map_or_else(String::new, |(r, median)| format!("{:.2}", median / (r.median * unit)));
    let onset = if detect.onset > 0 { format!(", after {} clean", duration(detect.onset as f64 * 1e3)) } else { String::new() };
    vec![
        case.name.clone(),
        case.alpha.to_string(),
        format!("{}{onset}", result.text),
        format!("{} of {}", result.detected.hits, result.detected.runs),
        format!("{} ({} .. {})", show(delay.median), show(low), show(high)),
        show(delay.p90),
        reference,
        threshold,
        ratio,
        here,
        at_ours,
        no_slower.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_fails_on_what_chance_does_not_do() {
        assert_eq!(too_many("case", 0.05, 19, 150), None);
        assert!(too_many("case", 0.05, 20, 150).is_some_and(|fault| fault.contains("at most 19")));
    }

    #[test]
    fn every_case_can_be_played() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/calibration.yaml");
        let cases = Cases::read(&path).unwrap().cases;
        assert!(cases.iter().any(|c| c.smoke > 0) && cases.iter().flat_map(|c| &c.detect).any(|d| d.smoke > 0));
        for case in &cases {
            let spec = case.spec(case.seconds.max(1)).unwrap_or_else(|e| panic!("{}: {e:#}", case.name));
            for detect in &case.detect {
                let effect = Effect::parse(&detect.effect, &spec.plan).unwrap_or_else(|e| panic!("{}: {e}", case.name));
                assert!(effect.possible(&spec.traffic), "{}: {effect}", case.name);
                assert!(detect.segment.as_ref().is_none_or(|s| spec.segment(s).is_some()), "{}: {:?}", case.name, detect.segment);
            }
        }
    }
}
