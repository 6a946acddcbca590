//! Follows the frames of an HTTP/2 connection in the messages that leave, and finds the requests that begin in
//! one; [`super::stream`] puts the field into them.
//!
//! Hook: as for [`super::message`]. All messages are gone over, from the connection's first byte on, whoever
//! writes them: what is known of frames and of names that were sent holds only if nothing is missing. A sequence
//! number that is not the expected one, a frame that makes no sense, a header block that is not whole in its
//! message, or a name of trace context: the connection is left alone for good, because a later block may
//! name by an index what was in this one.

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use tracer_common::abi::propagated;
use tracer_common::hpack::{self, phase};
use tracer_common::http2::{CONTINUATION, DATA, FrameHeader, HEADER, HEADERS, PREFACE, flag};

use super::bytes::{byte, pull, size, word};
use super::message::{FRAMES, STREAM, tail_call};
use super::{
    BEGUN, Begun, FLOWS, FRAMINGS, FrameWalk, Framing, LEAVING, PLANS, count, framing, number,
    state,
};
use crate::connection;
use crate::kernel::{self, opaque};

/// Steps of the walk in one run: a frame, or a part of a field.
const STEPS: u32 = 80;
/// Runs for one message. With what it takes to put the fields in, the kernel allows 33 tail calls.
const RUNS: u32 = 14;
/// Bytes of a header block that is gone over, and with the field. Some servers allow no more.
pub const LONGEST_BLOCK: u32 = 8192;
/// What any receiver takes of a frame that is not DATA (RFC 9113 section 4.2).
const LONGEST_FRAME: u32 = 16384;

const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;

/// [`FrameWalk::phase`]: a frame begins, or the message ends.
const FRAME: u32 = phase::OUTSIDE;
/// The message was gone over.
const DONE: u32 = phase::COUNT;
/// Something is not as it should be.
const UNCLEAR: u32 = phase::COUNT + 1;

/// A message without a request that is due leaves on this socket. `planned`: its write has a plan.
#[inline(always)]
pub fn begin(ctx: &SkMsgContext, sock: u64, planned: bool) -> Option<()> {
    let is_known = FRAMINGS.get_ptr_mut(&sock).is_some();
    if !is_known && !planned {
        return None;
    }
    let flow = FLOWS.get_ptr_mut(&sock)?;
    // SAFETY: the pointer is into the map.
    let (id, now) = unsafe { ((*flow).connection, (*flow).state) };
    if now != state::ENROLLED {
        return None;
    }
    let next: u32 = kernel::field(sock, &kernel::TCP_WRITE_SEQ)?;
    if !is_known {
        if !begins(ctx, sock, id, next) {
            return None;
        }
        let framing = Framing {
            connection: id,
            next,
            skip: PREFACE,
            newest: 0,
            state: framing::FIRST,
            count: 0,
            injected: 0,
            walk: FrameWalk::NONE,
            begun: [Begun::NONE; BEGUN as usize],
        };
        let _ = FRAMINGS.insert(&sock, &framing, 0);
    }
    // SAFETY: the pointer is into the map; the socket is locked.
    let framing = unsafe { FRAMINGS.get_ptr_mut(&sock)?.as_mut()? };
    if framing.connection != id || framing.state == framing::LEFT {
        return None;
    }
    if framing.next != next {
        leave(sock, framing, propagated::UNSEEN);
        return None;
    }
    let size = size(ctx);
    framing.next = next.wrapping_add(size);
    framing.count = 0;
    framing.injected = 0;
    if framing.skip >= size {
        // In a body.
        framing.skip -= size;
        return None;
    }
    framing.walk = FrameWalk {
        at: framing.skip,
        size,
        phase: FRAME,
        planned: planned as u32,
        ..FrameWalk::NONE
    };
    framing.skip = 0;
    tail_call(ctx, FRAMES);
    leave(sock, framing, propagated::UNCLEAR);
    None
}

