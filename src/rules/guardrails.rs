//! The `guardrails` section.

use super::diagnostic::{Faults, quote};
use super::lower::{Context, action, share, span};
use super::metric::{Metric, Misfit, built_in};
use super::quantity::Quantity;
use super::yaml::Node;
use crate::engine::decision::{Action, Mode};
use crate::engine::plan::{Guardrail, Margin, Settings, Signal, Statistic};
use crate::engine::time::Millis;

/// Guardrails of one experiment at most.
const MAX_GUARDRAILS: usize = 128;
/// Secondary metrics at most: each takes the memory of a comparison.
const MAX_SECONDARY: usize = 16;
/// Longest window, in ms: seven days.
const MAX_WINDOW: Millis = 7 * 86_400_000;
const DEFAULT_WINDOW: Millis = 600_000;
/// After which a workflow that has not been completed is abandoned.
const DEFAULT_WITHIN: Millis = 1_800_000;

#[derive(Default)]
pub(super) struct Guardrails {
    pub signals: Vec<Signal>,
    pub guardrails: Vec<Guardrail>,
    /// See [`Plan::secondary`](crate::engine::plan::Plan::secondary).
    pub secondary: Vec<Guardrail>,
    /// Metrics of retention, which are counted whether guarded or not: name and index of the signal.
    pub retention: Vec<(String, usize)>,
}

pub(super) fn read(context: &Context<'_>, faults: &mut Faults) -> Guardrails {
    let mut out = Guardrails::default();
    let Some(section) = context.root.get("guardrails") else { return out };
    let list = section.list();
    if section.is_empty_list() {
        faults.error(&section.span, "GR2005", "no guardrails", "an experiment without one is not guarded");
    } else if list.len() > MAX_GUARDRAILS {
        faults.error(&list[MAX_GUARDRAILS].span, "GR2103", format!("{} guardrails", list.len()), format!("{MAX_GUARDRAILS} at most"));
    }
    let mut seen: Vec<&Node> = Vec::new();
    for node in list.iter().take(MAX_GUARDRAILS) {
        if let Some(first) = seen.iter().find(|first| same(first, node)) {
            let line = faults.line_of(first.span.start);
            let span = node.get("metric").map_or(&node.span, |m| &m.span);
            faults.error(span, "GR2504", "the same guardrail twice", format!("metric, window and action are those of line {line}"));
        }
        seen.push(node);
        out.add(node, context, faults);
    }
    out.add_primary(context);
    out.add_secondary(context, faults);
    for (name, metric) in context.metrics.iter().filter(|(_, m)| matches!(m.signal, Signal::Retention { .. })) {
        let signal = out.intern(metric.signal.clone());
        out.retention.push((name.clone(), signal));
    }
    if context.mode == Some(Mode::Enforce) && ![Action::Rollback, Action::Notify].iter().any(|a| context.names_route(*a)) {
        warn_unheard(context, list, faults);
    }
    out
}

/// Whether two guardrails would always act together, the tighter first.
fn same(a: &Node, b: &Node) -> bool {
    let text = |node: &Node, key: &str| node.get(key).and_then(Node::text).map(str::to_owned);
    let time = |node: &Node, key: &str, default: Millis| node.get(key).map_or(Some(default), span);
    let both = |key: &str| a.get(key).is_some() && b.get(key).is_some();
    text(a, "metric").is_some()
        && ["metric", "workflow", "on_breach"].iter().all(|key| text(a, key) == text(b, key))
        && time(a, "window", DEFAULT_WINDOW) == time(b, "window", DEFAULT_WINDOW)
        && time(a, "within", DEFAULT_WITHIN) == time(b, "within", DEFAULT_WITHIN)
        && (both("max_increase") || both("limit") && time(a, "for", 0) == time(b, "for", 0))
}

/// A guardrail without `on_breach` falls back to `notify`: somebody should be listening.
fn warn_unheard(context: &Context<'_>, list: &[Node], faults: &mut Faults) {
    let unheard = list.iter().any(|g| g.get("on_breach").is_none());
    if let Some(actions) = context.root.get("actions").filter(|_| unheard) {
        let span = actions.get("mode").map_or(&actions.span, |m| &m.span);
        let fault = faults.at(span, "GR2302", "nobody is told of a breach").with_label("neither `rollback` nor `notify` has a receiver");
        faults.push(fault.as_warning());
    }
}

