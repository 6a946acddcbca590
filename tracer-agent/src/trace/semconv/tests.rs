//! Scenario of every table: one exchange of that shape. Guarantee: these attributes, no others.

use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;

use crate::meta::Process;
use crate::protocol::{
    Connection, ContextHeaders, Endpoint, Exchange, Grpc, Outcome, Protocol, Request, Response,
    Role,
};
use crate::trace::{Propagators, Redaction, Span, SpanBuilder, SpanStatus, Value};

fn ip(address: &str) -> Endpoint {
    Endpoint::Ip(address.parse::<SocketAddr>().expect("an address"))
}

fn exchange(role: Role) -> Exchange {
    Exchange {
        key: 0,
        role,
        protocol: Protocol::Http11,
        request: Request {
            method: "GET".into(),
            target: "/a/b?c=d".into(),
            authority: Some("shop.example:8080".into()),
            user_agent: None,
            scheme: None,
            context: ContextHeaders::default(),
            body_bytes: None,
        },
        response: Some(Response {
            status: 200,
            body_bytes: Some(2),
        }),
        grpc: None,
        outcome: Outcome::Complete,
        start_ns: 1,
        response_start_ns: Some(2),
        end_ns: 3,
        stream: 0,
        tgid: 1,
        tid: 1,
    }
}

fn span(exchange: Exchange, local: Endpoint, remote: Endpoint) -> Span {
    let process = Process {
        pid: 1,
        service_name: "shop".into(),
        attributes: Vec::new(),
    };
    let connection = Connection {
        id: 1,
        local,
        remote,
        role: Some(exchange.role),
        from_start: true,
        tls: false,
        wire: None,
    };
    SpanBuilder::new(
        Propagators::default(),
        Redaction::default(),
        fastrand::Rng::with_seed(1),
    )
    .build(exchange, &Arc::new(connection), &Arc::new(process), 0)
}

fn ip_span(exchange: Exchange) -> Span {
    span(exchange, ip("10.0.0.1:80"), ip("[2001:db8::2]:4321"))
}

fn attributes(span: &Span) -> String {
    let mut lines = Vec::new();
    span.for_each_attribute(&mut |key, value| {
        lines.push(match value {
            Value::Str(text) => format!("{key} = {text}"),
            Value::Int(number) => format!("{key} = {number} (int)"),
            Value::StrList(texts) => format!("{key} = {texts:?}"),
        });
    });
    lines.join("\n")
}

fn attribute(span: &Span, wanted: &str) -> Option<String> {
    let prefix = format!("{wanted} = ");
    attributes(span)
        .lines()
        .find_map(|line| line.strip_prefix(&prefix).map(str::to_string))
}

