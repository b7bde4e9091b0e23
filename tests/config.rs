//! Configuration: layers, provenance of errors, secrets that stay secret.

#![allow(clippy::unwrap_used)]

use guardraild::config::{Config, ConfigErrors, EndpointKind, OAuth, OpenReads, Origin, Property, Role};
use guardraild::engine::plan::Settings;
use secrecy::ExposeSecret;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn load(dir: &Path, yaml: &str, env: Pairs<'_>, flags: Pairs<'_>) -> Result<Config, ConfigErrors> {
    let path = dir.join("guardraild.yaml");
    std::fs::write(&path, yaml).unwrap();
    Config::load_with(Some(&path), &pairs(flags), &pairs(env).into_iter().collect())
}

fn pairs(pairs: Pairs<'_>) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn sound(yaml: &str, env: Pairs<'_>, flags: Pairs<'_>) -> Config {
    let dir = tempfile::tempdir().unwrap();
    load(dir.path(), yaml, env, flags).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The errors as `LINE:COLUMN CODE message`, or with the variable or flag in place of the line.
fn faults(yaml: &str, env: Pairs<'_>, flags: Pairs<'_>) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let errors = load(dir.path(), yaml, env, flags).unwrap_err();
    let line = |e: &guardraild::config::ConfigError| {
        let at = match &e.origin {
            Origin::File { line, column, .. } => format!("{line}:{column}"),
            other => other.to_string(),
        };
        format!("{at} {} {}", e.code, e.message)
    };
    errors.0.iter().map(line).collect()
}

const SHORTEST: &str = "kafka: {brokers: ['k:9092']}\n";

#[test]
fn the_shortest_file_gets_the_engines_own_defaults() {
    let config = sound(SHORTEST, &[], &[]);
    assert_eq!(config.kafka.brokers, ["k:9092"]);
    assert_eq!(
        config.kafka.topics.all(std::iter::empty()),
        ["experiment.exposures", "experiment.events", "experiment.control"],
        "exposures first"
    );
    assert_eq!(
        config.kafka.topics.all(["a", "experiment.events"].into_iter()),
        ["experiment.exposures", "a", "experiment.events", "experiment.control"]
    );
    assert_eq!(config.engine.settings, Settings::default(), "default.yaml and Settings::default must agree");
    assert_eq!(config.engine.max_record, 1 << 20);
    assert_eq!(config.http.base_url, "http://127.0.0.1:8080");
    assert_eq!(config.http.open_reads, OpenReads::Loopback);
}

#[test]
fn without_a_file_variables_and_flags_are_enough() {
    let env = pairs(&[("GUARDRAILD_KAFKA__BROKERS", "a:1, b:2")]).into_iter().collect();
    let config = Config::load_with(None, &pairs(&[("kafka.group", "0042")]), &env).unwrap();
    assert_eq!((config.kafka.brokers, config.kafka.group), (vec!["a:1".to_owned(), "b:2".to_owned()], "0042".to_owned()));
}

#[test]
fn later_layers_win() {
    let yaml = "kafka: {brokers: ['file:1'], group: file}\ncheckpoint: {every: 20s}\n";
    let env = [("GUARDRAILD_KAFKA__GROUP", "variable"), ("GUARDRAILD_CHECKPOINT__EVERY", "30s"), ("GUARDRAILD_ENGINE__PANE", "2s")];
    let config = sound(yaml, &env, &[("checkpoint.every", "40s")]);
    assert_eq!(config.kafka.brokers, ["file:1"]);
    assert_eq!(config.kafka.group, "variable");
    assert_eq!(config.checkpoint.every.as_secs(), 40);
    assert_eq!((config.engine.settings.pane, config.engine.settings.max_skew_panes), (2_000, 300));
}

#[test]
fn variables_that_kubernetes_and_the_command_line_set_are_no_settings() {
    let env = [("GUARDRAILD_PORT", "tcp://10.0.0.1:80"), ("GUARDRAILD_SERVICE_HOST", "10.0.0.1"), ("GUARDRAILD_PORT_80_TCP_ADDR", "x")];
    sound(SHORTEST, &env, &[]);
    sound(SHORTEST, &[("GUARDRAILD_CONFIG", "x.yaml"), ("GUARDRAILD_URL", "http://x")], &[]);
}

