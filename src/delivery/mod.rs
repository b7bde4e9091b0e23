//! Webhooks out: who is told ([`Router`]), in which form, signed how, and how often it is tried ([`Dispatcher`]).

mod channel;
mod client;
mod dispatcher;
mod endpoint;
mod payload;
mod route;
mod schedule;
mod sign;

pub use dispatcher::{Clock, DeliveryEvent, DeliveryResult, Dispatcher, Observer, Waker};
pub use endpoint::{Endpoint, EndpointError, EndpointFault, Kind};
pub use route::Router;
