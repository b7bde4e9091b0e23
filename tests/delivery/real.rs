//! Against a real Alertmanager, which sends its e-mails into a folder: `tests/products/products.py` starts both.

use super::*;
use guardraild::delivery::Router;
use guardraild::engine::decision::NoticeKind;
use guardraild::rules;
use std::path::Path;

/// Waits for the next e-mail whose subject holds these words, and returns it.
async fn mail(folder: &Path, subject: &str) -> String {
    let holds = |text: &String| text.lines().any(|line| line.starts_with("Subject:") && line.contains(subject));
    loop {
        let found =
            std::fs::read_dir(folder).unwrap().filter_map(|e| std::fs::read_to_string(e.unwrap().path()).ok()).find(|text| holds(text));
        if let Some(text) = found {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Names of the alerts that a real Alertmanager holds to be active.
async fn active(url: &str) -> Vec<String> {
    let text = reqwest::get(format!("{url}/api/v2/alerts?active=true")).await.unwrap().text().await.unwrap();
    let alerts: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut names: Vec<String> = alerts.iter().map(|a| a["labels"]["alertname"].as_str().unwrap().to_owned()).collect();
    names.retain(|name| name != "GuardrailTest");
    names.sort();
    names
}

#[tokio::test]
#[ignore = "needs an Alertmanager: .ci/run products"]
async fn alertmanager() {
    let (url, mails) = (std::env::var("GUARDRAILD_ALERTMANAGER").unwrap(), std::env::var("GUARDRAILD_MAILS").unwrap());
    let mails = Path::new(&mails);
    let loaded = rules::load(&["tests/delivery/rules.yaml".into()], None);
    let (rule, router) = (&loaded.rules[0], Router { base_url: "https://guardraild.example".parse().ok(), topic: None });
    let mut bench = Bench::new();
    let alerts = |name: &str| Endpoint::new(name, Kind::Alertmanager, url.clone());
    let dispatcher = bench.dispatcher(vec![alerts("pager"), alerts("chat")]);
    let now = guardraild::clock::now();
    let text = std::fs::read_to_string("tests/golden/unconfirmed.decisions.jsonl").unwrap();
    let decisions = text.lines().filter_map(|line| serde_json::from_str::<Decision>(line).ok());
    let at = |d: Decision| Decision { experiment: "new-checkout".to_owned(), decided_at: now, since: now - 60_000, ..d };
    let decisions: Vec<Decision> = decisions.map(at).collect();
    let (rollback, page) = (decisions[0].clone(), decisions.iter().find(|d| d.action == Action::Page).unwrap().clone());

    // The rollback is not confirmed: that wakes somebody.
    let rows = router.decision(rule, &page, None);
    bench.commit_all(vec![(rollback.clone(), Vec::new()), (page, rows)], Vec::new());
    dispatcher.waker().wake();
    let woken = soon(mail(mails, "[NOT CONFIRMED] new-checkout")).await;
    assert!(woken.contains("To: on-call@example"), "{woken}");
    assert_eq!(active(&url).await, ["GuardrailUnconfirmed"]);

    // Exposures stop: that is over, and the bucket is rolled back.
    let notice = |kind, words: &str| Notice { kind, at: now, decision: rollback.clone(), text: words.to_owned() };
    let confirmed = notice(NoticeKind::Confirmed, "rollback of treatment confirmed: exposures fell from 2.0/s to 0/s within 140 s");
    let confirmed = Notice { at: rollback.decided_at + 140_000, ..confirmed };
    bench.commit_all(Vec::new(), vec![(confirmed.clone(), router.notice(rule, &confirmed, None))]);
    dispatcher.waker().wake();
    soon(mail(mails, "[RESOLVED] GuardrailUnconfirmed new-checkout / treatment")).await;
    soon(mail(mails, "[ROLLED BACK] new-checkout")).await;
    assert_eq!(active(&url).await, ["GuardrailStopped"]);

    // Somebody resumes.
    let resolved = notice(NoticeKind::Resolved, "latency_p95 of new-checkout re-armed by ann: fixed in build 4711");
    bench.commit_all(Vec::new(), vec![(resolved.clone(), router.notice(rule, &resolved, None))]);
    dispatcher.waker().wake();
    soon(mail(mails, "[RESOLVED] GuardrailStopped new-checkout / treatment")).await;
    assert_eq!(active(&url).await, Vec::<String>::new());
}
