//! Tests of rates: units (or requests) that have an event, among those exposed.
//!
//! The two-arm tests bet on strata. A **stratum** is a period in which the designed share `w` of treatment and the tuning baseline
//! `m` are constant. A unit and all its events belong to the stratum of its first exposure, whenever the events arrive; a stratum
//! opens when the allocation changes and when control exposures reach [`next_refresh`]. Both arms are read to one watermark, and an
//! event never counts ahead of its unit.

use super::exceedance::Exceedance;
use super::lift::{LIFT_GRID, LIFTS, Wealth};
use super::numeric::{count, crossing, log_inverse};
use serde::{Deserialize, Serialize};

/// The sufficient statistics of one stratum. Counts are exact up to 2^53; fractional after division by a design effect.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stratum {
    /// Designed share of treatment in the traffic of the two arms; a stratum with `w` outside (0, 1) gives no evidence.
    pub w: f64,
    /// Expected control rate in [0, 1], fixed before the first exposure: see [`next_baseline`].
    pub m: f64,
    /// Units exposed to treatment, and those of them with the event.
    pub n_t: f64,
    pub x_t: f64,
    /// Units exposed to control, and those of them with the event.
    pub n_c: f64,
    pub x_c: f64,
}

impl Stratum {
    /// All counts divided by a design effect (at least 1), for clustered observations. The tests are then asymptotic.
    pub fn deflated(self, deff: f64) -> Stratum {
        let by = deff.max(1.0);
        Stratum { n_t: self.n_t / by, x_t: self.x_t / by, n_c: self.n_c / by, x_c: self.x_c / by, ..self }
    }

    /// Treatment and control exchanged.
    pub fn swapped(self) -> Stratum {
        Stratum { w: 1.0 - self.w, m: self.m, n_t: self.n_c, x_t: self.x_c, n_c: self.n_t, x_c: self.x_t }
    }

    /// Events and their absence exchanged.
    fn complement(self) -> Stratum {
        let (n_t, n_c) = (self.n_t.max(0.0), self.n_c.max(0.0));
        Stratum { w: self.w, m: 1.0 - self.m, n_t, x_t: n_t - self.x_t.clamp(0.0, n_t), n_c, x_c: n_c - self.x_c.clamp(0.0, n_c) }
    }
}

/// What is tolerated: `p_T <= ratio * p_C + margin`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Null {
    /// At least 0; beyond 1e15 there is no evidence.
    pub ratio: f64,
    /// Share of units, in [-ratio, 1].
    pub margin: f64,
}

impl Null {
    /// A relative increase: 0.1 tolerates 10% above control.
    pub fn relative(increase: f64) -> Null {
        Null { ratio: 1.0 + increase, margin: 0.0 }
    }

    /// An absolute increase of the rate: 0.005 tolerates half a percentage point.
    pub fn absolute(increase: f64) -> Null {
        Null { ratio: 1.0, margin: increase }
    }
}

/// Log betting factors of one unit in a stratum, for each lift. Computed once per stratum and null; a look at fresh counts then
/// takes 68 multiply-adds.
#[derive(Clone, Debug)]
pub struct Factors([UnitFactors; LIFTS]);

#[derive(Clone, Copy, Debug, Default)]
struct UnitFactors {
    event_t: f64,
    miss_t: f64,
    event_c: f64,
    miss_c: f64,
}

/// What a stratum's bets depend on.
struct Bet {
    w: f64,
    ratio: f64,
    m_c: f64,
    m_t: f64,
}

impl Bet {
    /// `None` where there is nothing to bet on.
    fn new(w: f64, m: f64, null: Null) -> Option<Bet> {
        let usable = w > 1e-12 && w < 1.0 - 1e-12 && null.ratio <= 1e15 && null.margin < 1.0 && !m.is_nan();
        let ratio = null.ratio.max(0.0);
        let margin = null.margin.max(-ratio);
        let (least, most) = if ratio > 0.0 { (-margin / ratio, (1.0 - margin) / ratio) } else { (0.0, 1.0) };
        let m_c = m.max(0.0).max(least).min(1.0).min(most);
        let m_t = (ratio * m_c + margin).clamp(0.0, 1.0);
        usable.then_some(Bet { w, ratio, m_c, m_t })
    }

