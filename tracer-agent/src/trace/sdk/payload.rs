//! Which spans an OTLP trace export names: the little of it that says what an SDK reports.
//!
//! In: the body of an export request, protobuf or JSON, as far as it was captured, perhaps gzipped or
//! in chunks. Out: kind, ids and protocol of each span. A body that is cut gives what is before the
//! cut, in protobuf; anything that is no export gives nothing. Unknown fields are passed over.

use std::io::Read as _;

use serde_json::Value;

use crate::trace::span::{SpanId, SpanKind, TraceId};

/// Bytes that a compressed body may become.
const MAX_PLAIN: u64 = 1 << 20;
/// Spans taken of one body.
const MAX_SPANS: usize = 4096;

/// Which conventions a span follows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// HTTP.
    Http,
    /// gRPC.
    Rpc,
}

/// One SERVER or CLIENT span of HTTP or gRPC in an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reported {
    /// Its kind.
    pub kind: SpanKind,
    /// Its protocol.
    pub class: Class,
    /// Its trace.
    pub trace_id: TraceId,
    /// Its own id.
    pub span_id: SpanId,
    /// Its parent; `None` for a root.
    pub parent: Option<SpanId>,
}

/// What an export says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// Its spans of HTTP and gRPC.
    pub spans: Vec<Reported>,
    /// All of it was understood.
    pub whole: bool,
}

/// Reads a body. `whole`: nothing of it is missing.
pub fn read(body: &[u8], chunked: bool, whole: bool) -> Payload {
    let unchunked;
    let (mut body, mut whole) = (body, whole);
    if chunked {
        let complete;
        (unchunked, complete) = dechunk(body);
        body = &unchunked;
        whole &= complete;
    }
    let mut plain = Vec::new();
    if body.starts_with(&[0x1f, 0x8b]) {
        let mut reader = flate2::read::MultiGzDecoder::new(body).take(MAX_PLAIN);
        // What came before the error is as good as before a cut.
        whole &= reader.read_to_end(&mut plain).is_ok() && (plain.len() as u64) < MAX_PLAIN;
        body = &plain;
    }
    let mut spans = Vec::new();
    let understood = match body.first() {
        None => whole,
        Some(b'{' | b' ' | b'\t' | b'\r' | b'\n') if !is_message(body) => json(body, &mut spans),
        Some(_) => message(body, &mut spans),
    };
    Payload {
        whole: whole && understood && spans.len() < MAX_SPANS,
        spans,
    }
}

/// The content of a chunked body (RFC 9112 section 7.1), and whether it ended.
fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut content = Vec::with_capacity(rest.len());
    loop {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return (content, false);
        };
        let (line, behind) = rest.split_at(end);
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(digits.trim_ascii());
        let Some(size) = size
            .ok()
            .and_then(|text| usize::from_str_radix(text, 16).ok())
        else {
            return (content, false);
        };
        if size == 0 {
            return (content, true);
        }
        let behind = behind.get(1..).unwrap_or_default();
        let Some((data, next)) = behind.split_at_checked(size) else {
            content.extend_from_slice(behind);
            return (content, false);
        };
        content.extend_from_slice(data);
        rest = next
            .strip_prefix(b"\r\n")
            .or_else(|| next.strip_prefix(b"\n"))
            .unwrap_or(next);
    }
}

/// Begins with a field 1 of bytes, as every export that is not empty does.
fn is_message(body: &[u8]) -> bool {
    body.first() == Some(&0x0a)
        && !body
            .get(1..)
            .is_some_and(|rest| rest.trim_ascii_start().starts_with(b"{\""))
}

