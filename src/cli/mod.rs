//! The command line: parses arguments and calls the app or a tool.

pub mod check;
pub mod demo;
pub mod schema;
