//! What checks of shares find: units that are in two buckets, in the wrong one, or must not take part; missing fields and users.

use super::{Judge, Quality};
use crate::engine::assign::Assignment;
use crate::engine::decision::{Decision, Evidence};
use crate::engine::evidence::{Booking, Silent, enrolled};
use crate::engine::pane::BucketPartial;
use crate::engine::plan::{Plan, QualityKind};
use crate::engine::quality::{BucketQuality, Lacking, QualityPartial};
use crate::engine::stats::rates::{self, Null};
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// What a unit is given to have its first event before it counts as silent.
const PATIENCE_MS: Millis = 600_000;

/// Exposed units of the arming epoch, and what is wrong with them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Units {
    exposed: u64,
    mixed: u64,
    /// Those whose bucket could be computed, and those that are in another one.
    placed: u64,
    misplaced: u64,
    /// Exposures of units that must not take part, and the units.
    pub ineligible: u64,
    ineligible_units: u64,
    unknown: u64,
}

/// What a pane says: by bucket, and of the data itself by bucket, where it says anything.
struct Said<'p> {
    traffic: &'p [BucketPartial],
    buckets: &'p [BucketQuality],
}

/// What the `missing` check keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Missing {
    fields: usize,
    /// By pane: bucket by bucket, each field.
    ring: VecDeque<(Pane, Vec<Lacking>)>,
    total: Vec<Lacking>,
    silent: Silent,
    /// A bucket's users are proved to be missing; that is not taken back.
    proved: Option<Found>,
}

/// A share that may be too large: `x` of `n`, where at most `max` are allowed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    about: About,
    n: u64,
    x: u64,
    max: f64,
    /// Level of the test.
    alpha: f64,
    /// Logarithm of the evidence that it is too large.
    log_e: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum About {
    Mixed,
    Misplaced,
    Ineligible,
    /// Field and bucket.
    Field(usize, usize),
    /// Bucket, and whether more or fewer of its users are silent than of the baseline's.
    More(usize),
    Fewer(usize),
}

impl Units {
    /// Adds a pane; units of earlier cohorts than the first one that counts are left out on both sides.
    fn add(&mut self, pane: Pane, said: &Said<'_>, assignment: Option<&Assignment>, book: &Booking<'_>) {
        let cohort = |age: u32| Some(Pane(pane.0 - i64::from(age))).filter(|cohort| *cohort >= book.first_cohort);
        for part in said.traffic {
            self.exposed += enrolled(pane, part).filter(|(cohort, _)| *cohort >= book.first_cohort).map(|(_, n)| n).sum::<u64>();
        }
        for (bucket, quality) in said.buckets.iter().enumerate() {
            // A ramp moves units from one bucket to another, and so does a rollback: only within a period is that a fault.
            let now = book.allocation.period(pane);
            let moved = quality.mixed.iter().filter_map(|age| cohort(*age));
            self.mixed += moved.filter(|cohort| book.allocation.period(*cohort) == now).count() as u64;
            self.ineligible_units += quality.ineligible_units;
            self.unknown += quality.unknown_units;
            for (age, place) in &quality.placed {
                // While a change of the shares spreads, a unit may be in either bucket.
                let weights = cohort(*age).and_then(|cohort| book.allocation.weights(book.allocation.period(cohort)));
                let Some((assignment, weights)) = assignment.zip(weights) else { continue };
                self.placed += 1;
                self.misplaced += u64::from(!assignment.fits(*place, bucket, weights));
            }
        }
    }
}

impl Missing {
    pub fn new(plan: &Plan, pane_ms: Millis) -> Option<Missing> {
        let (fields, _) = plan.missing()?;
        let buckets = plan.buckets.len();
        Some(Missing {
            fields: fields.len(),
            ring: VecDeque::new(),
            total: vec![Lacking::default(); fields.len() * buckets],
            silent: Silent::new(buckets, (PATIENCE_MS / pane_ms).max(1)),
            proved: None,
        })
    }

