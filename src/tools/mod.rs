//! Programs around the daemon: what it is shown, tried and measured with.

pub mod broker;
pub mod demo;
pub mod receiver;
pub mod traffic;
