//! AWS X-Ray's `X-Amzn-Trace-Id: Root=1-<8 hex>-<24 hex>;Parent=<16 hex>;Sampled=<0,1>`.
//!
//! A load balancer that starts a trace writes `Root` only: then there is a trace but no parent.
//! Keys other than these three (`Self`, `Lineage`) are not for us.

use crate::protocol::ContextHeaders;

use super::{Field, Reading, TraceId, field, hex, span_id, trace_id};

pub(super) fn read(headers: &ContextHeaders) -> Reading {
    match field(headers, "x-amzn-trace-id") {
        Field::Absent => Reading::Absent,
        Field::Repeated => Reading::Malformed,
        Field::One(value) => context(value).unwrap_or(Reading::Malformed),
    }
}

fn context(value: &str) -> Option<Reading> {
    let (mut root, mut parent, mut sampled) = (None, None, None);
    for pair in value
        .split(';')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let (key, value) = pair.split_once('=')?;
        let slot = match key {
            "Root" => &mut root,
            "Parent" => &mut parent,
            "Sampled" => &mut sampled,
            _ => continue,
        };
        if slot.replace(value).is_some() {
            return None;
        }
    }
    let trace_id = trace(root?)?;
    let parent = match parent {
        Some(parent) => Some(span_id(hex::exact(parent.as_bytes())?)?),
        None => None,
    };
    let sampled = match sampled {
        Some("1") => Some(true),
        Some("0") => Some(false),
        // "?" asks us to decide.
        Some("?") | None => None,
        Some(_) => return None,
    };
    Some(Reading::context(trace_id, parent, sampled))
}

/// `1-<time of start>-<random>`: both together are the trace id of 128 bits.
fn trace(root: &str) -> Option<TraceId> {
    let (seconds, random) = root.strip_prefix("1-")?.split_once('-')?;
    let seconds: [u8; 4] = hex::exact(seconds.as_bytes())?;
    let random: [u8; 12] = hex::exact(random.as_bytes())?;
    let mut id = [0; 16];
    id[..4].copy_from_slice(&seconds);
    id[4..].copy_from_slice(&random);
    trace_id(id)
}
