//! What only shows when files are seen together, or beside the daemon's settings.

use super::diagnostic::{Diagnostic, quote, sort};
use super::keys::CHANNELS;
use super::load::{Loaded, Used, load};
use super::yaml::{self, Node};
use crate::engine::decision::Action;
use crate::engine::plan::{Plan, Settings};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

/// [`load`], and what is wrong with the files as a whole; `settings` are those of the daemon that will read them.
pub fn checked(paths: &[PathBuf], endpoints: Option<&BTreeSet<String>>, settings: &Settings) -> Loaded {
    let mut loaded = load(paths, endpoints);
    let texts = loaded.texts();
    let files: Vec<(&Plan, &Used)> =
        loaded.rules.iter().filter_map(|rule| Some((&*rule.plan, *texts.get(rule.plan.experiment.as_str())?))).collect();
    let mut found: Vec<Diagnostic> = files.iter().flat_map(|(plan, used)| windows(plan, used, settings)).collect();
    found.extend(namespaces(&files));
    loaded.diagnostics.extend(found);
    sort(&mut loaded.diagnostics);
    loaded
}

/// Windows that do not go with the length of a pane, or with the lateness that records are allowed.
fn windows(plan: &Plan, used: &Used, settings: &Settings) -> Vec<Diagnostic> {
    let uneven = |window: i64| window % settings.pane != 0;
    let short = |window: i64| window < settings.lateness;
    let limits = || plan.guardrails.iter().enumerate().filter(|(_, g)| g.limit.is_some());
    if !limits().any(|(_, g)| uneven(g.window) || short(g.window)) {
        return Vec::new();
    }
    let Ok(root) = yaml::parse(&used.text) else { return Vec::new() };
    let fault = |index: usize, code, message: String, label: &str| {
        let node = root.get("guardrails").and_then(|g| g.list().get(index));
        let span = node.map_or(0..0, |n| n.get("window").map_or(n.span.clone(), |w| w.span.clone()));
        Diagnostic::at(&used.file, &used.text, span, code, message).with_label(label).as_warning()
    };
    let mut found = Vec::new();
    for (i, guardrail) in limits() {
        if uneven(guardrail.window) {
            let message = format!("a window that is no whole number of panes of {}ms", settings.pane);
            found.push(fault(i, "GR2401", message, "`engine.pane` of the configuration"));
        }
        if short(guardrail.window) {
            let message = format!("a window shorter than the {}s that records may be late", settings.lateness as f64 / 1_000.0);
            found.push(fault(i, "GR2612", message, "it holds records older than itself, and lacks those still to come"));
        }
    }
    found
}

/// Experiments that give the same users the same positions, and cannot all be apart.
fn namespaces(files: &[(&Plan, &Used)]) -> Vec<Diagnostic> {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, (plan, _)) in files.iter().enumerate() {
        if let Some(a) = &plan.assignment {
            groups.entry((&a.namespace, a.algorithm as u8, a.unit.len(), format!("{:?}", a.unit))).or_default().push(i);
        }
    }
    let mut found = Vec::new();
    for members in groups.into_values().filter(|members| members.len() > 1) {
        // In the order of files, so that the first one is found sound, and the one that is too much is told.
        let mut members: Vec<usize> = members;
        members.sort_by(|a, b| files[*a].1.file.cmp(&files[*b].1.file));
        for (n, &this) in members.iter().enumerate() {
            let (plan, used) = files[this];
            let beside: Vec<usize> = members[..n].iter().copied().filter(|&other| meet(plan, files[other].0)).collect();
            let most = most_at_once(plan, &beside.iter().map(|&other| files[other].0).collect::<Vec<_>>());
            if most > 1.0 + 1e-9 {
                let names: Vec<String> = beside.iter().take(3).map(|&other| quote(&files[other].0.experiment)).collect();
                let more = if beside.len() > 3 { format!(" and {} more", beside.len() - 3) } else { String::new() };
                let message = format!("users of {} are users of {}{more}, too", quote(&plan.experiment), names.join(", "));
                let label = format!("the shares of this namespace add up to {}%", (most * 1e4).round() / 1e2);
                let help = "a namespace of its own (leave the key out), smaller `traffic`, other times, or a disjoint `population`";
                let fault = Diagnostic::at(&used.file, &used.text, namespace(&used.text), "GR2805", message);
                found.push(fault.with_label(label).with_help(help).as_warning());
            }
        }
    }
    found
}

/// An action that its endpoint could never carry out, at the place where the rule names the endpoint.
pub fn unfit(used: &Used, action: Action, endpoint: &str, why: &str) -> Diagnostic {
    let span = yaml::parse(&used.text).ok().and_then(|root| {
        let route = root.get("actions")?.get(action.name())?;
        Some(route.entries().iter().find(|e| CHANNELS.contains(&e.key.as_str())).map_or(route.span.clone(), |e| e.value.span.clone()))
    });
    let what = if action == Action::Notify { "notification" } else { action.name() };
    let message = format!("endpoint {} could not carry out a {what}", quote(endpoint));
    Diagnostic::at(&used.file, &used.text, span.unwrap_or(0..0), "GR2305", message).with_label(why)
}

/// Where a file says its namespace, or that it has one.
fn namespace(text: &str) -> Range<usize> {
    let Ok(root) = yaml::parse(text) else { return 0..0 };
    let assignment = root.get("eligibility").and_then(|e| e.get("assignment"));
    assignment.map_or(0..0, |a: &Node| a.get("namespace").unwrap_or(a).span.clone())
}

/// Largest share of the traffic that takes part.
fn traffic(plan: &Plan) -> f64 {
    // Where the phases say the shares of the buckets, all of it does.
    let all = plan.phases.is_empty() || plan.phases.iter().any(|p| p.weights.is_some());
    if all { 1.0 } else { plan.phases.iter().map(|p| p.traffic).fold(0.0, f64::max) }
}

/// Whether two experiments may have a user in common: they run at the same time, and no attribute keeps them apart.
fn meet(a: &Plan, b: &Plan) -> bool {
    let before = |x: &Plan, y: &Plan| x.ends.zip(y.starts).is_some_and(|(ends, starts)| ends <= starts);
    let apart = |x: &Plan, y: &Plan| {
        x.eligibility.population.iter().any(|(of, values)| {
            let other = y.eligibility.population.iter().find(|(o, _)| o == of);
            let out = y.eligibility.exclude.iter().find(|(o, _)| o == of);
            other.is_some_and(|(_, others)| values.is_disjoint(others)) || out.is_some_and(|(_, out)| values.is_subset(out))
        })
    };
    !before(a, b) && !before(b, a) && !apart(a, b) && !apart(b, a)
}

/// The largest sum of the shares of `plan` and of those beside it that run at one moment of its life.
fn most_at_once(plan: &Plan, beside: &[&Plan]) -> f64 {
    let moments = std::iter::once(plan)
        .chain(beside.iter().copied())
        .map(|p| p.starts.unwrap_or(i64::MIN))
        .filter(|at| plan.starts.is_none_or(|starts| *at >= starts) && plan.ends.is_none_or(|ends| *at < ends));
    let runs = |p: &&&Plan, at: i64| p.starts.is_none_or(|starts| starts <= at) && p.ends.is_none_or(|ends| at < ends);
    let sum = |at: i64| traffic(plan) + beside.iter().filter(|p| runs(p, at)).map(|p| traffic(p)).sum::<f64>();
    moments.map(sum).fold(0.0, f64::max)
}
