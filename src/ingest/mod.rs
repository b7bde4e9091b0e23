//! Records in: recordings on disk, and Kafka.
//!
//! [`decode`] makes events of bytes; [`file`] reads recordings; [`rejects`] keeps a sample of what was refused.

pub mod decode;
pub mod file;
pub mod rejects;