#[test]
fn unknown_variables_and_flags_are_errors() {
    let found = faults(SHORTEST, &[("GUARDRAILD_KAFKA__GRUP", "x")], &[("engine.paine", "1s")]);
    let expected =
        ["GUARDRAILD_KAFKA__GRUP GC1001 unknown setting `kafka.grup`", "--set engine.paine GC1001 unknown setting `engine.paine`"];
    assert_eq!(found, expected);
}

#[test]
fn every_fault_is_reported_at_once_with_its_place() {
    let yaml = "\
kafka:
  brokers: [nonsense]
  grup: x
  workers: many
  properties: {group.id: x, enable.auto.commit: true}
engine: {pane: 7s, lateness: 30s, max_record: 1}
http:
  listen: here
  open_reads: sometimes
  tokens:
    - {name: a, role: opperate, token: {env: TOKEN_A}}
    - {name: a, role: operate, token: {env: TOKEN_B}}
endpoints:
  x: {kind: webhook, url: 'ftp://x'}
tracing: {}
";
    let env = [("TOKEN_A", "0123456789abcdef"), ("TOKEN_B", "fedcba9876543210"), ("GUARDRAILD_CHECKPOINT__EVERY", "often")];
    let found = faults(yaml, &env, &[("telemetry.log.level", "a=b=c")]);
    let expected = [
        "2:12 GC1004 `kafka.brokers`: `nonsense` is not host:port",
        "3:3 GC1001 unknown setting `kafka.grup`",
        "4:12 GC1003 `kafka.workers`: expected a whole number",
        "5:49 GC3001 `kafka.properties.enable.auto.commit`: is fixed",
        "5:26 GC3001 `kafka.properties.group.id`: is set by `kafka.group`",
        "6:30 GC3001 `engine.lateness`: must be a whole number of panes (7s)",
        "6:47 GC1003 `engine.max_record`: expected a size",
        "8:11 GC1003 `http.listen`: expected an address",
        "9:15 GC1004 `http.open_reads`: expected one of loopback, never, always",
        "11:23 GC1004 `http.tokens[0].role`: expected one of read, operate",
        "12:14 GC3001 `http.tokens[1].name`: `a` has another role already",
        "14:3 GC1002 `endpoints.x.secrets` is missing",
        "14:27 GC1004 `endpoints.x.url`: must begin with http:// or https://",
        "15:1 GC1001 unknown setting `tracing`",
        "GUARDRAILD_CHECKPOINT__EVERY GC1003 `checkpoint.every`: expected a span",
        "--set telemetry.log.level GC1004 `telemetry.log.level`: not a log level",
    ];
    for expected in expected {
        assert!(found.iter().any(|f| f.starts_with(expected)), "{expected}\nnot in\n{}", found.join("\n"));
    }
    // 600 s of max_skew are not whole panes of 7 s either.
    assert_eq!(found.len(), expected.len() + 1, "{}", found.join("\n"));
}

#[test]
fn a_fault_is_shown_with_its_line_and_a_near_name() {
    let dir = tempfile::tempdir().unwrap();
    let errors = load(dir.path(), "kafka:\n  brokers: ['k:1']\n  grup: x\n", &[], &[]).unwrap_err().to_string();
    let file = dir.path().join("guardraild.yaml");
    let expected = "error[GC1001]: unknown setting `kafka.grup`\n  grup: x\n  ^\n  help: did you mean `group`?";
    assert_eq!(errors, format!("{}:3:3: {expected}", file.display()));
}

#[test]
fn no_broker_is_an_error_that_says_what_to_write() {
    let errors = Config::load_with(None, &[], &BTreeMap::new()).unwrap_err();
    assert_eq!(errors.0.len(), 1);
    assert!(errors.to_string().contains("GUARDRAILD_KAFKA__BROKERS=HOST:9092"), "{errors}");
}

