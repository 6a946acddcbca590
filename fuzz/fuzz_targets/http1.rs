//! HTTP/1: any bytes, pieces, ranges left out, losses and ends, in any order.
//!
//! Guarantees: no panic; every recognised request is finished, given up or in flight, at any
//! moment; nothing is in flight after the end; times are in order; and the same script with its
//! bytes split one by one gives the same exchanges and counts.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tracer_agent::protocol::http1::{Counts, Output, Session};
use tracer_agent::protocol::{At, Direction, End, Exchange, Input, Role};

/// A script, made so that messages are likely and anything else is possible.
#[derive(Arbitrary, Debug)]
struct Script<'a> {
    role: u8,
    from_start: bool,
    steps: Vec<Step<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Bytes { read: bool, bytes: &'a [u8] },
    Known { read: bool, index: u8, times: u8 },
    Skipped { read: bool, length: u32 },
    Lost { read: bool, length: u16 },
    End { end: u8 },
    Wait { milliseconds: u16 },
}

const KNOWN: [&[u8]; 22] = [
    b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"HEAD /h HTTP/1.0\r\n\r\n",
    b"POST /p HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /p HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"CONNECT h:1 HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\n",
    b"GET http://u@h/\xff HTTP/1.1\n\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 408 Request Timeout\n\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0\r\nTrailer: x\r\n\r\n",
    b"abc",
    b"\r\n",
    b"traceparent: x\r\n\r\n",
];

fn direction(read: bool) -> Direction {
    if read {
        Direction::Read
    } else {
        Direction::Write
    }
}

fn play(script: &Script<'_>, split: bool) -> (Vec<Exchange>, Counts) {
    let role = [None, Some(Role::Server), Some(Role::Client)][usize::from(script.role % 3)];
    let mut session = Session::new(role, script.from_start);
    let mut out = Output::default();
    let mut at = At {
        time_ns: 1_000_000,
        start_ns: 999_000,
        tgid: 1,
        tid: 2,
        cause: None,
    };
    let feed = |session: &mut Session, out: &mut Output, read, bytes: &[u8], at: &At| {
        for piece in bytes.chunks(if split { 1 } else { usize::MAX }) {
            session.receive(direction(read), Input::Bytes(piece), at, out);
            balance(session, out);
        }
    };
    for step in &script.steps {
        match step {
            Step::Bytes { read, bytes } => feed(&mut session, &mut out, *read, bytes, &at),
            Step::Known { read, index, times } => {
                let message = KNOWN[usize::from(*index) % KNOWN.len()];
                // Now and then many times over, for the bounds.
                let times = if *times > 250 {
                    1500
                } else {
                    usize::from(*times % 3) + 1
                };
                feed(&mut session, &mut out, *read, &message.repeat(times), &at);
            }
            Step::Skipped { read, length } => {
                session.receive(
                    direction(*read),
                    Input::Skipped(u64::from(*length)),
                    &at,
                    &mut out,
                );
            }
            Step::Lost { read, length } => {
                session.receive(
                    direction(*read),
                    Input::Lost(u64::from(*length)),
                    &at,
                    &mut out,
                );
            }
            Step::End { end } => {
                let end = match end % 16 {
                    0 => End::Closed(0),
                    1 => End::Closed(104),
                    2 => End::Error(32),
                    3..8 => End::WriteShutdown,
                    _ => End::ReadEof,
                };
                session.end(end, &at, &mut out);
            }
            Step::Wait { milliseconds } => {
                at.time_ns += u64::from(*milliseconds) * 1_000_000;
                at.start_ns = at.time_ns - 1000;
            }
        }
        balance(&session, &out);
        assert!(session.in_flight() <= 1024);
    }
    session.end(End::Closed(0), &at, &mut out);
    balance(&session, &out);
    assert_eq!(session.in_flight(), 0);
    (out.exchanges, out.counts)
}

fn balance(session: &Session, out: &Output) {
    let given_up: u64 = out.counts.abandoned.values().sum();
    assert_eq!(
        out.counts.requests,
        out.exchanges.len() as u64 + given_up + session.in_flight() as u64
    );
}

fuzz_target!(|script: Script<'_>| {
    let whole = play(&script, false);
    for exchange in &whole.0 {
        assert!(exchange.start_ns <= exchange.end_ns);
        assert_eq!(
            exchange.response.is_some(),
            exchange.response_start_ns.is_some()
        );
        if let Some(began_ns) = exchange.response_start_ns {
            assert!(exchange.start_ns <= began_ns && began_ns <= exchange.end_ns);
        }
    }
    assert_eq!(whole, play(&script, true));
});
