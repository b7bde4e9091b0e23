//! One attempt: sign, post, judge the answer.

use super::address::Reach;
use super::channel;
use super::endpoint::{Endpoint, EndpointError, EndpointFault};
use super::schedule::retry_after;
use super::sign::{Key, signature};
use crate::engine::time::Millis;
use crate::fail::{self, Point};
use crate::store::Delivery;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, Url, redirect};
use std::sync::Arc;
use std::time::Duration;

/// How much of an answer is read, and how much of that is kept.
const READ_LIMIT: usize = 64 * 1024;
const KEPT: usize = 512;

/// How long the body of an answer is waited for.
const DRAIN: Duration = Duration::from_millis(500);

/// How long an answer is listened for after its attempt has failed: a receiver that was late has acted all the same.
pub(super) const LATE: Duration = Duration::from_secs(60);

/// What an endpoint answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: Option<u16>,
    /// Absent for success, which only a 2xx is.
    pub error: Option<String>,
    pub retry_after: Option<Millis>,
}

impl Answer {
    /// There is none yet.
    pub(super) fn overdue() -> Answer {
        Answer { status: None, error: Some("no answer in time".to_owned()), retry_after: None }
    }

    /// 410: the endpoint wants no more.
    pub(super) fn is_gone(&self) -> bool {
        self.status == Some(410)
    }
}

/// An endpoint and its own pool of connections.
pub struct Sender {
    pub(super) endpoint: Endpoint,
    url: Url,
    keys: Vec<Key>,
    headers: Vec<(HeaderName, HeaderValue)>,
    client: Client,
}

impl Sender {
    /// Needs a process-wide rustls provider.
    ///
    /// # Errors
    /// What is wrong with the endpoint.
    pub fn new(endpoint: Endpoint) -> Result<Sender, EndpointError> {
        endpoint.check()?;
        let faulty = |fault| EndpointError { endpoint: endpoint.name.clone(), fault };
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(endpoint.timeout.min(Duration::from_secs(5)))
            .timeout(endpoint.timeout + LATE)
            .user_agent(concat!("guardraild/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(Resolver { reach: endpoint.reach.clone() }))
            .build()
            .map_err(|e| faulty(EndpointFault::Client(e.to_string())))?;
        let (url, keys) = (endpoint.target().map_err(faulty)?, endpoint.keys().map_err(faulty)?);
        let headers = endpoint.header_values().map_err(faulty)?;
        Ok(Sender { url, keys, headers, client, endpoint })
    }

    pub fn name(&self) -> &str {
        &self.endpoint.name
    }

    /// The endpoint that gets what this one does not receive.
    pub(super) fn fallback(&self) -> Option<&str> {
        self.endpoint.escalate_to.as_deref()
    }

    /// See [`Endpoint::fingerprint`].
    pub fn fingerprint(&self) -> String {
        self.endpoint.fingerprint()
    }

    /// Posts the delivery once, and waits for the endpoint's timeout and [`LATE`]. `now` is the wall clock, ms since the epoch.
    pub(super) async fn attempt(&self, delivery: &Delivery, now: Millis) -> Answer {
        let unanswered = |why: String| Answer { status: None, error: Some(why), retry_after: None };
        if let Err(e) = fail::at(Point::Send) {
            return unanswered(e.to_string());
        }
        let answer = match self.request(delivery, now).send().await {
            Ok(response) => self.judge(response, now).await,
            Err(e) => unanswered(describe(e)),
        };
        match fail::at(Point::Answer) {
            Ok(()) => answer,
            Err(e) => unanswered(e.to_string()),
        }
    }

    /// The signed request of an attempt at this instant, ms since the epoch.
    pub fn request(&self, delivery: &Delivery, now: Millis) -> RequestBuilder {
        let content = channel::content(&self.endpoint, delivery);
        let seconds = now.div_euclid(1_000);
        let mut request = self.client.post(self.url.clone()).header(CONTENT_TYPE, content.content_type);
        if !self.keys.is_empty() {
            let signature = signature(&self.keys, &delivery.id, seconds, &content.body);
            request =
                request.header("webhook-id", &delivery.id).header("webhook-timestamp", seconds).header("webhook-signature", signature);
        }
        if let Some(traceparent) = &delivery.traceparent {
            request = request.header("traceparent", traceparent);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(content.body)
    }

    /// What an answer to a request of `now` (ms since the epoch) says. Any answer will do.
    pub async fn judge(&self, mut response: Response, now: Millis) -> Answer {
        let status = response.status();
        if status.is_success() {
            // Accepted is accepted: what the rest of the answer says, or whether it ever ends, changes nothing.
            read(&mut response).await;
            return Answer { status: Some(status.as_u16()), error: None, retry_after: None };
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| retry_after(v, now));
        let text = self.endpoint.redact(&String::from_utf8_lossy(&read(&mut response).await));
        let text: String = text.trim().chars().take(KEPT).collect();
        let redirect = if status.is_redirection() { ", and redirects are not followed" } else { "" };
        let error = format!("HTTP {}{redirect}{}{text}", status.as_u16(), if text.is_empty() { "" } else { ": " });
        Answer { status: Some(status.as_u16()), error: Some(error), retry_after }
    }
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