/// A field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Goes over the fields of a message; false if it is broken or cut. A field that is cut is not given,
/// unless it is one of bytes: then with what there is of it.
fn fields<'a>(mut rest: &'a [u8], mut each: impl FnMut(u64, Field<'a>) -> bool) -> bool {
    while !rest.is_empty() {
        let Some(tag) = varint(&mut rest) else {
            return false;
        };
        let (number, wire) = (tag >> 3, tag & 7);
        let good = match wire {
            0 => match varint(&mut rest) {
                Some(value) => each(number, Field::Number(value)),
                None => false,
            },
            1 | 5 => match rest.split_at_checked(if wire == 1 { 8 } else { 4 }) {
                Some((_, behind)) => {
                    rest = behind;
                    true
                }
                None => false,
            },
            2 => {
                let Some(length) = varint(&mut rest) else {
                    return false;
                };
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                match rest.split_at_checked(length) {
                    Some((bytes, behind)) => {
                        rest = behind;
                        each(number, Field::Bytes(bytes))
                    }
                    None => {
                        each(number, Field::Bytes(rest));
                        false
                    }
                }
            }
            _ => false,
        };
        if !good {
            return false;
        }
    }
    true
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in 0..10 {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        value |= u64::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// `ExportTraceServiceRequest`: resource spans (1), in them scope spans (2), in them spans (2).
fn message(body: &[u8], spans: &mut Vec<Reported>) -> bool {
    fields(body, |number, field| match (number, field) {
        (1, Field::Bytes(group)) => fields(group, |number, field| match (number, field) {
            (2, Field::Bytes(scope)) => fields(scope, |number, field| match (number, field) {
                (2, Field::Bytes(span)) => one(span, spans),
                _ => true,
            }),
            _ => true,
        }),
        _ => true,
    })
}

/// `Span`: trace (1), id (2), parent (4), kind (6), attributes (9).
fn one(span: &[u8], spans: &mut Vec<Reported>) -> bool {
    let mut draft = Draft::default();
    let good = fields(span, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => draft.trace_id = bytes.try_into().ok(),
            (2, Field::Bytes(bytes)) => draft.span_id = bytes.try_into().ok(),
            (4, Field::Bytes(bytes)) => draft.parent = bytes.try_into().ok(),
            (6, Field::Number(kind)) => draft.kind = kind,
            (9, Field::Bytes(attribute)) => {
                return fields(attribute, |number, field| {
                    if let (1, Field::Bytes(key)) = (number, field) {
                        draft.key(key);
                    }
                    true
                });
            }
            _ => {}
        }
        true
    });
    if good {
        draft.finish(spans);
    }
    good
}

#[derive(Default)]
struct Draft {
    trace_id: Option<[u8; 16]>,
    span_id: Option<[u8; 8]>,
    parent: Option<[u8; 8]>,
    kind: u64,
    http: bool,
    rpc: bool,
}

impl Draft {
    fn key(&mut self, key: &[u8]) {
        self.http |= matches!(key, b"http.request.method" | b"http.method");
        self.rpc |= matches!(key, b"rpc.system" | b"rpc.system.name");
    }

    fn finish(self, spans: &mut Vec<Reported>) {
        // `SpanKind`: 2 is SERVER, 3 is CLIENT.
        let kind = match self.kind {
            2 => SpanKind::Server,
            3 => SpanKind::Client,
            _ => return,
        };
        let class = match (self.rpc, self.http) {
            (true, _) => Class::Rpc,
            (false, true) => Class::Http,
            (false, false) => return,
        };
        let (Some(trace_id), Some(span_id)) = (self.trace_id, self.span_id) else {
            return;
        };
        if spans.len() < MAX_SPANS {
            spans.push(Reported {
                kind,
                class,
                trace_id: TraceId(trace_id),
                span_id: SpanId(span_id),
                parent: self.parent.filter(|id| *id != [0; 8]).map(SpanId),
            });
        }
    }
}

/// The same in JSON: ids in hexadecimal (OTLP specification, "JSON Protobuf Encoding"). False if it is
/// none, or cut.
fn json(body: &[u8], spans: &mut Vec<Reported>) -> bool {
    let Ok(root) = serde_json::from_slice::<Value>(body) else {
        return false;
    };
    let list = |value: &Value, name: &str| -> Vec<Value> {
        value
            .get(name)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    for group in list(&root, "resourceSpans") {
        for scope in list(&group, "scopeSpans") {
            for span in list(&scope, "spans") {
                let text = |name: &str| span.get(name).and_then(Value::as_str).unwrap_or_default();
                let mut draft = Draft {
                    trace_id: hex(text("traceId")),
                    span_id: hex(text("spanId")),
                    parent: hex(text("parentSpanId")),
                    kind: match span.get("kind") {
                        Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
                        Some(Value::String(name)) if name == "SPAN_KIND_SERVER" => 2,
                        Some(Value::String(name)) if name == "SPAN_KIND_CLIENT" => 3,
                        _ => 0,
                    },
                    ..Draft::default()
                };
                for attribute in list(&span, "attributes") {
                    let key = attribute.get("key").and_then(Value::as_str);
                    draft.key(key.unwrap_or_default().as_bytes());
                }
                draft.finish(spans);
            }
        }
    }
    true
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N {
        return None;
    }
    let mut id = [0; N];
    for (slot, pair) in id.iter_mut().zip(bytes.chunks_exact(2)) {
        *slot = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests;
