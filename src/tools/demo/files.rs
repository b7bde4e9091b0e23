//! The files of the demo: what a user would write himself.

use super::story::EXPERIMENT;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where everything of one demo lies; removed at the end unless the user named the directory.
pub struct Files {
    root: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

/// A limit that healthy traffic (p95 about 420 ms) keeps and the slowed bucket does not.
const LIMIT_MS: u32 = 500;

impl Files {
    pub fn create(dir: Option<&Path>) -> io::Result<Files> {
        let (root, temporary) = match dir {
            Some(dir) => (dir.to_owned(), None),
            None => {
                let temporary = tempfile::Builder::new().prefix("guardraild-demo-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        std::fs::create_dir_all(&root)?;
        // Nothing of the user's is ever written over, and what an earlier demo decided does not stand in the way.
        if std::fs::read_dir(&root)?.next().is_some() {
            return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, format!("{} is not empty", root.display())));
        }
        std::fs::create_dir(root.join("rules"))?;
        Ok(Files { root, temporary })
    }

    /// Whether the directory goes away with the demo.
    pub fn are_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("guardraild.yaml")
    }

    pub fn rule(&self) -> PathBuf {
        self.root.join("rules").join(format!("{EXPERIMENT}.yaml"))
    }

    pub fn write(&self, brokers: &str, receiver: &str, secret: &str, http: SocketAddr) -> io::Result<()> {
        std::fs::write(self.root.join("flag-service.secret"), secret)?;
        std::fs::write(self.rule(), rule())?;
        std::fs::write(self.config(), config(brokers, receiver, http))
    }
}

fn rule() -> String {
    format!(
        "guardrail: v1
overview: {{experiment: {EXPERIMENT}, name: One-page checkout, owner: checkout}}
buckets: {{control: {{baseline: true}}, treatment: {{}}}}
guardrails:
  - {{metric: latency_p95, window: 10s, limit: {LIMIT_MS}ms, on_breach: rollback}}
  - {{metric: error_rate, window: 10s, limit: 5%, on_breach: rollback}}
actions:
  mode: enforce
  rollback: {{webhook: flag-service, body: {{flag: {EXPERIMENT}, serve: control}}}}
  confirm_within: 20s
"
    )
}

fn config(brokers: &str, receiver: &str, http: SocketAddr) -> String {
    format!(
        "state_dir: state
rules: [rules]
kafka:
  brokers: [\"{brokers}\"]
  group: guardraild-demo
  auto_offset_reset: earliest
http: {{listen: \"{http}\"}}
endpoints:
  flag-service: {{kind: webhook, url: \"{receiver}\", secrets: [{{file: flag-service.secret}}]}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_takes_the_files() {
        let files = Files::create(None).unwrap();
        files
            .write("127.0.0.1:9092", "http://127.0.0.1:2/hook", "whsec_QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB", "127.0.0.1:0".parse().unwrap())
            .unwrap();
        let config = crate::config::Config::load_with(Some(&files.config()), &[], &Default::default()).unwrap();
        assert_eq!(config.state_dir, files.root.join("state"));
        let endpoints = config.endpoints.keys().cloned().collect();
        let loaded = crate::rules::load(&config.rules, Some(&endpoints));
        assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
        assert_eq!(loaded.catalog.plans[0].experiment, EXPERIMENT);
    }

    #[test]
    fn a_temporary_demo_leaves_nothing_behind_and_a_named_one_stays() {
        let here = tempfile::tempdir().unwrap();
        let files = Files::create(Some(here.path())).unwrap();
        files.write("127.0.0.1:1", "http://127.0.0.1:2/hook", "whsec_AAAA", "127.0.0.1:0".parse().unwrap()).unwrap();
        let (config, rule) = (files.config(), files.rule());
        drop(files);
        assert!(config.exists() && rule.exists());
        let again = Files::create(Some(here.path())).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(again.contains("is not empty"), "{again}");

        let files = Files::create(None).unwrap();
        let root = files.root.clone();
        assert!(root.exists());
        drop(files);
        assert!(!root.exists());
    }
}