    /// The share of wealth at stake for a lift; it grows with the lift.
    fn stake(&self, j: usize) -> f64 {
        let expm1 = LIFT_GRID.expm1[j];
        let spread = (1.0 - self.m_t) / self.w + (expm1 + 1.0) * self.ratio * (1.0 - self.m_c) / (1.0 - self.w);
        let free = if spread > 0.0 { expm1 / spread } else { f64::INFINITY };
        if self.m_t > 0.0 { free.min(0.9 * self.w / self.m_t) } else { free }
    }
}

impl Factors {
    /// A unit with label A (1 for treatment, with probability `w`) and outcome Y multiplies wealth by
    /// `1 + k [A (Y - m_T) / w - ratio (1 - A) (Y - m_C) / (1 - w)]` with `m_C = m`, `m_T = ratio m + margin`. Its mean is
    /// `1 + k (p_T - ratio p_C - margin)`, at most 1 under the null for any `m` and any drift of the rates. `k` is the bet that grows
    /// fastest when the treatment's rate has the lift, kept where wealth stays positive.
    pub fn new(w: f64, m: f64, null: Null) -> Factors {
        let Some(bet) = Bet::new(w, m, null) else { return Factors([UnitFactors::default(); LIFTS]) };
        let Bet { w, ratio, m_c, m_t } = bet;
        Factors(std::array::from_fn(|j| {
            let k = bet.stake(j);
            UnitFactors {
                event_t: (k * (1.0 - m_t) / w).ln_1p(),
                miss_t: (-k * m_t / w).ln_1p(),
                event_c: (-k * ratio * (1.0 - m_c) / (1.0 - w)).ln_1p(),
                miss_c: (k * ratio * m_c / (1.0 - w)).ln_1p(),
            }
        }))
    }

    /// Bets on the counts of a stratum (whose `w` and `m` are those of the factors).
    pub fn bet(&self, wealth: &mut Wealth, stratum: &Stratum) {
        let counts = [stratum.n_t, stratum.x_t, stratum.n_c, stratum.x_c].map(count);
        let [Some(n_t), Some(x_t), Some(n_c), Some(x_c)] = counts else { return };
        let (x_t, x_c) = (x_t.min(n_t), x_c.min(n_c));
        wealth.gain(|j| {
            let f = &self.0[j];
            (x_t * f.event_t + (n_t - x_t) * f.miss_t) + (x_c * f.event_c + (n_c - x_c) * f.miss_c)
        });
    }
}

/// Evidence that treatment has the event more often than tolerated. Exact at any sample size, for rates that drift in any way.
///
/// H0, at every instant: `p_T <= ratio * p_C + margin`. Linear bets in the spirit of Turner, Ly and Gruenwald, JSPI 230, 2024,
/// eq. 3.2 and 3.4, and Turner and Gruenwald, arXiv 2203.09785 (linear nulls), averaged over the lift grid. Assumes independent units
/// whose label is treatment with probability `w`.
pub fn log_e(strata: &[Stratum], null: Null) -> f64 {
    let mut wealth = Wealth::default();
    for stratum in strata {
        Factors::new(stratum.w, stratum.m, null).bet(&mut wealth, stratum);
    }
    wealth.log_e()
}

/// Evidence that treatment has the event less often than tolerated, H0: `p_T >= ratio * p_C - margin` with a ratio of at most 1.
/// Exact: [`log_e`] of the complementary outcome.
pub fn drop_log_e(strata: &[Stratum], null: Null) -> f64 {
    let null = complement(null);
    let mut wealth = Wealth::default();
    for stratum in strata {
        let stratum = stratum.complement();
        Factors::new(stratum.w, stratum.m, null).bet(&mut wealth, &stratum);
    }
    wealth.log_e()
}

/// [`log_e`], or [`drop_log_e`], of single strata with the same share and tuning baseline, whose factors are computed once.
pub struct Alike {
    w: f64,
    m: f64,
    factors: Factors,
    outcome: fn(Stratum) -> Stratum,
}

