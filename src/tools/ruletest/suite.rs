//! All cases of all files, each as often as it asks for, on all cores.

use super::case::{Case, TestFile, first_fault};
use super::expect::{Is, Proof, Share, bounds, show};
use super::judge::{Failure, brief, judge};
use super::picture;
use super::play::{Seen, Stage, Way};
use crate::engine::time::Millis;
use crate::rules::Diagnostic;
use crate::tools::simulate::spread;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Options {
    pub threads: usize,
    /// Of a case's first run; the others follow.
    pub seed: u64,
    /// Instead of the number that a case asks for.
    pub seeds: Option<u64>,
    /// Part of the names of the cases that are played.
    pub filter: Option<String>,
    /// Pictures of cases that pass, too.
    pub verbose: bool,
}

impl Options {
    fn plays(&self, case: &Case) -> bool {
        self.filter.as_ref().is_none_or(|part| case.name.contains(part.as_str()))
    }

    fn seeds(&self, case: &Case) -> u64 {
        // Other seeds change nothing of a recording.
        if case.synthetic.is_some() { self.seeds.unwrap_or(case.seeds) } else { 1 }
    }
}

/// What a case came to.
#[derive(Debug)]
pub struct CaseResult {
    /// The test file.
    pub file: String,
    pub rule: String,
    pub name: String,
    /// Runs, and how long each was played.
    pub seeds: u64,
    pub length: Millis,
    /// Time of all its runs, on whatever threads.
    pub spent: Duration,
    /// What was done, in a few words.
    pub said: String,
    pub shortfalls: Vec<Shortfall>,
    /// Of the first run: what happened.
    pub picture: Option<String>,
}

/// Why a case fails.
#[derive(Debug)]
pub struct Shortfall {
    /// Points into the test file.
    pub fault: Diagnostic,
    /// The run that shows it, drawn.
    pub picture: Option<String>,
}

impl CaseResult {
    pub fn passed(&self) -> bool {
        self.shortfalls.is_empty()
    }
}

/// One run, in short.
struct Heard {
    /// For each expectation whether it holds; of a share, whether this run is among its hits.
    held: Vec<Result<(), Failure>>,
    length: Millis,
    said: String,
    spent: Duration,
}

/// What a case's runs have said so far.
#[derive(Default)]
struct Tally {
    hits: Vec<u64>,
    /// Of each expectation: the first run in which it did not hold, and how many there are.
    failed: Vec<Option<(u64, Failure)>>,
    failures: Vec<u64>,
    trouble: Option<(u64, String)>,
    length: Millis,
    /// Of the first run.
    said: String,
    spent: Duration,
    done: u64,
}

/// A case, and where it belongs.
struct Entry<'f> {
    file: &'f TestFile,
    case: &'f Case,
    stage: Stage<'f>,
    seeds: u64,
}

/// How many runs there are to be.
pub fn jobs(files: &[TestFile], options: &Options) -> u64 {
    entries(files, options).iter().map(|e| e.seeds).sum()
}

fn entries<'f>(files: &'f [TestFile], options: &Options) -> Vec<Entry<'f>> {
    let suites = files.iter().flat_map(|file| file.suites.iter().map(move |suite| (file, suite)));
    let cases = suites.flat_map(|(file, suite)| suite.cases.iter().map(move |case| (file, suite, case)));
    let entry = |(file, suite, case): (&'f TestFile, &'f super::case::Suite, &'f Case)| Entry {
        file,
        case,
        stage: Stage::new(case, &suite.rule, &suite.fields),
        seeds: options.seeds(case),
    };
    cases.filter(|(_, _, case)| options.plays(case)).map(entry).collect()
}

