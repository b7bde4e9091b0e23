//! What keeps strangers and bad clients out: TLS, bounds on requests and connections, and the entries of the audit.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use std::path::Path;

/// An authority, and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key in PEM.
    fn sign(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn client(&self, identity: Option<(String, String)>) -> Client {
        let root = reqwest::Certificate::from_pem(self.0.pem().as_bytes()).unwrap();
        let builder = Client::builder().no_proxy().tls_certs_only([root]).pool_max_idle_per_host(0);
        let builder = match identity {
            Some((certificate, key)) => builder.identity(reqwest::Identity::from_pem((certificate + &key).as_bytes()).unwrap()),
            None => builder,
        };
        builder.build().unwrap()
    }
}

fn write(dir: &Path, (certificate, key): &(String, String)) {
    std::fs::write(dir.join("cert.pem"), certificate).unwrap();
    std::fs::write(dir.join("key.pem"), key).unwrap();
}

fn settings(dir: &Path, more: &str) -> String {
    format!("  tls: {{certificate: {0}/cert.pem, key: {0}/key.pem{more}}}\n", dir.display())
}

async fn ask(d: &Daemon, client: &Client) -> reqwest::Result<StatusCode> {
    client.get(format!("https://localhost:{}/livez", d.address.port())).send().await.map(|response| response.status())
}

#[tokio::test(start_paused = true)]
async fn tls_is_served_and_follows_its_files() {
    let (dir, first, second) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    write(dir.path(), &first.sign("localhost", ExtendedKeyUsagePurpose::ServerAuth));
    let d = Daemon::start(&settings(dir.path(), "")).await;
    assert_eq!(ask(&d, &first.client(None)).await.unwrap(), 200);
    assert!(ask(&d, &second.client(None)).await.is_err());
    assert!(d.get("/livez").send().await.is_err(), "plain HTTP is no longer understood");

    // A half-written pair is not taken.
    std::fs::write(dir.path().join("cert.pem"), "-----BEGIN CERT").unwrap();
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(ask(&d, &first.client(None)).await.unwrap(), 200);
    write(dir.path(), &second.sign("localhost", ExtendedKeyUsagePurpose::ServerAuth));
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(ask(&d, &second.client(None)).await.unwrap(), 200);
    assert!(ask(&d, &first.client(None)).await.is_err());
}

#[tokio::test]
async fn clients_without_the_certificate_that_is_asked_for_stay_outside() {
    let (dir, authority, other) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    write(dir.path(), &authority.sign("localhost", ExtendedKeyUsagePurpose::ServerAuth));
    std::fs::write(dir.path().join("clients.pem"), authority.0.pem()).unwrap();
    let d = Daemon::start(&settings(dir.path(), &format!(", client_ca: {}/clients.pem", dir.path().display()))).await;
    let identity = |from: &Authority| Some(from.sign("oncall", ExtendedKeyUsagePurpose::ClientAuth));
    assert_eq!(ask(&d, &authority.client(identity(&authority))).await.unwrap(), 200);
    assert!(ask(&d, &authority.client(None)).await.is_err());
    assert!(ask(&d, &authority.client(identity(&other))).await.is_err());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let files = guardraild::config::Tls { certificate: dir.path().join("cert.pem"), key: dir.path().join("key.pem"), client_ca: None };
    let error = || Tls::load(&files).err().unwrap().to_string();
    assert!(error().contains("cert.pem: No such file"), "{}", error());
    let (certificate, key) = authority.sign("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let other = authority.sign("localhost", ExtendedKeyUsagePurpose::ServerAuth).1;
    write(dir.path(), &(key.clone(), key));
    assert!(error().contains("cert.pem: no certificate"), "{}", error());
    write(dir.path(), &(certificate.clone(), certificate.clone()));
    assert!(error().contains("key.pem: no private key"), "{}", error());
    write(dir.path(), &(certificate, other));
    assert!(error().contains("certificate and key"), "{}", error());
}

/// What comes back for raw bytes, up to the end of the connection.
async fn raw(d: &Daemon, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(d.address).await.unwrap();
    // The daemon may close before it has read all.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_have_bounds() {
    let d = Daemon::start("").await;
    let rest = "host: localhost\r\nconnection: close\r\n\r\n";
    let long = "a".repeat(5_000);
    assert!(raw(&d, format!("GET /{long} HTTP/1.1\r\n{rest}").as_bytes()).await.starts_with("HTTP/1.1 414"));
    let many: String = (0..80).map(|i| format!("x-{i}: 1\r\n")).collect();
    assert!(raw(&d, format!("GET /livez HTTP/1.1\r\n{many}{rest}").as_bytes()).await.starts_with("HTTP/1.1 431"));
    let large = format!("x: {}\r\n", "a".repeat(20_000));
    assert!(raw(&d, format!("GET /livez HTTP/1.1\r\n{large}{rest}").as_bytes()).await.starts_with("HTTP/1.1 431"));
    assert!(raw(&d, b"\x16\x03\x01 what is this\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert!(raw(&d, format!("GET /livez HTTP/1.1\r\n{rest}").as_bytes()).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_and_an_idle_connection_are_closed() {
    let d = Daemon::start("").await;
    for begun in ["", "GET /livez HT", "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let mut stream = TcpStream::connect(d.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Time is played, so this is the daemon's patience and not ours.
        tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.expect("the connection stays open").unwrap();
    }
}

/// Lines that are logged while a subscriber is in force.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn every_write_is_told_with_its_holder_and_floods_are_not() {
    let lines = Lines::default();
    let sink = lines.clone();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || sink.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let d = Daemon::start("").await;
    let hold = "/api/v1/experiments/checkout/hold";
    d.post(hold, Some(OPERATE), json!({"reason": "r"})).await;
    d.post(hold, Some(READ), json!({"reason": "r"})).await;
    d.get("/api/v1/rejects").bearer_auth(OPERATE).send().await.unwrap();
    d.post("/hooks/flagger/confirm", None, json!({"name": "checkout"})).await;
    for _ in 0..100 {
        d.post(hold, Some("wrong-token-0123456789"), json!({"reason": "r"})).await;
    }
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let entries: Vec<&Value> = entries.iter().filter(|entry| entry["target"] == "guardraild::audit").collect();
    let told = |entry: &Value| (entry["holder"].clone(), entry["peer"].clone(), entry["path"].clone(), entry["status"].as_u64().unwrap());
    assert_eq!(told(entries[0]), (json!("oncall"), json!("127.0.0.1"), json!(hold), 200));
    assert_eq!(told(entries[1]), (json!("dash"), json!("127.0.0.1"), json!(hold), 403));
    assert_eq!(told(entries[2]), (json!("oncall"), json!("127.0.0.1"), json!("/api/v1/rejects"), 200));
    assert_eq!(told(entries[3]), (json!("nobody known"), json!("127.0.0.1"), json!(hold), 401));
    assert_eq!(entries.len(), 2 + 30, "the rest of the flood is counted");
    assert!(!text.contains("wrong-token") && !text.contains(OPERATE));
    let metrics = d.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("guardraild_dropped_total{reason=\"audit_entries\"} 71\n"), "{metrics}");
}