    fn add(&mut self, pane: Pane, said: &Said<'_>, book: &Booking<'_>) {
        let mut row = vec![Lacking::default(); self.total.len()];
        let quiet = BucketQuality::default();
        for (bucket, part) in said.traffic.iter().enumerate() {
            let quality = said.buckets.get(bucket).unwrap_or(&quiet);
            self.silent.add(pane, bucket, part, quality, book);
            for (sum, lacking) in row[bucket * self.fields..].iter_mut().zip(&quality.fields) {
                *sum = *lacking;
            }
        }
        if row.iter().any(|lacking| lacking.n > 0) {
            for (sum, more) in self.total.iter_mut().zip(&row) {
                sum.n += more.n;
                sum.x += more.x;
            }
            self.ring.push_back((pane, row));
        }
    }

    fn slide(&mut self, first: Pane) {
        while let Some((_, row)) = self.ring.pop_front_if(|(pane, _)| *pane < first) {
            for (sum, less) in self.total.iter_mut().zip(row) {
                sum.n -= less.n;
                sum.x -= less.x;
            }
        }
    }

    fn is_live(&self) -> bool {
        self.total.iter().any(|lacking| lacking.x > 0)
    }
}

impl Quality {
    /// Counts exposures that must not be. Where none is allowed, no warm-up excuses them.
    pub fn bar(&mut self, quality: Option<&QualityPartial>) {
        self.units.ineligible += quality.map_or(0, |quality| quality.buckets.iter().map(|bucket| bucket.ineligible).sum());
    }

    /// Adds what a pane says of units, fields and users.
    pub fn weigh(&mut self, pane: Pane, quality: Option<&QualityPartial>, traffic: &[BucketPartial], plan: &Plan, book: &Booking<'_>) {
        let said = Said { traffic, buckets: quality.map_or(&[], |quality| &quality.buckets) };
        self.units.add(pane, &said, plan.assignment.as_ref(), book);
        if let Some(missing) = &mut self.missing {
            missing.add(pane, &said, book);
        }
    }

    pub(super) fn slide_missing(&mut self, first: Pane) {
        self.missing.iter_mut().for_each(|missing| missing.slide(first));
    }

    pub(super) fn lacks(&self) -> bool {
        self.missing.as_ref().is_some_and(Missing::is_live)
    }
}

impl Found {
    /// Of independent units, or of records, by the one-sample test of [`rates::threshold_log_e`]. Where nothing is allowed, nothing need
    /// be proved.
    fn share(about: About, n: u64, x: u64, max: f64, alpha: f64) -> Found {
        let log_e = match x as f64 > max * n as f64 {
            true if max == 0.0 => f64::INFINITY,
            true => rates::threshold_log_e(n, x, max),
            false => 0.0,
        };
        Found { about, n, x, max, alpha, log_e }
    }

    pub fn fails(&self) -> bool {
        self.log_e >= -self.alpha.ln()
    }

    /// By how much the evidence falls short; negative when it does not.
    fn short(&self) -> f64 {
        -self.alpha.ln() - self.log_e
    }

    pub fn value(&self) -> Option<f64> {
        (self.n > 0).then(|| self.x as f64 / self.n as f64)
    }
}

impl Judge {
    /// All that a check of shares looks at, the worst last; empty for the other checks, and while there is nothing to look at.
    /// Users are weighed with `users` alone: that takes longest.
    pub(in crate::engine::judge) fn found(&self, kind: &QualityKind, users: bool) -> SmallVec<[Found; 4]> {
        let units = &self.state.quality.units;
        let mut found = match kind {
            QualityKind::MixedAssignment { max } => {
                let both = self.plan.assignment.is_some();
                let alpha = if both { self.plan.alpha / 2.0 } else { self.plan.alpha };
                let mixed = Found::share(About::Mixed, units.exposed, units.mixed, *max, alpha);
                let misplaced = both.then(|| Found::share(About::Misplaced, units.placed, units.misplaced, *max, alpha));
                std::iter::once(mixed).chain(misplaced).collect()
            }
            QualityKind::Ineligible { max } => {
                let (n, x) = (units.exposed + units.ineligible_units, units.ineligible_units);
                // An exposure of a unit that was told apart long ago counts where none is allowed.
                let x = if *max == 0.0 { x.max(units.ineligible) } else { x };
                std::iter::once(Found::share(About::Ineligible, n.max(x), x, *max, self.plan.alpha)).collect()
            }
            QualityKind::Missing { max, .. } => self.missing(*max, users),
            _ => SmallVec::new(),
        };
        found.retain(|f| f.n > 0);
        found.sort_by(|a, b| b.short().total_cmp(&a.short()));
        found
    }

