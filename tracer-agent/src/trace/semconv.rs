//! HTTP spans by the semantic conventions 1.44 (CONVENTIONS.md); `rpc` is what differs for gRPC.
//!
//! In: a span. Out: its name, its status, its attributes. Texts are borrowed from the span or from
//! tables where possible; only addresses and `url.full` are put together when asked for. Secrets
//! were taken out by [`super::Redaction`] before the span was made.

pub mod metric;
mod rpc;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use crate::protocol::{Endpoint, Exchange, Grpc, Outcome, Protocol};

use super::span::{Span, SpanKind, Value};
use super::target::{Authority, Target};

pub use rpc::status_name as grpc_status_name;

/// Request headers that become attributes, and the names of those.
const HEADER_ATTRIBUTES: [(&str, &str); 2] = [
    ("x-request-id", "http.request.header.x-request-id"),
    ("x-trace-id", "http.request.header.x-trace-id"),
];

/// Port of a URL that names none.
fn default_port(scheme: &str) -> u16 {
    if scheme.eq_ignore_ascii_case("https") {
        443
    } else {
        80
    }
}

/// Methods of RFC 9110, of RFC 5789 (PATCH), and QUERY; any other is `_OTHER`, so that a client
/// cannot make up span names.
fn is_known_method(method: &str) -> bool {
    matches!(
        method,
        "GET"
            | "POST"
            | "PUT"
            | "DELETE"
            | "HEAD"
            | "OPTIONS"
            | "PATCH"
            | "CONNECT"
            | "TRACE"
            | "QUERY"
    )
}

/// The method if it is known, else `HTTP`. A path is no target in the sense of the conventions.
pub(super) fn name(exchange: &Exchange) -> &str {
    if let Some(grpc) = &exchange.grpc {
        return rpc::name(exchange, grpc);
    }
    let method = &*exchange.request.method;
    if is_known_method(method) {
        method
    } else {
        "HTTP"
    }
}

/// `error.type`; the span's status is Error exactly when there is one.
///
/// Once a response has begun, a client that goes away in an orderly way has heard enough (an event
/// stream, a download given up): that is an error of neither side. Lost bytes after it say nothing.
pub(super) fn error_type(kind: SpanKind, exchange: &Exchange) -> Option<Cow<'static, str>> {
    if let Some(grpc) = &exchange.grpc {
        return rpc::error_type(kind, exchange, grpc);
    }
    if let Some(response) = &exchange.response {
        let failed_from = match kind {
            SpanKind::Client => 400,
            SpanKind::Server => 500,
        };
        if response.status >= failed_from {
            return Some(status_text(response.status));
        }
        match (exchange.outcome, kind) {
            (Outcome::Complete | Outcome::Lost, _) => return None,
            (Outcome::LocalClosed, SpanKind::Client) => return None,
            (Outcome::PeerClosed, SpanKind::Server) => return None,
            // How HTTP/2 says the same (RFC 9113, section 7: NO_ERROR, CANCEL).
            (Outcome::LocalReset(0 | 8), SpanKind::Client) => return None,
            (Outcome::PeerReset(0 | 8), SpanKind::Server) => return None,
            (
                Outcome::LocalClosed
                | Outcome::PeerClosed
                | Outcome::Broken(_)
                | Outcome::LocalReset(_)
                | Outcome::PeerReset(_),
                _,
            ) => {}
        }
    }
    Some(match exchange.outcome {
        // An exchange is not complete without a response; the conventions' fallback.
        Outcome::Complete => "_OTHER".into(),
        Outcome::PeerClosed => "peer_closed".into(),
        Outcome::LocalClosed => "local_closed".into(),
        Outcome::Lost => "lost".into(),
        Outcome::Broken(errno) => errno_name(errno),
        Outcome::PeerReset(code) | Outcome::LocalReset(code) => reset_name(code),
    })
}

