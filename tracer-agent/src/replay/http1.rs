//! Gives the streams of a capture to the HTTP/1 state machine and its exchanges to the caller.

use super::driver::{Handler, Owner};
use crate::protocol::http1::{Counts, Output, Session};
use crate::protocol::{At, Connection, Direction, End, Exchange, Input, Role};

/// The [`Handler`] of HTTP/1: each finished exchange goes to `sink`.
#[derive(Debug)]
pub struct Http1<F> {
    output: Output,
    sink: F,
    unfinished: u64,
}

impl<F: FnMut(Exchange, &Owner)> Http1<F> {
    /// `sink` gets every exchange, with its connection and the process that stands for its server.
    pub fn new(sink: F) -> Self {
        Http1 {
            output: Output::default(),
            sink,
            unfinished: 0,
        }
    }

    /// What the state machines counted.
    pub fn counts(&self) -> &Counts {
        &self.output.counts
    }

    /// Requests without an end: their connection was forgotten, or the capture ended.
    pub fn unfinished(&self) -> u64 {
        self.unfinished
    }

    fn hand_on(&mut self, owner: &Owner) {
        // A capture tells one end of each exchange: there is nobody to be joined with.
        self.output.opened.clear();
        for exchange in self.output.exchanges.drain(..) {
            (self.sink)(exchange, owner);
        }
    }
}

impl<F: FnMut(Exchange, &Owner)> Handler for Http1<F> {
    type Session = Session;

    fn open(&mut self, connection: &Connection) -> Session {
        Session::new(Some(Role::Server), connection.from_start)
    }

    fn receive(
        &mut self,
        session: &mut Session,
        owner: &Owner,
        direction: Direction,
        input: Input<'_>,
        at: &At,
    ) {
        session.receive(direction, input, at, &mut self.output);
        self.hand_on(owner);
    }

    fn end(&mut self, session: &mut Session, owner: &Owner, end: End, at: &At) {
        session.end(end, at, &mut self.output);
        self.hand_on(owner);
    }

    fn abandon(&mut self, session: Session, _owner: &Owner) {
        self.unfinished += session.in_flight() as u64;
    }
}
