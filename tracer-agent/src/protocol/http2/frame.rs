//! Frame headers (RFC 9113, section 4.1), and where a header block is within a payload.

/// Bytes of a frame header.
pub(super) const HEADER: usize = 9;

/// What the client sends first (section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Largest payload that may be sent before the peer allowed more.
pub(super) const DEFAULT_MAX: u32 = 1 << 14;
/// Largest payload that can be allowed.
pub(super) const MAX: u32 = (1 << 24) - 1;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

/// On DATA and HEADERS.
pub(super) const END_STREAM: u8 = 0x1;
/// On SETTINGS and PING.
pub(super) const ACK: u8 = 0x1;
/// On HEADERS, PUSH_PROMISE and CONTINUATION.
pub(super) const END_HEADERS: u8 = 0x4;
/// On DATA, HEADERS and PUSH_PROMISE.
pub(super) const PADDED: u8 = 0x8;
/// On HEADERS.
pub(super) const PRIORITIZED: u8 = 0x20;

/// A frame header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub length: u32,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Header {
    /// The reserved bit is ignored, as it must be.
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Header {
        let [l2, l1, l0, kind, flags, s3, s2, s1, s0] = *bytes;
        Header {
            length: u32::from_be_bytes([0, l2, l1, l0]),
            kind,
            flags,
            stream: u32::from_be_bytes([s3, s2, s1, s0]) & 0x7fff_ffff,
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// True if RFC 9113 lets this header be, given the largest payload allowed. What breaks these
    /// rules ends a connection, so it is no frame header but a place where none is.
    pub(super) fn is_valid(&self, max: u32) -> bool {
        if self.length > max {
            return false;
        }
        match self.kind {
            DATA | CONTINUATION => self.stream != 0,
            // At least what the flags say is there (padding length, priority).
            HEADERS => self.stream != 0 && self.length >= self.overhead(),
            PUSH_PROMISE => self.stream != 0 && self.length >= self.overhead() + 4,
            PRIORITY => self.stream != 0,
            RST_STREAM => self.stream != 0 && self.length == 4,
            SETTINGS => {
                self.stream == 0
                    && self.length.is_multiple_of(6)
                    && (!self.has(ACK) || self.length == 0)
            }
            PING => self.stream == 0 && self.length == 8,
            GOAWAY => self.stream == 0 && self.length >= 8,
            WINDOW_UPDATE => self.length == 4,
            _ => true,
        }
    }

    fn overhead(&self) -> u32 {
        u32::from(self.has(PADDED)) + 5 * u32::from(self.has(PRIORITIZED) && self.kind == HEADERS)
    }

    /// True if a careful endpoint sends such a header: for places where it is not known whether
    /// there is one. Refuses what is allowed but unusual.
    pub(super) fn is_plausible(&self, bytes: &[u8; HEADER]) -> bool {
        let flags = match self.kind {
            DATA => END_STREAM | PADDED,
            HEADERS => END_STREAM | END_HEADERS | PADDED | PRIORITIZED,
            SETTINGS | PING => ACK,
            PUSH_PROMISE => END_HEADERS | PADDED,
            CONTINUATION => END_HEADERS,
            PRIORITY | RST_STREAM | GOAWAY | WINDOW_UPDATE => 0,
            _ => return false,
        };
        let reserved_bit = bytes[5] & 0x80 != 0;
        // An empty DATA frame is only sent to end a stream; it alone looks like zeros.
        let idle = self.kind == DATA && self.length == 0 && !self.has(END_STREAM);
        // Servers open no streams but by PUSH_PROMISE, which is gone from practice.
        let pushed = self.stream != 0 && self.stream.is_multiple_of(2);
        let max = if self.kind == DATA { MAX } else { DEFAULT_MAX };
        !reserved_bit && self.flags & !flags == 0 && !idle && !pushed && self.is_valid(max)
    }

    /// The part of a HEADERS, PUSH_PROMISE or CONTINUATION frame's payload that is header block;
    /// `None` if its padding is longer than it.
    pub(super) fn fragment<'a>(&self, payload: &'a [u8]) -> Option<&'a [u8]> {
        let mut rest = payload;
        if self.kind == CONTINUATION {
            return Some(rest);
        }
        let mut padding = 0;
        if self.has(PADDED) {
            let (&length, behind) = rest.split_first()?;
            padding = usize::from(length);
            rest = behind;
        }
        let before = match self.kind {
            HEADERS if self.has(PRIORITIZED) => 5,
            PUSH_PROMISE => 4,
            _ => 0,
        };
        rest = rest.get(before..)?;
        rest.get(..rest.len().checked_sub(padding)?)
    }
}

/// The first four bytes as a number.
pub(super) fn word(payload: &[u8]) -> Option<u32> {
    payload
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
}
