//! Webhooks out: who is told ([`Router`]), in which form, signed how, and how often it is tried ([`Dispatcher`]).

mod address;
pub mod attempt;
mod channel;
mod client;
mod dispatcher;
mod endpoint;
mod escalate;
mod flagd;
mod payload;
mod preset;
mod probe;
mod rehearsal;
mod route;
mod schedule;
mod sign;
mod template;

pub use address::Reach;
pub use attempt::{DeliveryEvent, DeliveryResult};
pub use client::{Answer, Sender};
pub use dispatcher::{Clock, Dispatcher, Observer, Renewer, Waker};
pub use endpoint::{Endpoint, EndpointError, EndpointFault, Kind};
pub use probe::Unreachable;
pub use rehearsal::{rehearsal, sample, unfit};
pub use route::{Router, topic_endpoint};
pub use template::Unfit;
