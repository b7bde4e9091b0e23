//! Who receives webhooks: the checked form of the endpoints that `config/` names.

use super::address::Reach;
use super::sign::Key;
pub use crate::config::EndpointKind as Kind;
use crate::config::{self, Template};
use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// One receiver.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// As rule files name it.
    pub name: String,
    pub kind: Kind,
    /// `http` or `https`; secret, because some products put their credential into it. Empty for a file.
    pub url: SecretString,
    /// Further members of a cluster that all get the same.
    pub peers: Vec<SecretString>,
    /// Signing secrets, newest first: `whsec_` and base64, or the bytes themselves; 24 to 64 bytes. Several while one rotates.
    pub secrets: Vec<SecretString>,
    /// PagerDuty's integration key.
    pub routing_key: Option<SecretString>,
    /// What a product's API knows the caller by.
    pub token: Option<SecretString>,
    /// A file with that token, read for each attempt.
    pub token_file: Option<PathBuf>,
    /// Certificates of further authorities, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Of flagd's definitions.
    pub file: Option<PathBuf>,
    /// Which flag, of which environment …
    pub texts: BTreeMap<String, String>,
    /// Of kind [`Kind::Template`].
    pub template: Option<Template>,
    /// Further headers, such as `Authorization`.
    pub headers: Vec<(String, SecretString)>,
    /// Of one attempt, from connecting to the last byte of the answer.
    pub timeout: Duration,
    /// Which hosts and addresses may be called.
    pub reach: Reach,
    /// The endpoint that gets what this one does not receive.
    pub escalate_to: Option<String>,
}