impl Alike {
    pub fn new(w: f64, m: f64, null: Null) -> Alike {
        Alike { w, m, factors: Factors::new(w, m, null), outcome: |stratum| stratum }
    }

    pub fn of_drop(w: f64, m: f64, null: Null) -> Alike {
        Alike { w, m, factors: Factors::new(w, 1.0 - m, complement(null)), outcome: Stratum::complement }
    }

    pub fn serves(&self, stratum: &Stratum) -> bool {
        self.w == stratum.w && self.m == stratum.m
    }

    pub fn log_e(&self, stratum: Stratum) -> f64 {
        let mut wealth = Wealth::default();
        self.factors.bet(&mut wealth, &(self.outcome)(stratum));
        wealth.log_e()
    }
}

/// What [`drop_log_e`] tolerates of the absence of events.
fn complement(null: Null) -> Null {
    Null { ratio: null.ratio, margin: 1.0 - null.ratio + null.margin }
}

/// An upper bound of [`log_e`] without its logarithms: every bettor multiplies wealth by `1 + k (...)`, and `ln(1 + u) <= u`.
pub fn log_e_at_most(strata: &[Stratum], null: Null) -> f64 {
    at_most(strata, |s| s, null)
}

/// An upper bound of [`drop_log_e`], as [`log_e_at_most`].
pub fn drop_log_e_at_most(strata: &[Stratum], null: Null) -> f64 {
    at_most(strata, Stratum::complement, complement(null))
}

fn at_most(strata: &[Stratum], outcome: fn(Stratum) -> Stratum, null: Null) -> f64 {
    let mut gains = [0.0; LIFTS];
    // Stakes grow with the lift: on a single stratum the boldest bettor gains most, if any does.
    let first = if strata.len() == 1 { LIFTS - 1 } else { 0 };
    for stratum in strata.iter().copied().map(outcome) {
        let Some(bet) = Bet::new(stratum.w, stratum.m, null) else { continue };
        let counts = [stratum.n_t, stratum.x_t, stratum.n_c, stratum.x_c].map(count);
        let [Some(n_t), Some(x_t), Some(n_c), Some(x_c)] = counts else { continue };
        let (x_t, x_c) = (x_t.min(n_t), x_c.min(n_c));
        let surplus = (x_t - n_t * bet.m_t) / bet.w - bet.ratio * (x_c - n_c * bet.m_c) / (1.0 - bet.w);
        if strata.len() == 1 && surplus <= 0.0 {
            return 0.0;
        }
        gains.iter_mut().enumerate().skip(first).for_each(|(j, gain)| *gain += bet.stake(j) * surplus);
    }
    // No mixture is worth more than its best bettor.
    gains.into_iter().fold(0.0, f64::max)
}

/// Evidence that treatment has the event less often than the bound of `null`, H0: `p_T >= ratio * p_C + margin`: proof that a margin
/// holds. Exact; 0 for a ratio of 0. [`log_e`] with the arms exchanged, so that it reaches `ln(1/alpha)` exactly when
/// [`ratio_upper_bound`] or [`difference_upper_bound`] is inside the margin.
pub fn safe_log_e(strata: &[Stratum], null: Null) -> f64 {
    if null.ratio > 0.0 { log_e(&swapped(strata), Null { ratio: 1.0 / null.ratio, margin: -null.margin / null.ratio }) } else { 0.0 }
}

/// Lower end of the confidence sequence for `p_T / p_C`: below the truth at all times with probability `1 - alpha`. 0 when nothing
/// can be said; sought between 1e-6 and 1e6. The root of [`log_e`] in the ratio.
pub fn ratio_lower_bound(strata: &[Stratum], alpha: f64) -> f64 {
    let needed = log_inverse(alpha);
    let gap = |log_ratio: f64| log_e(strata, Null { ratio: log_ratio.exp(), margin: 0.0 }) - needed;
    let edge = 1e6f64.ln();
    if gap(-edge) < 0.0 { 0.0 } else { crossing(-edge, edge, gap).exp() }
}

