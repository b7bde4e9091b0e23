//! The `endpoints` section: receivers of actions.

use super::kinds::{EndpointKind, NAMES, OF_HTTP, OF_SOME, SERVICE_ACCOUNT, TEXTS};
use super::reader::{self, Fault, Section, code};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub kind: EndpointKind,
    /// http or https, more than one of a cluster of Alertmanagers, none of a file. Secret because some products put the key into the
    /// address; [`Endpoint::host`] is for people.
    pub urls: Vec<SecretString>,
    /// The first signs first; all sign.
    pub secrets: Vec<SecretString>,
    /// PagerDuty's integration key; always there for that kind.
    pub routing_key: Option<SecretString>,
    /// What a product's API knows the caller by.
    pub token: Option<SecretString>,
    /// A token that the platform keeps fresh: read for each attempt.
    pub token_file: Option<PathBuf>,
    /// PEM file of the authorities that may have signed the receiver's certificate, beside those that this machine trusts.
    pub ca_file: Option<PathBuf>,
    /// Of flagd's definitions.
    pub file: Option<PathBuf>,
    /// Which flag, of which environment …: see [`kinds::TEXTS`].
    pub texts: BTreeMap<String, String>,
    /// Of kind `template`.
    pub template: Option<Template>,
    pub headers: BTreeMap<String, SecretString>,
    /// Of one attempt, 1 s to 60 s.
    pub timeout: Duration,
    /// Whether 169.254.0.0/16 and fe80::/10 may be called.
    pub allow_link_local: bool,
    /// The endpoint that gets what this one does not receive; chains of them end.
    pub escalate_to: Option<String>,
}

/// A request in templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub method: String,
    pub content_type: String,
    pub body: String,
    /// An expression that has to hold of an answer with 2xx.
    pub success: Option<String>,
}

