//! The `kafka` section.

use super::reader::{self, Fault, Section, code};
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Kafka {
    /// `host:port`; at least one.
    pub brokers: Vec<String>,
    pub group: String,
    pub topics: Topics,
    pub auto_offset_reset: OffsetReset,
    /// 0 means one per core.
    pub workers: usize,
    /// ms that a record may be ahead of the wall clock.
    pub max_future: i64,
    /// ms that a record waits at the end of another topic for one that belongs before it.
    pub merge_wait: i64,
    /// librdkafka's settings by name.
    pub properties: BTreeMap<String, Property>,
    pub oauth: Option<OAuth>,
    pub schema_registry: Option<SchemaRegistry>,
    /// Where decisions go as records, if anywhere.
    pub decisions_topic: Option<String>,
}

/// Where the schemas of Avro, Protobuf and JSON Schema records are.
#[derive(Clone, Debug)]
pub struct SchemaRegistry {
    /// http or https, without a slash at its end.
    pub url: String,
    /// User and password.
    pub basic: Option<(String, SecretString)>,
    pub token: Option<SecretString>,
    /// Of one request, 1 s to 60 s.
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct Topics {
    pub exposures: Vec<String>,
    pub events: Vec<String>,
    pub control: Vec<String>,
}

impl Topics {
    /// All of them and those of `sources`, each once: exposures first, so that of one moment they come before the events that they
    /// explain; what sources read may be either.
    pub fn all<'a>(&'a self, sources: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let (exposures, others) = (self.exposures.iter(), self.events.iter().chain(&self.control));
        let mut topics: Vec<&str> = Vec::new();
        for topic in exposures.map(String::as_str).chain(sources).chain(others.map(String::as_str)) {
            if !topics.contains(&topic) {
                topics.push(topic);
            }
        }
        topics
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    Earliest,
    #[default]
    Latest,
}

impl OffsetReset {
    /// librdkafka's word.
    pub fn name(self) -> &'static str {
        match self {
            OffsetReset::Earliest => "earliest",
            OffsetReset::Latest => "latest",
        }
    }
}

/// The value of a librdkafka setting.
#[derive(Clone, Debug)]
pub enum Property {
    Plain(String),
    Secret(SecretString),
}

/// Where tokens for OAUTHBEARER come from.
#[derive(Clone, Debug)]
pub enum OAuth {
    /// Something else keeps the file fresh; read at every refresh.
    TokenFile(PathBuf),
    /// The client credentials grant of OAuth 2.0.
    ClientCredentials { token_url: String, client_id: String, client_secret: SecretString, scope: Option<String> },
}

/// Settings that are spelled elsewhere, and where.
const ELSEWHERE: [(&str, &str); 4] = [
    ("bootstrap.servers", "kafka.brokers"),
    ("metadata.broker.list", "kafka.brokers"),
    ("group.id", "kafka.group"),
    ("auto.offset.reset", "kafka.auto_offset_reset"),
];
/// Settings on which exactly-once decisions rest: offsets are kept with the state that reflects them.
const FIXED: [&str; 3] = ["enable.auto.commit", "enable.auto.offset.store", "enable.partition.eof"];
/// Endings of the names of librdkafka's secret settings.
const SECRET: [&str; 6] =
    ["password", "client.secret", "ssl.key.pem", "keystore.pem", "sasl.oauthbearer.config", "assertion.private.key.pem"];

pub fn read(mut s: Section<'_>) -> Kafka {
    let words = &[("earliest", OffsetReset::Earliest), ("latest", OffsetReset::Latest)];
    let kafka = Kafka {
        brokers: s.need("brokers", reader::list(broker)),
        group: s.need("group", reader::text),
        topics: topics(s.section("topics")),
        auto_offset_reset: s.need("auto_offset_reset", reader::choice(words)),
        workers: s.need("workers", reader::whole(0..=1024)) as usize,
        max_future: s.need("max_future", reader::span("0", "365d")).as_millis() as i64,
        merge_wait: s.need("merge_wait", reader::span("0", "30s")).as_millis() as i64,
        decisions_topic: s.opt("decisions_topic", topic),
        properties: properties(s.map("properties")),
        oauth: if s.has("oauth") { oauth(s.section("oauth")) } else { s.opt("oauth", |_| Ok(None)).flatten() },
        schema_registry: match s.has("schema_registry") {
            true => Some(schema_registry(s.section("schema_registry"))),
            false => s.opt("schema_registry", |_| Ok(None)).flatten(),
        },
    };
    if kafka.brokers.is_empty() && s.sound("brokers") {
        let fault = Fault::new(code::MISSING, "names no broker");
        s.fault("brokers", fault.help("write `brokers: [HOST:9092]`, or set GUARDRAILD_KAFKA__BROKERS=HOST:9092"));
    }
    let read = kafka.topics.all(std::iter::empty());
    if kafka.decisions_topic.as_deref().is_some_and(|topic| read.contains(&topic)) {
        s.fault("decisions_topic", Fault::new(code::INCONSISTENT, "is one of the topics that are read"));
    }
    let mechanism = match kafka.properties.get("sasl.mechanism").or(kafka.properties.get("sasl.mechanisms")) {
        Some(Property::Plain(mechanism)) => mechanism.as_str(),
        _ => "",
    };
    if kafka.oauth.is_some() && mechanism != "OAUTHBEARER" {
        s.fault("oauth", Fault::new(code::INCONSISTENT, "needs `sasl.mechanism: OAUTHBEARER` in kafka.properties"));
    }
    s.finish();
    kafka
}

