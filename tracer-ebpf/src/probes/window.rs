//! Walks over the bytes of one call, a window at a time: skips what is body, reads the next window
//! and says what is to be done with it; [`super::deliver`] does it and comes back for the rest.
//!
//! Framing is followed only to leave body bytes out; whatever is not understood is shipped (up to
//! a budget), so that user space, which parses for real, never misses a head because of a guess
//! made here. Three programs, because the verifier looks at every way into a loop separately: behind
//! a tail call there is one.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_probe_read_user as read_user_into;
use aya_ebpf::macros::{tracepoint, uprobe};
use aya_ebpf::programs::{ProbeContext, TracePointContext};
use tracer_common::abi::drop_reason;
use tracer_common::frame;
use tracer_common::http2::{self, FrameHeader};
use tracer_common::infer::{self, Guess};
use tracer_common::limits::{JOIN_PATIENCE, MAX_IOVECS, UNFRAMED_BUDGET, WINDOW};

use super::deliver::{self, ship};
use super::frames;
use super::io::side;
use crate::cause;
use crate::connection::{self, Connection, mode, verdict};
use crate::emit;
use crate::kernel::opaque;
use crate::maps::{
    BUFFER, CHUNKS_PROGRAM, CONTEXT_PROGRAM, FRAMES_PROGRAM, Found, Gather, HEAD_PROGRAM, NO_BYTES,
    OFFER_PROGRAM, Scratch, WINDOW_PROGRAM, count,
};
use crate::memory::Forgotten;
use crate::propagate::{incoming, memory};
use crate::way::{Syscalls, Uprobes, Way};

/// What is to be done with the window.
pub mod action {
    /// Nothing is left to do with the call.
    pub const NOTHING: u32 = 0;
    /// A head begins here.
    pub const HEAD: u32 = 1;
    /// A head goes on here.
    pub const HEAD_GOES_ON: u32 = 2;
    /// In a chunked body.
    pub const CHUNKS: u32 = 3;
    /// Ship it all.
    pub const ALL: u32 = 4;
    /// Only the prefix was read, and it is no message start: count the call.
    pub const COUNT: u32 = 5;
    /// Only the prefix was read, and a message starts: come back for a full window.
    pub const AGAIN: u32 = 6;
    /// The window begins behind all vectors that were looked at: go on with the next ones.
    pub const PASS: u32 = 7;
    /// In HTTP/2 frames.
    pub const FRAMES: u32 = 8;
}

/// Reached by tail call only.
#[tracepoint]
pub fn window(ctx: TracePointContext) -> u32 {
    let _ = try_window::<Syscalls>(&ctx);
    0
}

/// The same, reached from uprobes.
#[uprobe]
pub fn tls_window(ctx: ProbeContext) -> u32 {
    let _ = try_window::<Uprobes>(&ctx);
    Uprobes::done();
    0
}

#[inline(always)]
fn try_window<W: Way>(ctx: &W::Context) -> Option<()> {
    let scratch = W::scratch()?;
    let connection = connection::find(scratch.call.socket)?;
    scratch.call.runs += 1;
    scratch.found.action = action::NOTHING;
    prepare(scratch, connection);
    if scratch.found.action == action::NOTHING && scratch.call.messages == 0 {
        return None;
    }
    if W::IS_LIBRARY && memory::wants_an_offer(scratch) {
        W::tail_call(ctx, OFFER_PROGRAM);
        // It is not there where nothing is offered.
    }
    let next = match scratch.found.action {
        action::CHUNKS => CHUNKS_PROGRAM,
        action::FRAMES => FRAMES_PROGRAM,
        action::PASS => WINDOW_PROGRAM,
        action::HEAD if incoming::wants_a_look(scratch, connection) => {
            W::tail_call(ctx, CONTEXT_PROGRAM);
            // It is not there where nothing can be written after all.
            HEAD_PROGRAM
        }
        _ => HEAD_PROGRAM,
    };
    deliver::go_on::<W>(ctx, scratch, connection, next);
    None
}

