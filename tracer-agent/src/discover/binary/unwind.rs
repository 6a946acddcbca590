//! Which function part holds an address, from the unwind table that stripping leaves in place.
//!
//! `.eh_frame_hdr` is a sorted table of part starts; the entry of `.eh_frame` it points to has the
//! length (Linux Standard Base, "Exception Frames"). Cold parts have entries of their own. Only the
//! encodings that linkers write are understood.

use std::ops::Range;

use super::BinaryError;
use super::elf::Elf;

const PCREL_SDATA4: u8 = 0x1b;
const UDATA4: u8 = 0x03;
const DATAREL_SDATA4: u8 = 0x3b;
const ENTRY: u64 = 8;

/// The part that holds an address; `None` where the table does not know.
pub fn covering(elf: &Elf<'_>, address: u64) -> Result<Option<Range<u64>>, BinaryError> {
    let Some(section) = elf.section(".eh_frame_hdr") else {
        return Ok(None);
    };
    let (base, (at, size)) = (section.address, section.range);
    let header: [u8; 12] = elf.bytes.array(at)?;
    let [
        1,
        PCREL_SDATA4,
        UDATA4,
        DATAREL_SDATA4,
        _,
        _,
        _,
        _,
        count @ ..,
    ] = header
    else {
        return Ok(None);
    };
    let count = u64::from(u32::from_le_bytes(count));
    if count > size.saturating_sub(12) / ENTRY {
        return Err(BinaryError::Malformed("unwind table"));
    }
    let entry = |index: u64| -> Result<(u64, u64), BinaryError> {
        let raw = elf.bytes.u64(at + 12 + index * ENTRY)?;
        let (start, frame) = (raw as u32 as i32, (raw >> 32) as i32);
        Ok((
            base.wrapping_add_signed(i64::from(start)),
            base.wrapping_add_signed(i64::from(frame)),
        ))
    };
    // The last entry that starts at or before the address.
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        match entry(middle)?.0 <= address {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    let Some(index) = low.checked_sub(1) else {
        return Ok(None);
    };
    let (start, frame) = entry(index)?;
    let Some(length) = length(elf, frame, start)? else {
        return Ok(None);
    };
    let range = start..start.saturating_add(length);
    Ok(range.contains(&address).then_some(range))
}

/// Length of the part that the entry at `frame` describes, if it describes the part at `start`.
fn length(elf: &Elf<'_>, frame: u64, start: u64) -> Result<Option<u64>, BinaryError> {
    let malformed = BinaryError::Malformed("unwind entry");
    let at = elf.offset(frame).ok_or(malformed)?;
    // Length, distance to the common entry, start relative to its own place, length of the part.
    let raw: [u8; 16] = elf.bytes.array(at)?;
    let word = |index: usize| {
        let bytes = raw.get(index * 4..index * 4 + 4)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    };
    let (Some(size), Some(common), Some(relative), Some(length)) =
        (word(0), word(1), word(2), word(3))
    else {
        return Ok(None);
    };
    let written = (frame + 8).wrapping_add_signed(i64::from(relative as i32));
    let known = size != u32::MAX
        && written == start
        && encoding(elf, (at + 4).checked_sub(u64::from(common)))? == Some(PCREL_SDATA4);
    Ok(known.then_some(u64::from(length)))
}

/// Encoding of addresses that a common entry prescribes; `None` if it is not of the usual kind.
fn encoding(elf: &Elf<'_>, at: Option<u64>) -> Result<Option<u8>, BinaryError> {
    let Some(at) = at else { return Ok(None) };
    let size = elf.bytes.u32(at)?;
    if !(12..=4096).contains(&size) {
        return Ok(None);
    }
    let raw = elf.bytes.read(at + 8, u64::from(size) - 4)?;
    Ok(encoding_of(&raw))
}

/// After the id: version, augmentation text, code and data alignment, return register, then one byte
/// or more for each letter of the augmentation.
fn encoding_of(raw: &[u8]) -> Option<u8> {
    let (1, rest) = raw.split_first()? else {
        return None;
    };
    let end = memchr::memchr(0, rest)?;
    let (letters, rest) = (rest.get(..end)?, rest.get(end + 1..)?);
    let mut rest = rest;
    // Two LEB128 numbers, a register in one byte, the length of what follows.
    for _ in 0..2 {
        rest = after_leb(rest)?;
    }
    rest = after_leb(rest.get(1..)?)?;
    for letter in letters {
        match letter {
            b'z' | b'S' | b'B' | b'G' => {}
            b'R' => return rest.first().copied(),
            b'L' => rest = rest.get(1..)?,
            // A pointer in the encoding given by the byte before it.
            b'P' => match rest.first()? & 0x0f {
                0x0b | 0x03 => rest = rest.get(5..)?,
                0x00 | 0x04 | 0x0c => rest = rest.get(9..)?,
                _ => return None,
            },
            _ => return None,
        }
    }
    None
}

fn after_leb(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)?;
    bytes.get(end + 1..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn augmentations() {
        let common = |text: &str, data: &[u8]| {
            let mut raw = vec![1];
            raw.extend_from_slice(text.as_bytes());
            raw.extend_from_slice(&[0, 1, 0x78, 16, data.len() as u8]);
            raw.extend_from_slice(data);
            raw
        };
        for (text, data, expected) in [
            ("zR", &[0x1b][..], Some(0x1b)),
            ("zRS", &[0x1b], Some(0x1b)),
            ("zPLR", &[0x9b, 1, 2, 3, 4, 0x1b, 0x1b], Some(0x1b)),
            ("zLR", &[0x1b, 0x03], Some(0x03)),
            ("zP", &[0x9b, 1, 2, 3, 4], None),
            ("eh", &[0x1b], None),
            ("", &[], None),
        ] {
            let raw = common(text, data);
            assert_eq!(encoding_of(&raw), expected, "{text}");
            for end in 0..raw.len() {
                let cut = encoding_of(&raw[..end]);
                assert!(cut.is_none() || cut == expected, "{text} cut at {end}");
            }
        }
    }
}
