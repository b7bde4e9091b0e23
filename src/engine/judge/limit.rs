//! Absolute limits: the one-sample test of each kind of metric over its window, and its mirror image for `safe`.
//!
//! A window slides, so each of its positions is a new start of the test. By the union bound over the starts, the chance that any of them
//! ever alarms stays within `alpha` when the threshold is `ln(starts / alpha)` (Shin, Ramdas, Rinaldo 2024, e-detectors, section 2).

use super::window::{Share, Window};
use crate::engine::decision::Evidence;
use crate::engine::histogram::{HIGHEST, thousandths};
use crate::engine::plan::{Guardrail, Statistic};
use crate::engine::stats::exceedance::Exceedance;
use crate::engine::stats::{rates, zero_tolerance};
use crate::engine::time::Pane;

/// What a window says about its limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Observations in the window: values, trials, or (for counts) exposed units.
    pub n: u64,
    /// Log e-value against "the limit holds".
    pub over: f64,
    /// Log e-value against "the limit is exceeded".
    pub under: f64,
    /// Whether the plain value lies beyond the limit.
    pub beyond: bool,
    pub test: &'static str,
    pub evidence: Evidence,
}

/// Traffic of the bucket that counts are seen against.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub units: u64,
    /// The bucket is large enough for "none seen" to mean something.
    pub enough: bool,
}

/// Reads the guardrail's limit off its window; `None` when the guardrail has no limit or the statistic has no test.
/// `test` is that of the guardrail's quantile, where it has one; `deff` the design effect of clustered observations, at least 1.
pub fn read(guardrail: &Guardrail, test: Option<&Exceedance>, window: &Window, traffic: Traffic, pane: Pane, deff: f64) -> Option<Reading> {
    let limit = guardrail.limit?;
    match guardrail.statistic {
        Statistic::Quantile { ppm } => {
            let (n, s) = exceeding(window, limit)?;
            Some(quantile(test?, n, s, ppm, guardrail.higher_is_worse, deff))
        }
        Statistic::Share => match (window.share(), window.cohorts(pane)) {
            (Some(all), _) => Some(share(all, limit, guardrail.higher_is_worse, deff)),
            (None, Some((matured, recent))) => Some(abandonment(matured, recent, limit, deff)),
            (None, None) => None,
        },
        Statistic::PerUnit => Some(per_unit(window.count()?, traffic.units, limit)),
        Statistic::Count | Statistic::Exposures => Some(count(window.count()?, traffic, limit)),
        Statistic::Mean => None,
    }
}

/// Whether the plain value lies beyond the limit, as [`read`] says it at a higher price. Where it does not, every bet of the tests has lost,
/// and there is no evidence of a breach.
pub fn beyond(guardrail: &Guardrail, window: &Window, traffic: Traffic, pane: Pane) -> Option<bool> {
    let (limit, higher_is_worse) = (guardrail.limit?, guardrail.higher_is_worse);
    match guardrail.statistic {
        Statistic::Quantile { ppm } => exceeding(window, limit).map(|(n, s)| quantile_beyond(n, s, ppm, higher_is_worse)),
        Statistic::Share => match (window.share(), window.cohorts(pane)) {
            (Some(all), _) => Some(share_beyond(all, limit, higher_is_worse)),
            (None, Some((matured, recent))) => Some(share_beyond(matured, limit, true) || share_beyond(recent, limit, true)),
            (None, None) => None,
        },
        Statistic::PerUnit => window.count().map(|x| per_unit_beyond(x, traffic.units, limit)),
        Statistic::Count | Statistic::Exposures => window.count().map(|n| n as f64 > limit),
        Statistic::Mean => None,
    }
}

/// Values in the window, and those of them above the limit.
fn exceeding(window: &Window, limit: f64) -> Option<(u64, u64)> {
    let (bins, (edge, _)) = (window.bins()?, thousandths(limit));
    Some((bins.count(), bins.above(edge.min(HIGHEST))))
}

