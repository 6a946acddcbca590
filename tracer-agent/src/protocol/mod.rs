//! Pure protocol state machines: bytes and times in, exchanges out. No I/O, no clocks.
//!
//! A session belongs to one end of one connection. It is told, per direction and in order, what
//! happened to the bytes: [`Input::Bytes`], [`Input::Skipped`] (left out on purpose, counted) or
//! [`Input::Lost`]; and how directions ended. It pushes finished [`Exchange`]s and counts.

mod context;
pub mod hpack;
pub mod http1;
pub mod http2;
mod parser;

pub use parser::{Outputs, Parser, Sessions};

use std::net::SocketAddr;

/// Which end of the connection the traced process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It answers requests.
    Server,
    /// It sends requests.
    Client,
}

/// Direction of bytes as the traced process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Bytes the process reads.
    Read,
    /// Bytes the process writes.
    Write,
}

/// One piece of a direction, in order and without overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// The bytes themselves.
    Bytes(&'a [u8]),
    /// So many bytes were left out on purpose (a body the kernel side counted).
    Skipped(u64),
    /// So many bytes were lost (ring full, capture loss): what they said is unknown.
    Lost(u64),
}

/// Who moved the bytes, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// When the call returned, `CLOCK_BOOTTIME` nanoseconds (replay: capture time).
    pub time_ns: u64,
    /// When the call was entered, as far as known; never later than `time_ns`.
    pub start_ns: u64,
    /// Process that made the call; 0 if unknown.
    pub tgid: u32,
    /// Thread that made the call; 0 if unknown.
    pub tid: u32,
    /// The exchange that the request which begins with these bytes is sent for, if that is certain.
    pub cause: Option<Cause>,
}

/// Names an exchange at one of its ends for the life of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExchangeId {
    /// [`Connection::id`].
    pub connection: u64,
    /// [`Exchange::key`].
    pub key: u64,
}

/// The incoming exchange that a request is sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Which exchange.
    pub exchange: ExchangeId,
    /// How that was found.
    pub method: CauseMethod,
}

/// How the cause of a request was found; see `tracer_common::abi::cause_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CauseMethod {
    /// The thread read the request that it serves, and waits for what it calls.
    SameThread,
    /// The thread of an event loop touched that exchange last, in this turn of the loop.
    Turn,
    /// It goes on with the response of a call of that exchange.
    Continuation,
    /// The connection was opened for that exchange.
    Connection,
    /// The thread was made by a thread that served that exchange.
    ThreadCreated,
    /// The goroutine read the request that it serves.
    Goroutine,
    /// The goroutine was started by one that served that exchange.
    GoroutineCreated,
    /// The goroutine was woken by one that served that exchange.
    GoroutineWoken,
    /// The task was made, or woken, when that exchange's request was read.
    Task,
    /// The task was made by one that serves that exchange.
    TaskCreated,
    /// A task that serves that exchange sent it to the task that writes to the connection.
    TaskHanded,
    /// The thread was woken for that exchange, the only one in its process.
    ThreadWoken,
    /// The thread took work that was handed over for that exchange.
    ThreadHanded,
    /// The timer whose callback runs was made for that exchange.
    Timer,
}

impl CauseMethod {
    /// From the kernel side's number.
    pub fn from_abi(method: u32) -> Option<Self> {
        use tracer_common::abi::cause_method as abi;
        Some(match method {
            abi::SAME_THREAD => CauseMethod::SameThread,
            abi::TURN => CauseMethod::Turn,
            abi::CONTINUATION => CauseMethod::Continuation,
            abi::CONNECTION => CauseMethod::Connection,
            abi::THREAD_CREATED => CauseMethod::ThreadCreated,
            abi::GOROUTINE => CauseMethod::Goroutine,
            abi::GOROUTINE_CREATED => CauseMethod::GoroutineCreated,
            abi::GOROUTINE_WOKEN => CauseMethod::GoroutineWoken,
            abi::TASK => CauseMethod::Task,
            abi::TASK_CREATED => CauseMethod::TaskCreated,
            abi::TASK_HANDED => CauseMethod::TaskHanded,
            abi::THREAD_WOKEN => CauseMethod::ThreadWoken,
            abi::THREAD_HANDED => CauseMethod::ThreadHanded,
            abi::TIMER => CauseMethod::Timer,
            _ => return None,
        })
    }
}

/// A request whose head was seen: the exchange has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// As the exchange's will be.
    pub key: u64,
    /// Which end the traced process is.
    pub role: Role,
    /// Position of the request's first byte in its direction (HTTP/1).
    pub position: Option<u64>,
    /// First byte of the request.
    pub start_ns: u64,
    /// Process that read (server) or wrote (client) the request's first byte; 0 if unknown.
    pub tgid: u32,
    /// What the request is sent for.
    pub cause: Option<Cause>,
    /// The context it carries.
    pub context: ContextHeaders,
}

/// The body of a request that exports spans, as far as it was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportBody {
    /// Process that sent it.
    pub tgid: u32,
    /// From its first byte on, with its framing if `chunked`.
    pub bytes: Vec<u8>,
    /// Its transfer coding is chunked.
    pub chunked: bool,
    /// Nothing of it is missing.
    pub whole: bool,
}

/// How a direction or a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A read returned 0: the peer finished sending.
    ReadEof,
    /// This end finished sending (shutdown or close).
    WriteShutdown,
    /// A call failed with this errno; nothing more can be read or written.
    Error(i32),
    /// The socket is gone; errno of the socket, 0 for an orderly end.
    Closed(i32),
}

/// Protocol of an exchange and its version as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// Headers that carry trace context, kept raw (values as received, later ones joined per RFC 9110).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextHeaders(pub Vec<(Box<str>, Box<str>)>);

