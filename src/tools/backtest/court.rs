//! The judges of one rule set, and what they have said.

use super::course::Courses;
use super::state::{COURSES, FLEET, Keeper, Left, StateError};
use super::{FinalVerdict, Journeys, Outcome, Summary, Terms};
use crate::engine::decision::{Decision, Output};
use crate::engine::fleet::Fleet;
use crate::engine::kept::Changes;
use crate::engine::pane::Emission;
use crate::engine::plan::Catalog;
use crate::engine::state::ExperimentState;
use crate::ingest::kafka::FromIngest;
use crate::ingest::replay::Replayed;
use crossbeam_channel::Receiver;

/// What the reading thread says to a court.
pub enum Said {
    Emissions(Vec<Emission>),
    Keep(Changes),
}

/// See the module.
pub struct Court {
    pub fleet: Fleet,
    decisions: Vec<Decision>,
    /// Those that are in a checkpoint.
    kept: usize,
    courses: Option<Courses>,
}

impl Court {
    /// At the beginning of a recording.
    pub fn new(catalog: &Catalog, terms: &Terms<'_>) -> Court {
        let courses = terms.drawn.then(|| Courses::new(catalog, terms.settings.pane));
        Court::of(Fleet::new(catalog, terms.settings.pane), Vec::new(), courses, terms)
    }

    /// From what has been left.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn taken_up(catalog: &Catalog, terms: &Terms<'_>, mut left: Left) -> Result<Court, String> {
        let restored = Fleet::restore(catalog, terms.settings.pane, &left.kept.split_off(FLEET))?;
        if let Some((experiment, reason)) = restored.lost.first() {
            return Err(format!("`{experiment}`: {reason}"));
        }
        let mut court = Court::of(restored.fleet, left.decisions, left.kept.read(COURSES)?, terms);
        // Whether a bucket has stopped, and what follows if not, is taken up from the decisions, as by a daemon that starts again.
        court.decisions.iter().for_each(|decision| court.fleet.adopt(decision));
        Ok(court)
    }

    fn of(fleet: Fleet, decisions: Vec<Decision>, courses: Option<Courses>, terms: &Terms<'_>) -> Court {
        let fleet = fleet.sharing(&terms.settings.shared_cause).braking(&terms.settings.blast_radius);
        Court { fleet, kept: decisions.len(), decisions, courses }
    }

    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// Judges what comes until nothing more does; gives the keeper back.
    ///
    /// # Errors
    /// A checkpoint cannot be written.
    pub fn preside(
        &mut self,
        mut keeper: Option<Keeper>,
        inbox: &Receiver<Said>,
        mut decided: impl FnMut(Decision),
    ) -> Result<Option<Keeper>, StateError> {
        for said in inbox {
            match said {
                Said::Emissions(emissions) => {
                    emissions.into_iter().for_each(|emission| self.hear(|fleet, out| fleet.take(emission, out), |d| decided(d.clone())));
                }
                Said::Keep(read) => {
                    if let Some(keeper) = &mut keeper {
                        self.keep(read, keeper)?;
                    }
                }
            }
        }
        Ok(keeper)
    }

    /// Writes a checkpoint, with what the reading half says.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&mut self, read: Changes, keeper: &mut Keeper) -> Result<(), StateError> {
        keeper.keep(read, &mut self.fleet, &self.decisions[self.kept..], self.courses.as_ref())?;
        self.kept = self.decisions.len();
        Ok(())
    }

    fn hear(&mut self, say: impl FnOnce(&mut Fleet, &mut Output), decided: impl FnMut(&Decision)) {
        let mut out = Output::default();
        say(&mut self.fleet, &mut out);
        out.decisions.iter().for_each(decided);
        self.decisions.extend(out.decisions);
        if let Some(courses) = &mut self.courses {
            courses.hear(&out.log);
            courses.look(&self.fleet);
        }
    }

    /// Takes what a replay says.
    pub fn take(&mut self, message: FromIngest, decided: impl FnMut(&Decision)) {
        match message {
            FromIngest::Emission { emission, .. } => self.hear(|fleet, out| fleet.take(emission, out), decided),
            FromIngest::Idle(partition) => self.hear(|fleet, out| fleet.empty(partition, out), decided),
            // A replay says nothing else.
            _ => {}
        }
    }

    /// What all of it came to.
    pub fn outcome(mut self, replayed: Replayed) -> Outcome {
        if let Some(courses) = &mut self.courses {
            courses.finish(&self.fleet);
        }
        let Replayed { counts, span, dropped } = replayed;
        let experiments = self.fleet.views();
        let summary = Summary {
            records: counts.records(),
            counts,
            first: span.map(|(first, _)| first),
            last: span.map(|(_, last)| last),
            decisions: self.decisions.len() as u64,
            verdicts: experiments.iter().flat_map(verdicts).collect(),
            journeys: experiments.iter().filter_map(journeys).collect(),
            dropped: dropped.into_iter().collect(),
            experiments,
        };
        Outcome { decisions: self.decisions, summary, courses: self.courses }
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
