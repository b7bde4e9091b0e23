//! `guardraild test-endpoint`: sends a message to an endpoint, and shows what was sent and what came back.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::clock;
use crate::config::Config;
use crate::delivery::{Endpoint, Sender, rehearsal};
use crate::store::Delivery;
use clap::{Args, ValueEnum};
use secrecy::ExposeSecret;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  guardraild test-endpoint chat --config guardraild.yaml
  guardraild test-endpoint unleash --body '{\"flag\": \"new-checkout\"}'              is the flag there, and does the token fit?
  guardraild test-endpoint unleash --as rollback --dry-run --body '{\"flag\": \"x\"}'   what would a rollback send?";

/// Send a test message to an endpoint, and show the request and the answer
///
/// Receivers of messages get a `guardrail.test`. Flag services are asked for the flag, where they have such a request, and nothing is changed.
/// Nothing is stored, and the daemon need not run. Exit status: 0 taken, 1 not, 2 usage or no such endpoint, 78 the configuration cannot be used.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct TestEndpointArgs {
    /// The endpoint, as the configuration names it
    name: String,
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "GUARDRAILD_CONFIG")]
    config: Option<PathBuf>,
    /// The type of the message; rollback, kill and pause act for real
    #[arg(long = "as", value_enum, default_value_t = Type::Test, value_name = "TYPE")]
    event_type: Type,
    /// The body that a rule's action would have, in JSON
    #[arg(long, value_name = "JSON", value_parser = json)]
    body: Option<Value>,
    /// Show the request, and send nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Type {
    Test,
    Alert,
    Pause,
    Rollback,
    Kill,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Type::Test => "guardrail.test",
            Type::Alert => "guardrail.alert",
            Type::Pause => "guardrail.pause",
            Type::Rollback => "guardrail.rollback",
            Type::Kill => "guardrail.kill",
        }
    }
}

fn json(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if value.is_object() { Ok(value) } else { Err("write a JSON object, such as {\"flag\": \"new-checkout\"}".into()) }
}

/// Returns the exit status.
pub fn run(args: &TestEndpointArgs) -> i32 {
    let config = match Config::load(args.config.as_deref(), &[]) {
        Ok(config) => config,
        Err(errors) => return super::run::refuse(&errors, super::run::BAD_CONFIG),
    };
    let Some(endpoint) = config.endpoints.get(&args.name) else {
        let known: Vec<&str> = config.endpoints.keys().map(String::as_str).collect();
        eprintln!("error: no endpoint `{}`; the configuration has: {}", args.name, known.join(", "));
        return 2;
    };
    // An error only says that somebody has installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let sender = match Sender::new(Endpoint::configured(&args.name, endpoint, &config.delivery)) {
        Ok(sender) => sender,
        Err(error) => {
            eprintln!("error: {error}");
            return super::run::BAD_CONFIG;
        }
    };
    let now = clock::now();
    let delivery = rehearsal(&args.name, args.event_type.name(), args.body.as_ref(), None, now);
    match shown(&sender, endpoint, &delivery, now) {
        Ok(request) => println!("{request}"),
        Err(why) => {
            eprintln!("error: {why}");
            return 1;
        }
    }
    if args.dry_run { 0 } else { send(&sender, &delivery, now) }
}

fn send(sender: &Sender, delivery: &Delivery, now: i64) -> i32 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return 1;
        }
    };
    let answer = runtime.block_on(sender.attempt(delivery, now));
    match (answer.error, answer.status) {
        (None, Some(status)) => println!("answer: {status}, taken"),
        (None, None) => println!("done"),
        (Some(error), _) => {
            println!("answer: {error}");
            return 1;
        }
    }
    0
}

/// The request as it would go out, without what is secret.
fn shown(sender: &Sender, endpoint: &crate::config::Endpoint, delivery: &Delivery, now: i64) -> Result<String, String> {
    sender.fits(delivery, now).map_err(|e| e.to_string())?;
    if let Some(file) = &endpoint.file {
        return Ok(format!("{} of {}\n", delivery.event_type, file.display()));
    }
    let request = sender.request(delivery, now).map_err(|e| e.to_string())?.build().map_err(|e| e.without_url().to_string())?;
    let url = request.url();
    let query = url.query().map_or_else(String::new, |query| format!("?{query}"));
    let rest = sender.redact(&format!("{}{query}", url.path()));
    let mut text = format!("{} {}{rest}\n", request.method(), url.origin().ascii_serialization());
    for (name, value) in request.headers() {
        let value = if value.is_sensitive() { "[redacted]" } else { value.to_str().unwrap_or("[not text]") };
        let _ = writeln!(text, "{name}: {value}");
    }
    let body = request.body().and_then(|body| body.as_bytes()).unwrap_or_default();
    let pretty = serde_json::from_slice::<Value>(body).ok().and_then(|body| serde_json::to_string_pretty(&body).ok());
    let body = pretty.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let hidden = endpoint.routing_key.iter().fold(body, |body, key| body.replace(key.expose_secret(), "[redacted]"));
    if !hidden.is_empty() {
        let _ = writeln!(text, "\n{hidden}");
    }
    Ok(text)
}
