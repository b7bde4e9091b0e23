//! Starting and ending: bad configurations, a broker that is not there, a second daemon, a signal under traffic.

use super::harness::{Daemon, Hook, Kafka, Site, holds, one_topic, until};
use super::stream::{EXPERIMENT, Service, rule};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn refused(site: &Site, arguments: &[&str]) -> String {
    let output = site.command().args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    said
}

#[test]
fn a_configuration_that_cannot_be_used_exits_78_and_says_where() {
    let site = Site::new("brokers: [\"127.0.0.1:9\"]", &Hook::ok(), &[("rule", rule(EXPERIMENT, "enforce"))]);
    let good = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), good.replace("every: 1s", "every: soon").replace("role: read", "role: reed")).unwrap();
    let said = refused(&site, &[]);
    let line = |text: &str| 1 + good.lines().position(|l| l.contains(text)).unwrap();
    for place in [format!("guardraild.yaml:{}:", line("every")), format!("guardraild.yaml:{}:", line("viewer"))] {
        assert!(said.contains(&place), "no {place} in\n{said}");
    }
    std::fs::write(site.config(), &good).unwrap();
    assert!(refused(&site, &["--set", "http.listen=here"]).contains("http.listen"));

    std::fs::write(site.path("rules").join("rule.yaml"), "guardrail: v1\noverview: {experiment: x}\nguardrails: 7\n").unwrap();
    let said = refused(&site, &[]);
    assert!(said.contains("rule.yaml:3:") && said.contains("no usable rule file"), "{said}");
    assert!(!site.path("state").exists(), "nothing was begun");
}

#[test]
fn variables_override_the_file_and_flags_override_variables() {
    let site = Site::new("brokers: [\"127.0.0.1:9\"]", &Hook::ok(), &[("rule", rule(EXPERIMENT, "enforce"))]);
    let start = |flags: &[&str]| {
        let mut command = site.command();
        command.env("GUARDRAILD_STATE_DIR", site.path("of-variable")).args(flags);
        Daemon::spawn(command).address();
    };
    start(&[]);
    assert!(site.path("of-variable").exists() && !site.path("state").exists());
    let flag = format!("state_dir={}", site.path("of-flag").display());
    std::fs::remove_dir_all(site.path("of-variable")).unwrap();
    start(&["--set", &flag]);
    assert!(site.path("of-flag").exists() && !site.path("of-variable").exists());
}

/// A state that takes long to be restored: here for as long as this test keeps standard input open.
#[test]
fn the_service_manager_hears_of_a_long_restore_once_a_second() {
    let site = Site::new("brokers: [\"127.0.0.1:9\"]", &Hook::ok(), &[("rule", rule(EXPERIMENT, "enforce"))]);
    let manager = UnixDatagram::bind(site.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = site.command();
    command.env("NOTIFY_SOCKET", site.path("notify")).env("FAIL_POINT", "load:wait");
    let mut daemon = Daemon::fed(command, Stdio::piped());
    let told = || {
        let mut message = [0; 256];
        let n = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..n]).into_owned()
    };
    for _ in 0..3 {
        assert_eq!(told(), "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=30000000\n", "it is not ready yet");
    }
    daemon.end_input();
    // From here on the judging thread says so.
    while told() != "WATCHDOG=1\n" {}
}

/// A broker that is down is waited for.
#[test]
fn without_a_broker_it_lives_is_not_ready_and_says_so_and_with_one_it_begins() {
    let kafka = Kafka::start(&["all"], 1);
    kafka.write("all", &Service::healthy(guardraild::clock::now() - 60_000).records(0, 1_000));
    kafka.cluster.broker_down(-1).unwrap();
    let site = Site::new(&one_topic(&kafka, "all"), &Hook::ok(), &[("rule", rule(EXPERIMENT, "enforce"))]);
    let mut daemon = site.start(&[]);
    holds("a log line", || daemon.logged("cannot reach Kafka; retrying"));
    assert_eq!(daemon.get("/livez").0, 200);
    let (status, checks) = daemon.get("/readyz?verbose");
    assert_eq!(status, 503);
    assert!(checks.lines().any(|l| l.starts_with("[-] kafka: no partition assigned yet")), "{checks}");
    assert!(checks.lines().any(|l| l.starts_with("[+] store:")), "{checks}");
    let gate = daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}/verdict"));
    assert_eq!((&gate["verdict"], &gate["go"]), (&"no_data".into(), &false.into()));
    kafka.cluster.broker_up(-1).unwrap();
    daemon.ready();
    daemon.until_records(200);
}

/// Invariants 2 and 4 of ARCHITECTURE.md across an orderly end.
#[test]
fn a_signal_under_traffic_loses_and_doubles_nothing_and_a_second_daemon_is_refused() {
    let kafka = Kafka::start(&["all"], 1);
    let site = Site::new(&one_topic(&kafka, "all"), &Hook::ok(), &[("rule", rule(EXPERIMENT, "enforce"))]);
    let mut daemon = site.start(&[]);
    daemon.ready();
    let mut second = super::harness::Daemon::spawn(site.command());
    assert_eq!(second.wait().code(), Some(1));
    holds("it says why", || second.logged("another guardraild uses"));

    let records = Service::healthy(guardraild::clock::now() - 60_000).records(0, 40_000);
    let over = AtomicBool::new(false);
    let pen = kafka.pen.clone();
    let mut daemon = std::thread::scope(|scope| {
        scope.spawn(|| {
            for chunk in records.chunks(20) {
                pen.pour("all", chunk);
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            pen.flush();
            over.store(true, Ordering::Relaxed);
        });
        until("it has read a part", || (daemon.records() > 1_000).then_some(()));
        assert!(!over.load(Ordering::Relaxed), "the traffic goes on");
        let (status, log) = daemon.terminate();
        assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
        assert!(log.iter().any(|l| l.contains("SIGTERM: draining")));
        site.start(&[])
    });
    daemon.until_records(records.len());
    let counts = daemon.json("/api/v1/experiments")["counts"].clone();
    assert_eq!(counts["accepted"], records.len() as u64, "{counts}");
}
