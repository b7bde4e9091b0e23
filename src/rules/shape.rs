//! Checks a tree against the tables of [`super::keys`]: every unknown key and malformed value at once.

use super::diagnostic::{Faults, nearest, quote};
use super::keys::{Section, Shape};
use super::quantity::{Quantity, is_rate};
use super::yaml::{Kind, Node};
use std::ops::Range;

/// Bytes of a name at most.
pub const MAX_NAME: usize = 128;

/// Reports everything about `node` that does not fit `section`.
pub fn check_section(node: &Node, section: &Section, faults: &mut Faults) {
    if !expect_map(node, section.name, faults) {
        return;
    }
    let entries = node.entries();
    for (i, entry) in entries.iter().enumerate() {
        if entries[..i].iter().any(|e| e.key == entry.key) {
            duplicate(&entry.key, &entry.key_span, faults);
            continue;
        }
        match section.keys.iter().find(|k| k.name == entry.key) {
            Some(key) => check(&entry.value, &key.shape, key.name, key.example, faults),
            None => unknown_key(&entry.key, &entry.key_span, section, faults),
        }
    }
    for key in section.keys.iter().filter(|k| k.required && node.get(k.name).is_none()) {
        let example = if key.example.is_empty() { String::new() } else { format!(", for example `{}: {}`", key.name, key.example) };
        let fault = faults
            .at(&node.span, "GR1003", format!("{} needs `{}`", section.name, key.name))
            .with_label(format!("add `{}`{example}", key.name));
        faults.push(fault.with_help(key.doc));
    }
}

fn check(node: &Node, shape: &Shape, name: &str, example: &str, faults: &mut Faults) {
    match shape {
        Shape::Any => {}
        Shape::Section(section) => check_section(node, section, faults),
        Shape::NameOr(section) if node.text().is_none() => check_section(node, section, faults),
        Shape::OffOr(section) if node.text() != Some("off") => {
            if node.text().is_some() || node.is_null() {
                wrong(node, name, "settings in braces, or the word `off`", faults);
            } else {
                check_section(node, section, faults);
            }
        }
        Shape::OffOr(_) => {}
        Shape::List(item) => match &node.kind {
            Kind::List(items) => items.iter().for_each(|n| check(n, item, name, "", faults)),
            _ => wrong(node, name, &with_example("a list", example), faults),
        },
        Shape::OneOrList(item) => match &node.kind {
            Kind::List(items) if items.is_empty() => wrong(node, name, &with_example("at least one value", example), faults),
            Kind::List(items) => items.iter().for_each(|n| check(n, item, name, example, faults)),
            _ => check(node, item, name, example, faults),
        },
        Shape::MapOf(value) => {
            if expect_map(node, &quote(name), faults) {
                check_names(node, value, faults);
            }
        }
        Shape::Pointers | Shape::PointersOr(_) if matches!(node.kind, Kind::List(_)) => {
            if node.is_empty_list() {
                wrong(node, name, "at least one JSON Pointer", faults);
            }
            node.list().iter().for_each(|n| check(n, &Shape::Pointer, name, example, faults));
        }
        Shape::PointersOr(section) if node.text().is_none() => check_section(node, section, faults),
        Shape::PointerOrMapOf(value) if node.text().is_none() => {
            if expect_map(node, &quote(name), faults) {
                check_names(node, value, faults);
            }
        }
        Shape::Pointers | Shape::PointersOr(_) | Shape::PointerOrMapOf(_) => check_scalar(node, &Shape::Pointer, name, example, faults),
        _ => check_scalar(node, shape, name, example, faults),
    }
}

/// A mapping whose keys the author chooses.
fn check_names(node: &Node, value: &Shape, faults: &mut Faults) {
    let entries = node.entries();
    for (i, entry) in entries.iter().enumerate() {
        if entries[..i].iter().any(|e| e.key == entry.key) {
            duplicate(&entry.key, &entry.key_span, faults);
            continue;
        }
        check_name(&entry.key, &entry.key_span, faults);
        check(&entry.value, value, &entry.key, "", faults);
    }
}

