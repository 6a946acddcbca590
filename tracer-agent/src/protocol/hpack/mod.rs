//! HPACK (RFC 7541), also for those who came late.
//!
//! In: header blocks of one direction, in order. Out: their fields; a name or a value that refers
//! to an entry never seen is `None`, never that of another entry (`table` says why that is sure).
//!
//! A library was not taken because all of them treat a reference that they cannot resolve as the
//! end of the connection. Limits that the endpoints announced are not enforced: the endpoints do
//! that; here only memory and time are bounded. Decoding a byte costs constant time: entries are
//! lent, not copied.

#[cfg(test)]
pub(super) mod encoder;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

use table::{DEFAULT_LIMIT, MAX_LIMIT, Table};

/// A header field as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name; `None` if it refers to an entry that was not seen.
    pub name: Option<&'a [u8]>,
    /// Its value; `None` if it refers to an entry that was not seen.
    pub value: Option<&'a [u8]>,
    /// It must not be put into a table (RFC 7541, section 7.1.3): a secret, by its sender's word.
    pub never_indexed: bool,
}

/// Why a block cannot be decoded. Fields before the fault were decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It ends within a field.
    #[error("header block ends within a field")]
    Truncated,
    /// An integer of more than 32 bits.
    #[error("integer is too large")]
    Integer,
    /// Index 0, or one that no table has.
    #[error("index cannot exist")]
    Index,
    /// A string that is not valid in the Huffman code.
    #[error("invalid huffman code")]
    Huffman,
    /// A table size update behind a field.
    #[error("table size update is not at the beginning")]
    Update,
}

/// Capacity that the buffers of a decoder keep between blocks.
const KEPT_BUFFER: usize = 1024;

/// The decoder of one direction.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// For strings in the Huffman code.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// `from_start` if no block was missed.
    pub fn new(from_start: bool) -> Self {
        Decoder {
            // The size of a table that was there before is not known: keep what may be needed.
            table: Table::new(if from_start { DEFAULT_LIMIT } else { MAX_LIMIT }),
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// The receiver of these blocks allowed a table of so many bytes
    /// (`SETTINGS_HEADER_TABLE_SIZE`). The sender says in its blocks what it makes of that; entries
    /// are kept for the larger of both, for senders that forget to say it.
    pub fn allowed(&mut self, size: u32) {
        self.table.keep(size);
    }

    /// What the table's entries count (RFC 7541, section 4.1).
    #[cfg(test)]
    pub(in crate::protocol) fn size(&self) -> usize {
        self.table.sizes().1
    }

    /// Blocks may have been missed: what was seen before cannot be referred to any more.
    pub fn forget(&mut self) {
        self.table.forget();
    }

    /// Decodes a whole block and gives its fields in order. After an error the table is forgotten.
    pub fn decode(&mut self, block: &[u8], each: &mut dyn FnMut(Field<'_>)) -> Result<(), Error> {
        let result = self.fields(block, each);
        if result.is_err() {
            self.forget();
        }
        // One large string must not cost its memory for the rest of the connection.
        self.name.shrink_to(KEPT_BUFFER);
        self.value.shrink_to(KEPT_BUFFER);
        result
    }

    fn fields(&mut self, block: &[u8], each: &mut dyn FnMut(Field<'_>)) -> Result<(), Error> {
        let mut rest = block;
        let mut first = true;
        while let Some(&byte) = rest.first() {
            if byte & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                let (name, value) = self.table.pair(index).ok_or(Error::Index)?;
                each(Field {
                    name,
                    value,
                    never_indexed: false,
                });
            } else if byte & 0xe0 == 0x20 {
                let limit = integer(&mut rest, 5)?;
                if !first {
                    return Err(Error::Update);
                }
                self.table.update(limit);
                continue;
            } else {
                self.literal(&mut rest, byte, each)?;
            }
            first = false;
        }
        Ok(())
    }

    fn literal(
        &mut self,
        rest: &mut &[u8],
        byte: u8,
        each: &mut dyn FnMut(Field<'_>),
    ) -> Result<(), Error> {
        let insert = byte & 0x40 != 0;
        let never_indexed = byte & 0xf0 == 0x10;
        let index = integer(rest, if insert { 6 } else { 4 })?;
        if index == 0 {
            let name = string(rest, &mut self.name)?;
            let value = string(rest, &mut self.value)?;
            each(Field {
                name: Some(name),
                value: Some(value),
                never_indexed,
            });
            if insert {
                self.table.insert(Some(name), value);
            }
            return Ok(());
        }
        let (name, _) = self.table.pair(index).ok_or(Error::Index)?;
        let value = string(rest, &mut self.value)?;
        each(Field {
            name,
            value: Some(value),
            never_indexed,
        });
        if insert {
            self.table.insert_named(index, value);
        }
        Ok(())
    }
}

/// An integer with a prefix of so many bits (RFC 7541, section 5.1).
fn integer(rest: &mut &[u8], prefix: u8) -> Result<u32, Error> {
    let mask = u8::MAX >> (8 - prefix);
    let (&first, mut bytes) = rest.split_first().ok_or(Error::Truncated)?;
    let mut value = u32::from(first & mask);
    if first & mask == mask {
        let mut shift = 0;
        loop {
            let (&byte, behind) = bytes.split_first().ok_or(Error::Truncated)?;
            bytes = behind;
            // Four bytes more say all that anybody can mean.
            if shift > 21 {
                return Err(Error::Integer);
            }
            value = value
                .checked_add(u32::from(byte & 0x7f) << shift)
                .ok_or(Error::Integer)?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = bytes;
    Ok(value)
}

/// A string (RFC 7541, section 5.2), decoded into the buffer if need be.
fn string<'b, 'a: 'b>(rest: &mut &'a [u8], buffer: &'b mut Vec<u8>) -> Result<&'b [u8], Error> {
    let huffman = rest.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = usize::try_from(integer(rest, 7)?).map_err(|_| Error::Integer)?;
    let (text, behind) = rest.split_at_checked(length).ok_or(Error::Truncated)?;
    *rest = behind;
    if !huffman {
        return Ok(text);
    }
    buffer.clear();
    if huffman::decode(text, buffer) {
        Ok(buffer)
    } else {
        Err(Error::Huffman)
    }
}
