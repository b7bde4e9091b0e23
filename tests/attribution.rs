//! Who saw what: events that overtake their exposure, experiments that end, and the assignments that a checkpoint keeps.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::engine::aggregate::keys::pair;
use guardraild::engine::aggregate::{Aggregator, assignments};
use guardraild::engine::kept::{Change, Changes, Kept};
use guardraild::engine::outcome::Outcome;
use guardraild::engine::pane::Emission;
use guardraild::engine::plan::{Catalog, Settings};
use std::sync::Arc;
use support::*;

fn rule(name: &str, ends_after_s: Option<i64>) -> String {
    let ends =
        ends_after_s.map(|s| format!(", ends: {}", jiff::Timestamp::from_millisecond(START + s * 1_000).unwrap())).unwrap_or_default();
    format!(
        "guardrail: v1\noverview: {{experiment: {name}, owner: team{ends}}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n\
         metrics:\n  buyers: {{kind: rate, event: outcome, where: {{metric: basket}}, value: /value, unit: user, better: up, baseline: 30%}}\n  \
         spend: {{kind: mean, event: outcome, where: {{metric: basket}}, value: /value, unit: user, better: up}}\n\
         guardrails:\n  - {{metric: error_rate, limit: 10%}}\n  - {{metric: abandonment, within: 5s, limit: 90%}}\n  \
         - {{metric: buyers, max_increase: 0%}}\n  - {{metric: spend, max_increase: 0%}}\nactions: {{mode: observe}}\n"
    )
}

fn partition(catalog: &Catalog, settings: &Settings) -> Partition {
    Partition::new(0, catalog, settings)
}