/// Skips what is body, fills the window, decides.
#[inline(always)]
fn prepare(scratch: &mut Scratch, connection: &mut Connection) {
    let direction = scratch.call.direction as u8;
    let total = scratch.call.total;
    let mut offset = scratch.call.offset;
    if offset > total {
        return;
    }
    let mut ended = false;
    {
        let side = side(connection, direction);
        if side.skip > 0 && side.has_skip() {
            if side.mode == mode::FRAMES {
                cause::frame_goes_on(&mut scratch.call);
            }
            let take = at_most(side.skip, total - offset);
            side.skip -= take as u64;
            side.skipped += take as u64;
            side.position += take as u64;
            offset += take;
            if side.skip == 0 && side.mode == mode::BODY {
                side.mode = mode::START;
                ended = true;
            }
            ended |= side.skip == 0 && side.mode == mode::FRAMES;
        }
    }
    scratch.call.offset = offset;
    if offset >= total {
        if ended {
            ship(scratch, connection, 0, 0);
        }
        return;
    }
    let left = total - offset;
    let exhausted = {
        let side = side(connection, direction);
        side.mode == mode::UNFRAMED && side.unframed >= UNFRAMED_BUDGET
    };
    let want = if exhausted {
        infer::PREFIX as u32
    } else {
        WINDOW as u32
    };
    let want = if left < want { left } else { want };
    Forgotten::new(&mut scratch.exhausted).store(exhausted as u64);
    let len = fill(scratch, offset, want);
    let exhausted = Forgotten::new(&mut scratch.exhausted).load() != 0;
    let offset = scratch.call.offset;
    let left = scratch.call.total.wrapping_sub(offset);
    if len == 0 && scratch.gather.passed > 0 && scratch.call.vectors < NO_BYTES {
        scratch.call.runs -= 1;
        scratch.found.action = action::PASS;
        return;
    }
    if len == 0 {
        unseen(scratch, connection, left);
        scratch.call.offset = scratch.call.total;
        return;
    }
    decide(scratch, connection, len, left, exhausted);
}

/// Says what is to be done with the window.
#[inline(always)]
fn decide(
    scratch: &mut Scratch,
    connection: &mut Connection,
    len: u32,
    left: u32,
    exhausted: bool,
) {
    let direction = scratch.call.direction as u8;
    let call_start = scratch.call.offset == 0;
    let (first, second) = {
        let window = scratch.window.as_ptr().cast::<u64>();
        // SAFETY: the window is longer than 16 bytes.
        unsafe { (window.read_unaligned(), window.add(1).read_unaligned()) }
    };
    let before = side(connection, direction).mode;
    let mut guess = Guess::Other;
    if before == mode::START || (before == mode::UNFRAMED && call_start) {
        let there = if left < 16 { left } else { 16 };
        guess = if connection.verdict == verdict::UPGRADED {
            infer::guess_upgraded(first, second, there)
        } else {
            Guess::of(message_start(first, second, there))
        };
    }
    let starts = matches!(guess, Guess::Request | Guess::Response)
        || (before == mode::START && guess == Guess::Partial);
    let what = if before == mode::FRAMES {
        action::FRAMES
    } else if begins_frames(scratch, connection, guess, before, len) {
        frames::begin(connection, direction, guess == Guess::Http2);
        action::FRAMES
    } else if before == mode::CHUNKED {
        action::CHUNKS
    } else if before == mode::HEAD {
        cause::request_goes_on(&scratch.call, connection);
        scratch.carry = side(connection, direction).carry as u64;
        action::HEAD_GOES_ON
    } else if starts {
        if guess == Guess::Request {
            cause::request(&mut scratch.call, connection);
        } else if guess == Guess::Partial {
            cause::perhaps_request(&scratch.call, connection);
        }
        let side = side(connection, direction);
        side.unframed = 0;
        scratch.carry = frame::CARRY_NONE as u64;
        side.skip = 0;
        side.mode = mode::START;
        if exhausted {
            action::AGAIN
        } else {
            action::HEAD
        }
    } else if before == mode::START
        && (connection.verdict == verdict::UNKNOWN || connection.verdict == verdict::UPGRADED)
    {
        unknown(connection, guess);
        cause::other_protocol(&scratch.call, connection);
        let side = side(connection, direction);
        side.position += left as u64;
        side.skipped += left as u64;
        scratch.call.offset = scratch.call.total;
        return;
    } else {
        side(connection, direction).mode = mode::UNFRAMED;
        if exhausted {
            action::COUNT
        } else {
            action::ALL
        }
    };
    let in_head = what == action::HEAD || what == action::HEAD_GOES_ON;
    scratch.found = Found {
        len,
        left,
        action: what,
        is_request: (guess == Guess::Request) as u32,
        scan: if in_head { len } else { 0 },
        seen: 0,
    };
}

