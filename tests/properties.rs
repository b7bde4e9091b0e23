//! Properties of the engine against a slow, obvious model that keeps the whole history, and under any interleaving, any number of
//! partitions, and restarts at any moment.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::engine::decision::Output;
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::Kept;
use guardraild::engine::outcome::Outcome;
use guardraild::engine::pane::Emission;
use guardraild::engine::plan::{Catalog, Guardrail, QualityCheck, Settings};
use guardraild::engine::stats::exceedance::log_e_over;
use guardraild::engine::stats::rates::threshold_log_e;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use support::*;

const RULE: &str = "guardrail: v1
overview: {experiment: exp, owner: team, type: phased_rollout}
buckets: {control: {baseline: true}, treatment: {}}
metrics:
  spend: {kind: mean, event: outcome, where: {metric: basket}, value: /value, unit: event, better: up}
  buyers: {kind: rate, event: outcome, where: {metric: basket}, value: /value, unit: user, better: up}
  buying: {kind: funnel, workflow: purchase, within: 5s, steps: [cart]}
  back: {kind: retention, day: 1}
guardrails:
  - {metric: latency_p95, window: 20s, limit: 200ms}
  - {metric: error_rate, window: 7s, limit: 10%}
  - {metric: tickets, window: 30s, limit: 50%, on_breach: notify}
  - {metric: compliance_flags, window: 1h, limit: 3, on_breach: kill}
  - {metric: abandonment, within: 5s, window: 10s, limit: 20%, on_breach: page}
  - {metric: spend, max_increase: 0%}
  - {metric: buyers, max_increase: 0%, on_breach: notify}
  - {metric: latency_p90, max_increase: 0%, on_breach: notify}
  - {metric: tickets, max_increase: 0%, on_breach: notify}
analysis: {correction: bonferroni, min_units: 2, segments: {by: [region], top: 2, act: true}}
actions: {mode: enforce, rollback: {webhook: flags}, kill: {webhook: flags}, page: {webhook: pager}, notify: {webhook: chat}, confirm_within: 10s}
success: {secondary: [spend, latency_p50, tickets]}
quality: {silence: {after: 20s, do: hold}}
rollout: {phases: [{traffic: 50%, for: 10s}, {traffic: 20%}, {traffic: 100%}]}
";
/// Who counts, who must not take part, what is missing.
const TRUST: &str = "guardrail: v1
overview: {experiment: exp, owner: team}
buckets: {control: {baseline: true}, treatment: {}}
guardrails:
  - {metric: error_rate, window: 7s, limit: 10%}
  - {metric: compliance_flags, limit: 9, on_breach: notify}
eligibility: {population: {region: [eu]}, exclude: {user_id: [p1-3]}, assignment: {namespace: ns}}
actions: {mode: enforce, rollback: {webhook: flags}, pause: {webhook: ramp}, notify: {webhook: chat}}
quality:
  mixed_assignment: {max: 30%, do: pause}
  ineligible: {max: 20%, do: notify}
  missing: {fields: [/latency_ms, /route], max: 30%, do: hold}
";
const LATENESS: i64 = 30_000;

