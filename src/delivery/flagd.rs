//! A file of flag definitions that flagd and OpenFeature's providers read: one flag is changed in its text, and nothing else.

use super::endpoint::Endpoint;
use super::template::{self, Unfit};
use crate::store::Delivery;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Bytes of a file, at most.
const LARGEST: u64 = 16 << 20;

/// Why a flag was not changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlagdError {
    #[error("the file of flags: {0}")]
    Io(#[from] io::Error),
    /// Another attempt may find another text.
    #[error("the file of flags {0}")]
    File(String),
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

/// What a message asks for.
pub(super) struct Asked {
    flag: String,
    /// The variant for everybody; the flag is turned off without one.
    serve: Option<String>,
    /// Nothing is to be changed.
    looks: bool,
}

/// # Errors
/// The message means nothing here, or names no flag.
pub(super) fn asked(endpoint: &Endpoint, delivery: &Delivery) -> Result<Asked, Unfit> {
    let values = template::values(endpoint, delivery);
    let text = |key: &str| values.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    let looks = match delivery.event_type.as_str() {
        "guardrail.rollback" | "guardrail.kill" => false,
        "guardrail.test" => true,
        other => return Err(Unfit(format!("{other} means nothing to kind `flagd`, which acts on rollback and kill"))),
    };
    let flag = text("flag").ok_or_else(|| Unfit::unknown("flag"))?;
    // Only where the endpoint asks for one: a bucket's name in a rule need not be that of a variant.
    let serve = text("serve").filter(|_| endpoint.texts.contains_key("serve"));
    Ok(Asked { flag, serve, looks })
}

/// Carries out a message: a rollback or kill turns the flag off, or lets it serve one variant to everybody; a test looks whether the flag is
/// there and the file could be written. Blocks.
///
/// # Errors
/// The file cannot be read or replaced, is not flagd's, or lacks the flag; or the message means nothing here.
pub(super) fn apply(endpoint: &Endpoint, delivery: &Delivery) -> Result<(), FlagdError> {
    let Asked { flag, serve, looks } = asked(endpoint, delivery)?;
    // Behind a link lies what is replaced.
    let path = fs::canonicalize(endpoint.file.as_deref().unwrap_or(Path::new("")))?;
    if fs::metadata(&path)?.len() > LARGEST {
        return Err(FlagdError::File(format!("has more than {LARGEST} bytes")));
    }
    let text = fs::read_to_string(&path)?;
    match edited(&text, &flag, serve.as_deref()).map_err(FlagdError::File)? {
        _ if looks => {
            tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
            Ok(())
        }
        // It is off, or serves the variant, already.
        None => Ok(()),
        Some(text) => Ok(replace(&path, &text)?),
    }
}

/// The text with the flag off, or with `serve` as the variant of everybody; `None` where that is so already.
fn edited(text: &str, flag: &str, serve: Option<&str>) -> Result<Option<String>, String> {
    let no_json = |e: serde_json::Error| format!("is not JSON: {e}; files in YAML are not written");
    let top: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(no_json)?;
    let flags = top.get("flags").ok_or("has no `flags`")?;
    let flags: BTreeMap<String, &RawValue> = serde_json::from_str(flags.get()).map_err(|_| "has `flags` that are no map")?;
    let definition = flags.get(flag).ok_or_else(|| format!("has no flag `{flag}`"))?;
    let no_map = |_| format!("has a flag `{flag}` that is no map");
    let keys: BTreeMap<String, &RawValue> = serde_json::from_str(definition.get()).map_err(no_map)?;
    let edits = match serve {
        None => vec![("state", "\"DISABLED\"".to_owned())],
        Some(variant) => serving(&keys, variant)?,
    };
    let mut changed = text.to_owned();
    // From the end, so that places before it stay.
    let mut places: Vec<(usize, usize, String)> = Vec::new();
    for (key, value) in edits {
        match keys.get(key) {
            Some(old) if old.get() == value => {}
            Some(old) => places.push((offset(text, old.get()), old.get().len(), value)),
            None => {
                let comma = if keys.is_empty() { "" } else { ", " };
                places.push((offset(text, definition.get()) + 1, 0, format!("\"{key}\": {value}{comma}")));
            }
        }
    }
    places.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
    let is_changed = !places.is_empty();
    for (at, len, value) in places {
        changed.replace_range(at..at + len, &value);
    }
    // What was a fit file must be one still.
    serde_json::from_str::<serde::de::IgnoredAny>(&changed).map_err(|e| format!("would not be JSON any more: {e}"))?;
    Ok(is_changed.then_some(changed))
}

/// Everybody gets the variant. Targeting is kept within a condition that never holds, so that a person can take it out again.
fn serving(keys: &BTreeMap<String, &RawValue>, variant: &str) -> Result<Vec<(&'static str, String)>, String> {
    let variants = keys.get("variants").map(|v| v.get()).unwrap_or("{}");
    let variants: BTreeMap<String, &RawValue> = serde_json::from_str(variants).map_err(|_| "has `variants` that are no map")?;
    if !variants.contains_key(variant) {
        return Err(format!("has no variant `{variant}` of the flag"));
    }
    let name = serde_json::Value::from(variant).to_string();
    let mut edits = vec![("defaultVariant", name.clone())];
    if let Some(targeting) = keys.get("targeting").map(|t| t.get()).filter(|t| *t != "{}" && *t != "null") {
        let (before, after) = ("{\"if\": [false, ", format!(", {name}]}}"));
        if !(targeting.starts_with(before) && targeting.ends_with(&after)) {
            edits.push(("targeting", format!("{before}{targeting}{after}")));
        }
    }
    Ok(edits)
}

/// Where a part of a text begins.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize
}