/// What a request says about itself. Absent fields were not seen, not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method exactly as sent. Empty (which no method is) when not known: an HTTP/2 connection was
    /// joined late and the method refers to what was said before.
    pub method: Box<str>,
    /// Request target exactly as sent: origin form (`/p?q`), absolute form, authority form or `*`.
    /// Empty (which no target is) when not known.
    pub target: Box<str>,
    /// Scheme, where the request says it beside the target (HTTP/2 and later).
    pub scheme: Option<Box<str>>,
    /// Value of `Host` (or the authority of an absolute target, which wins).
    pub authority: Option<Box<str>>,
    /// `User-Agent`.
    pub user_agent: Option<Box<str>>,
    /// `traceparent`, `tracestate`, `b3`, ... lower-case names, in order of appearance.
    pub context: ContextHeaders,
    /// Body bytes on the wire seen so far, framing excluded; `None` when unknown.
    pub body_bytes: Option<u64>,
}

/// An exchange that has begun and not ended.
#[derive(Clone, Copy, Debug)]
pub struct Unfinished<'a> {
    /// Of this end, if it is known.
    pub role: Option<Role>,
    /// What its request says.
    pub request: &'a Request,
    /// Boot time, when its request began.
    pub began_ns: u64,
    /// The process at this end; 0 when not known.
    pub tgid: u32,
    /// The head of its response was seen.
    pub answered: bool,
}

/// What a response says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Final status code (1xx other than 101 are not final); 0 when not known.
    pub status: u16,
    /// Body bytes on the wire, framing excluded; `None` when unknown.
    pub body_bytes: Option<u64>,
}

/// How the exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Request and response were seen to their ends.
    Complete,
    /// The peer closed its side in an orderly way before the message was complete.
    PeerClosed,
    /// This end closed before the message was complete.
    LocalClosed,
    /// The connection broke; errno (`ECONNRESET`, `EPIPE`, `ETIMEDOUT`, ...).
    Broken(i32),
    /// Bytes were lost: what is missing is unknown.
    Lost,
    /// The peer reset the stream; HTTP/2 error code.
    PeerReset(u32),
    /// This end reset the stream; HTTP/2 error code.
    LocalReset(u32),
}

/// What a gRPC call says beside its HTTP exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// Status code: as sent, else what gRPC makes of the way the call ended; `None` when not known.
    pub status: Option<u32>,
    /// The client's deadline, from the start on (`grpc-timeout`).
    pub timeout_ns: Option<u64>,
    /// Messages that the client sent; `None` unless all of the body was seen.
    pub request_messages: Option<u64>,
    /// Messages that the server sent; `None` unless all of the body was seen.
    pub response_messages: Option<u64>,
}

/// One request and what became of it: the unit that becomes exactly one span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Which exchange of its connection: position of the request's first byte (HTTP/1), or the stream
    /// (HTTP/2).
    pub key: u64,
    /// Which end the traced process was.
    pub role: Role,
    /// Protocol and version.
    pub protocol: Protocol,
    /// The request.
    pub request: Request,
    /// The final response, if its head was seen.
    pub response: Option<Response>,
    /// The gRPC call that it is.
    pub grpc: Option<Grpc>,
    /// How it ended.
    pub outcome: Outcome,
    /// First byte of the request (client: the call that sent it was entered).
    pub start_ns: u64,
    /// First byte of the final response's head.
    pub response_start_ns: Option<u64>,
    /// Last byte of the response (or when the exchange ended without one).
    pub end_ns: u64,
    /// HTTP/2 stream that carried it: names the exchange at both ends of the connection. 0 for HTTP/1.
    pub stream: u32,
    /// Process and thread that read (server) or wrote (client) the request's first byte.
    pub tgid: u32,
    /// See `tgid`.
    pub tid: u32,
}

/// Endpoint of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP over IPv4 or IPv6 (v4-mapped addresses already unmapped).
    Ip(SocketAddr),
    /// Unix socket, path if it has one (abstract names begin with `@`).
    Unix(Option<Box<str>>),
    /// Not known: the plaintext of a TLS session whose socket was not found out.
    Unknown,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Ip(address) => address.fmt(f),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.as_deref().unwrap_or("")),
            Endpoint::Unknown => f.write_str("unknown"),
        }
    }
}

/// What is known of a connection from the kernel's own socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Unique id for the life of the agent.
    pub id: u64,
    /// This end; for a unix client this is unnamed.
    pub local: Endpoint,
    /// The other end; for a unix client the server's path.
    pub remote: Endpoint,
    /// Who opened it, if that was seen.
    pub role: Option<Role>,
    /// Tracked from its first byte.
    pub from_start: bool,
    /// The bytes are the plaintext of a TLS session.
    pub tls: bool,
    /// What the other end of the same connection can be told by, if it is on this host.
    pub wire: Option<Wire>,
}

/// What both ends of a connection have in common beside their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// TCP sequence numbers of the bytes at position 0.
    Tcp {
        /// Of what this end reads.
        read: u32,
        /// Of what this end writes.
        write: u32,
    },
    /// Addresses of the kernel's sockets.
    Unix {
        /// This end's.
        own: u64,
        /// The other end's.
        peer: u64,
    },
}

/// When a message began whose first byte came with this call: a read brings it when it returns, a
/// write sends it once it was entered.
fn began_ns(direction: Direction, at: &At) -> u64 {
    match direction {
        Direction::Write if at.start_ns != 0 => at.start_ns.min(at.time_ns),
        Direction::Write | Direction::Read => at.time_ns,
    }
}

/// The other one.
fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Read => Direction::Write,
        Direction::Write => Direction::Read,
    }
}
