//! Every fail point is crossed twice: by a daemon that dies there and is started again, and by one whose step fails there. Either decides
//! and delivers as one that was never disturbed, under the same ids.

use super::crash::{backtest, outcome, told_as_stored};
use super::harness::{Daemon, Hook, Kafka, Record, SECRET, Site, holds, one_topic, until};
use super::stream::{EXPERIMENT, Service, rule};
use guardraild::fail::POINTS;
use std::os::unix::process::ExitStatusExt;

/// A breach, a rollback that is refused once, and its confirmation.
struct Story {
    records: Vec<Record>,
    /// The inside of the `kafka` section.
    kafka: String,
}

impl Story {
    fn new(kafka: &Kafka) -> Story {
        let start = guardraild::clock::now() - 100_000;
        let service = Service { visits_per_s: 50, slow_from: 5_000, stopped_from: 12_000, ..Service::healthy(start) };
        let records = service.records(0, 40_000);
        kafka.write("all", &records);
        Story { records, kafka: one_topic(kafka, "all") }
    }

    /// Tells of `what` (`commit:crash`), or of a life without a fault. Everything that one may see of it is compared by the caller.
    fn tell(&self, what: Option<&str>) -> Told {
        let gives_up = what.is_some_and(|w| w.starts_with("give_up"));
        let answer = move |number, kind: &str| {
            if gives_up {
                410
            } else if number == 0 && kind == "guardrail.rollback" {
                503
            } else {
                200
            }
        };
        let (hook, pager) = (Hook::start(Box::new(answer)), Hook::ok());
        let rule = rule(EXPERIMENT, "enforce").replace("notify: {webhook: hook}", "notify: {webhook: pager}");
        let site = Site::new(&self.kafka, &hook, &[("rule", rule)]);
        let command = || {
            let mut command = site.command();
            let url = format!("endpoints.pager.url={}", pager.url);
            for set in ["engine.idle_after=1h", "endpoints.pager.kind=webhook", &url, "endpoints.pager.secrets=[{env=PAGER}]"] {
                command.args(["--set", set]);
            }
            command.env("PAGER", SECRET);
            command
        };
        let mut daemon = match what {
            None => Daemon::spawn(command()),
            Some(what) => {
                let mut faulty = command();
                faulty.env("FAIL_POINT", what);
                disturbed(what, Daemon::spawn(faulty)).unwrap_or_else(|| Daemon::spawn(command()))
            }
        };
        let outcome = outcome(&mut daemon, self.records.len());
        let due = if gives_up { "guardrail.alert" } else { "guardrail.confirmed" };
        holds("the last message is received", || pager.of(due).iter().any(|hit| hit.status == 200));
        if !gives_up {
            holds("the rollback is received", || hook.hits().iter().any(|hit| hit.status == 200));
        }
        holds("the confirmation, too", || !pager.of("guardrail.confirmed").is_empty());
        assert!(daemon.terminate().0.success());
        let hits: Vec<_> = [hook.hits(), pager.hits()].concat();
        told_as_stored(&site, &hits);
        let mut ids: Vec<String> = hits.into_iter().map(|hit| hit.id).collect();
        ids.sort();
        ids.dedup();
        let backtest = backtest(&site, &self.records);
        assert_eq!(site.decisions(), backtest, "{what:?}");
        Told { outcome: format!("{outcome:?}"), ids }
    }
}

/// What a user sees of it in the end.
#[derive(Debug, PartialEq)]
struct Told {
    outcome: String,
    ids: Vec<String>,
}

/// Waits until the fault has struck; a daemon that died is gone, and so is one that could not start.
fn disturbed(what: &str, mut daemon: Daemon) -> Option<Daemon> {
    let (name, how) = what.split_once(':').unwrap();
    let (_, point) = POINTS.iter().find(|(known, _)| *known == name).unwrap();
    if how == "crash" {
        let status = daemon.wait();
        assert_eq!(status.signal(), Some(6), "{what}: {status}\n{}", daemon.log().join("\n"));
        return None;
    }
    let text = format!("fail point `{point:?}`");
    until(&text, || daemon.logged(&text).then_some(()));
    if name == "load" {
        assert_eq!(daemon.wait().code(), Some(1), "a state that cannot be read is no reason to begin anew");
        return None;
    }
    Some(daemon)
}

/// Crosses all points, four stories at a time.
fn cross(how: &str) {
    let kafka = Kafka::start(&["all"], 1);
    let story = Story::new(&kafka);
    let calm = story.tell(None);
    assert_eq!(calm.ids.len(), 2, "{calm:?}");
    for points in POINTS.chunks(4) {
        std::thread::scope(|scope| {
            for (name, _) in points {
                let (story, calm, what) = (&story, &calm, format!("{name}:{how}"));
                scope.spawn(move || {
                    let told = story.tell(Some(&what));
                    assert_eq!(told.outcome, calm.outcome, "{what}");
                    if !what.starts_with("give_up") {
                        assert_eq!(told.ids, calm.ids, "{what}");
                    }
                });
            }
        });
    }
}

#[test]
fn a_crash_at_every_fail_point_loses_and_doubles_nothing() {
    cross("crash");
}

#[test]
fn an_error_at_every_fail_point_loses_and_doubles_nothing() {
    cross("error");
}

#[test]
fn a_fail_point_that_does_not_exist_is_refused() {
    let kafka = Kafka::start(&["all"], 1);
    let site = Site::new(&one_topic(&kafka, "all"), &Hook::ok(), &[("rule", rule(EXPERIMENT, "enforce"))]);
    let mut command = site.command();
    command.env("FAIL_POINT", "comit:crash");
    let mut daemon = Daemon::spawn(command);
    assert_eq!(daemon.wait().code(), Some(78));
    holds("it says why", || daemon.logged("write POINT:crash or POINT:error[@N]"));
}
