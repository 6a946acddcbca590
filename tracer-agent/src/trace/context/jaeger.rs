//! Jaeger's `uber-trace-id: <trace>:<span>:<parent>:<flags>` (Jaeger client libraries,
//! "Propagation Format"). Ids may lack leading zeros; the whole may be percent-encoded.

use std::borrow::Cow;

use crate::protocol::ContextHeaders;

use super::{Field, Reading, field, hex, span_id, trace_id};

/// Flag bits: sampled, and debug, which implies it.
const SAMPLED_OR_DEBUG: u8 = 0x01 | 0x02;

pub(super) fn read(headers: &ContextHeaders) -> Reading {
    match field(headers, "uber-trace-id") {
        Field::Absent => Reading::Absent,
        Field::Repeated => Reading::Malformed,
        Field::One(value) => context(value).unwrap_or(Reading::Malformed),
    }
}

fn context(value: &str) -> Option<Reading> {
    // Of the characters of a value only the colon is ever encoded.
    let value = if value.contains('%') {
        Cow::Owned(value.replace("%3A", ":").replace("%3a", ":"))
    } else {
        Cow::Borrowed(value)
    };
    let mut parts = value.split(':').map(str::as_bytes);
    let (trace, span, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let trace_id = trace_id(hex::padded(trace)?)?;
    let span_id = span_id(hex::padded(span)?)?;
    // Deprecated and always ignored, but some write it empty.
    if !parent.is_empty() {
        hex::padded::<8>(parent)?;
    }
    let [flags] = hex::padded(flags)?;
    Some(Reading::context(
        trace_id,
        Some(span_id),
        Some(flags & SAMPLED_OR_DEBUG != 0),
    ))
}
