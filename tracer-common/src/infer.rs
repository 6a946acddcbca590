//! Which protocol the first bytes of a message speak.
//!
//! Decided on at most 16 bytes, given as two little-endian words, so that the kernel side can ask
//! without a loop over memory. A wrong `Other` loses a connection, a wrong `Request` only costs some
//! copying: user space parses for real and has the last word.

use crate::http2::{FrameHeader, HEADER};
use crate::tls;

/// Bytes looked at.
pub const PREFIX: usize = 16;

/// What a message that starts with these bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// An HTTP/1 request line.
    Request,
    /// An HTTP/1 status line.
    Response,
    /// Could still become one of the above with more bytes.
    Partial,
    /// The HTTP/2 connection preface.
    Http2,
    /// The SETTINGS frame that an HTTP/2 server begins with.
    Http2Settings,
    /// A TLS record.
    Tls,
    /// Nothing we know.
    Other,
}

impl Guess {
    /// The one of this number.
    #[inline(always)]
    pub fn of(number: u32) -> Self {
        const ALL: [Guess; 6] = [
            Guess::Request,
            Guess::Response,
            Guess::Partial,
            Guess::Http2,
            Guess::Http2Settings,
            Guess::Tls,
        ];
        let mut all = ALL.into_iter();
        all.find(|guess| *guess as u32 == number)
            .unwrap_or(Guess::Other)
    }
}

const fn word(text: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*text)
}

/// Lower `n` bytes set.
const fn low_bytes(n: u32) -> u64 {
    if n >= 8 {
        u64::MAX
    } else {
        (1u64 << (n * 8)) - 1
    }
}

#[inline(always)]
fn byte(first: u64, second: u64, at: u32) -> u8 {
    if at < 8 {
        (first >> (at * 8)) as u8
    } else {
        (second >> ((at & 7) * 8)) as u8
    }
}

/// True when `value` agrees with the first `n` bytes of `text` on the bytes that are there.
#[inline(always)]
fn begins(value: u64, text: u64, n: u32, len: u32) -> bool {
    let seen = if len < n { len } else { n };
    (value ^ text) & low_bytes(seen) == 0
}

/// Guesses from the first `len` (capped at 16) bytes of a message.
#[inline(always)]
pub fn guess(first: u64, second: u64, len: u32) -> Guess {
    if len == 0 {
        return Guess::Partial;
    }
    if begins(first, word(b"HTTP/1.\0"), 7, len) {
        return if len >= 7 {
            Guess::Response
        } else {
            Guess::Partial
        };
    }
    if len >= 3 && tls::begins_record(first) {
        return Guess::Tls;
    }
    if begins(first, word(b"PRI * HT"), 8, len) {
        // Nobody else may use this method (RFC 9113 section 11.6).
        return if len >= 3 {
            Guess::Http2
        } else {
            Guess::Partial
        };
    }
    if len >= HEADER && FrameHeader::new(first, second as u8).is_first_settings() {
        return Guess::Http2Settings;
    }
    // One line end may come before a request line (RFC 9112 section 2.2). The line is looked at in one place,
    // because the verifier goes over every copy of it.
    let line_end = match first as u8 {
        b'\n' => 1,
        b'\r' if len < 2 || (first >> 8) as u8 == b'\n' => 2,
        _ => 0,
    };
    let bits = 8 * line_end;
    // Two steps to the left, because a word cannot be shifted by all its bits.
    let first = first >> bits | second << (63 - bits) << 1;
    request(first, second >> bits, len.saturating_sub(line_end))
}

/// Guesses from the first `len` bytes of a direction of a connection that was upgraded (101): at
/// least one. Only what an upgrade to HTTP/2 begins with is told; [`Guess::Other`] is anything else.
/// One byte is enough, since the frame walk goes on from any split, and user space, which reads what
/// was upgraded to, has the last word.
#[inline(always)]
pub fn guess_upgraded(first: u64, second: u64, len: u32) -> Guess {
    if begins(first, word(b"PRI * HT"), 8, len) {
        return Guess::Http2;
    }
    let settings = if len >= HEADER {
        FrameHeader::new(first, second as u8).is_first_settings()
    } else {
        // The two bytes between are the length, of which nearly any is right.
        begins(first & !0xff_ff00, word(b"\0\0\0\x04\0\0\0\0"), 8, len)
    };
    if settings {
        Guess::Http2Settings
    } else {
        Guess::Other
    }
}

/// [`guess`] for bytes in memory.
pub fn guess_bytes(bytes: &[u8]) -> Guess {
    let (first, second, len) = prefix_of(bytes);
    guess(first, second, len)
}

/// The first [`PREFIX`] bytes as words, and how many there are.
fn prefix_of(bytes: &[u8]) -> (u64, u64, u32) {
    let half = |at: usize| {
        u64::from_le_bytes(core::array::from_fn(|i| {
            bytes.get(at + i).copied().unwrap_or_default()
        }))
    };
    let len = if bytes.len() < PREFIX {
        bytes.len()
    } else {
        PREFIX
    };
    (half(0), half(8), len as u32)
}