fn check_scalar(node: &Node, shape: &Shape, name: &str, example: &str, faults: &mut Faults) {
    let Some(text) = node.text() else {
        return wrong(node, name, &with_example(noun(shape), example), faults);
    };
    let span = &node.span;
    match shape {
        Shape::Name | Shape::NameOr(_) => check_name(text, span, faults),
        Shape::Bool if node.boolean().is_none() => wrong(node, name, "true or false", faults),
        Shape::Int(least) => check_int(text, *least, span, faults),
        Shape::Probability => check_probability(text, span, faults),
        Shape::Percent => check_percent(text, span, faults),
        Shape::Duration => check_duration(text, span, faults),
        Shape::Quantity if Quantity::parse(text).is_none() => {
            faults.error(span, "GR1006", format!("{} is no quantity", quote(text)), "write `10%`, `0.5pp`, `20ms` or a number");
        }
        Shape::Frequency if !is_rate(text) => {
            faults.error(span, "GR1006", format!("{} is no frequency", quote(text)), "write `3/h` or `120k/day`");
        }
        Shape::Timestamp if text.parse::<jiff::Timestamp>().is_err() => {
            faults.error(span, "GR1006", format!("{} is no point in time", quote(text)), "write RFC 3339, such as `2026-12-01T09:00:00Z`");
        }
        Shape::Pointer if !is_pointer(text) => {
            let fault = faults.at(span, "GR2502", "not a JSON Pointer");
            let label =
                if text.starts_with('/') { "`~` is written `~0`".to_owned() } else { format!("write {}", quote(&format!("/{text}"))) };
            faults.push(fault.with_label(label));
        }
        Shape::Const(word) if text != *word => {
            faults.error(span, "GR1010", format!("this program reads `{name}: {word}`"), format!("write `{word}`"));
        }
        Shape::Word(words) => check_word(text, words, name, span, faults),
        _ => {}
    }
}

/// Says whether `text` is one of `words`, with the nearest if not.
fn check_word(text: &str, words: &[&str], name: &str, span: &Range<usize>, faults: &mut Faults) {
    if words.contains(&text) {
        return;
    }
    let listed = words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
    let fault = faults.at(span, "GR1005", format!("`{name}` cannot be {}", quote(text)));
    let fault = match nearest(text, words.iter().copied()) {
        Some(word) => fault.with_label(format!("did you mean `{word}`?")).with_help(format!("it can be {listed}")),
        None => fault.with_label(format!("one of {listed}")),
    };
    faults.push(fault);
}

fn check_name(text: &str, span: &Range<usize>, faults: &mut Faults) {
    let trouble = if text.is_empty() {
        "is empty".to_owned()
    } else if text.len() > MAX_NAME {
        format!("has {} bytes, {MAX_NAME} are allowed", text.len())
    } else if text.chars().any(char::is_control) {
        "holds control characters".to_owned()
    } else if text.trim() != text {
        "begins or ends with a space".to_owned()
    } else {
        return;
    };
    faults.error(span, "GR1009", format!("a name that {trouble}"), "");
}

fn check_int(text: &str, least: u32, span: &Range<usize>, faults: &mut Faults) {
    match text.parse::<u32>() {
        Ok(value) if value >= least => {}
        Ok(_) => faults.error(span, "GR2203", format!("must be at least {least}"), ""),
        Err(_) if text.starts_with('-') => faults.error(span, "GR2004", "a negative number", format!("a whole number of at least {least}")),
        Err(_) => faults.error(span, "GR1002", "not a whole number", format!("a whole number of at least {least}")),
    }
}

fn check_probability(text: &str, span: &Range<usize>, faults: &mut Faults) {
    match Quantity::parse(text) {
        Some(Quantity::Number(p)) if p > 0.0 && p < 1.0 => {}
        Some(Quantity::Number(p) | Quantity::Percent(p)) => {
            let bare = !text.ends_with('%');
            let share = if bare && p >= 1.0 { p / 100.0 } else { p };
            let label = if share > 0.0 && share < 1.0 {
                let percent = share * 100.0;
                format!("{percent} percent is `{share}`")
            } else {
                "write a number such as `0.01`".to_owned()
            };
            faults.error(span, "GR2201", "a probability is a number between 0 and 1", label);
        }
        _ => faults.error(span, "GR1002", "not a probability", "a number between 0 and 1"),
    }
}

