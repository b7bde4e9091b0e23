//! What an experiment has time and units for, by what its file expects: advice before it begins.

use super::Planning;
use super::diagnostic::{Diagnostic, Faults, quote};
use super::guardrails::Guardrails;
use super::lower::{Context, span};
use super::reach::percent;
use super::rollout::Rollout;
use super::yaml::Node;
use crate::engine::plan::{Margin, Phase, Signal, Statistic, Unit};
use crate::engine::stats::size;
use crate::engine::time::Millis;
use crate::report::thousands;
use std::ops::Range;

const DAY: f64 = 86_400_000.0;
/// Chance to detect an effect where the file does not say: as `simulate` supposes.
const POWER: f64 = 0.8;

/// What the rest of the file says that matters here.
pub(super) struct Given<'g> {
    pub guardrails: &'g Guardrails,
    pub rollout: &'g Rollout,
    pub alpha: f64,
    pub min_units: u64,
}

/// Reports, in a file without errors, what does not fit between start and end.
pub(super) fn check(context: &Context<'_>, given: &Given<'_>, faults: &mut Faults) {
    if faults.has_errors() {
        return;
    }
    let planning = Planning::read(context.root);
    check_warm_up(context, given.rollout, faults);
    let Some(length) = planning.length.filter(|length| *length > 0) else { return };
    check_spans(context, given, length, faults);
    let Some(per_day) = planning.units_per_day.filter(|units| *units > 0.0) else { return };
    let life = Life { days: length as f64 / DAY, per_day, phases: &given.rollout.phases, context };
    check_min_units(&life, given, faults);
    check_sizes(&life, &planning, given, faults);
}

/// A warm-up that leaves nothing of a phase.
fn check_warm_up(context: &Context<'_>, rollout: &Rollout, faults: &mut Faults) {
    let Some(at) = context.root.get("rollout").and_then(|r| r.get("warm_up")) else { return };
    if let Some(phase) = rollout.phases.iter().find(|p| p.span.is_some_and(|span| span <= rollout.warm_up)) {
        let fault = faults.at(&at.span, "GR2615", format!("the phase {} is over before its warm-up", quote(&phase.name)));
        faults.push(fault.with_label("nothing that is seen in it is judged").as_warning());
    }
}

fn check_spans(context: &Context<'_>, given: &Given<'_>, length: Millis, faults: &mut Faults) {
    let root = context.root;
    let mut too_long: Vec<(Range<usize>, &str)> = Vec::new();
    for guardrail in root.get("guardrails").map_or(&[][..], Node::list) {
        let keys = [("window", "the window is never full"), ("within", "no workflow can run out of time before the end")];
        let long = |key: &str| guardrail.get(key).filter(|n| span(n).is_some_and(|span| span > length));
        too_long.extend(keys.iter().filter_map(|(key, why)| Some((long(key)?.span.clone(), *why))));
    }
    let rollout = |key: &str| root.get("rollout").and_then(|r| r.get(key));
    let ramp: Millis = given.rollout.phases.iter().filter_map(|p| p.span).sum();
    too_long.extend(rollout("phases").filter(|_| ramp > length).map(|n| (n.span.clone(), "the last phases lie behind the end")));
    too_long.extend(rollout("warm_up").filter(|_| given.rollout.warm_up >= length).map(|n| (n.span.clone(), "nothing is judged")));
    for entry in root.get("metrics").map_or(&[][..], Node::entries) {
        let day = entry.value.get("day").and_then(Node::text).and_then(|d| d.parse::<Millis>().ok());
        let late = day.is_some_and(|day| (day + 1) * DAY as Millis > length);
        too_long.extend(entry.value.get("day").filter(|_| late).map(|n| (n.span.clone(), "a unit counts when that day is over")));
    }
    for (span, why) in too_long {
        let message = format!("longer than the experiment, which lasts {} days", round(length as f64 / DAY));
        let fault = faults.at(&span, "GR2615", message).with_label(why);
        faults.push(fault.as_warning());
    }
}

/// An experiment and its units.
struct Life<'n> {
    days: f64,
    /// Units that are exposed in a day of full traffic.
    per_day: f64,
    phases: &'n [Phase],
    context: &'n Context<'n>,
}

