//! B3 (openzipkin/b3-propagation): one `b3` header, or several `X-B3-*` ones.

use crate::protocol::ContextHeaders;

use super::{Field, Reading, SpanId, TraceId, field, hex, span_id, trace_id};

/// `b3: <trace>-<span>[-<state>[-<parent>]]`, or the state alone.
pub(super) fn read_single(headers: &ContextHeaders) -> Reading {
    match field(headers, "b3") {
        Field::Absent => Reading::Absent,
        Field::Repeated => Reading::Malformed,
        Field::One(value) => single(value).unwrap_or(Reading::Malformed),
    }
}

fn single(value: &str) -> Option<Reading> {
    let mut parts = value.split('-');
    let first = parts.next()?;
    let Some(span) = parts.next() else {
        return state(first).map(Reading::Decision);
    };
    let (trace, span) = ids(first, span)?;
    let sampled = match parts.next() {
        Some(text) => Some(state(text)?),
        None => None,
    };
    // The parent of the sender's span is no ancestor we can draw; it is only checked.
    if let Some(parent) = parts.next() {
        hex::lower::<8>(parent.as_bytes())?;
    }
    parts
        .next()
        .is_none()
        .then(|| Reading::context(trace, Some(span), sampled))
}

/// `d` (debug) asks for more than sampling does, and so implies it.
fn state(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" | "d" => Some(true),
        _ => None,
    }
}

/// `X-B3-TraceId`, `X-B3-SpanId`, `X-B3-ParentSpanId`, `X-B3-Sampled`, `X-B3-Flags`.
pub(super) fn read_multi(headers: &ContextHeaders) -> Reading {
    multi(headers).unwrap_or(Reading::Malformed)
}

fn multi(headers: &ContextHeaders) -> Option<Reading> {
    let trace = once(headers, "x-b3-traceid")?;
    let span = once(headers, "x-b3-spanid")?;
    let parent = once(headers, "x-b3-parentspanid")?;
    let sampled = match once(headers, "x-b3-sampled")? {
        None => None,
        // The words were in use before the specification was written.
        Some("1" | "true") => Some(true),
        Some("0" | "false") => Some(false),
        Some(_) => return None,
    };
    let sampled = match once(headers, "x-b3-flags")? {
        None | Some("0") => sampled,
        Some("1") => Some(true),
        Some(_) => return None,
    };
    if let Some(parent) = parent {
        hex::lower::<8>(parent.as_bytes())?;
    }
    match (trace, span) {
        (Some(trace), Some(span)) => {
            let (trace, span) = ids(trace, span)?;
            Some(Reading::context(trace, Some(span), sampled))
        }
        (None, None) if parent.is_none() => {
            Some(sampled.map_or(Reading::Absent, Reading::Decision))
        }
        _ => None,
    }
}

/// `None` if repeated, `Some(None)` if absent.
fn once<'a>(headers: &'a ContextHeaders, name: &str) -> Option<Option<&'a str>> {
    match field(headers, name) {
        Field::Absent => Some(None),
        Field::One(value) => Some(Some(value)),
        Field::Repeated => None,
    }
}

/// A trace id of 64 bits is the low half of one of 128.
fn ids(trace: &str, span: &str) -> Option<(TraceId, SpanId)> {
    let trace = match hex::lower::<8>(trace.as_bytes()) {
        Some(_) => hex::padded(trace.as_bytes()),
        None => hex::lower(trace.as_bytes()),
    };
    Some((trace_id(trace?)?, span_id(hex::lower(span.as_bytes())?)?))
}
