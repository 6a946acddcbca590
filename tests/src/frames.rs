//! HTTP/2 frames, as a test writes them itself, and what an agent adds to them.

/// Types of frames.
#[allow(missing_docs, reason = "the names are those of RFC 9113")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
#[allow(missing_docs, reason = "the names are those of RFC 9113")]
pub mod flag {
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// What a client's side of a connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's header.
const HEADER: usize = 9;
/// What the added field begins with, and its bytes.
const FIELD: &[u8] = b"\0\x0btraceparent\x37";
const FIELD_BYTES: usize = 69;

/// Appends a frame.
pub fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a frame's length");
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Appends a literal that is not in the Huffman code: `first` says with or without indexing.
pub fn literal(block: &mut Vec<u8>, first: u8, name: &str, value: &str) {
    block.push(first);
    string(block, name.as_bytes());
    string(block, value.as_bytes());
}

/// Appends a string with its length.
pub fn string(block: &mut Vec<u8>, text: &[u8]) {
    let length = text.len();
    if length < 127 {
        block.push(length as u8);
    } else {
        let mut rest = length - 127;
        block.push(127);
        while rest >= 128 {
            block.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(text);
}

/// One frame of some bytes, if it is whole.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// One of [`kind`].
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// 0 for the connection.
    pub stream: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The first frame, and what follows.
pub fn first(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let header = bytes.get(..HEADER)?;
    let length =
        usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
    let payload = bytes.get(HEADER..HEADER + length)?;
    let frame = Frame {
        kind: header[3],
        flags: header[4],
        stream: u32::from_be_bytes([header[5], header[6], header[7], header[8]]),
        payload,
    };
    Some((frame, &bytes[HEADER + length..]))
}

/// Takes the added fields out of what a client's side of a connection sent: the bytes without them, and the streams
/// with their values. What is cut at the end stays as it is.
pub fn without_fields(arrived: &[u8]) -> (Vec<u8>, Vec<(u32, String)>) {
    let (mut bytes, mut fields) = (Vec::with_capacity(arrived.len()), Vec::new());
    let Some(mut rest) = arrived.strip_prefix(PREFACE) else {
        return (arrived.to_vec(), fields);
    };
    bytes.extend_from_slice(PREFACE);
    while let Some((found, next)) = first(rest) {
        let payload = found.payload;
        let padding = match found.flags & flag::PADDED != 0 {
            true => payload.first().map_or(0, |length| usize::from(*length)),
            false => 0,
        };
        let end = payload.len().saturating_sub(padding);
        let begin = end.saturating_sub(FIELD_BYTES);
        if found.kind == kind::HEADERS && payload[begin..end].starts_with(FIELD) {
            let value = &payload[begin + FIELD.len()..end];
            let value = String::from_utf8_lossy(value).into_owned();
            fields.push((found.stream, value));
            let own = [&payload[..begin], &payload[end..]].concat();
            frame(&mut bytes, found.kind, found.flags, found.stream, &own);
        } else {
            bytes.extend_from_slice(&rest[..rest.len() - next.len()]);
        }
        rest = next;
    }
    bytes.extend_from_slice(rest);
    (bytes, fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guarantees: the field, and nothing else, is taken out, before padding too.
    #[test]
    fn fields_are_found() {
        let field = [
            FIELD,
            b"00-00000000000000010000000000000002-0000000000000003-03",
        ]
        .concat();
        assert_eq!(field.len(), FIELD_BYTES);
        let padded = |block: &[u8]| [&[3][..], block, &[0; 3]].concat();
        for pads in [false, true] {
            let mut sides = [PREFACE.to_vec(), PREFACE.to_vec()];
            for (side, added) in sides.iter_mut().zip([&[][..], &field]) {
                frame(side, kind::SETTINGS, 0, 0, &[]);
                let block = [&[0x82][..], added].concat();
                let (block, flags) = match pads {
                    true => (padded(&block), flag::END_HEADERS | flag::PADDED),
                    false => (block, flag::END_HEADERS),
                };
                frame(side, kind::HEADERS, flags, 5, &block);
                frame(side, kind::DATA, 1, 5, b"data");
                side.extend_from_slice(b"\0\0\x09cut");
            }
            let [sent, arrived] = sides;
            let (rest, fields) = without_fields(&arrived);
            assert_eq!(rest, sent);
            assert_eq!(fields.len(), 1);
            assert_eq!(fields[0].0, 5);
            assert!(without_fields(&sent).1.is_empty());
        }
    }
}
