//! Where the proposal is written, and that nothing is written over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file to write.
#[derive(Debug)]
pub struct File {
    pub path: PathBuf,
    pub text: String,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Written over only where that is asked for.
    Proposal,
    /// The same for everybody: written over.
    Schema,
    /// Never written over, and only its owner may read it.
    Secret,
    /// Never written over.
    Kept,
}

/// Writes the files; gives those that were written. With `force` proposals replace what is there.
///
/// # Errors
/// Where a proposal is there already: then nothing is written. Where a file cannot be written.
pub fn write(files: &[File], force: bool) -> io::Result<Vec<&Path>> {
    let there: Vec<String> =
        files.iter().filter(|f| f.kind == Kind::Proposal && !force && f.path.exists()).map(|f| f.path.display().to_string()).collect();
    if !there.is_empty() {
        let message = format!("{} there already: nothing was written (--force replaces it)", there.join(", "));
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    let mut written = Vec::new();
    for file in files {
        if matches!(file.kind, Kind::Secret | Kind::Kept) && file.path.exists() {
            continue;
        }
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.path.display()));
        if let Some(folder) = file.path.parent() {
            fs::create_dir_all(folder).map_err(named)?;
        }
        let mode = if file.kind == Kind::Secret { 0o600 } else { 0o644 };
        let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&file.path).map_err(named)?;
        open.write_all(file.text.as_bytes()).map_err(named)?;
        written.push(file.path.as_path());
    }
    Ok(written)
}

/// A file's name for an experiment, unlike all those in `taken`. It is none of a test, nor hidden.
pub fn stem(experiment: &str, taken: &mut BTreeSet<String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut stem: String = experiment.chars().take(100).map(|c| if plain(c) { c } else { '-' }).collect();
    if stem.is_empty() || stem.ends_with("_test") || stem == "sources" {
        stem.push_str("-rule");
    }
    let numbered = (2..).map(|n| format!("{stem}-{n}"));
    let name = std::iter::once(stem.clone()).chain(numbered).find(|name| !taken.contains(name)).unwrap_or_default();
    taken.insert(name.clone());
    name
}

/// Files of a daemon that has none: configuration, token, and the secret that webhooks are signed with.
pub fn daemon(root: &Path, brokers: &[String], topics: Option<(&[String], &[String])>, registry: Option<&str>) -> Vec<File> {
    let brokers = if brokers.is_empty() { "127.0.0.1:9092   # where your Kafka is".to_owned() } else { brokers.join(", ") };
    let (brokers, hint) = brokers.split_once("   ").map_or((brokers.as_str(), ""), |(b, hint)| (b, hint));
    let topics = topics.map_or(String::new(), |(exposures, events)| {
        format!("  topics: {{exposures: [{}], events: [{}]}}\n", exposures.join(", "), events.join(", "))
    });
    let registry = registry.map_or(String::new(), |url| format!("  schema_registry: {{url: '{url}'}}\n"));
    let config = format!(
        "# yaml-language-server: $schema=schemas/config.v1.schema.json
# Only what differs from the defaults, which guardraild's config/default.yaml describes.
rules: [rules]
kafka:
  brokers: [{brokers}]   {hint}
{topics}{registry}http:
  tokens: [{{name: operator, role: operate, token: {{file: secrets/operator.token}}}}]
endpoints:
  # Who is told: your flag service takes signed webhooks here. In `observe` mode it gets messages alone.
  flag-service: {{kind: webhook, url: http://127.0.0.1:9000/hook, secrets: [{{file: secrets/flag-service.secret}}]}}
"
    );
    let config: String = config.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    let random: ([u8; 16], [u8; 32]) = rand::random();

    let token: String = random.0.iter().map(|b| format!("{b:02x}")).collect();
    let file = |path: &str, text: String, kind| File { path: root.join(path), text, kind };
    vec![
        file("guardraild.yaml", config, Kind::Kept),
        file("secrets/operator.token", token + "\n", Kind::Secret),
        file("secrets/flag-service.secret", format!("whsec_{}\n", STANDARD.encode(random.1)), Kind::Secret),
        file("secrets/.gitignore", "*\n".to_owned(), Kind::Kept),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_users_is_written_over() {
        let root = tempfile::tempdir().unwrap();
        let files = |text: &str| {
            let file = |path: &str, kind| File { path: root.path().join(path), text: text.to_owned(), kind };
            [
                file("rules/a.yaml", Kind::Proposal),
                file("schemas/s.json", Kind::Schema),
                file("secrets/t", Kind::Secret),
                file("g", Kind::Kept),
            ]
        };
        let text = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(write(&files("one"), false).unwrap().len(), 4);
        let error = write(&files("two"), false).unwrap_err();
        assert!(error.to_string().contains("rules/a.yaml there already: nothing was written"), "{error}");
        assert_eq!(["rules/a.yaml", "schemas/s.json"].map(text), ["one", "one"]);
        assert_eq!(write(&files("three"), true).unwrap().len(), 2);
        assert_eq!(["rules/a.yaml", "schemas/s.json", "secrets/t", "g"].map(text), ["three", "three", "one", "one"]);
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(root.path().join("secrets/t")).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn no_experiment_makes_a_name_of_something_else() {
        let mut taken = BTreeSet::new();
        let mut name = |experiment: &str| stem(experiment, &mut taken);
        assert_eq!(
            ["new-checkout", "a/../b", "a.b", "x_test", "", "a b", "sources"].map(&mut name),
            ["new-checkout", "a----b", "a-b", "x_test-rule", "-rule", "a-b-2", "sources-rule"]
        );
    }
}