fn quantile_beyond(n: u64, s: u64, ppm: u32, higher_is_worse: bool) -> bool {
    let above = u128::from(s) * 1_000_000 > u128::from(n) * u128::from(1_000_000 - ppm);
    n > 0 && above == higher_is_worse
}

/// Hits (or, where a limit is a floor, misses) and the share of them that is allowed.
fn worse(all: Share, limit: f64, higher_is_worse: bool) -> (u64, f64) {
    if higher_is_worse { (all.x, limit) } else { (all.n - all.x.min(all.n), 1.0 - limit) }
}

fn share_beyond(all: Share, limit: f64, higher_is_worse: bool) -> bool {
    let (x, p0) = worse(all, limit, higher_is_worse);
    all.n > 0 && x as f64 > p0 * all.n as f64
}

fn per_unit_beyond(x: u64, units: u64, limit: f64) -> bool {
    units > 0 && x as f64 > limit * units as f64
}

/// H0: the quantile is at most the limit, that is, at most the share `1 - ppm / 1e6` of the values exceeds it.
fn quantile(test: &Exceedance, n: u64, s: u64, ppm: u32, higher_is_worse: bool, deff: f64) -> Reading {
    let (effective_s, effective_n) = (s as f64 / deff, n as f64 / deff);
    let (over, under) = (test.over(effective_s, effective_n), test.under(effective_s, effective_n));
    let q0_ppm = 1_000_000 - ppm;
    let (over, under) = if higher_is_worse { (over, under) } else { (under, over) };
    let side = if higher_is_worse { "over" } else { "under" };
    Reading {
        n,
        over,
        under,
        beyond: quantile_beyond(n, s, ppm, higher_is_worse),
        test: "exceedance",
        evidence: Evidence::Exceedance { side: side.into(), n, s, q0_ppm, deff },
    }
}

/// H0: the rate is at most the limit.
pub(super) fn share(all: Share, limit: f64, higher_is_worse: bool, deff: f64) -> Reading {
    let (x, p0) = worse(all, limit, higher_is_worse);
    Reading {
        n: all.n,
        over: rates::threshold_log_e_deflated(all.n, x, p0, deff),
        under: rates::threshold_drop_log_e_deflated(all.n, x, p0, deff),
        beyond: share_beyond(all, limit, higher_is_worse),
        test: "threshold",
        evidence: Evidence::Threshold { n: all.n, x, p0, deff },
    }
}

/// The worse of two looks, for the price of ln 2: workflows whose limit has passed, and explicit abandonment among the recent ones.
/// Only the first can tell that all is well.
fn abandonment(matured: Share, recent: Share, limit: f64, deff: f64) -> Reading {
    let (old, new) = (share(matured, limit, true, deff), share(recent, limit, true, deff));
    let worse = if new.over > old.over { new.clone() } else { old.clone() };
    Reading {
        n: matured.n + recent.n,
        over: worse.over - std::f64::consts::LN_2,
        under: old.under,
        beyond: old.beyond || new.beyond,
        ..worse
    }
}

/// H0: at most `limit` events per exposed unit in the window. Events never count ahead of their units.
fn per_unit(x: u64, units: u64, limit: f64) -> Reading {
    let mu0 = limit * units as f64;
    let (over, under) = match units {
        0 => (0.0, 0.0),
        _ => (zero_tolerance::poisson_log_e(x, mu0), zero_tolerance::poisson_drop_log_e(x, mu0)),
    };
    let beyond = per_unit_beyond(x, units, limit);
    Reading { n: units, over, under, beyond, test: "poisson", evidence: Evidence::Poisson { x, mu0 } }
}

/// More than `limit` events are a breach as a matter of policy: there is no chance to account for.
fn count(count: u64, traffic: Traffic, limit: f64) -> Reading {
    let beyond = count as f64 > limit;
    Reading {
        n: traffic.units.max(count),
        over: if beyond { f64::INFINITY } else { 0.0 },
        under: if !beyond && traffic.enough { f64::INFINITY } else { 0.0 },
        beyond,
        test: "count",
        evidence: Evidence::Count { count, allowed: limit as u64 },
    }
}

