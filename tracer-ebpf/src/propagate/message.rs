//! Looks at a message before it leaves, and puts the header in.
//!
//! Hook: sk_msg on [`super::SOCKETS`], in the context of the thread that writes, with the socket locked.
//! Only the first message of a call is looked at: a later one is of bytes whose number was told to the
//! process already if the call is cut.
//!
//! The byte stream stays right whatever happens to the write, because the header goes in only where the
//! kernel takes everything up to its end in one go ([`kernel::takes_at_once`]): should the call be cut
//! behind it, what the kernel returns is what is left of the process's own bytes.

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_msg_pop_data, bpf_msg_pull_data,
    bpf_msg_push_data,
};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use tracer_common::abi::{Header, InjectedEvent, kind, propagated};
use tracer_common::context::{self, HEADER_BYTES, field};
use tracer_common::ids::purpose;

use super::bytes::{LONGEST, bounds, byte, half, join_pieces, size, word};
use super::{
    ADOPTED, FLOWS, Flow, LEAVING, MESSAGE_PROGRAMS, NAMELESS, PLANS, Plan, SELFTEST_PLAN, count,
    frames, id_of, name, number, state,
};
use crate::cause::Cause;
use crate::connection::{self, mode};
use crate::emit;
use crate::kernel::{self, opaque};
use crate::maps::EVENTS;
use crate::memory::Forgotten;

/// Steps of the scan in one run: eight bytes without a line feed, or one line feed.
const STEPS: u32 = 320;
const SCAN: u32 = 0;
const PREPARE: u32 = 1;
const INSERT: u32 = 2;
pub const FRAMES: u32 = 3;
pub const STREAM: u32 = 4;
pub const FIELD: u32 = 5;
const CRLF: u32 = u16::from_le_bytes(*b"\r\n") as u32;

/// See the module's text.
#[sk_msg]
pub fn propagate_message(ctx: SkMsgContext) -> u32 {
    let _ = begin(&ctx);
    SK_PASS
}

/// Reached by tail call only: goes over the lines of the head.
#[sk_msg]
pub fn propagate_scan(ctx: SkMsgContext) -> u32 {
    if let Some(outcome) = scan(&ctx) {
        count(outcome);
    }
    SK_PASS
}

/// Reached by tail call only: the head is whole and carries no context.
#[sk_msg]
pub fn propagate_prepare(ctx: SkMsgContext) -> u32 {
    if let Some(outcome) = prepare(&ctx) {
        count(outcome);
    }
    SK_PASS
}

/// Reached by tail call only: the header is ready.
#[sk_msg]
pub fn propagate_insert(ctx: SkMsgContext) -> u32 {
    if let Some(outcome) = insert(&ctx) {
        count(outcome);
    }
    SK_PASS
}

/// The plan of the current thread.
#[inline(always)]
pub fn plan() -> Option<&'static mut Plan> {
    let tid = bpf_get_current_pid_tgid() as u32;
    // SAFETY: the pointer is into the map; only this thread uses its plan.
    unsafe { PLANS.get_ptr_mut(&tid)?.as_mut() }
}

#[inline(always)]
fn begin(ctx: &SkMsgContext) -> Option<()> {
    // SAFETY: a field of the context.
    let sock = number(unsafe { (&raw const (*ctx.msg).__bindgen_anon_3.sk).read_volatile() });
    let plan = match plan() {
        Some(plan) if plan.armed != 0 && plan.sock == sock && plan.frames == 0 => plan,
        _ => return frames::begin(ctx, sock, frames::takes_plan(sock)),
    };
    plan.armed = 0;
    plan.at = 0;
    plan.lines = 0;
    let connection = connection::find(sock)?;
    if connection.id != plan.connection
        || connection.write.position != plan.position
        || connection.write.mode != mode::START
    {
        return None;
    }
    let flow = FLOWS.get_ptr_mut(&sock)?;
    // SAFETY: the pointer is into the map.
    let Flow {
        connection: id,
        added,
        state: now,
        ..
    } = unsafe { *flow };
    if now != state::ENROLLED || id != plan.connection {
        return None;
    }
    // Every byte that was ever sent has to be known, or where the request begins is not.
    let sent = connection
        .write_sequence
        .wrapping_add(plan.position as u32)
        .wrapping_add(added);
    if kernel::field::<u32>(sock, &kernel::TCP_WRITE_SEQ) != Some(sent) {
        // SAFETY: as above.
        unsafe { (*flow).state = state::LEFT };
        let _ = LEAVING.push(&sock, 0);
        count(propagated::UNSEEN);
        return None;
    }
    let size = size(ctx);
    let length = if size > LONGEST { LONGEST } else { size };
    if length < 32 {
        return None;
    }
    // SAFETY: the helper checks the range; it copies only what is in several pieces.
    if unsafe { bpf_msg_pull_data(ctx.msg, 0, length, 0) } != 0 {
        count(propagated::FAILED);
        return None;
    }
    if !context::begins_request(word(ctx, 0)?) {
        count(propagated::UNCLEAR);
        return None;
    }
    tail_call(ctx, SCAN);
    None
}

