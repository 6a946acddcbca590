//! Looks at one head or a stretch of chunks in the window, and ships what user space has to see.

use aya_ebpf::macros::{tracepoint, uprobe};
use aya_ebpf::programs::{ProbeContext, TracePointContext};
use tracer_common::abi::{
    DataEvent, Header, cause_method, data_flags, direction, drop_reason, kind,
};
use tracer_common::frame::{self, Body, Fields, Head, Window, chunk};
use tracer_common::limits::{HEAD_BUDGET, MAX_MMSG, WINDOW};

use super::io::{Message, side};
use super::window::{action, at_most, fill_plain};
use crate::cause;
use crate::connection::{self, Connection, Direction, first, mode, verdict};
use crate::emit;
use crate::maps::{BUFFER, CHUNKS_PROGRAM, Call, Found, Scratch, WINDOW_PROGRAM, Walk};
use crate::memory::{Forgotten, word};
use crate::way::{Syscalls, Uprobes, Way};

/// Runs per call after which a window is shipped whole instead of head by head; the kernel allows
/// 33 tail calls, one to three for each run.
const FRAMED_RUNS: u32 = 8;
/// Runs per call after which the rest of a call whose framing is not known is only counted.
const UNFRAMED_RUNS: u32 = 14;
/// Steps over a chunked body in one run: a byte of framing, or the data of one chunk.
const CHUNK_STEPS: u32 = 96;

/// Reached by tail call only: looks at a head (or ships the window as it is).
#[tracepoint]
pub fn head(ctx: TracePointContext) -> u32 {
    let _ = try_head::<Syscalls>(&ctx);
    0
}

/// The same, reached from uprobes.
#[uprobe]
pub fn tls_head(ctx: ProbeContext) -> u32 {
    let _ = try_head::<Uprobes>(&ctx);
    Uprobes::done();
    0
}

/// Reached by tail call only: goes over a stretch of a chunked body.
#[tracepoint]
pub fn chunks(ctx: TracePointContext) -> u32 {
    let _ = try_chunks::<Syscalls>(&ctx);
    0
}

/// The same, reached from uprobes.
#[uprobe]
pub fn tls_chunks(ctx: ProbeContext) -> u32 {
    let _ = try_chunks::<Uprobes>(&ctx);
    Uprobes::done();
    0
}

#[inline(always)]
fn try_head<W: Way>(ctx: &W::Context) -> Option<()> {
    let scratch = W::scratch()?;
    let bytes = Bytes::of(scratch);
    // Before anything else, so that there is one way into the loop.
    let begins = scratch.carry == frame::CARRY_LF as u64;
    let scanned = frame::scan_head(&bytes, 0, scratch.found.scan, begins);
    let connection = connection::find(scratch.call.socket)?;
    let found = scratch.found;
    let direction = scratch.call.direction as u8;
    if found.action == action::AGAIN {
        side(connection, direction).mode = mode::START;
    } else if found.action == action::COUNT {
        finish(scratch, connection, 0, found.left);
    } else if found.action == action::ALL {
        side(connection, direction).unframed += found.len;
        // So much of one call is enough; a head behind it is missed, and counted by user space.
        let enough = scratch.call.runs > UNFRAMED_RUNS;
        finish(
            scratch,
            connection,
            found.len,
            if enough { found.left } else { found.len },
        );
    } else if found.action != action::NOTHING {
        let carry = scratch.carry as u8;
        let seen = after_scan(&bytes, scanned, carry, found, connection, direction);
        if side(connection, direction).mode == mode::CHUNKED {
            scratch.found.seen = seen;
            go_on::<W>(ctx, scratch, connection, CHUNKS_PROGRAM);
            return None;
        }
        finish(scratch, connection, seen, seen);
    }
    next_part::<W>(ctx, scratch, connection)
}

