//! HTTP/2 frame headers (RFC 9113 section 4.1) for the kernel side: lengths and types, so that DATA
//! payloads need not leave the kernel, and what a frame header can look like at all, to recognise a
//! connection whose preface was never seen.

/// Bytes of a frame header.
pub const HEADER: u32 = 9;
/// Bytes of the client's connection preface.
pub const PREFACE: u32 = 24;
/// Type of DATA frames.
pub const DATA: u8 = 0;
/// Type of the frames that begin a header block.
pub const HEADERS: u8 = 1;
/// Type of those that it goes on in.
pub const CONTINUATION: u8 = 9;

/// Flags of frames with parts of a header block (RFC 9113 sections 6.2 and 6.10).
pub mod flag {
    /// The block ends.
    pub const END_HEADERS: u8 = 0x4;
    /// The first byte says how many of the last ones mean nothing.
    pub const PADDED: u8 = 0x8;
    /// Five bytes come before the block.
    pub const PRIORITY: u8 = 0x20;
}

/// What is around the fields of a HEADERS frame, and no field (RFC 9113 section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Margins {
    /// Bytes before them that say how long the padding is.
    pub padded: u32,
    /// Bytes behind these that give a priority.
    pub priority: u32,
    /// Bytes of padding behind the fields.
    pub padding: u32,
}

impl Margins {
    /// By the frame's flags; `first` is the first byte of the payload.
    #[inline(always)]
    pub fn new(flags: u8, first: u32) -> Self {
        let is_padded = flags & flag::PADDED != 0;
        Margins {
            padded: is_padded as u32,
            priority: if flags & flag::PRIORITY != 0 { 5 } else { 0 },
            padding: if is_padded { first } else { 0 },
        }
    }

    /// True if a payload of this length has room for them.
    #[inline(always)]
    pub fn fit(&self, length: u32) -> bool {
        self.padded + self.priority + self.padding <= length
    }
}

/// Longest frame other than DATA that is believed.
pub const LONGEST: u32 = 1 << 20;

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of payload.
    pub length: u32,
    /// Type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Stream, with the reserved bit.
    pub stream: u32,
}

impl FrameHeader {
    /// From its first eight bytes as a little-endian word, and the ninth.
    #[inline(always)]
    pub fn new(word: u64, ninth: u8) -> Self {
        Self::from_big(word.swap_bytes(), ninth)
    }

    /// The same with the first eight bytes as a big-endian word.
    #[inline(always)]
    pub fn from_big(big: u64, ninth: u8) -> Self {
        FrameHeader {
            length: (big >> 40) as u32,
            kind: (big >> 32) as u8,
            flags: (big >> 24) as u8,
            stream: ((big & 0xff_ffff) << 8) as u32 | ninth as u32,
        }
    }

    /// True when a real peer could send this: type, flags, length and stream fit together
    /// (RFC 9113 section 6). Padded and unknown frames are taken for implausible: this is for
    /// recognising a connection, not for reading it.
    #[inline(always)]
    pub fn is_plausible(&self) -> bool {
        if self.stream >> 31 != 0 || self.length > 1 << 14 {
            return false;
        }
        let on_stream = self.stream != 0;
        match self.kind {
            DATA => on_stream && self.flags & !0x1 == 0,
            // HEADERS: END_STREAM, END_HEADERS, PADDED, PRIORITY; an empty block is nobody's.
            1 => on_stream && self.flags & !0x2d == 0 && self.length > 0,
            2 => on_stream && self.flags == 0 && self.length == 5,
            3 => on_stream && self.flags == 0 && self.length == 4,
            4 => !on_stream && self.is_settings(),
            6 => !on_stream && self.flags & !0x1 == 0 && self.length == 8,
            7 => !on_stream && self.flags == 0 && self.length >= 8,
            8 => self.flags == 0 && self.length == 4,
            9 => on_stream && self.flags & !0x4 == 0 && self.length > 0,
            _ => false,
        }
    }

    #[inline(always)]
    fn is_settings(&self) -> bool {
        if self.flags == 1 {
            self.length == 0
        } else {
            self.flags == 0 && self.length.is_multiple_of(6)
        }
    }

    /// True for the SETTINGS frame that a server's side of a connection begins with.
    #[inline(always)]
    pub fn is_first_settings(&self) -> bool {
        self.kind == 4
            && self.flags == 0
            && self.stream == 0
            && self.length <= 600
            && self.length.is_multiple_of(6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: [u8; 9]) -> FrameHeader {
        let word = u64::from_le_bytes(core::array::from_fn(|i| bytes[i]));
        FrameHeader::new(word, bytes[8])
    }

    #[test]
    fn reads_headers() {
        let header = of([0x01, 0x02, 0x03, 1, 0x25, 0x80, 0, 0, 7]);
        let expected = FrameHeader {
            length: 0x010203,
            kind: 1,
            flags: 0x25,
            stream: 0x8000_0007,
        };
        assert_eq!(header, expected);
    }

    #[test]
    fn plausibility() {
        for (bytes, plausible) in [
            ([0, 0, 18, 4, 0, 0, 0, 0, 0], true),
            ([0, 0, 0, 4, 1, 0, 0, 0, 0], true),
            ([0, 0, 17, 4, 0, 0, 0, 0, 0], false),
            ([0, 0, 18, 4, 0, 0, 0, 0, 1], false),
            ([0, 0, 30, 1, 4, 0, 0, 0, 1], true),
            ([0, 0, 0, 1, 4, 0, 0, 0, 1], false),
            ([0, 0, 30, 1, 4, 0, 0, 0, 0], false),
            ([0, 0, 5, 0, 1, 0, 0, 0, 1], true),
            ([0, 0, 5, 0, 1, 0x80, 0, 0, 1], false),
            ([0, 0, 8, 6, 0, 0, 0, 0, 0], true),
            ([0, 0, 9, 6, 0, 0, 0, 0, 0], false),
            ([0, 0, 4, 8, 0, 0, 0, 0, 0], true),
            ([0, 0, 4, 3, 0, 0, 0, 0, 3], true),
            (*b"GET / HTT", false),
            (*b"HTTP/1.1 ", false),
            ([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc], false),
            // PostgreSQL start-up, MySQL greeting, Redis.
            ([0, 0, 0, 0x54, 0, 3, 0, 0, b'u'], false),
            ([0x4a, 0, 0, 0, 0x0a, b'8', b'.', b'0', b'.'], false),
            (*b"*1\r\n$4\r\nP", false),
        ] {
            assert_eq!(of(bytes).is_plausible(), plausible, "{bytes:?}");
        }
    }
}
