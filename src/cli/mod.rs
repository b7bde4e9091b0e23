//! Placeholder.
pub mod check;
pub mod schema;
