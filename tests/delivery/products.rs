//! Products: what each kind of endpoint is sent, byte for byte, and which answers count.

use super::*;
use guardraild::config::Config;
use guardraild::delivery::Sender;
use guardraild::store::Delivery;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Noon of the day of the decisions.
const NOW: i64 = 1_764_676_800_000;

/// The configurations that `docs/endpoints.md` shows, each by itself.
fn documented() -> BTreeMap<String, Endpoint> {
    let text = std::fs::read_to_string("docs/endpoints.md").unwrap();
    let blocks = text.split("```yaml\nendpoints:").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(|block| endpoints(&format!("endpoints:{block}"))).collect()
}

/// Endpoints as a configuration file defines them. Every variable holds a secret.
fn endpoints(yaml: &str) -> BTreeMap<String, Endpoint> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guardraild.yaml");
    std::fs::write(&path, format!("kafka: {{brokers: ['k:9092']}}\n{yaml}")).unwrap();
    let names = yaml.split("{env: ").skip(1).map(|rest| rest.split('}').next().unwrap().to_owned());
    let secret = |name: &str| match name {
        "SLACK_WEBHOOK" => "https://hooks.slack.example/services/T0/B0/XYZ".to_owned(),
        "LD_TRIGGER_URL" => "https://app.launchdarkly.example/webhook/triggers/4f2/9ab".to_owned(),
        "HOOK_SECRET" | "EDGE_SECRET" => SECRET.to_owned(),
        name => format!("secret-of-{}", name.to_ascii_lowercase()),
    };
    let env = names.map(|name| (name.clone(), secret(&name))).collect();
    let config = Config::load_with(Some(&path), &[], &env).unwrap_or_else(|e| panic!("{yaml}\n{e}"));
    config.endpoints.iter().map(|(name, e)| (name.clone(), Endpoint::configured(name, e, &config.delivery))).collect()
}

fn sender(endpoint: Endpoint) -> Sender {
    Bench::new();
    Sender::new(endpoint).unwrap()
}

/// A stored delivery of this type, with what a rule's body says.
fn delivery(event_type: &'static str, body: serde_json::Value) -> Delivery {
    let mut bench = Bench::new();
    let about = Decision { reason: "error_rate of treatment is 24.3%, \"far\" above 10%".to_owned(), ..decision("d-1") };
    let mut data = serde_json::to_value(&about).unwrap();
    data["body"] = body;
    data["flag"] = serde_json::json!({"name": "new-checkout", "default": "control"});
    let payload = serde_json::json!({"type": event_type, "timestamp": "2025-12-02T12:00:00Z", "data": data}).to_string();
    let (id, mut rows) = row("d-1", "e", Priority::Rollback);
    rows[0].payload = payload;
    rows[0].event_type = event_type;
    bench.commit(vec![(id, rows)]);
    bench.delivery("d-1-x").delivery
}

fn shown(sender: &Sender, delivery: &Delivery) -> String {
    let request = match sender.request(delivery, NOW) {
        Ok(request) => request.build().unwrap(),
        Err(unfit) => return format!("never sent: {unfit}\n"),
    };
    let mut text = format!("{} {}\n", request.method(), request.url());
    let mut headers: Vec<_> = request.headers().iter().collect();
    headers.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in headers.iter().filter(|(name, _)| *name != "traceparent") {
        let _ = writeln!(text, "{name}: {}", value.to_str().unwrap());
    }
    let body = request.body().and_then(|b| b.as_bytes()).unwrap_or_default();
    let _ = writeln!(text, "\n{}", String::from_utf8_lossy(body).trim_end());
    text
}

