//! `guardraild schema`: the JSON Schemas of what people write, for editors.

use crate::config;
use crate::rules::schema;
use crate::tools::ruletest;
use clap::{Args, ValueEnum};
use std::io::{self, Write};

const EXAMPLES: &str = "\
Example:
  guardraild schema > rule.v1.schema.json
and as the first line of a rule file:
  # yaml-language-server: $schema=rule.v1.schema.json";

/// Print the JSON Schema of rule files, of their tests, of sources or of the configuration, for editors
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SchemaArgs {
    /// Of which files.
    #[arg(long, value_enum, default_value_t = Kind::Rule)]
    kind: Kind,
}

/// Files that have a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Rule files.
    Rule,
    /// Tests of rules.
    Test,
    /// Files that hold sources alone.
    Sources,
    /// The daemon's configuration.
    Config,
}

impl Kind {
    /// The name of its schema's file.
    pub fn file_name(self) -> &'static str {
        match self {
            Kind::Rule => "rule.v1.schema.json",
            Kind::Test => "test.v1.schema.json",
            Kind::Sources => "sources.v1.schema.json",
            Kind::Config => "config.v1.schema.json",
        }
    }

    /// The schema, with a final newline.
    pub fn text(self) -> String {
        match self {
            Kind::Rule => schema::text(schema::File::Rule),
            Kind::Test => ruletest::schema(),
            Kind::Sources => schema::text(schema::File::Sources),
            Kind::Config => config::schema(),
        }
    }
}

/// Prints the schema to standard output; returns the exit status.
pub fn run(args: &SchemaArgs) -> i32 {
    match io::stdout().lock().write_all(args.kind.text().as_bytes()) {
        Ok(()) => 0,
        Err(error) => i32::from(error.kind() != io::ErrorKind::BrokenPipe),
    }
}