    fn missing(&self, max: f64, users: bool) -> SmallVec<[Found; 4]> {
        let Some(missing) = &self.state.quality.missing else { return SmallVec::new() };
        // As a limit, whose windows and hypotheses share a level; here each field and bucket is one more.
        let alpha = (-self.limit_threshold()).exp() / missing.total.len().max(1) as f64;
        let field = |(i, lacking): (usize, &Lacking)| {
            let about = About::Field(i % missing.fields, i / missing.fields);
            Found::share(about, lacking.n, lacking.x, max, alpha)
        };
        let mut found: SmallVec<[Found; 4]> = missing.total.iter().enumerate().map(field).collect();
        if missing.proved.is_some() || !users {
            found.extend(missing.proved.clone());
            return found;
        }
        let (book, alpha) = (self.booking(), self.parity_alpha() / 2.0);
        for bucket in (0..self.plan.buckets.len()).filter(|b| *b != book.baseline) {
            let (strata, Lacking { n, x }) = (missing.silent.strata(bucket, &book), missing.silent.total(bucket));
            let null = Null::absolute(max);
            let found_of = |about, log_e| Found { about, n, x, max, alpha, log_e };
            found.push(found_of(About::More(bucket), rates::log_e(&strata, null)));
            found.push(found_of(About::Fewer(bucket), rates::drop_log_e(&strata, null)));
        }
        found
    }

    /// There is evidence that the share is as small as it should be.
    pub(in crate::engine::judge) fn stays_within(&self, found: &Found) -> bool {
        let users = |bucket: usize, evidence: fn(&[rates::Stratum], Null) -> f64, margin: f64| {
            let silent = self.state.quality.missing.as_ref().map(|missing| missing.silent.strata(bucket, &self.booking()));
            silent.map_or(0.0, |strata| evidence(&strata, Null::absolute(margin)))
        };
        let log_e = match found.about {
            About::More(bucket) => users(bucket, rates::safe_log_e, found.max),
            About::Fewer(bucket) => users(bucket, rates::log_e, -found.max),
            _ if found.max == 0.0 => return found.x == 0,
            _ => rates::threshold_drop_log_e(found.n, found.x, found.max),
        };
        log_e >= -found.alpha.ln()
    }

    /// How many units' buckets have been computed, and how many are in another one.
    pub(in crate::engine::judge) fn checked(&self) -> Option<(u64, u64)> {
        let units = &self.state.quality.units;
        self.plan.assignment.as_ref().map(|_| (units.placed, units.misplaced))
    }

    /// Cohorts of users whose time is over count from now on.
    pub(super) fn close_missing(&mut self, pane: Pane) {
        let Some(mut missing) = self.state.quality.missing.take() else { return };
        missing.silent.close(pane, &self.booking());
        self.state.quality.missing = Some(missing);
    }

    /// Keeps what has been proved of missing users.
    pub(super) fn prove_missing(&mut self, found: &[Found]) {
        if let Some(missing) = self.state.quality.missing.as_mut().filter(|m| m.proved.is_none()) {
            missing.proved = found.iter().find(|f| f.fails() && matches!(f.about, About::More(_) | About::Fewer(_))).cloned();
        }
    }

