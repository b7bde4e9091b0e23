//! What each phase of the rollout has seen: figures for people, which decide nothing.
//!
//! A unit, a workflow and what a unit adds up to belong to the phase in which the unit was exposed first or the workflow began;
//! requests and other events to the phase in which they were read.

use crate::engine::evidence::enrolled;
use crate::engine::histogram::{Bins, upper_edge};
use crate::engine::pane::{BucketPartial, Cell, PanePartial};
use crate::engine::plan::{Guardrail, Plan, Signal, Statistic, Unit};
use crate::engine::state::{PhaseBucket, PhaseMetric, PhaseState};
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;

/// Visits of phases that are kept apart; older ones count for the whole life only.
const MAX_VISITS: usize = 16;

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Phases {
    /// What older visits came to, by bucket.
    before: Vec<Tally>,
    /// In the order of time, at least one; the first begins whenever anything does.
    visits: Vec<Visit>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Visit {
    phase: u32,
    /// First pane that may belong to it.
    from: Pane,
    /// When it began: of the first visit, when the first record came.
    since: Option<Millis>,
    weights: Vec<f64>,
    /// By bucket.
    tallies: Vec<Tally>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Tally {
    units: u64,
    exposures: u64,
    events: u64,
    /// By signal; grows with the first cell.
    figures: Vec<Figure>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Figure {
    /// Observations: events, or workflows begun.
    n: u64,
    /// Hits among them; where the observation is the unit, units with a hit.
    x: u64,
    sum: f64,
    values: Values,
}

/// Values by coarse bin: enough to read a quantile off within 1%.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Bins")]
struct Values {
    bins: Bins,
    /// Coarse bins of the latest values: counted many at a time, since nobody looks often and bins lie far apart in memory.
    fresh: Vec<u16>,
}

/// Values in `fresh` at most.
const FRESH_MAX: usize = 512;

/// From here on, 8 neighbouring bins are one coarse bin: those of 2 significant digits.
const FINE: u16 = 1_024;

fn coarse(bin: u16) -> u16 {
    if bin < FINE { bin } else { FINE + (bin - FINE) / 8 }
}

/// The last of the bins that a coarse bin stands for.
fn last(coarse: u16) -> u16 {
    if coarse < FINE { coarse } else { FINE + (coarse - FINE) * 8 + 7 }
}

impl Phases {
    pub fn new(plan: &Plan) -> Phases {
        let tallies = vec![Tally::default(); plan.buckets.len()];
        let first = Visit { phase: 0, from: Pane(i64::MIN), since: None, weights: plan.first_weights(), tallies: tallies.clone() };
        Phases { before: tallies, visits: vec![first] }
    }

    /// When the present phase began; `None` before the first record.
    pub fn since(&self) -> Option<Millis> {
        self.visits.last()?.since
    }

    /// The first record has come.
    pub fn launch(&mut self, at: Millis) {
        if let Some(visit) = self.visits.last_mut() {
            visit.since.get_or_insert(at);
        }
    }

    /// A phase begins with `from`.
    pub fn begin(&mut self, phase: u32, at: Millis, from: Pane, weights: Vec<f64>) {
        let tallies = vec![Tally::default(); self.before.len()];
        self.visits.push(Visit { phase, from, since: Some(at), weights, tallies });
        if self.visits.len() > MAX_VISITS {
            let oldest = self.visits.remove(0);
            self.before.iter_mut().zip(&oldest.tallies).for_each(|(into, from)| into.merge(from));
        }
    }

    /// Gives figures to the signals that were there before, by their numbers then; those of others are forgotten.
    pub fn renumber(&mut self, signals: &[Option<usize>]) {
        let own = self.before.iter_mut().chain(self.visits.iter_mut().flat_map(|visit| &mut visit.tallies));
        for tally in own {
            let old = std::mem::take(&mut tally.figures);
            tally.figures = signals.iter().map(|before| before.and_then(|b| old.get(b).cloned()).unwrap_or_default()).collect();
        }
    }

    /// Adds a bucket's traffic in `pane`, and what its signals hold.
    pub fn add(&mut self, pane: Pane, bucket: usize, part: &BucketPartial, partial: &PanePartial<'_>, plan: &Plan) {
        let now = self.at(pane, bucket);
        now.exposures += part.exposures;
        now.events += part.events;
        for (cohort, n) in enrolled(pane, part) {
            self.at(cohort, bucket).units += n;
        }
        for (index, signal) in plan.signals.iter().enumerate() {
            let cell = partial.cell(plan.signal_cell(bucket, index));
            if !cell.is_empty() {
                self.add_cell(pane, bucket, (index, signal), cell);
            }
        }
    }

    fn add_cell(&mut self, pane: Pane, bucket: usize, (index, signal): (usize, &Signal), cell: Cell<'_>) {
        let cohort = |age: u32| Pane(pane.0 - i64::from(age));
        let (n, x) = cell.share();
        match signal {
            Signal::Distribution { .. } => self.at(pane, bucket).figure(index).values.add(cell),
            Signal::Rate { unit: Unit::User, .. } => {
                let hits = cell.observations.iter().filter(|o| o.is_first_hit());
                hits.for_each(|o| self.at(cohort(o.age), bucket).figure(index).x += 1);
            }
            // Whoever has not had the time to come back is no loss: see `RetentionState`.
            Signal::Retention { .. } => {}
            Signal::Rate { .. } => {
                let figure = self.at(pane, bucket).figure(index);
                figure.n += n;
                figure.x += x;
            }
            Signal::Count { .. } => self.at(pane, bucket).figure(index).n += n,
            Signal::Moments { unit: Unit::User, .. } => {
                cell.sums.iter().for_each(|(_, part)| self.at(cohort(part.age), bucket).figure(index).sum += part.sums.y);
            }
            Signal::Moments { .. } => {
                let figure = self.at(pane, bucket).figure(index);
                figure.n += n;
                figure.sum += cell.sums.iter().map(|(_, part)| part.sums.y).sum::<f64>();
            }
            Signal::Abandonment { .. } => {
                let (started, abandoned) = cell.workflows(pane);
                self.at(pane, bucket).figure(index).n += started;
                abandoned.for_each(|(begun, x)| self.at(begun, bucket).figure(index).x += x);
            }
        }
    }

    /// The tally of the phase that `pane` belongs to.
    fn at(&mut self, pane: Pane, bucket: usize) -> &mut Tally {
        match self.visits.partition_point(|v| v.from <= pane) {
            0 => &mut self.before[bucket],
            after => &mut self.visits[after - 1].tallies[bucket],
        }
    }

    /// Each visit, oldest first.
    pub fn view(&self, plan: &Plan) -> Vec<PhaseState> {
        let ends = self.visits.iter().skip(1).map(|next| next.since).chain([None]);
        let state = |(visit, until): (&Visit, Option<Millis>)| PhaseState {
            phase: Some(visit.phase),
            name: plan.phases.get(visit.phase as usize).map(|p| p.name.clone()),
            since: visit.since,
            until,
            buckets: shown(&visit.tallies, Some(&visit.weights), plan),
        };
        self.visits.iter().zip(ends).map(state).collect()
    }

    /// All phases together, those that are not kept apart any more too.
    pub fn whole_life(&self, plan: &Plan) -> PhaseState {
        let mut sum = self.before.clone();
        for visit in &self.visits {
            sum.iter_mut().zip(&visit.tallies).for_each(|(into, from)| into.merge(from));
        }
        PhaseState { phase: None, name: None, since: self.visits[0].since, until: None, buckets: shown(&sum, None, plan) }
    }
}

impl Tally {
    fn figure(&mut self, signal: usize) -> &mut Figure {
        if self.figures.len() <= signal {
            self.figures.resize_with(signal + 1, Figure::default);
        }
        &mut self.figures[signal]
    }

    fn merge(&mut self, from: &Tally) {
        self.units += from.units;
        self.exposures += from.exposures;
        self.events += from.events;
        for (signal, more) in from.figures.iter().enumerate() {
            let figure = self.figure(signal);
            figure.n += more.n;
            figure.x += more.x;
            figure.sum += more.sum;
            figure.values.bins.merge(&more.values.all());
        }
    }

    /// Observations, and the value that they come to.
    fn read(&self, guardrail: &Guardrail, of_units: bool) -> (u64, Option<f64>) {
        let nothing = Figure::default();
        let figure = self.figures.get(guardrail.signal).unwrap_or(&nothing);
        let n = if of_units || guardrail.statistic == Statistic::PerUnit { self.units } else { figure.n };
        let of = |x: f64| (n, (n > 0).then(|| x / n as f64));
        match guardrail.statistic {
            Statistic::Quantile { ppm } => (figure.values.count(), figure.values.quantile(ppm).map(|edge| edge as f64 / 1_000.0)),
            Statistic::Share => of(figure.x as f64),
            Statistic::PerUnit => of(figure.n as f64),
            Statistic::Count | Statistic::Exposures => (figure.n, Some(figure.n as f64)),
            Statistic::Mean => of(figure.sum),
        }
    }
}

impl Values {
    fn add(&mut self, cell: Cell<'_>) {
        for (bin, n) in cell.values() {
            match n {
                1 => self.fresh.push(coarse(bin)),
                n => self.bins.count_in(coarse(bin), n),
            }
        }
        if self.fresh.len() >= FRESH_MAX {
            self.fresh.drain(..).for_each(|bin| self.bins.push(bin));
        }
    }

    fn all(&self) -> Cow<'_, Bins> {
        let mut all = Cow::Borrowed(&self.bins);
        if !self.fresh.is_empty() {
            let bins = all.to_mut();
            self.fresh.iter().for_each(|bin| bins.push(*bin));
        }
        all
    }

    fn count(&self) -> u64 {
        self.bins.count() + self.fresh.len() as u64
    }

    /// Upper edge of the bin that holds the quantile, in thousandths.
    fn quantile(&self, ppm: u32) -> Option<u64> {
        self.all().quantile_bin(ppm).map(|bin| upper_edge(last(bin)))
    }
}

impl From<Bins> for Values {
    fn from(bins: Bins) -> Values {
        Values { bins, fresh: Vec::new() }
    }
}

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.all().serialize(serializer)
    }
}