#[test]
fn every_product_is_sent_its_documented_request() {
    let bodies = [("growthbook-ramp", serde_json::json!({"ramp": "rs_4f2"})), ("rollouts", serde_json::json!({"rollout": "checkout"}))];
    let mut text = String::new();
    for (name, mut endpoint) in documented() {
        if matches!(endpoint.kind, Kind::Webhook | Kind::CloudEvents | Kind::Slack | Kind::PagerDuty | Kind::Alertmanager | Kind::Flagd) {
            continue;
        }
        endpoint.token_file = None;
        let body = bodies.iter().find(|(of, _)| *of == name).map_or_else(|| serde_json::json!({}), |(_, body)| body.clone());
        let sender = sender(endpoint);
        for event_type in ["guardrail.rollback", "guardrail.pause", "guardrail.test"] {
            let _ = writeln!(text, "== {name}: {event_type}\n{}", shown(&sender, &delivery(event_type, body.clone())));
        }
    }
    super::holds("tests/delivery/requests.txt", &text);
}

#[test]
fn a_rule_says_which_flag_before_the_endpoint_and_both_before_the_rules_own_flag() {
    let unleash = |extra: &str| {
        let yaml = format!("endpoints: {{u: {{kind: unleash, url: 'https://u.example/base/', token: {{env: T}}, project: p{extra}}}}}");
        sender(endpoints(&yaml).remove("u").unwrap())
    };
    let url = |sender: &Sender, body: serde_json::Value| {
        let delivery = delivery("guardrail.kill", body);
        sender.request(&delivery, NOW).map(|r| r.build().unwrap().url().to_string()).map_err(|e| e.to_string())
    };
    let base = "https://u.example/base/api/admin/projects/p/features";
    let production = serde_json::json!({"environment": "production"});
    assert_eq!(url(&unleash(""), production.clone()).unwrap(), format!("{base}/new-checkout/environments/production/off"));
    assert_eq!(url(&unleash(", flag: f"), production).unwrap(), format!("{base}/f/environments/production/off"));
    let all = serde_json::json!({"environment": "eu/1", "flag": "g h"});
    assert_eq!(url(&unleash(", flag: f, environment: x"), all).unwrap(), format!("{base}/g%20h/environments/eu%2F1/off"));
    assert!(url(&unleash(""), serde_json::json!({})).unwrap_err().contains("no `environment` is known"));
    let up = serde_json::json!({"environment": ".."});
    assert!(url(&unleash(""), up).unwrap_err().contains("cannot be part of an address"));
}

/// What comes of one attempt at an endpoint of this kind whose product answers so; its address replaces `URL`.
async fn attempt(settings: &str, event_type: &'static str, status: u16, answer: &'static str) -> (guardraild::delivery::Answer, Hit) {
    let mut receiver = Receiver::saying(status, answer).await;
    let base = receiver.url.trim_end_matches("/hook").to_owned();
    let yaml = format!("endpoints:\n  e: {{{}}}", settings.replace("URL", &base));
    let endpoint = endpoints(&yaml.replace("{base}", "{env: SLACK_WEBHOOK}")).remove("e").unwrap();
    let endpoint = match settings.contains("{base}") {
        true => Endpoint { url: base.into(), ..endpoint },
        false => endpoint,
    };
    let answer = sender(endpoint).attempt(&delivery(event_type, serde_json::json!({"ramp": "r"})), NOW).await;
    (answer, receiver.hit().await)
}

