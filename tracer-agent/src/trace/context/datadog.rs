//! Datadog's `x-datadog-*` headers: decimal ids of 64 bits, and the high half of the trace id as
//! `_dd.p.tid=<16 hex>` among the comma-separated `x-datadog-tags`.

use crate::protocol::ContextHeaders;

use super::{Field, Reading, field, fields, hex, span_id, trace_id};

pub(super) fn read(headers: &ContextHeaders) -> Reading {
    match field(headers, "x-datadog-trace-id") {
        Field::Absent => Reading::Absent,
        Field::Repeated => Reading::Malformed,
        Field::One(value) => context(value, headers).unwrap_or(Reading::Malformed),
    }
}

fn context(trace: &str, headers: &ContextHeaders) -> Option<Reading> {
    let low = decimal(trace)?;
    let parent = match field(headers, "x-datadog-parent-id") {
        // A trace that a browser or a synthetic test started has no parent, or 0 for it.
        Field::Absent => None,
        Field::One(value) => span_id(decimal(value)?.to_be_bytes()),
        Field::Repeated => return None,
    };
    let sampled = match field(headers, "x-datadog-sampling-priority") {
        Field::Absent => None,
        // -1 and 0 reject, 1 and 2 keep.
        Field::One(value) => Some(value.parse::<i32>().ok()? > 0),
        Field::Repeated => return None,
    };
    // Without its high half the trace id would name another trace: a broken one spoils it all.
    let high = high_half(headers)?;
    if low == 0 {
        return None;
    }
    let mut id = [0; 16];
    id[..8].copy_from_slice(&high);
    id[8..].copy_from_slice(&low.to_be_bytes());
    Some(Reading::context(trace_id(id)?, parent, sampled))
}

/// Zero if there is none, `None` if it is malformed or there are several.
fn high_half(headers: &ContextHeaders) -> Option<[u8; 8]> {
    let mut tags = fields(headers, "x-datadog-tags")
        .flat_map(|value| value.split(','))
        .filter_map(|tag| tag.trim().strip_prefix("_dd.p.tid="));
    match (tags.next(), tags.next()) {
        (None, _) => Some([0; 8]),
        (Some(tag), None) => hex::lower(tag.as_bytes()),
        (Some(_), Some(_)) => None,
    }
}

fn decimal(text: &str) -> Option<u64> {
    // `parse` alone would take a sign.
    if text.starts_with('+') {
        None
    } else {
        text.parse().ok()
    }
}
