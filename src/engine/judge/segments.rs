//! Segments: units that have a value of an attribute in common, compared with those of the baseline that have it, too.
//!
//! Designed shares hold inside every set of units that nothing after their exposure has chosen. So the tests are those of all units,
//! given the observations of the segment alone. Which values get a segment is decided by how many units have them, and a segment begins
//! with the pane after: what is tested is never what it was chosen by.

use super::Guard;
use super::books::{Books, statistics};
use crate::engine::evidence::{Booking, Enrolled, SignalEvidence};
use crate::engine::pane::{Abandoned, BucketPartial, Cell, CellId, NO_UNIT, Observation, PanePartial, Part, traffic};
use crate::engine::plan::{Plan, Segmentation, Signal};
use crate::engine::segment::{NO_PROFILE, REST};
use crate::engine::time::{Millis, Pane};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// See the module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Segments {
    /// In the order of the rule.
    attributes: Vec<Attribute>,
    /// The rest of each attribute; then those of values, in the order of their opening.
    pub list: Vec<Segment>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Attribute {
    name: String,
    /// Segments of values: index in the list.
    own: BTreeMap<String, usize>,
    /// Values that may get one: a bit for each batch of units in which one was seen.
    candidates: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Segment {
    /// `region=eu`, or `region=other`.
    pub name: String,
    /// What happens from this pane on belongs to it; before, to the rest.
    pub from: Pane,
    /// Units exposed for the first time, by bucket; or observations, of a stream that carries no exposures.
    pub units: Vec<u64>,
    pub observations: Vec<u64>,
    /// By guardrail, then by bucket.
    pub guards: Vec<Vec<Guard>>,
    /// As that of all units; of what is compared.
    pub evidence: Vec<Option<SignalEvidence>>,
    pub enrolled: Enrolled,
    /// Its sample ratio is known to be wrong: its comparisons are held.
    pub lopsided: bool,
}

/// Values of an attribute that are followed at a time.
const MAX_CANDIDATES: usize = 1_024;
/// Batches of units, of 64, in which a value is seen before it gets a segment: about 18 units.
const ENOUGH: u32 = 16;

/// Where a profile's observations go: for each attribute the rest, or a segment from its first pane on.
#[derive(Clone, Default)]
struct Places {
    of: SmallVec<[Option<(usize, Pane)>; 4]>,
    /// Batches in which it was seen, while there is room for more segments.
    seen: u64,
}

type PlacesOf = HashMap<u32, Places, foldhash::fast::FixedState>;

/// A cell's contents by segment.
struct Dealt {
    pane: Pane,
    /// By profile.
    places: PlacesOf,
    /// Records so far that do not name their unit.
    anonymous: u64,
    own: Vec<Own>,
}

/// What one segment has of a cell.
#[derive(Default)]
struct Own {
    observations: Vec<Observation>,
    abandoned: Vec<Abandoned>,
    sums: Vec<(CellId, Part)>,
}

impl Own {
    fn cell(&self) -> Cell<'_> {
        Cell { observations: &self.observations, abandoned: &self.abandoned, sums: &self.sums, surplus: &[] }
    }
}

impl Dealt {
    /// First exposures; and of all records, which units they are of.
    fn traffic(&mut self, segments: &Segments, partial: &PanePartial<'_>, cell: usize) {
        self.clear();
        for o in partial.cell(cell).observations.iter().filter(|o| o.profile != NO_PROFILE || o.value == traffic::FIRST_EXPOSURE) {
            // Records that do not name their unit are taken as of so many units.
            self.anonymous += u64::from(o.batch == NO_UNIT);
            let batch = if o.batch == NO_UNIT { self.pane.0 as u64 + self.anonymous } else { u64::from(o.batch) };
            self.places.entry(o.profile).or_insert_with(|| segments.places(partial, o.profile)).seen |= 1 << (batch % 64);
            if o.value == traffic::FIRST_EXPOSURE {
                self.put(segments, partial, o.profile, Pane(self.pane.0 - i64::from(o.age)), |own| own.observations.push(*o));
            }
        }
    }

    fn signal(&mut self, segments: &Segments, partial: &PanePartial<'_>, cell: usize, per_user: bool) {
        self.clear();
        let (cell, pane) = (partial.cell(cell), self.pane);
        // Units, and what they do, belong where they were enrolled.
        let at = |age: u32| if per_user { Pane(pane.0 - i64::from(age)) } else { pane };
        for o in cell.observations {
            self.put(segments, partial, o.profile, at(o.age), |own| own.observations.push(*o));
        }
        for lost in cell.abandoned {
            self.put(segments, partial, lost.profile, lost.begun, |own| own.abandoned.push(*lost));
        }
        for part in cell.sums {
            self.put(segments, partial, part.1.profile, at(part.1.age), |own| own.sums.push(*part));
        }
    }

