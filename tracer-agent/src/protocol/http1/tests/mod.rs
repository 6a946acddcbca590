//! The harness: a script of what one end sees, and what must come of it.

mod context;
mod loss;
mod properties;
mod rules;
mod speed;

use super::super::{At, Direction, End, Exchange, Input, Role};
use super::{Output, Session};

/// One thing that one end sees.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Read, written.
    R(Vec<u8>),
    W(Vec<u8>),
    /// Written by a call that was entered three and a half steps before it returned.
    SlowW(Vec<u8>),
    Skip(Direction, u64),
    Lost(Direction, u64),
    End(End),
    /// So many milliseconds pass.
    Wait(u64),
}

pub(super) fn r(text: impl AsRef<[u8]>) -> Step {
    Step::R(text.as_ref().to_vec())
}

pub(super) fn w(text: impl AsRef<[u8]>) -> Step {
    Step::W(text.as_ref().to_vec())
}

pub(super) fn slow_w(text: impl AsRef<[u8]>) -> Step {
    Step::SlowW(text.as_ref().to_vec())
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
        match step {
            Step::SlowW(bytes) => {
                let at = At {
                    start_ns: self.now_ns - 3_500_000,
                    ..at
                };
                self.session
                    .receive(Direction::Write, Input::Bytes(bytes), &at, &mut self.out)
            }
            Step::R(bytes) => {
                self.session
                    .receive(Direction::Read, Input::Bytes(bytes), &at, &mut self.out)
            }
            Step::W(bytes) => {
                self.session
                    .receive(Direction::Write, Input::Bytes(bytes), &at, &mut self.out)
            }
            Step::Skip(direction, length) => {
                self.session
                    .receive(*direction, Input::Skipped(*length), &at, &mut self.out);
            }
            Step::Lost(direction, length) => {
                self.session
                    .receive(*direction, Input::Lost(*length), &at, &mut self.out)
            }
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

/// `GET /path -> 200 Complete 0/5`: request, status, outcome, body bytes of request and response.
pub(super) fn line(exchange: &Exchange) -> String {
    let bytes = |bytes: Option<u64>| bytes.map_or("?".into(), |bytes| bytes.to_string());
    let status = exchange
        .response
        .as_ref()
        .map_or("none".into(), |response| response.status.to_string());
    let sizes = (
        bytes(exchange.request.body_bytes),
        exchange
            .response
            .as_ref()
            .map_or("-".into(), |r| bytes(r.body_bytes)),
    );
    format!(
        "{} {} -> {status} {:?} {}/{}",
        exchange.request.method, exchange.request.target, exchange.outcome, sizes.0, sizes.1
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
    assert_eq!(
        lines, expected,
        "script {script:?}, counts {:?}",
        bench.out.counts
    );
    bench
}

/// A server's view from the first byte.
pub(super) fn server(script: &[Step], expected: &[&str]) -> Bench {
    play(Some(Role::Server), true, script, expected)
}

/// A client's view from the first byte.
pub(super) fn client(script: &[Step], expected: &[&str]) -> Bench {
    play(Some(Role::Client), true, script, expected)
}

/// A small request and response.
pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
