//! Spans to the bytes of an OTLP `ExportTraceServiceRequest`.
//!
//! In: a slice of spans. Out: one protobuf message in `bytes`, one `ResourceSpans` per traced
//! process, in the order in which the processes first appear. The message is written straight from
//! the spans: building prost's structs first costs an allocation per attribute, several times the
//! whole budget of a span. `super::proto` builds the same message from those structs; the tests hold
//! the two to the same bytes.
//!
//! Field numbers: opentelemetry-proto 1.x, `trace/v1/trace.proto` and `common/v1/common.proto`.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};
use rustc_hash::FxHashMap;

use super::resource::{ResourceDefaults, SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION};
use crate::meta::{AttributeValue, Process};
use crate::trace::{Span, SpanKind, SpanStatus, Value};

/// Receivers refuse gRPC messages of more than 4 MiB unless told otherwise.
pub const MAX_MESSAGE_BYTES: usize = 3 * 1024 * 1024 + 512 * 1024;

/// Buffers above this size are given back after use instead of kept for the next batch.
const KEEP_BYTES: usize = 1024 * 1024;

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

/// Bit of `Span.flags`: it is known whether the parent is remote.
pub(super) const FLAG_HAS_IS_REMOTE: u32 = 0x100;
/// Bit of `Span.flags`: the parent is remote.
pub(super) const FLAG_IS_REMOTE: u32 = 0x200;

/// Writes messages, reusing its buffers from one to the next.
#[derive(Debug)]
pub struct TraceEncoder {
    defaults: Arc<ResourceDefaults>,
    max_message_bytes: usize,
    /// Groups in use are the first `used`; the others keep their buffers for later.
    groups: Vec<Group>,
    used: usize,
    /// Address of a process to its group. Valid during one call only: the spans keep it alive.
    index: FxHashMap<usize, usize>,
    span: Vec<u8>,
    scope: Vec<u8>,
}

/// The message of one process while it grows.
#[derive(Debug, Default)]
struct Group {
    resource: Vec<u8>,
    spans: Vec<u8>,
}

/// An encoded message and the number of spans in it.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The `ExportTraceServiceRequest`.
    pub message: Bytes,
    /// How many spans it holds: the first so many of those given.
    pub spans: usize,
}

impl TraceEncoder {
    /// An encoder that fills messages up to `max_message_bytes` (a single larger span goes alone).
    pub fn new(defaults: Arc<ResourceDefaults>, max_message_bytes: usize) -> Self {
        let mut scope = Vec::new();
        string(&mut scope, 1, SCOPE_NAME);
        string(&mut scope, 2, SCOPE_VERSION);
        Self {
            defaults,
            max_message_bytes,
            groups: Vec::new(),
            used: 0,
            index: FxHashMap::default(),
            span: Vec::with_capacity(1024),
            scope,
        }
    }

    /// Fills later messages up to so many bytes.
    pub fn set_max_message_bytes(&mut self, bytes: usize) {
        self.max_message_bytes = bytes;
    }

    /// Encodes as many of `spans`, from the first on, as fit into one message; at least one.
    pub fn encode(&mut self, spans: &[Span]) -> Encoded {
        self.index.clear();
        self.used = 0;
        let mut size = 0;
        let mut taken = 0;
        let mut last: Option<(usize, usize)> = None;
        for span in spans {
            self.span.clear();
            encode_span(&mut self.span, span);
            let framed = framed_len(self.span.len());
            let address = Arc::as_ptr(&span.process) as usize;
            // Spans of one process tend to come together.
            let known = match last {
                Some((process, group)) if process == address => Some(group),
                _ => self.index.get(&address).copied(),
            };
            let group = match known {
                Some(_) if taken > 0 && size + framed > self.max_message_bytes => break,
                Some(group) => group,
                None => {
                    let overhead = self.prepare_group(&span.process);
                    if taken > 0 && size + framed + overhead > self.max_message_bytes {
                        break;
                    }
                    size += overhead;
                    self.used += 1;
                    self.index.insert(address, self.used - 1);
                    self.used - 1
                }
            };
            last = Some((address, group));
            if let Some(group) = self.groups.get_mut(group) {
                length_delimited(&mut group.spans, 2, &self.span);
            }
            size += framed;
            taken += 1;
        }
        Encoded {
            message: self.assemble(size),
            spans: taken,
        }
    }

    /// Makes the group after the last used one ready for `process`; its bytes beside the spans.
    fn prepare_group(&mut self, process: &Process) -> usize {
        if self.groups.len() == self.used {
            self.groups.push(Group::default());
        }
        let Some(group) = self.groups.get_mut(self.used) else {
            return 0;
        };
        group.resource.clear();
        group.spans.clear();
        self.defaults.for_each(process, |key, value| {
            resource_attribute(&mut group.resource, key, value)
        });
        // Tags and lengths of the five messages and strings around, generously.
        group.resource.len() + self.scope.len() + 2 * SCHEMA_URL.len() + 48
    }

    fn assemble(&mut self, size: usize) -> Bytes {
        let mut message = BytesMut::with_capacity(size);
        let scope_fixed = framed_len(self.scope.len()) + framed_len(SCHEMA_URL.len());
        for group in self.groups.iter_mut().take(self.used) {
            let scope_spans = scope_fixed + group.spans.len();
            let resource_spans = framed_len(group.resource.len())
                + framed_len(scope_spans)
                + framed_len(SCHEMA_URL.len());
            key(&mut message, 1, LENGTH);
            encode_varint(resource_spans as u64, &mut message);
            length_delimited(&mut message, 1, &group.resource);
            key(&mut message, 2, LENGTH);
            encode_varint(scope_spans as u64, &mut message);
            length_delimited(&mut message, 1, &self.scope);
            message.put_slice(&group.spans);
            string(&mut message, 3, SCHEMA_URL);
            string(&mut message, 3, SCHEMA_URL);
            if group.spans.capacity() > KEEP_BYTES {
                group.spans = Vec::new();
            }
        }
        // A host that once traced a thousand processes at a time need not keep a thousand buffers.
        self.groups.truncate(64);
        message.freeze()
    }
}