/// Upper end of the confidence sequence for `p_T / p_C`; infinite when nothing can be said. [`ratio_lower_bound`] with the arms
/// exchanged.
pub fn ratio_upper_bound(strata: &[Stratum], alpha: f64) -> f64 {
    ratio_lower_bound(&swapped(strata), alpha).recip()
}

/// Lower end of the confidence sequence for `p_T - p_C`; -1 when nothing can be said. The root of [`log_e`] in the margin.
pub fn difference_lower_bound(strata: &[Stratum], alpha: f64) -> f64 {
    let needed = log_inverse(alpha);
    let gap = |margin: f64| log_e(strata, Null::absolute(margin)) - needed;
    let edge = 1.0 - 1e-9;
    if gap(-edge) < 0.0 { -1.0 } else { crossing(-edge, edge, gap) }
}

/// Upper end of the confidence sequence for `p_T - p_C`; 1 when nothing can be said.
pub fn difference_upper_bound(strata: &[Stratum], alpha: f64) -> f64 {
    -difference_lower_bound(&swapped(strata), alpha)
}

fn swapped(strata: &[Stratum]) -> Vec<Stratum> {
    strata.iter().map(|s| s.swapped()).collect()
}

const FIRST_REFRESH: u64 = 256;

/// Control exposures over all strata at which the current stratum must be closed: the next of 256, 512, 1024 …
pub fn next_refresh(n_c: u64) -> u64 {
    n_c.saturating_add(1).checked_next_power_of_two().unwrap_or(u64::MAX).max(FIRST_REFRESH)
}

/// Tuning baseline of the stratum about to open: the control rate so far, or before 256 control exposures the configured expected
/// rate (0 without one). Any value fixed beforehand keeps the test exact; a good one gives it power and makes it robust to a small
/// mismatch of the allocation. Never recompute it from late data.
pub fn next_baseline(n_c: u64, x_c: u64, configured: Option<f64>) -> f64 {
    if n_c >= FIRST_REFRESH { x_c.min(n_c) as f64 / n_c as f64 } else { configured.unwrap_or(0.0) }
}

/// Evidence that the ratio of two rates of rare events exceeds `ratio`, from the labels of the events alone.
///
/// Of `k_t + k_c` events, those of treatment are compared with the share `ratio n_t / (ratio n_t + n_c)`; all counts are divided by
/// the design effect `deff`. Made for the suffix sums of a detector: no strata, no baseline. Conditionally binomial, after Lindon
/// and Malek, NeurIPS 2022; at `ratio` 1 a valid e-value at each look (hypergeometric counts are less spread), otherwise an
/// approximation for rare events.
pub fn label_log_e(k_t: f64, n_t: f64, k_c: f64, n_c: f64, ratio: f64, deff: f64) -> f64 {
    let counts = [k_t, n_t, k_c, n_c, ratio].map(count);
    let [Some(k_t), Some(n_t), Some(k_c), Some(n_c), Some(ratio)] = counts else { return 0.0 };
    if n_t == 0.0 || n_c == 0.0 {
        return 0.0;
    }
    let deff = deff.max(1.0);
    // Divided through by the larger term, so that huge counts cannot overflow.
    let share = if ratio == 0.0 { 0.0 } else { 1.0 / (1.0 + n_c / n_t / ratio) };
    Exceedance::new(share).over(k_t / deff, (k_t + k_c) / deff)
}

/// Evidence that a single rate exceeds a fixed threshold. Exact, whatever the allocation; no control is needed.
///
/// H0: each of the `n` observations is a hit with probability at most `p0` (in [0, 1]), given the past; `x` of them are hits.
/// Mixture of exponentially tilted Bernoulli likelihood ratios (Howard et al., Annals of Statistics 49(2), 2021).
/// An observation and its hit must mature together: a hit never counts ahead of its observation.
pub fn threshold_log_e(n: u64, x: u64, p0: f64) -> f64 {
    tilted(n as f64, x as f64, p0, Side::Above)
}

/// Evidence that a single rate lies below a fixed threshold: the mirror image of [`threshold_log_e`], H0: rate at least `p0`.
pub fn threshold_drop_log_e(n: u64, x: u64, p0: f64) -> f64 {
    tilted(n as f64, x as f64, p0, Side::Below)
}

