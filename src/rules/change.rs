//! What changed between two texts of a rule file, and what of it would loosen a live experiment.

use super::RuleSet;
use super::diagnostic::Diagnostic;
use super::yaml::{self, Kind, Node};
use crate::engine::decision::{Action, Mode};
use crate::engine::plan::{Guardrail, Margin, MissingField, Plan, QualityCheck, QualityKind, RateLimit, Segmentation};
use std::fmt::Write;

/// Lines of a difference that are told; what comes after them is counted.
const MAX_LINES: usize = 40;
/// Characters of a value that are told.
const MAX_TEXT: usize = 60;

/// A place in a rule file: keys, and of guardrails their names.
type Path = Vec<String>;

/// What would loosen a live rule, and where it stands.
struct Loosening {
    path: Path,
    why: &'static str,
}

/// `guardrails.latency_p95.max_increase: 10% -> 8%`, one line for each value that differs.
pub fn lines(old: &str, new: &str) -> Vec<String> {
    let (Ok(old), Ok(new)) = (yaml::parse(old), yaml::parse(new)) else { return Vec::new() };
    let mut found = Vec::new();
    compare(&mut Vec::new(), Some(&old), Some(&new), &mut found);
    if found.len() > MAX_LINES {
        let more = found.len() - MAX_LINES;
        found.truncate(MAX_LINES);
        found.push(format!("and {more} more"));
    }
    found
}

/// The faults of a text that loosens the rule which is in force without a new revision; `name` is how messages call the file.
pub fn loosenings(in_force: &RuleSet, old: &str, new: &RuleSet, text: &str, name: &str) -> Vec<Diagnostic> {
    if in_force.plan.revision != new.plan.revision {
        return Vec::new();
    }
    let (Ok(old), Ok(root)) = (yaml::parse(old), yaml::parse(text)) else { return Vec::new() };
    let revision = new.plan.revision;
    let fault = |found: Loosening| {
        let was = at(&old, &found.path).map_or("not given".to_owned(), told);
        let label = format!("{}: was {was} in revision {revision}", found.why);
        Diagnostic::at(name, text, span(&root, &found.path), "GR2803", format!("{} loosens a live rule", found.path.join(".")))
            .with_label(label)
            .with_help(format!("set `revision: {}`: evidence begins anew, and what has tripped is armed again", revision + 1))
    };
    Compared { old: in_force, new, trees: (&old, &root), found: Vec::new() }.all().into_iter().map(fault).collect()
}

/// The keys of a node: of a mapping its own, of guardrails the names that decisions give them.
fn children(node: &Node) -> Option<Vec<(String, &Node)>> {
    match &node.kind {
        Kind::Map(entries) => Some(entries.iter().map(|e| (e.key.clone(), &e.value)).collect()),
        Kind::List(items) if items.iter().all(|item| item.get("metric").is_some_and(|m| m.text().is_some())) => {
            let mut named: Vec<(String, &Node)> = Vec::new();
            for item in items {
                let metric = item.get("metric").and_then(Node::text).unwrap_or_default();
                let before = items.iter().take(named.len()).filter(|i| i.get("metric").and_then(Node::text) == Some(metric)).count();
                named.push((if before == 0 { metric.to_owned() } else { format!("{metric}#{}", before + 1) }, item));
            }
            Some(named)
        }
        _ => None,
    }
}

fn child<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    children(node)?.into_iter().find(|(name, _)| name == key).map(|(_, node)| node)
}

fn at<'n>(root: &'n Node, path: &[String]) -> Option<&'n Node> {
    path.iter().try_fold(root, |node, key| child(node, key))
}

/// Where the deepest part of a path that is there stands.
fn span(root: &Node, path: &[String]) -> std::ops::Range<usize> {
    (0..=path.len()).rev().find_map(|n| at(root, &path[..n])).map_or(0..0, |node| node.span.clone())
}

