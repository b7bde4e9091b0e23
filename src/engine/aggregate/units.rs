//! Who has been exposed to what: the observed assignments of one partition.
//!
//! Linear hashing (Litwin 1980): the table grows by one small shard at a time, so it is never held twice, and no record pays for all.
//! A shard is sorted by unit and found by the low bits of the key; the place inside it follows from the high ones, so a look-up
//! touches the shard's header and one or two lines behind it. What it costs is measured by `load-tests units`.

use super::keys::Key;
use super::profiles::UNKNOWN;
use crate::engine::time::{Millis, Pane};

/// A unit's first exposure to one experiment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assignment {
    /// Event time of the first exposure.
    pub since: Millis,
    pub experiment: u32,
    /// The bucket of the first exposure; it stays.
    pub bucket: u8,
    /// The unit has been seen in another bucket, too.
    pub mixed: bool,
    /// It has been exposed although it must not take part.
    pub ineligible: bool,
    /// It has had an event; kept where the rule asks for missing users.
    pub heard: bool,
    /// Panes from that of `since` to the unit's cohort.
    pub lag: u16,
    /// Number of the unit's profile, or [`UNKNOWN`].
    pub profile: u16,
}

impl Default for Assignment {
    fn default() -> Assignment {
        Assignment { since: 0, experiment: 0, bucket: 0, mixed: false, ineligible: false, heard: false, lag: 0, profile: UNKNOWN }
    }
}

impl Assignment {
    /// The unit does not count (any more).
    pub fn is_aside(&self) -> bool {
        self.mixed || self.ineligible
    }

    /// Forgets what other rules found.
    pub fn renew(&mut self) {
        (self.ineligible, self.heard) = (false, false);
    }

    /// What is known of the unit, as bits.
    pub fn marks(&self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.mixed, MIXED) | bit(self.ineligible, INELIGIBLE) | bit(self.heard, HEARD)
    }

    /// Takes over [`Assignment::marks`].
    pub fn mark(&mut self, marks: u8) {
        (self.mixed, self.ineligible, self.heard) = (marks & MIXED != 0, marks & INELIGIBLE != 0, marks & HEARD != 0);
    }

    /// The pane whose cohort the unit belongs to: that of the exposure that was read first. It stays, even when an earlier exposure
    /// is read later.
    pub fn cohort(&self, pane_ms: Millis) -> Pane {
        Pane(Pane::of(self.since, pane_ms).0 + i64::from(self.lag))
    }
}

/// What an exposure meant for its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposed {
    First,
    Again,
    /// First time in a bucket other than its own.
    Mixed,
    /// There is no room to remember it.
    Full,
}

/// Rows of a shard on average, before the table gets another one: small enough to move when a unit comes into its middle.
const SHARD: usize = 128;

/// See the module.
#[derive(Default)]
pub struct Units {
    shards: Vec<Shard>,
    assignments: usize,
}

#[derive(Default)]
struct Shard {
    /// By unit.
    heads: Vec<Head>,
    /// Assignments of units beyond their first, in the order of `heads`.
    more: Vec<Row>,
    /// A row has changed since the last checkpoint.
    changed: bool,
}

/// A unit with its first assignment. Packed, as there may be tens of millions.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
struct Head {
    unit: Key,
    row: Row,
    /// How many further assignments it has.
    more: u16,
}

/// An [`Assignment`] in 14 bytes.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
struct Row {
    /// 48 bits of milliseconds: until the year 10889.
    since_low: u32,
    since_high: u16,
    experiment: u16,
    lag: u16,
    profile: u16,
    bucket: u8,
    flags: u8,
}

const MIXED: u8 = 1;
/// Since the last checkpoint.
const CHANGED: u8 = 2;
/// Some checkpoint has it, though perhaps not as it is now.
const WRITTEN: u8 = 4;
const INELIGIBLE: u8 = 8;
const HEARD: u8 = 16;
const SINCE_MAX: Millis = (1 << 48) - 1;
const EXPERIMENT_MAX: u32 = u16::MAX as u32;

impl Row {
    /// The assignment's experiment is at most [`EXPERIMENT_MAX`].
    fn of(a: &Assignment, flags: u8) -> Row {
        let since = a.since.clamp(0, SINCE_MAX);
        Row {
            since_low: since as u32,
            since_high: (since >> 32) as u16,
            experiment: a.experiment as u16,
            lag: a.lag,
            profile: a.profile,
            bucket: a.bucket,
            flags: flags | a.marks(),
        }
    }

