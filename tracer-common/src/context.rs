//! Trace context in the head of a request, as far as the kernel side has to know it: that there is one,
//! and a W3C trace id that is certain. User space reads all formats, and has the last word.

use crate::frame::Window;

/// What is known of the context that a request came with.
pub mod incoming {
    /// Nothing: its head was not seen whole.
    pub const UNKNOWN: u32 = 0;
    /// It carries none.
    pub const ABSENT: u32 = 1;
    /// It carries `traceparent`, of version 00.
    pub const W3C: u32 = 2;
    /// It carries something else.
    pub const OTHER: u32 = 3;
}

/// What a line of a head is, by its first eight bytes in lower case.
pub mod field {
    /// Nothing that matters here.
    pub const NOTHING: u32 = 0;
    /// `traceparent`.
    pub const TRACEPARENT: u32 = 1;
    /// `tracestate`, which means nothing by itself.
    pub const TRACESTATE: u32 = 2;
    /// Any other format that is known.
    pub const OTHER: u32 = 3;
}

/// Bytes of `traceparent: 00-…-…-01` with its line end.
pub const HEADER_BYTES: usize = 70;

/// Where the scan keeps what it found; see [`crate::frame::Fields`] for why.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Number of fields that look like context.
    pub fields: u32,
    /// Where the last one is.
    pub field_at: u32,
    /// Offset behind the empty line; 0 if it was not seen.
    pub end: u32,
    /// Where the scan is.
    pub at: u32,
    /// Bytes that are there.
    pub len: u32,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;
const LF: u64 = ONES * b'\n' as u64;
const SPACES: u64 = 0x2020_2020_2020_2020;

/// Eight bytes in lower case, as names of fields are compared.
#[inline(always)]
pub fn lower(word: u64) -> u64 {
    word | SPACES
}

/// Eight bytes of text as a word.
const fn text(text: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*text)
}

/// 0 if context may begin with these eight bytes, which went through [`lower`]; [`classify`] says for
/// certain. Without branches: in a loop each one would be another way for the verifier to follow.
#[inline(always)]
pub fn suspicion(word: u64) -> u64 {
    let b3 = word & 0xff_ffff ^ text(b"b3:\0\0\0\0\0");
    let x_b3 = word & 0xff_ffff_ffff ^ text(b"x-b3-\0\0\0");
    (word ^ text(b"tracepar"))
        .wrapping_mul(b3)
        .wrapping_mul(x_b3)
        .wrapping_mul(word ^ text(b"uber-tra"))
        .wrapping_mul(word ^ text(b"x-amzn-t"))
        .wrapping_mul(word ^ text(b"x-datado"))
}

/// Which field begins with these eight bytes; they went through [`lower`].
#[inline(always)]
pub fn classify(word: u64) -> u32 {
    // "b3:" and "x-b3-": the rest of the word is none of the name.
    let b3 = word << 40 == text(b"\0\0\0\0\0b3:");
    let x_b3 = word << 24 == text(b"\0\0\0x-b3-");
    if word == text(b"tracepar") {
        field::TRACEPARENT
    } else if word == text(b"tracesta") {
        field::TRACESTATE
    } else if b3
        || x_b3
        || word == text(b"uber-tra")
        || word == text(b"x-amzn-t")
        || word == text(b"x-datado")
    {
        field::OTHER
    } else {
        field::NOTHING
    }
}

/// The first bytes of a request that may get a header: a method (none that changes the protocol)
/// and a blank.
#[inline(always)]
pub fn begins_request(word: u64) -> bool {
    const fn prefix(method: &[u8]) -> u64 {
        let mut word = 0;
        let mut i = 0;
        while i < method.len() {
            word |= (method[i] as u64) << (8 * i);
            i += 1;
        }
        word
    }
    let begins = |method: u64, len: u32| word & (u64::MAX >> (64 - 8 * len)) == method;
    begins(const { prefix(b"GET ") }, 4)
        || begins(const { prefix(b"PUT ") }, 4)
        || begins(const { prefix(b"POST ") }, 5)
        || begins(const { prefix(b"HEAD ") }, 5)
        || begins(const { prefix(b"PATCH ") }, 6)
        || begins(const { prefix(b"DELETE ") }, 7)
        || begins(const { prefix(b"OPTIONS ") }, 8)
}

/// `HTTP/1.1` or `HTTP/1.0`.
#[inline(always)]
pub fn is_version(word: u64) -> bool {
    word == text(b"HTTP/1.1") || word == text(b"HTTP/1.0")
}

