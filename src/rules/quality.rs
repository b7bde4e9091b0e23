//! The `quality` section: checks of the data itself, some of them on unless turned off.

use super::diagnostic::Faults;
use super::lower::{Context, action, share, span};
use super::quantity::number;
use super::shape::is_pointer;
use super::yaml::Node;
use crate::engine::decision::Action;
use crate::engine::plan::{FieldTable, MissingField, QualityCheck, QualityKind, Source};

/// Fields of requests that built-in metrics read.
const BUILT_IN_FIELDS: [&str; 2] = ["/latency_ms", "/error"];
/// Fields of the `missing` check at most.
const MAX_FIELDS: usize = 16;

/// The checks that apply, in the order of the contract's list.
pub(super) fn read(context: &Context<'_>, fields: &mut FieldTable, faults: &mut Faults) -> Vec<QualityCheck> {
    let section = context.root.get("quality");
    let mut checks = Vec::new();
    for name in ["srm", "volume_parity", "mixed_assignment", "ineligible", "missing", "schema_violations", "silence"] {
        let node = section.and_then(|q| q.get(name));
        let by_default = matches!(name, "srm" | "mixed_assignment" | "schema_violations" | "silence");
        if node.is_none() && !by_default || node.and_then(Node::text) == Some("off") {
            continue;
        }
        if let Some(given) = node.and_then(|n| n.get("do")) {
            context.check_route(given, faults);
        }
        let given = node.and_then(|n| n.get("do")).and_then(action);
        let (kind, default) = kind(name, node, context, fields, faults);
        checks.push(QualityCheck { kind, action: given.unwrap_or(default) });
    }
    checks
}

fn kind(name: &str, node: Option<&Node>, context: &Context<'_>, fields: &mut FieldTable, faults: &mut Faults) -> (QualityKind, Action) {
    let key = |key: &str| node.and_then(|n| n.get(key));
    let max = |default: f64| key("max").and_then(share).unwrap_or(default);
    match name {
        "srm" => (QualityKind::Srm { alpha: key("alpha").and_then(Node::text).and_then(number).unwrap_or(0.001) }, Action::Pause),
        "volume_parity" => (QualityKind::VolumeParity { max_gap: key("max_gap").and_then(share).unwrap_or(0.1) }, Action::Pause),
        "mixed_assignment" => (QualityKind::MixedAssignment { max: max(0.01) }, Action::Pause),
        "ineligible" => (QualityKind::Ineligible { max: max(0.0) }, Action::Page),
        "missing" => {
            let pointers = key("fields").map_or(&[][..], Node::list);
            if let Some(list) = key("fields").filter(|n| n.is_empty_list()) {
                faults.error(&list.span, "GR2005", "no field to look at", "add one, such as `/latency_ms`");
            }
            if let Some(node) = pointers.get(MAX_FIELDS) {
                faults.error(&node.span, "GR1008", format!("{} fields", pointers.len()), format!("{MAX_FIELDS} at most"));
            }
            let fields = pointers.iter().take(MAX_FIELDS).filter_map(|p| missing_field(p, context, fields, faults)).collect();
            (QualityKind::Missing { fields, max: max(0.01) }, Action::Hold)
        }
        "schema_violations" => (QualityKind::SchemaViolations { max: max(0.01) }, Action::Hold),
        _ => {
            let after = key("after");
            let ms = after.and_then(span).unwrap_or(180_000);
            if let Some(node) = after.filter(|_| ms < 1_000) {
                faults.error(&node.span, "GR2404", "too short a time", "at least `1s`");
            }
            (QualityKind::Silence { after: ms }, Action::Hold)
        }
    }
}

/// A field that records should have: what a built-in metric reads, of all requests; else of the events that a metric with it reads.
fn missing_field(node: &Node, context: &Context<'_>, fields: &mut FieldTable, faults: &mut Faults) -> Option<MissingField> {
    let pointer = node.text().filter(|p| is_pointer(p))?;
    let reads = |metric: &Node| ["value", "covariate"].iter().any(|key| metric.get(key).and_then(Node::text) == Some(pointer));
    let metrics = context.root.get("metrics").map_or(&[][..], Node::entries);
    let reader = metrics.iter().filter(|_| !BUILT_IN_FIELDS.contains(&pointer)).find(|e| reads(&e.value));
    let source = reader.and_then(|e| context.metrics.get(&e.key)).and_then(|metric| metric.signal.source());
    let source = source.cloned().unwrap_or_else(|| Source { event: "request".to_owned(), filter: Vec::new() });
    let field = fields.intern(&source.event, pointer);
    if field.is_none() {
        faults.error(&node.span, "GR1008", "too many fields in all rule files", "65,536 are read at most");
    }
    Some(MissingField { source, pointer: pointer.to_owned(), field: field? })
}
