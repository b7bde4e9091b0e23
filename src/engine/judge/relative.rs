//! Criteria against the baseline bucket: `max_increase` and `stop_on_negative`.
//!
//! For each, an anytime-valid test over the whole life, and beside it the same test started anew at every slot, which finds a regression
//! that begins late. Both share the budget of their hypothesis ([`super::budget`]); the decision says which of them fired, by its `since`
//! and its evidence. Bayesian and fixed-horizon rules are answered from the same statistics.

use super::budget::{Budget, has_detector};
use super::reason::compared_unit;
use super::{Alarm, Hypothesis, Judge, interval};
use crate::engine::decision::{Evidence, MeanStratum, Output};
use crate::engine::evidence::{Booking, Clustering, Pair, ShareTest, Shares, SignalEvidence, SpreadTest, Watched, ordinal};
use crate::engine::plan::{Guardrail, Margin, Method, Statistic};
use crate::engine::stats::means::{self, Contrast};
use crate::engine::stats::multiplicity::arrival_share;
use crate::engine::stats::quantiles::{Relative, Resolution};
use crate::engine::stats::rates::{self, Null};
use crate::engine::stats::starts::Start;
use crate::engine::stats::{counts, fixed, posterior};
use crate::engine::time::Pane;
use std::cell::LazyCell;

/// Significant digits of the histograms of a period, and of those in slots.
const DIGITS: u8 = 3;
const SLOT_DIGITS: u8 = 2;

/// What a test is given: the statistics of both arms, and what is tolerated.
pub(super) enum Sample {
    Share { strata: Vec<rates::Stratum>, test: ShareTest },
    Starts { starts: Vec<Start>, test: ShareTest },
    Count { strata: Vec<counts::Stratum>, r: f64, phi: f64, higher_is_worse: bool },
    Quantile { pair: Pair, test: Box<Relative>, ppm: u32, digits: u8, by: Clustering },
    Mean { strata: Vec<means::Stratum>, contrast: Contrast },
}

/// One look at a sample.
pub(super) struct Look {
    /// As `guardraild stats` knows it.
    pub test: &'static str,
    sample: Sample,
    pub found: Found,
    /// Level that it is compared with.
    pub alpha: f64,
    /// The baseline's and the bucket's value.
    pub values: [Option<f64>; 2],
    /// Where the test was started, if not at the beginning.
    pub since: Option<Pane>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Found {
    LogE(f64),
    /// Posterior probability of harm.
    Probability(f64),
    P(f64),
}

impl Look {
    fn trips(&self) -> bool {
        match self.found {
            Found::LogE(log_e) => log_e >= -self.alpha.ln(),
            Found::Probability(harm) => harm >= 1.0 - self.alpha,
            Found::P(p) => p <= self.alpha,
        }
    }

    /// What the test was given, as a decision keeps it.
    pub fn evidence(&self) -> Evidence {
        self.sample.evidence(self.found, self.alpha)
    }

    /// See [`interval::of_change`].
    pub fn interval(&self, guardrail: &Guardrail) -> Option<[f64; 2]> {
        interval::of_change(&self.sample, self.found, self.alpha, guardrail)
    }

    /// The baseline's value first: where a high quantile is good, the bucket stands in the control's place.
    fn in_order(mut self, guardrail: &Guardrail) -> Look {
        if !guardrail.higher_is_worse {
            self.values.reverse();
        }
        self
    }

    /// How far beyond (or, negative, from) its threshold.
    fn excess(&self) -> f64 {
        match self.found {
            Found::LogE(log_e) => log_e + self.alpha.ln(),
            Found::Probability(harm) => harm - 1.0,
            Found::P(p) => -p,
        }
    }
}

impl Judge {
    pub(super) fn judge_relative(&mut self, pane: Pane, out: &mut Output) {
        let slot_closes = (pane.0 + 1) % self.budget.slot == 0;
        self.compare(None, slot_closes, pane, out);
        // Each segment is looked at once in a slot; in turn, so that no pane pays for all.
        let slot = self.budget.slot as usize;
        for segment in 0..self.state.segments.list.len() {
            let turn = pane.0.rem_euclid(self.budget.slot) as usize == segment % slot;
            if turn || self.horizon() == Some(pane) {
                self.weigh_sample_ratio(segment);
                self.compare(Some(segment), true, pane, out);
            }
        }
    }

