//! Traffic descriptions: YAML over the assumptions made from the rule file, with located faults.

use super::traffic::{LogNormal, MetricTraffic, Model, Phase, Shape as LatencyShape, Spread, Traffic, metric_name};
use crate::engine::plan::{MAX_BUCKETS, Plan};
use crate::rules::Diagnostic;
use crate::rules::diagnostic::{Faults, nearest, quote};
use crate::rules::keys::{Section, Shape, key, required};
use crate::rules::quantity::{Quantity, duration, number, per_day, percent};
use crate::rules::shape::check_section;
use crate::rules::yaml::{self, Node};
use Shape::{Bool, Const, Duration, Frequency, Int, List, MapOf, Percent, Quantity as Amount, Word};

/// A file of its own names its version; the same keys stand in rule tests without one.
macro_rules! traffic_keys {
    ($($first:expr)?) => { &[
        $($first,)?
        key("units", Frequency, "120k/day", "Units exposed for the first time, at full traffic."),
        key("requests", Shape::Section(&REQUESTS), "", "Requests of a unit."),
        key("latency", Shape::Section(&LATENCY), "", "Latency of requests."),
        key("timeouts", Shape::Section(&TIMEOUTS), "", "Requests that end in a timeout."),
        key("errors", Shape::Section(&ERRORS), "", "Requests that fail."),
        key("workflows", Shape::Section(&WORKFLOWS), "", "Workflows of a unit, for `abandonment`."),
        key("tickets", Amount, "0.5%", "Tickets per unit, Poisson."),
        key("compliance_flags", Amount, "0", "Compliance flags per unit, Poisson."),
        key("metrics", MapOf(&Shape::Section(&METRIC)), "", "Metrics of the rule file, by name."),
        key("phases", List(&Shape::Section(&PHASE)), "", "Steps of the ramp, in order; the last goes on."),
        key("segments", MapOf(&MapOf(&Percent)), "{region: {eu: 60%, uk: 40%}}", "Attributes of units: share of each value."),
        key("drift", Amount, "20%", "Growth of all rates and times, in all buckets, from the first moment to the last."),
    ] };
}

static FILE: Section =
    Section { name: "a traffic description", keys: traffic_keys!(required("traffic", Const("v1"), "v1", "Version of this format.")) };

/// Traffic inside another file.
pub static TRAFFIC: Section = Section { name: "`traffic`", keys: traffic_keys!() };

static REQUESTS: Section = Section {
    name: "`requests`",
    keys: &[
        key("per_unit", Amount, "5", "Mean number."),
        key("distribution", Word(&["fixed", "geometric", "pareto"]), "geometric", "How it varies from unit to unit."),
        key("tail", Amount, "1.5", "Tail index of `pareto`: the smaller, the more is made by a few units."),
        key("max", Int(1), "300", "Largest number of `pareto`."),
        key("gap", Duration, "20s", "Mean time between two requests of a unit."),
    ],
};

static LATENCY: Section = Section {
    name: "`latency`",
    keys: &[
        key(
            "distribution",
            Word(&["lognormal", "bimodal", "pareto", "normal", "exponential", "constant"]),
            "lognormal",
            "Shape; `bimodal` has a `slow` mode besides.",
        ),
        key("p50", Duration, "180ms", "Median, of `bimodal` that of the fast mode."),
        key("p95", Duration, "420ms", "95th percentile, of `bimodal` that of the fast mode."),
        key("slow", Shape::Section(&SLOW), "", "The slow mode of `bimodal`."),
        key("min", Duration, "5ms", "Smallest value of `pareto`."),
        key("tail", Amount, "1.5", "Tail index of `pareto`."),
        key("mean", Duration, "200ms", "Mean of `normal` and `exponential`."),
        key("sd", Duration, "30ms", "Standard deviation of `normal`."),
        key("value", Duration, "200ms", "Of `constant`."),
        key("icc", Amount, "0.3", "How alike one unit's latencies are, 0 to 0.99."),
    ],
};

static SLOW: Section = Section {
    name: "`slow`",
    keys: &[
        required("share", Percent, "10%", "Share of requests."),
        required("p50", Duration, "120ms", "Median."),
        required("p95", Duration, "210ms", "95th percentile."),
    ],
};

static TIMEOUTS: Section = Section {
    name: "`timeouts`",
    keys: &[key("share", Percent, "1%", "Share of requests."), key("after", Duration, "10s", "Their latency.")],
};

