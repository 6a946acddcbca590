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

fn span_attribute(out: &mut Vec<u8>, name: &str, value: &Value<'_>) {
    match value {
        Value::Str(text) => attribute(out, 9, name, framed_len(text.len()), |out| {
            text_value(out, text)
        }),
        Value::Int(number) => attribute(out, 9, name, int_value_len(*number), |out| {
            int_value(out, *number)
        }),
    }
}

fn resource_attribute(out: &mut Vec<u8>, name: &str, value: &AttributeValue) {
    match value {
        AttributeValue::Str(text) => attribute(out, 1, name, framed_len(text.len()), |out| {
            text_value(out, text)
        }),
        AttributeValue::Int(number) => attribute(out, 1, name, int_value_len(*number), |out| {
            int_value(out, *number)
        }),
        AttributeValue::StrList(texts) => {
            let array: usize = texts
                .iter()
                .map(|text| framed_len(framed_len(text.len())))
                .sum();
            attribute(out, 1, name, framed_len(array), |out| {
                key(out, 5, LENGTH);
                encode_varint(array as u64, out);
                for text in texts {
                    key(out, 1, LENGTH);
                    encode_varint(framed_len(text.len()) as u64, out);
                    text_value(out, text);
                }
            });
        }
    }
}

/// A `KeyValue` as field `field`; `write` adds the inside of its `AnyValue`, `len` bytes.
fn attribute(
    out: &mut Vec<u8>,
    field: u32,
    name: &str,
    len: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    key(out, field, LENGTH);
    encode_varint((framed_len(name.len()) + framed_len(len)) as u64, out);
    length_delimited(out, 1, name.as_bytes());
    key(out, 2, LENGTH);
    encode_varint(len as u64, out);
    write(out);
}

/// The inside of an `AnyValue` with a text: written even if empty, as it is part of a oneof.
fn text_value(out: &mut Vec<u8>, text: &str) {
    length_delimited(out, 1, text.as_bytes());
}

fn int_value(out: &mut Vec<u8>, number: i64) {
    key(out, 3, VARINT);
    encode_varint(number.cast_unsigned(), out);
}

fn int_value_len(number: i64) -> usize {
    1 + encoded_len_varint(number.cast_unsigned())
}

fn key(out: &mut impl BufMut, field: u32, wire_type: u32) {
    encode_varint(u64::from(field << 3 | wire_type), out);
}

/// A string field; proto3 leaves the default value out.
fn string(out: &mut impl BufMut, field: u32, text: &str) {
    if !text.is_empty() {
        length_delimited(out, field, text.as_bytes());
    }
}