/// [`infer::guess`] as a function of its own for the verifier: it goes over it once, and not once for each state in
/// which there is something to guess.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn message_start(first: u64, second: u64, len: u32) -> u32 {
    infer::guess(first, second, len) as u32
}

/// True when HTTP/2 frames begin with this window: by the preface, by a server's SETTINGS (both also
/// behind an upgrade), or, on a connection joined in the middle or that lost its alignment, by frames
/// that tile the call.
#[inline(always)]
fn begins_frames(
    scratch: &Scratch,
    connection: &Connection,
    guess: Guess,
    before: u8,
    len: u32,
) -> bool {
    let undecided = connection.verdict == verdict::UNKNOWN && before == mode::START;
    let upgraded = connection.verdict == verdict::UPGRADED;
    if (undecided || upgraded) && matches!(guess, Guess::Http2 | Guess::Http2Settings) {
        return true;
    }
    // No request begins like the preface: the 101 came in parts, or is about to be told, or the
    // server spoke before the request had ended.
    let upgrades = connection.requests as u32 == scratch.call.direction;
    if guess == Guess::Http2 && upgrades && connection.verdict != verdict::UNKNOWN {
        return true;
    }
    let lost = connection.verdict == verdict::HTTP2;
    let joined = undecided && connection.from_start == 0;
    if !(lost || joined) || scratch.call.offset != 0 || len < http2::HEADER {
        return false;
    }
    let window = scratch.window.as_ptr();
    let header = |at: u32| {
        // SAFETY: the masked offset is below WINDOW, and the window is twice as long.
        unsafe {
            let place = window.add((at & (WINDOW as u32 - 1)) as usize);
            FrameHeader::new(place.cast::<u64>().read_unaligned(), *place.add(8))
        }
    };
    let first = header(0);
    let next = first.length + http2::HEADER;
    if !first.is_plausible() || next > scratch.call.total {
        return false;
    }
    next == scratch.call.total || next + http2::HEADER > len || header(opaque(next)).is_plausible()
}

/// The smaller of the two.
#[inline(always)]
pub fn at_most(wanted: u64, limit: u32) -> u32 {
    if wanted < limit as u64 {
        wanted as u32
    } else {
        limit
    }
}

/// A connection that does not begin like anything we parse.
#[inline(always)]
fn unknown(connection: &mut Connection, guess: Guess) {
    let known_other = guess == Guess::Tls;
    if connection.turned != 0 {
        connection.turned = 0;
        connection.misses += 1;
    }
    if connection.verdict == verdict::UPGRADED {
        // It was parsed up to here: not one of those that are counted.
        connection.verdict = verdict::IGNORED;
        return;
    }
    if connection.from_start == 0 && !known_other && connection.misses < JOIN_PATIENCE {
        return;
    }
    connection.verdict = verdict::IGNORED;
    emit::count_one(match guess {
        Guess::Tls => count::TLS,
        _ => count::OTHER,
    });
}

