//! The protocol session of a connection, whichever protocol it speaks, and from HTTP/1 to HTTP/2
//! where that is upgraded.
//!
//! In: pieces of both directions; at the beginning, or when whoever looks at the bytes first says
//! so, the protocol. Out: exchanges and counts, in [`Outputs`].

use super::{
    At, Direction, End, Exchange, ExportBody, Input, Opened, Role, Unfinished, http1, http2,
};

/// Who parses a connection.
#[derive(Debug)]
pub enum Parser {
    /// HTTP/1.
    Http1(Box<http1::Session>),
    /// HTTP/2.
    Http2(Box<http2::Session>),
    /// Nobody: it turned out to be something else.
    None,
}

/// Where the sessions put what they found.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Of HTTP/1 sessions.
    pub http1: http1::Output,
    /// Of HTTP/2 sessions.
    pub http2: http2::Output,
    /// Sessions.
    pub sessions: Sessions,
}

/// Sessions that took their first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// With HTTP/1.
    pub http1: u64,
    /// With HTTP/2.
    pub http2: u64,
    /// Of those with HTTP/1: upgraded to HTTP/2 later.
    pub upgraded: u64,
}

impl Outputs {
    /// Hands out the exchanges that have begun.
    pub fn drain_opened(&mut self) -> impl Iterator<Item = Opened> {
        self.http1
            .opened
            .drain(..)
            .chain(self.http2.opened.drain(..))
    }

    /// Hands out the bodies of requests that export spans.
    pub fn drain_exports(&mut self) -> impl Iterator<Item = ExportBody> {
        self.http1.exports.drain(..)
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
    pub fn http1(role: Option<Role>, from_start: bool) -> Self {
        Parser::Http1(Box::new(http1::Session::new(role, from_start)))
    }

    /// A connection that begins with HTTP/2 frames, or that was joined among them.
    pub fn http2(role: Option<Role>, from_start: bool) -> Self {
        Parser::Http2(Box::new(http2::Session::new(role, from_start)))
    }

    /// The bytes that come next were found to be HTTP/2.
    pub fn speaks_http2(&mut self, role: Option<Role>, from_start: bool, out: &mut Outputs) {
        if let Parser::Http1(session) = self
            && session.in_flight() == 0
        {
            // Behind anything else it is an upgrade that was missed.
            *self = Parser::http2(role, from_start && session.is_fresh());
            out.sessions.http2 += 1;
        }
    }

    /// Takes the next piece of one direction.
    pub fn receive(&mut self, direction: Direction, input: Input<'_>, at: &At, out: &mut Outputs) {
        match self {
            Parser::Http1(session) => {
                out.sessions.http1 += u64::from(session.is_fresh());
                session.receive(direction, input, at, &mut out.http1);
                self.follow_upgrade(out);
            }
            Parser::Http2(session) => session.receive(direction, input, at, &mut out.http2),
            Parser::None => {}
        }
    }

    /// A direction or the connection ended.
    pub fn end(&mut self, end: End, at: &At, out: &mut Outputs) {
        if let Parser::Http1(session) = self {
            session.end(end, at, &mut out.http1);
            if !self.follow_upgrade(out) {
                return;
            }
        }
        if let Parser::Http2(session) = self {
            session.end(end, at, &mut out.http2);
        }
    }

    /// Goes on with HTTP/2 if the connection was upgraded to it.
    fn follow_upgrade(&mut self, out: &mut Outputs) -> bool {
        let Parser::Http1(session) = self else {
            return false;
        };
        let Some(http1::Upgraded { exchange, rest }) = session.take_upgraded() else {
            return false;
        };
        out.sessions.upgraded += 1;
        let mut session = http2::Session::upgraded(exchange);
        for (direction, piece, at) in rest {
            session.receive(direction, piece.input(), &at, &mut out.http2);
        }
        *self = Parser::Http2(Box::new(session));
        true
    }

    /// Exchanges that have begun and not ended.
    pub fn in_flight(&self) -> usize {
        match self {
            Parser::Http1(session) => session.in_flight(),
            Parser::Http2(session) => session.in_flight(),
            Parser::None => 0,
        }
    }

    /// Exchanges that have begun and not ended; one that asked for an upgrade is left out meanwhile.
    pub fn unfinished(&self) -> Box<dyn Iterator<Item = Unfinished<'_>> + '_> {
        match self {
            Parser::Http1(session) => Box::new(session.unfinished()),
            Parser::Http2(session) => Box::new(session.unfinished()),
            Parser::None => Box::new(std::iter::empty()),
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

#[cfg(test)]
mod tests;