    /// Looks at all comparisons of all units, or of a segment; `noted` says whether what is shown is brought up to date, too.
    fn compare(&mut self, segment: Option<usize>, noted: bool, pane: Pane, out: &mut Output) {
        let baseline = self.plan.baseline();
        for guardrail in 0..self.plan.guardrails.len() {
            if self.plan.guardrails[guardrail].max_increase.is_none() {
                continue;
            }
            for bucket in (0..self.plan.buckets.len()).filter(|b| *b != baseline) {
                let of = Hypothesis { guardrail, bucket, segment };
                if self.guard(of).tripped.is_some() || self.is_shown(of) || self.untold(of).is_some() {
                    continue;
                }
                let look = match self.plan.method {
                    Method::Sequential => self.whole_life(of, f64::INFINITY).filter(Look::trips).or_else(|| self.change(of)),
                    Method::Bayesian if noted => self.whole_life(of, f64::NEG_INFINITY),
                    Method::FixedHorizon if self.horizon() == Some(pane) => self.whole_life(of, f64::NEG_INFINITY),
                    Method::Bayesian | Method::FixedHorizon => None,
                };
                match look.filter(Look::trips) {
                    Some(look) => {
                        let alarm = self.alarm(of, pane, look);
                        self.trip(of, pane.end(self.pane_ms), alarm, out);
                    }
                    None if noted && self.seen && self.plan.method == Method::Sequential => self.note(of),
                    None => {}
                }
            }
        }
    }

    /// Keeps in mind what is shown between slots: the highest evidence so far, and whether the margin is proved.
    fn note(&mut self, of: Hypothesis) {
        let look = self.whole_life(of, self.guard(of).max_log_e);
        let safe = self.margin_holds(of);
        let guard = self.guard_mut(of);
        guard.safe = safe;
        if let Some(Found::LogE(log_e)) = look.map(|l| l.found) {
            guard.max_log_e = guard.max_log_e.max(log_e);
        }
    }

    /// The pane at whose end a fixed-horizon experiment is looked at.
    pub(super) fn horizon(&self) -> Option<Pane> {
        let ends = self.plan.ends.filter(|_| self.plan.method == Method::FixedHorizon)?;
        Some(Pane::of(ends - 1, self.pane_ms))
    }

    /// Why nothing can be said now; `None` when the tests may speak.
    pub(super) fn untold(&self, of: Hypothesis) -> Option<String> {
        if self.srm_fails() {
            return Some("the sample ratio is wrong: comparisons with the baseline are held".into());
        }
        if of.segment.is_some_and(|segment| self.state.segments.list[segment].lopsided) {
            return Some("the sample ratio of the segment is wrong: its comparisons are held".into());
        }
        for b in [of.bucket, self.plan.baseline()] {
            let (size, least) = (self.size(of, b), self.plan.min_units);
            if size < least {
                return Some(format!("{} has {size} units of the {least} that a comparison needs", self.plan.buckets[b].name));
            }
        }
        if let Some(why) = self.without_traffic(of.bucket) {
            return Some(why);
        }
        let SignalEvidence::Share(shares) = self.evidence_of(of)? else { return None };
        let counted = shares.total(of.bucket).n.min(shares.total(self.plan.baseline()).n);
        (counted == 0).then(|| match self.plan.signals[self.plan.question(of.guardrail).signal].is_per_user() {
            true => "no exposed unit in one of the buckets: the metric is per unit and needs exposures".into(),
            false => "no observation in one of the buckets".into(),
        })
    }

    pub(super) fn evidence_of(&self, of: Hypothesis) -> Option<&SignalEvidence> {
        match of.segment {
            Some(segment) => self.state.segments.list[segment].evidence[self.state.book_of[of.guardrail]?].as_ref(),
            None => self.statistics(of.guardrail),
        }
    }