#[test]
fn files_that_are_missing_broken_or_empty() {
    let missing = Config::load_with(Some(Path::new("/nowhere/g.yaml")), &[], &BTreeMap::new()).unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere/g.yaml: error[GC0001]: cannot read the configuration"), "{missing}");
    for (yaml, at) in [("kafka: [\n", ""), ("a: 1\na: 2\n", "2:1 "), ("- a\n", "0:0 "), ("just text\n", "0:0 ")] {
        let found = faults(yaml, &[], &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(at) && found[0].contains("GC0002"), "{yaml:?}: {found:?}");
    }
    for yaml in ["", "# nothing\n", "endpoints:\nkafka: {properties: }\n"] {
        sound(yaml, &[("GUARDRAILD_KAFKA__BROKERS", "k:1")], &[]);
    }
    assert_eq!(faults("kafka:\n", &[], &[]), ["1:6 GC1003 `kafka`: expected a map of settings"]);
}

#[test]
fn relative_paths_start_at_the_file_that_names_them() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "x".repeat(32)).unwrap();
    let yaml = "kafka: {brokers: ['k:1']}\nrules: [r]\nhttp: {tokens: [{name: a, role: operate, token: {file: secret}}]}\n";
    let config = load(dir.path(), yaml, &[], &[("state_dir", "state")]).unwrap();
    assert_eq!(config.rules, [dir.path().join("r")]);
    assert_eq!(config.state_dir, PathBuf::from("state"));
    assert_eq!(config.http.tokens[0].role, Role::Operate);
}

#[test]
fn properties_take_librdkafkas_names_from_every_layer() {
    let yaml = "kafka: {brokers: ['k:1'], properties: {security.protocol: sasl_ssl, sasl: {mechanism: PLAIN}, fetch.wait.max.ms: 50}}\n";
    let env = [("GUARDRAILD_KAFKA__PROPERTIES__SASL__PASSWORD", "{env = \"PW\"}"), ("PW", "hunter2hunter2\n")];
    let properties = sound(yaml, &env, &[("kafka.properties.fetch.wait.max.ms", "10")]).kafka.properties;
    let plain = |name: &str| match &properties[name] {
        Property::Plain(text) => text.clone(),
        Property::Secret(_) => panic!("{name} is a secret"),
    };
    assert_eq!(["security.protocol", "sasl.mechanism", "fetch.wait.max.ms"].map(plain), ["sasl_ssl", "PLAIN", "10"]);
    match &properties["sasl.password"] {
        Property::Secret(secret) => assert_eq!(secret.expose_secret(), "hunter2hunter2"),
        Property::Plain(_) => panic!("a password in the clear"),
    }
}

#[test]
fn a_registry_has_one_login() {
    let with = |registry: &str| format!("kafka: {{brokers: ['k:9092'], schema_registry: {{url: 'https://r/', {registry}}}}}\n");
    let env = [("PW", "hidden")];
    let registry = sound(&with("user: me, password: {env: PW}, timeout: 2s"), &env, &[]).kafka.schema_registry.unwrap();
    assert_eq!((registry.url.as_str(), registry.basic.unwrap().0.as_str(), registry.timeout.as_secs()), ("https://r", "me", 2));
    assert!(sound(SHORTEST, &[], &[]).kafka.schema_registry.is_none());
    for wrong in ["user: me", "password: {env: PW}", "user: me, password: {env: PW}, token: {env: PW}"] {
        let found = faults(&with(wrong), &env, &[]);
        assert!(found.len() == 1 && found[0].contains("GC3001"), "{wrong}: {found:?}");
    }
}

#[test]
fn what_escalates_ends_somewhere() {
    let with = |endpoints: &str| format!("kafka: {{brokers: ['k:9092']}}\nendpoints:\n{endpoints}");
    let env = [("PW", "0123456789-0123456789-0123456789")];
    let one = |name: &str, to: &str| {
        let to = if to.is_empty() { String::new() } else { format!(", escalate_to: {to}") };
        format!("  {name}: {{kind: webhook, url: 'https://{name}/', secrets: [{{env: PW}}]{to}}}\n")
    };
    let chain = one("flags", "backup") + &one("backup", "pager") + &one("pager", "");
    let endpoints = sound(&with(&chain), &env, &[]).endpoints;
    assert_eq!((endpoints["flags"].escalate_to.as_deref(), endpoints["pager"].escalate_to.as_deref()), (Some("backup"), None));
    let found = faults(&with(&(one("flags", "bakcup") + &one("backup", ""))), &env, &[]);
    assert!(found.len() == 1 && found[0].contains("GC3001") && found[0].contains("no endpoint `bakcup`"), "{found:?}");
    let circle = one("flags", "backup") + &one("backup", "pager") + &one("pager", "backup");
    let found = faults(&with(&circle), &env, &[]);
    assert!(found.len() == 2 && found.iter().all(|f| f.contains("in a circle")), "{found:?}");
    assert!(faults(&with(&one("flags", "flags")), &env, &[])[0].contains("in a circle: flags to flags"));
}

