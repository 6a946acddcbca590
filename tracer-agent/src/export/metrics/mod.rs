//! Metrics over OTLP: at an interval, and once more at the end.
//!
//! In: what the room `metrics` recorded and what the agent counts about itself. Out: one Resource per
//! traced process with its request durations, and one of the agent with the service graph and the
//! agent's own. Nothing is queued: what an outage kept from being delivered is in the next export,
//! since histograms and counters go on counting. With `delta`, an export whose answer was lost is
//! delivered twice if the backend had taken it; OTLP has no way to tell.

mod encode;
mod periodic;
#[cfg(test)]
mod tests;

pub use encode::{Encoder, Message};
pub use periodic::MetricsExporter;
