//! Secrets by reference: a configuration names where a secret is kept and never holds it.

use super::reader::{Fault, code};
use figment::value::{Dict, Value};
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const KINDS: [&str; 3] = ["env", "file", "credential"];
/// A secret is no larger than this, in bytes; key and certificate chains fit.
const MAX_SECRET: u64 = 256 << 10;

/// Whether a map is meant as a reference.
pub fn is_reference(dict: &Dict) -> bool {
    dict.len() == 1 && dict.keys().all(|key| KINDS.contains(&key.as_str()))
}

/// Reads the secret that `value` refers to.
pub fn resolve(value: &Value, env: &BTreeMap<String, String>, locate: &dyn Fn(&str) -> PathBuf) -> Result<SecretString, Fault> {
    let Some(dict) = value.as_dict() else {
        return Err(Fault::new(code::LITERAL_SECRET, "a secret is given by reference only")
            .help("write {file: PATH}, {env: NAME} or {credential: NAME}, and take the secret out of this place"));
    };
    let reference = if is_reference(dict) { dict.iter().next() } else { None };
    let Some((kind, Some(name))) = reference.map(|(kind, name)| (kind.as_str(), name.as_str())) else {
        return Err(Fault::new(code::WRONG_TYPE, "expected {file: PATH}, {env: NAME} or {credential: NAME}"));
    };
    let unusable = |message: String| Fault::new(code::UNUSABLE_SECRET, message);
    let secret = match kind {
        "env" => env.get(name).cloned().ok_or_else(|| unusable(format!("variable {name} is not set")))?,
        "file" => read(&locate(name)).map_err(unusable)?,
        _ => {
            let directory = env.get("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                unusable("CREDENTIALS_DIRECTORY is not set".to_owned()).help("give the systemd unit `LoadCredential=`, or use {file: PATH}")
            })?;
            if name.contains('/') || name.starts_with('.') {
                return Err(unusable(format!("`{name}` is not the name of a credential")));
            }
            read(&Path::new(directory).join(name)).map_err(unusable)?
        }
    };
    match secret.trim_end_matches(['\r', '\n']) {
        "" => Err(unusable(format!("the secret in {kind} {name} is empty"))),
        secret => Ok(SecretString::from(secret)),
    }
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.len() > MAX_SECRET {
        return Err(format!("{} has {} bytes; a secret has at most {MAX_SECRET}", path.display(), metadata.len()));
    }
    std::fs::read_to_string(path).map_err(failed)
}