/// Offset behind the lowest line feed of a word; 8 and `false` without one.
#[inline(always)]
pub fn through_line_feed(word: u64) -> (u32, bool) {
    let word = word ^ LF;
    let hits = word.wrapping_sub(ONES) & !word & HIGHS;
    // Only the lowest match is exact.
    let lowest = hits & hits.wrapping_neg();
    let through = (lowest.wrapping_sub(1) & ONES).wrapping_mul(ONES) >> 56;
    (through as u32 & 0xf, hits != 0)
}

/// Steps of the scan: eight bytes without a line feed, or one line feed.
const STEPS: u32 = 640;

/// Looks through the head that begins the window, of which `len` bytes are there.
///
/// # Safety
/// `place` is live, and nobody else's during the scan.
#[inline(always)]
pub unsafe fn scan(window: &impl Window, len: u32, place: *mut Found) {
    // SAFETY: as the caller says; volatile keeps it in memory, which the verifier knows nothing of.
    unsafe {
        place.write_volatile(Found {
            len,
            ..Found::default()
        });
    }
    let mut step = 0;
    while step < STEPS {
        step += 1;
        // SAFETY: as above.
        let (before, len) = unsafe {
            (
                (&raw const (*place).at).read_volatile(),
                (&raw const (*place).len).read_volatile(),
            )
        };
        if before >= len {
            break;
        }
        let (through, is_line) = through_line_feed(window.word(before));
        let p = (before + through) & 0x1fff;
        // SAFETY: as above.
        unsafe { (&raw mut (*place).at).write_volatile(p) };
        if !is_line {
            continue;
        }
        if p + 2 > len {
            break;
        }
        let word = window.word(p);
        if word as u16 == u16::from_le_bytes(*b"\r\n") || word as u8 == b'\n' {
            // SAFETY: as above.
            unsafe { (&raw mut (*place).end).write_volatile(p + 2) };
            break;
        }
        if suspicion(lower(word)) == 0 {
            // SAFETY: as above.
            unsafe {
                let n = &raw mut (*place).fields;
                n.write_volatile(n.read_volatile() + 1);
                (&raw mut (*place).field_at).write_volatile(p);
            }
        }
    }
}

/// What the head of a request says, after [`scan`].
///
/// # Safety
/// As for [`scan`].
#[inline(always)]
pub unsafe fn conclude(window: &impl Window, place: *mut Found) -> Traceparent {
    // SAFETY: as the caller says.
    let found = unsafe { place.read_volatile() };
    let mut context = Traceparent {
        state: incoming::ABSENT,
        flags: 0,
        trace: [0; 2],
    };
    let at = found.field_at & 0xfff;
    if found.end == 0 || found.end > found.len {
        context.state = incoming::UNKNOWN;
    } else if found.fields > 1 {
        context.state = incoming::OTHER;
    } else if found.fields == 1 {
        // "traceparent:", all of it.
        let is_whole = lower(window.word(at + 8)) << 32 == text(b"\0\0\0\0ent:");
        match classify(lower(window.word(at))) {
            field::TRACEPARENT if is_whole => context = parse(window, at + 12),
            field::NOTHING | field::TRACESTATE => {}
            _ => context.state = incoming::OTHER,
        }
    }
    context
}

/// A W3C context.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// [`incoming`]: `W3C` or `OTHER`.
    pub state: u32,
    /// Sampled (1) and random (2).
    pub flags: u32,
    /// Halves of the trace id, the first is the more significant one.
    pub trace: [u64; 2],
}

/// Parses the value at `at`, behind blanks. Anything but version 00, in lower case, at the line's end is `OTHER`.
#[inline(always)]
fn parse(window: &impl Window, at: u32) -> Traceparent {
    let mut at = at & 0x1fff;
    let mut spaces = 0;
    while spaces < 4 && window.byte(at) == b' ' {
        at += 1;
        spaces += 1;
    }
    let mut context = value(window, at);
    if window.byte(at + 55) != b'\r' {
        context.state = incoming::OTHER;
    }
    context
}