impl Life<'_> {
    /// Share of the traffic and length in days of each step of the ramp; where the phases say the shares of the buckets, all takes part.
    fn ramp(&self) -> Vec<(f64, Option<f64>)> {
        let step = |p: &Phase| (if p.weights.is_some() { 1.0 } else { p.traffic }, p.span.map(|span| span as f64 / DAY));
        if self.phases.is_empty() { vec![(1.0, None)] } else { self.phases.iter().map(step).collect() }
    }

    fn weights(&self) -> Vec<f64> {
        self.context.buckets.iter().map(|b| b.weight).collect()
    }

    /// Units of each bucket until the end.
    fn units(&self) -> Vec<f64> {
        let (ramp, designed) = (self.ramp(), self.weights());
        let (mut units, mut rest) = (vec![0.0; designed.len()], self.days);
        for (i, (traffic, length)) in ramp.iter().enumerate() {
            let days = length.filter(|_| i + 1 < ramp.len()).unwrap_or(rest).min(rest);
            let weights = self.phases.get(i).and_then(|p| p.weights.as_ref()).unwrap_or(&designed);
            units.iter_mut().zip(weights).for_each(|(units, weight)| *units += self.per_day * traffic * days * weight);
            rest -= days;
        }
        units
    }

    /// Units that a test of fixed horizon needs for this difference of a rate, where they take longer to come than the experiment lasts.
    fn too_many(&self, (from, to): (f64, f64), alpha: f64, power: f64) -> Option<(f64, f64)> {
        // A phase that leaves a bucket without traffic compares nothing.
        let compares = |w: &&Vec<f64>| w.iter().all(|share| *share > 0.0);
        let weights = self.phases.iter().rev().filter_map(|p| p.weights.as_ref()).find(compares).cloned().unwrap_or_else(|| self.weights());
        let baseline = self.context.buckets.iter().position(|b| b.baseline)?;
        let variance = |p: f64| p * (1.0 - p);
        let total = size::fixed_horizon(&weights, baseline, (variance(from), variance(to)), (to - from).abs(), alpha, power);
        let days = size::days(self.per_day, &self.ramp(), total);
        (days > self.days).then_some((total, days))
    }
}

fn check_min_units(life: &Life<'_>, given: &Given<'_>, faults: &mut Faults) {
    let compared = given.guardrails.guardrails.iter().any(|g| g.max_increase.is_some());
    let least = life.units().into_iter().fold(f64::INFINITY, f64::min);
    let at = life.context.root.get("analysis").and_then(|a| a.get("min_units"));
    let at = at.or_else(|| life.context.root.get("success")?.get("primary")?.get("expected_units"));
    if let Some(at) = at.filter(|_| compared && least < given.min_units as f64) {
        let [wanted, least] = [given.min_units, least.max(0.0) as u64].map(thousands);
        let message = format!("comparisons wait for {wanted} units of each bucket, and {least} will come");
        let fault = faults.at(&at.span, "GR2614", message).with_label(format!("to the smallest bucket, in {} days", round(life.days)));
        faults.push(fault.with_help("a longer experiment, larger shares, or fewer `min_units`").as_warning());
    }
}

fn check_sizes(life: &Life<'_>, planning: &Planning, given: &Given<'_>, faults: &mut Faults) {
    let power = planning.power.filter(|p| *p > 0.0 && *p < 1.0).unwrap_or(POWER);
    let root = life.context.root;
    let told = |(total, days): (f64, f64)| {
        let [total, per_day] = [total, life.per_day].map(|n| thousands(n.round() as u64));
        format!("{total} units, {} days at the expected {per_day} a day; it lasts {}", round(days), round(life.days))
    };
    let finish = |fault: Diagnostic, size| {
        let fault = fault.with_label(format!("a test of fixed horizon takes {}", told(size)));
        fault
            .with_help("let it run longer, or look for larger changes; `guardraild simulate` shows what this rule finds, and when")
            .as_warning()
    };
    let primary = root.get("success").and_then(|s| s.get("primary"));
    let rate =
        planning.primary.as_ref().and_then(|name| life.context.metrics.get(name)).filter(|m| is_rate_of_users(&m.signal, m.statistic));
    if let (Some(metric), Some(p), Some(mde)) = (rate, rate.and_then(|m| m.expected), planning.mde.filter(|mde| *mde > 0.0))
        && let Some(at) = primary.and_then(|p| p.get("mde").or(p.get("metric")))
        && p > 0.0
        && p < 1.0
    {
        let to = if metric.higher_is_worse { p * (1.0 - mde) } else { (p * (1.0 + mde)).min(1.0) };
        if let Some(size) = life.too_many((p, to), given.alpha, power) {
            let what = format!("the experiment ends before it can tell a change of {}", percent(mde));
            faults.push(finish(faults.at(&at.span, "GR2611", what), size));
        }
    }
    let nodes = root.get("guardrails").map_or(&[][..], Node::list);
    for (guardrail, node) in given.guardrails.guardrails.iter().filter(|g| !g.primary).zip(nodes) {
        let rate = is_rate_of_users(&given.guardrails.signals[guardrail.signal], guardrail.statistic);
        let (Some(p), Some(margin), Some(at)) = (guardrail.expected.filter(|_| rate), guardrail.max_increase, node.get("max_increase"))
        else {
            continue;
        };
        let change = match margin {
            Margin::Relative(m) => p * m,
            Margin::Absolute(m) => m,
        };
        let to = if guardrail.higher_is_worse { p + change } else { p - change };
        if change > 0.0
            && p > 0.0
            && p < 1.0
            && to > 0.0
            && to < 1.0
            && let Some(size) = life.too_many((p, to), given.alpha, power)
        {
            let what = format!("the experiment ends before it can tell whether {} keeps its margin", quote(&guardrail.name));
            faults.push(finish(faults.at(&at.span, "GR2611", what), size));
        }
    }
}

fn is_rate_of_users(signal: &Signal, statistic: Statistic) -> bool {
    statistic == Statistic::Share && matches!(signal, Signal::Rate { unit: Unit::User, .. } | Signal::Retention { .. })
}

/// A number of days with a decimal where it matters.
fn round(days: f64) -> f64 {
    if days < 100.0 { (days * 10.0).round() / 10.0 } else { days.round() }
}
