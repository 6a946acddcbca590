//! Scenario of every case: frames as named. Guarantee: these exchanges.

use super::super::super::{Direction, End, Role};
use super::super::Session;
use super::super::frame::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, MAX, PADDED, PING, PREFACE,
    PRIORITIZED, PRIORITY, PUSH_PROMISE, SETTINGS, WINDOW_UPDATE,
};
use super::Step::{End as Ends, R, Skip, W, Wait};
use super::{
    Bench, Peer, client, client_start, data, frame, play, reset, server, server_start, settings,
};

#[test]
fn requests_and_responses() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let bench = server(
        &[
            R(c.request(1, true, "GET", "/a")),
            W(s.status(1, false, "200")),
            W(data(1, true, b"hello")),
            R([
                c.request(3, false, "POST", "/b"),
                data(3, false, b"ab"),
                data(3, true, b"c"),
            ]
            .concat()),
            W(s.status(3, true, "404")),
            R(c.request(5, true, "DELETE", "/c?d")),
            W([
                s.status(5, false, "500"),
                data(5, false, b"x"),
                data(5, true, b""),
            ]
            .concat()),
        ],
        &[
            "GET /a -> 200 Complete 0/5",
            "POST /b -> 404 Complete 3/0",
            "DELETE /c?d -> 500 Complete 0/1",
        ],
    );
    assert_eq!(bench.out.counts.unparsed_bytes, 0);
    assert_eq!(bench.out.counts.unknown_fields, 0);
    let first = &bench.out.exchanges[0];
    assert_eq!(first.request.authority.as_deref(), Some("h:80"));
    assert_eq!(first.request.scheme.as_deref(), Some("http"));
    assert_eq!((first.tgid, first.tid), (7, 8));
    // Read at 3 ms, answered by writes entered at 4 ms - 1 us, over at 5 ms.
    assert_eq!(first.start_ns, 1_003_000_000);
    assert_eq!(first.response_start_ns, Some(1_003_999_000));
    assert_eq!(first.end_ns, 1_005_000_000);
}

#[test]
fn streams_interleave() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    client(
        &[
            W([
                c.request(1, false, "PUT", "/1"),
                c.request(3, true, "GET", "/3"),
                c.request(5, true, "GET", "/5"),
            ]
            .concat()),
            R([s.status(5, false, "205"), s.status(3, false, "203")].concat()),
            W(data(1, true, b"abc")),
            R([
                data(3, false, b"1"),
                data(5, true, b"12"),
                s.status(1, true, "201"),
                data(3, true, b"23"),
            ]
            .concat()),
        ],
        &[
            "GET /5 -> 205 Complete 0/2",
            "PUT /1 -> 201 Complete 3/0",
            "GET /3 -> 203 Complete 0/3",
        ],
    );
}

#[test]
fn all_kinds_of_frames() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let block = c.block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/x"),
        ("cookie", "abc"),
    ]);
    let (one, two) = block.split_at(5);
    let mut padded = vec![3, 0x80, 0, 0, 0, 16];
    padded.extend_from_slice(one);
    padded.extend([0; 3]);
    let interim = s.headers(1, false, &[(":status", "103"), ("link", "</l>")]);
    let pushed = [
        2u32.to_be_bytes().to_vec(),
        s.block(&[(":method", "GET"), (":path", "/pushed")]),
    ]
    .concat();
    server(
        &[
            R(frame(HEADERS, PADDED | PRIORITIZED, 1, &padded)),
            R(frame(CONTINUATION, 0, 1, &two[..2])),
            R(frame(CONTINUATION, 0, 1, b"")),
            R(frame(CONTINUATION, END_HEADERS, 1, &two[2..])),
            R(frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
            R(frame(PING, 0, 0, b"12345678")),
            R(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0])),
            R(frame(0xfa, 0xff, 77, b"grease")),
            R(frame(SETTINGS, 1, 0, b"")),
            W(frame(PING, 1, 0, b"12345678")),
            W(interim),
            W(frame(PUSH_PROMISE, END_HEADERS, 1, &pushed)),
            W(s.status(2, true, "200")),
            W(s.status(1, false, "202")),
            W(frame(DATA, PADDED, 1, &[1, b'x', 0])),
            W(s.headers(1, true, &[("trailer", "t")])),
            // Ends what was padded: how long it was is not said.
            R(data(1, true, b"")),
            W(frame(
                GOAWAY,
                0,
                0,
                &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, b'b', b'y', b'e'],
            )),
        ],
        &["GET /x -> 202 Complete ?/?"],
    );
}

