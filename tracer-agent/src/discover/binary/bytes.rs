//! Ranged, bounded reads of a file that may lie about everything.
//!
//! Files are read and not mapped: a mapped file that is truncated under the reader is a signal.

use std::cell::Cell;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use super::BinaryError;

/// Largest piece that is held at once.
pub const PIECE_MAX: u64 = 4 * 1024 * 1024;
/// Step of scans, and how far two steps overlap: longer names are not found.
const STEP: u64 = 1024 * 1024;
const OVERLAP: u64 = 1024;
/// Bytes read for one file, all passes together. The largest real programs need about 200 MB.
const TOTAL_MAX: u64 = 1024 * 1024 * 1024;

/// Something with bytes at positions.
pub trait ReadAt {
    /// Fills the buffer with the bytes at this position, or fails.
    fn fill(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()>;
}

impl ReadAt for File {
    fn fill(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        self.read_exact_at(buffer, at)
    }
}

impl ReadAt for &[u8] {
    fn fill(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        let bytes = usize::try_from(at)
            .ok()
            .and_then(|at| self.get(at..)?.get(..buffer.len()))
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn fill(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        ReadAt::fill(&self.as_slice(), buffer, at)
    }
}

/// A file of known length, and how much of it may still be read.
pub struct Bytes<'a> {
    source: &'a dyn ReadAt,
    len: u64,
    left: Cell<u64>,
}

impl<'a> Bytes<'a> {
    /// `len` is that of the file when it was opened.
    pub fn new(source: &'a dyn ReadAt, len: u64) -> Self {
        let left = Cell::new(TOTAL_MAX);
        Bytes { source, len, left }
    }

    /// Bytes of the file when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Exactly `size` bytes.
    pub fn read(&self, at: u64, size: u64) -> Result<Vec<u8>, BinaryError> {
        if size > PIECE_MAX {
            return Err(BinaryError::TooLarge);
        }
        if at.checked_add(size).is_none_or(|end| end > self.len) {
            return Err(BinaryError::Truncated);
        }
        let left = self.left.get().checked_sub(size);
        self.left.set(left.ok_or(BinaryError::TooLarge)?);
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| BinaryError::TooLarge)?];
        self.source
            .fill(&mut bytes, at)
            .map_err(BinaryError::Read)?;
        Ok(bytes)
    }

    /// `N` bytes.
    pub fn array<const N: usize>(&self, at: u64) -> Result<[u8; N], BinaryError> {
        let bytes = self.read(at, N as u64)?;
        bytes.try_into().map_err(|_| BinaryError::Truncated)
    }

    /// A little-endian word.
    pub fn u32(&self, at: u64) -> Result<u32, BinaryError> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// A little-endian double word.
    pub fn u64(&self, at: u64) -> Result<u64, BinaryError> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// Shows all of a range in pieces that are multiples of `unit` bytes long.
    pub fn records(
        &self,
        (at, size): (u64, u64),
        unit: usize,
        mut see: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), BinaryError> {
        let unit_size = unit.max(1) as u64;
        let step = STEP / unit_size * unit_size;
        let size = size / unit_size * unit_size;
        let mut done = 0;
        while done < size {
            let piece = self.read(
                at.checked_add(done).ok_or(BinaryError::Truncated)?,
                step.min(size - done),
            )?;
            for (index, record) in piece.chunks_exact(unit.max(1)).enumerate() {
                if see(done / unit_size + index as u64, record).is_break() {
                    return Ok(());
                }
            }
            done += step;
        }
        Ok(())
    }

    /// Calls `see` with the position (in the range) of each occurrence of the needle and with what
    /// follows from there, up to [`OVERLAP`] bytes and cut at the range's end.
    pub fn search(
        &self,
        (at, size): (u64, u64),
        needle: &[u8],
        mut see: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), BinaryError> {
        let finder = memchr::memmem::Finder::new(needle);
        let mut done = 0;
        while done < size {
            let piece = self.read(
                at.checked_add(done).ok_or(BinaryError::Truncated)?,
                (STEP + OVERLAP).min(size - done),
            )?;
            for hit in finder.find_iter(&piece) {
                if hit as u64 >= STEP {
                    break;
                }
                let end = piece.len().min(hit + OVERLAP as usize);
                let tail = piece.get(hit..end).unwrap_or_default();
                if see(done + hit as u64, tail).is_break() {
                    return Ok(());
                }
            }
            done += STEP;
        }
        Ok(())
    }
}

/// Bytes up to the first NUL; `None` without one.
pub fn until_nul(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..memchr::memchr(0, bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_across_two_steps_is_found_once() {
        for position in [0, 5, STEP - 3, STEP - 1, STEP, STEP + 700, 2 * STEP - 1] {
            let mut data = vec![b'.'; 2 * STEP as usize + 100];
            let at = position as usize;
            data[at..at + 6].copy_from_slice(b"needle");
            let bytes = Bytes::new(&data, data.len() as u64);
            let mut found = Vec::new();
            bytes
                .search((0, data.len() as u64), b"needle", |at, tail| {
                    assert!(tail.starts_with(b"needle"));
                    found.push(at);
                    ControlFlow::Continue(())
                })
                .expect("readable");
            assert_eq!(found, [position]);
        }
    }

    #[test]
    fn records_come_whole_and_in_order() {
        let data: Vec<u8> = (0..3 * STEP as usize + 7)
            .map(|at| (at % 251) as u8)
            .collect();
        let bytes = Bytes::new(&data, data.len() as u64);
        let mut next = 0;
        bytes
            .records((0, data.len() as u64), 24, |index, record| {
                assert_eq!((index, record.len()), (next, 24));
                assert_eq!(record[0], ((index as usize * 24) % 251) as u8);
                next += 1;
                ControlFlow::Continue(())
            })
            .expect("readable");
        assert_eq!(next, data.len() as u64 / 24);
    }

    #[test]
    fn what_lies_outside_is_an_error() {
        let data = vec![1_u8, 2, 3];
        let bytes = Bytes::new(&data, 3);
        assert!(bytes.read(1, 2).is_ok());
        for (at, size) in [(1, 3), (4, 0), (u64::MAX, 2), (0, u64::MAX)] {
            assert!(bytes.read(at, size).is_err(), "{at} {size}");
        }
    }
}