/// The value of 55 bytes that begins at `at`. Anything but version 00 in lower case is `OTHER`.
#[inline(always)]
pub fn value(window: &impl Window, at: u32) -> Traceparent {
    let mut bad = window.word(at) << 40 ^ text(b"\0\0\0\0\x0000-");
    bad |= (window.byte(at + 35) ^ b'-' | window.byte(at + 52) ^ b'-') as u64;
    let mut long = |at| {
        let (high, wrong) = digits(window.word(at));
        bad |= wrong;
        let (low, wrong) = digits(window.word(at + 8));
        bad |= wrong;
        (high as u64) << 32 | low as u64
    };
    let trace = [long(at + 3), long(at + 19)];
    let parent = long(at + 36);
    // Two digits behind six zeros.
    let two = window.word(at + 53) << 48 | text(b"000000\0\0");
    let (flags, wrong) = digits(two);
    let is_good = bad | wrong == 0 && trace[0] | trace[1] != 0 && parent != 0;
    Traceparent {
        state: if is_good {
            incoming::W3C
        } else {
            incoming::OTHER
        },
        flags: flags & 3,
        trace,
    }
}

/// Eight digits in lower case, the first one the most significant; the second value is not 0 if they are none. Without
/// branches, as in [`suspicion`].
#[inline(always)]
fn digits(word: u64) -> (u32, u64) {
    let values = (word & (0xf * ONES)) + 9 * ((word >> 6) & ONES);
    let letters = (values + 6 * ONES) >> 4 & ONES;
    let text = values + 0x30 * ONES + 0x27 * letters;
    let bad = text ^ word | values & (0xf0 * ONES);
    let mut packed = values.swap_bytes();
    packed = (packed | packed >> 4) & 0x00ff_00ff_00ff_00ff;
    packed = (packed | packed >> 8) & 0x0000_ffff_0000_ffff;
    ((packed | packed >> 16) as u32, bad)
}

/// Bytes of the field that goes into a request of HTTP/2.
pub const FIELD_BYTES: usize = 69;

/// Writes the header line that goes into a request: the halves of the trace id and the span id, and
/// `flags` as in [`Traceparent`].
///
/// # Safety
/// `ids` is live, `out` has room for [`HEADER_BYTES`], and both are nobody else's meanwhile. Bytes are read
/// and written one by one and volatile: LLVM would keep all of them in registers, which the kernel's
/// stack has no room for.
#[inline(always)]
pub unsafe fn header(ids: *const [u64; 3], flags: u32, out: *mut u8) {
    const BLANK: &[u8; HEADER_BYTES] =
        b"traceparent: 00-00000000000000000000000000000000-0000000000000000-00\r\n";
    // SAFETY: as the caller says.
    unsafe { write(ids, flags, BLANK, 13, out) };
}

/// The same for a header block of HTTP/2: a literal that is not indexed, with a new name, nothing of it in the
/// Huffman code (RFC 7541 section 6.2.2), so that it means the same whatever the tables of the connection are, and
/// leaves them alone.
///
/// # Safety
/// As for [`header`]; `out` has room for [`FIELD_BYTES`].
#[inline(always)]
pub unsafe fn field(ids: *const [u64; 3], flags: u32, out: *mut u8) {
    const BLANK: &[u8; FIELD_BYTES] =
        b"\x00\x0btraceparent\x3700-00000000000000000000000000000000-0000000000000000-00";
    // SAFETY: as the caller says.
    unsafe { write(ids, flags, BLANK, 14, out) };
}

/// Writes `blank` with the ids and flags in the value that begins at `at`.
///
/// # Safety
/// As for [`header`].
#[inline(always)]
unsafe fn write<const BYTES: usize>(
    ids: *const [u64; 3],
    flags: u32,
    blank: &[u8; BYTES],
    at: usize,
    out: *mut u8,
) {
    /// Where the digits of each word are in the value.
    const PLACES: [usize; 3] = [3, 19, 36];
    let mut i = 0;
    while i < BYTES {
        // SAFETY: as the caller says.
        unsafe { out.add(i).write_volatile(blank[i]) };
        i += 1;
    }
    let mut word = 0;
    while word < 3 {
        let mut i = 0;
        while i < 8 {
            // SAFETY: as the caller says; all of these are within the value. Words are little endian.
            unsafe {
                let byte = ids.cast::<u8>().add(8 * word + 7 - i).read_volatile();
                let place = out.add(at + PLACES[word] + 2 * i);
                place.write_volatile(letter(byte >> 4));
                place.add(1).write_volatile(letter(byte & 0xf));
            }
            i += 1;
        }
        word += 1;
    }
    // SAFETY: as the caller says.
    unsafe { out.add(at + 54).write_volatile(b'0' + (flags & 3) as u8) };
}

#[inline(always)]
fn letter(digit: u8) -> u8 {
    // 'a' is 39 behind what would come after '9'.
    digit + b'0' + ((digit + 6) >> 4) * 39
}

#[cfg(test)]
mod tests;
