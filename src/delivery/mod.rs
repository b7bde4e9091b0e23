//! Webhooks out: who is told ([`Router`]), in which form, signed how, and how often it is tried ([`Dispatcher`]).

mod address;
pub mod attempt;
mod channel;
mod client;
mod dispatcher;
mod endpoint;
mod escalate;
mod payload;
mod probe;
mod route;
mod schedule;
mod sign;

pub use address::Reach;
pub use attempt::{DeliveryEvent, DeliveryResult};
pub use client::{Answer, Sender};
pub use dispatcher::{Clock, Dispatcher, Observer, Waker};
pub use endpoint::{Endpoint, EndpointError, EndpointFault, Kind};
pub use probe::Unreachable;
pub use route::Router;
