//! The HTTP side over a real listener.

#![allow(clippy::unwrap_used)]

use guardraild::clock;
use guardraild::config::Config;
use guardraild::engine::decision::{Action, LogKind, LogQuery, Mode, Verdict};
use guardraild::engine::state::{BinsOf, BinsState, BucketState, CloseLook, DataState, ExperimentState, RolloutState};
use guardraild::http::{Access, Api, Backend, BackendError, Limits, LogPage, Tls, bind, serve};
use guardraild::live::{Accepted, Check, Command, Live, Operation, Refusal, Request, View};
use guardraild::readout::Dossier;
use guardraild::telemetry::Metrics;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use std::io::{Read as _, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

#[path = "http_api/secure.rs"]
mod secure;

const READ: &str = "read-token-0123456789";
const OPERATE: &str = "operate-token-0123456789";

/// Commands that the judge got: experiment, operation, bucket, author, reason.
type Seen = Arc<Mutex<Vec<(String, Operation, Option<String>, String, String)>>>;

#[derive(Default)]
struct Store {
    broken: bool,
    redelivered: Mutex<Vec<(String, String)>>,
}

impl Store {
    fn check(&self) -> Result<(), BackendError> {
        if self.broken { Err(BackendError("disk I/O error".to_owned())) } else { Ok(()) }
    }
}

impl Backend for Store {
    fn decision(&self, id: &str) -> Result<Option<Value>, BackendError> {
        self.check()?;
        Ok((id == "d-1").then(|| json!({"decision": "d-1", "deliveries": []})))
    }

    fn decisions(&self, experiment: Option<&str>, limit: usize) -> Result<Vec<Value>, BackendError> {
        self.check()?;
        Ok(vec![json!({"decision": "d-1", "experiment": experiment, "limit": limit})])
    }

    fn deliveries(&self, limit: usize) -> Result<Vec<Value>, BackendError> {
        self.check()?;
        Ok(vec![json!({"id": "dl-1", "limit": limit})])
    }

    fn log(&self, experiment: &str, asked: &LogQuery) -> Result<LogPage, BackendError> {
        self.check()?;
        let (after, limit) = (asked.after, asked.limit as usize);
        let all = if experiment == "nobody" { 0..0 } else { after + 1..6 };
        let entries: Vec<Value> = all.clone().take(limit).map(|n| json!({"text": n})).collect();
        let next = (entries.len() < all.count()).then(|| after + entries.len() as i64);
        Ok(LogPage { entries, next })
    }

    fn dossier(&self, experiment: &str, live: Option<&CloseLook>) -> Result<Option<Dossier>, BackendError> {
        self.check()?;
        let dossier = Dossier {
            experiment: experiment.to_owned(),
            at: 0,
            last: false,
            state: live.map(|look| json!(look.state)),
            histograms: vec![],
            rule: String::new(),
            points: vec![],
            log: vec![],
            decisions: vec![],
            cut: false,
            dashboard: None,
        };
        Ok((experiment != "nobody").then_some(dossier))
    }

    fn redeliver(&self, id: &str, author: &str) -> Result<bool, BackendError> {
        self.check()?;
        self.redelivered.lock().unwrap().push((id.to_owned(), author.to_owned()));
        Ok(id == "dl-1")
    }

    fn assignments(&self, experiment: &str, out: &mut dyn Write) -> Result<(), BackendError> {
        self.check()?;
        let lines = if experiment == "endless" { u64::MAX } else { 100_000 };
        for n in 0..lines {
            writeln!(out, "{experiment},{n}").map_err(|e| BackendError(e.to_string()))?;
            if experiment == "search" && n == 50_000 {
                return Err(BackendError("the disk is gone".to_owned()));
            }
        }
        out.flush().map_err(|e| BackendError(e.to_string()))
    }

    fn rejects(&self) -> Result<Vec<Value>, BackendError> {
        self.check()?;
        Ok(vec![json!({"reason": "not_json"})])
    }
}

struct Daemon {
    url: String,
    address: SocketAddr,
    live: Live,
    store: Arc<Store>,
    commands: Seen,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    client: Client,
}

impl Daemon {
    async fn start(yaml: &str) -> Daemon {
        Daemon::with(yaml, Store::default()).await
    }

    async fn with(yaml: &str, store: Store) -> Daemon {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.yaml");
        let tokens = "tokens: [{name: dash, role: read, token: {env: READ}}, {name: oncall, role: operate, token: {env: OPERATE}}]";
        std::fs::write(&path, format!("kafka: {{brokers: ['k:1']}}\nhttp:\n  {tokens}\n{yaml}")).unwrap();
        let env = [("READ", READ), ("OPERATE", OPERATE)].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let config = Config::load_with(Some(&path), &[], &env).unwrap_or_else(|e| panic!("{e}"));
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let live = Live::default();
        live.set(view(vec![state("checkout", Verdict::Safe), state("search", Verdict::Breach)]));
        let (sender, receiver) = mpsc::channel(8);
        let commands = Arc::default();
        tokio::spawn(judge(receiver, Arc::clone(&commands)));
        let store = Arc::new(store);
        let backend: Arc<dyn Backend> = store.clone();
        let api = Api {
            live: live.clone(),
            commands: sender,
            reloads: mpsc::channel(1).0,
            backend,
            metrics: Metrics::default(),
            access: Access::new(&config.http),
        };
        let (limits, tls) = (Limits::from(&config.http), config.http.tls.as_ref().map(|files| Tls::load(files).unwrap()));
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            serve(listener, api, limits, tls, async {
                let _ = stopped.await;
            })
            .await;
        });
        let client = Client::builder().no_proxy().build().unwrap();
        Daemon { url: format!("http://{address}"), address, live, store, commands, stop: Some(stop), task, client }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    async fn status(&self, path: &str) -> StatusCode {
        self.get(path).send().await.unwrap().status()
    }

    async fn json(&self, path: &str) -> Value {
        let response = self.get(path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.unwrap()
    }

    async fn post(&self, path: &str, token: Option<&str>, body: Value) -> Response {
        let request = self.client.post(format!("{}{path}", self.url)).json(&body);
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        request.send().await.unwrap()
    }
}

/// Plays the judge: notes commands and answers them.
async fn judge(mut commands: mpsc::Receiver<Command>, seen: Seen) {
    while let Some(command) = commands.recv().await {
        let request = match command {
            Command::Operate(request) => request,
            Command::Bins { bucket, reply, .. } => {
                let bins = BinsState { of: BinsOf::Window, baseline_n: 1, n: 2, bins: vec![], quantiles: vec![] };
                let _ = reply.send((bucket == "treatment").then_some(bins));
                continue;
            }
            Command::Look { .. } | Command::Reload(_) => continue,
        };
        let Request { experiment, operation, bucket, author, reason, reply } = request;
        let result = match bucket.as_deref() {
            Some("refused") => Err(Refusal::NotPossible("bucket `refused` is the baseline".to_owned())),
            Some("unstored") => Err(Refusal::NotStored("disk full".to_owned())),
            _ => Ok(Accepted { experiment: experiment.clone(), message: "done".to_owned(), decisions: vec![] }),
        };
        seen.lock().unwrap().push((experiment, operation, bucket, author, reason));
        let _ = reply.send(result);
    }
}

fn state(name: &str, verdict: Verdict) -> ExperimentState {
    ExperimentState {
        experiment: name.to_owned(),
        revision: 1,
        mode: Mode::Enforce,
        phase: 0,
        phase_name: None,
        verdict,
        go: verdict == Verdict::Safe,
        stop: verdict == Verdict::Breach,
        reason: format!("{name} is {verdict:?}"),
        holds: vec![],
        buckets: vec![],
        guardrails: vec![],
        quality: vec![],
        data: DataState { mixed_units: 3, ..DataState::default() },
        judged_to: None,
        last_record: None,
        records: 0,
        rejected: 0,
        decisions: vec![],
        rollout: RolloutState::default(),
        phases: vec![],
        whole_life: None,
        secondary: vec![],
        funnels: vec![],
        retention: vec![],
    }
}

fn view(experiments: Vec<ExperimentState>) -> View {
    let checks = vec![Check { name: "kafka", ok: true, detail: "2 partitions".to_owned() }];
    View { at: clock::now(), experiments, checks, ..View::default() }
}

#[tokio::test]
async fn health_follows_the_view() {
    let d = Daemon::start("").await;
    for path in ["/livez", "/-/healthy", "/readyz", "/-/ready"] {
        assert_eq!(d.status(path).await, 200, "{path}");
    }
    let text = d.get("/readyz?verbose").send().await.unwrap().text().await.unwrap();
    assert!(text.contains("[+] kafka: 2 partitions\n"), "{text}");

    let failing = Check { name: "store", ok: false, detail: "disk full".to_owned() };
    d.live.set(View { checks: vec![failing], ..view(vec![]) });
    assert_eq!(d.status("/livez").await, 200);
    let response = d.get("/readyz?verbose").send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.text().await.unwrap().contains("[-] store: disk full"));

    d.live.set(View { at: clock::now() - 11_000, ..view(vec![]) });
    assert_eq!((d.status("/readyz").await, d.status("/livez").await), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK));
    // A judge is given a minute from the start of the daemon on.
    d.live.set(View { at: clock::now() - 61_000, ..view(vec![]) });
    assert_eq!(d.status("/livez").await, 200);
    d.live.set(View { checks: vec![], ..view(vec![]) });
    assert_eq!(d.status("/readyz").await, 503, "no checks are no readiness");
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let d = Daemon::start("").await;
    d.status("/api/v1/experiments/checkout").await;
    d.status("/no/such/path").await;
    let text = d.get("/metrics").send().await.unwrap();
    assert_eq!(text.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = text.text().await.unwrap();
    assert!(text.contains("guardraild_experiments{verdict=\"breach\"} 1\n") && text.contains("guardraild_ready 1\n"), "{text}");
    assert!(text.contains("guardraild_experiment_verdict{experiment=\"search\",verdict=\"breach\"} 1\n"), "{text}");
    assert!(text.contains("guardraild_experiment_go{experiment=\"search\"} 0\n"), "{text}");
    assert!(text.contains("guardraild_http_requests_total{path=\"/api/v1/experiments/{id}\",status=\"200\"} 1\n"), "{text}");
    assert!(text.contains("guardraild_http_requests_total{path=\"other\",status=\"404\"} 1\n"), "{text}");
    let open = d.get("/metrics").header("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5").send().await.unwrap();
    assert!(open.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(open.text().await.unwrap().ends_with("# EOF\n"));
    d.live.set(View { at: 0, ..view(vec![]) });
    assert!(d.get("/metrics").send().await.unwrap().text().await.unwrap().contains("guardraild_ready 0\n"));
}

#[tokio::test]
async fn the_read_api_answers() {
    let d = Daemon::start("").await;
    assert_eq!(d.json("/api/v1/experiments").await["experiments"][1]["experiment"], "search");
    assert_eq!(d.json("/api/v1/experiments/checkout").await["verdict"], "safe");
    assert_eq!(d.json("/api/v1/decisions/d-1").await["decision"], "d-1");
    let page = d.json("/api/v1/experiments/checkout/log?limit=2").await;
    assert_eq!(page, json!({"entries": [{"text": 1}, {"text": 2}], "next": 2}));
    let page = d.json("/api/v1/experiments/gone-but-logged/log?after=3").await;
    assert_eq!(page, json!({"entries": [{"text": 4}, {"text": 5}], "next": null}));

    let series = d.json("/api/v1/experiments/checkout/series").await;
    assert_eq!((&series["at"], &series["guardrails"], &series["buckets"]), (&json!([]), &json!([]), &json!([])), "nothing is judged yet");
    assert_eq!(d.json("/api/v1/decisions?experiment=checkout&limit=9999").await["decisions"][0]["limit"], 500);
    assert_eq!(d.json("/api/v1/decisions").await["decisions"][0]["experiment"], Value::Null);
    assert_eq!(d.json("/api/v1/deliveries").await["deliveries"][0]["id"], "dl-1");
    assert_eq!(d.json("/api/v1/experiments/checkout/bins?guardrail=latency_p95&bucket=treatment").await["of"], "window");
    assert_eq!(d.status("/api/v1/experiments/checkout/bins?guardrail=latency_p95&bucket=nope").await, 404);
    assert_eq!(d.status("/api/v1/experiments/checkout/bins?guardrail=latency_p95").await, 400);
    let data = d.json("/api/v1/data").await;
    assert_eq!((&data["fresh"], &data["checks"][0]["name"]), (&json!(true), &json!("kafka")));

    for path in [
        "/api/v1/experiments/nope",
        "/api/v1/experiments/nope/series",
        "/api/v1/decisions/d-9",
        "/api/v1/experiments/nobody/log",
        "/nope",
        "/assets/nope",
    ] {
        let response = d.get(path).send().await.unwrap();
        assert_eq!(response.status(), 404, "{path}");
        assert!(response.json::<Value>().await.unwrap()["error"].is_string(), "{path}");
    }
    for query in ["limit=0", "limit=1001", "limit=x", "after=x", "before=1"] {
        assert_eq!(d.status(&format!("/api/v1/experiments/checkout/log?{query}")).await, 400, "{query}");
    }
    assert_eq!(d.client.delete(format!("{}/api/v1/experiments", d.url)).send().await.unwrap().status(), 405);
}

#[tokio::test]
async fn gates_never_say_go_without_fresh_data() {
    let d = Daemon::start("").await;
    let verdict = async |id: &str| d.json(&format!("/api/v1/experiments/{id}/verdict")).await;
    assert_eq!(verdict("checkout").await, json!({"verdict": "safe", "go": true, "stop": false, "reason": "checkout is Safe"}));
    assert_eq!(verdict("search").await, json!({"verdict": "breach", "go": false, "stop": true, "reason": "search is Breach"}));
    let unknown = d.get("/api/v1/experiments/nope/verdict").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    let unknown: Value = unknown.json().await.unwrap();
    assert_eq!((&unknown["go"], &unknown["stop"], &unknown["verdict"]), (&json!(false), &json!(false), &json!("no_data")));

    let flagger = async |hook: &str, name: &str| {
        let body = json!({"name": "canary", "namespace": "prod", "phase": "Progressing", "metadata": {"experiment": name}});
        d.post(&format!("/hooks/flagger/{hook}"), None, body).await.status().as_u16()
    };
    assert_eq!((flagger("rollback", "search").await, flagger("confirm", "search").await), (200, 403));
    assert_eq!((flagger("rollback", "checkout").await, flagger("confirm", "checkout").await), (403, 200));
    assert_eq!((flagger("rollback", "nope").await, flagger("confirm", "nope").await), (403, 403));
    let by_name = d.post("/hooks/flagger/rollback", None, json!({"name": "search"})).await;
    assert_eq!((by_name.status(), by_name.text().await.unwrap()), (StatusCode::OK, "search is Breach\n".to_owned()));
    let metrics = d.get("/metrics").send().await.unwrap().text().await.unwrap();
    for counted in
        ["argo\",answer=\"go\"} 1", "argo\",answer=\"stop\"} 1", "argo\",answer=\"unknown\"} 1", "flagger_confirm\",answer=\"go\"} 1"]
    {
        assert!(metrics.contains(&format!("guardraild_gate_answers_total{{gate=\"{counted}\n")), "{counted}: {metrics}");
    }

    let stale = View { at: clock::now() - 11_000, ..view(vec![state("checkout", Verdict::Safe), state("search", Verdict::Breach)]) };
    d.live.set(stale);
    let stale = verdict("checkout").await;
    assert_eq!((&stale["verdict"], &stale["go"], &stale["stop"]), (&json!("no_data"), &json!(false), &json!(false)));
    assert_eq!((flagger("rollback", "checkout").await, flagger("confirm", "checkout").await), (403, 403));
    assert_eq!(flagger("rollback", "search").await, 200, "a stop stays a stop");
}

#[test]
fn a_state_of_long_ago_is_neither_safe_nor_go() {
    let (mut safe, mut breach) = (state("checkout", Verdict::Safe), state("search", Verdict::Breach));
    for state in [&mut safe, &mut breach] {
        state.outdate("judged only up to 90 s ago".to_owned());
        assert!(!state.go);
    }
    assert_eq!((safe.verdict, safe.reason.as_str()), (Verdict::NoData, "judged only up to 90 s ago"));
    assert!(breach.stop && breach.verdict == Verdict::Breach && breach.reason == "search is Breach");
}

#[tokio::test]
async fn who_may_do_what() {
    let open = Daemon::start("").await;
    let never = Daemon::start("  open_reads: never\n").await;
    let always = Daemon::start("  open_reads: always\n  listen: 0.0.0.0:1\n").await;
    let elsewhere = Daemon::start("  listen: 0.0.0.0:1\n").await;
    let reads = [
        "/",
        "/metrics",
        "/readyz?verbose",
        "/api/v1/experiments",
        "/api/v1/experiments/checkout",
        "/api/v1/experiments/checkout/log",
        "/api/v1/experiments/checkout/verdict",
        "/api/v1/decisions/d-1",
        "/api/v1/events",
    ];
    for path in reads {
        assert_eq!(open.status(path).await, 200, "{path}");
        assert_eq!(always.status(path).await, 200, "{path}");
        assert_eq!(elsewhere.status(path).await, 401, "{path}");
        let denied = never.get(path).send().await.unwrap();
        assert_eq!(denied.status(), 401, "{path}");
        let scheme = if path == "/" { "Basic " } else { "Bearer " };
        assert!(denied.headers()["www-authenticate"].to_str().unwrap().starts_with(scheme), "{path}");
        assert_eq!(never.get(path).bearer_auth("wrong").send().await.unwrap().status(), 401, "{path}");
        for token in [READ, OPERATE] {
            assert_eq!(never.get(path).bearer_auth(token).send().await.unwrap().status(), 200, "{path}");
            assert_eq!(never.get(path).basic_auth("any", Some(token)).send().await.unwrap().status(), 200, "{path}");
        }
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(never.status(path).await, 200, "{path}: probes carry no token");
    }
    // A page that has rebound its own name to 127.0.0.1 is not this machine.
    assert_eq!(open.get("/api/v1/experiments").header("host", "evil.example").send().await.unwrap().status(), 401);
    for host in ["localhost:8080", "[::1]:8080", "127.0.0.1"] {
        assert_eq!(open.get("/api/v1/experiments").header("host", host).send().await.unwrap().status(), 200, "{host}");
    }

    let reason = || json!({"reason": "r"});
    for verb in ["hold", "resume", "rollback", "kill", "annotations"] {
        let path = format!("/api/v1/experiments/checkout/{verb}");
        assert_eq!(always.post(&path, None, reason()).await.status(), 401, "{verb}");
        assert_eq!(always.post(&path, Some("wrong"), reason()).await.status(), 401, "{verb}");
        assert_eq!(always.post(&path, Some(READ), reason()).await.status(), 403, "{verb}");
        assert_eq!(always.post(&path, Some(OPERATE), reason()).await.status(), 200, "{verb}");
        let basic = always.client.post(format!("{}{path}", always.url)).basic_auth("any", Some(OPERATE)).json(&reason());
        assert_eq!(basic.send().await.unwrap().status(), 401, "{verb}: browsers send basic authentication unasked");
    }
    for token in [None, Some(READ)] {
        assert!(always.post("/api/v1/deliveries/dl-1/redeliver", token, json!({})).await.status().is_client_error());
        let request = always.get("/api/v1/rejects");
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        assert!(request.send().await.unwrap().status().is_client_error());
    }
    assert_eq!(always.store.redelivered.lock().unwrap().len(), 0);
    assert_eq!(always.get("/api/v1/rejects").bearer_auth(OPERATE).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_readout_is_data_markdown_a_page_that_runs_nothing_or_an_archive() {
    let d = Daemon::start("  open_reads: never\n").await;
    assert_eq!(d.status("/api/v1/experiments/checkout/readout").await, 401);
    let get = async |path: &str| d.get(&format!("/api/v1/experiments/{path}")).bearer_auth(READ).send().await.unwrap();
    let data: Value = get("checkout/readout").await.json().await.unwrap();
    assert_eq!((&data["experiment"], &data["state"]["verdict"]), (&json!("checkout"), &json!("safe")));
    let text = get("checkout/readout?format=markdown").await.text().await.unwrap();
    assert!(text.starts_with("# Readout: checkout\n") && text.contains("\n## 9. Artifacts\n"), "{text}");
    let page = get("checkout/readout?format=html").await;
    assert_eq!(page.headers()["content-security-policy"], "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    assert!(page.text().await.unwrap().starts_with("<!doctype html>"));
    let archive = get("checkout/readout?format=tar.gz").await;
    assert_eq!(archive.headers()["content-type"], "application/gzip");
    assert_eq!(archive.headers()["content-disposition"], "attachment; filename=\"checkout-readout.tar.gz\"");
    assert!(archive.bytes().await.unwrap().starts_with(&[0x1f, 0x8b]));
    assert_eq!(get("gone/readout").await.status(), 200, "of one that no rule names any more, too");
    assert_eq!(get("nobody/readout").await.status(), 404);
    assert_eq!(get("checkout/readout?format=pdf").await.status(), 400);
    assert_eq!(get("checkout/log?kind=decision,nothing").await.status(), 400);
    assert_eq!(get("checkout/log?kind=decision&since=2026-12-01T09:00:00Z").await.status(), 200);
}

#[tokio::test]
async fn operator_actions_reach_the_judge() {
    let d = Daemon::start("").await;
    let before = clock::now();
    let bodies = [
        ("hold", json!({"reason": "deploy", "for": "2h"})),
        ("hold", json!({"reason": "deploy"})),
        ("resume", json!({"reason": "over", "author": "ada"})),
        ("rollback", json!({"reason": "bad", "bucket": "treatment"})),
        ("kill", json!({"reason": "worse", "author": "oncall"})),
        ("phase", json!({"reason": "ramp", "phase": "25%", "weights": {"control": 0.75, "treatment": 0.25}})),
        ("annotations", json!({"reason": "deployed 1.2.3"})),
    ];
    for (verb, body) in bodies {
        let response = d.post(&format!("/api/v1/experiments/checkout/{verb}"), Some(OPERATE), body).await;
        assert_eq!(response.status(), 200, "{verb}");
        assert_eq!(response.json::<Value>().await.unwrap()["message"], "done");
    }
    let commands = d.commands.lock().unwrap().clone();
    let operations: Vec<_> = commands.iter().map(|(_, operation, ..)| operation.clone()).collect();
    match operations[0] {
        Operation::Hold { until: Some(until) } => assert!((before + 7_200_000..=clock::now() + 7_200_000).contains(&until)),
        ref other => panic!("{other:?}"),
    }
    let weights = vec![("control".to_owned(), 0.75), ("treatment".to_owned(), 0.25)];
    let rest = [
        Operation::Hold { until: None },
        Operation::Resume,
        Operation::Act(Action::Rollback),
        Operation::Act(Action::Kill),
        Operation::Phase { phase: "25%".to_owned(), weights },
        Operation::Annotate { kind: LogKind::Annotation, links: Vec::new() },
    ];
    assert_eq!(operations[1..], rest);
    let authors: Vec<_> = commands.iter().map(|(_, _, _, author, _)| author.as_str()).collect();
    assert_eq!(authors, ["oncall", "oncall", "ada (token oncall)", "oncall", "oncall", "oncall", "oncall"]);
    assert_eq!((commands[3].2.as_deref(), commands[3].4.as_str()), (Some("treatment"), "bad"));

    let redelivered = d.post("/api/v1/deliveries/dl-1/redeliver", Some(OPERATE), json!({})).await;
    assert_eq!(redelivered.status(), 202);
    assert_eq!(d.store.redelivered.lock().unwrap()[0], ("dl-1".to_owned(), "oncall".to_owned()));
    assert_eq!(d.post("/api/v1/deliveries/dl-9/redeliver", Some(OPERATE), json!({})).await.status(), 404);
}

#[tokio::test]
async fn bad_requests_say_why_and_reach_nobody() {
    let d = Daemon::start("").await;
    let bad = [
        ("hold", json!({}), 400, "`reason` is missing"),
        ("hold", json!({"reason": "  "}), 400, "`reason` is missing"),
        ("hold", json!({"reason": "r", "for": "soon"}), 400, "`for` is \"soon\""),
        ("hold", json!({"reason": "r", "for": "400d"}), 400, "`for` is"),
        ("hold", json!({"reason": "r", "bucket": "b"}), 400, "`bucket` means nothing to `hold`"),
        ("kill", json!({"reason": "r", "for": "2h"}), 400, "`for` means nothing to `kill`"),
        ("phase", json!({"reason": "r"}), 400, "`phase` is missing"),
        ("phase", json!({"reason": "r", "phase": "p", "weights": {"a": 7}}), 400, "a weight lies between 0 and 1"),
        ("hold", json!({"reason": "r", "links": []}), 400, "`links` means nothing to `hold`"),
        ("annotations", json!({"reason": "r", "kind": "decision"}), 400, "people write no entries of the kind `decision`"),
        ("annotations", json!({"reason": "r", "links": ["javascript:alert(1)"]}), 400, "a link is none"),
        ("hold", json!({"reasons": "r"}), 400, "unknown field `reasons`"),
        ("hold", json!([1]), 400, "the body is not what is expected"),
        ("hold", json!({"reason": "x".repeat(2_001)}), 400, "more than 2000 characters"),
        ("explode", json!({"reason": "r"}), 404, "no action `explode`"),
    ];
    for (verb, body, status, why) in bad {
        let response = d.post(&format!("/api/v1/experiments/checkout/{verb}"), Some(OPERATE), body.clone()).await;
        assert_eq!(response.status(), status, "{verb} {body}");
        let answer: Value = response.json().await.unwrap();
        assert!(answer["error"].as_str().unwrap().contains(why), "{answer}");
    }
    assert_eq!(d.post("/api/v1/experiments/nope/hold", Some(OPERATE), json!({"reason": "r"})).await.status(), 404);
    let raw = |kind: &'static str, body: String| {
        let request = d.client.post(format!("{}/api/v1/experiments/checkout/hold", d.url)).bearer_auth(OPERATE);
        request.header("content-type", kind).body(body)
    };
    for (kind, body, status) in [
        ("application/json", "{\"reason\": ".to_owned(), 400),
        ("application/json", "[".repeat(60_000), 400),
        ("text/plain", "{\"reason\": \"r\"}".to_owned(), 415),
        ("application/json", format!("{{\"reason\": \"{}\"}}", "x".repeat(70_000)), 413),
    ] {
        let response = raw(kind, body).send().await.unwrap();
        assert_eq!(response.status(), status);
        assert!(response.json::<Value>().await.unwrap()["error"].is_string());
    }
    assert_eq!(d.commands.lock().unwrap().len(), 0);
    for (bucket, status) in [("refused", 409), ("unstored", 503)] {
        let response = d.post("/api/v1/experiments/checkout/kill", Some(OPERATE), json!({"reason": "r", "bucket": bucket})).await;
        assert_eq!(response.status(), status, "{bucket}");
    }
}

#[tokio::test]
async fn a_broken_store_is_503_and_says_so() {
    let d = Daemon::with("", Store { broken: true, ..Store::default() }).await;
    for path in ["/api/v1/decisions/d-1", "/api/v1/experiments/checkout/log"] {
        let response = d.get(path).send().await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.json::<Value>().await.unwrap()["error"], "the store cannot answer: disk I/O error");
    }
    assert_eq!(d.status("/api/v1/experiments").await, 200, "what is live needs no store");
}

/// Reads the stream up to the end of an event that holds `text`.
async fn until(response: &mut Response, text: &str) -> String {
    let mut seen = String::new();
    while let Some(chunk) = tokio::time::timeout(Duration::from_secs(30), response.chunk()).await.unwrap().unwrap() {
        seen.push_str(&String::from_utf8_lossy(&chunk));
        if seen.contains(text) && seen.ends_with("\n\n") {
            return seen;
        }
    }
    panic!("the stream ended after {seen:?}");
}

#[tokio::test]
async fn events_tell_what_has_changed_and_end_with_the_daemon() {
    let mut d = Daemon::start("").await;
    let mut stream = d.get("/api/v1/events").send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let first = until(&mut stream, "state").await;
    assert!(first.contains("\"experiment\":\"checkout\"") && first.contains("\"experiment\":\"search\""), "{first}");
    d.live.set(view(vec![state("checkout", Verdict::Breach)]));
    let second = until(&mut stream, "checkout").await;
    assert!(second.contains("\"verdict\":\"breach\"") && second.contains("\"gone\":[\"search\"]"), "{second}");
    assert!(second.lines().any(|line| line == "event: state"), "{second}");

    d.stop.take().unwrap().send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(30), async { while stream.chunk().await.unwrap().is_some() {} }).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), &mut d.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(d.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_slow_client_keeps_nobody_waiting() {
    let d = Daemon::start("").await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(d.address).await.unwrap();
        stream.write_all(b"POST /hooks/flagger/confirm HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
        slow.push(stream);
    }
    for _ in 0..5 {
        assert_eq!(d.status("/api/v1/experiments").await, 200);
    }
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_and_the_rest_is_served() {
    let d = Daemon::start("  connections_per_address: 512\n").await;
    let mut held = Vec::new();
    for _ in 0..512 {
        held.push(TcpStream::connect(d.address).await.unwrap());
    }
    let mut extra = TcpStream::connect(d.address).await.unwrap();
    let _ = extra.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(extra.read(&mut [0; 16]).await.unwrap_or(0), 0, "closed without an answer");
    let first = &mut held[0];
    first.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    first.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("guardraild_dropped_total{reason=\"http_connections\"} 1\n"), "{text}");
}

#[tokio::test]
async fn the_page_asks_nobody_else_and_holds_no_data() {
    let d = Daemon::start("").await;
    let hostile = "<script>alert(1)</script>\"'&";
    d.live.set(view(vec![state(hostile, Verdict::Breach)]));
    let response = d.get("/").send().await.unwrap();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let html = response.text().await.unwrap();
    let mut bytes = html.len();
    let mut assets: Vec<&str> = html.split('"').filter(|part| part.starts_with("assets/")).collect();
    assert!(assets.len() > 5, "{assets:?}");
    assets.dedup();
    for asset in assets {
        let asset = &format!("/{asset}");
        let response = d.get(asset).send().await.unwrap();
        let tag = response.headers()["etag"].clone();
        let text = response.text().await.unwrap();
        bytes += text.len();
        // The notice of a licence has the address of its project.
        let asks =
            text.lines().filter(|line| !line.starts_with("/*!")).any(|line| line.contains("https://") || line.contains("innerHTML="));
        assert!(!asks || asset.contains("uPlot"), "{asset} asks outside, or takes HTML");
        assert_eq!(d.get(asset).header("if-none-match", tag).send().await.unwrap().status(), 304, "{asset}");
        let packed = d.get(asset).header("accept-encoding", "br, gzip").send().await.unwrap();
        assert_eq!(packed.headers()["content-encoding"], "gzip", "{asset}");
        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(&*packed.bytes().await.unwrap()).read_to_string(&mut unpacked).unwrap();
        assert_eq!(unpacked, text, "{asset}");
    }
    assert!(bytes < 300_000 && !html.contains("alert("), "{bytes}");
    assert_eq!(d.status("/assets/../Cargo.toml").await, 404);
    let path = "/api/v1/experiments/%3Cscript%3Ealert(1)%3C%2Fscript%3E%22'%26";
    assert_eq!(d.json(path).await["experiment"], hostile);
}

#[tokio::test]
async fn the_fleet_is_written_once_for_each_view() {
    let d = Daemon::start("").await;
    let bucket = |units| BucketState {
        bucket: "b".to_owned(),
        baseline: false,
        weight: 0.5,
        exposed_units: units,
        mixed_units: 0,
        exposures: units,
        events: 0,
        exposure_rate: 0.0,
        stopped: None,
    };
    let mut search = state("search", Verdict::Breach);
    search.buckets = vec![bucket(3), bucket(4)];
    d.live.set(view(vec![search]));
    let response = d.get("/api/v1/fleet").send().await.unwrap();
    let tag = response.headers()["etag"].clone();
    let row = response.json::<Value>().await.unwrap()["experiments"][0].clone();
    assert_eq!((&row["experiment"], &row["exposed_units"], &row["verdict"]), (&json!("search"), &json!(7), &json!("breach")));
    let again = |tag| d.get("/api/v1/fleet").header("if-none-match", tag).send();
    assert_eq!(again(tag.clone()).await.unwrap().status(), 304);
    d.live.set(view(vec![]));
    assert_eq!(again(tag).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_taken_address_is_an_error_that_names_it() {
    let d = Daemon::start("").await;
    let error = bind(d.address).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on {}", d.address)), "{error}");
}

#[tokio::test]
async fn assignments_are_streamed_to_operators_and_an_end_too_early_shows() {
    let daemon = Daemon::start("").await;
    let ask = |id: &str, token: &str| daemon.get(&format!("/api/v1/experiments/{id}/assignments")).bearer_auth(token).send();
    assert_eq!(daemon.status("/api/v1/experiments/checkout/assignments").await, 401);
    assert_eq!(ask("checkout", READ).await.unwrap().status(), 403);
    assert_eq!(ask("nobody", OPERATE).await.unwrap().status(), 404);
    let whole = ask("checkout", OPERATE).await.unwrap();
    assert_eq!(whole.headers()["content-type"], "text/csv; charset=utf-8; header=present");
    let text = whole.text().await.unwrap();
    assert!(text.ends_with("checkout,99999\n") && text.lines().count() == 100_000);
    let cut = ask("search", OPERATE).await.unwrap();
    assert_eq!(cut.status(), 200);
    assert!(cut.text().await.is_err(), "the end is missing, and the client knows");
    // The client of these goes away, and their places are free again.
    daemon.live.set(view(vec![state("checkout", Verdict::Safe), state("endless", Verdict::Safe)]));
    let held = [ask("endless", OPERATE).await.unwrap(), ask("endless", OPERATE).await.unwrap()];
    assert_eq!(ask("checkout", OPERATE).await.unwrap().status(), 503, "a third at once");
    drop(held);
    loop {
        if ask("checkout", OPERATE).await.unwrap().status() == 200 {
            break;
        }
        tokio::task::yield_now().await;
    }
    let broken = Daemon::with("", Store { broken: true, ..Store::default() }).await;
    let answer = broken.get("/api/v1/experiments/checkout/assignments").bearer_auth(OPERATE).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"], "disk I/O error");
}
