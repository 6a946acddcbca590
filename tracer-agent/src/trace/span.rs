//! The span as every exporter sees it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::meta::Process;
use crate::meta::kubernetes::Peer;
use crate::protocol::{CauseMethod, Connection, Exchange};

use super::routes::Template;
use super::semconv;

/// 16 bytes, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TraceId(pub [u8; 16]);

/// 8 bytes, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SpanId(pub [u8; 8]);

/// SERVER or CLIENT.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SpanKind {
    /// Answered a request.
    Server,
    /// Sent a request.
    Client,
}

/// How a span's parent was found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Link {
    /// The request carried it.
    Context,
    /// A TCP option on the request's segment carried it.
    TcpOption,
    /// The two ends of one connection on this host.
    LocalConnection,
    /// The kernel side saw which incoming exchange the request was sent for.
    Cause(CauseMethod),
}

impl Link {
    /// All there are.
    pub const ALL: [Link; 17] = [
        Link::Context,
        Link::TcpOption,
        Link::LocalConnection,
        Link::Cause(CauseMethod::SameThread),
        Link::Cause(CauseMethod::Turn),
        Link::Cause(CauseMethod::Continuation),
        Link::Cause(CauseMethod::Connection),
        Link::Cause(CauseMethod::ThreadCreated),
        Link::Cause(CauseMethod::Goroutine),
        Link::Cause(CauseMethod::GoroutineCreated),
        Link::Cause(CauseMethod::GoroutineWoken),
        Link::Cause(CauseMethod::Task),
        Link::Cause(CauseMethod::TaskCreated),
        Link::Cause(CauseMethod::TaskHanded),
        Link::Cause(CauseMethod::ThreadWoken),
        Link::Cause(CauseMethod::ThreadHanded),
        Link::Cause(CauseMethod::Timer),
    ];

    /// Name as in the attribute `tracer.parent.method` and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Link::Context => "context",
            Link::TcpOption => "tcp-option",
            Link::LocalConnection => "local-connection",
            Link::Cause(method) => match method {
                CauseMethod::SameThread => "same-thread",
                CauseMethod::Turn => "event-loop-turn",
                CauseMethod::Continuation => "continuation",
                CauseMethod::Connection => "connection-opened-for",
                CauseMethod::ThreadCreated => "thread-created",
                CauseMethod::Goroutine => "goroutine",
                CauseMethod::GoroutineCreated => "goroutine-created",
                CauseMethod::GoroutineWoken => "goroutine-woken",
                CauseMethod::Task => "task",
                CauseMethod::TaskCreated => "task-created",
                CauseMethod::TaskHanded => "task-handed",
                CauseMethod::ThreadWoken => "thread-woken",
                CauseMethod::ThreadHanded => "thread-handed",
                CauseMethod::Timer => "timer",
            },
        }
    }
}

/// OTLP status.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SpanStatus {
    /// Nothing to say.
    Unset,
    /// Failed; `error.type` says how.
    Error,
}

/// Value of a span attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text.
    Str(Cow<'a, str>),
    /// Integer.
    Int(i64),
    /// List of texts (the conventions make every header attribute one).
    StrList(&'a [Box<str>]),
}

/// One finished span. Names and attributes are computed from the exchange when asked for,
/// so that a span costs no allocation before it is encoded.
#[derive(Clone, Debug)]
pub struct Span {
    /// Trace it belongs to.
    pub trace_id: TraceId,
    /// Its own id.
    pub span_id: SpanId,
    /// Its parent; `None` for a root or when the parent is not known.
    pub parent: Option<SpanId>,
    /// How the parent was found; there exactly when there is one.
    pub link: Option<Link>,
    /// The parent lives in another process or host (it came in with the request).
    pub parent_is_remote: bool,
    /// W3C trace flags (01 sampled, 02 random).
    pub flags: u8,
    /// The sampling decision that came with the request; `None` if none did. Whoever puts a span
    /// below another on this host gives it the flags, this and the `tracestate` of that one, as an
    /// SDK does for a child.
    pub sampled: Option<bool>,
    /// `tracestate`, passed on in order.
    pub trace_state: Option<Box<str>>,
    /// Server or client.
    pub kind: SpanKind,
    /// Wall clock, nanoseconds since the epoch.
    pub start_unix_ns: u64,
    /// Wall clock, nanoseconds since the epoch; never before the start.
    pub end_unix_ns: u64,
    /// Whose span it is.
    pub process: Arc<Process>,
    /// What it tells.
    pub exchange: Exchange,
    /// Over which connection.
    pub connection: Arc<Connection>,
    /// Low-cardinality template of its path, if the user wants one and there is one.
    pub template: Option<Template>,
    /// What Kubernetes calls the other end, if it is asked and says.
    pub peer: Option<Arc<Peer>>,
}

impl Span {
    /// Low-cardinality name by the semantic conventions.
    pub fn name(&self) -> Cow<'_, str> {
        let name = semconv::name(&self.exchange);
        match &self.template {
            Some(Template { text, guessed: _ }) => Cow::Owned(format!("{name} {text}")),
            None => Cow::Borrowed(name),
        }
    }

    /// Status by the semantic conventions.
    pub fn status(&self) -> SpanStatus {
        match self.error_type() {
            Some(_) => SpanStatus::Error,
            None => SpanStatus::Unset,
        }
    }

    /// `error.type`: there exactly when the status is [`SpanStatus::Error`].
    pub fn error_type(&self) -> Option<Cow<'static, str>> {
        semconv::error_type(self.kind, &self.exchange)
    }

    /// Calls `each` once per attribute, in a stable order.
    pub fn for_each_attribute<'a>(&'a self, each: &mut dyn FnMut(&'static str, Value<'a>)) {
        semconv::for_each_attribute(self, each);
    }
}
