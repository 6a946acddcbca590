//! The agent's own counters, declared in one place.

pub mod ledger;