    /// Gives something that happened at `at` to one segment of each attribute.
    fn put(&mut self, segments: &Segments, partial: &PanePartial<'_>, profile: u32, at: Pane, give: impl Fn(&mut Own)) {
        let places = self.places.entry(profile).or_insert_with(|| segments.places(partial, profile));
        for (rest, place) in places.of.iter().enumerate() {
            give(&mut self.own[place.filter(|(_, from)| *from <= at).map_or(rest, |(segment, _)| segment)]);
        }
    }

    fn clear(&mut self) {
        for own in &mut self.own {
            own.observations.clear();
            own.abandoned.clear();
            own.sums.clear();
        }
    }
}

impl Segments {
    pub fn new(plan: &Plan, pane_ms: Millis, books: Books<'_>) -> Segments {
        let Some(segmentation) = &plan.segments else { return Segments::default() };
        let attribute = |name: &String| Attribute { name: name.clone(), ..Attribute::default() };
        let rest = |name: &String| Segment::new(plan, pane_ms, books, format!("{name}={REST}"), Pane(i64::MIN));
        Segments { attributes: segmentation.by.iter().map(attribute).collect(), list: segmentation.by.iter().map(rest).collect() }
    }

    /// Begins the evidence anew, from `pane` on; which segments there are stays.
    pub fn rearm(&mut self, plan: &Plan, pane_ms: Millis, books: Books<'_>) {
        for segment in &mut self.list {
            let fresh = Segment::new(plan, pane_ms, books, std::mem::take(&mut segment.name), segment.from);
            let units = std::mem::take(&mut segment.units);
            *segment = Segment { units, ..fresh };
        }
    }

