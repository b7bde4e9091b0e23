//! The `endpoints` section: receivers of actions.

use super::reader::{self, Fault, Section, code};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub kind: EndpointKind,
    /// http or https. Secret because some products put the key into the address; [`Endpoint::host`] is for people.
    pub url: SecretString,
    /// The first signs first; all sign.
    pub secrets: Vec<SecretString>,
    /// PagerDuty's integration key; always there for that kind.
    pub routing_key: Option<SecretString>,
    pub headers: BTreeMap<String, SecretString>,
    /// Of one attempt, 1 s to 60 s.
    pub timeout: Duration,
    /// Whether 169.254.0.0/16 and fe80::/10 may be called.
    pub allow_link_local: bool,
    /// The endpoint that gets what this one does not receive; chains of them end.
    pub escalate_to: Option<String>,
}

impl Endpoint {
    /// `host` or `host:port` of the address.
    pub fn host(&self) -> String {
        let url = reqwest::Url::parse(self.url.expose_secret()).ok();
        let host = url.as_ref().and_then(|url| Some((url.host_str()?, url.port())));
        match host {
            Some((host, Some(port))) => format!("{host}:{port}"),
            Some((host, None)) => host.to_owned(),
            None => String::new(),
        }
    }
}

/// What is spoken to the receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointKind {
    #[default]
    Webhook,
    CloudEvents,
    PagerDuty,
    Slack,
}

impl EndpointKind {
    pub fn name(self) -> &'static str {
        match self {
            EndpointKind::Webhook => "webhook",
            EndpointKind::CloudEvents => "cloudevents",
            EndpointKind::PagerDuty => "pagerduty",
            EndpointKind::Slack => "slack",
        }
    }
}

/// Where endpoints may lead, all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Host names and addresses, lower case, or `*.example.com`; empty: all.
    pub hosts: Vec<String>,
    pub loopback: Loopback,
    /// Whether private addresses may be called.
    pub private: bool,
}

/// When 127.0.0.0/8 and ::1 may be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loopback {
    /// Where the address says so: an IP address, or `localhost`. No other name can be made to lead there.
    #[default]
    Named,
    Never,
    Always,
}

const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";
const KINDS: &[(&str, EndpointKind)] = &[
    ("webhook", EndpointKind::Webhook),
    ("cloudevents", EndpointKind::CloudEvents),
    ("pagerduty", EndpointKind::PagerDuty),
    ("slack", EndpointKind::Slack),
];
/// Endpoints at most: each has a queue, a connection pool and labels of its own.
const MAX_ENDPOINTS: usize = 256;

pub fn delivery(mut s: Section<'_>) -> Delivery {
    let host = |item: &reader::Item<'_>| {
        let host = reader::text(item)?.to_ascii_lowercase();
        let name = host.strip_prefix("*.").unwrap_or(&host);
        let sound =
            !name.is_empty() && !name.contains(['*', '/', ' ']) && (!name.contains(':') || name.parse::<std::net::Ipv6Addr>().is_ok());
        let fault = || Fault::new(code::OUT_OF_RANGE, format!("`{host}` is no host"));
        if sound { Ok(host) } else { Err(fault().help("a name or an address without scheme and port, or `*.example.com`")) }
    };
    let words = &[("named", Loopback::Named), ("never", Loopback::Never), ("always", Loopback::Always)];
    let delivery = Delivery {
        hosts: s.need("hosts", reader::list(host)),
        loopback: s.need("loopback", reader::choice(words)),
        private: s.need("private", reader::flag),
    };
    s.finish();
    delivery
}

pub fn read(mut s: Section<'_>) -> BTreeMap<String, Endpoint> {
    let mut sections = s.sections();
    let next: BTreeMap<String, String> =
        sections.iter_mut().filter_map(|(name, section)| Some((name.clone(), section.opt("escalate_to", reader::text)?))).collect();
    for (name, section) in &sections {
        if let Some(fault) = next.get(name).and_then(|to| escalation_fault(name, to, &sections, &next)) {
            section.fault("escalate_to", fault);
        }
    }
    if sections.len() > MAX_ENDPOINTS {
        s.fault("", Fault::new(code::OUT_OF_RANGE, format!("at most {MAX_ENDPOINTS} endpoints")));
    }
    sections.into_iter().map(|(name, section)| (name.clone(), endpoint(section, next.get(&name).cloned()))).collect()
}

