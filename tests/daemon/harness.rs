//! A broker, a receiver of webhooks and the daemon as a child process: what every acceptance test stands on.

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const BIN: &str = env!("CARGO_BIN_EXE_guardraild");
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub const OPERATOR: &str = "operator-token-0123456789";
pub const READER: &str = "reader-token-0123456789";
/// Far more than anything here takes, on a busy machine too.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until `what` gives a value.
pub fn until<T>(name: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = what() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {name}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn holds(name: &str, mut what: impl FnMut() -> bool) {
    until(name, || what().then_some(()));
}

/// The embedded broker.
pub struct Kafka {
    pub cluster: MockCluster<'static, DefaultProducerContext>,
    pub pen: Pen,
}

/// A producer; usable on any thread.
#[derive(Clone)]
pub struct Pen(Arc<BaseProducer>);

impl Kafka {
    pub fn start(topics: &[&str], partitions: i32) -> Kafka {
        let cluster = MockCluster::new(1).unwrap();
        for topic in topics {
            cluster.create_topic(topic, partitions, 1).unwrap();
        }
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("compression.type", "lz4")
            .set("linger.ms", "2")
            .set("reconnect.backoff.max.ms", "200")
            .create()
            .unwrap();
        Kafka { cluster, pen: Pen(Arc::new(producer)) }
    }
}

impl std::ops::Deref for Kafka {
    type Target = Pen;

    fn deref(&self) -> &Pen {
        &self.pen
    }
}

impl Pen {
    pub fn send(&self, topic: &str, partition: i32, timestamp: i64, payload: &[u8]) {
        let record = BaseRecord::<(), _>::to(topic).partition(partition).timestamp(timestamp).payload(payload);
        self.0.send(record).map_err(|(e, _)| e).unwrap();
    }

    /// All that was sent is with the broker.
    pub fn flush(&self) {
        self.0.flush(DEADLINE).unwrap();
    }

    /// Sends records to partition 0 of one topic, in their order, and does not wait for the broker.
    pub fn pour(&self, topic: &str, records: &[Record]) {
        records.iter().for_each(|r| self.send(topic, 0, r.ts, &r.payload));
        self.0.poll(Duration::ZERO);
    }

    /// [`Pen::pour`], and all is with the broker.
    pub fn write(&self, topic: &str, records: &[Record]) {
        self.pour(topic, records);
        self.flush();
    }
}

/// A record and its event time.
#[derive(Clone, Debug)]
pub struct Record {
    pub ts: i64,
    pub payload: Vec<u8>,
}

/// A request as the receiver saw it.
#[derive(Clone, Debug)]
pub struct Hit {
    pub id: String,
    pub kind: String,
    pub data: Value,
    pub status: u16,
}

type Script = Box<dyn Fn(usize, &str) -> u16 + Send + Sync>;

/// A receiver of webhooks whose answers a script gives; every request must be signed.
pub struct Hook {
    pub url: String,
    hits: Arc<Mutex<Vec<Hit>>>,
}

impl Hook {
    /// `script` gets the request's number, from 0, and its type, and returns the status. It is asked once the hit has been recorded.
    pub fn start(script: Script) -> Hook {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let hits = Arc::new(Mutex::new(Vec::new()));
        let (log, script) = (Arc::clone(&hits), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, script) = (Arc::clone(&log), Arc::clone(&script));
                std::thread::spawn(move || serve(stream, &log, &script));
            }
        });
        Hook { url, hits }
    }

    pub fn ok() -> Hook {
        Hook::start(Box::new(|_, _| 200))
    }

    pub fn hits(&self) -> Vec<Hit> {
        self.hits.lock().unwrap().clone()
    }

    pub fn of(&self, kind: &str) -> Vec<Hit> {
        self.hits().into_iter().filter(|h| h.kind == kind).collect()
    }

    /// Different ids among the requests of one type.
    pub fn ids(&self, kind: &str) -> Vec<String> {
        let mut ids: Vec<String> = self.of(kind).into_iter().map(|h| h.id).collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Hit>>, script: &Script) {
    let mut reader = BufReader::new(stream);
    while let Some((head, body)) = read_message(&mut reader) {
        let header = |name: &str| header(&head, name).unwrap_or_else(|| panic!("no {name} in {head}")).to_owned();
        let (id, at, signature) = (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
        let webhook = standardwebhooks::Webhook::new(SECRET).unwrap();
        let expected = webhook.sign(&id, at.parse().unwrap(), &body).unwrap();
        assert!(signature.split(' ').any(|s| s == expected), "bad signature of {id}");
        let mut body: Value = serde_json::from_slice(&body).unwrap();
        let kind = body["type"].as_str().unwrap().to_owned();
        let number = {
            let mut log = log.lock().unwrap();
            log.push(Hit { id, kind: kind.clone(), data: body["data"].take(), status: 0 });
            log.len() - 1
        };
        let status = script(number, &kind);
        log.lock().unwrap()[number].status = status;
        // A daemon that was killed meanwhile does not hear it.
        if reader.get_mut().write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// Head and body of an HTTP message with a length; `None` at the end of the connection.
pub fn read_message(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while reader.read_line(&mut head).ok()? > 2 {}
    if head.is_empty() {
        return None;
    }
    let mut body = vec![0; header(&head, "content-length").and_then(|n| n.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// A directory with rules, a configuration and the daemon's state.
pub struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    /// `kafka` is the inside of the configuration's `kafka` section.
    pub fn new(kafka: &str, hook: &Hook, rules: &[(&str, String)]) -> Site {
        let site = Site { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(site.path("rules")).unwrap();
        for (name, text) in rules {
            std::fs::write(site.path("rules").join(format!("{name}.yaml")), text).unwrap();
        }
        std::fs::write(site.path("hook.secret"), SECRET).unwrap();
        let config = format!(
            "state_dir: state
rules: [rules]
kafka: {{{kafka}}}
http:
  listen: 127.0.0.1:0
  tokens:
    - {{name: sre, role: operate, token: {{env: OPERATOR}}}}
    - {{name: viewer, role: read, token: {{env: READER}}}}
endpoints:
  hook: {{kind: webhook, url: \"{}\", secrets: [{{file: hook.secret}}]}}
checkpoint: {{every: 1s}}
",
            hook.url
        );
        std::fs::write(site.config(), config).unwrap();
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("guardraild.yaml")
    }

    /// The daemon's command.
    pub fn command(&self) -> Command {
        self.equip(Command::new(BIN))
    }

    /// Adds the arguments and the environment: tokens, and none of the caller's own settings. Every start joins a group of its own, so
    /// that it need not wait until the broker has given up a member that was killed; where to go on is never taken from a group.
    pub fn equip(&self, mut command: Command) -> Command {
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GUARDRAILD_")) {
            command.env_remove(name);
        }
        static STARTS: AtomicUsize = AtomicUsize::new(0);
        let group = format!("kafka.group=start-{}", STARTS.fetch_add(1, Ordering::Relaxed));
        command.arg("run").arg("--config").arg(self.config()).args(["--set", &group]);
        command.env("OPERATOR", OPERATOR).env("READER", READER);
        command
    }

    pub fn start(&self, overrides: &[&str]) -> Daemon {
        let mut command = self.command();
        for set in overrides {
            command.args(["--set", set]);
        }
        Daemon::spawn(command)
    }

    pub fn database(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
        rusqlite::Connection::open_with_flags(self.path("state").join("guardraild.db"), flags).unwrap()
    }

    /// Bodies of all stored decisions, in their order.
    pub fn decisions(&self) -> Vec<String> {
        let database = self.database();
        let mut statement = database.prepare("SELECT body FROM decisions ORDER BY seq").unwrap();
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }
}

/// The inside of a `kafka` section for one topic that holds everything.
pub fn one_topic(kafka: &Kafka, topic: &str) -> String {
    format!(
        "brokers: [\"{}\"], topics: {{exposures: [{topic}], events: [], control: []}}, \
         properties: {{reconnect.backoff.max.ms: 200, topic.metadata.refresh.interval.ms: 500}}",
        kafka.cluster.bootstrap_servers()
    )
}

/// The running program; killed when dropped.
pub struct Daemon {
    pub child: Child,
    log: Arc<Mutex<Vec<String>>>,
    address: Option<SocketAddr>,
}

impl Daemon {
    pub fn spawn(command: Command) -> Daemon {
        Daemon::fed(command, Stdio::null())
    }

    /// With standard input, which [`Daemon::end_input`] ends.
    pub fn fed(mut command: Command, input: Stdio) -> Daemon {
        let mut child = command.stdin(input).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Daemon { child, log, address: None }
    }

    pub fn end_input(&mut self) {
        drop(self.child.stdin.take());
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub fn logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// Where the API listens, once it does.
    pub fn address(&mut self) -> SocketAddr {
        if let Some(address) = self.address {
            return address;
        }
        let address = until("the daemon listens", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}:\n{}", self.log().join("\n"));
            }
            let line = self.log().into_iter().find(|line| line.contains("\"listening\"") || line.contains("\"standing by\""))?;
            let line: Value = serde_json::from_str(&line).unwrap();
            Some(line["address"].as_str().unwrap().parse().unwrap())
        });
        self.address = Some(address);
        address
    }

    /// Status and body.
    pub fn get(&mut self, path: &str) -> (u16, String) {
        self.request("GET", path, &authorization(OPERATOR), "")
    }

    /// The metrics as OpenMetrics.
    pub fn open_metrics(&mut self) -> String {
        self.request("GET", "/metrics", &format!("{}accept: application/openmetrics-text\r\n", authorization(OPERATOR)), "").1
    }

    pub fn json(&mut self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn post(&mut self, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
        let (status, body) = self.request("POST", path, &token.map(authorization).unwrap_or_default(), body);
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    fn request(&mut self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let (mut head, mut body, mut reader) = (String::new(), String::new(), BufReader::new(stream));
        while reader.read_line(&mut head).unwrap() > 2 {}
        reader.read_to_string(&mut body).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            body = dechunked(&body);
        }
        (status, body)
    }

    pub fn ready(&mut self) {
        holds("the daemon is ready", || self.get("/readyz").0 == 200);
    }

    /// Records counted so far, by all outcomes.
    pub fn records(&mut self) -> u64 {
        total(&self.json("/api/v1/experiments")["counts"])
    }

    pub fn until_records(&mut self, n: usize) {
        let (deadline, mut known) = (Instant::now() + DEADLINE, 0);
        while known < n as u64 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            known = self.records();
        }
        assert_eq!(known, n as u64, "records counted: {}", self.get("/api/v1/experiments").1);
    }

    pub fn log_of(&mut self, experiment: &str) -> Vec<Value> {
        let page = self.json(&format!("/api/v1/experiments/{experiment}/log?limit=1000"));
        page["entries"].as_array().unwrap().clone()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub fn ask_to_stop(&self) {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// [`Daemon::ask_to_stop`]; returns how it ended and what it said.
    pub fn terminate(mut self) -> (ExitStatus, Vec<String>) {
        self.ask_to_stop();
        (self.wait(), self.log())
    }

    pub fn wait(&mut self) -> ExitStatus {
        until("the daemon ends", || self.child.try_wait().unwrap())
    }

    /// Resident memory, in MiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log().join("\n"));
        }
    }
}

fn authorization(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

fn dechunked(body: &str) -> String {
    let (mut out, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        out.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    out
}

/// Records by all outcomes of a `counts` object.
pub fn total(counts: &Value) -> u64 {
    let plain = ["accepted", "late", "duplicate", "waiting", "unattributed", "unknown_experiment", "inactive"];
    let rejected = counts["rejected"].as_object().map_or(0, |r| r.values().filter_map(Value::as_u64).sum());
    plain.iter().filter_map(|name| counts[name].as_u64()).sum::<u64>() + rejected
}
