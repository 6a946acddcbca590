//! Goes over HTTP/2 frames in the window: frame headers and all payload but DATA are shipped.
//!
//! Nothing but lengths and types is read. A header that makes no sense means that the alignment is
//! lost: the bytes are then shipped as they are (up to the budget), and the next call that begins
//! like a frame is taken for one.

use aya_ebpf::macros::{tracepoint, uprobe};
use aya_ebpf::programs::{ProbeContext, TracePointContext};
use tracer_common::frame::Window;
use tracer_common::http2::{DATA, FrameHeader, HEADER, LONGEST, PREFACE};
use tracer_common::limits::WINDOW;

use super::deliver::{Bytes, finish, go_on, next_part};
use super::io::side;
use super::window::{at_most, fill};
use crate::cause::{self, Noted};
use crate::connection::{self, Connection, Direction, mode, verdict};
use crate::maps::{BLOCKS_PROGRAM, Call, FRAMES_PROGRAM, STREAMS_PROGRAM, Scratch, Walk};
use crate::memory::Forgotten;
use crate::propagate::blocks;
use crate::way::{Syscalls, Uprobes, Way};

/// Steps over frames in one run: a frame header, or a payload, or a byte of a cut header.
const STEPS: u32 = 200;
/// Tail calls for one call after which frames are gone over alone and no other program looks at what they say, except
/// where nothing is behind them: the kernel allows 33.
pub const NOTING: u32 = 20;

/// [`Walk::phase`]: this is no frame header. In map memory like the rest: as a value in a register it
/// would double the states that verifiers before Linux 6.4 go over in every step.
const LOST: u32 = u32::MAX;

/// A header that has not been read to its end.
const NO_FRAME: FrameHeader = FrameHeader {
    length: u32::MAX,
    kind: 0,
    flags: 0,
    stream: 0,
};

/// Reached by tail call only.
#[tracepoint]
pub fn frames(ctx: TracePointContext) -> u32 {
    let _ = try_frames::<Syscalls>(&ctx);
    0
}

/// The same, reached from uprobes.
#[uprobe]
pub fn tls_frames(ctx: ProbeContext) -> u32 {
    let _ = try_frames::<Uprobes>(&ctx);
    Uprobes::done();
    0
}

#[inline(always)]
fn try_frames<W: Way>(ctx: &W::Context) -> Option<()> {
    let scratch = W::scratch()?;
    let connection = connection::find(scratch.call.socket)?;
    let bytes = Bytes::of(scratch);
    let noted = Forgotten::new(&mut scratch.noted);
    let len = scratch.found.len;
    blocks::begin(scratch, connection);
    let seen = walk(&bytes, &mut scratch.call, noted, connection, len);
    scratch.found.seen = seen;
    // SAFETY: the scratch buffer is this program's.
    let (says, looks) = unsafe { (*noted.pointer()).says() };
    let rests = scratch.call.offset.wrapping_add(seen) < scratch.call.total;
    // Bytes that are lost would be worse.
    let is_late = spent(&scratch.call) > NOTING && (rests || Noted::too_many(&scratch.noted));
    if looks && !is_late {
        W::tail_call(ctx, BLOCKS_PROGRAM);
    }
    if looks || (says && is_late) {
        // Late, or the program is not there: nothing can be written after all.
        blocks::lost(scratch.call.socket);
    }
    if says {
        if !is_late {
            scratch.call.noting += 1;
            W::tail_call(ctx, STREAMS_PROGRAM);
        }
        cause::frames_missed(&mut scratch.call, connection);
    }
    over::<W>(ctx, scratch, connection)
}

/// Tail calls that were spent on a call.
#[inline(always)]
pub fn spent(call: &Call) -> u32 {
    call.runs.wrapping_add(call.noting)
}

/// Reached by tail call only: what the frames of a window say of streams.
#[tracepoint]
pub fn streams(ctx: TracePointContext) -> u32 {
    let _ = try_streams::<Syscalls>(&ctx);
    0
}

/// The same, reached from uprobes.
#[uprobe]
pub fn tls_streams(ctx: ProbeContext) -> u32 {
    let _ = try_streams::<Uprobes>(&ctx);
    Uprobes::done();
    0
}

#[inline(always)]
fn try_streams<W: Way>(ctx: &W::Context) -> Option<()> {
    let scratch = W::scratch()?;
    let connection = connection::find(scratch.call.socket)?;
    let begun = Forgotten::new(&mut scratch.begun);
    let noted = Forgotten::new(&mut scratch.noted);
    cause::frames_seen(&mut scratch.call, noted, begun, connection);
    over::<W>(ctx, scratch, connection)
}

/// The frames of a window were gone over.
#[inline(always)]
fn over<W: Way>(
    ctx: &W::Context,
    scratch: &mut Scratch,
    connection: &mut Connection,
) -> Option<()> {
    let seen = scratch.found.seen;
    finish(scratch, connection, seen, seen);
    let Call {
        socket, direction, ..
    } = scratch.call;
    blocks::followed(socket, connection, direction);
    // The kernel allows 33 tail calls, and gRPC libraries read and write megabytes of many frames
    // in one call: straight to the next window, not by way of the window program.
    if next_window(scratch, connection) {
        scratch.call.runs += 1;
        go_on::<W>(ctx, scratch, connection, FRAMES_PROGRAM);
        return None;
    }
    next_part::<W>(ctx, scratch, connection)
}

