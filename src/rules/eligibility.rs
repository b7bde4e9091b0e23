//! The `eligibility` section: who takes part, and how the flag service assigns.

use super::diagnostic::{Faults, quote};
use super::lower::{Context, share};
use super::yaml::{Entry, Node};
use crate::engine::assign::{Algorithm, Assignment, UnitField};
use crate::engine::eligible::{Eligibility, Trait};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn read(context: &Context<'_>, faults: &mut Faults) -> (Eligibility, Option<Assignment>) {
    let Some(section) = context.root.get("eligibility") else { return (Eligibility::default(), None) };
    let eligibility =
        Eligibility { population: traits(section.get("population"), faults), exclude: traits(section.get("exclude"), faults) };
    let unit = unit(section.get("unit"), faults);
    let holdback = section.get("holdback");
    if let Some(node) = holdback.filter(|n| share(n) == Some(1.0)) {
        faults.error(&node.span, "GR2203", "nobody takes part", "less than 100%");
    }
    let assignment = section.get("assignment").map(|node| assignment(node, unit, holdback.and_then(share).unwrap_or(0.0), context, faults));
    check_ineligible(context, &eligibility, section, faults);
    (eligibility, assignment)
}

/// Attributes, or parts of the unit, with the values that are asked for.
fn traits(section: Option<&Node>, faults: &mut Faults) -> Vec<(Trait, BTreeSet<String>)> {
    let of = |entry: &Entry| {
        if entry.value.is_empty_list() {
            faults.error(&entry.value.span, "GR2005", format!("no value of {}", quote(&entry.key)), "add one, or remove the line");
        }
        let what = match entry.key.as_str() {
            "tenant_id" => Trait::Tenant,
            "user_id" => Trait::User,
            name => Trait::Attribute(name.to_owned()),
        };
        (what, entry.value.list().iter().filter_map(Node::text).map(str::to_owned).collect())
    };
    section.map_or(&[][..], Node::entries).iter().map(of).collect()
}

fn unit(list: Option<&Node>, faults: &mut Faults) -> Vec<UnitField> {
    let Some(list) = list else { return vec![UnitField::Tenant, UnitField::User] };
    if list.is_empty_list() {
        faults.error(&list.span, "GR2508", "a unit without a field", "write `[tenant_id, user_id]`, or one of them");
    }
    let mut fields = Vec::new();
    for node in list.list() {
        let field = match node.text() {
            Some("tenant_id") => UnitField::Tenant,
            Some("user_id") => UnitField::User,
            Some(other) => {
                faults.error(&node.span, "GR2508", format!("{} is no field of a unit", quote(other)), "`tenant_id` or `user_id`");
                continue;
            }
            None => continue,
        };
        if fields.contains(&field) {
            faults.error(&node.span, "GR2508", "a field given twice", "remove one");
            continue;
        }
        fields.push(field);
    }
    if fields == [UnitField::Tenant] && list.list().len() == 1 {
        let fault = faults.at(&list.span, "GR2608", "whole tenants are assigned").with_label("users of a tenant share its bucket");
        let help = "tests take users as assigned one by one: with few or unequal tenants they alarm more often than `alpha` allows";
        faults.push(fault.with_help(help).as_warning());
    }
    fields
}

fn assignment(node: &Node, unit: Vec<UnitField>, holdback: f64, context: &Context<'_>, faults: &mut Faults) -> Assignment {
    let text = |key: &str| node.get(key).and_then(Node::text);
    let experiment = context.root.get("overview").and_then(|o| o.get("experiment")).and_then(Node::text);
    let mut overrides = BTreeMap::new();
    for entry in node.get("overrides").map_or(&[][..], Node::entries) {
        if entry.key.split('|').count() < unit.len() {
            let fault = faults.at(&entry.key_span, "GR2508", format!("{} names no unit", quote(&entry.key)));
            faults.push(fault.with_label("write the fields of `unit`, joined by `|`: `t-qa|u-1`"));
        }
        let named = |name: &str| context.buckets.iter().position(|b| b.name == name);
        if let Some(bucket) = entry.value.text().and_then(named) {
            overrides.insert(entry.key.clone(), bucket as u8);
        }
    }
    Assignment {
        algorithm: match text("algorithm") {
            Some("murmur3") => Algorithm::Murmur3,
            Some("xxh3") => Algorithm::Xxh3,
            Some("sha256") => Algorithm::Sha256,
            _ => Algorithm::GrowthbookV2,
        },
        namespace: text("namespace").or(experiment).unwrap_or_default().to_owned(),
        unit,
        overrides,
        holdback,
        baseline: context.buckets.iter().position(|b| b.baseline).unwrap_or(0),
    }
}

/// A population that nobody watches.
fn check_ineligible(context: &Context<'_>, eligibility: &Eligibility, section: &Node, faults: &mut Faults) {
    if eligibility.asks() && context.root.get("quality").and_then(|q| q.get("ineligible")).is_none() {
        let fault = faults.at(&section.span, "GR2609", "nobody is told of an exposure that is not eligible");
        let fault = fault.with_label("such units are left out and counted, and that is all");
        faults.push(fault.with_help("add `quality: {ineligible: {max: 0, do: page}}`").as_note());
    }
}
