//! The running program against a broker and receivers in this process: what a cluster would see of it.
//!
//! Nothing here waits for a time to pass; every wait is for a state, with a deadline. Each module says which promises it holds.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod actions;
mod assignments;
mod breach;
mod crash;
mod database;
mod fail_points;
mod harness;
mod input;
mod readout;
mod reload;
mod secrets;
mod standby;
mod startup;
mod stream;
mod traces;