impl Guardrails {
    fn add(&mut self, node: &Node, context: &Context<'_>, faults: &mut Faults) {
        let window = window(node, faults);
        let hold = hold(node, window, faults);
        if let Some(given) = node.get("on_breach") {
            context.check_route(given, faults);
        }
        let Some(name_node) = node.get("metric") else { return };
        if !context.check_metric(name_node, faults) {
            return;
        }
        let Some(metric) = metric(node, name_node, context, faults) else { return };
        let limit = node.get("limit").and_then(|n| fit(n, faults, |q| metric.measure.limit(q)));
        let max_increase = node.get("max_increase").and_then(|n| fit(n, faults, |q| metric.measure.margin(q)));
        check_margin(node, name_node, &metric, max_increase, faults);
        let counted = matches!(metric.statistic, Statistic::Count | Statistic::PerUnit | Statistic::Exposures);
        if let Some(at) = node.get("limit").filter(|_| counted && !metric.higher_is_worse) {
            faults.error(&at.span, "GR2503", "a count has no floor", "use `max_increase`: it bounds a fall where more is better");
        }
        if node.get("limit").is_none() && node.get("max_increase").is_none() {
            faults.error(&name_node.span, "GR2005", "a guardrail without a criterion", "add `max_increase` or `limit`");
        }
        let signal = self.intern(metric.signal);
        self.guardrails.push(Guardrail {
            name: self.unique(name_node.text().unwrap_or_default()),
            unit: metric.measure.unit().to_owned(),
            statistic: metric.statistic,
            higher_is_worse: metric.higher_is_worse,
            signal,
            window,
            limit,
            max_increase,
            primary: false,
            expected: metric.expected,
            hold,
            on_breach: node.get("on_breach").and_then(action).unwrap_or(context.default_action()),
        });
    }

    /// `stop_on_negative` of the primary metric: a guardrail against its getting worse.
    fn add_primary(&mut self, context: &Context<'_>) {
        let Some(primary) = context.root.get("success").and_then(|s| s.get("primary")) else { return };
        let Some(margin) = primary.get("stop_on_negative").and_then(share) else { return };
        let Some(name) = primary.get("metric").and_then(Node::text) else { return };
        let Some(comparison) = self.comparison(name, context) else { return };
        let (name, margin) = (self.unique(name), Some(Margin::Relative(margin)));
        self.guardrails.push(Guardrail { name, max_increase: margin, primary: true, ..comparison });
    }

    /// Metrics that are shown beside the primary one. Their names are checked elsewhere.
    fn add_secondary(&mut self, context: &Context<'_>, faults: &mut Faults) {
        let list = context.root.get("success").and_then(|s| s.get("secondary")).map_or(&[][..], Node::list);
        if let Some(beyond) = list.get(MAX_SECONDARY) {
            faults.error(&beyond.span, "GR2103", format!("{} secondary metrics", list.len()), format!("{MAX_SECONDARY} at most"));
        }
        for node in list.iter().take(MAX_SECONDARY) {
            let Some(name) = node.text() else { continue };
            if self.secondary.iter().any(|known| known.name == name) {
                faults.error(&node.span, "GR2504", format!("{} twice", quote(name)), "name it once");
            } else if let Some(comparison) = self.comparison(name, context) {
                self.secondary.push(comparison);
            }
        }
    }

    /// A success metric against the baseline, with nothing tolerated.
    fn comparison(&mut self, name: &str, context: &Context<'_>) -> Option<Guardrail> {
        let metric = built_in(name, DEFAULT_WITHIN, None).or_else(|| context.metrics.get(name).cloned())?;
        Some(Guardrail {
            name: name.to_owned(),
            unit: metric.measure.unit().to_owned(),
            statistic: metric.statistic,
            higher_is_worse: metric.higher_is_worse,
            signal: self.intern(metric.signal),
            window: DEFAULT_WINDOW,
            limit: None,
            max_increase: Some(Margin::Relative(0.0)),
            primary: false,
            expected: metric.expected,
            hold: 0,
            on_breach: context.default_action(),
        })
    }