/// Fills the next window of the same call. False if there is none, or it is not as simple as that.
#[inline(always)]
fn next_window(scratch: &mut Scratch, connection: &mut Connection) -> bool {
    let (offset, total) = (scratch.call.offset, scratch.call.total);
    let direction = scratch.call.direction as u8;
    if offset >= total || side(connection, direction).mode != mode::FRAMES {
        return false;
    }
    let left = total - offset;
    let len = fill(scratch, offset, at_most(WINDOW as u64, left));
    scratch.found.len = len;
    scratch.found.left = left;
    len > 0
}

/// A connection turned out to speak HTTP/2. This direction's frames begin here, behind the preface
/// if there is one; the other's at its next call, unless it is still busy with HTTP/1.
#[inline(always)]
pub fn begin(connection: &mut Connection, direction: u8, preface: bool) {
    let before = connection.verdict;
    let upgraded = before == verdict::UPGRADED;
    let from_start = connection.from_start != 0;
    connection.verdict = verdict::HTTP2;
    let other = side(connection, direction ^ 1);
    if (before == verdict::UNKNOWN || upgraded) && other.mode == mode::START {
        // A server that speaks first is answered with the preface.
        let at_start = upgraded || (from_start && other.position == 0);
        align(other, if at_start && !preface { PREFACE } else { 0 });
    }
    align(
        side(connection, direction),
        if preface { PREFACE } else { 0 },
    );
}

#[inline(always)]
fn align(side: &mut Direction, keep: u32) {
    side.mode = mode::FRAMES;
    side.skip = 0;
    side.unframed = keep;
    side.chunk_phase = 0;
    side.chunk_size = 0;
}

/// Walks from the window's start. Returns how far user space has to see.
#[inline(always)]
fn walk(
    bytes: &Bytes,
    call: &mut Call,
    noted: Forgotten<cause::Noted>,
    connection: &mut Connection,
    len: u32,
) -> u32 {
    let direction = call.direction as u8;
    let side = super::io::side(connection, direction);
    if side.skip > 0 || side.unframed > 0 || side.chunk_phase > 0 {
        cause::frame_goes_on(call);
    }
    // SAFETY: as below.
    unsafe {
        let noted = noted.pointer();
        (&raw mut (*noted).count).write_volatile(0);
        (&raw mut (*noted).last).write_volatile(call.last);
    }
    bytes.walk.store(Walk {
        skip: side.skip,
        size: side.chunk_size,
        at: 0,
        seen: 0,
        phase: side.chunk_phase as u32,
        keep: side.unframed,
    });
    let mut step = 0;
    while step < STEPS {
        step += 1;
        let mut walk = bytes.walk.load();
        // SAFETY: as below.
        let noted_enough = unsafe { cause::Noted::is_full(noted.pointer()) };
        if walk.at >= len || walk.phase == LOST || noted_enough {
            break;
        }
        let rest = len - walk.at;
        if walk.skip > 0 {
            if walk.skip >= rest as u64 {
                // The payload reaches to the window's end or beyond: the caller goes over it.
                break;
            }
            walk.at += walk.skip as u32;
            walk.skip = 0;
        } else if walk.keep > 0 {
            let take = if walk.keep < rest { walk.keep } else { rest };
            walk.keep -= take;
            walk.at += take;
            walk.seen = walk.at;
        } else {
            let mut header = NO_FRAME;
            if walk.phase == 0 && rest >= HEADER {
                header = FrameHeader::new(bytes.word(walk.at), bytes.byte(walk.at + 8));
                walk.at += HEADER;
            } else {
                // A header that is cut by a window or a call: byte by byte.
                let byte = bytes.byte(walk.at);
                walk.at += 1;
                walk.phase += 1;
                if walk.phase < HEADER {
                    walk.size = walk.size << 8 | byte as u64;
                } else {
                    header = FrameHeader::new(walk.size.swap_bytes(), byte);
                    walk.phase = 0;
                    walk.size = 0;
                }
            }
            walk.seen = walk.at;
            if header.length != u32::MAX {
                if header.kind == DATA {
                    walk.skip = header.length as u64;
                } else {
                    walk.keep = header.length;
                    if header.length > LONGEST {
                        walk.phase = LOST;
                    }
                }
                // SAFETY: the scratch buffer is this program's.
                unsafe { cause::Noted::add(noted.pointer(), &header, walk.at) };
            }
        }
        bytes.walk.store(walk);
    }
    // SAFETY: as below.
    call.last = unsafe { (&raw const (*noted.pointer()).last).read_volatile() };
    let walk = bytes.walk.load();
    let side = super::io::side(connection, direction);
    side.skip = walk.skip + walk.at.wrapping_sub(walk.seen) as u64;
    side.chunk_size = walk.size;
    side.chunk_phase = walk.phase as u8;
    side.unframed = walk.keep;
    if walk.phase == LOST {
        // Of frames that are not seen it is not known what they end.
        cause::gives_up(connection);
        let side = super::io::side(connection, direction);
        side.chunk_phase = 0;
        side.mode = mode::UNFRAMED;
        side.unframed = 0;
        side.skip = 0;
    }
    walk.seen
}
