//! What must have come of a world.

use super::network::Seen;
use super::plan::{Answer, MAX_FUTURE, Plan, START, TOPICS};
use super::process::settings;
use super::{AFTERMATH, Outcome};
use guardraild::delivery::Router;
use guardraild::engine::aggregate::Aggregator;
use guardraild::engine::decision::{Action, Decision, LogKind, LogQuery, Mode, Output, Verdict};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::outcome::Counts;
use guardraild::engine::time::Millis;
use guardraild::ingest::decode::Limits;
use guardraild::ingest::mapped::{Layouts, Reader};
use guardraild::live::View;
use guardraild::rules::{Candidate, Loaded, RuleSet, assemble_plain};
use guardraild::store::{DeliveryRecord, DeliveryState, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is left of a world.
pub struct Evidence<'a> {
    pub plan: &'a Plan,
    pub rules: &'a BTreeMap<String, Arc<RuleSet>>,
    pub store: &'a Store,
    pub view: &'a View,
    pub seen: &'a BTreeMap<String, Seen>,
    /// Decisions that operators were told of.
    pub accepted: &'a [String],
}

/// What a run without faults says: the engine alone, partition by partition.
struct Expected {
    /// By id.
    decisions: BTreeMap<String, Decision>,
    /// Experiment, time and text of notices and log entries.
    said: BTreeSet<(String, Millis, String)>,
    counts: BTreeMap<i32, Counts>,
}

fn expected(plan: &Plan) -> Expected {
    let candidates = plan.rules.iter().map(|rule| Candidate { file: format!("{}.yaml", rule.name), text: Ok(rule.text.clone()) });
    let Loaded { catalog, diagnostics, refused, .. } = assemble_plain(candidates.collect());
    assert!(refused == 0, "{diagnostics:?}");
    let (catalog, settings) = (Arc::new(catalog), settings(plan));
    let mut fleet = Fleet::new(&catalog, settings.pane).sharing(&settings.shared_cause).braking(&settings.blast_radius);
    (0..plan.partitions).for_each(|partition| fleet.assigned(partition));
    let (mut out, mut counts) = (Output::default(), BTreeMap::new());
    for partition in 0..plan.partitions {
        let mut reader = Reader::new(&TOPICS.map(str::to_owned), &Layouts::default(), &catalog.fields, Limits::default());
        let mut aggregator = Aggregator::new(partition, Arc::clone(&catalog), settings.clone());
        let logs = [0, 1].map(|topic| plan.logs[topic][partition as usize].iter().map(move |record| (record.at, topic, &record.payload)));
        let mut merged: Vec<_> = logs.into_iter().flatten().collect();
        merged.sort_by_key(|(at, topic, _)| (*at, *topic));
        for (at, topic, payload) in merged {
            reader.book(topic, payload, START + at + MAX_FUTURE, &mut aggregator);
            aggregator.drain().into_iter().for_each(|emission| fleet.take(emission, &mut out));
        }
        // No pane but those of before is judged any more.
        aggregator.advance(START + plan.end + 2 * AFTERMATH);
        aggregator.drain().into_iter().for_each(|emission| fleet.take(emission, &mut out));
        counts.insert(partition, aggregator.counts().clone());
    }
    let cutoff = START + plan.end + AFTERMATH;
    let decisions = out.decisions.into_iter().filter(|d| d.decided_at <= cutoff);
    let decisions = decisions.map(|d| (d.decision.clone(), d));
    let notices = out.notices.into_iter().map(|n| (n.decision.experiment, n.at, n.text));
    let log = out.log.into_iter().filter(|entry| entry.kind != LogKind::Decision).map(|entry| (entry.experiment, entry.at, entry.text));
    let said = notices.chain(log).filter(|(_, at, _)| *at <= cutoff).collect();
    Expected { decisions: decisions.collect(), said, counts }
}

/// Adds what is wrong.
pub fn check(evidence: &Evidence<'_>, outcome: &mut Outcome) {
    let stored: Vec<Decision> =
        evidence.store.decisions_after(0).unwrap().iter().map(|d| serde_json::from_str(d.body.get()).unwrap()).collect();
    let faults = &mut outcome.violations;
    counted(evidence, faults);
    if evidence.plan.exact {
        decided(evidence, &stored, &expected(evidence.plan), faults);
    }
    braked(evidence.plan, &stored, faults);
    let mut rows = BTreeMap::new();
    for decision in &stored {
        let deliveries = evidence.store.deliveries(&decision.decision).unwrap();
        told(evidence, decision, &deliveries, faults);
        rows.extend(deliveries.into_iter().map(|row| (row.delivery.id.clone(), row)));
    }
    for id in evidence.accepted.iter().filter(|id| !stored.iter().any(|d| d.decision == **id)) {
        faults.push(format!("an operator was told of {id}, and it is lost"));
    }
    received(&rows, evidence.seen, faults);
    outcome.records = evidence.plan.records();
    (outcome.decisions, outcome.deliveries) = (stored.len() as u64, rows.len() as u64);
    outcome.requests = evidence.seen.values().map(|seen| u64::from(seen.requests)).sum();
}