/// True if the connection's first byte is the message's, and begins the preface.
#[inline(always)]
fn begins(ctx: &SkMsgContext, sock: u64, id: u64, next: u32) -> bool {
    let Some(connection) = connection::find(sock) else {
        return false;
    };
    if connection.id != id
        || connection.write.position != 0
        || connection.write_sequence != next
        || size(ctx) < PREFACE
        || !pull(ctx, 0, PREFACE)
    {
        return false;
    }
    const TEXT: [&[u8; 8]; 3] = [b"PRI * HT", b"TP/2.0\r\n", b"\r\nSM\r\n\r\n"];
    let mut i = 0;
    while i < TEXT.len() {
        let Some(word) = word(ctx, 8 * i as u32) else {
            return false;
        };
        if word != u64::from_le_bytes(*TEXT[i]) {
            return false;
        }
        i += 1;
    }
    true
}

/// Nothing is written into this connection any more; TCP options may go out with it.
#[inline(always)]
fn leave(sock: u64, framing: &mut Framing, outcome: u32) {
    framing.state = framing::LEFT;
    count(outcome);
    let Some(flow) = FLOWS.get_ptr_mut(&sock) else {
        return;
    };
    // SAFETY: the pointer is into the map; the socket is locked.
    unsafe {
        (*flow).state = state::PLAIN;
        // Trailers of those that began before are not new ones.
        if framing.newest > (*flow).stream {
            (*flow).stream = framing.newest;
        }
    };
    let _ = LEAVING.push(&sock, 0);
}

/// Reached by tail call only: goes over frames.
#[sk_msg]
pub fn propagate_frames(ctx: SkMsgContext) -> u32 {
    let _ = frames(&ctx);
    SK_PASS
}

#[inline(always)]
fn frames(ctx: &SkMsgContext) -> Option<()> {
    // SAFETY: a field of the context.
    let sock = number(unsafe { (&raw const (*ctx.msg).__bindgen_anon_3.sk).read_volatile() });
    // SAFETY: the pointer is into the map; the socket is locked.
    let framing = unsafe { FRAMINGS.get_ptr_mut(&sock)?.as_mut()? };
    let begin = framing.walk;
    if begin.phase < FRAME && !pull(ctx, begin.at, begin.next) {
        leave(sock, framing, propagated::FAILED);
        return None;
    }
    let walk = &raw mut framing.walk;
    let mut step = 0;
    while step < STEPS {
        step += 1;
        // By way of map memory, so that every step is one state to the verifier.
        // SAFETY: fields of a live map entry, here and below.
        let now = unsafe { (&raw const (*walk).phase).read_volatile() };
        if now > FRAME {
            break;
        }
        let next = if now == FRAME {
            frame(ctx, walk, framing)
        } else {
            field(ctx, walk, framing, now)
        };
        // SAFETY: as above.
        unsafe { (&raw mut (*walk).phase).write_volatile(next) };
    }
    // SAFETY: as above.
    let after = unsafe { walk.read_volatile() };
    match after.phase {
        DONE => {
            framing.skip = after.at.wrapping_sub(after.size);
            if framing.count > 0 {
                tail_call(ctx, STREAM);
            }
        }
        UNCLEAR | phase::BROKEN => leave(sock, framing, propagated::UNCLEAR),
        phase::CONTEXT => leave(sock, framing, propagated::PRESENT),
        _ => {
            framing.walk.runs = after.runs + 1;
            if after.runs < RUNS {
                tail_call(ctx, FRAMES);
            }
            leave(sock, framing, propagated::UNCLEAR);
        }
    }
    None
}

