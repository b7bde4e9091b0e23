//! A tree of the right shape into a [`Plan`]: units, names and sums that no table can check.

use super::diagnostic::{Faults, nearest, quote};
use super::metric::{BUILT_IN, Metric};
use super::quantity::{duration, number, per_day, percent, rate};
use super::routes::{self, Routes};
use super::yaml::{Entry, Kind, Node};
use super::{Flag, RuleSet, custom, eligibility, guardrails, life, quality, reach, rollout, segments, sense};
use crate::engine::decision::{Action, Mode};
use crate::engine::plan::{Bucket, Correction, FieldTable, MAX_BUCKETS, Method, Plan, RateLimit};
use crate::engine::time::Millis;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// What the parts of a file need of each other.
pub(super) struct Context<'n> {
    pub root: &'n Node,
    pub metrics: BTreeMap<String, Metric>,
    pub buckets: Vec<Bucket>,
    pub routes: Routes,
    pub mode: Option<Mode>,
}

/// Compiles a checked tree. `None` when anything is wrong with it; all that is wrong is in `faults`.
pub fn lower(
    root: &Node,
    file: &Path,
    fields: &mut FieldTable,
    endpoints: Option<&BTreeSet<String>>,
    faults: &mut Faults,
) -> Option<RuleSet> {
    let overview = root.get("overview");
    let actions = root.get("actions");
    let starts = overview.and_then(|o| o.get("starts")).and_then(instant);
    let ends = overview.and_then(|o| o.get("ends")).and_then(instant);
    check_order(overview, starts, ends, faults);
    let workflow = overview.and_then(|o| o.get("workflow")).and_then(Node::text);
    let custom = custom::read(root.get("metrics"), workflow, fields, faults);
    let context = Context {
        root,
        metrics: custom.metrics,
        buckets: buckets(root.get("buckets"), faults),
        routes: routes::read(actions, endpoints, faults),
        mode: actions.and_then(|a| a.get("mode")).and_then(Node::text).and_then(mode),
    };
    let guardrails = guardrails::read(&context, faults);
    let quality = quality::read(&context, fields, faults);
    let (eligibility, assignment) = eligibility::read(&context, faults);
    let [unconfirmed, undone] = ["unconfirmed", "undone"].map(|key| follow_up(key, &context, faults));
    let rollout = rollout::read(&context, faults);
    let rate_limit = rate_limit(actions, faults);
    check_references(&context, faults);
    let analysis = root.get("analysis");
    let segments = segments::read(analysis, faults);
    sense::check(&context, ends, faults);
    sense::check_watch(&context, &rollout, faults);
    reach::check(&context, &guardrails, faults);
    let alpha = analysis.and_then(|a| a.get("alpha")).and_then(Node::text).and_then(number).unwrap_or(0.01);
    let min_units = whole(analysis.and_then(|a| a.get("min_units"))).map_or(100, u64::from);
    life::check(&context, &life::Given { guardrails: &guardrails, rollout: &rollout, alpha, min_units }, faults);
    if faults.has_errors() {
        return None;
    }
    let plan = Plan {
        experiment: overview?.get("experiment")?.text()?.to_owned(),
        revision: whole(root.get("revision")).unwrap_or(1),
        buckets: context.buckets,
        starts,
        ends,
        phases: rollout.phases,
        holdback: rollout.holdback,
        watch_after_full: rollout.watch_after_full,
        warm_up: rollout.warm_up,
        signals: guardrails.signals,
        guardrails: guardrails.guardrails,
        secondary: guardrails.secondary,
        quality,
        retention: guardrails.retention,
        funnels: custom.funnels,
        eligibility,
        assignment,
        alpha,
        correction: correction(analysis.and_then(|a| a.get("correction")).and_then(Node::text)),
        segments,
        method: method(analysis.and_then(|a| a.get("method")).and_then(Node::text)),
        cuped: analysis.and_then(|a| a.get("cuped")).and_then(Node::boolean) != Some(false),
        min_units,
        mode: context.mode?,
        confirm_within: actions?.get("confirm_within").and_then(span).unwrap_or(120_000),
        unconfirmed,
        undone,
        rate_limit,
    };
    let runbook = root.get("comms").and_then(|c| c.get("runbook")).and_then(Node::text).map(str::to_owned);
    let flag = root.get("instrumentation").and_then(|i| i.get("flag")).map(|flag| {
        let text = |key: &str| flag.get(key).and_then(Node::text).map(str::to_owned);
        Flag { name: text("name"), default: text("default") }
    });
    Some(RuleSet { plan: Arc::new(plan), routes: context.routes, runbook, flag, file: file.to_owned() })
}