fn broker(item: &reader::Item<'_>) -> Result<String, Fault> {
    let text = reader::text(item)?;
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(port) if port > 0 => Ok(text),
        _ => Err(Fault::new(code::OUT_OF_RANGE, format!("`{text}` is not host:port"))),
    }
}

fn topics(mut s: Section<'_>) -> Topics {
    let topics = Topics {
        exposures: s.opt("exposures", reader::list(topic)).unwrap_or_default(),
        events: s.opt("events", reader::list(topic)).unwrap_or_default(),
        control: s.opt("control", reader::list(topic)).unwrap_or_default(),
    };
    let sound = ["exposures", "events"].iter().all(|key| s.sound(key));
    if topics.exposures.is_empty() && topics.events.is_empty() && sound {
        s.fault("", Fault::new(code::MISSING, "`kafka.topics` names no topic of exposures or events"));
    }
    s.finish();
    topics
}

fn topic(item: &reader::Item<'_>) -> Result<String, Fault> {
    let text = reader::text(item)?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.len() <= 249 && text.chars().all(legal) && text != "." && text != ".." {
        Ok(text)
    } else {
        Err(Fault::new(code::OUT_OF_RANGE, format!("`{text}` is not a topic name (letters, digits, `.`, `_`, `-`; at most 249)")))
    }
}

fn properties(mut s: Section<'_>) -> BTreeMap<String, Property> {
    let mut properties = BTreeMap::new();
    for name in s.flatten() {
        let secret = SECRET.iter().any(|ending| name.ends_with(ending));
        let value = s.opt(&name, |item| {
            if let Some((_, instead)) = ELSEWHERE.iter().find(|(fixed, _)| *fixed == name) {
                return Err(Fault::new(code::INCONSISTENT, format!("is set by `{instead}`")));
            }
            if FIXED.contains(&name.as_str()) {
                return Err(Fault::new(code::INCONSISTENT, "is fixed: the daemon keeps offsets with the state that reflects them"));
            }
            match &item.value {
                figment::value::Value::Dict(..) => reader::secret(item).map(Property::Secret),
                _ if secret => reader::secret(item).map(Property::Secret),
                _ => reader::text(item).map(Property::Plain),
            }
        });
        properties.extend(value.map(|value| (name, value)));
    }
    s.finish();
    properties
}

fn oauth(mut s: Section<'_>) -> Option<OAuth> {
    if let Some(path) = s.opt("token_file", reader::path) {
        s.finish();
        return Some(OAuth::TokenFile(path));
    }
    let oauth = OAuth::ClientCredentials {
        token_url: s.need("token_url", super::url),
        client_id: s.need("client_id", reader::text),
        client_secret: s.need("client_secret", reader::secret),
        scope: s.opt("scope", reader::text),
    };
    s.finish();
    Some(oauth)
}

fn schema_registry(mut s: Section<'_>) -> SchemaRegistry {
    let user = s.opt("user", reader::text);
    let password = s.opt("password", reader::secret);
    for (key, other) in [("user", "password"), ("password", "user")] {
        if s.has_taken(key) && !s.has_taken(other) {
            s.fault(key, Fault::new(code::INCONSISTENT, format!("needs `{other}` beside it")));
        }
    }
    let registry = SchemaRegistry {
        url: s.need("url", super::url).trim_end_matches('/').to_owned(),
        basic: user.zip(password),
        token: s.opt("token", reader::secret),
        timeout: s.opt("timeout", reader::span("1s", "1m")).unwrap_or(Duration::from_secs(10)),
    };
    if s.has_taken("user") && s.has_taken("token") {
        s.fault("token", Fault::new(code::INCONSISTENT, "one of `token` and `user`"));
    }
    s.finish();
    registry
}
