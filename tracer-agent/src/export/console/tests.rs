//! Scenario of every test: these spans at these moments. Guarantee: these lines, then and not
//! before.

use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::meta::Process;
use crate::protocol::{
    Connection, ContextHeaders, Endpoint, Exchange, Grpc, Outcome, Protocol, Request, Response,
    Role,
};
use crate::trace::{SpanId, SpanKind};

/// 2023-11-14T22:13:20Z.
const START_NS: u64 = 1_700_000_000_000_000_000;

/// A span to be: the fields that the console shows.
struct Case {
    trace: u8,
    id: u8,
    parent: u8,
    role: Role,
    service: &'static str,
    method: &'static str,
    target: &'static str,
    status: u16,
    outcome: Outcome,
    start_us: u64,
    duration_us: u64,
    /// A gRPC call, and its status.
    grpc: Option<Option<u32>>,
}

const SERVER: Case = Case {
    trace: 1,
    id: 1,
    parent: 0,
    role: Role::Server,
    service: "frontend",
    method: "GET",
    target: "/checkout?token=1",
    status: 200,
    outcome: Outcome::Complete,
    start_us: 0,
    duration_us: 152_300,
    grpc: None,
};

const CLIENT: Case = Case {
    role: Role::Client,
    ..SERVER
};

impl Case {
    fn span(&self) -> Span {
        let ip = |port| Endpoint::Ip(SocketAddr::from(([10, 0, 0, 7], port)));
        let status = (self.status != 0).then_some(Response {
            status: self.status,
            body_bytes: None,
        });
        Span {
            trace_id: TraceId([self.trace; 16]),
            span_id: SpanId([self.id; 8]),
            parent: (self.parent != 0).then_some(SpanId([self.parent; 8])),
            link: None,
            parent_is_remote: false,
            flags: 1,
            sampled: None,
            template: None,
            peer: None,
            trace_state: None,
            kind: match self.role {
                Role::Server => SpanKind::Server,
                Role::Client => SpanKind::Client,
            },
            start_unix_ns: START_NS + self.start_us * 1_000,
            end_unix_ns: START_NS + (self.start_us + self.duration_us) * 1_000,
            process: Arc::new(Process {
                pid: 1,
                service_name: self.service.into(),
                attributes: Vec::new(),
            }),
            exchange: Exchange {
                key: 0,
                role: self.role,
                protocol: Protocol::Http11,
                request: Request {
                    method: self.method.into(),
                    target: self.target.into(),
                    authority: None,
                    user_agent: None,
                    scheme: None,
                    context: ContextHeaders::default(),
                    body_bytes: None,
                },
                response: status,
                grpc: self.grpc.map(|status| Grpc {
                    status,
                    timeout_ns: None,
                    request_messages: None,
                    response_messages: None,
                }),
                outcome: self.outcome,
                start_ns: 0,
                response_start_ns: None,
                end_ns: 0,
                stream: 0,
                tgid: 1,
                tid: 1,
            },
            connection: Arc::new(Connection {
                id: 1,
                local: ip(1234),
                remote: ip(8080),
                role: None,
                from_start: true,
                tls: false,
                wire: None,
            }),
        }
    }
}

fn shop() -> [Case; 6] {
    [
        Case {
            id: 3,
            parent: 2,
            service: "cart",
            target: "/cart/42",
            start_us: 1_900,
            duration_us: 11_200,
            ..SERVER
        },
        Case {
            id: 2,
            parent: 1,
            target: "/cart/42",
            start_us: 1_200,
            duration_us: 12_100,
            ..CLIENT
        },
        Case {
            id: 5,
            parent: 4,
            service: "pay",
            method: "POST",
            target: "/charge",
            status: 503,
            start_us: 22_000,
            duration_us: 873,
            ..SERVER
        },
        Case {
            id: 4,
            parent: 1,
            method: "POST",
            target: "/charge",
            status: 503,
            start_us: 21_000,
            duration_us: 2_500,
            ..CLIENT
        },
        Case {
            id: 6,
            parent: 1,
            target: "/stock",
            status: 0,
            outcome: Outcome::Broken(libc::ECONNREFUSED),
            start_us: 30_000,
            duration_us: 90,
            ..CLIENT
        },
        Case {
            status: 500,
            duration_us: 1_240_000,
            ..SERVER
        },
    ]
}

