extern crate std;
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use super::*;
use crate::frame::Fields;

struct Bytes(Vec<u8>);

impl Window for Bytes {
    fn word(&self, at: u32) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|i| self.byte(at + i as u32)))
    }
    fn byte(&self, at: u32) -> u8 {
        self.0.get(at as usize).copied().unwrap_or(0)
    }
    fn fields(&self) -> *mut Fields {
        core::ptr::null_mut()
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn check(lines: &str) -> u32 {
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\n{lines}\r\n");
    let mut found = Found::default();
    let bytes = Bytes(head.clone().into_bytes());
    // SAFETY: a local of this function.
    unsafe { scan(&bytes, head.len() as u32, &mut found) };
    assert_eq!(found.end as usize, head.len(), "{lines}");
    for cut in 0..head.len() {
        // SAFETY: as above.
        unsafe { scan(&bytes, cut as u32, &mut found) };
        assert_eq!(found.end, 0, "{cut} bytes of {lines}");
    }
    // SAFETY: as above.
    unsafe { scan(&bytes, head.len() as u32, &mut found) };
    // SAFETY: as above.
    unsafe { conclude(&bytes, &mut found) }.state
}

/// Scenario: heads with and without context. Guarantees: only what is certain is taken for one, and
/// whatever may be one is never taken for none.
#[test]
fn contexts_in_heads() {
    let good = format!("00-{TRACE}-{SPAN}-01");
    let cases: Vec<(String, u32)> = vec![
        (String::new(), incoming::ABSENT),
        (format!("traceparent: {good}\r\n"), incoming::W3C),
        (format!("TraceParent:{good}\r\n"), incoming::W3C),
        (
            format!("a: b\r\nTRACEPARENT:   {good}\r\nc: d\r\n"),
            incoming::W3C,
        ),
        (
            format!("traceparent: {good}\r\ntracestate: a=b\r\n"),
            incoming::W3C,
        ),
        ("tracestate: a=b\r\n".into(), incoming::ABSENT),
        (format!("traceparent: {good}-x\r\n"), incoming::OTHER),
        (format!("traceparent: {good} \r\n"), incoming::OTHER),
        (
            format!("traceparent: 01-{TRACE}-{SPAN}-01\r\n"),
            incoming::OTHER,
        ),
        (
            format!("traceparent: 00-{}-{SPAN}-01\r\n", TRACE.to_uppercase()),
            incoming::OTHER,
        ),
        (
            format!("traceparent: 00-{}-{SPAN}-01\r\n", "0".repeat(32)),
            incoming::OTHER,
        ),
        (
            format!("traceparent: 00-{TRACE}-{}-01\r\n", "0".repeat(16)),
            incoming::OTHER,
        ),
        (
            format!("traceparent: 00-{TRACE}-{SPAN}-0g\r\n"),
            incoming::OTHER,
        ),
        ("traceparent:\r\n".into(), incoming::OTHER),
        (
            format!("traceparent: {good}\r\ntraceparent: {good}\r\n"),
            incoming::OTHER,
        ),
        (format!("traceparent: {good}\r\nb3: 0\r\n"), incoming::OTHER),
        ("B3: 0\r\n".into(), incoming::OTHER),
        ("X-B3-TraceId: 1\r\n".into(), incoming::OTHER),
        ("uber-trace-id: 1:1:0:1\r\n".into(), incoming::OTHER),
        ("X-Amzn-Trace-Id: Root=1\r\n".into(), incoming::OTHER),
        ("x-datadog-trace-id: 1\r\n".into(), incoming::OTHER),
        ("b3x: 0\r\nnot-b3: 0\r\n".into(), incoming::ABSENT),
    ];
    for (lines, want) in cases {
        assert_eq!(check(&lines), want, "{lines}");
    }
}

/// Scenario: a header made and read back. Guarantees: the same ids and flag.
#[test]
fn what_is_written_can_be_read() {
    for flags in 0..4 {
        let mut line = [0; HEADER_BYTES];
        let trace = [0x0af7_6519_16cd_43dd, 0x8448_eb21_1c80_319c];
        let ids = [trace[0], trace[1], 0xb7ad_6b71_6920_3331];
        // SAFETY: the line is as long as that.
        unsafe { header(&ids, flags, line.as_mut_ptr()) };
        let expected = format!("traceparent: 00-{TRACE}-{SPAN}-0{flags}\r\n");
        assert_eq!(core::str::from_utf8(&line), Ok(expected.as_str()));
        let read = parse(&Bytes(line.to_vec()), 12);
        assert_eq!((read.state, read.trace), (incoming::W3C, trace));
        assert_eq!(read.flags, flags);
    }
}

/// Scenario: first bytes of messages. Guarantees: only methods that a header may be added to.
#[test]
fn methods() {
    let word = |text: &str| {
        let mut bytes = [b'x'; 8];
        bytes[..text.len().min(8)].copy_from_slice(&text.as_bytes()[..text.len().min(8)]);
        u64::from_le_bytes(bytes)
    };
    for method in ["GET", "PUT", "POST", "HEAD", "PATCH", "DELETE", "OPTIONS"] {
        assert!(begins_request(word(&format!("{method} "))), "{method}");
        assert!(!begins_request(word(&method.to_lowercase())), "{method}");
        assert!(!begins_request(word(&format!("{method}X"))), "{method}");
    }
    assert!(!begins_request(word("CONNECT ")));
    assert!(!begins_request(word("PRI * HT")));
    assert!(!begins_request(word("HTTP/1.1")));
}

/// Scenario: every byte of the value replaced by every other one. Guarantees: it is not taken for a value, or means
/// what it says.
#[test]
fn digits_are_digits() {
    let text = format!("00-{TRACE}-{SPAN}-03");
    for place in 0..text.len() {
        for byte in 0..=255 {
            let mut bytes = text.clone().into_bytes();
            bytes[place] = byte;
            let is_digit = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let good = match place {
                0 | 1 => byte == b'0',
                2 | 35 | 52 => byte == b'-',
                _ => is_digit,
            };
            let read = value(&Bytes(bytes.clone()), 0);
            assert_eq!(read.state == incoming::W3C, good, "{bytes:?}");
            if good {
                let text = String::from_utf8(bytes).expect("text");
                let half = |at: usize| u64::from_str_radix(&text[at..at + 16], 16).expect("digits");
                assert_eq!(read.trace, [half(3), half(19)]);
                let flags = u32::from_str_radix(&text[53..], 16).expect("digits");
                assert_eq!(read.flags, flags & 3);
            }
        }
    }
}
