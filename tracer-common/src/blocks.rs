//! Header blocks of requests that come in over HTTP/2: which trace they carry.
//!
//! In: the header frames of every window of a connection's bytes, in order. Out: for each block its stream, and the
//! context in it. A field is read only as this agent writes it (nothing in the Huffman code, not to be indexed), and where
//! one window has all of it. Of a block with any other one the context is not known; one that is to be indexed may be
//! named by its index from then on: nothing is said of that connection any more, nor when a block makes no sense.
//!
//! Blocks may be cut anywhere, by windows and CONTINUATION frames. All that is known is kept in one place in memory,
//! which in the kernel is that of a map: see [`crate::frame::Fields`] for why.

use crate::context::{self, incoming as known};
use crate::frame::Window;
use crate::hpack::{self, phase};
use crate::http2::{CONTINUATION, HEADERS, flag};

/// The field as it is written, from its name's length on: the name, and a value of 55 bytes with its length.
const NAME: u32 = 12;
const FIELD: u32 = NAME + 56;
/// Bytes that a step may look at.
const AHEAD: u32 = 8;

/// What is known of the blocks of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The caller's: which connection this is.
    pub connection: u64,
    /// The caller's: position of the first byte that was not gone over.
    pub position: u64,
    /// Halves of the trace id in the block, if `state` says so.
    pub trace: [u64; 2],
    /// Bytes before `at` that wait for those that come next.
    carry: u64,
    /// How many.
    carried: u32,
    /// `hpack::phase`.
    phase: u32,
    /// Offset in the window.
    at: u32,
    /// Where this part of the block ends; it may be behind the window.
    end: u32,
    /// 1 from a block's first frame to its end.
    inside: u32,
    /// 1 if no other part follows.
    is_last: u32,
    /// Bytes to be passed over.
    skip: u32,
    /// Of the block.
    pub stream: u32,
    /// Newest one whose request was seen.
    pub newest: u32,
    /// First byte of the field.
    first: u32,
    /// `context::incoming` of the block: `ABSENT`, `W3C` or `OTHER`.
    pub state: u32,
    /// Flags of `traceparent`.
    pub flags: u32,
    /// Frames of the window that were begun.
    frame: u32,
    reserved: u32,
}

impl Blocks {
    /// Of a connection that begins.
    pub const fn new(connection: u64) -> Self {
        Blocks {
            connection,
            position: 0,
            trace: [0; 2],
            carry: 0,
            carried: 0,
            phase: phase::FIELD,
            at: 0,
            end: 0,
            inside: 0,
            is_last: 0,
            skip: 0,
            stream: 0,
            newest: 0,
            first: 0,
            state: known::ABSENT,
            flags: 0,
            frame: 0,
            reserved: 0,
        }
    }
}

/// A frame that says something of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Stream.
    pub stream: u32,
    /// Type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Offset of its payload in the window.
    pub at: u32,
    /// Bytes of payload; they may reach behind the window.
    pub length: u32,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more.
    GoesOn,
    /// A block ended: `stream`, `state`, `trace` and `flags` are those of its request.
    Ended,
    /// The window was gone over.
    Done,
    /// Nothing can be said of this connection any more.
    Lost,
}

/// A window begins.
///
/// # Safety
/// `place` is live, and nobody else's until the window was gone over.
#[inline(always)]
pub unsafe fn begin(place: *mut Blocks) {
    // SAFETY: as the caller says.
    unsafe {
        (&raw mut (*place).frame).write_volatile(0);
        (&raw mut (*place).at).write_volatile(0);
    }
}

/// Makes a step over the first `limit` bytes of the window; `frame` gives the frames in it, by their index.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
pub unsafe fn step(
    window: &impl Window,
    limit: u32,
    place: *mut Blocks,
    frame: impl Fn(u32) -> Option<Frame>,
) -> Progress {
    // SAFETY: as the caller says, here and below.
    let now = unsafe { place.read_volatile() };
    let is_whole = now.end <= limit;
    let is_last = is_whole && now.is_last != 0;
    let end = if is_whole { now.end } else { limit };
    if now.inside != 0 && (now.at < end || is_last) {
        // SAFETY: as above.
        return unsafe { part(window, now, place, end, is_last) };
    }
    if is_whole && let Some(frame) = frame(now.frame) {
        // SAFETY: as above.
        return unsafe { next(window, limit, now, place, frame) };
    }
    // What is left goes on behind the window.
    // SAFETY: as above.
    unsafe { (&raw mut (*place).end).write_volatile(now.end.saturating_sub(limit)) };
    Progress::Done
}

