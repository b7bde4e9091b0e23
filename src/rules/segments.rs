//! `analysis.segments`.

use super::diagnostic::{Faults, quote};
use super::yaml::Node;
use crate::engine::plan::{MAX_ATTRIBUTES, MAX_SEGMENTS, Segmentation};

/// Segments where the rule does not say how many.
const DEFAULT_TOP: usize = 8;

pub(super) fn read(analysis: Option<&Node>, faults: &mut Faults) -> Option<Segmentation> {
    let section = analysis?.get("segments")?;
    let list = section.get("by")?;
    let names = list.list();
    if list.is_empty_list() {
        faults.error(&list.span, "GR2005", "no attribute to slice by", "add one, such as `region`");
    } else if let Some(node) = names.get(MAX_ATTRIBUTES) {
        faults.error(&node.span, "GR2103", format!("{} attributes", names.len()), format!("{MAX_ATTRIBUTES} at most"));
    }
    for (i, node) in names.iter().enumerate() {
        if names[..i].iter().any(|n| n.text() == node.text()) {
            faults.error(&node.span, "GR1004", format!("{} is given twice", quote(node.text().unwrap_or_default())), "remove one");
        }
    }
    let given = section.get("top").and_then(|n| Some((n, n.text()?.parse().ok()?)));
    if let Some((node, _)) = given.filter(|(_, top)| *top > MAX_SEGMENTS) {
        faults.error(&node.span, "GR2203", format!("more than {MAX_SEGMENTS} segments"), "each makes the tests of all of them weaker");
    }
    Some(Segmentation {
        by: names.iter().filter_map(|n| n.text().map(str::to_owned)).collect(),
        top: given.map_or(DEFAULT_TOP, |(_, top)| top),
        act: section.get("act").and_then(Node::boolean) == Some(true),
    })
}
