//! The file format of the spool: a segment is a header and records, written once from front to end.
//!
//! ```text
//! segment:  b"TASPOOL1"  record*
//! record:   length u32 | spans u32 | crc32(payload) u32 | crc32(the 12 bytes before) u32 | payload
//! ```
//!
//! Little endian. The payload is an OTLP `ExportTraceServiceRequest` in protobuf. The header has a
//! checksum of its own, so that a damaged payload can be stepped over and its spans counted; behind
//! a damaged header nothing can be found any more.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

/// First bytes of every segment.
pub const MAGIC: [u8; 8] = *b"TASPOOL1";
/// Bytes of a record before its payload.
pub const HEADER: u64 = 16;
/// No record is longer: a message is 4 MiB at most, and what claims more is damaged.
pub const MAX_PAYLOAD: u32 = 64 * 1024 * 1024;

/// What a record says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the payload.
    pub length: u32,
    /// Spans in it.
    pub spans: u32,
    crc: u32,
}

/// What stands at a place of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole record.
    Record(Head, Bytes),
    /// A record whose payload is damaged.
    Damaged(Head),
    /// A record whose payload is cut off by the end of the file.
    Torn(Head),
    /// The end.
    End,
    /// Bytes that are no record.
    Lost,
}

/// A record as it is written.
pub fn record(spans: u32, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(payload.len()).ok()?;
    if length > MAX_PAYLOAD {
        return None;
    }
    let mut bytes = Vec::with_capacity(payload.len() + 16);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&spans.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let own = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&own.to_le_bytes());
    bytes.extend_from_slice(payload);
    Some(bytes)
}

impl Head {
    /// Bytes of the whole record.
    pub fn size(&self) -> u64 {
        HEADER + u64::from(self.length)
    }

    fn parse(bytes: &[u8; 16]) -> Option<Self> {
        let (fields, own) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(fields) != u32::from_le_bytes(*own) {
            return None;
        }
        let mut words = fields
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word));
        let head = Self {
            length: words.next()?,
            spans: words.next()?,
            crc: words.next()?,
        };
        (head.length <= MAX_PAYLOAD).then_some(head)
    }
}

/// Reads what stands at `offset` of a file of `size` bytes.
pub fn read(file: &File, size: u64, offset: u64) -> io::Result<Found> {
    let left = size.saturating_sub(offset);
    if left == 0 {
        return Ok(Found::End);
    }
    if left < HEADER {
        return Ok(Found::Lost);
    }
    let mut header = [0; HEADER as usize];
    file.read_exact_at(&mut header, offset)?;
    let Some(head) = Head::parse(&header) else {
        return Ok(Found::Lost);
    };
    if left < head.size() {
        return Ok(Found::Torn(head));
    }
    let mut payload = vec![0; usize::try_from(head.length).unwrap_or_default()];
    file.read_exact_at(&mut payload, offset + HEADER)?;
    if crc32fast::hash(&payload) != head.crc {
        return Ok(Found::Damaged(head));
    }
    Ok(Found::Record(head, payload.into()))
}

/// Whether the file begins as a segment does.
pub fn has_magic(file: &File, size: u64) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    if size < MAGIC.len() as u64 {
        return Ok(false);
    }
    file.read_exact_at(&mut magic, 0)?;
    Ok(magic == MAGIC)
}
