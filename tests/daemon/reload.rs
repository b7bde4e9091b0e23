//! Rule files that change under the running daemon: mounted directories that are swapped, signals, the API, bad files, crashes.

use super::harness::{Daemon, Hook, Kafka, OPERATOR, READER, Site, holds, one_topic, until};
use super::stream::{EXPERIMENT, Service, rule};
use serde_json::Value;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

const QUICK: [&str; 2] = ["reload.every=1s", "engine.idle_after=1h"];
const SLOW: [&str; 2] = ["reload.every=1h", "engine.idle_after=1h"];

/// The file's entry in `/api/v1/rules`.
fn file(daemon: &mut Daemon, name: &str) -> Value {
    let files = daemon.json("/api/v1/rules")["files"].as_array().unwrap().clone();
    files.into_iter().find(|f| f["file"].as_str().unwrap().ends_with(name)).unwrap_or_default()
}

fn reload(daemon: &mut Daemon, query: &str) -> (u16, Value) {
    daemon.post(&format!("/-/reload{query}"), Some(OPERATOR), "")
}

fn write(site: &Site, name: &str, text: &str) {
    std::fs::write(site.path("rules").join(name), text).unwrap();
}

/// As kubelet mounts a ConfigMap: names link to `..data`, which links to a directory of this version, and is replaced by renaming.
fn swap(rules: &Path, version: &str, files: &[(&str, String)]) {
    let inside = format!("..{version}");
    std::fs::create_dir_all(rules.join(&inside)).unwrap();
    for (name, text) in files {
        std::fs::write(rules.join(&inside).join(name), text).unwrap();
    }
    symlink(&inside, rules.join("..data_tmp")).unwrap();
    std::fs::rename(rules.join("..data_tmp"), rules.join("..data")).unwrap();
    for (name, _) in files {
        let _ = symlink(Path::new("..data").join(name), rules.join(name));
    }
    let stale = |entry: &std::fs::DirEntry| entry.path().is_symlink() && !entry.path().exists();
    std::fs::read_dir(rules).unwrap().flatten().filter(stale).for_each(|e| std::fs::remove_file(e.path()).unwrap());
}

