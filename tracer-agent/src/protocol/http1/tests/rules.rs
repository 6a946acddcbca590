//! The rules of RFC 9112 and of real software, one scenario each.

use super::super::super::{At, Direction, End, Input, Protocol, Role};
use super::super::{Output, Session, reason};
use super::{OK, Step, client, get, play, r, server, slow_w, w};

const EOF: Step = Step::End(End::ReadEof);
const CLOSED: Step = Step::End(End::Closed(0));

#[test]
fn keep_alive_and_pipelining() {
    server(
        &[r(get("/a")), w(OK), r(get("/b")), w(OK)],
        &["GET /a -> 200 Complete 0/2", "GET /b -> 200 Complete 0/2"],
    );
    let both = get("/a") + &get("/b");
    server(
        &[r(both), w(OK), w(OK)],
        &["GET /a -> 200 Complete 0/2", "GET /b -> 200 Complete 0/2"],
    );
    client(
        &[w(get("/a")), w(get("/b")), r(OK.repeat(2))],
        &["GET /a -> 200 Complete 0/2", "GET /b -> 200 Complete 0/2"],
    );
    let ten = "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let bench = server(
        &[r(ten), w(OK), r(ten), w(OK)],
        &["GET /a -> 200 Complete 0/2"; 2],
    );
    assert_eq!(bench.out.exchanges[0].protocol, Protocol::Http10);
}

#[test]
fn bodies() {
    let post = "POST /p HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
    server(&[r(post), w(OK)], &["POST /p -> 200 Complete 3/2"]);
    let chunked = "POST /p HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 999\r\n\r\n\
                   5;x=\"y\"\r\nhello\r\n1 \r\n!\r\n0\r\nTrailer: z\r\n\r\n";
    server(
        &[r(chunked), w(OK), r(get("/b")), w(OK)],
        &["POST /p -> 200 Complete 6/2", "GET /b -> 200 Complete 0/2"],
    );
    let answer = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nA\n0123456789\n0\n\n";
    client(
        &[w(get("/a")), r(answer), w(get("/b")), r(OK)],
        &["GET /a -> 200 Complete 0/10", "GET /b -> 200 Complete 0/2"],
    );
    for head in [
        "204 No Content\r\n",
        "304 Not Modified\r\nContent-Length: 9\r\n",
    ] {
        let answer = format!("HTTP/1.1 {head}\r\n{OK}");
        let bench = client(
            &[w(get("/a")), w(get("/b")), r(answer)],
            &[
                &format!("GET /a -> {} Complete 0/0", &head[..3]),
                "GET /b -> 200 Complete 0/2",
            ],
        );
        assert_eq!(bench.out.counts.unparsed_bytes, 0);
    }
    let head = "HEAD /h HTTP/1.1\r\n\r\n";
    let no_body = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n";
    server(
        &[r(head), w(no_body), r(get("/b")), w(OK)],
        &["HEAD /h -> 200 Complete 0/0", "GET /b -> 200 Complete 0/2"],
    );
}

#[test]
fn lengths() {
    let same = "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\ncontent-length: 2\r\n\r\nok";
    client(&[w(get("/a")), r(same)], &["GET /a -> 200 Complete 0/2"]);
    let unclear = [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked, gzip",
        "Content-Length: +2",
        "X: y",
    ];
    for field in unclear {
        let answer = format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\nabcdef");
        client(&[w(get("/a")), r(&answer)], &[]);
        client(
            &[w(get("/a")), r(&answer), r("gh"), EOF, CLOSED],
            &["GET /a -> 200 Complete 0/8"],
        );
        server(
            &[r(get("/a")), w(&answer), CLOSED],
            &["GET /a -> 200 Complete 0/6"],
        );
        server(
            &[
                r(get("/a")),
                w(&answer),
                Step::End(End::WriteShutdown),
                CLOSED,
            ],
            &["GET /a -> 200 Complete 0/6"],
        );
        client(
            &[w(get("/a")), r(&answer), CLOSED],
            &["GET /a -> 200 LocalClosed 0/6"],
        );
        client(
            &[w(get("/a")), r(&answer), Step::End(End::Error(104))],
            &["GET /a -> 200 Broken(104) 0/6"],
        );
    }
    let request = "POST /a HTTP/1.1\r\nContent-Length: x\r\n\r\nabc";
    server(
        &[r(request), w(OK), r(get("/b")), w(OK)],
        &["POST /a -> 200 Complete ?/2", "GET /b -> 200 Complete 0/2"],
    );
}

