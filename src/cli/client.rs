//! What commands that talk to a running daemon have in common; `hold`, `resume`, `rollback` and `kill`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::show::text;
use clap::{Args, ValueEnum};
use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(15);

/// Where the daemon is, and who asks.
#[derive(Args, Debug)]
pub struct Address {
    /// Address of the daemon's API
    #[arg(long, value_name = "URL", env = "GUARDRAILD_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// File that holds an API token; or the token itself in the variable GUARDRAILD_TOKEN
    #[arg(long, value_name = "FILE", env = "GUARDRAILD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Certificate of the authority that signed the daemon's, in PEM, beside those that this machine trusts
    #[arg(long, value_name = "FILE", env = "GUARDRAILD_CA_FILE")]
    ca_file: Option<PathBuf>,
}

/// A daemon whose answer is shown.
#[derive(Args, Debug)]
pub(super) struct Daemon {
    #[command(flatten)]
    address: Address,
    /// How the answer is shown
    #[arg(long, value_enum, default_value_t = Shown::Human)]
    pub(super) output: Shown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Shown {
    Human,
    Json,
}

/// What `hold`, `resume`, `rollback` and `kill` have in common.
#[derive(Args, Debug)]
pub struct OperateArgs {
    experiment: String,
    /// Why, for the execution log
    #[arg(long)]
    reason: String,
    /// Who asks, where that is not the owner of the token
    #[arg(long)]
    author: Option<String>,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  guardraild hold new-checkout --for 2h --reason 'incident 118 distorts latency'")]
pub struct HoldArgs {
    #[command(flatten)]
    operate: OperateArgs,
    /// How long; without it, until resumed
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<String>,
}

#[derive(Args, Debug)]
pub struct ActArgs {
    #[command(flatten)]
    operate: OperateArgs,
    /// One bucket only; without it, every bucket but the baseline
    #[arg(long)]
    bucket: Option<String>,
}

pub fn hold(args: &HoldArgs) -> i32 {
    operate("hold", &args.operate, args.span.as_deref().map(|span| ("for", span)))
}

pub fn resume(args: &OperateArgs) -> i32 {
    operate("resume", args, None)
}

pub fn rollback(args: &ActArgs) -> i32 {
    operate("rollback", &args.operate, args.bucket.as_deref().map(|bucket| ("bucket", bucket)))
}

pub fn kill(args: &ActArgs) -> i32 {
    operate("kill", &args.operate, args.bucket.as_deref().map(|bucket| ("bucket", bucket)))
}

fn operate(verb: &str, args: &OperateArgs, more: Option<(&str, &str)>) -> i32 {
    let mut body = json!({ "reason": args.reason });
    let author = args.author.as_deref().map(|author| ("author", author));
    for (key, value) in more.into_iter().chain(author) {
        body[key] = json!(value);
    }
    let path = format!("experiments/{}/{verb}", encoded(&args.experiment));
    args.daemon.show(args.daemon.ask(&path, Some(&body)), |answer| {
        let decisions = answer["decisions"].as_array().into_iter().flatten().map(|id| format!("\ndecision {}", text(id)));
        format!("{}: {}{}", args.experiment, text(&answer["message"]), decisions.collect::<String>())
    })
}

impl Address {
    /// The daemon's answer, or a sentence that says what went wrong and what to do.
    pub(super) fn ask(&self, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let response = self.send(Some(TIMEOUT), |client| match body {
            Some(body) => client.post(self.url_of(path)).json(body),
            None => client.get(self.url_of(path)),
        })?;
        answer(response)
    }

    /// Copies an answer that may be of any length.
    pub fn download(&self, path: &str, out: &mut impl Write) -> Result<(), String> {
        let mut response = self.send(None, |client| client.get(self.url_of(path)))?;
        if !response.status().is_success() {
            return answer(response).map(drop);
        }
        let cut = |e: &dyn std::fmt::Display| format!("not all has come: {e}");
        response.copy_to(out).map_err(|e| cut(&e))?;
        out.flush().map_err(|e| cut(&e))
    }

    fn url_of(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.url.trim_end_matches('/'))
    }

    fn send(&self, timeout: Option<Duration>, request: impl FnOnce(&Client) -> RequestBuilder) -> Result<Response, String> {
        // An error only says that somebody has installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder().timeout(timeout).connect_timeout(TIMEOUT);
        if let Some(path) = &self.ca_file {
            let fault = |e: &dyn std::fmt::Display| format!("CA file {}: {e}", path.display());
            let pem = std::fs::read(path).map_err(|e| fault(&e))?;
            builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| fault(&e))?);
        }
        let client = builder.build().map_err(|e| e.to_string())?;
        let unreachable = |e: reqwest::Error| {
            // The last cause says what a person can do something about.
            let e = e.without_url();
            let cause = std::iter::successors(Some(&e as &dyn std::error::Error), |e| e.source())
                .last()
                .map_or_else(String::new, |e| e.to_string());
            format!("no answer from {} ({cause}); is the daemon up? --url or GUARDRAILD_URL names another", self.url)
        };
        self.authorized(request(&client))?.send().map_err(unreachable)
    }

    fn authorized(&self, request: RequestBuilder) -> Result<RequestBuilder, String> {
        let token = match &self.token_file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|e| format!("token file {}: {e}", path.display()))?),
            None => std::env::var("GUARDRAILD_TOKEN").ok(),
        };
        Ok(match token {
            Some(token) => request.bearer_auth(token.trim()),
            None => request,
        })
    }
}

impl Daemon {
    pub(super) fn ask(&self, path: &str, body: Option<&Value>) -> Result<Value, String> {
        self.address.ask(path, body)
    }

    pub(super) fn show(&self, answer: Result<Value, String>, human: impl FnOnce(&Value) -> String) -> i32 {
        let shown = match answer {
            Ok(answer) if self.output == Shown::Json => answer.to_string(),
            Ok(answer) => human(&answer),
            Err(error) => {
                eprintln!("error: {error}");
                return 1;
            }
        };
        // A closed pipe is no failure of the daemon's.
        let _ = writeln!(io::stdout(), "{shown}");
        0
    }
}

/// An answer of the API; what it says went wrong is an error.
fn answer(response: Response) -> Result<Value, String> {
    let (status, url) = (response.status(), response.url().clone());
    let answer: Value = response.json().map_err(|_| format!("{status} from {url}, and no JSON: is this guardraild?"))?;
    match status.is_success() {
        true => Ok(answer),
        false => {
            let hint = match status.as_u16() {
                401 => "give one of http.tokens: --token-file FILE, or the variable GUARDRAILD_TOKEN".to_owned(),
                _ => text(&answer["hint"]),
            };
            Err(format!("{} ({status}) {hint}", text(&answer["error"])).trim_end().to_owned())
        }
    }
}

/// A name as one segment of a path.
pub fn encoded(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_segment_and_terminals_are_safe() {
        assert_eq!(encoded("a/b c"), "a%2Fb%20c");
        assert_eq!(text(&json!("red\u{1b}[31m")), "red[31m");
        assert_eq!(text(&Value::Null), "");
    }
}