/// Every record under one outcome: offsets have moved with the state that reflects them.
fn counted(evidence: &Evidence<'_>, faults: &mut Vec<String>) {
    for partition in 0..evidence.plan.partitions {
        let produced: u64 = evidence.plan.logs.iter().map(|topic| topic[partition as usize].len() as u64).sum();
        let view = evidence.view.partitions.iter().find(|p| p.partition == partition);
        let counted = view.map_or(0, |p| p.counts.records());
        if counted != produced {
            faults.push(format!("partition {partition} has {produced} records, of which {counted} are counted"));
        }
    }
}

/// The decisions of a run without faults, no more and no fewer; and what is said and counted.
fn decided(evidence: &Evidence<'_>, stored: &[Decision], expected: &Expected, faults: &mut Vec<String>) {
    let plan = evidence.plan;
    // A rule that becomes another one does so at some time: what hangs on all experiments, a shared cause and the blast radius, hangs on when.
    let alone = plan.renews();
    let comparable = |d: &Decision| match d.experiment.is_empty() {
        true => !alone && !HASTY.contains(&d.guardrail.as_str()),
        false => plan.unchanged(&d.experiment),
    };
    let cutoff = START + plan.end + AFTERMATH;
    let mut found = BTreeSet::new();
    for decision in stored.iter().filter(|d| d.decided_at <= cutoff && comparable(d)) {
        found.insert(&decision.decision);
        let text_of = promised(plan, decision);
        match expected.decisions.get(&decision.decision).map(|wanted| promised(plan, wanted)) {
            None => faults.push(format!("decided though a run without faults does not: {text_of}")),
            Some(wanted) if wanted != text_of => faults.push(format!("decided\n  {text_of}, without faults\n  {wanted}")),
            Some(_) => {}
        }
    }
    for decision in expected.decisions.values().filter(|d| comparable(d) && !found.contains(&d.decision)) {
        faults.push(format!("not decided: {}", promised(plan, decision)));
    }
    for rule in plan.rules.iter().filter(|rule| plan.unchanged(&rule.name)) {
        // A change of words that changes nothing is in the log, too.
        let kinds = [LogKind::Delivery, LogKind::Decision, LogKind::Rules];
        let log = evidence
            .store
            .log(&rule.name, &LogQuery::first(100_000))
            .unwrap()
            .into_iter()
            .map(|l| l.entry)
            .filter(|e| !kinds.contains(&e.kind) && e.at <= cutoff);
        let said: BTreeSet<_> = log.map(|entry| (entry.experiment, entry.at, entry.text)).collect();
        let wanted: BTreeSet<_> = expected.said.iter().filter(|(experiment, ..)| *experiment == rule.name).cloned().collect();
        if said != wanted {
            faults.push(format!(
                "{} says {:?}, without faults {:?}",
                rule.name,
                said.difference(&wanted).next(),
                wanted.difference(&said).next()
            ));
        }
    }
    for partition in &evidence.view.partitions {
        let [counts, wanted] = [&partition.counts, &expected.counts[&partition.partition]].map(|counts| match alone {
            // Units of an experiment that begins anew have not been exposed yet, so their events count for nothing: how many, hangs on when.
            true => Counts { accepted: 0, waiting: 0, unattributed: 0, ..counts.clone() },
            false => counts.clone(),
        });
        if counts != wanted {
            faults.push(format!("partition {}: counts are {counts:?}, without faults {wanted:?}", partition.partition));
        }
    }
}

/// The machine rolls back no more by itself than it may, whatever happens.
fn braked(plan: &Plan, stored: &[Decision], faults: &mut Vec<String>) {
    let radius = settings(plan).blast_radius;
    let by_itself = |d: &&Decision| d.author.is_none() && !d.is_follow_up() && d.action == Action::Rollback && d.mode == Mode::Enforce;
    let done: Vec<&Decision> = stored.iter().filter(by_itself).filter(|d| d.covered_by.is_none() && d.held_by.is_none()).collect();
    for last in &done {
        let recent = done.iter().filter(|d| d.decided_at <= last.decided_at && d.decided_at > last.decided_at - radius.within);
        let experiments: BTreeSet<&str> = recent.map(|d| d.experiment.as_str()).collect();
        if radius.experiments > 0 && experiments.len() > radius.experiments {
            faults.push(format!("rolled back without a person within {} ms: {experiments:?}", radius.within));
        }
    }
    for rule in plan.rules.iter().filter(|rule| plan.unchanged(&rule.name) && rule.text.contains("rate_limit")) {
        let rollbacks = done.iter().filter(|d| d.experiment == rule.name).count();
        if rollbacks > 1 {
            faults.push(format!("{} was rolled back {rollbacks} times without a person, once is its limit", rule.name));
        }
    }
}

/// Of what single events decide before their panes are judged.
const HASTY: [&str; 2] = ["compliance_flags", "ineligible"];

