//! Placeholder.

pub mod metrics;
pub mod names;
