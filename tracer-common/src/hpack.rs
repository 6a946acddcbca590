//! Header blocks of HTTP/2 (HPACK, RFC 7541) as far as the kernel side goes over them: where each field
//! ends, and whether one begins to carry trace context.
//!
//! In: the bytes of a block, eight at a time. Out: how far the next part reaches. Names are looked at where
//! they are spelt out, plain or in the Huffman code: a sender has to do that once on a connection before it
//! can name a field by an index, so who saw all of its blocks knows that there is none. Values are passed over.
//!
//! It cannot see what an index stands for, and does not need to.

/// Values of the phase that [`step`] goes through.
pub mod phase {
    /// A field begins, or the block ends.
    pub const FIELD: u32 = 0;
    /// Its name is spelt out here.
    pub const NAME: u32 = 1;
    /// Its value begins here.
    pub const VALUE: u32 = 2;
    /// None of these: free for who goes over blocks. The ones above go on, those below do not.
    pub const OUTSIDE: u32 = 3;
    /// This is no header block, or one with a longer string than is believed.
    pub const BROKEN: u32 = 4;
    /// A name of trace context.
    pub const CONTEXT: u32 = 5;
    /// First value that is none of these.
    pub const COUNT: u32 = 6;
}

/// What begins at some place of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// One of [`phase`]: that of what follows.
    pub phase: u32,
    /// Bytes to what follows.
    pub length: u32,
}

/// Looks at what begins with the first byte of `word`, of which eight follow each other in memory (little endian,
/// zeros behind the block's end). Whether it ends within the block is the caller's to look at.
#[inline(always)]
pub fn step(phase: u32, word: u64) -> Step {
    const BROKEN: Step = Step {
        phase: phase::BROKEN,
        length: 0,
    };
    let first = word as u32 & 0xff;
    let is_field = phase == phase::FIELD;
    // Indexed; literal that is indexed; size of the table; literal that is not (section 6).
    let mask = if !is_field || first >= 0x80 {
        0x7f
    } else if first >= 0x40 {
        0x3f
    } else if first >= 0x20 {
        0x1f
    } else {
        0xf
    };
    let mut value = first & mask;
    let mut length = 1;
    if value == mask {
        // Section 5.1; what takes more than two bytes more is longer than any block that is gone over.
        let second = (word >> 8) as u32 & 0xff;
        let third = (word >> 16) as u32 & 0xff;
        value += second & 0x7f;
        length = 2;
        if second >= 0x80 {
            value += (third & 0x7f) << 7;
            length = 3;
            if third >= 0x80 {
                return BROKEN;
            }
        }
    }
    if !is_field {
        if phase == phase::NAME && (value == 0 || names_context(word)) {
            let phase = if value == 0 {
                phase::BROKEN
            } else {
                phase::CONTEXT
            };
            return Step { phase, length: 0 };
        }
        return Step {
            phase: if phase == phase::NAME {
                phase::VALUE
            } else {
                phase::FIELD
            },
            length: length + value,
        };
    }
    let is_indexed = first >= 0x80;
    let is_size = first & 0xe0 == 0x20;
    if is_indexed && value == 0 {
        return BROKEN;
    }
    Step {
        phase: if is_indexed || is_size {
            phase::FIELD
        } else if value == 0 {
            phase::NAME
        } else {
            phase::VALUE
        },
        length,
    }
}

/// A string as it may begin: its length with the bit that says whether it is in the Huffman code, and seven bytes.
#[derive(Clone, Copy)]
struct Pattern {
    mask: u64,
    bits: u64,
}

/// Names of fields that carry context, whole.
const NAMES: [&[u8]; 4] = [b"traceparent", b"b3", b"uber-trace-id", b"x-amzn-trace-id"];
/// What names of fields that carry context begin with.
const PREFIXES: [&[u8]; 2] = [b"x-b3-", b"x-datadog-"];
const PATTERNS: [Pattern; 2 * (NAMES.len() + PREFIXES.len())] = patterns();