/// A request line, without a loop: the kernel's verifier would follow each step separately.
#[inline(always)]
fn request(first: u64, second: u64, len: u32) -> Guess {
    let low = method_end(first);
    let space = if low < 8 { low } else { 8 + method_end(second) };
    if space >= len {
        return Guess::Partial;
    }
    if space < 3 || space >= PREFIX as u32 || byte(first, second, space) != b' ' {
        return Guess::Other;
    }
    if first == word(b"CONNECT ") {
        return Guess::Request;
    }
    if space + 1 >= len || space + 1 >= PREFIX as u32 {
        return Guess::Partial;
    }
    match byte(first, second, space + 1) {
        b'/' | b'*' | b'h' | b'H' => Guess::Request,
        _ => Guess::Other,
    }
}

/// Index of the first byte of a word that cannot be part of a method (upper case letters, `-`,
/// `_`); 8 if all can.
#[inline(always)]
fn method_end(word: u64) -> u32 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x80 * ONES;
    // With the high bit set a subtraction cannot borrow from the next byte.
    let full = word | HIGHS;
    let at_least = |b: u8| full.wrapping_sub(ONES * b as u64) & HIGHS;
    let letter = at_least(b'A') & !at_least(b'Z' + 1);
    let dash = at_least(b'-') & !at_least(b'-' + 1);
    let underscore = at_least(b'_') & !at_least(b'_' + 1);
    let ends = HIGHS & !((letter | dash | underscore) & !word);
    let lowest = ends & ends.wrapping_neg();
    let through = (lowest.wrapping_sub(1) & ONES).wrapping_mul(ONES) >> 56;
    if ends == 0 { 8 } else { through as u32 - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Guess {
        guess_bytes(bytes)
    }

    #[test]
    fn behind_an_upgrade() {
        let upgraded = |bytes: &[u8]| {
            let (first, second, len) = prefix_of(bytes);
            guess_upgraded(first, second, len)
        };
        for (start, expected) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], Guess::Http2),
            (
                b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03",
                Guess::Http2Settings,
            ),
            (
                b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
                Guess::Http2Settings,
            ),
        ] {
            for cut in 1..=start.len() {
                assert_eq!(upgraded(&start[..cut]), expected, "{:?}", &start[..cut]);
            }
        }
        for other in [
            // WebSocket: text, text of a client, a fragment; SPDY; Docker's streams; a shell.
            &b"\x81\x05hello"[..],
            b"\x81\x85\0\0\0\0hello",
            b"\x01\x03hel",
            b"\x80\x03\0\x01\0\0\0\0",
            b"\x01\0\0\0\0\0\0\x05hello",
            b"\0\0\0\0\0\0\0\x05hello",
            b"ls\n",
            b"POST / HTTP/1.1",
        ] {
            assert_eq!(upgraded(other), Guess::Other, "{other:?}");
        }
    }

    #[test]
    fn table() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Guess::Request),
            (b"POST /x HTTP/1.1", Guess::Request),
            (b"OPTIONS * HTTP/1.1", Guess::Request),
            (b"PROPFIND /dav/ HTTP/1.1", Guess::Request),
            (b"GET http://example.org/ HTTP/1.1", Guess::Request),
            (b"CONNECT example.org:443 HTTP/1.1", Guess::Request),
            (b"\r\nGET / HTTP/1.1", Guess::Request),
            (b"HTTP/1.1 200 OK", Guess::Response),
            (b"HTTP/1.0 404 Not Found", Guess::Response),
            (b"HTTP/2 200", Guess::Other),
            (b"HT", Guess::Partial),
            (b"G", Guess::Partial),
            (b"GET ", Guess::Partial),
            (b"\r\n", Guess::Partial),
            (b"", Guess::Partial),
            (b"PRI * HTTP/2.0\r\n\r\n", Guess::Http2),
            (b"PRI *", Guess::Http2),
            (b"PRI", Guess::Http2),
            (b"PR", Guess::Partial),
            (b"PRINT / HTTP/1.1", Guess::Request),
            (
                b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03",
                Guess::Http2Settings,
            ),
            (b"\x16\x03\x01\x02\x00\x01", Guess::Tls),
            (b"\x17\x03\x03\x02\x00\x01", Guess::Tls),
            (b"SSH-2.0-OpenSSH", Guess::Other),
            (b"220 mail ESMTP", Guess::Other),
            (b"*1\r\n$4\r\nPING\r\n", Guess::Other),
            (b"GET foo\r\n", Guess::Other),
            (b"get key\r\n", Guess::Other),
            (b"SELECT 1", Guess::Other),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Guess::Other),
        ] {
            assert_eq!(of(bytes), expected, "{:?}", core::str::from_utf8(bytes));
        }
    }

    /// A split start is never refused: every prefix of an accepted start is accepted or `Partial`.
    #[test]
    fn prefixes_are_never_refused() {
        for start in [
            &b"DELETE /a/b HTTP/1.1\r\n"[..],
            b"HTTP/1.1 200 OK\r\n",
            b"CONNECT h:1 HTTP/1.1\r\n",
            b"\r\nGET /index.html HTTP/1.1",
        ] {
            for cut in 0..start.len() {
                assert!(
                    matches!(
                        of(&start[..cut]),
                        Guess::Partial | Guess::Request | Guess::Response
                    ),
                    "{:?}",
                    core::str::from_utf8(&start[..cut])
                );
            }
        }
    }
}
