//! The specification's tests by themselves, on the very traffic that the engine is given and looked at as often: what of a delay is the
//! test's own. One guardrail, two buckets; counts are taken off the events without windows, joins or budgets.

use guardraild::engine::event::{Event, Kind};
use guardraild::engine::plan::{Guardrail, Margin, Statistic};
use guardraild::engine::stats::design_effect::{Batch, deflation};
use guardraild::engine::stats::detector::{RatePane, label_rate_by_start, log_sr, two_tier_lengths};
use guardraild::engine::stats::exceedance::Exceedance;
use guardraild::engine::stats::lift::Wealth;
use guardraild::engine::stats::means::{self, Contrast};
use guardraild::engine::stats::quantiles::{Arms, Relative, Resolution, Tail};
use guardraild::engine::stats::rates::{self, Factors, Null, Stratum};
use guardraild::engine::time::Millis;
use guardraild::tools::simulate::study::{Delay, Options, Scenario};
use guardraild::tools::simulate::{Effect, Spec, spread};
use std::collections::BTreeMap;

/// Batches of units, as in the specification's simulation of sessions.
const BATCHES: usize = 128;
/// Panes of 1 s in a slot, and the two tiers of starts: 5 minutes of slots, and an hour of minutes.
const SLOT: usize = 5;
const TIERS: (usize, usize, usize) = (60, 12, 60);

/// When a test had seen enough, for one evidence that it might need.
pub struct Found {
    /// From the onset, in ms.
    pub delay_ms: Delay,
    /// Units exposed from the onset on.
    pub units: Delay,
}

/// Plays the runs that the engine is given to the bare test of the rule's only guardrail, once for all the evidence that it might `need`.
/// `None` where there is no such test: for late changes of anything but independent rates.
pub fn detection(spec: &Spec, options: &Options, effect: &Effect, runs: u64, needed: [f64; 2]) -> Option<[Found; 2]> {
    let [guardrail] = &spec.plan.guardrails[..] else { return None };
    let is_rate = matches!(guardrail.statistic, Statistic::Share | Statistic::PerUnit);
    if spec.plan.buckets.len() != 2 || options.onset > 0 && !(is_rate && spec.traffic.requests.per_unit <= 1.0) {
        return None;
    }
    let scenario = Scenario::of(spec, options, effect);
    let mut found = [Vec::new(), Vec::new()];
    spread(
        runs as usize,
        options.threads,
        |run| {
            let mut test = Test::new(spec, guardrail, options.onset, needed[1])?;
            let mut generator = scenario.generator(spec, options.seed, run as u64);
            let (mut hits, mut before): ([Option<(Millis, u64)>; 2], u64) = ([None; 2], 0);
            while let Some(end) = generator.pane(|event, _| test.add(event)) {
                if end <= options.onset {
                    before = generator.units();
                    test.close();
                    continue;
                }
                let log_e = test.log_e();
                for (hit, needed) in hits.iter_mut().zip(needed) {
                    if hit.is_none() && log_e >= needed {
                        *hit = Some((end - options.onset, generator.units() - before));
                    }
                }
                if hits.iter().all(Option::is_some) {
                    break;
                }
                test.close();
            }
            Some(hits)
        },
        |_, hits| found.iter_mut().zip(hits).for_each(|(found, hit)| found.extend(hit)),
    );
    Some(found.map(|hits: Vec<(Millis, u64)>| Found {
        delay_ms: Delay::of(hits.iter().map(|h| h.0 as f64).collect(), runs),
        units: Delay::of(hits.iter().map(|h| h.1 as f64).collect(), runs),
    }))
}

struct Test<'p> {
    treatment: &'p str,
    /// By unit.
    treated: Vec<bool>,
    sums: Sums,
}

enum Sums {
    Rate(Rate),
    Quantile(Box<Quantile>),
    Mean { arms: [means::Arm; 2], contrast: Contrast },
}