    /// How the observations of a hypothesis are booked.
    fn booking_of(&self, of: Hypothesis) -> Booking<'_> {
        let of_all = self.booking();
        let of_all = self.state.book_of[of.guardrail].map_or(of_all, |book| self.state.evidence[book].book(&self.booking()));
        match of.segment {
            Some(segment) => self.state.segments.list[segment].book(&of_all),
            None => of_all,
        }
    }

    pub(super) fn booking(&self) -> Booking<'_> {
        let first_cohort = self.state.first_cohort.unwrap_or(Pane(i64::MIN));
        Booking { allocation: &self.state.allocation, first_cohort, slot: self.budget.slot, baseline: self.plan.baseline() }
    }

    /// Level of the test of the whole life: of a quantile, that of a period of allocation, other metrics have one test for all.
    fn whole_life_level(&self, of: Hypothesis, period: usize) -> f64 {
        let (each, statistic) = (self.each(of), self.plan.question(of.guardrail).statistic);
        match (self.plan.method, statistic) {
            (Method::Sequential, _) => self.budget.whole_life(each, statistic, ordinal(period)),
            (Method::Bayesian | Method::FixedHorizon, Statistic::Quantile { .. }) => each * arrival_share(ordinal(period) + 1),
            (Method::Bayesian | Method::FixedHorizon, _) => each,
        }
    }

    /// What the log e-value of the test over the whole life must reach; of a quantile, in the first period.
    pub(super) fn whole_life_threshold(&self, of: Hypothesis) -> f64 {
        -self.whole_life_level(of, 0).ln()
    }

    /// The test over the whole life. Of a quantile, one for each period of allocation, which share the level in the order of their
    /// beginning: the most convincing speaks. Rates and quantiles, which are dear, are left out unless they may reach `floor` or trip.
    pub(super) fn whole_life(&self, of: Hypothesis, floor: f64) -> Option<Look> {
        let (guardrail, bucket, alpha) = (self.plan.question(of.guardrail), of.bucket, self.whole_life_level(of, 0));
        let (margin, book) = (guardrail.max_increase?, self.booking_of(of));
        match self.evidence_of(of)? {
            SignalEvidence::Share(shares) if is_count(guardrail.statistic) => {
                // Counts of buckets of different size cannot be compared: per exposed unit, or per designed share.
                let size = |b: usize| match self.units(of, b) {
                    0 => self.state.weights[b],
                    units => units as f64,
                };
                let values = [book.baseline, bucket].map(|b| Some(shares.total(b).n as f64 / size(b)));
                Some(self.look(count_sample(shares, guardrail, margin, bucket, &book), alpha, Some(values), None))
            }
            SignalEvidence::Share(shares) => {
                let (test, strata) = (share_test(guardrail, margin), shares.strata(bucket, &book));
                // Division by a design effect only lowers the bound.
                let bound = test.at_most(&strata);
                if bound < -alpha.ln() && bound <= floor {
                    return None;
                }
                let by = shares.clustering(bucket, book.baseline, -alpha.ln());
                let strata = strata.iter().map(|s| s.deflated(by.rate)).collect();
                let values = [book.baseline, bucket].map(|b| shares.total(b).rate());
                by.ready.then(|| self.look(Sample::Share { strata, test }, alpha, Some(values), None))
            }
            SignalEvidence::Mean(sums) => {
                let sample = Sample::Mean { strata: sums.strata(bucket, &book), contrast: contrast(guardrail, margin) };
                let values = [book.baseline, bucket].map(|b| sums.mean(b).map(|m| m.1));
                Some(self.look(sample, alpha, Some(values), None))
            }
            SignalEvidence::Spread(spread) => {
                let test = self.spread_test(of)?;
                let (t, c) = sides(guardrail, bucket, book.baseline);
                let one = |period: usize| {
                    let level = self.whole_life_level(of, period);
                    let by = spread.may_reach(period, t, c, &test, -level.ln(), floor.min(-level.ln())).filter(|by| by.ready)?;
                    let pair = spread.pair(period, t, c)?;
                    Some(self.look(Sample::quantile(&test, pair, DIGITS, by), level, None, None))
                };
                let best = spread.periods().filter_map(one).max_by(|a, b| a.excess().total_cmp(&b.excess()));
                best.map(|look| look.in_order(guardrail))
            }
        }
    }

    /// The test started anew. Of a rate, the sum over its starts; of a quantile, the most convincing start, if it trips.
    fn change(&self, of: Hypothesis) -> Option<Look> {
        let (guardrail, bucket) = (self.plan.question(of.guardrail), of.bucket);
        let margin = guardrail.max_increase.filter(|_| has_detector(guardrail.statistic))?;
        let (book, each) = (self.booking_of(of), self.each(of));
        let share = |start: Pane| {
            let (k, periods) = book.place(start);
            Budget::start(k, periods)
        };
        let level = self.budget.late(each);
        let needed = |start: Pane| -(level * share(start)).ln();
        // The caution of a design effect is that of the latest start, which needs most.
        let most = needed(self.state.at?);
        match self.evidence_of(of)? {
            SignalEvidence::Share(shares) => {
                let test = share_test(guardrail, margin);
                let by = LazyCell::new(|| shares.clustering(bucket, book.baseline, most));
                let deff = |slots| shares.short_effect(bucket, slots, by.rate, most);
                let found = shares.late_starts(bucket, &book, &test, deff, share, -level.ln());
                let best = found.first().filter(|_| by.ready)?;
                let (since, s) = (best.since, best.start.stratum);
                let values = [(s.x_c, s.n_c), (s.x_t, s.n_t)].map(|(x, n)| (n > 0.0).then(|| x / n));
                let starts = found.iter().map(|late| late.start).collect();
                Some(self.look(Sample::Starts { starts, test }, level, Some(values), Some(since)))
            }
            SignalEvidence::Spread(spread) => {
                let test = self.spread_test(of)?;
                let (t, c) = sides(guardrail, bucket, book.baseline);
                spread.periods().find_map(|period| {
                    let (since, pair, by) =
                        spread.best_suffix(period, [t, c], &test, self.budget.slot, most, needed).filter(|(.., by)| by.ready)?;
                    let level = level * share(since);
                    Some(self.look(Sample::quantile(&test, pair, SLOT_DIGITS, by), level, None, Some(since)).in_order(guardrail))
                })
            }
            SignalEvidence::Mean(_) => None,
        }
    }

    /// When what the whole life shows seems to have begun: the most convincing start of the detector, whether or not it trips.
    fn onset(&self, of: Hypothesis) -> Option<Pane> {
        let (guardrail, bucket, book) = (self.plan.question(of.guardrail), of.bucket, self.booking_of(of));
        let margin = guardrail.max_increase?;
        match self.evidence_of(of)? {
            SignalEvidence::Share(shares) if !is_count(guardrail.statistic) => {
                let by = LazyCell::new(|| shares.clustering(bucket, book.baseline, 1.0));
                let deff = |slots| shares.short_effect(bucket, slots, by.rate, 1.0);
                Some(shares.late_starts(bucket, &book, &share_test(guardrail, margin), deff, |_| 1.0, 1.0).first()?.since)
            }
            SignalEvidence::Spread(spread) => {
                let test = self.spread_test(of)?;
                let (t, c) = sides(guardrail, bucket, book.baseline);
                Some(spread.best_suffix(spread.periods().last()?, [t, c], &test, self.budget.slot, 1.0, |_| 1.0)?.0)
            }
            _ => None,
        }
    }

    /// Whether the confidence sequence of the whole life lies inside the margin: the same tests, their sides exchanged.
    fn margin_holds(&self, of: Hypothesis) -> bool {
        let (guardrail, bucket, alpha) = (self.plan.question(of.guardrail), of.bucket, self.whole_life_level(of, 0));
        let (Some(margin), Some(evidence)) = (guardrail.max_increase, self.evidence_of(of)) else { return false };
        let (book, needed) = (self.booking_of(of), -alpha.ln());
        match evidence {
            SignalEvidence::Share(shares) if is_count(guardrail.statistic) => {
                let Sample::Count { strata, r, phi, higher_is_worse } = count_sample(shares, guardrail, margin, bucket, &book) else {
                    return false;
                };
                match higher_is_worse {
                    true => counts::ratio_upper_bound(&strata, alpha, phi) < 1.0 + r,
                    false => counts::ratio_lower_bound(&strata, alpha, phi) > 1.0 - r,
                }
            }
            SignalEvidence::Share(shares) => {
                let by = shares.clustering(bucket, book.baseline, needed);
                let strata: Vec<_> = shares.strata(bucket, &book).iter().map(|s| s.deflated(by.rate)).collect();
                by.filled && share_test(guardrail, margin).safe_log_e(&strata) >= needed
            }
            SignalEvidence::Mean(sums) => {
                means::log_e(&sums.strata(bucket, &book), contrast(guardrail, margin).reversed(), means::MIN_UNITS) >= needed
            }
            SignalEvidence::Spread(spread) => {
                let Some(test) = self.spread_test(of) else { return false };
                let (t, c) = sides(guardrail, bucket, book.baseline);
                let turned = SpreadTest { relative: test.relative.reversed(), ..test };
                let Some(period) = spread.periods().last() else { return false };
                let needed = -self.whole_life_level(of, period).ln();
                let Some(by) = spread.may_reach(period, c, t, &turned, needed, needed).filter(|by| by.filled) else { return false };
                spread.pair(period, c, t).is_some_and(|pair| turned.relative.reaches(pair.arms(by), needed))
            }
        }
    }

    /// Design effect of the bucket's observations in the test of the whole life; `None` where they are independent by design.
    pub(super) fn design_effect(&self, of: Hypothesis) -> Option<f64> {
        let (guardrail, bucket, needed) = (self.plan.question(of.guardrail), of.bucket, self.whole_life_threshold(of));
        let baseline = self.plan.baseline();
        match self.evidence_of(of)? {
            SignalEvidence::Share(shares) => shares.batches(bucket).map(|_| shares.clustering(bucket, baseline, needed).rate),
            SignalEvidence::Spread(spread) => {
                let test = self.spread_test(of)?;
                let (t, c) = sides(guardrail, bucket, baseline);
                Some(spread.clustering(spread.periods().last()?, t, c, &test, needed).bucket)
            }
            SignalEvidence::Mean(_) => None,
        }
    }

    /// The test of harm to a quantile. Where a high quantile is good, harm is `q_T < (1 - r) q_C - d`: the reversed test, sides exchanged.
    fn spread_test(&self, of: Hypothesis) -> Option<SpreadTest> {
        let (guardrail, level) = (self.plan.question(of.guardrail), self.tests[of.guardrail].as_ref()?);
        let watched = Watched::of(guardrail)?;
        let plain = Relative { level: level.clone(), r_ppm: watched.r_ppm, d: watched.d, bins: Resolution::digits(DIGITS) };
        let turned = !guardrail.higher_is_worse;
        Some(SpreadTest { watched, relative: if turned { plain.reversed() } else { plain }, turned })
    }

    /// `values` are those of the baseline and of the bucket; of quantiles, they are read off the sample.
    fn look(&self, sample: Sample, alpha: f64, values: Option<[Option<f64>; 2]>, since: Option<Pane>) -> Look {
        let (test, found) = sample.weigh(self.plan.method);
        let values = values.unwrap_or_else(|| sample.quantiles());
        Look { test, sample, found, alpha, values, since }
    }

    /// What a look that trips says.
    fn alarm(&self, of: Hypothesis, pane: Pane, look: Look) -> Alarm {
        let guardrail = self.plan.question(of.guardrail);
        let interval = look.interval(guardrail);
        let reason = self.reason(of, &look, interval);
        let began = Some(self.booking_of(of).first_cohort).filter(|first| first.0 > i64::MIN).or(self.state.began);
        let since = look.since.or_else(|| self.onset(of)).or(began).unwrap_or(pane);
        Alarm {
            criterion: if guardrail.primary { "stop_on_negative" } else { "max_increase" },
            test: look.test,
            log_e: match look.found {
                Found::LogE(log_e) => Some(log_e),
                Found::Probability(_) | Found::P(_) => None,
            },
            alpha: Some(look.alpha),
            unit: compared_unit(guardrail).to_owned(),
            margin: guardrail.max_increase.map(|m| match m {
                Margin::Relative(x) | Margin::Absolute(x) => x,
            }),
            values: look.values,
            interval,
            since: since.start(self.pane_ms),
            evidence: look.evidence(),
            reason,
        }
    }
}

