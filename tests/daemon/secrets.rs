//! Secrets stay secret: one is planted in every place that takes one, receivers give back all that they are sent, everything is logged,
//! and nothing that the daemon says, serves or keeps has any of them.

use super::harness::{Daemon, Hook, Kafka, OPERATOR, READER, SECRET, Site, holds, one_topic, read_message, until};
use super::stream::{EXPERIMENT, Service, rule};
use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

const PLANTED: [(&str, &str); 8] = [
    ("HOOK_AUTH", "Bearer planted-hook-credential-1"),
    ("SLACK_URL", "http://HOST/services/T0PLANTED/planted-slack-key-000002"),
    ("PD_KEY", "planted-routing-key-0000000000003"),
    ("EVENTS_SECRET", "planted-cloudevents-secret-4444444"),
    ("KAFKA_PASSWORD", "planted-kafka-password-5"),
    ("REGISTRY_PASSWORD", "planted-registry-password-6"),
    ("OTLP_TOKEN", "planted-otlp-token-7"),
    ("READ_TOKEN_2", "planted-read-token-8"),
];

/// A receiver that refuses, and gives back head and body of what it was sent.
fn mirror() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Some((head, body)) = read_message(&mut reader) {
                    // Short, so that all of it is looked at: what stands first, and the body.
                    let told: String = head.lines().filter(|l| !l.starts_with("user-agent")).collect::<Vec<_>>().join("|");
                    let key =
                        String::from_utf8_lossy(&body).split("routing_key").nth(1).unwrap_or_default().chars().take(60).collect::<String>();
                    let text = format!("{key} {told}");
                    let answer = format!("HTTP/1.1 500 X\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                    if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn site(kafka: &Kafka, mirror: &str) -> Site {
    let more = "  - {metric: latency_p99, window: 10s, limit: 500ms, on_breach: page}\n  - {metric: latency_p90, window: 10s, limit: 500ms, on_breach: notify}\n";
    let text = rule(EXPERIMENT, "enforce").replace("actions:", &format!("{more}actions:"));
    let (head, _) = text.split_once("actions:").unwrap();
    let actions = "actions: {mode: enforce, rollback: {webhook: hook}, notify: {slack: slack}, page: {pagerduty: pager}}\n";
    let site = Site::new(&one_topic(kafka, "all"), &Hook::ok(), &[("rule", format!("{head}{actions}"))]);
    let config = std::fs::read_to_string(site.config()).unwrap();
    let (head, _) = config.split_once("endpoints:").unwrap();
    let head =
        head.replace("properties: {", "properties: {sasl.mechanism: PLAIN, sasl.username: u, sasl.password: {env: KAFKA_PASSWORD}, ");
    let head =
        head.replace("kafka: {", "kafka: {schema_registry: {url: 'http://127.0.0.1:9', user: u, password: {env: REGISTRY_PASSWORD}}, ");
    let head = head.replace("  tokens:\n", "  tokens:\n    - {name: viewer, role: read, token: {env: READ_TOKEN_2}}\n");
    let endpoints = format!(
        "endpoints:
  hook: {{kind: webhook, url: \"http://{mirror}/hook\", secrets: [{{file: hook.secret}}], headers: {{authorization: {{env: HOOK_AUTH}}}}}}
  slack: {{kind: slack, url: {{env: SLACK_URL}}}}
  pager: {{kind: pagerduty, url: \"http://{mirror}/pd\", routing_key: {{env: PD_KEY}}}}
  other: {{kind: cloudevents, url: \"http://{mirror}/ce\", secrets: [{{env: EVENTS_SECRET}}]}}
telemetry: {{log: {{level: trace}}, otlp: {{endpoint: 'http://{mirror}', headers: {{authorization: {{env: OTLP_TOKEN}}}}, interval: 1s}}}}
checkpoint: {{every: 1s}}
"
    );
    std::fs::write(site.config(), format!("{head}{endpoints}")).unwrap();
    site
}

/// A token endpoint: it refuses the first request, then gives a token. Both answers hold what the request did.
fn token_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let mut reader = BufReader::new(stream);
            while let Some((head, _)) = read_message(&mut reader) {
                let told: String = head.lines().collect::<Vec<_>>().join("|").replace('"', "'");
                let (status, body) = match number {
                    0 => (500, told),
                    _ => (200, format!(r#"{{"access_token":"planted-access-token-9","expires_in":60,"told":"{told}"}}"#)),
                };
                let answer =
                    format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    address
}

/// What must appear nowhere.
fn needles() -> Vec<String> {
    let planted = PLANTED.iter().map(|(_, secret)| secret.rsplit(['/', ' ']).next().unwrap().to_owned());
    planted.chain([OPERATOR, READER, SECRET].map(str::to_owned)).collect()
}

fn absent(needles: &[String], said: &[(String, String)]) {
    for needle in needles {
        for (place, text) in said {
            assert!(!text.contains(needle.as_str()), "{needle} in {place}: {}", &text[..text.len().min(2_000)]);
        }
    }
}

/// What is served, logged and kept.
fn said(daemon: Daemon, site: &Site, paths: &[&str]) -> Vec<(String, String)> {
    let mut daemon = daemon;
    let mut said: Vec<(String, String)> = paths.iter().map(|path| ((*path).to_owned(), daemon.get(path).1)).collect();
    let (status, lines) = daemon.terminate();
    assert!(status.success());
    assert!(lines.iter().any(|line| line.contains("\"TRACE\"")), "not everything is logged");
    said.extend(lines.into_iter().map(|line| ("the log".to_owned(), line)));
    for entry in std::fs::read_dir(site.path("state")).unwrap() {
        let path = entry.unwrap().path();
        said.push((path.display().to_string(), String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }
    said
}

#[test]
fn planted_secrets_show_up_nowhere() {
    let kafka = Kafka::start(&["all"], 1);
    let mirror = mirror();
    let site = site(&kafka, &mirror);
    let mut command = site.command();
    for (name, secret) in PLANTED {
        command.env(name, secret.replace("HOST", &mirror));
    }
    command.env("FAIL_POINT", "send:panic").env("RUST_BACKTRACE", "full");
    let mut daemon = Daemon::spawn(command);
    let start = guardraild::clock::now() - 120_000;
    kafka.write("all", &Service { slow_from: 20_000, ..Service::healthy(start) }.records(0, 40_000));
    let id = until("a decision", || {
        let state = daemon.json(&format!("/api/v1/experiments/{EXPERIMENT}"));
        Some(state["decisions"][0].as_str()?.to_owned())
    });
    holds("an attempt that was given back", || daemon.get(&format!("/api/v1/decisions/{id}")).1.contains("[redacted]"));
    assert_eq!(daemon.post(&format!("/api/v1/experiments/{EXPERIMENT}/kill"), Some(READER), "{\"reason\":\"r\"}").0, 403);
    assert_eq!(daemon.post(&format!("/api/v1/experiments/{EXPERIMENT}/resume"), Some(OPERATOR), "{\"reason\":\"r\"}").0, 200);
    let log = format!("/api/v1/experiments/{EXPERIMENT}/log?limit=1000");
    for endpoint in ["pager", "slack", "hook"] {
        holds("each was tried and refused", || daemon.get("/metrics").1.contains(&format!("endpoint=\"{endpoint}\",result=\"failed\"")));
    }

    let paths = ["/", "/metrics", "/readyz?verbose", "/api/v1/experiments", "/api/v1/rejects", &log, &format!("/api/v1/decisions/{id}")];
    let said = said(daemon, &site, &paths);
    assert_eq!(site.path("state").metadata().unwrap().permissions().mode() & 0o077, 0);
    // The first attempt panicked, and told with all that a trace can tell.
    assert!(said.iter().any(|(_, line)| line.contains("panicked at")), "nothing panicked");
    absent(&needles(), &said);
}

#[test]
fn the_secret_of_an_oauth_client_and_its_tokens_show_up_nowhere() {
    let kafka = Kafka::start(&["all"], 1);
    let site = Site::new(&one_topic(&kafka, "all"), &Hook::ok(), &[("rule", rule(EXPERIMENT, "enforce"))]);
    let config = std::fs::read_to_string(site.config()).unwrap();
    let oauth = format!(
        "kafka: {{oauth: {{token_url: 'http://{}/token', client_id: planted-client, client_secret: {{env: CLIENT_SECRET}}}}, ",
        token_endpoint()
    );
    let config = config.replace("kafka: {", &oauth).replace(
        "properties: {",
        "properties: {security.protocol: sasl_plaintext, sasl.mechanism: OAUTHBEARER, debug: 'security,broker', ",
    );
    std::fs::write(site.config(), format!("{config}telemetry: {{log: {{level: trace}}}}\n")).unwrap();
    let mut command = site.command();
    command.env("CLIENT_SECRET", "planted:client secret/10");
    let mut daemon = Daemon::spawn(command);
    daemon.address();
    holds("a token was refused", || daemon.logged("token endpoint: "));
    // The broker of the tests knows no SASL.
    holds("a token was used", || daemon.logged("SASL") && daemon.logged("OAUTHBEARER"));
    let basic = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, "planted-client:planted%3Aclient%20secret%2F10");
    let needles = ["planted:client secret/10".to_owned(), "planted%3Aclient".to_owned(), basic, "planted-access-token-9".to_owned()];
    let said = said(daemon, &site, &["/metrics", "/readyz?verbose", "/api/v1/data"]);
    absent(&needles, &said);
}