#[test]
fn server() {
    let mut exchange = exchange(Role::Server);
    exchange.request.user_agent = Some("curl/8".into());
    exchange.request.context = ContextHeaders(vec![
        ("x-request-id".into(), "r1".into()),
        ("x-trace-id".into(), "t1".into()),
    ]);
    insta::assert_snapshot!(attributes(&ip_span(exchange)), @r#"
    http.request.method = GET
    url.scheme = http
    url.path = /a/b
    url.query = c=d
    server.address = shop.example
    server.port = 8080 (int)
    client.address = 2001:db8::2
    network.peer.address = 2001:db8::2
    network.peer.port = 4321 (int)
    network.protocol.version = 1.1
    http.response.status_code = 200 (int)
    user_agent.original = curl/8
    http.request.header.x-request-id = ["r1"]
    http.request.header.x-trace-id = ["t1"]
    "#);
}

#[test]
fn client() {
    let mut exchange = exchange(Role::Client);
    exchange.response = Some(Response {
        status: 404,
        body_bytes: None,
    });
    exchange.protocol = Protocol::Http10;
    insta::assert_snapshot!(attributes(&ip_span(exchange)), @r#"
    http.request.method = GET
    url.full = http://shop.example:8080/a/b?c=d
    server.address = shop.example
    server.port = 8080 (int)
    network.peer.address = 2001:db8::2
    network.peer.port = 4321 (int)
    network.protocol.version = 1.0
    http.response.status_code = 404 (int)
    error.type = 404
    "#);
}

#[test]
fn unix_sockets() {
    let path = || Endpoint::Unix(Some("/run/docker.sock".into()));
    insta::assert_snapshot!(attributes(&span(exchange(Role::Client), Endpoint::Unix(None), path())), @r#"
    http.request.method = GET
    url.full = http://shop.example:8080/a/b?c=d
    server.address = /run/docker.sock
    network.peer.address = /run/docker.sock
    network.transport = unix
    network.protocol.version = 1.1
    http.response.status_code = 200 (int)
    "#);
    insta::assert_snapshot!(attributes(&span(exchange(Role::Server), path(), Endpoint::Unix(None))), @r#"
    http.request.method = GET
    url.scheme = http
    url.path = /a/b
    url.query = c=d
    server.address = /run/docker.sock
    network.transport = unix
    network.protocol.version = 1.1
    http.response.status_code = 200 (int)
    "#);
    let url = |remote| {
        let mut exchange = exchange(Role::Client);
        exchange.request.authority = None;
        attribute(&span(exchange, Endpoint::Unix(None), remote), "url.full")
    };
    assert_eq!(
        url(path()).as_deref(),
        Some("http+unix://%2Frun%2Fdocker.sock/a/b?c=d")
    );
    assert_eq!(
        url(Endpoint::Unix(Some("@abstract".into()))).as_deref(),
        Some("http+unix://%40abstract/a/b?c=d")
    );
    assert_eq!(url(Endpoint::Unix(None)), None);
}

#[test]
fn client_urls_and_servers() {
    let check =
        |method: &str, target: &str, authority: Option<&str>, remote: &str, expected: [&str; 3]| {
            let mut exchange = exchange(Role::Client);
            exchange.request.method = method.into();
            exchange.request.target = target.into();
            exchange.request.authority = authority.map(Into::into);
            let span = span(exchange, ip("127.0.0.1:4321"), ip(remote));
            let found = ["url.full", "server.address", "server.port"]
                .map(|key| attribute(&span, key).unwrap_or_default());
            assert_eq!(
                found,
                expected.map(str::to_string),
                "for {method} {target} {authority:?} {remote}"
            );
        };
    let v4 = "10.0.0.9:8080";
    check("GET", "/", Some("h"), v4, ["http://h/", "h", "80 (int)"]);
    check(
        "GET",
        "/?q",
        Some("h:81"),
        v4,
        ["http://h:81/?q", "h", "81 (int)"],
    );
    check(
        "GET",
        "/",
        Some("[::1]:81"),
        v4,
        ["http://[::1]:81/", "::1", "81 (int)"],
    );
    check(
        "GET",
        "/",
        None,
        v4,
        ["http://10.0.0.9:8080/", "10.0.0.9", "8080 (int)"],
    );
    check(
        "GET",
        "/",
        None,
        "10.0.0.9:80",
        ["http://10.0.0.9/", "10.0.0.9", "80 (int)"],
    );
    check(
        "GET",
        "/",
        None,
        "[2001:db8::1]:81",
        ["http://[2001:db8::1]:81/", "2001:db8::1", "81 (int)"],
    );
    check(
        "GET",
        "/",
        None,
        "[2001:db8::1]:80",
        ["http://[2001:db8::1]/", "2001:db8::1", "80 (int)"],
    );
    check(
        "GET",
        "/",
        Some(""),
        v4,
        ["http://10.0.0.9:8080/", "10.0.0.9", "8080 (int)"],
    );
    check(
        "GET",
        "/",
        Some("a, b"),
        v4,
        ["http://10.0.0.9:8080/", "10.0.0.9", "8080 (int)"],
    );
    check(
        "GET",
        "http://o/x",
        Some("o"),
        v4,
        ["http://o/x", "o", "80 (int)"],
    );
    check(
        "GET",
        "https://o/x",
        Some("o"),
        v4,
        ["https://o/x", "o", "443 (int)"],
    );
    check(
        "CONNECT",
        "o:443",
        Some("o:443"),
        v4,
        ["http://o:443", "o", "443 (int)"],
    );
    check("OPTIONS", "*", Some("h"), v4, ["http://h", "h", "80 (int)"]);
    check("GET", "x", Some("h"), v4, ["http://h/x", "h", "80 (int)"]);
    // Secrets never come this far.
    check(
        "GET",
        "http://u:p@o/x?sig=1",
        None,
        v4,
        ["http://REDACTED:REDACTED@o/x?sig=REDACTED", "o", "80 (int)"],
    );
    check(
        "GET",
        "/x",
        Some("u:p@o"),
        v4,
        ["http://REDACTED:REDACTED@o/x", "o", "80 (int)"],
    );
}

#[test]
fn server_urls() {
    let check = |method: &str, target: &str, expected: [Option<&str>; 3]| {
        let mut exchange = exchange(Role::Server);
        exchange.request.method = method.into();
        exchange.request.target = target.into();
        let span = ip_span(exchange);
        let found = ["url.scheme", "url.path", "url.query"].map(|key| attribute(&span, key));
        assert_eq!(
            found,
            expected.map(|text| text.map(str::to_string)),
            "for {method} {target}"
        );
    };
    check("GET", "/", [Some("http"), Some("/"), None]);
    check("GET", "/a?", [Some("http"), Some("/a"), None]);
    check(
        "GET",
        "/a?sig=x&b",
        [Some("http"), Some("/a"), Some("sig=REDACTED&b")],
    );
    check("GET", "https://o?x", [Some("https"), Some("/"), Some("x")]);
    check("OPTIONS", "*", [Some("http"), Some("*"), None]);
    check("CONNECT", "o:1", [Some("http"), Some(""), None]);
}

#[test]
fn a_server_without_host_is_where_it_listens() {
    let mut exchange = exchange(Role::Server);
    exchange.request.authority = None;
    let span = span(exchange, ip("127.0.0.1:8080"), ip("127.0.0.1:4321"));
    assert_eq!(
        attribute(&span, "server.address").as_deref(),
        Some("127.0.0.1")
    );
    assert_eq!(
        attribute(&span, "server.port").as_deref(),
        Some("8080 (int)")
    );
}

#[test]
fn methods() {
    let check = |method: &str, name: &str, attribute_value: &str, original: Option<&str>| {
        let mut exchange = exchange(Role::Server);
        exchange.request.method = method.into();
        let span = ip_span(exchange);
        assert_eq!(span.name(), name);
        assert_eq!(
            attribute(&span, "http.request.method").as_deref(),
            Some(attribute_value)
        );
        assert_eq!(
            attribute(&span, "http.request.method_original").as_deref(),
            original
        );
    };
    for method in [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
    ] {
        check(method, method, method, None);
    }
    check("get", "HTTP", "_OTHER", Some("get"));
    check("PURGE", "HTTP", "_OTHER", Some("PURGE"));
    // Not seen.
    check("", "HTTP", "_OTHER", None);
}

#[test]
fn status_and_error_type() {
    use Outcome::{Broken, Complete, LocalClosed, Lost, PeerClosed};
    let check = |role, status: Option<u16>, outcome, expected: Option<&str>| {
        let mut exchange = exchange(role);
        exchange.response = status.map(|status| Response {
            status,
            body_bytes: None,
        });
        exchange.outcome = outcome;
        let span = ip_span(exchange);
        let status_expected = if expected.is_some() {
            SpanStatus::Error
        } else {
            SpanStatus::Unset
        };
        assert_eq!(
            attribute(&span, "error.type").as_deref(),
            expected,
            "for {role:?} {status:?} {outcome:?}"
        );
        assert_eq!(
            span.status(),
            status_expected,
            "for {role:?} {status:?} {outcome:?}"
        );
        assert_eq!(
            attribute(&span, "http.response.status_code"),
            status.map(|status| format!("{status} (int)")),
        );
    };
    let (client, server) = (Role::Client, Role::Server);
    for status in [101, 200, 204, 301, 399] {
        check(client, Some(status), Complete, None);
        check(server, Some(status), Complete, None);
        check(client, Some(status), Lost, None);
        check(client, Some(status), LocalClosed, None);
        check(server, Some(status), PeerClosed, None);
        check(client, Some(status), PeerClosed, Some("peer_closed"));
        check(server, Some(status), LocalClosed, Some("local_closed"));
        check(
            client,
            Some(status),
            Broken(libc::ECONNRESET),
            Some("ECONNRESET"),
        );
        check(server, Some(status), Broken(libc::EPIPE), Some("EPIPE"));
    }
    check(client, Some(400), Complete, Some("400"));
    check(client, Some(499), PeerClosed, Some("499"));
    check(server, Some(404), Complete, None);
    check(server, Some(404), Broken(libc::EPIPE), Some("EPIPE"));
    for status in [500, 503, 599, 600, 999] {
        check(client, Some(status), Complete, Some(&status.to_string()));
        check(
            server,
            Some(status),
            Broken(libc::EPIPE),
            Some(&status.to_string()),
        );
    }
    check(client, Some(u16::MAX), Complete, Some("65535"));
    for role in [client, server] {
        check(role, None, PeerClosed, Some("peer_closed"));
        check(role, None, LocalClosed, Some("local_closed"));
        check(role, None, Lost, Some("lost"));
        check(role, None, Complete, Some("_OTHER"));
        check(role, None, Broken(libc::ECONNREFUSED), Some("ECONNREFUSED"));
        check(role, None, Broken(libc::ETIMEDOUT), Some("ETIMEDOUT"));
        check(role, None, Broken(9999), Some("errno_9999"));
        check(role, None, Broken(0), Some("_OTHER"));
    }
}

#[test]
fn every_status_has_its_text() {
    for status in 0..=1100 {
        assert_eq!(super::status_text(status), status.to_string());
    }
}

proptest! {
    /// Whatever a request says, its span has a name and the attributes that its kind requires.
    #[test]
    fn any_request_has_the_required_attributes(
        method in "GET|CONNECT|OPTIONS|\\PC{0,8}",
        target in "[a-z:/?#@&;%*=é\\[\\]]{0,24}|\\PC*",
        authority in proptest::option::of("[a-z:@,\\[\\]0-9 ]{0,16}|\\PC*"),
        server in any::<bool>(),
    ) {
        let mut exchange = exchange(if server { Role::Server } else { Role::Client });
        exchange.request.method = method.into();
        exchange.request.target = target.into();
        exchange.request.authority = authority.map(Into::into);
        let span = ip_span(exchange);
        let mut keys = Vec::new();
        span.for_each_attribute(&mut |key, _| keys.push(key));
        // An empty target is one that was not seen.
        let required: &[&str] = if span.exchange.request.target.is_empty() {
            &["http.request.method", "server.address", "server.port"]
        } else if server {
            &["http.request.method", "url.path", "url.scheme", "server.address", "server.port"]
        } else {
            &["http.request.method", "url.full", "server.address", "server.port"]
        };
        for key in required {
            prop_assert!(keys.contains(key), "{} of {:?}", key, keys);
        }
        let total = keys.len();
        keys.sort_unstable();
        keys.dedup();
        prop_assert_eq!(keys.len(), total, "an attribute twice");
    }
}

#[test]
fn http2_server() {
    let mut exchange = exchange(Role::Server);
    exchange.protocol = Protocol::Http2;
    exchange.request.scheme = Some("https".into());
    exchange.request.authority = Some("shop.example".into());
    insta::assert_snapshot!(attributes(&ip_span(exchange)), @r"
    http.request.method = GET
    url.scheme = https
    url.path = /a/b
    url.query = c=d
    server.address = shop.example
    server.port = 443 (int)
    client.address = 2001:db8::2
    network.peer.address = 2001:db8::2
    network.peer.port = 4321 (int)
    network.protocol.version = 2
    http.response.status_code = 200 (int)
    ");
}

#[test]
fn what_was_not_seen_is_not_said() {
    let unseen = |role| {
        let mut exchange = exchange(role);
        exchange.protocol = Protocol::Http2;
        exchange.request.method = "".into();
        exchange.request.target = "".into();
        exchange.request.authority = None;
        exchange.response = Some(Response {
            status: 0,
            body_bytes: None,
        });
        let span = ip_span(exchange);
        assert_eq!(span.name(), "HTTP");
        assert_eq!(span.status(), SpanStatus::Unset);
        attributes(&span)
    };
    insta::assert_snapshot!(unseen(Role::Server), @r"
    http.request.method = _OTHER
    url.scheme = http
    server.address = 10.0.0.1
    server.port = 80 (int)
    client.address = 2001:db8::2
    network.peer.address = 2001:db8::2
    network.peer.port = 4321 (int)
    network.protocol.version = 2
    ");
    insta::assert_snapshot!(unseen(Role::Client), @r"
    http.request.method = _OTHER
    server.address = 2001:db8::2
    server.port = 4321 (int)
    network.peer.address = 2001:db8::2
    network.peer.port = 4321 (int)
    network.protocol.version = 2
    ");
}

#[test]
fn scheme_of_urls() {
    let check = |scheme: &str, authority: Option<&str>, remote: &str, expected: &str| {
        let mut exchange = exchange(Role::Client);
        exchange.request.scheme = Some(scheme.into());
        exchange.request.target = "/x".into();
        exchange.request.authority = authority.map(Into::into);
        let span = span(exchange, ip("127.0.0.1:4321"), ip(remote));
        assert_eq!(attribute(&span, "url.full").as_deref(), Some(expected));
    };
    check("https", Some("h"), "10.0.0.9:443", "https://h/x");
    check("https", None, "10.0.0.9:443", "https://10.0.0.9/x");
    check("https", None, "10.0.0.9:80", "https://10.0.0.9:80/x");
    check("http", None, "10.0.0.9:80", "http://10.0.0.9/x");
}

#[test]
fn resets() {
    use Outcome::{LocalReset, PeerReset};
    let check = |role, answered: bool, outcome, expected: Option<&str>| {
        let mut exchange = exchange(role);
        exchange.protocol = Protocol::Http2;
        exchange.response = exchange.response.filter(|_| answered);
        exchange.outcome = outcome;
        let span = ip_span(exchange);
        assert_eq!(
            span.error_type().as_deref(),
            expected,
            "for {role:?} {answered} {outcome:?}"
        );
    };
    check(Role::Client, false, LocalReset(8), Some("CANCEL"));
    check(Role::Client, true, LocalReset(8), None);
    check(Role::Client, true, LocalReset(0), None);
    check(
        Role::Client,
        true,
        LocalReset(3),
        Some("FLOW_CONTROL_ERROR"),
    );
    check(Role::Client, false, PeerReset(7), Some("REFUSED_STREAM"));
    check(Role::Client, true, PeerReset(2), Some("INTERNAL_ERROR"));
    check(Role::Server, true, PeerReset(8), None);
    check(Role::Server, false, PeerReset(8), Some("CANCEL"));
    check(Role::Server, true, LocalReset(2), Some("INTERNAL_ERROR"));
    check(Role::Server, false, LocalReset(99), Some("_OTHER"));
}

fn call(role: Role, target: &str, status: Option<u32>) -> Span {
    let mut exchange = exchange(role);
    exchange.protocol = Protocol::Http2;
    exchange.request.method = "POST".into();
    exchange.request.target = target.into();
    exchange.grpc = Some(Grpc {
        status,
        timeout_ns: None,
        request_messages: Some(1),
        response_messages: Some(1),
    });
    ip_span(exchange)
}

#[test]
fn grpc_spans() {
    insta::assert_snapshot!(attributes(&call(Role::Client, "/shop.Cart/Add", Some(14))), @r"
    rpc.system.name = grpc
    rpc.method = shop.Cart/Add
    server.address = shop.example
    server.port = 8080 (int)
    network.peer.address = 2001:db8::2
    network.peer.port = 4321 (int)
    network.protocol.version = 2
    rpc.status_code = UNAVAILABLE
    error.type = UNAVAILABLE
    ");
    insta::assert_snapshot!(attributes(&call(Role::Server, "/shop.Cart/Add", Some(0))), @r"
    rpc.system.name = grpc
    rpc.method = shop.Cart/Add
    server.address = shop.example
    server.port = 8080 (int)
    client.address = 2001:db8::2
    network.peer.address = 2001:db8::2
    network.peer.port = 4321 (int)
    network.protocol.version = 2
    rpc.status_code = OK
    ");
}

#[test]
fn grpc_methods() {
    let check = |target: &str, status, name: &str, method: &str, original: Option<&str>| {
        let span = call(Role::Server, target, status);
        assert_eq!(span.name(), name, "for {target} {status:?}");
        assert_eq!(attribute(&span, "rpc.method").as_deref(), Some(method));
        assert_eq!(attribute(&span, "rpc.method_original").as_deref(), original);
    };
    check("/p.S/M", Some(0), "p.S/M", "p.S/M", None);
    check("/p.S/M", Some(5), "p.S/M", "p.S/M", None);
    check("/p.S/M", None, "p.S/M", "p.S/M", None);
    check("/p.S/M", Some(12), "grpc", "_OTHER", Some("p.S/M"));
    check("", Some(0), "grpc", "_OTHER", None);
    check("", Some(12), "grpc", "_OTHER", None);
}

#[test]
fn grpc_errors() {
    let check = |status: Option<u32>, name: Option<&str>, server_error: bool| {
        for role in [Role::Client, Role::Server] {
            let span = call(role, "/p.S/M", status);
            let is_error = match role {
                Role::Client => status.is_some_and(|status| status != 0),
                Role::Server => server_error,
            };
            assert_eq!(attribute(&span, "rpc.status_code").as_deref(), name);
            assert_eq!(
                span.error_type().as_deref(),
                name.filter(|_| is_error),
                "for {role:?} {status:?}"
            );
            assert_eq!(span.status() == SpanStatus::Error, is_error);
        }
    };
    check(None, None, false);
    check(Some(0), Some("OK"), false);
    check(Some(1), Some("CANCELLED"), false);
    check(Some(2), Some("UNKNOWN"), true);
    check(Some(3), Some("INVALID_ARGUMENT"), false);
    check(Some(4), Some("DEADLINE_EXCEEDED"), true);
    check(Some(5), Some("NOT_FOUND"), false);
    check(Some(6), Some("ALREADY_EXISTS"), false);
    check(Some(7), Some("PERMISSION_DENIED"), false);
    check(Some(8), Some("RESOURCE_EXHAUSTED"), false);
    check(Some(9), Some("FAILED_PRECONDITION"), false);
    check(Some(10), Some("ABORTED"), false);
    check(Some(11), Some("OUT_OF_RANGE"), false);
    check(Some(12), Some("UNIMPLEMENTED"), true);
    check(Some(13), Some("INTERNAL"), true);
    check(Some(14), Some("UNAVAILABLE"), true);
    check(Some(15), Some("DATA_LOSS"), true);
    check(Some(16), Some("UNAUTHENTICATED"), false);
    check(Some(77), Some("77"), false);
}

/// Scenario: the plaintext of TLS sessions whose sockets are known or not. Guarantees: the scheme is https,
/// the default port is 443, and what is not known is not said.
#[test]
fn inside_of_tls() {
    let of = |role, local, remote| {
        let mut span = span(exchange(role), local, remote);
        let connection = Connection::clone(&span.connection);
        span.connection = Arc::new(Connection {
            tls: true,
            ..connection
        });
        span
    };
    let known = of(Role::Server, ip("10.0.0.1:443"), ip("10.0.0.2:4321"));
    assert_eq!(attribute(&known, "url.scheme").as_deref(), Some("https"));
    let unknown = of(Role::Client, Endpoint::Unknown, Endpoint::Unknown);
    let url = attribute(&unknown, "url.full").expect("named by the request");
    assert!(url.starts_with("https://"), "{url}");
    for absent in [
        "network.peer.address",
        "network.peer.port",
        "network.transport",
    ] {
        assert_eq!(attribute(&unknown, absent), None, "{absent}");
    }
    let mut nameless = of(Role::Client, Endpoint::Unknown, Endpoint::Unknown);
    nameless.exchange.request.authority = None;
    for absent in ["url.full", "server.address", "server.port"] {
        assert_eq!(attribute(&nameless, absent), None, "{absent}");
    }
}
