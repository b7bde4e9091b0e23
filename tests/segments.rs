//! Segments end to end: found where the whole is not harmed enough, shown or acted on, bounded, and the same after a restart.
#![allow(clippy::unwrap_used)] // a test that fails should say where

mod support;

use guardraild::engine::decision::{Action, LogKind, Output, Verdict};
use guardraild::engine::fleet::Fleet;
use guardraild::engine::kept::Kept;
use guardraild::engine::plan::Settings;
use guardraild::engine::state::{GuardrailState, SegmentState};
use std::fmt::Write;
use support::*;

const REGIONS: [&str; 4] = ["eu", "uk", "us", "apac"];

fn rule(act: bool, more: &str) -> String {
    format!(
        "guardrail: v1\noverview: {{experiment: exp, owner: team}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n\
         guardrails:\n  - {{metric: error_rate, max_increase: 5pp, on_breach: rollback}}\n  - {{metric: latency_p95, max_increase: 30%}}\n\
         analysis: {{correction: hierarchical, min_units: 20, segments: {{by: [region, device], top: 6, act: {act}}}}}\n\
         actions: {{mode: enforce, rollback: {{webhook: flags}}, notify: {{webhook: chat}}, confirm_within: 10m}}\n{more}\n"
    )
}

fn mixed(n: u64) -> u64 {
    let z = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 20
}

fn region(user: u64) -> &'static str {
    REGIONS[(mixed(user) % 4) as usize]
}