#[inline(always)]
pub fn tail_call(ctx: &SkMsgContext, program: u32) {
    // SAFETY: all indexes hold programs of this type.
    unsafe { MESSAGE_PROGRAMS.tail_call(ctx, program) };
}

/// Goes on with the scan; returns why nothing is to be done, or goes to another program.
#[inline(always)]
fn scan(ctx: &SkMsgContext) -> Option<u32> {
    let plan = plan()?;
    let at_place = &raw mut plan.at;
    let lines_place = &raw mut plan.lines;
    let mut step = 0;
    while step < STEPS {
        step += 1;
        // Through map memory, so that every step is one state to the verifier.
        // SAFETY: fields of a live map entry.
        let at = unsafe { at_place.read_volatile() };
        let (through, is_line) = match word(ctx, at) {
            Some(word) => context::through_line_feed(word),
            None => (1, byte(ctx, at)? == b'\n' as u32),
        };
        let next = at + through;
        // SAFETY: as above.
        unsafe { at_place.write_volatile(next) };
        if !is_line {
            continue;
        }
        // SAFETY: as above.
        let lines = unsafe { lines_place.read_volatile() };
        // SAFETY: as above.
        unsafe { lines_place.write_volatile(lines + 1) };
        if byte(ctx, next.wrapping_sub(2)) != Some(b'\r' as u32) {
            return Some(propagated::UNCLEAR);
        }
        if lines == 0 {
            let version = word(ctx, next.wrapping_sub(10));
            let is_version = version.is_some_and(context::is_version);
            if !is_version || byte(ctx, next.wrapping_sub(11)) != Some(b' ' as u32) {
                return Some(propagated::UNCLEAR);
            }
        }
        let Some(first) = half(ctx, next) else {
            return Some(propagated::UNCLEAR);
        };
        if first == CRLF {
            plan.end = next;
            tail_call(ctx, PREPARE);
            return None;
        }
        // A line that goes on, or an end of another kind.
        if first & 0xff <= b' ' as u32 {
            return Some(propagated::UNCLEAR);
        }
        let Some(word) = word(ctx, next) else {
            return Some(propagated::UNCLEAR);
        };
        if context::classify(context::lower(word)) != field::NOTHING {
            return Some(propagated::PRESENT);
        }
    }
    tail_call(ctx, SCAN);
    Some(propagated::UNCLEAR)
}

/// The head is whole: says which ids go into it, and whether they may.
#[inline(always)]
fn prepare(ctx: &SkMsgContext) -> Option<u32> {
    let plan = plan()?;
    let end = opaque(plan.end);
    if is_near_limit(end + 2) {
        return Some(propagated::TOO_LONG);
    }
    if !kernel::takes_at_once(plan.sock, end + 2 + HEADER_BYTES as u32) {
        return Some(propagated::BUSY);
    }
    let own = Cause {
        connection: plan.connection,
        key: plan.position,
    };
    let ids = Forgotten::new(&mut plan.ids);
    let [high, low, span] = [0usize, 1, 2].map(|i| ids.pointer().cast::<u64>().wrapping_add(i));
    // SAFETY: these point into the plan, which is this thread's, as is the text, which is longer than the
    // header.
    unsafe {
        let flags = name(own, plan.cause, high, low);
        if flags == NAMELESS {
            return Some(propagated::UNKNOWN_TRACE);
        }
        plan.flags = flags & 0xff;
        plan.adopted = (flags & ADOPTED != 0) as u32;
        span.write_volatile(id_of(own, purpose::SPAN));
        context::header(ids.pointer(), plan.flags, (&raw mut plan.text).cast());
    }
    tail_call(ctx, INSERT);
    None
}

