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

/// The fields of the walk, each read and written where it lies. Copies in registers or on the stack that become one
/// behind all the ways through a step are as many states as ways: to the verifier of Linux 6.1, eighty for each step.
struct Places {
    skip: Forgotten<u64>,
    size: Forgotten<u64>,
    at: Forgotten<u32>,
    seen: Forgotten<u32>,
    phase: Forgotten<u32>,
    keep: Forgotten<u32>,
    ninth: Forgotten<u32>,
}

impl Places {
    /// # Safety
    /// They are places of map memory that are nobody else's meanwhile.
    #[inline(always)]
    unsafe fn of(walk: *mut Walk, noted: *mut Noted) -> Self {
        // SAFETY: as the caller says.
        unsafe {
            Places {
                skip: Forgotten::new(&mut (*walk).skip),
                size: Forgotten::new(&mut (*walk).size),
                at: Forgotten::new(&mut (*walk).at),
                seen: Forgotten::new(&mut (*walk).seen),
                phase: Forgotten::new(&mut (*walk).phase),
                keep: Forgotten::new(&mut (*walk).keep),
                ninth: Forgotten::new(&mut (*noted).ninth),
            }
        }
    }

    /// True behind a header that makes no sense.
    #[inline(always)]
    fn is_lost(&self) -> bool {
        self.keep.load() > LONGEST
    }
}

/// Walks from the window's start. Returns how far user space has to see.
#[inline(always)]
fn walk(
    bytes: &Bytes,
    call: &mut Call,
    noted: Forgotten<Noted>,
    connection: &mut Connection,
    len: u32,
) -> u32 {
    let direction = call.direction as u8;
    let side = super::io::side(connection, direction);
    if side.skip > 0 || side.unframed > 0 || side.chunk_phase > 0 {
        cause::frame_goes_on(call);
    }
    let noted = noted.pointer();
    // SAFETY: the scratch buffer is this program's, here and below.
    unsafe {
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
    // SAFETY: as above.
    let places = unsafe { Places::of(bytes.walk.pointer(), noted) };
    let mut step = 0;
    while step < STEPS {
        step += 1;
        // SAFETY: as above.
        let noted_enough = unsafe { Noted::is_full(noted) };
        let at = places.at.load();
        if at >= len || noted_enough || places.is_lost() {
            break;
        }
        let rest = len - at;
        let skip = places.skip.load();
        if skip > 0 {
            if skip >= rest as u64 {
                // The payload reaches to the window's end or beyond: the caller goes over it.
                break;
            }
            places.at.store(at + skip as u32);
            places.skip.store(0);
            continue;
        }
        let keep = places.keep.load();
        if keep > 0 {
            let take = if keep < rest { keep } else { rest };
            places.keep.store(keep - take);
            places.at.store(at + take);
            places.seen.store(at + take);
            continue;
        }
        let phase = places.phase.load();
        if phase == 0 && rest >= HEADER {
            let (word, ninth) = (bytes.word(at), bytes.byte(at + 8));
            places.size.store(word.swap_bytes());
            places.ninth.store(ninth as u32);
            places.at.store(at + HEADER);
        } else {
            // A header that is cut by a window or a call: byte by byte.
            let byte = bytes.byte(at);
            places.at.store(at + 1);
            if phase + 1 < HEADER {
                places.seen.store(at + 1);
                places.phase.store(phase + 1);
                places.size.store((places.size.load() << 8) | byte as u64);
                continue;
            }
            places.phase.store(0);
            places.ninth.store(byte as u32);
        }
        // All the ways here become one.
        let header = FrameHeader::from_big(places.size.load(), places.ninth.load() as u8);
        places.seen.store(places.at.load());
        if header.kind == DATA {
            places.skip.store(header.length as u64);
        } else {
            places.keep.store(header.length);
        }
        // Here too.
        let header = FrameHeader::from_big(places.size.load(), places.ninth.load() as u8);
        places.size.store(0);
        // SAFETY: as above.
        unsafe { Noted::add(noted, &header, places.at.load()) };
    }
    // SAFETY: as above.
    call.last = unsafe { (&raw const (*noted).last).read_volatile() };
    let is_lost = places.is_lost();
    let walk = bytes.walk.load();
    let side = super::io::side(connection, direction);
    side.skip = walk.skip + walk.at.wrapping_sub(walk.seen) as u64;
    side.chunk_size = walk.size;
    side.chunk_phase = walk.phase as u8;
    side.unframed = walk.keep;
    if is_lost {
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
