//! Frames of HTTP/2 that say something of streams.
//!
//! In: headers of frames, as the walk over a window meets them. Out: those of them that say who is read from, which requests are
//! begun and which streams end, for a loop of their own (`stream.rs`).

use tracer_common::abi::{direction, role};
use tracer_common::http2::{CONTINUATION, DATA, FrameHeader, HEADERS};

use crate::connection::Connection;
use crate::memory::is_negative;

/// Types of frames, and a flag of them (RFC 9113 section 6).
pub(super) const RESET: u8 = 3;
pub(super) const END_STREAM: u8 = 1;

/// Frames of one window that are noted; the walk over the window rests then.
pub const NOTED: u32 = 64;

/// Frames that say something of a stream, in a loop of its own: in that over all frames the verifier would go over
/// what is done with them as often as there are ways through it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Noted {
    pub count: u32,
    /// Stream of the last one.
    pub last: u32,
    /// Which ones are: [`wanted`].
    pub wanted: u32,
    /// 1 if header blocks are to be looked at in any case.
    pub looks: u32,
    /// With so many the walk rests.
    pub most: u32,
    /// Of the walk: last byte of the header that it is at.
    pub ninth: u32,
    /// Stream, type and flags.
    pub frames: [u64; NOTED as usize],
    /// Offset of the payload in the window, and its length.
    pub places: [u64; NOTED as usize],
}

/// Bits of [`Noted::wanted`].
pub mod wanted {
    use super::{CONTINUATION, DATA, HEADERS, RESET};

    /// DATA of another stream than the frame before.
    pub const BODIES: u32 = 1;
    /// Ends of streams.
    pub const ENDS: u32 = 2;
    /// HEADERS of another stream than the frame before.
    pub const HEADS: u32 = 4;
    /// All parts of header blocks.
    pub const BLOCKS: u32 = 8;
    /// Streams that are given up: always.
    pub const RESETS: u32 = 16;

    /// What there is to want of each type of frame, [`WIDTH`] bits for each from type 0 on.
    pub const OF_TYPES: u64 = of(DATA, BODIES | ENDS)
        | of(HEADERS, HEADS | ENDS | BLOCKS)
        | of(RESET, RESETS)
        | of(CONTINUATION, BLOCKS);
    /// Bits for a type.
    pub const WIDTH: u32 = 5;
    /// This type and all behind it have none.
    pub const BEHIND: u8 = 12;

    const fn of(kind: u8, bits: u32) -> u64 {
        assert!(kind < BEHIND && bits < 1 << WIDTH);
        (bits as u64) << (kind as u32 * WIDTH)
    }
}

/// What is the case with a frame, of [`wanted`]. No branches, which would be ways of their own through the walk over the
/// frames: to some verifiers for many steps.
#[inline(always)]
fn happens(last: u32, id: u32, flags: u8) -> u32 {
    let is_other = is_negative(-((last ^ id) as i64));
    let ends = (flags & END_STREAM) as u32;
    (is_other * (wanted::BODIES | wanted::HEADS))
        | (ends * wanted::ENDS)
        | wanted::BLOCKS
        | wanted::RESETS
}

/// What there is to want of a type of frames, of [`wanted`]. No branches, as above.
#[inline(always)]
fn meant(kind: u8) -> u32 {
    let known = is_negative(kind as i64 - wanted::BEHIND as i64);
    let bits = wanted::OF_TYPES.wrapping_shr(kind as u32 * wanted::WIDTH) as u32;
    bits & ((1 << wanted::WIDTH) - 1) & known.wrapping_neg()
}

impl Noted {
    /// What is wanted of frames in this direction.
    #[inline(always)]
    pub fn wanted(connection: &Connection, direction: u8) -> u32 {
        if direction == direction::READ {
            return wanted::RESETS | wanted::HEADS | wanted::BODIES;
        }
        wanted::RESETS
            | match connection.role {
                role::CLIENT => wanted::HEADS,
                role::SERVER => wanted::ENDS,
                _ => wanted::HEADS | wanted::ENDS,
            }
    }

    /// A frame begins; its payload is at this offset. Frames say who is read from, which requests are begun and which
    /// streams end; as few as possible are noted, since each costs steps of other programs.
    ///
    /// # Safety
    /// `this` is a place of map memory that is nobody else's meanwhile.
    #[inline(always)]
    pub unsafe fn add(this: *mut Noted, header: &FrameHeader, at: u32) {
        let id = header.stream & (u32::MAX >> 1);
        // SAFETY: as the caller says; the masked index is within the array.
        unsafe {
            let wanted = (&raw const (*this).wanted).read_volatile();
            let last = (&raw const (*this).last).read_volatile();
            let says = wanted & happens(last, id, header.flags) & meant(header.kind);
            if id == 0 || says == 0 {
                return;
            }
            let count = (&raw const (*this).count).read_volatile();
            let frames = (&raw mut (*this).frames).cast::<u64>();
            let frame = (id as u64) << 16 | (header.kind as u64) << 8 | header.flags as u64;
            let places = (&raw mut (*this).places).cast::<u64>();
            let index = (count & (NOTED - 1)) as usize;
            frames.add(index).write_volatile(frame);
            let place = (header.length as u64) << 32 | at as u64;
            places.add(index).write_volatile(place);
            (&raw mut (*this).last).write_volatile(id);
            (&raw mut (*this).count).write_volatile(count.wrapping_add(1));
        }
    }

    /// True with more of them than there is room for.
    #[inline(always)]
    pub fn too_many(&self) -> bool {
        // SAFETY: made from a reference.
        unsafe { (&raw const self.count).read_volatile() > NOTED }
    }

    /// Whether anything was noted, and whether header blocks are to be looked at.
    #[inline(always)]
    pub fn says(&self) -> (bool, bool) {
        // SAFETY: made from references.
        let [looks, wanted, count] = unsafe {
            [
                (&raw const self.looks).read_volatile(),
                (&raw const self.wanted).read_volatile(),
                (&raw const self.count).read_volatile(),
            ]
        };
        let blocks = wanted & wanted::BLOCKS != 0 && count != 0;
        (count != 0, looks != 0 || blocks)
    }

    /// One of them: stream, type and flags; offset and length of its payload.
    ///
    /// # Safety
    /// As of [`Noted::add`].
    #[inline(always)]
    pub unsafe fn at(this: *const Noted, index: u32) -> (u64, u64) {
        let index = (index & (NOTED - 1)) as usize;
        // SAFETY: as the caller says; the masked index is within the arrays.
        unsafe {
            let frames = (&raw const (*this).frames).cast::<u64>();
            let places = (&raw const (*this).places).cast::<u64>();
            (
                frames.add(index).read_volatile(),
                places.add(index).read_volatile(),
            )
        }
    }

    /// True with as many as go into one run.
    ///
    /// # Safety
    /// As of [`Noted::add`].
    #[inline(always)]
    pub unsafe fn is_full(this: *const Noted) -> bool {
        // SAFETY: as the caller says.
        unsafe { Noted::count(this) >= (&raw const (*this).most).read_volatile() }
    }

    /// How many there are.
    ///
    /// # Safety
    /// As of [`Noted::add`].
    #[inline(always)]
    pub unsafe fn count(this: *const Noted) -> u32 {
        // SAFETY: as the caller says.
        unsafe { (&raw const (*this).count).read_volatile() }
    }
}
