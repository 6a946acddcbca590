//! Scenario of each: an export as SDKs send them. Guarantee: the spans of HTTP and gRPC in it, no more,
//! whatever is done to the bytes.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

/// A span of a kind with an attribute of this name; its ids are made of `id`.
fn span(id: u8, kind: u8, key: &str, root: bool) -> Vec<u8> {
    let mut out = field(1, &[id; 16]);
    out.extend(field(2, &[id; 8]));
    if !root {
        out.extend(field(4, &[id + 1; 8]));
    }
    out.extend(field(5, b"GET"));
    out.extend([6 << 3, kind]);
    out.extend([7 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8]);
    out.extend(field(
        9,
        &[field(1, key.as_bytes()), field(2, &[10, 1, b'x'])].concat(),
    ));
    out
}

fn export(spans: &[Vec<u8>]) -> Vec<u8> {
    let scope: Vec<u8> = spans.iter().flat_map(|span| field(2, span)).collect();
    let scope = [field(1, &field(1, b"a library")), scope].concat();
    let group = [field(1, &field(1, b"a resource")), field(2, &scope)].concat();
    field(1, &group)
}

fn reported(id: u8, kind: SpanKind, class: Class, root: bool) -> Reported {
    Reported {
        kind,
        class,
        trace_id: TraceId([id; 16]),
        span_id: SpanId([id; 8]),
        parent: (!root).then_some(SpanId([id + 1; 8])),
    }
}

fn example() -> (Vec<u8>, Vec<Reported>) {
    let body = export(&[
        span(1, 2, "http.request.method", true),
        span(3, 3, "http.method", false),
        span(5, 2, "rpc.system", false),
        span(7, 1, "http.request.method", false),
        span(9, 3, "db.system", false),
    ]);
    let expected = vec![
        reported(1, SpanKind::Server, Class::Http, true),
        reported(3, SpanKind::Client, Class::Http, false),
        reported(5, SpanKind::Server, Class::Rpc, false),
    ];
    (body, expected)
}

#[test]
fn protobuf_plain_gzipped_and_chunked() {
    let (body, spans) = example();
    let whole = Payload {
        spans: spans.clone(),
        whole: true,
    };
    assert_eq!(read(&body, false, true), whole);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&body).expect("to memory");
    let gzipped = encoder.finish().expect("to memory");
    assert_eq!(read(&gzipped, false, true), whole);
    let (first, rest) = body.split_at(20);
    let mut chunked = format!("{:x};x=y\r\n", first.len()).into_bytes();
    chunked.extend_from_slice(first);
    chunked.extend(format!("\r\n{:X}\r\n", rest.len()).into_bytes());
    chunked.extend_from_slice(rest);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    assert_eq!(read(&chunked, true, true), whole);
    assert!(!read(&chunked[..chunked.len() - 5], true, true).whole);
    assert!(!read(&body, false, false).whole);
    assert!(read(&[], false, true).whole);
    assert!(!read(&[], false, false).whole);
}

#[test]
fn json() {
    let body = br#" {"resourceSpans":[{"resource":{},"scopeSpans":[{"scope":{"name":"x"},"spans":[
        {"traceId":"01010101010101010101010101010101","spanId":"0101010101010101","kind":2,
         "attributes":[{"key":"http.request.method","value":{"stringValue":"GET"}}]},
        {"traceId":"03030303030303030303030303030303","spanId":"0303030303030303","parentSpanId":"0404040404040404",
         "kind":"SPAN_KIND_CLIENT","attributes":[{"key":"rpc.system.name"}]},
        {"traceId":"zz","spanId":"","kind":2,"attributes":[{"key":"http.method"}]}]}]}]}"#;
    let expected = Payload {
        spans: vec![
            reported(1, SpanKind::Server, Class::Http, true),
            reported(3, SpanKind::Client, Class::Rpc, false),
        ],
        whole: true,
    };
    assert_eq!(read(body, false, true), expected);
    let cut = read(&body[..body.len() - 3], false, true);
    assert_eq!(cut, Payload::default());
}

proptest! {
    #[test]
    fn a_cut_gives_what_is_before_it(cut in 0usize..400) {
        let (body, spans) = example();
        let cut = cut.min(body.len());
        let found = read(&body[..cut], false, cut == body.len());
        prop_assert!(spans.starts_with(&found.spans));
        prop_assert_eq!(found.whole, cut == body.len());
    }

    #[test]
    fn any_bytes_are_taken(mut body in proptest::collection::vec(any::<u8>(), 0..200), chunked: bool, flip in 0usize..400, to: u8) {
        read(&body, chunked, true);
        let (example, _) = example();
        body = example;
        if let Some(byte) = body.get_mut(flip) {
            *byte = to;
        }
        read(&body, chunked, true);
    }
}