#[inline(always)]
fn try_chunks<W: Way>(ctx: &W::Context) -> Option<()> {
    let scratch = W::scratch()?;
    let connection = connection::find(scratch.call.socket)?;
    let bytes = Bytes::of(scratch);
    let side = side(connection, scratch.call.direction as u8);
    let seen = walk_chunks(&bytes, side, scratch.found.seen, scratch.found.len);
    finish(scratch, connection, seen, seen);
    if reads_on(scratch, connection) {
        scratch.call.runs += 1;
        go_on::<W>(ctx, scratch, connection, CHUNKS_PROGRAM);
        return None;
    }
    next_part::<W>(ctx, scratch, connection)
}

/// Has what follows of a chunked body in the window, which saves every other tail call: a call may have a chunk for
/// every few thousand of its bytes. False where the window program has to see to it: of vectors, and
/// where something else follows.
#[inline(always)]
fn reads_on(scratch: &mut Scratch, connection: &mut Connection) -> bool {
    let side = side(connection, scratch.call.direction as u8);
    let Call {
        offset,
        total,
        vectors,
        ..
    } = scratch.call;
    if side.mode != mode::CHUNKED || side.skip > 0 || vectors != BUFFER || offset >= total {
        return false;
    }
    let left = total - offset;
    let len = fill_plain(scratch, offset, at_most(WINDOW as u64, left));
    scratch.found.len = len;
    scratch.found.left = left;
    scratch.found.seen = 0;
    len > 0
}

/// Goes to the next window, or to the next message of a `*mmsg` call.
#[inline(always)]
pub fn next_part<W: Way>(
    ctx: &W::Context,
    scratch: &mut Scratch,
    connection: &mut Connection,
) -> Option<()> {
    if connection.verdict == verdict::IGNORED {
        trace_log!(
            ctx,
            "connection {:x}: only counted from now on",
            connection.id
        );
        pass_over_rest(&mut scratch.call, connection);
    }
    if scratch.call.offset >= scratch.call.total {
        next_message(&mut scratch.call)?;
    }
    go_on::<W>(ctx, scratch, connection, WINDOW_PROGRAM);
    None
}

/// Tail-calls; returns only when the call had too many parts.
#[inline(always)]
pub fn go_on<W: Way>(
    ctx: &W::Context,
    scratch: &mut Scratch,
    connection: &mut Connection,
    program: u32,
) {
    W::tail_call(ctx, program);
    trace_log!(
        ctx,
        "connection {:x}: call has too many parts",
        connection.id
    );
    too_complex(scratch, connection);
}

/// A call had too many parts: the rest of it is lost, which the position will tell.
#[inline(always)]
fn too_complex(scratch: &mut Scratch, connection: &mut Connection) {
    emit::drop_one(drop_reason::CALL_TOO_COMPLEX);
    let mut rest = scratch.call.total.wrapping_sub(scratch.call.offset) as u64;
    let mut i = 0;
    while i < MAX_MMSG as u32 && i < scratch.call.messages {
        let next = scratch.call.next_message + i as u64 * Message::STRIDE;
        if let Some(message) = Message::read(next) {
            rest += message.length as u64;
        }
        i += 1;
    }
    let side = side(connection, scratch.call.direction as u8);
    side.position += rest;
    let has_frames = side.mode == mode::FRAMES;
    side.mode = mode::UNFRAMED;
    if has_frames {
        cause::gives_up(connection);
    }
}

/// Goes to the next message of a `*mmsg` call; `None` when there is none.
#[inline(always)]
fn next_message(call: &mut Call) -> Option<()> {
    if call.messages == 0 {
        return None;
    }
    let message = Message::read(call.next_message)?;
    call.messages -= 1;
    call.next_message += Message::STRIDE;
    call.base = message.base;
    call.vectors = message.vectors;
    call.total = message.length;
    call.offset = 0;
    call.before = 0;
    Some(())
}

