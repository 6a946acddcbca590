//! Connections that change their protocol, at every split.

use proptest::prelude::*;

use super::super::{Outcome, Protocol};
use super::*;

const GET: &[u8] = b"GET /up?x=1 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\n\
    Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
const POST: &[u8] = b"POST /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\n\
    Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 6\r\n\r\nabcdef";
const AGREED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
const REFUSED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
    bytes.extend(payload);
    bytes
}

/// A request by the static table and a literal path.
fn request(stream: u8, path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
}

/// `:status: 200` and a body.
fn response(stream: u8, body: &[u8]) -> Vec<u8> {
    [
        frame(HEADERS, END_HEADERS, stream, &[0x88]),
        frame(DATA, END_STREAM, stream, body),
    ]
    .concat()
}

/// What one end sees, as the server does; the client's view is the mirror image.
#[derive(Clone)]
enum Step {
    FromClient(Vec<u8>),
    FromServer(Vec<u8>),
    End(End),
}
use Step::{FromClient as C, FromServer as S};

struct Bench {
    parser: Parser,
    out: Outputs,
    role: Role,
    now_ns: u64,
}

impl Bench {
    fn new(role: Role) -> Self {
        Bench {
            parser: Parser::http1(Some(role), true),
            out: Outputs::default(),
            role,
            now_ns: 1_000_000,
        }
    }

    fn step(&mut self, step: &Step) {
        self.now_ns += 1000;
        let at = At {
            time_ns: self.now_ns,
            start_ns: self.now_ns - 10,
            tgid: 7,
            tid: 8,
            cause: None,
        };
        let direction = |from_client: bool| match (self.role, from_client) {
            (Role::Server, true) | (Role::Client, false) => Direction::Read,
            (Role::Server, false) | (Role::Client, true) => Direction::Write,
        };
        let (direction, bytes) = match step {
            C(bytes) => (direction(true), bytes),
            S(bytes) => (direction(false), bytes),
            Step::End(end) => return self.parser.end(*end, &at, &mut self.out),
        };
        self.parser
            .receive(direction, Input::Bytes(bytes), &at, &mut self.out);
    }

    /// Every request that was seen is finished, given up or in flight.
    fn lines(&self) -> Vec<String> {
        let Outputs { http1, http2, .. } = &self.out;
        let exchanges: Vec<_> = http1.exchanges.iter().chain(&http2.exchanges).collect();
        let given_up: u64 = http1.counts.abandoned.values().sum::<u64>()
            + http2.counts.abandoned.values().sum::<u64>();
        assert_eq!(
            http1.counts.requests + http2.counts.requests,
            exchanges.len() as u64 + given_up + self.parser.in_flight() as u64,
        );
        exchanges
            .iter()
            .map(|exchange| {
                assert_eq!((exchange.tgid, exchange.tid), (7, 8));
                let status = exchange.response.as_ref().map_or(0, |r| r.status);
                format!(
                    "{:?} {} {} -> {status} {:?} {:?}",
                    exchange.protocol,
                    exchange.request.method,
                    exchange.request.target,
                    exchange.outcome,
                    exchange.request.body_bytes,
                )
            })
            .collect()
    }
}

fn check(steps: &[Step], expected: &[&str]) -> Vec<Bench> {
    [Role::Server, Role::Client]
        .into_iter()
        .map(|role| {
            let mut bench = Bench::new(role);
            for step in steps {
                bench.step(step);
            }
            assert_eq!(bench.lines(), expected, "{role:?}");
            bench
        })
        .collect()
}

/// What the server sends from the 101 on, and the client behind its preface.
fn server_bytes() -> Vec<u8> {
    [
        AGREED.to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        response(1, b"one"),
    ]
    .concat()
}

fn client_bytes() -> Vec<u8> {
    [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        request(3, "/three"),
    ]
    .concat()
}

const BOTH: [&str; 2] = [
    "Http2 GET /up?x=1 -> 200 Complete Some(0)",
    "Http2 GET /three -> 200 Complete Some(0)",
];

#[test]
fn an_upgrade_is_followed() {
    let steps = [
        C(GET.to_vec()),
        S(server_bytes()),
        C(client_bytes()),
        S(response(3, b"three")),
        Step::End(End::Closed(0)),
    ];
    for bench in check(&steps, &BOTH) {
        assert_eq!(bench.out.sessions.upgraded, 1);
        assert_eq!(bench.out.http1.counts.unparsed_bytes, 0);
        assert_eq!(bench.out.http2.counts.unparsed_bytes, 0);
        let upgraded = &bench.out.http2.exchanges[0];
        // From the HTTP/1 request to the end of the HTTP/2 response.
        assert!(upgraded.start_ns < upgraded.response_start_ns.unwrap());
        assert_eq!(upgraded.request.authority.as_deref(), Some("h"));
    }
}

