//! The observed assignments of a running and of a stopped daemon, through restarts; and an event that waits for its exposure meanwhile.

use super::harness::{Daemon, Hook, Kafka, OPERATOR, READER, Site, holds, one_topic};
use super::stream::{EXPERIMENT, rule};
use guardraild::engine::aggregate::keys::pair;
use guardraild::engine::time::Millis;
use std::process::Command;

fn exposure(ts: Millis, user: &str, bucket: &str) -> String {
    format!(r#"{{"event":"exposure","ts":{ts},"tenant_id":"t","user_id":"{user}","experiment":"{EXPERIMENT}","bucket":"{bucket}"}}"#)
}

/// Exit status, standard output without its head, sorted, and standard error of `guardraild assignments`.
fn export(args: &[&str]) -> (i32, Vec<String>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_guardraild")).arg("assignments").args(args).output().unwrap();
    let (text, error) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    let mut lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
    lines.sort();
    (out.status.code().unwrap(), lines, error)
}

fn row(user: &str, bucket: &str, since: Millis, mixed: bool) -> String {
    let since = jiff::Timestamp::from_millisecond(since).unwrap();
    format!("{EXPERIMENT},{:016x},{bucket},{since:.3},{mixed}", pair("t", user))
}

#[test]
fn assignments_are_exported_and_outlive_the_process() {
    let kafka = Kafka::start(&["all"], 1);
    let site = Site::new(&one_topic(&kafka, "all"), &Hook::ok(), &[("rule", rule(EXPERIMENT, "observe"))]);
    let now = guardraild::clock::now() - 60_000;
    let settings = ["engine.idle_after=1h"];
    let write = |lines: &[String]| lines.iter().for_each(|line| kafka.send("all", 0, now, line.as_bytes()));
    let waiting = |daemon: &mut Daemon| daemon.json("/api/v1/experiments")["counts"]["waiting"].clone();

    let mut daemon = site.start(&settings);
    daemon.ready();
    let early = format!(r#"{{"event":"request","ts":{},"tenant_id":"t","user_id":"cy","latency_ms":5}}"#, now + 2_500);
    write(&[exposure(now, "ann", "control"), exposure(now + 1_000, "bob", "treatment"), early]);
    kafka.flush();
    daemon.until_records(3);
    assert_eq!(waiting(&mut daemon), 1);
    assert!(daemon.terminate().0.success());

    let state = site.path("state");
    let from_files = || export(&[EXPERIMENT, "--state-dir", state.to_str().unwrap()]);
    let mut both = vec![row("ann", "control", now, false), row("bob", "treatment", now + 1_000, false)];
    both.sort();
    assert_eq!(from_files(), (0, both, String::new()));

    let mut daemon = site.start(&settings);
    daemon.ready();
    holds("it still waits", || waiting(&mut daemon) == 1);
    write(&[exposure(now + 2_000, "cy", "control"), exposure(now + 500, "bob", "control")]);
    kafka.flush();
    daemon.until_records(5);
    assert_eq!(waiting(&mut daemon), 0);
    let mut all =
        vec![row("ann", "control", now, false), row("bob", "treatment", now + 500, true), row("cy", "control", now + 2_000, false)];
    all.sort();
    holds("the next checkpoint has the new ones", || from_files().1 == all);

    let (token, reader) = (site.path("operate.token"), site.path("read.token"));
    std::fs::write(&token, OPERATOR).unwrap();
    std::fs::write(&reader, READER).unwrap();
    let url = format!("http://{}", daemon.address());
    let ask = |experiment: &str, token: &std::path::Path| export(&[experiment, "--url", &url, "--token-file", token.to_str().unwrap()]);
    assert_eq!(ask(EXPERIMENT, &token), (0, all, String::new()));
    let refused = ask(EXPERIMENT, &reader);
    assert!(refused.0 == 1 && refused.2.contains("may only read"), "{refused:?}");
    assert!(ask("other", &token).2.contains("no experiment `other`"));
    let nobody = export(&["other", "--state-dir", state.to_str().unwrap()]);
    assert!(nobody.0 == 1 && nobody.2.contains("no assignments of `other`"), "{nobody:?}");
    let nothing = export(&[EXPERIMENT, "--state-dir", "/nonexistent"]);
    assert!(nothing.0 == 1 && nothing.2.contains("no database in /nonexistent"), "{nothing:?}");
}
