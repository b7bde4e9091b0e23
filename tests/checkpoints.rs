//! Checkpoints of earlier versions are taken up, and what has been decided stays decided.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::engine::aggregate::Aggregator;
use guardraild::engine::decision::Output;
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::{Kept, prefixed};
use guardraild::engine::plan::{Catalog, Settings};
use guardraild::store::{Checkpoint, Commit, Store};
use std::path::PathBuf;
use std::sync::Arc;
use support::*;

/// Two experiments whose states hold something of everything.
fn rules() -> [String; 2] {
    let rule = |name: &str, act: bool| {
        format!(
            "guardrail: v1\noverview: {{experiment: {name}, owner: team}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n\
             metrics:\n  spend: {{kind: mean, event: outcome, where: {{metric: basket}}, value: /value, unit: user, better: up}}\n  \
             buyers: {{kind: rate, event: outcome, where: {{metric: basket}}, value: /value, unit: user, better: up}}\n  \
             buying: {{kind: funnel, workflow: purchase, within: 5s, steps: [cart]}}\n  back: {{kind: retention, day: 1}}\n\
             guardrails:\n  - {{metric: latency_p95, window: 20s, limit: 200ms}}\n  - {{metric: error_rate, window: 7s, limit: 40%}}\n  \
             - {{metric: abandonment, within: 5s, window: 10s, limit: 90%, on_breach: page}}\n  - {{metric: spend, max_increase: 0%}}\n  \
             - {{metric: buyers, max_increase: 0%, on_breach: notify}}\n  - {{metric: latency_p90, max_increase: 0%, on_breach: notify}}\n  \
             - {{metric: tickets, max_increase: 0%, on_breach: notify}}\n\
             analysis: {{min_units: 2, segments: {{by: [region], top: 2, act: {act}}}}}\nactions: {{mode: observe}}\n\
             quality:\n  silence: {{after: 20s, do: hold}}\n  missing: {{fields: [/latency_ms], max: 30%, do: hold}}\n\
             rollout: {{phases: [{{traffic: 50%, for: 10s}}, {{traffic: 100%}}]}}\n"
        )
    };
    [rule("exp", true), rule("other", false)]
}