    /// `name`, or `name#2` and so on when it is taken.
    fn unique(&self, name: &str) -> String {
        let is_taken = |candidate: &str| self.guardrails.iter().any(|g| g.name == candidate);
        let numbered = (2..).map(|n| format!("{name}#{n}"));
        std::iter::once(name.to_owned()).chain(numbered).find(|n| !is_taken(n)).unwrap_or_default()
    }

    fn intern(&mut self, signal: Signal) -> usize {
        self.signals.iter().position(|s| *s == signal).unwrap_or_else(|| {
            self.signals.push(signal);
            self.signals.len() - 1
        })
    }
}

/// The metric that a guardrail names; `within` and `workflow` are abandonment's alone.
fn metric(node: &Node, name_node: &Node, context: &Context<'_>, faults: &mut Faults) -> Option<Metric> {
    let name = name_node.text()?;
    for key in ["within", "workflow"] {
        if let Some(value) = node.get(key).filter(|_| name != "abandonment") {
            faults.error(&value.span, "GR2503", format!("`{key}` belongs to `abandonment`"), format!("{} does not have it", quote(name)));
        }
    }
    let within = node.get("within").and_then(span).unwrap_or(DEFAULT_WITHIN);
    if let Some(value) = node.get("within").filter(|_| !(1_000..=MAX_WINDOW).contains(&within)) {
        faults.error(&value.span, "GR2404", "a time out of range", "between `1s` and `7d`");
    }
    let workflow = node.get("workflow").and_then(Node::text).map(str::to_owned);
    built_in(name, within, workflow).or_else(|| context.metrics.get(name).cloned())
}

/// A quantity that the metric accepts; reports one that it does not.
fn fit<T>(node: &Node, faults: &mut Faults, accept: impl Fn(Quantity) -> Result<T, Misfit>) -> Option<T> {
    let quantity = node.text().and_then(Quantity::parse)?;
    if quantity.is_negative() {
        faults.error(&node.span, "GR2004", "a negative bound", "zero or more");
        return None;
    }
    match accept(quantity) {
        Ok(value) => Some(value),
        Err(misfit) => {
            faults.error(&node.span, misfit.code, misfit.message, misfit.label);
            None
        }
    }
}

/// A rate below this is rare, where the file says what is expected of it.
const RARE: f64 = 0.02;

fn check_margin(node: &Node, name: &Node, metric: &Metric, margin: Option<Margin>, faults: &mut Faults) {
    let (Some(Margin::Relative(share)), Some(at)) = (margin, node.get("max_increase")) else { return };
    if name.text() == Some("compliance_flags") {
        let fault = faults.at(&at.span, "GR2003", "a relative margin on a count that should be zero");
        faults.push(fault.with_label("write `limit: 0`"));
    } else if is_rare(name, metric) && share > 0.0 {
        let fault = faults.at(&at.span, "GR2002", "a relative margin on a rare event");
        faults.push(fault.with_label("a fraction of a small rate takes long to prove; write points: `0.5pp`").as_warning());
    }
}

fn is_rare(name: &Node, metric: &Metric) -> bool {
    let expected = metric.expected.is_some_and(|rate| rate <= RARE) && metric.statistic == Statistic::Share;
    metric.higher_is_worse && (name.text() == Some("error_rate") || expected)
}

fn window(node: &Node, faults: &mut Faults) -> Millis {
    let pane = Settings::default().pane;
    let Some(given) = node.get("window") else { return DEFAULT_WINDOW };
    let Some(window) = span(given) else { return DEFAULT_WINDOW };
    if window < pane {
        faults.error(&given.span, "GR2401", "a window shorter than a pane", format!("a pane is {pane}ms"));
    } else if window % pane != 0 {
        faults.error(&given.span, "GR2401", "a window that is not a whole number of panes", format!("a pane is {pane}ms"));
    } else if window > MAX_WINDOW {
        faults.error(&given.span, "GR2404", "too long a window", "7 days at most");
    }
    window
}

fn hold(node: &Node, window: Millis, faults: &mut Faults) -> Millis {
    let Some(given) = node.get("for") else { return 0 };
    let hold = span(given).unwrap_or(0);
    if hold > window {
        faults.error(&given.span, "GR2402", "`for` is longer than the window", "a breach would have left the window before it counts");
    }
    if node.get("limit").is_none() {
        let fault = faults.at(&given.span, "GR2005", "`for` without a `limit`").with_label("holds back limits alone, so nothing here");
        faults.push(fault.as_warning());
    }
    hold
}