#[tokio::test]
async fn each_product_has_its_own_idea_of_success() {
    const LD: &str = "kind: launchdarkly, url: URL, token: {env: T}, project: p, environment: prod";
    const GB: &str = "kind: growthbook, url: URL, token: {env: T}, environment: prod";
    const UN: &str = "kind: unleash, url: URL, token: {env: T}, project: p, environment: prod";
    const ST: &str = "kind: statsig, url: URL, token: {env: T}";
    const FS: &str = "kind: flagsmith, url: URL, token: {env: T}, environment: e";
    const SLACK: &str = "kind: slack, url: {base}";
    const BOT: &str = "kind: slack, url: {base}, token: {env: T}, channel: C1";
    const OURS: &str = "kind: template, url: URL, body: '{{ data }}', success: answer.done";
    let rollback = "guardrail.rollback";
    for (settings, status, answer, fault) in [
        (LD, 200, r#"{"environments":{"prod":{"on":false}}}"#, None),
        (LD, 200, r#"{"environments":{"prod":{"on":true}}}"#, Some("HTTP 200, but not")),
        (LD, 403, r#"{"message":"approval is required"}"#, Some("approval is required")),
        (GB, 200, r#"{"feature":{"environments":{"prod":{"enabled":false}}}}"#, None),
        (GB, 200, r#"{"feature":{"environments":{"prod":{"enabled":true}}}}"#, Some("HTTP 200, but not")),
        (GB, 201, "{}", Some("HTTP 201, but not")),
        (UN, 200, "", None),
        (UN, 204, "", Some("HTTP 204, but not")),
        (UN, 403, "change requests are enabled", Some("change requests are enabled")),
        (ST, 200, r#"{"data":{"isEnabled":false}}"#, None),
        (ST, 200, r#"{"data":{"isEnabled":true}}"#, Some("HTTP 200, but not")),
        (FS, 200, r#"{"environment_default":{"enabled":false}}"#, None),
        (FS, 403, "change request", Some("change request")),
        (SLACK, 200, "ok", None),
        (SLACK, 200, "no_team", Some("HTTP 200, but the answer is not `ok`: no_team")),
        (BOT, 200, r#"{"ok":true,"ts":"1764676800.000100"}"#, None),
        (BOT, 200, r#"{"ok":false,"error":"channel_not_found"}"#, Some("channel_not_found")),
        (OURS, 200, r#"{"done":true}"#, None),
        (OURS, 200, r#"{"done":false}"#, Some("not `answer.done`")),
        (OURS, 500, r#"{"done":true}"#, Some("HTTP 500")),
    ] {
        let (got, _) = attempt(settings, rollback, status, answer).await;
        match fault {
            None => assert_eq!(got.error, None, "{settings}: {status} {answer}"),
            Some(fault) => assert!(got.error.as_ref().is_some_and(|e| e.contains(fault)), "{settings}: {status} {answer}: {got:?}"),
        }
        assert!(!got.hopeless, "{settings}");
    }
    let (bot, _) = attempt(BOT, "guardrail.alert", 200, r#"{"ok":true,"ts":"1764676800.000100"}"#).await;
    assert_eq!(bot.receipt.as_deref(), Some("1764676800.000100"));
}

#[tokio::test]
async fn what_can_never_be_taken_is_not_tried_again_and_too_many_requests_are_waited_for() {
    const PD: &str = "kind: pagerduty, url: URL, routing_key: {env: T}";
    let (invalid, _) = attempt(PD, "guardrail.alert", 400, r#"{"status":"invalid event"}"#).await;
    assert!(invalid.hopeless && invalid.error.unwrap().contains("invalid event"));
    for (status, wait) in [(429, Some(30_000)), (500, None)] {
        let (answer, _) = attempt(PD, "guardrail.alert", status, "").await;
        assert_eq!((answer.hopeless, answer.retry_after), (false, wait), "{status}");
    }
}

#[tokio::test]
async fn a_message_that_means_nothing_to_a_product_is_given_up_and_told() {
    let mut bench = Bench::new();
    let mut pager = Receiver::always(200).await;
    let unleash = "endpoints: {flags: {kind: unleash, url: 'http://127.0.0.1:9', token: {env: T}, flag: f, environment: e}}";
    bench.send("d-1", "flags", Priority::Rollback);
    let _dispatcher = bench.dispatcher(vec![endpoints(unleash).remove("flags").unwrap(), endpoint("pager", &pager.url)]);
    assert_eq!(bench.event().await.result, DeliveryResult::Dead);
    assert_eq!(pager.hit().await.id(), "d-1-x-undelivered");
    assert!(bench.delivery("d-1-x").delivery.last_error.unwrap().contains("no `project` is known"));
}

#[tokio::test]
async fn a_service_accounts_token_is_read_anew_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "first-token\n").unwrap();
    let mut receiver = Receiver::saying(403, "not for second-token").await;
    let base = receiver.url.trim_end_matches("/hook").to_owned();
    let yaml =
        format!("endpoints: {{a: {{kind: argo_rollouts, url: '{base}', token_file: '{}', namespace: n, rollout: r}}}}", path.display());
    let sender = sender(endpoints(&yaml).remove("a").unwrap());
    let delivery = delivery("guardrail.rollback", serde_json::json!({}));
    sender.attempt(&delivery, NOW).await;
    std::fs::write(&path, "second-token\n").unwrap();
    let answer = sender.attempt(&delivery, NOW).await;
    assert_eq!(answer.error.as_deref(), Some("HTTP 403: not for [redacted]"));
    let (first, second) = (receiver.hit().await, receiver.hit().await);
    assert_eq!(first.headers["authorization"], "Bearer first-token");
    assert_eq!(second.headers["authorization"], "Bearer second-token");
    std::fs::remove_file(&path).unwrap();
    assert!(sender.attempt(&delivery, NOW).await.error.unwrap().contains("cannot read the token"));
}

#[tokio::test]
async fn a_flag_in_a_file_is_turned_off_durably_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("flags.json"), dir.path().join("linked.json"));
    let text =
        "{\n  \"flags\": {\"new-checkout\": {\"state\": \"ENABLED\", \"variants\": {\"on\": true}, \"defaultVariant\": \"on\"}}\n}\n";
    std::fs::write(&real, text).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let mut bench = Bench::new();
    let yaml = format!("endpoints: {{flags: {{kind: flagd, file: '{}', flag: new-checkout}}}}", link.display());
    let endpoint = endpoints(&yaml).remove("flags").unwrap();
    let _dispatcher = bench.dispatcher(vec![endpoint.clone()]);
    bench.send("d-1", "flags", Priority::Rollback);
    bench.send("d-2", "flags", Priority::Kill);
    _dispatcher.waker().wake();
    for _ in 0..2 {
        let event = bench.event().await;
        assert_eq!((event.result, event.status), (DeliveryResult::Delivered, None));
    }
    assert_eq!(std::fs::read_to_string(&real).unwrap(), text.replace("ENABLED", "DISABLED"));
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink(), "what the link leads to is replaced");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside it");

    std::fs::remove_file(&real).unwrap();
    let gone = sender(endpoint).attempt(&delivery("guardrail.rollback", serde_json::json!({})), NOW).await;
    assert!(gone.error.is_some() && !gone.hopeless, "a file may come back");
}

#[tokio::test]
async fn no_kind_goes_where_the_allow_list_does_not_lead() {
    let narrow = "delivery: {hosts: [allowed.example], loopback: never}\nendpoints:\n";
    for settings in [
        "kind: alertmanager, urls: ['http://allowed.example', 'http://other.example']",
        "kind: template, url: 'https://other.example/{{ flag }}'",
        "kind: unleash, url: 'https://other.example', token: {env: T}",
        "kind: pagerduty, routing_key: {env: T}",
        "kind: statsig, token: {env: T}",
    ] {
        let endpoint = endpoints(&format!("{narrow}  e: {{{settings}}}")).remove("e").unwrap();
        let fault = Sender::new(endpoint).err().unwrap().to_string();
        assert!(fault.contains("delivery.hosts"), "{settings}: {fault}");
    }
    // Values have no part in the address up to its path.
    let template = endpoints("endpoints: {e: {kind: template, url: 'http://127.0.0.1:9/x', body: '{}'}}").remove("e").unwrap();
    let elsewhere = Endpoint { url: "http://127.0.0.1:9{{ data.body.more }}".into(), ..template };
    assert!(Sender::new(elsewhere).err().unwrap().to_string().contains("must be an absolute http or https address"));
}

#[tokio::test]
async fn what_follows_goes_to_the_thread_of_the_first_message() {
    let mut bench = Bench::new();
    let mut slack = Receiver::saying(200, r#"{"ok":true,"ts":"17.42"}"#).await;
    let yaml = "endpoints: {chat: {kind: slack, url: {env: SLACK_WEBHOOK}, token: {env: T}, channel: C1}}";
    let chat = Endpoint { url: slack.url.clone().into(), ..endpoints(yaml).remove("chat").unwrap() };
    bench.send("d-1", "chat", Priority::Inform);
    let dispatcher = bench.dispatcher(vec![chat]);
    let body = |hit: &Hit| serde_json::from_slice::<serde_json::Value>(&hit.body).unwrap();
    let first = slack.hit().await;
    assert_eq!((&body(&first)["channel"], body(&first).get("thread_ts")), (&"C1".into(), None));
    assert_eq!(first.headers["authorization"], "Bearer secret-of-t");
    assert_eq!(bench.event().await.result, DeliveryResult::Delivered);
    // Another decision about the same guardrail of the same bucket.
    bench.send("d-2", "chat", Priority::Inform);
    dispatcher.waker().wake();
    assert_eq!(body(&slack.hit().await)["thread_ts"], "17.42");
}

#[tokio::test]
async fn a_reminder_that_hangs_delays_no_kill() {
    let mut bench = Bench::new();
    let mut alertmanager = Receiver::start(|hit| async move {
        if hit.number == 2 {
            std::future::pending::<()>().await;
        }
        (200, None)
    })
    .await;
    let yaml = format!("endpoints: {{alerts: {{kind: alertmanager, urls: ['{}']}}}}", alertmanager.url);
    bench.send("d-1", "alerts", Priority::Inform);
    let dispatcher = bench.dispatcher(vec![endpoints(&yaml).remove("alerts").unwrap()]);
    assert_eq!((alertmanager.hit().await.number, bench.event().await.result), (1, DeliveryResult::Delivered));
    dispatcher.stop(Duration::from_secs(5)).await;
    let dispatcher = bench.dispatcher(vec![endpoints(&yaml).remove("alerts").unwrap()]);
    assert_eq!(alertmanager.hit().await.number, 2, "the reminder, which is never answered");
    for (id, priority) in [("d-2", Priority::Kill), ("d-3", Priority::Rollback), ("d-4", Priority::Inform)] {
        bench.send(id, "alerts", priority);
        dispatcher.waker().wake();
        assert!(String::from_utf8_lossy(&alertmanager.hit().await.body).contains(id));
        let event = bench.event().await;
        assert_eq!((event.delivery, event.result), (format!("{id}-x"), DeliveryResult::Delivered));
    }
}

#[tokio::test]
async fn a_cluster_of_alertmanagers_needs_one_that_answers() {
    let mut bench = Bench::new();
    let mut up = Receiver::always(200).await;
    let base = up.url.trim_end_matches("/hook").to_owned();
    let yaml = format!("endpoints: {{alerts: {{kind: alertmanager, urls: ['http://127.0.0.1:9', '{base}/am/']}}}}");
    bench.send("d-1", "alerts", Priority::Inform);
    let dispatcher = bench.dispatcher(vec![endpoints(&yaml).remove("alerts").unwrap()]);
    let hit = up.hit().await;
    assert_eq!(hit.path, "/am/api/v2/alerts");
    assert_eq!(bench.event().await.result, DeliveryResult::Delivered);
    dispatcher.stop(Duration::from_secs(5)).await;
    // The next daemon says it again at once: an Alertmanager may have been restarted as well.
    let _dispatcher = bench.dispatcher(vec![endpoints(&yaml).remove("alerts").unwrap()]);
    let again: serde_json::Value = serde_json::from_slice(&up.hit().await.body).unwrap();
    assert_eq!(
        (&again[0]["labels"]["alertname"], &again[0]["labels"]["experiment"]),
        (&"GuardrailSharedCause".into(), &serde_json::Value::Null)
    );
}
