//! The client of a schema registry (Confluent's API, which others speak too), and the thread that asks it.

use super::{Answer, Schema, Shared};
use crate::mapping::Format;
use crate::telemetry::{Metrics, names};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use reqwest::StatusCode;
use reqwest::blocking::Client;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeSet, VecDeque};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of an answer at most.
const MAX_ANSWER: u64 = 2 << 20;
/// Schemas that one refers to, directly and not, at most.
const MAX_REFERENCES: usize = 100;
/// Pauses after a failure: twice as long each time.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(15)];
/// How the API says that it has no such schema, subject or version; any other 404 comes from elsewhere.
const NOT_FOUND: [u32; 3] = [40_401, 40_402, 40_403];

/// Where the registry is.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// http or https, without a slash at its end.
    pub url: String,
    pub login: Option<Login>,
    /// Of one request.
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
pub enum Login {
    Basic { user: String, password: SecretString },
    Bearer(SecretString),
}

pub struct Registry {
    config: RegistryConfig,
    client: Client,
}

#[derive(Deserialize)]
struct Found {
    schema: String,
    #[serde(default, rename = "schemaType")]
    kind: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    name: String,
    subject: String,
    version: i64,
}

#[derive(Deserialize)]
struct Refusal {
    error_code: u32,
    message: String,
}

/// Why there is no answer.
enum Failure {
    /// The registry says so: asking again soon is of no use.
    Unknown(String),
    /// Nobody knows: ask again.
    Down(String),
}

impl Registry {
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(config: RegistryConfig) -> Result<Registry, reqwest::Error> {
        // Another part of the process may have installed it before; either is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(config.timeout).redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Registry { config, client })
    }

    /// Answers what `asks` asks for until nobody is left to ask. A question that fails waits behind the others.
    pub(super) fn serve(&self, asks: &Receiver<u32>, shared: &Shared, metrics: &Metrics) {
        let (mut open, mut pause) = (VecDeque::new(), PAUSES[0]);
        loop {
            if open.is_empty() {
                match asks.recv() {
                    Ok(id) => open.push_back(id),
                    Err(_) => return,
                }
            }
            open.extend(asks.try_iter());
            let Some(id) = open.pop_front() else { continue };
            let (result, answer) = match self.schema(id) {
                Ok(schema) => ("known", Answer::Ready(Arc::new(schema))),
                Err(Failure::Unknown(why)) => ("unknown", Answer::Unknown(why.into())),
                Err(Failure::Down(why)) => {
                    metrics.add(&names::SCHEMA_REQUESTS, &["failed"], 1.0);
                    shared.failed(format!("schema {id}: {why}; trying again"));
                    open.push_back(id);
                    match asks.recv_timeout(pause) {
                        Ok(id) => open.push_back(id),
                        Err(RecvTimeoutError::Timeout) => pause = PAUSES[1].min(pause * 2),
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                    continue;
                }
            };
            metrics.add(&names::SCHEMA_REQUESTS, &[result], 1.0);
            pause = PAUSES[0];
            shared.answer(id, answer);
        }
    }

    /// The names of all subjects.
    ///
    /// # Errors
    /// Why the registry does not tell.
    pub fn subjects(&self) -> Result<BTreeSet<String>, String> {
        self.get(&["subjects"]).map_err(|(Failure::Unknown(why) | Failure::Down(why))| why)
    }

    fn schema(&self, id: u32) -> Result<Schema, Failure> {
        let found: Found = self.get(&["schemas", "ids", &id.to_string()])?;
        let mut references = Vec::new();
        self.references(&found.references, &mut references)?;
        let format = match found.kind.as_deref() {
            None | Some("AVRO") => Ok(Format::Avro),
            Some("PROTOBUF") => Ok(Format::Protobuf),
            Some("JSON") => Ok(Format::JsonSchema),
            Some(other) => Err(format!("its type is {other}")),
        };
        let schema = format.and_then(|format| Schema::parse(format, &found.schema, references));
        schema.map_err(|why| Failure::Unknown(format!("it cannot be used: {why}")))
    }

    /// Name and text of all that is referred to, each after what it refers to itself.
    fn references(&self, wanted: &[Reference], found: &mut Vec<(String, String)>) -> Result<(), Failure> {
        for reference in wanted.iter() {
            if found.iter().any(|(name, _)| *name == reference.name) {
                continue;
            }
            if found.len() >= MAX_REFERENCES {
                return Err(Failure::Unknown(format!("it refers to more than {MAX_REFERENCES} others")));
            }
            let answer: Found = self.get(&["subjects", &reference.subject, "versions", &reference.version.to_string()])?;
            // A place is kept before its own references come, so that a circle ends.
            let place = found.len();
            found.push((reference.name.clone(), String::new()));
            self.references(&answer.references, found)?;
            let (name, _) = found.remove(place);
            found.push((name, answer.schema));
        }
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        let down = |error: &dyn std::fmt::Display| Failure::Down(format!("{}: {error}", self.config.url));
        let mut url = reqwest::Url::parse(&self.config.url).map_err(|error| down(&error))?;
        url.path_segments_mut().map_err(|()| down(&"not an address"))?.pop_if_empty().extend(path);
        let request = self.client.get(url).header("accept", "application/vnd.schemaregistry.v1+json, application/json");
        let request = match &self.config.login {
            None => request,
            Some(Login::Basic { user, password }) => request.basic_auth(user, Some(password.expose_secret())),
            Some(Login::Bearer(token)) => request.bearer_auth(token.expose_secret()),
        };
        let answer = request.send().map_err(|error| down(&root(&error.without_url())))?;
        let status = answer.status();
        let mut body = Vec::new();
        answer.take(MAX_ANSWER).read_to_end(&mut body).map_err(|error| down(&error))?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|error| down(&format!("not the answer of a schema registry: {error}")));
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) if status == StatusCode::NOT_FOUND && NOT_FOUND.contains(&refusal.error_code) => {
                Err(Failure::Unknown(format!("the registry does not know it: {}", refusal.message)))
            }
            Ok(refusal) => Err(down(&format!("{status}: {}", refusal.message))),
            Err(_) => Err(down(&status)),
        }
    }
}

/// The innermost reason, which says most.
fn root(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