/// As much of a decision as is promised. What one that runs ahead of its pane says of its event and of the moment depends on who was heard
/// first; so does what is sent of decisions that were close to it.
fn promised(plan: &Plan, decision: &Decision) -> String {
    let mut decision = decision.clone();
    if plan.renews() || plan.hasty {
        (decision.held_by, decision.reason) = (None, decision.reason.split("; held back").next().unwrap_or_default().to_owned());
    }
    decision.shared_cause.take_if(|_| plan.renews());
    decision.covered_by.take_if(|_| plan.hasty);
    if HASTY.contains(&decision.guardrail.as_str()) && !decision.is_follow_up() {
        (decision.decided_at, decision.since) = (0, 0);
        (decision.phase, decision.exposed_units) = (0, 0);
        (decision.reason, decision.shared_cause) = (String::new(), None);
    }
    serde_json::to_string(&decision).unwrap()
}

/// A decision has one entry of the log, and the deliveries that its rule asks for, each of which has come to an end.
fn told(evidence: &Evidence<'_>, decision: &Decision, rows: &[DeliveryRecord], faults: &mut Vec<String>) {
    let id = &decision.decision;
    let log = evidence.store.log(&decision.experiment, &LogQuery::first(100_000)).unwrap();
    let entries = log.iter().filter(|l| l.entry.kind == LogKind::Decision && l.entry.decision.as_ref() == Some(id)).count();
    if entries != 1 {
        faults.push(format!("{id} has {entries} entries in the log"));
    }
    let rules = evidence.rules;
    let wanted = match rules.get(&decision.experiment) {
        Some(rule) if rule.plan.revision == decision.revision => Router::default().decision(rule, decision, None),
        Some(_) => Vec::new(),
        // Who was told of a shared cause, or of an experiment that has left, hangs on the rules of then.
        None if !decision.experiment.is_empty() || evidence.plan.renews() || rules.len() < evidence.plan.rules.len() => Vec::new(),
        None => Router::default().shared(rules, decision, None),
    };
    for delivery in wanted {
        if evidence.store.delivery(&delivery.id).unwrap().is_none() {
            faults.push(format!("{id} asks for the delivery {}, which is not there", delivery.id));
        }
    }
    for row in rows {
        if row.delivery.state == DeliveryState::Pending {
            faults.push(format!("{} still waits", row.delivery.id));
        }
        if !row.history.iter().zip(1..).all(|(attempt, n)| attempt.n == n) {
            faults.push(format!("{} has attempts {:?}", row.delivery.id, row.history.iter().map(|a| a.n).collect::<Vec<_>>()));
        }
        if row.delivery.state == DeliveryState::Dead && row.delivery.last_error.is_none() {
            faults.push(format!("{} was given up, and nobody knows why", row.delivery.id));
        }
    }
}

/// What receivers know against what the store knows.
pub fn received(rows: &BTreeMap<String, DeliveryRecord>, seen: &BTreeMap<String, Seen>, faults: &mut Vec<String>) {
    for (id, seen) in seen {
        match rows.get(id) {
            None => faults.push(format!("{id} was received {} times, and has no row", seen.requests)),
            Some(row) if u64::from(seen.requests) > row.history.len() as u64 + u64::from(seen.unrecorded) => {
                faults.push(format!("{id} was received {} times in {} attempts", seen.requests, row.history.len()));
            }
            Some(_) => {}
        }
    }
    for (id, _) in rows.iter().filter(|(_, row)| row.delivery.state == DeliveryState::Delivered) {
        if seen.get(id).is_none_or(|seen| seen.acknowledged == 0) {
            faults.push(format!("{id} counts as delivered, and nobody has it"));
        }
    }
}

/// Missing or stale data is never safe.
pub fn looks_safe_without_data(view: &View, rules: &BTreeMap<String, Arc<RuleSet>>) -> Option<String> {
    view.experiments.iter().find_map(|experiment| {
        let silence = rules.get(&experiment.experiment)?.plan.quality.iter().any(|check| check.kind.name() == "silence");
        let stale = match (experiment.last_record, experiment.judged_to) {
            (Some(last), Some(judged)) => silence && judged - last > 25_000,
            _ => true,
        };
        let safe = experiment.verdict == Verdict::Safe || experiment.go;
        (safe && stale).then(|| format!("{} is {:?} without fresh data", experiment.experiment, experiment.verdict))
    })
}

/// The row of the table that an endpoint's fault counts in.
pub fn webhook_fault(answer: Answer) -> &'static str {
    match answer {
        Answer::Status(410) => "webhook: 410",
        Answer::Status(302) => "webhook: redirect",
        Answer::Status(404) => "webhook: 4xx",
        Answer::Status(_) => "webhook: 5xx",
        Answer::RetryAfter(429, _) => "webhook: 429 with Retry-After",
        Answer::RetryAfter(..) => "webhook: 503 with Retry-After",
        Answer::TimeOut { acted: true } => "webhook: no answer, acted",
        Answer::TimeOut { acted: false } => "webhook: no answer",
        Answer::Lost { acted: true } => "webhook: answer lost, acted",
        Answer::Lost { acted: false } => "webhook: connection refused",
        Answer::Late => "webhook: late answer",
        Answer::Overdue => "webhook: answer after its time",
    }
}