    /// The segment of this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.list.iter().position(|segment| segment.name == name)
    }

    /// Adds a pane to the evidence of each segment, and opens segments for values that have enough units.
    /// While a phase is warming up, what is counted by unit goes on.
    pub fn weigh(
        &mut self,
        plan: &Plan,
        books: Books<'_>,
        pane: Pane,
        partial: &PanePartial<'_>,
        book: &Booking<'_>,
        (pane_ms, warming): (Millis, bool),
    ) {
        let Some(segmentation) = &plan.segments else { return };
        let mut dealt = Dealt { pane, places: HashMap::default(), anonymous: 0, own: self.list.iter().map(|_| Own::default()).collect() };
        for bucket in 0..plan.buckets.len() {
            dealt.traffic(self, partial, plan.traffic_cell(bucket));
            let parts: Vec<BucketPartial> = dealt.own.iter().map(|own| own.cell().traffic()).collect();
            for (segment, part) in self.list.iter_mut().zip(&parts) {
                segment.units[bucket] += part.new_units;
                segment.enrolled.add(pane, bucket, part, &segment.book(book));
            }
            let asked = |(signal, kind): &(usize, &Signal)| is_compared(plan, *signal) && (!warming || kind.is_per_user());
            for (signal, kind) in plan.signals.iter().enumerate().filter(asked) {
                dealt.signal(self, partial, plan.signal_cell(bucket, signal), kind.is_per_user());
                for ((segment, own), part) in self.list.iter_mut().zip(&dealt.own).zip(&parts) {
                    segment.observations[bucket] += own.observations.len() as u64;
                    let mine = books.list.iter().enumerate().filter(|(_, own)| own.signal == signal && pane >= own.from);
                    for (index, of_all) in mine {
                        let book = segment.book(&of_all.book(book));
                        if let Some(evidence) = &mut segment.evidence[index] {
                            evidence.add(pane, bucket, part, own.cell(), &book);
                        }
                    }
                }
            }
        }
        if self.list.len() < segmentation.places() {
            self.count(partial, dealt.places);
            self.open(plan, pane_ms, books, Pane(pane.0 + 1));
        }
    }

    fn places(&self, partial: &PanePartial<'_>, profile: u32) -> Places {
        let values = partial.profiles.get(profile as usize).map(|listed| &listed.values);
        let place = |(index, attribute): (usize, &Attribute)| {
            let segment = *attribute.own.get(values?.get(index)?)?;
            Some((segment, self.list.get(segment)?.from))
        };
        Places { of: self.attributes.iter().enumerate().map(place).collect(), seen: 0 }
    }

    /// Notes in which batches of units each value without a segment was seen. Where there are too many values, as many as there is room
    /// for are kept, so that none which more than one of a thousand units has is lost for good (Misra and Gries, Science of Computer
    /// Programming 2, 1982).
    fn count(&mut self, partial: &PanePartial<'_>, places: PlacesOf) {
        let mut seen: Vec<(u32, u64)> = places.into_iter().map(|(profile, p)| (profile, p.seen)).filter(|(_, seen)| *seen != 0).collect();
        seen.sort_unstable();
        for (profile, batches) in seen {
            let Some(listed) = partial.profiles.get(profile as usize) else { continue };
            for (attribute, value) in self.attributes.iter_mut().zip(listed.values.iter()) {
                if value == REST || attribute.own.contains_key(value) {
                    continue;
                }
                if let Some(known) = attribute.candidates.get_mut(value) {
                    *known |= batches;
                } else if attribute.candidates.len() < MAX_CANDIDATES {
                    attribute.candidates.insert(value.clone(), batches);
                } else {
                    attribute.candidates.retain(|_, known| {
                        *known &= known.wrapping_sub(1);
                        *known != 0
                    });
                }
            }
        }
    }

    /// Opens segments from `from` on, until there are `most`: the values with the most batches first.
    fn open(&mut self, plan: &Plan, pane_ms: Millis, books: Books<'_>, from: Pane) {
        let most = plan.segments.as_ref().map_or(0, Segmentation::places);
        let mut ready: Vec<(u32, usize, String)> = Vec::new();
        for (index, attribute) in self.attributes.iter().enumerate() {
            let enough = attribute.candidates.iter().filter(|(_, batches)| batches.count_ones() >= ENOUGH);
            ready.extend(enough.map(|(value, batches)| (batches.count_zeros(), index, value.clone())));
        }
        ready.sort_unstable();
        for (_, index, value) in ready {
            if self.list.len() >= most {
                break;
            }
            let attribute = &mut self.attributes[index];
            let name = format!("{}={value}", attribute.name);
            attribute.candidates.remove(&value);
            attribute.own.insert(value, self.list.len());
            self.list.push(Segment::new(plan, pane_ms, books, name, from));
        }
        if self.list.len() >= most {
            self.attributes.iter_mut().for_each(|a| a.candidates.clear());
        }
    }
}

impl Segment {
    fn new(plan: &Plan, pane_ms: Millis, books: Books<'_>, name: String, from: Pane) -> Segment {
        let buckets = plan.buckets.len();
        Segment {
            name,
            from,
            units: vec![0; buckets],
            observations: vec![0; buckets],
            guards: vec![vec![Guard::default(); buckets]; plan.guardrails.len()],
            evidence: (0..books.list.len()).map(|book| compared(plan, books, book, pane_ms)).collect(),
            enrolled: Enrolled::new(buckets),
            lopsided: false,
        }
    }

    /// Of all units, how their observations are booked; here, how those of the segment are.
    pub fn book<'a>(&self, of_all: &Booking<'a>) -> Booking<'a> {
        Booking { first_cohort: of_all.first_cohort.max(self.from), ..*of_all }
    }

    /// All of `pane` has been added.
    pub fn close(&mut self, pane: Pane, books: Books<'_>, book: &Booking<'_>) {
        for (own, of_all) in self.evidence.iter_mut().zip(books.list) {
            let first_cohort = book.first_cohort.max(of_all.from).max(self.from);
            own.iter_mut().for_each(|own| own.close(pane, &Booking { first_cohort, ..*book }));
        }
    }
}

/// The evidence of a segment beside one of all units; `None` where no comparison asks for it.
pub(super) fn compared(plan: &Plan, books: Books<'_>, book: usize, pane_ms: Millis) -> Option<SignalEvidence> {
    let mine: Vec<usize> = (0..plan.guardrails.len()).filter(|g| books.of[*g] == Some(book)).collect();
    let signal = plan.guardrails[*mine.iter().find(|g| plan.guardrails[**g].max_increase.is_some())?].signal;
    Some(statistics(plan, signal, &mine, pane_ms))
}

/// Limits look at all units.
fn is_compared(plan: &Plan, signal: usize) -> bool {
    plan.guardrails.iter().any(|g| g.signal == signal && g.max_increase.is_some())
}