/// Counts what is left of a call on a connection that is not looked at any more.
#[inline(always)]
fn pass_over_rest(call: &mut Call, connection: &mut Connection) {
    let rest = call.total.wrapping_sub(call.offset) as u64;
    let side = side(connection, call.direction as u8);
    side.position += rest;
    side.skipped += rest;
    call.offset = call.total;
}

/// The window in the scratch buffer.
pub struct Bytes {
    window: *const u8,
    fields: Forgotten<Fields>,
    pub walk: Forgotten<Walk>,
}

impl Bytes {
    /// The scratch buffer's.
    #[inline(always)]
    pub fn of(scratch: &mut Scratch) -> Self {
        Bytes {
            window: scratch.window.as_ptr(),
            fields: Forgotten::new(&mut scratch.fields),
            walk: Forgotten::new(&mut scratch.walk),
        }
    }
}

impl Window for Bytes {
    #[inline(always)]
    fn word(&self, at: u32) -> u64 {
        // SAFETY: the mask keeps the offset below 2 * WINDOW, and 32 bytes of slack follow.
        unsafe { word(self.window.add(at as usize & (2 * WINDOW - 1))) }
    }
    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        // SAFETY: as in `word`.
        unsafe { *self.window.add(at as usize & (2 * WINDOW - 1)) }
    }
    #[inline(always)]
    fn fields(&self) -> *mut Fields {
        self.fields.pointer()
    }
}

/// Ships `length` bytes from the window's start, of which user space has to see the first `seen`,
/// and the body bytes that follow in this call.
#[inline(always)]
pub fn finish(scratch: &mut Scratch, connection: &mut Connection, mut seen: u32, mut length: u32) {
    let Found { len, left, .. } = scratch.found;
    let side = side(connection, scratch.call.direction as u8);
    if side.skip > 0 && side.has_skip() {
        let take = at_most(side.skip, left.wrapping_sub(length));
        side.skip -= take as u64;
        length += take;
        if side.skip == 0 && side.mode == mode::BODY {
            side.mode = mode::START;
        }
    }
    if scratch.call.runs > FRAMED_RUNS && length < len && side.mode != mode::FRAMES {
        // Many small messages in one call: ship the window whole, let user space find them.
        seen = len;
        length = len;
        side.mode = mode::UNFRAMED;
    }
    ship(scratch, connection, seen, length);
    scratch.call.offset += length;
}

/// Draws the conclusions from a scan. Returns the bytes that user space has to see, from the
/// window's start.
#[inline(always)]
fn after_scan(
    bytes: &Bytes,
    mut head: Head,
    carry: u8,
    found: Found,
    connection: &mut Connection,
    direction: u8,
) -> u32 {
    let goes_on = found.action == action::HEAD_GOES_ON;
    let len = found.len;
    if goes_on {
        let end = frame::finish_carry(bytes, 0, len, carry);
        if end > 0 {
            // What was scanned lies behind the head.
            head = Head {
                end,
                body: Body::Absent,
                length: 0,
                carry: frame::CARRY_NONE,
            };
        }
    }
    let side = side(connection, direction);
    let first = if goes_on {
        (head.body, head.length) = Body::of(side.said).and(side.chunk_size, head.body, head.length);
        side.chunk_phase
    } else {
        first_line(bytes, &found)
    };
    // All the ways here become one.
    let (first, body) = side.keep_said(first, head.body as u8, head.length);
    if head.end == 0 {
        side.unframed += len;
        side.carry = head.carry;
        side.mode = if side.unframed >= HEAD_BUDGET {
            mode::UNFRAMED
        } else {
            mode::HEAD
        };
        return len;
    }
    let body = conclude(first, connection, direction, Body::of(body));
    let side = self::side(connection, direction);
    head.length = side.chunk_size;
    side.chunk_size = 0;
    side.chunk_phase = chunk::SIZE;
    match body {
        Body::Length if head.length > 0 => {
            side.mode = mode::BODY;
            side.skip = head.length;
        }
        Body::Absent | Body::Length => side.mode = mode::START,
        Body::Chunked => side.mode = mode::CHUNKED,
        Body::Unknown => side.mode = mode::UNFRAMED,
    }
    head.end
}