/// `seconds` of ten new users a second with eight requests each; `errors` is the rate of failures of a user.
fn traffic(seconds: u64, attributes: impl Fn(u64) -> String, errors: impl Fn(u64, bool) -> f64) -> Vec<String> {
    let mut all: Vec<(i64, String)> = Vec::new();
    for user in 0..seconds * 10 {
        let (at, treated) = (START + user as i64 * 100, mixed(user ^ 0xabc) % 2 == 1);
        let bucket = if treated { "treatment" } else { "control" };
        let head = |ts: i64| format!(r#"{{"ts":{ts},"tenant_id":"t","user_id":"u{user}""#);
        all.push((
            at,
            format!(r#"{},"event":"exposure","experiment":"exp","bucket":"{bucket}","attributes":{}}}"#, head(at), attributes(user)),
        ));
        for k in 0..8 {
            let (ts, dice) = (at + 50 + k * 400, mixed(user * 8 + k as u64 + 7_777_777));
            let fails = (dice % 10_000) as f64 / 10_000.0 < errors(user, treated);
            all.push((ts, format!(r#"{},"event":"request","latency_ms":{},"error":{fails}}}"#, head(ts), 100 + dice % 50)));
        }
    }
    all.sort_by_key(|(ts, _)| *ts);
    all.into_iter().map(|(_, line)| line).collect()
}

fn by_region(user: u64) -> String {
    format!(r#"{{"region":"{}","device":"{}"}}"#, region(user), if mixed(user + 9).is_multiple_of(3) { "ios" } else { "web" })
}

/// One of four regions fails: on the whole that is within the margin.
fn uk_fails(user: u64, treated: bool) -> f64 {
    if treated && region(user) == "uk" { 0.2 } else { 0.01 }
}

fn guardrail(fleet: &Fleet, name: &str) -> GuardrailState {
    fleet.close_view("exp").unwrap().guardrails.into_iter().find(|g| g.guardrail == name).unwrap()
}

fn segment<'g>(g: &'g GuardrailState, name: &str) -> &'g SegmentState {
    g.segments.iter().find(|s| s.segment == name).unwrap_or_else(|| panic!("no {name}: {:?}", g.segments))
}

#[test]
fn harm_in_one_segment_rolls_the_bucket_back_and_says_where() {
    let (said, fleet) = run(&[&rule(true, "")], &traffic(200, by_region, uk_fails));
    let mut text = String::new();
    said.decisions.iter().for_each(|d| writeln!(text, "{}", serde_json::to_string(d).unwrap()).unwrap());
    let path = "tests/golden/segment_act.decisions.jsonl";
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), text, "{path}");
    let d = &said.decisions[0];
    assert_eq!((d.segment.as_deref(), d.bucket.as_str(), d.action), (Some("region=uk"), "treatment", Action::Rollback));
    assert!(d.reason.starts_with("error_rate of treatment in region=uk is "), "{}", d.reason);
    let g = guardrail(&fleet, "error_rate");
    assert_eq!((segment(&g, "region=uk").verdict, segment(&g, "region=uk").decision.as_ref()), (Verdict::Breach, Some(&d.decision)));
    let state = fleet.views().remove(0);
    assert_eq!((state.verdict, state.go, state.stop), (Verdict::Breach, false, true));
    assert_eq!(state.guardrails[0].segments.iter().map(|s| s.segment.as_str()).next(), Some("region=uk"), "lists show breaches");
}

#[test]
fn segments_that_do_not_act_show_and_cost_nothing() {
    // After a while all regions fail.
    let lines = traffic(240, by_region, |user, treated| if treated && user > 1_600 { 0.3 } else { uk_fails(user, treated) });
    let plain = rule(false, "").replace(", segments: {by: [region, device], top: 6, act: false}", "");
    let (said, fleet) = run(&[&rule(false, "")], &lines);
    let (without, bare) = run(&[&plain], &lines);
    let ids = |said: &Said| said.decisions.iter().map(|d| (d.decision.clone(), d.decided_at, d.alpha)).collect::<Vec<_>>();
    assert_eq!(ids(&said), ids(&without), "decisions are those of a rule without segments");
    assert_eq!(guardrail(&fleet, "error_rate").log_threshold, guardrail(&bare, "error_rate").log_threshold);
    let shown: Vec<&str> = said.log.iter().filter(|l| l.kind == LogKind::Exploratory).map(|l| l.text.as_str()).collect();
    assert_eq!(shown.iter().filter(|text| text.contains("region=uk")).count(), 1, "once: {shown:?}");
    assert!(shown[0].starts_with("error_rate of treatment in region=uk is "), "{}", shown[0]);
    let g = guardrail(&fleet, "error_rate");
    let uk = segment(&g, "region=uk");
    assert_eq!((uk.verdict, uk.decision.as_ref()), (Verdict::Breach, None), "{}", uk.reason);
    assert!(uk.interval.is_some_and(|[low, _]| low > 0.05), "{uk:?}");
    assert!(bare.views()[0].guardrails[0].segments.is_empty());
    let d = said.decisions.iter().find(|d| d.guardrail == "error_rate").unwrap();
    assert!(d.reason.contains("; exploratory: also in region=uk"), "{}", d.reason);
}

#[test]
fn every_unit_is_in_one_segment_of_each_attribute_for_good() {
    let moving = |user: u64| if user.is_multiple_of(5) { "{}".to_owned() } else { by_region(user) };
    let mut lines = traffic(60, moving, |_, _| 0.05);
    // Later exposures say something else, and do not move a unit.
    let again: Vec<String> =
        lines.iter().filter(|l| l.contains("exposure")).map(|l| l.replace("\"uk\"", "\"eu\"").replace("\"web\"", "\"ios\"")).collect();
    let later = |line: String| {
        let at: i64 = line[6..19].parse().unwrap();
        line.replacen(&at.to_string(), &(at + 60_000).to_string(), 1)
    };
    lines.extend(again.into_iter().map(later));
    let (_, fleet) = run(&[&rule(false, "")], &lines);
    let g = guardrail(&fleet, "error_rate");
    let names: Vec<&str> = g.segments.iter().map(|s| s.segment.as_str()).collect();
    for wanted in ["region=other", "device=other", "region=(none)", "device=web"] {
        assert!(names.contains(&wanted), "{names:?}");
    }
    for attribute in ["region=", "device="] {
        let own = g.segments.iter().filter(|s| s.segment.starts_with(attribute));
        let sums = own.fold((0, 0, 0), |sum, s| (sum.0 + s.n, sum.1 + s.baseline_n, sum.2 + s.units));
        let state = fleet.views().remove(0);
        assert_eq!(sums, (2_400 - sums.1 + 2_400, sums.1, state.buckets[1].exposed_units), "{attribute}");
    }
}

#[test]
fn a_million_values_of_an_attribute_hide_none_that_many_have() {
    let junk = |user: u64| {
        let region = if user.is_multiple_of(2) { region(user).to_owned() } else { format!("junk-{user}") };
        format!(r#"{{"region":"{region}","device":"{}"}}"#, if mixed(user + 9).is_multiple_of(3) { "ios" } else { "web" })
    };
    let fails = |user: u64, treated: bool| if treated && user.is_multiple_of(2) && region(user) == "uk" { 0.4 } else { 0.01 };
    let catalog = catalog(&[&rule(true, "")]);
    let mut partition = Partition::new(0, &catalog, &Settings::default());
    let mut lines = traffic(400, junk, fails);
    // And a million more of another tenant in one second.
    let last: i64 = lines.last().unwrap()[6..19].parse().unwrap();
    lines.extend((0..1_000_000).map(|i| {
        format!(r#"{{"ts":{},"tenant_id":"x","user_id":"j{i}","event":"exposure","experiment":"exp","bucket":"{}","attributes":{{"region":"{i}"}}}}"#, last + 1, ["control", "treatment"][(mixed(i) % 2) as usize])
    }));
    let mut fleet = Fleet::new(&catalog, 1_000);
    let mut said = Said::default();
    for line in &lines {
        partition.read(line);
    }
    partition.aggregator.finish();
    assert!(
        partition.aggregator.dropped().iter().any(|(name, n)| *name == "segment_values" && *n > 1_000_000),
        "{:?}",
        partition.aggregator.dropped()
    );
    for emission in partition.aggregator.drain() {
        let mut out = Output::default();
        fleet.take(emission, &mut out);
        said.take(out);
    }
    assert_eq!(said.decisions[0].segment.as_deref(), Some("region=uk"), "{:?}", said.decisions);
    let g = guardrail(&fleet, "error_rate");
    assert!(g.segments.len() <= 8, "{}", g.segments.len());
    assert!(REGIONS.iter().all(|r| g.segments.iter().any(|s| s.segment == format!("region={r}"))), "{:?}", g.segments);
    let size = Kept::of(fleet.snapshot(true).unwrap()).size();
    assert!(size < 4 << 20, "{size}");
}

#[test]
fn a_restart_changes_nothing() {
    let (rule, lines) = (rule(true, ""), traffic(200, by_region, uk_fails));
    let (whole, _) = run(&[&rule], &lines);
    let (catalog, settings) = (catalog(&[&rule]), Settings::default());
    for stop in [lines.len() / 20, lines.len() / 4, lines.len() / 2] {
        let mut partition = Partition::new(0, &catalog, &settings);
        let mut fleet = Fleet::new(&catalog, settings.pane);
        let mut said = Said::default();
        let (mut kept, mut of_partition) = (Kept::default(), Kept::default());
        for (i, line) in lines.iter().enumerate() {
            partition.read(line);
            for emission in partition.aggregator.drain() {
                let mut out = Output::default();
                fleet.take(emission, &mut out);
                said.take(out);
            }
            if i % stop == stop - 1 {
                partition.aggregator = rebuilt(&mut partition.aggregator, 0, &mut of_partition, &catalog, &settings);
                fleet = restarted(&mut fleet, &mut kept, &catalog, &settings);
                said.decisions.iter().for_each(|d| fleet.adopt(d));
            }
        }
        partition.aggregator.finish();
        for emission in partition.aggregator.drain() {
            let mut out = Output::default();
            fleet.take(emission, &mut out);
            said.take(out);
        }
        assert_eq!(said.lines(), whole.lines(), "restarted every {stop} records");
    }
}

#[test]
fn a_wrong_sample_ratio_of_a_segment_holds_its_comparisons_alone() {
    // Half of the treatment's users in one region are lost.
    let lost = |line: &String| {
        let user: u64 = line.split("\"u").nth(2).and_then(|rest| rest.split('"').next()).and_then(|n| n.parse().ok()).unwrap();
        region(user) == "uk" && mixed(user ^ 0xabc) % 2 == 1 && mixed(user + 3).is_multiple_of(2)
    };
    let late = |user: u64, treated: bool| if user > 2_000 { uk_fails(user, treated) } else { 0.01 };
    let lines: Vec<String> = traffic(300, by_region, late).into_iter().filter(|line| !lost(line)).collect();
    let (said, fleet) = run(&[&rule(true, "quality: {srm: {alpha: 0.001, do: notify}}")], &lines);
    let view = fleet.close_view("exp").unwrap();
    let srm = view.quality.iter().find(|q| q.check == "srm").unwrap();
    let part = srm.parts.iter().find(|p| p.part == "region=uk").unwrap();
    assert_eq!(part.verdict, Verdict::Breach, "{part:?}");
    assert!(part.reason.contains("exposed units"), "{}", part.reason);
    assert!(said.decisions.iter().all(|d| d.segment.as_deref() != Some("region=uk")), "{:?}", said.decisions);
    let g = view.guardrails.iter().find(|g| g.guardrail == "error_rate").unwrap();
    assert!(segment(g, "region=uk").reason.contains("sample ratio of the segment"), "{}", segment(g, "region=uk").reason);
    assert!(!segment(g, "region=eu").reason.contains("sample ratio"), "{}", segment(g, "region=eu").reason);
}

#[test]
fn stamped_records_count_for_the_attributes_that_they_carry() {
    let lines: Vec<String> = traffic(200, by_region, uk_fails)
        .into_iter()
        .filter(|line| line.contains("request"))
        .map(|line| {
            let user: u64 = line.split("\"u").nth(2).and_then(|rest| rest.split('"').next()).and_then(|n| n.parse().ok()).unwrap();
            let bucket = if mixed(user ^ 0xabc) % 2 == 1 { "treatment" } else { "control" };
            line.replace("\"event\"", &format!(r#""experiment":"exp","bucket":"{bucket}","attributes":{},"event""#, by_region(user)))
        })
        .collect();
    let (said, _) = run(&[&rule(true, "")], &lines);
    assert!(said.decisions.iter().any(|d| d.segment.as_deref() == Some("region=uk")), "{:?}", said.decisions);
}
