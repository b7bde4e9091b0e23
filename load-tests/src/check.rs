//! How long `guardraild check` takes for many rule files.

use crate::usage::cpu;
use anyhow::{Context, ensure};
use guardraild::engine::plan::Settings;
use guardraild::rules::checked;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Rule files.
    #[arg(long, default_value_t = 1_000)]
    files: usize,
    /// The rule file that all are copies of, each with its own experiment; without its `instrumentation`, whose topics only one may read.
    #[arg(long, default_value = "rules/new-checkout.yaml")]
    rule: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.rule).with_context(|| args.rule.display().to_string())?;
    let text = without_section(&text, "instrumentation");
    let directory = tempfile::tempdir()?;
    for i in 0..args.files {
        let own = text
            .replace("experiment: new-checkout", &format!("experiment: e{i}"))
            .replace("namespace: checkout", &format!("namespace: n{i}"));
        std::fs::write(directory.path().join(format!("e{i}.yaml")), own)?;
    }
    let (before, since) = (cpu(), Instant::now());
    let loaded = checked(&[directory.path().to_owned()], None, &Settings::default());
    let (used, took) = ((cpu() - before).as_secs_f64(), since.elapsed().as_secs_f64());
    ensure!(loaded.files == args.files && loaded.refused == 0, "{} of {} files are refused", loaded.refused, loaded.files);
    println!("{} files of {} bytes: {used:.2} s of CPU, {took:.2} s", args.files, text.len());
    Ok(())
}

/// A text without the lines of one of its sections.
fn without_section(text: &str, name: &str) -> String {
    let mut inside = false;
    let kept = text.lines().filter(|line| {
        if !line.starts_with([' ', '#']) && !line.is_empty() {
            inside = line.starts_with(name);
        }
        !inside
    });
    kept.map(|line| format!("{line}\n")).collect()
}