/// Bytes moved that cannot be read (sendfile, splice, MSG_TRUNC, unmapped memory).
#[inline(always)]
fn unseen(scratch: &mut Scratch, connection: &mut Connection, left: u32) {
    if scratch.call.vectors != NO_BYTES {
        emit::drop_one(drop_reason::USER_MEMORY);
    }
    let known = connection.verdict != verdict::UNKNOWN;
    let side = side(connection, scratch.call.direction as u8);
    if known {
        let has_frames = side.mode == mode::FRAMES;
        side.mode = mode::UNFRAMED;
        side.unframed = UNFRAMED_BUDGET;
        if has_frames {
            cause::gives_up(connection);
        }
        ship(scratch, connection, 0, left);
    } else {
        side.position += left as u64;
        side.skipped += left as u64;
    }
}

/// The same of a plain buffer: all or nothing.
#[inline(always)]
pub fn fill_plain(scratch: &mut Scratch, offset: u32, want: u32) -> u32 {
    let want = opaque(want);
    if want > WINDOW as u32 {
        return 0;
    }
    let window = scratch.window.as_mut_ptr();
    let from = scratch.call.base + offset as u64;
    // SAFETY: the window is WINDOW long at least; the helper checks the source.
    let result = unsafe { read_user_into(window.cast(), want, from as *const _) };
    if result == 0 { want } else { 0 }
}

/// Fills the window with up to `want` bytes of the call from `offset`. Returns how many it got.
#[inline(always)]
pub fn fill(scratch: &mut Scratch, offset: u32, want: u32) -> u32 {
    let want = if want > WINDOW as u32 {
        WINDOW as u32
    } else {
        want
    };
    let call = &mut scratch.call;
    let window = scratch.window.as_mut_ptr();
    scratch.gather.passed = 0;
    if call.vectors == NO_BYTES {
        return 0;
    }
    if call.vectors == BUFFER {
        return fill_plain(scratch, offset, want);
    }
    let gather = Forgotten::new(&mut scratch.gather);
    gather.store(Gather {
        skip: (offset as u64).wrapping_sub(call.before),
        filled: 0,
        want,
        passed: 0,
        reserved: 0,
        passed_bytes: 0,
    });
    let mut i = 0u32;
    while i < MAX_IOVECS as u32 {
        let Gather {
            mut skip,
            mut filled,
            want,
            mut passed,
            reserved,
            mut passed_bytes,
        } = gather.load();
        if i >= call.vectors || filled >= want || filled >= WINDOW as u32 {
            break;
        }
        // struct iovec: base 0, length 8.
        // SAFETY: the helper checks the address.
        let Ok([base, length]) =
            (unsafe { bpf_probe_read_user::<[u64; 2]>((call.base + i as u64 * 16) as *const _) })
        else {
            break;
        };
        i += 1;
        if skip >= length {
            skip -= length;
            if filled == 0 {
                passed += 1;
                passed_bytes += length;
            }
        } else {
            let take = opaque(at_most(length - skip, want - filled));
            if take > WINDOW as u32 {
                break;
            }
            // SAFETY: the masked offset is below WINDOW and `take` at most WINDOW: within
            // 2 * WINDOW.
            let result = unsafe {
                read_user_into(
                    window
                        .add((opaque(filled) & (WINDOW as u32 - 1)) as usize)
                        .cast(),
                    take,
                    (base + skip) as *const _,
                )
            };
            if result != 0 {
                break;
            }
            filled += take;
            skip = 0;
        }
        let next = Gather {
            skip,
            filled,
            want,
            passed,
            reserved,
            passed_bytes,
        };
        gather.store(next);
    }
    let Gather {
        filled,
        passed,
        passed_bytes,
        ..
    } = gather.load();
    call.base += passed as u64 * 16;
    call.vectors = call.vectors.wrapping_sub(passed);
    call.before += passed_bytes;
    if filled < want { filled } else { want }
}