/// `Span.flags`: the trace flags, and what is known of the parent.
pub(super) fn span_flags(span: &Span) -> u32 {
    let remote = if span.parent_is_remote {
        FLAG_IS_REMOTE
    } else {
        0
    };
    u32::from(span.flags) | FLAG_HAS_IS_REMOTE | remote
}

fn encode_span(out: &mut Vec<u8>, span: &Span) {
    length_delimited(out, 1, &span.trace_id.0);
    length_delimited(out, 2, &span.span_id.0);
    if let Some(trace_state) = &span.trace_state {
        string(out, 3, trace_state);
    }
    if let Some(parent) = &span.parent {
        length_delimited(out, 4, &parent.0);
    }
    string(out, 5, &span.name());
    key(out, 6, VARINT);
    out.put_u8(match span.kind {
        SpanKind::Server => 2,
        SpanKind::Client => 3,
    });
    fixed64(out, 7, span.start_unix_ns);
    fixed64(out, 8, span.end_unix_ns);
    span.for_each_attribute(&mut |name, value| span_attribute(out, name, &value));
    if span.status() == SpanStatus::Error {
        // Status { code: STATUS_CODE_ERROR }
        key(out, 15, LENGTH);
        out.put_slice(&[2, 3 << 3, 2]);
    }
    key(out, 16, FIXED32);
    out.put_u32_le(span_flags(span));
}

pub(super) fn span_attribute(out: &mut Vec<u8>, name: &str, value: &Value<'_>) {
    match value {
        Value::Str(text) => text_attribute(out, 9, name, text),
        Value::Int(number) => int_attribute(out, 9, name, *number),
        Value::StrList(texts) => list_attribute(out, 9, name, texts),
    }
}

fn resource_attribute(out: &mut Vec<u8>, name: &str, value: &AttributeValue) {
    match value {
        AttributeValue::Str(text) => text_attribute(out, 1, name, text),
        AttributeValue::Int(number) => int_attribute(out, 1, name, *number),
        AttributeValue::StrList(texts) => list_attribute(out, 1, name, texts),
    }
}

fn text_attribute(out: &mut Vec<u8>, field: u32, name: &str, text: &str) {
    attribute(out, field, name, framed_len(text.len()), |out| {
        text_value(out, text)
    });
}

fn int_attribute(out: &mut Vec<u8>, field: u32, name: &str, number: i64) {
    let number = number.cast_unsigned();
    attribute(out, field, name, 1 + encoded_len_varint(number), |out| {
        key(out, 3, VARINT);
        encode_varint(number, out);
    });
}

fn list_attribute(out: &mut Vec<u8>, field: u32, name: &str, texts: &[Box<str>]) {
    let array: usize = texts
        .iter()
        .map(|text| framed_len(framed_len(text.len())))
        .sum();
    attribute(out, field, name, framed_len(array), |out| {
        key(out, 5, LENGTH);
        encode_varint(array as u64, out);
        for text in texts {
            key(out, 1, LENGTH);
            encode_varint(framed_len(text.len()) as u64, out);
            text_value(out, text);
        }
    });
}

/// A `KeyValue` as field `field`; `write` adds the inside of its `AnyValue`, `len` bytes.
fn attribute(
    out: &mut Vec<u8>,
    field: u32,
    name: &str,
    len: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let inside = framed_len(name.len()) + framed_len(len);
    header(out, field, inside);
    length_delimited(out, 1, name.as_bytes());
    header(out, 2, len);
    write(out);
}

/// The inside of an `AnyValue` with a text: written even if empty, as it is part of a oneof.
fn text_value(out: &mut Vec<u8>, text: &str) {
    length_delimited(out, 1, text.as_bytes());
}

#[inline]
fn key(out: &mut impl BufMut, field: u32, wire_type: u32) {
    match u8::try_from(field << 3 | wire_type) {
        Ok(key @ ..0x80) => out.put_slice(&[key]),
        _ => encode_varint(u64::from(field << 3 | wire_type), out),
    }
}

/// A string field; proto3 leaves the default value out.
fn string(out: &mut impl BufMut, field: u32, text: &str) {
    if !text.is_empty() {
        length_delimited(out, field, text.as_bytes());
    }
}

fn length_delimited(out: &mut impl BufMut, field: u32, bytes: &[u8]) {
    header(out, field, bytes.len());
    out.put_slice(bytes);
}

/// What is before a length-delimited field. Nearly always both numbers take a byte: those are written in one
/// go, and not as two numbers of any size.
#[inline]
fn header(out: &mut impl BufMut, field: u32, len: usize) {
    match (u8::try_from(field << 3 | LENGTH), u8::try_from(len)) {
        (Ok(key @ ..0x80), Ok(len @ ..0x80)) => out.put_slice(&[key, len]),
        _ => {
            key(out, field, LENGTH);
            encode_varint(len as u64, out);
        }
    }
}

fn fixed64(out: &mut Vec<u8>, field: u32, number: u64) {
    if number != 0 {
        key(out, field, FIXED64);
        out.put_u64_le(number);
    }
}

/// Bytes of a length-delimited field with a field number below 16 and `len` bytes inside.
fn framed_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}