impl Endpoint {
    /// `host` or `host:port` of the address, or the file.
    pub fn host(&self) -> String {
        if let Some(file) = &self.file {
            return file.display().to_string();
        }
        let url = self.urls.first().and_then(|url| reqwest::Url::parse(url.expose_secret()).ok());
        let host = url.as_ref().and_then(|url| Some((url.host_str()?, url.port())));
        match host {
            Some((host, Some(port))) => format!("{host}:{port}"),
            Some((host, None)) => host.to_owned(),
            None => String::new(),
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

/// Endpoints at most: each has a queue, a connection pool and labels of its own.
const MAX_ENDPOINTS: usize = 256;
/// Members of a cluster of Alertmanagers.
const MAX_URLS: usize = 16;
/// Characters of a flag's name, and bytes of a template.
const MAX_NAME: usize = 200;
const MAX_TEMPLATE: usize = 16 << 10;

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
    let kind = s.need("kind", reader::choice(&NAMES));
    let form = kind.form();
    let given: Vec<&str> = OF_SOME.into_iter().chain(OF_HTTP).filter(|key| s.has(key)).collect();
    for key in form.needs.iter().filter(|key| !s.has(key)) {
        s.missing(key);
    }
    let mut endpoint = Endpoint {
        kind,
        urls: urls(&mut s, kind),
        secrets: s.opt("secrets", reader::list(signing_secret)).unwrap_or_default(),
        routing_key: s.opt("routing_key", reader::secret),
        token: s.opt("token", reader::secret),
        token_file: s.opt("token_file", reader::path),
        ca_file: s.opt("ca_file", pem_file),
        file: s.opt("file", reader::path),
        texts: TEXTS.iter().filter_map(|key| Some(((*key).to_owned(), s.opt(key, name)?))).collect(),
        template: template(&mut s, kind),
        headers: headers(s.map("headers")),
        timeout: s.opt("timeout", reader::span("1s", "1m")).unwrap_or(Duration::from_secs(10)),
        allow_link_local: s.opt("allow_link_local", reader::flag).unwrap_or(false),
        escalate_to,
    };
    let fits = |key: &str| match OF_HTTP.contains(&key) {
        true => kind.speaks_http(),
        false => form.needs.contains(&key) || form.takes.contains(&key),
    };
    for key in given.into_iter().filter(|key| !fits(key)) {
        s.fault(key, Fault::new(code::INCONSISTENT, format!("means nothing to kind `{}`", form.name)));
    }
    check(&s, &mut endpoint);
    s.finish();
    endpoint
}

/// What depends on more than one setting, and what a kind knows by itself.
fn check(s: &Section<'_>, endpoint: &mut Endpoint) {
    match endpoint.kind {
        EndpointKind::Webhook if endpoint.secrets.is_empty() && s.has_taken("secrets") && s.sound("secrets") => s.missing("secrets"),
        EndpointKind::Slack => match (s.has_taken("url"), s.has_taken("token"), s.has_taken("channel")) {
            (true, false, false) | (_, true, true) => {}
            (_, true, false) => s.missing("channel"),
            (_, false, true) => s.missing("token"),
            (false, false, false) => {
                let fault = Fault::new(code::MISSING, "needs an incoming webhook or a bot's token");
                s.fault("", fault.help("`url: {file: PATH}`, or `token: {file: PATH}` and `channel: C0123456789`"));
            }
        },
        EndpointKind::ArgoRollouts if !s.has_taken("url") => {
            let of_pod = |name: &str| PathBuf::from(format!("{SERVICE_ACCOUNT}/{name}"));
            endpoint.token_file.get_or_insert_with(|| of_pod("token"));
            endpoint.ca_file.get_or_insert_with(|| of_pod("ca.crt"));
        }
        EndpointKind::ArgoRollouts if !s.has_taken("token_file") => s.missing("token_file"),
        _ => {}
    }
}

fn urls(s: &mut Section<'_>, kind: EndpointKind) -> Vec<SecretString> {
    if kind == EndpointKind::Alertmanager {
        let urls = s.opt("urls", reader::list(|item| address(item, kind)));
        if urls.as_ref().is_some_and(|urls| urls.is_empty() || urls.len() > MAX_URLS) {
            s.fault("urls", Fault::new(code::OUT_OF_RANGE, format!("between 1 and {MAX_URLS} addresses")));
        }
        // Noted as meaningless, if it is there.
        s.opt("url", reader::secret_or_text);
        return urls.unwrap_or_default();
    }
    s.opt("urls", |_| Ok(()));
    let url = s.opt("url", |item| address(item, kind));
    url.or_else(|| kind.form().url.map(SecretString::from)).into_iter().collect()
}

fn address(item: &reader::Item<'_>, kind: EndpointKind) -> Result<SecretString, Fault> {
    let is_secret = matches!(kind, EndpointKind::Slack | EndpointKind::LaunchDarklyTrigger);
    let url = if is_secret { reader::secret(item)? } else { reader::secret_or_text(item)? };
    super::check_url(url.expose_secret())?;
    if kind == EndpointKind::Template {
        syntax("url", url.expose_secret())?;
    }
    Ok(url)
}

/// The name of a flag, a project …: short, and without control characters.
fn name(item: &reader::Item<'_>) -> Result<String, Fault> {
    let text = reader::text(item)?;
    let sound = text.chars().count() <= MAX_NAME && !text.chars().any(char::is_control);
    if sound { Ok(text) } else { Err(Fault::new(code::OUT_OF_RANGE, format!("at most {MAX_NAME} characters, in one line"))) }
}

fn pem_file(item: &reader::Item<'_>) -> Result<PathBuf, Fault> {
    let path = reader::path(item)?;
    match std::fs::read_to_string(&path) {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => Ok(path),
        Ok(_) => Err(Fault::new(code::OUT_OF_RANGE, format!("{} holds no certificate in PEM", path.display()))),
        Err(e) => Err(Fault::new(code::OUT_OF_RANGE, format!("cannot read {}: {e}", path.display()))),
    }
}

fn template(s: &mut Section<'_>, kind: EndpointKind) -> Option<Template> {
    const METHODS: &[(&str, &str)] = &[("POST", "POST"), ("PUT", "PUT"), ("PATCH", "PATCH"), ("DELETE", "DELETE")];
    let content_type = |item: &reader::Item<'_>| {
        let text = reader::text(item)?;
        let legal = reqwest::header::HeaderValue::from_str(&text).is_ok();
        if legal { Ok(text) } else { Err(Fault::new(code::OUT_OF_RANGE, "holds characters that a header may not have")) }
    };
    let source = |item: &reader::Item<'_>| {
        let text = reader::text(item)?;
        syntax("body", &text).map(|()| text)
    };
    let expression = |item: &reader::Item<'_>| {
        let text = reader::text(item)?;
        match minijinja::Environment::new().compile_expression(&text) {
            Ok(_) => Ok(text.clone()),
            Err(e) => Err(unusable("expression", &e).help("as in `answer.ok` or `status == 200`")),
        }
    };
    let template = Template {
        method: s.opt("method", reader::choice(METHODS)).unwrap_or("POST").to_owned(),
        content_type: s.opt("content_type", content_type).unwrap_or_else(|| "application/json".to_owned()),
        body: s.opt("body", source).unwrap_or_default(),
        success: s.opt("success", expression),
    };
    (kind == EndpointKind::Template).then_some(template)
}

fn syntax(what: &str, text: &str) -> Result<(), Fault> {
    if text.len() > MAX_TEMPLATE {
        return Err(Fault::new(code::OUT_OF_RANGE, format!("a template has at most {MAX_TEMPLATE} bytes")));
    }
    minijinja::Environment::new().template_from_named_str(what, text).map(drop).map_err(|e| unusable("template", &e))
}

fn unusable(what: &str, error: &minijinja::Error) -> Fault {
    let line = error.line().filter(|line| *line > 1).map_or_else(String::new, |line| format!(" in its line {line}"));
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Fault::new(code::OUT_OF_RANGE, format!("is no {what}{line}: {detail}")).help("the syntax is that of Jinja: docs/endpoints.md")
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