    /// Writes into a decision what was found.
    pub(super) fn write_found(&self, found: &Found, decision: &mut Decision) {
        decision.margin = Some(found.max);
        decision.bucket_value = found.value();
        decision.unit = "%".into();
        decision.reason = self.tell(found);
        if found.log_e == f64::INFINITY {
            decision.evidence = Evidence::Count { count: found.x, allowed: 0 };
            return;
        }
        decision.alpha = Some(found.alpha);
        decision.log_e_value = Some(found.log_e);
        (decision.test, decision.evidence) = match found.about {
            About::More(bucket) | About::Fewer(bucket) => {
                let silent = self.state.quality.missing.as_ref().map(|missing| &missing.silent);
                let strata = silent.map(|silent| silent.strata(bucket, &self.booking())).unwrap_or_default();
                decision.baseline_value = silent.and_then(|silent| share(silent.total(self.plan.baseline())));
                let test = if matches!(found.about, About::More(_)) { "rate" } else { "rate_drop" };
                (test.into(), Evidence::Rates { strata, rho: 1.0, d: found.max, sign: None, alpha: None })
            }
            _ => ("threshold".into(), Evidence::Threshold { n: found.n, x: found.x, p0: found.max, deff: 1.0 }),
        };
    }

    /// One sentence for people.
    pub(in crate::engine::judge) fn tell(&self, found: &Found) -> String {
        let Found { about, n, x, max, .. } = found;
        let percent = 100.0 * found.value().unwrap_or(0.0);
        let most = format!("at most {}% may be", points(*max));
        let name = |bucket: usize| &self.plan.buckets[bucket].name;
        match *about {
            About::Mixed => format!("{x} of {n} exposed units ({percent:.2}%) were seen in two buckets, {most}"),
            About::Misplaced => {
                format!("{x} of {n} exposed units ({percent:.2}%) are in another bucket than their assignment gives, {most}")
            }
            About::Ineligible if *max == 0.0 => format!("{x} exposures of units that must not take part, none is allowed"),
            About::Ineligible => format!("{x} of {n} exposed units ({percent:.2}%) must not take part, {most}"),
            About::Field(field, bucket) => {
                let (fields, _) = self.plan.missing().unwrap_or_default();
                let (pointer, event) = fields.get(field).map_or(("", ""), |f| (f.pointer.as_str(), f.source.event.as_str()));
                let text =
                    format!("{pointer} is missing in {percent:.1}% of {n} {event} events of {} in the last 10 min, {most}", name(bucket));
                match self.least_lacking(field) {
                    Some((other, share)) if share <= *max => {
                        format!("{text}; of {} in {:.1}%: comparisons of what reads it are biased", name(other), 100.0 * share)
                    }
                    _ => format!("{text}; in all buckets alike"),
                }
            }
            About::More(bucket) | About::Fewer(bucket) => {
                let silent = self.state.quality.missing.as_ref().map(|missing| missing.silent.total(self.plan.baseline()));
                let baseline = 100.0 * silent.and_then(share).unwrap_or(0.0);
                format!(
                    "{percent:.1}% of {n} exposed users of {} had no event within 10 min, {baseline:.1}% of {}: they differ by more than the \
                     {} points that are allowed, so comparisons are biased",
                    name(bucket),
                    name(self.plan.baseline()),
                    points(*max)
                )
            }
        }
    }

    /// The bucket that lacks a field least, and in which share of its events.
    fn least_lacking(&self, field: usize) -> Option<(usize, f64)> {
        let missing = self.state.quality.missing.as_ref()?;
        let of = |bucket: usize| Some((bucket, share(missing.total[bucket * missing.fields + field])?));
        (0..self.plan.buckets.len()).filter_map(of).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Exposed units of whom nobody can tell whether they may take part.
    pub(in crate::engine::judge) fn unknown_units(&self) -> u64 {
        self.state.quality.units.unknown
    }
}

/// Percent, without the dust of binary fractions.
fn points(share: f64) -> f64 {
    (share * 1e6).round() / 1e4
}

fn share(Lacking { n, x }: Lacking) -> Option<f64> {
    (n > 0).then(|| x as f64 / n as f64)
}
