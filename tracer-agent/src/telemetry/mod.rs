//! What the agent tells about itself: counters, the admin endpoint, logs. Declared in one place.
//!
//! In: counts of the other rooms, as [`snapshot::Snapshot`] and [`ledger::Ledger`]. Out: `/healthz`,
//! `/readyz`, `/metrics`, `/ledger`, and lines on stderr. It counts nothing by itself.

pub mod admin;
#[cfg(test)]
pub(crate) mod docs;
pub mod exposition;
pub mod ledger;
pub mod logs;
pub mod metrics;
pub mod open;
pub mod services;
pub mod snapshot;
mod usage;

pub use usage::Usage;
