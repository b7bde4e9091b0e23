//! `guardraild schema`: the JSON Schema of rule files, for editors.

use crate::rules::schema;
use std::io::{self, Write};

/// Shown under the command's help.
pub const EXAMPLES: &str = "\
Example:
  guardraild schema > rule.v1.schema.json
and as the first line of a rule file:
  # yaml-language-server: $schema=rule.v1.schema.json";

/// Prints the schema to standard output; returns the exit status.
pub fn run() -> i32 {
    match io::stdout().lock().write_all(schema::text().as_bytes()) {
        Ok(()) => 0,
        Err(error) => i32::from(error.kind() != io::ErrorKind::BrokenPipe),
    }
}