#[test]
fn resets_and_goaway() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    client(
        &[
            W(c.request(1, true, "GET", "/1")),
            W(c.request(3, true, "GET", "/3")),
            W(c.request(5, true, "GET", "/5")),
            W(c.request(7, true, "GET", "/7")),
            W(reset(3, 8)),
            R(reset(1, 7)),
            R(frame(GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 0])),
            R(s.status(5, false, "200")),
            // After its end nothing counts any more.
            R([s.status(3, true, "200"), s.status(1, true, "200")].concat()),
            R(data(5, true, b"")),
        ],
        &[
            "GET /3 -> none LocalReset(8) 0/-",
            "GET /1 -> none PeerReset(7) 0/-",
            "GET /7 -> none PeerReset(7) 0/-",
            "GET /5 -> 200 Complete 0/0",
        ],
    );
}

#[test]
fn ends_of_connections() {
    let check = |role, ends: &[End], expected: &str| {
        let (mut c, mut s) = (Peer::new(), Peer::new());
        let (request, response) = (c.request(1, true, "GET", "/"), s.status(1, false, "200"));
        let mut script = match role {
            Role::Server => vec![
                R([client_start(), request].concat()),
                W([server_start(), response].concat()),
            ],
            Role::Client => vec![
                W([client_start(), request].concat()),
                R([server_start(), response].concat()),
            ],
        };
        script.extend(ends.iter().map(|end| Ends(*end)));
        let expected = format!("GET / -> 200 {expected} 0/0");
        let bench = play(Some(role), true, &script, &[&expected]);
        assert_eq!(bench.session.in_flight(), 0);
    };
    check(Role::Client, &[End::ReadEof], "PeerClosed");
    check(
        Role::Client,
        &[End::WriteShutdown, End::Closed(0)],
        "LocalClosed",
    );
    check(Role::Client, &[End::Error(104)], "Broken(104)");
    check(Role::Server, &[End::ReadEof, End::Closed(0)], "PeerClosed");
    check(Role::Server, &[End::WriteShutdown], "LocalClosed");
    check(Role::Server, &[End::Closed(110)], "Broken(110)");
}

#[test]
fn grpc_calls() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let message = b"\0\0\0\0\x03abc";
    let bench = client(
        &[
            W([
                c.call(1, "/p.S/Unary", &[("grpc-timeout", "100m")]),
                data(1, true, message),
            ]
            .concat()),
            R([s.accepted(1), data(1, false, message), s.trailers(1, "0")].concat()),
            // Both stream, messages and frames do not fall together; over at the trailers.
            W([c.call(3, "/p.S/Bidi", &[]), data(3, false, &message[..2])].concat()),
            R(s.accepted(3)),
            W([
                data(3, false, &message[2..]),
                data(3, true, &message.repeat(2)),
            ]
            .concat()),
            Wait(1000),
            R([
                data(3, false, &message.repeat(3)[..20]),
                data(3, false, &message.repeat(3)[20..]),
            ]
            .concat()),
            R(s.trailers(3, "5")),
            // Trailers only, before the client was done.
            W(c.call(5, "/p.S/No", &[])),
            R(s.headers(
                5,
                true,
                &[
                    (":status", "200"),
                    ("content-type", "application/grpc"),
                    ("grpc-status", "12"),
                ],
            )),
            // Not gRPC's answer.
            W([c.call(7, "/p.S/Proxy", &[]), data(7, true, message)].concat()),
            R(s.status(7, true, "503")),
            // Cancelled; over its deadline; refused; reset by the server.
            W(c.call(9, "/p.S/Cancel", &[("grpc-timeout", "5S")])),
            W(reset(9, 8)),
            W(c.call(11, "/p.S/Late", &[("grpc-timeout", "50m")])),
            Wait(50),
            W(reset(11, 8)),
            W(c.call(13, "/p.S/Refused", &[])),
            R(reset(13, 7)),
            W(c.call(15, "/p.S/Broken", &[])),
            R(s.accepted(15)),
            R(reset(15, 2)),
            // Servers reset late calls too.
            W(c.call(17, "/p.S/LateThere", &[("grpc-timeout", "50m")])),
            Wait(50),
            R(reset(17, 8)),
            W(c.call(19, "/p.S/Given", &[("grpc-timeout", "50m")])),
            R(reset(19, 8)),
            // gRPC-Web is HTTP.
            W(c.headers(
                21,
                true,
                &[
                    (":method", "POST"),
                    (":path", "/w"),
                    ("content-type", "application/grpc-web+proto"),
                ],
            )),
            R(s.status(21, true, "200")),
            W(c.call(23, "/p.S/Open", &[])),
            Ends(End::ReadEof),
        ],
        &[
            "POST /p.S/Unary -> 200 Complete 8/8 grpc 0 1/1",
            "POST /p.S/Bidi -> 200 Complete 24/24 grpc 5 3/3",
            "POST /p.S/No -> 200 Complete ?/0 grpc 12 0/0",
            "POST /p.S/Proxy -> 503 Complete 8/0 grpc 14 1/0",
            "POST /p.S/Cancel -> none LocalReset(8) ?/- grpc 1 0/0",
            "POST /p.S/Late -> none LocalReset(8) ?/- grpc 4 0/0",
            "POST /p.S/Refused -> none PeerReset(7) ?/- grpc 14 0/0",
            "POST /p.S/Broken -> 200 PeerReset(2) ?/0 grpc 13 0/0",
            "POST /p.S/LateThere -> none PeerReset(8) ?/- grpc 4 0/0",
            "POST /p.S/Given -> none PeerReset(8) ?/- grpc 1 0/0",
            "POST /w -> 200 Complete 0/0",
            "POST /p.S/Open -> none PeerClosed ?/- grpc 14 0/0",
        ],
    );
    let timeouts: Vec<_> = bench
        .out
        .exchanges
        .iter()
        .filter_map(|exchange| exchange.grpc.as_ref()?.timeout_ns)
        .collect();
    assert_eq!(
        timeouts,
        [
            100_000_000,
            5_000_000_000,
            50_000_000,
            50_000_000,
            50_000_000
        ]
    );
    let bidi = &bench.out.exchanges[1];
    assert!(bidi.end_ns - bidi.start_ns > 1_000_000_000);
}

