//! HTTP/2 (RFC 9113) and gRPC of one end of one connection, also when it is joined late.
//!
//! In: the bytes of both directions in any pieces, ranges that were left out or lost, and how the
//! directions ended. The payload of DATA frames may come as bytes or be left out: only counts of
//! gRPC messages need it. Out: one [`Exchange`] per request, and counts of everything else.
//!
//! `frame` knows frame headers, `lane` is one direction of the connection, `align` finds frame
//! borders in the middle of bytes, `held` keeps what has to wait for that, `fields` are the header
//! fields of interest, `stream` is one exchange in the making, `grpc` what gRPC makes of it;
//! `frames` says what whole frames mean, `messages` what header blocks mean, `endings` what ends
//! and losses do; `session` ties all together.
//!
//! What it cannot see: what a header field said that refers to an entry of the peer's table from
//! before the session began, or from before a loss. Such a method, target or status is reported as
//! not known, and known again as soon as the peer sends it in full, which it does when the entry
//! was evicted or the connection is made anew. Requests are told apart by their stream, so that no
//! value ever gets into another exchange.

mod align;
mod endings;
mod fields;
mod frame;
mod frames;
mod grpc;
mod held;
mod lane;
mod messages;
mod session;
mod stream;
#[cfg(test)]
mod tests;

use super::{Exchange, Opened};

pub use align::looks_like_http2;
pub use session::Session;

/// Counters a session adds to; the caller owns them (one per agent).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests whose header block was seen. Equals finished + abandoned + in flight.
    pub requests: u64,
    /// Exchanges that were given up without a span, by reason.
    pub abandoned: std::collections::BTreeMap<&'static str, u64>,
    /// Bytes in which no frames were found.
    pub unparsed_bytes: u64,
    /// Times a direction had to look for the next frame border (not counting the join).
    pub resyncs: u64,
    /// Responses whose request was not seen (joined late, after a loss, or given up).
    pub responses_without_request: u64,
    /// Header fields that refer to entries which were not seen.
    pub unknown_fields: u64,
    /// Header blocks that could not be read to their ends.
    pub broken_blocks: u64,
    /// Header blocks of which it is not known whether they are a request, a response or trailers.
    pub undecided_blocks: u64,
}

/// Where a session puts what it found.
#[derive(Debug, Default)]
pub struct Output {
    /// Requests whose header blocks were seen since the caller last took them.
    pub opened: Vec<Opened>,
    /// Finished exchanges, in order of completion.
    pub exchanges: Vec<Exchange>,
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
    /// Bytes were lost in which the response may have been.
    pub const LOST: &str = "lost";
    /// More streams are open than are kept.
    pub const STREAMS_FULL: &str = "streams_full";
    /// The connection turned out not to speak HTTP/2.
    pub const NOT_HTTP2: &str = "not_http2";
}