/// At most so many rollbacks in a span.
fn rate_limit(actions: Option<&Node>, faults: &mut Faults) -> Option<RateLimit> {
    let node = actions?.get("rate_limit")?.get("rollbacks")?;
    // What is no frequency at all has been reported.
    per_day(node.text()?)?;
    let limit = node.text().and_then(rate).filter(|(n, _)| *n >= 1.0 && n.fract() == 0.0 && *n <= 1e6);
    let Some((rollbacks, within)) = limit else {
        faults.error(&node.span, "GR2203", "a whole number of rollbacks, 1 at least", "such as `3/h`, or `1/day`");
        return None;
    };
    Some(RateLimit { rollbacks: rollbacks as u32, within })
}

/// A duration's milliseconds.
pub(super) fn span(node: &Node) -> Option<Millis> {
    node.text().and_then(duration)
}

/// A percentage as a share.
pub(super) fn share(node: &Node) -> Option<f64> {
    node.text().and_then(percent)
}

/// An action by its name.
pub(super) fn action(node: &Node) -> Option<Action> {
    Some(match node.text()? {
        "hold" => Action::Hold,
        "notify" => Action::Notify,
        "page" => Action::Page,
        "pause" => Action::Pause,
        "rollback" => Action::Rollback,
        "kill" => Action::Kill,
        _ => return None,
    })
}

fn mode(text: &str) -> Option<Mode> {
    match text {
        "observe" => Some(Mode::Observe),
        "enforce" => Some(Mode::Enforce),
        _ => None,
    }
}

fn correction(text: Option<&str>) -> Correction {
    match text {
        Some("bonferroni") => Correction::Bonferroni,
        Some("hierarchical") => Correction::Hierarchical,
        Some("none") => Correction::None,
        _ => Correction::Holm,
    }
}

fn method(text: Option<&str>) -> Method {
    match text {
        Some("bayesian") => Method::Bayesian,
        Some("fixed_horizon") => Method::FixedHorizon,
        _ => Method::Sequential,
    }
}

fn whole(node: Option<&Node>) -> Option<u32> {
    node?.text()?.parse().ok()
}

/// A point in time.
pub(super) fn instant(node: &Node) -> Option<Millis> {
    node.text()?.parse::<jiff::Timestamp>().ok().map(|t| t.as_millisecond())
}

fn check_order(overview: Option<&Node>, starts: Option<Millis>, ends: Option<Millis>, faults: &mut Faults) {
    if let (Some(starts), Some(ends), Some(node)) = (starts, ends, overview.and_then(|o| o.get("ends")))
        && ends <= starts
    {
        faults.error(&node.span, "GR2403", "the experiment ends before it starts", "must be later than `starts`");
    }
}

fn buckets(section: Option<&Node>, faults: &mut Faults) -> Vec<Bucket> {
    let Some(section) = section.filter(|s| matches!(s.kind, Kind::Map(_))) else { return Vec::new() };
    let entries = section.entries();
    if entries.len() < 2 {
        faults.error(&section.span, "GR2104", "an experiment has at least two buckets", "one of them the baseline");
    } else if entries.len() > MAX_BUCKETS {
        faults.error(&entries[MAX_BUCKETS].key_span, "GR2103", format!("{} buckets", entries.len()), format!("{MAX_BUCKETS} at most"));
    }
    check_baseline(entries, faults);
    let weights = weights(entries, faults);
    let bucket = |(entry, weight): (&Entry, f64)| Bucket { name: entry.key.clone(), weight, baseline: is_baseline(entry) };
    entries.iter().zip(weights).map(bucket).collect()
}

fn is_baseline(entry: &Entry) -> bool {
    entry.value.get("baseline").and_then(Node::boolean) == Some(true)
}

fn check_baseline(entries: &[Entry], faults: &mut Faults) {
    let mut marked = entries.iter().filter(|e| is_baseline(e));
    let Some(first) = marked.next() else {
        if let Some(entry) = entries.iter().find(|e| e.key == "control").or(entries.first()) {
            let label = format!("write `{}: {{baseline: true}}` if the others are compared with it", entry.key);
            faults.error(&entry.key_span, "GR2102", "no bucket is the baseline", label);
        }
        return;
    };
    for second in marked {
        let label = format!("{} is one, on line {}", quote(&first.key), faults.line_of(first.key_span.start));
        faults.error(&second.key_span, "GR2102", "a second baseline", label);
    }
}

/// Shares of traffic that add up to 1: as given, or equal.
fn weights(entries: &[Entry], faults: &mut Faults) -> Vec<f64> {
    let given: Vec<Option<&Node>> = entries.iter().map(|e| e.value.get("weight")).collect();
    let equal = vec![1.0 / entries.len().max(1) as f64; entries.len()];
    if given.iter().all(Option::is_none) {
        return equal;
    }
    if let Some(i) = given.iter().position(Option::is_none) {
        faults.error(
            &entries[i].key_span,
            "GR2101",
            format!("{} has no weight, others have", quote(&entries[i].key)),
            "weigh all buckets, or none",
        );
        return equal;
    }
    let shares: Vec<f64> = given.iter().filter_map(|n| share((*n)?)).collect();
    if shares.len() < entries.len() {
        return equal;
    }
    for (node, _) in given.iter().zip(&shares).filter(|(_, share)| **share == 0.0) {
        if let Some(node) = node {
            faults.error(&node.span, "GR2203", "a bucket without traffic", "remove the bucket, or give it a weight");
        }
    }
    let sum: f64 = shares.iter().sum();
    // Thirds are written 33.3%: a tenth of a point is forgiven, and spread.
    if (sum - 1.0).abs() > 0.001 + 1e-9 {
        if let Some(Some(last)) = given.last() {
            let total = (sum * 1e6).round() / 1e4;
            faults.error(&last.span, "GR2101", format!("weights add to {total}%"), "they must add to 100%");
        }
        return equal;
    }
    shares.iter().map(|s| s / sum).collect()
}

