//! Rules that change while experiments run: what is unchanged goes on, what is asked anew begins anew, in memory as after a restart.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::engine::aggregate::Aggregator;
use guardraild::engine::decision::{Decision, Evidence, NoticeKind, Output, Verdict};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::Kept;
use guardraild::engine::outcome::Outcome;
use guardraild::engine::plan::{Catalog, Settings};
use guardraild::engine::state::GuardrailState;
use std::sync::Arc;
use support::*;

/// One partition and its fleet, whose rules can be changed.
struct Rig {
    partition: Partition,
    fleet: Fleet,
    said: Said,
    /// What the checkpoints of fleet and partition hold.
    kept: [Kept; 2],
}

impl Rig {
    fn new(rules: &[&str]) -> Rig {
        let (catalog, settings) = (catalog(rules), Settings::default());
        let mut fleet = Fleet::new(&catalog, settings.pane);
        fleet.assigned(0);
        Rig { partition: Partition::new(0, &catalog, &settings), fleet, said: Said::default(), kept: Default::default() }
    }

    fn read(&mut self, lines: &[String]) -> Vec<Outcome> {
        let outcomes = lines.iter().map(|line| self.partition.read(line)).collect();
        for emission in self.partition.aggregator.drain() {
            let mut out = Output::default();
            self.fleet.take(emission, &mut out);
            self.said.take(out);
        }
        outcomes
    }

    fn checkpoint(&mut self) {
        self.kept[0].apply(self.fleet.snapshot(false).unwrap());
        self.kept[1].apply(self.partition.aggregator.snapshot().unwrap());
    }

    /// Changes the rules in memory; or, `by_restart`, starts again with them.
    fn reload(&mut self, rules: &[&str], by_restart: bool) {
        let (catalog, settings): (Catalog, _) = (catalog(rules), Settings::default());
        let mut out = Output::default();
        self.checkpoint();
        if by_restart {
            self.fleet = Fleet::restore(&catalog, settings.pane, &self.kept[0]).unwrap().fleet;
            self.fleet.assigned(0);
            self.said.decisions.iter().for_each(|d| self.fleet.adopt(d));
        } else {
            self.fleet.reload(&catalog, START, &mut out).unwrap();
        }
        self.said.take(out);
        // A reader of the new fields, too.
        let mut partition = Partition::new(0, &catalog, &settings);
        let catalog = Arc::new(catalog);
        partition.aggregator = match by_restart {
            true => Aggregator::restore(0, catalog, settings, &self.kept[1]).unwrap(),
            false => {
                let mut own = std::mem::replace(&mut self.partition, Partition::new(0, &catalog, &settings)).aggregator;
                own.reload(catalog).unwrap();
                own
            }
        };
        self.partition = partition;
    }

    fn guardrail(&self, name: &str) -> GuardrailState {
        let view = self.fleet.close_view("exp").unwrap();
        view.guardrails.into_iter().find(|g| g.guardrail == name && g.bucket == "treatment").unwrap()
    }

    fn decisions(&self, guardrail: &str) -> Vec<&Decision> {
        self.said.decisions.iter().filter(|d| d.guardrail == guardrail).collect()
    }
}

fn rule(experiment: &str, guardrails: &str) -> String {
    format!(
        "guardrail: v1
overview: {{experiment: {experiment}, owner: team}}
buckets: {{control: {{baseline: true}}, treatment: {{}}}}
metrics:
  spend: {{kind: mean, event: outcome, where: {{metric: basket}}, value: /value, unit: user, better: up}}
  buyers: {{kind: rate, event: outcome, where: {{metric: basket}}, value: /value, unit: user, better: up}}
guardrails:
{guardrails}
analysis: {{correction: bonferroni, min_units: 2}}
actions: {{mode: enforce, rollback: {{webhook: flags}}, pause: {{webhook: ramp}}, kill: {{webhook: flags}}, page: {{webhook: pager}}, notify: {{webhook: chat}}}}
quality: {{silence: off}}
"
    )
}

const MANY: &str = "  - {metric: latency_p95, window: 1m, limit: 200ms, on_breach: notify}
  - {metric: tickets, window: 30s, limit: 0.9, on_breach: notify}
  - {metric: spend, max_increase: 0%, on_breach: notify}
  - {metric: buyers, max_increase: 0%, on_breach: notify}
  - {metric: latency_p90, max_increase: 50%, on_breach: notify}
  - {metric: error_rate, max_increase: 1pp, on_breach: notify}";

