//! Close looks at single experiments: all intervals, exact evidence and histograms, which the judge has to stop for. However many ask, they
//! take no more than a small part of its time.

use super::{App, Shared};
use crate::engine::state::{CloseLook, ExperimentState};
use crate::live::Command;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long the judge may take for a close look.
const LOOK: Duration = Duration::from_secs(2);
/// Pause after a look, in times of what it took: those who look leave the judge nineteen twentieths of its time.
const PAUSE: u32 = 19;
/// Pause after a look that nobody has asked for, which is taken for the charts of later.
const QUIET_PAUSE: u32 = 100;
const LEAST_PAUSE: Duration = Duration::from_millis(200);
/// What a look takes has the time in it that the judge was busy with other things, which is no reason to stay away for long.
const MOST_PAUSE: Duration = Duration::from_secs(10);
/// One experiment is looked at no more often than this by itself.
const ROUND: Duration = Duration::from_secs(5);
/// Looks kept; the oldest go.
const KEPT: usize = 256;

/// The newest look at each experiment.
#[derive(Default)]
pub struct Looks {
    kept: Mutex<BTreeMap<String, Look>>,
    /// When the judge may be asked again; whoever asks holds it, so that there is one at a time.
    next: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct Look {
    /// Taken from the judge when the live view was of this moment.
    of: i64,
    at: Instant,
    seen: Arc<CloseLook>,
}

/// The experiment with all its intervals, of this view or, while the judge is busy, an older one in which it stood as it does now;
/// `None` where there is none.
pub async fn closely(app: &Shared, experiment: &str) -> Option<Arc<CloseLook>> {
    let now = Instant::now();
    if let Some(seen) = app.looks.current(app, experiment) {
        return Some(seen);
    }
    let Ok(mut next) = app.looks.next.try_lock() else { return app.looks.older(app, experiment) };
    if next.is_some_and(|next| now < next) {
        return app.looks.older(app, experiment);
    }
    let seen = ask(app, experiment).await?;
    *next = Some(Instant::now() + (now.elapsed() * PAUSE).min(MOST_PAUSE));
    Some(seen)
}

async fn ask(app: &Shared, experiment: &str) -> Option<Arc<CloseLook>> {
    let of = app.api.live.get().at;
    let (reply, answer) = oneshot::channel();
    app.api.commands.try_send(Command::Look { experiment: experiment.to_owned(), reply }).ok()?;
    let seen = Arc::new(tokio::time::timeout(LOOK, answer).await.ok()?.ok()??);
    app.api.live.history().look(&seen.state);
    app.api.live.tell_look(&seen);
    app.looks.keep(experiment, Look { of, at: Instant::now(), seen: Arc::clone(&seen) });
    Some(seen)
}

impl Looks {
    fn get(&self, experiment: &str) -> Option<Look> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(experiment).cloned()
    }

    fn current(&self, app: &Shared, experiment: &str) -> Option<Arc<CloseLook>> {
        self.get(experiment).filter(|look| look.of == app.api.live.get().at).map(|look| look.seen)
    }

    fn older(&self, app: &Shared, experiment: &str) -> Option<Arc<CloseLook>> {
        let (Look { seen, .. }, view) = (self.get(experiment)?, app.api.live.get());
        let (then, now) = (&seen.state, view.experiment(experiment)?);
        let same = (&then.verdict, &then.decisions, &then.holds, then.phase, then.revision)
            == (&now.verdict, &now.decisions, &now.holds, now.phase, now.revision);
        let stops = then.buckets.iter().map(|b| &b.stopped).eq(now.buckets.iter().map(|b| &b.stopped));
        let asked = |e: &ExperimentState| e.guardrails.iter().map(|g| (g.guardrail.clone(), g.limit, g.max_increase)).collect::<Vec<_>>();
        (same && stops && asked(then) == asked(now)).then_some(seen)
    }

    fn keep(&self, experiment: &str, look: Look) {
        let mut kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        kept.insert(experiment.to_owned(), look);
        while kept.len() > KEPT
            && let Some(oldest) = kept.iter().min_by_key(|(_, look)| look.at).map(|(name, _)| name.clone())
        {
            kept.remove(&oldest);
        }
    }
}

/// Looks at one experiment after another, so that charts have intervals from before somebody opened them.
pub async fn by_turns(app: App) {
    let mut last: Option<String> = None;
    loop {
        let view = app.api.live.get();
        let begun = Instant::now();
        let after = view.experiments.iter().find(|e| last.as_ref().is_none_or(|last| e.experiment > *last));
        let Some(state) = after.or(view.experiments.first()) else {
            tokio::time::sleep(ROUND).await;
            continue;
        };
        last = Some(state.experiment.clone());
        let mut next = app.looks.next.lock().await;
        ask(&app, &state.experiment).await;
        let took = begun.elapsed();
        *next = Some(Instant::now() + (took * PAUSE).min(MOST_PAUSE));
        drop(next);
        let each = ROUND / u32::try_from(view.experiments.len()).unwrap_or(u32::MAX);
        tokio::time::sleep((took * QUIET_PAUSE).min(MOST_PAUSE).max(each).max(LEAST_PAUSE)).await;
    }
}