impl<'p> Test<'p> {
    fn new(spec: &'p Spec, guardrail: &Guardrail, onset: Millis, needed: f64) -> Option<Test<'p>> {
        let plan = &spec.plan;
        let baseline = plan.baseline();
        let treatment = plan.buckets.iter().enumerate().find(|(b, _)| *b != baseline)?.1;
        let w = treatment.weight / plan.buckets.iter().map(|b| b.weight).sum::<f64>();
        let Some(Margin::Relative(r)) = guardrail.max_increase else { return None };
        let sums = match guardrail.statistic {
            Statistic::Share | Statistic::PerUnit => Sums::Rate(Rate::new(w, r, guardrail.name == "error_rate", onset > 0)),
            Statistic::Quantile { ppm } => {
                let level = Exceedance::of_quantile(ppm);
                let relative = Relative { level, r_ppm: (r * 1e6).round() as i64, d: 0, bins: Resolution::digits(3) };
                let clusters = (spec.traffic.requests.per_unit > 1.0).then(|| Clusters { values: [Vec::new(), Vec::new()], needed });
                Sums::Quantile(Box::new(Quantile { ppm, relative, bins: [BTreeMap::new(), BTreeMap::new()], clusters }))
            }
            Statistic::Mean => {
                let contrast = if guardrail.higher_is_worse { Contrast::higher_is_worse(r) } else { Contrast::lower_is_worse(r) };
                Sums::Mean { arms: [means::Arm::default(); 2], contrast }
            }
            Statistic::Count | Statistic::Exposures => return None,
        };
        Some(Test { treatment: &treatment.name, treated: Vec::new(), sums })
    }

    fn add(&mut self, event: &Event<'_>) {
        let Some(unit) = event.user_id.as_deref().and_then(|id| id.parse::<usize>().ok()) else { return };
        if unit >= self.treated.len() {
            self.treated.resize(unit + 1, false);
        }
        if matches!(event.kind, Kind::Exposure) {
            self.treated[unit] = event.bucket.as_deref() == Some(self.treatment);
        }
        let arm = usize::from(self.treated[unit]);
        match (&mut self.sums, &event.kind) {
            (Sums::Rate(rate), Kind::Request { error, .. }) if rate.of_requests => rate.count(arm, 1.0, f64::from(u8::from(*error))),
            (Sums::Rate(rate), Kind::Exposure) if !rate.of_requests => rate.count(arm, 1.0, 0.0),
            (Sums::Rate(rate), Kind::Outcome { .. } | Kind::Ticket) if !rate.of_requests => rate.count(arm, 0.0, 1.0),
            (Sums::Quantile(quantile), Kind::Request { latency_ms: Some(ms), .. }) => quantile.add(arm, unit, *ms),
            (Sums::Mean { arms, .. }, Kind::Exposure) => arms[arm].n += 1,
            (Sums::Mean { arms, .. }, Kind::Outcome { value, .. }) => {
                arms[arm].sy += value;
                arms[arm].syy += value * value;
            }
            _ => {}
        }
    }

    fn log_e(&mut self) -> f64 {
        match &mut self.sums {
            Sums::Rate(rate) => rate.log_e(),
            Sums::Quantile(quantile) => quantile.log_e(),
            Sums::Mean { arms: [c, t], contrast } => means::log_e(&[means::Stratum { t: *t, c: *c }], *contrast, means::MIN_UNITS),
        }
    }

    /// A pane ends.
    fn close(&mut self) {
        if let Sums::Rate(rate) = &mut self.sums {
            rate.close();
        }
    }
}

/// Section 2 of the specification of rates; for late changes, section 5 of the other one.
struct Rate {
    of_requests: bool,
    null: Null,
    strata: Vec<(Factors, Stratum)>,
    refresh_at: u64,
    /// Slots so far, oldest first, and panes in the last; of a detector.
    slots: Option<(Vec<RatePane>, usize)>,
}

impl Rate {
    fn new(w: f64, r: f64, of_requests: bool, late: bool) -> Rate {
        let null = Null::relative(r);
        let first = Stratum { w, m: rates::next_baseline(0, 0, None), n_t: 0.0, x_t: 0.0, n_c: 0.0, x_c: 0.0 };
        let strata = vec![(Factors::new(w, first.m, null), first)];
        Rate { of_requests, null, strata, refresh_at: rates::next_refresh(0), slots: late.then(|| (vec![RatePane::default()], 0)) }
    }

