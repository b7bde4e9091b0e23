//! `guardraild schema`: the JSON Schema of rule files, for editors.

use crate::rules::schema;
use clap::Args;
use std::io::{self, Write};

const EXAMPLES: &str = "\
Example:
  guardraild schema > rule.v1.schema.json
and as the first line of a rule file:
  # yaml-language-server: $schema=rule.v1.schema.json";

/// Print the JSON Schema of rule files, for editors
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SchemaArgs {
    /// Of files that hold sources alone.
    #[arg(long)]
    sources: bool,
}

/// Prints the schema to standard output; returns the exit status.
pub fn run(args: &SchemaArgs) -> i32 {
    let file = if args.sources { schema::File::Sources } else { schema::File::Rule };
    match io::stdout().lock().write_all(schema::text(file).as_bytes()) {
        Ok(()) => 0,
        Err(error) => i32::from(error.kind() != io::ErrorKind::BrokenPipe),
    }
}