/// The next frame of the window.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
unsafe fn next(
    window: &impl Window,
    limit: u32,
    now: Blocks,
    place: *mut Blocks,
    frame: Frame,
) -> Progress {
    let inside = now.inside != 0;
    let is_head = frame.kind == HEADERS;
    if is_head == inside || (inside && frame.kind != CONTINUATION) {
        let passes = !inside && frame.kind != CONTINUATION;
        // SAFETY: as the caller says, here and below.
        unsafe { (&raw mut (*place).frame).write_volatile(now.frame + 1) };
        return if passes {
            Progress::GoesOn
        } else {
            Progress::Lost
        };
    }
    let Frame {
        mut at,
        length,
        flags,
        ..
    } = frame;
    let mut end = at.wrapping_add(length);
    let mut skip = 0;
    if is_head && flags & flag::PADDED != 0 {
        let padding = window.byte(at) as u32;
        // How many is cut off, or more than all.
        if at >= limit || padding >= length {
            return Progress::Lost;
        }
        at += 1;
        end = end.wrapping_sub(padding);
    }
    if is_head && flags & flag::PRIORITY != 0 {
        skip = 5;
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*place).frame).write_volatile(now.frame + 1);
        (&raw mut (*place).at).write_volatile(at);
        (&raw mut (*place).end).write_volatile(end);
        let is_last = (flags & flag::END_HEADERS != 0) as u32;
        (&raw mut (*place).is_last).write_volatile(is_last);
        if is_head {
            (&raw mut (*place).inside).write_volatile(1);
            (&raw mut (*place).stream).write_volatile(frame.stream);
            (&raw mut (*place).skip).write_volatile(skip);
            (&raw mut (*place).carried).write_volatile(0);
            (&raw mut (*place).phase).write_volatile(phase::FIELD);
            (&raw mut (*place).state).write_volatile(known::ABSENT);
        }
    }
    Progress::GoesOn
}

/// Goes over one part of a field, or keeps what is there of it. `is_last`: behind `end` nothing of the block comes.
///
/// # Safety
/// As for [`begin`].
#[inline(always)]
unsafe fn part(
    window: &impl Window,
    now: Blocks,
    place: *mut Blocks,
    end: u32,
    is_last: bool,
) -> Progress {
    let here = end.saturating_sub(now.at);
    if now.skip > 0 {
        let take = if now.skip < here { now.skip } else { here };
        // SAFETY: as the caller says, here and below.
        unsafe {
            (&raw mut (*place).skip).write_volatile(now.skip - take);
            (&raw mut (*place).at).write_volatile(now.at + take);
        }
        // Behind the end of the block nothing is left to be passed over.
        return if take == 0 {
            Progress::Lost
        } else {
            Progress::GoesOn
        };
    }
    let carried = now.carried & (AHEAD - 1);
    if here + carried == 0 {
        if now.phase != phase::FIELD {
            return Progress::Lost;
        }
        // SAFETY: as above.
        unsafe { (&raw mut (*place).inside).write_volatile(0) };
        return Progress::Ended;
    }
    let mut word = window.word(now.at);
    if here < AHEAD {
        word &= (1 << (8 * (here & 7))) - 1;
    }
    word = word << (8 * carried) | now.carry & ((1 << (8 * carried)) - 1);
    if here + carried < AHEAD && !is_last {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*place).carry).write_volatile(word);
            (&raw mut (*place).carried).write_volatile(carried + here);
            (&raw mut (*place).at).write_volatile(end);
        }
        return Progress::GoesOn;
    }
    let mut step = hpack::step(now.phase, word);
    if step.phase == phase::BROKEN {
        return Progress::Lost;
    }
    if step.phase == phase::CONTEXT {
        let context = context::value(window, now.at + NAME + 1);
        let is_ours = carried == 0
            && here >= FIELD
            && window.word(now.at) == u64::from_le_bytes(*b"\x0btracepa")
            && window.word(now.at + 8) << 24 == u64::from_le_bytes(*b"\0\0\0rent\x37")
            && now.state == known::ABSENT
            && context.state == known::W3C;
        let name = word as u32 & 0x7f;
        if now.first & 0xef != 0 || name == 0x7f {
            return Progress::Lost;
        }
        // Nothing of a field that is not indexed is said later: what another one says is not known of this request
        // alone.
        let state = if is_ours { known::W3C } else { known::OTHER };
        // SAFETY: as above.
        unsafe {
            (&raw mut (*place).trace).write_volatile(context.trace);
            (&raw mut (*place).state).write_volatile(state);
            (&raw mut (*place).flags).write_volatile(context.flags);
        }
        (step.phase, step.length) = if is_ours {
            (phase::FIELD, FIELD)
        } else {
            (phase::VALUE, 1 + name)
        };
    }
    // SAFETY: as above.
    unsafe {
        if now.phase == phase::FIELD {
            (&raw mut (*place).first).write_volatile(word as u32 & 0xff);
        }
        (&raw mut (*place).phase).write_volatile(step.phase);
        if step.length < carried {
            // Nothing of the window was needed.
            (&raw mut (*place).carry).write_volatile(now.carry >> (8 * (step.length & 7)));
            (&raw mut (*place).carried).write_volatile(carried - step.length);
        } else {
            let ahead = step.length - carried;
            let take = if ahead < here { ahead } else { here };
            (&raw mut (*place).carried).write_volatile(0);
            (&raw mut (*place).at).write_volatile(now.at + take);
            (&raw mut (*place).skip).write_volatile(ahead - take);
        }
    }
    Progress::GoesOn
}

#[cfg(test)]
mod tests;