    fn assignment(self) -> Assignment {
        let mut a = Assignment {
            since: (i64::from(self.since_high) << 32) | i64::from(self.since_low),
            experiment: u32::from(self.experiment),
            bucket: self.bucket,
            lag: self.lag,
            profile: self.profile,
            ..Assignment::default()
        };
        a.mark(self.flags);
        a
    }
}

impl Units {
    /// Remembers an exposure; says what it meant.
    pub fn expose(&mut self, unit: Key, experiment: u32, bucket: u8, ts: Millis, pane_ms: Millis, max: usize) -> Exposed {
        let Some(row) = self.rows(unit).find(|row| u32::from(row.experiment) == experiment) else {
            let first = Assignment { since: ts, experiment, bucket, lag: 0, ..Assignment::default() };
            if self.assignments >= max || experiment > EXPERIMENT_MAX {
                return Exposed::Full;
            }
            self.put(unit, Row::of(&first, CHANGED));
            return Exposed::First;
        };
        let seen = row.assignment();
        let (mixed, earlier) = (seen.bucket != bucket && !seen.mixed, ts < seen.since);
        if mixed || earlier {
            let mut now = Assignment { mixed: seen.mixed | mixed, ..seen };
            if earlier {
                let moved = Pane::of(seen.since, pane_ms).0 - Pane::of(ts, pane_ms).0;
                now.lag = seen.lag.saturating_add(u16::try_from(moved).unwrap_or(u16::MAX));
                now.since = ts;
            }
            self.put(unit, Row::of(&now, row.flags | CHANGED));
        }
        if mixed { Exposed::Mixed } else { Exposed::Again }
    }

    /// Remembers that a known unit must not take part.
    pub fn disqualify(&mut self, unit: Key, experiment: u32) {
        self.change(unit, experiment, |seen| !std::mem::replace(&mut seen.ineligible, true));
    }

    /// Notes the profile of a unit that had none.
    pub fn learn(&mut self, unit: Key, experiment: u32, profile: u16) {
        self.change(unit, experiment, |seen| std::mem::replace(&mut seen.profile, profile) != profile);
    }

    /// Remembers that a unit of `bucket` has had an event; returns its assignment if that was the first one.
    pub fn hear(&mut self, unit: Key, experiment: u32, bucket: u8) -> Option<Assignment> {
        self.change(unit, experiment, |seen| seen.bucket == bucket && !std::mem::replace(&mut seen.heard, true))
    }

    /// Changes an assignment; returns it if `change` says that it has.
    fn change(&mut self, unit: Key, experiment: u32, change: impl FnOnce(&mut Assignment) -> bool) -> Option<Assignment> {
        let row = self.rows(unit).find(|row| u32::from(row.experiment) == experiment)?;
        let mut seen = row.assignment();
        change(&mut seen).then(|| {
            self.put(unit, Row::of(&seen, row.flags | CHANGED));
            seen
        })
    }

