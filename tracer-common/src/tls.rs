//! TLS records (RFC 8446 section 5, RFC 5246 section 6.2) as far as they tell which socket carries
//! which session: their headers, and how much longer a record is than what it protects.

/// Bytes of a record header: type, version (2), length (2).
pub const HEADER: usize = 5;
/// Most plaintext that one record holds.
pub const MOST: u32 = 1 << 14;
/// Type of records that carry the application's data.
pub const APPLICATION_DATA: u8 = 0x17;

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Type.
    pub kind: u8,
    /// Bytes that follow the header.
    pub length: u32,
}

/// True when the low three bytes of the word are the type and version of a record.
#[inline(always)]
pub fn begins_record(word: u64) -> bool {
    let kind = word & 0xff;
    (0x14..=0x17).contains(&kind) && (word >> 8) & 0xff == 3 && (word >> 16) & 0xff <= 4
}

/// The record that begins with these bytes; its type is 0 if none does (rather than an `Option`, of
/// which LLVM likes to read what is not there, and the verifier refuses).
#[inline(always)]
pub fn record(bytes: [u8; HEADER]) -> Record {
    let [kind, major, minor, high, low] = bytes;
    let word = kind as u64 | (major as u64) << 8 | (minor as u64) << 16;
    let length = (high as u32) << 8 | low as u32;
    // Nobody sends empty records but of application data (and those carry a tag); nothing is longer
    // than the plaintext and the expansion that the RFCs allow.
    if begins_record(word) && length > 0 && length <= MOST + 2048 {
        Record { kind, length }
    } else {
        Record { kind: 0, length: 0 }
    }
}

/// True when a record of this length can hold exactly `plaintext` bytes under one of the AEAD suites:
/// TLS 1.3 (tag 16, type 1, no padding), TLS 1.2 with GCM or CCM (nonce 8, tag 16) or with
/// ChaCha20-Poly1305 (tag 16), CCM_8 (tag 8, type 1 or nonce 8). CBC suites pad, so they prove nothing.
#[inline(always)]
pub fn fits(record: u32, plaintext: u32) -> bool {
    let more = record.wrapping_sub(plaintext);
    plaintext > 0 && (more == 17 || more == 24 || more == 16 || more == 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let is = |kind, length| Record { kind, length };
        for (bytes, expected) in [
            ([0x16, 3, 1, 2, 0], is(0x16, 512)),
            ([0x17, 3, 3, 0, 0x13], is(0x17, 19)),
            ([0x15, 3, 3, 0, 2], is(0x15, 2)),
            ([0x17, 3, 3, 0, 0], is(0, 0)),
            ([0x17, 3, 3, 0xff, 0xff], is(0, 0)),
            ([0x18, 3, 3, 0, 3], is(0, 0)),
            ([0x17, 2, 3, 0, 3], is(0, 0)),
            ([0x17, 3, 5, 0, 3], is(0, 0)),
            (*b"GET /", is(0, 0)),
            (*b"HTTP/", is(0, 0)),
            ([0, 0, 18, 4, 0], is(0, 0)),
        ] {
            assert_eq!(record(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn lengths() {
        for (record, plaintext, expected) in [
            (117, 100, true),
            (124, 100, true),
            (116, 100, true),
            (109, 100, true),
            (118, 100, false),
            (100, 100, false),
            (90, 100, false),
            (17, 0, false),
            (MOST + 17, MOST, true),
        ] {
            assert_eq!(fits(record, plaintext), expected, "{record} {plaintext}");
        }
    }
}
