//! HTTP spans by the semantic conventions 1.44 (CONVENTIONS.md).
//!
//! In: a span. Out: its name, its status, its attributes. Texts are borrowed from the span or from
//! tables where possible; only addresses and `url.full` are put together when asked for. Secrets
//! were taken out by [`super::Redaction`] before the span was made.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use crate::protocol::{Endpoint, Exchange, Outcome, Protocol};

use super::span::{Span, SpanKind, Value};
use super::target::{Authority, Target};

/// Methods of RFC 9110, of RFC 5789 (PATCH), and QUERY; any other is `_OTHER`, so that a client
/// cannot make up span names.
const KNOWN_METHODS: [&str; 10] = [
    "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE", "QUERY",
];

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

fn is_known_method(method: &str) -> bool {
    KNOWN_METHODS.contains(&method)
}

/// The method if it is known, else `HTTP`. A path is no target in the sense of the conventions.
pub(super) fn name(exchange: &Exchange) -> &str {
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
            (Outcome::LocalClosed | Outcome::PeerClosed | Outcome::Broken(_), _) => {}
        }
    }
    Some(match exchange.outcome {
        // An exchange is not complete without a response; the conventions' fallback.
        Outcome::Complete => "_OTHER".into(),
        Outcome::PeerClosed => "peer_closed".into(),
        Outcome::LocalClosed => "local_closed".into(),
        Outcome::Lost => "lost".into(),
        Outcome::Broken(errno) => errno_name(errno),
    })
}

/// All attributes, in the order in which they are exported.
pub(super) fn for_each_attribute<'a>(
    span: &'a Span,
    each: &mut dyn FnMut(&'static str, Value<'a>),
) {
    let exchange = &span.exchange;
    let request = &exchange.request;
    let target = Target::parse(&request.method, &request.target);
    let scheme = target.scheme.unwrap_or("http");

    if is_known_method(&request.method) {
        each("http.request.method", text(&request.method));
    } else {
        each("http.request.method", text("_OTHER"));
        each("http.request.method_original", text(&request.method));
    }
    match span.kind {
        SpanKind::Client => {
            if let Some(url) = full_url(span, &target) {
                each("url.full", Value::Str(url));
            }
        }
        SpanKind::Server => {
            each("url.scheme", text(scheme));
            each("url.path", text(target.path));
            if let Some(query) = target.query.filter(|query| !query.is_empty()) {
                each("url.query", text(query));
            }
        }
    }
    let (address, port) = server(span, &target, scheme);
    if let Some(address) = address {
        each("server.address", Value::Str(address));
    }
    if let Some(port) = port {
        each("server.port", Value::Int(port.into()));
    }
    peer(span, each);
    each(
        "network.protocol.version",
        text(match exchange.protocol {
            Protocol::Http10 => "1.0",
            Protocol::Http11 => "1.1",
        }),
    );
    if let Some(response) = &exchange.response {
        each(
            "http.response.status_code",
            Value::Int(response.status.into()),
        );
    }
    if let Some(error_type) = error_type(span.kind, exchange) {
        each("error.type", Value::Str(error_type));
    }
    if let Some(user_agent) = &request.user_agent {
        each("user_agent.original", text(user_agent));
    }
    if !request.context.0.is_empty() {
        for (header, key) in HEADER_ATTRIBUTES {
            if let Some((_, value)) = request.context.0.iter().find(|(name, _)| **name == *header) {
                each(key, Value::StrList(std::slice::from_ref(value)));
            }
        }
    }
}

fn text(text: &str) -> Value<'_> {
    Value::Str(Cow::Borrowed(text))
}

/// Authority that the request names, if it is one.
fn authority<'a>(span: &'a Span, target: &Target<'a>) -> Option<(&'a str, Authority<'a>)> {
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
    target: &Target<'a>,
    scheme: &str,
) -> (Option<Cow<'a, str>>, Option<u16>) {
    match (server_end(span), authority(span, target)) {
        (Endpoint::Unix(path), _) => (path.as_deref().map(Cow::Borrowed), None),
        (Endpoint::Ip(_), Some((_, named))) => (
            Some(Cow::Borrowed(named.host)),
            Some(named.port.unwrap_or_else(|| default_port(scheme))),
        ),
        (Endpoint::Ip(address), None) => (Some(ip_text(address.ip())), Some(address.port())),
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
    }
}

/// `url.full`, put together as RFC 9112, section 3.3 has it; `None` if nothing names the server.
fn full_url<'a>(span: &'a Span, target: &Target<'a>) -> Option<Cow<'a, str>> {
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
    match (authority(span, target), server_end(span)) {
        (Some((named, _)), _) => {
            url.push_str("http://");
            url.push_str(named);
        }
        (None, Endpoint::Ip(address)) => {
            url.push_str("http://");
            push_address(&mut url, *address);
        }
        // The custom of the programs that take such URLs.
        (None, Endpoint::Unix(Some(socket))) => {
            url.push_str("http+unix://");
            push_encoded(&mut url, socket);
        }
        (None, Endpoint::Unix(None)) => return None,
    }
    if !path.is_empty() && !path.starts_with(['/', '?']) {
        url.push('/');
    }
    url.push_str(path);
    Some(Cow::Owned(url))
}

fn push_address(url: &mut String, address: SocketAddr) {
    if address.port() != default_port("http") {
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
