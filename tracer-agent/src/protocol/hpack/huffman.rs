//! The Huffman code of RFC 7541, appendix B.
//!
//! In: an encoded string. Out: its bytes. The code is canonical, so that the lengths tell
//! everything; the decoder's table of four bits at a time is made of them when compiling.

/// Length in bits of the code of every byte, and of the end-of-string symbol.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// Number of the end-of-string symbol.
const END: usize = 256;

/// Longest code.
const LONGEST: u8 = 30;

/// Inner nodes of the code's tree: one less than its leaves.
const NODES: usize = 256;

/// A child that is a leaf: this plus the symbol.
const LEAF: u16 = 0x8000;

/// No such child yet.
const NONE: u16 = 0x7fff;

/// What four more bits do at a node.
#[derive(Clone, Copy)]
struct Step {
    /// Node after them.
    next: u8,
    /// Byte that was completed.
    byte: u8,
    what: u8,
}

/// [`Step::what`]: a byte was completed.
const BYTE: u8 = 1;
/// [`Step::what`]: the string may end here; what is over is padding (less than eight ones).
const MAY_END: u8 = 2;
/// [`Step::what`]: the end-of-string symbol, which no string may hold.
const BAD: u8 = 4;

static STEPS: [[Step; 16]; NODES] = steps();

/// The code's tree. Canonical: codes of a length follow each other in the order of their symbols.
const fn tree() -> [[u16; 2]; NODES] {
    let mut tree = [[NONE; 2]; NODES];
    let mut nodes = 1;
    let mut code: u32 = 0;
    let mut length = 1;
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol <= END {
            if LENGTHS[symbol] == length {
                let mut node = 0;
                let mut bit = length;
                while bit > 0 {
                    bit -= 1;
                    let side = (code >> bit & 1) as usize;
                    if bit == 0 {
                        tree[node][side] = LEAF + symbol as u16;
                    } else {
                        if tree[node][side] == NONE {
                            tree[node][side] = nodes;
                            nodes += 1;
                        }
                        node = tree[node][side] as usize;
                    }
                }
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    tree
}

const fn steps() -> [[Step; 16]; NODES] {
    let tree = tree();
    let padding = padding(&tree);
    let mut steps = [[Step {
        next: 0,
        byte: 0,
        what: 0,
    }; 16]; NODES];
    let mut start = 0;
    while start < NODES {
        let mut bits = 0;
        while bits < 16 {
            let mut step = Step {
                next: 0,
                byte: 0,
                what: 0,
            };
            let mut node = start as u16;
            let mut bit = 4;
            while bit > 0 {
                bit -= 1;
                let child = tree[node as usize][bits >> bit & 1];
                if child == LEAF + END as u16 {
                    step.what |= BAD;
                    node = 0;
                } else if child >= LEAF {
                    step.what |= BYTE;
                    step.byte = (child - LEAF) as u8;
                    node = 0;
                } else {
                    node = child;
                }
            }
            step.next = node as u8;
            if padding[node as usize] {
                step.what |= MAY_END;
            }
            steps[start][bits] = step;
            bits += 1;
        }
        start += 1;
    }
    steps
}

/// Nodes that less than eight ones lead to.
const fn padding(tree: &[[u16; 2]; NODES]) -> [bool; NODES] {
    let mut padding = [false; NODES];
    let mut node = 0;
    let mut ones = 0;
    while ones < 8 {
        padding[node as usize] = true;
        node = tree[node as usize][1];
        ones += 1;
    }
    padding
}

/// Appends the decoded `bytes` to `out`; false if they are not valid.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let mut node = 0u8;
    let mut may_end = true;
    out.reserve(bytes.len() * 8 / 5 + 1);
    for &byte in bytes {
        for bits in [byte >> 4, byte & 15] {
            let step = STEPS[usize::from(node)][usize::from(bits)];
            if step.what & BAD != 0 {
                return false;
            }
            if step.what & BYTE != 0 {
                out.push(step.byte);
            }
            node = step.next;
            may_end = step.what & MAY_END != 0;
        }
    }
    may_end
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code of a symbol, found by walking the tree.
    fn encode(text: &[u8]) -> Vec<u8> {
        let tree = tree();
        let mut codes = vec![(0u32, 0u8); 257];
        let mut open = vec![(0usize, 0u32, 0u8)];
        while let Some((node, code, length)) = open.pop() {
            for (side, child) in (0u32..).zip(tree[node]) {
                let code = code << 1 | side;
                match child {
                    NONE => panic!("the code is not complete"),
                    leaf if leaf >= LEAF => codes[usize::from(leaf - LEAF)] = (code, length + 1),
                    node => open.push((usize::from(node), code, length + 1)),
                }
            }
        }
        let mut bits = String::new();
        for &byte in text {
            let (code, length) = codes[usize::from(byte)];
            bits += &format!("{code:0width$b}", width = usize::from(length));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        bits.as_bytes()
            .chunks(8)
            .map(|bits| u8::from_str_radix(std::str::from_utf8(bits).unwrap(), 2).unwrap())
            .collect()
    }

    #[test]
    fn every_byte_round_trips() {
        let text: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        let mut out = Vec::new();
        assert!(decode(&encode(&text), &mut out));
        assert_eq!(out, text);
    }

    #[test]
    fn codes_are_those_of_the_rfc() {
        // Some rows of appendix B: (byte, code, bits).
        for (byte, code, bits) in [
            (b'0', 0u32, 5u32),
            (b'a', 0x3, 5),
            (b'~', 0x1ffd, 13),
            (0, 0x1ff8, 13),
            (10, 0x3ffffffc, 30),
            (249, 0xffffffe, 28),
            (255, 0x3ffffee, 26),
        ] {
            let padded = (u64::from(code) << (40 - bits)) | ((1 << (40 - bits)) - 1);
            let bytes = &padded.to_be_bytes()[3..][..bits.div_ceil(8) as usize];
            let mut out = Vec::new();
            assert!(decode(bytes, &mut out), "byte {byte}");
            assert_eq!(out, [byte]);
        }
    }

    #[test]
    fn what_is_not_valid() {
        let check = |bytes: &[u8], expected| {
            assert_eq!(decode(bytes, &mut Vec::new()), expected, "{bytes:x?}");
        };
        check(b"", true);
        check(&[0x07], true);
        // Padding of zeros; a whole byte of padding; the end-of-string symbol.
        check(&[0x00], false);
        check(&[0x07, 0xff], false);
        check(&[0xff], false);
        check(&[0xff, 0xff, 0xff, 0xff], false);
    }
}