#[test]
fn each_kind_of_endpoint_has_its_settings_and_no_others() {
    let env = [("T", "0123456789-0123456789-0123456789"), ("U", "https://hooks.example/x")];
    let with = |settings: &str| format!("kafka: {{brokers: ['k:9092']}}\nendpoints:\n  e: {{{settings}}}\n");
    for (settings, fault) in [
        ("kind: slak, url: {env: U}", "3:13 GC1004 `endpoints.e.kind`: expected one of webhook"),
        ("kind: unleash, url: 'https://u.example'", "3:3 GC1002 `endpoints.e.token` is missing"),
        (
            "kind: unleash, url: 'https://u.example', token: {env: T}, ramp: r",
            "3:71 GC3001 `endpoints.e.ramp`: means nothing to kind `unleash`",
        ),
        ("kind: slack", "3:3 GC1002 needs an incoming webhook or a bot's token"),
        ("kind: slack, token: {env: T}", "3:3 GC1002 `endpoints.e.channel` is missing"),
        ("kind: slack, url: 'https://hooks.example/x'", "3:25 GC2001 `endpoints.e.url`: a secret is given by reference only"),
        ("kind: alertmanager, url: 'http://a:9093'", "3:3 GC1002 `endpoints.e.urls` is missing"),
        ("kind: alertmanager, urls: []", "3:33 GC1004 `endpoints.e.urls`: between 1 and 16 addresses"),
        ("kind: flagd, file: f.json, headers: {x: y}", "3:43 GC3001 `endpoints.e.headers`: means nothing to kind `flagd`"),
        ("kind: argo_rollouts, url: 'https://k:6443'", "3:3 GC1002 `endpoints.e.token_file` is missing"),
        ("kind: template, url: 'https://x/{{ flag'", "3:28 GC1004 `endpoints.e.url`: is no template"),
        ("kind: template, url: 'https://x/', body: '{% if %}'", "3:48 GC1004 `endpoints.e.body`: is no template"),
        ("kind: template, url: 'https://x/', success: 'answer ='", "3:51 GC1004 `endpoints.e.success`: is no expression"),
        ("kind: template, url: 'https://x/', method: GET", "3:50 GC1004 `endpoints.e.method`: expected one of POST, PUT, PATCH, DELETE"),
        ("kind: statsig, token: {env: T}, ca_file: none.pem", "3:48 GC1004 `endpoints.e.ca_file`: cannot read"),
    ] {
        let found = faults(&with(settings), &env, &[]);
        assert!(found.iter().any(|f| f.starts_with(fault)), "{settings}: {fault}\n{found:#?}");
    }
    let pod = sound(&with("kind: argo_rollouts, namespace: shop"), &env, &[]).endpoints.remove("e").unwrap();
    assert_eq!((pod.host().as_str(), pod.texts["namespace"].as_str()), ("kubernetes.default.svc", "shop"));
    let account = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!((pod.token_file, pod.ca_file), (Some(account.join("token")), Some(account.join("ca.crt"))));
    let statsig = sound(&with("kind: statsig, token: {env: T}, timeout: 3s"), &env, &[]).endpoints.remove("e").unwrap();
    assert_eq!(statsig.host(), "statsigapi.net");
}

