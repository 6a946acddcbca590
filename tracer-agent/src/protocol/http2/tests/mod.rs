//! The harness: two peers that write frames by hand, a script of what one end sees.

mod context;
mod hostile;
mod join;
mod loss;
mod properties;
mod real;
mod rules;
mod speed;

use super::super::hpack::encoder::Encoder;
use super::super::{At, Direction, End, Exchange, Input, Role};
use super::frame::{self, DATA, END_HEADERS, END_STREAM, HEADERS};
use super::{Output, Session};

/// One thing that one end sees.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Read, written.
    R(Vec<u8>),
    W(Vec<u8>),
    Skip(Direction, u64),
    Lost(Direction, u64),
    End(End),
    /// So many milliseconds pass.
    Wait(u64),
}

/// A frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(super) fn data(stream: u32, end: bool, payload: &[u8]) -> Vec<u8> {
    frame(DATA, if end { END_STREAM } else { 0 }, stream, payload)
}

pub(super) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(frame::RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub(super) fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in settings {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(frame::SETTINGS, 0, 0, &payload)
}

/// One side of a connection: writes header blocks.
#[derive(Clone, Debug)]
pub(super) struct Peer(Encoder);

impl Peer {
    pub(super) fn new() -> Self {
        Peer(Encoder::new(4096))
    }

    pub(super) fn block(&mut self, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            // The fields that everybody knows from the static table.
            match (*name, *value) {
                (":method", "GET") => block.push(0x82),
                (":method", "POST") => block.push(0x83),
                (":scheme", "http") => block.push(0x86),
                (":status", "200") => block.push(0x88),
                (name, value) => self.0.field(name, value, true, &mut block),
            }
        }
        block
    }

    pub(super) fn headers(&mut self, stream: u32, end: bool, fields: &[(&str, &str)]) -> Vec<u8> {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        let block = self.block(fields);
        frame(HEADERS, flags, stream, &block)
    }

    pub(super) fn request(&mut self, stream: u32, end: bool, method: &str, path: &str) -> Vec<u8> {
        self.headers(
            stream,
            end,
            &[
                (":method", method),
                (":scheme", "http"),
                (":path", path),
                (":authority", "h:80"),
            ],
        )
    }

    pub(super) fn status(&mut self, stream: u32, end: bool, status: &str) -> Vec<u8> {
        self.headers(stream, end, &[(":status", status), ("server", "s")])
    }

    pub(super) fn call(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "h:80"),
            ("content-type", "application/grpc+proto"),
            ("te", "trailers"),
        ];
        fields.extend(more);
        self.headers(stream, false, &fields)
    }

    pub(super) fn accepted(&mut self, stream: u32) -> Vec<u8> {
        self.headers(
            stream,
            false,
            &[(":status", "200"), ("content-type", "application/grpc")],
        )
    }

    pub(super) fn trailers(&mut self, stream: u32, status: &str) -> Vec<u8> {
        self.headers(
            stream,
            true,
            &[("grpc-status", status), ("grpc-message", "")],
        )
    }
}

/// What a client and a server send first.
pub(super) fn client_start() -> Vec<u8> {
    [frame::PREFACE.to_vec(), settings(&[])].concat()
}

pub(super) fn server_start() -> Vec<u8> {
    settings(&[(3, 100)])
}

/// A session under test, with a clock that goes on by a millisecond per step.
pub(super) struct Bench {
    pub session: Session,
    pub out: Output,
    pub now_ns: u64,
    /// Whether time stands still.
    pub frozen: bool,
}

impl Bench {
    pub(super) fn new(role: Option<Role>, from_start: bool) -> Self {
        Bench {
            session: Session::new(role, from_start),
            out: Output::default(),
            now_ns: 1_000_000_000,
            frozen: false,
        }
    }

    pub(super) fn step(&mut self, step: &Step) {
        if !self.frozen {
            self.now_ns += 1_000_000;
        }
        let at = At {
            time_ns: self.now_ns,
            start_ns: self.now_ns - 1000,
            tgid: 7,
            tid: 8,
            cause: None,
        };
        let mut receive = |direction, input| {
            self.session.receive(direction, input, &at, &mut self.out);
        };
        match step {
            Step::R(bytes) => receive(Direction::Read, Input::Bytes(bytes)),
            Step::W(bytes) => receive(Direction::Write, Input::Bytes(bytes)),
            Step::Skip(direction, length) => receive(*direction, Input::Skipped(*length)),
            Step::Lost(direction, length) => receive(*direction, Input::Lost(*length)),
            Step::End(end) => self.session.end(*end, &at, &mut self.out),
            Step::Wait(milliseconds) => self.now_ns += milliseconds * 1_000_000,
        }
        self.balance();
    }

    /// Every recognised request is finished, given up or in flight.
    pub(super) fn balance(&self) {
        let given_up: u64 = self.out.counts.abandoned.values().sum();
        let accounted =
            self.out.exchanges.len() as u64 + given_up + self.session.in_flight() as u64;
        assert_eq!(
            self.out.counts.requests, accounted,
            "requests do not add up: {:?}",
            self.out.counts
        );
    }
}

/// `GET /path -> 200 Complete 0/5`, with ` grpc 0 1/1` (status, messages) behind it if it is one.
pub(super) fn line(exchange: &Exchange) -> String {
    let number = |number: Option<u64>| number.map_or("?".into(), |number| number.to_string());
    let text = |text: &str| {
        if text.is_empty() {
            "?".into()
        } else {
            text.to_string()
        }
    };
    let (status, received) = match &exchange.response {
        None => ("none".into(), "-".into()),
        Some(response) => (response.status.to_string(), number(response.body_bytes)),
    };
    let grpc = exchange.grpc.as_ref().map_or(String::new(), |grpc| {
        format!(
            " grpc {} {}/{}",
            number(grpc.status.map(u64::from)),
            number(grpc.request_messages),
            number(grpc.response_messages)
        )
    });
    format!(
        "{} {} -> {status} {:?} {}/{received}{grpc}",
        text(&exchange.request.method),
        text(&exchange.request.target),
        exchange.outcome,
        number(exchange.request.body_bytes),
    )
}

/// Plays a script and compares the exchanges; returns the bench for more.
pub(super) fn play(
    role: Option<Role>,
    from_start: bool,
    script: &[Step],
    expected: &[&str],
) -> Bench {
    let mut bench = Bench::new(role, from_start);
    for step in script {
        bench.step(step);
    }
    let lines: Vec<String> = bench.out.exchanges.iter().map(line).collect();
    assert_eq!(lines, expected, "counts {:?}", bench.out.counts);
    bench
}

/// A server's view from the first byte, behind the prefaces.
pub(super) fn server(script: &[Step], expected: &[&str]) -> Bench {
    let mut whole = vec![Step::R(client_start()), Step::W(server_start())];
    whole.extend_from_slice(script);
    play(Some(Role::Server), true, &whole, expected)
}

/// A client's view from the first byte, behind the prefaces.
pub(super) fn client(script: &[Step], expected: &[&str]) -> Bench {
    let mut whole = vec![Step::W(client_start()), Step::R(server_start())];
    whole.extend_from_slice(script);
    play(Some(Role::Client), true, &whole, expected)
}