impl Sample {
    fn quantile(test: &SpreadTest, pair: Pair, digits: u8, by: Clustering) -> Sample {
        Sample::Quantile { pair, test: Box::new(test.at(digits)), ppm: test.watched.ppm, digits, by }
    }

    /// Quantiles of both sides, in the metric's unit.
    fn quantiles(&self) -> [Option<f64>; 2] {
        let Sample::Quantile { pair, ppm, .. } = self else { return [None, None] };
        [&pair.baseline, &pair.bucket].map(|tail| tail.quantile(*ppm).map(|edge| edge as f64 / 1_000.0))
    }

    /// The test that the method asks for, and what it finds.
    fn weigh(&self, method: Method) -> (&'static str, Found) {
        match (self, method) {
            (Sample::Share { strata, test }, Method::Sequential) => {
                (if test.higher_is_worse { "rate" } else { "rate_drop" }, Found::LogE(test.log_e(strata)))
            }
            // Other methods do not look for late changes.
            (Sample::Starts { starts, test }, _) => {
                (if test.higher_is_worse { "detector_rate" } else { "detector_rate_drop" }, Found::LogE(test.log_e_of_starts(starts)))
            }
            (Sample::Share { strata, test }, Method::Bayesian) => {
                let (null, sign) = plain_null(test);
                let above = posterior::rate(strata, null);
                ("posterior_rate", Found::Probability(if sign > 0.0 { above } else { 1.0 - above }))
            }
            (Sample::Share { strata, test }, Method::FixedHorizon) => {
                let (null, sign) = plain_null(test);
                let side = if sign > 0.0 { fixed::Side::Above } else { fixed::Side::Below };
                ("fixed_rate", Found::P(fixed::rate_p(strata, null, side)))
            }
            // Event counts have no other method.
            (Sample::Count { strata, r, phi, higher_is_worse: true }, _) => ("counts", Found::LogE(counts::log_e(strata, *r, *phi))),
            (Sample::Count { strata, r, phi, .. }, _) => ("counts", Found::LogE(counts::drop_log_e(strata, *r, *phi))),
            (Sample::Quantile { pair, test, by, .. }, Method::Sequential) => ("quantile_relative", Found::LogE(test.log_e(pair.arms(*by)))),
            (Sample::Quantile { pair, test, by, .. }, Method::Bayesian) => {
                ("posterior_quantile", Found::Probability(posterior::quantile(test, pair.arms(*by))))
            }
            (Sample::Quantile { pair, test, by, .. }, Method::FixedHorizon) => {
                ("fixed_quantile", Found::P(fixed::quantile_p(test, pair.arms(*by))))
            }
            (Sample::Mean { strata, contrast }, Method::Sequential) => {
                ("mean", Found::LogE(means::log_e(strata, *contrast, means::MIN_UNITS)))
            }
            (Sample::Mean { strata, contrast }, Method::Bayesian) => {
                ("posterior_mean", Found::Probability(posterior::mean(strata, *contrast, means::MIN_UNITS)))
            }
            (Sample::Mean { strata, contrast }, Method::FixedHorizon) => {
                ("fixed_mean", Found::P(fixed::mean_p(strata, *contrast, means::MIN_UNITS)))
            }
        }
    }

