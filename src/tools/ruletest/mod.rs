//! Tests of rule files: traffic in virtual time, what goes wrong, and what must come of it.
//!
//! [`load`] makes a [`TestFile`] of YAML by the tables of `keys`; [`run`] plays its cases on all cores (`play`), each through the daemon's own
//! Aggregator, Fleet, router and delivery decisions, holds what was expected against what was seen (`judge`), and draws what failed (`picture`).

mod case;
mod expect;
mod judge;
mod keys;
mod picture;
mod play;
mod read;
mod receivers;
mod report;
mod suite;
#[cfg(test)]
mod tests;
mod wire;

pub use case::TestFile;
pub use keys::schema;
pub use read::load;
pub use report::{Bad, human, json, junit, summary};
pub use suite::{CaseResult, Options, Shortfall, jobs, run};