/// All attributes, in the order in which they are exported.
pub(super) fn for_each_attribute<'a>(
    span: &'a Span,
    each: &mut dyn FnMut(&'static str, Value<'a>),
) {
    let request = &span.exchange.request;
    let target = Target::parse(&request.method, &request.target);
    let scheme = scheme(span, &target);
    let named = authority(span, &target);
    match &span.exchange.grpc {
        Some(grpc) => rpc_attributes(span, grpc, each),
        None => http_attributes(span, &target, named, scheme, each),
    }
    let (address, port) = server(span, named, scheme);
    if let Some(address) = address {
        each("server.address", Value::Str(address));
    }
    if let Some(port) = port {
        each("server.port", Value::Int(port.into()));
    }
    peer(span, each);
    outcome(span, each);
    if let Some(user_agent) = &request.user_agent {
        each("user_agent.original", text(user_agent));
    }
    if let Some(link) = span.link {
        each("tracer.parent.method", text(link.name()));
    }
    // Of our own: `http.route` and `url.template` are for what the framework itself told.
    if let Some(template) = &span.template {
        let key = match template.guessed {
            true => "tracer.url.template.guessed",
            false => "tracer.url.template.configured",
        };
        each(key, text(&template.text));
    }
    if !request.context.0.is_empty() {
        for (header, key) in HEADER_ATTRIBUTES {
            if let Some((_, value)) = request.context.0.iter().find(|(name, _)| **name == *header) {
                each(key, Value::StrList(std::slice::from_ref(value)));
            }
        }
    }
}

fn rpc_attributes<'a>(span: &'a Span, grpc: &Grpc, each: &mut dyn FnMut(&'static str, Value<'a>)) {
    let method = rpc::method(&span.exchange, grpc);
    each("rpc.system.name", text("grpc"));
    each("rpc.method", text(method.known.unwrap_or("_OTHER")));
    if let Some(original) = method.original {
        each("rpc.method_original", text(original));
    }
}

fn http_attributes<'a>(
    span: &'a Span,
    target: &Target<'a>,
    named: Option<Named<'a>>,
    scheme: &'a str,
    each: &mut dyn FnMut(&'static str, Value<'a>),
) {
    let request = &span.exchange.request;
    if is_known_method(&request.method) {
        each("http.request.method", text(&request.method));
    } else {
        each("http.request.method", text("_OTHER"));
        if !request.method.is_empty() {
            each("http.request.method_original", text(&request.method));
        }
    }
    // What was not seen is not said: an empty path would be a wrong one.
    let seen = !request.target.is_empty();
    match span.kind {
        SpanKind::Client => {
            if let Some(url) = full_url(span, target, named, scheme).filter(|_| seen) {
                each("url.full", Value::Str(url));
            }
        }
        SpanKind::Server => {
            each("url.scheme", text(scheme));
            if seen {
                each("url.path", text(target.path));
            }
            if let Some(query) = target.query.filter(|query| !query.is_empty()) {
                each("url.query", text(query));
            }
        }
    }
}

fn protocol_version(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http10 => "1.0",
        Protocol::Http11 => "1.1",
        Protocol::Http2 => "2",
    }
}

/// Protocol version, status and error.
fn outcome<'a>(span: &'a Span, each: &mut dyn FnMut(&'static str, Value<'a>)) {
    let exchange = &span.exchange;
    each(
        "network.protocol.version",
        text(protocol_version(exchange.protocol)),
    );
    match (&exchange.grpc, &exchange.response) {
        (Some(grpc), _) => {
            if let Some(status) = grpc.status {
                each("rpc.status_code", Value::Str(grpc_status_name(status)));
            }
        }
        // 0 is a status that was not seen.
        (None, Some(response)) if response.status != 0 => each(
            "http.response.status_code",
            Value::Int(response.status.into()),
        ),
        (None, _) => {}
    }
    if let Some(error_type) = error_type(span.kind, exchange) {
        each("error.type", Value::Str(error_type));
    }
}

