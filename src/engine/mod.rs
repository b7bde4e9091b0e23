//! The pure half of guardraild: records and time in, decisions out.
//!
//! Nothing here reads a clock, a file, a socket or a random number; `tests/tidy.rs` holds that fence. The path of a record:
//! [`event::Event`] -> [`aggregate::Aggregator`] (one per input partition) -> [`pane::PaneBatch`] -> [`fleet::Fleet`]
//! (sequences the panes of all partitions) -> [`judge::Judge`] (one per experiment) -> [`decision::Decision`].

pub mod aggregate;
pub mod assign;
mod brakes;
pub mod decision;
pub mod eligible;
pub mod event;
pub mod evidence;
pub mod fleet;
pub mod histogram;
pub mod judge;
pub mod kept;
pub mod outcome;
pub mod pane;
pub mod plan;
pub mod quality;
mod radix;
pub mod segment;
mod shape;
pub mod shared_cause;
pub mod state;
pub mod stats;
pub mod time;