/// Plays the cases. `finished` gets each result when it is known, in the order of the files; `progress` is called after each run. Once
/// `cancelled` is set, what has not been finished is left out.
pub fn run(
    files: &[TestFile],
    options: &Options,
    cancelled: &AtomicBool,
    mut progress: impl FnMut(),
    mut finished: impl FnMut(CaseResult),
) {
    let entries = entries(files, options);
    let all: Vec<(usize, u64)> = entries.iter().enumerate().flat_map(|(i, e)| (0..e.seeds).map(move |n| (i, n))).collect();
    let mut tallies: Vec<Tally> = entries.iter().map(|e| Tally::new(e.case)).collect();
    let mut next = 0;
    let work = |job: usize| {
        let (entry, n) = all[job];
        hear(&entries[entry], options.seed.wrapping_add(n), n == 0, cancelled).transpose()
    };
    spread(all.len(), options.threads, work, |job, heard| {
        let (entry, n) = all[job];
        tallies[entry].take(options.seed.wrapping_add(n), n == 0, &entries[entry], heard);
        progress();
        while let Some(tally) = tallies.get(next).filter(|tally| tally.done == entries[next].seeds) {
            finished(tally.conclude(&entries[next], options, cancelled));
            next += 1;
        }
    });
}

/// Plays one run. The first of several is also played the long way, with records written and read, and must decide the same.
fn hear(entry: &Entry<'_>, seed: u64, first: bool, cancelled: &AtomicBool) -> Result<Option<Heard>, String> {
    let begun = Instant::now();
    let several = entry.seeds > 1;
    let way = Way { seed, whole: !several, watched: false, hurried: several };
    let Some(seen) = entry.stage.play(way, cancelled)? else { return Ok(None) };
    if several && first && entry.case.is_plain() {
        let Some(long) = entry.stage.play(Way { whole: true, ..way }, cancelled)? else { return Ok(None) };
        if long.decisions != seen.decisions {
            return Err("records that were written and read again led to other decisions: please report this".to_owned());
        }
    }
    let held = entry.case.expect.iter().map(|e| judge(e, &seen)).collect();
    Ok(Some(Heard { held, length: seen.length, said: said(entry.case, &seen), spent: begun.elapsed() }))
}

/// What was done in a run, in a few words.
fn said(case: &Case, seen: &Seen) -> String {
    let done: Vec<String> = seen
        .decisions
        .iter()
        .filter(|d| d.covered_by.is_none())
        .map(|d| match first_fault(&case.faults).map(|from| d.decided_at - seen.start - from).filter(|after| *after >= 0) {
            Some(after) => format!(
                "{} {} after the fault",
                brief(d, seen).rsplit_once(" at ").map_or(d.action.name().to_owned(), |(b, _)| b.to_owned()),
                show(after)
            ),
            None => brief(d, seen),
        })
        .collect();
    match done.as_slice() {
        [] => "nothing is done".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first}, and {} more", rest.len()),
    }
}

impl Tally {
    fn new(case: &Case) -> Tally {
        let n = case.expect.len();
        Tally { hits: vec![0; n], failed: vec![None; n], failures: vec![0; n], ..Tally::default() }
    }

    fn take(&mut self, seed: u64, first: bool, entry: &Entry<'_>, heard: Result<Heard, String>) {
        self.done += 1;
        let heard = match heard {
            Ok(heard) => heard,
            Err(trouble) => {
                if self.trouble.as_ref().is_none_or(|(s, _)| seed < *s) {
                    self.trouble = Some((seed, trouble));
                }
                return;
            }
        };
        self.spent += heard.spent;
        self.length = self.length.max(heard.length);
        if first {
            self.said = heard.said;
        }
        for (i, held) in heard.held.into_iter().enumerate() {
            let Err(failure) = held else {
                self.hits[i] += 1;
                continue;
            };
            self.failures[i] += 1;
            // Of runs that come in any order, the one with the smallest seed is shown.
            if self.failed[i].as_ref().is_none_or(|(s, _)| seed < *s) && !is_share(&entry.case.expect[i].is) {
                self.failed[i] = Some((seed, failure));
            }
        }
    }

