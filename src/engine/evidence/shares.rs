//! Hits among observations: rates of events, of units, and of workflows once their limit has passed.

use super::clusters::{Batches, Clustering, Counted};
use super::ladder::Ladder;
use super::periods::Periods;
use super::ripening::Ripening;
use super::slots::{Content, Slots};
use super::{Booking, enrolled};
use crate::engine::pane::{AGAIN, Abandoned, BucketPartial, Cell, NO_UNIT, Observation};
use crate::engine::stats::rates::{self, Alike, Null, Stratum};
use crate::engine::stats::starts::{self, Start};
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// See the module. Observations are booked into strata: periods of constant allocation, split where the expected rate of the baseline
/// was fixed anew.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shares {
    buckets: usize,
    /// The observation is the exposed unit.
    per_user: bool,
    /// A limit on observations that are no units asks for batches alone, and nothing else is kept. A state of an earlier version has all.
    #[serde(default = "all")]
    compared: bool,
    periods: Periods<Period>,
    /// By bucket; of units, which are independent, none are kept.
    batches: Vec<Batches>,
    ladder: Box<Ladder>,
    /// Expected rate of the baseline from now on, and the observations of the baseline at which it is fixed anew.
    expected: f64,
    configured: Option<f64>,
    refresh_at: u64,
    /// Workflows whose limit has not passed.
    maturing: Option<Maturing>,
    /// Units whose day is not over.
    ripening: Option<Ripening>,
}

fn all() -> bool {
    true
}

