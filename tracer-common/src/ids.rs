//! Ids that both sides find by themselves: the kernel side has to write the id of a trace into a
//! request before user space knows that there is one.
//!
//! In: a secret that is random for every start of the agent, and what names an exchange. Out: an id
//! that looks random to everybody else (`SipHash`-2-4, Aumasson and Bernstein 2012).

/// What an id is for.
pub mod purpose {
    /// First half of a trace id.
    pub const TRACE_HIGH: u64 = 1;
    /// Second half of a trace id.
    pub const TRACE_LOW: u64 = 2;
    /// A span id.
    pub const SPAN: u64 = 3;
    /// The id of a client span whose context is in a TCP option; the secret is the trace id.
    pub const CARRIED_SPAN: u64 = 4;
}

/// One of the ids of the exchange that began on `connection` at `key`; never 0.
#[inline(always)]
pub fn derive(secret: [u64; 2], connection: u64, key: u64, purpose: u64) -> u64 {
    let mut state = [
        secret[0] ^ 0x736f_6d65_7073_6575,
        secret[1] ^ 0x646f_7261_6e64_6f6d,
        secret[0] ^ 0x6c79_6765_6e65_7261,
        secret[1] ^ 0x7465_6462_7974_6573,
    ];
    // 24 bytes, and the last block, which is their number.
    let blocks = [connection, key, purpose, 24 << 56];
    let mut i = 0;
    while i < blocks.len() {
        state[3] ^= blocks[i];
        state = round(round(state));
        state[0] ^= blocks[i];
        i += 1;
    }
    state[2] ^= 0xff;
    state = round(round(round(round(state))));
    let id = state[0] ^ state[1] ^ state[2] ^ state[3];
    if id == 0 { 1 } else { id }
}

#[inline(always)]
fn round(state: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = state;
    a = a.wrapping_add(b);
    c = c.wrapping_add(d);
    b = b.rotate_left(13) ^ a;
    d = d.rotate_left(16) ^ c;
    a = a.rotate_left(32);
    c = c.wrapping_add(b);
    a = a.wrapping_add(d);
    b = b.rotate_left(17) ^ c;
    d = d.rotate_left(21) ^ a;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the reference implementation's key (00 01 .. 0f) and message (00 01 .. 17).
    /// Guarantees: this is SipHash-2-4 of 24 bytes.
    #[test]
    fn is_the_published_function() {
        let word = |from: u8| u64::from_le_bytes(core::array::from_fn(|i| from + i as u8));
        let secret = [word(0), word(8)];
        assert_eq!(
            derive(secret, word(0), word(8), word(16)),
            u64::from_le_bytes([0x94, 0xaf, 0x49, 0xf6, 0xc6, 0x50, 0xad, 0xb8])
        );
    }
}
