//! HTTPS between programs of many TLS libraries: what they are, how they are started and led, and
//! whether the spans tell what they did.
//!
//! A client asks for `/<tag>/<kind>/<i>`, i from 0 on, with [`REQUESTS`] over [`CONNECTIONS`]; the
//! tag tells one pair's spans from all others. The kind says what is answered.

mod certificate;
mod check;
mod client;
mod container;
mod pair;
mod program;
mod seen;
mod table;

pub use certificate::Certificate;
pub use check::{Joined, Sent, is_https, path};
pub use client::Client;
pub use container::{Container, host_libssl, other_libssl, relatives};
pub use pair::{Pair, Ready};
pub use program::Program;
pub use seen::{seen_into, seen_into_files, seen_into_processes};

use std::time::Duration;

use crate::agent::Start;
use crate::receiver::Receiver;

/// Requests of a pair.
pub const REQUESTS: usize = 2000;
/// Connections at the same time.
pub const CONNECTIONS: usize = 16;
/// One step of a test on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(90);

/// The kinds of requests in turn, and the statuses of their responses.
pub const KINDS: [(&str, i64); 3] = [("small", 200), ("missing", 404), ("big", 200)];

/// An agent whose queue holds what others on a busy machine ask besides.
pub fn start(receiver: &Receiver) -> Start {
    Start::new()
        .export_http(receiver)
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "400000")
}