    fn conclude(&self, entry: &Entry<'_>, options: &Options, cancelled: &AtomicBool) -> CaseResult {
        let case = entry.case;
        let mut result = CaseResult {
            file: entry.file.name.clone(),
            rule: entry.stage.rule.file.display().to_string(),
            name: case.name.clone(),
            seeds: entry.seeds,
            length: self.length,
            spent: self.spent,
            said: self.said.clone(),
            shortfalls: Vec::new(),
            picture: None,
        };
        let again = |seed: u64| {
            let name = case.name.replace('\'', "'\\''");
            let seeds = if entry.seeds > 1 { format!(" --seed {seed} --seeds 1") } else { String::new() };
            format!("for the whole story: guardraild test {} --filter '{name}'{seeds} -v", entry.file.name)
        };
        if let Some((seed, trouble)) = &self.trouble {
            let fault = Diagnostic::at(&entry.file.name, &entry.file.text, case.span.clone(), "GR3101", "the case could not be played");
            result.shortfalls.push(Shortfall { fault: fault.with_label(trouble).with_help(again(*seed)), picture: None });
            return result;
        }
        let mut shares = Vec::new();
        for (i, expectation) in case.expect.iter().enumerate() {
            let at = |message: String| {
                Diagnostic::at(&entry.file.name, &entry.file.text, expectation.span.clone(), "GR3101", format!("{}: {message}", case.name))
            };
            if let Is::Acts { like, share: Some(share), .. } = &expectation.is {
                let (text, proof) = proved(*share, self.hits[i], entry.seeds);
                // Fewer seeds than the case asks for are a quick look, which need not prove anything.
                let quick = proof == Proof::Open && entry.seeds < case.seeds;
                shares.push(if quick { format!("{text}, too few to tell") } else { text.clone() });
                if proof != Proof::Holds && !quick {
                    let wanted = match share {
                        Share::AtLeast(p) => format!("{} in at least {}% of the seeds", like.text(), p * 100.0),
                        Share::AtMost(p) => format!("{} in at most {}% of the seeds", like.text(), p * 100.0),
                    };
                    let fault = at(wanted).with_label(text).with_help(enough(*share, self.hits[i], entry.seeds, proof));
                    result.shortfalls.push(Shortfall { fault, picture: None });
                }
            } else if let Some((seed, failure)) = &self.failed[i] {
                let of = if entry.seeds > 1 {
                    format!(" (seed {seed}; {} of {} seeds fail)", self.failures[i], entry.seeds)
                } else {
                    String::new()
                };
                let fault = at(failure.wanted.clone()).with_label(format!("{}{of}", failure.instead)).with_help(again(*seed));
                let picture = watch(entry, *seed, Some(&expectation.is), cancelled);
                let picture = picture.filter(|p| result.shortfalls.iter().all(|s| s.picture.as_ref() != Some(p)));
                result.shortfalls.push(Shortfall { fault, picture });
            }
        }
        if !shares.is_empty() {
            result.said = shares.join("; ");
        } else if entry.seeds > 1 {
            result.said = format!("in each of {} seeds", entry.seeds);
        }
        if options.verbose && result.passed() {
            result.picture = watch(entry, options.seed, None, cancelled);
        }
        result
    }
}

fn is_share(is: &Is) -> bool {
    matches!(is, Is::Acts { share: Some(_), .. })
}

/// What so many hits say of a bound.
fn proved(share: Share, hits: u64, seeds: u64) -> (String, Proof) {
    let [low, high] = bounds(hits, seeds);
    let percent = |p: f64, up: bool| {
        let tenths = p * 1e3;
        format!("{}%", if up { (tenths - 1e-9).ceil() } else { (tenths + 1e-9).floor() } / 10.0)
    };
    let bound = match share {
        Share::AtLeast(_) => format!("at least {} is sure", percent(low, false)),
        Share::AtMost(_) => format!("at most {} is sure", percent(high, true)),
    };
    (format!("{hits} of {seeds} seeds, {bound}"), share.proof(hits, seeds))
}

/// What would help.
fn enough(share: Share, hits: u64, seeds: u64, proof: Proof) -> String {
    if proof == Proof::Broken {
        return "the opposite is sure: with a true share within the bound, so bad a result comes in less than 5% of tests".to_owned();
    }
    let rate = hits as f64 / seeds.max(1) as f64;
    let needed = share.seeds(rate).map_or_else(|| "no number of seeds would show it".to_owned(), |n| format!("{n} seeds would show it"));
    format!("neither side is sure (95%, exact binomial bound): if the share is {:.2}%, as it looks, {needed}", rate * 100.0)
}

/// Plays a run again and draws it.
fn watch(entry: &Entry<'_>, seed: u64, about: Option<&Is>, cancelled: &AtomicBool) -> Option<String> {
    let way = Way { seed, whole: entry.seeds == 1, watched: true, hurried: false };
    let seen = entry.stage.play(way, cancelled).ok()??;
    Some(picture::draw(entry.case, &seen, about))
}