fn escalation_fault(name: &str, to: &str, all: &[(String, Section<'_>)], next: &BTreeMap<String, String>) -> Option<Fault> {
    if !all.iter().any(|(known, _)| known == to) {
        let fault = Fault::new(code::INCONSISTENT, format!("there is no endpoint `{to}`"));
        let near = reader::nearest(to, all.iter().map(|(known, _)| known.as_str()).filter(|known| *known != name));
        return Some(match near {
            Some(near) => fault.help(format!("did you mean `{near}`?")),
            None => fault,
        });
    }
    let chain: Vec<&str> = std::iter::successors(Some(to), |at| next.get(*at).map(String::as_str)).take(all.len()).collect();
    // Each endpoint of a circle is at fault, and none that only leads there.
    let closed = chain.iter().position(|at| *at == name)?;
    let path = chain[..=closed].join(" to ");
    let fault = Fault::new(code::INCONSISTENT, format!("what fails would go in a circle: {name} to {path}"));
    Some(fault.help("let the last one of a chain escalate to nobody"))
}

fn endpoint(mut s: Section<'_>, escalate_to: Option<String>) -> Endpoint {
    let kind = s.need("kind", reader::choice(KINDS));
    let url = s.opt("url", |item| address(item, kind));
    if !s.has_taken("url") && kind != EndpointKind::PagerDuty {
        s.missing("url");
    }
    let endpoint = Endpoint {
        kind,
        url: url.unwrap_or_else(|| SecretString::from(PAGERDUTY)),
        secrets: s.opt("secrets", reader::list(signing_secret)).unwrap_or_default(),
        routing_key: s.opt("routing_key", reader::secret),
        headers: headers(s.map("headers")),
        timeout: s.opt("timeout", reader::span("1s", "1m")).unwrap_or(Duration::from_secs(10)),
        allow_link_local: s.opt("allow_link_local", reader::flag).unwrap_or(false),
        escalate_to,
    };
    if kind == EndpointKind::Webhook && endpoint.secrets.is_empty() && s.sound("secrets") {
        s.missing("secrets");
    }
    if kind == EndpointKind::PagerDuty && !s.has_taken("routing_key") {
        s.missing("routing_key");
    }
    let signs = matches!(kind, EndpointKind::Webhook | EndpointKind::CloudEvents);
    for (key, fits) in [("secrets", signs), ("routing_key", kind == EndpointKind::PagerDuty)] {
        if !fits && s.has_taken(key) {
            s.fault(key, Fault::new(code::INCONSISTENT, format!("means nothing to kind `{}`", kind.name())));
        }
    }
    s.finish();
    endpoint
}

fn address(item: &reader::Item<'_>, kind: EndpointKind) -> Result<SecretString, Fault> {
    let url = if kind == EndpointKind::Slack { reader::secret(item)? } else { reader::secret_or_text(item)? };
    super::check_url(url.expose_secret()).map(|()| url)
}

/// Standard Webhooks writes a secret as `whsec_` and 24 to 64 bytes in base64; other text of at least 24 bytes signs as it is.
fn signing_secret(item: &reader::Item<'_>) -> Result<SecretString, Fault> {
    let secret = reader::secret(item)?;
    let text = secret.expose_secret();
    let sound = match text.strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).is_ok_and(|key| (24..=64).contains(&key.len())),
        None => text.len() >= 24,
    };
    let fault =
        || Fault::new(code::UNUSABLE_SECRET, "a signing secret is `whsec_` and 24 to 64 bytes in base64, or a text of at least 24 bytes");
    if sound { Ok(secret) } else { Err(fault().help("`echo whsec_$(openssl rand -base64 32)` makes one")) }
}

/// Headers by name, lower case. One whose name tells of a secret is given by reference.
pub fn headers(mut s: Section<'_>) -> BTreeMap<String, SecretString> {
    const TELLING: [&str; 7] = ["auth", "token", "key", "secret", "cookie", "password", "signature"];
    let mut headers = BTreeMap::new();
    for name in s.keys() {
        let lower = name.to_ascii_lowercase();
        let value = s.opt(&name, |item| {
            if reqwest::header::HeaderName::from_bytes(lower.as_bytes()).is_err() {
                return Err(Fault::new(code::OUT_OF_RANGE, "is not the name of a header"));
            }
            let secret = TELLING.iter().any(|word| lower.contains(word));
            let value = if secret { reader::secret(item)? } else { reader::secret_or_text(item)? };
            let legal = reqwest::header::HeaderValue::from_str(value.expose_secret()).is_ok();
            if legal { Ok(value) } else { Err(Fault::new(code::OUT_OF_RANGE, "holds characters that a header may not have")) }
        });
        headers.extend(value.map(|value| (lower, value)));
    }
    s.finish();
    headers
}