    fn evidence(&self, found: Found, alpha: f64) -> Evidence {
        let level = (!matches!(found, Found::Probability(_))).then_some(alpha);
        let single = level.filter(|_| matches!(found, Found::P(_)));
        match self {
            Sample::Share { strata, test } => {
                let (plain, side) = plain_null(test);
                let (null, sign) = if matches!(found, Found::LogE(_)) { (test.null, None) } else { (plain, Some(side)) };
                Evidence::Rates { strata: strata.clone(), rho: null.ratio, d: null.margin, sign, alpha: single }
            }
            Sample::Starts { starts, test } => Evidence::Starts { starts: starts.clone(), rho: test.null.ratio, d: test.null.margin },
            Sample::Count { strata, r, phi, .. } => Evidence::Counts { strata: strata.clone(), r: *r, phi: *phi, alpha },
            Sample::Quantile { pair, test, ppm, digits, by } => {
                let (c, t) = match found {
                    Found::LogE(_) => test.condensed(pair.arms(*by)),
                    Found::Probability(_) | Found::P(_) => (pair.baseline.clone(), pair.bucket.clone()),
                };
                Evidence::Quantiles {
                    hist_c: c.bins().collect(),
                    hist_t: t.bins().collect(),
                    p_ppm: *ppm,
                    r_ppm: test.r_ppm,
                    d: test.d,
                    sig_digits: *digits,
                    deff_c: by.baseline,
                    deff_t: by.bucket,
                    alpha: single,
                }
            }
            Sample::Mean { strata, contrast } => Evidence::Means {
                strata: strata.iter().map(|s| MeanStratum { t: s.t.into(), c: s.c.into() }).collect(),
                sign: contrast.sign,
                rho: contrast.ratio,
                d: contrast.margin,
                alpha: level,
                min_n: means::MIN_UNITS,
            },
        }
    }
}

