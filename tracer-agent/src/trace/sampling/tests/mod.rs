//! What the sampler promises: tables, and properties over many traces.

mod speed;
mod stage;
mod text;
mod totals;

use std::sync::Arc;

use crate::meta::Process;
use crate::protocol::{
    Connection, ContextHeaders, Endpoint, Exchange, Outcome, Protocol, Request, Response, Role,
};
use crate::trace::{Span, SpanId, SpanKind, TraceId};

/// What matters of a span here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made<'a> {
    pub trace: u128,
    pub span: u64,
    pub parent: Option<u64>,
    pub remote: bool,
    pub sampled: Option<bool>,
    pub state: Option<&'a str>,
    pub kind: SpanKind,
    pub service: &'a str,
    pub target: &'a str,
    pub status: u16,
    pub took_ms: u64,
}

impl Default for Made<'_> {
    fn default() -> Self {
        Made {
            trace: 1,
            span: 1,
            parent: None,
            remote: false,
            sampled: None,
            state: None,
            kind: SpanKind::Server,
            service: "shop",
            target: "/",
            status: 200,
            took_ms: 1,
        }
    }
}

pub(crate) fn span(made: Made<'_>) -> Span {
    let start = 1_700_000_000_000_000_000 + made.span;
    let role = match made.kind {
        SpanKind::Server => Role::Server,
        SpanKind::Client => Role::Client,
    };
    Span {
        trace_id: TraceId(made.trace.to_be_bytes()),
        span_id: SpanId(made.span.to_be_bytes()),
        parent: made.parent.map(|id| SpanId(id.to_be_bytes())),
        link: None,
        parent_is_remote: made.remote,
        flags: 2 | u8::from(made.sampled.unwrap_or(true)),
        sampled: made.sampled,
        trace_state: made.state.map(Into::into),
        kind: made.kind,
        start_unix_ns: start,
        end_unix_ns: start + made.took_ms * 1_000_000,
        process: Arc::new(Process {
            pid: 1,
            service_name: made.service.into(),
            attributes: Vec::new(),
        }),
        exchange: Exchange {
            key: 0,
            role,
            protocol: Protocol::Http11,
            request: Request {
                method: "GET".into(),
                target: made.target.into(),
                scheme: None,
                authority: None,
                user_agent: None,
                context: ContextHeaders::default(),
                body_bytes: Some(0),
            },
            response: Some(Response {
                status: made.status,
                body_bytes: Some(0),
            }),
            grpc: None,
            stream: 0,
            outcome: Outcome::Complete,
            start_ns: 1,
            response_start_ns: Some(2),
            end_ns: 3,
            tgid: 1,
            tid: 1,
        },
        connection: Arc::new(Connection {
            wire: None,
            id: 1,
            local: Endpoint::Ip(([127, 0, 0, 1], 80).into()),
            remote: Endpoint::Ip(([127, 0, 0, 1], 40_000).into()),
            role: Some(role),
            from_start: true,
            tls: false,
        }),
        template: None,
        peer: None,
    }
}
