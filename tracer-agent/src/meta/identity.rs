//! Deterministic ids: `service.instance.id` as a name-based UUID (RFC 9562, version 5).
//!
//! The semantic conventions ask for a UUID that is the same for the whole life of an instance and
//! different for every other one. Seen from outside, an instance is a process: where it runs
//! (container or host), its id there and when it started. An agent that restarts finds the same id.

/// The namespace that the semantic conventions define for `service.instance.id`.
const NAMESPACE: [u8; 16] = [
    0x4d, 0x63, 0x00, 0x9a, 0x8d, 0x0f, 0x11, 0xee, 0xaa, 0xd7, 0x4c, 0x79, 0x6e, 0xd8, 0xe3, 0x20,
];

/// Id of the process `pid`, started at `start_ticks`, at `place` (container id, else host id).
pub fn service_instance_id(place: &str, pid: u32, start_ticks: u64) -> String {
    uuid_v5(
        &NAMESPACE,
        format!("{place}.{pid}.{start_ticks}").as_bytes(),
    )
}

fn uuid_v5(namespace: &[u8; 16], name: &[u8]) -> String {
    let digest = sha1(&[namespace, name].concat());
    let mut high = digest
        .iter()
        .take(16)
        .fold(0u128, |id, byte| id << 8 | u128::from(*byte));
    high = high & !(0xf << 76) | 5 << 76;
    high = high & !(0b11 << 62) | 0b10 << 62;
    let hex = format!("{high:032x}");
    let (a, rest) = hex.split_at(8);
    let (b, rest) = rest.split_at(4);
    let (c, rest) = rest.split_at(4);
    let (d, e) = rest.split_at(4);
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// SHA-1 (RFC 3174). Version 5 UUIDs are defined by it; nothing here relies on it being secure.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize(padded.len().next_multiple_of(64), 0);
    if padded.len() - message.len() < 9 {
        padded.resize(padded.len() + 64, 0);
    }
    let bits = (message.len() as u64).wrapping_mul(8).to_be_bytes();
    let length_at = padded.len() - bits.len();
    padded.splice(length_at.., bits);

    let mut state = [
        0x6745_2301u32,
        0xefcd_ab89,
        0x98ba_dcfe,
        0x1032_5476,
        0xc3d2_e1f0,
    ];
    for block in padded.chunks_exact(64) {
        let mut words = [0u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes
                .iter()
                .fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        for t in 16..80 {
            words[t] = (words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (t, word) in words.into_iter().enumerate() {
            let (f, k) = match t {
                0..20 => (b & c | !b & d, 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let next = a
                .rotate_left(5)
                .wrapping_add(f)
                .wrapping_add(e)
                .wrapping_add(k)
                .wrapping_add(word);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (sum, value) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(value);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn sha1_known_answers() {
        // RFC 3174 section 7.3 and the lengths around a block's end (from coreutils' sha1sum).
        for (message, digest) in [
            (String::new(), "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ("abc".into(), "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq".into(),
                "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
            ),
            (
                "a".repeat(1_000_000),
                "34aa973cd4c4daa4f61eeb2bdbad27316534016f",
            ),
        ] {
            assert_eq!(hex(&sha1(message.as_bytes())), digest);
        }
        for length in 50..70 {
            assert_eq!(sha1(&vec![b'x'; length]).len(), 20);
        }
    }

    #[test]
    fn uuid_of_a_dns_name() {
        // RFC 9562 appendix A.4.
        let dns = 0x6ba7_b810_9dad_11d1_80b4_00c0_4fd4_30c8_u128.to_be_bytes();
        assert_eq!(
            uuid_v5(&dns, b"www.example.com"),
            "2ed6657d-e927-568b-95e1-2665a8aea6a2"
        );
    }

    #[test]
    fn an_instance_is_a_place_a_pid_and_a_start() {
        let id = service_instance_id("host", 7, 100);
        assert_eq!(id, service_instance_id("host", 7, 100));
        for other in [("host", 7, 101), ("host", 8, 100), ("tsoh", 7, 100)] {
            assert_ne!(id, service_instance_id(other.0, other.1, other.2));
        }
    }
}