static ERRORS: Section = Section {
    name: "`errors`",
    keys: &[key("rate", Percent, "1%", "Share of requests."), key("icc", Amount, "0.1", "How alike one unit's errors are, 0 to 0.99.")],
};

static WORKFLOWS: Section = Section {
    name: "`workflows`",
    keys: &[
        key("share", Percent, "50%", "Share of units that begin one."),
        key("abandoned", Percent, "20%", "Share of those that do not complete it."),
        key("explicit", Percent, "50%", "Share of the abandoned ones that say so."),
        key("completes", Duration, "3m", "Mean time to completion."),
    ],
};

static METRIC: Section = Section {
    name: "a metric's traffic",
    keys: &[
        key("rate", Percent, "30%", "Of a rate: share of hits."),
        key("mean", Amount, "45", "Of a mean: its value."),
        key("cv", Amount, "1.2", "Of a mean: coefficient of variation of values that are not 0."),
        key("zero", Percent, "70%", "Of a mean: share of values that are 0."),
        key("correlation", Amount, "0.6", "Of a mean: with its covariate, -0.999 to 0.999."),
        key("normal", Bool, "false", "Of a mean: normal values instead of log-normal ones."),
        key("p50", Amount, "180", "Of a quantile: median, in the metric's own unit."),
        key("p95", Amount, "420", "Of a quantile: 95th percentile."),
        key("per_unit", Amount, "0.02", "Mean number of events of a unit, Poisson; not of metrics whose observation is the unit."),
        key("share", Percent, "20%", "Share of requests that the metric is about, where it is made of requests."),
        key("delay", Duration, "1m", "Mean time from the exposure."),
    ],
};

static PHASE: Section = Section {
    name: "a phase",
    keys: &[
        key("for", Duration, "1h", "How long; all but the last need it."),
        key("traffic", Percent, "25%", "Share of the units of a day. Default 100%."),
        key("weights", MapOf(&Percent), "{control: 95%, treatment: 5%}", "Shares of the buckets. Default: the rule's."),
    ],
};

/// Reads a description over what `base` assumes.
///
/// # Errors
/// All faults, with their places in `name`.
pub fn read(name: &str, text: &str, plan: &Plan, base: &Traffic) -> Result<Traffic, Vec<Diagnostic>> {
    let mut faults = Faults::new(name, text);
    let root = match yaml::parse(text) {
        Ok(root) => root,
        Err(fault) => {
            faults.error(&fault.span, fault.code, fault.message, fault.label);
            return Err(faults.into_vec());
        }
    };
    check_section(&root, &FILE, &mut faults);
    if faults.has_errors() {
        return Err(faults.into_vec());
    }
    let traffic = read_node(&root, plan, base, &mut faults);
    if faults.has_errors() { Err(faults.into_vec()) } else { Ok(traffic) }
}

/// Reads what has the form of [`TRAFFIC`].
pub fn read_node(root: &Node, plan: &Plan, base: &Traffic, faults: &mut Faults) -> Traffic {
    let mut reader = Reader { traffic: base.clone(), plan, faults };
    reader.all(root);
    let mut traffic = reader.traffic;
    let given = |key: &String| key.split('.').try_fold(root, |node, part| node.get(part)).is_some();
    traffic.assumed.retain(|key| !given(key));
    traffic
}

struct Reader<'p> {
    traffic: Traffic,
    plan: &'p Plan,
    faults: &'p mut Faults,
}

