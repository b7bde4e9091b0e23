//! What runs beside the daemon: backtests, the demo and its parts.

pub mod backtest;
pub mod broker;
pub mod demo;
pub mod init;
pub mod receiver;
pub mod ruletest;
pub mod simulate;
pub mod traffic;