fn length_delimited(out: &mut impl BufMut, field: u32, bytes: &[u8]) {
    key(out, field, LENGTH);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value as ProtoValue;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
    use opentelemetry_proto::tonic::trace::v1::Span as ProtoSpan;
    use prost::Message;

    use super::*;
    use crate::export::proto;
    use crate::export::tests::{process, span, spans};

    fn defaults() -> Arc<ResourceDefaults> {
        let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        Arc::new(ResourceDefaults::new(&[
            own("deployment.environment.name", "test"),
            own("service.name", "agent's"),
        ]))
    }

    #[test]
    fn bytes_are_those_of_the_prost_structs() {
        #[track_caller]
        fn check(encoder: &mut TraceEncoder, spans: &[Span]) {
            let encoded = encoder.encode(spans);
            let expected = proto::request(spans, &defaults());
            assert_eq!(encoded.spans, spans.len());
            assert_eq!(
                ExportTraceServiceRequest::decode(encoded.message.clone()).expect("protobuf"),
                expected
            );
            assert_eq!(encoded.message, expected.encode_to_vec());
        }
        let mut encoder = TraceEncoder::new(defaults(), MAX_MESSAGE_BYTES);
        check(&mut encoder, &[]);
        check(&mut encoder, &spans(1));
        check(&mut encoder, &spans(300));
        // Interleaved processes, more than once, with the buffers of the calls before.
        let processes: Vec<_> = (0..70).map(process).collect();
        let mixed: Vec<_> = (0..500)
            .map(|number| span(number, &processes[number as usize * 7 % 70]))
            .collect();
        check(&mut encoder, &mixed);
        check(&mut encoder, &mixed[..3]);
        // The same facts behind another pointer are another resource: identity is the pointer.
        check(&mut encoder, &[span(1, &process(1)), span(2, &process(1))]);
        let mut odd = span(5, &processes[0]);
        (
            odd.start_unix_ns,
            odd.end_unix_ns,
            odd.exchange.request.method,
        ) = (0, 0, "".into());
        check(&mut encoder, &[odd]);
    }

    #[test]
    fn span_attributes_are_those_of_prost() {
        #[track_caller]
        fn check(name: &str, value: Value<'_>, expected: ProtoValue) {
            let mut bytes = Vec::new();
            span_attribute(&mut bytes, name, &value);
            let value = Some(AnyValue {
                value: Some(expected),
            });
            let attribute = KeyValue {
                key: name.to_owned(),
                value,
                ..KeyValue::default()
            };
            assert_eq!(
                bytes,
                ProtoSpan {
                    attributes: vec![attribute],
                    ..ProtoSpan::default()
                }
                .encode_to_vec()
            );
        }
        for text in [
            "",
            "x",
            &"y".repeat(127),
            &"z".repeat(128),
            &"ü".repeat(20_000),
        ] {
            check(
                "url.full",
                Value::Str(text.into()),
                ProtoValue::StringValue(text.to_owned()),
            );
        }
        for number in [0, 1, 127, 128, 65_535, -1, i64::MIN, i64::MAX] {
            check(
                "server.port",
                Value::Int(number),
                ProtoValue::IntValue(number),
            );
        }
    }

    #[test]
    fn what_a_resource_says() {
        let request = proto::request(&spans(2), &defaults());
        let [resource_spans] = request.resource_spans.as_slice() else {
            panic!("one resource")
        };
        let attributes = &resource_spans
            .resource
            .as_ref()
            .expect("resource")
            .attributes;
        let names: Vec<_> = attributes
            .iter()
            .map(|attribute| attribute.key.as_str())
            .collect();
        assert_eq!(
            names,
            [
                "service.name",
                "process.pid",
                "process.command_args",
                "host.name",
                "telemetry.distro.name",
                "telemetry.distro.version",
                "deployment.environment.name",
            ]
        );
        let [server, client] = resource_spans.scope_spans[0].spans.as_slice() else {
            panic!("two spans")
        };
        assert_eq!((server.flags, client.flags), (0x103, 0x303));
    }

    #[test]
    fn messages_stop_at_their_bound_and_lose_nothing() {
        let processes: Vec<_> = (0..5).map(process).collect();
        let all: Vec<_> = (0..400)
            .map(|number| span(number, &processes[number as usize % 5]))
            .collect();
        for bound in [0, 700, 3_000, 20_000] {
            let mut encoder = TraceEncoder::new(defaults(), bound);
            let mut sent = 0;
            while sent < all.len() {
                let encoded = encoder.encode(&all[sent..]);
                assert!(
                    encoded.spans == 1 || encoded.message.len() <= bound,
                    "{} > {bound}",
                    encoded.message.len()
                );
                let part = &all[sent..sent + encoded.spans];
                assert_eq!(
                    encoded.message,
                    proto::request(part, &defaults()).encode_to_vec()
                );
                sent += encoded.spans;
            }
            assert_eq!(sent, all.len());
        }
    }

    /// `cargo test --release -p tracer-agent --lib export::encode -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement, meaningful in release builds"]
    fn measure_time_per_span() {
        const ROUNDS: u32 = 500;
        let processes: Vec<_> = (0..4).map(process).collect();
        let batch: Vec<_> = (0..2048)
            .map(|number| span(number, &processes[number as usize % 4]))
            .collect();
        let mut encoder = TraceEncoder::new(defaults(), MAX_MESSAGE_BYTES);
        let mut attributes = 0;
        batch[0].for_each_attribute(&mut |_, _| attributes += 1);
        let time = |run: &mut dyn FnMut() -> usize| {
            let bytes = run();
            let started = Instant::now();
            for _ in 0..ROUNDS {
                std::hint::black_box(run());
            }
            (
                started.elapsed().as_nanos() / u128::from(ROUNDS) / 2048,
                bytes / 2048,
            )
        };
        let direct = time(&mut || encoder.encode(&batch).message.len());
        let structs = time(&mut || proto::request(&batch, &defaults()).encode_to_vec().len());
        println!("{attributes} attributes a span");
        println!("direct: {} ns and {} bytes a span", direct.0, direct.1);
        println!("structs: {} ns and {} bytes a span", structs.0, structs.1);
    }
}