    /// Assignments of a unit as of `ts`.
    pub fn of(&self, unit: Key, ts: Millis) -> impl Iterator<Item = Assignment> + '_ {
        self.rows(unit).map(Row::assignment).filter(move |a| a.since <= ts)
    }

    /// The unit's assignment in one experiment, whatever the time.
    pub fn in_experiment(&self, unit: Key, experiment: u32) -> Option<Assignment> {
        self.rows(unit).find(|row| u32::from(row.experiment) == experiment).map(Row::assignment)
    }

    /// Assignments remembered: units times experiments.
    pub fn len(&self) -> usize {
        self.assignments
    }

    /// Replays an assignment from a checkpoint; one of a known unit and experiment replaces what was known.
    pub fn apply(&mut self, unit: Key, assignment: &Assignment) {
        self.put(unit, Row::of(assignment, WRITTEN));
    }

    /// Assignments that have changed since the last call, or all of them; and whether an earlier call had them, too.
    pub fn take_changes(&mut self, all: bool, mut each: impl FnMut(Key, Assignment, bool)) {
        for shard in self.shards.iter_mut().filter(|shard| all || shard.changed) {
            shard.changed = false;
            shard.each(|unit, row| {
                if all || row.flags & CHANGED != 0 {
                    each(unit, row.assignment(), row.flags & WRITTEN != 0);
                    row.flags = row.flags & !CHANGED | WRITTEN;
                }
            });
        }
    }

    /// Drops the assignments of experiments, and gives their memory back.
    pub fn forget(&mut self, gone: impl Fn(u32) -> bool) {
        for shard in &mut self.shards {
            let before = shard.len();
            shard.retain(|row| !gone(u32::from(row.experiment)));
            self.assignments -= before - shard.len();
        }
        // Half as full as when it would grow.
        while self.assignments <= self.shards.len().saturating_sub(1) * SHARD / 2 {
            let Some(mut last) = self.shards.pop().filter(|_| !self.shards.is_empty()) else { break };
            let n = self.shards.len();
            let rest = &mut self.shards[shard_of(n as Key, n)];
            rest.changed |= last.changed;
            last.each(|unit, row| rest.put(unit, *row));
        }
        self.shards.shrink_to_fit();
    }

    fn rows(&self, unit: Key) -> impl Iterator<Item = Row> + '_ {
        let shard = if self.shards.is_empty() { None } else { Some(&self.shards[shard_of(unit, self.shards.len())]) };
        let found = shard.and_then(|shard| shard.place(unit).ok().map(|at| (shard.heads[at].row, &shard.more[shard.further(at)])));
        let (first, further) = found.map_or((None, &[][..]), |(row, more)| (Some(row), more));
        first.into_iter().chain(further.iter().copied())
    }

    fn put(&mut self, unit: Key, row: Row) {
        if self.assignments >= self.shards.len() * SHARD {
            self.grow();
        }
        let at = shard_of(unit, self.shards.len());
        let shard = &mut self.shards[at];
        let before = shard.len();
        shard.put(unit, row);
        shard.changed |= row.flags & CHANGED != 0;
        self.assignments += shard.len() - before;
    }

    /// One more shard: it takes half of an older one.
    fn grow(&mut self) {
        let new = self.shards.len();
        let mut taken = Shard::default();
        if new > 0 {
            let old = &mut self.shards[shard_of(new as Key, new)];
            let mut left = Shard { changed: old.changed, ..old.half() };
            taken = Shard { changed: old.changed, ..old.half() };
            old.each(|unit, row| if shard_of(unit, new + 1) == new { &mut taken } else { &mut left }.append(unit, *row));
            *old = left;
        }
        self.shards.push(taken);
    }
}

/// The shard of a unit among `n` (> 0): its key modulo the power of two that covers them, less the upper half for those not split yet.
fn shard_of(unit: Key, n: usize) -> usize {
    let mask = n.next_power_of_two() - 1;
    let at = unit as usize & mask;
    if at < n { at } else { at & (mask >> 1) }
}

impl Shard {
    fn len(&self) -> usize {
        self.heads.len() + self.more.len()
    }

    /// Where a unit is, or belongs.
    fn place(&self, unit: Key) -> Result<usize, usize> {
        // Keys are uniform: the place is near to its share of the range.
        let mut at = (((unit >> 32) * self.heads.len() as u64) >> 32) as usize;
        while at > 0 && self.heads[at - 1].unit >= unit {
            at -= 1;
        }
        while at < self.heads.len() && self.heads[at].unit < unit {
            at += 1;
        }
        if self.heads.get(at).is_some_and(|head| head.unit == unit) { Ok(at) } else { Err(at) }
    }

    /// Where in `more` the further assignments of a head are.
    fn further(&self, at: usize) -> std::ops::Range<usize> {
        let n = usize::from(self.heads[at].more);
        let start = if n == 0 { 0 } else { self.start(at) };
        start..start + n
    }

    fn start(&self, at: usize) -> usize {
        self.heads[..at].iter().map(|head| usize::from(head.more)).sum()
    }

    fn put(&mut self, unit: Key, row: Row) {
        let at = match self.place(unit) {
            Ok(at) => at,
            Err(at) => return insert(&mut self.heads, at, Head { unit, row, more: 0 }),
        };
        let further = self.further(at);
        if self.heads[at].row.experiment == row.experiment {
            self.heads[at].row = row;
        } else if let Some(known) = self.more[further.clone()].iter_mut().find(|known| known.experiment == row.experiment) {
            *known = row;
        } else {
            let end = if further.is_empty() { self.start(at) } else { further.end };
            self.heads[at].more += 1;
            insert(&mut self.more, end, row);
        }
    }