/// The guardrail's value in its own unit, for people: `None` without data.
pub fn value(guardrail: &Guardrail, window: &Window, traffic: Traffic, pane: Pane) -> Option<f64> {
    let ratio = |s: Share| (s.n > 0).then(|| s.x as f64 / s.n as f64);
    match guardrail.statistic {
        Statistic::Quantile { ppm } => Some(window.bins()?.quantile(ppm)? as f64 / 1_000.0),
        Statistic::Share => match window.cohorts(pane) {
            Some((matured, recent)) => ratio(matured).or_else(|| ratio(recent)),
            None => ratio(window.share()?),
        },
        Statistic::PerUnit => ratio(Share { n: traffic.units, x: window.count()? }),
        Statistic::Count | Statistic::Exposures => window.count().map(|n| n as f64),
        // The evidence knows it.
        Statistic::Mean => None,
    }
}

/// Observations behind [`value`].
pub fn observations(guardrail: &Guardrail, window: &Window, traffic: Traffic, pane: Pane) -> u64 {
    match guardrail.statistic {
        Statistic::Quantile { .. } => window.bins().map_or(0, |b| b.count()),
        Statistic::Share => match window.cohorts(pane) {
            Some((matured, recent)) => matured.n + recent.n,
            None => window.share().map_or(0, |s| s.n),
        },
        Statistic::PerUnit | Statistic::Count | Statistic::Exposures => traffic.units,
        Statistic::Mean => window.values().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_far_over_its_limit_alarms_and_one_far_under_is_cleared() {
        let bad = share(Share { n: 400, x: 80 }, 0.05, true, 1.0);
        assert!(bad.over > 22.0 && bad.beyond && bad.under < 1.0, "{bad:?}");
        let good = share(Share { n: 2_000, x: 10 }, 0.05, true, 1.0);
        assert!(good.under > 22.0 && !good.beyond && good.over < 1.0, "{good:?}");
    }

    #[test]
    fn better_up_turns_the_limit_into_a_floor() {
        let low = share(Share { n: 400, x: 80 }, 0.5, false, 1.0);
        assert!(low.over > 22.0 && low.beyond, "{low:?}");
        let slow = quantile(&Exceedance::of_quantile(500_000), 1_000, 0, 500_000, false, 1.0);
        assert!(slow.over > 22.0 && slow.beyond, "{slow:?}");
    }

    proptest::proptest! {
        /// What lets the Judge leave the evidence unweighed.
        #[test]
        fn a_value_within_its_limit_is_no_evidence_of_a_breach(
            n in 0u64..100_000, part in 0.0..1.0f64, limit in 0.0001..1.0f64, ppm in 1u32..1_000_000, up in proptest::bool::ANY,
        ) {
            let x = (n as f64 * part) as u64;
            let all = Share { n, x };
            let readings = [
                share(all, limit, up, 1.0),
                quantile(&Exceedance::of_quantile(ppm), n, x, ppm, up, 1.0),
                per_unit(x, n, limit),
                abandonment(all, Share { n: x, x: n.min(x) / 2 }, limit, 1.0),
            ];
            for reading in readings {
                proptest::prop_assert!(reading.beyond || reading.over <= 1e-6, "{:?}", reading);
            }
        }
    }

    #[test]
    fn no_data_is_no_evidence() {
        for reading in [
            share(Share::default(), 0.05, true, 1.0),
            quantile(&Exceedance::of_quantile(950_000), 0, 0, 950_000, true, 1.0),
            per_unit(50, 0, 0.1),
        ] {
            assert!(reading.over <= 0.0 && reading.under <= 0.0 && !reading.beyond, "{reading:?}");
        }
    }

    #[test]
    fn falling_traffic_is_not_abandonment() {
        let reading = abandonment(Share { n: 1_000, x: 20 }, Share::default(), 0.05, 1.0);
        assert!(!reading.beyond && reading.over < 1.0);
        let explicit = abandonment(Share::default(), Share { n: 200, x: 120 }, 0.05, 1.0);
        assert!(explicit.over > 22.0, "{explicit:?}");
    }
}
