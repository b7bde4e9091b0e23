//! One attempt: make the request, send it, judge the answer.

use super::address::Reach;
use super::endpoint::{Endpoint, EndpointError, EndpointFault, Kind};
use super::schedule::retry_after;
use super::sign::{Key, signature};
use super::template::{self, Unfit};
use super::{channel, flagd, preset};
use crate::engine::time::Millis;
use crate::fail::{self, Point};
use crate::store::Delivery;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, Client, ClientBuilder, Request, RequestBuilder, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How much of an answer is read, and how much of that is kept.
const READ_LIMIT: usize = 64 * 1024;
const KEPT: usize = 512;

/// How long the body of an answer is waited for.
const DRAIN: Duration = Duration::from_millis(500);

/// How long an answer is listened for after its attempt has failed: a receiver that was late has acted all the same.
pub(super) const LATE: Duration = Duration::from_secs(60);

/// How long a receiver with too much to do is left alone, in ms, if it does not say.
const TOO_MANY: Millis = 30_000;

/// What an endpoint answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: Option<u16>,
    /// Absent for success, which only a 2xx is.
    pub error: Option<String>,
    pub retry_after: Option<Millis>,
    /// The same request will never be taken.
    pub hopeless: bool,
    /// What the receiver knows the message by.
    pub receipt: Option<String>,
}

impl Answer {
    /// There is none yet.
    pub fn overdue() -> Answer {
        Answer::none("no answer in time".to_owned())
    }

    /// None will come, and why.
    pub fn none(why: String) -> Answer {
        Answer { error: Some(why), ..Answer::default() }
    }

    /// A status that is no success, the patience that it asks for, and what its text adds.
    pub fn refused(kind: Kind, status: u16, asked: Option<Millis>, told: &str) -> Answer {
        let redirect = if (300..400).contains(&status) { ", and redirects are not followed" } else { "" };
        Answer {
            status: Some(status),
            error: Some(format!("HTTP {status}{redirect}{told}")),
            retry_after: asked.or((status == 429).then_some(TOO_MANY)),
            hopeless: channel::never_takes(kind, status),
            ..Answer::default()
        }
    }

    /// 410: the endpoint wants no more.
    pub(super) fn is_gone(&self) -> bool {
        self.status == Some(410)
    }
}

impl From<Unfit> for Answer {
    fn from(Unfit(why): Unfit) -> Answer {
        Answer { hopeless: true, ..Answer::none(why) }
    }
}

/// An endpoint and its own pool of connections.
pub struct Sender {
    pub(super) endpoint: Endpoint,
    urls: Vec<Url>,
    keys: Vec<Key>,
    headers: Vec<(HeaderName, HeaderValue)>,
    client: Client,
    /// The token that was last read from its file.
    fresh: Mutex<Option<SecretString>>,
    /// When the next message may go out, where the product asks for a pause between two.
    next: tokio::sync::Mutex<Instant>,
    /// Held while a file is replaced.
    writing: Arc<Mutex<()>>,
}

