//! The protocol session of a connection, whichever protocol it speaks.

use crate::protocol::{At, Direction, End, Exchange, Input, Opened, Role, http1, http2};

/// Who parses a connection.
pub enum Parser {
    /// HTTP/1.
    Http1(Box<http1::Session>),
    /// HTTP/2.
    Http2(Box<http2::Session>),
    /// Nobody: it turned out to be something else.
    None,
}

/// Where the sessions put what they found.
#[derive(Default)]
pub struct Outputs {
    /// Of HTTP/1 sessions.
    pub http1: http1::Output,
    /// Of HTTP/2 sessions.
    pub http2: http2::Output,
}

impl Outputs {
    /// Hands out the exchanges that have begun.
    pub fn drain_opened(&mut self) -> impl Iterator<Item = Opened> {
        self.http1
            .opened
            .drain(..)
            .chain(self.http2.opened.drain(..))
    }

    /// Hands out the finished exchanges.
    pub fn drain(&mut self) -> impl Iterator<Item = Exchange> {
        self.http1
            .exchanges
            .drain(..)
            .chain(self.http2.exchanges.drain(..))
    }
}

impl Parser {
    /// What a connection is taken for until its first bytes came.
    pub fn new(role: Option<Role>, from_start: bool) -> Self {
        Parser::Http1(Box::new(http1::Session::new(role, from_start)))
    }

    /// The kernel side found HTTP/2: nothing was parsed before.
    pub fn speaks_http2(&mut self, role: Option<Role>, from_start: bool) {
        if matches!(self, Parser::Http1(session) if session.in_flight() == 0) {
            *self = Parser::Http2(Box::new(http2::Session::new(role, from_start)));
        }
    }

    /// Takes the next piece of one direction.
    pub fn receive(&mut self, direction: Direction, input: Input<'_>, at: &At, out: &mut Outputs) {
        match self {
            Parser::Http1(session) => session.receive(direction, input, at, &mut out.http1),
            Parser::Http2(session) => session.receive(direction, input, at, &mut out.http2),
            Parser::None => {}
        }
    }

    /// A direction or the connection ended.
    pub fn end(&mut self, end: End, at: &At, out: &mut Outputs) {
        match self {
            Parser::Http1(session) => session.end(end, at, &mut out.http1),
            Parser::Http2(session) => session.end(end, at, &mut out.http2),
            Parser::None => {}
        }
    }

    /// Exchanges that have begun and not ended.
    pub fn in_flight(&self) -> usize {
        match self {
            Parser::Http1(session) => session.in_flight(),
            Parser::Http2(session) => session.in_flight(),
            Parser::None => 0,
        }
    }

    /// It speaks something else.
    pub fn is_dead(&self) -> bool {
        match self {
            Parser::Http1(session) => session.is_dead(),
            Parser::Http2(session) => session.is_dead(),
            Parser::None => false,
        }
    }

    /// It became something else, which is only counted.
    pub fn is_upgraded(&self) -> bool {
        matches!(self, Parser::Http1(session) if session.is_upgraded())
    }
}
