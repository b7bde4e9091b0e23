//! Records in: Kafka, and recordings on disk. Both give decoded records to aggregators; neither decides anything.
//!
//! - [`decode`] makes an event of a record's bytes, or says why not; [`rejects`] keeps a redacted sample of the latter.
//! - [`mapped`] makes canonical records of those of a topic that has a source; [`schemas`] makes JSON of those with a schema.
//! - [`file`] pumps recordings through one aggregator.
//! - [`kafka`] starts and stops reading Kafka. Its parts: `context` (librdkafka's callbacks), `batch` (messages taken many at a time;
//!   the only unsafe code), `consumer` (the thread that owns the consumer), `worker` (threads that own the aggregators), `align` (merges
//!   the topics of a partition number by time) and `oauth` (tokens).
//! - [`produce`] writes decisions to a topic.
//! - [`range`] reads a stretch of Kafka's topics by time, without a group; [`replay`] books it as workers do, by Kafka's time.
//!
//! What is exact: offsets move only with the state that reflects them. A worker's snapshot holds, for each partition number, the
//! aggregator's state and the offsets of precisely the records in it, and is sent behind everything that the aggregator had emitted.
//! A record that Kafka delivers again is known by its offset and dropped before it is counted.

mod align;
mod batch;
mod consumer;
mod context;
pub mod decode;
pub mod file;
pub mod kafka;
pub mod mapped;
pub mod oauth;
pub mod produce;
pub mod range;
pub mod rejects;
pub mod replay;
pub mod schemas;
pub mod worker;