fn check_percent(text: &str, span: &Range<usize>, faults: &mut Faults) {
    match Quantity::parse(text) {
        Some(Quantity::Number(0.0)) => {}
        Some(q) if q.is_negative() => faults.error(span, "GR2004", "a negative share", "0% to 100%"),
        Some(Quantity::Percent(share)) if share <= 1.0 => {}
        Some(Quantity::Percent(_)) => faults.error(span, "GR2203", "more than the whole", "0% to 100%"),
        Some(Quantity::Number(n)) => {
            let label = if n < 1.0 { format!("write `{}%` or `{n}%`", n * 100.0) } else { format!("write `{n}%`") };
            faults.error(span, "GR2001", "no unit", label);
        }
        _ => faults.error(span, "GR1006", format!("{} is no share", quote(text)), "write a percentage such as `5%`"),
    }
}

fn check_duration(text: &str, span: &Range<usize>, faults: &mut Faults) {
    match Quantity::parse(text) {
        Some(q) if q.is_negative() => faults.error(span, "GR2004", "a negative time", ""),
        Some(Quantity::Span(_)) => {}
        Some(Quantity::Number(n)) => {
            faults.error(span, "GR2001", "no unit", format!("`{n}s` is seconds, `{n}m` minutes; ms, h and d fit too"))
        }
        _ => faults.error(span, "GR1006", format!("{} is no time", quote(text)), "write `500ms`, `30s`, `10m`, `6h` or `1d`"),
    }
}

/// Whether `text` is a JSON Pointer to a field inside a record.
pub fn is_pointer(text: &str) -> bool {
    let escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    text.len() > 1 && text.len() <= 1024 && text.starts_with('/') && escapes && !text.chars().any(char::is_control)
}

fn expect_map(node: &Node, name: &str, faults: &mut Faults) -> bool {
    let is_map = matches!(node.kind, Kind::Map(_));
    if !is_map {
        let fault = faults.at(&node.span, "GR1002", format!("{name} must be a mapping")).with_label(format!("this is {}", node.noun()));
        let fault = if node.is_null() { fault.with_help("an empty one is written `{}`") } else { fault };
        faults.push(fault);
    }
    is_map
}

fn wrong(node: &Node, name: &str, wanted: &str, faults: &mut Faults) {
    faults.error(&node.span, "GR1002", format!("{} must be {wanted}", quote(name)), format!("this is {}", node.noun()));
}

fn duplicate(key: &str, span: &Range<usize>, faults: &mut Faults) {
    faults.error(span, "GR1004", format!("{} is given twice", quote(key)), "remove one");
}

fn unknown_key(key: &str, span: &Range<usize>, section: &Section, faults: &mut Faults) {
    let near = nearest(key, section.keys.iter().map(|k| k.name));
    let fault = faults.at(span, "GR1001", format!("{} has no key {}", section.name, quote(key)));
    let listed = section.keys.iter().map(|k| k.name).collect::<Vec<_>>().join(", ");
    let fault = fault.with_label(near.map_or(String::from("unknown key"), |k| format!("did you mean `{k}`?")));
    faults.push(fault.with_help(format!("it has: {listed}")));
}

fn with_example(noun: &str, example: &str) -> String {
    if example.is_empty() { noun.to_owned() } else { format!("{noun}, such as `{example}`") }
}

fn noun(shape: &Shape) -> &'static str {
    match shape {
        Shape::Bool => "true or false",
        Shape::Int(_) => "a whole number",
        Shape::Probability => "a number between 0 and 1",
        Shape::Percent => "a percentage",
        Shape::Duration => "a time",
        Shape::Quantity => "a number with its unit",
        Shape::Frequency => "a frequency",
        Shape::Timestamp => "a point in time",
        Shape::Pointer => "a JSON Pointer",
        Shape::Name | Shape::NameOr(_) => "a name",
        Shape::Const(_) | Shape::Word(_) => "a word",
        _ => "text",
    }
}