#[test]
fn frames_as_large_as_allowed() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let large = vec![7; 20_000];
    // Allowed by the client for what the server sends; the other way it is no frame.
    let bench = server(
        &[
            R(settings(&[(5, 20_000), (1, 65_536)])),
            R(c.request(1, true, "GET", "/1")),
            W([s.status(1, false, "200"), data(1, true, &large)].concat()),
            R(c.request(3, false, "PUT", "/3")),
            R(data(3, true, &large)),
            W(s.status(3, true, "413")),
            Ends(End::Closed(0)),
        ],
        &[
            "GET /1 -> 200 Complete 0/20000",
            "PUT /3 -> 413 Complete ?/0",
        ],
    );
    assert_eq!(bench.out.counts.resyncs, 1);
    // Left out, a frame of the greatest length is one header and a number.
    let (mut c, mut s) = (Peer::new(), Peer::new());
    server(
        &[
            R(settings(&[(5, MAX)])),
            R(c.request(1, true, "GET", "/1")),
            W([
                s.status(1, false, "200"),
                vec![0xff, 0xff, 0xff, DATA, END_STREAM, 0, 0, 0, 1],
            ]
            .concat()),
            Skip(Direction::Write, 1000),
            Skip(Direction::Write, u64::from(MAX) - 1000),
        ],
        &["GET /1 -> 200 Complete 0/16777215"],
    );
}

#[test]
fn extended_connect_and_odd_requests() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    server(
        &[
            R(c.headers(
                1,
                false,
                &[
                    (":method", "CONNECT"),
                    (":protocol", "websocket"),
                    (":scheme", "http"),
                    (":path", "/ws"),
                    (":authority", "h"),
                ],
            )),
            W(s.status(1, false, "200")),
            R(data(1, true, b"ping")),
            W(data(1, true, b"pong")),
            R(c.headers(3, false, &[(":method", "CONNECT"), (":authority", "o:443")])),
            W(s.status(3, true, "403")),
            // A request without what it must have, and one with Host only.
            R(c.headers(5, true, &[("x", "y")])),
            W(reset(5, 1)),
            R(c.headers(
                7,
                true,
                &[(":method", "GET"), (":path", "/h"), ("host", "h2")],
            )),
            W(s.status(7, true, "204")),
        ],
        &[
            "CONNECT /ws -> 200 Complete 4/4",
            "CONNECT o:443 -> 403 Complete ?/0",
            "? ? -> none LocalReset(1) 0/-",
            "GET /h -> 204 Complete 0/0",
        ],
    );
}

