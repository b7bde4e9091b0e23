//! `guardraild generate`: alert rules and gates of other systems, from rule files.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod argo;
mod document;
mod flagger;
mod prometheus;

use super::check;
use crate::config::Config;
use crate::rules;
use clap::{Args, ValueEnum};
use document::Document;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  guardraild generate prometheus --rules rules > experiments.rules.yaml
      alerts of each experiment: breach, no data, unwatched, held, data that cannot be trusted, unconfirmed
  guardraild generate argo --rules rules/new-checkout.yaml --url http://guardraild.guardraild:8080
      AnalysisTemplates NAME-watch (in the background) and NAME-go (as a step) for Argo Rollouts
  guardraild generate flagger --config guardraild.yaml --out canaries
      a patch for each Canary, with the webhooks rollback, rollout and confirm-promotion

What to do with them: deploy/prometheus, deploy/argo-rollouts and deploy/flagger have a README and a sample each.";

/// Where the Kustomize base in deploy/ puts the daemon.
const URL: &str = "http://guardraild.guardraild:8080";

/// Make alert rules, or gates for rollout controllers, from rule files.
///
/// Prints to standard output, or writes a file NAME.yaml for each experiment to --out. The same rule files give the same text: keep it in
/// version control, and make it anew when experiments come and go.
/// Exit status: 0 good, 1 a rule file or the configuration is bad, 2 usage, or a file that cannot be written.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct GenerateArgs {
    /// What to make.
    #[arg(value_enum)]
    pub kind: Kind,
    /// Rule files, or directories with rule files.
    #[arg(long, value_name = "PATH", default_value = "rules", num_args = 1..)]
    pub rules: Vec<PathBuf>,
    /// The daemon's configuration file: its `http.base_url` is where controllers call.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where controllers call the daemon [default: that of --config, else http://guardraild.guardraild:8080]
    #[arg(long, value_name = "URL", value_parser = address)]
    pub url: Option<String>,
    /// Write a file for each experiment into this directory.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Alert rules.
    Prometheus,
    /// AnalysisTemplates of Argo Rollouts.
    Argo,
    /// Webhooks of Flagger's Canaries.
    Flagger,
}

/// Returns the exit status.
pub fn run(args: &GenerateArgs) -> i32 {
    if let Some(missing) = args.rules.iter().find(|path| !path.exists()) {
        eprintln!("error: no such file or directory: {}", missing.display());
        return 2;
    }
    let config = match args.config.as_deref().map(|path| Config::load(Some(path), &[])).transpose() {
        Ok(config) => config,
        Err(errors) => return super::run::refuse(&errors, 1),
    };
    let endpoints: Option<BTreeSet<String>> = config.as_ref().map(|config| config.endpoints.keys().cloned().collect());
    let loaded = rules::load(&args.rules, endpoints.as_ref());
    for fault in loaded.diagnostics.iter().filter(|fault| fault.is_error()) {
        eprintln!("{}", fault.human(check::color_stderr()));
    }
    if loaded.refused > 0 {
        eprintln!("nothing was made: {} is bad", check::plural(loaded.refused, "rule file"));
        return 1;
    }
    if loaded.rules.is_empty() {
        eprintln!("error: no rule file there");
        return 2;
    }
    let url = args.url.clone().or_else(|| Some(config?.http.base_url)).unwrap_or_else(|| URL.to_owned());
    if args.kind != Kind::Prometheus && names_one_machine(&url) {
        eprintln!("warning: controllers cannot call {url} from elsewhere: give --url, or set `http.base_url`");
    }
    let documents = document::generate(args.kind, loaded.rules.iter().map(AsRef::as_ref), &url);
    match &args.out {
        Some(dir) => write(dir, &documents),
        // A closed pipe (`generate | head`) is no reason to fail.
        None => i32::from(io::stdout().lock().write_all(document::joined(args.kind, &documents).as_bytes()).is_err_and(is_no_pipe)),
    }
}

fn is_no_pipe(error: io::Error) -> bool {
    error.kind() != io::ErrorKind::BrokenPipe
}

fn write(dir: &Path, documents: &[Document]) -> i32 {
    let all = || -> Result<(), (PathBuf, io::Error)> {
        std::fs::create_dir_all(dir).map_err(|e| (dir.to_owned(), e))?;
        documents.iter().try_for_each(|document| {
            let path = dir.join(format!("{}.yaml", document.name));
            std::fs::write(&path, &document.text).map_err(|e| (path, e))
        })
    };
    match all() {
        Ok(()) => {
            eprintln!("wrote {} to {}", check::plural(documents.len(), "file"), dir.display());
            0
        }
        Err((path, error)) => {
            eprintln!("error: cannot write {}: {error}", path.display());
            2
        }
    }
}

fn address(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() && url.query().is_none() => Ok(text.to_owned()),
        _ => Err("write an address such as http://guardraild.guardraild:8080".to_owned()),
    }
}

/// An address that leads elsewhere, or nowhere, when it is called from another machine.
fn names_one_machine(url: &str) -> bool {
    let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}