#[test]
fn interim_responses_and_upgrades() {
    let post = "POST /p HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    server(
        &[r(post), w(interim), r("abc"), w(OK)],
        &["POST /p -> 200 Complete 3/2"],
    );
    let hints =
        format!("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n{OK}");
    client(&[w(get("/a")), r(hints)], &["GET /a -> 200 Complete 0/2"]);
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    let bench = server(
        &[r(get("/ws")), w(switch), w([0x81, 1]), r([1, 2, 3]), CLOSED],
        &["GET /ws -> 101 Complete 0/0"],
    );
    assert!(bench.session.in_flight() == 0);
    assert_eq!(bench.out.counts.unparsed_bytes, 5);
    let connect = "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n";
    let bench = client(
        &[
            w(connect),
            r("HTTP/1.1 200 Established\r\n\r\n\x16\x03"),
            w("\x16\x03\x01"),
        ],
        &["CONNECT h:443 -> 200 Complete 0/0"],
    );
    assert!(bench.session.is_upgraded());
    assert_eq!(bench.out.counts.unparsed_bytes, 5);
    let refused = "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n";
    client(
        &[w(connect), r(refused), w(get("/a")), r(OK)],
        &[
            "CONNECT h:443 -> 407 Complete 0/0",
            "GET /a -> 200 Complete 0/2",
        ],
    );
}

#[test]
fn early_responses_and_half_close() {
    let post = "POST /p HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc";
    let bench = server(
        &[r(post), w(OK), r("defghi")],
        &["POST /p -> 200 Complete 9/2"],
    );
    assert_eq!(
        bench.out.exchanges[0].end_ns, 1_002_000_000,
        "ends with the response, not with the request"
    );
    server(&[r(post), w(OK), CLOSED], &["POST /p -> 200 Complete 3/2"]);
    server(
        &[r(get("/a")), EOF, w(OK), CLOSED],
        &["GET /a -> 200 Complete 0/2"],
    );
    client(
        &[
            w(get("/a")),
            Step::End(End::WriteShutdown),
            r(OK),
            EOF,
            CLOSED,
        ],
        &["GET /a -> 200 Complete 0/2"],
    );
}

#[test]
fn endings() {
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab";
    let post = "POST /p HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc";
    server(&[r(post), EOF, CLOSED], &["POST /p -> none PeerClosed 3/-"]);
    server(
        &[r(get("/a")), EOF, CLOSED, CLOSED],
        &["GET /a -> none PeerClosed 0/-"],
    );
    server(
        &[r(get("/a")), CLOSED, CLOSED],
        &["GET /a -> none LocalClosed 0/-"],
    );
    server(
        &[r(get("/a")), w(half), Step::End(End::Error(32)), CLOSED],
        &["GET /a -> 200 Broken(32) 0/2"],
    );
    server(
        &[r(get("/a")), w(half), CLOSED],
        &["GET /a -> 200 LocalClosed 0/2"],
    );
    client(
        &[w(get("/a")), EOF, CLOSED],
        &["GET /a -> none PeerClosed 0/-"],
    );
    client(
        &[w(get("/a")), r(half), EOF, CLOSED],
        &["GET /a -> 200 PeerClosed 0/2"],
    );
    client(&[w(get("/a")), CLOSED], &["GET /a -> none LocalClosed 0/-"]);
    client(
        &[
            w(get("/a")),
            w(get("/b")),
            r(OK),
            Step::End(End::Closed(104)),
        ],
        &[
            "GET /a -> 200 Complete 0/2",
            "GET /b -> none Broken(104) 0/-",
        ],
    );
    client(
        &[w(get("/a")), r("HTTP/1.1 200 OK\r\nX"), EOF, CLOSED],
        &["GET /a -> none PeerClosed 0/-"],
    );
}

