//! Recorded events, in files or in Kafka, through the daemon's own engine, at full speed.

use crate::engine::aggregate::Aggregator;
use crate::engine::decision::{Decision, Output, Verdict, rfc3339};
use crate::engine::fleet::Fleet;
use crate::engine::outcome::Counts;
use crate::engine::plan::{Catalog, Settings};
use crate::engine::state::{ExperimentState, FunnelState, RetentionState};
use crate::engine::time::Millis;
use crate::ingest::decode::{Decoder, Limits};
use crate::ingest::file::{FileSource, pump};
use crate::ingest::kafka::FromIngest;
use crate::ingest::mapped::{Layouts, Reader};
use crate::ingest::range::{Range, RangeError};
use crate::ingest::replay::Replay;
use crate::mapping::Source;
use serde::{Serialize, Serializer};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Records between two reports of progress.
const STRIDE: u64 = 512;

/// What a recording came to. Serialises as the last line of `backtest --output json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub records: u64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Smallest and largest event time accepted.
    #[serde(serialize_with = "optional_time")]
    pub first: Option<Millis>,
    #[serde(serialize_with = "optional_time")]
    pub last: Option<Millis>,
    pub decisions: u64,
    /// At the end of the recording.
    pub verdicts: Vec<FinalVerdict>,
    /// Where rules ask for them: funnels and retention of each experiment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub journeys: Vec<Journeys>,
    /// What a bound made the engine forget, where it did: name of the bound and how often.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<(&'static str, u64)>,
    /// The experiments at the end of the recording.
    #[serde(skip)]
    pub experiments: Vec<ExperimentState>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Journeys {
    pub experiment: String,
    pub funnels: Vec<FunnelState>,
    pub retention: Vec<RetentionState>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct FinalVerdict {
    pub experiment: String,
    pub bucket: String,
    pub guardrail: String,
    pub verdict: Verdict,
}

/// Reads `events`, whose lines are records as `source` reads them, through the engine. `decided` gets each decision as it is made; `progress` the bytes read, and the total where it is
/// known.
///
/// # Errors
/// A file cannot be opened or read; the message names it.
pub fn run(
    catalog: Catalog,
    settings: &Settings,
    limits: Limits,
    (events, source): (&[PathBuf], Option<&Arc<Source>>),
    decided: impl FnMut(&Decision),
    progress: impl FnMut(u64, Option<u64>),
) -> io::Result<Summary> {
    let source = FileSource::open(events, source, limits)?;
    let mut decoder = Decoder::new(&catalog.fields, limits);
    let mut court = Court {
        fleet: Fleet::new(&catalog, settings.pane).sharing(&settings.shared_cause).braking(&settings.blast_radius),
        decisions: 0,
        decided,
    };
    let mut aggregator = Aggregator::new(0, Arc::new(catalog), settings.clone());
    let counts = pump(
        source,
        &mut decoder,
        &mut aggregator,
        |emissions| emissions.into_iter().for_each(|emission| court.hear(|fleet, out| fleet.take(emission, out))),
        progress,
    )?;
    let dropped = aggregator.dropped().into_iter().filter(|(_, n)| *n > 0).collect();
    Ok(court.summary(counts, aggregator.span(), dropped))
}

/// Reads a range of Kafka's topics through the engine, as a daemon would have that read the records as they came. `decided` gets each
/// decision as it is made; `progress` the records passed, and how many there are.
///
/// # Errors
/// See [`RangeError`].
pub fn run_range(
    (catalog, layouts): (Catalog, &Layouts),
    settings: &Settings,
    limits: Limits,
    (range, max_future): (Range, Millis),
    decided: impl FnMut(&Decision),
    mut progress: impl FnMut(u64, u64),
) -> Result<Summary, RangeError> {
    let mut reader = Reader::new(range.topics(), layouts, &catalog.fields, limits);
    let mut court = Court {
        fleet: Fleet::new(&catalog, settings.pane).sharing(&settings.shared_cause).braking(&settings.blast_radius),
        decisions: 0,
        decided,
    };
    let partitions = range.partitions();
    partitions.iter().for_each(|partition| court.fleet.assigned(*partition));
    let mut replay = Replay::new(partitions, &Arc::new(catalog), settings, max_future);
    let mut n: u64 = 0;
    range.read(|place, at, payload, (passed, total)| {
        replay.book(place, at, payload, &mut reader, &mut |message| court.take(message))?;
        n += 1;
        if n.is_multiple_of(STRIDE) {
            progress(passed, total);
        }
        Ok(())
    })?;
    let end = replay.finish(&mut |message| court.take(message));
    Ok(court.summary(end.counts, end.span, end.dropped.into_iter().collect()))
}

/// The judges, and what they have said.
struct Court<D> {
    fleet: Fleet,
    decisions: u64,
    decided: D,
}

impl<D: FnMut(&Decision)> Court<D> {
    fn hear(&mut self, say: impl FnOnce(&mut Fleet, &mut Output)) {
        let mut out = Output::default();
        say(&mut self.fleet, &mut out);
        self.decisions += out.decisions.len() as u64;
        out.decisions.iter().for_each(&mut self.decided);
    }

    fn take(&mut self, message: FromIngest) {
        match message {
            FromIngest::Emission { emission, .. } => self.hear(|fleet, out| fleet.take(emission, out)),
            FromIngest::Idle(partition) => self.hear(|fleet, out| fleet.empty(partition, out)),
            // A replay says nothing else.
            _ => {}
        }
    }

    fn summary(self, counts: Counts, span: Option<(Millis, Millis)>, dropped: Vec<(&'static str, u64)>) -> Summary {
        let experiments = self.fleet.views();
        Summary {
            records: counts.records(),
            counts,
            first: span.map(|(first, _)| first),
            last: span.map(|(_, last)| last),
            decisions: self.decisions,
            verdicts: experiments.iter().flat_map(verdicts).collect(),
            journeys: experiments.iter().filter_map(journeys).collect(),
            dropped,
            experiments,
        }
    }
}

fn verdicts(state: &ExperimentState) -> impl Iterator<Item = FinalVerdict> + '_ {
    state.guardrails.iter().map(|g| FinalVerdict {
        experiment: state.experiment.clone(),
        bucket: g.bucket.clone(),
        guardrail: g.guardrail.clone(),
        verdict: g.verdict,
    })
}

fn journeys(state: &ExperimentState) -> Option<Journeys> {
    let ExperimentState { experiment, funnels, retention, .. } = state;
    let asked = !funnels.is_empty() || !retention.is_empty();
    asked.then(|| Journeys { experiment: experiment.clone(), funnels: funnels.clone(), retention: retention.clone() })
}

fn optional_time<S: Serializer>(ts: &Option<Millis>, serializer: S) -> Result<S::Ok, S::Error> {
    match ts {
        Some(ts) => rfc3339::serialize(ts, serializer),
        None => serializer.serialize_none(),
    }
}
