extern crate std;
use std::borrow::ToOwned;
use std::string::String;
use std::vec::Vec;

use httlib_hpack::{Decoder, Encoder};
use proptest::prelude::*;

use super::*;
use crate::context::{self, FIELD_BYTES};

/// How a walk over a block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
    Context,
}

/// As the kernel side does it.
fn walk(block: &[u8]) -> End {
    let (mut at, mut now) = (0, phase::FIELD);
    loop {
        if at == block.len() && now == phase::FIELD {
            return End::Whole;
        }
        if at >= block.len() {
            return End::Broken;
        }
        let word = core::array::from_fn(|i| block.get(at + i).copied().unwrap_or(0));
        let Step { phase, length } = step(now, u64::from_le_bytes(word));
        match phase {
            phase::BROKEN => return End::Broken,
            phase::CONTEXT => return End::Context,
            _ => {}
        }
        now = phase;
        at += length as usize;
    }
}

fn encode(encoder: &mut Encoder<'_>, fields: &[(&str, &str, u8)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value, flags) in fields {
        let field = (name.as_bytes().to_vec(), value.as_bytes().to_vec(), *flags);
        encoder.encode(field, &mut block).expect("encodes");
    }
    block
}

fn decode(decoder: &mut Decoder<'_>, block: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut bytes = block.to_owned();
    decoder.decode(&mut bytes, &mut fields).expect("decodes");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let fields = fields.into_iter();
    fields
        .map(|(name, value, _)| (text(name), text(value)))
        .collect()
}

/// Every way to write a literal: the name's and the value's code, and whether it is indexed.
const WAYS: [u8; 12] = [
    0,
    Encoder::HUFFMAN_NAME,
    Encoder::HUFFMAN_VALUE,
    Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE,
    Encoder::WITH_INDEXING,
    Encoder::WITH_INDEXING | Encoder::HUFFMAN_NAME,
    Encoder::WITH_INDEXING | Encoder::HUFFMAN_VALUE,
    Encoder::WITH_INDEXING | Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE,
    Encoder::NEVER_INDEXED,
    Encoder::NEVER_INDEXED | Encoder::HUFFMAN_NAME,
    Encoder::NEVER_INDEXED | Encoder::HUFFMAN_VALUE,
    Encoder::NEVER_INDEXED | Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE,
];

/// Scenario: names of fields, in every form that an encoder has.
/// Guarantees: those that carry context are found, others are not, and the walk ends where the block does.
#[test]
fn names() {
    for (name, expected) in [
        ("traceparent", End::Context),
        ("b3", End::Context),
        ("x-b3-traceid", End::Context),
        ("x-b3-spanid", End::Context),
        ("x-b3-parentspanid", End::Context),
        ("x-b3-sampled", End::Context),
        ("x-b3-flags", End::Context),
        ("uber-trace-id", End::Context),
        ("x-amzn-trace-id", End::Context),
        ("x-datadog-trace-id", End::Context),
        ("x-datadog-parent-id", End::Context),
        ("x-datadog-sampling-priority", End::Context),
        ("x-datadog-tags", End::Context),
        // Means nothing by itself.
        ("tracestate", End::Whole),
        ("b", End::Whole),
        ("b2", End::Whole),
        ("b33", End::Whole),
        ("trace", End::Whole),
        ("x-b2-flags", End::Whole),
        ("x-trace-id", End::Whole),
        ("x-request-id", End::Whole),
        ("x-amzn-requestid", End::Whole),
        ("x-data", End::Whole),
        ("uber-trace", End::Whole),
        ("content-type", End::Whole),
        ("grpc-timeout", End::Whole),
        ("grpc-accept-encoding", End::Whole),
        ("te", End::Whole),
        (
            "a-name-that-is-longer-than-what-fits-into-one-byte-of-a-length-which-is-one-hundred-and-twenty-seven-\
             and-so-takes-another-one-for-certain",
            End::Whole,
        ),
    ] {
        for way in WAYS {
            for value in [
                "",
                "v",
                "b3",
                "traceparent",
                &"v".repeat(126),
                &"v".repeat(5000),
            ] {
                let mut encoder = Encoder::default();
                let fields = [(":method", "GET", way), (name, value, way), ("z", "", way)];
                let block = encode(&mut encoder, &fields);
                assert_eq!(walk(&block), expected, "{name} {way:#x} {block:x?}");
            }
        }
    }
}

