//! Looks after the rule files: takes up what has changed, from the start on, and keeps in force what cannot be taken up.
//!
//! Files are read whole and compared by content: that works for mounted ConfigMaps, for editors that write by renaming, and on volumes that
//! tell nobody of changes. A change counts once two looks have found the same; whoever asks need not wait.

use super::renew::Renewal;
use super::unable;
use crate::clock;
use crate::delivery::Renewer;
use crate::engine::state::{ExperimentState, Stage};
use crate::live::{Command, Live, Refusal, Reload, ReloadReport, ReloadRequest};
use crate::mapping::Source;
use crate::rules::reload::{FileState, InForce, Proposal, Running, State, propose};
use crate::rules::{self, Candidate, Loaded, Used};
use crate::store::RuleText;
use crate::telemetry::{Metrics, names};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Where rules come from, and what they must go with.
#[derive(Clone)]
pub struct Place {
    /// Files and directories.
    pub paths: Vec<PathBuf>,
    /// Names of the configured endpoints.
    pub endpoints: BTreeSet<String>,
    /// Topics that are read, once that is settled.
    pub topics: Option<Arc<[String]>>,
    /// There is a schema registry to ask.
    pub registry: bool,
}

/// Experiments as they were seen last.
struct Seen<'s> {
    place: &'s Place,
    experiments: &'s [ExperimentState],
}

impl Seen<'_> {
    fn of(&self, experiment: &str) -> Option<&ExperimentState> {
        self.experiments.iter().find(|e| e.experiment == experiment)
    }
}

impl Running for Seen<'_> {
    fn is_live(&self, experiment: &str) -> bool {
        self.of(experiment).is_some_and(|e| e.rollout.stage != Stage::Planned)
    }

    fn is_waiting(&self, experiment: &str) -> bool {
        self.of(experiment).is_some_and(is_waiting)
    }

    fn needs_restart(&self, source: &Source) -> Option<String> {
        let topics = self.place.topics.as_ref()?;
        if let Some(topic) = source.topics.iter().find(|topic| !topics.contains(topic)) {
            return Some(format!("topic `{topic}` is not read yet"));
        }
        (source.format.has_schema() && !self.place.registry).then(|| "no schema registry has been asked so far".to_owned())
    }
}

fn is_waiting(experiment: &ExperimentState) -> bool {
    experiment.buckets.iter().filter_map(|bucket| bucket.stopped.as_ref()).any(|stop| stop.confirmation == "waiting")
}

/// What was found on disk.
struct Found {
    candidates: Vec<Candidate>,
    /// Directories that cannot be read, and the like.
    troubles: Vec<String>,
    digest: u64,
}

fn look(paths: &[PathBuf]) -> Found {
    let (candidates, diagnostics) = rules::candidates(paths);
    let mut hash = DefaultHasher::new();
    for candidate in &candidates {
        (&candidate.file, candidate.text.as_ref().map_err(|fault| &fault.message)).hash(&mut hash);
    }
    let troubles: Vec<String> = diagnostics.iter().filter(|d| d.is_error()).map(rules::Diagnostic::short).collect();
    troubles.hash(&mut hash);
    Found { candidates, troubles, digest: hash.finish() }
}

/// The rules that were in force when the database was written last. Their endpoints may be others by now.
pub fn stored(texts: Vec<RuleText>) -> Loaded {
    let candidate = |rule: RuleText| Candidate { file: rule.file, text: Ok(rule.text) };
    rules::assemble_plain(texts.into_iter().map(candidate).collect())
}

/// What the files on disk make of `before` at the start, and their digest.
pub fn at_start(place: &Place, before: &Loaded, experiments: &[ExperimentState]) -> (Proposal, u64) {
    let found = look(&place.paths);
    let complete = found.troubles.is_empty();
    found.troubles.iter().for_each(|trouble| tracing::error!("{trouble}"));
    let proposal = propose(&in_force(before), (found.candidates, complete), Some(&place.endpoints), &Seen { place, experiments });
    (proposal, found.digest)
}

