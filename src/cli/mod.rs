//! Placeholder.
pub mod stats;
