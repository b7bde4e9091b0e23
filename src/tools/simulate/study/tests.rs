use super::*;
use crate::engine::plan::{FieldTable, Settings};
use crate::rules::{Planning, parse_str};
use crate::tools::simulate::{Traffic, read};
use std::sync::Arc;

/// Half of all requests are slower than the median, so a limit on the median of 180 ms is broken by what is any slower.
fn spec() -> Spec {
    let rule = "guardrail: v1\noverview: {experiment: e, owner: o}\nbuckets: {control: {baseline: true}, treatment: {}}\n\
                guardrails: [{metric: latency_p50, limit: 250ms}, {metric: error_rate, limit: 5%}]\nactions: {mode: observe}\n";
    let mut fields = FieldTable::default();
    let plan = parse_str("rule.yaml", rule, &mut fields, None).rule.unwrap().plan;
    let base = Traffic::of(&plan, &Planning::of(rule));
    let traffic = read("t", "traffic: v1\nunits: 20/s\nrequests: {per_unit: 2, gap: 1s}\n", &plan, &base).unwrap();
    Spec::new(Arc::unwrap_or_clone(plan), fields, Settings::default(), traffic, 60_000).unwrap()
}

fn options(threads: usize, onset: Millis) -> Options {
    Options { seed: 5, threads, bucket: 1, segment: None, onset }
}

#[test]
fn nothing_depends_on_the_number_of_threads() {
    let (spec, go) = (spec(), AtomicBool::new(false));
    let effect = Effect::parse("latency_p50=+100%", &spec.plan).unwrap();
    let all = |threads| {
        let options = options(threads, 0);
        let clean = healthy(&[&spec], &options, 12, &go, |_| ()).remove(0);
        (clean, detection(&[&spec], &options, &effect, 12, &go, |_| ()).remove(0))
    };
    let (clean, found) = all(1);
    assert_eq!((clean.clone(), found.clone()), all(5));
    assert_eq!((clean.family.hits, clean.runs), (0, 12));
    assert_eq!((found.detected.hits, found.tests.clone()), (12, vec![("exceedance".to_owned(), 12)]));
    let [low, high] = found.delay_ms.median_interval;
    assert!(low <= found.delay_ms.median && found.delay_ms.median <= high && found.delay_ms.median < found.delay_ms.p90);
}

#[test]
fn delays_are_counted_from_the_onset() {
    let (spec, go) = (spec(), AtomicBool::new(false));
    let effect = Effect::parse("latency_p50=+400%", &spec.plan).unwrap();
    let found = detection(&[&spec], &options(2, 10_000), &effect, 10, &go, |_| ()).remove(0);
    assert_eq!((found.detected.hits, found.alarmed_before), (10, 0));
    let (delay, units) = (found.delay_ms.median.unwrap(), found.units.median.unwrap());
    assert!((1_000.0..40_000.0).contains(&delay), "{delay}");
    // 20 units a second; the pane of the onset counts whole.
    assert!((units - delay / 50.0).abs() < 100.0, "{units} units in {delay} ms");
}

#[test]
fn what_is_never_seen_has_no_delay() {
    let (spec, go) = (spec(), AtomicBool::new(false));
    let effect = Effect::parse("error_rate=+0.1pp", &spec.plan).unwrap();
    let found = detection(&[&spec], &options(2, 0), &effect, 6, &go, |_| ()).remove(0);
    assert_eq!((found.detected.hits, found.delay_ms.median, found.delay_ms.median_interval), (0, None, [None, None]));
}

#[test]
fn the_smallest_effect_lies_between_what_was_missed_and_found() {
    let (spec, go) = (spec(), AtomicBool::new(false));
    let options = options(2, 0);
    let effect = Effect::parse("latency_p50=+200%", &spec.plan).unwrap();
    let known = [detection(&[&spec], &options, &effect, 6, &go, |_| ()).remove(0)];
    let smallest = detectable(&spec, &options, &known, 0.5, 6, &go, |_| ()).unwrap();
    let (found, missed) = (smallest.found.unwrap().effect.size.value(), smallest.missed.unwrap().size.value());
    // 39% lead from 180 ms to the limit.
    assert!(missed < found && found < 2.0 && missed > 0.2, "{missed} {found}");
}

#[test]
fn a_cancelled_study_holds_the_runs_that_were_done() {
    let (spec, stop) = (spec(), AtomicBool::new(false));
    let clean = healthy(&[&spec], &options(1, 0), 1_000, &stop, |_| stop.store(true, Ordering::Relaxed)).remove(0);
    assert!((1..1_000).contains(&clean.runs), "{}", clean.runs);
    assert_eq!(clean.family.runs, clean.runs);
}

#[test]
fn quantiles_count_what_was_not_found_as_later() {
    let delay = Delay::of(vec![3.0, 1.0, 2.0, 4.0, 5.0], 8);
    assert_eq!((delay.median, delay.p90), (Some(4.0), None));
    assert_eq!(Delay::of(vec![7.0], 1).median, Some(7.0));
}
