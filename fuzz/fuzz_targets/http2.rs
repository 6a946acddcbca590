//! HTTP/2: any bytes, frames, ranges left out, losses and ends, in any order.
//!
//! Guarantees: no panic; every recognised request is finished, given up or in flight, at any
//! moment; nothing is in flight after the end; times are in order.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tracer_agent::protocol::http2::{Output, Session};
use tracer_agent::protocol::{At, Direction, End, Input, Role};

/// A script, made so that frames are likely and anything else is possible.
#[derive(Arbitrary, Debug)]
struct Script<'a> {
    role: u8,
    from_start: bool,
    prefaces: bool,
    steps: Vec<Step<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Bytes {
        read: bool,
        bytes: &'a [u8],
    },
    Frame {
        read: bool,
        kind: u8,
        flags: u8,
        stream: u8,
        payload: &'a [u8],
        split: u8,
    },
    Known {
        read: bool,
        stream: u8,
        index: u8,
        end: bool,
    },
    Data {
        read: bool,
        stream: u8,
        end: bool,
        length: u16,
    },
    Skipped {
        read: bool,
        length: u32,
    },
    Lost {
        read: bool,
        length: u16,
    },
    End {
        end: u8,
    },
    Wait {
        milliseconds: u16,
    },
}

/// Header blocks.
const KNOWN: [&[u8]; 8] = [
    b"\x82\x86\x84\x41\x01h",
    b"\x83\x86\x44\x04/p/m\x5f\x10application/grpc",
    b"\x82\x86\xbe\xbf",
    b"\x88\x5f\x10application/grpc",
    b"\x88",
    b"\x08\x03103",
    b"\x40\x0bgrpc-status\x010",
    b"\xbe",
];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn direction(read: bool) -> Direction {
    if read {
        Direction::Read
    } else {
        Direction::Write
    }
}

fn balance(session: &Session, out: &Output) {
    let given_up: u64 = out.counts.abandoned.values().sum();
    assert_eq!(
        out.counts.requests,
        out.exchanges.len() as u64 + given_up + session.in_flight() as u64
    );
}

fuzz_target!(|script: Script<'_>| {
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
    if script.prefaces {
        let requests = direction(role != Some(Role::Client));
        let responses = direction(role == Some(Role::Client));
        let settings = frame(4, 0, 0, b"");
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat();
        session.receive(requests, Input::Bytes(&preface), &at, &mut out);
        session.receive(responses, Input::Bytes(&settings), &at, &mut out);
    }
    for step in &script.steps {
        match step {
            Step::Bytes { read, bytes } => {
                session.receive(direction(*read), Input::Bytes(bytes), &at, &mut out);
            }
            Step::Frame {
                read,
                kind,
                flags,
                stream,
                payload,
                split,
            } => {
                let bytes = frame(kind % 12, *flags, u32::from(*stream), payload);
                for piece in bytes.chunks(usize::from(*split) + 1) {
                    session.receive(direction(*read), Input::Bytes(piece), &at, &mut out);
                    balance(&session, &out);
                }
            }
            Step::Known {
                read,
                stream,
                index,
                end,
            } => {
                let block = KNOWN[usize::from(*index) % KNOWN.len()];
                let bytes = frame(1, 4 | u8::from(*end), u32::from(*stream) | 1, block);
                session.receive(direction(*read), Input::Bytes(&bytes), &at, &mut out);
            }
            Step::Data {
                read,
                stream,
                end,
                length,
            } => {
                let payload = vec![0; usize::from(*length)];
                let bytes = frame(0, u8::from(*end), u32::from(*stream) | 1, &payload);
                let direction = direction(*read);
                session.receive(direction, Input::Bytes(&bytes[..9]), &at, &mut out);
                let skipped = Input::Skipped(u64::from(*length));
                session.receive(direction, skipped, &at, &mut out);
            }
            Step::Skipped { read, length } => {
                let skipped = Input::Skipped(u64::from(*length));
                session.receive(direction(*read), skipped, &at, &mut out);
            }
            Step::Lost { read, length } => {
                let lost = Input::Lost(u64::from(*length));
                session.receive(direction(*read), lost, &at, &mut out);
            }
            Step::End { end } => {
                let end = match end % 16 {
                    0 => End::Closed(0),
                    1 => End::Error(32),
                    2..5 => End::WriteShutdown,
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
    }
    session.end(End::Closed(0), &at, &mut out);
    balance(&session, &out);
    assert_eq!(session.in_flight(), 0);
    for exchange in &out.exchanges {
        assert!(exchange.start_ns <= exchange.end_ns);
        assert_eq!(
            exchange.response.is_some(),
            exchange.response_start_ns.is_some()
        );
        if let Some(began_ns) = exchange.response_start_ns {
            assert!(exchange.start_ns <= began_ns && began_ns <= exchange.end_ns);
        }
    }
});
