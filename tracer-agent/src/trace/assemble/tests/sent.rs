//! Context that the kernel side sends with requests, and that comes in TCP options.

use super::*;
use crate::trace::assemble::arrived::Place;

const WIRE_TRACE: TraceId = TraceId([7; 16]);
const WIRE_SPAN: SpanId = SpanId([8; 8]);

/// A header of 70 bytes (or an option of none) for the request at `key` of `connection`.
fn sent(connection: u64, key: u64, cause: Option<(u64, u64)>, bytes: u32, shift: u32) -> Injected {
    Injected {
        exchange: ExchangeId { connection, key },
        trace_id: WIRE_TRACE,
        span_id: WIRE_SPAN,
        flags: 3,
        cause: cause.map(|(connection, key)| Cause {
            exchange: ExchangeId { connection, key },
            method: CauseMethod::SameThread,
        }),
        shift,
        bytes,
    }
}

/// What came for a request of the server's end of the connection from port `client` to port `server`.
fn arrived(client: u16, server: u16, place: u32, is_stream: bool) -> Arrived {
    Arrived {
        place: Place {
            client: address(client),
            server: address(server),
            place,
            is_stream,
        },
        trace_id: WIRE_TRACE,
        span_id: WIRE_SPAN,
        flags: 2,
    }
}

/// Scenario: a request gets a header for a request that came in and whose trace is not settled.
/// Guarantees: its span is the one on the wire, below the server's, and the server's trace is that of the
/// wire; so are other calls for it.
#[test]
fn the_span_is_the_one_on_the_wire() {
    for bytes in [70, 0] {
        let mut world = world(Limits::default());
        let server = connection(1, Role::Server, 1000, 80);
        let client = connection(2, Role::Client, 2000, 90);
        let other = connection(3, Role::Client, 3000, 90);
        world.begin(opened(Role::Server, 0, None, None), &server);
        world.begin(opened(Role::Client, 0, Some((1, 0)), None), &other);
        world
            .assembler
            .injected(sent(2, 40, Some((1, 0)), bytes, 0));
        world.begin(opened(Role::Client, 40, Some((1, 0)), None), &client);
        world.end(Role::Client, 40, &client);
        world.end(Role::Client, 0, &other);
        world.end(Role::Server, 0, &server);
        world.wait(PATIENCE_NS);
        let (call, above, beside) = (world.span(2, 40), world.span(1, 0), world.span(3, 0));
        assert_eq!((call.trace_id, call.span_id), (WIRE_TRACE, WIRE_SPAN));
        assert_eq!(call.parent, Some(above.span_id));
        assert_eq!(call.link, Some(Link::Cause(CauseMethod::SameThread)));
        assert_eq!(above.trace_id, WIRE_TRACE);
        assert_eq!(beside.trace_id, WIRE_TRACE);
        assert_eq!(world.assembler.counts().conflicts, 0);
    }
}

/// Scenario: the trace of the request that came in was settled otherwise before the kernel side's word.
/// Guarantees: the two stay apart, and it is counted.
#[test]
fn two_traces_stay_apart() {
    let header = format!("00-{TRACE}-{PARENT}-01");
    let mut world = world(Limits::default());
    let server = connection(1, Role::Server, 1000, 80);
    let client = connection(2, Role::Client, 2000, 90);
    world.begin(opened(Role::Server, 0, None, Some(&header)), &server);
    world.assembler.injected(sent(2, 0, Some((1, 0)), 70, 0));
    world.begin(opened(Role::Client, 0, Some((1, 0)), None), &client);
    world.end(Role::Client, 0, &client);
    world.end(Role::Server, 0, &server);
    let call = world.span(2, 0);
    assert_eq!((call.trace_id, call.parent), (WIRE_TRACE, None));
    assert_ne!(world.span(1, 0).trace_id, WIRE_TRACE);
    assert_eq!(world.assembler.counts().conflicts, 1);
}

/// Scenario: the trace on the wire turns out to be a part of the one of a local client.
/// Guarantees: as before.
#[test]
fn a_trace_on_the_wire_is_not_renamed() {
    let mut world = world(Limits::default());
    let above = connection(1, Role::Client, 1000, 80);
    let server = connection(2, Role::Server, 1000, 80);
    let client = connection(3, Role::Client, 2000, 90);
    world.begin(opened(Role::Server, 0, None, None), &server);
    world.assembler.injected(sent(3, 0, Some((2, 0)), 70, 0));
    world.begin(opened(Role::Client, 0, Some((2, 0)), None), &client);
    world.end(Role::Client, 0, &client);
    world.begin(opened(Role::Client, 0, None, None), &above);
    world.end(Role::Client, 0, &above);
    world.end(Role::Server, 0, &server);
    world.wait(PATIENCE_NS);
    let served = world.span(2, 0);
    assert_eq!(served.trace_id, WIRE_TRACE);
    assert_eq!(world.span(3, 0).parent, Some(served.span_id));
    if served.parent.is_none() {
        assert_eq!(world.assembler.counts().conflicts, 1);
    } else {
        assert_eq!(world.span(1, 0).trace_id, WIRE_TRACE);
    }
}