/// Puts the header in before the empty line.
#[inline(always)]
fn insert(ctx: &SkMsgContext) -> Option<u32> {
    let plan = plan()?;
    let flow = FLOWS.get_ptr_mut(&plan.sock)?;
    // SAFETY: the pointer is into the map.
    let added = unsafe { (*flow).added };
    let Some(mut entry) = EVENTS.reserve::<InjectedEvent>(0) else {
        return Some(propagated::FAILED);
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry is as large as the event; every field is written before it is submitted.
    unsafe {
        (*event).header = Header {
            kind: kind::INJECTED,
            selector: 0,
            flags: 0,
            reserved: 0,
            value: HEADER_BYTES as u32,
        };
        (*event).time_ns = bpf_ktime_get_boot_ns();
        (*event).connection = plan.connection;
        (*event).position = plan.position;
        let [high, low, span] = plan.ids;
        (*event).trace = [high, low];
        (*event).span = span;
        (*event).cause_connection = plan.cause.connection;
        (*event).cause_key = plan.cause.key;
        (*event).cause_method = plan.cause_method;
        (*event).shift = added;
        (*event).flags = plan.flags;
        (*event).adopted = plan.adopted;
    }
    if !put(ctx, plan) {
        entry.discard(0);
        return Some(propagated::FAILED);
    }
    emit::submitted(entry);
    // SAFETY: as above; the socket is locked.
    unsafe { (*flow).added = added.wrapping_add(HEADER_BYTES as u32) };
    join_pieces(ctx);
    Some(propagated::INJECTED)
}

/// Reached only by the self-test's own sockets: a message that begins with `SELFTEST` gets a line of
/// text at the offset in its next two bytes.
#[sk_msg]
pub fn propagate_selftest(ctx: SkMsgContext) -> u32 {
    let _ = try_selftest(&ctx);
    SK_PASS
}

#[inline(always)]
fn try_selftest(ctx: &SkMsgContext) -> Option<()> {
    let size = size(ctx);
    let length = if size > LONGEST { LONGEST } else { size };
    // SAFETY: the helper checks the range.
    if length < 16 || unsafe { bpf_msg_pull_data(ctx.msg, 0, length, 0) } != 0 {
        return None;
    }
    if word(ctx, 0)? != u64::from_le_bytes(*b"SELFTEST") {
        return None;
    }
    let end = half(ctx, 8)?;
    // SAFETY: the pointer is into the map; there is one self-test at a time.
    let plan = unsafe { SELFTEST_PLAN.get_ptr_mut(0)?.as_mut()? };
    plan.end = end;
    let mut i = 0;
    while i < HEADER_BYTES {
        // SAFETY: within the text.
        unsafe { (&raw mut plan.text[i]).write_volatile(b'#') };
        i += 1;
    }
    if put(ctx, plan) {
        join_pieces(ctx);
    }
    None
}

/// Makes room and writes the header there. False if nothing was changed.
#[inline(always)]
fn put(ctx: &SkMsgContext, plan: &Plan) -> bool {
    const BYTES: u32 = HEADER_BYTES as u32;
    let end = opaque(plan.end);
    // SAFETY: the helpers check the ranges.
    unsafe {
        if bpf_msg_push_data(ctx.msg, end, BYTES, 0) != 0 {
            return false;
        }
        // What was just made is one piece: this only points at it.
        if bpf_msg_pull_data(ctx.msg, end, end + BYTES, 0) == 0 && write(ctx, plan) {
            return true;
        }
        // What is there now must not leave.
        bpf_msg_pop_data(ctx.msg, end, BYTES, 0);
    }
    false
}

#[inline(always)]
fn write(ctx: &SkMsgContext, plan: &Plan) -> bool {
    let (data, end) = bounds(ctx);
    if data + HEADER_BYTES as u64 > end {
        return false;
    }
    let mut i = 0;
    while i < HEADER_BYTES {
        // SAFETY: within the bounds that were checked.
        unsafe {
            let letter = (&raw const plan.text[i]).read_volatile();
            ((data + i as u64) as *mut u8).write_volatile(letter);
        }
        i += 1;
    }
    true
}

/// Servers refuse heads that are longer than some round number; what was accepted without the header
/// has to be accepted with it.
#[inline(always)]
fn is_near_limit(head: u32) -> bool {
    let with = head + HEADER_BYTES as u32;
    let crosses = |limit: u32| head <= limit && with > limit;
    crosses(4096)
        || crosses(8000)
        || crosses(8192)
        || crosses(16384)
        || crosses(32768)
        || crosses(65535)
}
