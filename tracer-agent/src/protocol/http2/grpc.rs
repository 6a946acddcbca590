//! What gRPC makes of a stream (its `PROTOCOL-HTTP2.md` and `http-grpc-status-mapping.md`).

use super::super::{Outcome, Role};

const CANCELLED: u32 = 1;
const UNKNOWN: u32 = 2;
const DEADLINE_EXCEEDED: u32 = 4;
const PERMISSION_DENIED: u32 = 7;
const RESOURCE_EXHAUSTED: u32 = 8;
const UNIMPLEMENTED: u32 = 12;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;

/// HTTP/2 error codes (RFC 9113, section 7).
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;
const INADEQUATE_SECURITY: u32 = 12;
const LAST_ERROR: u32 = 13;
const STREAM_CLOSED: u32 = 5;

/// Value of `grpc-status`.
pub(super) fn status(value: &[u8]) -> Option<u32> {
    if value.is_empty() || value.len() > 9 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Value of `grpc-timeout`: at most eight digits and a unit.
pub(super) fn timeout_ns(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let unit_ns = match unit {
        b'H' => 3_600_000_000_000,
        b'M' => 60_000_000_000,
        b'S' => 1_000_000_000,
        b'm' => 1_000_000,
        b'u' => 1_000,
        b'n' => 1,
        _ => return None,
    };
    number.checked_mul(unit_ns)
}

/// How a call ended that sent no status that was seen.
pub(super) struct Ended {
    pub role: Role,
    pub outcome: Outcome,
    /// HTTP status; `None` without a response, 0 if not known.
    pub http_status: Option<u16>,
    /// Some field of the response or its trailers is not known: it may be the status.
    pub unknown_fields: bool,
    pub elapsed_ns: u64,
    pub timeout_ns: Option<u64>,
}

impl Ended {
    /// The status that a gRPC library gives such a call.
    pub(super) fn status(&self) -> Option<u32> {
        match (self.role, self.outcome) {
            // Servers watch the deadline too, and reset the stream when it passes.
            (_, Outcome::LocalReset(CANCEL) | Outcome::PeerReset(CANCEL))
                if self.deadline_passed() =>
            {
                Some(DEADLINE_EXCEEDED)
            }
            (_, Outcome::LocalReset(code) | Outcome::PeerReset(code)) => Some(of_reset(code)),
            (_, Outcome::Lost) => None,
            (_, Outcome::Complete) => match self.http_status {
                None | Some(0) => None,
                Some(_) if self.unknown_fields => None,
                Some(status) => Some(of_http(status)),
            },
            // Who closes gives its calls up; to the other side the connection broke.
            (Role::Client, Outcome::LocalClosed) => Some(CANCELLED),
            (Role::Client, Outcome::PeerClosed | Outcome::Broken(_)) => Some(UNAVAILABLE),
            (Role::Server, Outcome::LocalClosed) => Some(UNAVAILABLE),
            (Role::Server, Outcome::PeerClosed | Outcome::Broken(_)) => Some(CANCELLED),
        }
    }

    /// Clients round the timeout that they send up by as much as 1%, and time it from before they
    /// send it, which on a busy machine is some milliseconds. Who cancels in the last thirtieth of
    /// the time is rarer.
    fn deadline_passed(&self) -> bool {
        const SLACK_NS: u64 = 2_000_000;
        self.timeout_ns.is_some_and(|timeout_ns| {
            self.elapsed_ns
                .saturating_add(SLACK_NS)
                .saturating_add(timeout_ns / 32)
                >= timeout_ns
        })
    }
}

fn of_reset(code: u32) -> u32 {
    match code {
        REFUSED_STREAM => UNAVAILABLE,
        CANCEL => CANCELLED,
        ENHANCE_YOUR_CALM => RESOURCE_EXHAUSTED,
        INADEQUATE_SECURITY => PERMISSION_DENIED,
        // Has no mapping, like codes that nobody knows.
        STREAM_CLOSED => UNKNOWN,
        0..=LAST_ERROR => INTERNAL,
        _ => UNKNOWN,
    }
}

fn of_http(status: u16) -> u32 {
    match status {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// Counts length-prefixed messages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Messages {
    /// Messages whose prefix was seen.
    count: u64,
    /// Bytes of a prefix seen.
    prefix: u8,
    /// Length in the prefix so far.
    length: u32,
    /// Bytes of the message that are still to come.
    left: u32,
    /// Some bytes were not seen.
    unknown: bool,
}

impl Messages {
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) {
        const PREFIX: u8 = 5;
        while let Some((&first, behind)) = bytes.split_first().filter(|_| !self.unknown) {
            if self.left > 0 {
                let take = bytes
                    .len()
                    .min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= u32::try_from(take).unwrap_or(self.left);
                bytes = bytes.get(take..).unwrap_or_default();
                continue;
            }
            // The first byte is the compressed flag; shifted out by the four of the length.
            self.length = self.length << 8 | u32::from(first);
            self.prefix += 1;
            bytes = behind;
            if self.prefix == PREFIX {
                self.count += 1;
                self.left = self.length;
                (self.prefix, self.length) = (0, 0);
            }
        }
    }

    pub(super) fn unseen(&mut self) {
        self.unknown = true;
    }

    pub(super) fn count(&self) -> Option<u64> {
        (!self.unknown).then_some(self.count)
    }
}