#[test]
fn a_request_before_it_and_a_body() {
    let steps = [
        C(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        S(REFUSED.to_vec()),
        C(POST.to_vec()),
        S(server_bytes()),
        C(client_bytes()),
        S(response(3, b"three")),
    ];
    let expected = [
        "Http11 GET /first -> 200 Complete Some(0)",
        "Http2 POST /up -> 200 Complete Some(6)",
        "Http2 GET /three -> 200 Complete Some(0)",
    ];
    check(&steps, &expected);
    // A server that agrees before it has the request.
    for cut in [POST.len() - 6, POST.len() - 1] {
        let steps = [
            C(POST[..cut].to_vec()),
            S(server_bytes()),
            C([&POST[cut..], &client_bytes()].concat()),
            S(response(3, b"three")),
        ];
        check(&steps, &expected[1..]);
    }
}

#[test]
fn a_refused_upgrade_stays_http1() {
    let steps = [
        C(GET.to_vec()),
        S(REFUSED.to_vec()),
        C(b"GET /more HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        S(REFUSED.to_vec()),
    ];
    let expected = [
        "Http11 GET /up?x=1 -> 200 Complete Some(0)",
        "Http11 GET /more -> 200 Complete Some(0)",
    ];
    for bench in check(&steps, &expected) {
        assert_eq!(bench.out.sessions.upgraded, 0);
    }
}

#[test]
fn other_upgrades_are_left_alone() {
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\u{1}\u{2}";
    let steps = [C(GET.to_vec()), S(agreed.into()), C(vec![0x81, 0])];
    for bench in check(&steps, &["Http11 GET /up?x=1 -> 101 Complete Some(0)"]) {
        assert!(bench.parser.is_upgraded());
        assert_eq!(bench.out.http1.counts.unparsed_bytes, 4);
    }
}

#[test]
fn ends_before_the_answer() {
    for (steps, expected) in [
        (vec![S(AGREED.to_vec())], Outcome::LocalClosed),
        (
            vec![S(AGREED.to_vec()), C(client_bytes()[..30].to_vec())],
            Outcome::LocalClosed,
        ),
    ] {
        let mut bench = Bench::new(Role::Server);
        bench.step(&C(GET.to_vec()));
        for step in &steps {
            bench.step(step);
        }
        assert_eq!(bench.parser.in_flight(), 1);
        bench.step(&Step::End(End::Closed(0)));
        let exchange = &bench.out.http2.exchanges[0];
        assert_eq!(
            (exchange.outcome, exchange.protocol),
            (expected, Protocol::Http2)
        );
    }
    // While the request is still being sent.
    let mut bench = Bench::new(Role::Server);
    bench.step(&C(POST[..POST.len() - 3].to_vec()));
    bench.step(&S(server_bytes()));
    bench.step(&Step::End(End::Closed(0)));
    assert_eq!(bench.lines(), ["Http2 POST /up -> 200 Complete Some(3)"]);
}

#[test]
fn what_waits_for_the_request_is_bounded() {
    let mut bench = Bench::new(Role::Server);
    bench.step(&C(POST[..POST.len() - 3].to_vec()));
    bench.step(&S(AGREED.to_vec()));
    for _ in 0..1000 {
        bench.step(&S(vec![0; 1000]));
    }
    assert!(bench.parser.is_upgraded());
    assert_eq!(bench.lines(), ["Http11 POST /up -> 101 Complete Some(3)"]);
    assert_eq!(bench.out.http1.counts.unparsed_bytes, 1_000_000);
}

#[test]
fn a_missed_upgrade_is_joined() {
    let mut bench = Bench::new(Role::Server);
    bench.step(&C(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()));
    bench.step(&S(REFUSED.to_vec()));
    bench
        .parser
        .speaks_http2(Some(Role::Server), true, &mut bench.out);
    assert_eq!((bench.out.sessions.http1, bench.out.sessions.http2), (1, 1));
    for step in [
        C(request(3, "/three")),
        S(response(3, b"x")),
        C(request(5, "/five")),
        S(response(5, b"x")),
    ] {
        bench.step(&step);
    }
    bench.step(&Step::End(End::Closed(0)));
    let lines = bench.lines();
    assert_eq!(lines[1], "Http2 GET /three -> 200 Complete Some(0)");
    assert_eq!(lines[2], "Http2 GET /five -> 200 Complete Some(0)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The pieces make no difference.
    #[test]
    fn any_split_gives_the_same(cuts in prop::collection::vec(1usize..60, 1..12), server in any::<bool>()) {
        let role = if server { Role::Server } else { Role::Client };
        let mut bench = Bench::new(role);
        for step in [
            C(GET.to_vec()),
            S(server_bytes()),
            C(client_bytes()),
            S(response(3, b"three")),
        ] {
            let (make, bytes): (fn(Vec<u8>) -> Step, _) = match step {
                C(bytes) => (C, bytes),
                S(bytes) => (S, bytes),
                Step::End(_) => continue,
            };
            let mut rest = bytes.as_slice();
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                bench.step(&make(piece.to_vec()));
                rest = behind;
            }
        }
        prop_assert_eq!(bench.lines(), BOTH);
    }
}