/// A minute and more of users who come, look, and buy: later in treatment they buy less, and pages are slow.
fn traffic(from: u32, to: u32) -> Vec<String> {
    let of = |user: u32| {
        let (ms, bucket) = (i64::from(user) * 40, bucket_of(user));
        let worse = bucket == "treatment" && user > 2_500;
        let slow = if worse { 300.0 } else { 90.0 } + f64::from(user % 37);
        let buys = user % 5 < if worse { 1 } else { 2 };
        let fails = bucket == "treatment" && user.is_multiple_of(9);
        let bought = format!(r#","metric":"basket","value":{}"#, u32::from(buys) * (user % 17));
        [
            exposure(ms, user, "exp", bucket),
            request(ms + 10, user, slow, fails),
            unit_event("outcome", ms + 20, user, &bought),
            request(ms + 30, user / 2 * 2 + user % 2, slow, false),
        ]
    };
    (from..to).flat_map(of).collect()
}

#[test]
fn what_is_unchanged_decides_as_if_nothing_had_been_reloaded() {
    let (before, after) = (rule("exp", MANY), rule("exp", &MANY.replace("limit: 0.9", "limit: 0.5")));
    // It stands before `exp`, and its fields before those of `exp`.
    let added = rule("another", "  - {metric: spend, max_increase: 3%}").replace("/value", "/other");
    let mut plain = Rig::new(&[&before]);
    plain.read(&traffic(0, 6_000));
    let unchanged = |rig: &Rig| -> Vec<String> {
        let decisions = rig.said.decisions.iter().filter(|d| d.guardrail != "tickets").map(|d| serde_json::to_string(d).unwrap());
        let views = ["latency_p95", "spend", "buyers", "latency_p90", "error_rate"].map(|name| format!("{:?}", rig.guardrail(name)));
        decisions.chain(views).collect()
    };
    let expected = unchanged(&plain);
    assert!(expected.len() >= 9, "at least four decisions: {expected:#?}");
    for by_restart in [false, true] {
        let mut rig = Rig::new(&[&before]);
        rig.read(&traffic(0, 2_000));
        rig.reload(&[&added, &after], by_restart);
        rig.read(&traffic(2_000, 4_000));
        rig.reload(&[&after], by_restart);
        rig.read(&traffic(4_000, 6_000));
        assert_eq!(unchanged(&rig), expected, "by restart: {by_restart}");
        assert_eq!(rig.partition.aggregator.counts(), plain.partition.aggregator.counts());
    }
}

#[test]
fn a_margin_that_is_tightened_begins_anew_and_its_neighbour_on_the_same_metric_does_not() {
    // Events that name their bucket and no unit: one in ten fails in treatment, none in control.
    let events = |from: i64, to: i64| -> Vec<String> {
        let line = |i: i64| {
            let (bucket, failed) = (bucket_of(i as u32), i % 2 == 1 && i % 20 < 2);
            format!(
                r#"{{"event":"request","ts":{},"experiment":"exp","bucket":"{bucket}","latency_ms":9,"error":{failed}}}"#,
                START + i * 20
            )
        };
        (from..to).map(line).collect()
    };
    let rules = |margin: &str| {
        rule(
            "exp",
            &format!(
                "  - {{metric: error_rate, max_increase: {margin}, on_breach: notify}}\n  - {{metric: error_rate, max_increase: 40pp, on_breach: page}}"
            ),
        )
    };
    for by_restart in [false, true] {
        let mut rig = Rig::new(&[&rules("30pp")]);
        rig.read(&events(0, 20_000));
        let neighbour = rig.guardrail("error_rate#2").n;
        assert!(rig.said.decisions.is_empty() && neighbour > 0);
        rig.reload(&[&rules("2pp")], by_restart);
        assert!(rig.guardrail("error_rate").log_e_value.unwrap_or(0.0) <= 0.0, "{:?}", rig.guardrail("error_rate"));
        rig.read(&events(20_000, 20_100));
        assert!(rig.said.decisions.is_empty(), "what was seen before proves nothing");
        rig.read(&events(20_100, 30_000));
        let [decision] = rig.decisions("error_rate")[..] else { panic!("{:?}", rig.said.decisions) };
        let Evidence::Rates { strata, .. } = &decision.evidence else { panic!("{decision:?}") };
        let n: f64 = strata.iter().map(|s| s.n_t + s.n_c).sum();
        assert!(n < 10_000.0, "{n} requests have come since");
        assert!(decision.since >= START + 20_000 * 20);
    }
}

#[test]
fn a_metric_of_units_that_is_added_counts_the_units_that_come_afterwards() {
    let (before, after) = (
        "  - {metric: error_rate, limit: 90%}",
        "  - {metric: error_rate, limit: 90%}\n  - {metric: buyers, max_increase: 0%, on_breach: notify}",
    );
    for by_restart in [false, true] {
        let mut rig = Rig::new(&[&rule("exp", before)]);
        rig.read(&traffic(0, 1_000));
        rig.reload(&[&rule("exp", after)], by_restart);
        // Users of before buy, too.
        let old: Vec<String> = (0..1_000).map(|user| unit_event("outcome", 40_000, user, r#","metric":"basket","value":3"#)).collect();
        let outcomes = rig.read(&old);
        assert!(outcomes.iter().all(|o| *o == Outcome::Accepted), "they are still known");
        rig.read(&traffic(1_000, 2_000));
        let state = rig.guardrail("buyers");
        assert!(state.n > 300 && state.n < 500, "{state:?}");
        assert!(state.bucket_value.unwrap() <= 0.41, "{state:?}");
    }
}

#[test]
fn a_new_revision_arms_anew_and_says_so() {
    let limit = "  - {metric: latency_p95, window: 1m, limit: 80ms}";
    let mut rig = Rig::new(&[&rule("exp", limit)]);
    rig.read(&traffic(0, 500));
    assert_eq!(rig.said.decisions.len(), 1);
    rig.reload(&[&rule("exp", limit)], false);
    rig.read(&traffic(500, 900));
    assert_eq!((rig.said.decisions.len(), rig.said.notices.len()), (1, 0), "the same rules again");
    let renewed = rule("exp", limit).replacen("guardrail: v1", "guardrail: v1\nrevision: 2", 1);
    rig.reload(&[&renewed], false);
    let [notice] = &rig.said.notices[..] else { panic!("{:?}", rig.said.notices) };
    assert_eq!((notice.kind, notice.text.as_str()), (NoticeKind::Resolved, "latency_p95 of exp re-armed by revision 2"));
    rig.read(&traffic(900, 1_400));
    assert_eq!(rig.said.decisions.iter().map(|d| d.revision).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(rig.guardrail("latency_p95").verdict, Verdict::Breach);
}

#[test]
fn an_experiment_that_was_removed_begins_anew_when_it_comes_back() {
    let (one, other) = (rule("exp", MANY), rule("other", MANY));
    let ask = [request(90_000, 7, 10.0, false)];
    let mut said = Vec::new();
    for by_restart in [[false, false], [false, true], [true, false], [true, true]] {
        let mut rig = Rig::new(&[&one, &other]);
        rig.read(&traffic(0, 1_000));
        rig.checkpoint();
        rig.reload(&[&other], by_restart[0]);
        assert_eq!(rig.partition.aggregator.assignments(), 0);
        assert_eq!(rig.read(&[exposure(80_000, 8, "exp", "control")]), [Outcome::UnknownExperiment]);
        rig.reload(&[&one, &other], by_restart[1]);
        assert_eq!((rig.partition.aggregator.assignments(), rig.guardrail("error_rate").n), (0, 0));
        said.push((rig.read(&ask), rig.partition.aggregator.counts().clone()));
    }
    assert_eq!(said[0].0, [Outcome::Waiting]);
    assert!(said.iter().all(|s| *s == said[0]), "{said:#?}");
}

#[test]
fn a_decision_in_force_outlives_a_change_of_its_guardrail() {
    let mut rig = Rig::new(&[&rule("exp", "  - {metric: latency_p95, window: 1m, limit: 80ms}")]);
    rig.read(&traffic(0, 500));
    rig.reload(&[&rule("exp", "  - {metric: latency_p95, window: 1m, limit: 70ms}")], false);
    rig.read(&traffic(500, 1_000));
    assert_eq!(rig.decisions("latency_p95").len(), 1, "once for each bucket and revision");
    assert_eq!(rig.guardrail("latency_p95").verdict, Verdict::Breach);
}