/// The target's own scheme, or that beside it.
fn scheme<'a>(span: &'a Span, target: &Target<'a>) -> &'a str {
    target
        .scheme
        .or(span.exchange.request.scheme.as_deref())
        .unwrap_or(if span.connection.tls { "https" } else { "http" })
}

fn text(text: &str) -> Value<'_> {
    Value::Str(Cow::Borrowed(text))
}

/// An authority as it was sent, and its parts.
type Named<'a> = (&'a str, Authority<'a>);

/// Authority that the request names, if it is one.
fn authority<'a>(span: &'a Span, target: &Target<'a>) -> Option<Named<'a>> {
    let named = target
        .authority
        .or(span.exchange.request.authority.as_deref())?;
    Authority::parse(named).map(|authority| (named, authority))
}

/// The end of the connection that answers.
fn server_end(span: &Span) -> &Endpoint {
    match span.kind {
        SpanKind::Client => &span.connection.remote,
        SpanKind::Server => &span.connection.local,
    }
}

/// `server.address` and `server.port`: what the request names, else the connection. On a unix
/// socket `Host` is made up, and the socket's path says who answers.
fn server<'a>(
    span: &'a Span,
    named: Option<Named<'a>>,
    scheme: &str,
) -> (Option<Cow<'a, str>>, Option<u16>) {
    match (server_end(span), named) {
        (Endpoint::Unix(path), _) => (path.as_deref().map(Cow::Borrowed), None),
        (Endpoint::Ip(_) | Endpoint::Unknown, Some((_, named))) => (
            Some(Cow::Borrowed(named.host)),
            Some(named.port.unwrap_or_else(|| default_port(scheme))),
        ),
        (Endpoint::Ip(address), None) => (Some(ip_text(address.ip())), Some(address.port())),
        (Endpoint::Unknown, None) => (None, None),
    }
}

/// `client.address`, `network.peer.*` and `network.transport`.
fn peer<'a>(span: &'a Span, each: &mut dyn FnMut(&'static str, Value<'a>)) {
    match &span.connection.remote {
        Endpoint::Ip(address) => {
            let ip = ip_text(address.ip());
            if span.kind == SpanKind::Server {
                each("client.address", Value::Str(ip.clone()));
            }
            each("network.peer.address", Value::Str(ip));
            each("network.peer.port", Value::Int(address.port().into()));
        }
        Endpoint::Unix(path) => {
            if let Some(path) = path {
                each("network.peer.address", text(path));
            }
            each("network.transport", text("unix"));
        }
        Endpoint::Unknown => {}
    }
    if let Some(peer) = &span.peer {
        // The conventions have k8s.* for the resource only.
        each("tracer.peer.k8s.namespace.name", text(&peer.namespace));
        for (key, name) in [
            ("tracer.peer.k8s.service.name", &peer.service),
            ("tracer.peer.k8s.pod.name", &peer.pod),
        ] {
            if let Some(name) = name {
                each(key, text(name));
            }
        }
    }
}

/// `url.full`, put together as RFC 9112, section 3.3 has it; `None` if nothing names the server.
fn full_url<'a>(
    span: &'a Span,
    target: &Target<'a>,
    named: Option<Named<'a>>,
    scheme: &str,
) -> Option<Cow<'a, str>> {
    let raw = &*span.exchange.request.target;
    if target.scheme.is_some() {
        return Some(Cow::Borrowed(raw));
    }
    // The authority form and the asterisk form have an empty path.
    let path = if target.authority.is_some() || raw == "*" {
        ""
    } else {
        raw
    };
    let mut url = String::with_capacity(64 + path.len());
    match (named, server_end(span)) {
        (Some((named, _)), _) => {
            url.push_str(scheme);
            url.push_str("://");
            url.push_str(named);
        }
        (None, Endpoint::Ip(address)) => {
            url.push_str(scheme);
            url.push_str("://");
            push_address(&mut url, *address, scheme);
        }
        // The custom of the programs that take such URLs.
        (None, Endpoint::Unix(Some(socket))) => {
            url.push_str(scheme);
            url.push_str("+unix://");
            push_encoded(&mut url, socket);
        }
        (None, Endpoint::Unix(None) | Endpoint::Unknown) => return None,
    }
    if !path.is_empty() && !path.starts_with(['/', '?']) {
        url.push('/');
    }
    url.push_str(path);
    Some(Cow::Owned(url))
}

