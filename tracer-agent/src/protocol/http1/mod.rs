//! HTTP/1.0 and HTTP/1.1 (RFC 9112). (room to be filled)

use super::{At, Direction, End, Exchange, Input, Role};

/// Counters a session adds to; the caller owns them (one per agent).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests whose head was recognised. Equals finished + abandoned + in flight.
    pub requests: u64,
    /// Exchanges that were given up without a span, by reason.
    pub abandoned: std::collections::BTreeMap<&'static str, u64>,
    /// Bytes that belonged to no message (garbage, after an upgrade), counted.
    pub unparsed_bytes: u64,
    /// Times a direction had to look for the next message start.
    pub resyncs: u64,
    /// Responses nobody asked for (for example a 408 on an idle connection).
    pub unsolicited_responses: u64,
}

/// Where a session puts what it found.
#[derive(Debug, Default)]
pub struct Output {
    /// Finished exchanges, in order of completion.
    pub exchanges: Vec<Exchange>,
    /// Counters.
    pub counts: Counts,
}

/// One end of one HTTP/1 connection.
#[derive(Debug)]
pub struct Session {}

impl Session {
    /// `role` if the kernel saw who opened the connection; `from_start` if no byte was missed.
    pub fn new(_role: Option<Role>, _from_start: bool) -> Self {
        Session {}
    }

    /// Takes the next piece of one direction.
    pub fn receive(&mut self, _direction: Direction, _input: Input<'_>, _at: &At, _out: &mut Output) {}

    /// A direction or the connection ended.
    pub fn end(&mut self, _end: End, _at: &At, _out: &mut Output) {}

    /// Requests without a finished exchange (for the ledger's `pending`).
    pub fn in_flight(&self) -> usize {
        0
    }
}