/// What is done when a stop does not hold.
fn follow_up(key: &str, context: &Context<'_>, faults: &mut Faults) -> Vec<Action> {
    let section = context.root.get("actions");
    if let Some(list) = section.and_then(|a| a.get(key)) {
        for node in list.list() {
            context.check_route(node, faults);
        }
        return list.list().iter().filter_map(action).collect();
    }
    let page = context.routes.contains_key(&Action::Page);
    vec![if page { Action::Page } else { Action::Notify }]
}

/// Names of metrics and buckets in sections that act later.
fn check_references(context: &Context<'_>, faults: &mut Faults) {
    let root = context.root;
    let success = root.get("success");
    let primary = success.and_then(|s| s.get("primary")).and_then(|p| p.get("metric"));
    let secondary = success.and_then(|s| s.get("secondary")).map_or(&[][..], Node::list);
    let hypothesis = root.get("overview").and_then(|o| o.get("hypothesis")).and_then(|h| h.get("metric"));
    for node in primary.into_iter().chain(secondary).chain(hypothesis) {
        context.check_metric(node, faults);
    }
    let assignment = root.get("eligibility").and_then(|e| e.get("assignment"));
    let overrides = assignment.and_then(|a| a.get("overrides")).map_or(&[][..], Node::entries);
    let default = root.get("instrumentation").and_then(|i| i.get("flag")).and_then(|f| f.get("default"));
    for node in overrides.iter().map(|e| &e.value).chain(default) {
        context.check_bucket(node, faults);
    }
}

impl Context<'_> {
    /// Whether the metric exists; reports it if not.
    pub fn check_metric(&self, node: &Node, faults: &mut Faults) -> bool {
        let Some(name) = node.text() else { return false };
        // A metric whose own definition is at fault is not reported again here.
        let defined = self.root.get("metrics").map_or(&[][..], Node::entries);
        let is_funnel = |e: &&Entry| e.key == name && e.value.get("kind").and_then(Node::text) == Some("funnel");
        if defined.iter().find(is_funnel).is_some() {
            let label = "guard `abandonment`, which counts the same workflows";
            faults.error(&node.span, "GR2501", format!("{} is a funnel, which is no number", quote(name)), label);
            return false;
        }
        let known = || BUILT_IN.iter().copied().chain(defined.iter().map(|e| e.key.as_str()));
        if known().any(|k| k == name) {
            return true;
        }
        let label =
            nearest(name, known()).map_or("neither built in nor defined under `metrics`".to_owned(), |k| format!("did you mean `{k}`?"));
        let help = format!("built in: {}", BUILT_IN.join(", "));
        let fault = faults.at(&node.span, "GR2501", format!("no such metric: {}", quote(name))).with_label(label).with_help(help);
        faults.push(fault);
        false
    }

    fn check_bucket(&self, node: &Node, faults: &mut Faults) {
        let Some(name) = node.text() else { return };
        if self.buckets.is_empty() || self.buckets.iter().any(|b| b.name == name) {
            return;
        }
        let near = nearest(name, self.buckets.iter().map(|b| b.name.as_str()));
        let label = near.map_or("not among `buckets`".to_owned(), |k| format!("did you mean `{k}`?"));
        faults.error(&node.span, "GR2507", format!("no such bucket: {}", quote(name)), label);
    }

    /// Reports an action that a person asked for but that has no receiver.
    pub fn check_route(&self, node: &Node, faults: &mut Faults) {
        let Some(action) = action(node) else { return };
        if action == Action::Hold || self.names_route(action) {
            return;
        }
        let name = action.name();
        let fault = faults.at(&node.span, "GR2302", format!("`{name}` has no receiver"));
        let fault = fault.with_label(format!("add `actions.{name}`")).with_help(format!("for example `{name}: {{webhook: flag-service}}`"));
        let fatal = action.intervenes() && self.mode != Some(Mode::Observe);
        faults.push(if fatal { fault } else { fault.as_warning() });
    }

    /// What a breach leads to where the guardrail does not say.
    pub fn default_action(&self) -> Action {
        if self.routes.contains_key(&Action::Rollback) { Action::Rollback } else { Action::Notify }
    }

    /// Whether the file has an entry for the action, even a faulty one.
    pub fn names_route(&self, action: Action) -> bool {
        self.root.get("actions").is_some_and(|a| a.get(action.name()).is_some())
    }
}
