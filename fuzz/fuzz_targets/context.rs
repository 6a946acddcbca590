//! Trace context: any headers, valid ones changed a little, all formats, any order of formats.
//!
//! Guarantees: no panic; ids are never zero; a format is either used or malformed, never both; what
//! is found does not depend on the formats that were not used.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tracer_agent::protocol::ContextHeaders;
use tracer_agent::trace::context::{Extraction, Format, Propagators, extract};
use tracer_agent::trace::{SpanId, TraceId};

/// Headers and the list of formats to look for.
#[derive(Arbitrary, Debug)]
struct Script<'a> {
    propagators: &'a str,
    headers: Vec<Header<'a>>,
}

#[derive(Arbitrary, Debug)]
struct Header<'a> {
    name: u8,
    value: Value<'a>,
}

#[derive(Arbitrary, Debug)]
enum Value<'a> {
    Any(&'a str),
    /// A valid value, with one character replaced, added or cut off.
    Valid {
        index: u8,
        at: u8,
        change: Option<char>,
        cut: bool,
    },
}

const NAMES: [&str; 15] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "x-amzn-trace-id",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-tags",
    "x-request-id",
];

const VALID: [&str; 16] = [
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
    "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90",
    "0",
    "1",
    "d",
    "4bf92f3577b34da6a3ce929d0e0e4736",
    "a3ce929d0e0e4736",
    "4bf92f3577b34da6a3ce929d0e0e4736:f067aa0ba902b7:0:1",
    "4bf92f3577b34da6a3ce929d0e0e4736%3Af067aa0ba902b7%3A0%3A3",
    "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
    "Self=1-67891234-12456789abcdef012345678;Root=1-67891233-abcdef012345678912345678",
    "18446744073709551615",
    "-1",
    "_dd.p.dm=-4,_dd.p.tid=640cfd8d00000000",
];

fn value(value: &Value<'_>) -> Box<str> {
    match value {
        Value::Any(text) => (*text).into(),
        Value::Valid {
            index,
            at,
            change,
            cut,
        } => {
            let mut text: Vec<char> = VALID[usize::from(*index) % VALID.len()].chars().collect();
            let at = usize::from(*at) % (text.len() + 1);
            match (change, text.get_mut(at)) {
                (Some(new), Some(old)) => *old = *new,
                (Some(new), None) => text.push(*new),
                (None, _) => {}
            }
            if *cut {
                text.truncate(at);
            }
            text.into_iter().collect::<String>().into()
        }
    }
}

fuzz_target!(|script: Script<'_>| {
    let headers = script.headers.iter().map(|header| {
        let name = NAMES[usize::from(header.name) % NAMES.len()];
        (name.into(), value(&header.value))
    });
    let headers = ContextHeaders(headers.collect());
    let (propagators, _) = Propagators::parse(script.propagators);
    for propagators in [propagators, Propagators::default()] {
        let Extraction {
            context,
            decision,
            malformed,
        } = extract(&headers, &propagators);
        let Some((format, found)) = context else {
            assert!(
                !malformed.trace_state(),
                "a tracestate without its traceparent"
            );
            if let Some((format, _)) = decision {
                assert!(!malformed.contains(format));
            }
            continue;
        };
        assert!(decision.is_none(), "a context decides");
        assert!(!malformed.contains(format), "used although malformed");
        assert_ne!(found.trace_id, TraceId([0; 16]));
        assert_ne!(found.parent, Some(SpanId([0; 8])));
        assert_eq!(found.flags & !3, 0, "flags that mean nothing");
        assert!(format == Format::TraceContext || found.trace_state.is_none());
        // b3 and b3multi name the same two formats, so that alone they may find the other one first.
        let (alone, unknown) = Propagators::parse(format.name());
        assert!(unknown.is_empty());
        let again = extract(&headers, &alone).context;
        if !matches!(format, Format::B3Single | Format::B3Multi) {
            assert_eq!(again, Some((format, found)));
        } else {
            assert!(again.is_some());
        }
    }
});