/// A frame begins, or the message ends.
#[inline(always)]
fn frame(ctx: &SkMsgContext, walk: *mut FrameWalk, framing: &mut Framing) -> u32 {
    // SAFETY: as in `frames`.
    let (at, size) = unsafe {
        (
            (&raw const (*walk).at).read_volatile(),
            (&raw const (*walk).size).read_volatile(),
        )
    };
    if at >= size {
        return DONE;
    }
    if size - at < HEADER || !pull(ctx, at, at + HEADER) {
        return UNCLEAR;
    }
    let (Some(first), Some(ninth)) = (word(ctx, 0), byte(ctx, 8)) else {
        return UNCLEAR;
    };
    let header = FrameHeader::new(first, ninth as u8);
    let begin = at + HEADER;
    let next = begin.wrapping_add(header.length);
    let kind = header.kind;
    if framing.state == framing::FIRST {
        if kind != SETTINGS || header.flags != 0 {
            return UNCLEAR;
        }
        framing.state = framing::FRAMES;
    }
    if header.stream >> 31 != 0
        || kind == PUSH_PROMISE
        || kind == CONTINUATION
        || kind != DATA && header.length > LONGEST_FRAME
    {
        return UNCLEAR;
    }
    if kind != HEADERS {
        // SAFETY: as above.
        unsafe { (&raw mut (*walk).at).write_volatile(next) };
        return FRAME;
    }
    let flags = header.flags;
    if flags & flag::END_HEADERS == 0
        || header.stream & 1 == 0
        || header.length > LONGEST_BLOCK
        || next > size
        || !pull(ctx, at, next)
    {
        return UNCLEAR;
    }
    let (mut field, mut padding) = (HEADER, 0);
    if flags & flag::PADDED != 0 {
        let Some(length) = byte(ctx, HEADER) else {
            return UNCLEAR;
        };
        padding = length;
        field += 1;
    }
    if flags & flag::PRIORITY != 0 {
        field += 5;
    }
    if field + padding > HEADER + header.length {
        return UNCLEAR;
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*walk).field).write_volatile(field);
        (&raw mut (*walk).end).write_volatile(HEADER + header.length - padding);
        (&raw mut (*walk).next).write_volatile(next);
        (&raw mut (*walk).stream).write_volatile(header.stream);
    }
    phase::FIELD
}

/// A part of a field begins, or the block ends. The message's bytes that can be reached are those of the frame.
#[inline(always)]
fn field(ctx: &SkMsgContext, walk: *mut FrameWalk, framing: &mut Framing, now: u32) -> u32 {
    // SAFETY: as in `frames`.
    let (at, field, end, next) = unsafe {
        (
            (&raw const (*walk).at).read_volatile(),
            (&raw const (*walk).field).read_volatile(),
            (&raw const (*walk).end).read_volatile(),
            (&raw const (*walk).next).read_volatile(),
        )
    };
    if field >= end {
        if field != end || now != phase::FIELD {
            return UNCLEAR;
        }
        block_ends(walk, framing, at, end, next);
        return FRAME;
    }
    // Eight bytes; those behind the frame are zeros. Its header is longer than what is gone back.
    let length = next.wrapping_sub(at);
    let over = (field + 8).saturating_sub(length) & 7;
    let Some(word) = word(ctx, opaque(field - over)) else {
        return UNCLEAR;
    };
    let step = hpack::step(now, word >> (8 * over));
    // SAFETY: as above.
    unsafe { (&raw mut (*walk).field).write_volatile(field + step.length) };
    step.phase
}

/// A header block was gone over to its end: is it a request's?
#[inline(always)]
fn block_ends(walk: *mut FrameWalk, framing: &mut Framing, at: u32, end: u32, next: u32) {
    // SAFETY: as in `frames`.
    let (stream, planned) = unsafe {
        (&raw mut (*walk).at).write_volatile(next);
        (
            (&raw const (*walk).stream).read_volatile(),
            (&raw const (*walk).planned).read_volatile(),
        )
    };
    // Those behind the answer's end are trailers.
    if stream <= framing.newest {
        return;
    }
    framing.newest = stream;
    let index = framing.count;
    if planned == 0 || index >= BEGUN {
        count(propagated::CROWDED);
        return;
    }
    let begun = Begun {
        stream,
        at,
        length: end,
        frame: next.wrapping_sub(at).wrapping_sub(HEADER),
    };
    let place = (&raw mut framing.begun).cast::<Begun>();
    // SAFETY: the masked index is within the array.
    unsafe {
        place
            .add((opaque(index) & (BEGUN - 1)) as usize)
            .write_volatile(begun)
    };
    framing.count = index + 1;
}

/// True if the current thread has a plan for the frames that it is about to write to this socket; it has none then.
#[inline(always)]
pub fn takes_plan(sock: u64) -> bool {
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(plan) = PLANS.get_ptr_mut(&tid) else {
        return false;
    };
    // SAFETY: the pointer is into the map; only this thread uses its plan.
    unsafe {
        if (*plan).armed == 0 || (*plan).sock != sock || (*plan).frames == 0 {
            return false;
        }
        (*plan).armed = 0;
        connection::find(sock).is_some_and(|connection| {
            connection.id == (*plan).connection && connection.write.position == (*plan).position
        })
    }
}