/// What is tolerated, as a bound of `p_T` by `p_C`, and the side of harm: -1 when a rate should be high.
fn plain_null(test: &ShareTest) -> (Null, f64) {
    match test.higher_is_worse {
        true => (test.null, 1.0),
        false => (Null { ratio: test.null.ratio, margin: -test.null.margin }, -1.0),
    }
}

fn is_count(statistic: Statistic) -> bool {
    matches!(statistic, Statistic::Count | Statistic::Exposures)
}

fn share_test(guardrail: &Guardrail, margin: Margin) -> ShareTest {
    let null = match (margin, guardrail.higher_is_worse) {
        (Margin::Relative(r), true) => Null::relative(r),
        (Margin::Relative(r), false) => Null::relative(-r.min(1.0)),
        (Margin::Absolute(d), _) => Null::absolute(d),
    };
    ShareTest { null, higher_is_worse: guardrail.higher_is_worse }
}

fn count_sample(shares: &Shares, guardrail: &Guardrail, margin: Margin, bucket: usize, book: &Booking<'_>) -> Sample {
    let strata = shares.strata(bucket, book).iter().map(|s| counts::Stratum { w: s.w, x_t: s.n_t, x_c: s.n_c }).collect();
    let dispersion = |b: usize| shares.batches(b).and_then(|counted| counted.dispersion()).unwrap_or(1.0);
    let r = match margin {
        Margin::Relative(r) => r,
        Margin::Absolute(_) => 0.0,
    };
    let phi = dispersion(bucket).max(dispersion(book.baseline));
    Sample::Count { strata, r, phi, higher_is_worse: guardrail.higher_is_worse }
}

/// The buckets in the roles of treatment and control of [`Judge::spread_test`].
fn sides(guardrail: &Guardrail, bucket: usize, baseline: usize) -> (usize, usize) {
    if guardrail.higher_is_worse { (bucket, baseline) } else { (baseline, bucket) }
}

fn contrast(guardrail: &Guardrail, margin: Margin) -> Contrast {
    let (ratio, margin) = match margin {
        Margin::Relative(r) => (r, 0.0),
        Margin::Absolute(d) => (0.0, d),
    };
    let relative = if guardrail.higher_is_worse { Contrast::higher_is_worse(ratio) } else { Contrast::lower_is_worse(ratio) };
    Contrast { margin, ..relative }
}
