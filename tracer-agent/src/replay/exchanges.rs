//! Gives the streams of a capture to the protocols' state machines and their exchanges to the caller.

use super::driver::{Handler, Owner, Speaks};
use crate::protocol::{
    At, Connection, Direction, End, Exchange, Input, Outcome, Outputs, Parser, Role,
};

/// The [`Handler`] of all protocols: each finished exchange goes to `sink`.
#[derive(Debug)]
pub struct Exchanges<F> {
    outputs: Outputs,
    sink: F,
    unfinished: u64,
}

impl<F: FnMut(Exchange, &Owner)> Exchanges<F> {
    /// `sink` gets every exchange, with its connection and the process that stands for its server.
    pub fn new(sink: F) -> Self {
        Exchanges {
            outputs: Outputs::default(),
            sink,
            unfinished: 0,
        }
    }

    /// What the state machines counted.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// Requests without an end: their connection was forgotten, or the capture ended.
    pub fn unfinished(&self) -> u64 {
        self.unfinished
    }

    fn hand_on(&mut self, owner: &Owner) {
        // A capture tells one end of each exchange: there is nobody to be joined with.
        self.outputs.drain_opened().for_each(drop);
        self.outputs.drain_exports().for_each(drop);
        for exchange in self.outputs.drain() {
            match (exchange.role, owner.opposite()) {
                (Role::Client, Some(opposite)) => (self.sink)(mirrored(exchange), opposite),
                _ => (self.sink)(exchange, owner),
            }
        }
    }
}

/// As the other end saw it.
fn mirrored(exchange: Exchange) -> Exchange {
    let role = match exchange.role {
        Role::Server => Role::Client,
        Role::Client => Role::Server,
    };
    let outcome = match exchange.outcome {
        Outcome::PeerClosed => Outcome::LocalClosed,
        Outcome::LocalClosed => Outcome::PeerClosed,
        Outcome::PeerReset(code) => Outcome::LocalReset(code),
        Outcome::LocalReset(code) => Outcome::PeerReset(code),
        same @ (Outcome::Complete | Outcome::Broken(_) | Outcome::Lost) => same,
    };
    Exchange {
        role,
        outcome,
        ..exchange
    }
}

impl<F: FnMut(Exchange, &Owner)> Handler for Exchanges<F> {
    type Session = Parser;

    fn open(&mut self, connection: &Connection, speaks: Speaks) -> Parser {
        let from_start = connection.from_start;
        match speaks {
            Speaks::Http1 => Parser::http1(Some(Role::Server), from_start),
            Speaks::Http2 => Parser::http2(Some(Role::Server), from_start),
            Speaks::Http2Frames => Parser::http2(connection.role, from_start),
        }
    }

    fn receive(
        &mut self,
        session: &mut Parser,
        owner: &Owner,
        direction: Direction,
        input: Input<'_>,
        at: &At,
    ) {
        session.receive(direction, input, at, &mut self.outputs);
        self.hand_on(owner);
    }

    fn end(&mut self, session: &mut Parser, owner: &Owner, end: End, at: &At) {
        session.end(end, at, &mut self.outputs);
        self.hand_on(owner);
    }

    fn abandon(&mut self, session: Parser, _owner: &Owner) {
        self.unfinished += session.in_flight() as u64;
    }
}