/// Scenario: every byte of a block is one that ends it, or the block ends before it.
/// Guarantees: a block that was cut is never taken for whole, but where a field ends.
#[test]
fn cut_blocks() {
    let fields = [
        ("te", "trailers"),
        ("user-agent", "grpc"),
        ("x-long", "0123456789"),
    ];
    for way in WAYS {
        let (mut encoder, mut block) = (Encoder::default(), Vec::new());
        let mut ends = std::vec![0];
        for (name, value) in fields {
            block.extend(encode(&mut encoder, &[(name, value, way)]));
            ends.push(block.len());
        }
        for cut in 0..=block.len() {
            let whole = ends.contains(&cut);
            assert_eq!(walk(&block[..cut]) == End::Whole, whole, "{cut} {block:x?}");
        }
    }
}

#[test]
fn what_is_none() {
    for (block, expected) in [
        (&[][..], End::Whole),
        // Index 0.
        (&[0x80], End::Broken),
        // Sizes of the table.
        (&[0x20], End::Whole),
        (&[0x3f, 0xe1, 0x1f], End::Whole),
        // Numbers without end.
        (&[0xff, 0xff, 0xff, 0xff, 0xff], End::Broken),
        (&[0x40, 0x7f, 0x80, 0x80, 0x80, 1], End::Broken),
        // No name.
        (&[0x40, 0, 0], End::Broken),
        (&[0x40, 1, b'a'], End::Broken),
        (&[0x41], End::Broken),
        (b"GET / HTTP/1.1\r\n\r\n", End::Broken),
    ] {
        assert_eq!(walk(block), expected, "{block:x?}");
    }
}

/// Guarantees: what is added is a field to a decoder, and the last one.
#[test]
fn what_is_added() {
    let (mut text, ids) = ([0; FIELD_BYTES], [1 << 60 | 2, 3, u64::MAX - 1]);
    // SAFETY: locals of this function, and as long as they have to be.
    unsafe { context::field(&ids, 3, text.as_mut_ptr()) };
    let mut block = encode(&mut Encoder::default(), &[(":path", "/a", 0)]);
    block.extend(text);
    assert_eq!(walk(&block), End::Context);
    let fields = decode(&mut Decoder::default(), &block);
    let value = "00-10000000000000020000000000000003-fffffffffffffffe-03";
    let expected = [(":path", "/a"), ("traceparent", value)];
    assert_eq!(
        fields,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
}

fn any_field() -> impl Strategy<Value = (String, String, usize)> {
    let name = prop_oneof![
        "[a-z0-9-]{1,20}".prop_filter("context", |name| {
            !["x-b3-", "x-datadog-"]
                .iter()
                .any(|begin| name.starts_with(begin))
                && name != "b3"
        }),
        Just("user-agent".to_owned()),
        Just("content-type".to_owned()),
        Just("x-request-id".to_owned()),
    ];
    (name, "[ -~]{0,200}", 0..WAYS.len())
}

proptest! {
    /// Scenario: blocks of one connection, in any form, with what was sent before named by its index.
    /// Guarantees: each is gone over to its end; with the field that is added behind any of them a decoder that
    /// has to know the tables finds the same fields as without.
    #[test]
    fn tables_stay_as_they_are(
        blocks in prop::collection::vec((prop::collection::vec(any_field(), 0..12), any::<bool>()), 1..6),
    ) {
        let mut encoder = Encoder::default();
        let (mut plain, mut with) = (Decoder::default(), Decoder::default());
        let mut text = [0; FIELD_BYTES];
        // SAFETY: locals of this function, and as long as they have to be.
        unsafe { context::field(&[7, 8, 9], 1, text.as_mut_ptr()) };
        for (fields, is_added) in &blocks {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value, way)| {
                    (name.as_str(), value.as_str(), WAYS[*way] | Encoder::BEST_FORMAT)
                })
                .collect();
            let mut block = encode(&mut encoder, &fields);
            prop_assert_eq!(walk(&block), End::Whole);
            let expected = decode(&mut plain, &block);
            if *is_added {
                block.extend(text);
            }
            let mut arrived = decode(&mut with, &block);
            if *is_added {
                let last = arrived.pop().expect("the field");
                prop_assert_eq!(last.0, "traceparent");
            }
            prop_assert_eq!(arrived, expected);
        }
    }

    /// Guarantees: any bytes are gone over without a panic, and never for ever.
    #[test]
    fn any_bytes(block in prop::collection::vec(any::<u8>(), 0..200)) {
        walk(&block);
    }
}