/// Hits `x` among `n` observations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    pub n: u64,
    pub x: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Period {
    strata: Vec<OwnStratum>,
    slots: Slots<Slot>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OwnStratum {
    from: Pane,
    expected: f64,
    /// By bucket.
    arms: Vec<Arm>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Slot {
    /// Fixed when the slot opened.
    expected: f64,
    arms: Vec<Arm>,
}

/// Many slots, since they are small, and starts near the true one add up: fewer than 120, about three hours at five seconds.
impl Content for Slot {
    const PER_LENGTH: usize = 16;
    const TOP: u8 = 6;

    fn absorb(&mut self, newer: Slot) {
        for (arm, more) in self.arms.iter_mut().zip(newer.arms) {
            arm.n += more.n;
            arm.x += more.x;
        }
    }
}

/// Workflows wait until their limit has passed in both arms alike: whoever fails faster must not look worse.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Maturing {
    panes: i64,
    /// By the pane of their start.
    begun: BTreeMap<Pane, Vec<Waiting>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Waiting {
    bucket: u32,
    period: u32,
    batch: u16,
    n: u32,
    x: u32,
}

impl Waiting {
    fn is(&self, bucket: usize, period: usize, batch: u16) -> bool {
        (self.bucket as usize, self.period as usize, self.batch) == (bucket, period, batch)
    }
}

/// A test that was started anew at some slot.
#[derive(Clone, Copy, Debug)]
pub struct LateStart {
    pub since: Pane,
    pub start: Start,
}

/// Starts whose evidence is added up, so that a decision can show them. Those around the true one are all that matters.
const MOST_STARTS: usize = 16;
/// The logarithm of 1,000 parts, of which a part may be left out.
const FAINT: f64 = 6.9;

/// Periods whose statistics are kept; the oldest go first.
const MAX_PERIODS: usize = 16;

impl Shares {
    /// `within`: panes after which a workflow counts as abandoned. `expected`: the configured rate of the baseline.
    pub fn new(buckets: usize, per_user: bool, within: Option<i64>, expected: Option<f64>) -> Shares {
        Shares {
            buckets,
            per_user,
            compared: true,
            periods: Periods::new(MAX_PERIODS),
            batches: vec![Batches::default(); buckets],
            ladder: Box::default(),
            expected: rates::next_baseline(0, 0, expected),
            configured: expected,
            refresh_at: rates::next_refresh(0),
            maturing: within.map(|panes| Maturing { panes, begun: BTreeMap::new() }),
            ripening: None,
        }
    }

    /// Of units that count when a day is over.
    pub fn ripening(self, ripening: Ripening) -> Shares {
        Shares { ripening: Some(ripening), ..self }
    }

    /// For limits, which no comparison stands beside.
    pub fn of_limit(self) -> Shares {
        Shares { compared: self.per_user, ..self }
    }

    pub(super) fn add(&mut self, pane: Pane, bucket: usize, part: &BucketPartial, cell: Cell<'_>, book: &Booking<'_>) {
        if self.per_user {
            for (cohort, n) in enrolled(pane, part) {
                self.count_units(cohort, bucket, Arm { n, x: 0 }, book);
            }
        }
        if self.maturing.is_none() && !self.per_user {
            self.add_events(pane, bucket, cell.observations, book);
        } else {
            for o in cell.observations {
                let cohort = Pane(pane.0 - i64::from(o.age));
                if self.maturing.is_some() {
                    self.begin(pane, bucket, o.batch, book.allocation.period(cohort));
                } else if o.is_first_hit() {
                    self.count_units(cohort, bucket, Arm { n: 0, x: 1 }, book);
                }
            }
        }
        for lost in cell.abandoned {
            self.lose(lost, bucket, book.allocation.period(Pane(lost.begun.0 - i64::from(lost.age))));
        }
    }

    /// Takes up workflows whose limit passes with `pane`, and fixes the expected rate anew when it is time.
    pub(super) fn close(&mut self, pane: Pane, book: &Booking<'_>) {
        if let Some(maturing) = &mut self.maturing {
            let mut due = Vec::new();
            while let Some(entry) = maturing.begun.first_entry().filter(|e| e.key().0 <= pane.0 - maturing.panes) {
                due.extend(entry.remove());
            }
            for w in due {
                let arm = Arm { n: u64::from(w.n), x: u64::from(w.x) };
                self.count_in_batch(w.bucket as usize, w.batch, arm);
                self.count_events(pane, w.period as usize, w.bucket as usize, arm, book);
            }
        }
        let ripe = self.ripening.as_mut().map(|ripening| ripening.due(pane)).unwrap_or_default();
        for w in ripe {
            self.count_in_batch(w.bucket as usize, NO_UNIT, w.arm);
            self.count_events(pane, w.period as usize, w.bucket as usize, w.arm, book);
        }
        if !self.compared {
            return;
        }
        if (pane.0 + 1) % book.slot == 0 {
            self.ladder.close(pane.0.div_euclid(book.slot), book.baseline);
        }
        let baseline = self.total(book.baseline);
        if baseline.n >= self.refresh_at {
            self.expected = rates::next_baseline(baseline.n, baseline.x, self.configured);
            self.refresh_at = rates::next_refresh(baseline.n);
            let (expected, buckets) = (self.expected, self.buckets);
            for period in self.periods.values_mut() {
                period.strata.push(OwnStratum { from: Pane(pane.0 + 1), expected, arms: vec![Arm::default(); buckets] });
            }
        }
    }

    /// Units belong to the stratum and the slot of their cohort, whenever they have their hit.
    fn count_units(&mut self, cohort: Pane, bucket: usize, arm: Arm, book: &Booking<'_>) {
        if cohort < book.first_cohort {
            return;
        }
        if let Some(ripening) = &mut self.ripening {
            return ripening.hold(cohort, bucket, book.allocation.period(cohort), arm);
        }
        let expected = self.expected;
        let Some(period) = self.period(book.allocation.period(cohort)) else { return };
        let at = period.strata.partition_point(|s| s.from <= cohort).saturating_sub(1);
        let buckets = period.strata[at].arms.len();
        period.strata[at].arms[bucket].add(arm);
        if let Some(slot) = period.slots.at(cohort, book.slot, || Slot { expected, arms: vec![Arm::default(); buckets] }) {
            slot.arms[bucket].add(arm);
        }
    }

    /// Counts each event; those of one period in a row are added to it together.
    fn add_events(&mut self, pane: Pane, bucket: usize, seen: &[Observation], book: &Booking<'_>) {
        for (period, run) in book.allocation.runs(pane, seen) {
            let mut arm = Arm::default();
            for o in run {
                let one = Arm { n: 1, x: u64::from(o.is_hit()) };
                self.count_in_batch(bucket, o.batch, one);
                arm.add(one);
            }
            self.count_events(pane, period, bucket, arm, book);
        }
    }

    fn count_in_batch(&mut self, bucket: usize, batch: u16, arm: Arm) {
        self.batches[bucket].add(batch, arm.n, arm.x);
        if batch != NO_UNIT && self.compared {
            self.ladder.add(self.buckets, bucket, usize::from(batch & !AGAIN), arm.n, arm.x);
        }
    }

    /// Events belong to the period of their unit's cohort, and in it to the stratum and the slot of now.
    fn count_events(&mut self, pane: Pane, period: usize, bucket: usize, arm: Arm, book: &Booking<'_>) {
        if !self.compared {
            return;
        }
        let (expected, buckets) = (self.expected, self.buckets);
        let Some(period) = self.period(period) else { return };
        if let Some(stratum) = period.strata.last_mut() {
            stratum.arms[bucket].add(arm);
        }
        if let Some(slot) = period.slots.at(pane, book.slot, || Slot { expected, arms: vec![Arm::default(); buckets] }) {
            slot.arms[bucket].add(arm);
        }
    }

    fn period(&mut self, index: usize) -> Option<&mut Period> {
        let (expected, buckets) = (self.expected, self.buckets);
        let stratum = || OwnStratum { from: Pane(i64::MIN), expected, arms: vec![Arm::default(); buckets] };
        self.periods.at(index, || Period { strata: vec![stratum()], slots: Slots::default() })
    }

    /// A workflow has begun.
    fn begin(&mut self, pane: Pane, bucket: usize, batch: u16, period: usize) {
        let Some(maturing) = &mut self.maturing else { return };
        let waiting = maturing.begun.entry(pane).or_default();
        match waiting.iter_mut().find(|w| w.is(bucket, period, batch)) {
            Some(w) => w.n += 1,
            None => waiting.push(Waiting { bucket: bucket as u32, period: period as u32, batch, n: 1, x: 0 }),
        }
    }

    /// A workflow that waits turned out abandoned.
    fn lose(&mut self, lost: &Abandoned, bucket: usize, period: usize) {
        let waiting = self.maturing.as_mut().and_then(|maturing| maturing.begun.get_mut(&lost.begun));
        if let Some(w) = waiting.and_then(|waiting| waiting.iter_mut().find(|w| w.is(bucket, period, lost.batch))) {
            w.x = (w.x + 1).min(w.n);
        }
    }

    /// Hits of a bucket over all strata.
    pub fn total(&self, bucket: usize) -> Arm {
        let mut sum = Arm::default();
        self.periods.iter().flat_map(|(_, p)| &p.strata).for_each(|s| sum.add(s.arms[bucket]));
        sum
    }

    /// Hits by batch of units; none where the unit is the observation.
    pub fn batches(&self, bucket: usize) -> Option<Counted> {
        (!self.per_user).then(|| self.batches[bucket].counts())
    }

    pub fn clustering(&self, bucket: usize, baseline: usize, log_threshold: f64) -> Clustering {
        match (self.batches(baseline), self.batches(bucket)) {
            (Some(c), Some(t)) => Clustering::of(&c, &t, log_threshold),
            _ => Clustering::NONE,
        }
    }

    /// Design effect of the last `slots`, where that of all time is `cumulative`.
    pub fn short_effect(&self, bucket: usize, slots: u64, cumulative: f64, log_threshold: f64) -> f64 {
        // Independent observations are so at any length.
        if cumulative <= 1.0 { cumulative } else { self.ladder.effect(bucket, slots, log_threshold).unwrap_or(cumulative) }
    }

    /// Strata of a bucket against the baseline, those that hold something.
    pub fn strata(&self, bucket: usize, book: &Booking<'_>) -> Vec<Stratum> {
        let all = self.periods.iter().flat_map(|(index, p)| p.strata.iter().map(move |s| (index, s)));
        let w = |period| book.allocation.share(period, bucket, book.baseline);
        let strata = all.map(|(period, s)| stratum(s.arms[bucket], s.arms[book.baseline], s.expected, w(period)));
        strata.filter(|s| s.n_t + s.n_c > 0.0 && s.w > 0.0).collect()
    }

    /// The tests that were started anew, the most convincing first: at most [`MOST_STARTS`] parts of the weighted sum over all of them, in
    /// which a start has its `share`. Parts of less than a thousandth of what is `needed` are left out. Counts are divided by `deff` of the
    /// length in slots, which is asked for only where a start may matter.
    pub fn late_starts(
        &self,
        bucket: usize,
        book: &Booking<'_>,
        test: &ShareTest,
        deff: impl Fn(u64) -> f64,
        share: impl Fn(Pane) -> f64,
        needed: f64,
    ) -> Vec<LateStart> {
        let least = needed - FAINT;
        let mut found: Vec<(f64, LateStart)> = Vec::new();
        for (index, period) in self.periods.iter() {
            let (mut t, mut c) = (Arm::default(), Arm::default());
            let newest = period.slots.newest_first().next().map_or(0, |slot| slot.start.0);
            let mut bets: Option<Alike> = None;
            let w = book.allocation.share(index, bucket, book.baseline);
            for slot in period.slots.newest_first() {
                t.add(slot.content.arms[bucket]);
                c.add(slot.content.arms[book.baseline]);
                let stratum = stratum(t, c, slot.content.expected, w);
                // Division by a design effect only lowers the bound, and no share is more than 1.
                let bound = test.at_most(&[stratum]);
                if bound <= least {
                    continue;
                }
                let share = share(slot.start);
                let least = least - share.ln();
                if bound <= least {
                    continue;
                }
                let stratum = stratum.deflated(deff(((newest - slot.start.0) / book.slot) as u64 + 1));
                let bets = match &mut bets {
                    Some(bets) if bets.serves(&stratum) => bets,
                    other => other.insert(test.bets(&stratum)),
                };
                let log_e = bets.log_e(stratum);
                if log_e > least {
                    found.push((log_e + share.ln(), LateStart { since: slot.start, start: Start { share, stratum } }));
                }
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.truncate(MOST_STARTS);
        found.into_iter().map(|(_, start)| start).collect()
    }
}

impl Arm {
    pub(super) fn add(&mut self, more: Arm) {
        self.n += more.n;
        self.x += more.x;
    }

    pub fn rate(self) -> Option<f64> {
        (self.n > 0).then(|| self.x as f64 / self.n as f64)
    }
}

fn stratum(t: Arm, c: Arm, expected: f64, w: f64) -> Stratum {
    // A hit whose unit was enrolled in another partition's pane may be read first.
    let (x_t, x_c) = (t.x.min(t.n), c.x.min(c.n));
    Stratum { w, m: expected, n_t: t.n as f64, x_t: x_t as f64, n_c: c.n as f64, x_c: x_c as f64 }
}

/// Evidence that a rate got worse by more than is tolerated.
#[derive(Clone, Copy, Debug)]
pub struct ShareTest {
    /// What is tolerated; for a rate that should be high, `p_T >= ratio * p_C - margin`.
    pub null: Null,
    pub higher_is_worse: bool,
}

impl ShareTest {
    pub fn log_e(&self, strata: &[Stratum]) -> f64 {
        if self.higher_is_worse { rates::log_e(strata, self.null) } else { rates::drop_log_e(strata, self.null) }
    }

    /// [`ShareTest::log_e`] of strata like this one.
    fn bets(&self, like: &Stratum) -> Alike {
        if self.higher_is_worse { Alike::new(like.w, like.m, self.null) } else { Alike::of_drop(like.w, like.m, self.null) }
    }

    /// The evidence of all starts together.
    pub fn log_e_of_starts(&self, starts: &[Start]) -> f64 {
        if self.higher_is_worse { starts::log_e(starts, self.null) } else { starts::drop_log_e(starts, self.null) }
    }

    /// An upper bound of [`ShareTest::log_e`], cheap.
    pub fn at_most(&self, strata: &[Stratum]) -> f64 {
        if self.higher_is_worse { rates::log_e_at_most(strata, self.null) } else { rates::drop_log_e_at_most(strata, self.null) }
    }

    /// Evidence that the margin holds.
    pub fn safe_log_e(&self, strata: &[Stratum]) -> f64 {
        if self.higher_is_worse {
            return rates::safe_log_e(strata, self.null);
        }
        // p_T >= ratio p_C - margin, proved by p_T > ratio p_C - margin.
        rates::log_e(strata, Null { ratio: self.null.ratio, margin: -self.null.margin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::evidence::allocation::Allocation;
    use crate::engine::pane::{FIRST_HIT, HIT, Observation};

    fn book(allocation: &Allocation) -> Booking<'_> {
        Booking { allocation, first_cohort: Pane(0), slot: 5, baseline: 0 }
    }

    fn part(new_units: u64) -> BucketPartial {
        BucketPartial { new_units, ..BucketPartial::default() }
    }

    /// Units of these ages have their first hit.
    fn hits(ages: &[u32]) -> Vec<Observation> {
        ages.iter().map(|&age| Observation { cell: 0, age, value: HIT | FIRST_HIT, batch: 0, profile: 0 }).collect()
    }

    fn cell(observations: &[Observation]) -> Cell<'_> {
        Cell { observations, ..Cell::default() }
    }

    #[test]
    fn a_unit_stays_in_the_stratum_of_its_cohort() {
        let mut allocation = Allocation::new(vec![0.9, 0.1]);
        let mut shares = Shares::new(2, true, None, Some(0.2));
        shares.add(Pane(0), 0, &part(300), cell(&[]), &book(&allocation));
        shares.add(Pane(0), 1, &part(30), cell(&[]), &book(&allocation));
        shares.close(Pane(0), &book(&allocation));
        allocation.change(Pane(1), &[0.5, 0.5], 1);
        shares.add(Pane(2), 0, &part(40), cell(&[]), &book(&allocation));
        shares.add(Pane(2), 1, &part(40), cell(&hits(&[2, 0])), &book(&allocation));
        let strata = shares.strata(1, &book(&allocation));
        let shown: Vec<_> = strata.iter().map(|s| (s.w, s.m, s.n_t, s.x_t, s.n_c)).collect();
        assert_eq!(shown[0], (0.1, 0.2, 30.0, 1.0, 300.0), "the late hit of the first cohort");
        assert_eq!(shown[1], (0.5, 0.0, 40.0, 1.0, 40.0), "256 units of the baseline have fixed the expected rate anew: none had a hit");
        assert_eq!(shares.total(1), Arm { n: 70, x: 2 });
    }

    #[test]
    fn units_of_before_are_not_counted() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let mut shares = Shares::new(2, true, None, None);
        let since = Booking { first_cohort: Pane(10), ..book(&allocation) };
        shares.add(Pane(12), 1, &part(3), cell(&hits(&[5, 1])), &since);
        assert_eq!(shares.total(1), Arm { n: 3, x: 1 });
    }

    #[test]
    fn workflows_wait_for_their_limit() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let mut shares = Shares::new(2, false, Some(10), None);
        let o = Observation { cell: 0, age: 0, value: 0, batch: 4, profile: 0 };
        let lost = [Abandoned { cell: 0, begun: Pane(0), age: 0, batch: 4, profile: 0 }];
        shares.add(Pane(0), 1, &part(0), cell(&[o, o, o]), &book(&allocation));
        shares.add(Pane(3), 1, &part(0), Cell { abandoned: &lost, ..cell(&[o]) }, &book(&allocation));
        shares.close(Pane(9), &book(&allocation));
        assert_eq!(shares.total(1), Arm::default(), "explicit abandonment waits like the rest");
        shares.close(Pane(10), &book(&allocation));
        assert_eq!(shares.total(1), Arm { n: 3, x: 1 });
        shares.close(Pane(13), &book(&allocation));
        assert_eq!(shares.total(1), Arm { n: 4, x: 1 });
    }

    #[test]
    fn a_limit_on_events_keeps_the_same_batches_and_nothing_else() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let o = |n: u16| Observation { cell: 0, age: 0, value: n % 2, batch: (n % 40) | AGAIN, profile: 0 };
        let seen: Vec<Observation> = (0..200).map(o).collect();
        for within in [None, Some(3)] {
            let all = Shares::new(2, false, within, None);
            let [all, mine] = [all.clone(), all.of_limit()].map(|mut shares| {
                (0..20).for_each(|pane| {
                    shares.add(Pane(pane), 1, &part(0), cell(&seen), &book(&allocation));
                    shares.close(Pane(pane), &book(&allocation));
                });
                shares
            });
            assert_eq!(mine.batches, all.batches);
            assert!(all.total(1).n > 0 && mine.total(1).n == 0 && all.short_effect(1, 1, 2.0, 1.0) != mine.short_effect(1, 1, 2.0, 1.0));
        }
        let units = Shares::new(2, true, None, None).of_limit();
        assert!(units.compared, "their limit reads what comparisons do");
    }

    #[test]
    fn a_late_regression_is_found_from_its_start() {
        let allocation = Allocation::new(vec![0.5, 0.5]);
        let mut shares = Shares::new(2, false, None, None);
        let seen = |bad: u16| -> Vec<Observation> {
            (0..100).map(|i| Observation { cell: 0, age: 0, value: if i < bad { HIT } else { 0 }, batch: i % 64, profile: 0 }).collect()
        };
        for pane in 0..2_000 {
            shares.add(Pane(pane), 0, &part(0), cell(&seen(1)), &book(&allocation));
            shares.add(Pane(pane), 1, &part(0), cell(&seen(if pane < 1_980 { 1 } else { 4 })), &book(&allocation));
            shares.close(Pane(pane), &book(&allocation));
        }
        let test = ShareTest { null: Null::absolute(0.005), higher_is_worse: true };
        let found = shares.late_starts(1, &book(&allocation), &test, |_| 1.0, |_| 0.001, 5.0);
        assert!(found[0].since == Pane(1_980) && (2..=MOST_STARTS).contains(&found.len()), "{found:?}");
        let starts: Vec<Start> = found.iter().map(|f| f.start).collect();
        let (best, all) = (test.log_e_of_starts(&starts[..1]), test.log_e_of_starts(&starts));
        assert!(best > 4.0 && all > best && test.log_e(&shares.strata(1, &book(&allocation))) < 0.0, "{best} {all}");
        let swapped = shares.late_starts(0, &Booking { baseline: 1, ..book(&allocation) }, &test, |_| 1.0, |_| 0.001, 5.0);
        assert!(swapped.is_empty(), "{swapped:?}");
    }
}