fn push_address(url: &mut String, address: SocketAddr, scheme: &str) {
    if address.port() != default_port(scheme) {
        url.push_str(&address.to_string());
    } else if address.is_ipv6() {
        url.push('[');
        url.push_str(&ip_text(address.ip()));
        url.push(']');
    } else {
        url.push_str(&ip_text(address.ip()));
    }
}

/// Percent-encodes what may not stand in a host (RFC 3986, section 3.2.2).
fn push_encoded(url: &mut String, socket: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in socket.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push('%');
            url.push(char::from(DIGITS[usize::from(byte >> 4)]));
            url.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// Loopback is what a host's own traffic comes from: it has no cost.
fn ip_text(ip: IpAddr) -> Cow<'static, str> {
    match ip {
        IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) => Cow::Borrowed("127.0.0.1"),
        IpAddr::V6(std::net::Ipv6Addr::LOCALHOST) => Cow::Borrowed("::1"),
        ip => Cow::Owned(ip.to_string()),
    }
}

/// First status code of [`STATUS_TEXTS`].
const FIRST_STATUS: u16 = 100;

/// The three digits of every status code from 100 to 999, one after the other.
static STATUS_TEXTS: [u8; 2700] = {
    let mut texts = [0; 2700];
    let mut index = 0;
    while index < 900 {
        let status = index + FIRST_STATUS as usize;
        texts[index * 3] = b'0' + (status / 100) as u8;
        texts[index * 3 + 1] = b'0' + (status / 10 % 10) as u8;
        texts[index * 3 + 2] = b'0' + (status % 10) as u8;
        index += 1;
    }
    texts
};

fn status_text(status: u16) -> Cow<'static, str> {
    status
        .checked_sub(FIRST_STATUS)
        .map(|index| usize::from(index) * 3)
        .and_then(|start| STATUS_TEXTS.get(start..start + 3))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .map_or_else(|| Cow::Owned(status.to_string()), Cow::Borrowed)
}

/// Name of an HTTP/2 error code (RFC 9113, section 7).
fn reset_name(code: u32) -> Cow<'static, str> {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    usize::try_from(code)
        .ok()
        .and_then(|code| NAMES.get(code))
        .map_or(Cow::Borrowed("_OTHER"), |name| Cow::Borrowed(*name))
}

/// Symbolic name of what a socket can fail with.
fn errno_name(errno: i32) -> Cow<'static, str> {
    Cow::Borrowed(match errno {
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ECONNRESET => "ECONNRESET",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::EPIPE => "EPIPE",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EHOSTDOWN => "EHOSTDOWN",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ENETDOWN => "ENETDOWN",
        libc::ENETRESET => "ENETRESET",
        libc::ENOTCONN => "ENOTCONN",
        libc::ESHUTDOWN => "ESHUTDOWN",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::EACCES => "EACCES",
        libc::EPERM => "EPERM",
        libc::EBADF => "EBADF",
        libc::EFAULT => "EFAULT",
        libc::EINTR => "EINTR",
        libc::EINVAL => "EINVAL",
        libc::EIO => "EIO",
        libc::EMSGSIZE => "EMSGSIZE",
        libc::ENOBUFS => "ENOBUFS",
        libc::ENOENT => "ENOENT",
        libc::ENOMEM => "ENOMEM",
        libc::EPROTO => "EPROTO",
        libc::ECANCELED => "ECANCELED",
        // Zero too: broken, but nobody knows how.
        0 => "_OTHER",
        other => return Cow::Owned(format!("errno_{other}")),
    })
}

#[cfg(test)]
mod tests;
