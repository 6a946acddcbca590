//! Exchanges to spans: ids, parents, names, attributes. Pure: no I/O, no clocks; random numbers
//! come from a generator that the caller seeds.
//!
//! In: an exchange with its connection and process. Out: one [`Span`] each, made by
//! [`SpanBuilder`] with what the exchange says of itself, and joined with the others of this host by
//! [`Assembler`]. Names, status and attributes are computed when an exporter asks for them.
//!
//! It cannot see what happens inside a process: which outgoing request serves which incoming one
//! is what the kernel side says, or what the trace context in the headers says.

pub mod assemble;
pub mod builder;
pub mod context;
pub mod ids;
pub mod redact;
pub mod routes;
pub mod sampling;
pub mod sdk;
pub mod semconv;
pub mod span;
pub mod target;

pub use assemble::{Assembler, JoinCounts};
pub use builder::{ContextCounts, SpanBuilder};
pub use context::{Format, Propagators};
pub use redact::Redaction;
pub use semconv::grpc_status_name;
pub use span::{Link, Span, SpanId, SpanKind, SpanStatus, TraceId, Value};

/// W3C trace flag: the trace is sampled.
pub const FLAG_SAMPLED: u8 = 0x01;

/// W3C trace flag (level 2): the low 56 bits of the trace id are random.
pub const FLAG_RANDOM: u8 = 0x02;
