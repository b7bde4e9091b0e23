//! Statistical sense: what is well written and would still mislead.

use super::diagnostic::{Faults, quote};
use super::lower::Context;
use super::metric::{Measure, Metric, built_in};
use super::quantity::number;
use super::rollout::Rollout;
use super::yaml::{Entry, Node};
use crate::engine::plan::{Phase, Signal, Statistic, Unit};
use crate::engine::time::Millis;

/// A greater `alpha` is hardly a promise.
const MUCH: f64 = 0.1;

/// A metric that is compared with the baseline bucket or bounded, and where the file says so.
struct Watched<'n> {
    name: &'n Node,
    metric: Metric,
    /// Whether it is compared with the baseline bucket.
    relative: bool,
}

/// Reports what cannot work; and, in a file without errors, what is unwise.
pub(super) fn check(context: &Context<'_>, ends: Option<Millis>, faults: &mut Faults) {
    let analysis = |key: &str| context.root.get("analysis").and_then(|a| a.get(key));
    let is = |node: &&Node, word: &str| node.text() == Some(word);
    if let Some(method) = analysis("method").filter(|m| is(m, "fixed_horizon") && ends.is_none()) {
        let fault =
            faults.at(&method.span, "GR2602", "`fixed_horizon` without an end").with_label("it looks once, when the experiment ends");
        faults.push(fault.with_help("add `overview.ends`, or write `method: sequential`, which may look at any time"));
    }
    if faults.has_errors() {
        return;
    }
    let watched = watched(context);
    if let Some(method) = analysis("method").filter(|m| is(m, "bayesian")) {
        let label = "acts as soon as harm is likely, however often it looks: more false alarms than `alpha`";
        let fault = faults.at(&method.span, "GR2601", "`bayesian` keeps no budget of false alarms").with_label(label);
        faults.push(fault.with_help("`method: sequential` stays within `alpha` under continuous looking").as_warning());
    }
    let much = |node: &&Node| node.text().and_then(number).is_some_and(|alpha| alpha > MUCH);
    if let Some(alpha) = analysis("alpha").filter(much) {
        let fault = faults.at(&alpha.span, "GR2616", "a budget of false alarms that promises little");
        let fault = fault.with_label("the chance that a harmless experiment is stopped");
        faults.push(fault.with_help("people stop believing alarms of which more than one in ten is false: 0.01 to 0.05").as_warning());
    }
    let hypotheses = watched.len() * context.buckets.len().saturating_sub(1);
    if let Some(correction) = analysis("correction").filter(|c| is(c, "none") && hypotheses > 1) {
        let label = format!("each of {hypotheses} comparisons may use up all of `alpha`");
        let fault = faults.at(&correction.span, "GR2601", "`correction: none` keeps no budget of false alarms").with_label(label);
        faults.push(fault.with_help("`holm` shares `alpha` among them, and hands on what is not needed").as_warning());
    }
    // A primary metric has a sample size for each segment.
    let is_used = watched.iter().any(|w| w.relative) || context.root.get("success").is_some_and(|s| s.get("primary").is_some());
    if let Some(segments) = analysis("segments").filter(|_| !is_used) {
        let fault = faults.at(&segments.span, "GR2610", "segments, and nothing that is compared in them");
        let fault = fault.with_label("limits look at all units");
        faults.push(fault.with_help("add `max_increase` to a guardrail").as_warning());
    }
    check_tail(&watched, faults);
    check_primary(context, &watched, faults);
    for entry in context.root.get("metrics").map_or(&[][..], Node::entries) {
        check_metric(entry, &watched, faults);
    }
}

/// When a rollout is full and nothing is held back there is no baseline to compare with: only limits are left.
pub(super) fn check_watch(context: &Context<'_>, rollout: &Rollout, faults: &mut Faults) {
    let full = |phase: &Phase| phase.weights.as_ref().is_some_and(|w| context.buckets.iter().zip(w).any(|(b, w)| b.baseline && *w <= 0.0));
    let limits = context.root.get("guardrails").map_or(&[][..], Node::list).iter().any(|g| g.get("limit").is_some());
    let watch = context.root.get("rollout").and_then(|r| r.get("watch_after_full"));
    if let Some(watch) = watch.filter(|_| !limits && !faults.has_errors() && rollout.phases.iter().any(full)) {
        let fault = faults.at(&watch.span, "GR2607", "nothing to watch after the full rollout");
        let fault = fault.with_label("the baseline has no traffic then, and no guardrail has a `limit`");
        faults.push(fault.with_help("add a `limit`, or `eligibility.holdback: 5%` to compare with").as_warning());
    }
}