/// Scenario: a request carries context of its own, and the kernel side sent other context beside it.
/// Guarantees: what the program itself sent counts: the other end reads that too.
#[test]
fn what_the_program_sends_goes_first() {
    let header = format!("00-{TRACE}-{PARENT}-01");
    let mut world = world(Limits::default());
    let client = connection(1, Role::Client, 1000, 80);
    let server = connection(2, Role::Server, 1000, 80);
    let place = u32::from(1000u16) << 8;
    world.assembler.injected(sent(1, 0, None, 0, 0));
    world.assembler.arrived(arrived(1000, 80, place, false));
    world.begin(opened(Role::Client, 0, None, Some(&header)), &client);
    world.begin(opened(Role::Server, 0, None, Some(&header)), &server);
    world.end(Role::Client, 0, &client);
    world.end(Role::Server, 0, &server);
    for id in [1, 2] {
        assert_eq!(world.span(id, 0).link, Some(Link::Context), "{id}");
        assert_ne!(world.span(id, 0).trace_id, WIRE_TRACE, "{id}");
    }
}

/// Scenario: headers were put into the first and the third of four requests; the server counts their bytes.
/// Guarantees: both ends of each are found.
#[test]
fn bytes_that_were_added_are_counted() {
    let mut world = world(Limits::default());
    let client = connection(1, Role::Client, 1000, 80);
    let server = connection(2, Role::Server, 1000, 80);
    for (key, shift, added) in [(0, 0, 70), (100, 70, 0), (200, 70, 70), (300, 140, 0)] {
        if added > 0 {
            world.assembler.injected(sent(1, key, None, added, shift));
        }
        world.begin(opened(Role::Client, key, None, None), &client);
        let there = key + u64::from(shift);
        world.begin(opened(Role::Server, there, None, None), &server);
        world.end(Role::Client, key, &client);
        world.end(Role::Server, there, &server);
        world.wait(PATIENCE_NS);
        let (sent, served) = (world.span(1, key), world.span(2, there));
        assert_eq!(served.parent, Some(sent.span_id), "{key}");
        assert_eq!(served.link, Some(Link::LocalConnection), "{key}");
    }
}

/// Scenario: options for a request, and for what is not that request.
/// Guarantees: only the request's own counts, once.
#[test]
fn an_option_belongs_to_one_request() {
    let place = u32::from(1000u16) << 8;
    let joined = |came: Arrived, stream: bool| {
        let mut world = world(Limits::default());
        let server = connection(2, Role::Server, 1000, 80);
        world.assembler.arrived(came);
        for key in [5, 7] {
            let mut request = opened(Role::Server, key, None, None);
            if stream {
                request.position = None;
            }
            world.begin(request, &server);
            world.end(Role::Server, key, &server);
        }
        world.wait(PATIENCE_NS);
        assert_eq!(world.span(2, 5).parent, None);
        let span = world.span(2, 7);
        let found = span.link == Some(Link::TcpOption);
        assert_eq!(found, span.trace_id == WIRE_TRACE);
        assert_eq!(found, span.parent == Some(WIRE_SPAN));
        assert_eq!(found, span.flags & FLAG_SAMPLED == 0, "as it came");
        found
    };
    assert!(joined(arrived(1000, 80, place + 7, false), false));
    assert!(joined(arrived(1000, 80, place + 7, true), true));
    assert!(!joined(arrived(1000, 80, place + 7, true), false));
    assert!(!joined(arrived(1000, 80, place + 7, false), true));
    assert!(!joined(arrived(1000, 80, place + 6, false), false));
    assert!(!joined(arrived(1001, 80, place + 7, false), false));
    assert!(!joined(arrived(1000, 81, place + 7, false), false));
}

/// Scenario: more is sent and comes than requests are ever seen for.
/// Guarantees: the tables stay within their bounds; the newest are there.
#[test]
fn what_no_request_is_seen_for_goes() {
    let limits = Limits {
        waiting: 10,
        ..Limits::default()
    };
    let mut world = world(limits);
    for key in 0..1000 {
        world.assembler.injected(sent(key, 0, None, 70, 0));
        world.assembler.injected(sent(5000, key, None, 70, 0));
        world
            .assembler
            .arrived(arrived(1000, 80, key as u32, false));
        world
            .assembler
            .arrived(arrived(1000, 80, key as u32, false));
    }
    let (pending, connections) = world.assembler.injections.len();
    assert!(
        pending <= 10 && connections <= 10,
        "{pending} {connections}"
    );
    assert!(world.assembler.arrivals.len() <= 10);
    let newest = ExchangeId {
        connection: 999,
        key: 0,
    };
    assert!(world.assembler.injections.take(newest).is_some());
    assert_eq!(world.assembler.injections.take(newest), None);
}
