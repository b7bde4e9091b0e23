//! guardraild: the guardrail monitor of running experiments.
//!
//! One exposure's way to one webhook: a Kafka record is taken by [`ingest`], decoded to an [`engine::event::Event`] and given to its
//! partition's [`engine::aggregate::Aggregator`]; each closed pane goes to the [`engine::fleet::Fleet`], whose judges return
//! decisions; [`app`] writes them with their outbox rows by [`store`]; [`delivery`] signs and sends them until they are received.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod engine;
pub mod fail;
pub mod http;
pub mod ingest;
pub mod live;
pub mod mapping;
pub mod readout;
pub mod report;
pub mod rules;
pub mod store;
pub mod telemetry;
pub mod tools;