/// Three minutes; requests of the treatment become slow after two.
fn records() -> Vec<String> {
    let mut records = Vec::new();
    for n in 0..720 {
        let (ms, user) = (i64::from(n) * 250, n % 400);
        for experiment in ["exp", "other"] {
            let region = if user % 3 == 0 { "eu" } else { "us" };
            let exposed = exposure(ms, user, experiment, bucket_of(user));
            records.push(exposed.replace('}', &format!(r#","id":"x{experiment}{n}","attributes":{{"region":"{region}"}}}}"#)));
        }
        let slow = n > 480 && user % 2 == 1;
        records.push(request(ms + 20, user, if slow { 900.0 } else { f64::from(50 + n % 40) }, n % 9 == 0));
        records.push(workflow(ms + 30, user, "started", n));
        records.push(unit_event("outcome", ms + 40, user, r#","metric":"basket","value":3.5"#));
        records.push(unit_event("ticket", ms + 50, user + 30, ""));
    }
    records
}

/// Reads records; returns what they made the fleet say.
fn read(partition: &mut Partition, fleet: &mut Fleet, records: &[String], said: &mut Said) {
    for record in records {
        partition.read(record);
        for emission in partition.aggregator.drain() {
            let mut out = Output::default();
            fleet.take(emission, &mut out);
            said.take(out);
        }
    }
}

fn commit(store: &mut Store, fleet: &mut Fleet, partition: &mut Partition, made_at: i64) {
    let mut changes = prefixed("fleet/", fleet.snapshot(false).unwrap());
    changes.extend(prefixed("partition/0/", partition.aggregator.snapshot().unwrap()));
    let checkpoint = Checkpoint { made_at, changes, ..Checkpoint::default() };
    store.commit(&Commit { checkpoint: Some(checkpoint), ..Commit::default() }).unwrap();
}

/// Two checkpoints of this version, after a minute and after two.
fn write(path: &std::path::Path, catalog: &Catalog, settings: &Settings) {
    let (mut partition, mut fleet) = (Partition::new(0, catalog, settings), Fleet::new(catalog, settings.pane));
    let (records, mut said, mut store) = (records(), Said::default(), Store::open(path).unwrap());
    for part in [0..1_440, 1_440..2_880] {
        read(&mut partition, &mut fleet, &records[part.clone()], &mut said);
        commit(&mut store, &mut fleet, &mut partition, part.end as i64);
    }
}

fn taken_up(store: &mut Store, catalog: &Catalog, settings: &Settings) -> (Partition, Fleet) {
    let loaded = store.load_checkpoint().unwrap();
    assert_eq!(loaded.damaged, [""; 0]);
    let mut parts: Kept = loaded.checkpoint.unwrap().parts;
    let restored = Fleet::restore(catalog, settings.pane, &parts.split_off("fleet/")).unwrap();
    assert_eq!(restored.lost, []);
    let mut partition = Partition::new(0, catalog, settings);
    let kept = parts.split_off("partition/0/");
    partition.aggregator = Aggregator::restore(0, Arc::new(catalog.clone()), settings.clone(), &kept).unwrap();
    (partition, restored.fleet)
}

/// What a version wrote is there for good: a field that it lacks needs a default (CONTRIBUTING.md, "Checkpoints").
#[test]
fn checkpoints_of_earlier_versions_are_taken_up() {
    let [first, second] = rules();
    let (catalog, settings) = (catalog(&[&first, &second]), Settings::default());
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints");
    let own = folder.join("0.1.0.db");
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() && !own.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        write(&own, &catalog, &settings);
    }
    let copies = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "db"))
    {
        let copy = copies.path().join(file.file_name().unwrap());
        std::fs::copy(&file, &copy).unwrap();
        let mut store = Store::open(&copy).unwrap();
        let (mut partition, mut fleet) = taken_up(&mut store, &catalog, &settings);
        assert_eq!(partition.aggregator.assignments(), 800, "{}", file.display());
        assert_eq!(partition.aggregator.counts().records(), 2_880);
        let mut said = Said::default();
        read(&mut partition, &mut fleet, &records()[2_870..2_880], &mut said);
        assert_eq!(partition.aggregator.counts().duplicate, 2, "ids are known, too");
        read(&mut partition, &mut fleet, &records()[2_880..], &mut said);
        let acting: Vec<&str> = said.decisions.iter().filter(|d| d.guardrail == "latency_p95").map(|d| d.experiment.as_str()).collect();
        assert_eq!(acting, ["exp", "other"], "{:?}", said.decisions);
    }
}

#[test]
fn a_restart_from_the_database_changes_no_decision() {
    let [first, second] = rules();
    let (catalog, settings) = (catalog(&[&first, &second]), Settings::default());
    let records = records();
    let (mut partition, mut fleet, mut calm) =
        (Partition::new(0, &catalog, &settings), Fleet::new(&catalog, settings.pane), Said::default());
    read(&mut partition, &mut fleet, &records, &mut calm);

    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path().join("guardraild.db")).unwrap();
    let (mut partition, mut fleet, mut said) =
        (Partition::new(0, &catalog, &settings), Fleet::new(&catalog, settings.pane), Said::default());
    for (n, part) in records.chunks(97).enumerate() {
        read(&mut partition, &mut fleet, part, &mut said);
        commit(&mut store, &mut fleet, &mut partition, n as i64);
        if n % 3 == 2 {
            (partition, fleet) = taken_up(&mut store, &catalog, &settings);
            said.decisions.iter().for_each(|decision| fleet.adopt(decision));
        }
    }
    assert_eq!(said.lines(), calm.lines());
    assert!(said.decisions.len() > 2, "{:?}", said.decisions);
}

/// An experiment that has no traffic is not written again, though time goes on; and is taken up as if it had been.
#[test]
fn what_has_not_changed_is_not_written_again() {
    let [first, second] = rules();
    let (catalog, settings) = (catalog(&[&first, &second.replace("  silence: {after: 20s, do: hold}\n", "")]), Settings::default());
    let (mut partition, mut fleet, mut said) =
        (Partition::new(0, &catalog, &settings), Fleet::new(&catalog, settings.pane), Said::default());
    let later = |s: i64| [exposure(s * 1_000, 1, "exp", "treatment"), exposure(s * 1_000 + 2_000, 1, "exp", "treatment")];
    read(&mut partition, &mut fleet, &records()[..60], &mut said);
    let mut kept = Kept::of(fleet.snapshot(false).unwrap());
    // Long after its windows have emptied.
    for s in [7_200, 7_210] {
        read(&mut partition, &mut fleet, &later(s), &mut said);
        kept.apply(fleet.snapshot(false).unwrap());
    }
    read(&mut partition, &mut fleet, &later(7_220), &mut said);
    let changes = fleet.snapshot(false).unwrap();
    let names: Vec<&str> = changes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["experiment/exp", "state"]);
    kept.apply(changes);
    let mut again = Fleet::restore(&catalog, settings.pane, &kept).unwrap().fleet;
    said.decisions.iter().for_each(|decision| again.adopt(decision));
    assert!(again.views() == fleet.views(), "as it was");
}
