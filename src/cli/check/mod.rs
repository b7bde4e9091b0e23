//! `guardraild check`: every fault of rule files and of the configuration in one run.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod endpoints;
mod online;
mod sarif;

use crate::config::{Config, ConfigErrors, Origin};
use crate::engine::plan::Settings;
use crate::mapping::Sources;
use crate::rules::{self, Diagnostic, Severity, codes, diagnostic};
use crate::tools::ruletest;
use clap::{Args, ValueEnum};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  guardraild check rules --config guardraild.yaml     endpoint names and settings are checked, too
  guardraild check --config guardraild.yaml --online  is all of it there? Nothing is sent
  guardraild check --explain GR2803                   what a code means, with examples
  guardraild check --format github --deny-warnings    for CI; `sarif` for code scanning";

/// Check rule files and show every fault at once.
///
/// Errors keep a file out of force. Warnings say what is written well and will mislead; notes advise, and never fail a build.
/// Exit status: 0 good, 1 errors, 2 usage or a path that does not exist, 3 warnings under --deny-warnings.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CheckArgs {
    /// Rule files and tests of rules, or directories with them [default: those of the configuration, else `rules`].
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// How faults are shown.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
    /// Exit with 3 when there are warnings.
    #[arg(long)]
    pub deny_warnings: bool,
    /// The daemon's configuration file: it is checked, and the rules against its endpoints and settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Also look whether brokers, topics, schema registry and endpoints can be reached. Nothing is sent to them.
    #[arg(long, requires = "config")]
    pub online: bool,
    /// Print the page of a code, or the list of all, and check nothing.
    #[arg(long, value_name = "CODE", num_args = 0..=1, default_missing_value = "all", conflicts_with_all = ["online", "config", "paths"])]
    pub explain: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Source line, caret and help.
    Human,
    /// One JSON object per line.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// Workflow commands of GitHub Actions, which annotate the lines of a change.
    Github,
}

/// Prints the faults to standard output and one line of summary to standard error; returns the exit status.
pub fn run(args: &CheckArgs) -> i32 {
    if let Some(code) = &args.explain {
        return explain(code);
    }
    let (config, mut diagnostics) = match args.config.as_deref().map(|path| (path, Config::load(Some(path), &[]))) {
        None => (None, Vec::new()),
        Some((_, Ok(config))) => (Some(config), Vec::new()),
        Some((path, Err(errors))) => (None, of_config(path, &errors)),
    };
    let paths = match (&args.paths[..], &config) {
        ([], Some(config)) => config.rules.clone(),
        // A configuration that cannot be read does not say where its rules are: its own faults are told all the same.
        ([], None) if args.config.is_some() && !Path::new("rules").exists() => Vec::new(),
        ([], None) => vec![PathBuf::from("rules")],
        (paths, _) => paths.to_vec(),
    };
    if let Some(missing) = paths.iter().find(|p| !p.exists()) {
        eprintln!("error: no such file or directory: {}", missing.display());
        return 2;
    }
    let endpoints = config.as_ref().map(|config| config.endpoints.keys().cloned().collect());
    let settings = config.as_ref().map_or_else(Settings::default, |config| config.engine.settings.clone());
    let loaded = rules::checked(&paths, endpoints.as_ref(), &settings);
    let tests = rules::test_files(&paths);
    let files = loaded.files + tests.len() + usize::from(args.config.is_some());
    diagnostics.extend(tests.iter().flat_map(|test| of_test(test)));
    if let Some((config, path)) = config.as_ref().zip(args.config.as_deref()) {
        diagnostics.extend(endpoints::faults(path, config, &loaded));
    }
    diagnostics.extend(loaded.diagnostics);
    diagnostic::sort(&mut diagnostics);
    // A closed pipe (`check | head`) is no reason to fail; the exit status tells what was found.
    let _ = show(&diagnostics, args.format, io::stdout().lock());
    let unreachable = match &config {
        // What machines read stays by itself.
        Some(config) if args.online && args.format == Format::Human => reach(config, &loaded.sources, &mut io::stdout().lock()),
        Some(config) if args.online => reach(config, &loaded.sources, &mut io::stderr().lock()),
        _ => false,
    };
    let of = |severity| diagnostics.iter().filter(|d| d.severity == severity).count();
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    eprintln!("checked {}: {}, {}", plural(files, "file"), plural(errors, "error"), plural(warnings, "warning"));
    match (errors, warnings) {
        (1.., _) => 1,
        _ if unreachable => 1,
        (0, 1..) if args.deny_warnings => 3,
        _ => 0,
    }
}