/// A fault of an endpoint's definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("endpoint `{endpoint}`: {fault}")]
pub struct EndpointError {
    pub endpoint: String,
    pub fault: EndpointFault,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointFault {
    #[error("the url must be an absolute http or https address")]
    Url,
    #[error("the url's host is not among delivery.hosts")]
    Host,
    #[error("the url may not be called: {0} (delivery.loopback, delivery.private, or allow_link_local of the endpoint)")]
    Address(&'static str),
    #[error("no signing secret: every webhook is signed")]
    NoSecret,
    #[error("signing secret {number}: {why}")]
    Secret { number: usize, why: &'static str },
    #[error("no routing key")]
    NoRoutingKey,
    #[error("no file of flags")]
    NoFile,
    #[error("its token cannot be sent in a header")]
    Token,
    #[error("header `{0}` is not valid in HTTP")]
    Header(String),
    #[error("header `{0}` is set by the daemon")]
    ReservedHeader(String),
    #[error("the timeout must be longer than zero and at most 60 s")]
    Timeout,
    #[error("the HTTP client could not be made: {0}")]
    Client(String),
}

/// Headers that an endpoint's own may not replace.
const RESERVED: [&str; 7] =
    ["webhook-id", "webhook-timestamp", "webhook-signature", "content-type", "content-length", "host", "transfer-encoding"];

impl Endpoint {
    /// An endpoint with the default timeout of 15 s and nothing else.
    pub fn new(name: impl Into<String>, kind: Kind, url: impl Into<String>) -> Endpoint {
        Endpoint {
            name: name.into(),
            kind,
            url: SecretString::from(url.into()),
            peers: Vec::new(),
            secrets: Vec::new(),
            routing_key: None,
            token: None,
            token_file: None,
            ca_file: None,
            file: None,
            texts: BTreeMap::new(),
            template: None,
            headers: Vec::new(),
            timeout: Duration::from_secs(15),
            reach: Reach::default(),
            escalate_to: None,
        }
    }

    /// As the configuration has it, under this name, and within what `delivery` permits.
    pub fn configured(name: &str, from: &config::Endpoint, within: &config::Delivery) -> Endpoint {
        let mut urls = from.urls.iter().cloned();
        Endpoint {
            url: urls.next().unwrap_or_default(),
            peers: urls.collect(),
            secrets: from.secrets.clone(),
            routing_key: from.routing_key.clone(),
            token: from.token.clone(),
            token_file: from.token_file.clone(),
            ca_file: from.ca_file.clone(),
            file: from.file.clone(),
            texts: from.texts.clone(),
            template: from.template.clone(),
            headers: from.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            timeout: from.timeout,
            escalate_to: from.escalate_to.clone(),
            reach: Reach {
                hosts: within.hosts.clone(),
                loopback: within.loopback,
                private: within.private,
                link_local: from.allow_link_local,
            },
            ..Endpoint::new(name, from.kind, "")
        }
    }

    /// The first fault, if there is one.
    pub fn check(&self) -> Result<(), EndpointError> {
        let faulty = |fault| EndpointError { endpoint: self.name.clone(), fault };
        self.targets().map_err(faulty)?;
        self.keys().map_err(faulty)?;
        self.header_values().map_err(faulty)?;
        if self.token.as_ref().is_some_and(|token| HeaderValue::from_str(token.expose_secret()).is_err()) {
            return Err(faulty(EndpointFault::Token));
        }
        if self.kind == Kind::Flagd && self.file.is_none() {
            return Err(faulty(EndpointFault::NoFile));
        }
        if self.kind == Kind::PagerDuty && self.routing_key.is_none() {
            return Err(faulty(EndpointFault::NoRoutingKey));
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(60) {
            return Err(faulty(EndpointFault::Timeout));
        }
        Ok(())
    }

    /// The addresses that are called: none for a file.
    pub(super) fn targets(&self) -> Result<Vec<Url>, EndpointFault> {
        let urls = [&self.url].into_iter().filter(|_| self.kind.speaks_http()).chain(&self.peers);
        let called = |url: &SecretString| {
            let mut url = self.target(url.expose_secret())?;
            if self.kind == Kind::Alertmanager
                && let Ok(mut path) = url.path_segments_mut()
            {
                path.pop_if_empty().extend(["api", "v2", "alerts"]);
            }
            Ok(url)
        };
        urls.map(called).collect()
    }

    fn target(&self, url: &str) -> Result<Url, EndpointFault> {
        let url = Url::parse(url).map_err(|_| EndpointFault::Url)?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(EndpointFault::Url);
        }
        let host = url.host_str().unwrap_or_default();
        if !self.reach.host(host) {
            return Err(EndpointFault::Host);
        }
        if let Ok(literal) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            self.reach.address(host, literal).map_err(EndpointFault::Address)?;
        }
        Ok(url)
    }

    pub(super) fn keys(&self) -> Result<Vec<Key>, EndpointFault> {
        if self.secrets.is_empty() && self.kind.signs() {
            return Err(EndpointFault::NoSecret);
        }
        let keys = self.secrets.iter().enumerate();
        keys.map(|(i, s)| Key::parse(s.expose_secret()).map_err(|why| EndpointFault::Secret { number: i + 1, why })).collect()
    }

    pub(super) fn header_values(&self) -> Result<Vec<(HeaderName, HeaderValue)>, EndpointFault> {
        let checked = self.headers.iter().map(|(name, value)| {
            let header: HeaderName = name.parse().map_err(|_| EndpointFault::Header(name.clone()))?;
            if RESERVED.contains(&header.as_str()) {
                return Err(EndpointFault::ReservedHeader(name.clone()));
            }
            let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_| EndpointFault::Header(name.clone()))?;
            value.set_sensitive(true);
            Ok((header, value))
        });
        checked.collect()
    }

    /// Changes with the address: an endpoint that was disabled is tried again at a new one.
    pub(super) fn fingerprint(&self) -> String {
        let hash = Sha256::digest(format!("{:?} {}", self.kind, self.url.expose_secret()));
        hash.iter().take(8).map(|b| format!("{b:02x}")).collect()
    }

    /// Removes everything of this endpoint's that must not be shown, and control characters, from an answer's text.
    /// Whether they are reached in the same way, with the same secrets.
    pub(super) fn is_same(&self, other: &Endpoint) -> bool {
        // What is printed lacks the secrets alone.
        format!("{self:?}") == format!("{other:?}") && self.held() == other.held()
    }

    pub(super) fn redact(&self, text: &str) -> String {
        let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        for secret in self.held() {
            text = text.replace(&secret, "[redacted]");
        }
        text
    }

    /// What an answer may give back of a request: secrets whole, then their parts: what follows `Bearer`, and of an address what may be a key.
    fn held(&self) -> Vec<String> {
        const SHORTEST: usize = 4;
        const SHORTEST_PART: usize = 12;
        let headers = self.headers.iter().map(|(_, v)| v);
        let whole = self.secrets.iter().chain(&self.routing_key).chain(&self.token).chain(headers).chain([&self.url]).chain(&self.peers);
        let mut held: Vec<String> = whole.map(|s| s.expose_secret().to_owned()).filter(|s| s.len() >= SHORTEST).collect();
        let credentials = self.headers.iter().filter_map(|(_, v)| v.expose_secret().split_once(' '));
        let mut parts: Vec<String> = credentials.map(|(_, credential)| credential.to_owned()).collect();
        if let Ok(url) = Url::parse(self.url.expose_secret()) {
            let asked = [url.path(), url.query().unwrap_or_default()];
            parts.extend(asked.into_iter().flat_map(|part| part.split(['/', '&', '='])).map(str::to_owned));
        }
        held.extend(parts.into_iter().filter(|part| part.len() >= SHORTEST_PART));
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Endpoint {
        Endpoint { secrets: vec!["a secret of thirty-two characters".into()], ..Endpoint::new("flags", Kind::Webhook, url) }
    }

    fn fault(e: &Endpoint) -> Option<EndpointFault> {
        e.check().err().map(|e| e.fault)
    }

    #[test]
    fn addresses_are_checked() {
        assert_eq!(fault(&endpoint("https://flags.example/hook")), None);
        assert_eq!(fault(&endpoint("http://10.0.0.1:80/")), None);
        for url in ["flags.example", "ftp://flags.example/", "", "file:///etc/passwd"] {
            assert_eq!(fault(&endpoint(url)), Some(EndpointFault::Url), "{url}");
        }
        for url in ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://[::ffff:169.254.1.1]/", "http://2852039166/"] {
            assert!(matches!(fault(&endpoint(url)), Some(EndpointFault::Address(_))), "{url}");
            assert_eq!(fault(&Endpoint { reach: Reach { link_local: true, ..Reach::default() }, ..endpoint(url) }), None, "{url}");
        }
    }

    #[test]
    fn what_a_kind_needs_is_checked() {
        let bare = Endpoint::new("x", Kind::Webhook, "https://x.example/");
        assert_eq!(fault(&bare), Some(EndpointFault::NoSecret));
        assert_eq!(fault(&Endpoint { kind: Kind::Slack, ..bare.clone() }), None);
        assert_eq!(fault(&Endpoint { kind: Kind::PagerDuty, ..bare.clone() }), Some(EndpointFault::NoRoutingKey));
        let short = Endpoint { secrets: vec!["whsec_c2hvcnQ=".into()], ..bare };
        assert!(matches!(fault(&short), Some(EndpointFault::Secret { number: 1, .. })));
        let ok = endpoint("https://x.example/");
        let header = |name: &str, value: &str| Endpoint { headers: vec![(name.to_owned(), value.into())], ..ok.clone() };
        assert_eq!(fault(&header("authorization", "Bearer x")), None);
        assert!(matches!(fault(&header("bad name", "x")), Some(EndpointFault::Header(_))));
        assert!(matches!(fault(&header("x", "a\nb")), Some(EndpointFault::Header(_))));
        assert!(matches!(fault(&header("Webhook-Id", "x")), Some(EndpointFault::ReservedHeader(_))));
        assert_eq!(fault(&Endpoint { timeout: Duration::ZERO, ..ok }), Some(EndpointFault::Timeout));
    }

    #[test]
    fn answers_are_redacted() {
        let headers = vec![("authorization".into(), "Bearer t0p".into())];
        let e = Endpoint { headers, token: Some("t0k3n".into()), ..endpoint("https://x.example/T0/s3cret") };
        let text = e.redact("no\nBearer t0p at https://x.example/T0/s3cret, a secret of thirty-two characters, t0k3n");
        assert_eq!(text, "no [redacted] at [redacted], [redacted], [redacted]");
        assert!(!format!("{e:?}").contains("s3cret"));
    }
}
