//! Tests of the room against real receivers on 127.0.0.1.

mod collector;
mod encode;
mod file;
mod names;
mod otlp;
mod queue;
mod spooled;
mod tls;
mod zipkin;

use std::sync::Arc;

use crate::meta::{AttributeValue, Process};
use crate::protocol::{
    Connection, ContextHeaders, Endpoint, Exchange, Outcome, Protocol, Request, Response, Role,
};
use crate::trace::{Span, SpanId, SpanKind, TraceId};

/// A process with attributes of every type.
pub fn process(pid: u32) -> Arc<Process> {
    Arc::new(Process {
        pid,
        service_name: "shop".into(),
        attributes: vec![
            ("service.name".into(), AttributeValue::Str("shop".into())),
            ("process.pid".into(), AttributeValue::Int(i64::from(pid))),
            (
                "process.command_args".into(),
                AttributeValue::StrList(vec!["shop".into(), "".into(), "--port=80".into()]),
            ),
            ("host.name".into(), AttributeValue::Str("".into())),
        ],
    })
}

/// A span of `process`, all ids derived from `number`.
pub fn span(number: u64, process: &Arc<Process>) -> Span {
    let mut trace_id = [7; 16];
    trace_id[8..].copy_from_slice(&number.to_be_bytes());
    Span {
        trace_id: TraceId(trace_id),
        span_id: SpanId((number + 1).to_be_bytes()),
        parent: (number % 2 == 1).then_some(SpanId([9; 8])),
        link: None,
        parent_is_remote: number % 4 == 1,
        flags: 3,
        sampled: None,
        template: None,
        peer: None,
        trace_state: (number.is_multiple_of(3)).then(|| "ot=th:0,vendor=x".into()),
        kind: if number.is_multiple_of(2) {
            SpanKind::Server
        } else {
            SpanKind::Client
        },
        start_unix_ns: 1_700_000_000_000_000_000 + number,
        end_unix_ns: 1_700_000_000_001_000_000 + number,
        process: Arc::clone(process),
        exchange: Exchange {
            key: 0,
            role: if number.is_multiple_of(2) {
                Role::Server
            } else {
                Role::Client
            },
            protocol: Protocol::Http11,
            request: Request {
                method: "GET".into(),
                target: format!("/items/{number}?q=1").into(),
                authority: Some("shop.example:8080".into()),
                user_agent: Some("curl/8.5.0".into()),
                scheme: None,
                context: ContextHeaders::default(),
                body_bytes: Some(0),
            },
            response: Some(Response {
                status: if number.is_multiple_of(5) { 503 } else { 200 },
                body_bytes: Some(12),
            }),
            grpc: None,
            outcome: Outcome::Complete,
            start_ns: 1,
            response_start_ns: Some(2),
            end_ns: 3,
            stream: 0,
            tgid: process.pid,
            tid: process.pid,
        },
        connection: Arc::new(Connection {
            id: number,
            local: Endpoint::Ip(([127, 0, 0, 1], 8080).into()),
            remote: Endpoint::Ip(([127, 0, 0, 1], 40000).into()),
            role: Some(Role::Server),
            from_start: true,
            tls: false,
            wire: None,
        }),
    }
}

/// `count` spans of one process.
pub fn spans(count: usize) -> Vec<Span> {
    let process = process(42);
    (0..count as u64)
        .map(|number| span(number, &process))
        .collect()
}