fn basket(ms: i64, user: u32, value: f64) -> String {
    unit_event("outcome", ms, user, &format!(r#","metric":"basket","value":{value}"#))
}

fn restored(catalog: &Catalog, settings: &Settings, kept: &Kept) -> Partition {
    let mut again = partition(catalog, settings);
    again.aggregator = Aggregator::restore(0, Arc::new(catalog.clone()), settings.clone(), kept).unwrap();
    again
}

/// What a snapshot says of the units, and whether that is everything.
fn units(changes: &Changes) -> (&[Vec<u8>], bool) {
    match changes.iter().find(|(name, _)| name == "units") {
        None => (&[], false),
        Some((_, Change::Set(chunks))) => (chunks, true),
        Some((_, Change::Append(chunks))) => (chunks, false),
    }
}

/// Requests and errors of a bucket of the first experiment, by pane since the start.
fn requests(catalog: &Catalog, bucket: usize, emissions: &[Emission]) -> Vec<(i64, usize, usize)> {
    let mut found = Vec::new();
    for emission in emissions {
        let Emission::Pane(batch) = emission else { continue };
        let seen = batch.seen.opened();
        let own = || seen.observations.iter().filter(|o| o.cell as usize == catalog.plans[0].signal_cell(bucket, 0));
        if own().count() > 0 {
            found.push((batch.pane.0 - START / 1_000, own().count(), own().filter(|o| o.is_hit()).count()));
        }
    }
    found
}

#[test]
fn an_event_that_overtakes_its_exposure_is_counted_when_that_comes() {
    let (catalog, settings) = (catalog(&[&rule("exp", None)]), Settings::default());
    let mut p = partition(&catalog, &settings);
    let id = |line: String, id: &str| line.replace("{\"event\"", &format!("{{\"id\":\"{id}\",\"event\""));
    let named = |line: String, name: &str| line.replace("\"tenant_id\"", &format!("\"experiment\":\"{name}\",\"tenant_id\""));
    assert_eq!(p.read(&id(request(100, 1, 5.0, true), "a")), Outcome::Waiting);
    assert_eq!(p.read(&id(request(100, 1, 5.0, true), "a")), Outcome::Waiting, "an id counts once its record does");
    assert_eq!(p.read(&request(49, 1, 5.0, false)), Outcome::Waiting, "before the exposure");
    assert_eq!(p.read(&named(request(100, 1, 5.0, false), "exp")), Outcome::Waiting);
    assert_eq!(p.read(&named(request(100, 1, 5.0, false), "nope")), Outcome::UnknownExperiment);
    assert_eq!(p.read(&request(100, 2, 5.0, false)), Outcome::Waiting, "another user");
    assert_eq!(p.read(&request(2_000, 3, 5.0, false)), Outcome::Waiting);
    assert_eq!(p.read(&exposure(50, 1, "exp", "treatment")), Outcome::Accepted);
    let counts = p.aggregator.counts();
    assert_eq!((counts.accepted, counts.duplicate, counts.waiting, counts.records()), (3, 1, 3, 8));
    assert_eq!(p.read(&exposure(40, 1, "exp", "treatment")), Outcome::Accepted, "an exposure of before");
    assert_eq!(p.aggregator.counts().accepted, 5, "and the event between the two");
    p.read(&request(40_000, 1, 5.0, false));
    let counts = p.aggregator.counts();
    assert_eq!((counts.waiting, counts.unattributed, counts.records()), (0, 2, 10), "nobody came for the other users");
    p.aggregator.finish();
    assert_eq!(requests(&catalog, 1, &p.aggregator.drain()), [(2, 3, 1), (40, 1, 0)], "in the pane that was open when the exposure came");
}

#[test]
fn a_workflow_and_a_user_that_overtook_their_exposure_go_on_as_if_it_had_come_first() {
    let (catalog, settings) = (catalog(&[&rule("exp", None)]), Settings::default());
    let events = [
        workflow(100, 1, "started", 1),
        basket(200, 1, 9.0),
        basket(250, 1, 2.0),
        workflow(300, 2, "started", 2),
        workflow(900, 2, "completed", 2),
    ];
    let exposures = [exposure(50, 1, "exp", "treatment"), exposure(60, 2, "exp", "treatment")];
    let of = |lines: Vec<&String>| {
        let mut p = partition(&catalog, &settings);
        for line in lines {
            p.read(line);
        }
        p.aggregator.advance(START + 60_000);
        let mut emissions = p.aggregator.drain();
        for emission in &mut emissions {
            // Exposures and events come in another order, and that is all.
            if let Emission::Pane(batch) = emission {
                let mut seen = batch.seen.opened();
                seen.observations.sort_by_key(|o| (o.cell, o.value, o.batch, o.age));
                batch.seen = seen.close();
            }
        }
        emissions
    };
    let in_order = of(exposures.iter().chain(&events).collect());
    assert_eq!(of(events.iter().chain(&exposures).collect()), in_order);
    let abandoned = |e: &Emission| matches!(e, Emission::Pane(batch) if !batch.seen.opened().abandoned.is_empty());
    assert!(in_order.iter().any(abandoned), "the first user's workflow");
}

#[test]
fn where_room_is_short_the_oldest_go_and_are_counted() {
    let (catalog, settings) = (catalog(&[&rule("exp", None)]), Settings { waiting_max: 3, ..Settings::default() });
    let mut p = partition(&catalog, &settings);
    (0..10).for_each(|i| assert_eq!(p.read(&request(i, i as u32, 5.0, false)), Outcome::Waiting));
    let counts = p.aggregator.counts();
    assert_eq!((counts.waiting, counts.unattributed, p.aggregator.dropped()[4]), (3, 7, ("waiting", 7)));
    p.read(&exposure(0, 6, "exp", "control"));
    p.read(&exposure(0, 7, "exp", "control"));
    assert_eq!(p.aggregator.counts().accepted, 3, "two exposures, and the one event that had stayed");
    let none = Settings { waiting_max: 0, ..Settings::default() };
    let mut p = partition(&catalog, &none);
    assert_eq!(p.read(&request(0, 1, 5.0, false)), Outcome::Unattributed);
    assert_eq!(p.aggregator.dropped()[4], ("waiting", 0), "that is no shortage");
}

#[test]
fn a_restart_in_the_middle_of_a_wait_changes_nothing() {
    let (both, settings) = (catalog(&[&rule("exp", None), &rule("other", None)]), Settings::default());
    let other = request(120, 1, 5.0, false).replace("\"tenant_id\"", "\"experiment\":\"other\",\"tenant_id\"");
    let before = [request(100, 1, 5.0, true), other, request(110, 2, 5.0, false)];
    let after = [exposure(90, 1, "exp", "treatment"), exposure(95, 1, "other", "control"), request(31_000, 1, 5.0, false)];
    let mut calm = partition(&both, &settings);
    let mut p = partition(&both, &settings);
    before.iter().for_each(|line| assert_eq!((calm.read(line), p.read(line)), (Outcome::Waiting, Outcome::Waiting)));
    let kept = Kept::of(p.aggregator.snapshot().unwrap());
    let mut again = restored(&both, &settings, &kept);
    after.iter().for_each(|line| assert_eq!(calm.read(line), again.read(line)));
    assert_eq!(calm.aggregator.counts(), again.aggregator.counts());
    assert_eq!((calm.aggregator.counts().accepted, calm.aggregator.counts().unattributed), (5, 1));
    assert_eq!(calm.aggregator.drain(), again.aggregator.drain());

    let (one, short) = (catalog(&[&rule("exp", None)]), Settings { waiting_max: 1, ..Settings::default() });
    let counts = restored(&one, &short, &kept).aggregator.counts().clone();
    assert_eq!((counts.waiting, counts.unattributed, counts.unknown_experiment), (1, 1, 1), "less room, and a rule file that has gone");
}

#[test]
fn units_leave_when_their_experiment_has_ended() {
    let (catalog, settings) = (catalog(&[&rule("brief", Some(60)), &rule("long", None)]), Settings::default());
    let mut p = partition(&catalog, &settings);
    for user in 0..20_000 {
        p.read(&exposure(i64::from(user), user, "brief", bucket_of(user)));
        p.read(&exposure(i64::from(user), user / 10, "long", bucket_of(user / 10)));
        p.read(&basket(i64::from(user), user, 5.0));
    }
    assert_eq!(p.aggregator.assignments(), 22_000);
    let full = p.aggregator.snapshot().unwrap();
    assert_eq!(p.read(&exposure(60_000, 1, "brief", "treatment")), Outcome::Inactive);
    p.read(&request(89_999, 1, 5.0, false));
    assert_eq!(p.read(&request(59_999, 15_000, 5.0, false)), Outcome::Accepted, "late, of before the end");
    assert_eq!(p.aggregator.assignments(), 22_000);
    p.read(&request(90_000, 1, 5.0, false));
    assert_eq!(p.aggregator.assignments(), 2_000);
    let less = p.aggregator.snapshot().unwrap();
    assert!(units(&less).1 && bytes(&less) < bytes(&full) / 8, "{} of {}", bytes(&less), bytes(&full));
    assert_eq!(observed(units(&less).0, "brief"), [""; 0]);
    let mut kept = Kept::of(full.clone());
    kept.apply(less);
    assert_eq!(restored(&catalog, &settings, &kept).aggregator.assignments(), 2_000);
    kept.apply(vec![("units".to_owned(), Change::Set(units(&full).0.to_vec()))]);
    assert_eq!(restored(&catalog, &settings, &kept).aggregator.assignments(), 2_000, "an older chunk brings them back to nobody");
}

fn bytes(changes: &Changes) -> usize {
    units(changes).0.iter().map(Vec::len).sum()
}

/// What chunks say of an experiment, a line for each row.
fn observed(chunks: &[Vec<u8>], experiment: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for chunk in chunks {
        assignments(chunk, experiment, |o| lines.push(format!("{:016x} {} {} {} {}", o.unit, o.bucket, o.since - START, o.mixed, o.again)))
            .unwrap();
    }
    lines
}

#[test]
fn chunks_tell_the_assignments_by_name_and_say_which_replace_older_ones() {
    let (catalog, settings) = (catalog(&[&rule("exp", None), &rule("other", None)]), Settings::default());
    let mut p = partition(&catalog, &settings);
    p.read(&exposure(7_000, 1, "exp", "treatment"));
    p.read(&exposure(7_000, 2, "other", "control"));
    let first = p.aggregator.snapshot().unwrap();
    p.read(&exposure(6_500, 1, "exp", "control"));
    p.read(&exposure(8_000, 3, "exp", "control"));
    let second = p.aggregator.snapshot().unwrap();
    assert!(units(&first).1 && !units(&second).1, "the first of its kind leaves nothing of before");
    assert_eq!(observed(units(&first).0, "exp"), ["fdc38b42dbb513cb treatment 7000 false false"]);
    assert_eq!(observed(units(&first).0, "none"), [""; 0]);
    let mut rows = observed(units(&second).0, "exp");
    rows.sort();
    assert_eq!(rows.len(), 2);
    assert!(rows.contains(&"fdc38b42dbb513cb treatment 6500 true true".to_owned()), "{rows:?}");
    assert_eq!(units(&p.aggregator.snapshot().unwrap()), (&[][..], false), "nothing new");
    assert!(assignments(b"nonsense", "exp", |_| ()).is_err());
}

#[test]
fn buckets_that_change_places_keep_their_units() {
    let settings = Settings::default();
    let before = catalog(&[&rule("exp", None)]);
    let turned =
        rule("exp", None).replace("{control: {baseline: true}, treatment: {}}", "{extra: {}, treatment: {}, control: {baseline: true}}");
    let mut p = partition(&before, &settings);
    p.read(&exposure(0, 1, "exp", "treatment"));
    p.read(&request(0, 1, 5.0, false));
    let after = catalog(&[&turned]);
    let mut again = restored(&after, &settings, &Kept::of(p.aggregator.snapshot().unwrap()));
    again.read(&request(10, 1, 5.0, true));
    again.aggregator.finish();
    assert_eq!(requests(&after, 1, &again.aggregator.drain()), [(0, 1, 1)], "still in treatment, which is the second of both");
}

#[test]
fn increments_do_not_pile_up() {
    let (catalog, settings) = (catalog(&[&rule("exp", None)]), Settings::default());
    let mut p = partition(&catalog, &settings);
    let (mut kept, mut most) = (Kept::default(), 0);
    for i in 0..2_000 {
        p.read(&exposure(i, (i % 900) as u32, "exp", bucket_of((i % 900) as u32)));
        p.read(&basket(i, (i % 30) as u32, 1.0));
        kept.apply(p.aggregator.snapshot().unwrap());
        most = most.max(kept.blobs("units").len());
    }
    assert!(most < 600, "{most}");
    kept.apply(p.aggregator.snapshot().unwrap());
    let mut again = restored(&catalog, &settings, &kept);
    assert_eq!((again.aggregator.assignments(), p.aggregator.assignments()), (900, 900));
    for p in [&mut p, &mut again] {
        p.read(&basket(3_000, 7, 1.0));
        p.aggregator.finish();
    }
    let last = |p: &mut Partition| p.aggregator.drain().pop();
    assert_eq!(last(&mut p), last(&mut again), "sums and first hits of units, too");
}

#[test]
fn one_unit_with_a_hundred_thousand_events_takes_no_more_room_than_with_a_few() {
    let (catalog, settings) = (catalog(&[&rule("exp", None)]), Settings { waiting_max: 500, ..Settings::default() });
    let state = |events: u32| {
        let mut p = partition(&catalog, &settings);
        for i in 0..events {
            p.read(&request(i64::from(i % 900), 1, 5.0, false));
        }
        p.read(&exposure(0, 1, "exp", "treatment"));
        for i in 0..events {
            p.read(&request(i64::from(i % 900), 1, 5.0, false));
            p.read(&basket(i64::from(i % 900), 1, 1.0));
        }
        p.read(&request(5_000, 1, 5.0, false));
        assert_eq!(p.aggregator.counts().records(), u64::from(3 * events + 2));
        Kept::of(p.aggregator.snapshot().unwrap()).size()
    };
    let (few, many) = (state(1_000), state(100_000));
    assert!(many < few + 100, "{few} bytes, then {many}");
}

/// What users of the export compute with other libraries.
#[test]
fn the_documented_hashes_are_those_of_the_program() {
    let text = include_str!("../docs/assignments.md");
    let (_, table) = text.split_once("| `tenant_id` | `user_id` | `unit` |\n|---|---|---|\n").unwrap();
    let rows: Vec<Vec<&str>> = table.lines().take_while(|l| l.starts_with('|')).map(|l| l.split('|').map(str::trim).collect()).collect();
    assert!(rows.len() >= 3);
    for row in rows {
        assert_eq!(format!("{:016x}", pair(row[1], row[2])), row[3], "{row:?}");
    }
}