    /// Adds a row behind all others: of the last unit, or of one that belongs behind it.
    fn append(&mut self, unit: Key, row: Row) {
        match self.heads.last_mut() {
            Some(head) if head.unit == unit => {
                head.more += 1;
                push(&mut self.more, row);
            }
            _ => push(&mut self.heads, Head { unit, row, more: 0 }),
        }
    }

    fn each(&mut self, mut visit: impl FnMut(Key, &mut Row)) {
        let mut next = 0;
        for head in &mut self.heads {
            let unit = head.unit;
            visit(unit, &mut head.row);
            let end = next + usize::from(head.more);
            self.more[next..end].iter_mut().for_each(|row| visit(unit, row));
            next = end;
        }
    }

    fn retain(&mut self, keep: impl Fn(&Row) -> bool) {
        if self.heads.iter().all(|head| keep(&head.row)) && self.more.iter().all(&keep) {
            return;
        }
        let mut kept = Shard { changed: self.changed, ..Shard::default() };
        self.each(|unit, row| {
            if keep(row) {
                kept.append(unit, *row);
            }
        });
        *self = kept;
    }

    /// An empty shard with room for half of this one.
    fn half(&self) -> Shard {
        let room = |n: usize| n / 2 + n / 16;
        Shard { heads: Vec::with_capacity(room(self.heads.len())), more: Vec::with_capacity(room(self.more.len())), changed: false }
    }
}

fn insert<T>(into: &mut Vec<T>, at: usize, value: T) {
    make_room(into);
    into.insert(at, value);
}

fn push<T>(into: &mut Vec<T>, value: T) {
    make_room(into);
    into.push(value);
}