/// The buckets, with one value for each statistic of a signal that a guardrail asks for.
fn shown(tallies: &[Tally], weights: Option<&[f64]>, plan: &Plan) -> Vec<PhaseBucket> {
    let told = |g: &Guardrail| !matches!(plan.signals[g.signal], Signal::Retention { .. });
    let same = |a: &Guardrail, b: &Guardrail| (a.signal, a.statistic) == (b.signal, b.statistic);
    let first = |(i, g): &(usize, &Guardrail)| told(g) && !plan.guardrails[..*i].iter().any(|earlier| same(earlier, g));
    let metric = |tally: &Tally, g: &Guardrail| {
        let (n, value) = tally.read(g, plan.signals[g.signal].is_per_user());
        PhaseMetric { metric: g.name.clone(), unit: g.unit.clone(), n, value }
    };
    let bucket = |(i, tally): (usize, &Tally)| PhaseBucket {
        bucket: plan.buckets[i].name.clone(),
        weight: weights.map(|w| w[i]),
        exposed_units: tally.units,
        exposures: tally.exposures,
        events: tally.events,
        metrics: plan.guardrails.iter().enumerate().filter(first).map(|(_, g)| metric(tally, g)).collect(),
    };
    tallies.iter().enumerate().map(bucket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::histogram::bin_of;
    use crate::engine::pane::Observation;

    #[test]
    fn quantiles_are_read_off_within_a_percent() {
        let mut values = Values::default();
        let all: Vec<u64> = (1..=1_000).map(|i| i * 731).collect();
        let seen: Vec<_> = all.iter().map(|v| Observation { cell: 0, age: 0, value: bin_of(*v), batch: 0, profile: 0 }).collect();
        values.add(Cell { observations: &seen, ..Cell::default() });
        for (ppm, exact) in [(500_000, all[499]), (950_000, all[949]), (999_999, all[999])] {
            let read = values.quantile(ppm).unwrap();
            assert!(read >= exact && read as f64 <= exact as f64 * 1.01, "{ppm}: {read} for {exact}");
        }
        assert!(values.all().edges().count() < 700 && Values::default().quantile(500_000).is_none());
    }
}