#[test]
fn a_mounted_directory_that_is_swapped_is_taken_up_and_a_bad_file_keeps_what_it_had() {
    let kafka = Kafka::start(&["all"], 1);
    let site = Site::new(&one_topic(&kafka, "all"), &Hook::ok(), &[]);
    let (rules, first) = (site.path("rules"), rule(EXPERIMENT, "enforce"));
    swap(&rules, "1", &[("rule.yaml", first.clone())]);
    let mut daemon = site.start(&QUICK);
    daemon.ready();
    // Of whole seconds, as panes are.
    let start = guardraild::clock::now() / 1_000 * 1_000 - 60_000;
    kafka.write("all", &Service::healthy(start).records(0, 5_000));
    daemon.until_records(1_000);
    // The last pane is open.
    holds("four panes are judged", || daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}"))["records"] == 800);

    let tighter = first.replace("500ms", "400ms");
    swap(&rules, "2", &[("rule.yaml", tighter.clone()), ("other.yaml", rule("other", "observe"))]);
    holds("the other experiment is there", || daemon.get("/api/v1/experiments/other").0 == 200);
    let kept_back = "mode is `observe`, so that rollback by `";
    assert!(file(&mut daemon, "other.yaml")["warnings"][0].as_str().unwrap().contains(kept_back));
    assert_eq!(daemon.log().iter().filter(|line| line.contains("WARN") && line.contains(kept_back)).count(), 1, "told once");
    let entry = until("the log tells of the change", || {
        daemon.log_of(EXPERIMENT).into_iter().find(|e| e["text"].as_str().unwrap().contains("400ms"))
    });
    assert_eq!(entry["kind"], "rules");
    assert!(entry["text"].as_str().unwrap().ends_with("guardrails.latency_p95.limit: 500ms -> 400ms"), "{entry}");
    // A close look may be a moment old.
    let limit = |daemon: &mut Daemon, limit: f64| {
        let state = daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}"));
        state["records"] == 800 && state["guardrails"][0]["limit"] == limit
    };
    holds("evidence is kept, under the new limit", || limit(&mut daemon, 400.0));

    swap(&rules, "3", &[("rule.yaml", tighter.replace("400ms", "400")), ("other.yaml", rule("other", "enforce"))]);
    holds("the good file is taken up", || daemon.json("/api/v1/experiments/other")["mode"] == "enforce");
    assert_eq!(file(&mut daemon, "other.yaml")["warnings"], Value::Null);
    let stale = file(&mut daemon, "rule.yaml");
    assert_eq!((&stale["state"], &stale["experiment"]), (&"stale".into(), &EXPERIMENT.into()), "{stale}");
    assert!(stale["faults"][0].as_str().unwrap().contains("rule.yaml:5:"), "{stale}");
    assert!(limit(&mut daemon, 400.0));
    holds("readiness tells of it, and stays", || {
        let (status, checks) = daemon.get("/readyz?verbose");
        status == 200 && checks.lines().any(|l| l.starts_with("[+] rules: 1 of 2 files are not in force as they are"))
    });
    assert!(daemon.get("/metrics").1.contains("guardraild_rule_files{state=\"stale\"} 1"));
    daemon.kill();

    let mut daemon = site.start(&QUICK);
    daemon.ready();
    let state = daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}"));
    assert_eq!(
        (&state["records"], &state["guardrails"][0]["limit"]),
        (&800.into(), &400.0.into()),
        "the last good text outlives the process"
    );
    swap(&rules, "4", &[("other.yaml", rule("other", "enforce"))]);
    holds("an experiment leaves with its file", || daemon.get(&format!("/api/v1/experiments/{EXPERIMENT}")).0 == 404);
    assert!(daemon.log_of(EXPERIMENT).iter().any(|e| e["text"].as_str().unwrap().starts_with("rules removed")));
    std::fs::remove_file(rules.join("..data")).unwrap();
    holds("a link into nothing is stale", || file(&mut daemon, "other.yaml")["state"] == "stale");
    std::fs::remove_file(rules.join("other.yaml")).unwrap();
    holds("an empty directory is no wish", || daemon.logged("no rule file is there"));
    assert_eq!(daemon.get("/api/v1/experiments/other").0, 200);
}

#[test]
fn a_signal_and_the_api_reload_and_a_live_rule_is_loosened_by_a_new_revision_alone() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let first = rule(EXPERIMENT, "enforce");
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", first.clone())]);
    let mut daemon = site.start(&SLOW);
    daemon.ready();
    let limit = |daemon: &mut Daemon| daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}"))["guardrails"][0]["limit"].clone();

    write(&site, "rule.yaml", &first.replace("500ms", "600ms"));
    assert_eq!(reload(&mut daemon, "").0, 200, "nothing has come yet: it is not live");
    holds("a wider limit", || limit(&mut daemon) == 600.0);
    let start = guardraild::clock::now() - 100_000;
    let service = Service { slow_from: 10_000, ..Service::healthy(start) };
    kafka.write("all", &service.records(0, 9_000));
    daemon.until_records(1_800);

    assert_eq!(daemon.post("/-/reload", None, "").0, 401);
    assert_eq!(daemon.post("/-/reload", Some(READER), "").0, 403);
    write(&site, "rule.yaml", &first.replace("500ms", "700ms"));
    let (status, report) = reload(&mut daemon, "?dry_run=true");
    assert_eq!(status, 409, "{report}");
    let (status, report) = reload(&mut daemon, "");
    assert_eq!((status, &report["files"][0]["state"]), (409, &"stale".into()), "{report}");
    let fault = report["files"][0]["faults"][0].as_str().unwrap();
    assert!(fault.contains("rule.yaml:5:") && fault.contains("GR2803") && fault.contains("was 600ms in revision 1"), "{fault}");
    assert_eq!(limit(&mut daemon), 600.0);

    write(&site, "rule.yaml", &first.replace("500ms", "550ms"));
    let (status, report) = reload(&mut daemon, "?dry_run=true");
    assert_eq!((status, limit(&mut daemon)), (200, 600.0.into()));
    assert_eq!(report["changes"][0]["lines"][0], "guardrails.latency_p95.limit: 600ms -> 550ms", "{report}");
    let status = Command::new("kill").args(["-HUP", &daemon.child.id().to_string()]).status().unwrap();
    assert!(status.success());
    holds("the signal is heard", || limit(&mut daemon) == 550.0);

    kafka.write("all", &service.records(9_000, 20_000));
    let rollback = until("the rollback", || hook.of("guardrail.rollback").pop());
    assert_eq!(rollback.data["margin"], 550.0);
    let renewed = first.replace("guardrail: v1", "guardrail: v1\nrevision: 2").replace("500ms", "2s");
    write(&site, "rule.yaml", &renewed);
    assert_eq!(reload(&mut daemon, "").0, 200);
    holds("a new revision resolves what had tripped", || hook.of("guardrail.resolved").len() == 1);
    let log = daemon.log_of(EXPERIMENT);
    let entry = log.iter().rfind(|e| e["kind"] == "rules").unwrap();
    assert_eq!(entry["author"], "sre", "{entry}");
}