#[test]
fn a_literal_secret_is_refused_and_never_repeated() {
    let yaml = "\
kafka: {brokers: ['k:1'], properties: {sasl.password: s3cr3t-kafka, ssl.key.pem: s3cr3t-pem}, oops: 1}
http: {tokens: [{name: a, role: nonsense, token: s3cr3t-token}]}
endpoints:
  f: {kind: webhook, url: 'https://u:s3cr3t-url@x', secrets: [s3cr3t-signing]}
  s: {kind: slack, url: 'https://hooks.example/s3cr3t-slack'}
  p: {kind: pagerduty, routing_key: s3cr3t-pd, headers: {authorization: s3cr3t-auth}}
telemetry: {otlp: {headers: {x-api-key: s3cr3t-otlp}}}
";
    let dir = tempfile::tempdir().unwrap();
    let errors = load(dir.path(), yaml, &[("GUARDRAILD_HTTP__BASE_URL", "http://u:s3cr3t-env@x")], &[]).unwrap_err();
    assert_eq!(errors.0.iter().filter(|e| e.code == "GC2001").count(), 10, "{errors}");
    let text = format!("{errors}\n{errors:?}");
    assert!(!text.contains("s3cr3t"), "{text}");
    assert!(text.contains("write {file: PATH}, {env: NAME} or {credential: NAME}"));
}

#[test]
fn debug_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("signing"), "s3cr3t-s3cr3t-s3cr3t-s3cr3t\n").unwrap();
    let yaml = "\
kafka: {brokers: ['k:1'], properties: {sasl.password: {env: PW}, sasl.mechanism: OAUTHBEARER},
        oauth: {token_url: 'https://x/t', client_id: c, client_secret: {env: PW}}}
http: {tokens: [{name: a, role: read, token: {credential: signing}}]}
endpoints:
  s: {kind: slack, url: {env: SLACK}}
  f: {kind: cloudevents, url: 'https://x:8443/y', secrets: [{file: signing}], headers: {authorization: {env: PW}}}
";
    let credentials = dir.path().to_str().unwrap();
    let env = [("PW", "s3cr3t-s3cr3t-s3cr3t"), ("SLACK", "https://h.example/s3cr3t"), ("CREDENTIALS_DIRECTORY", credentials)];
    let config = load(dir.path(), yaml, &env, &[]).unwrap_or_else(|e| panic!("{e}"));
    assert!(!format!("{config:?}").contains("s3cr3t"), "{config:?}");
    assert_eq!(config.http.tokens[0].token.expose_secret(), "s3cr3t-s3cr3t-s3cr3t-s3cr3t");
    assert_eq!(config.endpoints["f"].host(), "x:8443");
    assert_eq!(config.endpoints["s"].kind, EndpointKind::Slack);
    assert!(matches!(config.kafka.oauth, Some(OAuth::ClientCredentials { .. })));
}

#[test]
fn unusable_secrets_say_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty"), "\n").unwrap();
    let token = |reference: &str| {
        let yaml = format!("kafka: {{brokers: ['k:1']}}\nhttp: {{tokens: [{{name: a, role: read, token: {reference}}}]}}\n");
        load(dir.path(), &yaml, &[("SHORT", "abc")], &[]).unwrap_err().to_string()
    };
    for (reference, why) in [
        ("{env: NOT_THERE}", "variable NOT_THERE is not set"),
        ("{env: SHORT}", "at least 16 characters"),
        ("{file: empty}", "is empty"),
        ("{file: absent}", "cannot read"),
        ("{credential: x}", "CREDENTIALS_DIRECTORY is not set"),
        ("{vault: x}", "expected {file: PATH}"),
        ("{env: A, file: b}", "expected {file: PATH}"),
    ] {
        assert!(token(reference).contains(why), "{reference}: {}", token(reference));
    }
    let yaml = "kafka: {brokers: ['k:1']}\nendpoints: {f: {kind: webhook, url: 'http://x', secrets: [{env: S}]}}\n";
    assert!(load(dir.path(), yaml, &[("S", "whsec_tooshort")], &[]).unwrap_err().to_string().contains("24 to 64 bytes in base64"));
}

#[test]
fn the_example_is_sound_once_its_credentials_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["kafka-password", "token-prometheus", "token-rollouts", "token-oncall", "pagerduty-routing-key", "otlp-authorization"];
    for (i, name) in names.iter().enumerate() {
        std::fs::write(dir.path().join(name), format!("{name}-0123456789-{i}")).unwrap();
    }
    for name in ["flag-service-secret-new", "flag-service-secret-old"] {
        std::fs::write(dir.path().join(name), "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=").unwrap();
    }
    let env = pairs(&[("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap())]).into_iter().collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example.yaml");
    let config = Config::load_with(Some(&path), &[], &env).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.endpoints.len(), 2);
    assert_eq!(config.endpoints["flag-service"].secrets.len(), 2);
}