#[test]
fn context_and_user_agent_are_kept() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let bench = server(
        &[
            R(c.headers(
                1,
                true,
                &[
                    (":method", "GET"),
                    (":path", "/"),
                    ("traceparent", "00-1"),
                    ("user-agent", "u"),
                    ("tracestate", "a=1"),
                    ("tracestate", "b=2"),
                    ("other", "o"),
                ],
            )),
            W(s.status(1, true, "200")),
        ],
        &["GET / -> 200 Complete 0/0"],
    );
    let request = &bench.out.exchanges[0].request;
    assert_eq!(request.user_agent.as_deref(), Some("u"));
    let context: Vec<_> = request
        .context
        .0
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    assert_eq!(
        context,
        [("traceparent", "00-1"), ("tracestate", "a=1,b=2")]
    );
}

#[test]
fn a_response_may_be_seen_before_its_request() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut bench = Bench::new(Some(Role::Client), true);
    bench.frozen = true;
    for step in [
        W(client_start()),
        R(server_start()),
        R([s.status(1, false, "200"), data(1, true, b"abc")].concat()),
        W(c.request(1, true, "GET", "/1")),
        R(s.status(3, false, "201")),
        W(c.request(3, true, "GET", "/3")),
        R(data(3, true, b"")),
    ] {
        bench.step(&step);
    }
    let lines: Vec<_> = bench.out.exchanges.iter().map(super::line).collect();
    assert_eq!(
        lines,
        ["GET /1 -> 200 Complete 0/3", "GET /3 -> 201 Complete 0/0"]
    );
    assert_eq!(bench.out.counts.responses_without_request, 0);
}

#[test]
fn an_upgraded_request_is_answered_on_stream_1() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let first = server(
        &[
            R(c.request(1, true, "GET", "/up")),
            W(s.status(1, true, "200")),
        ],
        &["GET /up -> 200 Complete 0/0"],
    );
    let mut bench = Bench::new(Some(Role::Server), true);
    let upgraded = first.out.exchanges.into_iter().next().unwrap();
    bench.session = Session::upgraded(upgraded);
    // Whoever saw it begin has counted it.
    bench.out.counts.requests += 1;
    let (mut c, mut s) = (Peer::new(), Peer::new());
    for step in [
        W(server_start()),
        R(client_start()),
        W([s.status(1, false, "404"), data(1, true, b"no")].concat()),
        R(c.request(3, true, "GET", "/3")),
        W(s.status(3, true, "200")),
    ] {
        bench.step(&step);
    }
    let lines: Vec<_> = bench.out.exchanges.iter().map(super::line).collect();
    assert_eq!(
        lines,
        ["GET /up -> 404 Complete 0/2", "GET /3 -> 200 Complete 0/0"]
    );
}

#[test]
fn what_is_not_http2() {
    let check = |role, step| {
        let bench = play(role, true, &[step], &[]);
        assert!(bench.session.is_dead());
    };
    check(Some(Role::Server), R(b"GET / HTTP/1.1\r\n".to_vec()));
    check(Some(Role::Server), W(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()));
    check(Some(Role::Client), R(data(1, true, b"")));
    check(None, R(b"PRI * HTTP/1".to_vec()));
    check(None, R(b"SSH-2.0-OpenSSH".to_vec()));
    // The preface tells who is who.
    let bench = play(None, true, &[W(PREFACE.to_vec())], &[]);
    assert_eq!(bench.session.role, Some(Role::Client));
}

#[test]
fn grpc_web_and_connect_are_http() {
    // What their libraries send; the status of a gRPC-Web call is within its body.
    for (path, content, status, end) in [
        (
            "/p.S/Web",
            "application/grpc-web+proto",
            "200",
            "200 Complete",
        ),
        (
            "/p.S/Text",
            "application/grpc-web-text",
            "200",
            "200 Complete",
        ),
        ("/p.S/Unary", "application/proto", "404", "404 Complete"),
        ("/p.S/Json", "application/json", "200", "200 Complete"),
        (
            "/p.S/Stream",
            "application/connect+proto",
            "200",
            "200 Complete",
        ),
    ] {
        let (mut c, mut s) = (Peer::new(), Peer::new());
        let mut fields = vec![(":method", "POST"), (":scheme", "http"), (":path", path)];
        fields.extend([("content-type", content), ("connect-protocol-version", "1")]);
        let answer = [(":status", status), ("content-type", content)];
        server(
            &[
                R([
                    c.headers(1, false, &fields),
                    data(1, true, b"\0\0\0\0\x02ab"),
                ]
                .concat()),
                W([
                    s.headers(1, false, &answer),
                    data(1, true, b"\x80\0\0\0\x10grpc-status:0\r\n\r\n"),
                ]
                .concat()),
            ],
            &[&format!("POST {path} -> {end} 7/22")],
        );
    }
}