impl Sender {
    /// Needs a process-wide rustls provider.
    ///
    /// # Errors
    /// What is wrong with the endpoint.
    pub fn new(endpoint: Endpoint) -> Result<Sender, EndpointError> {
        endpoint.check()?;
        let faulty = |fault| EndpointError { endpoint: endpoint.name.clone(), fault };
        let builder = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(endpoint.timeout.min(Duration::from_secs(5)))
            .timeout(endpoint.timeout + LATE)
            .user_agent(concat!("guardraild/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(Resolver { reach: endpoint.reach.clone() }));
        let builder = trusting(builder, &endpoint).map_err(|e| faulty(EndpointFault::Client(e)))?;
        let client = builder.build().map_err(|e| faulty(EndpointFault::Client(e.to_string())))?;
        let (urls, keys) = (endpoint.targets().map_err(faulty)?, endpoint.keys().map_err(faulty)?);
        let headers = endpoint.header_values().map_err(faulty)?;
        let (fresh, next) = (Mutex::default(), tokio::sync::Mutex::new(Instant::now()));
        Ok(Sender { urls, keys, headers, client, endpoint, fresh, next, writing: Arc::default() })
    }

    pub fn name(&self) -> &str {
        &self.endpoint.name
    }

    /// The endpoint that gets what this one does not receive.
    pub(super) fn fallback(&self) -> Option<&str> {
        self.endpoint.escalate_to.as_deref()
    }

    /// Whether the receiver knows what a message follows up.
    pub(super) fn follows_up(&self) -> bool {
        self.endpoint.kind == Kind::Slack && self.endpoint.token.is_some()
    }

    /// See [`Endpoint::fingerprint`].
    pub fn fingerprint(&self) -> String {
        self.endpoint.fingerprint()
    }

    /// Sends the delivery once, and waits for the endpoint's timeout and [`LATE`]. `now` is the wall clock, ms since the epoch.
    pub async fn attempt(&self, delivery: &Delivery, now: Millis) -> Answer {
        if let Err(e) = fail::at(Point::Send) {
            return Answer::none(e.to_string());
        }
        let answer = match self.endpoint.kind {
            Kind::Flagd => self.write(delivery).await,
            _ => self.call(delivery, now).await,
        };
        match fail::at(Point::Answer) {
            Ok(()) => answer,
            Err(e) => Answer::none(e.to_string()),
        }
    }

    async fn call(&self, delivery: &Delivery, now: Millis) -> Answer {
        if let Err(why) = self.refresh().await {
            return Answer::none(why);
        }
        let request = match self.request(delivery, now).map(RequestBuilder::build) {
            Ok(Ok(request)) => request,
            Ok(Err(e)) => return Answer { hopeless: true, ..Answer::none(describe(e)) },
            Err(unfit) => return unfit.into(),
        };
        self.wait_turn().await;
        match self.urls.len() {
            0 | 1 => self.hear(self.client.execute(request).await, delivery, now).await,
            _ => self.first(self.call_all(request), delivery, now).await,
        }
    }

    /// Says again what stands, to all members of a cluster of Alertmanagers.
    ///
    /// # Errors
    /// Why none of them has taken it.
    pub(super) async fn say_again(&self, body: String) -> Result<(), String> {
        let Some(url) = self.urls.first() else { return Ok(()) };
        let mut request = self.client.post(url.clone()).header(CONTENT_TYPE, "application/json").timeout(self.endpoint.timeout).body(body);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut calls = self.call_all(request.build().map_err(describe)?);
        let mut worst = String::new();
        while let Some(answer) = calls.join_next().await {
            match answer {
                Ok(Ok(response)) if response.status().is_success() => {
                    calls.detach_all();
                    return Ok(());
                }
                Ok(Ok(response)) => worst = format!("HTTP {}", response.status().as_u16()),
                Ok(Err(e)) => worst = describe(e),
                Err(e) => worst = e.to_string(),
            }
        }
        Err(worst)
    }

    /// The same request to all members of a cluster.
    fn call_all(&self, request: Request) -> JoinSet<reqwest::Result<Response>> {
        let mut calls = JoinSet::new();
        for url in &self.urls {
            let Some(mut copy) = request.try_clone() else { continue };
            *copy.url_mut() = url.clone();
            let client = self.client.clone();
            calls.spawn(async move { client.execute(copy).await });
        }
        calls
    }

    /// One answer is enough; the other members hear of it all the same.
    async fn first(&self, mut calls: JoinSet<reqwest::Result<Response>>, delivery: &Delivery, now: Millis) -> Answer {
        let mut worst = Answer::none("nobody was asked".to_owned());
        while let Some(answer) = calls.join_next().await {
            let answer = match answer {
                Ok(answer) => self.hear(answer, delivery, now).await,
                Err(e) => Answer::none(e.to_string()),
            };
            if answer.error.is_none() {
                calls.detach_all();
                return answer;
            }
            worst = answer;
        }
        worst
    }

    async fn hear(&self, answer: reqwest::Result<Response>, delivery: &Delivery, now: Millis) -> Answer {
        match answer {
            Ok(response) => self.judge(response, delivery, now).await,
            Err(e) => Answer::none(describe(e)),
        }
    }

    /// Changes a file, on a thread that may wait for the disk.
    async fn write(&self, delivery: &Delivery) -> Answer {
        let (endpoint, delivery, writing) = (self.endpoint.clone(), delivery.clone(), Arc::clone(&self.writing));
        let written = tokio::task::spawn_blocking(move || {
            // One after the other: each changes what it has read.
            let _turn = writing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            flagd::apply(&endpoint, &delivery)
        });
        match written.await {
            Ok(Ok(())) => Answer::default(),
            Ok(Err(flagd::FlagdError::Unfit(unfit))) => unfit.into(),
            Ok(Err(e)) => Answer::none(e.to_string()),
            Err(e) => Answer::none(e.to_string()),
        }
    }

    /// Reads a token that the platform keeps fresh.
    async fn refresh(&self) -> Result<(), String> {
        let Some(path) = self.endpoint.token_file.clone() else { return Ok(()) };
        let shown = path.display().to_string();
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await.map_err(|e| e.to_string())?;
        let token = read.map_err(|e| format!("cannot read the token in {shown}: {e}"))?;
        *self.fresh.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(SecretString::from(token.trim()));
        Ok(())
    }

    fn token(&self) -> Option<SecretString> {
        self.endpoint.token.clone().or_else(|| self.fresh.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone())
    }

    /// Waits until the product takes a further message.
    async fn wait_turn(&self) {
        let pause = channel::pause(self.endpoint.kind);
        if pause.is_zero() {
            return;
        }
        let mut next = self.next.lock().await;
        tokio::time::sleep_until(*next).await;
        *next = Instant::now() + pause;
    }

    /// The request of an attempt at this instant, ms since the epoch; signed where the kind signs.
    ///
    /// # Errors
    /// Why this message can never be sent here.
    pub fn request(&self, delivery: &Delivery, now: Millis) -> Result<RequestBuilder, Unfit> {
        let url = self.urls.first().ok_or_else(|| Unfit("a file is written, not called".into()))?;
        let mut request = match preset::made(&self.endpoint, url, delivery) {
            Some(made) => {
                let made = made?;
                let headers = made.headers.into_iter().chain([("webhook-id", delivery.id.clone())]);
                headers
                    .fold(self.client.request(made.method, made.url), |request, (name, value)| request.header(name, value))
                    .body(made.body)
            }
            None => {
                let content = channel::content(&self.endpoint, delivery, now);
                let request = self.client.post(url.clone()).header(CONTENT_TYPE, content.content_type);
                self.signed(request, &delivery.id, now, &content.body).body(content.body)
            }
        };
        if let Some(traceparent) = &delivery.traceparent {
            request = request.header("traceparent", traceparent);
        }
        if let Some(token) = self.token() {
            let (name, before) = preset::auth(self.endpoint.kind);
            let value = HeaderValue::from_str(&format!("{before}{}", token.expose_secret()));
            let mut value = value.map_err(|_| Unfit("the token cannot be sent in a header".into()))?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        Ok(request)
    }

    /// What it would need on this machine to act, and does not find now: the file that it changes, or a token that the platform keeps fresh.
    pub fn lacks(&self) -> Option<String> {
        let needed = [("token", &self.endpoint.token_file), ("file", &self.endpoint.file)];
        needed.into_iter().find_map(|(what, path)| {
            let path = path.as_ref()?;
            let error = std::fs::File::open(path).err()?;
            Some(format!("the {what} {} cannot be read: {error}", path.display()))
        })
    }

    /// Whether the endpoint could ever act on a message.
    ///
    /// # Errors
    /// Why not.
    pub fn fits(&self, delivery: &Delivery, now: Millis) -> Result<(), Unfit> {
        match self.endpoint.kind {
            Kind::Flagd => flagd::asked(&self.endpoint, delivery).map(drop),
            _ => self.request(delivery, now).map(drop),
        }
    }

    fn signed(&self, request: RequestBuilder, id: &str, now: Millis, body: &str) -> RequestBuilder {
        if self.keys.is_empty() {
            return request;
        }
        let seconds = now.div_euclid(1_000);
        let signature = signature(&self.keys, id, seconds, body);
        request.header("webhook-id", id).header("webhook-timestamp", seconds).header("webhook-signature", signature)
    }

    /// What an answer to a request of `now` (ms since the epoch) says. Any answer will do.
    pub async fn judge(&self, mut response: Response, delivery: &Delivery, now: Millis) -> Answer {
        let status = response.status();
        let code = status.as_u16();
        let mut answer = Answer { status: Some(code), ..Answer::default() };
        // How an answer ends, or whether it does, changes nothing.
        let body = read(&mut response).await;
        if status.is_success() {
            match self.accepted(code, &body, delivery) {
                Ok(receipt) => answer.receipt = receipt,
                Err(why) => answer.error = Some(format!("HTTP {code}, but {why}{}", self.told(&body))),
            }
            return answer;
        }
        let asked = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| retry_after(v, now));
        Answer::refused(self.endpoint.kind, code, asked, &self.told(&body))
    }

    /// The beginning of an answer's text.
    fn told(&self, body: &[u8]) -> String {
        let text = self.redact(&String::from_utf8_lossy(body));
        let text: String = text.trim().chars().take(KEPT).collect();
        if text.is_empty() { text } else { format!(": {text}") }
    }

    /// See [`Endpoint::redact`].
    pub fn redact(&self, text: &str) -> String {
        let text = self.endpoint.redact(text);
        match self.token() {
            Some(token) if !token.expose_secret().is_empty() => text.replace(token.expose_secret(), "[redacted]"),
            _ => text,
        }
    }

    /// Whether an answer with 2xx means what it seems to; the receipt, if there is one.
    fn accepted(&self, status: u16, body: &[u8], delivery: &Delivery) -> Result<Option<String>, String> {
        if self.endpoint.kind == Kind::Slack {
            return channel::slack_took(body);
        }
        let Some(url) = self.urls.first() else { return Ok(None) };
        let made = preset::made(&self.endpoint, url, delivery).and_then(Result::ok);
        let Some((expression, values)) = made.and_then(|made| made.success) else { return Ok(None) };
        match template::holds(&expression, status, body, &values) {
            Ok(true) => Ok(None),
            Ok(false) => Err(format!("not `{expression}`")),
            Err(Unfit(why)) => Err(why),
        }
    }
}

/// With the authorities that the endpoint names, beside those that this machine trusts.
fn trusting(builder: ClientBuilder, endpoint: &Endpoint) -> Result<ClientBuilder, String> {
    let Some(path) = &endpoint.ca_file else { return Ok(builder) };
    let fault = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let pem = std::fs::read(path).map_err(|e| fault(&e))?;
    Ok(builder.tls_certs_merge(Certificate::from_pem_bundle(&pem).map_err(|e| fault(&e))?))
}

/// The answer's body up to [`READ_LIMIT`], or as much of it as came in time.
async fn read(response: &mut Response) -> Vec<u8> {
    let (mut bytes, deadline) = (Vec::new(), tokio::time::Instant::now() + DRAIN);
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout_at(deadline, response.chunk()).await {
        let room = READ_LIMIT - bytes.len();
        bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if bytes.len() == READ_LIMIT {
            break;
        }
    }
    bytes
}

/// An error with its causes and without the address, which may hold a credential.
fn describe(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return if error.is_connect() { "no connection in time" } else { "no answer in time" }.to_owned();
    }
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text.chars().take(KEPT).collect()
}

/// Resolves names and drops the addresses that may not be called. What is left is what is connected to, so that a name cannot lead where
/// an address may not, whatever it says the next time.
struct Resolver {
    reach: Reach,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach.clone();
        Box::pin(async move {
            let mut refused = "the name has no address";
            let mut found = Vec::new();
            for address in tokio::net::lookup_host((name.as_str(), 0)).await? {
                match reach.address(name.as_str(), address.ip()) {
                    Ok(()) => found.push(address),
                    Err(why) => refused = why,
                }
            }
            if found.is_empty() { Err(refused.into()) } else { Ok(Box::new(found.into_iter()) as Addrs) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_lead_to_no_forbidden_address() {
        let found = |name: &'static str, link_local| async move {
            let resolver = Resolver { reach: Reach { link_local, ..Reach::default() } };
            let addresses = resolver.resolve(name.parse().unwrap()).await.map_err(|e| e.to_string())?;
            Ok::<_, String>(addresses.map(|a| a.ip().to_string()).collect::<Vec<_>>())
        };
        assert!(found("169.254.169.254", false).await.unwrap_err().contains("link-local"));
        assert_eq!(found("169.254.169.254", true).await.unwrap(), ["169.254.169.254"]);
        assert_eq!(found("127.0.0.1", false).await.unwrap(), ["127.0.0.1"]);
    }
}