#[test]
fn responses_seen_before_their_requests() {
    client(
        &[r(OK), slow_w(get("/a")), r(OK), slow_w(get("/b"))],
        &["GET /a -> 200 Complete 0/2", "GET /b -> 200 Complete 0/2"],
    );
    let late = "HTTP/1.1 200 OK\r\n\r\nbody";
    client(
        &[r(late), r("more"), EOF, slow_w(get("/a")), CLOSED],
        &["GET /a -> 200 Complete 0/8"],
    );
    // The response to a request that was missed is never given to the next one.
    let bench = client(
        &[r(OK), w(get("/b")), r(OK)],
        &["GET /b -> 200 Complete 0/2"],
    );
    assert_eq!(bench.out.counts.unsolicited_responses, 1);
    let timeout = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n";
    for (wait, end) in [(0, true), (300, false), (100, false)] {
        let mut script = vec![w(get("/a")), r(OK), r(timeout), Step::Wait(wait)];
        script.extend(if end {
            vec![EOF, CLOSED]
        } else {
            vec![w(get("/b")), r(OK)]
        });
        let expected = ["GET /a -> 200 Complete 0/2", "GET /b -> 200 Complete 0/2"];
        let bench = client(&script, &expected[..if end { 1 } else { 2 }]);
        assert_eq!(bench.out.counts.unsolicited_responses, 1, "wait {wait}");
    }
    let mut flood = vec![r(OK)];
    flood.extend(vec![r([b'x'; 4096]); 20]);
    flood.push(w(get("/a")));
    let bench = client(&flood, &[]);
    assert_eq!(bench.out.counts.unsolicited_responses, 1);
    assert_eq!(
        bench.out.counts.abandoned.len(),
        0,
        "the request began after the response"
    );
}

#[test]
fn joined_in_the_middle() {
    for role in [None, Some(Role::Client)] {
        let bench = play(
            role,
            false,
            &[r(OK), w(get("/b")), r(OK)],
            &["GET /b -> 200 Complete 0/2"],
        );
        assert_eq!(bench.out.counts.responses_without_request, 1);
        assert_eq!(bench.out.exchanges[0].role, Role::Client);
        play(
            role,
            false,
            &[r("tail of a body"), w(get("/b")), r(OK)],
            &["GET /b -> 200 Complete 0/2"],
        );
        play(
            role,
            false,
            &[w("rest of an upload"), r(OK), w(get("/b")), r(OK)],
            &["GET /b -> 200 Complete 0/2"],
        );
    }
    let bench = play(
        None,
        false,
        &[r(get("/b")), w(OK)],
        &["GET /b -> 200 Complete 0/2"],
    );
    assert_eq!(bench.out.exchanges[0].role, Role::Server);
    let bench = play(
        Some(Role::Client),
        false,
        &[w(get("/b")), r("tail"), r(OK), w(get("/c")), r(OK)],
        &["GET /c -> 200 Complete 0/2"],
    );
    assert_eq!(bench.out.counts.abandoned[reason::MALFORMED_RESPONSE], 1);
}

#[test]
fn not_http() {
    let strangers = [
        "SSH-2.0-OpenSSH\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
        "SETUP x RTSP/1.0\r\n",
        "INVITE sip:a SIP/2.0\r\n",
        "\x16\x03\x01",
        "GET /\r\n",
        "GET / HTTP/1.2\r\n",
        " GET / HTTP/1.1",
        "*3\r\n$3\r\nSET\r\n",
    ];
    for stranger in strangers {
        for role in [None, Some(Role::Server)] {
            let bench = play(role, true, &[r(stranger), r("more")], &[]);
            assert!(bench.session.is_dead(), "{stranger:?}");
            assert_eq!(bench.out.counts.requests, 0);
            assert_eq!(
                bench.out.counts.unparsed_bytes,
                stranger.trim_start_matches("\r\n").len() as u64 + 4
            );
        }
    }
    let bench = client(&[w(get("/stream")), r("ICY 200 OK\r\n\r\n")], &[]);
    assert_eq!(bench.out.counts.abandoned[reason::NOT_HTTP1], 1);
    let bench = play(None, false, &vec![[r("x y"), w("z\0")]; 100].concat(), &[]);
    assert!(bench.session.is_dead(), "patience has an end");
}

#[test]
fn garbage_between_messages() {
    let script = [r(get("/a")), w(format!("{OK}surplus")), r(get("/b")), w(OK)];
    let bench = server(
        &script,
        &["GET /a -> 200 Complete 0/2", "GET /b -> 200 Complete 0/2"],
    );
    assert_eq!(
        (bench.out.counts.unparsed_bytes, bench.out.counts.resyncs),
        (7, 1)
    );
    let script = [
        r(get("/a") + "\r\n\r\n"),
        w(OK),
        r("\r\n".to_owned() + &get("/b")),
        w(OK),
    ];
    server(
        &script,
        &["GET /a -> 200 Complete 0/2", "GET /b -> 200 Complete 0/2"],
    );
}