impl Reader<'_> {
    fn all(&mut self, root: &Node) {
        let mut t = self.traffic.clone();
        if let Some(units) = root.get("units") {
            t.units_per_day = units.text().and_then(per_day).unwrap_or(0.0);
            if !(1.0..=1e11).contains(&t.units_per_day) {
                self.faults.error(&units.span, "GR2203", "number out of range", "from 1/day to 10^11 a day");
            }
        }
        if let Some(node) = root.get("requests") {
            self.requests(node, &mut t);
        }
        if let Some(node) = root.get("latency") {
            t.latency.shape = self.latency(node, t.latency.shape);
            self.number(node, "icc", 0.0, 0.99, &mut t.latency.icc);
        }
        if let Some(node) = root.get("timeouts") {
            share(node, "share", &mut t.timeouts);
            self.time(node, "after", &mut t.timeout_ms);
        }
        if let Some(node) = root.get("errors") {
            share(node, "rate", &mut t.errors);
            self.number(node, "icc", 0.0, 0.99, &mut t.errors_icc);
        }
        if let Some(node) = root.get("workflows") {
            share(node, "share", &mut t.workflows.share);
            share(node, "abandoned", &mut t.workflows.abandoned);
            share(node, "explicit", &mut t.workflows.explicit);
            self.time(node, "completes", &mut t.workflows.completes_ms);
        }
        self.number(root, "tickets", 0.0, 1e3, &mut t.tickets);
        self.number(root, "compliance_flags", 0.0, 1e3, &mut t.compliance_flags);
        self.number(root, "drift", -0.9, 9.0, &mut t.drift);
        self.metrics(root, &mut t);
        self.phases(root, &mut t);
        self.segments(root, &mut t);
        self.traffic = t;
    }

    fn requests(&mut self, node: &Node, t: &mut Traffic) {
        self.number(node, "per_unit", 0.0, 1e5, &mut t.requests.per_unit);
        self.time(node, "gap", &mut t.requests.gap_ms);
        let (mut tail, mut max) = match t.requests.distribution {
            Spread::Pareto { tail, max } => (tail, max),
            _ => (1.5, 300.0),
        };
        self.number(node, "tail", 0.5, 100.0, &mut tail);
        self.number(node, "max", 1.0, 1e6, &mut max);
        match node.get("distribution").and_then(Node::text) {
            Some("fixed") => t.requests.distribution = Spread::Fixed,
            Some("geometric") => t.requests.distribution = Spread::Geometric,
            Some("pareto") => t.requests.distribution = Spread::Pareto { tail, max },
            _ => {}
        }
        let pareto = matches!(t.requests.distribution, Spread::Pareto { .. });
        for entry in node.entries().iter().filter(|e| !pareto && ["tail", "max"].contains(&e.key.as_str())) {
            self.faults.error(
                &entry.key_span,
                "GR2503",
                format!("{} belongs to `pareto`", quote(&entry.key)),
                "say `distribution: pareto`",
            );
        }
        let least = if t.requests.distribution == Spread::Fixed { 0.0 } else { 1.0 };
        if t.requests.per_unit < least || pareto && t.requests.per_unit >= max {
            let label = "from 1 up to `max`; fewer than one are `fixed`";
            self.faults.error(&node.span, "GR2203", "a mean number of requests out of range", label);
        }
    }

    fn latency(&mut self, node: &Node, base: LatencyShape) -> LatencyShape {
        let default = LogNormal { p50: 180.0, p95: 420.0 };
        let word = node.get("distribution").and_then(Node::text);
        let is = |name: &str, already: bool| word == Some(name) || word.is_none() && already;
        let (shape, fits): (LatencyShape, &[&str]) = if is("pareto", matches!(base, LatencyShape::Pareto { .. })) {
            let (mut min, mut tail) = if let LatencyShape::Pareto { min, tail } = base { (min, tail) } else { (5.0, 1.5) };
            self.time(node, "min", &mut min);
            self.number(node, "tail", 0.5, 100.0, &mut tail);
            (LatencyShape::Pareto { min, tail }, &["min", "tail"])
        } else if is("bimodal", matches!(base, LatencyShape::Bimodal { .. })) {
            let (fast, slow, share) = match base {
                LatencyShape::Bimodal { fast, slow, slow_share } => (fast, slow, slow_share),
                _ => (default, LogNormal { p50: default.p50 * 8.0, p95: default.p95 * 8.0 }, 0.1),
            };
            let fast = self.log_normal(node, fast);
            let (mut slow, mut slow_share) = (slow, share);
            if let Some(inner) = node.get("slow") {
                slow = self.log_normal(inner, slow);
                slow_share = inner.get("share").and_then(Node::text).and_then(percent).unwrap_or(slow_share);
            }
            (LatencyShape::Bimodal { fast, slow, slow_share }, &["p50", "p95", "slow"])
        } else if is("normal", matches!(base, LatencyShape::Normal { .. })) {
            let (mut mean, mut sd) = if let LatencyShape::Normal { mean, sd } = base { (mean, sd) } else { (200.0, 30.0) };
            self.time(node, "mean", &mut mean);
            self.time(node, "sd", &mut sd);
            (LatencyShape::Normal { mean, sd }, &["mean", "sd"])
        } else if is("exponential", matches!(base, LatencyShape::Exponential { .. })) {
            let mut mean = if let LatencyShape::Exponential { mean } = base { mean } else { 200.0 };
            self.time(node, "mean", &mut mean);
            (LatencyShape::Exponential { mean }, &["mean"])
        } else if is("constant", matches!(base, LatencyShape::Constant { .. })) {
            let mut value = if let LatencyShape::Constant { value } = base { value } else { 200.0 };
            self.time(node, "value", &mut value);
            (LatencyShape::Constant { value }, &["value"])
        } else {
            let base = if let LatencyShape::LogNormal(base) = base { base } else { default };
            (LatencyShape::LogNormal(self.log_normal(node, base)), &["p50", "p95"])
        };
        for entry in node.entries() {
            let key = entry.key.as_str();
            if !fits.contains(&key) && !["distribution", "icc"].contains(&key) {
                self.faults.error(&entry.key_span, "GR2503", "a key of another distribution", format!("this one has {}", fits.join(", ")));
            }
        }
        shape
    }

    fn log_normal(&mut self, node: &Node, base: LogNormal) -> LogNormal {
        let LogNormal { mut p50, mut p95 } = base;
        self.time(node, "p50", &mut p50);
        if node.get("p95").is_some() {
            self.time(node, "p95", &mut p95);
        } else if node.get("p50").is_some() {
            p95 = p50 * (base.p95 / base.p50);
        }
        self.order(node, LogNormal { p50, p95 })
    }

    fn order(&mut self, node: &Node, shape: LogNormal) -> LogNormal {
        if shape.p95 <= shape.p50 {
            let at = node.get("p95").map_or(&node.span, |n| &n.span);
            self.faults.error(at, "GR2203", "the 95th percentile must be above the median", format!("above {}", shape.p50));
        }
        shape
    }

    fn metrics(&mut self, root: &Node, t: &mut Traffic) {
        for entry in root.get("metrics").map_or(&[][..], Node::entries) {
            let Some(known) = t.metrics.get(&entry.key).cloned() else {
                let names = t.metrics.keys().map(String::as_str);
                let guarded = self.plan.guardrails.iter().any(|g| metric_name(&g.name) == entry.key);
                let label = match nearest(&entry.key, names) {
                    Some(near) => format!("did you mean {}?", quote(near)),
                    None if guarded => "built in: it is made by the keys above, such as `latency`".to_owned(),
                    None => "no guardrail watches it, so nothing would be made of it".to_owned(),
                };
                self.faults.error(&entry.key_span, "GR2501", format!("no such metric to simulate: {}", quote(&entry.key)), label);
                continue;
            };
            let metric = self.metric(&entry.value, known);
            t.metrics.insert(entry.key.clone(), metric);
        }
    }

    fn metric(&mut self, node: &Node, mut metric: MetricTraffic) -> MetricTraffic {
        let fits: &[&str] = match &mut metric.model {
            Model::Rate { rate } => {
                share(node, "rate", rate);
                &["rate"]
            }
            Model::Mean { mean, cv, zero, correlation, normal } => {
                self.number(node, "mean", -1e12, 1e12, mean);
                self.number(node, "cv", 0.0, 1e3, cv);
                share(node, "zero", zero);
                self.number(node, "correlation", -0.999, 0.999, correlation);
                *normal = node.get("normal").and_then(Node::boolean).unwrap_or(*normal);
                if *zero >= 1.0 {
                    self.faults.error(&node.span, "GR2203", "a mean of nothing but zeros", "`zero` must be below 100%");
                }
                &["mean", "cv", "zero", "correlation", "normal"]
            }
            Model::Quantile(shape) => {
                self.number(node, "p50", 1e-9, 1e12, &mut shape.p50);
                self.number(node, "p95", 1e-9, 1e12, &mut shape.p95);
                *shape = self.order(node, *shape);
                &["p50", "p95"]
            }
            Model::Count => &[],
        };
        for entry in node.entries() {
            let key = entry.key.as_str();
            if !fits.contains(&key) && !["per_unit", "share", "delay"].contains(&key) {
                self.faults.error(
                    &entry.key_span,
                    "GR2503",
                    "a key of another kind of metric",
                    format!("this kind has {}", fits.join(", ")),
                );
            }
        }
        self.number(node, "per_unit", 0.0, 1e4, &mut metric.per_unit);
        share(node, "share", &mut metric.share);
        self.time(node, "delay", &mut metric.delay_ms);
        metric
    }

    fn phases(&mut self, root: &Node, t: &mut Traffic) {
        let Some(list) = root.get("phases") else { return };
        let steps = list.list();
        if steps.is_empty() {
            return self.faults.error(&list.span, "GR1003", "no phases", "leave the key out for a single one");
        }
        t.phases.clear();
        for (i, node) in steps.iter().enumerate() {
            let span = node.get("for").and_then(Node::text).and_then(duration).filter(|s| *s > 0);
            if span.is_none() && i + 1 < steps.len() {
                self.faults.error(&node.span, "GR1003", "a phase needs `for`", "only the last may go on");
            }
            let mut traffic = 1.0;
            share(node, "traffic", &mut traffic);
            if traffic == 0.0 {
                self.faults.error(&node.span, "GR2203", "a phase without traffic", "above 0%");
            }
            let weights = node.get("weights").map(|weights| self.weights(weights));
            t.phases.push(Phase { traffic, span, weights });
        }
    }

    /// Shares by the plan's buckets.
    fn weights(&mut self, node: &Node) -> Vec<f64> {
        let mut weights = vec![0.0; self.plan.buckets.len().min(MAX_BUCKETS)];
        for entry in node.entries() {
            match self.plan.bucket(&entry.key) {
                Some(bucket) => weights[bucket] = entry.value.text().and_then(percent).unwrap_or(0.0),
                None => {
                    let names = self.plan.buckets.iter().map(|b| b.name.as_str());
                    let label = nearest(&entry.key, names).map_or_else(String::new, |near| format!("did you mean {}?", quote(near)));
                    self.faults.error(&entry.key_span, "GR2507", format!("no such bucket: {}", quote(&entry.key)), label);
                }
            }
        }
        if node.entries().iter().all(|e| self.plan.bucket(&e.key).is_some()) {
            self.whole(node, weights.iter().sum());
        }
        weights
    }

    fn segments(&mut self, root: &Node, t: &mut Traffic) {
        let Some(section) = root.get("segments") else { return };
        for entry in section.entries() {
            let values: Vec<(String, f64)> =
                entry.value.entries().iter().map(|e| (e.key.clone(), e.value.text().and_then(percent).unwrap_or(0.0))).collect();
            self.whole(&entry.value, values.iter().map(|(_, share)| share).sum());
            t.segments.retain(|(name, _)| *name != entry.key);
            t.segments.push((entry.key.clone(), values));
        }
    }

    fn whole(&mut self, node: &Node, sum: f64) {
        if (sum - 1.0).abs() > 1e-3 {
            let message = format!("shares add to {}%", (sum * 1e6).round() / 1e4);
            self.faults.error(&node.span, "GR2101", message, "they must add to 100%");
        }
    }

    /// A plain number, or a percentage as a share.
    fn number(&mut self, node: &Node, key: &str, least: f64, most: f64, into: &mut f64) {
        let Some(node) = node.get(key) else { return };
        let value = node.text().and_then(|text| match Quantity::parse(text)? {
            Quantity::Percent(share) => Some(share),
            Quantity::Number(n) => Some(n),
            Quantity::Span(_) | Quantity::Points(_) => None,
        });
        match value.or_else(|| node.text().and_then(number)) {
            Some(value) if (least..=most).contains(&value) => *into = value,
            Some(_) => self.faults.error(&node.span, "GR2203", "number out of range", format!("from {least} to {most}")),
            None => self.faults.error(&node.span, "GR2003", "a unit that does not fit", "a plain number"),
        }
    }

    /// A positive time, at most a day.
    fn time(&mut self, node: &Node, key: &str, into: &mut f64) {
        let Some(node) = node.get(key) else { return };
        match node.text().and_then(Quantity::parse) {
            Some(Quantity::Span(ms)) if (1e-3..=86_400_000.0).contains(&ms) => *into = ms,
            _ => self.faults.error(&node.span, "GR2404", "a time out of range", "above 0 and at most 1d"),
        }
    }
}

fn share(node: &Node, key: &str, into: &mut f64) {
    *into = node.get(key).and_then(Node::text).and_then(percent).unwrap_or(*into);
}

#[cfg(test)]
mod tests;