    fn count(&mut self, arm: usize, n: f64, x: f64) {
        if let Some((slots, _)) = &mut self.slots {
            let Some(slot) = slots.last_mut() else { return };
            let (sum_n, sum_x) = if arm == 1 { (&mut slot.n_t, &mut slot.k_t) } else { (&mut slot.n_c, &mut slot.k_c) };
            (*sum_n, *sum_x) = (*sum_n + n, *sum_x + x);
            return;
        }
        let Some((_, s)) = self.strata.last_mut() else { return };
        let (sum_n, sum_x) = if arm == 1 { (&mut s.n_t, &mut s.x_t) } else { (&mut s.n_c, &mut s.x_c) };
        (*sum_n, *sum_x) = (*sum_n + n, *sum_x + x);
    }

    fn log_e(&self) -> f64 {
        let Some((slots, _)) = &self.slots else {
            let mut wealth = Wealth::default();
            self.strata.iter().for_each(|(factors, stratum)| factors.bet(&mut wealth, stratum));
            return wealth.log_e();
        };
        let (recent, every, old) = TIERS;
        let lengths = two_tier_lengths(slots.len() - 1, recent, every, old);
        let longest = lengths.last().copied().unwrap_or(0);
        let by_start = label_rate_by_start(&slots[slots.len() - longest..], self.null.ratio, 1.0);
        log_sr(&lengths.iter().filter_map(|length| by_start.get(length - 1).copied()).collect::<Vec<f64>>())
    }

    fn close(&mut self) {
        if let Some((slots, panes)) = &mut self.slots {
            *panes += 1;
            if *panes == SLOT {
                *panes = 0;
                slots.push(RatePane::default());
            }
            return;
        }
        let (n_c, x_c) = self.strata.iter().fold((0.0, 0.0), |(n, x), (_, s)| (n + s.n_c, x + s.x_c));
        if n_c as u64 >= self.refresh_at {
            self.refresh_at = rates::next_refresh(n_c as u64);
            let (w, m) = (self.strata[0].1.w, rates::next_baseline(n_c as u64, x_c as u64, None));
            self.strata.push((Factors::new(w, m, self.null), Stratum { w, m, n_t: 0.0, x_t: 0.0, n_c: 0.0, x_c: 0.0 }));
        }
    }
}

/// Section 2 of the specification of quantiles; section 6 where units come again.
struct Quantile {
    ppm: u32,
    relative: Relative,
    /// Of control and treatment, in thousandths.
    bins: [BTreeMap<u64, u64>; 2],
    clusters: Option<Clusters>,
}

struct Clusters {
    /// Of control and treatment: batch and value.
    values: [Vec<(u8, u64)>; 2],
    /// Evidence that will be asked for.
    needed: f64,
}

impl Quantile {
    fn add(&mut self, arm: usize, unit: usize, ms: f64) {
        let value = self.relative.bins.upper((ms * 1_000.0) as u64);
        *self.bins[arm].entry(value).or_default() += 1;
        if let Some(clusters) = &mut self.clusters {
            let batch = (unit as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57;
            clusters.values[arm].push((batch as u8, value));
        }
    }

    fn log_e(&self) -> f64 {
        let [control, treatment] = [0, 1].map(|arm| Tail::ascending(self.bins[arm].iter().map(|(edge, count)| (*edge, *count))));
        let (Some(quantile), Some(clusters)) = (control.quantile(self.ppm), &self.clusters) else {
            return self.relative.log_e(Arms { control: &control, treatment: &treatment, deff_c: 1.0, deff_t: 1.0 });
        };
        let batches = clusters.values.each_ref().map(|values| {
            let mut batches = vec![Batch::default(); BATCHES];
            for (batch, value) in values {
                let batch = &mut batches[usize::from(*batch)];
                (batch.n, batch.s) = (batch.n + 1.0, batch.s + f64::from(u8::from(*value > quantile)));
            }
            batches
        });
        let by = deflation(&batches[0], &batches[1], clusters.needed);
        let arms = Arms { control: &control, treatment: &treatment, deff_c: by.control, deff_t: by.treatment };
        if by.ready { self.relative.log_e(arms) } else { 0.0 }
    }
}
