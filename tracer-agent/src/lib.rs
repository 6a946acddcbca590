//! The agent's rooms, in the order data flows through them. See ARCHITECTURE.md.
//!
//! `probes` and `kernel` put the eBPF programs into the running kernel and bring their events out;
//! `ingest` turns events into ordered streams; `protocol` turns streams into exchanges; `trace`
//! turns exchanges into spans; `export` sends them. `meta` and `discover` know the processes,
//! `telemetry` counts, `replay` feeds the same pipeline from a capture file.

pub mod app;
mod causes;
pub mod config;
pub mod discover;
pub mod export;
pub mod ingest;
pub mod kernel;
pub mod meta;
pub mod metrics;
pub mod probes;
pub mod protocol;
pub mod replay;
pub mod rights;
pub mod sys;
pub mod telemetry;
pub mod trace;
