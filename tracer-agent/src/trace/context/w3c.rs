//! W3C Trace Context, level 2: `traceparent` (section 3.2) and `tracestate` (section 3.3).

use crate::protocol::ContextHeaders;
use crate::trace::{FLAG_RANDOM, FLAG_SAMPLED};

use super::{Field, Reading, RequestContext, field, fields, hex, span_id, trace_id};

/// Length of `00-<32 hex>-<16 hex>-<2 hex>`.
const TRACEPARENT_LEN: usize = 55;

/// Members that a `tracestate` may have at most.
const MAX_MEMBERS: usize = 32;

/// Characters that a key, and a value, may have at most.
const MAX_MEMBER_PART: usize = 256;

pub(super) fn read(headers: &ContextHeaders) -> Reading {
    let value = match field(headers, "traceparent") {
        Field::Absent => return Reading::Absent,
        Field::Repeated => return Reading::Malformed,
        Field::One(value) => value,
    };
    let Some(mut context) = traceparent(value.as_bytes()) else {
        return Reading::Malformed;
    };
    let (trace_state, trace_state_malformed) = match tracestate(headers) {
        Ok(trace_state) => (trace_state, false),
        Err(Invalid) => (None, true),
    };
    context.trace_state = trace_state;
    Reading::Context {
        context,
        trace_state_malformed,
    }
}

fn traceparent(value: &[u8]) -> Option<RequestContext> {
    let (known, rest) = value.split_at_checked(TRACEPARENT_LEN)?;
    if known[2] != b'-' || known[35] != b'-' || known[52] != b'-' {
        return None;
    }
    let [version] = hex::lower(&known[..2])?;
    let well_formed = match version {
        0xff => false,
        0 => rest.is_empty(),
        // A later version may append fields, after another dash. Fields of the same name are joined by
        // commas: with more than one it is not known which one holds.
        _ => rest.first().is_none_or(|next| *next == b'-') && !rest.contains(&b','),
    };
    if !well_formed {
        return None;
    }
    let trace_id = trace_id(hex::lower(&known[3..35])?)?;
    let parent = span_id(hex::lower(&known[36..52])?)?;
    let [flags] = hex::lower(&known[53..])?;
    // Flags without a meaning yet are not passed on (section 3.2.2.5.3).
    let flags = flags & (FLAG_SAMPLED | FLAG_RANDOM);
    let sampled = Some(flags & FLAG_SAMPLED != 0);
    Some(RequestContext {
        trace_id,
        parent: Some(parent),
        sampled,
        flags,
        trace_state: None,
    })
}

/// The value breaks a rule of section 3.3.
struct Invalid;

/// All `tracestate` headers as one list. One bad member spoils it all: what a list with a broken
/// part means to others is not for us to guess.
fn tracestate(headers: &ContextHeaders) -> Result<Option<Box<str>>, Invalid> {
    let mut keys: Vec<&str> = Vec::new();
    let mut list = String::new();
    for member in fields(headers, "tracestate").flat_map(|value| value.split(',')) {
        let member = member.trim_matches([' ', '\t']);
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=').ok_or(Invalid)?;
        if !is_key(key.as_bytes())
            || !is_value(value.as_bytes())
            || keys.contains(&key)
            || keys.len() == MAX_MEMBERS
        {
            return Err(Invalid);
        }
        keys.push(key);
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(member);
    }
    Ok((!list.is_empty()).then(|| list.into_boxed_str()))
}

/// Section 3.3.1.3.1 of level 2, which also takes everything that level 1 takes.
fn is_key(key: &[u8]) -> bool {
    let first = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    key.len() <= MAX_MEMBER_PART
        && key.first().is_some_and(first)
        && key
            .iter()
            .all(|byte| first(byte) || b"_-*/@".contains(byte))
}

/// Section 3.3.1.3.2: printable ASCII without `,` and `=`, not ending in a space.
fn is_value(value: &[u8]) -> bool {
    value.len() <= MAX_MEMBER_PART
        && value.last().is_some_and(|last| *last != b' ')
        && value
            .iter()
            .all(|byte| matches!(byte, b' '..=b'~') && !b",=".contains(byte))
}
