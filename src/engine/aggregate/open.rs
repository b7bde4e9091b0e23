//! What an event is to one signal: what of it goes into the open pane.

use super::feeds::{Fed, Feeds, What, hit, passes, value};
use super::keys::Key;
use super::tallies::{self, Tallies};
use crate::engine::event::{Event, Kind};
use crate::engine::histogram::{bin_of, thousandths};
use crate::engine::pane::{CLAMPED, FIRST_HIT, HIT, Observation, Part, Seen, Sums};
use crate::engine::plan::{Signal, Unit};

/// Where an event belongs in the tests against the baseline.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Panes since the unit was exposed for the first time; 0 for a record that names its bucket itself.
    pub age: u32,
    pub batch: u16,
    /// Number of the unit's profile, and its place in the list of the open pane.
    pub profile: u16,
    pub listed: u32,
    /// The unit, and the age of its cohort, where it is known to be exposed to this bucket.
    pub member: Option<(Key, u32)>,
}

/// What units have done before, and how many are remembered.
pub struct Memory<'m> {
    pub tallies: &'m mut Tallies,
    pub experiment: u32,
    pub max: usize,
}

/// Books an event for one signal of a bucket; returns whether it passed the signal's filter and was counted.
pub fn book(open: &mut Seen, feeds: &Feeds, (bucket, fed): (u8, Fed), event: &Event<'_>, mark: Mark, memory: Memory<'_>) -> bool {
    let cell = feeds.signal_cell(bucket, fed.signal);
    let mut o = Observation { cell, age: mark.age, value: 0, batch: mark.batch, profile: mark.listed };
    match (fed.what, &event.kind) {
        (What::Latency, Kind::Request { latency_ms: Some(x), .. }) => o.value = binned(*x),
        (What::Error, Kind::Request { error, .. }) => o.value = if *error { HIT } else { 0 },
        _ if !book_planned(open, feeds, usize::from(fed.signal), event, mark, memory, &mut o) => return false,
        _ => {}
    }
    open.see(o);
    true
}

/// As the plan says.
fn book_planned(
    open: &mut Seen,
    feeds: &Feeds,
    signal: usize,
    event: &Event<'_>,
    mark: Mark,
    memory: Memory<'_>,
    o: &mut Observation,
) -> bool {
    let own = || mark.member.map(|(unit, age)| (tallies::of(unit, feeds.shape.signals[signal]), age));
    match &feeds.plan.signals[signal] {
        Signal::Distribution { source, value: from } if passes(source, event) => {
            let Some(x) = value(from, event) else { return false };
            o.value = binned(x);
        }
        Signal::Rate { source, unit, .. } | Signal::Count { source, unit } if passes(source, event) => {
            let hit = match &feeds.plan.signals[signal] {
                Signal::Rate { hit: what, .. } => hit(what, event),
                _ => true,
            };
            o.value = if hit { HIT } else { 0 };
            let watched =
                *unit == Unit::User && hit && (feeds.compared[signal] || matches!(feeds.plan.signals[signal], Signal::Rate { .. }));
            if watched
                && let Some((key, age)) = own()
                && memory.tallies.hit(memory.experiment, key, memory.max)
            {
                (o.value, o.age) = (HIT | FIRST_HIT, age);
            }
        }
        Signal::Moments { source, value: from, covariate, unit } if passes(source, event) => {
            let Some(y) = value(from, event) else { return false };
            let x = covariate.as_ref().filter(|_| feeds.plan.cuped).and_then(|c| value(c, event));
            match (unit, own()) {
                (Unit::Event, _) => {
                    let known = x.unwrap_or(0.0);
                    let sums = Sums { y, yy: y * y, x: known, xx: known * known, xy: known * y };
                    open.add(o.cell, Part { age: mark.age, profile: mark.listed, n: 1, sums });
                }
                (Unit::User, Some((key, age))) => {
                    if let Some(sums) = memory.tallies.add(memory.experiment, key, y, x, memory.max) {
                        open.add(o.cell, Part { age, profile: mark.listed, n: 0, sums });
                    }
                }
                (Unit::User, None) => {}
            }
        }
        _ => return false,
    }
    true
}

/// A value of a distribution, as observations carry it.
fn binned(x: f64) -> u16 {
    let (x, clamped) = thousandths(x);
    bin_of(x) | if clamped { CLAMPED } else { 0 }
}