/// A value in one line.
fn told(node: &Node) -> String {
    let text = flow(node);
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn flow(node: &Node) -> String {
    let join = |parts: Vec<String>| parts.join(", ");
    match &node.kind {
        Kind::Scalar { text, .. } => text.clone(),
        Kind::List(items) => format!("[{}]", join(items.iter().map(flow).collect())),
        Kind::Map(entries) => format!("{{{}}}", join(entries.iter().map(|e| format!("{}: {}", e.key, flow(&e.value))).collect())),
    }
}

fn compare(path: &mut Path, old: Option<&Node>, new: Option<&Node>, found: &mut Vec<String>) {
    if let (Some(old), Some(new)) = (old.and_then(children), new.and_then(children)) {
        let of = |list: &[(String, &'_ Node)], key: &str| list.iter().position(|(name, _)| name == key);
        let gone = old.iter().filter(|(key, _)| of(&new, key).is_none()).map(|(key, node)| (key, Some(*node), None));
        let there = new.iter().map(|(key, node)| (key, of(&old, key).map(|i| old[i].1), Some(*node)));
        for (key, old, new) in gone.chain(there) {
            path.push(key.clone());
            compare(path, old, new, found);
            path.pop();
        }
    } else if old.map(flow) != new.map(flow) {
        let mut line = path.join(".");
        let _ = match (old, new) {
            (None, Some(new)) => write!(line, ": added {}", told(new)),
            (Some(old), None) => write!(line, ": removed, was {}", told(old)),
            (old, new) => write!(line, ": {} -> {}", old.map(told).unwrap_or_default(), new.map(told).unwrap_or_default()),
        };
        found.push(line);
    }
}

struct Compared<'r> {
    old: &'r RuleSet,
    new: &'r RuleSet,
    trees: (&'r Node, &'r Node),
    found: Vec<Loosening>,
}

impl Compared<'_> {
    fn note(&mut self, when: bool, path: &[&str], why: &'static str) {
        if when {
            self.found.push(Loosening { path: path.iter().map(|key| (*key).to_owned()).collect(), why });
        }
    }

    /// Notes what is written otherwise, whichever way: it makes the evidence so far mean something else.
    fn note_any(&mut self, path: &[&str], why: &'static str) {
        let keys: Path = path.iter().map(|key| (*key).to_owned()).collect();
        let text = |root| at(root, &keys).map(flow);
        self.note(text(self.trees.0) != text(self.trees.1), path, why);
    }

    fn all(mut self) -> Vec<Loosening> {
        let (old, new) = (&self.old.plan, &self.new.plan);
        let arms = |plan: &Plan| plan.buckets.iter().map(|b| (b.name.clone(), b.baseline)).collect::<Vec<_>>();
        self.note(arms(old) != arms(new), &["buckets"], "other buckets are another experiment");
        for guardrail in &old.guardrails {
            self.guardrail(guardrail);
        }
        for check in &old.quality {
            self.check(check);
        }
        self.analysis();
        self.actions();
        self.note(later(old.starts, new.starts), &["overview", "starts"], "it would start later");
        self.note(later(new.ends.or(Some(i64::MAX)), old.ends.or(Some(i64::MAX))), &["overview", "ends"], "it would end earlier");
        self.note_any(&["overview", "workflow"], "the metrics follow another workflow");
        for key in ["unit", "population", "exclude"] {
            self.note_any(&["eligibility", key], "other units would count");
        }
        let watched = |plan: &Plan| plan.watch_after_full.unwrap_or(i64::MAX);
        self.note(watched(new) < watched(old), &["rollout", "watch_after_full"], "the full rollout would be watched for less time");
        self.note(new.warm_up > old.warm_up, &["rollout", "warm_up"], "more would be left out at the start of a phase");
        self.found
    }

    fn guardrail(&mut self, old: &Guardrail) {
        let place: &[&str] = if old.primary { &["success", "primary"] } else { &["guardrails", &old.name] };
        let key = |key: &'static str| -> Vec<&str> { place.iter().copied().chain([key]).collect() };
        let margin = if old.primary { "stop_on_negative" } else { "max_increase" };
        let Some(new) = self.new.plan.guardrails.iter().find(|g| g.name == old.name && g.primary == old.primary) else {
            return self.note(true, place, "the guardrail would be gone");
        };
        let limit = match (old.limit, new.limit) {
            (Some(a), Some(b)) if old.higher_is_worse => b > a,
            (Some(a), Some(b)) => b < a,
            (a, b) => a.is_some() && b.is_none(),
        };
        let metric = old.name.split('#').next().unwrap_or_default();
        self.note(limit, &key("limit"), "the limit is wider");
        self.note(wider(old.max_increase, new.max_increase), &key(margin), "the margin is wider, or of another kind");
        self.note(new.hold > old.hold, &key("for"), "it would wait for longer");
        self.note(old.limit.is_some() && new.window > old.window, &key("window"), "a longer window dilutes what happens now");
        self.note(new.on_breach < old.on_breach, &key("on_breach"), "less would be done");
        self.note_any(&key("within"), "other workflows would count as abandoned");
        self.note_any(&key("workflow"), "other workflows would count");
        self.note_any(&["metrics", metric], "the metric asks something else");
    }

    fn check(&mut self, old: &QualityCheck) {
        let name = old.kind.name();
        let place = ["quality", name];
        let Some(new) = self.new.plan.quality.iter().find(|check| check.kind.name() == name) else {
            return self.note(true, &place, "the check would be gone");
        };
        self.note(new.action < old.action, &["quality", name, "do"], "less would be done");
        let (key, looser) = match (&old.kind, &new.kind) {
            (QualityKind::Srm { alpha: a }, QualityKind::Srm { alpha: b }) => ("alpha", b < a),
            (QualityKind::VolumeParity { max_gap: a }, QualityKind::VolumeParity { max_gap: b }) => ("max_gap", b > a),
            (QualityKind::MixedAssignment { max: a }, QualityKind::MixedAssignment { max: b })
            | (QualityKind::Ineligible { max: a }, QualityKind::Ineligible { max: b })
            | (QualityKind::SchemaViolations { max: a }, QualityKind::SchemaViolations { max: b }) => ("max", b > a),
            (QualityKind::Missing { fields: f, max: a }, QualityKind::Missing { fields: g, max: b }) => {
                let pointers = |fields: &[MissingField]| fields.iter().map(|f| f.pointer.clone()).collect::<Vec<_>>();
                let (before, now) = (pointers(f), pointers(g));
                self.note(before.iter().any(|p| !now.contains(p)), &["quality", name, "fields"], "a field would not be looked at");
                ("max", b > a)
            }
            (QualityKind::Silence { after: a }, QualityKind::Silence { after: b }) => ("after", b > a),
            _ => return,
        };
        self.note(looser, &["quality", name, key], "the check is wider");
    }

    fn analysis(&mut self) {
        let (old, new) = (&self.old.plan, &self.new.plan);
        self.note(new.alpha > old.alpha, &["analysis", "alpha"], "more false alarms than were promised");
        self.note(new.alpha < old.alpha, &["analysis", "alpha"], "a smaller budget proves harm later");
        self.note(old.method != new.method, &["analysis", "method"], "another test is another promise");
        self.note(old.correction != new.correction, &["analysis", "correction"], "another sharing of the budget is another promise");
        self.note(old.cuped != new.cuped, &["analysis", "cuped"], "the sums so far mean something else");
        self.note(new.min_units > old.min_units, &["analysis", "min_units"], "it would wait for more units");
        let acts = |segments: &Option<Segmentation>| segments.as_ref().is_some_and(|s| s.act);
        let fewer = acts(&old.segments) && old.segments != new.segments;
        self.note(fewer, &["analysis", "segments"], "segments that act would be others, or none");
    }

    fn actions(&mut self) {
        let (old, new) = (self.old, self.new);
        let observes = old.plan.mode == Mode::Enforce && new.plan.mode == Mode::Observe;
        self.note(observes, &["actions", "mode"], "nothing would be delivered");
        for action in old.routes.keys().filter(|action| !new.routes.contains_key(action)) {
            self.note(true, &["actions", action.name()], "the action would have no receiver");
        }
        let waits = new.plan.confirm_within > old.plan.confirm_within;
        self.note(waits, &["actions", "confirm_within"], "it would wait for longer");
        let rate = |limit: RateLimit| f64::from(limit.rollbacks) / limit.within as f64;
        let braked = match (old.plan.rate_limit, new.plan.rate_limit) {
            (None, limit) => limit.is_some(),
            (Some(old), Some(new)) => rate(new) < rate(old),
            (Some(_), None) => false,
        };
        self.note(braked, &["actions", "rate_limit"], "more would be held back");
        let lost = |old: &[Action], new: &[Action]| old.iter().any(|action| !new.contains(action));
        self.note(lost(&old.plan.unconfirmed, &new.plan.unconfirmed), &["actions", "unconfirmed"], "less would be done");
        self.note(lost(&old.plan.undone, &new.plan.undone), &["actions", "undone"], "less would be done");
    }
}

fn later(old: Option<i64>, new: Option<i64>) -> bool {
    new.unwrap_or(i64::MIN) > old.unwrap_or(i64::MIN)
}

fn wider(old: Option<Margin>, new: Option<Margin>) -> bool {
    match (old, new) {
        (None, _) => false,
        (Some(Margin::Relative(a)), Some(Margin::Relative(b))) | (Some(Margin::Absolute(a)), Some(Margin::Absolute(b))) => b > a,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::plan::FieldTable;
    use crate::rules::parse_str;

    const RULE: &str = "guardrail: v1
overview: {experiment: e, owner: o, starts: 2026-12-01T09:00:00Z, ends: 2026-12-15T09:00:00Z}
buckets: {a: {weight: 50%, baseline: true}, b: {weight: 50%}}
metrics: {orders: {kind: rate, event: outcome, where: {metric: order}, unit: user, better: up}}
success: {primary: {metric: orders, stop_on_negative: 1%}}
guardrails:
  - {metric: latency_p95, window: 10m, limit: 1500ms, max_increase: 10%, on_breach: rollback}
  - {metric: error_rate, limit: 5%, for: 30s, on_breach: pause}
  - {metric: error_rate, max_increase: 1pp, on_breach: rollback}
eligibility: {exclude: {tenant_id: [t-1]}}
rollout: {watch_after_full: 24h}
analysis: {alpha: 0.01, min_units: 100}
quality: {srm: {alpha: 0.001, do: pause}, silence: {after: 3m, do: hold}, missing: {fields: [/latency_ms], max: 2%, do: hold}}
actions: {mode: enforce, rollback: {webhook: f}, pause: {webhook: r}, page: {pagerduty: p}, notify: {slack: s}, confirm_within: 2m, unconfirmed: [page], rate_limit: {rollbacks: 3/h}}
";

    fn rule(text: &str) -> RuleSet {
        let parsed = parse_str("r.yaml", text, &mut FieldTable::default(), None);
        parsed.rule.unwrap_or_else(|| panic!("{:?}", parsed.diagnostics))
    }

    fn found(new: &str) -> Vec<String> {
        let faults = loosenings(&rule(RULE), RULE, &rule(new), new, "r.yaml");
        faults.iter().map(|fault| fault.message.trim_end_matches(" loosens a live rule").to_owned()).collect()
    }

    #[test]
    fn what_guards_less_needs_a_new_revision_and_what_guards_more_does_not() {
        for (old, new, place) in [
            ("limit: 1500ms", "limit: 2s", "guardrails.latency_p95.limit"),
            ("max_increase: 10%", "max_increase: 12%", "guardrails.latency_p95.max_increase"),
            ("max_increase: 10%", "max_increase: 50ms", "guardrails.latency_p95.max_increase"),
            ("for: 30s", "for: 1m", "guardrails.error_rate.for"),
            ("window: 10m, limit", "window: 20m, limit", "guardrails.latency_p95.window"),
            ("  - {metric: error_rate, max_increase: 1pp, on_breach: rollback}\n", "", "guardrails.error_rate#2"),
            ("on_breach: pause", "on_breach: notify", "guardrails.error_rate.on_breach"),
            ("stop_on_negative: 1%", "stop_on_negative: 2%", "success.primary.stop_on_negative"),
            ("{metric: order}, unit", "{metric: cart}, unit", "metrics.orders"),
            ("alpha: 0.01,", "alpha: 0.02,", "analysis.alpha"),
            ("alpha: 0.01,", "alpha: 0.001,", "analysis.alpha"),
            ("min_units: 100", "min_units: 1000", "analysis.min_units"),
            ("alpha: 0.001, do", "alpha: 0.0001, do", "quality.srm.alpha"),
            ("after: 3m", "after: 1h", "quality.silence.after"),
            ("[/latency_ms], max", "[/other], max", "quality.missing.fields"),
            ("do: pause}, silence", "do: notify}, silence", "quality.srm.do"),
            ("mode: enforce", "mode: observe", "actions.mode"),
            ("page: {pagerduty: p}, notify", "notify", "actions.page"),
            ("confirm_within: 2m", "confirm_within: 5m", "actions.confirm_within"),
            ("rollbacks: 3/h", "rollbacks: 1/h", "actions.rate_limit"),
            ("t-1", "t-2", "eligibility.exclude"),
            ("b: {weight: 50%}", "c: {weight: 50%}", "buckets"),
            ("2026-12-15", "2026-12-14", "overview.ends"),
            ("24h", "12h", "rollout.watch_after_full"),
        ] {
            assert!(RULE.contains(old), "{old}");
            let text = RULE
                .replace(old, new)
                .replace("unconfirmed: [page]", if place == "actions.page" { "unconfirmed: [notify]" } else { "unconfirmed: [page]" });
            assert!(found(&text).iter().any(|path| path == place), "{old} -> {new}: {:?}", found(&text));
            assert!(found(&text.replace("guardrail: v1", "guardrail: v1\nrevision: 2")).is_empty());
        }
        for (old, new) in [
            ("limit: 1500ms", "limit: 1s"),
            ("max_increase: 10%", "max_increase: 5%"),
            ("for: 30s", "for: 10s"),
            ("on_breach: pause", "on_breach: rollback"),
            ("  - {metric: error_rate, limit", "  - {metric: tickets, limit: 10%}\n  - {metric: error_rate, limit"),
            ("after: 3m", "after: 1m"),
            ("rollbacks: 3/h", "rollbacks: 9/h"),
            ("2026-12-15", "2026-12-20"),
            ("owner: o", "owner: p"),
            ("webhook: f", "webhook: g"),
        ] {
            assert_eq!(found(&RULE.replace(old, new)), [""; 0], "{old} -> {new}");
        }
    }

    #[test]
    fn a_loosening_is_shown_where_it_stands_with_what_was_there() {
        let text = RULE.replace("max_increase: 10%", "max_increase: 30%");
        let [fault] = &loosenings(&rule(RULE), RULE, &rule(&text), &text, "r.yaml")[..] else { panic!("one fault") };
        assert_eq!((fault.line, fault.column), (7, 69), "{}", fault.human(false));
        assert!(fault.short().ends_with("the margin is wider, or of another kind: was 10% in revision 1"), "{}", fault.short());
        assert!(fault.help.as_deref().unwrap_or_default().starts_with("set `revision: 2`"));
    }

    #[test]
    fn differences_are_told_by_place_and_bounded() {
        let new = RULE.replace("limit: 1500ms, ", "").replace("for: 30s", "for: 10s").replace("owner: o", "owner: o, name: n");
        assert_eq!(
            lines(RULE, &new),
            ["overview.name: added n", "guardrails.latency_p95.limit: removed, was 1500ms", "guardrails.error_rate.for: 30s -> 10s"]
        );
        let many = |n: usize| format!("m: {{{}}}\n", (0..90).map(|i| format!("k{i}: {}", i * n)).collect::<Vec<_>>().join(", "));
        let told = lines(&many(1), &many(2));
        assert_eq!((told.len(), told[40].as_str()), (41, "and 49 more"));
    }
}