fn in_force(loaded: &Loaded) -> InForce {
    let rules = loaded.rules.iter().map(|rule| (rule.plan.experiment.clone(), Arc::clone(rule)));
    InForce { texts: loaded.used.clone(), rules: rules.collect() }
}

/// As the store keeps them.
pub fn texts(used: &[Used]) -> Vec<RuleText> {
    let text = |u: &Used| RuleText { file: u.file.clone(), experiment: u.experiment.clone(), text: u.text.clone() };
    used.iter().map(text).collect()
}

/// Tells logs and metrics how the files stand.
pub fn tell(proposal: &Proposal, metrics: &Metrics) {
    for diagnostic in &proposal.loaded.diagnostics {
        match diagnostic.is_error() {
            true => tracing::error!("{}", diagnostic.short()),
            false => tracing::warn!("{}", diagnostic.short()),
        }
    }
    for change in &proposal.changes {
        let file = &change.file;
        tracing::info!(file, experiment = change.experiment, "rules {}: {}", change.what.name(), change.lines.join("; "));
    }
    for state in [State::InForce, State::Stale, State::Refused, State::Leaving] {
        let n = proposal.files.iter().filter(|file| file.state == state).count();
        metrics.set(&names::RULE_FILES, &[state.name()], n as f64);
    }
}

/// Takes up changes while the daemon runs.
pub struct Keeper {
    pub place: Place,
    pub live: Live,
    pub metrics: Metrics,
    pub judge: mpsc::Sender<Command>,
    /// How endpoints are reached.
    endpoints: Renewer,
    in_force: InForce,
    /// Digest of the files that have been dealt with, and of the last look.
    settled: u64,
    seen: u64,
    /// What of the configuration is read again when somebody asks.
    renewal: Option<Renewal>,
}

impl Keeper {
    /// Goes on from what is in force at the start, when the files had this digest.
    pub fn new(
        place: Place,
        (live, metrics): (Live, Metrics),
        judge: mpsc::Sender<Command>,
        endpoints: Renewer,
        (loaded, digest): (&Loaded, u64),
    ) -> Keeper {
        metrics.set(&names::RELOADED_AT, &[], clock::now() as f64 / 1_000.0);
        Keeper { place, live, metrics, judge, endpoints, in_force: in_force(loaded), settled: digest, seen: digest, renewal: None }
    }

    #[must_use]
    pub fn renewing(self, renewal: Option<Renewal>) -> Keeper {
        Keeper { renewal, ..self }
    }