/// [`threshold_log_e`] for clustered observations, whose counts are divided by a design effect `deff` (at least 1). Asymptotic.
pub fn threshold_log_e_deflated(n: u64, x: u64, p0: f64, deff: f64) -> f64 {
    let deff = deff.max(1.0);
    tilted(n as f64 / deff, x as f64 / deff, p0, Side::Above)
}

/// [`threshold_drop_log_e`] for clustered observations, as [`threshold_log_e_deflated`].
pub fn threshold_drop_log_e_deflated(n: u64, x: u64, p0: f64, deff: f64) -> f64 {
    let deff = deff.max(1.0);
    tilted(n as f64 / deff, x as f64 / deff, p0, Side::Below)
}

/// Lower end of the confidence sequence for a single rate: with probability `1 - alpha` it is below the true rate at all times.
/// 0 when nothing can be said. Exact without a design effect (`deff` 1); the root of [`threshold_log_e`].
pub fn threshold_lower_bound(n: u64, x: u64, alpha: f64, deff: f64) -> f64 {
    let (n, x) = (n as f64 / deff.max(1.0), x.min(n) as f64 / deff.max(1.0));
    let needed = log_inverse(alpha);
    let gap = |log_odds: f64| tilted(n, x, logistic(log_odds), Side::Above) - needed;
    if x == 0.0 || gap(-LOG_ODDS) < 0.0 { 0.0 } else { logistic(crossing(-LOG_ODDS, LOG_ODDS, gap)) }
}

/// Upper end of the confidence sequence for a single rate; 1 when nothing can be said. The root of [`threshold_drop_log_e`].
pub fn threshold_upper_bound(n: u64, x: u64, alpha: f64, deff: f64) -> f64 {
    let (n, x) = (n as f64 / deff.max(1.0), x.min(n) as f64 / deff.max(1.0));
    let needed = log_inverse(alpha);
    let gap = |log_odds: f64| tilted(n, x, logistic(-log_odds), Side::Below) - needed;
    if x == n || gap(-LOG_ODDS) < 0.0 { 1.0 } else { logistic(-crossing(-LOG_ODDS, LOG_ODDS, gap)) }
}

/// Bounds are sought between rates of 1e-26 and 1 - 1e-26.
const LOG_ODDS: f64 = 60.0;

fn logistic(log_odds: f64) -> f64 {
    1.0 / (1.0 + (-log_odds).exp())
}

#[derive(Clone, Copy)]
enum Side {
    Above,
    Below,
}