fn watched<'n>(context: &Context<'n>) -> Vec<Watched<'n>> {
    let metric = |name: &str| built_in(name, 0, None).or_else(|| context.metrics.get(name).cloned());
    let of = |node: &'n Node, relative: bool| {
        let name = node.get("metric")?;
        Some(Watched { name, metric: metric(name.text()?)?, relative })
    };
    let guardrails = context.root.get("guardrails").map_or(&[][..], Node::list);
    let primary = context.root.get("success").and_then(|s| s.get("primary")).filter(|p| p.get("stop_on_negative").is_some());
    guardrails.iter().filter_map(|g| of(g, g.get("max_increase").is_some())).chain(primary.and_then(|p| of(p, true))).collect()
}

/// One request in a hundred that times out moves p95 by a few percent only: within most margins.
fn check_tail(watched: &[Watched<'_>], faults: &mut Faults) {
    let sees_timeouts = |w: &Watched<'_>| match w.metric.statistic {
        Statistic::Quantile { ppm } => ppm >= 990_000,
        Statistic::Share => w.metric.higher_is_worse,
        _ => false,
    };
    if watched.iter().any(sees_timeouts) {
        return;
    }
    if let Some(w) = watched.iter().find(|w| w.relative && w.metric.measure == Measure::Time) {
        let name = w.name.text().unwrap_or_default();
        let fault = faults.at(&w.name.span, "GR2603", format!("{} does not see 1% of requests that time out", quote(name)));
        let fault = fault
            .with_label("nothing beside it does")
            .with_help("add `{metric: latency_p99, max_increase: 20%}` or a guardrail on `error_rate`");
        faults.push(fault.as_warning());
    }
}

/// Few large values move a mean, so that it takes long to prove its fall; the share of units that buy at all falls first.
fn check_primary(context: &Context<'_>, watched: &[Watched<'_>], faults: &mut Faults) {
    let Some(stop) = context.root.get("success").and_then(|s| s.get("primary")).and_then(|p| p.get("stop_on_negative")) else { return };
    // The primary metric is the last one watched.
    let is_mean = watched.last().is_some_and(|w| w.metric.statistic == Statistic::Mean);
    let converts = |w: &Watched<'_>| w.metric.statistic == Statistic::Share && !w.metric.higher_is_worse;
    if is_mean && !watched.iter().any(converts) {
        let fault =
            faults.at(&stop.span, "GR2604", "a mean alone notices a loss late").with_label("no guardrail on a conversion rate beside it");
        let help = "define the rate of units with the outcome (`kind: rate, unit: user, better: up`) and guard it with `max_increase`";
        faults.push(fault.with_help(help).as_warning());
    }
}

fn check_metric(entry: &Entry, watched: &[Watched<'_>], faults: &mut Faults) {
    let compared = watched.iter().find(|w| w.relative && w.name.text() == Some(&entry.key));
    let Some(Watched { metric, .. }) = compared else { return };
    match &metric.signal {
        Signal::Moments { unit: Unit::Event, .. } if entry.value.get("unit").is_none() => {
            let fault =
                faults.at(&entry.key_span, "GR2605", format!("{} is a mean of events, which are not independent", quote(&entry.key)));
            let fault = fault.with_label("several events of one user count as if they were of several");
            faults.push(fault.with_help("`unit: user` sums each user's values first; `unit: event` if no user has two").as_warning());
        }
        Signal::Rate { unit: Unit::User, .. } if !metric.higher_is_worse && metric.expected.is_none() => {
            let fault = faults.at(&entry.key_span, "GR2606", format!("no expected rate of {}", quote(&entry.key)));
            let fault = fault.with_label("until 256 units of the baseline bucket are in, the test supposes that it is rare");
            faults.push(fault.with_help("add what you know, for example `baseline: 30%`: any value keeps the test valid").as_note());
        }
        _ => {}
    }
}