/// Everything that the spans give, printed at the end.
fn lines(options: ConsoleOptions, cases: &[Case]) -> String {
    let mut tree = ConsoleTree::new(options);
    let now = Instant::now();
    for case in cases {
        tree.add(&case.span(), now);
    }
    tree.finish().join("\n")
}

#[test]
fn a_trace_is_a_tree_in_columns() {
    insta::assert_snapshot!(lines(ConsoleOptions::default(), &shop()), @"
    22:13:20.000Z  frontend          ← GET /checkout                              500    1.24 s
         +1.20 ms  ├─ frontend       → GET /cart/42                               200   12.1 ms
         +1.90 ms  │  └─ cart        ← GET /cart/42                               200   11.2 ms
         +21.0 ms  ├─ frontend       → POST /charge                               503   2.50 ms
         +22.0 ms  │  └─ pay         ← POST /charge                               503    873 µs
         +30.0 ms  └─ frontend       → GET /stock                                 ---     90 µs  ECONNREFUSED  10.0.0.7:8080
    ");
}

#[test]
fn grpc_and_what_was_not_seen() {
    let call = |id, role, status| Case {
        id,
        parent: 1,
        role,
        method: "POST",
        target: "/shop.Cart/Add",
        grpc: Some(status),
        start_us: u64::from(id) * 1_000,
        duration_us: 900,
        ..SERVER
    };
    let cases = [
        call(2, Role::Client, Some(0)),
        call(3, Role::Client, Some(5)),
        call(4, Role::Server, Some(5)),
        call(5, Role::Server, Some(14)),
        call(6, Role::Client, Some(99)),
        // Its trailers were not seen; nor was its method.
        call(7, Role::Client, None),
        Case {
            target: "",
            ..call(8, Role::Server, Some(0))
        },
        Case {
            status: 0,
            outcome: Outcome::LocalReset(8),
            ..call(9, Role::Client, Some(1))
        },
        // HTTP of which nothing was seen but that there was some.
        Case {
            method: "",
            target: "",
            grpc: None,
            ..call(10, Role::Server, None)
        },
        SERVER,
    ];
    insta::assert_snapshot!(lines(ConsoleOptions::default(), &cases), @"
    22:13:20.000Z  frontend          ← GET /checkout                              200    152 ms
         +2.00 ms  ├─ frontend       → grpc shop.Cart/Add                          OK    900 µs  10.0.0.7:8080
         +3.00 ms  ├─ frontend       → grpc shop.Cart/Add                           5    900 µs  NOT_FOUND  10.0.0.7:8080
         +4.00 ms  ├─ frontend       ← grpc shop.Cart/Add                           5    900 µs  NOT_FOUND
         +5.00 ms  ├─ frontend       ← grpc shop.Cart/Add                          14    900 µs  UNAVAILABLE
         +6.00 ms  ├─ frontend       → grpc shop.Cart/Add                          99    900 µs  10.0.0.7:8080
         +7.00 ms  ├─ frontend       → grpc shop.Cart/Add                           ?    900 µs  10.0.0.7:8080
         +8.00 ms  ├─ frontend       ← grpc ?                                      OK    900 µs
         +9.00 ms  ├─ frontend       → grpc shop.Cart/Add                           1    900 µs  CANCELLED  10.0.0.7:8080
         +10.0 ms  └─ frontend       ← ? ?                                        200    900 µs
    ");
}

#[test]
fn a_narrow_terminal() {
    let options = ConsoleOptions {
        width: 80,
        ..ConsoleOptions::default()
    };
    insta::assert_snapshot!(lines(options, &shop()), @"
    22:13:20.000Z  frontend          ← GET /checkout   500    1.24 s
         +1.20 ms  ├─ frontend       → GET /cart/42    200   12.1 ms
         +1.90 ms  │  └─ cart        ← GET /cart/42    200   11.2 ms
         +21.0 ms  ├─ frontend       → POST /charge    503   2.50 ms
         +22.0 ms  │  └─ pay         ← POST /charge    503    873 µs
         +30.0 ms  └─ frontend       → GET /stock      ---     90 µs  ECONNREFUSED
    ");
}

#[test]
fn colours() {
    let options = ConsoleOptions {
        colour: true,
        ..ConsoleOptions::default()
    };
    insta::assert_snapshot!(lines(options, &shop()).replace('\x1b', "^"), @"
    ^[2m22:13:20.000Z^[0m  frontend          ^[34m←^[0m ^[1mGET^[0m /checkout                              ^[1;31m500^[0m    ^[1;33m1.24 s^[0m
         ^[2m+1.20 ms^[0m  ^[2m├─ ^[0mfrontend       ^[35m→^[0m ^[1mGET^[0m /cart/42                               ^[32m200^[0m   12.1 ms
         ^[2m+1.90 ms^[0m  ^[2m│  └─ ^[0mcart        ^[34m←^[0m ^[1mGET^[0m /cart/42                               ^[32m200^[0m   11.2 ms
         ^[2m+21.0 ms^[0m  ^[2m├─ ^[0mfrontend       ^[35m→^[0m ^[1mPOST^[0m /charge                               ^[1;31m503^[0m   2.50 ms
         ^[2m+22.0 ms^[0m  ^[2m│  └─ ^[0mpay         ^[34m←^[0m ^[1mPOST^[0m /charge                               ^[1;31m503^[0m    873 µs
         ^[2m+30.0 ms^[0m  ^[2m└─ ^[0mfrontend       ^[35m→^[0m ^[1mGET^[0m /stock                                 ^[1;31m---^[0m     90 µs  ^[1;31mECONNREFUSED^[0m  ^[2m10.0.0.7:8080^[0m
    ");
}

#[test]
fn shapes_of_requests() {
    let long =
        "/a/very/long/path/with/many/segments/that/nobody/wants/to/read/in/full/and/an/id/4711";
    let cases = [
        Case {
            id: 1,
            target: "*",
            method: "OPTIONS",
            status: 204,
            ..SERVER
        },
        Case {
            id: 2,
            target: "db.example:443",
            method: "CONNECT",
            start_us: 1,
            ..CLIENT
        },
        Case {
            id: 3,
            target: "http://o.example/x?y",
            status: 302,
            start_us: 2,
            ..CLIENT
        },
        Case {
            id: 4,
            target: long,
            status: 404,
            start_us: 3,
            ..SERVER
        },
        Case {
            id: 5,
            method: "PROPFINDALLTHINGS",
            service: "ein-sehr-langer-name-eines-dienstes-im-cluster",
            start_us: 4,
            ..SERVER
        },
        Case {
            id: 6,
            target: "/日本語",
            service: "店",
            start_us: 5,
            ..SERVER
        },
        Case {
            id: 7,
            outcome: Outcome::PeerClosed,
            start_us: 6,
            ..CLIENT
        },
    ];
    insta::assert_snapshot!(lines(ConsoleOptions::default(), &cases), @"
    22:13:20.000Z  frontend                        ← OPTIONS *                    204    152 ms
    22:13:20.000Z  frontend                        → CONNECT db.example:443       200    152 ms
    22:13:20.000Z  frontend                        → GET /x                       302    152 ms  o.example
    22:13:20.000Z  frontend                        ← GET /a/very/lon…/an/id/4711  404    152 ms
    22:13:20.000Z  ein-sehr-langer…tes-im-cluster  ← PROPF…INGS /checkout         200    152 ms
    22:13:20.000Z  店                              ← GET /日本語                  200    152 ms
    22:13:20.000Z  frontend                        → GET /checkout                200    152 ms  peer_closed  10.0.0.7:8080
    ");
}

#[test]
fn nothing_from_outside_reaches_the_terminal_raw() {
    let case = Case {
        service: "evil\x1b]0;owned\x07\u{202e}",
        method: "G\x1b[2J",
        target: "/\r\n12:00:00.000Z  fake\u{9b}31m\u{2028}",
        ..CLIENT
    };
    let mut span = case.span();
    span.exchange.request.authority = Some("\x1b[1mhost".into());
    for colour in [false, true] {
        let mut tree = ConsoleTree::new(ConsoleOptions {
            colour,
            ..ConsoleOptions::default()
        });
        tree.add(&span, Instant::now());
        let lines = tree.finish();
        assert_eq!(lines.len(), 1);
        let own = ["1", "2", "32", "35"]
            .iter()
            .fold(lines[0].replace("\x1b[0m", ""), |line, parameters| {
                line.replace(&format!("\x1b[{parameters}m"), "")
            });
        assert!(
            own.chars().all(|character| !character.is_control()),
            "{own:?}"
        );
        assert!(!own.contains(['\u{202e}', '\u{2028}']), "{own:?}");
    }
}

proptest! {
    #[test]
    fn any_text_stays_on_its_line(
        service in "\\PC*|[\\x00-\u{ff}\u{2000}-\u{2070}]*",
        method in "\\PC*|[\\x00-\u{ff}]*",
        target in "\\PC*|[\\x00-\u{ff}\u{2000}-\u{2070}/]*",
        width in 0usize..200,
    ) {
        let mut span = CLIENT.span();
        span.exchange.request.method = method.into();
        span.exchange.request.target = target.into();
        span.process = Arc::new(Process { pid: 1, service_name: service.into(), attributes: Vec::new() });
        let mut tree = ConsoleTree::new(ConsoleOptions { width, ..ConsoleOptions::default() });
        tree.add(&span, Instant::now());
        let lines = tree.finish();
        prop_assert_eq!(lines.len(), 1);
        prop_assert!(!lines[0].chars().any(char::is_control), "{:?}", lines[0]);
        prop_assert!(text::cells(&lines[0]) <= width.max(80), "{:?}", lines[0]);
    }
}

#[test]
fn waits_beyond_all_time_are_waits_for_the_end() {
    let options = ConsoleOptions {
        quiet: Duration::MAX,
        longest_wait: Duration::MAX,
        ..ConsoleOptions::default()
    };
    let mut tree = ConsoleTree::new(options);
    tree.add(&SERVER.span(), Instant::now());
    assert_eq!(tree.deadline(), None);
    assert_eq!(tree.poll(Instant::now()).len(), 0);
    assert_eq!(tree.finish().len(), 1);
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    for width in [80, 100, 120, 200] {
        for line in lines(
            ConsoleOptions {
                width,
                ..ConsoleOptions::default()
            },
            &shop(),
        )
        .lines()
        {
            assert!(text::cells(line) <= width, "{width}: {line}");
        }
    }
}

#[test]
fn a_trace_waits_until_it_is_quiet() {
    let mut tree = ConsoleTree::new(ConsoleOptions::default());
    let start = Instant::now();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    assert_eq!(tree.deadline(), None);
    tree.add(&SERVER.span(), at(0));
    tree.add(&Case { trace: 2, ..SERVER }.span(), at(100));
    assert_eq!(tree.deadline(), Some(at(250)));
    assert_eq!(tree.poll(at(249)).len(), 0);
    tree.add(
        &Case {
            id: 2,
            parent: 1,
            ..CLIENT
        }
        .span(),
        at(249),
    );
    assert_eq!(tree.poll(at(250)).len(), 0);
    assert_eq!(tree.poll(at(350)).len(), 1);
    assert_eq!(tree.deadline(), Some(at(499)));
    assert_eq!(tree.poll(at(499)).len(), 2);
    assert_eq!(tree.deadline(), None);
}

#[test]
fn a_busy_trace_waits_no_longer_than_the_longest() {
    let mut tree = ConsoleTree::new(ConsoleOptions::default());
    let start = Instant::now();
    for milliseconds in (0..1_000).step_by(100) {
        let now = start + Duration::from_millis(milliseconds);
        tree.add(&SERVER.span(), now);
        assert_eq!(tree.poll(now).len(), 0);
    }
    assert_eq!(tree.poll(start + Duration::from_secs(1)).len(), 10);
}

#[test]
fn what_comes_late_is_a_tree_of_its_own() {
    let mut tree = ConsoleTree::new(ConsoleOptions::default());
    let start = Instant::now();
    tree.add(&SERVER.span(), start);
    assert_eq!(tree.poll(start + Duration::from_secs(1)).len(), 1);
    tree.add(
        &Case {
            id: 2,
            parent: 1,
            ..CLIENT
        }
        .span(),
        start + Duration::from_secs(1),
    );
    let lines = tree.poll(start + Duration::from_secs(2));
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("22:13:20"), "{lines:?}");
}

#[test]
fn too_many_traces_are_printed_early_and_oldest_first() {
    let mut tree = ConsoleTree::new(ConsoleOptions {
        max_traces: 2,
        ..ConsoleOptions::default()
    });
    let now = Instant::now();
    for trace in 1..=4 {
        tree.add(
            &Case {
                trace,
                status: 200 + u16::from(trace),
                ..SERVER
            }
            .span(),
            now,
        );
    }
    let early = tree.poll(now);
    assert_eq!(early.len(), 2);
    assert!(
        early[0].contains("  201  ") && early[1].contains("  202  "),
        "{early:?}"
    );
    assert_eq!(
        (tree.waiting.len(), tree.order.len(), tree.waiting_spans),
        (2, 2, 2)
    );
    assert_eq!(tree.finish().len(), 2);
    assert_eq!(
        (tree.waiting.len(), tree.order.len(), tree.waiting_spans),
        (0, 0, 0)
    );
}

#[test]
fn memory_is_bounded_and_what_is_left_out_is_told() {
    let mut tree = ConsoleTree::new(ConsoleOptions {
        max_spans: 10,
        ..ConsoleOptions::default()
    });
    let now = Instant::now();
    for trace in 0..100 {
        tree.add(&Case { trace, ..SERVER }.span(), now);
        assert!(tree.waiting_spans <= 10 && tree.ready.len() <= 10);
    }
    let lines = tree.poll(now);
    assert_eq!(lines.len(), 11);
    assert_eq!(
        lines[10],
        "… 80 more spans, faster than they can be printed"
    );
    assert_eq!(tree.not_shown(), 80);
    assert_eq!(tree.finish().len(), 10);
    assert_eq!(tree.not_shown(), 80);
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let check = |terminal, no_color: Option<&str>, term: Option<&str>, expected| {
        let wanted = wants_colour(terminal, no_color.map(OsStr::new), term.map(OsStr::new));
        assert_eq!(wanted, expected, "for {terminal} {no_color:?} {term:?}");
    };
    check(true, None, None, true);
    check(true, None, Some("xterm"), true);
    check(true, Some(""), Some("xterm"), true);
    check(true, Some("1"), Some("xterm"), false);
    check(true, None, Some("dumb"), false);
    check(false, None, Some("xterm"), false);
}

#[test]
fn the_writer_prints_whole_lines() {
    let mut out = Vec::new();
    let mut writer = ConsoleWriter::new(ConsoleOptions::default(), &mut out);
    let now = Instant::now();
    let spans: Vec<_> = shop().iter().map(Case::span).collect();
    writer.export(&spans, now).expect("a vector takes all");
    assert!(writer.deadline().is_some_and(|deadline| deadline > now));
    writer
        .tick(now + Duration::from_secs(1))
        .expect("a vector takes all");
    writer.export(&spans[..1], now).expect("a vector takes all");
    writer.finish().expect("a vector takes all");
    assert_eq!(writer.not_shown(), 0);
    let text = String::from_utf8(out).expect("text");
    assert_eq!(text.lines().count(), 7);
    assert!(text.ends_with('\n'));
}
