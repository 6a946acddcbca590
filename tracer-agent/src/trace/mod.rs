//! Exchanges to spans: ids, parents, names, attributes. Pure.

pub mod span;

pub use span::{Span, SpanId, SpanKind, SpanStatus, TraceId, Value};
