//! HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112) of one end of one connection.
//!
//! In: the bytes of both directions in any pieces, ranges that were left out or lost, and how the
//! directions ended. Out: one [`Exchange`] per request, and counts of everything else.
//!
//! `head` finds and reads message heads, `body` follows message bodies, `direction` is one
//! direction of the connection, `pairing` the queue of requests that wait for their responses,
//! `held` a response that was seen before its request, `messages` what heads and bodies mean for
//! the exchanges, `endings` what an end or a loss does to them, `upgrade` hands a connection over
//! to HTTP/2; `session` ties all together.
//!
//! What it cannot see: whether a request was lost without a trace before the session began, and
//! where a chunked body ends whose chunk structure was left out. In doubt it gives an exchange up
//! (counted): a response is never given to a request it may not belong to.

mod body;
mod direction;
mod endings;
mod export;
mod head;
mod held;
mod messages;
mod pairing;
mod session;
#[cfg(test)]
mod tests;
mod upgrade;

use super::{Exchange, ExportBody, Opened};

pub use session::Session;
pub use upgrade::{Piece, Upgraded};

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
    /// Responses whose request was not seen (joined mid-connection, or after a loss).
    pub responses_without_request: u64,
}

/// Where a session puts what it found.
#[derive(Debug, Default)]
pub struct Output {
    /// Requests whose heads were seen since the caller last took them.
    pub opened: Vec<Opened>,
    /// Finished exchanges, in order of completion.
    pub exchanges: Vec<Exchange>,
    /// Bodies of requests that export spans.
    pub exports: Vec<ExportBody>,
    /// Counters.
    pub counts: Counts,
}

impl Output {
    fn abandon(&mut self, reason: &'static str, requests: u64) {
        if requests > 0 {
            *self.counts.abandoned.entry(reason).or_default() += requests;
        }
    }

    fn unparsed(&mut self, bytes: u64) {
        self.counts.unparsed_bytes = self.counts.unparsed_bytes.saturating_add(bytes);
    }
}

/// Why exchanges are given up; the keys of [`Counts::abandoned`].
pub mod reason {
    /// Bytes were lost where the response's head or the border between messages was.
    pub const LOST: &str = "lost";
    /// Bytes were left out where a message had to start: both sides disagree about framing.
    pub const HEAD_SKIPPED: &str = "head_skipped";
    /// The head of the response is longer than is kept.
    pub const HEAD_TOO_LONG: &str = "head_too_long";
    /// What came in place of the response is none.
    pub const MALFORMED_RESPONSE: &str = "malformed_response";
    /// Which response answers the request cannot be known (after a loss).
    pub const PAIRING_UNKNOWN: &str = "pairing_unknown";
    /// More requests are outstanding than are kept.
    pub const PIPELINE_FULL: &str = "pipeline_full";
    /// The connection became something else before the request was answered.
    pub const UPGRADED: &str = "upgraded";
    /// The connection turned out not to speak HTTP/1.
    pub const NOT_HTTP1: &str = "not_http1";
}