/// A vector doubles by itself; here what is spare counts.
fn make_room<T>(vec: &mut Vec<T>) {
    if vec.len() == vec.capacity() {
        vec.reserve_exact(vec.len() / 8 + 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::aggregate::keys::pair;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn expose(units: &mut Units, unit: Key, experiment: u32, bucket: u8, ts: Millis) -> Exposed {
        units.expose(unit, experiment, bucket, ts, 1_000, 1_000_000)
    }

    #[test]
    fn the_first_bucket_stays_and_a_second_one_is_noticed_once() {
        let mut units = Units::default();
        assert_eq!(units.expose(7, 0, 1, 2_100, 1_000, 10), Exposed::First);
        assert_eq!(units.expose(7, 0, 1, 90, 1_000, 10), Exposed::Again, "an earlier exposure that came late");
        assert_eq!(units.expose(7, 0, 0, 110, 1_000, 10), Exposed::Mixed);
        assert_eq!(units.expose(7, 0, 0, 120, 1_000, 10), Exposed::Again);
        let found: Vec<_> = units.of(7, 95).collect();
        assert_eq!(found, [Assignment { since: 90, bucket: 1, mixed: true, lag: 2, ..Assignment::default() }]);
        assert_eq!(found[0].cohort(1_000), Pane(2), "the cohort of the exposure that was read first");
        assert_eq!(units.of(7, 89).count(), 0, "not exposed yet");
    }

    #[test]
    fn a_full_table_takes_no_more_units_and_says_so() {
        let mut units = Units::default();
        assert_eq!(units.expose(1, 0, 0, 0, 1_000, 1), Exposed::First);
        assert_eq!(units.expose(2, 0, 0, 0, 1_000, 1), Exposed::Full);
        assert_eq!(units.expose(1, 1, 0, 0, 1_000, 1), Exposed::Full);
        assert_eq!(units.expose(1, 0, 0, 5, 1_000, 1), Exposed::Again);
        assert_eq!(units.len(), 1);
        assert_eq!(units.expose(1, 70_000, 0, 0, 1_000, 9), Exposed::Full, "there is no number for so many experiments");
    }

    #[test]
    fn times_are_kept_to_the_millisecond_for_as_long_as_records_may_say() {
        let mut units = Units::default();
        for (experiment, ts) in [0, 1, 1_764_666_000_123, 253_402_300_799_999].into_iter().enumerate() {
            expose(&mut units, 7, experiment as u32, 63, ts);
            assert_eq!(units.in_experiment(7, experiment as u32).map(|a| (a.since, a.bucket)), Some((ts, 63)));
        }
    }

    #[test]
    fn what_is_forgotten_gives_its_memory_back() {
        let mut units = Units::default();
        let room = |units: &Units| {
            units.shards.iter().map(|s| s.heads.capacity() * size_of::<Head>() + s.more.capacity() * size_of::<Row>()).sum::<usize>()
        };
        for i in 0..50_000u32 {
            expose(&mut units, pair("t", &i.to_string()), i % 10, 0, 5);
        }
        let full = room(&units);
        assert_eq!((size_of::<Head>(), size_of::<Row>()), (24, 14), "docs/assignments.md says so");
        assert!(full < 50_000 * 28, "{full}");
        units.forget(|experiment| experiment != 3);
        assert_eq!(units.len(), 5_000);
        assert!(room(&units) < full / 8);
        assert_eq!(units.of(pair("t", "13"), 5).count(), 1);
        units.forget(|_| true);
        assert_eq!((units.len(), units.shards.len()), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Expose { unit: Key, experiment: u32, bucket: u8, ts: Millis },
        Forget(u32),
        Restart { whole: bool },
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few units, so that they come again; keys as bad as they can be, and as good.
        let unit = prop_oneof![(0u64..40).prop_map(|n| pair("t", &n.to_string())), 0u64..40, (0u64..40).prop_map(|n| n << 58)];
        prop_oneof![
            200 => (unit, 0u32..30, 0u8..3, 0i64..9_000).prop_map(|(unit, experiment, bucket, ts)| Step::Expose { unit, experiment, bucket, ts }),
            1 => (0u32..30).prop_map(Step::Forget),
            2 => any::<bool>().prop_map(|whole| Step::Restart { whole }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 40, ..ProptestConfig::default() })]

        /// Whatever happens in whatever order, and after restarts: what a map of all assignments says.
        #[test]
        fn as_a_plain_map(steps in prop::collection::vec(step(), 0..3_000)) {
            let mut units = Units::default();
            let mut model: BTreeMap<(Key, u32), Assignment> = BTreeMap::new();
            let mut written: BTreeMap<(Key, u32), Assignment> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Expose { unit, experiment, bucket, ts } => {
                        let exposed = units.expose(unit, experiment, bucket, ts, 1_000, usize::MAX);
                        let known = model.contains_key(&(unit, experiment));
                        prop_assert_eq!(exposed == Exposed::First, !known);
                        let a = model.entry((unit, experiment)).or_insert(Assignment { since: ts, experiment, bucket, ..Assignment::default() });
                        prop_assert_eq!(exposed == Exposed::Mixed, a.bucket != bucket && !a.mixed);
                        a.mixed |= a.bucket != bucket;
                        if ts < a.since {
                            a.lag += (a.since / 1_000 - ts / 1_000) as u16;
                            a.since = ts;
                        }
                    }
                    Step::Forget(gone) => {
                        units.forget(|experiment| experiment == gone);
                        model.retain(|(_, experiment), _| *experiment != gone);
                        written.retain(|(_, experiment), _| *experiment != gone);
                    }
                    Step::Restart { whole } => {
                        units.take_changes(whole, |unit, a, again| {
                            let before = written.insert((unit, a.experiment), a);
                            assert_eq!(again, before.is_some());
                        });
                        units = Units::default();
                        written.iter().for_each(|((unit, _), a)| units.apply(*unit, a));
                    }
                }
            }
            prop_assert_eq!(units.len(), model.len());
            let mut found = Vec::new();
            units.take_changes(true, |unit, a, _| found.push(((unit, a.experiment), a)));
            prop_assert_eq!(&found.into_iter().collect::<BTreeMap<_, _>>(), &model);
            for ((unit, experiment), a) in &model {
                prop_assert_eq!(units.in_experiment(*unit, *experiment), Some(*a));
                let as_of = model.range((*unit, 0)..=(*unit, u32::MAX)).filter(|(_, b)| b.since <= a.since).count();
                prop_assert_eq!(units.of(*unit, a.since).count(), as_of);
            }
        }
    }
}