/// A record before it is written down.
#[derive(Clone, Debug)]
enum Record {
    Exposure(u32),
    Request {
        user: u32,
        latency: u32,
        error: bool,
    },
    Ticket(u32),
    Flag(u32),
    Basket(u32, u32),
    Workflow(u32, &'static str, u32),
    Cart(u32, u32),
    /// Of a user with a mind of its own: which bucket, and which region.
    Wanderer(u32, &'static str, &'static str),
    Bare(u32),
    Phase(u32),
}

impl Record {
    fn line(&self, ms: i64) -> String {
        match *self {
            Record::Exposure(user) => {
                // What a later exposure says does not move a unit.
                let region = if user.is_multiple_of(5) || ms % 7 == 0 { "uk" } else { "eu" };
                exposure(ms, user, "exp", bucket_of(user))
                    .replace("\"tenant_id\"", &format!(r#""attributes":{{"region":"{region}"}},"tenant_id""#))
            }
            Record::Request { user, latency, error } => request(ms, user, f64::from(latency), error),
            Record::Ticket(user) => unit_event("ticket", ms, user, ""),
            Record::Flag(user) => unit_event("compliance_flag", ms, user, r#","flag":"f""#),
            Record::Basket(user, cents) => {
                unit_event("outcome", ms, user, &format!(r#","metric":"basket","value":{}"#, f64::from(cents) / 7.0))
            }
            Record::Workflow(user, step, id) => workflow(ms, user, step, id),
            Record::Cart(user, id) => unit_event("cart", ms, user, &format!(r#","workflow_id":"w{id}""#)),
            Record::Wanderer(user, bucket, region) => exposure(ms, user, "exp", bucket)
                .replace('}', &format!(r#","id":"w{user}{}","attributes":{{"region":"{region}"}}}}"#, ms % 7)),
            Record::Bare(user) => unit_event("request", ms, user, ""),
            Record::Phase(tenths) => {
                let (ts, share) = (START + ms, f64::from(tenths) / 10.0);
                format!(
                    r#"{{"event":"phase","ts":{ts},"experiment":"exp","phase":{},"weights":{{"control":{},"treatment":{share}}}}}"#,
                    tenths % 3,
                    1.0 - share
                )
            }
        }
    }
}

fn record(users: u32) -> impl Strategy<Value = Record> {
    let user = 0..users;
    prop_oneof![
        3 => user.clone().prop_map(Record::Exposure),
        8 => (user.clone(), 1u32..400, prop::bool::weighted(0.15)).prop_map(|(user, latency, error)| Record::Request { user, latency, error }),
        1 => user.clone().prop_map(Record::Ticket),
        1 => user.clone().prop_map(Record::Flag),
        1 => (user.clone(), 0u32..1_000).prop_map(|(user, cents)| Record::Basket(user, cents)),
        1 => (user.clone(), 0u32..40).prop_map(|(u, id)| Record::Cart(u, id)),
        3 => (user, prop::sample::select(vec!["started", "completed", "abandoned"]), 0u32..40).prop_map(|(u, s, id)| Record::Workflow(u, s, id)),
    ]
}

/// Records that cannot all be trusted.
fn doubtful(users: u32) -> impl Strategy<Value = Record> {
    let (bucket, region) = (prop::sample::select(vec!["control", "treatment"]), prop::sample::select(vec!["eu", "eu", "eu", "mars"]));
    prop_oneof![
        6 => record(users),
        3 => (0..users, bucket, region).prop_map(|(user, bucket, region)| Record::Wanderer(user, bucket, region)),
        2 => (0..users).prop_map(Record::Bare),
        1 => (1u32..9).prop_map(Record::Phase),
    ]
}

/// Records with the step of time before each: mostly forward, sometimes back by up to 40 s, sometimes a long gap.
fn history(of: impl Strategy<Value = Record>, most: usize) -> impl Strategy<Value = Vec<(i64, Record)>> {
    let step = prop_oneof![20 => 0i64..400, 2 => -40_000i64..0, 1 => 5_000i64..90_000];
    prop::collection::vec((step, of), 1..most).prop_map(|steps| {
        let mut now = 0;
        let timed = steps.into_iter().map(|(step, record)| {
            let ts = now + step;
            now = now.max(ts);
            (ts.max(0), record)
        });
        timed.collect()
    })
}

/// Everything that was accepted, with the pane it was booked in.
#[derive(Default)]
struct Model {
    booked: Vec<(i64, Record)>,
    exposed: BTreeMap<u32, i64>,
    watermark: Option<i64>,
    /// Events that overtook their exposure, in the order of arrival, with their time and user; and how many there may be.
    waiting: Vec<(i64, u32, Record)>,
    waiting_max: usize,
    outcomes: Vec<Outcome>,
    accepted: u64,
    unattributed: u64,
}

impl Model {
    fn read(&mut self, ts: i64, record: &Record) {
        let late = self.watermark.is_some_and(|w| ts < w - LATENESS);
        let moves = self.watermark.is_none_or(|w| ts > w);
        let watermark = self.watermark.map_or(ts, |w| w.max(ts));
        self.watermark = Some(watermark);
        // START is a whole pane, so offsets from it are, too.
        let pane = watermark.div_euclid(1_000);
        // They go as time moves; the oldest to arrive holds those behind it, which nothing can settle any more.
        let gone = self.waiting.iter().take_while(|(ts, ..)| moves && *ts < watermark - LATENESS).count();
        self.waiting.drain(..gone);
        self.unattributed += gone as u64;
        let (user, exposes) = match *record {
            Record::Exposure(user) | Record::Wanderer(user, ..) => (user, true),
            Record::Request { user, .. }
            | Record::Bare(user)
            | Record::Phase(user)
            | Record::Ticket(user)
            | Record::Flag(user)
            | Record::Basket(user, _)
            | Record::Cart(user, _)
            | Record::Workflow(user, ..) => (user, false),
        };
        let known = matches!(record, Record::Phase(_)) || self.exposed.get(&user).is_some_and(|since| *since <= ts);
        let outcome = if late {
            Outcome::Late
        } else if exposes || known {
            Outcome::Accepted
        } else if self.waiting_max == 0 {
            self.unattributed += 1;
            Outcome::Unattributed
        } else {
            self.waiting.push((ts, user, record.clone()));
            let short = self.waiting.len().saturating_sub(self.waiting_max);
            self.waiting.drain(..short);
            self.unattributed += short as u64;
            Outcome::Waiting
        };
        self.outcomes.push(outcome);
        if outcome == Outcome::Accepted {
            self.accepted += 1;
            self.booked.push((pane, record.clone()));
            if exposes {
                let since = self.exposed.entry(user).or_insert(ts);
                *since = (*since).min(ts);
                let (settled, wait) = self.waiting.drain(..).partition(|(at, of, _)| *of == user && at >= since);
                self.waiting = wait;
                self.accepted += settled.len() as u64;
                self.booked.extend(settled.into_iter().map(|(.., record): (i64, u32, Record)| (pane, record)));
            }
        }
    }

    /// Records of a bucket in the `window` seconds that end with pane `last`.
    fn window(&self, bucket: &str, last: i64, window: i64) -> impl Iterator<Item = &Record> {
        let inside = self.booked.iter().filter(move |(pane, _)| *pane > last - window && *pane <= last).map(|(_, record)| record);
        inside.filter(move |record| {
            let (Record::Exposure(user)
            | Record::Ticket(user)
            | Record::Flag(user)
            | Record::Basket(user, _)
            | Record::Cart(user, _)
            | Record::Workflow(user, ..)) = record
            else {
                let Record::Request { user, .. } = record else { return false };
                return bucket_of(*user) == bucket;
            };
            bucket_of(*user) == bucket
        })
    }

    fn latencies(&self, bucket: &str, last: i64) -> Vec<u32> {
        self.window(bucket, last, 20).filter_map(|r| if let Record::Request { latency, .. } = r { Some(*latency) } else { None }).collect()
    }

    fn errors(&self, bucket: &str, last: i64) -> (u64, u64) {
        let all = self.window(bucket, last, 7).filter_map(|r| if let Record::Request { error, .. } = r { Some(*error) } else { None });
        all.fold((0, 0), |(n, x), error| (n + 1, x + u64::from(error)))
    }

    fn units(&self, bucket: &str) -> usize {
        let users: BTreeSet<u32> =
            self.booked.iter().filter_map(|(_, r)| if let Record::Exposure(u) = r { Some(*u) } else { None }).collect();
        users.into_iter().filter(|u| bucket_of(*u) == bucket).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Windows, outcomes and the first decision of each limit are those of the model.
    #[test]
    fn the_engine_agrees_with_the_whole_history(history in history(record(30), 400), waiting_max in prop_oneof![Just(0usize), 1usize..30, Just(20_000)]) {
        let (catalog, settings) = (catalog(&[RULE]), Settings { waiting_max, ..Settings::default() });
        let mut partition = Partition::new(0, &catalog, &settings);
        let mut model = Model { waiting_max, ..Model::default() };
        for (ts, record) in &history {
            model.read(*ts, record);
            prop_assert_eq!(partition.read(&record.line(*ts)), *model.outcomes.last().unwrap());
            let counts = partition.aggregator.counts();
            prop_assert_eq!(counts.records(), model.outcomes.len() as u64);
            prop_assert_eq!((counts.accepted, counts.waiting), (model.accepted, model.waiting.len() as u64));
        }
        partition.aggregator.finish();
        let counts = partition.aggregator.counts();
        prop_assert_eq!((counts.waiting, counts.unattributed), (0, model.unattributed + model.waiting.len() as u64));
        let mut fleet = Fleet::new(&catalog, settings.pane);
        let mut said = Said::default();
        for emission in partition.aggregator.drain() {
            let mut out = Output::default();
            fleet.take(emission, &mut out);
            said.take(out);
        }
        let state = fleet.views().remove(0);
        let last = model.watermark.unwrap().div_euclid(1_000);
        let first_accepted = model.booked.iter().map(|(pane, _)| *pane).min();

        for (index, bucket) in ["control", "treatment"].into_iter().enumerate() {
            prop_assert_eq!(state.buckets[index].exposed_units as usize, model.units(bucket));
        }
        // Segments of an attribute share out all that is counted.
        for shown in fleet.close_view("exp").unwrap().guardrails.iter().filter(|g| ["spend", "buyers"].contains(&g.guardrail.as_str())) {
            let parts = shown.segments.iter().fold((0, 0), |sum, s| (sum.0 + s.n, sum.1 + s.baseline_n));
            prop_assert_eq!(parts, (shown.n, shown.baseline_n), "{:?}", shown.segments);
        }
        let mut latencies = model.latencies("treatment", last);
        latencies.sort_unstable();
        let shown = &state.guardrails[0];
        prop_assert_eq!(shown.n as usize, latencies.len());
        if !latencies.is_empty() {
            let p95 = f64::from(latencies[(latencies.len() * 95).div_ceil(100) - 1]);
            prop_assert!((shown.bucket_value.unwrap() / p95 - 1.0).abs() < 0.001, "{:?} {}", shown.bucket_value, p95);
        }
        // Each workflow counts under one end, and every start as the first or as a restart.
        for bucket in &state.funnels[0].buckets {
            let all = &bucket.all;
            let ends = all.completed + all.completed_late + all.abandoned + all.timed_out;
            prop_assert_eq!(all.started, ends + all.open);
            let starts = model.window(&bucket.bucket, last, i64::MAX / 4).filter(|r| matches!(r, Record::Workflow(_, "started", _))).count();
            prop_assert_eq!(all.started + all.restarted, starts as i64);
            prop_assert!(all.reached[0] <= all.started && all.open >= 0 && bucket.matured.open == 0, "{:?}", bucket);
        }
        let (n, x) = model.errors("treatment", last);
        prop_assert_eq!((state.guardrails[1].n, state.guardrails[1].bucket_value), (n, (n > 0).then(|| x as f64 / n as f64)));

        // The first pane at which each limit's test passes its threshold, looked for in the history.
        let threshold = state.guardrails[0].log_threshold.unwrap();
        let panes = || first_accepted.into_iter().flat_map(move |first| first..=last);
        let slow = panes().find(|pane| {
            let all = model.latencies("treatment", *pane);
            let s = all.iter().filter(|l| **l > 200).count();
            log_e_over(s as f64, all.len() as f64, 0.05) >= threshold
        });
        let failing = panes().find(|pane| {
            let (n, x) = model.errors("treatment", *pane);
            threshold_log_e(n, x, 0.1) >= threshold
        });
        let flags = panes().find(|pane| model.window("treatment", *pane, 3_600).filter(|r| matches!(r, Record::Flag(_))).count() > 3);
        for (guardrail, expected) in [("latency_p95", slow), ("error_rate", failing), ("compliance_flags", flags)] {
            let mut found = said.decisions.iter().filter(|d| d.guardrail == guardrail && d.criterion == "limit");
            let decided = found.next().map(|d| (d.decided_at - START) / 1_000 - 1);
            prop_assert_eq!(decided, expected, "{}", guardrail);
            prop_assert!(found.next().is_none(), "{} acts once", guardrail);
        }
    }

    /// Invariant 1: verdicts do not depend on how partitions interleave, nor on restarts and reloads.
    #[test]
    fn interleavings_and_restarts_change_nothing(
        histories in prop::collection::vec(history(record(12), 150), 3),
        picks in prop::collection::vec(0usize..3, 0..600),
        restarts in prop::collection::btree_set(0usize..400, 0..4),
    ) {
        same_whatever_happens(RULE, &histories, &picks, &restarts)?;
    }

    /// The same of what the checks of the data say.
    #[test]
    fn interleavings_and_restarts_change_no_doubt(
        histories in prop::collection::vec(history(doubtful(12), 150), 3),
        picks in prop::collection::vec(0usize..3, 0..600),
        restarts in prop::collection::btree_set(0usize..400, 0..4),
    ) {
        same_whatever_happens(TRUST, &histories, &picks, &restarts)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Nor where a single event decides before its pane is judged: what follows from it is the same.
    #[test]
    fn interleavings_and_restarts_change_nothing_that_follows_a_flag(
        histories in prop::collection::vec(history(doubtful(12), 150), 3),
        picks in prop::collection::vec(0usize..3, 0..600),
        restarts in prop::collection::btree_set(0usize..400, 0..4),
        (flags, ineligible) in (prop::sample::select(vec!["kill", "rollback", "notify"]), prop::sample::select(vec!["rollback", "hold"])),
    ) {
        let flagged = RULE.replace("limit: 3, on_breach: kill", &format!("limit: 0, on_breach: {flags}"));
        same_whatever_happens(&flagged, &histories, &picks, &restarts)?;
        let barred = TRUST.replace("max: 20%, do: notify", &format!("max: 0, do: {ineligible}")).replace("limit: 9", "limit: 0, for: 1m");
        same_whatever_happens(&barred, &histories, &picks, &restarts)?;
    }
}

fn same_whatever_happens(
    rule: &str,
    histories: &[Vec<(i64, Record)>],
    picks: &[usize],
    restarts: &BTreeSet<usize>,
) -> Result<(), TestCaseError> {
    let (catalog, settings) = (catalog(&[rule]), Settings::default());
    // Partitions keep their own users.
    let lines: Vec<Vec<String>> = histories
        .iter()
        .enumerate()
        .map(|(p, history)| {
            history.iter().map(|(ts, record)| record.line(*ts).replace("\"user_id\":\"u", &format!("\"user_id\":\"p{p}-"))).collect()
        })
        .collect();
    let one_after_the_other = said_of(&catalog, (&settings, 1), &lines, &[], &BTreeSet::new());
    let interleaved = said_of(&catalog, (&settings, 1), &lines, picks, &BTreeSet::new());
    prop_assert_eq!(difference(&one_after_the_other, &interleaved), [""; 0], "interleaved");
    let together = said_of(&catalog, (&settings, 7), &lines, picks, &BTreeSet::new());
    prop_assert_eq!(difference(&one_after_the_other, &together), [""; 0], "several panes at once");
    let restarted = said_of(&catalog, (&settings, 3), &lines, picks, restarts);
    prop_assert_eq!(difference(&one_after_the_other, &restarted), [""; 0], "restarted");
    Ok(())
}

proptest! {
    /// Invariant 2, for bytes that nobody chose.
    #[test]
    fn outcomes_add_up_for_any_bytes(texts in prop::collection::vec(
        prop_oneof![any::<String>(), "\\{\"event\":\"[a-z_]{0,12}\",\"ts\":[0-9-]{1,20}[^\"]{0,20}\\}"], 1..50)
    ) {
        let (catalog, settings) = (catalog(&[RULE]), Settings::default());
        let mut partition = Partition::new(0, &catalog, &settings);
        for (read, text) in texts.iter().enumerate() {
            partition.read(text);
            prop_assert_eq!(partition.aggregator.counts().records(), read as u64 + 1);
        }
    }
}

/// Lines that only one of two runs said.
fn difference<'a>(a: &'a [String], b: &'a [String]) -> Vec<&'a str> {
    let only = |a: &'a [String], b: &'a [String]| a.iter().filter(|l| !b.contains(l)).map(String::as_str).collect::<Vec<_>>();
    let lengths = (a.len() != b.len()).then_some("a different number of lines");
    [only(a, b), only(b, a), lengths.into_iter().collect()].concat()
}

/// What a fleet says of three partitions that are read in the order of `picks` (and the rest one after the other), where after some
/// records everything is thrown away and rebuilt from snapshots, or, every other time, the same rules are loaded anew. Panes are judged after every `together` records.
fn said_of(
    catalog: &Catalog,
    (settings, together): (&Settings, usize),
    lines: &[Vec<String>],
    picks: &[usize],
    restarts: &BTreeSet<usize>,
) -> Vec<String> {
    let mut partitions: Vec<Partition> = (0..lines.len()).map(|p| Partition::new(p as i32, catalog, settings)).collect();
    let mut fleet = Fleet::new(catalog, settings.pane);
    let mut said = Said::default();
    (0..lines.len()).for_each(|p| fleet.assigned(p as i32));
    let (mut kept, mut of_partitions) = (Kept::default(), vec![Kept::default(); lines.len()]);
    let mut next = vec![0; lines.len()];
    let rest = (0..lines.len()).flat_map(|p| std::iter::repeat_n(p, lines[p].len()));
    let take = |fleet: &mut Fleet, said: &mut Said, emissions: Vec<Emission>, settle: bool| {
        let mut out = Output::default();
        emissions.into_iter().for_each(|emission| fleet.hear(emission, &mut out));
        if settle {
            fleet.settle(&mut out);
        }
        said.take(out);
    };
    for (step, p) in picks.iter().copied().chain(rest).enumerate() {
        let Some(line) = lines[p].get(next[p]) else { continue };
        next[p] += 1;
        partitions[p].read(line);
        take(&mut fleet, &mut said, partitions[p].aggregator.drain(), step % together == 0);
        if restarts.contains(&step) && step % 2 == 1 {
            let mut out = Output::default();
            fleet.reload(catalog, START, &mut out).unwrap();
            said.take(out);
            partitions.iter_mut().for_each(|partition| partition.aggregator.reload(Arc::new(catalog.clone())).unwrap());
        } else if restarts.contains(&step) {
            fleet = restarted(&mut fleet, &mut kept, catalog, settings);
            (0..lines.len()).for_each(|p| fleet.assigned(p as i32));
            for (p, partition) in partitions.iter_mut().enumerate() {
                partition.aggregator = rebuilt(&mut partition.aggregator, p as i32, &mut of_partitions[p], catalog, settings);
            }
            // What has been decided since the last checkpoint comes from the store.
            said.decisions.iter().for_each(|d| fleet.adopt(d));
        } else if step % 7 == 0 {
            kept.apply(fleet.snapshot(false).unwrap());
            partitions.iter_mut().zip(&mut of_partitions).for_each(|(p, kept)| kept.apply(p.aggregator.snapshot().unwrap()));
        }
    }
    for partition in &mut partitions {
        partition.aggregator.advance(START + 100_000_000);
        take(&mut fleet, &mut said, partition.aggregator.drain(), true);
    }
    let plan = &catalog.plans[0];
    if plan.guardrails.iter().any(Guardrail::is_zero_tolerance) || plan.quality.iter().any(QualityCheck::is_zero_tolerance) {
        said.decisions.iter_mut().for_each(|decision| *decision = without_haste(decision));
    }
    let mut lines = said.lines();
    lines.push(format!("{:?}", fleet.close_view("exp").unwrap()));
    lines.sort();
    lines
}
