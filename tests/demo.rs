//! The first minute, as a user or a pipeline runs it.

use std::process::Command;

#[test]
fn the_demo_observes_the_whole_story() {
    let output = Command::new(env!("CARGO_BIN_EXE_guardraild")).args(["demo", "--ci", "--seed", "7"]).output().unwrap();
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{errors}");
    let facts = [
        "healthy    latency p95",
        "fault      the demo slows treatment by 50%",
        "breach     latency p95",
        "flag-service attempt 1: 503",
        "flag-service attempt 2: 200, signature verified, same webhook-id",
        "exposures of treatment fell to 0/s",
        "confirmed  the daemon saw the exposures of treatment stop",
        "Fault to decision",
        "2 attempts under 1 webhook-id.",
        "users saw the slow treatment",
    ];
    let mut rest = &*told;
    for fact in facts.iter().take(3) {
        let at = rest.find(fact).unwrap_or_else(|| panic!("`{fact}` is missing or out of order in\n{told}"));
        rest = &rest[at..];
    }
    for fact in &facts[3..] {
        assert!(told.contains(fact), "`{fact}` is missing in\n{told}");
    }
    assert!(!told.contains('\u{1b}'), "plain lines hold no terminal codes");
    let counted = told.lines().find(|line| line.contains("records sent")).unwrap();
    let mut numbers = counted.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok());
    let (sent, read) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert!(sent > 5_000 && sent == read, "{counted}");
}
