//! What a span takes from its request, its clock and its role.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::protocol::{ContextHeaders, Endpoint, Outcome, Protocol, Request, Response};
use crate::trace::{SpanId, TraceId};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const TRACE_ID: TraceId = TraceId(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
const SPAN_ID: SpanId = SpanId(0xb7ad_6b71_6920_3331_u64.to_be_bytes());

fn exchange(role: Role, headers: &[(&str, &str)]) -> Exchange {
    Exchange {
        key: 0,
        role,
        protocol: Protocol::Http11,
        request: Request {
            method: "GET".into(),
            target: "/items/42?page=3&size=10".into(),
            authority: Some("shop.example:8080".into()),
            user_agent: Some("curl/8.5.0".into()),
            scheme: None,
            context: ContextHeaders(
                headers
                    .iter()
                    .map(|(name, value)| ((*name).into(), (*value).into()))
                    .collect(),
            ),
            body_bytes: Some(0),
        },
        response: Some(Response {
            status: 200,
            body_bytes: Some(612),
        }),
        grpc: None,
        outcome: Outcome::Complete,
        start_ns: 1_000,
        response_start_ns: Some(1_500),
        end_ns: 2_000,
        stream: 0,
        tgid: 1,
        tid: 1,
    }
}

fn connection() -> Arc<Connection> {
    let ip = |port| Endpoint::Ip(SocketAddr::from(([10, 0, 0, 1], port)));
    Arc::new(Connection {
        id: 1,
        local: ip(80),
        remote: ip(4321),
        role: None,
        from_start: true,
        tls: false,
        wire: None,
    })
}

fn process() -> Arc<Process> {
    Arc::new(Process {
        pid: 1,
        service_name: "shop".into(),
        attributes: Vec::new(),
    })
}

fn builder() -> SpanBuilder {
    SpanBuilder::new(
        Propagators::default(),
        Redaction::default(),
        fastrand::Rng::with_seed(1),
    )
}

fn build(role: Role, headers: &[(&str, &str)]) -> Span {
    builder().build(exchange(role, headers), &connection(), &process(), 0)
}

#[test]
fn a_request_without_context_starts_a_trace() {
    for role in [Role::Server, Role::Client] {
        let mut builder = builder();
        let first = builder.build(exchange(role, &[]), &connection(), &process(), 0);
        let second = builder.build(exchange(role, &[]), &connection(), &process(), 0);
        assert_ne!(first.trace_id, second.trace_id);
        assert_ne!(first.span_id, second.span_id);
        assert_eq!((first.parent, first.parent_is_remote), (None, false));
        assert_eq!(first.flags, FLAG_SAMPLED | FLAG_RANDOM);
        assert_eq!(first.trace_state, None);
        assert_eq!(builder.counts(), &ContextCounts::default());
    }
}

#[test]
fn context_is_adopted_on_both_sides() {
    for (role, kind, remote) in [
        (Role::Server, SpanKind::Server, true),
        (Role::Client, SpanKind::Client, false),
    ] {
        let traceparent = format!("00-{TRACE}-{SPAN}-00");
        let span = build(
            role,
            &[("traceparent", &traceparent), ("tracestate", "a=1, b=2")],
        );
        assert_eq!(span.kind, kind);
        assert_eq!((span.trace_id, span.parent), (TRACE_ID, Some(SPAN_ID)));
        assert_eq!(span.parent_is_remote, remote);
        assert_ne!(span.span_id, SPAN_ID);
        assert_eq!(span.flags, 0);
        assert_eq!(span.trace_state.as_deref(), Some("a=1,b=2"));
    }
}

#[test]
fn flags() {
    let check = |name, value: String, flags| {
        assert_eq!(
            build(Role::Server, &[(name, &value)]).flags,
            flags,
            "for {name}: {value}"
        );
    };
    check(
        "traceparent",
        format!("00-{TRACE}-{SPAN}-03"),
        FLAG_SAMPLED | FLAG_RANDOM,
    );
    check("traceparent", format!("00-{TRACE}-{SPAN}-02"), FLAG_RANDOM);
    check("b3", format!("{TRACE}-{SPAN}-1"), FLAG_SAMPLED);
    check("b3", format!("{TRACE}-{SPAN}-0"), 0);
    check("b3", format!("{TRACE}-{SPAN}"), FLAG_SAMPLED);
    check("b3", "0".into(), FLAG_RANDOM);
    check("b3", "1".into(), FLAG_SAMPLED | FLAG_RANDOM);
    check("b3", "bad".into(), FLAG_SAMPLED | FLAG_RANDOM);
}

#[test]
fn a_root_without_a_parent_span_is_no_remote_parent() {
    let span = build(
        Role::Server,
        &[(
            "x-amzn-trace-id",
            "Root=1-0af76519-16cd43dd8448eb211c80319c",
        )],
    );
    assert_eq!(
        (span.trace_id, span.parent, span.parent_is_remote),
        (TRACE_ID, None, false)
    );
}

#[test]
fn what_was_read_and_what_was_malformed_is_counted() {
    let mut builder = builder();
    let traceparent = format!("00-{TRACE}-{SPAN}-00");
    for headers in [
        &[("traceparent", "x"), ("b3", "0"), ("uber-trace-id", "x")][..],
        &[
            ("traceparent", &traceparent),
            ("tracestate", "x"),
            ("b3", "not looked at"),
        ],
        &[("traceparent", "")],
    ] {
        builder.build(
            exchange(Role::Server, headers),
            &connection(),
            &process(),
            0,
        );
    }
    let counts = builder.counts();
    assert_eq!(
        Format::ALL.map(|format| counts.read(format)),
        [1, 1, 0, 0, 0, 0]
    );
    assert_eq!(
        Format::ALL.map(|format| counts.malformed(format)),
        [2, 0, 0, 1, 0, 0]
    );
    assert_eq!(counts.malformed_trace_state(), 1);
}

#[test]
fn times() {
    let check = |start_ns, end_ns, offset, expected| {
        let mut exchange = exchange(Role::Server, &[]);
        (exchange.start_ns, exchange.end_ns) = (start_ns, end_ns);
        let span = builder().build(exchange, &connection(), &process(), offset);
        assert_eq!((span.start_unix_ns, span.end_unix_ns), expected);
    };
    check(5, 9, 1_000, (1_005, 1_009));
    check(5_000, 9_000, -1_000, (4_000, 8_000));
    check(9, 5, 1_000, (1_009, 1_009));
    check(5, 9, i64::MIN, (0, 0));
    check(u64::MAX - 1, u64::MAX, i64::MAX, (u64::MAX, u64::MAX));
}

#[test]
fn a_span_holds_no_secret() {
    let mut exchange = exchange(Role::Server, &[]);
    exchange.request.target = "http://user:hidden@h/p?sig=hidden&a=b".into();
    exchange.request.authority = Some("user:hidden@h".into());
    let span = builder().build(exchange, &connection(), &process(), 0);
    assert!(!format!("{span:?}").contains("hidden"));
}

/// Batches as an exporter has them, so that memory is warm; the median keeps other programs' turns
/// out of the result.
///
/// `cargo test --release -p tracer-agent --lib trace::builder -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a check; only a release build says something"]
fn cost_of_a_span() {
    const BATCH: u32 = 512;
    const BATCHES: usize = 401;
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let (connection, process) = (connection(), process());
    let traced = [("traceparent", traceparent.as_str())];
    for (what, headers) in [("without context", &[][..]), ("with traceparent", &traced)] {
        for role in [Role::Server, Role::Client] {
            let mut builder = builder();
            let mut spans = Vec::with_capacity(BATCH as usize);
            let (mut building, mut telling) = (Vec::new(), Vec::new());
            for _ in 0..BATCHES {
                spans.clear();
                let exchanges: Vec<_> = (0..BATCH).map(|_| exchange(role, headers)).collect();
                let started = Instant::now();
                spans.extend(
                    exchanges
                        .into_iter()
                        .map(|exchange| builder.build(exchange, &connection, &process, 1_000)),
                );
                building.push(started.elapsed() / BATCH);
                let started = Instant::now();
                for span in &spans {
                    black_box((span.name(), span.status()));
                    span.for_each_attribute(&mut |key, value| {
                        black_box((key, value));
                    });
                }
                telling.push(started.elapsed() / BATCH);
            }
            let median = |times: &mut Vec<Duration>| {
                times.sort_unstable();
                times[BATCHES / 2]
            };
            let (building, telling) = (median(&mut building), median(&mut telling));
            println!("{role:?} {what}: build {building:?}, attributes {telling:?}");
        }
    }
}
