//! Trace context in a TCP option: the context of one request, on a segment that carries it.
//!
//! An experimental option (RFC 6994) of 28 bytes, which is what is left beside timestamps:
//!
//! | bytes | |
//! | --- | --- |
//! | 1, 1, 2 | kind 254, length 28, the experiment's id `7ace` |
//! | 16 | trace id |
//! | 4 | place: which request of the connection |
//! | 1 | [`flag`] |
//! | 3 | of what the span id is made, with the place and the trace id ([`Carried::span`]) |
//!
//! The place is the sequence number of the request's first byte, counted as the two programs count
//! (under TLS: of plaintext, from the sequence number of the connection's first byte); of HTTP/2 it is the
//! sequence number of the connection's first byte plus the stream. So it does not matter which segment the
//! option is on, nor whether it comes twice.

use crate::ids;

/// Bytes of the option.
pub const BYTES: u32 = 28;
/// The option as 32-bit words in network order.
pub type Words = [u32; BYTES as usize / 4];
/// First word: kind, length, experiment.
pub const BEGINNING: u32 = u32::from_ne_bytes([254, BYTES as u8, 0x7a, 0xce]);
/// First word of what `bpf_load_hdr_opt` is asked for: the length is that of kind, length and experiment.
pub const SEARCH: u32 = u32::from_ne_bytes([254, 4, 0x7a, 0xce]);

/// The trace id in options of the agent's self-test.
pub const SELFTEST: [u64; 2] = [u64::MAX; 2];

/// Bits of [`Carried::flags`]; the lower ones are those of `traceparent`.
pub mod flag {
    /// The place is that of a stream of HTTP/2.
    pub const STREAM: u32 = 0x80;
    /// Those of `traceparent`.
    pub const TRACEPARENT: u32 = 3;
}

/// What the option says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Halves of the trace id.
    pub trace: [u64; 2],
    /// See the module's text.
    pub place: u32,
    /// See [`flag`].
    pub flags: u32,
    /// 24 bits that tell apart what the place does not.
    pub nonce: u32,
}

impl Carried {
    /// Id of the client span: both ends make the same one. The place is as random as a connection's
    /// first sequence number, so that two requests of one trace do not meet.
    #[inline(always)]
    pub fn span(&self) -> u64 {
        let what = (self.place as u64) << 24 | (self.nonce & 0xff_ffff) as u64;
        ids::derive(self.trace, what, 0, ids::purpose::CARRIED_SPAN)
    }

    /// The option.
    #[inline(always)]
    pub fn words(&self) -> Words {
        let [high, low] = self.trace;
        [
            BEGINNING,
            ((high >> 32) as u32).to_be(),
            (high as u32).to_be(),
            ((low >> 32) as u32).to_be(),
            (low as u32).to_be(),
            self.place.to_be(),
            (self.flags << 24 | self.nonce & 0xff_ffff).to_be(),
        ]
    }

    /// From an option whose first word is [`BEGINNING`].
    #[inline(always)]
    pub fn from_words(words: &Words) -> Self {
        let half =
            |i: usize| (u32::from_be(words[i]) as u64) << 32 | u32::from_be(words[i + 1]) as u64;
        let last = u32::from_be(words[6]);
        Carried {
            trace: [half(1), half(3)],
            place: u32::from_be(words[5]),
            flags: last >> 24,
            nonce: last & 0xff_ffff,
        }
    }

    /// True if it can be a context: an id of zeros is none.
    #[inline(always)]
    pub fn is_valid(&self) -> bool {
        self.trace[0] | self.trace[1] != 0
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    const CARRIED: Carried = Carried {
        trace: [0x0102_0304_0506_0708, 0x090a_0b0c_0d0e_0f10],
        place: 0xdead_beef,
        flags: flag::STREAM | 3,
        nonce: 0x00c0_ffee & 0xff_ffff,
    };

    /// Guarantees: the bytes are those that the module's text says.
    #[test]
    fn bytes() {
        let bytes: std::vec::Vec<u8> = CARRIED
            .words()
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let expected = [
            254, 28, 0x7a, 0xce, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0xde, 0xad,
            0xbe, 0xef, 0x83, 0xc0, 0xff, 0xee,
        ];
        assert_eq!(bytes, expected);
    }

    /// Guarantees: both ends know the same.
    #[test]
    fn there_and_back() {
        let arrived = Carried::from_words(&CARRIED.words());
        assert_eq!(arrived, CARRIED);
        assert_eq!(arrived.span(), CARRIED.span());
        assert!(arrived.is_valid());
        assert!(
            !Carried {
                trace: [0; 2],
                ..arrived
            }
            .is_valid()
        );
    }

    /// Guarantees: what differs in any part has another span id; it is never 0.
    #[test]
    fn span_ids_differ() {
        let others = [
            Carried {
                place: 1,
                ..CARRIED
            },
            Carried {
                nonce: 1,
                ..CARRIED
            },
            Carried {
                trace: [1, 2],
                ..CARRIED
            },
        ];
        for other in others {
            assert_ne!(other.span(), CARRIED.span(), "{other:?}");
            assert_ne!(other.span(), 0);
        }
    }
}