#[test]
fn long_heads() {
    let many = format!("GET /a HTTP/1.1\r\n{}\r\n", "a:b\r\n".repeat(5000));
    server(&[r(&many), w(OK)], &["GET /a -> 200 Complete 0/2"]);
    let cut = many.len() / 2;
    server(
        &[r(&many[..cut]), r(&many[cut..]), w(OK)],
        &["GET /a -> 200 Complete 0/2"],
    );
    let long = format!("GET /a HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    for cut in [10, 60_000, 69_000] {
        let bench = server(
            &[r(get("/b")), w(OK), r(&long[..cut]), r(&long[cut..])],
            &["GET /b -> 200 Complete 0/2"],
        );
        assert_eq!(bench.out.counts.unparsed_bytes, long.len() as u64);
    }
    let fields = "HTTP/1.1 200 OK\r\n".to_owned()
        + &"a : b\r\n c\r\n".repeat(300)
        + "Content-Length: 1\r\n\r\nx";
    client(&[w(get("/a")), r(fields)], &["GET /a -> 200 Complete 0/1"]);
}

#[test]
fn fields() {
    let request = b"GET http://user:pw@origin.example:81/x\xff?q HTTP/1.1\r\nhost: other\r\nUSER-AGENT: curl \xe9\r\n\
        Tracestate: a=1\r\ntraceparent: 00-x\r\ntracestate: b=2\r\nbaggage: no\r\nX-Request-Id: \xff\r\nb3: 0\r\n\r\n";
    let bench = server(
        &[r(request), w(OK)],
        &["GET http://user:pw@origin.example:81/x\u{fffd}?q -> 200 Complete 0/2"],
    );
    let request = &bench.out.exchanges[0].request;
    assert_eq!(request.authority.as_deref(), Some("origin.example:81"));
    assert_eq!(request.user_agent.as_deref(), Some("curl \u{fffd}"));
    let context: Vec<_> = request
        .context
        .0
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    assert_eq!(
        context,
        [
            ("tracestate", "a=1,b=2"),
            ("traceparent", "00-x"),
            ("b3", "0")
        ]
    );
    let long = format!(
        "GET / HTTP/1.1\r\ntracestate: {}\r\nb3: 0\r\n\r\n",
        "x".repeat(9000)
    );
    let bench = server(&[r(long), w(OK)], &["GET / -> 200 Complete 0/2"]);
    assert_eq!(
        bench.out.exchanges[0].request.context.0.len(),
        1,
        "only what fits"
    );
    assert_eq!(bench.out.exchanges[0].request.authority, None);
}

#[test]
fn times_and_threads() {
    let mut out = Output::default();
    let at = |time_ns, tgid| At {
        time_ns,
        start_ns: time_ns - 10,
        tgid,
        tid: tgid + 1,
        cause: None,
    };
    let mut session = Session::new(Some(Role::Server), true);
    session.receive(Direction::Read, Input::Bytes(b"\r\n"), &at(90, 1), &mut out);
    session.receive(
        Direction::Read,
        Input::Bytes(b"GET / HT"),
        &at(100, 0),
        &mut out,
    );
    session.receive(
        Direction::Read,
        Input::Bytes(b"TP/1.1\r\n\r\n"),
        &at(200, 3),
        &mut out,
    );
    session.receive(
        Direction::Write,
        Input::Bytes(b"HTTP/1.1 200 OK\r\nContent-"),
        &at(300, 4),
        &mut out,
    );
    session.receive(
        Direction::Write,
        Input::Bytes(b"Length: 3\r\n\r\na"),
        &at(400, 5),
        &mut out,
    );
    session.receive(Direction::Write, Input::Skipped(2), &at(500, 6), &mut out);
    let mut session = Session::new(Some(Role::Client), true);
    session.receive(
        Direction::Write,
        Input::Bytes(b"GET / HTTP/1.1\r\n\r\n"),
        &at(100, 1),
        &mut out,
    );
    session.receive(
        Direction::Read,
        Input::Bytes(OK.as_bytes()),
        &at(200, 2),
        &mut out,
    );
    let times: Vec<_> = out
        .exchanges
        .iter()
        .map(|e| (e.start_ns, e.response_start_ns, e.end_ns, e.tgid, e.tid))
        .collect();
    assert_eq!(
        times,
        [(100, Some(290), 500, 4, 5), (90, Some(200), 200, 1, 2)]
    );
}

#[test]
fn too_many_outstanding() {
    let requests = get("/a").repeat(1030);
    let bench = client(
        &[w(requests), r(OK.repeat(1030))],
        &["GET /a -> 200 Complete 0/2"; 1024],
    );
    assert_eq!(bench.out.counts.abandoned[reason::PIPELINE_FULL], 6);
    assert_eq!(bench.session.in_flight(), 0);
}
