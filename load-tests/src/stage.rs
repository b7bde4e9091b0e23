//! `stage`: all that a daemon needs to have something to show, so that its dashboard can be tested and drawn: a broker, live
//! traffic of experiments, a flag service, a channel that does not answer, and the files of the daemon. The daemon is started by whoever
//! asked, who gives orders by lines of standard input.

use anyhow::{Context, ensure};
use guardraild::clock;
use guardraild::tools::broker::{Broker, Feed, Writer};
use guardraild::tools::receiver::{Options, Receiver};
use guardraild::tools::traffic::{Bucket, Case, Effect, Experiment, Fault, Record, Traffic};
use std::io::BufRead;
use std::path::{Path, PathBuf};

const SECRET: &str = "whsec_bG9hZC10ZXN0cy1sb2FkLXRlc3RzLWxvYWQtdGVzdHM=";
const FULL: &str = include_str!("../stage/new-checkout.yaml");
const FILLER: &str = include_str!("../stage/filler.yaml");
const NAME: &str = "new-checkout";
/// Visits per second while it is quiet: the next one comes after 20 s.
const QUIET: f64 = 0.05;
/// A user is in at most so many experiments.
const AT_ONCE: usize = 8;

#[derive(clap::Args)]
pub struct Args {
    /// Where the daemon's files go: a new directory
    #[arg(long)]
    dir: PathBuf,
    /// Experiments in all; the first has everything that a rule can show
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    experiments: u32,
    /// Where the daemon shall listen
    #[arg(long, default_value = "127.0.0.1:8080")]
    http: String,
    #[arg(long, default_value_t = 300.0)]
    visits_per_s: f64,
    /// Bearer token of the role `operate`
    #[arg(long, default_value = "stage-operate-token")]
    token: String,
}

/// Prints the path of the configuration once all runs; then obeys, until standard input ends:
/// `slow` makes the treatment of the first experiment slow, `quiet` lets almost nobody come until `busy`, `poison` sends records that
/// are refused.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let broker = Broker::start(4)?;
    let feed = Feed::start(Traffic::new(case(args), clock::now())?, Writer::new(&broker.servers(), "", &[])?)?;
    let switch = feed.switch();
    let on_stop = Box::new(move |experiment: &str, bucket: &str| switch.stop(experiment, bucket));
    let receiver = Receiver::start(Options { secrets: vec![SECRET.to_owned()], refuse: |n| n == 0, on_stop })?;
    println!("{}", files(args, &broker.servers(), &receiver.url())?.display());
    for line in std::io::stdin().lock().lines() {
        ensure!(!feed.is_over(), "the traffic has ended");
        match line?.trim() {
            "slow" => feed.inject(slow()),
            "quiet" => feed.pace(QUIET),
            "busy" => feed.pace(args.visits_per_s),
            "poison" => poison(&Writer::new(&broker.servers(), "", &[])?)?,
            other => anyhow::bail!("no order `{other}`: slow, quiet, busy or poison"),
        }
    }
    feed.finish()?;
    Ok(())
}

fn case(args: &Args) -> Case {
    let bucket = |name: &str| Bucket { name: name.to_owned(), weight: 1.0, effect: Effect::default() };
    let experiment =
        |name: &str, copies| Experiment { name: name.to_owned(), copies, buckets: vec![bucket("control"), bucket("treatment")] };
    let mut experiments = vec![experiment(NAME, 1)];
    if args.experiments > 1 {
        experiments.push(experiment("ranking", args.experiments - 1));
    }
    Case {
        visits_per_s: args.visits_per_s,
        requests_per_visit: 2,
        users: 20_000,
        ids: true,
        workflow_share: 0.4,
        workflow_ms: 4_000,
        abandon_share: 0.25,
        experiments_per_user: (args.experiments as usize).min(AT_ONCE),
        experiments,
        ..Case::default()
    }
}

fn slow() -> Fault {
    let effect = Effect { latency: 1.35, ..Effect::default() };
    Fault { at_s: 0.0, until_s: None, experiment: NAME.to_owned(), stagger_s: 0.0, bucket: "treatment".to_owned(), segment: None, effect }
}

/// Records of several faults; what users sent in them is never shown.
fn poison(writer: &Writer) -> anyhow::Result<()> {
    let ts = clock::now();
    let bad = [
        "not json".to_owned(),
        format!(r#"{{"event":"request","ts":{ts},"tenant_id":"t-secret","user_id":"u-secret","latency_ms":"fast"}}"#),
        format!(r#"{{"event":"exposure","ts":{ts},"experiment":"{NAME}","bucket":"purple","tenant_id":"t-secret","user_id":"u-secret"}}"#),
        r#"{"event":"request","tenant_id":"t-secret","user_id":"<img src=x onerror=alert(1)>"}"#.to_owned(),
    ];
    for payload in bad {
        writer.send(&Record { key: b"t|u".to_vec(), payload: payload.into_bytes(), ts, ..Record::default() })?;
    }
    Ok(writer.flush(std::time::Duration::from_secs(5))?)
}

fn files(args: &Args, servers: &str, receiver: &str) -> anyhow::Result<PathBuf> {
    let rules = args.dir.join("rules");
    std::fs::create_dir_all(&rules).with_context(|| format!("{} cannot be made", rules.display()))?;
    let write = |path: &Path, text: &str| std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()));
    write(&rules.join(format!("{NAME}.yaml")), FULL)?;
    for name in case(args).experiments.iter().skip(1).flat_map(|e| e.names().collect::<Vec<_>>()) {
        let head = format!(
            "guardrail: v1\noverview: {{experiment: {name}, owner: search}}\nbuckets: {{control: {{baseline: true}}, treatment: {{}}}}\n"
        );
        write(&rules.join(format!("{name}.yaml")), &format!("{head}{FILLER}"))?;
    }
    write(&args.dir.join("flag-service.secret"), SECRET)?;
    write(&args.dir.join("token"), &args.token)?;
    write(&args.dir.join("closed.url"), "http://127.0.0.1:9/closed")?;
    let config = args.dir.join("guardraild.yaml");
    let text = format!(
        "state_dir: state\nrules: [rules]\nkafka: {{brokers: [\"{servers}\"], group: stage, auto_offset_reset: earliest}}\n\
         http:\n  listen: \"{}\"\n  tokens: [{{name: oncall, role: operate, token: {{file: token}}}}]\nendpoints:\n  \
         flag-service: {{kind: webhook, url: \"{receiver}\", secrets: [{{file: flag-service.secret}}]}}\n  \
         checkout-exp: {{kind: slack, url: {{file: closed.url}}}}\n",
        args.http,
    );
    write(&config, &text)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_takes_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args {
            dir: dir.path().to_owned(),
            experiments: 3,
            http: "127.0.0.1:0".to_owned(),
            visits_per_s: 100.0,
            token: "stage-operate-token".to_owned(),
        };
        case(&args).check().unwrap();
        let path = files(&args, "127.0.0.1:9092", "http://127.0.0.1:2/hook").unwrap();
        let config = guardraild::config::Config::load_with(Some(&path), &[], &Default::default()).unwrap();
        let loaded = guardraild::rules::load(&config.rules, Some(&config.endpoints.keys().cloned().collect()));
        assert_eq!(loaded.rules.len(), 3, "{:?}", loaded.diagnostics);
        assert!(loaded.diagnostics.iter().all(|d| !d.is_error()), "{:?}", loaded.diagnostics);
    }
}