/// What the first line of a message in the window says about the bodies of its connection.
#[inline(always)]
fn first_line(bytes: &Bytes, found: &Found) -> u8 {
    let word = bytes.word(0);
    if found.len < 16 {
        return first::UNKNOWN;
    }
    if found.is_request != 0 {
        // Behind a leading line end the method is elsewhere: be careful.
        return if word == u64::from_le_bytes(*b"CONNECT ") {
            first::CONNECT
        } else if word & 0xff_ffff_ffff == u64::from_le_bytes(*b"HEAD \0\0\0")
            || (word as u8) < b'A'
        {
            first::BODILESS
        } else if word == u64::from_le_bytes(*b"POST /v1")
            && bytes.word(8) == u64::from_le_bytes(*b"/traces ")
        {
            first::EXPORT
        } else {
            first::REQUEST
        };
    }
    // "HTTP/1.1 200": digits at 9, 10, 11.
    let status = (bytes.byte(9), bytes.byte(10), bytes.byte(11));
    let is = |text: &[u8; 3]| status == (text[0], text[1], text[2]);
    if is(b"101") {
        first::SWITCHES
    } else if status.0 == b'1' {
        first::INTERIM
    } else if is(b"204") {
        first::NO_CONTENT
    } else if is(b"304") {
        first::NOT_MODIFIED
    } else if status.0 == b'2' {
        first::SUCCESS
    } else {
        first::RESPONSE
    }
}

/// A complete head: what its message, and those that answer it, have for a body.
#[inline(always)]
fn conclude(first: u8, connection: &mut Connection, direction: u8, body: Body) -> Body {
    if first == first::UNKNOWN {
        connection.bodiless = 1;
        // Which kind it was is not known any more; a response cannot be the first of a pair.
        if connection.requests == direction {
            connection.outstanding = connection.outstanding.saturating_add(1);
        } else {
            connection.outstanding = connection.outstanding.saturating_sub(1);
        }
        return Body::Unknown;
    }
    if first < first::RESPONSE {
        connection.requests = direction;
        after_request(first, connection, direction, body)
    } else {
        after_response(first, connection, body)
    }
}

/// A complete request head: what its responses may look like, and its own body.
#[inline(always)]
fn after_request(first: u8, connection: &mut Connection, direction: u8, body: Body) -> Body {
    let is_connect = (first == first::CONNECT) as u8;
    let bodiless = is_connect | (first == first::BODILESS) as u8;
    connection.turned = 0;
    if connection.outstanding == 0 {
        connection.bodiless = bodiless;
        connection.connect = is_connect;
    } else {
        connection.bodiless |= bodiless;
        connection.connect |= is_connect;
    }
    connection.outstanding = connection.outstanding.saturating_add(1);
    // Spans that a process exports by itself: user space wants to know which, so the body is shipped,
    // up to the budget of what is not framed.
    let exports = first == first::EXPORT && direction == direction::WRITE;
    if exports && body != Body::Absent {
        return Body::Unknown;
    }
    body
}

/// A complete response head: does a body follow, by its status and the requests before it?
#[inline(always)]
fn after_response(first: u8, connection: &mut Connection, body: Body) -> Body {
    if connection.connect != 0 && (first == first::SUCCESS || first == first::NO_CONTENT) {
        // The rest is another protocol; this head is still shipped.
        connection.verdict = verdict::IGNORED;
        return Body::Absent;
    }
    if first == first::SWITCHES {
        // The first bytes behind it tell whether the other protocol is one we know.
        if connection.verdict != verdict::HTTP2 {
            connection.verdict = verdict::UPGRADED;
        }
        return Body::Absent;
    }
    if first == first::INTERIM {
        return Body::Absent;
    }
    connection.outstanding = connection.outstanding.saturating_sub(1);
    if first == first::NO_CONTENT || first == first::NOT_MODIFIED {
        return Body::Absent;
    }
    if connection.bodiless != 0 || body == Body::Absent {
        return Body::Unknown;
    }
    body
}