/// Prints the page of a code, or what there are.
fn explain(code: &str) -> i32 {
    let mut out = io::stdout().lock();
    if code.eq_ignore_ascii_case("all") {
        for page in codes::pages() {
            let _ = writeln!(out, "{}  {}", page.code, page.title);
        }
        return 0;
    }
    if let Some(page) = codes::page(code) {
        let _ = write!(out, "{}", page.plain());
        return 0;
    }
    let all: Vec<String> = codes::pages().map(|page| page.code.to_lowercase()).collect();
    let near = diagnostic::nearest(code, all.iter().map(String::as_str));
    let hint = near.map_or("`--explain` alone lists all".to_owned(), |near| format!("did you mean {}?", near.to_uppercase()));
    eprintln!("error: there is no code {}; {hint}", diagnostic::quote(code));
    2
}

/// The faults of a test of rules. Those of the rules that it is about are told with them.
fn of_test(path: &Path) -> Vec<Diagnostic> {
    let name = path.display().to_string();
    let found = ruletest::load(path).err().unwrap_or_default();
    found.into_iter().filter(|fault| fault.file == name).collect()
}

/// The faults of a configuration among those of rules.
fn of_config(path: &Path, errors: &ConfigErrors) -> Vec<Diagnostic> {
    let of = |error: &crate::config::ConfigError| {
        let fault = match (&error.origin, &error.source) {
            (Origin::File { path, line, column }, Some(source)) if *line > 0 => {
                let place = (usize::try_from(*line).unwrap_or(0), usize::try_from(*column).unwrap_or(0));
                Diagnostic::on_line(&path.display().to_string(), source, place, error.code, error.message.clone())
            }
            (Origin::File { path, .. }, _) => Diagnostic::file(&path.display().to_string(), error.code, error.message.clone()),
            (origin, _) => Diagnostic::file(&path.display().to_string(), error.code, format!("{}: {}", origin, error.message)),
        };
        match &error.help {
            Some(help) => fault.with_help(help.clone()),
            None => fault,
        }
    };
    errors.0.iter().map(of).collect()
}

fn show(diagnostics: &[Diagnostic], format: Format, mut out: impl Write) -> io::Result<()> {
    let color = color(io::stdout().is_terminal());
    if format == Format::Sarif {
        return writeln!(out, "{:#}", sarif::log(diagnostics));
    }
    for diagnostic in diagnostics {
        match format {
            Format::Human => writeln!(out, "{}", diagnostic.human(color))?,
            Format::Json => write!(out, "{}", diagnostic.json())?,
            Format::Github | Format::Sarif => writeln!(out, "{}", github(diagnostic))?,
        }
    }
    out.flush()
}

/// `::error file=…,line=…,col=…,title=…::message`.
fn github(fault: &Diagnostic) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let command = match fault.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "notice",
    };
    let place = match fault.line {
        0 => String::new(),
        line => format!(",line={line},endLine={},col={},endColumn={}", fault.end_line, fault.column, fault.end_column),
    };
    format!("::{command} file={}{place},title={}::{}", property(&fault.file), property(fault.code), data(&fault.told()))
}

/// Asks everything that the configuration names; prints a table. Whether something cannot be reached.
fn reach(config: &Config, sources: &Sources, out: &mut impl Write) -> bool {
    let found = online::all(config, sources);
    let _ = out.write_all(online::table(&found).as_bytes());
    found.iter().any(|finding| matches!(finding.result, online::Found::Bad(..)))
}

pub(super) fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Whether colours are wanted where the output goes.
pub(super) fn color(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Whether diagnostics on standard error are coloured.
pub(super) fn color_stderr() -> bool {
    color(io::stderr().is_terminal())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str, deny_warnings: bool) -> i32 {
        let args = CheckArgs { paths: vec![path.into()], format: Format::Json, deny_warnings, config: None, online: false, explain: None };
        run(&args)
    }

    #[test]
    fn the_exit_status_tells_what_was_found() {
        assert_eq!(status("rules", true), 0);
        assert_eq!(status("tests/bad_rules/unknown_key.yaml", false), 1);
        assert_eq!(status("tests/bad_rules/rare_event.yaml", false), 0);
        assert_eq!(status("tests/bad_rules/rare_event.yaml", true), 3);
        assert_eq!(status("tests/rule_tests/odd_test.yaml", false), 1, "a test of rules, with faults of its own");
        assert_eq!(status("no/such/rules", false), 2);
    }

    #[test]
    fn workflow_commands_cannot_be_broken_out_of() {
        let fault = Diagnostic::at("a,b:c.yaml", "x: 1\n", 3..4, "GR1001", "50%").with_label("::error::").as_note();
        assert_eq!(github(&fault), "::notice file=a%2Cb%3Ac.yaml,line=1,endLine=1,col=4,endColumn=5,title=GR1001::50%25: ::error::");
    }
}