fn tilted(n: f64, x: f64, p0: f64, side: Side) -> f64 {
    let (Some(n), Some(x), false) = (count(n), count(x), p0.is_nan()) else { return 0.0 };
    let mut wealth = Wealth::default();
    match side {
        Side::Above => wealth.tilt_up(x.min(n), n, p0.clamp(0.0, 1.0), 1.0),
        Side::Below => wealth.tilt_down(x.min(n), n, p0.clamp(0.0, 1.0)),
    }
    wealth.log_e()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stats::testing::{binomial_expectation, multinomial_expectation};
    use proptest::prelude::*;

    #[test]
    fn threshold_expectation_at_the_boundary_is_one() {
        for p0 in [0.0005, 0.01, 0.3, 0.9] {
            for n in [1u64, 5, 30] {
                let above = binomial_expectation(n, p0, |x| threshold_log_e(n, x, p0));
                let below = binomial_expectation(n, p0, |x| threshold_drop_log_e(n, x, p0));
                assert!((above - 1.0).abs() < 1e-12, "n={n} p0={p0}: {above}");
                assert!((below - 1.0).abs() < 1e-12, "n={n} p0={p0}: {below}");
            }
        }
    }

    /// Mean of the e-value over all outcomes of `n` units of one stratum.
    fn two_arm_expectation(n: u64, w: f64, p_t: f64, p_c: f64, log_e: impl Fn(f64, f64, f64, f64) -> f64) -> f64 {
        let cells = [w * p_t, w * (1.0 - p_t), (1.0 - w) * p_c, (1.0 - w) * (1.0 - p_c)];
        multinomial_expectation(n, &cells, |c| {
            let [x_t, f_t, x_c, f_c] = [c[0] as f64, c[1] as f64, c[2] as f64, c[3] as f64];
            log_e(x_t + f_t, x_t, x_c + f_c, x_c)
        })
    }

    #[test]
    fn expectation_at_the_boundary_is_one_for_any_baseline() {
        for (w, p_c, null) in [
            (0.05, 0.1, Null::relative(0.0)),
            (0.5, 0.3, Null::relative(0.2)),
            (0.25, 0.02, Null::absolute(0.05)),
            (0.5, 0.3, Null { ratio: 0.5, margin: -0.1 }),
        ] {
            for m in [0.0, 0.02, 0.3, 1.0, 7.0] {
                let p_t = null.ratio * p_c + null.margin;
                let mean = two_arm_expectation(9, w, p_t, p_c, |n_t, x_t, n_c, x_c| log_e(&[Stratum { w, m, n_t, x_t, n_c, x_c }], null));
                assert!((mean - 1.0).abs() < 1e-12, "w={w} m={m} {null:?}: {mean}");
            }
        }
    }

    #[test]
    fn drop_expectation_at_the_boundary_is_one() {
        for (null, m) in [(Null::relative(0.0), 0.0), (Null::relative(-0.1), 0.3), (Null { ratio: 1.0, margin: 0.05 }, 0.2)] {
            let (w, p_c) = (0.3, 0.4);
            let p_t = null.ratio * p_c - null.margin;
            let mean = two_arm_expectation(8, w, p_t, p_c, |n_t, x_t, n_c, x_c| drop_log_e(&[Stratum { w, m, n_t, x_t, n_c, x_c }], null));
            assert!((mean - 1.0).abs() < 1e-12, "{null:?}: {mean}");
        }
    }

    #[test]
    fn safe_expectation_at_the_boundary_is_one_and_agrees_with_the_upper_bounds() {
        for (null, m) in [(Null::relative(0.1), 0.0), (Null::absolute(0.05), 0.3), (Null { ratio: 1.2, margin: -0.1 }, 0.2)] {
            let (w, p_c) = (0.3, 0.4);
            let p_t = null.ratio * p_c + null.margin;
            let mean = two_arm_expectation(8, w, p_t, p_c, |n_t, x_t, n_c, x_c| safe_log_e(&[Stratum { w, m, n_t, x_t, n_c, x_c }], null));
            assert!((mean - 1.0).abs() < 1e-12, "{null:?}: {mean}");
        }
        let data = [stratum(0.2, 0.01, 20_000.0, 300.0, 80_000.0, 800.0)];
        let (ratio, difference) = (ratio_upper_bound(&data, 0.05), difference_upper_bound(&data, 0.05));
        for slack in [-1e-4, 1e-4] {
            assert_eq!(safe_log_e(&data, Null { ratio: ratio + slack, margin: 0.0 }) >= 20f64.ln(), slack > 0.0);
            assert_eq!(safe_log_e(&data, Null::absolute(difference + slack)) >= 20f64.ln(), slack > 0.0);
        }
        assert_eq!(safe_log_e(&data, Null { ratio: 0.0, margin: 0.1 }), 0.0);
    }

    #[test]
    fn label_expectation_given_the_events_is_one() {
        let (n_t, n_c, ratio) = (100.0, 900.0, 1.2);
        let share = ratio * n_t / (ratio * n_t + n_c);
        let mean = binomial_expectation(20, share, |k| label_log_e(k as f64, n_t, (20 - k) as f64, n_c, ratio, 1.0));
        assert!((mean - 1.0).abs() < 1e-12, "{mean}");
    }

    fn stratum(w: f64, m: f64, n_t: f64, x_t: f64, n_c: f64, x_c: f64) -> Stratum {
        Stratum { w, m, n_t, x_t, n_c, x_c }
    }

    #[test]
    fn strata_of_the_same_design_add_up() {
        let whole = stratum(0.2, 0.01, 1_000.0, 15.0, 4_000.0, 38.0);
        let parts = [stratum(0.2, 0.01, 400.0, 4.0, 1_000.0, 8.0), stratum(0.2, 0.01, 600.0, 11.0, 3_000.0, 30.0)];
        let null = Null::relative(0.1);
        assert!((log_e(&[whole], null) - log_e(&parts, null)).abs() < 1e-12);
        let mut kept = Wealth::default();
        for part in &parts {
            Factors::new(part.w, part.m, null).bet(&mut kept, part);
        }
        assert!((kept.log_e() - log_e(&parts, null)).abs() < 1e-13);
    }

    #[test]
    fn a_mix_of_strata_is_not_fooled_by_a_baseline_that_moves_with_the_allocation() {
        // Equal arms in both periods; pooled, treatment would show 1.5% against 1.1%.
        let strata = [stratum(0.05, 0.01, 5_000.0, 50.0, 95_000.0, 950.0), stratum(0.5, 0.01, 5_000.0, 100.0, 5_000.0, 100.0)];
        assert!(log_e(&strata, Null::relative(0.0)) < 0.5);
    }

    #[test]
    fn no_evidence_without_concurrent_control() {
        for w in [0.0, 1.0, -3.0, f64::NAN] {
            assert!(log_e(&[stratum(w, 0.01, 1e6, 5e5, 0.0, 0.0)], Null::relative(0.0)).abs() < 1e-14);
        }
    }

    #[test]
    fn bounds_of_two_arms_enclose_the_truth_and_mirror_each_other() {
        let data = [stratum(0.2, 0.01, 20_000.0, 300.0, 80_000.0, 800.0)];
        let (low, high) = (ratio_lower_bound(&data, 0.05), ratio_upper_bound(&data, 0.05));
        assert!(1.0 < low && low < 1.5 && 1.5 < high && high < 2.2, "{low} {high}");
        let (low, high) = (difference_lower_bound(&data, 0.05), difference_upper_bound(&data, 0.05));
        assert!(0.0 < low && low < 0.005 && 0.005 < high && high < 0.012, "{low} {high}");
        let none = [stratum(0.2, 0.0, 0.0, 0.0, 0.0, 0.0)];
        assert_eq!((ratio_lower_bound(&none, 0.05), ratio_upper_bound(&none, 0.05)), (0.0, f64::INFINITY));
        assert_eq!((difference_lower_bound(&none, 0.05), difference_upper_bound(&none, 0.05)), (-1.0, 1.0));
    }

    #[test]
    fn baselines_refresh_on_doublings() {
        let at: Vec<u64> = [0, 255, 256, 511, 512, 1_000_000, u64::MAX].into_iter().map(next_refresh).collect();
        assert_eq!(at, [256, 256, 512, 512, 1_024, 1_048_576, u64::MAX]);
        assert_eq!(next_baseline(255, 9, Some(0.02)), 0.02);
        assert_eq!(next_baseline(1_000, 10, Some(0.02)), 0.01);
    }

    #[test]
    fn threshold_bounds_enclose_the_rate_and_say_nothing_without_data() {
        assert_eq!((threshold_lower_bound(0, 0, 0.05, 1.0), threshold_upper_bound(0, 0, 0.05, 1.0)), (0.0, 1.0));
        assert_eq!(threshold_lower_bound(100, 5, 0.0, 1.0), 0.0);
        let (low, high) = (threshold_lower_bound(10_000, 100, 0.05, 1.0), threshold_upper_bound(10_000, 100, 0.05, 1.0));
        assert!(0.005 < low && low < 0.01 && 0.01 < high && high < 0.02, "{low} {high}");
        assert!((threshold_log_e(10_000, 100, low) - 20f64.ln()).abs() < 1e-9);
        assert!((threshold_drop_log_e(10_000, 100, high) - 20f64.ln()).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn two_arms_never_nan(v: [f64; 6], ratio: f64, margin: f64, deff: f64) {
            let s = stratum(v[0], v[1], v[2], v[3], v[4], v[5]);
            let near = stratum(v[0].abs() % 1.0, v[1].abs() % 1.0, v[2], v[3], v[4], v[5]);
            for s in [s, near, s.deflated(deff)] {
                for null in [Null { ratio, margin }, Null::relative(ratio % 1.0), Null::absolute(margin % 1.0)] {
                    prop_assert!(!log_e(&[s], null).is_nan());
                    prop_assert!(!drop_log_e(&[s], null).is_nan());
                    prop_assert!(!safe_log_e(&[s], null).is_nan());
                }
            }
            prop_assert!(!label_log_e(v[2], v[3], v[4], v[5], ratio, deff).is_nan());
        }

        #[test]
        fn two_arms_finite_in_range(
            w in 0.001..0.999f64, m in 0.0..1.0f64, n in 0u32..1_000_000_000, shares: [u16; 3],
            ratio in 0.0..20.0f64, margin in -0.9..0.9f64,
        ) {
            let share = shares.map(|s| f64::from(s) / 65_535.0);
            let (n_t, n_c) = (f64::from(n) * share[0], f64::from(n) * (1.0 - share[0]));
            let s = stratum(w, m, n_t, n_t * share[1], n_c, n_c * share[2]);
            let null = Null { ratio, margin };
            prop_assert!(log_e(&[s], null).is_finite());
            prop_assert!(drop_log_e(&[s], null).is_finite());
        }

        #[test]
        fn the_cheap_bound_is_one(
            w in 0.01..0.99f64, m: [f64; 2], n in 0u32..100_000, shares: [u16; 6], ratio in 0.5..2.0f64, margin in -0.1..0.1f64,
        ) {
            let share = shares.map(|s| f64::from(s) / 65_535.0);
            let of = |m: f64, s: &[f64]| stratum(w, (m % 1.0).abs(), f64::from(n) * s[0], f64::from(n) * s[0] * s[1], f64::from(n), f64::from(n) * s[2]);
            let strata = [of(m[0], &share[..3]), of(m[1], &share[3..])];
            for null in [Null { ratio, margin }, Null::relative(0.1), Null::absolute(0.005)] {
                for strata in [&strata[..], &strata[..1]] {
                    let (exact, drop) = (log_e(strata, null), drop_log_e(strata, null));
                    prop_assert!(log_e_at_most(strata, null) >= exact - 1e-9 * (1.0 + exact.abs()), "{exact}");
                    prop_assert!(drop_log_e_at_most(strata, null) >= drop - 1e-9 * (1.0 + drop.abs()), "{drop}");
                }
            }
        }

        #[test]
        fn an_event_of_treatment_is_evidence_and_one_of_control_against(
            w in 0.01..0.99f64, m in 0.0..0.5f64, n in 1u32..100_000, x in 0u32..1_000,
        ) {
            let (n, x) = (f64::from(n), f64::from(x.min(n - 1)));
            let null = Null::relative(0.1);
            let before = log_e(&[stratum(w, m, n, x, n, x)], null);
            prop_assert!(log_e(&[stratum(w, m, n, x + 1.0, n, x)], null) >= before);
            prop_assert!(log_e(&[stratum(w, m, n, x, n, x + 1.0)], null) <= before);
        }

        #[test]
        fn threshold_never_nan(n: u64, x: u64, p0: f64, alpha: f64) {
            prop_assert!(!threshold_log_e(n, x, p0).is_nan());
            prop_assert!(!threshold_drop_log_e(n, x, p0).is_nan());
            let (low, high) = (threshold_lower_bound(n, x, alpha, 1.0), threshold_upper_bound(n, x, alpha, 1.0));
            prop_assert!((0.0..=1.0).contains(&low) && (0.0..=1.0).contains(&high));
        }

        #[test]
        fn a_further_hit_raises_the_evidence_and_a_miss_lowers_it(n in 1u64..1_000_000_000, share in 0.0..1.0f64, p0 in 0.0001..0.9f64) {
            let x = (n as f64 * share) as u64;
            prop_assert!(threshold_log_e(n + 1, x + 1, p0) >= threshold_log_e(n, x, p0));
            prop_assert!(threshold_log_e(n + 1, x, p0) <= threshold_log_e(n, x, p0));
        }
    }
}
