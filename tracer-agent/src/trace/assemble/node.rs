//! What is remembered of one exchange.

use std::sync::Arc;

use crate::protocol::{ExchangeId, Opened, Role};
use crate::trace::FLAG_RANDOM;
use crate::trace::context::RequestContext;
use crate::trace::span::{Link, SpanId, TraceId};

use super::wire::WireKey;

/// One exchange, from its request's head on.
#[derive(Debug)]
pub struct Node {
    pub role: Role,
    pub span_id: SpanId,
    pub parent: Parent,
    /// The span of the parent, once the trace is known.
    pub above: Option<SpanId>,
    /// Known once it is certain.
    pub trace: Option<Trace>,
    /// The id that its trace has on the wire already.
    pub pin: Option<TraceId>,
    /// Sampling decision that came without a trace.
    pub sampled: Option<bool>,
    pub start_ns: u64,
    /// Until then a parent may still become known.
    pub patience_ns: u64,
    /// Where the other end is looked for; `None` once it was found.
    pub wire: Option<WireKey>,
    /// The other end, once it was found.
    pub peer: Option<ExchangeId>,
    /// The other end may be on this host and be told of late.
    pub near: bool,
    pub ended: bool,
}

/// Where a span belongs.
#[derive(Clone, Copy, Debug)]
pub enum Parent {
    /// Nowhere, as far as is known.
    None,
    /// Where the request's context says.
    Context(Option<SpanId>, Link),
    /// Below the span of an exchange of this host.
    Exchange(ExchangeId, Link),
}

/// What all spans of a trace share.
#[derive(Clone, Debug)]
pub struct Trace {
    pub trace_id: TraceId,
    pub sampled: Option<bool>,
    pub flags: u8,
    pub trace_state: Option<Arc<str>>,
}

impl Node {
    pub fn new(opened: &Opened, span_id: SpanId, now_ns: u64, sampled: Option<bool>) -> Self {
        Node {
            role: opened.role,
            span_id,
            parent: Parent::None,
            above: None,
            trace: None,
            pin: None,
            sampled,
            start_ns: opened.start_ns,
            patience_ns: now_ns,
            wire: None,
            peer: None,
            near: false,
            ended: false,
        }
    }
}

impl Trace {
    /// A new one.
    pub fn begin(trace_id: TraceId, sampled: Option<bool>) -> Self {
        Trace {
            trace_id,
            sampled,
            flags: FLAG_RANDOM,
            trace_state: None,
        }
    }
}

impl From<RequestContext> for Trace {
    fn from(context: RequestContext) -> Self {
        let RequestContext {
            trace_id,
            parent: _,
            sampled,
            flags,
            trace_state,
        } = context;
        Trace {
            trace_id,
            sampled,
            flags,
            trace_state: trace_state.map(Arc::from),
        }
    }
}