/// What a rollback stopped is watched to its end, though the file is gone.
#[test]
fn an_experiment_whose_file_is_gone_leaves_once_its_rollback_is_confirmed() {
    let kafka = Kafka::start(&["all"], 1);
    let hook = Hook::ok();
    let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce")), ("other", rule("other", "observe"))]);
    let mut daemon = site.start(&QUICK);
    daemon.ready();
    let service = Service { slow_from: 5_000, stopped_from: 20_000, ..Service::healthy(guardraild::clock::now() - 100_000) };
    kafka.write("all", &service.records(0, 15_000));
    until("the rollback", || hook.of("guardrail.rollback").pop());
    std::fs::remove_file(site.path("rules").join("rule.yaml")).unwrap();
    holds("it is leaving", || file(&mut daemon, "/rule.yaml")["state"] == "leaving");
    kafka.write("all", &service.records(15_000, 60_000));
    holds("it has been confirmed", || hook.of("guardrail.confirmed").len() == 1);
    holds("it is gone", || daemon.get(&format!("/api/v1/experiments/{EXPERIMENT}")).0 == 404);
}

/// Invariants 1 and 5 of ARCHITECTURE.md: a crash is before the reload or after it, and neither doubles nor loses a decision.
#[test]
fn a_crash_around_a_reload_is_before_it_or_after_it() {
    let kafka = Kafka::start(&["all"], 1);
    let start = guardraild::clock::now() - 100_000;
    let service = Service { slow_from: 12_000, stopped_from: 20_000, ..Service::healthy(start) };
    kafka.write("all", &service.records(0, 40_000));
    let told = |fail: Option<&str>| {
        let hook = Hook::ok();
        let site = Site::new(&one_topic(&kafka, "all"), &hook, &[("rule", rule(EXPERIMENT, "enforce"))]);
        let mut command = site.command();
        for set in SLOW.iter().chain(&["checkpoint.every=10m"]) {
            command.args(["--set", set]);
        }
        if let Some(point) = fail {
            command.env("FAIL_POINT", point);
        }
        let mut daemon = Daemon::spawn(command);
        holds("the rollback", || hook.ids("guardrail.rollback").len() == 1);
        write(&site, "rule.yaml", &rule(EXPERIMENT, "enforce").replace("500ms", "450ms"));
        let status = Command::new("kill").args(["-HUP", &daemon.child.id().to_string()]).status().unwrap();
        assert!(status.success());
        if fail.is_some() {
            daemon.wait();
            daemon = site.start(&SLOW);
        }
        holds("the new rule is in force", || daemon.get(&format!("/api/v1/experiments/{EXPERIMENT}")).1.contains("450.0"));
        holds("all is read", || daemon.records() == service.records(0, 40_000).len() as u64);
        holds("confirmed", || hook.of("guardrail.confirmed").len() == 1);
        (site.decisions(), hook.ids("guardrail.rollback"))
    };
    let plain = told(None);
    for point in ["checkpoint:crash", "checkpointed:crash"] {
        assert_eq!(told(Some(point)), plain, "{point}");
    }
}