/// Walks over chunks in the window from `at`. Returns how far user space has to see.
#[inline(always)]
fn walk_chunks(bytes: &Bytes, side: &mut Direction, at: u32, len: u32) -> u32 {
    let start = Walk {
        skip: side.skip,
        size: side.chunk_size,
        at,
        seen: at,
        phase: side.chunk_phase as u32,
        keep: 0,
    };
    bytes.walk.store(start);
    let mut step = 0;
    while step < CHUNK_STEPS {
        step += 1;
        let mut walk = bytes.walk.load();
        if walk.at >= len {
            break;
        }
        if walk.skip > 0 {
            if walk.skip >= (len - walk.at) as u64 {
                // The data reaches to the window's end or beyond: the caller goes over it.
                break;
            }
            walk.at += walk.skip as u32;
            walk.skip = 0;
        } else {
            let (phase, size) = frame::chunk_byte(walk.phase as u8, walk.size, bytes.byte(walk.at));
            walk.phase = phase as u32;
            walk.size = size;
            // All the ways here become one.
            bytes.walk.store(walk);
            walk = bytes.walk.load();
            walk.at += 1;
            walk.seen = walk.at;
            if walk.phase == chunk::DATA as u32 {
                walk.skip = walk.size.wrapping_add(2);
                walk.phase = chunk::SIZE as u32;
                walk.size = 0;
            }
        }
        bytes.walk.store(walk);
        let phase = bytes.walk.load().phase;
        if phase == chunk::DONE as u32 || phase == chunk::BROKEN as u32 {
            break;
        }
    }
    let walk = bytes.walk.load();
    // Data that was gone over last, when the steps ran out behind it, is left to the caller too.
    side.skip = walk.skip + walk.at.wrapping_sub(walk.seen) as u64;
    side.chunk_size = walk.size;
    side.chunk_phase = walk.phase as u8;
    if walk.phase == chunk::DONE as u32 {
        side.mode = mode::START;
    } else if walk.phase == chunk::BROKEN as u32 {
        side.mode = mode::UNFRAMED;
    }
    walk.seen
}

/// Ships `[position, position + length)` with its first `captured` bytes.
#[inline(always)]
pub fn ship(scratch: &mut Scratch, connection: &mut Connection, captured: u32, length: u32) {
    if connection.verdict == verdict::UNKNOWN {
        connection.verdict = verdict::HTTP1;
    }
    emit::connection(connection, scratch.call.socket, scratch.call.tgid);
    let id = connection.id;
    let direction = scratch.call.direction as u8;
    let flags = if connection.verdict == verdict::HTTP2 {
        data_flags::HTTP2
    } else {
        0
    };
    let side = side(connection, direction);
    scratch.event = DataEvent {
        header: Header {
            kind: kind::DATA,
            selector: direction,
            flags,
            reserved: 0,
            value: captured,
        },
        time_ns: scratch.call.time_ns,
        start_ns: scratch.call.start_ns,
        connection: id,
        position: side.position,
        skipped: side.skipped,
        length,
        tgid: scratch.call.tgid,
        tid: scratch.call.tid,
        cause_method: scratch.call.cause_method,
        cause_connection: scratch.call.cause.connection,
        cause_key: scratch.call.cause.key,
    };
    side.position += length as u64;
    side.skipped = 0;
    // The cause belongs to the request that begins with these bytes.
    scratch.call.cause_method = cause_method::NONE;
    scratch.call.cause.clear();
    emit::data(scratch);
    if direction == direction::WRITE {
        cause::answered(connection);
    } else {
        cause::answer_read(&scratch.call, connection);
    }
}
