//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::PathBuf;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Line and column count from 1; (0, 0) means the file as a whole.
    File { path: PathBuf, line: u64, column: u64 },
    /// An environment variable.
    Variable(String),
    /// A `--set` flag.
    Flag(String),
    /// The built-in defaults.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line: 0, .. } => write!(f, "{}", path.display()),
            Origin::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(key) => write!(f, "--set {key}"),
            Origin::Default => f.write_str("configuration"),
        }
    }
}

/// One fault. Its text never holds a secret.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigError {
    pub origin: Origin,
    /// `GC` and four digits, stable over releases.
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
    /// The line of the file, where it can be shown.
    pub source: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: error[{}]: {}", self.origin, self.code, self.message)?;
        if let (Some(source), Origin::File { column, .. }) = (&self.source, &self.origin) {
            let shown = source.trim_start();
            let indent = source.chars().count() - shown.chars().count();
            write!(f, "\n  {}\n  {:>2$}", shown.trim_end(), "^", (*column as usize).saturating_sub(indent).max(1))?;
        }
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong, in the order of the files. Printed one after the other.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}