    /// Looks at the files now and then, and when asked; until nobody can ask any more.
    pub async fn run(mut self, mut requests: mpsc::Receiver<ReloadRequest>, every: Duration) {
        let mut looks = tokio::time::interval(every);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(ReloadRequest { author, dry_run, reply }) => {
                        let report = self.reload(author, dry_run).await;
                        // Whoever asked may have gone.
                        let _ = reply.send(report);
                    }
                    None => return,
                },
                _ = looks.tick() => self.look().await,
            }
        }
    }

    async fn find(&self) -> Option<Found> {
        let paths = self.place.paths.clone();
        // A volume that hangs must hang nobody else.
        tokio::task::spawn_blocking(move || look(&paths)).await.ok()
    }

    /// Takes up what two looks have found alike.
    async fn look(&mut self) {
        let Some(found) = self.find().await else { return };
        let steady = std::mem::replace(&mut self.seen, found.digest) == found.digest;
        if steady && (found.digest != self.settled || self.has_left()) {
            // What came of it is in the log.
            let _ = self.take_up(found, None, false).await;
        }
    }

    /// An experiment whose file is gone has nothing to wait for any more.
    fn has_left(&self) -> bool {
        let (files, view) = (self.live.files(), self.live.get());
        let mut leaving = files.iter().filter(|file| file.state == State::Leaving).filter_map(|file| file.experiment.as_deref());
        leaving.any(|name| !view.experiment(name).is_some_and(is_waiting))
    }

    async fn reload(&mut self, author: Option<String>, dry_run: bool) -> Result<ReloadReport, Refusal> {
        if let Some(renewal) = self.renewal.as_ref().filter(|_| !dry_run) {
            tokio::task::block_in_place(|| renewal.renew(&self.endpoints));
        }
        match self.find().await {
            Some(found) => self.take_up(found, author, dry_run).await,
            None => Err(Refusal::NotPossible("the rule files could not be read: the thread failed".into())),
        }
    }

    async fn take_up(&mut self, found: Found, author: Option<String>, dry_run: bool) -> Result<ReloadReport, Refusal> {
        let digest = found.digest;
        let report = self.go_on_by(found, author, dry_run).await;
        if !dry_run {
            let result = match &report {
                Ok(report) if report.is_clean() => "applied",
                Ok(_) => "partly",
                Err(_) => "failed",
            };
            self.metrics.add(&names::RELOADS, &[result], 1.0);
            // A refusal is tried again when the files change, or when somebody asks; what the store kept from happening, with the next look.
            if !matches!(report, Err(Refusal::NotStored(_))) {
                self.settled = digest;
            }
        }
        report
    }

    async fn go_on_by(&mut self, found: Found, author: Option<String>, dry_run: bool) -> Result<ReloadReport, Refusal> {
        let complete = found.troubles.is_empty();
        found.troubles.iter().for_each(|trouble| tracing::error!("{trouble}"));
        if found.candidates.is_empty() {
            let why = "no rule file is there: what is in force stays, as an empty directory is rather a fault than a wish";
            tracing::error!("{why}");
            return Err(Refusal::NotPossible(why.into()));
        }
        let view = self.live.get();
        let seen = Seen { place: &self.place, experiments: &view.experiments };
        let endpoints = Some(&self.place.endpoints);
        let proposal = tokio::task::block_in_place(|| {
            let mut proposal = propose(&self.in_force, (found.candidates, complete), endpoints, &seen);
            unable::note(&mut proposal.files, &proposal.loaded, |name| self.endpoints.sender(name), clock::now());
            proposal
        });
        let report = ReloadReport { changes: proposal.changes.clone(), files: proposal.files.clone() };
        if dry_run {
            return Ok(report);
        }
        tell(&proposal, &self.metrics);
        let Proposal { loaded, changes, files } = proposal;
        if loaded.rules.is_empty() {
            return Err(Refusal::NotPossible("no rule would be in force: what is in force stays".into()));
        }
        if !changes.is_empty() {
            self.hand_over(loaded, report.changes.clone(), author).await?;
        }
        unable::tell(&files, &self.live.files());
        self.live.set_files(files);
        Ok(report)
    }

    /// Lets the judge go on by other rules, and waits until it does.
    async fn hand_over(&mut self, loaded: Loaded, changes: Vec<rules::reload::Change>, author: Option<String>) -> Result<(), Refusal> {
        let stopped = || Refusal::NotStored("the daemon stops".into());
        let next = in_force(&loaded);
        let (reply, answer) = oneshot::channel();
        let reload = Reload { loaded, changes, author, reply };
        self.judge.send(Command::Reload(Box::new(reload))).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))?;
        self.in_force = next;
        self.metrics.set(&names::RELOADED_AT, &[], clock::now() as f64 / 1_000.0);
        Ok(())
    }
}

/// What `/readyz?verbose` says of the files. A file that is not in force keeps nobody from judging.
pub fn told(files: &[FileState]) -> String {
    let unlike: Vec<String> = files
        .iter()
        .filter(|file| file.state != State::InForce)
        .map(|file| format!("{} is {}{}", file.file, file.state.name(), file.faults.first().map(|f| format!(" ({f})")).unwrap_or_default()))
        .collect();
    match unlike.is_empty() {
        true => format!("{} files in force", files.len()),
        false => format!("{} of {} files are not in force as they are: {}", unlike.len(), files.len(), unlike.join("; ")),
    }
}