/// Another text under the same name: whole, whatever happens, and there after a power cut.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(fs::metadata(path)?.permissions())?;
    new.as_file().sync_all()?;
    new.persist(path).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
  "$schema": "https://flagd.dev/schema/v0/flags.json",
  "flags": {
    "other": {"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"},
    "new-checkout": {
      "variants": { "control": "old", "treatment": "new" },
      "state":  "ENABLED",
      "defaultVariant": "treatment",
      "targeting": {"fractional": [["control", 50], ["treatment", 50]]}
    }
  }
}
"#;

    #[test]
    fn a_flag_is_turned_off_and_the_rest_stays_byte_for_byte() {
        let off = edited(FILE, "new-checkout", None).unwrap().unwrap();
        assert_eq!(off, FILE.replace("\"state\":  \"ENABLED\"", "\"state\":  \"DISABLED\""));
        assert_eq!(edited(&off, "new-checkout", None).unwrap(), None, "a repeat changes nothing");
    }

    #[test]
    fn everybody_gets_a_variant_and_targeting_is_kept_for_later() {
        let control = edited(FILE, "new-checkout", Some("control")).unwrap().unwrap();
        let wanted = FILE.replace("\"defaultVariant\": \"treatment\"", "\"defaultVariant\": \"control\"").replace(
            "{\"fractional\": [[\"control\", 50], [\"treatment\", 50]]}",
            "{\"if\": [false, {\"fractional\": [[\"control\", 50], [\"treatment\", 50]]}, \"control\"]}",
        );
        assert_eq!(control, wanted);
        assert_eq!(edited(&control, "new-checkout", Some("control")).unwrap(), None, "a repeat changes nothing");
    }

    #[test]
    fn what_is_missing_is_added_and_what_is_wrong_is_said() {
        let bare = r#"{"flags":{"x":{"variants":{"a":1}}}}"#;
        assert_eq!(edited(bare, "x", None).unwrap().unwrap(), r#"{"flags":{"x":{"state": "DISABLED", "variants":{"a":1}}}}"#);
        let fault = |text: &str, serve| edited(text, "x", serve).unwrap_err();
        assert!(fault("flags:\n  x: {}", None).contains("YAML"));
        assert_eq!(fault("{}", None), "has no `flags`");
        assert_eq!(fault(r#"{"flags":{}}"#, None), "has no flag `x`");
        assert_eq!(fault(r#"{"flags":{"x":7}}"#, None), "has a flag `x` that is no map");
        assert_eq!(fault(bare, Some("b")), "has no variant `b` of the flag");
    }
}