/// True if the string that begins here, with its length, is a name of trace context. Without branches: each would be
/// another way for the kernel's verifier to follow.
#[inline(always)]
fn names_context(word: u64) -> bool {
    let mut product = 1u64;
    let mut i = 0;
    while i < PATTERNS.len() {
        let Pattern { mask, bits } = PATTERNS[i];
        let differs = (word & mask) ^ bits;
        // Two numbers of 32 bits that are not 0 have a product of 64 that is none either.
        product = folded(folded(differs).wrapping_mul(product));
        i += 1;
    }
    product == 0
}

/// Not 0 if the word is not, in 32 bits.
#[inline(always)]
fn folded(word: u64) -> u64 {
    (word >> 32) | (word & 0xffff_ffff)
}

const fn patterns() -> [Pattern; 2 * (NAMES.len() + PREFIXES.len())] {
    let mut patterns = [Pattern { mask: 0, bits: 1 }; 2 * (NAMES.len() + PREFIXES.len())];
    let mut i = 0;
    while i < NAMES.len() + PREFIXES.len() {
        let (text, is_whole) = if i < NAMES.len() {
            (NAMES[i], true)
        } else {
            (PREFIXES[i - NAMES.len()], false)
        };
        patterns[2 * i] = plain(text, is_whole);
        patterns[2 * i + 1] = coded(text, is_whole);
        i += 1;
    }
    patterns
}

const fn plain(text: &[u8], is_whole: bool) -> Pattern {
    let (mut mask, mut bits) = if is_whole {
        (0xff, text.len() as u64)
    } else {
        (0x80, 0)
    };
    let mut i = 0;
    while i < text.len() && i < 7 {
        mask |= 0xff << (8 * (i + 1));
        bits |= (text[i] as u64) << (8 * (i + 1));
        i += 1;
    }
    Pattern { mask, bits }
}

/// The string in the Huffman code: bits from the most significant one of each byte on, the last byte filled with ones.
const fn coded(text: &[u8], is_whole: bool) -> Pattern {
    let (mut mask, mut bits) = (0x80u64, 0x80u64);
    let mut at = 0;
    let mut i = 0;
    while i < text.len() {
        let (code, length) = code(text[i]);
        let mut bit = length;
        while bit > 0 {
            bit -= 1;
            (mask, bits) = with(mask, bits, at, code >> bit & 1);
            at += 1;
        }
        i += 1;
    }
    if is_whole {
        while !at.is_multiple_of(8) {
            (mask, bits) = with(mask, bits, at, 1);
            at += 1;
        }
        mask |= 0x7f;
        bits |= at as u64 / 8;
    }
    Pattern { mask, bits }
}

/// With one more bit of the string; those behind its seventh byte are not looked at.
const fn with(mask: u64, bits: u64, at: usize, bit: u64) -> (u64, u64) {
    let byte = 1 + at / 8;
    if byte > 7 {
        return (mask, bits);
    }
    let place = 8 * byte + 7 - at % 8;
    (mask | 1 << place, bits | bit << place)
}

/// Symbols whose codes are 5, 6 and 7 bits long, in order (RFC 7541, appendix B): the code is canonical, so these
/// are all that it takes. Names of fields that matter here have no others.
const SYMBOLS: [&[u8]; 3] = [
    b"012aceiost",
    b" %-./3456789=A_bdfghlmnpru",
    b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
];

/// Code and its length.
const fn code(symbol: u8) -> (u64, u32) {
    let mut first = 0;
    let mut length = 0;
    while length < SYMBOLS.len() {
        let symbols = SYMBOLS[length];
        let mut i = 0;
        while i < symbols.len() {
            if symbols[i] == symbol {
                return (first + i as u64, length as u32 + 5);
            }
            i += 1;
        }
        first = (first + symbols.len() as u64) << 1;
        length += 1;
    }
    panic!("a symbol whose code is longer");
}

#[cfg(test)]
mod tests;
